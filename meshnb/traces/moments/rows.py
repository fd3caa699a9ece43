"""Rows of one table at two moments, matched by its key."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from meshnb.errors import UsageError, nearest
from meshnb.tables import TABLES, Facts, Table
from meshnb.traces.mesh import plain
from meshnb.traces.moments.base import Edit, edits

#: Annotations that programs renew by themselves, or that repeat the object.
PASSING_ANNOTATIONS = frozenset(
    {
        "kubectl.kubernetes.io/last-applied-configuration",
        "deployment.kubernetes.io/revision",
        "control-plane.alpha.kubernetes.io/leader",
        "endpoints.kubernetes.io/last-change-trigger-time",
    }
)


@dataclass(frozen=True, slots=True)
class RowChange:
    """One row that is not as it was: ``added``, ``removed`` or ``changed``."""

    table: str
    key: tuple[tuple[str, Any], ...]
    state: str
    edits: tuple[Edit, ...]
    question: str

    def __str__(self) -> str:
        """Return the key and what became of the row."""
        return f"{self.name}: {', '.join(map(str, self.edits)) or self.state}"

    @property
    def name(self) -> str:
        """The values of the key, as one text."""
        return " ".join(str(value) for _, value in self.key if value is not None)

    def to_json(self) -> dict[str, Any]:
        """Return the row as an object."""
        return {
            "table": self.table,
            "key": {column: _json(value) for column, value in self.key},
            "state": self.state,
            "edits": [edit.to_json() for edit in self.edits],
            "question": self.question,
        }


def comparable(name: str) -> Table:
    """Return the table of a name. Raises UsageError when there is none, or its rows do not last."""
    table = TABLES.get(name)
    if table is None:
        raise UsageError(f"There is no table {name!r}.", next_step=nearest(name, TABLES))
    fleeting = [title for title, column in table.columns.items() if column.key and column.passing]
    if fleeting:
        raise UsageError(
            f"Rows of {name} cannot be found again: their {' and '.join(fleeting)} only counts.",
            next_step="Compare a table of things that last; `meshnb tables` lists them.",
        )
    return table


def row_changes(
    name: str,
    before: Facts,
    after: Facts,
    names: Mapping[str, str],
    once: frozenset[str] = frozenset(),
) -> Iterator[RowChange]:
    """Yield the rows of a table that are not as they were, those that are gone last.

    Columns that pass by themselves are left out. ``names`` says what a pod or proxy of the earlier
    moment is called now, when another has taken its place. Rows are left out of which one of the
    questions is in ``once``, because nobody asked it at the other moment.
    """
    table = comparable(name)
    lasting = [
        title
        for title, column in table.columns.items()
        if not column.key and not column.passing and title != "question"
    ]
    old, new = _renamed(before[name], names), after[name]
    were, are = _places(table, old), _places(table, new)
    left_out = {
        key
        for frame, places in ((old, were), (new, are))
        for key, place in places.items()
        if once and frame["question"].iloc[place] in once
    }
    were = {key: place for key, place in were.items() if key not in left_out}
    are = {key: place for key, place in are.items() if key not in left_out}
    both = [(were[key], place) for key, place in are.items() if key in were]
    differ = np.zeros(len(both), dtype=bool)
    for title in lasting:
        mine = old[title].iloc[[one for one, _ in both]]
        differ |= _unequal(mine, new[title].iloc[[other for _, other in both]])
    changed = {other: one for (one, other), unequal in zip(both, differ, strict=True) if unequal}
    for key, place in are.items():
        if key not in were:
            yield _row(table, new, place, "added", ())
        elif place in changed:
            found = tuple(
                edit
                for title in lasting
                for edit in _edits(title, old[title].iloc[changed[place]], new[title].iloc[place])
            )
            if found:
                yield _row(table, new, place, "changed", found)
    for key, place in were.items():
        if key not in are:
            yield _row(table, old, place, "removed", ())


def _renamed(frame: pd.DataFrame, names: Mapping[str, str]) -> pd.DataFrame:
    texts = [title for title in frame.columns if frame[title].dtype == "string"]
    return frame.assign(
        **{
            title: frame[title].map(lambda name: names.get(name, name)).astype("string")
            for title in texts
            if frame[title].isin(names.keys()).any()
        }
    )


def _places(table: Table, frame: pd.DataFrame) -> dict[tuple[Any, ...], int]:
    """Return the place of each row by its key; of rows with one key each has its number."""
    columns = [list(map(plain, frame[title])) for title in _keys(table)]
    found: dict[tuple[Any, ...], int] = {}
    counts: Counter[tuple[Any, ...]] = Counter()
    for place, key in enumerate(zip(*columns, strict=True)):
        found[*key, counts[key]] = place
        counts[key] += 1
    return found


def _keys(table: Table) -> list[str]:
    return [title for title, column in table.columns.items() if column.key]


def _row(
    table: Table, frame: pd.DataFrame, place: int, state: str, found: tuple[Edit, ...]
) -> RowChange:
    values = tuple((title, plain(frame[title].iloc[place])) for title in _keys(table))
    question = str(plain(frame["question"].iloc[place]) or "")
    return RowChange(table.name, values, state, found, question)


def _unequal(old: pd.Series, new: pd.Series) -> np.ndarray[Any, np.dtype[np.bool_]]:
    if old.dtype == object:
        pairs = zip(old, new, strict=True)
        return np.array([plain(one) != plain(other) for one, other in pairs], dtype=bool)
    gone = old.isna().to_numpy() != new.isna().to_numpy()
    unequal = (old.array != new.array).astype(object)  # NA where one is absent
    found: np.ndarray[Any, np.dtype[np.bool_]] = gone | np.array(
        [one is True or one is np.True_ for one in unequal], dtype=bool
    )
    return found


def _edits(title: str, old: Any, new: Any) -> Iterator[Edit]:
    one, other = _json(plain(old)), _json(plain(new))
    if title == "annotations":
        one, other = _lasting(one), _lasting(other)
    yield from edits({title: one}, {title: other})


def _lasting(annotations: Any) -> Any:
    if not isinstance(annotations, dict):
        return annotations
    return {name: one for name, one in annotations.items() if name not in PASSING_ANNOTATIONS}


def _json(value: Any) -> Any:
    """Return a cell as JSON has it."""
    if isinstance(value, dict):
        return {str(name): _json(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_json(one) for one in value]
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, pd.Timestamp):
        return value.isoformat().replace("+00:00", "Z")
    return value.item() if hasattr(value, "item") else str(value)
