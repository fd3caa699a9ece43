"""Checks of declared protocols against what applications speak. Codes MNB800 to MNB819."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pandas as pd

from meshnb.checks.asked_ports import asked_ports, goes_on_at_port, pods_and_ports, served_there
from meshnb.checks.base import (
    Cause,
    Evidence,
    Finding,
    Severity,
    Subject,
    and_list,
    check,
    config_rows,
    edit,
    ids,
    pods_beside,
    rows_of,
    subject_of,
    symptom_rows,
    workload_of,
)
from meshnb.checks.mtls import answered_plainly
from meshnb.checks.served import served, served_by
from meshnb.symptoms import Symptom, Symptoms
from meshnb.symptoms.base import REPEATED
from meshnb.symptoms.requests import split_address
from meshnb.tables import Facts
from meshnb.tables.base import dig, items
from meshnb.traces.mesh import ConfigObject, Mesh, Pod, ServicePort
from meshnb.traces.rules import bound_gateways, route_hosts, rules_for_pod

HTTP2 = ("grpc", "grpc-web", "http2")
HTTP = ("http", "http2", "grpc", "grpc-web")
#: What Istio passes on without reading it.
_OPAQUE = ("tcp", "tls", "https", "mongo", "redis", "mysql")

#: A call of gRPC has the path /package.Service/Method.
_GRPC_PATH = re.compile(r"/[A-Za-z_][\w.]*/[A-Za-z_]\w*")
#: Protocols in which the client speaks first, and usual names of HTTP ports, in ports' names.
_CLIENT_FIRST = re.compile(
    r"postgres|psql|pg|kafka|amqp|rabbit|cassandra|cql|zookeeper|zk|etcd|ldap|memcache|clickhouse"
    r"|elastic|consul|vault|raft|gossip|peer|rpc|h2c|web|http|api|rest|ui|admin|metrics|prom|health"
    r"|status|probe|monitor|debug|pprof|traffic|webhook|dash|grafana|jaeger|zipkin|otlp|trace"
)
_HTTP_NUMBERS = frozenset({80, 443, 3000, 4317, 4318, 5000, 9090, 9091, 9093, 15020, 15090, 50051})


def _protocol_error(symptom: Symptom) -> bool:
    return (
        "UPE" in symptom.flags
        and "protocol_error" in symptom.details
        and "before_response_started" in symptom.details
    )


def _upgrading(symptom: Symptom, mesh: Mesh) -> ConfigObject | None:
    """Return the DestinationRule by which callers speak HTTP/2 although it is not declared."""
    clients = mesh.pods_of(symptom.reporters if symptom.side != "server" else symptom.callers)
    hosts = {port.host for port in asked_ports(symptom, mesh)} or {symptom.host}
    for host in hosts:
        for rule in (rule for pod in clients for rule in rules_for_pod(host, pod, mesh)):
            policies = [dig(rule.spec, "trafficPolicy")]
            policies += [dig(one, "trafficPolicy") for one in items(rule.spec, "subsets")]
            policies += [
                level for policy in policies for level in items(policy, "portLevelSettings")
            ]
            for policy in policies:
                if dig(policy, "connectionPool", "http", "h2UpgradePolicy") == "UPGRADE":
                    return rule
    return None


@check("MNB801", Severity.ERROR, cause=Cause.CONTROL_PLANE_CONFIG)
def wrong_http_version(
    mesh: Mesh,
    symptoms: Symptoms,
    services: pd.DataFrame,
    istio_config: pd.DataFrame,
    facts: Facts,
) -> Iterator[Finding]:
    """Every application speaks the protocol that its Service's port declares.

    The name of a port, or its appProtocol, tells the proxies what to speak to the application:
    HTTP/2 for grpc and http2, HTTP/1.1 for http. A DestinationRule or the mesh may upgrade that to
    HTTP/2. An application that speaks something else is answered with 502 and flag UPE
    (protocol_error) by its own sidecar.
    """
    for symptom in symptoms:
        if not _protocol_error(symptom) or goes_on_at_port(symptom, facts, mesh):
            continue
        front = asked_ports(symptom, mesh)
        suspects = [port for port in front if port.protocol in HTTP2] or front
        rule = _upgrading(symptom, mesh)
        if rule is not None and not any(port.protocol in HTTP2 for port in front):
            yield Finding(
                subject_of(rule),
                f"{rule} lets proxies speak HTTP/2 (h2UpgradePolicy UPGRADE) to {symptom.host}, "
                "which does not understand it.",
                f"Take h2UpgradePolicy out with {edit(subject_of(rule))}.",
                evidence=(*symptom_rows(facts, [symptom]), config_rows(istio_config, rule)),
                explains=ids([symptom]),
            )
            continue
        if not suspects:
            continue
        port = suspects[0]
        subject = Subject("Service", port.namespace, port.service)
        upgraded = mesh.settings.get("h2UpgradePolicy") == "UPGRADE"
        if upgraded and port.protocol == "http" and symptom.side != "server":
            namespace = next(iter(sorted(mesh.control_plane_namespaces)), "")
            settings = Subject("ConfigMap", namespace, "istio")
            yield Finding(
                settings,
                f"The mesh lets proxies speak HTTP/2 (h2UpgradePolicy UPGRADE) to {subject}, which "
                "does not understand it.",
                f"Take h2UpgradePolicy out of the mesh's settings with {edit(settings)}.",
                evidence=symptom_rows(facts, [symptom]),
                related=(subject,),
                explains=ids([symptom]),
            )
            continue
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
    containers: pd.DataFrame,
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
        ) or any((pod.proxy, mesh.target_port(port)) in used_inside for pod in pods)
        waiting = listeners[
            (listeners["cluster"] == cluster).fillna(False).astype(bool)
            | (listeners["destination_port"] == mesh.target_port(port)).fillna(False).astype(bool)
            & listeners["proxy"].isin([pod.proxy for pod in pods])
        ]
        subject = Subject("Service", port.namespace, port.service)
        harmless = (
            used
            or _client_first(port)
            or _probed(port, pods, mesh, containers)
            or mesh.settings.get("protocolDetectionTimeout", "0s") not in ("0s", "")
        )
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
            severity=Severity.INFO if harmless else None,
        )


def _client_first(port: ServicePort) -> bool:
    # 80, 443 and their usual relatives are HTTP, where the client speaks first.
    number = port.port or 0
    return (
        number in _HTTP_NUMBERS
        or 8000 <= number < 9000
        or _CLIENT_FIRST.search(port.port_name.lower()) is not None
    )


def _probed(port: ServicePort, pods: list[Pod], mesh: Mesh, containers: pd.DataFrame) -> bool:
    """Whether the readiness probe says that HTTP or gRPC is spoken at a Service's port."""
    return bool(
        (
            containers["pod"].isin([pod.pod for pod in pods])
            & (containers["namespace"] == port.namespace)
            & (containers["readiness_port"] == mesh.target_port(port)).fillna(False).astype(bool)
            & containers["readiness_kind"].isin(["http", "grpc"])
        ).any()
    )


