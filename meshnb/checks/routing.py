"""Checks of where routes lead: hosts, ports and names. Codes MNB200 to MNB209."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from typing import Any

import pandas as pd

from meshnb.checks.base import (
    Cause,
    Evidence,
    Finding,
    Severity,
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
from meshnb.symptoms import Symptom, Symptoms
from meshnb.symptoms.requests import split_address
from meshnb.tables import Facts
from meshnb.tables.base import dig, items, mapping
from meshnb.traces.mesh import ConfigObject, Mesh, host_matches, hosts_overlap, oldest
from meshnb.traces.rules import (
    GATEWAY_GROUP,
    admitted_hosts,
    bound_gateways,
    host_rank,
    reached_hosts,
    rule_host,
)
from meshnb.traces.servers import Server, routed, servers

__all__ = ["GATEWAY_GROUP", "destination_rules", "destinations", "for_hosts", "serves"]


def destinations(service: ConfigObject) -> Iterator[tuple[str, Mapping[str, Any], int | None]]:
    """Yield each destination of a VirtualService: its path in the object, itself, its weight.

    The weight is None where the destination is the only one, or is a mirror.
    """
    for protocol in ("http", "tls", "tcp"):
        for number, route in enumerate(items(service.spec, protocol)):
            for position, target in enumerate(items(route, "route")):
                weight = dig(target, "weight")
                yield (
                    f"spec.{protocol}[{number}].route[{position}].destination",
                    mapping(target, "destination"),
                    weight if isinstance(weight, int) else None,
                )
            if mapping(route, "mirror"):
                yield f"spec.{protocol}[{number}].mirror", mapping(route, "mirror"), None
            for position, mirror in enumerate(items(route, "mirrors")):
                yield (
                    f"spec.{protocol}[{number}].mirrors[{position}].destination",
                    mapping(mirror, "destination"),
                    None,
                )


def serves(gateway: ConfigObject, namespace: str, hosts: list[str]) -> bool:
    """Whether a Gateway admits any of these hosts from VirtualServices of a namespace."""
    return any(
        hosts_overlap(mine, other) for mine in hosts for other in admitted_hosts(gateway, namespace)
    )


def for_hosts(symptom: Symptom, hosts: list[str]) -> bool:
    """Whether a symptom is about one of these hosts, by destination or by authority."""
    authorities = {split_address(failure.authority)[0] for failure in symptom.failures}
    return any(
        host_matches(host, name)
        for host in hosts
        for name in ({symptom.host} | authorities)
        if name
    )


@check("MNB201", Severity.ERROR, cause=Cause.CONTROL_PLANE_CONFIG)
def route_to_unknown_host(
    mesh: Mesh, symptoms: Symptoms, istio_config: pd.DataFrame, routes: pd.DataFrame, facts: Facts
) -> Iterator[Finding]:
    """Every host that a route sends to is a Service or a ServiceEntry.

    istiod writes the route all the same, but can make no cluster for a host that it does not know.
    Envoy then answers 503 with flag NC (cluster_not_found), and the request never leaves the proxy.
    """
    if hosts_unseen(facts):
        return
    for service in mesh.of("VirtualService"):
        for path, target, weight in destinations(service):
            host = mesh.fqdn(str(dig(target, "host", default="")), service.namespace)
            if not host or mesh.known_host(host):
                continue
            seen = without_cluster(symptoms, service, path, mesh)
            close = get_close_matches(host, mesh.hosts, n=1, cutoff=0.7)
            hint = f" The nearest that exists is {close[0]}." if close else ""
            carried = rows_of(routes, virtual_service=f"{service.name}.{service.namespace}")
            yield Finding(
                subject_of(service),
                f"{service} sends requests for {and_list(items(service.spec, 'hosts'))} to host "
                f"{host} ({path}), which is no Service and no ServiceEntry.{hint}",
                f"Correct the host with {edit(subject_of(service))}, or create the Service.",
                evidence=(
                    *symptom_rows(facts, seen),
                    Evidence.of(carried),
                    config_rows(istio_config, service),
                ),
                explains=ids(seen),
                severity=Severity.INFO if weight == 0 or "mirror" in path else None,
            )


def hosts_unseen(facts: Facts) -> bool:
    """Whether there may be hosts that the source does not show."""
    return unseen(facts, "services", "services") or unseen(facts, "istio_config", "serviceentries")


def destination_rules(mesh: Mesh, host: str) -> list[ConfigObject]:
    """Return the DestinationRules that are in force for a host, the oldest first.

    Those whose own host covers it; of one namespace, only those with the most specific host, as
    istiod takes no other there.
    """
    covering: dict[str, list[tuple[str, ConfigObject]]] = {}
    for rule in mesh.of("DestinationRule"):
        own = rule_host(rule, mesh)
        if host_matches(own, host):
            covering.setdefault(rule.namespace, []).append((own, rule))

    return oldest(
        rule
        for rules in covering.values()
        for own, rule in rules
        if host_rank(own) == max(host_rank(other) for other, _ in rules)
    )


@check("MNB202", Severity.ERROR, cause=Cause.CONTROL_PLANE_CONFIG)
def route_to_missing_port(
    mesh: Mesh, symptoms: Symptoms, istio_config: pd.DataFrame, routes: pd.DataFrame, facts: Facts
) -> Iterator[Finding]:
    """Every port that a route sends to is a port of the destination.

    There is a cluster per port of a Service. For another port there is none: Envoy answers 503 with
    flag NC (cluster_not_found). A destination without a port is the port that the request came to,
    unless the Service has only one.
    """
    if hosts_unseen(facts):
        return
    every = servers(mesh)
    for service in mesh.of("VirtualService"):
        for path, target, weight in destinations(service):
            host = mesh.fqdn(str(dig(target, "host", default="")), service.namespace)
            ports = host_ports(host, mesh)
            number = dig(target, "port", "number")
            if not ports or number in ports:
                continue
            wanted = [number] if isinstance(number, int) else []
            if number is None and len(ports) > 1:
                wanted = [port for port in _arriving(service, every, mesh) if port not in ports]
            if not wanted:
                continue
            seen = without_cluster(symptoms, service, path, mesh)
            carried = rows_of(routes, virtual_service=f"{service.name}.{service.namespace}")
            how = (
                f"port {and_list(wanted)} of {host} ({path}.port)"
                if number is not None
                else f"{host} without a port ({path}), so to port {and_list(wanted)} that they "
                "came to"
            )
            certain = number is not None or bool(seen)
            yield Finding(
                subject_of(service),
                f"{service} sends requests for {and_list(reached_hosts(service, mesh))} to {how}; "
                f"{host} has {and_list(sorted(ports))}.",
                f"Name a port that exists with {edit(subject_of(service))}.",
                evidence=(
                    *symptom_rows(facts, seen),
                    Evidence.of(carried),
                    config_rows(istio_config, service),
                ),
                explains=ids(seen),
                severity=Severity.INFO
                if weight == 0 or "mirror" in path
                else None
                if certain
                else Severity.WARNING,
            )


def host_ports(host: str, mesh: Mesh) -> set[int]:
    """Return the ports of a host, as its Service or its ServiceEntries define them."""
    found = {port.port for port in mesh.ports(host) if port.port is not None}
    for entry in mesh.of("ServiceEntry"):
        if any(host_matches(str(own), host) for own in items(entry.spec, "hosts")):
            numbers = (dig(port, "number") for port in items(entry.spec, "ports"))
            found |= {number for number in numbers if isinstance(number, int)}
    return found


def _arriving(service: ConfigObject, every: list[Server], mesh: Mesh) -> list[int]:
    """Return the ports on which requests come to a VirtualService."""
    bound = bound_gateways(service)
    ports = {
        server.port
        for server in every
        if f"{server.gateway.namespace}/{server.gateway.name}" in bound
        and server.pods
        and routed(server, service, mesh)
    }
    if "mesh" in bound:
        ports |= {port for host in reached_hosts(service, mesh) for port in host_ports(host, mesh)}
    return sorted(port for port in ports if port is not None)


def without_cluster(
    symptoms: Symptoms, service: ConfigObject, path: str, mesh: Mesh
) -> list[Symptom]:
    """Return the requests to a VirtualService that were sent to a cluster that does not exist."""
    if "mirror" in path:
        return []  # what becomes of a copy, no caller sees
    hosts = reached_hosts(service, mesh)
    return [s for s in symptoms if "NC" in s.flags and for_hosts(s, hosts)]


@check("MNB203", Severity.WARNING, cause=Cause.CONTROL_PLANE_CONFIG)
def routes_for_unknown_host(
    mesh: Mesh, istio_config: pd.DataFrame, services: pd.DataFrame, facts: Facts
) -> Iterator[Finding]:
    """Every VirtualService inside the mesh is for a name by which a Service is called.

    A host without a dot is a Service of the VirtualService's own namespace, and a host with a dot
    is taken as it stands. Routes for a name that no Service has are used by nobody: requests go
    their usual way, and succeed.
    """
    if hosts_unseen(facts):
        return
    for service in mesh.of("VirtualService"):
        if "mesh" not in bound_gateways(service):
            continue
        for number, written in enumerate(map(str, items(service.spec, "hosts"))):
            host = mesh.fqdn(written, service.namespace)
            meant = _meant(written, host, mesh)
            if (
                mesh.known_host(host)
                or "*" in host
                or not (meant or host.endswith(".svc.cluster.local"))
            ):
                continue
            hint = f" There is {and_list(meant)}." if meant else ""
            rows = services[services["host"].isin(meant)]
            yield Finding(
                subject_of(service),
                f"{service} is for host {host} (spec.hosts[{number}]: {written}), which is no "
                f"Service and no ServiceEntry, so nobody uses its routes.{hint}",
                f"Write the full name of the Service with {edit(subject_of(service))}.",
                evidence=(config_rows(istio_config, service), Evidence.of(services, rows.index)),
            )


def _meant(written: str, host: str, mesh: Mesh) -> list[str]:
    """Return the Services that somebody who wrote a host may have meant."""
    short = written.partition(".")[0]
    same = sorted(
        port.host
        for port in mesh.services
        if port.service == short and (port.host.startswith(f"{written}.") or "." not in written)
    )
    return list(dict.fromkeys(same)) or get_close_matches(
        host, [port.host for port in mesh.services], n=1, cutoff=0.85
    )


def latest(*objects: ConfigObject) -> ConfigObject:
    """Return the object that was changed last; of those changed at once, the youngest."""
    return max(objects, key=lambda item: (item.changed, item.created))


def nearly(host: str, hosts: Iterable[str]) -> str:
    """Return the host that another one is a slip of the pen for; empty when none is that near.

    All parts between the dots are the same but one, and that one is nearly the same: long enough to
    tell a slip from another name, and not just another number.
    """
    parts = host.split(".")
    for other in hosts:
        theirs = other.split(".")
        differ = [(a, b) for a, b in zip(parts, theirs, strict=False) if a != b]
        if len(parts) != len(theirs) or len(differ) != 1:
            continue
        one, two = differ[0]
        plain = [re.sub(r"\d", "", part) for part in (one, two)]
        if (
            min(map(len, plain)) >= _TELLING
            and plain[0] != plain[1]
            and get_close_matches(one, [two], n=1, cutoff=0.8)
        ):
            return other
    return ""


#: A part of a host of fewer letters may differ in one of them on purpose, such as api and app.
_TELLING = 5
