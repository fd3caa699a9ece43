"""More pods and Services, with everything that Kubernetes, istiod and the proxies say of them."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from meshnb.sources import HttpQuestion, LogQuestion, ProbeQuestion
from tests.alteration import read_line
from tests.enriching.base import Enriched, Json, name_of
from tests.enriching.envoy import Proxy, proxies, sidecars


@dataclass(frozen=True)
class Made:
    """A pod that was added: where it is, and who it says it is."""

    namespace: str
    pod: str
    address: str
    account: str

    @property
    def identity(self) -> str:
        """Its name in certificates."""
        return f"spiffe://cluster.local/ns/{self.namespace}/sa/{self.account}"


def template(mesh: Enriched, *, served: bool = False) -> Json | None:
    """Return a pod with a sidecar in which nothing is wrong, made by a Deployment; None without.

    ``served`` asks for one that answers to requests and whose Service no routing rule concerns.
    """
    seen = {(proxy.namespace, proxy.pod): proxy for proxy in sidecars(mesh)}
    connected = {entry["proxy"] for page in mesh.pages("/debug/syncz") for entry in page or []}
    for pod in mesh.objects("pods"):
        namespace, name = name_of(pod)
        owners = pod["metadata"].get("ownerReferences") or []
        proxy = seen.get((namespace, name))
        if (
            proxy is None
            or not owners
            or owners[0]["kind"] != "ReplicaSet"
            or f"{name}.{namespace}" not in connected
            or not _ready(pod)
            or blamed(mesh, namespace, workload_of(pod))
            or proxy.node[2] != f"{name}.{namespace}"
            or "draining_state" in str([list(e) for e in proxy.listeners])
            or "error_state" in str([list(e) for e in proxy.listeners])
        ):
            continue
        if not served or service_for(mesh, pod) is not None:
            return pod
    return None


def _ready(pod: Json) -> bool:
    conditions = pod["status"].get("conditions") or []
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)


def blamed(mesh: Enriched, namespace: str, name: str) -> bool:
    """Whether the label blames an object of this name, or one called like its first part."""
    first = name.split("-", maxsplit=1)[0]
    return any(
        text.split("/", 2)[1] == namespace and text.split("/", 2)[2].split("-")[0] == first
        for text in mesh.truth
    )


def workload_of(pod: Json) -> str:
    """Return the name of the Deployment that a pod belongs to."""
    owner: str = pod["metadata"]["ownerReferences"][0]["name"]
    return owner.rpartition("-")[0]


def service_for(mesh: Enriched, pod: Json) -> Json | None:
    """Return the Service in front of a pod, if there is one that no Istio rule names."""
    namespace, _ = name_of(pod)
    labels = pod["metadata"].get("labels") or {}
    ruled = {
        str(host).split(".")[0]
        for resource in ("virtualservices", "destinationrules")
        for item in mesh.objects(resource)
        for host in [item["spec"].get("host"), *(item["spec"].get("hosts") or [])]
        if host
    }
    for service in mesh.objects("services"):
        selector = service["spec"].get("selector")
        if (
            name_of(service)[0] == namespace
            and selector
            and selector.items() <= labels.items()
            and service["metadata"]["name"] not in ruled
            and service["spec"].get("clusterIP") not in (None, "None", "")
            and not blamed(mesh, *name_of(service))
        ):
            return service
    return None


def clone(
    mesh: Enriched, pod: Json, workload: str, labels: Mapping[str, str], kind: str = "Deployment"
) -> Made:
    """Add a workload with one pod, made like another one, with its proxy's pages and log."""
    namespace, old_name = name_of(pod)
    old_workload = workload_of(pod)
    old_set = pod["metadata"]["ownerReferences"][0]["name"]
    new_set = f"{workload}-7d9f8c6b5" if kind == "Deployment" else workload
    new_name = f"{new_set}-k4x2m" if kind == "Deployment" else f"{workload}-0"
    old_address = pod["status"]["podIP"]
    address = mesh.address()

    names = {
        old_name: new_name,
        old_set: new_set,
        old_workload: workload,
        old_address: address,
    }
    pattern = re.compile("|".join(rf"\b{re.escape(old)}(?![\w.])" for old in names))

    def renamed(text: str) -> str:
        return pattern.sub(lambda match: names[match[0]], text)

    new = json.loads(renamed(json.dumps(pod)))
    new["metadata"]["uid"] = f"uid-{new_name}"
    for label in ("app", "version"):
        new["metadata"]["labels"].pop(label, None)
    new["metadata"]["labels"].update(labels)
    if kind == "StatefulSet":
        new["metadata"]["ownerReferences"] = [
            {"apiVersion": "apps/v1", "kind": kind, "name": workload, "controller": True}
        ]
    mesh.objects("pods").append(new)
    spec = {
        "replicas": 1,
        "selector": {"matchLabels": dict(labels)},
        "template": {
            "metadata": {"labels": dict(labels)},
            "spec": {"containers": pod["spec"]["containers"]},
        },
    }
    status = {"replicas": 1, "readyReplicas": 1, "availableReplicas": 1, "updatedReplicas": 1}
    mesh.add("apps/v1", kind, workload, namespace, spec=copy.deepcopy(spec), status=dict(status))
    if kind == "Deployment":
        owner = {"apiVersion": "apps/v1", "kind": kind, "name": workload, "controller": True}
        mesh.add(
            "apps/v1",
            "ReplicaSet",
            new_set,
            namespace,
            spec=copy.deepcopy(spec),
            status=dict(status),
            metadata={"ownerReferences": [owner]},
        )
    _clone_answers(mesh, namespace, old_name, new_name, renamed)
    _clone_connections(mesh, f"{old_name}.{namespace}", f"{new_name}.{namespace}", renamed)
    return Made(namespace, new_name, address, pod["spec"].get("serviceAccountName", "default"))


