"""Two moments of a mesh, compared: what changed between them, in words and by resource.

::

    moments = Moments(Facts(open_source("before.zip")), Facts(open_source("after.zip")))
    moments.frame()[["subject", "words"]]
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any

import pandas as pd

from meshnb.sources import Manifests
from meshnb.tables import Facts
from meshnb.tables.base import OUTSIDE, Listed
from meshnb.traces.moments.asked import AskedOnce, asked_once, never_asked
from meshnb.traces.moments.base import CHANGED, Change, Edit
from meshnb.traces.moments.objects import Unseen, object_changes
from meshnb.traces.moments.pods import pod_changes
from meshnb.traces.moments.resources import resource_changes
from meshnb.traces.moments.rows import RowChange, comparable, row_changes
from meshnb.traces.moments.states import WATCHED_TABLES, state_changes
from meshnb.traces.moments.succession import Succession, succession

__all__ = ["CHANGED", "Change", "Edit", "Moments", "RowChange", "Unseen", "comparable"]

_PODS = Listed("v1", "pods")
#: What one looks at first: what somebody wrote, then what it did.
_ORDER = ("object", "pod", "control plane", "proxy", "resource", "certificate")
#: Objects that rarely are why a request fails; the others come first.
_RARELY = frozenset(
    {
        *("ConfigMap", "Secret", "ServiceAccount", "Node", "CustomResourceDefinition"),
        *("ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"),
    }
)


@dataclass(frozen=True)
class Moments:
    """The same mesh at two moments, or two sources that should be alike.

    Versions, nonces, ages, counters and times are left out, and so is what follows from nothing but
    new names and addresses of pods.
    """

    before: Facts
    after: Facts

    @property
    def changes(self) -> tuple[Change, ...]:
        """What is not as it was: objects first, then pods, istiod, proxies and certificates."""
        return self._found[0]

    @property
    def unseen(self) -> tuple[Unseen, ...]:
        """What could not be compared, and why: silence is not sameness."""
        return self._found[1]

    @cached_property
    def succession(self) -> Succession:
        """Which pod took the place of which; nobody, where one moment has not seen the pods."""
        if not all(map(_saw_pods, (self.before, self.after))):
            return Succession((), (), (), (), {}, {})
        return succession(self.before, self.after)

    @cached_property
    def asked_once(self) -> AskedOnce:
        """What only one of the moments asked of a pod that was there at both."""
        return asked_once(self.before, self.after, self.succession)

    @cached_property
    def _found(self) -> tuple[tuple[Change, ...], tuple[Unseen, ...]]:
        changes: list[Change] = []
        unseen: dict[Unseen, None] = {}
        for one in chain(self._all(), self._silences()):
            if isinstance(one, Change):
                changes.append(one)
            else:
                unseen[one] = None
        changes.sort(key=_rank)
        return tuple(changes), tuple(unseen)

    def _all(self) -> Iterator[Change | Unseen]:
        yield from object_changes(self.before, self.after)
        in_files = [isinstance(facts.source, Manifests) for facts in (self.before, self.after)]
        if any(in_files):
            if not all(in_files):
                which = "earlier" if in_files[0] else "later"
                yield Unseen("what runs", f"the {which} moment is files, in which nothing runs")
            return
        matched = self.succession
        new = frozenset(matched.names.values())
        yield from pod_changes(self.after, matched)
        yield from state_changes(
            self.before, self.after, matched.names, new, self.asked_once.questions
        )
        yield from resource_changes(self.before, self.after, matched)

    def _silences(self) -> Iterator[Unseen]:
        """Yield what one of the moments was not told that the other was."""
        if any(isinstance(facts.source, Manifests) for facts in (self.before, self.after)):
            return
        yield from self.asked_once.unseen
        tables = ("pods", "containers", *WATCHED_TABLES)
        matched = self.succession
        sides = [
            {
                matched.names.get(gap.question, gap.question): gap
                for gap in facts.gaps(*tables)
                # Of whom nothing was asked, that is said once.
                if gap.state != OUTSIDE and gap.question.partition(":")[0] not in silent
            }
            for facts, silent in (
                (self.before, never_asked(matched.before)),
                (self.after, never_asked(matched.after)),
            )
        ]
        for side, other, which in ((0, 1, "earlier"), (1, 0, "later")):
            for question, gap in sides[side].items():
                if question not in sides[other]:
                    yield Unseen(question, f"at the {which} moment it {gap.reason}")

    def rows(self, table: str) -> tuple[RowChange, ...]:
        """Return the rows of one table that are not as they were.

        Raises UsageError for an unknown table, and for one whose rows do not last, such as a log.
        """
        comparable(table)
        names, once = self.succession.names, self.asked_once.questions
        return tuple(row_changes(table, self.before, self.after, names, once))

    def sides(self, change: Change) -> pd.DataFrame:
        """Return the places of one change side by side: path, before, after and made_from."""
        columns = ["path", "before", "after", "made_from"]
        told = [edit for edit in change.edits if edit.path]
        return pd.DataFrame(
            [(edit.path, edit.before, edit.after, edit.made_from) for edit in told],
            columns=columns,
            dtype="string",
        )

    def frame(self) -> pd.DataFrame:
        """Return one row per change; the columns are those of :data:`CHANGED`."""
        titles = {
            str(q): q for facts in (self.before, self.after) for q in facts.source.questions()
        }
        return CHANGED.frame(
            (
                titles[change.question],
                {
                    "about": change.about,
                    "subject": change.subject,
                    "state": change.state,
                    "words": change.words,
                    "when": change.when,
                    "by": change.by or None,
                    "paths": tuple(edit.path for edit in change.edits if edit.path),
                    "proxies": change.proxies,
                    "made_from": change.made_from,
                },
            )
            for change in self.changes
        )

    def to_json(self) -> dict[str, Any]:
        """Return both moments and all changes as an object."""
        return {
            **{
                side: {
                    "source": facts.source.label,
                    "recorded_at": facts.now.isoformat().replace("+00:00", "Z"),
                }
                for side, facts in (("before", self.before), ("after", self.after))
            },
            "changes": [change.to_json() for change in self.changes],
            "unseen": [{"what": one.what, "why": one.why} for one in self.unseen],
        }


def _saw_pods(facts: Facts) -> bool:
    return all(gap.question not in (str(_PODS), "LIST v1/pods") for gap in facts.gaps("pods"))


def _rank(change: Change) -> tuple[int, bool, bool]:
    """Sort what somebody wrote for the mesh before the rest, and before what is as it was."""
    kind = change.subject.partition(" ")[0]
    same = change.about == "object" and change.state == "changed" and not change.edits
    return _ORDER.index(change.about), same, change.about == "object" and kind in _RARELY
