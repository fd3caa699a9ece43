"""What the HTTP filters of a filter chain do with a request, those of policies left out.

Injected faults, local rate limits and CORS are followed here; authentication and authorization are
in ``policies``. What runs code or asks somebody else cannot be followed offline. The fields are
those of Envoy's reference (``envoy.extensions.filters.http``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from meshnb.tables.base import Json, dig, items, mapping
from meshnb.traces.envoy.configs import ProxyConfig, unwrapped
from meshnb.traces.envoy.matchers import (
    Headers,
    Truth,
    Undecided,
    both,
    either,
    matches_header,
    matches_text,
    sampled,
    share_of,
)


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer that a proxy makes itself, as its access log has it.

    ``code`` is 0 where it closes the connection, None where it is not known.
    """

    code: int | None
    flags: frozenset[str]
    details: str | None


@dataclass(frozen=True, slots=True)
class Step:
    """What one filter does: ``truth`` says whether it ends the request with ``answer``.

    Without an answer the filter lets requests pass, or it is not known what it would say.
    """

    says: str
    truth: Truth = False
    answer: Answer | None = None
    #: whether the request goes on as something else, or later
    alters: bool = False
    #: flags that the proxy's log has when the request goes on
    flags: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Filter:
    """One HTTP filter as it is for one route: its name, what it is, how it is configured there."""

    name: str
    #: fault, cors, rbac, jwt_authn, …: from the type of its configuration
    kind: str
    config: Mapping[str, Any]
    #: what the route, virtual host or route configuration says of it; empty without
    own: Mapping[str, Any]
    #: why its configuration is not known; empty when it is
    unknown: str = ""


_KIND = re.compile(r"(?:filters?\.http\.|io\.istio\.http\.)([a-z0-9_]+)")
_STATISTICS = "stats.PluginConfig"


def kind_of(config: Json, name: str = "") -> str:
    """Return what an HTTP filter is, from the type of its configuration, or else from its name."""
    fields = mapping(config)
    types = (str(fields.get("type_url", "")), str(fields.get("@type", "")), name)
    for text in types:
        if found := _KIND.search(text):
            return found[1]
        if _STATISTICS in text or text == "istio.stats":
            return "stats"
    return name


def filters_for(
    manager: Json, config: ProxyConfig, own: tuple[Mapping[str, Any], ...]
) -> list[Filter]:
    """Return the HTTP filters of a connection manager, as they are for one route.

    ``own`` are the ``typed_per_filter_config`` that count, the most specific first: of the weighted
    cluster, the route, the virtual host, the route configuration.
    """
    found = []
    for one in items(manager, "http_filters"):
        name = str(dig(one, "name", default=""))
        override = next((mapping(level, name) for level in own if name in level), {})
        off = mapping(one).get("disabled") is True
        if str(override.get("@type", "")).endswith("route.v3.FilterConfig"):
            off = override.get("disabled") is True
            override = mapping(override, "config")
        elif override:
            off = override.get("disabled") is True and len(override) <= 2
        if off:
            continue
        typed, unknown = _config(one, name, config)
        kind = kind_of(typed, name)
        found.append(Filter(name, kind, unwrapped(typed), unwrapped(override), unknown))
    return found


def _config(one: Json, name: str, config: ProxyConfig) -> tuple[Mapping[str, Any], str]:
    """Return the configuration of a filter, which istiod may deliver apart (ECDS)."""
    if "config_discovery" not in mapping(one):
        return mapping(one, "typed_config"), ""
    taken = config.extensions.get(name)
    if taken is not None:
        return mapping(taken.resource, "typed_config"), ""
    default = mapping(one, "config_discovery", "default_config")
    if default:
        return default, ""
    return {}, f"its configuration {name} is not in the proxy's config dump"


def followed(one: Filter, headers: Headers, cluster: str) -> Step | None:
    """Return what a filter does with a request that is on its way to a cluster.

    None for a filter that injects no faults, sets no local limit and answers no preflight request:
    what it does is for ``policies`` to say.
    """
    if one.unknown:
        return None
    if one.kind == "fault":
        return _fault(one, headers, cluster)
    if one.kind == "local_ratelimit":
        return _local_limit(one)
    return _cors(one, headers) if one.kind == "cors" else None


# --- Faults --------------------------------------------------------------------------------------


