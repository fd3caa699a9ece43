"""One Kubernetes API server, over aiohttp: lists in pages, texts, and WebSockets to pods.

Nothing but GET ever leaves here. Each request is bounded in time, and so many run at once at most.
"""

from __future__ import annotations

import asyncio
import base64
import errno
import os
import socket
import ssl
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar, cast
from urllib.parse import quote
from weakref import WeakSet

import aiohttp
import msgspec

from meshnb.errors import SourceError
from meshnb.sources.base import Body
from meshnb.sources.kubeconfig import Access, load_access, plugin_hangs
from meshnb.sources.spool import Spool

#: So many objects come in one page of a list; kubectl asks for as many.
PAGE = 500
#: A list whose pages have expired is begun again so often, then asked for whole.
_RESTARTS = 2
#: A server that is too busy (429, 503 with Retry-After) is asked again so often.
_RETRIES = 3
#: It is not waited for longer than this between two tries, in seconds.
_LONGEST_WAIT_S = 5.0
#: Whether a token has expired is looked at so often, in seconds.
_FRESH_S = 1.0
#: A plugin that renews credentials may take so long, in seconds.
_CREDENTIALS_S = 20.0
#: What was asked for and is no longer wanted may take so long to be let go of, in seconds.
_LETTING_GO_S = 0.5
#: Connecting, with TLS, may take so long, in seconds.
CONNECT_S = 10.0

#: What a client sends to open a WebSocket (RFC 6455, section 4.1); the key is any 16 bytes.
_UPGRADE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": base64.b64encode(bytes(16)).decode(),
}
_Result = TypeVar("_Result")

_TLS_REASONS = {
    10: "has expired",
    18: "is self-signed, and the kubeconfig does not name it as trusted",
    19: "is signed by a CA that the kubeconfig does not name as trusted",
    20: "is signed by a CA that the kubeconfig does not name as trusted",
    21: "is signed by a CA that the kubeconfig does not name as trusted",
    62: "is for another host name",
    64: "is for another address",
}


