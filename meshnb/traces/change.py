"""One object followed from being stored to being used: the first broken rung is the answer.

    >>> from meshnb import Facts, open_source
    >>> from meshnb.traces.change import follow_change
    >>> facts = Facts(open_source("recorded:healthy"))
    >>> trace = follow_change(facts, "VirtualService/bookinfo/reviews")
    >>> [rung.outcome for rung in trace.rungs[:3]]
    ['passed', 'passed', 'passed']

Who is concerned is found by ``scope``, what came of it in a proxy by ``effect``, and how far it
came in between by ``progress``. Manifests do not run: of them only the first three rungs are known.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any, Protocol

import pandas as pd

from meshnb.errors import UsageError, nearest
from meshnb.sources import Manifests
from meshnb.tables import Facts
from meshnb.tables.base import Json, Listed, dig, items, mapping
from meshnb.traces.comparison import origin_at
from meshnb.traces.istiod_objects import istiods_objects
from meshnb.traces.mesh import MESH, ConfigObject, Mesh, ServicePort, plain
from meshnb.traces.rungs.effect import Effects, ServiceEffects
from meshnb.traces.rungs.holdings import AGREES
from meshnb.traces.rungs.ladder import (
    BROKEN,
    NOT_NEEDED,
    NOT_REACHED,
    PASSED,
    RUNGS,
    UNDECIDED,
    ChangeTrace,
    Cited,
    Rung,
    Standing,
    where,
)
from meshnb.traces.rungs.progress import Progress
from meshnb.traces.rungs.reach import Reach, Scope
from meshnb.traces.rungs.scope import scope_of, service_scope
from meshnb.traces.rungs.settings_change import SETTINGS, follow_settings
from meshnb.traces.rungs.usage import Usage
from meshnb.traces.rungs.visibility import istiods, listed

#: Fields that say whom an object concerns: what is wrong there is told by the rung ``selected``.
_WHOM = ("spec.gateways", "spec.selector", "spec.workloadSelector", "spec.hosts", "spec.exportTo",
         "spec.parentRefs", "spec.targetRef", "spec.targetRefs")  # fmt: skip
#: Conditions that say that an object, or a part of it, is not taken as it is, while they are False.
_REFUSED = ("Accepted", "ResolvedRefs", "Programmed", "Reconciled", "ZtunnelAccepted",
            "WaypointAccepted")  # fmt: skip
_SERVICES = Listed("v1", "services")
_REJECTED = "pilot_total_rejected_configs"


class Complaint(Protocol):
    """What is wrong with an object as it is written; a finding of a check is one."""

    @property
    def subject(self) -> Any:
        """The object, with kind, namespace and name."""
        ...

    @property
    def message(self) -> str:
        """What is wrong."""
        ...

    @property
    def level(self) -> str:
        """Error, Warning or Info."""
        ...

    @property
    def path(self) -> str:
        """Where in the object."""
        ...


def follow_change(
    facts: Facts,
    subject: str,
    namespace: str | None = None,
    name: str | None = None,
    *,
    mesh: Mesh | None = None,
    complaints: Iterable[Complaint] | None = None,
) -> ChangeTrace:
    """Follow one object up the ladder.

    ``subject`` is ``Kind/namespace/name``, or a kind with ``namespace`` and ``name`` beside it;
    ``MeshConfig`` alone is the mesh's settings. The two kinds called Gateway are told apart as
    ``Gateway.networking.istio.io`` and ``Gateway.gateway.networking.k8s.io`` where both have one of
    the name. ``complaints`` are what checks of objects as they are written found.
    Raises UsageError for an object that nobody knows, offering the nearest.
    """
    known = mesh if mesh is not None else _mesh(facts)
    kind, place, title = _asked(subject, namespace, name)
    if kind.lower() == SETTINGS.lower():
        return follow_settings(facts, known)
    kind, _, group = kind.partition(".")
    kind = _kind(kind, facts, known)
    if kind == "Service":
        return _service(facts, known, place, title, complaints)
    found = [
        item
        for item in known.objects
        if (item.kind, item.namespace, item.name) == (kind, place, title)
        and (not group or item.group == group)
    ]
    if len(found) > 1:
        choice = " or ".join(f"{kind}.{item.group}/{place}/{title}" for item in found)
        raise UsageError(f"There are {len(found)} called {kind} {place}/{title}.",
                         next_step=f"Ask for {choice}.")  # fmt: skip
    if not found:
        gone = _gone(facts, known, kind, place, title)
        if gone is not None:
            return gone
        every = [f"{item.kind}/{item.namespace}/{item.name}" for item in known.objects]
        wanted = f"{kind}/{place}/{title}"
        why = (
            "and its kind could not be listed"
            if _unlisted(facts, kind)
            else "if it was applied, the API server or a webhook refused it"
        )
        raise UsageError(
            f"There is no {wanted}, and no proxy and no istiod holds anything of it; {why}.",
            next_step=nearest(wanted, every),
        )
    return _Ladder(facts, known, found[0], complaints).climb()


# --- What is asked for --------------------------------------------------------------------------


def _mesh(facts: Facts) -> Mesh:
    mesh = MESH.make(facts)
    assert isinstance(mesh, Mesh)
    return mesh


def _asked(subject: str, namespace: str | None, name: str | None) -> tuple[str, str, str]:
    """Return kind, namespace and name, from one text or from three."""
    if name is not None:
        return subject, namespace or "", name
    parts = subject.split("/")
    if parts[0].lower() == SETTINGS.lower():
        return parts[0], "", ""
    if len(parts) == 2:
        return parts[0], "", parts[1]
    if len(parts) != 3 or not parts[0] or not parts[2]:
        raise UsageError(
            f"{subject!r} names no object.",
            next_step="Write it as Kind/namespace/name, such as VirtualService/shop/cart.",
        )
    return parts[0], parts[1], parts[2]


def _kind(wanted: str, facts: Facts, mesh: Mesh) -> str:
    """Return a kind as it is written; its capitals may be left out."""
    kinds = {item.kind for item in mesh.objects} | set(_RESOURCES) | {"Service", SETTINGS}
    found = {kind.lower(): kind for kind in kinds}.get(wanted.lower())
    if found is None:
        raise UsageError(
            f"There is no kind {wanted!r} to follow.", next_step=nearest(wanted, kinds)
        )
    return found


#: The resources of the kinds that can be followed though there is no object of them.
_RESOURCES: Mapping[str, str] = {
    "VirtualService": "virtualservices",
    "DestinationRule": "destinationrules",
    "Gateway": "gateways",
    "ServiceEntry": "serviceentries",
    "Sidecar": "sidecars",
    "WorkloadEntry": "workloadentries",
    "EnvoyFilter": "envoyfilters",
    "ProxyConfig": "proxyconfigs",
    "AuthorizationPolicy": "authorizationpolicies",
    "PeerAuthentication": "peerauthentications",
    "RequestAuthentication": "requestauthentications",
    "Telemetry": "telemetries",
    "WasmPlugin": "wasmplugins",
    "HTTPRoute": "httproutes",
    "GRPCRoute": "grpcroutes",
}


def _service(
    facts: Facts,
    mesh: Mesh,
    namespace: str,
    name: str,
    complaints: Iterable[Complaint] | None,
) -> ChangeTrace:
    ports = [p for p in mesh.services if (p.namespace, p.service) == (namespace, name)]
    if not ports:
        every = [f"{port.namespace}/{port.service}" for port in mesh.services]
        raise UsageError(f"There is no Service {namespace}/{name}.",
                         next_step=nearest(f"{namespace}/{name}", every))  # fmt: skip
    for _, body in facts.objects(_SERVICES):
        if (dig(body, "metadata", "namespace"), dig(body, "metadata", "name")) == (namespace, name):
            break
    else:
        body = {}
    item = ConfigObject(
        kind="Service",
        group="",
        namespace=namespace,
        name=name,
        created=plain(ports[0].changed) or facts.now,
        changed=plain(ports[0].changed) or facts.now,
        labels=mapping(body, "metadata", "labels"),
        annotations=mapping(body, "metadata", "annotations"),
        spec=mapping(body, "spec"),
        index=-1,
    )
    return _Ladder(facts, mesh, item, complaints, ports).climb()


# --- Objects that are gone ----------------------------------------------------------------------


def _gone(facts: Facts, mesh: Mesh, kind: str, namespace: str, name: str) -> ChangeTrace | None:
    """Follow an object that the API server does not have; None when nobody else has it either."""
    holders = dict(_holders(facts, kind, namespace, name))
    keeping = [one.pod for one in istiods_objects(facts) if (kind, namespace, name) in one.names]
    if not holders and not keeping:
        return None
    title = f"{kind} {namespace}/{name}"
    if _unlisted(facts, kind):
        says = f"whether it is stored is not known, as {_resource(kind)} could not be listed"
        outcome = UNDECIDED
    else:
        proxies = [pod for pod in mesh.pods if pod.proxy and pod.running]
        says = f"gone from the API, still in {len(holders)} of {len(proxies)} proxies"
        if keeping:
            says += f" and in {listed(keeping)}"
        outcome = BROKEN
    status = facts["proxy_status"]
    standings = tuple(
        Standing(proxy, outcome, _why_kept(status, proxy, keeping), cites)
        for proxy, cites in holders.items()
    )
    rungs = [Rung("stored", outcome, says, standings)]
    rungs += [Rung(rung, NOT_REACHED, "It is not stored.") for rung in list(RUNGS)[1:]]
    broken = rungs[0] if outcome == BROKEN else None
    who = f" ({listed(holders)})" if holders else ""
    return ChangeTrace(title, tuple(rungs), broken, f"{title}: {says}{who}.")


def _resource(kind: str) -> str:
    return _RESOURCES.get(kind, f"{kind.lower()}s")


def _unlisted(facts: Facts, kind: str) -> bool:
    """Whether there may be objects of a kind that the source does not show."""
    return any(_resource(kind) in gap.question.lower() for gap in facts.gaps("istio_config"))


def _why_kept(status: pd.DataFrame, proxy: str, keeping: list[str]) -> str:
    rows = status[status["proxy"] == proxy]
    if not len(rows):
        return "it still holds it, and is connected to no istiod that was asked"
    istiod = str(rows["istiod"].iloc[0])
    if istiod in keeping:
        return f"it still holds it, as its istiod {istiod} does"
    odd = rows[rows["sync"].isin(["ERROR", "STALE"])]
    if len(odd):
        return f"it still holds it: {odd['xds'].iloc[0]} is {odd['sync'].iloc[0]}"
    return "it still holds it"


def _holders(
    facts: Facts, kind: str, namespace: str, name: str
) -> Iterator[tuple[str, tuple[Cited, ...]]]:
    """Yield each proxy that holds something that was made from an object, with the rows."""
    title = f"{kind} {namespace}/{name}"
    found: dict[str, tuple[Cited, ...]] = {}
    for table in ("routes", "clusters", "extension_configs"):
        frame = facts[table]
        mine = where(frame, (origin_at(plain(path)) == title for path in frame["istio_config"]))
        for proxy, rows in mine.groupby("proxy"):
            found[str(proxy)] = (*found.get(str(proxy), ()), *Cited.of(table, rows))
    if kind == "AuthorizationPolicy":
        for table, column in (("rbac_rules", "policy"), ("ztunnel_policies", "policy_name")):
            frame = facts[table]
            mine = frame[(frame["namespace"] == namespace) & (frame[column] == name)]
            for proxy, rows in mine.groupby("proxy"):
                found[str(proxy)] = (*found.get(str(proxy), ()), *Cited.of(table, rows))
    yield from found.items()


# --- The ladder ---------------------------------------------------------------------------------


class _Ladder:
    """Climbs the rungs with one object that is stored."""

    def __init__(
        self,
        facts: Facts,
        mesh: Mesh,
        item: ConfigObject,
        complaints: Iterable[Complaint] | None,
        ports: list[ServicePort] | None = None,
    ) -> None:
        self.facts = facts
        self.mesh = mesh
        self.item = item
        self.complaints = None if complaints is None else list(complaints)
        self.ports = ports
        self.written = isinstance(facts.source, Manifests)

    def climb(self) -> ChangeTrace:
        scope = (
            service_scope(self.facts, self.mesh, self.ports)
            if self.ports is not None
            else scope_of(self.facts, self.mesh, self.item)
        )
        rungs = [self._stored(), self._valid(), self._selected(scope)]
        if self.written:
            rest = "Manifests do not run."
        elif scope.aside:
            rest = scope.aside
        elif not scope.reached:
            rest = "It concerns no proxy."
        else:
            return self._trace([*rungs, *self._running(scope)])
        outcome = NOT_NEEDED if scope.aside and not self.written else NOT_REACHED
        rungs += [Rung(name, outcome, rest) for name in list(RUNGS)[3:]]
        return self._trace(rungs)

    def _trace(self, rungs: list[Rung]) -> ChangeTrace:
        broken = next((rung for rung in rungs if rung.outcome == BROKEN), None)
        title = str(self.item)
        if broken is not None:
            answer = f"{title} stops at the rung {broken.name!r}: {broken.says}"
            active = next(rung for rung in rungs if rung.name == "active")
            good = [one.who for one in active.standings if one.outcome == PASSED]
            if good:
                answer += f" It is in force in {len(good)} of {_count(len(active.standings))}."
        else:
            answer = f"{title}: {_summary(rungs)}"
        return ChangeTrace(title, tuple(rungs), broken, answer)

    # --- what is written ---

    def _stored(self) -> Rung:
        table = "services" if self.ports is not None else "istio_config"
        frame = self.facts[table]
        rows = (
            frame.loc[[self.item.index]]
            if self.ports is None
            else frame[(frame["namespace"] == self.item.namespace)
                       & (frame["service"] == self.item.name)]
        )  # fmt: skip
        question = str(rows["question"].iloc[0])
        body = self._body(question)
        if self.written:
            return Rung("stored", PASSED, "It is written in a file.", cites=Cited.of(table, rows))
        writers = [
            entry
            for entry in items(body, "metadata", "managedFields")
            if dig(entry, "subresource") != "status"
        ]
        last = max(writers, key=lambda entry: str(dig(entry, "time", default="")), default=None)
        generation = dig(body, "metadata", "generation")
        parts = [f"generation {generation}"] if generation is not None else []
        parts.append(f"changed last at {_time(self.item.changed)}")
        if last is not None:
            parts.append(f"by {dig(last, 'manager', default='somebody')}")
        says = f"It is stored: {', '.join(parts)}."
        if dig(body, "metadata", "deletionTimestamp"):
            says += " It is being deleted."
        if not question.startswith("LIST "):
            says = f"An istiod holds it; the API server was never asked. It was {', '.join(parts)}."
        return Rung("stored", PASSED, says, cites=Cited.of(table, rows))

    def _body(self, title: str) -> Json:
        """Return the object as it was answered."""
        document = self.facts.document(self.facts.answer(self.facts.question(title)))
        listed_ = document if isinstance(document, list) else items(document, "items")
        for one in listed_:
            kind = dig(one, "kind", default=self.item.kind)
            names = (dig(one, "metadata", "namespace", default=""), dig(one, "metadata", "name"))
            if (kind, *names) == (self.item.kind, self.item.namespace, self.item.name):
                return one
        return {}

    def _valid(self) -> Rung:
        wrong: list[str] = []
        notes: list[str] = []
        for complaint in self.complaints or ():
            about = complaint.subject
            if (about.kind, about.namespace, about.name) != (
                self.item.kind, self.item.namespace, self.item.name,
            ):  # fmt: skip
                continue
            if complaint.level == "Error" and not complaint.path.startswith(_WHOM):
                wrong.append(complaint.message.rstrip("."))
            else:
                notes.append(complaint.message.rstrip("."))
        cites: tuple[Cited, ...] = ()
        if self.ports is None:
            said, cites = self._conditions()
            wrong += said
        wrong += self._rejected()
        if wrong:
            return Rung("valid", BROKEN, _sentences(wrong), cites=cites)
        says = (
            "Nobody refused it; how it is written was not checked."
            if self.complaints is None
            else "Nothing is wrong with how it is written, and nobody refused it."
        )
        if notes:
            says = f"Nobody refused it, but: {_sentences(notes)}"
        return Rung("valid", PASSED, says, cites=cites)

    def _conditions(self) -> tuple[list[str], tuple[Cited, ...]]:
        """Return what the status refuses, as far as it speaks of the object as it is now."""
        config = self.facts["istio_config"]
        row = config.loc[self.item.index]
        generation = plain(row["generation"])
        said = []
        for condition in row["conditions"] or ():
            observed = condition.get("observedGeneration")
            current = generation is None or observed is None or str(observed) == str(generation)
            if condition.get("type") in _REFUSED and condition.get("status") == "False" and current:
                about = f" of {condition['about']}" if condition.get("about") else ""
                why = condition.get("message") or condition.get("reason") or "no reason is given"
                said.append(f"{condition['type']} is False{about}: {str(why).rstrip('.')}")
        return said, (Cited("istio_config", (self.item.index,)),) if said else ()

    def _rejected(self) -> Iterator[str]:
        """Yield what an istiod counts as rejected under the object's name."""
        metrics = self.facts["istiod_metrics"]
        rows = metrics[(metrics["metric"] == _REJECTED) & (metrics["value"] > 0)]
        wanted = f'name="{self.item.namespace}/{self.item.name}"'
        for istiod, labels in zip(rows["istiod"], rows["labels"], strict=True):
            if wanted in str(labels):
                yield f"{istiod} rejected it when it read it ({_REJECTED})"

    def _selected(self, scope: Scope) -> Rung:
        name = "selected"
        reached = list(scope.reached.values())
        standings = tuple(Standing(one.proxy, PASSED, one.why) for one in reached)
        standings += tuple(
            Standing(one.proxy, NOT_NEEDED, one.why) for one in scope.missed.values()
        )
        blind = self.written or bool(self.facts.gaps("pods"))
        wrong = [*scope.faults, *([] if blind else scope.lacks)]
        if scope.aside:
            return Rung(name, NOT_NEEDED, scope.aside, standings)
        if wrong:
            return Rung(name, BROKEN, _sentences(wrong), standings)
        if self.written and not reached:
            says = "Which proxies it concerns is not known: manifests have no pods that run."
            return Rung(name, UNDECIDED, says, standings)
        says = f"It concerns {_proxies(reached)}"
        if scope.missed:
            says += f", and not {len(scope.missed)} others ({scope.whys()})"
        notes = f" {_sentences(scope.notes)}" if scope.notes else ""
        if not reached:
            return Rung(name, UNDECIDED, f"No proxy is known that it concerns.{notes}", standings)
        return Rung(name, PASSED, f"{says}.{notes}", standings)

    # --- what runs ---

    def _running(self, scope: Scope) -> Iterator[Rung]:
        generation = None
        if self.ports is None:
            generation = plain(self.facts["istio_config"].loc[self.item.index, "generation"])
        effects = (
            ServiceEffects(self.facts, self.mesh, self.item, self.ports)
            if self.ports is not None
            else Effects(self.facts, self.mesh, self.item)
        )
        held = {proxy: (reach, effects.at(reach)) for proxy, reach in scope.reached.items()}
        progress = Progress(self.facts, self.mesh, self.item, generation)
        seen = progress.seen()
        found = progress.standings(held, seen)
        in_force = [effect for _, effect in held.values() if effect.state == AGREES]
        yield self._seen(seen, anywhere=bool(in_force), everywhere=len(in_force) == len(held))
        lost = progress.lost(held)
        for name in ("pushed", "accepted", "active"):
            standings = tuple(getattr(one, name) for one in found.values())
            yield _together(name, standings, lost if name == "pushed" else [])
        yield Usage(self.facts, self.item).rung(held)

    def _seen(self, standings: tuple[Standing, ...], *, anywhere: bool, everywhere: bool) -> Rung:
        """Return the rung of the istiods; what proxies hold proves that one has read it."""
        name = "seen"
        behind = [one for one in standings if one.outcome == BROKEN]
        having = [one for one in standings if one.outcome == PASSED]
        if behind:
            who = "; ".join(f"{one.who}: {one.says}" for one in behind)
            return Rung(name, BROKEN, f"{who}.", standings)
        if having:
            rest = len(standings) - len(having)
            more = f"; of {rest} more it is not known or not wanted" if rest else ""
            return Rung(name, PASSED, f"{listed(o.who for o in having)} has it{more}.", standings)
        # Where proxies are connected to one that is not seen here, it runs elsewhere.
        none_runs = (
            self.mesh.pods and not istiods(self.mesh) and not len(self.facts["proxy_status"])
        )
        if none_runs and everywhere:
            says = "No istiod runs; every proxy took it while one did."
            return Rung(name, UNDECIDED, says, standings)
        if none_runs and not self.facts.gaps("pods"):
            return Rung(name, BROKEN, "No istiod runs, so nobody reads it.", standings)
        if anywhere:
            return Rung(name, PASSED, "A proxy has it, so an istiod has read it.", standings)
        return Rung(name, UNDECIDED, "What the istiods hold was not recorded.", standings)


