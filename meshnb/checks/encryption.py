"""Checks of connections that nobody encrypts although they have to be, or that two parties do.

Codes MNB440 to MNB449.
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
    config_rows,
    counted,
    edit,
    ids,
    rows_of,
    subject_of,
    symptom_rows,
    workload_of,
)
from meshnb.checks.mtls import (
    callers_of,
    chain_missing,
    past_their_proxies,
    refused_handshake,
    spoke_tls,
    tls_settings,
)
from meshnb.checks.routing import destination_rules
from meshnb.symptoms import Symptom, Symptoms
from meshnb.symptoms.base import REPEATED
from meshnb.symptoms.requests import split_address
from meshnb.tables import Facts
from meshnb.tables.base import dig, items
from meshnb.traces.capture import captures_inbound
from meshnb.traces.mesh import ConfigObject, Mesh, Pod, ServicePort, host_matches
from meshnb.traces.rules import egress_lists, rules_for_pod, sidecar_of, visible

_PASSTHROUGH = "PassthroughCluster"


def _strict(mesh: Mesh, pod: Pod, port: int | None) -> ConfigObject | None:
    """Return the PeerAuthentication that demands mutual TLS of a pod's port."""
    mode, policy = mesh.mtls_mode(pod, port)
    return policy if mode == "STRICT" and captures_inbound(pod, port) else None


def _dialled(symptom: Symptom, mesh: Mesh) -> list[tuple[Pod, int | None]]:
    """Return the pods that failed requests were sent to, with the port that was dialled."""
    ends = {split_address(one.upstream_host or one.local_address) for one in symptom.failures}
    return [(pod, port) for address, port in ends if (pod := mesh.pod_at(address)) is not None]


def _echoes(symptoms: Symptoms, pods: list[Pod]) -> list[Symptom]:
    """Return the servers' side of connections in plain text that these pods refused."""
    workloads = {(pod.namespace, pod.workload) for pod in pods}
    return [
        s
        for s in symptoms
        if chain_missing(s)
        and s.workload in workloads
        and not all(spoke_tls(failure) for failure in s.failures)
    ]


def _hidden(pods: list[Pod], ports: list[ServicePort], mesh: Mesh) -> bool:
    """Whether a Sidecar hides a Service from callers, who then know no more than addresses."""
    for pod in pods:
        item = sidecar_of(pod, mesh)
        if item is not None and any(
            not egress_lists(item, port.host, port.namespace) for port in ports
        ):
            return True
    return False


@check("MNB440", Severity.ERROR, cause=Cause.DATA_PLANE)
def pods_called_by_address(
    mesh: Mesh, symptoms: Symptoms, services: pd.DataFrame, istio_config: pd.DataFrame, facts: Facts
) -> Iterator[Finding]:
    """No workload of the mesh calls pods that demand mutual TLS by their addresses.

    For the address of a pod, as DNS gives it for a headless Service, a proxy may know neither route
    nor cluster. It passes the bytes on as they are (PassthroughCluster), and the server, which
    demands mutual TLS, ends the connection: 503 with flag UC here, NR filter_chain_not_found there.
    """
    for symptom in symptoms:
        if symptom.cluster != _PASSTHROUGH or symptom.side != "client":
            continue
        if not refused_handshake(symptom):
            continue
        servers = _dialled(symptom, mesh)
        policies = [policy for pod, port in servers if (policy := _strict(mesh, pod, port))]
        if not policies:
            continue
        pods = [pod for pod, _ in servers]
        ports = {port for _, port in servers}
        clients = mesh.pods_of(symptom.reporters)
        front = [port for port in mesh.services if any(pod in pods for pod in mesh.selected(port))]
        if _hidden(clients, front, mesh):
            continue
        headless = [port for port in front if port.headless]
        known = [port for port in headless if ports & {port.port, mesh.target_port(port)}]
        seen = [symptom, *_echoes(symptoms, pods)]
        callers = and_list(f"{pod.namespace}/{pod.workload}" for pod in clients)
        if headless:
            service = next(iter(known), headless[0])
            subject = Subject("Service", service.namespace, service.service)
            remedy = (
                "Let its port and targetPort be the same, give the port a name with its protocol, "
                f"and let callers use the Service's own name: {edit(subject)}."
            )
            what = (
                f"{subject} is headless (port {service.port}, {service.protocol}, leads to "
                f"{mesh.target_port(service)}), so {callers} dials its pods"
            )
        else:
            subject = workload_of(clients[0]) if clients else workload_of(pods[0])
            remedy = "Let it call the Service by its name: " + edit(subject) + "."
            what = f"{callers} dials pods of {and_list(map(_place, pods))}"
        yield Finding(
            subject,
            f"{what} by address, in plain text (PassthroughCluster), and {policies[0]} demands "
            f"mutual TLS: {counted(symptom.count, 'request')} failed.",
            remedy,
            evidence=(
                *symptom_rows(facts, seen),
                *(
                    Evidence.of(rows_of(services, namespace=one.namespace, service=one.service))
                    for one in headless[:1]
                ),
                config_rows(istio_config, policies[0]),
            ),
            related=(*dict.fromkeys(map(workload_of, clients)), subject_of(policies[0])),
            explains=ids(seen),
            severity=Severity.INFO if symptom.is_over else None,
        )


