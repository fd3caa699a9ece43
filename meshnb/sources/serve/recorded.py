"""What a source can answer, ordered as an API server looks it up: lists, ports of pods, logs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from meshnb.sources.base import (
    Answer,
    HttpQuestion,
    ListQuestion,
    LogQuestion,
    ProbeQuestion,
    Question,
    Source,
    only,
)
from meshnb.sources.ports import moved_ports
from meshnb.sources.serve.kinds import Kind, known_kind

#: How recorders say that they waited in vain, in lower case.
_TIMED_OUT = ("timed out", "timeout", "deadline exceeded", "no answer within")
_DEFINITIONS = ("apiextensions.k8s.io/v1", "customresourcedefinitions")


@dataclass(frozen=True)
class Collection:
    """The recorded list of one resource: its kind, and its objects or why there are none."""

    api_version: str
    resource: str
    answer: Answer
    #: what the cluster's own definition of the kind says, where that is recorded
    definition: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def document(self) -> Mapping[str, Any]:
        """The list as it was recorded; empty where the answer holds no JSON object."""
        try:
            document = json.loads(self.answer.content)
        except (ValueError, RecursionError):
            return {}
        return document if isinstance(document, dict) else {}

    @property
    def readable(self) -> bool:
        """Whether there is a list, as against a refusal, an error or silence."""
        return self.answer.error is None and self.answer.status == 200 and bool(self.document)

    @cached_property
    def items(self) -> tuple[dict[str, Any], ...]:
        """The objects as they were listed: those of built-in kinds name no kind in a list."""
        if not self.readable:
            return ()
        items = self.document.get("items")
        return tuple(
            item
            for item in (items if isinstance(items, list) else [])
            if isinstance(item, dict) and isinstance(item.get("metadata"), dict)
        )

    def whole(self, item: dict[str, Any]) -> dict[str, Any]:
        """Return an object with its kind and API version, as it is on its own."""
        return {"kind": self.kind.name, "apiVersion": self.api_version, **item}

    def allows(self, namespace: str | None) -> bool:
        """Whether the recorder might list these objects in one namespace, or in all (None)."""
        only_in = self.answer.detail.get("namespaces")
        return not self.answer.refused and (only_in is None or namespace in only_in)

    @property
    def version(self) -> str:
        """The resource version at which the list was taken."""
        metadata = self.document.get("metadata")
        stated = metadata.get("resourceVersion") if isinstance(metadata, dict) else None
        return str(stated or "1")

    @property
    def group(self) -> str:
        """The API group; empty for the core group."""
        return self.api_version.rpartition("/")[0]

    @cached_property
    def kind(self) -> Kind:
        """The kind's names and scope: as defined in the cluster, as known, or as the list shows."""
        names, scope = self.definition.get("names"), self.definition.get("scope")
        if isinstance(names, dict):
            return Kind(
                str(names.get("kind")),
                namespaced=scope != "Cluster",
                short_names=tuple(map(str, names.get("shortNames") or ())),
                categories=tuple(map(str, names.get("categories") or ())),
            )
        known = known_kind(self.group, self.resource)
        if known is not None:
            return known
        listed = str(self.document.get("kind") or "")
        name = listed.removesuffix("List") or self.resource.removesuffix("s").capitalize()
        objects = [item.get("metadata") for item in self.document.get("items") or ()]
        # Of an unknown kind without objects, most are in namespaces.
        namespaced = not objects or any("namespace" in one for one in objects if one)
        return Kind(name, namespaced)

    def find(self, namespace: str | None, name: str) -> dict[str, Any] | None:
        """Return the object of this name, or None."""
        return self._by_name.get((namespace or "", name))

    @cached_property
    def _by_name(self) -> dict[tuple[str, str], dict[str, Any]]:
        return {
            (str(item["metadata"].get("namespace", "")), str(item["metadata"].get("name"))): item
            for item in self.items
        }


@dataclass(frozen=True)
class Port:
    """What was asked of one port of one pod: paths in HTTP, and probes by protocol."""

    namespace: str
    pod: str
    number: int
    paths: dict[str, HttpQuestion] = field(default_factory=dict)
    probes: dict[str, ProbeQuestion] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Closed:
    """Why there was no connection to a port: the API server's refusal, or the pod's own."""

    #: the status that the API server refused with; None where the pod did
    status: int | None
    reason: str


def timed_out(answer: Answer) -> bool:
    """Whether the recorder waited for an answer until it gave up."""
    error = (answer.error or "").lower()
    return any(words in error for words in _TIMED_OUT)


