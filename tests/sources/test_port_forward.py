"""The port-forward protocol to the letter, and what is not it.

The server here speaks only what each test has it say, byte for byte: a recording that is served
(``test_cluster.py``) speaks the protocol well, and so cannot show what happens when nobody does.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trustme
from aiohttp import WSMsgType, web

from meshnb.sources.api_server import ApiServer, Refused
from meshnb.sources.kubeconfig import Access, Context
from meshnb.sources.kubelet import not_forwarded
from meshnb.sources.pod_pages import PodPages
from meshnb.sources.port_forward import (
    AT_ONCE_S,
    Broken,
    TlsOverForward,
    open_forward,
    reason,
    stays_open,
)

Speak = Callable[[web.WebSocketResponse], Awaitable[None]]
Use = Callable[[ApiServer], Awaitable[Any]]
_PORT = 15000
_BEGIN = (b"\x00" + _PORT.to_bytes(2, "little"), b"\x01" + _PORT.to_bytes(2, "little"))


def _spoken(speak: Speak, use: Use, *, refuse_with: int = 0) -> Any:
    """Serve one port-forward, use it, and return what came of it."""

    async def forward(request: web.Request) -> web.StreamResponse:
        if refuse_with:
            return web.Response(status=refuse_with)
        assert request.path == "/api/v1/namespaces/shop/pods/web/portforward"
        assert request.query_string == "ports=15000"
        assert request.headers["Sec-WebSocket-Protocol"] == "v4.channel.k8s.io"
        socket = web.WebSocketResponse(protocols=["v4.channel.k8s.io"])
        await socket.prepare(request)
        await speak(socket)
        return socket

    async def main() -> Any:
        application = web.Application()
        application.router.add_get("/{path:.*}", forward)
        runner = web.AppRunner(application, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        access = Access(
            Context("test", "", "", current=True),
            f"http://{host}:{port}",
            None,
            None,
            None,
            None,
            lambda: "Bearer word",
        )
        try:
            async with asyncio.timeout(10), ApiServer(access, connections=4) as server:
                return await use(server)
        finally:
            await runner.cleanup()

    return asyncio.run(main())


async def _begin(socket: web.WebSocketResponse) -> None:
    for frame in _BEGIN:
        await socket.send_bytes(frame)


async def _received(server: ApiServer) -> bytes:
    """Return all that comes until the connection is closed."""
    found = b""
    async with open_forward(server, "shop", "web", _PORT, patience_s=10.0) as forward:
        while more := await forward.receive():
            found += more
    return found


def _frames(*frames: bytes) -> Speak:
    async def speak(socket: web.WebSocketResponse) -> None:
        for frame in frames:
            await socket.send_bytes(frame)
        await socket.close()

    return speak


def test_the_first_frame_of_each_channel_is_its_port_and_the_rest_is_content() -> None:
    speak = _frames(*_BEGIN, b"\x00one ", b"\x00", b"\x00two")
    assert _spoken(speak, _received) == b"one two"


def test_channels_begin_in_any_order_even_after_content() -> None:
    assert _spoken(_frames(_BEGIN[0], b"\x00one ", _BEGIN[1], b"\x00two"), _received) == b"one two"


def test_what_the_error_channel_says_is_the_reason() -> None:
    speak = _frames(*_BEGIN, b"\x01error forwarding port 15000: dial tcp4: connection refused")
    with pytest.raises(Broken, match=r"^connection refused: nothing listens on port 15000$"):
        _spoken(speak, _received)


def test_other_reasons_are_kept_in_the_kubelets_words() -> None:
    assert reason("  pod not\n running ", 80) == "pod not running"
    assert len(reason("x" * 5000, 80)) == 300


@pytest.mark.parametrize(
    ("frame", "said"),
    [
        (b"\x00HTTP/1.1 200 OK", "does not speak the port-forward protocol"),
        (b"\x07\x98\x3a", "does not speak the port-forward protocol"),
        (b"\x00\x50\x00", "forwards port 80 instead of 15000"),
    ],
)
def test_a_server_that_speaks_something_else_is_told(frame: bytes, said: str) -> None:
    with pytest.raises(Broken, match=said):
        _spoken(_frames(frame), _received)


def test_a_server_that_does_not_forward_is_refused_with_its_status() -> None:
    with pytest.raises(Refused) as caught:
        _spoken(_frames(), _received, refuse_with=403)
    assert caught.value.status == 403


def test_a_pod_without_a_sandbox_does_not_run_and_the_servers_words_stay() -> None:
    """As Kubernetes 1.36 with containerd 2.2 answers, before the sandbox is made and after it."""
    said = "406: Not Acceptable Available representations:"
    assert not_forwarded(500, said) == (
        "the pod does not run yet, or not any more: "
        f"the API server answered with status 500: {said}"
    )
    assert not_forwarded(503, said) == f"the API server answered with status 503: {said}"
    assert not_forwarded(500, "etcd is full") == (
        "the API server answered with status 500: etcd is full"
    )


# --- Closing -------------------------------------------------------------------------------------


def test_when_this_side_closes_the_websocket_is_closed() -> None:
    """Otherwise Envoy keeps the connection, and the limit of the API server is eaten up."""
    closed = asyncio.Event()

    async def speak(socket: web.WebSocketResponse) -> None:
        await _begin(socket)
        message = await socket.receive()
        if message.type in (WSMsgType.CLOSE, WSMsgType.CLOSED, WSMsgType.CLOSING):
            closed.set()

    async def use(server: ApiServer) -> None:
        async with open_forward(server, "shop", "web", _PORT, patience_s=10.0):
            pass
        await asyncio.wait_for(closed.wait(), 2)

    _spoken(speak, use)


def test_silence_is_an_open_port_and_a_close_is_none() -> None:
    async def silent(socket: web.WebSocketResponse) -> None:
        await _begin(socket)
        await socket.receive()

    async def probe(server: ApiServer) -> None:
        async with open_forward(server, "shop", "web", _PORT, patience_s=10.0) as forward:
            await stays_open(forward, 0.2)

    _spoken(silent, probe)
    with pytest.raises(Broken, match="closed at once"):
        _spoken(_frames(*_BEGIN), probe)


def test_a_server_that_hangs_up_on_a_silent_client_had_accepted_it() -> None:
    """As istiod's ControlZ does after 10 s; what counts is the time since the first frame."""

    async def impatient(socket: web.WebSocketResponse) -> None:
        await _begin(socket)
        await asyncio.sleep(AT_ONCE_S + 0.3)
        await socket.close()

    async def probe(server: ApiServer) -> float:
        async with open_forward(server, "shop", "web", _PORT, patience_s=10.0) as forward:
            await stays_open(forward, 60.0)
            return forward.age_s

    assert AT_ONCE_S < _spoken(impatient, probe) < 60.0


