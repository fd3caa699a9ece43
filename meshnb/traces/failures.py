"""The trace ``failures``: each failed request or connection, followed to the hop where it began.

One failure writes a line at every proxy that it passes. The client's proxy says ``via_upstream``,
the server's proxy says why; when an application calls on, its own answer repeats what it was told.
Only the line where the failure began is a symptom; the others say who suffered.

A log format of a mesh's own may leave fields out. What follows of the others is filled in here,
from what Envoy's documentation says of response flags and clusters; anything else stays empty.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import pandas as pd

from meshnb.tables import Facts
from meshnb.traces.base import Trace
from meshnb.traces.mesh import plain
from meshnb.traces.peers import host_of, is_forwarded

#: The caller went away: its own line says why.
_CALLER_LEFT = frozenset({"DC", "DR"})
#: How the details of a line begin when a policy refused.
_REFUSED = ("rbac_access_denied", "jwt_authn_access_denied")
#: An answer with one of these flags was made by the proxy that logged it.
_VIA_UPSTREAM = "via_upstream"
_RESET = "upstream_reset_before_response_started"
#: How the details begin that Envoy writes with a flag (Envoy: configuration/observability/
#: access_log/usage, "Response Flags", and configuration/http/http_conn_man/response_code_details).
_DETAILS_OF: Mapping[str, str] = {
    "NR": "route_not_found",
    "NC": "cluster_not_found",
    "UH": "no_healthy_upstream",
    "UT": "upstream_response_timeout",
    "UPE": f"{_RESET}{{protocol_error}}",
    "UC": f"{_RESET}{{connection_termination}}",
    "UR": f"{_RESET}{{remote_reset}}",
    "UO": f"{_RESET}{{overflow}}",
    "UF": _RESET,
    "DC": "downstream_remote_disconnect",
    "RL": "request_rate_limited",
    "FI": "fault_filter_abort",
    "UAEX": "ext_authz_denied",
}
#: A status that an application answers for what is not its caller's mistake.
_SERVER_ERROR = 500
#: Times in logs are cut off to milliseconds.
_MILLISECOND = 1.0
#: How a server's proxy says that it has no filter chain for what a client began with.
_NO_CHAIN = "filter_chain_not_found"


@dataclass(frozen=True, slots=True)
class Failure:
    """One failed request or connection, at the hop where it began.

    ``callers`` are the proxies that sent the request to this hop and passed the failure on.
    ``index`` is the row of the table ``access_log``, or -1 of one that proxies have only counted.
    """

    index: int
    proxy: str
    namespace: str
    pod: str
    workload: str
    direction: str
    time: datetime | None
    method: str
    path: str
    code: int
    flags: frozenset[str]
    details: str
    connection_details: str
    upstream_failure: str
    authority: str
    cluster: str
    upstream_host: str
    local_address: str
    #: the client's; see ``peer_address``
    remote_address: str
    server_name: str
    route_name: str
    duration_ms: float
    callers: tuple[str, ...]
    #: authority and path, without its query, as the request was made, at each hop that logged it
    asked: tuple[tuple[str, str], ...]
    #: whether X-Forwarded-For names the remote address, which is then not that of who sent it here
    forwarded: bool = False

    @property
    def peer_address(self) -> str:
        """The address at the other end of the connection, without port; empty if not shown."""
        return "" if self.forwarded else host_of(self.remote_address)

    @property
    def answered_by_application(self) -> bool:
        """Whether the answer came from behind the last proxy, so that the mesh only carried it."""
        return self.details == _VIA_UPSTREAM and not self.flags - {"URX"}

    @property
    def is_connection(self) -> bool:
        """Whether it was a bare connection, without a request that the proxy could read."""
        return not self.method


@dataclass(frozen=True, slots=True)
class Failures:
    """All failures of a source, and how many requests and connections its proxies logged at all."""

    failures: tuple[Failure, ...]
    logged: int
    #: the first and the last time in any access log
    first: datetime | None
    last: datetime | None

    def __iter__(self) -> Iterator[Failure]:
        """Yield each failure."""
        return iter(self.failures)

    def __len__(self) -> int:
        """Return the number of failures."""
        return len(self.failures)


_COLUMNS = (
    "proxy",
    "namespace",
    "pod",
    "workload",
    "direction",
    "start_time",
    "method",
    "path",
    "response_code",
    "flags",
    "details",
    "connection_details",
    "upstream_failure",
    "authority",
    "cluster",
    "upstream_host",
    "downstream_local_address",
    "downstream_remote_address",
    "x_forwarded_for",
    "requested_server_name",
    "route_name",
    "duration_ms",
    "request_id",
)


def failed(log: pd.DataFrame) -> pd.Series:
    """Return which lines of an access log report a failure, as a boolean series.

    An HTTP status of 400 or more, any response flag, a request without a status, or a connection
    that was ended for a stated reason. A plain connection logs status 0 and no flag: that is
    success. A call of gRPC that a policy refuses is logged with 200 and no flag; its details tell.
    """
    code = log["response_code"].fillna(0)
    refused = log["details"].fillna("").astype(str).str.startswith(_REFUSED)
    # A delayed request that succeeded carries DI alone; it is a symptom as well.
    return (
        (code >= 400)
        | (log["response_flags"].fillna("-") != "-")
        | ((code == 0) & log["method"].notna())
        | log["connection_details"].notna()
        | refused
    ).astype(bool)


def _make(facts: Facts) -> Failures:
    log = facts["access_log"]
    chosen = log[failed(log)]
    columns = {name: chosen[name].tolist() for name in _COLUMNS}
    rows = [
        _completed({name: plain(values[position]) for name, values in columns.items()})
        | {"index": index}
        for position, index in enumerate(chosen.index.tolist())
    ]
    times = log["start_time"].dropna()
    return Failures(
        failures=tuple(_origins(rows, _forwarding(log))),
        logged=len(log),
        first=times.min().to_pydatetime() if len(times) else None,
        last=times.max().to_pydatetime() if len(times) else None,
    )


def _completed(row: dict[str, Any]) -> dict[str, Any]:
    """Fill in what a line does not tell because its format has no such field, where it follows."""
    flags = set(row["flags"] or ()) - {"URX"}
    if not row["details"] and row["method"]:
        if flags:
            row["details"] = next((_DETAILS_OF[one] for one in _DETAILS_OF if one in flags), None)
        elif row["response_code"] and row["upstream_host"]:
            row["details"] = _VIA_UPSTREAM  # what a proxy answers itself went to no endpoint
    elif not row["details"] and flags == {"NR"} and not row["cluster"]:
        row["details"] = _NO_CHAIN
    cluster = row["cluster"] or ""
    # These two send a connection on to the very address that it was for.
    if not row["downstream_local_address"] and cluster.startswith(("inbound|", "Passthrough")):
        row["downstream_local_address"] = row["upstream_host"]
    return row


def _forwarding(log: pd.DataFrame) -> frozenset[str]:
    """Return the proxies whose applications pass on the id of a request when they call on."""
    known = log[log["request_id"].notna()]
    inbound = known[known["direction"] == "inbound"]
    outbound = known[known["direction"] == "outbound"]
    served = set(zip(inbound["proxy"], inbound["request_id"], strict=True))
    asked = set(zip(outbound["proxy"], outbound["request_id"], strict=True))
    return frozenset(proxy for proxy, _ in served & asked)


def _meanwhile(row: dict[str, Any], calls: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the calls that an application began and ended while it worked on a request."""
    if row["start_time"] is None or row["duration_ms"] is None:
        return []
    begin = row["start_time"]
    end = begin + timedelta(milliseconds=float(row["duration_ms"]) + _MILLISECOND)
    return [
        call
        for call in calls
        if call["start_time"] is not None
        and begin <= call["start_time"]
        and call["start_time"] + timedelta(milliseconds=float(call["duration_ms"] or 0)) <= end
    ]


