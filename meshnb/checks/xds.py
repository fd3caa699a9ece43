"""Checks of why a proxy gets no configuration: the way from its agent to istiod.

Codes MNB610 to MNB619. The agent's own log says how far it came: no name, no connection, no trust,
no identity, or a message that is too large.
"""

from __future__ import annotations

import re
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
    edit,
    ids,
    restart,
    rows_of,
    symptom_rows,
    workload_of,
)
from meshnb.checks.stuck import Complaint, complaint, cut_off_proxies, waiting_for
from meshnb.checks.sync import astray
from meshnb.symptoms import Symptom, Symptoms
from meshnb.symptoms.base import one_line
from meshnb.symptoms.requests import split_address
from meshnb.tables import Facts
from meshnb.traces.mesh import Mesh, Pod, plain


def _complaining(
    kind: str, mesh: Mesh, proxy_status: pd.DataFrame, proxy_log: pd.DataFrame, facts: Facts
) -> Iterator[tuple[list[Pod], list[Complaint]]]:
    """Yield the pods of each workload whose proxies complain in one way, with the complaints."""
    by_workload: dict[Subject, tuple[list[Pod], list[Complaint]]] = {}
    for pod in cut_off_proxies(mesh, proxy_status, facts):
        said = complaint(pod, proxy_log)
        if said is not None and said.kind == kind:
            pods, complaints = by_workload.setdefault(workload_of(pod), ([], []))
            pods.append(pod)
            complaints.append(said)
    yield from by_workload.values()


def _found(
    subject: Subject,
    message: str,
    remedy: str,
    pods: list[Pod],
    complaints: list[Complaint],
    seen: list[Symptom],
    facts: Facts,
    *evidence: Evidence,
    cause: Cause | None = None,
) -> Finding:
    proxies, log = facts["proxies"], facts["proxy_log"]
    rows = [row for said in complaints for row in said.rows]
    return Finding(
        subject,
        f"{message} Its log says: {complaints[0].said}.",
        remedy,
        evidence=(
            *symptom_rows(facts, seen),
            Evidence.of(log, rows[-3:]),
            Evidence.of(proxies, proxies.index[proxies["proxy"].isin([p.proxy for p in pods])]),
            *evidence,
        ),
        related=tuple(Subject("Pod", pod.namespace, pod.pod) for pod in pods),
        explains=ids(seen),
        cause=cause,
    )


@check("MNB610", Severity.ERROR, cause=Cause.DATA_PLANE)
def istiod_name_not_resolved(
    mesh: Mesh,
    symptoms: Symptoms,
    proxies: pd.DataFrame,
    proxy_status: pd.DataFrame,
    proxy_log: pd.DataFrame,
    pods: pd.DataFrame,
    facts: Facts,
) -> Iterator[Finding]:
    """Every proxy can look istiod's name up in DNS.

    The Service exists, but the pod's resolver does not find it: the cluster's DNS is down, or the
    pod has a DNS policy that leaves the cluster's names out.
    """
    for stuck, complaints in _complaining("name", mesh, proxy_status, proxy_log, facts):
        if astray(stuck[0], proxies, mesh, facts) is not None:
            continue  # there is no Service of that name
        resolvers = [
            pod
            for pod in mesh.pods
            if pod.labels.get("k8s-app") in ("kube-dns", "coredns") and pod.running
        ]
        down = bool(resolvers) and not any(pod.ready for pod in resolvers)
        subject = workload_of(resolvers[0]) if down else workload_of(stuck[0])
        why = f"no pod of {subject} is ready" if down else "the cluster's DNS runs"
        yield _found(
            subject,
            f"The proxy of {and_list(pod.pod for pod in stuck)} cannot resolve istiod's name; "
            f"{why}.",
            f"Mend the cluster's DNS: {restart(subject)}."
            if down
            else f"Set dnsPolicy to ClusterFirst or ClusterFirstWithHostNet: {edit(subject)}.",
            stuck,
            complaints,
            waiting_for([*stuck, *(resolvers if down else ())], mesh, symptoms),
            facts,
            Evidence.of(pods, pods.index[pods["pod"].isin([pod.pod for pod in resolvers])]),
        )


