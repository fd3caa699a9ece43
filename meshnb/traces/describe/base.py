"""What a description of a pod or a Service says: values."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from meshnb.traces.mesh import ConfigObject, Pod


@dataclass(frozen=True, slots=True)
class Acting:
    """One object, whether it acts, and why or why not."""

    item: ConfigObject
    acts: bool
    why: str

    def to_json(self) -> dict[str, Any]:
        """Return it as an object."""
        return {
            "kind": self.item.kind,
            "namespace": self.item.namespace,
            "name": self.item.name,
            "acts": self.acts,
            "why": self.why,
        }


@dataclass(frozen=True, slots=True)
class RuleFor(Acting):
    """A DestinationRule, which acts in the proxies of clients."""

    host: str
    matching_subsets: tuple[str, ...]
    other_subsets: tuple[str, ...]
    #: what its traffic policy sets, in words; empty without one
    traffic_policy: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return it as an object."""
        return Acting.to_json(self) | {
            "host": self.host,
            "matching_subsets": list(self.matching_subsets),
            "other_subsets": list(self.other_subsets),
            "traffic_policy": list(self.traffic_policy),
        }


@dataclass(frozen=True, slots=True)
class RouteTo:
    """One destination of a route. ``path`` is the place in the object."""

    path: str
    match: str
    host: str
    subset: str
    weight: int | None
    reaches: bool
    #: why it does not lead here; that it is a copy, for a mirror
    why: str

    def to_json(self) -> dict[str, Any]:
        """Return it as an object."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class RoutesOf(Acting):
    """A VirtualService or a route of the Gateway API, and where its routes lead."""

    routes: tuple[RouteTo, ...]
    #: the Gateways through which it is in force
    gateways: tuple[ConfigObject, ...]

    def to_json(self) -> dict[str, Any]:
        """Return it as an object."""
        return Acting.to_json(self) | {
            "routes": [route.to_json() for route in self.routes],
            "gateways": [str(gateway) for gateway in self.gateways],
        }


@dataclass(frozen=True, slots=True)
class PortOf:
    """One port of a Service, as the pod sees it."""

    port: int | None
    name: str
    #: what Istio takes it for, as the table ``services`` has it
    protocol: str
    target_port: str
    #: the number of the port in the pod; None when the pod has no port of that name
    pod_port: int | None

    def to_json(self) -> dict[str, Any]:
        """Return it as an object."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class ServiceOf:
    """A Service that selects a pod."""

    namespace: str
    service: str
    host: str
    ports: tuple[PortOf, ...]

    def to_json(self) -> dict[str, Any]:
        """Return it as an object."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class SecuredPort:
    """The mutual TLS that is in force on a port of a pod; port None is every other one."""

    pod: str
    port: int | None
    mode: str
    #: the PeerAuthentication that sets it; None for Istio's own default
    policy: ConfigObject | None

    def to_json(self) -> dict[str, Any]:
        """Return it as an object."""
        policy = str(self.policy) if self.policy is not None else None
        return {"pod": self.pod, "port": self.port, "mode": self.mode, "policy": policy}


@dataclass(frozen=True, slots=True)
class Waypoint:
    """The waypoint that is asked for: by which label, and whether it is there."""

    namespace: str
    name: str
    label: str
    exists: bool
    pods: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return it as an object."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Injection:
    """How a pod came to its part in the mesh; see the table ``injection``."""

    revision: str
    injected: bool
    wanted: bool | None
    reason: str
    #: the namespace or pod label that asks for ambient mode; empty without one
    ambient_by: str
    #: how ztunnel says that it reaches the pod: HBONE or TCP; empty when no ztunnel says
    ztunnel_protocol: str
    waypoint: Waypoint | None

    def to_json(self) -> dict[str, Any]:
        """Return it as an object."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class PodDescription:
    """What acts on a pod and what does not, and what is remarkable about the pod itself."""

    pod: Pod
    #: ports that the containers declare, each with its container
    ports: tuple[tuple[int, str], ...]
    injection: Injection
    #: application containers that run as the proxy's own user, so that the mesh misses them
    as_proxy_user: tuple[str, ...]
    not_ready: tuple[str, ...]
    #: ``app`` and ``version``, where the pod has no label for it
    missing_labels: tuple[str, ...]
    services: tuple[ServiceOf, ...]
    secured: tuple[SecuredPort, ...]
    objects: tuple[Acting, ...]

    @property
    def acting(self) -> tuple[Acting, ...]:
        """The objects that act."""
        return tuple(one for one in self.objects if one.acts)

    def to_json(self) -> dict[str, Any]:
        """Return the description as an object."""
        return {
            "kind": "Pod",
            "namespace": self.pod.namespace,
            "name": self.pod.pod,
            "mesh": self.pod.mesh,
            "phase": self.pod.phase,
            "ports": [{"port": port, "container": name} for port, name in self.ports],
            "injection": self.injection.to_json(),
            "as_proxy_user": list(self.as_proxy_user),
            "not_ready": list(self.not_ready),
            "missing_labels": list(self.missing_labels),
            "services": [service.to_json() for service in self.services],
            "mtls": [port.to_json() for port in self.secured],
            "objects": [one.to_json() for one in self.objects],
        }


@dataclass(frozen=True, slots=True)
class ServiceDescription:
    """What acts on requests to a Service and on the pods behind it, and what does not."""

    service: ServiceOf
    #: the running pods that it selects
    pods: tuple[Pod, ...]
    waypoint: Waypoint | None
    secured: tuple[SecuredPort, ...]
    objects: tuple[Acting, ...]

    @property
    def acting(self) -> tuple[Acting, ...]:
        """The objects that act."""
        return tuple(one for one in self.objects if one.acts)

    def to_json(self) -> dict[str, Any]:
        """Return the description as an object."""
        return {
            "kind": "Service",
            "namespace": self.service.namespace,
            "name": self.service.service,
            "ports": [port.to_json() for port in self.service.ports],
            "pods": [
                {"namespace": p.namespace, "pod": p.pod, "mesh": p.mesh, "ready": p.ready}
                for p in self.pods
            ],
            "waypoint": self.waypoint.to_json() if self.waypoint is not None else None,
            "mtls": [port.to_json() for port in self.secured],
            "objects": [one.to_json() for one in self.objects],
        }
