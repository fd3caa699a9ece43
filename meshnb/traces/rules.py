"""Istio's rules of which object counts: for a host, for a pod, before another object.

What an object's own fields mean stands here; what names and addresses mean stands in ``mesh``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from meshnb.tables.base import dig, items, mapping
from meshnb.traces.mesh import ConfigObject, Mesh, Pod, host_matches, hosts_overlap, oldest

#: The group of Istio's own Gateway kind; the Gateway API has a kind of the same name.
GATEWAY_GROUP = "networking.istio.io"
#: The group of the Gateway API.
GATEWAY_API_GROUP = "gateway.networking.k8s.io"

_PROTOCOLS = ("http", "tls", "tcp")


def workload_labels(item: ConfigObject) -> Mapping[str, Any]:
    """Return the labels by which an object selects workloads; empty when it has no selector."""
    return mapping(item.spec, "selector", "matchLabels") or mapping(
        item.spec, "workloadSelector", "labels"
    )


def target_references(item: ConfigObject) -> list[Any]:
    """Return the objects that a policy is attached to, in place of a selector."""
    single = mapping(item.spec, "targetRef")
    return items(item.spec, "targetRefs") or ([single] if single else [])


def exported_to(item: ConfigObject, mesh: Mesh) -> frozenset[str]:
    """Return the namespaces whose proxies see an object; ``*`` stands for all of them.

    Without ``exportTo`` the mesh's default for its kind counts, and without that everybody sees it.
    """
    setting = f"default{item.kind}ExportTo"
    default = re.findall(r'"([^"]*)"', mesh.settings.get(setting, ""))
    entries = items(item.spec, "exportTo") or default or ["*"]
    return frozenset(item.namespace if entry == "." else str(entry) for entry in entries)


def visible(item: ConfigObject, namespace: str, mesh: Mesh) -> bool:
    """Whether proxies of a namespace see an object."""
    scope = exported_to(item, mesh)
    return "*" in scope or namespace in scope


# --- VirtualServices ----------------------------------------------------------------------------


def route_hosts(service: ConfigObject, mesh: Mesh) -> list[str]:
    """Return the hosts of a VirtualService in full."""
    return [mesh.fqdn(str(host), service.namespace) for host in items(service.spec, "hosts")]


def bound_gateways(service: ConfigObject) -> list[str]:
    """Return the gateways that a VirtualService binds to: ``mesh``, or namespace/name."""
    return [
        name if name == "mesh" or "/" in name else f"{service.namespace}/{name}"
        for name in (str(gateway) for gateway in items(service.spec, "gateways"))
    ] or ["mesh"]


def route_targets(
    service: ConfigObject,
) -> Iterator[tuple[str, Any, Mapping[str, Any], int | None]]:
    """Yield each destination of a VirtualService: its path, its route, itself, its weight.

    The weight is None where the destination is the only one, and for a mirror.
    """
    for protocol in _PROTOCOLS:
        for number, route in enumerate(items(service.spec, protocol)):
            path = f"spec.{protocol}[{number}]"
            targets = items(route, "route")
            for position, target in enumerate(targets):
                weight = dig(target, "weight")
                share = weight if isinstance(weight, int) and len(targets) > 1 else None
                yield f"{path}.route[{position}]", route, mapping(target, "destination"), share
            if mapping(route, "mirror"):
                yield f"{path}.mirror", route, mapping(route, "mirror"), None
            for position, mirror in enumerate(items(route, "mirrors")):
                yield f"{path}.mirrors[{position}]", route, mapping(mirror, "destination"), None


def delegating(service: ConfigObject, mesh: Mesh) -> list[ConfigObject]:
    """Return the VirtualServices that hand requests on to one that has no hosts of its own."""
    return [
        root
        for root in mesh.of("VirtualService")
        for route in items(root.spec, "http")
        if dig(route, "delegate", "name") == service.name
        and dig(route, "delegate", "namespace", default=root.namespace) == service.namespace
    ]


def covered_by(service: ConfigObject, number: int, protocol: str = "http") -> int | None:
    """Return the first route that matches whatever a later one matches; None without one.

    Envoy takes the first route that matches, so the later one is never taken.
    """
    routes = items(service.spec, protocol)
    for earlier in range(number):
        if covers(routes[earlier], routes[number]):
            return earlier
    return None


def covers(earlier: Any, later: Any) -> bool:
    """Whether a route matches whatever another one matches."""
    first, second = items(earlier, "match"), items(later, "match") or [{}]
    return not first or all(any(_wider(wide, narrow) for wide in first) for narrow in second)


def _wider(wide: Any, narrow: Any) -> bool:
    if not isinstance(wide, Mapping) or not isinstance(narrow, Mapping):
        return False
    for key, condition in wide.items():
        if key in ("name", "statPrefix") or (key == "uri" and _any_path(condition)):
            continue
        other = narrow.get(key)
        if key == "sniHosts" and isinstance(condition, list):
            # In TLS and TCP routes, where these are.
            if other and all(any(host_matches(wide, one) for wide in condition) for one in other):
                continue
            return False
        if key == "uri" and isinstance(other, Mapping):
            prefix = dig(condition, "prefix")
            inner = dig(other, "exact") or dig(other, "prefix")
            if prefix and inner and str(inner).startswith(str(prefix)):
                continue
        if key in ("headers", "queryParams", "sourceLabels", "withoutHeaders"):
            if isinstance(condition, Mapping) and isinstance(other, Mapping):
                # Fewer conditions match more, except of those that must not hold.
                same = condition == other
                if same or (key != "withoutHeaders" and condition.items() <= other.items()):
                    continue
            return False
        if other != condition:
            return False
    return True


def _any_path(condition: Any) -> bool:
    return dig(condition, "prefix") == "/" or dig(condition, "regex") in (".*", "/.*", "^/.*$")


def overruled_by(service: ConfigObject, host: str, mesh: Mesh) -> ConfigObject | None:
    """Return the older VirtualService that decides for a host inside the mesh, if there is one.

    At gateways VirtualServices for one host are merged; for sidecars only the oldest that they see
    counts. One that is exported to chosen namespaces comes before one that all see (istiod's
    VirtualServicesForGateway), so such a pair shares the mesh.
    """
    rivals = [
        other
        for other in mesh.of("VirtualService")
        if "mesh" in bound_gateways(other)
        and host in route_hosts(other, mesh)
        and any(items(other.spec, protocol) for protocol in _PROTOCOLS)
    ]
    for older in oldest(rivals):
        if older is service:
            return None
        first, second = exported_to(older, mesh), exported_to(service, mesh)
        if ("*" in first) == ("*" in second) and ("*" in first or second <= first):
            return older
    return None


# --- Gateways -----------------------------------------------------------------------------------


def admitted_hosts(gateway: ConfigObject, namespace: str) -> list[str]:
    """Return the hosts that a Gateway admits from VirtualServices of a namespace."""
    found = []
    for server in items(gateway.spec, "servers"):
        for entry in items(server, "hosts"):
            scope, slash, host = str(entry).rpartition("/")
            if scope == ".":
                scope = gateway.namespace
            if not slash or scope in ("*", namespace):
                found.append(host)
    return found


def admits(gateway: ConfigObject, service: ConfigObject, mesh: Mesh) -> bool:
    """Whether a Gateway has a server for any host of a VirtualService."""
    hosts = route_hosts(service, mesh)
    known = admitted_hosts(gateway, service.namespace)
    return any(hosts_overlap(mine, other) for mine in hosts for other in known)


def gateway_pods(gateway: ConfigObject, mesh: Mesh) -> list[Pod]:
    """Return the running pods that serve a Gateway.

    Istio's own kind selects them by labels, in any namespace. Those of the Gateway API carry the
    Gateway's name as a label and stand in its namespace.
    """
    if gateway.group == GATEWAY_GROUP:
        return mesh.matching(mapping(gateway.spec, "selector"), None)
    label = {"gateway.networking.k8s.io/gateway-name": gateway.name}
    return mesh.matching(label, gateway.namespace)


# --- DestinationRules and Sidecars --------------------------------------------------------------


def rule_host(rule: ConfigObject, mesh: Mesh) -> str:
    """Return the host of a DestinationRule in full."""
    return mesh.fqdn(str(dig(rule.spec, "host", default="")), rule.namespace)


def host_rank(host: str) -> tuple[bool, int]:
    """Return how specific a host is, to compare it with others: a wildcard is less so."""
    return (not host.startswith("*"), len(host))


def more_specific_rule(rule: ConfigObject, host: str, mesh: Mesh) -> ConfigObject | None:
    """Return the DestinationRule of the same namespace that comes before one, for a host."""
    own = host_rank(rule_host(rule, mesh))
    for other in oldest(mesh.of("DestinationRule")):
        theirs = rule_host(other, mesh)
        if (
            other.namespace == rule.namespace
            and host_matches(theirs, host)
            and host_rank(theirs) > own
        ):
            return other
    return None


def sidecar_of(pod: Pod, mesh: Mesh) -> ConfigObject | None:
    """Return the Sidecar in force for a pod: by selector, its namespace's, or the mesh's."""
    own, namespace, whole = [], [], []
    for item in mesh.of("Sidecar"):
        labels = mapping(item.spec, "workloadSelector", "labels")
        if labels:
            if item.namespace == pod.namespace and labels.items() <= pod.labels.items():
                own.append(item)
        elif item.namespace == pod.namespace:
            namespace.append(item)
        elif item.namespace == mesh.root_namespace:
            whole.append(item)
    return next(iter(oldest(own) or oldest(namespace) or oldest(whole)), None)


def egress_lists(item: ConfigObject, host: str, namespace: str) -> bool:
    """Whether a Sidecar's egress lists a host of a namespace."""
    listeners = items(item.spec, "egress")
    if not listeners:
        return True
    for entry in (str(entry) for listener in listeners for entry in items(listener, "hosts")):
        scope, _, pattern = entry.rpartition("/")
        if scope == ".":
            scope = item.namespace
        if scope in ("*", namespace, "") and host_matches(pattern, host):
            return True
    return False


