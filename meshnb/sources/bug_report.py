"""An archive that ``istioctl bug-report`` wrote, or the folder it was unpacked to, as a source.

What lies where is Istio's (``tools/bug-report``, Istio 1.20 to 1.30): ``cluster/`` has objects as
YAML, ``proxies/NAMESPACE/POD/`` pages and logs of a proxy, ``istio/NAMESPACE/POD/`` those of an
istiod. It holds fewer answers than a bundle: no probes, no events as objects, no Secrets.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from meshnb.errors import NotRecorded, SourceError
from meshnb.sources.archive import Archive, MemberError, leads_out, open_archive
from meshnb.sources.base import (
    Answer,
    HttpQuestion,
    ListQuestion,
    LogQuestion,
    Question,
    parse_time,
)
from meshnb.sources.clusters_text import clusters_page
from meshnb.sources.questions import LISTS, group_of

#: Files with objects; and which built-in resources each is a list of, whether it has any or not.
_OBJECTS: Mapping[str, tuple[str, ...]] = {
    "cluster/k8s-resources": (
        *("v1/pods", "v1/services", "v1/replicationcontrollers", "v1/configmaps"),
        *("apps/v1/daemonsets", "apps/v1/deployments", "apps/v1/replicasets"),
        *("apps/v1/statefulsets", "batch/v1/jobs", "batch/v1/cronjobs"),
        *("autoscaling/v2/horizontalpodautoscalers", "discovery.k8s.io/v1/endpointslices"),
        *("networking.k8s.io/v1/ingresses", "networking.k8s.io/v1/networkpolicies"),
    ),
    "cluster/k8s-cluster-resources": (
        *("v1/nodes", "v1/namespaces", "apiextensions.k8s.io/v1/customresourcedefinitions"),
        "admissionregistration.k8s.io/v1/mutatingwebhookconfigurations",
        "admissionregistration.k8s.io/v1/validatingwebhookconfigurations",
    ),
    "cluster/nodes": ("v1/nodes",),
    "cluster/pods": ("v1/pods",),
    "cluster/crs": (),
}
_CLUSTER_WIDE = "cluster/k8s-cluster-resources"
#: Pages of Envoy and of ztunnel, by the file's name.
_PAGES: Mapping[str, tuple[int, str]] = {
    "certs": (15000, "/certs"),
    "clusters": (15000, "/clusters?format=json"),
    "config_dump": (15000, "/config_dump"),
    "config_dump?include_eds": (15000, "/config_dump?include_eds"),
    "listeners": (15000, "/listeners"),
    "memory": (15000, "/memory"),
    "runtime": (15000, "/runtime"),
    "server_info": (15000, "/server_info"),
    "stats/prometheus": (15000, "/stats/prometheus"),
}
_FILE = re.compile(
    r"(?P<part>proxies|istio|ztunnel)/(?P<namespace>[^/]+)/(?P<pod>[^/]+)/(?P<file>.+)"
)
_STAMP = re.compile(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?Z")
_VERSION = re.compile(r"Server Version: *(v(\d+)\.(\d+)\S*)")
#: YAML that stands for more of the same; what kubectl writes has none.
_ALIAS = re.compile(r"(?m)(?:^|[\s:,\[-])\*[^\s*,\]}]+[ \t]*(?:$|[,\]}])")
#: Of a log's end, in bytes.
_TAIL = 4096
_NO_PAGE = b"404 page not found\n"
_BROKEN = (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError)
_WRITTEN = "It is what `istioctl bug-report` writes."


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """YAML whose times stay text, as JSON has them."""

    yaml_implicit_resolvers = {  # noqa: RUF012  it replaces the one of the class above
        first: [one for one in resolvers if one[0] != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


class BugReport:
    """An archive of ``istioctl bug-report`` as a source, as far as it goes.

    Every answer has one time: that of the newest line of any log, because neither the archive nor
    its pages say when they were written. Envoy's page of clusters is there in its text form and is
    answered for in the JSON form. Raises :class:`~meshnb.errors.SourceError` when it is no such
    archive, and :class:`~meshnb.errors.BundleError` when it cannot be read.
    """

    def __init__(self, path: str | os.PathLike[str], *, label: str | None = None) -> None:
        """Open the archive, ``.tar.gz`` or a folder, at ``path``."""
        self.path = Path(path)
        self._label = label or str(self.path)
        self._archive: Archive = open_archive(self.path)
        self._damage: list[str] = []
        self._names = self._found()
        self.manifest: Mapping[str, Any] = self._about()
        self.now = self._newest()
        self._bodies: dict[Question, tuple[int, bytes]] = {}
        self._files: dict[Question, str] = {}
        self._read_objects()
        self._know_pages()
        if not self._bodies and not self._files:
            raise SourceError(
                f"{self._label!r} has neither objects nor pages of a mesh.", next_step=_WRITTEN
            )

    def __repr__(self) -> str:
        """Show the label and the number of answers."""
        return f"<BugReport {self._label}: {len(self.questions())} answers>"

    @property
    def label(self) -> str:
        """Name the source: the path."""
        return self._label

    @property
    def damage(self) -> tuple[str, ...]:
        """Say what of the archive cannot be used, a sentence each."""
        return tuple(self._damage)

    @property
    def server_version(self) -> Mapping[str, Any] | None:
        """What kubectl said of the API server's version, or None."""
        matched = _VERSION.search(self._text("cluster/kubectl-version"))
        if matched is None:
            return None
        return {"gitVersion": matched[1], "major": matched[2], "minor": matched[3]}

    def questions(self) -> tuple[Question, ...]:
        """Return every question that a file of the archive answers."""
        return (*self._bodies, *self._files)

    def ask(self, questions: Iterable[Question]) -> Iterator[Answer]:
        """Yield the answer to each question; another one raises NotRecorded."""
        for question in questions:
            if question in self._bodies:
                status, body = self._bodies[question]
                yield Answer(question, self.now, 0.0, status, body)
            elif question in self._files:
                yield self._answer(question)
            else:
                raise NotRecorded(
                    f"{self._label} is a bug report and has no answer to {question}.",
                    next_step="Record a bundle of the running mesh to see more.",
                )

    def _found(self) -> dict[str, str]:
        """Return the members by their names within the report, wherever in the archive it lies."""
        found: dict[str, str] = {}
        for name in self._archive.names():
            if leads_out(name):
                self._damage.append(f"{name!r} leads out of the archive and is not read.")
                continue
            matched = re.search(r"(?:^|/)((?:cluster|proxies|istio|ztunnel)/.+)$", name)
            if matched and name.count("/") - matched[1].count("/") <= 2:
                found.setdefault(matched[1], name)
        if not found:
            raise SourceError(
                f"{self._label!r} is no archive of istioctl bug-report: it has neither cluster/ "
                "nor proxies/ nor istio/.",
                next_step=_WRITTEN,
            )
        return found

    def _read(self, name: str) -> bytes:
        return self._archive.read(self._names[name])

    def _text(self, name: str) -> str:
        if name not in self._names:
            return ""
        try:
            return self._read(name).decode("utf-8", "replace")
        except MemberError:
            return ""

    def _about(self) -> Mapping[str, Any]:
        context = self._text("cluster/cluster-context").split("\n", 1)[0].strip()
        spaces = sorted({name.split("/")[1] for name in self._names if name.startswith("istio/")})
        return {
            **({"cluster": context} if context else {}),
            **({"istio_namespace": spaces[0]} if spaces else {}),
        }

    def _newest(self) -> datetime:
        """Return the time of the newest line of any log, or when the archive was written."""
        stamps: set[bytes] = set()
        for name in self._names:
            if name.endswith(".log"):
                try:
                    stamps.update(_STAMP.findall(self._read(name)[-_TAIL:]))
                except MemberError:
                    continue  # it is told of when it is asked for
        for stamp in sorted(stamps, reverse=True):
            try:
                return parse_time(stamp.decode())
            except ValueError:
                continue
        return datetime.fromtimestamp(self.path.stat().st_mtime, UTC)

    def _read_objects(self) -> None:
        lists: dict[tuple[str, str], dict[tuple[str, str], Any]] = {}
        documents: dict[str, list[Any]] = {}
        for file, resources in _OBJECTS.items():
            if file in self._names and (objects := self._objects(file)) is not None:
                documents[file] = objects
                for resource in resources:
                    version, _, name = resource.rpartition("/")
                    lists.setdefault((version, name), {})
        plurals = dict(_plurals(documents.get(_CLUSTER_WIDE, ())))
        for one in (one for objects in documents.values() for one in objects):
            version, kind, metadata = one["apiVersion"], one["kind"], one["metadata"]
            known = plurals.get((group_of(version), kind)) or _built_in(version, kind)
            if known is not None:
                place = str(metadata.get("namespace")), str(metadata.get("name"))
                lists.setdefault((version, known), {})[place] = one
        for (version, resource), found in lists.items():
            listing = {"kind": "List", "apiVersion": version, "items": list(found.values())}
            try:
                body = json.dumps(listing, default=str).encode()
            except (RecursionError, ValueError, TypeError):
                self._damage.append(f"The {resource} cannot be read: they are nested too deeply.")
                continue
            self._bodies[ListQuestion(version, resource)] = (200, body)
        if "cluster/crs" in documents and _CLUSTER_WIDE in documents:
            self._know_absent({(group, plural) for (group, _), plural in plurals.items()})

    def _know_absent(self, defined: set[tuple[str, str]]) -> None:
        """Answer for kinds of Istio and the Gateway API without an object, or unknown there."""
        have = {
            (group_of(question.api_version), question.resource)
            for question in self._bodies
            if isinstance(question, ListQuestion)
        }
        for version, resources in LISTS.items():
            group = group_of(version)
            if not group.endswith((".istio.io", "gateway.networking.k8s.io")):
                continue
            for resource in resources.split():
                if (group, resource) in have:
                    continue
                empty = json.dumps({"kind": "List", "apiVersion": version, "items": []}).encode()
                known = (group, resource) in defined
                answer = (200, empty) if known else (404, _NO_PAGE)
                self._bodies[ListQuestion(version, resource)] = answer

    def _objects(self, file: str) -> list[Any] | None:
        """Return the objects in a file of YAML; None, and a sentence, when it cannot be read."""
        try:
            text = self._read(file).decode("utf-8")
            if _ALIAS.search(text) and any(
                isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=_Loader)
            ):
                raise ValueError("it has aliases, which kubectl does not write")
            documents = list(yaml.load_all(text, Loader=_Loader))
        except MemberError as error:
            self._damage.append(f"{error}.")
            return None
        except _BROKEN as error:
            said = str(error).splitlines()[0] if str(error) else type(error).__name__
            self._damage.append(f"{file} cannot be read: {said}.")
            return None
        return list(_each(documents))

    def _know_pages(self) -> None:
        for name in self._names:
            if (matched := _FILE.fullmatch(name)) and (question := _asked(*matched.groups())):
                self._files.setdefault(question, name)

    def _answer(self, question: Question) -> Answer:
        status = 200 if isinstance(question, HttpQuestion) else 0
        try:
            body = self._read(self._files[question])
            if isinstance(question, HttpQuestion) and question.path == "/clusters?format=json":
                body = _as_json(body)
        except MemberError as error:
            return Answer(question, self.now, 0.0, error=f"the bug report is damaged: {error}")
        return Answer(question, self.now, 0.0, status, body)


