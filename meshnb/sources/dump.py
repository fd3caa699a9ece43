"""One saved page of a proxy as a source: a config dump, or its clusters with their endpoints.

It is the file that ``istioctl proxy-config … -f`` takes. Of any Envoy or ztunnel; what the proxy is
called is taken from what it says of itself, else from the file's name.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import mmap
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec

from meshnb.errors import NotRecorded, SourceError
from meshnb.sources.archive import MEMBER_LIMIT
from meshnb.sources.base import Answer, Body, HttpQuestion, Question, parse_time

#: How a page is known: by its first key. A ztunnel's has several, of which any may come first.
_ZTUNNEL_KEYS = ("workloads", "services", "policies", "certificates")
_PAGES: Mapping[str, str] = {
    "configs": "/config_dump?include_eds",
    "cluster_statuses": "/clusters?format=json",
    **dict.fromkeys(_ZTUNNEL_KEYS, "/config_dump"),
}
_ADMIN_PORT = 15000

_GZIP = b"\x1f\x8b"
_BOM = b"\xef\xbb\xbf"
_START = 4096
#: After the end of a page there is no more than white space.
_TAIL = 64
_FIRST_PART = re.compile(rb'\s*\{\s*"configs"\s*:\s*\[\s*(?=\{)')
#: A bootstrap has some 100 kB.
_BOOTSTRAP_LIMIT = 1 << 22
_BROKEN = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_FIRST_KEY = re.compile(rb'\s*\{\s*"([^"]*)"')
_SAVE = (
    "Save one with `kubectl exec POD -c istio-proxy -- pilot-agent request GET "
    "'config_dump?include_eds' > dump.json`."
)


class _Node(msgspec.Struct):
    id: Any = None
    metadata: Any = None


class _Bootstrap(msgspec.Struct):
    node: _Node | None = None


class _Taken(msgspec.Struct):
    last_updated: Any = None
    active_state: _Taken | None = None
    warming_state: _Taken | None = None
    draining_state: _Taken | None = None


class _Part(_Taken):
    bootstrap: _Bootstrap | None = None
    static_clusters: list[_Taken] = []
    dynamic_active_clusters: list[_Taken] = []
    dynamic_warming_clusters: list[_Taken] = []
    static_listeners: list[_Taken] = []
    dynamic_listeners: list[_Taken] = []
    static_route_configs: list[_Taken] = []
    dynamic_route_configs: list[_Taken] = []
    inline_scoped_route_configs: list[_Taken] = []
    dynamic_scoped_route_configs: list[_Taken] = []
    static_secrets: list[_Taken] = []
    dynamic_active_secrets: list[_Taken] = []
    dynamic_warming_secrets: list[_Taken] = []
    ecds_filters: list[_Taken] = []

    def times(self) -> set[str]:
        """Return when each thing in it was taken over by the proxy, as it is written."""
        found = {self.last_updated}
        for name in self.__struct_fields__:
            listed = getattr(self, name)
            for taken in listed if isinstance(listed, list) else ():
                found.add(taken.last_updated)
                for state in (taken.active_state, taken.warming_state, taken.draining_state):
                    found.add(state and state.last_updated)
        return {text for text in found if isinstance(text, str)}


class _Page(msgspec.Struct):
    configs: list[_Part]


class Dump:
    """A saved config dump or clusters page as a source that answers one question.

    Raises :class:`~meshnb.errors.SourceError` when the file is neither, or cannot be read. The file
    is mapped into memory rather than read, so it should not be written to while the source is used.
    """

    manifest: Mapping[str, Any] = {}

    def __init__(self, path: str | os.PathLike[str], *, label: str | None = None) -> None:
        """Open the file at ``path``; ``label`` names the source instead of the path."""
        self.path = Path(path)
        self._label = label or str(self.path)
        self._body = self._open()
        self._written = datetime.fromtimestamp(self.path.stat().st_mtime, UTC)
        self._question = self._asked()

    def __repr__(self) -> str:
        """Show the label and the question that it answers."""
        return f"<Dump {self._label}: {self._question}>"

    @property
    def label(self) -> str:
        """Name the source: the path."""
        return self._label

    @property
    def damage(self) -> tuple[str, ...]:
        """Return nothing: a damaged file is not opened at all."""
        return ()

    @cached_property
    def now(self) -> datetime:
        """When the proxy last took something over, or else when the file was written."""
        return _newest(self._parts) or self._written

    def questions(self) -> tuple[Question, ...]:
        """Return the one question that the file answers."""
        return (self._question,)

    def ask(self, questions: Iterable[Question]) -> Iterator[Answer]:
        """Yield the page for its question; every other question raises NotRecorded."""
        for question in questions:
            if question != self._question:
                raise NotRecorded(
                    f"{self._label} is one page of one proxy and has no answer to {question}.",
                    next_step="Record a bundle of the running mesh to see more.",
                )
            yield Answer(question, self._written, 0.0, 200, self._body)

    def _open(self) -> Body:
        name = repr(str(self.path))
        try:
            with self.path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                packed = file.read(len(_GZIP)) == _GZIP
                file.seek(0)
                if size > MEMBER_LIMIT:
                    raise SourceError(
                        f"{name} has {size >> 20} MiB, more than {MEMBER_LIMIT >> 20} MiB.",
                        next_step="Save less of it: `config_dump?include_eds&name_regex=PATTERN`.",
                    )
                if size == 0:
                    raise SourceError(f"{name} is empty.", next_step=_SAVE)
                if not packed:
                    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                with gzip.open(file) as unpacked:
                    body = unpacked.read(MEMBER_LIMIT + 1)
        except (gzip.BadGzipFile, zlib.error, EOFError) as error:
            raise SourceError(
                f"{name} begins like a gzip file, but cannot be unpacked: {error}.",
                next_step="Copy it again.",
            ) from error
        except (OSError, ValueError) as error:
            raise SourceError(
                f"{name} cannot be read: {getattr(error, 'strerror', None) or error}.",
                next_step="Check its name and permissions.",
            ) from error
        if len(body) > MEMBER_LIMIT:
            raise SourceError(
                f"{name} unpacks to more than {MEMBER_LIMIT >> 20} MiB.", next_step=_SAVE
            )
        return body

    @cached_property
    def _parts(self) -> list[_Part]:
        """What a config dump consists of; nothing where it has an odd shape, or is another page.

        Raises SourceError when the file is not JSON.
        """
        try:
            return msgspec.json.decode(self._body, type=_Page).configs
        except msgspec.ValidationError:
            return []
        except _BROKEN as error:
            raise self._not_json(error) from error

    def _not_json(self, error: Exception | str) -> SourceError:
        return SourceError(
            f"{str(self.path)!r} is not JSON ({error}). It was cut off, or is something else.",
            next_step=_SAVE,
        )

    def _asked(self) -> HttpQuestion:
        """Return the question that the file answers, by what is in it."""
        if self._body[: len(_BOM)] == _BOM:
            self._body = self._body[len(_BOM) :]
        # Of an Envoy's dump the beginning says enough; it can have hundreds of megabytes.
        if self._body[-_TAIL:].rstrip().endswith(b"}") and (first := _first_part(self._body)):
            return HttpQuestion(*self._proxy([first]), _ADMIN_PORT, _PAGES["configs"])
        name = repr(str(self.path))
        try:
            keys = list(msgspec.json.decode(self._body, type=dict[str, msgspec.Raw]))
        except msgspec.ValidationError:
            raise SourceError(
                f"{name} is JSON, but no object: it is not a saved page of a proxy.",
                next_step=_SAVE,
            ) from None
        except _BROKEN as error:
            raise self._not_json(error) from error
        for key, page in _PAGES.items():
            if key in keys:
                return HttpQuestion(*self._proxy(self._parts), _ADMIN_PORT, page)
        shown = ", ".join(keys[:10]) or "none"
        raise SourceError(
            f"{name} is JSON, but neither a config dump nor a page of clusters. Its keys: "
            f"{shown}{', …' if len(keys) > 10 else ''}.",
            next_step=_SAVE,
        )

    def _proxy(self, parts: list[_Part]) -> tuple[str, str]:
        """Return namespace and name of the proxy's pod."""
        for part in parts:
            node = part.bootstrap.node if part.bootstrap else None
            if node is None:
                continue
            metadata = node.metadata if isinstance(node.metadata, dict) else {}
            namespace, pod = metadata.get("NAMESPACE"), metadata.get("NAME")
            if isinstance(namespace, str) and isinstance(pod, str) and namespace and pod:
                return namespace, pod
            # sidecar~ADDRESS~POD.NAMESPACE~DOMAIN
            names = str(node.id).split("~")
            pod, _, namespace = names[2].rpartition(".") if len(names) == 4 else ("", "", "")
            if pod and namespace:
                return namespace, pod
        stem = Path(self.path.name.removesuffix(".gz")).stem
        return "", re.sub(r"[^A-Za-z0-9.-]+", "-", stem).strip("-.")[:63] or "proxy"


