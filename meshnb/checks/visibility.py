"""Checks of what is hidden from other namespaces by exportTo. Codes MNB640 to MNB649."""

from __future__ import annotations

import re
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
)
from meshnb.checks.routing import destinations, for_hosts
from meshnb.symptoms import Symptom, Symptoms
from meshnb.symptoms.requests import split_address
from meshnb.tables import Facts
from meshnb.tables.base import dig, items
from meshnb.traces.mesh import Mesh, host_matches, plain
from meshnb.traces.rules import route_hosts

_ANNOTATION = "networking.istio.io/exportTo"


def _without_route(symptom: Symptom) -> bool:
    """Whether a caller's proxy did not know the host, and blocked it or passed the bytes on."""
    if symptom.side not in ("client", "gateway"):
        return False
    if symptom.route_name == "block_all" or symptom.cluster == "BlackHoleCluster":
        return True
    if "NC" in symptom.flags:
        return True  # a route leads to a cluster that the proxy was not given
    unknown = symptom.cluster in ("", "-", "PassthroughCluster")
    return unknown and (bool({"NR", "NC", "UF", "UC", "UH"} & symptom.flags) or symptom.code == 502)


def _entries(text: str, default: str, namespace: str) -> set[str]:
    listed = [one.strip() for one in text.split(",") if one.strip()]
    listed = listed or re.findall(r'"([^"]*)"', default) or ["*"]
    return {namespace if one == "." else one for one in listed}


@check("MNB640", Severity.ERROR, cause=Cause.CONTROL_PLANE_CONFIG)
def host_not_exported(
    mesh: Mesh,
    symptoms: Symptoms,
    services: pd.DataFrame,
    access_log: pd.DataFrame,
    istio_config: pd.DataFrame,
    facts: Facts,
) -> Iterator[Finding]:
    """Every host that a workload calls is exported to its namespace.

    exportTo of a ServiceEntry, the annotation of the same name on a Service, or the mesh's default
    keeps them from the proxies of other namespaces: these have neither route nor cluster for the
    host, while those of its own namespace reach it.
    """
    found: dict[Subject, tuple[list[Symptom], Evidence, set[str], str]] = {}
    hosts_of: dict[Subject, dict[str, None]] = {}
    for symptom in symptoms:
        if not symptom.host or not _without_route(symptom):
            continue
        callers = {pod.namespace for pod in mesh.pods_of(symptom.reporters)}
        asked = [symptom.host, *(_routed_to(symptom, mesh) if "NC" in symptom.flags else ())]
        for host in dict.fromkeys(asked):
            hidden = _hidden(host, callers, mesh, services, istio_config)
            for subject, proof, scope, how in hidden:
                seen, *_ = found.setdefault(subject, ([], proof, scope, how))
                hosts_of.setdefault(subject, {})[host] = None
                seen.append(symptom)
    quiet: dict[Subject, list[tuple[int, str, str]]] = {}
    for index, host, caller in _passed_on(access_log, mesh):
        for subject, proof, scope, how in _hidden(host, {caller}, mesh, services, istio_config):
            found.setdefault(subject, ([], proof, scope, how))
            quiet.setdefault(subject, []).append((index, host, caller))
    for subject, (seen, proof, scope, how) in found.items():
        passed = quiet.get(subject, [])
        callers = {pod.namespace for s in seen for pod in mesh.pods_of(s.reporters)}
        callers |= {caller for _, _, caller in passed}
        hosts = dict.fromkeys([*hosts_of.get(subject, ()), *(host for _, host, _ in passed)])
        to = and_list(sorted(scope - {"~"})) or "nobody"
        yield Finding(
            subject,
            f"{subject} exports {and_list(hosts)} to {to} only, and it is called "
            f"from {and_list(sorted(callers))}: the proxies there do not know it.",
            f"Add {and_list(sorted(callers))} to {how} with {edit(subject)}.",
            evidence=(
                *symptom_rows(facts, seen),
                proof,
                Evidence.of(access_log, [index for index, _, _ in passed][-5:]),
            ),
            explains=ids(seen),
            severity=None if seen else Severity.WARNING,
        )


def _routed_to(symptom: Symptom, mesh: Mesh) -> Iterator[str]:
    """Yield the hosts that VirtualServices send requests for the symptom's host to."""
    for service in mesh.of("VirtualService"):
        if for_hosts(symptom, route_hosts(service, mesh)):
            for _, target, _ in destinations(service):
                yield mesh.fqdn(str(dig(target, "host", default="")), service.namespace)


def _hidden(
    host: str, callers: set[str], mesh: Mesh, services: pd.DataFrame, istio_config: pd.DataFrame
) -> Iterator[tuple[Subject, Evidence, set[str], str]]:
    """Yield the objects that define a host and are hidden from all who called it."""
    default = mesh.settings.get("defaultServiceExportTo", "")
    for namespace, name in dict.fromkeys(
        (port.namespace, port.service) for port in mesh.ports(host)
    ):
        rows = rows_of(services, namespace=namespace, service=name)
        said = plain(rows["export_to"].iloc[0]) if len(rows) else None
        text = ",".join(said) if isinstance(said, tuple | list) else str(said or "")
        scope = _entries(text, default, namespace)
        if "*" not in scope and not callers & scope and callers:
            subject = (
                Subject("Service", namespace, name)
                if text
                else Subject("ConfigMap", mesh.root_namespace or "istio-system", "istio")
            )
            how = f"the annotation {_ANNOTATION}" if text else "defaultServiceExportTo"
            yield subject, Evidence.of(rows), scope, how
    for entry in mesh.of("ServiceEntry"):
        if not any(host_matches(str(one), host) for one in items(entry.spec, "hosts")):
            continue
        scope = _entries(
            ",".join(map(str, items(entry.spec, "exportTo"))), default, entry.namespace
        )
        if "*" not in scope and not callers & scope and callers:
            yield subject_of(entry), config_rows(istio_config, entry), scope, "spec.exportTo"


def _passed_on(access_log: pd.DataFrame, mesh: Mesh) -> Iterator[tuple[int, str, str]]:
    """Yield the rows of connections to Services that a proxy passed on, with host and caller."""
    rows = rows_of(access_log, cluster="PassthroughCluster")
    for index, local, namespace in zip(
        rows.index.tolist(), rows["downstream_local_address"], rows["namespace"], strict=True
    ):
        service = mesh.service_at(*split_address(plain(local) or ""))
        if service is not None:
            yield index, service.host, str(namespace)
