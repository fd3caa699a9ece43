"""Follow one request: from its client through the recorded proxies, hop by hop, as Envoy would.

A request is what a client sent: a line of an access log without its result, or words such as
``GET /reviews/0 with header end-user: jason from client.bookinfo to reviews:9080``. What comes of
it is a :class:`RequestTrace`: the hops, each with the row of a table that says so, and how the
request may end. What was not recorded, or runs as code in a proxy, is "cannot decide, because …".

>>> from meshnb import Facts, open_source
>>> facts = Facts(open_source("recorded:healthy"))
>>> request = Request.parse(facts, "GET /details/0 from client to details:9080")
>>> follow_request(facts, request).predicted.clusters
('outbound|9080||details.bookinfo.svc.cluster.local',)
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import pandas as pd

from meshnb.errors import UsageError, nearest
from meshnb.sources.base import HttpQuestion
from meshnb.tables import Facts
from meshnb.tables.base import Column, Table, items
from meshnb.tables.envoy import CONFIG_DUMP
from meshnb.traces.ends.places import ports_of, running_pod
from meshnb.traces.envoy.matchers import Headers
from meshnb.traces.hop import Hop
from meshnb.traces.mesh import MESH, Mesh, Pod, plain
from meshnb.traces.peers import Peers, is_forwarded

__all__ = ["Outcome", "Predicted", "Request", "RequestTrace", "follow_request", "requests_of"]

#: Where a request meets its first proxy: on the way out of a pod, or at a proxy's own listener.
LEAVING, ARRIVING = "leaving", "arriving"

_METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH")


@dataclass(frozen=True, slots=True)
class Request:
    """What a client sent, and where: nothing of what came back.

    ``proxy`` is the first proxy that it meets; ``way`` says how: leaving the pod of that proxy, or
    arriving at it. ``method`` is empty for a connection whose bytes are not known or no HTTP.
    ``headers`` are named in lower case; with ``complete`` no other was sent.
    """

    proxy: str
    way: str
    method: str = ""
    path: str = ""
    authority: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    complete: bool = False
    #: the destination that the client chose; the address is empty where only the port is known
    address: str = ""
    port: int = 0
    #: the client's pod as namespace/pod, where it has no Envoy; ``proxy`` is empty then
    client: str = ""
    #: where the client's end of the connection is; empty where it is not known
    source: str = ""
    #: HTTP/1.1 or HTTP/2; empty where it is not known
    protocol: str = ""
    #: whether the client speaks TLS to the first proxy; None where that is not known
    tls: bool | None = None
    server_name: str = ""
    time: datetime | None = None
    #: the ends of the connection that it came by, as the log has them; None where not known
    ends: tuple[str, str] | None = None
    #: the id that proxies give to a request
    id: str = ""

    @classmethod
    def parse(cls, facts: Facts, words: str) -> Request:
        """Return the request that words describe.

        ``[METHOD] PATH [with header NAME: VALUE and header …] from POD to HOST[:PORT]``; METHOD is
        GET when it is left out, POD a pod, ``pod.namespace``, ``namespace/pod``, a workload, or a
        gateway (then HOST is the host that an outside client asks it for, and ``over tls`` may
        follow). What is not named was not sent. Raises UsageError, which says what is missing or
        offers the nearest name.
        """
        return _parsed(facts, words)

    @classmethod
    def of_line(cls, facts: Facts, row: int) -> Request:
        """Return the request of a line of the table ``access_log``, given by its row.

        Only what the client sent is taken from it, never the result. Headers that the log does
        not show are unknown. Raises UsageError for a row that the table does not have.
        """
        count = len(facts["access_log"])
        if not 0 <= row < count:
            raise UsageError(
                f"The table access_log has no row {row}.",
                next_step=f"It has {count} rows, from 0.",
            )
        return requests_of(facts, [row])[0]

    @property
    def known_headers(self) -> Headers:
        """The headers with the pseudo headers, for Envoy's matchers."""
        pseudo = {":method": self.method, ":path": self.path, ":authority": self.authority}
        given = {name: value for name, value in pseudo.items() if value}
        return Headers({**dict(self.headers), **given}, complete=self.complete)

    @property
    def timeless(self) -> Request:
        """The same request at any time and by any connection: it meets what is there now."""
        # Only the dates of a token are compared with the time of a request.
        dated = any(name == "authorization" for name, _ in self.headers)
        return replace(self, time=self.time if dated else None, ends=None, id="")

    def __str__(self) -> str:
        """Say the request in words."""
        where = self.authority or f"{self.address}:{self.port}"
        what = f"{self.method} {self.path}" if self.method else "a connection"
        sent = "".join(f" with header {name}: {value}" for name, value in self.headers)
        side = "from" if self.way == LEAVING else "at"
        return f"{what}{sent} {side} {self.proxy or self.client} to {where}"

    def to_json(self) -> dict[str, Any]:
        """Return the request as an object."""
        return {
            "proxy": self.proxy,
            "client": self.client,
            "way": self.way,
            "method": self.method,
            "path": self.path,
            "authority": self.authority,
            "headers": dict(self.headers),
            "address": self.address,
            "port": self.port,
            "source": self.source,
            "protocol": self.protocol,
            "tls": self.tls,
            "server_name": self.server_name,
            "time": None if self.time is None else self.time.isoformat(),
        }


