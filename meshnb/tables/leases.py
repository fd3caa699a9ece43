"""The table ``leases``: which replica holds each lease, as leaders of controllers do."""

from __future__ import annotations

from collections.abc import Iterator

from meshnb.sources.base import Question
from meshnb.tables.base import Column, Facts, Json, Listed, Row, Table, dig

LEASES = Table(
    name="leases",
    grain="one row per Lease",
    asks=Listed("coordination.k8s.io", "leases", optional=True),
    columns={
        "namespace": Column("string", "its namespace", key=True),
        "lease": Column("string", "its name", key=True),
        "holder": Column("string", "who holds it"),
        "renewed": Column("datetime64[us, UTC]", "when it was renewed last", passing=True),
        "duration_s": Column("Float64", "how long it lasts without being renewed, in seconds"),
        "acquired": Column("datetime64[us, UTC]", "since when its holder has it", passing=True),
    },
)


@LEASES.reads
def _rows(lease: Json, question: Question, facts: Facts) -> Iterator[Row]:
    yield {
        "namespace": dig(lease, "metadata", "namespace"),
        "lease": dig(lease, "metadata", "name"),
        "holder": dig(lease, "spec", "holderIdentity"),
        "renewed": dig(lease, "spec", "renewTime"),
        "duration_s": dig(lease, "spec", "leaseDurationSeconds"),
        "acquired": dig(lease, "spec", "acquireTime"),
    }
