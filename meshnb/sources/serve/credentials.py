"""Who may ask, and how a client finds the server: a CA made at start, a token, a kubeconfig."""

from __future__ import annotations

import base64
import contextlib
import ipaddress
import json
import os
import secrets
import ssl
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

#: How the user of the kubeconfig proves itself: a bearer token, a client certificate, or a plugin
#: that prints the token of now.
Credential = Literal["token", "certificate", "exec"]

_USER = "replay"
#: Clocks differ; the server lives for as long as somebody looks at a recording.
_VALID_BEFORE, _VALID_AFTER = timedelta(hours=1), timedelta(days=30)
_Key = ec.EllipticCurvePrivateKey


@dataclass
class Credentials:
    """The certificates and the token of one server, in one folder that only its user may read.

    The CA states what its key is for: Python 3.13 verifies as RFC 5280 says and refuses one that
    does not.
    """

    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="meshnb-serve-")))
    token: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)

    def __post_init__(self) -> None:
        """Make the CA, and what it signs for the server and for a client."""
        ca_key, ca = _ca()
        self.ca_pem = ca.public_bytes(serialization.Encoding.PEM)
        self._write("server.pem", _signed(ca_key, "meshnb-serve", server=True))
        self.client_pem = _signed(ca_key, _USER, server=False)
        self._write("ca.pem", self.ca_pem)
        self._write_plugin_answer()

    def server_context(self) -> ssl.SSLContext:
        """Return what the server speaks TLS with; a client may show a certificate of the CA."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=self.folder / "ca.pem")
        context.load_cert_chain(self.folder / "server.pem")
        context.verify_mode = ssl.CERT_OPTIONAL
        return context

    def renew(self) -> None:
        """Make another token; the old one is refused from now on, and the plugin prints the new."""
        self.token = secrets.token_urlsafe(32)
        self._write_plugin_answer()

    def kubeconfig(self, url: str, credential: Credential, context: str) -> dict[str, Any]:
        """Return a kubeconfig with one context for this server."""
        encoded = base64.b64encode(self.ca_pem).decode()
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [
                {
                    "name": context,
                    "cluster": {"server": url, "certificate-authority-data": encoded},
                }
            ],
            "users": [{"name": _USER, "user": self._user(credential)}],
            "contexts": [{"name": context, "context": {"cluster": context, "user": _USER}}],
            "current-context": context,
        }

    def remove(self) -> None:
        """Take every file away again."""
        for file in self.folder.glob("*"):
            file.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.folder.rmdir()

    def _user(self, credential: Credential) -> dict[str, Any]:
        if credential == "token":
            return {"token": self.token}
        if credential == "certificate":
            text = base64.b64encode(self.client_pem).decode()
            return {"client-certificate-data": text, "client-key-data": text}
        program = "import sys; print(open(sys.argv[1], encoding='utf-8').read())"
        return {
            "exec": {
                "apiVersion": "client.authentication.k8s.io/v1",
                "command": sys.executable,
                "args": ["-c", program, str(self._plugin_answer)],
                "interactiveMode": "Never",
            }
        }

    @property
    def _plugin_answer(self) -> Path:
        return self.folder / "credential.json"

    def _write_plugin_answer(self) -> None:
        answer = {
            "apiVersion": "client.authentication.k8s.io/v1",
            "kind": "ExecCredential",
            "status": {"token": self.token},
        }
        self._write(self._plugin_answer.name, json.dumps(answer).encode())

    def _write(self, name: str, content: bytes) -> None:
        write_private(self.folder / name, content)


def write_private(path: Path, content: bytes) -> None:
    """Write a file whole, that nobody but its user may read."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(content)
    partial.replace(path)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _builder(subject: str, issuer: str, key: _Key) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(_name(subject))
        .issuer_name(_name(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _VALID_BEFORE)
        .not_valid_after(now + _VALID_AFTER)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _usage(wanted: Sequence[str]) -> x509.KeyUsage:
    names = (
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
        "crl_sign",
        "encipher_only",
        "decipher_only",
    )
    return x509.KeyUsage(**{name: name in wanted for name in names})


_CA_NAME = "meshnb serve"


def _ca() -> tuple[_Key, x509.Certificate]:
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = (
        _builder(_CA_NAME, _CA_NAME, key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(["key_cert_sign", "crl_sign"]), critical=True)
        .add_extension(_signer(key), critical=False)
        .sign(key, hashes.SHA256())
    )
    return key, certificate


def _signer(key: _Key) -> x509.AuthorityKeyIdentifier:
    return x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key())


def _signed(ca_key: _Key, subject: str, *, server: bool) -> bytes:
    """Return a certificate with its key, as PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    purpose = ExtendedKeyUsageOID.SERVER_AUTH if server else ExtendedKeyUsageOID.CLIENT_AUTH
    builder = (
        _builder(subject, _CA_NAME, key)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(["digital_signature"]), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        .add_extension(_signer(ca_key), critical=False)
    )
    if server:
        addresses = [x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName("localhost")]
        builder = builder.add_extension(x509.SubjectAlternativeName(addresses), critical=False)
    certificate = builder.sign(ca_key, hashes.SHA256())
    return certificate.public_bytes(serialization.Encoding.PEM) + key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
