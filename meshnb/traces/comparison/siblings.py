"""What a proxy holds, against other proxies that should hold the same."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from meshnb.tables import Facts
from meshnb.traces.comparison.base import Comparison
from meshnb.traces.comparison.differences import compared
from meshnb.traces.comparison.groups import Group, groups
from meshnb.traces.comparison.held import Held
from meshnb.traces.comparison.resources import Key, Resource
from meshnb.traces.mesh import Mesh


def compare_proxies(facts: Facts, mesh: Mesh, proxy: str, other: str) -> Comparison:
    """Compare what two proxies hold. Raises UsageError for a proxy that the source does not have.

    Pods of one workload are compared as a whole, others by what leaves them only: what comes in
    belongs to each workload alone. Of two that are not of one kind, such as a sidecar and a
    gateway, clusters, endpoints and roots are compared: their listeners have nothing in common.
    """
    held = Held(facts, mesh)
    one, two = held.pod(proxy), held.pod(other)
    if (one.namespace, one.workload_kind, one.workload) == (
        two.namespace,
        two.workload_kind,
        two.workload,
    ):
        group = Group("everything", (proxy, other), outbound=True, inbound=True)
    else:
        group = Group("what leaves the pod", (proxy, other), outbound=True, inbound=False)
    found = _against(held, proxy, group)
    if one.mesh == two.mesh:
        return found
    shared = tuple(r for r in found.resources if r.kind in ("cluster", "endpoints", "root"))
    return replace(found, resources=shared, scope="clusters, endpoints and roots")


def compare_with_siblings(facts: Facts, mesh: Mesh, proxy: str) -> tuple[Comparison, ...]:
    """Compare a proxy with those that should hold the same; see :func:`groups`.

    Where the others do not agree, it is compared with what most of them hold. Without anyone to
    compare it with there is one comparison, which says so.
    Raises UsageError for a proxy that the source does not have.
    """
    held = Held(facts, mesh)
    held.pod(proxy)
    found = [group for group in groups(facts, mesh) if proxy in group.proxies]
    return tuple(_against(held, proxy, group) for group in found) or (
        Comparison(proxy, (), "siblings", unknown=f"no other proxy should hold what {proxy} holds"),
    )


def _against(read: Held, proxy: str, group: Group) -> Comparison:
    mine = read.part(proxy, group)
    if mine is None:
        return Comparison(proxy, (), group.scope, unknown=read.silence(proxy))
    others = [other for other in group.proxies if other != proxy]
    parts = {other: read.part(other, group) for other in others}
    held = {other: part for other, part in parts.items() if part is not None}
    silent = "; ".join(read.silence(other) for other in others if other not in held)
    theirs: dict[Key, Resource] = {}
    shared: dict[Key, Resource] = {}
    for key in {*mine, *(key for part in held.values() for key in part)}:
        variants = [part.get(key) for other, part in held.items() if not read.left_out(other, key)]
        if not variants or read.left_out(proxy, key):
            continue
        if key in mine:
            shared[key] = mine[key]
        counted = Counter(b"" if one is None else one.encoded for one in variants)
        most = counted.most_common(1)[0][0]
        chosen = next((one for one in variants if one is not None and one.encoded == most), None)
        if chosen is not None:
            theirs[key] = chosen
    return Comparison(
        proxy, tuple(held), group.scope, tuple(compared(shared, theirs)), unknown=silent
    )
