"""Which virtual host and which route take a request, and why the ones before do not.

As Envoy's router does it (https://www.envoyproxy.io/docs/envoy/latest/intro/arch_overview/http/http_routing):
the virtual host by its exact domain, then the longest wildcard in front, then the longest at the
end, then ``*``; in it the first route whose every condition holds. What a condition needs and the
request does not say leaves it open, so there can be several candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from meshnb.tables.base import Json, dig, items, mapping
from meshnb.tables.envoy import match_text
from meshnb.traces.envoy.matchers import (
    Headers,
    Truth,
    Undecided,
    both,
    header_words,
    lower_ascii,
    matches_header,
    matches_parameter,
    matches_regex,
    opposite,
    sampled,
    without_query,
)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A route that may take the request; ``unless`` says what is not known of it.

    The last candidate takes whatever those before did not: its ``unless`` is empty, except where
    Envoy may find no route at all.
    """

    position: int
    route: Mapping[str, Any]
    unless: str = ""


@dataclass(frozen=True, slots=True)
class RouteMatch:
    """The routes of a virtual host that may take a request, and why others do not.

    ``certain`` says that the last candidate takes what comes to it; else there may be no route.
    """

    candidates: tuple[Candidate, ...]
    passed_over: tuple[tuple[str, str], ...]
    certain: bool


@dataclass(frozen=True, slots=True)
class HostMatch:
    """The virtual host for a host, by which of its domains; None when there is none."""

    host: Mapping[str, Any] | None
    domain: str = ""
    passed_over: tuple[tuple[str, str], ...] = ()
    undecided: str = ""


# --- Virtual hosts -------------------------------------------------------------------------------


def host_of(authority: str, connection: Json, config: Json, port: int) -> str:
    """Return the host that virtual hosts are compared with, as the connection manager leaves it.

    ``port`` is the listener's: a matching one is cut off where ``strip_matching_host_port`` is set.
    """
    host = authority
    manager = mapping(connection)
    if manager.get("strip_trailing_host_dot") is True:
        name, _, number = _split(host)
        host = name.removesuffix(".") + (f":{number}" if number else "")
    name, colon, number = _split(host)
    strips = manager.get("strip_any_host_port") is True or (
        manager.get("strip_matching_host_port") is True and number == str(port)
    )
    if colon and (strips or mapping(config).get("ignore_port_in_host_matching") is True):
        host = name
    return lower_ascii(host)


def _split(host: str) -> tuple[str, str, str]:
    """Return name, colon and port of a host; an IPv6 address in brackets has colons of its own."""
    name, colon, port = host.rpartition(":")
    if not colon or "]" in port:
        return host, "", ""
    return name, colon, port


def virtual_host(config: Json, host: str) -> HostMatch:
    """Return the virtual host of a route configuration that takes a host."""
    if mapping(config).get("vhost_header"):
        return HostMatch(None, undecided="virtual hosts are chosen by a header of its own")
    hosts = [mapping(one) for one in items(config, "virtual_hosts")]
    best: tuple[tuple[int, int], str, Mapping[str, Any]] | None = None
    for one in hosts:
        for domain in items(one, "domains"):
            rank = _rank(lower_ascii(str(domain)), host)
            if rank is not None and (best is None or rank > best[0]):
                best = (rank, str(domain), one)
    passed = tuple(
        (str(one.get("name", "")), _why_not(one, host, best))
        for one in hosts
        if best is None or one is not best[2]
    )
    return HostMatch(None, "", passed) if best is None else HostMatch(best[2], best[1], passed)


def _rank(domain: str, host: str) -> tuple[int, int] | None:
    """Return how well a domain fits a host, None when it does not."""
    if domain == "*":
        return (0, 0)
    if domain == host:
        return (3, 0)
    # A wildcard stands for at least one character.
    if domain.startswith("*") and len(host) >= len(domain) and host.endswith(domain[1:]):
        return (2, len(domain))
    if domain.endswith("*") and len(host) >= len(domain) and host.startswith(domain[:-1]):
        return (1, len(domain))
    return None


def _why_not(one: Mapping[str, Any], host: str, best: tuple[Any, str, Any] | None) -> str:
    domains = [str(domain) for domain in items(one, "domains")]
    fits = next((d for d in domains if _rank(lower_ascii(d), host) is not None), None)
    if fits is not None and best is not None:
        return f"{best[1]} is closer to {host} than {fits}"
    shown = ", ".join(domains[:3]) + (f" and {len(domains) - 3} more" if len(domains) > 3 else "")
    return f"{host or 'the empty host'} is none of its domains {shown}"


def wants_tls(host: Json, headers: Headers, *, encrypted: bool) -> Truth:
    """Whether a virtual host sends a request away to HTTPS, before any route (``require_tls``)."""
    wanted = mapping(host).get("require_tls", "NONE")
    if encrypted or wanted == "NONE":
        return False
    if wanted == "ALL":
        return True
    internal = headers.get("x-envoy-internal")
    if isinstance(internal, Undecided):
        return Undecided("whether Envoy takes the request for an internal one is not known")
    return internal != "true"


# --- Routes --------------------------------------------------------------------------------------


