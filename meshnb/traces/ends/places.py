"""What people call the two ends of a connection: pods, Services, addresses, the outside.

Shared by the traces of a request, of a connection and of ambient mode.
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


def running_pod(mesh: Mesh, name: str) -> Pod | None:
    """Return the running pod that a name stands for: a proxy, a pod or a workload; None for none.

    A namespace may stand before a slash or behind the last dot, or be left out. Of a workload it is
    a pod with a proxy, if there is one. Raises UsageError when pods of several workloads are meant.
    """
    namespace, _, short = name.rpartition("/")
    running = [pod for pod in mesh.pods if pod.running]
    proxied = [pod for pod in running if pod.proxy]
    named = (
        [pod for pod in running if name in (pod.proxy, f"{pod.pod}.{pod.namespace}")],
        [pod for pod in running if short == pod.pod and namespace in ("", pod.namespace)],
        [pod for pod in proxied if short == pod.workload and namespace in ("", pod.namespace)],
        [pod for pod in running if short == pod.workload and namespace in ("", pod.namespace)],
        [pod for pod in running if name == f"{pod.workload}.{pod.namespace}"],
    )
    for found in named:
        if len({(pod.namespace, pod.workload) for pod in found}) > 1:
            several = sorted(f"{pod.namespace}/{pod.pod}" for pod in found)
            raise UsageError(
                f"There are several pods {name!r}.",
                next_step=f"Write one of {', '.join(several)}.",
            )
        if found:
            return found[0]
    return None


def find_client(mesh: Mesh, name: str) -> Pod | None:
    """Return the pod, or one of the workload, of this name; None for one outside the cluster.

    The latter is called ``outside``, or has an address that no pod has.
    """
    if name == OUTSIDE:
        return None
    pod = find_pod(mesh, name) or running_pod(mesh, name)
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
    namespace, _, service = name.partition("/")
    return by_address or ports_of(mesh, name) or ports_of(mesh, service, namespace)


def ports_of(mesh: Mesh, host: str, namespace: str = "") -> tuple[ServicePort, ...]:
    """Return the ports of the Service that a host stands for, as a pod of a namespace finds it.

    The domain of the cluster may be left out, and in the namespace of the pod more of the name.
    """
    endings = ["", f"svc.{CLUSTER_DOMAIN}", CLUSTER_DOMAIN]
    if namespace:
        endings.insert(1, f"{namespace}.svc.{CLUSTER_DOMAIN}")
    hosts = [f"{host}.{ending}".rstrip(".") for ending in endings]
    return next((ports for one in hosts if (ports := mesh.ports(one))), ())


def is_address(text: str) -> bool:
    """Whether a text is an IP address."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
