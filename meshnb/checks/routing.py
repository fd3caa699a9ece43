"""Checks of routing: VirtualServices, DestinationRules and Sidecars. Codes MNB200 to MNB249."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
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
)
from meshnb.symptoms import Symptom, Symptoms
from meshnb.symptoms.base import REPEATED
from meshnb.symptoms.requests import split_address
from meshnb.tables import Facts
from meshnb.tables.base import dig, items, mapping
from meshnb.traces.mesh import ConfigObject, Mesh, host_matches, hosts_overlap, oldest
from meshnb.traces.rules import (
    admitted_hosts,
    bound_gateways,
    covered_by,
    host_rank,
    route_hosts,
    rule_host,
    sidecar_of,
)

#: The group of Istio's own Gateway kind; the Gateway API has a kind of the same name.
GATEWAY_GROUP = "networking.istio.io"


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
    if _hosts_unseen(facts):
        return
    for service in mesh.of("VirtualService"):
        for path, target, weight in destinations(service):
            host = mesh.fqdn(str(dig(target, "host", default="")), service.namespace)
            if not host or mesh.known_host(host):
                continue
            seen = (
                []
                if "mirror" in path
                else [
                    s
                    for s in symptoms
                    if "NC" in s.flags and for_hosts(s, route_hosts(service, mesh))
                ]
            )
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


def _hosts_unseen(facts: Facts) -> bool:
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


@check("MNB210", Severity.ERROR, cause=Cause.CONTROL_PLANE_CONFIG)
def route_to_missing_subset(
    mesh: Mesh, symptoms: Symptoms, istio_config: pd.DataFrame, routes: pd.DataFrame, facts: Facts
) -> Iterator[Finding]:
    """Every subset that a route sends to is defined by a DestinationRule.

    A subset is a cluster of its own. When no DestinationRule defines it, the proxies get the route
    without the cluster, and answer 503 with flag NC (cluster_not_found) themselves.
    """
    for service in mesh.of("VirtualService"):
        for path, target, weight in destinations(service):
            subset = str(dig(target, "subset", default=""))
            host = mesh.fqdn(str(dig(target, "host", default="")), service.namespace)
            if not subset or not (mesh.known_host(host) or _hosts_unseen(facts)):
                continue
            rules = destination_rules(mesh, host)
            defined = {
                str(dig(entry, "name")) for rule in rules for entry in items(rule.spec, "subsets")
            }
            if subset in defined:
                continue
            seen = (
                []
                if "mirror" in path
                else [
                    s
                    for s in symptoms
                    if "NC" in s.flags and for_hosts(s, route_hosts(service, mesh))
                ]
            )
            if not seen and unseen(facts, "istio_config", "destinationrules"):
                continue
            share = f"{weight} % of" if weight is not None else "all"
            known = f" Defined are {and_list(sorted(defined))}." if defined else ""
            where = f"by {and_list(str(rule) for rule in rules)}" if rules else "anywhere"
            carried = rows_of(routes, virtual_service=f"{service.name}.{service.namespace}")
            yield Finding(
                subject_of(service),
                f"{service} sends {share} its matching requests to subset {subset} of {host} "
                f"({path}), which is not defined {where}.{known}",
                f"Name a subset that exists with {edit(subject_of(service))}, or define {subset}"
                + (f" with {edit(subject_of(rules[0]))}." if rules else " in a DestinationRule."),
                evidence=(
                    *symptom_rows(facts, seen),
                    Evidence.of(carried),
                    config_rows(istio_config, service, *rules),
                ),
                related=tuple(subject_of(rule) for rule in rules),
                explains=ids(seen),
                severity=Severity.INFO if weight == 0 or "mirror" in path else None,
            )


@check("MNB211", Severity.ERROR, cause=Cause.CONTROL_PLANE_CONFIG)
def subset_without_pods(
    mesh: Mesh,
    symptoms: Symptoms,
    istio_config: pd.DataFrame,
    endpoints: pd.DataFrame,
    facts: Facts,
) -> Iterator[Finding]:
    """Every subset in use has labels that select pods of its Service.

    A subset's endpoints are the Service's endpoints that carry its labels. When none does, its
    cluster is empty, and Envoy answers 503 with flag UH (no_healthy_upstream).
    """
    used = {
        (
            mesh.fqdn(str(dig(target, "host", default="")), service.namespace),
            str(dig(target, "subset")),
        )
        for service in mesh.of("VirtualService")
        for _, target, weight in destinations(service)
        if weight != 0
    }
    for rule in mesh.of("DestinationRule"):
        host = rule_host(rule, mesh)
        ports = mesh.ports(host)
        if not ports or not ports[0].selector:
            continue
        behind = mesh.selected(ports[0])
        for position, subset in enumerate(items(rule.spec, "subsets")):
            name, labels = str(dig(subset, "name", default="")), mapping(subset, "labels")
            if not behind or any(labels.items() <= pod.labels.items() for pod in behind):
                continue
            seen = [s for s in symptoms if "UH" in s.flags and f"|{name}|{host}" in s.cluster]
            values = sorted(
                {
                    f"{key}={pod.labels.get(key)}"
                    for pod in behind
                    for key in labels
                    if key in pod.labels
                }
            )
            have = f"they have {and_list(values)}" if values else "they have no such label"
            in_use = (host, name) in used
            yield Finding(
                subject_of(rule),
                f"Subset {name} of {rule} selects {_labels(labels)}, and none of the {len(behind)} "
                f"pods of {host} carries that: {have} (spec.subsets[{position}].labels).",
                f"Correct the labels with {edit(subject_of(rule))}, or deploy pods that carry "
                "them.",
                evidence=(
                    *symptom_rows(facts, seen),
                    Evidence.of(rows_of(endpoints, cluster=f"outbound|{ports[0].port}||{host}")),
                    config_rows(istio_config, rule),
                ),
                explains=ids(seen),
                severity=None if seen else Severity.WARNING if in_use else Severity.INFO,
            )


def _labels(labels: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in labels.items())


@check("MNB220", Severity.WARNING, cause=Cause.CONTROL_PLANE_CONFIG)
def unreachable_route(mesh: Mesh, istio_config: pd.DataFrame) -> Iterator[Finding]:
    """Every route of a VirtualService can be reached.

    Envoy takes the first route that matches. A route that stands below one which matches everything
    it matches is never taken: its requests succeed, but go elsewhere than somebody meant.
    """
    for service in mesh.of("VirtualService"):
        routes = items(service.spec, "http")
        for later, route in enumerate(routes):
            earlier = covered_by(service, later)
            if earlier is None:
                continue
            yield Finding(
                subject_of(service),
                f"Route {later} of {service} ({_match(route)}) is never taken: route {earlier} "
                f"above it ({_match(routes[earlier])}) matches everything that it matches.",
                "Move the more specific route above the more general one with "
                f"{edit(subject_of(service))}.",
                evidence=(config_rows(istio_config, service),),
            )


def _match(route: Any) -> str:
    matches = items(route, "match")
    return (
        "match " + json.dumps(matches, sort_keys=True) if matches else "no match, so all requests"
    )


@check("MNB221", Severity.ERROR, cause=Cause.CONTROL_PLANE_CONFIG)
def duplicate_virtual_service(mesh: Mesh, istio_config: pd.DataFrame) -> Iterator[Finding]:
    """For each host inside the mesh, one VirtualService decides.

    VirtualServices for the same host are merged at gateways only. For sidecars the oldest one is
    used and the others are ignored, without an error anywhere.
    """
    owners: dict[str, list[ConfigObject]] = {}
    for service in mesh.of("VirtualService"):
        if "mesh" in bound_gateways(service) and items(service.spec, "http"):
            for host in dict.fromkeys(route_hosts(service, mesh)):
                owners.setdefault(host, []).append(service)
    reported: set[ConfigObject | tuple[str, str]] = set()
    for host, services in owners.items():
        first, *ignored = oldest(services)
        for service in ignored:
            pair = (str(first), str(service))
            if pair in reported or not _shadows(first, service, mesh):
                continue
            reported.add(pair)
            yield Finding(
                subject_of(service),
                f"{service} has no effect on sidecars: the older {first} defines host {host} too, "
                "and only the oldest is used.",
                f"Move its routes into the older one with {edit(subject_of(first))}, and delete "
                "it.",
                evidence=(config_rows(istio_config, first, service),),
                related=(subject_of(first),),
            )


def _shadows(older: ConfigObject, newer: ConfigObject, mesh: Mesh) -> bool:
    """Whether an older VirtualService leaves a newer one for the same host without effect.

    That is so when it is visible wherever the newer one is. One that is exported to chosen
    namespaces comes before one that is exported to all (istiod's VirtualServicesForGateway), so
    such a pair shares the mesh.
    """
    default = mesh.settings.get("defaultVirtualServiceExportTo", "")

    def scope(item: ConfigObject) -> set[str]:
        entries = items(item.spec, "exportTo") or re.findall(r'"([^"]*)"', default) or ["*"]
        return {item.namespace if entry == "." else str(entry) for entry in entries}

    first, second = scope(older), scope(newer)
    return ("*" in first) == ("*" in second) and ("*" in first or second <= first)


@check("MNB230", Severity.ERROR, cause=Cause.CONTROL_PLANE_CONFIG)
def injected_fault(
    mesh: Mesh, symptoms: Symptoms, istio_config: pd.DataFrame, facts: Facts
) -> Iterator[Finding]:
    """No route injects faults into requests.

    A fault in a VirtualService delays or aborts requests in the caller's own proxy, with flags DI
    and FI. It is a tool for tests, and easily left behind.
    """
    for service in mesh.of("VirtualService"):
        for number, route in enumerate(items(service.spec, "http")):
            parts = {
                kind: part
                for kind in ("abort", "delay")
                if (part := mapping(route, "fault", kind)) and _share(part) > 0
            }
            if not parts:
                continue
            hosts = route_hosts(service, mesh)
            flags = {{"abort": "FI", "delay": "DI"}[kind] for kind in parts}
            seen = [s for s in symptoms if bool(flags & s.flags) and for_hosts(s, hosts)]
            words = " and ".join(
                f"{kind}s {_share(part):g} % of the requests"
                + (f" with {dig(part, 'httpStatus')}" if dig(part, "httpStatus") else "")
                + (f" by {dig(part, 'fixedDelay')}" if dig(part, "fixedDelay") else "")
                for kind, part in parts.items()
            )
            limited = bool(items(route, "match"))
            yield Finding(
                subject_of(service),
                f"{service} {words} for {and_list(items(service.spec, 'hosts'))}"
                + (" that match" if limited else "")
                + f" (spec.http[{number}].fault).",
                f"Take the fault out with {edit(subject_of(service))}.",
                evidence=(*symptom_rows(facts, seen), config_rows(istio_config, service)),
                explains=ids(seen),
                severity=None if seen else Severity.INFO if limited else Severity.WARNING,
            )


def _share(part: Mapping[str, Any]) -> float:
    value = dig(part, "percentage", "value")
    if not isinstance(value, int | float):
        value = dig(part, "percent")
    return float(value) if isinstance(value, int | float) else 100.0


def _admits(item: ConfigObject, host: str, namespace: str) -> bool:
    """Whether a Sidecar's egress lists a host of a namespace."""
    listeners = items(item.spec, "egress")
    if not listeners:
        return True
    for entry in (str(entry) for listener in listeners for entry in items(listener, "hosts")):
        scope, _, pattern = entry.rpartition("/")
        if scope == ".":
            scope = item.namespace
        if scope in ("*", namespace, "") and host_matches(pattern, host):
            return True
    return False


def _blocked(symptom: Symptom) -> bool:
    return symptom.side in ("client", "gateway") and (
        symptom.cluster == "BlackHoleCluster"
        or (symptom.details == "direct_response" and symptom.route_name == "block_all")
    )


@check("MNB231", Severity.ERROR, cause=Cause.CONTROL_PLANE_CONFIG)
def hidden_host(
    mesh: Mesh,
    symptoms: Symptoms,
    istio_config: pd.DataFrame,
    clusters: pd.DataFrame,
    facts: Facts,
) -> Iterator[Finding]:
    """Every host that a workload calls is within its Sidecar's egress scope.

    A Sidecar object narrows what istiod sends to the proxies that it selects. A host outside of it
    has neither route nor cluster there: with REGISTRY_ONLY the proxy answers 502, with ALLOW_ANY it
    passes the bytes on without policy, telemetry or mutual TLS.
    """
    found: dict[tuple[ConfigObject, str], list[Symptom]] = {}
    for symptom in symptoms:
        passed = symptom.cluster == "PassthroughCluster" and symptom.side == "client"
        ports = mesh.ports(symptom.host)
        if not ports or not (_blocked(symptom) or passed):
            continue
        for pod in mesh.pods:
            if pod.proxy not in symptom.reporters:
                continue
            item = sidecar_of(pod, mesh)
            if item is not None and not _admits(item, symptom.host, ports[0].namespace):
                found.setdefault((item, symptom.host), []).append(symptom)
    grouped: dict[ConfigObject, dict[str, list[Symptom]]] = {}
    for (item, host), seen in found.items():
        grouped.setdefault(item, {})[host] = seen
    for item, by_host in grouped.items():
        seen = list({s.id: s for group in by_host.values() for s in group}.values())
        callers = and_list(reporter for s in seen for reporter in s.reporters)
        wanted = and_list(f"{mesh.ports(host)[0].namespace}/{host}" for host in by_host)
        yield Finding(
            subject_of(item),
            f"{item} hides {and_list(by_host)} from {callers}: spec.egress.hosts does not list it, "
            "so their proxies have no route to it.",
            f"Add {wanted} to spec.egress.hosts with {edit(subject_of(item))}.",
            evidence=(
                *symptom_rows(facts, seen),
                Evidence.of(rows_of(clusters, service_fqdn=next(iter(by_host)))),
                config_rows(istio_config, item),
            ),
            explains=ids(seen),
        )


@check("MNB232", Severity.ERROR, cause=Cause.CONTROL_PLANE_CONFIG)
def blocked_external_host(
    mesh: Mesh,
    symptoms: Symptoms,
    istio_config: pd.DataFrame,
    mesh_settings: pd.DataFrame,
    facts: Facts,
) -> Iterator[Finding]:
    """Every external host that is called is registered where only registered ones are allowed.

    With outboundTrafficPolicy REGISTRY_ONLY a proxy answers 502 for a host that is no Service and
    no ServiceEntry, or ends the connection in the BlackHoleCluster.
    """
    for symptom in symptoms:
        if not _blocked(symptom) or mesh.known_host(symptom.host):
            continue
        if _hosts_unseen(facts):
            continue
        pods = mesh.pods_of(symptom.reporters)
        item = next((found for pod in pods if (found := sidecar_of(pod, mesh))), None)
        by_sidecar = item is not None and bool(dig(item.spec, "outboundTrafficPolicy", "mode"))
        namespace = next(iter(sorted(mesh.control_plane_namespaces)), "")
        subject = (
            subject_of(item)
            if item is not None and by_sidecar
            else Subject("ConfigMap", namespace, "istio")
        )
        host = symptom.host or and_list(failure.local_address for failure in symptom.failures)
        proof = (
            config_rows(istio_config, item)
            if item is not None and by_sidecar
            else Evidence.of(rows_of(mesh_settings, setting="outboundTrafficPolicy.mode"))
        )
        yield Finding(
            subject,
            f"{and_list(symptom.reporters)} may not call {host}: the outbound traffic policy of "
            f"{subject} is REGISTRY_ONLY, and {host} is no Service and no ServiceEntry.",
            f"Register {host} with a ServiceEntry, or allow it with {edit(subject)}.",
            evidence=(*symptom_rows(facts, [symptom]), proof),
            explains=ids([symptom]),
            severity=Severity.INFO if symptom.count < REPEATED else None,
        )


@check("MNB233", Severity.ERROR, cause=Cause.CONTROL_PLANE_CONFIG)
def no_route_matches(
    mesh: Mesh, symptoms: Symptoms, istio_config: pd.DataFrame, facts: Facts
) -> Iterator[Finding]:
    """Every request to a host with routes matches one of them.

    When a VirtualService has only routes with conditions, a request that meets none of them gets
    404 with flag NR (route_not_found) from the caller's own proxy or from the gateway.
    """
    existing = {
        f"{gateway.namespace}/{gateway.name}": gateway
        for gateway in mesh.of("Gateway", GATEWAY_GROUP)
    }
    for service in mesh.of("VirtualService"):
        routes = items(service.spec, "http")
        bound = bound_gateways(service)
        if not routes or any(not items(route, "match") for route in routes):
            continue
        at_gateways = [existing[name] for name in bound if name in existing]
        if "mesh" not in bound and not any(
            mesh.matching(mapping(gateway.spec, "selector"), None)
            and serves(gateway, service.namespace, route_hosts(service, mesh))
            for gateway in at_gateways
        ):
            continue
        seen = [
            s
            for s in symptoms
            if "NR" in s.flags
            and s.kind == "request"
            and s.worked_before
            and for_hosts(s, route_hosts(service, mesh))
        ]
        if not seen:
            continue
        paths = and_list(dict.fromkeys(f.path for s in seen for f in s.failures))
        yield Finding(
            subject_of(service),
            f"No route of {service} matches requests for {paths}: each of its routes has "
            f"conditions ({len(routes)} in all), and they meet none of them.",
            f"Add a route without a match at the end with {edit(subject_of(service))}.",
            evidence=(*symptom_rows(facts, seen), config_rows(istio_config, service)),
            explains=ids(seen),
            certainty=0.7,
        )


@check("MNB234", Severity.ERROR, cause=Cause.CONTROL_PLANE_CONFIG)
def external_host_without_endpoints(
    mesh: Mesh,
    symptoms: Symptoms,
    istio_config: pd.DataFrame,
    endpoints: pd.DataFrame,
    facts: Facts,
) -> Iterator[Finding]:
    """Every ServiceEntry that is called has endpoints that answer.

    With resolution DNS the proxies resolve the host themselves, with STATIC they use what the entry
    lists. A name that does not resolve, or a list that is empty, leaves the cluster without
    endpoints (flag UH); an address where nobody answers gives UF.
    """
    for entry in mesh.of("ServiceEntry"):
        hosts = [str(host) for host in items(entry.spec, "hosts")]
        seen = [
            s
            for s in symptoms
            if bool({"UH", "UF", "DF"} & s.flags)
            and s.side in ("client", "gateway")
            and any(host_matches(host, s.host) for host in hosts)
            and not mesh.ports(s.host)
        ]
        if not seen:
            continue
        given = endpoints[endpoints["cluster"].isin([s.cluster for s in seen])]
        resolution = str(dig(entry.spec, "resolution", default="NONE"))
        reason = and_list(s.upstream_failure or s.details for s in seen)
        yield Finding(
            subject_of(entry),
            f"{entry} leads to nobody who answers: with resolution {resolution}, the proxies have "
            f"{given['endpoint'].nunique()} endpoints for {and_list(hosts)} ({reason}).",
            f"Correct hosts, ports, resolution or endpoints with {edit(subject_of(entry))}.",
            evidence=(
                *symptom_rows(facts, seen),
                Evidence.of(endpoints, given.index),
                config_rows(istio_config, entry),
            ),
            explains=ids(seen),
            certainty=0.8,
        )
