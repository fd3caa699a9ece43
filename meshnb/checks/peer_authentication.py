"""Checks of PeerAuthentications: which counts, and for which port. Codes MNB430 to MNB439."""

from __future__ import annotations

from collections.abc import Iterator

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
)
from meshnb.checks.misses import near_labels
from meshnb.checks.mtls import answered_plainly, chain_missing, service_ports_named
from meshnb.symptoms import Symptoms
from meshnb.symptoms.requests import split_address
from meshnb.tables import Facts
from meshnb.tables.base import dig
from meshnb.traces.mesh import ConfigObject, Mesh, Pod, ServicePort, oldest
from meshnb.traces.rules import rules_for_pod, workload_labels


@check("MNB430", Severity.WARNING, cause=Cause.CONTROL_PLANE_CONFIG)
def port_level_names_service_port(
    mesh: Mesh, symptoms: Symptoms, istio_config: pd.DataFrame, services: pd.DataFrame, facts: Facts
) -> Iterator[Finding]:
    """Every port-level mode of a PeerAuthentication is for a port of the pods.

    portLevelMtls is by the port that the pods listen on. The number of the Service's port has no
    effect there, so that the port keeps the mode of the whole workload: it is cut off, or open,
    against what was meant.
    """
    for policy in mesh.of("PeerAuthentication"):
        for number, service in service_ports_named(policy, mesh).items():
            target = mesh.target_port(service)
            servers = [pod for pod in mesh.selected(service) if pod.mesh == "sidecar"]
            modes = {mesh.mtls_mode(pod, target)[0] for pod in servers}
            wanted = str(dig(policy.spec, "portLevelMtls", str(number), "mode"))
            if not servers or modes == {wanted}:
                continue
            workloads = {(pod.namespace, pod.workload) for pod in servers}
            seen = [
                s
                for s in symptoms
                if chain_missing(s)
                and s.workload in workloads
                and target in {split_address(one.local_address)[1] for one in s.failures}
            ]
            offered = Subject("Service", service.namespace, service.service)
            yield Finding(
                subject_of(policy),
                f"{policy} sets {wanted} for port {number}, which is the port of {offered}; the "
                f"pods listen on {target}, where {and_list(sorted(modes))} stays in force.",
                f"Name port {target} in portLevelMtls with {edit(subject_of(policy))}.",
                evidence=(
                    *symptom_rows(facts, seen),
                    config_rows(istio_config, policy),
                    Evidence.of(
                        rows_of(services, namespace=service.namespace, service=service.service)
                    ),
                ),
                related=(offered,),
                explains=ids(seen),
                severity=Severity.ERROR if seen else None,
                path=f"spec.portLevelMtls.{number}",
            )


@check("MNB431", Severity.WARNING, cause=Cause.CONTROL_PLANE_CONFIG)
def peer_authentication_without_effect(
    mesh: Mesh, istio_config: pd.DataFrame, facts: Facts
) -> Iterator[Finding]:
    """Every PeerAuthentication is the one that counts in its scope, and has pods.

    Of two for the same namespace, or the same pods, istiod takes the oldest. In the root namespace
    one with a selector has no effect, and elsewhere a selector finds pods of its own namespace
    only.
    """
    policies = list(mesh.of("PeerAuthentication"))
    for policy in policies:
        labels = dict(workload_labels(policy))
        older = next(
            (
                other
                for other in oldest(policies)
                if other.namespace == policy.namespace and dict(workload_labels(other)) == labels
            ),
            policy,
        )
        if older is not policy:
            same = _modes(older) == _modes(policy)
            yield Finding(
                subject_of(policy),
                f"{policy} has no effect: {older} is older and is for the same pods."
                + ("" if same else f" It wants {_modes(policy)}, in force is {_modes(older)}."),
                "Keep one of them: compare them with `kubectl get peerauthentications -n "
                f"{policy.namespace} -o yaml`, and delete the other.",
                evidence=(config_rows(istio_config, older, policy),),
                related=(subject_of(older),),
                severity=Severity.INFO if same else None,
            )
        elif labels and policy.namespace == mesh.root_namespace:
            yield Finding(
                subject_of(policy),
                f"{policy} has no effect: it stands in the root namespace and has a selector.",
                "Move it to the namespace of the pods, or take the selector out with "
                f"{edit(subject_of(policy))}.",
                evidence=(config_rows(istio_config, policy),),
            )
        elif labels and not mesh.matching(labels, policy.namespace):
            if unseen(facts, "pods", "pods"):
                continue
            meant = near_labels(mesh, labels, policy.namespace)
            yield Finding(
                subject_of(policy),
                f"{policy} is for pods with "
                f"{and_list(f'{key}={value}' for key, value in labels.items())}, and its namespace "
                f"has none{meant}.",
                f"Correct spec.selector.matchLabels with {edit(subject_of(policy))}.",
                evidence=(config_rows(istio_config, policy),),
                severity=None if meant else Severity.INFO,
            )


def _modes(policy: ConfigObject) -> str:
    mode = str(dig(policy.spec, "mtls", "mode", default="UNSET"))
    levels = dig(policy.spec, "portLevelMtls", default={})
    ports = [
        f"{port} {dig(level, 'mode', default='UNSET')}"
        for port, level in (levels.items() if isinstance(levels, dict) else ())
    ]
    return f"{mode} ({and_list(sorted(ports))})" if ports else mode


@check("MNB432", Severity.ERROR, cause=Cause.CONTROL_PLANE_CONFIG)
def tls_to_disabled_port(
    mesh: Mesh, symptoms: Symptoms, istio_config: pd.DataFrame, facts: Facts
) -> Iterator[Finding]:
    """No PeerAuthentication turns mutual TLS off where callers have to speak it.

    Callers take TLS up or leave it by what istiod knows of the endpoint. Where that lags behind, or
    a headless Service has them dial pods, they begin TLS at a port that expects plain text:
    WRONG_VERSION_NUMBER, 503 with flag UF.
    """
    found: dict[ConfigObject, list[str]] = {}
    hosts: dict[ConfigObject, list[str]] = {}
    for symptom in symptoms:
        if not answered_plainly(symptom):
            continue
        clients = mesh.pods_of(symptom.reporters)
        if any(rules_for_pod(symptom.host, pod, mesh) for pod in clients):
            continue  # the rule that says so is at fault
        for service, pod in _servers(mesh, symptom.host, symptom.port):
            mode, policy = mesh.mtls_mode(pod, mesh.target_port(service))
            if mode == "DISABLE" and policy is not None and pod.mesh == "sidecar":
                found.setdefault(policy, []).append(symptom.id)
                hosts.setdefault(policy, []).append(symptom.host)
    for policy, explained in found.items():
        wanted = set(explained)
        seen = [symptom for symptom in symptoms if symptom.id in wanted]
        yield Finding(
            subject_of(policy),
            f"{policy} turns mutual TLS off for {and_list(hosts[policy])}, and callers' proxies go "
            "on to speak it.",
            "Allow both with PERMISSIVE, or turn TLS off for the callers, too, with a "
            f"DestinationRule: {edit(subject_of(policy))}.",
            evidence=(*symptom_rows(facts, seen), config_rows(istio_config, policy)),
            explains=ids(seen),
        )


def _servers(mesh: Mesh, host: str, port: int | None) -> Iterator[tuple[ServicePort, Pod]]:
    for service in mesh.ports(host):
        if service.port == port:
            for pod in mesh.selected(service):
                yield service, pod
