"""Checks of what ztunnels decide about connections. Codes MNB900 to MNB919."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from datetime import timedelta
from difflib import get_close_matches
from typing import Any

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
    pods_beside,
    rows_of,
    subject_of,
    symptom_rows,
    unseen,
    workload_of,
)
from meshnb.checks.changes import JUST_BEFORE
from meshnb.symptoms import Symptom, Symptoms
from meshnb.symptoms.base import REPEATED
from meshnb.tables import Facts
from meshnb.tables.base import dig, items, mapping
from meshnb.traces.conditions import http_only
from meshnb.traces.mesh import ConfigObject, Mesh, Pod
from meshnb.traces.rules import GATEWAY_API_GROUP, target_references
from meshnb.traces.tunnels.enrolment import MODE, enrolment_of, excluded_namespaces
from meshnb.traces.tunnels.network_policies import HBONE, admitted
from meshnb.traces.tunnels.waypoints import USE

#: How ztunnel says that nobody answered.
_TIMED_OUT = re.compile(r"15008|timed out|deadline has elapsed|Timeout")
#: How ztunnel names the DENY policy that ended a connection.
_DENIED_BY = re.compile(r"explicitly denied by:? (\S+?)/(\S+)")
#: What istiod calls the policies that it makes of a PeerAuthentication.
_CONVERTED = ("istio_converted_", "converted_peer_authentication_")


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
        callers = callers_of(symptom, mesh, ztunnel_access_log)
        if callers and all(lost(pod, mesh, facts) for pod in callers):
            continue  # an identity would have come with them, but for how they are labelled
        servers = mesh.workload_pods(symptom.workload)
        policies = [
            policy
            for policy in mesh.of("AuthorizationPolicy")
            if set(servers) & set(mesh.workload_selected(policy))
        ]
        named = _DENIED_BY.search(symptom.details)
        identities = sorted(
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
            if any(unseen_by_ztunnel(policy) for policy in guilty):
                continue  # what it says of HTTP is lost here, which is a cause of its own
            guilty.sort(key=lambda policy: (not items(policy.spec, "rules"), policy.name))
            verb = "does not admit"
        if not guilty:
            continue
        waypoints = {pod.identity for pod in mesh.pods if pod.mesh == "waypoint"}
        through = [f"ns/{name}" for name in identities if f"ns/{name}" in waypoints]
        hint = (
            f" The caller is a waypoint ({and_list(through)}), behind which no policy sees who "
            "called it."
            if through
            else ""
        )
        who = and_list(f"ns/{name}" for name in identities) or "callers without an identity"
        ended = _cut_off(symptom, symptoms)
        yield Finding(
            subject_of(guilty[0]),
            f"{guilty[0]} {verb} {who} at {symptom.workload[0]}/{symptom.workload[1]}: ztunnel "
            f"ended {symptom.count} connections ({_admits(guilty[0])}).{hint}",
            f"Admit the caller with {edit(subject_of(guilty[0]))}.",
            evidence=(*symptom_rows(facts, [symptom, *ended]), config_rows(istio_config, *guilty)),
            related=tuple(subject_of(policy) for policy in guilty[1:]),
            explains=ids([symptom, *ended]),
            severity=_meant(symptom, ztunnel_access_log, facts, guilty),
        )


def _cut_off(symptom: Symptom, symptoms: Symptoms) -> list[Symptom]:
    """Return the connections to the same server that a change of its policies ended."""
    return [
        other
        for other in symptoms
        if other.table == symptom.table
        and other.workload == symptom.workload
        and "policy change" in other.details
    ]


def _meant(
    symptom: Symptom, log: pd.DataFrame, facts: Facts, policies: Iterable[ConfigObject]
) -> Severity | None:
    """Return INFO when a denial looks meant: others are served, and these callers never were.

    Not when a policy was changed right before: ztunnel logs connections as they end, so that its
    log need not show whom it admitted until then.
    """
    first = symptom.first_seen
    if first is not None and symptom.count >= REPEATED:
        since = [first - policy.changed for policy in policies if not pd.isna(policy.changed)]
        if any(timedelta(0) <= age <= JUST_BEFORE for age in since):
            return None
    names = {(row.destination_namespace, row.destination_pod) for row in log.itertuples()}
    here = {key for key in names if str(key[1]).startswith(symptom.workload[1])}
    to_it = [
        key in here and key[0] == symptom.workload[0]
        for key in zip(log["destination_namespace"], log["destination_pod"], strict=True)
    ]
    lines = log[pd.Series(to_it, index=log.index, dtype=bool)]
    served = lines[lines["error"].isna() | (lines["bytes_sent"].fillna(0) > 0)]
    who = ["source_pod", "source_identity"]
    denied = log.loc[list(symptom.rows)]
    callers = set(denied[who].fillna("").itertuples(index=False, name=None))
    known = set(served[who].fillna("").itertuples(index=False, name=None))
    if callers & known:
        return None
    open_now = facts["ztunnel_connections"]
    inbound = open_now[
        (open_now["direction"] == "Inbound")
        & open_now["workload"].fillna("").str.endswith(f".{symptom.workload[0]}")
        & open_now["workload"].fillna("").str.startswith(f"{symptom.workload[1]}-")
    ]
    return Severity.INFO if known - callers or len(inbound) else None


def _admits(policy: ConfigObject) -> str:
    principals = [
        str(principal)
        for rule in items(policy.spec, "rules")
        for source in items(rule, "from")
        for principal in items(source, "source", "principals")
    ]
    return f"its rules name {and_list(principals)}" if principals else "its rules name no principal"


@check("MNB904", Severity.ERROR, cause=Cause.CONTROL_PLANE_CONFIG)
def plaintext_denied_by_ztunnel(
    mesh: Mesh,
    symptoms: Symptoms,
    istio_config: pd.DataFrame,
    ztunnel_access_log: pd.DataFrame,
    facts: Facts,
) -> Iterator[Finding]:
    """Every client of an ambient server that demands mutual TLS is in the mesh.

    istiod turns a PeerAuthentication with mode STRICT into a policy of ztunnel that denies whoever
    shows no identity. A client outside the mesh is cut off; only ztunnel's log shows it.
    """
    for symptom in symptoms:
        named = _DENIED_BY.search(symptom.details)
        if symptom.table != "ztunnel_access_log" or named is None:
            continue
        if not named[2].startswith(_CONVERTED):
            continue
        callers = callers_of(symptom, mesh, ztunnel_access_log)
        if callers and all(lost(pod, mesh, facts) for pod in callers):
            continue
        servers = mesh.workload_pods(symptom.workload)
        modes = [mesh.mtls_mode(pod, None) for pod in servers]
        own = named[2].removeprefix(_CONVERTED[1])
        policy = next(
            (
                item
                for item in mesh.of("PeerAuthentication")
                if (item.namespace, item.name) == (named[1], own)
            ),
            next((found for mode, found in modes if mode == "STRICT"), None),
        )
        if policy is None:
            continue
        outside = and_list(f"{pod.namespace}/{pod.pod}" for pod in callers)
        who = f"{outside}, which is not in the mesh," if outside else "a client outside the mesh"
        yield Finding(
            subject_of(policy),
            f"{policy} demands mutual TLS of {symptom.workload[0]}/{symptom.workload[1]}, and "
            f"{who} connects in plain text: ztunnel cut off {symptom.count} connections.",
            "Take the client into the mesh, or allow plain text (PERMISSIVE) with "
            f"{edit(subject_of(policy))}.",
            evidence=(*symptom_rows(facts, [symptom]), config_rows(istio_config, policy)),
            related=tuple(Subject("Pod", pod.namespace, pod.pod) for pod in callers),
            explains=ids([symptom]),
        )


def callers_of(symptom: Symptom, mesh: Mesh, log: pd.DataFrame) -> list[Pod]:
    """Return the pods that connected without an identity, in a symptom of ztunnel's log."""
    rows = log.loc[list(symptom.rows)]
    plain_text = rows[rows["source_identity"].isna()]
    found: dict[tuple[str, str], Pod] = {}
    for address in plain_text["source_address"].dropna():
        pod = mesh.pod_at(str(address).rpartition(":")[0].strip("[]"))
        if pod is not None:
            found[pod.namespace, pod.pod] = pod
    return list(found.values()) if len(plain_text) == len(rows) else []