def _clone_answers(
    mesh: Enriched, namespace: str, old: str, new: str, renamed: Callable[[str], str]
) -> None:
    for question in list(mesh.questions()):
        match question:
            case HttpQuestion(ns, pod, port, path) if (ns, pod) == (namespace, old):
                added: HttpQuestion | LogQuestion = HttpQuestion(ns, new, port, path)
                if not mesh.usable(question):
                    mesh.copy_answer(added, question)
                elif isinstance(_json(mesh, question), dict | list):
                    text = json.dumps(mesh.document(question))
                    mesh.give(added, renamed(text).encode(), like=question)
                else:
                    mesh.give(added, renamed(mesh.text(question)).encode(), like=question)
            case LogQuestion(ns, pod, container, previous) if (ns, pod) == (namespace, old):
                added = LogQuestion(ns, new, container, previous)
                if not mesh.usable(question):
                    mesh.copy_answer(added, question)
                    continue
                texts = [t for t in mesh.lines(question) if read_line(t) is None]
                mesh.give(added, renamed("\n".join(texts)).encode(), like=question)
            case ProbeQuestion(ns, pod, port, protocol) if (ns, pod) == (namespace, old):
                mesh.copy_answer(ProbeQuestion(ns, new, port, protocol), question)


def _json(mesh: Enriched, question: HttpQuestion) -> Json:
    try:
        return mesh.document(question)
    except ValueError:
        return None


def _clone_connections(mesh: Enriched, old: str, new: str, renamed: Callable[[str], str]) -> None:
    for page in mesh.pages("/debug/syncz"):
        for entry in [one for one in page or [] if one["proxy"] == old]:
            page.append({**copy.deepcopy(entry), "proxy": new})
    for path in ("/debug/connections", "/debug/adsz"):
        for page in mesh.pages(path):
            clients = page.get("clients") or []
            found = [one for one in clients if one["connectionId"].rpartition("-")[0] == old]
            for entry in found:
                clients.append(json.loads(renamed(json.dumps(entry))))


