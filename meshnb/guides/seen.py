"""Steps that the guides for what people see have in common: is it seen, what is it, what mends it.

::

    NOT_FOUND = Guide(
        name="not_found",
        …,
        steps=(seen("not_found"), …, apart("not_found", …), mended("not_found")),
    )
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from enum import Enum

import pandas as pd

from meshnb.checks import Outcome, Subject, Verdict
from meshnb.diagnosis import RankedCause
from meshnb.guides.base import Case, Chosen, Excerpt, Fork, Option, Page, Pick, Step, step
from meshnb.guides.branches import Branch
from meshnb.guides.confusable import CONFUSABLE
from meshnb.guides.excerpts import excerpt, proof
from meshnb.guides.focus import SIGHTS, Focus, at_hand, noticed_by, sight
from meshnb.guides.pictures import State, mesh_graph
from meshnb.guides.shared import (
    conclusion,
    gap_note,
    plural,
    symptom_command,
    symptom_rows,
    unexplained,
    what_it_says,
)
from meshnb.symptoms import READS, Symptom


def followed(case: Case, name: str, chosen: Chosen) -> Focus | None:
    """Return what is followed in the guide of one sight: what was picked, else the first."""
    found = at_hand(case, name)
    wanted = chosen.get("seen")
    return next((one for one in found if _value(one) == wanted), next(iter(found), None))


def symptom_of(case: Case, name: str, chosen: Chosen) -> Symptom | None:
    """Return the symptom that is followed; None when nothing that was recorded shows it."""
    focus = followed(case, name, chosen)
    return focus.symptoms[0] if focus is not None and focus.symptoms else None


def _value(focus: Focus) -> str:
    if focus.symptoms:
        return focus.symptoms[0].id
    assert focus.cause is not None
    return f"cause{focus.cause.rank}"


def _label(focus: Focus) -> str:
    if focus.symptoms:
        return focus.symptoms[0].message
    assert focus.cause is not None
    return f"something about {focus.cause.subject} that no log shows"


def seen(name: str, *tables: str) -> Step:
    """Return the first step of a guide: is this seen, by whom, how often and since when?

    ``tables`` are looked at beside those in which symptoms stand.
    """
    asked = tuple(dict.fromkeys((*READS, *tables)))

    @step("Is it seen", asked=asked)
    def seen(case: Case, chosen: Chosen) -> Page:
        """Is this seen here: by whom, how often, and since when?

        A cause has to explain this, all of it. What is not seen here belongs into another guide.
        """
        focus = followed(case, name, chosen)
        if focus is None:
            return _not_seen(case, name, asked)
        every = at_hand(case, name)
        pick = Pick(
            "Which of them do you want to follow?",
            tuple(Option(_value(one), _label(one)) for one in every),
            _value(every[0]),
        )
        page = _shown(case, name, focus, asked)
        return replace(page, pick=pick if len(every) > 1 else None)

    return seen


def _shown(case: Case, name: str, focus: Focus, asked: tuple[str, ...]) -> Page:
    graph = mesh_graph(case.facts, case.mesh, case.symptoms)
    if not focus.symptoms:
        assert focus.cause is not None
        missing = gap_note(case, asked)
        return Page(
            "No log line and no event shows it.",
            State.UNKNOWN if missing else State.ODD,
            f"{SIGHTS[name]}: no proxy would call that an error. But a check found something about "
            f"{focus.cause.subject} that makes it. {missing}".strip(),
            picture=graph,
            command=f"kubectl get events -n {_namespace(focus.cause.subject) or 'default'}",
        )
    symptom = focus.symptoms[0]
    return Page(
        f"{symptom.message} ({plural(symptom.count, 'time')}).",
        State.BROKEN,
        what_it_says(symptom),
        (symptom_rows(case, symptom),),
        graph,
        symptom_command(symptom),
    )


def _not_seen(case: Case, name: str, asked: tuple[str, ...]) -> Page:
    """Return the page for what is not seen: what was looked at, and where to look next."""
    missing = gap_note(case, asked)
    looked = (
        f"{plural(len(case.facts['access_log']), 'line')} in the access logs, "
        f"{plural(len(case.facts['pods']), 'pod')} and "
        f"{plural(len(case.facts['events']), 'event')} were looked at."
    )
    other, because = _elsewhere(case)
    onward = Fork(f"the guide for: {SIGHTS[other]}", guide=other)
    if other == name:
        onward = Fork("Begin with the triage", guide="triage")
    verdict = f"That is not seen here: {SIGHTS[name]}."
    if missing:
        verdict = f"Whether it happens cannot be told: {SIGHTS[name]}."
    return Page(
        verdict,
        State.UNKNOWN if missing else State.FINE,
        f"{looked} {because} {missing}".strip(),
        command="kubectl get pods,events -A",
        picture=mesh_graph(case.facts, case.mesh, case.symptoms),
        forks=(onward, Fork("All the same: the next step", _second(name))),
    )


def _second(name: str) -> str:
    from meshnb.guides import GUIDES  # noqa: PLC0415  the list of guides is made of such steps

    return GUIDES[name].steps[1].name


def _elsewhere(case: Case) -> tuple[str, str]:
    """Return the guide for what is wrong instead, and why it is that one."""
    if case.diagnosis.problems:
        first = case.diagnosis.problems[0]
        seen = first.explains[0].message if first.explains else f"a fault of {first.subject}"
        return noticed_by(case, first), f"What the evidence shows instead: {seen}."
    if len(case.symptoms):
        first_seen = case.symptoms.found[0]
        return sight(case, first_seen), f"What the evidence shows instead: {first_seen.message}."
    return "check_mesh", "Nothing else is seen to fail either, so look at the mesh itself."


# --- Told apart ----------------------------------------------------------------------------------


def apart(name: str, command: str, *tables: str) -> Step:
    """Return the step that tells apart what looks alike, by the evidence of each branch.

    ``command`` shows the deciding evidence; {proxy} and {namespace} are those of what is followed.
    """

    @step("Told apart", asked=tables)
    def apart(case: Case, chosen: Chosen) -> Page:
        """What else looks like this, and which evidence tells them apart?

        The first sign has many reasons. Each of them leaves something that the others do not.
        """
        focus = followed(case, name, chosen) or Focus((), None)
        rows = [(*_judged(case, one, focus), one) for one in CONFUSABLE[name]]
        if focus.cause is not None and not any(one is _Here.IT for one, *_ in rows):
            other = Branch(focus.cause.check.title, "the check itself", (focus.cause.check.code,))
            rows.insert(0, (_Here.IT, focus.cause.finding.message, other))
        rows.sort(key=lambda row: row[0].value[0])
        return replace(_decided(case, focus, rows), command=_filled(case, focus, command))

    return apart


class _Here(Enum):
    """How a branch stands, the one that matters first, with its sign and its words."""

    IT = (0, State.BROKEN, "this is it")
    BESIDE = (1, State.ODD, "there as well")
    UNKNOWN = (2, State.UNKNOWN, "unknown")
    OUT = (3, State.FINE, "ruled out")

    @property
    def words(self) -> str:
        """The sign and the words."""
        return f"{self.value[1].sign} {self.value[2]}"


def _judged(case: Case, one: Branch, focus: Focus) -> tuple[_Here, str]:
    """Return how a branch stands here, and why."""
    outcomes = [outcome for outcome in case.diagnosis.outcomes if outcome.check.code in one.codes]
    if focus.cause is not None and focus.cause.check.code in one.codes:
        return _Here.IT, focus.cause.finding.message
    found = _found(case, one)
    if found is not None:
        return _Here.BESIDE, f"{found.finding.message} It explains none of this."
    symptom = focus.symptoms[0] if focus.symptoms else None
    if symptom is not None and not one.can_show_as(symptom):
        flags = ",".join(sorted(symptom.flags)) or symptom.details.partition("{")[0]
        return (
            _Here.OUT,
            f"The log says {symptom.code or ''} {flags}, which this does not.".replace("  ", " "),
        )
    if not outcomes:
        return _Here.UNKNOWN, "No check looks at that."
    blind = _blind(outcomes)
    if blind is not None:
        return _Here.UNKNOWN, f"It could not be decided, because {blind.because}."
    more = f" And {plural(len(outcomes) - 1, 'more check')} passed." if outcomes[1:] else ""
    return _Here.OUT, f"{outcomes[0].check.title}{more}"


def _found(case: Case, one: Branch) -> RankedCause | None:
    return next((cause for cause in case.diagnosis.problems if cause.check.code in one.codes), None)


def _blind(outcomes: Iterable[Outcome]) -> Outcome | None:
    unknown = (Verdict.UNKNOWN, Verdict.BROKEN)
    return next((outcome for outcome in outcomes if outcome.verdict in unknown), None)


def _decided(case: Case, focus: Focus, rows: list[tuple[_Here, str, Branch]]) -> Page:
    frame = pd.DataFrame(
        [(here.words, one.name, one.decides, why) for here, why, one in rows],
        columns=["here", "what it can be", "told by", "because"],
    )
    out = sum(here is _Here.OUT for here, *_ in rows)
    unknown = [one.name for here, _, one in rows if here is _Here.UNKNOWN]
    counts = f"Ruled out: {out} of {len(rows)}."
    if unknown:
        counts += f" Not known: {len(unknown)}, such as “{unknown[0]}”."
    table = excerpt("What it can be", frame, most=len(frame), columns=frame.columns)
    if focus.cause is None:
        seen = bool(focus.symptoms)
        return Page(
            "None of what is known to make this is found."
            if seen
            else "Nothing is found that would make this.",
            State.UNKNOWN if seen or unknown else State.FINE,
            counts,
            (table,),
        )
    deciding = _deciding(focus)
    told = f"Decided by {deciding.caption}. " if deciding is not None else ""
    return Page(
        f"It is this: {_sentence(rows[0][2].name)}",
        State.BROKEN,
        f"{told}{counts}",
        (*((deciding,) if deciding is not None else ()), table),
    )


def _sentence(text: str) -> str:
    return text if text.endswith(".") else f"{text}."


def _deciding(focus: Focus) -> Excerpt | None:
    """Return the rows that decide: of the cause's proofs, the first that is not the symptom."""
    assert focus.cause is not None
    shown = {symptom.table for symptom in focus.cause.explains}
    proofs = [one for one in focus.cause.finding.evidence if len(one.rows)]
    proofs.sort(key=lambda one: one.table in shown)
    return proof(proofs[0]) if proofs else None


