"""Checks of certificates and identities, on altered recordings.

What is altered is named in each test. Beside each fault stands what looks like it and is none.
"""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from meshnb.checks import Severity
from meshnb.diagnosis import diagnose
from tests.alteration import Altered
from tests.checks.test_altered import (
    CHANGED,
    EARLIER,
    SILENT,
    SINCE,
    assert_blamed,
    assert_explains,
    assert_harmless,
    problems,
)
from tests.checks.test_altered_injection import CLIENT, RATINGS, Object, blamed_first
from tests.checks.test_altered_startup import FAILED, not_ready, state

# --- Certificates and identities ----------------------------------------------------------------


SPIFFE = "spiffe://cluster.local/ns/bookinfo/sa/default"


class Authority:
    """An authority of its own, whose certificates name their keys as istiod's do."""

    def __init__(self, ends: datetime = datetime(2036, 1, 1, tzinfo=UTC)) -> None:
        """Make the root."""
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, "cluster.local")])
        self.root = self._sign(self.key, self.name, ends, ca=True)

    def _sign(
        self,
        key: ec.EllipticCurvePrivateKey,
        subject: x509.Name,
        ends: datetime,
        *,
        begins: datetime = datetime(2026, 1, 1, tzinfo=UTC),
        ca: bool,
    ) -> bytes:
        public = key.public_key()
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(begins)
            .not_valid_after(ends)
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        )
        if ca:
            identifier: x509.ExtensionType = x509.SubjectKeyIdentifier.from_public_key(public)
        else:
            identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
            names = [x509.UniformResourceIdentifier(SPIFFE)]
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=True)
        builder = builder.add_extension(identifier, critical=False)
        return builder.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    def chain(
        self,
        ends: datetime = datetime(2026, 11, 24, 2, tzinfo=UTC),
        begins: datetime = datetime(2026, 1, 1, tzinfo=UTC),
    ) -> bytes:
        """Return a workload's certificate with the root behind it."""
        key = ec.generate_private_key(ec.SECP256R1())
        return self._sign(key, x509.Name([]), ends, begins=begins, ca=False) + self.root


def holds(
    altered: Altered, pod: str, *, chain: bytes | None = None, roots: bytes | None = None
) -> Altered:
    """Let the proxy of a pod hold another certificate of its own, or other roots."""

    def change(dump: Any) -> None:
        for section in dump["configs"]:
            for entry in section.get("dynamic_active_secrets", ()):
                secret = entry["secret"]
                if entry["name"] == "default" and chain is not None:
                    text = base64.b64encode(chain).decode()
                    secret["tls_certificate"]["certificate_chain"] = {"inline_bytes": text}
                if entry["name"] == "ROOTCA" and roots is not None:
                    text = base64.b64encode(roots).decode()
                    secret["validation_context"]["trusted_ca"] = {"inline_bytes": text}

    return altered.pages(change, port=15000, pod=pod, path="/config_dump?include_eds")


def tls_failure(reason: str) -> dict[str, str]:
    """Return the fields of a line about a TLS handshake that failed for a reason."""
    failure = f"TLS_error:|{reason}:TLS_error_end"
    return {
        "code": "503",
        "flags": "URX,UF",
        "details": f"upstream_reset_before_response_started{{remote_connection_failure|{failure}}}",
        "failure": failure,
        **SILENT,
    }


VERIFY = "268435581:SSL_routines:OPENSSL_internal:CERTIFICATE_VERIFY_FAILED:verify_cert_failed:"
DISTRUSTED = f"{VERIFY}_X509_verify_cert:_certificate_verification_error_at_depth_0:"
CLIENT_UNKNOWN = "268436504:SSL_routines:OPENSSL_internal:TLSV1_ALERT_UNKNOWN_CA"


@pytest.mark.parametrize(
    "reason", [f"{DISTRUSTED}_unable_to_get_local_issuer_certificate", CLIENT_UNKNOWN]
)
def test_one_proxy_with_another_root_is_refused_and_refuses(healthy: Altered, reason: str) -> None:
    """Altered: the proxy of ratings holds certificate and root of another authority."""
    other = Authority()
    holds(healthy, RATINGS, chain=other.chain(), roots=other.root)
    healthy.at_client("ratings:9080", SINCE, **tls_failure(reason))

    assert_explains(assert_blamed(healthy, "MNB450", "B", "Deployment bookinfo/ratings-v1"), 20)


