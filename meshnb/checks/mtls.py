"""Checks of both ends of a connection: who speaks TLS and who expects it.

Codes MNB400 to MNB449.
"""

from __future__ import annotations

from collections.abc import Iterator
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
    unseen,
    workload_of,
)
from meshnb.checks.routing import destination_rules
from meshnb.symptoms import Symptom, Symptoms
from meshnb.symptoms.base import REPEATED
from meshnb.symptoms.requests import split_address
from meshnb.tables import Facts
from meshnb.tables.base import dig, items
from meshnb.traces.mesh import ConfigObject, Mesh, Pod, ServicePort


def tls_settings(rule: ConfigObject) -> Iterator[tuple[str, str, int | None]]:
    """Yield each TLS mode that a DestinationRule sets: path of the field, mode, port or None."""
    scopes: list[tuple[str, Any]] = [("spec.trafficPolicy", dig(rule.spec, "trafficPolicy"))]
    scopes += [
        (f"spec.subsets[{number}].trafficPolicy", dig(subset, "trafficPolicy"))
        for number, subset in enumerate(items(rule.spec, "subsets"))
    ]
    for path, policy in scopes:
        if mode := dig(policy, "tls", "mode"):
            yield f"{path}.tls", str(mode), None
        for number, level in enumerate(items(policy, "portLevelSettings")):
            if mode := dig(level, "tls", "mode"):
                port = dig(level, "port", "number")
                yield (
                    f"{path}.portLevelSettings[{number}].tls",
                    str(mode),
                    port if isinstance(port, int) else None,
                )


def target_port(service: ServicePort) -> int | None:
    """Return the container port that a Service port leads to, when it is a number."""
    return int(service.target_port) if service.target_port.isdigit() else service.port


def _plaintext_refused(symptom: Symptom) -> bool:
    return (
        symptom.side == "server"
        and symptom.kind == "connection"
        and "filter_chain_not_found" in symptom.details
    )


def _callers(symptom: Symptom, mesh: Mesh) -> list[Pod | None]:
    """Return the pod at the other end of each failed connection, or None where none is known."""
    return [mesh.pod_at(split_address(failure.remote_address)[0]) for failure in symptom.failures]


@check("MNB401", Severity.ERROR, cause=Cause.CONTROL_PLANE_CONFIG)
def plaintext_to_strict_server(
    mesh: Mesh, symptoms: Symptoms, istio_config: pd.DataFrame, clusters: pd.DataFrame, facts: Facts
) -> Iterator[Finding]:
    """No DestinationRule turns mutual TLS off towards a server that demands it.

    A TLS mode in a DestinationRule overrides Istio's automatic mutual TLS. The server finds no
    filter chain for what it gets (NR), ends the connection, and the client answers 503 with flag
    UC.
    """
    for rule in mesh.of("DestinationRule"):
        for path, mode, port in tls_settings(rule):
            if mode == "ISTIO_MUTUAL":
                continue
            strict = [
                (service, pod, policy)
                for service in mesh.services
                if port in (None, service.port) and rule in destination_rules(mesh, service.host)
                for pod in mesh.selected(service)
                if pod.mesh == "sidecar"
                for effective, policy in [mesh.mtls_mode(pod, target_port(service))]
                if effective == "STRICT"
            ]
            if not strict:
                continue
            hosts = list(dict.fromkeys(service.host for service, _, _ in strict))
            workloads = {(pod.namespace, pod.workload) for _, pod, _ in strict}
            seen = [
                s
                for s in symptoms
                if (
                    s.host in hosts
                    and s.side in ("client", "gateway")
                    and bool({"UC", "UF"} & s.flags)
                )
                or (
                    _plaintext_refused(s)
                    and s.workload in workloads
                    and any(caller is not None and caller.in_mesh for caller in _callers(s, mesh))
                )
            ]
            policies = list(dict.fromkeys(policy for _, _, policy in strict if policy is not None))
            shaped = rows_of(clusters, destination_rule=f"{rule.name}.{rule.namespace}")
            yield Finding(
                subject_of(rule),
                f"{rule} sets TLS mode {mode} towards {and_list(hosts)} ({path}), and "
                f"{and_list(str(policy) for policy in policies)} demands mutual TLS there.",
                f"Take the tls block out, or set ISTIO_MUTUAL, with {edit(subject_of(rule))}.",
                evidence=(
                    *symptom_rows(facts, seen),
                    Evidence.of(shaped, shaped.index[shaped["service_fqdn"].isin(hosts)]),
                    config_rows(istio_config, rule, *policies),
                ),
                related=tuple(subject_of(policy) for policy in policies),
                explains=ids(seen),
            )