def match_route(host: Json, headers: Headers, path: str, *, tls: Truth = False) -> RouteMatch:
    """Return the routes of a virtual host that may take a request.

    ``path`` is as the connection manager left it, with the query; ``tls`` says whether the client
    showed a certificate.
    """
    if mapping(host, "matcher"):
        reason = "the virtual host chooses routes by a matcher tree, not evaluated offline"
        return RouteMatch((Candidate(0, {}, reason),), (), certain=False)
    candidates: list[Candidate] = []
    passed: list[tuple[str, str]] = []
    for position, route in enumerate(mapping(one) for one in items(host, "routes")):
        truth, why = _matches(route, headers, path, tls)
        if isinstance(truth, Undecided):
            candidates.append(Candidate(position, route, f"{why}: {truth.reason}"))
        elif truth:
            candidates.append(Candidate(position, route))
            return RouteMatch(tuple(candidates), tuple(passed), certain=True)
        else:
            passed.append((route_title(route, position), why))
    return RouteMatch(tuple(candidates), tuple(passed), certain=False)


def route_title(route: Json, position: int) -> str:
    """Return a route's name, or else its place, with the path that it takes."""
    name = str(mapping(route).get("name") or f"route {position}")
    text = match_text(dig(route, "match"))
    return f"{name} ({text})" if text else name


_Condition = tuple[Truth, str]


def _matches(route: Json, headers: Headers, path: str, tls: Truth) -> _Condition:
    """Return whether a route takes a request, and the words for the condition that decides."""
    conditions = list(_conditions(mapping(route, "match"), headers, path, tls))
    truth = both(truth for truth, _ in conditions)
    for one, words in conditions:
        if truth is not True and one is not True and type(one) is type(truth):
            return truth, words
    return truth, ""


def _conditions(
    match: Mapping[str, Any], headers: Headers, path: str, tls: Truth
) -> Iterator[_Condition]:
    yield from _plain_conditions(match, headers, path)
    if "grpc" in match:
        yield is_grpc(headers), "it takes gRPC only"
    if context := mapping(match, "tls_context"):
        yield _certificate(context, tls), "it asks for another kind of client certificate"
    for field, words in _UNFOLLOWED.items():
        if match.get(field):
            yield Undecided(f"{words} are not evaluated offline"), f"it has conditions on {words}"


def matches_plainly(match: Json, headers: Headers) -> Truth:
    """Whether a route match holds for a request, as the rule of a token has it.

    Only path, headers, query and share count there; what else it says is for routes.
    """
    path = headers.get(":path")
    if isinstance(path, Undecided):
        return path
    return both(truth for truth, _ in _plain_conditions(mapping(match), headers, path or ""))


def _plain_conditions(
    match: Mapping[str, Any], headers: Headers, path: str
) -> Iterator[_Condition]:
    yield _path(match, headers, path)
    for header in items(match, "headers"):
        yield matches_header(header, headers), f"wanted: {header_words(header)}"
    for parameter in items(match, "query_parameters"):
        name = dig(parameter, "name", default="")
        yield matches_parameter(parameter, path), f"its query parameter {name} does not fit"
    if "runtime_fraction" in match:
        share = sampled(dig(match, "runtime_fraction", "default_value"))
        yield share, "it takes only a share of the requests"


_UNFOLLOWED: Mapping[str, str] = {
    "dynamic_metadata": "metadata of filters",
    "filter_state": "filter state",
    "cookies": "cookies",
}


def _path(match: Mapping[str, Any], headers: Headers, path: str) -> _Condition:
    method = headers.get(":method")
    if "connect_matcher" in match:
        return method == "CONNECT", "it takes CONNECT only"
    plain = without_query(path)
    if not plain:
        return False, "the request has no path"
    fold = lower_ascii if match.get("case_sensitive") is False else str
    text = fold(plain)
    for kind, fits in _PATHS.items():
        if kind in match:
            wanted = fold(str(match[kind]))
            return fits(text, wanted), f"{plain} {_PATH_WORDS[kind]} {match[kind]}"
    if "safe_regex" in match:
        shown = dig(match, "safe_regex", "regex", default="")
        return matches_regex(match["safe_regex"], plain), f"{plain} does not match {shown}"
    if "path_match_policy" in match:
        return Undecided("a template of a path is not evaluated offline"), "it has a template"
    return True, ""


def _separated(text: str, prefix: str) -> bool:
    return text == prefix or text.startswith(f"{prefix}/")


_PATHS: Mapping[str, Callable[[str, str], bool]] = {
    "prefix": str.startswith,
    "path": str.__eq__,
    "path_separated_prefix": _separated,
}
_PATH_WORDS = {
    "prefix": "does not begin with",
    "path": "is not",
    "path_separated_prefix": "is neither below nor equal to",
}


def is_grpc(headers: Headers) -> Truth:
    """Whether a request is gRPC, by the type of its content."""
    kind = headers.get("content-type")
    if isinstance(kind, Undecided):
        return kind
    text = kind or ""
    return text == "application/grpc" or text.startswith(("application/grpc+", "application/grpc;"))


def _certificate(context: Mapping[str, Any], tls: Truth) -> Truth:
    if "validated" in context:
        return Undecided("whether a client's certificate was found valid is not known")
    if "presented" in context:
        return tls if context["presented"] is True else opposite(tls)
    return True
