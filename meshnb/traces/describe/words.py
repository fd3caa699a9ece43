"""How labels, selectors and several names are said in a sentence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from meshnb.traces.mesh import Pod


def labels_said(labels: Mapping[str, Any]) -> str:
    """Return labels in a sentence."""
    return ", ".join(f"{key}={value}" for key, value in labels.items())


def mismatch(labels: Mapping[str, Any], pod: Pod) -> str:
    """Say which labels a selector wants that a pod does not have."""
    missing = {key: value for key, value in labels.items() if pod.labels.get(key) != value}
    return f"selects {labels_said(missing or labels)}, which the pod is not labelled"


def listed(names: Iterable[str], limit: int = 5) -> str:
    """Return names in a sentence; of many only the first."""
    every = list(dict.fromkeys(names))
    more = f" and {len(every) - limit} others" if len(every) > limit else ""
    return ", ".join(every[:limit]) + more
