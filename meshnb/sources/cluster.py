"""A live cluster as a source: asks its API server, and through it the pods of the mesh.

Read-only: GET, lists, logs and port-forwards, nothing else. Each go at asking has a thread of its
own with an event loop, which is gone when the go ends: by itself, by a limit, or because nobody
wants the rest.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from mmap import mmap
from types import TracebackType
from typing import Any, Self

import aiohttp

from meshnb.sources.api_server import ApiServer, Refused, unreachable
from meshnb.sources.asking import LISTS_AT_ONCE, Asking
from meshnb.sources.base import Answer, ListQuestion, ProbeQuestion, Question
from meshnb.sources.discovery import (
    FIRST,
    NAMESPACES,
    Findings,
    Resources,
    find_pods,
    find_resources,
)
from meshnb.sources.istiods import PODS, listed, namespaces_of_istiod
from meshnb.sources.kubeconfig import load_access
from meshnb.sources.limits import Limits
from meshnb.sources.open_files import connections_allowed
from meshnb.sources.progress import Progress
from meshnb.sources.scope import Scope

#: So many answers may wait to be taken before the asking waits, too.
_UNTAKEN = 256
#: How often whoever waits hears of the progress, in seconds.
_TICK_S = 0.2
#: In so many namespaces it is tried whether pods may be listed, where that is not allowed in all.
_TRIED = 50

Watch = Callable[[Progress], None]


@dataclass(slots=True)
class _Seen:
    """What the first look at a cluster showed."""

    resources: Resources
    findings: Findings
    scope: Scope
    questions: tuple[Question, ...]
    answers: dict[Question, Answer] = field(default_factory=dict)
    #: what the user should rather choose
    advice: str = ""


class Cluster:
    """A live cluster. Making one reads the kubeconfig; nothing is contacted before a question.

    The first lists are kept until they are asked for, so that the pods that a table shows are those
    that were asked. ``watch`` hears of the progress, in the thread that takes the answers, some
    times a second. Raises :class:`~meshnb.errors.SourceError` and
    :class:`~meshnb.errors.UsageError` as :func:`~meshnb.sources.kubeconfig.load_access` does.
    """

    def __init__(
        self,
        context: str | None = None,
        *,
        scope: Scope | None = None,
        limits: Limits | None = None,
        watch: Watch | None = None,
    ) -> None:
        """Choose a context of the kubeconfig, by default the current one."""
        self._access = load_access(context)
        self.scope = scope or Scope()
        self.limits = limits or Limits()
        self.watch = watch
        self._stopped = threading.Event()
        self._version: Mapping[str, Any] | None = None
        self._seen: _Seen | None = None
        self._partial: set[str] = set()
        self._now: datetime | None = None

    def __repr__(self) -> str:
        """Show the label and the server."""
        return f"<Cluster {self.label} at {self._access.server}>"

    @property
    def label(self) -> str:
        """Name the source: ``cluster:`` and the context."""
        return f"cluster:{self._access.context.name}"

    @property
    def damage(self) -> tuple[str, ...]:
        """Say what was left out, and why, a sentence each."""
        notes = self._seen.findings.notes if self._seen else []
        return (*notes, *self._forbidden)

    @property
    def bounds(self) -> tuple[str, ...]:
        """Say what of the damage is only that some was left out, by choice or by permission."""
        bounds = self._seen.findings.bounds if self._seen else []
        return (*bounds, *self._forbidden)

    @property
    def _forbidden(self) -> tuple[str, ...]:
        partial = sorted(self._partial)
        names = ", ".join(partial[:5]) + (f" and {len(partial) - 5} more" * (len(partial) > 5))
        said = f"Only of the namespaces in scope, because more is forbidden: {names}."
        return (said,) if partial else ()

    @property
    def now(self) -> datetime:
        """When the newest answer was taken; before the first one, the time of the clock."""
        return self._now or datetime.now(UTC)

    @property
    def manifest(self) -> Mapping[str, Any]:
        """Say for a recording which cluster it is, and where its istiod runs."""
        namespace = self._seen.findings.istio_namespace if self._seen else ""
        return {
            "cluster": self._access.context.cluster or self._access.context.name,
            **({"istio_namespace": namespace} if namespace else {}),
            **({"scope": self._chosen} if self._chosen else {}),
        }

    @property
    def _chosen(self) -> str:
        """What part of the mesh was chosen, in words; nothing for all of it."""
        left_out = self._seen is not None and bool(self._seen.findings.bounds)
        return self.scope.said or ("a sample of the pods" if left_out else "")

    @property
    def server_version(self) -> Mapping[str, Any] | None:
        """What the API server says of its own version; None before the first look."""
        return self._version

    def stop(self) -> None:
        """End the asking that is under way, from any thread; the rest counts as not asked."""
        self._stopped.set()

    def questions(self) -> tuple[Question, ...]:
        """Return what this mesh can be asked: every list, and each pod in scope.

        Looks at the cluster on the first call. Raises SourceError when it cannot be used.
        """
        return self._look().questions

    def ask(self, questions: Iterable[Question]) -> Iterator[Answer]:
        """Yield the answers as they arrive, in no order.

        Whoever stops taking them, or is interrupted, ends the asking within a second. What was not
        answered within the limits has an ``error``.
        """
        seen = self._look()
        wanted = list(dict.fromkeys(questions))
        begun = time.monotonic()
        self._stopped.clear()
        pending = dict.fromkeys(wanted)
        failed = 0
        for question in wanted:
            known = seen.answers.pop(question, None)
            if known is not None:
                del pending[question]
                failed += _is_missing(known)
                yield self._took(known)
        if not pending:
            return
        total, why = self.limits.total_s, "not asked: the asking ended early"
        with _Go(lambda put: self._ask_all(seen, tuple(pending), put)) as go:
            while pending:
                answer = go.take()
                self._report(len(wanted), len(wanted) - len(pending), failed, go, begun)
                if answer is not None:
                    del pending[answer.question]
                    failed += _is_missing(answer)
                    yield self._took(answer)
                elif go.ended:
                    break
                if total is not None and time.monotonic() - begun > total:
                    why = f"no answer within {total:g} s, the limit for everything"
                    break
                if self._stopped.is_set():
                    why = "not asked: the asking was stopped"
                    break
            go.check()
        for question in pending:
            yield self._took(Answer(question, datetime.now(UTC), 0.0, error=why))
            failed += 1
        self._report(len(wanted), len(wanted), failed, None, begun)

    def _took(self, answer: Answer) -> Answer:
        if self._now is None or answer.taken_at > self._now:
            self._now = answer.taken_at
        if "namespaces" in answer.detail and isinstance(answer.question, ListQuestion):
            self._partial.add(answer.question.resource)
        return answer

    def _report(self, asked: int, answered: int, failed: int, go: _Go | None, begun: float) -> None:
        if self.watch is None:
            return
        now = time.monotonic()
        if go is not None and not go.due(now):
            return
        busy = dict(go.busy) if go is not None else {}
        waiting = sorted(((pod, now - since) for pod, since in busy.items()), key=lambda p: -p[1])
        advice = self._seen.advice if self._seen else ""
        self.watch(Progress(asked, answered, failed, tuple(waiting), now - begun, advice))

    def _look(self) -> _Seen:
        if self._seen is None:
            found: list[_Seen] = []

            async def main(_: _Put) -> None:
                found.append(await self._first_look())

            with _Go(main) as go:
                while not go.ended:
                    go.take()
                go.check()
            self._seen = found[0]
        return self._seen

    @contextmanager
    def _reached(self) -> Iterator[None]:
        """Make of what goes wrong with the API server itself a SourceError."""
        try:
            yield
        except (Refused, aiohttp.ClientError, OSError) as error:
            raise unreachable(error, self._access) from error

    async def _first_look(self) -> _Seen:
        async with ApiServer(self._access, connections=LISTS_AT_ONCE) as server:
            with self._reached():
                async with asyncio.timeout(self.limits.question_s):
                    resources = await find_resources(server)
                    with suppress(Refused):
                        self._version = await server.document("/version")
            scope = self.scope
            answers = await self._lists(server, scope.namespaces, resources, FIRST)
            refused = answers[PODS].status == 403
            own = self._access.context.namespace
            notes = []
            advice = ""
            if refused and not scope.namespaces:
                allowed = await self._allowed(server, resources, answers)
                advice = _advice(own, [one for one in allowed if one != own])
            if refused and not scope.namespaces and own:
                scope = replace(scope, namespaces=(own,))
                notes.append(
                    f"Only the namespace {own!r} of the context was asked, because pods may not be "
                    "listed in all namespaces."
                )
                answers = await self._lists(server, scope.namespaces, resources, FIRST)
            if "namespaces" in answers[PODS].detail:
                # Where only some namespaces may be read, istiod's may be one of them.
                more = sorted(namespaces_of_istiod(answers) - set(scope.namespaces))
                answers |= await self._lists(server, (*scope.namespaces, *more), resources, (PODS,))
            self._access = server.access
        findings = find_pods(scope, resources, answers, self.label)
        findings.notes[:0] = notes
        return _Seen(resources, findings, scope, findings.questions(resources), answers, advice)

    async def _allowed(
        self, server: ApiServer, resources: Resources, answers: Mapping[Question, Answer]
    ) -> list[str]:
        """Return in which of the first namespaces pods may be listed, where not in all."""
        metadata = [one.get("metadata") for one in listed(answers.get(NAMESPACES))]
        names = [str(one["name"]) for one in metadata if isinstance(one, dict) and one.get("name")]
        if not names:
            return []
        tried = await self._lists(server, tuple(names[:_TRIED]), resources, (PODS,))
        return list(tried[PODS].detail.get("namespaces", ()))

    async def _lists(
        self,
        server: ApiServer,
        namespaces: tuple[str, ...],
        resources: Resources,
        questions: Iterable[Question],
    ) -> dict[Question, Answer]:
        found: dict[Question, Answer] = {}

        async def put(answer: Answer) -> None:
            found[answer.question] = answer

        asking = Asking(server, self.limits, put, namespaces, resources.cluster_wide)
        await asking.all(questions)
        return found

    async def _ask_all(self, seen: _Seen, questions: tuple[Question, ...], put: _Put) -> None:
        connections = connections_allowed(self.limits.connections, kept=len(questions) // 4)
        limits = replace(self.limits, connections=connections)
        async with ApiServer(self._access, connections=connections + LISTS_AT_ONCE) as server:
            places = seen.scope.namespaces, seen.resources.cluster_wide, seen.findings.moved
            asking = Asking(server, limits, put, *places)
            put.busy = asking.busy
            await asking.all(questions)
            self._access = server.access


def _advice(own: str, others: Sequence[str]) -> str:
    """Say which namespaces to choose, to somebody who may not read all of them."""
    more = "; ".join(
        (
            *([f"only {own!r}, the one of the context, is asked"] if own else []),
            *([f"pods may be listed in {', '.join(others)}"] if others else []),
        )
    )
    return (
        "pods may not be listed in all namespaces: say with -n NAMESPACE which to ask"
        f"{f' ({more})' if more else ''}"
    )


def _is_missing(answer: Answer) -> bool:
    """Whether an answer is none. That a port is closed is the very answer to a probe."""
    return answer.error is not None and not isinstance(answer.question, ProbeQuestion)


class _Put:
    """Hands answers from the loop's thread to the one that takes them, not too many at once."""

    def __init__(self) -> None:
        self.taken: queue.SimpleQueue[Answer | None] = queue.SimpleQueue()
        self.room = asyncio.Semaphore(_UNTAKEN)
        self.busy: Mapping[str, float] = {}

    async def __call__(self, answer: Answer) -> None:
        await self.room.acquire()
        self.taken.put(answer)


