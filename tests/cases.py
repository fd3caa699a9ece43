"""Cases of recordings for the tests of guides and views: whole, or with a part held back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import cache

from meshnb.errors import NotRecorded
from meshnb.guides import Case
from meshnb.sources import Answer, Bundle, Question
from meshnb.tables import Facts
from tests.conftest import facts_of, unpacked


@cache
def case_of(name: str) -> Case:
    """Return the case of a recording, made once per test process."""
    return Case.of(facts_of(name))


@dataclass(frozen=True)
class Part:
    """A recording of which some questions were never asked."""

    whole: Bundle
    kept: Callable[[Question], bool]

    @property
    def label(self) -> str:
        """Name the recording."""
        return f"part of {self.whole.label}"

    @property
    def damage(self) -> tuple[str, ...]:
        """Say what is broken of the recording."""
        return self.whole.damage

    @property
    def now(self) -> datetime:
        """The moment of the recording."""
        return self.whole.now

    def questions(self) -> Iterable[Question]:
        """Return the questions that are left."""
        return [question for question in self.whole.questions() if self.kept(question)]

    def ask(self, questions: Iterable[Question]) -> Iterator[Answer]:
        """Yield the answers to questions that are left. Raises NotRecorded for others."""
        for question in questions:
            if not self.kept(question):
                raise NotRecorded(f"{question} was held back.")
            yield from self.whole.ask([question])


def part_of(name: str, kept: Callable[[Question], bool]) -> Case:
    """Return the case of a recording with only those questions that ``kept`` says."""
    return Case.of(Facts(Part(Bundle(unpacked() / name, label=name), kept)))
