"""The table ``pods``: every pod, which workload it belongs to, and what part it has in the mesh."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from meshnb.sources.base import Question
from meshnb.tables.base import Column, Facts, Json, Listed, Row, Table, dig, items
from meshnb.tables.metadata import (
    annotations_of,
    condition,
    condition_holds,
    labels_of,
    owner_of,
)

_PODS = Listed("v1", "pods")
_REPLICA_SETS = Listed("apps", "replicasets", optional=True)
_JOBS = Listed("batch", "jobs", optional=True)

PODS = Table(
    name="pods",
    grain="one row per pod",
    asks=(_PODS, _REPLICA_SETS, _JOBS),
    columns={
        "namespace": Column("string", "namespace of the pod", key=True),
        "pod": Column("string", "name of the pod", key=True),
        "node": Column("string", "the node it runs on"),
        "address": Column("string", "its IP address"),
        "phase": Column("string", "Pending, Running, Succeeded, Failed or Unknown"),
        "ready": Column("boolean", "whether its condition Ready is True"),
        "ready_since": Column("datetime64[us, UTC]", "since when ready is as it is", passing=True),
        "not_ready_reason": Column("string", "why it is not ready, in Kubernetes' words"),
        "created": Column("datetime64[us, UTC]", "when it was created", passing=True),
        "deleted": Column(
            "datetime64[us, UTC]", "when it is to be gone; absent if not being deleted"
        ),
        "service_account": Column("string", "the service account it runs as"),
        "workload_kind": Column(
            "string", "kind of its topmost owner, such as Deployment; Pod when it has no owner"
        ),
        "workload": Column("string", "name of its topmost owner"),
        "mesh": Column(
            "string",
            "its part in the mesh: istiod, ztunnel, gateway, waypoint, sidecar, ambient or none",
        ),
        "proxy": Column("string", "its proxy as pod.namespace, for a sidecar, gateway or waypoint"),
        "revision": Column(
            "string", "the revision of Istio that it was injected by, or that an istiod has"
        ),
        "proxy_image": Column("string", "image of the container istio-proxy"),
        "host_network": Column("boolean", "whether it uses the node's own network"),
        "restarts": Column(
            "Int64", "how often its app containers were started again, all together"
        ),
        "named_ports": Column("object", "dict: number of each port of its containers with a name"),
        "labels": Column("object", "its labels, a dict"),
        "annotations": Column("object", "its annotations, a dict"),
    },
)


@PODS.derives
def _rows(facts: Facts) -> Iterator[tuple[Question, Row]]:
    owners: dict[tuple[str, str, str], tuple[str, str] | None] = {}
    for kind, listed in (("ReplicaSet", _REPLICA_SETS), ("Job", _JOBS)):
        for _, document in facts.objects(listed):
            namespace, name = (
                dig(document, "metadata", "namespace"),
                dig(document, "metadata", "name"),
            )
            owners[kind, str(namespace), str(name)] = owner_of(document)

    def read(pod: Json, question: Question, facts: Facts) -> Iterator[Row]:
        yield _row(pod, owners)

    yield from facts.read(_PODS, read)


def _row(pod: Json, owners: Mapping[tuple[str, str, str], tuple[str, str] | None]) -> Row:
    namespace, name = dig(pod, "metadata", "namespace"), dig(pod, "metadata", "name")
    labels, annotations = labels_of(pod), annotations_of(pod)
    ready = condition_holds(pod, "Ready")
    workload_kind, workload = _workload(pod, owners)
    mesh = mesh_part(pod)
    return {
        "namespace": namespace,
        "pod": name,
        "node": dig(pod, "spec", "nodeName"),
        "address": dig(pod, "status", "podIP"),
        "phase": dig(pod, "status", "phase"),
        "ready": ready,
        "ready_since": condition(pod, "Ready").get("lastTransitionTime"),
        "not_ready_reason": None if ready else _why_not_ready(pod),
        "created": dig(pod, "metadata", "creationTimestamp"),
        "deleted": dig(pod, "metadata", "deletionTimestamp"),
        "service_account": dig(pod, "spec", "serviceAccountName"),
        "workload_kind": workload_kind,
        "workload": workload,
        "mesh": mesh,
        "proxy": f"{name}.{namespace}" if mesh in ("sidecar", "gateway", "waypoint") else None,
        "revision": _revision(annotations, labels, mesh),
        "proxy_image": dig(proxy_container(pod), "image"),
        "host_network": dig(pod, "spec", "hostNetwork", default=False),
        "restarts": _restarts(pod, mesh),
        "named_ports": _named_ports(pod),
        "labels": labels,
        "annotations": annotations,
    }


def _named_ports(pod: Json) -> dict[str, int]:
    found: dict[str, int] = {}
    # Native sidecars stand among the init containers, and Services may lead to them, too.
    for container in items(pod, "spec", "containers") + items(pod, "spec", "initContainers"):
        for port in items(container, "ports"):
            number = dig(port, "containerPort")
            if isinstance(dig(port, "name"), str) and isinstance(number, int):
                found.setdefault(dig(port, "name"), number)
    return found


def proxy_container(pod: Json) -> Json:
    """Return the container ``istio-proxy`` of a pod, None when it has none.

    As a native sidecar (istiod's ENABLE_NATIVE_SIDECARS) it stands among the init containers.
    """
    for container in items(pod, "spec", "containers") + items(pod, "spec", "initContainers"):
        if dig(container, "name") == "istio-proxy":
            return container
    return None


def mesh_part(pod: Json) -> str:
    """Return the part that a pod has in the mesh; see the column ``mesh`` of the table ``pods``.

    What the container istio-proxy runs is told by its arguments: ``proxy sidecar``, ``proxy
    router`` for a gateway, ``proxy waypoint`` and ``proxy ztunnel``.
    """
    labels = labels_of(pod)
    containers = items(pod, "spec", "containers")
    if labels.get("app") == "istiod" or any(dig(one, "name") == "discovery" for one in containers):
        return "istiod"
    proxy = proxy_container(pod)
    arguments = items(proxy, "args")
    if "ztunnel" in arguments or labels.get("app") == "ztunnel":
        return "ztunnel"
    if proxy is not None:
        if "waypoint" in arguments or "mesh" in str(labels.get("gateway.istio.io/managed", "")):
            return "waypoint"
        if "router" in arguments or ("sidecar" not in arguments and containers == [proxy]):
            return "gateway"
        return "sidecar"
    if annotations_of(pod).get("ambient.istio.io/redirection") == "enabled":
        return "ambient"
    return "none"


def _workload(
    pod: Json, owners: Mapping[tuple[str, str, str], tuple[str, str] | None]
) -> tuple[str, Any]:
    namespace = str(dig(pod, "metadata", "namespace"))
    owner = owner_of(pod)
    if owner is None or owner[0] == "Node":  # the kubelet owns its static pods by the node's name
        return "Pod", dig(pod, "metadata", "name")
    kind, name = owner
    if (kind, namespace, name) in owners:
        return owners[kind, namespace, name] or owner
    suffix = f"-{labels_of(pod).get('pod-template-hash')}"
    if kind == "ReplicaSet" and name.endswith(suffix) and name != suffix:
        return "Deployment", name.removesuffix(suffix)
    return owner


def _why_not_ready(pod: Json) -> str | None:
    for kind in ("Ready", "ContainersReady"):
        said = condition(pod, kind)
        words = [str(said[part]) for part in ("reason", "message") if said.get(part)]
        if words:
            return ": ".join(words)
    return None


def _revision(annotations: Mapping[str, Any], labels: Mapping[str, Any], mesh: str) -> Any:
    if mesh == "istiod":
        return labels.get("istio.io/rev")
    if annotations.get("istio.io/rev"):
        return annotations["istio.io/rev"]
    try:
        status = json.loads(annotations.get("sidecar.istio.io/status") or "null")
    except (TypeError, ValueError, RecursionError):
        return None
    return dig(status, "revision")


def _restarts(pod: Json, mesh: str) -> int | None:
    counts = [
        dig(status, "restartCount")
        for status in items(pod, "status", "containerStatuses")
        if mesh != "sidecar" or dig(status, "name") != "istio-proxy"
    ]
    known = [count for count in counts if isinstance(count, int)]
    return sum(known) if known else None
