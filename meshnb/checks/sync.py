"""Checks of what istiod sends and what proxies take. Codes MNB600 to MNB609."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import timedelta
from difflib import get_close_matches

import pandas as pd

from meshnb.checks.base import (
    Cause,
    Evidence,
    Finding,
    Severity,
    Subject,
    and_list,
    check,
    config_rows,
    counted,
    edit,
    ids,
    pods_beside,
    rows_of,
    starting,
    subject_of,
    symptom_rows,
    unseen,
    workload_of,
)
from meshnb.checks.stuck import complaint, waiting_for
from meshnb.sources import HttpQuestion
from meshnb.symptoms import Symptoms
from meshnb.symptoms.base import one_line
from meshnb.symptoms.requests import split_address
from meshnb.symptoms.sync import STALE_AFTER_S
from meshnb.tables import Facts
from meshnb.tables.base import Got, Json, dig, items
from meshnb.tables.selectors import selects
from meshnb.traces.mesh import CLUSTER_DOMAIN, ConfigObject, Mesh, Pod, plain
from meshnb.traces.tunnels.network_policies import admitted

#: Kinds whose content reaches Envoy verbatim, so that only Envoy can refuse it.
_PASSED_THROUGH = (
    "EnvoyFilter",
    "WasmPlugin",
    "TrafficExtension",
    "RequestAuthentication",
    "Telemetry",
)
#: istiod pushes within seconds of a change.
_PUSH_DELAY = timedelta(seconds=10)
#: A change explains a refusal that it came right before.
_JUST_BEFORE = timedelta(minutes=2)
#: A workload certificate that ends so soon was not renewed in time; renewal comes at half its life.
_RENEWED_BEFORE_S = 600.0
#: How proxies say that a certificate is not valid at the time, at either end.
_OUT_OF_TIME = re.compile(
    r"has_expired|not_yet_valid|CERTIFICATE_EXPIRED|CERTIFICATE_VERIFY_FAILED$"
)


@check("MNB601", Severity.ERROR, cause=Cause.DATA_PLANE_CONFIG)
def configuration_refused(
    mesh: Mesh,
    symptoms: Symptoms,
    proxy_status: pd.DataFrame,
    listeners: pd.DataFrame,
    istio_config: pd.DataFrame,
    facts: Facts,
) -> Iterator[Finding]:
    """Every proxy accepts the configuration that istiod sends.

    A proxy that refuses an update (NACK) keeps the last good one. Traffic goes on as before, and no
    later change of that kind takes effect, until the object that makes the bad part is mended.
    """
    refused = rows_of(proxy_status, sync="ERROR")
    blamed: dict[ConfigObject | None, list[int]] = {}
    for (_, error), rows in refused.groupby(["xds", refused["error"].fillna("")]):
        concerned = mesh.pods_of(rows["proxy"])
        author = _author(str(error), concerned, plain(rows["sent_at"].min()), mesh)
        blamed.setdefault(author, []).extend(rows.index)
    for item, members in blamed.items():
        rows = refused.loc[members]
        proxies = list(dict.fromkeys(rows["proxy"]))
        pods = mesh.pods_of(proxies)
        never = [pod for pod in pods if not pod.ready]
        seen = [
            s for s in symptoms if "ERROR" in s.flags and bool(set(proxies) & set(s.reporters))
        ] + waiting_for(never, mesh, symptoms)
        refusals = listeners[listeners["proxy"].isin(proxies) & listeners["error"].notna()]
        words = and_list((str(e).strip().rstrip(".") for e in rows["error"].dropna()), limit=2)
        kinds, who = and_list(rows["xds"]), and_list(proxies)
        if item is None:
            pod, _, namespace = proxies[0].rpartition(".")
            yield Finding(
                workload_of(pods[0]) if pods else Subject("Pod", namespace, pod),
                f"{who} refused {kinds} configuration: {words}. No object could be found that the "
                "text belongs to.",
                "Look for the part that the message names in what changed last: `kubectl get "
                "envoyfilters,wasmplugins,telemetries,requestauthentications -A`.",
                evidence=(
                    *symptom_rows(facts, seen),
                    Evidence.of(proxy_status, rows.index),
                    Evidence.of(listeners, refusals.index),
                ),
                explains=ids(seen),
                certainty=0.5,
            )
            continue
        yield Finding(
            subject_of(item),
            f"{item} makes {kinds} configuration that {counted(len(proxies), 'proxy')} refused "
            f"({who}): {words}. They keep what they had before, and later changes do not reach "
            "them.",
            f"Mend or delete it: {edit(subject_of(item))}.",
            evidence=(
                *symptom_rows(facts, seen),
                Evidence.of(proxy_status, rows.index),
                Evidence.of(listeners, refusals.index),
                config_rows(istio_config, item),
            ),
            explains=ids(seen),
        )


def _author(
    error: str, pods: list[Pod], since: pd.Timestamp | None, mesh: Mesh
) -> ConfigObject | None:
    """Return the object that a refusal is about: by its words, then by when it was changed.

    An object that shares no word with the refusal must have been changed right before it.
    """
    error_words = _words(error)
    candidates = []
    for kind in _PASSED_THROUGH:
        for item in mesh.of(kind):
            if pods and not set(pods) & set(mesh.workload_selected(item)):
                continue
            shared = len(error_words & _words(json.dumps(item.spec)))
            changed = pd.Timestamp(item.changed)
            late = since is not None and changed > since + _PUSH_DELAY
            just_before = since is not None and changed >= since - _JUST_BEFORE
            if not late and (shared or just_before):
                candidates.append(((shared, changed.timestamp()), item))
    return max(candidates, key=lambda entry: entry[0])[1] if candidates else None


def _words(text: str) -> set[str]:
    return set(re.findall(r"[A-Za-z_][A-Za-z0-9_.-]{3,}", text))


@check("MNB602", Severity.ERROR, cause=Cause.DATA_PLANE_CONFIG)
def proxy_disconnected(
    mesh: Mesh,
    symptoms: Symptoms,
    proxies: pd.DataFrame,
    proxy_status: pd.DataFrame,
    proxy_log: pd.DataFrame,
    facts: Facts,
) -> Iterator[Finding]:
    """Every proxy is connected to an istiod.

    A proxy that has lost its control plane goes on with the configuration it has. It follows no
    change, and when its certificate ends, nobody can reach it.
    """
    connected = set(proxy_status["proxy"])
    if not connected:
        return
    running = {pod.pod for pod in mesh.pods if pod.mesh == "istiod" and pod.running}
    asked = {
        question.pod
        for question, _ in facts.documents(Got(15014, "/debug/syncz"))
        if isinstance(question, HttpQuestion)
    }
    unasked = running - asked
    containers = facts["containers"]
    proxying = containers[
        (containers["container"] == "istio-proxy") & (containers["state"] == "running")
    ]
    # A pod whose native sidecar is not ready yet is Pending.
    started = set(zip(proxying["namespace"], proxying["pod"], strict=True))
    for pod in mesh.pods:
        if not pod.proxy or pod.proxy in connected or not pod.running:
            continue
        if pod.phase != "Running" and (pod.namespace, pod.pod) not in started:
            continue
        if starting(pod, facts):
            continue
        if astray(pod, proxies, mesh, facts) is not None:
            continue
        seen = waiting_for([pod], mesh, symptoms)
        complaints = proxy_log[
            (proxy_log["proxy"] == pod.proxy).fillna(False).astype(bool)
            & proxy_log["message"]
            .str.contains("15012|gRPC config stream|xds-grpc|istiod", regex=True)
            .fillna(False)
            .astype(bool)
            & proxy_log["level"].isin(["warn", "error"]).astype(bool)
        ]
        if not len(complaints) and (unasked or facts.gaps("proxy_status")):
            continue  # it may be connected to the istiod that did not answer
        if not len(complaints) and (pod.namespace, pod.pod) in facts.unreached():
            continue  # nothing got to it, so that it may have ended
        told = complaint(pod, proxy_log)
        if told is not None:
            continue  # it says itself what is in its way; that is for the checks of that
        said = one_line(complaints["message"].iloc[-1]).rstrip(".") if len(complaints) else ""
        reason = f" Its own log says: {said}." if said else ""
        wall, walls = _wall(pod, mesh, facts)
        reason += (
            f" {wall} selects one of the ends, and lets nothing through to 15012." if wall else ""
        )
        yield Finding(
            wall or Subject("Pod", pod.namespace, pod.pod),
            f"The proxy of {pod.namespace}/{pod.pod} is connected to no istiod, while "
            f"{len(connected)} others are: it keeps the configuration it had.{reason}",
            "See whether it reaches istiod on 15012 (NetworkPolicy, firewall, DNS), then replace "
            f"it with `kubectl -n {pod.namespace} delete pod {pod.pod}`.",
            evidence=(
                *symptom_rows(facts, seen),
                Evidence.of(rows_of(proxies, proxy=pod.proxy)),
                Evidence.of(proxy_log, complaints.tail(3).index),
                Evidence.of(facts["network_policies"], walls),
            ),
            related=(
                *((Subject("Pod", pod.namespace, pod.pod),) if wall else ()),
                *((workload_of(pod),) if pod.workload_kind != "Pod" else ()),
            ),
            explains=ids(seen),
        )


def _wall(pod: Pod, mesh: Mesh, facts: Facts) -> tuple[Subject | None, list[int]]:
    """Return the NetworkPolicy between a pod and istiod's 15012, with its rows; None without."""
    frame = facts["network_policies"]
    servers = [other for other in mesh.pods if other.mesh == "istiod" and other.running]
    for server in servers:
        verdict = admitted(facts, mesh, server, 15012, pod)
        if verdict.admitted is False:
            namespace, _, name = verdict.policies[0].partition("/")
            return Subject("NetworkPolicy", namespace, name), list(frame.index[list(verdict.rows)])
    for index, row in zip(frame.index.tolist(), frame.to_dict("records"), strict=True):
        if (
            row["namespace"] == pod.namespace
            and "Egress" in row["types"]
            and selects(row["selector"], dict(pod.labels))
            and not any(_leads_out(rule) for rule in items(row["spec"], "egress"))
        ):
            return Subject("NetworkPolicy", pod.namespace, str(row["policy"])), [index]
    return None, []


