"""Checks of what proxies themselves hold to refuse callers by. Codes MNB550 to MNB559.

A 403 with ``rbac_access_denied_matched_policy[none]`` is not always an AuthorizationPolicy's: the
filter that refused is found in the proxy's own configuration.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from typing import Any

import pandas as pd

from meshnb.checks.base import (
    Cause,
    Evidence,
    Finding,
    Severity,
    Subject,
    and_list,
    check,
    config_rows,
    counted,
    edit,
    ids,
    subject_of,
    symptom_rows,
)
from meshnb.symptoms import Symptom, Symptoms
from meshnb.tables import Facts
from meshnb.tables.base import dig, items, mapping
from meshnb.traces.envoy.configs import ProxyConfigs
from meshnb.traces.envoy.matchers import Undecided
from meshnb.traces.envoy.policies import RBAC_DENIED, Decision
from meshnb.traces.failures import Failure
from meshnb.traces.following.inbound import SENT, Inbound, Met
from meshnb.traces.istiod_objects import istiods_objects
from meshnb.traces.mesh import ConfigObject, Mesh, plain
from meshnb.traces.rungs.held_policies import Unheld, unheld

_NONE = f"{RBAC_DENIED}[none]"
#: istiod's prefix of the names of WasmPlugins, which it spells so.
_PLUGIN_NAMES = ("extenstions.istio.io/wasmplugin/", "extensions.istio.io/wasmplugin/")
_SPIFFE = "spiffe://"
#: The name of a proxy's own certificate among its secrets.
_OWN = "default"
#: A policy may be on its way for so long.
_ON_ITS_WAY = timedelta(seconds=60)


@dataclass(frozen=True, slots=True)
class Fallback:
    """What an agent put in the place of a Wasm module that it could not load, in one proxy."""

    proxy: str
    #: the filter's name in the proxy
    name: str
    plugin: Subject
    #: whether it refuses everything, or lets everything through
    closed: bool
    index: int


def fallbacks(extension_configs: pd.DataFrame, mesh: Mesh) -> list[Fallback]:
    """Return the filters that stand for Wasm modules which could not be loaded.

    Istio's agent then hands the proxy an RBAC filter by the plugin's name: without any rule that
    admits when the plugin fails closed, without rules at all when it fails open.
    """
    plugins = {(item.namespace, item.name) for item in mesh.of("WasmPlugin")}
    found = []
    columns = ("proxy", "ecds_name", "type", "config")
    rows = zip(extension_configs.index, *(extension_configs[name] for name in columns), strict=True)
    for index, proxy, name, kind, config in rows:
        namespace, _, short = str(name).rpartition("/")[2].partition(".")
        known = str(name).startswith(_PLUGIN_NAMES) or (namespace, short) in plugins
        if not known or not str(kind).endswith(".rbac.v3.RBAC"):
            continue
        rules = mapping(config).get("rules")
        closed = rules is not None and not mapping(rules, "policies")
        if closed or rules is None:
            plugin = Subject("WasmPlugin", namespace, short)
            found.append(Fallback(str(proxy), str(name), plugin, closed, int(index)))
    return found


class Refusals:
    """Which filter of the server's own proxy refused a request, asked failure by failure.

    What it takes is read when the first failure is asked about.
    """

    def __init__(self, facts: Facts, mesh: Mesh) -> None:
        """Take a source's facts."""
        self._facts = facts
        self._mesh = mesh
        self.inbound = Inbound(facts, mesh)

    @cached_property
    def _closed(self) -> Mapping[tuple[str, str], Fallback]:
        found = fallbacks(self._facts["extension_configs"], self._mesh)
        return {(one.proxy, one.name): one for one in found if one.closed}

    @cached_property
    def several_domains(self) -> bool:
        """Whether there are certificates, or a mesh, of more than one trust domain."""
        certificates = self._facts["certificates"]
        own = certificates.loc[certificates["resource_name"] == _OWN, "trust_domain"]
        configured = self._mesh.settings.get("trustDomain")
        return len({*own.dropna(), *([configured] if configured else [])}) > 1

    def meet(self, failure: Failure) -> Met | None:
        """Return how a failure's request met the policies of its server; None if not known."""
        row = self._facts["access_log"].loc[failure.index]
        found = self.inbound.meet({name: row[name] for name in SENT})
        return None if isinstance(found, Undecided) else found

    def decision(self, failure: Failure) -> Decision | None:
        """Return the decision that refused, None when that cannot be told."""
        met = self.meet(failure)
        found = None if met is None else met.decide().deciding
        return found if found is not None and found.outcome == "stopped" else None

    def fallback(self, failure: Failure) -> Fallback | None:
        """Return what stands for a Wasm module and refused; None when something else did."""
        if not any(proxy == failure.proxy for proxy, _ in self._closed):
            return None
        decision = self.decision(failure)
        return None if decision is None else self._closed.get((failure.proxy, decision.filter))

    def other_domain(self, failure: Failure) -> tuple[str, str] | None:
        """Return the caller's trust domain and the one in which it would have been admitted."""
        met = self.meet(failure) if self.several_domains else None
        if met is None or isinstance(met.arrival.names, Undecided):
            return None
        names = [name for name in met.arrival.names if name.startswith(_SPIFFE)]
        if not names or met.decide().outcome != "stopped":
            return None
        shown, _, rest = names[0].removeprefix(_SPIFFE).partition("/")
        for wanted in sorted(_domains_named(met.chain) - {shown}):
            if met.decide((f"{_SPIFFE}{wanted}/{rest}",)).outcome == "passed":
                return shown, wanted
        return None

    def elsewhere(self, failure: Failure) -> bool:
        """Whether something else than the rules of an AuthorizationPolicy is at fault."""
        return self.fallback(failure) is not None or self.other_domain(failure) is not None


