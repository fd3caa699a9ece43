"""The guide for 504, and for requests that take long."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd

from meshnb.guides.asking import ask_answerer
from meshnb.guides.base import Case, Chosen, Guide, Page, step
from meshnb.guides.excerpts import excerpt
from meshnb.guides.pictures import State
from meshnb.guides.seen import apart, mended, seen, symptom_of
from meshnb.guides.shared import gap_note
from meshnb.guides.tracing import request_page
from meshnb.symptoms import Symptom
from meshnb.traces.mesh import plain

_NAME = "slow"
_TIMES = ("proxy", "direction", "path", "response_code", "response_flags")
_MILLISECONDS = ("duration_ms", "upstream_service_time_ms")


@step("Who gave up", asked=("access_log", "pods"))
def answerer(case: Case, chosen: Chosen) -> Page:
    """Who ended the wait: the application with its answer, a proxy, or the caller?

    A proxy answers 504 when its route's time is over. A caller that goes away leaves DC behind.
    """
    return ask_answerer(case, symptom_of(case, _NAME, chosen), chosen.get("answerer"))


@step("Where the time went", asked=("access_log", "routes", "clusters"))
def times(case: Case, chosen: Chosen) -> Page:
    """At which hop is the time spent, and how much does the route allow?

    Each proxy on the way writes down how long it took. The last one that is slow is in front of
    what is slow.
    """
    symptom = symptom_of(case, _NAME, chosen)
    page = request_page(case, symptom)
    log = case.facts["access_log"]
    if not len(log):
        return replace(page, state=State.UNKNOWN, reading=gap_note(case, ("access_log",)))
    caption, rows = _hops(log, symptom)
    told = _innermost(rows)
    shown = excerpt(f"access_log: {caption}", rows, of=len(rows), columns=(*_TIMES, *_MILLISECONDS))
    return replace(
        page,
        verdict=told or "No line says how long it took.",
        state=State.BROKEN if symptom is not None else State.FINE if told else State.UNKNOWN,
        reading=f"{page.verdict} {page.reading}",
        tables=(shown, *page.tables),
    )


def _innermost(rows: pd.DataFrame) -> str:
    """Say how long the slowest line took, and which of the others still took most of that."""
    timed = rows[rows["duration_ms"].notna()].sort_values("duration_ms")
    if not len(timed):
        return ""
    whole = timed.iloc[-1]
    inner = timed[timed["duration_ms"] >= whole["duration_ms"] / 2].iloc[0]
    what = f"Of {whole['duration_ms']:.0f} ms at {whole['proxy']}"
    return (
        f"{what}, {inner['duration_ms']:.0f} are spent at {inner['proxy']}, {inner['direction']}."
    )


def _hops(log: pd.DataFrame, symptom: Symptom | None) -> tuple[str, pd.DataFrame]:
    """Return the lines of one slow request at all hops; else the slowest of all requests."""
    slowest = log.sort_values("duration_ms", ascending=False, na_position="last")
    if symptom is not None and symptom.failures:
        one = plain(log["request_id"].loc[symptom.failures[-1].index])
        mine = slowest[slowest["request_id"] == one] if one else slowest.head(0)
        if len(mine):
            return "one of these requests, hop by hop", mine
    return "the slowest of all requests", slowest.head(8)


SLOW = Guide(
    name=_NAME,
    title="504 or slow",
    about="Requests are slow, or end with 504: where the time goes, and who allows how much.",
    steps=(
        seen(_NAME),
        answerer,
        times,
        apart(
            _NAME,
            "kubectl -n {namespace} top pods --containers",
            *("access_log", "istio_config", "containers", "endpoints"),
        ),
        mended(_NAME),
    ),
)
