"""Where rows stand in the tables, by what is in their key columns: for hops that cite them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from meshnb.tables import Facts
from meshnb.traces.mesh import plain

#: Listeners and clusters that a proxy does not use, or not yet.
_UNUSED = ("refused", "warming", "draining")


class RowIndex:
    """Positions of rows in the tables, by their key columns."""

    def __init__(self, facts: Facts) -> None:
        """Take a source's facts; a table is made when the first of its rows is asked for."""
        self._facts = facts
        self._indexes: dict[tuple[str, tuple[str, ...]], dict[tuple[Any, ...], int]] = {}

    def row(self, table: str, key: Mapping[str, Any]) -> int | None:
        """Return the position of the first row with these values; None without one."""
        names = tuple(key)
        if (table, names) not in self._indexes:
            frame = self._facts[table]
            used = [True] * len(frame)
            if "state" in frame:
                used = (~frame["state"].isin(_UNUSED)).tolist()
            columns = (frame[name].tolist() for name in names)
            index: dict[tuple[Any, ...], int] = {}
            for position, values in enumerate(zip(*columns, strict=True)):
                if used[position]:
                    index.setdefault(tuple(map(plain, values)), position)
            self._indexes[table, names] = index
        return self._indexes[table, names].get(tuple(key.values()))
