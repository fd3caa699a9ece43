"""The mutual TLS that is in force on the ports of a pod, and the policies that set it."""

from __future__ import annotations

from collections.abc import Iterator

from meshnb.tables.base import mapping
from meshnb.traces.describe.base import Acting, SecuredPort
from meshnb.traces.describe.known import Known
from meshnb.traces.describe.ports import declared_ports, pod_port
from meshnb.traces.describe.words import listed, mismatch
from meshnb.traces.mesh import Pod
from meshnb.traces.rules import workload_labels


def secured_ports(known: Known, pod: Pod) -> Iterator[SecuredPort]:
    """Yield the mode of each port of a pod that is known, and that of every other one."""
    if pod.mesh not in ("sidecar", "ambient"):
        return
    document = known.document(pod)
    numbers = {port for port, container in declared_ports(document) if container != "istio-proxy"}
    for ports in known.behind(pod):
        numbers |= {n for one in ports if (n := pod_port(one, document)) is not None}
    for item in known.mesh.of("PeerAuthentication"):
        if item.namespace == pod.namespace:
            levels = mapping(item.spec, "portLevelMtls")
            numbers |= {int(port) for port in levels if port.isdecimal() and len(port) < 6}
    for number in [None, *sorted(numbers)]:
        mode, policy = known.mesh.mtls_mode(pod, number)
        yield SecuredPort(f"{pod.pod}.{pod.namespace}", number, mode, policy)


def authentication(known: Known, pod: Pod) -> Iterator[Acting]:
    """Yield the PeerAuthentications that set a mode for a pod, or could be thought to."""
    ports = list(secured_ports(known, pod))
    for item in known.mesh.of("PeerAuthentication"):
        root = item.namespace == known.mesh.root_namespace
        if not root and item.namespace != pod.namespace:
            continue
        labels = workload_labels(item)
        set_here = [one for one in ports if one.policy is item]
        if set_here:
            said = dict.fromkeys(
                f"{one.mode} on {'all other ports' if one.port is None else one.port}"
                for one in set_here
            )
            everywhere = len({one.mode for one in set_here}) == 1 and len(set_here) == len(ports)
            words = f"{set_here[0].mode} on every port" if everywhere else listed(said)
            yield Acting(item, acts=True, why=f"sets mutual TLS: {words}")
        elif not ports:
            why = (
                "a gateway's servers have the TLS settings of their Gateway"
                if pod.mesh in ("gateway", "waypoint")
                else "nothing in front of the pod could demand mutual TLS"
            )
            yield Acting(item, acts=False, why=why)
        elif labels and root:
            why = "in the root namespace a policy with a selector has no effect"
            yield Acting(item, acts=False, why=why)
        elif labels and not labels.items() <= pod.labels.items():
            yield Acting(item, acts=False, why=mismatch(labels, pod))
        else:
            winner = next((str(one.policy) for one in ports if one.policy is not None), "")
            why = f"{winner} comes before it" if winner else "it sets no mode"
            yield Acting(item, acts=False, why=why)
