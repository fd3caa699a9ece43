"""Checks of waypoints: whether one stands where it is needed. Codes MNB930 to MNB949."""

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
    rows_of,
    starting,
    subject_of,
    unseen,
)
from meshnb.tables import Facts
from meshnb.tables.base import dig, items
from meshnb.traces.mesh import ConfigObject, Mesh, ServicePort
from meshnb.traces.rules import (
    GATEWAY_API_GROUP,
    bound_gateways,
    route_hosts,
    target_references,
    workload_labels,
)
from meshnb.traces.tunnels.waypoints import GATEWAY_NAME, USE, Waypoints, WaypointUse


@check("MNB930", Severity.ERROR, cause=Cause.CONTROL_PLANE_CONFIG)
def waypoint_not_in_the_way(
    mesh: Mesh, istio_config: pd.DataFrame, pods: pd.DataFrame, facts: Facts
) -> Iterator[Finding]:
    """Every waypoint that a label names takes the traffic that it is named for.

    Its Gateway must have the class istio-waypoint, be programmed and have a ready pod, allow the
    namespace, and be for that kind of traffic (istio.io/waypoint-for). Otherwise traffic passes by
    ztunnel alone, and routes and HTTP policies have no effect.
    """
    found: dict[tuple[str, str], list[WaypointUse]] = {}
    for use in Waypoints(facts, mesh).uses():
        if use.state in ("ready", "missing") or use.gateway is None:
            continue
        if use.state == "other traffic" and use.subject[0] == "Namespace":
            continue  # it is for what it is for
        if use.state == "not ready" and any(starting(pod, facts) for pod in use.pods):
            continue
        found.setdefault((str(use), use.problem), []).append(use)
    for (name, problem), uses in found.items():
        first = uses[0]
        assert first.gateway is not None
        labelled = [Subject(*use.subject) for use in uses]
        subject = subject_of(first.gateway)
        of_pods = pods.index[pods["pod"].isin([pod.pod for pod in first.pods])]
        yield Finding(
            subject,
            f"{and_list(map(str, labelled))} asks for waypoint {name}, which does not take its "
            f"traffic: {problem}. Routes and HTTP policies for it have no effect.",
            f"See `kubectl -n {subject.namespace} describe gateways.{GATEWAY_API_GROUP} "
            f"{subject.name}`, and mend the Gateway or the label {USE}.",
            evidence=(
                config_rows(istio_config, first.gateway),
                *([Evidence.of(pods, of_pods)] if len(of_pods) else []),
            ),
            related=tuple(labelled),
            severity=Severity.WARNING if first.state == "other traffic" else None,
        )


@check("MNB931", Severity.WARNING, cause=Cause.CONTROL_PLANE_CONFIG)
def policy_without_waypoint(
    mesh: Mesh, istio_config: pd.DataFrame, services: pd.DataFrame, facts: Facts
) -> Iterator[Finding]:
    """Every policy that is attached to a Service has a waypoint that enforces it.

    A policy with a Service in targetRefs is read by the Service's waypoint, and by nobody else.
    """
    if unseen(facts, "services", "services") or unseen(facts, "namespaces", "namespaces"):
        return
    waypoints = Waypoints(facts, mesh)
    known = {(service.namespace, service.service) for service in mesh.services}
    for kind in ("AuthorizationPolicy", "RequestAuthentication", "WasmPlugin", "TrafficExtension"):
        for policy in mesh.of(kind):
            for reference in target_references(policy):
                name = str(dig(reference, "name", default=""))
                key = (policy.namespace, name)
                if dig(reference, "kind") != "Service" or key not in known:
                    continue
                if waypoints.of_service(*key) is not None:
                    continue  # what is wrong with that one is said of it
                subject = subject_of(policy)
                yield Finding(
                    subject,
                    f"{policy} is attached to Service {policy.namespace}/{name}, for which no "
                    "waypoint is asked, so nobody enforces it.",
                    f"Give the Service a waypoint with `istioctl waypoint apply -n "
                    f"{policy.namespace}` and the label {USE}, or use a selector with "
                    f"{edit(subject)}.",
                    evidence=(
                        config_rows(istio_config, policy),
                        Evidence.of(rows_of(services, namespace=policy.namespace, service=name)),
                    ),
                    related=(Subject("Service", policy.namespace, name),),
                    path="spec.targetRefs",
                )


