"""The table ``injector_namespaces``: which revision a namespace gives, and which its pods have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from meshnb.sources.base import Question
from meshnb.tables.base import Column, Facts, Json, Listed, Row, Table, dig, items, mapping, records
from meshnb.tables.metadata import labels_of
from meshnb.tables.namespaces import NEVER_INJECTED
from meshnb.tables.selectors import selects

_NAMESPACES = Listed("v1", "namespaces")
_MUTATING = Listed("admissionregistration.k8s.io", "mutatingwebhookconfigurations")

INJECTOR_NAMESPACES = Table(
    name="injector_namespaces",
    grain="one row per namespace that can have sidecars and revision that its pods have",
    istioctl="istioctl experimental injector list (first table)",
    columns={
        "namespace": Column("string", "name of the namespace", key=True),
        "istio_revision": Column(
            "string",
            "revision of the webhook configuration that selects the namespace, whatever it wants of"
            " pods; MISSING/REVISION when none serves the one that is asked for",
        ),
        "pod_revisions": Column("string", "revision and number of pods, as istioctl prints it"),
        "revision": Column(
            "string", "revision that these pods were injected by; NA for pods without one", key=True
        ),
        "pods": Column("Int64", "how many pods that are"),
        "injection_disabled": Column("Int64", "how many of them opt out"),
        "needs_restart": Column(
            "Int64", "how many of the others have another revision than the namespace would give"
        ),
    },
)


@dataclass(slots=True)
class _Count:
    pods: int = 0
    disabled: int = 0
    needs_restart: int = 0


@INJECTOR_NAMESPACES.derives
def _rows(facts: Facts) -> Iterator[tuple[Question, Row]]:
    """List as istioctl does (``istioctl/pkg/injector``).

    Left out are Kubernetes' own namespaces, Istio's, ambient ones, and those without pods in which
    nothing injects.
    """
    hooks = [hook for _, hook in injection_hooks(facts)]
    pods: dict[str | None, list[Row]] = {}
    for pod in records(facts["pods"]):
        pods.setdefault(pod["namespace"], []).append(pod)
    for question, namespace in injected_namespaces(facts):
        name = str(dig(namespace, "metadata", "name"))
        revision = _revision(labels_of(namespace), hooks)
        counts: dict[str, _Count] = {}
        for pod in pods.get(name, []):
            own = str(pod["revision"] or "")
            count = counts.setdefault(own, _Count())
            count.pods += 1
            if _opts_out(pod):
                count.disabled += 1
            elif own != revision:
                count.needs_restart += 1
        if not counts and revision:
            counts[""] = _Count()
        for own, count in sorted(counts.items()):
            row = {
                "namespace": name,
                "istio_revision": revision,
                "pod_revisions": _text(own, count),
                "revision": own or None,
                "pods": count.pods,
                "injection_disabled": count.disabled,
                "needs_restart": count.needs_restart,
            }
            yield question, row


def injection_hooks(facts: Facts) -> list[tuple[Question, Json]]:
    """Return the configurations of the sidecar injector, in the order of names."""
    found = [
        (question, hook)
        for question, hook in facts.objects(_MUTATING)
        if labels_of(hook).get("app") == "sidecar-injector"
    ]
    return sorted(found, key=_name)


def injected_namespaces(facts: Facts) -> list[tuple[Question, Json]]:
    """Return the namespaces that can have sidecars, in the order of names, with their question."""
    pods, webhooks = facts["pods"], facts["webhooks"]
    of_istio = {
        *pods[pods["mesh"] == "istiod"]["namespace"],
        *webhooks["service_namespace"].dropna(),  # an istiod that is gone has left its webhooks
    }
    found = [
        (question, namespace)
        for question, namespace in facts.objects(_NAMESPACES)
        if dig(namespace, "metadata", "name") not in {*NEVER_INJECTED, *of_istio}
        and labels_of(namespace).get("istio.io/dataplane-mode") != "ambient"
    ]
    return sorted(found, key=_name)


def _name(entry: tuple[Question, Json]) -> str:
    return str(dig(entry[1], "metadata", "name"))


def _revision(labels: Mapping[str, Any], hooks: list[Json]) -> str:
    for hook in hooks:
        if any(
            selects(mapping(webhook, "namespaceSelector"), labels)
            for webhook in items(hook, "webhooks")
        ):
            return str(labels_of(hook).get("istio.io/rev", ""))
    if wanted := labels.get("istio.io/rev"):
        return f"MISSING/{wanted}"
    if labels.get("istio-injection", "disabled") != "disabled":
        return "MISSING/istio-injection"
    return ""


def _opts_out(pod: Mapping[Any, Any]) -> bool:
    switch = "sidecar.istio.io/inject"
    own = pod["labels"].get(switch, pod["annotations"].get(switch))
    return str(own).lower() == "false"


def _text(revision: str, count: _Count) -> str:
    if not count.pods:
        return "<no pods>"
    text = f"{revision or '<non-Istio>'}: {count.pods}"
    if count.disabled:
        text += f" (injection disabled: {count.disabled})"
    if count.needs_restart:
        text += f" NEEDS RESTART: {count.needs_restart}"
    return text
