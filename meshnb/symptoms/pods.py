"""Symptoms in Kubernetes: pods that are not ready, and pods that could not be made."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pandas as pd

from meshnb.symptoms.base import Symptom
from meshnb.tables import Facts
from meshnb.traces.failures import Failures
from meshnb.traces.mesh import Mesh, plain

#: How long after the last event a pod that could not be made still counts, when nothing mended it.
_EVENT_AGE = timedelta(minutes=15)
#: How the API server says that it could not call one of Istio's webhooks.
_NO_WEBHOOK = re.compile(r'failed calling webhook "([^"]+istio\.io)"')
#: How Kubernetes says of an owner of pods that it got what it wanted.
_MADE = ("SuccessfulCreate", "Completed")


def pods(facts: Facts, mesh: Mesh, failures: Failures) -> Iterator[Symptom]:
    """Yield one symptom per workload with pods that are not ready, or that could not be made."""
    frame = facts["pods"]
    waiting: dict[tuple[str, str], list[tuple[int, Any]]] = {}
    for index, pod in enumerate(mesh.pods):
        if pod.running and not pod.ready:
            waiting.setdefault((pod.namespace, pod.workload), []).append((index, pod))
    for (namespace, workload), members in waiting.items():
        pod = members[0][1]
        noun = "pods" if len(members) > 1 else "pod"
        yield Symptom(
            kind="pod",
            message=f"{len(members)} {noun} of {namespace}/{workload} not ready: "
            f"{pod.not_ready_reason or pod.phase}",
            count=len(members),
            table="pods",
            rows=tuple(int(frame.index[index]) for index, _ in members),
            last_seen=facts.now,
            weight=float(len(members)),
            workload=(namespace, workload),
            reporters=tuple(f"{pod.pod}.{pod.namespace}" for _, pod in members),
        )
    yield from _not_made(facts, mesh)


def _not_made(facts: Facts, mesh: Mesh) -> Iterator[Symptom]:
    events = facts["events"]
    chosen = events[(events["type"] == "Warning") & (events["reason"] == "FailedCreate")]
    grouped: dict[tuple[str, str], list[int]] = {}
    rollouts = facts["rollouts"]
    # A ReplicaSet that was replaced by another one wants none any more.
    all_wanted = {
        ("ReplicaSet", namespace, name): plain(wanted)
        for namespace, name, wanted in zip(
            rollouts["namespace"], rollouts["replica_set"], rollouts["replicas_wanted"], strict=True
        )
    }
    owners = events[events["reason"].isin(_MADE)].groupby(["kind", "namespace", "name"])
    made_at = owners["last_seen"].max().to_dict()
    refused_at = chosen.groupby(["kind", "namespace", "name"])["last_seen"].max().to_dict()
    uncalled = _uncalled(chosen)
    for index, row in zip(chosen.index.tolist(), chosen.to_dict("records"), strict=True):
        last = plain(row["last_seen"])
        if last is None or facts.now - last.to_pydatetime() > _EVENT_AGE:
            continue
        owner = (row["kind"], row["namespace"], row["name"])
        if row["kind"] == "ReplicaSet" and all_wanted and owner not in all_wanted:
            continue  # it is gone, and so is its complaint
        made = [
            pod
            for pod in mesh.pods
            if pod.namespace == row["namespace"] and pod.pod.startswith(f"{row['name']}-")
        ]
        made_since = any(pod.created is not None and pod.created >= last for pod in made)
        wanted = all_wanted.get(owner)
        told = plain(made_at.get(owner))
        made_since |= told is not None and told > refused_at[owner]
        enough = wanted is not None and sum(pod.running for pod in made) >= wanted
        webhook = _NO_WEBHOOK.search(str(row["message"]))
        if webhook and _injected_since(uncalled[webhook[1]], str(row["namespace"]), facts, mesh):
            continue  # the webhook answers again
        if not made_since and not enough:
            grouped.setdefault((str(row["namespace"]), str(row["name"])), []).append(index)
    for (namespace, name), rows in grouped.items():
        worst = chosen.loc[rows].sort_values("last_seen", kind="stable").iloc[-1]
        yield Symptom(
            kind="pod",
            message=f"pods of {namespace}/{name} cannot be made: {worst['message']}",
            count=int(chosen.loc[rows, "count"].fillna(1).sum()),
            table="events",
            rows=tuple(rows),
            first_seen=plain(worst["first_seen"]),
            last_seen=plain(worst["last_seen"]),
            weight=1.0,
            details=str(worst["message"]),
            workload=(namespace, name),
        )


def _uncalled(refused: pd.DataFrame) -> dict[str, pd.Timestamp]:
    """Return when each of Istio's webhooks could not be called last."""
    found: dict[str, pd.Timestamp] = {}
    for message, last in zip(refused["message"], refused["last_seen"], strict=True):
        webhook = _NO_WEBHOOK.search(str(message))
        if webhook and plain(last) is not None:
            found[webhook[1]] = max(last, found.get(webhook[1], last))
    return found


def _injected_since(last: pd.Timestamp, namespace: str, facts: Facts, mesh: Mesh) -> bool:
    """Whether a pod was injected after a time by what injects the pods of a namespace."""
    webhooks = facts["webhooks"]
    injectors = webhooks[webhooks["kind"] == "mutating"]
    # With one injector for all namespaces, a pod in any of them proves that it answers.
    one = len(injectors[["service_namespace", "service"]].drop_duplicates()) == 1
    return any(
        pod.created is not None
        and pod.created > last
        and pod.mesh == "sidecar"
        and (one or pod.namespace == namespace)
        for pod in mesh.pods
    )
