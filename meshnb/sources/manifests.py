"""Manifests as a source: a folder of YAML and JSON files, or one of them, before it is applied.

Each object is known by the file and line it was written in. Aliases of YAML may stand for more of
the same a few times; where they would unfold to a huge document, the file is refused.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from meshnb.errors import NotRecorded, SourceError
from meshnb.sources.base import Answer, ListQuestion, Question

SUFFIXES = (".yaml", ".yml", ".json")

#: Where istiod looks for its settings when nothing says otherwise (MeshConfig.rootNamespace).
_DEFAULT_ROOT = "istio-system"
#: A document that unfolds to more values than this is an attack or a mistake.
_MOST_VALUES = 1_000_000
_CORE = "v1"
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # as fast as the platform has it


class _Kind(NamedTuple):
    resource: str
    version: str
    namespaced: bool = True
    #: others than the author of manifests make such objects: that there are none says nothing
    made: bool = False


_APPS, _BATCH, _RBAC = "apps", "batch", "rbac.authorization.k8s.io"
_ADMISSION = "admissionregistration.k8s.io"
_NETWORKING, _SECURITY, _EXTENSIONS = (
    "networking.istio.io",
    "security.istio.io",
    "extensions.istio.io",
)
_GATEWAY_API = "gateway.networking.k8s.io"

#: Group and kind of what is always answered for, with an empty list where no file has any.
_KINDS: Mapping[tuple[str, str], _Kind] = {
    ("", "Namespace"): _Kind("namespaces", "v1", namespaced=False),
    ("", "Node"): _Kind("nodes", "v1", namespaced=False, made=True),
    ("", "PersistentVolume"): _Kind("persistentvolumes", "v1", namespaced=False),
    ("", "Pod"): _Kind("pods", "v1", made=True),
    ("", "Service"): _Kind("services", "v1"),
    ("", "ConfigMap"): _Kind("configmaps", "v1"),
    ("", "Secret"): _Kind("secrets", "v1", made=True),
    ("", "ServiceAccount"): _Kind("serviceaccounts", "v1"),
    ("", "Event"): _Kind("events", "v1", made=True),
    ("", "Endpoints"): _Kind("endpoints", "v1", made=True),
    ("discovery.k8s.io", "EndpointSlice"): _Kind("endpointslices", "v1", made=True),
    (_APPS, "Deployment"): _Kind("deployments", "v1"),
    (_APPS, "DaemonSet"): _Kind("daemonsets", "v1"),
    (_APPS, "StatefulSet"): _Kind("statefulsets", "v1"),
    (_APPS, "ReplicaSet"): _Kind("replicasets", "v1", made=True),
    (_BATCH, "Job"): _Kind("jobs", "v1"),
    (_BATCH, "CronJob"): _Kind("cronjobs", "v1"),
    (_RBAC, "ClusterRole"): _Kind("clusterroles", "v1", namespaced=False),
    (_RBAC, "ClusterRoleBinding"): _Kind("clusterrolebindings", "v1", namespaced=False),
    (_ADMISSION, "MutatingWebhookConfiguration"): _Kind(
        "mutatingwebhookconfigurations", "v1", namespaced=False, made=True
    ),
    (_ADMISSION, "ValidatingWebhookConfiguration"): _Kind(
        "validatingwebhookconfigurations", "v1", namespaced=False, made=True
    ),
    ("apiextensions.k8s.io", "CustomResourceDefinition"): _Kind(
        "customresourcedefinitions", "v1", namespaced=False
    ),
    ("networking.k8s.io", "NetworkPolicy"): _Kind("networkpolicies", "v1"),
    ("networking.k8s.io", "Ingress"): _Kind("ingresses", "v1"),
    ("networking.k8s.io", "IngressClass"): _Kind("ingressclasses", "v1", namespaced=False),
    ("storage.k8s.io", "StorageClass"): _Kind("storageclasses", "v1", namespaced=False),
    ("scheduling.k8s.io", "PriorityClass"): _Kind("priorityclasses", "v1", namespaced=False),
    (_NETWORKING, "VirtualService"): _Kind("virtualservices", "v1"),
    (_NETWORKING, "DestinationRule"): _Kind("destinationrules", "v1"),
    (_NETWORKING, "Gateway"): _Kind("gateways", "v1"),
    (_NETWORKING, "ServiceEntry"): _Kind("serviceentries", "v1"),
    (_NETWORKING, "Sidecar"): _Kind("sidecars", "v1"),
    (_NETWORKING, "WorkloadEntry"): _Kind("workloadentries", "v1"),
    (_NETWORKING, "WorkloadGroup"): _Kind("workloadgroups", "v1"),
    (_NETWORKING, "EnvoyFilter"): _Kind("envoyfilters", "v1alpha3"),
    (_NETWORKING, "ProxyConfig"): _Kind("proxyconfigs", "v1beta1"),
    (_SECURITY, "AuthorizationPolicy"): _Kind("authorizationpolicies", "v1"),
    (_SECURITY, "PeerAuthentication"): _Kind("peerauthentications", "v1"),
    (_SECURITY, "RequestAuthentication"): _Kind("requestauthentications", "v1"),
    ("telemetry.istio.io", "Telemetry"): _Kind("telemetries", "v1"),
    (_EXTENSIONS, "WasmPlugin"): _Kind("wasmplugins", "v1alpha1"),
    (_EXTENSIONS, "TrafficExtension"): _Kind("trafficextensions", "v1alpha1"),
    (_GATEWAY_API, "GatewayClass"): _Kind("gatewayclasses", "v1", namespaced=False),
    (_GATEWAY_API, "Gateway"): _Kind("gateways", "v1"),
    (_GATEWAY_API, "HTTPRoute"): _Kind("httproutes", "v1"),
    (_GATEWAY_API, "GRPCRoute"): _Kind("grpcroutes", "v1"),
    (_GATEWAY_API, "TLSRoute"): _Kind("tlsroutes", "v1"),
    (_GATEWAY_API, "TCPRoute"): _Kind("tcproutes", "v1alpha2"),
    (_GATEWAY_API, "UDPRoute"): _Kind("udproutes", "v1alpha2"),
    (_GATEWAY_API, "ReferenceGrant"): _Kind("referencegrants", "v1beta1"),
    (_GATEWAY_API, "BackendTLSPolicy"): _Kind("backendtlspolicies", "v1"),
    (_GATEWAY_API, "ListenerSet"): _Kind("listenersets", "v1"),
}


@dataclass(frozen=True, slots=True)
class _Place:
    """Where an object stands: file, document in it, item where that is a list, and line."""

    file: Path
    document: int
    item: int | None
    line: int


#: API group, kind, namespace and name.
Key = tuple[str, str, str, str]


class Manifests:
    """Objects as they are written in files: a source that answers for lists of objects only.

    Folders are read with all that lies in them, files and folders whose names begin with a dot left
    out. Namespaced objects without a namespace are in ``default``, as for ``kubectl apply``.
    ``mesh_config`` and ``mesh_networks`` are files with istiod's settings; they are answered for as
    the ConfigMap ``istio`` that istiod would read them from.

    Raises :class:`~meshnb.errors.SourceError`, naming file and line, when a file is no YAML or JSON
    or unfolds to a huge document, and when there is no object at all. What is no Kubernetes object,
    and what is defined twice, is named in ``damage``; of two of one name the last one counts.
    """

    def __init__(
        self,
        *paths: str | os.PathLike[str],
        mesh_config: str | os.PathLike[str] | None = None,
        mesh_networks: str | os.PathLike[str] | None = None,
        label: str | None = None,
    ) -> None:
        """Read the folders and files."""
        self._label = label or ", ".join(os.fspath(path) for path in paths)
        self._now = datetime.now(UTC)
        self._damage: list[str] = []
        self._origins: dict[Key, _Place] = {}
        self._opened: tuple[Path, list[Any]] | None = None
        self._found: dict[tuple[str, str], dict[Key, Any]] = {kind: {} for kind in _KINDS}
        self._resources: dict[tuple[str, str], _Kind] = dict(_KINDS)
        files = [file for path in paths for file in _files(Path(path))]
        for file in dict.fromkeys(files):
            self._read(file)
        if not self._origins:
            raise SourceError(
                f"{self._label!r} has no Kubernetes object in any {', '.join(SUFFIXES)} file.",
                next_step="Name a folder of manifests, or a file.",
            )
        self._add_settings(mesh_config, mesh_networks)
        self._bodies = self._answers()

    def __repr__(self) -> str:
        """Show the label and the number of objects."""
        return f"<Manifests {self._label}: {len(self._origins)} objects>"

    @property
    def label(self) -> str:
        """Name the source: the paths."""
        return self._label

    @property
    def damage(self) -> tuple[str, ...]:
        """Say what was left out, a sentence each."""
        return tuple(self._damage)

    @property
    def now(self) -> datetime:
        """When the files were read."""
        return self._now

    def questions(self) -> tuple[Question, ...]:
        """Return the list of each known resource, and of each other one that a file has.

        What others make, such as the pods of a workload, is not among them where no file has any.
        """
        return tuple(self._bodies)

    def ask(self, questions: Iterable[Question]) -> Iterator[Answer]:
        """Yield the list of objects for each question; every other question raises NotRecorded."""
        for question in questions:
            body = self._bodies.get(question)
            if body is None:
                raise NotRecorded(
                    f"{self._label} is a set of manifests and has no answer to {question}.",
                    next_step="Record a bundle of the running mesh to see more.",
                )
            yield Answer(question, self._now, 0.0, 200, body)

    def origin(
        self, kind: str, namespace: str, name: str, path: str = "", *, group: str | None = None
    ) -> str:
        """Return ``file:line`` of an object, or of what is at a path in it; empty if there is none.

        A path is written ``spec.http[0].match``. Where it ends early, so does the way to the line.
        ``group`` tells kinds of one name apart, of which the first is meant otherwise.
        """
        groups = [one for one, known in self._found if known == kind and group in (None, one)]
        places = [self._origins.get((one, kind, namespace, name)) for one in groups]
        place = next((one for one in places if one is not None), None)
        if place is None:
            return ""
        line = place.line
        if path:
            try:
                line = self._line_at(place, path)
            except (SourceError, IndexError):
                line = place.line
        return f"{place.file}:{line}"

    def _line_at(self, place: _Place, path: str) -> int:
        if self._opened is None or self._opened[0] != place.file:
            self._opened = (place.file, list(_nodes(place.file, _text(place.file))))
        node = self._opened[1][place.document]
        if place.item is not None:
            node = _child(_child(node, "items"), place.item)
        line = place.line
        for step in steps_of(path):
            members = node.value if isinstance(node, yaml.MappingNode) else ()
            line = next((_line(key) for key, _ in members if key.value == step), line)
            node = _child(node, step)
            if node is None:
                break
            line = _line(node) if isinstance(step, int) else line
        return line

    def _read(self, file: Path) -> None:
        for number, (document, node) in enumerate(_documents(file)):
            if document is None:
                continue
            line = _line(node)
            listed = document.get("items") if isinstance(document, dict) else None
            kind = document.get("kind") if isinstance(document, dict) else None
            if isinstance(listed, list) and str(kind).endswith("List"):
                for position, item in enumerate(listed):
                    if isinstance(item, dict) and kind != "List":
                        item.setdefault("kind", str(kind).removesuffix("List"))
                        item.setdefault("apiVersion", document.get("apiVersion"))
                    start = _child(_child(node, "items"), position)
                    self._add(item, _Place(file, number, position, _line(start, line)))
            else:
                self._add(document, _Place(file, number, None, line))

    def _add(self, document: Any, place: _Place) -> None:
        where = f"{place.file}:{place.line}"
        metadata = document.get("metadata") if isinstance(document, dict) else None
        version = document.get("apiVersion") if isinstance(document, dict) else None
        kind = document.get("kind") if isinstance(document, dict) else None
        name = metadata.get("name") if isinstance(metadata, dict) else None
        if not (isinstance(version, str) and isinstance(kind, str) and isinstance(name, str)):
            self._damage.append(
                f"{where} is no Kubernetes object: it lacks apiVersion, kind or metadata.name."
            )
            return
        assert isinstance(metadata, dict)
        group, _, number = version.rpartition("/")
        known = self._resources.get((group, kind))
        if known is None:
            known = _Kind(_plural(kind), number)
            self._resources[group, kind] = known
        if known.namespaced and not isinstance(metadata.get("namespace"), str):
            metadata["namespace"] = "default"
        elif not known.namespaced:
            metadata.pop("namespace", None)
        key = (group, kind, metadata.get("namespace", ""), name)
        objects = self._found.setdefault((group, kind), {})
        if key in objects:
            first = self._origins[key]
            title = f"{key[2]}/{name}" if key[2] else name
            self._damage.append(
                f"{where} defines {kind} {title} again, after {first.file}:{first.line}; "
                "the last one counts."
            )
        objects[key] = document
        self._origins[key] = place

    def _add_settings(
        self,
        mesh_config: str | os.PathLike[str] | None,
        mesh_networks: str | os.PathLike[str] | None,
    ) -> None:
        """Put the settings where istiod has them, in the place of those in the folder."""
        if mesh_config is None and mesh_networks is None:
            return
        settings: dict[str, str] = {}
        root = _DEFAULT_ROOT
        for entry, given in (("mesh", mesh_config), ("meshNetworks", mesh_networks)):
            if given is None:
                continue
            file = Path(given)
            documents = [document for document, _ in _documents(file) if document is not None]
            if len(documents) > 1 or not all(isinstance(one, dict) for one in documents):
                raise SourceError(
                    f"{str(file)!r} holds no settings of a mesh.",
                    next_step="It has to be one YAML document of names and values.",
                )
            value = documents[0] if documents else {}
            if entry == "mesh" and isinstance(value.get("rootNamespace"), str):
                root = value["rootNamespace"]
            settings[entry] = json.dumps(value)
        key = ("", "ConfigMap", root, "istio")
        self._found["", "ConfigMap"][key] = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "istio", "namespace": root},
            "data": settings,
        }
        self._origins[key] = _Place(Path(mesh_config or mesh_networks or ""), 0, None, 1)

    def _answers(self) -> dict[Question, bytes]:
        bodies: dict[Question, bytes] = {}
        for (group, kind), objects in self._found.items():
            known = self._resources[group, kind]
            if known.made and not objects:
                continue
            version = f"{group}/{known.version}" if group else _CORE
            listing = {
                "apiVersion": version,
                "kind": f"{kind}List",
                "metadata": {},
                "items": list(objects.values()),
            }
            bodies[ListQuestion(version, known.resource)] = json.dumps(listing).encode()
        return bodies


def holds_manifests(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a folder with manifests and no bundle, or a file that is a manifest."""
    there = Path(path)
    if there.is_dir():
        bundle = any((there / name).exists() for name in ("manifest.json", "index.jsonl"))
        return not bundle and next(_walk(there), None) is not None
    if there.suffix == ".json" and there.is_file():
        with there.open("rb") as opened:
            start = opened.read(4096)
        return b'"apiVersion"' in start and b'"kind"' in start
    return there.suffix in SUFFIXES and there.is_file()


