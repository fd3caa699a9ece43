"""VirtualServices: which of their routes lead to a host, and where they are in force."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from meshnb.tables.base import dig, items, mapping
from meshnb.traces.describe.base import RoutesOf, RouteTo
from meshnb.traces.describe.known import Known
from meshnb.traces.describe.matches import match_words
from meshnb.traces.describe.words import listed
from meshnb.traces.mesh import ConfigObject, Pod, host_matches
from meshnb.traces.rules import (
    GATEWAY_GROUP,
    admits,
    bound_gateways,
    covered_by,
    delegating,
    exported_to,
    gateway_pods,
    more_specific_rule,
    overruled_by,
    route_hosts,
    route_targets,
    rule_host,
    visible,
)


def virtual_services(
    known: Known, hosts: Mapping[str, str], pods: list[Pod], home: str
) -> Iterator[RoutesOf]:
    """Yield the VirtualServices that lead to hosts or decide for them, or could be thought to."""
    for service in known.mesh.of("VirtualService"):
        roots = [service] if items(service.spec, "hosts") else delegating(service, known.mesh)
        decided = [
            host
            for host in hosts
            for root in roots
            if any(host_matches(name, host) for name in route_hosts(root, known.mesh))
        ]
        routes = tuple(_routes(known, service, hosts, pods))
        related = any(route.host in hosts for route in routes)
        if not related and not decided:
            if service.namespace == home:
                named = listed(route_hosts(service, known.mesh)) or "no host"
                why = f"is for {named}, and none of its routes leads here"
                yield RoutesOf(service, False, why, routes, ())
            continue
        ways, obstacles, gateways = _in_force(known, roots, decided)
        reaching = [route for route in routes if route.reaches]
        if not roots:
            why, acts = "has no hosts, and no VirtualService delegates to it", False
        elif not ways:
            why, acts = "; ".join(obstacles) or "binds to nothing", False
        elif reaching:
            paths = listed(route.path for route in reaching)
            why, acts = f"{paths} leads here, in force at {listed(ways)}", True
        elif decided and "sidecars" in ways:
            blocked = "; ".join(dict.fromkeys(r.why for r in routes if r.why))
            why = f"decides for {listed(decided)}, and leads nobody here: {blocked}"
            acts = True
        else:
            blocked = "; ".join(dict.fromkeys(r.why for r in routes if r.why and r.host in hosts))
            why, acts = f"leads elsewhere: {blocked}", False
        if acts and obstacles:
            why += f" ({'; '.join(obstacles)})"
        yield RoutesOf(service, acts, why, routes, gateways)


def _in_force(
    known: Known, roots: list[ConfigObject], decided: list[str]
) -> tuple[list[str], list[str], tuple[ConfigObject, ...]]:
    """Return where VirtualServices are in force, why not elsewhere, and at which Gateways."""
    ways: dict[str, None] = {}
    obstacles: dict[str, None] = {}
    through: list[ConfigObject] = []
    existing = {
        f"{gateway.namespace}/{gateway.name}": gateway
        for gateway in known.mesh.of("Gateway", GATEWAY_GROUP)
    }
    for root in roots:
        for name in bound_gateways(root):
            if name == "mesh":
                hosts = decided or route_hosts(root, known.mesh)
                older = [overruled_by(root, host, known.mesh) for host in hosts]
                if older and all(one is not None for one in older):
                    obstacles[f"the older {older[0]} decides for {listed(hosts)}"] = None
                else:
                    ways["sidecars"] = None
                    scope = exported_to(root, known.mesh)
                    if "*" not in scope:
                        seen = listed(sorted(scope))
                        obstacles[f"exportTo shows it to namespace {seen} only"] = None
                continue
            gateway = existing.get(name)
            if gateway is None:
                obstacles[f"Gateway {name} does not exist"] = None
                continue
            pods = gateway_pods(gateway, known.mesh)
            seeing = [pod for pod in pods if visible(root, pod.namespace, known.mesh)]
            if not pods:
                obstacles[f"{gateway} selects no pod"] = None
            elif not admits(gateway, root, known.mesh):
                obstacles[f"{gateway} has no server for its hosts"] = None
            elif not seeing:
                obstacles[f"exportTo hides it from the pods of {gateway}"] = None
            else:
                ways[str(gateway)] = None
                through.append(gateway)
    return list(ways), list(obstacles), tuple(through)


def _routes(
    known: Known, service: ConfigObject, hosts: Mapping[str, str], pods: list[Pod]
) -> Iterator[RouteTo]:
    http = items(service.spec, "http")
    for path, route, target, weight in route_targets(service):
        host = known.mesh.fqdn(str(dig(target, "host", default="")), service.namespace)
        subset = str(dig(target, "subset", default=""))
        number = next((n for n, one in enumerate(http) if one is route), None)
        shadow = covered_by(service, number) if number is not None else None
        why = _why_elsewhere(known, host, subset, hosts, pods)
        if not why and weight == 0:
            why = "its weight is 0"
        if not why and shadow is not None:
            why = f"it is never taken: spec.http[{shadow}] above it matches all of it"
        reaches = not why
        if reaches and "mirror" in path:
            why = "it gets a copy, whose answer nobody waits for"
        yield RouteTo(path, match_words(route), host, subset, weight, reaches, why)


def _why_elsewhere(
    known: Known, host: str, subset: str, hosts: Mapping[str, str], pods: list[Pod]
) -> str:
    if host not in hosts:
        return f"it leads to {host}"
    if not subset:
        return ""
    defined = [
        mapping(one, "labels")
        for rule in known.mesh.of("DestinationRule")
        if host_matches(rule_host(rule, known.mesh), host)
        and more_specific_rule(rule, host, known.mesh) is None
        for one in items(rule.spec, "subsets")
        if dig(one, "name") == subset
    ]
    if not defined:
        return f"subset {subset} is not defined by any DestinationRule"
    if any(labels.items() <= pod.labels.items() for labels in defined for pod in pods):
        return ""
    return f"subset {subset} has other pods"
