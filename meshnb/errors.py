"""Everything meshnb raises on purpose.

::

    MeshnbError
    ├── UsageError            the call itself is wrong: an unknown table, column, check or recording
    ├── SourceError           a source cannot be used at all
    │   ├── BundleError       a bundle cannot be read or written
    │   │   └── NewerFormat   the bundle was written by a newer meshnb
    │   └── NotRecorded       the source was never asked this question
    └── CatalogueError        a table, check or guide is declared wrongly; raised at import

Each message has three parts: what went wrong, on which thing, and what to do next. An answer that
is missing or unreadable is not an exception: it becomes a gap of the tables that wanted it
(:class:`meshnb.tables.Gap`), and the checks that read those tables say UNKNOWN.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MeshnbError(Exception):
    """Base of all errors that meshnb raises on purpose."""

    def __init__(self, what: str, *, next_step: str = "") -> None:
        """Say what is wrong and with which thing, then what to do next."""
        super().__init__(f"{what} {next_step}".strip())
        self.what = what
        self.next_step = next_step


class UsageError(MeshnbError):
    """A name that does not exist, or an argument that makes no sense."""


class SourceError(MeshnbError):
    """A source cannot be used at all."""


class BundleError(SourceError):
    """A bundle cannot be read or written."""


class NewerFormat(BundleError):
    """The bundle has a format number that this version does not know."""


class NotRecorded(SourceError):
    """The source was never asked this question, so it has no answer to it."""


class CatalogueError(MeshnbError):
    """A table, check or guide is declared wrongly. Raised at import, so it cannot be shipped."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the sentence that offers the nearest known names, for the end of an error message.

    Those that begin as the name does come first: it may not have been written to its end.
    """
    names = sorted(known)
    alike = difflib.get_close_matches(name, names, n=len(names) or 1, cutoff=0.5)
    close = sorted(alike, key=lambda one: not one.startswith(name))[:3]
    if close:
        return f"Did you mean {' or '.join(close)}?"
    if len(names) > 60:
        return f"There are {len(names)}, from {names[0]} to {names[-1]}."
    return f"There are: {', '.join(names)}." if names else "There are none."
