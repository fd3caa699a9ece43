"""Envoy's JWT filter: which token a request must bring, and what becomes of the one it brings.

The shape of the configuration is that of ``envoy.extensions.filters.http.jwt_authn.v3``; istiod
makes it of RequestAuthentications. Messages are Envoy's own, because the access log repeats them.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any
from urllib.parse import unquote_plus

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from meshnb.tables.base import Json, dig, items, mapping
from meshnb.traces.envoy.matchers import Headers, Undecided, query_of

#: The name of the filter, under which it writes down what a token says.
FILTER = "envoy.filters.http.jwt_authn"
MISSING = "Jwt is missing"
UNKNOWN_ISSUER = "Jwt issuer is not configured"
EXPIRED = "Jwt is expired"
NOT_YET = "Jwt not yet valid"
WRONG_AUDIENCE = "Audiences in Jwt are not allowed"
WRONG_SIGNATURE = "Jwt verification fails"
NO_KEY = "Jwks doesn't have key to match kid or alg from Jwt"
_NOT_THREE_PARTS = "Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections"
#: Seconds by which clocks may differ where a provider says nothing else.
_SKEW = 60
_TOKEN_CHARACTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_=.")


@dataclass(frozen=True, slots=True)
class Token:
    """A token, taken apart. ``problem`` is what Envoy says of one that cannot be."""

    header: Mapping[str, Any] = field(default_factory=dict)
    payload: Mapping[str, Any] = field(default_factory=dict)
    signed: bytes = b""
    signature: bytes = b""
    problem: str = ""

    @property
    def issuer(self) -> str:
        """Who issued it; empty where it does not say."""
        return str(self.payload.get("iss", ""))


@dataclass(frozen=True, slots=True)
class Verified:
    """What the filter says of a request: its error, empty for none, or that it cannot be told.

    ``payloads`` are those of the tokens that were accepted, by the key that they are noted under;
    ``dropped`` are the places where the filter takes a token away.
    """

    error: str | Undecided = ""
    payloads: Mapping[str, Any] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()


def read_token(text: str) -> Token:
    """Return a token, taken apart; nothing is verified."""
    parts = text.split(".")
    if len(parts) != 3 or not all(parts):
        return Token(problem=_NOT_THREE_PARTS)
    documents: list[Mapping[str, Any]] = []
    for name, part in (("header", parts[0]), ("payload", parts[1])):
        try:
            body = _decoded(part)
        except ValueError:
            return Token(problem=f"Jwt {name} is an invalid Base64url encoded")
        try:
            document = json.loads(body)
        except (ValueError, RecursionError):
            document = None
        if not isinstance(document, dict):
            return Token(problem=f"Jwt {name} is an invalid JSON")
        if problem := _malformed(name, document):
            return Token(problem=problem)
        documents.append(document)
    try:
        signature = _decoded(parts[2])
    except ValueError:
        return Token(problem="Jwt signature is an invalid Base64url encoded")
    return Token(documents[0], documents[1], f"{parts[0]}.{parts[1]}".encode(), signature)


def _malformed(name: str, document: Mapping[str, Any]) -> str:
    """Return which field of a token's header or payload is of the wrong type; empty for none."""
    if name == "header":
        if not isinstance(document.get("alg"), str):
            return "Jwt header [alg] field is required and must be a string"
        if document["alg"] not in _ALGORITHMS:
            return "Jwt header [alg] is not supported"
        kid = document.get("kid", "")
        return "" if isinstance(kid, str) else "Jwt header [kid] field is not a string"
    for field_, kind in _FIELDS.items():
        value = document.get(field_, kind())
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not (isinstance(value, str) if kind is str else number):
            wanted = "a string" if kind is str else "an integer"
            return f"Jwt payload [{field_}] field is not {wanted}"
        if number and not 0 <= value < 1 << 63:
            return f"Jwt payload [{field_}] field is not a positive 64 bit integer"
    audiences = document.get("aud", "")
    if not all(isinstance(one, str) for one in _each(audiences)):
        return "Jwt payload [aud] field is not a string or string list"
    return ""


