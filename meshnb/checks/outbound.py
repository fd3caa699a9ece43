"""Checks of what a caller's own proxy does with requests: faults, hidden and blocked hosts.

Codes MNB230 to MNB233.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
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
)
from meshnb.checks.misses import misspelt_path
from meshnb.checks.routing import for_hosts, hosts_unseen, nearly
from meshnb.symptoms import Symptom, Symptoms
from meshnb.symptoms.base import REPEATED
from meshnb.symptoms.requests import split_address
from meshnb.tables import Facts
from meshnb.tables.base import dig, items, mapping
from meshnb.traces.mesh import ConfigObject, Mesh
from meshnb.traces.rules import (
    bound_gateways,
    delegating,
    egress_lists,
    host_namespaces,
    reached_hosts,
    sidecar_of,
)
from meshnb.traces.servers import Server, seen_by, servers


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
            hosts = reached_hosts(service, mesh)
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


def blocked(symptom: Symptom) -> bool:
    """Whether the caller's own proxy refused to lead a request anywhere: REGISTRY_ONLY does so."""
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
    access_log: pd.DataFrame,
    facts: Facts,
) -> Iterator[Finding]:
    """Every host that a workload calls is within its Sidecar's egress scope.

    A Sidecar object narrows what istiod sends to the proxies that it selects. A host outside of it
    has neither route nor cluster there: with REGISTRY_ONLY the proxy answers 502, with ALLOW_ANY it
    passes the bytes on without policy, telemetry or mutual TLS.
    """
    found: dict[ConfigObject, dict[str, list[Symptom]]] = {}
    for symptom in symptoms:
        passed = symptom.cluster == "PassthroughCluster" and symptom.side == "client"
        if not (blocked(symptom) or passed):
            continue
        for item in _hiding(symptom.host, symptom.reporters, mesh):
            found.setdefault(item, {}).setdefault(symptom.host, []).append(symptom)
    quiet = _passed_by(access_log, mesh)
    for item in dict.fromkeys((*found, *quiet)):
        by_host = found.get(item, {})
        rows = quiet.get(item, {})
        seen = list({s.id: s for group in by_host.values() for s in group}.values())
        hidden = list(dict.fromkeys((*by_host, *(host for host, _ in rows.values()))))
        callers = and_list(
            (*(one for s in seen for one in s.reporters), *(proxy for _, proxy in rows.values()))
        )
        wanted = and_list(
            f"{namespace}/{host}" for host in hidden for namespace in host_namespaces(host, mesh)
        )
        consequence = (
            "so their proxies have no route to it"
            if seen
            else "so their proxies pass the bytes on without mutual TLS, policies or telemetry"
        )
        yield Finding(
            subject_of(item),
            f"{item} hides {and_list(hidden)} from {callers}: spec.egress.hosts does not list it, "
            f"{consequence}.",
            f"Add {wanted} to spec.egress.hosts with {edit(subject_of(item))}.",
            evidence=(
                *symptom_rows(facts, seen),
                Evidence.of(access_log, rows),
                Evidence.of(rows_of(clusters, service_fqdn=hidden[0])),
                config_rows(istio_config, item),
            ),
            explains=ids(seen),
            severity=None if seen else Severity.WARNING,
        )


def _hiding(host: str, proxies: Iterable[str], mesh: Mesh) -> list[ConfigObject]:
    """Return the Sidecars that hide a host from any of these proxies."""
    namespaces = host_namespaces(host, mesh)
    items_in_force = (
        sidecar_of(pod, mesh)
        for pod in mesh.pods_of(proxies)
        if namespaces and pod.mesh == "sidecar"
    )
    return [
        item
        for item in dict.fromkeys(items_in_force)
        if item is not None
        and not any(egress_lists(item, host, namespace) for namespace in namespaces)
    ]


