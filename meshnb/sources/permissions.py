"""Which permissions asking a mesh needs, and which of them lack.

Nothing here is a list of permissions: they follow from the questions that a cluster is asked
(:mod:`meshnb.sources.questions`), so that a new question brings its permission with it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from meshnb.sources.base import (
    Answer,
    HttpQuestion,
    ListQuestion,
    LogQuestion,
    Question,
    Source,
)
from meshnb.sources.questions import group_of, list_questions, pod_questions
from meshnb.sources.scope import Pod, Scope

#: How the names of the roles begin; the rest says what they are for, so that those of one scope
#: do not take the place of those of another.
NAME = "meshnb"
_ISTIO_NAMESPACE = "istio-system"
#: Resources that lie in no namespace, of those that are listed (Kubernetes' API reference). A Role
#: cannot allow them.
CLUSTER_WIDE = frozenset(
    {
        *("namespaces", "nodes", "persistentvolumes", "mutatingadmissionpolicies"),
        *("mutatingadmissionpolicybindings", "mutatingwebhookconfigurations"),
        *("validatingadmissionpolicies", "validatingadmissionpolicybindings"),
        *("validatingwebhookconfigurations", "customresourcedefinitions"),
        *("certificatesigningrequests", "gatewayclasses", "ingressclasses", "ipaddresses"),
        *("servicecidrs", "runtimeclasses", "resourceslices", "csidrivers", "csinodes"),
        *("storageclasses", "volumeattachments"),
    }
)
#: How the API server says what it refuses.
_FORBIDDEN = re.compile(
    r'cannot (?P<verb>\w+) resource "(?P<resource>[^"]+)" in API group "(?P<group>[^"]*)"'
)
_USER = re.compile(r'User "([^"]+)" cannot ')
#: What :mod:`meshnb.sources.asking` says where the API server has no words.
_ONLY_CREATE = "create on pods/portforward"


@dataclass(frozen=True, slots=True, order=True)
class Permission:
    """One verb on one resource; ``namespace`` is empty for all of them, or for none."""

    group: str
    resource: str
    verb: str
    namespace: str = ""

    def __str__(self) -> str:
        """Return it in words: ``get pods/log in namespace shop``."""
        name = f"{self.resource}.{self.group}" if self.group else self.resource
        if self.namespace:
            return f"{self.verb} {name} in namespace {self.namespace}"
        there = self.resource in CLUSTER_WIDE
        return f"{self.verb} {name}" + ("" if there else " in all namespaces")


def permissions_of(question: Question) -> tuple[Permission, ...]:
    """Return what a question needs.

    A port-forward is a GET that is upgraded: up to Kubernetes 1.34 it needs ``get``, from 1.35 on
    ``create`` as well.
    """
    if isinstance(question, ListQuestion):
        return (Permission(group_of(question.api_version), question.resource, "list"),)
    if isinstance(question, LogQuestion):
        return (Permission("", "pods/log", "get", question.namespace),)
    return tuple(
        Permission("", "pods/portforward", verb, question.namespace) for verb in ("create", "get")
    )


def asked_in(scope: Scope) -> Iterator[Question]:
    """Yield questions of every kind that a scope leads to, whatever runs in the mesh."""
    yield from list_questions({})
    for namespace in {*scope.namespaces, scope.istio_namespace or _ISTIO_NAMESPACE}:
        for container in ("discovery", "istio-proxy"):
            yield from pod_questions(_specimen(namespace, container))


def _specimen(namespace: str, container: str) -> Pod:
    return {
        "metadata": {"namespace": namespace, "name": "any"},
        "spec": {"containers": [{"name": container}]},
    }


def needed(
    scope: Scope, questions: Iterable[Question] | None = None, *, secrets: bool = False
) -> frozenset[Permission]:
    """Return the permissions that a scope needs, by default those of :func:`asked_in`.

    In a scope of namespaces, lists are of those namespaces only, but for the pods of istiod. Lists
    of Secrets are among them only when they are asked for.
    """
    istio = scope.istio_namespace or _ISTIO_NAMESPACE
    found: set[Permission] = set()
    for question in asked_in(scope) if questions is None else questions:
        for one in permissions_of(question):
            if one.resource == "secrets" and not secrets:
                continue
            if not scope.namespaces or one.resource in CLUSTER_WIDE:
                found.add(Permission(one.group, one.resource, one.verb))
            elif one.verb != "list":
                found.add(one)
            else:
                places = {*scope.namespaces, *([istio] if one.resource == "pods" else ())}
                found |= {Permission(one.group, one.resource, one.verb, place) for place in places}
    return frozenset(found)


def missing(
    source: Source, scope: Scope | None = None, *, secrets: bool = False
) -> dict[Permission, str]:
    """Return which permissions a source was refused, each with the API server's words.

    Every list is asked, and of each namespace one log and one page of a pod: the questions of a
    recording, because Kubernetes answers what is allowed only to a POST, and nothing is ever posted
    to a cluster. Raises :class:`~meshnb.errors.SourceError` when the source cannot be used.
    """
    chosen: dict[Any, Question] = {}
    for question in source.questions():
        if isinstance(question, ListQuestion):
            if secrets or question.resource != "secrets":
                chosen[question] = question
        elif isinstance(question, HttpQuestion | LogQuestion):
            chosen.setdefault((type(question), question.namespace), question)
    found: dict[Permission, str] = {}
    for answer in source.ask(chosen.values()):
        for permission in refused(answer, scope):
            found.setdefault(permission, answer.error or f"status {answer.status}")
    return found


def refused(answer: Answer, scope: Scope | None = None) -> tuple[Permission, ...]:
    """Return the permissions that an answer shows to lack."""
    wanted = permissions_of(answer.question)
    partly = "namespaces" in answer.detail and isinstance(answer.question, ListQuestion)
    if partly and not (scope and scope.namespaces):
        return wanted
    page = isinstance(answer.question, HttpQuestion) and answer.error is None
    if answer.status != 403 or page:  # a pod may refuse a page by itself
        return ()
    said = _FORBIDDEN.search(answer.error or "")
    verb = said["verb"] if said else ""
    if not said and _ONLY_CREATE in (answer.error or ""):
        verb = "create"
    return tuple(one for one in wanted if one.verb == verb) or wanted


def manifest(permissions: Iterable[Permission]) -> str:
    """Return the roles that allow these, as YAML: a ClusterRole, and a Role per namespace.

    Each has its scope in its name, and in words in a comment before it.
    """
    places: dict[str, list[Permission]] = {}
    for one in sorted(permissions):
        places.setdefault(one.namespace, []).append(one)
    documents = []
    for namespace in sorted(places):
        role, what = _role(namespace, places[namespace])
        text = yaml.safe_dump(role, sort_keys=False, default_flow_style=None, width=100)
        documents.append(f"# {role['metadata']['name']}: {what}\n{text}")
    return "---\n".join(documents)


def _scope_of(namespace: str, permissions: Collection[Permission]) -> tuple[str, str]:
    """Return the end of a role's name, and what the role is for in words."""
    lists = {one.resource for one in permissions if one.verb == "list"}
    if not namespace and lists <= CLUSTER_WIDE:
        end, what = "cluster-wide", "what lies in no namespace; of use to every scope"
    elif not namespace:
        end, what = "all-namespaces", "the whole mesh, in all namespaces"
    elif lists <= {"pods"}:
        end, what = "istiod", f"istiod in the namespace {namespace}"
    else:
        end, what = "namespace", f"the namespace {namespace}"
    if "secrets" in lists:
        return f"{end}-secrets", f"{what}, with lists of Secrets"
    return end, what


