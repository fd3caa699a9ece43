"""The table ``istiod_log``: what istiod has to say."""

from __future__ import annotations

from collections.abc import Iterator

from meshnb.sources.base import LogQuestion, Question
from meshnb.tables.base import Column, Facts, Json, Logged, Row, Table
from meshnb.tables.log_lines import own_line, own_lines

ISTIOD_LOG = Table(
    name="istiod_log",
    grain="one row per line of istiod's log",
    asks=Logged(("discovery",)),
    columns={
        "istiod": Column("string", "the istiod pod", key=True),
        "namespace": Column("string", "its namespace", key=True),
        "line": Column("Int64", "line of the log, from 1", key=True, passing=True),
        "time": Column("datetime64[us, UTC]", "when it was written", passing=True),
        "level": Column("string", "trace, debug, info, warn, error, critical or fatal"),
        "scope": Column("string", "part of istiod that wrote it"),
        "message": Column("string", "the text"),
    },
)


@ISTIOD_LOG.reads
def _rows(text: Json, question: Question, facts: Facts) -> Iterator[Row]:
    assert isinstance(question, LogQuestion)
    for number, line in own_lines(text):
        yield {
            "istiod": question.pod,
            "namespace": question.namespace,
            "line": number,
            **own_line(line),
        }
