"""From symptoms and findings to ranked causes, what was ruled out, and what could not be known."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from meshnb.checks import (
    CHECKS,
    Cause,
    Check,
    Finding,
    Inputs,
    Outcome,
    Severity,
    Subject,
    Verdict,
    run,
)
from meshnb.checks.changes import changed_at_end
from meshnb.checks.merging import merge
from meshnb.sources import Manifests
from meshnb.symptoms import Symptom, Symptoms
from meshnb.tables import Facts, Gap

#: Format of :meth:`Diagnosis.to_json`.
FORMAT = 1
#: How bad something is that stands in an object, by the level of its message.
_SEVERITIES = {
    "Error": Severity.ERROR,
    "Warning": Severity.WARNING,
    "Info": Severity.INFO,
}
#: A finding below this certainty is a guess.
SURE = 0.5
#: So sure is a finding still whose check could not see all that it looked at.
HALF_SEEN = 0.8
#: What leaves no line in a log weighs less than a failure that was seen.
STATE_WEIGHT = 0.5
#: So many failures that nothing explains are more than an accident.
UNEXPLAINED = 3


@dataclass(frozen=True, slots=True)
class RankedCause:
    """One cause: a finding of a check, its rank among all, and the symptoms that it explains."""

    rank: int
    check: Check
    finding: Finding
    explains: tuple[Symptom, ...]
    #: what is missing of what its check looked at
    missing: tuple[Gap, ...] = ()
    #: whether the source has symptoms that are no mere notes
    amid_symptoms: bool = False

    @property
    def certainty(self) -> float:
        """How surely it is at fault, from 0 to 1; less where its check could not see all."""
        return self.finding.certainty * (HALF_SEEN if self.missing else 1.0)

    @property
    def standing(self) -> str:
        """What it is to the symptoms: ``cause``, ``fault``, ``blemish`` or ``note``.

        A cause explains some. A fault was found where nothing goes wrong that could be seen. A
        blemish explains nothing of what goes wrong, so it is not the cause of it. A note is no
        problem.
        """
        if self.severity is Severity.INFO:
            return "note"
        if self.explains:
            return "cause"
        return "blemish" if self.amid_symptoms else "fault"

    @property
    def subject(self) -> Subject:
        """The object that has to be mended."""
        return self.finding.subject

    @property
    def severity(self) -> Severity:
        """How bad it is; of what was only written, as bad as its level says."""
        return _severity(self.check, self.finding)

    @property
    def failure_class(self) -> Cause:
        """Which of the three failure classes it belongs to."""
        return self.finding.cause or self.check.cause

    @property
    def mechanism(self) -> str:
        """How the fault makes the symptom."""
        return self.finding.mechanism or self.check.why

    @property
    def first_seen(self) -> datetime | None:
        """When the first symptom that it explains was seen."""
        return min((s.first_seen for s in self.explains if s.first_seen is not None), default=None)

    @property
    def count(self) -> int:
        """How many failures it explains."""
        return sum(symptom.count for symptom in self.explains)


@dataclass(frozen=True, slots=True)
class Past:
    """A symptom that is over, and what was changed when it ended."""

    symptom: Symptom
    #: objects with the time of their change, the last first
    changes: tuple[tuple[datetime, Subject], ...]

    @property
    def since(self) -> datetime | None:
        """Since when the same works again."""
        return self.symptom.over_since

    @property
    def message(self) -> str:
        """What it was, since when it is over, and what was changed then."""
        since = f"{self.since:%H:%M:%S}" if self.since is not None else "then"
        then = " and ".join(f"{subject} ({when:%H:%M:%S})" for when, subject in self.changes)
        why = f"; changed then: {then}" if then else ""
        return f"{self.symptom.count}x {self.symptom.message}: over since {since} UTC{why}"


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What is wrong with a mesh, why we think so, and what we could not see."""

    facts: Facts
    symptoms: Symptoms
    #: best first; those of severity info come last and are no problem
    causes: tuple[RankedCause, ...]
    outcomes: tuple[Outcome, ...]
    #: what went wrong earlier and works again; the verdict is not about it
    past: tuple[Past, ...] = ()

    @property
    def problems(self) -> tuple[RankedCause, ...]:
        """The causes above info."""
        return tuple(cause for cause in self.causes if cause.severity is not Severity.INFO)

    @property
    def ruled_out(self) -> tuple[Outcome, ...]:
        """The checks that passed, or only guess at what a surer cause explains.

        Those of objects as they are written rule nothing out.
        """
        named = {cause.check.code for cause in self.causes}
        return tuple(
            outcome
            for outcome in self.outcomes
            if not outcome.check.lint
            and (
                outcome.verdict is Verdict.PASS
                or (outcome.verdict is Verdict.FAIL and outcome.check.code not in named)
            )
        )

    @property
    def unknown(self) -> tuple[Outcome, ...]:
        """The checks without an answer, because evidence is missing or the check is broken."""
        return tuple(
            outcome
            for outcome in self.outcomes
            if outcome.verdict is Verdict.BROKEN
            or (outcome.verdict is Verdict.UNKNOWN and not outcome.check.lint)
        )

    @property
    def missing(self) -> tuple[Gap, ...]:
        """What the checks could not see: what they looked for, or a table of theirs did not get."""
        tables = {name: None for outcome in self.outcomes for name in outcome.check.tables}
        looked_for = [gap for outcome in self.outcomes for gap in outcome.gaps]
        return tuple(dict.fromkeys((*self.facts.gaps(*tables), *looked_for)))

    @property
    def unexplained(self) -> tuple[Symptom, ...]:
        """The symptoms that no cause explains."""
        explained = {symptom.id for cause in self.causes for symptom in cause.explains}
        return tuple(symptom for symptom in self.symptoms if symptom.id not in explained)

    @property
    def verdict(self) -> str:
        """``problem``, ``healthy``, or ``unknown`` when nothing was found but not all was seen."""
        if self.problems:
            return "problem"
        if isinstance(self.facts.source, Manifests):
            # Nothing runs yet, so what a running mesh would have shown is not missing.
            return "healthy"
        blind = any(outcome.check.severity is Severity.ERROR for outcome in self.unknown)
        puzzling = any(_puzzling(symptom) for symptom in self.unexplained)
        return "unknown" if blind or puzzling else "healthy"

    def __repr__(self) -> str:
        """Show the verdict and the first cause."""
        first = f": {self.problems[0].finding.message}" if self.problems else ""
        return f"<Diagnosis of {self.facts.source.label}, {self.verdict}{first}>"

    def to_json(self) -> dict[str, Any]:
        """Return the diagnosis as JSON-ready values, in the documented format 1."""
        return {
            "format": FORMAT,
            "source": self.facts.source.label,
            "recorded_at": self.facts.now.isoformat().replace("+00:00", "Z"),
            "verdict": self.verdict,
            "symptoms": [
                {
                    "id": symptom.id,
                    "kind": symptom.kind,
                    "message": symptom.message,
                    "count": symptom.count,
                    "first_seen": _time(symptom.first_seen),
                    "last_seen": _time(symptom.last_seen),
                }
                for symptom in self.symptoms
            ],
            "past": [
                {
                    "id": one.symptom.id,
                    "kind": one.symptom.kind,
                    "message": one.symptom.message,
                    "count": one.symptom.count,
                    "first_seen": _time(one.symptom.first_seen),
                    "last_seen": _time(one.symptom.last_seen),
                    "over_since": _time(one.since),
                    "changed_then": [
                        {"at": _time(when), **subject.to_json()} for when, subject in one.changes
                    ],
                }
                for one in self.past
            ],
            "causes": [self._cause(cause) for cause in self.causes],
            "ruled_out": [
                {"code": outcome.check.code, "title": outcome.check.title}
                for outcome in self.ruled_out
            ],
            "unknown": [
                {
                    "code": outcome.check.code,
                    "title": outcome.check.title,
                    "because": outcome.because,
                }
                for outcome in self.unknown
            ],
        }

    def _cause(self, cause: RankedCause) -> dict[str, Any]:
        return {
            "rank": cause.rank,
            "code": cause.check.code,
            "class": cause.failure_class.value,
            "severity": cause.severity.value,
            "subject": cause.subject.to_json(),
            "related": [related.to_json() for related in cause.finding.related],
            "message": cause.finding.message,
            "mechanism": cause.mechanism,
            "remedy": cause.finding.remedy,
            "explains": [symptom.id for symptom in cause.explains],
            "evidence": [
                {
                    "table": evidence.table,
                    "rows": int((evidence.rows["question"] == question).sum()),
                    "question": self.facts.question(question).to_json(),
                }
                for evidence in cause.finding.evidence
                for question in evidence.questions
            ],
        }


