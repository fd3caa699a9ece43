"""Checks of what gateways take from objects: servers, routes of the right kind, Ingresses.

Codes MNB325 to MNB349.
"""

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
)
from meshnb.checks.gateway_hosts import authorities, cut_off, local_ports, server_names, unrouted
from meshnb.checks.gateways import refused_at
from meshnb.checks.routing import for_hosts, latest
from meshnb.symptoms import Symptom, Symptoms
from meshnb.tables import Facts
from meshnb.tables.base import items, mapping
from meshnb.traces.mesh import ConfigObject, Mesh, plain
from meshnb.traces.rules import bound_gateways, route_hosts
from meshnb.traces.servers import Server, bound_to, in_front, routed, seen_by, servers


@check("MNB325", Severity.WARNING, cause=Cause.CONTROL_PLANE_CONFIG)
def servers_conflict(
    mesh: Mesh, symptoms: Symptoms, istio_config: pd.DataFrame, facts: Facts
) -> Iterator[Finding]:
    """No two servers claim the same port of the same pods in ways that cannot be merged.

    Of two TLS servers for one host, and of two servers with different protocols on one port, istiod
    takes the older Gateway's and leaves the other out, with no more than a line in its log. Servers
    for HTTP are merged.
    """
    every = servers(mesh)
    left_out: dict[ConfigObject, dict[ConfigObject, tuple[Server, Server]]] = {}
    for position, later in enumerate(every):
        for earlier in every[:position]:
            if _clash(earlier, later):
                left_out.setdefault(earlier.gateway, {}).setdefault(later.gateway, (earlier, later))
    for gateway, pairs in left_out.items():
        if len(pairs) > 1 and gateway not in pairs:
            # One that is in the way of several others is what there is to mend.
            yield _conflict(gateway, list(pairs.values()), symptoms, istio_config, facts)
            continue
        for loser, pair in pairs.items():
            yield _conflict(loser, [pair], symptoms, istio_config, facts)


def _conflict(
    subject: ConfigObject,
    pairs: list[tuple[Server, Server]],
    symptoms: Symptoms,
    istio_config: pd.DataFrame,
    facts: Facts,
) -> Finding:
    seen = [s for s in symptoms if any(_suffers(s, *pair) for pair in pairs)]
    gateways = list(dict.fromkeys(one.gateway for pair in pairs for one in pair))
    said = and_list(
        f"{later.path} of {later.gateway}: the older {earlier.gateway} ({earlier.path}) "
        f"{_clash(earlier, later)}"
        for earlier, later in pairs
    )
    return Finding(
        subject_of(subject),
        f"istiod leaves out {said}.",
        "Merge them into one Gateway, or give them different hosts or ports, with "
        f"{edit(subject_of(subject))}.",
        evidence=(*symptom_rows(facts, seen), config_rows(istio_config, *gateways)),
        related=tuple(subject_of(one) for one in gateways if one is not subject),
        explains=ids(seen),
        severity=Severity.ERROR if seen else None,
    )


def _suffers(symptom: Symptom, earlier: Server, later: Server) -> bool:
    """Whether a symptom is what clients of a server see that is left out."""
    if not {pod.proxy for pod in later.pods} & set(symptom.reporters):
        return False
    # The handshake that the one expects is no HTTP to the other.
    garbled = "codec_error" in symptom.details and later.is_tls and not earlier.is_tls
    return (
        (unrouted(symptom) and any(later.covers(name) for name in authorities(symptom)))
        or (cut_off(symptom) and any(later.covers(name) for name in server_names(symptom)))
        or (cut_off(symptom) and not server_names(symptom) and later.port in local_ports(symptom))
        or (garbled and later.port in local_ports(symptom))
    )


def _clash(earlier: Server, later: Server) -> str:
    """Say why two servers cannot be merged, empty when they can."""
    if (
        not set(earlier.pods) & set(later.pods)
        or earlier.port != later.port
        or earlier.bind != later.bind
        or earlier.port is None
    ):
        return ""
    if earlier.is_tls and later.is_tls:
        both = [host for host in later.hosts() if host in earlier.hosts()]
        return f"serves {and_list(both)} on port {later.declared_port} already" if both else ""
    same = earlier.is_tls == later.is_tls and earlier.section == later.section == "http"
    return (
        ""
        if same
        else f"has port {earlier.declared_port} for {earlier.protocol}, not {later.protocol}"
    )


