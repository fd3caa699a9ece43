"""A recording grown to a large mesh, for load: its proxies again and again, with large dumps."""

from __future__ import annotations

import ipaddress
import json
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import datetime
from functools import cached_property
from typing import Any

from meshnb.errors import SourceError
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

_ENVOY_ADMIN = 15000
_DUMP = "/config_dump"
_PODS = ListQuestion("v1", "pods")
_FIRST_ADDRESS = ipaddress.ip_address("10.128.0.0")


class Grown:
    """A source with copies of the proxies of another one.

    A copy is a pod of its own, with another name, uid and address; it answers as the pod does that
    it is a copy of, so that what an answer says of itself is still the recorded pod's.
    """

    def __init__(self, source: Source, *, pods: int = 0, body_mb: float = 0.0) -> None:
        """Have at least so many pods with a proxy, and configuration dumps of at least that size.

        Raises :class:`~meshnb.errors.SourceError` when the source has no list of pods or no proxy.
        """
        self._source = source
        self._body_bytes = int(body_mb * 1_000_000)
        self._large: dict[Question, bytes] = {}
        self._asked: dict[tuple[str, str], list[Question]] = {}
        for question in source.questions():
            if isinstance(question, HttpQuestion | ProbeQuestion | LogQuestion):
                self._asked.setdefault((question.namespace, question.pod), []).append(question)
        found = [key for key, asked in self._asked.items() if _is_proxy(asked)]
        if not found or _PODS not in source.questions():
            raise SourceError(
                f"{source.label} has no proxy to copy.",
                next_step="Take a recording with the pods and a proxy's configuration dump.",
            )
        #: namespace and name of each copy, and the name of the pod that it is a copy of
        self._copies: dict[tuple[str, str], str] = {}
        for number in range(max(pods - len(found), 0)):
            namespace, name = found[number % len(found)]
            self._copies[namespace, f"{name}-copy{number}"] = name

    @property
    def label(self) -> str:
        """Name the source, and that it was grown."""
        return f"{self._source.label}, grown"

    @property
    def damage(self) -> tuple[str, ...]:
        """Say what of the recording is broken."""
        return self._source.damage

    @property
    def now(self) -> datetime:
        """When the newest answer was taken."""
        return self._source.now

    @property
    def server_version(self) -> Any:
        """What the recorded API server said of its own version, where it was kept."""
        return getattr(self._source, "server_version", None)

    def questions(self) -> tuple[Question, ...]:
        """Return the recorded questions, and those of each copy."""
        return self._questions

    @cached_property
    def _questions(self) -> tuple[Question, ...]:
        copied = [
            _of_pod(question, name)
            for (namespace, name), original in self._copies.items()
            for question in self._asked[namespace, original]
        ]
        return (*self._source.questions(), *copied)

    def ask(self, questions: Iterable[Question]) -> Iterator[Answer]:
        """Yield the answer of the recorded pod to each question about one of its copies."""
        for question in questions:
            if question == _PODS:
                yield self._pods
                continue
            recorded = question
            if isinstance(question, HttpQuestion | ProbeQuestion | LogQuestion):
                original = self._copies.get((question.namespace, question.pod), question.pod)
                recorded = _of_pod(question, original)
            answer = only(self._source, recorded)
            if self._body_bytes and _is_dump(question) and answer.body:
                answer = replace(answer, body=self._enlarged(recorded, answer.content))
            yield replace(answer, question=question)

    def _enlarged(self, recorded: Question, content: bytes) -> bytes:
        """Return the same JSON with spaces after it; made once per recorded pod."""
        if recorded not in self._large:
            self._large[recorded] = content.ljust(self._body_bytes)
        return self._large[recorded]

    @cached_property
    def _pods(self) -> Answer:
        answer = only(self._source, _PODS)
        document = json.loads(answer.content)
        by_name = {
            (item["metadata"].get("namespace"), item["metadata"]["name"]): item
            for item in document["items"]
        }
        for number, ((namespace, name), original) in enumerate(self._copies.items()):
            item = by_name.get((namespace, original))
            if item is not None:
                document["items"].append(_copy(item, name, number))
        return replace(answer, body=json.dumps(document).encode())


def _is_proxy(asked: Iterable[Question]) -> bool:
    return any(map(_is_dump, asked))


def _is_dump(question: Question) -> bool:
    return (
        isinstance(question, HttpQuestion)
        and question.port == _ENVOY_ADMIN
        and question.path.startswith(_DUMP)
    )


def _of_pod(question: Question, pod: str) -> Question:
    assert not isinstance(question, ListQuestion), "a list is of no pod"
    return replace(question, pod=pod)


def _copy(item: dict[str, Any], name: str, number: int) -> dict[str, Any]:
    address = str(_FIRST_ADDRESS + number)
    identity = str(uuid.uuid5(uuid.NAMESPACE_DNS, name))
    return {
        **item,
        "metadata": {**item["metadata"], "name": name, "uid": identity},
        "status": {**item.get("status", {}), "podIP": address, "podIPs": [{"ip": address}]},
    }
