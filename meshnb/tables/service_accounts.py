"""The table ``service_accounts``: the identities that workloads can have."""

from __future__ import annotations

from collections.abc import Iterator

from meshnb.sources.base import Question
from meshnb.tables.base import Column, Facts, Json, Listed, Row, Table, dig

SERVICE_ACCOUNTS = Table(
    name="service_accounts",
    grain="one row per service account",
    asks=Listed("v1", "serviceaccounts"),
    columns={
        "namespace": Column("string", "namespace of the service account", key=True),
        "service_account": Column("string", "name of the service account", key=True),
        "created": Column("datetime64[us, UTC]", "when it was created", passing=True),
    },
)


@SERVICE_ACCOUNTS.reads
def _rows(account: Json, question: Question, facts: Facts) -> Iterator[Row]:
    yield {
        "namespace": dig(account, "metadata", "namespace"),
        "service_account": dig(account, "metadata", "name"),
        "created": dig(account, "metadata", "creationTimestamp"),
    }
