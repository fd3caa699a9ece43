"""What listens behind a forwarded port: HTTP/1.1 from the recorded answers, and what probes met."""

from __future__ import annotations

import asyncio
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import NoReturn

from meshnb.sources.base import Answer, only
from meshnb.sources.serve.faults import (
    HTTP,
    Drop,
    Fail,
    Fault,
    Garbage,
    Hang,
    Slow,
)
from meshnb.sources.serve.handshake import show_chain
from meshnb.sources.serve.recorded import Port, Recorded, timed_out
from meshnb.sources.serve.replay import Replay
from meshnb.sources.serve.request import ApiRequest

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
#: An empty SETTINGS frame: what every HTTP/2 server says first (RFC 9113, section 3.4).
_SETTINGS = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
_TLS_HANDSHAKE = 0x16
#: Envoy's admin port sends bodies in chunks, without their length.
_ENVOY_ADMIN = 15000
_PIECE = 1 << 20
_GARBAGE_BYTES = 512
_PHRASES = {200: "OK", 404: "Not Found", 405: "Method Not Allowed", 503: "Service Unavailable"}


class Cut(Exception):
    """The connection is to be cut here, without a word."""


class Connection(ABC):
    """One connection to one port of a pod."""

    def __init__(self, reader: asyncio.StreamReader, namespace: str, pod: str, number: int) -> None:
        """``reader`` has what the client sends."""
        self.reader = reader
        self.namespace = namespace
        self.pod = pod
        self.number = number
        #: which pod it is: another one may get its name
        self.uid: str | None = None

    @abstractmethod
    async def write(self, content: bytes | memoryview) -> None:
        """Send bytes to the client."""

    @abstractmethod
    async def fail(self, words: str) -> None:
        """Tell the client why there is no connection, or no longer."""


async def converse(connection: Connection, replay: Replay) -> None:
    """Serve one connection until one side closes it. Raises Cut to drop it without a word."""
    recorded = replay.recorded
    connection.uid = recorded.uid(connection.namespace, connection.pod)
    port = recorded.port(connection.namespace, connection.pod, connection.number)
    if port is None:
        await connection.fail(
            f"not recorded: nobody asked port {connection.number} of pod {connection.pod}"
        )
        return
    closed = recorded.closed(port)
    if closed is not None:
        await connection.fail(
            f"error forwarding port {port.number} to pod {connection.pod}, uid : failed to connect "
            f"to localhost:{port.number} inside the pod's network namespace: dial tcp "
            f"127.0.0.1:{port.number}: connect: {closed.reason}"
        )
        return
    first = await connection.reader.read(1)
    if not first:
        return
    if _garbage(replay, connection):
        await connection.write(os.urandom(_GARBAGE_BYTES))
    elif first[0] == _TLS_HANDSHAKE:
        await _answer_tls(connection, port, recorded, first)
    else:
        await _answer_text(connection, port, replay, first)


def _garbage(replay: Replay, connection: Connection) -> bool:
    fault = replay.misbehaviour.standing(Garbage, _http_request(connection, "/"))
    return fault is not None and fault.port in (0, connection.number)


async def _answer_tls(connection: Connection, port: Port, recorded: Recorded, first: bytes) -> None:
    question = port.probes.get("tls")
    answer = only(recorded.source, question) if question else None
    if answer is None:
        await connection.fail(f"not recorded: whether port {port.number} speaks TLS")
    elif answer.error is None:
        await show_chain(connection, first, answer)


async def _answer_text(connection: Connection, port: Port, replay: Replay, first: bytes) -> None:
    """Serve HTTP/1.1 requests one after the other, or say the first word of HTTP/2."""
    head = first
    while True:
        try:
            head += await connection.reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            return
        if _PREFACE.startswith(head):
            await _answer_preface(connection, port, replay.recorded)
            return
        method, target, version, headers = _read_head(head)
        body = int(headers["content-length"]) if "content-length" in headers else 0
        await connection.reader.readexactly(body)
        keep = headers.get("connection", "").lower() != "close" and version == "HTTP/1.1"
        if not version.startswith("HTTP/1."):
            return
        answered = await _answer_request(connection, port, replay, (method, target), keep=keep)
        if not (answered and keep):
            return
        head = b""


async def _answer_preface(connection: Connection, port: Port, recorded: Recorded) -> None:
    question = port.probes.get("h2c")
    if question is None:
        await connection.fail(f"not recorded: whether port {port.number} speaks HTTP/2")
    elif only(recorded.source, question).error is None:
        await connection.write(_SETTINGS)
        while await connection.reader.read(_PIECE):
            pass  # the client's settings; nothing but the first word is recorded