class _Go:
    """A thread with an event loop that runs one coroutine, within a ``with`` block.

    Leaving the block cancels what still runs, and waits until the thread has ended.
    """

    def __init__(self, main: Callable[[_Put], Coroutine[Any, Any, None] | Awaitable[None]]) -> None:
        self._main = main
        self._put = _Put()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._begun = threading.Event()
        self._error: BaseException | None = None
        self._reported = 0.0
        self.ended = False
        self._thread = threading.Thread(target=self._run, name="meshnb-cluster", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._begun.wait()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._loop is not None
        assert self._task is not None
        with suppress(RuntimeError):  # the loop has ended by itself
            self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join()
        # What nobody took may be files: they are closed now, not when memory is tidied up.
        with suppress(queue.Empty):
            while True:
                untaken = self._put.taken.get_nowait()
                if untaken is not None and isinstance(untaken.body, mmap):
                    untaken.body.close()

    @property
    def busy(self) -> Mapping[str, float]:
        """Since when each pod is asked."""
        return self._put.busy

    def due(self, now: float) -> bool:
        """Whether it is time to report again."""
        if now - self._reported < _TICK_S:
            return False
        self._reported = now
        return True

    def take(self) -> Answer | None:
        """Return the next answer; None when there is none for a moment, or no more at all."""
        try:
            answer = self._put.taken.get(timeout=_TICK_S)
        except queue.Empty:
            return None
        if answer is None:
            self.ended = True
            return None
        assert self._loop is not None
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._put.room.release)
        return answer

    def check(self) -> None:
        """Raise what ended the coroutine too early."""
        if self._error is not None:
            raise _first(self._error)

    def _run(self) -> None:
        try:
            asyncio.run(self._supervise())
        except asyncio.CancelledError:
            pass
        except BaseException as error:  # noqa: BLE001  raised again by whoever waits
            self._error = error
        finally:
            self._begun.set()
            self._put.taken.put(None)

    async def _supervise(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self._begun.set()
        await self._main(self._put)


def _first(error: BaseException) -> BaseException:
    """Return the first error of a group of tasks, of which the others were only cancelled."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
