"""How far a request has come in a proxy, and how it may end there.

A way is what a request has met so far: on which conditions it came here, by which route, since when
all of that is as it is. Ends are collected beside the hops.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from meshnb.traces.envoy.configs import latest
from meshnb.traces.envoy.filter_chains import Connection
from meshnb.traces.envoy.http_filters import Answer
from meshnb.traces.envoy.matchers import Truth, Undecided
from meshnb.traces.hop import Hop
from meshnb.traces.request import Outcome, Request


@dataclass(frozen=True, slots=True)
class Way:
    """How far a request has come: on which condition, by which route, since when it is so."""

    when: str = ""
    #: why it is not certain that it goes this way; chance does not count
    because: tuple[str, ...] = ()
    route: str | None = None
    cluster: str | None = None
    since: datetime | None = None
    routed_since: datetime | None = None
    #: flags that the log has in any case, such as for an injected delay
    flags: frozenset[str] = frozenset()
    listeners: tuple[tuple[str, datetime], ...] = ()

    def on(self, condition: str) -> Way:
        """Return the way, if a condition holds."""
        return replace(self, when=f"{self.when} and {condition}" if self.when else condition)

    def doubted(self, reason: str) -> Way:
        """Return the way, with one more reason why it is not certain."""
        return replace(self, because=(*self.because, reason))

    def since_also(self, since: datetime | None, *, routing: bool = False) -> Way:
        """Return the way, of which something more has been as it is since a time."""
        return replace(
            self,
            since=latest((self.since, since)),
            routed_since=latest((self.routed_since, since)) if routing else self.routed_since,
        )


@dataclass(slots=True)
class Passed:
    """What becomes of a request in one proxy and behind it."""

    hops: list[Hop] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)

    #: whether the request is gRPC: then an answer of the proxy has status 200 and another inside
    grpc: Truth = False

    def end(self, way: Way, by: str, answer: Answer, **more: Any) -> None:
        """Note an end of the request that a proxy makes."""
        if self.grpc is not False and answer.code:
            inside = replace(answer, code=200)
            if isinstance(self.grpc, Undecided) and answer.code != 200:
                self._end(way, by, answer, more)
                way = way.doubted(self.grpc.reason)
            answer = inside
        self._end(way, by, answer, more)

    def _end(self, way: Way, by: str, answer: Answer, more: Mapping[str, Any]) -> None:
        self.outcomes.append(
            Outcome(
                by=by,
                route=way.route,
                cluster=way.cluster,
                code=answer.code,
                flags=answer.flags | way.flags,
                details=answer.details,
                routed_since=way.routed_since,
                since=way.since,
                listeners=way.listeners,
                **{"because": "; ".join(way.because), **more},
            )
        )

    def lose(self, way: Way, reason: str, **more: Any) -> None:
        """Note that it cannot be said what becomes of the request from here on."""
        self.outcomes.append(
            Outcome(
                by="",
                route=way.route,
                cluster=way.cluster,
                because=reason,
                routed_since=way.routed_since,
                since=way.since,
                listeners=way.listeners,
                **more,
            )
        )


@dataclass(frozen=True, slots=True)
class Sent:
    """What a proxy sends on to a cluster: the request as it is then, and by which route."""

    request: Request
    connection: Connection
    cluster: str
    route: Mapping[str, Any]
    #: the virtual host, which may have the retry policy
    host: Mapping[str, Any]
    manager: Mapping[str, Any]
