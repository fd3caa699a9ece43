"""What a change is followed along: rungs, from being stored to being used, and who stands where."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

#: The rungs from bottom to top, with the question that each of them answers.
RUNGS: Mapping[str, str] = {
    "stored": "Does the API server have it?",
    "valid": "Is it well written, and did nobody refuse it?",
    "selected": "Does it concern any proxy, by its own words and by those of others?",
    "seen": "Does each istiod have it as it is stored?",
    "pushed": "Was it sent to each proxy that it concerns?",
    "accepted": "Did each of them take it?",
    "active": "Is what istiod makes of it in force there?",
    "used": "Did requests go through it since?",
}

PASSED, BROKEN, UNDECIDED = "passed", "broken", "undecided"
NOT_REACHED, NOT_NEEDED = "not_reached", "not_needed"


def where(rows: pd.DataFrame, flags: Iterable[bool]) -> pd.DataFrame:
    """Return the rows with a flag of True; there may be none at all."""
    return rows[pd.Series(list(flags), index=rows.index, dtype=bool)]


def _one_line(text: str) -> str:
    return " ".join(text.split())


@dataclass(frozen=True, slots=True)
class Cited:
    """Rows of one table that show something, by their labels in it."""

    table: str
    rows: tuple[int, ...]

    @classmethod
    def of(cls, table: str, rows: pd.DataFrame, limit: int = 10) -> tuple[Cited, ...]:
        """Cite the first rows of a part of a table; nothing when there is none."""
        labels = tuple(int(label) for label in rows.index[:limit])
        return (cls(table, labels),) if labels else ()

    def to_json(self) -> dict[str, Any]:
        """Return it as an object."""
        return {"table": self.table, "rows": list(self.rows)}


@dataclass(frozen=True, slots=True)
class Standing:
    """How far one proxy or istiod is on a rung, and by what that is seen."""

    who: str
    outcome: str
    says: str
    cites: tuple[Cited, ...] = ()

    def __post_init__(self) -> None:
        """Keep in one line what is read by people: names and messages come from anywhere."""
        object.__setattr__(self, "says", _one_line(self.says))

    def to_json(self) -> dict[str, Any]:
        """Return it as an object."""
        return {
            "who": self.who,
            "outcome": self.outcome,
            "says": self.says,
            "evidence": [one.to_json() for one in self.cites],
        }


@dataclass(frozen=True, slots=True)
class Rung:
    """One rung. ``outcome`` is passed, broken, undecided, not_reached or not_needed."""

    name: str
    outcome: str
    says: str
    #: the proxies, or for ``seen`` the istiods, each with its own outcome
    standings: tuple[Standing, ...] = ()
    cites: tuple[Cited, ...] = ()

    def __post_init__(self) -> None:
        """Keep in one line what is read by people: names and messages come from anywhere."""
        object.__setattr__(self, "says", _one_line(self.says))

    @property
    def question(self) -> str:
        """What the rung asks."""
        return RUNGS[self.name]

    def to_json(self) -> dict[str, Any]:
        """Return the rung as an object."""
        return {
            "name": self.name,
            "question": self.question,
            "outcome": self.outcome,
            "says": self.says,
            "standings": [one.to_json() for one in self.standings],
            "evidence": [one.to_json() for one in self.cites],
        }


@dataclass(frozen=True, slots=True)
class ChangeTrace:
    """One object, followed up the ladder."""

    #: kind, namespace and name as a person writes them
    subject: str
    rungs: tuple[Rung, ...]
    #: the first rung that is broken; None when none is
    broken: Rung | None
    #: what became of the change, in sentences
    answer: str

    def __post_init__(self) -> None:
        """Keep in one line what is read by people: names and messages come from anywhere."""
        object.__setattr__(self, "subject", _one_line(self.subject))
        object.__setattr__(self, "answer", _one_line(self.answer))

    def __getitem__(self, name: str) -> Rung:
        """Return the rung of a name."""
        return next(rung for rung in self.rungs if rung.name == name)

    def to_json(self) -> dict[str, Any]:
        """Return the trace as an object."""
        return {
            "subject": self.subject,
            "broken": self.broken.name if self.broken is not None else None,
            "answer": self.answer,
            "rungs": [rung.to_json() for rung in self.rungs],
        }

    def frame(self) -> pd.DataFrame:
        """Return one row per rung, then one per proxy or istiod on it.

        Columns: ``rung``, ``outcome``, ``who`` (NA for the rung itself), ``says``, ``evidence`` (a
        tuple of table names with row labels, such as ``routes 4, 7``).
        """
        rows = list(self._rows())
        columns = {name: [row[name] for row in rows] for name in _COLUMNS}
        return pd.DataFrame(
            {name: pd.Series(columns[name], dtype=kind) for name, kind in _COLUMNS.items()}
        )

    def _rows(self) -> Iterator[Mapping[str, Any]]:
        for rung in self.rungs:
            every: tuple[Rung | Standing, ...] = (rung, *rung.standings)
            for one in every:
                yield {
                    "rung": rung.name,
                    "outcome": one.outcome,
                    "who": one.who if isinstance(one, Standing) else None,
                    "says": one.says,
                    "evidence": tuple(
                        f"{cited.table} {', '.join(map(str, cited.rows))}" for cited in one.cites
                    ),
                }


_COLUMNS: Mapping[str, Any] = {
    "rung": "string",
    "outcome": "string",
    "who": "string",
    "says": "string",
    "evidence": "object",
}
