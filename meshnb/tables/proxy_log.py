"""The table ``proxy_log``: what proxies themselves have to say."""

from __future__ import annotations

from collections.abc import Iterator

from meshnb.sources.base import Question
from meshnb.tables.access_log import reader_of
from meshnb.tables.base import Column, Facts, Json, Logged, Row, Table
from meshnb.tables.envoy import proxy_of
from meshnb.tables.log_lines import own_line, own_lines

PROXY_LOG = Table(
    name="proxy_log",
    grain="one row per line of a proxy's own log",
    asks=Logged(("istio-proxy",)),
    columns={
        "proxy": Column("string", "the proxy as pod.namespace", key=True),
        "line": Column("Int64", "line of the log, from 1", key=True, passing=True),
        "time": Column("datetime64[us, UTC]", "when it was written", passing=True),
        "level": Column("string", "trace, debug, info, warn, error, critical or fatal"),
        "scope": Column("string", "part of the program that wrote it; Envoy's begin with envoy"),
        "message": Column("string", "the text"),
    },
)


@PROXY_LOG.reads
def _rows(text: Json, question: Question, facts: Facts) -> Iterator[Row]:
    read = facts.once(reader_of)
    for number, line in own_lines(text):
        if read(line) is None:
            yield {"proxy": proxy_of(question), "line": number, **own_line(line)}
