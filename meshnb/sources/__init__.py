"""Where answers come from. Raw answers only: no pandas, no opinion.

``base`` says what a question, an answer and a source are; each further module is one source or a
part of one. :func:`open_source` opens any of them by name.
"""

from __future__ import annotations

import os

from meshnb.sources.base import (
    Answer,
    HttpQuestion,
    ListQuestion,
    LogQuestion,
    ProbeQuestion,
    Question,
    Source,
)
from meshnb.sources.bundle import Bundle, record
from meshnb.sources.recordings import Recording, open_recording, recordings

__all__ = [
    "Answer",
    "Bundle",
    "HttpQuestion",
    "ListQuestion",
    "LogQuestion",
    "ProbeQuestion",
    "Question",
    "Recording",
    "Source",
    "open_recording",
    "open_source",
    "record",
    "recordings",
]


def open_source(name: str | os.PathLike[str]) -> Source:
    """Open a source by its name: ``recorded:NAME``, or the path of a bundle (a folder or a zip).

    Raises :class:`~meshnb.errors.SourceError` when it cannot be used, and
    :class:`~meshnb.errors.UsageError` for an unknown recording.
    """
    text = os.fspath(name)
    if text.startswith("recorded:"):
        return open_recording(text.removeprefix("recorded:"))
    return Bundle(text)
