"""Checks of ambient meshes: ztunnel and waypoints. Codes MNB900 to MNB949."""

from __future__ import annotations

import re
from collections.abc import Iterator
from difflib import get_close_matches

import pandas as pd

from meshnb.checks.authorization import action
from meshnb.checks.base import (
    Cause,
    Evidence,
    Finding,
    Severity,
    Subject,
    and_list,
    check,
    config_rows,
    edit,
    ids,
    rows_of,
    subject_of,
    symptom_rows,
    unseen,
    workload_of,
)
from meshnb.symptoms import Symptoms
from meshnb.tables import Facts
from meshnb.tables.base import items
from meshnb.traces.mesh import ConfigObject, Mesh

#: How ztunnel names the DENY policy that ended a connection.
_DENIED_BY = re.compile(r"explicitly denied by:? (\S+?)/(\S+)")
#: The kind of Gateway that is a waypoint; the class of Istio's own is the default.
_GATEWAY_API = "gateway.networking.k8s.io"
_USE = "istio.io/use-waypoint"


@check("MNB901", Severity.ERROR, cause=Cause.CONTROL_PLANE_CONFIG)
def denied_by_ztunnel(
    mesh: Mesh,
    symptoms: Symptoms,
    istio_config: pd.DataFrame,
    ztunnel_access_log: pd.DataFrame,
    facts: Facts,
) -> Iterator[Finding]:
    """No policy makes ztunnel refuse connections between workloads of the mesh.

    In an ambient mesh ztunnel enforces policies on the server's node, by identity, namespace,
    address and port. It ends the connection, and the client sees a reset or HTTP status 401.
    """
    for symptom in symptoms:
        if symptom.table != "ztunnel_access_log" or "policy rejection" not in symptom.details:
            continue
        servers = mesh.workload_pods(symptom.workload)
        policies = [
            policy
            for policy in mesh.of("AuthorizationPolicy")
            if set(servers) & set(mesh.workload_selected(policy))
        ]
        named = _DENIED_BY.search(symptom.details)
        callers = sorted(
            {
                str(identity).partition("/ns/")[2]
                for identity in ztunnel_access_log.loc[
                    list(symptom.rows), "source_identity"
                ].dropna()
            }
        )
        if named:
            guilty = [p for p in policies if (p.namespace, p.name) == (named[1], named[2])]
            verb = "denies"
        else:
            guilty = [p for p in policies if action(p) == "ALLOW"]
            guilty.sort(key=lambda policy: (not items(policy.spec, "rules"), policy.name))
            verb = "does not admit"
        if not guilty:
            continue
        who = and_list(f"ns/{caller}" for caller in callers) or "callers without an identity"
        yield Finding(
            subject_of(guilty[0]),
            f"{guilty[0]} {verb} {who} at {symptom.workload[0]}/{symptom.workload[1]}: ztunnel "
            f"ended {symptom.count} connections ({_admits(guilty[0])}).",
            f"Admit the caller with {edit(subject_of(guilty[0]))}.",
            evidence=(*symptom_rows(facts, [symptom]), config_rows(istio_config, *guilty)),
            related=tuple(subject_of(policy) for policy in guilty[1:]),
            explains=ids([symptom]),
        )


def _admits(policy: ConfigObject) -> str:
    principals = [
        str(principal)
        for rule in items(policy.spec, "rules")
        for source in items(rule, "from")
        for principal in items(source, "source", "principals")
    ]
    return f"its rules name {and_list(principals)}" if principals else "its rules name no principal"


@check("MNB902", Severity.ERROR, cause=Cause.DATA_PLANE)
def ambient_application_refuses(mesh: Mesh, symptoms: Symptoms, facts: Facts) -> Iterator[Finding]:
    """Every application behind ztunnel listens on the port that its Service sends to.

    ztunnel has accepted the connection and opens its own to the application in the same pod. When
    nobody listens there it logs "Connection refused", and the client gets a 503 from the tunnel.
    """
    for symptom in symptoms:
        if symptom.table != "ztunnel_access_log" or "onnection refused" not in symptom.details:
            continue
        pods = mesh.workload_pods(symptom.workload)
        if not pods:
            continue
        subject = workload_of(pods[0])
        log = facts["ztunnel_access_log"].loc[list(symptom.rows)]
        address = log["destination_hbone_address"].dropna()
        port = str(address.iloc[0]).rpartition(":")[2] if len(address) else "its port"
        yield Finding(
            subject,
            f"{subject} does not listen on port {port}: ztunnel's connections to it are refused.",
            f"Let the application listen there, or correct the Service's targetPort; see `kubectl "
            f"-n {subject.namespace} logs {pods[0].pod}`.",
            evidence=symptom_rows(facts, [symptom]),
            related=tuple(
                Subject("Pod", pod.namespace, pod.pod) for pod in pods if subject.kind != "Pod"
            ),
            explains=ids([symptom]),
        )


@check("MNB903", Severity.ERROR, cause=Cause.CONTROL_PLANE_CONFIG)
def missing_waypoint(
    mesh: Mesh,
    services: pd.DataFrame,
    namespaces: pd.DataFrame,
    istio_config: pd.DataFrame,
    facts: Facts,
) -> Iterator[Finding]:
    """Every waypoint that a label names exists.

    Routes and HTTP policies of an ambient mesh are enforced by a waypoint. Where the label names
    one that does not exist, traffic passes by ztunnel alone, and none of them has an effect.
    """
    if unseen(facts, "istio_config", "gateways"):
        return
    waypoints = {
        (gateway.namespace, gateway.name): gateway for gateway in mesh.of("Gateway", _GATEWAY_API)
    }
    labelled: list[tuple[Subject, str, str, Evidence]] = []
    seen: set[tuple[str, str]] = set()
    for index, namespace, service, labels in zip(
        services.index, services["namespace"], services["service"], services["labels"], strict=True
    ):
        if _USE in (labels or {}) and (namespace, service) not in seen:
            seen.add((namespace, service))
            where = labels.get(f"{_USE}-namespace", namespace)
            subject = Subject("Service", namespace, service)
            labelled.append((subject, where, labels[_USE], Evidence.of(services, [index])))
    for index, namespace, labels in zip(
        namespaces.index, namespaces["namespace"], namespaces["labels"], strict=True
    ):
        if _USE in (labels or {}):
            where = labels.get(f"{_USE}-namespace", namespace)
            subject = Subject("Namespace", "", namespace)
            labelled.append((subject, where, labels[_USE], Evidence.of(namespaces, [index])))
    for subject, where, name, proof in labelled:
        if name == "none" or (where, name) in waypoints:
            continue
        close = get_close_matches(name, [key[1] for key in waypoints if key[0] == where], n=1)
        hint = f" The nearest that exists is {close[0]}." if close else ""
        yield Finding(
            subject,
            f"{subject} is labelled for waypoint {where}/{name}, which does not exist, so routes "
            f"and HTTP policies for it have no effect.{hint}",
            f"Make it with `istioctl waypoint apply -n {where} --name {name}`, or correct the "
            f"label {_USE} with {edit(subject)}.",
            evidence=(proof, Evidence.of(rows_of(istio_config, kind="Gateway"))),
            related=(Subject("Gateway", where, name),),
        )
