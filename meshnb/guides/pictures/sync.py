"""The picture of proxies in step: how far each is with each kind of configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from meshnb.guides.pictures.base import Cell, State, SyncMap, age, worst
from meshnb.symptoms.sync import STALE_AFTER_S
from meshnb.tables import Facts
from meshnb.traces.mesh import plain

#: So many proxies fit on a screen.
_MOST = 30
_ORDER = ("CDS", "LDS", "EDS", "RDS", "ECDS", "SDS", "NDS", "WDS", "WADS")
_SEVERITY = (State.BROKEN, State.ODD, State.UNKNOWN, State.FINE, State.UNREACHED)


def sync(facts: Facts) -> SyncMap | None:
    """Return the map of proxies by kinds of configuration; None when nobody knows any proxy."""
    status = facts["proxy_status"]
    found: dict[str, dict[str, Cell]] = {}
    for row in status.to_dict("records"):
        cells = found.setdefault(str(row["proxy"]), {})
        kind, cell = str(row["xds"]), _cell(row)
        # Two istiods can both remember a proxy; the one with more to complain of counts.
        if kind not in cells or worst((cells[kind].state, cell.state)) is cell.state:
            cells[kind] = cell
    for proxy in facts["proxies"]["proxy"]:
        found.setdefault(str(proxy), {})
    if not found:
        return None
    seen = {kind for cells in found.values() for kind in cells}
    kinds = tuple(kind for kind in _ORDER if kind in seen) + tuple(sorted(seen - set(_ORDER)))
    kinds = tuple(
        kind
        for kind in kinds
        if any(cells[kind].word != "IGNORED" for cells in found.values() if kind in cells)
    ) or ("any",)
    away = Cell(State.BROKEN, "not connected", "")
    rows = [
        (
            proxy,
            tuple(
                cells.get(kind, Cell(State.UNREACHED, "none", "") if cells else away)
                for kind in kinds
            ),
        )
        for proxy, cells in found.items()
    ]
    rows.sort(key=lambda row: (_SEVERITY.index(worst(cell.state for cell in row[1])), row[0]))
    return SyncMap("Which proxy is in step with istiod", kinds, tuple(rows[:_MOST]), len(rows))


def _cell(row: Mapping[Any, Any]) -> Cell:
    word = str(plain(row["sync"]) or "unknown")
    seconds = plain(row["age_s"])
    state = State.UNKNOWN
    if word in ("IGNORED", "NOT SENT"):
        state = State.UNREACHED
    elif word == "SYNCED":
        state = State.FINE
    elif word == "ERROR":
        state = State.BROKEN
    elif word == "STALE":
        state = State.BROKEN if seconds is None or seconds > STALE_AFTER_S else State.ODD
    # What was never sent has no age.
    return Cell(state, word, "" if state is State.UNREACHED else age(seconds))
