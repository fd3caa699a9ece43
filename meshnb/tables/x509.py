"""Reads X.509 certificates from PEM bytes, whatever else stands around them."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization

_BLOCK = re.compile(
    rb"-----BEGIN (?:X509 |TRUSTED )?CERTIFICATE-----.+?"
    rb"-----END (?:X509 |TRUSTED )?CERTIFICATE-----",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Certificate:
    """What a certificate says of itself. Names are in RFC 4514 form, times are UTC.

    ``sans`` are the subject alternative names as plain texts: DNS names, addresses and URIs such as
    ``spiffe://cluster.local/ns/shop/sa/cart``. ``fingerprint`` is the SHA-256 of the whole
    certificate in lower-case hexadecimal digits. ``subject_key`` and ``authority_key`` name the key
    that it is for and the key that signed it (RFC 5280, 4.2.1.1 and 4.2.1.2), in such digits, too.
    """

    subject: str
    issuer: str
    sans: tuple[str, ...]
    serial: int
    not_before: datetime
    not_after: datetime
    is_ca: bool
    fingerprint: str
    subject_key: str | None = None
    authority_key: str | None = None
    #: the whole certificate, in DER
    encoded: bytes = field(default=b"", repr=False)

    @property
    def trust_domain(self) -> str | None:
        """The trust domain of the first SPIFFE name, None when there is no such name."""
        for name in self.sans:
            if name.startswith("spiffe://"):
                return name.removeprefix("spiffe://").partition("/")[0] or None
        return None

    def valid_at(self, moment: datetime) -> bool:
        """Whether a moment lies within the certificate's life, both ends included."""
        return self.not_before <= moment <= self.not_after


def signed_by(certificate: Certificate, issuer: Certificate) -> bool:
    """Whether a certificate was signed with the key of another one, whose name it has for issuer.

    False, too, where the signature is of a kind that cannot be checked here.
    """
    if certificate.issuer != issuer.subject:
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            child = x509.load_der_x509_certificate(certificate.encoded)
            child.verify_directly_issued_by(x509.load_der_x509_certificate(issuer.encoded))
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def read_certificates(pem: bytes) -> tuple[Certificate, ...]:
    """Return all certificates of a PEM text, in its order; other blocks, such as keys, are skipped.

    Raises ValueError, in words, when there is no certificate or one cannot be read.
    """
    blocks = _blocks(pem)
    return tuple(_read(block, number) for number, block in enumerate(blocks, start=1))


def read_first_certificate(pem: bytes) -> Certificate:
    """Return the first certificate of a PEM text: the leaf of a chain, or the first of some roots.

    Raises ValueError, in words, when there is none or it cannot be read.
    """
    return _read(_blocks(pem)[0], 1)


def read_chain(pem: bytes) -> tuple[Certificate, ...]:
    """Return the first certificate of a PEM text, and those behind it that can be read.

    Raises ValueError, in words, when there is none or the first cannot be read.
    """
    blocks = _blocks(pem)
    chain = [_read(blocks[0], 1)]
    for number, block in enumerate(blocks[1:], start=2):
        with suppress(ValueError):
            chain.append(_read(block, number))
    return tuple(chain)


def _blocks(pem: bytes) -> list[bytes]:
    blocks: list[bytes] = _BLOCK.findall(pem)
    if not blocks:
        raise ValueError("it is empty" if not pem.strip() else "it holds no PEM certificate")
    return blocks


def _read(block: bytes, number: int) -> Certificate:
    try:
        with warnings.catch_warnings():
            # Oddities such as a negative serial number are worth no more than a warning to the
            # reader, and the certificate is still the one that is in use.
            warnings.simplefilter("ignore")
            parsed = x509.load_pem_x509_certificate(block)
            return Certificate(
                subject=parsed.subject.rfc4514_string(),
                issuer=parsed.issuer.rfc4514_string(),
                sans=_sans(parsed),
                serial=parsed.serial_number,
                not_before=parsed.not_valid_before_utc,
                not_after=parsed.not_valid_after_utc,
                is_ca=_is_ca(parsed),
                fingerprint=parsed.fingerprint(hashes.SHA256()).hex(),
                encoded=parsed.public_bytes(serialization.Encoding.DER),
                subject_key=_subject_key(parsed),
                authority_key=_authority_key(parsed),
            )
    except (
        ValueError,
        TypeError,
        OverflowError,
        UnsupportedAlgorithm,
        x509.DuplicateExtension,
        x509.InvalidVersion,
        x509.UnsupportedGeneralNameType,
    ) as error:
        raise ValueError(f"certificate {number} cannot be read: {error}") from error


def _sans(parsed: x509.Certificate) -> tuple[str, ...]:
    try:
        names = parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    texts: list[str] = []
    for name in names:
        if isinstance(name, x509.DirectoryName):
            texts.append(name.value.rfc4514_string())
        elif isinstance(name, x509.OtherName):
            texts.append(f"{name.type_id.dotted_string}:{name.value.hex()}")
        elif isinstance(name, x509.RegisteredID):
            texts.append(name.value.dotted_string)
        else:
            texts.append(str(name.value))
    return tuple(texts)


def _subject_key(parsed: x509.Certificate) -> str | None:
    try:
        return parsed.extensions.get_extension_for_class(
            x509.SubjectKeyIdentifier
        ).value.digest.hex()
    except x509.ExtensionNotFound:
        return None


def _authority_key(parsed: x509.Certificate) -> str | None:
    try:
        found = parsed.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    except x509.ExtensionNotFound:
        return None
    return found.key_identifier.hex() if found.key_identifier is not None else None


def chain_keys(chain: Sequence[Certificate]) -> tuple[str, ...]:
    """Return the keys of authorities by any of which a chain can be trusted, each once.

    Those are the keys that signed its certificates, and its own authorities'; none if not told.
    """
    keys = [one.authority_key for one in chain]
    keys += [one.subject_key for one in chain if one.is_ca]
    return tuple(dict.fromkeys(key for key in keys if key is not None))


def _is_ca(parsed: x509.Certificate) -> bool:
    try:
        return parsed.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False
