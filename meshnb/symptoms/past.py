"""Symptoms that are over: logs reach back to what was mended long before they were read.

A symptom is over when every request or connection that failed has worked again, for the same
caller, often enough and for long enough that the failure cannot have been luck. Where nobody has
asked again, nothing is known, and the symptom stands.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from itertools import pairwise
from statistics import median
from typing import Any

from meshnb.symptoms.base import REPEATED, Symptom
from meshnb.symptoms.requests import split_address
from meshnb.tables import Facts
from meshnb.traces.failures import Failure, failed
from meshnb.traces.mesh import plain

#: It must have worked for so long since.
QUIET = timedelta(seconds=60)
#: What comes back so often after it has been quiet for so long may come back again.
RETURNS = 3
#: As likely as this it may be luck that none has failed since.
LUCK = 0.01
#: Parts of paths that differ from request to request: numbers and identifiers.
_VARIABLE = re.compile(r"[0-9a-fA-F-]{8,}|\d+")
#: Refused to one, the same may be granted to another, and a gateway's log tells no callers apart.
_PERSONAL = frozenset({401, 403})

Edge = tuple[str, ...]


class Later:
    """When each edge worked: a caller, and what it asked for."""

    def __init__(self, facts: Facts) -> None:
        """Read the lines of requests and connections that succeeded, in the order of time."""
        self._worked: dict[Edge, list[datetime]] = {}
        for edge, time in (*_requests(facts), *_tunnels(facts)):
            self._worked.setdefault(edge, []).append(time)
        for times in self._worked.values():
            times.sort()

    def over_since(self, symptom: Symptom, facts: Facts) -> datetime | None:
        """Return since when all that failed works again; None where it does not, or may not."""
        failures = dict[tuple[Edge, ...], list[datetime]]()
        if symptom.count < REPEATED:
            return None  # an accident, which its checks judge
        if symptom.side == "gateway" and symptom.code in _PERSONAL:
            return None
        for edges, time in _failed(symptom, facts):
            if time is None:
                return None
            failures.setdefault(edges, []).append(time)
        since = [
            mended(sorted(times), [when for edge in edges for when in self._worked.get(edge, ())])
            for edges, times in failures.items()
        ]
        known = [when for when in since if when is not None]
        return max(known) if known and len(known) == len(since) else None


def mended(failures: Sequence[datetime], worked: Iterable[datetime]) -> datetime | None:
    """Return when something worked again for good, from when it failed and when it worked.

    None when it did not, too seldom, or not for long enough. ``failures`` are in order.
    """
    first, last = failures[0], failures[-1]
    between = list(worked)
    since = [when for when in between if when > last]
    if len(since) < REPEATED:
        return None
    quiet = max(since) - last
    spells = [
        (later - earlier).total_seconds()
        for earlier, later in pairwise(failures)
        if later - earlier > QUIET
    ]
    returns = len(spells) >= RETURNS and quiet.total_seconds() < median(spells)
    if quiet < QUIET or returns:
        return None
    fine = sum(first <= when <= last for when in between)
    share = len(failures) / (len(failures) + fine)
    if share < 1 and len(since) * math.log1p(-share) > math.log(LUCK):
        return None
    return min(since)


def _shape(path: str) -> str:
    return _VARIABLE.sub("*", path.partition("?")[0])


def _requests(facts: Facts) -> Iterator[tuple[Edge, datetime]]:
    log = facts["access_log"]
    fine = log[~failed(log) & log["start_time"].notna()]
    for proxy, direction, method, authority, path, local, remote, time in zip(
        fine["proxy"],
        fine["direction"],
        fine["method"],
        fine["authority"],
        fine["path"],
        fine["downstream_local_address"],
        fine["downstream_remote_address"],
        fine["start_time"],
        strict=True,
    ):
        caller = split_address(plain(remote) or "")[0] if direction == "inbound" else proxy
        if plain(method):
            asked = (plain(authority) or "", _shape(plain(path) or ""), str(method))
        else:
            asked = ("", plain(local) or "", "")
        yield (str(caller), *asked), time.to_pydatetime()


def _tunnels(facts: Facts) -> Iterator[tuple[Edge, datetime]]:
    log = facts["ztunnel_access_log"]
    fine = log[log["error"].isna() & log["time"].notna()]
    for source, target, time in zip(
        fine["source_pod"], fine["destination_pod"], fine["time"], strict=True
    ):
        if plain(source) and plain(target):
            yield _tunnel(source, target), time.to_pydatetime()


def _tunnel(source: Any, target: Any) -> Edge:
    return ("ztunnel", str(source), str(target))


def _failed(symptom: Symptom, facts: Facts) -> Iterator[tuple[tuple[Edge, ...], datetime | None]]:
    """Yield each failure of a symptom: the edges of which one must work again, and its time."""
    if symptom.table == "ztunnel_access_log":
        rows = facts["ztunnel_access_log"].loc[list(symptom.rows)]
        for source, target, time in zip(
            rows["source_pod"], rows["destination_pod"], rows["time"], strict=True
        ):
            when = plain(time)
            yield (_tunnel(source, target),), when.to_pydatetime() if when is not None else None
        return
    for failure in symptom.failures:
        yield tuple(_edges(failure)), failure.time


def _edges(failure: Failure) -> Iterator[Edge]:
    inbound = failure.direction == "inbound"
    callers = [*failure.callers, split_address(failure.remote_address)[0] if inbound else ""]
    who = [caller for caller in callers if caller] if inbound else [failure.proxy]
    for caller in dict.fromkeys(who):
        if failure.is_connection:
            yield (caller, "", failure.local_address, "")
        else:
            for authority, path in failure.asked:
                yield (caller, authority, _shape(path), failure.method)