def _leads_out(rule: Json) -> bool:
    """Whether an egress rule may let a connection to 15012 out, to whomever."""
    ports = [dig(one, "port") for one in items(rule, "ports")]
    return not ports or 15012 in ports or None in ports


@check("MNB603", Severity.WARNING, cause=Cause.DATA_PLANE_CONFIG)
def configuration_late(
    symptoms: Symptoms, proxy_status: pd.DataFrame, facts: Facts
) -> Iterator[Finding]:
    """Every proxy has acknowledged the newest configuration that it was sent.

    An update that is not acknowledged for longer than a push takes means that the proxy is
    overloaded, is hung, or lost its connection without istiod noticing.
    """
    late = proxy_status[(proxy_status["sync"] == "STALE") & (proxy_status["age_s"] > STALE_AFTER_S)]
    for proxy, rows in late.groupby("proxy"):
        pod, _, namespace = str(proxy).rpartition(".")
        seen = [s for s in symptoms if "STALE" in s.flags and proxy in s.reporters]
        yield Finding(
            Subject("Pod", namespace, pod),
            f"{proxy} has not acknowledged {and_list(rows['xds'])} for "
            f"{rows['age_s'].max():.0f} s.",
            f"Look at its log with `kubectl -n {namespace} logs {pod} -c istio-proxy`.",
            evidence=(Evidence.of(proxy_status, rows.index),),
            explains=ids(seen),
        )


