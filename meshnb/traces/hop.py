"""What a hop is: one place that a request or a connection comes by, and what becomes of it there.

Shared by the traces that follow something through the mesh: ``request``, ``ambient`` and
``connection``.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

#: It goes on; it goes on, but as something else or without something that was asked for; it ends
#: here; or what happens here cannot be told from what was recorded.
OUTCOMES = ("passed", "altered", "stopped", "undecided")


@dataclass(frozen=True, slots=True)
class Hop:
    """One place on the way, what decides there, and where that is written.

    ``row`` is the position in the table ``table``, None where no row says it. ``passed_over`` are
    the candidates before the one that decided, each with why it did not.
    """

    stage: str
    #: the proxy as pod.namespace, or who else decides: a pod, the network, Kubernetes
    proxy: str
    outcome: str
    says: str
    table: str = ""
    row: int | None = None
    #: the proxy's own name for what decides: a listener, a route, a cluster, a policy
    resource: str = ""
    #: the Kubernetes object that it was made from, such as ``AuthorizationPolicy shop/callers``
    object: str = ""
    passed_over: tuple[tuple[str, str], ...] = ()
    #: what must hold for the request to come by here at all; empty when it surely does
    when: str = ""
    #: since when the proxy has what decides here; None where that is not known
    since: datetime | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the hop as an object."""
        return {
            "stage": self.stage,
            "proxy": self.proxy,
            "outcome": self.outcome,
            "says": self.says,
            "table": self.table,
            "row": self.row,
            "resource": self.resource,
            "object": self.object,
            "passed_over": [{"name": name, "why": why} for name, why in self.passed_over],
            "when": self.when,
            "since": None if self.since is None else self.since.isoformat(),
        }
