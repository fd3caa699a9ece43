"""What never reaches a bundle: values of Secrets, private keys, tokens, and other people's values.

Names stay, and so do certificates, because their names and dates are evidence; of the mesh's own
containers the well-known variables stay as well. A body in which nothing was found is kept byte for
byte; one that cannot be read is dropped whole, because nothing can be promised about it.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from meshnb.errors import UsageError, nearest
from meshnb.sources.base import ListQuestion, LogQuestion, Question
from meshnb.sources.credentials import (
    CREDENTIALS,
    HEADERS,
    KEYS,
    MARK,
    MARKED,
    WORDS,
    Credentials,
    is_credential,
    is_harmless,
    is_header,
    may_be_credential,
    without_scheme,
)
from meshnb.sources.environment import ISTIO_CONTAINERS, is_setting

SECRETS, ENVIRONMENT, ARGUMENTS, COMPRESSED, TWICE, UNREADABLE = (
    "secret values",
    "environment values",
    "command-line arguments",
    "compressed values",
    "objects with a field twice, of which the last stays",
    "unreadable answers, dropped whole",
)
#: What may be kept, by the name of the option that says so. Secret values and keys never are.
KEEPABLE: Mapping[str, tuple[str, ...]] = {
    "environment": (ENVIRONMENT,),
    "headers": (HEADERS,),
    "arguments": (ARGUMENTS,),
}
#: Stands in the place of an answer that could not be read. No JSON, so that it is a gap.
DROPPED = b"REDACTED: meshnb dropped this answer, because it could not be read to be redacted"

_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----[A-Za-z0-9+/=\s]+-----END CERTIFICATE-----")
_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
#: A text that is longer is split into its parts before it is decoded, in bytes.
_LARGE = 1 << 18
#: A list that is none of JSON, but a short refusal by something in between, in bytes.
_SHORT = 1024
#: JSON within strings of JSON is followed so deep.
_NESTED = 4
#: One of them is in every part that the rules for objects look at.
_FIELDS = (
    *('"env"', '"args"', '"command"', '"kty"', '"data"', '"stringdata"', '"binarydata"', "auths"),
    *("metadata", "environment", '"value', "h4si", '"key', "pass", '"jwt"', "proxy", "session"),
)
_SUSPICIOUS = tuple(sorted(word.encode() for word in {*WORDS, *_FIELDS}))
_KEY = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*+"(\s*:)?', re.DOTALL)
#: Maps of variables to values.
_VARIABLES = frozenset(
    {
        *("env", "proxyMetadata", "proxy_metadata", "environmentVariables", "key_values"),
        *("keyValues", "extraEnv"),
    }
)
#: Fields of Envoy whose inline text is a secret (config.core.v3.DataSource).
_SOURCES = frozenset(
    {
        *("secret", "password", "private_key", "privateKey", "pkcs12", "hmac", "hmac_secret"),
        *("token_secret", "client_secret"),
    }
)
_USER_OPTIONS = ("-u", "--user", "--proxy-user")
_INLINE = ("inline_bytes", "inline_string", "inlineBytes", "inlineString")
#: Fields whose value is a token when it looks like one.
_TOKEN_FIELDS = frozenset({"token", "jwt", "bearer", "pwd", "pass"})
#: Where a header's value stands beside its name.
_HEADER_VALUES = (
    *("value", "raw_value", "rawValue", "values", "notValues", "not_values", "exact_match"),
    *("prefix_match", "suffix_match", "contains_match", "string_match", "stringMatch"),
)
_MATCHES = ("exact", "prefix", "suffix", "contains", "value", "values")
_PRIVATE_JWK = ("d", "p", "q", "dp", "dq", "qi", "oth", "k")
_WRITTEN_METADATA = re.compile(
    r"^(?P<indent>[ \t-]*)(?:proxyMetadata|environmentVariables):[ \t]*\n"
    r"(?P<block>(?:(?P=indent)[ \t]+[^\n]*(?:\n|\Z))+)",
    re.MULTILINE,
)
_WRITTEN_VARIABLE = re.compile(r"^([ \t]+[\"']?)([\w.-]+)([\"']?:[ \t]+)(\S[^\n]*)$", re.MULTILINE)

#: What a document of another shape than expected leads to.
_FAILURES = (
    *(msgspec.DecodeError, UnicodeError, ValueError, TypeError, KeyError, AttributeError),
    RecursionError,
)


def redact(
    question: Question, body: bytes, keep: Iterable[str] = ()
) -> tuple[bytes, dict[str, int]]:
    """Return a body without secrets, and how many of each kind were taken out."""
    redaction = Redaction(keep)
    return redaction.body(question, body), redaction.counts


class Redaction:
    """Takes out of one recording after the other what must not leave the cluster, and counts it.

    ``keep`` are names of :data:`KEEPABLE`. Raises UsageError for another one.
    """

    def __init__(self, keep: Iterable[str] = ()) -> None:
        names = tuple(keep)
        for name in names:
            if name not in KEEPABLE:
                raise UsageError(
                    f"{name!r} cannot be kept in a recording.", next_step=nearest(name, KEEPABLE)
                )
        self.kept = tuple(sorted(set(names)))
        self._keep = frozenset(what for name in names for what in KEEPABLE[name])
        self._credentials = Credentials(self._keep)
        self._changed = False
        self._fields = 0

    @property
    def counts(self) -> dict[str, int]:
        """How many of each kind were taken out."""
        return dict(self._credentials.counts)

    def body(self, question: Question, body: bytes) -> bytes:
        """Return an answer's body without secrets.

        Of each value of a Secret only the certificates stay; a value without any becomes
        ``REDACTED``, an empty one stays empty.
        """
        if isinstance(question, LogQuestion):
            return self._page(body)
        first = body[: 1 << 16].lstrip()[:1]
        listed = isinstance(question, ListQuestion)
        secrets = isinstance(question, ListQuestion) and question.resource == "secrets"
        before = dict(self._credentials.counts)
        try:
            if secrets:
                return self._secret_list(body)
            if first in (b"{", b"[", b'"') or (listed and len(body) > _SHORT):
                return self._part(body)
        except _FAILURES:
            self._credentials.counts = before  # what was counted in it is not in the bundle
            self._credentials.count(UNREADABLE)
            return DROPPED
        return self._page(body)

    def text(self, text: str) -> str:
        """Return a short text, such as an error, without credentials."""
        return self._credentials.without(text)

    def detail(self, detail: Mapping[str, Any]) -> dict[str, Any]:
        """Return an answer's particulars without credentials."""
        try:
            found = self._object(msgspec.json.decode(msgspec.json.encode(detail)))
        except _FAILURES:
            return {}
        assert isinstance(found, dict)
        return found

    def _page(self, body: bytes) -> bytes:
        text = body.decode("utf-8", "surrogateescape")
        cleaned = self._credentials.without(text)
        return body if cleaned == text else cleaned.encode("utf-8", "surrogateescape")

    def _secret_list(self, body: bytes) -> bytes:
        document = msgspec.json.decode(body)
        if document.get("kind") == "Status":
            return self._part(body)
        for item in document["items"] or []:
            self._secret(item)
        return msgspec.json.encode(self._object(document))

    def _part(self, raw: bytes) -> bytes:
        """Return JSON without secrets; a large one part by part, so that few are held at once."""
        if not _suspicious(raw):
            return raw
        if len(raw) > _LARGE:
            first = raw.lstrip()[:1]
            if first == b"[":
                return self._large_list(raw)
            if first == b"{":
                fields = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
                if not any(map(_has_rule, fields)):
                    return self._large_object(raw, fields)
        document = msgspec.json.decode(raw)
        self._changed, self._fields = False, 0
        cleaned = self._value(document)
        if self._fields != _count_fields(raw):
            self._credentials.count(TWICE)
        elif not self._changed:
            return raw
        return msgspec.json.encode(cleaned)

    def _large_list(self, raw: bytes) -> bytes:
        parts = [bytes(part) for part in msgspec.json.decode(raw, type=list[msgspec.Raw])]
        cleaned = [self._part(part) for part in parts]
        if all(new is old for new, old in zip(cleaned, parts, strict=True)):
            return raw
        return b"[" + b",".join(cleaned) + b"]"

    def _large_object(self, raw: bytes, fields: Mapping[str, msgspec.Raw]) -> bytes:
        parts = {name: bytes(part) for name, part in fields.items()}
        cleaned = {name: self._part(part) for name, part in parts.items()}
        encoded = {name: msgspec.json.encode(self._credentials.without(name)) for name in parts}
        # A field that is there twice is seen once only; the other one must not stay.
        size = len(msgspec.json.format(raw, indent=-1))
        seen = 1 + sum(
            len(msgspec.json.format(part, indent=-1)) + len(encoded[name]) + 2
            for name, part in parts.items()
        )
        if size != seen:
            self._credentials.count(TWICE)
        elif all(cleaned[name] is part for name, part in parts.items()):
            return raw
        return b"{" + b",".join(encoded[name] + b":" + cleaned[name] for name in parts) + b"}"

    def _take(self, what: str) -> str:
        self._credentials.count(what)
        self._changed = True
        return MARK

    def _value(self, value: Any, depth: int = 0) -> Any:
        if isinstance(value, str):
            return self._string(value, depth)
        if isinstance(value, dict):
            return self._object(value, depth)
        if isinstance(value, list):
            for place, item in enumerate(value):
                value[place] = self._value(item, depth)
        return value

    def _string(self, text: str, depth: int = 0) -> str:
        if len(text) < 6:
            return text
        if text[0] in "{[" and depth < _NESTED:
            written = self._written(text, depth)
            if written is not None:
                return written
        if text.startswith("H4sI") and len(text) > 64:  # gzip in base64: a release of Helm
            return self._take(COMPRESSED)
        cleaned = self._credentials.without(text)
        if "proxyMetadata:" in cleaned or "environmentVariables:" in cleaned:
            cleaned = _WRITTEN_METADATA.sub(self._written_variables, cleaned)
        if cleaned != text:
            self._changed = True
        return cleaned

    def _written(self, text: str, depth: int) -> str | None:
        """Return JSON in a string without secrets; None when it is no JSON."""
        raw = text.encode("utf-8", "surrogatepass")
        try:
            document = msgspec.json.decode(raw)
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            return None
        outer, self._changed = (self._changed, self._fields), False
        self._fields = 0
        cleaned = self._value(document, depth + 1)
        twice = self._fields != _count_fields(raw)
        if twice:
            self._credentials.count(TWICE)
        changed = self._changed or twice
        self._changed, self._fields = outer[0] or changed, outer[1]
        if not changed:
            return text
        encoded = msgspec.json.encode(cleaned).decode()
        return encoded + text[len(text.rstrip()) :]

    def _written_variables(self, match: re.Match[str]) -> str:
        """Take values out of a map of variables that is written as YAML."""
        if ENVIRONMENT in self._keep:
            return match[0]

        def variable(line: re.Match[str]) -> str:
            value = line[4].strip().strip("\"'")
            if not value or is_setting(line[2]) or MARKED.fullmatch(value):
                return line[0]
            return f"{line[1]}{line[2]}{line[3]}{self._take(ENVIRONMENT)}"

        block = match["block"]
        return match[0].replace(block, _WRITTEN_VARIABLE.sub(variable, block))

    def _object(self, fields: dict[str, Any], depth: int = 0) -> dict[str, Any]:
        self._fields += len(fields)
        if fields.get("kind") == "Secret":
            self._secret(fields)
        if "kty" in fields:
            self._key_of_set(fields)
        name = fields.get("key", fields.get("name"))
        if isinstance(name, str):
            self._header_beside(name, fields)
        renamed: dict[str, str] = {}
        for field, value in fields.items():
            if isinstance(value, dict | list) or (isinstance(value, str) and value):
                fields[field] = self._field(field, value, fields, depth)
            if len(field) > 20:
                kept = self._credentials.without(field)
                if kept != field:
                    renamed[field] = kept
        if renamed:
            self._changed = True
            return {renamed.get(field, field): value for field, value in fields.items()}
        return fields

    def _field(self, field: str, value: Any, fields: Mapping[str, Any], depth: int) -> Any:
        if field in _VARIABLES:
            istio = field != "env" or fields.get("name") in ISTIO_CONTAINERS or "name" not in fields
            self._variables(value, istio=istio)
        elif field in ("args", "command") and isinstance(value, list):
            self._arguments(value)
        elif field == "auths" and isinstance(value, dict):
            self._registries(value)
        elif field == "binaryData" and isinstance(value, dict):
            self._binary(value)
        elif field == "session_ticket_keys" and isinstance(value, dict):
            for one in _objects(value.get("keys")):
                self._inline(one)
        elif isinstance(value, dict) and (field in _SOURCES or is_credential(field)):
            self._inline(value)
        elif is_credential(field) or self._is_token(field, value):
            return self._credential(value, depth)
        elif is_header(field) and ("-" in field or field.lower() in ("authorization", "cookie")):
            value = self._header(value)
        return self._value(value, depth)

    def _is_token(self, field: str, value: Any) -> bool:
        if not isinstance(value, str):
            return False
        if field in _TOKEN_FIELDS:
            return " " not in value.strip() and "%" not in value
        return field.isupper() and may_be_credential(field) and not is_setting(field)

    def _credential(self, value: Any, depth: int) -> Any:
        if isinstance(value, str):
            return value if is_harmless(value) else self._take(CREDENTIALS)
        if isinstance(value, list):
            return [self._credential(one, depth) for one in value]
        return self._value(value, depth)

    def _inline(self, source: dict[str, Any]) -> None:
        for field in _INLINE:
            text = source.get(field)
            if isinstance(text, str) and text and not MARKED.fullmatch(text):
                source[field] = self._take(SECRETS)
                if "ytes" in field:
                    source[field] = base64.b64encode(MARK.encode()).decode()

    def _variables(self, value: Any, *, istio: bool) -> None:
        """Take the values out of a list of variables, or out of a map of them."""
        if ENVIRONMENT in self._keep:
            return
        if isinstance(value, dict):
            for name, text in value.items():
                if _is_secret_value(text) and not (istio and is_setting(name)):
                    value[name] = self._take(ENVIRONMENT)
        for one in _objects(value):
            if _is_secret_value(one.get("value")):
                name = one.get("name")
                if not (istio and isinstance(name, str) and is_setting(name)):
                    one["value"] = self._take(ENVIRONMENT)

    def _arguments(self, words: list[Any]) -> None:
        if ARGUMENTS in self._keep:
            return
        option = ""
        for place, word in enumerate(words):
            if not isinstance(word, str):
                continue
            name, equals, value = word.partition("=")
            before = words[place - 1] if place else ""
            if before in _USER_OPTIONS and ":" in word:
                words[place] = f"{word.partition(':')[0]}:{self._take(ARGUMENTS)}"
            elif equals and _is_option(name) and not is_harmless(value) and "\n" not in name:
                words[place] = f"{name}={self._take(ARGUMENTS)}"
            elif option and not word.startswith("-") and not is_harmless(word):
                words[place] = self._take(ARGUMENTS)
            option = word if word.startswith("-") and not equals and _is_option(word) else ""

    def _registries(self, registries: dict[str, Any]) -> None:
        for account in registries.values():
            for field, value in account.items() if isinstance(account, dict) else ():
                if isinstance(value, str) and value and not MARKED.fullmatch(value):
                    account[field] = self._take(CREDENTIALS)

    def _binary(self, values: dict[str, Any]) -> None:
        for name, value in values.items():
            try:
                plain = base64.b64decode(value).decode("utf-8", "surrogateescape")
            except (binascii.Error, ValueError, TypeError):
                values[name] = self._take(CREDENTIALS)
                continue
            if value.startswith("H4sI"):
                values[name] = self._take(COMPRESSED)
            elif Credentials(self._keep).without(plain) != plain:
                values[name] = self._take(CREDENTIALS)

    def _key_of_set(self, key: dict[str, Any]) -> None:
        """Take the private members out of a JSON Web Key (RFC 7517, RFC 7518)."""
        for member in _PRIVATE_JWK:
            if key.get(member) and key[member] != MARK:
                key[member] = self._take(KEYS)

    def _header_beside(self, name: str, fields: dict[str, Any]) -> None:
        header = name.removeprefix("request.headers[").removesuffix("]")
        if is_header(header):
            for field in _HEADER_VALUES:
                if field in fields:
                    fields[field] = self._header(fields[field])

    def _header(self, value: Any) -> Any:
        """Return a header's value, or what it is compared with, without the credential."""
        if HEADERS in self._keep:
            return value
        if isinstance(value, str):
            bare = without_scheme(value)
            if not bare or is_harmless(bare) or is_harmless(value) or "%REQ(" in value:
                return value
            return value[: len(value) - len(bare)] + self._take(HEADERS)
        if isinstance(value, list):
            return [self._header(one) for one in value]
        if isinstance(value, dict):
            for field in _MATCHES:
                if field in value:
                    value[field] = self._header(value[field])
        return value

    def _secret(self, secret: dict[str, Any]) -> None:
        """Take the values out of a Secret. Raises ValueError when it has another shape."""
        for field in ("data", "stringData"):
            values = secret.get(field) or {}
            for name, value in values.items():
                kept = _certificates(value) if value else value
                if kept != value:
                    values[name] = self._take(SECRETS)
                    values[name] = kept
        annotations = (secret.get("metadata") or {}).get("annotations") or {}
        if annotations.get(_APPLIED, MARK) != MARK:
            annotations[_APPLIED] = self._take(SECRETS)


