"""Resources of Envoy, each made from what a config dump has of it, without what may differ."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from meshnb.tables.base import Json, dig, items, mapping
from meshnb.traces.comparison.cleaning import cleaned, encoded_json

#: Of kind ``cluster``, ``listener``, ``route``, ``endpoints``, ``extension`` or ``root``; by name.
Key = tuple[str, str]
_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----(.*?)-----END CERTIFICATE-----", re.DOTALL)
#: Clusters of a sidecar that take what leaves the pod for no known host.
_CATCH_ALL = frozenset({"BlackHoleCluster", "PassthroughCluster"})


@dataclass(frozen=True, slots=True, eq=False)
class Resource:
    """One resource without what may differ, and its bytes, which are equal when it is."""

    #: as it calls itself; empty when it does not
    name: str
    document: Json
    outbound: bool
    services: tuple[str, ...]
    encoded: bytes

    @property
    def filled(self) -> bool:
        """Whether it is a cluster whose endpoints come from istiod."""
        return bool(dig(self.document, "type") == "EDS")


def _made(
    name: str,
    document: Json,
    address: str,
    *,
    outbound: bool,
    services: Iterator[str] | tuple[str, ...] = (),
) -> Resource:
    clean = cleaned(document, "" if outbound else address)
    return Resource(name, clean, outbound, tuple(services), encoded_json(clean))


def _cluster(cluster: Mapping[str, Any], address: str) -> Resource:
    name = str(cluster.get("name", ""))
    outbound = name.startswith("outbound") or name in _CATCH_ALL
    return _made(name, cluster, address, outbound=outbound, services=_services(cluster))


def _listener(listener: Mapping[str, Any], address: str) -> Resource:
    outbound = listener.get("traffic_direction") == "OUTBOUND"
    document = {field: value for field, value in listener.items() if field != "name"}
    return _made(str(listener.get("name", "")), document, address, outbound=outbound)


def _route(config: Mapping[str, Any], address: str) -> Resource:
    name = str(config.get("name", ""))
    return _made(name, config, address, outbound=not name.startswith("inbound"))


def _assignment(config: Mapping[str, Any], _address: str) -> Resource:
    # Among endpoints, which all proxies share, a pod's own address is one like the others.
    name = str(config.get("cluster_name", ""))
    return _made(name, _endpoints(config), "", outbound=True)


def _extension(config: Mapping[str, Any], address: str) -> Resource:
    return _made(str(config.get("name", "")), config, address, outbound=False)


def _root(context: Mapping[str, Any], _address: str) -> Resource:
    return _made("", _roots(context), "", outbound=True)


#: How a resource of each kind is made, from its JSON and the address of the proxy that holds it.
MAKERS: Mapping[str, Callable[[Mapping[str, Any], str], Resource]] = {
    "cluster": _cluster,
    "listener": _listener,
    "route": _route,
    "endpoints": _assignment,
    "extension": _extension,
    "root": _root,
}


def _services(cluster: Mapping[str, Any]) -> Iterator[str]:
    for service in items(cluster, "metadata", "filter_metadata", "istio", "services"):
        namespace, name = dig(service, "namespace", default=""), dig(service, "name", default="")
        yield f"Service {namespace}/{name}"


def _endpoints(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the endpoints of a cluster by address, without what depends on the proxy's place."""
    found: dict[str, Any] = {}
    for locality in items(config, "endpoints"):
        place = mapping(locality, "locality")
        for endpoint in items(locality, "lb_endpoints"):
            address = mapping(endpoint, "endpoint", "address")
            socket = mapping(address, "socket_address")
            pipe = dig(address, "pipe", "path") or dig(
                address, "envoy_internal_address", "endpoint_id"
            )
            name = pipe or f"{socket.get('address')}:{socket.get('port_value')}"
            found[str(name)] = {**mapping(endpoint), "locality": dict(place)}
    return found


def _roots(context: Mapping[str, Any]) -> dict[str, str]:
    """Return the certificates that a context trusts: what they are, each once."""
    bundles = items(context, "custom_validator_config", "typed_config", "trust_domains")
    sources = [
        (str(dig(bundle, "name", default="")), dig(bundle, "trust_bundle")) for bundle in bundles
    ] or [("", dig(context, "trusted_ca"))]
    found: dict[str, str] = {}
    for domain, source in sources:
        text = dig(source, "inline_string", default="")
        try:
            text = base64.b64decode(str(dig(source, "inline_bytes", default=""))).decode() or text
        except (binascii.Error, ValueError):
            continue
        for block in _CERTIFICATE.findall(str(text)):
            certificate = "".join(block.split())
            # The last characters tell two apart, and are enough to show.
            found[f"{domain} …{certificate[-24:]}".strip()] = certificate
    return found