@dataclass(frozen=True, slots=True)
class Outcome:
    """One way in which a request may end, as the log of its first proxy would have it.

    ``by`` is who ends it: a proxy, ``application``, or empty where that is not known, and then
    ``because`` says why. ``code`` None, ``flags`` None and ``details`` None are not known or left
    to the application.
    """

    by: str
    route: str | None = None
    cluster: str | None = None
    code: int | None = None
    flags: frozenset[str] | None = None
    details: str | None = None
    #: where the first proxy sends it to
    endpoint: str = ""
    #: the policy that refuses it, as Envoy names it
    policy: str = ""
    #: on what it depends; or why it is not known
    because: str = ""
    #: since when what led to route and cluster, and to the rest, has been as it is
    routed_since: datetime | None = None
    since: datetime | None = None
    #: the proxies whose listeners it comes by, each with since when its listener is as it is
    listeners: tuple[tuple[str, datetime], ...] = ()

    @property
    def known(self) -> bool:
        """Whether it is known who ends the request."""
        return bool(self.by)

    def to_json(self) -> dict[str, Any]:
        """Return the outcome as an object."""
        return {
            "by": self.by,
            "route": self.route,
            "cluster": self.cluster,
            "code": self.code,
            "flags": None if self.flags is None else sorted(self.flags),
            "details": self.details,
            "endpoint": self.endpoint,
            "policy": self.policy,
            "because": self.because,
        }


