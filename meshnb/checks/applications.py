"""Checks of applications, and of the way from a proxy to them. Codes MNB710 to MNB719."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import timedelta
from itertools import pairwise
from typing import Any

import pandas as pd

from meshnb.checks.asked_ports import goes_on_at_port, services_of
from meshnb.checks.base import (
    Cause,
    Evidence,
    Finding,
    Severity,
    Subject,
    and_list,
    check,
    counted,
    edit,
    ids,
    pods_beside,
    rows_of,
    subject_of,
    symptom_rows,
    workload_of,
)
from meshnb.checks.changes import changed_before
from meshnb.checks.protocols import grpc_as_http1
from meshnb.checks.served import served_by
from meshnb.symptoms import Symptom, Symptoms
from meshnb.symptoms.base import REPEATED
from meshnb.symptoms.requests import split_address
from meshnb.tables import Facts
from meshnb.tables.base import dig, items, mapping
from meshnb.traces.mesh import Mesh, Pod, plain
from meshnb.traces.rules import bound_gateways, route_hosts
from meshnb.traces.tunnels.network_policies import admitted, let_out


def _refused(symptom: Symptom) -> bool:
    if symptom.is_counted and symptom.side == "server":
        # To its own application a sidecar's way is short: what is not accepted is refused.
        return "UF" in symptom.flags and not symptom.succeeded
    text = symptom.details + symptom.upstream_failure
    return "UF" in symptom.flags and "onnection_refused" in text


def _upstream_pods(symptom: Symptom, mesh: Mesh) -> list[Pod]:
    """Return the pods that the failed requests went to.

    Without an address, or when its pod is gone, these are all of the host, or of its subset.
    """
    addresses = {split_address(failure.upstream_host)[0] for failure in symptom.failures} - {""}
    pods = [pod for pod in mesh.pods if pod.address in addresses and pod.running]
    if pods:
        return pods
    labels = _subset_labels(symptom, mesh)
    behind = dict.fromkeys(pod for port in mesh.ports(symptom.host) for pod in mesh.selected(port))
    return [
        pod for pod in behind if all(pod.labels.get(key) == value for key, value in labels.items())
    ]


def _subset_labels(symptom: Symptom, mesh: Mesh) -> Mapping[str, Any]:
    """Return the labels of the subset that requests were sent to; none when it was the host."""
    subset = symptom.cluster.split("|")[2] if symptom.cluster.count("|") == 3 else ""
    for rule in mesh.of("DestinationRule") if subset else ():
        host = mesh.fqdn(str(dig(rule.spec, "host", default="")), rule.namespace)
        for one in items(rule.spec, "subsets") if host == symptom.host else ():
            if dig(one, "name") == subset:
                return mapping(one, "labels")
    return {}


def _bare(pods: list[Pod]) -> bool:
    return all(not pod.in_mesh for pod in pods)


@check("MNB710", Severity.ERROR, cause=Cause.DATA_PLANE)
def application_not_listening(
    mesh: Mesh, symptoms: Symptoms, services: pd.DataFrame, containers: pd.DataFrame, facts: Facts
) -> Iterator[Finding]:
    """Every application listens on the port that its Service sends to.

    The server's own sidecar opens the connection to the application. When nobody listens there, or
    only on another address of the pod, the sidecar logs UF with Connection_refused, and callers get
    its 503.
    """
    for symptom in [s for s in symptoms if _refused(s)]:
        at_server = symptom.side == "server"
        pods = mesh.workload_pods(symptom.workload) if at_server else _upstream_pods(symptom, mesh)
        if not pods or not any(pod.ready for pod in pods) or not (at_server or _bare(pods)):
            continue  # an application that is not up at all is for the check of readiness
        wanted = sorted(
            {
                port
                for f in symptom.failures
                if (port := split_address(f.local_address if at_server else f.upstream_host)[1])
                is not None
            }
        )
        front = [port for port in services_of(pods, mesh) if mesh.target_port(port) in wanted]
        subject = workload_of(pods[0])
        callers = [
            s
            for s in symptoms
            if s.side != "server"
            and s.host in {port.host for port in front}
            and s.code == symptom.code
            and s.details == "via_upstream"
        ]
        seen = [symptom, *callers]
        declared = sorted(
            {
                port
                for ports, pod, name in zip(
                    containers["ports"], containers["pod"], containers["container"], strict=True
                )
                if pod in {p.pod for p in pods} and name != "istio-proxy"
                for port in ports or ()
            }
        )
        offered = [Subject("Service", port.namespace, port.service) for port in front]
        undeclared = bool(offered and declared) and not set(wanted) & set(declared)
        undeclared = undeclared and not (at_server and _was_open(wanted, symptom, facts))
        senders = and_list(map(str, offered)) or "its callers"
        refused = "its sidecar" if at_server else "its callers"
        where = edit(offered[0]) if offered else "the Service"
        elsewhere = f" Its containers declare {and_list(map(str, declared))}." if undeclared else ""
        workload = subject
        if undeclared:
            subject = offered[0]
        yield Finding(
            subject,
            f"{workload} does not listen on port {and_list(map(str, wanted))}, to which {senders} "
            f"sends: {refused} cannot connect to it.{elsewhere}",
            "Let the application listen on that port on all addresses, or correct targetPort with "
            f"{where}.",
            evidence=(
                *symptom_rows(facts, seen),
                *(
                    Evidence.of(rows_of(services, namespace=port.namespace, service=port.service))
                    for port in front[:1]
                ),
            ),
            related=tuple(
                one
                for one in (
                    *offered[:1],
                    workload,
                    *(Subject("Pod", pod.namespace, pod.pod) for pod in pods),
                )
                if one != subject
            ),
            explains=ids(seen),
            severity=Severity.INFO if symptom.is_over else None,
            mechanism=f"Declared container ports: {and_list(map(str, declared)) or 'none'}. "
            "A declaration opens nothing; what counts is where the process listens.",
        )


def _was_open(ports: list[int], symptom: Symptom, facts: Facts) -> bool:
    """Whether a server was reached at one of these ports: then its Service is right to send there.

    What containers declare opens no port, and closes none.
    """
    local = served_by(facts, symptom.reporters)["downstream_local_address"].dropna()
    return any(split_address(str(address))[1] in ports for address in local.unique())


#: A container's end and the failures that it makes are so near each other.
_AROUND = timedelta(seconds=5)
#: So few of the requests that a workload serves may be lost when idle connections are closed.
_RARELY = 0.005


@check("MNB711", Severity.ERROR, cause=Cause.DATA_PLANE)
def application_ends_connections(
    mesh: Mesh, symptoms: Symptoms, containers: pd.DataFrame, facts: Facts
) -> Iterator[Finding]:
    """No application ends connections before it has answered.

    The server's sidecar had reached the application and sent it the request; then the connection
    was closed or reset (UC, or UPE and UR after the first bytes). Crashes, idle time-outs shorter
    than the proxy's, and handlers that give up all look so.
    """
    for symptom in symptoms:
        if (
            symptom.side != "server"
            or not {"UC", "UR"} & symptom.flags
            or symptom.kind != "request"
            or grpc_as_http1(symptom, mesh, facts)
        ):
            continue
        pods = mesh.workload_pods(symptom.workload)
        if not any(pod.ready for pod in pods):
            continue
        subject = workload_of(pods[0])
        crashed = _ended_meanwhile(symptom, containers)
        requests = served_by(facts, symptom.reporters)
        others = int(requests["method"].notna().sum())
        rare = others > 0 and symptom.count / (symptom.count + others) < _RARELY
        now_and_then = others > 0 and not crashed and _scattered(symptom)
        hint = (
            " They are few and come now and then: its idle time-out may be shorter than the "
            "proxy's."
            if now_and_then
            else ""
        )
        why = f" Meanwhile {crashed}." if crashed else hint
        yield Finding(
            subject,
            f"The application of {subject} ends {counted(symptom.count, 'connection')} after it "
            f"got the request and before it answered ({symptom.details or 'UC'}).{why}",
            f"Read its log with `kubectl -n {subject.namespace} logs {pods[0].pod} -c "
            f"{_application(pods[0], facts)}{' --previous' if crashed else ''}`.",
            evidence=symptom_rows(facts, [symptom]),
            related=pods_beside(subject, pods),
            explains=ids([symptom]),
            severity=None
            if crashed or (symptom.count >= REPEATED and not rare)
            else Severity.INFO
            if symptom.is_over
            or rare
            or goes_on_at_port(symptom, facts, mesh)
            or _overshadowed(symptom, symptoms)
            else Severity.WARNING,
        )


def _overshadowed(symptom: Symptom, symptoms: Symptoms) -> bool:
    """Whether something else goes wrong again and again where this went wrong once or twice.

    Then it cannot be seen whether it would have gone on.
    """
    return symptom.count < REPEATED and any(
        other.count >= REPEATED
        and (other.host == symptom.host or other.workload == symptom.workload)
        for other in symptoms
        if other.kind == "request"
    )


def _scattered(symptom: Symptom) -> bool:
    """Whether failures came one by one, with seconds between them."""
    times = sorted(failure.time for failure in symptom.failures if failure.time is not None)
    gaps = [later - earlier for earlier, later in pairwise(times)]
    return bool(gaps) and min(gaps) >= timedelta(seconds=2)


def _ended_meanwhile(symptom: Symptom, containers: pd.DataFrame) -> str:
    """Return which container of the reporters ended while requests failed, and how."""
    first, last = symptom.first_seen, symptom.last_seen
    if first is None or last is None:
        return ""
    names = [proxy.rpartition(".")[0] for proxy in symptom.reporters]
    ended = containers[
        containers["pod"].isin(names)
        & (containers["container"] != "istio-proxy")
        & (containers["last_finished"] >= first - _AROUND).fillna(False).astype(bool)
        & (containers["last_finished"] <= last + _AROUND).fillna(False).astype(bool)
    ]
    for row in ended.to_dict("records"):
        reason = plain(row["last_reason"]) or "no reason"
        return f"container {row['container']} ended ({reason}, exit code {row['last_exit_code']})"
    return ""


def _application(pod: Pod, facts: Facts) -> str:
    containers = facts["containers"]
    rows = containers[
        (containers["namespace"] == pod.namespace)
        & (containers["pod"] == pod.pod)
        & (containers["container"] != "istio-proxy")
        & ~containers["init"].fillna(False).astype(bool)
    ]
    return str(rows["container"].iloc[0]) if len(rows) else "…"


@check("MNB712", Severity.ERROR, cause=Cause.DATA_PLANE)
def application_fails(mesh: Mesh, symptoms: Symptoms, facts: Facts) -> Iterator[Finding]:
    """No application that used to work answers with 5xx.

    The details via_upstream say that the mesh only carried the answer: the application made it.
    Whether it means it, only its owners know; that the same requests succeeded before is the sign
    of a fault.
    """
    for symptom in symptoms:
        if symptom.code < 500 or symptom.details != "via_upstream" or symptom.flags - {"URX"}:
            continue
        if symptom.side == "server":
            pods = mesh.workload_pods(symptom.workload)
        else:
            hosts = {split_address(failure.upstream_host)[0] for failure in symptom.failures}
            pods = [pod for pod in mesh.pods if pod.address in hosts and not pod.in_mesh]
        if not pods or changed_before(symptom, pods, mesh):
            continue
        subject = workload_of(pods[0])
        paths = and_list(dict.fromkeys(f"{f.method} {f.path}" for f in symptom.failures))
        since = f" since {symptom.first_seen:%H:%M:%S}" if symptom.first_seen is not None else ""
        before = ", and answered the same with success before" if symptom.worked_before else ""
        yield Finding(
            subject,
            f"The application of {subject} answers {paths} with {symptom.code}{since}{before}.",
            f"Read its log with `kubectl -n {subject.namespace} logs {pods[0].pod} -c "
            f"{_application(pods[0], facts)}`; the mesh is not at fault.",
            evidence=symptom_rows(facts, [symptom]),
            related=pods_beside(subject, pods),
            explains=ids([symptom]),
            severity=None
            if symptom.count >= REPEATED
            and (symptom.worked_before or _mostly(symptom, pods, facts["access_log"]))
            else Severity.INFO,
        )


def _mostly(symptom: Symptom, pods: list[Pod], log: pd.DataFrame) -> bool:
    """Whether a symptom is most of what pods answer: nobody means an application to be so."""
    addresses = {pod.address for pod in pods}
    server = log["proxy"].isin([pod.proxy for pod in pods]) & (log["direction"] == "inbound")
    asked = log["upstream_host"].fillna("").map(lambda host: split_address(host)[0])
    logged = server if symptom.side == "server" else asked.isin(addresses)
    return symptom.count > int(logged.sum()) / 2


@check("MNB713", Severity.ERROR, cause=Cause.DATA_PLANE)
def application_too_slow(
    mesh: Mesh, symptoms: Symptoms, routes: pd.DataFrame, istio_config: pd.DataFrame, facts: Facts
) -> Iterator[Finding]:
    """Every application answers within the time-out of the route to it.

    When the route's time-out is over, the caller's proxy answers 504 with flag UT; the server's
    proxy sees the caller leave (DC) while the application still works.
    """
    for symptom in symptoms:
        late = {"UT", "UMSDR", "SI"} & symptom.flags or "max_duration_timeout" in symptom.details
        if not late or symptom.side == "server":
            continue
        pods = _upstream_pods(symptom, mesh)
        carried = routes[
            routes["proxy"].isin(symptom.reporters)
            & routes["clusters"].map(lambda names, own=symptom.cluster: own in (names or ()))
        ]
        limits = sorted({float(value) for value in carried["timeout_ms"].dropna() if value})
        owners = [
            item
            for item in mesh.of("VirtualService")
            if f"{item.name}.{item.namespace}" in set(carried["virtual_service"].dropna())
        ]
        owners += [
            item
            for item in mesh.of("VirtualService")
            if item not in owners
            and "mesh" in bound_gateways(item)
            and symptom.host in route_hosts(item, mesh)
            and any(dig(route, "timeout") for route in items(item.spec, "http"))
        ]
        took = max(failure.duration_ms for failure in symptom.failures)
        if not pods and not owners:
            continue
        tightened = bool(owners) and (
            not pods
            or owners[0] in changed_before(symptom, pods, mesh)
            or (bool(limits) and limits[0] < _HASTY_MS)
        )
        subject = subject_of(owners[0]) if tightened else workload_of(pods[0])
        allowed = f"{limits[0]:g} ms" if limits else f"about {took:g} ms"
        if not limits and symptom.is_counted:
            allowed = "the time that its callers have"
        if tightened:
            what = f"{subject} gives {symptom.host} no more than {allowed}, which it needs"
        else:
            what = (
                f"{subject} does not answer within {allowed}, the time-out of the route to "
                f"{symptom.host}"
            )
        name = pods[0].pod if pods else "…"
        where = f" with {edit(subject_of(owners[0]))}" if owners else ""
        yield Finding(
            subject,
            f"{what}: {counted(symptom.count, 'request')} ended with {symptom.code}.",
            f"Find out what it waits for with `kubectl -n {subject.namespace} logs {name}`, or "
            f"allow more time{where}.",
            evidence=(*symptom_rows(facts, [symptom]), Evidence.of(routes, carried.index)),
            related=(
                *(subject_of(item) for item in owners if subject_of(item) != subject),
                *pods_beside(subject, pods),
            ),
            explains=ids([symptom]),
            severity=Severity.INFO if symptom.is_over else None,
            cause=Cause.CONTROL_PLANE_CONFIG if tightened else None,
        )


#: A time-out that is shorter than this, in ms, was hardly meant: many a network is slower.
_HASTY_MS = 100.0
#: Without a word from the proxy, a connection that took so long, in ms, was never accepted.
_CONNECT_TIMEOUT_MS = 5000.0


def _timed_out(symptom: Symptom) -> bool:
    text = symptom.details + symptom.upstream_failure
    if "UF" not in symptom.flags:
        return False
    # For a bare connection the proxy prints no reason.
    silent = symptom.kind == "connection" and not text
    return "timeout" in text or (
        silent and all(one.duration_ms >= _CONNECT_TIMEOUT_MS for one in symptom.failures)
    )


def _walls(facts: Facts, mesh: Mesh, server: Pod, port: int, clients: list[Pod]) -> tuple[int, ...]:
    """Return the NetworkPolicies that may keep clients from a server, as rows of their table."""
    rows: tuple[int, ...] = ()
    either: list[Pod | None] = [*clients] or [None]
    for client in either:
        at_server = admitted(facts, mesh, server, port, client)
        rows += at_server.rows if not at_server.admitted else ()
        if client is not None:
            at_client = let_out(facts, mesh, client, server, port)
            rows += at_client.rows if not at_client.admitted else ()
    return rows


@check("MNB714", Severity.ERROR, cause=Cause.DATA_PLANE)
def network_path_blocked(
    mesh: Mesh,
    symptoms: Symptoms,
    network_policies: pd.DataFrame,
    endpoints: pd.DataFrame,
    facts: Facts,
) -> Iterator[Finding]:
    """Every proxy can open a connection to the endpoints that it was given.

    A connection that is neither accepted nor refused runs into the connect time-out: 503 with flag
    UF (connection_timeout), and no line at the server. A NetworkPolicy or firewall drops it on the
    way, or the address belongs to no pod any more.
    """
    for symptom in symptoms:
        if not _timed_out(symptom):
            continue
        addresses = {split_address(failure.upstream_host)[0] for failure in symptom.failures}
        pods = [pod for pod in mesh.pods if pod.address in addresses and pod.running]
        callers = mesh.pods_of(symptom.reporters)
        ends = {split_address(failure.upstream_host) for failure in symptom.failures}
        policies = network_policies.loc[
            sorted(
                {
                    row
                    for pod in pods
                    for address, port in ends
                    if address == pod.address and port is not None
                    for row in _walls(facts, mesh, pod, port, callers)
                }
            )
        ]
        given = endpoints[
            endpoints["address"].isin(list(addresses)) & endpoints["proxy"].isin(symptom.reporters)
        ]
        ports = mesh.ports(symptom.host)
        if len(policies):
            row = policies.sort_values("created").iloc[-1]
            subject = Subject("NetworkPolicy", str(row["namespace"]), str(row["policy"]))
        elif pods:
            subject = workload_of(pods[0])
        elif ports:
            subject = Subject("Service", ports[0].namespace, ports[0].service)
        else:
            continue
        if len(policies):
            reason = f"; {subject} selects the pods at one of the ends, and no policy admits it."
        else:
            reason = "." if pods else ". No running pod has that address."
        yield Finding(
            subject,
            f"Connections to {symptom.host} at {and_list(sorted(addresses))} are neither accepted "
            f"nor refused ({symptom.count} timed out){reason}",
            "Let the callers' namespaces through to the port, in NetworkPolicies and firewalls: "
            "`kubectl get networkpolicies -A`.",
            evidence=(
                *symptom_rows(facts, [symptom]),
                Evidence.of(endpoints, given.index),
                Evidence.of(network_policies, policies.index),
            ),
            related=(Subject("Service", ports[0].namespace, ports[0].service),) if ports else (),
            explains=ids([symptom]),
            severity=Severity.INFO if symptom.is_over else None,
        )
