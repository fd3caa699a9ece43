"""Port-forwards as a WebSocket client speaks them: ``v4.channel.k8s.io``.

Each port has two channels, one for the connection's bytes and one for the words that say why there
is none; a message begins with the channel's number. The server's first message on every channel is
the port number, two bytes with the lower one first. Every port is one connection: when the pod
closes it, the server closes the WebSocket.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

from aiohttp import WSMsgType, web

from meshnb.sources.serve.connection import Connection, Cut, converse
from meshnb.sources.serve.replay import Replay
from meshnb.sources.serve.request import ApiRequest
from meshnb.sources.serve.status import Status

PROTOCOL = "v4.channel.k8s.io"
#: A kubelet copies in pieces of this size, in bytes.
_PIECE = 32 << 10
_MOST_PORTS = 64
#: How a conversation may end that is not over: one of the two sides has gone.
_ENDS = (Cut, ConnectionResetError, asyncio.IncompleteReadError)


async def forward(http: web.Request, request: ApiRequest, replay: Replay) -> web.StreamResponse:
    """Answer a port-forward: open the WebSocket and serve each port until one side closes."""
    _check_upgrade(http)
    ports = _ports(http)
    socket = web.WebSocketResponse(
        protocols=(PROTOCOL,), compress=False, max_msg_size=0, timeout=1.0
    )
    await socket.prepare(http)
    readers: list[asyncio.StreamReader] = []
    conversations: list[asyncio.Task[None]] = []
    try:
        for place, number in enumerate(ports):
            stated = number.to_bytes(2, "little")
            await socket.send_bytes(bytes([2 * place]) + stated)
            await socket.send_bytes(bytes([2 * place + 1]) + stated)
            reader = asyncio.StreamReader()
            readers.append(reader)
            connection = _Forwarded(socket, place, reader, request, number)
            conversations.append(asyncio.create_task(converse(connection, replay)))
        conversations.append(asyncio.create_task(_close_after(http, socket, tuple(conversations))))
        async for message in socket:
            if message.type is WSMsgType.BINARY and message.data:
                place, is_error = divmod(message.data[0], 2)
                if not is_error and place < len(readers):
                    readers[place].feed_data(message.data[1:])
        for reader in readers:
            reader.feed_eof()
    except ConnectionResetError:
        pass  # the client is gone, and with it whoever could be told
    finally:
        for task in conversations:
            task.cancel()
        ended = await asyncio.gather(*conversations, return_exceptions=True)
    for one in ended[-1:]:
        if isinstance(one, Exception):
            raise one
    return socket


async def _close_after(
    http: web.Request, socket: web.WebSocketResponse, conversations: Sequence[asyncio.Task[None]]
) -> None:
    ended = await asyncio.gather(*conversations, return_exceptions=True)
    if any(isinstance(one, Cut) for one in ended) and http.transport is not None:
        http.transport.abort()
    with contextlib.suppress(ConnectionResetError):
        await socket.close()
    for one in ended:
        if isinstance(one, Exception) and not isinstance(one, _ENDS):
            raise one


class _Forwarded(Connection):
    """A connection to a port, through two channels of a WebSocket."""

    def __init__(
        self,
        socket: web.WebSocketResponse,
        place: int,
        reader: asyncio.StreamReader,
        request: ApiRequest,
        number: int,
    ) -> None:
        super().__init__(reader, request.namespace or "", request.name or "", number)
        self._socket = socket
        self._place = place

    async def write(self, content: bytes | memoryview) -> None:
        prefix = bytes([2 * self._place])
        for start in range(0, len(content), _PIECE):
            await self._socket.send_bytes(prefix + content[start : start + _PIECE])
            # That the client has gone is heard of between two turns of the loop, not within one.
            await asyncio.sleep(0)

    async def fail(self, words: str) -> None:
        await self._socket.send_bytes(bytes([2 * self._place + 1]) + words.encode())


def _ports(http: web.Request) -> list[int]:
    texts = [part for each in http.query.getall("ports", []) for part in each.split(",")]
    if not texts:
        raise Status(400, "query parameter 'ports' is required")
    if not all(text.isdigit() and 0 < int(text) < 65536 for text in texts):
        raise Status(400, f"invalid port among {', '.join(texts)!r}: 1 to 65535")
    if len(texts) > _MOST_PORTS:
        raise Status(400, f"{len(texts)} ports are more than {_MOST_PORTS}")
    return [int(text) for text in texts]


def _check_upgrade(http: web.Request) -> None:
    upgrade = http.headers.get("Upgrade", "").lower()
    offered = [
        part.strip()
        for each in http.headers.getall("Sec-WebSocket-Protocol", [])
        for part in each.split(",")
    ]
    if upgrade == "websocket" and PROTOCOL in offered:
        return
    spoken = f"WebSocket with {', '.join(offered) or 'no protocol'}"
    if upgrade != "websocket":
        spoken = upgrade.upper() or "plain HTTP"
    raise Status(
        400,
        f"this server replays a recording and forwards ports over WebSocket with {PROTOCOL} only; "
        f"{spoken}, which `kubectl port-forward` speaks, is not served",
    )
