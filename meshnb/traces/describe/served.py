"""What a gateway's own pod serves."""

from __future__ import annotations

from collections.abc import Iterator

from meshnb.tables.base import dig, items, mapping
from meshnb.traces.describe.base import Acting
from meshnb.traces.describe.known import GATEWAY_NAME, Known
from meshnb.traces.describe.words import listed, mismatch
from meshnb.traces.mesh import ConfigObject, Pod
from meshnb.traces.rules import (
    GATEWAY_API_GROUP,
    GATEWAY_GROUP,
    admits,
    bound_gateways,
    gateway_pods,
    visible,
)


def served(known: Known, pod: Pod) -> Iterator[Acting]:
    """Yield the Gateways that a gateway's pod serves, and the routes that it carries."""
    if pod.mesh not in ("gateway", "waypoint"):
        return
    served: dict[str, ConfigObject] = {}
    for gateway in (
        *known.mesh.of("Gateway", GATEWAY_GROUP),
        *known.mesh.of("Gateway", GATEWAY_API_GROUP),
    ):
        if pod in gateway_pods(gateway, known.mesh):
            if gateway.group == GATEWAY_GROUP:
                served[f"{gateway.namespace}/{gateway.name}"] = gateway
            yield Acting(gateway, acts=True, why="the pod serves it")
        elif gateway.group == GATEWAY_GROUP:
            why = mismatch(mapping(gateway.spec, "selector"), pod)
            yield Acting(gateway, acts=False, why=why)
    for service in known.mesh.of("VirtualService"):
        mine = [served[name] for name in bound_gateways(service) if name in served]
        if not mine:
            continue
        admitting = [gateway for gateway in mine if admits(gateway, service, known.mesh)]
        if not admitting:
            why = f"{mine[0]} has no server for its hosts"
        elif not visible(service, pod.namespace, known.mesh):
            why = f"exportTo hides it from namespace {pod.namespace}"
        else:
            why = f"the pod carries its routes, by {listed(map(str, admitting))}"
        acts = bool(admitting) and visible(service, pod.namespace, known.mesh)
        yield Acting(service, acts, why)
    for route in known.api_routes():
        for parent in items(route.spec, "parentRefs"):
            place = str(dig(parent, "namespace", default=route.namespace))
            mine_api = pod.labels.get(GATEWAY_NAME) == dig(parent, "name")
            if mine_api and place == pod.namespace:
                bad = known.refusals(route)
                # Of a backend that is not found its requests are answered with an error.
                refused = any(condition.get("type") == "Accepted" for condition in bad)
                said = "; ".join(f"{one.get('reason')}: {one.get('message')}" for one in bad)
                carried = "the pod carries its routes" + (f", but {said}" if said else "")
                yield Acting(route, not refused, said if refused else carried)
