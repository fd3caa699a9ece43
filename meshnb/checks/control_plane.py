"""Checks of istiod itself: whether it runs, answers and has a good certificate.

Codes MNB100 to MNB149.
"""

from __future__ import annotations

from collections.abc import Iterator

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
    ids,
    restart,
    rows_of,
    symptom_rows,
    unseen,
    workload_of,
)
from meshnb.symptoms import Symptoms
from meshnb.tables import Facts
from meshnb.traces.mesh import Mesh, plain

#: Ports of istiod without which proxies or Kubernetes cannot use it. 9876 is for people only.
NEEDED = {
    8080: "readiness",
    15012: "configuration for proxies",
    15017: "webhooks",
}
#: A serving certificate that ends so soon is about to break connections, in days.
EXPIRES_SOON_DAYS = 7.0


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
            or (s.table == "events" and "webhook" in s.details)
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
