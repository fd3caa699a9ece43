"""Which proxies should hold the same, because istiod makes it from the same input."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from meshnb.tables import Facts
from meshnb.tables.base import items, mapping
from meshnb.traces.mesh import Mesh, Pod
from meshnb.traces.rules import sidecar_of, workload_labels


@dataclass(frozen=True, slots=True)
class Group:
    """Proxies that should hold the same, as far as ``scope`` reaches."""

    scope: str
    proxies: tuple[str, ...]
    outbound: bool
    inbound: bool


def groups(facts: Facts, mesh: Mesh) -> tuple[Group, ...]:
    """Return the groups of proxies that should hold the same, each of two or more.

    Pods of one workload share everything. Sidecars of one namespace share what leaves them: unless
    another Sidecar object is in force for them, or an object with a selector of its own acts on
    some of them only, or they are of another version of Istio, istiod makes it from the same input.
    """
    images = dict(zip(facts["pods"]["proxy"], facts["pods"]["proxy_image"], strict=True))
    by_workload: dict[tuple[str, ...], list[str]] = {}
    by_view: dict[tuple[Any, ...], list[str]] = {}
    for pod in mesh.pods:
        if not pod.proxy or not pod.running:
            continue
        sidecar = sidecar_of(pod, mesh) if pod.mesh == "sidecar" else None
        view = (pod.namespace, str(images.get(pod.proxy)), str(sidecar), *_selecting(pod, mesh))
        if pod.mesh == "sidecar":
            by_view.setdefault(view, []).append(pod.proxy)
        workload = (pod.mesh, *view, pod.workload_kind, pod.workload)
        by_workload.setdefault(workload, []).append(pod.proxy)
    found = [
        Group(
            f"what {'enters the pod' if workload[0] == 'sidecar' else 'it holds'}, "
            f"as a pod of {workload[-2]} {workload[1]}/{workload[-1]}",
            tuple(sorted(proxies)),
            # What leaves a sidecar is compared among more of them, below.
            outbound=workload[0] != "sidecar",
            inbound=True,
        )
        for workload, proxies in by_workload.items()
        if len(proxies) > 1
    ]
    found += [
        Group(
            f"what leaves the pod, as a sidecar of namespace {view[0]}",
            tuple(sorted(proxies)),
            outbound=True,
            inbound=False,
        )
        for view, proxies in by_view.items()
        if len(proxies) > 1
    ]
    return tuple(found)


def _selecting(pod: Pod, mesh: Mesh) -> Iterator[str]:
    """Name the objects with a selector of their own that shape what leaves a pod."""
    for item in mesh.objects:
        if item.namespace not in (pod.namespace, mesh.root_namespace):
            continue
        wanted: list[Mapping[str, Any]] = []
        if item.kind in ("EnvoyFilter", "Telemetry", "WasmPlugin", "TrafficExtension"):
            wanted = [workload_labels(item)]
        elif item.kind == "DestinationRule":
            wanted = [mapping(item.spec, "workloadSelector", "matchLabels")]
        elif item.kind == "VirtualService":
            wanted = [
                mapping(match, "sourceLabels")
                for protocol in ("http", "tls", "tcp")
                for route in items(item.spec, protocol)
                for match in items(route, "match")
            ]
        for position, labels in enumerate(wanted):
            if labels and labels.items() <= pod.labels.items():
                yield f"{item} {position}"