def lost(pod: Pod, mesh: Mesh, facts: Facts) -> bool:
    """Whether a pod is out of the ambient mesh although its namespace is in it."""
    ambient = mesh.namespaces.get(pod.namespace, {}).get(MODE) == "ambient"
    found = enrolment_of(pod, mesh.namespaces, excluded_namespaces(facts))
    return pod.mesh == "none" and (found.asked or ambient) and not found.captured


def unseen_by_ztunnel(policy: ConfigObject) -> tuple[str, ...]:
    """Return what a policy's rules name that ztunnel cannot see, each once."""
    names = [name for rule in items(policy.spec, "rules") for name in http_only(rule)]
    return tuple(dict.fromkeys(names))


def _at_ztunnel(mesh: Mesh, wanted: str) -> Iterator[tuple[ConfigObject, list[Pod]]]:
    """Yield the policies with an action that ztunnels are to enforce, with the pods."""
    for policy in mesh.of("AuthorizationPolicy"):
        if action(policy) != wanted or target_references(policy):
            continue
        pods = [pod for pod in mesh.workload_selected(policy) if pod.mesh == "ambient"]
        if pods:
            yield policy, pods


@check("MNB905", Severity.WARNING, cause=Cause.CONTROL_PLANE_CONFIG)
def http_rule_dropped_by_ztunnel(
    mesh: Mesh, symptoms: Symptoms, istio_config: pd.DataFrame, facts: Facts
) -> Iterator[Finding]:
    """No ALLOW policy for ambient pods names what only HTTP has, unless a waypoint enforces it.

    ztunnel sees connections, not requests. istiod leaves out rules that name methods, paths, hosts
    or tokens, so that less is allowed than is written; the policy still counts as one that must
    match, and its status says Accepted, with reason UnsupportedValue.
    """
    for policy, pods in _at_ztunnel(mesh, "ALLOW"):
        names = unseen_by_ztunnel(policy)
        if not names:
            continue
        workloads = {(pod.namespace, pod.workload) for pod in pods}
        seen = [
            s
            for s in symptoms
            if s.table == "ztunnel_access_log"
            and s.workload in workloads
            and "none allowed" in s.details
        ]
        where = and_list(f"{namespace}/{name}" for namespace, name in sorted(workloads))
        yield Finding(
            subject_of(policy),
            f"{policy} names {and_list(names)}, which ztunnel cannot see, so these rules allow "
            f"nothing to {where}.",
            "Attach it to a waypoint with targetRefs, or name only callers and ports, with "
            f"{edit(subject_of(policy))}.",
            evidence=(*symptom_rows(facts, seen), config_rows(istio_config, policy)),
            explains=ids(seen),
            severity=Severity.ERROR if seen else None,
            path="spec.rules",
        )


