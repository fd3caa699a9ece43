"""Checks of what proxies have counted, where no log tells more. Codes MNB720 to MNB729.

Counters tell neither when requests failed nor which ones, so these checks ask for more: that
nothing else, or next to nothing, succeeded.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pandas as pd

from meshnb.checks.base import (
    Cause,
    Evidence,
    Finding,
    Severity,
    Subject,
    and_list,
    check,
    config_rows,
    counted,
    edit,
    ids,
    pods_beside,
    rows_of,
    subject_of,
    symptom_rows,
    workload_of,
)
from meshnb.symptoms import Symptom, Symptoms
from meshnb.symptoms.base import REPEATED
from meshnb.tables import Facts
from meshnb.traces.capture import captures_inbound
from meshnb.traces.mesh import ConfigObject, Mesh, Pod, ServicePort, plain
from meshnb.traces.rules import egress_lists, sidecar_of

_HTTP2 = ("http2", "grpc", "grpc-web")
_HTTP = ("http", *_HTTP2)
#: Said where the objects are certain and nobody has logged a request.
UNSEEN = "No request was seen to fail, for its proxy logs none."


def _server_fails(symptom: Symptom) -> bool:
    """Whether a server's proxy has counted more failures than successes."""
    return (
        symptom.is_counted
        and symptom.side == "server"
        and symptom.code >= 500
        and symptom.count > symptom.succeeded
    )


def _front(symptom: Symptom, mesh: Mesh) -> ServicePort | None:
    return next((one for one in mesh.ports(symptom.host) if one.port == symptom.port), None)


def _each_costs_a_connection(symptom: Symptom, facts: Facts) -> bool:
    """Whether no connection to an application has outlived a request, as far as it is counted."""
    if symptom.table != "endpoints":
        return False
    rows = facts["endpoints"].loc[list(symptom.rows)]
    return bool((rows["connections"].fillna(0) >= rows["requests_failed"].fillna(0)).all())


def _no_http2(symptom: Symptom, port: ServicePort | None, facts: Facts) -> bool:
    """Whether an application that is declared to speak HTTP/2 seems not to."""
    if port is None or port.protocol not in _HTTP2 or not _server_fails(symptom):
        return False
    if symptom.flags:
        return "UPE" in symptom.flags
    return not symptom.succeeded and _each_costs_a_connection(symptom, facts)


@check("MNB720", Severity.ERROR, cause=Cause.DATA_PLANE)
def application_fails_by_count(mesh: Mesh, symptoms: Symptoms, facts: Facts) -> Iterator[Finding]:
    """No application fails most of the requests that reach it.

    A sidecar counts, for the application behind it, which requests got an answer below 500, and
    which a 5xx or none. Without access logs this is all that tells that the failures begin there,
    not on the way.
    """
    for symptom in symptoms:
        pods = mesh.workload_pods(symptom.workload)
        if symptom.flags or not _server_fails(symptom) or not any(pod.ready for pod in pods):
            continue  # a flag names another reason
        if _no_http2(symptom, _front(symptom, mesh), facts):
            continue  # it does not speak what it is declared to
        subject, ends = workload_of(pods[0]), _each_costs_a_connection(symptom, facts)
        how = "with a 5xx, or ends the connection" if ends else "with a 5xx"
        yield Finding(
            subject,
            f"The application of {subject} has answered {symptom.count} of "
            f"{counted(symptom.count + symptom.succeeded, 'request')} {how}, by its proxy's "
            "counters; when, no log tells.",
            f"Read its log with `kubectl -n {subject.namespace} logs {pods[0].pod} "
            "--all-containers`, and let its proxy log requests.",
            evidence=symptom_rows(facts, [symptom]),
            related=pods_beside(subject, pods),
            explains=ids([symptom]),
            severity=Severity.WARNING if symptom.succeeded else None,
            certainty=0.7,
        )


@check("MNB721", Severity.ERROR, cause=Cause.CONTROL_PLANE_CONFIG)
def http2_not_spoken(
    mesh: Mesh, symptoms: Symptoms, services: pd.DataFrame, facts: Facts
) -> Iterator[Finding]:
    """Every application that is declared to speak HTTP/2 or gRPC keeps a connection.

    HTTP/2 has many requests on one connection. Where each of them costs one, and none succeeds, the
    application most likely does not understand what its sidecar says.
    """
    for symptom in symptoms:
        port = _front(symptom, mesh)
        if port is None or not _no_http2(symptom, port, facts):
            continue
        subject = Subject("Service", port.namespace, port.service)
        pods = mesh.workload_pods(symptom.workload)
        yield Finding(
            subject,
            f"Port {port.port} of {subject} is declared as {port.protocol} (its name is "
            f"{port.port_name or 'empty'}), and {counted(symptom.count, 'request')} ended "
            "with an error of the protocol, or with the connection: the application likely speaks "
            "HTTP/1.1.",
            f"Declare what it speaks, by the port's name or appProtocol, with {edit(subject)}.",
            evidence=(
                *symptom_rows(facts, [symptom]),
                Evidence.of(rows_of(services, namespace=port.namespace, service=port.service)),
            ),
            related=tuple(dict.fromkeys(map(workload_of, pods))),
            explains=ids([symptom]),
            certainty=0.7,
        )


