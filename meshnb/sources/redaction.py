"""What never reaches a bundle: the values of Secrets, and private keys anywhere.

Certificates stay, because their names and dates are evidence.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from typing import Any

from meshnb.sources.base import ListQuestion, Question

_PRIVATE_KEY = re.compile(
    rb"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL
)
_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----[A-Za-z0-9+/=\s]+-----END CERTIFICATE-----")
_MARK = "REDACTED"
#: The mark as this module and other recorders write it; such values are left as they are.
_MARKED = re.compile(r"REDACTED(?::sha256:[0-9a-f]{16}:[0-9]+B)?")
_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"


def redact(question: Question, body: bytes) -> tuple[bytes, dict[str, int]]:
    """Return a body without secrets, and how many of each kind were taken out.

    Of each value of a Secret only the certificates stay; a value without any becomes ``REDACTED``,
    an empty one stays empty. Private keys in PEM form are cut out of everything. A list of Secrets
    that is not JSON is dropped whole; a refusal to list them stays.
    """
    counts: dict[str, int] = {}
    if isinstance(question, ListQuestion) and question.resource == "secrets":
        try:
            document = json.loads(body)
            if document.get("kind") != "Status":
                counts["secret values"] = sum(
                    _redact_secret(item) for item in document["items"] or []
                )
                body = json.dumps(document, separators=(",", ":")).encode()
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            nothing = b'{"kind":"SecretList","apiVersion":"v1","items":[]}'
            return nothing, {"unreadable secret lists": 1}
    body, counts["private keys"] = _without_keys(body)
    return body, {what: count for what, count in counts.items() if count}


def _redact_secret(item: dict[str, Any]) -> int:
    count = 0
    for field in ("data", "stringData"):
        values = item.get(field) or {}
        for key, value in values.items():
            kept = _without_secret(str(value)) if value else value
            if kept != value:
                values[key] = kept
                count += 1
    annotations = item.get("metadata", {}).get("annotations") or {}
    if annotations.get(_APPLIED, _MARK) != _MARK:
        annotations[_APPLIED] = _MARK
        count += 1
    return count


def _without_secret(value: str) -> str:
    if _MARKED.fullmatch(value):
        return value
    try:
        text = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        return _MARK
    certificates = _CERTIFICATE.findall(text)
    if text.split() == b"\n".join(certificates).split():
        return value
    return base64.b64encode(b"\n".join(certificates)).decode() or _MARK


def _without_keys(body: bytes) -> tuple[bytes, int]:
    """Cut out keys string by string where the body is JSON, so that it remains JSON."""
    if b"PRIVATE KEY-----" not in body:
        return body, 0
    count = 0

    def clean(value: Any) -> Any:
        nonlocal count
        if isinstance(value, dict):
            return {clean(key): clean(item) for key, item in value.items()}
        if isinstance(value, list):
            return [clean(item) for item in value]
        if isinstance(value, str) and "PRIVATE KEY-----" in value:
            kept, found = _PRIVATE_KEY.subn(
                b"REDACTED PRIVATE KEY", value.encode("utf-8", "replace")
            )
            count += found
            return kept.decode()
        return value

    try:
        cleaned = clean(json.loads(body))
    except (ValueError, RecursionError):
        return _PRIVATE_KEY.subn(b"REDACTED PRIVATE KEY", body)
    return (json.dumps(cleaned, separators=(",", ":")).encode(), count) if count else (body, 0)
