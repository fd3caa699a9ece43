"""What a proxy holds, to be added to as istiod would."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from meshnb.sources import HttpQuestion, LogQuestion
from tests.alteration import Line
from tests.enriching.base import Enriched, Json

_TYPES = "type.googleapis.com/envoy"


@dataclass(frozen=True)
class Proxy:
    """One proxy of a recording: its dump, the page of its clusters, and its log."""

    mesh: Enriched
    question: HttpQuestion
    dump: Json

    @property
    def namespace(self) -> str:
        """The namespace of its pod."""
        return self.question.namespace

    @property
    def pod(self) -> str:
        """The name of its pod."""
        return self.question.pod

    @property
    def name(self) -> str:
        """The name that istiod gives it."""
        return f"{self.pod}.{self.namespace}"

    @property
    def node(self) -> list[str]:
        """Kind, address, name and domain."""
        node: str = self.part("Bootstrap")["bootstrap"]["node"]["id"]
        return node.split("~")

    @property
    def is_gateway(self) -> bool:
        """Whether it stands alone."""
        return self.node[0] == "router"

    @property
    def address(self) -> str:
        """Its pod's address."""
        return self.node[1]

    def part(self, name: str) -> Json:
        """Return one section of the dump."""
        for part in self.dump["configs"]:
            if part["@type"].endswith(f".{name}ConfigDump"):
                return part
        return {}

    @property
    def listeners(self) -> list[Json]:
        """The listeners, each with its name and state."""
        return self._entries("Listeners", "dynamic_listeners")

    @property
    def clusters(self) -> list[Json]:
        """The clusters from istiod."""
        return self._entries("Clusters", "dynamic_active_clusters")

    @property
    def endpoints(self) -> list[Json]:
        """The endpoints from istiod."""
        return self._entries("Endpoints", "dynamic_endpoint_configs")

    @property
    def routes(self) -> list[Json]:
        """The route configurations from istiod."""
        return self._entries("Routes", "dynamic_route_configs")

    @property
    def secrets(self) -> list[Json]:
        """The certificates."""
        return self._entries("Secrets", "dynamic_active_secrets")

    def _entries(self, part: str, name: str) -> list[Json]:
        entries: list[Json] = self.part(part).setdefault(name, [])
        return entries

    @property
    def statuses(self) -> list[Json]:
        """The clusters with their hosts, as the page ``/clusters`` has them."""
        for question in self.mesh.asked("/clusters"):
            if (question.namespace, question.pod) == (self.namespace, self.pod):
                statuses: list[Json] = self.mesh.document(question).setdefault(
                    "cluster_statuses", []
                )
                return statuses
        return []

    @property
    def log(self) -> LogQuestion | None:
        """Its log."""
        for question in self.mesh.logs():
            if (question.namespace, question.pod) == (self.namespace, self.pod):
                return question
        return None

    def active(self, name: str) -> Json | None:
        """Return the listener of this name that is in use."""
        for entry in self.listeners:
            if entry["name"] == name and "active_state" in entry:
                return entry["active_state"]["listener"]
        return None

    def chains(self, name: str) -> list[Json]:
        """Return the filter chains of a listener; none when it is not there."""
        listener = self.active(name)
        return listener["filter_chains"] if listener is not None else []

    def http(self) -> Iterator[tuple[str, Json]]:
        """Yield the listener's name and each filter that reads HTTP."""
        for entry in self.listeners:
            listener = entry.get("active_state", {}).get("listener", {})
            chains = list(listener.get("filter_chains", []))
            chains += (
                [listener["default_filter_chain"]] if "default_filter_chain" in listener else []
            )
            for chain in chains:
                for part in chain.get("filters", []):
                    if "http_filters" in part.get("typed_config", {}):
                        yield entry["name"], part["typed_config"]

    def virtual_hosts(self) -> Iterator[tuple[Json, Json]]:
        """Yield each route configuration with each of its virtual hosts."""
        for entry in self.routes:
            for host in entry["route_config"].get("virtual_hosts", []):
                yield entry["route_config"], host

    def assigned(self, cluster: str) -> Json | None:
        """Return the endpoints of a cluster."""
        for entry in self.endpoints:
            if entry["endpoint_config"].get("cluster_name") == cluster:
                return entry["endpoint_config"]
        return None

    def access(self) -> list[Line]:
        """Return the lines of its access log."""
        return self.mesh.access(self.log) if self.log is not None else []


def proxies(mesh: Enriched) -> list[Proxy]:
    """Return every proxy with a dump."""
    found = []
    for question in mesh.asked("/config_dump"):
        dump = mesh.document(question)
        if question.port == 15000 and isinstance(dump, dict) and "configs" in dump:
            found.append(Proxy(mesh, question, dump))
    return found


