"""What the sidecar of a pod stands in front of: which connections in and out pass it.

The annotations ``traffic.sidecar.istio.io/…`` (https://istio.io/latest/docs/reference/config/annotations/)
leave ports and addresses out. Such connections go past the proxy, in plain text and unseen.
"""

from __future__ import annotations

import ipaddress

from meshnb.traces.mesh import Pod

_PREFIX = "traffic.sidecar.istio.io/"


def captures_inbound(pod: Pod, port: int | None) -> bool:
    """Whether connections to a port of a pod pass its sidecar."""
    if pod.mesh != "sidecar" or _listed(pod, "excludeInboundPorts", port):
        return False
    included = pod.annotations.get(f"{_PREFIX}includeInboundPorts")
    return included is None or _named(included, port)


def captures_outbound(pod: Pod, address: str, port: int | None) -> bool:
    """Whether a pod's connections to an address and port pass its sidecar."""
    return pod.mesh == "sidecar" and not bypass(pod, address, port)


def bypass(pod: Pod, address: str, port: int | None) -> str:
    """Return the annotation that lets a pod's connections go past its sidecar; empty without."""
    if _listed(pod, "excludeOutboundPorts", port):
        return f"{_PREFIX}excludeOutboundPorts"
    if _within(address, pod.annotations.get(f"{_PREFIX}excludeOutboundIPRanges", "")):
        return f"{_PREFIX}excludeOutboundIPRanges"
    ranges = pod.annotations.get(f"{_PREFIX}includeOutboundIPRanges", "*")
    ports = pod.annotations.get(f"{_PREFIX}includeOutboundPorts", "")
    if ranges.strip() != "*" and not _within(address, ranges) and not _named(ports, port):
        return f"{_PREFIX}includeOutboundIPRanges"
    return ""


def _listed(pod: Pod, name: str, port: int | None) -> bool:
    return _named(pod.annotations.get(f"{_PREFIX}{name}", ""), port)


def _named(text: str, port: int | None) -> bool:
    entries = [entry.strip() for entry in text.split(",")]
    return "*" in entries or str(port) in entries


def _within(address: str, text: str) -> bool:
    for entry in text.split(","):
        try:
            if ipaddress.ip_address(address) in ipaddress.ip_network(entry.strip(), strict=False):
                return True
        except ValueError:
            continue
    return False
