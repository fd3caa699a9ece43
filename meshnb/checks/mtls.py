"""Checks of both ends of a connection: who speaks TLS and who expects it.

Codes MNB400 to MNB429.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
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
from meshnb.checks.injection import Strays, cut_off, pods_of
from meshnb.checks.routing import destination_rules
from meshnb.checks.served import called
from meshnb.symptoms import Symptom, Symptoms
from meshnb.symptoms.base import REPEATED
from meshnb.symptoms.requests import split_address
from meshnb.tables import Facts
from meshnb.tables.base import dig, items, mapping
from meshnb.traces.capture import bypass, captures_inbound
from meshnb.traces.failures import Failure
from meshnb.traces.mesh import ConfigObject, Mesh, Pod, ServicePort
from meshnb.traces.rules import rule_host, rules_for_pod


@dataclass(frozen=True, slots=True)
class TlsSetting:
    """One TLS mode that a DestinationRule sets, and what it is for."""

    path: str
    mode: str
    #: None for all ports but those in ``others``
    port: int | None
    #: ports of the same scope that have settings of their own
    others: frozenset[int]
    #: name of the subset and labels of its pods; both empty for the whole host
    subset: str
    labels: Mapping[str, Any]

    def is_for(self, port: int | None) -> bool:
        """Whether it holds for a port of the Service."""
        return port not in self.others if self.port is None else port == self.port


def tls_settings(rule: ConfigObject) -> Iterator[TlsSetting]:
    """Yield each TLS mode that a DestinationRule sets.

    Settings of a port replace all of those of the host, also what they do not mention (Istio:
    reference/config/networking/destination-rule, TrafficPolicy.PortTrafficPolicy).
    """
    scopes: list[tuple[str, Any, str, Mapping[str, Any]]] = [
        ("spec.trafficPolicy", dig(rule.spec, "trafficPolicy"), "", {})
    ]
    scopes += [
        (
            f"spec.subsets[{number}].trafficPolicy",
            dig(subset, "trafficPolicy"),
            str(dig(subset, "name", default="")),
            mapping(subset, "labels"),
        )
        for number, subset in enumerate(items(rule.spec, "subsets"))
    ]
    for path, policy, subset, labels in scopes:
        levels = [
            (number, level, dig(level, "port", "number"))
            for number, level in enumerate(items(policy, "portLevelSettings"))
        ]
        others = frozenset(port for _, _, port in levels if isinstance(port, int))
        if mode := dig(policy, "tls", "mode"):
            yield TlsSetting(f"{path}.tls", str(mode), None, others, subset, labels)
        for number, level, port in levels:
            if (mode := dig(level, "tls", "mode")) and isinstance(port, int):
                where = f"{path}.portLevelSettings[{number}].tls"
                yield TlsSetting(where, str(mode), port, frozenset(), subset, labels)


def _sent_by(symptom: Symptom, rule: ConfigObject, mesh: Mesh) -> bool:
    """Whether a proxy that reports a symptom at the client's end obeys a DestinationRule."""
    pods = mesh.pods_of(symptom.reporters)
    return not pods or any(rule in rules_for_pod(symptom.host, pod, mesh) for pod in pods)


def spoke_tls(failure: Failure) -> bool:
    """Whether the client of a refused connection began with TLS of its own and named a server."""
    return bool(failure.server_name) and not failure.server_name.startswith("outbound_")


def chain_missing(symptom: Symptom) -> bool:
    """Whether a server's proxy had no filter chain for what its clients began with."""
    return (
        symptom.side == "server"
        and symptom.kind == "connection"
        and "filter_chain_not_found" in symptom.details
    )


def _plaintext_refused(symptom: Symptom) -> bool:
    return chain_missing(symptom) and not all(map(spoke_tls, symptom.failures))


def callers_of(symptom: Symptom, mesh: Mesh) -> list[Pod | None]:
    """Return the pod at the other end of each failed connection, or None where none is known."""
    return [mesh.pod_at(split_address(failure.remote_address)[0]) for failure in symptom.failures]


