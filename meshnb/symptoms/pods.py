"""Symptoms in Kubernetes: pods that are not ready, and pods that could not be made."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from meshnb.symptoms.base import Symptom
from meshnb.tables import Facts
from meshnb.traces.failures import Failures
from meshnb.traces.mesh import Mesh, plain

#: How long after the last event a pod that could not be made still counts, when nothing mended it.
_EVENT_AGE = timedelta(minutes=15)


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
        enough = wanted is not None and sum(pod.running for pod in made) >= wanted
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