@check("MNB932", Severity.WARNING, cause=Cause.CONTROL_PLANE_CONFIG)
def selector_policy_at_waypoint(
    mesh: Mesh, istio_config: pd.DataFrame, pods: pd.DataFrame
) -> Iterator[Finding]:
    """Every policy for a waypoint names it in targetRefs.

    A waypoint reads no policy that selects it by labels: it is accepted, and has no effect.
    """
    for kind in ("AuthorizationPolicy", "RequestAuthentication"):
        for policy in mesh.of(kind):
            if target_references(policy) or not workload_labels(policy):
                continue
            chosen = mesh.workload_selected(policy)
            if not chosen or any(pod.mesh != "waypoint" for pod in chosen):
                continue
            names = [pod.labels.get(GATEWAY_NAME, pod.workload) for pod in chosen]
            yield Finding(
                subject_of(policy),
                f"{policy} selects the waypoint {and_list(names)} by labels, which waypoints do "
                "not read.",
                f"Name the Gateway {names[0]} in targetRefs with {edit(subject_of(policy))}.",
                evidence=(
                    config_rows(istio_config, policy),
                    Evidence.of(pods, pods.index[pods["pod"].isin([pod.pod for pod in chosen])]),
                ),
                related=(Subject("Gateway", chosen[0].namespace, str(names[0])),),
                path="spec.selector",
            )


@check("MNB933", Severity.WARNING, cause=Cause.CONTROL_PLANE_CONFIG)
def route_off_the_waypoint(
    mesh: Mesh, istio_config: pd.DataFrame, facts: Facts
) -> Iterator[Finding]:
    """Every route for an ambient Service is read by a proxy on the way to it.

    In an ambient mesh routes are applied at the destination, by the Service's waypoint, which reads
    those of the Service's own namespace. Where no client has a sidecar, nobody else reads them.
    """
    if any(pod.mesh == "sidecar" for pod in mesh.pods):
        return  # their proxies read routes themselves
    waypoints = Waypoints(facts, mesh)
    for route, service in _routes_to_ambient(mesh):
        use = waypoints.of_service(service.namespace, service.service)
        elsewhere = route.namespace != service.namespace and route.kind == "VirtualService"
        if use is not None and (use.state != "ready" or not elsewhere):
            continue
        title = f"Service {service.namespace}/{service.service}"
        why = (
            f"its waypoint reads VirtualServices of namespace {service.namespace} only"
            if use is not None
            else "no waypoint is asked for it, and ztunnel reads no route"
        )
        remedy = (
            f"Move it to namespace {service.namespace}."
            if use is not None
            else f"Make a waypoint with `istioctl waypoint apply -n {service.namespace}`, and "
            f"label {title} with {USE}."
        )
        yield Finding(
            subject_of(route),
            f"{route} is for {title}, which is in the ambient mesh, and has no effect: {why}.",
            remedy,
            evidence=(config_rows(istio_config, route),),
            related=(Subject("Service", service.namespace, service.service),),
        )


def _routes_to_ambient(mesh: Mesh) -> Iterator[tuple[ConfigObject, ServicePort]]:
    """Yield the routes inside the mesh that are for a Service of ambient pods, with the Service."""
    for route in mesh.of("VirtualService"):
        if "mesh" in bound_gateways(route):
            for host in route_hosts(route, mesh):
                yield from ((route, one) for one in mesh.ports(host)[:1] if _ambient(one, mesh))
    for kind in ("HTTPRoute", "GRPCRoute"):
        for route in mesh.of(kind, GATEWAY_API_GROUP):
            for parent in items(route.spec, "parentRefs"):
                if dig(parent, "kind") == "Service":
                    home = str(dig(parent, "namespace", default=route.namespace))
                    host = mesh.fqdn(str(dig(parent, "name", default="")), home)
                    yield from ((route, one) for one in mesh.ports(host)[:1] if _ambient(one, mesh))


def _ambient(service: ServicePort, mesh: Mesh) -> bool:
    pods = mesh.selected(service)
    return bool(pods) and all(pod.mesh == "ambient" for pod in pods)
