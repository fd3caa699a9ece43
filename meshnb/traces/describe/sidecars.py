"""Sidecar objects, of which one narrows what a proxy is sent."""

from __future__ import annotations

from collections.abc import Iterator

from meshnb.tables.base import mapping
from meshnb.traces.describe.base import Acting
from meshnb.traces.describe.known import Known
from meshnb.traces.describe.words import mismatch
from meshnb.traces.mesh import Pod
from meshnb.traces.rules import sidecar_of


def sidecars(known: Known, pod: Pod) -> Iterator[Acting]:
    """Yield the Sidecar that narrows what a pod's proxy is sent, and those that do not."""
    chosen = sidecar_of(pod, known.mesh)
    for item in known.mesh.of("Sidecar"):
        if item.namespace not in (pod.namespace, known.mesh.root_namespace):
            continue
        labels = mapping(item.spec, "workloadSelector", "labels")
        if pod.mesh != "sidecar":
            yield Acting(item, acts=False, why="the pod has no sidecar")
        elif item is chosen:
            yield Acting(item, acts=True, why="it narrows what the pod's proxy is sent")
        elif labels and (
            item.namespace != pod.namespace or not labels.items() <= pod.labels.items()
        ):
            yield Acting(item, acts=False, why=mismatch(labels, pod))
        else:
            yield Acting(item, acts=False, why=f"{chosen} comes before it")
