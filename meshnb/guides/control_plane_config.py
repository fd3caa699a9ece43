"""The guide for failure class A: an object says something else than was meant."""

from __future__ import annotations

from meshnb.checks import Cause
from meshnb.guides.asking import ask_hop
from meshnb.guides.base import Case, Chosen, Guide, Option, Page, Pick, step
from meshnb.guides.excerpts import excerpt
from meshnb.guides.focus import hosts, of_class, short
from meshnb.guides.pictures import State, age, change
from meshnb.guides.pictures.change import carried
from meshnb.guides.shared import (
    fails,
    followed,
    judgement,
    mend,
    plural,
    quiet,
)
from meshnb.symptoms import Symptom
from meshnb.symptoms.requests import split_address
from meshnb.traces.mesh import ConfigObject, host_matches

_CLASS = Cause.CONTROL_PLANE_CONFIG
#: Changes so much before the first failure still look like its reason, in seconds.
_JUST_BEFORE_S = 120.0


@step("Where it ends", asked=("access_log", "services", "pods"))
def hop(case: Case, chosen: Chosen) -> Page:
    """At which hop did the request end?

    The hop says which kind of object to look at: a route for a VirtualService, a cluster for a
    DestinationRule, a policy for an AuthorizationPolicy.
    """
    return ask_hop(case, followed(case, _CLASS, chosen), chosen.get("hop"))


@step("Objects and changes", asked=("istio_config", "mesh_settings", "namespaces", "services"))
def objects(case: Case, chosen: Chosen) -> Page:
    """Which objects have a say in this, and which of them changed last?

    Most failures of this kind begin with a change. The one just before the first failure is the
    first suspect.
    """
    focus = of_class(case, _CLASS)
    symptom = followed(case, _CLASS, chosen)
    first = symptom.first_seen if symptom is not None else None
    concerned = _concerned(case, focus.symptoms if symptom is None else (symptom,))
    every = list(case.mesh.objects)
    if not every:
        return quiet(
            case,
            "istio_config",
            "There is no Istio object in this mesh.",
            "Everything runs on defaults; what is wrong must be in Services, labels or pods.",
        )
    chosen_objects = sorted(concerned or every, key=lambda item: item.changed, reverse=True)
    rows = case.facts["istio_config"].loc[[item.index for item in chosen_objects]]
    frame = rows[["kind", "namespace", "name", "changed", "generation"]].copy()
    frame["before the recording"] = [
        age((case.facts.now - item.changed).total_seconds()) for item in chosen_objects
    ]
    suspects = []
    if first is not None:
        frame["before the first failure"] = [
            age((first - item.changed).total_seconds()) if item.changed <= first else "after it"
            for item in chosen_objects
        ]
        suspects = [
            item
            for item in chosen_objects
            if 0 <= (first - item.changed).total_seconds() <= _JUST_BEFORE_S
        ]
    youngest = chosen_objects[0]
    reading = (
        f"{suspects[0]} was changed {age((first - suspects[0].changed).total_seconds())} before "
        f"the first failure at {first:%H:%M:%S} UTC."
        if first is not None and suspects
        else f"The youngest change is that of {youngest}, at {youngest.changed:%H:%M:%S} UTC."
    )
    return Page(
        f"{plural(len(chosen_objects), 'object')} of {len(every)} can have a say; the last to "
        f"change was {youngest}.",
        State.ODD if suspects else State.FINE,
        reading,
        (excerpt("istio_config: the youngest change first", frame, columns=frame.columns),),
        command="kubectl get virtualservices,destinationrules,gateways.networking.istio.io,"
        "sidecars,peerauthentications,authorizationpolicies,envoyfilters -A",
    )


def _concerned(case: Case, symptoms: tuple[Symptom, ...]) -> list[ConfigObject]:
    """Return the objects that name a host of the symptoms, or can apply to a workload of theirs."""
    names = {short(host) for host in hosts(symptoms)} | set(hosts(symptoms))
    names |= {split_address(one.authority)[0] for s in symptoms for one in s.failures}
    spaces = {symptom.workload[0] for symptom in symptoms} | {
        failure.namespace for symptom in symptoms for failure in symptom.failures
    }
    found = []
    for item in case.mesh.objects:
        named = [
            case.mesh.fqdn(str(host), item.namespace)
            for host in (*_list(item.spec.get("hosts")), item.spec.get("host") or "")
        ]
        by_name = any(host_matches(host, name) for host in named for name in names if host and name)
        by_place = not any(named) and item.namespace in spaces | {case.mesh.root_namespace}
        if by_name or by_place:
            found.append(item)
    return found


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []


@step("The change", asked=("istio_config", "proxy_status", "proxies", "routes", "clusters"))
def ladder(case: Case, chosen: Chosen) -> Page:
    """How far did the object get: stored, sound, sent, accepted, in use?

    An object can be stored and yet have no effect. The first broken rung says whether to mend the
    object or a proxy.
    """
    every = sorted(case.mesh.objects, key=lambda item: item.changed, reverse=True)
    if not every:
        return quiet(
            case, "istio_config", "There is no object to follow.", "This mesh has no Istio object."
        )
    pick = Pick(
        "Which object do you want to follow?",
        tuple(Option(str(item), str(item)) for item in every),
        str(_suspect(case, every)),
    )
    name = pick.taken(chosen.get("ladder"))
    item = next(one for one in every if str(one) == name)
    chain = change(case.facts, item, case.diagnosis.outcomes)
    broken = next((link for link in chain.links if link.state is State.BROKEN), None)
    tables = []
    command = "istioctl proxy-status"
    for table, rows in carried(case.facts, item).items():
        if len(rows):
            tables.append(excerpt(f"{table} that name {item} as their origin", rows, most=6))
            command = f"istioctl proxy-config {table.rstrip('s')} {rows['proxy'].iloc[0]}"
    return Page(
        f"{item} fails at the rung “{broken.title}”." if broken else f"{item} has no broken rung.",
        State.BROKEN if broken else State.FINE,
        f"{broken.detail}" if broken else "What it asks for is what the proxies hold.",
        tuple(tables),
        chain,
        command,
        pick=pick,
    )


def _suspect(case: Case, every: list[ConfigObject]) -> ConfigObject:
    """Return the object at fault, else one that takes part in the fault, else the youngest."""
    cause = of_class(case, _CLASS).cause
    wanted = [cause.subject, *cause.finding.related] if cause is not None else []
    for subject in wanted:
        for item in every:
            if (item.kind, item.namespace, item.name) == (
                subject.kind,
                subject.namespace,
                subject.name,
            ):
                return item
    return every[0]


@step(
    "What the checks say",
    asked=("istio_config", "services", "pods", "namespaces", "secrets", "webhooks", "injection"),
)
def rules(case: Case, chosen: Chosen) -> Page:
    """Which rules does the configuration break?

    Istio takes objects that contradict each other without a word, so each rule is checked across
    all of them.
    """
    return judgement(
        case, _CLASS, "breaks a rule", "The objects contradict neither each other nor the mesh."
    )


CONTROL_PLANE_CONFIG = Guide(
    name="control_plane_config",
    title="Control plane configuration",
    about="An object says something else than was meant: find it, and see how far it got.",
    steps=(fails(_CLASS), hop, objects, ladder, rules, mend(_CLASS)),
)
