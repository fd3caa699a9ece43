"""The table ``trust_anchors``: the roots that istiod gives each namespace's proxies to trust."""

from __future__ import annotations

from collections.abc import Iterator

from meshnb.sources.base import Question
from meshnb.tables.base import Column, Facts, Json, Listed, Row, Table, dig
from meshnb.tables.x509 import read_chain

TRUST_ANCHORS = Table(
    name="trust_anchors",
    grain="one row per ConfigMap istio-ca-root-cert",
    asks=Listed("v1", "configmaps", optional=True),
    columns={
        "namespace": Column("string", "its namespace", key=True),
        "config_map": Column("string", "its name", key=True),
        "subject": Column("string", "subject of its first certificate"),
        "not_after": Column("datetime64[us, UTC]", "when that certificate ends"),
        "keys": Column("object", "tuple: the keys that its certificates are for"),
        "fingerprints": Column("object", "tuple: SHA-256 of its certificates"),
        "problem": Column("string", "why its first certificate cannot be read"),
    },
)

#: The agent mounts the ConfigMap of this name into each proxy (Istio 1.30).
_NAME, _KEY = "istio-ca-root-cert", "root-cert.pem"


@TRUST_ANCHORS.reads
def _rows(config_map: Json, question: Question, facts: Facts) -> Iterator[Row]:
    if dig(config_map, "metadata", "name") != _NAME:
        return
    row: Row = {
        "namespace": dig(config_map, "metadata", "namespace"),
        "config_map": _NAME,
        "keys": (),
        "fingerprints": (),
    }
    try:
        chain = read_chain(str(dig(config_map, "data", _KEY, default="")).encode())
    except ValueError as error:
        yield {**row, "problem": str(error)}
        return
    yield {
        **row,
        "subject": chain[0].subject,
        "not_after": chain[0].not_after,
        "keys": tuple(one.subject_key for one in chain if one.subject_key is not None),
        "fingerprints": tuple(one.fingerprint for one in chain),
    }
