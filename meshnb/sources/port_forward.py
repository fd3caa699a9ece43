"""A port of a pod through the API server: one WebSocket is one TCP connection.

The protocol is ``v4.channel.k8s.io`` for port-forwards, as the kubelet speaks it: the first byte of
a frame is its channel, 0 for data and 1 for errors of the one port that was asked for; the first
frame of each channel has the port's number instead, two bytes, the low one first. There is no half
close: who closes, closes both ways.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import aiohttp

from meshnb.sources.api_server import ApiServer, api_path

PROTOCOL = "v4.channel.k8s.io"
_DATA, _ERROR = 0, 1
#: A frame that is sent is not larger than this, in bytes; the kubelet sends such, too.
_FRAME = 32 << 10
#: A connection that ends within so many seconds was closed at once. Servers that wait for the
#: client to speak hang up, too, but later: istiod's ControlZ after 10 s (a ReadTimeout).
AT_ONCE_S = 2.0


class Broken(Exception):
    """The connection to the pod failed; the message says why."""


class NotForwarded(Exception):
    """The API server or the kubelet did not open the way to the pod in time."""


class Forward:
    """One TCP connection to a port of a pod."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse[bool], port: int) -> None:
        """Take an open WebSocket; see :func:`open_forward`."""
        self._socket = socket
        self._port = port
        self._begun: set[int] = set()
        self._since = time.monotonic()

    @property
    def age_s(self) -> float:
        """For how long it is open, in seconds: since the kubelet's first frame, if one came."""
        return time.monotonic() - self._since

    async def send(self, content: bytes) -> None:
        """Send some bytes; waits while the other side takes none. Raises Broken."""
        try:
            for start in range(0, len(content), _FRAME):
                await self._socket.send_bytes(bytes((_DATA,)) + content[start : start + _FRAME])
        except (aiohttp.ClientError, ConnectionError) as error:
            raise Broken(f"the connection was closed ({type(error).__name__})") from None

    async def receive(self) -> bytes:
        """Return the next bytes; none when the pod has closed the connection. Raises Broken."""
        while True:
            message = await self._socket.receive()
            if message.type is aiohttp.WSMsgType.BINARY:
                frame: bytes = message.data
            elif message.type is aiohttp.WSMsgType.TEXT:
                frame = message.data.encode()
            elif message.type is aiohttp.WSMsgType.ERROR:
                raise Broken("the WebSocket broke") from None
            else:
                return b""
            channel, content = (frame[0], frame[1:]) if frame else (_DATA, b"")
            if channel not in self._begun:
                if not self._begun:
                    self._since = time.monotonic()
                self._begun.add(channel)
                self._check_port(channel, content)
            elif channel == _ERROR and content:
                raise Broken(reason(content.decode("utf-8", "replace"), self._port))
            elif channel == _DATA and content:
                return content

    def _check_port(self, channel: int, content: bytes) -> None:
        if channel not in (_DATA, _ERROR) or len(content) != 2:
            raise Broken("the API server does not speak the port-forward protocol")
        if (number := int.from_bytes(content, "little")) != self._port:
            raise Broken(f"the API server forwards port {number} instead of {self._port}")


@asynccontextmanager
async def open_forward(
    server: ApiServer, namespace: str, pod: str, port: int, *, patience_s: float
) -> AsyncIterator[Forward]:
    """Connect to a port of a pod, and close when it is left.

    That the port is closed shows when one receives. Raises
    :class:`~meshnb.sources.api_server.Refused` when the API server does not forward, and
    NotForwarded when that takes longer than ``patience_s``.
    """
    path, parameters = forward_path(namespace, pod), {"ports": str(port)}
    async with AsyncExitStack() as stack:
        opening = server.websocket(path, parameters, PROTOCOL)
        try:
            async with asyncio.timeout(patience_s):
                socket = await stack.enter_async_context(opening)
        except TimeoutError:
            raise NotForwarded from None
        yield Forward(socket, port)


def forward_path(namespace: str, pod: str) -> str:
    """Return the path of a pod's port-forward in the API."""
    return api_path("api", "v1", "namespaces", namespace, "pods", pod, "portforward")


def reason(said: str, port: int) -> str:
    """Return in short why the kubelet could not forward, from its own words."""
    text = " ".join(said.split())
    if "connection refused" in text.lower():
        return f"connection refused: nothing listens on port {port}"
    return text[:300]


class TlsOverForward:
    """The client's side of a TLS handshake over a forward, which verifies nothing."""

    def __init__(self, forward: Forward) -> None:
        """Offer HTTP/2, as a proxy does."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.set_alpn_protocols(["h2"])
        self._forward = forward
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing)

    async def handshake(self) -> tuple[str | None, str | None, bytes]:
        """Return the TLS version, the protocol agreed on, and the chain as PEM, leaf first.

        A server that showed its chain and then ended the handshake has answered, too: it may want a
        client certificate. Raises Broken when the other side does not speak TLS.
        """
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._forward.send(self._outgoing.read())
                received = await self._forward.receive()
                if not received:
                    raise Broken("the connection was closed during the TLS handshake") from None
                self._incoming.write(received)
            except ssl.SSLError as error:
                if not self._chain():
                    raise Broken(f"no TLS: {(error.reason or str(error)).lower()}") from None
                break
            else:
                await self._forward.send(self._outgoing.read())
                break
        return self._version(), self._tls.selected_alpn_protocol(), self._chain()

    def _version(self) -> str | None:
        """Return the version; in a handshake that was not finished, it is the cipher's."""
        cipher = self._tls.cipher()
        return self._tls.version() or (cipher[1] if cipher else None)

    def _chain(self) -> bytes:
        found = getattr(self._tls, "get_unverified_chain", None)  # from Python 3.13 on
        if found is None:
            inner = self._tls._sslobj  # type: ignore[attr-defined]  # noqa: SLF001
            certificates = [one.public_bytes() for one in inner.get_unverified_chain() or ()]
            return "".join(certificates).encode()
        return "".join(ssl.DER_cert_to_PEM_cert(one) for one in found()).encode()


async def stays_open(forward: Forward, seconds: float) -> None:
    """Return when a connection was not closed at once. Raises Broken when it was.

    The kubelet says only after the WebSocket is open that it could not connect, so silence is what
    an open port looks like whose server waits for the client to speak: so many seconds of it
    suffice. Who hangs up later than :data:`AT_ONCE_S` had accepted the connection, too.
    """
    try:
        received = await asyncio.wait_for(forward.receive(), seconds)
    except TimeoutError:
        return
    if not received and forward.age_s <= AT_ONCE_S:
        raise Broken("closed at once")
