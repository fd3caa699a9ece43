"""Measure the diagnosis on faults that no recording has: ``python -m tests.other_meshes_accuracy``.

Prints one row per fault of :mod:`tests.faults` that is not right, or beside whose cause another is
blamed, and a total; in each of four ways, or those that are named on the command line: ``plain``,
``renamed``, ``old`` and ``passed-on``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial

from meshnb.diagnosis import diagnose
from meshnb.tables import Facts
from tests.accuracy import Score, names, score
from tests.faults import FAULTS
from tests.renaming import renamed

PLAIN, RENAMED, OLD, PASSED_ON = "plain", "renamed", "old", "passed-on"
WAYS = (PLAIN, RENAMED, OLD, PASSED_ON)


@dataclass(frozen=True)
class Measured:
    """How one fault was diagnosed."""

    score: Score
    #: causes above info that the label does not name
    beside: tuple[str, ...]


def measure(name: str, way: str = PLAIN) -> Measured:
    """Diagnose a fault: as it is, under other names, begun long ago, or passed on by others."""
    fault = FAULTS[name]
    mesh = fault.mesh(renamed=way == RENAMED, long_ago=way == OLD, passed_on=way == PASSED_ON)
    truth = fault.label
    if way == RENAMED:
        truth = json.loads(renamed(json.dumps(truth).encode()))
    diagnosis = diagnose(Facts(mesh))
    beside = [
        f"{cause.check.code} {cause.subject}"
        for cause in diagnosis.problems
        if not names(truth, cause.subject)
    ]
    return Measured(score(name, truth, diagnosis), tuple(beside))


def report(way: str, measured: Iterable[Measured]) -> str:
    """Return a line per fault that went wrong in a way, and the total."""
    every = list(measured)
    lines = [
        f"{way}: {one.score.name}: {one.score.first} (rank of the truth {one.score.rank}); "
        f"blamed beside it: {', '.join(one.beside) or 'nobody'}"
        for one in every
        if one.beside or not one.score.right
    ]
    first = sum(one.score.rank == 1 for one in every)
    right = sum(one.score.right for one in every)
    beside = sum(len(one.beside) for one in every)
    lines.append(
        f"{way}: {first} of {len(every)} faults named first, {right} of them with the right class; "
        f"false causes: {beside}."
    )
    return "\n".join(lines)


if __name__ == "__main__":
    with ProcessPoolExecutor(2) as pool:
        for chosen in sys.argv[1:] or WAYS:
            print(report(chosen, pool.map(partial(measure, way=chosen), FAULTS)))