def test_a_port_that_is_closed_after_a_slow_opening_was_closed_at_once() -> None:
    """The kubelet took its time before its first frame; the port closed right after it."""

    async def slow(socket: web.WebSocketResponse) -> None:
        await asyncio.sleep(AT_ONCE_S + 0.3)
        await _begin(socket)
        await socket.close()

    async def probe(server: ApiServer) -> None:
        async with open_forward(server, "shop", "web", _PORT, patience_s=10.0) as forward:
            await stays_open(forward, 60.0)

    with pytest.raises(Broken, match="closed at once"):
        _spoken(slow, probe)


# --- Pages ---------------------------------------------------------------------------------------


def _serving(*answers: bytes, frame: int = 1 << 20) -> tuple[Speak, list[bytes]]:
    """Answer each request with the next of the answers, in frames of some size, then close."""
    seen: list[bytes] = []

    async def speak(socket: web.WebSocketResponse) -> None:
        await _begin(socket)
        for answer in answers:
            request = b""
            while not request.endswith(b"\r\n\r\n"):
                message = await socket.receive()
                if message.type is not WSMsgType.BINARY:
                    return
                assert message.data[0] == 0
                request += message.data[1:]
            seen.append(request)
            for start in range(0, len(answer), frame):
                await socket.send_bytes(b"\x00" + answer[start : start + frame])
        await socket.close()

    return speak, seen


def _got(speak: Speak, *paths: str) -> Any:
    async def use(server: ApiServer) -> list[tuple[int, bytes]]:
        pages = PodPages(server, "shop", "web", _PORT, patience_s=1)
        found = []
        for path in paths:
            status, body = await pages.get(path, last=path is paths[-1])
            found.append((status, bytes(body)))
        await pages.close()
        return found

    return _spoken(speak, use)


_CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
_COUNTED = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 2\r\n\r\nno"
_UNTIL_CLOSE = b"HTTP/1.1 200 OK\r\n\r\nall of it"


