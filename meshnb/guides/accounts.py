"""What a trace found, told place by place: one value for the terminal, for cards and for text.

A request and a connection are told by their hops, a change by its rungs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime

import pandas as pd

from meshnb.checks import CHECKS, Finding, Inputs, run
from meshnb.guides.pictures.base import State
from meshnb.tables import Facts
from meshnb.traces.change import follow_change
from meshnb.traces.connection import ConnectionTrace
from meshnb.traces.envoy.filter_chains import joined
from meshnb.traces.hop import Hop
from meshnb.traces.mesh import plain
from meshnb.traces.request import Outcome, RequestTrace
from meshnb.traces.rungs.ladder import PASSED, ChangeTrace, Cited, Rung, Standing

#: What a trace comes to, by the state of its account.
VERDICTS = {
    State.FINE: "passes",
    State.BROKEN: "broken",
    State.ODD: "varies",
    State.UNKNOWN: "undecided",
}
_OF_HOP = {
    "passed": State.FINE,
    "altered": State.ODD,
    "stopped": State.BROKEN,
    "undecided": State.UNKNOWN,
}
_OF_RUNG = {
    "passed": State.FINE,
    "broken": State.BROKEN,
    "undecided": State.UNKNOWN,
    "not_reached": State.UNREACHED,
    "not_needed": State.UNREACHED,
}
_OF_CONNECTION = {"works": State.FINE, "fails": State.BROKEN, "undecided": State.UNKNOWN}
_CANNOT = "cannot decide, because "
#: What a person says instead, where all is well.
_WELL = {"change": "in force", "connection": "works"}
#: Statuses with which a proxy answers by itself as it was told to.
_ANSWERED = range(100, 400)


@dataclass(frozen=True, slots=True)
class Part:
    """One hop or rung: who decides what there, by which rows, and what did not decide."""

    title: str
    #: the proxy or istiod, or who else decides; empty for a rung, which is about several
    where: str
    state: State
    #: the trace's own word for what becomes of it there
    word: str
    says: str
    #: on which condition it is come by at all; empty when it surely is
    when: str = ""
    since: datetime | None = None
    #: the proxy's name for what decides
    resource: str = ""
    #: the Kubernetes object that it was made from
    object: str = ""
    cites: tuple[Cited, ...] = ()
    #: what was looked at before and did not decide, each with the reason
    passed_over: tuple[tuple[str, str], ...] = ()
    #: of a rung: how far each proxy or istiod is
    standings: tuple[Part, ...] = ()


@dataclass(frozen=True, slots=True)
class Account:
    """What became of one request, change or connection, in the order in which it went."""

    #: request, change or connection
    kind: str
    title: str
    state: State
    says: str
    parts: tuple[Part, ...]
    #: why something cannot be decided, each reason once
    undecided: tuple[str, ...] = ()
    #: where a request or a connection is to get to
    target: str = ""

    @property
    def verdict(self) -> str:
        """``passes``, ``broken``, ``varies`` (it may end well or badly), or ``undecided``."""
        return VERDICTS[self.state]

    @property
    def word(self) -> str:
        """The verdict as a person says it of such a thing."""
        return _WELL.get(self.kind, self.verdict) if self.state is State.FINE else self.verdict

    @property
    def broken(self) -> Part | None:
        """The first part that is broken on every way; else the first that is broken on one."""
        stops = [part for part in self.parts if part.state is State.BROKEN]
        return next((part for part in stops if not part.when), stops[0] if stops else None)


# --- Of each kind of trace -----------------------------------------------------------------------


def of_request(trace: RequestTrace) -> Account:
    """Tell of a request."""
    # A single known end is decided, and says why by its hops.
    sure = len(trace.outcomes) == 1 and trace.outcomes[0].known
    return Account(
        "request",
        str(trace.request),
        _end(trace.outcomes),
        trace.says,
        _hops(trace.hops),
        () if sure else trace.undecided,
        trace.request.authority or joined(trace.request.address, trace.request.port),
    )


def of_connection(trace: ConnectionTrace) -> Account:
    """Tell of a connection."""
    undecided = dict.fromkeys(
        step.says.removeprefix(_CANNOT) for step in trace.steps if step.outcome == "undecided"
    )
    return Account(
        "connection",
        f"{trace.client.name} to {trace.server.name}",
        _OF_CONNECTION[trace.verdict],
        trace.says,
        _hops(trace.steps),
        tuple(undecided),
        trace.server.name,
    )


def of_change(trace: ChangeTrace) -> Account:
    """Tell of a change."""
    return Account(
        "change",
        trace.subject,
        _height(trace),
        trace.answer,
        tuple(map(_rung, trace.rungs)),
        tuple(rung.says for rung in trace.rungs if rung.outcome == "undecided"),
    )


def follow_written(facts: Facts, subject: str) -> ChangeTrace:
    """Follow a change with what checks say of objects as they are written."""
    return follow_change(facts, subject, complaints=written(facts))


def written(facts: Facts) -> tuple[Finding, ...]:
    """Return what is wrong with the objects of a source as they are written."""
    lint = [check for check in CHECKS.values() if check.lint]
    return tuple(found for outcome in run(Inputs(facts), lint) for found in outcome.findings)


def _end(outcomes: Iterable[Outcome]) -> State:
    """Return how a request ends, by all the ways in which it may."""
    told = list(outcomes)
    if not told or not all(one.known for one in told):
        return State.UNKNOWN
    well = {_well(one) for one in told}
    if len(well) == 1:
        return State.FINE if well.pop() else State.BROKEN
    # Each end is known, and which of them it is lies with chance or with what ``because`` says.
    return State.ODD


def _well(outcome: Outcome) -> bool:
    """Whether a request gets its answer: from the application, or from a proxy that is to give it.

    What the application answers is not written anywhere.
    """
    return outcome.by == "application" or outcome.code in _ANSWERED


def _height(trace: ChangeTrace) -> State:
    if trace.broken is not None:
        return State.BROKEN
    return State.FINE if trace["active"].outcome == PASSED else State.UNKNOWN


def _hops(hops: Iterable[Hop]) -> tuple[Part, ...]:
    """Return a part per hop; one without a place is where the one before it is."""
    parts: list[Part] = []
    for hop in hops:
        where = hop.proxy or (parts[-1].where if parts else "")
        parts.append(_hop(hop, where))
    return tuple(parts)


def _hop(hop: Hop, where: str) -> Part:
    return Part(
        hop.stage,
        where,
        _OF_HOP[hop.outcome],
        hop.outcome,
        _sentence(hop.says),
        hop.when,
        hop.since,
        hop.resource,
        hop.object,
        (Cited(hop.table, (hop.row,)),) if hop.row is not None else (),
        hop.passed_over,
    )


def _rung(rung: Rung) -> Part:
    return Part(
        rung.name,
        "",
        _OF_RUNG[rung.outcome],
        rung.outcome.replace("_", " "),
        rung.says,
        cites=rung.cites,
        standings=tuple(map(_standing, rung.standings)),
    )


def _standing(standing: Standing) -> Part:
    return Part(
        standing.who,
        standing.who,
        _OF_RUNG[standing.outcome],
        standing.outcome.replace("_", " "),
        _sentence(standing.says),
        cites=standing.cites,
    )


def _sentence(text: str) -> str:
    # Steps of a connection are clauses; a name at the beginning stays as it is written.
    text = " ".join(text.split())
    return text if text.endswith((".", "?")) else f"{text}."


# --- As text -------------------------------------------------------------------------------------


def told(account: Account) -> str:
    """Return an account as text: the verdict, then a line per part, and what it was decided by."""
    lines = [f"{account.state.sign} {account.word}: {account.title}", account.says]
    where = ""
    for part in account.parts:
        if place(part) != where:
            where = place(part)
            lines.append(f"  at {where}")
        lines.append(f"    {part.state.sign} {headed(part)} {part.says}")
    lines += [f"  Cannot decide: {_sentence(reason)}" for reason in account.undecided]
    return "\n".join(lines)


def place(part: Part) -> str:
    """Return where a part is, and on which condition; empty for a rung."""
    return f"{part.where}, if {part.when}" if part.when else part.where


def headed(part: Part) -> str:
    """Return what stands before a part's words: its title, and its state unless all is well."""
    return f"{part.title}:" if part.state is State.FINE else f"{part.title} ({part.word}):"


