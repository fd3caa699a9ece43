"""What people call the two ends of a connection: pods, Services, addresses, the outside.

Shared by the traces that take two ends: ``ambient`` and ``connection``.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from meshnb.errors import UsageError, nearest
from meshnb.traces.mesh import CLUSTER_DOMAIN, Mesh, Pod, ServicePort

#: The client that is no pod of the mesh, or not known.
OUTSIDE = "outside"


@dataclass(frozen=True, slots=True)
class Destination:
    """What a client asks for: a Service's port, a pod's port, or another address or host."""

    title: str
    port: int
    service: ServicePort | None = None
    pod: Pod | None = None
    address: str = ""
    #: the name without the port
    name: str = ""


def find_pod(mesh: Mesh, name: str) -> Pod | None:
    """Return the pod called namespace/name or name.namespace, or that has an address."""
    for pod in mesh.pods:
        if name in (f"{pod.namespace}/{pod.pod}", f"{pod.pod}.{pod.namespace}"):
            return pod
    return mesh.pod_at(name.strip("[]"))


def _of_workload(mesh: Mesh, name: str) -> Pod | None:
    """Return the first running pod of the workload called namespace/name or name.namespace."""
    for pod in mesh.pods:
        titles = (f"{pod.namespace}/{pod.workload}", f"{pod.workload}.{pod.namespace}")
        if pod.running and name in titles:
            return pod
    return None


def find_client(mesh: Mesh, name: str) -> Pod | None:
    """Return the pod, or one of the workload, of this name; None for one outside the cluster.

    The latter is called ``outside``, or has an address that no pod has.
    """
    if name == OUTSIDE:
        return None
    pod = find_pod(mesh, name) or _of_workload(mesh, name)
    if pod is None and not is_address(name):
        raise UsageError(
            f"There is no pod {name}.",
            next_step=nearest(
                name, [OUTSIDE, *(f"{one.namespace}/{one.pod}" for one in mesh.pods)]
            ),
        )
    return pod


def find_destination(mesh: Mesh, text: str) -> Destination:
    """Return what is called so: a name, with a port unless there is only one.

    Raises UsageError for an unknown name or port, with what there is.
    """
    name, colon, digits = text.rpartition(":")
    if not colon or not digits.isdecimal() or (":" in name and not name.endswith("]")):
        name, digits = text, ""
    port = int(digits) if digits else None
    address = name.strip("[]")
    pod = find_pod(mesh, name)
    ports = _service_ports(mesh, name) if pod is None else ()
    if pod is None and not ports and not is_address(address) and not mesh.known_host(name):
        known = {f"{one.service}.{one.namespace}" for one in mesh.services}
        known |= {f"{one.namespace}/{one.pod}" for one in mesh.pods}
        raise UsageError(
            f"There is no Service, pod or address {name}.", next_step=nearest(name, known)
        )
    numbers = sorted({one.port for one in ports if one.port is not None})
    if pod is not None:
        numbers = sorted(
            {
                int(one.target_port)
                for one in mesh.services
                if pod in mesh.selected(one) and one.target_port.isdigit()
            }
        )
    if port is None:
        if len(numbers) != 1:
            raise UsageError(
                f"{text} does not say which port is meant.",
                next_step=f"Write {name}:PORT; known are {', '.join(map(str, numbers)) or 'none'}.",
            )
        port = numbers[0]
    if ports and port not in numbers:
        raise UsageError(
            f"Service {ports[0].service}.{ports[0].namespace} has no port {port}.",
            next_step=f"It has {', '.join(map(str, numbers))}.",
        )
    service = next((one for one in ports if one.port == port), None)
    return Destination(text, port, service, pod, address if is_address(address) else "", name)


def _service_ports(mesh: Mesh, name: str) -> tuple[ServicePort, ...]:
    by_address = tuple(one for one in mesh.services if one.cluster_ip == name.strip("[]"))
    slashed = name.partition("/")
    hosts = [name, f"{name}.svc.{CLUSTER_DOMAIN}", f"{name}.{CLUSTER_DOMAIN}"]
    if slashed[1]:
        hosts.append(f"{slashed[2]}.{slashed[0]}.svc.{CLUSTER_DOMAIN}")
    return by_address or next((mesh.ports(host) for host in hosts if mesh.ports(host)), ())


def is_address(text: str) -> bool:
    """Whether a text is an IP address."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
