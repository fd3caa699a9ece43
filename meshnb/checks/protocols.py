"""Checks of declared protocols against what applications speak. Codes MNB800 to MNB829."""

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
    edit,
    ids,
    rows_of,
    symptom_rows,
)
from meshnb.checks.mtls import target_port
from meshnb.symptoms import Symptom, Symptoms
from meshnb.symptoms.requests import split_address
from meshnb.tables import Facts
from meshnb.traces.mesh import Mesh, ServicePort

HTTP2 = ("grpc", "grpc-web", "http2")
HTTP = ("http", "http2", "grpc", "grpc-web")


@check("MNB801", Severity.ERROR, cause=Cause.CONTROL_PLANE_CONFIG)
def wrong_http_version(
    mesh: Mesh, symptoms: Symptoms, services: pd.DataFrame, facts: Facts
) -> Iterator[Finding]:
    """Every application speaks the protocol that its Service's port declares.

    The name of a port, or its appProtocol, tells the proxies what to speak to the application:
    HTTP/2 for grpc and http2, HTTP/1.1 for http. An application that speaks something else is
    answered with 502 and flag UPE (protocol_error) by its own sidecar.
    """
    for symptom in symptoms:
        if "UPE" not in symptom.flags or "protocol_error" not in symptom.details:
            continue
        pods = mesh.pods_of(symptom.reporters)
        wanted = {split_address(failure.local_address)[1] for failure in symptom.failures}
        front = [
            port
            for port in mesh.services
            if (
                symptom.side == "server"
                and target_port(port) in wanted
                and any(pod in pods for pod in mesh.selected(port))
            )
            or (
                symptom.side != "server" and port.host == symptom.host and port.port == symptom.port
            )
        ]
        suspects = [port for port in front if port.protocol in HTTP2] or front
        if not suspects:
            continue
        port = suspects[0]
        subject = Subject("Service", port.namespace, port.service)
        says = "HTTP/2" if port.protocol in HTTP2 else "HTTP"
        yield Finding(
            subject,
            f"Port {port.port} of {subject} is declared as {port.protocol} (its name is "
            f"{port.port_name or 'empty'}), so proxies speak {says} to the application, which does "
            "not understand it.",
            "Declare what the application speaks, with the port's name or appProtocol: "
            f"{edit(subject)}.",
            evidence=(
                *symptom_rows(facts, [symptom]),
                Evidence.of(rows_of(services, namespace=port.namespace, service=port.service)),
            ),
            explains=ids([symptom]),
        )


@check("MNB802", Severity.WARNING, cause=Cause.DATA_PLANE)
def undeclared_server_first(
    mesh: Mesh,
    services: pd.DataFrame,
    listeners: pd.DataFrame,
    access_log: pd.DataFrame,
    endpoints: pd.DataFrame,
) -> Iterator[Finding]:
    """Every port on which the server speaks first declares its protocol.

    On a port without a declared protocol the proxy waits for the client's first bytes, to see what
    they are. With a protocol in which the server greets first, both sides wait for ever, and
    nothing is logged.
    """
    ever = set(access_log["cluster"].dropna()) | set(
        endpoints[(endpoints["connections"] > 0).fillna(False).astype(bool)]["cluster"].dropna()
    )
    used_inside = {
        (str(proxy), split_address(str(address))[1])
        for proxy, address, direction in zip(
            access_log["proxy"],
            access_log["downstream_local_address"].fillna(""),
            access_log["direction"],
            strict=True,
        )
        if direction == "inbound"
    }
    for port in mesh.services:
        if (
            port.protocol != "auto"
            or port.namespace in mesh.control_plane_namespaces
            or not port.selector
        ):
            continue
        pods = [pod for pod in mesh.selected(port) if pod.mesh == "sidecar" and pod.ready]
        if not pods:
            continue
        cluster = f"outbound|{port.port}||{port.host}"
        used = any(
            name.endswith(f"|{port.host}") and f"|{port.port}|" in name for name in ever
        ) or any((pod.proxy, target_port(port)) in used_inside for pod in pods)
        waiting = listeners[
            (listeners["cluster"] == cluster).fillna(False).astype(bool)
            | (listeners["destination_port"] == target_port(port)).fillna(False).astype(bool)
            & listeners["proxy"].isin([pod.proxy for pod in pods])
        ]
        subject = Subject("Service", port.namespace, port.service)
        consequence = (
            ""
            if used
            else ", and no connection to it was ever passed on: an application that greets first "
            "hangs"
        )
        yield Finding(
            subject,
            f"Port {port.port} of {subject} declares no protocol (its name is "
            f"{port.port_name or 'empty'}), so proxies wait for the client to speak "
            f"first{consequence}.",
            f"Name the port after its protocol, such as tcp-{port.port_name or port.port}, or set "
            f"appProtocol: {edit(subject)}.",
            evidence=(
                Evidence.of(rows_of(services, namespace=port.namespace, service=port.service)),
                Evidence.of(listeners, waiting.head(20).index),
            ),
            severity=Severity.INFO if used or _http_port(port) else None,
        )


def _http_port(port: ServicePort) -> bool:
    # 80, 443 and their usual relatives are HTTP, where the client speaks first.
    return port.port in (80, 443, 8000, 8080, 8443, 9090)


def _meant_as_tls(symptom: Symptom, symptoms: Symptoms, mesh: Mesh) -> bool:
    """Whether what could not be parsed was a TLS handshake of the callers' own proxies."""
    hosts = {
        port.host
        for port in mesh.services
        for pod in mesh.selected(port)
        if (pod.namespace, pod.workload) == symptom.workload
    }
    return any(
        other.host in hosts and "WRONG_VERSION_NUMBER" in other.upstream_failure + other.details
        for other in symptoms
    )


@check("MNB803", Severity.WARNING, cause=Cause.DATA_PLANE)
def client_breaks_http(
    mesh: Mesh, symptoms: Symptoms, services: pd.DataFrame, facts: Facts
) -> Iterator[Finding]:
    """Every client speaks valid HTTP to ports that are declared as HTTP.

    A proxy that cannot parse what it gets answers 400 with flag DPE (codec_error), 426 for HTTP/1.0
    or 431 for headers that are too large. Bytes of another protocol on an HTTP port look the same.
    """
    for symptom in symptoms:
        if "DPE" not in symptom.flags:
            continue
        if symptom.side == "server" and _meant_as_tls(symptom, symptoms, mesh):
            continue
        pods = mesh.pods_of(symptom.reporters)
        ports = {split_address(failure.local_address)[1] for failure in symptom.failures}
        front = [
            port
            for port in mesh.services
            if target_port(port) in ports and any(pod in pods for pod in mesh.selected(port))
        ]
        if front:
            subject = Subject("Service", front[0].namespace, front[0].service)
        elif pods:
            subject = Subject("Pod", pods[0].namespace, pods[0].pod)
        else:
            continue
        clients = and_list(
            f"{pod.namespace}/{pod.workload}" if pod else split_address(f.remote_address)[0]
            for f in symptom.failures
            for pod in [mesh.pod_at(split_address(f.remote_address)[0])]
        )
        yield Finding(
            subject,
            f"{clients} sends what is no valid HTTP to {subject}: {symptom.code} "
            f"{symptom.details}.",
            f"Correct the client, or declare the port's real protocol: {edit(subject)}.",
            evidence=(
                *symptom_rows(facts, [symptom]),
                Evidence.of(rows_of(services, namespace=subject.namespace, service=subject.name)),
            ),
            explains=ids([symptom]),
            severity=None if symptom.count >= 3 else Severity.INFO,
            certainty=0.6,
        )