def reached_hosts(service: ConfigObject, mesh: Mesh) -> list[str]:
    """Return the hosts that a VirtualService has routes for; of a delegate, those of its roots."""
    own = route_hosts(service, mesh)
    if own:
        return own
    roots = delegating(service, mesh)
    return list(dict.fromkeys(host for root in roots for host in route_hosts(root, mesh)))


def host_namespaces(host: str, mesh: Mesh) -> list[str]:
    """Return the namespaces of the Services and ServiceEntries that define a host."""
    found = [port.namespace for port in mesh.ports(host)]
    found += [
        entry.namespace
        for entry in mesh.of("ServiceEntry")
        if any(host_matches(str(own), host) for own in items(entry.spec, "hosts"))
    ]
    return list(dict.fromkeys(found))


def rules_for(host: str, namespace: str, mesh: Mesh) -> list[ConfigObject]:
    """Return the DestinationRules that shape a host for the proxies of one namespace.

    istiod takes them from the first namespace that has one for the host: the proxy's own, that of
    the Service, the root namespace (Istio: ops/best-practices/traffic-management, cross-namespace
    configuration). Of that namespace only those with the most specific host count.
    """
    return _chosen(host, namespace, mesh.of("DestinationRule"), mesh)


def rules_for_pod(host: str, pod: Pod, mesh: Mesh) -> list[ConfigObject]:
    """Return the DestinationRules that a pod's proxy obeys for a host; see :func:`rules_for`.

    One with a workloadSelector is for pods with its labels in its own namespace.
    """
    obeyed = [rule for rule in mesh.of("DestinationRule") if _obeys(pod, rule)]
    return _chosen(host, pod.namespace, obeyed, mesh)


def _obeys(pod: Pod, rule: ConfigObject) -> bool:
    labels = mapping(rule.spec, "workloadSelector", "matchLabels")
    return not labels or (rule.namespace == pod.namespace and labels.items() <= pod.labels.items())


def _chosen(
    host: str, namespace: str, rules: Iterable[ConfigObject], mesh: Mesh
) -> list[ConfigObject]:
    known = [
        rule
        for rule in rules
        if host_matches(rule_host(rule, mesh), host) and visible(rule, namespace, mesh)
    ]
    own = [] if namespace == mesh.root_namespace else [namespace]
    for scope in dict.fromkeys((*own, *host_namespaces(host, mesh), mesh.root_namespace)):
        if found := [rule for rule in known if rule.namespace == scope]:
            best = max(host_rank(rule_host(rule, mesh)) for rule in found)
            return oldest(rule for rule in found if host_rank(rule_host(rule, mesh)) == best)
    return []
