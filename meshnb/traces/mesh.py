"""The trace ``mesh``: what a name, an address or a policy means in this mesh.

Istio's rules for short host names, effective PeerAuthentication and root namespaces stand here
once, so that each check reads the same mesh.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import pandas as pd

from meshnb.tables import Facts
from meshnb.tables.base import Json, dig, items, mapping, records
from meshnb.traces.base import Trace

#: Host of every Service of a cluster whose DNS domain is the default.
CLUSTER_DOMAIN = "cluster.local"


@dataclass(frozen=True, slots=True, eq=False)
class ConfigObject:
    """One Istio or Gateway API object, as the table ``istio_config`` has it."""

    kind: str
    group: str
    namespace: str
    name: str
    created: Any
    changed: Any
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    spec: Mapping[str, Any]
    index: int

    def __str__(self) -> str:
        """Return kind, namespace and name."""
        return f"{self.kind} {self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True, eq=False)
class ServicePort:
    """One port of a Service, as the table ``services`` has it."""

    namespace: str
    service: str
    host: str
    port: int | None
    port_name: str
    protocol: str
    target_port: str
    cluster_ip: str
    selector: Mapping[str, str]
    headless: bool
    external_name: str
    changed: Any


@dataclass(frozen=True, slots=True, eq=False)
class Pod:
    """One pod, as the table ``pods`` has it."""

    namespace: str
    pod: str
    address: str
    phase: str
    ready: bool
    mesh: str
    proxy: str
    workload_kind: str
    workload: str
    service_account: str
    host_network: bool
    created: Any
    deleted: Any
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    #: number of each container port that has a name
    named_ports: Mapping[str, int]
    not_ready_reason: str

    @property
    def running(self) -> bool:
        """Whether the pod is meant to run: neither finished nor being deleted."""
        return self.phase not in ("Succeeded", "Failed") and self.deleted is None

    @property
    def in_mesh(self) -> bool:
        """Whether a proxy of the mesh stands in front of the pod."""
        return self.mesh in ("sidecar", "gateway", "waypoint", "ambient")

    @property
    def identity(self) -> str:
        """The part of the SPIFFE identity after the trust domain."""
        return f"ns/{self.namespace}/sa/{self.service_account or 'default'}"


_None = TypeVar("_None")


class Look(NamedTuple):
    """Something that was looked at: a table, or of ``istio_config`` the objects of one kind."""

    table: str
    kind: str = ""
    #: the end of the kind's API group
    group: str = ""


@dataclass(slots=True)
class Mesh:
    """Names, addresses and policies of one mesh, looked up.

    It notes what is looked at, so that nobody misses what was not asked for but is not needed.
    """

    _objects: tuple[ConfigObject, ...]
    _services: tuple[ServicePort, ...]
    _pods: tuple[Pod, ...]
    _namespaces: Mapping[str, Mapping[str, str]]
    _settings: Mapping[str, str]
    _control_plane_namespaces: frozenset[str]
    _root_namespace: str
    looks: set[Look] = field(init=False, default_factory=set)
    _hosts: frozenset[str] = field(init=False)
    _by_address: Mapping[str, Pod] = field(init=False)
    _by_proxy: Mapping[str, Pod] = field(init=False)
    _by_host: Mapping[str, tuple[ServicePort, ...]] = field(init=False)
    _by_cluster_ip: Mapping[tuple[str, int | None], ServicePort] = field(init=False)
    _selected: dict[ServicePort, list[Pod]] = field(init=False)

    def __post_init__(self) -> None:
        """Index hosts and addresses."""
        hosts = {service.host for service in self._services}
        for entry in self._objects:
            if entry.kind == "ServiceEntry":
                hosts.update(str(host) for host in items(entry.spec, "hosts"))
        self._hosts = frozenset(hosts)
        self._by_address = {
            pod.address: pod
            for pod in self._pods
            if pod.address and pod.running and not pod.host_network
        }
        self._by_proxy = {pod.proxy: pod for pod in reversed(self._pods) if pod.proxy}
        self._by_cluster_ip = {
            (service.cluster_ip, service.port): service
            for service in reversed(self._services)
            if service.cluster_ip
        }
        by_host: dict[str, tuple[ServicePort, ...]] = {}
        for service in self._services:
            by_host[service.host] = (*by_host.get(service.host, ()), service)
        self._by_host = by_host
        self._selected = {}

    def of(self, kind: str, group: str = "istio.io") -> Iterator[ConfigObject]:
        """Yield the objects of one kind. ``group`` is the end of their API group."""
        self.looks.add(Look("istio_config", kind, group))
        for item in self._objects:
            if item.kind == kind and item.group.endswith(group):
                yield item

    @property
    def services(self) -> tuple[ServicePort, ...]:
        """Every port of every Service."""
        self.looks.add(Look("services"))
        return self._services

    @property
    def pods(self) -> tuple[Pod, ...]:
        """Every pod."""
        self.looks.add(Look("pods"))
        return self._pods

    @property
    def objects(self) -> tuple[ConfigObject, ...]:
        """Every Istio and Gateway API object."""
        self.looks.add(Look("istio_config"))
        return self._objects

    @property
    def namespaces(self) -> Mapping[str, Mapping[str, str]]:
        """The labels of each namespace."""
        self.looks.add(Look("namespaces"))
        return self._namespaces

    @property
    def settings(self) -> Mapping[str, str]:
        """The settings of the mesh, by their dotted names."""
        self.looks.add(Look("mesh_settings"))
        return self._settings

    @property
    def control_plane_namespaces(self) -> frozenset[str]:
        """The namespaces that hold an istiod."""
        self._look_for_control_plane()
        return self._control_plane_namespaces

    @property
    def root_namespace(self) -> str:
        """The namespace whose policies hold for the whole mesh."""
        self.looks.add(Look("mesh_settings"))
        self._look_for_control_plane()
        return self._root_namespace

    def _look_for_control_plane(self) -> None:
        # Its pods tell where it is; only without them its webhooks must.
        if not any(pod.mesh == "istiod" for pod in self.pods):
            self.looks.add(Look("webhooks"))

    def _none_of(self, table: str, none: _None) -> _None:
        """Note that something was not found, which only a whole table can tell."""
        self.looks.add(Look(table))
        return none

    def fqdn(self, host: str, namespace: str) -> str:
        """Return a host in full: a name without a dot is a Service of the object's own namespace.

        Istio's rule (``ResolveShortnameToFQDN``): only names without any dot are completed, and
        neither ``*`` nor an address is a name.
        """
        if "." in host or ":" in host or host == "*" or not host:
            return host
        return f"{host}.{namespace}.svc.{CLUSTER_DOMAIN}"

    def known_host(self, host: str) -> bool:
        """Whether a Service or a ServiceEntry has this host, wildcards included."""
        return host in self._hosts or any(
            known.startswith("*") and host_matches(known, host) for known in self.hosts
        )

    @property
    def hosts(self) -> frozenset[str]:
        """Every host that a Service or a ServiceEntry defines."""
        self.looks.update((Look("services"), Look("istio_config", "ServiceEntry", "istio.io")))
        return self._hosts

    def ports(self, host: str) -> tuple[ServicePort, ...]:
        """Return the ports of the Service with this host; empty when there is none."""
        return self._by_host.get(host) or self._none_of("services", ())

    def pod_at(self, address: str) -> Pod | None:
        """Return the pod with this address, hostNetwork pods left out."""
        return self._by_address.get(address) or self._none_of("pods", None)

    def pod_of(self, proxy: str) -> Pod | None:
        """Return the pod of a proxy, which is called pod.namespace."""
        return self._by_proxy.get(proxy) or self._none_of("pods", None)

    def pods_of(self, proxies: Iterable[str]) -> list[Pod]:
        """Return the pods of these proxies, in the order of the table of pods."""
        wanted = set(proxies)
        return [pod for pod in self.pods if pod.proxy in wanted]

    def workload_pods(self, workload: tuple[str, str]) -> list[Pod]:
        """Return the running pods of a workload, which is a namespace and a name."""
        return [
            pod for pod in self.pods if (pod.namespace, pod.workload) == workload and pod.running
        ]

    def service_at(self, address: str, port: int | None) -> ServicePort | None:
        """Return the Service port with this cluster address and port."""
        return self._by_cluster_ip.get((address, port)) or self._none_of("services", None)

    def selected(self, service: ServicePort) -> list[Pod]:
        """Return the pods that a Service's selector matches; none when it has no selector."""
        if service not in self._selected:
            self._selected[service] = (
                self.matching(service.selector, service.namespace) if service.selector else []
            )
        return self._selected[service]

    def target_port(self, service: ServicePort) -> int | None:
        """Return the container port that a Service port leads to.

        A name is looked up in the pods that the Service selects; None when none of them has it.
        """
        if service.target_port.isdigit():
            return int(service.target_port)
        if not service.target_port:
            return service.port
        pods = (pod.named_ports for pod in self.selected(service))
        return next((ports[name] for ports in pods if (name := service.target_port) in ports), None)

    def matching(self, labels: Mapping[str, Any], namespace: str | None) -> list[Pod]:
        """Return the running pods that carry all these labels, in one namespace or anywhere."""
        return [
            pod
            for pod in self.pods
            if pod.running
            and (namespace is None or pod.namespace == namespace)
            and all(pod.labels.get(key) == value for key, value in labels.items())
        ]

    def workload_selected(self, item: ConfigObject) -> list[Pod]:
        """Return the running pods that an object's workload selector chooses.

        Without a selector: all pods of its namespace, or of the mesh when it lies in the root
        namespace. A ``targetRef`` chooses the pods of the named Gateway or Service.
        """
        references = items(item.spec, "targetRefs") or (
            [item.spec["targetRef"]] if mapping(item.spec, "targetRef") else []
        )
        if references:
            return [
                pod for reference in references for pod in self._target(reference, item.namespace)
            ]
        labels = mapping(item.spec, "selector", "matchLabels") or mapping(
            item.spec, "workloadSelector", "labels"
        )
        whole_mesh = item.namespace == self.root_namespace
        return self.matching(labels, None if whole_mesh else item.namespace)

    def _target(self, reference: Json, namespace: str) -> list[Pod]:
        name = dig(reference, "name", default="")
        if dig(reference, "kind") == "Gateway":
            return self.matching({"gateway.networking.k8s.io/gateway-name": name}, namespace)
        ports = self.ports(self.fqdn(str(name), namespace))
        return self.selected(ports[0]) if ports else []

    def mtls_mode(self, pod: Pod, port: int | None) -> tuple[str, ConfigObject | None]:
        """Return the effective mTLS mode of a pod's port, and the PeerAuthentication that sets it.

        STRICT, PERMISSIVE or DISABLE. Workload policies come before the namespace's, the
        namespace's before the mesh's; of one scope only the oldest counts; UNSET inherits;
        port-level settings are by container port and need a selector (Istio:
        reference/config/security/peer_authentication). In the root namespace a policy with a
        selector has no effect at all (``ComposePeerAuthentication`` of Istio 1.30).
        """
        scopes: list[list[ConfigObject]] = [[], [], []]
        for policy in self.of("PeerAuthentication"):
            labels = mapping(policy.spec, "selector", "matchLabels")
            in_root = policy.namespace == self.root_namespace
            if not in_root and policy.namespace != pod.namespace:
                continue
            if not labels:
                scopes[2 if in_root else 1].append(policy)
            elif not in_root and labels.items() <= pod.labels.items():
                scopes[0].append(policy)
        for scope in scopes:
            for policy in oldest(scope)[:1]:
                level = None
                if scope is scopes[0]:
                    level = dig(policy.spec, "portLevelMtls", str(port), "mode")
                mode = level if level not in (None, "UNSET") else dig(policy.spec, "mtls", "mode")
                if mode in ("STRICT", "PERMISSIVE", "DISABLE"):
                    return str(mode), policy
        return "PERMISSIVE", None


