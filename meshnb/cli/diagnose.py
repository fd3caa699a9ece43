"""`meshnb diagnose`: what is wrong, why, and how to mend it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import TYPE_CHECKING

import click

from meshnb.cli.base import (
    FEW,
    PROBLEM,
    SAMPLE_ROWS,
    Page,
    counted,
    facts_of,
    few,
    note_damage,
    of_source,
    say,
    shortened,
    utc,
    with_mesh_config,
)
from meshnb.cli.table import cell_text, known_table, records

if TYPE_CHECKING:
    import pandas as pd

    from meshnb.diagnosis import Diagnosis, RankedCause

#: Failures that were last seen so long before the end may be over, in minutes.
LONG_AGO = 5
#: No value in them may push out the others, in characters.
_SAMPLE_WIDTH = 60


@click.command(
    epilog="Exit codes: 0 nothing is wrong; 1 a problem, or an unknown verdict, because silence is "
    "not health; 3 the source cannot be used.",
)
@of_source
@with_mesh_config
@click.option("--json", "as_json", is_flag=True, help="Print the diagnosis as JSON, format 1.")
@click.option(
    "--all", "everything", is_flag=True, help="Leave nothing out: passed checks, all causes."
)
@click.pass_context
def diagnose(
    context: click.Context,
    source: str,
    *,
    mesh_config: str | None,
    as_json: bool,
    everything: bool,
) -> None:
    """Say what is wrong, why, and how to mend it."""
    from meshnb.diagnosis import diagnose as diagnosis_of  # noqa: PLC0415  brings pandas

    facts = facts_of(source, mesh_config)
    diagnosis = diagnosis_of(facts)
    if as_json:
        say(json.dumps(diagnosis.to_json(), indent=1) + "\n")
    else:
        page = Page()
        _diagnosis(page, diagnosis, everything=everything)
        page.show()
    note_damage(facts.source, source)
    context.exit(0 if diagnosis.verdict == "healthy" else PROBLEM)


def _diagnosis(page: Page, diagnosis: Diagnosis, *, everything: bool) -> None:
    if diagnosis.verdict == "healthy":
        page.add(_counts(diagnosis), label="healthy:", colour="green")
        if not everything:
            _past(page, diagnosis, everything=False)
            return
    elif diagnosis.verdict == "unknown":
        page.add(_why_unknown(diagnosis), label="unknown:", colour="yellow", strong=True)
    else:
        _first_cause(page, diagnosis.problems[0], diagnosis.facts.now)
    page.gap()
    _other_causes(page, diagnosis, everything=everything)
    _symptoms(page, diagnosis)
    _past(page, diagnosis, everything=everything)
    _checks_without_findings(page, diagnosis, everything=everything)


def _counts(diagnosis: Diagnosis) -> str:
    parts = [
        f"{counted(len(diagnosis.ruled_out), 'check')} passed",
        f"{counted(len(diagnosis.unknown), 'check')} unknown" if diagnosis.unknown else "",
        f"{counted(len(diagnosis.facts['access_log']), 'line')} of access logs read",
        f"{counted(len(diagnosis.symptoms), 'symptom')}, see --all"
        if len(diagnosis.symptoms)
        else "",
        f"{len(diagnosis.causes)} worth knowing, see --all" if diagnosis.causes else "",
    ]
    return (
        f"nothing is wrong in {diagnosis.facts.source.label} at {utc(diagnosis.facts.now)} "
        f"({', '.join(part for part in parts if part)})."
    )


def _why_unknown(diagnosis: Diagnosis) -> str:
    if diagnosis.unexplained and not diagnosis.unknown:
        return "Something goes wrong that no check explains."
    return "No check found a fault, but not enough could be seen to say that there is none."


def _first_cause(page: Page, cause: RankedCause, end: datetime) -> None:
    colour = "red" if cause.severity.value == "error" else "yellow"
    page.add(cause.finding.message, label="problem:", colour=colour, strong=True)
    page.add(_extent(cause, end), indent=1)
    affected = _affected(cause)
    if affected:
        page.add(affected, label="Affected:", indent=1)
    page.add(cause.finding.remedy, label="To mend:", indent=1)
    page.gap()
    page.add(
        f"({cause.check.code}, {cause.severity.value}; class {cause.failure_class.value}, "
        f"{cause.failure_class.title})",
        label="Why we think so:",
    )
    page.add(cause.mechanism, indent=1)
    if cause.finding.related:
        page.add(few(map(str, cause.finding.related)), label="Takes part:", indent=1)
    spoken = " ".join(
        [cause.finding.message, cause.mechanism, *(s.message for s in cause.explains)]
    )
    for table, rows in _evidence(cause).items():
        page.add(f"{counted(len(rows), 'row')} from {_origin(rows)}", label=f"{table}:", indent=1)
        for sample in _samples(table, rows, spoken):
            page.row(sample, indent=2)


def _silence(last: datetime, end: datetime) -> str:
    """Say when nothing was seen for long, so that the reader knows that it may be over."""
    ago = int((end - last).total_seconds() / 60)
    if ago < LONG_AGO:
        return ""
    spoken = f"{ago} minutes" if ago < 120 else f"{ago // 60} hours"
    return f", {spoken} before the end, and not known to work again"


def _extent(cause: RankedCause, end: datetime) -> str:
    """Return since when it is seen, until when, and how often."""
    if cause.standing == "blemish":
        return "It explains nothing of what goes wrong, so it is not the cause."
    if not cause.explains:
        return "It explains nothing that was seen."
    failed: dict[str, int] = {}
    others: list[str] = []
    for symptom in cause.explains:
        if symptom.kind in ("request", "connection"):
            failed[symptom.kind] = failed.get(symptom.kind, 0) + symptom.count
        else:
            others.append(symptom.message)
    seen = "; ".join(
        [*(counted(count, f"failed {kind}") for kind, count in failed.items()), *others]
    )
    first = cause.first_seen
    last = max((s.last_seen for s in cause.explains if s.last_seen is not None), default=None)
    if first is not None and last is not None and first < last:
        return f"Since {utc(first)}: {seen}; last seen at {last:%H:%M:%S}{_silence(last, end)}."
    moment = first or last
    return f"Seen at {utc(moment)}: {seen}." if moment is not None else f"Seen: {seen}."


def _affected(cause: RankedCause) -> str:
    names: dict[str, None] = {}
    for symptom in cause.explains:
        names.update(dict.fromkeys((*symptom.reporters, *symptom.callers)))
        if not symptom.reporters and any(symptom.workload):
            names["/".join(symptom.workload)] = None
    return few(names)


def _evidence(cause: RankedCause) -> dict[str, pd.DataFrame]:
    """Return the rows that prove a cause by table, each row once."""
    import pandas as pd  # noqa: PLC0415  slow to import

    found: dict[str, pd.DataFrame] = {}
    for evidence in cause.finding.evidence:
        if len(evidence.rows):
            parts = [found[evidence.table]] if evidence.table in found else []
            rows = pd.concat([*parts, evidence.rows])
            found[evidence.table] = rows[~rows.index.duplicated()]
    return found


def _origin(rows: pd.DataFrame) -> str:
    questions = list(dict.fromkeys(rows["question"].dropna()))
    more = f" and {len(questions) - 1} more" if len(questions) > 1 else ""
    return f"{questions[0]}{more}" if questions else "no question"


def _samples(table: str, rows: pd.DataFrame, spoken: str) -> Iterator[str]:
    """Yield a few rows as ``column=value``: first what was spoken of, then the keys."""
    columns = known_table(table).columns
    words = set(re.findall(r"[\w.:/|-]*\w", spoken))

    def place(name: str, text: str) -> int:
        if text in words and len(text) > 1:
            return 0
        if columns[name].key:
            return 1
        return 2 if text not in ("0", "false") else 3

    for record in records(rows.head(SAMPLE_ROWS)):
        cells = {name: cell_text(value) for name, value in record.items() if name != "question"}
        places = {name: place(name, text) for name, text in cells.items() if text}
        shown = sorted(places, key=places.__getitem__)
        yield "  ".join(f"{name}={shortened(cells[name], _SAMPLE_WIDTH)}" for name in shown)


def _other_causes(page: Page, diagnosis: Diagnosis, *, everything: bool) -> None:
    problems = len(diagnosis.problems)
    others, worth_knowing = diagnosis.causes[1:problems], diagnosis.causes[problems:]
    if others:
        shown = others if everything else others[:FEW]
        page.add(label="Less likely:")
        _causes(page, shown)
        if len(shown) < len(others):
            page.add(f"{len(others) - len(shown)} more (--all lists them)", indent=1)
        page.gap()
    if worth_knowing:
        hint = "" if everything else f"{len(worth_knowing)} (--all lists them)"
        page.add(hint, label="Worth knowing:")
        _causes(page, worth_knowing if everything else ())
        page.gap()


def _causes(page: Page, causes: Iterable[RankedCause]) -> None:
    for cause in causes:
        explains = ", ".join(symptom.id for symptom in cause.explains) or "nothing that was seen"
        page.add(
            f"{cause.severity.value}: {cause.finding.message} "
            f"({cause.check.code}, explains {explains})",
            label=f"{cause.rank}.",
            indent=1,
        )


def _symptoms(page: Page, diagnosis: Diagnosis) -> None:
    if not len(diagnosis.symptoms):
        page.add("none", label="Symptoms:")
        return
    page.add(label="Symptoms:")
    unexplained = {symptom.id for symptom in diagnosis.unexplained}
    for symptom in diagnosis.symptoms:
        mark = " (unexplained)" if symptom.id in unexplained else ""
        page.add(f"{symptom.count}x {symptom.message}{mark}", label=symptom.id, indent=1)


def _past(page: Page, diagnosis: Diagnosis, *, everything: bool) -> None:
    """Say what went wrong earlier and works again."""
    if not diagnosis.past:
        return
    shown = diagnosis.past if everything else diagnosis.past[:FEW]
    page.add(label="Over:")
    for one in shown:
        page.add(one.message, label=one.symptom.id, indent=1)
    if len(shown) < len(diagnosis.past):
        page.add(f"{len(diagnosis.past) - len(shown)} more (--all lists them)", indent=1)


def _checks_without_findings(page: Page, diagnosis: Diagnosis, *, everything: bool) -> None:
    ruled_out = diagnosis.ruled_out
    hint = " (--all lists them)" if ruled_out and not everything else ""
    page.add(f"{counted(len(ruled_out), 'check')}{hint}", label="Ruled out:")
    if everything:
        for outcome in ruled_out:
            page.add(outcome.check.title, label=outcome.check.code, indent=1)
    page.add(counted(len(diagnosis.unknown), "check"), label="Unknown:")
    reasons: dict[str, list[str]] = {}
    for outcome in diagnosis.unknown:
        reasons.setdefault(outcome.because, []).append(outcome.check.code)
    for because, codes in reasons.items():
        page.add(f"{', '.join(codes) if everything else few(codes)}: {because}", indent=1)
