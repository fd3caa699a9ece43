"""Symptoms in the access logs: requests and connections that failed, grouped by where and how."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime

import pandas as pd

from meshnb.symptoms.base import REPEATED, Symptom, weight_of
from meshnb.tables import Facts
from meshnb.tables.base import items
from meshnb.traces.failures import Failure, Failures, failed
from meshnb.traces.mesh import Mesh

_CLUSTER = re.compile(r"^(?:outbound|inbound)[|_]\.?(\d+)[|_]\.?([^|]*?)(?:[|]|_\.)(.*)$")
#: Less than this part of a workload's requests is little.
RARE = 0.1
#: Parts of the details that differ from request to request.
_VARIABLE = re.compile(r"\d{1,3}(?:\.\d{1,3}){3}:\d+")


def requests(facts: Facts, mesh: Mesh, failures: Failures) -> Iterator[Symptom]:
    """Yield one symptom per place, destination and manner of failure."""
    _note_silence(facts, mesh)
    worked, worked_at = _successes(facts)
    rescued = _rescued(facts["access_log"], failures)
    groups: dict[tuple[object, ...], list[tuple[Failure, str, int | None, str]]] = {}
    for failure in failures:
        if failure.index in rescued or not _matters(failure, worked):
            continue
        host, port = destination(failure, mesh)
        side = _side(failure, mesh)
        at_workload = side in ("server", "")
        place = (failure.namespace, failure.workload) if at_workload else host or failure.authority
        key = (
            side,
            place,
            port,
            failure.is_connection,
            failure.code,
            failure.flags,
            _VARIABLE.sub("…", failure.details),
            _VARIABLE.sub("…", failure.upstream_failure),
            failure.connection_details,
        )
        groups.setdefault(key, []).append((failure, host, port, side))
    otherwise = _by_request(groups)
    for group, members in groups.items():
        first, host, port, side = members[0]
        all_of_it = tuple(member[0] for member in members)
        times = [failure.time for failure in all_of_it if failure.time is not None]
        yield Symptom(
            kind="connection" if first.is_connection else "request",
            message=_message(first, host, port, side, all_of_it, mesh),
            count=len(all_of_it),
            table="access_log",
            rows=tuple(failure.index for failure in all_of_it),
            first_seen=min(times, default=None),
            last_seen=max(times, default=None),
            # A log without times says nothing about age: such failures count in full.
            weight=weight_of(times, failures.last or facts.now) + len(all_of_it) - len(times),
            side=side,
            code=first.code,
            flags=first.flags,
            details=first.details or first.connection_details,
            upstream_failure=first.upstream_failure,
            host=host,
            port=port,
            cluster=first.cluster,
            route_name=first.route_name,
            workload=(first.namespace, first.workload) if side in ("server", "") else ("", ""),
            reporters=tuple(dict.fromkeys(failure.proxy for failure in all_of_it)),
            callers=tuple(dict.fromkeys(c for failure in all_of_it for c in failure.callers)),
            failures=all_of_it,
            worked_before=any(_earlier(worked, f, ("",)) for f in all_of_it),
            worked_for_caller=any(
                _earlier(worked, f, (*f.callers, split_address(f.remote_address)[0], f.proxy))
                for f in all_of_it
            ),
            worked_until=_until(worked_at, all_of_it),
            works_again=_later(worked_at, all_of_it),
            fails_otherwise=_fails_otherwise(otherwise, group, all_of_it),
        )


def _successes(
    facts: Facts,
) -> tuple[dict[tuple[str, str, str, str], datetime], dict[tuple[str, str, str], list[datetime]]]:
    """Return when each authority, path and method first succeeded for a caller, and all times.

    A caller is a proxy that sent the request, or the address that the server's proxy saw; anybody
    is ``""``.
    """
    log = facts["access_log"]
    fine = log[~failed(log) & log["method"].notna() & log["start_time"].notna()]
    first: dict[tuple[str, str, str, str], datetime] = {}
    times: dict[tuple[str, str, str], list[datetime]] = {}
    for authority, path, method, proxy, remote, direction, time in zip(
        fine["authority"].fillna(""),
        fine["path"].fillna(""),
        fine["method"],
        fine["proxy"],
        fine["downstream_remote_address"].fillna(""),
        fine["direction"],
        fine["start_time"],
        strict=True,
    ):
        caller = split_address(remote)[0] if direction == "inbound" else proxy
        asked = (authority, path.partition("?")[0], method)
        for who in ("", caller):
            key = (*asked, who)
            if key not in first or time < first[key]:
                first[key] = time
        times.setdefault(asked, []).append(time)
    return first, {asked: sorted(found) for asked, found in times.items()}


def _note_silence(facts: Facts, mesh: Mesh) -> None:
    """Note it as a gap when no sidecar has logged a request: that none failed is not known then."""
    if len(facts["access_log"]) or len(facts["ztunnel_access_log"]):
        return
    if not any(pod.running and pod.mesh == "sidecar" for pod in mesh.pods):
        return
    written = mesh.settings.get("accessLogFile") or any(
        items(one.spec, "accessLogging") for one in mesh.of("Telemetry")
    )
    why = "" if written else ", for meshConfig.accessLogFile is not set"
    facts.gap("access logs", "silent", f"no proxy has logged a request{why}")


def _rescued(log: pd.DataFrame, failures: Failures) -> frozenset[int]:
    """Return the rows of failures that no caller noticed: a retry of the same request succeeded.

    Where that is often so, it is no accident: then none of a workload's failures is left out.
    """
    fine = log[~failed(log) & (log["direction"] == "outbound") & log["request_id"].notna()]
    answered = set(
        zip(fine["request_id"], fine["authority"].fillna(""), fine["path"].fillna(""), strict=True)
    )
    ids = log["request_id"]
    saved: dict[tuple[str, str], list[int]] = {}
    for failure in failures:
        request = (ids.get(failure.index), failure.authority, failure.path)
        if failure.direction == "inbound" and not failure.callers and request in answered:
            saved.setdefault((failure.namespace, failure.workload), []).append(failure.index)
    inbound = log[log["direction"] == "inbound"]
    logged = inbound.groupby(["namespace", "workload"]).size().to_dict()
    return frozenset(
        index
        for workload, rows in saved.items()
        if len(rows) < RARE * logged.get(workload, 0)
        for index in rows
    )


def _later(worked: dict[tuple[str, str, str], list[datetime]], failures: Iterable[Failure]) -> bool:
    """Whether each of these requests succeeded after all of the failures."""
    asked = {(*one, failure.method) for failure in failures for one in failure.asked}
    ends = [failure.time for failure in failures if failure.time is not None]
    return bool(ends) and all(one in worked and worked[one][-1] > max(ends) for one in asked)


_Group = tuple[object, ...]


def _by_request(
    groups: Mapping[_Group, list[tuple[Failure, str, int | None, str]]],
) -> dict[tuple[str, str, str], list[tuple[datetime, _Group]]]:
    """Return when each request failed in a way that repeats itself, and in which."""
    found: dict[tuple[str, str, str], list[tuple[datetime, _Group]]] = {}
    for key, members in groups.items():
        if len(members) < REPEATED:
            continue
        for failure, *_ in members:
            if failure.time is None:
                continue
            for one in failure.asked:
                found.setdefault((*one, failure.method), []).append((failure.time, key))
    return found


def _fails_otherwise(
    otherwise: Mapping[tuple[str, str, str], list[tuple[datetime, _Group]]],
    group: _Group,
    failures: Sequence[Failure],
) -> bool:
    """Whether each of these requests failed later on, again and again, in another way."""
    asked = {(*one, failure.method) for failure in failures for one in failure.asked}
    ends = [failure.time for failure in failures if failure.time is not None]
    if len(failures) >= REPEATED or not ends:
        return False
    return all(
        any(time > max(ends) and key != group for time, key in otherwise.get(one, ()))
        for one in asked
    )


def _until(
    worked: dict[tuple[str, str, str], list[datetime]], failures: Iterable[Failure]
) -> datetime | None:
    """Return when one of these requests succeeded last before the first of the failures."""
    asked = {(*one, failure.method) for failure in failures for one in failure.asked}
    began = min((one.time for one in failures if one.time is not None), default=None)
    if began is None:
        return None
    before = [
        worked[one][place - 1]
        for one in asked
        if one in worked and (place := bisect_left(worked[one], began))
    ]
    return max(before, default=None)


def _earlier(
    worked: dict[tuple[str, str, str, str], datetime], failure: Failure, callers: Iterable[str]
) -> bool:
    times = [
        worked.get((authority, path, failure.method, caller))
        for authority, path in failure.asked
        for caller in callers
    ]
    return failure.time is not None and any(
        time is not None and time < failure.time for time in times
    )


def _matters(failure: Failure, worked: dict[tuple[str, str, str, str], datetime]) -> bool:
    # An application's own 4xx is its answer to its user, unless it answered otherwise before.
    if failure.answered_by_application and failure.code < 500 and not failure.flags:
        return _earlier(worked, failure, ("",))
    return True


def _side(failure: Failure, mesh: Mesh) -> str:
    if failure.direction in ("inbound", "unknown"):
        return "server" if failure.direction == "inbound" else ""
    pod = mesh.pod_of(failure.proxy)
    return "gateway" if pod is not None and pod.mesh in ("gateway", "waypoint") else "client"


def destination(failure: Failure, mesh: Mesh) -> tuple[str, int | None]:
    """Return the host and port that a failed request was for; an empty host when it cannot be told.

    From the cluster that was chosen, else from the Service with the original destination address,
    else from the authority. For the inbound side, from the name that the client's proxy called.
    """
    name = failure.server_name if failure.direction == "inbound" else failure.cluster
    match = _CLUSTER.match(name)
    if match and match[3]:
        return match[3], int(match[1])
    address, port = split_address(failure.local_address)
    if failure.direction != "inbound":
        service = mesh.service_at(address, port)
        if service is not None:
            return service.host, service.port
    # A connection that names no host may say in its TLS handshake whom it is for.
    sni = "" if name.startswith("outbound_") else failure.server_name
    host, colon, written = (failure.authority or sni).rpartition(":")
    if not colon or not written.isdigit():
        host, written = failure.authority or sni, ""
    full = mesh.fqdn(host, failure.namespace)
    if not mesh.known_host(full) and host.count(".") in (1, 2):
        longer = (
            known for known in mesh.hosts if known.startswith(f"{host}.") and ".svc." in known
        )
        full = next(longer, full)
    return full, int(written) if written else port


def split_address(address: str) -> tuple[str, int | None]:
    """Split an address and port, IPv6 in brackets included; the port is None when there is none."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit():
        return address.strip("[]"), None
    return host.strip("[]"), int(port)


