"""The trace ``objects``: every Kubernetes and Istio object as it is written, and what refers to it.

Checks of objects, before or after they are applied, need what tables leave out: whole pod
templates, selectors of webhooks, the very fields of a spec. The rules by which Istio's own analysis
looks things up stand here once: which Service or ServiceEntry a host is, and which namespaces see
it; which pods are in the mesh.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from meshnb.sources import Manifests
from meshnb.tables import Facts
from meshnb.tables.base import Json, Listed, dig, items, mapping, records
from meshnb.tables.mesh_settings import parse_yaml
from meshnb.tables.metadata import annotations_of, labels_of
from meshnb.traces.base import Trace
from meshnb.traces.mesh import CLUSTER_DOMAIN, plain

ISTIO, GATEWAY_API = "networking.istio.io", "gateway.networking.k8s.io"
_SECURITY = "security.istio.io"
_ADMISSION = "admissionregistration.k8s.io"

#: Group and resource of the kinds that are looked at; an empty group is the core's.
_KINDS: Mapping[tuple[str, str], tuple[str, str]] = {
    ("Namespace", ""): ("v1", "namespaces"),
    ("Node", ""): ("v1", "nodes"),
    ("Pod", ""): ("v1", "pods"),
    ("Service", ""): ("v1", "services"),
    ("ConfigMap", ""): ("v1", "configmaps"),
    ("Secret", ""): ("v1", "secrets"),
    ("Deployment", "apps"): ("apps", "deployments"),
    ("StatefulSet", "apps"): ("apps", "statefulsets"),
    ("DaemonSet", "apps"): ("apps", "daemonsets"),
    ("MutatingWebhookConfiguration", _ADMISSION): (_ADMISSION, "mutatingwebhookconfigurations"),
    ("ValidatingWebhookConfiguration", _ADMISSION): (
        _ADMISSION,
        "validatingwebhookconfigurations",
    ),
    ("CustomResourceDefinition", "apiextensions.k8s.io"): (
        "apiextensions.k8s.io",
        "customresourcedefinitions",
    ),
    ("VirtualService", ISTIO): (ISTIO, "virtualservices"),
    ("DestinationRule", ISTIO): (ISTIO, "destinationrules"),
    ("Gateway", ISTIO): (ISTIO, "gateways"),
    ("ServiceEntry", ISTIO): (ISTIO, "serviceentries"),
    ("Sidecar", ISTIO): (ISTIO, "sidecars"),
    ("WorkloadEntry", ISTIO): (ISTIO, "workloadentries"),
    ("WorkloadGroup", ISTIO): (ISTIO, "workloadgroups"),
    ("EnvoyFilter", ISTIO): (ISTIO, "envoyfilters"),
    ("ProxyConfig", ISTIO): (ISTIO, "proxyconfigs"),
    ("AuthorizationPolicy", _SECURITY): (_SECURITY, "authorizationpolicies"),
    ("PeerAuthentication", _SECURITY): (_SECURITY, "peerauthentications"),
    ("RequestAuthentication", _SECURITY): (_SECURITY, "requestauthentications"),
    ("Telemetry", "telemetry.istio.io"): ("telemetry.istio.io", "telemetries"),
    ("WasmPlugin", "extensions.istio.io"): ("extensions.istio.io", "wasmplugins"),
    ("Gateway", GATEWAY_API): (GATEWAY_API, "gateways"),
    ("HTTPRoute", GATEWAY_API): (GATEWAY_API, "httproutes"),
    ("GRPCRoute", GATEWAY_API): (GATEWAY_API, "grpcroutes"),
}

#: Namespaces of Kubernetes itself; Istio injects nothing there, and its analysis leaves them out.
IGNORED_NAMESPACES = frozenset({"kube-system", "kube-public", "kube-node-lease"}) | {
    "local-path-storage"
}

#: Where istiod is, and policies for the whole mesh, when no setting and no istiod says otherwise.
DEFAULT_ROOT = "istio-system"

#: An object is seen from everywhere, or only from its own namespace.
EVERYWHERE, OWN = "*", "."


@dataclass(frozen=True, slots=True, eq=False)
class Object:
    """One Kubernetes object, as it is written."""

    kind: str
    group: str
    namespace: str
    name: str
    body: Json
    labels: Mapping[str, Any] = field(init=False, repr=False)
    annotations: Mapping[str, Any] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Read the labels and annotations once: they are compared often."""
        object.__setattr__(self, "labels", labels_of(self.body))
        object.__setattr__(self, "annotations", annotations_of(self.body))

    def __str__(self) -> str:
        """Return kind, namespace and name."""
        return f"{self.kind} {self.title}"

    @property
    def title(self) -> str:
        """Namespace and name, or the name of what is in no namespace."""
        return f"{self.namespace}/{self.name}" if self.namespace else self.name

    @property
    def spec(self) -> Mapping[str, Any]:
        """Its spec."""
        return mapping(self.body, "spec")


