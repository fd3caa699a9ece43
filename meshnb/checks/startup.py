"""Checks of pods that do not start, stop or become ready because of their sidecar.

Codes MNB750 to MNB769.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

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
    symptom_rows,
    workload_of,
)
from meshnb.checks.stuck import waiting_for
from meshnb.symptoms import Symptom, Symptoms
from meshnb.symptoms.base import REPEATED, one_line
from meshnb.symptoms.requests import split_address
from meshnb.tables import Facts
from meshnb.traces.mesh import Mesh, Pod, plain

Row = Mapping[Any, Any]
#: What an application says that cannot reach anything yet.
_TOO_EARLY = "connection refused, or a name that cannot be resolved"


def by_pod(facts: Facts) -> Callable[[Pod], list[tuple[int, Row]]]:
    """Return a function that gives the rows of a pod's containers, each with its label."""
    containers = facts["containers"]
    found: dict[tuple[str, str], list[tuple[int, Row]]] = {}
    for index, row in zip(containers.index.tolist(), containers.to_dict("records"), strict=True):
        found.setdefault((str(row["namespace"]), str(row["pod"])), []).append((index, row))
    return lambda pod: found.get((pod.namespace, pod.pod), [])


def _native(rows: list[tuple[int, Row]]) -> bool:
    """Whether the proxy is a sidecar that Kubernetes knows of: it starts first and ends last."""
    return any(row["container"] == "istio-proxy" and plain(row["init"]) is True for _, row in rows)


def _failed(row: Row) -> bool:
    ended = row["state"] == "terminated" and int(plain(row["exit_code"]) or 0) != 0
    again = row["state"] == "waiting" and int(plain(row["last_exit_code"]) or 0) != 0
    return ended or again


def _code(row: Row) -> int:
    return int(plain(row["exit_code"]) or plain(row["last_exit_code"]) or 0)


@check("MNB750", Severity.ERROR, cause=Cause.DATA_PLANE)
def job_never_completes(
    mesh: Mesh, symptoms: Symptoms, containers: pd.DataFrame, facts: Facts
) -> Iterator[Finding]:
    """Every job ends when its application has ended.

    A sidecar among the ordinary containers runs on, and Kubernetes counts the pod as running. One
    that Kubernetes knows as a sidecar, an init container with restartPolicy Always, is stopped.
    """
    rows_for = facts.once(by_pod)
    for pod in mesh.pods:
        if pod.workload_kind not in ("Job", "CronJob") or not pod.running or not pod.proxy:
            continue
        rows = rows_for(pod)
        own = [(i, r) for i, r in rows if r["container"] != "istio-proxy" and not plain(r["init"])]
        proxy = [(i, r) for i, r in rows if r["container"] == "istio-proxy"]
        done = own and all(r["state"] == "terminated" and _code(r) == 0 for _, r in own)
        if _native(rows) or not done or not any(r["state"] == "running" for _, r in proxy):
            continue
        subject = workload_of(pod)
        seen = waiting_for([pod], mesh, symptoms)
        ended = [since for _, r in own if (since := plain(r["since"])) is not None]
        at = f" at {max(ended):%H:%M:%S}" if ended else ""
        yield Finding(
            subject,
            f"{subject} does not complete: {and_list(r['container'] for _, r in own)} ended well"
            f"{at}, but the sidecar of {pod.pod} goes on.",
            "Let istiod inject native sidecars (ENABLE_NATIVE_SIDECARS=true), or end it from the "
            "application with `curl -XPOST http://localhost:15020/quitquitquit`.",
            evidence=(
                *symptom_rows(facts, seen),
                Evidence.of(containers, [index for index, _ in own + proxy]),
            ),
            related=(Subject("Pod", pod.namespace, pod.pod),),
            explains=ids(seen),
            shows=f"{subject} is not complete although its application has ended",
        )