def _origins(rows: list[dict[str, Any]], forwarding: frozenset[str]) -> Iterator[Failure]:
    """Yield each failure where it began.

    The id of a request joins the calls of an application with the request that it works on, where
    the application passes it on; ``forwarding`` are their proxies. Elsewhere time has to do.
    """
    by_proxy: dict[str, list[dict[str, Any]]] = {}
    inbound: dict[tuple[str, str], list[dict[str, Any]]] = {}
    outbound_of: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        if not row["request_id"]:
            continue
        if row["direction"] == "inbound":
            key = (row["request_id"], row["downstream_local_address"] or "")
            inbound.setdefault(key, []).append(row)
        else:
            outbound_of.setdefault((row["request_id"], row["proxy"]), []).append(row)
            by_proxy.setdefault(row["proxy"], []).append(row)

    consequences: set[int] = set()
    callers: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        if row["direction"] == "inbound" or not row["request_id"]:
            continue
        for deeper in inbound.get((row["request_id"], row["upstream_host"] or ""), ()):
            if _left(deeper) and not _left(row) and row["details"] != _VIA_UPSTREAM:
                consequences.add(deeper["index"])
            else:
                consequences.add(row["index"])
                callers.setdefault(deeper["index"], []).append(row)
    for row in rows:
        if row["direction"] != "inbound" or not row["request_id"]:
            continue
        if row["details"] == _VIA_UPSTREAM or _left(row):
            calls: Sequence[dict[str, Any]] = outbound_of.get((row["request_id"], row["proxy"]), ())
            if row["proxy"] not in forwarding and (row["response_code"] or 0) >= _SERVER_ERROR:
                calls = _meanwhile(row, by_proxy.get(row["proxy"], ()))
            if any(
                _passed_on(
                    row, call, inbound.get((call["request_id"], call["upstream_host"] or ""))
                )
                for call in calls
            ):
                consequences.add(row["index"])
    for row in rows:
        if row["index"] not in consequences:
            yield _failure(row, callers.get(row["index"], ()))


