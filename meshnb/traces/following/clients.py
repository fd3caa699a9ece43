"""What a client may speak to the first proxy that its request meets.

A log does not say it: it follows from what the request is, or from what the caller's own proxy
speaks to the address. Where several things are possible, each is one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from meshnb.traces.envoy.balancing import hosts_of
from meshnb.traces.envoy.configs import ProxyConfig, ProxyConfigs
from meshnb.traces.envoy.filter_chains import HTTP1, HTTP2, OTHER, TLS, Connection
from meshnb.traces.following.delivery import Spoken, spoken
from meshnb.traces.mesh import Mesh, Pod
from meshnb.traces.request import ARRIVING, Request

#: Istio's listeners for all that comes to a pod, and for what no other listener takes of the rest.
INBOUND, OUTBOUND = "virtualInbound", "virtualOutbound"
_ISTIO_ALPN = (
    ("istio",),
    ("istio-http/1.1",),
    ("istio-h2",),
    ("istio-peer-exchange", "istio"),
)


def is_sidecar(config: ProxyConfig | None) -> bool:
    """Whether all that comes to a proxy's pod comes by one listener, as a sidecar has it."""
    return config is not None and INBOUND in config.listeners


class Clients:
    """The clients of one source."""

    def __init__(self, mesh: Mesh, configs: ProxyConfigs) -> None:
        """Take what names mean, and what the callers' own proxies hold."""
        self._mesh = mesh
        self._configs = configs

    def connections(self, request: Request) -> Iterator[tuple[Connection, str]]:
        """Yield what the client may speak to the first proxy, each on its condition."""
        base = Connection(request.address, request.port, request.source)
        version = HTTP2 if request.protocol == "HTTP/2" else HTTP1
        secured = replace(base, speaks=TLS, server_name=request.server_name)
        plain_http = replace(base, speaks=version)
        if request.way == ARRIVING and is_sidecar(self._configs.of(request.proxy)):
            yield from self._from_callers(request, base, version)
        elif request.tls:
            alpn = ("h2",) if version == HTTP2 else ("http/1.1",)
            yield replace(secured, alpn=alpn), ""
            if not request.method:
                yield secured, "the client's TLS offers no ALPN"
        elif request.method:
            yield plain_http, ""
        else:
            yield replace(base, speaks=OTHER), "the client speaks no HTTP"
            yield secured, "the client speaks TLS without server name"
            yield plain_http, "the client speaks HTTP"

    def _from_callers(
        self, request: Request, base: Connection, version: str
    ) -> Iterator[tuple[Connection, str]]:
        """Yield what a caller may speak to a sidecar: as its own proxy would, if it has one."""
        caller = self._mesh.pod_at(request.source)
        found: dict[Connection, None] = {}
        for said in self._said_by(caller, request):
            if said.speaks == TLS and request.tls is False:
                continue
            if (said.server_name if said.speaks == TLS else "") != request.server_name:
                continue
            speaks = said.speaks if said.speaks == TLS else version
            found[replace(base, speaks=speaks, server_name=said.server_name, alpn=said.alpn)] = None
        if not found and request.server_name:
            offers = _ISTIO_ALPN if request.server_name.startswith("outbound_.") else ((),)
            for alpn in offers:
                found[replace(base, speaks=TLS, server_name=request.server_name, alpn=alpn)] = None
        elif not found and (request.method or request.tls is False):
            found[replace(base, speaks=version)] = None
        elif not found:
            for speaks in (HTTP1, OTHER, TLS):
                found[replace(base, speaks=speaks)] = None
        for connection in found:
            yield connection, f"the client speaks {connection}" if len(found) > 1 else ""

    def _said_by(self, caller: Pod | None, request: Request) -> Iterator[Spoken]:
        """Yield what a caller's proxy speaks to this address, by each cluster that has it."""
        config = self._configs.of(caller.proxy) if caller is not None and caller.proxy else None
        if config is None:
            return
        base = Connection(request.address, request.port, request.source)
        for name, taken in config.clusters.items():
            if not name.startswith("outbound|"):
                continue
            for host in hosts_of(config, name):
                if (host.address, host.port) == (request.address, request.port):
                    # An empty manager would be a bare connection; which filters it has is open.
                    yield spoken(taken.resource, host, base, {"http_filters": []})
