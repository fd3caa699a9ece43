"""A Service described, with the pods behind it."""

from __future__ import annotations

from meshnb.errors import UsageError, nearest
from meshnb.tables import Facts
from meshnb.traces.describe.attached import attached_policies
from meshnb.traces.describe.base import Acting, ServiceDescription
from meshnb.traces.describe.known import Known
from meshnb.traces.describe.mutual_tls import authentication, secured_ports
from meshnb.traces.describe.ports import service_of
from meshnb.traces.describe.traffic import traffic
from meshnb.traces.describe.waypoints import waypoint_of
from meshnb.traces.describe.words import listed
from meshnb.traces.mesh import Mesh, Pod, ServicePort


def describe_service(facts: Facts, mesh: Mesh, namespace: str, service: str) -> ServiceDescription:
    """Say which objects act on a Service and its pods. Raises UsageError when there is none."""
    ports = [s for s in mesh.services if (s.namespace, s.service) == (namespace, service)]
    if not ports:
        known = [f"{s.service}.{s.namespace}" for s in mesh.services]
        raise UsageError(
            f"There is no Service {service}.{namespace}.",
            next_step=nearest(f"{service}.{namespace}", known),
        )
    return _described(Known(facts, mesh), ports)


def _described(known: Known, ports: list[ServicePort]) -> ServiceDescription:
    first = ports[0]
    pods = tuple(known.mesh.selected(first))
    label = known.service_labels(first.namespace, first.service)
    found: dict[int, list[tuple[Pod, Acting]]] = {}
    for pod in pods:
        for one in [*authentication(known, pod), *attached_policies(known, pod)]:
            found.setdefault(one.item.index, []).append((pod, one))
    return ServiceDescription(
        service=service_of(known, ports, pods[0] if pods else None),
        pods=pods,
        waypoint=waypoint_of(known, (label, "Service"), first.namespace),
        secured=tuple(secured for pod in pods for secured in secured_ports(known, pod)),
        objects=(
            *traffic(known, {first.host: first.namespace}, list(pods), first.namespace),
            *(_together(pairs, len(pods)) for pairs in found.values()),
        ),
    )


def _together(pairs: list[tuple[Pod, Acting]], count: int) -> Acting:
    """Return what an object does to a Service's pods as a whole."""
    acting = [(pod, one) for pod, one in pairs if one.acts]
    _, chosen = (acting or pairs)[0]
    if not acting or len(acting) == count:
        return Acting(chosen.item, bool(acting), chosen.why)
    pods = listed(pod.pod for pod, _ in acting)
    return Acting(chosen.item, acts=True, why=f"{chosen.why} (of its pods only {pods})")
