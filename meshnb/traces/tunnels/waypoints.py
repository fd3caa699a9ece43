"""Which waypoint a Service or a pod asks for, and whether it stands in the way of its traffic.

The label ``istio.io/use-waypoint`` of the object itself comes before its namespace's; ``none``
means no waypoint. A waypoint takes the traffic that the label ``istio.io/waypoint-for`` of its
Gateway names: ``service`` (what clients send to Services; the default), ``workload`` (what they
send to addresses of pods), ``all`` or ``none`` (https://istio.io/latest/docs/ambient/usage/waypoint).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from meshnb.tables import Facts
from meshnb.tables.base import dig, items
from meshnb.traces.mesh import ConfigObject, Mesh, Pod
from meshnb.traces.rules import GATEWAY_API_GROUP

USE = "istio.io/use-waypoint"
FOR = "istio.io/waypoint-for"
INGRESS = "istio.io/ingress-use-waypoint"
GATEWAY_NAME = "gateway.networking.k8s.io/gateway-name"
#: The class of Gateways whose proxies are waypoints, and who looks after such classes.
CLASS = "istio-waypoint"
_CONTROLLER = "istio.io/mesh-controller"


@dataclass(frozen=True, slots=True)
class WaypointUse:
    """The waypoint that something asks for, and what is wrong with it.

    ``state`` is ``ready``, ``missing`` (no such Gateway), ``not a waypoint`` (a Gateway of another
    class), ``not ready`` (no ready pod, or not programmed), ``forbidden`` (its listener does not
    allow the namespace) or ``other traffic`` (it is for another kind of traffic).
    """

    namespace: str
    name: str
    #: the label that asks for it, such as ``Service label istio.io/use-waypoint=edge``
    label: str
    #: where that label stands: Service, Pod or Namespace, with its namespace and name
    subject: tuple[str, str, str]
    state: str
    #: what is wrong, in words; empty when it is ready
    problem: str
    gateway: ConfigObject | None
    pods: tuple[Pod, ...]
    #: service, workload, all or none
    traffic: str

    def __str__(self) -> str:
        """Return namespace and name."""
        return f"{self.namespace}/{self.name}"


class Waypoints:
    """The waypoints of one mesh, looked up."""

    def __init__(self, facts: Facts, mesh: Mesh) -> None:
        """Read the labels of Services, and the conditions of Gateways."""
        self._mesh = mesh
        services = facts["services"]
        self._services: dict[tuple[str, str], Mapping[str, Any]] = {
            (str(namespace), str(name)): labels or {}
            for namespace, name, labels in zip(
                services["namespace"], services["service"], services["labels"], strict=True
            )
        }
        self._conditions = facts["istio_config"]["conditions"].tolist()
        self._controllers = {
            item.name: str(dig(item.spec, "controllerName", default=""))
            for item in mesh.of("GatewayClass", GATEWAY_API_GROUP)
        }
        self._gateways = {
            (gateway.namespace, gateway.name): gateway
            for gateway in mesh.of("Gateway", GATEWAY_API_GROUP)
        }

    @property
    def gateways(self) -> Mapping[tuple[str, str], ConfigObject]:
        """Every Gateway of the Gateway API, by namespace and name."""
        return self._gateways

    def labels_of(self, namespace: str, service: str) -> Mapping[str, Any]:
        """Return the labels of a Service, empty where there is none."""
        return self._services.get((namespace, service), {})

    def of_service(self, namespace: str, service: str) -> WaypointUse | None:
        """Return the waypoint for what clients send to a Service; None when none is asked for."""
        subject = ("Service", namespace, service)
        return self._use(subject, self.labels_of(namespace, service), "service")

    def of_pod(self, pod: Pod) -> WaypointUse | None:
        """Return the waypoint for what clients send to a pod's address; None without one."""
        return self._use(("Pod", pod.namespace, pod.pod), pod.labels, "workload")

    def uses(self) -> Iterator[WaypointUse]:
        """Yield what each Service, and each pod or namespace by its own label, asks for, once."""
        for namespace, service in self._services:
            use = self.of_service(namespace, service)
            if use is not None and use.subject[0] == "Service":
                yield use
        for pod in self._mesh.pods:
            use = self.of_pod(pod) if pod.running and USE in pod.labels else None
            if use is not None:
                yield use
        for namespace, labels in self._mesh.namespaces.items():
            if USE in labels:
                found = self._use(("Namespace", namespace, namespace), {}, "any")
                if found is not None:
                    yield found

    def enforced_for_ingress(self, namespace: str, service: str) -> bool:
        """Whether gateways send what they have for a Service through its waypoint, too."""
        own = self.labels_of(namespace, service).get(INGRESS)
        return (own or self._mesh.namespaces.get(namespace, {}).get(INGRESS)) == "true"

    def _use(
        self, subject: tuple[str, str, str], own: Mapping[str, Any], traffic: str
    ) -> WaypointUse | None:
        kind, namespace, _ = subject
        of_namespace = self._mesh.namespaces.get(namespace, {})
        labels = own if USE in own else of_namespace
        name = labels.get(USE)
        if not name or name == "none":
            return None
        if labels is of_namespace:
            kind, subject = "Namespace", ("Namespace", "", namespace)
        home = str(labels.get(f"{USE}-namespace") or namespace)
        gateway = self._gateways.get((home, str(name)))
        pods = tuple(self._mesh.matching({GATEWAY_NAME: name}, home))
        wanted = str(gateway.labels.get(FOR, "service")) if gateway is not None else ""
        state, problem = self._state(home, str(name), gateway, pods, namespace)
        if state == "ready" and traffic != "any" and wanted not in (traffic, "all"):
            state = "other traffic"
            sent = "what is sent to Services" if traffic == "service" else "what is sent to pods"
            problem = f"its label {FOR}={wanted} leaves out {sent}"
        return WaypointUse(
            home, str(name), f"{kind} label {USE}={name}", subject, state, problem, gateway, pods,
            wanted,
        )  # fmt: skip

    def _state(
        self,
        home: str,
        name: str,
        gateway: ConfigObject | None,
        pods: tuple[Pod, ...],
        namespace: str,
    ) -> tuple[str, str]:
        if gateway is None:
            return "missing", f"there is no Gateway {home}/{name}"
        class_name = str(dig(gateway.spec, "gatewayClassName", default=""))
        if class_name != CLASS and self._controllers.get(class_name, _CONTROLLER) != _CONTROLLER:
            return "not a waypoint", f"Gateway {home}/{name} has the class {class_name}"
        if home != namespace and not self._allows(gateway, namespace):
            return (
                "forbidden",
                f"no listener of Gateway {home}/{name} allows the namespace {namespace}",
            )
        for condition in self._conditions[gateway.index] or ():
            own = condition.get("type") in ("Accepted", "Programmed") and "about" not in condition
            if own and condition.get("status") == "False":
                words = condition.get("message") or condition.get("reason") or ""
                return "not ready", f"Gateway {home}/{name} is not {_done(condition)}: {words}"
        if not any(pod.ready for pod in pods):
            count = "it has no pod" if not pods else f"none of its {len(pods)} pods is ready"
            return "not ready", f"Gateway {home}/{name} does not run: {count}"
        return "ready", ""

    def _allows(self, gateway: ConfigObject, namespace: str) -> bool:
        for listener in items(gateway.spec, "listeners"):
            allowed = dig(listener, "allowedRoutes", "namespaces", default={})
            scope = dig(allowed, "from", default="Same")
            labels = self._mesh.namespaces.get(namespace, {})
            wanted = dig(allowed, "selector", "matchLabels", default={})
            if scope == "All":
                return True
            # Expressions are not read: who may pass by them is not called forbidden.
            if scope == "Selector" and (
                wanted.items() <= labels.items() or dig(allowed, "selector", "matchExpressions")
            ):
                return True
        return False


def _done(condition: Mapping[str, Any]) -> str:
    return str(condition.get("type", "")).lower()