@check("MNB402", Severity.ERROR, cause=Cause.CONTROL_PLANE_CONFIG)
def tls_to_plaintext_server(
    mesh: Mesh, symptoms: Symptoms, istio_config: pd.DataFrame, clusters: pd.DataFrame, facts: Facts
) -> Iterator[Finding]:
    """No DestinationRule makes clients speak TLS to a port that expects plain text.

    The client's proxy begins a TLS handshake and is answered with something else:
    WRONG_VERSION_NUMBER in its log, 503 with flag UF; the server counts a protocol error.
    """
    for rule in mesh.of("DestinationRule"):
        modes = [(path, mode) for path, mode, _ in tls_settings(rule) if mode != "DISABLE"]
        if not modes:
            continue
        seen = [
            s
            for s in symptoms
            if "WRONG_VERSION_NUMBER" in s.upstream_failure + s.details
            and rule in destination_rules(mesh, s.host)
        ]
        if not seen:
            continue
        servers = [pod for s in seen for port in mesh.ports(s.host) for pod in mesh.selected(port)]
        workloads = {(pod.namespace, pod.workload) for pod in servers}
        seen += [
            s
            for s in symptoms
            if s.side == "server" and s.workload in workloads and "DPE" in s.flags
        ]
        bare = and_list(f"{pod.namespace}/{pod.workload}" for pod in servers if not pod.in_mesh)
        path, mode = modes[0]
        called = and_list(s.host for s in seen if s.host)
        why = f"{bare} has no sidecar" if bare else "its port expects plain text"
        yield Finding(
            subject_of(rule),
            f"{rule} makes clients speak TLS ({mode}, {path}) to {called}, but {why}.",
            f"Take the tls block out with {edit(subject_of(rule))}.",
            evidence=(
                *symptom_rows(facts, seen),
                Evidence.of(rows_of(clusters, destination_rule=f"{rule.name}.{rule.namespace}")),
                config_rows(istio_config, rule),
            ),
            explains=ids(seen),
        )


def _tls_clients(mesh: Mesh, symptoms: Symptoms, servers: list[Pod]) -> list[tuple[Symptom, Pod]]:
    """Return the mesh clients whose own bytes towards these servers passed their proxy unread."""
    addresses = {pod.address for pod in servers} | {
        service.cluster_ip
        for service in mesh.services
        if any(pod in servers for pod in mesh.selected(service))
    }
    found = []
    for symptom in symptoms:
        if symptom.side != "client" or symptom.kind != "connection":
            continue
        if symptom.cluster != "PassthroughCluster":
            continue
        if addresses & {split_address(failure.local_address)[0] for failure in symptom.failures}:
            found += [(symptom, pod) for pod in mesh.pods_of(symptom.reporters)]
    return found


