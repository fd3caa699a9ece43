"""The table ``bootstrap``: what each Envoy was started with, and what it says of itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from meshnb.sources.base import Question
from meshnb.tables.base import Column, Facts, Json, Row, Table, dig, items, mapping
from meshnb.tables.envoy import (
    CONFIG_DUMP,
    address_port,
    address_text,
    milliseconds,
    names,
    proxy_of,
    section,
    tls_context,
)

BOOTSTRAP = Table(
    name="bootstrap",
    grain="one row per proxy",
    asks=CONFIG_DUMP,
    istioctl="istioctl proxy-config bootstrap POD.NAMESPACE -o short",
    columns={
        "proxy": Column("string", "the proxy as pod.namespace", key=True),
        "istio_version": Column("string", "version of Istio that the proxy was started by"),
        "istio_proxy_version": Column("string", "revision of Istio's own build of Envoy, if it is"),
        "envoy_version": Column(
            "string", "version of Envoy / state of its sources / kind of build / TLS library"
        ),
        "node_id": Column("string", "what it is to istiod: type~address~pod.namespace~domain"),
        "node_type": Column("string", "sidecar, router (a gateway) or waypoint, of node_id"),
        "service_cluster": Column("string", "the group of proxies that it says it belongs to"),
        "namespace": Column("string", "namespace that it says it is in"),
        "workload": Column("string", "workload that it says it belongs to"),
        "owner": Column("string", "API path of the object that owns its pod"),
        "service_account": Column("string", "service account that it says it runs as"),
        "addresses": Column("object", "tuple: its own IP addresses"),
        "node_name": Column("string", "Kubernetes node that it says it runs on"),
        "cluster_id": Column("string", "Kubernetes cluster that it says it is in"),
        "network": Column("string", "network that it says it is in"),
        "mesh_id": Column("string", "mesh that it says it is in"),
        "trust_domain": Column("string", "trust domain of the certificate that it holds"),
        "interception_mode": Column("string", "how traffic gets to it: REDIRECT, TPROXY or NONE"),
        "discovery_address": Column("string", "where its agent looks for istiod"),
        "xds_address": Column(
            "string", "where Envoy itself gets its configuration: the agent's socket, or host:port"
        ),
        "xds_api": Column("string", "the protocol it uses for that: DELTA_GRPC or GRPC"),
        "sans": Column("object", "tuple: names one of which istiod's certificate must have"),
        "concurrency": Column("Int64", "worker threads that were asked for; 0 is one per core"),
        "drain_duration_ms": Column("Float64", "how long old listeners drain, in milliseconds"),
        "hold_application": Column("boolean", "whether the app waits until the proxy is ready"),
        "tracing": Column("string", "name of Envoy's tracer, or of Istio's setting for one"),
        "stats_tags": Column("object", "tuple: tags that are taken out of the metrics' names"),
        "stats_patterns": Column(
            "object", "tuple of dicts: the metrics that are kept; empty when all are"
        ),
        "stats_sinks": Column("object", "tuple: names of what metrics are pushed to"),
        "runtime": Column("object", "dict: runtime settings, later layers over earlier ones"),
        "extensions": Column("object", "tuple: names of the bootstrap extensions"),
        "last_updated": Column("datetime64[us, UTC]", "when Envoy read it", passing=True),
        "metadata": Column("object", "dict: all that it tells istiod of itself"),
    },
)


@BOOTSTRAP.derives
def _rows(facts: Facts) -> Iterator[tuple[Question, Row]]:
    certificates = facts["certificates"]
    own = certificates[certificates["resource_name"] == "default"].dropna(subset="trust_domain")
    trust_domains = dict(zip(own["proxy"], own["trust_domain"], strict=True))

    def read(dump: Json, question: Question, facts: Facts) -> Iterator[Row]:
        found = section(dump, "BootstrapConfigDump", question, facts)
        if "bootstrap" in found:
            proxy = proxy_of(question)
            yield {
                "proxy": proxy,
                **_row(mapping(found, "bootstrap")),
                "trust_domain": trust_domains.get(proxy),
                "last_updated": dig(found, "last_updated"),
            }

    yield from facts.read(CONFIG_DUMP, read)


def _row(bootstrap: Mapping[str, Any]) -> Row:
    node = mapping(bootstrap, "node")
    return {
        **_node(node),
        **_metadata(mapping(node, "metadata")),
        **_discovery(bootstrap, mapping(node, "metadata")),
        "tracing": dig(bootstrap, "tracing", "http", "name")
        or next(iter(mapping(node, "metadata", "PROXY_CONFIG", "tracing")), None),
        "stats_tags": tuple(
            str(dig(tag, "tag_name", default=""))
            for tag in items(bootstrap, "stats_config", "stats_tags")
        ),
        "stats_patterns": tuple(
            items(bootstrap, "stats_config", "stats_matcher", "inclusion_list", "patterns")
        ),
        "stats_sinks": names(items(bootstrap, "stats_sinks")),
        "runtime": {
            key: value
            for layer in items(bootstrap, "layered_runtime", "layers")
            for key, value in mapping(layer, "static_layer").items()
        },
        "extensions": names(items(bootstrap, "bootstrap_extensions")),
    }


def _node(node: Mapping[str, Any]) -> Row:
    identity = str(node.get("id", ""))
    build = mapping(node, "user_agent_build_version")
    return {
        "envoy_version": _envoy_version(build) if build else None,
        "node_id": identity or None,
        "node_type": identity.partition("~")[0] if "~" in identity else None,
        "service_cluster": node.get("cluster"),
    }


def _envoy_version(build: Mapping[str, Any]) -> str:
    number = mapping(build, "version")
    text = ".".join(str(number.get(part, 0)) for part in ("major_number", "minor_number", "patch"))
    details = mapping(build, "metadata")
    if "build.label" in details:
        text += f"-{details['build.label']}"
    for part in ("revision.status", "build.type", "ssl.version"):
        if part in details:
            text += f"/{details[part]}"
    return text


def _metadata(metadata: Mapping[str, Any]) -> Row:
    addresses = str(metadata.get("INSTANCE_IPS") or "")
    settings = mapping(metadata, "PROXY_CONFIG")
    return {
        "istio_version": metadata.get("ISTIO_VERSION"),
        "istio_proxy_version": _revision(metadata.get("ISTIO_PROXY_SHA")),
        "namespace": metadata.get("NAMESPACE"),
        "workload": metadata.get("WORKLOAD_NAME"),
        "owner": metadata.get("OWNER"),
        "service_account": metadata.get("SERVICE_ACCOUNT"),
        "addresses": tuple(filter(None, addresses.split(","))),
        "node_name": metadata.get("NODE_NAME"),
        "cluster_id": metadata.get("CLUSTER_ID"),
        "network": metadata.get("NETWORK") or None,
        "mesh_id": metadata.get("MESH_ID"),
        "interception_mode": metadata.get("INTERCEPTION_MODE"),
        "concurrency": settings.get("concurrency"),
        "drain_duration_ms": milliseconds(settings.get("drainDuration")),
        "hold_application": settings.get("holdApplicationUntilProxyStarts"),
        "metadata": dict(metadata),
    }


def _revision(build: Json) -> str | None:
    """Return what istioctl prints of a build such as ``istio-proxy:9f6ee…``."""
    if not isinstance(build, str):
        return None
    parts = build.split(":")
    return parts[1] if len(parts) > 1 else build


def _discovery(bootstrap: Mapping[str, Any], metadata: Mapping[str, Any]) -> Row:
    source = mapping(bootstrap, "dynamic_resources", "ads_config")
    name = dig(source, "grpc_services", 0, "envoy_grpc", "cluster_name")
    clusters = items(bootstrap, "static_resources", "clusters")
    cluster = next((mapping(c) for c in clusters if name and dig(c, "name") == name), {})
    endpoint = dig(cluster, "load_assignment", "endpoints", 0, "lb_endpoints", 0, "endpoint")
    host, port = address_text(dig(endpoint, "address")), address_port(dig(endpoint, "address"))
    sans = items(metadata, "PILOT_SAN") or _checked(cluster)
    return {
        "discovery_address": dig(metadata, "PROXY_CONFIG", "discoveryAddress"),
        "xds_address": f"{host}:{port}" if host and port else host,
        "xds_api": source.get("api_type"),
        "sans": tuple(map(str, sans)),
    }


def _checked(cluster: Mapping[str, Any]) -> list[Any]:
    """Return the names that Envoy checks itself, where it speaks to istiod without the agent."""
    validation = mapping(tls_context(dig(cluster, "transport_socket")), "common_tls_context")
    matchers = items(validation, "validation_context", "match_subject_alt_names")
    return [name for matcher in matchers if (name := dig(matcher, "exact"))]
