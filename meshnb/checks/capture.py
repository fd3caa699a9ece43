"""Checks of traffic that goes past a pod's own sidecar. Codes MNB770 to MNB789."""

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
    edit,
    ids,
    symptom_rows,
    workload_of,
)
from meshnb.checks.mtls import callers_of, chain_missing
from meshnb.symptoms import Symptom, Symptoms
from meshnb.symptoms.requests import split_address
from meshnb.tables import Facts
from meshnb.traces.mesh import Mesh, Pod

#: The user that the rules of istio-init let through, since it is the proxy's.
_PROXY_USER = 1337
#: A version that was rolled out so recently may be the reason for what one looks for.
_RECENT = pd.Timedelta(hours=1)
_PREFIX = "traffic.sidecar.istio.io/"
_SCRAPED = "prometheus.io/port"
#: Where the agent offers the application's metrics with the proxy's, and Envoy its own.
_OWN_METRICS = frozenset({"15020", "15090"})


@check("MNB770", Severity.WARNING, cause=Cause.DATA_PLANE)
def application_runs_as_proxy(
    mesh: Mesh, symptoms: Symptoms, containers: pd.DataFrame, pods: pd.DataFrame, facts: Facts
) -> Iterator[Finding]:
    """No application runs as the sidecar's user.

    What user 1337 sends is not redirected, so that the proxy does not send its own traffic to
    itself. An application of that user calls past its sidecar, in plain text and unseen; servers
    that demand mutual TLS cut it off.
    """
    own = containers[
        (containers["run_as_user"] == _PROXY_USER).fillna(False).astype(bool)
        & ~containers["container"].str.startswith("istio-").fillna(False).astype(bool)
        & ~containers["init"].fillna(False).astype(bool)
    ]
    by_workload: dict[Subject, list[Pod]] = {}
    named = set(zip(own["namespace"], own["pod"], strict=True))
    for pod in mesh.pods:
        if pod.mesh == "sidecar" and pod.running and (pod.namespace, pod.pod) in named:
            by_workload.setdefault(workload_of(pod), []).append(pod)
    for subject, members in by_workload.items():
        seen = [s for s in symptoms if _from_these(s, members, mesh)]
        known = any(
            caller in members for s in seen for caller in callers_of(s, mesh) if caller is not None
        )
        names = [pod.pod for pod in members]
        rows = own[own["pod"].isin(names) & (own["namespace"] == subject.namespace)]
        yield Finding(
            subject,
            f"{and_list(rows['container'])} of {subject} runs as user {_PROXY_USER}, like the "
            "sidecar: what it sends goes past the sidecar, in plain text.",
            f"Set another runAsUser in the pod template: {edit(subject)}.",
            evidence=(
                *symptom_rows(facts, seen),
                Evidence.of(containers, rows.index),
                Evidence.of(pods, pods.index[pods["pod"].isin(names)]),
            ),
            related=tuple(Subject("Pod", pod.namespace, pod.pod) for pod in members),
            explains=ids(seen),
            severity=Severity.ERROR if seen else None,
            certainty=1.0 if known or not seen else 0.9,
        )


def _from_these(symptom: Symptom, pods: list[Pod], mesh: Mesh) -> bool:
    """Whether a server cut off plain text from one of these pods, or from an address of nobody."""
    if not chain_missing(symptom) or symptom.workload in {(p.namespace, p.workload) for p in pods}:
        return False
    known = [caller for caller in callers_of(symptom, mesh) if caller is not None]
    return not known or any(caller in pods for caller in known)


