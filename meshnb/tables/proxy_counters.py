"""The table ``proxy_counters``: what each Envoy has counted, and its gauges."""

from __future__ import annotations

from collections.abc import Iterator

from meshnb.sources.base import Question
from meshnb.tables.base import Block, Column, Facts, Got, Json, Table
from meshnb.tables.envoy import proxy_of

PROXY_COUNTERS = Table(
    name="proxy_counters",
    grain="one row per proxy and counter or gauge that is in use",
    asks=Got(15000, "/stats?usedonly", text=True),
    istioctl="istioctl experimental envoy-stats POD.NAMESPACE",
    columns={
        "proxy": Column("string", "the proxy as pod.namespace", key=True),
        "counter": Column("string", "Envoy's name of it, such as server.live", key=True),
        "value": Column("Int64", "counted since the proxy started; a gauge's is now", passing=True),
    },
)


@PROXY_COUNTERS.reads
def _rows(text: Json, question: Question, facts: Facts) -> Iterator[Block]:
    """Read the lines with whole numbers; those with texts and histograms are left out."""
    pairs = (line.rpartition(": ") for line in text.splitlines())
    values = [
        (name.strip(), int(value)) for name, _, value in pairs if name and value.strip().isdecimal()
    ]
    yield Block(("counter", "value"), values, {"proxy": proxy_of(question)})
