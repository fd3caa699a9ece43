"""The table ``network_policies``: Kubernetes' own firewall rules, which Istio does not see."""

from __future__ import annotations

from collections.abc import Iterator

from meshnb.sources.base import Question
from meshnb.tables.base import Column, Facts, Json, Listed, Row, Table, dig, items, mapping

NETWORK_POLICIES = Table(
    name="network_policies",
    grain="one row per NetworkPolicy",
    asks=Listed("networking.k8s.io", "networkpolicies"),
    columns={
        "namespace": Column("string", "namespace of the policy", key=True),
        "policy": Column("string", "name of the policy", key=True),
        "created": Column("datetime64[us, UTC]", "when it was created", passing=True),
        "selector": Column(
            "object", "label selector of the pods it applies to, a dict; empty is all"
        ),
        "types": Column("object", "Ingress, Egress or both, a tuple"),
        "spec": Column("object", "its spec, a dict"),
    },
)


@NETWORK_POLICIES.reads
def _rows(policy: Json, question: Question, facts: Facts) -> Iterator[Row]:
    yield {
        "namespace": dig(policy, "metadata", "namespace"),
        "policy": dig(policy, "metadata", "name"),
        "created": dig(policy, "metadata", "creationTimestamp"),
        "selector": dict(mapping(policy, "spec", "podSelector")),
        "types": tuple(items(policy, "spec", "policyTypes")),
        "spec": dict(mapping(policy, "spec")),
    }
