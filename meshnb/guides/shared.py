"""Pages and steps that several guides share: what fails, which checks say so, and what mends it."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from meshnb.checks import CHECKS, Cause, Outcome, Severity, Verdict
from meshnb.checks.base import and_list
from meshnb.diagnosis import RankedCause
from meshnb.guides.base import Case, Chosen, Excerpt, Fork, Option, Page, Pick, Step, step
from meshnb.guides.excerpts import excerpt, proof, varied
from meshnb.guides.focus import Focus, of_class
from meshnb.guides.meanings import meaning
from meshnb.guides.pictures import State, mesh_graph
from meshnb.symptoms import READS, Symptom
from meshnb.tables import TABLES

#: Which guide leads through which failure class.
GUIDE_OF = {
    Cause.CONTROL_PLANE_CONFIG: "control_plane_config",
    Cause.DATA_PLANE_CONFIG: "data_plane_config",
    Cause.DATA_PLANE: "data_plane",
}


def plural(count: int, one: str, many: str = "") -> str:
    """Return a count with its noun: ``1 pod``, ``2 pods``."""
    return f"{count} {one if count == 1 else many or one + 's'}"


def gap_note(case: Case, tables: Iterable[str]) -> str:
    """Return a sentence about what some tables did not get; empty when nothing is missing."""
    gaps = case.facts.gaps(*tables)
    if not gaps:
        return ""
    more = f", and {len(gaps) - 1} more" if len(gaps) > 1 else ""
    return f"Not everything could be seen: {gaps[0]}{more}."


def symptom_command(symptom: Symptom) -> str:
    """Return the command that shows what shows a symptom."""
    first, _, namespace = next(iter(symptom.reporters), "").partition(".")
    if symptom.kind in ("request", "connection"):
        return f"kubectl -n {namespace} logs {first} -c istio-proxy"
    if symptom.kind == "pod":
        return f"kubectl -n {symptom.workload[0]} describe pods"
    return "istioctl proxy-status"


def what_it_says(symptom: Symptom) -> str:
    """Return one or two sentences: who reports a symptom, what that means, and since when."""
    since = f" Since {symptom.first_seen:%H:%M:%S} UTC." if symptom.first_seen is not None else ""
    before = " The same request had worked before." if symptom.worked_before else ""
    if not symptom.failures:
        return f"{symptom.message}.{since}".replace("..", ".")
    failure = symptom.failures[-1]
    words, _ = meaning(failure)
    place = f"{failure.namespace}/{failure.workload}"
    who = {
        "server": f"The proxy of {place}, at the called side, says why",
        "gateway": f"The gateway {place} says why",
    }.get(symptom.side, f"{and_list(symptom.reporters, 2)}, at the calling side, say why")
    if symptom.side == "" or (symptom.side == "client" and len(symptom.reporters) == 1):
        who = who.replace(" say why", " says why")
    return f"{who}: {words}.{since}{before}"


def symptom_rows(case: Case, symptom: Symptom) -> Excerpt:
    """Return the rows that show a symptom, the latest first."""
    frame = case.facts[symptom.table]
    rows = frame.loc[list(reversed(symptom.rows))]
    rows.attrs["table"] = symptom.table
    return excerpt(f"{symptom.table}: {symptom.message}", varied(rows))


def latest_lines(case: Case, symptom: Symptom) -> Excerpt:
    """Return the last log lines of a symptom, for a reader who is asked what they say."""
    rows = case.facts["access_log"].loc[list(symptom.rows[-3:])]
    rows.attrs["table"] = "access_log"
    return excerpt("access_log: the latest of them", rows, of=symptom.count)


def nothing_fails(case: Case) -> Page:
    """Return the page for a mesh in which no symptom is seen."""
    missing = gap_note(case, READS)
    if missing:
        return Page("Nothing was seen to fail, but not all could be seen.", State.UNKNOWN, missing)
    logged = len(case.facts["access_log"])
    return Page(
        "Nothing is seen to fail.",
        State.FINE,
        f"{plural(logged, 'line')} in the access logs, no pod that waits, every proxy in step.",
        picture=mesh_graph(case.facts, case.mesh, case.symptoms),
    )


def quiet(case: Case, table: str, verdict: str, reading: str) -> Page:
    """Return the page for a table that shows nothing wrong; unknown when it is not all there."""
    missing = gap_note(case, (table,))
    state = State.UNKNOWN if missing else State.FINE
    command = _COMMANDS.get(table, "kubectl get pods -A")
    return Page(verdict, state, f"{reading} {missing}".strip(), command=command)


#: What shows the same as a table, on a terminal.
_COMMANDS = {
    "access_log": "kubectl -n NAMESPACE logs POD -c istio-proxy",
    "istio_config": "istioctl analyze -A",
}


def fails(cause: Cause) -> Step:
    """Return the step that shows what fails, for the guide of one failure class."""

    @step("What fails", asked=READS)
    def fails(case: Case, chosen: Chosen) -> Page:
        """What goes wrong, who sees it, and since when?

        A cause has to explain this, all of it. What is found later and explains nothing here is
        another matter.
        """
        focus = of_class(case, cause)
        if not len(case.symptoms):
            return nothing_fails(case)
        pick = Pick(
            "Which of them do you want to follow?",
            tuple(Option(one.id, one.message) for one in case.symptoms),
            (focus.symptoms or case.symptoms.found)[0].id,
        )
        symptom = followed(case, cause, chosen)
        assert symptom is not None
        return Page(
            f"{symptom.message} ({plural(symptom.count, 'time')}).",
            State.BROKEN,
            what_it_says(symptom),
            (symptom_rows(case, symptom),),
            mesh_graph(case.facts, case.mesh, case.symptoms),
            symptom_command(symptom),
            pick=pick if len(case.symptoms) > 1 else None,
        )

    return fails


def followed(case: Case, cause: Cause, chosen: Chosen) -> Symptom | None:
    """Return the symptom that is followed in the guide of one failure class; None without any."""
    wanted = chosen.get("fails")
    focus = of_class(case, cause)
    for symptom in case.symptoms:
        if symptom.id == wanted:
            return symptom
    return next(iter(focus.symptoms or case.symptoms.found), None)


def of_cause(outcomes: Iterable[Outcome], cause: Cause) -> list[Outcome]:
    """Return the outcomes of checks whose failure belongs to one class."""
    return [outcome for outcome in outcomes if outcome.check.cause is cause]


def found_table(causes: Iterable[RankedCause]) -> pd.DataFrame:
    """Return causes as a table: code, subject, what is wrong, how many failures it explains."""
    return pd.DataFrame(
        [(one.check.code, str(one.subject), one.finding.message, one.count) for one in causes],
        columns=["check", "object", "what is wrong", "failures explained"],
    )


def judged(case: Case, cause: Cause) -> tuple[Excerpt, ...]:
    """Return what the checks of one class found, could not decide, and ruled out."""
    outcomes = of_cause(case.diagnosis.outcomes, cause)
    found = [one for one in case.diagnosis.causes if one.failure_class is cause]
    unknown = [
        (one.check.code, one.check.title, one.because)
        for one in outcomes
        if one.verdict in (Verdict.UNKNOWN, Verdict.BROKEN)
    ]
    passed = [(one.check.code, one.check.title) for one in outcomes if one.verdict is Verdict.PASS]
    tables = []
    if found:
        tables.append(excerpt("What checks found", found_table(found)))
    if unknown:
        frame = pd.DataFrame(
            unknown, columns=["check", "holds when all is well", "unknown because"]
        )
        tables.append(excerpt("Could not be decided", frame, folded=bool(found)))
    if passed:
        frame = pd.DataFrame(passed, columns=["check", "holds"])
        tables.append(excerpt(f"Ruled out: {len(passed)}", frame, most=len(frame), folded=True))
    return tuple(tables)


def judgement(case: Case, cause: Cause, what: str, none: str) -> Page:
    """Return the page on what the checks of one class say; ``none`` when all passed."""
    found = [one for one in case.diagnosis.problems if one.failure_class is cause]
    outcomes = of_cause(case.diagnosis.outcomes, cause)
    passed = sum(one.verdict is Verdict.PASS for one in outcomes)
    unknown = sum(one.verdict in (Verdict.UNKNOWN, Verdict.BROKEN) for one in outcomes)
    counts = f"{passed} of {plural(len(outcomes), 'check')} of this kind passed" + (
        f", {unknown} could not be decided." if unknown else "."
    )
    tables = judged(case, cause)
    if not found:
        state = State.UNKNOWN if unknown else State.FINE
        return Page(
            none if not unknown else f"{none} Not all could be seen.", state, counts, tables
        )
    first = found[0]
    explains = (
        f"It explains {plural(first.count, 'failure')}."
        if first.explains
        else "It explains nothing that was seen to fail."
    )
    state = State.BROKEN if first.severity is Severity.ERROR else State.ODD
    return Page(
        f"{first.subject} {what}: {first.check.title}", state, f"{explains} {counts}", tables
    )


def conclusion(case: Case, focus: Focus) -> Page:
    """Return the page with cause, proof and remedy."""
    cause = focus.cause
    assert cause is not None
    evidence = [one for one in cause.finding.evidence if len(one.rows)]
    # What merely shows the symptom does not decide between causes.
    seen = {symptom.table for symptom in cause.explains}
    evidence.sort(key=lambda one: one.table in seen)
    proofs = tuple(proof(one) for one in evidence)
    decided = (
        f"What decided it: {plural(proofs[0].of, 'row')} of {proofs[0].caption}." if proofs else ""
    )
    return Page(
        f"Class {cause.failure_class.value}, {cause.failure_class.title}: {cause.subject}.",
        State.BROKEN if cause.severity is Severity.ERROR else State.ODD,
        decided,
        proofs,
        causes=(cause,),
    )


def mend(cause: Cause) -> Step:
    """Return the last step of the guide of one failure class: cause, proof and remedy."""
    asked = tuple(
        dict.fromkeys(
            table for check in CHECKS.values() if check.cause is cause for table in check.inputs
        )
    )
    tables = tuple(table for table in asked if table in TABLES) or READS

    @step("Cause and remedy", asked=tables)
    def mend(case: Case, chosen: Chosen) -> Page:
        """What is the cause, what proves it, and what mends it?

        A cause is named with the very rows that prove it, and with one thing to do.
        """
        focus = of_class(case, cause)
        if focus.cause is not None:
            return conclusion(case, focus)
        return elsewhere(case, cause)

    return mend


def elsewhere(case: Case, cause: Cause) -> Page:
    """Return the page for a mesh in which nothing of a class is at fault: where to look instead."""
    others = [one for one in case.diagnosis.problems if one.failure_class is not cause]
    unknown = [
        one
        for one in of_cause(case.diagnosis.outcomes, cause)
        if one.verdict in (Verdict.UNKNOWN, Verdict.BROKEN)
    ]
    state = State.UNKNOWN if unknown else State.FINE
    verdict = f"No {cause.title} was found."
    reading = (
        f"{plural(len(unknown), 'check')} could not be decided, the first because "
        f"{unknown[0].because}."
        if unknown
        else "Every check of this kind passed."
    )
    if not others:
        return Page(verdict, state, reading, judged(case, cause))
    other = others[0].failure_class
    return Page(
        f"{verdict} The evidence points to {other.title}.",
        state,
        f"{others[0].finding.message} {reading}",
        judged(case, cause),
        forks=(Fork(f"Go on with {other.title}", guide=GUIDE_OF[other]),),
    )


def unexplained(case: Case, symptoms: Iterable[Symptom]) -> Page:
    """Return the page for symptoms that no cause explains: what was seen, and what was not."""
    left = tuple(symptoms)
    unknown = case.diagnosis.unknown
    reason = (
        f"{plural(len(unknown), 'check')} could not be decided, the first because "
        f"{unknown[0].because}."
        if unknown
        else gap_note(case, READS) or "No check knows what makes it."
    )
    seen = f"{left[0].message} is not explained. " if left else ""
    return Page(
        "The cause is not known.",
        State.UNKNOWN,
        f"{seen}{reason}",
        tuple(symptom_rows(case, symptom) for symptom in left[:2]),
    )
