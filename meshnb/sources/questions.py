"""Which questions a live mesh is asked, from what its API server lists.

The lists stand here whether a cluster has the resources or not: one that it does not know is
answered with 404, which says more than silence. The pages are those of Envoy's admin interface
(https://www.envoyproxy.io/docs/envoy/latest/operations/admin), of pilot-agent, of ztunnel, of
istio-cni and of istiod from Istio 1.20 on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from meshnb.sources.base import (
    HttpQuestion,
    ListQuestion,
    LogQuestion,
    ProbeQuestion,
    Question,
)
from meshnb.sources.scope import KUBERNETES_NAMESPACES, Pod

#: Group and the version to ask where the API server does not say; then its resources.
LISTS: Mapping[str, str] = {
    "v1": (
        "configmaps endpoints events limitranges namespaces nodes persistentvolumeclaims "
        "persistentvolumes pods podtemplates replicationcontrollers resourcequotas secrets "
        "serviceaccounts services"
    ),
    "admissionregistration.k8s.io/v1": (
        "mutatingadmissionpolicies mutatingadmissionpolicybindings mutatingwebhookconfigurations "
        "validatingadmissionpolicies validatingadmissionpolicybindings "
        "validatingwebhookconfigurations"
    ),
    "apiextensions.k8s.io/v1": "customresourcedefinitions",
    "apps/v1": "daemonsets deployments replicasets statefulsets",
    "autoscaling/v2": "horizontalpodautoscalers",
    "batch/v1": "cronjobs jobs",
    "certificates.k8s.io/v1": "certificatesigningrequests",
    "coordination.k8s.io/v1": "leases",
    "discovery.k8s.io/v1": "endpointslices",
    "extensions.istio.io/v1alpha1": "trafficextensions wasmplugins",
    "gateway.networking.k8s.io/v1": (
        "backendtlspolicies gatewayclasses gateways grpcroutes httproutes listenersets "
        "referencegrants tcproutes tlsroutes"
    ),
    "networking.istio.io/v1": (
        "destinationrules gateways serviceentries sidecars virtualservices workloadentries "
        "workloadgroups"
    ),
    "networking.istio.io/v1alpha3": "envoyfilters",
    "networking.istio.io/v1beta1": "proxyconfigs",
    "networking.k8s.io/v1": "ingressclasses ingresses ipaddresses networkpolicies servicecidrs",
    "node.k8s.io/v1": "runtimeclasses",
    "policy/v1": "poddisruptionbudgets",
    "resource.k8s.io/v1": "resourceclaims resourceclaimtemplates resourceslices",
    "security.istio.io/v1": "authorizationpolicies peerauthentications requestauthentications",
    "storage.k8s.io/v1": (
        "csidrivers csinodes csistoragecapacities storageclasses volumeattachments"
    ),
    "telemetry.istio.io/v1": "telemetries",
}
#: Of these groups everything is listed that the API server knows.
WHOLE_GROUPS = (".istio.io", "gateway.networking.k8s.io", "gateway.networking.x-k8s.io")

_ENVOY_PAGES = (
    (
        15000,
        (
            "/certs",
            "/clusters?format=json",
            "/config_dump?include_eds",
            "/init_dump",
            "/listeners?format=json",
            "/ready",
            "/server_info",
            "/stats?usedonly",
        ),
    ),
    (15020, ("/healthz/ready", "/metrics")),
    (15021, ("/healthz/ready",)),
)
_ZTUNNEL_PAGES = (
    (15000, ("/config_dump",)),
    (15020, ("/metrics",)),
    (15021, ("/healthz/ready",)),
)
_CNI_PAGES = ((8000, ("/readyz",)), (15014, ("/metrics",)))
_ISTIOD_PAGES = (
    (8080, ("/ready",)),
    (
        15014,
        (
            "/debug/adsz",
            "/debug/ambientz",
            "/debug/authorizationz",
            "/debug/clusterz",
            "/debug/configz",
            "/debug/connections",
            "/debug/endpointz",
            "/debug/instancesz",
            "/debug/list",
            "/debug/mesh",
            "/debug/networkz",
            "/debug/push_status",
            "/debug/registryz",
            "/debug/syncz",
            "/metrics",
            "/version",
        ),
    ),
)
_ISTIOD_PROBES = (
    (8080, "tcp"),
    (9876, "tcp"),
    (15010, "h2c"),
    (15012, "tls"),
    (15014, "tcp"),
    (15017, "tls"),
)
_ENVOY_PROBES = tuple((port, "tcp") for port in (15000, 15001, 15006, 15020, 15021, 15090))
_ZTUNNEL_PROBES = tuple((port, "tcp") for port in (15000, 15020, 15021))

#: Part in the mesh: pages, and probes.
_ASKED: Mapping[str, tuple[Any, Any]] = {
    "istiod": (_ISTIOD_PAGES, _ISTIOD_PROBES),
    "ztunnel": (_ZTUNNEL_PAGES, _ZTUNNEL_PROBES),
    "cni": (_CNI_PAGES, ()),
    "proxy": (_ENVOY_PAGES, _ENVOY_PROBES),
    "none": ((), ()),
}


def list_questions(known: Mapping[tuple[str, str], str]) -> Iterator[ListQuestion]:
    """Yield what is listed; ``known`` says for a group and a resource which version to ask."""
    asked: dict[tuple[str, str], str] = {}
    for api_version, resources in LISTS.items():
        group = group_of(api_version)
        for resource in resources.split():
            asked[group, resource] = known.get((group, resource), api_version)
    asked |= {place: version for place, version in known.items() if place[0].endswith(WHOLE_GROUPS)}
    for (_, resource), api_version in sorted(asked.items()):
        yield ListQuestion(api_version, resource)


def group_of(api_version: str) -> str:
    """Return the group of ``group/version``, which is empty for Kubernetes' own first one."""
    return api_version.rpartition("/")[0]