@check("MNB326", Severity.ERROR, cause=Cause.CONTROL_PLANE_CONFIG)
def routes_of_wrong_kind(
    mesh: Mesh, symptoms: Symptoms, istio_config: pd.DataFrame, facts: Facts
) -> Iterator[Finding]:
    """Every server of a Gateway finds routes of the kind that it can use.

    A server that ends TLS, or has none, reads requests and takes http routes. One that passes TLS
    through sees no more than the name in the handshake and takes tls routes, one for TCP takes tcp
    routes. Without such a route istiod opens no port for TLS and TCP at all, and the gateway
    answers 404 with flag NR for HTTP.
    """
    every = servers(mesh)
    for server in every:
        section = server.section
        if not section or not server.pods or mapping(server.spec, "tls").get("httpsRedirect"):
            continue
        bound = [one for one in bound_to(server.gateway, mesh) if routed(server, one, mesh)]
        if not bound or any(items(one.spec, section) for one in bound):
            continue
        hosts = [host for one in bound for host in routed(server, one, mesh)]
        seen = [
            s
            for s in symptoms
            if (section == "http" and unrouted(s) and for_hosts(s, hosts))
            or refused_at(s, server.pods, server.port)
            or (
                cut_off(s)
                and server.port in local_ports(s)
                and any(server.covers(name) for name in server_names(s))
            )
        ]
        elsewhere = all(
            any(
                other.section and items(one.spec, other.section) and routed(other, one, mesh)
                for other in every
                if f"{other.gateway.namespace}/{other.gateway.name}" in bound_gateways(one)
            )
            for one in bound
        )
        guilty = latest(*bound, server.gateway)
        mode = f" with TLS mode {server.mode}" if server.mode else ""
        yield Finding(
            subject_of(guilty),
            f"{server.path} of {server.gateway} ({server.protocol} on port {server.declared_port}"
            f"{mode}) takes {section} routes, and {and_list(map(str, bound))}, which serves "
            f"{and_list(hosts)}, has none.",
            f"Write the routes under {section} with {edit(subject_of(bound[0]))}, or change the "
            f"server with {edit(subject_of(server.gateway))}.",
            evidence=(
                *symptom_rows(facts, seen),
                config_rows(istio_config, server.gateway, *bound),
            ),
            related=tuple(subject_of(one) for one in (*bound, server.gateway) if one is not guilty),
            explains=ids(seen),
            severity=None if seen or not elsewhere else Severity.INFO,
        )


@check("MNB327", Severity.ERROR, cause=Cause.CONTROL_PLANE_CONFIG)
def privileged_port(
    mesh: Mesh,
    symptoms: Symptoms,
    istio_config: pd.DataFrame,
    bootstrap: pd.DataFrame,
    listeners: pd.DataFrame,
    services: pd.DataFrame,
    facts: Facts,
) -> Iterator[Finding]:
    """Every port of a Gateway is one that its pods may open.

    Gateway pods do not run as root. istiod leaves out their ports below 1024, with a warning in its
    log alone, unless the Service leads from that port to a higher one of the pods.
    """
    unprivileged = {
        proxy
        for proxy, known in zip(bootstrap["proxy"], bootstrap["metadata"], strict=True)
        if str((known or {}).get("UNPRIVILEGED_POD", "")).lower() == "true"
    }
    for server in servers(mesh):
        proxies = [pod.proxy for pod in server.pods if pod.proxy in unprivileged]
        front = [one for one in in_front(server.pods, mesh) if one.port == server.declared_port]
        if server.port is None or server.port >= 1024 or not proxies or not front:
            continue
        if (listeners["proxy"].isin(proxies) & (listeners["port"] == server.port)).any():
            continue
        seen = [s for s in symptoms if refused_at(s, server.pods, server.port)]
        gateway = subject_of(server.gateway)
        offered = [Subject("Service", one.namespace, one.service) for one in front[:1]]
        newer = front[0].changed is not None and front[0].changed > server.gateway.changed
        yield Finding(
            offered[0] if newer else gateway,
            f"{server.path} of {gateway} is to open port {server.port} of {and_list(proxies)}, "
            "which may open no port below 1024, so nobody listens there.",
            f"Let the Service lead to a port from 1024 on, with {edit(offered[0])}.",
            evidence=(
                *symptom_rows(facts, seen),
                config_rows(istio_config, server.gateway),
                Evidence.of(bootstrap, bootstrap.index[bootstrap["proxy"].isin(proxies)]),
                *(
                    Evidence.of(rows_of(services, namespace=one.namespace, service=one.name))
                    for one in offered
                ),
            ),
            related=(gateway,) if newer else tuple(offered),
            explains=ids(seen),
            shows=f"nobody listens on port {server.port} of {and_list(proxies)}",
        )


