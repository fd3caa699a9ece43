"""The guide to begin with: from what somebody sees to the failure class, cause and remedy."""

from __future__ import annotations

from dataclasses import replace

from meshnb.checks import Cause
from meshnb.diagnosis import RankedCause
from meshnb.guides import data_plane_config
from meshnb.guides.base import Case, Chosen, Fork, Guide, Option, Page, Pick, step
from meshnb.guides.focus import SIGHTS, Focus, obvious_sight, on_sight, sights
from meshnb.guides.meanings import meaning
from meshnb.guides.pictures import State, mesh_graph, request
from meshnb.guides.shared import (
    GUIDE_OF,
    conclusion,
    gap_note,
    judgement,
    nothing_fails,
    plural,
    quiet,
    symptom_command,
    symptom_rows,
    unexplained,
    what_it_says,
)
from meshnb.symptoms import READS

_END = "cause"


def _focus(case: Case, chosen: Chosen) -> Focus:
    seen = chosen.get("see", "")
    return on_sight(case, seen if seen in SIGHTS else obvious_sight(case))


def _place(cause: RankedCause) -> str:
    """Return the step on which a cause comes to light."""
    if cause.failure_class is Cause.CONTROL_PLANE_CONFIG:
        return "objects"
    if cause.failure_class is Cause.DATA_PLANE:
        return "workloads"
    return "control_plane" if cause.check.family == "control_plane" else "in_step"


def _ways(case: Case, chosen: Chosen, here: str, following: str, label: str) -> tuple[Fork, ...]:
    """Return the ways on: to the end when the cause came to light here, else to the next step."""
    cause = _focus(case, chosen).cause
    onward = Fork(label, following)
    if cause is not None and _place(cause) == here:
        return (Fork("Cause and remedy", _END), onward)
    return (onward, Fork("That is enough: to the cause", _END))


@step("What you see", asked=READS)
def see(case: Case, chosen: Chosen) -> Page:
    """What do you see?

    Begin with what made you look. The evidence has an opinion of its own, which is chosen already.
    """
    counts = dict.fromkeys(SIGHTS, 0)
    for symptom in case.symptoms:
        for name in sights(case, symptom):
            counts[name] += symptom.count
    pick = Pick(
        "This comes closest:",
        tuple(
            Option(name, label + (f" ({counts[name]} in the evidence)" if counts[name] else ""))
            for name, label in SIGHTS.items()
        ),
        obvious_sight(case),
    )
    if not any(len(case.facts[table]) for table in (*READS, "istio_config")):
        return Page(
            "There is nothing to look at.",
            State.UNKNOWN,
            gap_note(case, READS),
            blocked=(
                "Neither pods nor logs nor objects are in this recording: record the mesh again.",
            ),
        )
    seen = pick.taken(chosen.get("see"))
    forks = (
        Fork("Where it begins", "begins"),
        Fork(f"The guide for this: {SIGHTS[seen]}", guide=seen),
    )
    return replace(_on_sight(case, chosen, seen), pick=pick, forks=forks)


def _on_sight(case: Case, chosen: Chosen, seen: str) -> Page:
    """Return the page on what a reader says to see."""
    if not len(case.symptoms):
        return nothing_fails(case)
    symptoms = _focus(case, chosen).symptoms
    table = case.symptoms.found
    picture = mesh_graph(case.facts, case.mesh, case.symptoms)
    if not symptoms:
        told = (
            "You see nothing in particular; the evidence does."
            if seen == "check_mesh"
            else f"No symptom in the evidence shows that: {SIGHTS[seen]}."
        )
        return Page(
            told,
            State.UNKNOWN,
            f"What it does show, above all: {table[0].message}.",
            (symptom_rows(case, table[0]),),
            picture,
            symptom_command(table[0]),
        )
    first = symptoms[0]
    others = len(case.symptoms) - 1
    return Page(
        f"{first.message} ({plural(first.count, 'time')}).",
        State.BROKEN,
        what_it_says(first) + (f" {plural(others, 'other symptom')} beside it." if others else ""),
        tuple(symptom_rows(case, symptom) for symptom in symptoms[:2]),
        picture,
        symptom_command(first),
    )


