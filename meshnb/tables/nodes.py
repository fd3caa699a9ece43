"""The table ``nodes``: the machines that the pods run on."""

from __future__ import annotations

from collections.abc import Iterator

from meshnb.sources.base import Question
from meshnb.tables.base import Column, Facts, Json, Listed, Row, Table, dig, items
from meshnb.tables.metadata import condition_holds, labels_of

NODES = Table(
    name="nodes",
    grain="one row per node",
    asks=Listed("v1", "nodes"),
    columns={
        "node": Column("string", "name of the node", key=True),
        "address": Column("string", "its internal IP address"),
        "ready": Column("boolean", "whether its condition Ready is True"),
        "region": Column("string", "the region it is in"),
        "zone": Column("string", "the zone it is in"),
        "kubelet_version": Column("string", "version of its kubelet"),
        "pod_cidr": Column("string", "the range that its pods' addresses come from"),
        "labels": Column("object", "its labels, a dict"),
    },
)


@NODES.reads
def _rows(node: Json, question: Question, facts: Facts) -> Iterator[Row]:
    labels = labels_of(node)
    addresses = [
        dig(one, "address")
        for one in items(node, "status", "addresses")
        if dig(one, "type") == "InternalIP"
    ]
    yield {
        "node": dig(node, "metadata", "name"),
        "address": addresses[0] if addresses else None,
        "ready": condition_holds(node, "Ready"),
        "region": labels.get("topology.kubernetes.io/region"),
        "zone": labels.get("topology.kubernetes.io/zone"),
        "kubelet_version": dig(node, "status", "nodeInfo", "kubeletVersion"),
        "pod_cidr": dig(node, "spec", "podCIDR"),
        "labels": labels,
    }
