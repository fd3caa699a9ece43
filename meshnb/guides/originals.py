"""The originals behind a hop: an Istio object and an Envoy resource as YAML, as far as one reads.

Values come from a cluster: they are written out as text, and never read back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from meshnb.tables import Facts
from meshnb.tables.base import Listed, dig, items, mapping
from meshnb.traces.envoy.configs import ProxyConfig, ProxyConfigs
from meshnb.traces.mesh import Mesh

#: So many lines of an original are shown; the rest is counted.
MOST = 60
#: No line is longer.
_WIDEST = 400
_SERVICES = Listed("v1", "services")
_BETWEEN = " / "


@dataclass(frozen=True, slots=True)
class Originals:
    """The originals of one source."""

    facts: Facts
    mesh: Mesh
    configs: ProxyConfigs

    def object(self, title: str) -> str:
        """Return an object as YAML; empty if it is unknown."""
        return object_yaml(self.facts, self.mesh, title)

    def resource(self, proxy: str, name: str) -> str:
        """Return what a proxy holds under a name as YAML; empty if that is not found."""
        return resource_yaml(self.configs.of(proxy), name)


def object_yaml(facts: Facts, mesh: Mesh, title: str) -> str:
    """Return an object, given as ``Kind namespace/name``, without status; empty if it is unknown.

    A Service is among them, as clusters are made for Services.
    """
    if title.startswith("Service "):
        return _service(facts, title.removeprefix("Service "))
    for item in mesh.objects:
        if str(item) == title:
            head = {"namespace": item.namespace, "name": item.name}
            return _written({"kind": item.kind, "metadata": head, "spec": item.spec})
    return ""


def _service(facts: Facts, name: str) -> str:
    for _, body in facts.objects(_SERVICES):
        head = {field: dig(body, "metadata", field) for field in ("namespace", "name")}
        if f"{head['namespace']}/{head['name']}" == name:
            return _written({"kind": "Service", "metadata": head, "spec": mapping(body, "spec")})
    return ""


def resource_yaml(config: ProxyConfig | None, resource: str) -> str:
    """Return what a proxy holds under a name as a hop has it; empty when that is not found.

    The name is that of a cluster or a listener, that of a listener with one of its filter chains,
    or that of a route configuration with a virtual host and a route.
    """
    if config is None or not resource:
        return ""
    if resource in config.clusters:
        return _written(config.clusters[resource].resource)
    name, *inner = resource.split(_BETWEEN)
    if name in config.listeners:
        return _written(_chain(config.listeners[name].resource, inner))
    if name in config.routes:
        return _written(_route(config.routes[name].resource, inner))
    inline = _inline(config, name)
    return _written(_route(inline, inner)) if inline else ""


def _inline(config: ProxyConfig, name: str) -> Mapping[str, Any]:
    """Return a route configuration that stands in a listener, as those of servers do."""
    for listener in config.listeners.values():
        for chain in items(listener.resource, "filter_chains"):
            for one in items(chain, "filters"):
                routes = mapping(one, "typed_config", "route_config")
                if routes.get("name") == name:
                    return routes
    return {}


def _chain(listener: Mapping[str, Any], inner: list[str]) -> Mapping[str, Any]:
    if not inner:
        # Its chains say more than fits, and each has a hop of its own.
        return {key: value for key, value in listener.items() if "filter_chain" not in key}
    chains = [*items(listener, "filter_chains"), mapping(listener, "default_filter_chain")]
    return _named(chains, inner[0], "filter chain") or listener


def _route(routes: Mapping[str, Any], inner: list[str]) -> Mapping[str, Any]:
    if not inner:
        return routes
    host = _named(items(routes, "virtual_hosts"), inner[0], "virtual host")
    if host is None or len(inner) == 1:
        return {"name": inner[0], "domains": items(host, "domains")} if host else {}
    return _named(items(host, "routes"), inner[1], "route") or {}


def _named(every: list[Any], name: str, noun: str) -> Mapping[str, Any] | None:
    """Return the one of a name, or of a place such as ``route 2``."""
    for place, one in enumerate(every):
        if dig(one, "name") == name or name in (str(place), f"{noun} {place}"):
            return mapping(one)
    return None


def _written(value: Mapping[str, Any]) -> str:
    text = yaml.safe_dump(
        _plain(value), sort_keys=False, allow_unicode=True, default_flow_style=False, width=120
    )
    lines = [line[:_WIDEST] for line in text.splitlines()]
    left = [f"# and {len(lines) - MOST} more lines"] if len(lines) > MOST else []
    return "\n".join([*lines[:MOST], *left])


def _plain(value: Any) -> Any:
    """Return a value of JSON as plain containers, which is what YAML can be written from."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)
