"""Config dumps of many proxies, taken apart into resources."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import msgspec

from meshnb.errors import NotRecorded
from meshnb.sources.base import HttpQuestion
from meshnb.tables import Facts
from meshnb.tables.base import NOT_JSON, mapping
from meshnb.tables.envoy import ODD, ConfigDump, Shape, each, read_dump, shaped
from meshnb.traces.comparison.resources import MAKERS, Key, Resource

_NOTHING = msgspec.Raw(b"null")


class _State(Shape):
    listener: msgspec.Raw = _NOTHING


class _Secret(Shape):
    validation_context: msgspec.Raw = _NOTHING


class _Entry(Shape):
    """What a section lists: of a resource its JSON, without version and time."""

    name: Any = None
    cluster: msgspec.Raw = _NOTHING
    route_config: msgspec.Raw = _NOTHING
    endpoint_config: msgspec.Raw = _NOTHING
    ecds_filter: msgspec.Raw = _NOTHING
    active_state: _State | ODD = None
    warming_state: _State | ODD = None
    secret: _Secret | ODD = None


_ENTRIES = msgspec.json.Decoder(list[_Entry | ODD])


class DumpReader:
    """Reads config dumps. What many proxies hold alike is read once, and is the same object."""

    def __init__(self) -> None:
        """Begin with nothing read."""
        self._known: dict[tuple[str, bytes, str], Resource] = {}
        self._made_for: dict[tuple[Resource, tuple[str, ...]], Resource] = {}

    def resources(
        self, facts: Facts, question: HttpQuestion, address: str
    ) -> Mapping[Key, Resource] | None:
        """Return the resources in a recorded config dump; None where there is no readable one.

        ``address`` is the proxy's own.
        """
        with suppress(NotRecorded, *NOT_JSON):
            answer = facts.answer(question)
            if answer.error is None and (answer.status or 0) < 400:
                dump = facts.document(answer, decode=read_dump)
                if isinstance(dump, ConfigDump) and not dump.empty:
                    return dict(self._held(dump, address))
        return None

    def _held(self, dump: ConfigDump, address: str) -> Iterator[tuple[Key, Resource]]:
        clusters: dict[str, Resource] = {}
        # One that is warming is not used yet; the active one of the same name is.
        for state in ("dynamic_warming_clusters", "dynamic_active_clusters"):
            for entry in _listed(dump, "ClustersConfigDump", state):
                one = self._read("cluster", entry.cluster, address)
                clusters[one.name] = one
                yield ("cluster", one.name), one
        for entry in _listed(dump, "ListenersConfigDump", "dynamic_listeners"):
            states = [shaped(one, _State) for one in (entry.active_state, entry.warming_state)]
            raw = next((one.listener for one in states if one.listener != _NOTHING), None)
            if raw is not None:
                one = self._read("listener", raw, address)
                yield ("listener", str(entry.name or one.name)), one
        for entry in _listed(dump, "RoutesConfigDump", "dynamic_route_configs"):
            one = self._read("route", entry.route_config, address)
            yield ("route", one.name), one
        for entry in _listed(dump, "EndpointsConfigDump", "dynamic_endpoint_configs"):
            one = self._read("endpoints", entry.endpoint_config)
            if one.name in clusters and clusters[one.name].filled:
                yield ("endpoints", one.name), self._of(one, clusters[one.name].services)
        for entry in _listed(dump, "EcdsConfigDump", "ecds_filters"):
            one = self._read("extension", entry.ecds_filter, address)
            yield ("extension", one.name), one
        for entry in _listed(dump, "SecretsConfigDump", "dynamic_active_secrets"):
            one = self._read("root", shaped(entry.secret, _Secret).validation_context)
            if one.document:
                yield ("root", str(entry.name or "")), one

    def _of(self, endpoints: Resource, services: tuple[str, ...]) -> Resource:
        """Return endpoints with the Services of their cluster."""
        key = endpoints, services
        if key not in self._made_for:
            self._made_for[key] = replace(endpoints, services=services)
        return self._made_for[key]

    def _read(self, kind: str, raw: msgspec.Raw, address: str = "") -> Resource:
        text = bytes(raw)
        # Without it in the text, whose address it is makes no difference.
        own = address if address.encode() in text else ""
        key = kind, text, own
        if key not in self._known:
            self._known[key] = MAKERS[kind](mapping(msgspec.json.decode(text)), own)
        return self._known[key]


def _listed(dump: ConfigDump, section: str, field: str) -> Iterator[_Entry]:
    return each(dump.shaped(section, field, _ENTRIES), _Entry)
