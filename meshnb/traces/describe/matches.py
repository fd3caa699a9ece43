"""The conditions of a route in words: of a VirtualService, and of the Gateway API."""

from __future__ import annotations

from meshnb.tables.base import Json, dig, items, mapping
from meshnb.traces.describe.words import labels_said, listed


def match_words(route: Json) -> str:
    """Return the conditions of a VirtualService's route in words; empty when it takes all."""
    return " or ".join(filter(None, map(_conditions, items(route, "match"))))


def _conditions(match: Json) -> str:
    parts = []
    for field, condition in mapping(match).items():
        if field == "name":
            continue
        if field in ("uri", "method", "scheme", "authority"):
            parts.append(f"{field} {_text_match(condition)}")
        elif field in ("headers", "queryParams", "withoutHeaders"):
            words = {"headers": "header", "queryParams": "query", "withoutHeaders": "no header"}
            parts += [
                f"{words[field]} {key}={_text_match(value)}"
                for key, value in mapping(condition).items()
            ]
        elif field == "sourceLabels":
            parts.append(f"callers labelled {labels_said(mapping(condition))}")
        elif isinstance(condition, list):
            parts.append(f"{field} {listed(map(str, condition))}")
        else:
            parts.append(f"{field} {condition}")
    return ", ".join(parts)


def _text_match(condition: Json) -> str:
    for field, form in (("exact", "{}"), ("prefix", "{}*"), ("regex", "regex {}")):
        if (text := dig(condition, field)) is not None:
            return form.format(text)
    return "*"


def api_match_words(rule: Json) -> str:
    """Return the matches of a rule of the Gateway API in words; empty when it takes all."""
    said = []
    for match in items(rule, "matches"):
        parts = []
        path = dig(match, "path", "value")
        if path:
            star = "" if dig(match, "path", "type") == "Exact" else "*"
            parts.append(f"uri {path}{star}")
        if method := dig(match, "method"):
            parts.append(f"method {method}")
        parts += [
            f"header {dig(header, 'name')}={dig(header, 'value')}"
            for header in items(match, "headers")
        ]
        said.append(", ".join(parts))
    return " or ".join(filter(None, said))
