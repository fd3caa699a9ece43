"""Checks of what changed right before failures began. Codes MNB250 to MNB259.

They know no mechanism, only the order of events, so their findings are unsure: one is dropped as
soon as another check explains the same symptoms.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
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
    edit,
    ids,
    rows_of,
    subject_of,
    symptom_rows,
    workload_of,
)
from meshnb.checks.routing import for_hosts
from meshnb.symptoms import Symptom, Symptoms
from meshnb.tables import Facts
from meshnb.tables.base import dig, items
from meshnb.traces.mesh import ConfigObject, Mesh, Pod, ServicePort, plain
from meshnb.traces.rules import bound_gateways, gateway_pods, route_hosts

#: A change explains failures that begin within this time after it.
JUST_BEFORE = timedelta(seconds=60)
#: Proxies have taken a change over within this time; what still works then does not fail by it.
IN_FORCE = timedelta(seconds=20)
#: Clocks of the API server and of the nodes may differ by so much.
CLOCKS = timedelta(seconds=3)
#: So few failures are an accident.
ACCIDENT = 2
#: Every caller waits so long for an answer, in milliseconds.
PATIENCE_MS = 1000

_BY_HOST = ("VirtualService", "DestinationRule", "ServiceEntry", "Gateway")
_ROUTES = ("HTTPRoute", "GRPCRoute", "TLSRoute", "TCPRoute")
_BY_WORKLOAD = (
    "AuthorizationPolicy",
    "PeerAuthentication",
    "RequestAuthentication",
    "EnvoyFilter",
    "WasmPlugin",
    "TrafficExtension",
    "Telemetry",
    "Sidecar",
)


def _hosts(item: ConfigObject, mesh: Mesh) -> list[str]:
    if item.kind == "DestinationRule":
        return [mesh.fqdn(str(dig(item.spec, "host", default="")), item.namespace)]
    if item.kind == "ServiceEntry":
        return [str(host) for host in items(item.spec, "hosts")]
    if item.kind == "Gateway":
        servers = items(item.spec, "servers")
        entries = [str(host) for server in servers for host in items(server, "hosts")]
        return [entry.rpartition("/")[2] for entry in entries]
    return route_hosts(item, mesh)


def _in_time(changed: Any, symptom: Symptom) -> bool:
    first = symptom.first_seen
    if changed is None or first is None or not symptom.worked_before:
        return False
    worked = symptom.worked_until
    if worked is not None and worked - changed > IN_FORCE:
        return False
    return bool(first - JUST_BEFORE <= changed <= first + CLOCKS)


def changed_before(symptom: Symptom, pods: list[Pod], mesh: Mesh) -> list[ConfigObject]:
    """Return the objects about a symptom's host or pods that changed right before it began.

    New pods are a change of their own, and the likelier one: nothing is returned when one of
    ``pods`` was made right before, too. The newest change comes first.
    """
    if any(_in_time(pod.created, symptom) for pod in pods):
        return []
    found = [
        item
        for item in mesh.objects
        if _in_time(item.changed, symptom) and _concerns(item, symptom, pods, mesh)
    ]
    return sorted(found, key=lambda item: item.changed, reverse=True)


def _concerns(item: ConfigObject, symptom: Symptom, pods: list[Pod], mesh: Mesh) -> bool:
    """Whether an object is about the host of a symptom, or about the pods that show it."""
    concerned = {pod.proxy for pod in pods} | set(symptom.reporters) | set(symptom.callers)
    about_host = item.kind in _BY_HOST and for_hosts(symptom, _hosts(item, mesh))
    about_pods = item.kind in _BY_WORKLOAD and any(
        pod.proxy in concerned for pod in mesh.workload_selected(item)
    )
    about_gateway = symptom.side == "gateway" and bool(_gateway_proxies(item, mesh) & concerned)
    return about_host or about_pods or about_gateway


def changed_at_end(symptom: Symptom, mesh: Mesh) -> list[tuple[datetime, Subject]]:
    """Return what was changed when a symptom that is over ended, with the time, the last first.

    Objects about its host or pods, its Service, and workloads whose pods were made then. An object
    that was deleted is not seen any more.
    """
    last, over = symptom.last_seen, symptom.over_since
    if last is None or over is None:
        return []
    pods = _upstream(symptom, mesh)
    changes: list[tuple[Any, Subject]] = [
        (item.changed, subject_of(item))
        for item in mesh.objects
        if _concerns(item, symptom, pods, mesh)
    ]
    changes += [
        (port.changed, Subject("Service", port.namespace, port.service))
        for port in mesh.services
        if _in_front(port, symptom, mesh)
    ]
    changes += [(pod.created, workload_of(pod)) for pod in pods]
    found = {
        subject: when.to_pydatetime() if isinstance(when, pd.Timestamp) else when
        for when, subject in changes
        if when is not None and last - JUST_BEFORE <= when <= over + CLOCKS
    }
    return sorted(((when, subject) for subject, when in found.items()), key=lambda one: one[0])[
        ::-1
    ]


def _gateway_proxies(item: ConfigObject, mesh: Mesh) -> set[str]:
    """Return the proxies of the gateways that an object is for, whatever hosts it names.

    A host that an object names no more is not to be seen in it.
    """
    if item.kind == "Gateway":
        return {pod.proxy for pod in gateway_pods(item, mesh)}
    if item.kind == "VirtualService":
        names = {
            ("networking.istio.io", *one.split("/", 1))
            for one in bound_gateways(item)
            if "/" in one
        }
    elif item.kind in _ROUTES:
        names = {
            (
                "gateway.networking.k8s.io",
                str(dig(parent, "namespace", default=item.namespace)),
                str(dig(parent, "name")),
            )
            for parent in items(item.spec, "parentRefs")
        }
    else:
        return set()
    return {
        pod.proxy
        for gateway in mesh.of("Gateway")
        if (gateway.group, gateway.namespace, gateway.name) in names
        for pod in gateway_pods(gateway, mesh)
    }


def _upstream(symptom: Symptom, mesh: Mesh) -> list[Pod]:
    if symptom.side == "server":
        return mesh.workload_pods(symptom.workload)
    return [pod for port in mesh.ports(symptom.host)[:1] for pod in mesh.selected(port)]


def _began(symptom: Symptom) -> bool:
    """Whether a symptom is the beginning of something: it worked, and now it fails repeatedly."""
    # Callers who leave soon after they came were not made to wait.
    left = bool(symptom.flags) and symptom.flags <= {"DC", "DR"}
    at_once = all(failure.duration_ms < PATIENCE_MS for failure in symptom.failures)
    return (
        symptom.kind in ("request", "connection")
        and symptom.worked_before
        and symptom.count > ACCIDENT
        and not (left and at_once)
    )


@check("MNB250", Severity.WARNING, cause=Cause.CONTROL_PLANE_CONFIG)
def configuration_changed_before(
    mesh: Mesh,
    symptoms: Symptoms,
    istio_config: pd.DataFrame,
    services: pd.DataFrame,
    facts: Facts,
) -> Iterator[Finding]:
    """No change of configuration is followed by failures at what it is about.

    The same requests succeeded, then an object about their host or their pods was changed, then
    they failed. That is no proof, but the first thing to look at when nothing else explains it.
    """
    blamed: dict[Subject, list[Symptom]] = {}
    proofs: dict[Subject, tuple[Any, Evidence]] = {}
    for symptom in symptoms:
        if not _began(symptom):
            continue
        changes = [
            (item.changed, subject_of(item), config_rows(istio_config, item))
            for item in changed_before(symptom, _upstream(symptom, mesh), mesh)
        ]
        changes += [
            (
                port.changed,
                Subject("Service", port.namespace, port.service),
                Evidence.of(rows_of(services, namespace=port.namespace, service=port.service)),
            )
            for port in mesh.services
            if _in_time(port.changed, symptom) and _in_front(port, symptom, mesh)
        ]
        if changes:
            when, subject, proof = max(changes, key=lambda change: change[0])
            blamed.setdefault(subject, []).append(symptom)
            proofs[subject] = (when, proof)
    for subject, seen in blamed.items():
        when, proof = proofs[subject]
        yield Finding(
            subject,
            f"{subject} was changed at {when:%H:%M:%S}, right before requests that had "
            f"succeeded began to fail: {and_list(symptom.message for symptom in seen)}.",
            f"Compare it with its earlier version, and see whether {edit(subject)} mends it.",
            evidence=(*symptom_rows(facts, seen), proof),
            explains=ids(seen),
            certainty=0.4,
        )


def _in_front(port: ServicePort, symptom: Symptom, mesh: Mesh) -> bool:
    """Whether a Service is the one that was asked, or is one of the workload that failed."""
    pods = [(pod.namespace, pod.workload) for pod in mesh.selected(port)]
    return port.host == symptom.host or symptom.workload in pods


@check("MNB251", Severity.WARNING, cause=Cause.DATA_PLANE)
def rolled_out_before(
    mesh: Mesh, symptoms: Symptoms, rollouts: pd.DataFrame, facts: Facts
) -> Iterator[Finding]:
    """No new version of a workload is followed by failures at that workload.

    The same requests succeeded, then new pods came, then they failed. That is no proof, but the
    first thing to look at when nothing else explains it.
    """
    blamed: dict[int, list[Symptom]] = {}
    for symptom in symptoms:
        first = symptom.first_seen
        if first is None or not _began(symptom):
            continue
        workloads = {(pod.namespace, pod.workload) for pod in _upstream(symptom, mesh)}
        for index, namespace, workload, created in zip(
            rollouts.index,
            rollouts["namespace"],
            rollouts["workload"],
            rollouts["created"],
            strict=True,
        ):
            made = plain(created)
            if (namespace, workload) in workloads and made is not None:
                age = first - made.to_pydatetime()
                if -CLOCKS <= age <= JUST_BEFORE:
                    blamed.setdefault(int(index), []).append(symptom)
    for index, seen in blamed.items():
        row = rollouts.loc[index]
        subject = Subject(str(row["workload_kind"]), str(row["namespace"]), str(row["workload"]))
        yield Finding(
            subject,
            f"{subject} was rolled out at {row['created']:%H:%M:%S}, right before requests that "
            f"had succeeded began to fail: {and_list(symptom.message for symptom in seen)}.",
            f"Go back with `kubectl -n {subject.namespace} rollout undo "
            f"{subject.kind.lower()}/{subject.name}`, and see whether that mends it.",
            evidence=(*symptom_rows(facts, seen), Evidence.of(rollouts, [index])),
            explains=ids(seen),
            certainty=0.4,
        )