def _place(pod: Pod) -> str:
    return f"{pod.namespace}/{pod.workload}"


@check("MNB441", Severity.ERROR, cause=Cause.DATA_PLANE)
def headless_port_differs(
    mesh: Mesh, symptoms: Symptoms, services: pd.DataFrame, facts: Facts
) -> Iterator[Finding]:
    """Every headless Service that is called has the same port as its pods.

    DNS names the pods of a headless Service, so that clients dial them at the port that they know,
    the Service's. Nobody translates it, and nobody listens there.
    """
    for symptom in symptoms:
        if symptom.side not in ("client", "gateway") or not {"UF", "UC"} & symptom.flags:
            continue
        for service in mesh.ports(symptom.host):
            target = mesh.target_port(service)
            dialled = {split_address(one.upstream_host)[1] for one in symptom.failures}
            if (
                not service.headless
                or service.port == target
                or symptom.port not in (service.port, None)
                or dialled != {service.port}
            ):
                continue
            subject = Subject("Service", service.namespace, service.service)
            yield Finding(
                subject,
                f"{subject} is headless, and its port {service.port} leads to {target}: clients "
                f"dial its pods at {service.port}, where nobody listens.",
                f"Let port and targetPort be the same with {edit(subject)}.",
                evidence=(
                    *symptom_rows(facts, [symptom]),
                    Evidence.of(
                        rows_of(services, namespace=service.namespace, service=service.service)
                    ),
                ),
                explains=ids([symptom]),
                severity=Severity.INFO if symptom.is_over else None,
            )


@check("MNB442", Severity.ERROR, cause=Cause.CONTROL_PLANE_CONFIG)
def sidecar_left_out(
    mesh: Mesh, symptoms: Symptoms, pods: pd.DataFrame, istio_config: pd.DataFrame, facts: Facts
) -> Iterator[Finding]:
    """No workload is told to go past its sidecar to a server that demands mutual TLS.

    The annotations traffic.sidecar.istio.io/exclude… take ports and addresses out of the proxy's
    hands. What goes past it is plain text, carries no identity, and is cut off by a server with
    STRICT.
    """
    for symptom in symptoms:
        if not chain_missing(symptom) or all(map(spoke_tls, symptom.failures)):
            continue
        servers = mesh.pods_of(symptom.reporters)
        ports = {split_address(failure.local_address)[1] for failure in symptom.failures}
        policy = next(
            (found for pod in servers for port in ports if (found := _strict(mesh, pod, port))),
            None,
        )
        known = [pod for pod in callers_of(symptom, mesh) if pod is not None]
        guilty = [
            (pod, why)
            for pod, why in past_their_proxies(mesh, servers, ports)
            if not known or pod in known
        ]
        if policy is None or not guilty:
            continue
        pod, why = guilty[0]
        subject = workload_of(pod)
        yield Finding(
            subject,
            f"{subject} calls {symptom.workload[0]}/{symptom.workload[1]} past its own sidecar "
            f"({why}={pod.annotations.get(why, '')}), and {policy} demands mutual TLS there: "
            f"{counted(symptom.count, 'connection')} cut off.",
            f"Take the annotation {why} out of the pod template with {edit(subject)}.",
            evidence=(
                *symptom_rows(facts, [symptom]),
                Evidence.of(pods, pods.index[pods["proxy"] == pod.proxy]),
                config_rows(istio_config, policy),
            ),
            related=(subject_of(policy), *(workload_of(other) for other, _ in guilty[1:])),
            explains=ids([symptom]),
            severity=Severity.INFO if symptom.count < REPEATED else None,
            certainty=1.0 if known else 0.8,
        )


