"""What a cluster has: its resources, its pods, and where its istiods are."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from meshnb.errors import SourceError, UsageError, nearest
from meshnb.sources.api_server import ApiServer, Refused
from meshnb.sources.base import Answer, ListQuestion, Question
from meshnb.sources.istiods import (
    INJECTORS,
    ISTIO_NAMESPACE,
    PODS,
    SERVICES,
    VALIDATORS,
    injectors,
    listed,
    objects_in,
    outside,
    parts,
    revision_behind,
    revision_of,
)
from meshnb.sources.ports import moved_ports
from meshnb.sources.questions import (
    LISTS,
    WHOLE_GROUPS,
    group_of,
    list_questions,
    part_of,
    pod_questions,
)
from meshnb.sources.scope import Pod, Scope

NAMESPACES = ListQuestion("v1", "namespaces")
DEPLOYMENTS = ListQuestion("apps/v1", "deployments")
#: Listed first, because they say whom to ask.
FIRST = (PODS, NAMESPACES, SERVICES, INJECTORS, VALIDATORS, DEPLOYMENTS)


@dataclass(frozen=True, slots=True)
class Resources:
    """What the API server can list: versions by group and resource, and what has no namespace."""

    versions: Mapping[tuple[str, str], str]
    cluster_wide: frozenset[tuple[str, str]]


async def find_resources(server: ApiServer) -> Resources:
    """Ask the API server what it can list, of the groups that matter to a mesh.

    Of several versions of a resource the first counts: that is the one the server prefers. What may
    not be read is left out; whoever asks for it gets the refusal then. Raises Refused for a 401.
    """
    wanted = {group_of(version) for version in LISTS} - {""}
    versions = ["v1"]
    try:
        groups = await server.document("/apis")
    except Refused as refused:
        if refused.status != 403:
            raise
        groups = {}
    for group in objects_in(groups, "groups"):
        name = str(group.get("name"))
        if name in wanted or name.endswith(WHOLE_GROUPS):
            versions += [str(one.get("groupVersion")) for one in objects_in(group, "versions")]
    found: dict[tuple[str, str], str] = {}
    cluster_wide: set[tuple[str, str]] = set()
    documents = await asyncio.gather(*(_resources(server, version) for version in versions))
    for version, document in zip(versions, documents, strict=True):
        for resource in objects_in(document, "resources"):
            name = str(resource.get("name"))
            if "/" in name or "list" not in (resource.get("verbs") or ()):
                continue
            place = group_of(version), name
            found.setdefault(place, version)
            if resource.get("namespaced") is False:
                cluster_wide.add(place)
    return Resources(found, frozenset(cluster_wide))


async def _resources(server: ApiServer, version: str) -> Any:
    try:
        return await server.document(f"/apis/{version}" if "/" in version else f"/api/{version}")
    except Refused as refused:
        if refused.status == 401:
            raise
        return {}


@dataclass(slots=True)
class Findings:
    """Whom to ask, and what of that has to be said. ``pods`` are those that are no istiod."""

    pods: list[Pod] = field(default_factory=list)
    istio_namespace: str = ISTIO_NAMESPACE
    notes: list[str] = field(default_factory=list)
    #: those of the notes that say which pods were left out, so that nothing is broken
    bounds: list[str] = field(default_factory=list)
    istiods: list[Pod] = field(default_factory=list)

    def questions(self, resources: Resources) -> tuple[Question, ...]:
        """Return every question: lists, then pod by pod."""
        asked: list[Question] = list(list_questions(resources.versions))
        for pod in self.istiods:
            asked += pod_questions(pod, "istiod")
        for pod in self.pods:
            asked += pod_questions(pod)
        return tuple(dict.fromkeys(asked))

    @property
    def moved(self) -> dict[tuple[str, str], Mapping[int, int]]:
        """The pods that listen elsewhere than usual: the real port by the usual one."""
        return {
            (_namespace(pod), _metadata(pod, "name")): ports
            for pod in (*self.istiods, *self.pods)
            if (ports := moved_ports(pod))
        }


def find_pods(
    scope: Scope, resources: Resources, answers: Mapping[Question, Answer], where: str
) -> Findings:
    """Return which pods are asked; ``where`` names the cluster.

    Raises UsageError for a namespace or a pod that is not there, and SourceError when the istiod
    that was asked for is not there, or nothing of Istio at all.
    """
    found = Findings()
    pods = listed(answers.get(PODS))
    if unlisted := answers[PODS].error:
        found.notes.append(
            f"No pod was asked, istiod's neither, because pods could not be listed: {unlisted}. "
            "Choose namespaces that may be listed with --namespace."
        )
    _check_names(scope, pods, answers)
    by_part = parts(answers)
    found.istiods = _istiods(scope, by_part.get("istiod", []), answers, where)
    if found.istiods:
        found.istio_namespace = _namespace(found.istiods[0])
    elif scope.istio_namespace:
        found.istio_namespace = scope.istio_namespace
    elif not unlisted:
        found.notes.append(_no_istiod(answers, resources, pods, where))
    chosen = [
        pod for part in ("proxy", "none") for pod in by_part.get(part, ()) if scope.holds(pod)
    ]
    chosen, left_out = scope.sampled(chosen)
    found.bounds += [left_out] if left_out else []
    found.notes += found.bounds
    nodes = {_node(pod) for pod in chosen}
    # A node's ztunnel and CNI matter to the pods on it; without a choice of pods all are asked.
    everything = not (scope.namespaces or scope.pods or scope.labels or left_out)
    on_nodes = [
        pod
        for part in ("ztunnel", "cni")
        for pod in by_part.get(part, ())
        if everything or _node(pod) in nodes
    ]
    found.pods = [*on_nodes, *chosen]
    return found


def _metadata(pod: Pod, name: str) -> str:
    return str((pod.get("metadata") or {}).get(name) or "")


def _namespace(pod: Pod) -> str:
    return _metadata(pod, "namespace")


def _node(pod: Pod) -> str:
    return str((pod.get("spec") or {}).get("nodeName") or "")


def _check_names(scope: Scope, pods: Sequence[Pod], answers: Mapping[Question, Answer]) -> None:
    """Raise UsageError for a misspelt namespace or pod, where that can be told."""
    namespaces = listed(answers.get(NAMESPACES))
    known = {_metadata(one, "name") for one in namespaces} | {_namespace(pod) for pod in pods}
    for namespace in scope.namespaces if namespaces else ():
        if namespace not in known:
            raise UsageError(
                f"There is no namespace {namespace!r}.", next_step=nearest(namespace, known)
            )
    names = {_metadata(pod, "name") for pod in pods}
    full = {f"{_namespace(pod)}/{_metadata(pod, 'name')}" for pod in pods}
    for pod in scope.pods if pods else ():
        if pod not in names and pod not in full:
            raise UsageError(f"There is no pod {pod!r}.", next_step=nearest(pod, names))


def _istiods(
    scope: Scope, istiods: Sequence[Pod], answers: Mapping[Question, Answer], where: str
) -> list[Pod]:
    """Return every replica of each revision that was asked for. Raises SourceError."""
    revision = scope.revision
    if revision and revision not in map(revision_of, istiods):
        revision = revision_behind(answers, revision)
    kept = [
        pod
        for pod in istiods
        if scope.istio_namespace in ("", _namespace(pod)) and revision in ("", revision_of(pod))
    ]
    if kept or not (scope.istio_namespace or scope.revision):
        return kept
    wanted = " and ".join(
        said
        for said, value in (
            (f"namespace {scope.istio_namespace!r}", scope.istio_namespace),
            (f"revision {scope.revision!r}", scope.revision),
        )
        if value
    )
    if istiods:
        others = sorted({f"{_namespace(pod)} (revision {revision_of(pod)})" for pod in istiods})
        raise SourceError(
            f"No istiod of {wanted} runs in {where}, but there is one in {', '.join(others)}.",
            next_step="Ask for that one with --istio-namespace and --revision, or for any with "
            "neither.",
        )
    if elsewhere := outside(answers):
        raise SourceError(elsewhere, next_step=_ASK_THERE)
    raise SourceError(
        f"No istiod of {wanted} runs in {where}, and no other.",
        next_step=f"Look for it: kubectl get pods -A -l app=istiod{_context(where)}.",
    )


_ASK_THERE = "Ask that control plane's own cluster, with its context, for what istiod holds."


def _context(where: str) -> str:
    return f" --context {where.partition(':')[2]}" if ":" in where else ""


def _no_istiod(
    answers: Mapping[Question, Answer], resources: Resources, pods: Sequence[Pod], where: str
) -> str:
    """Say why no istiod is asked. Raises SourceError when there is no trace of Istio at all."""
    for deployment in listed(answers.get(DEPLOYMENTS)):
        labels = (deployment.get("metadata") or {}).get("labels") or {}
        if labels.get("app") == "istiod":
            spec, status = deployment.get("spec") or {}, deployment.get("status") or {}
            return (
                f"No istiod was asked: Deployment {_namespace(deployment)}/"
                f"{_metadata(deployment, 'name')} wants {spec.get('replicas', 1)} pods and has "
                f"{status.get('replicas') or 0}."
            )
    if elsewhere := outside(answers):
        return f"{elsewhere} {_ASK_THERE}"
    refused = [answer for answer in answers.values() if answer.error is not None]
    traces = (
        any(group.endswith(".istio.io") for group, _ in resources.versions)
        or any(part_of(pod) != "none" for pod in pods)
        or any(injectors(answers))
    )
    if traces or refused:
        return f"No istiod was asked: {where} has no pod of it that may be listed."
    raise SourceError(
        f"There is no Istio in {where}: no istiod, no injector, no proxy and none of its kinds.",
        next_step="Choose another context: `kubectl config get-contexts` lists them.",
    )
