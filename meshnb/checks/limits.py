"""Checks of limits that turn requests away: rates, connections, ejections.

Codes MNB850 to MNB879.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

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
)
from meshnb.symptoms import Symptom, Symptoms
from meshnb.tables import Facts
from meshnb.tables.base import dig
from meshnb.traces.mesh import ConfigObject, Mesh
from meshnb.traces.rules import rules_for

#: A rate limit that turns away less than this part of the requests is meant so.
_PEAK = 0.1


@check("MNB850", Severity.ERROR, cause=Cause.CONTROL_PLANE_CONFIG)
def rate_limited(
    mesh: Mesh, symptoms: Symptoms, istio_config: pd.DataFrame, facts: Facts
) -> Iterator[Finding]:
    """No rate limit turns requests away.

    A rate-limit filter, put into the proxies by an EnvoyFilter, answers 429 with flag RL as soon as
    its bucket is empty. The application never sees these requests.
    """
    for symptom in symptoms:
        if not {"RL", "RLSE"} & symptom.flags:
            continue
        pods = mesh.pods_of(symptom.reporters)
        filters = [
            item
            for item in mesh.of("EnvoyFilter")
            if "ratelimit" in json.dumps(item.spec)
            and set(pods) & set(mesh.workload_selected(item))
        ]
        servers = and_list(f"{pod.namespace}/{pod.workload}" for pod in pods)
        share = _share(symptom, facts["access_log"])
        for item in filters:
            bucket = _first(item.spec, "token_bucket")
            limit = (
                f" It allows {dig(bucket, 'tokens_per_fill', default=1)} per "
                f"{dig(bucket, 'fill_interval', default='interval')}, "
                f"{dig(bucket, 'max_tokens')} at once."
                if bucket
                else ""
            )
            yield Finding(
                subject_of(item),
                f"{item} limits the rate of requests to {servers}: {symptom.count} were answered "
                f"with {symptom.code}.{limit}",
                f"Raise the limit or take it out: {edit(subject_of(item))}.",
                evidence=(*symptom_rows(facts, [symptom]), config_rows(istio_config, item)),
                explains=ids([symptom]),
                certainty=1.0 / len(filters),
                # A limit that turns only peaks away does what it is there for.
                severity=Severity.INFO
                if symptom.is_over
                or (share < _PEAK and (symptom.worked_before or symptom.works_again))
                else None,
            )


def _share(symptom: Symptom, log: pd.DataFrame) -> float:
    """Return which part of the requests to the pods that report a symptom it is, from 0 to 1."""
    direction = "inbound" if symptom.side == "server" else "outbound"
    logged = log["proxy"].isin(symptom.reporters) & (log["direction"] == direction)
    return symptom.count / max(int(logged.sum()), 1)


def _first(value: object, name: str) -> object:
    """Return the first object that stands under a name anywhere in another one."""
    if isinstance(value, dict):
        if isinstance(value.get(name), dict):
            return value[name]
        children: list[object] = list(value.values())
    else:
        children = value if isinstance(value, list) else []
    return next((found for child in children if (found := _first(child, name))), None)


def _with(policy: str, mesh: Mesh, symptom: Symptom) -> list[ConfigObject]:
    """Return the DestinationRules with a policy that shape a host for those who report it."""
    namespaces = dict.fromkeys(pod.namespace for pod in mesh.pods_of(symptom.reporters))
    rules = dict.fromkeys(
        rule for namespace in namespaces for rule in rules_for(symptom.host, namespace, mesh)
    )
    return [rule for rule in rules if f'"{policy}"' in json.dumps(rule.spec)]


@check("MNB851", Severity.ERROR, cause=Cause.CONTROL_PLANE_CONFIG)
def connection_pool_overflow(
    mesh: Mesh, symptoms: Symptoms, istio_config: pd.DataFrame, clusters: pd.DataFrame, facts: Facts
) -> Iterator[Finding]:
    """No connection pool turns requests away.

    A connectionPool in a DestinationRule limits connections and waiting requests per proxy. Beyond
    the limit the caller's proxy answers 503 with flag UO (overflow) at once.
    """
    for symptom in symptoms:
        if "UO" not in symptom.flags:
            continue
        rules = _with("connectionPool", mesh, symptom)
        carried = clusters[
            (clusters["cluster"] == symptom.cluster).fillna(False).astype(bool)
            & clusters["proxy"].isin(symptom.reporters)
        ]
        for rule in rules[:1]:
            pool = _first(rule.spec, "connectionPool")
            yield Finding(
                subject_of(rule),
                f"{rule} limits the connections to {symptom.host} ({json.dumps(pool)}), and "
                f"{symptom.count} requests were turned away because the pool was full.",
                f"Raise the limits with {edit(subject_of(rule))}, or let the service answer "
                "faster.",
                evidence=(
                    *symptom_rows(facts, [symptom]),
                    Evidence.of(clusters, carried.index),
                    config_rows(istio_config, rule),
                ),
                explains=ids([symptom]),
            )


@check("MNB852", Severity.ERROR, cause=Cause.CONTROL_PLANE_CONFIG)
def endpoints_ejected(
    mesh: Mesh,
    symptoms: Symptoms,
    istio_config: pd.DataFrame,
    endpoints: pd.DataFrame,
    facts: Facts,
) -> Iterator[Finding]:
    """Outlier detection leaves every Service with endpoints.

    An endpoint that failed too often is ejected for a while. Istio sets no panic threshold, so when
    all are ejected callers get 503 with flag UH (no_healthy_upstream), although every pod is ready.
    """
    ejected = endpoints[(endpoints["outlier_check"] == "FAILED").fillna(False).astype(bool)]
    for symptom in symptoms:
        if "UH" not in symptom.flags or not symptom.cluster:
            continue
        rows = ejected[
            (ejected["cluster"] == symptom.cluster) & ejected["proxy"].isin(symptom.reporters)
        ]
        ports = mesh.ports(symptom.host)
        ready = bool(ports) and any(pod.ready for pod in mesh.selected(ports[0]))
        if not len(rows) and not ready:
            continue
        for rule in _with("outlierDetection", mesh, symptom)[:1]:
            yield Finding(
                subject_of(rule),
                f"{rule} ejects the endpoints of {symptom.host} that fail, until none is left: "
                f"{symptom.count} requests found no healthy endpoint.",
                "Set maxEjectionPercent below 100 or a higher error count with "
                f"{edit(subject_of(rule))}, and mend the failing pods.",
                evidence=(
                    *symptom_rows(facts, [symptom]),
                    Evidence.of(endpoints, rows.index),
                    config_rows(istio_config, rule),
                ),
                explains=ids([symptom]),
                certainty=1.0 if len(rows) else 0.7,
            )
