"""A recording in memory, to which the things are added that a real mesh has beside its fault.

An ingredient adds one such thing, in every answer in which it would show: Kubernetes' lists, the
proxies' dumps, istiod's pages, the logs. None of them is a fault: a healthy mesh stays healthy, and
the cause of a faulty one stays what it was.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import msgspec

from meshnb.errors import NotRecorded
from meshnb.sources import Answer, HttpQuestion, ListQuestion, LogQuestion, Question, Source
from meshnb.sources.base import question_from_json
from tests.alteration import Line, read_line
from tests.renaming import renamed

Json = Any


@dataclass
class Enriched:
    """A source with the answers of another one, which can be changed before they are given."""

    of: Source
    #: the objects that a label blames, as its texts name them; what must be left as it is
    truth: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Take all answers."""
        questions = list(self.of.questions())
        self._answers = {answer.question: answer for answer in self.of.ask(questions)}
        self._documents: dict[Question, Json] = {}
        self._logs: dict[LogQuestion, list[str]] = {}
        self._addresses = iter(range(2, 250))

    @property
    def label(self) -> str:
        """Name the recording."""
        return f"{self.of.label}, enriched"

    @property
    def damage(self) -> tuple[str, ...]:
        """Say what is broken of the recording."""
        return self.of.damage

    @property
    def now(self) -> datetime:
        """The moment of the recording."""
        return self.of.now

    def questions(self) -> tuple[Question, ...]:
        """Return the recorded questions and those about what was added."""
        return tuple(self._answers)

    def ask(self, questions: Iterable[Question]) -> Iterator[Answer]:
        """Yield the answer to each question, with what was changed of it."""
        for question in questions:
            if question not in self._answers:
                raise NotRecorded(f"{self.label} was never asked {question}.")
            answer = self._answers[question]
            if question in self._documents:
                answer = replace(answer, body=msgspec.json.encode(self._documents[question]))
            elif isinstance(question, LogQuestion) and question in self._logs:
                answer = replace(answer, body="\n".join([*self._logs[question], ""]).encode())
            yield answer

    def usable(self, question: Question) -> bool:
        """Whether there is an answer to change."""
        answer = self._answers.get(question)
        return answer is not None and answer.error is None and (answer.status or 0) < 400

    def document(self, question: Question) -> Json:
        """Return the JSON of an answer; what is changed in it is answered."""
        if question not in self._documents:
            self._documents[question] = json.loads(self._answers[question].content)
        return self._documents[question]

    def text(self, question: Question) -> str:
        """Return the text of an answer as it was recorded."""
        return self._answers[question].content.decode()

    def give(self, question: Question, body: bytes, *, like: Question | None = None) -> None:
        """Answer a question with these bytes."""
        found = self._answers[like or question]
        self._documents.pop(question, None)
        self._answers[question] = replace(found, question=question, body=body, error=None)

    def copy_answer(self, question: Question, like: Question) -> None:
        """Answer a question as another one was answered, refusal and all."""
        self._answers[question] = replace(self._answers[like], question=question)

    def objects(self, resource: str, group: str | None = None) -> list[Json]:
        """Return the objects of a resource, to be changed in place; none when it was not asked."""
        for question in self._answers:
            if (
                isinstance(question, ListQuestion)
                and question.resource == resource
                and group in (None, question.api_version.rpartition("/")[0])
            ):
                if not self.usable(question):
                    return []
                document = self.document(question)
                document["items"] = document.get("items") or []
                items: list[Json] = document["items"]
                return items
        return []

    def add(self, api_version: str, kind: str, name: str, namespace: str = "", **rest: Any) -> Json:
        """Add an object that has stood for two hours, here and where istiod lists it."""
        made = self.ago(hours=2)
        metadata: Json = {
            "name": name,
            "uid": f"uid-{kind}-{namespace}-{name}".lower(),
            "resourceVersion": "4711",
            "generation": 1,
            "creationTimestamp": made,
            "managedFields": [{"manager": "argocd", "operation": "Update", "time": made}],
            **rest.pop("metadata", {}),
        }
        if namespace:
            metadata["namespace"] = namespace
        added: Json = {"apiVersion": api_version, "kind": kind, "metadata": metadata, **rest}
        group = api_version.rpartition("/")[0]
        resource = _PLURALS.get(kind, f"{kind.lower()}s")
        listed = any(
            isinstance(asked, ListQuestion)
            and (asked.resource, asked.api_version.rpartition("/")[0]) == (resource, group)
            for asked in self._answers
        )
        # What of Istio's kinds was not listed is known from istiod, with all that there is of it.
        if not listed and "istio.io" not in api_version:
            other = next(q for q in self._answers if isinstance(q, ListQuestion))
            self.give(ListQuestion(api_version, resource), b'{"items":[]}', like=other)
            listed = True
        if listed:
            self.objects(resource, group).append(added)
        if "istio.io" in api_version:
            for page in self.pages("/debug/configz"):
                page.append(added)
        return added

    def pages(self, path: str) -> list[Json]:
        """Return the JSON of each page whose path begins so, to be changed in place."""
        return [self.document(question) for question in self.asked(path)]

    def asked(self, path: str) -> list[HttpQuestion]:
        """Return the questions for pages whose path begins so, those that were answered."""
        return [
            question
            for question in self._answers
            if isinstance(question, HttpQuestion)
            and question.path.startswith(path)
            and self.usable(question)
        ]

    def logs(self, container: str = "istio-proxy") -> list[LogQuestion]:
        """Return the questions for the logs of containers with this name."""
        return [
            question
            for question in self._answers
            if isinstance(question, LogQuestion)
            and question.container == container
            and not question.previous
            and self.usable(question)
        ]

    def lines(self, question: LogQuestion) -> list[str]:
        """Return the lines of a log, to be changed in place."""
        if question not in self._logs:
            self._logs[question] = self.text(question).splitlines()
        return self._logs[question]

    def access(self, question: LogQuestion) -> list[Line]:
        """Return the lines of a proxy's access log in the default format."""
        return [line for text in self.lines(question) if (line := read_line(text)) is not None]

    def rewrite(self, question: LogQuestion, change: Callable[[Line], Iterable[Line]]) -> None:
        """Put other lines in the place of each line of an access log."""
        kept: list[str] = []
        for text in self.lines(question):
            line = read_line(text)
            kept += [text] if line is None else [str(one) for one in change(line)]
        self._logs[question] = kept

    def insert(self, question: LogQuestion, lines: Iterable[Line | str]) -> None:
        """Add lines to a log, evenly spread over the times that it has; they take those times."""
        new = list(lines)
        old = self.lines(question)
        places = [place for place, text in enumerate(old) if read_line(text) is not None]
        if not places:
            return
        for number, line in reversed(list(enumerate(new))):
            place = places[number * len(places) // len(new)]
            near = read_line(old[place])
            assert near is not None
            text = line._replace(time=near.time) if isinstance(line, Line) else line
            old.insert(place + 1, str(text))

    def ago(self, **span: float) -> str:
        """Return a moment before that of the recording, as Kubernetes writes it."""
        return (self.now - timedelta(**span)).strftime("%Y-%m-%dT%H:%M:%SZ")

    def address(self) -> str:
        """Return an address that no pod of the recording has."""
        return f"10.244.77.{next(self._addresses)}"

    def service_address(self) -> str:
        """Return a cluster address that no Service of the recording has."""
        return f"10.96.77.{next(self._addresses)}"

    def forget(self, keep: Callable[[Question], bool]) -> None:
        """Let the questions never have been asked of which ``keep`` says no."""
        self._answers = {q: answer for q, answer in self._answers.items() if keep(q)}

    def rename(self) -> None:
        """Give everything that somebody chose a name for another one, in questions and answers."""
        kept = {}
        for question, answer in self._answers.items():
            asked = question_from_json(json.loads(renamed(json.dumps(question.to_json()).encode())))
            body = renamed(answer.content) if answer.body is not None else None
            kept[asked] = replace(answer, question=asked, body=body)
        self._answers = kept
        self._documents, self._logs = {}, {}

    def refuse(self, question: Question, reason: str) -> None:
        """Let the API server refuse a question."""
        found = self._answers[question]
        self._answers[question] = replace(found, status=403, body=None, error=reason)


_PLURALS: Mapping[str, str] = {
    "NetworkPolicy": "networkpolicies",
    "AuthorizationPolicy": "authorizationpolicies",
    "ServiceEntry": "serviceentries",
    "Telemetry": "telemetries",
    "Endpoints": "endpoints",
}

Ingredient = Callable[[Enriched], None]


def name_of(item: Json) -> tuple[str, str]:
    """Return namespace and name of a Kubernetes object."""
    return item["metadata"].get("namespace", ""), item["metadata"]["name"]


def wants_injection(namespace: Json) -> bool:
    """Whether a Namespace is labelled for injection, by either label."""
    labels = namespace["metadata"].get("labels") or {}
    return labels.get("istio-injection") == "enabled" or "istio.io/rev" in labels


def under_other_names(mesh: Enriched) -> Enriched:
    """Return the same with every name replaced that somebody chose in the recorded mesh."""
    other = Enriched(mesh)
    other.rename()
    return other
