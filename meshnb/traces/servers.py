"""The servers of Istio's Gateways: which pods open which port for them, and for which hosts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from meshnb.tables.base import dig, items, mapping
from meshnb.traces.mesh import ConfigObject, Mesh, Pod, ServicePort, hosts_overlap
from meshnb.traces.rules import GATEWAY_GROUP, bound_gateways, exported_to, route_hosts

#: TLS modes in which the gateway itself presents a certificate.
TERMINATING = ("SIMPLE", "MUTUAL", "OPTIONAL_MUTUAL", "ISTIO_MUTUAL")
_HTTP = ("HTTP", "HTTP2", "GRPC", "GRPC-WEB", "HTTP_PROXY", "HTTP-PROXY")


@dataclass(frozen=True, slots=True, eq=False)
class Server:
    """One server of one Gateway, and the gateway pods that are to open its port."""

    gateway: ConfigObject
    number: int
    spec: Mapping[str, Any]
    pods: tuple[Pod, ...]
    #: the port on the pods: where a Service translates the Gateway's number, what it leads to
    port: int | None

    @property
    def path(self) -> str:
        """Where it stands in the Gateway."""
        return f"spec.servers[{self.number}]"

    @property
    def declared_port(self) -> int | None:
        """The port that the Gateway names."""
        value = dig(self.spec, "port", "number")
        return value if isinstance(value, int) else None

    @property
    def protocol(self) -> str:
        """The protocol of its port, in capitals."""
        return str(dig(self.spec, "port", "protocol", default="")).upper()

    @property
    def mode(self) -> str:
        """Its TLS mode; empty without TLS. Unsaid, it is PASSTHROUGH, the first of the API."""
        tls = mapping(self.spec, "tls")
        given = str(dig(tls, "mode", default=""))
        return given or ("PASSTHROUGH" if tls and not dig(tls, "httpsRedirect") else "")

    @property
    def is_tls(self) -> bool:
        """Whether its clients speak TLS."""
        return self.protocol in ("HTTPS", "TLS") and bool(self.mode)

    @property
    def section(self) -> str:
        """The part of a VirtualService that it takes routes from; empty when it needs none.

        Istio: only what a server can read decides (gateway.go, ``buildGatewayListeners``). HTTP
        after its own TLS, SNI where TLS is passed through, and nothing else in plain TCP.
        """
        if self.protocol in _HTTP or (self.protocol == "HTTPS" and self.mode in TERMINATING):
            return "http"
        if self.mode == "AUTO_PASSTHROUGH":
            return ""
        if self.mode == "PASSTHROUGH":
            return "tls"
        return "tcp"

    @property
    def bind(self) -> str:
        """The address that it listens on; empty for all."""
        return str(dig(self.spec, "bind", default=""))

    def hosts(self, namespace: str | None = None) -> list[str]:
        """Return its hosts, those that it admits from VirtualServices of a namespace or all."""
        found = []
        for entry in items(self.spec, "hosts"):
            scope, slash, host = str(entry).rpartition("/")
            if scope == ".":
                scope = self.gateway.namespace
            if namespace is None or not slash or scope in ("*", namespace):
                found.append(host)
        return found

    def covers(self, host: str, namespace: str | None = None) -> bool:
        """Whether it is for a host."""
        return any(hosts_overlap(own, host) for own in self.hosts(namespace))

    def secrets(self) -> list[str]:
        """Return the names of the Secrets that it takes certificates from."""
        tls = mapping(self.spec, "tls")
        several = [str(name) for name in items(tls, "credentialNames")]
        own = dig(tls, "credentialName")
        return ([own] if isinstance(own, str) and own else []) + several


def in_front(pods: list[Pod] | tuple[Pod, ...], mesh: Mesh) -> list[ServicePort]:
    """Return the ports of the Services that select any of these pods."""
    return [
        port
        for port in mesh.services
        if port.selector
        and any(
            pod.namespace == port.namespace and port.selector.items() <= pod.labels.items()
            for pod in pods
        )
    ]


def selected_gateways(gateway: ConfigObject, mesh: Mesh) -> list[Pod]:
    """Return the running gateway pods that a Gateway's selector chooses, in any namespace.

    Other pods that carry the labels, such as those with a sidecar, open no port for it.
    """
    chosen = mesh.matching(mapping(gateway.spec, "selector"), None)
    return [pod for pod in chosen if pod.mesh == "gateway"]


def servers(mesh: Mesh) -> list[Server]:
    """Return every server of every Gateway of Istio's own kind, the oldest Gateway's first."""
    return list(_servers(mesh))


def _servers(mesh: Mesh) -> Iterator[Server]:
    gateways = sorted(
        mesh.of("Gateway", GATEWAY_GROUP), key=lambda one: (one.created, one.namespace, one.name)
    )
    for gateway in gateways:
        pods = tuple(selected_gateways(gateway, mesh))
        front = in_front(pods, mesh)
        for number, spec in enumerate(items(gateway.spec, "servers")):
            declared = dig(spec, "port", "number")
            translated = [
                target
                for port in front
                if port.port == declared and (target := mesh.target_port(port)) is not None
            ]
            chosen = translated[0] if translated else declared
            yield Server(gateway, number, spec, pods, chosen if isinstance(chosen, int) else None)


def bound_to(gateway: ConfigObject, mesh: Mesh) -> list[ConfigObject]:
    """Return the VirtualServices that are bound to a Gateway and that its pods may see."""
    name = f"{gateway.namespace}/{gateway.name}"
    return [service for service in mesh.of("VirtualService") if name in bound_gateways(service)]


def seen_by(service: ConfigObject, pods: tuple[Pod, ...] | list[Pod], mesh: Mesh) -> bool:
    """Whether any of these pods' proxies is shown an object, by its exportTo."""
    scope = exported_to(service, mesh)
    return "*" in scope or any(pod.namespace in scope for pod in pods)


def routed(server: Server, service: ConfigObject, mesh: Mesh) -> list[str]:
    """Return the hosts of a VirtualService that a server admits from its namespace."""
    admitted = server.hosts(service.namespace)
    return [
        host
        for host in route_hosts(service, mesh)
        if any(hosts_overlap(host, own) for own in admitted)
    ]
