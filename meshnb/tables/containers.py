"""The table ``containers``: the state of every container, and what its readiness probe asks."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from meshnb.sources.base import Question
from meshnb.tables.base import Column, Facts, Json, Listed, Row, Table, dig, items, mapping
from meshnb.tables.pods import proxy_container

CONTAINERS = Table(
    name="containers",
    grain="one row per container of a pod",
    asks=Listed("v1", "pods"),
    columns={
        "namespace": Column("string", "namespace of the pod", key=True),
        "pod": Column("string", "name of the pod", key=True),
        "container": Column("string", "name of the container", key=True),
        "init": Column("boolean", "whether it is an init container; native sidecars are, too"),
        "position": Column("Int64", "its place among the containers or init containers, from 0"),
        "restart_policy": Column("string", "Always for an init container that is a sidecar"),
        "image": Column("string", "the image it should run"),
        "ready": Column("boolean", "whether it is ready"),
        "restarts": Column("Int64", "how often it was started again"),
        "state": Column("string", "running, waiting or terminated"),
        "reason": Column("string", "why it waits or ended, one word"),
        "exit_code": Column("Int64", "its exit code, when it is terminated"),
        "message": Column("string", "more about why it waits or ended"),
        "since": Column(
            "datetime64[us, UTC]",
            "when it was started, or ended when it is terminated",
            passing=True,
        ),
        "last_reason": Column("string", "why its previous run ended, one word"),
        "last_exit_code": Column("Int64", "exit code of its previous run"),
        "last_finished": Column("datetime64[us, UTC]", "when its previous run ended", passing=True),
        "ports": Column("object", "the ports it declares, a tuple of numbers"),
        "readiness_port": Column("Int64", "the port that its readiness probe really asks"),
        "readiness_path": Column("string", "the path that its readiness probe asks for, with http"),
        "readiness_kind": Column("string", "how its readiness is probed: http, tcp, grpc or exec"),
        "direct_probe_ports": Column(
            "object",
            "tuple: ports that the kubelet itself probes by HTTP or TCP, not through the agent",
        ),
        "run_as_user": Column("Int64", "the user ID it must run as"),
        "capabilities": Column("object", "tuple: capabilities that are added to it"),
    },
)

_KINDS = {"httpGet": "http", "tcpSocket": "tcp", "grpc": "grpc", "exec": "exec"}


@CONTAINERS.reads
def _rows(pod: Json, question: Question, facts: Facts) -> Iterator[Row]:
    probers = _rewritten_probes(pod)
    for part, reported, init in (
        ("containers", "containerStatuses", False),
        ("initContainers", "initContainerStatuses", True),
    ):
        statuses = {dig(one, "name"): one for one in items(pod, "status", reported)}
        for position, container in enumerate(items(pod, "spec", part)):
            status = statuses.get(dig(container, "name"))
            yield {
                "namespace": dig(pod, "metadata", "namespace"),
                "pod": dig(pod, "metadata", "name"),
                "container": dig(container, "name"),
                "init": init,
                "position": position,
                "restart_policy": dig(container, "restartPolicy"),
                "image": dig(container, "image"),
                "ready": dig(status, "ready"),
                "restarts": dig(status, "restartCount"),
                **_state(status),
                "ports": tuple(
                    port
                    for one in items(container, "ports")
                    if isinstance(port := dig(one, "containerPort"), int)
                ),
                **_readiness(container, probers),
                "direct_probe_ports": _direct_probes(container),
                "capabilities": tuple(
                    map(str, items(container, "securityContext", "capabilities", "add"))
                ),
                "run_as_user": dig(
                    container,
                    "securityContext",
                    "runAsUser",
                    default=dig(pod, "spec", "securityContext", "runAsUser"),
                ),
            }


def _state(status: Json) -> Row:
    last = mapping(status, "lastState", "terminated")
    row: Row = {
        "last_reason": last.get("reason"),
        "last_exit_code": last.get("exitCode"),
        "last_finished": last.get("finishedAt"),
    }
    for state in ("running", "waiting", "terminated"):
        if isinstance(dig(status, "state", state), Mapping):
            now = mapping(status, "state", state)
            row |= {
                "state": state,
                "reason": now.get("reason"),
                "exit_code": now.get("exitCode"),
                "message": now.get("message"),
                "since": now.get("finishedAt") or now.get("startedAt"),
            }
            break
    return row


def _rewritten_probes(pod: Json) -> Mapping[str, Any]:
    """Return the probes that the injector redirected to the agent, by the path it serves them on.

    The injector lets the agent ask in the kubelet's place, on port 15020, and keeps the original
    in the proxy's variable ISTIO_KUBE_APP_PROBERS (Istio: "Health Checking of Istio Services").
    """
    for variable in items(proxy_container(pod), "env"):
        if dig(variable, "name") == "ISTIO_KUBE_APP_PROBERS":
            try:
                return mapping(json.loads(str(dig(variable, "value"))))
            except (ValueError, RecursionError):
                break
    return {}


def _readiness(container: Json, probers: Mapping[str, Any]) -> Row:
    probe = mapping(container, "readinessProbe")
    path = f"/app-health/{dig(container, 'name')}/readyz"
    if dig(probe, "httpGet", "path") == path:
        # Without its original nothing is known of what the agent asks in the end.
        probe = mapping(probers, path)
    for field, kind in _KINDS.items():
        if field in probe:
            return {
                "readiness_kind": kind,
                "readiness_port": _number(container, dig(probe, field, "port")),
                # The API server fills in the slash; the original in the variable may lack it.
                "readiness_path": dig(probe, field, "path", default="/")
                if kind == "http"
                else None,
            }
    return {}


def _direct_probes(container: Json) -> tuple[int, ...]:
    """Return the ports of probes that still lead to the container, not to the agent on 15020."""
    ports: dict[int, None] = {}
    for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
        probe = mapping(container, kind)
        path = str(dig(probe, "httpGet", "path", default=""))
        for field in ("httpGet", "tcpSocket", "grpc"):
            named = dig(probe, field, "port")
            port = None if named is None else _number(container, named)
            if isinstance(port, int) and not path.startswith("/app-health/"):
                ports[port] = None
    return tuple(ports)


def _number(container: Json, port: Any) -> Any:
    """Return a port's number; a name is looked up among the container's ports."""
    for one in items(container, "ports"):
        if dig(one, "name") == port:
            return dig(one, "containerPort")
    return port
