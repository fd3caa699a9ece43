"""The table ``access_log``: the requests and connections that proxies wrote down."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from meshnb.sources.base import LogQuestion, Question
from meshnb.tables.base import Column, Facts, Json, Logged, Row, Table, records
from meshnb.tables.envoy import proxy_of
from meshnb.tables.log_lines import AccessLogReader, access_log_reader

ACCESS_LOG = Table(
    name="access_log",
    grain="one row per request or connection that a proxy logged",
    asks=Logged(("istio-proxy",)),
    columns={
        "proxy": Column("string", "the proxy as pod.namespace", key=True),
        "line": Column("Int64", "line of the log, from 1", key=True, passing=True),
        "start_time": Column("datetime64[us, UTC]", "when it began", passing=True),
        "method": Column("string", "HTTP method; NA for a connection"),
        "path": Column("string", "path with query, as the client sent it"),
        "protocol": Column("string", "HTTP/1.1, HTTP/2, …"),
        "response_code": Column("Int64", "status that the client got; 0 for none"),
        "response_flags": Column("string", "Envoy's short reasons as printed, - for none"),
        "flags": Column("object", "tuple: the same, one by one"),
        "details": Column("string", "who made the response, and why: via_upstream, …"),
        "connection_details": Column("string", "why Envoy closed the connection"),
        "upstream_failure": Column("string", "why the connection to the endpoint failed"),
        "bytes_received": Column("Int64", "bytes of the request's body"),
        "bytes_sent": Column("Int64", "bytes of the response's body"),
        "duration_ms": Column("Float64", "how long it took altogether, in milliseconds"),
        "upstream_service_time_ms": Column(
            "Float64", "how long the endpoint took to answer, in milliseconds"
        ),
        "x_forwarded_for": Column("string", "addresses it came through"),
        "user_agent": Column("string", "the client's program, in its own words"),
        "request_id": Column("string", "the same in each proxy that the request passed"),
        "authority": Column("string", "host that was asked for"),
        "upstream_host": Column("string", "address and port of the endpoint"),
        "cluster": Column("string", "cluster it was sent to"),
        "upstream_local_address": Column("string", "the proxy's own address towards the endpoint"),
        "downstream_local_address": Column("string", "address that the client asked for"),
        "downstream_remote_address": Column("string", "the client's address"),
        "requested_server_name": Column("string", "the client's SNI"),
        "route_name": Column("string", "name of the route it took"),
        "direction": Column("string", "inbound (to the proxy's own pod) or outbound; or unknown"),
        "namespace": Column("string", "namespace of the proxy"),
        "pod": Column("string", "pod of the proxy"),
        "workload": Column("string", "workload of the proxy"),
    },
)


@ACCESS_LOG.reads
def _rows(text: Json, question: Question, facts: Facts) -> Iterator[Row]:
    assert isinstance(question, LogQuestion)
    read = facts.once(reader_of)
    pod = facts.once(_pods).get((question.namespace, question.pod), _NO_POD)
    own = {
        "proxy": proxy_of(question),
        "namespace": question.namespace,
        "pod": question.pod,
        "workload": pod["workload"],
    }
    split: dict[str, tuple[str, ...]] = {"-": (), "": ()}
    for number, line in enumerate(text.split("\n"), start=1):
        fields = read(line)
        if fields is None:
            continue
        row = {column: value for column, value in fields.items() if value not in ("-", "")}
        row |= own
        row["line"] = number
        printed = str(fields.get("response_flags", "-"))
        flags = split.get(printed)
        if flags is None:
            flags = split[printed] = tuple(printed.split(","))
        row["response_flags"], row["flags"] = printed, flags
        if (cluster := row.get("cluster")) is not None:
            row["cluster"] = str(cluster).rstrip(";")  # an alternative name for statistics ends so
        row["direction"] = _direction(row, pod)
        yield row


def reader_of(facts: Facts) -> AccessLogReader:
    """Return the reader of this mesh's access logs: Istio's formats, and the mesh's own."""
    settings = facts["mesh_settings"]
    formats = settings.loc[settings["setting"] == "accessLogFormat", "value"].dropna()
    return access_log_reader(None if formats.empty else str(formats.iloc[0]))


#: Of a pod that a log is of: workload, address and kind, None where it is not known.
_NO_POD: Mapping[str, str | None] = {"workload": None, "address": None, "mesh": None}


def _pods(facts: Facts) -> Mapping[tuple[str, str], Mapping[str, str | None]]:
    """Return what lines of a log take over from their pod, by its namespace and name."""
    found: dict[tuple[str, str], Mapping[str, str | None]] = {}
    for pod in records(facts["pods"][["namespace", "pod", *_NO_POD]]):
        own = {name: None if pod[name] is None else str(pod[name]) for name in _NO_POD}
        found.setdefault((str(pod["namespace"]), str(pod["pod"])), own)
    return found


def _direction(row: Row, pod: Mapping[str, str | None]) -> str:
    if pod["mesh"] == "gateway":
        return "outbound"
    if (cluster := row.get("cluster")) is not None:
        return "inbound" if cluster[:7].lower() == "inbound" else "outbound"
    # Nothing was chosen; a sidecar is asked for the pod's own address when the request comes in.
    local = str(row.get("downstream_local_address", "")).rpartition(":")[0].strip("[]")
    unread = str(row.get("response_code", "0")) == "0" or "DPE" in row["flags"]
    if pod["mesh"] == "sidecar" and not local and unread and not {"method", "authority"} & set(row):
        # The format has no addresses. Outbound listeners of a sidecar have a filter chain for every
        # connection, so NR, which tells that there was none, comes from the inbound one.
        return "inbound" if row["flags"] == ("NR",) else "unknown"
    return "inbound" if pod["mesh"] == "sidecar" and local == pod["address"] else "outbound"
