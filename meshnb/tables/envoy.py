"""Reads what Envoy's config dump is made of, and spells it as istioctl does.

Shared by the tables of proxies: clusters, listeners, routes, endpoints and certificates. The shape
is that of ``envoy.admin.v3.ConfigDump`` (https://www.envoyproxy.io/docs/envoy/latest/api-v3/admin/v3/config_dump.proto).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from meshnb.sources.base import HttpQuestion, LogQuestion, ProbeQuestion, Question
from meshnb.tables.base import Facts, Got, Json, dig, items, mapping

#: The question that most tables of proxies ask.
CONFIG_DUMP = Got(15000, "/config_dump", proxies=True)

_DURATION = re.compile(r"(-?\d+(?:\.\d+)?)s")
_CONFIG_PREFIX = "/apis/networking.istio.io/"
_ZTUNNEL_KEYS = frozenset({"certificates", "policies", "services", "workloads"})


def proxy_of(question: Question) -> str:
    """Return the proxy that a question went to, as ``pod.namespace``, the name istiod gives it."""
    if isinstance(question, HttpQuestion | LogQuestion | ProbeQuestion):
        return f"{question.pod}.{question.namespace}"
    return ""


def section(dump: Json, name: str, question: Question, facts: Facts) -> Mapping[str, Any]:
    """Return one part of a config dump, such as ``ClustersConfigDump``.

    It is empty for a ztunnel, which answers the same question with another document, and, with a
    gap noted, where an Envoy should have the part and has not.
    """
    configs = dig(dump, "configs")
    if not isinstance(configs, list):
        if not is_ztunnel(dump):
            facts.gap(
                question, "unreadable", "is no config dump of Envoy: it has no list of configs"
            )
        return {}
    for config in configs:
        if str(dig(config, "@type", default="")).endswith(f".{name}"):
            return mapping(config)
    facts.gap(question, "unreadable", f"has no {name}")
    return {}


def is_ztunnel(dump: Json) -> bool:
    """Whether a config dump is that of a ztunnel, which has other keys than Envoy's."""
    return isinstance(dump, Mapping) and "configs" not in dump and bool(_ZTUNNEL_KEYS & dump.keys())


def sections(dump: Json, name: str) -> list[Mapping[str, Any]]:
    """Return each part of a config dump of one kind, for kinds that may be there often or never."""
    return [
        mapping(config)
        for config in items(dump, "configs")
        if str(dig(config, "@type", default="")).endswith(f".{name}")
    ]


def milliseconds(duration: Json) -> float | None:
    """Return a protobuf duration in JSON, such as ``0.250s``, in milliseconds; else None."""
    found = _DURATION.fullmatch(duration) if isinstance(duration, str) else None
    return float(found[1]) * 1000 if found else None


def istio_config(resource: Json) -> str | None:
    """Return the API path of the Istio object that an Envoy resource was made from."""
    config = dig(resource, "metadata", "filter_metadata", "istio", "config")
    return config if isinstance(config, str) else None


def management(path: str | None) -> str | None:
    """Return the API path of an Istio object as istioctl prints it: ``name.namespace``.

    None when there is no path or istioctl prints nothing; ``<unknown>`` for a path that does not
    lead to Istio's networking API.
    """
    if path is None:
        return None
    if not path.startswith(_CONFIG_PREFIX):
        return "<unknown>"
    parts = path.split("/")
    return f"{parts[7]}.{parts[5]}" if len(parts) == 8 else None


def address_text(address: Json) -> str | None:
    """Return the host part of an Envoy address: an IP address, or the path of a pipe."""
    text = dig(address, "socket_address", "address") or dig(address, "pipe", "path")
    return text if isinstance(text, str) else None


def address_port(address: Json) -> int:
    """Return the port of an Envoy address; 0 where it has none."""
    port = dig(address, "socket_address", "port_value")
    return port if isinstance(port, int) else 0


def match_text(match: Json) -> str:
    """Return a route's match on the path as istioctl prints it; headers are left out."""
    parts = []
    if prefix := dig(match, "prefix"):
        parts.append(f"{prefix}*")
    if separated := dig(match, "path_separated_prefix"):
        parts.append(f"PathPrefix:{separated}")
    if path := dig(match, "path"):
        parts.append(str(path))
    if "safe_regex" in mapping(match):
        parts.append(f"regex {dig(match, 'safe_regex', 'regex', default='')}")
    return " ".join(parts)


def names(resources: list[Any]) -> tuple[str, ...]:
    """Return the names of named resources, in their order."""
    return tuple(str(dig(resource, "name", default="")) for resource in resources)


def tls_context(socket: Json) -> Mapping[str, Any] | None:
    """Return the TLS context of a transport socket, up- or downstream; None when it is not TLS.

    Sockets that wrap another one, as the PROXY protocol's does, are looked into; so is QUIC's.
    """
    config = mapping(socket, "typed_config")
    for _ in range(4):
        kind = str(config.get("@type", ""))
        if kind.endswith("TlsContext"):
            return config
        if kind.endswith("QuicDownstreamTransport"):
            return mapping(config, "downstream_tls_context")
        if "transport_socket" not in config:
            break
        config = mapping(config, "transport_socket", "typed_config")
    return None


def per_filter(resource: Json, filter_name: str, kind: str) -> Mapping[str, Any] | None:
    """Return a route's own configuration of an HTTP filter, by its name or the type."""
    for name, config in mapping(resource, "typed_per_filter_config").items():
        # Envoy can wrap the configuration to say whether the filter is disabled.
        inner = mapping(config, "config") if "config" in mapping(config) else mapping(config)
        if name == filter_name or str(inner.get("@type", "")).endswith(f".{kind}"):
            return inner
    return None


def listed(resource: Json, *path: str) -> tuple[Any, ...]:
    """Return the list at a path as a tuple, for a column of dtype object."""
    return tuple(items(resource, *path))
