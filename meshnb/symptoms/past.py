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
from meshnb.traces.mesh import Mesh, plain

#: It must have worked for so long since.
QUIET = timedelta(seconds=60)
#: For so long, when those who asked in vain are gone, or cannot be told from those who ask now.
AGED = timedelta(minutes=10)
#: For so long, when a server had no pod for as long as it was being replaced.
BRIEF = timedelta(seconds=30)
#: What comes back so often after it has been quiet for so long may come back again.
RETURNS = 3
#: As likely as this it may be luck that none has failed since.
LUCK = 0.01
#: Parts of paths that differ from request to request: numbers and identifiers.
_VARIABLE = re.compile(r"[0-9a-fA-F-]{8,}|\d+")
#: How details name the policy that refused (Istio names Envoy's rules so).
_POLICY = re.compile(r"ns\[([^\]]+)\]-policy\[([^\]]+)\]")
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
        pods = facts["pods"]
        there = pods[~pods["phase"].isin(["Succeeded", "Failed"])]
        #: the addresses and proxies of the pods that are there now
        self._present = {*there["address"].dropna(), *there["proxy"].dropna()}

    def over_since(self, symptom: Symptom, facts: Facts, mesh: Mesh) -> datetime | None:
        """Return since when all that failed works again; None where it does not, or may not."""
        personal = symptom.code in _PERSONAL
        at_gateway = symptom.side == "gateway"
        # What happened once or twice is an accident, which its checks judge while it is new.
        unsure = symptom.count < REPEATED or (at_gateway and personal)
        usual = BRIEF if _replaced(symptom, mesh) else QUIET
        unwritten = _unwritten(symptom, facts, mesh)
        failures = dict[tuple[Edge, ...], list[datetime]]()
        anybody = dict[tuple[Edge, ...], set[Edge]]()
        for edges, other, time in _failed(symptom, facts, personal and at_gateway):
            if time is None:
                return None
            failures.setdefault(edges, []).append(time)
            anybody.setdefault(edges, set()).update(other)
        since = list[datetime | None]()
        for edges, times in failures.items():
            times.sort()
            when = mended(
                times,
                self._times(edges),
                AGED if unsure else usual,
                may_return=not self._left(symptom),
            )
            if when is None and not self._asking(edges):
                when = mended(times, self._times(anybody[edges]), QUIET if unwritten else AGED)
            since.append(when)
        known = [when for when in since if when is not None]
        return max(known) if known and len(known) == len(since) else None

    def _left(self, symptom: Symptom) -> bool:
        """Whether none of the servers that failed is there any more: they cannot fail again."""
        hosts = {split_address(failure.upstream_host)[0] for failure in symptom.failures}
        return bool(self._present) and bool(hosts) and not hosts & (self._present | {""})

    def _times(self, edges: Iterable[Edge]) -> list[datetime]:
        return [when for edge in edges for when in self._worked.get(edge, ())]

    def _asking(self, edges: Iterable[Edge]) -> bool:
        """Whether one of the callers is still there, so that it could have asked again."""
        return not self._present or any(edge[0] in self._present for edge in edges)


def _replaced(symptom: Symptom, mesh: Mesh) -> bool:
    """Whether a host had no endpoint while its pods were replaced: those of now are ready."""
    if symptom.flags != {"UH"} or symptom.first_seen is None or symptom.last_seen is None:
        return False
    pods = [pod for port in mesh.ports(symptom.host)[:1] for pod in mesh.selected(port)]
    return bool(pods) and all(
        pod.ready
        and pod.created is not None
        and symptom.first_seen - QUIET < pod.created <= symptom.last_seen
        for pod in pods
    )


def _unwritten(symptom: Symptom, facts: Facts, mesh: Mesh) -> bool:
    """Whether a policy refused that does not exist any more, and that no proxy holds."""
    found = _POLICY.search(symptom.details)
    if found is None:
        return False
    known = set(facts["listeners"]["proxy"])
    if facts.gaps("istio_config") or not known & set(symptom.reporters):
        return False
    namespace, name = found.groups()
    there = any(
        (one.namespace, one.name) == (namespace, name) for one in mesh.of("AuthorizationPolicy")
    )
    held = (facts["rbac"]["authorization_policy"] == f"{name}.{namespace}").any()
    return not there and not held


