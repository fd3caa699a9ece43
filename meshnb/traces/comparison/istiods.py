"""What a proxy holds, against what istiod holds for it."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import parse_qs, urlsplit

from meshnb.sources.base import HttpQuestion
from meshnb.tables import Facts
from meshnb.tables.envoy import proxy_of
from meshnb.traces.comparison.base import Compared, Comparison
from meshnb.traces.comparison.differences import compared
from meshnb.traces.comparison.held import Held
from meshnb.traces.comparison.origins import origins
from meshnb.traces.comparison.resources import Key, Resource
from meshnb.traces.istiod_objects import istiods_objects
from meshnb.traces.mesh import Mesh

_ISTIOD_DUMP = "/debug/config_dump"


def compare_with_istiod(facts: Facts, mesh: Mesh, proxy: str) -> Comparison:
    """Compare what a proxy holds with what istiod would send to it now.

    istiod says so on its page /debug/config_dump?proxyID=PROXY. Clusters, listeners and routes are
    compared, as ``istioctl proxy-status PROXY`` does, and endpoints where istiod gives them.
    Where that page was never recorded, only objects are compared: those that the proxy's resources
    say they were made from, with those that istiod has (/debug/configz). One that is only here
    was deleted since the proxy was last told; that one was changed or added does not show.
    Raises UsageError for a proxy that the source does not have.
    """
    held = Held(facts, mesh)
    mine = held.of(held.pod(proxy).proxy)
    if mine is None:
        return Comparison(proxy, (), "istiod", unknown=held.silence(proxy))
    for question in facts.source.questions():
        if not isinstance(question, HttpQuestion) or not question.path.startswith(_ISTIOD_DUMP):
            continue
        if parse_qs(urlsplit(question.path).query).get("proxyID", [""])[0] != proxy:
            continue
        # An istiod that the proxy is not connected to has nothing for it.
        theirs = held.dumps.resources(facts, question, held.pod(proxy).address)
        if theirs:
            kinds = {kind for kind, _ in theirs} - {"root"}
            return Comparison(
                proxy,
                (proxy_of(question),),
                "what istiod holds for it",
                tuple(compared(_of_kinds(mine, kinds), _of_kinds(theirs, kinds))),
            )
    return _by_objects(facts, proxy, mine)


def _of_kinds(held: Mapping[Key, Resource], kinds: set[str]) -> Mapping[Key, Resource]:
    return {key: resource for key, resource in held.items() if key[0] in kinds}


def _by_objects(facts: Facts, proxy: str, held: Mapping[Key, Resource]) -> Comparison:
    wanted = f"GET 15014{_ISTIOD_DUMP}?proxyID={proxy}"
    unknown = f"istiod was never asked what it holds for {proxy} ({wanted})"
    objects: set[str] = set()
    kinds: set[str] = set()
    against: list[str] = []
    for one in istiods_objects(facts):
        against.append(f"{one.pod}.{one.namespace}")
        kinds |= {kind for kind, _, _ in one.names}
        objects |= {f"{kind} {namespace}/{name}" for kind, namespace, name in one.names}
    if not against:
        return Comparison(proxy, (), "objects", unknown=f"{unknown}, nor which objects it has")
    named = dict.fromkeys(
        origin for resource in held.values() for origin in origins(resource.document)
    )
    # istiod answers with the kinds that it reads; of others it has never said anything.
    resources = tuple(
        Compared("object", name, "same" if name in objects else "only here", made_from=(name,))
        for name in sorted(named)
        if name.partition(" ")[0] in kinds
    )
    return Comparison(proxy, tuple(against), "objects", resources, unknown=unknown)
