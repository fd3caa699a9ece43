"""The table ``services``: every port of every Service, and which protocol Istio takes it for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from meshnb.sources.base import Question
from meshnb.tables.base import Column, Facts, Json, Listed, Row, Table, dig, items, mapping
from meshnb.tables.metadata import annotations_of, changed, labels_of

SERVICES = Table(
    name="services",
    grain="one row per Service and port",
    asks=Listed("v1", "services"),
    columns={
        "namespace": Column("string", "namespace of the Service", key=True),
        "service": Column("string", "name of the Service", key=True),
        "port": Column("Int64", "the port it is called on; absent when it declares none", key=True),
        "host": Column("string", "its full DNS name, with the domain cluster.local"),
        "port_name": Column("string", "name of the port"),
        "protocol": Column(
            "string",
            "what Istio takes the port for, by appProtocol or the prefix of its name: http, http2, "
            "grpc, grpc-web, https, tls, tcp, udp, ...; auto when Istio must look at the bytes",
        ),
        "transport": Column("string", "TCP, UDP or SCTP"),
        "target_port": Column(
            "string", "the port of the pods, a number or a container port's name"
        ),
        "type": Column("string", "ClusterIP, NodePort, LoadBalancer or ExternalName"),
        "cluster_ip": Column("string", "its virtual IP address; None for a headless Service"),
        "headless": Column("boolean", "whether it has no virtual address, so DNS names the pods"),
        "external_name": Column("string", "the DNS name that an ExternalName Service stands for"),
        "selector": Column("object", "labels of the pods behind it, a dict; empty selects none"),
        "export_to": Column(
            "object", "namespaces that see it, a tuple; empty means the mesh's default"
        ),
        "created": Column("datetime64[us, UTC]", "when it was created", passing=True),
        "changed": Column(
            "datetime64[us, UTC]", "when anything but its status was changed last", passing=True
        ),
        "labels": Column("object", "its labels, a dict"),
    },
)

#: Protocols that Istio knows by name (pkg/config/protocol of Istio 1.30).
_PROTOCOLS = (
    "tcp",
    "udp",
    "grpc",
    "grpc-web",
    "http",
    "http_proxy",
    "http2",
    "https",
    "tls",
    "mongo",
    "redis",
    "mysql",
    "hbone",
    "double-hbone",
)

#: Values of appProtocol that Kubernetes itself defines.
_STANDARD = {
    "kubernetes.io/h2c": "http2",
    "kubernetes.io/ws": "http",
    "kubernetes.io/wss": "https",
}

#: SMTP, DNS, MySQL and MongoDB: here the server may speak first, so Istio does not wait for bytes.
_NEVER_SNIFFED = (25, 53, 3306, 27017)


@SERVICES.reads
def _rows(service: Json, question: Question, facts: Facts) -> Iterator[Row]:
    namespace, name = dig(service, "metadata", "namespace"), dig(service, "metadata", "name")
    cluster_ip = dig(service, "spec", "clusterIP")
    exported = str(annotations_of(service).get("networking.istio.io/exportTo", ""))
    common = {
        "namespace": namespace,
        "service": name,
        "host": f"{name}.{namespace}.svc.cluster.local",
        "type": dig(service, "spec", "type"),
        "cluster_ip": cluster_ip,
        "headless": cluster_ip == "None",
        "external_name": dig(service, "spec", "externalName"),
        "selector": dict(mapping(service, "spec", "selector")),
        "export_to": tuple(part.strip() for part in exported.split(",") if part.strip()),
        "created": dig(service, "metadata", "creationTimestamp"),
        "changed": changed(service),
        "labels": labels_of(service),
    }
    ports = items(service, "spec", "ports")
    if not ports:
        yield common
    for port in ports:
        number = dig(port, "port")
        target = dig(port, "targetPort")
        transport = dig(port, "protocol", default="TCP")
        yield {
            **common,
            "port": number,
            "port_name": dig(port, "name"),
            "protocol": declared_protocol(
                number, dig(port, "name"), transport, dig(port, "appProtocol")
            ),
            "transport": transport,
            # The API server stores 0 for a target port that was left out of a headless Service.
            "target_port": target or number,
        }


def declared_protocol(port: Any, name: Any, transport: Any, app_protocol: Any) -> str:
    """Return which protocol Istio takes a Service's port for, ``auto`` when it must look.

    As in ConvertProtocol of Istio 1.30 (pkg/config/kube): appProtocol wins over the name of the
    port, and of either only the part before the first hyphen counts.
    """
    if transport == "UDP":
        return "udp"
    if app_protocol in _STANDARD:
        return _STANDARD[app_protocol]
    text = str(name or "" if app_protocol is None else app_protocol).lower()
    if text.startswith("grpc-web"):
        return "grpc-web"
    prefix = text.partition("-")[0]
    if prefix in _PROTOCOLS:
        return prefix
    return "tcp" if port in _NEVER_SNIFFED else "auto"
