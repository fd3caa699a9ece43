"""The table ``workloads``: what runs the pods, how many it wants, and how many of them it has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from meshnb.sources.base import Question
from meshnb.tables.base import Column, Facts, Json, Listed, Row, Table, dig, items, mapping
from meshnb.tables.metadata import changed, condition, condition_holds, owner_of

_KINDS: dict[str, Listed] = {
    "Deployment": Listed("apps", "deployments"),
    "StatefulSet": Listed("apps", "statefulsets"),
    "DaemonSet": Listed("apps", "daemonsets"),
    "ReplicaSet": Listed("apps", "replicasets", optional=True),
    "Job": Listed("batch", "jobs", optional=True),
    "CronJob": Listed("batch", "cronjobs", optional=True),
    "Pod": Listed("v1", "pods"),
}

#: Kinds that are no workload when something owns them. Others are owned, too: a Gateway of the
#: Gateway API owns the Deployment that istiod makes for it.
_PARTS = ("ReplicaSet", "Job", "Pod")

WORKLOADS = Table(
    name="workloads",
    grain=(
        "one row per Deployment, StatefulSet, DaemonSet, CronJob, and per ReplicaSet, Job or pod "
        "that nothing owns"
    ),
    asks=tuple(_KINDS.values()),
    columns={
        "namespace": Column("string", "namespace of the workload", key=True),
        "kind": Column("string", "Deployment, StatefulSet, DaemonSet, ...", key=True),
        "workload": Column("string", "name of the workload", key=True),
        "replicas_wanted": Column("Int64", "how many pods it should have; absent for a CronJob"),
        "replicas_ready": Column("Int64", "how many of its pods are ready, as it says itself"),
        "pods": Column("Int64", "how many pods belong to it"),
        "created": Column("datetime64[us, UTC]", "when it was created", passing=True),
        "changed": Column(
            "datetime64[us, UTC]", "when anything but its status was changed last", passing=True
        ),
        "service_account": Column("string", "the service account its pods run as"),
        "labels": Column("object", "labels that its pods get, a dict"),
        "annotations": Column("object", "annotations that its pods get, a dict"),
        "proxied": Column("Int64", "how many of its pods have a proxy"),
        "images": Column("object", "images of its containers, without init containers, a tuple"),
        "app": Column("string", "the app its labels name"),
        "version": Column("string", "the version its labels name"),
        "problem": Column("string", "why it cannot make or renew its pods, in Kubernetes' words"),
    },
)


@WORKLOADS.derives
def _rows(facts: Facts) -> Iterator[tuple[Question, Row]]:
    pods: Counter[tuple[Any, ...]] = Counter()
    proxied: Counter[tuple[Any, ...]] = Counter()
    frame = facts["pods"]
    for *key, mesh in frame[["namespace", "workload_kind", "workload", "mesh"]].itertuples(
        index=False
    ):
        pods[tuple(key)] += 1
        proxied[tuple(key)] += mesh in ("sidecar", "gateway", "waypoint")
    for kind, listed in _KINDS.items():

        def read(
            document: Json, question: Question, facts: Facts, kind: str = kind
        ) -> Iterator[Row]:
            if kind not in _PARTS or owner_of(document) is None or _static(document):
                row = _row(document, kind)
                key = (row["namespace"], kind, row["workload"])
                yield {**row, "pods": pods[key], "proxied": proxied[key]}

        yield from facts.read(listed, read)


def _static(pod: Json) -> bool:
    """Whether the kubelet runs a pod by itself: such a pod is owned by its node."""
    return owner_of(pod) == ("Node", dig(pod, "spec", "nodeName"))


def _row(document: Json, kind: str) -> Row:
    template = (
        document if kind == "Pod" else dig(document, *_TEMPLATE.get(kind, ("spec", "template")))
    )
    labels = dict(mapping(template, "metadata", "labels"))
    wanted, ready = _replicas(document, kind)
    return {
        "namespace": dig(document, "metadata", "namespace"),
        "kind": kind,
        "workload": dig(document, "metadata", "name"),
        "replicas_wanted": wanted,
        "replicas_ready": ready,
        "created": dig(document, "metadata", "creationTimestamp"),
        "changed": changed(document),
        "service_account": dig(template, "spec", "serviceAccountName", default="default"),
        "labels": labels,
        "annotations": dict(mapping(template, "metadata", "annotations")),
        "images": tuple(
            image
            for container in items(template, "spec", "containers")
            if isinstance(image := dig(container, "image"), str)
        ),
        "app": labels.get("app") or labels.get("app.kubernetes.io/name"),
        "version": labels.get("version") or labels.get("app.kubernetes.io/version"),
        "problem": None if kind == "Pod" else _problem(document),
    }


_TEMPLATE = {"CronJob": ("spec", "jobTemplate", "spec", "template")}


def _problem(document: Json) -> str | None:
    """Return what a Deployment or ReplicaSet says of refused pods or of a stuck change."""
    for kind, bad in (("ReplicaFailure", True), ("Progressing", False)):
        if condition_holds(document, kind) is bad:
            said = condition(document, kind)
            return ": ".join(str(said[part]) for part in ("reason", "message") if said.get(part))
    return None


def _replicas(document: Json, kind: str) -> tuple[Any, Any]:
    """Return how many pods are wanted and ready; Kubernetes leaves out a count of none."""
    if kind == "Pod":
        return 1, {True: 1, False: 0, None: None}[condition_holds(document, "Ready")]
    if kind == "CronJob":
        return None, None
    if kind == "DaemonSet":
        return (
            dig(document, "status", "desiredNumberScheduled"),
            dig(document, "status", "numberReady"),
        )
    if kind == "Job":
        return dig(document, "spec", "parallelism"), dig(document, "status", "ready", default=0)
    return (
        dig(document, "spec", "replicas", default=1),
        dig(document, "status", "readyReplicas", default=0),
    )
