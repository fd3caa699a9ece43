"""The table ``remote_clusters``: the Kubernetes clusters that each istiod reads Services from."""

from __future__ import annotations

from collections.abc import Iterator

from meshnb.sources.base import HttpQuestion, Question
from meshnb.tables.base import Column, Facts, Got, Json, Row, Table, dig

_CLUSTERS = Got(15014, "/debug/clusterz")

REMOTE_CLUSTERS = Table(
    name="remote_clusters",
    grain="one row per istiod and cluster that it reads",
    asks=_CLUSTERS,
    istioctl="istioctl remote-clusters",
    columns={
        "istiod": Column("string", "the istiod pod", key=True),
        "namespace": Column("string", "its namespace", key=True),
        "cluster": Column("string", "name of the cluster", key=True),
        "secret": Column(
            "string", "namespace/name of the Secret with the access to it; absent for its own"
        ),
        "sync": Column("string", "synced, syncing, closed or timeout, as istiod says"),
    },
)


@REMOTE_CLUSTERS.derives
def _rows(facts: Facts) -> Iterator[tuple[Question, Row]]:
    # Most meshes have one cluster: that nobody asked for others is no gap.
    if any(_CLUSTERS.matches(question) for question in facts.source.questions()):
        yield from facts.read(_CLUSTERS, _clusters)


def _clusters(document: Json, question: Question, facts: Facts) -> Iterator[Row]:
    if not isinstance(document, list):
        raise ValueError("it is no list of clusters")
    assert isinstance(question, HttpQuestion)
    for cluster in document:
        yield {
            "istiod": question.pod,
            "namespace": question.namespace,
            "cluster": dig(cluster, "id"),
            "secret": dig(cluster, "secretName") or None,
            "sync": dig(cluster, "syncStatus"),
        }
