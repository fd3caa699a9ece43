"""Checks of DestinationRules: subsets, and policies that count. Codes MNB210 to MNB219."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from typing import Any

import pandas as pd

from meshnb.checks.base import (
    Cause,
    Evidence,
    Finding,
    Severity,
    and_list,
    check,
    config_rows,
    edit,
    ids,
    rows_of,
    start,
    subject_of,
    symptom_rows,
    unseen,
    workload_in,
)
from meshnb.checks.routing import (
    destination_rules,
    destinations,
    hosts_unseen,
    latest,
    without_cluster,
)
from meshnb.symptoms import Symptom, Symptoms
from meshnb.symptoms.base import REPEATED
from meshnb.symptoms.requests import split_address
from meshnb.tables import Facts
from meshnb.tables.base import dig, items, mapping
from meshnb.traces.mesh import ConfigObject, Mesh, oldest
from meshnb.traces.rules import (
    GATEWAY_GROUP,
    bound_gateways,
    delegating,
    exported_to,
    host_namespaces,
    rule_host,
    rules_for,
    visible,
)
from meshnb.traces.servers import selected_gateways


@check("MNB210", Severity.ERROR, cause=Cause.CONTROL_PLANE_CONFIG)
def route_to_missing_subset(
    mesh: Mesh, symptoms: Symptoms, istio_config: pd.DataFrame, routes: pd.DataFrame, facts: Facts
) -> Iterator[Finding]:
    """Every subset that a route sends to is defined by a DestinationRule that its callers see.

    A subset is a cluster of its own. When no DestinationRule of the caller's namespace, of the
    Service's, or of the root namespace defines it, proxies get the route without the cluster, and
    answer 503 with flag NC (cluster_not_found) themselves.
    """
    for service in mesh.of("VirtualService"):
        told: set[tuple[str, str]] = set()
        for path, target, weight in destinations(service):
            subset = str(dig(target, "subset", default=""))
            host = mesh.fqdn(str(dig(target, "host", default="")), service.namespace)
            if (
                (host, subset) in told
                or not subset
                or not (mesh.known_host(host) or hosts_unseen(facts))
            ):
                continue
            seen = without_cluster(symptoms, service, path, mesh)
            if not seen and _defined_for_all(subset, host, mesh):
                continue
            callers = _namespaces(service, seen, mesh)
            rules = list(
                dict.fromkeys(rule for one in callers for rule in rules_for(host, one, mesh))
            )
            lacking = [one for one in callers if subset not in _subsets(rules_for(host, one, mesh))]
            # Without failures nobody knows whether those who lack it ever ask.
            if not lacking or (not seen and len(lacking) < len(callers)):
                continue
            if not seen and unseen(facts, "istio_config", "destinationrules"):
                continue
            if weight != 0 and "mirror" not in path:
                told.add((host, subset))
            share = f"{weight} % of" if weight is not None else "all"
            defined = _subsets(rules)
            known = f" Defined are {and_list(sorted(defined))}." if defined else ""
            elsewhere = [
                rule
                for rule in destination_rules(mesh, host)
                if rule not in rules and subset in _subsets([rule])
            ]
            out_of_sight = (
                f" {and_list(map(str, elsewhere))} defines it, which proxies of "
                f"{and_list(lacking)} do not take."
                if elsewhere
                else ""
            )
            where = f"by {and_list(str(rule) for rule in rules)}" if rules else "anywhere"
            where = "where they look" if elsewhere else where
            # A subset that is there, but out of sight, is mended where it is defined.
            guilty = latest(service, *(elsewhere or rules))
            carried = rows_of(routes, virtual_service=f"{service.name}.{service.namespace}")
            yield Finding(
                subject_of(guilty),
                f"{service} sends {share} its matching requests to subset {subset} of {host} "
                f"({path}), which is not defined {where}.{known}{out_of_sight}",
                f"Define {subset} in the namespace of {host}, and export it: "
                f"{edit(subject_of(elsewhere[0]))}."
                if elsewhere
                else f"Name a subset that exists with {edit(subject_of(service))}, or define "
                f"{subset}"
                + (f" with {edit(subject_of(rules[0]))}." if rules else " in a DestinationRule."),
                evidence=(
                    *symptom_rows(facts, seen),
                    Evidence.of(carried),
                    config_rows(istio_config, service, *rules, *elsewhere),
                ),
                related=tuple(
                    subject_of(one) for one in (service, *elsewhere, *rules) if one is not guilty
                ),
                explains=ids(seen),
                severity=Severity.INFO if weight == 0 or "mirror" in path else None,
            )


def _defined_for_all(subset: str, host: str, mesh: Mesh) -> bool:
    """Whether a rule that everybody sees, where everybody looks, defines a subset."""
    places = (*host_namespaces(host, mesh), mesh.root_namespace)
    return any(
        rule.namespace in places and "*" in exported_to(rule, mesh) and subset in _subsets([rule])
        for rule in destination_rules(mesh, host)
    )


def _subsets(rules: Iterable[ConfigObject]) -> set[str]:
    return {str(dig(entry, "name")) for rule in rules for entry in items(rule.spec, "subsets")}


def _namespaces(service: ConfigObject, seen: list[Symptom], mesh: Mesh) -> list[str]:
    """Return the namespaces of those who use a VirtualService: who failed, or who may use it."""
    reporters = [pod.namespace for s in seen for pod in mesh.pods_of(s.reporters)]
    if reporters:
        return list(dict.fromkeys(reporters))
    bound = bound_gateways(service)
    roots = [name for root in delegating(service, mesh) for name in bound_gateways(root)]
    names = set(roots or bound)
    found = {
        pod.namespace
        for gateway in mesh.of("Gateway", GATEWAY_GROUP)
        if f"{gateway.namespace}/{gateway.name}" in names
        for pod in selected_gateways(gateway, mesh)
    }
    if "mesh" in names:
        found |= {
            pod.namespace
            for pod in mesh.pods
            if pod.mesh == "sidecar" and pod.running and visible(service, pod.namespace, mesh)
        }
    return sorted(found) or [service.namespace]


@check("MNB211", Severity.ERROR, cause=Cause.CONTROL_PLANE_CONFIG)
def subset_without_pods(
    mesh: Mesh,
    symptoms: Symptoms,
    istio_config: pd.DataFrame,
    endpoints: pd.DataFrame,
    workloads: pd.DataFrame,
    facts: Facts,
) -> Iterator[Finding]:
    """Every subset in use has labels that select pods of its Service.

    A subset's endpoints are the Service's endpoints that carry its labels. When none does, its
    cluster is empty, and Envoy answers 503 with flag UH (no_healthy_upstream).
    """
    used = {
        (
            mesh.fqdn(str(dig(target, "host", default="")), service.namespace),
            str(dig(target, "subset")),
        )
        for service in mesh.of("VirtualService")
        for _, target, weight in destinations(service)
        if weight != 0
    }
    for rule in mesh.of("DestinationRule"):
        host = rule_host(rule, mesh)
        ports = mesh.ports(host)
        if not ports or not ports[0].selector:
            continue
        behind = mesh.selected(ports[0])
        for position, subset in enumerate(items(rule.spec, "subsets")):
            name, labels = str(dig(subset, "name", default="")), mapping(subset, "labels")
            if not behind or any(labels.items() <= pod.labels.items() for pod in behind):
                continue
            seen = [s for s in symptoms if "UH" in s.flags and f"|{name}|{host}" in s.cluster]
            values = sorted(
                {
                    f"{key}={pod.labels.get(key)}"
                    for pod in behind
                    for key in labels
                    if key in pod.labels
                }
            )
            have = f"they have {and_list(values)}" if values else "they have no such label"
            in_use = (host, name) in used
            stopped = workloads[
                [
                    namespace == ports[0].namespace
                    and {**ports[0].selector, **labels}.items() <= (own or {}).items()
                    for namespace, own in zip(
                        workloads["namespace"], workloads["labels"], strict=True
                    )
                ]
            ]
            subject = subject_of(rule)
            what = f"{have} (spec.subsets[{position}].labels)"
            remedy = f"Correct the labels with {edit(subject)}, or deploy pods that carry them."
            if len(stopped):
                subject = workload_in(stopped.iloc[0])
                what = f"{subject} would make such pods, and has none"
                remedy = start(subject)
            yield Finding(
                subject,
                f"Subset {name} of {rule} selects {_labels(labels)}, and none of the {len(behind)} "
                f"pods of {host} carries that: {what}.",
                remedy,
                evidence=(
                    *symptom_rows(facts, seen),
                    Evidence.of(workloads, stopped.index),
                    Evidence.of(rows_of(endpoints, cluster=f"outbound|{ports[0].port}||{host}")),
                    config_rows(istio_config, rule),
                ),
                related=(subject_of(rule),) if len(stopped) else (),
                explains=ids(seen),
                severity=None if seen else Severity.WARNING if in_use else Severity.INFO,
                cause=Cause.DATA_PLANE if len(stopped) else None,
            )


def _labels(labels: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in labels.items())


@check("MNB212", Severity.WARNING, cause=Cause.CONTROL_PLANE_CONFIG)
def rule_without_effect(
    mesh: Mesh,
    istio_config: pd.DataFrame,
    services: pd.DataFrame,
    access_log: pd.DataFrame,
    facts: Facts,
) -> Iterator[Finding]:
    """Every DestinationRule shapes the clusters of some proxy.

    Proxies take it from their own namespace, from that of the Service, or from the root namespace,
    and nowhere else. Of two for one host in one namespace the older one's policy counts. A rule for
    a name that no Service has, or a policy of subsets that no route names, shapes nothing.
    """
    if hosts_unseen(facts):
        return
    used = {
        (mesh.fqdn(str(dig(target, "host", default="")), service.namespace), dig(target, "subset"))
        for service in mesh.of("VirtualService")
        for _, target, _ in destinations(service)
    }
    older: dict[tuple[str, str], ConfigObject] = {}
    for rule in oldest(mesh.of("DestinationRule")):
        host = rule_host(rule, mesh)
        if mapping(rule.spec, "workloadSelector"):
            continue
        first = older.setdefault((rule.namespace, host), rule)
        reason = (
            _unknown(host, rule, mesh, access_log)
            or _out_of_sight(host, rule, mesh, access_log)
            or _preceded(host, rule, mesh)
            or (_overruled(first, rule) if first is not rule else None)
            or _unused(host, rule, used)
        )
        if reason is None:
            continue
        words, remedy, severity = reason
        yield Finding(
            subject_of(rule),
            f"{rule} has no effect on {host}: {words}.",
            remedy,
            evidence=(
                config_rows(istio_config, *dict.fromkeys((first, rule))),
                Evidence.of(rows_of(services, host=host)),
            ),
            related=() if first is rule else (subject_of(first),),
            severity=severity,
        )


_Reason = tuple[str, str, Severity | None]


def _unknown(host: str, rule: ConfigObject, mesh: Mesh, access_log: pd.DataFrame) -> _Reason | None:
    if "*" in host or mesh.known_host(host):
        return None
    if host in {split_address(str(one))[0] for one in access_log["authority"].dropna().unique()}:
        return None  # somebody calls it so: why it is not registered, other checks say
    short = host.partition(".")[0]
    meant = sorted({port.host for port in mesh.services if port.service == short})
    meant = meant or get_close_matches(host, mesh.hosts, n=1, cutoff=0.85)
    hint = f"; there is {and_list(meant)}" if meant else ""
    return (
        f"no Service and no ServiceEntry has that name{hint}",
        f"Write the full name of the Service with {edit(subject_of(rule))}.",
        None if meant else Severity.INFO,
    )


def _out_of_sight(
    host: str, rule: ConfigObject, mesh: Mesh, access_log: pd.DataFrame
) -> _Reason | None:
    owners = host_namespaces(host, mesh)
    if "*" in host or not owners or rule.namespace in (*owners, mesh.root_namespace):
        return None
    proxied = any(pod.namespace == rule.namespace and pod.in_mesh for pod in mesh.pods)
    calls = access_log[access_log["cluster"].fillna("").str.endswith(f"|{host}")]
    calls = calls[calls["direction"] == "outbound"]
    own = int((calls["namespace"] == rule.namespace).sum())
    if proxied and (own or len(calls) < REPEATED):
        return None
    who = "calls it" if proxied else "has a proxy"
    words = (
        f"it counts for the proxies of {rule.namespace} only, and nobody there {who}; those of "
        f"other namespaces look in {and_list(owners)} and {mesh.root_namespace}"
    )
    command = f"`kubectl -n {rule.namespace} get destinationrule {rule.name} -o yaml`"
    return words, f"Move it to {owners[0]}: {command}.", None


def _preceded(host: str, rule: ConfigObject, mesh: Mesh) -> _Reason | None:
    """Tell of a rule in the root namespace for a host whose own namespace has one as well.

    A proxy takes the first that it finds: in its own namespace, in the Service's, in the root's.
    """
    owners = [one for one in host_namespaces(host, mesh) if one != rule.namespace]
    if "*" in host or rule.namespace != mesh.root_namespace or not owners:
        return None
    nearer = [
        one
        for one in mesh.of("DestinationRule")
        if one.namespace in owners
        and rule_host(one, mesh) == host
        and not mapping(one.spec, "workloadSelector")
        and items(one.spec, "exportTo") in ([], ["*"])
    ]
    if not nearer or rule.namespace in host_namespaces(host, mesh):
        return None
    # Who changed the one without effect last expects something of it.
    expected = rule.changed > max(one.changed for one in nearer)
    return (
        f"{nearer[0]} in the Service's own namespace comes before it",
        f"Merge the two with {edit(subject_of(nearer[0]))}, and delete one.",
        None if expected else Severity.INFO,
    )


def _overruled(first: ConfigObject, rule: ConfigObject) -> _Reason | None:
    lost = []
    policy = mapping(rule.spec, "trafficPolicy")
    if policy and mapping(first.spec, "trafficPolicy") and policy != first.spec["trafficPolicy"]:
        lost.append("trafficPolicy")
    defined = {dig(one, "name"): one for one in items(first.spec, "subsets")}
    lost += [
        f"subset {dig(one, 'name')}"
        for one in items(rule.spec, "subsets")
        if dig(one, "name") in defined and one != defined[dig(one, "name")]
    ]
    if not lost or set(items(first.spec, "exportTo")) != set(items(rule.spec, "exportTo")):
        return None
    return (
        f"the older {first} says another {and_list(lost)} already",
        f"Merge the two with {edit(subject_of(first))}, and delete one.",
        None,
    )


def _unused(host: str, rule: ConfigObject, used: set[tuple[str, Any]]) -> _Reason | None:
    subsets = items(rule.spec, "subsets")
    shaped = [dig(one, "name") for one in subsets if mapping(one, "trafficPolicy")]
    if not shaped or mapping(rule.spec, "trafficPolicy"):
        return None
    if any((host, dig(one, "name")) in used for one in subsets):
        return None
    return (
        f"it has policies for subset {and_list(shaped)} only, and no route leads to a subset",
        f"Move the policy to spec.trafficPolicy with {edit(subject_of(rule))}.",
        None,
    )
