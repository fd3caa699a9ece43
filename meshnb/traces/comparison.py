"""What a proxy holds, compared with its siblings and with what istiod holds for it.

Resources are compared one by one: clusters, listeners, route configurations, the endpoints of
clusters that istiod fills, extension configurations, and the roots that are trusted. Versions,
nonces and times are left out, and so is the order of resources, of virtual hosts, of their domains
and of endpoints; the order of routes and filters counts, because Envoy takes the first that
matches. A proxy's own name and addresses stand for themselves, so that two pods of one workload
agree. Priorities and weights of localities are left out, too: they follow from where a proxy runs.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from typing import Any
from urllib.parse import parse_qs, urlsplit

import msgspec
import pandas as pd

from meshnb.errors import NotRecorded, UsageError, nearest
from meshnb.sources.base import HttpQuestion
from meshnb.tables import Facts
from meshnb.tables.base import NOT_JSON, Column, Json, Table, dig, items, mapping
from meshnb.tables.envoy import (
    CONFIG_DUMP,
    ConfigDump,
    istio_config,
    proxy_of,
    read_dump,
    sections,
)
from meshnb.traces.istiod_objects import istiods_objects
from meshnb.traces.mesh import Mesh, Pod
from meshnb.traces.rules import sidecar_of, workload_labels

#: Of kind ``cluster``, ``listener``, ``route``, ``endpoints``, ``extension`` or ``root``; by name.
Key = tuple[str, str]

_ISTIOD_DUMP = "/debug/config_dump"
#: Envoy itself takes no message that is nested deeper.
_DEEPEST = 100
#: A value that differs is shown up to this many characters.
_SHOWN = 200
#: What changes from push to push although nothing is different.
_VOLATILE = frozenset({"version_info", "last_updated", "nonce", "resource_version"})
#: Lists whose order means nothing.
_UNORDERED = frozenset({"domains", "endpoints", "lb_endpoints", "virtual_hosts"})
_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----(.*?)-----END CERTIFICATE-----", re.DOTALL)
#: Clusters of a sidecar that take what leaves the pod for no known host.
_CATCH_ALL = frozenset({"BlackHoleCluster", "PassthroughCluster"})


@dataclass(frozen=True, slots=True)
class Difference:
    """One place at which two versions of a resource differ; a value is empty where it is absent."""

    #: JSON path into the resource, elements of lists by name where they have one
    path: str
    here: str
    there: str
    #: the Istio object that this place was made from, such as ``VirtualService shop/cart``
    made_from: str = ""

    def to_json(self) -> dict[str, str]:
        """Return the difference as an object."""
        return {
            "path": self.path,
            "here": self.here,
            "there": self.there,
            "made_from": self.made_from,
        }


@dataclass(frozen=True, slots=True)
class Compared:
    """One resource, compared. ``state`` is same, different, only here or only there."""

    kind: str
    name: str
    state: str
    differences: tuple[Difference, ...] = ()
    #: the Istio objects, or else the Services, that what differs was made from
    made_from: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the resource as an object."""
        return {
            "kind": self.kind,
            "name": self.name,
            "state": self.state,
            "made_from": list(self.made_from),
            "differences": [difference.to_json() for difference in self.differences],
        }


@dataclass(frozen=True, slots=True)
class Comparison:
    """What a proxy holds (here) against what others hold (there), resource by resource."""

    proxy: str
    #: the proxies or the istiod that it was compared with
    against: tuple[str, ...]
    #: what was compared, and why that should be equal
    scope: str
    resources: tuple[Compared, ...] = ()
    #: what could not be compared, and why; empty when everything could
    unknown: str = ""

    @property
    def differing(self) -> tuple[Compared, ...]:
        """The resources that are not the same."""
        return tuple(resource for resource in self.resources if resource.state != "same")

    @property
    def same(self) -> int:
        """How many resources are the same."""
        return len(self.resources) - len(self.differing)

    def frame(self) -> pd.DataFrame:
        """Return one row per resource; the columns are those of :data:`COMPARED`."""
        pod, _, namespace = self.proxy.rpartition(".")
        question = HttpQuestion(namespace, pod, CONFIG_DUMP.port, CONFIG_DUMP.path)
        return COMPARED.frame(
            (
                question,
                {
                    "proxy": self.proxy,
                    "kind": resource.kind,
                    "name": resource.name,
                    "state": resource.state,
                    "paths": tuple(difference.path for difference in resource.differences),
                    "made_from": resource.made_from,
                    "against": self.against,
                },
            )
            for resource in self.resources
        )

    def to_json(self) -> dict[str, Any]:
        """Return the comparison as an object; resources that are the same are only counted."""
        return {
            "proxy": self.proxy,
            "against": list(self.against),
            "scope": self.scope,
            "same": self.same,
            "unknown": self.unknown,
            "resources": [resource.to_json() for resource in self.differing],
        }


