"""What the routes of an object should be in a proxy, to be compared with those that it has.

istiod makes one route of each match of a VirtualService, in their order, and stops behind one that
matches everything (``BuildHTTPRoutesForVirtualService``). Of a route of the Gateway API it names
each by its rule.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from meshnb.tables.base import Json, dig, items, mapping
from meshnb.traces.mesh import ConfigObject, Mesh, Pod, plain
from meshnb.traces.rules import covered_by
from meshnb.traces.rungs.visibility import listed

#: Host and subset that a destination leads to.
Target = tuple[str, str]

_CONDITIONS = ("headers", "withoutHeaders", "queryParams", "method", "scheme", "authority")
#: What of a route is compared, and where it stands.
_COMPARED = (
    "name", "vhost_name", "position", "clusters", "weights", "match", "headers", "timeout_ms",
    "retries", "fault",
)  # fmt: skip
_UNITS = {"ms": 1.0, "s": 1000.0, "m": 60_000.0, "h": 3_600_000.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)")


@dataclass(frozen=True, slots=True)
class Wanted:
    """One route as it should be: one match of one route of the object."""

    path: str
    route: Json
    match: Json
    targets: Mapping[Target, int]


@dataclass(frozen=True, slots=True)
class Routed:
    """The routes of one object, as they should be in one proxy."""

    routes: tuple[Wanted, ...]
    #: whether each is known to be there, so that they can be counted
    exact: bool
    #: where connections should go, that are routed by TCP or TLS
    connections: frozenset[Target]
    #: all that any of its routes leads to
    allowed: frozenset[Target]
    #: of a route of the Gateway API: what each rule leads to; None where that has no cluster of
    #: a Service
    rules: tuple[frozenset[Target] | None, ...] = ()

    def differences(self, rows: pd.DataFrame) -> str:
        """Say in what a proxy's routes differ first; empty when they agree."""
        columns = zip(*(rows[name].tolist() for name in _COMPARED), strict=True)
        records = [dict(zip(_COMPARED, values, strict=True)) for values in columns]
        if not self.exact:
            return self._loosely(records)
        hosts: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
        for record in sorted(records, key=lambda one: one["position"]):
            hosts.setdefault((record["vhost_name"], record["name"]), []).append(record)
        for (host, name), ordered in hosts.items():
            odd = self._of_host(ordered)
            if odd:
                return f"{odd} ({host} on {name})"
        return ""

    def _of_host(self, ordered: list[Mapping[str, Any]]) -> str:
        """Say in what the routes of one virtual host differ."""
        count = len(self.routes)
        if len(ordered) > count > 0 == len(ordered) % count:
            # A gateway with several servers for a host has the routes once for each.
            return self._loosely(ordered)
        if len(ordered) != count:
            return f"there are {len(ordered)} of them and should be {count}"
        for wanted, row in zip(self.routes, ordered, strict=True):
            for odd in _differences(wanted, row):
                return f"{wanted.path} {odd}"
        return ""

    def _loosely(self, records: Iterable[Mapping[str, Any]]) -> str:
        led = {target for record in records for target in _targets(record["clusters"])}
        extra = led - self.allowed
        missing = {target for wanted in self.routes for target in wanted.targets} - led
        if extra:
            return f"they lead to {_words(extra)}, to which it does not send"
        return f"they do not lead to {_words(missing)}" if missing else ""

    def rule_differences(self, rows: pd.DataFrame) -> str:
        """Say in what the routes differ that bear the name and number of a rule."""
        held: dict[int, set[Target]] = {}
        for name, clusters in zip(rows["route"], rows["clusters"], strict=True):
            place = str(name).rpartition(".")[2]
            if place.isdecimal():
                held.setdefault(int(place), set()).update(_targets(clusters))
        for number, targets in enumerate(self.rules):
            if number not in held:
                return f"rule {number} is not among them"
            if targets is None:
                continue
            if held[number] - targets:
                return f"rule {number} leads to {_words(held[number] - targets)}"
            if held[number] and targets - held[number]:
                return f"rule {number} does not lead to {_words(targets - held[number])}"
        extra = sorted(set(held) - set(range(len(self.rules))))
        return f"there is a rule {extra[0]}, which it does not have" if extra else ""

    def leads(self, clusters: Iterable[str]) -> bool:
        """Whether any of these clusters is where connections should go."""
        return any(target in self.connections for target in _targets(clusters))

    def unreached(self, clusters: Iterable[str]) -> str:
        """Name the destinations of connections that none of these clusters is."""
        return _words(self.connections - set(_targets(clusters)))


