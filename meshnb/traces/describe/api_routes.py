"""Routes of the Gateway API, which say in their status what became of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from meshnb.tables.base import dig, items
from meshnb.traces.describe.base import RoutesOf, RouteTo
from meshnb.traces.describe.known import Known
from meshnb.traces.describe.matches import api_match_words
from meshnb.traces.describe.words import listed
from meshnb.traces.mesh import ConfigObject
from meshnb.traces.rules import GATEWAY_API_GROUP, gateway_pods


def api_routes(known: Known, hosts: Mapping[str, str], home: str) -> Iterator[RoutesOf]:
    """Yield the routes of the Gateway API, which say in their status what became of them."""
    gateways = {(g.namespace, g.name): g for g in known.mesh.of("Gateway", GATEWAY_API_GROUP)}
    for route in known.api_routes():
        targets = tuple(_backends(known, route, hosts))
        through: list[ConfigObject] = []
        ways: list[str] = []
        obstacles = [
            f"{bad.get('type')} is False, {bad.get('reason')}: {bad.get('message')}"
            for bad in known.refusals(route)
        ]
        decided = False
        for parent in items(route.spec, "parentRefs"):
            place = str(dig(parent, "namespace", default=route.namespace))
            name = str(dig(parent, "name", default=""))
            if dig(parent, "kind", default="Gateway") == "Service":
                decided = decided or known.mesh.fqdn(name, place) in hosts
                ways.append(f"sidecars and waypoints, for Service {place}/{name}")
            elif (place, name) not in gateways:
                obstacles.append(f"Gateway {place}/{name} does not exist")
            elif not gateway_pods(gateways[place, name], known.mesh):
                obstacles.append(f"Gateway {place}/{name} has no pod")
            else:
                ways.append(str(gateways[place, name]))
                through.append(gateways[place, name])
        related = decided or any(target.host in hosts for target in targets)
        if not related:
            if route.namespace == home:
                why = "none of its backends leads here"
                yield RoutesOf(route, False, why, targets, tuple(through))
            continue
        reaching = [target.path for target in targets if target.reaches]
        acts = bool(ways) and not known.refusals(route) and bool(reaching or decided)
        if acts and reaching:
            why = f"{listed(reaching)} leads here, in force at {listed(ways)}"
        elif acts:
            why = "decides for it, and leads nobody here"
        else:
            why = "; ".join(obstacles) or "leads elsewhere"
        yield RoutesOf(route, acts, why, targets, tuple(through))


def _backends(known: Known, route: ConfigObject, hosts: Mapping[str, str]) -> Iterator[RouteTo]:
    for number, rule in enumerate(items(route.spec, "rules")):
        for position, backend in enumerate(items(rule, "backendRefs")):
            place = str(dig(backend, "namespace", default=route.namespace))
            host = known.mesh.fqdn(str(dig(backend, "name", default="")), place)
            weight = dig(backend, "weight")
            why = "" if host in hosts else f"it leads to {host}"
            if not why and weight == 0:
                why = "its weight is 0"
            yield RouteTo(
                f"spec.rules[{number}].backendRefs[{position}]",
                api_match_words(rule),
                host,
                "",
                weight if isinstance(weight, int) else None,
                not why,
                why,
            )
