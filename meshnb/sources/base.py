"""Questions and answers as values, and what a source is.

Every question that can be put to a mesh is one of four values, and so is every answer. A live
cluster and a recorded bundle answer the same questions, so nothing above this room knows which of
the two it looks at.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from mmap import mmap
from typing import Any, Protocol, runtime_checkable

from meshnb.errors import SourceError


@dataclass(frozen=True, slots=True)
class ListQuestion:
    """All objects of one Kubernetes resource, in all namespaces."""

    api_version: str
    resource: str

    def __str__(self) -> str:
        """Return the question as a person would write it: ``LIST v1/pods``."""
        return f"LIST {self.api_version}/{self.resource}"

    def to_json(self) -> dict[str, Any]:
        """Return the question as a line of a bundle's index has it."""
        return {"kind": "list", "apiVersion": self.api_version, "resource": self.resource}


@dataclass(frozen=True, slots=True)
class HttpQuestion:
    """GET on a container port of a pod, as through a port-forward."""

    namespace: str
    pod: str
    port: int
    path: str

    def __str__(self) -> str:
        """Return the question as a person would write it: ``GET bookinfo/client:15000/certs``."""
        return f"GET {self.namespace}/{self.pod}:{self.port}{self.path}"

    def to_json(self) -> dict[str, Any]:
        """Return the question as a line of a bundle's index has it."""
        return {
            "kind": "http",
            "namespace": self.namespace,
            "pod": self.pod,
            "port": self.port,
            "path": self.path,
        }


@dataclass(frozen=True, slots=True)
class ProbeQuestion:
    """Does a port of a pod answer: TCP (``tcp``), TLS (``tls``), HTTP/2 without TLS (``h2c``)."""

    namespace: str
    pod: str
    port: int
    protocol: str

    def __str__(self) -> str:
        """Return the question as a person would write it: ``PROBE mesh/istiod-1:15012 tls``."""
        return f"PROBE {self.namespace}/{self.pod}:{self.port} {self.protocol}"

    def to_json(self) -> dict[str, Any]:
        """Return the question as a line of a bundle's index has it."""
        return {
            "kind": "probe",
            "namespace": self.namespace,
            "pod": self.pod,
            "port": self.port,
            "protocol": self.protocol,
        }


@dataclass(frozen=True, slots=True)
class LogQuestion:
    """The log of one container, or of its previous run."""

    namespace: str
    pod: str
    container: str
    previous: bool = False

    def __str__(self) -> str:
        """Return the question as a person would write it: ``LOG bookinfo/client istio-proxy``."""
        return f"LOG {self.namespace}/{self.pod} {self.container}" + (
            " previous" if self.previous else ""
        )

    def to_json(self) -> dict[str, Any]:
        """Return the question as a line of a bundle's index has it."""
        return {
            "kind": "log",
            "namespace": self.namespace,
            "pod": self.pod,
            "container": self.container,
            "previous": self.previous,
        }


Question = ListQuestion | HttpQuestion | ProbeQuestion | LogQuestion

#: Bytes, or a file's that are not read before they are used.
Body = bytes | mmap


def question_from_json(request: Mapping[str, Any]) -> Question:
    """Read a question as a line of a bundle's index has it; unknown fields are ignored.

    Raises ValueError when the kind is unknown or a field is missing or of another type.
    """

    def text(name: str) -> str:
        value = request.get(name)
        if not isinstance(value, str):
            raise ValueError(f"field {name!r} of the request is {value!r}, not a string")
        return value

    def port() -> int:
        value = request.get("port")
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 65536:
            raise ValueError(f"field 'port' of the request is {value!r}, not a port number")
        return value

    match request.get("kind"):
        case "list":
            return ListQuestion(text("apiVersion"), text("resource"))
        case "http":
            return HttpQuestion(text("namespace"), text("pod"), port(), text("path"))
        case "probe":
            return ProbeQuestion(text("namespace"), text("pod"), port(), text("protocol"))
        case "log":
            return LogQuestion(
                text("namespace"), text("pod"), text("container"), request.get("previous") is True
            )
        case other:
            raise ValueError(f"the request's kind is {other!r}, not list, http, probe or log")


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back to one question: a body with a status, or an error in words.

    ``status`` is the HTTP status of a ``list`` or ``http`` answer and 0 for logs and probes. An
    answer with an ``error`` has no body, and a status only where the API server refused or failed;
    an answer without one may have an empty body.
    """

    question: Question
    taken_at: datetime
    elapsed_ms: float
    status: int | None = None
    body: Body | None = None
    error: str | None = None
    detail: Mapping[str, Any] = field(default_factory=dict)

    @property
    def content(self) -> bytes:
        """The body as bytes in memory; empty when there is none."""
        return bytes(self.body or b"")

    @property
    def refused(self) -> bool:
        """Whether the mesh refused to answer: HTTP 401 or 403."""
        return self.status in (401, 403)

    @property
    def undelivered(self) -> bool:
        """Whether the question never got to the pod, which is not to blame, then.

        The API server refused to forward it, knows no such pod any more, or could not reach the
        kubelet of its node: the status is the API server's.
        """
        return self.error is not None and (self.status or 0) >= 400

    @property
    def ended(self) -> bool:
        """Whether its pod ended between being listed and being asked, as pods do."""
        return self.undelivered and self.status == 404

    @property
    def silent(self) -> bool:
        """Whether nothing came back from whom the question got to."""
        return self.error is not None and not (self.refused or self.undelivered)


@runtime_checkable
class Source(Protocol):
    """Where answers come from: a live cluster or a recorded bundle."""

    @property
    def label(self) -> str:
        """Name the source in one short text; it stands above every table."""
        ...

    @property
    def damage(self) -> tuple[str, ...]:
        """Say what of the source itself is broken, a sentence each. Empty when it is whole."""
        ...

    @property
    def now(self) -> datetime:
        """The moment of the evidence: when the newest answer was taken."""
        ...

    def questions(self) -> Iterable[Question]:
        """Return every question that this source can be asked with profit."""
        ...

    def ask(self, questions: Iterable[Question]) -> Iterator[Answer]:
        """Yield an answer per question as it arrives; a silent pod yields an answer with ``error``.

        Raises :class:`~meshnb.errors.NotRecorded` when the source was never asked a question, and
        :class:`~meshnb.errors.SourceError` when it cannot be used at all.
        """
        ...


def parse_time(text: str) -> datetime:
    """Read an RFC 3339 time, with up to nine digits of a second, as an aware UTC datetime.

    Raises ValueError when the text is no time. Digits after the microseconds are cut.
    """
    head, dot, tail = text.partition(".")
    if dot:
        digits = len(tail) - len(tail.lstrip("0123456789"))
        text = f"{head}.{tail[: min(digits, 6)].ljust(6, '0')}{tail[digits:]}"
    moment = datetime.fromisoformat(text)
    try:
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except OverflowError:
        raise ValueError(f"{text!r} is before the year 1 or after the year 9999") from None


def only(source: Source, question: Question) -> Answer:
    """Ask one question and return its answer."""
    for answer in source.ask([question]):
        return answer
    raise SourceError(
        f"{source.label} gave no answer to {question}.", next_step="Record the bundle again."
    )