def test_two_roots_that_all_trust_are_well(healthy: Altered) -> None:
    """Altered: ratings has a certificate of a new authority, which all proxies trust besides."""
    dump = json.loads(
        (healthy.folder / f"proxies/bookinfo/{RATINGS}/15000/config_dump_include_eds").read_text()
    )
    own = next(
        base64.b64decode(entry["secret"]["validation_context"]["trusted_ca"]["inline_bytes"])
        for section in dump["configs"]
        for entry in section.get("dynamic_active_secrets", ())
        if entry["name"] == "ROOTCA"
    )
    other = Authority()
    for pod in healthy.folder.glob("proxies/*/*"):
        holds(healthy, pod.name, roots=own + other.root)
    holds(healthy, RATINGS, chain=other.chain())
    assert_harmless(healthy)


def test_unknown_roots_in_the_log_are_believed_without_the_certificates(healthy: Altered) -> None:
    """Altered: callers do not know the root of ratings, whose proxy shows no certificates."""
    healthy.forget(kind="http", pod=RATINGS, port=15000, path="/config_dump?include_eds")
    healthy.at_client("ratings:9080", SINCE, **tls_failure(CLIENT_UNKNOWN))

    blamed_first(healthy, "MNB450", "B", "Deployment bookinfo/ratings-v1")


def test_a_certificate_that_is_not_valid_yet_is_a_wrong_clock(healthy: Altered) -> None:
    """Altered: the certificate of ratings begins an hour after the recording."""
    begins = datetime(2026, 11, 23, 3, 49, tzinfo=UTC)
    holds(healthy, RATINGS, chain=Authority().chain(begins=begins))
    healthy.at_client(
        "ratings:9080", SINCE, **tls_failure(f"{VERIFY}_certificate_is_not_yet_valid")
    )
    diagnosis = blamed_first(healthy, "MNB605", "B", f"Pod bookinfo/{RATINGS}")
    assert "a clock is wrong" in diagnosis.problems[0].finding.message


def test_a_callers_certificate_that_has_ended_is_the_callers_fault(healthy: Altered) -> None:
    """Altered: the certificate of the client has ended, and servers refuse it."""
    dump = f"proxies/bookinfo/{CLIENT}/15000/config_dump_include_eds"
    assert (healthy.folder / dump).exists()
    holds(healthy, CLIENT, chain=Authority().chain(datetime(2026, 11, 23, 2, tzinfo=UTC)))
    reason = "268436501:SSL_routines:OPENSSL_internal:SSLV3_ALERT_CERTIFICATE_EXPIRED"
    healthy.at_client("ratings:9080", SINCE, pod=CLIENT, **tls_failure(reason))

    diagnosis = diagnose(healthy.facts())
    assert ("MNB605", "B", "Pod bookinfo/client") in problems(diagnosis)[:2]


def _san(name: str) -> dict[str, str]:
    return tls_failure(f"{VERIFY}_SAN_matcher,_certificate_SANs_are_[{name}]")


def test_a_rule_that_expects_another_name_is_blamed(healthy: Altered) -> None:
    """Altered: a DestinationRule expects another service account of ratings than it has."""
    tls = {
        "mode": "ISTIO_MUTUAL",
        "subjectAltNames": ["spiffe://cluster.local/ns/bookinfo/sa/other"],
    }
    spec = {"host": "ratings", "trafficPolicy": {"tls": tls}}
    healthy.add("destinationrules", "ratings", "bookinfo", CHANGED, spec=spec)
    healthy.at_client("ratings:9080", SINCE, **_san(SPIFFE))

    assert_explains(assert_blamed(healthy, "MNB451", "A", "DestinationRule bookinfo/ratings"), 20)


@pytest.mark.parametrize(
    ("name", "failure_class", "subject"),
    [
        ("spiffe://td2/ns/bookinfo/sa/default", "A", "ConfigMap istio-system/istio"),
        ("spiffe://cluster.local/ns/legacy/sa/old", "B", "Service bookinfo/ratings"),
    ],
)
def test_a_server_of_another_trust_domain_or_account_is_told_apart(
    healthy: Altered, name: str, failure_class: str, subject: str
) -> None:
    """Altered: the server that answers for ratings has a name of elsewhere."""
    healthy.at_client("ratings:9080", SINCE, **_san(name))

    assert_explains(assert_blamed(healthy, "MNB451", failure_class, subject), 20)