def _role(namespace: str, permissions: Collection[Permission]) -> tuple[dict[str, Any], str]:
    """Return a role, and what it is for in words."""
    verbs: dict[tuple[str, str], list[str]] = {}
    for one in permissions:
        verbs.setdefault((one.group, one.resource), []).append(one.verb)
    rules: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for (group, resource), allowed in verbs.items():
        rules.setdefault((group, tuple(sorted(allowed, reverse=True))), []).append(resource)
    end, what = _scope_of(namespace, permissions)
    metadata = {"name": f"{NAME}-{end}", **({"namespace": namespace} if namespace else {})}
    role = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "Role" if namespace else "ClusterRole",
        "metadata": {**metadata, "labels": {"app.kubernetes.io/name": NAME}},
        "rules": [
            {"apiGroups": [group], "resources": resources, "verbs": list(allowed)}
            for (group, allowed), resources in rules.items()
        ],
    }
    return role, what


def in_lines(permissions: Iterable[Permission]) -> tuple[str, ...]:
    """Return permissions in words, those of one verb, group and place in one line.

    ``list pods, services in namespaces road, shop`` is one; ``list jobs (batch) in all namespaces``
    is one of a group.
    """
    places: dict[tuple[str, str, str], list[str]] = {}
    for one in sorted(permissions):
        place = "" if one.resource in CLUSTER_WIDE else "*"
        places.setdefault((one.group, one.verb, one.resource), []).append(one.namespace or place)
    lines: dict[tuple[str, str, tuple[str, ...]], list[str]] = {}
    for (group, verb, resource), found in places.items():
        lines.setdefault((group, verb, tuple(found)), []).append(resource)
    return tuple(
        f"{verb} {', '.join(names)}{f' ({group})' if group else ''}{_there(found)}"
        for (group, verb, found), names in lines.items()
    )


def _there(places: tuple[str, ...]) -> str:
    if places == ("",):
        return ""
    if "*" in places:
        return " in all namespaces"
    return f" in namespace{'s' if len(places) > 1 else ''} {', '.join(places)}"


def other_reasons(lacking: Mapping[Permission, str]) -> tuple[str, ...]:
    """Return the words of refusals that say more than which permission lacks, each once."""
    said = dict.fromkeys(lacking.values())
    return tuple(one for one in said if not (_FORBIDDEN.search(one) or _ONLY_CREATE in one))


def refused_users(lacking: Mapping[Permission, str]) -> tuple[str, ...]:
    """Return as whom the cluster knows the one that it refused, from its words."""
    found = (_USER.search(said) for said in lacking.values())
    return tuple(dict.fromkeys(match[1] for match in found if match))