def _meant_as_tls(symptom: Symptom, symptoms: Symptoms, mesh: Mesh) -> bool:
    """Whether what could not be parsed was a TLS handshake of the callers' own proxies."""
    hosts = {
        port.host
        for port in mesh.services
        for pod in mesh.selected(port)
        if (pod.namespace, pod.workload) == symptom.workload
    }
    return any(other.host in hosts and answered_plainly(other) for other in symptoms)


def _clients(symptom: Symptom, mesh: Mesh) -> list[Pod]:
    """Return the pods that sent requests which their own or the server's proxy refused."""
    if symptom.side == "client":
        return mesh.pods_of(symptom.reporters)
    callers = mesh.pods_of(symptom.callers)
    found = [pod for one in symptom.failures if (pod := mesh.pod_at(one.peer_address)) is not None]
    return list(dict.fromkeys(pod for pod in callers + found if pod.mesh != "gateway"))


@check("MNB803", Severity.WARNING, cause=Cause.DATA_PLANE)
def client_breaks_http(
    mesh: Mesh, symptoms: Symptoms, services: pd.DataFrame, facts: Facts
) -> Iterator[Finding]:
    """Every client speaks valid HTTP to ports that are declared as HTTP.

    A proxy that cannot parse what it gets answers 400 with flag DPE (codec_error), 426 for HTTP/1.0
    or 431 for headers that are too large. Bytes of another protocol on an HTTP port look the same:
    when nothing else was ever served there, the port is declared wrongly.
    """
    for symptom in symptoms:
        if "DPE" not in symptom.flags or not symptom.side:
            continue
        if symptom.side == "server" and _meant_as_tls(symptom, symptoms, mesh):
            continue
        garbled = "codec_error" in symptom.details
        pods, _ = pods_and_ports(symptom, mesh)
        front = asked_ports(symptom, mesh)
        clients = list(dict.fromkeys(map(workload_of, _clients(symptom, mesh))))
        offered = [Subject("Service", port.namespace, port.service) for port in front]
        declared = garbled and bool(offered) and not served_there(symptom, facts, mesh)
        at_client = not declared and len(clients) == 1 and (not garbled or not offered)
        if at_client:
            subject = clients[0]
        elif offered:
            subject = offered[0]
        elif pods:
            subject = workload_of(pods[0])
        else:
            continue
        who = and_list(f"{one.namespace}/{one.name}" for one in clients) or and_list(
            split_address(failure.remote_address)[0] for failure in symptom.failures
        )
        what = and_list(map(str, offered[:1])) or and_list(
            failure.local_address for failure in symptom.failures
        )
        everyday = symptom.side == "gateway" and (
            garbled or symptom.count < 2 * REPEATED or len({f.path for f in symptom.failures}) > 1
        )
        yield Finding(
            subject,
            f"{who} sends what is no valid HTTP to {what}: {symptom.code} {symptom.details}."
            + (" No request was ever served there." if declared else ""),
            f"Correct the client, or declare the port's real protocol: {edit(subject)}.",
            evidence=(
                *symptom_rows(facts, [symptom]),
                *(
                    Evidence.of(rows_of(services, namespace=one.namespace, service=one.name))
                    for one in offered[:1]
                ),
            ),
            related=tuple(dict.fromkeys(one for one in clients + offered if one != subject)),
            explains=ids([symptom]),
            severity=Severity.INFO
            if symptom.count < REPEATED or (everyday and served_there(symptom, facts, mesh))
            else None,
            cause=Cause.CONTROL_PLANE_CONFIG if declared else None,
            # What cannot be read at the client's end, or at a gateway, may be a matter of how the
            # port is declared.
            certainty=0.4 if garbled and symptom.side in ("client", "gateway") else 0.6,
        )


