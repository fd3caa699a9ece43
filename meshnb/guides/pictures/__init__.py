"""Pictures as values, one maker per module. How they look is for others to say."""

from __future__ import annotations

from meshnb.guides.pictures.base import (
    Cell,
    Chain,
    Edge,
    Journey,
    Link,
    MeshGraph,
    Node,
    Picture,
    Port,
    PortsMap,
    Span,
    State,
    Stay,
    SyncMap,
    TimeLine,
    age,
    worst,
)
from meshnb.guides.pictures.certificates import certificates
from meshnb.guides.pictures.change import change
from meshnb.guides.pictures.istiod_ports import istiod_ports
from meshnb.guides.pictures.mesh_graph import mesh_graph
from meshnb.guides.pictures.request import request
from meshnb.guides.pictures.sync import sync

__all__ = [
    "Cell",
    "Chain",
    "Edge",
    "Journey",
    "Link",
    "MeshGraph",
    "Node",
    "Picture",
    "Port",
    "PortsMap",
    "Span",
    "State",
    "Stay",
    "SyncMap",
    "TimeLine",
    "age",
    "certificates",
    "change",
    "istiod_ports",
    "mesh_graph",
    "request",
    "sync",
    "worst",
]