@check("MNB611", Severity.ERROR, cause=Cause.DATA_PLANE_CONFIG)
def istiod_not_trusted(
    mesh: Mesh,
    symptoms: Symptoms,
    proxy_status: pd.DataFrame,
    proxy_log: pd.DataFrame,
    istiod_ports: pd.DataFrame,
    facts: Facts,
) -> Iterator[Finding]:
    """Every proxy trusts the certificate that istiod shows it.

    The agent takes its root from the ConfigMap istio-ca-root-cert of its namespace. When that is
    another authority's, or the certificate does not have the name that was called, no connection
    comes about, and the pod never becomes ready.
    """
    shown = istiod_ports[(istiod_ports["port"] == 15012) & istiod_ports["chain_keys"].map(bool)]
    keys = {key for every in shown["chain_keys"] for key in every}
    for stuck, complaints in _complaining("trust", mesh, proxy_status, proxy_log, facts):
        namespace = stuck[0].namespace
        own = rows_of(facts["trust_anchors"], namespace=namespace)
        wrong = [
            (str(row["config_map"]), row["subject"])
            for row in own.to_dict("records")
            if keys and row["keys"] and not keys & set(row["keys"])
        ]
        if wrong:
            subject = Subject("ConfigMap", namespace, wrong[0][0])
            message = (
                f"{subject} holds another root ({wrong[0][1]}) than the one that signed istiod's "
                f"certificate: the proxies of {and_list(pod.pod for pod in stuck)} refuse istiod."
            )
            remedy = (
                "Delete it, so that istiod writes it again: "
                f"`kubectl -n {namespace} delete configmap {subject.name}`, then replace the pods."
            )
        else:
            subject = workload_of(stuck[0])
            message = f"The proxies of {subject} refuse istiod's certificate."
            remedy = (
                "Compare the name that they call with the names in the certificate, and replace "
                f"them: {restart(subject)}."
            )
        yield _found(
            subject,
            message,
            remedy,
            stuck,
            complaints,
            waiting_for(stuck, mesh, symptoms),
            facts,
            Evidence.of(istiod_ports, shown.index),
            Evidence.of(own),
        )


def _refused_by_istiod(pattern: str, stuck: list[Pod], istiod_log: pd.DataFrame) -> pd.DataFrame:
    """Return the lines of istiod's log that match, those about these pods if there are any."""
    lines = istiod_log[istiod_log["message"].str.contains(pattern, regex=True).fillna(False)]
    named = "|".join(re.escape(part) for pod in stuck for part in (pod.address, pod.pod) if part)
    about = (
        lines[lines["message"].str.contains(named, regex=True).fillna(False)] if named else lines
    )
    return about if len(about) else lines


@check("MNB612", Severity.ERROR, cause=Cause.DATA_PLANE_CONFIG)
def token_refused_by_istiod(
    mesh: Mesh,
    symptoms: Symptoms,
    proxy_status: pd.DataFrame,
    proxy_log: pd.DataFrame,
    istiod_log: pd.DataFrame,
    facts: Facts,
) -> Iterator[Finding]:
    """Every proxy has a token that istiod accepts.

    The agent shows the token of its service account. istiod refuses one that is meant for another
    audience, has expired, or comes from a cluster that it does not know, and says so in its log.
    """
    for stuck, complaints in _complaining("token", mesh, proxy_status, proxy_log, facts):
        subject = workload_of(stuck[0])
        lines = _refused_by_istiod("Failed to authenticate|JWT", stuck, istiod_log)
        last = one_line(lines["message"].iloc[-1]).rstrip(".") if len(lines) else ""
        reason = f" istiod says: {last}." if last else ""
        yield _found(
            subject,
            f"istiod does not accept the token of the proxies of {subject}.{reason}",
            "Correct the volume istio-token (audience istio-ca, expiry) of the pod template: "
            f"{edit(subject)}.",
            stuck,
            complaints,
            waiting_for(stuck, mesh, symptoms),
            facts,
            Evidence.of(istiod_log, lines.tail(3).index),
        )


