"""A request from a proxy to a cluster: which hosts, what is spoken to them, and what comes back.

The cluster is looked up, its hosts are chosen as Envoy would, and for each the connection's
transport is worked out: TLS by the endpoint's label, or plain text. What the server then says is
what the client's proxy passes on, or how the connection fails.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from meshnb.tables.base import Json, dig, items, mapping
from meshnb.tables.envoy import tls_context
from meshnb.traces.ends.transport import upstream_socket
from meshnb.traces.envoy.balancing import Host
from meshnb.traces.envoy.filter_chains import HTTP1, HTTP2, TLS, Connection
from meshnb.traces.request import Outcome

_HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
_RESET = "upstream_reset_before_response_started"


@dataclass(frozen=True, slots=True)
class Spoken:
    """What a proxy speaks to a host: TLS with name and ALPN, or plain HTTP or bytes."""

    speaks: str
    server_name: str = ""
    alpn: tuple[str, ...] = ()
    #: name of the transport socket that was chosen, such as tlsMode-istio
    socket: str = ""
    #: names one of which the server's certificate must have; empty for any
    wanted: tuple[str, ...] = ()

    def to(self, host: Host, source: str) -> Connection:
        """Return the connection to a host, from an address."""
        return Connection(
            host.address, host.port, source, 0, self.speaks, self.server_name, self.alpn
        )


def spoken(cluster: Json, host: Host, connection: Connection, manager: Json) -> Spoken:
    """Return what a proxy speaks to a host of a cluster.

    ``connection`` is the client's: a bare one is handed on byte by byte. ``manager`` is the HTTP
    connection manager that the request came by, empty for a bare connection.
    """
    plain = _version(cluster, connection) if manager else connection.speaks
    socket, name = upstream_socket(cluster, host)
    context = tls_context(socket)
    if context is None:
        if not manager and connection.speaks == TLS:
            return Spoken(TLS, connection.server_name, connection.alpn, name)
        return Spoken(plain, socket=name)
    common = mapping(context, "common_tls_context")
    alpn = tuple(str(one) for one in items(common, "alpn_protocols"))
    server_name = str(context.get("sni") or "")
    return Spoken(TLS, server_name, _overridden(manager, plain) or alpn, name, _wanted(common))


def _version(cluster: Json, connection: Connection) -> str:
    """Return the HTTP version that a cluster speaks: what it says, or the client's."""
    options = mapping(cluster, "typed_extension_protocol_options", _HTTP_OPTIONS)
    explicit = mapping(options, "explicit_http_config")
    if "use_downstream_protocol_config" in options:
        return HTTP2 if connection.speaks == HTTP2 or "h2" in connection.alpn else HTTP1
    two = "http2_protocol_options" in explicit or "http2_protocol_options" in mapping(cluster)
    return HTTP2 if two else HTTP1


def _overridden(manager: Json, version: str) -> tuple[str, ...]:
    """Return the ALPN that Istio's own filter asks for, by the HTTP version."""
    wanted = "HTTP2" if version == HTTP2 else "HTTP11"
    for one in items(manager, "http_filters"):
        for override in items(one, "typed_config", "alpn_override"):
            if dig(override, "upstream_protocol", default="HTTP10") == wanted:
                return tuple(str(text) for text in items(override, "alpn_override"))
    return ()


def _wanted(common: Mapping[str, Any]) -> tuple[str, ...]:
    context = mapping(common, "combined_validation_context", "default_validation_context")
    context = context or mapping(common, "validation_context")
    exact = [dig(one, "exact") for one in items(context, "match_subject_alt_names")]
    exact += [
        dig(one, "matcher", "exact") for one in items(context, "match_typed_subject_alt_names")
    ]
    return tuple(str(one) for one in exact) if exact and all(exact) else ()


# --- What comes back -----------------------------------------------------------------------------


def returned(
    there: Outcome, said: Spoken, sent_as: Outcome, retries: Mapping[str, Any], *, bare: bool
) -> Outcome:
    """Return what a client's proxy logs, from what the server's proxy does.

    ``sent_as`` is the outcome as far as the client's proxy knows it; ``retries`` its retry policy.
    """
    if there.by in ("", "application"):
        because = there.because if not there.known else sent_as.because
        return replace(sent_as, by=there.by, because=because, flags=None)
    because = "; ".join(dict.fromkeys(one for one in (sent_as.because, there.because) if one))
    found = replace(sent_as, by=there.by, policy=there.policy, because=because)
    if bare:
        return replace(found, code=0, flags=None)
    tries = retries.get("num_retries", 1) if retries else 0
    again = {one.strip() for one in str(retries.get("retry_on", "")).split(",")} if tries else set()
    if there.code == 0:
        return _cut(found, said, again)
    if said.speaks == TLS and there.details == "http1.codec_error":
        flags = frozenset({"UF", "URX"} if "connect-failure" in again else {"UF"})
        details = f"{_RESET}{{remote_connection_failure|TLS_error…"
        return replace(found, code=503, flags=flags, details=details)
    code = there.code
    retried = code is not None and code >= 500 and bool(again)
    return replace(
        found, code=code, flags=None if retried else sent_as.flags, details="via_upstream"
    )


def _cut(found: Outcome, said: Spoken, again: set[str]) -> Outcome:
    """Return what is logged of a connection that the server closes without an answer."""
    if said.speaks == TLS:
        flags = None if again else frozenset({"UF"})
        return replace(found, code=503, flags=flags, details=f"{_RESET}{{…")
    # The connection stands before it is closed, so only a policy for resets tries again.
    cut = frozenset({"UC"})
    if again & {"reset", "5xx", "gateway-error", "reset-before-request"}:
        cut = frozenset({"UC", "URX"})
    return replace(found, code=503, flags=cut, details=f"{_RESET}{{…")


def unshaken(found: Outcome, retries: Mapping[str, Any]) -> Outcome:
    """Return what a client's proxy logs of a TLS handshake that one end refuses."""
    again = str(retries.get("retry_on", "")) if retries.get("num_retries", 1) else ""
    flags = frozenset({"UF", "URX"} if "connect-failure" in again else {"UF"})
    return replace(found, code=503, flags=flags, details=f"{_RESET}{{…")
