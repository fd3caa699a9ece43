"""Which proxies an object reaches, and which it misses although somebody could expect them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from meshnb.traces.mesh import Pod
from meshnb.traces.rungs.visibility import listed


@dataclass(frozen=True, slots=True)
class Reach:
    """One proxy, and why an object concerns it or does not.

    ``proxy`` is the one that acts: of an ambient pod it is the ztunnel of its node. ``pod`` is the
    pod that it acts for.
    """

    proxy: str
    pod: Pod
    why: str
    #: further pods that it acts for
    others: tuple[Pod, ...] = ()


@dataclass(slots=True)
class Scope:
    """Whom an object concerns."""

    reached: dict[str, Reach] = field(default_factory=dict)
    #: those that somebody could take it to concern
    missed: dict[str, Reach] = field(default_factory=dict)
    #: what it names that is not there, or that it asks for and cannot get
    faults: list[str] = field(default_factory=list)
    #: which pods it needs and nobody has
    lacks: list[str] = field(default_factory=list)
    #: what narrows it without being wrong
    notes: list[str] = field(default_factory=list)
    #: why no proxy has anything of it by its nature; empty for all other kinds
    aside: str = ""

    def add(self, reach: Reach, *, taken: bool) -> None:
        """Add a proxy: that one way leads to it counts more than that another does not."""
        if taken:
            self.missed.pop(reach.proxy, None)
            known = self.reached.setdefault(reach.proxy, reach)
            if reach.pod is not known.pod and reach.pod not in known.others:
                others = (*known.others, reach.pod)
                self.reached[reach.proxy] = replace(known, others=others)
        elif reach.proxy not in self.reached:
            self.missed.setdefault(reach.proxy, reach)

    def whys(self) -> str:
        """Say why proxies were missed, the first reasons of all."""
        return listed(dict.fromkeys(reach.why for reach in self.missed.values()), 2)