@dataclass(frozen=True, slots=True)
class Predicted:
    """All that the possible ends of a request have between them, each value once.

    A single code says that it is certain; None among the codes is the application's.
    """

    routes: tuple[str | None, ...]
    clusters: tuple[str | None, ...]
    endpoints: tuple[str, ...]
    codes: tuple[int | None, ...]
    flags: tuple[tuple[str, ...] | None, ...]
    details: tuple[str | None, ...]
    policies: tuple[str, ...]
    by: tuple[str, ...]
    undecided: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the prediction as an object."""
        return {
            "routes": list(self.routes),
            "clusters": list(self.clusters),
            "endpoints": list(self.endpoints),
            "codes": list(self.codes),
            "flags": [None if one is None else list(one) for one in self.flags],
            "details": list(self.details),
            "policies": list(self.policies),
            "by": list(self.by),
            "undecided": list(self.undecided),
        }


@dataclass(frozen=True, slots=True)
class RequestTrace:
    """A request, the hops that it comes by, and how it may end.

    Hops that are reached on a condition say so (``when``). ``undecided`` are the reasons why the
    end is not certain; with several outcomes and no reason, Envoy chooses by chance.
    """

    request: Request
    hops: tuple[Hop, ...]
    outcomes: tuple[Outcome, ...]
    undecided: tuple[str, ...] = ()

    @property
    def stopped(self) -> Hop | None:
        """The first hop that surely stops the request; None when none does."""
        return next((hop for hop in self.hops if hop.outcome == "stopped" and not hop.when), None)

    @property
    def predicted(self) -> Predicted:
        """What the outcomes have between them."""
        told = self.outcomes
        return Predicted(
            routes=_each(one.route for one in told),
            clusters=_each(one.cluster for one in told),
            endpoints=_each(one.endpoint for one in told if one.endpoint),
            codes=_each(one.code for one in told),
            flags=_each(None if one.flags is None else tuple(sorted(one.flags)) for one in told),
            details=_each(one.details for one in told),
            policies=_each(one.policy for one in told if one.policy),
            by=_each(one.by for one in told),
            undecided=self.undecided,
        )

    @property
    def says(self) -> str:
        """One sentence: how the request ends, or may end."""
        ends = tuple(dict.fromkeys(map(_end_words, self.outcomes)))
        if not ends:
            return f"Cannot decide how it ends, because {'; '.join(self.undecided)}."
        text = " or ".join(ends)
        return text[:1].upper() + text[1:] + "."

    def to_json(self) -> dict[str, Any]:
        """Return the trace as an object."""
        return {
            "request": self.request.to_json(),
            "says": self.says,
            "hops": [hop.to_json() for hop in self.hops],
            "outcomes": [one.to_json() for one in self.outcomes],
            "predicted": self.predicted.to_json(),
        }

    def frame(self) -> pd.DataFrame:
        """Return one row per hop; the columns are those of :data:`REQUEST_HOPS`."""
        return REQUEST_HOPS.frame(
            (
                _asked(hop.proxy),
                {
                    "position": position,
                    "stage": hop.stage,
                    "proxy": hop.proxy,
                    "outcome": hop.outcome,
                    "says": hop.says,
                    "resource": hop.resource,
                    "object": hop.object,
                    "when": hop.when,
                    "passed_over": tuple(f"{name}: {why}" for name, why in hop.passed_over),
                    "table": hop.table,
                    "row": hop.row,
                    "since": hop.since,
                },
            )
            for position, hop in enumerate(self.hops)
        )


REQUEST_HOPS = Table(
    name="request_hops",
    grain="one row per hop of one request",
    columns={
        "position": Column("Int64", "place of the hop on the way, from 0", key=True),
        "stage": Column("string", "listener, filter chain, virtual host, route, cluster, …"),
        "proxy": Column("string", "the proxy as pod.namespace, or who else decides"),
        "outcome": Column("string", "passed, altered, stopped or undecided"),
        "says": Column("string", "what happens there, in a sentence"),
        "resource": Column("string", "the proxy's name for what decides"),
        "object": Column("string", "the Kubernetes object that it was made from"),
        "when": Column("string", "on which condition the request comes by; empty when surely"),
        "passed_over": Column("object", "tuple: what came before and did not decide, and why"),
        "table": Column("string", "table with the row that says so"),
        "row": Column("Int64", "that row's position in the table"),
        "since": Column("datetime64[us, UTC]", "since when the proxy has what decides"),
    },
)


def follow_request(facts: Facts, request: Request) -> RequestTrace:
    """Follow one request through the recorded proxies.

    For many requests of one source make one ``Follower`` (following/follow.py), which keeps what it
    has decoded.
    """
    from meshnb.traces.following.follow import Follower  # noqa: PLC0415  it makes what is declared here

    return Follower(facts).follow(request)


def _each(values: Iterable[Any]) -> tuple[Any, ...]:
    return tuple(dict.fromkeys(values))


def _end_words(outcome: Outcome) -> str:
    route = f" by route {outcome.route}" if outcome.route else ""
    to = f" for {outcome.cluster}" if outcome.cluster else ""
    if not outcome.known:
        return f"it goes{route}{to}, and what becomes of it is not known: {outcome.because}"
    if outcome.by == "application":
        end = outcome.endpoint or "the application"
        return f"it reaches {end}{route}{to}, and the application answers"
    flags = f" {','.join(sorted(outcome.flags))}" if outcome.flags else ""
    details = f" {outcome.details}" if outcome.details else ""
    on = f" ({outcome.because})" if outcome.because else ""
    what = f"answered {outcome.code}" if outcome.code else "closed"
    return f"it is {what}{flags}{details} by {outcome.by}{route}{to}{on}"


def _asked(proxy: str) -> HttpQuestion:
    pod, _, namespace = proxy.rpartition(".")
    return HttpQuestion(namespace, pod, CONFIG_DUMP.port, CONFIG_DUMP.path)


# --- From a line of an access log ----------------------------------------------------------------

_CHOSEN = (
    *("proxy", "start_time", "method", "path", "protocol", "authority", "user_agent"),
    *("request_id", "requested_server_name", "direction", "x_forwarded_for"),
    *("downstream_local_address", "downstream_remote_address"),
)


def requests_of(facts: Facts, rows: Iterable[int] | None = None) -> list[Request]:
    """Return the requests of lines of ``access_log``, by their rows; of all of them without."""
    log = facts["access_log"]
    chosen = log if rows is None else log.iloc[list(rows)]
    mesh: Mesh = MESH.make(facts)
    columns = {name: chosen[name].tolist() for name in _CHOSEN}
    peers = Peers(facts, mesh)
    return [
        _of_line(mesh, peers, {name: plain(values[row]) for name, values in columns.items()})
        for row in range(len(chosen))
    ]


def _of_line(mesh: Mesh, peers: Peers, line: Mapping[str, Any]) -> Request:
    proxy = str(line["proxy"])
    pod = mesh.pod_of(proxy)
    local = str(line["downstream_local_address"] or "")
    remote = peers.end(line)
    address, port = _endpoint(local)
    source = peers.address(line)
    # By where it goes, not by the cluster it went to: that is a result.
    inbound = address == pod.address if pod is not None else line["direction"] == "inbound"
    if pod is not None and pod.mesh != "sidecar":
        inbound = True
    agent, forwarded = line["user_agent"], line["x_forwarded_for"]
    headers = () if agent is None else (("user-agent", str(agent)),)
    # Only at a sidecar it is what was sent: a gateway adds the peer before it logs.
    sidecar = pod is not None and pod.mesh == "sidecar"
    if forwarded is not None and inbound and sidecar and is_forwarded(line):
        headers = (*headers, ("x-forwarded-for", str(forwarded)))
    method = str(line["method"] or "")
    name = str(line["requested_server_name"] or "")
    return Request(
        proxy=proxy,
        way=ARRIVING if inbound else LEAVING,
        method=method,
        path=str(line["path"] or ""),
        authority=str(line["authority"] or ""),
        headers=headers,
        address=address,
        port=port,
        source=source,
        protocol=str(line["protocol"] or "") if method else "",
        tls=True if name else None,
        server_name=name,
        time=line["start_time"],
        ends=(local, remote),
        id=str(line["request_id"] or ""),
    )


def _endpoint(text: Any) -> tuple[str, int]:
    host, _, port = str(text or "").rpartition(":")
    return host.strip("[]"), int(port) if port.isascii() and port.isdecimal() else 0


# --- From words ----------------------------------------------------------------------------------

_FORM = "Write: GET /path with header name: value from POD to HOST:PORT."
_PARTS = re.compile(r"\s+(?=(?:from|to|with header|and header|over)\s)", re.IGNORECASE)
_URL = re.compile(r"(?:(https?)://([^/?#\s]+))?(\S*)")


def _parsed(facts: Facts, words: str) -> Request:
    first, *rest = _PARTS.split(words.strip())
    method, path, scheme, url_host = _what(first)
    headers: list[tuple[str, str]] = []
    named: dict[str, str] = {}
    for part in rest:
        key, _, value = part.partition(" ")
        if key.lower() in ("with", "and"):
            headers.append(_header(value.partition(" ")[2]))
        else:
            named[key.lower()] = value.strip()
    mesh: Mesh = MESH.make(facts)
    if "from" not in named:
        raise UsageError("It is not said from where the request comes.", next_step=_FORM)
    target = named.get("to", url_host)
    if not target:
        raise UsageError("It is not said where the request goes to.", next_step=_FORM)
    name = named["from"].removeprefix("pod ").removeprefix("proxy ").strip()
    pod = running_pod(mesh, name)
    if pod is None:
        running = [one for one in mesh.pods if one.running]
        known = {one.pod for one in running} | {one.workload for one in running}
        raise UsageError(f"There is no pod {name!r}.", next_step=nearest(name, known))
    secure = scheme == "https" or named.get("over", "").lower() == "tls"
    host, port = _host(target, 443 if secure else 80)
    default = port == (443 if secure else 80)
    authority = url_host or (host if default and ":" not in target else target)
    entering = pod.mesh in ("gateway", "waypoint")
    request = Request(
        proxy=pod.proxy,
        client="" if pod.proxy else f"{pod.namespace}/{pod.pod}",
        way=ARRIVING if entering else LEAVING,
        method=method,
        path=path,
        authority=authority,
        headers=tuple(headers),
        complete=True,
        port=port,
        source="" if entering else pod.address,
        protocol="HTTP/1.1",
        tls=secure,
        server_name=host if secure else "",
    )
    if entering:
        return replace(request, address=pod.address, port=_gateway_port(mesh, pod, port))
    return replace(request, address=_address(mesh, host, port, pod.namespace))


def _what(text: str) -> tuple[str, str, str, str]:
    method, _, path = text.partition(" ")
    if method.upper() not in _METHODS:
        method, path = "GET", text
    found = _URL.fullmatch(path.strip())
    if found is None or not (found[3].startswith("/") or found[2]):
        raise UsageError(f"{text!r} is no method and path.", next_step=_FORM)
    return method.upper(), found[3] or "/", found[1] or "", found[2] or ""


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not name.strip():
        raise UsageError(f"{text!r} is no header.", next_step="Write: with header name: value.")
    return name.strip().lower(), value.strip()


def _host(target: str, default: int) -> tuple[str, int]:
    host, colon, port = target.rpartition(":")
    if not colon or port.endswith("]"):
        return target.strip("[]"), default
    if not port.isascii() or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UsageError(f"{port!r} is no port.", next_step="Write: to HOST:PORT.")
    return host.strip("[]"), int(port)


def _address(mesh: Mesh, host: str, port: int, namespace: str) -> str:
    """Return the address that a pod of a namespace finds for a host; empty for one out of mesh."""
    if re.fullmatch(r"[0-9.]+|[0-9a-fA-F:]*:[0-9a-fA-F:]*", host):
        return host
    host = host.rstrip(".")
    ports = ports_of(mesh, host, namespace)
    if ports:
        if ports[0].cluster_ip and not ports[0].headless:
            return ports[0].cluster_ip
        pods = mesh.selected(ports[0])
        return pods[0].address if pods else ""
    for entry in mesh.of("ServiceEntry"):
        if host in items(entry.spec, "hosts"):
            addresses = [str(one) for one in items(entry.spec, "addresses") if "/" not in str(one)]
            return addresses[0] if addresses else ""
    if "." not in host:
        elsewhere = sorted({s.namespace for s in mesh.services if s.service == host})
        known = {s.service for s in mesh.services if s.namespace == namespace}
        raise UsageError(
            f"There is no Service {host!r} in namespace {namespace}.",
            next_step=f"Write {' or '.join(f'{host}.{one}' for one in elsewhere)}."
            if elsewhere
            else nearest(host, known),
        )
    return ""


def _gateway_port(mesh: Mesh, pod: Pod, port: int) -> int:
    """Return the port of a gateway's pod behind a port of its Service."""
    for service in mesh.services:
        if service.port == port and pod in mesh.selected(service):
            target = service.target_port
            return int(target) if target.isascii() and target.isdecimal() else port
    return port
