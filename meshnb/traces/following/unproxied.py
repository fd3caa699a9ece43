"""Where a request goes that meets no Envoy first: from a pod without one, or by way of ztunnel.

A Service's address leads to any of its ready pods, as kube-proxy has it. What is in ambient mode
is followed by the trace ``ambient``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pandas as pd

from meshnb.errors import UsageError
from meshnb.tables import Facts
from meshnb.traces.ambient import AmbientTrace, follow_ambient
from meshnb.traces.envoy.filter_chains import joined
from meshnb.traces.following.ways import Passed
from meshnb.traces.hop import Hop
from meshnb.traces.mesh import Mesh, Pod
from meshnb.traces.request import Outcome


def pods_behind(facts: Facts, mesh: Mesh, address: str, port: int) -> Iterator[tuple[Pod, int]]:
    """Yield the pods that an address leads to, each with the port that is asked for there."""
    pod = mesh.pod_at(address)
    if pod is not None:
        yield pod, port
        return
    service = mesh.service_at(address, port)
    if service is None:
        return
    behind = facts["service_endpoints"]
    own = behind[
        (behind["namespace"] == service.namespace)
        & (behind["service"] == service.service)
        & (behind["port"] == port)
        & behind["ready"].fillna(value=False)
    ]
    for host, target in zip(own["address"], own["target_port"], strict=True):
        found = mesh.pod_at(str(host))
        if found is not None and pd.notna(target):
            yield found, int(target)


def through_ztunnel(
    facts: Facts, mesh: Mesh, client: Pod | None, destination: str, ahead: Outcome, when: str
) -> Passed:
    """Follow a request of which an end is in ambient mode; ``ahead`` is its outcome so far."""
    passed = Passed()
    try:
        trace = follow_ambient(facts, client or "outside", destination, mesh)
    except UsageError as error:
        passed.hops.append(Hop("ambient", "", "undecided", f"Cannot decide: {error}", when=when))
        passed.outcomes.append(replace(ahead, by="", because=str(error)))
        return passed
    passed.hops += [replace(hop, when=when) for hop in trace.hops]
    passed.outcomes.append(_end(trace, ahead))
    return passed


def _end(trace: AmbientTrace, ahead: Outcome) -> Outcome:
    if trace.outcome == "admitted":
        return replace(ahead, by="application", flags=None)
    if trace.outcome == "refused" and trace.broken is not None:
        policies = [one.policy for one in trace.reached if one.policy]
        return replace(
            ahead,
            by=trace.broken.proxy or trace.broken.stage,
            code=None,
            flags=None,
            policy=policies[0] if policies else "",
            because=trace.broken.says,
        )
    return replace(ahead, by="", because="; ".join(trace.undecided) or trace.says)


def place(pod: Pod, port: int) -> str:
    """Return a pod's port as the trace ``ambient`` is asked for it."""
    return joined(f"{pod.namespace}/{pod.pod}", port)
