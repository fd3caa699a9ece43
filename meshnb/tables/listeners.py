"""The table ``listeners``: what a proxy accepts, and where each kind of connection goes next."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from meshnb.sources.base import Question
from meshnb.tables.base import Column, Facts, Json, Row, Table, dig, items, mapping
from meshnb.tables.envoy import (
    CONFIG_DUMP,
    address_port,
    address_text,
    listed,
    match_text,
    names,
    proxy_of,
    section,
    tls_context,
)

LISTENERS = Table(
    name="listeners",
    grain="one row per proxy, listener and filter chain",
    asks=CONFIG_DUMP,
    istioctl="istioctl proxy-config listener POD.NAMESPACE",
    columns={
        "proxy": Column("string", "the proxy as pod.namespace", key=True),
        "listener": Column("string", "name, such as virtualInbound or 0.0.0.0_80", key=True),
        "position": Column(
            "Int64", "place of the filter chain in the listener; the default one is last", key=True
        ),
        "addresses": Column(
            "string", "what it listens on, separated by commas; NA for an internal listener"
        ),
        "port": Column("Int64", "port; 0 for a pipe or an internal listener"),
        "match": Column("string", "which connections the chain takes, as istioctl prints it"),
        "destination": Column("string", "where they go, as istioctl prints it"),
        "type": Column("string", "the listener's kind: HTTP, TCP, HTTP+TCP or UNKNOWN"),
        "filter_chain": Column("string", "name of the filter chain"),
        "state": Column(
            "string",
            "active, warming (not yet used), draining (being closed), static (from the bootstrap)"
            " or refused (never used)",
            key=True,
        ),
        "traffic_direction": Column("string", "INBOUND, OUTBOUND or NA"),
        "transport_protocol": Column("string", "match: tls or raw_buffer; NA for any"),
        "application_protocols": Column("object", "tuple: match on ALPN or sniffed protocol"),
        "server_names": Column("object", "tuple: match on SNI"),
        "destination_port": Column("Int64", "match on the port that the client asked for"),
        "address_prefixes": Column("object", "tuple: match on the destination, address/length"),
        "source_prefixes": Column("object", "tuple: match on the source, address/length"),
        "tls": Column("string", "what clients must speak: none, simple or mutual"),
        "requires_client_certificate": Column("boolean", "whether clients must show a certificate"),
        "filters": Column("object", "tuple: names of the network filters"),
        "http_filters": Column("object", "tuple: names of the HTTP filters"),
        "route": Column("string", "route configuration from RDS that requests go through"),
        "cluster": Column(
            "string", "cluster that everything goes to; weighted ones are separated by commas"
        ),
        "inspectors": Column("object", "tuple: listener filters, which look before the match"),
        "stat_prefix": Column("string", "name under which the chain counts"),
        "last_updated": Column("datetime64[us, UTC]", "when the proxy took it over", passing=True),
        "version": Column("string", "version that istiod gave it", passing=True),
        "error": Column("string", "why the proxy refused the last update of this listener"),
        "refused_at": Column("datetime64[us, UTC]", "when it refused it", passing=True),
    },
)

_HTTP = "envoy.filters.network.http_connection_manager"
_TCP = "envoy.filters.network.tcp_proxy"
_ALPN = {
    ("http/1.0", "http/1.1", "h2c"): "HTTP",
    ("istio", "istio-http/1.0", "istio-http/1.1", "istio-h2"): "Istio HTTP Plain",
    (
        "http/1.0",
        "http/1.1",
        "h2c",
        "istio-http/1.0",
        "istio-http/1.1",
        "istio-h2",
    ): "HTTP TLS",
    ("istio-peer-exchange", "istio"): "TCP TLS",
}


@LISTENERS.reads
def _rows(dump: Json, question: Question, facts: Facts) -> Iterator[Row]:
    found = section(dump, "ListenersConfigDump", question, facts)
    listeners = [*_dynamic(found), *_static(found)]
    for row, listener in sorted(listeners, key=lambda pair: _order(*pair)):
        shared = {
            "proxy": proxy_of(question),
            **row,
            "listener": row["listener"] or dig(listener, "name", default=""),
            "addresses": _addresses(listener),
            "port": address_port(dig(listener, "address")),
            "type": _type(listener),
            "traffic_direction": dig(listener, "traffic_direction"),
            "inspectors": names(items(listener, "listener_filters")),
        }
        if row["state"] == "refused":
            yield {**shared, "position": 0}
            continue
        chains = [
            {**shared, **_chain(chain), "position": n} for n, chain in enumerate(_chains(listener))
        ]
        # istioctl's order; chains with the same destination stay in the listener's order
        yield from sorted(chains, key=lambda chain: chain["destination"], reverse=True)


def _dynamic(found: Mapping[str, Any]) -> Iterator[tuple[Row, Mapping[str, Any]]]:
    for entry in items(found, "dynamic_listeners"):
        row = {
            "listener": dig(entry, "name", default=""),
            "error": dig(entry, "error_state", "details"),
            "refused_at": dig(entry, "error_state", "last_update_attempt"),
        }
        states = [
            s for s in ("active", "warming", "draining") if dig(entry, f"{s}_state", "listener")
        ]
        for state in states:
            held = mapping(entry, f"{state}_state")
            yield (
                {
                    **row,
                    "state": state,
                    "last_updated": held.get("last_updated"),
                    "version": held.get("version_info"),
                },
                mapping(held, "listener"),
            )
        if not states and "error_state" in mapping(entry):
            yield {**row, "state": "refused"}, mapping(entry, "error_state", "failed_configuration")


def _static(found: Mapping[str, Any]) -> Iterator[tuple[Row, Mapping[str, Any]]]:
    for entry in items(found, "static_listeners"):
        listener = mapping(entry, "listener")
        yield (
            {
                "listener": dig(listener, "name", default=""),
                "state": "static",
                "last_updated": dig(entry, "last_updated"),
            },
            listener,
        )


def _order(_: Row, listener: Mapping[str, Any]) -> tuple[int, str, str]:
    address = dig(listener, "address")
    return address_port(address), address_text(address) or "", _type(listener)


def _addresses(listener: Mapping[str, Any]) -> str | None:
    found = [dig(listener, "address")]
    found += [dig(additional, "address") for additional in items(listener, "additional_addresses")]
    texts = [text for text in map(address_text, found) if text]
    return ",".join(texts) or None


def _chains(listener: Mapping[str, Any]) -> list[Any]:
    default = dig(listener, "default_filter_chain")
    return items(listener, "filter_chains") + ([] if default is None else [default])


def _type(listener: Mapping[str, Any]) -> str:
    http = tcp = False
    for chain in _chains(listener):
        for used in items(chain, "filters"):
            name = dig(used, "name")
            http = http or name == _HTTP
            tcp = tcp or (name == _TCP and not _is_black_hole(mapping(used, "typed_config")))
    if http:
        return "HTTP+TCP" if tcp else "HTTP"
    return "TCP" if tcp else "UNKNOWN"


def _is_black_hole(tcp: Mapping[str, Any]) -> bool:
    return any(
        "BlackHoleCluster" in name
        for name in (*_tcp_clusters(tcp), str(tcp.get("stat_prefix", "")))
    )


def _tcp_clusters(tcp: Mapping[str, Any]) -> tuple[str, ...]:
    single = dig(tcp, "cluster")
    return (str(single),) if single else names(items(tcp, "weighted_clusters", "clusters"))


def _chain(chain: Json) -> Row:
    match = mapping(chain, "filter_chain_match")
    filters = items(chain, "filters")
    manager = _typed(filters, _HTTP)
    tcp = _typed(filters, _TCP)
    context = tls_context(dig(chain, "transport_socket"))
    demands = context is not None and context.get("require_client_certificate") is True
    cluster = _match_all_cluster(manager) or ",".join(_tcp_clusters(tcp)) or None
    return {
        "match": _match(match),
        "destination": _destination(filters),
        "filter_chain": dig(chain, "name"),
        "transport_protocol": match.get("transport_protocol"),
        "application_protocols": listed(match, "application_protocols"),
        "server_names": listed(match, "server_names"),
        "destination_port": match.get("destination_port"),
        "address_prefixes": _prefixes(match, "prefix_ranges"),
        "source_prefixes": _prefixes(match, "source_prefix_ranges"),
        "tls": "none" if context is None else "mutual" if demands else "simple",
        "requires_client_certificate": demands,
        "filters": names(filters),
        "http_filters": names(items(manager, "http_filters")),
        "route": dig(manager, "rds", "route_config_name"),
        "cluster": cluster,
        "stat_prefix": manager.get("stat_prefix") or tcp.get("stat_prefix"),
    }


def _typed(filters: list[Any], name: str) -> Mapping[str, Any]:
    return next((mapping(f, "typed_config") for f in filters if dig(f, "name") == name), {})


def _prefixes(match: Mapping[str, Any], field: str) -> tuple[str, ...]:
    return tuple(
        f"{dig(prefix, 'address_prefix', default='')}/{dig(prefix, 'prefix_len', default=0)}"
        for prefix in items(match, field)
    )


def _match(match: Mapping[str, Any]) -> str:
    parts = []
    if servers := items(match, "server_names"):
        parts.append(f"SNI: {','.join(map(str, servers))}")
    if transport := match.get("transport_protocol"):
        parts.append(f"Trans: {transport}")
    if protocols := tuple(map(str, items(match, "application_protocols"))):
        parts.append(f"App: {_ALPN.get(protocols) or ','.join(protocols)}")
    port = match.get("destination_port")
    suffix = "" if port is None else f":{port}"
    if prefixes := _prefixes(match, "prefix_ranges"):
        parts.append(f"Addr: {','.join(prefixes)}{suffix}")
    elif suffix:
        parts.append(f"Addr: *{suffix}")
    return "; ".join(parts) or "ALL"


def _destination(filters: list[Any]) -> str:
    for used in filters:
        config = mapping(used, "typed_config")
        if dig(used, "name") == _HTTP:
            if "route_config" in config:
                return _inline(config)
            route = dig(config, "rds", "route_config_name")
            return f"Route: {route}" if route else "HTTP"
        if dig(used, "name") == _TCP and not _is_black_hole(config):
            return _cluster_text(str(dig(config, "cluster", default="")))
    return "Non-HTTP/Non-TCP"


def _cluster_text(cluster: str) -> str:
    return cluster if "Cluster" in cluster else f"Cluster: {cluster}"


def _inline(manager: Mapping[str, Any]) -> str:
    if cluster := _match_all_cluster(manager):
        return _cluster_text(cluster)
    hosts = []
    for host in items(manager, "route_config", "virtual_hosts"):
        domains = [str(domain) for domain in items(host, "domains")]
        routes = ", ".join(match_text(dig(route, "match")) for route in items(host, "routes"))
        hosts.append(routes if domains == ["*"] else f"{'/'.join(domains)} {routes}")
    return f"Inline Route: {'; '.join(hosts)}"


def _match_all_cluster(manager: Mapping[str, Any]) -> str | None:
    """Return the cluster of an inline route configuration that sends everything to one cluster."""
    hosts = items(manager, "route_config", "virtual_hosts")
    if len(hosts) != 1 or items(hosts[0], "domains") != ["*"]:
        return None
    routes = items(hosts[0], "routes")
    if len(routes) != 1 or dig(routes[0], "match", "prefix") != "/":
        return None
    cluster = dig(routes[0], "route", "cluster")
    return cluster if isinstance(cluster, str) else None