@check("MNB751", Severity.ERROR, cause=Cause.DATA_PLANE)
def traffic_rules_not_set(
    mesh: Mesh, symptoms: Symptoms, containers: pd.DataFrame, facts: Facts
) -> Iterator[Finding]:
    """Every istio-init sets the rules by which traffic passes the sidecar.

    It needs NET_ADMIN and NET_RAW, and an iptables that fits the node's kernel. Without the rules
    the pod is not started.
    """
    for subject, pods, rows in _init_failed(mesh, facts, "istio-init"):
        log = facts["init_log"]
        said = log[
            (log["container"] == "istio-init")
            & log["pod"].isin([pod.pod for pod in pods])
            & log["message"]
            .str.contains("error|denied|failed|fatal|can't|lock", case=False)
            .fillna(False)
            .astype(bool)
        ]
        words = (
            f" Its log says: {one_line(said['message'].iloc[-1]).rstrip('.')}." if len(said) else ""
        )
        added = {name for _, row in rows for name in row["capabilities"] or ()}
        lacks = [name for name in ("NET_ADMIN", "NET_RAW") if name not in added]
        why = f"; it is not given {and_list(lacks)}" if lacks else ""
        seen = waiting_for(pods, mesh, symptoms)
        yield Finding(
            subject,
            f"istio-init fails in {and_list(pod.pod for pod in pods)} (exit code "
            f"{_code(rows[0][1])}){why}.{words}",
            "Let it have NET_ADMIN and NET_RAW, or use Istio's CNI plugin; see "
            f"`kubectl -n {subject.namespace} logs {pods[0].pod} -c istio-init`.",
            evidence=(
                *symptom_rows(facts, seen),
                Evidence.of(containers, [index for index, _ in rows]),
                Evidence.of(log, said.tail(3).index),
            ),
            related=tuple(Subject("Pod", pod.namespace, pod.pod) for pod in pods),
            explains=ids(seen),
        )


def _init_failed(
    mesh: Mesh, facts: Facts, name: str
) -> Iterator[tuple[Subject, list[Pod], list[tuple[int, Row]]]]:
    """Yield the workloads in whose pods an init container of this name fails, with its rows."""
    rows_for = facts.once(by_pod)
    found: dict[Subject, tuple[list[Pod], list[tuple[int, Row]]]] = {}
    for pod in mesh.pods:
        if not pod.running or pod.ready:
            continue
        for index, row in rows_for(pod):
            if row["container"] == name and _failed(row):
                pods, rows = found.setdefault(workload_of(pod), ([], []))
                pods.append(pod)
                rows.append((index, row))
    for subject, (pods, rows) in found.items():
        yield subject, pods, rows


def _cni_agents(mesh: Mesh) -> list[Pod]:
    return [pod for pod in mesh.pods if pod.labels.get("k8s-app") == "istio-cni-node"]


@check("MNB752", Severity.ERROR, cause=Cause.DATA_PLANE)
def made_before_cni_was_ready(
    mesh: Mesh, symptoms: Symptoms, containers: pd.DataFrame, pods: pd.DataFrame, facts: Facts
) -> Iterator[Finding]:
    """Every pod starts on a node where Istio's CNI plugin is at work.

    With the plugin there is no istio-init; istio-validation looks whether the rules are there, and
    ends with 126 when they are not: the pod came before the plugin was ready on its node.
    """
    for subject, stuck, rows in _init_failed(mesh, facts, "istio-validation"):
        agents = _cni_agents(mesh)
        down = [pod for pod in agents if not pod.ready]
        blamed = workload_of(down[0]) if down else subject
        why = f"; {down[0].pod} is not ready" if down else ""
        seen = waiting_for(stuck, mesh, symptoms)
        yield Finding(
            blamed,
            f"The pods {and_list(pod.pod for pod in stuck)} of {subject} came to a node where "
            f"Istio's CNI plugin was not at work (istio-validation ended with {_code(rows[0][1])})"
            f"{why}.",
            f"Bring istio-cni-node in order, then replace the pods: {restart(subject)}.",
            evidence=(
                *symptom_rows(facts, seen),
                Evidence.of(containers, [index for index, _ in rows]),
                Evidence.of(pods, pods.index[pods["pod"].isin([pod.pod for pod in agents])]),
            ),
            related=tuple(Subject("Pod", pod.namespace, pod.pod) for pod in stuck),
            explains=ids(seen),
        )