@check("MNB613", Severity.ERROR, cause=Cause.DATA_PLANE_CONFIG)
def identity_refused_by_istiod(
    mesh: Mesh,
    symptoms: Symptoms,
    proxy_status: pd.DataFrame,
    proxy_log: pd.DataFrame,
    istiod_log: pd.DataFrame,
    facts: Facts,
) -> Iterator[Finding]:
    """Every proxy asks for the configuration of the pod that its token is for.

    istiod compares namespace and service account in the proxy's bootstrap with its identity. A
    copied bootstrap or a wrong service account makes it refuse the connection.
    """
    for stuck, complaints in _complaining("identity", mesh, proxy_status, proxy_log, facts):
        subject = workload_of(stuck[0])
        lines = _refused_by_istiod("Unauthorized XDS", stuck, istiod_log)
        yield _found(
            subject,
            f"The proxies of {subject} claim to be somebody else than their token says.",
            "Let the pod's metadata (namespace, service account) agree with the account that it "
            f"runs as: {edit(subject)}.",
            stuck,
            complaints,
            waiting_for(stuck, mesh, symptoms),
            facts,
            Evidence.of(istiod_log, lines.tail(3).index),
        )


@check("MNB614", Severity.ERROR, cause=Cause.DATA_PLANE_CONFIG)
def configuration_too_large(
    mesh: Mesh,
    symptoms: Symptoms,
    proxy_status: pd.DataFrame,
    proxy_log: pd.DataFrame,
    facts: Facts,
) -> Iterator[Finding]:
    """Every message between a proxy and istiod is within gRPC's limit.

    A proxy that connects again names all that it holds. Where that is more than 4 MiB, the message
    is refused, and the proxy goes on with what it has; only the largest ones, often gateways, fail.
    """
    biggest = rows_of(facts["istiod_metrics"], metric="pilot_xds_recv_max")
    for stuck, complaints in _complaining("large", mesh, proxy_status, proxy_log, facts):
        subject = workload_of(stuck[0])
        yield _found(
            subject,
            f"What the proxies of {subject} exchange with istiod is larger than gRPC allows.",
            "Set ISTIO_GPRC_MAXRECVMSGSIZE higher for istiod and the proxies, and give them less "
            f"with a Sidecar: {edit(subject)}.",
            stuck,
            complaints,
            waiting_for(stuck, mesh, symptoms),
            facts,
            Evidence.of(biggest),
        )


@check("MNB615", Severity.ERROR, cause=Cause.DATA_PLANE_CONFIG)
def istiod_turns_proxies_away(
    mesh: Mesh,
    symptoms: Symptoms,
    proxy_status: pd.DataFrame,
    proxy_log: pd.DataFrame,
    istiod_log: pd.DataFrame,
    facts: Facts,
) -> Iterator[Finding]:
    """Every proxy that connects to istiod is taken.

    Until it has read all objects it answers that its warm-up is not complete; while many connect at
    once it limits them. Both pass, unless something keeps it from becoming ready.
    """
    found = list(_complaining("busy", mesh, proxy_status, proxy_log, facts))
    if not found:
        return
    stuck = [pod for pods, _ in found for pod in pods]
    complaints = [said for _, every in found for said in every]
    serving = [pod for pod in mesh.pods if pod.mesh == "istiod" and pod.running]
    if not serving:
        return
    subject = workload_of(serving[0])
    lines = _refused_by_istiod("exceeded rate limit|Waiting for caches|not ready", [], istiod_log)
    yield _found(
        subject,
        f"{subject} turns proxies away: {and_list(pod.pod for pod in stuck)}.",
        "See what it waits for, or let more of it run: "
        f"`kubectl -n {subject.namespace} logs {serving[0].pod} -c discovery`.",
        stuck,
        complaints,
        waiting_for(stuck, mesh, symptoms),
        facts,
        Evidence.of(istiod_log, lines.tail(3).index),
    )


