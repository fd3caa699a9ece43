"""Checks of the Gateway API: what its controller says of routes and gateways.

Codes MNB350 to MNB399.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from typing import Any

import pandas as pd

from meshnb.checks.base import (
    STARTUP,
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
    start,
    subject_of,
    symptom_rows,
    unseen,
    workload_in,
)
from meshnb.checks.misses import misspelt_path
from meshnb.checks.routing import latest, nearly
from meshnb.symptoms import Symptom, Symptoms
from meshnb.symptoms.base import REPEATED
from meshnb.symptoms.requests import split_address
from meshnb.tables import Facts
from meshnb.tables.base import dig, items
from meshnb.traces.mesh import ConfigObject, Mesh, hosts_overlap, oldest
from meshnb.traces.rules import gateway_pods, target_references, workload_labels

GROUP = "gateway.networking.k8s.io"
ROUTES = ("HTTPRoute", "GRPCRoute", "TLSRoute", "TCPRoute")
#: Conditions that say that an object works, and that are a fault when they are False.
WORKING = ("Accepted", "ResolvedRefs", "Programmed")


def _for_route(symptom: Symptom, route: ConfigObject, mesh: Mesh) -> bool:
    """Whether a symptom is one of requests that a route is for."""
    if not ({"NR", "NC"} & symptom.flags or "direct_response" in symptom.details):
        return False
    if symptom.side == "client":
        return symptom.host in _parent_services(route, mesh)
    hosts = _hosts(route)
    authorities = {split_address(failure.authority)[0] for failure in symptom.failures}
    parents = [gateway for gateway in _parents(route, mesh) if gateway is not None]
    proxies = {pod.proxy for gateway in parents for pod in gateway_pods(gateway, mesh)}
    return (
        symptom.side == "gateway"
        and (not parents or bool(proxies & set(symptom.reporters)))
        and any(hosts_overlap(host, name) for host in hosts for name in authorities if name)
    )


def _hosts(route: ConfigObject) -> list[str]:
    return [str(host) for host in items(route.spec, "hostnames")] or ["*"]


def _parents(route: ConfigObject, mesh: Mesh) -> list[ConfigObject | None]:
    """Return the Gateway that each parentRef names; None for one that does not exist."""
    known = {(one.namespace, one.name): one for one in mesh.of("Gateway", GROUP)}
    return [
        known.get((str(dig(one, "namespace", default=route.namespace)), str(dig(one, "name"))))
        for one in items(route.spec, "parentRefs")
        if dig(one, "kind", default="Gateway") == "Gateway"
    ]


def _parent_services(route: ConfigObject, mesh: Mesh) -> set[str]:
    return {
        mesh.fqdn(str(dig(one, "name")), str(dig(one, "namespace", default=route.namespace)))
        for one in items(route.spec, "parentRefs")
        if dig(one, "kind") == "Service"
    }


@check("MNB351", Severity.ERROR, cause=Cause.CONTROL_PLANE_CONFIG)
def route_without_parent(
    mesh: Mesh, symptoms: Symptoms, istio_config: pd.DataFrame, facts: Facts
) -> Iterator[Finding]:
    """Every parent that a route of the Gateway API names exists.

    A route is attached by its parentRefs. One that names a Gateway which does not exist is stored,
    gets no status from anybody, and the real gateway answers 404 with flag NR (route_not_found).
    """
    if unseen(facts, "istio_config", "gateways"):
        return
    gateways = {(g.namespace, g.name): g for g in mesh.of("Gateway", GROUP)}
    for kind in ROUTES:
        for route in mesh.of(kind, GROUP):
            for number, parent in enumerate(items(route.spec, "parentRefs")):
                if dig(parent, "kind", default="Gateway") != "Gateway":
                    continue
                namespace = str(dig(parent, "namespace", default=route.namespace))
                name = str(dig(parent, "name"))
                problem = "which does not exist"
                if (namespace, name) in gateways:
                    problem = _no_listener(parent, gateways[namespace, name])
                if not problem:
                    continue
                seen = [s for s in symptoms if _for_route(s, route, mesh)]
                near = [key[1] for key in gateways if key[0] == namespace]
                close = get_close_matches(name, near, n=1, cutoff=0.5)
                far = [key[0] for key in gateways if key[1] == name and key[0] != namespace]
                hint = f" The nearest that exists is {close[0]}." if close else ""
                hint = f" There is one in {and_list(far)}." if far and not close else hint
                hint = "" if (namespace, name) in gateways else hint
                yield Finding(
                    subject_of(route),
                    f"{route} names Gateway {namespace}/{name} as its parent "
                    f"(spec.parentRefs[{number}]), {problem}.{hint}",
                    f"Correct the reference with {edit(subject_of(route))}.",
                    evidence=(*symptom_rows(facts, seen), config_rows(istio_config, route)),
                    related=tuple(subject_of(gateways[namespace, one]) for one in close),
                    explains=ids(seen),
                )


def _no_listener(parent: Any, gateway: ConfigObject) -> str:
    """Say which listener of a Gateway a reference asks for in vain; empty when there is one."""
    listeners = items(gateway.spec, "listeners")
    section, port = dig(parent, "sectionName"), dig(parent, "port")
    names, ports = [dig(one, "name") for one in listeners], [dig(one, "port") for one in listeners]
    if section is not None and section not in names:
        return f"which has no listener {section}: it has {and_list(names)}"
    if port is not None and port not in ports:
        return f"which has no listener on port {port}: it has {and_list(ports)}"
    return ""


@check("MNB352", Severity.ERROR, cause=Cause.CONTROL_PLANE_CONFIG)
def refused_by_controller(
    mesh: Mesh,
    symptoms: Symptoms,
    istio_config: pd.DataFrame,
    access_log: pd.DataFrame,
    facts: Facts,
) -> Iterator[Finding]:
    """Every gateway and route of the Gateway API is accepted, and all that it names is found.

    istiod writes into the status what it makes of each object. Accepted, ResolvedRefs or
    Programmed with status False means that traffic is not handled as the object says.
    """
    conditions = dict(zip(istio_config.index, istio_config["conditions"], strict=True))
    for kind in (*ROUTES, "Gateway"):
        for item in mesh.of(kind, GROUP):
            bad = [
                condition
                for condition in conditions[istio_config.index[item.index]] or ()
                if _refused(condition)
            ]
            if not bad:
                continue
            seen = [
                s
                for s in symptoms
                if (_at_gateway(s, item, mesh) if kind == "Gateway" else _for_route(s, item, mesh))
            ]
            words = and_list(
                f"{condition.get('type')} is False, {condition.get('reason')}: "
                f"{condition.get('message')}"
                for condition in bad
            )
            # A route that its parent does not let in is mended at either; the newer is the guilty.
            hosts = [one for one in _parents(item, mesh) if one is not None]
            shut = any(condition.get("reason") in _SHUT_OUT for condition in bad)
            guilty = latest(item, *hosts) if kind != "Gateway" and shut else item
            yield Finding(
                subject_of(guilty),
                f"{item} is not in force as written: {words}.",
                _remedy(item, bad),
                evidence=(*symptom_rows(facts, seen), config_rows(istio_config, item, *hosts)),
                related=tuple(
                    subject_of(one) for one in (item, *hosts) if one is not guilty and shut
                ),
                explains=ids(seen),
                severity=Severity.INFO if _merely_no_address(item, bad, access_log, mesh) else None,
            )


def _merely_no_address(
    item: ConfigObject,
    conditions: list[Mapping[str, Any]],
    access_log: pd.DataFrame,
    mesh: Mesh,
) -> bool:
    """Whether a Gateway only waits for an address from outside, and serves those who know it."""
    if item.kind != "Gateway" or any(
        one.get("reason") not in ("AddressNotAssigned", "Pending") for one in conditions
    ):
        return False
    proxies = [pod.proxy for pod in gateway_pods(item, mesh)]
    return bool(
        (access_log["proxy"].isin(proxies) & (access_log["details"] == "via_upstream")).any()
    )


#: Reasons for which a Gateway does not let a route in.
_SHUT_OUT = ("NotAllowedByListeners", "NoMatchingListenerHostname")


def _at_gateway(symptom: Symptom, gateway: ConfigObject, mesh: Mesh) -> bool:
    """Whether a symptom is one of connections or requests that a Gateway's pods turned away."""
    proxies = {pod.proxy for pod in gateway_pods(gateway, mesh)}
    return (
        symptom.side == "gateway"
        and "NR" in symptom.flags
        and bool(proxies & set(symptom.reporters))
    )