@dataclass(frozen=True, slots=True, eq=False)
class Host:
    """What a host name stands for: a Service, or one of a ServiceEntry's hosts."""

    name: str
    #: a namespace that sees it, or EVERYWHERE
    scope: str
    owner: Object
    ports: tuple[int, ...]
    #: labels of the pods behind it; empty when nothing says
    selector: Mapping[str, Any]


@dataclass(slots=True)
class Objects:
    """The objects of one source, looked up."""

    by_kind: Mapping[tuple[str, str], tuple[Object, ...]]
    settings: Mapping[str, str]
    networks: Mapping[str, Any]
    #: whether they stand in files: nothing runs, and each has a line
    in_files: bool
    _by_name: Mapping[tuple[str, str, str, str], Object] = field(init=False)
    #: the pods; in files without any, those that workloads there will have
    _pods: tuple[Object, ...] = field(init=False)
    _pods_of: Mapping[str, list[Object]] = field(init=False)
    _hosts: tuple[Host, ...] | None = field(init=False, default=None)
    _by_host: dict[tuple[str, str], Host] = field(init=False, default_factory=dict)
    _wild: tuple[Host, ...] = field(init=False, default=())

    def __post_init__(self) -> None:
        """Index the objects by name."""
        self._by_name = {
            (item.kind, item.group, item.namespace, item.name): item
            for listed in self.by_kind.values()
            for item in listed
        }
        self._pods = self.of("Pod") or (tuple(self._planned()) if self.in_files else ())
        pods_of: dict[str, list[Object]] = {}
        for pod in self._pods:
            pods_of.setdefault(pod.namespace, []).append(pod)
        self._pods_of = pods_of

    def _planned(self) -> Iterator[Object]:
        for kind in ("Deployment", "StatefulSet", "DaemonSet"):
            for workload in self.of(kind):
                template = mapping(workload.spec, "template")
                yield Object("Pod", "", workload.namespace, workload.name, template)

    def of(self, kind: str, group: str = "") -> tuple[Object, ...]:
        """Return the objects of a kind; ``group`` tells the two kinds of Gateway apart."""
        return self.by_kind.get((kind, group or _group(kind)), ())

    def find(self, kind: str, namespace: str, name: str, group: str = "") -> Object | None:
        """Return one object, None when it is not there."""
        return self._by_name.get((kind, group or _group(kind), namespace, name))

    @property
    def pods_known(self) -> bool:
        """Whether it is known which pods there are: files need not have them or their workloads."""
        return not self.in_files or bool(self._pods)

    @property
    def control_planes(self) -> frozenset[str]:
        """Namespaces that hold an istiod; the usual one when none is seen."""
        found = {
            item.namespace
            for kind in ("Deployment", "Pod")
            for item in self.of(kind)
            if item.labels.get("app") == "istiod"
        }
        return frozenset(found or {DEFAULT_ROOT})

    @property
    def root_namespace(self) -> str:
        """Where policies hold for the whole mesh: the setting, or where istiod is."""
        return self.settings.get("rootNamespace") or min(self.control_planes)

    @property
    def domain(self) -> str:
        """The DNS domain of the cluster."""
        return self.settings.get("clusterDomain") or CLUSTER_DOMAIN

    def fqdn(self, host: str, namespace: str) -> str:
        """Return a host in full: a name without a dot is a Service of the namespace."""
        if host.startswith("*") or "." in host or not host:
            return host
        return f"{host}.{namespace}.svc.{self.domain}"

    def selected(self, labels: Mapping[str, Any], namespace: str | None = None) -> list[Object]:
        """Return the pods that carry all these labels, in one namespace or anywhere.

        In files without pods it is the pods that the workloads in them will have.
        """
        among = self._pods if namespace is None else self._pods_of.get(namespace, ())
        return [pod for pod in among if labels.items() <= pod.labels.items()]

    @property
    def hosts(self) -> tuple[Host, ...]:
        """Every host that a Service or a ServiceEntry defines, once for each scope."""
        if self._hosts is None:
            self._hosts = tuple(self._all_hosts())
            self._by_host = {(host.scope, host.name): host for host in self._hosts}
            self._wild = tuple(host for host in self._hosts if host.name.startswith("*"))
        return self._hosts

    def _all_hosts(self) -> Iterator[Host]:
        for entry in self.of("ServiceEntry"):
            selector = mapping(entry.spec, "workloadSelector", "labels")
            for host in texts(entry.spec, "hosts"):
                for scope in scopes(texts(entry.spec, "exportTo"), entry.namespace):
                    name = self.fqdn(host, entry.namespace)
                    yield Host(name, scope, entry, numbers(entry.spec, "ports", "number"), selector)
        for service in self.of("Service"):
            exported = str(service.annotations.get("networking.istio.io/exportTo", ""))
            parts = [part.strip() for part in exported.split(",") if part.strip()]
            name = f"{service.name}.{service.namespace}.svc.{self.domain}"
            for scope in scopes(parts, service.namespace):
                ports = numbers(service.spec, "ports", "port")
                yield Host(name, scope, service, ports, mapping(service.spec, "selector"))

    def lookup(self, host: str, namespace: str, exported: Iterable[str] = ()) -> Host | None:
        """Return what a host is to an object of a namespace; None when nothing there defines it.

        What all namespaces see comes first, then what the object's own sees, or those that it is
        exported to, then wildcards.
        """
        assert self.hosts is not None  # made on first use, with the index
        full = self.fqdn(host, namespace)
        seen_from = [namespace if one == OWN else one for one in exported] or [namespace]
        for scope in (EVERYWHERE, *seen_from):
            found = self._by_host.get((scope, full))
            if found is not None:
                return found
        for wild in self._wild:
            if wild.scope in (EVERYWHERE, namespace) and host.endswith(wild.name[1:]):
                return wild
        return None

    def in_mesh(self, workload: Object) -> bool:
        """Whether a Pod, or the pods of a Deployment, have a sidecar, or would be given one."""
        template = workload.body if workload.kind == "Pod" else mapping(workload.spec, "template")
        containers = items(template, "spec", "containers") + items(
            template, "spec", "initContainers"
        )
        if any(dig(one, "name") == "istio-proxy" and dig(one, "image") for one in containers):
            return True
        for given in (labels_of(template), annotations_of(template)):
            if "sidecar.istio.io/inject" in given:
                return bool(given["sidecar.istio.io/inject"] == "true")
        namespace = self.find("Namespace", "", workload.namespace)
        return namespace is not None and namespace.labels.get("istio-injection") == "enabled"


