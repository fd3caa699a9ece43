"""The table ``rbac``: which AuthorizationPolicies reached each proxy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from meshnb.sources.base import Question
from meshnb.tables.base import Column, Facts, Json, Row, Table
from meshnb.tables.envoy import CONFIG_DUMP, proxy_of, section
from meshnb.tables.rbac_rules import ANONYMOUS, RbacFilter, filters_of, is_custom, named

RBAC = Table(
    name="rbac",
    grain="one row per proxy, action and AuthorizationPolicy",
    asks=CONFIG_DUMP,
    istioctl="istioctl experimental authz check POD.NAMESPACE",
    columns={
        "proxy": Column("string", "the proxy as pod.namespace", key=True),
        "action": Column(
            "string", "DENY, ALLOW, LOG or CUSTOM (an external server decides)", key=True
        ),
        "authorization_policy": Column(
            "string",
            "the AuthorizationPolicy, name.namespace; _anonymous_match_nothing_ for a filter"
            " without rules; empty for rules of another kind of name, see rule_names",
            key=True,
        ),
        "rules": Column("Int64", "how many rules of the policy the proxy has"),
        "enforced": Column(
            "boolean",
            "whether Envoy acts on it; false for a filter that istioctl shows as matching nothing,"
            " while it only serves a dry run or CUSTOM and lets everything through",
        ),
        "protocols": Column("object", "tuple: http, network or both: where it is asked"),
        "listeners": Column("object", "tuple: names of the listeners that have it"),
        "filter_chains": Column("object", "tuple: names of the filter chains that have it"),
        "rule_names": Column("object", "tuple: names of its rules in Envoy's configuration"),
    },
)

#: istioctl's order; it prints no other action.
_ACTIONS = ("DENY", "ALLOW", "LOG", "CUSTOM")


@dataclass(slots=True)
class _Policy:
    """What is known of one policy with one action. The keys of a dict are an ordered set."""

    enforced: bool = False
    protocols: dict[str, None] = field(default_factory=dict)
    listeners: dict[str, None] = field(default_factory=dict)
    filter_chains: dict[str, None] = field(default_factory=dict)
    rule_names: dict[str, None] = field(default_factory=dict)


@RBAC.reads
def _rows(dump: Json, question: Question, facts: Facts) -> Iterator[Row]:
    """Count as istioctl does: in active listeners from istiod, without default filter chains."""
    policies: dict[tuple[str, str], _Policy] = {}
    rules: dict[str, set[str]] = {}
    for used in filters_of(section(dump, "ListenersConfigDump", question, facts)):
        if used.state != "active" or used.default:
            continue
        for action, name, rule, raw, enforced in _entries(used):
            rules.setdefault(name, set()).add(rule)
            policy = policies.setdefault((action, name), _Policy())
            policy.enforced = policy.enforced or enforced
            policy.protocols[used.protocol] = None
            policy.listeners[used.listener] = None
            policy.filter_chains[used.filter_chain or ""] = None
            if raw:
                policy.rule_names[raw] = None
    for action in _ACTIONS:
        for (of, name), policy in sorted(policies.items(), key=lambda entry: entry[0]):
            if of == action:
                yield {
                    "proxy": proxy_of(question),
                    "action": action,
                    "authorization_policy": name,
                    "rules": len(rules[name]),
                    "enforced": policy.enforced,
                    "protocols": tuple(policy.protocols),
                    "listeners": tuple(policy.listeners),
                    "filter_chains": tuple(policy.filter_chains),
                    "rule_names": tuple(policy.rule_names),
                }


def _entries(used: RbacFilter) -> Iterator[tuple[str, str, str, str, bool]]:
    """Yield action, policy, rule, raw name and whether it is enforced, for all that a filter has.

    A dry run's rules are not among them, as in istioctl; they are in the table ``rbac_rules``.
    """
    for raw in used.rules:
        yield used.action, *_split(raw), raw, True
    for raw in used.shadow_rules:
        if is_custom(raw):
            yield "CUSTOM", *_split(raw), raw, True
    if not used.rules:
        yield used.action, ANONYMOUS, "0", "", "rules" in used.config


def _split(raw: str) -> tuple[str, str]:
    parts = named(raw)
    return (f"{parts[1]}.{parts[0]}", parts[2]) if parts else ("", "")
