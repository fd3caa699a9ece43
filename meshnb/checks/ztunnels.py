"""Checks of who is in the ambient mesh, and of the ztunnels themselves. Codes MNB920 to MNB929."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from meshnb.checks.ambient import callers_of, lost
from meshnb.checks.base import (
    Cause,
    Evidence,
    Finding,
    Severity,
    Subject,
    and_list,
    check,
    ids,
    restart,
    starting,
    symptom_rows,
    workload_of,
)
from meshnb.checks.stuck import waiting_for
from meshnb.symptoms import Symptom, Symptoms
from meshnb.tables import Facts
from meshnb.traces.mesh import Mesh, Pod, plain
from meshnb.traces.tunnels.enrolment import MODE, Enrolment, enrolled
from meshnb.traces.tunnels.ztunnels import Ztunnels


@check("MNB920", Severity.WARNING, cause=Cause.DATA_PLANE)
def pod_not_captured(
    mesh: Mesh,
    symptoms: Symptoms,
    pods: pd.DataFrame,
    namespaces: pd.DataFrame,
    ztunnel_access_log: pd.DataFrame,
    rollouts: pd.DataFrame,
    facts: Facts,
) -> Iterator[Finding]:
    """Ztunnel takes the traffic of every pod whose namespace is in the ambient mesh.

    The node agent takes a pod in by labels, and writes the annotation ambient.istio.io/redirection
    when it has done so. A pod that is left out speaks plain text and shows no identity, so that
    policies which name callers refuse it, and policies for it are not enforced.
    """
    groups: dict[Subject, list[tuple[Pod, Enrolment]]] = {}
    nodes = Ztunnels(facts, mesh)
    for pod, enrolment in enrolled(facts, mesh):
        left = enrolment.missing or (lost(pod, mesh, facts) and not enrolment.asked)
        if left and pod.mesh == "none" and pod.ready and not starting(pod, facts):
            groups.setdefault(workload_of(pod), []).append((pod, enrolment))
    for subject, members in groups.items():
        pod, enrolment = members[0]
        if enrolment.missing and not enrolment.kept_out and nodes.of(pod) is None:
            continue  # without a ztunnel on its node no pod can be taken in
        left_out = [one for one, _ in members]
        seen = _refused(symptoms, mesh, left_out, ztunnel_access_log)
        of_namespace = mesh.namespaces.get(pod.namespace, {}).get(MODE)
        why = (
            enrolment.says
            if enrolment.missing
            else f"its {enrolment.label} keeps it out, while its namespace is labelled {MODE}="
            f"{of_namespace}"
        )
        recent = not enrolment.missing and _taken_in_before(subject, rollouts)
        forgotten = enrolment.missing and not pod.host_network and "sidecar" not in why
        told = f"; ztunnel refused {sum(s.count for s in seen)} of its connections" if seen else ""
        yield Finding(
            subject,
            f"{subject} is not in the ambient mesh: {why}{told}.",
            _remedy(enrolment, subject),
            evidence=(
                *symptom_rows(facts, seen),
                Evidence.of(pods, pods.index[pods["pod"].isin([one.pod for one in left_out])]),
                Evidence.of(namespaces, namespaces.index[namespaces["namespace"] == pod.namespace]),
            ),
            related=tuple(Subject("Pod", one.namespace, one.pod) for one in left_out),
            explains=ids(seen),
            severity=Severity.ERROR if seen else None if recent or forgotten else Severity.INFO,
        )


def _refused(symptoms: Symptoms, mesh: Mesh, pods: list[Pod], log: pd.DataFrame) -> list[Symptom]:
    """Return the connections of pods that ztunnels refused for lack of an identity."""
    found = []
    for symptom in symptoms:
        if symptom.table == "ztunnel_access_log" and "policy rejection" in symptom.details:
            callers = callers_of(symptom, mesh, log)
            if callers and all(pod in pods for pod in callers):
                found.append(symptom)
    return found


def _taken_in_before(subject: Subject, rollouts: pd.DataFrame) -> bool:
    """Whether an earlier version of a workload's pods had no label that keeps them out."""
    own = rollouts[
        (rollouts["namespace"] == subject.namespace) & (rollouts["workload"] == subject.name)
    ]
    return any((labels or {}).get(MODE) != "none" for labels in own["labels"])


def _remedy(enrolment: Enrolment, subject: Subject) -> str:
    if "hostNetwork" in enrolment.kept_out:
        return "Do without hostNetwork, or leave the pod out of the mesh."
    if enrolment.kept_out:
        return f"Remove what keeps it out ({enrolment.kept_out}), then restart it."
    if enrolment.missing:
        return f"Start its pods anew with {restart(subject)}, and see the log of istio-cni."
    return (
        f"Take the label {MODE} out of its pod template with `kubectl -n {subject.namespace} edit "
        f"{subject.kind.lower()} {subject.name}`."
    )