@check("MNB804", Severity.ERROR, cause=Cause.DATA_PLANE)
def application_breaks_http(mesh: Mesh, symptoms: Symptoms, facts: Facts) -> Iterator[Finding]:
    """Every answer of an application is valid HTTP.

    An answer with two Transfer-Encoding headers, too many or too large headers, or a body that ends
    early is refused: 502 with flag UPE (protocol_error), while other requests to the same port are
    served.
    """
    for symptom in symptoms:
        late = "UPE" in symptom.flags and "after_response_started" in symptom.details
        if not late and not (_protocol_error(symptom) and goes_on_at_port(symptom, facts, mesh)):
            continue
        if symptom.side == "server":
            pods = mesh.workload_pods(symptom.workload)
        else:
            ends = {split_address(failure.upstream_host)[0] for failure in symptom.failures}
            pods = [pod for pod in mesh.pods if pod.address in ends and pod.running]
        if not pods:
            continue
        subject = workload_of(pods[0])
        paths = and_list(dict.fromkeys(f"{f.method} {f.path}" for f in symptom.failures))
        begun = "breaks its answer off" if late else "answers with what is no valid HTTP"
        yield Finding(
            subject,
            f"The application of {subject} {begun}: {paths} ({symptom.details}); the port is served"
            " otherwise.",
            "Correct the headers and the length of its answer: compare with `kubectl -n "
            f"{subject.namespace} exec {pods[0].pod} -c istio-proxy -- curl -si "
            "localhost` at its port.",
            evidence=symptom_rows(facts, [symptom]),
            related=pods_beside(subject, pods),
            explains=ids([symptom]),
            severity=Severity.INFO if symptom.is_over else None,
        )


#: What a proxy refuses by itself, by the details of its answer.
_LIMITS = {
    "request_payload_too_large": "the body is larger than a buffer filter allows",
    "missing_host_header": "the request names no host",
    "request_header_timeout": "the headers did not arrive in time",
    "upgrade_failed": "it asks for an upgrade that the proxy does not offer",
    "invalid_path": "the path is not valid",
    "path_normalization_failed": "the path cannot be normalised",
    "request_headers_failed_strict_check": "a header of Envoy's own has a wrong value",
}


