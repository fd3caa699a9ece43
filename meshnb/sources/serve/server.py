"""The running server: a thread with an event loop, TLS on a loopback port, a kubeconfig."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from meshnb.errors import SourceError
from meshnb.sources.base import Source
from meshnb.sources.serve.api import Api
from meshnb.sources.serve.credentials import Credential, Credentials, write_private
from meshnb.sources.serve.faults import Fault
from meshnb.sources.serve.replay import Replay
from meshnb.sources.serve.request import ApiRequest

HOST = "127.0.0.1"
#: The context in the kubeconfig, and its cluster.
CONTEXT = "meshnb-replay"
#: So long the loop goes on for connections to close that were told to, in seconds.
_CLOSING_S = 0.02


@dataclass(frozen=True, slots=True)
class Served:
    """A recording that is being served."""

    url: str
    kubeconfig: Path
    credentials: Credentials
    replay: Replay

    @property
    def token(self) -> str:
        """The bearer token of now."""
        return self.credentials.token

    @property
    def ca_file(self) -> Path:
        """The certificate of the server's CA, as PEM."""
        return self.credentials.folder / "ca.pem"

    @property
    def requests(self) -> tuple[ApiRequest, ...]:
        """Every request so far, those through port-forwards too (their resource is ``http``)."""
        return tuple(self.replay.requests)


@contextmanager
def serve(
    source: Source,
    *,
    port: int = 0,
    kubeconfig: Path | None = None,
    credential: Credential = "token",
    faults: Sequence[Fault] = (),
) -> Iterator[Served]:
    """Serve a source as an API server on the loopback interface while the context lasts.

    ``port`` 0 takes a free one. The kubeconfig is written to ``kubeconfig``, by default to a
    temporary file; it can be read by nobody else, and is removed at the end. Raises
    :class:`~meshnb.errors.SourceError` when the port is taken or the file exists.
    """
    if kubeconfig is not None and kubeconfig.exists():
        raise SourceError(
            f"{str(kubeconfig)!r} exists already.",
            next_step="Choose another name: the file is removed when the server ends.",
        )
    credentials = Credentials()
    replay = Replay(source, faults)
    running = _Running(Api(replay, credentials), credentials, port)
    path = kubeconfig or credentials.folder / "kubeconfig"
    try:
        url = running.start()
        try:
            document = credentials.kubeconfig(url, credential, CONTEXT)
            try:
                write_private(path, json.dumps(document, indent=1).encode())
            except OSError as error:
                raise SourceError(
                    f"{str(path)!r} cannot be written: {error.strerror or error}.",
                    next_step="Choose a folder that exists.",
                ) from error
            yield Served(url, path, credentials, replay)
        finally:
            running.stop()
    finally:
        path.unlink(missing_ok=True)
        credentials.remove()


class _Running:
    """The thread that the server runs in."""

    def __init__(self, api: Api, credentials: Credentials, port: int) -> None:
        self._api = api
        self._credentials = credentials
        self._port = port
        self._loop: asyncio.AbstractEventLoop | None = None
        self._end = asyncio.Event()
        self._ready = threading.Event()
        self._failure: OSError | None = None
        self._thread = threading.Thread(target=self._run, name="meshnb-serve", daemon=True)

    def start(self) -> str:
        """Start, and return the URL once requests are accepted."""
        self._thread.start()
        self._ready.wait()
        if self._failure is not None:
            self._thread.join()
            reason = self._failure.strerror or self._failure
            raise SourceError(
                f"Port {self._port} of {HOST} cannot be served: {reason}.",
                next_step="Choose another with --port, or none for a free one.",
            )
        return f"https://{HOST}:{self._port}"

    def stop(self) -> None:
        """Close every connection and wait until the thread has ended."""
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join()

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except OSError as error:
            self._failure = error
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        runner = web.AppRunner(
            self._api.application(),
            handle_signals=False,
            access_log=None,
            handler_cancellation=True,
            shutdown_timeout=0.1,
        )
        await runner.setup()
        try:
            context = self._credentials.server_context()
            site = web.TCPSite(runner, HOST, self._port, ssl_context=context, backlog=1024)
            await site.start()
            self._port = runner.addresses[0][1]
            self._ready.set()
            await self._end.wait()
        finally:
            connections = runner.server.connections if runner.server else []
            open_ones = [each.transport for each in connections if each.transport]
            await runner.cleanup()
            # A client that is idle says no goodbye within TLS; nobody waits for it.
            for transport in open_ones:
                transport.abort()
            await asyncio.sleep(_CLOSING_S)
