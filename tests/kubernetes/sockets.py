"""The open ports of a recorded mesh as sockets: each pod is a loopback address of its own."""

from __future__ import annotations

import asyncio
import os
import threading
from contextlib import suppress
from typing import Self

from meshnb.sources import HttpQuestion, LogQuestion, ProbeQuestion, Source
from meshnb.sources.serve.connection import Connection, Cut, converse
from meshnb.sources.serve.replay import Replay

#: Which loopback addresses are the pods', so that two runs do not meet.
_BLOCK = 64 + os.getpid() % 128


class _Piped(Connection):
    """A connection to a port of a pod that is a socket."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        place: tuple[str, str, int],
    ) -> None:
        super().__init__(reader, *place)
        self._writer = writer

    async def write(self, content: bytes | memoryview) -> None:
        self._writer.write(content)
        await self._writer.drain()

    async def fail(self, words: str) -> None:
        raise Cut(words)


class Sockets:
    """The open ports of all pods, each at its pod's own loopback address."""

    def __init__(self, source: Source) -> None:
        self.replay = Replay(source, ())
        self.addresses: dict[str, str] = {}
        self._loop = asyncio.new_event_loop()
        self._servers: dict[tuple[str, int], asyncio.Server] = {}
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        recorded = self.replay.recorded
        places: dict[tuple[str, str], set[int]] = {}
        for question in recorded.source.questions():
            if isinstance(question, HttpQuestion | ProbeQuestion):
                places.setdefault((question.namespace, question.pod), set()).add(question.port)
            elif isinstance(question, LogQuestion):
                places.setdefault((question.namespace, question.pod), set())
        for number, ((namespace, pod), ports) in enumerate(sorted(places.items())):
            address = f"127.{_BLOCK}.{number // 250}.{number % 250 + 2}"
            self.addresses[f"{namespace}/{pod}"] = address
            for port in ports:
                known = recorded.port(namespace, pod, port)
                if known is not None and recorded.closed(known) is None:
                    self.open(namespace, pod, port)
        return self

    def open(self, namespace: str, pod: str, port: int, *, answers_as: int = 0) -> None:
        """Let a port listen; ``answers_as`` names the recorded port that it answers as."""
        address = self.addresses[f"{namespace}/{pod}"]

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            connection = _Piped(reader, writer, (namespace, pod, answers_as or port))
            with suppress(Cut, ConnectionError, asyncio.IncompleteReadError):
                await converse(connection, self.replay)
            writer.close()

        started = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(answer, address, port, limit=1 << 20), self._loop
        )
        self._servers[address, port] = started.result()

    def close(self, namespace: str, pod: str, port: int) -> None:
        """Let a port listen no longer."""
        server = self._servers.pop((self.addresses[f"{namespace}/{pod}"], port))
        self._loop.call_soon_threadsafe(server.close)

    def __exit__(self, *_: object) -> None:
        async def end() -> None:
            others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for server in self._servers.values():
                server.close()
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