@pytest.mark.parametrize("frame", [1, 7, 1 << 20])
def test_pages_come_over_one_connection_in_frames_of_any_size(frame: int) -> None:
    speak, seen = _serving(_CHUNKED, _COUNTED, frame=frame)
    assert _got(speak, "/a?x=1", "/b") == [(200, b"abcde"), (503, b"no")]
    first, last = seen
    assert first.startswith(b"GET /a?x=1 HTTP/1.1\r\n")
    assert b"Connection: keep-alive\r\n" in first
    assert b"Connection: close\r\n" in last


def test_a_page_may_end_with_its_connection() -> None:
    speak, _ = _serving(_UNTIL_CLOSE)
    assert _got(speak, "/a") == [(200, b"all of it")]


def test_after_a_page_that_ended_its_connection_there_is_a_new_one() -> None:
    speak, seen = _serving(_UNTIL_CLOSE)
    assert _got(speak, "/a", "/b") == [(200, b"all of it"), (200, b"all of it")]
    assert len(seen) == 2


def test_a_page_in_parts_that_were_announced_and_do_not_come_is_broken() -> None:
    speak, _ = _serving(_COUNTED[:-1])
    with pytest.raises(Broken, match="no HTTP"):
        _got(speak, "/a")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"SSH-2.0-OpenSSH_9.6\r\n", "no HTTP"),
        (b"\x15\x03\x01\x00\x02\x02\x46" * 10, "no HTTP"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 50_000, "no HTTP"),
        (b"", "closed without an answer"),
    ],
)
def test_what_is_no_page_is_told(answer: bytes, said: str) -> None:
    speak, _ = _serving(answer)
    with pytest.raises(Broken, match=said):
        _got(speak, "/a")


def test_a_large_page_goes_to_disk_as_it_comes() -> None:
    content = b"x" * (3 << 20)
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(content), content)
    speak, _ = _serving(answer, frame=32 << 10)

    async def use(server: ApiServer) -> str:
        pages = PodPages(server, "shop", "web", _PORT, patience_s=1)
        _, body = await pages.get("/a", last=True)
        assert bytes(body) == content
        return type(body).__name__

    assert _spoken(speak, use) == "mmap"


def test_a_page_that_keeps_coming_may_take_longer_than_one_waits_for_its_pieces() -> None:
    async def speak(socket: web.WebSocketResponse) -> None:
        await _begin(socket)
        await socket.receive()
        await socket.send_bytes(b"\x00HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n")
        for _ in range(6):
            await asyncio.sleep(0.3)
            await socket.send_bytes(b"\x00x")
        await socket.receive()

    assert _got(speak, "/a") == [(200, b"xxxxxx")]


# --- TLS -----------------------------------------------------------------------------------------


def test_a_tls_handshake_shows_version_protocol_and_chain() -> None:
    ca = trustme.CA()
    leaf = ca.create_child_ca().issue_cert("istiod.istio-system.svc")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(["h2"])
    leaf.configure_cert(context)

    async def speak(socket: web.WebSocketResponse) -> None:
        await _begin(socket)
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = context.wrap_bio(incoming, outgoing, server_side=True)
        while True:
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                if content := outgoing.read():
                    await socket.send_bytes(b"\x00" + content)
                message = await socket.receive()
                if message.type is not WSMsgType.BINARY:
                    return
                incoming.write(message.data[1:])

    async def use(server: ApiServer) -> Any:
        async with open_forward(server, "shop", "web", _PORT, patience_s=10.0) as forward:
            return await TlsOverForward(forward).handshake()

    version, protocol, chain = _spoken(speak, use)
    assert (version, protocol) == ("TLSv1.3", "h2")
    assert chain == b"".join(one.bytes() for one in leaf.cert_chain_pems)


def test_a_port_that_does_not_speak_tls_is_told() -> None:
    async def use(server: ApiServer) -> Any:
        async with open_forward(server, "shop", "web", _PORT, patience_s=10.0) as forward:
            return await TlsOverForward(forward).handshake()

    with pytest.raises(Broken, match="no TLS: wrong_version_number"):
        _spoken(_frames(*_BEGIN, b"\x00HTTP/1.1 400 Bad Request\r\n\r\n"), use)
    with pytest.raises(Broken, match="closed during the TLS handshake"):
        _spoken(_frames(*_BEGIN), use)