def _severity(check: Check, finding: Finding) -> Severity:
    if check.lint:
        return _SEVERITIES[finding.level]
    return finding.severity or check.severity


def _time(moment: datetime | None) -> str | None:
    return moment.isoformat().replace("+00:00", "Z") if moment is not None else None


def _puzzling(symptom: Symptom) -> bool:
    """Whether a symptom that nothing explains forbids to call the mesh healthy."""
    if symptom.kind not in ("request", "connection"):
        return True
    grave = symptom.kind == "connection" or symptom.code >= 500 or symptom.worked_before
    return symptom.count >= UNEXPLAINED and grave


def diagnose(facts: Facts, checks: Iterable[Check] | None = None) -> Diagnosis:
    """Run all checks on a source and rank what they find.

    First come the causes that explain symptoms, by how much of them they explain, recent ones and
    sure ones counting more; then faults that explain nothing seen, the worst and the most recently
    changed first; last what is merely worth knowing.
    """
    inputs = Inputs(facts)
    outcomes = tuple(run(inputs, _checks_for(facts) if checks is None else checks))
    found, symptoms = _with_states(
        _without_repetition(
            _without_guesses(
                [(outcome.check, finding) for outcome in outcomes for finding in outcome.findings]
            )
        ),
        inputs.symptoms,
        facts,
    )
    by_id = {symptom.id: symptom for symptom in symptoms}
    found = merge(
        found,
        inputs.get("mesh"),
        severity=_severity,
        weight=lambda finding: _weight(finding.explains, by_id),
    )
    missing = {outcome.check.code: outcome.gaps for outcome in outcomes}
    noted = {
        name
        for check, finding in found
        if _severity(check, finding) is Severity.INFO
        for name in finding.explains
    }
    causes = [
        RankedCause(
            rank=0,
            check=check,
            finding=finding,
            explains=tuple(by_id[name] for name in finding.explains if name in by_id),
            missing=missing[check.code],
            amid_symptoms=bool(by_id.keys() - noted),
        )
        for check, finding in found
    ]
    changed = _changes(facts)
    causes.sort(key=lambda cause: _order(cause, changed))
    return Diagnosis(
        facts=facts,
        symptoms=symptoms,
        causes=tuple(replace(cause, rank=rank) for rank, cause in enumerate(causes, start=1)),
        outcomes=outcomes,
        past=tuple(
            Past(symptom, tuple(changed_at_end(symptom, inputs.get("mesh"))))
            for symptom in inputs.symptoms.past
        ),
    )


