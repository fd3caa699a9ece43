"""Which connections Kubernetes' NetworkPolicies admit to a pod.

The rules are those of https://kubernetes.io/docs/concepts/services-networking/network-policies/:
a pod that no policy selects takes everything; else some policy must admit the connection. Whether
the cluster's network obeys the policies at all stands in no object.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from meshnb.tables import Facts
from meshnb.tables.base import Json, dig, items, mapping
from meshnb.tables.selectors import selects
from meshnb.traces.mesh import Mesh, Pod

#: Where a server's ztunnel, sidecar or waypoint takes the tunnels of the mesh.
HBONE = 15008


@dataclass(frozen=True, slots=True)
class Admission:
    """Whether a port of a pod may be reached. ``admitted`` is None where it cannot be told."""

    admitted: bool | None
    #: rows of the table ``network_policies`` that select the pod
    rows: tuple[int, ...]
    #: the policies, as namespace/name: of those rows, or the one that admits
    policies: tuple[str, ...]


def admitted(
    facts: Facts, mesh: Mesh, server: Pod, port: int, client: Pod | None = None
) -> Admission:
    """Return whether policies let a client, or anybody when it is not known, reach a pod's port.

    For a client that is not known, what only some clients may do is None.
    """
    return _judged(facts, mesh, "ingress", server, client, _Port(port, server))


def _port_named(rule: Json, port: int, server: Pod | None) -> bool | None:
    """Whether a rule is for a port; None for a port's name where the server is not known."""
    unsure = False
    for entry in items(rule, "ports"):
        if dig(entry, "protocol") not in (None, "TCP"):
            continue
        first, last = dig(entry, "port"), dig(entry, "endPort")
        if first is None or first == port:
            return True
        if isinstance(first, int) and isinstance(last, int) and first <= port <= last:
            return True
        if isinstance(first, str):
            if server is None:
                unsure = True
            elif server.named_ports.get(first) == port:
                return True
    if not items(rule, "ports"):
        return True
    return None if unsure else False


def _peer_is(peer: Json, namespace: str, client: Pod | None, mesh: Mesh) -> bool | None:
    """Whether a peer of a rule is the client; None where that depends on who it is."""
    if block := mapping(peer, "ipBlock"):
        if client is None or not client.address:
            return None
        return _within(client.address, block)
    pods, namespaces = dig(peer, "podSelector"), dig(peer, "namespaceSelector")
    if client is None:
        return None
    if namespaces is None:
        if client.namespace != namespace:
            return False
    elif not selects(namespaces, dict(mesh.namespaces.get(client.namespace, {}))):
        return False
    return pods is None or selects(pods, dict(client.labels))


def _within(address: str, block: Mapping[str, Any]) -> bool | None:
    try:
        own = ipaddress.ip_address(address)
        inside = own in ipaddress.ip_network(str(block.get("cidr")), strict=False)
        left_out = [ipaddress.ip_network(str(one), strict=False) for one in items(block, "except")]
    except ValueError:
        return None
    return inside and not any(own in one for one in left_out)


def let_out(facts: Facts, mesh: Mesh, client: Pod, server: Pod | None, port: int) -> Admission:
    """Return whether policies let a pod call a port of another one, or of a host outside."""
    return _judged(facts, mesh, "egress", client, server, _Port(port, server))


#: The field of a rule that names who is at the other end.
_PEERS = {"ingress": "from", "egress": "to"}


@dataclass(frozen=True, slots=True)
class _Port:
    number: int
    #: the pod that has it, by whose containers a name of a port is known
    server: Pod | None


def _judged(
    facts: Facts, mesh: Mesh, direction: str, own: Pod, peer: Pod | None, port: _Port
) -> Admission:
    """Return what the policies that select a pod say of a connection with a peer."""
    selecting: list[int] = []
    names: list[str] = []
    unsure = False
    frame = facts["network_policies"]
    for index, (namespace, name, types, spec) in enumerate(
        zip(frame["namespace"], frame["policy"], frame["types"], frame["spec"], strict=True)
    ):
        chosen = selects(mapping(spec, "podSelector"), dict(own.labels))
        about = direction.title() in types or (direction == "ingress" and not types)
        if namespace != own.namespace or not chosen or not about:
            continue
        selecting.append(index)
        names.append(f"{namespace}/{name}")
        for rule in items(spec, direction):
            named = _port_named(rule, port.number, port.server)
            if named is False:
                continue
            peers = items(rule, _PEERS[direction])
            fits = [_peer_is(one, str(namespace), peer, mesh) for one in peers]
            if named and (not peers or True in fits):
                return Admission(admitted=True, rows=(index,), policies=(names[-1],))
            unsure = unsure or not peers or not {True, None}.isdisjoint(fits)
    if not selecting:
        return Admission(admitted=True, rows=(), policies=())
    return Admission(None if unsure else False, tuple(selecting), tuple(names))


def disobeyed(facts: Facts, admission: Admission, pod: Pod) -> bool:
    """Whether tunnels to a pod were opened although policies do not admit them."""
    log, policies = facts["ztunnel_access_log"], facts["network_policies"]
    created = policies.loc[list(admission.rows), "created"].max()
    begun = log["time"] - pd.to_timedelta(log["duration_ms"].fillna(0.0), unit="ms")
    worked = log["error"].isna() & (log["destination_pod"] == pod.pod) & (begun > created)
    return bool((worked & log["destination_hbone_address"].notna()).any())