@check("MNB550", Severity.WARNING, cause=Cause.CONTROL_PLANE_CONFIG)
def wasm_module_missing(
    mesh: Mesh,
    symptoms: Symptoms,
    extension_configs: pd.DataFrame,
    istio_config: pd.DataFrame,
    proxy_log: pd.DataFrame,
    facts: Facts,
) -> Iterator[Finding]:
    """Every Wasm module is loaded that a WasmPlugin names.

    The proxy's agent fetches it. Where it cannot, a plugin that fails closed refuses every request:
    403 with rbac_access_denied_matched_policy[none], as if no AuthorizationPolicy admitted it. One
    that fails open is left out, and nobody is told.
    """
    by_plugin: dict[tuple[Subject, bool], list[Fallback]] = {}
    for one in fallbacks(extension_configs, mesh):
        by_plugin.setdefault((one.plugin, one.closed), []).append(one)
    if not by_plugin:
        return
    refusals = Refusals(facts, mesh)
    blamed: dict[Subject, list[Symptom]] = {}
    for symptom in symptoms:
        if _NONE not in symptom.details:
            continue
        plugins = {
            refused.plugin
            for failure in symptom.failures
            if (refused := refusals.fallback(failure)) is not None
        }
        for plugin in plugins:
            blamed.setdefault(plugin, []).append(symptom)
    written = {subject_of(item): item for item in mesh.of("WasmPlugin")}
    for (plugin, closed), found in by_plugin.items():
        seen = blamed.get(plugin, []) if closed else []
        proxies = sorted({one.proxy for one in found})
        item = written.get(plugin)
        url = f" from {dig(item.spec, 'url')}" if item is not None and dig(item.spec, "url") else ""
        effect = "they refuse every request" if closed else "requests pass without it"
        yield Finding(
            plugin,
            f"{counted(len(proxies), 'proxy')} ({and_list(proxies)}) could not load the "
            f"module of {plugin}{url}, and {effect}.",
            f"Correct spec.url, spec.sha256 or spec.imagePullSecret with {edit(plugin)}.",
            evidence=(
                *symptom_rows(facts, seen),
                Evidence.of(extension_configs, [one.index for one in found]),
                *_said(proxy_log, proxies),
                *((config_rows(istio_config, item),) if item is not None else ()),
            ),
            explains=ids(seen),
            severity=Severity.ERROR if seen else None,
            mechanism="The agent puts a filter in its place that refuses everybody."
            if closed
            else "",
            path="spec.url",
        )


