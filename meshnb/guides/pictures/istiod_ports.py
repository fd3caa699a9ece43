"""The picture of istiod's ports: who uses which for what, and which of them answered."""

from __future__ import annotations

from meshnb.guides.pictures.base import Port, PortsMap, State
from meshnb.tables import Facts
from meshnb.traces.mesh import plain

#: Who connects to a port (Istio: ops/deployment/application-requirements, ports used by Istio).
_USERS = {
    8080: "the kubelet, to see whether istiod is ready",
    9876: "a person, from within the pod",
    15010: "proxies that speak without TLS",
    15012: "every proxy",
    15014: "Prometheus, istioctl and these notebooks",
    15017: "the Kubernetes API server",
}


def istiod_ports(facts: Facts) -> PortsMap | None:
    """Return the map of all ports of all istiods; None when there was no istiod to be asked."""
    table = facts["istiod_ports"]
    if not len(table):
        return None
    ports = []
    for row in table.sort_values(["istiod", "port"]).to_dict("records"):
        answers = plain(row["answers"])
        ports.append(
            Port(
                istiod=str(row["istiod"]),
                port=int(row["port"]),
                used_by=_USERS.get(int(row["port"]), "nobody that Istio knows of"),
                serves=str(plain(row["serves"]) or ""),
                protocol=str(plain(row["protocol"]) or ""),
                state=State.UNKNOWN if answers is None else State.FINE if answers else State.BROKEN,
                how="never asked" if answers is None else str(plain(row["how"]) or ""),
            )
        )
    count = len({port.istiod for port in ports})
    return PortsMap(f"The ports of {count} istiod{'s' if count > 1 else ''}", tuple(ports))
