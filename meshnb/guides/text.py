"""A walk as plain text: for terminals, saved notebooks, reports and comparisons."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator

import pandas as pd

from meshnb.diagnosis import RankedCause
from meshnb.guides.asked import asked
from meshnb.guides.base import Excerpt, Page, Stop, Walk

#: Lines are no longer than this.
WIDTH = 100
#: So many lines of a picture are printed, and so many rows of a table.
_LINES = 8
_ROWS = 3
#: So many kinds of questions are printed.
_QUESTIONS = 5
#: No cell of a table is wider than this.
_CELL = 48


def verdicts(walk: Walk) -> str:
    """Return one line per step of a walk: its number, its title, and what it found out."""
    stops = visited(walk)
    lines = [
        f"{number}. {title}: {stop.state.sign} {' '.join(stop.verdict.split())}"
        + (f" [{stop.decided}]" if stop.decided else "")
        for number, (title, stop) in enumerate(zip(titles(stops), stops, strict=True), start=1)
    ]
    for cause in walk.page.causes:
        lines += [f"   Cause: {cause.finding.message}", f"   Remedy: {cause.finding.remedy}"]
    return "\n".join(lines)


def visited(walk: Walk) -> tuple[Stop, ...]:
    """Return the trail of a walk with what was found on its last page, too."""
    page = walk.page
    here = Stop(walk.here.guide, walk.here.step, page.verdict, page.state, "")
    return (*walk.trail[:-1], here)


def titles(stops: Iterable[Stop]) -> list[str]:
    """Return the titles of steps; where another guide begins, with its name."""
    found: list[str] = []
    guide = ""
    for stop in stops:
        begins = guide and stop.guide.name != guide
        found.append(f"{stop.guide.title}: {stop.step.title}" if begins else stop.step.title)
        guide = stop.guide.name
    return found


def story(walk: Walk) -> str:
    """Return every page of a walk, from the first to the one where it stands, as text."""
    guide = walk.trail[0].guide
    title = f"{guide.title} · {walk.case.facts.source.label}"
    parts = [f"{title}\n{'=' * len(title)}"]
    named = titles(walk.trail)
    for place in range(len(walk.trail)):
        at = walk if place == len(walk.trail) - 1 else walk.back(to=place)
        parts.append("\n".join(_page(at, place + 1, named[place])))
    return "\n\n".join(parts)


def _page(walk: Walk, number: int, title: str) -> Iterator[str]:
    step, page = walk.here.step, walk.page
    yield f"{number}. {title}"
    yield from _wrapped("question", step.question)
    questions = asked(walk.case.facts, step.asked)
    for line in questions[:_QUESTIONS]:
        yield from _wrapped("asked", str(line))
    if len(questions) > _QUESTIONS:
        yield from _wrapped("asked", f"and {len(questions) - _QUESTIONS} more kinds of questions")
    if page.pick is not None and walk.picked:
        yield from _wrapped("picked", f"{page.pick.title} {page.pick.label(walk.picked)}")
    yield from _answer(page)
    yield from _wrapped("reading", page.reading)
    yield from _wrapped("command", page.command)
    yield from _wrapped("verdict", f"{page.state.sign} {page.verdict}")
    for cause in page.causes:
        yield from _cause(cause)
    for reason in walk.blocked:
        yield from _wrapped("blocked", reason)


def _answer(page: Page) -> Iterator[str]:
    if page.picture is not None:
        yield from _wrapped("picture", page.picture.title)
        lines = list(page.picture.lines())
        for line in lines[:_LINES]:
            yield from _wrapped("", line)
        if len(lines) > _LINES:
            yield from _wrapped("", f"and {len(lines) - _LINES} more")
    for excerpt in page.tables:
        if not excerpt.folded:
            yield from _table(excerpt)


def _table(excerpt: Excerpt) -> Iterator[str]:
    shown = min(len(excerpt.rows), _ROWS)
    yield from _wrapped("answer", f"{excerpt.caption} ({shown} of {excerpt.of})")
    for row in excerpt.rows.head(_ROWS).to_dict("records"):
        told = ", ".join(f"{name} {cell(value)}" for name, value in row.items() if cell(value))
        yield from _wrapped("", f"- {told}")


def cell(value: object) -> str:
    """Return a value of a table as a person reads it; empty for what is absent."""
    if isinstance(value, dict):
        return ", ".join(f"{key}={cell(inner)}" for key, inner in value.items())
    if isinstance(value, (tuple, list)):
        return ", ".join(cell(inner) for inner in value)
    if isinstance(value, pd.Timestamp):
        return "" if pd.isna(value) else f"{value:%Y-%m-%d %H:%M:%S}"
    if value is None or pd.isna(value):  # type: ignore[call-overload]
        return ""
    if pd.api.types.is_bool(value):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return str(value)


def _cause(cause: RankedCause) -> Iterator[str]:
    yield from _wrapped("cause", f"{cause.check.code}: {cause.finding.message}")
    yield from _wrapped("why", cause.mechanism)
    yield from _wrapped("remedy", cause.finding.remedy)


def _wrapped(label: str, text: str) -> Iterable[str]:
    """Return text under a label in the margin, wrapped; nothing for empty text."""
    margin = f"   {label:<9} "
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=margin,
        subsequent_indent=" " * len(margin),
        break_long_words=False,
        break_on_hyphens=False,
    )
