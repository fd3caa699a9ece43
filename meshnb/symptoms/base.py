"""What a symptom is: something that users of the mesh, or the mesh itself, would complain about."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime

from meshnb.tables import Facts
from meshnb.traces.failures import Failure, Failures
from meshnb.traces.mesh import Mesh

#: Symptoms weigh half as much for each such stretch of time since they were last seen, in seconds.
HALF_LIFE_S = 120.0
#: The tables of what proxies count.
COUNTERS = ("endpoints", "request_metrics", "proxy_counters")
#: What happens so often is no accident, such as a port scan or a restart, any more.
REPEATED = 3


@dataclass(frozen=True, slots=True)
class Symptom:
    """One thing that goes wrong, with everything that shows it.

    ``kind`` is ``request`` (an HTTP request failed), ``connection`` (a bare connection failed),
    ``pod`` (a pod is not ready or was not made), ``sync`` (a proxy is out of step with istiod),
    ``control plane`` (istiod itself does not answer) or ``state`` (something is in a state that
    nobody could log, such as a port that nobody opens). ``rows`` are the labels of the rows of
    ``table`` that show it. The remaining fields are empty where they do not apply.
    """

    kind: str
    message: str
    count: int
    table: str
    rows: tuple[int, ...]
    first_seen: datetime | None = None
    last_seen: datetime | None = None
    #: count, with old ones counting less
    weight: float = 0.0
    #: "client", "server" or "gateway": whose proxy reports it; empty when no proxy does, or when
    #: its log does not tell whether it was asked or has asked
    side: str = ""
    code: int = 0
    flags: frozenset[str] = frozenset()
    details: str = ""
    upstream_failure: str = ""
    #: the host that was asked, in full where a Service has it
    host: str = ""
    port: int | None = None
    cluster: str = ""
    route_name: str = ""
    #: namespace and name of the workload at which it shows
    workload: tuple[str, str] = ("", "")
    #: the proxies or pods that report it, as pod.namespace
    reporters: tuple[str, ...] = ()
    #: the proxies in front that saw the consequence
    callers: tuple[str, ...] = ()
    failures: tuple[Failure, ...] = ()
    #: whether the same request had succeeded earlier in the same logs, for anybody
    worked_before: bool = False
    #: when the same request had succeeded last before it failed first, for anybody
    worked_until: datetime | None = None
    #: whether it had succeeded for one of the callers for whom it fails
    worked_for_caller: bool = False
    #: whether the same request has succeeded again since it failed last, for anybody
    works_again: bool = False
    #: whether it failed once or twice, and the same request fails in another way since
    fails_otherwise: bool = False
    #: how many of the same succeeded, where a counter tells; see is_counted
    succeeded: int = 0
    #: since when all of it works again, for the same callers; see symptoms/past.py
    over_since: datetime | None = None
    id: str = ""

    def __post_init__(self) -> None:
        """Keep the message in one line."""
        object.__setattr__(self, "message", one_line(self.message))

    @property
    def is_counted(self) -> bool:
        """Whether proxies have only counted it, without a log of when, which and why."""
        return self.table in COUNTERS

    @property
    def lacks_reason(self) -> bool:
        """Whether no connection could be made, and no log or counter tells why."""
        untold = not self.upstream_failure and "{" not in self.details
        return "UF" in self.flags and untold

    @property
    def is_over(self) -> bool:
        """Whether it was an accident: it happened once or twice, and the same works again.

        Or it fails again and again for another reason since, which is another symptom.
        """
        return self.count < REPEATED and (self.works_again or self.fails_otherwise)


@dataclass(frozen=True, slots=True)
class Symptoms:
    """All symptoms of a source, the heaviest first; those that are over stand apart."""

    found: tuple[Symptom, ...] = field(default_factory=tuple)
    #: what works again since, so that nothing is the cause of it now; the latest first
    past: tuple[Symptom, ...] = ()

    def __iter__(self) -> Iterator[Symptom]:
        """Yield each symptom, the heaviest first."""
        return iter(self.found)

    def __len__(self) -> int:
        """Return the number of symptoms."""
        return len(self.found)


def one_line(text: str) -> str:
    r"""Return a text, which may come from a cluster, as one line without hidden characters.

    White space of any kind becomes one space; what a screen would obey or hide instead of showing
    it, such as an escape sequence, is spelled out, such as ``\x1b``.
    """
    return "".join(
        character if character.isprintable() else ascii(character)[1:-1]
        for character in " ".join(text.split())
    )


Reader = Callable[[Facts, Mesh, Failures], Iterable[Symptom]]


def weight_of(times: Iterable[datetime], now: datetime) -> float:
    """Return how much failures at these times weigh: 1 each, less the longer ago."""
    ages = [max((now - time).total_seconds(), 0.0) for time in times]
    return sum(math.pow(0.5, age / HALF_LIFE_S) for age in ages)