@dataclass(frozen=True, slots=True)
class OddOne:
    """A resource in which some proxies differ from others that should hold the same.

    ``proxies`` are the odd ones; when no variant is held by more than half of the group, all
    proxies of the group are, and ``decided`` is False.
    """

    scope: str
    group: tuple[str, ...]
    kind: str
    name: str
    proxies: tuple[str, ...]
    decided: bool


@dataclass(frozen=True, slots=True)
class Group:
    """Proxies that should hold the same, as far as ``scope`` reaches."""

    scope: str
    proxies: tuple[str, ...]
    outbound: bool
    inbound: bool


@dataclass(frozen=True, slots=True, eq=False)
class Resource:
    """One resource without what may differ, and its bytes, which are equal when it is."""

    document: Json
    outbound: bool
    services: tuple[str, ...]
    encoded: bytes


COMPARED = Table(
    name="compared",
    grain="one row per resource of a proxy or of those that it is compared with",
    columns={
        "proxy": Column("string", "the proxy as pod.namespace", key=True),
        "kind": Column(
            "string", "cluster, listener, route, endpoints, extension, root or object", key=True
        ),
        "name": Column("string", "name of the resource", key=True),
        "state": Column("string", "same, different, only here (at the proxy) or only there"),
        "paths": Column("object", "tuple: JSON paths at which it differs"),
        "made_from": Column("object", "tuple: Istio objects or Services that it was made from"),
        "against": Column("object", "tuple: the proxies or the istiod it is compared with"),
    },
)


# --- Comparing ----------------------------------------------------------------------------------


def compare_proxies(facts: Facts, mesh: Mesh, proxy: str, other: str) -> Comparison:
    """Compare what two proxies hold. Raises UsageError for a proxy that the source does not have.

    Pods of one workload are compared as a whole, others by what leaves them only: what comes in
    belongs to each workload alone. Of two that are not of one kind, such as a sidecar and a
    gateway, clusters, endpoints and roots are compared: their listeners have nothing in common.
    """
    held = _Held(facts, mesh)
    one, two = held.pod(proxy), held.pod(other)
    if (one.namespace, one.workload_kind, one.workload) == (
        two.namespace,
        two.workload_kind,
        two.workload,
    ):
        group = Group("everything", (proxy, other), outbound=True, inbound=True)
    else:
        group = Group("what leaves the pod", (proxy, other), outbound=True, inbound=False)
    found = _against(held, proxy, group)
    if one.mesh == two.mesh:
        return found
    shared = tuple(r for r in found.resources if r.kind in ("cluster", "endpoints", "root"))
    return replace(found, resources=shared, scope="clusters, endpoints and roots")


def compare_with_siblings(facts: Facts, mesh: Mesh, proxy: str) -> tuple[Comparison, ...]:
    """Compare a proxy with those that should hold the same; see :func:`groups`.

    Where the others do not agree, it is compared with what most of them hold. Without anyone to
    compare it with there is one comparison, which says so.
    Raises UsageError for a proxy that the source does not have.
    """
    held = _Held(facts, mesh)
    held.pod(proxy)
    found = [group for group in groups(facts, mesh) if proxy in group.proxies]
    return tuple(_against(held, proxy, group) for group in found) or (
        Comparison(proxy, (), "siblings", unknown=f"no other proxy should hold what {proxy} holds"),
    )


