"""What a trace of a connection is: two ends, the steps between them, and a verdict."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd

from meshnb.traces.ends.transport import Held
from meshnb.traces.hop import Hop
from meshnb.traces.mesh import Pod

WORKS, FAILS, UNDECIDED = "works", "fails", "undecided"


@dataclass(frozen=True, slots=True)
class End:
    """One end: who it is, what it speaks or takes, what it shows, and what its log says."""

    name: str
    #: the proxy as pod.namespace; empty without one
    proxy: str
    #: sidecar, gateway, waypoint, ambient, none (a pod without a proxy), outside or external
    part: str
    #: what it speaks (client) or takes (server), in words; empty where that is not known
    speaks: str = ""
    own: Held | None = None
    roots: Held | None = None
    #: the objects that led there, such as ``DestinationRule shop/cart``
    objects: tuple[str, ...] = ()
    #: what its access log has of such a connection; empty for no line
    log: str = ""
    flags: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the end as an object."""
        return {
            "name": self.name,
            "proxy": self.proxy,
            "part": self.part,
            "speaks": self.speaks,
            "certificate": self.own.to_json() if self.own else None,
            "trusts": self.roots.to_json() if self.roots else None,
            "objects": list(self.objects),
            "log": self.log,
            "flags": self.flags,
        }


@dataclass(frozen=True, slots=True)
class ConnectionTrace:
    """A connection, its two ends, and whether it comes to be.

    ``verdict`` is works, fails or undecided; ``fault`` is client, server, none or unknown: whose
    settings or certificate have to be mended. ``endpoints`` are all addresses that the client may
    choose, each with its verdict; the trace is that of one for which it fails, if there is one.
    """

    client: End
    server: End
    steps: tuple[Hop, ...]
    verdict: str
    fault: str
    says: str
    endpoints: tuple[tuple[str, str], ...] = ()

    def frame(self) -> pd.DataFrame:
        """Return one row per step."""
        return pd.DataFrame(
            [step.to_json() for step in self.steps], columns=list(Hop("", "", "", "").to_json())
        )

    def to_json(self) -> dict[str, Any]:
        """Return the trace as an object."""
        return {
            "client": self.client.to_json(),
            "server": self.server.to_json(),
            "steps": [step.to_json() for step in self.steps],
            "verdict": self.verdict,
            "fault": self.fault,
            "says": self.says,
            "endpoints": [{"endpoint": name, "verdict": said} for name, said in self.endpoints],
        }


@dataclass(slots=True)
class Draft:
    """A trace in the making."""

    client: End
    server: End
    steps: list[Hop]
    #: whether the client's proxy carries bytes that it does not read
    passed_on: bool = False

    def add(self, stage: str, proxy: str, outcome: str, says: str, **cited: Any) -> None:
        """Add a step; ``cited`` are the further fields of a hop."""
        self.steps.append(Hop(stage, proxy, outcome, says, **cited))

    def done(self, verdict: str, fault: str, why: str) -> ConnectionTrace:
        """Return the trace with its verdict, and the reason as one sentence."""
        ends = f"from {self.client.name} to {self.server.name}"
        heads = {
            WORKS: f"The connection {ends} works: {why}.",
            FAILS: f"The connection {ends} fails: {why}.",
            UNDECIDED: f"Whether the connection {ends} works cannot be decided: {why}.",
        }
        steps = tuple(self.steps)
        return ConnectionTrace(self.client, self.server, steps, verdict, fault, heads[verdict])


def pod_title(pod: Pod) -> str:
    """Return a pod as pod.namespace, as proxies are called."""
    return f"{pod.pod}.{pod.namespace}"