def _passed_by(
    access_log: pd.DataFrame, mesh: Mesh
) -> dict[ConfigObject, dict[int, tuple[str, str]]]:
    """Return the connections to Services that a Sidecar hides and that were passed on all the same.

    By Sidecar and row of the access log: the host, and the proxy of the caller.
    """
    found: dict[ConfigObject, dict[int, tuple[str, str]]] = {}
    lines = access_log[
        (access_log["cluster"] == "PassthroughCluster").fillna(False).astype(bool)
        & (access_log["response_flags"].fillna("-") == "-")
    ]
    for index, proxy, local in zip(
        lines.index, lines["proxy"], lines["downstream_local_address"].fillna(""), strict=True
    ):
        service = mesh.service_at(*split_address(local))
        for item in _hiding(service.host, [proxy], mesh) if service is not None else ():
            found.setdefault(item, {})[index] = (service.host if service else "", proxy)
    return found


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
        if not blocked(symptom) or mesh.known_host(symptom.host):
            continue
        if hosts_unseen(facts):
            continue
        pods = mesh.pods_of(symptom.reporters)
        item = next((found for pod in pods if (found := sidecar_of(pod, mesh))), None)
        by_sidecar = item is not None and bool(dig(item.spec, "outboundTrafficPolicy", "mode"))
        policy = (
            subject_of(item)
            if item is not None and by_sidecar
            else Subject("ConfigMap", *_mesh_config(mesh, mesh_settings))
        )
        host = symptom.host or and_list(failure.local_address for failure in symptom.failures)
        proof = (
            config_rows(istio_config, item)
            if item is not None and by_sidecar
            else Evidence.of(rows_of(mesh_settings, setting="outboundTrafficPolicy.mode"))
        )
        # A host that was registered with a slip is mended where it was registered.
        registered = {
            str(one): entry
            for entry in mesh.of("ServiceEntry")
            for one in items(entry.spec, "hosts")
        }
        close = nearly(host, registered)
        entry = registered[close] if close else None
        subject = policy if entry is None else subject_of(entry)
        slip = f"; {close}, of {entry}, is nearly the same" if close else ""
        yield Finding(
            subject,
            f"{and_list(symptom.reporters)} may not call {host}: the outbound traffic policy of "
            f"{policy} is REGISTRY_ONLY, and {host} is no Service and no ServiceEntry{slip}.",
            f"Correct the host with {edit(subject)}."
            if close
            else f"Register {host} with a ServiceEntry, or allow it with {edit(policy)}.",
            evidence=(
                *symptom_rows(facts, [symptom]),
                proof,
                *([config_rows(istio_config, entry)] if entry is not None else []),
            ),
            related=() if entry is None else (policy,),
            explains=ids([symptom]),
            severity=Severity.INFO if symptom.count < REPEATED else None,
        )


@check("MNB233", Severity.ERROR, cause=Cause.CONTROL_PLANE_CONFIG)
def no_route_matches(
    mesh: Mesh,
    symptoms: Symptoms,
    istio_config: pd.DataFrame,
    access_log: pd.DataFrame,
    facts: Facts,
) -> Iterator[Finding]:
    """Every request to a host with routes matches one of them.

    When a VirtualService has only routes with conditions, a request that meets none of them gets
    404 with flag NR (route_not_found) from the caller's own proxy or from the gateway.
    """
    every = servers(mesh)
    for service in mesh.of("VirtualService"):
        routes = items(service.spec, "http")
        if not routes or any(not items(route, "match") for route in routes):
            continue
        seen = [
            s
            for s in symptoms
            if "NR" in s.flags
            and s.kind == "request"
            and (
                s.worked_before
                or _nothing_works(s, access_log)
                or misspelt_path(s, _paths(routes), access_log)
            )
            and for_hosts(s, reached_hosts(service, mesh))
            and _reaches(service, s, every, mesh)
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


def _paths(routes: Iterable[Any]) -> Iterator[str]:
    for route in routes:
        for match in items(route, "match"):
            for kind in ("exact", "prefix"):
                if isinstance(path := dig(match, "uri", kind), str):
                    yield path


def _reaches(service: ConfigObject, symptom: Symptom, every: list[Server], mesh: Mesh) -> bool:
    """Whether the routes of a VirtualService are those of the proxies that report a symptom."""
    roots = [service, *delegating(service, mesh)]
    if symptom.side != "gateway":
        return any("mesh" in bound_gateways(root) for root in roots)
    hosts = {split_address(failure.authority)[0] for failure in symptom.failures}
    ports = {split_address(failure.local_address)[1] for failure in symptom.failures}
    return any(
        f"{server.gateway.namespace}/{server.gateway.name}" in bound_gateways(root)
        and (server.port in ports or None in ports)
        and any(pod.proxy in symptom.reporters for pod in server.pods)
        and any(server.covers(host, root.namespace) for host in hosts)
        and seen_by(root, server.pods, mesh)
        for server in every
        for root in roots
    )


def _nothing_works(symptom: Symptom, access_log: pd.DataFrame) -> bool:
    """Whether nothing that was asked of the same host at the same proxies got an answer.

    Where other paths are answered, a path without a route may be one that nobody ever meant to
    serve. Callers inside the mesh know what they ask for, so what fails for them again and again is
    meant to work.
    """
    if symptom.count < REPEATED:
        return False
    if symptom.side == "client":
        return True
    hosts = {failure.authority for failure in symptom.failures}
    answered = access_log[
        access_log["proxy"].isin(symptom.reporters)
        & access_log["authority"].isin(list(hosts))
        & (access_log["details"] == "via_upstream")
    ]
    return not len(answered)


def _mesh_config(mesh: Mesh, mesh_settings: pd.DataFrame) -> tuple[str, str]:
    """Return namespace and name of the ConfigMap that allows registered hosts only.

    It is called istio, or istio-REVISION for an istiod with a revision.
    """
    strict = rows_of(mesh_settings, setting="outboundTrafficPolicy.mode", value="REGISTRY_ONLY")
    said_by = set(strict["istiod"].dropna())
    istiods = [pod for pod in mesh.pods if pod.mesh == "istiod"]
    for pod in [one for one in istiods if one.pod in said_by] or istiods:
        revision = pod.labels.get("istio.io/rev", "default")
        name = "istio" if revision in ("", "default") else f"istio-{revision}"
        return pod.namespace, name
    return next(iter(sorted(mesh.control_plane_namespaces)), ""), "istio"