class Recorded:
    """A source, by the addresses that an API server answers at."""

    def __init__(self, source: Source) -> None:
        """Sort the source's questions; answers are read when they are asked for."""
        self.source = source
        self._lists: dict[tuple[str, str], ListQuestion] = {}
        self._collections: dict[tuple[str, str], Collection] = {}
        self._ports: dict[tuple[str, str, int], Port] = {}
        self._logs: dict[tuple[str, str, str, bool], LogQuestion] = {}
        self._closed: dict[tuple[str, str, int], Closed | None] = {}
        #: the recorded name of each pod that got another one
        self._renamed: dict[tuple[str, str], str] = {}
        for question in source.questions():
            match question:
                case ListQuestion(api_version, resource):
                    self._lists[api_version, resource] = question
                case HttpQuestion(namespace, pod, number, path):
                    self._port(namespace, pod, number).paths[path] = question
                case ProbeQuestion(namespace, pod, number, protocol):
                    self._port(namespace, pod, number).probes[protocol] = question
                case LogQuestion(namespace, pod, container, previous):
                    self._logs[namespace, pod, container, previous] = question

    def _port(self, namespace: str, pod: str, number: int) -> Port:
        key = (namespace, pod, number)
        return self._ports.setdefault(key, Port(namespace, pod, number))

    def collection(self, api_version: str, resource: str) -> Collection | None:
        """Return the recorded list of a resource, or None where it was never asked for."""
        key = (api_version, resource)
        if key not in self._lists:
            return None
        if key not in self._collections:
            definition = {} if key == _DEFINITIONS else self._definition(api_version, resource)
            answer = only(self.source, self._lists[key])
            self._collections[key] = Collection(api_version, resource, answer, definition)
        return self._collections[key]

    def collections(self) -> tuple[Collection, ...]:
        """Return the lists of all resources that the recorded cluster knew."""
        found = (self.collection(*key) for key in self._lists)
        return tuple(one for one in found if one is not None and one.answer.status != 404)

    def _definition(self, api_version: str, resource: str) -> Mapping[str, Any]:
        definitions = self.collection(*_DEFINITIONS)
        group = api_version.rpartition("/")[0]
        found = definitions and definitions.find(None, f"{resource}.{group}")
        spec = found.get("spec") if found else None
        return spec if isinstance(spec, dict) else {}

    def port(self, namespace: str, pod: str, number: int) -> Port | None:
        """Return what was asked of a port, or None where nothing was.

        Where the pod says that it listens elsewhere than usual, the questions name the usual port.
        """
        name = self._recorded_name(namespace, pod)
        moved = moved_ports(self.pod(namespace, pod) or {})
        usual = next((usual for usual, real in moved.items() if real == number), number)
        return self._ports.get((namespace, name, usual))

    def closed(self, port: Port) -> Closed | None:
        """Return why there was no connection to a port, or None where there was one."""
        key = (port.namespace, port.pod, port.number)
        if key not in self._closed:
            self._closed[key] = self._why_closed(port)
        return self._closed[key]

    def _why_closed(self, port: Port) -> Closed | None:
        asked: list[Question] = [*port.probes.values(), *port.paths.values()]
        errors: list[Answer] = []
        for answer in self.source.ask(asked):
            if answer.error is None:
                return None
            errors.append(answer)
        first = errors[0]
        if first.status is not None and first.status >= 400:
            return Closed(first.status, first.error or "")
        if "tcp" not in port.probes and not all("refused" in (one.error or "") for one in errors):
            return None
        return Closed(None, "i/o timeout" if timed_out(first) else "connection refused")

    def log(self, namespace: str, pod: str, container: str, *, previous: bool) -> Answer | None:
        """Return a container's recorded log, or None where nobody asked for it."""
        name = self._recorded_name(namespace, pod)
        question = self._logs.get((namespace, name, container, previous))
        return None if question is None else only(self.source, question)

    def pod(self, namespace: str, name: str) -> dict[str, Any] | None:
        """Return a recorded pod, or None."""
        pods = self.collection("v1", "pods")
        return None if pods is None else pods.find(namespace, name)

    def uid(self, namespace: str, name: str) -> str | None:
        """Return which pod has this name now; None where none has, or nothing lists them."""
        pod = self.pod(namespace, name)
        return None if pod is None else str(pod["metadata"].get("uid", ""))

    def knows_pod(self, namespace: str, name: str) -> bool:
        """Whether a pod is in the list of pods, or was asked something where there is no list."""
        pods = self.collection("v1", "pods")
        if pods is not None and pods.readable:
            return self.pod(namespace, name) is not None
        asked = {(port.namespace, port.pod) for port in self._ports.values()}
        return (namespace, name) in asked | {(key[0], key[1]) for key in self._logs}

    def remove_pod(self, namespace: str, name: str) -> dict[str, Any] | None:
        """Take a pod out of the list and return it; None where the list has no such pod."""
        pod = self.pod(namespace, name)
        if pod is not None:
            self._replace_pods(lambda items: [each for each in items if each is not pod])
        return pod

    def add_pod(self, pod: dict[str, Any], *, like: str) -> None:
        """Put a pod into the list that answers as the one called ``like`` does."""
        namespace = str(pod["metadata"].get("namespace", ""))
        name = self._recorded_name(namespace, like)
        self._renamed[namespace, str(pod["metadata"]["name"])] = name
        self._replace_pods(lambda items: [*items, pod])

    def _replace_pods(
        self, change: Callable[[tuple[dict[str, Any], ...]], list[dict[str, Any]]]
    ) -> None:
        pods = self.collection("v1", "pods")
        if pods is None or not pods.readable:
            return
        version = {"resourceVersion": str(int(pods.version) + 1 if pods.version.isdigit() else 2)}
        document = {**pods.document, "metadata": version, "items": change(pods.items)}
        answer = replace(pods.answer, body=json.dumps(document).encode())
        self._collections["v1", "pods"] = Collection("v1", "pods", answer, pods.definition)

    def _recorded_name(self, namespace: str, pod: str) -> str:
        return self._renamed.get((namespace, pod), pod)

    @property
    def server_version(self) -> Mapping[str, Any] | None:
        """What the recorded API server said of its own version, where the source kept it."""
        stated = getattr(self.source, "server_version", None)
        return stated if isinstance(stated, Mapping) else None
