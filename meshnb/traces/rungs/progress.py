"""How far an object came on its way from the istiods to the proxies that it concerns.

What a proxy holds proves more than what istiod says of it: an object that is in force as it is
written was seen, sent and taken. Only where it is not is asked how far it came: whether the proxy's
istiod has it, whether anything was sent since, whether Envoy refused it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta

import pandas as pd

from meshnb.sources.base import HttpQuestion
from meshnb.tables import Facts
from meshnb.tables.base import Got, dig, items
from meshnb.traces.istiod_objects import held_objects
from meshnb.traces.mesh import ConfigObject, Mesh, plain
from meshnb.traces.rungs.holdings import ABSENT, AGREES, DIFFERS, Effect
from meshnb.traces.rungs.ladder import (
    BROKEN,
    NOT_NEEDED,
    NOT_REACHED,
    PASSED,
    UNDECIDED,
    Cited,
    Standing,
)
from meshnb.traces.rungs.reach import Reach
from meshnb.traces.rungs.visibility import ignored_by, istiods

#: istiod pushes within seconds of a change; what is younger may still be on its way.
PUSH_DELAY = timedelta(seconds=10)
#: An update that is not acknowledged for so long is not on its way any more.
_STALE_AFTER_S = 30.0
_SYNC = Got(15014, "/debug/syncz")
_ZTUNNEL = ("ambient", "ztunnel")

_LISTENERS, _ROUTES, _CLUSTERS = ("LDS",), ("RDS",), ("CDS",)
#: The kinds of configuration that an object of a kind is made into.
_TYPES: Mapping[str, tuple[str, ...]] = {
    "VirtualService": _ROUTES,
    "HTTPRoute": _ROUTES,
    "GRPCRoute": _ROUTES,
    "TLSRoute": _LISTENERS,
    "TCPRoute": _LISTENERS,
    "DestinationRule": _CLUSTERS,
    "ServiceEntry": _CLUSTERS,
    "Service": _CLUSTERS,
    "Sidecar": _CLUSTERS,
    "WorkloadEntry": ("EDS",),
    "WasmPlugin": ("ECDS", "LDS"),
    "TrafficExtension": ("ECDS", "LDS"),
}
_PATCHED: Mapping[str, str] = {
    "CLUSTER": "CDS",
    "ROUTE_CONFIGURATION": "RDS",
    "VIRTUAL_HOST": "RDS",
    "HTTP_ROUTE": "RDS",
    "EXTENSION_CONFIG": "ECDS",
}


@dataclass(frozen=True, slots=True)
class Standings:
    """How one proxy stands on each of the three rungs between istiod and traffic."""

    pushed: Standing
    accepted: Standing
    active: Standing


def types_of(item: ConfigObject, *, ztunnel: bool = False) -> tuple[str, ...]:
    """Return the kinds of configuration (CDS, LDS, …) that carry an object to a proxy."""
    if ztunnel:
        return ("WDS",) if item.kind in ("Service", "ServiceEntry", "WorkloadEntry") else ("WADS",)
    if item.kind == "EnvoyFilter":
        places = [str(dig(patch, "applyTo")) for patch in items(item.spec, "configPatches")]
        return tuple(dict.fromkeys(_PATCHED.get(place, "LDS") for place in places))
    if item.kind == "VirtualService" and not items(item.spec, "http"):
        return _LISTENERS
    return _TYPES.get(item.kind, _LISTENERS)


class Progress:
    """Follows one object from the istiods to proxies."""

    def __init__(
        self, facts: Facts, mesh: Mesh, item: ConfigObject, generation: int | None
    ) -> None:
        """Read which istiods were asked and what they said.

        ``generation`` is that of the object as it is stored, None where it has none.
        """
        self.facts = facts
        self.mesh = mesh
        self.item = item
        self.generation = generation
        self.fresh = facts.now - item.changed < PUSH_DELAY
        self._held = held_objects(facts, item)
        self._running = {pod.pod: pod for pod in istiods(mesh)}
        self._asked = facts.once(_asked)
        self._status = facts.by("proxy_status", "proxy")
        self._noted = facts.once(_noted)
        self._listeners = facts.by("listeners", "proxy")

    # --- the istiods ---

    def seen(self) -> tuple[Standing, ...]:
        """Return how each istiod stands: whether it has the object as it is stored."""
        return tuple(self._istiod(name) for name in sorted({*self._running, *self._held}))

    def _istiod(self, name: str) -> Standing:
        pod = self._running.get(name)
        if self.item.kind == "Service":
            return Standing(name, UNDECIDED, "which Services it has is not compared")
        if name not in self._held:
            return Standing(name, UNDECIDED, "its page /debug/configz was not recorded")
        held = self._held[name]
        if held is not None:
            known = dig(held, "metadata", "generation")
            behind = self.generation is not None and isinstance(known, int)
            if behind and known < (self.generation or 0):
                late = UNDECIDED if self.fresh else BROKEN
                return Standing(
                    name, late, f"it has generation {known}, and {self.generation} is stored"
                )
            return Standing(name, PASSED, "it has it as it is stored")
        why = ignored_by(self.item, pod, self.mesh) if pod is not None else ""
        if why:
            return Standing(name, NOT_NEEDED, f"it leaves it out on purpose: {why}")
        if self.fresh:
            return Standing(name, UNDECIDED, "it does not have it yet; it is only just stored")
        return Standing(name, BROKEN, "it does not have it")

    # --- the proxies ---

    def standings(
        self, effects: Mapping[str, tuple[Reach, Effect]], seen: Iterable[Standing]
    ) -> dict[str, Standings]:
        """Return how each proxy stands, by what it holds and what the istiods say of it."""
        behind = {one.who: one.says for one in seen if one.outcome == BROKEN}
        return {
            proxy: self._standings(reach, effect, behind)
            for proxy, (reach, effect) in effects.items()
        }

    def lost(self, proxies: Iterable[str]) -> list[str]:
        """Return the proxies that are surely connected to no istiod: all that run were asked."""
        if self._running.keys() - self._asked:
            return []
        return [proxy for proxy in proxies if not self._connected(proxy)]

    def _standings(self, reach: Reach, effect: Effect, behind: Mapping[str, str]) -> Standings:
        proxy = reach.proxy
        rows = self._status.get(proxy, self.facts["proxy_status"].iloc[:0])
        types = types_of(self.item, ztunnel=reach.pod.mesh in _ZTUNNEL)
        wanted = rows["xds"].isin(types)
        cites = Cited.of("proxy_status", rows.loc[wanted, ["xds"]])
        istiod = str(next(iter(rows["istiod"].dropna()), self._noted.get(proxy, "")))
        there = f"connected to {istiod}" if istiod else "connected to no istiod that was asked"
        if effect.state == AGREES:
            broken = BROKEN if effect.idle else PASSED
            says = f"{effect.says}; {effect.idle}" if effect.idle else effect.says
            return Standings(
                Standing(proxy, PASSED, f"it holds it ({there})", cites),
                Standing(proxy, PASSED, "it holds it", cites),
                Standing(proxy, broken, says, effect.cites),
            )
        mine = rows[wanted]
        if effect.state in (ABSENT, DIFFERS):
            return self._lacking(proxy, effect, mine, istiod, behind, cites)
        return self._told(proxy, effect, mine, istiod, cites)

    def _lacking(
        self,
        proxy: str,
        effect: Effect,
        mine: pd.DataFrame,
        istiod: str,
        behind: Mapping[str, str],
        cites: tuple[Cited, ...],
    ) -> Standings:
        """Say how far an object came that a proxy does not have, or not as it is stored."""
        if self.fresh:
            age = (self.facts.now - self.item.changed).total_seconds()
            says = f"it was changed {age:.0f} s ago and may be on its way"
            return _stopped(proxy, 0, UNDECIDED, says, cites)
        if istiod in behind:
            return _stopped(proxy, 0, BROKEN, f"its istiod {istiod}: {behind[istiod]}", cites)
        if not len(mine) and not self._connected(proxy):
            if self._running.keys() - self._asked and self._running:
                says = "it may be connected to an istiod that was not asked"
                return _stopped(proxy, 0, UNDECIDED, says, cites)
            says = f"it is connected to no istiod and keeps what it had: {effect.says}"
            return _stopped(proxy, 0, BROKEN, says, effect.cites)
        refused = mine[mine["sync"] == "ERROR"]
        if len(refused):
            words = " ".join(str(refused["error"].iloc[0]).split()).rstrip(".")
            kinds = ", ".join(refused["xds"])
            return _stopped(
                proxy, 1, BROKEN, f"Envoy refused {kinds}: {words}",
                (*Cited.of("proxy_status", refused), *self._refusals(proxy)),
            )  # fmt: skip
        stale = mine[mine["sync"] == "STALE"]
        if len(stale):
            age = float(stale["age_s"].max())
            says = f"{', '.join(stale['xds'])} was sent {age:.0f} s ago and is not acknowledged"
            late = BROKEN if age > _STALE_AFTER_S else UNDECIDED
            return _stopped(proxy, 1, late, says, Cited.of("proxy_status", stale))
        if self._refusals(proxy):
            says = "Envoy refused its last listener"
            return _stopped(proxy, 1, BROKEN, says, self._refusals(proxy))
        sent = plain(mine["sent_at"].max()) if len(mine) else None
        if sent is not None and sent < self.item.changed:
            says = f"nothing of {', '.join(mine['xds'])} was sent to it since: {effect.says}"
            return _stopped(proxy, 0, BROKEN, says, cites)
        return _stopped(proxy, 2, BROKEN, effect.says, (*effect.cites, *cites))

    def _told(
        self, proxy: str, effect: Effect, mine: pd.DataFrame, istiod: str, cites: tuple[Cited, ...]
    ) -> Standings:
        """Say how far an object came by what istiod tells, where the proxy shows nothing of it."""
        active = Standing(proxy, UNDECIDED, effect.says, effect.cites)
        if not len(mine):
            if self._connected(proxy) or self._running.keys() - self._asked or not self._asked:
                says = "no istiod says what was sent to it"
                return Standings(
                    Standing(proxy, UNDECIDED, says), Standing(proxy, UNDECIDED, says), active
                )
            says = "it is connected to no istiod and keeps what it had"
            return Standings(Standing(proxy, BROKEN, says), _nowhere(proxy), _nowhere(proxy))
        refused = mine[mine["sync"] == "ERROR"]
        sent = plain(mine["sent_at"].max())
        pushed = (
            Standing(proxy, PASSED, f"sent at {sent:%H:%M:%S} by {istiod}", cites)
            if sent is not None and sent >= self.item.changed
            else Standing(proxy, UNDECIDED, "nothing was sent to it since", cites)
        )
        if len(refused):
            words = " ".join(str(refused["error"].iloc[0]).split()).rstrip(".")
            says = f"Envoy refused {', '.join(refused['xds'])}: {words}"
            return Standings(pushed, Standing(proxy, BROKEN, says, cites), _nowhere(proxy))
        late = mine[(mine["sync"] == "STALE") & (mine["age_s"] > _STALE_AFTER_S)]
        if len(late):
            says = f"{', '.join(late['xds'])} is not acknowledged for {late['age_s'].max():.0f} s"
            return Standings(pushed, Standing(proxy, BROKEN, says, cites), _nowhere(proxy))
        taken = Standing(proxy, pushed.outcome, f"{', '.join(mine['xds'])} is acknowledged", cites)
        return Standings(pushed, taken, active)

    def _connected(self, proxy: str) -> bool:
        return proxy in self._status or bool(self._noted.get(proxy))

    def _refusals(self, proxy: str) -> tuple[Cited, ...]:
        """Cite the listeners that a proxy refused since the change."""
        rows = self._listeners.get(proxy)
        if "LDS" not in types_of(self.item) or rows is None:
            return ()
        rows = rows[rows["error"].notna()]
        late = rows[(rows["refused_at"] >= self.item.changed).fillna(value=False).astype(bool)]
        return Cited.of("listeners", late, 3)


def _asked(facts: Facts) -> frozenset[str]:
    """Return the istiods that said how their proxies stand."""
    return frozenset(
        question.pod
        for question, page in facts.documents(_SYNC)
        if isinstance(question, HttpQuestion) and isinstance(page, list)
    )


def _noted(facts: Facts) -> Mapping[str, str]:
    """Return the istiod that each proxy is connected to; an empty text where that is not known."""
    proxies = facts["proxies"]
    istiods = proxies["istiod"].fillna("")
    return {str(one): str(at) for one, at in zip(proxies["proxy"], istiods, strict=True)}


def _nowhere(proxy: str) -> Standing:
    return Standing(proxy, NOT_REACHED, "it did not come so far")


def _stopped(
    proxy: str, place: int, outcome: str, says: str, cites: tuple[Cited, ...]
) -> Standings:
    """Return the standings of a proxy that an object came to up to one of the three rungs."""
    standings = [Standing(proxy, PASSED, "it came so far")] * place
    standings.append(Standing(proxy, outcome, says, cites))
    standings += [_nowhere(proxy)] * (3 - len(standings))
    return Standings(*standings)
