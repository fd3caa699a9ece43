"""Checks of how requests are shared among endpoints. Codes MNB280 to MNB299."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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
    subject_of,
    symptom_rows,
    unseen,
)
from meshnb.symptoms import Symptoms
from meshnb.tables import Facts
from meshnb.tables.base import dig, items, mapping
from meshnb.traces.mesh import ConfigObject, Mesh, host_matches
from meshnb.traces.rules import rule_host

#: Below so many requests, a share is chance.
_ENOUGH = 50
#: An endpoint with more than this share of the requests, of two or more, takes nearly all.
_NEARLY_ALL = 0.9
_FAILING = frozenset({"UF", "UC", "UT", "UH"})


def _policies(rule: ConfigObject) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield each policy of a DestinationRule with its path."""
    policy = mapping(rule.spec, "trafficPolicy")
    scopes = [("spec.trafficPolicy", policy)]
    scopes += [
        (f"spec.trafficPolicy.portLevelSettings[{number}]", mapping(level))
        for number, level in enumerate(items(policy, "portLevelSettings"))
    ]
    scopes += [
        (f"spec.subsets[{number}].trafficPolicy", mapping(subset, "trafficPolicy"))
        for number, subset in enumerate(items(rule.spec, "subsets"))
    ]
    yield from ((path, one) for path, one in scopes if one)


@check("MNB280", Severity.WARNING, cause=Cause.CONTROL_PLANE_CONFIG)
def failover_without_detection(
    mesh: Mesh,
    symptoms: Symptoms,
    istio_config: pd.DataFrame,
    clusters: pd.DataFrame,
    facts: Facts,
) -> Iterator[Finding]:
    """Every rule that fails over to another place can tell that the nearest one has failed.

    Envoy turns to the next locality when the endpoints of the nearest one are unhealthy, and only
    outlierDetection makes them so. Without it, failover and failoverPriority do nothing.
    """
    for rule in mesh.of("DestinationRule"):
        whole = mapping(rule.spec, "trafficPolicy")
        for path, policy in _policies(rule):
            locality = mapping(policy, "loadBalancer", "localityLbSetting")
            chosen = [key for key in ("failover", "failoverPriority") if locality.get(key)]
            # Settings of a port stand alone; those of a subset add to those of the host.
            inherits = "subsets" in path and mapping(whole, "outlierDetection")
            if not chosen or mapping(policy, "outlierDetection") or inherits:
                continue
            if locality.get("enabled") is False:
                continue
            host = rule_host(rule, mesh)
            seen = [
                s
                for s in symptoms
                if s.side != "server" and host_matches(host, s.host) and bool(_FAILING & s.flags)
            ]
            shaped = clusters[
                (clusters["destination_rule"] == f"{rule.name}.{rule.namespace}")
                .fillna(False)
                .astype(bool)
            ]
            yield Finding(
                subject_of(rule),
                f"{rule} sets {and_list(chosen)} for {host} ({path}.loadBalancer), and no "
                "outlierDetection, so requests stay where they are when the endpoints there fail.",
                f"Add outlierDetection with {edit(subject_of(rule))}.",
                evidence=(
                    *symptom_rows(facts, seen),
                    config_rows(istio_config, rule),
                    Evidence.of(clusters, shaped.index[:20]),
                ),
                explains=ids(seen),
                certainty=0.6,
            )


@check("MNB281", Severity.WARNING, cause=Cause.CONTROL_PLANE_CONFIG)
def localities_unknown(
    mesh: Mesh, istio_config: pd.DataFrame, nodes: pd.DataFrame, facts: Facts
) -> Iterator[Finding]:
    """Where requests are shared by locality, the nodes say in which locality they are.

    An endpoint's region and zone are the labels topology.kubernetes.io/region and zone of its node.
    Without them all endpoints are in the same place, and rules about places do nothing.
    """
    if unseen(facts, "nodes", "nodes") or not len(nodes) or nodes["region"].notna().any():
        return
    for rule in mesh.of("DestinationRule"):
        for path, policy in _policies(rule):
            locality = mapping(policy, "loadBalancer", "localityLbSetting")
            if not any(locality.get(key) for key in ("failover", "distribute")):
                continue
            yield Finding(
                subject_of(rule),
                f"{rule} shares requests by locality ({path}.loadBalancer), and none of the "
                f"{len(nodes)} nodes has a label with its region.",
                "Label the nodes: `kubectl label node NODE topology.kubernetes.io/region=REGION`.",
                evidence=(config_rows(istio_config, rule), Evidence.of(nodes)),
            )


@check("MNB282", Severity.WARNING, cause=Cause.CONTROL_PLANE_CONFIG)
def weight_left_out(mesh: Mesh, istio_config: pd.DataFrame) -> Iterator[Finding]:
    """Each of several destinations of a route has a weight.

    Weights are shares of their sum. A destination without one, beside others that have one, gets
    nothing.
    """
    for service in mesh.of("VirtualService"):
        for protocol in ("http", "tls", "tcp"):
            for number, route in enumerate(items(service.spec, protocol)):
                targets = items(route, "route")
                bare = [
                    " ".join(
                        str(dig(one, "destination", key))
                        for key in ("host", "subset")
                        if dig(one, "destination", key)
                    )
                    for one in targets
                    if dig(one, "weight") is None
                ]
                if len(targets) < 2 or not bare or len(bare) == len(targets):
                    continue
                yield Finding(
                    subject_of(service),
                    f"Route {number} of {service} has weights, but none for {and_list(bare)}, "
                    "which gets no requests.",
                    f"Write each weight with {edit(subject_of(service))}; 0 says so on purpose.",
                    evidence=(config_rows(istio_config, service),),
                    path=f"spec.{protocol}[{number}].route",
                )


@check("MNB283", Severity.INFO, cause=Cause.CONTROL_PLANE_CONFIG)
def one_endpoint_gets_all(
    mesh: Mesh,
    istio_config: pd.DataFrame,
    clusters: pd.DataFrame,
    endpoints: pd.DataFrame,
) -> Iterator[Finding]:
    """No consistent hash sends nearly all requests to one endpoint.

    A hash of a header, a cookie or the client's address sends what is equal to the same endpoint.
    When nearly all requests are equal in that respect, one endpoint gets nearly all.
    """
    hashed = clusters[clusters["lb_policy"].isin(["RING_HASH", "MAGLEV"])]
    for (cluster, rule_name), rows in hashed.groupby(["cluster", "destination_rule"]):
        given = endpoints[
            (endpoints["cluster"] == cluster) & endpoints["proxy"].isin(rows["proxy"])
        ]
        shares = given.groupby("endpoint")["requests"].sum()
        total = float(shares.sum())
        if len(shares) < 2 or total < _ENOUGH or float(shares.max()) < _NEARLY_ALL * total:
            continue
        for rule in mesh.of("DestinationRule"):
            if f"{rule.name}.{rule.namespace}" != rule_name:
                continue
            by = next(
                (
                    mapping(policy, "loadBalancer", "consistentHash")
                    for _, policy in _policies(rule)
                    if mapping(policy, "loadBalancer", "consistentHash")
                ),
                {},
            )
            yield Finding(
                subject_of(rule),
                f"{rule} chooses endpoints by {and_list(by) or 'a hash'}, and {shares.idxmax()} "
                f"got {shares.max():g} of {total:g} requests in {cluster}.",
                f"Hash something that differs between callers: {edit(subject_of(rule))}.",
                evidence=(
                    Evidence.of(endpoints, given.index),
                    Evidence.of(clusters, rows.index),
                    config_rows(istio_config, rule),
                ),
            )
