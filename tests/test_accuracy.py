"""The diagnosis names the labelled cause first, and leaves healthy meshes alone."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from meshnb.diagnosis import Diagnosis, diagnose
from meshnb.sources import Bundle
from meshnb.tables import Facts
from tests.accuracy import Score, score
from tests.conftest import facts_of, recording_names, truth_of, unpacked
from tests.renaming import renamed, renamed_bundle


@cache
def diagnosis_of(name: str) -> Diagnosis:
    """Return the diagnosis of a recording, made once."""
    return diagnose(facts_of(name))


FAULTY = [n for n in recording_names() if not truth_of(n)["healthy"]]
HEALTHY = [n for n in recording_names() if truth_of(n)["healthy"]]


@pytest.mark.parametrize("name", FAULTY)
def test_the_labelled_cause_comes_first_with_its_class(name: str) -> None:
    result = score(name, truth_of(name), diagnosis_of(name))

    assert (result.rank, result.class_right) == (1, True), result.first


@pytest.mark.parametrize("name", FAULTY)
def test_nothing_else_is_blamed(name: str) -> None:
    assert score(name, truth_of(name), diagnosis_of(name)).false_causes == 0


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_mesh_has_no_cause_above_info(name: str) -> None:
    diagnosis = diagnosis_of(name)

    assert [cause.finding.message for cause in diagnosis.problems] == []


@pytest.mark.parametrize("name", [*FAULTY, *HEALTHY])
def test_the_same_mesh_under_other_names_gets_the_same_diagnosis(name: str, tmp_path: Path) -> None:
    """Codes, classes and subjects are the same when every chosen name is another one."""
    bundle = Bundle(renamed_bundle(unpacked() / name, tmp_path / "bundle"), label=name)
    other = diagnose(Facts(bundle))
    same = diagnosis_of(name)

    def summary(diagnosis: Diagnosis, *, rename: bool) -> list[tuple[str, str, str]]:
        found = [(c.check.code, c.failure_class.value, str(c.subject)) for c in diagnosis.problems]
        return [(a, b, renamed(s.encode()).decode() if rename else s) for a, b, s in found]

    assert summary(other, rename=False) == summary(same, rename=True)


def test_a_score_tells_right_from_wrong() -> None:
    """A label that names another object is missed, one of another class is half right."""
    diagnosis = diagnosis_of("subset-missing")
    truth = truth_of("subset-missing")
    elsewhere = {**truth, "truth": ["VirtualService/bookinfo/other"]}

    assert score("x", truth, diagnosis).right
    assert score("x", elsewhere, diagnosis) == Score(
        name="x",
        healthy=False,
        rank=0,
        class_right=True,
        false_causes=1,
        first="MNB210 A VirtualService bookinfo/reviews",
    )
    assert not score("x", {**truth, "class": "C", "classes": ["C"]}, diagnosis).right
