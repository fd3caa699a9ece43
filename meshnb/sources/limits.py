"""How long one waits for a cluster, how much it is asked at once, and how far back logs go."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """The bounds of asking a cluster."""

    #: for each answer, in seconds; for a large page that keeps coming, for each piece of it
    question_s: float = 30.0
    #: for everything that is asked in one go, in seconds; None for no limit
    total_s: float | None = 900.0
    #: so many connections to pods are open at once
    connections: int = 96
    #: logs are read no further back than this, in seconds; None for as long as they are kept
    log_since_s: int | None = None