def refused_unseen(symptom: Symptom) -> bool:
    """Whether a server's proxy has counted that its policies refused requests."""
    return symptom.table == "proxy_counters" and symptom.code == 403


@check("MNB722", Severity.WARNING, cause=Cause.CONTROL_PLANE_CONFIG)
def refused_by_count(
    mesh: Mesh,
    symptoms: Symptoms,
    istio_config: pd.DataFrame,
    proxies: pd.DataFrame,
    endpoints: pd.DataFrame,
    facts: Facts,
) -> Iterator[Finding]:
    """No policy refuses more than it lets through.

    To turn somebody away is what policies are for. Where, since a policy was changed last, more was
    refused than the same server had been asked in such a time before, it refuses those whom it was
    there for.
    """
    started = {
        str(proxy): plain(since)
        for proxy, since in zip(proxies["proxy"], proxies["started"], strict=True)
    }
    blamed: dict[ConfigObject, list[Symptom]] = {}
    for symptom in symptoms:
        if not refused_unseen(symptom):
            continue
        policies = [
            policy
            for policy in mesh.of("AuthorizationPolicy")
            if any(pod in mesh.workload_selected(policy) for pod in mesh.pods_of(symptom.reporters))
        ]
        dated = [(_last(policy), policy) for policy in policies if _last(policy) is not None]
        if not dated:
            continue
        changed, newest = max(dated, key=lambda pair: pair[0])
        inbound = endpoints[
            endpoints["proxy"].isin(symptom.reporters)
            & endpoints["cluster"].str.startswith("inbound|").fillna(False).astype(bool)
        ]
        served = int(inbound["requests_ok"].fillna(0).sum())
        begun = [started.get(proxy) for proxy in symptom.reporters]
        usual = _usual(served, [one for one in begun if one is not None], changed, facts.now)
        if symptom.count > usual:
            blamed.setdefault(newest, []).append(symptom)
    for policy, seen in blamed.items():
        servers = and_list(f"{where}/{name}" for where, name in (s.workload for s in seen))
        yield Finding(
            subject_of(policy),
            f"{policy} is the policy that was changed last of those for {servers}, whose proxies "
            f"have refused {counted(sum(s.count for s in seen), 'request')}, more than they let "
            "through; whose, no log tells.",
            "Let the proxies log requests to see who is refused, and admit them with "
            f"{edit(subject_of(policy))}.",
            evidence=(*symptom_rows(facts, seen), config_rows(istio_config, policy)),
            explains=ids(seen),
            certainty=0.4,
        )


def _last(policy: ConfigObject) -> Any:
    return plain(policy.changed) or plain(policy.created)


def _usual(served: int, begun: list[datetime], changed: datetime, now: datetime) -> float:
    """Return how many requests would have been served since a change, had all gone on as before."""
    if not begun or changed <= min(begun):
        return float(served)
    before, since = (changed - min(begun)).total_seconds(), (now - changed).total_seconds()
    return served * max(since, 0.0) / before


@check("MNB723", Severity.WARNING, cause=Cause.DATA_PLANE)
def no_http_by_count(
    mesh: Mesh, endpoints: pd.DataFrame, clusters: pd.DataFrame, facts: Facts
) -> Iterator[Finding]:
    """Every client speaks HTTP to the ports that are declared as HTTP.

    A sidecar that finds no HTTP in what its application sends to such a port, but TLS or other
    bytes, passes it on as it is (PassthroughCluster), to the Service's address. The server's
    sidecar expects HTTP there, or mutual TLS, and ends the connection.
    """
    logged = set(facts["access_log"]["proxy"].dropna())
    passed = endpoints[(endpoints["cluster"] == "PassthroughCluster").fillna(False).astype(bool)]
    found: dict[Subject, tuple[list[int], list[ServicePort], int]] = {}
    for index, row in zip(passed.index, passed.to_dict("records"), strict=True):
        pod, number = mesh.pod_of(str(row["proxy"])), plain(row["connections"]) or 0
        answered = (plain(row["requests_ok"]) or 0) + (plain(row["requests_failed"]) or 0)
        port = mesh.service_at(str(row["address"]), plain(row["port"]))
        if pod is None or port is None or pod.proxy in logged or number < REPEATED or answered:
            continue  # HTTP that is passed on is counted by its answers
        servers = [one for one in mesh.selected(port) if one.ready]
        target = mesh.target_port(port)
        if port.protocol not in _HTTP or not servers:
            continue
        if not all(captures_inbound(one, target) for one in servers):
            continue  # without a sidecar an application may well speak TLS itself
        held = rows_of(clusters, proxy=pod.proxy, service_fqdn=port.host, port=str(port.port))
        if held.empty:
            continue  # its proxy does not know that port
        rows, ports, count = found.get(workload_of(pod), ([], [], 0))
        found[workload_of(pod)] = ([*rows, int(index)], [*ports, port], count + int(number))
    for subject, (rows, ports, count) in found.items():
        names = list(dict.fromkeys(Subject("Service", one.namespace, one.service) for one in ports))
        numbers = and_list(f"{one.port} of {one.host}" for one in ports)
        yield Finding(
            subject,
            f"{subject} opened {counted(count, 'connection')} to port {numbers}, declared as HTTP, "
            f"and spoke none: its proxy passed the bytes on unread. {UNSEEN}",
            "Let the client speak plain HTTP, for the sidecars encrypt it, or declare what it "
            f"speaks with {edit(names[0])}.",
            evidence=(Evidence.of(endpoints, rows),),
            related=tuple(names),
            certainty=0.6,
        )


