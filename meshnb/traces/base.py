"""What a trace is: one thing followed across tables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from meshnb.tables import Facts


@dataclass(frozen=True, slots=True)
class Trace:
    """A named value made from several tables; checks take it as a parameter of this name."""

    name: str
    #: what it answers, in one sentence
    title: str
    #: the tables it reads; their gaps are its gaps
    reads: tuple[str, ...]
    make: Callable[[Facts], Any]
