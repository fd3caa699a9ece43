"""The table ``clusters``: where a proxy can send requests to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from meshnb.sources.base import Question
from meshnb.tables.base import Column, Facts, Json, Row, Table, dig, items, mapping
from meshnb.tables.envoy import (
    CONFIG_DUMP,
    entries,
    istio_config,
    management,
    milliseconds,
    proxy_of,
    tls_context,
)

CLUSTERS = Table(
    name="clusters",
    grain="one row per proxy and cluster",
    asks=CONFIG_DUMP,
    istioctl="istioctl proxy-config cluster POD.NAMESPACE",
    columns={
        "proxy": Column("string", "the proxy as pod.namespace", key=True),
        "cluster": Column("string", "full name, such as outbound|80|v1|HOST", key=True),
        "service_fqdn": Column("string", "host of the service; else the full name"),
        "port": Column("string", "port of the service, as printed: a number or -"),
        "subset": Column("string", "subset, - for none"),
        "direction": Column("string", "outbound, inbound, or - for Envoy's own clusters"),
        "type": Column(
            "string", "how endpoints are found: EDS, STATIC, ORIGINAL_DST, STRICT_DNS, …"
        ),
        "destination_rule": Column("string", "the DestinationRule that shaped it, name.namespace"),
        "state": Column("string", "active, warming (not yet used) or static (from the bootstrap)"),
        "tls": Column(
            "string",
            "what the proxy speaks to endpoints: none, simple (checks the server only), client"
            " certificate (its own from a file or secret), mutual (Istio mTLS), auto (Istio mTLS to"
            " endpoints that have a sidecar, else none)",
        ),
        "sni": Column("string", "server name that the proxy sends in TLS"),
        "sans": Column("object", "tuple: names one of which the server's certificate must have"),
        "protocol": Column(
            "string",
            "HTTP version spoken to endpoints: http1, http2, use_downstream (the client's) or auto",
        ),
        "connect_timeout_ms": Column("Float64", "how long a connection may take, in milliseconds"),
        "lb_policy": Column("string", "how endpoints are chosen; ROUND_ROBIN when unsaid"),
        "max_connections": Column("Int64", "circuit breaker: connections at most"),
        "max_pending_requests": Column("Int64", "circuit breaker: requests that may wait at most"),
        "max_requests": Column("Int64", "circuit breaker: requests at once at most"),
        "max_retries": Column("Int64", "circuit breaker: retries at once at most"),
        "outlier": Column("object", "dict: Envoy's outlier detection as configured; NA without"),
        "last_updated": Column("datetime64[us, UTC]", "when the proxy took it over"),
        "version": Column("string", "version that istiod gave it"),
        "istio_config": Column("string", "API path of the Istio object that shaped it"),
        "error": Column("string", "why the proxy refused the last update of it"),
    },
)

_HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
_LIMITS = ("max_connections", "max_pending_requests", "max_requests", "max_retries")
_STATES = {
    "dynamic_active_clusters": "active",
    "static_clusters": "static",
    "dynamic_warming_clusters": "warming",
}


@CLUSTERS.reads
def _rows(dump: Json, question: Question, facts: Facts) -> Iterator[Row]:
    proxy = proxy_of(question)
    rows = [
        {"proxy": proxy, "state": _STATES[field], **_row(mapping(entry))}
        for field, entry in entries(dump, "ClustersConfigDump", _STATES, question, facts)
    ]
    rows.sort(key=lambda row: _order(row["cluster"]))
    yield from rows


def _row(entry: Mapping[str, Any]) -> Row:
    cluster = mapping(entry, "cluster") or mapping(entry, "error_state", "failed_configuration")
    config = istio_config(cluster)
    return {
        **_names(str(cluster.get("name") or "")),
        "type": cluster.get("type") or dig(cluster, "cluster_type", "name") or "STATIC",
        "destination_rule": management(config),
        **_tls(cluster),
        "protocol": _protocol(cluster),
        "connect_timeout_ms": milliseconds(cluster.get("connect_timeout")),
        "lb_policy": cluster.get("lb_policy") or "ROUND_ROBIN",
        **_circuit_breaker(cluster),
        "outlier": cluster.get("outlier_detection"),
        "last_updated": entry.get("last_updated"),
        "version": entry.get("version_info"),
        "istio_config": config,
        "error": dig(entry, "error_state", "details"),
    }


def _parse(name: str) -> tuple[str, str, str, int]:
    """Return direction, subset, host and port of a cluster's name, empty where the name has none.

    A name of more than four parts has no host, as in istioctl.
    """
    if name.count("|") < 3:
        return "", "", name, 0
    direction, port, subset, host = name.split("|", 3)
    return direction, subset, "" if "|" in host else host, int(port) if port.isdecimal() else 0


def _order(name: str) -> tuple[str, str, int, str]:
    direction, subset, host, port = _parse(name)
    return host, subset, port, direction


def _names(name: str) -> Row:
    direction, subset, host, port = _parse(name)
    plain = name.count("|") < 3
    return {
        "cluster": name,
        "service_fqdn": host,
        "port": "-" if plain else str(port),
        "subset": subset or "-",
        "direction": "-" if plain else direction,
    }


def _tls(cluster: Mapping[str, Any]) -> Row:
    for choice in items(cluster, "transport_socket_matches"):
        context = tls_context(dig(choice, "transport_socket"))
        if context is not None:
            by_mode = "tlsMode" in mapping(choice, "match")
            return _described(context, "auto" if by_mode else _kind(context))
    context = tls_context(dig(cluster, "transport_socket"))
    return {"tls": "none", "sans": ()} if context is None else _described(context, _kind(context))


def _kind(context: Mapping[str, Any]) -> str:
    common = mapping(context, "common_tls_context")
    secrets = [
        dig(secret, "name") for secret in items(common, "tls_certificate_sds_secret_configs")
    ]
    protocols = [str(protocol) for protocol in items(common, "alpn_protocols")]
    if "default" in secrets or any(protocol.startswith("istio") for protocol in protocols):
        return "mutual"
    own = secrets or items(common, "tls_certificates")
    return "client certificate" if own else "simple"


def _described(context: Mapping[str, Any], kind: str) -> Row:
    common = mapping(context, "common_tls_context")
    sans: list[str] = []
    for validation in (
        mapping(common, "combined_validation_context", "default_validation_context"),
        mapping(common, "validation_context"),
    ):
        matchers = items(validation, "match_subject_alt_names") + [
            dig(typed, "matcher") for typed in items(validation, "match_typed_subject_alt_names")
        ]
        sans += [str(dig(matcher, "exact")) for matcher in matchers if dig(matcher, "exact")]
    return {"tls": kind, "sni": dig(context, "sni"), "sans": tuple(sans)}


def _protocol(cluster: Mapping[str, Any]) -> str:
    options = mapping(cluster, "typed_extension_protocol_options", _HTTP_OPTIONS)
    if "auto_config" in options:
        return "auto"
    if "use_downstream_protocol_config" in options:
        return "use_downstream"
    explicit = mapping(options, "explicit_http_config")
    if "http3_protocol_options" in explicit:
        return "http3"
    if "http2_protocol_options" in explicit or "http2_protocol_options" in cluster:
        return "http2"
    return "http1"  # what Envoy speaks when nothing is said


def _circuit_breaker(cluster: Mapping[str, Any]) -> Row:
    for threshold in items(cluster, "circuit_breakers", "thresholds"):
        if dig(threshold, "priority", default="DEFAULT") == "DEFAULT":
            limits = mapping(threshold)
            return {limit: limits.get(limit) for limit in _LIMITS}
    return {}