def _message(
    failure: Failure,
    host: str,
    port: int | None,
    side: str,
    failures: tuple[Failure, ...],
    mesh: Mesh,
) -> str:
    flags = ",".join(sorted(failure.flags))
    what = f"{failure.code} {flags}".strip() if failure.code else flags or "ended"
    seen = len({f.proxy for f in failures} | {c for f in failures for c in f.callers})
    seen_by = f"seen by {seen} prox{'y' if seen == 1 else 'ies'}"
    name = _short(host, mesh) or "an unknown destination"
    at = f"{name}:{port}" if port else name
    why = f" ({failure.details})" if failure.details else ""
    if not side:
        here = f"{failure.namespace}/{failure.workload}"
        return f"connections to or from {here} ended with {what}; its log does not tell whose"
    if side == "server":
        place = f"{failure.namespace}/{failure.workload}"
        if failure.is_connection:
            return f"connections to {place} ended with {what} {failure.details}".strip()
        if failure.answered_by_application:
            return f"{what} from the application {place}, {seen_by}"
        return f"{what} at {place}{why}, {seen_by}"
    if failure.is_connection:
        return f"connections to {at} ended with {what} {failure.details}".strip() + f", {seen_by}"
    if side == "gateway":
        gateway = f"{failure.namespace}/{failure.workload}"
        return f"{what} at the gateway {gateway} for {failure.authority or at}"
    return f"{what} from {at}{why}, {seen_by}"


def _short(host: str, mesh: Mesh) -> str:
    ports = mesh.ports(host)
    return f"{ports[0].service}.{ports[0].namespace}" if ports else host
