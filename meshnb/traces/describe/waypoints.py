"""The waypoint that an object asks for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from meshnb.traces.describe.base import Waypoint
from meshnb.traces.describe.known import GATEWAY_NAME, Known
from meshnb.traces.rules import GATEWAY_API_GROUP

_USE_WAYPOINT = "istio.io/use-waypoint"


def waypoint_of(
    known: Known, own: tuple[Mapping[str, Any], str], namespace: str
) -> Waypoint | None:
    """Return the waypoint that an object asks for itself, or else its namespace for it."""
    spoken = (own, (known.mesh.namespaces.get(namespace, {}), "namespace"))
    for labels, whose in spoken:
        name = labels.get(_USE_WAYPOINT)
        if name is None:
            continue
        if name == "none":
            return None
        home = str(labels.get(f"{_USE_WAYPOINT}-namespace") or namespace)
        exists = any(
            (gateway.namespace, gateway.name) == (home, name)
            for gateway in known.mesh.of("Gateway", GATEWAY_API_GROUP)
        )
        pods = known.mesh.matching({GATEWAY_NAME: name}, home)
        label = f"{whose} label {_USE_WAYPOINT}={name}"
        return Waypoint(home, str(name), label, exists, tuple(pod.pod for pod in pods))
    return None
