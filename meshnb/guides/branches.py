"""Branches: what can be behind one thing that people see, and by which evidence each is told."""

from __future__ import annotations

from dataclasses import dataclass

from meshnb.checks import CHECKS
from meshnb.errors import CatalogueError
from meshnb.symptoms import Symptom


@dataclass(frozen=True, slots=True)
class Branch:
    """One thing that can be behind it. The checks named by ``codes`` look at its evidence.

    ``shows`` are the flags or beginnings of details with which it shows in an access log; empty
    for one that shows in no particular way. One that is ``silent`` shows in none at all.
    """

    name: str
    #: the evidence that tells it from the others
    decides: str
    codes: tuple[str, ...] = ()
    shows: tuple[str, ...] = ()
    silent: bool = False

    def __post_init__(self) -> None:
        """Refuse a branch for a check that does not exist, at import."""
        unknown = [code for code in self.codes if code not in CHECKS]
        if unknown:
            raise CatalogueError(f"The branch {self.name!r} names no check with {unknown}.")

    def can_show_as(self, symptom: Symptom) -> bool:
        """Whether a symptom with a line in an access log can look like this."""
        said = (symptom.details, symptom.upstream_failure)
        return (
            not self.shows
            or not (symptom.flags or symptom.details)
            or bool(symptom.flags.intersection(self.shows))
            or any(text.startswith(self.shows) for text in said)
        )


def branch(
    name: str, decides: str, codes: str = "", shows: str = "", *, silent: bool = False
) -> Branch:
    """Return a branch; codes and shows are lists of words, codes without their ``MNB``."""
    checks = tuple(f"MNB{code}" for code in codes.split())
    return Branch(name, decides, checks, tuple(shows.split()), silent)