@check("MNB403", Severity.ERROR, cause=Cause.CONTROL_PLANE_CONFIG)
def plaintext_client_of_strict_server(
    mesh: Mesh, symptoms: Symptoms, istio_config: pd.DataFrame, pods: pd.DataFrame, facts: Facts
) -> Iterator[Finding]:
    """Every client of a server that demands mutual TLS is in the mesh.

    With STRICT a server has no filter chain for plain text. A client without a sidecar is cut off
    at once; only the server's log shows it, as NR filter_chain_not_found.
    """
    for symptom in [s for s in symptoms if _plaintext_refused(s)]:
        servers = mesh.pods_of(symptom.reporters)
        ports = {split_address(failure.local_address)[1] for failure in symptom.failures}
        modes = [mesh.mtls_mode(pod, port) for pod in servers for port in ports]
        policy = next((found for mode, found in modes if mode == "STRICT"), None)
        callers = _callers(symptom, mesh)
        if policy is None or all(caller is not None and caller.in_mesh for caller in callers):
            continue
        outside = list(dict.fromkeys(pod for pod in callers if pod is not None and not pod.in_mesh))
        guess = not outside
        if guess:
            # Behind source NAT the address is the node's: any pod outside the mesh may be the
            # client.
            outside = [
                pod
                for pod in mesh.pods
                if not pod.in_mesh
                and pod.mesh == "none"
                and pod.running
                and pod.namespace not in mesh.control_plane_namespaces
                and not pod.namespace.startswith("kube-")
                and not pod.host_network
            ]
        named = and_list(f"{pod.namespace}/{pod.pod}" for pod in outside)
        if not named:
            who = "a client that is no pod of this cluster"
        elif guess:
            who = f"a client outside the mesh (its address is hidden; outside are {named})"
        else:
            who = f"{named}, which has no sidecar"
        yield Finding(
            subject_of(policy),
            f"{policy} demands mutual TLS of {symptom.workload[0]}/{symptom.workload[1]}, and "
            f"{who} connects in plain text: {symptom.count} connections were cut off.",
            "Give the client a sidecar, or allow plain text on that port (PERMISSIVE) with "
            f"{edit(subject_of(policy))}.",
            evidence=(
                *symptom_rows(facts, [symptom]),
                config_rows(istio_config, policy),
                Evidence.of(
                    pods,
                    [
                        index
                        for index, pod in zip(pods.index, mesh.pods, strict=True)
                        if pod in outside
                    ],
                ),
            ),
            related=tuple(Subject("Pod", pod.namespace, pod.pod) for pod in outside),
            explains=ids([symptom]),
            severity=Severity.INFO if symptom.count < REPEATED else None,
            certainty=0.8 if guess else 1.0,
        )


@check("MNB404", Severity.ERROR, cause=Cause.DATA_PLANE)
def tls_client_of_plaintext_port(
    mesh: Mesh, symptoms: Symptoms, services: pd.DataFrame, facts: Facts
) -> Iterator[Finding]:
    """No application speaks TLS of its own to a port that is declared as plain text.

    The client's proxy cannot read the request and passes the bytes on; the server's proxy has no
    filter chain for TLS that is not Istio's, logs NR filter_chain_not_found and ends the
    connection.
    """
    for symptom in [s for s in symptoms if _plaintext_refused(s)]:
        servers = mesh.pods_of(symptom.reporters)
        ports = {split_address(failure.local_address)[1] for failure in symptom.failures}
        clients = _tls_clients(mesh, symptoms, servers)
        strict = unseen(facts, "istio_config", "peerauthentications") or any(
            mesh.mtls_mode(pod, port)[0] == "STRICT" for pod in servers for port in ports
        )
        if not clients and (strict or symptom.count < REPEATED):
            continue
        front = [
            service
            for service in mesh.services
            if target_port(service) in ports
            and any(pod in servers for pod in mesh.selected(service))
        ]
        offered = [Subject("Service", service.namespace, service.service) for service in front]
        guilty = [workload_of(pod) for _, pod in clients]
        subject = next(
            iter(guilty + offered),
            Subject("Pod", servers[0].namespace, servers[0].pod) if servers else None,
        )
        if subject is None:
            continue
        seen = list({s.id: s for s in [symptom, *(found for found, _ in clients)]}.values())
        declared = and_list(
            f"{s.port} ({s.port_name or 'unnamed'}, {s.protocol})" for s in front
        ) or and_list(map(str, sorted(port for port in ports if port is not None)))
        who = and_list(map(str, guilty)) or "A client"
        called = and_list(map(str, offered)) or and_list(symptom.reporters)
        yield Finding(
            subject,
            f"{who} speaks TLS to port {declared} of {called}, which expects plain text: "
            f"{symptom.count} connections were cut off.",
            "Let the client call the port with http:// instead of https://, or declare the port as "
            "https and let the application serve TLS.",
            evidence=(
                *symptom_rows(facts, seen),
                *(
                    Evidence.of(rows_of(services, namespace=one.namespace, service=one.name))
                    for one in dict.fromkeys(offered)
                ),
            ),
            related=tuple(dict.fromkeys(one for one in guilty + offered if one != subject)),
            explains=ids(seen),
        )