def _said(proxy_log: pd.DataFrame, proxies: list[str]) -> tuple[Evidence, ...]:
    """Return what the agents of some proxies said of Wasm modules, the last lines of it."""
    messages = proxy_log["message"].fillna("").astype(str)
    about = proxy_log["proxy"].isin(proxies) & messages.str.contains("wasm", case=False)
    about &= proxy_log["level"].isin(["error", "warn", "warning"])
    rows = proxy_log[about].tail(5)
    return (Evidence.of(proxy_log, rows.index),) if len(rows) else ()


@check("MNB551", Severity.ERROR, cause=Cause.CONTROL_PLANE_CONFIG)
def trust_domain_unknown(
    mesh: Mesh,
    symptoms: Symptoms,
    certificates: pd.DataFrame,
    mesh_settings: pd.DataFrame,
    facts: Facts,
) -> Iterator[Finding]:
    """No caller is refused only because its certificate is of another trust domain.

    Principals begin with the trust domain. When it is changed, or clusters have different ones,
    rules name the one and certificates the other, until trustDomainAliases says that they are the
    same: 403 with rbac_access_denied_matched_policy[none].
    """
    own = certificates[(certificates["resource_name"] == _OWN) & certificates["sans"].notna()]
    refusals = Refusals(facts, mesh)
    found: dict[tuple[str, str], list[Symptom]] = {}
    for symptom in symptoms:
        if _NONE not in symptom.details:
            continue
        pairs = {pair for failure in symptom.failures if (pair := refusals.other_domain(failure))}
        for pair in pairs:
            found.setdefault(pair, []).append(symptom)
    for (shown, wanted), seen in found.items():
        settings = Subject("ConfigMap", mesh.root_namespace or "istio-system", "istio")
        shows = own[own["trust_domain"] == shown]
        setting = mesh_settings[
            mesh_settings["setting"].fillna("").astype(str).str.startswith("trustDomain")
        ]
        yield Finding(
            settings,
            f"Callers show certificates of the trust domain {shown}, and the rules of their servers"
            f" admit the same callers of {wanted} only.",
            f"Add {shown} and {wanted} to meshConfig.trustDomainAliases with {edit(settings)}.",
            evidence=(
                *symptom_rows(facts, seen),
                Evidence.of(certificates, shows.index),
                *((Evidence.of(mesh_settings, setting.index),) if len(setting) else ()),
            ),
            explains=ids(seen),
            mechanism="A principal counts with its trust domain.",
        )


def _domains_named(document: Any) -> set[str]:
    """Return the trust domains that the rules of a filter chain name."""
    found: set[str] = set()
    todo = [document]
    while todo:
        one = todo.pop()
        if isinstance(one, dict):
            todo += one.values()
        elif isinstance(one, list):
            todo += one
        elif isinstance(one, str) and one.startswith(_SPIFFE) and "/ns/" in one:
            found.add(one.removeprefix(_SPIFFE).partition("/")[0])
    return found


