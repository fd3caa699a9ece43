"""Puts questions to a cluster, many at once, so that each failure costs only its own answer."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import aiohttp

from meshnb.errors import SourceError
from meshnb.sources.api_server import ApiServer, Refused, api_path, in_words
from meshnb.sources.base import (
    Answer,
    Body,
    HttpQuestion,
    ListQuestion,
    LogQuestion,
    ProbeQuestion,
    Question,
)
from meshnb.sources.kubelet import no_log, not_forwarded, too_late
from meshnb.sources.limits import Limits
from meshnb.sources.pod_pages import PodPages
from meshnb.sources.port_forward import (
    PROTOCOL,
    Broken,
    Forward,
    NotForwarded,
    TlsOverForward,
    forward_path,
    open_forward,
    stays_open,
)
from meshnb.sources.questions import group_of
from meshnb.sources.spool import TooLarge

#: So many lists and logs are read at once.
LISTS_AT_ONCE = 16
#: A connection that stays open so long without a word is one to an open port, in seconds; so many
#: times as long as it took to open, when that is longer, because then everything is slow. It is
#: never so long that a server hangs up meanwhile whose client does not speak.
_SILENCE_S, _SILENCE_FACTOR, _LONGEST_SILENCE_S = 0.7, 4, 4.0
#: So many times as long as the limit says an answer may take in all: a probe opens the way first,
#: and a large page keeps coming.
_PATIENCE = {ListQuestion: 1, LogQuestion: 1, ProbeQuestion: 2, HttpQuestion: 10}
#: What a client of HTTP/2 says first, and empty SETTINGS (RFC 9113, sections 3.4 and 6.5).
_HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
_SETTINGS = 4
#: Logs of these containers are read at greater length: they are evidence.
_OF_ISTIO = frozenset({"istio-proxy", "istio-init", "istio-validation", "discovery", "install-cni"})
_LOG_LINES, _LOG_BYTES = 20_000, 32 << 20
_OTHER_LOG_LINES, _OTHER_LOG_BYTES = 2_000, 1 << 20

#: What came back: status, body, detail.
_Outcome = tuple[int, Body, Mapping[str, Any]]


@dataclass(slots=True)
class Asking:
    """One go at asking. ``put`` takes each answer, and may make one wait."""

    server: ApiServer
    limits: Limits
    put: Callable[[Answer], Awaitable[None]]
    #: where to list when all namespaces are refused
    namespaces: tuple[str, ...]
    cluster_wide: frozenset[tuple[str, str]]
    #: pods that listen elsewhere than usual: the real port by the usual one
    moved: Mapping[tuple[str, str], Mapping[int, int]] = field(default_factory=dict)
    #: since when pods are asked, by the clock that never goes back
    busy: dict[str, float] = field(default_factory=dict)
    _forwards: asyncio.Semaphore = field(init=False)
    _requests: asyncio.Semaphore = field(init=False)
    _refusals: dict[str, str] = field(default_factory=dict)
    _failures: dict[tuple[str, str, int], str] = field(default_factory=dict)
    _ended: dict[tuple[str, str], bool] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Bound what runs at once."""
        self._forwards = asyncio.Semaphore(self.limits.connections)
        self._requests = asyncio.Semaphore(LISTS_AT_ONCE)

    async def all(self, questions: Iterable[Question]) -> None:
        """Ask all of them: lists first, then the pods."""
        lists: list[ListQuestion] = []
        pods: dict[tuple[str, str], list[HttpQuestion | ProbeQuestion | LogQuestion]] = {}
        for question in questions:
            if isinstance(question, ListQuestion):
                lists.append(question)
            else:
                pods.setdefault((question.namespace, question.pod), []).append(question)
        async with asyncio.TaskGroup() as group:
            for question in lists:
                group.create_task(self._list(question))
            for (namespace, pod), wanted in pods.items():
                group.create_task(self._pod(namespace, pod, wanted))

    async def _list(self, question: ListQuestion) -> None:
        async with self._requests:
            answer = await self._answer(question, self.listed(question))
        await self.put(answer)

    async def _pod(
        self,
        namespace: str,
        pod: str,
        questions: Sequence[HttpQuestion | ProbeQuestion | LogQuestion],
    ) -> None:
        pages: dict[int, list[HttpQuestion]] = {}
        probes: dict[int, list[ProbeQuestion]] = {}
        name = f"{namespace}/{pod}"
        try:
            async with asyncio.TaskGroup() as group:
                for question in questions:
                    match question:
                        case LogQuestion():
                            group.create_task(self._log(name, question))
                        case HttpQuestion():
                            pages.setdefault(question.port, []).append(question)
                        case ProbeQuestion():
                            probes.setdefault(question.port, []).append(question)
                for port in {**pages, **probes}:
                    group.create_task(self._port(name, pages.get(port, ()), probes.get(port, ())))
        finally:
            self.busy.pop(name, None)

    async def _log(self, name: str, question: LogQuestion) -> None:
        async with self._requests:
            self.busy.setdefault(name, time.monotonic())
            answer = await self._answer(question, self._logged(question))
        await self.put(answer)

    async def _port(
        self, name: str, pages: Sequence[HttpQuestion], probes: Sequence[ProbeQuestion]
    ) -> None:
        """Ask one port: its pages over one connection, then what of it they did not show."""
        async with self._forwards:
            self.busy.setdefault(name, time.monotonic())
            speaks = False
            if pages:
                speaks = await self._pages(pages)
            for probe in probes:
                known = speaks and probe.protocol == "tcp"
                outcome = self._known_open(probe) if known else self._probed(probe)
                await self.put(await self._answer(probe, outcome))

    async def _pages(self, pages: Sequence[HttpQuestion]) -> bool:
        """Ask for the pages of one port; return whether it answered any."""
        first = pages[0]
        connection = PodPages(
            self.server,
            first.namespace,
            first.pod,
            self._real_port(first),
            patience_s=self.limits.question_s,
        )
        timeouts = 0
        answer = _failed(first, "not asked")
        try:
            for question in pages:
                if timeouts > (1 if connection.answered else 0):
                    answer = _after(question, answer)
                else:
                    last = question is pages[-1]
                    answer = await self._answer(question, self._page(connection, question, last))
                    timeouts = timeouts + 1 if _timed_out(answer) else 0
                await self.put(answer)
        finally:
            await connection.close()
        return connection.answered

    async def _answer(self, question: Question, outcome: Awaitable[_Outcome]) -> Answer:
        """Wait for one outcome, within the limit; what fails becomes an answer in words."""
        begun = time.monotonic()
        status: int | None = None
        body: Body | None = None
        detail: Mapping[str, Any] = {}
        error: str | None = None
        try:
            async with asyncio.timeout(self.limits.question_s * _PATIENCE[type(question)]):
                status, body, detail = await outcome
        except TimeoutError:
            error = f"{_TIMED_OUT}{self.limits.question_s:g} s"
        except NotForwarded:
            status, error = 504, too_late(self.limits.question_s)
        except Refused as refused:
            status, error = await self._said(question, refused)
        except (Broken, TooLarge, SourceError) as failed:
            error = str(failed)
        except (aiohttp.ClientError, OSError) as failed:
            error = in_words(failed)
        except Exception as failed:  # noqa: BLE001  a fault of ours costs one answer, not all
            error = f"meshnb failed: {type(failed).__name__}: {failed}"
        elapsed = (time.monotonic() - begun) * 1000
        return Answer(question, datetime.now(UTC), elapsed, status, body, error, detail)

    async def _said(self, question: Question, refused: Refused) -> tuple[int | None, str]:
        """Return the API server's status and its reason, of a question that it refused."""
        if isinstance(question, HttpQuestion | ProbeQuestion):
            if refused.status == 403:
                return 403, await self._why_not_forwarded(question)
            if refused.status == 404:
                return 404, f"there is no pod {question.namespace}/{question.pod} any more"
            if await self._has_ended(question):
                return 404, f"the pod {question.namespace}/{question.pod} has ended"
            return refused.status, await self._why_not_reached(question, refused)
        if isinstance(question, LogQuestion) and refused.status not in (401, 403):
            # As kubectl says it; what the API server itself failed at has no name.
            name = {400: "BadRequest", 404: "NotFound"}.get(refused.status)
            status = None if name == "BadRequest" else refused.status
            return status, f"Error from server{f' ({name})' if name else ''}: {refused}"
        return refused.status, str(refused)

    async def _why_not_forwarded(self, question: HttpQuestion | ProbeQuestion) -> str:
        """Return which permission lacks; the refusal of a WebSocket itself has no words here."""
        namespace = question.namespace
        if namespace not in self._refusals:
            try:
                async with asyncio.timeout(self.limits.question_s):
                    said = await self._words(question)
            except (TimeoutError, aiohttp.ClientError, OSError):
                said = f"pods/portforward is forbidden in the namespace {namespace!r}"
            self._refusals[namespace] = _refusal(said, namespace)
        return self._refusals[namespace]

    async def _has_ended(self, question: HttpQuestion | ProbeQuestion) -> bool:
        """Whether a pod that was listed has ended since: then nobody forwards to it."""
        place = question.namespace, question.pod
        if place not in self._ended:
            path = api_path("api", "v1", "namespaces", question.namespace, "pods")
            found: list[Any] = []
            with suppress(TimeoutError, Refused, aiohttp.ClientError, OSError):
                async with asyncio.timeout(self.limits.question_s):
                    found.append(await self.server.named(path, question.pod))
            self._ended[place] = bool(found) and _is_over(found[0])
        return self._ended[place]

    async def _words(self, question: HttpQuestion | ProbeQuestion) -> str:
        path = forward_path(question.namespace, question.pod)
        return await self.server.why_refused(path, {"ports": str(question.port)}, PROTOCOL)

    async def _why_not_reached(
        self, question: HttpQuestion | ProbeQuestion, refused: Refused
    ) -> str:
        """Return why the API server could not open the way to a pod."""
        place = question.namespace, question.pod, refused.status
        if place not in self._failures:
            said = ""
            with suppress(TimeoutError, aiohttp.ClientError, OSError):
                async with asyncio.timeout(self.limits.question_s):
                    said = await self._words(question)
            self._failures[place] = not_forwarded(refused.status, said or str(refused))
        return self._failures[place]

    async def listed(self, question: ListQuestion) -> _Outcome:
        """Return a list of all namespaces, or of those in scope where only that is allowed."""
        api, resource = question.api_version, question.resource
        root = ("apis", *api.split("/")) if "/" in api else ("api", api)
        try:
            status, body = await self.server.list(api_path(*root, resource))
        except Refused as refused:
            place = group_of(api), resource
            if refused.status != 403 or not self.namespaces or place in self.cluster_wide:
                raise
            bodies, allowed = [], []
            for namespace in self.namespaces:
                try:
                    path = api_path(*root, "namespaces", namespace, resource)
                    status, body = await self.server.list(path)
                except Refused:
                    continue
                if status == 404:  # RBAC comes first: only who is allowed hears that it is unknown
                    return status, body, {}
                bodies.append(body)
                allowed.append(namespace)
            if not bodies:
                raise
            return 200, self.server.joined(bodies), {"namespaces": allowed}
        return status, body, {}

    async def _logged(self, question: LogQuestion) -> _Outcome:
        of_istio = question.container in _OF_ISTIO
        lines, most = (_LOG_LINES, _LOG_BYTES) if of_istio else (_OTHER_LOG_LINES, _OTHER_LOG_BYTES)
        path = api_path("api", "v1", "namespaces", question.namespace, "pods", question.pod, "log")
        parameters = {"container": question.container, "limitBytes": str(most)}
        if question.previous:
            parameters["previous"] = "true"
        if self.limits.log_since_s is not None:
            parameters["sinceSeconds"] = str(self.limits.log_since_s)
        while True:
            body = await self.server.text(path, {**parameters, "tailLines": str(lines)})
            if why := no_log(body):
                raise Broken(why)
            if len(body) < most or lines <= 1:
                return 0, body, {}
            # The limit cuts off the newest lines, so that fewer are asked for.
            lines //= 8

    def _real_port(self, question: HttpQuestion | ProbeQuestion) -> int:
        moved = self.moved.get((question.namespace, question.pod), {})
        return moved.get(question.port, question.port)

    def _where(self, question: HttpQuestion | ProbeQuestion) -> Mapping[str, Any]:
        """Return the detail that says which port it was, when it is not the one in the question."""
        port = self._real_port(question)
        return {} if port == question.port else {"port": port}

    async def _page(self, connection: PodPages, question: HttpQuestion, last: bool) -> _Outcome:
        status, body = await connection.get(question.path, last=last)
        return status, body, self._where(question)

    async def _known_open(self, question: ProbeQuestion) -> _Outcome:
        return 0, b"", self._where(question)

    async def _probed(self, question: ProbeQuestion) -> _Outcome:
        place = question.namespace, question.pod, self._real_port(question)
        where = self._where(question)
        begun = time.monotonic()
        patience_s = self.limits.question_s
        async with open_forward(self.server, *place, patience_s=patience_s) as forward:
            match question.protocol:
                case "tls":
                    version, alpn, chain = await TlsOverForward(forward).handshake()
                    return 0, chain, {"tls_version": version, "alpn": alpn, **where}
                case "h2c":
                    return 0, b"", {"first_frame": await _first_frame(forward), **where}
                case "tcp":
                    opening = time.monotonic() - begun
                    silence = max(_SILENCE_S, _SILENCE_FACTOR * opening)
                    await stays_open(forward, min(silence, _LONGEST_SILENCE_S))
                    return 0, b"", where
                case other:
                    raise Broken(f"there is no probe for {other!r}")


