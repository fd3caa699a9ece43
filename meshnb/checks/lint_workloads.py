"""Checks of Services and workloads as they are written. Codes MNB1200 to MNB1249."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from meshnb.checks.base import Finding, and_list
from meshnb.checks.lint import Say, lint
from meshnb.tables import Facts
from meshnb.tables.base import Json, dig, items, mapping
from meshnb.tables.services import declared_protocol
from meshnb.traces.objects import Object, Objects

#: User of the sidecar: what runs as that user is not redirected to it.
_PROXY_USER = 1337

#: Who made a Service or Deployment for a Gateway of the Gateway API, by this label.
_MANAGED = "gateway.istio.io/managed"
_WAYPOINTS = "istio.io-mesh-controller"
_CONTROLLERS = ("istio.io-gateway-controller", _WAYPOINTS, "istio.io-eastwest-controller")


def _of_control_plane(item: Object) -> bool:
    """Whether an object is a part of Istio itself, by the labels that Istio's charts give."""
    return "istio" in item.labels or item.labels.get("release") == "istio"


@lint("MNB1201", "IST0118", "IST0150")
def port_without_protocol(objects: Objects, facts: Facts) -> Iterator[Finding]:
    """Every port of a Service says which protocol is spoken there.

    By appProtocol, or by the name up to the first hyphen. Where neither is a protocol that Istio
    knows, proxies look at the first bytes: a server that speaks first waits for a client that
    waits for it. For an ExternalName Service the port is TCP then, and a TCP port takes traffic
    that is meant for others.
    """
    say = Say(objects, facts)
    for service in objects.of("Service"):
        if _of_control_plane(service) or service.labels.get(_MANAGED) in _CONTROLLERS:
            continue
        external = service.spec.get("type") == "ExternalName"
        for position, port in enumerate(items(service.spec, "ports")):
            name, number = dig(port, "name", default=""), dig(port, "port")
            protocol = declared_protocol(
                number, name, dig(port, "protocol"), dig(port, "appProtocol")
            )
            if protocol != "auto" and not (external and name == "tcp"):
                continue
            said = dig(port, "appProtocol") or name
            title = f"is called {said}" if said else "has no name"
            yield from say(
                service,
                f"Port {number} of {service} {title}, which tells proxies no protocol",
                fix="Set appProtocol, or begin the name with the protocol and a hyphen,",
                path=f"spec.ports[{position}].name",
                key=(name, number, dig(port, "targetPort")) if not external else (),
                same_as="IST0150" if external else "IST0118",
            )


def _services(objects: Objects, deployment: Object) -> list[Object]:
    """Return the Services that select the pods of a Deployment.

    A Service without a selector selects none, although Istio's analysis takes it for one of all.
    """
    labels = mapping(deployment.spec, "template", "metadata", "labels")
    return [
        service
        for service in objects.of("Service")
        for selector in [mapping(service.spec, "selector")]
        if service.namespace == deployment.namespace
        and selector
        and selector.items() <= labels.items()
    ]


def _deployments(objects: Objects) -> Iterator[tuple[Object, list[Object]]]:
    """Yield the Deployments of the mesh, but waypoints, with the Services in front of each."""
    for deployment in objects.of("Deployment"):
        if objects.in_mesh(deployment) and deployment.labels.get(_MANAGED) != _WAYPOINTS:
            yield deployment, _services(objects, deployment)


@lint("MNB1202", "IST0116")
def protocols_on_one_port(objects: Objects, facts: Facts) -> Iterator[Finding]:
    """No two Services offer one port of the same pods with different protocols.

    The sidecar has one listener for the port, and can serve it with one of them only.
    """
    say = Say(objects, facts)
    for deployment, services in _deployments(objects):
        used: dict[Any, dict[str, list[Object]]] = {}
        for service in services:
            for port in items(service.spec, "ports"):
                protocol = str(dig(port, "protocol", default="TCP"))
                used.setdefault(dig(port, "port"), {}).setdefault(protocol, []).append(service)
        for number, protocols in used.items():
            if len(protocols) < 2:
                continue
            involved = [one for group in protocols.values() for one in group]
            said = and_list(
                f"{protocol} by {and_list(map(str, group))}"
                for protocol, group in protocols.items()
            )
            yield from say(
                deployment,
                f"Port {number} of the pods of {deployment} is offered as {said}",
                fix="Give one of them another port, or look",
                key=(number,),
                lines=False,
                same_as="IST0116",
                related=involved,
            )


@lint("MNB1203", "IST0137")
def ports_to_one_target(objects: Objects, facts: Facts) -> Iterator[Finding]:
    """No two ports of Services lead to the same port of the same pods.

    Sidecars know inbound traffic by the port of the pod only, so policies and metrics for the one
    Service port hold for the other.
    """
    say = Say(objects, facts)
    for deployment, services in _deployments(objects):
        used: dict[str, dict[Any, Object]] = {}
        for service in services:
            for port in items(service.spec, "ports"):
                number = dig(port, "port")
                target = dig(port, "targetPort") or number
                used.setdefault(str(target), {})[number] = service
        for target, ports in used.items():
            if len(ports) < 2:
                continue
            said = and_list(f"{number} of {service}" for number, service in ports.items())
            yield from say(
                deployment,
                f"Port {target} of the pods of {deployment} is behind several ports: {said}",
                fix="Let each of them lead to a port of its own, or look",
                key=(target,),
                lines=False,
                same_as="IST0137",
                related=ports.values(),
            )


@lint("MNB1204", "IST0144")
def runs_as_proxy(objects: Objects, facts: Facts) -> Iterator[Finding]:
    """No application runs as the user of the sidecar, 1337.

    What that user sends is taken for the sidecar's own and not redirected to it, or else it would
    go round in circles: such an application is not in the mesh.
    """
    say = Say(objects, facts)
    for item in (*objects.of("Pod"), *objects.of("Deployment")):
        if _of_control_plane(item):
            continue
        pod = item.kind == "Pod"
        spec = item.spec if pod else mapping(item.spec, "template", "spec")
        path = "spec" if pod else "spec.template.spec"
        for where, context in _contexts(spec):
            if context.get("runAsUser") == _PROXY_USER:
                yield from say(
                    item,
                    f"{item} runs as user {_PROXY_USER}, like its sidecar, so its traffic bypasses "
                    "the mesh",
                    fix="Choose another user",
                    path=f"{path}.{where}.runAsUser",
                    key=(),
                    lines=False,
                    same_as="IST0144",
                )


def _contexts(spec: Json) -> Iterator[tuple[str, Mapping[str, Any]]]:
    yield "securityContext", mapping(spec, "securityContext")
    for position, container in enumerate(items(spec, "containers")):
        if dig(container, "name") not in ("istio-proxy", "istio-operator"):
            yield f"containers[{position}].securityContext", mapping(container, "securityContext")
