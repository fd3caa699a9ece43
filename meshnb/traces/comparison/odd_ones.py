"""Resources in which some proxies differ from others that should hold the same."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from meshnb.tables import Facts
from meshnb.traces.comparison.groups import groups
from meshnb.traces.comparison.held import Held
from meshnb.traces.mesh import Mesh


@dataclass(frozen=True, slots=True)
class OddOne:
    """A resource in which some proxies differ from others that should hold the same.

    ``proxies`` are the odd ones; when no variant is held by more than half of the group, all
    proxies of the group are, and ``decided`` is False.
    """

    scope: str
    group: tuple[str, ...]
    kind: str
    name: str
    proxies: tuple[str, ...]
    decided: bool


def odd_ones_out(facts: Facts, mesh: Mesh) -> tuple[OddOne, ...]:
    """Return each resource in which proxies differ that should hold the same; see :func:`groups`.

    A proxy that gave no config dump has no part in it.
    """
    found = []
    read = Held(facts, mesh)
    for group in groups(facts, mesh):
        parts = {proxy: read.part(proxy, group) for proxy in group.proxies}
        held = {proxy: part for proxy, part in parts.items() if part is not None}
        for key in sorted({key for part in held.values() for key in part}):
            variants = {
                proxy: part[key].encoded if key in part else b""
                for proxy, part in held.items()
                if not read.left_out(proxy, key)
            }
            if len(set(variants.values())) < 2:
                continue
            ((most, count),) = Counter(variants.values()).most_common(1)
            decided = count * 2 > len(variants)
            odd = tuple(p for p, variant in variants.items() if variant != most or not decided)
            found.append(OddOne(group.scope, tuple(held), *key, odd, decided))
    return tuple(found)
