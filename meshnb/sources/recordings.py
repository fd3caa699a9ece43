"""The recordings that ship with the package: meshes with one fault each, and some without any."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

from meshnb.errors import UsageError, nearest
from meshnb.sources.bundle import Bundle


@dataclass(frozen=True, slots=True)
class Recording:
    """One recording that ships with the package."""

    #: what ``recorded:NAME`` calls it
    name: str
    #: one sentence: what a user of that mesh would complain about
    title: str


@cache
def recordings() -> tuple[Recording, ...]:
    """Return the recordings that ship with the package, in the order in which to try them."""
    catalogue = json.loads((_folder() / "catalogue.json").read_text(encoding="utf-8"))
    return tuple(Recording(entry["name"], entry["title"]) for entry in catalogue)


def open_recording(name: str) -> Bundle:
    """Open a recording that ships with the package. Raises UsageError for an unknown name."""
    names = [recording.name for recording in recordings()]
    if name not in names:
        raise UsageError(
            f"There is no recording {name!r}.",
            next_step=f"{nearest(name, names)} `meshnb recordings` lists them.",
        )
    return Bundle(_folder() / f"{name}.tar.xz", label=f"recorded:{name}")


def _folder() -> Path:
    return Path(str(resources.files("meshnb"))) / "recordings"
