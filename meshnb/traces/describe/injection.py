"""How a pod came to its part in the mesh."""

from __future__ import annotations

from meshnb.traces.describe.base import Injection
from meshnb.traces.describe.known import Known
from meshnb.traces.describe.waypoints import waypoint_of
from meshnb.traces.mesh import Pod, plain


def injection_of(known: Known, pod: Pod) -> Injection:
    """Say how a pod came to its part in the mesh."""
    table = known.facts["injection"]
    rows = table[(table["namespace"] == pod.namespace) & (table["pod"] == pod.pod)]
    row = {name: plain(rows[name].tolist()[0]) for name in rows.columns if len(rows)}
    pods = known.facts["pods"]
    revisions = pods.loc[
        (pods["namespace"] == pod.namespace) & (pods["pod"] == pod.pod), "revision"
    ]
    namespace_labels = known.mesh.namespaces.get(pod.namespace, {})
    mode = "istio.io/dataplane-mode"
    asked = [
        f"{whose} label {mode}={labels[mode]}"
        for whose, labels in (("pod", pod.labels), ("namespace", namespace_labels))
        if labels.get(mode)
    ]
    workloads = known.facts["ztunnel_workloads"]
    protocols = workloads.loc[
        (workloads["namespace"] == pod.namespace) & (workloads["pod_name"] == pod.pod),
        "protocol",
    ]
    return Injection(
        revision=str(next(iter(revisions.dropna()), "")),
        injected=row.get("injected") is True,
        wanted=row.get("wanted"),
        reason=str(row.get("reason") or ""),
        ambient_by=asked[0] if asked else "",
        ztunnel_protocol=str(next(iter(protocols.dropna()), "")),
        waypoint=waypoint_of(known, (pod.labels, "pod"), pod.namespace),
    )
