"""What changed since: two moments of a mesh, and which of its problems are new or gone."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from meshnb.diagnosis import RankedCause
from meshnb.guides.base import Case
from meshnb.traces.moments import Change, Moments

#: A verdict as it is told of the earlier moment, of the later one, and of both.
_WAS = {"problem": "there was a problem", "healthy": "all was well", "unknown": "it was not known"}
_IS = {
    "problem": "and now there is a problem",
    "healthy": "and now all is well",
    "unknown": "and now it cannot be told what is wrong",
}
_STILL = {
    "problem": "there is a problem, as before",
    "healthy": "all is well, as before",
    "unknown": "it cannot be told what is wrong, as before",
}


@dataclass(frozen=True)
class Since:
    """Two cases of one mesh: what is not as it was, and which causes are new or gone."""

    before: Case
    after: Case

    @cached_property
    def moments(self) -> Moments:
        """Both moments, compared."""
        return Moments(self.before.facts, self.after.facts)

    @property
    def changes(self) -> tuple[Change, ...]:
        """What is not as it was."""
        return self.moments.changes

    @property
    def new_causes(self) -> tuple[RankedCause, ...]:
        """The problems that were not there before, the first cause first."""
        known = {self._name(cause) for cause in self.before.diagnosis.problems}
        problems = self.after.diagnosis.problems
        return tuple(cause for cause in problems if self._name(cause) not in known)

    @property
    def gone_causes(self) -> tuple[RankedCause, ...]:
        """The problems that are there no longer."""
        known = {self._name(cause) for cause in self.after.diagnosis.problems}
        problems = self.before.diagnosis.problems
        return tuple(cause for cause in problems if self._name(cause) not in known)

    @property
    def kept_causes(self) -> tuple[RankedCause, ...]:
        """The problems that were there before and still are, the first cause first."""
        known = {self._name(cause) for cause in self.before.diagnosis.problems}
        problems = self.after.diagnosis.problems
        return tuple(cause for cause in problems if self._name(cause) in known)

    @property
    def same(self) -> bool:
        """Whether nothing changed, as far as that could be seen."""
        return not (self.changes or self.new_causes or self.gone_causes)

    def _name(self, cause: RankedCause) -> tuple[str, str, str, str]:
        """Return check and subject; a pod that replaced another one goes by its own name."""
        subject = cause.subject
        names = self.moments.succession.names
        full = names.get(f"{subject.name}.{subject.namespace}", "")
        name = full.removesuffix(f".{subject.namespace}") or subject.name
        return cause.check.code, subject.kind, subject.namespace, name

    def headline(self) -> str:
        """Return in one sentence how much changed, and whether the verdict did."""
        count = len(self.changes)
        said = f"{count} change{'' if count == 1 else 's'}" if count else "Nothing changed"
        old, new = self.before.diagnosis.verdict, self.after.diagnosis.verdict
        said += f": {_WAS[old]}, {_IS[new]}" if old != new else f": {_STILL[new]}"
        return f"{said}."

    def lines(self) -> tuple[str, ...]:
        """Return all that is new, gone or changed as sentences, the causes first."""
        return (
            *(f"New problem: {cause.finding.message}" for cause in self.new_causes),
            *(f"No problem any more: {cause.finding.message}" for cause in self.gone_causes),
            *(f"As before: {cause.finding.message}" for cause in self.kept_causes),
            *(f"{change.words}." for change in self.changes),
            *(f"Not compared: {one}." for one in self.moments.unseen),
        )

    def to_json(self) -> dict[str, Any]:
        """Return both moments, all changes and the causes that are new or gone as an object."""
        document = self.moments.to_json()
        for side, case in (("before", self.before), ("after", self.after)):
            document[side]["verdict"] = case.diagnosis.verdict
        for title, causes in (("new_causes", self.new_causes), ("gone_causes", self.gone_causes)):
            document[title] = [
                {
                    "code": cause.check.code,
                    "subject": cause.subject.to_json(),
                    "message": cause.finding.message,
                }
                for cause in causes
            ]
        return document
