"""What is looked up once, for all that is described of one source."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from meshnb.tables import Facts
from meshnb.tables.base import Json, Listed, dig
from meshnb.traces.mesh import ConfigObject, Mesh, Pod, ServicePort
from meshnb.traces.rules import GATEWAY_API_GROUP

_PODS = Listed("v1", "pods")
#: The label by which the pods of a Gateway of the Gateway API are known.
GATEWAY_NAME = "gateway.networking.k8s.io/gateway-name"
_API_ROUTES = ("HTTPRoute", "GRPCRoute", "TLSRoute", "TCPRoute")


class Known:
    """What is known of one source: its facts, its mesh, and what descriptions look up."""

    def __init__(self, facts: Facts, mesh: Mesh) -> None:
        """Take the facts and the mesh of one source."""
        self.facts = facts
        self.mesh = mesh
        self._documents: dict[tuple[str, str], Json] = {}
        for _, document in facts.objects(_PODS):
            key = (
                str(dig(document, "metadata", "namespace")),
                str(dig(document, "metadata", "name")),
            )
            self._documents[key] = document
        self._refused: dict[int, list[Mapping[str, Any]]] = {}
        for index, conditions in enumerate(facts["istio_config"]["conditions"].tolist()):
            self._refused[index] = [
                condition
                for condition in conditions or ()
                if condition.get("type") in ("Accepted", "ResolvedRefs")
                and condition.get("status") == "False"
            ]
        services = facts["services"]
        self._labels: dict[tuple[str, str], Mapping[str, Any]] = {
            (str(namespace), str(service)): labels or {}
            for namespace, service, labels in zip(
                services["namespace"], services["service"], services["labels"], strict=True
            )
        }

    def behind(self, pod: Pod) -> list[list[ServicePort]]:
        """Return the ports of each Service that selects a pod."""
        found: dict[str, list[ServicePort]] = {}
        for service in self.mesh.services:
            if service.namespace == pod.namespace and pod in self.mesh.selected(service):
                found.setdefault(service.host, []).append(service)
        return list(found.values())

    def document(self, pod: Pod) -> Json:
        """Return a pod as Kubernetes has it; None when it was not listed."""
        return self._documents.get((pod.namespace, pod.pod))

    def refusals(self, route: ConfigObject) -> list[Mapping[str, Any]]:
        """Return the conditions in a route's status that say that it is not as it was meant."""
        return self._refused.get(route.index, [])

    def service_labels(self, namespace: str, service: str) -> Mapping[str, Any]:
        """Return the labels of a Service."""
        return self._labels.get((namespace, service), {})

    def api_routes(self) -> Iterator[ConfigObject]:
        """Yield the routes of the Gateway API."""
        for kind in _API_ROUTES:
            yield from self.mesh.of(kind, GATEWAY_API_GROUP)