def host_matches(pattern: str, host: str) -> bool:
    """Whether a host is covered by another, which may be ``*`` or begin with ``*.``."""
    if pattern == "*":
        return True
    if pattern.startswith("*"):
        return host.endswith(pattern[1:]) and host != pattern[1:]
    return pattern == host


def hosts_overlap(one: str, other: str) -> bool:
    """Whether two hosts, each of which may have a wildcard, have a host in common."""
    if one.startswith("*") and other.startswith("*"):
        return one.endswith(other[1:]) or other.endswith(one[1:])
    return host_matches(one, other) or host_matches(other, one)


def _age(item: ConfigObject) -> tuple[Any, str, str]:
    return (item.created, item.namespace, item.name)


def oldest(objects: Iterable[ConfigObject]) -> list[ConfigObject]:
    """Return objects in Istio's order of precedence: the oldest first, then by name."""
    return sorted(objects, key=_age)


def plain(value: Any) -> Any:
    """Return None for pandas' NA and NaT, and any other value as it is."""
    return (
        None
        if value is None or (not isinstance(value, dict | tuple | list) and pd.isna(value))
        else value
    )


def _make(facts: Facts) -> Mesh:
    objects = tuple(
        ConfigObject(
            kind=row["kind"] or "",
            group=row["group"] or "",
            namespace=row["namespace"] or "",
            name=row["name"] or "",
            created=row["created"] or facts.now,
            changed=row["changed"] or row["created"] or facts.now,
            labels=row["labels"] or {},
            annotations=row["annotations"] or {},
            spec=row["spec"] if isinstance(row["spec"], dict) else {},
            index=index,
        )
        for index, row in enumerate(records(facts["istio_config"]))
    )
    services = tuple(
        ServicePort(
            namespace=row["namespace"] or "",
            service=row["service"] or "",
            host=row["host"] or "",
            port=row["port"],
            port_name=row["port_name"] or "",
            protocol=row["protocol"] or "",
            target_port=row["target_port"] or "",
            cluster_ip=row["cluster_ip"] or "",
            selector=row["selector"] or {},
            headless=bool(row["headless"]),
            external_name=row["external_name"] or "",
            changed=row["changed"],
        )
        for row in records(facts["services"])
    )
    ended = facts.ended()
    pods = tuple(
        Pod(
            namespace=row["namespace"] or "",
            pod=row["pod"] or "",
            address=row["address"] or "",
            phase="Succeeded" if (row["namespace"], row["pod"]) in ended else row["phase"] or "",
            ready=bool(row["ready"]),
            mesh=row["mesh"] or "none",
            proxy=row["proxy"] or "",
            workload_kind=row["workload_kind"] or "Pod",
            workload=row["workload"] or row["pod"] or "",
            service_account=row["service_account"] or "",
            host_network=bool(row["host_network"]),
            created=row["created"],
            deleted=row["deleted"],
            labels=row["labels"] or {},
            annotations=row["annotations"] or {},
            named_ports=row["named_ports"] or {},
            not_ready_reason=row["not_ready_reason"] or "",
        )
        for row in records(facts["pods"])
    )
    settings = {
        row["setting"]: row["value"] or ""
        for row in records(facts["mesh_settings"])
        if row["setting"]
    }
    control_plane = frozenset(pod.namespace for pod in pods if pod.mesh == "istiod") or frozenset(
        row["service_namespace"]
        for row in records(facts["webhooks"])
        if row["purpose"] == "injection" and row["service_namespace"]
    )
    return Mesh(
        _objects=objects,
        _services=services,
        _pods=pods,
        _namespaces={row["namespace"]: row["labels"] or {} for row in records(facts["namespaces"])},
        _settings=settings,
        _control_plane_namespaces=control_plane,
        _root_namespace=settings.get("rootNamespace") or next(iter(sorted(control_plane)), ""),
    )


MESH = Trace(
    name="mesh",
    title="What a host name, an address or a policy means in this mesh.",
    reads=("istio_config", "services", "pods", "namespaces", "mesh_settings", "webhooks"),
    make=_make,
)
