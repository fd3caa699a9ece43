"""The table ``injection``: which pods have a sidecar, which should have one, and why not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from meshnb.sources.base import Question
from meshnb.tables.base import Column, Facts, Json, Listed, Row, Table, dig, items, records
from meshnb.tables.mesh_settings import parse_yaml
from meshnb.tables.metadata import labels_of
from meshnb.tables.namespaces import NEVER_INJECTED, chosen, injection_webhooks
from meshnb.tables.selectors import selects

_NAMESPACES = Listed("v1", "namespaces")
_CONFIG_MAPS = Listed("v1", "configmaps", optional=True)
#: The ConfigMap that an injector reads; one of a revision has its name behind a hyphen.
_INJECTOR = "istio-sidecar-injector"

INJECTION = Table(
    name="injection",
    grain="one row per pod",
    columns={
        "namespace": Column("string", "namespace of the pod", key=True),
        "pod": Column("string", "name of the pod", key=True),
        "workload_kind": Column("string", "kind of the workload it belongs to"),
        "workload": Column("string", "the workload it belongs to"),
        "injected": Column("boolean", "whether it has a proxy of its own"),
        "wanted": Column(
            "boolean", "whether a webhook selects it by the labels that are there now"
        ),
        "webhook": Column("string", "configuration/webhook that selects it"),
        "revision": Column("string", "revision of Istio that this webhook belongs to"),
        "opted_out_by": Column(
            "string", "the label, annotation or setting that keeps the proxy out"
        ),
        "reason": Column("string", "why it has a proxy or has none, as far as the objects tell"),
        "created": Column("datetime64[us, UTC]", "when the pod was created", passing=True),
    },
    istioctl="istioctl x check-inject -n NAMESPACE POD",
)

_SWITCH = "sidecar.istio.io/inject"


@INJECTION.derives
def _rows(facts: Facts) -> Iterator[tuple[Question, Row]]:
    injectors = facts.once(injection_webhooks)
    webhooks_known = bool(injectors) or not facts.gaps("webhooks")
    namespaces = {
        str(dig(document, "metadata", "name")): labels_of(document)
        for _, document in facts.objects(_NAMESPACES)
    }
    settings = _injectors(facts)
    for pod in records(facts["pods"]):
        namespace_labels = namespaces.get(str(pod["namespace"]))
        known = webhooks_known and namespace_labels is not None
        webhook = chosen(injectors, namespace_labels or {}, pod["labels"]) if known else None
        revision = webhook["revision"] if webhook else None
        setting = settings.get(str(revision or "default"))
        opted_out_by = _opted_out_by(pod, namespace_labels or {}) or (
            setting.keeps_out(pod) if setting and webhook else None
        )
        row = {
            "namespace": pod["namespace"],
            "pod": pod["pod"],
            "workload_kind": pod["workload_kind"],
            "workload": pod["workload"],
            "injected": pod["mesh"] in ("sidecar", "gateway", "waypoint"),
            "wanted": webhook is not None if known else None,
            "webhook": webhook["title"] if webhook else None,
            "revision": revision,
            "opted_out_by": opted_out_by,
            "reason": _of_its_own(pod)
            or (_by_choice(webhook, pod, opted_out_by) if known else _UNKNOWN)
            or _unasked(pod, namespace_labels or {}, injectors),
            "created": pod["created"],
        }
        yield facts.question(str(pod["question"])), row


@dataclass(frozen=True, slots=True)
class _Injector:
    """What an injector is told about pods that say nothing of themselves (Istio 1.30)."""

    title: str
    policy: str
    never: tuple[Json, ...]
    always: tuple[Json, ...]

    def keeps_out(self, pod: Mapping[Any, Any]) -> str | None:
        """Name the setting that keeps the proxy out of a pod; None when none does."""
        said = pod["labels"].get(_SWITCH, pod["annotations"].get(_SWITCH))
        if said in ("true", "false"):
            return None
        if any(selects(selector, pod["labels"]) for selector in self.never):
            return f"neverInjectSelector in {self.title}"
        if any(selects(selector, pod["labels"]) for selector in self.always):
            return None
        return None if self.policy == "enabled" else f"policy {self.policy} in {self.title}"


def _injectors(facts: Facts) -> Mapping[str, _Injector]:
    """Return the settings of each revision's injector, as far as they can be read."""
    found = {}
    for _, config_map in facts.objects(_CONFIG_MAPS):
        name = str(dig(config_map, "metadata", "name"))
        text = dig(config_map, "data", "config")
        if not name.startswith(_INJECTOR) or not isinstance(text, str):
            continue
        try:
            settings = parse_yaml(text)
        except ValueError:
            continue
        found[name.removeprefix(_INJECTOR).removeprefix("-") or "default"] = _Injector(
            title=f"ConfigMap {dig(config_map, 'metadata', 'namespace')}/{name}",
            policy=str(dig(settings, "policy", default="enabled")),
            never=tuple(items(settings, "neverInjectSelector")),
            always=tuple(items(settings, "alwaysInjectSelector")),
        )
    return found


