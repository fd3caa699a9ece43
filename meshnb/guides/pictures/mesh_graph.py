"""The picture of the mesh: who called whom according to the access logs, and where calls failed."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from meshnb.guides.pictures.base import Edge, MeshGraph, Node, State, worst
from meshnb.symptoms import Symptom, Symptoms
from meshnb.tables import Facts
from meshnb.traces.failures import failed
from meshnb.traces.mesh import Mesh, Pod, ServicePort, plain

#: So many nodes can be told apart on a screen.
_MOST = 24
_CLUSTER_HOST = re.compile(r"^outbound[|_]\.?\d+[|_]\.?[^|]*?(?:[|]|_\.)(.+)$")
#: What a proxy that is out of step does, by the symptom's flag.
_NOTES = {
    "ERROR": "refuses configuration",
    "STALE": "is late",
    "DISCONNECTED": "not connected to istiod",
}
_OUTSIDE = ("outside", "", "outside the mesh")

_Key = tuple[str, str, str]


@dataclass(slots=True)
class _Calls:
    """What is known of one edge while it is put together."""

    count: int = 0
    failed: int = 0
    states: set[State] = field(default_factory=set)
    notes: Counter[str] = field(default_factory=Counter)


def mesh_graph(facts: Facts, mesh: Mesh, symptoms: Symptoms) -> MeshGraph | None:
    """Return callers and callees with a mark on each edge where a failure began; None without any.

    A node is a Service with the workloads behind it, or a workload that no Service selects. Calls
    that merely passed a failure on are odd, not broken.
    """
    places = _Places(mesh)
    calls: dict[tuple[_Key, _Key], _Calls] = {}
    _logged(facts, places, symptoms, calls)
    nodes: dict[_Key, Node] = {}
    for source, target in calls:
        for key in (source, target):
            nodes.setdefault(key, places.node(key))
    for symptom in symptoms:
        if symptom.kind not in ("request", "connection"):
            _note(nodes, places, symptom)
    if not nodes:
        return None
    chosen = _most_telling(nodes, calls)
    place = {key: number for number, key in enumerate(chosen)}
    edges = tuple(
        Edge(
            place[source],
            place[target],
            found.count,
            found.failed,
            worst(found.states),
            "; ".join(note for note, _ in found.notes.most_common(2)),
        )
        for (source, target), found in calls.items()
        if source in place and target in place
    )
    return MeshGraph("Who calls whom", tuple(nodes[key] for key in chosen), edges, len(nodes))


class _Places:
    """Which node an address, a proxy or a host belongs to."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self._of_pod: dict[str, _Key] = {}
        self._details: dict[_Key, dict[str, None]] = {}
        self._by_proxy: dict[str, _Key] = {}
        services: dict[str, ServicePort] = {}
        for one in sorted(mesh.services, key=lambda port: (port.headless, port.service)):
            for pod in mesh.selected(one):
                services.setdefault(f"{pod.pod}.{pod.namespace}", one)
        for pod in mesh.pods:
            service = services.get(f"{pod.pod}.{pod.namespace}")
            key: _Key = ("workload", pod.namespace, pod.workload)
            if pod.mesh in ("gateway", "waypoint"):
                key = ("gateway", pod.namespace, pod.workload)
            elif service is not None:
                key = ("service", service.namespace, service.service)
            self._of_pod[f"{pod.pod}.{pod.namespace}"] = key
            if pod.proxy:
                self._by_proxy[pod.proxy] = key
            if pod.running:
                self._details.setdefault(key, {})[pod.workload] = None

    def of_pod(self, pod: Pod) -> _Key:
        return self._of_pod[f"{pod.pod}.{pod.namespace}"]

    def of_name(self, name: str) -> _Key | None:
        """Return the node of a pod or proxy as pod.namespace."""
        return self._of_pod.get(name) or self._by_proxy.get(name)

    def of_address(self, address: Any) -> _Key | None:
        pod = self.mesh.pod_at(str(plain(address) or "").rpartition(":")[0])
        return self.of_pod(pod) if pod is not None else None

    def of_host(self, host: str) -> _Key:
        ports = self.mesh.ports(host)
        if ports:
            return ("service", ports[0].namespace, ports[0].service)
        return ("outside", "", host)

    def of_workload(self, workload: tuple[str, str]) -> _Key | None:
        for key, names in self._details.items():
            if key[1] == workload[0] and workload[1] in names:
                return key
        return None

    def node(self, key: _Key) -> Node:
        kind, namespace, name = key
        details = [one for one in self._details.get(key, ()) if one != name]
        return Node(name, namespace, kind, ", ".join(details))


