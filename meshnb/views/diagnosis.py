"""The diagnosis as a card: cause, who is affected, remedy, why we think so, and what is left."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import ipywidgets
import pandas as pd

from meshnb.checks.base import and_list
from meshnb.diagnosis import Diagnosis, RankedCause
from meshnb.errors import UsageError
from meshnb.guides.base import Case
from meshnb.guides.excerpts import proof
from meshnb.guides.pictures import State
from meshnb.guides.shared import plural
from meshnb.views import tables
from meshnb.views.base import View, css, escape, mark, prose, styled
from meshnb.views.chooser import SourceChooser, taken

#: So many other causes are shown before one asks for more.
_MOST = 8
STATES = {"problem": State.BROKEN, "healthy": State.FINE, "unknown": State.UNKNOWN}


class DiagnosisView(View):
    """The diagnosis of a case, or of what is chosen in a chooser; it then follows the choice."""

    def __init__(self, of: Case | SourceChooser) -> None:
        """Show the diagnosis of a case, or follow a chooser."""
        self._card = ipywidgets.HTML()
        self._button = ipywidgets.Button(
            description="Write the report for the ticket",
            tooltip="Writes this with all proof into one HTML file beside the notebook",
            layout=ipywidgets.Layout(width="auto"),
        )
        self._button.on_click(self._write)
        self._said = ipywidgets.HTML()
        super().__init__([self._card, ipywidgets.HBox([self._button, self._said])])
        self.add_class("mnb-view")
        self.case: Case | None = None
        if isinstance(of, SourceChooser):
            of.lead(self.show)
        else:
            self.show(of)

    def show(self, case: Case | None) -> None:
        """Show the diagnosis of another case; of none, when nothing could be opened."""
        self.case = case
        self._said.value = ""
        self._button.layout.display = None if case is not None else "none"
        self._card.value = styled(self.html())

    def html(self) -> str:
        """Return the card as HTML."""
        if self.case is None:
            return '<div class="mnb-card mnb-unknown">Nothing is open yet.</div>'
        return card(self.case.diagnosis)

    def text(self) -> str:
        """Return the card as text."""
        return "Nothing is open yet." if self.case is None else told(self.case.diagnosis)

    def verdict(self) -> str:
        """Return the verdict alone as text: the first cause, its remedy and its class."""
        return "Nothing is open yet." if self.case is None else verdict(self.case.diagnosis)

    def _write(self, _: Any) -> None:
        from meshnb.views.report import write_report  # noqa: PLC0415  it draws what is drawn here

        assert self.case is not None
        label = re.sub(r"[^A-Za-z0-9._-]+", "-", self.case.facts.source.label).strip("-.") or "mesh"
        path = Path(f"meshnb-report-{label}.html")
        try:
            write_report(self.case.diagnosis, path, force=True)
        except UsageError as error:
            said = f"{mark(State.BROKEN)} The report could not be written: {escape(error)}"
        else:
            said = f"{mark(State.FINE, 'written')} <code>{escape(path)}</code>"
        self._said.value = styled(f'<span role="status">{said}</span>')


def card(diagnosis: Diagnosis) -> str:
    """Return the card of a diagnosis as HTML, without its style."""
    state = STATES[diagnosis.verdict]
    label = f"{diagnosis.facts.source.label} · {taken(diagnosis.facts)}"
    problems = diagnosis.problems
    if problems:
        body = cause(problems[0])
    else:
        body = f'<div class="mnb-first">{mark(state, "")} {prose(no_cause(diagnosis))}</div>'
    rest = [
        ("less likely", _others(diagnosis.causes[1:] if problems else diagnosis.causes)),
        ("not explained", _unexplained(diagnosis)),
        ("over", _past(diagnosis)),
        ("unknown", _unknown(diagnosis)),
        ("ruled out", _ruled_out(diagnosis)),
    ]
    parts = "".join(f"<dt>{name}</dt><dd>{drawn}</dd>" for name, drawn in rest if drawn)
    return (
        f'<section class="mnb-card {css(state)}" aria-label="Diagnosis of '
        f'{escape(diagnosis.facts.source.label)}"><div class="mnb-kicker">{escape(label)}</div>'
        f'{body}<dl class="mnb-parts">{parts}</dl></section>'
    )


def cause(found: RankedCause) -> str:
    """Return one cause as HTML: what is wrong, who is affected, the remedy, why we think so."""
    drawn = "".join(f"<dt>{name}</dt><dd>{part}</dd>" for name, part in reasons(found))
    return f'{sentence(found)}<dl class="mnb-parts">{drawn}</dl>'


def sentence(found: RankedCause) -> str:
    """Return what is wrong, whom it affects and what mends it as HTML."""
    return (
        f'<div class="mnb-first">{prose(found.finding.message)}</div>'
        f'<p class="mnb-affected">{prose(affected(found))}</p>'
        f'<div class="mnb-mend"><strong>To mend:</strong> {prose(found.finding.remedy)}</div>'
    )


def reasons(found: RankedCause) -> list[tuple[str, str]]:
    """Return why a cause is thought to be one, and its class, as HTML."""
    proofs = "".join(_opened(part) for part in map(proof, found.finding.evidence) if part.of)
    of_class = f"{found.failure_class.value}, {found.failure_class.title}"
    by_check = f"check {found.check.code}: {found.check.title}"
    return [
        ("why", f"<p>{prose(found.mechanism)}</p>{proofs}"),
        ("class", f"<p>{escape(of_class)} · {escape(by_check)}</p>"),
    ]


def _opened(part: Any) -> str:
    return (
        f"<details><summary>{escape(part.caption)} ({plural(part.of, 'row')})</summary>"
        f"{tables.table(part.rows, part.caption, of=part.of, once=True)}</details>"
    )


def affected(found: RankedCause) -> str:
    """Return who suffers from a cause, how often and since when, in one sentence."""
    if found.standing == "blemish":
        return "Nothing of what goes wrong, so it is not the cause; mend it all the same."
    if not found.explains:
        return "Nothing that was seen to fail; it would, once somebody depends on it."
    names = [name for symptom in found.explains for name in (*symptom.reporters, *symptom.callers)]
    since = f" since {found.first_seen:%H:%M:%S} UTC" if found.first_seen is not None else ""
    # Who has seen it is said at the end, by name.
    told = (symptom.message.partition(", seen by ")[0] for symptom in found.explains[:3])
    # What the cause says already, such as a proxy's own words, is not said twice.
    said = "; ".join(one for one in told if one.rpartition(": ")[2] not in found.finding.message)
    who = and_list(names) or "nobody that logs it"
    what = f"{plural(found.count, 'failure')}{since}"
    return f"{what}: {said}. Seen by {who}." if said else f"{what}, seen by {who}."


def no_cause(diagnosis: Diagnosis) -> str:
    """Return what is said where no check names a cause."""
    if diagnosis.verdict == "healthy":
        return (
            f"Nothing is wrong that the checks know of: {len(diagnosis.ruled_out)} passed, and "
            "nothing is seen to fail."
        )
    return (
        "The cause is not known: something fails, or could not be seen, and no check explains it."
    )


def _others(causes: Iterable[RankedCause]) -> str:
    every = list(causes)
    drawn = "".join(
        f"<li><details><summary>{mark(_of_severity(one), one.severity.value)} "
        f"{escape(one.finding.message)}</summary>"
        f'<div class="mnb-mend">{prose(one.finding.remedy)}</div><p>{prose(one.mechanism)}</p>'
        f"{''.join(_opened(part) for part in map(proof, one.finding.evidence) if part.of)}"
        "</details></li>"
        for one in every[:_MOST]
    )
    more = f"<li>and {len(every) - _MOST} more</li>" if len(every) > _MOST else ""
    return f'<ul class="mnb-plain">{drawn}{more}</ul>' if every else ""


def _of_severity(found: RankedCause) -> State:
    return {"error": State.BROKEN, "warning": State.ODD}.get(found.severity.value, State.UNREACHED)


def _unexplained(diagnosis: Diagnosis) -> str:
    left = diagnosis.unexplained
    drawn = "".join(
        f"<li>{mark(State.ODD, plural(symptom.count, 'time'))} {escape(symptom.message)}</li>"
        for symptom in left[:_MOST]
    )
    more = f"<li>and {len(left) - _MOST} more</li>" if len(left) > _MOST else ""
    return f'<ul class="mnb-plain">{drawn}{more}</ul>' if left else ""


def _past(diagnosis: Diagnosis) -> str:
    past = diagnosis.past
    drawn = "".join(f"<li>{escape(one.message)}</li>" for one in past[:_MOST])
    more = f"<li>and {len(past) - _MOST} more</li>" if len(past) > _MOST else ""
    return f'<ul class="mnb-plain">{drawn}{more}</ul>' if past else ""


def _unknown(diagnosis: Diagnosis) -> str:
    unknown = diagnosis.unknown
    if not unknown:
        return ""
    reasons = dict.fromkeys(outcome.because for outcome in unknown)
    drawn = "".join(
        f"<li>{mark(State.UNKNOWN, outcome.check.code)} {escape(outcome.check.title)} "
        f"Unknown because {escape(outcome.because)}.</li>"
        for outcome in unknown
    )
    return (
        f"<details><summary>{plural(len(unknown), 'check')} could not be decided, because "
        f"{escape(next(iter(reasons)))}</summary>"
        f'<ul class="mnb-plain">{drawn}</ul></details>'
    )


def _ruled_out(diagnosis: Diagnosis) -> str:
    passed = diagnosis.ruled_out
    if not passed:
        return ""
    drawn = "".join(
        f"<li>{mark(State.FINE, outcome.check.code)} {escape(outcome.check.title)}</li>"
        for outcome in passed
    )
    return (
        f"<details><summary>{plural(len(passed), 'check')} passed</summary>"
        f'<ul class="mnb-plain">{drawn}</ul></details>'
    )


def checks_of(diagnosis: Diagnosis) -> pd.DataFrame:
    """Return every check with its verdict, one row each.

    Columns: ``family``, ``code``, ``verdict``, ``holds_when_well`` and, where it is unknown
    or broken, ``because``.
    """
    return pd.DataFrame(
        [
            (one.check.family, one.check.code, one.verdict.value, one.check.title, one.because)
            for one in diagnosis.outcomes
        ],
        columns=["family", "code", "verdict", "holds_when_well", "because"],
    )


def told(diagnosis: Diagnosis) -> str:
    """Return the diagnosis as text: the verdict, what else was looked at, who is affected."""
    lines = [verdict(diagnosis)]
    if diagnosis.problems:
        first = diagnosis.problems[0]
        lines += [f"Why: {first.mechanism}", f"Affected: {affected(first)}"]
    lines += [f"Less likely: {one.finding.message}" for one in diagnosis.problems[1:]]
    lines += [f"Over: {one.message}" for one in diagnosis.past]
    lines.append(f"Ruled out: {len(diagnosis.ruled_out)}; unknown: {len(diagnosis.unknown)}")
    return "\n".join(lines)


def verdict(diagnosis: Diagnosis) -> str:
    """Return the verdict as text: what it is about, the first cause, its remedy and its class."""
    label = f"{diagnosis.facts.source.label}, {taken(diagnosis.facts)}"
    lines = [f"{STATES[diagnosis.verdict].sign} {diagnosis.verdict}: {label}"]
    if diagnosis.problems:
        first = diagnosis.problems[0]
        lines += [
            first.finding.message,
            f"To mend: {first.finding.remedy}",
            f"Class: {first.failure_class.value}, {first.failure_class.title}",
        ]
    else:
        lines.append(no_cause(diagnosis))
    return "\n".join(lines)
