"""Evaluates Kubernetes label selectors, as webhooks, workloads and policies have them."""

from __future__ import annotations

from collections.abc import Mapping

from meshnb.tables.base import Json, dig, items, mapping


def selects(selector: Json, labels: Mapping[str, str]) -> bool:
    """Whether a label selector with ``matchLabels`` and ``matchExpressions`` selects these labels.

    All its parts must hold; an empty or absent selector selects everything. A value that is not
    there differs from every value, so ``NotIn`` holds for it. An operator that Kubernetes does not
    know selects nothing, since the API server would have refused it.
    """
    wanted = mapping(selector, "matchLabels")
    return all(labels.get(key) == value for key, value in wanted.items()) and all(
        _holds(expression, labels) for expression in items(selector, "matchExpressions")
    )


def _holds(expression: Json, labels: Mapping[str, str]) -> bool:
    key = str(dig(expression, "key"))
    values = items(expression, "values")
    match dig(expression, "operator"):
        case "In":
            return key in labels and labels[key] in values
        case "NotIn":
            return key not in labels or labels[key] not in values
        case "Exists":
            return key in labels
        case "DoesNotExist":
            return key not in labels
        case _:
            return False