@check("MNB906", Severity.ERROR, cause=Cause.CONTROL_PLANE_CONFIG)
def http_denial_without_effect(
    mesh: Mesh, istio_config: pd.DataFrame, ztunnel_policies: pd.DataFrame
) -> Iterator[Finding]:
    """No DENY policy for ambient pods consists of what only HTTP has.

    ztunnel sees connections, not requests. What is left of such a rule is empty and matches
    nothing, so everything that it should stop goes through. Only a waypoint can enforce it.
    """
    for policy, pods in _at_ztunnel(mesh, "DENY"):
        rules = items(policy.spec, "rules")
        names = unseen_by_ztunnel(policy)
        if not names or not all(_http_alone(rule) for rule in rules):
            continue
        where = and_list(f"{pod.namespace}/{pod.workload}" for pod in pods)
        held = rows_of(ztunnel_policies, namespace=policy.namespace, policy_name=policy.name)
        yield Finding(
            subject_of(policy),
            f"{policy} should deny by {and_list(names)}, which ztunnel cannot see, so it denies "
            f"nothing to {where}.",
            "Attach it to a waypoint with targetRefs, or name callers or ports, with "
            f"{edit(subject_of(policy))}.",
            evidence=(config_rows(istio_config, policy), Evidence.of(held)),
            path="spec.rules",
        )