def _fault(one: Filter, headers: Headers, cluster: str) -> Step:
    fault = one.own or one.config
    abort, delay = mapping(fault, "abort"), mapping(fault, "delay")
    if not abort and not delay:
        return Step("")
    applies = both([_is_meant(fault, cluster), *_headers(fault, headers)])
    if applies is False:
        return Step("the fault is for other requests")
    flags, words = frozenset[str](), []
    if delay:
        delayed = both([applies, _share(delay, headers, "x-envoy-fault-delay-request")])
        if delayed is not False:
            flags |= {"DI"}
            words.append(f"delays {_percent(delay)} by {delay.get('fixed_delay', 'some time')}")
    aborted: Truth = False
    answer = None
    if abort:
        aborted = both([applies, _share(abort, headers, "x-envoy-fault-abort-request")])
        status = abort.get("http_status")
        grpc = "grpc_status" in abort
        code = 200 if grpc else status if isinstance(status, int) else None
        said = f"gRPC status {abort.get('grpc_status')}" if grpc else f"{code}"
        answer = Answer(code, frozenset({"FI"}), "fault_filter_abort")
        words.append(f"answers {_percent(abort)} with {said}")
    says = f"the injected fault {' and '.join(words)}"
    return Step(says, aborted, answer, alters=bool(flags), flags=flags)


def _is_meant(fault: Mapping[str, Any], cluster: str) -> Truth:
    wanted = fault.get("upstream_cluster")
    if wanted and wanted != cluster:
        return False
    if items(fault, "downstream_nodes"):
        return Undecided("the fault is for certain clients of the proxy")
    return True


def _headers(fault: Mapping[str, Any], headers: Headers) -> list[Truth]:
    return [matches_header(matcher, headers) for matcher in items(fault, "headers")]


def _share(kind: Mapping[str, Any], headers: Headers, name: str) -> Truth:
    if "header_abort" in kind or "header_delay" in kind:
        value = headers.get(name)
        return value if isinstance(value, Undecided) else value is not None
    return sampled(kind.get("percentage"))


def _percent(kind: Mapping[str, Any]) -> str:
    if "header_abort" in kind or "header_delay" in kind:
        return "requests that ask for it"
    share = share_of(kind.get("percentage"))
    return "every request" if share >= 1 else f"{share:.4%} of requests".replace(".0000%", "%")


# --- Local rate limits and CORS ------------------------------------------------------------------


def _local_limit(one: Filter) -> Step:
    limit = one.own or one.config
    bucket = mapping(limit, "token_bucket")
    enabled = both(sampled(dig(limit, f"filter_{on}", "default_value")) for on in _SWITCHES)
    if enabled is False or not (bucket or items(limit, "descriptors")):
        return Step("")
    tokens, interval = bucket.get("max_tokens", 0), bucket.get("fill_interval", "")
    code = _STATUS.get(str(dig(limit, "status", "code", default="TooManyRequests")), 429)
    refill = bucket.get("tokens_per_fill", 1)
    says = f"at most {tokens} requests at once, {refill} more in {interval}"
    why = Undecided("how many requests came before it is not known")
    return Step(says, why, Answer(code, frozenset({"RL"}), "local_rate_limited"))


_SWITCHES = ("enabled", "enforced")
#: Envoy's names of status codes that are used for limits.
_STATUS = {"TooManyRequests": 429, "ServiceUnavailable": 503, "Forbidden": 403, "OK": 200}


def _cors(one: Filter, headers: Headers) -> Step:
    policy = one.own
    if not policy or headers.get(":method") != "OPTIONS":
        return Step("")
    origin, wanted = headers.get("origin"), headers.get("access-control-request-method")
    if isinstance(origin, Undecided) or isinstance(wanted, Undecided):
        unknown = next(value for value in (origin, wanted) if isinstance(value, Undecided))
        return Step("it may answer a preflight request", unknown, _PREFLIGHT)
    if not origin or not wanted:
        return Step("")
    matchers = items(policy, "allow_origin_string_match")
    allowed = either(_origin(matcher, origin) for matcher in matchers)
    return Step("it answers preflight requests of origins that are allowed", allowed, _PREFLIGHT)


_PREFLIGHT = Answer(200, frozenset(), None)


def _origin(matcher: Json, origin: str) -> Truth:
    if mapping(matcher).get("exact") == "*":
        return True
    return matches_text(matcher, origin)
