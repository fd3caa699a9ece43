"""Clients of a served recording: the official one, kubectl, and a port-forward frame by frame."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest
from kubernetes import client, config

from meshnb.sources.serve import Served


def core_client(served: Served) -> Any:
    """Return the official client's core API, configured as any other client would be."""
    return client.CoreV1Api(config.new_client_from_config(config_file=str(served.kubeconfig)))


def kubectl(served: Served, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run kubectl on a served recording; skips the test where it is not installed."""
    program = shutil.which("kubectl")
    if program is None:
        pytest.skip("kubectl is not installed")
    cache = served.kubeconfig.with_name("cache")
    try:
        return subprocess.run(
            [program, f"--cache-dir={cache}", *arguments],
            env={**os.environ, "KUBECONFIG": str(served.kubeconfig)},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
    finally:
        shutil.rmtree(cache, ignore_errors=True)


@asynccontextmanager
async def session_of(served: Served, token: str | None = None) -> AsyncIterator[Session]:
    """Open a plain HTTP session with the server's CA and a token, by default the right one."""
    context = ssl.create_default_context(cafile=served.ca_file)
    sockets: list[socket.socket] = []

    def connecting(address: Any) -> socket.socket:
        family, kind, protocol, _, _ = address
        sockets.append(socket.socket(family, kind, protocol))
        return sockets[-1]

    try:
        async with aiohttp.ClientSession(
            served.url,
            connector=aiohttp.TCPConnector(ssl=context, socket_factory=connecting),
            headers={"Authorization": f"Bearer {served.token if token is None else token}"},
        ) as session:
            yield Session(session)
    finally:
        async with asyncio.timeout(5):
            while any(each.fileno() != -1 for each in sockets):  # noqa: ASYNC110  nothing tells
                await asyncio.sleep(0.01)  # both sides say goodbye within TLS


@dataclass
class Session:
    """Plain requests to a served recording."""

    http: aiohttp.ClientSession

    async def get(self, path: str, accept: str = "application/json") -> tuple[int, Any]:
        """Return the status and the JSON document of a path, or its text where it is none."""
        async with self.http.get(path, headers={"Accept": accept}) as response:
            if response.content_type == "text/plain":
                return response.status, await response.text()
            return response.status, await response.json()

    @asynccontextmanager
    async def forward(self, namespace: str, pod: str, port: int) -> AsyncIterator[Forwarded]:
        """Open a port-forward to one port, as its protocol wants it."""
        path = f"/api/v1/namespaces/{namespace}/pods/{pod}/portforward?ports={port}"
        async with self.http.ws_connect(
            path, protocols=["v4.channel.k8s.io"], max_msg_size=0
        ) as channels:
            stated = port.to_bytes(2, "little")
            assert await channels.receive_bytes() == b"\x00" + stated
            assert await channels.receive_bytes() == b"\x01" + stated
            yield Forwarded(channels)


@dataclass
class Forwarded:
    """A forwarded port: what came through it so far, and what was said of it."""

    channels: aiohttp.ClientWebSocketResponse
    received: bytes = b""
    reason: str = ""
    closed: bool = False
    frames: list[int] = field(default_factory=list)

    async def send(self, content: bytes) -> None:
        """Send bytes to the port; a port that was closed at once does not get them."""
        with contextlib.suppress(ConnectionResetError):
            await self.channels.send_bytes(b"\x00" + content)

    async def read(self, until: bytes | None = None, seconds: float = 5.0) -> bytes:
        """Read until the bytes end so, or without them until the server closes or is silent."""
        try:
            async with asyncio.timeout(seconds):
                while not self.closed and not (until and self.received.endswith(until)):
                    await self._step()
        except TimeoutError:
            assert until is None, f"{self.received[-200:]!r} does not end with {until!r}"
        return self.received

    async def _step(self) -> None:
        message = await self.channels.receive()
        if message.type is not aiohttp.WSMsgType.BINARY:
            self.closed = True
        elif message.data[0] == 1:
            self.reason += message.data[1:].decode()
        else:
            self.received += message.data[1:]
            self.frames.append(len(message.data))
