"""The table ``request_metrics``: what Istio's proxies count of requests and TCP connections."""

from __future__ import annotations

from collections.abc import Iterator

from meshnb.sources.base import HttpQuestion, Question
from meshnb.tables.base import Column, Facts, Got, Json, Row, Table
from meshnb.tables.envoy import proxy_of
from meshnb.tables.prometheus import samples

#: Where the metrics of a proxy stand, the fullest page first: the agent's, merged with the
#: application's own, then Envoy's (Istio: ops/integrations/prometheus).
_PAGES = (
    Got(15020, "/stats/prometheus", text=True),
    Got(15020, "/metrics", text=True),
    Got(15090, "/stats/prometheus", text=True),
    Got(15000, "/stats/prometheus", text=True),
)

REQUEST_METRICS = Table(
    name="request_metrics",
    grain="one row per proxy and series of Istio's standard metrics of requests and connections",
    asks=_PAGES,
    columns={
        "proxy": Column("string", "the proxy as pod.namespace", key=True),
        "metric": Column(
            "string",
            "istio_requests_total, istio_tcp_connections_opened_total or …_closed_total",
            key=True,
        ),
        "labels": Column("string", "all labels as printed", key=True),
        "reporter": Column("string", "source, destination or waypoint: whose proxy counted"),
        "source_workload": Column("string", "who asked; unknown outside the mesh"),
        "source_namespace": Column("string", "its namespace"),
        "source_principal": Column("string", "its identity, where the connection was mutual TLS"),
        "destination_workload": Column("string", "who was asked"),
        "destination_namespace": Column("string", "its namespace"),
        "service": Column("string", "the host that was asked"),
        "service_name": Column("string", "the Service's name; also BlackHoleCluster and the like"),
        "service_namespace": Column("string", "the Service's namespace"),
        "protocol": Column("string", "http, grpc or tcp"),
        "response_code": Column("Int64", "status; 0 for none"),
        "response_flags": Column("string", "Envoy's response flags; - for none"),
        "grpc_status": Column("string", "status of a call of gRPC, as a number"),
        "security": Column("string", "mutual_tls, none, or unknown where it cannot be told"),
        "value": Column("Float64", "how many since the proxy started", passing=True),
    },
)

_PREFIXES = (
    "istio_requests_total",
    "istio_tcp_connections_opened_total",
    "istio_tcp_connections_closed_total",
)
#: Columns, by the labels of Istio's standard metrics (Istio: reference/config/metrics).
_LABELS = {
    "reporter": "reporter",
    "source_workload": "source_workload",
    "source_namespace": "source_workload_namespace",
    "source_principal": "source_principal",
    "destination_workload": "destination_workload",
    "destination_namespace": "destination_workload_namespace",
    "service": "destination_service",
    "service_name": "destination_service_name",
    "service_namespace": "destination_service_namespace",
    "protocol": "request_protocol",
    "response_code": "response_code",
    "response_flags": "response_flags",
    "grpc_status": "grpc_response_status",
    "security": "connection_security_policy",
}


@REQUEST_METRICS.derives
def _rows(facts: Facts) -> Iterator[tuple[Question, Row]]:
    """Read one page of each proxy: the first that has such series."""
    counted: set[str] = set()
    for page in _PAGES:
        if not any(page.matches(question) for question in facts.source.questions()):
            continue  # any of them is enough
        before = frozenset(counted)
        for question, row in facts.read(page, _series):
            if row["proxy"] not in before:
                counted.add(row["proxy"])
                yield question, row


def _series(text: Json, question: Question, facts: Facts) -> Iterator[Row]:
    assert isinstance(question, HttpQuestion)
    for sample in samples(text, *_PREFIXES):
        labels = sample.labels
        row: Row = {column: labels.get(label) for column, label in _LABELS.items()}
        code = row["response_code"]
        row["response_code"] = int(code) if code is not None and code.isdecimal() else None
        yield {
            "proxy": proxy_of(question),
            "metric": sample.metric,
            "labels": sample.printed,
            **row,
            "value": sample.value,
        }
