"""One recording while it is served: what it holds, what goes wrong with it, what it was asked."""

from __future__ import annotations

import asyncio
import uuid
from collections import Counter
from collections.abc import Sequence
from typing import Any

from meshnb.sources.base import Source
from meshnb.sources.serve.faults import HTTP, Fault, Misbehaviour, Restart
from meshnb.sources.serve.recorded import Recorded
from meshnb.sources.serve.request import ApiRequest

#: The alphabet of the five characters that a ReplicaSet ends its pods' names with.
_SUFFIX = "bcdfghjklmnpqrstvwxz2456789"


class Replay:
    """A recording, its faults, and every request so far."""

    def __init__(self, source: Source, faults: Sequence[Fault]) -> None:
        """Serve what ``source`` answers, with these faults."""
        self.recorded = Recorded(source)
        self.misbehaviour = Misbehaviour(faults)
        self.requests: list[ApiRequest] = []
        self._asked: Counter[tuple[Restart, str, str]] = Counter()

    def note(self, request: ApiRequest) -> None:
        """Keep a request, and restart the pod that it is about when its time has come."""
        self.requests.append(request)
        if request.resource != HTTP and request.plain_resource != "pods":
            return
        namespace, name = request.namespace or "", request.name or ""
        for fault in self.misbehaviour.faults:
            if not name or not isinstance(fault, Restart) or not fault.concerns(request):
                continue
            self._asked[fault, namespace, name] += 1
            if self._asked[fault, namespace, name] == fault.after:
                self._restart(namespace, name, fault.gone_s)

    def _restart(self, namespace: str, name: str, gone_s: float) -> None:
        pod = self.recorded.remove_pod(namespace, name)
        if pod is None:
            return
        successor = _successor(pod)
        # Those that it has asked already do not make the new one restart as well.
        for fault in self.misbehaviour.faults:
            if isinstance(fault, Restart):
                self._asked[fault, namespace, successor["metadata"]["name"]] = fault.after
        if gone_s:
            asyncio.get_running_loop().call_later(
                gone_s, lambda: self.recorded.add_pod(successor, like=name)
            )
        else:
            self.recorded.add_pod(successor, like=name)


def _successor(pod: dict[str, Any]) -> dict[str, Any]:
    """Return the pod that takes its place: another name where a ReplicaSet made it, a new uid."""
    metadata, identity = pod["metadata"], uuid.uuid4()
    name = str(metadata["name"])
    stem, dash, _ = name.rpartition("-")
    if dash and metadata.get("generateName") == f"{stem}-":
        drawn = identity.bytes[:5]
        name = f"{stem}-{''.join(_SUFFIX[byte % len(_SUFFIX)] for byte in drawn)}"
    return {**pod, "metadata": {**metadata, "name": name, "uid": str(identity)}}