def holds_bug_report(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a tar packed with gzip, or a folder laid out like a bug report."""
    there = Path(path)
    try:
        if there.is_dir():
            places = [there, *(one for one in sorted(there.iterdir())[:3] if one.is_dir())]
            return not (there / "index.jsonl").exists() and any(
                (place / "cluster" / "cluster-context").is_file()
                or (place / "cluster" / "k8s-resources").is_file()
                for place in places
            )
        if not there.is_file():
            return False
        with there.open("rb") as file:
            if file.read(2) != b"\x1f\x8b":
                return False
            file.seek(0)
            with gzip.open(file) as unpacked:
                return unpacked.read(512)[257:262] == b"ustar"
    except (OSError, EOFError, zlib.error, ValueError):
        return False


def _each(documents: Iterable[Any]) -> Iterator[dict[str, Any]]:
    """Yield each object, also those in lists, that says what it is and is called."""
    for document in documents:
        if not isinstance(document, dict):
            continue
        items = document.get("items")
        if isinstance(items, list):
            yield from _each(items)
        elif (
            isinstance(document.get("apiVersion"), str)
            and isinstance(document.get("kind"), str)
            and isinstance(document.get("metadata"), dict)
        ):
            yield document


def _plurals(objects: Iterable[Any]) -> Iterator[tuple[tuple[str, str], str]]:
    """Yield group, kind and resource of each definition of a custom resource."""
    for one in objects:
        spec = one.get("spec")
        if one["kind"] == "CustomResourceDefinition" and isinstance(spec, dict):
            names = spec.get("names")
            if isinstance(names, dict):
                yield (str(spec.get("group")), str(names.get("kind"))), str(names.get("plural"))


def _built_in(version: str, kind: str) -> str | None:
    """Return the resource of a kind of Kubernetes itself, of those that a report lists."""
    for resources in _OBJECTS.values():
        for resource in resources:
            listed, _, name = resource.rpartition("/")
            if group_of(listed) == group_of(version) and name in (
                *(f"{kind.lower()}s", f"{kind.lower()}es", f"{kind.lower()[:-1]}ies"),
            ):
                return name
    return None


def _asked(part: str, namespace: str, pod: str, file: str) -> Question | None:
    """Return the question that a file answers; None for one that no question is known of."""
    if file.endswith(".log") and "/" not in file:
        return LogQuestion(namespace, pod, file.removesuffix(".log"))
    if part == "istio":
        if file.startswith("debug/"):
            return HttpQuestion(namespace, pod, 15014, f"/{file}")
        return HttpQuestion(namespace, pod, 15014, "/metrics") if file == "metrics" else None
    return HttpQuestion(namespace, pod, *_PAGES[file]) if file in _PAGES else None


def _as_json(body: bytes) -> bytes:
    """Return the page of clusters as JSON; one that cannot be understood stays as it is."""
    if body.lstrip()[:1] == b"{":
        return body
    try:
        return json.dumps(clusters_page(body.decode("utf-8", "replace"))).encode()
    except ValueError:
        return body