def _refused(condition: Mapping[str, Any]) -> bool:
    wrong = "True" if condition.get("type") == "Conflicted" else "False"
    return condition.get("type") in (*WORKING, "Conflicted") and condition.get("status") == wrong


def _remedy(item: ConfigObject, conditions: list[Mapping[str, Any]]) -> str:
    if any(condition.get("reason") == "RefNotPermitted" for condition in conditions):
        return (
            "Permit it with a ReferenceGrant in the namespace of the backend, or name a backend "
            f"nearby with {edit(subject_of(item))}."
        )
    return f"Mend what the message names with {edit(subject_of(item))}."


@check("MNB353", Severity.ERROR, cause=Cause.CONTROL_PLANE_CONFIG)
def gateway_class_unknown(
    mesh: Mesh, istio_config: pd.DataFrame, facts: Facts
) -> Iterator[Finding]:
    """Every Gateway of the Gateway API has a class that exists.

    The class says which controller makes the gateway. For a class that does not exist nobody does:
    there is no Deployment, no Service, and no status that says so.
    """
    if unseen(facts, "istio_config", "gatewayclasses"):
        return
    classes = {one.name for one in mesh.of("GatewayClass", GROUP)}
    for gateway in mesh.of("Gateway", GROUP):
        name = str(dig(gateway.spec, "gatewayClassName", default=""))
        if name in classes or not classes:
            continue
        close = get_close_matches(name, classes, n=1, cutoff=0.6)
        hint = f" The nearest that exists is {close[0]}." if close else ""
        yield Finding(
            subject_of(gateway),
            f"{gateway} is of class {name}, which does not exist, so nobody makes it.{hint}",
            f"Correct spec.gatewayClassName with {edit(subject_of(gateway))}.",
            evidence=(config_rows(istio_config, gateway),),
        )


