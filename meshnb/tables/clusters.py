"""The table ``clusters``: where a proxy can send requests to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from operator import itemgetter
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
    made_from,
    management,
    milliseconds,
    proxy_of,
    shaped,
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
        "last_updated": Column("datetime64[us, UTC]", "when the proxy took it over", passing=True),
        "version": Column("string", "version that istiod gave it", passing=True),
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


class _Matcher(Shape):
    exact: Any = None


class _Typed(Shape):
    matcher: _Matcher | ODD = None


class _Validation(Shape):
    match_subject_alt_names: list[_Matcher | ODD] | NO_LIST = None
    match_typed_subject_alt_names: list[_Typed | ODD] | NO_LIST = None


class _Combined(Shape):
    default_validation_context: _Validation | ODD = None


class _Named(Shape):
    name: Any = None


class _Common(Shape):
    alpn_protocols: Any = None
    tls_certificates: Any = None
    tls_certificate_sds_secret_configs: list[_Named | ODD] | NO_LIST = None
    combined_validation_context: _Combined | ODD = None
    validation_context: _Validation | ODD = None


class _Context(Shape, rename={"type": "@type"}):
    type: Any = None
    common_tls_context: _Common | ODD = None
    sni: Any = None
    transport_socket: _Socket | ODD = None


class _Socket(Shape):
    typed_config: _Context | ODD = None


class _Choice(Shape):
    match: Any = None
    transport_socket: _Socket | ODD = None


class _Cluster(Shape):
    name: Any = ""
    type: Any = None
    cluster_type: Any = None
    connect_timeout: Any = None
    lb_policy: Any = None
    outlier_detection: Any = None
    metadata: Metadata | ODD = None
    http2_protocol_options: Any = None
    transport_socket: _Socket | ODD = None
    transport_socket_matches: list[_Choice | ODD] | NO_LIST = None
    # Few clusters differ in these.
    typed_extension_protocol_options: msgspec.Raw = msgspec.Raw(b"{}")
    circuit_breakers: msgspec.Raw = msgspec.Raw(b"{}")


class _Error(Shape):
    details: Any = None
    failed_configuration: _Cluster | ODD = None


class _Entry(Shape):
    cluster: _Cluster | ODD = None
    error_state: _Error | ODD = None
    last_updated: Any = None
    version_info: Any = None


_ENTRIES = msgspec.json.Decoder(list[_Entry | ODD])
_NAMES = ("cluster", "service_fqdn", "port", "subset", "direction")
_READ = (
    *("state", *_NAMES, "type", "destination_rule", "tls", "sni", "sans", "protocol"),
    *("connect_timeout_ms", "lb_policy", *_LIMITS, "outlier"),
    *("last_updated", "version", "istio_config", "error"),
)


@CLUSTERS.reads
def _rows(dump: Json, question: Question, facts: Facts) -> Iterator[Block]:
    rows = [
        _row(_STATES[field], shaped(entry, _Entry))
        for field, found in entries(dump, "ClustersConfigDump", _STATES, question, facts, _ENTRIES)
        for entry in found
    ]
    rows.sort(key=itemgetter(0))
    yield Block(_READ, [row for _, row in rows], {"proxy": proxy_of(question)})


def _row(state: str, entry: _Entry) -> tuple[Any, tuple[Any, ...]]:
    """Return one cluster's place in istioctl's order, and its values."""
    cluster, error = entry.cluster, shaped(entry.error_state, _Error)
    if not isinstance(cluster, _Cluster):
        cluster = shaped(error.failed_configuration, _Cluster)
    name = str(cluster.name or "")
    direction, subset, host, port = _parse(name)
    plain = name.count("|") < 3
    config = made_from(cluster.metadata)
    values = (
        state,
        name,
        host,
        "-" if plain else str(port),
        subset or "-",
        "-" if plain else direction,
        cluster.type or dig(cluster.cluster_type, "name") or "STATIC",
        management(config),
        *_tls(cluster),
        _protocol(cluster),
        milliseconds(cluster.connect_timeout),
        cluster.lb_policy or "ROUND_ROBIN",
        *_limits(bytes(cluster.circuit_breakers)),
        cluster.outlier_detection,
        entry.last_updated,
        entry.version_info,
        config,
        error.details,
    )
    return (host, subset, port, direction), values


def _parse(name: str) -> tuple[str, str, str, int]:
    """Return direction, subset, host and port of a cluster's name, empty where the name has none.

    A name of more than four parts has no host, as in istioctl.
    """
    if name.count("|") < 3:
        return "", "", name, 0
    direction, port, subset, host = name.split("|", 3)
    return direction, subset, "" if "|" in host else host, int(port) if port.isdecimal() else 0


def _tls(cluster: _Cluster) -> tuple[str, Json, tuple[str, ...]]:
    """Return what is spoken, the server name, and the names that the server may have."""
    for choice in each(cluster.transport_socket_matches, _Choice):
        if (context := _context(choice.transport_socket)) is not None:
            return _described(context, by_mode="tlsMode" in mapping(choice.match))
    if (context := _context(cluster.transport_socket)) is not None:
        return _described(context, by_mode=False)
    return "none", None, ()


def _context(socket: object) -> _Context | None:
    """Return the TLS context of a socket, or of one that it wraps, as the PROXY protocol's does."""
    for _ in range(4):
        context = shaped(shaped(socket, _Socket).typed_config, _Context)
        if str(context.type).endswith("TlsContext"):
            return context
        socket = context.transport_socket
    return None