def _from_mesh(
    symptom: Symptom, rule: ConfigObject, hosts: list[str], mesh: Mesh, *, hidden: bool
) -> bool:
    """Whether refused connections came from pods that obey a rule, or may have, where hidden."""
    known = [caller for caller in callers_of(symptom, mesh) if caller is not None]
    return (hidden and not known) or any(
        caller.in_mesh and any(rule in rules_for_pod(host, caller, mesh) for host in hosts)
        for caller in known
    )


def refused_handshake(symptom: Symptom) -> bool:
    """Whether a client's proxy was cut off, or refused in the TLS handshake."""
    text = symptom.details + symptom.upstream_failure
    return "UC" in symptom.flags or ("UF" in symptom.flags and "TLS_error" in text)


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
        for setting in tls_settings(rule):
            if setting.mode == "ISTIO_MUTUAL":
                continue
            strict = list(_strict_servers(rule, setting, mesh))
            if not strict:
                continue
            hosts = list(dict.fromkeys(service.host for service, _, _ in strict))
            ports = {(service.host, service.port) for service, _, _ in strict}
            workloads = {(pod.namespace, pod.workload) for _, pod, _ in strict}
            seen = [
                s
                for s in symptoms
                if (
                    (s.host, s.port) in ports
                    and s.side in ("client", "gateway")
                    and (refused_handshake(s) or s.is_counted)
                    and f"|{setting.subset}|" in s.cluster.partition("|")[2]
                    and _sent_by(s, rule, mesh)
                )
            ]
            seen += [
                s
                for s in symptoms
                if _plaintext_refused(s)
                and s.workload in workloads
                and _from_mesh(s, rule, hosts, mesh, hidden=bool(seen))
            ]
            policies = list(dict.fromkeys(policy for _, _, policy in strict if policy is not None))
            shaped = rows_of(clusters, destination_rule=f"{rule.name}.{rule.namespace}")
            unused = not seen and len(called(facts, hosts, rule.changed)) > 0
            yield Finding(
                subject_of(rule),
                f"{rule} sets TLS mode {setting.mode} towards {and_list(hosts)} ({setting.path}), "
                f"and {and_list(str(policy) for policy in policies)} demands mutual TLS there.",
                f"Take the tls block out, or set ISTIO_MUTUAL, with {edit(subject_of(rule))}.",
                evidence=(
                    *symptom_rows(facts, seen),
                    Evidence.of(shaped, shaped.index[shaped["service_fqdn"].isin(hosts)]),
                    config_rows(istio_config, rule, *policies),
                ),
                related=tuple(subject_of(policy) for policy in policies),
                explains=ids(seen),
                severity=None if seen else Severity.INFO if unused else Severity.WARNING,
            )


def _strict_servers(
    rule: ConfigObject, setting: TlsSetting, mesh: Mesh
) -> Iterator[tuple[ServicePort, Pod, ConfigObject | None]]:
    """Yield each port and pod that a TLS setting is for and that demands mutual TLS."""
    for service in mesh.services:
        rules = destination_rules(mesh, service.host)
        if not setting.is_for(service.port) or rule not in rules:
            continue
        if rule.namespace == mesh.root_namespace != service.namespace and any(
            other.namespace == service.namespace for other in rules
        ):
            continue  # the Service's own namespace comes before the root
        port = mesh.target_port(service)
        for pod in mesh.selected(service):
            if setting.labels.items() <= pod.labels.items() and captures_inbound(pod, port):
                mode, policy = mesh.mtls_mode(pod, port)
                if mode == "STRICT":
                    yield service, pod, policy