@check("MNB805", Severity.WARNING, cause=Cause.DATA_PLANE)
def request_against_limits(
    mesh: Mesh,
    symptoms: Symptoms,
    istio_config: pd.DataFrame,
    facts: Facts,
) -> Iterator[Finding]:
    """Every request keeps the limits that proxies set.

    A proxy refuses by itself what it does not allow: a body that is too large (413), a request
    without a host (400), an upgrade to a protocol that is not offered (403 upgrade_failed). The
    details say which; the application never sees the request.
    """
    for symptom in symptoms:
        why = next((words for name, words in _LIMITS.items() if name in symptom.details), None)
        if why is None:
            continue
        pods = mesh.pods_of(symptom.reporters)
        clients = list(dict.fromkeys(map(workload_of, _clients(symptom, mesh))))
        offered = [
            Subject("Service", port.namespace, port.service) for port in asked_ports(symptom, mesh)
        ]
        filters = (
            [
                item
                for item in mesh.of("EnvoyFilter")
                if "buffer" in str(item.spec) and set(pods) & set(mesh.workload_selected(item))
            ]
            if "payload" in symptom.details
            else []
        )
        subjects = [*map(subject_of, filters), *clients, *offered, *map(workload_of, pods)]
        if not subjects:
            continue
        subject = subjects[0]
        who = and_list(map(str, clients)) or "a client outside the cluster"
        asked = and_list(dict.fromkeys(f"{f.method} {f.path}" for f in symptom.failures))
        everyday = (
            symptom.side == "gateway"
            and not filters
            and bool(served_by(facts, symptom.reporters).size)
        )
        yield Finding(
            subject,
            f"A proxy refuses {asked} of {who} with {symptom.code} ({symptom.details}): {why}.",
            f"Correct the client, or allow it: {edit(subject)}."
            if not filters
            else f"Raise the limit with {edit(subject)}.",
            evidence=(
                *symptom_rows(facts, [symptom]),
                *((config_rows(istio_config, *filters),) if filters else ()),
            ),
            related=tuple(dict.fromkeys(one for one in subjects if one != subject)),
            explains=ids([symptom]),
            severity=Severity.INFO if symptom.count < REPEATED or everyday else None,
            cause=Cause.CONTROL_PLANE_CONFIG if filters else None,
        )


@check("MNB806", Severity.ERROR, cause=Cause.CONTROL_PLANE_CONFIG)
def grpc_on_http1_port(
    mesh: Mesh, symptoms: Symptoms, services: pd.DataFrame, facts: Facts
) -> Iterator[Finding]:
    """Every port on which gRPC is spoken declares it, or HTTP/2.

    On a port that is declared as http the proxies speak HTTP/1.1 to the application, whatever the
    client spoke to them. A server for gRPC understands HTTP/2 only and ends the connection: 502
    or 503 with flag UC or UPE.
    """
    for symptom in symptoms:
        front = grpc_as_http1(symptom, mesh, facts)
        if not front:
            continue
        port = front[0]
        subject = Subject("Service", port.namespace, port.service)
        yield Finding(
            subject,
            f"Clients call gRPC ({and_list(dict.fromkeys(f.path for f in symptom.failures))}) on "
            f"port {port.port} of {subject}, which is declared as http (its name is "
            f"{port.port_name or 'empty'}): proxies speak HTTP/1.1 to the application.",
            f"Name the port grpc-{port.port_name or port.port}, or set appProtocol: grpc, with "
            f"{edit(subject)}.",
            evidence=(
                *symptom_rows(facts, [symptom]),
                Evidence.of(rows_of(services, namespace=port.namespace, service=port.service)),
            ),
            explains=ids([symptom]),
        )


def grpc_as_http1(symptom: Symptom, mesh: Mesh, facts: Facts) -> list[ServicePort]:
    """Return the ports declared as http on which all of a symptom's requests were gRPC."""
    if not {"UC", "UPE", "UR"} & symptom.flags or symptom.kind != "request":
        return []
    if symptom.is_counted:
        return []  # what was asked, only a log tells
    front = [port for port in asked_ports(symptom, mesh) if port.protocol == "http"]
    calls = all(
        failure.method == "POST" and _GRPC_PATH.fullmatch(failure.path.partition("?")[0])
        for failure in symptom.failures
    )
    spoken = set(facts["access_log"].loc[list(symptom.rows), "protocol"].dropna())
    meant = symptom.count >= REPEATED and calls and spoken == {"HTTP/2"}
    return front if meant and not goes_on_at_port(symptom, facts, mesh) else []


