"""The table ``secrets``: which Secrets there are and what their certificates say, never a value."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from typing import Any

from meshnb.sources.base import Question
from meshnb.tables.base import Column, Facts, Json, Listed, Row, Table, dig, mapping
from meshnb.tables.metadata import labels_of
from meshnb.tables.x509 import read_first_certificate

SECRETS = Table(
    name="secrets",
    grain="one row per Secret",
    asks=Listed("v1", "secrets"),
    columns={
        "namespace": Column("string", "namespace of the Secret", key=True),
        "secret": Column("string", "name of the Secret", key=True),
        "type": Column("string", "its type, such as kubernetes.io/tls"),
        "keys": Column("object", "names of its keys, a tuple; their values are never shown"),
        "certificate_subject": Column("string", "subject of its first certificate"),
        "certificate_sans": Column("object", "names its first certificate is valid for, a tuple"),
        "not_before": Column("datetime64[us, UTC]", "when that certificate begins"),
        "not_after": Column("datetime64[us, UTC]", "when that certificate ends"),
        "problem": Column("string", "why its certificate cannot be read"),
        "created": Column("datetime64[us, UTC]", "when it was created", passing=True),
        "labels": Column("object", "its labels, a dict"),
    },
)

#: Keys under which certificates stand, the more telling first: kubernetes.io/tls, Istio's generic
#: credentials, plugged-in CAs, and CA bundles.
_CERTIFICATE_KEYS = (
    "tls.crt",
    "cert",
    "cert-chain.pem",
    "ca-cert.pem",
    "cacert",
    "ca.crt",
    "root-cert.pem",
)


@SECRETS.reads
def _rows(secret: Json, question: Question, facts: Facts) -> Iterator[Row]:
    values = mapping(secret, "data")
    yield {
        "namespace": dig(secret, "metadata", "namespace"),
        "secret": dig(secret, "metadata", "name"),
        "type": dig(secret, "type"),
        "keys": tuple(sorted(map(str, values))),
        "certificate_sans": (),
        "created": dig(secret, "metadata", "creationTimestamp"),
        "labels": labels_of(secret),
        **_certificate(values),
    }


def _certificate(values: Mapping[str, Any]) -> Row:
    for key in _CERTIFICATE_KEYS:
        # istiod keeps keys that it does not need, such as cert-chain.pem, with an empty value.
        if not values.get(key) and not (key == "tls.crt" and key in values):
            continue
        try:
            certificate = read_first_certificate(base64.b64decode(str(values[key] or "")))
        except ValueError as error:
            return {"problem": f"{key}: {error}"}
        return {
            "certificate_subject": certificate.subject,
            "certificate_sans": certificate.sans,
            "not_before": certificate.not_before,
            "not_after": certificate.not_after,
        }
    return {}
