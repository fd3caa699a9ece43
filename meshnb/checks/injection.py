"""Checks of sidecar injection. Codes MNB150 to MNB169."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

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
from meshnb.symptoms.requests import split_address
from meshnb.tables import Facts
from meshnb.tables.namespaces import NEVER_INJECTED
from meshnb.tables.selectors import selects
from meshnb.traces.mesh import Mesh, Pod, plain
from meshnb.traces.strays import Stray

Strays = tuple[Stray, ...]
#: What keeps a proxy out that the pod itself does not say.
_BY_OTHERS = r"^namespace| in ConfigMap "


def pods_of(strays: Iterable[Stray], mesh: Mesh) -> list[Pod]:
    """Return the pods of strays as a mesh has them."""
    return [pod for stray in strays if (pod := stray.among(mesh)) is not None]


def suffered(pods: Iterable[Pod], mesh: Mesh, symptoms: Symptoms) -> list[Symptom]:
    """Return what goes wrong because these pods, of the mesh in name, have no sidecar.

    Servers that demand mutual TLS cut their plain text off, and callers that speak mutual TLS to
    them are not understood. Where source NAT hides who was cut off, they are taken for it, if they
    were there before.
    """
    lost = list(pods)
    hosts = _hosts(lost, mesh)
    return [s for s in symptoms if cut_off(s, lost, mesh) or _not_understood(s, hosts)]


def _hosts(pods: list[Pod], mesh: Mesh) -> set[str]:
    return {port.host for port in mesh.services if any(p in pods for p in mesh.selected(port))}


def cut_off(symptom: Symptom, pods: Iterable[Pod], mesh: Mesh) -> bool:
    """Whether a server cut connections off because they came in plain text, from one of these pods.

    An address that no pod has may be a node's, which hides the pod behind it.
    """
    if symptom.side != "server" or "filter_chain_not_found" not in symptom.details:
        return False
    lost = list(pods)
    callers = {split_address(failure.remote_address)[0] for failure in symptom.failures}
    known = {pod for address in callers if (pod := mesh.pod_at(address)) is not None}
    if known:
        return bool(known & set(lost))
    first = symptom.first_seen
    return any(
        pod.created is None or first is None or pod.created <= first for pod in lost
    ) and _demanded(symptom, mesh)


def _demanded(symptom: Symptom, mesh: Mesh) -> bool:
    ports = {split_address(failure.local_address)[1] for failure in symptom.failures}
    servers = mesh.pods_of(symptom.reporters)
    return any(mesh.mtls_mode(pod, port)[0] == "STRICT" for pod in servers for port in ports)


def _not_understood(symptom: Symptom, hosts: set[str]) -> bool:
    """Whether callers speak mutual TLS to it; a refused connection is another matter."""
    return (
        symptom.host in hosts
        and symptom.side in ("client", "gateway")
        and "UF" in symptom.flags
        and "TLS_error" in symptom.upstream_failure + symptom.details
    )


def without_sidecar(pods: list[Pod]) -> str:
    """Return what is seen of pods that were meant to have a sidecar, which no log tells."""
    running = [f"{pod.namespace}/{pod.pod}" for pod in pods if pod.running]
    return f"{and_list(running)} outside the mesh, without a sidecar" if running else ""


@check("MNB150", Severity.ERROR, cause=Cause.CONTROL_PLANE_CONFIG)
def revision_without_webhook(
    mesh: Mesh,
    strays: Strays,
    symptoms: Symptoms,
    namespaces: pd.DataFrame,
    webhooks: pd.DataFrame,
    pods: pd.DataFrame,
    facts: Facts,
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
        if plain(row["phase"]) == "Terminating":
            continue
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
        lost = pods_of((s for s in strays if s.namespace == name and s.why == "revision"), mesh)
        seen = suffered(lost, mesh, symptoms)
        yield Finding(
            Subject("Namespace", "", name),
            f"Namespace {name} asks for injection with {label}, and no injection webhook serves "
            f"that: its new pods get no sidecar.{have}",
            f"Label it with a revision that exists: `kubectl label namespace {name} "
            f"istio.io/rev={existing} --overwrite`, then restart its workloads.",
            evidence=(
                *symptom_rows(facts, seen),
                Evidence.of(namespaces, [row.name]),
                Evidence.of(rows_of(webhooks, purpose="injection")),
                Evidence.of(there),
            ),
            explains=ids(seen),
            shows=without_sidecar(lost),
        )

    labelled: dict[Subject, list[Pod]] = {}
    for pod in pods_of((stray for stray in strays if stray.why == "revision"), mesh):
        if pod.labels.get("istio.io/rev"):
            labelled.setdefault(workload_of(pod), []).append(pod)
    for subject, lost in labelled.items():
        revision = lost[0].labels["istio.io/rev"]
        seen = suffered(lost, mesh, symptoms)
        yield Finding(
            subject,
            f"{subject} asks for injection with istio.io/rev={revision} on its pods, and no "
            f"injection webhook serves that: no sidecar. There are {and_list(revisions)}.",
            f"Correct the label in the pod template: {edit(subject)}.",
            evidence=(
                *symptom_rows(facts, seen),
                Evidence.of(rows_of(webhooks, purpose="injection")),
                Evidence.of(pods, pods.index[pods["pod"].isin([pod.pod for pod in lost])]),
            ),
            explains=ids(seen),
            shows=without_sidecar(lost),
        )


@check("MNB151", Severity.WARNING, cause=Cause.CONTROL_PLANE_CONFIG)
def opted_out_of_injection(
    mesh: Mesh,
    strays: Strays,
    symptoms: Symptoms,
    injection: pd.DataFrame,
    pods: pd.DataFrame,
    rollouts: pd.DataFrame,
    events: pd.DataFrame,
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
        & ~injection["opted_out_by"].str.contains(_BY_OTHERS).fillna(False).astype(bool)
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
        gone = [pod for pod in mesh.pods if (pod.namespace, pod.pod) in members(rows)]
        astray = [one for one in strays if (one.namespace, one.pod) in members(rows)]
        hosts = _hosts(gone, mesh)
        seen = [
            s
            for s in symptoms
            if cut_off(s, pods_of(astray, mesh), mesh) or _not_understood(s, hosts)
        ]
        before = rollouts[
            (rollouts["namespace"] == namespace)
            & (rollouts["workload"] == workload)
            & ~(
                rollouts["labels"].map(_opted_out)
                | rollouts["annotations"].map(_opted_out)
                | rollouts["host_network"].fillna(False).astype(bool)
            )
        ]
        told = events.loc[list(dict.fromkeys(index for one in astray for index in one.events))]
        new = (
            f" Its version of {before['created'].max():%H:%M:%S} did not."
            if len(before)
            else " Earlier pods of it had one."
            if len(told)
            else ""
        )
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
                Evidence.of(events, told.index[-3:]),
                Evidence.of(
                    pods,
                    pods.index[(pods["namespace"] == namespace) & pods["pod"].isin(rows["pod"])],
                ),
            ),
            explains=ids(seen),
            severity=None if seen or (serving and (len(before) or len(told))) else Severity.INFO,
        )


@check("MNB157", Severity.WARNING, cause=Cause.CONTROL_PLANE_CONFIG)
def injector_keeps_pods_out(
    mesh: Mesh,
    strays: Strays,
    symptoms: Symptoms,
    injection: pd.DataFrame,
    events: pd.DataFrame,
    facts: Facts,
) -> Iterator[Finding]:
    """Every pod that a webhook selects gets its sidecar from the injector.

    The injector's own ConfigMap can say otherwise: with policy disabled only pods that ask for it
    get one, and neverInjectSelector keeps others out. istiod logs no more than that it skips them.
    """
    out = injection[
        injection["opted_out_by"].str.contains(" in ConfigMap ", regex=False).fillna(False)
        & (injection["injected"] == False).fillna(False).astype(bool)  # noqa: E712  NA is not False
    ]
    for setting, rows in out.groupby("opted_out_by"):
        what, _, name = str(setting).partition(" in ConfigMap ")
        namespace, _, config_map = name.partition("/")
        subject = Subject("ConfigMap", namespace, config_map)
        lost = [one for one in strays if (one.namespace, one.pod) in members(rows)]
        seen = suffered(pods_of(lost, mesh), mesh, symptoms)
        told = list(dict.fromkeys(index for one in lost for index in one.events))
        before = " Earlier pods of them had one." if lost else ""
        yield Finding(
            subject,
            f"{subject} says {what}: {and_list(sorted(set(rows['workload'])))} got no sidecar."
            f"{before}",
            f"Take it out, then restart the workloads: {edit(subject)}.",
            evidence=(
                *symptom_rows(facts, seen),
                Evidence.of(injection, rows.index),
                Evidence.of(events, told[-3:]),
            ),
            explains=ids(seen),
            severity=None if lost else Severity.INFO,
        )


def members(rows: pd.DataFrame) -> set[tuple[str, str]]:
    """Return namespace and name of the pods that rows are about."""
    return set(zip(rows["namespace"], rows["pod"], strict=True))


def _opted_out(metadata: Mapping[str, str]) -> bool:
    return str(metadata.get("sidecar.istio.io/inject")) == "false"


@check("MNB152", Severity.WARNING, cause=Cause.DATA_PLANE)
def pod_older_than_injection(
    mesh: Mesh, symptoms: Symptoms, injection: pd.DataFrame, facts: Facts
) -> Iterator[Finding]:
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
        late_pods = [pod for pod in mesh.pods if (pod.namespace, pod.pod) in members(rows)]
        seen = suffered(late_pods, mesh, symptoms)
        yield Finding(
            subject,
            f"{counted(len(rows), 'pod')} of {subject} without a sidecar, although "
            f"{rows['webhook'].iloc[0]} would add one: made before that was so, or while the "
            "webhook was not called.",
            f"Replace what was made too early: {restart(subject)}.",
            evidence=(*symptom_rows(facts, seen), Evidence.of(injection, rows.index)),
            explains=ids(seen),
            shows=without_sidecar(late_pods),
            severity=Severity.ERROR if seen else None,
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


@check("MNB154", Severity.WARNING, cause=Cause.CONTROL_PLANE_CONFIG)
def namespace_lost_its_label(
    mesh: Mesh,
    strays: Strays,
    symptoms: Symptoms,
    namespaces: pd.DataFrame,
    injection: pd.DataFrame,
    events: pd.DataFrame,
    facts: Facts,
) -> Iterator[Finding]:
    """Every namespace whose pods had sidecars still asks for them.

    When the label is taken off a namespace nothing happens at first. Each pod that is replaced
    later comes up without a sidecar, out of mutual TLS, policies and telemetry.
    """
    by_namespace: dict[str, list[Stray]] = {}
    for stray in strays:
        if stray.why == "unlabelled":
            by_namespace.setdefault(stray.namespace, []).append(stray)
    for name, lost in by_namespace.items():
        pods = pods_of(lost, mesh)
        seen = suffered(pods, mesh, symptoms)
        told = list(dict.fromkeys(index for stray in lost for index in stray.events))
        sisters = list(dict.fromkeys(pod for stray in lost for pod in stray.sisters))
        row = rows_of(namespaces, namespace=name)
        says = plain(row["injection"].iloc[0]) if len(row) else None
        label = f"says istio-injection={says}" if says else "has no label for injection"
        since = (
            f"{and_list(sisters, 2)} of before still have one"
            if sisters
            else "earlier pods of the same workloads had one"
        )
        yield Finding(
            Subject("Namespace", "", name),
            f"Namespace {name} {label}, so {and_list((pod.pod for pod in pods), 3)} came up "
            f"without a sidecar; {since}.",
            f"Label it again: `kubectl label namespace {name} istio-injection=enabled "
            "--overwrite` (or istio.io/rev with the revision), then restart its workloads.",
            evidence=(
                *symptom_rows(facts, seen),
                Evidence.of(row),
                Evidence.of(
                    injection,
                    injection.index[
                        (injection["namespace"] == name)
                        & injection["pod"].isin([pod.pod for pod in pods])
                    ],
                ),
                Evidence.of(events, told[-3:]),
            ),
            explains=ids(seen),
            severity=Severity.ERROR if seen else None,
        )


@check("MNB155", Severity.WARNING, cause=Cause.CONTROL_PLANE_CONFIG)
def two_injection_labels(namespaces: pd.DataFrame, pods: pd.DataFrame) -> Iterator[Finding]:
    """No namespace asks for two ways of being in the mesh.

    Beside istio-injection the label istio.io/rev has no effect, so that pods keep the revision
    that they had; beside istio.io/dataplane-mode=ambient a label for sidecars gives new pods both.
    """
    for _, row in namespaces.iterrows():
        name = str(row["namespace"])
        injection, revision = plain(row["injection"]), plain(row["revision"])
        ambient = plain(row["ambient"]) == "ambient"
        two = injection == "enabled" or ambient
        if not two or (revision is None and not (ambient and injection == "enabled")):
            continue
        there = rows_of(pods, namespace=name, mesh="sidecar")
        if injection == "enabled" and revision is not None:
            got = plain(row["injector_revision"])
            others = there[there["revision"].notna() & (there["revision"] != revision)]
            had = and_list(others["revision"]) or got
            what = (
                f"asks for revision {revision} by istio.io/rev, but istio-injection=enabled comes "
                f"first: its pods are of revision {had}"
            )
            harmless = got == revision or not len(others)
            remedy = f"`kubectl label namespace {name} istio-injection-`"
        elif ambient and (injection == "enabled" or revision is not None):
            others, harmless = there, not len(there)
            what = "asks for ambient mode and for sidecars: pods with a sidecar are left out of it"
            remedy = f"`kubectl label namespace {name} istio-injection- istio.io/rev-`"
        else:
            continue
        yield Finding(
            Subject("Namespace", "", name),
            f"Namespace {name} {what}.",
            f"Take one of the labels off, such as with {remedy}, then restart its workloads.",
            evidence=(Evidence.of(namespaces, [row.name]), Evidence.of(pods, others.index)),
            severity=Severity.INFO if harmless else None,
        )


@check("MNB156", Severity.WARNING, cause=Cause.CONTROL_PLANE_CONFIG)
def webhooks_overlap(
    namespaces: pd.DataFrame, webhooks: pd.DataFrame, pods: pd.DataFrame
) -> Iterator[Finding]:
    """One injection webhook at most selects each pod.

    Where those of two revisions do, the API server calls both, and which of them makes the sidecar
    depends on their names.
    """
    active = webhooks[
        (webhooks["purpose"] == "injection")
        & (webhooks["deactivated"] != True).fillna(True).astype(bool)  # noqa: E712  NA is not True
    ]
    labels = dict(zip(namespaces["namespace"], namespaces["labels"], strict=True))
    webhooks_in_use = active.to_dict("records")
    found: dict[tuple[str, ...], set[str]] = {}
    for namespace, own in zip(pods["namespace"], pods["labels"], strict=True):
        if namespace not in labels or namespace in NEVER_INJECTED:
            continue
        chosen = {
            f"{row['configuration']}"
            for row in webhooks_in_use
            if selects(row["namespace_selector"], labels[namespace] or {})
            and selects(row["object_selector"], own or {})
        }
        if len(chosen) > 1:
            found.setdefault(tuple(sorted(chosen)), set()).add(str(namespace))
    for configurations, spaces in found.items():
        rows = active[active["configuration"].isin(list(configurations)).astype(bool)]
        by_tag = rows[rows["tag"].notna()]["configuration"].tolist()
        stale = next((one for one in configurations if one not in by_tag), configurations[-1])
        revisions = rows.drop_duplicates("configuration")["revision"].dropna()
        subject = Subject("MutatingWebhookConfiguration", "", stale)
        yield Finding(
            subject,
            f"{and_list(configurations)} both inject pods of {and_list(sorted(spaces))} "
            f"(revisions {and_list(revisions) or 'not told'}).",
            "Delete the one of the revision that is to go: "
            f"`kubectl delete mutatingwebhookconfiguration {stale}`.",
            evidence=(
                Evidence.of(webhooks, rows.index),
                Evidence.of(namespaces, namespaces.index[namespaces["namespace"].isin(spaces)]),
            ),
            related=tuple(
                Subject("MutatingWebhookConfiguration", "", one)
                for one in configurations
                if one != stale
            ),
            severity=None if len(set(revisions)) > 1 else Severity.INFO,
        )