def _files(path: Path) -> Iterator[Path]:
    if path.is_dir():
        yield from _walk(path)
    elif path.is_file():
        yield path
    else:
        raise SourceError(f"There is no file or folder {str(path)!r}.", next_step="Check the path.")


def _walk(folder: Path) -> Iterator[Path]:
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if name.endswith(SUFFIXES) and not name.startswith("."):
                yield Path(root, name)


def _plural(kind: str) -> str:
    """Return the resource of a kind that is not known, as Kubernetes usually forms it."""
    lower = kind.lower()
    if lower.endswith(("s", "x", "ch", "sh")):
        return f"{lower}es"
    return f"{lower[:-1]}ies" if re.search("[^aeiou]y$", lower) else f"{lower}s"


def _documents(file: Path) -> Iterator[tuple[Any, Any]]:
    """Yield each document of a file, with its node where it is YAML. Raises SourceError."""
    text = _text(file)
    if file.suffix == ".json":
        try:
            yield json.loads(text), None
        except json.JSONDecodeError as error:
            raise SourceError(
                f"{file}:{error.lineno} is no JSON: {error.msg} at column {error.colno}.",
                next_step="Correct the file.",
            ) from error
        except RecursionError:
            raise _too_big(file, 1) from None
        return
    for node in _nodes(file, text):
        yield (None if node is None else _value(node, file)), node


