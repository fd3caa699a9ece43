"""Which proxies get no configuration, what they say of it, and what goes wrong by it.

No checks of its own: those of synchronisation and of the way to istiod ask it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from meshnb.symptoms import Symptom, Symptoms
from meshnb.symptoms.base import one_line
from meshnb.tables import Facts
from meshnb.traces.mesh import Mesh, Pod

#: How the agent, Envoy and gRPC say what kept a proxy from istiod, the more telling first.
_SAYS: Mapping[str, re.Pattern[str]] = {
    "large": re.compile(r"received message larger than max"),
    "name": re.compile(r"no such host|server misbehaving|Temporary failure in name resolution"),
    "trust": re.compile(r"x509:|authentication handshake failed|tls: (?:bad|unknown) certificate"),
    "token": re.compile(r"Unauthenticated|authentication failure|request authenticate failure"),
    "identity": re.compile(r"PermissionDenied|authorization failed: no identities"),
    "busy": re.compile(
        r"server warmup not complete|request rate limit exceeded|RESOURCE_EXHAUSTED"
    ),
}
#: What else a line about istiod has in it; the agent signs certificates with the same server.
_ABOUT_ISTIOD = re.compile(
    r"15012|gRPC config (?:stream|for)|xds|istiod|upstream|sign|citadel", re.IGNORECASE
)

#: A connection that is refused, or runs into nothing.
_NO_CONNECTION = re.compile(r"connection (?:refused|reset|timed out)|i/o timeout|no route to host")


@dataclass(frozen=True, slots=True)
class Complaint:
    """What a proxy without configuration says of it: the kind, its last words, and the rows."""

    kind: str
    said: str
    rows: tuple[int, ...]


def cut_off_proxies(mesh: Mesh, proxy_status: pd.DataFrame, facts: Facts) -> list[Pod]:
    """Return the pods whose proxy is not ready, or is connected to no istiod that was asked."""
    connected = set(proxy_status["proxy"])
    serving = {pod.pod for pod in mesh.pods if pod.mesh == "istiod" and pod.ready}
    told = bool(connected) and serving <= set(proxy_status["istiod"])
    containers = facts["containers"]
    waiting = containers.loc[
        (containers["container"] == "istio-proxy")
        & (containers["ready"] == False).fillna(False).astype(bool),  # noqa: E712  NA is not False
        ["namespace", "pod"],
    ]
    unready = set(zip(waiting["namespace"], waiting["pod"], strict=True))
    return [
        pod
        for pod in mesh.pods
        if pod.proxy
        and pod.running
        and ((pod.namespace, pod.pod) in unready or (told and pod.proxy not in connected))
    ]


def complaint(pod: Pod, proxy_log: pd.DataFrame) -> Complaint | None:
    """Return what keeps a proxy from istiod in its own last words; None when it does not say."""
    own = proxy_log[
        (proxy_log["proxy"] == pod.proxy).fillna(False).astype(bool)
        & proxy_log["level"].isin(["warn", "warning", "error", "critical"]).astype(bool)
        & proxy_log["message"].str.contains(_ABOUT_ISTIOD).fillna(False).astype(bool)
    ]
    for index, message in reversed(list(zip(own.index.tolist(), own["message"], strict=True))):
        for kind, pattern in _SAYS.items():
            if pattern.search(message):
                same = own.index[own["message"].str.contains(pattern).fillna(False).astype(bool)]
                return Complaint(kind, one_line(message).rstrip("."), (*same[-3:-1], index))
        if _NO_CONNECTION.search(message):
            break  # by now it is something else than what it said before
    return None


def waiting_for(pods: list[Pod], mesh: Mesh, symptoms: Symptoms) -> list[Symptom]:
    """Return what goes wrong because the proxies of these pods are not ready or go stale."""
    proxies = {pod.proxy for pod in pods}
    workloads = {(pod.namespace, pod.workload) for pod in pods if not pod.ready}
    hosts = {
        port.host
        for port in mesh.services
        if any(pod in pods for pod in mesh.selected(port))
        and not any(pod.ready for pod in mesh.selected(port))
    }
    return [
        s
        for s in symptoms
        if (s.kind == "pod" and s.table == "pods" and s.workload in workloads)
        or ("DISCONNECTED" in s.flags and bool(proxies & set(s.reporters)))
        or (s.host in hosts and s.side != "server" and bool({"UH", "UF"} & s.flags))
    ]