def _namespace(subject: Subject) -> str:
    return subject.name if subject.kind == "Namespace" else subject.namespace


def _filled(case: Case, focus: Focus, command: str) -> str:
    """Return a command with the proxy and the namespace of what is followed."""
    reporters = focus.symptoms[0].reporters if focus.symptoms else ()
    known = set(case.facts["proxies"]["proxy"])
    proxy = next((one for one in reporters if one in known), "")
    namespace = proxy.rpartition(".")[2] or (
        _namespace(focus.cause.subject) if focus.cause is not None else ""
    )
    return command.replace("{proxy}", proxy or "POD.NAMESPACE").replace(
        "{namespace}", namespace or "NAMESPACE"
    )


# --- Cause and remedy ----------------------------------------------------------------------------


def mended(name: str) -> Step:
    """Return the last step of a guide: cause and remedy, or where to look instead."""

    @step("Cause and remedy", asked=READS)
    def mended(case: Case, chosen: Chosen) -> Page:
        """What is the cause, what proves it, and what mends it?

        A cause is named with the very rows that prove it, and with one thing to do.
        """
        focus = followed(case, name, chosen)
        if focus is None:
            return _not_seen_after_all(case, name)
        if focus.cause is not None:
            return conclusion(case, focus)
        return unexplained(case, focus.symptoms)

    return mended


def _not_seen_after_all(case: Case, name: str) -> Page:
    page = _not_seen(case, name, READS)
    return replace(page, forks=page.forks[:1], picture=None)