def routed(item: ConfigObject, mesh: Mesh, pod: Pod) -> Routed:
    """Return what the routes of a VirtualService, or of the Gateway API, should be in a proxy."""
    if item.kind != "VirtualService":
        return _of_api(item, mesh)
    routes: list[Wanted] = []
    exact = True
    delegates = {
        (other.namespace, other.name): other
        for other in mesh.of("VirtualService")
        if not items(other.spec, "hosts")
    }
    for number, route in enumerate(items(item.spec, "http")):
        named = mapping(route, "delegate")
        if named:
            # Matches of both are combined, so that their number is not that of either.
            exact = False
            place = str(named.get("namespace", item.namespace))
            delegate = delegates.get((place, str(named.get("name"))))
            inner = items(delegate.spec, "http") if delegate is not None else []
            for position, part in enumerate(inner):
                path = f"spec.http[{position}] of {delegate}"
                targets = _destinations(items(part, "route"), place, mesh)
                routes.append(Wanted(path, part, {}, targets))
            continue
        targets = _destinations(items(route, "route"), item.namespace, mesh)
        last = False
        for match in items(route, "match") or [{}]:
            applies = _applies(match, pod)
            exact = exact and applies is not None
            if applies:
                routes.append(Wanted(f"spec.http[{number}]", route, match, targets))
                last = _takes_all(match)
            if last:
                break
        if last:
            break
    connections = {
        target
        for protocol in ("tcp", "tls")
        for route in items(item.spec, protocol)
        for target in _destinations(items(route, "route"), item.namespace, mesh)
    }
    allowed = {target for wanted in routes for target in wanted.targets}
    for route in items(item.spec, "http"):
        allowed |= set(_destinations(items(route, "route"), item.namespace, mesh))
    return Routed(tuple(routes), exact, frozenset(connections), frozenset(allowed))


def shadows(item: ConfigObject) -> str:
    """Say which routes of a VirtualService an earlier one covers; empty when each can be taken."""
    covered = [
        f"spec.http[{number}] is never taken: spec.http[{first}] above it matches all of it"
        for number in range(len(items(item.spec, "http")))
        if (first := covered_by(item, number)) is not None
    ]
    return "; ".join(covered)


def _of_api(item: ConfigObject, mesh: Mesh) -> Routed:
    rules: list[frozenset[Target] | None] = []
    for rule in items(item.spec, "rules"):
        found: set[Target] = set()
        for backend in items(rule, "backendRefs"):
            place = str(dig(backend, "namespace", default=item.namespace))
            if dig(backend, "weight") != 0:
                found.add((mesh.fqdn(str(dig(backend, "name", default="")), place), ""))
        kinds = {dig(one, "kind", default="Service") for one in items(rule, "backendRefs")}
        rules.append(frozenset(found) if kinds <= {"Service"} else None)
    every = frozenset(target for rule in rules for target in rule or ())
    by_connection = item.kind in ("TLSRoute", "TCPRoute")
    routes = () if by_connection else (Wanted("spec.rules", {}, {}, dict.fromkeys(every, 1)),)
    return Routed(routes, False, every if by_connection else frozenset(), every, tuple(rules))


def _destinations(routes: list[Json], namespace: str, mesh: Mesh) -> dict[Target, int]:
    """Return where a route leads, with weights; what has none of several is left out."""
    found: dict[Target, int] = {}
    for one in routes:
        host = mesh.fqdn(str(dig(one, "destination", "host", default="")), namespace)
        target = (host, str(dig(one, "destination", "subset", default="")))
        weight = dig(one, "weight", default=0)
        found[target] = found.get(target, 0) + (weight if isinstance(weight, int) else 0)
    return {t: w for t, w in found.items() if w > 0 or len(routes) == 1}


