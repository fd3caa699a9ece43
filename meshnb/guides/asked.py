"""What was asked of the mesh for some tables: what, of whom, when and how long it took."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from meshnb.errors import SourceError
from meshnb.sources.base import (
    Answer,
    HttpQuestion,
    ListQuestion,
    LogQuestion,
    ProbeQuestion,
    Question,
)
from meshnb.tables import TABLES, Facts

#: So many pods, and so many pages or resources, are named before they are counted.
_FEW = 2
_MANY = 6


@dataclass(frozen=True, slots=True)
class Asked:
    """Questions of one kind to one or many, with the answers counted."""

    verb: str
    what: tuple[str, ...]
    #: the API server, or pods
    whom: str
    count: int
    answered: int
    last: datetime | None
    #: how long the slowest answer took, in milliseconds
    slowest_ms: float

    def __str__(self) -> str:
        """Return one line without its full stop."""
        got = (
            "answered"
            if self.count == self.answered
            else f"{self.answered} of {self.count} answered"
        )
        when = f" at {self.last:%H:%M:%S} UTC" if self.last is not None else ""
        slowest = f", within {self.slowest_ms:.0f} ms" if self.slowest_ms else ""
        named = ", ".join(self.what[:_MANY])
        more = f" and {len(self.what) - _MANY} more" if len(self.what) > _MANY else ""
        return f"{self.verb} {named}{more} of {self.whom}: {got}{when}{slowest}"


def asked(facts: Facts, tables: Iterable[str]) -> tuple[Asked, ...]:
    """Return what was asked for some tables, one entry per kind of question."""
    parts: dict[tuple[str, str], dict[Question, None]] = {}
    for table in tables:
        for question in _questions(facts, table):
            parts.setdefault(_what(question), {})[question] = None
    groups: dict[tuple[str, tuple[str, ...]], list[tuple[str, list[Question]]]] = {}
    for (verb, what), questions in parts.items():
        whom = tuple(dict.fromkeys(_whom(question) for question in questions))
        groups.setdefault((verb, whom), []).append((what, list(questions)))
    return tuple(_asked(facts, verb, whom, members) for (verb, whom), members in groups.items())


def _questions(facts: Facts, table: str) -> Iterable[Question]:
    selectors = TABLES[table].asks
    if selectors:
        for selector in selectors:
            yield from facts.select(selector)
        return
    for title in facts[table]["question"].dropna().unique():
        yield facts.question(str(title))


def _what(question: Question) -> tuple[str, str]:
    match question:
        case ListQuestion(_, resource):
            return "LIST", resource
        case HttpQuestion(_, _, port, path):
            return "GET", f"{port}{path}"
        case ProbeQuestion(_, _, port, protocol):
            return "PROBE", f"{port} {protocol}"
        case LogQuestion(_, _, container):
            return "LOG", container


def _whom(question: Question) -> str:
    return "the API server" if isinstance(question, ListQuestion) else question.pod


def _asked(
    facts: Facts, verb: str, whom: tuple[str, ...], members: list[tuple[str, list[Question]]]
) -> Asked:
    every = [question for _, questions in members for question in questions]
    answers = [answer for question in every if (answer := _answer(facts, question)) is not None]
    good = [answer for answer in answers if answer.error is None and not answer.refused]
    return Asked(
        verb=verb,
        what=tuple(what for what, _ in members),
        whom=" and ".join(whom) if len(whom) <= _FEW else f"{len(whom)} pods",
        count=len(every),
        answered=len(good),
        last=max((answer.taken_at for answer in answers), default=None),
        slowest_ms=max((answer.elapsed_ms for answer in good), default=0.0),
    )


def _answer(facts: Facts, question: Question) -> Answer | None:
    try:
        return facts.answer(question)
    except SourceError:
        return None