def _line(node: Any, unknown: int = 1) -> int:
    return unknown if node is None else node.start_mark.line + 1


def _text(file: Path) -> str:
    try:
        return file.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise SourceError(
            f"{str(file)!r} cannot be read: {error.strerror}.", next_step="Check its permissions."
        ) from error
    except UnicodeDecodeError as error:
        raise SourceError(
            f"{str(file)!r} is no text in UTF-8: {error.reason} at byte {error.start}.",
            next_step="Save it as UTF-8.",
        ) from error


def _nodes(file: Path, text: str) -> Iterator[Any]:
    loader = _LOADER(text)
    try:
        while loader.check_node():
            node = loader.get_node()
            if node is not None:
                _weigh(node, file)
            yield node
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        what = "; ".join(part for part in (error.context, error.problem) if part)
        raise SourceError(
            f"{file}:{line} is no YAML: {what}.", next_step="Correct the file."
        ) from error
    except yaml.YAMLError as error:
        raise SourceError(
            f"{str(file)!r} is no YAML: {' '.join(str(error).split())}.",
            next_step="Correct the file.",
        ) from error
    except RecursionError:
        raise _too_big(file, 1) from None
    finally:
        loader.dispose()


def _too_big(file: Path, line: int) -> SourceError:
    return SourceError(
        f"{file}:{line} unfolds to a document of more than {_MOST_VALUES} values, or is nested too "
        "deeply.",
        next_step="Take its aliases out.",
    )