def compare_with_istiod(facts: Facts, mesh: Mesh, proxy: str) -> Comparison:
    """Compare what a proxy holds with what istiod would send to it now.

    istiod says so on its page /debug/config_dump?proxyID=PROXY. Clusters, listeners and routes are
    compared, as ``istioctl proxy-status PROXY`` does, and endpoints where istiod gives them.
    Where that page was never recorded, only objects are compared: those that the proxy's resources
    say they were made from, with those that istiod has (/debug/configz). One that is only here
    was deleted since the proxy was last told; that one was changed or added does not show.
    Raises UsageError for a proxy that the source does not have.
    """
    held = _Held(facts, mesh)
    mine = held.of(held.pod(proxy).proxy)
    if mine is None:
        return Comparison(proxy, (), "istiod", unknown=held.silence(proxy))
    for question in facts.source.questions():
        if not isinstance(question, HttpQuestion) or not question.path.startswith(_ISTIOD_DUMP):
            continue
        if parse_qs(urlsplit(question.path).query).get("proxyID", [""])[0] != proxy:
            continue
        # An istiod that the proxy is not connected to has nothing for it.
        theirs = resources_in(facts, question, held.pod(proxy).address)
        if theirs:
            kinds = {kind for kind, _ in theirs} - {"root"}
            return Comparison(
                proxy,
                (proxy_of(question),),
                "what istiod holds for it",
                tuple(_compared(_of_kinds(mine, kinds), _of_kinds(theirs, kinds))),
            )
    return _by_objects(facts, proxy, mine)


def _of_kinds(held: Mapping[Key, Resource], kinds: set[str]) -> Mapping[Key, Resource]:
    return {key: resource for key, resource in held.items() if key[0] in kinds}


def odd_ones_out(facts: Facts, mesh: Mesh) -> tuple[OddOne, ...]:
    """Return each resource in which proxies differ that should hold the same; see :func:`groups`.

    A proxy that gave no config dump has no part in it.
    """
    found = []
    read = _Held(facts, mesh)
    for group in groups(facts, mesh):
        parts = {proxy: read.part(proxy, group) for proxy in group.proxies}
        held = {proxy: part for proxy, part in parts.items() if part is not None}
        for key in sorted({key for part in held.values() for key in part}):
            variants = {
                proxy: part[key].encoded if key in part else b""
                for proxy, part in held.items()
                if not read.left_out(proxy, key)
            }
            if len(set(variants.values())) < 2:
                continue
            ((most, count),) = Counter(variants.values()).most_common(1)
            decided = count * 2 > len(variants)
            odd = tuple(p for p, variant in variants.items() if variant != most or not decided)
            found.append(OddOne(group.scope, tuple(held), *key, odd, decided))
    return tuple(found)


def groups(facts: Facts, mesh: Mesh) -> tuple[Group, ...]:
    """Return the groups of proxies that should hold the same, each of two or more.

    Pods of one workload share everything. Sidecars of one namespace share what leaves them: unless
    another Sidecar object is in force for them, or an object with a selector of its own acts on
    some of them only, or they are of another version of Istio, istiod makes it from the same input.
    """
    images = dict(zip(facts["pods"]["proxy"], facts["pods"]["proxy_image"], strict=True))
    by_workload: dict[tuple[str, ...], list[str]] = {}
    by_view: dict[tuple[Any, ...], list[str]] = {}
    for pod in mesh.pods:
        if not pod.proxy or not pod.running:
            continue
        sidecar = sidecar_of(pod, mesh) if pod.mesh == "sidecar" else None
        view = (pod.namespace, str(images.get(pod.proxy)), str(sidecar), *_selecting(pod, mesh))
        if pod.mesh == "sidecar":
            by_view.setdefault(view, []).append(pod.proxy)
        workload = (pod.mesh, *view, pod.workload_kind, pod.workload)
        by_workload.setdefault(workload, []).append(pod.proxy)
    found = [
        Group(
            f"what {'enters the pod' if workload[0] == 'sidecar' else 'it holds'}, "
            f"as a pod of {workload[-2]} {workload[1]}/{workload[-1]}",
            tuple(sorted(proxies)),
            # What leaves a sidecar is compared among more of them, below.
            outbound=workload[0] != "sidecar",
            inbound=True,
        )
        for workload, proxies in by_workload.items()
        if len(proxies) > 1
    ]
    found += [
        Group(
            f"what leaves the pod, as a sidecar of namespace {view[0]}",
            tuple(sorted(proxies)),
            outbound=True,
            inbound=False,
        )
        for view, proxies in by_view.items()
        if len(proxies) > 1
    ]
    return tuple(found)