@check("MNB724", Severity.WARNING, cause=Cause.CONTROL_PLANE_CONFIG)
def hidden_from_all(
    mesh: Mesh,
    endpoints: pd.DataFrame,
    clusters: pd.DataFrame,
    routes: pd.DataFrame,
    proxies: pd.DataFrame,
    istio_config: pd.DataFrame,
    facts: Facts,
) -> Iterator[Finding]:
    """No Sidecar hides a Service that was called from all who could call it.

    A Sidecar's egress lists what its proxies may know; with REGISTRY_ONLY they refuse the rest. A
    server that has served requests, and is known to no sidecar and no waypoint any more since a
    Sidecar was changed, has lost its callers.
    """
    started = {
        str(proxy): plain(since)
        for proxy, since in zip(proxies["proxy"], proxies["started"], strict=True)
    }
    callers = [pod for pod in mesh.pods if pod.running and pod.mesh == "sidecar"]
    asked = {pod.proxy for pod in callers}
    if len(facts["access_log"]) or not asked <= set(clusters["proxy"]):
        return  # a log tells who was refused; and a proxy that was not asked may know it still
    outbound = (clusters["direction"] == "outbound") & clusters["proxy"].isin(list(asked))
    reached = set(clusters.loc[outbound, "service_fqdn"].dropna())
    gateways = [pod.proxy for pod in mesh.pods if pod.mesh == "gateway"]
    for names in routes.loc[routes["proxy"].isin(gateways), "clusters"]:
        reached |= {str(name).rpartition("|")[2] for name in names or ()}
    for sidecar in mesh.of("Sidecar"):
        policy = sidecar.spec.get("outboundTrafficPolicy")
        strict = isinstance(policy, dict) and policy.get("mode") == "REGISTRY_ONLY"
        if not strict or not any(sidecar_of(pod, mesh) == sidecar for pod in callers):
            continue
        for port in mesh.services:
            if port.host in reached or port.namespace != sidecar.namespace:
                continue
            if egress_lists(sidecar, port.host, port.namespace):
                continue
            target = mesh.target_port(port)
            before = [
                pod
                for pod in mesh.selected(port)
                if _older(started.get(pod.proxy), sidecar)
                and captures_inbound(pod, target)
                and pod.annotations.get("prometheus.io/port") != str(target)  # scraped from outside
            ]
            rows = _served_rows(endpoints, before, target)
            number = int(rows["requests_ok"].fillna(0).sum())
            if number < REPEATED:
                continue
            service = Subject("Service", port.namespace, port.service)
            yield Finding(
                subject_of(sidecar),
                f"{sidecar} allows only registered hosts and leaves {port.host} out of its egress, "
                f"so that no sidecar knows it any more; it has served {counted(number, 'request')}"
                f" so far. {UNSEEN}",
                f"List ./{port.host} under egress with {edit(subject_of(sidecar))}.",
                evidence=(Evidence.of(endpoints, rows.index), config_rows(istio_config, sidecar)),
                related=(service,),
                certainty=0.5,
                path="spec.egress",
            )


def _older(started: Any, item: ConfigObject) -> bool:
    changed = _last(item)
    return started is not None and changed is not None and started < changed


def _served_rows(endpoints: pd.DataFrame, pods: list[Pod], port: int | None) -> pd.DataFrame:
    inbound = f"inbound|{port}|"
    rows = endpoints[
        endpoints["proxy"].isin([pod.proxy for pod in pods])
        & endpoints["cluster"].str.startswith(inbound).fillna(False).astype(bool)
    ]
    rows.attrs["table"] = "endpoints"
    return rows