_DONE: Mapping[str, str] = {
    "pushed": "It was sent to",
    "accepted": "It was taken by",
    "active": "It is in force in",
}


def _together(name: str, standings: tuple[Standing, ...], lost: list[str]) -> Rung:
    """Return the rung of several proxies: broken when it is for any of them.

    ``lost`` are those that no later change will reach.
    """
    by_outcome: dict[str, list[Standing]] = {}
    for one in standings:
        by_outcome.setdefault(one.outcome, []).append(one)
    passed, broken = by_outcome.get(PASSED, []), by_outcome.get(BROKEN, [])
    if broken:
        words = dict.fromkeys(one.says for one in broken)
        who = listed((one.who for one in broken), 3)
        says = f"Not {len(broken)} of {len(standings)} proxies ({who}): {'; '.join(words)}."
        return Rung(name, BROKEN, says, standings)
    undecided = by_outcome.get(UNDECIDED, [])
    if passed:
        says = f"{_DONE[name]} {_count(len(passed))}"
        if undecided:
            says += f"; of {_count(len(undecided))} it is not known: {undecided[0].says}"
        if lost:
            says += f". No later change will reach {listed(lost)}: connected to no istiod now"
        return Rung(name, PASSED, f"{says}.", standings)
    if undecided:
        return Rung(name, UNDECIDED, f"Cannot decide: {undecided[0].says}.", standings)
    return Rung(name, NOT_REACHED, "It came to no proxy so far.", standings)


def _summary(rungs: list[Rung]) -> str:
    """Return what became of a change that is stopped nowhere."""
    by_name = {rung.name: rung for rung in rungs}
    for name in ("selected", "active"):
        if by_name[name].outcome in (NOT_NEEDED, UNDECIDED, NOT_REACHED):
            return f"{by_name[name].says}"
    late = by_name["pushed"].says.partition(". No later change")
    more = f" No later change{late[2]}" if late[2] else ""
    return f"{by_name['active'].says} {by_name['used'].says}{more}"


def _proxies(reached: list[Reach]) -> str:
    return f"{_count(len(reached))} ({listed((one.proxy for one in reached), 3)})"


def _count(number: int) -> str:
    return "1 proxy" if number == 1 else f"{number} proxies"


def _sentences(parts: Iterable[str]) -> str:
    return " ".join(map(_sentence, dict.fromkeys(parts)))


def _sentence(text: str) -> str:
    # A field's name or a host at the beginning stays as it is written.
    word = text.partition(" ")[0]
    begun = f"{text[:1].upper()}{text[1:]}" if word.isalpha() and word.islower() else text
    return begun if begun.endswith(("?", ".")) else f"{begun}."


def _time(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S}"