@check("MNB771", Severity.WARNING, cause=Cause.CONTROL_PLANE_CONFIG)
def traffic_left_out(
    mesh: Mesh, pods: pd.DataFrame, rollouts: pd.DataFrame, facts: Facts
) -> Iterator[Finding]:
    """No new version of a workload takes traffic out of its sidecar's hands.

    The annotations traffic.sidecar.istio.io/… leave ports and addresses out, for databases outside
    the mesh and the like. What is left out has neither mutual TLS nor policies nor telemetry, and
    the proxy says nothing of it.
    """
    by_workload: dict[Subject, list[Pod]] = {}
    for pod in mesh.pods:
        if pod.mesh == "sidecar" and pod.running and _told(pod.annotations):
            by_workload.setdefault(workload_of(pod), []).append(pod)
    for subject, members in by_workload.items():
        now = _told(members[0].annotations)
        before = rollouts[
            (rollouts["namespace"] == subject.namespace)
            & (rollouts["workload"] == subject.name)
            & (rollouts["replicas_wanted"] == 0).fillna(False).astype(bool)
        ]
        last = before.sort_values("created").tail(1)
        rolled_out = rollouts[
            (rollouts["namespace"] == subject.namespace) & (rollouts["workload"] == subject.name)
        ]["created"].max()
        recent = not pd.isna(rolled_out) and facts.now - rolled_out < _RECENT
        changed = [recent and told != now for told in map(_told, last["annotations"])]
        new = f" Its version of {last['created'].iloc[0]:%H:%M:%S} did not." if any(changed) else ""
        yield Finding(
            subject,
            f"{subject} leaves traffic out of its sidecar: "
            f"{and_list(f'{name}={value}' for name, value in now.items())}.{new}",
            f"Take the annotation out of the pod template, unless it is meant so: {edit(subject)}.",
            evidence=(
                Evidence.of(pods, pods.index[pods["pod"].isin([pod.pod for pod in members])]),
                Evidence.of(rollouts, last.index if any(changed) else []),
            ),
            severity=None if any(changed) else Severity.INFO,
        )


def _told(annotations: Mapping[str, str] | None) -> dict[str, str]:
    """Return the annotations that leave traffic out, by their names without the prefix."""
    found = {}
    for name, value in (annotations or {}).items():
        kind = str(name).removeprefix(_PREFIX)
        if kind == str(name):
            continue
        if kind.startswith("exclude") and value:
            found[kind] = str(value)
        if kind in ("includeInboundPorts", "includeOutboundIPRanges") and str(value) != "*":
            found[kind] = str(value)
    return found


@check("MNB772", Severity.ERROR, cause=Cause.DATA_PLANE)
def metrics_behind_mutual_tls(
    mesh: Mesh, symptoms: Symptoms, pods: pd.DataFrame, facts: Facts
) -> Iterator[Finding]:
    """Metrics of every server with mutual TLS are offered where scrapers can read them.

    With metrics merging the injector points prometheus.io/port to the agent's 15020, in plain text.
    Without it a scraper comes to the application's own port, and is cut off.
    """
    for symptom in [s for s in symptoms if chain_missing(s)]:
        servers = [
            pod
            for pod in mesh.pods_of(symptom.reporters)
            if pod.annotations.get(_SCRAPED, "15020") not in _OWN_METRICS
            and pod.annotations.get("prometheus.io/scrape") == "true"
        ]
        ports = {str(split_address(f.local_address)[1]) for f in symptom.failures}
        scraped = {pod.annotations[_SCRAPED] for pod in servers}
        callers = [caller for caller in callers_of(symptom, mesh) if caller is not None]
        if not servers or not ports <= scraped or any(caller.in_mesh for caller in callers):
            continue
        subject = workload_of(servers[0])
        offered = any(
            str(mesh.target_port(service)) in ports
            for service in mesh.services
            if any(pod in servers for pod in mesh.selected(service))
        )
        named = and_list(f"{pod.namespace}/{pod.pod}" for pod in callers)
        who = f"{named} scrapes" if named else "something outside the mesh scrapes"
        yield Finding(
            subject,
            f"{who[0].upper()}{who[1:]} {subject} on port {and_list(sorted(ports))} in plain text, "
            f"as its annotation {_SCRAPED} says, and mutual TLS is demanded there.",
            "Let metrics be merged (enablePrometheusMerge), so that they are read from 15020, or "
            f"make an exception for the port: {edit(subject)}.",
            evidence=(
                *symptom_rows(facts, [symptom]),
                Evidence.of(pods, pods.index[pods["proxy"].isin([p.proxy for p in servers])]),
            ),
            related=tuple(Subject("Pod", pod.namespace, pod.pod) for pod in callers),
            explains=ids([symptom]),
            # A port that others call, too, may have been called by others.
            certainty=0.75 if offered else 1.0,
        )
