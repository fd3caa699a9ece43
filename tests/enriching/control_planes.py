"""More than one istiod: replicas of one, and a newer revision beside it."""

from __future__ import annotations

import copy
import json
import re

from meshnb.sources import HttpQuestion, LogQuestion, ProbeQuestion
from tests.enriching.base import Enriched, Json, name_of
from tests.enriching.workloads import clone, template

#: The revision of the second control plane.
REVISION = "1-31-2"


def _istiod(mesh: Enriched) -> Json | None:
    pods = [
        pod
        for pod in mesh.objects("pods")
        if (pod["metadata"].get("labels") or {}).get("app") == "istiod"
        and any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"]["conditions"])
    ]
    return pods[0] if len(pods) == 1 else None


def _copied(mesh: Enriched, pod: Json, name: str, address: str) -> Json:
    """Add a pod like another istiod, which answers what that one answers."""
    namespace, old = name_of(pod)
    text = json.dumps(pod).replace(old, name)
    new = json.loads(re.sub(rf"{re.escape(pod['status']['podIP'])}(?!\d)", address, text))
    new["metadata"]["uid"] = f"uid-{name}"
    mesh.objects("pods").append(new)
    for question in list(mesh.questions()):
        if isinstance(question, HttpQuestion) and (question.namespace, question.pod) == (
            namespace,
            old,
        ):
            added = HttpQuestion(namespace, name, question.port, question.path)
            if not mesh.usable(question):
                mesh.copy_answer(added, question)
            elif question.path.startswith("/debug/"):
                mesh.give(added, json.dumps(mesh.document(question)).encode(), like=question)
            else:
                mesh.give(added, mesh.text(question).encode(), like=question)
        elif isinstance(question, ProbeQuestion) and (question.namespace, question.pod) == (
            namespace,
            old,
        ):
            mesh.copy_answer(
                ProbeQuestion(namespace, name, question.port, question.protocol), question
            )
        elif isinstance(question, LogQuestion) and (question.namespace, question.pod) == (
            namespace,
            old,
        ):
            mesh.give(
                LogQuestion(namespace, name, question.container, question.previous),
                b"",
                like=question,
            )
    return new


def second_istiod(mesh: Enriched) -> None:
    """Give istiod two replicas; half of the proxies are connected to the second one."""
    pod = _istiod(mesh)
    if pod is None:
        return
    namespace, old = name_of(pod)
    name = f"{old.rpartition('-')[0]}-z9w8v"
    _copied(mesh, pod, name, mesh.address())
    for resource in ("deployments", "replicasets"):
        for item in mesh.objects(resource):
            mine = old.startswith(item["metadata"]["name"] + "-")
            if name_of(item)[0] == namespace and mine and item["spec"].get("replicas"):
                item["spec"]["replicas"] = 2
                for key in ("replicas", "readyReplicas", "availableReplicas"):
                    item["status"][key] = 2
    pages = [q for q in mesh.asked("/debug/") if q.pod in (old, name)]
    moved: set[str] = set()
    for question in pages:
        if question.path == "/debug/syncz" and question.pod == old:
            entries = mesh.document(question) or []
            moved = {entry["proxy"] for entry in entries[::2]}
    for question in pages:
        page = mesh.document(question)
        mine = question.pod == name
        if question.path == "/debug/syncz" and page:
            page[:] = [entry for entry in page if (entry["proxy"] in moved) is mine]
        elif question.path in ("/debug/connections", "/debug/adsz"):
            clients = page.get("clients") or []
            page["clients"] = [
                one for one in clients if (one["connectionId"].rpartition("-")[0] in moved) is mine
            ]
            page["totalClients"] = len(page["clients"])


def revision(mesh: Enriched) -> None:
    """Let a second control plane of a newer revision serve one namespace, by a tag."""
    pod = _istiod(mesh)
    if pod is None:
        return
    namespace, _ = name_of(pod)
    name = f"istiod-{REVISION}"
    new = _copied(mesh, pod, f"{name}-6b8d5f7c9-q2w3e", mesh.address())
    new["metadata"]["labels"]["istio.io/rev"] = REVISION
    owner = f"{name}-6b8d5f7c9"
    new["metadata"]["ownerReferences"][0]["name"] = owner
    for container in new["spec"]["containers"]:
        for variable in container.get("env") or []:
            if variable["name"] == "REVISION":
                variable["value"] = REVISION
    for resource in ("deployments", "replicasets", "services"):
        for item in list(mesh.objects(resource)):
            labels = item["metadata"].get("labels") or {}
            wanted = name_of(item)[1] == "istiod" or resource == "replicasets"
            if labels.get("app") == "istiod" and wanted and item["spec"].get("replicas") != 0:
                mesh.objects(resource).append(
                    _revised(mesh, item, owner if resource == "replicasets" else name)
                )
    for question in mesh.asked("/debug/"):
        if question.pod != name_of(new)[1]:
            continue
        page = mesh.document(question)
        if question.path == "/debug/syncz":
            page[:] = []
        elif question.path in ("/debug/connections", "/debug/adsz"):
            page["clients"], page["totalClients"] = [], 0
    _webhooks(mesh, namespace, name)
    for item in list(mesh.objects("configmaps")):
        if name_of(item) in ((namespace, "istio"), (namespace, "istio-sidecar-injector")):
            added = copy.deepcopy(item)
            added["metadata"]["name"] += f"-{REVISION}"
            added["metadata"].setdefault("labels", {})["istio.io/rev"] = REVISION
            mesh.objects("configmaps").append(added)
    _new_world(mesh, name_of(new)[1])


