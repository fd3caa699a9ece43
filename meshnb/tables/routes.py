"""The table ``routes``: which request goes to which cluster."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import msgspec

from meshnb.sources.base import Question
from meshnb.tables.base import Block, Column, Facts, Json, Table, decode_json, dig, items, mapping
from meshnb.tables.envoy import (
    CONFIG_DUMP,
    NO_LIST,
    ODD,
    Metadata,
    Shape,
    each,
    entries,
    listed,
    made_from,
    management,
    match_text,
    milliseconds,
    per_filter,
    proxy_of,
    shaped,
)
from meshnb.tables.go_sort import go_sorted

ROUTES = Table(
    name="routes",
    grain="one row per proxy, route configuration, virtual host and route",
    asks=CONFIG_DUMP,
    istioctl="istioctl proxy-config route POD.NAMESPACE",
    columns={
        "proxy": Column("string", "the proxy as pod.namespace", key=True),
        "name": Column("string", "name of the route configuration, often a port", key=True),
        "vhost_name": Column("string", "name of the virtual host", key=True),
        "position": Column(
            "Int64", "place in the virtual host, from 0; the first match wins", key=True
        ),
        "domains": Column("string", "the virtual host's domains, shortened as istioctl does"),
        "match": Column("string", "match on the path, as istioctl prints it"),
        "virtual_service": Column(
            "string", "the VirtualService it comes from, name.namespace; 404 without any route"
        ),
        "all_domains": Column("object", "tuple: all domains of the virtual host"),
        "route": Column("string", "name of the route itself"),
        "action": Column("string", "route, redirect, direct_response or none"),
        "clusters": Column("object", "tuple: names of the clusters it may go to"),
        "weights": Column("object", "tuple: their weights, in the same order"),
        "status": Column("Int64", "status of a direct response or redirect"),
        "timeout_ms": Column(
            "Float64", "how long the whole request may take, in milliseconds; 0 is for ever"
        ),
        "retries": Column("Int64", "how often it is tried again at most"),
        "retry_on": Column("string", "after which failures it is tried again"),
        "per_try_timeout_ms": Column("Float64", "how long one try may take, in milliseconds"),
        "fault": Column("object", "dict: injected faults; NA without"),
        "rate_limit": Column("object", "dict: local rate limit of this route; NA without"),
        "headers": Column("object", "tuple of dicts: matches on headers, all of which must hold"),
        "query": Column("object", "tuple of dicts: matches on query parameters"),
        "prefix_rewrite": Column("string", "what replaces the matched prefix or path"),
        "host_rewrite": Column("string", "what replaces the host"),
        "mirrors": Column("object", "tuple: clusters that get a copy"),
        "case_sensitive": Column("boolean", "whether the path is matched with its case"),
        "hidden": Column(
            "boolean", "istioctl leaves it out, because it goes to PassthroughCluster"
        ),
        "state": Column("string", "dynamic (from istiod), or static (inline in a listener)"),
        "last_updated": Column("datetime64[us, UTC]", "when the proxy took it over", passing=True),
        "version": Column(
            "string", "version that istiod gave the route configuration", passing=True
        ),
        "istio_config": Column("string", "API path of the Istio object it comes from"),
    },
)

#: Envoy: a route action that says nothing of a timeout has this one.
_DEFAULT_TIMEOUT_MS = 15_000.0

#: What the domain of a service may be written with or without.
_ENDINGS = (".svc.cluster.local", ".svc")
_STATES = {"dynamic_route_configs": "dynamic", "static_route_configs": "static"}
_REDIRECTS = {
    "MOVED_PERMANENTLY": 301,
    "FOUND": 302,
    "SEE_OTHER": 303,
    "TEMPORARY_REDIRECT": 307,
    "PERMANENT_REDIRECT": 308,
}


class _Retries(Shape):
    num_retries: Any = None
    retry_on: Any = None
    per_try_timeout: Any = None


_SILENT = _Retries()


class _Action(Shape):
    cluster: Any = None
    weighted_clusters: Any = None
    prefix_rewrite: Any = None
    host_rewrite_literal: Any = None
    request_mirror_policies: Any = None
    timeout: Any = None
    retry_policy: _Retries | ODD = None


class _Route(Shape):
    name: Any = None
    match: msgspec.Raw = msgspec.Raw(b"{}")
    route: _Action | ODD | msgspec.UnsetType = msgspec.UNSET
    redirect: Any = msgspec.UNSET
    direct_response: Any = msgspec.UNSET
    metadata: Metadata | ODD = None
    typed_per_filter_config: Any = None


class _VirtualHost(Shape):
    name: Any = ""
    domains: Any = None
    routes: list[_Route | ODD] | NO_LIST = None
    retry_policy: _Retries | ODD = None
    typed_per_filter_config: Any = None


class _Configuration(Shape):
    name: Any = ""
    virtual_hosts: list[_VirtualHost | ODD] | NO_LIST = None
    typed_per_filter_config: Any = None


class _Entry(Shape):
    route_config: _Configuration | ODD = None
    last_updated: Any = None
    version_info: Any = None


_ENTRIES = msgspec.json.Decoder(list[_Entry | ODD])


@ROUTES.reads
def _rows(dump: Json, question: Question, facts: Facts) -> Iterator[Block]:
    found = entries(dump, "RoutesConfigDump", _STATES, question, facts, _ENTRIES)
    values = []
    held = [(_STATES[field], shaped(e, _Entry)) for field, some in found for e in some]
    for state, entry in _sorted(held):
        config = shaped(entry.route_config, _Configuration)
        limit_of_all = _rate_limit(config)
        for host in each(config.virtual_hosts, _VirtualHost):
            domains = tuple(map(str, items(host.domains)))
            inherited = (_fault(host), _rate_limit(host) or limit_of_all)
            shared = (
                *(str(config.name), str(host.name), _domains(domains), domains),
                *(state, entry.last_updated, entry.version_info),
            )
            routes = host.routes if isinstance(host.routes, list) else []
            values += [
                (*shared, position, *_route(shaped(route, _Route), host, inherited))
                for position, route in enumerate(routes)
            ]
            if not routes:
                values.append((*shared, 0, *_NO_ROUTE))
    yield Block((*_SHARED, "position", *_OF_ROUTE), values, {"proxy": proxy_of(question)})


_SHARED = (
    *("name", "vhost_name", "domains", "all_domains"),
    *("state", "last_updated", "version"),
)
_OF_ROUTE = (
    *("match", "virtual_service", "istio_config", "route", "action", "clusters", "weights"),
    *("status", "timeout_ms", "retries", "retry_on", "per_try_timeout_ms"),
    *("fault", "rate_limit", "headers", "query", "prefix_rewrite", "host_rewrite"),
    *("mirrors", "case_sensitive", "hidden"),
)
_NO_ROUTE = (
    *("/*", "404", None, None, "none", (), ()),
    *(None,) * 5,
    *(None, None, (), (), None, None),
    *((), None, False),
)


def _sorted(entries: list[tuple[str, _Entry]]) -> list[tuple[str, _Entry]]:
    """Return route configurations in istioctl's order.

    istioctl compares two names only when both are numbers, which is no order; what it prints is
    what Go's sort makes of it.
    """
    numbered = [
        (_number(str(shaped(e.route_config, _Configuration).name)), s, e) for s, e in entries
    ]

    def less(one: tuple[int | None, str, _Entry], other: tuple[int | None, str, _Entry]) -> bool:
        return one[0] is not None and other[0] is not None and one[0] < other[0]

    return [(state, entry) for _, state, entry in go_sorted(numbered, less)]


def _number(name: str) -> int | None:
    return int(name) if name.isascii() and name.isdecimal() else None


def _domains(domains: Sequence[str]) -> str:
    if len(domains) == 1:
        return domains[0]
    # With a port they repeat the others; an IPv6 address in brackets has colons, too.
    plain = [d for d in domains if ":" not in d or (d.count(":") > 2 and d.endswith("]"))]
    kept = [d for d in plain if not (d.endswith(_ENDINGS) and _shortened(d) in plain)]
    more = f" + {len(kept) - 2} more..." if len(kept) > 2 else ""
    return ", ".join(kept[:2]) + more


def _shortened(domain: str) -> str:
    for ending in _ENDINGS:
        if domain.endswith(ending):
            return domain[: -len(ending)]
    return domain


def _route(route: _Route, host: _VirtualHost, inherited: tuple[Json, Json]) -> tuple[Any, ...]:
    action = shaped(route.route, _Action)
    path = made_from(route.metadata)
    clusters, weights = _clusters(action)
    match, headers, query, case_sensitive = _match(bytes(route.match))
    fault, limit = inherited
    if route.typed_per_filter_config is not None:
        fault, limit = _fault(route) or fault, _rate_limit(route) or limit
    mirrors: tuple[str, ...] = ()
    if action.request_mirror_policies is not None:
        policies = items(action.request_mirror_policies)
        mirrors = tuple(str(dig(mirror, "cluster", default="")) for mirror in policies)
    return (
        match,
        management(path),
        path,
        route.name,
        _kind(route),
        clusters,
        weights,
        *_answer(route, action, host),
        fault,
        limit,
        headers,
        query,
        action.prefix_rewrite,
        action.host_rewrite_literal,
        mirrors,
        case_sensitive,
        action.cluster == "PassthroughCluster",
    )


@lru_cache(maxsize=1024)  # nearly all routes match on the prefix / and nothing else
def _match(match: bytes) -> tuple[str, tuple[Any, ...], tuple[Any, ...], bool]:
    """Return the match as a text, its headers, its query parameters, and whether case matters."""
    fields = mapping(decode_json(match))
    return (
        match_text(fields),
        listed(fields, "headers"),
        listed(fields, "query_parameters"),
        fields.get("case_sensitive") is not False,
    )


def _kind(route: _Route) -> str:
    if route.route is not msgspec.UNSET:
        return "route"
    if route.redirect is not msgspec.UNSET:
        return "redirect"
    return "none" if route.direct_response is msgspec.UNSET else "direct_response"


def _answer(route: _Route, action: _Action, host: _VirtualHost) -> tuple[Any, ...]:
    """Return the status, if the proxy answers itself; else timeout and retries."""
    if route.route is not msgspec.UNSET:
        timeout = milliseconds(action.timeout)
        if timeout is None:
            timeout = _DEFAULT_TIMEOUT_MS
        policy = action.retry_policy
        if not isinstance(policy, _Retries) or policy == _SILENT:
            policy = host.retry_policy
        if not isinstance(policy, _Retries) or policy == _SILENT:
            return None, timeout, 0, None, None
        # A retry policy without a number means one retry, and no policy none.
        tries = 1 if policy.num_retries is None else policy.num_retries
        return None, timeout, tries, policy.retry_on, milliseconds(policy.per_try_timeout)
    if route.redirect is not msgspec.UNSET:
        code = dig(route.redirect, "response_code", default="MOVED_PERMANENTLY")
        return _REDIRECTS.get(str(code)), None, None, None, None
    answer = None if route.direct_response is msgspec.UNSET else route.direct_response
    return dig(answer, "status"), None, None, None, None


def _fault(resource: _Route | _VirtualHost) -> Mapping[str, Any] | None:
    return per_filter(resource.typed_per_filter_config, "envoy.filters.http.fault", "HTTPFault")


def _rate_limit(resource: _Route | _VirtualHost | _Configuration) -> Mapping[str, Any] | None:
    configured = resource.typed_per_filter_config
    return per_filter(configured, "envoy.filters.http.local_ratelimit", "LocalRateLimit")


def _clusters(action: _Action) -> tuple[tuple[str, ...], tuple[int, ...]]:
    if isinstance(action.cluster, str):
        return (action.cluster,), (100,)
    weighted = items(action.weighted_clusters, "clusters")
    return (
        tuple(str(dig(cluster, "name", default="")) for cluster in weighted),
        tuple(dig(cluster, "weight", default=0) for cluster in weighted),
    )