def _logged(
    facts: Facts,
    places: _Places,
    symptoms: Symptoms,
    calls: dict[tuple[_Key, _Key], _Calls],
) -> None:
    log = facts["access_log"]
    origins = {
        index: symptom.id
        for symptom in symptoms
        if symptom.table == "access_log"
        for index in symptom.rows
    }
    groups = log.assign(
        _failed=failed(log), _origin=[origins.get(index, "") for index in log.index]
    ).groupby(
        ["proxy", "direction", "cluster", "upstream_host", "authority", "_failed", "_origin"],
        dropna=False,
    )
    by_id = {symptom.id: symptom for symptom in symptoms}
    for _, rows in groups:
        row = rows.iloc[0].to_dict()
        edges = _edges(row, places, by_id.get(row["_origin"]))
        for source, target in edges:
            if source == target:
                continue
            found = calls.setdefault((source, target), _Calls())
            found.count += len(rows)
            symptom = by_id.get(row["_origin"])
            if symptom is not None:
                found.failed += len(rows)
                found.states.add(State.BROKEN)
                found.notes[_short(symptom)] += len(rows)
            elif row["_failed"] and (plain(row["response_code"]) or 0) not in range(400, 500):
                found.failed += len(rows)
                found.states.add(State.ODD)
                found.notes["passes on a failure"] += 1
            else:
                found.states.add(State.FINE)
    _server_side(symptoms, places, calls)


def _edges(
    row: Mapping[Any, Any], places: _Places, symptom: Symptom | None
) -> Iterable[tuple[_Key, _Key]]:
    """Yield the edges that a line of an access log counts for."""
    here = places.of_name(str(row["proxy"]))
    if here is None:
        return
    caller = places.of_address(row["downstream_remote_address"]) or _OUTSIDE
    if row["direction"] == "inbound":
        # A caller with a proxy has logged the same request itself.
        pod = places.mesh.pod_at(
            str(plain(row["downstream_remote_address"]) or "").rpartition(":")[0]
        )
        if pod is None or not pod.in_mesh:
            yield caller, here
        return
    target = places.of_address(row["upstream_host"])
    match = _CLUSTER_HOST.match(str(plain(row["cluster"]) or ""))
    if target is None and match:
        target = places.of_host(match[1])
    if target is None and symptom is not None and symptom.host and places.mesh.ports(symptom.host):
        target = places.of_host(symptom.host)
    if here[0] == "gateway":
        yield caller, here
    if target is not None:
        yield here, target


def _server_side(
    symptoms: Symptoms, places: _Places, calls: dict[tuple[_Key, _Key], _Calls]
) -> None:
    """Mark the edge to a server as broken where the failure began at the server's own proxy."""
    for symptom in symptoms:
        if symptom.side != "server":
            continue
        for failure in symptom.failures:
            target = places.of_name(failure.proxy)
            source = places.of_name(failure.callers[0]) if failure.callers else None
            found = calls.get((source, target)) if source and target else None
            if found is not None:
                found.states.add(State.BROKEN)
                found.notes.pop("passes on a failure", None)
                found.notes[_short(symptom)] += 1
                if symptom.code in range(400, 500):
                    # In the caller's log, an application's own 4xx would look the same.
                    found.failed = min(found.failed + 1, found.count)


def _short(symptom: Symptom) -> str:
    flags = ",".join(sorted(symptom.flags))
    what = f"{symptom.code or ''} {flags}".strip() or "ended"
    details = symptom.details.partition("{")[0].replace("_", " ")
    return f"{what} ({details})" if details else what


def _note(nodes: dict[_Key, Node], places: _Places, symptom: Symptom) -> None:
    keys = [places.of_workload(symptom.workload)] if symptom.workload[1] else []
    keys += [places.of_name(name) for name in symptom.reporters]
    state = State.BROKEN if symptom.kind == "pod" else State.ODD
    note = next((_NOTES[flag] for flag in symptom.flags if flag in _NOTES), "no istiod knows it")
    if symptom.kind == "pod":
        note = (
            f"{symptom.count} not ready" if symptom.table == "pods" else "its pods cannot be made"
        )
    for key in dict.fromkeys(keys):
        if key is not None:
            node = nodes.get(key) or places.node(key)
            nodes[key] = replace(node, state=worst((node.state, state)), note=node.note or note)


def _most_telling(
    nodes: Mapping[_Key, Node], calls: Mapping[tuple[_Key, _Key], _Calls]
) -> list[_Key]:
    """Return the nodes to show: where something is wrong, its neighbours, then the busiest."""
    wrong, traffic = set(), Counter[_Key]()
    for ends, found in calls.items():
        for key in ends:
            traffic[key] += found.count
            if worst(found.states) is not State.FINE:
                wrong.add(key)
    return sorted(
        nodes,
        key=lambda key: (key not in wrong and not nodes[key].note, -traffic[key], key),
    )[:_MOST]
