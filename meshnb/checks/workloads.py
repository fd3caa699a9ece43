"""Checks of the pods behind Services. Codes MNB700 to MNB709."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd

from meshnb.checks.asked_ports import services_of
from meshnb.checks.base import (
    Cause,
    Evidence,
    Finding,
    Severity,
    Subject,
    and_list,
    check,
    counted,
    edit,
    ids,
    pods_beside,
    rows_of,
    start,
    starting,
    symptom_rows,
    unseen,
    workload_in,
    workload_of,
)
from meshnb.checks.misses import near_pods
from meshnb.checks.sync import astray
from meshnb.symptoms import Symptoms
from meshnb.tables import Facts
from meshnb.traces.mesh import Mesh, Pod, ServicePort, plain


@check("MNB701", Severity.ERROR, cause=Cause.DATA_PLANE)
def service_selects_nothing(
    mesh: Mesh,
    symptoms: Symptoms,
    services: pd.DataFrame,
    service_endpoints: pd.DataFrame,
    workloads: pd.DataFrame,
    facts: Facts,
) -> Iterator[Finding]:
    """Every Service that is called has a selector that matches pods.

    A Service's endpoints are the pods that its selector matches. When there is none, the proxies
    have a cluster without endpoints and answer 503 with flag UH (no_healthy_upstream).
    """
    if unseen(facts, "pods", "pods"):
        return
    reported: set[str] = set()
    for service in mesh.services:
        if not service.selector or service.host in reported or mesh.selected(service):
            continue
        reported.add(service.host)
        seen = [
            s
            for s in symptoms
            if s.host == service.host
            and bool({"UH", "NC"} & s.flags)
            and s.side in ("client", "gateway")
        ]
        subject = Subject("Service", service.namespace, service.service)
        wanted = ", ".join(f"{key}={value}" for key, value in service.selector.items())
        near = sorted(
            {
                f"{key}={pod.labels[key]}"
                for pod in mesh.pods
                if pod.namespace == service.namespace and pod.running
                for key in service.selector
                if key in pod.labels
            }
        )
        have = f" Pods of its namespace have {and_list(near, 6)}." if near else ""
        remedy = f"Correct spec.selector with {edit(subject)}, or start pods with these labels."
        guilty = subject
        stopped = workloads[
            [
                namespace == service.namespace
                and not wants
                and service.selector.items() <= (labels or {}).items()
                for namespace, labels, wants in zip(
                    workloads["namespace"],
                    workloads["labels"],
                    workloads["replicas_wanted"].fillna(1),
                    strict=True,
                )
            ]
        ]
        if len(stopped):
            guilty = workload_in(stopped.iloc[0])
            have = f" {guilty} would make such pods, and wants none."
            remedy = start(guilty)
        cut_off = guilty == subject and _cut_off(subject, mesh, services)
        slip = guilty == subject and _slip(service, mesh, facts)
        if slip and not seen and not cut_off:
            have += " No request was seen to fail, for no proxy logs any."
        yield Finding(
            guilty,
            f"{subject} selects {wanted}, and no pod of {service.namespace} has that, so it has no "
            f"endpoints.{have}",
            remedy,
            related=(subject,) if guilty != subject else (),
            evidence=(
                *symptom_rows(facts, seen),
                Evidence.of(workloads, stopped.index),
                Evidence.of(
                    rows_of(services, namespace=service.namespace, service=service.service)
                ),
                Evidence.of(
                    rows_of(service_endpoints, namespace=service.namespace, service=service.service)
                ),
            ),
            explains=ids(seen),
            shows=f"nobody outside reaches {and_list(map(str, cut_off))} through {subject}"
            if cut_off
            else "",
            severity=None if seen or cut_off else Severity.WARNING if slip else Severity.INFO,
            certainty=1.0 if seen or cut_off else 0.6,
        )


def _cut_off(subject: Subject, mesh: Mesh, services: pd.DataFrame) -> list[Subject]:
    """Return the gateways beside a Service for callers outside, to which no Service leads.

    Their callers are outside, so that no proxy of the mesh could log what fails.
    """
    own = rows_of(services, namespace=subject.namespace, service=subject.name)
    if not set(own["type"].dropna()) & {"LoadBalancer", "NodePort"}:
        return []
    gateways = [
        pod
        for pod in mesh.pods
        if pod.mesh == "gateway"
        and pod.namespace == subject.namespace
        and pod.ready
        and not pod.host_network
        and not services_of([pod], mesh)
    ]
    return list(dict.fromkeys(map(workload_of, gateways)))


def _slip(service: ServicePort, mesh: Mesh, facts: Facts) -> bool:
    """Whether a selector is nearly that of pods which no Service leads to, and no log tells calls.

    With a log, requests that fail would stand in it; without, the objects are all there is.
    """
    if len(facts["access_log"]):
        return False
    near = [pod for pod in near_pods(mesh, service.selector, service.namespace) if pod.ready]
    return bool(near) and not services_of(near, mesh)


@dataclass(frozen=True, slots=True)
class _State:
    """Why a pod is not ready: what a container does, in words."""

    code: str
    words: str
    remedy: str


def _state(pod: Pod, containers: pd.DataFrame) -> _State:
    rows = containers[(containers["namespace"] == pod.namespace) & (containers["pod"] == pod.pod)]
    where = f"-n {pod.namespace}"
    for row in rows.to_dict("records"):
        reason, last = plain(row["reason"]), plain(row["last_reason"])
        restarts = int(plain(row["restarts"]) or 0)
        name = row["container"]
        broken = row["state"] == "terminated" and int(plain(row["exit_code"]) or 0) != 0
        if reason in (
            "ImagePullBackOff",
            "ErrImagePull",
            "InvalidImageName",
            "CreateContainerConfigError",
        ):
            told = plain(row["message"]) or row["image"]
            return _State(
                "image",
                f"container {name} cannot start: {reason} ({told})",
                "Correct its image or configuration; see "
                f"`kubectl {where} describe pod {pod.pod}`.",
            )
        if name != "istio-proxy" and (
            reason == "CrashLoopBackOff" or broken or (restarts > 1 and last)
        ):
            code = plain(row["exit_code"]) if broken else plain(row["last_exit_code"])
            why = reason if broken and reason not in (None, "Error") else last or reason
            return _State(
                "init"
                if plain(row["init"]) is True and row["restart_policy"] != "Always"
                else "crash",
                f"container {name} keeps exiting (exit code {code}, {why}, {restarts} restarts)",
                f"Read why it ends with `kubectl {where} logs {pod.pod} -c {name} --previous`.",
            )
    waits = [row for row in rows.to_dict("records") if not bool(plain(row["ready"]) or False)]
    for row in sorted(
        waits, key=lambda row: (row["container"] != "istio-proxy", bool(row["init"]))
    ):
        if row["state"] != "running":
            continue
        if row["container"] == "istio-proxy":
            return _State(
                "proxy",
                "its sidecar is not ready",
                f"See what it waits for with `kubectl {where} logs {pod.pod} -c istio-proxy`.",
            )
        port = plain(row["readiness_port"])
        if port is not None:
            declared = row["ports"] or ()
            odd = (
                f", which container {row['container']} does not declare"
                if declared and port not in declared
                else ""
            )
            path = f" {row['readiness_path']}" if plain(row["readiness_path"]) else ""
            return _State(
                "probe",
                f"the readiness probe of container {row['container']} asks port "
                f"{port}{path}{odd} and fails",
                f"Correct the probe, or let the application answer it: {edit(workload_of(pod))}.",
            )
        return _State(
            "probe",
            f"container {row['container']} is not ready",
            f"See its readiness probe with `kubectl {where} describe pod {pod.pod}`.",
        )
    return _State(
        "other",
        pod.not_ready_reason or f"phase {pod.phase}",
        f"See `kubectl {where} describe pod {pod.pod}`.",
    )


@check("MNB702", Severity.ERROR, cause=Cause.DATA_PLANE)
def pods_not_ready(
    mesh: Mesh,
    symptoms: Symptoms,
    containers: pd.DataFrame,
    proxies: pd.DataFrame,
    pods: pd.DataFrame,
    facts: Facts,
) -> Iterator[Finding]:
    """Every pod that is meant to serve is ready.

    Only ready pods become endpoints. When none of a Service is ready, callers get 503 with flag UH
    (no_healthy_upstream); while a container keeps exiting, requests that reach it fail with UF or
    UC.
    """
    broken: dict[Subject, list[Pod]] = {}
    for pod in mesh.pods:
        if pod.running and not pod.ready and not pod.namespace.startswith("kube-"):
            broken.setdefault(workload_of(pod), []).append(pod)
    for subject, members in broken.items():
        if any(astray(pod, proxies, mesh, facts) for pod in members):
            continue  # they wait for an istiod that does not exist
        if any(pod.mesh == "istiod" for pod in members) and not any(
            pod.ready for pod in mesh.pods if pod.mesh == "istiod"
        ):
            continue  # that the control plane is down says the check for it
        state = _state(members[0], containers)
        front = services_of(members, mesh)
        hosts = {port.host for port in front}
        alone = all(not any(pod.ready for pod in mesh.selected(port)) for port in front)
        seen = [
            s
            for s in symptoms
            if (s.kind == "pod" and s.workload == (subject.namespace, subject.name))
            or (
                alone
                and s.host in hosts
                and bool({"UH", "UF", "UC"} & s.flags)
                and s.side != "server"
            )
            or (
                state.code in ("crash", "init")
                and s.side == "server"
                and s.workload == (subject.namespace, subject.name)
                and bool({"UF", "UC"} & s.flags)
            )
        ]
        every = mesh.workload_pods((subject.namespace, subject.name))
        rows = containers[
            (containers["namespace"] == subject.namespace)
            & containers["pod"].isin([p.pod for p in members])
        ]
        consequence = (
            f" {and_list(sorted(hosts))} has no ready endpoint." if hosts and alone else ""
        )
        yield Finding(
            subject,
            f"{len(members)} of {counted(len(every), 'pod')} of {subject} not ready "
            f"({members[0].pod}): "
            f"{state.words}.{consequence}",
            state.remedy,
            evidence=(
                *symptom_rows(facts, seen),
                Evidence.of(containers, rows.index),
                Evidence.of(
                    pods,
                    pods.index[
                        (pods["namespace"] == subject.namespace)
                        & pods["pod"].isin([p.pod for p in members])
                    ],
                ),
            ),
            related=pods_beside(subject, members),
            explains=ids(seen),
            # Why the pod does not start, or its sidecar is not ready, others may know better.
            certainty=0.45 if state.code in ("proxy", "init", "other") else 1.0,
            severity=Severity.INFO
            if (
                state.code not in ("image", "crash", "init")
                and all(starting(p, facts) for p in members)
            )
            or (all(s.kind == "pod" for s in seen) and _apart(subject.namespace, mesh, facts))
            else None
            if alone
            else Severity.WARNING,
        )


def _apart(namespace: str, mesh: Mesh, facts: Facts) -> bool:
    """Whether a namespace has nothing to do with the mesh: none of its pods is in it, nor asked."""
    labels = mesh.namespaces.get(namespace, {})
    enrolled = labels.get("istio-injection") == "enabled" or any(
        labels.get(label, "none") != "none" for label in ("istio.io/rev", "istio.io/dataplane-mode")
    )
    if enrolled or any(
        pod.namespace == namespace and (pod.in_mesh or pod.mesh == "istiod") for pod in mesh.pods
    ):
        return False
    hosts = {port.host for port in mesh.services if port.namespace == namespace}
    called = facts["access_log"]["cluster"].dropna().unique()
    return not any(cluster.rpartition("|")[2] in hosts for cluster in called)
