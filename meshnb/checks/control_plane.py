"""Checks of istiod itself: whether it runs, answers and has a good certificate.

Codes MNB100 to MNB129.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import timedelta

import pandas as pd

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
    restart,
    rows_of,
    symptom_rows,
    unseen,
    workload_of,
)
from meshnb.symptoms import Symptom, Symptoms
from meshnb.tables import Facts
from meshnb.traces.mesh import Mesh, Pod, plain

#: Ports of istiod without which proxies or Kubernetes cannot use it. 9876 is for people only.
NEEDED = {
    8080: "readiness",
    15012: "configuration for proxies",
    15017: "webhooks",
}
#: A serving certificate that ends so soon is about to break connections, in days.
EXPIRES_SOON_DAYS = 7.0
#: A push that takes so long leaves proxies with stale configuration, in seconds.
SLOW_PUSH_S = 5.0
#: Fewer pushes than this say nothing.
ENOUGH_PUSHES = 20
#: What happened longer ago is history.
RECENT = timedelta(hours=1)


def _injection_services(webhooks: pd.DataFrame) -> set[tuple[str, str]]:
    rows = webhooks[webhooks["purpose"] == "injection"]
    rows = rows.dropna(subset=["service_namespace", "service"])
    return set(zip(rows["service_namespace"], rows["service"], strict=True))


@check("MNB101", Severity.ERROR, cause=Cause.DATA_PLANE_CONFIG)
def control_plane_runs(
    mesh: Mesh,
    symptoms: Symptoms,
    workloads: pd.DataFrame,
    webhooks: pd.DataFrame,
    service_endpoints: pd.DataFrame,
    facts: Facts,
) -> Iterator[Finding]:
    """Every control plane has a ready istiod.

    Without istiod the proxies go on with the configuration and certificates they have, and slowly
    go stale; new pods are refused or start without a sidecar, because the injection webhook cannot
    be called.
    """
    if unseen(facts, "pods", "pods"):
        return
    for namespace, service in sorted(_injection_services(webhooks)):
        ports = [p for p in mesh.services if (p.namespace, p.service) == (namespace, service)]
        if not ports or not ports[0].selector:
            continue
        pods = mesh.selected(ports[0])
        if any(pod.ready for pod in pods):
            continue
        selector = ports[0].selector
        owners = [
            Subject(str(kind), namespace, str(name))
            for kind, space, name, labels in zip(
                workloads["kind"],
                workloads["namespace"],
                workloads["workload"],
                workloads["labels"],
                strict=True,
            )
            if plain(space) == namespace and selector.items() <= (labels or {}).items()
        ]
        owner = next(
            iter(owners or [workload_of(pod) for pod in pods]),
            Subject("Service", namespace, service),
        )
        seen = [
            s
            for s in symptoms
            if s.kind in ("control plane", "sync")
            or (s.table == "events" and "failed calling webhook" in s.details)
        ]
        if pods:
            reason = pods[0].not_ready_reason or pods[0].phase
            state = f"{counted(len(pods), 'pod')}, none of them ready ({reason})"
            remedy = (
                f"Find out why with `kubectl -n {namespace} logs {pods[0].pod} --all-containers`."
            )
        else:
            state = "no pod"
            start = f"kubectl -n {namespace} scale {owner.kind.lower()} {owner.name} --replicas=1"
            remedy = (
                f"Start what it selects; see `kubectl -n {namespace} get deployments`."
                if owner.kind == "Service"
                else f"Start it with `{start}`."
            )
        yield Finding(
            owner,
            f"{owner} has {state}: proxies get no new configuration or certificates, and new pods "
            "get no sidecar.",
            remedy,
            evidence=(
                *symptom_rows(facts, seen),
                Evidence.of(rows_of(workloads, namespace=namespace, workload=owner.name)),
                Evidence.of(rows_of(service_endpoints, namespace=namespace, service=service)),
            ),
            related=(Subject("Service", namespace, service),),
            explains=ids(seen),
            # Why it runs and is not ready, others may know better.
            certainty=0.45 if pods else 1.0,
        )


@check("MNB102", Severity.ERROR, cause=Cause.DATA_PLANE)
def control_plane_ports(istiod_ports: pd.DataFrame, pods: pd.DataFrame) -> Iterator[Finding]:
    """Every istiod answers on the ports that proxies and Kubernetes need.

    15012 carries configuration and certificates, 15017 the webhooks, 8080 the readiness probe. A
    port that is closed while the pod is ready points at the network, or at an istiod that has not
    finished starting.
    """
    ready = rows_of(pods, mesh="istiod", ready=True)["pod"].tolist()
    silent = istiod_ports[
        istiod_ports["port"].isin(list(NEEDED))
        & (istiod_ports["answers"] == False).fillna(False).astype(bool)  # noqa: E712  NA is not False
        & istiod_ports["istiod"].isin(ready)
    ]
    for (namespace, pod), rows in silent.groupby(["namespace", "istiod"]):
        ports = and_list(f"{port} ({NEEDED[port]})" for port in rows["port"])
        how = plain(rows["how"].iloc[0])
        yield Finding(
            Subject("Pod", str(namespace), str(pod)),
            f"istiod {namespace}/{pod} does not answer on port {ports}: {how}.",
            f"Look at its log with `kubectl -n {namespace} logs {pod} -c discovery`.",
            evidence=(Evidence.of(istiod_ports, rows.index),),
        )


@check("MNB103", Severity.ERROR, cause=Cause.DATA_PLANE_CONFIG)
def control_plane_certificate(istiod_ports: pd.DataFrame, pods: pd.DataFrame) -> Iterator[Finding]:
    """Every certificate that istiod shows is valid, and not about to end.

    Proxies and the API server verify it on each connection. Once it has ended, no proxy can connect
    and no pod can be injected.
    """
    shown = istiod_ports[istiod_ports["expires_in_days"].notna()]
    for _, row in shown.iterrows():
        days = float(row["expires_in_days"])
        if days > EXPIRES_SOON_DAYS:
            continue
        own = rows_of(pods, namespace=row["namespace"], pod=row["istiod"])
        kind, name = (
            (str(own["workload_kind"].iloc[0]), str(own["workload"].iloc[0]))
            if len(own)
            else ("Pod", str(row["istiod"]))
        )
        owner = Subject(kind, str(row["namespace"]), name)
        until = f"{row['not_after']:%Y-%m-%d %H:%M} UTC"
        end = f"expired at {until}" if days <= 0 else f"ends in {days:.1f} days, at {until}"
        yield Finding(
            Subject("Pod", str(row["namespace"]), str(row["istiod"])),
            f"istiod {row['istiod']} shows a certificate on port {row['port']} that {end}.",
            f"Bring its CA in order, then let it renew: {restart(owner)}.",
            evidence=(Evidence.of(istiod_ports, [row.name]),),
            severity=None if days <= 0 else Severity.WARNING,
        )


#: What Kubernetes says to an istiod that lacks a permission.
_FORBIDDEN = re.compile(r'cannot (list|watch|get) resource "([^"]+)"')


@check("MNB104", Severity.ERROR, cause=Cause.CONTROL_PLANE_CONFIG)
def control_plane_permitted(
    mesh: Mesh, symptoms: Symptoms, istiod_log: pd.DataFrame, pods: pd.DataFrame, facts: Facts
) -> Iterator[Finding]:
    """Every istiod may read what it needs.

    istiod becomes ready once it has read all objects. When its ClusterRole leaves a kind out, often
    after an upgrade, it waits for ever, and says in its log which kind it may not list.
    """
    said = istiod_log["message"].fillna("")
    refused = istiod_log[said.map(lambda message: bool(_FORBIDDEN.search(message))).astype(bool)]
    for (namespace, name), rows in refused.groupby(["namespace", "istiod"]):
        pod = next((p for p in mesh.pods if (p.namespace, p.pod) == (namespace, name)), None)
        found = [one for one in map(_FORBIDDEN.search, rows["message"]) if one]
        kinds = and_list(sorted({one[2] for one in found}))
        ready = pod is not None and pod.ready
        revision = pod.labels.get("istio.io/rev", "default") if pod else "default"
        middle = "" if revision == "default" else f"{revision}-"
        subject = Subject("ClusterRole", "", f"istiod-clusterrole-{middle}{namespace}")
        servers = [pod] if pod else []
        seen = [] if ready else of_control_plane(servers, symptoms)
        yield Finding(
            subject,
            f"istiod {namespace}/{name} may not read {kinds}"
            f"{'.' if ready else ', and does not become ready.'}",
            f"Grant it get, list and watch on {kinds}: `kubectl edit clusterrole {subject.name}`.",
            evidence=(
                *symptom_rows(facts, seen),
                Evidence.of(istiod_log, rows.index[-3:]),
                Evidence.of(rows_of(pods, namespace=namespace, pod=name)),
            ),
            related=(workload_of(pod),) if pod else (),
            explains=ids(seen),
            severity=Severity.WARNING if ready else None,
        )


def of_control_plane(servers: list[Pod], symptoms: Symptoms) -> list[Symptom]:
    """Return what goes wrong because these pods of istiod are not ready, and no other is."""
    workloads = {(pod.namespace, pod.workload) for pod in servers}
    return [
        s
        for s in symptoms
        if s.kind in ("control plane", "sync")
        or (s.kind == "pod" and s.workload in workloads)
        or (s.table == "events" and "failed calling webhook" in s.details)
    ]


@check("MNB105", Severity.WARNING, cause=Cause.DATA_PLANE)
def control_plane_keeps_up(
    mesh: Mesh,
    symptoms: Symptoms,
    containers: pd.DataFrame,
    istiod_metrics: pd.DataFrame,
    facts: Facts,
) -> Iterator[Finding]:
    """Every istiod has the memory and the time that the mesh needs.

    One that the kernel kills for its memory starts again and again, and its proxies all connect
    anew. One that is short of CPU pushes late, so that configuration and endpoints are stale.
    """
    for pod in mesh.pods:
        if pod.mesh != "istiod" or not pod.running:
            continue
        rows = containers[
            (containers["namespace"] == pod.namespace) & (containers["pod"] == pod.pod)
        ]
        killed = rows[(rows["last_reason"] == "OOMKilled") | (rows["reason"] == "OOMKilled")]
        own = rows_of(istiod_metrics, namespace=pod.namespace, istiod=pod.pod)
        buckets = rows_of(own, metric="pilot_proxy_convergence_time_bucket")
        late = _median_s(buckets)
        recent = [at for at in killed["last_finished"].dropna() if facts.now - at < RECENT]
        if not recent and not (pod.ready is False and len(killed)):
            killed = killed.iloc[:0]
        if not len(killed) and (late is None or late < SLOW_PUSH_S):
            continue
        subject = workload_of(pod)
        seen = [s for s in symptoms if {"STALE", "DISCONNECTED"} & s.flags]
        if not any(one.ready for one in mesh.pods if one.mesh == "istiod"):
            seen = of_control_plane([pod], symptoms)
        restarts = int(killed["restarts"].fillna(0).max()) if len(killed) else 0
        what = (
            f"was killed for its memory ({counted(restarts, 'restart')})"
            if len(killed)
            else f"takes more than {late:g} s for half of its pushes"
        )
        yield Finding(
            subject,
            f"istiod {pod.pod} {what}.",
            "Give it more memory and CPU, or less to do (discoverySelectors, Sidecars): "
            f"{edit(subject)}.",
            evidence=(
                *symptom_rows(facts, seen),
                Evidence.of(containers, killed.index),
                Evidence.of(istiod_metrics, buckets.index if late is not None else []),
            ),
            explains=ids(seen),
            severity=Severity.ERROR if len(killed) and seen else None,
        )


def _median_s(buckets: pd.DataFrame) -> float | None:
    """Return the lower bound of the bucket that holds the median, in seconds; None without any."""
    counts = sorted(
        (float(found[1]), float(value))
        for labels, value in zip(buckets["labels"], buckets["value"], strict=True)
        if (found := re.search(r'le="\+?([0-9.]+|Inf)"', str(labels)))
    )
    if not counts or counts[-1][1] < ENOUGH_PUSHES:
        return None
    half = counts[-1][1] / 2
    bounds = [0.0, *(bound for bound, _ in counts)]
    return next(bounds[number] for number, (_, count) in enumerate(counts) if count >= half)