class Refused(Exception):
    """The server answered, with something else than what was asked for."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class _Page(msgspec.Struct):
    """A List, its objects as they came."""

    metadata: dict[str, Any] = msgspec.field(default_factory=dict)
    items: list[msgspec.Raw] | None = None
    kind: str = "List"
    api_version: str = msgspec.field(default="v1", name="apiVersion")


class _Joined:
    """One List made of several, as if all objects had come at once."""

    def __init__(self, first: _Page, spool: Spool) -> None:
        version = first.metadata.get("resourceVersion")
        metadata = {} if version is None else {"resourceVersion": version}
        head = {"kind": first.kind, "apiVersion": first.api_version, "metadata": metadata}
        self._spool = spool
        self._separator = b""
        spool.write(msgspec.json.encode(head)[:-1] + b',"items":[')
        self.add(first)

    def add(self, page: _Page) -> None:
        for item in page.items or ():
            self._spool.write(self._separator + bytes(item))
            self._separator = b","

    def body(self) -> Body:
        self._spool.write(b"]}")
        return self._spool.body()


class ApiServer:
    """Asks one API server. Used within ``async with``, on one loop."""

    def __init__(self, access: Access, *, connections: int) -> None:
        """Take how to reach it, and how many connections may be open at once."""
        self.access = access
        self._connections = connections
        self._session: aiohttp.ClientSession | None = None
        self._renewing: asyncio.Task[None] | None = None
        self._authorization: str | None = None
        self._authorized_at = float("-inf")
        self._sockets: WeakSet[socket.socket] = WeakSet()

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=self._connections, socket_factory=self._socket),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S),
            auto_decompress=True,
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._session is not None
        await self._session.close()
        # The session does not wait for connections that were given up while they were opened.
        deadline = time.monotonic() + _LETTING_GO_S
        while self._open_sockets() and time.monotonic() < deadline:  # noqa: ASYNC110  no event tells
            await asyncio.sleep(0.005)
        for left in self._open_sockets():
            left.close()

    def _socket(self, address: aiohttp.AddrInfoType) -> socket.socket:
        family, kind, protocol, *_ = address
        opened = socket.socket(family, kind, protocol)
        self._sockets.add(opened)
        return opened

    def _open_sockets(self) -> list[socket.socket]:
        return [one for one in self._sockets if one.fileno() >= 0]

    async def _options(self) -> dict[str, Any]:
        """Return what every request has: credentials, TLS, proxy."""
        while time.monotonic() - self._authorized_at > _FRESH_S:
            await self._once(self._authorize)
        authorization = self._authorization
        options: dict[str, Any] = {
            "headers": {"Authorization": authorization} if authorization else {},
            "proxy": self.access.proxy,
            "proxy_headers": self.access.proxy_headers,
        }
        if self.access.tls is not None:
            options["ssl"] = self.access.tls
        if self.access.tls_name is not None:
            options["server_hostname"] = self.access.tls_name
        return options

    async def _once(self, renew: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Wait until credentials were renewed, which is done once for all who wait."""
        if self._renewing is None or self._renewing.done():
            self._renewing = asyncio.create_task(renew())
            self._renewing.add_done_callback(_seen)
        try:
            async with asyncio.timeout(_CREDENTIALS_S):
                await asyncio.shield(self._renewing)
        except TimeoutError:
            raise plugin_hangs(self.access.context.name, _CREDENTIALS_S) from None

    async def _authorize(self) -> None:
        self._authorization = await _aside(self.access.authorization)
        self._authorized_at = time.monotonic()

    async def _load(self) -> None:
        self.access = await _aside(partial(load_access, self.access.context.name))
        await self._authorize()

    async def _renew(self, refused: Access) -> None:
        """Get new credentials, once for all that were refused with the old ones."""
        while self.access is refused:
            await self._once(self._load)

    @asynccontextmanager
    async def _get(
        self,
        path: str,
        parameters: Mapping[str, str],
        accept: str = "application/json",
        *,
        handshake: str = "",
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """GET with new credentials after a 401, and again when the server is too busy.

        ``handshake`` asks for a WebSocket of that protocol, which nobody will use.
        """
        assert self._session is not None
        renewed = False
        for left in reversed(range(_RETRIES + 1)):
            used = self.access
            options = await self._options()
            options["headers"]["Accept"] = accept
            if handshake:
                options["headers"] |= _UPGRADE | {"Sec-WebSocket-Protocol": handshake}
            async with self._session.get(
                self.access.server + path, params=parameters, allow_redirects=False, **options
            ) as response:
                if response.status == 401 and left and not (renewed and self.access is used):
                    # Where another question has renewed them meanwhile, these are only tried.
                    renewed = renewed or self.access is used
                    await self._renew(used)
                    continue
                after = response.headers.get("Retry-After")
                if response.status not in (429, 503) or after is None or not left:
                    yield response
                    return
            await asyncio.sleep(_wait(after))

    async def document(self, path: str) -> Any:
        """Return a document, decoded. Raises Refused when it is not there, or is no JSON."""
        async with self._get(path, {}) as response:
            body = await response.read()
            if response.status != 200:
                raise Refused(response.status, _message(body, response.status))
            try:
                return msgspec.json.decode(body)
            except (msgspec.DecodeError, UnicodeDecodeError):
                raise Refused(response.status, "what came is no JSON") from None

    async def text(self, path: str, parameters: Mapping[str, str]) -> Body:
        """Return a text such as a log, which goes to disk when it is long. Raises Refused."""
        spool = Spool()
        try:
            async with self._get(path, parameters, "*/*") as response:
                await _fill(spool, response)
                if response.status != 200:
                    body = bytes(spool.body())
                    raise Refused(response.status, _message(body, response.status))
                return spool.body()
        except BaseException:
            spool.discard()
            raise

    async def named(self, path: str, name: str) -> Any:
        """Return the object of a name from a list, which needs no permission to get it; or None.

        Raises Refused.
        """
        body = await self.text(path, {"fieldSelector": f"metadata.name={name}"})
        try:
            found = msgspec.json.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise Refused(200, "what came is no JSON") from None
        items = found.get("items") if isinstance(found, dict) else None
        return items[0] if isinstance(items, list) and items else None

    async def list(self, path: str) -> tuple[int, Body]:
        """Return the status and the body of a list; of several pages one list is made.

        A resource that the server does not know is an answer: 404. Raises Refused for the rest.
        """
        for left in reversed(range(_RESTARTS + 1)):
            try:
                return await self._pages(path, {"limit": str(PAGE)} if left else {})
            except _Expired:
                continue
        raise Refused(410, "the list changed faster than it could be read")

    async def _pages(self, path: str, parameters: Mapping[str, str]) -> tuple[int, Body]:
        spool = Spool(secret=path.endswith("/secrets"))
        try:
            first = await self._page(path, parameters, spool)
            if isinstance(first, int):
                return first, spool.body()
            spool.discard()
            joined = _Joined(first, spool)
            page = first
            while following := page.metadata.get("continue"):
                found = await self._page(
                    path, {**parameters, "continue": following}, Spool(secret=True)
                )
                assert not isinstance(found, int)
                page = found
                joined.add(page)
            return 200, joined.body()
        except BaseException:
            spool.discard()
            raise

    async def _page(self, path: str, parameters: Mapping[str, str], spool: Spool) -> _Page | int:
        """Return one of several pages, or the status of an answer that stands in the spool."""
        async with self._get(path, parameters) as response:
            status = response.status
            await _fill(spool, response)
        following = "continue" in parameters
        if status == 404 and not following:
            return 404
        if status == 410:
            raise _Expired
        if status != 200:
            raise Refused(status, _message(bytes(spool.body()), status))
        if not following and spool.size < 1:
            return 200
        page, body = None, spool.body()
        try:
            page = msgspec.json.decode(body, type=_Page)
        except (msgspec.DecodeError, UnicodeDecodeError):
            if following:
                raise Refused(status, "a page of the list is no JSON") from None
        if page is None or not (following or page.metadata.get("continue")):
            spool.discard()
            spool.write(bytes(body))
            return 200
        return page

    def joined(self, bodies: Sequence[Body]) -> Body:
        """Return one list made of the lists of several namespaces. Raises Refused."""
        try:
            pages = [msgspec.json.decode(body, type=_Page) for body in bodies]
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise Refused(200, "a list of a namespace is no JSON") from None
        joined = _Joined(pages[0], Spool(secret=True))
        for page in pages[1:]:
            joined.add(page)
        return joined.body()

    @asynccontextmanager
    async def websocket(
        self, path: str, parameters: Mapping[str, str], protocol: str
    ) -> AsyncIterator[aiohttp.ClientWebSocketResponse[bool]]:
        """Open a WebSocket, with new credentials after a 401. Raises Refused.

        When it is left, its connection is closed: nothing of it is kept for others.
        """
        stream = await self._open(path, parameters, protocol)
        try:
            yield stream
        finally:
            connection = stream._response.connection  # noqa: SLF001  a close that waits for nobody
            if connection is not None and connection.transport is not None:
                connection.transport.abort()
            stream._response.close()  # noqa: SLF001

    async def _open(
        self, path: str, parameters: Mapping[str, str], protocol: str
    ) -> aiohttp.ClientWebSocketResponse[bool]:
        assert self._session is not None
        renewed = False
        for left in reversed(range(_RETRIES + 1)):
            used = self.access
            try:
                stream: aiohttp.ClientWebSocketResponse[bool] = await self._session.ws_connect(
                    self.access.server + path,
                    params=parameters,
                    protocols=(protocol,),
                    max_msg_size=0,
                    autoclose=False,
                    **await self._options(),
                )
            except aiohttp.WSServerHandshakeError as error:
                if error.status == 401 and left and not (renewed and self.access is used):
                    renewed = renewed or self.access is used
                    await self._renew(used)
                    continue
                after = error.headers.get("Retry-After") if error.headers else None
                if error.status not in (429, 503) or after is None or not left:
                    raise Refused(error.status, error.message) from None
                await asyncio.sleep(_wait(after))
            else:
                return stream
        raise Refused(503, "the server is too busy")

    async def why_refused(self, path: str, parameters: Mapping[str, str], protocol: str) -> str:
        """Return what the server says where it refused a WebSocket; empty when it does not now.

        aiohttp does not read what comes with a refused handshake, so that it is asked once more.
        """
        async with self._get(path, parameters, handshake=protocol) as response:
            if response.status < 400:
                return ""
            return _message(await response.read(), response.status)


def _seen(task: asyncio.Task[None]) -> None:
    """Take notice of how a task ended for which nobody may be waiting any more."""
    if not task.cancelled():
        task.exception()


async def _aside(work: Callable[[], _Result]) -> _Result:
    """Do something that blocks in a thread of its own, which nobody waits for who is cancelled.

    A plugin may run in it, and wait for a person.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[_Result] = loop.create_future()

    def settle(result: _Result | None, error: BaseException | None) -> None:
        if done.done():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(cast("_Result", result))

    def run() -> None:
        result, failed = None, None
        try:
            result = work()
        except Exception as error:  # noqa: BLE001  raised where it is waited for
            failed = error
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(settle, result, failed)

    threading.Thread(target=run, name="meshnb-credentials", daemon=True).start()
    return await done


class _Expired(Exception):
    """The rest of a list is no longer to be had (410 Gone)."""


async def _fill(spool: Spool, response: aiohttp.ClientResponse) -> None:
    async for piece in response.content.iter_any():
        spool.write(piece)


def api_path(*segments: str) -> str:
    """Return the path of these segments, none of which can lead elsewhere. Raises Refused."""
    for segment in segments:
        if segment.strip(".") == "":
            raise Refused(404, f"{segment!r} is no name of Kubernetes")
    return "/" + "/".join(quote(segment, safe="") for segment in segments)


def _wait(after: str) -> float:
    try:
        return min(max(float(after), 0.1), _LONGEST_WAIT_S)
    except ValueError:
        return 1.0


def _message(body: bytes, status: int) -> str:
    """Return what a Kubernetes Status says, or the text itself, as one line."""
    try:
        said = msgspec.json.decode(body)
        text = said.get("message") if isinstance(said, dict) else None
    except (msgspec.DecodeError, UnicodeDecodeError):
        text = body.decode("utf-8", "replace")
    return " ".join(str(text or "").split())[:500] or f"status {status}"


def unreachable(error: BaseException, access: Access) -> SourceError:
    """Return why an API server cannot be used at all, with what to do next."""
    server, name = access.server, access.context.name
    if isinstance(error, SourceError):
        return error
    if isinstance(error, Refused):
        return _turned_away(error, access)
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return _untrusted(error.certificate_error, access)
    if isinstance(error, aiohttp.ClientProxyConnectionError | aiohttp.ClientHttpProxyError):
        return SourceError(
            f"The proxy {_without_password(access.proxy)} does not lead to {server}.",
            next_step="Correct proxy-url in the kubeconfig or HTTPS_PROXY, or name the server in "
            "NO_PROXY.",
        )
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return SourceError(
            f"The host of the API server {server} has no address.",
            next_step="Connect to the network or VPN that knows it, or choose another context.",
        )
    if isinstance(error, TimeoutError):
        return SourceError(
            f"The API server {server} did not answer in time.",
            next_step=f"Check the network or VPN: `kubectl --context {name} get namespaces`.",
        )
    if isinstance(error, ssl.SSLError | aiohttp.ClientConnectorSSLError):
        return SourceError(
            f"The API server {server} does not agree on TLS: {in_words(error)}.",
            next_step="Check the client certificate and the address in the kubeconfig.",
        )
    return SourceError(
        f"The API server {server} cannot be reached: {in_words(error)}.",
        next_step=f"Check that it runs, and the network or VPN: "
        f"`kubectl --context {name} get namespaces`.",
    )


def _turned_away(error: Refused, access: Access) -> SourceError:
    name = access.context.name
    if error.status == 401:
        return SourceError(
            f"The API server does not accept the credentials of context {name!r} (401): they have "
            "expired, or are for another cluster.",
            next_step=f"Log in again; `kubectl --context {name} get namespaces` shows whether it "
            "worked.",
        )
    if error.status >= 500 or error.status == 429:
        return SourceError(
            f"The API server {access.server} does not work as it should (status {error.status}: "
            f"{error}).",
            next_step=f"Try again; `kubectl --context {name} get --raw /readyz?verbose` shows what "
            "it lacks.",
        )
    return SourceError(
        f"The API server {access.server} answered with status {error.status}: {error}.",
        next_step="Check that the address in the kubeconfig is that of a Kubernetes API server.",
    )


def _untrusted(error: Exception, access: Access) -> SourceError:
    code = getattr(error, "verify_code", 0)
    said = str(getattr(error, "verify_message", "") or error)
    server = access.server
    if "key usage" in said.lower() or "authority key identifier" in said.lower():
        return SourceError(
            f"Python from 3.13 on refuses the CA of {server}, because it breaks RFC 5280: {said}.",
            next_step="Have the cluster's CA issued again with keyUsage, or use Python 3.12.",
        )
    why = _TLS_REASONS.get(code, f"is not accepted: {said}")
    return SourceError(
        f"The certificate of the API server {server} {why}.",
        next_step="Get a kubeconfig with the right certificate-authority-data; with another host "
        "name, set tls-server-name.",
    )


def _without_password(url: str | None) -> str:
    scheme, _, rest = str(url).partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"


def in_words(error: BaseException) -> str:
    """Return why something with the network failed, without what could be a secret."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, OSError) and error.errno:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            return "too many open files; raise the limit with `ulimit -n 4096`"
        return f"{os.strerror(error.errno).lower()}" if error.errno > 0 else str(error)
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return "the connection was closed before the answer"
    if isinstance(error, aiohttp.ClientPayloadError):
        return "the connection was closed within the answer"
    said = str(getattr(error, "message", "") or error)
    return " ".join(said.split())[:200] or type(error).__name__
