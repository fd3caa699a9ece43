"""The table ``service_endpoints``: the addresses behind each Service, as Kubernetes sees them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from meshnb.sources.base import Question
from meshnb.tables.base import Column, Facts, Json, Listed, Row, Table, dig, items
from meshnb.tables.metadata import labels_of

_SLICES = Listed("discovery.k8s.io", "endpointslices")
_SERVICES = Listed("v1", "services")

SERVICE_ENDPOINTS = Table(
    name="service_endpoints",
    grain="one row per Service port and address behind it",
    asks=(_SLICES, _SERVICES),
    columns={
        "namespace": Column("string", "namespace of the Service", key=True),
        "service": Column("string", "name of the Service", key=True),
        "port": Column("Int64", "the Service's port; absent when it cannot be told from the name"),
        "port_name": Column("string", "name of the Service's port"),
        "address": Column(
            "string", "IP address of the pod, or of whatever else is behind", key=True
        ),
        "target_port": Column("Int64", "the port at that address", key=True),
        "pod": Column("string", "the pod that has the address"),
        "node": Column("string", "the node it is on"),
        "ready": Column("boolean", "whether it gets traffic"),
        "serving": Column("boolean", "whether it is ready, even while it ends"),
        "terminating": Column("boolean", "whether it is being ended"),
    },
)


@SERVICE_ENDPOINTS.derives
def _rows(facts: Facts) -> Iterator[tuple[Question, Row]]:
    ports: dict[tuple[str, str, str], Any] = {}
    for _, service in facts.objects(_SERVICES):
        namespace = str(dig(service, "metadata", "namespace"))
        name = str(dig(service, "metadata", "name"))
        for port in items(service, "spec", "ports"):
            ports[namespace, name, _name(port)] = dig(port, "port")

    def read(endpoint_slice: Json, question: Question, facts: Facts) -> Iterator[Row]:
        service = labels_of(endpoint_slice).get("kubernetes.io/service-name")
        if service is None:
            return
        namespace = dig(endpoint_slice, "metadata", "namespace")
        # A slice without ports is one of a Service that declares none.
        for target in items(endpoint_slice, "ports") or [None]:
            for endpoint in items(endpoint_slice, "endpoints"):
                for address in items(endpoint, "addresses"):
                    yield {
                        "namespace": namespace,
                        "service": service,
                        "port": ports.get((str(namespace), str(service), _name(target))),
                        "port_name": _name(target) or None,
                        "address": address,
                        "target_port": dig(target, "port"),
                        "pod": _pod(endpoint),
                        "node": dig(endpoint, "nodeName"),
                        **_conditions(endpoint),
                    }

    yield from facts.read(_SLICES, read)


def _name(port: Json) -> str:
    return str(dig(port, "name", default=""))


def _pod(endpoint: Json) -> Any:
    return (
        dig(endpoint, "targetRef", "name") if dig(endpoint, "targetRef", "kind") == "Pod" else None
    )


def _conditions(endpoint: Json) -> Row:
    # The API asks its readers to take a condition that is not stated for ready, serving, and alive.
    ready = dig(endpoint, "conditions", "ready", default=True)
    return {
        "ready": ready,
        "serving": dig(endpoint, "conditions", "serving", default=ready),
        "terminating": dig(endpoint, "conditions", "terminating", default=False),
    }
