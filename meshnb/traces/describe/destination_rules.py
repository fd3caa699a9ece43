"""DestinationRules, which act in the proxies of clients."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from meshnb.tables.base import dig, items, mapping
from meshnb.traces.describe.base import RuleFor
from meshnb.traces.describe.known import Known
from meshnb.traces.describe.words import labels_said, listed
from meshnb.traces.mesh import ConfigObject, Pod, host_matches
from meshnb.traces.rules import exported_to, more_specific_rule, rule_host


def destination_rules(
    known: Known, hosts: Mapping[str, str], pods: list[Pod], home: str
) -> Iterator[RuleFor]:
    """Yield the DestinationRules that shape requests to hosts, or could be thought to."""
    for rule in known.mesh.of("DestinationRule"):
        own = rule_host(rule, known.mesh)
        covered = [host for host in hosts if host_matches(own, host)]
        subsets = {
            str(dig(subset, "name", default="")): mapping(subset, "labels")
            for subset in items(rule.spec, "subsets")
        }
        matching = tuple(
            name
            for name, labels in subsets.items()
            if any(labels.items() <= pod.labels.items() for pod in pods)
        )
        if not covered:
            if rule.namespace == home:
                why = f"is for another host, {own}"
                yield RuleFor(rule, False, why, own, (), tuple(subsets), ())
            continue
        rivals = [more_specific_rule(rule, host, known.mesh) for host in covered]
        if all(rival is not None for rival in rivals):
            acts = False
            why = f"{rivals[0]} of the same namespace has a more specific host"
        else:
            acts, why = True, _clients(known, rule, hosts[covered[0]])
        yield RuleFor(
            rule,
            acts,
            why,
            own,
            matching,
            tuple(name for name in subsets if name not in matching),
            tuple(_settings(mapping(rule.spec, "trafficPolicy"))),
        )


def _clients(known: Known, rule: ConfigObject, home: str) -> str:
    """Say for which clients a DestinationRule counts.

    A client's proxy takes the rule of its own namespace; without one, that of the Service's
    namespace that it sees; without one, that of the root namespace.
    """
    scope = exported_to(rule, known.mesh)
    if rule.namespace == home:
        who = "all clients" if "*" in scope else f"clients of namespace {listed(sorted(scope))}"
    elif rule.namespace == known.mesh.root_namespace:
        who = "clients whose namespace has no rule of its own, nor the Service's"
    else:
        who = f"clients of its own namespace {rule.namespace} only"
    labels = mapping(rule.spec, "workloadSelector", "matchLabels")
    return f"shapes what {who} send" + (f", if labelled {labels_said(labels)}" if labels else "")


def _settings(policy: Mapping[str, Any]) -> Iterator[str]:
    """Yield what a traffic policy sets, a setting each."""
    if mode := dig(policy, "tls", "mode"):
        yield f"TLS mode {mode}"
    if "loadBalancer" in policy:
        simple = dig(policy, "loadBalancer", "simple")
        hashed = mapping(policy, "loadBalancer", "consistentHash")
        yield f"load balancer {simple or ('consistent hash' if hashed else 'set')}"
    for field, words in (
        ("connectionPool", "connection pool"),
        ("outlierDetection", "outlier detection"),
        ("tunnel", "tunnel"),
        ("proxyProtocol", "PROXY protocol"),
        ("retryBudget", "retry budget"),
    ):
        if field in policy:
            yield words
    for level in items(policy, "portLevelSettings"):
        port = dig(level, "port", "number")
        inner = listed(_settings(mapping(level))) or "nothing"
        yield f"port {port}: {inner}"
