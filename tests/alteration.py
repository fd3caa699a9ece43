"""A recording, altered in one respect: for faults that no recording has.

What is altered is named in the test. Everything else is as it was recorded.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from meshnb.sources import Bundle
from meshnb.tables import Facts
from tests import policy_filters
from tests.conftest import unpacked


class Line(NamedTuple):
    """One line of an access log in Istio's default format, field by field as it is printed."""

    time: str
    method: str
    path: str
    protocol: str
    code: str
    flags: str
    details: str
    ended: str
    failure: str
    received: str
    sent: str
    duration: str
    service_time: str
    forwarded: str
    agent: str
    id: str
    authority: str
    endpoint: str
    cluster: str
    own: str
    local: str
    remote: str
    sni: str
    route: str

    @property
    def inbound(self) -> bool:
        """Whether the request came to the proxy's own pod."""
        return self.cluster.startswith("inbound")

    def __str__(self) -> str:
        """Return the line as a proxy prints it."""
        return _FORMAT.format(*self)


_FORMAT = '[{}] "{} {} {}" {} {} {} {} "{}" {} {} {} {} "{}" "{}" "{}" "{}" "{}" {} {} {} {} {} {}'
_LINE = re.compile(re.escape(_FORMAT).replace(r"\{\}", r"([^\" ]*)"))


def read_line(text: str) -> Line | None:
    """Return an access log's line, None when it is no such line."""
    matched = _LINE.fullmatch(text)
    return Line(*matched.groups()) if matched else None


#: The kinds that istiod shows on its page of what it holds, by their resources.
_READ_BY_ISTIOD = {
    "virtualservices": "VirtualService",
    "destinationrules": "DestinationRule",
    "gateways": "Gateway",
    "serviceentries": "ServiceEntry",
    "sidecars": "Sidecar",
    "workloadentries": "WorkloadEntry",
    "authorizationpolicies": "AuthorizationPolicy",
    "peerauthentications": "PeerAuthentication",
    "requestauthentications": "RequestAuthentication",
    "telemetries": "Telemetry",
    "wasmplugins": "WasmPlugin",
}
#: The kinds of which istiod makes filters for the pods that they select.
_POLICIES = ("authorizationpolicies", "requestauthentications")
_OF_SECURITY = ("AuthorizationPolicy", "PeerAuthentication", "RequestAuthentication")
_SECURITY = "security.istio.io/v1"


def metadata(name: str, namespace: str, changed: str, created: str = "") -> dict[str, Any]:
    """Return the metadata of a Kubernetes object that was written at a time."""
    return {
        "name": name,
        "namespace": namespace,
        "creationTimestamp": created or changed,
        "managedFields": [{"manager": "kubectl", "operation": "Update", "time": changed}],
    }


