"""The table ``routes``: which request goes to which cluster."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from meshnb.sources.base import Question
from meshnb.tables.base import Column, Facts, Json, Row, Table, dig, items, mapping
from meshnb.tables.envoy import (
    CONFIG_DUMP,
    entries,
    istio_config,
    listed,
    management,
    match_text,
    milliseconds,
    per_filter,
    proxy_of,
)

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
        "last_updated": Column("datetime64[us, UTC]", "when the proxy took it over"),
        "version": Column("string", "version that istiod gave the route configuration"),
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


@ROUTES.reads
def _rows(dump: Json, question: Question, facts: Facts) -> Iterator[Row]:
    proxy = proxy_of(question)
    large = ("route_config", "virtual_hosts")
    found = entries(dump, "RoutesConfigDump", _STATES, question, facts, large)
    for state, entry in _sorted([(_STATES[field], entry) for field, entry in found]):
        config = mapping(entry, "route_config")
        limit_of_all = _rate_limit(config)
        for host in config.get("virtual_hosts", ()):
            domains = [str(domain) for domain in items(host, "domains")]
            inherited = {"fault": _fault(host), "rate_limit": _rate_limit(host) or limit_of_all}
            shared = {
                "proxy": proxy,
                "name": dig(config, "name", default=""),
                "vhost_name": dig(host, "name", default=""),
                "domains": _domains(domains),
                "all_domains": tuple(domains),
                "state": state,
                "last_updated": dig(entry, "last_updated"),
                "version": dig(entry, "version_info"),
            }
            routes = items(host, "routes")
            for position, route in enumerate(routes):
                yield {
                    **shared,
                    **inherited,
                    "position": position,
                    **_route(mapping(route), host),
                    **_own_filters(route),
                }
            if not routes:
                yield {**shared, **_NO_ROUTE}


_NO_ROUTE: Row = {
    "position": 0,
    "match": "/*",
    "virtual_service": "404",
    "action": "none",
    "clusters": (),
    "weights": (),
    "headers": (),
    "query": (),
    "mirrors": (),
    "hidden": False,
}


def _sorted(entries: list[tuple[str, Json]]) -> list[tuple[str, Json]]:
    """Return route configurations in istioctl's order.

    istioctl compares two names only when both are numbers, which is no order; up to twelve
    elements, Go's sort is an insertion sort, whose result is the one that is printed. Longer lists
    are put into a plain order here: numbers first, by size, then the rest as they come.
    """
    numbered = [
        (_number(str(dig(e, "route_config", "name", default=""))), s, e) for s, e in entries
    ]
    if len(numbered) > 12:
        numbered.sort(key=lambda entry: (entry[0] is None, entry[0] or 0))
        return [(state, entry) for _, state, entry in numbered]
    for end in range(1, len(numbered)):
        at = end
        while at > 0:
            number, before = numbered[at][0], numbered[at - 1][0]
            if number is None or before is None or number >= before:
                break
            numbered[at - 1], numbered[at] = numbered[at], numbered[at - 1]
            at -= 1
    return [(state, entry) for _, state, entry in numbered]


def _number(name: str) -> int | None:
    return int(name) if name.isascii() and name.isdecimal() else None


def _domains(domains: list[str]) -> str:
    if len(domains) == 1:
        return domains[0]
    # With a port they repeat the others; an IPv6 address in brackets has colons, too.
    plain = [d for d in domains if ":" not in d or (d.count(":") > 2 and d.endswith("]"))]
    longer = {f"{domain}{ending}" for domain in plain for ending in _ENDINGS}
    kept = [domain for domain in plain if domain not in longer]
    more = f" + {len(kept) - 2} more..." if len(kept) > 2 else ""
    return ", ".join(kept[:2]) + more


def _route(route: Mapping[str, Any], host: Json) -> Row:
    match = mapping(route, "match")
    action = mapping(route, "route")
    istio = istio_config(route)
    clusters, weights = _clusters(action)
    row: Row = {
        "match": match_text(match),
        "virtual_service": management(istio),
        "route": route.get("name"),
        "action": next((a for a in ("route", "redirect", "direct_response") if a in route), "none"),
        "clusters": clusters,
        "weights": weights,
        "headers": listed(match, "headers"),
        "query": listed(match, "query_parameters"),
        "prefix_rewrite": action.get("prefix_rewrite"),
        "host_rewrite": action.get("host_rewrite_literal"),
        "mirrors": tuple(
            str(dig(mirror, "cluster", default=""))
            for mirror in items(action, "request_mirror_policies")
        ),
        "case_sensitive": match.get("case_sensitive") is not False,
        "hidden": action.get("cluster") == "PassthroughCluster",
        "istio_config": istio,
    }
    if "route" in route:
        policy = mapping(action, "retry_policy") or mapping(host, "retry_policy")
        timeout = milliseconds(action.get("timeout"))
        row["timeout_ms"] = _DEFAULT_TIMEOUT_MS if timeout is None else timeout
        # A retry policy without a number means one retry, and no policy none.
        row["retries"] = dig(policy, "num_retries", default=1) if policy else 0
        row["retry_on"] = policy.get("retry_on")
        row["per_try_timeout_ms"] = milliseconds(policy.get("per_try_timeout"))
    elif "redirect" in route:
        code = dig(route, "redirect", "response_code", default="MOVED_PERMANENTLY")
        row["status"] = _REDIRECTS.get(str(code))
    elif "direct_response" in route:
        row["status"] = dig(route, "direct_response", "status")
    return row


def _own_filters(route: Json) -> Row:
    """Return what a route itself says of filters, instead of what it inherits."""
    if "typed_per_filter_config" not in mapping(route):
        return {}
    own = {"fault": _fault(route), "rate_limit": _rate_limit(route)}
    return {name: config for name, config in own.items() if config}


def _fault(resource: Json) -> Mapping[str, Any] | None:
    return per_filter(resource, "envoy.filters.http.fault", "HTTPFault")


def _rate_limit(resource: Json) -> Mapping[str, Any] | None:
    return per_filter(resource, "envoy.filters.http.local_ratelimit", "LocalRateLimit")


def _clusters(action: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    if isinstance(action.get("cluster"), str):
        return (action["cluster"],), (100,)
    weighted = items(action, "weighted_clusters", "clusters")
    return (
        tuple(str(dig(cluster, "name", default="")) for cluster in weighted),
        tuple(dig(cluster, "weight", default=0) for cluster in weighted),
    )
