"""What a server's proxy decides about a line of its own access log, by the policies that it holds.

The policies are Envoy's, as they stand in the proxy: what an object says may not have arrived, and
not every rule was made from an AuthorizationPolicy. Of a line only what the client sent is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from meshnb.tables import Facts
from meshnb.tables.base import Json, dig, items
from meshnb.tables.envoy import tls_context
from meshnb.traces.envoy.arrival import Arrival, trusted_client
from meshnb.traces.envoy.configs import ProxyConfig, ProxyConfigs, Taken
from meshnb.traces.envoy.filter_chains import (
    HTTP1,
    HTTP2,
    OTHER,
    TLS,
    Connection,
    listener_at,
    match_chain,
)
from meshnb.traces.envoy.matchers import Headers, Undecided, normal_path
from meshnb.traces.envoy.policies import Decisions, deciding
from meshnb.traces.following.identities import Identities
from meshnb.traces.mesh import Mesh, plain
from meshnb.traces.peers import Peers, is_forwarded

#: Columns of the table ``access_log`` that show what a client sent, and to whom.
SENT = (
    *("proxy", "direction", "start_time", "method", "path", "protocol", "authority"),
    *("user_agent", "x_forwarded_for", "request_id", "requested_server_name"),
    *("downstream_local_address", "downstream_remote_address"),
)


@dataclass(frozen=True, slots=True)
class Met:
    """A line's arrival at a proxy, and the filter chain that it meets."""

    arrival: Arrival
    chain: Mapping[str, Any]
    config: ProxyConfig

    def decide(self, names: tuple[str, ...] | None = None) -> Decisions:
        """Return what the chain's policies decide, for a caller with other names when given."""
        arrival = self.arrival if names is None else replace(self.arrival, names=names)
        return deciding(self.chain, arrival, self.config)


class Inbound:
    """What the proxies of one source decide about the lines of their own logs."""

    def __init__(self, facts: Facts, mesh: Mesh) -> None:
        """Take a source's facts; a proxy's configuration is read when it is asked for."""
        self._mesh = mesh
        self.configs = ProxyConfigs(facts)
        self._facts = facts
        self._peers = Peers(facts, mesh)

    @cached_property
    def identities(self) -> Identities:
        """Who the callers are."""
        return Identities(self._facts, self._mesh)

    def listener(self, line: Mapping[str, Any]) -> Taken | None:
        """Return the listener that a line came by; None when it is not known."""
        config = self.configs.of(str(line["proxy"]))
        if config is None:
            return None
        if line["direction"] == "inbound" and "virtualInbound" in config.listeners:
            return config.listeners["virtualInbound"]
        return listener_at(config, *_split(line["downstream_local_address"]))

    def meet(self, line: Mapping[str, Any]) -> Met | Undecided:
        """Return how a line, with the columns ``SENT``, arrives at the policies of its proxy."""
        line = {name: plain(line[name]) for name in SENT}
        config, listener = self.configs.of(str(line["proxy"])), self.listener(line)
        if config is None:
            return Undecided(self.configs.silence(str(line["proxy"])))
        if listener is None:
            return Undecided("no listener takes it")
        time = line["start_time"]
        if time is not None and listener.since is not None and time < listener.since:
            return Undecided("the listener was changed since")
        connection = _connection(line, self._peers.address(line))
        match = match_chain(listener.resource, connection)
        if match.chain is None:
            return Undecided(match.undecided or "no filter chain takes it")
        arrival = self._arrival(line, connection, match.chain)
        if line["method"] is not None:
            manager = _manager(match.chain)
            path = normal_path(str(line["path"]), manager)
            if isinstance(path, Undecided):
                return path
            remote = (
                _split(line["downstream_remote_address"])[0]
                if is_forwarded(line)
                else trusted_client(manager, line["x_forwarded_for"], arrival.source)
            )
            if isinstance(remote, Undecided):
                return remote
            arrival = replace(arrival, headers=_headers(line, path.path), remote=remote)
        return Met(arrival, match.chain, config)

    def _arrival(
        self, line: Mapping[str, Any], connection: Connection, chain: Mapping[str, Any]
    ) -> Arrival:
        context = tls_context(chain.get("transport_socket"))
        names: tuple[str, ...] | Undecided = ()
        if context is not None and context.get("require_client_certificate") is True:
            names = (
                self.identities.names(self._mesh.pod_at(connection.source))
                if connection.source
                else Undecided("who sent it to the proxy is not known")
            )
        return Arrival(
            encrypted=context is not None,
            names=names,
            source=connection.source or None,
            remote=connection.source or None,
            destination=connection.address,
            destination_port=connection.port,
            server_name=connection.server_name,
            time=line["start_time"],
        )


def _connection(line: Mapping[str, Any], source: str) -> Connection:
    address, port = _split(line["downstream_local_address"])
    server_name, request = str(line["requested_server_name"] or ""), line["method"] is not None
    version = HTTP2 if line["protocol"] == "HTTP/2" else HTTP1
    if server_name:
        istio = server_name.startswith("outbound_")
        alpn = ("istio-http/1.1",) if request else ("istio",)
        return Connection(address, port, source, 0, TLS, server_name, alpn if istio else (version,))
    return Connection(address, port, source, 0, version if request else OTHER)


def _manager(chain: Mapping[str, Any]) -> Json:
    return next(
        (
            dig(one, "typed_config")
            for one in items(chain, "filters")
            if str(dig(one, "typed_config", "@type")).endswith("HttpConnectionManager")
        ),
        {},
    )


def _headers(line: Mapping[str, Any], path: str) -> Headers:
    shown = {
        ":method": line["method"],
        ":path": path,
        ":authority": line["authority"],
        "x-forwarded-for": line["x_forwarded_for"],
        "user-agent": line["user_agent"],
    }
    return Headers({name: None if value is None else str(value) for name, value in shown.items()})


def _split(text: Any) -> tuple[str, int]:
    host, _, port = str(text or "").rpartition(":")
    return host.strip("[]"), int(port) if port.isascii() and port.isdecimal() else 0
