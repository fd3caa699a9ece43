"""The table ``rollouts``: the versions of each Deployment's pods, to see what changed."""

from __future__ import annotations

from collections.abc import Iterator

from meshnb.sources.base import Question
from meshnb.tables.base import Column, Facts, Json, Listed, Row, Table, dig, items, mapping
from meshnb.tables.metadata import owner_of

#: Where a Deployment notes the number of a version of its pods.
_REVISION = "deployment.kubernetes.io/revision"

ROLLOUTS = Table(
    name="rollouts",
    grain="one row per ReplicaSet, which is one version of a Deployment's pods",
    asks=Listed("apps", "replicasets"),
    columns={
        "namespace": Column("string", "its namespace", key=True),
        "replica_set": Column("string", "name of the ReplicaSet", key=True),
        "workload_kind": Column("string", "kind of its owner, usually Deployment"),
        "workload": Column("string", "name of its owner; its own when it has none"),
        "rollout": Column("Int64", "number of the version, counted by the Deployment"),
        "created": Column(
            "datetime64[us, UTC]", "when this version was rolled out first", passing=True
        ),
        "replicas_wanted": Column("Int64", "how many pods it is to have; 0 for a past version"),
        "replicas_ready": Column("Int64", "how many of its pods are ready"),
        "labels": Column("object", "labels of its pod template, a dict"),
        "annotations": Column("object", "annotations of its pod template, a dict"),
        "images": Column("object", "images of its containers, a tuple"),
        "service_account": Column("string", "the service account that its pods run as"),
        "host_network": Column("boolean", "whether its pods use the node's own network"),
    },
)


@ROLLOUTS.reads
def _rows(replica_set: Json, question: Question, facts: Facts) -> Iterator[Row]:
    name = dig(replica_set, "metadata", "name")
    owner = owner_of(replica_set) or ("ReplicaSet", name)
    number = str(mapping(replica_set, "metadata", "annotations").get(_REVISION, ""))
    template = mapping(replica_set, "spec", "template")
    yield {
        "namespace": dig(replica_set, "metadata", "namespace"),
        "replica_set": name,
        "workload_kind": owner[0],
        "workload": owner[1],
        "rollout": int(number) if number.isdigit() else None,
        "created": dig(replica_set, "metadata", "creationTimestamp"),
        "replicas_wanted": dig(replica_set, "spec", "replicas"),
        "replicas_ready": dig(replica_set, "status", "readyReplicas", default=0),
        "labels": dict(mapping(template, "metadata", "labels")),
        "annotations": dict(mapping(template, "metadata", "annotations")),
        "images": tuple(
            str(dig(container, "image")) for container in items(template, "spec", "containers")
        ),
        "service_account": dig(template, "spec", "serviceAccountName", default="default"),
        "host_network": dig(template, "spec", "hostNetwork", default=False),
    }
