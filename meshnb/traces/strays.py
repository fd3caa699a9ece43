"""The trace ``strays``: pods that lack a sidecar which somebody wanted them to have.

A pod that was never meant for the mesh is none. What tells the two apart is what the labels ask
for, what they would do to a new pod, and whether earlier pods of the same workload had a proxy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from meshnb.tables import Facts
from meshnb.tables.base import records
from meshnb.traces.base import Trace
from meshnb.traces.mesh import Mesh, Pod

_SWITCH = "sidecar.istio.io/inject"
#: Containers that only the injector adds.
_OF_ISTIO = ("istio-proxy", "istio-init", "istio-validation")


@dataclass(frozen=True, slots=True)
class Stray:
    """A running pod without a sidecar that was to have one, by its namespace and name.

    ``why`` is ``revision`` (its namespace asks for one that nobody serves), ``opted out`` (its own
    label or setting keeps the proxy out, unlike before), ``too early`` (a webhook would add one to
    a new pod) or ``unlabelled`` (its namespace asks for none any more). ``events`` are the rows of
    the table ``events`` in which an earlier pod of its workload still had a proxy, ``sisters`` the
    names of the pods of its namespace that have one by the namespace's labels.
    """

    namespace: str
    pod: str
    why: str
    events: tuple[int, ...] = ()
    sisters: tuple[str, ...] = ()

    def among(self, mesh: Mesh) -> Pod | None:
        """Return the pod as a mesh has it."""
        return next(
            (p for p in mesh.pods if (p.namespace, p.pod) == (self.namespace, self.pod)), None
        )


def _records(frame: pd.DataFrame, *columns: str) -> list[dict[Any, Any]]:
    return list(records(frame[list(columns)]))


def _make(facts: Facts) -> tuple[Stray, ...]:
    return tuple(_strays(facts))


def _strays(facts: Facts) -> Iterator[Stray]:
    pods = _records(
        facts["pods"],
        *("namespace", "pod", "workload_kind", "workload", "mesh", "phase", "deleted", "created"),
        *("labels", "annotations"),
    )
    wanted = {
        (row["namespace"], row["pod"]): row
        for row in _records(facts["injection"], "namespace", "pod", "wanted", "opted_out_by")
    }
    spaces = {
        row["namespace"]: row
        for row in _records(
            facts["namespaces"], "namespace", "injection", "revision", "injector", "ambient"
        )
    }
    control_plane = {pod["namespace"] for pod in pods if pod["mesh"] == "istiod"}
    told = facts["events"]
    told = told[told["container"].isin(list(_OF_ISTIO)).astype(bool)]
    for pod in pods:
        row, space = wanted.get((pod["namespace"], pod["pod"])), spaces.get(pod["namespace"])
        if pod["mesh"] != "none" or not _running(pod) or row is None or space is None:
            continue
        if row["wanted"] is None:
            continue  # the webhooks or namespaces could not be read
        if pod["namespace"] in control_plane or space["ambient"] == "ambient":
            continue
        why = _why(pod, row, space)
        events = _earlier(pod, told, facts)
        sisters = _sisters(pod, pods, facts) if why == "unlabelled" else ()
        if why == "opted out" and space["injector"] is None:
            continue  # its namespace is not injected anyway
        if why in ("revision", "too early") or events or sisters:
            yield Stray(str(pod["namespace"]), str(pod["pod"]), why, events, sisters)


def _running(pod: Mapping[Any, Any]) -> bool:
    return pod["phase"] not in ("Succeeded", "Failed") and pod["deleted"] is None


def _why(pod: Mapping[Any, Any], row: Mapping[Any, Any], space: Mapping[Any, Any]) -> str:
    opted_out = row["opted_out_by"]
    if opted_out is not None and not str(opted_out).startswith("namespace"):
        return "opted out"
    if row["wanted"]:
        return "too early"
    asked = space["injection"] == "enabled" or (
        space["injection"] is None and space["revision"] is not None
    )
    if (asked and space["injector"] is None) or pod["labels"].get("istio.io/rev"):
        return "revision"
    return "unlabelled"


def _earlier(pod: Mapping[Any, Any], told: pd.DataFrame, facts: Facts) -> tuple[int, ...]:
    """Return the events of earlier pods of the same workload that tell of a container of Istio."""
    told = told[told["namespace"] == pod["namespace"]]
    if not len(told):
        return ()
    rollouts = facts["rollouts"]
    own = rollouts[
        (rollouts["namespace"] == pod["namespace"]) & (rollouts["workload"] == pod["workload"])
    ]
    begins = tuple(f"{name}-" for name in own["replica_set"]) or (f"{pod['workload']}-",)
    alone, made = pod["workload_kind"] in ("Pod", "StatefulSet"), pod["created"]
    return tuple(
        int(index)
        for index, name, last in zip(told.index, told["name"], told["last_seen"], strict=True)
        if (
            name == pod["pod"] and (pd.isna(last) or made is None or last < made)
            if alone
            else str(name).startswith(begins) and name != pod["pod"]
        )
    )


def _sisters(pod: Mapping[Any, Any], pods: list[dict[Any, Any]], facts: Facts) -> tuple[str, ...]:
    """Return the pods of the namespace whose sidecar came by labels that it has no more."""
    rollouts = facts["rollouts"]
    by_hand = {
        (namespace, workload)
        for namespace, workload, annotations in zip(
            rollouts["namespace"], rollouts["workload"], rollouts["annotations"], strict=True
        )
        if "sidecar.istio.io/status" in (annotations or {})
    }
    return tuple(
        str(other["pod"])
        for other in pods
        if other["namespace"] == pod["namespace"]
        and other["mesh"] == "sidecar"
        and _running(other)
        and _SWITCH not in {**other["labels"], **other["annotations"]}
        and "istio.io/rev" not in other["labels"]
        and (other["namespace"], other["workload"]) not in by_hand
        and other["workload_kind"] != "Pod"
    )


STRAYS = Trace(
    name="strays",
    title="Which pods lack a sidecar that they were meant to have, and why.",
    reads=("injection", "namespaces", "pods", "events", "rollouts"),
    make=_make,
)
