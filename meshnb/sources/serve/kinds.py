"""Kinds of Kubernetes, Istio and the Gateway API: their names, scope and short names.

From the API reference of Kubernetes 1.36 and the definitions that Istio 1.30 and the Gateway API
install. What a recording holds itself, a CustomResourceDefinition, goes before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of object: its name, and how ``kubectl`` may call it."""

    name: str
    namespaced: bool = True
    short_names: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()

    @property
    def singular(self) -> str:
        """The name in lower case, which ``kubectl get`` takes as well."""
        return self.name.lower()


#: Group, then plural name: the kind, and its short names after it.
_NAMESPACED: Mapping[str, Mapping[str, str]] = {
    "": {
        "configmaps": "ConfigMap cm",
        "endpoints": "Endpoints ep",
        "events": "Event ev",
        "limitranges": "LimitRange limits",
        "persistentvolumeclaims": "PersistentVolumeClaim pvc",
        "pods": "Pod po",
        "podtemplates": "PodTemplate",
        "replicationcontrollers": "ReplicationController rc",
        "resourcequotas": "ResourceQuota quota",
        "secrets": "Secret",
        "serviceaccounts": "ServiceAccount sa",
        "services": "Service svc",
    },
    "apps": {
        "controllerrevisions": "ControllerRevision",
        "daemonsets": "DaemonSet ds",
        "deployments": "Deployment deploy",
        "replicasets": "ReplicaSet rs",
        "statefulsets": "StatefulSet sts",
    },
    "autoscaling": {"horizontalpodautoscalers": "HorizontalPodAutoscaler hpa"},
    "batch": {"cronjobs": "CronJob cj", "jobs": "Job"},
    "coordination.k8s.io": {"leases": "Lease"},
    "discovery.k8s.io": {"endpointslices": "EndpointSlice"},
    "events.k8s.io": {"events": "Event ev"},
    "networking.k8s.io": {"ingresses": "Ingress ing", "networkpolicies": "NetworkPolicy netpol"},
    "policy": {"poddisruptionbudgets": "PodDisruptionBudget pdb"},
    "rbac.authorization.k8s.io": {"rolebindings": "RoleBinding", "roles": "Role"},
    "resource.k8s.io": {
        "resourceclaims": "ResourceClaim",
        "resourceclaimtemplates": "ResourceClaimTemplate",
    },
    "storage.k8s.io": {"csistoragecapacities": "CSIStorageCapacity"},
    "networking.istio.io": {
        "destinationrules": "DestinationRule dr",
        "envoyfilters": "EnvoyFilter",
        "gateways": "Gateway gw",
        "proxyconfigs": "ProxyConfig",
        "serviceentries": "ServiceEntry se",
        "sidecars": "Sidecar",
        "virtualservices": "VirtualService vs",
        "workloadentries": "WorkloadEntry we",
        "workloadgroups": "WorkloadGroup wg",
    },
    "security.istio.io": {
        "authorizationpolicies": "AuthorizationPolicy ap",
        "peerauthentications": "PeerAuthentication pa",
        "requestauthentications": "RequestAuthentication ra",
    },
    "telemetry.istio.io": {"telemetries": "Telemetry telemetry"},
    "extensions.istio.io": {
        "trafficextensions": "TrafficExtension",
        "wasmplugins": "WasmPlugin",
    },
    "gateway.networking.k8s.io": {
        "backendtlspolicies": "BackendTLSPolicy btlspolicy",
        "gateways": "Gateway gtw",
        "grpcroutes": "GRPCRoute",
        "httproutes": "HTTPRoute",
        "referencegrants": "ReferenceGrant refgrant",
        "tcproutes": "TCPRoute",
        "tlsroutes": "TLSRoute",
        "udproutes": "UDPRoute",
    },
}

#: The same, of what stands in no namespace.
_CLUSTER_WIDE: Mapping[str, Mapping[str, str]] = {
    "": {
        "componentstatuses": "ComponentStatus cs",
        "namespaces": "Namespace ns",
        "nodes": "Node no",
        "persistentvolumes": "PersistentVolume pv",
    },
    "admissionregistration.k8s.io": {
        "mutatingadmissionpolicies": "MutatingAdmissionPolicy",
        "mutatingadmissionpolicybindings": "MutatingAdmissionPolicyBinding",
        "mutatingwebhookconfigurations": "MutatingWebhookConfiguration",
        "validatingadmissionpolicies": "ValidatingAdmissionPolicy",
        "validatingadmissionpolicybindings": "ValidatingAdmissionPolicyBinding",
        "validatingwebhookconfigurations": "ValidatingWebhookConfiguration",
    },
    "apiextensions.k8s.io": {"customresourcedefinitions": "CustomResourceDefinition crd crds"},
    "apiregistration.k8s.io": {"apiservices": "APIService"},
    "certificates.k8s.io": {"certificatesigningrequests": "CertificateSigningRequest csr"},
    "flowcontrol.apiserver.k8s.io": {
        "flowschemas": "FlowSchema",
        "prioritylevelconfigurations": "PriorityLevelConfiguration",
    },
    "gateway.networking.k8s.io": {"gatewayclasses": "GatewayClass gc"},
    "networking.k8s.io": {
        "ingressclasses": "IngressClass",
        "ipaddresses": "IPAddress ip",
        "servicecidrs": "ServiceCIDR",
    },
    "node.k8s.io": {"runtimeclasses": "RuntimeClass"},
    "rbac.authorization.k8s.io": {
        "clusterrolebindings": "ClusterRoleBinding",
        "clusterroles": "ClusterRole",
    },
    "resource.k8s.io": {"deviceclasses": "DeviceClass", "resourceslices": "ResourceSlice"},
    "scheduling.k8s.io": {"priorityclasses": "PriorityClass pc"},
    "storage.k8s.io": {
        "csidrivers": "CSIDriver",
        "csinodes": "CSINode",
        "storageclasses": "StorageClass sc",
        "volumeattachments": "VolumeAttachment",
        "volumeattributesclasses": "VolumeAttributesClass vac",
    },
}

#: What ``kubectl get all`` shows.
_IN_ALL = frozenset(
    {
        "cronjobs",
        "daemonsets",
        "deployments",
        "horizontalpodautoscalers",
        "jobs",
        "pods",
        "replicasets",
        "replicationcontrollers",
        "services",
        "statefulsets",
    }
)
_GATEWAY_API = "gateway.networking.k8s.io"


def known_kind(group: str, resource: str) -> Kind | None:
    """Return the kind of a resource of a group, or None where neither of the projects has it."""
    for table, namespaced in ((_NAMESPACED, True), (_CLUSTER_WIDE, False)):
        names = table.get(group, {}).get(resource)
        if names is not None:
            kind, *short = names.split()
            return Kind(kind, namespaced, tuple(short), _categories(group, resource))
    return None


def _categories(group: str, resource: str) -> tuple[str, ...]:
    if group in ("", "apps", "autoscaling", "batch") and resource in _IN_ALL:
        return ("all",)
    if group in ("admissionregistration.k8s.io", "apiextensions.k8s.io", "apiregistration.k8s.io"):
        return ("api-extensions",)
    if group == _GATEWAY_API:
        return ("gateway-api",)
    if group.endswith(".istio.io"):
        return ("istio-io", group.replace(".", "-"))
    return ()