def mended(
    failures: Sequence[datetime],
    worked: Iterable[datetime],
    quiet_for: timedelta = QUIET,
    *,
    may_return: bool = True,
) -> datetime | None:
    """Return when something worked again for good, from when it failed and when it worked.

    None when it did not, too seldom, or not for as long as ``quiet_for``. ``failures`` are in
    order. What ``may_return`` has to be quiet for longer, when it has come back before.
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
    returns = may_return and len(spells) >= RETURNS and quiet.total_seconds() < median(spells)
    if quiet < quiet_for or returns:
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
    for (
        proxy,
        namespace,
        workload,
        direction,
        method,
        authority,
        path,
        local,
        remote,
        sni,
        time,
    ) in zip(
        fine["proxy"],
        fine["namespace"],
        fine["workload"],
        fine["direction"],
        fine["method"],
        fine["authority"],
        fine["path"],
        fine["downstream_local_address"],
        fine["downstream_remote_address"],
        fine["requested_server_name"],
        fine["start_time"],
        strict=True,
    ):
        when = time.to_pydatetime()
        inbound = direction == "inbound"
        address = split_address(plain(remote) or "")[0]
        caller = str(address if inbound else proxy)
        at, port = plain(local) or "", split_address(plain(local) or "")[1]
        server = f"{plain(namespace) or ''}/{plain(workload) or ''}"
        # Whoever is answered has come through the same listener as one whom it cut off.
        yield (caller, "", at, "" if inbound else plain(sni) or "", "connection"), when
        if inbound:
            yield ("anybody", server, str(port), "connection"), when
        if plain(method):
            asked = (plain(authority) or "", _shape(plain(path) or ""), str(method))
            yield (caller, *asked), when
            yield (("anybody", server, *asked) if inbound else (caller, address, *asked)), when


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


def _failed(
    symptom: Symptom, facts: Facts, by_address: bool
) -> Iterator[tuple[tuple[Edge, ...], tuple[Edge, ...], datetime | None]]:
    """Yield each failure of a symptom: the edges of which one must work again, and its time.

    Between them the edges of anybody who asks the same of the same workload. ``by_address`` tells
    those apart who come to a gateway.
    """
    if symptom.table == "ztunnel_access_log":
        rows = facts["ztunnel_access_log"].loc[list(symptom.rows)]
        for source, target, time in zip(
            rows["source_pod"], rows["destination_pod"], rows["time"], strict=True
        ):
            when = plain(time)
            edges = (_tunnel(source, target),)
            yield edges, (), when.to_pydatetime() if when is not None else None
        return
    for failure in symptom.failures:
        yield tuple(_edges(failure, by_address)), tuple(_anybody(failure)), failure.time


def _edges(failure: Failure, by_address: bool) -> Iterator[Edge]:
    inbound = failure.direction == "inbound"
    address = split_address(failure.remote_address)[0]
    callers = [*failure.callers, address if inbound else ""]
    who = [caller for caller in callers if caller] if inbound else [failure.proxy]
    for caller in dict.fromkeys(who):
        if failure.is_connection:
            name = "" if inbound else failure.server_name
            yield (caller, "", failure.local_address, name, "connection")
        else:
            for authority, path in failure.asked:
                between = (address,) if by_address else ()
                yield (caller, *between, authority, _shape(path), failure.method)


def _anybody(failure: Failure) -> Iterator[Edge]:
    if failure.direction != "inbound":
        return
    server = f"{failure.namespace}/{failure.workload}"
    if failure.is_connection:
        port = split_address(failure.local_address)[1]
        yield ("anybody", server, str(port), "connection")
        return
    for authority, path in failure.asked:
        yield ("anybody", server, authority, _shape(path), failure.method)