def astray(pod: Pod, proxies: pd.DataFrame, mesh: Mesh, facts: Facts) -> str | None:
    """Return the host that a proxy takes for its istiod, when no Service has that name."""
    own = (proxies["proxy"] == pod.proxy).fillna(False).astype(bool)
    addresses = proxies.loc[own, "discovery_address"]
    address = plain(addresses.iloc[0]) if len(addresses) else None
    if not address:
        return None
    host = split_address(str(address))[0]
    if not mesh.services:
        return None  # no cluster is without any Service: they could not be listed
    names = {f"{service.service}.{service.namespace}" for service in mesh.services}
    short = host.removesuffix(".").removesuffix(f".{CLUSTER_DOMAIN}").removesuffix(".svc")
    if short in names or short.count(".") != 1 or host.replace(".", "").isdigit():
        return None
    return None if unseen(facts, "services", "services") else host


@check("MNB604", Severity.ERROR, cause=Cause.DATA_PLANE_CONFIG)
def discovery_address_unknown(
    mesh: Mesh, symptoms: Symptoms, proxies: pd.DataFrame, proxy_log: pd.DataFrame, facts: Facts
) -> Iterator[Finding]:
    """Every proxy is told to fetch its configuration from a Service that exists.

    The discovery address comes from the mesh's default, or from the annotation
    proxy.istio.io/config of the pod. A proxy that cannot resolve it never gets its first
    configuration, and its pod never becomes ready.
    """
    by_workload: dict[Subject, list[tuple[Pod, str]]] = {}
    for pod in mesh.pods:
        if not pod.proxy or not pod.running:
            continue
        host = astray(pod, proxies, mesh, facts)
        if host is not None:
            by_workload.setdefault(workload_of(pod), []).append((pod, host))
    names = {f"{service.service}.{service.namespace}.svc" for service in mesh.services}
    for subject, found in by_workload.items():
        pods = [pod for pod, _ in found]
        host = found[0][1]
        close = get_close_matches(host, names, n=1, cutoff=0.6)
        hint = f" The nearest that exists is {close[0]}." if close else ""
        hosts = {
            service.host
            for service in mesh.services
            for pod in pods
            if pod in mesh.selected(service)
        }
        seen = [
            s
            for s in symptoms
            if s.workload == (subject.namespace, subject.name)
            or ("DISCONNECTED" in s.flags and bool({p.proxy for p in pods} & set(s.reporters)))
            or ("UH" in s.flags and s.host in hosts)
            or ("UF" in s.flags and s.host in hosts)
        ]
        logged = proxy_log[
            proxy_log["proxy"].isin([pod.proxy for pod in pods])
            & proxy_log["message"].str.contains(host, regex=False).fillna(False).astype(bool)
        ]
        annotated = any("proxy.istio.io/config" in pod.annotations for pod in pods)
        wrong = "the annotation proxy.istio.io/config" if annotated else "its proxy configuration"
        yield Finding(
            subject,
            f"{subject} sends its proxy to {host} for configuration, and no Service has that name, "
            f"so it never gets any.{hint}",
            f"Correct {wrong} in the pod template with {edit(subject)}.",
            evidence=(
                *symptom_rows(facts, seen),
                Evidence.of(proxies, proxies.index[proxies["proxy"].isin([p.proxy for p in pods])]),
                Evidence.of(proxy_log, logged.tail(3).index),
            ),
            related=pods_beside(subject, pods),
            explains=ids(seen),
        )


