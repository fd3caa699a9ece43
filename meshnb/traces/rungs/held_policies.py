"""Which policies a proxy should hold, by the objects that select it, and which of them it does not.

istiod makes rules of every AuthorizationPolicy that selects a proxy's pod, and a token filter of
every RequestAuthentication. One that the proxy does not hold protects nothing, whatever it says.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from meshnb.tables.base import dig, items, mapping
from meshnb.tables.rbac_rules import named
from meshnb.traces.envoy.configs import ProxyConfig, latest
from meshnb.traces.envoy.policies import filter_configs
from meshnb.traces.mesh import ConfigObject, Mesh, Pod
from meshnb.traces.rules import target_references

_REVISION = "istio.io/rev"


@dataclass(frozen=True, slots=True)
class Unheld:
    """A policy that selects a pod, and that its proxy does not hold."""

    policy: ConfigObject
    pod: Pod
    #: when the proxy took over a listener last; None when it does not say
    updated: datetime | None


def held(config: ProxyConfig) -> tuple[frozenset[tuple[str, str]], frozenset[str]]:
    """Return what a proxy holds: AuthorizationPolicies by namespace and name, and token issuers."""
    policies: set[tuple[str, str]] = set()
    issuers: set[str] = set()
    for one in _configs(config):
        for rules in ("rules", "shadow_rules"):
            names = filter(None, map(named, mapping(one, rules, "policies")))
            policies |= {(namespace, name) for namespace, name, _ in names}
        for provider in mapping(one, "providers").values():
            issuers.add(str(dig(provider, "issuer", default="")))
    return frozenset(policies), frozenset(issuers)


def _configs(config: ProxyConfig) -> Iterator[Mapping[str, Any]]:
    for taken in config.listeners.values():
        chains = items(taken.resource, "filter_chains")
        default = mapping(taken.resource, "default_filter_chain")
        for chain in [*chains, *([default] if default else [])]:
            yield from filter_configs(chain, config)


def unheld(pod: Pod, config: ProxyConfig, mesh: Mesh) -> Iterator[Unheld]:
    """Yield the policies that select a pod and that its proxy does not hold.

    Only for sidecars and gateways that take requests; a waypoint holds policies that are attached
    to it, which select no pod. Policies that istiod makes nothing of are left out.
    """
    if pod.mesh not in ("sidecar", "gateway") or not _takes_requests(config):
        return
    policies, issuers = held(config)
    updated = latest(taken.since for taken in config.listeners.values())
    for policy in mesh.of("AuthorizationPolicy"):
        expected = _named(policy) and (policy.namespace, policy.name) not in policies
        if expected and _is_for(policy, pod, mesh):
            yield Unheld(policy, pod, updated)
    for policy in mesh.of("RequestAuthentication"):
        wanted = {str(dig(rule, "issuer", default="")) for rule in items(policy.spec, "jwtRules")}
        if wanted - issuers and _is_for(policy, pod, mesh):
            yield Unheld(policy, pod, updated)


def _is_for(policy: ConfigObject, pod: Pod, mesh: Mesh) -> bool:
    """Whether a policy is for a pod's proxy, and for any istiod.

    What is attached to a Service is for its waypoint, not for the sidecars of its pods.
    """
    if _REVISION in policy.labels or (target_references(policy) and pod.mesh != "gateway"):
        return False
    return pod in mesh.workload_selected(policy)


def _named(policy: ConfigObject) -> bool:
    """Whether istiod makes rules with names of a policy: one without rules has none."""
    action = str(dig(policy.spec, "action", default="ALLOW"))
    return action in ("ALLOW", "DENY", "CUSTOM") and bool(items(policy.spec, "rules"))


def _takes_requests(config: ProxyConfig) -> bool:
    return any(
        str(mapping(one).get("@type", "")).endswith("HttpConnectionManager")
        for one in _configs(config)
    )