def _applies(match: Json, pod: Pod) -> bool | None:
    """Whether a match is meant for a proxy; None where that depends on more than its pod."""
    if dig(match, "gateways") or dig(match, "port") is not None:
        return None
    namespace = dig(match, "sourceNamespace")
    own = namespace is None or namespace == pod.namespace
    return own and mapping(match, "sourceLabels").items() <= pod.labels.items()


def _takes_all(match: Json) -> bool:
    uri = mapping(match, "uri")
    whole = not uri or uri.get("prefix") == "/" or uri.get("regex") in (".*", "/.*")
    return whole and not any(mapping(match).get(name) for name in _CONDITIONS)


def _differences(wanted: Wanted, row: Mapping[Any, Any]) -> Iterator[str]:
    led = set(_targets(row["clusters"]))
    if led != set(wanted.targets):
        there, here = _words(led) or "nothing", _words(wanted.targets) or "nothing"
        yield f"leads to {there} and not to {here}"
    if len(wanted.targets) > 1:
        weights: dict[Target, int] = {}
        for target, weight in zip(_targets(row["clusters"]), row["weights"], strict=False):
            weights[target] = weights.get(target, 0) + weight
        if weights != dict(wanted.targets):
            yield f"has the weights {_shares(weights)} and not {_shares(wanted.targets)}"
    uri = mapping(wanted.match, "uri")
    text = next((str(uri[k]) for k in ("exact", "prefix", "regex") if k in uri), "")
    if text not in str(plain(row["match"]) or "") and text not in ("", "/"):
        yield f"matches {row['match']} and not {text}"
    headers: dict[str, list[str]] = {}
    for one in row["headers"]:
        headers.setdefault(str(dig(one, "name", default="")).lower(), []).extend(_leaves(one))
    for name, condition in mapping(wanted.match, "headers").items():
        value = str(next(iter(mapping(condition).values()), ""))
        # Claims of a token are matched as metadata.
        if not name.startswith("@") and not any(value in t for t in headers.get(name.lower(), ())):
            yield f"does not match on the header {name}={value}"
    timeout = _milliseconds(dig(wanted.route, "timeout"))
    if timeout is not None and plain(row["timeout_ms"]) not in (None, timeout):
        yield f"has a timeout of {row['timeout_ms']:.0f} ms and not {timeout:.0f} ms"
    attempts = dig(wanted.route, "retries", "attempts")
    if isinstance(attempts, int) and plain(row["retries"]) not in (None, attempts):
        yield f"is tried again {row['retries']} times and not {attempts}"
    fault, held = mapping(wanted.route, "fault"), plain(row["fault"])
    if held is not None and not fault:
        yield "injects faults"
    if held is None and any(_share(part) > 0 for part in fault.values()):
        yield "injects no fault"


def _targets(clusters: Iterable[str]) -> Iterator[Target]:
    for cluster in clusters:
        parts = cluster.strip().split("|")
        if len(parts) != 4:
            yield cluster.strip(), ""
        elif parts[0] == "inbound-vip":
            # At a waypoint the protocol stands before the subset: http/v2.
            yield parts[3], parts[2].partition("/")[2]
        else:
            yield parts[3], parts[2]


def _leaves(value: Json) -> Iterator[str]:
    """Yield all plain values within one, as text."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for one in inner:
        yield from _leaves(one)
    if not isinstance(value, dict | list):
        yield str(value)


def _share(part: Json) -> float:
    value = dig(part, "percentage", "value", default=dig(part, "percent", default=100))
    return float(value) if isinstance(value, int | float) else 100.0


def _words(targets: Iterable[Target]) -> str:
    return listed(
        f"{host}{f' subset {subset}' if subset else ''}" for host, subset in sorted(targets)
    )


def _shares(weights: Mapping[Target, Any]) -> str:
    return ", ".join(f"{subset or host}: {weight}" for (host, subset), weight in weights.items())


def _milliseconds(duration: Json) -> float | None:
    """Return a duration as Go writes it, such as ``1m30s``, in milliseconds; None without one."""
    if not isinstance(duration, str) or not _DURATION.match(duration):
        return None
    return sum(float(number) * _UNITS[unit] for number, unit in _DURATION.findall(duration))