@check("MNB443", Severity.ERROR, cause=Cause.CONTROL_PLANE_CONFIG)
def mutual_tls_not_begun(
    mesh: Mesh, symptoms: Symptoms, istio_config: pd.DataFrame, facts: Facts
) -> Iterator[Finding]:
    """Callers know of every server that demands mutual TLS that it does.

    Without a DestinationRule a proxy begins mutual TLS where istiod says that the endpoint has a
    sidecar. It cannot where automatic mutual TLS is switched off for the mesh, or where a
    ServiceEntry or a Service without selector lists the addresses of pods without saying so.
    """
    automatic = mesh.settings.get("enableAutoMtls", "true") != "false"
    for symptom in symptoms:
        if symptom.side not in ("client", "gateway") or not symptom.cluster.startswith("outbound"):
            continue
        if "UC" not in symptom.flags:
            continue
        servers = _dialled(symptom, mesh)
        policy = next((one for pod, port in servers if (one := _strict(mesh, pod, port))), None)
        seen = [symptom, *_echoes(symptoms, [pod for pod, _ in servers])]
        clients = mesh.pods_of(symptom.reporters)
        ruled = any(rules_for_pod(symptom.host, pod, mesh) for pod in clients)
        if policy is None or len(seen) == 1 or (automatic and ruled):
            continue
        entry = _entry_of(symptom.host, mesh)
        bare = next((port for port in mesh.ports(symptom.host) if not port.selector), None)
        if not automatic:
            namespace = next(iter(sorted(mesh.control_plane_namespaces)), "")
            subject = Subject("ConfigMap", namespace, "istio")
            why, remedy = "enableAutoMtls is false", "Set enableAutoMtls: true"
        elif entry is not None:
            subject = subject_of(entry)
            why = f"{subject} lists its address without the label security.istio.io/tlsMode: istio"
            remedy = "Add the label to its endpoints"
        elif bare is not None:
            subject = Subject("Service", bare.namespace, bare.service)
            why, remedy = f"{subject} has no selector", "Give it a selector"
        else:
            continue
        yield Finding(
            subject,
            f"Proxies call {symptom.host} in plain text, because {why}, and {policy} demands "
            "mutual TLS there.",
            f"{remedy} with {edit(subject)}.",
            evidence=(*symptom_rows(facts, seen), config_rows(istio_config, policy)),
            related=(subject_of(policy),),
            explains=ids(seen),
        )


def _entry_of(host: str, mesh: Mesh) -> ConfigObject | None:
    return next(
        (
            entry
            for entry in mesh.of("ServiceEntry")
            if any(host_matches(str(name), host) for name in items(entry.spec, "hosts"))
        ),
        None,
    )


