"""What acts on requests to hosts, wherever they come from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from meshnb.tables.base import dig, items
from meshnb.traces.describe.api_routes import api_routes
from meshnb.traces.describe.base import Acting
from meshnb.traces.describe.destination_rules import destination_rules
from meshnb.traces.describe.known import Known
from meshnb.traces.describe.virtual_services import virtual_services
from meshnb.traces.describe.words import listed
from meshnb.traces.mesh import ConfigObject, Pod
from meshnb.traces.rules import GATEWAY_API_GROUP, GATEWAY_GROUP, bound_gateways


def traffic(known: Known, hosts: Mapping[str, str], pods: list[Pod], home: str) -> Iterator[Acting]:
    """Yield what acts on requests to hosts, given with the namespace of each."""
    yield from destination_rules(known, hosts, pods, home)
    led = list(virtual_services(known, hosts, pods, home)) + list(api_routes(known, hosts, home))
    yield from led
    shown: set[int] = set()
    for route in led:
        for gateway in route.gateways:
            if route.acts and gateway.index not in shown:
                shown.add(gateway.index)
                names = [str(one.item) for one in led if one.acts and gateway in one.gateways]
                yield Acting(gateway, acts=True, why=f"exposes it through {listed(names)}")
    for gateway in (
        *known.mesh.of("Gateway", GATEWAY_GROUP),
        *known.mesh.of("Gateway", GATEWAY_API_GROUP),
    ):
        if gateway.index not in shown and gateway.namespace == home:
            named = [one for one in led if _names(one.item, gateway)]
            why = named[0].why if named else "no route that leads here is bound to it"
            yield Acting(gateway, acts=False, why=why)


def _names(route: ConfigObject, gateway: ConfigObject) -> bool:
    if gateway.group == GATEWAY_GROUP:
        return f"{gateway.namespace}/{gateway.name}" in bound_gateways(route)
    return any(
        dig(parent, "name") == gateway.name
        and dig(parent, "namespace", default=route.namespace) == gateway.namespace
        for parent in items(route.spec, "parentRefs")
    )
