"""What there is to follow in a mesh: requests of its logs, its objects, and its two ends."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from meshnb.errors import UsageError
from meshnb.guides.base import Case, Option
from meshnb.symptoms.requests import destination
from meshnb.traces.ends.places import OUTSIDE, find_destination
from meshnb.traces.failures import failed
from meshnb.traces.mesh import ConfigObject, plain

#: So many groups of requests are offered; those that failed come first.
_MOST = 80
#: A part of a path that differs from request to request: a number, or an id of many digits.
_VARIES = re.compile(r"(?<=/)(?:\d+|[0-9a-fA-F-]{16,})(?=/|$)")
_TOLD = (
    *("direction", "proxy", "method", "path"),
    *("authority", "response_code", "response_flags"),
)


def requests(case: Case) -> tuple[Option, ...]:
    """Return the requests of the logs, alike ones together.

    Those that failed come first, and where the client's own proxy tells, as it sees the whole way.
    The value is the row of the last line of the group in ``access_log``.
    """
    log = case.facts["access_log"]
    groups: dict[tuple[Any, ...], list[int]] = {}
    columns = zip(*(log[name].tolist() for name in _TOLD), failed(log).tolist(), strict=True)
    for row, (direction, proxy, method, path, *rest, fails) in enumerate(columns):
        alike = _VARIES.sub("*", str(plain(path) or "").partition("?")[0])
        inbound = plain(direction) == "inbound"
        key = (not fails, inbound, proxy, plain(method) or "", alike, *map(plain, rest))
        groups.setdefault(key, []).append(row)
    ordered = sorted(groups.items(), key=lambda group: (*group[0][:2], -len(group[1])))
    return tuple(Option(str(rows[-1]), _label(key, len(rows))) for key, rows in ordered[:_MOST])


def _label(key: tuple[Any, ...], count: int) -> str:
    fine, _, proxy, method, path, authority, code, flags = key
    ended = " ".join(str(one) for one in (code, flags) if one not in (None, "-", 0))
    what = f"{method} {path}" if method else "a connection"
    to = f" to {authority}" if authority else ""
    return f"{'✓' if fine else '✗'} {count}x {ended or 'closed'} · {what}{to} · log of {proxy}"


def objects(case: Case) -> tuple[Option, ...]:
    """Return the objects that can be followed, those that are blamed first, then the newest.

    The value is ``Kind/namespace/name``; ``MeshConfig`` stands last.
    """
    blamed = [str(cause.subject) for cause in case.diagnosis.problems]

    def order(item: ConfigObject) -> tuple[int, float]:
        rank = blamed.index(str(item)) if str(item) in blamed else len(blamed)
        changed = plain(item.changed)
        return rank, -changed.timestamp() if changed is not None else 0.0

    every = sorted(_named(case).items(), key=lambda named: order(named[1]))
    return (
        *(Option(name, f"{item}{_changed(item.changed)}") for name, item in every),
        Option("MeshConfig", "MeshConfig, the mesh's settings"),
    )


def subject(case: Case, value: str) -> tuple[str, ...]:
    """Return what :func:`follow_change` takes for a value of :func:`objects`, or for a name.

    An object that is listed is found whatever characters its name is made of.
    """
    item = _named(case).get(value)
    return (value,) if item is None else (f"{item.kind}.{item.group}", item.namespace, item.name)


def _named(case: Case) -> dict[str, ConfigObject]:
    # Two kinds are called Gateway, and may have objects of one name.
    return {
        f"{item.kind}{f'.{item.group}' if item.kind == 'Gateway' else ''}"
        f"/{item.namespace}/{item.name}": item
        for item in case.mesh.objects
        if item.namespace
    }


def _changed(moment: Any) -> str:
    known = plain(moment)
    return "" if known is None else f", changed {known:%Y-%m-%d %H:%M:%S} UTC"


def clients(case: Case) -> tuple[Option, ...]:
    """Return the running pods, those with a proxy first, then the outside."""
    pods = sorted(
        (pod for pod in case.mesh.pods if pod.running),
        key=lambda pod: (pod.mesh in ("none", ""), pod.namespace, pod.pod),
    )
    return (
        *(
            Option(f"{pod.pod}.{pod.namespace}", f"{pod.pod}.{pod.namespace} ({pod.mesh})")
            for pod in pods
        ),
        Option(OUTSIDE, "outside the cluster"),
    )


def servers(case: Case) -> tuple[Option, ...]:
    """Return the ports of all Services."""
    names = {
        f"{one.service}.{one.namespace}:{one.port}": one
        for one in case.mesh.services
        if one.port is not None
    }
    return tuple(
        Option(name, f"{name} ({one.port_name or one.protocol})") for name, one in names.items()
    )


def obvious_ends(case: Case) -> tuple[str, str]:
    """Return client and server of the heaviest symptom; of the most requests where none fails.

    Where nobody logs anything, they are two workloads of one namespace. Both are empty where there
    are no pods.
    """
    offered = {option.value for option in clients(case)}
    for client, server in (*_failing(case), *_calling(case), *_tunnelled(case), *_beside(case)):
        if client not in offered:
            continue
        try:
            return client, _with_port(case, server)
        except UsageError:
            continue
    return "", ""


def obvious_request(case: Case) -> str:
    """Return a request in words, for a mesh whose logs have none; empty where there are no pods."""
    client, server = obvious_ends(case)
    return f"GET / from {client} to {server}" if client else ""


def _with_port(case: Case, server: str) -> str:
    port = find_destination(case.mesh, server).port
    return server if server.endswith(f":{port}") else f"{server}:{port}"


def _failing(case: Case) -> Iterator[tuple[str, str]]:
    for symptom in case.symptoms:
        for failure in symptom.failures[-1:]:
            host, port = destination(failure, case.mesh)
            # Where the server tells, the other end of its connection is the client.
            remote = case.mesh.pod_at(failure.peer_address)
            if failure.direction == "inbound":
                here, _, number = failure.local_address.rpartition(":")
                server = f"{host}:{port}" if host and port else f"{here}:{number}"
                callers = [f"{remote.pod}.{remote.namespace}" if remote is not None else OUTSIDE]
            else:
                server, callers = f"{host}:{port}", list(symptom.reporters)
            for client in (*symptom.callers, *callers):
                yield client, server


def _calling(case: Case) -> Iterator[tuple[str, str]]:
    log = case.facts["access_log"]
    sent = log[
        (log["direction"] == "outbound") & log["cluster"].fillna("").str.startswith("outbound|")
    ]
    for proxy, cluster in sent.groupby(["proxy", "cluster"]).size().sort_values()[::-1].index:
        _, port, _, host = (*str(cluster).split("|", 3), "", "", "")[:4]
        yield str(proxy), f"{host}:{port}"


def _tunnelled(case: Case) -> Iterator[tuple[str, str]]:
    """Yield what the logs of ztunnels have, the failed ones first."""
    log = case.facts["ztunnel_access_log"].dropna(subset=["source_pod", "destination_service"])
    log = log.sort_values("error", na_position="last")
    for pod, namespace, host in zip(
        log["source_pod"], log["source_namespace"], log["destination_service"], strict=True
    ):
        yield f"{pod}.{namespace}", str(host)


def _beside(case: Case) -> Iterator[tuple[str, str]]:
    """Yield pods of the mesh with the Services beside them."""
    for pod in case.mesh.pods:
        for service in case.mesh.services:
            if (
                pod.mesh in ("sidecar", "ambient")
                and service.namespace == pod.namespace
                and service.port is not None
                and pod not in case.mesh.selected(service)
            ):
                yield f"{pod.pod}.{pod.namespace}", f"{service.host}:{service.port}"
