"""The table ``init_log``: what Istio's init containers said while they set up a pod's traffic."""

from __future__ import annotations

from collections.abc import Iterator

from meshnb.sources.base import LogQuestion, Question
from meshnb.tables.base import Column, Facts, Json, Logged, Row, Table
from meshnb.tables.log_lines import own_line, own_lines

INIT_LOG = Table(
    name="init_log",
    grain="one row per line of the log of istio-init or istio-validation",
    asks=Logged(("istio-init", "istio-validation")),
    columns={
        "namespace": Column("string", "namespace of the pod", key=True),
        "pod": Column("string", "the pod", key=True),
        "container": Column("string", "istio-init or istio-validation", key=True),
        "line": Column("Int64", "line of the log, from 1", key=True, passing=True),
        "time": Column("datetime64[us, UTC]", "when it was written", passing=True),
        "level": Column("string", "info, warn, error, …"),
        "message": Column("string", "the text"),
    },
)


@INIT_LOG.reads
def _rows(text: Json, question: Question, facts: Facts) -> Iterator[Row]:
    assert isinstance(question, LogQuestion)
    for number, line in own_lines(text):
        read = own_line(line)
        yield {
            "namespace": question.namespace,
            "pod": question.pod,
            "container": question.container,
            "line": number,
            **{name: read.get(name) for name in ("time", "level", "message")},
        }