def rows_of(facts: Facts, part: Part) -> Iterator[tuple[Cited, pd.DataFrame]]:
    """Yield the rows that a part cites, a frame per table."""
    for cited in part.cites:
        frame = facts[cited.table]
        rows = frame.loc[[row for row in cited.rows if row in frame.index]]
        rows.attrs["table"] = cited.table
        yield cited, rows


def cited_words(facts: Facts, part: Part) -> Iterator[str]:
    """Yield what a part cites: table, rows, and the question that they came from."""
    for cited, rows in rows_of(facts, part):
        numbers = ", ".join(map(str, cited.rows))
        questions = list(dict.fromkeys(str(plain(one)) for one in rows["question"].dropna()))
        more = f" and {len(questions) - 1} more" if len(questions) > 1 else ""
        whence = f", from {questions[0]}{more}" if questions else ""
        noun = "row" if len(cited.rows) == 1 else "rows"
        yield f"{cited.table} {noun} {numbers}{whence}"


def logged(facts: Facts, row: int) -> str:
    """Return how a line of ``access_log`` says that its request ended, in one sentence."""
    line = {name: plain(value) for name, value in facts["access_log"].iloc[row].to_dict().items()}
    parts = [
        str(line[name])
        for name in ("response_code", "response_flags", "details", "connection_details")
        if line[name] not in (None, "", "-")
    ]
    to = f" for {line['cluster']}" if line["cluster"] else ""
    return f"The log of {line['proxy']} has {' '.join(parts) or 'no status'}{to}."
