"""The table ``ztunnel_certificates``: the certificates that ztunnels hold for their workloads."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator
from datetime import datetime

from meshnb.sources.base import Question
from meshnb.tables.base import Column, Facts, Json, Row, Table, dig, items, moment
from meshnb.tables.envoy import proxy_of
from meshnb.tables.x509 import read_first_certificate
from meshnb.tables.ztunnel import entries, read_dumps

ZTUNNEL_CERTIFICATES = Table(
    name="ztunnel_certificates",
    grain="one row per ztunnel, identity and certificate, or one for an identity without any",
    istioctl="istioctl ztunnel-config certificate POD.NAMESPACE",
    columns={
        "proxy": Column("string", "the ztunnel as pod.namespace", key=True),
        "certificate_name": Column(
            "string", "the identity that it is for, a SPIFFE name", key=True
        ),
        "type": Column("string", "Leaf, Intermediate or Root; NA without a certificate"),
        "status": Column("string", "Available, Initializing or Unavailable"),
        "valid_cert": Column("boolean", "whether it is valid at the time of the answer"),
        "serial_number": Column("string", "serial number in hexadecimal digits"),
        "not_after": Column("datetime64[us, UTC]", "when it ends"),
        "not_before": Column("datetime64[us, UTC]", "when it begins"),
        "position": Column("Int64", "place in the chain, from 0; roots come last", key=True),
        "trust_domain": Column("string", "trust domain of the identity"),
        "subject": Column("string", "subject"),
        "issuer": Column("string", "issuer"),
        "sans": Column("object", "tuple: subject alternative names"),
        "root_fingerprint": Column("string", "of a root: SHA-256 in hexadecimal digits"),
        "expires_in_s": Column(
            "Float64", "seconds from the answer to its end; negative when over", passing=True
        ),
        "problem": Column("string", "why there is no certificate, or why it cannot be read"),
    },
)


@ZTUNNEL_CERTIFICATES.derives
def _rows(facts: Facts) -> Iterator[tuple[Question, Row]]:
    yield from read_dumps(facts, _read)


def _read(dump: Json, question: Question, facts: Facts) -> Iterator[Row]:
    taken_at = facts.answer(question).taken_at
    for held in entries(dump, "certificates"):
        state = str(dig(held, "state", default=""))
        identity = str(dig(held, "identity", default=""))
        shared = {
            "proxy": proxy_of(question),
            "certificate_name": identity,
            "status": "Unavailable" if "Unavailable" in state else state,
            "trust_domain": identity.removeprefix("spiffe://").partition("/")[0] or None,
            "sans": (),
        }
        problem = state if shared["status"] != state else None
        chain = _chain(held)
        if not chain:
            problem = problem or "the ztunnel has not received a certificate"
            yield {**shared, "position": 0, "valid_cert": False, "problem": problem}
        for position, (kind, certificate) in enumerate(chain):
            yield {
                **shared,
                "position": position,
                "type": kind,
                "problem": problem,
                **_certificate(certificate, kind, taken_at),
            }


def _chain(held: Json) -> list[tuple[str, Json]]:
    """Return certificates with their types. Older ztunnels have the root at the chain's end."""
    chain, roots = items(held, "certChain"), items(held, "rootCerts")
    if not chain:
        return []
    kinds = ["Leaf", *["Intermediate"] * (len(chain) - 1)]
    if not roots and len(chain) > 1:
        kinds[-1] = "Root"
    return [*zip(kinds, chain, strict=True), *(("Root", root) for root in roots)]


def _certificate(certificate: Json, kind: str, taken_at: datetime) -> Row:
    begins, ends = moment(dig(certificate, "validFrom")), moment(dig(certificate, "expirationTime"))
    serial = str(dig(certificate, "serialNumber", default=""))
    row: Row = {
        "valid_cert": begins is not None and ends is not None and begins < taken_at < ends,
        "serial_number": f"{int(serial):x}" if serial.isascii() and serial.isdecimal() else None,
        "not_after": ends,
        "not_before": begins,
        "expires_in_s": None if ends is None else (ends - taken_at).total_seconds(),
    }
    try:
        pem = base64.b64decode(str(dig(certificate, "pem", default="")), validate=True)
        read = read_first_certificate(pem)
    except (binascii.Error, ValueError) as error:
        return {**row, "problem": str(error)}
    return {
        **row,
        "subject": read.subject,
        "issuer": read.issuer,
        "sans": read.sans,
        "root_fingerprint": read.fingerprint if kind == "Root" else None,
    }