@check("MNB402", Severity.ERROR, cause=Cause.CONTROL_PLANE_CONFIG)
def tls_to_plaintext_server(
    mesh: Mesh, symptoms: Symptoms, istio_config: pd.DataFrame, clusters: pd.DataFrame, facts: Facts
) -> Iterator[Finding]:
    """No DestinationRule makes clients speak TLS to a port that expects plain text.

    The client's proxy begins a TLS handshake and is answered with something else:
    WRONG_VERSION_NUMBER in its log, 503 with flag UF; the server counts a protocol error.
    """
    for rule in mesh.of("DestinationRule"):
        settings = [setting for setting in tls_settings(rule) if setting.mode != "DISABLE"]
        seen = [
            s
            for s in symptoms
            if answered_plainly(s)
            and rule in destination_rules(mesh, s.host)
            and any(setting.is_for(s.port) for setting in settings)
            and _sent_by(s, rule, mesh)
        ]
        if not seen:
            yield from _contradiction(rule, settings, mesh, symptoms, istio_config, facts)
            continue
        setting = next(one for one in settings if any(one.is_for(s.port) for s in seen))
        servers = [pod for s in seen for port in mesh.ports(s.host) for pod in mesh.selected(port)]
        workloads = {(pod.namespace, pod.workload) for pod in servers}
        seen += [
            s
            for s in symptoms
            if s.side in ("server", "") and s.workload in workloads and "DPE" in s.flags
        ]
        bare = and_list(f"{pod.namespace}/{pod.workload}" for pod in servers if not pod.in_mesh)
        called_hosts = and_list(s.host for s in seen if s.host)
        why = f"{bare} has no sidecar" if bare else "its port expects plain text"
        yield Finding(
            subject_of(rule),
            f"{rule} makes clients speak TLS ({setting.mode}, {setting.path}) to {called_hosts}, "
            f"but {why}.",
            f"Take the tls block out with {edit(subject_of(rule))}.",
            evidence=(
                *symptom_rows(facts, seen),
                Evidence.of(rows_of(clusters, destination_rule=f"{rule.name}.{rule.namespace}")),
                config_rows(istio_config, rule),
            ),
            explains=ids(seen),
        )


def _contradiction(
    rule: ConfigObject,
    settings: list[TlsSetting],
    mesh: Mesh,
    symptoms: Symptoms,
    istio_config: pd.DataFrame,
    facts: Facts,
) -> Iterator[Finding]:
    """Yield what a rule for one host says against what is known of its servers, where nobody calls.

    Rules for many hosts are left out: they are meant for those of them that fit.
    """
    for service in mesh.ports(rule_host(rule, mesh)):
        servers = [pod for pod in mesh.selected(service) if pod.ready]
        setting = next((one for one in settings if one.is_for(service.port)), None)
        if not servers or setting is None:
            continue
        # Without a log that tells why, callers' proxies may say that no connection could be made.
        seen = [
            s
            for s in symptoms
            if s.lacks_reason
            and s.side in ("client", "gateway")
            and (s.host, s.port) == (service.host, service.port)
            and _sent_by(s, rule, mesh)
        ]
        if not seen and len(called(facts, [service.host], rule.changed)):
            continue
        if setting.mode == "ISTIO_MUTUAL":
            wrong = not any(pod.in_mesh for pod in servers)
            why = "none of its pods has a sidecar"
        else:
            port = mesh.target_port(service)
            modes = {mesh.mtls_mode(pod, port)[0] for pod in servers}
            wrong = (
                service.protocol in ("http", "http2", "grpc", "grpc-web")
                and all(captures_inbound(pod, port) for pod in servers)
                and "STRICT" not in modes
            )
            why = f"its port {service.port} is declared as {service.protocol}"
        if wrong:
            workloads = {(pod.namespace, pod.workload) for pod in servers} if seen else set()
            seen += [
                s
                for s in symptoms
                if s.side in ("server", "") and s.workload in workloads and "DPE" in s.flags
            ]
            yield Finding(
                subject_of(rule),
                f"{rule} makes clients speak TLS ({setting.mode}, {setting.path}) to "
                f"{service.host}, but {why}. "
                + ("No log tells more." if seen else "Nobody has called it so far."),
                f"Take the tls block out with {edit(subject_of(rule))}.",
                evidence=(*symptom_rows(facts, seen), config_rows(istio_config, rule)),
                explains=ids(seen),
                severity=None if seen else Severity.WARNING,
            )
            return


