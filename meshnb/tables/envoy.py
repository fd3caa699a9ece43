"""Reads what Envoy's config dump is made of, and spells it as istioctl does.

Shared by the tables of proxies: clusters, listeners, routes, endpoints and certificates. The shape
is that of ``envoy.admin.v3.ConfigDump`` (https://www.envoyproxy.io/docs/envoy/latest/api-v3/admin/v3/config_dump.proto).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from mmap import mmap
from typing import Any, TypeVar

import msgspec

from meshnb.sources.base import Body, HttpQuestion, LogQuestion, ProbeQuestion, Question
from meshnb.tables.base import NOT_JSON, Facts, Got, Json, decode_json, dig, items, mapping

_Part = dict[str, msgspec.Raw]


class _Envelope(msgspec.Struct):
    # The alternatives are all that JSON has: an odd part is passed over, not a reason to fail.
    configs: list[_Part | list[Any] | str | int | float | bool | None]


_ENVELOPE = msgspec.json.Decoder(_Envelope)
_ENTRY = msgspec.json.Decoder()
_RAWS = msgspec.json.Decoder(list[msgspec.Raw])

#: What evidence may hold where an object is expected, or a list. A decoder that knows these
#: alternatives refuses no document for one odd part.
ODD = list[Any] | str | int | float | bool | None
NO_LIST = dict[str, Any] | str | int | float | bool | None


class Shape(msgspec.Struct, gc=False):
    """An object of which only the declared fields are read; the rest is not even decoded.

    For resources that come in ten thousands. Each field has a default, as any may be missing.
    """


_S = TypeVar("_S", bound=Shape)


def shaped(value: object, kind: type[_S]) -> _S:
    """Return a value if it has the shape, else an empty one: something odd counts as absent."""
    return value if type(value) is kind else kind()


def each(values: object, kind: type[_S]) -> Iterator[_S]:
    """Yield each element of a list that has the shape; nothing where there is no list."""
    return (one for one in values if type(one) is kind) if isinstance(values, list) else iter(())


class _Origin(Shape):
    config: Any = None


class _OfFilters(Shape):
    istio: _Origin | ODD = None


class Metadata(Shape):
    """Of a resource's metadata what says which Istio object it was made from."""

    filter_metadata: _OfFilters | ODD = None


def made_from(metadata: object) -> str | None:
    """Return the API path of the Istio object that a resource with this metadata was made from."""
    config = shaped(shaped(shaped(metadata, Metadata).filter_metadata, _OfFilters).istio, _Origin)
    return config.config if isinstance(config.config, str) else None


class ConfigDump:
    """An Envoy's config dump, taken apart into sections, which are read when they are asked for.

    A dump can have 200 MB, of which a table needs a part; as dicts and lists all of it would take
    several times its size in memory.
    """

    def __init__(self, body: Body, parts: list[_Part]) -> None:
        """Keep the body, and of each section its fields as JSON."""
        self._body = body
        self._parts = [
            (str(_ENTRY.decode(part["@type"])).rpartition(".")[2], part)
            for part in parts
            if "@type" in part
        ]

    @property
    def empty(self) -> bool:
        """Whether there is no section at all."""
        return not self._parts

    def has(self, name: str) -> bool:
        """Whether there is a section of this name, such as ``ClustersConfigDump``."""
        return any(found == name for found, _ in self._parts)

    def sections(self, name: str) -> list[Mapping[str, Any]]:
        """Return each section of this name, decoded as a whole. Raises one of ``NOT_JSON``."""
        self._check()
        return [
            {field: _ENTRY.decode(raw) for field, raw in part.items()}
            for found, part in self._parts
            if found == name
        ]

    def shaped(
        self, name: str, field: str, decoder: msgspec.json.Decoder[list[_S | ODD]]
    ) -> list[_S | ODD]:
        """Return what the first section of this name lists in a field, in one shape.

        Raises one of ``NOT_JSON``.
        """
        self._check()
        part = next((part for found, part in self._parts if found == name), {})
        try:
            return decoder.decode(part.get(field, msgspec.Raw(b"[]")))
        except msgspec.ValidationError:
            return []  # it is no list

    def raw(self, name: str, field: str) -> list[msgspec.Raw]:
        """Return what the first section of this name lists in a field, each as JSON.

        For who needs a few of many. Raises one of ``NOT_JSON``.
        """
        self._check()
        part = next((part for found, part in self._parts if found == name), {})
        try:
            return _RAWS.decode(part.get(field, msgspec.Raw(b"[]")))
        except msgspec.ValidationError:
            return []  # it is no list

    def value(self, name: str, field: str) -> Json:
        """Return one field of the first section of this name, None where there is none.

        Raises one of ``NOT_JSON``.
        """
        self._check()
        part = next((part for found, part in self._parts if found == name), {})
        return _ENTRY.decode(part.get(field, msgspec.Raw(b"null")))

    def _check(self) -> None:
        # Memory that a file no longer stands behind must not be touched: the process would end.
        if isinstance(self._body, mmap) and self._body.size() < len(self._body):
            raise msgspec.DecodeError("the file became shorter since it was opened")