def _selecting(pod: Pod, mesh: Mesh) -> Iterator[str]:
    """Name the objects with a selector of their own that shape what leaves a pod."""
    for item in mesh.objects:
        if item.namespace not in (pod.namespace, mesh.root_namespace):
            continue
        wanted: list[Mapping[str, Any]] = []
        if item.kind in ("EnvoyFilter", "Telemetry", "WasmPlugin", "TrafficExtension"):
            wanted = [workload_labels(item)]
        elif item.kind == "DestinationRule":
            wanted = [mapping(item.spec, "workloadSelector", "matchLabels")]
        elif item.kind == "VirtualService":
            wanted = [
                mapping(match, "sourceLabels")
                for protocol in ("http", "tls", "tcp")
                for route in items(item.spec, protocol)
                for match in items(route, "match")
            ]
        for position, labels in enumerate(wanted):
            if labels and labels.items() <= pod.labels.items():
                yield f"{item} {position}"


def _against(read: _Held, proxy: str, group: Group) -> Comparison:
    mine = read.part(proxy, group)
    if mine is None:
        return Comparison(proxy, (), group.scope, unknown=read.silence(proxy))
    others = [other for other in group.proxies if other != proxy]
    parts = {other: read.part(other, group) for other in others}
    held = {other: part for other, part in parts.items() if part is not None}
    silent = "; ".join(read.silence(other) for other in others if other not in held)
    theirs: dict[Key, Resource] = {}
    shared: dict[Key, Resource] = {}
    for key in {*mine, *(key for part in held.values() for key in part)}:
        variants = [part.get(key) for other, part in held.items() if not read.left_out(other, key)]
        if not variants or read.left_out(proxy, key):
            continue
        if key in mine:
            shared[key] = mine[key]
        counted = Counter(b"" if one is None else one.encoded for one in variants)
        most = counted.most_common(1)[0][0]
        chosen = next((one for one in variants if one is not None and one.encoded == most), None)
        if chosen is not None:
            theirs[key] = chosen
    return Comparison(
        proxy, tuple(held), group.scope, tuple(_compared(shared, theirs)), unknown=silent
    )


def _compared(mine: Mapping[Key, Resource], theirs: Mapping[Key, Resource]) -> Iterator[Compared]:
    for key in sorted({*mine, *theirs}):
        here, there = mine.get(key), theirs.get(key)
        if here is not None and there is not None:
            if here.encoded == there.encoded:
                yield Compared(*key, "same")
                continue
            found = tuple(differences(here.document, there.document))
            made_from = dict.fromkeys(d.made_from for d in found if d.made_from)
            yield Compared(*key, "different", found, tuple(made_from) or here.services)
            continue
        one = here or there
        assert one is not None
        objects = tuple(dict.fromkeys(origins(one.document))) or one.services
        yield Compared(*key, "only there" if here is None else "only here", made_from=objects)


def _by_objects(facts: Facts, proxy: str, held: Mapping[Key, Resource]) -> Comparison:
    wanted = f"GET 15014{_ISTIOD_DUMP}?proxyID={proxy}"
    unknown = f"istiod was never asked what it holds for {proxy} ({wanted})"
    objects: set[str] = set()
    kinds: set[str] = set()
    against: list[str] = []
    for one in istiods_objects(facts):
        against.append(f"{one.pod}.{one.namespace}")
        kinds |= {kind for kind, _, _ in one.names}
        objects |= {f"{kind} {namespace}/{name}" for kind, namespace, name in one.names}
    if not against:
        return Comparison(proxy, (), "objects", unknown=f"{unknown}, nor which objects it has")
    named = dict.fromkeys(
        origin for resource in held.values() for origin in origins(resource.document)
    )
    # istiod answers with the kinds that it reads; of others it has never said anything.
    resources = tuple(
        Compared("object", name, "same" if name in objects else "only here", made_from=(name,))
        for name in sorted(named)
        if name.partition(" ")[0] in kinds
    )
    return Comparison(proxy, tuple(against), "objects", resources, unknown=unknown)