@check("MNB753", Severity.ERROR, cause=Cause.DATA_PLANE)
def cni_blocks_sandbox(
    mesh: Mesh, symptoms: Symptoms, events: pd.DataFrame, pods: pd.DataFrame, facts: Facts
) -> Iterator[Finding]:
    """Istio's CNI plugin lets every pod's network be made.

    The kubelet calls it for each new pod. When its agent on the node does not answer, or may not
    ask the API server, the pod stays in ContainerCreating.
    """
    failed = events[
        (events["reason"] == "FailedCreatePodSandBox")
        & events["message"].str.contains("istio-cni", regex=False).fillna(False)
        & ~events["message"].str.contains("ztunnel", regex=False).fillna(False)
    ]
    waiting = {(pod.namespace, pod.pod): pod for pod in mesh.pods if pod.running and not pod.ready}
    chosen = [
        index
        for index, namespace, name in zip(
            failed.index.tolist(), failed["namespace"], failed["name"], strict=True
        )
        if (namespace, name) in waiting
    ]
    if not chosen:
        return
    rows = failed.loc[chosen]
    stuck = [
        waiting[key] for key in dict.fromkeys(zip(rows["namespace"], rows["name"], strict=True))
    ]
    agents = _cni_agents(mesh)
    subject = workload_of(agents[0]) if agents else workload_of(stuck[0])
    said = one_line(str(rows["message"].iloc[-1])).rstrip(".")
    seen = waiting_for(stuck, mesh, symptoms)
    yield Finding(
        subject,
        f"Istio's CNI plugin keeps {and_list(pod.pod for pod in stuck)} from starting: {said}.",
        f"Bring its agent in order: {restart(subject)}.",
        evidence=(
            *symptom_rows(facts, seen),
            Evidence.of(events, chosen[-3:]),
            Evidence.of(pods, pods.index[pods["pod"].isin([pod.pod for pod in agents])]),
        ),
        related=tuple(Subject("Pod", pod.namespace, pod.pod) for pod in stuck),
        explains=ids(seen),
    )


@check("MNB754", Severity.ERROR, cause=Cause.DATA_PLANE)
def starts_before_its_proxy(
    mesh: Mesh, symptoms: Symptoms, containers: pd.DataFrame, facts: Facts
) -> Iterator[Finding]:
    """No container needs the network before the sidecar is ready.

    istio-init sends all traffic to a proxy that does not run yet. Init containers behind it, and
    applications that start first, meet a refused connection.
    """
    rows_for = facts.once(by_pod)
    found: dict[Subject, list[tuple[Pod, int, Row]]] = {}
    for pod in mesh.pods:
        if not pod.proxy or pod.mesh != "sidecar" or not pod.running:
            continue
        rows = rows_for(pod)
        for index, row in rows:
            own = not str(row["container"]).startswith("istio-")
            if own and _init_too_early(row, rows):
                found.setdefault(workload_of(pod), []).append((pod, index, row))
    for subject, failing in found.items():
        pods = list(dict.fromkeys(pod for pod, _, _ in failing))
        row = failing[0][2]
        seen = waiting_for(pods, mesh, symptoms)
        yield Finding(
            subject,
            f"Init container {row['container']} of {subject} fails (exit code {_code(row)}) while "
            f"the sidecar cannot run yet: to it, each call is {_TOO_EARLY}.",
            "Let istiod inject native sidecars (ENABLE_NATIVE_SIDECARS=true), or let it run as "
            f"user 1337: {edit(subject)}.",
            evidence=(
                *symptom_rows(facts, seen),
                Evidence.of(containers, [index for _, index, _ in failing]),
            ),
            related=tuple(Subject("Pod", pod.namespace, pod.pod) for pod in pods),
            explains=ids(seen),
        )


def _init_too_early(row: Row, rows: list[tuple[int, Row]]) -> bool:
    """Whether an init container fails between istio-init, which must be there, and the proxy."""
    if plain(row["init"]) is not True or row["restart_policy"] == "Always" or not _failed(row):
        return False
    if plain(row["run_as_user"]) == 1337:
        return False
    place = {r["container"]: int(r["position"]) for _, r in rows if plain(r["init"]) is True}
    here = place[row["container"]]
    redirected = place.get("istio-init", -1) < here or "istio-validation" in place
    return redirected and place.get("istio-proxy", here + 1) > here