def read_dump(body: Body) -> ConfigDump | Json:
    """Return the config dump of an Envoy; any other JSON, such as a ztunnel's dump, as it is.

    Raises one of ``NOT_JSON``.
    """
    try:
        configs = _ENVELOPE.decode(body).configs
    except msgspec.ValidationError:
        return decode_json(body)
    return ConfigDump(body, [part for part in configs if isinstance(part, dict)])


#: The question that most tables of proxies ask.
CONFIG_DUMP = Got(15000, "/config_dump", proxies=True, decode=read_dump)


@dataclass(frozen=True, slots=True)
class _Chosen(Got):
    questions: frozenset[Question] = frozenset()

    def matches(self, question: Question) -> bool:
        return question in self.questions


def chosen_dumps(questions: Iterable[Question]) -> Got:
    """Return a selector that asks for these config dumps only."""
    return _Chosen(
        CONFIG_DUMP.port, CONFIG_DUMP.path, decode=read_dump, questions=frozenset(questions)
    )


_DURATION = re.compile(r"(-?\d+(?:\.\d+)?)s")
_CONFIG_PREFIX = "/apis/networking.istio.io/"
_ZTUNNEL_KEYS = frozenset({"certificates", "policies", "services", "workloads"})


def proxy_of(question: Question) -> str:
    """Return the proxy that a question went to, as ``pod.namespace``, the name istiod gives it."""
    if isinstance(question, HttpQuestion | LogQuestion | ProbeQuestion):
        # A saved page does not always say where its proxy is.
        return f"{question.pod}.{question.namespace}".removesuffix(".")
    return ""


def section(
    dump: ConfigDump | Json, name: str, question: Question, facts: Facts
) -> Mapping[str, Any]:
    """Return one section of a config dump, such as ``BootstrapConfigDump``, decoded as a whole.

    It is empty for a ztunnel, which answers the same question with another document, and, with a
    gap noted, where an Envoy should have the section and has not.
    """
    if not _has(dump, name, question, facts):
        return {}
    found: Mapping[str, Any] = dump.sections(name)[0]
    return found


def entries(
    dump: ConfigDump | Json,
    name: str,
    fields: Iterable[str],
    question: Question,
    facts: Facts,
    decoder: msgspec.json.Decoder[list[_S | ODD]],
) -> Iterator[tuple[str, list[_S | ODD]]]:
    """Yield what a section of a config dump lists in some fields, each with its field's name.

    For sections that are large in a large mesh; otherwise it is as :func:`section`.
    """
    if _has(dump, name, question, facts):
        for field in fields:
            yield field, dump.shaped(name, field, decoder)


def _has(dump: ConfigDump | Json, name: str, question: Question, facts: Facts) -> bool:
    if not isinstance(dump, ConfigDump):
        if not is_ztunnel(dump):
            facts.gap(
                question, "unreadable", "is no config dump of Envoy: it has no list of configs"
            )
        return False
    if not dump.has(name):
        facts.gap(question, "unreadable", f"has no {name}")
        return False
    return True


def is_ztunnel(dump: ConfigDump | Json) -> bool:
    """Whether a config dump is that of a ztunnel, which has other keys than Envoy's."""
    return isinstance(dump, Mapping) and "configs" not in dump and bool(_ZTUNNEL_KEYS & dump.keys())