def answered_plainly(symptom: Symptom) -> bool:
    """Whether a server answered a client's TLS handshake with something that is no TLS."""
    return "WRONG_VERSION_NUMBER" in symptom.upstream_failure + symptom.details


def _tls_clients(
    mesh: Mesh, symptoms: Symptoms, servers: list[Pod], log: pd.DataFrame
) -> list[tuple[Symptom | None, Pod]]:
    """Return the mesh clients whose own bytes towards these servers passed their proxy unread."""
    addresses = {pod.address for pod in servers} | {
        service.cluster_ip
        for service in mesh.services
        if any(pod in servers for pod in mesh.selected(service))
    }
    found: list[tuple[Symptom | None, Pod]] = []
    for symptom in symptoms:
        if symptom.side != "client" or symptom.kind != "connection":
            continue
        if symptom.cluster != "PassthroughCluster":
            continue
        if addresses & {split_address(failure.local_address)[0] for failure in symptom.failures}:
            found += [(symptom, pod) for pod in mesh.pods_of(symptom.reporters)]
    if not found:
        # The client's proxy may have logged the connection as one that ended well.
        passed = log[(log["cluster"] == "PassthroughCluster") & log["method"].isna()]
        asked = (
            passed["downstream_local_address"].fillna("").map(lambda text: split_address(text)[0])
        )
        proxies = passed["proxy"][asked.isin(list(addresses))]
        found = [(None, pod) for pod in mesh.pods_of(proxies)]
    return found


def _through_proxies(symptom: Symptom, symptoms: Symptoms, mesh: Mesh) -> bool:
    """Whether clients' proxies report what looks like the other end of refused connections."""
    servers = mesh.pods_of(symptom.reporters)
    addresses = {pod.address for pod in servers}
    hosts = {
        port.host for port in mesh.services if any(pod in servers for pod in mesh.selected(port))
    }
    return any(
        other.side in ("client", "gateway")
        and refused_handshake(other)
        and (
            other.host in hosts
            or addresses & {split_address(one.upstream_host)[0] for one in other.failures}
        )
        for other in symptoms
    )


@check("MNB403", Severity.ERROR, cause=Cause.CONTROL_PLANE_CONFIG)
def plaintext_client_of_strict_server(
    mesh: Mesh,
    strays: Strays,
    symptoms: Symptoms,
    istio_config: pd.DataFrame,
    pods: pd.DataFrame,
    facts: Facts,
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
        callers = callers_of(symptom, mesh)
        if policy is None or all(caller is not None and caller.in_mesh for caller in callers):
            continue
        if cut_off(symptom, pods_of(strays, mesh), mesh):
            continue  # a client that was meant to have a sidecar: the checks of injection say why
        outside = list(dict.fromkeys(pod for pod in callers if pod is not None and not pod.in_mesh))
        guess = not outside
        if guess and (
            _through_proxies(symptom, symptoms, mesh) or past_their_proxies(mesh, servers, ports)
        ):
            continue
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
            f"{who} connects in plain text: {symptom.count} connections were cut off."
            f"{_misnumbered(policy, ports, mesh)}",
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
            # What says why this very client is there in plain text knows better.
            certainty=0.8 if guess else 0.95,
        )


def past_their_proxies(
    mesh: Mesh, servers: list[Pod], ports: Iterable[int | None]
) -> list[tuple[Pod, str]]:
    """Return the pods of the mesh that are told to call these servers past their sidecar."""
    asked = {(pod.address, port) for pod in servers for port in ports}
    asked |= {
        (address, service.port)
        for service in mesh.services
        if mesh.target_port(service) in set(ports)
        and any(pod in servers for pod in mesh.selected(service))
        for address in (service.cluster_ip, *(pod.address for pod in servers))
    }
    found = []
    for pod in mesh.pods:
        if pod.mesh == "sidecar" and pod.running and pod not in servers:
            why = next((name for one in asked if (name := bypass(pod, *one))), "")
            if why:
                found.append((pod, why))
    return found