# --- What is held -------------------------------------------------------------------------------


class _Held:
    """What each proxy of a source holds, read once."""

    def __init__(self, facts: Facts, mesh: Mesh) -> None:
        self.facts = facts
        self.mesh = mesh
        self.pods = {pod.proxy: pod for pod in mesh.pods if pod.proxy}
        self._questions: dict[str, HttpQuestion] = {}
        for question in facts.source.questions():
            if CONFIG_DUMP.matches(question) and isinstance(question, HttpQuestion):
                known = self._questions.get(proxy_of(question))
                # Only with this parameter does Envoy give the endpoints.
                if known is None or "include_eds" in question.path:
                    self._questions[proxy_of(question)] = question
        self._held: dict[str, Mapping[Key, Resource] | None] = {}

    def pod(self, proxy: str) -> Pod:
        if proxy not in self.pods:
            raise UsageError(f"There is no proxy {proxy!r}.", next_step=nearest(proxy, self.pods))
        return self.pods[proxy]

    def of(self, proxy: str) -> Mapping[Key, Resource] | None:
        """Return the resources of a proxy; None when it gave no config dump."""
        if proxy not in self._held:
            question = self._questions.get(proxy)
            address = self.pod(proxy).address
            self._held[proxy] = (
                None if question is None else resources_in(self.facts, question, address)
            )
        return self._held[proxy]

    def part(self, proxy: str, group: Group) -> Mapping[Key, Resource] | None:
        """Return those of a proxy's resources that a group shares."""
        held = self.of(proxy)
        if held is None:
            return None
        return {
            key: resource
            for key, resource in held.items()
            if (group.outbound if resource.outbound else group.inbound)
        }

    def silence(self, proxy: str) -> str:
        """Say why a proxy's resources are not known."""
        proxies = self.facts["proxies"]
        why = proxies.loc[proxies["proxy"] == proxy, "silent_because"].dropna().tolist()
        return f"{proxy} did not say what it holds" + (f": {why[0]}" if why else "")

    def left_out(self, proxy: str, key: Key) -> bool:
        """Whether a resource is about a proxy's own address.

        Behind a headless Service, istiod makes a listener for each pod but for the pod itself.
        """
        return _about(key[1], self.pod(proxy).address)


def resources_in(
    facts: Facts, question: HttpQuestion, address: str
) -> Mapping[Key, Resource] | None:
    """Return the resources in a recorded config dump; None where there is no readable one."""
    with suppress(NotRecorded, *NOT_JSON):
        answer = facts.answer(question)
        if answer.error is None and (answer.status or 0) < 400:
            dump = facts.document(answer, decode=read_dump)
            if isinstance(dump, ConfigDump) and not dump.empty:
                return _resources(dump, address)
    return None


def _about(text: str, address: str) -> bool:
    return bool(address) and re.search(alone(address), text) is not None


@cache
def alone(address: str) -> str:
    """Return a pattern for an address that is no part of a longer one."""
    after = r"(?![A-Za-z0-9:])" if ":" in address else r"(?!\.?[A-Za-z0-9])"
    return rf"(?<![A-Za-z0-9.:]){re.escape(address)}{after}"