@check("MNB354", Severity.ERROR, cause=Cause.CONTROL_PLANE_CONFIG)
def gateway_not_deployed(
    mesh: Mesh, istio_config: pd.DataFrame, workloads: pd.DataFrame, facts: Facts
) -> Iterator[Finding]:
    """Every Gateway of an Istio class has pods.

    istiod makes a Deployment and a Service for it. That they are not there means that istiod does
    not act for this class, was refused, or that somebody has stopped the Deployment.
    """
    if unseen(facts, "pods", "pods"):
        return
    controllers = {
        one.name: str(dig(one.spec, "controllerName", default=""))
        for one in mesh.of("GatewayClass", GROUP)
    }
    for gateway in mesh.of("Gateway", GROUP):
        controller = controllers.get(str(dig(gateway.spec, "gatewayClassName")), "")
        if (
            controller not in _DEPLOYING
            or items(gateway.spec, "addresses")
            or gateway_pods(gateway, mesh)
            or facts.now - gateway.created < STARTUP
        ):
            continue
        label = {"gateway.networking.k8s.io/gateway-name": gateway.name}
        made = workloads[
            [
                namespace == gateway.namespace and label.items() <= (labels or {}).items()
                for namespace, labels in zip(
                    workloads["namespace"], workloads["labels"], strict=True
                )
            ]
        ]
        subject = subject_of(gateway)
        what = "no Deployment was made for it"
        remedy = (
            "Read its status with "
            f"`kubectl -n {gateway.namespace} describe gateways.gateway.networking.k8s.io "
            f"{gateway.name}`, and what istiod logs of it."
        )
        if len(made):
            subject = workload_in(made.iloc[0])
            what = f"{subject} has none"
            remedy = start(subject)
        yield Finding(
            subject,
            f"{gateway} has no pods: {what}.",
            remedy,
            evidence=(config_rows(istio_config, gateway), Evidence.of(workloads, made.index)),
            related=(subject_of(gateway),) if len(made) else (),
            shows=f"nobody listens at {gateway}",
            cause=Cause.DATA_PLANE if len(made) else None,
        )