@check("MNB755", Severity.ERROR, cause=Cause.DATA_PLANE)
def probe_meets_mutual_tls(
    mesh: Mesh, symptoms: Symptoms, containers: pd.DataFrame, events: pd.DataFrame, facts: Facts
) -> Iterator[Finding]:
    """Every probe of the kubelet reaches the application past mutual TLS.

    The injector redirects probes to the agent, unless sidecar.istio.io/rewriteAppHTTPProbers says
    no. A probe that goes to the application's port is plain text, which a server with STRICT ends.
    """
    rows_for = facts.once(by_pod)
    found: dict[Subject, list[tuple[Pod, int, int]]] = {}
    for pod in mesh.pods:
        if pod.mesh != "sidecar" or not pod.running:
            continue
        for index, row in rows_for(pod):
            if row["container"] == "istio-proxy":
                continue
            for port in row["direct_probe_ports"] or ():
                if mesh.mtls_mode(pod, port)[0] == "STRICT":
                    found.setdefault(workload_of(pod), []).append((pod, index, port))
    for subject, probed in found.items():
        pods = list(dict.fromkeys(pod for pod, _, _ in probed))
        ports = sorted({port for _, _, port in probed})
        failing = events[
            (events["reason"] == "Unhealthy")
            & events["name"].isin([pod.pod for pod in pods])
            & (events["namespace"] == subject.namespace)
            & ~events["message"].str.contains(":15021/|:15020/", regex=True).fillna(False)
        ]
        cut = [s for s in symptoms if _cut_probe(s, subject, set(ports), mesh)]
        seen = waiting_for([pod for pod in pods if not pod.ready], mesh, symptoms)
        seen += [s for s in cut if s not in seen]
        if not seen and (not len(failing) or all(pod.ready for pod in pods)):
            continue  # an exception for the port, or a probe that is answered after all
        off = any(_unwritten(pod) for pod in pods)
        why = f" ({_REWRITE} is false)" if off else ""
        policy = mesh.mtls_mode(pods[0], ports[0])[1]
        yield Finding(
            subject,
            f"The kubelet probes {subject} on port {and_list(map(str, ports))} in plain text{why}, "
            f"and {policy or 'a policy'} demands mutual TLS there: the probes are cut off.",
            f"Let the injector redirect the probes: take {_REWRITE} out with {edit(subject)}.",
            evidence=(
                *symptom_rows(facts, seen),
                Evidence.of(containers, list(dict.fromkeys(index for _, index, _ in probed))),
                Evidence.of(events, failing.index[-3:]),
            ),
            related=tuple(Subject("Pod", pod.namespace, pod.pod) for pod in pods),
            explains=ids(seen),
        )


_REWRITE = "sidecar.istio.io/rewriteAppHTTPProbers"


def _unwritten(pod: Pod) -> bool:
    return pod.annotations.get(_REWRITE) == "false"


def _cut_probe(symptom: Symptom, subject: Subject, ports: set[int], mesh: Mesh) -> bool:
    """Whether a server cut off plain text on a probed port that came from no pod: from its node."""
    if symptom.side != "server" or "filter_chain_not_found" not in symptom.details:
        return False
    if symptom.workload != (subject.namespace, subject.name):
        return False
    return all(
        split_address(failure.local_address)[1] in ports
        and mesh.pod_at(split_address(failure.remote_address)[0]) is None
        for failure in symptom.failures
    )


@check("MNB756", Severity.WARNING, cause=Cause.DATA_PLANE)
def proxy_overloaded(
    mesh: Mesh,
    symptoms: Symptoms,
    containers: pd.DataFrame,
    proxy_log: pd.DataFrame,
    facts: Facts,
) -> Iterator[Finding]:
    """Every proxy has the memory that its configuration needs.

    A proxy that the kernel kills for its memory ends all its connections. One whose overload
    manager acts answers 503 with the details overload. Without a Sidecar it holds the whole mesh.
    """
    rows_for = facts.once(by_pod)
    killed: dict[Subject, list[tuple[Pod, int, Row]]] = {}
    for pod in mesh.pods:
        if not pod.proxy or not pod.running:
            continue
        for index, row in rows_for(pod):
            if row["container"] == "istio-proxy" and _out_of_memory(row):
                killed.setdefault(workload_of(pod), []).append((pod, index, row))
    refusing = [s for s in symptoms if s.details == "overload" or "OM" in s.flags]
    for symptom in refusing:
        for pod in mesh.pods_of(symptom.reporters):
            killed.setdefault(workload_of(pod), [])
    for subject, rows in killed.items():
        pods = mesh.workload_pods((subject.namespace, subject.name))
        proxies = {pod.proxy for pod in pods}
        seen = [s for s in refusing if proxies & set(s.reporters)]
        times = [at for _, _, row in rows if (at := plain(row["last_finished"])) is not None]
        seen += [s for s in symptoms if _while_down(s, pods, times, mesh) and s not in seen]
        restarts = sum(int(plain(row["restarts"]) or 0) for _, _, row in rows)
        logged = proxy_log[
            proxy_log["proxy"].isin(list(proxies))
            & proxy_log["message"].str.contains("out of memory|overload").fillna(False)
        ]
        what = (
            f"was killed for its memory ({counted(restarts, 'restart')})"
            if rows
            else "turns requests away because it is overloaded"
        )
        yield Finding(
            subject,
            f"The proxy of {subject} {what}.",
            "Give it more memory (sidecar.istio.io/proxyMemoryLimit), or less configuration with a "
            f"Sidecar: {edit(subject)}.",
            evidence=(
                *symptom_rows(facts, seen),
                Evidence.of(containers, [index for _, index, _ in rows]),
                Evidence.of(proxy_log, logged.tail(3).index),
            ),
            related=tuple(Subject("Pod", pod.namespace, pod.pod) for pod, _, _ in rows),
            explains=ids(seen),
            severity=Severity.ERROR if seen else Severity.INFO if _long_ago(times, facts) else None,
        )