def ambient_pod(pod: Object) -> bool:
    """Whether ztunnel carries a pod's traffic."""
    return pod.annotations.get("ambient.istio.io/redirection") == "enabled"


def ambient_namespace(namespace: Object | None) -> bool:
    """Whether a namespace is in ambient mode; a label for sidecars wins over that."""
    if namespace is None or namespace.labels.get("istio-injection") == "enabled":
        return False
    return (
        not namespace.labels.get("istio.io/rev")
        and namespace.labels.get("istio.io/dataplane-mode") == "ambient"
    )


def scopes(exported: Iterable[str], namespace: str) -> list[str]:
    """Return which namespaces see an object that is exported so: EVERYWHERE, or their names."""
    given = list(exported)
    if not given or EVERYWHERE in given:
        return [EVERYWHERE]
    return sorted({namespace if one == OWN else one for one in given})


def texts(document: Json, *path: str | int) -> list[str]:
    """Return the texts of the list at a path; what is no text is left out."""
    return [one for one in items(document, *path) if isinstance(one, str)]


def numbers(document: Json, path: str, name: str) -> tuple[int, ...]:
    """Return a number of each object in the list at a path; 0 where there is none."""
    found = (dig(one, name) for one in items(document, path))
    return tuple(one if isinstance(one, int) else 0 for one in found)