#: The controllers for which istiod makes Deployments: gateways and waypoints.
_DEPLOYING = ("istio.io/gateway-controller", "istio.io/mesh-controller")


@check("MNB355", Severity.ERROR, cause=Cause.CONTROL_PLANE_CONFIG)
def request_without_route(
    mesh: Mesh,
    symptoms: Symptoms,
    istio_config: pd.DataFrame,
    routes: pd.DataFrame,
    access_log: pd.DataFrame,
    facts: Facts,
) -> Iterator[Finding]:
    """Every request at a Gateway of the Gateway API meets a rule of a route.

    What meets none gets 404 with flag NR (route_not_found): a host that no route names, or a path,
    header or method that none of its rules matches.
    """
    if unseen(facts, "istio_config", "httproutes"):
        return
    conditions = dict(zip(istio_config.index, istio_config["conditions"], strict=True))
    for symptom in symptoms:
        if not (symptom.side == "gateway" and "NR" in symptom.flags and symptom.kind == "request"):
            continue
        bound = [
            (route, gateway)
            for kind in ("HTTPRoute", "GRPCRoute")
            for route in mesh.of(kind, GROUP)
            for gateway in _parents(route, mesh)
            if gateway is not None
            and {pod.proxy for pod in gateway_pods(gateway, mesh)} & set(symptom.reporters)
        ]
        asked = next((split_address(f.authority)[0] for f in symptom.failures if f.authority), "")
        named = {host: route for route, _ in bound for host in _hosts(route)}
        fitting = [route for host, route in named.items() if hosts_overlap(host, asked)]
        if any(
            asked in _hosts(one) and _left_out(one, conditions, mesh)
            for kind in ("HTTPRoute", "GRPCRoute")
            for one in mesh.of(kind, GROUP)
        ):
            continue  # why its route does not get there, other checks say
        close = nearly(asked, named)
        worked = symptom.worked_before or (
            (symptom.count >= REPEATED and bool(close))
            or _never_answered(symptom, access_log)
            or misspelt_path(symptom, _paths(fitting), access_log)
        )
        if not bound or not worked or not (fitting or close):
            continue
        guilty = latest(*fitting) if fitting else named[close]
        paths = and_list(dict.fromkeys(f.path for f in symptom.failures))
        what = (
            f"no rule of {and_list(map(str, fitting))} matches requests for {paths} of {asked}"
            if fitting
            else f"no route names {asked}, but {close} of {guilty} is nearly the same"
        )
        yield Finding(
            subject_of(guilty),
            f"At {and_list(dict.fromkeys(str(gateway) for _, gateway in bound))}, {what}.",
            f"Correct {'the matches' if fitting else 'spec.hostnames'} with "
            f"{edit(subject_of(guilty))}.",
            evidence=(
                *symptom_rows(facts, [symptom]),
                config_rows(istio_config, guilty),
                Evidence.of(routes, routes.index[routes["proxy"].isin(symptom.reporters)][:50]),
            ),
            explains=ids([symptom]),
            certainty=0.7,
        )


def _paths(routes: Iterable[ConfigObject]) -> Iterator[str]:
    for route in routes:
        for rule in items(route.spec, "rules"):
            for match in items(rule, "matches"):
                if isinstance(path := dig(match, "path", "value"), str):
                    yield path