@check("MNB807", Severity.WARNING, cause=Cause.DATA_PLANE)
def http_taken_for_bytes(
    mesh: Mesh,
    services: pd.DataFrame,
    istio_config: pd.DataFrame,
    containers: pd.DataFrame,
    facts: Facts,
) -> Iterator[Finding]:
    """Every port on which HTTP or gRPC is spoken is declared so.

    On a port that is declared as TCP a connection is balanced once, and all its requests go to one
    pod. HTTP routes, retries, policies by path and metrics of requests have no effect there.
    """
    by_host: dict[str, list[ServicePort]] = {}
    for port in mesh.services:
        if port.namespace not in mesh.control_plane_namespaces:
            by_host.setdefault(port.host, []).append(port)
    for host, ports in by_host.items():
        opaque = [port for port in ports if port.protocol in _OPAQUE]
        routed = [
            item
            for item in mesh.of("VirtualService")
            if "mesh" in bound_gateways(item)
            and items(item.spec, "http")
            and host in route_hosts(item, mesh)
        ]
        for port in opaque:
            pods = [pod for pod in mesh.selected(port) if pod.mesh == "sidecar"]
            probed = port.protocol == "tcp" and _probed(port, pods, mesh, containers)
            useless = routed if len(opaque) == len(ports) else []
            if not pods or not (probed or useless):
                continue
            subject = Subject("Service", port.namespace, port.service)
            reasons = [f"the HTTP routes of {item} have no effect" for item in useless]
            reasons += ["its readiness probe speaks HTTP there"] if probed else []
            called = any(
                _is_for(str(name), port) for name in served(facts)["cluster"].dropna().unique()
            )
            yield Finding(
                subject,
                f"Port {port.port} of {subject} is declared as {port.protocol} (its name is "
                f"{port.port_name or 'empty'}), and {and_list(reasons)}.",
                "Name the port after what is spoken there, such as "
                f"http-{port.port_name or port.port} or grpc, or set appProtocol: {edit(subject)}.",
                evidence=(
                    Evidence.of(rows_of(services, namespace=port.namespace, service=port.service)),
                    *((config_rows(istio_config, *useless),) if useless else ()),
                ),
                related=tuple(map(subject_of, useless)),
                severity=None if useless or called else Severity.INFO,
            )


def _is_for(cluster: str, port: ServicePort) -> bool:
    return cluster.startswith(f"outbound|{port.port}|") and cluster.endswith(f"|{port.host}")


@check("MNB808", Severity.ERROR, cause=Cause.DATA_PLANE)
def bytes_on_http_port(
    mesh: Mesh, symptoms: Symptoms, services: pd.DataFrame, facts: Facts
) -> Iterator[Finding]:
    """Every client speaks HTTP to the ports that are declared as HTTP.

    A client's proxy that finds no HTTP on such a port passes the bytes on as they are
    (PassthroughCluster), without mutual TLS. A server that demands it, or HTTP, ends the
    connection.
    """
    for symptom in symptoms:
        if symptom.side != "client" or symptom.kind != "connection":
            continue
        if symptom.cluster != "PassthroughCluster" or not {"UC", "UF"} & symptom.flags:
            continue
        if any(failure.server_name for failure in symptom.failures):
            continue  # it is TLS, which another check tells
        front = [port for port in asked_ports(symptom, mesh) if port.protocol in HTTP]
        if not front:
            continue
        port = front[0]
        pods = mesh.selected(port)
        spoken = served(facts)
        requests = spoken["method"].notna() & spoken["cluster"].map(
            lambda name, own=port: _is_for(str(name), own), na_action="ignore"
        ).fillna(False).astype(bool)
        declared = not requests.any()
        clients = list(dict.fromkeys(map(workload_of, mesh.pods_of(symptom.reporters))))
        service = Subject("Service", port.namespace, port.service)
        subject = service if declared or not clients else clients[0]
        workloads = {(pod.namespace, pod.workload) for pod in pods}
        seen = [symptom]
        seen += [
            s
            for s in symptoms
            if s.side == "server"
            and s.workload in workloads
            and s.kind == "connection"
            and "filter_chain_not_found" in s.details
        ]
        yield Finding(
            subject,
            f"{and_list(map(str, clients))} speaks no HTTP to port {port.port} of {service}, which "
            f"is declared as {port.protocol} (its name is {port.port_name or 'empty'}): "
            f"{symptom.count} connections were ended.",
            f"Declare what is spoken there, such as tcp-{port.port_name or port.port}, with "
            f"{edit(service)}, or correct the client.",
            evidence=(
                *symptom_rows(facts, seen),
                Evidence.of(rows_of(services, namespace=port.namespace, service=port.service)),
            ),
            related=tuple(one for one in (service, *clients) if one != subject),
            explains=ids(seen),
            severity=Severity.INFO if symptom.count < REPEATED else None,
            cause=Cause.CONTROL_PLANE_CONFIG if declared else None,
        )
