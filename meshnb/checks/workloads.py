"""Checks of pods and applications behind Services. Codes MNB700 to MNB749."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise

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
    rows_of,
    starting,
    subject_of,
    symptom_rows,
    unseen,
    workload_of,
)
from meshnb.checks.changes import changed_before
from meshnb.checks.protocols import goes_on_at_port, grpc_as_http1
from meshnb.checks.served import served_by
from meshnb.checks.sync import astray
from meshnb.symptoms import Symptom, Symptoms
from meshnb.symptoms.base import REPEATED
from meshnb.symptoms.requests import split_address
from meshnb.tables import Facts
from meshnb.tables.base import dig, items
from meshnb.traces.mesh import Mesh, Pod, ServicePort, plain
from meshnb.traces.network_policies import admitted, let_out
from meshnb.traces.rules import bound_gateways, route_hosts


def services_of(pods: list[Pod], mesh: Mesh) -> list[ServicePort]:
    """Return the Service ports whose selector matches any of these pods."""
    return [port for port in mesh.services if any(pod in pods for pod in mesh.selected(port))]


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
            row = stopped.iloc[0]
            guilty = Subject(str(row["kind"]), str(row["namespace"]), str(row["workload"]))
            have = f" {guilty} would make such pods, and wants none."
            remedy = (
                f"Start it with `kubectl -n {guilty.namespace} scale "
                f"{guilty.kind.lower()}/{guilty.name} --replicas=1`."
            )
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
            severity=None if seen else Severity.INFO,
        )


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
        if any(astray(pod, proxies, mesh) for pod in members):
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
            related=tuple(
                Subject("Pod", pod.namespace, pod.pod) for pod in members if subject.kind != "Pod"
            ),
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


def _refused(symptom: Symptom) -> bool:
    text = symptom.details + symptom.upstream_failure
    return "UF" in symptom.flags and "onnection_refused" in text


def _upstream_pods(symptom: Symptom, mesh: Mesh) -> list[Pod]:
    """Return the pods that the failed requests went to; without an address, all of the host."""
    addresses = {split_address(failure.upstream_host)[0] for failure in symptom.failures}
    pods = [pod for pod in mesh.pods if pod.address in addresses and pod.running]
    return pods or list(
        dict.fromkeys(pod for port in mesh.ports(symptom.host) for pod in mesh.selected(port))
    )


def _bare(pods: list[Pod]) -> bool:
    return all(not pod.in_mesh for pod in pods)


@check("MNB710", Severity.ERROR, cause=Cause.DATA_PLANE)
def application_not_listening(
    mesh: Mesh, symptoms: Symptoms, services: pd.DataFrame, containers: pd.DataFrame, facts: Facts
) -> Iterator[Finding]:
    """Every application listens on the port that its Service sends to.

    The server's own sidecar opens the connection to the application. When nobody listens there, or
    only on another address of the pod, the sidecar logs UF with Connection_refused, and callers get
    its 503.
    """
    for symptom in [s for s in symptoms if _refused(s)]:
        at_server = symptom.side == "server"
        pods = mesh.workload_pods(symptom.workload) if at_server else _upstream_pods(symptom, mesh)
        if not pods or not any(pod.ready for pod in pods) or not (at_server or _bare(pods)):
            continue  # an application that is not up at all is for the check of readiness
        wanted = sorted(
            {
                port
                for f in symptom.failures
                if (port := split_address(f.local_address if at_server else f.upstream_host)[1])
                is not None
            }
        )
        front = [port for port in services_of(pods, mesh) if mesh.target_port(port) in wanted]
        subject = workload_of(pods[0])
        callers = [
            s
            for s in symptoms
            if s.side != "server"
            and s.host in {port.host for port in front}
            and s.code == symptom.code
            and s.details == "via_upstream"
        ]
        seen = [symptom, *callers]
        declared = sorted(
            {
                port
                for ports, pod, name in zip(
                    containers["ports"], containers["pod"], containers["container"], strict=True
                )
                if pod in {p.pod for p in pods} and name != "istio-proxy"
                for port in ports or ()
            }
        )
        offered = [Subject("Service", port.namespace, port.service) for port in front]
        undeclared = bool(offered and declared) and not set(wanted) & set(declared)
        senders = and_list(map(str, offered)) or "its callers"
        refused = "its sidecar" if at_server else "its callers"
        where = edit(offered[0]) if offered else "the Service"
        elsewhere = f" Its containers declare {and_list(map(str, declared))}." if undeclared else ""
        workload = subject
        if undeclared:
            subject = offered[0]
        yield Finding(
            subject,
            f"{workload} does not listen on port {and_list(map(str, wanted))}, to which {senders} "
            f"sends: {refused} cannot connect to it.{elsewhere}",
            "Let the application listen on that port on all addresses, or correct targetPort with "
            f"{where}.",
            evidence=(
                *symptom_rows(facts, seen),
                *(
                    Evidence.of(rows_of(services, namespace=port.namespace, service=port.service))
                    for port in front[:1]
                ),
            ),
            related=tuple(
                one
                for one in (
                    *offered[:1],
                    workload,
                    *(Subject("Pod", pod.namespace, pod.pod) for pod in pods),
                )
                if one != subject
            ),
            explains=ids(seen),
            severity=Severity.INFO if symptom.is_over else None,
            mechanism=f"Declared container ports: {and_list(map(str, declared)) or 'none'}. "
            "A declaration opens nothing; what counts is where the process listens.",
        )


#: A container's end and the failures that it makes are so near each other.
_AROUND = timedelta(seconds=5)
#: So few of the requests that a workload serves may be lost when idle connections are closed.
_RARELY = 0.005


@check("MNB711", Severity.ERROR, cause=Cause.DATA_PLANE)
def application_ends_connections(
    mesh: Mesh, symptoms: Symptoms, containers: pd.DataFrame, facts: Facts
) -> Iterator[Finding]:
    """No application ends connections before it has answered.

    The server's sidecar had reached the application and sent it the request; then the connection
    was closed or reset (UC, or UPE and UR after the first bytes). Crashes, idle time-outs shorter
    than the proxy's, and handlers that give up all look so.
    """
    for symptom in symptoms:
        if (
            symptom.side != "server"
            or not {"UC", "UR"} & symptom.flags
            or symptom.kind != "request"
            or grpc_as_http1(symptom, mesh, facts)
        ):
            continue
        pods = mesh.workload_pods(symptom.workload)
        if not any(pod.ready for pod in pods):
            continue
        subject = workload_of(pods[0])
        crashed = _ended_meanwhile(symptom, containers)
        requests = served_by(facts, symptom.reporters)
        others = int(requests["method"].notna().sum())
        rare = others > 0 and symptom.count / (symptom.count + others) < _RARELY
        now_and_then = others > 0 and not crashed and _scattered(symptom)
        hint = (
            " They are few and come now and then: its idle time-out may be shorter than the "
            "proxy's."
            if now_and_then
            else ""
        )
        why = f" Meanwhile {crashed}." if crashed else hint
        yield Finding(
            subject,
            f"The application of {subject} ends {counted(symptom.count, 'connection')} after it "
            f"got the request and before it answered ({symptom.details}).{why}",
            f"Read its log with `kubectl -n {subject.namespace} logs {pods[0].pod} -c "
            f"{_application(pods[0], facts)}{' --previous' if crashed else ''}`.",
            evidence=symptom_rows(facts, [symptom]),
            related=tuple(
                Subject("Pod", pod.namespace, pod.pod) for pod in pods if subject.kind != "Pod"
            ),
            explains=ids([symptom]),
            severity=None
            if crashed or (symptom.count >= REPEATED and not rare)
            else Severity.INFO
            if symptom.is_over or rare or goes_on_at_port(symptom, facts, mesh)
            else Severity.WARNING,
        )


def _scattered(symptom: Symptom) -> bool:
    """Whether failures came one by one, with seconds between them."""
    times = sorted(failure.time for failure in symptom.failures if failure.time is not None)
    gaps = [later - earlier for earlier, later in pairwise(times)]
    return bool(gaps) and min(gaps) >= timedelta(seconds=2)


def _ended_meanwhile(symptom: Symptom, containers: pd.DataFrame) -> str:
    """Return which container of the reporters ended while requests failed, and how."""
    first, last = symptom.first_seen, symptom.last_seen
    if first is None or last is None:
        return ""
    names = [proxy.rpartition(".")[0] for proxy in symptom.reporters]
    ended = containers[
        containers["pod"].isin(names)
        & (containers["container"] != "istio-proxy")
        & (containers["last_finished"] >= first - _AROUND).fillna(False).astype(bool)
        & (containers["last_finished"] <= last + _AROUND).fillna(False).astype(bool)
    ]
    for row in ended.to_dict("records"):
        reason = plain(row["last_reason"]) or "no reason"
        return f"container {row['container']} ended ({reason}, exit code {row['last_exit_code']})"
    return ""


def _application(pod: Pod, facts: Facts) -> str:
    containers = facts["containers"]
    rows = containers[
        (containers["namespace"] == pod.namespace)
        & (containers["pod"] == pod.pod)
        & (containers["container"] != "istio-proxy")
        & ~containers["init"].fillna(False).astype(bool)
    ]
    return str(rows["container"].iloc[0]) if len(rows) else "…"


@check("MNB712", Severity.ERROR, cause=Cause.DATA_PLANE)
def application_fails(mesh: Mesh, symptoms: Symptoms, facts: Facts) -> Iterator[Finding]:
    """No application that used to work answers with 5xx.

    The details via_upstream say that the mesh only carried the answer: the application made it.
    Whether it means it, only its owners know; that the same requests succeeded before is the sign
    of a fault.
    """
    for symptom in symptoms:
        if symptom.code < 500 or symptom.details != "via_upstream" or symptom.flags - {"URX"}:
            continue
        if symptom.side == "server":
            pods = mesh.workload_pods(symptom.workload)
        else:
            hosts = {split_address(failure.upstream_host)[0] for failure in symptom.failures}
            pods = [pod for pod in mesh.pods if pod.address in hosts and not pod.in_mesh]
        if not pods or changed_before(symptom, pods, mesh):
            continue
        subject = workload_of(pods[0])
        paths = and_list(dict.fromkeys(f"{f.method} {f.path}" for f in symptom.failures))
        since = f" since {symptom.first_seen:%H:%M:%S}" if symptom.first_seen is not None else ""
        before = ", and answered the same with success before" if symptom.worked_before else ""
        yield Finding(
            subject,
            f"The application of {subject} answers {paths} with {symptom.code}{since}{before}.",
            f"Read its log with `kubectl -n {subject.namespace} logs {pods[0].pod} -c "
            f"{_application(pods[0], facts)}`; the mesh is not at fault.",
            evidence=symptom_rows(facts, [symptom]),
            related=tuple(
                Subject("Pod", pod.namespace, pod.pod) for pod in pods if subject.kind != "Pod"
            ),
            explains=ids([symptom]),
            severity=None
            if symptom.count >= REPEATED
            and (symptom.worked_before or _mostly(symptom, pods, facts["access_log"]))
            else Severity.INFO,
        )


def _mostly(symptom: Symptom, pods: list[Pod], log: pd.DataFrame) -> bool:
    """Whether a symptom is most of what pods answer: nobody means an application to be so."""
    addresses = {pod.address for pod in pods}
    server = log["proxy"].isin([pod.proxy for pod in pods]) & (log["direction"] == "inbound")
    asked = log["upstream_host"].fillna("").map(lambda host: split_address(host)[0])
    logged = server if symptom.side == "server" else asked.isin(addresses)
    return symptom.count > int(logged.sum()) / 2


@check("MNB713", Severity.ERROR, cause=Cause.DATA_PLANE)
def application_too_slow(
    mesh: Mesh, symptoms: Symptoms, routes: pd.DataFrame, istio_config: pd.DataFrame, facts: Facts
) -> Iterator[Finding]:
    """Every application answers within the time-out of the route to it.

    When the route's time-out is over, the caller's proxy answers 504 with flag UT; the server's
    proxy sees the caller leave (DC) while the application still works.
    """
    for symptom in symptoms:
        late = {"UT", "UMSDR", "SI"} & symptom.flags or "max_duration_timeout" in symptom.details
        if not late or symptom.side == "server":
            continue
        pods = _upstream_pods(symptom, mesh)
        carried = routes[
            routes["proxy"].isin(symptom.reporters)
            & routes["clusters"].map(lambda names, own=symptom.cluster: own in (names or ()))
        ]
        limits = sorted({float(value) for value in carried["timeout_ms"].dropna() if value})
        owners = [
            item
            for item in mesh.of("VirtualService")
            if f"{item.name}.{item.namespace}" in set(carried["virtual_service"].dropna())
        ]
        owners += [
            item
            for item in mesh.of("VirtualService")
            if item not in owners
            and "mesh" in bound_gateways(item)
            and symptom.host in route_hosts(item, mesh)
            and any(dig(route, "timeout") for route in items(item.spec, "http"))
        ]
        took = max(failure.duration_ms for failure in symptom.failures)
        if not pods and not owners:
            continue
        tightened = bool(owners) and (not pods or owners[0] in changed_before(symptom, pods, mesh))
        subject = subject_of(owners[0]) if tightened else workload_of(pods[0])
        allowed = f"{limits[0]:g} ms" if limits else f"about {took:g} ms"
        if tightened:
            what = f"{subject} gives {symptom.host} no more than {allowed}, which it needs"
        else:
            what = (
                f"{subject} does not answer within {allowed}, the time-out of the route to "
                f"{symptom.host}"
            )
        name = pods[0].pod if pods else "…"
        where = f" with {edit(subject_of(owners[0]))}" if owners else ""
        yield Finding(
            subject,
            f"{what}: {counted(symptom.count, 'request')} ended with {symptom.code}.",
            f"Find out what it waits for with `kubectl -n {subject.namespace} logs {name}`, or "
            f"allow more time{where}.",
            evidence=(*symptom_rows(facts, [symptom]), Evidence.of(routes, carried.index)),
            related=(
                *(subject_of(item) for item in owners if subject_of(item) != subject),
                *(Subject("Pod", pod.namespace, pod.pod) for pod in pods if subject.kind != "Pod"),
            ),
            explains=ids([symptom]),
            severity=Severity.INFO if symptom.is_over else None,
            cause=Cause.CONTROL_PLANE_CONFIG if tightened else None,
        )


#: Without a word from the proxy, a connection that took so long, in ms, was never accepted.
_CONNECT_TIMEOUT_MS = 5000.0


def _timed_out(symptom: Symptom) -> bool:
    text = symptom.details + symptom.upstream_failure
    if "UF" not in symptom.flags:
        return False
    # For a bare connection the proxy prints no reason.
    silent = symptom.kind == "connection" and not text
    return "timeout" in text or (
        silent and all(one.duration_ms >= _CONNECT_TIMEOUT_MS for one in symptom.failures)
    )


def _walls(facts: Facts, mesh: Mesh, server: Pod, port: int, clients: list[Pod]) -> tuple[int, ...]:
    """Return the NetworkPolicies that may keep clients from a server, as rows of their table."""
    rows: tuple[int, ...] = ()
    either: list[Pod | None] = [*clients] or [None]
    for client in either:
        at_server = admitted(facts, mesh, server, port, client)
        rows += at_server.rows if not at_server.admitted else ()
        if client is not None:
            at_client = let_out(facts, mesh, client, server, port)
            rows += at_client.rows if not at_client.admitted else ()
    return rows


@check("MNB714", Severity.ERROR, cause=Cause.DATA_PLANE)
def network_path_blocked(
    mesh: Mesh,
    symptoms: Symptoms,
    network_policies: pd.DataFrame,
    endpoints: pd.DataFrame,
    facts: Facts,
) -> Iterator[Finding]:
    """Every proxy can open a connection to the endpoints that it was given.

    A connection that is neither accepted nor refused runs into the connect time-out: 503 with flag
    UF (connection_timeout), and no line at the server. A NetworkPolicy or firewall drops it on the
    way, or the address belongs to no pod any more.
    """
    for symptom in symptoms:
        if not _timed_out(symptom):
            continue
        addresses = {split_address(failure.upstream_host)[0] for failure in symptom.failures}
        pods = [pod for pod in mesh.pods if pod.address in addresses and pod.running]
        callers = mesh.pods_of(symptom.reporters)
        ends = {split_address(failure.upstream_host) for failure in symptom.failures}
        policies = network_policies.loc[
            sorted(
                {
                    row
                    for pod in pods
                    for address, port in ends
                    if address == pod.address and port is not None
                    for row in _walls(facts, mesh, pod, port, callers)
                }
            )
        ]
        given = endpoints[
            endpoints["address"].isin(list(addresses)) & endpoints["proxy"].isin(symptom.reporters)
        ]
        ports = mesh.ports(symptom.host)
        if len(policies):
            row = policies.sort_values("created").iloc[-1]
            subject = Subject("NetworkPolicy", str(row["namespace"]), str(row["policy"]))
        elif pods:
            subject = workload_of(pods[0])
        elif ports:
            subject = Subject("Service", ports[0].namespace, ports[0].service)
        else:
            continue
        if len(policies):
            reason = f"; {subject} selects the pods at one of the ends, and no policy admits it."
        else:
            reason = "." if pods else ". No running pod has that address."
        yield Finding(
            subject,
            f"Connections to {symptom.host} at {and_list(sorted(addresses))} are neither accepted "
            f"nor refused ({symptom.count} timed out){reason}",
            "Let the callers' namespaces through to the port, in NetworkPolicies and firewalls: "
            "`kubectl get networkpolicies -A`.",
            evidence=(
                *symptom_rows(facts, [symptom]),
                Evidence.of(endpoints, given.index),
                Evidence.of(network_policies, policies.index),
            ),
            related=(Subject("Service", ports[0].namespace, ports[0].service),) if ports else (),
            explains=ids([symptom]),
            severity=Severity.INFO if symptom.is_over else None,
        )