def _opted_out_by(pod: Mapping[Any, Any], namespace_labels: Mapping[str, Any]) -> str | None:
    """Name what keeps the proxy out; the injector asks in this order (pkg/kube/inject, 1.30)."""
    label = pod["labels"].get(_SWITCH)
    if label == "false":
        return f"label {_SWITCH}=false on the pod"
    if namespace_labels.get("istio-injection") == "disabled":
        return "namespace label istio-injection=disabled"
    if pod["host_network"] is True:
        return "hostNetwork"
    if pod["namespace"] in NEVER_INJECTED:
        return f"namespace {pod['namespace']}, where the injector never injects"
    # The label on the pod wins over the annotation of the same name.
    if label is None and pod["annotations"].get(_SWITCH) == "false":
        return f"annotation {_SWITCH}=false on the pod"
    return None


def _of_its_own(pod: Mapping[Any, Any]) -> str | None:
    """Say why a pod is left out of the question; None when it is an ordinary one."""
    if pod["mesh"] in ("gateway", "waypoint"):
        return f"It is a {pod['mesh']}: the proxy is all that it runs."
    if pod["mesh"] in ("istiod", "ztunnel"):
        return f"It is {pod['mesh']}, a part of Istio itself."
    return None


def _by_choice(
    webhook: Mapping[str, Any] | None, pod: Mapping[Any, Any], opted_out_by: str | None
) -> str | None:
    """Say what follows from a webhook that selects a pod, or from what keeps the proxy out."""
    if pod["mesh"] == "sidecar":
        if webhook is None:
            return "It has a proxy, although no webhook selects it by the labels that it has now."
        return f"It has a proxy, as {webhook['title']} selects it."
    if opted_out_by is not None:
        return f"It has no proxy because of {opted_out_by}."
    if webhook is not None:
        return (
            f"It has no proxy, although {webhook['title']} selects it now: it was created before "
            "that was so, or the webhook was not called."
        )
    return None


def _unasked(
    pod: Mapping[Any, Any], namespace_labels: Mapping[str, Any], injectors: list[dict[str, Any]]
) -> str:
    """Say why no webhook selects a pod that does not opt out."""
    if pod["mesh"] == "ambient":
        return "It has no proxy and needs none: ztunnel takes its traffic, in ambient mode."
    if not injectors:
        return "It has no proxy: the cluster has no webhook of Istio that injects."
    revision = pod["labels"].get("istio.io/rev") or namespace_labels.get("istio.io/rev")
    if revision is not None:
        revisions = sorted({str(one["revision"]) for one in injectors if one["revision"]})
        return (
            f"It has no proxy: istio.io/rev={revision} is asked for, and no webhook serves that. "
            f"The webhooks belong to revision {', '.join(revisions) or 'none'}."
        )
    if namespace_labels.get("istio-injection") == "enabled":
        return (
            "It has no proxy: the namespace has istio-injection=enabled, and no webhook selects "
            "that together with the pod's labels."
        )
    return "It has no proxy: neither its namespace nor its own labels ask for one."


_UNKNOWN = "Whether a webhook selects it is not known: webhooks or namespaces could not be read."
