"""What a trace through ztunnels is: the way, and what becomes of it at each pod."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from meshnb.traces.ends.places import Destination
from meshnb.traces.hop import Hop
from meshnb.traces.mesh import Pod


@dataclass(frozen=True, slots=True)
class Reached:
    """What becomes of the connection at one pod that may get it.

    ``outcome`` is ``admitted`` (it gets to the application), ``refused`` or ``undecided``.
    """

    namespace: str
    pod: str
    address: str
    outcome: str
    #: what the server's end takes the client for, a SPIFFE name; empty without an identity
    identity: str
    #: HBONE or TCP
    protocol: str
    #: the policy that decides, namespace/name
    policy: str
    #: what ztunnel logs at the server's end and at the client's, in its words; empty for nothing
    server_error: str
    client_error: str
    hops: tuple[Hop, ...]

    def to_json(self) -> dict[str, Any]:
        """Return it as an object, without the hops."""
        return {
            name: getattr(self, name)
            for name in (
                *("namespace", "pod", "address", "outcome", "identity", "protocol", "policy"),
                *("server_error", "client_error"),
            )
        }


@dataclass(frozen=True, slots=True)
class AmbientTrace:
    """A connection through the ambient mesh: the way that all go, then each pod that may get it."""

    client: str
    destination: str
    #: up to the choice of a pod
    shared: tuple[Hop, ...]
    #: the pods of which one is chosen; empty when the way ends before
    reached: tuple[Reached, ...] = ()

    @property
    def outcome(self) -> str:
        """``admitted``, ``refused`` or ``undecided``; the latter too when it depends on the pod."""
        if any(hop.outcome == "stopped" for hop in self.shared):
            return "refused"
        found = {one.outcome for one in self.reached}
        if any(hop.outcome == "undecided" for hop in self.shared) and found != {"refused"}:
            return "undecided"
        return found.pop() if len(found) == 1 else "undecided"

    @property
    def hops(self) -> tuple[Hop, ...]:
        """The whole way: to the pod where it ends, if it ends anywhere, else to the first one."""
        chosen = next(
            (one for one in self.reached if one.outcome == "refused"),
            next(iter(self.reached), None),
        )
        return self.shared + (chosen.hops if chosen else ())

    @property
    def broken(self) -> Hop | None:
        """The hop at which it ends, or else the first at which something that was asked is lost."""
        for outcome in ("stopped", "altered"):
            for hop in self.hops:
                if hop.outcome == outcome:
                    return hop
        return None

    @property
    def undecided(self) -> tuple[str, ...]:
        """Why something could not be decided, each reason once."""
        return tuple(dict.fromkeys(hop.says for hop in self.hops if hop.outcome == "undecided"))

    @property
    def says(self) -> str:
        """The whole in one sentence."""
        way = f"from {self.client} to {self.destination}"
        if self.broken is not None and self.broken.outcome == "stopped":
            return f"A connection {way} ends at {self.broken.stage}: {self.broken.says}."
        note = f" But {self.broken.stage}: {self.broken.says}." if self.broken else ""
        if self.outcome == "admitted":
            return f"A connection {way} gets to the application.{note}"
        reasons = [hop.says for hop in self.hops if hop.outcome == "undecided"]
        return f"Whether a connection {way} gets through cannot be decided: {reasons[0]}.{note}"

    def frame(self) -> pd.DataFrame:
        """Return one row per hop."""
        rows = [hop.to_json() for hop in self.hops]
        return pd.DataFrame(rows, columns=list(Hop("", "", "", "").to_json()))

    def to_json(self) -> dict[str, Any]:
        """Return the trace as an object."""
        return {
            "client": self.client,
            "destination": self.destination,
            "outcome": self.outcome,
            "says": self.says,
            "hops": [hop.to_json() for hop in self.hops],
            "reached": [one.to_json() for one in self.reached],
        }


@dataclass(slots=True)
class Way:
    """What is known of a connection on its way."""

    client: Pod | None
    destination: Destination
    hops: list[Hop] = field(default_factory=list)
    #: SPIFFE name without scheme that the client's end can show; empty for plain text
    identity: str = ""
    #: whether the client's end can open tunnels; None where that is not recorded
    tunnels: bool | None = False
    #: the ztunnel of the client's node, as pod.namespace; empty without one
    ztunnel: str = ""
    #: the network that the client is in, as its ztunnel says; empty for the only one
    network: str = ""

    def add(self, stage: str, proxy: str, outcome: str, says: str, **cited: Any) -> Hop:
        """Add a hop, and return it."""
        hop = Hop(stage, proxy, outcome, says, **cited)
        self.hops.append(hop)
        return hop
