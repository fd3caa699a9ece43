"""The table ``check_inject``: what each injection webhook does with each pod, as istioctl says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from meshnb.sources.base import Question
from meshnb.tables.base import Column, Facts, Json, Listed, Row, Table, dig, items, mapping, records
from meshnb.tables.metadata import labels_of
from meshnb.tables.selectors import selects

_NAMESPACES = Listed("v1", "namespaces")

CHECK_INJECT = Table(
    name="check_inject",
    grain="one row per pod and webhook configuration of Istio that mutates",
    istioctl="istioctl experimental check-inject -n NAMESPACE POD",
    columns={
        "namespace": Column("string", "namespace of the pod", key=True),
        "pod": Column("string", "name of the pod", key=True),
        "webhook": Column("string", "name of the webhook configuration", key=True),
        "revision": Column("string", "revision of Istio that it belongs to"),
        "injected": Column(
            "boolean", "whether it selects the pod by the labels that are there now; NA if unknown"
        ),
        "reason": Column("string", "why, in istioctl's words"),
        "by": Column("string", "the webhook within the configuration that decides"),
        "conflict": Column("boolean", "whether other configurations select the pod, too"),
    },
)

_NEVER = {"matchLabels": {"istio.io/deactivated": "never-match"}}
_DEACTIVATED = "The injection webhook is deactivated, and will never match labels."
_UNKNOWN = "The labels of the namespace are not known."


@CHECK_INJECT.derives
def _rows(facts: Facts) -> Iterator[tuple[Question, Row]]:
    """Ask each configuration as istioctl does, in the order of names; see ``pkg/checkinject``.

    Only labels decide here. A webhook that selects a pod is called, and may still leave it alone:
    for hostNetwork, an annotation, or a namespace of Kubernetes' own; see the table ``injection``.
    """
    configurations = _configurations(facts)
    namespaces = {
        str(dig(document, "metadata", "name")): labels_of(document)
        for _, document in facts.objects(_NAMESPACES)
    }
    pods = facts["pods"]
    for namespace, pod, labels, title in zip(
        pods["namespace"], pods["pod"], pods["labels"], pods["question"], strict=True
    ):
        around = namespaces.get(str(namespace))
        rows = [
            {
                "namespace": namespace,
                "pod": pod,
                "webhook": name,
                "revision": webhooks[0]["revision"],
                **({"reason": _UNKNOWN} if around is None else _judged(webhooks, around, labels)),
            }
            for name, webhooks in configurations.items()
        ]
        chosen = sum(row.get("injected") is True for row in rows)
        for row in rows:
            known = around is not None
            row["conflict"] = row.get("injected") is True and chosen > 1 if known else None
            yield facts.question(str(title)), row


def _configurations(facts: Facts) -> dict[str, list[dict[Any, Any]]]:
    found: dict[str, list[dict[Any, Any]]] = {}
    for row in records(facts["webhooks"]):
        if row["kind"] == "mutating":
            found.setdefault(str(row["configuration"]), []).append(row)
    return dict(sorted(found.items()))


def _judged(
    webhooks: list[dict[Any, Any]],
    namespace_labels: Mapping[str, Any],
    pod_labels: Mapping[str, Any],
) -> Row:
    for webhook in webhooks:
        row = _decided(webhook, namespace_labels, pod_labels)
        if row is not None:
            return {**row, "by": webhook["webhook"]}
    if any(w["namespace_selector"] == w["object_selector"] == _NEVER for w in webhooks):
        return {"injected": False, "reason": _DEACTIVATED}
    around = ", ".join(pair for w in webhooks for pair in _wanted(w["namespace_selector"]))
    own = ", ".join(pair for w in webhooks for pair in _wanted(w["object_selector"]))
    return {
        "injected": False,
        "reason": f"No matching namespace labels ({around}) or pod labels ({own})",
    }


def _decided(
    webhook: Mapping[Any, Any], namespace_labels: Mapping[str, Any], pod_labels: Mapping[str, Any]
) -> Row | None:
    """Say what one webhook decides, None when it leaves the question to the next one."""
    around, own = webhook["namespace_selector"], webhook["object_selector"]
    around_selects, own_selects = selects(around, namespace_labels), selects(own, pod_labels)
    if around_selects and own_selects:
        reasons = [
            f"{of} label {pair} matches"
            for of, pair in (
                ("Namespace", _matched(around, namespace_labels)),
                ("Pod", _matched(own, pod_labels)),
            )
            if pair
        ]
        if not reasons:
            return None
        if len(reasons) > 1:
            reasons[1] = f"and pod{reasons[1].removeprefix('Pod')}"
        return {"injected": True, "reason": ", ".join(reasons)}
    if around_selects:
        for expression in items(own, "matchExpressions"):
            key = str(dig(expression, "key"))
            if key in pod_labels and _excludes(expression, pod_labels[key]):
                pair = f"{key}={pod_labels[key]}"
                return {
                    "injected": False,
                    "reason": f"Pod has {pair} label, preventing injection",
                }
    elif own_selects and namespace_labels.get("istio-injection", "enabled") != "enabled":
        pair = f"istio-injection={namespace_labels['istio-injection']}"
        return {"injected": False, "reason": f"Namespace has {pair} label, preventing injection"}
    return None


def _excludes(expression: Json, value: Any) -> bool:
    operator = dig(expression, "operator")
    return operator == "DoesNotExist" or (
        operator == "NotIn" and value in items(expression, "values")
    )


def _matched(selector: Json, labels: Mapping[str, Any]) -> str:
    """Return the first label that a selector asks about, empty when it asks about none."""
    for expression in items(selector, "matchExpressions"):
        key = str(dig(expression, "key"))
        if dig(expression, "operator") in ("In", "NotIn") and key in labels:
            return f"{key}={labels[key]}"
    return ""


def _wanted(selector: Json) -> list[str]:
    return [
        f"{dig(expression, 'key')}={value}"
        for expression in items(mapping(selector), "matchExpressions")
        if dig(expression, "operator") == "In"
        for value in items(expression, "values")
    ]