class Altered:
    """A copy of a recording, whose answers can be changed one by one before it is opened.

    Of the objects that are changed, istiod shows what it reads, and the proxies hold the filters
    that istiod makes of policies, unless they are not ``delivered``.
    """

    def __init__(self, name: str, folder: Path, *, delivered: bool = True) -> None:
        """Copy the recording ``name`` into ``folder``."""
        self.name = name
        self.delivered = delivered
        self.folder = folder / name
        shutil.copytree(unpacked() / name, self.folder)

    @property
    def _index(self) -> list[dict[str, Any]]:
        lines = (self.folder / "index.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def _write_index(self, entries: list[dict[str, Any]]) -> None:
        (self.folder / "index.jsonl").write_text("\n".join(map(json.dumps, entries)))

    def _matching(self, **request: Any) -> list[dict[str, Any]]:
        found = [entry for entry in self._index if request.items() <= entry["request"].items()]
        assert found, f"{self.name} has no answer to {request}"
        return found

    def answers(self, **request: Any) -> list[Any]:
        """Return the JSON of each answer whose request has these values."""
        found = self._matching(**request)
        return [json.loads((self.folder / one["file"]).read_text()) for one in found]

    def objects(self, resource: str, change: Callable[[list[Any]], None]) -> Altered:
        """Change the list of objects of one resource in place."""
        for entry in self._matching(kind="list", resource=resource):
            path = self.folder / entry["file"]
            document = json.loads(path.read_text())
            document["items"] = document["items"] or []
            before = json.loads(json.dumps(document["items"]))
            change(document["items"])
            path.write_text(json.dumps(document))
            if resource in _POLICIES and self.delivered:
                changed = [one for one in before if one not in document["items"]]
                changed += [one for one in document["items"] if one not in before]
                self._deliver(changed)
            if resource in _READ_BY_ISTIOD and "istio.io" in entry["request"]["apiVersion"]:
                self._read(_READ_BY_ISTIOD[resource], document["items"])
        return self

    def _stored(self, resource: str) -> list[Any]:
        found: list[Any] = []
        for entry in self._index:
            if entry["request"].get("resource") == resource and "file" in entry:
                found += json.loads((self.folder / entry["file"]).read_text())["items"] or []
        return found

    def _deliver(self, changed: list[Any]) -> None:
        """Let the proxies of the pods that these policies select hold what is stored now."""
        stored = [self._stored(resource) for resource in _POLICIES]
        pods = {
            (one["metadata"]["namespace"], one["metadata"]["name"]): one
            for one in self._stored("pods")
        }
        for entry in self._index:
            asked = entry["request"]
            pod = pods.get((asked.get("namespace"), asked.get("pod")))
            dumped = str(asked.get("path")).startswith("/config_dump") and "file" in entry
            if not dumped or pod is None or asked["port"] != 15000:
                continue
            mine = [one for one in changed if policy_filters.selects(one, pod)]
            if mine:
                held = [[p for p in one if policy_filters.selects(p, pod)] for one in stored]
                at = max(policy_filters.changed_at(one) for one in mine)
                self._hold(self.folder / entry["file"], at, *held)

    def _hold(self, path: Path, at: str, policies: list[Any], tokens: list[Any]) -> None:
        dump = json.loads(path.read_text())
        parts = {part["@type"].rpartition(".")[2]: part for part in dump["configs"]}
        alone = parts["BootstrapConfigDump"]["bootstrap"]["node"]["id"].startswith("router~")
        for one in parts["ListenersConfigDump"].get("dynamic_listeners", []):
            if "active_state" in one and (alone or one["name"] == "virtualInbound"):
                active = one["active_state"]
                policy_filters.hold(active["listener"], policies, tokens)
                active["last_updated"] = policy_filters.later(active["last_updated"], at)
        path.write_text(json.dumps(dump))

    def _read(self, kind: str, objects: list[Any]) -> None:
        """Let each istiod that shows its configuration hold what is stored of one kind."""
        for entry in self._index:
            if entry["request"].get("path") != "/debug/configz" or "file" not in entry:
                continue
            path = self.folder / entry["file"]
            group = _SECURITY if kind in _OF_SECURITY else "networking.istio.io/v1"
            held = json.loads(path.read_text())
            others = [
                one for one in held if one["kind"] != kind or "istio.io" not in one["apiVersion"]
            ]
            read = [{"kind": kind, "apiVersion": group, **one} for one in objects]
            path.write_text(json.dumps(others + read))

    def each(self, resource: str, name: str, change: Callable[[dict[str, Any]], None]) -> Altered:
        """Change each object of one resource whose name begins so."""

        def change_all(items: list[Any]) -> None:
            chosen = [item for item in items if item["metadata"]["name"].startswith(name)]
            assert chosen, f"{self.name} has no {resource} {name}"
            for item in chosen:
                change(item)

        return self.objects(resource, change_all)

    def add(
        self, resource: str, name: str, namespace: str, changed: str, **document: Any
    ) -> Altered:
        """Add an object, made at a time, to the list of one resource."""
        added = {"metadata": metadata(name, namespace, changed), **document}
        return self.objects(resource, lambda items: items.append(added))

    def remove(self, resource: str, name: str) -> Altered:
        """Take each object whose name begins so out of the list of one resource."""

        def without(items: list[Any]) -> None:
            kept = [item for item in items if not item["metadata"]["name"].startswith(name)]
            assert len(kept) < len(items), f"{self.name} has no {resource} {name}"
            items[:] = kept

        return self.objects(resource, without)

    def pages(self, change: Callable[[Any], None], **request: Any) -> Altered:
        """Change the JSON of each page whose request has these values, in place."""
        for entry in self._matching(kind="http", **request):
            path = self.folder / entry["file"]
            document = json.loads(path.read_text())
            change(document)
            path.write_text(json.dumps(document))
        return self

    def texts(self, change: Callable[[str], str], **request: Any) -> Altered:
        """Replace the text of each answer, such as a log, whose request has these values."""
        for entry in self._matching(**request):
            if "file" in entry:
                path = self.folder / entry["file"]
                path.write_text(change(path.read_text()))
        return self

    def lines(self, pod: str, change: Callable[[Line], Iterable[Line]]) -> Altered:
        """Put other lines in the place of each line of the access logs of pods named so."""
        assert self._rewrite(pod, change), (
            f"no access log of {self.name} for {pod!r} has such lines"
        )
        return self

    def _rewrite(self, pod: str, change: Callable[[Line], Iterable[Line]]) -> bool:
        changed = False
        for entry in self._matching(kind="log", container="istio-proxy"):
            if "file" not in entry or not entry["request"]["pod"].startswith(pod):
                continue
            path = self.folder / entry["file"]
            kept = []
            for text in path.read_text().splitlines():
                line = read_line(text)
                new = [text] if line is None else [str(one) for one in change(line)]
                changed = changed or new != [text]
                kept += new
            path.write_text("\n".join(kept) + "\n")
        return changed

    def at_client(self, authority: str, since: str, *, pod: str = "", **fields: str) -> Altered:
        """Let requests fail in the callers' proxies, from a time on: the server never sees them.

        ``fields`` are what the lines of the callers, pods named so, have instead. The server's
        lines of the same requests go.
        """
        lost: set[str] = set()

        def fail(line: Line) -> Iterable[Line]:
            if line.inbound or line.authority != authority or line.time < since:
                return [line]
            lost.add(line.id)
            return [line._replace(**fields)]

        def unseen(line: Line) -> Iterable[Line]:
            gone = line.inbound and line.authority == authority and line.id in lost
            return [] if gone else [line]

        self.lines(pod, fail)
        self._rewrite("", unseen)
        return self

    def at_server(
        self, authority: str, since: str, *, caller: str = "", code: str, **fields: str
    ) -> Altered:
        """Let the proxy or application of a server fail requests from a time on.

        ``fields`` are what the server's lines have instead; those of the callers have the status
        and say that it came from upstream. ``caller`` limits it to callers whose address begins so.
        """
        failed: dict[str, bool] = {}

        def concerned(line: Line) -> bool:
            return (
                line.authority == authority
                and line.time >= since
                and line.remote.startswith(caller)
            )

        def answer(line: Line) -> Iterable[Line]:
            if line.inbound and line.authority == authority:
                failed[line.id] = concerned(line)
            failing = line.inbound and line.authority == authority and failed[line.id]
            return [line._replace(code=code, **fields) if failing else line]

        def carry(line: Line) -> Iterable[Line]:
            # The logs of the two ends begin at different times: not each call is in both.
            carried = line.authority == authority and failed.get(line.id, concerned(line))
            return [line._replace(code=code) if carried and not line.inbound else line]

        self.lines("", answer)
        self._rewrite("", carry)
        return self

    def request(
        self, pod: str, like: str, times: int = 8, /, *, since: str = "", **fields: str
    ) -> Altered:
        """Let a pod's access log have more lines: copies of a request with other fields.

        A line is added behind each of the first ``times`` lines whose path is ``like``, from a time
        on.
        """
        added = 0

        def more(line: Line) -> Iterable[Line]:
            nonlocal added
            if added >= times or line.path != like or line.time < since:
                return [line]
            added += 1
            return [line, line._replace(**{"id": f"{line.id}+", **fields})]

        return self.lines(pod, more)

    def bodies(self, change: Callable[[bytes], bytes], **request: Any) -> Altered:
        """Replace the bytes of each answer whose request has these values."""
        for entry in self._matching(**request):
            path = self.folder / entry["file"]
            path.write_bytes(change(path.read_bytes()))
        return self

    def disconnect(self, proxy: str) -> Altered:
        """Let no istiod know the proxies whose names begin so."""

        def without(page: Any) -> None:
            clients = page if isinstance(page, list) else page["clients"]
            clients[:] = [
                one
                for one in clients
                if not str(one.get("proxy") or one["connectionId"]).startswith(proxy)
            ]

        for path in ("/debug/syncz", "/debug/connections"):
            self.pages(without, path=path)
        return self

    def silence(self, error: str, status: int | None = None, **request: Any) -> Altered:
        """Let the answers to these requests be an error instead, with a status or without."""
        entries = self._index
        chosen = [entry for entry in entries if request.items() <= entry["request"].items()]
        assert chosen, f"{self.name} has no answer to {request}"
        for entry in chosen:
            entry.pop("file", None)
            entry.pop("status", None)
            entry["error"] = error
            if status is not None:
                entry["status"] = status
        self._write_index(entries)
        return self

    def forget(self, **request: Any) -> Altered:
        """Let these requests never have been made."""
        kept = [entry for entry in self._index if not request.items() <= entry["request"].items()]
        assert len(kept) < len(self._index), f"{self.name} has no answer to {request}"
        self._write_index(kept)
        return self

    def ask(self, like: dict[str, Any], *, error: str, **request: Any) -> Altered:
        """Add a request to the index like another one, which got an error for an answer."""
        entries = self._index
        entry = dict(self._matching(**like)[0])
        entry.pop("file", None)
        entry.pop("status", None)
        entries.append({**entry, "request": {**entry["request"], **request}, "error": error})
        self._write_index(entries)
        return self

    def reply(self, like: dict[str, Any], document: Any, **request: Any) -> Altered:
        """Add a request to the index like another one, which is answered with a JSON document."""
        entries = self._index
        entry = dict(self._matching(**like)[0])
        path = self.folder / entry["file"]
        added = path.with_name(f"{path.name}.{len(entries)}")
        added.write_text(json.dumps(document))
        entry["file"] = added.relative_to(self.folder).as_posix()
        entries.append({**entry, "request": {**entry["request"], **request}})
        self._write_index(entries)
        return self

    def lose(self, **request: Any) -> Altered:
        """Take the files of these answers out of the bundle; the index goes on to name them."""
        for entry in self._matching(**request):
            (self.folder / entry["file"]).unlink()
        return self

    def garble(self, **request: Any) -> Altered:
        """Let the index's lines of these answers be cut off in the middle."""
        chosen = [json.dumps(entry) for entry in self._matching(**request)]
        path = self.folder / "index.jsonl"
        lines = [json.dumps(json.loads(line)) for line in path.read_text().splitlines()]
        path.write_text(
            "\n".join(line[: len(line) // 2] if line in chosen else line for line in lines)
        )
        return self

    def facts(self) -> Facts:
        """Open the altered recording."""
        return Facts(Bundle(self.folder, label=f"{self.name}, altered"))
