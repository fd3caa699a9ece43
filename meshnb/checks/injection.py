"""Checks of sidecar injection. Codes MNB150 to MNB199."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

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
)
from meshnb.symptoms import Symptoms
from meshnb.tables import Facts
from meshnb.traces.mesh import Mesh, plain


@check("MNB150", Severity.ERROR, cause=Cause.CONTROL_PLANE_CONFIG)
def revision_without_webhook(
    namespaces: pd.DataFrame, webhooks: pd.DataFrame, pods: pd.DataFrame, facts: Facts
) -> Iterator[Finding]:
    """Every namespace that asks for injection is served by an injection webhook.

    Kubernetes calls a webhook only when its selector matches the namespace's labels. A revision
    that no control plane has matches none: pods start without a sidecar, and nobody reports an
    error.
    """
    if unseen(facts, "webhooks", "mutatingwebhookconfigurations"):
        return
    revisions = sorted(
        {
            str(name)
            for column in ("revision", "tag")
            for name in webhooks[webhooks["purpose"] == "injection"][column].dropna()
        }
    )
    for _, row in namespaces.iterrows():
        revision, injection = plain(row["revision"]), plain(row["injection"])
        wanted = injection == "enabled" or (injection is None and revision is not None)
        if not wanted or plain(row["injector"]) is not None or plain(row["ambient"]) == "ambient":
            continue
        name = str(row["namespace"])
        label = "istio-injection=enabled" if injection == "enabled" else f"istio.io/rev={revision}"
        there = rows_of(pods, namespace=name)
        have = (
            f" There are {and_list(revisions)}."
            if revisions
            else " There is no injection webhook at all."
        )
        existing = revisions[0] if revisions else "…"
        yield Finding(
            Subject("Namespace", "", name),
            f"Namespace {name} asks for injection with {label}, and no injection webhook serves "
            f"that: its new pods get no sidecar.{have}",
            f"Label it with a revision that exists: `kubectl label namespace {name} "
            f"istio.io/rev={existing} --overwrite`, then restart its workloads.",
            evidence=(
                Evidence.of(namespaces, [row.name]),
                Evidence.of(rows_of(webhooks, purpose="injection")),
                Evidence.of(there),
            ),
        )


@check("MNB151", Severity.WARNING, cause=Cause.CONTROL_PLANE_CONFIG)
def opted_out_of_injection(
    mesh: Mesh,
    symptoms: Symptoms,
    injection: pd.DataFrame,
    pods: pd.DataFrame,
    rollouts: pd.DataFrame,
    facts: Facts,
) -> Iterator[Finding]:
    """Every workload that serves others in an injected namespace has a sidecar.

    A label or annotation on the pod can opt it out of injection. Then its traffic bypasses the
    mesh: no mutual TLS, no policy, no telemetry; callers that insist on mutual TLS cannot reach it.
    Some workloads are left out on purpose; one whose earlier version was not is more likely a
    mistake.
    """
    out = injection[
        injection["opted_out_by"].notna()
        & (injection["injected"] == False).fillna(False).astype(bool)  # noqa: E712  NA is not False
        & ~injection["opted_out_by"].str.startswith("namespace").fillna(False).astype(bool)
    ]
    served = {
        (pod.namespace, pod.pod)
        for service in mesh.services
        for pod in mesh.selected(service)
        if service.namespace not in mesh.control_plane_namespaces
    }
    for (namespace, kind, workload), rows in out.groupby(
        ["namespace", "workload_kind", "workload"]
    ):
        injected_here = plain(facts["namespaces"].set_index("namespace")["injector"].get(namespace))
        if injected_here is None:
            continue
        subject = Subject(str(kind), str(namespace), str(workload))
        serving = any((namespace, pod) in served for pod in rows["pod"])
        hosts = {
            service.host
            for service in mesh.services
            for pod in mesh.selected(service)
            if pod.namespace == namespace and pod.workload == workload
        }
        seen = [
            s
            for s in symptoms
            if s.host in hosts
            and s.side in ("client", "gateway")
            # Callers speak mutual TLS to it; a refused connection is another matter.
            and "UF" in s.flags
            and "TLS_error" in s.upstream_failure + s.details
        ]
        before = rollouts[
            (rollouts["namespace"] == namespace)
            & (rollouts["workload"] == workload)
            & ~(rollouts["labels"].map(_opted_out) | rollouts["annotations"].map(_opted_out))
        ]
        new = f" Its version of {before['created'].max():%H:%M:%S} did not." if len(before) else ""
        yield Finding(
            subject,
            f"{subject} runs without a sidecar in a namespace that is injected: it says "
            f"{and_list(rows['opted_out_by'])}.{new}",
            f"Take that out of the pod template with `kubectl -n {namespace} edit "
            f"{str(kind).lower()} {workload}`, unless it is meant so.",
            evidence=(
                *symptom_rows(facts, seen),
                Evidence.of(injection, rows.index),
                Evidence.of(rollouts, before.index),
                Evidence.of(
                    pods,
                    pods.index[(pods["namespace"] == namespace) & pods["pod"].isin(rows["pod"])],
                ),
            ),
            explains=ids(seen),
            severity=None if serving and (len(before) or seen) else Severity.INFO,
        )


def _opted_out(metadata: Mapping[str, str]) -> bool:
    return str(metadata.get("sidecar.istio.io/inject")) == "false"


@check("MNB152", Severity.WARNING, cause=Cause.DATA_PLANE)
def pod_older_than_injection(mesh: Mesh, injection: pd.DataFrame) -> Iterator[Finding]:
    """Every pod of an injected namespace was made while injection worked.

    A sidecar is added when a pod is made, never later. A pod that was there before its namespace
    was labelled, or that was made while the webhook could not be called, runs without one until it
    is replaced.
    """
    late = injection[
        (injection["wanted"] == True).fillna(False).astype(bool)  # noqa: E712  NA is not True
        & (injection["injected"] == False).fillna(False).astype(bool)  # noqa: E712  NA is not False
        & injection["opted_out_by"].isna()
    ]
    running = {(pod.namespace, pod.pod) for pod in mesh.pods if pod.running and pod.mesh == "none"}
    for (namespace, kind, workload), rows in late.groupby(
        ["namespace", "workload_kind", "workload"]
    ):
        if not any((namespace, pod) in running for pod in rows["pod"]):
            continue
        subject = Subject(str(kind), str(namespace), str(workload))
        yield Finding(
            subject,
            f"{counted(len(rows), 'pod')} of {subject} without a sidecar, although "
            f"{rows['webhook'].iloc[0]} would add one: made before that was so, or while the "
            "webhook was not called.",
            f"Replace what was made too early: {restart(subject)}.",
            evidence=(Evidence.of(injection, rows.index),),
        )


@check("MNB153", Severity.WARNING, cause=Cause.CONTROL_PLANE_CONFIG)
def webhook_without_service(
    webhooks: pd.DataFrame, symptoms: Symptoms, facts: Facts
) -> Iterator[Finding]:
    """Every webhook of Istio calls a Service that exists.

    The API server calls webhooks through a Service. When it does not exist, pods or Istio objects
    that the webhook selects are refused, or pass unchecked, as its failure policy says.
    """
    lost = webhooks[
        (webhooks["service_exists"] == False).fillna(False).astype(bool)  # noqa: E712  NA is not False
        & (webhooks["deactivated"] != True).fillna(True).astype(bool)  # noqa: E712  NA is not True
    ]
    for (configuration, kind), rows in lost.groupby(["configuration", "kind"]):
        first = rows.iloc[0]
        seen = [
            s
            for s in symptoms
            if s.table == "events" and any(name in s.details for name in rows["webhook"].dropna())
        ]
        name = f"{'Mutating' if kind == 'mutating' else 'Validating'}WebhookConfiguration"
        yield Finding(
            Subject(name, "", str(configuration)),
            f"{configuration} calls Service {first['service_namespace']}/{first['service']}, which "
            f"does not exist (failure policy {first['failure_policy']}).",
            f"Correct or delete it: `kubectl edit {name.lower()} {configuration}`.",
            evidence=(*symptom_rows(facts, seen), Evidence.of(webhooks, rows.index)),
            explains=ids(seen),
            severity=Severity.ERROR if seen else None,
        )
