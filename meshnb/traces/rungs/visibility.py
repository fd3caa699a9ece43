"""Who sees an object: which istiods take it, which proxies, and what comes before it there."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from meshnb.errors import nearest
from meshnb.tables.base import Json, dig, items, mapping
from meshnb.traces.mesh import ConfigObject, Mesh, Pod, host_matches, hosts_overlap, oldest
from meshnb.traces.rules import egress_lists, rule_host, rules_for_pod

_REVISION = "istio.io/rev"
#: What an istiod holds of all kinds.


def istiods(mesh: Mesh) -> list[Pod]:
    """Return the istiods that are meant to run."""
    return [pod for pod in mesh.pods if pod.mesh == "istiod" and pod.running]


def ignored_by(item: ConfigObject, istiod: Pod, mesh: Mesh) -> str:
    """Say why an istiod leaves an object out on purpose; empty when it does not.

    It takes objects of its own revision and those without one, of the namespaces that the mesh's
    discoverySelectors choose (https://istio.io/latest/docs/reference/config/istio.mesh.v1alpha1/).
    """
    wanted, own = item.labels.get(_REVISION), istiod.labels.get(_REVISION, "default")
    if wanted and wanted not in (own, istiod.labels.get("istio.io/tag")):
        return f"its label {_REVISION}={wanted} is for another revision than {own}"
    if not discovered(item.namespace, mesh):
        return f"discoverySelectors leave out the namespace {item.namespace}"
    return ""


def discovered(namespace: str, mesh: Mesh) -> bool:
    """Whether the mesh's discoverySelectors choose a namespace; without any they choose all."""
    try:
        selectors = json.loads(mesh.settings.get("discoverySelectors") or "[]")
    except ValueError:
        return True
    if not isinstance(selectors, list) or not selectors or not namespace:
        return True
    if namespace in mesh.control_plane_namespaces or namespace == mesh.root_namespace:
        return True
    labels = mesh.namespaces.get(namespace)
    return labels is None or any(selects(selector, labels) for selector in selectors)


def selects(selector: Json, labels: Mapping[str, Any]) -> bool:
    """Whether a Kubernetes label selector, with labels and expressions, chooses labels."""
    if not mapping(selector, "matchLabels").items() <= labels.items():
        return False
    for expression in items(selector, "matchExpressions"):
        key, operator = dig(expression, "key"), dig(expression, "operator")
        values, value = items(expression, "values"), labels.get(str(key))
        holds = {
            "In": value in values,
            "NotIn": value not in values,
            "Exists": value is not None,
            "DoesNotExist": value is None,
        }
        if not holds.get(str(operator), True):
            return False
    return True


def imports(sidecar: ConfigObject | None, namespace: str, host: str) -> bool:
    """Whether a Sidecar's egress lists a host that a namespace defines; without one, all do."""
    return sidecar is None or egress_lists(sidecar, host, namespace)


def rule_for(pod: Pod, host: str, mesh: Mesh) -> ConfigObject | None:
    """Return the DestinationRule that a client's proxy takes for a host, the oldest of several."""
    return next(iter(rules_for_pod(host, pod, mesh)), None)


def same_host(rule: ConfigObject, mesh: Mesh) -> ConfigObject | None:
    """Return the older DestinationRule of the same namespace and host, which it is merged into."""
    wanted = mapping(rule.spec, "workloadSelector")
    rivals = [
        other
        for other in mesh.of("DestinationRule")
        if other.namespace == rule.namespace
        and rule_host(other, mesh) == rule_host(rule, mesh)
        and mapping(other.spec, "workloadSelector") == wanted
    ]
    first = oldest(rivals)[0] if rivals else rule
    return None if first is rule else first


def homes(host: str, mesh: Mesh) -> dict[str, str]:
    """Return each known host that a host, perhaps a wildcard, covers, with its namespace."""
    found = {port.host: port.namespace for port in mesh.services if host_matches(host, port.host)}
    for entry in mesh.of("ServiceEntry"):
        for name in map(str, items(entry.spec, "hosts")):
            if hosts_overlap(host, name):
                found.setdefault(name, entry.namespace)
    return found


def nearest_host(host: str, mesh: Mesh) -> str:
    """Return the sentence that offers the hosts nearest to one that is not known."""
    same = sorted(
        known for known in mesh.hosts if known.split(".")[0] == host.split(".", maxsplit=1)[0]
    )
    return f"Did you mean {' or '.join(same[:3])}?" if same else nearest(host, mesh.hosts)


def labels_text(labels: Mapping[str, Any]) -> str:
    """Return labels in a sentence."""
    return ", ".join(f"{key}={value}" for key, value in labels.items())


def listed(names: Iterable[str], limit: int = 4) -> str:
    """Return names in a sentence, the first of many."""
    every = list(dict.fromkeys(names))
    more = f" and {len(every) - limit} others" if len(every) > limit else ""
    return ", ".join(every[:limit]) + more
