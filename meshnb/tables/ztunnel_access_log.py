"""The table ``ztunnel_access_log``: each connection that a ztunnel carried or refused."""

from __future__ import annotations

import re
from collections.abc import Iterator

from meshnb.sources.base import LogQuestion, Question
from meshnb.tables.base import Column, Facts, Json, Logged, Row, Table

#: ``key=value`` or ``key="value"``, as ztunnel writes the fields of its log lines.
_FIELD = re.compile(r'([a-z_.]+)=(?:"((?:[^"\\]|\\.)*)"|(\S+))')
_DURATION = re.compile(r"([\d.]+)(ms|s|µs|us)")
_TO_MS = {"ms": 1.0, "s": 1000.0, "us": 0.001, "µs": 0.001}

ZTUNNEL_ACCESS_LOG = Table(
    name="ztunnel_access_log",
    grain="one row per connection that a ztunnel logged, at either end",
    asks=Logged(("istio-proxy",)),
    columns={
        "ztunnel": Column("string", "ztunnel pod that wrote the line", key=True),
        "line": Column("Int64", "number of the line in its log, from 1", key=True, passing=True),
        "time": Column("datetime64[us, UTC]", "when the connection ended", passing=True),
        "level": Column("string", "info, or error when it failed"),
        "direction": Column("string", "inbound at the server's end, outbound at the client's"),
        "source_address": Column("string", "address and port of the client"),
        "source_namespace": Column("string", "namespace of the client"),
        "source_pod": Column("string", "pod of the client"),
        "source_identity": Column("string", "SPIFFE identity of the client; absent in plain text"),
        "destination_address": Column("string", "address and port that was connected to"),
        "destination_hbone_address": Column("string", "address and port within the tunnel"),
        "destination_service": Column("string", "host of the Service that was asked for"),
        "destination_namespace": Column("string", "namespace of the server"),
        "destination_pod": Column("string", "pod of the server"),
        "destination_identity": Column("string", "SPIFFE identity of the server"),
        "bytes_sent": Column("Int64", "bytes sent"),
        "bytes_received": Column("Int64", "bytes received"),
        "duration_ms": Column("Float64", "how long the connection lasted, in milliseconds"),
        "error": Column("string", "why it failed, in ztunnel's words"),
    },
    istioctl="kubectl logs of the ztunnel pod",
)


@ZTUNNEL_ACCESS_LOG.reads
def _rows(log: Json, question: Question, facts: Facts) -> Iterator[Row]:
    pod = question.pod if isinstance(question, LogQuestion) else ""
    for number, line in enumerate(str(log).split("\n"), start=1):
        if "\taccess\t" not in line:
            continue
        time, level, _, text = [*line.split("\t", 3), "", "", ""][:4]
        fields = {key: quoted or bare for key, quoted, bare in _FIELD.findall(text)}
        duration = _DURATION.fullmatch(fields.get("duration", ""))
        yield {
            "ztunnel": pod,
            "line": number,
            "time": time,
            "level": level,
            "direction": fields.get("direction"),
            "source_address": fields.get("src.addr"),
            "source_namespace": fields.get("src.namespace"),
            "source_pod": fields.get("src.workload"),
            "source_identity": fields.get("src.identity"),
            "destination_address": fields.get("dst.addr"),
            "destination_hbone_address": fields.get("dst.hbone_addr"),
            "destination_service": fields.get("dst.service"),
            "destination_namespace": fields.get("dst.namespace"),
            "destination_pod": fields.get("dst.workload"),
            "destination_identity": fields.get("dst.identity"),
            "bytes_sent": fields.get("bytes_sent"),
            "bytes_received": fields.get("bytes_recv"),
            "duration_ms": float(duration[1]) * _TO_MS[duration[2]] if duration else None,
            "error": fields.get("error"),
        }
