"""Measure the diagnosis on recordings of richer meshes: ``python -m tests.enriched_accuracy``.

Each ingredient of :mod:`tests.enriching` is added to each labelled recording, alone, and then all
of them together; and Istio's metrics instead of logs. Names on the command line limit it to these
ingredients, ``all``, ``renamed``, ``metrics``. A healthy recording must stay without a cause above
info, and the cause of a faulty one must still be named first, with its class.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

from meshnb.diagnosis import diagnose
from meshnb.tables import Facts
from tests.accuracy import Score, score
from tests.accuracy import names as names_it
from tests.conftest import recording_names, truth_of
from tests.enriching import ALL, INGREDIENTS, enriched
from tests.enriching.base import under_other_names
from tests.renaming import renamed

TOGETHER = "all together"
RENAMED = "all together, under other names"
#: What Istio's default profile shows: its proxies count, and write no access log.
METRICS = "metrics instead of logs"


@dataclass(frozen=True)
class Measured:
    """How recordings were diagnosed with one ingredient added."""

    ingredient: str
    scores: tuple[Score, ...]
    #: causes above info that the label of the recording with this name does not name
    blamed: Mapping[str, tuple[str, ...]]

    @property
    def wrong(self) -> tuple[Score, ...]:
        """The recordings whose diagnosis the ingredient spoiled."""
        return tuple(one for one in self.scores if not one.right or one.false_causes)


def measure(ingredient: str, names: Iterable[str] | None = None) -> Measured:
    """Diagnose recordings, all by default, with one ingredient or with all together."""
    wanted = (ingredient,) if ingredient in INGREDIENTS else ALL
    if ingredient == METRICS:
        wanted = ("istio_filters", "no_logs")
    if ingredient == RENAMED:  # a name may be a word of the JSON format, such as details
        wanted = tuple(name for name in wanted if name != "json_logs")
    scores, blamed = [], {}
    for name in recording_names() if names is None else names:
        mesh, truth = enriched(name, wanted), truth_of(name)
        if ingredient == RENAMED:
            mesh, truth = under_other_names(mesh), json.loads(renamed(json.dumps(truth).encode()))
        diagnosis = diagnose(Facts(mesh))
        scores.append(score(name, truth, diagnosis))
        blamed[name] = tuple(
            f"{cause.check.code} {cause.subject}"
            for cause in diagnosis.problems
            if not names_it(truth, cause.subject)
        )
    return Measured(ingredient, tuple(scores), blamed)


def report(measured: Iterable[Measured]) -> str:
    """Return one row per ingredient as Markdown, and below what went wrong."""
    lines = [
        "| ingredient | faults right first | false alarms | false causes |",
        "|---|---|---|---|",
    ]
    details = []
    for one in measured:
        faulty = [found for found in one.scores if not found.healthy]
        healthy = [found for found in one.scores if found.healthy]
        lines.append(
            f"| {one.ingredient} | {sum(f.right for f in faulty)} of {len(faulty)} "
            f"| {sum(not h.right for h in healthy)} of {len(healthy)} "
            f"| {sum(found.false_causes for found in one.scores)} |"
        )
        details += [
            f"{one.ingredient}: {found.name}: {found.first} (rank of the truth {found.rank}); "
            f"blamed beside it: {', '.join(one.blamed[found.name]) or 'nobody'}"
            for found in one.wrong
        ]
    return "\n".join([*lines, "", *details])


if __name__ == "__main__":
    short = {"all": TOGETHER, "renamed": RENAMED, "metrics": METRICS}
    chosen = [short.get(name, name) for name in sys.argv[1:]]
    with ProcessPoolExecutor(2) as pool:
        print(report(pool.map(measure, chosen or [*INGREDIENTS, TOGETHER, RENAMED, METRICS])))
