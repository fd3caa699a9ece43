"""Who else lives in the cluster: the platform, monitoring, pods that have no sidecar on purpose."""

from __future__ import annotations

from typing import Any

from tests.enriching.base import Enriched, Json, name_of, wants_injection
from tests.enriching.envoy import sidecars


def _plain_pod(
    mesh: Enriched,
    namespace: str,
    name: str,
    owner: tuple[str, str],
    *,
    phase: str = "Running",
    ports: tuple[int, ...] = (),
    **metadata: Any,
) -> Json:
    """Add a pod without a sidecar, ready unless it is Pending."""
    running = phase == "Running"
    metadata.setdefault("labels", {"app": owner[1]})
    kind, owner_name = owner
    return mesh.add(
        "v1",
        "Pod",
        name,
        namespace,
        metadata={
            **metadata,
            "ownerReferences": [{"kind": kind, "name": owner_name, "controller": True}],
        },
        spec={
            "containers": [
                {
                    "name": "main",
                    "image": "registry.example/main:1",
                    "ports": [{"containerPort": port} for port in ports],
                }
            ],
            "nodeName": "node1" if running else None,
            "serviceAccountName": "default",
        },
        status={
            "phase": phase,
            "podIP": mesh.address() if running else None,
            "conditions": [
                {"type": "Ready", "status": "True" if running else "False"},
                {
                    "type": "PodScheduled",
                    "status": "True" if running else "False",
                    **({} if running else {"reason": "Unschedulable"}),
                },
            ],
            "containerStatuses": [
                {"name": "main", "ready": True, "restartCount": 0, "state": {"running": {}}}
            ]
            if running
            else [],
        },
    )


def _namespace(mesh: Enriched, name: str) -> None:
    if not any(n["metadata"]["name"] == name for n in mesh.objects("namespaces")):
        mesh.add(
            "v1",
            "Namespace",
            name,
            metadata={"labels": {"kubernetes.io/metadata.name": name}},
            status={"phase": "Active"},
        )


def _deployment(mesh: Enriched, namespace: str, name: str, *, ready: int = 1) -> None:
    labels = {"app": name}
    template = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "main"}]}}
    spec = {"replicas": 1, "selector": {"matchLabels": labels}, "template": template}
    status = {"replicas": 1, "readyReplicas": ready, "availableReplicas": ready}
    mesh.add("apps/v1", "Deployment", name, namespace, spec=spec, status=status)
    mesh.add(
        "apps/v1",
        "ReplicaSet",
        f"{name}-77bc8d9f6",
        namespace,
        spec=spec,
        status=status,
        metadata={"ownerReferences": [{"kind": "Deployment", "name": name, "controller": True}]},
    )


def platform(mesh: Enriched) -> None:
    """Add the platform's own pods and webhooks, which are no part of the mesh."""
    _namespace(mesh, "kube-system")
    _namespace(mesh, "cert-manager")
    for namespace, name, ports in (
        ("kube-system", "coredns", (53, 9153)),
        ("cert-manager", "cert-manager-webhook", (10250,)),
    ):
        _deployment(mesh, namespace, name)
        _plain_pod(
            mesh,
            namespace,
            f"{name}-77bc8d9f6-m4n5b",
            ("ReplicaSet", f"{name}-77bc8d9f6"),
            ports=ports,
            labels={"app": name},
        )
    mesh.add(
        "v1",
        "Service",
        "kube-dns",
        "kube-system",
        spec={
            "ports": [
                {"name": "dns", "port": 53, "protocol": "UDP", "targetPort": 53},
                {"name": "dns-tcp", "port": 53, "protocol": "TCP", "targetPort": 53},
            ],
            "selector": {"app": "coredns"},
            "clusterIP": "10.96.0.10",
            "type": "ClusterIP",
        },
    )
    mesh.add(
        "admissionregistration.k8s.io/v1",
        "MutatingWebhookConfiguration",
        "cert-manager-webhook",
        webhooks=[
            {
                "name": "webhook.cert-manager.io",
                "clientConfig": {
                    "service": {
                        "namespace": "cert-manager",
                        "name": "cert-manager-webhook",
                        "path": "/mutate",
                        "port": 443,
                    }
                },
                "rules": [],
                "failurePolicy": "Fail",
            }
        ],
    )


