"""Symptoms in what proxies count, for those that log no requests: Istio's default.

A counter begins with its proxy, or with the endpoint that it is about. It tells that requests
failed, not when, which ones, or whether they still do, so such a symptom weighs less than what a
log tells or what stands in Kubernetes. A proxy whose log shows a request is left to its log, so
that nothing is counted twice.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from meshnb.symptoms.base import REPEATED, Symptom
from meshnb.tables import Facts
from meshnb.tables.base import records
from meshnb.traces.failures import Failure, Failures
from meshnb.traces.mesh import Mesh, Pod, ServicePort

#: What stands in a counter weighs so much, where all requests failed.
WEIGHT = 0.5
#: Where less than this part of what was counted failed, it may long be over.
RARE = 0.1
#: No single request is meant, so none has a row in the access log.
NO_LINE = -1
#: The caller went away: no failure of the mesh.
_CALLER_LEFT = frozenset({"DC", "DR"})
_CLUSTER = re.compile(r"(inbound|outbound)\|(\d+)\|[^|]*\|(.*)")
#: What the RBAC filter of a listener of a sidecar or gateway refused, by the listener's port.
DENIED = re.compile(r"http\.(?:inbound|outbound)_[^;]*?_(\d+);?\.rbac\.denied")
#: Declared so, a port carries bytes that no proxy reads as requests.
_BYTES = frozenset({"tcp", "tls", "mongo", "mysql", "redis"})


@dataclass(frozen=True, slots=True)
class _Counted:
    """What one proxy has counted of one destination: failures, and everything."""

    table: str
    row: int
    pod: Pod
    side: str
    kind: str
    count: int
    total: int
    code: int = 0
    flags: frozenset[str] = frozenset()
    host: str = ""
    port: int | None = None
    cluster: str = ""
    #: address and port that the failures were with
    address: str = ""
    #: what happened, in words
    words: str = ""
    callers: tuple[str, ...] = ()

    @property
    def place(self) -> tuple[Any, ...]:
        """What is told together, as one symptom."""
        where = (self.pod.namespace, self.pod.workload) if self.side != "client" else self.host
        return (self.table, self.side, where, self.host, self.port, self.code, self.flags)


def counters(facts: Facts, mesh: Mesh, failures: Failures) -> Iterator[Symptom]:
    """Yield one symptom per place and manner in which requests failed that nobody has logged."""
    logged = set(facts["access_log"]["proxy"].dropna())
    pods = {
        pod.proxy: pod
        for pod in mesh.pods
        if pod.running
        and pod.mesh in ("sidecar", "gateway", "waypoint")
        and pod.proxy
        and pod.proxy not in logged
    }
    if not pods:
        return
    told = set(facts["request_metrics"]["proxy"].dropna())
    at_endpoints = list(_at_endpoints(facts, mesh, pods))
    found = [
        *_in_metrics(facts, mesh, pods, at_endpoints),
        *(one for one in at_endpoints if one.pod.proxy not in told),
        *_denied(facts, mesh, pods),
    ]
    groups: dict[tuple[Any, ...], list[_Counted]] = {}
    for one in found:
        groups.setdefault(one.place, []).append(one)
    for members in groups.values():
        count, total = sum(one.count for one in members), sum(one.total for one in members)
        if count >= REPEATED and count >= RARE * total:
            yield _symptom(members, count, total, mesh)


def _symptom(members: list[_Counted], count: int, total: int, mesh: Mesh) -> Symptom:
    first = members[0]
    workload = (first.pod.namespace, first.pod.workload)
    reporters = tuple(dict.fromkeys(one.pod.proxy for one in members))
    return Symptom(
        kind=first.kind,
        message=_message(first, count, total, len(reporters), mesh),
        count=count,
        table=first.table,
        rows=tuple(one.row for one in members),
        weight=WEIGHT * count / total,
        side=first.side,
        code=first.code,
        flags=first.flags,
        host=first.host,
        port=first.port,
        cluster=first.cluster,
        workload=workload if first.side == "server" else ("", ""),
        reporters=reporters,
        callers=tuple(dict.fromkeys(caller for one in members for caller in one.callers)),
        failures=tuple(map(_failure, members)),
        succeeded=total - count,
    )


def _message(first: _Counted, count: int, total: int, proxies: int, mesh: Mesh) -> str:
    noun = "connections" if first.kind == "connection" else "requests"
    ports = mesh.ports(first.host)
    name = f"{ports[0].service}.{ports[0].namespace}" if ports else first.host
    host = name or "an unknown destination"
    at = f"{host}:{first.port}" if first.port else host
    workload = f"{first.pod.namespace}/{first.pod.workload}"
    place = {"server": f"at {workload}", "gateway": f"from the gateway {workload} to {at}"}.get(
        first.side, f"to {at}"
    )
    by = f"{proxies} prox{'y' if proxies == 1 else 'ies'}"
    # Of how many its policies refused some, a server's proxy does not count.
    number = f"{count}" if first.table == "proxy_counters" else f"{count} of {total}"
    return (
        f"{number} {noun} {place} {first.words}, as {by} counted since the start, "
        "without a log of when"
    )


def _failure(one: _Counted) -> Failure:
    """Return what is known of the failures, in the form in which a log would tell of one."""
    at_server = one.side == "server"
    return Failure(
        index=NO_LINE,
        proxy=one.pod.proxy,
        namespace=one.pod.namespace,
        pod=one.pod.pod,
        workload=one.pod.workload,
        direction="inbound" if at_server else "outbound",
        time=None,
        method="",
        path="",
        code=one.code,
        flags=one.flags,
        details="",
        connection_details="",
        upstream_failure="",
        authority="",
        cluster=one.cluster,
        upstream_host=one.address,
        local_address=one.address if at_server else "",
        remote_address="",
        server_name="",
        route_name="",
        duration_ms=math.nan,
        callers=one.callers,
        asked=(),
    )


def _side(pod: Pod) -> str:
    return "gateway" if pod.mesh in ("gateway", "waypoint") else "client"


def _front(mesh: Mesh, pod: Pod, port: int | None) -> ServicePort | None:
    """Return the port of a Service that leads to a port of a pod; None where there is none."""
    return next(
        (
            one
            for one in mesh.services
            if mesh.target_port(one) == port and pod in mesh.selected(one)
        ),
        None,
    )


def _records(frame: pd.DataFrame) -> Iterator[tuple[int, dict[str, Any]]]:
    return zip(frame.index.tolist(), records(frame), strict=True)


def _at_endpoints(facts: Facts, mesh: Mesh, pods: Mapping[str, Pod]) -> Iterator[_Counted]:
    """Yield what failed at endpoints: at the server where its proxy saw it, else at its callers."""
    frame = facts["endpoints"]
    own = frame["proxy"].isin(list(pods)) & frame["cluster"].str.contains("|", regex=False)
    counts = frame[own.fillna(False).astype(bool)]
    used = counts[(counts["requests"].fillna(0) + counts["connections"].fillna(0)) > 0]
    inbound: dict[str, tuple[int, dict[str, Any]]] = {}
    outbound: dict[str, list[tuple[int, dict[str, Any]]]] = {}
    for index, row in _records(used):
        if str(row["cluster"]).startswith("inbound|"):
            inbound[str(row["endpoint"])] = index, row
        elif row["requests_failed"] or row["connections_failed"]:
            outbound.setdefault(str(row["endpoint"]), []).append((index, row))
    for endpoint, (index, row) in inbound.items():
        if row["requests_failed"] or row["connections_failed"]:
            callers = tuple(str(one["proxy"]) for _, one in outbound.get(endpoint, ()))
            found = _of_endpoint(index, row, pods[str(row["proxy"])], mesh)
            yield from (replace(one, callers=callers) for one in found)
    for endpoint, rows in outbound.items():
        server = inbound.get(endpoint)
        if server is not None and (server[1]["requests_failed"] or server[1]["connections_failed"]):
            continue  # the server's own proxy has told
        for index, row in rows:
            for one in _of_endpoint(index, row, pods[str(row["proxy"])], mesh):
                late = server is not None and _unanswered(server[1], one)
                yield replace(one, **_LATE) if late else one


#: What it is when callers count failures, and the server's proxy neither failures nor answers.
_LATE: Mapping[str, Any] = {
    "code": 504,
    "flags": frozenset({"UT"}),
    "words": "were given up before the server answered (504 UT)",
}


def _unanswered(server: Mapping[str, Any], caller: _Counted) -> bool:
    """Whether a server neither answered nor failed most of the requests that it was sent."""
    requests = server["requests"] or 0
    silent = requests - (server["requests_ok"] or 0) - (server["requests_failed"] or 0)
    return caller.kind == "request" and silent >= REPEATED and silent > requests / 2


def _of_endpoint(index: int, row: Mapping[str, Any], pod: Pod, mesh: Mesh) -> Iterator[_Counted]:
    match = _CLUSTER.fullmatch(str(row["cluster"]))
    if match is None:
        return
    direction, number, host = match[1], int(match[2]), match[3]
    inbound = direction == "inbound"
    front = (
        _front(mesh, pod, number)
        if inbound
        else next((one for one in mesh.ports(host) if one.port == number), None)
    )
    if inbound:
        host = front.host if front is not None else ""
    one = _Counted(
        table="endpoints",
        row=index,
        pod=pod,
        side="server" if inbound else _side(pod),
        kind="connection" if front is not None and front.protocol in _BYTES else "request",
        count=0,
        total=0,
        host=host,
        port=(front.port if front is not None else None) if inbound else number,
        cluster=str(row["cluster"]),
        address=str(row["endpoint"]),
    )
    unmade, connections = row["connections_failed"] or 0, row["connections"] or 0
    failed, requests = row["requests_failed"] or 0, row["requests"] or 0
    if one.kind == "connection":
        if unmade:
            flags = frozenset({"UF"})
            yield replace(
                one, count=unmade, total=connections, flags=flags, words="could not be made (UF)"
            )
        return
    # A request for which no connection could be made counts as failed, not as sent.
    total = max(requests, failed + (row["requests_ok"] or 0))
    if 2 * unmade >= failed:
        yield replace(
            one,
            count=max(failed, unmade),
            total=max(total, unmade),
            code=503,
            flags=frozenset({"UF"}),
            words="failed because no connection could be made (503 UF)",
        )
    elif failed:
        # Which 5xx, or whether the connection ended, is not counted by endpoint.
        words = "failed with a 5xx or without an answer"
        yield replace(one, count=failed, total=total, code=500, words=words)


def _in_metrics(
    facts: Facts, mesh: Mesh, pods: Mapping[str, Pod], places: list[_Counted]
) -> Iterator[_Counted]:
    """Yield the failures in Istio's own metrics; what only passed through is left to its origin."""
    frame = facts["request_metrics"]
    own = frame[(frame["metric"] == "istio_requests_total") & frame["proxy"].isin(list(pods))]
    failed, totals, at_server = [], dict[tuple[str, str, str], int](), set()
    for index, row in _records(own):
        code, value = int(row["response_code"] or 0), int(row["value"] or 0)
        key = (str(row["proxy"]), str(row["reporter"]), str(row["service"]))
        totals[key] = totals.get(key, 0) + value
        flags = frozenset(str(row["response_flags"] or "-").split(",")) - {"-", ""}
        # Without a flag, an answer below 500 may be the application's own, as it means it.
        if not value or flags & _CALLER_LEFT or not (flags or code >= 500 or not code):
            continue
        failed.append((index, row, key, flags, code, value))
        if row["reporter"] == "destination":
            at_server.add((row["destination_workload"], row["destination_namespace"], code))
    for index, row, key, flags, code, value in failed:
        pod = pods[key[0]]
        server = row["reporter"] == "destination"
        origin = (row["destination_workload"], row["destination_namespace"], code)
        if not server and not flags and origin in at_server:
            continue
        side = "server" if server else _side(pod)
        host = "" if row["service"] in (None, "unknown") else str(row["service"])
        place = next(
            (p for p in places if p.pod is pod and p.side == side and host in ("", p.host)), None
        )
        ports = [port.port for port in mesh.ports(host)]
        yield _Counted(
            table="request_metrics",
            row=index,
            pod=pod,
            side=side,
            kind="request",
            count=value,
            total=totals[key],
            code=code,
            flags=flags,
            host=host or (place.host if place is not None else ""),
            port=place.port if place is not None else ports[0] if len(ports) == 1 else None,
            cluster=place.cluster if place is not None else "",
            address=place.address if place is not None else "",
            words=f"ended with {code} {','.join(sorted(flags))}".strip(),
        )


def _denied(facts: Facts, mesh: Mesh, pods: Mapping[str, Pod]) -> Iterator[_Counted]:
    """Yield what policies refused at servers; of how many is not known."""
    frame = facts["proxy_counters"]
    name = frame["counter"].str.endswith("rbac.denied").fillna(False).astype(bool)
    for index, row in _records(frame[name & frame["proxy"].isin(list(pods))]):
        match, pod = DENIED.fullmatch(str(row["counter"])), pods[str(row["proxy"])]
        if match is None or not row["value"] or pod.mesh != "sidecar":
            continue
        front = _front(mesh, pod, int(match[1]))
        yield _Counted(
            table="proxy_counters",
            row=index,
            pod=pod,
            side="server",
            kind="request",
            count=int(row["value"]),
            total=int(row["value"]),
            code=403,
            host=front.host if front is not None else "",
            port=front.port if front is not None else None,
            address=f"{pod.address}:{match[1]}",
            words="were refused by its policies (403)",
        )