def sidecars(mesh: Enriched) -> list[Proxy]:
    """Return every sidecar with a dump."""
    return [proxy for proxy in proxies(mesh) if not proxy.is_gateway]


def gateways(mesh: Enriched) -> list[Proxy]:
    """Return every gateway with a dump that has the listener for plain HTTP."""
    return [proxy for proxy in proxies(mesh) if proxy.is_gateway]


def replaced(value: Any, old: str, new: str) -> Any:
    """Return a deep copy with a text replaced in every string and key."""
    if isinstance(value, str):
        return value.replace(old, new)
    if isinstance(value, dict):
        return {key.replace(old, new): replaced(one, old, new) for key, one in value.items()}
    if isinstance(value, list):
        return [replaced(one, old, new) for one in value]
    return value


def access_log(proxy: Proxy) -> list[Json]:
    """Return the access log as the proxy's listeners declare it."""
    for _, manager in proxy.http():
        if manager.get("access_log"):
            found: list[Json] = copy.deepcopy(manager["access_log"])
            return found
    return []


def tcp_listener(
    proxy: Proxy, address: str, port: int, cluster: str, updated: str, **chain: Json
) -> Json:
    """Return a listener that passes a port on to a cluster, as istiod makes it for a sidecar."""
    name = f"{address}_{port}"
    return {
        "name": name,
        "active_state": {
            "version_info": f"{updated}/9",
            "listener": {
                "@type": f"{_TYPES}.config.listener.v3.Listener",
                "name": name,
                "address": {"socket_address": {"address": address, "port_value": port}},
                "filter_chains": [{**chain, "filters": [tcp_proxy(proxy, cluster)]}],
                "listener_filters_timeout": "0s",
                "traffic_direction": "OUTBOUND",
                "continue_on_listener_filters_timeout": True,
                "bind_to_port": False,
            },
            "last_updated": updated,
        },
    }


def tcp_proxy(proxy: Proxy, cluster: str) -> Json:
    """Return the filter that passes bytes on to a cluster."""
    return {
        "name": "envoy.filters.network.tcp_proxy",
        "typed_config": {
            "@type": f"{_TYPES}.extensions.filters.network.tcp_proxy.v3.TcpProxy",
            "stat_prefix": cluster,
            "cluster": cluster,
            "access_log": access_log(proxy),
        },
    }


def add_cluster(
    proxy: Proxy,
    name: str,
    updated: str,
    identities: list[str],
    hosts: list[tuple[str, int]],
    *,
    mutual: bool = True,
) -> None:
    """Add a cluster whose endpoints come from istiod, with its endpoints and their health.

    ``hosts`` are addresses and ports of pods with a sidecar, or without one if not ``mutual``.
    """
    _, port, subset, host = name.split("|")
    service, namespace, *_ = host.split(".")
    metadata = {"istio": {"services": [{"host": host, "name": service, "namespace": namespace}]}}
    cluster: Json = {
        "@type": f"{_TYPES}.config.cluster.v3.Cluster",
        "name": name,
        "type": "EDS",
        "eds_cluster_config": {
            "eds_config": {"ads": {}, "initial_fetch_timeout": "0s", "resource_api_version": "V3"},
            "service_name": name,
        },
        "connect_timeout": "10s",
        "lb_policy": "LEAST_REQUEST",
        "metadata": {"filter_metadata": metadata},
        "common_lb_config": {},
    }
    like = next(
        (one for one in _mutual(proxy) if "transport_socket_matches" in one["cluster"]), None
    )
    if like is not None and mutual:
        socket = copy.deepcopy(like["cluster"]["transport_socket_matches"])
        tls = socket[0]["transport_socket"]["typed_config"]
        tls["sni"] = f"outbound_.{port}_.{subset}_.{host}"
        context = tls["common_tls_context"]["combined_validation_context"]
        context["default_validation_context"]["match_subject_alt_names"] = [
            {"exact": identity} for identity in identities
        ]
        cluster["transport_socket_matches"] = socket
    proxy.clusters.append({"cluster": cluster, "last_updated": updated})
    mode = {"envoy.transport_socket_match": {"tlsMode": "istio"}} if mutual else {}
    proxy.endpoints.append(
        {
            "endpoint_config": {
                "@type": f"{_TYPES}.config.endpoint.v3.ClusterLoadAssignment",
                "cluster_name": name,
                "endpoints": [
                    {
                        "locality": {},
                        "lb_endpoints": [
                            {
                                "endpoint": {"address": _socket(*one), "health_check_config": {}},
                                "health_status": "HEALTHY",
                                "metadata": {"filter_metadata": mode},
                                "load_balancing_weight": 1,
                            }
                            for one in hosts
                        ],
                        "load_balancing_weight": len(hosts),
                    }
                ],
                "policy": {"overprovisioning_factor": 140},
            }
        }
    )
    proxy.statuses.append(status_of(name, hosts))


