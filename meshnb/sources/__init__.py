"""Where answers come from. Raw answers only: no pandas, no opinion.

``base`` says what a question, an answer and a source are; each further module is one source or a
part of one. :func:`open_source` opens any of them by name.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from meshnb.errors import SourceError, UsageError
from meshnb.sources.base import (
    Answer,
    HttpQuestion,
    ListQuestion,
    LogQuestion,
    ProbeQuestion,
    Question,
    Source,
)
from meshnb.sources.bug_report import BugReport, holds_bug_report
from meshnb.sources.bundle import Bundle, record
from meshnb.sources.dump import Dump, holds_dump
from meshnb.sources.limits import Limits
from meshnb.sources.manifests import Manifests, holds_manifests
from meshnb.sources.progress import Progress
from meshnb.sources.recordings import Recording, open_recording, recordings
from meshnb.sources.scope import Scope

__all__ = [
    "Answer",
    "BugReport",
    "Bundle",
    "Dump",
    "HttpQuestion",
    "Limits",
    "ListQuestion",
    "LogQuestion",
    "Manifests",
    "ProbeQuestion",
    "Progress",
    "Question",
    "Recording",
    "Scope",
    "Source",
    "is_cluster",
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
    scope: Scope | None = None,
    limits: Limits | None = None,
    watch: Callable[[Progress], None] | None = None,
) -> Source:
    """Open a source by its name: ``recorded:NAME``, or the path of a bundle (a folder or a zip).

    ``cluster`` is the live cluster of the kubeconfig's current context, ``cluster:CONTEXT`` that of
    another one; ``scope`` chooses what of it is asked, ``limits`` how long, and ``watch`` hears of
    the progress. Nothing is contacted before the first question.

    A ``.tar.gz`` that ``istioctl bug-report`` wrote, or the folder it was unpacked to, is one too.
    A file of JSON is what a proxy answered: a config dump, or its clusters with their endpoints.
    A folder without a bundle in it, and a YAML file, is a set of manifests; ``mesh_config`` and
    ``mesh_networks`` are files with the settings that istiod would have, for manifests only.

    Raises :class:`~meshnb.errors.SourceError` when it cannot be used, and
    :class:`~meshnb.errors.UsageError` for an unknown recording, or settings for a bundle.
    """
    text = os.fspath(name)
    if is_cluster(text):
        return _open_cluster(text.partition(":")[2] or None, scope, limits, watch)
    if scope is not None or limits is not None or watch is not None:
        raise UsageError(
            f"{text!r} is no live cluster, so nothing of it is chosen and nobody is waited for.",
            next_step="Leave out scope, limits and watch.",
        )
    report = not text.startswith("recorded:") and holds_bug_report(text)
    dump = not report and not text.startswith("recorded:") and holds_dump(text)
    if not (dump or report or text.startswith("recorded:")) and holds_manifests(text):
        return Manifests(text, mesh_config=mesh_config, mesh_networks=mesh_networks)
    if mesh_config is not None or mesh_networks is not None:
        raise UsageError(
            f"{text!r} is no folder of manifests, so it takes no settings of a mesh.",
            next_step="A recorded mesh has its own.",
        )
    if report:
        return BugReport(text)
    if dump:
        return Dump(text)
    if text.startswith("recorded:"):
        return open_recording(text.removeprefix("recorded:"))
    return Bundle(text)


def is_cluster(name: str | os.PathLike[str]) -> bool:
    """Whether a source's name is that of a live cluster. A folder of that name is ``./cluster``."""
    text = os.fspath(name)
    return text == "cluster" or text.startswith("cluster:")


def _open_cluster(
    context: str | None,
    scope: Scope | None,
    limits: Limits | None,
    watch: Callable[[Progress], None] | None,
) -> Source:
    try:
        from meshnb.sources.cluster import Cluster  # noqa: PLC0415  brings aiohttp
    except ImportError as error:
        raise SourceError(
            f"A live cluster cannot be asked, because the package {error.name} is not installed.",
            next_step="Install it: pip install meshnb, in a Python that has a network.",
        ) from error
    return Cluster(context, scope=scope, limits=limits, watch=watch)
