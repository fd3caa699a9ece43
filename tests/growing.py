"""A recorded config dump, grown to that of a large mesh: its services are copied under new names.

The result has the sections, the order and the indentation that Envoy gives a dump.
"""

from __future__ import annotations

import ipaddress
import json
from pathlib import Path
from typing import Any

#: A large mesh, whose dump has about 100 MB.
CLUSTERS, ENDPOINTS, LISTENERS = 12_000, 50_000, 220

_FIRST_ADDRESS = ipaddress.ip_address("10.64.0.0")


def grow(
    recorded: Path,
    target: Path,
    *,
    clusters: int = CLUSTERS,
    endpoints: int = ENDPOINTS,
    listeners: int = LISTENERS,
) -> Path:
    """Write a dump with about so many clusters, endpoints and listeners to ``target``.

    There is a virtual host for each cluster that is added.
    """
    dump = json.loads(recorded.read_text())
    parts = {part["@type"].rpartition(".")[2]: part for part in dump["configs"]}
    held = parts["ClustersConfigDump"]["dynamic_active_clusters"]
    assigned = parts["EndpointsConfigDump"]["dynamic_endpoint_configs"]
    accepted = parts["ListenersConfigDump"]["dynamic_listeners"]
    routed = max(
        (entry["route_config"] for entry in parts["RoutesConfigDump"]["dynamic_route_configs"]),
        key=lambda config: len(config["virtual_hosts"]),
    )["virtual_hosts"]

    endpoints_of = {
        entry["endpoint_config"]["cluster_name"]: entry
        for entry in assigned
        if entry["endpoint_config"].get("endpoints")
    }
    templates = [
        entry for entry in held if _host(entry) and entry["cluster"]["name"] in endpoints_of
    ]
    virtual_hosts = [host for host in routed if _service(host["name"]) != host["name"]]
    listener = next(entry for entry in accepted if entry["name"].endswith("_443"))
    added = clusters - len(held)
    for number in range(added):
        template = templates[number % len(templates)]
        service = _service(_host(template))
        new = f"{service}-{number}"
        held.append(_renamed(template, service, new))
        assignment = _renamed(endpoints_of[template["cluster"]["name"]], service, new)
        locality = assignment["endpoint_config"]["endpoints"][0]
        locality["lb_endpoints"] = [
            _at(locality["lb_endpoints"][0], str(_FIRST_ADDRESS + place))
            for place in range(number * endpoints // added, (number + 1) * endpoints // added)
        ]
        assigned.append(assignment)
        host = virtual_hosts[number % len(virtual_hosts)]
        routed.append(_renamed(host, _service(host["name"]), new))
    for number in range(listeners - len(accepted)):
        accepted.append(_renamed(listener, "_443", f"_{10_000 + number}"))
    with target.open("w") as file:
        json.dump(dump, file, indent=1)
    return target


def _host(entry: Any) -> str:
    name: str = entry["cluster"]["name"]
    return name.rpartition("|")[2] if name.startswith("outbound|") else ""


def _service(host: str) -> str:
    return host.partition(".")[0]


def _renamed(entry: Any, old: str, new: str) -> Any:
    return json.loads(json.dumps(entry).replace(old, new))


def _at(endpoint: Any, address: str) -> Any:
    moved = json.loads(json.dumps(endpoint))
    moved["endpoint"]["address"]["socket_address"]["address"] = address
    return moved
