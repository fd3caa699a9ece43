"""What the guides for changes and policies share: which object it is, and how far it got."""

from __future__ import annotations

from collections.abc import Callable

from meshnb.guides import choices
from meshnb.guides.asking import first_ask
from meshnb.guides.base import Case, Chosen, Option, Page, Pick, Step, step
from meshnb.guides.excerpts import excerpt
from meshnb.guides.pictures import State
from meshnb.guides.seen import followed
from meshnb.guides.shared import gap_note, plural
from meshnb.guides.tracing import change_page
from meshnb.traces.rungs.ladder import RUNGS


def which(name: str, wanted: Callable[[str], bool], what: str) -> Step:
    """Return the step on which an object is chosen, among those of kinds that are ``wanted``."""

    @step("Which object", asked=("istio_config", "services", "mesh_settings"))
    def which(case: Case, chosen: Chosen) -> Page:
        """Which object was to have an effect?

        What was changed last, or is blamed, stands first. One object at a time can be followed.
        """
        every = _offered(case, name, wanted)
        missing = gap_note(case, ("istio_config",))
        if not every:
            return Page(
                f"There is no {what} in this mesh.",
                State.UNKNOWN if missing else State.FINE,
                f"Nothing can have an effect, then. {missing}".strip(),
                command=_ALL,
            )
        pick = Pick(f"Which {what}?", every, every[0].value)
        label = pick.label(pick.taken(chosen.get("which")))
        table = case.facts["istio_config"]
        rows = table.sort_values("changed", ascending=False)
        rows = rows[[wanted(kind) for kind in rows["kind"]]]
        rows.attrs["table"] = "istio_config"
        shown = (excerpt("istio_config: the youngest change first", rows, most=8),)
        return Page(
            f"{label} is followed.",
            State.UNKNOWN if missing else State.FINE,
            f"{plural(len(every), what)} can be followed. {missing}".strip(),
            shown if len(rows) else (),
            command=_ALL,
            pick=pick,
        )

    return which


_ALL = (
    "kubectl get virtualservices,destinationrules,gateways.networking.istio.io,sidecars,"
    "peerauthentications,authorizationpolicies,requestauthentications,envoyfilters -A"
)


def _offered(case: Case, name: str, wanted: Callable[[str], bool]) -> tuple[Option, ...]:
    """Return the objects to choose from: what is blamed, then what takes part, then the newest."""
    every = [one for one in choices.objects(case) if wanted(one.value.partition("/")[0])]
    focus = followed(case, name, {})
    if focus is None or focus.cause is None:
        return tuple(every)
    first = []
    blamed = focus.cause.subject
    if blamed.kind == "Service":
        first.append(Option(f"Service/{blamed.namespace}/{blamed.name}", str(blamed)))
    for subject in (blamed, *focus.cause.finding.related):
        value = f"{subject.kind}/{subject.namespace}/{subject.name}"
        first += [one for one in every if one.value == value]
    return tuple(dict.fromkeys((*first, *every)))


def rung(name: str, wanted: Callable[[str], bool]) -> Step:
    """Return the step that asks how far the chosen object got, and then shows the ladder."""

    @step("How far it got", asked=("istio_config", "proxy_status", "proxies", "istiod_log"))
    def rung(case: Case, chosen: Chosen) -> Page:
        """At which rung does it stop, from being stored to being used?

        An object can be stored and have no effect. The first broken rung says whether to mend the
        object or a proxy.
        """
        offered = _offered(case, name, wanted)
        if not offered:
            missing = gap_note(case, ("istio_config",)) or "No such object is there."
            return Page("There is nothing to follow.", State.UNKNOWN, missing, command=_ALL)
        subject = next(
            (one.value for one in offered if one.value == chosen.get("which")), offered[0].value
        )
        answer = change_page(case, subject)
        links = answer.picture.links if answer.picture is not None else ()  # type: ignore[union-attr]
        right = next((one.title for one in links if one.state is State.BROKEN), "none")
        status = case.facts["proxy_status"]
        return first_ask(
            chosen.get("rung"),
            f"{subject} stops at:",
            {**{one: f"{one}: {asks}" for one, asks in RUNGS.items()}, "none": "none of them"},
            right,
            answer,
            "Think first: what of this could you see with kubectl alone?",
            (excerpt("proxy_status: what istiod says", status, most=6),) if len(status) else (),
        )

    return rung