@check("MNB616", Severity.ERROR, cause=Cause.DATA_PLANE_CONFIG)
def proxy_waits_for_resource(
    mesh: Mesh, symptoms: Symptoms, proxies: pd.DataFrame, facts: Facts
) -> Iterator[Finding]:
    """Every proxy that is connected has all that it needs to start.

    Envoy does not serve before each listener's routes, secrets and extensions have come. It says in
    /init_dump what it still waits for; the agent says only that the server is not live.
    """
    for row in proxies.to_dict("records"):
        waits = row["waits_for"] or ()
        state = plain(row["state"])
        if state in (None, "LIVE") or not (waits or state == "DRAINING"):
            continue
        if float(plain(row["uptime_s"]) or _STARTS_IN_S) < _STARTS_IN_S:
            continue
        pod = mesh.pod_of(str(row["proxy"]))
        if pod is None or not pod.running:
            continue
        subject = workload_of(pod)
        seen = waiting_for([pod], mesh, symptoms)
        what = f"waits for {and_list(waits)}" if waits else "is being drained"
        yield Finding(
            subject,
            f"The proxy of {pod.namespace}/{pod.pod} is connected and not live ({state}): it "
            f"{what}.",
            "Let istiod send what it waits for, or take out what asks for it; see "
            f"`istioctl proxy-config all {pod.pod}.{pod.namespace}`.",
            evidence=(*symptom_rows(facts, seen), Evidence.of(rows_of(proxies, proxy=pod.proxy))),
            related=(Subject("Pod", pod.namespace, pod.pod),),
            explains=ids(seen),
        )


@check("MNB617", Severity.ERROR, cause=Cause.DATA_PLANE_CONFIG)
def proxy_follows_another_revision(
    mesh: Mesh,
    symptoms: Symptoms,
    proxies: pd.DataFrame,
    proxy_status: pd.DataFrame,
    injection: pd.DataFrame,
    facts: Facts,
) -> Iterator[Finding]:
    """Every proxy gets its configuration from the revision that its namespace asks for.

    A pod that was made by an earlier revision, or that an annotation sends elsewhere, follows that
    control plane: what the other one is told has no effect on it.
    """
    serving = {
        f"{service.service}.{service.namespace}": {
            str(revision)
            for pod in mesh.selected(service)
            if pod.ready and (revision := pod.labels.get("istio.io/rev"))
        }
        for service in mesh.services
        if any(pod.mesh == "istiod" for pod in mesh.selected(service))
    }
    wanted = {
        (str(row["namespace"]), str(row["pod"])): plain(row["revision"])
        for row in injection.to_dict("records")
    }
    rows_by_workload: dict[Subject, list[tuple[Pod, str, str]]] = {}
    for row in proxies.to_dict("records"):
        pod = mesh.pod_of(str(row["proxy"]))
        address = plain(row["discovery_address"])
        revision = wanted.get((str(row["namespace"]), str(row["pod"])))
        if pod is None or not pod.running or not address or revision is None:
            continue
        host = _service(split_address(str(address))[0])
        if host in serving and serving[host] and revision not in serving[host]:
            rows_by_workload.setdefault(workload_of(pod), []).append((pod, host, str(revision)))
    for subject, found in rows_by_workload.items():
        pods = [pod for pod, _, _ in found]
        _, host, revision = found[0]
        seen = waiting_for(pods, mesh, symptoms)
        annotated = any("discoveryAddress" in pod.annotations.get(_CONFIG, "") for pod in pods)
        yield Finding(
            subject,
            f"The proxies of {subject} get their configuration from {host} (revision "
            f"{and_list(sorted(serving[host]))}), while new pods there get revision {revision}.",
            f"Take {_CONFIG} out of the pod template: {edit(subject)}."
            if annotated
            else f"Let them be injected again: {restart(subject)}.",
            evidence=(
                *symptom_rows(facts, seen),
                Evidence.of(proxies, proxies.index[proxies["proxy"].isin([p.proxy for p in pods])]),
                Evidence.of(
                    injection, injection.index[injection["pod"].isin([p.pod for p in pods])]
                ),
            ),
            explains=ids(seen),
            severity=None if annotated else Severity.WARNING,
        )


_CONFIG = "proxy.istio.io/config"
#: Within so many seconds Envoy starts.
_STARTS_IN_S = 30.0


def _service(host: str) -> str:
    return ".".join(host.removesuffix(".").split(".")[:2])