def _mutual(proxy: Proxy) -> list[Json]:
    return [
        entry
        for entry in proxy.clusters
        if entry["cluster"].get("transport_socket_matches")
        and "common_tls_context"
        in entry["cluster"]["transport_socket_matches"][0]["transport_socket"].get(
            "typed_config", {}
        )
    ]


def status_of(name: str, hosts: list[tuple[str, int]]) -> Json:
    """Return a cluster with healthy hosts as the page ``/clusters`` has it."""
    return {
        "name": name,
        "added_via_api": True,
        "host_statuses": [
            {
                "address": _socket(*one),
                "stats": [{"name": "cx_total", "value": "3"}, {"name": "rq_total", "value": "9"}],
                "health_status": {"eds_health_status": "HEALTHY"},
                "weight": 1,
                "locality": {},
            }
            for one in hosts
        ],
        "observability_name": f"{name};",
        "eds_service_name": name,
    }


def _socket(address: str, port: int) -> Json:
    return {"socket_address": {"address": address, "port_value": port}}


def route_to(cluster: str | list[tuple[str, int]], origin: str = "", **match: Json) -> Json:
    """Return a route to a cluster, or to several with weights, made from an Istio object."""
    action: Json = {
        "timeout": "0s",
        "retry_policy": {
            "retry_on": "connect-failure,refused-stream,unavailable",
            "num_retries": 2,
        },
        "max_grpc_timeout": "0s",
    }
    if isinstance(cluster, str):
        action["cluster"] = cluster
    else:
        action["weighted_clusters"] = {
            "clusters": [{"name": name, "weight": weight} for name, weight in cluster]
        }
    route: Json = {"match": match or {"prefix": "/"}, "route": action}
    if origin:
        route["metadata"] = {"filter_metadata": {"istio": {"config": origin}}}
    else:
        route["name"] = "default"
    return route


def served_host(host: str, port: int, address: str, routes: list[Json]) -> Json:
    """Return the virtual host of a Service's port, as a sidecar of its namespace has it."""
    service, namespace, *_ = host.split(".")
    names = [host, f"{host}.", service, f"{service}.{namespace}.svc", f"{service}.{namespace}"]
    return {
        "name": f"{host}:{port}",
        "domains": [*names, address],
        "routes": routes,
        "include_request_attempt_count": True,
    }


def add_route_host(proxy: Proxy, port: int, host: Json, updated: str) -> None:
    """Add a virtual host to the routes of a port, which are made where there are none."""
    for entry in proxy.routes:
        if entry["route_config"]["name"] == str(port):
            hosts = entry["route_config"].setdefault("virtual_hosts", [])
            hosts.insert(max(len(hosts) - 1, 0), host)
            return
    entry = next(
        (e for e in proxy.routes if e["route_config"]["name"] in ("80", "9080", "8080")), None
    )
    listener = next(
        (
            e
            for e in proxy.listeners
            if entry is not None and e["name"] == f"0.0.0.0_{entry['route_config']['name']}"
        ),
        None,
    )
    if entry is None or listener is None:
        return
    old = entry["route_config"]["name"]
    routes = copy.deepcopy(entry)
    routes["last_updated"] = updated
    config = routes["route_config"]
    config["name"] = str(port)
    last = [h for h in config["virtual_hosts"] if h["name"] in ("allow_any", "block_all")]
    config["virtual_hosts"] = [host, *last]
    proxy.routes.append(routes)
    added = copy.deepcopy(
        {key: listener[key] for key in ("name", "active_state") if key in listener}
    )
    added = replaced(added, f"0.0.0.0_{old}", f"0.0.0.0_{port}")
    added["active_state"]["last_updated"] = updated
    opened = added["active_state"]["listener"]
    opened["address"]["socket_address"]["port_value"] = port
    for chain in opened["filter_chains"]:
        for part in chain["filters"]:
            rds = part["typed_config"].get("rds")
            if rds:
                rds["route_config_name"] = str(port)
    proxy.listeners.append(added)


def inbound(proxy: Proxy, change: Callable[[Json], None]) -> None:
    """Change each filter chain of the listener that takes what comes to the pod."""
    for chain in proxy.chains("virtualInbound"):
        if chain.get("name") != "virtualInbound-blackhole":
            change(chain)