def service_ports_named(policy: ConfigObject, mesh: Mesh) -> dict[int, ServicePort]:
    """Return the ports of a PeerAuthentication that are a Service's, where the pods' would count.

    ``portLevelMtls`` is by the pods' own ports (Istio: reference/config/security/
    peer_authentication).
    """
    selected = mesh.workload_selected(policy)
    front = [port for port in mesh.services if any(pod in selected for pod in mesh.selected(port))]
    own = {mesh.target_port(port) for port in front} | {
        number for pod in selected for number in pod.named_ports.values()
    }
    levels = mapping(policy.spec, "portLevelMtls")
    return {
        int(text): port
        for text in levels
        for port in front
        if str(text).isdigit() and port.port == int(text) and int(text) not in own
    }


def _misnumbered(policy: ConfigObject, ports: Iterable[int | None], mesh: Mesh) -> str:
    for number, service in service_ports_named(policy, mesh).items():
        if mesh.target_port(service) in set(ports):
            return (
                f" Its portLevelMtls names port {number}, which is the Service's; the pods' port "
                f"is {mesh.target_port(service)}."
            )
    return ""


@check("MNB404", Severity.ERROR, cause=Cause.DATA_PLANE)
def tls_client_of_plaintext_port(
    mesh: Mesh,
    symptoms: Symptoms,
    services: pd.DataFrame,
    access_log: pd.DataFrame,
    facts: Facts,
) -> Iterator[Finding]:
    """No application speaks TLS of its own to a port that is declared as plain text.

    The client's proxy cannot read the request and passes the bytes on; the server's proxy has no
    filter chain for TLS that is not Istio's, logs NR filter_chain_not_found and ends the
    connection.
    """
    for symptom in [s for s in symptoms if chain_missing(s)]:
        servers = mesh.pods_of(symptom.reporters)
        ports = {split_address(failure.local_address)[1] for failure in symptom.failures}
        said = any(map(spoke_tls, symptom.failures))
        clients = _tls_clients(mesh, symptoms, servers, access_log)
        strict = unseen(facts, "istio_config", "peerauthentications") or any(
            mesh.mtls_mode(pod, port)[0] == "STRICT" for pod in servers for port in ports
        )
        if not said and (strict or symptom.count < REPEATED):
            continue
        callers = callers_of(symptom, mesh)
        clients = clients or [(None, pod) for pod in callers if pod is not None]
        front = [
            service
            for service in mesh.services
            if mesh.target_port(service) in ports
            and any(pod in servers for pod in mesh.selected(service))
        ]
        offered = [Subject("Service", service.namespace, service.service) for service in front]
        guilty = list(dict.fromkeys(workload_of(pod) for _, pod in clients))
        subject = next(
            iter(guilty + offered),
            Subject("Pod", servers[0].namespace, servers[0].pod) if servers else None,
        )
        if subject is None:
            continue
        ends = [symptom, *(found for found, _ in clients if found is not None)]
        seen = list({s.id: s for s in ends}.values())
        declared = and_list(
            f"{s.port} ({s.port_name or 'unnamed'}, {s.protocol})" for s in front
        ) or and_list(map(str, sorted(port for port in ports if port is not None)))
        who = and_list(map(str, guilty)) or "A client"
        at = f"port {declared} of " if declared else ""
        called_at = and_list(map(str, offered)) or and_list(symptom.reporters)
        yield Finding(
            subject,
            f"{who} speaks TLS to {at}{called_at}, which expects plain text: "
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
            severity=Severity.INFO if symptom.count < REPEATED else None,
        )
