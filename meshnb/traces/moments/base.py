"""What a change is: one thing that is not as it was, in words, with the places that differ."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from meshnb.tables.base import Column, Table
from meshnb.traces.comparison.base import Difference
from meshnb.traces.comparison.differences import differences as compared

#: So many names are spelled out in a sentence.
_NAMED = 3
#: A value in a sentence has no more characters than this.
_SHOWN = 120


@dataclass(frozen=True, slots=True)
class Edit:
    """One place that is not as it was; a value is empty where there was or is none."""

    #: JSON path into an object or a resource of Envoy, or a column of a table
    path: str
    before: str
    after: str
    #: the Istio object that this place was made from, such as ``VirtualService shop/cart``
    made_from: str = ""

    def __str__(self) -> str:
        """Return the place with both values."""
        return f"{self.path} {_cut(self.before) or 'absent'} -> {_cut(self.after) or 'absent'}"

    def to_json(self) -> dict[str, str]:
        """Return the edit as an object."""
        return {
            "path": self.path,
            "before": self.before,
            "after": self.after,
            "made_from": self.made_from,
        }


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that is not as it was.

    ``about`` is ``object``, ``pod``, ``control plane``, ``proxy``, ``resource`` (of Envoy) or
    ``certificate``. ``state`` is ``added``, ``removed``, ``changed``, ``replaced``, ``restarted``
    or ``renewed``.
    """

    about: str
    #: what it is about, with kind, namespace and name where it has them
    subject: str
    state: str
    #: one sentence without its full stop
    words: str
    edits: tuple[Edit, ...] = ()
    #: when it was changed, where the mesh says so
    when: datetime | None = None
    #: the field manager that changed it: the program, not the person
    by: str = ""
    #: the proxies in which it changed
    proxies: tuple[str, ...] = ()
    #: the question of the later moment that shows it; of the earlier one for what is gone
    question: str = ""

    @property
    def made_from(self) -> tuple[str, ...]:
        """The Istio objects that what changed was made from."""
        return tuple(dict.fromkeys(edit.made_from for edit in self.edits if edit.made_from))

    def __str__(self) -> str:
        """Return the sentence."""
        return self.words

    def to_json(self) -> dict[str, Any]:
        """Return the change as an object."""
        return {
            "about": self.about,
            "subject": self.subject,
            "state": self.state,
            "words": self.words,
            "when": None if self.when is None else self.when.isoformat().replace("+00:00", "Z"),
            "by": self.by,
            "proxies": list(self.proxies),
            "made_from": list(self.made_from),
            "edits": [edit.to_json() for edit in self.edits],
            "question": self.question,
        }


CHANGED = Table(
    name="changed",
    grain="one row per thing that is not as it was",
    columns={
        "about": Column(
            "string", "object, pod, control plane, proxy, resource (of Envoy) or certificate"
        ),
        "subject": Column("string", "what changed", key=True),
        "state": Column("string", "added, removed, changed, replaced, restarted or renewed"),
        "words": Column("string", "what happened, in one sentence"),
        "when": Column("datetime64[us, UTC]", "when it was changed, where the mesh says so"),
        "by": Column("string", "the field manager that changed it"),
        "paths": Column("object", "tuple: the places that differ"),
        "proxies": Column("object", "tuple: the proxies in which it changed"),
        "made_from": Column("object", "tuple: the Istio objects that it was made from"),
    },
)


def edits(before: Any, after: Any) -> Iterator[Edit]:
    """Yield the places at which two documents differ."""
    for difference in compared(before, after):
        yield _edit(difference)


def _edit(found: Difference) -> Edit:
    return Edit(found.path, _plain(found.here), _plain(found.there), found.made_from)


def _plain(text: str) -> str:
    """Return the text of a JSON string; anything else as it is written."""
    if text.startswith('"'):
        try:
            return str(json.loads(text))
        except ValueError:  # it was cut
            return text[1:]
    return text


def _cut(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN else f"{line[: _SHOWN - 1]}…"


def first_edits(found: Sequence[Edit], most: int = 1) -> str:
    """Return the first edits in words, and how many more there are."""
    said = ", ".join(map(str, found[:most]))
    more = len(found) - most
    return f"{said}, and {plural(more, 'place')} more" if more > 0 else said


def plural(count: int, one: str, many: str = "") -> str:
    """Return a count with its noun."""
    return f"{count} {one if count == 1 else many or one + 's'}"


def some(names: Iterable[str], most: int = _NAMED) -> str:
    """Return names in a sentence; of many only the first."""
    every = list(dict.fromkeys(names))
    if len(every) > most:
        return f"{', '.join(every[:most])} and {len(every) - most} more"
    return " and ".join([", ".join(every[:-1]), every[-1]] if len(every) > 1 else every)


def clock(moment: datetime, now: datetime) -> str:
    """Return a time as one says it at ``now``: with its day only when that is another one."""
    day = "" if moment.date() == now.date() else "%Y-%m-%d "
    return f"{moment:{day}%H:%M:%S} UTC"