@step("Where it begins", asked=("access_log", "pods", "services"))
def begins(case: Case, chosen: Chosen) -> Page:
    """At which hop does the failure begin?

    Every proxy that a failed request passes writes a line. Only the one where it began says why.
    """
    symptoms = _focus(case, chosen).symptoms
    failing = [symptom for symptom in symptoms if symptom.failures]
    if not failing:
        what = f"{symptoms[0].message}." if symptoms else "No request of that kind failed."
        page = quiet(
            case,
            "access_log",
            "No access log tells where it begins.",
            f"{what} The next steps look at who should have seen to it.",
        )
        return replace(
            page,
            state=State.UNKNOWN if symptoms else page.state,
            tables=tuple(symptom_rows(case, symptom) for symptom in symptoms[:1]),
        )
    symptom = failing[0]
    words, hop = meaning(symptom.failures[-1])
    callers = list(dict.fromkeys((*symptom.reporters, *symptom.callers)))
    return Page(
        f"It begins at {hop}: {words}.",
        State.BROKEN,
        f"{what_it_says(symptom)} Seen by {plural(len(callers), 'proxy', 'proxies')}: "
        f"{', '.join(callers[:4])}{' …' if len(callers) > 4 else ''}.",
        (symptom_rows(case, symptom),),
        request(symptom, case.mesh),
        symptom_command(symptom),
    )


@step("The control plane", asked=data_plane_config.control_plane.asked)
def control_plane(case: Case, chosen: Chosen) -> Page:
    """Is every istiod there, and does it answer on the ports that proxies and Kubernetes need?

    It comes first because it is quick to ask, and because a silent control plane makes everything
    else old news.
    """
    page = data_plane_config.control_plane.page(case, chosen)
    forks = _ways(case, chosen, "control_plane", "in_step", "Are the proxies in step?")
    if page.state is State.BROKEN and forks[0].to != _END:
        forks = (replace(forks[0], label="All the same, are the proxies in step?"), *forks[1:])
    return replace(page, forks=forks)


@step("The proxies", asked=data_plane_config.in_step.asked)
def in_step(case: Case, chosen: Chosen) -> Page:
    """Does every proxy hold what istiod sent, and since when?

    If one does not, its objects are not to blame: it does not know them yet, or has refused them.
    """
    page = data_plane_config.in_step.page(case, chosen)
    label = (
        "Are the objects right?"
        if page.state is State.FINE
        else "All the same, are the objects right?"
    )
    return replace(page, forks=_ways(case, chosen, "in_step", "objects", label))


@step("The objects", asked=("istio_config", "services", "namespaces", "secrets", "webhooks"))
def objects(case: Case, chosen: Chosen) -> Page:
    """Do the objects say what was meant?

    Proxies that are in step do what the objects say, also where the objects contradict each other.
    """
    page = judgement(
        case,
        Cause.CONTROL_PLANE_CONFIG,
        "breaks a rule",
        "The objects contradict neither each other nor the mesh.",
    )
    return replace(
        page,
        command="istioctl analyze -A",
        forks=_ways(case, chosen, "objects", "workloads", "Are pods and applications as assumed?"),
    )


@step(
    "Pods and applications",
    asked=("pods", "containers", "endpoints", "service_endpoints", "access_log"),
)
def workloads(case: Case, chosen: Chosen) -> Page:
    """Are pods, applications and callers what the mesh takes them for?

    When control plane, proxies and objects are right, what is left is what they stand in front of.
    """
    page = judgement(
        case,
        Cause.DATA_PLANE,
        "is not what the mesh takes it for",
        "Pods, applications and callers are what the mesh takes them for.",
    )
    return replace(page, command="kubectl get pods -A -o wide")


@step("Cause and remedy", asked=READS)
def cause(case: Case, chosen: Chosen) -> Page:
    """What is the cause, what proves it, and what mends it?

    One of three things has to be mended: an object, a proxy's configuration, or what runs behind
    the proxies.
    """
    focus = _focus(case, chosen)
    if focus.cause is not None:
        guide = GUIDE_OF[focus.cause.failure_class]
        label = f"Look closer: {focus.cause.failure_class.title}"
        return replace(conclusion(case, focus), forks=(Fork(label, guide=guide),))
    if case.diagnosis.verdict == "healthy":
        passed = len(case.diagnosis.ruled_out)
        return Page(
            "Nothing is wrong that the checks know of.",
            State.FINE,
            f"{plural(passed, 'check')} passed, and nothing is seen to fail.",
            forks=(Fork(SIGHTS["check_mesh"], guide="check_mesh"),),
        )
    return unexplained(case, case.diagnosis.unexplained)


TRIAGE = Guide(
    name="triage",
    title="Triage",
    about="From what you see, step by step, to the class of the failure, its cause and its remedy.",
    steps=(see, begins, control_plane, in_step, objects, workloads, cause),
)
