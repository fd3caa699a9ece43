"""Where answers come from. Raw answers only: no pandas, no opinion.

``base`` says what a question, an answer and a source are; each further module is one source or a
part of one. :func:`open_source` opens any of them by name.
"""

from __future__ import annotations

import os

from meshnb.errors import UsageError
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
from meshnb.sources.dump import Dump, holds_dump
from meshnb.sources.manifests import Manifests, holds_manifests
from meshnb.sources.recordings import Recording, open_recording, recordings

__all__ = [
    "Answer",
    "Bundle",
    "Dump",
    "HttpQuestion",
    "ListQuestion",
    "LogQuestion",
    "Manifests",
    "ProbeQuestion",
    "Question",
    "Recording",
    "Source",
    "open_recording",
    "open_source",
    "record",
    "recordings",
]


def open_source(
    name: str | os.PathLike[str],
    *,
    mesh_config: str | os.PathLike[str] | None = None,
    mesh_networks: str | os.PathLike[str] | None = None,
) -> Source:
    """Open a source by its name: ``recorded:NAME``, or the path of a bundle (a folder or a zip).

    A file of JSON is what a proxy answered: a config dump, or its clusters with their endpoints.
    A folder without a bundle in it, and a YAML file, is a set of manifests; ``mesh_config`` and
    ``mesh_networks`` are files with the settings that istiod would have, for manifests only.

    Raises :class:`~meshnb.errors.SourceError` when it cannot be used, and
    :class:`~meshnb.errors.UsageError` for an unknown recording, or settings for a bundle.
    """
    text = os.fspath(name)
    dump = not text.startswith("recorded:") and holds_dump(text)
    if not dump and not text.startswith("recorded:") and holds_manifests(text):
        return Manifests(text, mesh_config=mesh_config, mesh_networks=mesh_networks)
    if mesh_config is not None or mesh_networks is not None:
        raise UsageError(
            f"{text!r} is no folder of manifests, so it takes no settings of a mesh.",
            next_step="A recorded mesh has its own.",
        )
    if dump:
        return Dump(text)
    if text.startswith("recorded:"):
        return open_recording(text.removeprefix("recorded:"))
    return Bundle(text)