#: How the API server begins to say that a pod's port is not forwarded, before the reason. From
#: Kubernetes 1.35 on, where `create` lacks, nothing comes after it.
_FORBIDDEN = re.compile(r'pods "[^"]*" is forbidden:\s*')


def _refusal(said: str, namespace: str) -> str:
    """Return a refusal of a port-forward so that it holds for every pod of the namespace."""
    match = _FORBIDDEN.match(said)
    why = said[match.end() :] if match else said
    return why or (
        f"create on pods/portforward is forbidden in the namespace {namespace!r}, which Kubernetes "
        "wants from 1.35 on, although get is allowed"
    )


_TIMED_OUT = "no answer within "


def _is_over(pod: Any) -> bool:
    """Whether a pod, or None where there is none any more, will answer no more."""
    if not isinstance(pod, dict):
        return True
    status, metadata = pod.get("status"), pod.get("metadata")
    phase = status.get("phase") if isinstance(status, dict) else None
    deleted = isinstance(metadata, dict) and metadata.get("deletionTimestamp") is not None
    return deleted or phase in ("Succeeded", "Failed")


def _timed_out(answer: Answer) -> bool:
    said = answer.error or ""
    return said.startswith(_TIMED_OUT) or (answer.undelivered and answer.status == 504)


def _failed(question: Question, why: str) -> Answer:
    return Answer(question, datetime.now(UTC), 0.0, error=why)


def _after(question: Question, timed_out: Answer) -> Answer:
    """Return the answer to a question that is not asked any more, after one that took too long."""
    if timed_out.undelivered:
        return replace(timed_out, question=question, elapsed_ms=0.0)
    return _failed(question, "not asked: the pod did not answer the ones before")


async def _first_frame(forward: Forward) -> str:
    """Greet as a client of HTTP/2 and return the type of the first frame. Raises Broken."""
    await forward.send(_HTTP2_PREFACE)
    received = b""
    while len(received) < 9:
        more = await forward.receive()
        if not more:
            raise Broken("the connection was closed instead of an answer in HTTP/2")
        received += more
    if received[3] != _SETTINGS:
        raise Broken(f"what came is no HTTP/2: it begins with {received[:9]!r}")
    return "SETTINGS"
