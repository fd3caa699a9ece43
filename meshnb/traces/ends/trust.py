"""Whether one end of a TLS connection accepts the certificate of the other.

As Envoy's default validator does it with BoringSSL: a path from the leaf over what was sent along
to a root that is trusted, all of it in force, then the names
(https://www.envoyproxy.io/docs/envoy/latest/api-v3/extensions/transport_sockets/tls/v3/common.proto).
What Envoy writes then is as measured with Envoy 1.40.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from meshnb.tables.base import Json, mapping
from meshnb.tables.x509 import Certificate, signed_by
from meshnb.traces.envoy.matchers import Truth, Undecided, either, matches_text, text_words

#: How Envoy begins what it says about a certificate that it refuses.
_REFUSED = (
    "TLS_error:|268435581:SSL_routines:OPENSSL_internal:CERTIFICATE_VERIFY_FAILED:"
    "verify_cert_failed:_"
)
#: Longer chains are not followed.
_DEEPEST = 16


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a certificate is not accepted. ``text`` is what Envoy writes at the end that refuses."""

    says: str
    text: str
    #: what the other end is told, where it is told something of its own
    alert: str
    #: whether the certificate itself is at fault, not what is demanded of it
    own_fault: bool


def refusal(
    chain: Sequence[Certificate], roots: Sequence[Certificate], at: datetime
) -> Refusal | None:
    """Return why a chain, leaf first, is not accepted by who trusts these roots; None if it is."""
    if not chain:
        return Refusal("there is no certificate", f"{_REFUSED}no_certificate", "", own_fault=True)
    path = _path(chain, roots)
    if path is None:
        last = chain[0] if len(chain) == 1 else chain[-1]
        known = " and ".join(sorted({_fingerprint(root) for root in roots})) or "none"
        return Refusal(
            f"no root that is trusted ({known}) has signed it (its issuer is {last.issuer})",
            f"{_REFUSED}X509_verify_cert:_certificate_verification_error_at_depth_0:"
            "_unable_to_get_local_issuer_certificate",
            "TLS_error:|268436504:SSL_routines:OPENSSL_internal:TLSV1_ALERT_UNKNOWN_CA",
            own_fault=False,
        )
    for depth, certificate in enumerate(path):
        who = ("it", "an intermediate certificate")[bool(depth)]
        if depth == len(path) - 1 and certificate in roots:
            who = "it" if not depth else "the root"
        if certificate.not_after < at:
            ended = f"{certificate.not_after:%Y-%m-%d %H:%M:%S} UTC"
            return Refusal(
                f"{who} ended at {ended}",
                f"{_REFUSED}X509_verify_cert:_certificate_verification_error_at_depth_{depth}:"
                "_certificate_has_expired",
                "TLS_error:|268436501:SSL_routines:OPENSSL_internal:SSLV3_ALERT_CERTIFICATE_EXPIRED",
                own_fault=True,
            )
        if certificate.not_before > at:
            begins = f"{certificate.not_before:%Y-%m-%d %H:%M:%S} UTC"
            return Refusal(
                f"{who} begins at {begins} only",
                f"{_REFUSED}X509_verify_cert:_certificate_verification_error_at_depth_{depth}:"
                "_certificate_is_not_yet_valid",
                "TLS_error:|268436501:SSL_routines:OPENSSL_internal:SSLV3_ALERT_CERTIFICATE_EXPIRED",
                own_fault=True,
            )
    return None


def leads_to(chain: Sequence[Certificate], roots: Sequence[Certificate]) -> bool:
    """Whether a chain, leaf first, was signed by one of these roots, in force or not."""
    return _path(chain, roots) is not None


def _path(chain: Sequence[Certificate], roots: Sequence[Certificate]) -> list[Certificate] | None:
    """Return the certificates from the leaf to a trusted one; None when no way leads there."""
    path = [chain[0]]
    for _ in range(_DEEPEST):
        here = path[-1]
        if any(here.fingerprint == root.fingerprint for root in roots):
            return path
        # Roots come first: what is trusted needs no further proof.
        above = next(
            (
                one
                for one in (*roots, *chain[1:])
                if one.fingerprint not in {seen.fingerprint for seen in path}
                and signed_by(here, one)
            ),
            None,
        )
        if above is None:
            return None
        path.append(above)
    return None


def _fingerprint(root: Certificate) -> str:
    return f"{root.subject}, SHA-256 {root.fingerprint[:12]}"


def name_refusal(certificate: Certificate, matchers: Iterable[Json]) -> Refusal | Undecided | None:
    """Return why the names of a certificate do not fit; None when they do, or any are accepted.

    The matchers are those of ``match_subject_alt_names``, or the typed ones.
    """
    wanted = list(matchers)
    if not wanted:
        return None
    fits = either(_fits(name, matcher) for matcher in wanted for name in certificate.sans)
    if isinstance(fits, Undecided):
        return fits
    if fits:
        return None
    names = ", ".join(certificate.sans) or "no name at all"
    demanded = " or ".join(text_words(_text(matcher)) for matcher in wanted)
    return Refusal(
        f"it is for {names}, and demanded is a name that {demanded}",
        f"{_REFUSED}SAN_matcher,_certificate_SANs_are_[{','.join(certificate.sans)}]",
        "TLS_error:|268436502:SSL_routines:OPENSSL_internal:SSLV3_ALERT_CERTIFICATE_UNKNOWN",
        own_fault=False,
    )


def _text(matcher: Json) -> Json:
    inner = mapping(matcher, "matcher")
    return inner or matcher


def _fits(name: str, matcher: Json) -> Truth:
    text = mapping(_text(matcher))
    exact = text.get("exact")
    # Of DNS names a certificate's wildcard covers one label.
    if isinstance(exact, str) and name.startswith("*.") and covers(name, exact):
        return True
    return matches_text(text, name)


def covers(name: str, host: str) -> bool:
    """Whether a certificate's name covers a host: the same, or a wildcard for its first label."""
    name, host = name.lower(), host.lower()
    if name.startswith("*."):
        return host.partition(".")[2] == name[2:] and not host.startswith("*.")
    return name == host
