"""Which object decides what a client's proxy speaks: a DestinationRule, or automatic mutual TLS.

The order is istiod's: the rules of the client's namespace, then those of the Service's, then those
of the root namespace; in a namespace the one with the most specific host. A subset's settings come
before the rule's own, a port's before those for all ports, and they are not merged
(https://istio.io/latest/docs/reference/config/networking/destination-rule/#TrafficPolicy).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from meshnb.tables.base import Json, dig, items, mapping
from meshnb.traces.mesh import ConfigObject, Mesh, host_matches, oldest
from meshnb.traces.rules import host_rank, rule_host, visible


@dataclass(frozen=True, slots=True)
class TlsSetting:
    """The TLS mode that a client's proxy is given for a host and port."""

    #: DISABLE, SIMPLE, MUTUAL or ISTIO_MUTUAL; empty when no rule sets one
    mode: str
    #: the rule in force for the host, whether it sets a mode or not
    rule: ConfigObject | None
    #: where in the rule the mode stands
    path: str
    #: whether istiod turns mutual TLS on by itself where the server can take it
    automatic: bool
    #: rules that cover the host and do not count here, and why
    passed_over: tuple[tuple[str, str], ...]

    @property
    def demands_names(self) -> bool:
        """Whether the rule itself names whom the server must be (subjectAltNames)."""
        return "subjectAltNames" in str(self.rule.spec) if self.rule is not None else False

    @property
    def words(self) -> str:
        """What decides, in words."""
        if self.mode:
            return f"{self.rule} sets TLS mode {self.mode} ({self.path})"
        none = f"{self.rule} sets no TLS mode" if self.rule else "no DestinationRule is in force"
        if self.automatic:
            return f"{none}, so automatic mutual TLS decides by what each endpoint can take"
        return f"{none}, and automatic mutual TLS is off (enableAutoMtls)"


def tls_setting(
    mesh: Mesh, client_namespace: str, host: str, host_namespace: str, port: int, subset: str = ""
) -> TlsSetting:
    """Return what decides about the TLS of clients of a namespace towards a host and port."""
    automatic = mesh.settings.get("enableAutoMtls", "true") != "false"
    covering = [
        rule for rule in mesh.of("DestinationRule") if host_matches(rule_host(rule, mesh), host)
    ]
    over = [
        (str(rule), f"it is not exported to {client_namespace}")
        for rule in covering
        if not visible(rule, client_namespace, mesh)
    ]
    covering = [rule for rule in covering if visible(rule, client_namespace, mesh)]
    places = list(dict.fromkeys((client_namespace, host_namespace, mesh.root_namespace)))
    chosen: list[ConfigObject] = []
    for place in places:
        there = [rule for rule in covering if rule.namespace == place]
        best = max((host_rank(rule_host(rule, mesh)) for rule in there), default=None)
        here = [rule for rule in oldest(there) if host_rank(rule_host(rule, mesh)) == best]
        if here and not chosen:
            chosen = here
            why = "a rule with a more specific host comes before it"
            over += [(str(rule), why) for rule in there if rule not in here]
        else:
            over += [(str(rule), f"{chosen[0]} comes before it") for rule in there if chosen]
    over += [
        (str(rule), "its namespace is neither the client's, the Service's nor the root namespace")
        for rule in covering
        if rule.namespace not in places
    ]
    # Rules for the same host in one namespace are merged: the first that says something counts.
    for rule in chosen:
        found = _mode(rule, port, subset)
        if found is not None:
            path, mode = found
            return TlsSetting(mode, rule, path, automatic, tuple(over))
    return TlsSetting("", next(iter(chosen), None), "", automatic, tuple(over))


def _mode(rule: ConfigObject, port: int, subset: str) -> tuple[str, str] | None:
    scopes: list[tuple[str, Json]] = [
        (f"spec.subsets[{number}].trafficPolicy", mapping(one, "trafficPolicy"))
        for number, one in enumerate(items(rule.spec, "subsets"))
        if subset and dig(one, "name") == subset
    ]
    scopes.append(("spec.trafficPolicy", mapping(rule.spec, "trafficPolicy")))
    for path, policy in scopes:
        for number, level in enumerate(items(policy, "portLevelSettings")):
            if dig(level, "port", "number") == port:
                return _said(f"{path}.portLevelSettings[{number}]", level)
        if mapping(policy, "tls"):
            return _said(path, policy)
    return None


def _said(path: str, policy: Any) -> tuple[str, str] | None:
    mode = dig(policy, "tls", "mode")
    return (f"{path}.tls.mode", str(mode)) if mode else None