def serve(
    mesh: Enriched,
    namespace: str,
    name: str,
    ports: list[tuple[str, int, int]],
    selector: Mapping[str, str],
    pods: list[Made],
    *,
    headless: bool = False,
) -> Json:
    """Add a Service with ports (name, port, target) and its endpoints."""
    address = "None" if headless else mesh.service_address()
    listed = [
        {"name": port_name, "protocol": "TCP", "port": port, "targetPort": target}
        for port_name, port, target in ports
    ]
    service = mesh.add(
        "v1",
        "Service",
        name,
        namespace,
        spec={
            "ports": listed,
            "selector": dict(selector),
            "clusterIP": address,
            "clusterIPs": [address],
            "type": "ClusterIP",
            "sessionAffinity": "None",
        },
        status={"loadBalancer": {}},
    )
    mesh.add(
        "discovery.k8s.io/v1",
        "EndpointSlice",
        f"{name}-x7k2p",
        namespace,
        metadata={"labels": {"kubernetes.io/service-name": name}},
        addressType="IPv4",
        endpoints=[
            {
                "addresses": [pod.address],
                "conditions": {"ready": True, "serving": True, "terminating": False},
                "targetRef": {"kind": "Pod", "namespace": namespace, "name": pod.pod},
            }
            for pod in pods
        ],
        ports=[{"name": n, "protocol": "TCP", "port": target} for n, _, target in ports],
    )
    mesh.add(
        "v1",
        "Endpoints",
        name,
        namespace,
        subsets=[
            {
                "addresses": [
                    {
                        "ip": pod.address,
                        "targetRef": {"kind": "Pod", "namespace": namespace, "name": pod.pod},
                    }
                    for pod in pods
                ],
                "ports": [{"name": n, "port": target, "protocol": "TCP"} for n, _, target in ports],
            }
        ],
    )
    return service


def join(mesh: Enriched, service: Json, pod: Made, like: str) -> None:
    """Let a pod be an endpoint of a Service beside the one with the address ``like``."""
    namespace, name = name_of(service)
    for item in mesh.objects("endpointslices"):
        labels = item["metadata"].get("labels") or {}
        if (name_of(item)[0], labels.get("kubernetes.io/service-name")) == (namespace, name):
            for endpoint in [e for e in item.get("endpoints") or [] if e["addresses"] == [like]]:
                new = copy.deepcopy(endpoint)
                new["addresses"] = [pod.address]
                new["targetRef"] = {"kind": "Pod", "namespace": namespace, "name": pod.pod}
                item["endpoints"].append(new)
    for item in mesh.objects("endpoints"):
        if name_of(item) == (namespace, name):
            for subset in item.get("subsets") or []:
                for address in [a for a in subset.get("addresses") or [] if a["ip"] == like]:
                    target = {"kind": "Pod", "namespace": namespace, "name": pod.pod}
                    subset["addresses"].append(
                        {**copy.deepcopy(address), "ip": pod.address, "targetRef": target}
                    )
    host = f"{name}.{namespace}.svc."
    for proxy in proxies(mesh):
        _join_cluster(proxy, host, pod.address, like)


def _join_cluster(proxy: Proxy, host: str, address: str, like: str) -> None:
    for entry in proxy.endpoints:
        config = entry["endpoint_config"]
        if host not in config.get("cluster_name", ""):
            continue
        for locality in config.get("endpoints") or []:
            members = locality.get("lb_endpoints") or []
            for member in [m for m in members if _at(m["endpoint"]) == like]:
                new = copy.deepcopy(member)
                new["endpoint"]["address"]["socket_address"]["address"] = address
                members.append(new)
    for status in proxy.statuses:
        if host in status["name"]:
            hosts = status.get("host_statuses") or []
            for one in [h for h in hosts if _at(h) == like]:
                new = copy.deepcopy(one)
                new["address"]["socket_address"]["address"] = address
                hosts.append(new)


def _at(holder: Json) -> str:
    address: str = holder.get("address", {}).get("socket_address", {}).get("address", "")
    return address
