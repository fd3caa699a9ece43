"""Who is meant to be in the ambient mesh, and whom ztunnel really stands in front of.

The node agent (istio-cni) takes a pod in by its labels or its namespace's, and writes the
annotation ``ambient.istio.io/redirection`` when it has done so. Its rules are those of
``AMBIENT_ENABLEMENT_SELECTOR`` as Istio's charts set it, and of ``PodRedirectionEnabled`` in Istio
1.30: hostNetwork, a sidecar, or an excluded namespace come before the labels.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from meshnb.tables import Facts
from meshnb.tables.base import Listed, dig, mapping
from meshnb.traces.mesh import Mesh, Pod

MODE = "istio.io/dataplane-mode"
REDIRECTION = "ambient.istio.io/redirection"
_SIDECAR_STATUS = "sidecar.istio.io/status"
_CONFIG_MAPS = Listed("v1", "configmaps", optional=True)
#: What the chart of istio-cni excludes when nothing else is said.
_EXCLUDED = frozenset({"kube-system"})


@dataclass(frozen=True, slots=True)
class Enrolment:
    """Whether labels ask for ambient mode, whether the pod is in, and what decides."""

    asked: bool
    captured: bool
    #: the label that decides, such as ``namespace label istio.io/dataplane-mode=ambient``
    label: str
    #: what keeps it out although the labels ask for it; empty when nothing that was recorded does
    kept_out: str

    @property
    def missing(self) -> bool:
        """Whether it should be in the ambient mesh and is not."""
        return self.asked and not self.captured

    @property
    def says(self) -> str:
        """Both in one sentence, without its full stop."""
        if self.captured:
            return f"ztunnel takes its traffic ({self.label or 'annotation ' + REDIRECTION})"
        if not self.asked:
            return (
                f"it is not in the ambient mesh ({self.label})"
                if self.label
                else "it is not in the ambient mesh: no label asks for it"
            )
        why = self.kept_out or f"the node agent has not set the annotation {REDIRECTION}"
        return f"{self.label} asks for ambient mode, but ztunnel does not take its traffic: {why}"


def enrolment_of(pod: Pod, namespaces: Mapping[str, Any], excluded: frozenset[str]) -> Enrolment:
    """Return a pod's enrolment, from the labels of all namespaces and those the agent excludes."""
    own = pod.labels.get(MODE)
    of_namespace = mapping(namespaces, pod.namespace).get(MODE)
    whose, mode = ("pod", own) if own else ("namespace", of_namespace)
    label = f"{whose} label {MODE}={mode}" if mode else ""
    captured = pod.annotations.get(REDIRECTION) == "enabled" and pod.mesh == "ambient"
    kept_out = ""
    if pod.mesh in ("sidecar", "gateway", "waypoint", "ztunnel", "istiod"):
        part = "a sidecar" if pod.mesh == "sidecar" else f"the part of {pod.mesh} in the mesh"
        kept_out = f"the pod has {part}"
    elif _SIDECAR_STATUS in pod.annotations:
        kept_out = f"the annotation {_SIDECAR_STATUS} says that it was injected"
    elif pod.host_network:
        kept_out = "it uses the node's network (hostNetwork)"
    elif pod.namespace in excluded:
        kept_out = f"istio-cni excludes the namespace {pod.namespace}"
    return Enrolment(mode == "ambient", captured, label, kept_out if mode == "ambient" else "")


def excluded_namespaces(facts: Facts) -> frozenset[str]:
    """Return the namespaces that the node agent leaves alone, from its ConfigMap if recorded."""
    for _, document in facts.objects(_CONFIG_MAPS):
        said = dig(document, "data", "EXCLUDE_NAMESPACES")
        if dig(document, "metadata", "name") == "istio-cni-config" and isinstance(said, str):
            return frozenset(re.split(r"[,\s]+", said.strip())) - {""}
    return _EXCLUDED


def enrolled(facts: Facts, mesh: Mesh) -> list[tuple[Pod, Enrolment]]:
    """Return each running pod with its enrolment."""
    excluded = excluded_namespaces(facts)
    return [(pod, enrolment_of(pod, mesh.namespaces, excluded)) for pod in mesh.pods if pod.running]
