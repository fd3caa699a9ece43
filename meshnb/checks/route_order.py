"""Checks of which route counts: order, duplicates, delegates. Codes MNB220 to MNB229."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
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
    subject_of,
    symptom_rows,
    unseen,
)
from meshnb.checks.routing import destination_rules, destinations, for_hosts
from meshnb.symptoms import Symptoms
from meshnb.symptoms.requests import split_address
from meshnb.tables import Facts
from meshnb.tables.base import dig, items, mapping
from meshnb.traces.mesh import ConfigObject, Mesh, Pod, oldest
from meshnb.traces.rules import (
    bound_gateways,
    covered_by,
    covers,
    route_hosts,
    visible,
    workload_labels,
)


@check("MNB220", Severity.WARNING, cause=Cause.CONTROL_PLANE_CONFIG)
def unreachable_route(mesh: Mesh, istio_config: pd.DataFrame) -> Iterator[Finding]:
    """Every route of a VirtualService can be reached.

    Envoy takes the first route that matches. A route that stands below one which matches everything
    it matches is never taken: its requests succeed, but go elsewhere than somebody meant.
    """
    for service in mesh.of("VirtualService"):
        for protocol in ("http", "tls", "tcp"):
            routes = items(service.spec, protocol)
            for later, route in enumerate(routes):
                earlier = covered_by(service, later, protocol)
                if earlier is None:
                    continue
                kind = "" if protocol == "http" else f" of {protocol}"
                yield Finding(
                    subject_of(service),
                    f"Route {later}{kind} of {service} ({_match(route)}) is never taken: route "
                    f"{earlier} above it ({_match(routes[earlier])}) matches everything that it "
                    "matches.",
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


@check("MNB222", Severity.WARNING, cause=Cause.CONTROL_PLANE_CONFIG)
def gateway_passes_by_subsets(
    mesh: Mesh, istio_config: pd.DataFrame, access_log: pd.DataFrame
) -> Iterator[Finding]:
    """Callers outside reach the same versions through a gateway as those inside the mesh.

    The routes of a VirtualService without gateways are for sidecars. A gateway follows its own
    VirtualService alone; where that names the Service without a subset, requests from outside
    reach every version.
    """
    calls = access_log[access_log["direction"] == "outbound"]
    for inner in mesh.of("VirtualService"):
        pinned = _pinned(inner, mesh)
        if "mesh" not in bound_gateways(inner):
            continue
        for host, reached in pinned.items():
            ports = mesh.ports(host)
            others = {
                pod.address: pod
                for pod in (mesh.selected(ports[0]) if ports else ())
                if pod not in reached
            }
            for outer in mesh.of("VirtualService") if others else ():
                bound = bound_gateways(outer)
                plain = any(
                    not dig(target, "subset") and weight != 0
                    for _, target, weight in destinations(outer)
                    if mesh.fqdn(str(dig(target, "host", default="")), outer.namespace) == host
                )
                if (
                    outer is inner
                    or "mesh" in bound
                    or not plain
                    or set(bound) & set(bound_gateways(inner))
                ):
                    continue
                sent = calls[
                    calls["cluster"].fillna("").str.endswith(f"||{host}")
                    & calls["proxy"].isin([p.proxy for p in mesh.pods if p.mesh == "gateway"])
                ]
                strayed = sent[
                    sent["upstream_host"]
                    .fillna("")
                    .map(lambda text: split_address(text)[0])
                    .isin(list(others))
                ]
                versions = and_list(f"{pod.namespace}/{pod.workload}" for pod in others.values())
                yield Finding(
                    subject_of(outer),
                    f"{outer} sends requests from {and_list(bound)} to {host} without a subset: "
                    f"they reach {versions}, too, which {inner} keeps from callers inside the mesh "
                    f"({len(strayed)} requests did).",
                    f"Name the subsets of {inner.name} in {edit(subject_of(outer))}, too.",
                    evidence=(
                        config_rows(istio_config, outer, inner),
                        Evidence.of(access_log, strayed.index),
                    ),
                    related=(subject_of(inner),),
                    severity=None if len(strayed) else Severity.INFO,
                )


def _pinned(service: ConfigObject, mesh: Mesh) -> dict[str, list[Pod]]:
    """Return the pods behind each host that a VirtualService lets callers reach by subset alone."""
    found: dict[str, list[Pod]] = {}
    for host in route_hosts(service, mesh):
        ports = mesh.ports(host)
        names = {
            str(dig(target, "subset", default=""))
            for _, target, weight in destinations(service)
            if weight != 0
            and mesh.fqdn(str(dig(target, "host", default="")), service.namespace) == host
        }
        if not ports or not names or "" in names:
            continue
        labels = [
            mapping(subset, "labels")
            for rule in destination_rules(mesh, host)
            for subset in items(rule.spec, "subsets")
            if dig(subset, "name") in names
        ]
        found[host] = [
            pod
            for pod in mesh.selected(ports[0])
            if any(one.items() <= pod.labels.items() for one in labels)
        ]
    return found


@check("MNB223", Severity.WARNING, cause=Cause.CONTROL_PLANE_CONFIG)
def delegate_ignored(
    mesh: Mesh, symptoms: Symptoms, istio_config: pd.DataFrame, facts: Facts
) -> Iterator[Finding]:
    """Every route that is handed on to another VirtualService finds it, and in the right form.

    A delegate has neither hosts nor gateways, hands nothing on itself, is exported to its root's
    namespace, and matches only what the root hands it. istiod leaves out any other: requests get
    404 with flag NR, or fall through to a later route.
    """
    if unseen(facts, "istio_config", "virtualservices"):
        return
    known = {(one.namespace, one.name): one for one in mesh.of("VirtualService")}
    for root in mesh.of("VirtualService"):
        for number, route in enumerate(items(root.spec, "http")):
            name = dig(route, "delegate", "name")
            if not isinstance(name, str) or not name:
                continue
            namespace = str(dig(route, "delegate", "namespace", default="") or root.namespace)
            target = known.get((namespace, name))
            problem = _not_a_delegate(target, root, route, mesh)
            if not problem:
                continue
            guilty = target or root
            seen = [
                s
                for s in symptoms
                if "NR" in s.flags
                and s.kind == "request"
                and for_hosts(s, route_hosts(root, mesh))
                and any(_may_match(route, failure.path) for failure in s.failures)
            ]
            near = get_close_matches(name, [key[1] for key in known if key[0] == namespace], 1)
            hint = f" The nearest there is {near[0]}." if target is None and near else ""
            yield Finding(
                subject_of(guilty),
                f"{root} hands requests on to VirtualService {namespace}/{name} "
                f"(spec.http[{number}].delegate), {problem}: it is left out.{hint}",
                f"Correct it with {edit(subject_of(guilty))}.",
                evidence=(
                    *symptom_rows(facts, seen),
                    config_rows(istio_config, root, *([target] if target else [])),
                ),
                related=(subject_of(root),) if target else (),
                explains=ids(seen),
                severity=Severity.ERROR if seen else None,
            )


def _not_a_delegate(target: ConfigObject | None, root: ConfigObject, route: Any, mesh: Mesh) -> str:
    if target is None:
        return "which does not exist"
    if items(target.spec, "hosts") or items(target.spec, "gateways"):
        return "which has hosts or gateways of its own"
    if any(dig(one, "delegate") for one in items(target.spec, "http")):
        return "which hands them on again"
    if not visible(target, root.namespace, mesh):
        return f"which is not exported to {root.namespace}"
    prefixes = [dig(match, "uri", "prefix") for match in items(route, "match")]
    inner = [match for one in items(target.spec, "http") for match in items(one, "match")]
    paths = [dig(match, "uri", "prefix") or dig(match, "uri", "exact") for match in inner]
    everything = any(not items(one, "match") for one in items(target.spec, "http"))
    if (
        all(prefixes)
        and prefixes
        and paths
        and all(paths)
        and not everything
        and not any(str(path).startswith(str(prefix)) for path in paths for prefix in prefixes)
    ):
        return f"whose paths {and_list(paths)} lie outside of {and_list(prefixes)}"
    return ""


def _may_match(route: Any, path: str) -> bool:
    """Whether a route may be meant for a path; conditions on anything else are left aside."""
    matches = items(route, "match")
    for match in matches:
        uri = mapping(match, "uri")
        exact, prefix = uri.get("exact"), uri.get("prefix")
        if "regex" in uri or (exact is None and prefix is None):
            return True
        if path.partition("?")[0] == exact or (prefix and path.startswith(str(prefix))):
            return True
    return not matches


@check("MNB224", Severity.WARNING, cause=Cause.CONTROL_PLANE_CONFIG)
def shadowed_at_gateway(mesh: Mesh, istio_config: pd.DataFrame) -> Iterator[Finding]:
    """No VirtualService at a gateway takes what another one for the same host is meant to take.

    A gateway merges the VirtualServices for one host: the older one's routes first, those without
    conditions last. A route that repeats an older one is never taken.
    """
    places: dict[tuple[str, str], list[ConfigObject]] = {}
    for service in oldest(mesh.of("VirtualService")):
        for name in bound_gateways(service):
            if name != "mesh":
                for host in dict.fromkeys(route_hosts(service, mesh)):
                    places.setdefault((name, host), []).append(service)
    told: set[tuple[ConfigObject, ConfigObject]] = set()
    for (name, host), services in places.items():
        for position, later in enumerate(services):
            for earlier in services[:position]:
                found = _first_cover(earlier, later)
                if found is None or (earlier, later) in told:
                    continue
                told.add((earlier, later))
                yield Finding(
                    subject_of(later),
                    f"Route {found[1]} of {later} is never taken at {name}: route {found[0]} of "
                    f"the older {earlier}, for {host}, too, matches everything that it matches.",
                    f"Keep the routes of {host} in one VirtualService: "
                    f"{edit(subject_of(earlier))}.",
                    evidence=(config_rows(istio_config, earlier, later),),
                    related=(subject_of(earlier),),
                )


def _first_cover(earlier: ConfigObject, later: ConfigObject) -> tuple[int, int] | None:
    for number, route in enumerate(items(later.spec, "http")):
        for position, older in enumerate(items(earlier.spec, "http")):
            # Routes for everything are put behind all others, so they cover only one another.
            if covers(older, route) and (not covers(older, {}) or covers(route, {})):
                return position, number
    return None


@check("MNB225", Severity.WARNING, cause=Cause.CONTROL_PLANE_CONFIG)
def sidecars_conflict(mesh: Mesh, istio_config: pd.DataFrame) -> Iterator[Finding]:
    """For each pod, one Sidecar decides what its proxy is told.

    Two Sidecars for a whole namespace, or two that select the same pod, are not merged: istiod
    takes the oldest, and another one when they are made anew.
    """
    whole: dict[str, list[ConfigObject]] = {}
    chosen: dict[tuple[str, ...], list[ConfigObject]] = {}
    for item in oldest(mesh.of("Sidecar")):
        labels = workload_labels(item)
        if not labels:
            whole.setdefault(item.namespace, []).append(item)
        for pod in mesh.matching(labels, item.namespace) if labels else ():
            chosen.setdefault((pod.namespace, pod.pod), []).append(item)
    told: set[ConfigObject] = set()
    for place, rivals in (*whole.items(), *chosen.items()):
        first, *ignored = rivals
        for item in ignored:
            if item in told:
                continue
            told.add(item)
            what = f"namespace {place}" if isinstance(place, str) else f"pod {'/'.join(place)}"
            yield Finding(
                subject_of(item),
                f"{item} and the older {first} are both for {what}; only one of them counts.",
                f"Merge them into one with {edit(subject_of(first))}, and delete the other.",
                evidence=(config_rows(istio_config, first, item),),
                related=(subject_of(first),),
            )