def test_a_proxy_without_a_certificate_is_found_by_what_its_agent_says(healthy: Altered) -> None:
    """Altered: the client's proxy has no certificate of its own, and its calls fail for that."""

    def without(dump: Any) -> None:
        for section in dump["configs"]:
            active = section.get("dynamic_active_secrets")
            if active:
                section["dynamic_warming_secrets"] = [
                    {"name": "default", "secret": {"name": "default"}}
                ]
                section["dynamic_active_secrets"] = [
                    entry for entry in active if entry["name"] != "default"
                ]

    healthy.pages(without, port=15000, pod=CLIENT, path="/config_dump?include_eds")
    line = (
        "2026-11-23T02:48:00.000000Z\twarn\tsds\tfailed to warm certificate: failed to generate "
        "workload certificate: create certificate: rpc error: code = Unavailable\n"
    )
    healthy.texts(lambda text: line + text, kind="log", pod=CLIENT, container="istio-proxy")
    healthy.at_client(
        "ratings:9080", SINCE, pod=CLIENT, **tls_failure("Secret_is_not_supplied_by_SDS")
    )
    diagnosis = blamed_first(healthy, "MNB452", "B", "Pod bookinfo/client")
    assert "code = Unavailable" in diagnosis.problems[0].finding.message


def _secret(altered: Altered, name: str, **values: str) -> Altered:
    return altered.add("secrets", name, "istio-system", EARLIER, type="Opaque", data=values)


def test_an_incomplete_authority_keeps_istiod_from_starting(healthy: Altered) -> None:
    """Altered: the Secret cacerts lacks the root, and istiod is not ready."""
    pem = base64.b64encode(Authority().root).decode()
    values = {"ca-cert.pem": pem, "ca-key.pem": "REDACTED", "cert-chain.pem": pem}
    _secret(not_ready(healthy, "istiod", "Running"), "cacerts", **values)
    state(healthy, "istiod", "discovery", **FAILED)
    blamed_first(healthy, "MNB453", "A", "Secret istio-system/cacerts")


@pytest.mark.parametrize(
    "keys",
    [
        ("ca-cert.pem", "ca-key.pem", "cert-chain.pem", "root-cert.pem"),
        ("tls.crt", "tls.key", "ca.crt"),
    ],
)
def test_a_complete_authority_is_well(healthy: Altered, keys: tuple[str, ...]) -> None:
    """Altered: there is a Secret cacerts with all files, in one of the two forms."""
    pem = base64.b64encode(Authority().root).decode()
    assert_harmless(_secret(healthy, "cacerts", **dict.fromkeys(keys, pem)))


@pytest.mark.parametrize(
    ("ends", "severity"),
    [
        (datetime(2026, 12, 10, tzinfo=UTC), Severity.WARNING),
        (datetime(2026, 11, 22, tzinfo=UTC), Severity.ERROR),
    ],
)
def test_a_root_that_ends_soon_is_said_in_time(
    healthy: Altered, ends: datetime, severity: Severity
) -> None:
    """Altered: all proxies trust, and are certified by, a root that ends soon or has ended."""
    authority = Authority(ends)
    for pod in healthy.folder.glob("proxies/*/*"):
        holds(healthy, pod.name, chain=authority.chain(), roots=authority.root)
    diagnosis = diagnose(healthy.facts())
    found = [cause for cause in diagnosis.problems if cause.check.code == "MNB454"]
    assert [(str(cause.subject), cause.severity) for cause in found] == [
        ("Secret istio-system/istio-ca-secret", severity)
    ]


def test_a_ca_bundle_with_an_intermediate_authority_only_is_well(healthy: Altered) -> None:
    """Altered: istiod's chain is a certificate and the authority that signed it, which is trusted.

    The root behind that authority is in neither.
    """
    root, middle = Authority(), Authority()
    leaf = middle.chain()
    healthy.bodies(lambda _: leaf + root.root, kind="probe", port=15017)

    def trusts(configuration: Object) -> None:
        for webhook in configuration["webhooks"]:
            webhook["clientConfig"]["caBundle"] = base64.b64encode(middle.root).decode()

    healthy.each("mutatingwebhookconfigurations", "istio-", trusts)
    healthy.each("validatingwebhookconfigurations", "istio", trusts)
    codes = [cause.check.code for cause in diagnose(healthy.facts()).problems]
    assert "MNB170" not in codes