@check("MNB605", Severity.ERROR, cause=Cause.DATA_PLANE_CONFIG)
def workload_certificate_ended(
    mesh: Mesh, symptoms: Symptoms, certificates: pd.DataFrame, facts: Facts
) -> Iterator[Finding]:
    """Every proxy holds a workload certificate that is valid.

    Proxies renew their certificate at about half of its life. One that has ended, or is about to,
    could not be renewed: mutual TLS with that pod fails with CERTIFICATE_VERIFY_FAILED.
    """
    own = certificates[
        certificates["resource_name"].isin(["default", "ROOTCA"])
        & certificates["expires_in_s"].notna()
    ]
    early = (own["valid_cert"] == False).fillna(False).astype(bool) & (own["expires_in_s"] > 0)  # noqa: E712  NA is not False
    ended = own[(own["expires_in_s"] < _RENEWED_BEFORE_S) | early]
    for proxy, rows in ended.groupby("proxy"):
        pod, _, namespace = str(proxy).rpartition(".")
        left = float(rows["expires_in_s"].min())
        hosts = {
            service.host
            for service in mesh.services
            for selected in mesh.selected(service)
            if selected.proxy == proxy
        }
        seen = [
            s
            for s in symptoms
            if _OUT_OF_TIME.search(s.upstream_failure + s.details)
            and (s.host in hosts or proxy in s.reporters)
        ]
        begins = rows["not_before"].max()
        if left <= 0:
            end = f"ended {-left:.0f} s ago"
        elif left < _RENEWED_BEFORE_S:
            end = f"ends in {left:.0f} s and was not renewed"
        else:
            end = f"begins only at {begins:%Y-%m-%d %H:%M:%S} UTC: a clock is wrong"
        yield Finding(
            Subject("Pod", namespace, pod),
            f"The certificate {and_list(rows['resource_name'])} of {proxy} {end}.",
            f"See why it is not renewed with `kubectl -n {namespace} logs {pod} -c istio-proxy`, "
            "then replace the pod.",
            evidence=(*symptom_rows(facts, seen), Evidence.of(certificates, rows.index)),
            explains=ids(seen),
            severity=Severity.WARNING if 0 < left < _RENEWED_BEFORE_S else None,
        )