def _weight(names: Iterable[str], by_id: Mapping[str, Symptom]) -> float:
    return sum(by_id[name].weight for name in names if name in by_id)


def _order(cause: RankedCause, changed: Mapping[str, float]) -> tuple[float, ...]:
    """Return the place of a cause among all; the first has the least."""
    weight = cause.certainty * sum(symptom.weight for symptom in cause.explains)
    return (
        cause.severity is Severity.INFO,
        not weight,
        -weight,
        cause.severity.rank,
        -changed.get(str(cause.subject), 0.0),
    )


def _checks_for(facts: Facts) -> list[Check]:
    """Return the checks that a source is diagnosed with.

    What objects say of themselves is no diagnosis of a mesh that can be asked how it does; of
    manifests that were not applied yet, it is all there is.
    """
    written = isinstance(facts.source, Manifests)
    return [check for check in CHECKS.values() if written or not check.lint]


def _without_guesses(found: list[tuple[Check, Finding]]) -> list[tuple[Check, Finding]]:
    """Leave out the unsure findings whose symptoms are all explained by surer ones."""
    sure = {
        symptom for _, finding in found if finding.certainty >= SURE for symptom in finding.explains
    }
    return [
        (check, finding)
        for check, finding in found
        if finding.certainty >= SURE or not set(finding.explains) <= sure
    ]


def _without_repetition(found: list[tuple[Check, Finding]]) -> list[tuple[Check, Finding]]:
    """Leave out what is odd in how an object is written where another check blames the object."""
    blamed = {finding.subject for check, finding in found if not check.lint}
    return [
        (check, finding)
        for check, finding in found
        if not check.lint or finding.subject not in blamed
    ]


def _with_states(
    found: list[tuple[Check, Finding]], symptoms: Symptoms, facts: Facts
) -> tuple[list[tuple[Check, Finding]], Symptoms]:
    """Make a symptom of each state that a finding shows and that nobody could log."""
    told: list[tuple[Check, Finding]] = []
    states: dict[str, Symptom] = {}
    for check, finding in found:
        if not finding.shows or finding.explains or _severity(check, finding) is Severity.INFO:
            told.append((check, finding))
            continue
        number = len(symptoms) + len(states) + 1
        first = next((one for one in finding.evidence if len(one.rows)), None)
        state = Symptom(
            kind="state",
            message=finding.shows,
            count=1,
            table=first.table if first is not None else "",
            rows=tuple(first.rows.index) if first is not None else (),
            last_seen=facts.now,
            weight=STATE_WEIGHT,
            id=f"s{number}",
        )
        state = states.setdefault(state.message, state)
        told.append((check, replace(finding, explains=(state.id,))))
    return told, replace(symptoms, found=(*symptoms.found, *states.values()))


def _changes(facts: Facts) -> dict[str, float]:
    """Return when each object was last changed, in seconds, by the text of its subject."""
    config = facts["istio_config"].dropna(subset=["changed"])
    return {
        str(Subject(kind, namespace, name)): changed.timestamp()
        for kind, namespace, name, changed in zip(
            config["kind"],
            config["namespace"].fillna(""),
            config["name"],
            config["changed"],
            strict=True,
        )
    }
