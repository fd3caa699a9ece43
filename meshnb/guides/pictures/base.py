"""What a picture is: nodes, edges, cells and states as values. How it looks is for others to say.

Each picture also says in words what it shows (``lines``), for those who see none.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from enum import Enum


class State(Enum):
    """How a thing is. Each has a sign and a word, so that no colour has to carry the meaning."""

    FINE = ("✓", "fine")
    BROKEN = ("✗", "broken")
    ODD = ("!", "odd")
    UNKNOWN = ("?", "unknown")
    #: it comes after something broken, and nobody got there
    UNREACHED = ("·", "not reached")

    @property
    def sign(self) -> str:
        """One character."""
        return self.value[0]

    @property
    def word(self) -> str:
        """The state in a word."""
        return self.value[1]


def worst(states: Iterable[State]) -> State:
    """Return the state that most needs attention; fine when there is none."""
    order = (State.BROKEN, State.ODD, State.UNKNOWN, State.FINE, State.UNREACHED)
    return min(states, key=order.index, default=State.FINE)


@dataclass(frozen=True, slots=True)
class Node:
    """One caller or destination: a Service with its workloads, a workload, or outside."""

    name: str
    namespace: str
    #: service, workload, gateway or outside
    kind: str
    #: the workloads behind a Service
    detail: str = ""
    state: State = State.FINE
    #: why it is as it is
    note: str = ""


@dataclass(frozen=True, slots=True)
class Edge:
    """Requests and connections from one node to another, by their places in the list of nodes."""

    source: int
    target: int
    count: int
    failed: int
    state: State = State.FINE
    #: why it is as it is
    note: str = ""


@dataclass(frozen=True, slots=True)
class MeshGraph:
    """Who called whom, and where calls failed."""

    title: str
    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    #: how many nodes there are altogether
    of: int

    def lines(self) -> Iterator[str]:
        """Yield an edge per line, the broken ones first, then the nodes with a note."""
        for edge in sorted(self.edges, key=lambda edge: (edge.state is State.FINE, -edge.failed)):
            names = f"{self.nodes[edge.source].name} → {self.nodes[edge.target].name}"
            note = f": {edge.note}" if edge.note else ""
            yield f"{edge.state.sign} {names}, {edge.failed} of {edge.count} failed{note}"
        for node in self.nodes:
            if node.note:
                yield f"{node.state.sign} {node.name}: {node.note}"


@dataclass(frozen=True, slots=True)
class Port:
    """One port of an istiod pod: who uses it for what, and how it answered."""

    istiod: str
    port: int
    used_by: str
    serves: str
    protocol: str
    state: State
    how: str


@dataclass(frozen=True, slots=True)
class PortsMap:
    """The ports of each istiod."""

    title: str
    ports: tuple[Port, ...]

    def lines(self) -> Iterator[str]:
        """Yield a port per line."""
        for port in self.ports:
            yield (
                f"{port.state.sign} {port.istiod}:{port.port} {port.protocol}, {port.serves}, "
                f"used by {port.used_by}: {port.how}"
            )


@dataclass(frozen=True, slots=True)
class Cell:
    """How far one proxy is with one kind of configuration."""

    state: State
    word: str
    age: str


@dataclass(frozen=True, slots=True)
class SyncMap:
    """Proxies by kinds of configuration, the proxies that are out of step first."""

    title: str
    kinds: tuple[str, ...]
    #: each proxy with a cell per kind
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]
    #: how many proxies there are altogether
    of: int

    def lines(self) -> Iterator[str]:
        """Yield a proxy per line."""
        for proxy, cells in self.rows:
            told = [
                f"{kind} {cell.word}" + (f" {cell.age}" if cell.age else "")
                for kind, cell in zip(self.kinds, cells, strict=True)
            ]
            yield f"{worst(cell.state for cell in cells).sign} {proxy}: {', '.join(told)}"


@dataclass(frozen=True, slots=True)
class Link:
    """One hop of a request, or one rung of a change's way into the mesh."""

    title: str
    detail: str
    state: State
    #: what becomes of it there, where the word of the state does not say it
    word: str = ""


@dataclass(frozen=True, slots=True)
class Chain:
    """Things that come one after the other, up to the first one that is broken.

    A ladder is one whose links say too much to stand side by side.
    """

    title: str
    links: tuple[Link, ...]
    ladder: bool = False

    def lines(self) -> Iterator[str]:
        """Yield a link per line."""
        for link in self.links:
            yield f"{link.state.sign} {link.title}" + (f": {link.detail}" if link.detail else "")


@dataclass(frozen=True, slots=True)
class Span:
    """From when to when something is valid."""

    name: str
    start: datetime
    end: datetime
    state: State
    note: str


@dataclass(frozen=True, slots=True)
class TimeLine:
    """What is valid from when to when, and where now lies. Now is the recording's."""

    title: str
    now: datetime
    spans: tuple[Span, ...]
    #: how many spans there are altogether
    of: int

    def lines(self) -> Iterator[str]:
        """Yield a span per line."""
        for span in self.spans:
            yield (
                f"{span.state.sign} {span.name}: {span.start:%Y-%m-%d %H:%M} to "
                f"{span.end:%Y-%m-%d %H:%M} UTC, {span.note}"
            )


@dataclass(frozen=True, slots=True)
class Stay:
    """One place where a request or a connection is, with what happens to it there, in order."""

    #: the proxy, the pod or whatever else it is
    who: str
    links: tuple[Link, ...]
    #: on which condition it comes here at all
    when: str = ""
    #: place of the stay before it in the list of stays; None for the first one
    after: int | None = None

    @property
    def state(self) -> State:
        """How it ends there."""
        return worst(link.state for link in self.links) if self.links else State.UNREACHED


@dataclass(frozen=True, slots=True)
class Journey:
    """The ways that a request or a connection may go, from place to place."""

    title: str
    stays: tuple[Stay, ...]
    #: how many ways are left out
    left_out: int = 0

    def lines(self) -> Iterator[str]:
        """Yield a stay per line."""
        for stay in self.stays:
            when = f" if {stay.when}" if stay.when else ""
            told = ", ".join(f"{link.state.sign} {link.title}" for link in stay.links)
            yield f"{stay.state.sign} {stay.who}{when}: {told or stay.state.word}"


Picture = MeshGraph | PortsMap | SyncMap | Chain | TimeLine | Journey


def age(seconds: float | None) -> str:
    """Return how long something is ago in one unit, such as ``31 s``; empty for None."""
    if seconds is None:
        return ""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if abs(seconds) >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
