"""Checks of servers as their callers see them, and of the ports of pods. Codes MNB830 to MNB849."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pandas as pd

from meshnb.checks.asked_ports import goes_on_at_port
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
    rows_of,
    subject_of,
    symptom_rows,
    unseen,
    workload_of,
)
from meshnb.checks.protocols import grpc_as_http1
from meshnb.checks.served import called
from meshnb.symptoms import Symptom, Symptoms
from meshnb.symptoms.base import REPEATED
from meshnb.symptoms.requests import split_address
from meshnb.tables import Facts
from meshnb.tables.base import items
from meshnb.traces.capture import captures_inbound
from meshnb.traces.mesh import Mesh, Pod, host_matches, plain

#: Ports that the proxy and its agent take in every pod with a sidecar (Istio: ops/deployment/
#: application-requirements, "Ports used by Istio").
RESERVED = frozenset({15000, 15001, 15004, 15006, 15008, 15020, 15021, 15053, 15090})
#: A pod's end and the failures that it makes are so near each other.
_AROUND = timedelta(seconds=60)
#: So few requests may be lost when idle connections are closed.
_RARELY = 0.005
#: How long ago a burst of failures still matters after it has passed.
_RECENT = timedelta(minutes=15)


def _ends(symptom: Symptom) -> set[str]:
    # A request that went nowhere has no address, like a pod that waits for a node.
    return {split_address(one.upstream_host)[0] for one in symptom.failures} - {""}


@check("MNB830", Severity.ERROR, cause=Cause.DATA_PLANE)
def server_ends_connections(mesh: Mesh, symptoms: Symptoms, facts: Facts) -> Iterator[Finding]:
    """No server outside the mesh ends connections before it has answered.

    A server without a sidecar writes no log of its own here. Its callers' proxies say that it took
    the request and then closed or reset the connection (UC, UR): it crashed, gave up, or closes
    idle connections sooner than the proxy does.
    """
    for symptom in symptoms:
        if symptom.side not in ("client", "gateway") or not {"UC", "UR"} & symptom.flags:
            continue
        if symptom.kind != "request" or grpc_as_http1(symptom, mesh, facts):
            continue
        ends = _ends(symptom)
        pods = [pod for pod in mesh.pods if pod.address in ends and pod.running]
        ports = {split_address(failure.upstream_host)[1] for failure in symptom.failures}
        if any(captures_inbound(pod, port) for pod in pods for port in ports):
            continue  # its own proxy says more, or the two proxies do not agree on TLS
        entry = next(
            (
                item
                for item in mesh.of("ServiceEntry")
                if any(host_matches(str(host), symptom.host) for host in items(item.spec, "hosts"))
            ),
            None,
        )
        ready = [pod for pod in pods if pod.ready]
        if ready:
            subject = workload_of(ready[0])
            remedy = (
                f"Read its log with `kubectl -n {subject.namespace} logs {ready[0].pod}`, and let "
                "it keep idle connections longer than its callers do."
            )
        elif entry is not None and not pods:
            subject = subject_of(entry)
            remedy = (
                f"Set connectionPool.http.idleTimeout in a DestinationRule for {symptom.host} "
                "below the server's own, and ask its owners."
            )
        else:
            continue
        goes_on = goes_on_at_port(symptom, facts, mesh)
        rare = symptom.count < _RARELY * len(called(facts, [symptom.host]))
        yield Finding(
            subject,
            f"{symptom.host} at {and_list(sorted(ends))}, outside the mesh, ends "
            f"{counted(symptom.count, 'connection')} after it got the request and before it "
            f"answered ({symptom.details}).",
            remedy,
            evidence=symptom_rows(facts, [symptom]),
            explains=ids([symptom]),
            severity=Severity.INFO
            if symptom.is_over or (goes_on and (rare or symptom.count < REPEATED))
            else None,
            certainty=0.8,
        )


@check("MNB831", Severity.WARNING, cause=Cause.DATA_PLANE)
def reserved_port(
    mesh: Mesh, symptoms: Symptoms, containers: pd.DataFrame, facts: Facts
) -> Iterator[Finding]:
    """No application uses a port that its sidecar takes.

    The containers of a pod share its ports. Where the application listens on one of Istio's, the
    application or the proxy cannot start ("address already in use"), whichever comes second.
    """
    by_pod = {(pod.namespace, pod.pod): pod for pod in mesh.pods}
    found: dict[Subject, tuple[list[int], list[tuple[Pod, int]]]] = {}
    for index, namespace, name, container, ports in zip(
        containers.index,
        containers["namespace"],
        containers["pod"],
        containers["container"],
        containers["ports"],
        strict=True,
    ):
        pod = by_pod.get((str(namespace), str(name)))
        taken = sorted(RESERVED & set(ports or ()))
        if pod is None or pod.mesh != "sidecar" or not pod.running or not taken:
            continue
        if container == "istio-proxy":
            continue
        rows, uses = found.setdefault(workload_of(pod), ([], []))
        rows.append(int(index))
        uses += [(pod, port) for port in taken]
    for subject, (rows, uses) in found.items():
        seen = [
            s
            for s in symptoms
            if s.kind == "pod" and s.workload == (subject.namespace, subject.name)
        ]
        unready = [pod for pod, _ in uses if not pod.ready]
        yield Finding(
            subject,
            f"A container of {subject} uses port {and_list(sorted({port for _, port in uses}))}, "
            "which its sidecar takes.",
            f"Let the application use another port with {edit(subject)}.",
            evidence=(*symptom_rows(facts, seen), Evidence.of(containers, rows)),
            explains=ids(seen),
            severity=Severity.ERROR if unready else None,
        )


@check("MNB832", Severity.ERROR, cause=Cause.DATA_PLANE)
def named_port_missing(
    mesh: Mesh,
    symptoms: Symptoms,
    services: pd.DataFrame,
    service_endpoints: pd.DataFrame,
    facts: Facts,
) -> Iterator[Finding]:
    """Every port's name that a Service sends to is one of its pods' ports.

    A Service may name the port of its pods. Where no container has a port of that name, the Service
    has endpoints without that port: 503 with flag UH (no_healthy_upstream).
    """
    if unseen(facts, "pods", "pods"):
        return
    for service in mesh.services:
        pods = mesh.selected(service)
        name = service.target_port
        if not pods or not name or name.isdigit() or any(name in pod.named_ports for pod in pods):
            continue
        seen = [
            s
            for s in symptoms
            if s.host == service.host
            and s.port in (service.port, None)
            and s.side in ("client", "gateway")
            and bool({"UH", "NC", "UF"} & s.flags)
        ]
        subject = Subject("Service", service.namespace, service.service)
        have = and_list(
            sorted(
                {
                    f"{port} ({number})"
                    for pod in pods
                    for port, number in pod.named_ports.items()
                    if number not in RESERVED
                }
            )
        )
        yield Finding(
            subject,
            f"Port {service.port} of {subject} leads to a port named {name}, which no container of "
            f"its pods has; they have {have or 'no named port'}.",
            f"Correct targetPort with {edit(subject)}, or name the container's port so.",
            evidence=(
                *symptom_rows(facts, seen),
                Evidence.of(
                    rows_of(services, namespace=service.namespace, service=service.service)
                ),
                Evidence.of(
                    rows_of(service_endpoints, namespace=service.namespace, service=service.service)
                ),
            ),
            related=tuple(dict.fromkeys(map(workload_of, pods))),
            explains=ids(seen),
            severity=None if seen else Severity.WARNING,
        )


@check("MNB833", Severity.WARNING, cause=Cause.DATA_PLANE)
def pods_leave_too_soon(
    mesh: Mesh, symptoms: Symptoms, events: pd.DataFrame, facts: Facts
) -> Iterator[Finding]:
    """No pod stops to serve before its callers know that it goes.

    When a pod is deleted, its callers go on to use it for some seconds. Where its proxy or its
    application is gone by then, their requests fail (UF, UC) in a burst around the end of the pod.
    """
    killed = events[events["reason"] == "Killing"]
    for symptom in symptoms:
        if symptom.side not in ("client", "gateway") or not {"UF", "UC"} & symptom.flags:
            continue
        if "TLS_error" in symptom.details + symptom.upstream_failure:
            continue
        first, last = symptom.first_seen, symptom.last_seen
        leaving = [pod for pod in mesh.pods if pod.address in _ends(symptom) and not pod.running]
        alive = [pod for pod in mesh.pods if pod.address in _ends(symptom) and pod.running]
        others = list(
            dict.fromkeys(pod for port in mesh.ports(symptom.host) for pod in mesh.selected(port))
        )
        if alive or "" in _ends(symptom) or not (leaving or others):
            continue
        if first is None or last is None:
            continue
        pod = (leaving or others)[0]
        rows = [
            index
            for index, namespace, name, when in zip(
                killed.index, killed["namespace"], killed["name"], killed["last_seen"], strict=True
            )
            if namespace == pod.namespace
            and str(name).startswith(f"{pod.workload}-")
            and plain(when) is not None
            and first - _AROUND <= when <= last + _AROUND
        ]
        if not rows and not any(one.deleted is not None for one in leaving):
            continue
        subject = workload_of(pod)
        passed = symptom.works_again or goes_on_at_port(symptom, facts, mesh)
        old = facts.now - last > _RECENT
        yield Finding(
            subject,
            f"{counted(symptom.count, 'request')} to {symptom.host} failed while a pod of "
            f"{subject} at {and_list(sorted(_ends(symptom)))} was ending ({symptom.details}).",
            "Let its proxy and its application outlive their callers' connections: set "
            "terminationDrainDuration, a preStop hook, or native sidecars with "
            f"{edit(subject)}.",
            evidence=(*symptom_rows(facts, [symptom]), Evidence.of(events, rows)),
            explains=ids([symptom]),
            severity=Severity.INFO if passed and (old or symptom.count < REPEATED) else None,
            certainty=0.7,
        )


@check("MNB834", Severity.WARNING, cause=Cause.DATA_PLANE)
def callers_give_up(mesh: Mesh, symptoms: Symptoms, facts: Facts) -> Iterator[Finding]:
    """Every application answers before its callers lose patience.

    A client that goes away leaves the flag DC. When many leave after just the same time, it is
    their own time-out: the application is slower than they allow.
    """
    for symptom in symptoms:
        if not {"DC", "DR"} & symptom.flags or symptom.count < REPEATED:
            continue
        if "DI" in symptom.flags:
            continue  # it was made to wait by a fault that somebody injects
        if symptom.kind != "request" or symptom.code:
            continue  # an answer had begun, as of a stream that nobody reads to its end
        took = [failure.duration_ms for failure in symptom.failures]
        if min(took) < 500.0 or max(took) > 1.1 * min(took):
            continue
        ends = _ends(symptom)
        pods = (
            mesh.workload_pods(symptom.workload)
            if symptom.side == "server"
            else [pod for pod in mesh.pods if pod.address in ends and pod.running]
        )
        if not pods or (not symptom.worked_before and goes_on_at_port(symptom, facts, mesh)):
            continue
        subject = workload_of(pods[0])
        yield Finding(
            subject,
            f"{counted(symptom.count, 'request')} to {subject} were given up by their clients after"
            f" {min(took):g} to {max(took):g} ms, before it answered.",
            "Find out what it waits for with `kubectl -n "
            f"{subject.namespace} logs {pods[0].pod}`, or let the clients wait longer.",
            evidence=symptom_rows(facts, [symptom]),
            explains=ids([symptom]),
            certainty=0.6,
        )


@check("MNB835", Severity.WARNING, cause=Cause.DATA_PLANE)
def server_fails_unseen(
    mesh: Mesh, symptoms: Symptoms, access_log: pd.DataFrame, facts: Facts
) -> Iterator[Finding]:
    """Every server that fails says in its own log why.

    Its callers' proxies see only that the answer came from there. Where the server's proxy logs
    nothing, or was not asked, nobody can tell an application's failure from the proxy's.
    """
    logging = set(access_log.loc[access_log["direction"] == "inbound", "proxy"].dropna())
    for symptom in symptoms:
        if symptom.side not in ("client", "gateway") or symptom.code < 500:
            continue
        if symptom.details != "via_upstream" or symptom.flags - {"URX"}:
            continue
        ends = _ends(symptom)
        pods = [pod for pod in mesh.pods if pod.address in ends and pod.mesh == "sidecar"]
        if not pods or any(pod.proxy in logging for pod in pods):
            continue
        subject = workload_of(pods[0])
        yield Finding(
            subject,
            f"{subject} answers {symptom.host} with {symptom.code}, and its proxy logged nothing: "
            "cannot decide whether its application or its proxy made the answer.",
            f"Read the logs with `kubectl -n {subject.namespace} logs {pods[0].pod} "
            "--all-containers`, and let its proxy log requests.",
            evidence=symptom_rows(facts, [symptom]),
            explains=ids([symptom]),
            severity=None if symptom.worked_before and not symptom.is_over else Severity.INFO,
            certainty=0.4,
        )
