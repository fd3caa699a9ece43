"""A pod described."""

from __future__ import annotations

from collections.abc import Iterator

from meshnb.errors import UsageError, nearest
from meshnb.tables import Facts
from meshnb.tables.base import items
from meshnb.traces.describe.attached import attached_policies
from meshnb.traces.describe.base import Acting, PodDescription
from meshnb.traces.describe.injection import injection_of
from meshnb.traces.describe.known import Known
from meshnb.traces.describe.mutual_tls import authentication, secured_ports
from meshnb.traces.describe.ports import declared_ports, service_of
from meshnb.traces.describe.served import served
from meshnb.traces.describe.sidecars import sidecars
from meshnb.traces.describe.traffic import traffic
from meshnb.traces.describe.words import listed, mismatch
from meshnb.traces.mesh import Mesh, Pod, plain
from meshnb.traces.rules import workload_labels

#: The user that traffic of the proxy itself is known by; what runs as it goes around the mesh.
_PROXY_USER = 1337
#: Labels that give a workload its name and its version in telemetry, any of each.
_NAME_LABELS = ("app", "app.kubernetes.io/name", "service.istio.io/canonical-name")
_VERSION_LABELS = ("version", "app.kubernetes.io/version", "service.istio.io/canonical-revision")


def describe_pod(facts: Facts, mesh: Mesh, namespace: str, pod: str) -> PodDescription:
    """Say which objects act on a pod. Raises UsageError when there is no such pod."""
    found = next((p for p in mesh.pods if (p.namespace, p.pod) == (namespace, pod)), None)
    if found is None:
        known = [f"{p.pod}.{p.namespace}" for p in mesh.pods]
        raise UsageError(
            f"There is no pod {pod}.{namespace}.", next_step=nearest(f"{pod}.{namespace}", known)
        )
    return _described(Known(facts, mesh), found)


def _described(known: Known, pod: Pod) -> PodDescription:
    document = known.document(pod)
    containers = known.facts["containers"]
    own = containers[(containers["namespace"] == pod.namespace) & (containers["pod"] == pod.pod)]
    columns = (own[name].tolist() for name in ("container", "ready", "init", "state"))
    ready = zip(*columns, strict=True)
    return PodDescription(
        pod=pod,
        ports=tuple(declared_ports(document)),
        injection=injection_of(known, pod),
        as_proxy_user=tuple(
            str(name)
            for name, user in zip(own["container"], own["run_as_user"], strict=True)
            if plain(user) == _PROXY_USER and name not in ("istio-proxy", "istio-init")
        ),
        not_ready=tuple(
            str(name)
            for name, is_ready, init, state in ready
            # An init container that has done its work is not ready, and need not be.
            if pod.running
            and plain(is_ready) is not True
            and not (plain(init) is True and plain(state) == "terminated")
        ),
        missing_labels=tuple(
            name
            for name, labels in (("app", _NAME_LABELS), ("version", _VERSION_LABELS))
            if pod.in_mesh and not any(label in pod.labels for label in labels)
        ),
        services=tuple(service_of(known, ports, pod) for ports in known.behind(pod)),
        secured=tuple(secured_ports(known, pod)),
        objects=tuple(objects_on(known, pod)),
    )


def objects_on(known: Known, pod: Pod) -> Iterator[Acting]:
    """Yield every object that acts on a pod, or could be thought to."""
    hosts = {ports[0].host: ports[0].namespace for ports in known.behind(pod)}
    entries = []
    for entry in known.mesh.of("ServiceEntry"):
        labels = workload_labels(entry)
        chosen = entry.namespace == pod.namespace and labels.items() <= pod.labels.items()
        if labels and chosen:
            names = [str(host) for host in items(entry.spec, "hosts")]
            hosts |= dict.fromkeys(names, entry.namespace)
            entries.append(Acting(entry, acts=True, why=f"selects it for {listed(names)}"))
        elif labels and entry.namespace == pod.namespace:
            entries.append(Acting(entry, acts=False, why=mismatch(labels, pod)))
    found = [
        *served(known, pod),
        *entries,
        *traffic(known, hosts, [pod], pod.namespace),
        *policies_on(known, pod),
    ]
    # A gateway's own Gateways can lead to itself as well; what acts counts.
    kept: dict[int, Acting] = {}
    for one in found:
        if one.item.index not in kept or (one.acts and not kept[one.item.index].acts):
            kept[one.item.index] = one
    for one in kept.values():
        if pod.running:
            yield one
        else:
            yield Acting(one.item, acts=False, why="the pod has ended")


def policies_on(known: Known, pod: Pod) -> Iterator[Acting]:
    """Yield what has a selector or targetRefs and acts on a pod, or could be thought to."""
    yield from sidecars(known, pod)
    yield from authentication(known, pod)
    yield from attached_policies(known, pod)
