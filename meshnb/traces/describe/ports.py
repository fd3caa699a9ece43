"""The ports of a pod, as its containers declare them and its Services lead to them."""

from __future__ import annotations

from collections.abc import Iterator

from meshnb.tables.base import Json, dig, items
from meshnb.traces.describe.base import PortOf, ServiceOf
from meshnb.traces.describe.known import Known
from meshnb.traces.mesh import Pod, ServicePort


def declared_ports(document: Json) -> Iterator[tuple[int, str]]:
    """Yield the ports that a pod's containers declare, as istioctl lists them."""
    for container in items(document, "spec", "containers"):
        for port in items(container, "ports"):
            number = dig(port, "containerPort")
            if isinstance(number, int):
                yield number, str(dig(container, "name", default=""))


def pod_port(service: ServicePort, document: Json) -> int | None:
    """Return the number of a Service's port in a pod; None when the pod has no such port."""
    if service.target_port.isdecimal():
        return int(service.target_port)
    for part in ("containers", "initContainers"):
        for container in items(document, "spec", part):
            for port in items(container, "ports"):
                if dig(port, "name") == service.target_port:
                    number = dig(port, "containerPort")
                    return number if isinstance(number, int) else None
    return None


def service_of(known: Known, ports: list[ServicePort], pod: Pod | None) -> ServiceOf:
    """Return a Service, given by its ports, as a pod sees it."""
    document = known.document(pod) if pod is not None else None
    return ServiceOf(
        ports[0].namespace,
        ports[0].service,
        ports[0].host,
        tuple(
            PortOf(
                one.port,
                one.port_name,
                one.protocol,
                one.target_port,
                pod_port(one, document),
            )
            for one in ports
            if one.port is not None
        ),
    )
