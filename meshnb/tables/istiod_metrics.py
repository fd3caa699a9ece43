"""The table ``istiod_metrics``: istiod's own counters and gauges."""

from __future__ import annotations

from collections.abc import Iterator

from meshnb.sources.base import HttpQuestion, Question
from meshnb.tables.base import Column, Facts, Got, Json, Row, Table
from meshnb.tables.istiod_ports import istiod_pods
from meshnb.tables.prometheus import samples

ISTIOD_METRICS = Table(
    name="istiod_metrics",
    grain="one row per istiod and sample",
    asks=Got(15014, "/metrics", text=True),
    columns={
        "istiod": Column("string", "the istiod pod", key=True),
        "namespace": Column("string", "its namespace", key=True),
        "metric": Column("string", "name, such as pilot_xds_pushes", key=True),
        "labels": Column(
            "string", 'labels as printed, such as type="cds"; empty for none', key=True
        ),
        "value": Column("Float64", "the value; its unit stands in the metric's name", passing=True),
    },
)


@ISTIOD_METRICS.reads
def _rows(text: Json, question: Question, facts: Facts) -> Iterator[Row]:
    assert isinstance(question, HttpQuestion)
    # The CNI agent of an ambient mesh has a page of the same name on the same port.
    if (question.namespace, question.pod) not in istiod_pods(facts):
        return
    for sample in samples(text):
        yield {
            "istiod": question.pod,
            "namespace": question.namespace,
            "metric": sample.metric,
            "labels": sample.printed,
            "value": sample.value,
        }
