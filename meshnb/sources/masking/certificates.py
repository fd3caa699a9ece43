"""Certificates issued again, with other names, by keys that are thrown away.

Dates, kind of key, purpose and who signed whom stay. Whoever has signed gets a new key, in memory
only; everybody else gets a public key to which there is no private one at all. A certificate that
its issuer's key did not verify is signed with a key of nobody, and is as wrong as it was.
"""

from __future__ import annotations

import base64
import ipaddress
import secrets
import warnings
from hashlib import blake2b
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes

from meshnb.sources.masking.addresses import Addresses
from meshnb.sources.masking.finding import find_shapes
from meshnb.sources.masking.names import Names

_FAILURES = (
    *(ValueError, TypeError, OverflowError, UnsupportedAlgorithm, InvalidSignature),
    *(x509.DuplicateExtension, x509.InvalidVersion, x509.UnsupportedGeneralNameType),
)
_DER = serialization.Encoding.DER
#: Numbers that a builder takes have at most so many bits (RFC 5280, 4.1.2.2).
_SERIAL_BITS = 159
#: Extensions without a name in them.
_PLAIN = (
    *(x509.BasicConstraints, x509.KeyUsage, x509.ExtendedKeyUsage, x509.OCSPNoCheck),
    *(x509.InhibitAnyPolicy, x509.PolicyConstraints, x509.TLSFeature),
)


class Certificates:
    """All certificates of a recording. First all are added, then each is issued again on demand."""

    def __init__(self, key: bytes, names: Names, addresses: Addresses) -> None:
        self._key, self._names, self._addresses = key, names, addresses
        self._known: dict[bytes, x509.Certificate] = {}
        self._again: dict[bytes, bytes | None] = {}
        self._issuers: dict[bytes, list[x509.Certificate]] = {}
        self._private: dict[bytes, CertificateIssuerPrivateKeyTypes] = {}
        self._public: dict[bytes, Any] = {}
        #: words of a certificate, such as its serial number, and those of the new one
        self.words: dict[str, str] = {}

    @property
    def counts(self) -> tuple[int, int]:
        """How many were issued again, and how many could not be."""
        done = sum(new is not None for new in self._again.values())
        return done, len(self._again) - done

    def add(self, encoded: bytes) -> None:
        """Add a certificate in DER, with the names in it. One that cannot be read is no loss."""
        if encoded in self._known:
            return
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                parsed = x509.load_der_x509_certificate(encoded)
                for attribute in (*parsed.subject, *parsed.issuer):
                    text = str(attribute.value)
                    self._names.add_host(text) if "." in text else self._names.add(text)
                self._find_sans(parsed)
        except _FAILURES:
            return
        self._known[encoded] = parsed
        self._issuers.setdefault(parsed.subject.public_bytes(), []).append(parsed)

    def _find_sans(self, parsed: x509.Certificate) -> None:
        try:
            found = parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except x509.ExtensionNotFound:
            return
        for name in found:
            if isinstance(name, x509.DNSName):
                host = name.value
                self._names.add_host(host) if "." in host else self._names.add(host)
            elif isinstance(name, x509.UniformResourceIdentifier | x509.RFC822Name):
                find_shapes(self._names, name.value)

    def settle(self) -> None:
        """Issue all again, so that their numbers are known."""
        signers = {encoded: self._signer(one) for encoded, one in self._known.items()}
        for signer in signers.values():
            if signer is not None:
                self._private_key(_spki(signer), signer.public_key())
        for encoded in self._known:
            self.again(encoded)

    def again(self, encoded: bytes) -> bytes | None:
        """Return a certificate issued again, in DER; None when it cannot be."""
        if encoded not in self._again:
            self.add(encoded)
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    self._again[encoded] = self._issued(encoded)
            except _FAILURES:
                self._again[encoded] = None
        return self._again[encoded]

    def _issued(self, encoded: bytes) -> bytes | None:
        old = self._known.get(encoded)
        if old is None:
            return None
        builder = (
            x509.CertificateBuilder()
            .subject_name(self._name(old.subject))
            .issuer_name(self._name(old.issuer))
            .not_valid_before(old.not_valid_before_utc)
            .not_valid_after(old.not_valid_after_utc)
            .serial_number(self._serial(old.serial_number))
            .public_key(self._public_key(old))
        )
        for extension in old.extensions:
            value = self._extension(extension.value)
            if value is not None:
                builder = builder.add_extension(value, extension.critical)
        key = self._signing_key(old)
        digest = None if isinstance(key, ed25519.Ed25519PrivateKey) else _digest(old)
        new = builder.sign(key, digest)
        self._remember(old, new)
        return new.public_bytes(_DER)

    def _remember(self, old: x509.Certificate, new: x509.Certificate) -> None:
        """Keep what a certificate is called by elsewhere: its number and its fingerprints."""
        for form in ("{:x}", "{:032x}", "{:d}", "0{:x}"):
            self.words[form.format(old.serial_number)] = form.format(new.serial_number)
        for digest in (hashes.SHA256(), hashes.SHA1()):  # noqa: S303  a name, not a protection
            self.words[old.fingerprint(digest).hex()] = new.fingerprint(digest).hex()

    def _text(self, text: str) -> str:
        try:
            return self._addresses.written(text)
        except ValueError:
            return self._names.masked(text)

    def _name(self, name: x509.Name) -> x509.Name:
        return x509.Name(
            x509.RelativeDistinguishedName(
                x509.NameAttribute(one.oid, self._text(str(one.value)), one._type)  # noqa: SLF001
                if isinstance(one.value, str)
                else one
                for one in rdn
            )
            for rdn in name.rdns
        )

    def _general(self, name: x509.GeneralName) -> x509.GeneralName | None:
        match name:
            case x509.DNSName():
                return x509.DNSName(self._text(name.value))
            case x509.UniformResourceIdentifier():
                return x509.UniformResourceIdentifier(self._text(name.value))
            case x509.RFC822Name():
                return x509.RFC822Name(self._text(name.value))
            case x509.DirectoryName():
                return x509.DirectoryName(self._name(name.value))
            case x509.IPAddress():
                return x509.IPAddress(_network(self._addresses.written(str(name.value))))
        return None

    def _generals(self, names: Any) -> list[x509.GeneralName]:
        masked = (self._general(name) for name in names or ())
        return [name for name in masked if name is not None]

    def _extension(self, value: x509.ExtensionType) -> x509.ExtensionType | None:
        """Return an extension with other names; None for one that may hold some and is dropped."""
        match value:
            case x509.SubjectAlternativeName():
                return x509.SubjectAlternativeName(self._generals(value))
            case x509.SubjectKeyIdentifier():
                return x509.SubjectKeyIdentifier(self._bytes(value.digest))
            case x509.AuthorityKeyIdentifier():
                key, serial = value.key_identifier, value.authority_cert_serial_number
                issuer = self._generals(value.authority_cert_issuer)
                return x509.AuthorityKeyIdentifier(
                    None if key is None else self._bytes(key),
                    issuer if issuer and serial is not None else None,
                    self._serial(serial) if issuer and serial is not None else None,
                )
            case x509.NameConstraints():
                return x509.NameConstraints(
                    self._generals(value.permitted_subtrees) or None,
                    self._generals(value.excluded_subtrees) or None,
                )
        return value if isinstance(value, _PLAIN) else None

    def _bytes(self, identifier: bytes) -> bytes:
        return blake2b(identifier, key=self._key, digest_size=max(1, len(identifier))).digest()

    def _serial(self, number: int) -> int:
        bits = min(number.bit_length(), _SERIAL_BITS)
        if number <= 0:
            raise ValueError("a serial number that is none")
        mask = int.from_bytes(
            blake2b(b"%d" % number, key=self._key, digest_size=32).digest(), "big"
        )
        return mask & ((1 << bits) - 1) | 1 << (bits - 1)

    # --- Keys -----------------------------------------------------------------------------------

    def _signer(self, one: x509.Certificate) -> x509.Certificate | None:
        """Return whose key a certificate was signed with, if that one is known."""
        for candidate in self._issuers.get(one.issuer.public_bytes(), ()):
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    one.verify_directly_issued_by(candidate)
            except _FAILURES:
                continue
            return candidate
        return None

    def _signing_key(self, one: x509.Certificate) -> CertificateIssuerPrivateKeyTypes:
        signer = self._signer(one)
        if signer is not None:
            return self._private_key(_spki(signer), signer.public_key())
        stranger = (
            b"unknown "
            + one.issuer.public_bytes()
            + one.signature_algorithm_oid.dotted_string.encode()
        )
        name = one.signature_algorithm_oid._name.lower()  # noqa: SLF001
        like = None if "rsa" in name else ec.generate_private_key(ec.SECP256R1()).public_key()
        return self._private_key(stranger, like)

    def _private_key(self, of: bytes, like: Any) -> CertificateIssuerPrivateKeyTypes:
        if of not in self._private:
            self._private[of] = _generated(like)
        return self._private[of]

    def _public_key(self, one: x509.Certificate) -> Any:
        spki = _spki(one)
        if spki in self._private:
            return self._private[spki].public_key()
        if spki not in self._public:
            key = one.public_key()
            self._public[spki] = (
                _of_nobody(key)
                if isinstance(key, rsa.RSAPublicKey)
                else _generated(key).public_key()
            )
        return self._public[spki]


