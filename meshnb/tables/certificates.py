"""The table ``certificates``: the certificates and trusted roots that a proxy holds."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from meshnb.sources.base import Question
from meshnb.tables.base import Column, Facts, Json, Row, Table, dig, items, mapping
from meshnb.tables.envoy import CONFIG_DUMP, proxy_of, section
from meshnb.tables.x509 import chain_keys, read_chain

CERTIFICATES = Table(
    name="certificates",
    grain="one row per proxy and secret",
    asks=CONFIG_DUMP,
    istioctl="istioctl proxy-config secret POD.NAMESPACE",
    columns={
        "proxy": Column("string", "the proxy as pod.namespace", key=True),
        "resource_name": Column(
            "string", "default (its own), ROOTCA (whom it trusts), kubernetes://SECRET, …", key=True
        ),
        "type": Column("string", "Cert Chain or CA; NA without a certificate"),
        "status": Column("string", "ACTIVE, or WARMING while the proxy waits for it"),
        "valid_cert": Column("boolean", "whether it is valid at the time of the answer"),
        "serial_number": Column("string", "serial number in hexadecimal digits"),
        "not_after": Column("datetime64[us, UTC]", "when it ends"),
        "not_before": Column("datetime64[us, UTC]", "when it begins"),
        "trust_domain": Column("string", "trust domain of its SPIFFE name"),
        "sans": Column("object", "tuple: subject alternative names"),
        "subject": Column("string", "subject"),
        "issuer": Column("string", "issuer"),
        "root_fingerprint": Column("string", "of a CA: SHA-256 in hexadecimal digits"),
        "chain_keys": Column(
            "object", "of a chain: tuple of the keys by any of which it can be trusted"
        ),
        "trusted_keys": Column("object", "of CAs: tuple of the keys that they are for"),
        "expires_in_s": Column(
            "Float64", "seconds from the answer to its end; negative when over", passing=True
        ),
        "version": Column("string", "version of the secret", passing=True),
        "last_updated": Column("datetime64[us, UTC]", "when the proxy got it", passing=True),
        "problem": Column("string", "why there is no certificate, or why it cannot be read"),
    },
)

_STATES = {"dynamic_warming_secrets": "WARMING", "dynamic_active_secrets": "ACTIVE"}


@CERTIFICATES.reads
def _rows(dump: Json, question: Question, facts: Facts) -> Iterator[Row]:
    found = section(dump, "SecretsConfigDump", question, facts)
    taken_at = facts.answer(question).taken_at
    for part, status in _STATES.items():
        for entry in items(found, part):
            for trust_domain, source in _sources(mapping(entry, "secret")):
                yield {
                    "proxy": proxy_of(question),
                    "resource_name": dig(entry, "name", default=""),
                    "status": status,
                    "version": dig(entry, "version_info"),
                    "last_updated": dig(entry, "last_updated"),
                    **_certificate(source, taken_at),
                    **({} if trust_domain is None else {"trust_domain": trust_domain}),
                }


def _sources(secret: Mapping[str, Any]) -> list[tuple[str | None, Json]]:
    """Return where a secret's certificates stand, each with its trust domain if it has its own."""
    validation = mapping(secret, "validation_context")
    bundles = items(validation, "custom_validator_config", "typed_config", "trust_domains")
    if bundles:
        return [(dig(bundle, "name"), dig(bundle, "trust_bundle")) for bundle in bundles]
    return [
        (None, dig(secret, "tls_certificate", "certificate_chain") or dig(validation, "trusted_ca"))
    ]


def _certificate(source: Json, taken_at: datetime) -> Row:
    nothing: Row = {"valid_cert": False, "sans": (), "trusted_keys": (), "chain_keys": ()}
    if source is None:
        return {**nothing, "problem": "the proxy has not received a certificate"}
    if (name := dig(source, "filename")) is not None:
        return {
            "sans": (),
            "trusted_keys": (),
            "chain_keys": (),
            "problem": f"it stands in the proxy's file {name}, not in the dump",
        }
    try:
        inline = dig(source, "inline_bytes")
        pem = (
            str(dig(source, "inline_string", default="")).encode()
            if inline is None
            else base64.b64decode(inline, validate=True)
        )
        chain = read_chain(pem)
    except (binascii.Error, TypeError, ValueError) as error:
        return {**nothing, "problem": str(error)}
    certificate = chain[0]
    keys = tuple(one.subject_key for one in chain if one.subject_key is not None)
    return {
        "type": "CA" if certificate.is_ca else "Cert Chain",
        "valid_cert": certificate.valid_at(taken_at),
        "serial_number": f"{certificate.serial:032x}",
        "not_after": certificate.not_after,
        "not_before": certificate.not_before,
        "trust_domain": certificate.trust_domain,
        "sans": certificate.sans,
        "subject": certificate.subject,
        "issuer": certificate.issuer,
        "root_fingerprint": certificate.fingerprint if certificate.is_ca else None,
        "chain_keys": () if certificate.is_ca else chain_keys(chain),
        "trusted_keys": keys if certificate.is_ca else (),
        "expires_in_s": (certificate.not_after - taken_at).total_seconds(),
    }
