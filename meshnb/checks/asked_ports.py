"""Which ports of Services failed requests were for, and what else was served there."""

from __future__ import annotations

from meshnb.checks.served import served_by, settled
from meshnb.symptoms import Symptom
from meshnb.symptoms.requests import split_address
from meshnb.tables import Facts
from meshnb.traces.mesh import Mesh, Pod, ServicePort


def pods_and_ports(symptom: Symptom, mesh: Mesh) -> tuple[list[Pod], set[int | None]]:
    """Return the pods whose proxies report a symptom, and the ports that were asked for there."""
    ports = {split_address(failure.local_address)[1] for failure in symptom.failures}
    return mesh.pods_of(symptom.reporters), ports


def asked_ports(symptom: Symptom, mesh: Mesh) -> list[ServicePort]:
    """Return the Service ports that failed requests were for, at whichever end they failed."""
    pods, ports = pods_and_ports(symptom, mesh)
    if symptom.side == "server":
        return [
            port
            for port in mesh.services
            if mesh.target_port(port) in ports and any(pod in pods for pod in mesh.selected(port))
        ]
    known = [port for port in mesh.ports(symptom.host) if port.port == symptom.port]
    addresses = {split_address(failure.local_address) for failure in symptom.failures}
    found = (mesh.service_at(address, port) for address, port in sorted(addresses, key=str))
    return known or [port for port in found if port is not None]


def served_there(symptom: Symptom, facts: Facts, mesh: Mesh) -> int:
    """Return how many requests were served at the ports of a symptom, before or after it."""
    _, ports = pods_and_ports(symptom, mesh)
    rows = served_by(facts, symptom.reporters)
    rows = rows[rows["method"].notna()]
    asked = rows["downstream_local_address"].fillna("").map(lambda one: split_address(str(one))[1])
    return int(asked.isin(list(ports)).sum())


def goes_on_at_port(symptom: Symptom, facts: Facts, mesh: Mesh) -> bool:
    """Whether other requests to the same port were served while these failed."""
    rows = served_by(facts, symptom.reporters, settled(symptom))
    rows = rows[rows["method"].notna() & (rows["response_code"] < 400)]
    if symptom.side == "server":
        _, ports = pods_and_ports(symptom, mesh)
        column = rows["downstream_local_address"].fillna("")
        return bool(column.map(lambda one: split_address(str(one))[1]).isin(list(ports)).any())
    return bool((rows["cluster"] == symptom.cluster).fillna(False).any())


def services_of(pods: list[Pod], mesh: Mesh) -> list[ServicePort]:
    """Return the Service ports whose selector matches any of these pods."""
    return [port for port in mesh.services if any(pod in pods for pod in mesh.selected(port))]