@check("MNB552", Severity.WARNING, cause=Cause.DATA_PLANE_CONFIG)
def policy_not_held(
    mesh: Mesh, istio_config: pd.DataFrame, listeners: pd.DataFrame, facts: Facts
) -> Iterator[Finding]:
    """Every proxy holds the policies that select its pod, and that istiod has.

    A policy protects nobody before it has arrived at the proxies of its servers. That it stands in
    Kubernetes, and is valid, says nothing about that.
    """
    sent = {name for one in istiods_objects(facts) for name in one.names}
    configs = ProxyConfigs(facts)
    refusing = set(listeners.loc[listeners["error"].notna(), "proxy"].dropna())
    missing: dict[ConfigObject, list[Unheld]] = {}
    for pod in mesh.pods:
        config = configs.of(pod.proxy) if pod.proxy and pod.running and pod.ready else None
        if config is None or pod.proxy in refusing:
            continue
        for one in unheld(pod, config, mesh):
            known = (one.policy.kind, one.policy.namespace, one.policy.name) in sent
            if known and _settled(one, facts):
                missing.setdefault(one.policy, []).append(one)
    for policy, found in missing.items():
        proxies = sorted(one.pod.proxy for one in found)
        last = max((one.updated for one in found if one.updated is not None), default=None)
        when = f" The last listener came at {last:%Y-%m-%d %H:%M:%S}." if last else ""
        whose = "the proxy of which does" if len(proxies) == 1 else "the proxies of which do"
        yield Finding(
            subject_of(policy),
            f"{policy} selects {and_list(proxies)}, {whose} not hold it: it has no effect there."
            f"{when}",
            f"See what istiod sends with `istioctl experimental authz check {found[0].pod.pod}."
            f"{found[0].pod.namespace}`.",
            evidence=(
                config_rows(istio_config, policy),
                Evidence.of(listeners, listeners.index[listeners["proxy"].isin(proxies)][:20]),
            ),
            certainty=0.8,
        )


def _settled(one: Unheld, facts: Facts) -> bool:
    """Whether a policy and the pod have been there long enough for the proxy to hold it."""
    times = [plain(one.policy.changed), plain(one.pod.created)]
    return all(time is None or facts.now - time > _ON_ITS_WAY for time in times)


@check("MNB553", Severity.ERROR, cause=Cause.CONTROL_PLANE_CONFIG)
def refused_by_envoy_filter(
    mesh: Mesh, symptoms: Symptoms, istio_config: pd.DataFrame, facts: Facts
) -> Iterator[Finding]:
    """No EnvoyFilter brings rules of its own that refuse callers.

    An EnvoyFilter can put an RBAC filter into the proxy beside those that istiod makes of
    AuthorizationPolicies. The access log looks the same, and no policy is to be found.
    """
    patches = {
        item: pods
        for item in mesh.of("EnvoyFilter")
        if _brings_rules(item) and (pods := {pod.proxy for pod in mesh.workload_selected(item)})
    }
    if not patches:
        return
    refusals = Refusals(facts, mesh)
    blamed: dict[ConfigObject, dict[str, Symptom]] = {}
    for symptom in symptoms:
        if RBAC_DENIED not in symptom.details or "ns[" in symptom.details:
            continue
        for failure in symptom.failures:
            decision = refusals.decision(failure)
            if decision is None or decision.object or refusals.fallback(failure) is not None:
                continue
            if _admits_nobody(failure, mesh):
                continue
            for item, proxies in patches.items():
                if failure.proxy in proxies:
                    blamed.setdefault(item, {})[symptom.id] = symptom
    for item, found in blamed.items():
        seen = list(found.values())
        yield Finding(
            subject_of(item),
            f"{item} puts rules of its own into {and_list(s.workload[1] for s in seen)}, which "
            "refuse requests that no AuthorizationPolicy refuses.",
            f"Correct its rules, or take them out, with {edit(subject_of(item))}.",
            evidence=(*symptom_rows(facts, seen), config_rows(istio_config, item)),
            explains=ids(seen),
            path="spec.configPatches",
        )


def _admits_nobody(failure: Failure, mesh: Mesh) -> bool:
    """Whether an AuthorizationPolicy without rules is for a server, which is not named either."""
    server = mesh.pod_of(failure.proxy)
    return any(
        str(dig(policy.spec, "action", default="ALLOW")) == "ALLOW"
        and not items(policy.spec, "rules")
        and server in mesh.workload_selected(policy)
        for policy in mesh.of("AuthorizationPolicy")
    )


def _brings_rules(item: ConfigObject) -> bool:
    return any(
        ".rbac.v3.RBAC" in str(dig(patch, "patch", "value"))
        for patch in items(item.spec, "configPatches")
    )