def _group(kind: str) -> str:
    return _GROUPS.get(kind, "")


#: Of two kinds of one name the first is meant: Istio's.
_GROUPS: Mapping[str, str] = dict(reversed(tuple(_KINDS)))


def _read(facts: Facts, kind: str, group: str) -> Iterator[Object]:
    api, resource = _KINDS[kind, group]
    seen: set[tuple[str, str]] = set()
    for _, body in facts.objects(Listed(api, resource, optional=True)):
        name, namespace = dig(body, "metadata", "name"), dig(body, "metadata", "namespace")
        if not isinstance(name, str):
            continue
        title = (namespace if isinstance(namespace, str) else "", name)
        # One object can be listed in two versions.
        if title not in seen and (kind != "Namespace" or name not in IGNORED_NAMESPACES):
            seen.add(title)
            if title[0] not in IGNORED_NAMESPACES:
                yield Object(kind, group, *title, body)


def _held(facts: Facts, kind: str, group: str) -> Iterator[Object]:
    """Yield the objects of a kind that only istiod was asked for."""
    config = facts["istio_config"]
    chosen = (config["kind"] == kind) & (config["group"] == group)
    for row in records(config.loc[chosen, ["namespace", "name", "labels", "annotations", "spec"]]):
        namespace, name = row["namespace"] or "", row["name"] or ""
        body = {
            "metadata": {
                "name": name,
                "namespace": namespace,
                "labels": row["labels"],
                "annotations": row["annotations"],
            },
            "spec": row["spec"],
        }
        if namespace not in IGNORED_NAMESPACES:
            yield Object(kind, group, str(namespace), str(name), body)


def _make(facts: Facts) -> Objects:
    asked = tuple(facts.source.questions())
    found: dict[tuple[str, str], tuple[Object, ...]] = {}
    for (kind, group), (api, resource) in _KINDS.items():
        listed = any(Listed(api, resource).matches(question) for question in asked)
        istio = group.endswith(("istio.io", GATEWAY_API))
        read = _held if istio and not listed else _read
        found[kind, group] = tuple(read(facts, kind, group))
    settings = {
        str(setting): str(value)
        for setting, value in zip(
            facts["mesh_settings"]["setting"], facts["mesh_settings"]["value"], strict=True
        )
        if plain(setting) is not None and plain(value) is not None
    }
    return Objects(
        by_kind=found,
        settings=settings,
        networks=_networks(found["ConfigMap", ""]),
        in_files=isinstance(facts.source, Manifests),
    )


def _networks(config_maps: Iterable[Object]) -> Mapping[str, Any]:
    """Return the networks of the mesh by name, as istiod's ConfigMap has them."""
    for config_map in config_maps:
        text = dig(config_map.body, "data", "meshNetworks")
        if config_map.name.startswith("istio") and isinstance(text, str):
            try:
                found = mapping(parse_yaml(text), "networks")
            except ValueError:
                continue
            if found:
                return found
    return {}


OBJECTS = Trace(
    name="objects",
    title="Every object as it is written, and what its references mean.",
    reads=(
        "istio_config",
        "services",
        "pods",
        "namespaces",
        "webhooks",
        "workloads",
        "mesh_settings",
    ),
    make=_make,
)