def _left_out(
    route: ConfigObject, conditions: Mapping[Any, tuple[Mapping[str, Any], ...]], mesh: Mesh
) -> bool:
    """Whether a route is attached to nothing: its parent is not there, or does not let it in."""
    known = {(one.namespace, one.name): one for one in mesh.of("Gateway", GROUP)}
    for parent in items(route.spec, "parentRefs"):
        namespace = str(dig(parent, "namespace", default=route.namespace))
        gateway = known.get((namespace, str(dig(parent, "name"))))
        if gateway is None or _no_listener(parent, gateway):
            return True
    return any(
        one.get("type") == "Accepted" and one.get("status") == "False"
        for one in conditions.get(route.index) or ()
    )


def _never_answered(symptom: Symptom, access_log: pd.DataFrame) -> bool:
    """Whether a host gets no answer at all at a gateway, again and again."""
    asked = {failure.authority for failure in symptom.failures}
    fine = access_log[
        access_log["proxy"].isin(symptom.reporters)
        & access_log["authority"].isin(list(asked))
        & (access_log["details"] == "via_upstream")
    ]
    return symptom.count >= REPEATED and not len(fine)


@check("MNB356", Severity.WARNING, cause=Cause.CONTROL_PLANE_CONFIG)
def rule_of_older_route_wins(mesh: Mesh, istio_config: pd.DataFrame) -> Iterator[Finding]:
    """No two routes at a Gateway match the same requests.

    The more specific rule wins, of equal ones that of the older route, and then that of the first
    name: the other one is never used.
    """
    first: dict[tuple[Any, ...], tuple[ConfigObject, int]] = {}
    told: set[tuple[ConfigObject, ConfigObject]] = set()
    for route in oldest([one for kind in ROUTES for one in mesh.of(kind, GROUP)]):
        for number, rule in enumerate(items(route.spec, "rules")):
            for match in items(rule, "matches") or [_EVERYTHING]:
                for parent in items(route.spec, "parentRefs"):
                    where = json.dumps(
                        [
                            dig(parent, "kind", default="Gateway"),
                            dig(parent, "namespace", default=route.namespace),
                            dig(parent, "name"),
                            dig(parent, "sectionName"),
                            dig(parent, "port"),
                        ]
                    )
                    for host in _hosts(route):
                        key = (route.kind, where, host, json.dumps(match, sort_keys=True))
                        older, place = first.setdefault(key, (route, number))
                        if older is route or (older, route) in told:
                            continue
                        told.add((older, route))
                        yield Finding(
                            subject_of(route),
                            f"Rule {number} of {route} is never used for {host}: rule {place} of "
                            f"the older {older} matches the same.",
                            f"Keep one of them: {edit(subject_of(older))}.",
                            evidence=(config_rows(istio_config, older, route),),
                            related=(subject_of(older),),
                        )


#: What a rule without matches matches (Gateway API: HTTPRouteRule).
_EVERYTHING = {"path": {"type": "PathPrefix", "value": "/"}}


@check("MNB357", Severity.WARNING, cause=Cause.CONTROL_PLANE_CONFIG)
def policy_selects_waypoint(mesh: Mesh, istio_config: pd.DataFrame) -> Iterator[Finding]:
    """Every policy for a waypoint is attached to it by targetRefs.

    A waypoint takes no policy by selector: istiod accepts it, and nobody enforces it. Gateways for
    traffic from outside take such policies, unless istiod is told otherwise.
    """
    for kind in ("AuthorizationPolicy", "RequestAuthentication", "WasmPlugin", "Telemetry"):
        for policy in mesh.of(kind):
            labels = workload_labels(policy)
            if not labels or target_references(policy):
                continue
            pods = mesh.workload_selected(policy)
            if not pods or not all(pod.mesh == "waypoint" for pod in pods):
                continue
            name = pods[0].labels.get("gateway.networking.k8s.io/gateway-name", pods[0].workload)
            yield Finding(
                subject_of(policy),
                f"{policy} selects {pods[0].namespace}/{pods[0].pod}, a waypoint, by labels, which "
                "waypoints do not heed: it is not enforced.",
                f"Attach it with targetRefs to Gateway {name}: {edit(subject_of(policy))}.",
                evidence=(config_rows(istio_config, policy),),
                related=(Subject("Gateway", pods[0].namespace, name),),
            )
