"""Policies that are attached to a pod by a selector or by targetRefs."""

from __future__ import annotations

from collections.abc import Iterator

from meshnb.tables.base import Json, dig, items
from meshnb.traces.describe.base import Acting
from meshnb.traces.describe.known import GATEWAY_NAME, Known
from meshnb.traces.describe.waypoints import waypoint_of
from meshnb.traces.describe.words import labels_said, listed, mismatch
from meshnb.traces.mesh import ConfigObject, Pod, oldest
from meshnb.traces.rules import GATEWAY_API_GROUP, target_references, workload_labels

#: Policies that are attached by selector or targetRefs, in the order in which they are told.
_ATTACHED = (
    "AuthorizationPolicy",
    "RequestAuthentication",
    "EnvoyFilter",
    "Telemetry",
    "WasmPlugin",
    "TrafficExtension",
    "ProxyConfig",
)
#: Of these only what names a waypoint reaches it (istiod's WorkloadPolicyMatcher, 1.30).
_BY_NAME_AT_WAYPOINTS = (
    "AuthorizationPolicy",
    "RequestAuthentication",
    "WasmPlugin",
    "TrafficExtension",
)
#: Where in a proxy an EnvoyFilter's patch applies, by what kind of proxy has such a place.
_CONTEXTS = {
    "sidecar": ("SIDECAR_INBOUND", "SIDECAR_OUTBOUND"),
    "gateway": ("GATEWAY",),
    "waypoint": ("WAYPOINT",),
}
_PROXIED = ("sidecar", "gateway", "waypoint")


def attached_policies(known: Known, pod: Pod) -> Iterator[Acting]:
    """Yield what has a selector or targetRefs, of kinds but PeerAuthentication and Sidecar."""
    for kind in _ATTACHED:
        near = [
            item
            for item in known.mesh.of(kind)
            if item.namespace in (pod.namespace, known.mesh.root_namespace)
            or target_references(item)
        ]
        judged = [Acting(item, *_attached(known, item, pod)) for item in near]
        chosen = [one.item for one in judged if one.acts]
        for one in judged:
            first = next(
                iter(oldest(rival for rival in chosen if _level(rival) == _level(one.item))),
                None,
            )
            if kind == "Telemetry" and one.acts and first is not one.item:
                yield Acting(one.item, acts=False, why=f"only the oldest counts: {first}")
            elif one.acts or one.item.namespace in (pod.namespace, known.mesh.root_namespace):
                yield one


def _attached(known: Known, item: ConfigObject, pod: Pod) -> tuple[bool, str]:
    """Say whether a policy is attached to a pod, by its selector or by targetRefs."""
    able = _able(item, pod)
    references = target_references(item)
    if references:
        found = [_referred(known, item, reference, pod) for reference in references]
        acting = next((why for acts, why in found if acts), None)
        if acting is not None:
            return (False, able) if able else (True, acting)
        return False, "; ".join(dict.fromkeys(why for _, why in found))
    if item.namespace not in (pod.namespace, known.mesh.root_namespace):
        return False, f"it is for namespace {item.namespace}"
    labels = workload_labels(item)
    if not labels.items() <= pod.labels.items():
        return False, mismatch(labels, pod)
    if able:
        return False, able
    if pod.mesh == "waypoint" and item.kind in _BY_NAME_AT_WAYPOINTS:
        return False, "a waypoint takes only what names it in targetRefs"
    what = _effect(item)
    if labels:
        return True, f"selects {labels_said(labels)}{what}"
    mesh_wide = item.namespace == known.mesh.root_namespace
    return True, f"is for {'the whole mesh' if mesh_wide else 'its whole namespace'}{what}"


def _able(item: ConfigObject, pod: Pod) -> str:
    """Say why nothing in front of a pod could do what an object asks; empty when it can."""
    if pod.mesh == "ambient":
        if item.kind == "AuthorizationPolicy" or _at_waypoint(item):
            return ""
        return f"ztunnel, which is in front of the pod, knows no {item.kind}"
    if pod.mesh not in _PROXIED:
        return "no proxy of the mesh is in front of the pod"
    if item.kind == "EnvoyFilter":
        contexts = {
            str(dig(patch, "match", "context", default="ANY"))
            for patch in items(item.spec, "configPatches")
        }
        if contexts and not contexts & {"ANY", *_CONTEXTS[pod.mesh]}:
            return f"its patches are for {listed(sorted(contexts))} only"
    return ""


def _at_waypoint(item: ConfigObject) -> bool:
    kinds = {dig(reference, "kind") for reference in target_references(item)}
    return bool(kinds & {"Service", "ServiceEntry"})


def _referred(known: Known, item: ConfigObject, reference: Json, pod: Pod) -> tuple[bool, str]:
    kind, name = (
        str(dig(reference, "kind", default="")),
        str(dig(reference, "name", default="")),
    )
    title = f"{kind} {item.namespace}/{name}"
    own_gateway = str(pod.labels.get(GATEWAY_NAME, ""))
    if kind == "Gateway":
        mine = own_gateway == name and pod.namespace == item.namespace
        return mine, f"is attached to {title}" + _effect(item)
    if kind == "GatewayClass":
        classes = {
            str(dig(gateway.spec, "gatewayClassName"))
            for gateway in known.mesh.of("Gateway", GATEWAY_API_GROUP)
            if (gateway.namespace, gateway.name) == (pod.namespace, own_gateway)
        }
        mine = name in classes and item.namespace == known.mesh.root_namespace
        return mine, f"is attached to GatewayClass {name}" + _effect(item)
    if kind != "Service":
        return False, f"is attached to {title}"
    labels = known.service_labels(item.namespace, name)
    waypoint = waypoint_of(known, (labels, "Service"), item.namespace)
    if waypoint is None or not waypoint.pods:
        return False, f"is attached to {title}, which has no waypoint to obey it"
    if (waypoint.namespace, waypoint.name) == (pod.namespace, own_gateway):
        return True, f"is attached to {title}, for which the pod is the waypoint"
    behind = any(
        ports[0].namespace == item.namespace and ports[0].service == name
        for ports in known.behind(pod)
    )
    if behind:
        return True, f"is attached to {title}: its waypoint {waypoint.name} obeys it"
    return False, f"is attached to {title}"


def _level(item: ConfigObject) -> tuple[bool, str]:
    return bool(workload_labels(item) or target_references(item)), item.namespace


def _effect(item: ConfigObject) -> str:
    if item.kind != "AuthorizationPolicy":
        return ""
    action = str(dig(item.spec, "action", default="ALLOW"))
    rules = len(items(item.spec, "rules"))
    return f"; {action} with {rules} rule{'' if rules == 1 else 's'}"