@check("MNB444", Severity.ERROR, cause=Cause.CONTROL_PLANE_CONFIG)
def tls_to_http_port(
    mesh: Mesh, symptoms: Symptoms, istio_config: pd.DataFrame, facts: Facts
) -> Iterator[Finding]:
    """Every port of a ServiceEntry that clients call with TLS of their own is declared so.

    On a port that is declared as HTTP the proxy reads the client's bytes as HTTP. A TLS handshake
    is none: 400 with flag DPE (http1.codec_error) from the client's own proxy.
    """
    for symptom in symptoms:
        if symptom.side != "client" or "DPE" not in symptom.flags:
            continue
        if "codec_error" not in symptom.details:
            continue
        ends = {split_address(failure.local_address) for failure in symptom.failures}
        clients = mesh.pods_of(symptom.reporters)
        found = [
            (entry, number)
            for entry in mesh.of("ServiceEntry")
            if all(visible(entry, pod.namespace, mesh) for pod in clients)
            for port in items(entry.spec, "ports")
            for number in [dig(port, "number")]
            if str(dig(port, "protocol", default="")).upper().startswith(("HTTP", "GRPC"))
            and str(dig(port, "protocol")).upper() != "HTTPS"
            and any(number == asked for _, asked in ends)
        ]
        asked_for = {address for address, _ in ends}
        exact = [pair for pair in found if asked_for & set(items(pair[0].spec, "addresses"))]
        named = [
            pair
            for pair in found
            if any(host_matches(str(host), symptom.host) for host in items(pair[0].spec, "hosts"))
        ]
        for entry, number in (exact or named or found)[:1]:
            yield Finding(
                subject_of(entry),
                f"{entry} declares port {number} as HTTP, and "
                f"{and_list(map(_place, clients))} speaks TLS to it: its proxy cannot read that.",
                "Declare the port's protocol as HTTPS or TLS, or let the client use http:// and "
                f"its proxy begin TLS by a DestinationRule: {edit(subject_of(entry))}.",
                evidence=(*symptom_rows(facts, [symptom]), config_rows(istio_config, entry)),
                related=tuple(dict.fromkeys(map(workload_of, clients))),
                explains=ids([symptom]),
                severity=None if symptom.count >= REPEATED else Severity.INFO,
            )


@check("MNB445", Severity.WARNING, cause=Cause.CONTROL_PLANE_CONFIG)
def encrypted_twice(
    mesh: Mesh, istio_config: pd.DataFrame, access_log: pd.DataFrame, facts: Facts
) -> Iterator[Finding]:
    """No DestinationRule wraps TLS around connections that are TLS already.

    A client that speaks TLS itself names the server in its handshake, and its proxy logs that. When
    the proxy then begins TLS, too, the server finds a second handshake where it expects a request.
    """
    log = access_log[access_log["method"].isna() & (access_log["direction"] == "outbound")]
    own = log[
        log["requested_server_name"].notna()
        & ~log["requested_server_name"].fillna("").str.startswith("outbound_")
    ]
    for rule in mesh.of("DestinationRule"):
        settings = [one for one in tls_settings(rule) if one.mode in ("SIMPLE", "MUTUAL")]
        if not settings:
            continue
        wrapped = []
        for index, cluster in zip(own.index, own["cluster"].fillna(""), strict=True):
            direction, _, rest = str(cluster).partition("|")
            port, _, more = rest.partition("|")
            subset, _, host = more.partition("|")
            if (
                direction == "outbound"
                and rule in destination_rules(mesh, host)
                and any(
                    one.is_for(int(port) if port.isdigit() else None) and one.subset in ("", subset)
                    for one in settings
                )
            ):
                wrapped.append(index)
        if len(wrapped) < REPEATED:
            continue
        rows = own.loc[wrapped]
        rows.attrs["table"] = access_log.attrs.get("table", "")
        hosts = and_list(rows["requested_server_name"].dropna())
        yield Finding(
            subject_of(rule),
            f"{rule} lets proxies begin TLS ({settings[0].mode}) around connections to {hosts} "
            f"that are TLS already: {counted(len(wrapped), 'connection')}.",
            "Take the tls block out, or let the clients use http://, with "
            f"{edit(subject_of(rule))}.",
            evidence=(Evidence.of(rows), config_rows(istio_config, rule)),
        )
