"""Questions to the reader: pages that ask before they tell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from meshnb.guides.base import Case, Excerpt, Option, Page, Pick
from meshnb.guides.meanings import HOPS, meaning
from meshnb.guides.pictures import State, request
from meshnb.guides.shared import latest_lines, quiet, symptom_command, symptom_rows, what_it_says
from meshnb.symptoms import Symptom

#: Who can have made an answer.
ANSWERERS = {
    "application": "the application itself",
    "server": "the proxy in front of the application",
    "client": "the proxy of the caller",
    "gateway": "the gateway",
}


def first_ask(
    picked: str | None,
    title: str,
    options: Mapping[str, str],
    right: str,
    answer: Page,
    hint: str,
    shown: tuple[Excerpt, ...] | None = None,
) -> Page:
    """Return the page that asks, with tables to think about; once something is picked, tell.

    ``options`` are labels by their values, ``right`` is the value that the evidence gives.
    ``shown`` are the tables before it is told; the first two of the answer when they are not given.
    """
    pick = Pick(title, tuple(Option(*option) for option in options.items()), right, asks_first=True)
    taken = pick.taken(picked)
    if not taken:
        tables = answer.tables[:2] if shown is None else shown
        return Page(hint, State.UNKNOWN, tables=tables, command=answer.command, pick=pick)
    told = "That is it" if taken == right else f"Not {_lower(options[taken])}"
    return replace(answer, reading=f"{told}: {_lower(answer.reading)}".rstrip(": "), pick=pick)


def _lower(text: str) -> str:
    """Begin a sentence within another one, unless it begins with a name."""
    first = text.partition(" ")[0]
    plain = first.isalpha() and first[1:].islower()
    return text[:1].lower() + text[1:] if plain or first == "A" else text


def said(symptom: Symptom) -> str:
    """Return code, flags and details as the log has them."""
    flags = ",".join(sorted(symptom.flags))
    return f"{symptom.code or ''} {flags} {symptom.details}".strip().replace("  ", " ")


def ask_hop(case: Case, symptom: Symptom | None, picked: str | None) -> Page:
    """Ask at which hop a request ended: flag and details in its log line say so."""
    if symptom is None or not symptom.failures:
        return _nothing(case, symptom, "No log line says at which hop it ends.")
    words, right = meaning(symptom.failures[-1])
    answer = Page(
        f"It ended at {right}: {words}.",
        State.BROKEN,
        f"{said(symptom)} means that {words}.",
        (latest_lines(case, symptom),),
        request(symptom, case.mesh),
        symptom_command(symptom),
    )
    options = {name: f"{name}: {what}" for name, what in HOPS.items() if name != "the caller"}
    return first_ask(
        picked,
        f"The log says {said(symptom)}, so it ended at:",
        options,
        right,
        answer,
        "Think first: the flag and the details in the log line say it.",
    )


def ask_answerer(case: Case, symptom: Symptom | None, picked: str | None) -> Page:
    """Ask who made the answer that the caller got."""
    if symptom is None or not symptom.failures:
        return _nothing(case, symptom, "No log line says who answered.")
    failure = symptom.failures[-1]
    words, _ = meaning(failure)
    right = "application" if failure.answered_by_application else symptom.side or "client"
    answer = Page(
        f"The answer was made by {ANSWERERS[right]}: {words}.",
        State.BROKEN,
        what_it_says(symptom),
        (latest_lines(case, symptom),),
        request(symptom, case.mesh),
        symptom_command(symptom),
    )
    return first_ask(
        picked,
        "Who made the answer?",
        ANSWERERS,
        right,
        answer,
        "Think first: the details in the log line say it.",
    )


def _nothing(case: Case, symptom: Symptom | None, verdict: str) -> Page:
    """Return the page where no line of an access log can be asked about."""
    if symptom is None:
        page = quiet(case, "access_log", verdict, "What is wrong here shows in no access log.")
        return replace(page, state=State.UNKNOWN)
    return Page(
        verdict,
        State.BROKEN,
        what_it_says(symptom),
        (symptom_rows(case, symptom),),
        command=symptom_command(symptom),
    )