@check("MNB328", Severity.WARNING, cause=Cause.CONTROL_PLANE_CONFIG)
def ingress_ignored(
    mesh: Mesh, symptoms: Symptoms, ingresses: pd.DataFrame, facts: Facts
) -> Iterator[Finding]:
    """Every Ingress whose hosts are asked for at Istio's gateway is one that Istio serves.

    istiod serves an Ingress of its own class, and one without a class only where the mesh's
    ingressControllerMode is DEFAULT. Any other one is left to other controllers: the gateway
    answers 404 with flag NR.
    """
    mode = mesh.settings.get("ingressControllerMode", "STRICT")
    own = mesh.settings.get("ingressClass", "istio")
    for row in ingresses.to_dict("records"):
        named, controller = plain(row["class"]), plain(row["controller"])
        unclaimed = mode == "DEFAULT" and named is None and controller is None
        if mode != "OFF" and (named == own or controller == _ISTIO_INGRESS or unclaimed):
            continue
        hosts = [host for host in row["hosts"] or () if host != "*"]
        seen = [s for s in symptoms if unrouted(s) and for_hosts(s, hosts)]
        if not seen and controller is not None:
            continue  # another controller's
        subject = Subject("Ingress", str(row["namespace"]), str(row["ingress"]))
        index = ingresses.index[
            (ingresses["namespace"] == row["namespace"]) & (ingresses["ingress"] == row["ingress"])
        ]
        why = (
            "ingressControllerMode of the mesh is OFF"
            if mode == "OFF"
            else f"its class is {named}, not {own}"
            if named
            else "it names no class"
        )
        yield Finding(
            subject,
            f"{subject} for {and_list(hosts) or 'all hosts'} is not served by Istio: {why}.",
            f"Set spec.ingressClassName to {own} with {edit(subject)}, and create that "
            "IngressClass.",
            evidence=(*symptom_rows(facts, seen), Evidence.of(ingresses, index)),
            explains=ids(seen),
            severity=Severity.ERROR if seen else Severity.INFO,
        )


#: The controller that an IngressClass of Istio's names.
_ISTIO_INGRESS = "istio.io/ingress-controller"


@check("MNB329", Severity.ERROR, cause=Cause.CONTROL_PLANE_CONFIG)
def route_hidden_from_gateway(
    mesh: Mesh, symptoms: Symptoms, istio_config: pd.DataFrame, routes: pd.DataFrame, facts: Facts
) -> Iterator[Finding]:
    """Every VirtualService at a gateway is exported to the namespace of the gateway's pods.

    exportTo hides an object from the proxies of other namespaces, gateways among them. The gateway
    then has no route for its hosts, and answers 404 with flag NR (route_not_found).
    """
    told: set[ConfigObject] = set()
    for server in servers(mesh):
        if server.section != "http" or not server.pods or server.gateway in told:
            continue
        told.add(server.gateway)
        for service in bound_to(server.gateway, mesh):
            hosts = route_hosts(service, mesh)
            held = rows_of(routes, virtual_service=f"{service.name}.{service.namespace}")
            if seen_by(service, server.pods, mesh):
                continue
            seen = [s for s in symptoms if unrouted(s) and for_hosts(s, hosts)]
            if not seen and held["proxy"].isin([pod.proxy for pod in server.pods]).any():
                continue  # the gateway has its routes, whatever the objects say
            where = and_list(sorted({pod.namespace for pod in server.pods}))
            yield Finding(
                subject_of(service),
                f"{service} is bound to {server.gateway}, but exported to "
                f"{and_list(items(service.spec, 'exportTo')) or 'its own namespace'} only, and the "
                f"pods of the gateway are in {where}.",
                f"Add {where} to spec.exportTo with {edit(subject_of(service))}.",
                evidence=(
                    *symptom_rows(facts, seen),
                    config_rows(istio_config, service, server.gateway),
                ),
                related=(subject_of(server.gateway),),
                explains=ids(seen),
            )