def _resources(dump: ConfigDump, address: str) -> dict[Key, Resource]:
    found: dict[Key, Resource] = {}
    services: dict[str, tuple[str, ...]] = {}
    filled: set[str] = set()

    def hold(key: Key, document: Json, *, outbound: bool, made_for: tuple[str, ...] = ()) -> None:
        # Among endpoints, which all proxies share, a pod's own address is one like the others.
        clean = cleaned(document, "" if outbound else address)
        found[key] = Resource(clean, outbound, made_for, encoded_json(clean))

    for part in sections(dump, "ClustersConfigDump"):
        # One that is warming is not used yet; the active one of the same name is.
        for state in ("dynamic_warming_clusters", "dynamic_active_clusters"):
            for entry in items(part, state):
                cluster = mapping(entry, "cluster")
                name = str(cluster.get("name", ""))
                services[name] = tuple(_services(cluster))
                if cluster.get("type") == "EDS":
                    filled.add(name)
                outbound = name.startswith("outbound") or name in _CATCH_ALL
                hold(("cluster", name), cluster, outbound=outbound, made_for=services[name])
    for part in sections(dump, "ListenersConfigDump"):
        for entry in items(part, "dynamic_listeners"):
            listener = mapping(entry, "active_state", "listener") or mapping(
                entry, "warming_state", "listener"
            )
            if listener:
                name = str(dig(entry, "name") or listener.get("name", ""))
                leaving = listener.get("traffic_direction") == "OUTBOUND"
                document = {field: value for field, value in listener.items() if field != "name"}
                hold(("listener", name), document, outbound=leaving)
    for part in sections(dump, "RoutesConfigDump"):
        for entry in items(part, "dynamic_route_configs"):
            config = mapping(entry, "route_config")
            name = str(config.get("name", ""))
            hold(("route", name), config, outbound=not name.startswith("inbound"))
    for part in sections(dump, "EndpointsConfigDump"):
        for entry in items(part, "dynamic_endpoint_configs"):
            name = str(dig(entry, "endpoint_config", "cluster_name", default=""))
            if name in filled:
                document = _endpoints(mapping(entry, "endpoint_config"))
                made_for = services.get(name, ())
                hold(("endpoints", name), document, outbound=True, made_for=made_for)
    for part in sections(dump, "EcdsConfigDump"):
        for entry in items(part, "ecds_filters"):
            config = mapping(entry, "ecds_filter")
            hold(("extension", str(config.get("name", ""))), config, outbound=False)
    for part in sections(dump, "SecretsConfigDump"):
        for entry in items(part, "dynamic_active_secrets"):
            roots = _roots(mapping(entry, "secret", "validation_context"))
            if roots:
                hold(("root", str(dig(entry, "name", default=""))), roots, outbound=True)
    return found


def _services(cluster: Mapping[str, Any]) -> Iterator[str]:
    for service in items(cluster, "metadata", "filter_metadata", "istio", "services"):
        namespace, name = dig(service, "namespace", default=""), dig(service, "name", default="")
        yield f"Service {namespace}/{name}"


