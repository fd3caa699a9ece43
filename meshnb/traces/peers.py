"""Who is at the other end of a connection, where the log shows somebody else.

Behind a gateway the connection manager takes the client's address from X-Forwarded-For, and its log
has that in place of the peer's; such an address has port 0
(https://www.envoyproxy.io/docs/envoy/latest/configuration/http/http_conn_man/headers). Who sent the
request is the proxy that logged the same id and, as the endpoint, the address that was asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from ipaddress import ip_address
from typing import Any

from meshnb.tables import Facts
from meshnb.traces.mesh import Mesh, plain

#: Columns of the table ``access_log`` by which the peer is found.
COLUMNS = (
    *("proxy", "direction", "request_id", "x_forwarded_for"),
    *("downstream_local_address", "downstream_remote_address"),
)
_SENT = (
    *(
        "proxy",
        "direction",
        "cluster",
        "request_id",
        "upstream_host",
        "upstream_local_address",
        "downstream_local_address",
    ),
)


def is_forwarded(line: Mapping[str, Any]) -> bool:
    """Whether the remote address of a line is one that X-Forwarded-For names, not the peer's."""
    remote = str(plain(line["downstream_remote_address"]) or "")
    if remote.endswith(":0"):
        return True
    # A format may leave the port out. A gateway adds the peer itself to the header.
    last = str(plain(line["x_forwarded_for"]) or "").rpartition(",")[2].strip()
    return line["direction"] == "inbound" and bool(last) and last == host_of(remote)


class Peers:
    """The peers of the lines of one source's access logs."""

    def __init__(self, facts: Facts, mesh: Mesh) -> None:
        """Take a source's facts; its log is read when the first peer has to be looked up."""
        self._facts = facts
        self._mesh = mesh

    def end(self, line: Mapping[str, Any]) -> str:
        """Return a peer's address and port, for a line with ``COLUMNS``.

        Empty where it is not known; the port is 0 where only the address is.
        """
        if not is_forwarded(line):
            return str(plain(line["downstream_remote_address"]) or "")
        asked = (plain(line["request_id"]), plain(line["downstream_local_address"]))
        return self._ends.get((str(asked[0]), str(asked[1])), "") if all(asked) else ""

    def address(self, line: Mapping[str, Any]) -> str:
        """Return a peer's address, for a line with ``COLUMNS``; empty where it is not known."""
        return host_of(self.end(line))

    @cached_property
    def _ends(self) -> Mapping[tuple[str, str], str]:
        """By a request's id and the endpoint that it was sent to."""
        log = self._facts["access_log"]
        log = log[log["request_id"].notna() & log["upstream_host"].notna()]
        found: dict[tuple[str, str], set[str]] = {}
        for values in zip(*(log[name].tolist() for name in _SENT), strict=True):
            proxy, direction, cluster, request, host, local, asked = map(plain, values)
            if direction == "inbound" and not str(cluster or "").startswith("inbound-vip|"):
                continue  # it was handed to the application
            pod = self._mesh.pod_of(str(proxy))
            if pod is not None and pod.mesh == "sidecar" and host_of(str(asked)) == pod.address:
                continue
            # A waypoint logs a tunnel's endpoint behind the name of its own listener.
            endpoint = str(host).rpartition("/")[2]
            found.setdefault((str(request), endpoint), set()).add(self._end(proxy, local))
        return {key: _only(ends) for key, ends in found.items()}

    def _end(self, proxy: Any, local: Any) -> str:
        if _is_address(host_of(str(local or ""))):
            return str(local)
        pod = self._mesh.pod_of(str(proxy))
        return f"{pod.address}:0" if pod is not None and pod.address else ""


def _only(ends: set[str]) -> str:
    """Return what all ends have in common: the end, its address alone, or nothing."""
    if len(ends) == 1:
        return next(iter(ends))
    hosts = {host_of(end) for end in ends}
    return f"{next(iter(hosts))}:0" if len(hosts) == 1 else ""


def host_of(address: str) -> str:
    """Return the address without its port, if it has one, and without brackets."""
    host, colon, port = address.rpartition(":")
    with_port = bool(colon) and port.isdigit() and not _is_address(address)
    return (host if with_port else address).strip("[]")


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True