@check("MNB925", Severity.ERROR, cause=Cause.DATA_PLANE)
def node_without_ztunnel(
    mesh: Mesh,
    symptoms: Symptoms,
    pods: pd.DataFrame,
    events: pd.DataFrame,
    workloads: pd.DataFrame,
    facts: Facts,
) -> Iterator[Finding]:
    """On every node with ambient pods a ztunnel is ready.

    Their connections are handed to the ztunnel of their node. Without one they lose all traffic,
    and new pods are not started: "no ztunnel connection".
    """
    nodes = Ztunnels(facts, mesh)
    found: dict[tuple[str, str], list[Pod]] = {}
    for pod, enrolment in enrolled(facts, mesh):
        node = nodes.node_of(pod)
        if not node or not (enrolment.captured or (enrolment.missing and not enrolment.kept_out)):
            continue
        ztunnel = nodes.of(pod)
        if ztunnel is None:
            found.setdefault((node, ""), []).append(pod)
        elif not ztunnel.ready and not starting(ztunnel, facts):
            found.setdefault((node, ztunnel.pod), []).append(pod)
    failed = events[
        events["message"].str.contains("no ztunnel connection", regex=False).fillna(False)
    ]
    for (node, name), members in found.items():
        ztunnel = next((pod for pod in mesh.pods if name and pod.pod == name), None)
        subject = workload_of(ztunnel) if ztunnel is not None else _daemon_set(mesh, workloads)
        if subject is None:
            continue
        seen = waiting_for(members, mesh, symptoms)
        if ztunnel is not None:
            own = (ztunnel.namespace, ztunnel.workload)
            seen += [s for s in symptoms if s.table == "pods" and s.workload == own]
        why = (
            f"{ztunnel.namespace}/{ztunnel.pod} is not ready ({ztunnel.not_ready_reason})"
            if ztunnel is not None
            else "none runs there"
        )
        concerned = [name, *(pod.pod for pod in members)]
        yield Finding(
            subject,
            f"Node {node} has no ready ztunnel for {and_list(pod.pod for pod in members)}: {why}.",
            f"Bring it in order: see `kubectl -n {subject.namespace} describe daemonset "
            f"{subject.name}` for what keeps its pod from that node.",
            evidence=(
                *symptom_rows(facts, seen),
                Evidence.of(pods, pods.index[pods["pod"].isin(concerned)]),
                *([Evidence.of(failed)] if len(failed) else []),
            ),
            related=(Subject("Node", "", node),),
            explains=ids(dict.fromkeys(seen)),
        )


def _daemon_set(mesh: Mesh, workloads: pd.DataFrame) -> Subject | None:
    """Return the DaemonSet of the ztunnels; None in a mesh that has none, nor a ztunnel."""
    for pod in mesh.pods:
        if pod.mesh == "ztunnel":
            return workload_of(pod)
    own = workloads[
        (workloads["kind"] == "DaemonSet")
        & workloads["images"].astype(str).str.contains("ztunnel", regex=False)
    ]
    for namespace, name in zip(own["namespace"], own["workload"], strict=True):
        return Subject("DaemonSet", str(namespace), str(name))
    return None


@check("MNB926", Severity.ERROR, cause=Cause.DATA_PLANE_CONFIG)
def ztunnel_without_identity(
    mesh: Mesh, symptoms: Symptoms, ztunnel_certificates: pd.DataFrame, facts: Facts
) -> Iterator[Finding]:
    """Every ztunnel has a certificate in force for each identity that it needs.

    A ztunnel asks istiod for certificates on behalf of its node's pods. When istiod does not sign
    them, it can neither open tunnels for these pods nor accept any.
    """
    if not any(pod.mesh == "istiod" and pod.ready for pod in mesh.pods):
        return  # nobody is there to sign
    failed = [
        s
        for s in symptoms
        if s.table == "ztunnel_access_log"
        and ("identity error" in s.details or "signing" in s.details)
    ]
    bad = ztunnel_certificates[
        (ztunnel_certificates["status"] == "Unavailable")
        | (
            (ztunnel_certificates["type"] == "Leaf")
            & ~ztunnel_certificates["valid_cert"].fillna(value=True).astype(bool)
        )
    ]
    if not failed and bad.empty:
        return
    ztunnels = [pod for pod in mesh.pods if pod.mesh == "ztunnel" and pod.running]
    holders = set(bad["proxy"].dropna())
    chosen = [pod for pod in ztunnels if f"{pod.pod}.{pod.namespace}" in holders] or ztunnels
    if not chosen:
        return
    subject = workload_of(chosen[0])
    names = [str(name) for name in bad["certificate_name"].dropna()]
    why = next((str(one) for one in bad["problem"] if plain(one)), "")
    why = why or next((s.details for s in failed), "it has ended")
    who = and_list(names) or "workloads of its node"
    yield Finding(
        subject,
        f"{and_list(pod.pod for pod in chosen)} has no certificate in force for {who}: {why}.",
        "See istiod's log for why it does not sign (it must trust ztunnel's service account, "
        f"CA_TRUSTED_NODE_ACCOUNTS), then {restart(subject)}.",
        evidence=(*symptom_rows(facts, failed), Evidence.of(bad)),
        related=tuple(Subject("Pod", pod.namespace, pod.pod) for pod in chosen),
        explains=ids(failed),
    )