def _weigh(root: Any, file: Path) -> None:
    """Count the values of a document as if its aliases were written out. Raises SourceError."""
    weights: dict[int, int] = {}
    open_nodes: set[int] = set()

    def weigh(node: Any) -> int:
        known = weights.get(id(node))
        if known is not None:
            return known
        if id(node) in open_nodes:
            raise _too_big(file, node.start_mark.line + 1)
        open_nodes.add(id(node))
        total = 1
        if isinstance(node, yaml.MappingNode):
            total += sum(weigh(key) + weigh(value) for key, value in node.value)
        elif isinstance(node, yaml.SequenceNode):
            total += sum(weigh(item) for item in node.value)
        open_nodes.discard(id(node))
        if total > _MOST_VALUES:
            raise _too_big(file, node.start_mark.line + 1)
        weights[id(node)] = total
        return total

    weigh(root)


#: YAML 1.1 takes 12:30 for a number and 2020-01-01 for a time; Kubernetes takes both for text.
_INTEGER = re.compile(r"[-+]?(0b[01_]+|0o?[0-7_]+|0x[0-9a-fA-F_]+|0|[1-9][0-9_]*)")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9_]*)?)([eE][-+]?[0-9]+)?")
_SPECIAL = {".inf": "Infinity", "-.inf": "-Infinity", "+.inf": "Infinity", ".nan": "NaN"}
_TRUTH = {
    **dict.fromkeys(("true", "True", "TRUE", "yes", "Yes", "YES", "on", "On", "ON"), True),
    **dict.fromkeys(("false", "False", "FALSE", "no", "No", "NO", "off", "Off", "OFF"), False),
}
_NOTHING = ("", "~", "null", "Null", "NULL")
_PLAIN_TAG = "tag:yaml.org,2002:"


