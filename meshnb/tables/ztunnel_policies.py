"""The table ``ztunnel_policies``: the authorization policies that each ztunnel enforces."""

from __future__ import annotations

from collections.abc import Iterator

from meshnb.sources.base import Question
from meshnb.tables.base import Column, Facts, Json, Row, Table, dig, items
from meshnb.tables.envoy import listed, proxy_of
from meshnb.tables.ztunnel import entries, read_dumps

ZTUNNEL_POLICIES = Table(
    name="ztunnel_policies",
    grain="one row per ztunnel and authorization policy that it knows",
    istioctl="istioctl ztunnel-config policy POD.NAMESPACE",
    columns={
        "proxy": Column("string", "the ztunnel as pod.namespace", key=True),
        "namespace": Column("string", "namespace of the policy", key=True),
        "policy_name": Column(
            "string",
            "name of the AuthorizationPolicy, or of what istiod makes of a PeerAuthentication",
            key=True,
        ),
        "action": Column("string", "Allow or Deny"),
        "scope": Column("string", "Global, Namespace or WorkloadSelector"),
        "rules": Column(
            "object",
            "tuple of rules, one of which must match: lists of clauses, all of which must match,"
            " each a list of dicts, one of which must match",
        ),
        "dry_run": Column("boolean", "whether it is only evaluated, not enforced"),
        "workloads": Column("object", "tuple: workloads that name it, as namespace/name"),
    },
)


@ZTUNNEL_POLICIES.derives
def _rows(facts: Facts) -> Iterator[tuple[Question, Row]]:
    yield from read_dumps(facts, _read)


def _read(dump: Json, question: Question, facts: Facts) -> Iterator[Row]:
    workloads: dict[str, list[str]] = {}
    for workload in entries(dump, "workloads"):
        for policy in items(workload, "authorizationPolicies"):
            workloads.setdefault(str(policy), []).append("/".join(_order(workload)))
    for policy in sorted(entries(dump, "policies"), key=_order):
        namespace, name = _order(policy)
        yield {
            "proxy": proxy_of(question),
            "namespace": namespace,
            "policy_name": name,
            "action": dig(policy, "action", default=""),
            "scope": dig(policy, "scope", default=""),
            "rules": listed(policy, "rules"),
            "dry_run": dig(policy, "dryRun", default=False),
            "workloads": tuple(sorted(workloads.get(f"{namespace}/{name}", []))),
        }


def _order(resource: Json) -> tuple[str, str]:
    return str(dig(resource, "namespace", default="")), str(dig(resource, "name", default=""))
