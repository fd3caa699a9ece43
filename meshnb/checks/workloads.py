"""Checks of pods and applications behind Services. Codes MNB700 to MNB749."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

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
from meshnb.checks.mtls import target_port
from meshnb.checks.sync import astray
from meshnb.symptoms import Symptom, Symptoms
from meshnb.symptoms.base import REPEATED
from meshnb.symptoms.requests import split_address
from meshnb.tables import Facts
from meshnb.tables.base import dig, items
from meshnb.tables.selectors import selects
from meshnb.traces.mesh import Mesh, Pod, ServicePort, plain
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
        yield Finding(
            subject,
            f"{subject} selects {wanted}, and no pod of {service.namespace} has that, so it has no "
            f"endpoints.{have}",
            f"Correct spec.selector with {edit(subject)}, or start pods with these labels.",
            evidence=(
                *symptom_rows(facts, seen),
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
                "crash",
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
                state.code == "crash"
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
            severity=Severity.INFO
            if state.code not in ("image", "crash") and all(starting(p, facts) for p in members)
            else None
            if alone
            else Severity.WARNING,
        )


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
        front = [port for port in services_of(pods, mesh) if target_port(port) in wanted]
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
                for ports, pod in zip(containers["ports"], containers["pod"], strict=True)
                if pod in {p.pod for p in pods}
                for port in ports or ()
            }
        )
        offered = [Subject("Service", port.namespace, port.service) for port in front]
        senders = and_list(map(str, offered)) or "its callers"
        refused = "its sidecar" if at_server else "its callers"
        where = edit(offered[0]) if offered else "the Service"
        yield Finding(
            subject,
            f"{subject} does not listen on port {and_list(map(str, wanted))}, to which {senders} "
            f"sends: {refused} cannot connect to it.",
            "Let the application listen on that port on all addresses, or correct targetPort with "
            f"{where}.",
            evidence=(
                *symptom_rows(facts, seen),
                *(
                    Evidence.of(rows_of(services, namespace=port.namespace, service=port.service))
                    for port in front[:1]
                ),
            ),
            related=(
                *offered[:1],
                *(Subject("Pod", pod.namespace, pod.pod) for pod in pods if subject.kind != "Pod"),
            ),
            explains=ids(seen),
            severity=Severity.INFO if symptom.is_over else None,
            mechanism=f"Declared container ports: {and_list(map(str, declared)) or 'none'}. "
            "A declaration opens nothing; what counts is where the process listens.",
        )


@check("MNB711", Severity.ERROR, cause=Cause.DATA_PLANE)
def application_ends_connections(mesh: Mesh, symptoms: Symptoms, facts: Facts) -> Iterator[Finding]:
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
        ):
            continue
        pods = mesh.workload_pods(symptom.workload)
        if not any(pod.ready for pod in pods):
            continue
        subject = workload_of(pods[0])
        yield Finding(
            subject,
            f"The application of {subject} ends {symptom.count} connections after it got the "
            f"request and before it answered ({symptom.details}).",
            f"Read its log with `kubectl -n {subject.namespace} logs {pods[0].pod} -c "
            f"{_application(pods[0], facts)}`.",
            evidence=symptom_rows(facts, [symptom]),
            related=tuple(
                Subject("Pod", pod.namespace, pod.pod) for pod in pods if subject.kind != "Pod"
            ),
            explains=ids([symptom]),
            severity=None
            if symptom.count >= REPEATED
            else Severity.INFO
            if symptom.is_over
            else Severity.WARNING,
        )


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
            severity=None if symptom.worked_before and symptom.count >= REPEATED else Severity.INFO,
        )


@check("MNB713", Severity.ERROR, cause=Cause.DATA_PLANE)
def application_too_slow(
    mesh: Mesh, symptoms: Symptoms, routes: pd.DataFrame, istio_config: pd.DataFrame, facts: Facts
) -> Iterator[Finding]:
    """Every application answers within the time-out of the route to it.

    When the route's time-out is over, the caller's proxy answers 504 with flag UT; the server's
    proxy sees the caller leave (DC) while the application still works.
    """
    for symptom in symptoms:
        if not {"UT", "UMSDR", "SI"} & symptom.flags or symptom.side == "server":
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
        if "UF" not in symptom.flags or "timeout" not in symptom.details + symptom.upstream_failure:
            continue
        addresses = {split_address(failure.upstream_host)[0] for failure in symptom.failures}
        pods = [pod for pod in mesh.pods if pod.address in addresses and pod.running]
        callers = mesh.pods_of(symptom.reporters)
        policies = network_policies[
            [
                any(
                    kind in types
                    and any(
                        pod.namespace == namespace and selects(selector, pod.labels) for pod in ends
                    )
                    for kind, ends in (("Ingress", pods), ("Egress", callers))
                )
                for namespace, selector, types in zip(
                    network_policies["namespace"],
                    network_policies["selector"],
                    network_policies["types"],
                    strict=True,
                )
            ]
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
            reason = f"; {subject} selects the pods at one of the ends."
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