def _endpoints(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the endpoints of a cluster by address, without what depends on the proxy's place."""
    found: dict[str, Any] = {}
    for locality in items(config, "endpoints"):
        place = mapping(locality, "locality")
        for endpoint in items(locality, "lb_endpoints"):
            address = mapping(endpoint, "endpoint", "address")
            socket = mapping(address, "socket_address")
            pipe = dig(address, "pipe", "path") or dig(
                address, "envoy_internal_address", "endpoint_id"
            )
            name = pipe or f"{socket.get('address')}:{socket.get('port_value')}"
            found[str(name)] = {**mapping(endpoint), "locality": dict(place)}
    return found


def _roots(context: Mapping[str, Any]) -> dict[str, str]:
    """Return the certificates that a context trusts: what they are, each once."""
    bundles = items(context, "custom_validator_config", "typed_config", "trust_domains")
    sources = [
        (str(dig(bundle, "name", default="")), dig(bundle, "trust_bundle")) for bundle in bundles
    ] or [("", dig(context, "trusted_ca"))]
    found: dict[str, str] = {}
    for domain, source in sources:
        text = dig(source, "inline_string", default="")
        try:
            text = base64.b64decode(str(dig(source, "inline_bytes", default=""))).decode() or text
        except (binascii.Error, ValueError):
            continue
        for block in _CERTIFICATE.findall(str(text)):
            certificate = "".join(block.split())
            # The last characters tell two apart, and are enough to show.
            found[f"{domain} …{certificate[-24:]}".strip()] = certificate
    return found


def cleaned(value: Json, address: str = "", depth: int = 0) -> Json:
    """Return a resource without what may differ, its unordered lists in one order.

    ``address`` is the proxy's own, which then stands for itself.
    """
    if depth > _DEEPEST:
        return None
    if isinstance(value, dict):
        clean = {
            field: cleaned(inner, address, depth + 1)
            for field, inner in value.items()
            if field not in _VOLATILE
        }
        for field in _UNORDERED & clean.keys():
            if isinstance(clean[field], list):
                clean[field].sort(key=encoded_json)
        return clean
    if isinstance(value, list):
        return [cleaned(inner, address, depth + 1) for inner in value]
    if isinstance(value, str) and address and address in value:
        return re.sub(alone(address), "{own address}", value)
    return value


def encoded_json(value: Json) -> bytes:
    """Return JSON that is equal when the documents are."""
    return msgspec.json.encode(value, order="deterministic")


# --- Where they differ --------------------------------------------------------------------------


def differences(here: Json, there: Json, path: str = "", origin: str = "") -> Iterator[Difference]:
    """Yield each place at which two documents differ, elements of lists by name or by position.

    ``origin`` is the Istio object that the whole was made from, where it does not say so itself.
    """
    if here == there:
        return
    if isinstance(here, dict) and isinstance(there, dict):
        origin = _origin(here) or _origin(there) or origin
        for field in sorted({*here, *there}):
            inner = f"{path}.{field}" if path else field
            if field not in here or field not in there:
                yield _differing(here.get(field), there.get(field), inner, origin)
            else:
                yield from differences(here[field], there[field], inner, origin)
    elif isinstance(here, list) and isinstance(there, list):
        yield from _elements(here, there, path, origin)
    else:
        yield _differing(here, there, path, origin)


def _elements(here: list[Any], there: list[Any], path: str, origin: str) -> Iterator[Difference]:
    mine, theirs = _named(here), _named(there)
    if mine is not None and theirs is not None:
        for name in dict.fromkeys([*mine, *theirs]):
            inner = f"{path}[{name}]"
            if name in mine and name in theirs:
                yield from differences(mine[name], theirs[name], inner, origin)
            else:
                yield _differing(mine.get(name), theirs.get(name), inner, origin)
        common = [name for name in mine if name in theirs]
        if common != [name for name in theirs if name in mine]:
            yield Difference(f"{path} (order)", ", ".join(mine), ", ".join(theirs), origin)
        return
    # What both begin and end with is equal; between, elements are compared pair by pair.
    first = 0
    while first < min(len(here), len(there)) and here[first] == there[first]:
        first += 1
    last = 0
    while last < min(len(here), len(there)) - first and here[-1 - last] == there[-1 - last]:
        last += 1
    ends = len(here) - last, len(there) - last
    for position in range(first, max(ends)):
        inner = f"{path}[{position}]"
        if position < min(ends):
            yield from differences(here[position], there[position], inner, origin)
        else:
            mine_there = here[position] if position < ends[0] else None
            theirs_there = there[position] if position < ends[1] else None
            yield _differing(mine_there, theirs_there, inner, origin)


def _named(elements: list[Any]) -> dict[str, Any] | None:
    """Return the elements of a list by name; None when they have none, or not each its own."""
    names = [dig(element, "name") for element in elements]
    if not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        return None
    return dict(zip(names, elements, strict=True))


def _differing(here: Json, there: Json, path: str, origin: str) -> Difference:
    inner = next(iter([*origins(here), *origins(there)]), origin)
    return Difference(path, _short(here), _short(there), inner)


def _short(value: Json) -> str:
    if value is None:
        return ""
    text = encoded_json(value).decode()
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


def _origin(resource: Json) -> str:
    """Return the Istio object that a resource says it was made from: ``Kind namespace/name``."""
    return origin_at(istio_config(resource))


def origin_at(path: str | None) -> str:
    """Return the object at an API path as Envoy's metadata has it: ``Kind namespace/name``."""
    parts = path.split("/") if path else []
    if len(parts) != 8:
        return ""
    kind = "".join(part.capitalize() for part in parts[6].split("-"))
    return f"{kind} {parts[5]}/{parts[7]}"


def origins(document: Json) -> Iterator[str]:
    """Yield the Istio objects that a resource and all that lies within it were made from."""
    if isinstance(document, dict):
        if own := _origin(document):
            yield own
        for inner in document.values():
            yield from origins(inner)
    elif isinstance(document, list):
        for inner in document:
            yield from origins(inner)
