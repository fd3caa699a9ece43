"""What one proxy holds, looked up by name: for traces that follow one thing through it.

Tables show all proxies, and leave out what a trace needs (filters, matchers, transport sockets).
Here an Envoy's config dump and its page of clusters are indexed by name, and a listener, route
configuration or cluster is decoded when it is asked for, once. Shared by the traces ``request``,
``connection`` and ``policies``: make one :class:`ProxyConfigs` for a source and hand it on.

The shapes are those of ``envoy.admin.v3.ConfigDump`` and ``envoy.admin.v3.Clusters``
(https://www.envoyproxy.io/docs/envoy/latest/api-v3/admin/v3/config_dump.proto).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any

import msgspec

from meshnb.errors import NotRecorded
from meshnb.sources.base import HttpQuestion
from meshnb.tables import Facts
from meshnb.tables.base import NOT_JSON, Got, Json, dig, items, mapping, moment
from meshnb.tables.envoy import CONFIG_DUMP, ConfigDump, istio_config, proxy_of

CLUSTERS_PAGE = Got(15000, "/clusters?format=json")
_SERVER_INFO = Got(15000, "/server_info")

_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_ANY = msgspec.json.Decoder()


class _Socket(msgspec.Struct):
    address: str = ""
    port_value: int = 0


class _Address(msgspec.Struct):
    socket_address: _Socket | None = None


class _Additional(msgspec.Struct):
    address: _Address | None = None


class _Named(msgspec.Struct):
    name: str = ""
    address: _Address | None = None
    additional_addresses: list[_Additional] = []

    def addresses(self) -> Iterator[tuple[str, int]]:
        for address in (self.address, *(one.address for one in self.additional_addresses)):
            if address is not None and address.socket_address is not None:
                yield address.socket_address.address, address.socket_address.port_value


_NAMED = msgspec.json.Decoder(_Named)


@dataclass(slots=True, eq=False)
class Taken:
    """One resource that a proxy took over: its JSON, and since when it has been as it is."""

    name: str
    #: active, static or warming
    state: str
    since: datetime | None
    version: str
    raw: msgspec.Raw
    _decoded: Json = None

    @property
    def resource(self) -> Mapping[str, Any]:
        """The resource, decoded on first use."""
        if self._decoded is None:
            self._decoded = _ANY.decode(self.raw)
        return mapping(self._decoded)


@dataclass(frozen=True, slots=True)
class Drain:
    """How connections end whose listener was changed; until then they go on as they began.

    ``at_once`` says that each is closed after the next request that comes by it.
    """

    time: timedelta = timedelta(seconds=600)
    at_once: bool = False


@dataclass(slots=True, eq=False)
class ProxyConfig:
    """What one proxy holds. Warming resources are left out: they are not used yet."""

    proxy: str
    clusters: Mapping[str, Taken]
    listeners: Mapping[str, Taken]
    #: listeners by address and port
    by_address: Mapping[tuple[str, int], Taken]
    #: route configurations from RDS
    routes: Mapping[str, Taken]
    #: extension configurations from ECDS: each has ``name`` and ``typed_config``
    extensions: Mapping[str, Taken]
    #: what istiod assigned to a cluster (``ClusterLoadAssignment``)
    assignments: Mapping[str, Taken]
    #: names of clusters that are warming, not yet used
    warming: frozenset[str]
    #: when istiod made the last update of clusters and of listeners that the proxy took over
    clusters_since: datetime | None
    listeners_since: datetime | None
    drain: Drain
    #: what the page of clusters says of the hosts of each; empty when it was not recorded
    _statuses: Mapping[str, msgspec.Raw] = field(default_factory=dict)
    _hosts: dict[str, tuple[Mapping[str, Any], ...]] = field(default_factory=dict)

    def knows(self, cluster: str) -> bool:
        """Whether the proxy was asked how it fares with the hosts of a cluster."""
        return cluster in self._statuses

    def hosts(self, cluster: str) -> tuple[Mapping[str, Any], ...]:
        """Return the ``host_statuses`` of a cluster; empty without any."""
        if cluster not in self._hosts:
            raw = self._statuses.get(cluster)
            found = [] if raw is None else items(_ANY.decode(raw), "host_statuses")
            self._hosts[cluster] = tuple(mapping(host) for host in found)
        return self._hosts[cluster]


class ProxyConfigs:
    """What each proxy of a source holds, indexed on first use."""

    def __init__(self, facts: Facts) -> None:
        """Note which question gave the config dump of each proxy."""
        self._facts = facts
        self._held: dict[str, ProxyConfig | None] = {}

    @cached_property
    def _dumps(self) -> Mapping[str, HttpQuestion]:
        found: dict[str, HttpQuestion] = {}
        for question in self._facts.source.questions():
            if CONFIG_DUMP.matches(question) and isinstance(question, HttpQuestion):
                known = found.get(proxy_of(question))
                # Only with this parameter does Envoy give the endpoints.
                if known is None or "include_eds" in question.path:
                    found[proxy_of(question)] = question
        return found

    def __iter__(self) -> Iterator[str]:
        """Yield the name of each proxy that was asked for its config dump."""
        return iter(self._dumps)

    def of(self, proxy: str) -> ProxyConfig | None:
        """Return what a proxy holds; None when it did not say, or is no Envoy."""
        if proxy not in self._held:
            question = self._dumps.get(proxy)
            self._held[proxy] = None if question is None else self._read(proxy, question)
        return self._held[proxy]

    def silence(self, proxy: str) -> str:
        """Say why it is not known what a proxy holds."""
        proxies = self._facts["proxies"]
        why = proxies.loc[proxies["proxy"] == proxy, "silent_because"].dropna().tolist()
        return f"{proxy} did not say what it holds" + (f": {why[0]}" if why else "")

    def _read(self, proxy: str, question: HttpQuestion) -> ProxyConfig | None:
        with suppress(NotRecorded, *NOT_JSON):
            answer = self._facts.answer(question)
            if answer.error is None and (answer.status or 0) < 400:
                dump = self._facts.document(answer, decode=CONFIG_DUMP.decode)
                if isinstance(dump, ConfigDump) and not dump.empty:
                    statuses = self._page(question, CLUSTERS_PAGE)
                    drain = self._drain(question)
                    return _indexed(proxy, dump, statuses, drain)
        return None

    def _body(self, beside: HttpQuestion, page: Got) -> bytes:
        question = HttpQuestion(beside.namespace, beside.pod, page.port, page.path)
        with suppress(NotRecorded):
            answer = self._facts.answer(question)
            if answer.error is None and (answer.status or 0) < 400:
                return answer.content
        return b""

    def _page(self, beside: HttpQuestion, page: Got) -> Mapping[str, msgspec.Raw]:
        with suppress(*NOT_JSON):
            part = _FIELDS.decode(self._body(beside, page) or b"{}")
            listed = part.get("cluster_statuses", msgspec.Raw(b"[]"))
            raws = msgspec.json.decode(listed, type=list[msgspec.Raw])
            return {_NAMED.decode(raw).name: raw for raw in raws}
        return {}

    def _drain(self, beside: HttpQuestion) -> Drain:
        with suppress(*NOT_JSON):
            page = _ANY.decode(self._body(beside, _SERVER_INFO) or b"{}")
            options = mapping(page, "command_line_options")
            text = str(options.get("drain_time", "")).removesuffix("s")
            if text.isascii() and text.isdecimal() and len(text) < 10:
                at_once = options.get("drain_strategy") == "Immediate"
                return Drain(timedelta(seconds=int(text)), at_once)
        return Drain()


def _indexed(
    proxy: str, dump: ConfigDump, statuses: Mapping[str, msgspec.Raw], drain: Drain
) -> ProxyConfig:
    clusters = _entries(dump, "ClustersConfigDump", "static_clusters", "cluster", "static")
    clusters |= _entries(dump, "ClustersConfigDump", "dynamic_active_clusters", "cluster", "active")
    listeners = _entries(dump, "ListenersConfigDump", "static_listeners", "listener", "static")
    listeners |= _active_listeners(dump)
    warming = _entries(dump, "ClustersConfigDump", "dynamic_warming_clusters", "cluster", "warming")
    by_address: dict[tuple[str, int], Taken] = {}
    for listener in listeners.values():
        with suppress(*NOT_JSON):
            for address in _NAMED.decode(listener.raw).addresses():
                by_address.setdefault(address, listener)
    return ProxyConfig(
        proxy=proxy,
        clusters=clusters,
        listeners=listeners,
        by_address=by_address,
        routes=_entries(
            dump, "RoutesConfigDump", "dynamic_route_configs", "route_config", "active"
        ),
        extensions=_entries(dump, "EcdsConfigDump", "ecds_filters", "ecds_filter", "active"),
        assignments={taken.name: taken for taken in _assignments(dump)},
        warming=frozenset(warming),
        clusters_since=_version_time(dump, "ClustersConfigDump"),
        listeners_since=_version_time(dump, "ListenersConfigDump"),
        drain=drain,
        _statuses=statuses,
    )


def _entries(
    dump: ConfigDump, section: str, listed: str, inner: str, state: str
) -> dict[str, Taken]:
    found: dict[str, Taken] = {}
    for raw in dump.raw(section, listed):
        with suppress(*NOT_JSON):
            if taken := _taken(_FIELDS.decode(raw), inner, state):
                found[taken.name] = taken
    return found


def _taken(fields: Mapping[str, msgspec.Raw], inner: str, state: str) -> Taken | None:
    resource = fields.get(inner)
    if resource is None:
        return None
    return Taken(
        _NAMED.decode(resource).name,
        state,
        moment(_plain(fields, "last_updated")),
        str(_plain(fields, "version_info") or ""),
        resource,
    )


def _plain(fields: Mapping[str, msgspec.Raw], name: str) -> Any:
    return _ANY.decode(fields[name]) if name in fields else None


def _active_listeners(dump: ConfigDump) -> dict[str, Taken]:
    found: dict[str, Taken] = {}
    for raw in dump.raw("ListenersConfigDump", "dynamic_listeners"):
        with suppress(*NOT_JSON):
            fields = _FIELDS.decode(raw)
            if "active_state" in fields:
                taken = _taken(_FIELDS.decode(fields["active_state"]), "listener", "active")
                if taken is not None:
                    taken.name = str(_plain(fields, "name") or taken.name)
                    found[taken.name] = taken
    return found


class _Assignment(msgspec.Struct):
    cluster_name: str = ""


def _assignments(dump: ConfigDump) -> Iterator[Taken]:
    for listed in ("static_endpoint_configs", "dynamic_endpoint_configs"):
        for raw in dump.raw("EndpointsConfigDump", listed):
            with suppress(*NOT_JSON):
                fields = _FIELDS.decode(raw)
                inner = fields.get("endpoint_config")
                if inner is not None:
                    name = msgspec.json.decode(inner, type=_Assignment).cluster_name
                    yield Taken(name, "active", None, "", inner)


def _version_time(dump: ConfigDump, section: str) -> datetime | None:
    """Return when istiod made a version: it names them by time and number, 2026-01-01T00:00:00Z/7.

    What is absent now has been absent at least since the last update.
    """
    return moment(str(dump.value(section, "version_info")).partition("/")[0])


# --- What resources say of themselves ------------------------------------------------------------


def made_from(resource: Json) -> str:
    """Return the Istio object that a resource says it was made from: ``Kind namespace/name``."""
    path = istio_config(resource)
    parts = path.split("/") if path else []
    if len(parts) != 8:
        return ""
    kind = "".join(part.capitalize() for part in parts[6].split("-"))
    return f"{kind} {parts[5]}/{parts[7]}"


def services_of(cluster: Json) -> tuple[str, ...]:
    """Return the Services that a cluster was made for: ``Service namespace/name``."""
    return tuple(
        f"Service {dig(service, 'namespace', default='')}/{dig(service, 'name', default='')}"
        for service in items(cluster, "metadata", "filter_metadata", "istio", "services")
    )


def unwrapped(config: Json) -> Mapping[str, Any]:
    """Return a configuration without the envelope that Envoy puts around unknown types."""
    fields = mapping(config)
    if not str(fields.get("@type", "")).endswith("TypedStruct"):
        return fields
    return {"@type": fields.get("type_url", ""), **mapping(config, "value")}


def type_of(config: Json) -> str:
    """Return the type of an extension's configuration without its package: ``Router``."""
    fields = mapping(config)
    kind = str(fields.get("@type", ""))
    if kind.endswith("TypedStruct"):
        kind = str(fields.get("type_url", ""))
    return kind.rpartition(".")[2] or kind.rpartition("/")[2]


def latest(times: Iterable[datetime | None]) -> datetime | None:
    """Return the last of some times; None when none is known."""
    known = [time for time in times if time is not None]
    return max(known) if known else None