def _spki(one: x509.Certificate) -> bytes:
    return one.public_key().public_bytes(_DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def _of_nobody(key: rsa.RSAPublicKey) -> rsa.RSAPublicKey:
    """Return an RSA key of the same size, to which nobody can know a private one."""
    size = key.key_size
    modulus = secrets.randbits(size) | 1 << (size - 1) | 1
    return rsa.RSAPublicNumbers(key.public_numbers().e, modulus).public_key()


def _generated(like: Any) -> CertificateIssuerPrivateKeyTypes:
    if isinstance(like, ec.EllipticCurvePublicKey):
        return ec.generate_private_key(like.curve)
    if isinstance(like, ed25519.Ed25519PublicKey):
        return ed25519.Ed25519PrivateKey.generate()
    size = like.key_size if isinstance(like, rsa.RSAPublicKey) else 2048
    return rsa.generate_private_key(65537, size)


def _digest(one: x509.Certificate) -> Any:
    digest = one.signature_hash_algorithm
    weak = digest is None or isinstance(digest, hashes.SHA1 | hashes.MD5)
    return hashes.SHA256() if weak else digest


def _network(text: str) -> Any:
    return ipaddress.ip_network(text) if "/" in text else ipaddress.ip_address(text)


def der_of(block: str) -> bytes:
    """Return what a block of PEM holds; raises ValueError."""
    return base64.b64decode(block, validate=True)