def _described(context: _Context, *, by_mode: bool) -> tuple[str, Json, tuple[str, ...]]:
    common = shaped(context.common_tls_context, _Common)
    combined = shaped(common.combined_validation_context, _Combined)
    sans: list[str] = []
    for validation in (combined.default_validation_context, common.validation_context):
        if isinstance(validation, _Validation):
            sans += _exact(each(validation.match_subject_alt_names, _Matcher))
            typed = each(validation.match_typed_subject_alt_names, _Typed)
            sans += _exact(shaped(one.matcher, _Matcher) for one in typed)
    return "auto" if by_mode else _kind(common), context.sni, tuple(sans)


def _exact(matchers: Iterable[_Matcher]) -> list[str]:
    return [str(matcher.exact) for matcher in matchers if matcher.exact]


def _kind(common: _Common) -> str:
    secrets = [secret.name for secret in each(common.tls_certificate_sds_secret_configs, _Named)]
    protocols = [str(protocol) for protocol in items(common.alpn_protocols)]
    if "default" in secrets or any(protocol.startswith("istio") for protocol in protocols):
        return "mutual"
    own = secrets or items(common.tls_certificates)
    return "client certificate" if own else "simple"


def _protocol(cluster: _Cluster) -> str:
    said = _said_protocol(bytes(cluster.typed_extension_protocol_options))
    if said:
        return said
    # HTTP/1 is what Envoy speaks when nothing is said.
    return "http1" if cluster.http2_protocol_options is None else "http2"


@lru_cache(maxsize=1024)
def _said_protocol(extensions: bytes) -> str:
    options = mapping(decode_json(extensions), _HTTP_OPTIONS)
    if "auto_config" in options:
        return "auto"
    if "use_downstream_protocol_config" in options:
        return "use_downstream"
    explicit = mapping(options, "explicit_http_config")
    if "http3_protocol_options" in explicit:
        return "http3"
    return "http2" if "http2_protocol_options" in explicit else ""


@lru_cache(maxsize=1024)
def _limits(circuit_breakers: bytes) -> tuple[Any, ...]:
    for threshold in items(decode_json(circuit_breakers), "thresholds"):
        if dig(threshold, "priority", default="DEFAULT") == "DEFAULT":
            limits = mapping(threshold)
            return tuple(limits.get(limit) for limit in _LIMITS)
    return (None,) * len(_LIMITS)