def _passed_on(
    answer: dict[str, Any], call: dict[str, Any], deeper: Sequence[dict[str, Any]] | None
) -> bool:
    """Whether what an application answered follows from a failed call that it made meanwhile."""
    code = call["response_code"] or 0
    if _left(call) or not code or code >= 500:
        return True
    # Another application's 4xx may be an everyday answer, such as that nothing was found. Passed on
    # as it is, it is not this application's own; one that the mesh made is never everyday.
    made_by_mesh = any(hop["details"] != _VIA_UPSTREAM for hop in (call, *(deeper or ())))
    return not _left(answer) and code >= 400 and (made_by_mesh or code == answer["response_code"])


def _left(row: dict[str, Any]) -> bool:
    return bool(_CALLER_LEFT & set(row["flags"] or ()))


def _failure(row: dict[str, Any], callers: Sequence[dict[str, Any]]) -> Failure:
    return Failure(
        index=row["index"],
        proxy=row["proxy"] or "",
        namespace=row["namespace"] or "",
        pod=row["pod"] or "",
        workload=row["workload"] or row["pod"] or "",
        direction=row["direction"] or "outbound",
        time=row["start_time"].to_pydatetime() if row["start_time"] is not None else None,
        method=row["method"] or "",
        path=row["path"] or "",
        code=int(row["response_code"] or 0),
        flags=frozenset(row["flags"] or ()),
        details=row["details"] or "",
        connection_details=row["connection_details"] or "",
        upstream_failure=row["upstream_failure"] or "",
        authority=row["authority"] or "",
        cluster=row["cluster"] or "",
        upstream_host=row["upstream_host"] or "",
        local_address=row["downstream_local_address"] or "",
        remote_address=row["downstream_remote_address"] or "",
        server_name=row["requested_server_name"] or "",
        route_name=row["route_name"] or "",
        duration_ms=float(row["duration_ms"] or 0.0),
        callers=tuple(dict.fromkeys(caller["proxy"] or "" for caller in callers)),
        asked=tuple(
            dict.fromkeys(
                (hop["authority"] or "", (hop["path"] or "").partition("?")[0])
                for hop in (*callers, row)
            )
        ),
        forwarded=is_forwarded(row),
    )


FAILURES = Trace(
    name="failures",
    title="Every failed request and connection, at the hop where the failure began.",
    reads=("access_log",),
    make=_make,
)