def _read_head(head: bytes) -> tuple[str, str, str, Mapping[str, str]]:
    first, *lines = head.decode("latin-1").split("\r\n")
    method, _, rest = first.partition(" ")
    target, _, version = rest.rpartition(" ")
    named = (line.partition(":") for line in lines if line)
    return method, target, version, {name.lower(): value.strip() for name, _, value in named}


def _http_request(connection: Connection, target: str) -> ApiRequest:
    return ApiRequest(
        "GET",
        target,
        ("get",),
        resource=HTTP,
        namespace=connection.namespace,
        name=connection.pod,
        port=connection.number,
    )


async def _answer_request(
    connection: Connection, port: Port, replay: Replay, asked: tuple[str, str], *, keep: bool
) -> bool:
    """Answer one request; return whether another may follow."""
    method, target = asked
    request = _http_request(connection, target)
    replay.note(request)
    if replay.recorded.uid(connection.namespace, connection.pod) != connection.uid:
        raise Cut  # the pod was restarted
    misbehaviour = replay.misbehaviour
    if misbehaviour.standing(Hang, request) is not None:
        await forever()
    slow = misbehaviour.standing(Slow, request)
    if slow is not None:
        await asyncio.sleep(slow.seconds)
    drop = misbehaviour.striking(Drop, request)
    if drop is not None and not drop.after_bytes:
        raise Cut
    failing = misbehaviour.striking(Fail, request)
    question = port.paths.get(target)
    if failing is not None:
        status, content = failing.status, b"upstream failure\n"
    elif method not in ("GET", "HEAD"):
        status, content = 405, b"a recording is read-only\n"
    elif question is None:
        status, content = 404, f"not recorded: nobody asked {target}\n".encode()
    else:
        answer = await asyncio.to_thread(only, replay.recorded.source, question)
        if answer.error is not None:
            await _fail_as_recorded(answer)
            return False
        status, content = answer.status or 200, answer.content
    head = _head(status, content, chunked=port.number == _ENVOY_ADMIN, keep=keep)
    if method == "HEAD":
        content = b""
    framed = _chunks(content) if port.number == _ENVOY_ADMIN and method != "HEAD" else [content]
    await _send(connection, [head, *framed], slow, drop)
    return True


async def _fail_as_recorded(answer: Answer) -> None:
    """Time out where the recorder timed out; else the connection closes without an answer."""
    if timed_out(answer):
        await forever()


def _head(status: int, content: bytes, *, chunked: bool, keep: bool) -> bytes:
    kind = "application/json" if content[:1] in (b"{", b"[") else "text/plain; charset=UTF-8"
    framing = "transfer-encoding: chunked" if chunked else f"content-length: {len(content)}"
    lines = [
        f"HTTP/1.1 {status} {_PHRASES.get(status, 'Status')}",
        f"content-type: {kind}",
        framing,
        *([] if keep else ["connection: close"]),
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def _chunks(content: bytes) -> list[bytes | memoryview]:
    view = memoryview(content)
    pieces: list[bytes | memoryview] = []
    for start in range(0, len(view), _PIECE):
        piece = view[start : start + _PIECE]
        pieces += [f"{len(piece):x}\r\n".encode(), piece, b"\r\n"]
    return [*pieces, b"0\r\n\r\n"]


async def _send(
    connection: Connection,
    pieces: list[bytes | memoryview],
    slow: Slow | None,
    drop: Fault | None,
) -> None:
    """Send the pieces, small ones together, as slowly and as far as the faults have it."""
    left = drop.after_bytes if isinstance(drop, Drop) else None
    if slow is None and left is None:
        pending = b""
        for piece in pieces:
            if len(pending) + len(piece) < _PIECE:
                pending += bytes(piece)
                continue
            await connection.write(pending)
            await connection.write(piece)
            pending = b""
        await connection.write(pending)
        return
    rate = slow.bytes_per_s if slow is not None else 0.0
    step = max(1, int(rate / 10)) if rate else _PIECE
    for piece in pieces:
        for start in range(0, len(piece), step):
            part = piece[start : start + step]
            if left is not None:
                part = part[:left]
                left -= len(part)
            await connection.write(part)
            if left == 0:
                raise Cut
            if rate:
                await asyncio.sleep(len(part) / rate)


async def forever() -> NoReturn:
    """Wait until the connection's task is cancelled."""
    await asyncio.Event().wait()
    raise AssertionError("nobody sets this event")
