"""Which pods are istiod, and where they are: by label, and by what leads to them.

A pod is istiod by its label ``app: istiod`` or its container ``discovery``; and, under whatever
name, when a Service selects it that Istio's webhooks call, that proxies are told to connect to, or
that has the ports of istiod's (https://istio.io/latest/docs/ops/deployment/application-requirements/
names them).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import msgspec

from meshnb.sources.base import Answer, ListQuestion, Question
from meshnb.sources.questions import part_of
from meshnb.sources.scope import Pod

#: Where istiod is when nothing says otherwise.
ISTIO_NAMESPACE = "istio-system"
PODS = ListQuestion("v1", "pods")
SERVICES = ListQuestion("v1", "services")
INJECTORS = ListQuestion("admissionregistration.k8s.io/v1", "mutatingwebhookconfigurations")
VALIDATORS = ListQuestion("admissionregistration.k8s.io/v1", "validatingwebhookconfigurations")

#: A Service's name within the cluster, in an address such as istiod.istio-system.svc:15012.
_SERVICE_ADDRESS = re.compile(r"([a-z0-9-]+)\.([a-z0-9-]+)\.svc\b")
_DISCOVERY_ADDRESS = re.compile(
    r"discoveryAddress[\"']?\s*:\s*[\"']?([a-z0-9-]+)\.([a-z0-9-]+)\.svc\b"
)
#: A Service with the first port and one of the others is istiod's. So is that of a gateway to it
#: from other clusters, whose pods are proxies.
_XDS_PORT, _OTHER_PORTS = 15012, frozenset({15010, 15014, 15017})
_DEFAULT_REVISION = "default"

Answers = Mapping[Question, Answer]
#: Namespace and name.
_Name = tuple[str, str]


def objects_in(document: Any, name: str) -> Iterator[Mapping[str, Any]]:
    """Yield the objects of a field that may be anything."""
    found = document.get(name) if isinstance(document, dict) else None
    for one in found if isinstance(found, list) else ():
        if isinstance(one, dict):
            yield one


def listed(answer: Answer | None) -> list[Mapping[str, Any]]:
    """Return the objects of a list; none when it could not be had."""
    if answer is None or answer.status != 200 or not answer.body:
        return []
    try:
        return list(objects_in(msgspec.json.decode(answer.body), "items"))
    except (msgspec.DecodeError, UnicodeDecodeError):
        return []


def injectors(answers: Answers) -> Iterator[Mapping[str, Any]]:
    """Yield each webhook of Istio that injects."""
    yield from _webhooks(answers, INJECTORS)


def _webhooks(answers: Answers, question: Question) -> Iterator[Mapping[str, Any]]:
    for configuration in listed(answers.get(question)):
        for webhook in objects_in(configuration, "webhooks"):
            if str(webhook.get("name")).endswith("istio.io"):
                yield webhook


def namespaces_of_istiod(answers: Answers) -> set[str]:
    """Return the namespaces that webhooks and proxies name as those of their istiod."""
    found = {ISTIO_NAMESPACE, *(namespace for namespace, _ in _called(answers))}
    for value in _told(answers, ("CA_ADDR", "PROXY_CONFIG")):
        found.update(namespace for _, namespace in _SERVICE_ADDRESS.findall(value))
    return found


def _called(answers: Answers) -> Iterator[_Name]:
    """Yield the Services that Istio's webhooks call."""
    for question in (INJECTORS, VALIDATORS):
        for webhook in _webhooks(answers, question):
            service = (webhook.get("clientConfig") or {}).get("service") or {}
            if service.get("namespace") and service.get("name"):
                yield str(service["namespace"]), str(service["name"])


def _told(answers: Answers, names: Sequence[str]) -> Iterator[str]:
    """Yield the values of these variables of all proxies."""
    for pod in listed(answers.get(PODS)):
        spec = pod.get("spec")
        for container in (*objects_in(spec, "containers"), *objects_in(spec, "initContainers")):
            if container.get("name") == "istio-proxy":
                for variable in objects_in(container, "env"):
                    if variable.get("name") in names:
                        yield str(variable.get("value"))


def parts(answers: Answers) -> dict[str, list[Pod]]:
    """Return the listed pods by their part in the mesh; see :func:`part_of`."""
    selectors = list(_selectors(answers))
    found: dict[str, list[Pod]] = {}
    for pod in listed(answers.get(PODS)):
        part = part_of(pod)
        if part == "none" and any(_selected(pod, *one) for one in selectors):
            part = "istiod"
        found.setdefault(part, []).append(pod)
    return found


def _selectors(answers: Answers) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the namespace and the selector of each Service that leads to istiod."""
    names = set(_called(answers))
    for value in _told(answers, ("PROXY_CONFIG",)):
        names |= {(found[1], found[0]) for found in _DISCOVERY_ADDRESS.findall(value)}
    for service in listed(answers.get(SERVICES)):
        metadata, spec = service.get("metadata") or {}, service.get("spec") or {}
        name = str(metadata.get("namespace")), str(metadata.get("name"))
        ports = {port.get("port") for port in objects_in(spec, "ports")}
        leads = name in names or (_XDS_PORT in ports and bool(ports & _OTHER_PORTS))
        if leads and isinstance(selector := spec.get("selector"), dict) and selector:
            yield name[0], selector


def _selected(pod: Pod, namespace: str, selector: Mapping[str, Any]) -> bool:
    metadata = pod.get("metadata") or {}
    labels = metadata.get("labels") or {}
    return metadata.get("namespace") == namespace and selector.items() <= labels.items()


def revision_of(istiod: Pod) -> str:
    """Return the revision of an istiod; ``default`` where it has no other."""
    labels = (istiod.get("metadata") or {}).get("labels") or {}
    return str(labels.get("istio.io/rev") or _DEFAULT_REVISION)


def revision_behind(answers: Answers, tag: str) -> str:
    """Return the revision that a tag stands for; the tag itself where it is none.

    ``istioctl tag set`` labels a webhook or a Service with both.
    """
    for question in (INJECTORS, SERVICES):
        for one in listed(answers.get(question)):
            labels = (one.get("metadata") or {}).get("labels") or {}
            if labels.get("istio.io/tag") == tag and labels.get("istio.io/rev"):
                return str(labels["istio.io/rev"])
    return tag


def outside(answers: Answers) -> str:
    """Say that an injector's webhook leads out of the cluster; empty when none does."""
    for webhook in injectors(answers):
        url = (webhook.get("clientConfig") or {}).get("url")
        if url:
            host = urlsplit(str(url)).hostname or "another host"
            return (
                f"istiod runs outside this cluster: the webhook {webhook.get('name')} calls {host}."
            )
    return ""
