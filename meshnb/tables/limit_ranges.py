"""The table ``limit_ranges``: what containers of a namespace may ask for at least and at most."""

from __future__ import annotations

from collections.abc import Iterator

from meshnb.sources.base import Question
from meshnb.tables.base import Column, Facts, Json, Listed, Row, Table, dig, items

LIMIT_RANGES = Table(
    name="limit_ranges",
    grain="one row per LimitRange",
    asks=Listed("v1", "limitranges", optional=True),
    columns={
        "namespace": Column("string", "its namespace", key=True),
        "limit_range": Column("string", "its name", key=True),
        "created": Column("datetime64[us, UTC]", "when it was created", passing=True),
        "limits": Column("object", "its limits as written, a tuple of dicts"),
    },
)


@LIMIT_RANGES.reads
def _rows(document: Json, question: Question, facts: Facts) -> Iterator[Row]:
    yield {
        "namespace": dig(document, "metadata", "namespace"),
        "limit_range": dig(document, "metadata", "name"),
        "created": dig(document, "metadata", "creationTimestamp"),
        "limits": tuple(items(document, "spec", "limits")),
    }
