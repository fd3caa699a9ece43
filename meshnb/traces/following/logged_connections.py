"""Which requests came by which connection, as access logs have it.

A connection keeps the filter chain that it began with. When a listener is changed, its connections
go on with the former one until they are drained: the first request after the change that comes by
a connection may still be treated as before.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from meshnb.tables import Facts
from meshnb.traces.mesh import MESH, plain
from meshnb.traces.peers import COLUMNS, Peers

#: The address that was asked for, and the client's, as a log has them.
Ends = tuple[str, str]


@dataclass(frozen=True, slots=True)
class LoggedConnections:
    """When requests came by each connection of each proxy, and by which each request came."""

    times: Mapping[tuple[str, Ends], tuple[datetime, ...]]
    #: by proxy and id of the request
    by_id: Mapping[tuple[str, str], tuple[tuple[Ends, datetime], ...]]
    proxies: frozenset[str]

    @classmethod
    def of(cls, facts: Facts) -> LoggedConnections:
        """Read the access logs of a source."""
        log = facts["access_log"]
        peers = Peers(facts, MESH.make(facts))
        names = (*COLUMNS, "start_time")
        times: dict[tuple[str, Ends], list[datetime]] = {}
        by_id: dict[tuple[str, str], list[tuple[Ends, datetime]]] = {}
        proxies: set[str] = set()
        for values in zip(*(log[name].tolist() for name in names), strict=True):
            line = dict(zip(names, map(plain, values), strict=True))
            proxy, request, time = str(line["proxy"]), line["request_id"], line["start_time"]
            proxies.add(proxy)
            if time is None:
                continue
            ends = (str(line["downstream_local_address"] or ""), peers.end(line))
            times.setdefault((proxy, ends), []).append(time)
            if request is not None:
                by_id.setdefault((proxy, str(request)), []).append((ends, time))
        return cls(
            {key: tuple(sorted(found)) for key, found in times.items()},
            {key: tuple(found) for key, found in by_id.items()},
            frozenset(proxies),
        )

    def first_after(self, proxy: str, ends: Ends, since: datetime, time: datetime) -> bool:
        """Whether a request is the first that came by its connection at or after a time.

        It may be where the log does not tell the connection: its client's port is not known.
        """
        if not ends[1] or ends[1].endswith(":0"):
            return True
        known = self.times.get((proxy, ends), ())
        at = bisect_left(known, since)
        return at >= len(known) or known[at] >= time

    def may_be_former(
        self, proxy: str, ends: Ends | None, request: str, since: datetime, time: datetime
    ) -> bool:
        """Whether a request may have come by a connection older than a change of the listener.

        ``ends`` are those of its connection; without them it is looked up by its id, and a proxy
        that logged no request of that id had none.
        """
        if ends is not None:
            return self.first_after(proxy, ends, since, time)
        if proxy not in self.proxies:
            return True
        came = self.by_id.get((proxy, request), ())
        return any(self.first_after(proxy, one, since, when) for one, when in came)
