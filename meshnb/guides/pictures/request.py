"""The picture of a request: its hops from caller to application, up to the one where it ended."""

from __future__ import annotations

from meshnb.guides.meanings import HOPS, meaning
from meshnb.guides.pictures.base import Chain, Link, State
from meshnb.symptoms import Symptom
from meshnb.symptoms.requests import destination
from meshnb.traces.failures import Failure
from meshnb.traces.mesh import Mesh

#: What the caller's proxy did, of which the server's own proxy knows nothing.
_ON_CLIENTS_SIDE = frozenset({"the route", "the cluster", "the endpoint"})


def request(symptom: Symptom, mesh: Mesh) -> Chain | None:
    """Return the path of one failed request of a symptom; None for a symptom without requests.

    The hops before the one where it ended are fine, those after it were not reached. Where the
    server's own proxy reports it, what the caller's proxy did before is one hop.
    """
    if not symptom.failures:
        return None
    failure = symptom.failures[-1]
    words, broken = meaning(failure)
    inbound = failure.direction == "inbound"
    names = [name for name in HOPS if not (inbound and name in _ON_CLIENTS_SIDE)]
    if inbound:
        # The listener of the server's own proxy comes after the connection to it.
        names.insert(1, names.pop(names.index("the connection")))
    end = names.index(broken if broken in names else "the listener")
    told = _told(failure, mesh)
    host, port = destination(failure, mesh)
    what = f"{failure.method} {failure.path}" if failure.method else "a connection"
    target = f"{host}:{port}" if port and host else host
    return Chain(
        f"{what} to {target or f'{failure.namespace}/{failure.workload}'}",
        tuple(
            Link(
                name,
                f"{told[name]}: {words}".removeprefix(": ") if place == end else told[name],
                State.FINE if place < end else State.BROKEN if place == end else State.UNREACHED,
            )
            for place, name in enumerate(names)
        ),
    )


def _told(failure: Failure, mesh: Mesh) -> dict[str, str]:
    """Return what the log line says about each hop; empty where it says nothing."""
    told = dict.fromkeys(HOPS, "")
    here = f"{failure.namespace}/{failure.workload}"
    if failure.direction == "inbound":
        nearest = failure.callers[0] if failure.callers else ""
        told["the caller"] = nearest or _remote(failure, mesh)
        told["the listener"] = f"the proxy of {here}"
        told["the application"] = here
        return told
    told["the caller"] = here
    told["the listener"] = failure.local_address
    if any(pod.proxy == failure.proxy and pod.mesh in ("gateway", "waypoint") for pod in mesh.pods):
        told["the caller"] = _remote(failure, mesh)
        told["the listener"] = here
    told["the route"] = failure.route_name or failure.authority
    told["the cluster"] = failure.cluster
    upstream = mesh.pod_at(failure.upstream_host.rpartition(":")[0])
    told["the endpoint"] = (
        f"{upstream.pod}.{upstream.namespace}" if upstream else failure.upstream_host
    )
    told["the connection"] = failure.upstream_failure.replace("_", " ")
    return told


def _remote(failure: Failure, mesh: Mesh) -> str:
    """Return the workload at the other end of the connection, or its address when nobody has it."""
    remote = mesh.pod_at(failure.remote_address.rpartition(":")[0])
    return f"{remote.namespace}/{remote.workload}" if remote else failure.remote_address
