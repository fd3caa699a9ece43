"""The API server: what each path of the Kubernetes API answers from a recording."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from aiohttp import web

from meshnb.sources.base import Answer
from meshnb.sources.serve.credentials import Credentials
from meshnb.sources.serve.discovery import AGGREGATED, REVIEWS, Discovery
from meshnb.sources.serve.faults import Drop, Expire, Fail, Gone, Hang, Refuse, Slow
from meshnb.sources.serve.forward import forward
from meshnb.sources.serve.logs import log_of
from meshnb.sources.serve.printed import TABLE, table_of
from meshnb.sources.serve.recorded import Collection, timed_out
from meshnb.sources.serve.replay import Replay
from meshnb.sources.serve.request import ApiRequest, read_request
from meshnb.sources.serve.reviews import review_answer
from meshnb.sources.serve.selection import (
    Wanted,
    fields_wanted,
    labels_wanted,
    page_of,
    selected,
)
from meshnb.sources.serve.status import (
    Status,
    UnknownPage,
    forbidden,
    no_such_page,
    not_forwarded,
    not_found,
)
from meshnb.sources.serve.watch import watch

_USER = "replay"
#: Whoever shows no token may ask these, too; a wrong token is refused here as elsewhere.
_PUBLIC = ("/healthz", "/livez", "/readyz", "/version")
_HEALTH = ("/healthz", "/livez", "/readyz")
#: What the server says it is where nobody recorded what the cluster's was.
_VERSION = {"major": "1", "minor": "36", "gitVersion": "v1.36.0", "platform": "linux/amd64"}
_PIECE = 64 << 10
_EXPIRED = (
    "The provided continue parameter is too old to display a consistent list result. You can start "
    "a new list without the continue parameter."
)


class Api:
    """One application: it answers every request to one server."""

    def __init__(self, replay: Replay, credentials: Credentials) -> None:
        """Answer from ``replay`` to whoever has one of the ``credentials``."""
        self._replay = replay
        self._credentials = credentials
        self._documents: Discovery | None = None

    def application(self) -> web.Application:
        """Return it as aiohttp runs it."""
        application = web.Application(client_max_size=1 << 20)
        application.router.add_route("*", "/{path:.*}", self._answer)
        return application

    @property
    def _discovery(self) -> Discovery:
        if self._documents is None:
            self._documents = Discovery(self._replay.recorded.collections())
        return self._documents

    async def _answer(self, http: web.Request) -> web.StreamResponse:
        request = read_request(http.method, http.path, http.query)
        self._replay.note(request)
        try:
            self._authenticate(http, request)
            limit = await self._misbehave(http, request)
            return await self._paced(http, request, await self._respond(http, request), limit)
        except UnknownPage:
            return web.Response(text=UnknownPage.TEXT, status=404)
        except Status as status:
            headers = {}
            if status.retry_after_s is not None:
                headers["Retry-After"] = str(status.retry_after_s)
            return _json(status.to_json(), status=status.code, headers=headers)
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            # An object of the recording has another shape than Kubernetes gives it.
            odd = Status(500, f"what was recorded cannot be shown: {type(error).__name__}: {error}")
            return _json(odd.to_json(), status=odd.code)

    def _authenticate(self, http: web.Request, request: ApiRequest) -> None:
        given = http.headers.get("Authorization", "")
        if http.path in _PUBLIC and not given:
            return
        for fault, count in self._replay.misbehaviour.met(Expire, request):
            if given and count == fault.after + 1:
                self._credentials.renew()
        if given == f"Bearer {self._credentials.token}":
            return
        tls = http.transport and http.transport.get_extra_info("ssl_object")
        if isinstance(tls, ssl.SSLObject) and tls.getpeercert():
            return
        raise Status(401, "Unauthorized")

    async def _misbehave(self, http: web.Request, request: ApiRequest) -> int:
        """Do what the faults want first; return after how many bytes to cut the answer, or 0."""
        faults = self._replay.misbehaviour
        if faults.standing(Hang, request):
            await asyncio.Event().wait()
        slow = faults.standing(Slow, request)
        if slow is not None:
            await asyncio.sleep(slow.seconds)
        drop = faults.striking(Drop, request)
        if drop is not None and not drop.after_bytes and http.transport is not None:
            http.transport.abort()
            raise asyncio.CancelledError
        fail = faults.striking(Fail, request)
        if fail is not None:
            after = fail.retry_after_s if fail.status in (429, 503) else None
            raise Status(fail.status, _failure(request, fail.status), retry_after_s=after)
        if request.resource and request.resource not in REVIEWS:
            self._authorize(request)
        return 0 if drop is None else drop.after_bytes

    def _authorize(self, request: ApiRequest) -> None:
        for verb in request.verbs:
            if self._replay.misbehaviour.standing(Refuse, replace(request, verbs=(verb,))):
                raise _forbidden(request, verb)

    async def _respond(self, http: web.Request, request: ApiRequest) -> web.StreamResponse:
        if http.method == "POST" and request.resource in REVIEWS:
            review = review_answer(self._replay, request.resource, await http.read())
            return _json(review, status=201)
        forwards = request.resource == "pods/portforward" and request.name
        if http.method not in ("GET", "HEAD") and not (http.method == "POST" and forwards):
            raise Status(405, "a recording is read-only: this server only reads")
        if not request.resource:
            return self._page(http)
        if forwards:
            return await self._forward(http, request)
        if request.resource == "pods/log":
            return await self._log(http, request)
        collection = self._collection(request)
        if request.subresource:
            raise no_such_page(request.group)
        if request.name and request.verbs != ("watch",):
            return self._object(http, request, collection)
        return await self._list(http, request, collection)

    def _page(self, http: web.Request) -> web.StreamResponse:
        """Answer a path that is about no resource: health, version, discovery."""
        path = http.path.rstrip("/")
        if path in _HEALTH:
            return web.Response(text="ok")
        if path == "/version":
            return _json(self._replay.recorded.server_version or _VERSION)
        discovery = self._discovery
        document: Mapping[str, Any] | None = None
        if path in ("/api", "/apis"):
            if _wants_aggregated(http):
                body = discovery.aggregated(core=path == "/api")
                return _json(body, headers={"Content-Type": AGGREGATED})
            document = discovery.core_versions() if path == "/api" else discovery.groups()
        elif path.startswith("/api/"):
            document = discovery.resources(path.removeprefix("/api/"))
        elif path.startswith("/apis/"):
            group, slash, _ = path.removeprefix("/apis/").partition("/")
            if slash:
                document = discovery.resources(path.removeprefix("/apis/"))
            elif (found := discovery.group(group)) is not None:
                document = {"kind": "APIGroup", "apiVersion": "v1", **found}
        if document is None:
            raise UnknownPage
        return _json(document)

    def _collection(self, request: ApiRequest) -> Collection:
        """Return a list that can be read. Raises Status with what was answered instead of one."""
        found = self._replay.recorded.collection(request.api_version, request.plain_resource)
        if found is None:
            raise no_such_page(request.group)
        if not found.readable:
            raise _recorded_status(found.answer)
        if not found.allows(request.namespace):
            raise _forbidden(request, request.verbs[0])
        return found

    def _object(
        self, http: web.Request, request: ApiRequest, collection: Collection
    ) -> web.StreamResponse:
        found = collection.find(request.namespace, request.name or "")
        if found is None:
            raise not_found(request.group, request.plain_resource, request.name or "")
        shown = self._shown(http, collection, [found], found["metadata"])
        return _json(shown or collection.whole(found))

    async def _list(
        self, http: web.Request, request: ApiRequest, collection: Collection
    ) -> web.StreamResponse:
        query = http.query
        wanted = _selectors(request, query)
        if request.verbs == ("watch",):
            return await watch(
                http,
                lambda: self._collection(request),
                lambda items: selected(items, wanted),
                lambda items: self._shown(http, collection, items, {}),
            )
        limit, token = query.get("limit", "0"), query.get("continue", "")
        if not limit.isdigit():
            raise Status(400, f"limit: Invalid value: {limit!r}: must be a number of 0 or more")
        if token and self._replay.misbehaviour.striking(Gone, request):
            raise Status(410, _EXPIRED)
        if not (wanted or int(limit) or token or _wants_table(http)):
            return web.Response(body=collection.answer.content, content_type="application/json")
        items = selected(collection.items, wanted)
        page, metadata = page_of(items, int(limit), token, collection.version)
        if wanted:
            metadata.pop("remainingItemCount", None)
        document = self._shown(http, collection, page, metadata) or {
            "kind": collection.document.get("kind", f"{collection.kind.name}List"),
            "apiVersion": collection.api_version,
            "metadata": metadata,
            "items": list(page),
        }
        return _json(document)

    def _shown(
        self,
        http: web.Request,
        collection: Collection,
        items: Iterable[dict[str, Any]],
        metadata: Mapping[str, Any],
    ) -> dict[str, Any] | None:
        """Return objects as a Table where the client wants one."""
        if not _wants_table(http):
            return None
        return table_of(
            [collection.whole(item) for item in items],
            (collection.group, collection.resource),
            self._replay.recorded.source.now,
            include=http.query.get("includeObject", "Metadata"),
            metadata={
                key: metadata[key]
                for key in ("resourceVersion", "continue", "remainingItemCount")
                if key in metadata
            },
        )

    async def _forward(self, http: web.Request, request: ApiRequest) -> web.StreamResponse:
        recorded, name = self._replay.recorded, request.name or ""
        if not recorded.knows_pod(request.namespace or "", name):
            raise not_found("", "pods", name)
        pod = recorded.pod(request.namespace or "", name)
        if pod is not None and not (pod.get("spec") or {}).get("nodeName"):
            raise Status(400, f"pod {name} does not have a host assigned")
        for text in http.query.getall("ports", []):
            port = recorded.port(request.namespace or "", name, int(text) if text.isdigit() else 0)
            closed = None if port is None else recorded.closed(port)
            if closed is not None and closed.status is not None:
                raise Status(closed.status, closed.reason)
        return await forward(http, request, self._replay)

    async def _log(self, http: web.Request, request: ApiRequest) -> web.StreamResponse:
        body = await asyncio.to_thread(log_of, self._replay.recorded, request, http.query)
        if http.query.get("follow") not in ("1", "true"):
            return web.Response(body=body, content_type="text/plain")
        response = web.StreamResponse(headers={"Content-Type": "text/plain"})
        await response.prepare(http)
        with contextlib.suppress(ConnectionResetError):
            await response.write(body)
            await asyncio.Event().wait()  # a recording never grows, and never ends either
        return response

    async def _paced(
        self, http: web.Request, request: ApiRequest, response: web.StreamResponse, limit: int
    ) -> web.StreamResponse:
        """Send an answer as slowly as the faults have it, and cut it off after ``limit`` bytes."""
        slow = self._replay.misbehaviour.standing(Slow, request)
        rate = slow.bytes_per_s if slow is not None else 0.0
        if not isinstance(response, web.Response) or not (limit or rate):
            return response
        body = response.body
        content = body if isinstance(body, bytes) else b""
        paced = web.StreamResponse(status=response.status, headers=response.headers)
        await paced.prepare(http)
        step = max(1, int(rate / 10)) if rate else _PIECE
        sent = content[:limit] if limit else content
        with contextlib.suppress(ConnectionResetError):
            for start in range(0, len(sent), step):
                await paced.write(sent[start : start + step])
                if rate:
                    await asyncio.sleep(min(step, len(sent) - start) / rate)
            if limit and http.transport is not None:
                http.transport.abort()
            await paced.write_eof()
        return paced


def _failure(request: ApiRequest, status: int) -> str:
    """Return how the API server fails: where a kubelet is wanted, because it does not listen."""
    refused = "dial tcp 192.0.2.1:10250: connect: connection refused"
    if status == 500 and request.resource == "pods/portforward":
        return f"error dialing backend: {refused}"
    if status == 500 and request.resource == "pods/log":
        logs = f"containerLogs/{request.namespace}/{request.name}"
        return f'Get "https://192.0.2.1:10250/{logs}": {refused}'
    return "the server is told to fail"


def _forbidden(request: ApiRequest, verb: str) -> Status:
    if (request.resource, verb, request.method) == ("pods/portforward", "create", "GET"):
        return not_forwarded(request.name or "")
    return forbidden(_USER, verb, request.group, request.resource, request.namespace, request.name)


def _json(
    document: Mapping[str, Any], *, status: int = 200, headers: Mapping[str, str] | None = None
) -> web.Response:
    body = json.dumps(document, separators=(",", ":")).encode()
    return web.Response(
        body=body, status=status, headers={"Content-Type": "application/json", **(headers or {})}
    )


def _accepted(http: web.Request) -> list[str]:
    return [
        part.replace(" ", "")
        for each in http.headers.getall("Accept", [])
        for part in each.split(",")
    ]


def _wants_table(http: web.Request) -> bool:
    accepted = _accepted(http)
    return bool(accepted) and TABLE in accepted[0] and accepted[0].startswith("application/json")


def _wants_aggregated(http: web.Request) -> bool:
    return any(
        "as=APIGroupDiscoveryList" in part and "v=v2" in part.split(";") for part in _accepted(http)
    )


def _selectors(request: ApiRequest, query: Mapping[str, str]) -> list[Wanted]:
    wanted: list[Wanted] = []
    if request.namespace is not None:
        namespace = request.namespace
        wanted.append(lambda item: item["metadata"].get("namespace") == namespace)
    if request.name is not None:
        name = request.name
        wanted.append(lambda item: item["metadata"].get("name") == name)
    if query.get("labelSelector"):
        wanted.append(labels_wanted(query["labelSelector"]))
    if query.get("fieldSelector"):
        wanted.append(fields_wanted(query["fieldSelector"], request.plain_resource))
    return wanted


def _recorded_status(answer: Answer) -> Status:
    """Return what the API server answered instead of a list when it was recorded."""
    message, details = answer.error or "", None
    try:
        said = json.loads(answer.content)
        message = str(said["message"])
        details = said.get("details")
    except (ValueError, KeyError, TypeError):
        message = message or answer.content.decode("utf-8", "replace")
    if answer.status is not None and answer.status >= 400:
        return Status(
            answer.status,
            message or "refused in the recording",
            details=details if isinstance(details, dict) else None,
        )
    return Status(504 if timed_out(answer) else 503, f"in the recording: {message or 'no answer'}")