def part_of(pod: Pod) -> str:
    """Return which part a pod has: ``istiod``, ``ztunnel``, ``cni``, ``proxy`` or ``none``.

    ``proxy`` is everything with an Envoy of Istio: sidecars, gateways and waypoints.
    """
    labels = _metadata(pod).get("labels") or {}
    containers = list(_containers(pod))
    names = {one.get("name") for one in containers}
    if labels.get("app") == "istiod" or "discovery" in names:
        return "istiod"
    if labels.get("k8s-app") == "istio-cni-node" or "install-cni" in names:
        return "cni"
    for one in containers:
        if one.get("name") == "istio-proxy":
            ztunnel = labels.get("app") == "ztunnel" or "ztunnel" in (one.get("args") or ())
            return "ztunnel" if ztunnel else "proxy"
    return "none"


def pod_questions(pod: Pod, part: str = "") -> Iterator[Question]:
    """Yield what one pod is asked: pages, ports and logs; by default as :func:`part_of` says."""
    part = part or part_of(pod)
    namespace, name = _metadata(pod).get("namespace"), _metadata(pod).get("name")
    if not isinstance(namespace, str) or not isinstance(name, str):
        return
    pages, probes = _ASKED[part]
    if (pod.get("status") or {}).get("phase") not in ("Succeeded", "Failed"):
        for port, paths in pages:
            for path in paths:
                yield HttpQuestion(namespace, name, port, path)
        for port, protocol in probes:
            yield ProbeQuestion(namespace, name, port, protocol)
    if part != "none" or namespace not in KUBERNETES_NAMESPACES:
        yield from _log_questions(pod, namespace, name)


def _log_questions(pod: Pod, namespace: str, name: str) -> Iterator[Question]:
    status = pod.get("status") or {}
    states = {
        one.get("name"): one
        for kind in ("containerStatuses", "initContainerStatuses")
        for one in status.get(kind) or ()
        if isinstance(one, dict)
    }
    for container in _containers(pod):
        title = container.get("name")
        if not isinstance(title, str):
            continue
        yield LogQuestion(namespace, name, title)
        state = states.get(title) or {}
        if state.get("restartCount") and (state.get("lastState") or {}).get("terminated"):
            yield LogQuestion(namespace, name, title, previous=True)


def _metadata(pod: Pod) -> Mapping[str, Any]:
    return pod.get("metadata") or {}


def _containers(pod: Pod) -> Iterator[Mapping[str, Any]]:
    spec = pod.get("spec") or {}
    for kind in ("containers", "initContainers"):
        for one in spec.get(kind) or ():
            if isinstance(one, dict):
                yield one