def _revised(mesh: Enriched, item: Json, name: str) -> Json:
    new = copy.deepcopy(item)
    new["metadata"]["name"] = name
    new["metadata"]["uid"] = f"uid-{name}"
    new["metadata"].setdefault("labels", {})["istio.io/rev"] = REVISION
    selector = new["spec"].get("selector") or {}
    (selector.get("matchLabels", selector))["istio.io/rev"] = REVISION
    for owner in new["metadata"].get("ownerReferences") or []:
        owner["name"] = f"istiod-{REVISION}"
    if "template" in new["spec"]:
        labels = new["spec"]["template"]["metadata"].setdefault("labels", {})
        labels["istio.io/rev"] = REVISION
    if "clusterIP" in new["spec"]:
        new["spec"]["clusterIP"] = mesh.service_address()
        new["spec"]["clusterIPs"] = [new["spec"]["clusterIP"]]
    return new


def _webhooks(mesh: Enriched, namespace: str, service: str) -> None:
    for resource in ("mutatingwebhookconfigurations", "validatingwebhookconfigurations"):
        found = [
            item
            for item in mesh.objects(resource)
            if item["webhooks"]
            and (item["metadata"].get("labels") or {}).get("istio.io/rev") is not None
            and item["webhooks"][0]["clientConfig"].get("service", {}).get("name") == "istiod"
        ]
        by_name = {item["metadata"]["name"]: item for item in found}
        tagged = next((i for n, i in by_name.items() if "tag" in n), None)
        if resource.startswith("mutating") and tagged is not None:
            for name, value in (
                (f"istio-sidecar-injector-{REVISION}", REVISION),
                ("istio-revision-tag-next", "next"),
            ):
                new = _hook(tagged, name, service, value)
                new["webhooks"] = new["webhooks"][:2]
                new["metadata"]["labels"].pop("istio.io/tag", None)
                if value == "next":
                    new["metadata"]["labels"]["istio.io/tag"] = "next"
                mesh.objects(resource).append(new)
        elif f"istio-validator-{namespace}" in by_name:
            old = by_name[f"istio-validator-{namespace}"]
            name = f"istio-validator-{REVISION}-{namespace}"
            mesh.objects(resource).append(_hook(old, name, service, REVISION))


def _hook(item: Json, name: str, service: str, value: str) -> Json:
    new = copy.deepcopy(item)
    new["metadata"]["name"] = name
    new["metadata"]["uid"] = f"uid-{name}"
    new["metadata"]["labels"]["istio.io/rev"] = REVISION
    for hook in new["webhooks"]:
        hook["clientConfig"]["service"]["name"] = service
        for selector in ("namespaceSelector", "objectSelector"):
            for expression in (hook.get(selector) or {}).get("matchExpressions") or []:
                if expression["key"] == "istio.io/rev" and expression["operator"] == "In":
                    expression["values"] = [value]
    return new


def _new_world(mesh: Enriched, istiod: str) -> None:
    """Let the new control plane serve a namespace with one workload, by the tag ``next``."""
    pod = template(mesh)
    if pod is None:
        return
    made = clone(mesh, pod, "preview-v1", {"app": "preview", "version": "v1"})
    for item in mesh.objects("pods"):
        if name_of(item) == (made.namespace, made.pod):
            item["metadata"]["labels"]["istio.io/rev"] = "next"
            item["metadata"].setdefault("annotations", {})["istio.io/rev"] = REVISION
            status = item["metadata"]["annotations"].get("sidecar.istio.io/status", "{}")
            item["metadata"]["annotations"]["sidecar.istio.io/status"] = json.dumps(
                {**json.loads(status), "revision": REVISION}
            )
    moved = []
    for question in mesh.asked("/debug/syncz"):
        page = mesh.document(question)
        mine = [entry for entry in page if entry["proxy"] == f"{made.pod}.{made.namespace}"]
        moved += mine
        page[:] = [entry for entry in page if entry not in mine]
    for question in mesh.asked("/debug/syncz"):
        if question.pod == istiod:
            mesh.document(question).extend(moved)
    mesh.add(
        "v1",
        "Namespace",
        "preview",
        metadata={"labels": {"istio.io/rev": "next", "kubernetes.io/metadata.name": "preview"}},
        status={"phase": "Active"},
    )
