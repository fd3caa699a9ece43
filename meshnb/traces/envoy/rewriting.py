"""What a route changes of a request before it goes on: path, host, headers.

(https://www.envoyproxy.io/docs/envoy/latest/api-v3/config/route/v3/route_components.proto)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from meshnb.tables.base import dig, items, mapping
from meshnb.traces.envoy.matchers import Headers
from meshnb.traces.request import Request


def rewritten(
    request: Request, headers: Headers, route: Mapping[str, Any], host: Mapping[str, Any]
) -> tuple[Request, str]:
    """Return a request as a route sends it on, and what is changed, in words."""
    action, match = mapping(route, "route"), mapping(route, "match")
    path = headers.known.get(":path") or request.path
    words: list[str] = []
    changed = _path(action, match, path)
    if changed is not None and changed != path:
        words.append(f"with the path {changed}")
    authority = _authority(action)
    if authority and authority != request.authority:
        words.append(f"with the host {authority}")
    if mapping(action, "regex_rewrite"):
        # What an expression puts in the place of what it matched is not worked out here.
        words.append("with a path that an expression rewrites")
        request, changed = replace(request, complete=False), ""
    known = dict(request.headers)
    for name, value in _added(route, host):
        words.append(f"with the header {name}: {value}")
        known[name] = value
    for name in _removed(route, host):
        known.pop(name, None)
        words.append(f"without the header {name}")
    return (
        replace(
            request,
            path=path if changed is None else changed,
            authority=authority or request.authority,
            headers=tuple(sorted(known.items())),
        ),
        ", ".join(words),
    )


def _path(action: Mapping[str, Any], match: Mapping[str, Any], path: str) -> str | None:
    plain, mark, query = path.partition("?")
    if action.get("prefix_rewrite"):
        new = str(action["prefix_rewrite"])
        for kind in ("prefix", "path_separated_prefix", "path"):
            if kind in match:
                return new + plain[len(str(match[kind])) :] + mark + query
        return new + mark + query  # a whole path was matched by an expression
    return None


def _authority(action: Mapping[str, Any]) -> str:
    literal = action.get("host_rewrite_literal")
    return literal if isinstance(literal, str) else ""


def _added(route: Mapping[str, Any], host: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for level in (route, host):
        for one in items(level, "request_headers_to_add"):
            name, value = dig(one, "header", "key"), dig(one, "header", "value", default="")
            if isinstance(name, str):
                yield name.lower(), str(value)


def _removed(route: Mapping[str, Any], host: Mapping[str, Any]) -> Iterator[str]:
    for level in (route, host):
        for name in items(level, "request_headers_to_remove"):
            yield str(name).lower()
