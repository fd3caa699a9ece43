"""What the ztunnels of a mesh know, looked up: workloads, endpoints, certificates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from meshnb.tables import Facts
from meshnb.traces.mesh import Mesh, Pod, ServicePort, plain


@dataclass(frozen=True, slots=True)
class Target:
    """A pod that may get the connection: what Kubernetes and what ztunnel say of it."""

    pod: Pod | None
    workload: Mapping[str, Any]
    row: int | None
    address: str
    port: int


class Ztunnels:
    """The ztunnels of one mesh."""

    def __init__(self, facts: Facts, mesh: Mesh) -> None:
        """Read on which node each pod runs."""
        self._facts = facts
        self._mesh = mesh
        pods = facts["pods"]
        self._nodes = {
            (str(namespace), str(pod)): plain(node) or ""
            for namespace, pod, node in zip(
                pods["namespace"], pods["pod"], pods["node"], strict=True
            )
        }

    def node_of(self, pod: Pod) -> str:
        """Return the node that a pod runs on, empty for none."""
        return self._nodes.get((pod.namespace, pod.pod), "")

    def recorded(self, ztunnel: str) -> bool:
        """Whether a ztunnel, as pod.namespace, said what it holds."""
        return bool((self._facts["ztunnel_workloads"]["proxy"] == ztunnel).any())

    def of(self, pod: Pod) -> Pod | None:
        """Return the ztunnel that runs on a pod's node."""
        node = self.node_of(pod)
        for one in self._mesh.pods:
            if one.mesh == "ztunnel" and one.running and node and self.node_of(one) == node:
                return one
        return None

    def workload(self, ztunnel: str, address: str) -> tuple[Mapping[str, Any], int | None]:
        """Return what a ztunnel says of the workload at an address, and the row; None without."""
        workloads = self._facts["ztunnel_workloads"]
        own = workloads[workloads["proxy"] == ztunnel]
        for index, addresses in zip(own.index, own["address"], strict=True):
            if address and address in str(addresses).split(","):
                return _named(own.loc[index]), int(index)
        return {}, None

    def certificate_problem(self, ztunnel: str, identity: str) -> tuple[str, int | None]:
        """Return why a ztunnel has no usable certificate for an identity, empty if it has one.

        One that was not needed yet is not there, which is no problem.
        """
        held = self._facts["ztunnel_certificates"]
        own = held[
            (held["proxy"] == ztunnel)
            & (held["certificate_name"] == f"spiffe://{identity}")
            & (held["position"] == 0)
        ]
        for index, row in zip(own.index, own.to_dict("records"), strict=True):
            if plain(row["problem"]) is not None:
                return str(row["problem"]), int(index)
            if not row["valid_cert"]:
                return f"it ended at {row['not_after']}", int(index)
        return "", None

    def endpoints(
        self, ztunnel: str, service: ServicePort, ports: Mapping[str, Any]
    ) -> list[Target]:
        """Return the healthy endpoints of a Service; ``ports`` are as ztunnel has them."""
        workloads = self._facts["ztunnel_workloads"]
        host = f"{service.namespace}/{service.host}"
        mapped = ports.get(str(service.port))
        found = []
        own = workloads[workloads["proxy"] == ztunnel]
        for index, workload in zip(own.index, own.to_dict("records"), strict=True):
            if host not in (workload["services"] or ()) or workload["status"] != "Healthy":
                continue
            address = str(workload["address"]).partition(",")[0]
            pod = self._mesh.pod_at(address)
            # A port of 0 stands for a name, which each pod may give another number.
            port = mapped if isinstance(mapped, int) and mapped else target_port(service)
            found.append(Target(pod, _named(workload), int(index), address, port))
        return found


def target_port(service: ServicePort) -> int:
    """Return the port of the pods that a Service port leads to; its own where that is a name."""
    return int(service.target_port) if service.target_port.isdigit() else service.port or 0


def _named(row: Mapping[Any, Any] | pd.Series[Any]) -> dict[str, Any]:
    return {str(name): value for name, value in row.items()}