def _http_alone(rule: Any) -> bool:
    """Whether nothing that ztunnel can see is left of a rule."""
    parts = [
        *(mapping(entry, "source") for entry in items(rule, "from")),
        *(mapping(entry, "operation") for entry in items(rule, "to")),
    ]
    fields = {name for part in parts for name, value in part.items() if value}
    keys = {str(dig(condition, "key")) for condition in items(rule, "when")}
    return not (fields | keys) - set(http_only(rule))


@check("MNB907", Severity.ERROR, cause=Cause.DATA_PLANE)
def network_policy_without_tunnel(
    mesh: Mesh, symptoms: Symptoms, network_policies: pd.DataFrame, facts: Facts
) -> Iterator[Finding]:
    """Every NetworkPolicy for ambient pods admits port 15008.

    Between ambient pods all traffic arrives on port 15008, whatever the application's port is. A
    policy that names only the application's port lets connections time out.
    """
    for pod, rows in _blocked(mesh, facts):
        seen = [
            s
            for s in symptoms
            if s.table == "ztunnel_access_log"
            and s.side == "client"
            and s.workload == (pod.namespace, pod.workload)
            and _TIMED_OUT.search(s.details)
        ]
        chosen = network_policies.loc[list(rows)]
        first = chosen.iloc[0]
        subject = Subject("NetworkPolicy", str(first["namespace"]), str(first["policy"]))
        lines = f"; {sum(s.count for s in seen)} connections timed out" if seen else ""
        yield Finding(
            subject,
            f"{subject} does not admit port {HBONE} to {pod.namespace}/{pod.workload}, which is in "
            f"the ambient mesh{lines}.",
            f"Admit port {HBONE} from the mesh with {edit(subject)}.",
            evidence=(*symptom_rows(facts, seen), Evidence.of(network_policies, rows)),
            related=(workload_of(pod),),
            explains=ids(seen),
            # Whether the network obeys such policies shows only when a connection fails.
            severity=None if seen else Severity.INFO,
        )


def _blocked(mesh: Mesh, facts: Facts) -> Iterator[tuple[Pod, tuple[int, ...]]]:
    """Yield one ambient pod of each workload that nobody of the mesh may open a tunnel to."""
    told: set[tuple[str, str]] = set()
    ambient = [pod for pod in mesh.pods if pod.mesh == "ambient" and pod.running]
    for pod in ambient:
        key = (pod.namespace, pod.workload)
        if key in told:
            continue
        others = [other for other in ambient if other is not pod]
        verdicts = [admitted(facts, mesh, pod, HBONE, other) for other in others] or [
            admitted(facts, mesh, pod, HBONE)
        ]
        if all(verdict.admitted is False for verdict in verdicts):
            told.add(key)
            yield pod, verdicts[0].rows


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
            related=pods_beside(subject, pods),
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
        (gateway.namespace, gateway.name): gateway
        for gateway in mesh.of("Gateway", GATEWAY_API_GROUP)
    }
    labelled: list[tuple[Subject, str, str, Evidence]] = []
    seen: set[tuple[str, str]] = set()
    for index, namespace, service, labels in zip(
        services.index, services["namespace"], services["service"], services["labels"], strict=True
    ):
        if USE in (labels or {}) and (namespace, service) not in seen:
            seen.add((namespace, service))
            where = labels.get(f"{USE}-namespace", namespace)
            subject = Subject("Service", namespace, service)
            labelled.append((subject, where, labels[USE], Evidence.of(services, [index])))
    for index, namespace, labels in zip(
        namespaces.index, namespaces["namespace"], namespaces["labels"], strict=True
    ):
        if USE in (labels or {}):
            where = labels.get(f"{USE}-namespace", namespace)
            subject = Subject("Namespace", "", namespace)
            labelled.append((subject, where, labels[USE], Evidence.of(namespaces, [index])))
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
            f"label {USE} with {edit(subject)}.",
            evidence=(proof, Evidence.of(rows_of(istio_config, kind="Gateway"))),
            related=(Subject("Gateway", where, name),),
        )
