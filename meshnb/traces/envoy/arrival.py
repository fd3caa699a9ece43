"""A request, or a connection, as it arrives at the proxy that decides about it.

What was sent is not what arrives: the address is the pod's, the path is normalised, and the caller
is whoever its certificate says. Policies are evaluated against this.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from meshnb.tables.base import Json, items, mapping
from meshnb.traces.envoy.matchers import Headers, Truth, Undecided

#: Where a waypoint keeps the caller's identity, whose TLS ended before the policies are asked.
PEER_PRINCIPAL = "io.istio.peer_principal"

#: Of a bare connection: there is no header at all, so none matches.
NO_HEADERS = Headers(complete=True)


@dataclass(frozen=True, slots=True)
class Arrival:
    """What the server's proxy sees. An address is None when it is not known.

    ``names`` are the URIs and DNS names of the certificate that the client showed, in this order;
    empty in plain text. ``metadata`` is what filters wrote down, by the name of the filter.
    """

    headers: Headers = NO_HEADERS
    #: whether the connection is TLS that ends at this proxy
    encrypted: Truth = False
    names: tuple[str, ...] | Undecided = ()
    subject: str = ""
    #: the address that the connection comes from
    source: str | None = None
    #: the address of the client, behind the proxies that are trusted to say it
    remote: str | None = None
    destination: str | None = None
    destination_port: int | None = None
    #: what the client asked for in its TLS handshake; empty for nothing
    server_name: str | Undecided = ""
    time: datetime | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def identity(self) -> str:
        """The caller's first name, in words where there is none."""
        if isinstance(self.names, Undecided):
            return f"not known ({self.names.reason})"
        if self.names:
            return self.names[0].removeprefix("spiffe://")
        if self.encrypted is True:
            return "none: the client showed no certificate"
        return "none: the connection is in plain text"

    def noted(self, filter_name: str, values: Mapping[str, Any]) -> Arrival:
        """Return the arrival with what a filter wrote down; later values win."""
        known = mapping(dict(self.metadata), filter_name)
        return replace(self, metadata={**self.metadata, filter_name: {**known, **values}})

    def metadata_value(self, filter_name: str, path: tuple[str, ...]) -> Json | Undecided:
        """Return what a filter wrote down at a path; None when there is nothing."""
        value: Json | Undecided = self.metadata.get(filter_name)
        for step in path:
            if isinstance(value, Undecided):
                return value
            value = mapping(value).get(step)
        return value


def trusted_client(connection: Json, forwarded: str | Undecided | None, direct: str | None) -> Any:
    """Return the client's address as an HTTP connection manager takes it; Undecided, None likewise.

    At an edge (``use_remote_address``) it is the connection's own, or, behind proxies that are
    trusted, the entry of X-Forwarded-For that the outermost of them wrote; elsewhere it is the last
    entry (https://www.envoyproxy.io/docs/envoy/latest/configuration/http/http_conn_man/headers).
    """
    fields = mapping(connection)
    hops = fields.get("xff_num_trusted_hops", 0)
    hops = hops if isinstance(hops, int) else 0
    edge = fields.get("use_remote_address") is True
    if items(fields, "original_ip_detection_extensions"):
        return Undecided("the client's address is detected by an extension")
    if edge and not hops:
        return direct
    if isinstance(forwarded, Undecided):
        return forwarded
    entries = [entry.strip() for entry in (forwarded or "").split(",") if entry.strip()]
    place = hops if edge else hops + 1
    return entries[-place] if len(entries) >= place else direct
