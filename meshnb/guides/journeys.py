"""Pictures of traces: the way of a request or a connection, and the certificates of both ends."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime

from meshnb.guides.accounts import Account, Part
from meshnb.guides.pictures import Journey, Link, Span, State, Stay, TimeLine, age
from meshnb.tables.x509 import Certificate
from meshnb.traces.ends.base import ConnectionTrace

#: So many ways are drawn; the rest is counted, and is in the list of hops.
_WAYS = 6


def journey(account: Account) -> Journey:
    """Return the picture of a request's or a connection's account."""
    stays = _by_end(account.parts) if account.kind == "connection" else _by_place(account.parts)
    kept = _first_ways(stays)
    if account.state is State.BROKEN and kept and account.target and len(_ends(kept)) == 1:
        # Where it was to get to, and did not.
        known = any(account.target in (stay.who, f"{stay.who}:{_port(account)}") for stay in kept)
        last = kept[-1]
        if not known and not (last.links and last.links[-1].title == "application"):
            kept = [*kept, Stay(account.target, (), after=len(kept) - 1)]
    return Journey(account.title, tuple(kept), len(_ends(stays)) - len(_ends(_real(kept))))


def _port(account: Account) -> str:
    return account.target.rpartition(":")[2]


def _real(stays: list[Stay]) -> list[Stay]:
    return [stay for stay in stays if stay.links]


def _by_place(parts: Iterable[Part]) -> list[Stay]:
    """Return a stay for each row of hops of one proxy under one condition."""
    stays: list[Stay] = []
    for part in parts:
        if stays and (stays[-1].who, stays[-1].when) == (part.where, part.when):
            stays[-1] = replace(stays[-1], links=(*stays[-1].links, _link(part)))
            continue
        stays.append(Stay(part.where, (_link(part),), part.when, _before(stays, part.when)))
    return stays


def _before(stays: list[Stay], when: str) -> int | None:
    """Return the last stay that a way under a condition comes from."""
    for place in range(len(stays) - 1, -1, -1):
        if when.startswith(stays[place].when):
            return place
    return None


def _by_end(parts: Iterable[Part]) -> list[Stay]:
    """Return one stay for each end: a handshake goes forth and back between them."""
    ends: dict[str, list[Part]] = {}
    for part in parts:
        ends.setdefault(part.where, []).append(part)
    return [
        Stay(who, tuple(map(_link, mine)), after=place - 1 if place else None)
        for place, (who, mine) in enumerate(ends.items())
    ]


def _link(part: Part) -> Link:
    return Link(part.title, part.says, part.state, part.word)


def _ends(stays: list[Stay]) -> list[int]:
    """Return the stays after which none comes."""
    passed = {stay.after for stay in stays}
    return [place for place in range(len(stays)) if place not in passed]


def _first_ways(stays: list[Stay]) -> list[Stay]:
    """Leave out what only ways after the first few come by."""
    kept: set[int | None] = set()
    for end in _ends(stays)[:_WAYS]:
        place: int | None = end
        while place is not None and place not in kept:
            kept.add(place)
            place = stays[place].after
    order = {
        place: number for number, place in enumerate(sorted(one for one in kept if one is not None))
    }
    return [
        replace(
            stays[place], after=None if (before := stays[place].after) is None else order[before]
        )
        for place in order
    ]


def validity(trace: ConnectionTrace, now: datetime) -> tuple[TimeLine, ...]:
    """Return when the certificates of both ends are valid, and when those of their issuers are.

    They are two lines, as the one is counted in hours and the other in years.
    """
    shown, trusted = [], []
    for role, end in (("client", trace.client), ("server", trace.server)):
        chain = end.own.chain if end.own is not None else ()
        shown += [_span(f"{role} shows {_name(one)}", one, now) for one in chain[:1]]
        trusted += [_span(f"{role} sends along {_name(one)}", one, now) for one in chain[1:]]
        roots = end.roots.chain if end.roots is not None else ()
        trusted += [_span(f"{role} trusts {_name(one)}", one, now) for one in roots]
    lines = (("What each end shows", shown), ("By whom, and whom each end trusts", trusted))
    return tuple(TimeLine(title, now, tuple(spans), len(spans)) for title, spans in lines if spans)


def _name(one: Certificate) -> str:
    return ", ".join(one.sans[:2]) or one.subject or one.fingerprint[:16]


def _span(name: str, one: Certificate, now: datetime) -> Span:
    left = (one.not_after - now).total_seconds()
    if left < 0:
        state, note = State.BROKEN, f"over for {age(-left)}"
    elif one.not_before > now:
        state, note = State.BROKEN, "not valid yet"
    else:
        state, note = State.FINE, f"ends in {age(left)}"
    return Span(name, one.not_before, max(one.not_after, one.not_before), state, note)
