"""A TLS server that shows a recorded certificate chain, and then admits that it has no key for it.

A recording holds certificates and never their private keys, so nobody can finish a handshake with
them. This is as far as it honestly goes: the hello, the protocol that was agreed on, the recorded
chain, and, where a server proves that it has the key, the alert ``internal_error``. A client that
asks which chain is shown has its answer by then; one that wants a connection gets none.

TLS 1.3 as in RFC 8446 (sections 4.1 to 4.4, 5.2 and 7.1), with X25519 and TLS_AES_128_GCM_SHA256,
which its section 9.1 has every client offer; TLS 1.2 as in RFC 5246 (sections 7.4.1 and 7.4.2).
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import os
import re
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.x509 import load_der_x509_certificate

from meshnb.sources.base import Answer

_ALERT, _HANDSHAKE, _APPLICATION = 21, 22, 23
_CLIENT_HELLO, _SERVER_HELLO, _ENCRYPTED_EXTENSIONS, _CERTIFICATE = 1, 2, 8, 11
_ALPN, _SUPPORTED_VERSIONS, _KEY_SHARE, _RENEGOTIATION = 16, 43, 51, 0xFF01
_HANDSHAKE_FAILURE, _DECODE_ERROR, _PROTOCOL_VERSION, _INTERNAL_ERROR = 40, 50, 70, 80
_FATAL = 2
_X25519 = 0x001D
_AES_128_GCM_SHA256 = 0x1301
#: ECDHE with AES-GCM, for TLS 1.2: with keys of RSA, and with elliptic curves.
_SUITES_RSA, _SUITES_EC = (0xC02F, 0xC030), (0xC02B, 0xC02C)
_CHANGE_CIPHER_SPEC = b"\x14\x03\x03\x00\x01\x01"
_MOST_IN_RECORD = 1 << 14
_LONGEST_HELLO = 1 << 16

_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)


class Stream(Protocol):
    """What a handshake is spoken over."""

    reader: asyncio.StreamReader

    async def write(self, content: bytes | memoryview) -> None:
        """Send bytes to the client."""


class _HandshakeError(Exception):
    """The handshake cannot go on; carries the alert that says why."""

    def __init__(self, alert: int) -> None:
        super().__init__(f"alert {alert}")
        self.alert = alert


@dataclass(frozen=True, slots=True)
class _Hello:
    """What a client offers."""

    message: bytes
    session: bytes
    suites: tuple[int, ...]
    extensions: dict[int, bytes]


async def show_chain(stream: Stream, first: bytes, answer: Answer) -> None:
    """Answer a ClientHello, of which ``first`` was read already, with a recorded tls probe."""
    try:
        chain = [ssl.PEM_cert_to_DER_cert(pem.decode()) for pem in _PEM.findall(answer.content)]
        hello = await _read_hello(stream.reader, first)
        alpn = answer.detail.get("alpn")
        protocol = alpn.encode() if isinstance(alpn, str) else b""
        version = str(answer.detail.get("tls_version") or "TLSv1.3")
        if not chain:
            raise _HandshakeError(_INTERNAL_ERROR)
        flight = {"TLSv1.3": _flight_13, "TLSv1.2": _flight_12}.get(version)
        if flight is None:
            raise _HandshakeError(_PROTOCOL_VERSION)
        await stream.write(flight(hello, chain, protocol))
    except _HandshakeError as error:
        await stream.write(_record(_ALERT, bytes([_FATAL, error.alert])))
    except ValueError:  # a key share that is none, or a certificate that is none
        await stream.write(_record(_ALERT, bytes([_FATAL, _INTERNAL_ERROR])))


async def _read_hello(reader: asyncio.StreamReader, first: bytes) -> _Hello:
    message = b""
    while len(message) < 4 or len(message) < 4 + int.from_bytes(message[1:4], "big"):
        header = first + await reader.readexactly(5 - len(first))
        first = b""
        if header[0] != _HANDSHAKE or len(message) > _LONGEST_HELLO:
            raise _HandshakeError(_DECODE_ERROR)
        message += await reader.readexactly(int.from_bytes(header[3:5], "big"))
    if message[0] != _CLIENT_HELLO:
        raise _HandshakeError(_DECODE_ERROR)
    body = _Reader(message[4 + 2 + 32 :])
    session = body.vector(1)
    suites = body.vector(2)
    body.vector(1)
    extensions: dict[int, bytes] = {}
    offered = _Reader(body.vector(2))
    while offered.left:
        kind = offered.number(2)
        extensions[kind] = offered.vector(2)
    numbers = tuple(
        int.from_bytes(suites[place : place + 2], "big") for place in range(0, len(suites), 2)
    )
    return _Hello(message, session, numbers, extensions)


class _Reader:
    """Reads numbers, and vectors with their length before them."""

    def __init__(self, content: bytes) -> None:
        self.left = content

    def number(self, size: int) -> int:
        return int.from_bytes(self._take(size), "big")

    def vector(self, size: int) -> bytes:
        return self._take(self.number(size))

    def _take(self, size: int) -> bytes:
        if size > len(self.left):
            raise _HandshakeError(_DECODE_ERROR)
        taken, self.left = self.left[:size], self.left[size:]
        return taken


def _flight_13(hello: _Hello, chain: Sequence[bytes], protocol: bytes) -> bytes:
    """Return what a TLS 1.3 server sends up to its Certificate, and the alert."""
    if b"\x03\x04" not in hello.extensions.get(_SUPPORTED_VERSIONS, b""):
        raise _HandshakeError(_PROTOCOL_VERSION)
    if _AES_128_GCM_SHA256 not in hello.suites:
        raise _HandshakeError(_HANDSHAKE_FAILURE)
    theirs, ours = _their_share(hello), X25519PrivateKey.generate()
    share = _X25519.to_bytes(2, "big") + _vector(2, ours.public_key().public_bytes_raw())
    server_hello = _message(
        _SERVER_HELLO,
        b"\x03\x03"
        + os.urandom(32)
        + _vector(1, hello.session)
        + _AES_128_GCM_SHA256.to_bytes(2, "big")
        + b"\x00"
        + _vector(2, _extension(_SUPPORTED_VERSIONS, b"\x03\x04") + _extension(_KEY_SHARE, share)),
    )
    seal = _Seal(ours.exchange(theirs), hello.message + server_hello)
    entries = b"".join(_vector(3, certificate) + b"\x00\x00" for certificate in chain)
    rest = _message(_ENCRYPTED_EXTENSIONS, _vector(2, _chosen(hello, protocol))) + _message(
        _CERTIFICATE, b"\x00" + _vector(3, entries)
    )
    return (
        _record(_HANDSHAKE, server_hello)
        + (_CHANGE_CIPHER_SPEC if hello.session else b"")
        + b"".join(seal.record(_HANDSHAKE, part) for part in _parts(rest))
        + seal.record(_ALERT, bytes([_FATAL, _INTERNAL_ERROR]))
    )


def _flight_12(hello: _Hello, chain: Sequence[bytes], protocol: bytes) -> bytes:
    """Return what a TLS 1.2 server sends up to its Certificate, and the alert."""
    wanted = _SUITES_RSA if _has_rsa_key(chain[0]) else _SUITES_EC
    suite = next((one for one in wanted if one in hello.suites), None)
    if suite is None:
        raise _HandshakeError(_HANDSHAKE_FAILURE)
    # Clients refuse a server that does not know the safe form of renegotiation (RFC 5746).
    extensions = _extension(_RENEGOTIATION, b"\x00") + _chosen(hello, protocol)
    server_hello = (
        b"\x03\x03"
        + os.urandom(32)
        + _vector(1, b"")
        + suite.to_bytes(2, "big")
        + b"\x00"
        + _vector(2, extensions)
    )
    shown = b"".join(_vector(3, certificate) for certificate in chain)
    flight = _message(_SERVER_HELLO, server_hello) + _message(_CERTIFICATE, _vector(3, shown))
    return b"".join(_record(_HANDSHAKE, part) for part in _parts(flight)) + _record(
        _ALERT, bytes([_FATAL, _INTERNAL_ERROR])
    )


def _has_rsa_key(certificate: bytes) -> bool:
    try:
        key = load_der_x509_certificate(certificate).public_key()
    except (ValueError, UnsupportedAlgorithm):
        raise _HandshakeError(_INTERNAL_ERROR) from None
    return isinstance(key, rsa.RSAPublicKey)


def _their_share(hello: _Hello) -> X25519PublicKey:
    shares = _Reader(_Reader(hello.extensions.get(_KEY_SHARE, b"\x00\x00")).vector(2))
    while shares.left:
        group, key = shares.number(2), shares.vector(2)
        if group == _X25519:
            return X25519PublicKey.from_public_bytes(key)
    raise _HandshakeError(_HANDSHAKE_FAILURE)


def _chosen(hello: _Hello, protocol: bytes) -> bytes:
    """Return the extension that names the recorded protocol, if there is one and it is offered."""
    named = _vector(1, protocol)
    offered = protocol and named in hello.extensions.get(_ALPN, b"")
    return _extension(_ALPN, _vector(2, named)) if offered else b""


def _vector(size: int, content: bytes) -> bytes:
    return len(content).to_bytes(size, "big") + content


def _extension(kind: int, content: bytes) -> bytes:
    return kind.to_bytes(2, "big") + _vector(2, content)


def _message(kind: int, content: bytes) -> bytes:
    return bytes([kind]) + _vector(3, content)


def _record(kind: int, content: bytes) -> bytes:
    return bytes([kind, 3, 3]) + _vector(2, content)


def _parts(content: bytes) -> list[bytes]:
    return [
        content[start : start + _MOST_IN_RECORD]
        for start in range(0, len(content), _MOST_IN_RECORD)
    ]


class _Seal:
    """Encrypts a server's records with its handshake traffic keys (RFC 8446, section 7.1)."""

    def __init__(self, shared: bytes, transcript: bytes) -> None:
        nothing = hashlib.sha256().digest()
        early = _extract(bytes(32), bytes(32))
        handshake = _extract(_expand(early, b"derived", nothing, 32), shared)
        said = hashlib.sha256(transcript).digest()
        traffic = _expand(handshake, b"s hs traffic", said, 32)
        self._cipher = AESGCM(_expand(traffic, b"key", b"", 16))
        self._start = int.from_bytes(_expand(traffic, b"iv", b"", 12), "big")
        self._sent = 0

    def record(self, kind: int, content: bytes) -> bytes:
        nonce = (self._start ^ self._sent).to_bytes(12, "big")
        self._sent += 1
        header = bytes([_APPLICATION, 3, 3]) + (len(content) + 17).to_bytes(2, "big")
        return header + self._cipher.encrypt(nonce, content + bytes([kind]), header)


def _extract(salt: bytes, key: bytes) -> bytes:
    return hmac.digest(salt, key, "sha256")


def _expand(secret: bytes, label: bytes, context: bytes, size: int) -> bytes:
    """Return up to 32 bytes: one block of HKDF is enough for all that is needed here."""
    text = size.to_bytes(2, "big") + _vector(1, b"tls13 " + label) + _vector(1, context)
    return hmac.digest(secret, text + b"\x01", "sha256")[:size]
