"""What a source has answered so far, as a source: a recording of the very moment one looks at."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any

from meshnb.errors import NotRecorded
from meshnb.sources.base import Answer, Question, Source


class Kept:
    """The answers that were got from a source; nobody is asked anything again."""

    def __init__(self, source: Source, answers: Mapping[Question, Answer]) -> None:
        """Take the source and what it answered."""
        self._source = source
        self._answers = dict(answers)
        self.manifest: Mapping[str, Any] = getattr(source, "manifest", {})
        self.server_version: Mapping[str, Any] | None = getattr(source, "server_version", None)

    def __repr__(self) -> str:
        """Show whose answers they are, and how many."""
        return f"<{len(self._answers)} answers of {self.label}>"

    @property
    def label(self) -> str:
        """Name the source as it names itself."""
        return self._source.label

    @property
    def damage(self) -> tuple[str, ...]:
        """Say what of the source itself is broken."""
        return self._source.damage

    @property
    def bounds(self) -> tuple[str, ...]:
        """Say what of the damage is only that some was left out."""
        return tuple(getattr(self._source, "bounds", ()))

    @property
    def now(self) -> datetime:
        """When the newest answer was taken."""
        return self._source.now

    def questions(self) -> tuple[Question, ...]:
        """Return the questions that were answered."""
        return tuple(self._answers)

    def ask(self, questions: Iterable[Question]) -> Iterator[Answer]:
        """Yield the answers that were got. Raises NotRecorded for a question that was not put."""
        for question in questions:
            if question not in self._answers:
                raise NotRecorded(f"{self.label} was not asked {question}.")
            yield self._answers[question]
