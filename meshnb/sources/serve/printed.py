"""Tables: what ``kubectl get`` shows, which the API server prints and not kubectl.

The columns of pods and services are those of Kubernetes 1.36; everything else has its name and age.
Ages count to the moment of the recording.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from meshnb.sources.ages import age_text
from meshnb.sources.base import parse_time

#: How a client asks for a table.
TABLE = "as=Table"

Cell = Callable[[dict[str, Any], datetime], str]


@dataclass(frozen=True, slots=True)
class PrintedColumn:
    """One column: its title, its text for an object, and whether only ``-o wide`` shows it."""

    title: str
    cell: Cell
    wide: bool = False


def table_of(
    items: Sequence[dict[str, Any]],
    resource: tuple[str, str],
    now: datetime,
    *,
    include: str,
    metadata: Mapping[str, Any],
) -> dict[str, Any]:
    """Return a Table of objects of one resource, a group and a plural name.

    ``include`` says what of each object its row holds: ``Object``, ``Metadata`` or ``None``.
    """
    columns = _COLUMNS.get(resource, (_NAME, _AGE))
    return {
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": dict(metadata),
        "columnDefinitions": [
            {
                "name": column.title,
                "type": "string",
                "format": "name" if column is _NAME else "",
                "description": "",
                "priority": 1 if column.wide else 0,
            }
            for column in columns
        ],
        "rows": [
            {
                "cells": [column.cell(item, now) for column in columns],
                "object": _part(item, include),
            }
            for item in items
        ],
    }


def _part(item: dict[str, Any], include: str) -> dict[str, Any] | None:
    if include == "Object":
        return item
    if include == "None":
        return None
    return {
        "kind": "PartialObjectMetadata",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": item["metadata"],
    }


def _name(item: dict[str, Any], _: datetime) -> str:
    return str(item["metadata"].get("name", ""))


def _age(item: dict[str, Any], now: datetime) -> str:
    return _since(item["metadata"].get("creationTimestamp"), now)


def _since(text: Any, now: datetime) -> str:
    try:
        return age_text((now - parse_time(str(text))).total_seconds())
    except ValueError:
        return "<unknown>"


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def _at(item: Mapping[str, Any], path: str) -> Any:
    found: Any = item
    for step in path.split("."):
        found = found.get(step) if isinstance(found, Mapping) else None
    return found


def _field(path: str, absent: str = "<none>") -> Cell:
    return lambda item, _: str(_at(item, path) or absent)


def _sidecars(pod: Mapping[str, Any]) -> list[str]:
    """Return the init containers that keep running beside the others."""
    inits = _dicts(_at(pod, "spec.initContainers"))
    return [str(one.get("name")) for one in inits if one.get("restartPolicy") == "Always"]


def _pod_ready(pod: dict[str, Any], _: datetime) -> str:
    sidecars = _sidecars(pod)
    counted = _dicts(_at(pod, "status.containerStatuses")) + [
        one
        for one in _dicts(_at(pod, "status.initContainerStatuses"))
        if one.get("name") in sidecars
    ]
    ready = sum(one.get("ready") is True for one in counted)
    return f"{ready}/{len(_dicts(_at(pod, 'spec.containers'))) + len(sidecars)}"


def _pod_status(pod: dict[str, Any], _: datetime) -> str:
    status = str(_at(pod, "status.reason") or _at(pod, "status.phase") or "")
    starting = _init_status(pod)
    if starting:
        status = starting
    else:
        containers = _dicts(_at(pod, "status.containerStatuses"))
        for one in reversed(containers):
            status = _stopped(one.get("state")) or status
        if status == "Completed" and any(
            one.get("ready") and _at(one, "state.running") for one in containers
        ):
            status = "Running" if "Ready" in _met(pod) else "NotReady"
    if pod["metadata"].get("deletionTimestamp"):
        return "Unknown" if _at(pod, "status.reason") == "NodeLost" else "Terminating"
    return status


def _init_status(pod: dict[str, Any]) -> str:
    """Return how far the init containers are; empty once they are done."""
    sidecars = _sidecars(pod)
    inits = _dicts(_at(pod, "status.initContainerStatuses"))
    total = len(_dicts(_at(pod, "spec.initContainers")))
    for place, one in enumerate(inits):
        state = one.get("state") or {}
        ended = state.get("terminated")
        if ended and ended.get("exitCode") == 0:
            continue
        if one.get("name") in sidecars and one.get("started"):
            continue
        stopped = _stopped(state)
        if stopped and stopped != "PodInitializing":
            return f"Init:{stopped}"
        return f"Init:{place}/{total}"
    return ""


def _stopped(state: Any) -> str:
    waiting, ended = _at(state or {}, "waiting"), _at(state or {}, "terminated")
    if waiting and waiting.get("reason"):
        return str(waiting["reason"])
    if not ended:
        return ""
    if ended.get("reason"):
        return str(ended["reason"])
    if ended.get("signal"):
        return f"Signal:{ended['signal']}"
    return f"ExitCode:{ended.get('exitCode', 0)}"


def _pod_restarts(pod: dict[str, Any], now: datetime) -> str:
    sidecars = _sidecars(pod)
    counted = _dicts(_at(pod, "status.containerStatuses")) + [
        one
        for one in _dicts(_at(pod, "status.initContainerStatuses"))
        if one.get("name") in sidecars
    ]
    restarts = sum(int(one.get("restartCount") or 0) for one in counted)
    ends = [str(_at(one, "lastState.terminated.finishedAt") or "") for one in counted]
    last = max(ends, default="")
    return f"{restarts} ({_since(last, now)} ago)" if restarts and last else str(restarts)


def _pod_gates(pod: dict[str, Any], _: datetime) -> str:
    gates = [one.get("conditionType") for one in _dicts(_at(pod, "spec.readinessGates"))]
    return f"{len(_met(pod).intersection(gates))}/{len(gates)}" if gates else "<none>"


def _met(pod: Mapping[str, Any]) -> set[Any]:
    """Return the conditions of a pod that hold."""
    conditions = _dicts(_at(pod, "status.conditions"))
    return {one.get("type") for one in conditions if one.get("status") == "True"}


def _service_outside(service: dict[str, Any], _: datetime) -> str:
    spec = service.get("spec") or {}
    named = [str(each) for each in spec.get("externalIPs") or ()]
    if spec.get("type") == "ExternalName":
        return str(spec.get("externalName"))
    if spec.get("type") == "LoadBalancer":
        given = _dicts(_at(service, "status.loadBalancer.ingress"))
        found = [str(one.get("ip") or one.get("hostname") or "") for one in given]
        return ",".join(filter(None, [*found, *named])) or "<pending>"
    return ",".join(named) or "<none>"


def _service_ports(service: dict[str, Any], _: datetime) -> str:
    ports = [
        f"{one.get('port')}{':' + str(one['nodePort']) if one.get('nodePort') else ''}"
        f"/{one.get('protocol', 'TCP')}"
        for one in _dicts(_at(service, "spec.ports"))
    ]
    return ",".join(ports) or "<none>"


def _service_selector(service: dict[str, Any], _: datetime) -> str:
    selector = _at(service, "spec.selector") or {}
    return ",".join(f"{key}={value}" for key, value in sorted(selector.items())) or "<none>"


def _deployment_ready(deployment: dict[str, Any], _: datetime) -> str:
    ready = _at(deployment, "status.readyReplicas") or 0
    return f"{ready}/{_at(deployment, 'spec.replicas') or 0}"


_NAME = PrintedColumn("Name", _name)
_AGE = PrintedColumn("Age", _age)

#: Group and plural name: what is shown of it.
_COLUMNS: Mapping[tuple[str, str], Sequence[PrintedColumn]] = {
    ("", "pods"): (
        _NAME,
        PrintedColumn("Ready", _pod_ready),
        PrintedColumn("Status", _pod_status),
        PrintedColumn("Restarts", _pod_restarts),
        _AGE,
        PrintedColumn("IP", _field("status.podIP"), wide=True),
        PrintedColumn("Node", _field("spec.nodeName"), wide=True),
        PrintedColumn("Nominated Node", _field("status.nominatedNodeName"), wide=True),
        PrintedColumn("Readiness Gates", _pod_gates, wide=True),
    ),
    ("", "services"): (
        _NAME,
        PrintedColumn("Type", _field("spec.type", "ClusterIP")),
        PrintedColumn("Cluster-IP", _field("spec.clusterIP")),
        PrintedColumn("External-IP", _service_outside),
        PrintedColumn("Port(s)", _service_ports),
        _AGE,
        PrintedColumn("Selector", _service_selector, wide=True),
    ),
    ("", "namespaces"): (_NAME, PrintedColumn("Status", _field("status.phase")), _AGE),
    ("apps", "deployments"): (
        _NAME,
        PrintedColumn("Ready", _deployment_ready),
        PrintedColumn("Up-to-date", _field("status.updatedReplicas", "0")),
        PrintedColumn("Available", _field("status.availableReplicas", "0")),
        _AGE,
    ),
}