def _value(node: Any, file: Path) -> Any:
    """Return what a node says, as JSON has it. Raises SourceError for what JSON has not."""
    if isinstance(node, yaml.MappingNode):
        return _object(node, file)
    if isinstance(node, yaml.SequenceNode):
        return [_value(item, file) for item in node.value]
    kind = node.tag.removeprefix(_PLAIN_TAG)
    if node.style or kind in ("str", "binary"):
        return node.value
    if kind not in ("int", "float", "bool", "null", "timestamp", "value", "merge"):
        raise SourceError(
            f"{file}:{node.start_mark.line + 1} has a value of type {node.tag}, which Kubernetes "
            "does not know.",
            next_step="Take the tag out.",
        )
    return _scalar(node.value)


def _scalar(text: str) -> Any:
    if text in _NOTHING:
        return None
    if text in _TRUTH:
        return _TRUTH[text]
    clean = text.replace("_", "")
    if _INTEGER.fullmatch(text):
        sign = -1 if clean.startswith("-") else 1
        digits = clean.lstrip("+-")
        if digits[:2] in ("0b", "0x", "0o"):
            return sign * int(digits, 0)
        octal = len(digits) > 1 and digits.startswith("0")
        return sign * int(digits, 8 if octal else 10)
    if _FLOAT.fullmatch(text):
        return float(clean)
    return _SPECIAL.get(text.lower(), text)


