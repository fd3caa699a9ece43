"""Measure the diagnosis on labelled recordings: ``python -m tests.accuracy [FOLDER]``.

FOLDER holds bundles (folders or zips) with ``<id>.truth.json`` beside them; by default the
recordings of the tests. Prints one row per recording: the rank of the first cause that is one of
the label's objects, whether the first cause has the label's class, the causes above info that are
not the label's, and the seconds for one whole diagnosis in process.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meshnb.checks import Subject
from meshnb.diagnosis import Diagnosis, diagnose
from meshnb.sources import Bundle
from meshnb.tables import Facts
from tests.conftest import unpacked


@dataclass(frozen=True)
class Score:
    """How one diagnosis compares with its label."""

    name: str
    healthy: bool
    #: rank of the first cause that the label names; 0 when none is
    rank: int
    #: whether the first cause has the label's class
    class_right: bool
    #: causes above info that the label does not name
    false_causes: int
    first: str
    seconds: float = 0.0

    @property
    def right(self) -> bool:
        """Whether a healthy mesh is left alone, or a fault is named first, with its class."""
        return not self.false_causes if self.healthy else self.rank == 1 and self.class_right


def names(truth: Mapping[str, Any], subject: Subject) -> bool:
    """Whether a label names an object; a Pod's or Deployment's name in a label is a prefix."""
    for text in truth["truth"]:
        kind, namespace, name = text.split("/", 2)
        prefix = kind in ("Pod", "Deployment") and subject.name.startswith(name)
        if (kind, namespace) == (subject.kind, subject.namespace) and (
            prefix or name == subject.name
        ):
            return True
    return False


def score(name: str, truth: Mapping[str, Any], diagnosis: Diagnosis, seconds: float = 0.0) -> Score:
    """Compare a diagnosis with its label."""
    problems = diagnosis.problems
    right = [cause.rank for cause in problems if names(truth, cause.subject)]
    classes = truth.get("classes", [truth["class"]])
    first = problems[0] if problems else None
    return Score(
        name=name,
        healthy=bool(truth["healthy"]),
        rank=right[0] if right else 0,
        class_right=first is not None and first.failure_class.value in classes,
        false_causes=len(problems) - len(right),
        first=f"{first.check.code} {first.failure_class.value} {first.subject}"
        if first
        else "none",
        seconds=seconds,
    )


def measure(folder: Path) -> list[Score]:
    """Diagnose every labelled recording of a folder."""
    scores = []
    for label in sorted(folder.glob("*.truth.json")):
        name = label.name.removesuffix(".truth.json")
        path = folder / name if (folder / name).is_dir() else folder / f"{name}.zip"
        begun = time.perf_counter()
        diagnosis = diagnose(Facts(Bundle(path, label=name)))
        scores.append(
            score(name, json.loads(label.read_text()), diagnosis, time.perf_counter() - begun)
        )
    return scores


def report(scores: list[Score]) -> str:
    """Return the table as Markdown, with totals below."""
    lines = [
        "| recording | first cause | rank of the truth | class | false causes | s |",
        "|---|---|---|---|---|---|",
    ]
    for one in scores:
        rank = "healthy" if one.healthy else one.rank or "\N{EN DASH}"
        right = "" if one.healthy else "right" if one.class_right else "wrong"
        lines.append(
            f"| {one.name} | {one.first} | {rank} | {right} | {one.false_causes} "
            f"| {one.seconds:.2f} |"
        )
    faulty = [one for one in scores if not one.healthy]
    healthy = [one for one in scores if one.healthy]
    right_first = sum(one.right for one in faulty)
    among_three = sum(0 < one.rank <= 3 for one in faulty)
    alarms = sum(not one.right for one in healthy)
    false_causes = sum(one.false_causes for one in faulty) / max(len(faulty), 1)
    median = sorted(one.seconds for one in scores)[len(scores) // 2]
    totals = (
        f"{right_first} of {len(faulty)} faults named first and with the right class; "
        f"truth among the first three: {among_three}; "
        f"healthy recordings with a false alarm: {alarms} of {len(healthy)}; "
        f"false causes per faulty recording: {false_causes:.2f}; "
        f"median seconds: {median:.2f}."
    )
    return "\n".join([*lines, "", totals])


if __name__ == "__main__":
    print(report(measure(Path(sys.argv[1]) if len(sys.argv) > 1 else unpacked())))
