"""What proxies hold at two moments, the same change of several proxies in one sentence."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import msgspec

from meshnb.sources.base import HttpQuestion
from meshnb.tables import Facts
from meshnb.tables.base import dig
from meshnb.tables.envoy import CONFIG_DUMP, proxy_of
from meshnb.traces.comparison.cleaning import cleaned
from meshnb.traces.comparison.dump_reader import DumpReader
from meshnb.traces.comparison.origins import origins
from meshnb.traces.comparison.resources import Key, Resource
from meshnb.traces.moments.base import Change, Edit, edits, first_edits, plural, some
from meshnb.traces.moments.objects import Unseen
from meshnb.traces.moments.succession import Known, Succession

#: What one resource of a kind is called, and several.
_NOUNS = {
    "cluster": ("cluster", "clusters"),
    "listener": ("listener", "listeners"),
    "route": ("route", "routes"),
    "endpoints": ("endpoints of", "endpoints of"),
    "extension": ("extension", "extensions"),
    "root": ("trusted root", "trusted roots"),
}
#: A place in a route that says where requests go.
_DESTINATION = re.compile(r"(?:\.cluster|weighted_clusters\.clusters\[[^\]]*\]\.name)$")
_CLUSTER = re.compile(r"outbound\|(?P<port>\d+)\|(?P<subset>[^|]*)\|(?P<host>.+)")

#: State, kind, name and edits of a change, which several proxies may share.
_Alike = tuple[str, str, str, tuple[Edit, ...]]


def resource_changes(before: Facts, after: Facts, matched: Succession) -> Iterator[Change | Unseen]:
    """Yield what proxies hold that is not as it was; of a pod that is new, against its predecessor.

    Workloads and Services stand in place of their addresses, so that a rollout changes nothing.
    """
    reader = DumpReader()
    old = _Dumps(before, reader, matched.before)
    # What has gone since may still be among what a proxy holds.
    new = _Dumps(after, reader, matched.after, old.places)
    shared: dict[_Alike, list[str]] = {}
    for earlier, later in _pairs(old, new, matched):
        were, are = old.of(earlier), new.of(later)
        if were is None or are is None:
            if were is not None or are is not None:
                which = "earlier" if were is None else "later"
                proxy = earlier if were is None else later
                yield Unseen(
                    f"what {proxy} holds", f"at the {which} moment it did not say what it holds"
                )
            continue
        if bool(were) != bool(are):
            yield _emptied(later, new, holds=bool(are))
            continue
        for alike in _differing(were, are, old, new):
            shared.setdefault(alike, []).append(later)
    yield from _gathered(shared, new)


class _Dumps:
    """The config dumps of one moment, each read when it is wanted."""

    def __init__(
        self,
        facts: Facts,
        reader: DumpReader,
        pods: Iterable[Known],
        earlier: Mapping[str, str] | None = None,
    ) -> None:
        self._facts = facts
        self._reader = reader
        self._documents: dict[Resource, Any] = {}
        self._addresses = {pod.proxy: pod.address for pod in pods if pod.proxy}
        places = {**(earlier or {}), **dict(_service_places(facts))}
        for pod in pods:
            if pod.address:
                places[pod.address] = f"a pod of {pod.workload[0]}/{pod.workload[2]}"
        self.places = places
        listed = "|".join(map(re.escape, sorted(places, key=len, reverse=True)))
        self._address = re.compile(rf"(?<![\w.:])({listed})(?![\w]|\.\d)") if places else None
        self.questions: dict[str, HttpQuestion] = {}
        for question in facts.source.questions():
            if CONFIG_DUMP.matches(question) and isinstance(question, HttpQuestion):
                proxy = proxy_of(question)
                if proxy not in self.questions or "include_eds" in question.path:
                    self.questions[proxy] = question

    def of(self, proxy: str) -> Mapping[Key, Resource] | None:
        question = self.questions.get(proxy)
        if question is None:
            return None
        return self._reader.resources(self._facts, question, self._addresses.get(proxy, ""))

    def document(self, kind: str, resource: Resource) -> Any:
        """Return what a resource says, with workloads in place of addresses; made once for all."""
        if resource not in self._documents:
            if kind == "endpoints":
                made: Any = Counter(_endpoints(resource.document, self))
            elif kind == "root":
                made = resource.document
            else:
                made = cleaned(msgspec.json.decode(self.placed(resource.encoded.decode())))
            self._documents[resource] = made
        return self._documents[resource]

    def placed(self, text: str) -> str:
        """Return a text with workloads and Services in place of their addresses."""
        if self._address is None:
            return text
        return self._address.sub(lambda match: self.places[match[1]], text)


def _service_places(facts: Facts) -> Iterator[tuple[str, str]]:
    """Yield the address of each Service, and what stands for it: it changes with a new Service."""
    services = facts["services"].dropna(subset=["cluster_ip"])
    columns = (services[name] for name in ("cluster_ip", "namespace", "service"))
    for address, namespace, name in zip(*columns, strict=True):
        if address != "None":
            yield str(address), f"Service {namespace}/{name}"


def _pairs(old: _Dumps, new: _Dumps, matched: Succession) -> Iterator[tuple[str, str]]:
    alone = [*old.questions], [*new.questions]
    if not matched.before and not matched.after and tuple(map(len, alone)) == (1, 1):
        # Two dumps are compared whatever their pods are called.
        yield alone[0][0], alone[1][0]
        return
    for proxy in old.questions:
        later = matched.names.get(proxy, proxy)
        if later in new.questions:
            yield proxy, later


def _differing(
    were: Mapping[Key, Resource], are: Mapping[Key, Resource], old: _Dumps, new: _Dumps
) -> Iterator[_Alike]:
    same = {key for key in were.keys() & are.keys() if were[key].encoded == are[key].encoded}
    earlier = _placed(were, same, old)
    later = _placed(are, same, new)
    for key in dict.fromkeys([*later, *earlier]):
        kind, name = key
        if key not in earlier or key not in later:
            document = later.get(key, earlier.get(key))
            made = tuple(Edit("", "", "", origin) for origin in dict.fromkeys(origins(document)))
            yield ("added" if key in later else "removed"), kind, name, made
        elif kind == "endpoints":
            found = tuple(_endpoint_edits(earlier[key], later[key]))
            if found:
                yield "changed", kind, name, found
        elif earlier[key] != later[key]:
            yield "changed", kind, name, tuple(edits(earlier[key], later[key]))


def _placed(held: Mapping[Key, Resource], same: set[Key], dumps: _Dumps) -> dict[Key, Any]:
    """Return resources by name, with workloads in place of addresses; without those that agree."""
    return {
        (kind, name if kind in ("endpoints", "root") else dumps.placed(name)): (
            dumps.document(kind, resource)
        )
        for (kind, name), resource in held.items()
        if (kind, name) not in same
    }


def _endpoints(document: Mapping[str, Any], dumps: _Dumps) -> Iterator[tuple[str, str]]:
    for address, endpoint in document.items():
        health = str(dig(endpoint, "health_status", default="HEALTHY"))
        yield dumps.placed(address), health


def _endpoint_edits(
    were: Counter[tuple[str, str]], are: Counter[tuple[str, str]]
) -> Iterator[Edit]:
    if were != are:
        yield Edit("endpoints", _counted(were), _counted(are))


def _counted(found: Counter[tuple[str, str]]) -> str:
    said = [
        f"{count} x {place}" * (count > 1)
        + place * (count == 1)
        + (f" ({health.lower()})" if health != "HEALTHY" else "")
        for (place, health), count in sorted(found.items())
    ]
    return some(said, 4) or "none"


def _emptied(proxy: str, new: _Dumps, *, holds: bool) -> Change:
    state = "added" if holds else "removed"
    said = "now holds what istiod sent" if holds else "holds nothing that istiod sent any more"
    words = f"{proxy} {said}"
    question = str(new.questions[proxy])
    return Change("resource", proxy, state, words, proxies=(proxy,), question=question)


def _gathered(shared: Mapping[_Alike, list[str]], new: _Dumps) -> Iterator[Change]:
    """Yield a sentence for all resources of one kind of which the same is to be said."""
    together: dict[tuple[str, str, tuple[str, ...], str], dict[str, tuple[Edit, ...]]] = {}
    for (state, kind, name, found), who in shared.items():
        said = _said(state, kind, found)
        together.setdefault((state, kind, tuple(who), said), {})[name] = found
    for (state, kind, proxies, said), several in together.items():
        noun = _NOUNS[kind][len(several) > 1]
        where = "in" if kind == "endpoints" else "of"
        subject = f"{noun} {some(sorted(several, key=_by_number))} {where} {_people(proxies)}"
        verb = _VERBS[said.partition(" ")[0]][len(several) > 1 or kind == "endpoints"]
        words = f"{subject} {verb} {said.partition(' ')[2]}"
        every = tuple(
            replace(edit, path=edit.path and f"{name}: {edit.path}")
            for name, found in several.items()
            for edit in found
        )
        kept = every if len(several) > 1 else next(iter(several.values()))
        yield Change(
            "resource",
            subject,
            state,
            words,
            tuple(dict.fromkeys(kept)),
            proxies=proxies,
            question=str(new.questions[proxies[0]]),
        )


def _by_number(name: str) -> tuple[int, str]:
    """Sort names that are port numbers by size, before all others."""
    return (int(name), "") if name.isascii() and name.isdecimal() else (1 << 64, name)


#: How a verb is said of one resource, and of several.
_VERBS = {
    "is": ("is", "are"),
    "points": ("now points", "now point"),
    "differs": ("differs", "differ"),
}


def _people(proxies: tuple[str, ...]) -> str:
    return proxies[0] if len(proxies) == 1 else plural(len(proxies), "proxy", "proxies")


def _said(state: str, kind: str, found: tuple[Edit, ...]) -> str:
    """Return what is said of a resource; it begins with one of the verbs."""
    if state != "changed":
        made = [edit.made_from for edit in found if edit.made_from]
        coming = "new" if state == "added" else "gone"
        return f"is {coming}" + (f" (from {some(made)})" if made else "")
    if kind == "endpoints":
        return f"is now {found[0].after}, not {found[0].before}"
    led = next((edit for edit in found if _DESTINATION.search(edit.path)), None)
    if led is None:
        return f"differs in {first_edits(found)}"
    more = len(found) - 1
    said = f"points to {_where(led.after, led.before)}"
    said += f" instead of {_where(led.before, led.after)}"
    return f"{said}, and {plural(more, 'more place')}" if more else said


def _where(name: str, other: str) -> str:
    """Return a cluster in words; only what tells it from the other one."""
    one, two = _CLUSTER.fullmatch(name), _CLUSTER.fullmatch(other)
    if one is None:
        return name or "nothing"
    subset = f"subset {one['subset']}" if one["subset"] else "no subset"
    if two is not None and one["host"] == two["host"] and one["port"] == two["port"]:
        return subset
    return f"{one['host']}:{one['port']}" + (f" {subset}" if one["subset"] else "")