def _each(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


_FIELDS: Mapping[str, Any] = {
    "iss": str,
    "sub": str,
    "iat": float,
    "nbf": float,
    "exp": float,
    "jti": str,
}
_ALGORITHMS = frozenset(
    {f"{kind}{bits}" for kind in ("ES", "HS", "RS", "PS") for bits in (256, 384, 512)} | {"EdDSA"}
)


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(str(error)) from None


# --- The filter ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Filter:
    """The filter's configuration and one request."""

    providers: Mapping[str, Any]
    requirements: Mapping[str, Any]
    headers: Headers
    time: datetime | None

    def meets(self, requirement: Json, depth: int = 0) -> Verified:
        """Return whether a ``JwtRequirement`` is met."""
        if depth > 50:
            return Verified(Undecided("its requirements are nested too deeply"))
        fields = mapping(requirement)
        if "requires_any" in fields:
            return self.any_of(items(fields, "requires_any", "requirements"), depth)
        if "requires_all" in fields:
            return self.all_of(items(fields, "requires_all", "requirements"), depth)
        if "allow_missing_or_failed" in fields or not fields:
            return self.lenient(self.tokens_of_all())
        if "allow_missing" in fields:
            return self.missing_allowed()
        name = fields.get("provider_name")
        audiences: tuple[str, ...] | None = None
        if "provider_and_audiences" in fields:
            name = dig(fields, "provider_and_audiences", "provider_name")
            audiences = tuple(
                str(one) for one in items(fields, "provider_and_audiences", "audiences")
            )
        provider = self.providers.get(str(name))
        if provider is None:
            return Verified(Undecided(f"the requirement of {name} is not evaluated offline"))
        return self.one(provider, audiences)

    def any_of(self, requirements: list[Any], depth: int) -> Verified:
        """Return the first that is met, else the error that says most."""
        lenient = any("allow_missing_or_failed" in mapping(one) for one in requirements)
        may_miss = any("allow_missing" in mapping(one) for one in requirements)
        final, unknown = MISSING, None
        dropped: list[str] = []
        for requirement in requirements:
            if {"allow_missing", "allow_missing_or_failed"} & mapping(requirement).keys():
                continue
            rest = replace(self, headers=without(self.headers, dropped))
            found = rest.meets(requirement, depth + 1)
            dropped += found.dropped
            if found.error == "":
                found = replace(found, dropped=tuple(dropped))
                return found if unknown is None else Verified(unknown)
            if isinstance(found.error, Undecided):
                unknown = unknown if unknown is not None else found.error
            elif found.error not in (MISSING, UNKNOWN_ISSUER) or final == MISSING:
                final = found.error
        if unknown is not None:
            return Verified(unknown)
        met = lenient or (may_miss and final == MISSING)
        return Verified("" if met else final, {}, tuple(dropped))

    def all_of(self, requirements: list[Any], depth: int) -> Verified:
        """Return all together; what one takes away, the next does not find."""
        payloads: dict[str, Any] = {}
        dropped: list[str] = []
        for requirement in requirements:
            rest = replace(self, headers=without(self.headers, dropped))
            found = rest.meets(requirement, depth + 1)
            dropped += found.dropped
            if found.error != "":
                return replace(found, dropped=tuple(dropped))
            payloads |= found.payloads
        return Verified("", payloads, tuple(dropped))

    def one(self, provider: Json, audiences: tuple[str, ...] | None) -> Verified:
        """Return what becomes of the tokens that are found where a provider expects them.

        All of them must be good; Envoy begins with the last.
        """
        found = tokens_of(provider, self.headers)
        if isinstance(found, Undecided):
            return Verified(found)
        if not found:
            return Verified(MISSING)
        accepted = Verified()
        for text, place in reversed(found):
            error = verify(read_token(text), provider, self.time, audiences)
            if error != "":
                return Verified(error)
            accepted = self.accepted(provider, text, place)
        return accepted

    def accepted(self, provider: Json, text: str, place: str) -> Verified:
        token = read_token(text)
        key = mapping(provider).get("payload_in_metadata")
        kept = mapping(provider).get("forward") is True
        payloads = {str(key): dict(token.payload)} if key else {}
        return Verified("", payloads, () if kept else (place,))

    def tokens_of_all(self) -> list[tuple[Json, str, str]] | Undecided:
        """Return each token with its provider and its place.

        The provider is found by the issuer, among those that expect tokens at that place.
        """
        seen: dict[tuple[str, str], tuple[Json, str, str]] = {}
        for provider in self.providers.values():
            found = tokens_of(provider, self.headers)
            if isinstance(found, Undecided):
                return found
            for text, place in found:
                known = seen.get((place, text), (None,))[0]
                issuer = dig(provider, "issuer", default="")
                if issuer == read_token(text).issuer or (not issuer and known is None):
                    seen[place, text] = (provider, text, place)
                else:
                    seen.setdefault((place, text), (None, text, place))
        # Envoy looks into headers first, in the order of their names.
        return [seen[key] for key in sorted(seen, key=lambda one: (one[0][:1] == "?", one))]

    def lenient(self, tokens: list[tuple[Json, str, str]] | Undecided) -> Verified:
        """Return what is written down of the tokens that are good; bad ones make no difference."""
        if isinstance(tokens, Undecided):
            return Verified(tokens)
        payloads: dict[str, Any] = {}
        dropped: list[str] = []
        for provider, text, place in tokens:
            if provider is None:
                continue
            error = verify(read_token(text), provider, self.time, None)
            if isinstance(error, Undecided):
                return Verified(error)
            if not error:
                found = self.accepted(provider, text, place)
                payloads |= found.payloads
                dropped += found.dropped
        return Verified("", payloads, tuple(dropped))

    def missing_allowed(self) -> Verified:
        """Return the error of the token that was sent, if one was; of several the first counts."""
        tokens = self.tokens_of_all()
        if isinstance(tokens, Undecided):
            return Verified(tokens)
        for provider, text, _ in tokens[:1]:
            token = read_token(text)
            error = token.problem or (
                UNKNOWN_ISSUER if provider is None else verify(token, provider, self.time, None)
            )
            if error != "":
                return Verified(error)
        return self.lenient(tokens)


def authenticate(
    config: Json,
    headers: Headers,
    time: datetime | None,
    matches: Callable[[Json], bool | Undecided],
    requirement: str | None = None,
) -> Verified:
    """Return what a JWT filter says of a request.

    ``matches`` says whether a rule's route match holds; ``requirement`` is the name of the one that
    the route asks for instead. A request that no rule matches passes.
    """
    filter_ = _Filter(
        mapping(config, "providers"), mapping(config, "requirement_map"), headers, time
    )
    preflight = _preflight(headers) if dig(config, "bypass_cors_preflight") is True else False
    if isinstance(preflight, Undecided):
        return Verified(preflight)
    if preflight:
        return Verified()
    if requirement is not None:
        return filter_.meets(filter_.requirements.get(requirement, {"unknown": requirement}))
    for rule in items(config, "rules"):
        truth = matches(mapping(rule, "match"))
        if isinstance(truth, Undecided):
            return Verified(truth)
        if not truth:
            continue
        if "requirement_name" in mapping(rule):
            return filter_.meets(filter_.requirements.get(str(rule["requirement_name"]), {}))
        return filter_.meets(rule["requires"]) if mapping(rule, "requires") else Verified()
    return Verified()


def _preflight(headers: Headers) -> bool | Undecided:
    """Whether a request is a preflight of CORS, which brings no token."""
    if headers.get(":method") != "OPTIONS":
        return False
    for name in ("origin", "access-control-request-method"):
        value = headers.get(name)
        if isinstance(value, Undecided):
            return value
        if not value:
            return False
    return True


# --- Where tokens stand --------------------------------------------------------------------------


def tokens_of(provider: Json, headers: Headers) -> list[tuple[str, str]] | Undecided:
    """Return the tokens where a provider expects them, each with its place.

    That is the name of a header, or of a parameter of the query behind a question mark.
    """
    found: list[tuple[str, str]] = []
    for name, prefix in _header_places(provider):
        value = headers.get(name)
        if isinstance(value, Undecided):
            return Undecided(f"whether a token was sent is not known: {value.reason}")
        if value is not None and prefix in value:
            found.append((_token_in(value, prefix) if prefix else value, name.lower()))
    parameters = [str(name) for name in items(provider, "from_params")]
    cookies = [str(name) for name in items(provider, "from_cookies")]
    if not (items(provider, "from_headers") or parameters or cookies):
        parameters = ["access_token"]
    path = headers.get(":path")
    if isinstance(path, str):
        query = query_of(path)
        found += [(unquote_plus(query[name]), f"?{name}") for name in parameters if name in query]
    if cookies:
        cookie = headers.get("cookie")
        if isinstance(cookie, Undecided):
            return Undecided(f"whether a token was sent is not known: {cookie.reason}")
        pairs = dict(_pairs(cookie or ""))
        found += [(pairs[name], "cookie") for name in cookies if name in pairs]
    return found


def _header_places(provider: Json) -> list[tuple[str, str]]:
    places = [
        (str(dig(one, "name", default="")), str(dig(one, "value_prefix", default="")))
        for one in items(provider, "from_headers")
    ]
    if places or items(provider, "from_params") or items(provider, "from_cookies"):
        return sorted(places, key=lambda one: one[0].lower() + one[1])
    return [("Authorization", "Bearer ")]


def _token_in(value: str, prefix: str) -> str:
    """Return the token behind a prefix: what stands there of the characters of a token."""
    rest = value[value.index(prefix) + len(prefix) :]
    start = next((n for n, one in enumerate(rest) if one in _TOKEN_CHARACTERS), None)
    if start is None:
        return value
    end = next((n for n in range(start, len(rest)) if rest[n] not in _TOKEN_CHARACTERS), None)
    return rest[start:end]


def _pairs(cookie: str) -> Iterator[tuple[str, str]]:
    for part in cookie.split(";"):
        name, _, value = part.strip().partition("=")
        yield name, value.strip('"')


def without(headers: Headers, places: Iterable[str]) -> Headers:
    """Return headers without the tokens at some places; cookies stay."""
    known = dict(headers.known)
    for place in places:
        if place.startswith("?"):
            known[":path"] = _without_parameter(known.get(":path") or "", place[1:])
        elif place != "cookie":
            known[place] = None
    return replace(headers, known=known)


def _without_parameter(path: str, name: str) -> str:
    plain, _, query = path.partition("?")
    kept = [part for part in query.split("&") if part.partition("=")[0] != name]
    return f"{plain}?{'&'.join(kept)}" if kept else plain


# --- Whether a token is good ---------------------------------------------------------------------


def verify(
    token: Token, provider: Json, time: datetime | None, audiences: tuple[str, ...] | None
) -> str | Undecided:
    """Return why a provider refuses a token, in Envoy's words; empty when it accepts it.

    In Envoy's order: issuer, times, audiences, signature. Keys that Envoy fetches itself are not in
    its configuration, so whether they fit cannot be told.
    """
    if token.problem:
        return token.problem
    issuer = str(dig(provider, "issuer", default=""))
    if issuer and token.issuer != issuer:
        return UNKNOWN_ISSUER
    if time is None and {"exp", "nbf"} & token.payload.keys():
        return Undecided("when the request was made is not known")
    if time is not None and (late := _untimely(token, provider, time)):
        return late
    wanted = audiences or tuple(str(one) for one in items(provider, "audiences"))
    known = _each(token.payload.get("aud", []))
    if wanted and not {_audience(str(one)) for one in known} & set(map(_audience, wanted)):
        return WRONG_AUDIENCE
    return _signed(token, provider)


def _untimely(token: Token, provider: Json, time: datetime) -> str:
    told = mapping(provider).get("clock_skew_seconds")
    skew = told if isinstance(told, int) and told else _SKEW
    now = time.timestamp()
    begins, ends = (token.payload.get(name) for name in ("nbf", "exp"))
    if isinstance(begins, int | float) and begins > now + skew:
        return NOT_YET
    if isinstance(ends, int | float) and ends and now > ends + skew:
        return EXPIRED
    return ""


def _audience(text: str) -> str:
    """Return an audience as Envoy compares it: without its scheme and a slash at its end."""
    for scheme in ("https://", "http://"):
        text = text.removeprefix(scheme)
    return text.removesuffix("/")


def _signed(token: Token, provider: Json) -> str | Undecided:
    text = dig(provider, "local_jwks", "inline_string")
    if not isinstance(text, str):
        return Undecided("the keys of its issuer are not in the proxy's configuration")
    try:
        keys = items(json.loads(text), "keys")
    except (ValueError, RecursionError):
        return Undecided("the keys of its issuer cannot be read")
    kid, algorithm = token.header.get("kid"), token.header.get("alg")
    fitting = [
        key
        for key in keys
        if not (kid and dig(key, "kid") and dig(key, "kid") != kid)
        and not (dig(key, "alg") and dig(key, "alg") != algorithm)
    ]
    if not fitting:
        return NO_KEY
    found = [_verified(token, key, str(algorithm)) for key in fitting]
    if True in found:
        return ""
    unknown = next((one for one in found if isinstance(one, Undecided)), None)
    return unknown if unknown is not None else WRONG_SIGNATURE


_HASHES: Mapping[str, Callable[[], hashes.HashAlgorithm]] = {
    "256": hashes.SHA256,
    "384": hashes.SHA384,
    "512": hashes.SHA512,
}
_CURVES: Mapping[str, Callable[[], ec.EllipticCurve]] = {
    "P-256": ec.SECP256R1,
    "P-384": ec.SECP384R1,
    "P-521": ec.SECP521R1,
}


def _verified(token: Token, key: Json, algorithm: str) -> bool | Undecided:
    kind, digest = algorithm[:2], _HASHES.get(algorithm[2:])
    if digest is None or (kind, dig(key, "kty")) not in (
        ("RS", "RSA"),
        ("PS", "RSA"),
        ("ES", "EC"),
    ):
        return Undecided(f"signatures of {algorithm} with a key of {dig(key, 'kty')} are not tried")
    try:
        if kind == "ES":
            half = len(token.signature) // 2
            first, second = token.signature[:half], token.signature[half:]
            curve = _CURVES[str(dig(key, "crv"))]()
            numbers = ec.EllipticCurvePublicNumbers(_integer(key, "x"), _integer(key, "y"), curve)
            numbers.public_key().verify(
                encode_dss_signature(int.from_bytes(first), int.from_bytes(second)),
                token.signed,
                ec.ECDSA(digest()),
            )
        else:
            public = rsa.RSAPublicNumbers(_integer(key, "e"), _integer(key, "n")).public_key()
            salt = padding.PSS(padding.MGF1(digest()), digest().digest_size)
            scheme = padding.PKCS1v15() if kind == "RS" else salt
            public.verify(token.signature, token.signed, scheme, digest())
    except InvalidSignature:
        return False
    except (ValueError, KeyError, TypeError, UnsupportedAlgorithm) as error:
        return Undecided(f"a key of its issuer cannot be used: {error}")
    return True


def _integer(key: Json, name: str) -> int:
    return int.from_bytes(_decoded(str(dig(key, name, default=""))))