def sections(dump: ConfigDump | Json, name: str) -> list[Mapping[str, Any]]:
    """Return each section of one name, for names that may be there often or never."""
    return dump.sections(name) if isinstance(dump, ConfigDump) else []


def node_of(dump: ConfigDump | Json) -> Mapping[str, Any]:
    """Return what an Envoy says of itself in its bootstrap; empty where that cannot be read."""
    with suppress(*NOT_JSON):
        for found in sections(dump, "BootstrapConfigDump"):
            return mapping(found, "bootstrap", "node")
    return {}


def milliseconds(duration: Json) -> float | None:
    """Return a protobuf duration in JSON, such as ``0.250s``, in milliseconds; else None."""
    return _milliseconds(duration) if isinstance(duration, str) else None


@lru_cache(maxsize=256)  # a mesh has few different ones, which come often
def _milliseconds(duration: str) -> float | None:
    found = _DURATION.fullmatch(duration)
    return float(found[1]) * 1000 if found else None


def istio_config(resource: Json) -> str | None:
    """Return the API path of the Istio object that an Envoy resource was made from."""
    config = mapping(resource, "metadata", "filter_metadata", "istio").get("config")
    return config if isinstance(config, str) else None


def management(path: str | None) -> str | None:
    """Return the API path of an Istio object as istioctl prints it: ``name.namespace``.

    None when there is no path or istioctl prints nothing; ``<unknown>`` for a path that does not
    lead to Istio's networking API.
    """
    if path is None:
        return None
    if not path.startswith(_CONFIG_PREFIX):
        return "<unknown>"
    parts = path.split("/")
    return f"{parts[7]}.{parts[5]}" if len(parts) == 8 else None


def address_text(address: Json) -> str | None:
    """Return the host part of an Envoy address: an IP address, or the path of a pipe."""
    text = dig(address, "socket_address", "address") or dig(address, "pipe", "path")
    return text if isinstance(text, str) else None


def address_port(address: Json) -> int:
    """Return the port of an Envoy address; 0 where it has none."""
    port = mapping(address, "socket_address").get("port_value")
    return port if isinstance(port, int) else 0


def match_text(match: Json) -> str:
    """Return a route's match on the path as istioctl prints it; headers are left out."""
    fields = mapping(match)
    parts = []
    if prefix := fields.get("prefix"):
        parts.append(f"{prefix}*")
    if separated := fields.get("path_separated_prefix"):
        parts.append(f"PathPrefix:{separated}")
    if path := fields.get("path"):
        parts.append(str(path))
    if "safe_regex" in fields:
        parts.append(f"regex {dig(match, 'safe_regex', 'regex', default='')}")
    return " ".join(parts)


def names(resources: list[Any]) -> tuple[str, ...]:
    """Return the names of named resources, in their order."""
    return tuple(str(dig(resource, "name", default="")) for resource in resources)


def tls_context(socket: Json) -> Mapping[str, Any] | None:
    """Return the TLS context of a transport socket, up- or downstream; None when it is not TLS.

    Sockets that wrap another one, as the PROXY protocol's does, are looked into; so is QUIC's.
    """
    config = mapping(socket, "typed_config")
    for _ in range(4):
        kind = str(config.get("@type", ""))
        if kind.endswith("TlsContext"):
            return config
        if kind.endswith("QuicDownstreamTransport"):
            return mapping(config, "downstream_tls_context")
        if "transport_socket" not in config:
            break
        config = mapping(config, "transport_socket", "typed_config")
    return None


def per_filter(configured: Json, filter_name: str, kind: str) -> Mapping[str, Any] | None:
    """Return what a ``typed_per_filter_config`` says of an HTTP filter, by its name or the type."""
    if configured is None:
        return None  # which is so for nearly every route
    for name, config in mapping(configured).items():
        # Envoy can wrap the configuration to say whether the filter is disabled.
        inner = mapping(config, "config") if "config" in mapping(config) else mapping(config)
        if name == filter_name or str(inner.get("@type", "")).endswith(f".{kind}"):
            return inner
    return None


def listed(resource: Json, *path: str) -> tuple[Any, ...]:
    """Return the list at a path as a tuple, for a column of dtype object."""
    return tuple(items(resource, *path))
