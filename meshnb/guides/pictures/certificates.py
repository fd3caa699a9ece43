"""The picture of certificates: from when to when each is valid, and where now lies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from meshnb.guides.pictures.base import Span, State, TimeLine, age
from meshnb.tables import Facts
from meshnb.traces.mesh import plain

#: So many certificates fit on a screen.
_MOST = 16
#: Istio renews a workload's certificate when half of its life is over; a fifth left is late.
_LATE = 0.2


def certificates(facts: Facts) -> TimeLine | None:
    """Return the line of workload certificates, the first to end on top; None without any."""
    spans = [
        span
        for row in facts["certificates"].to_dict("records")
        if plain(row["type"]) == "Cert Chain" and (span := _span(row, facts)) is not None
    ]
    if not spans:
        return None
    spans.sort(key=lambda span: (span.end, span.name))
    return TimeLine(
        "How long the proxies' own certificates are valid",
        facts.now,
        tuple(spans[:_MOST]),
        len(spans),
    )


def _span(row: Mapping[Any, Any], facts: Facts) -> Span | None:
    start, end = plain(row["not_before"]), plain(row["not_after"])
    if start is None or end is None or end <= start:
        return None
    left = (end - facts.now).total_seconds()
    if left < 0:
        state, note = State.BROKEN, f"over for {age(-left)}"
    elif start > facts.now:
        state, note = State.BROKEN, "not valid yet"
    elif left < _LATE * (end - start).total_seconds():
        state, note = State.ODD, f"ends in {age(left)}, and was not renewed"
    else:
        state, note = State.FINE, f"ends in {age(left)}"
    name = str(row["proxy"])
    if plain(row["resource_name"]) != "default":
        name = f"{name} {row['resource_name']}"
    return Span(name, start.to_pydatetime(), end.to_pydatetime(), state, note)