def _object(node: Any, file: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    merged: dict[str, Any] = {}
    for key, value in node.value:
        if key.tag == f"{_PLAIN_TAG}merge":
            parts = value.value if isinstance(value, yaml.SequenceNode) else [value]
            for part in parts:
                inner = _value(part, file)
                if isinstance(inner, dict):
                    merged = {**inner, **merged}
            continue
        title = _value(key, file)
        if isinstance(title, dict | list):
            raise SourceError(
                f"{file}:{key.start_mark.line + 1} has a key that is no text.",
                next_step="Correct the file.",
            )
        name = title if isinstance(title, str) else json.dumps(title)
        if name in found:
            raise SourceError(
                f"{file}:{key.start_mark.line + 1} has the key {name!r} a second time.",
                next_step="Keep one of them.",
            )
        found[name] = _value(value, file)
    return {**merged, **found}


def _child(node: Any, step: str | int) -> Any:
    """Return what is at one step below a node; None where there is nothing."""
    if isinstance(node, yaml.SequenceNode) and isinstance(step, int):
        return node.value[step] if step < len(node.value) else None
    if isinstance(node, yaml.MappingNode) and isinstance(step, str):
        for key, value in node.value:
            if key.value == step:
                return value
    return None


_STEP = re.compile(r"\[(?P<position>\d+)\]|\[\"(?P<quoted>[^\"]*)\"\]|(?P<name>[^.\[\]]+)")


def steps_of(path: str) -> Iterator[str | int]:
    """Yield the steps of a path such as ``spec.http[0].match`` or ``metadata.labels["a.b"]``."""
    for match in _STEP.finditer(path):
        position = match["position"]
        yield int(position) if position else match["quoted"] or match["name"] or ""
