"""SHA-256 of what a source answered: so that a report can be held against the recording later."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from meshnb.sources.base import Answer, Question, Source


@dataclass(frozen=True, slots=True)
class Digest:
    """One checksum, and of what it is."""

    of: str
    sha256: str


def digest_of_answer(answer: Answer) -> str:
    """Return the checksum of an answer's body, as it was recorded; of nothing when it is empty."""
    return hashlib.sha256(answer.body or b"").hexdigest()


def digest_of_source(source: Source, answer: Callable[[Question], Answer]) -> Digest:
    """Return the checksum of the file that a source is.

    A source that is no single file has that of a list: a line per question, sorted, with the
    checksum of the answer, two spaces and the question. ``answer`` gives the answer to a question.
    """
    path = getattr(source, "path", None)
    if isinstance(path, Path) and path.is_file():
        with path.open("rb") as file:
            return Digest(f"the file {path.name}", hashlib.file_digest(file, "sha256").hexdigest())
    lines = sorted(f"{digest_of_answer(answer(one))}  {one}\n" for one in source.questions())
    listed = hashlib.sha256("".join(lines).encode("utf-8", "backslashreplace"))
    return Digest(f"the list of its {len(lines)} answers", listed.hexdigest())