def monitoring(mesh: Enriched) -> None:
    """Let Prometheus, outside the mesh, scrape the proxies' port for metrics."""
    _namespace(mesh, "monitoring")
    _plain_pod(mesh, "monitoring", "prometheus-0", ("StatefulSet", "prometheus"), ports=(9090,))
    mesh.add(
        "v1",
        "Service",
        "prometheus",
        "monitoring",
        spec={
            "ports": [{"name": "http-web", "port": 9090, "targetPort": 9090}],
            "selector": {"app": "prometheus"},
            "clusterIP": "None",
            "type": "ClusterIP",
        },
    )
    for pod in mesh.objects("pods"):
        if pod["metadata"].get("annotations", {}).get("sidecar.istio.io/status"):
            pod["metadata"]["annotations"]["prometheus.io/scrape"] = "true"


def pending(mesh: Enriched) -> None:
    """Let a pod wait for a node, in a namespace that is not in the mesh."""
    _namespace(mesh, "batch-lab")
    _deployment(mesh, "batch-lab", "trainer", ready=0)
    _plain_pod(
        mesh,
        "batch-lab",
        "trainer-77bc8d9f6-p0q1r",
        ("ReplicaSet", "trainer-77bc8d9f6"),
        phase="Pending",
        labels={"app": "trainer"},
    )


def meant_outside(mesh: Enriched) -> None:
    """Add a pod in a namespace of the mesh that is meant to have no sidecar, and says so."""
    namespaces = [n["metadata"]["name"] for n in mesh.objects("namespaces") if wants_injection(n)]
    if not namespaces:
        return
    _plain_pod(
        mesh,
        namespaces[0],
        "log-shipper-7xk2p",
        ("DaemonSet", "log-shipper"),
        labels={"app": "log-shipper", "sidecar.istio.io/inject": "false"},
    )
    labels = {"app": "log-shipper", "sidecar.istio.io/inject": "false"}
    mesh.add(
        "apps/v1",
        "DaemonSet",
        "log-shipper",
        namespaces[0],
        spec={
            "selector": {"matchLabels": {"app": "log-shipper"}},
            "template": {"metadata": {"labels": labels}, "spec": {"containers": []}},
        },
        status={"numberReady": 1, "desiredNumberScheduled": 1},
    )


def network_policies(mesh: Enriched) -> None:
    """Put NetworkPolicies in front of the pods that admit all that the mesh needs."""
    for namespace in sorted({proxy.namespace for proxy in sidecars(mesh)}):
        mesh.add(
            "networking.k8s.io/v1",
            "NetworkPolicy",
            "allow-from-cluster",
            namespace,
            spec={
                "podSelector": {},
                "policyTypes": ["Ingress", "Egress"],
                "ingress": [{"from": [{"namespaceSelector": {}}]}],
                "egress": [
                    {"to": [{"namespaceSelector": {}}]},
                    {"to": [{"ipBlock": {"cidr": "0.0.0.0/0"}}]},
                ],
            },
        )


def quotas(mesh: Enriched) -> None:
    """Give namespaces quotas and disruption budgets that are kept."""
    for namespace in sorted({name_of(pod)[0] for pod in mesh.objects("pods")}):
        mesh.add(
            "v1",
            "ResourceQuota",
            "team",
            namespace,
            spec={"hard": {"pods": "100"}},
            status={"hard": {"pods": "100"}, "used": {"pods": "9"}},
        )
        mesh.add(
            "policy/v1",
            "PodDisruptionBudget",
            "keep-one",
            namespace,
            spec={"minAvailable": 1, "selector": {"matchLabels": {"app": "none"}}},
        )
