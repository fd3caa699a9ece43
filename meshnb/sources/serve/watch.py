"""Watches: a recording never changes, so there is a first word and then silence.

Who names no resource version gets every object as ADDED first, as from an API server; who goes on
from a list gets nothing. Bookmarks come when they were asked for. A pod that a fault restarts is
DELETED under its old name and ADDED under its new one.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from aiohttp import web

from meshnb.sources.serve.recorded import Collection
from meshnb.sources.serve.status import Status

#: How often a watch is told that it is up to date, in seconds.
BOOKMARK_S = 60.0

Shown = Callable[[list[dict[str, Any]]], dict[str, Any] | None]


async def watch(
    http: web.Request,
    collection: Callable[[], Collection],
    wanted: Callable[[Iterable[dict[str, Any]]], list[dict[str, Any]]],
    shown: Shown,
) -> web.StreamResponse:
    """Stream the events of a watch until it times out or the client leaves.

    ``collection`` gives the list as it is now, ``wanted`` picks objects, and ``shown`` puts an
    object into the form that was asked for (a Table), or None where it stays as it is.
    """
    query = http.query
    timeout = _seconds(query.get("timeoutSeconds"))
    bookmarks = query.get("allowWatchBookmarks") in ("1", "true")
    initial = query.get("sendInitialEvents") in ("1", "true")
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    await response.prepare(http)
    seen = collection()
    known = {_identity(item): item for item in wanted(seen.items)}

    async def send(kind: str, item: dict[str, Any]) -> None:
        shape = shown([item]) if kind != "BOOKMARK" else None
        event = {"type": kind, "object": shape or collection().whole(item)}
        await response.write(json.dumps(event, separators=(",", ":")).encode() + b"\n")

    if initial or query.get("resourceVersion", "") in ("", "0"):
        for item in known.values():
            await send("ADDED", item)
    if bookmarks:
        await send("BOOKMARK", _bookmark(collection(), ended=initial))
    try:
        async with asyncio.timeout(timeout):
            waited = 0.0
            while True:
                await asyncio.sleep(0.2)
                waited += 0.2
                if collection() is not seen:
                    seen = collection()
                    now = {_identity(item): item for item in wanted(seen.items)}
                    for kind, item in _changes(known, now):
                        await send(kind, item)
                    known = now
                if bookmarks and waited >= BOOKMARK_S:
                    waited = 0.0
                    await send("BOOKMARK", _bookmark(collection(), ended=False))
    except TimeoutError:
        pass
    await response.write_eof()
    return response


def _seconds(text: str | None) -> float | None:
    if not text:
        return None
    if not text.isdigit():
        raise Status(400, f"timeoutSeconds: Invalid value: {text!r}: must be a number")
    return float(text) or None


def _identity(item: dict[str, Any]) -> tuple[str, str, str]:
    metadata = item["metadata"]
    return (
        str(metadata.get("namespace", "")),
        str(metadata.get("name")),
        str(metadata.get("uid", "")),
    )


def _changes(
    before: dict[tuple[str, str, str], dict[str, Any]],
    now: dict[tuple[str, str, str], dict[str, Any]],
) -> Iterator[tuple[str, dict[str, Any]]]:
    yield from (("DELETED", item) for key, item in before.items() if key not in now)
    yield from (("ADDED", item) for key, item in now.items() if key not in before)


def _bookmark(collection: Collection, *, ended: bool) -> dict[str, Any]:
    metadata: dict[str, Any] = {"resourceVersion": collection.version, "creationTimestamp": None}
    if ended:
        metadata["annotations"] = {"k8s.io/initial-events-end": "true"}
    return {
        "kind": collection.kind.name,
        "apiVersion": collection.api_version,
        "metadata": metadata,
    }