def _suspicious(raw: bytes) -> bool:
    """Whether a rule may apply to JSON; an escaped letter may hide the word that tells."""
    lower = raw.lower()
    return b"\\u" in lower or any(word in lower for word in _SUSPICIOUS)


def _count_fields(raw: bytes) -> int:
    return sum(1 for colon in _KEY.findall(raw) if colon)


def _has_rule(field: str) -> bool:
    """Whether an object with this field must be looked at as a whole."""
    return (
        field in _VARIABLES
        or field in _SOURCES
        or field in ("args", "command", "auths", "data", "stringData", "binaryData", "kty")
        or field in ("session_ticket_keys", *_TOKEN_FIELDS, *_HEADER_VALUES)
        or is_credential(field)
        or is_header(field)
    )


def _is_option(word: str) -> bool:
    name = word.lstrip("-")
    return name.replace("-", "").replace("_", "").isalnum() and may_be_credential(name)


def _is_secret_value(value: Any) -> bool:
    if isinstance(value, dict | list):
        return False
    text = str(value) if value is not None else ""
    return bool(text) and not MARKED.fullmatch(text) and not re.fullmatch(r"\$\(\w+\)", text)


def _objects(value: Any) -> list[dict[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _certificates(value: Any) -> str:
    """Return of a value of a Secret the certificates; the mark when it has none."""
    if isinstance(value, str) and MARKED.fullmatch(value):
        return value
    try:
        text = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError, TypeError):
        return MARK
    certificates = _CERTIFICATE.findall(text)
    if text.split() == b"\n".join(certificates).split():
        return str(value)
    return base64.b64encode(b"\n".join(certificates)).decode() or MARK
