"""What a trace of what is there now says of a request of before.

Proxies note since when they have what they have. A request of before that met something else, and
so may one that came by a connection which is older than a change of its listener: it goes on with
the former one. Of both it is said that it is not known, instead of what is there now.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from functools import cached_property

from meshnb.tables import Facts
from meshnb.traces.envoy.configs import ProxyConfigs
from meshnb.traces.following.logged_connections import LoggedConnections
from meshnb.traces.hop import Hop
from meshnb.traces.request import Outcome, Request, RequestTrace


class Hindsight:
    """The traces of one source, seen from the time of a request."""

    def __init__(self, facts: Facts, configs: ProxyConfigs) -> None:
        """Take what proxies hold; access logs are read when they are needed."""
        self._facts = facts
        self._configs = configs

    @cached_property
    def _logged(self) -> LoggedConnections:
        return LoggedConnections.of(self._facts)

    def at(self, trace: RequestTrace, request: Request) -> RequestTrace:
        """Return the trace of a request, as far as what it met is still there."""
        time = request.time
        if time is None:
            return replace(trace, request=request)
        hops = tuple(
            _outdated(hop) if hop.since is not None and time < hop.since else hop
            for hop in trace.hops
        )
        outcomes = [self._known_at(outcome, request, time) for outcome in trace.outcomes]
        reasons = [*trace.undecided]
        reasons += [one.because for one in outcomes if not one.known and one.because]
        return RequestTrace(
            request, hops, tuple(dict.fromkeys(outcomes)), tuple(dict.fromkeys(reasons))
        )

    def _known_at(self, outcome: Outcome, request: Request, time: datetime) -> Outcome:
        """Return an outcome as far as it can be known of a request at a time."""
        if outcome.routed_since is not None and time < outcome.routed_since:
            return Outcome(by="", because="the configuration was changed since")
        former = [
            proxy
            for proxy, since in outcome.listeners
            if self._may_be_former(proxy, since, request, time)
        ]
        if request.proxy in former:
            why = "its connection may be older than the listener, and go by the former one"
            return Outcome(by="", because=why)
        why = "what it was sent to, or who served it, was changed since"
        if former:
            why = f"its connection to {former[0]} may be older than the listener there"
        if former or (outcome.since is not None and time < outcome.since):
            return replace(
                outcome, by="", because=why, code=None, flags=None, details=None, endpoint=""
            )
        return outcome

    def _may_be_former(self, proxy: str, since: datetime, request: Request, time: datetime) -> bool:
        config = self._configs.of(proxy)
        if config is None or not since <= time < since + config.drain.time:
            return False
        if not request.method and proxy == request.proxy:
            return False  # the time of a line without a request is that of its connection
        ends = request.ends if proxy == request.proxy else None
        if not config.drain.at_once:
            return True
        return self._logged.may_be_former(proxy, ends, request.id, since, time)


def _outdated(hop: Hop) -> Hop:
    since = "" if hop.since is None else f"{hop.since:%H:%M:%S}"
    says = f"Cannot decide: this was changed at {since}, after the request. Now: {hop.says}"
    return replace(hop, outcome="undecided", says=says)
