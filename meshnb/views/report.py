"""The report: a diagnosis as one HTML page for the post-mortem. It needs no network and no script.

Everything is open, so that it can be printed; every row names the question that it came from, and
every answer that is cited has its checksum.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping
from datetime import timedelta
from importlib import resources
from pathlib import Path

import pandas as pd

from meshnb.checks import Evidence
from meshnb.diagnosis import Diagnosis, RankedCause
from meshnb.errors import UsageError
from meshnb.guides.chronicle import chronicle
from meshnb.guides.excerpts import TELLING, excerpt, varied
from meshnb.guides.pictures import State
from meshnb.guides.shared import plural
from meshnb.sources.digest import digest_of_answer, digest_of_source
from meshnb.tables import Facts
from meshnb.views import tables
from meshnb.views.base import css, escape, mark, prose, style
from meshnb.views.diagnosis import STATES, affected, no_cause

#: So many rows of each proof are shown; the rest is counted.
_ROWS = 12
_STANDINGS = {
    "cause": "It explains symptoms.",
    "fault": "It is a fault, and nothing was seen to go wrong.",
    "blemish": "It explains nothing of what goes wrong: it is not the cause.",
    "note": "It is worth knowing, and no problem.",
}
_SEVERITIES = {"error": State.BROKEN, "warning": State.ODD}


def write_report(diagnosis: Diagnosis, path: Path, *, force: bool = False) -> Path:
    """Write the report of a diagnosis to a file, whole or not at all; return its path.

    Raises UsageError when the file exists, unless it may be replaced, or cannot be written.
    """
    if os.path.lexists(path) and not force:
        raise UsageError(
            f"{str(path)!r} exists already.", next_step="Choose another name, or add --force."
        )
    page = report(diagnosis).encode("utf-8", "backslashreplace")
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("xb") as file:
            file.write(page)
        partial.replace(path)
    except OSError as error:
        raise UsageError(
            f"{str(path)!r} cannot be written: {error.strerror or error}.",
            next_step="Choose a folder that exists and has room.",
        ) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()
    return path


def report(diagnosis: Diagnosis) -> str:
    """Return a diagnosis as a whole HTML page."""
    sheet = resources.files("meshnb.views").joinpath("report.css").read_text(encoding="utf-8")
    label = escape(diagnosis.facts.source.label)
    sections = [
        ("summary", "In short", _summary(diagnosis)),
        ("time", "What happened when", _times(diagnosis)),
        ("symptoms", "Symptoms", _symptoms(diagnosis)),
        ("causes", "Causes and evidence", _causes(diagnosis)),
        ("ruled-out", "What was ruled out", _ruled_out(diagnosis)),
        ("unseen", "What could not be seen", _unseen(diagnosis)),
        ("origin", "Where this comes from", _origin(diagnosis)),
    ]
    contents = "".join(f'<li><a href="#{name}">{title}</a></li>' for name, title, _ in sections)
    body = "".join(
        f'<section aria-labelledby="{name}"><h2 id="{name}">{title}</h2>{drawn}</section>'
        for name, title, drawn in sections
    )
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light">'
        f"<title>Diagnosis of {label}</title>{style()}<style>{sheet}</style></head>"
        f'<body class="mnb-page"><main class="mnb mnb-report">{_head(diagnosis)}'
        f'<nav aria-label="Contents"><ol>{contents}</ol></nav>{body}</main></body></html>'
    )


def _head(diagnosis: Diagnosis) -> str:
    problems = diagnosis.problems
    title = problems[0].finding.message if problems else no_cause(diagnosis)
    state = STATES[diagnosis.verdict]
    facts = diagnosis.facts
    return (
        f'<header><div class="mnb-kicker">{mark(state, diagnosis.verdict)} '
        f"{escape(facts.source.label)} · recorded until {facts.now:%Y-%m-%d %H:%M:%S} UTC</div>"
        f"<h1>{prose(title)}</h1></header>"
    )


def _parts(parts: list[tuple[str, str]]) -> str:
    drawn = "".join(f"<dt>{name}</dt><dd>{part}</dd>" for name, part in parts if part)
    return f'<dl class="mnb-parts">{drawn}</dl>'


def _list(lines: list[str], *, many: bool = False) -> str:
    kind = "mnb-plain mnb-many" if many else "mnb-plain"
    return f'<ul class="{kind}">{"".join(f"<li>{line}</li>" for line in lines)}</ul>'


def _summary(diagnosis: Diagnosis) -> str:
    problems = diagnosis.problems
    failures = sum(symptom.count for symptom in diagnosis.symptoms)
    seen = (
        f"{plural(len(diagnosis.symptoms), 'symptom')}, seen {plural(failures, 'time')}; "
        f"{plural(len(problems), 'problem')} found, {len(diagnosis.ruled_out)} checks passed, "
        f"{len(diagnosis.unknown)} could not be decided."
    )
    if not problems:
        return f"<p>{prose(no_cause(diagnosis))}</p><p>{seen}</p>"
    first = problems[0]
    of_class = f"{first.failure_class.value}, {first.failure_class.title}"
    return _parts(
        [
            ("to mend", prose(first.finding.remedy)),
            ("why", prose(first.mechanism)),
            ("affected", prose(affected(first))),
            ("class", escape(of_class)),
            ("all in all", seen),
        ]
    )


# --- What happened -------------------------------------------------------------------------------


def _times(diagnosis: Diagnosis) -> str:
    told = chronicle(diagnosis)
    rows = "".join(
        f'<tr class="mnb-moment-{moment.kind}"><td class="mnb-whole">'
        f"{moment.time:%Y-%m-%d %H:%M:%S}</td>"
        f'<td class="mnb-number">{_from(moment.time - told.zero)}</td>'
        f"<td>{moment.kind}</td><td>{escape(' '.join(moment.what.split()))}</td></tr>"
        for moment in told.moments
    )
    since = "the first symptom" if len(diagnosis.symptoms) else "the end of the recording"
    caption = f"Changes, warnings and symptoms; the second column counts from {since}"
    notes = [
        f"{plural(told.earlier, 'change')} and warnings were earlier." if told.earlier else "",
        f"{told.left_out} in between are left out." if told.left_out else "",
    ]
    head = "".join(
        f'<th scope="col">{name}</th>' for name in ("time (UTC)", "after", "kind", "what")
    )
    return (
        f'<div class="mnb-scroll" tabindex="0" role="group" aria-label="{caption}">'
        f'<table class="mnb-times">'
        f"<caption>{caption}</caption><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
        f"</div><p>{' '.join(filter(None, notes))}</p>"
    )


def _from(gap: timedelta) -> str:
    seconds = round(gap.total_seconds())
    sign = "-" if seconds < 0 else "+"
    minutes, rest = divmod(abs(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{sign}{hours}:{minutes:02}:{rest:02}" if hours else f"{sign}{minutes}:{rest:02}"


def _symptoms(diagnosis: Diagnosis) -> str:
    past = [escape(one.message) for one in diagnosis.past]
    over = f"<p>What is over, and works again:</p>{_list(past, many=True)}" if past else ""
    return _present(diagnosis) + over


def _present(diagnosis: Diagnosis) -> str:
    if not len(diagnosis.symptoms):
        return "<p>Nothing was seen to go wrong.</p>"
    unexplained = {symptom.id for symptom in diagnosis.unexplained}
    by = {s.id: cause.rank for cause in reversed(diagnosis.causes) for s in cause.explains}
    frame = pd.DataFrame(
        [
            {
                "symptom": symptom.id,
                "count": symptom.count,
                "first": symptom.first_seen,
                "last": symptom.last_seen,
                "what": symptom.message,
                "seen by": ", ".join((*symptom.reporters, *symptom.callers)),
                "explained by": "nothing"
                if symptom.id in unexplained
                else f"cause {by[symptom.id]}",
            }
            for symptom in diagnosis.symptoms
        ]
    )
    return tables.table(frame, "Symptoms")


# --- Causes --------------------------------------------------------------------------------------


def _causes(diagnosis: Diagnosis) -> str:
    if not diagnosis.causes:
        return "<p>No check found anything.</p>"
    numbers = _numbers(diagnosis)
    return "".join(_cause(cause, numbers) for cause in diagnosis.causes)


def _cause(cause: RankedCause, numbers: Mapping[str, int]) -> str:
    state = _SEVERITIES.get(cause.severity.value, State.UNREACHED)
    explained = ", ".join(f"{s.id} ({s.message})" for s in cause.explains)
    sure = f"{cause.certainty:.0%} sure"
    missing = [escape(str(gap)) for gap in cause.missing]
    of_class = f"{cause.failure_class.value}, {cause.failure_class.title}"
    body = _parts(
        [
            ("standing", f"{_STANDINGS[cause.standing]} {sure}."),
            ("to mend", prose(cause.finding.remedy)),
            ("why", prose(cause.mechanism)),
            ("explains", escape(explained)),
            ("affected", prose(affected(cause)) if cause.explains else ""),
            ("takes part", escape(", ".join(map(str, cause.finding.related)))),
            ("class", f"{escape(of_class)} · check {escape(cause.check.code)}"),
            ("not seen", _list(missing) if missing else ""),
        ]
    )
    proofs = "".join(_proof(one, numbers) for one in cause.finding.evidence if len(one.rows))
    return (
        f'<article class="mnb-card {css(state)}"><h3>{cause.rank}. '
        f"{mark(state, cause.severity.value)} {prose(cause.finding.message)}</h3>"
        f"{body}{proofs}</article>"
    )


def _proof(evidence: Evidence, numbers: Mapping[str, int]) -> str:
    """Return the rows of a proof; their last column is the number of the answer they are from."""
    rows = varied(evidence.rows)
    rows = rows.assign(answer=rows["question"].map(numbers).astype("Int64"))
    telling = TELLING.get(evidence.table, [name for name in rows.columns if name != "question"])
    columns = dict.fromkeys((*telling, "answer"))
    caption = f"Evidence: rows of the table {evidence.table}, with the answer that they are from"
    part = excerpt(caption, rows, columns=columns, most=_ROWS)
    return tables.table(part.rows, part.caption, of=part.of)


# --- What is not the cause, and what is not known ------------------------------------------------


def _ruled_out(diagnosis: Diagnosis) -> str:
    lines = [
        f"{mark(State.FINE, outcome.check.code)} {escape(outcome.check.title)}"
        for outcome in diagnosis.ruled_out
    ]
    return _list(lines, many=True) if lines else "<p>Nothing could be ruled out.</p>"


def _unseen(diagnosis: Diagnosis) -> str:
    checks = [
        f"{mark(State.UNKNOWN, outcome.check.code)} {escape(outcome.check.title)} "
        f"Unknown because {escape(outcome.because)}."
        for outcome in diagnosis.unknown
    ]
    gaps = [f"{mark(State.UNKNOWN, gap.state)} {escape(gap)}" for gap in diagnosis.missing]
    damage = [
        f"{mark(State.ODD, 'damaged')} {escape(one)}" for one in diagnosis.facts.source.damage
    ]
    left = [f"{symptom.id}: {escape(symptom.message)}" for symptom in diagnosis.unexplained]
    parts = [
        ("Symptoms that nothing explains", left),
        ("Checks that could not be decided", checks),
        ("Questions without an answer", gaps),
        ("Damage of the recording", damage),
    ]
    drawn = "".join(f"<h3>{title}</h3>{_list(lines)}" for title, lines in parts if lines)
    return drawn or "<p>Everything that was asked for was answered.</p>"


# --- Where it comes from -------------------------------------------------------------------------


def _origin(diagnosis: Diagnosis) -> str:
    facts = diagnosis.facts
    digest = digest_of_source(facts.source, facts.answer)
    times = [facts.answer(question).taken_at for question in facts.source.questions()]
    first = f"{min(times):%Y-%m-%d %H:%M:%S}"
    return _parts(
        [
            ("source", escape(facts.source.label)),
            ("recorded", f"from {first} to {facts.now:%Y-%m-%d %H:%M:%S} UTC"),
            (
                "SHA-256",
                f'<span class="mnb-sum">{digest.sha256}</span> of {escape(digest.of)}',
            ),
            *_versions(facts),
        ]
    ) + _answers(diagnosis)


def _versions(facts: Facts) -> Iterator[tuple[str, str]]:
    # Nobody in the house imports the front door, but it is there before any of its rooms.
    yield "meshnb", escape(sys.modules["meshnb"].__version__)
    versions = facts["versions"]
    said = [
        f"{plane} plane {escape(_each(versions[versions['plane'] == plane]['istio_version']))}"
        for plane in ("control", "data")
    ]
    yield "Istio", "; ".join(said)
    yield "Kubernetes", f"kubelets {escape(_each(facts['nodes']['kubelet_version']))}"


def _each(column: pd.Series) -> str:
    """Return each value of a column with how often it is there."""
    counts = column.dropna().value_counts()
    told = ", ".join(f"{value} ({count})" for value, count in counts.items())
    return told or "was not recorded"


def _numbers(diagnosis: Diagnosis) -> dict[str, int]:
    """Return the questions whose answers are cited, each with a number from 1."""
    facts = diagnosis.facts
    titles = dict.fromkeys(
        question
        for cause in diagnosis.causes
        for evidence in cause.finding.evidence
        for question in evidence.questions
    )
    for symptom in diagnosis.symptoms:
        if symptom.table:
            rows = facts[symptom.table].loc[list(symptom.rows)]
            titles |= dict.fromkeys(str(one) for one in rows["question"].dropna())
    return {title: number for number, title in enumerate(titles, start=1)}


def _answers(diagnosis: Diagnosis) -> str:
    """Return every answer that is cited, with the checksum of its body."""
    lines = []
    for title, number in _numbers(diagnosis).items():
        answer = diagnosis.facts.answer(diagnosis.facts.question(title))
        lines.append(
            {
                "answer": number,
                "to": title,
                "taken at": answer.taken_at,
                "status": answer.status,
                "bytes": len(answer.body or b""),
                "SHA-256": digest_of_answer(answer),
            }
        )
    if not lines:
        return "<p>No answer is cited.</p>"
    frame = pd.DataFrame(lines).astype({"taken at": "datetime64[us, UTC]", "status": "Int64"})
    return tables.table(frame, "The answers that are cited, with the SHA-256 of their bodies")
