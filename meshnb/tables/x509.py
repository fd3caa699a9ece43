"""Reads X.509 certificates from PEM bytes, whatever else stands around them."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes

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
    certificate in lower-case hexadecimal digits.
    """

    subject: str
    issuer: str
    sans: tuple[str, ...]
    serial: int
    not_before: datetime
    not_after: datetime
    is_ca: bool
    fingerprint: str

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


def _is_ca(parsed: x509.Certificate) -> bool:
    try:
        return parsed.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False