def _long_ago(times: list[Any], facts: Facts) -> bool:
    return bool(times) and all(facts.now - at > _OUTDATED for at in times)


def _out_of_memory(row: Row) -> bool:
    return "OOMKilled" in (plain(row["reason"]), plain(row["last_reason"]))


def _while_down(symptom: Symptom, pods: list[Pod], times: list[Any], mesh: Mesh) -> bool:
    """Whether callers failed to reach these pods right when their proxy had ended."""
    hosts = {port.host for port in mesh.services if any(p in pods for p in mesh.selected(port))}
    if symptom.host not in hosts or not {"UF", "UC", "UH"} & symptom.flags:
        return False
    return any(
        symptom.first_seen is not None
        and symptom.last_seen is not None
        and symptom.first_seen - _AROUND <= at <= symptom.last_seen + _AROUND
        for at in times
    )


_AROUND = pd.Timedelta(seconds=30)
#: What happened longer ago, and nobody suffers from, is history.
_OUTDATED = pd.Timedelta(hours=1)
_PROBE = re.compile(r"(Liveness|Readiness|Startup) probe failed: (.*)", re.DOTALL)


@check("MNB757", Severity.WARNING, cause=Cause.DATA_PLANE)
def probe_fails_behind_agent(
    mesh: Mesh, symptoms: Symptoms, events: pd.DataFrame, containers: pd.DataFrame, facts: Facts
) -> Iterator[Finding]:
    """Every probe that the agent passes on is answered by the application.

    The agent asks on the kubelet's behalf, over HTTP/1.1, with the probe's own timeout. An
    application that fails its liveness probe so is restarted again and again.
    """
    rows_for = facts.once(by_pod)
    found: dict[Subject, list[tuple[Pod, int, str]]] = {}
    by_name = {(pod.namespace, pod.pod): pod for pod in mesh.pods if pod.mesh == "sidecar"}
    chosen = events[
        (events["reason"] == "Unhealthy")
        & (events["container"] != "istio-proxy").fillna(True).astype(bool)
        & events["count"].fillna(1).ge(REPEATED)
    ]
    for index, row in zip(chosen.index.tolist(), chosen.to_dict("records"), strict=True):
        pod = by_name.get((str(row["namespace"]), str(row["name"])))
        said = _PROBE.search(str(row["message"]))
        last = plain(row["last_seen"])
        if pod is None or said is None or not pod.running:
            continue
        if said[1] == "Startup" or last is None or facts.now - last > _RECENT:
            continue
        found.setdefault(workload_of(pod), []).append((pod, index, said[0]))
    for subject, failing in found.items():
        pods = list(dict.fromkeys(pod for pod, _, _ in failing))
        rows = [
            index
            for pod in pods
            for index, row in rows_for(pod)
            if row["container"] != "istio-proxy" and not plain(row["init"])
        ]
        seen = waiting_for([pod for pod in pods if not pod.ready], mesh, symptoms)
        yield Finding(
            subject,
            f"A probe of {subject} fails: {one_line(failing[-1][2]).rstrip('.')}.",
            "Let the application answer the probe within its timeout, or correct the probe: "
            f"{edit(subject)}.",
            evidence=(
                *symptom_rows(facts, seen),
                Evidence.of(events, [index for _, index, _ in failing][-3:]),
                Evidence.of(containers, rows),
            ),
            related=tuple(Subject("Pod", pod.namespace, pod.pod) for pod in pods),
            explains=ids(seen),
            certainty=0.45 if seen else 1.0,
        )


_RECENT = pd.Timedelta(minutes=2)