def _first_part(body: Body) -> _Part | None:
    """Return the first part of a config dump if it is the bootstrap, which names the proxy."""
    start = _FIRST_PART.match(body)
    if start is None:
        return None
    beginning = body[start.end() : start.end() + _BOOTSTRAP_LIMIT].decode("utf-8", "replace")
    try:
        first, _ = json.JSONDecoder().raw_decode(beginning)
        part = msgspec.convert(first, _Part)
    except (json.JSONDecodeError, RecursionError, msgspec.ValidationError):
        return None
    return part if part.bootstrap else None


def _newest(parts: list[_Part]) -> datetime | None:
    # All are written alike, in UTC and with milliseconds, so the greatest text is the newest.
    texts: set[str] = set().union(*(part.times() for part in parts))
    for text in sorted(texts, reverse=True):
        with contextlib.suppress(ValueError):
            return parse_time(text)
    return None


def holds_dump(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a file that looks like JSON, or is called so, and is no manifest."""
    there = Path(path)
    if not there.is_file():
        return False
    with there.open("rb") as file:
        start = file.read(_START).removeprefix(_BOM)
    first = _FIRST_KEY.match(start)
    if first and first[1].decode("utf-8", "replace") in _PAGES:
        return True
    named = there.suffix == ".json" or start.lstrip()[:1] == b"{"
    packed = start[: len(_GZIP)] == _GZIP
    return packed or (named and not (b'"apiVersion"' in start and b'"kind"' in start))
