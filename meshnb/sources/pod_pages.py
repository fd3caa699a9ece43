"""Pages of one port of a pod: HTTP/1.1 over a forward that is kept for all of them."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager

import h11

from meshnb.sources.api_server import ApiServer
from meshnb.sources.base import Body
from meshnb.sources.port_forward import Broken, Forward, open_forward
from meshnb.sources.spool import Spool

_NO_ANSWER = "the connection was closed without an answer"


class PodPages:
    """Gets pages from one port of a pod, over one connection while the pod keeps it open."""

    def __init__(
        self, server: ApiServer, namespace: str, pod: str, port: int, *, patience_s: float
    ) -> None:
        """Connect on the first page; :meth:`close` at the end.

        Nothing may be waited for longer than ``patience_s``; a large page that keeps coming may
        take more in all.
        """
        self._server = server
        self._patience_s = patience_s
        self._place = namespace, pod, port
        self._opened: AbstractAsyncContextManager[Forward] | None = None
        self._forward: Forward | None = None
        self._http = h11.Connection(h11.CLIENT)
        self._used = False
        #: whether the pod has answered anything at all on this port
        self.answered = False

    async def get(self, path: str, *, last: bool) -> tuple[int, Body]:
        """Return the status and the body of a page; the ``last`` one closes the connection.

        Raises Broken, TooLarge, TimeoutError, and Refused or NotForwarded when the API server does
        not forward.
        """
        try:
            return await self._get(path, last=last)
        except _ClosedIdle:
            # The pod closed a kept connection just as it was used again: that says nothing of it.
            await self.close()
            return await self._get(path, last=last)
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Close the connection, so that neither the pod nor the API server keeps it."""
        opened, self._opened, self._forward = self._opened, None, None
        if opened is not None:
            await opened.__aexit__(None, None, None)

    async def _connect(self) -> Forward:
        if self._forward is None:
            self._http, self._used = h11.Connection(h11.CLIENT), False
            opened = open_forward(self._server, *self._place, patience_s=self._patience_s)
            self._forward = await opened.__aenter__()
            self._opened = opened
        return self._forward

    async def _get(self, path: str, *, last: bool) -> tuple[int, Body]:
        forward = await self._connect()
        headers = [
            ("Host", f"localhost:{self._place[2]}"),
            ("Accept", "*/*"),
            ("User-Agent", "meshnb"),
            ("Connection", "close" if last else "keep-alive"),
        ]
        spool = Spool()
        try:
            request = h11.Request(method="GET", target=path.encode(), headers=headers)
            await forward.send(
                (self._http.send(request) or b"") + (self._http.send(h11.EndOfMessage()) or b"")
            )
            status = await self._read(forward, spool)
        except h11.RemoteProtocolError as error:
            spool.discard()
            raise Broken(f"what came is no HTTP: {error}") from None
        except h11.LocalProtocolError as error:
            raise Broken(f"{path!r} is no path: {error}") from None
        except BaseException:
            spool.discard()
            raise
        self._used = True
        states = self._http.our_state, self._http.their_state
        if last or states != (h11.DONE, h11.DONE) or self._http.trailing_data[1]:
            await self.close()
        else:
            self._http.start_next_cycle()
        return status, spool.body()

    async def _read(self, forward: Forward, spool: Spool) -> int:
        status = 0
        while True:
            event = self._http.next_event()
            if event is h11.NEED_DATA:
                received = await self._receive(forward, begun=bool(status))
                self._http.receive_data(received)
            elif isinstance(event, h11.Response):
                status, self.answered = event.status_code, True
            elif isinstance(event, h11.Data):
                spool.write(event.data)
            elif isinstance(event, h11.EndOfMessage):
                return status
            elif isinstance(event, h11.ConnectionClosed):
                raise Broken(_NO_ANSWER)

    async def _receive(self, forward: Forward, *, begun: bool) -> bytes:
        async with asyncio.timeout(self._patience_s):
            received = await forward.receive()
        if not received and not begun and self._http.trailing_data == (b"", False):
            raise _ClosedIdle if self._used else Broken(_NO_ANSWER)
        return received


class _ClosedIdle(Exception):
    """A kept connection was closed before the next answer began."""
