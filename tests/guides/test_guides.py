"""The guides, walked along the obvious way on every recording."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from meshnb.checks import Cause
from meshnb.guides import GUIDES, Walk
from meshnb.guides.asked import asked
from meshnb.guides.excerpts import TELLING
from meshnb.guides.focus import SIGHTS
from meshnb.guides.pictures import State
from meshnb.guides.shared import GUIDE_OF
from meshnb.guides.text import WIDTH, story, verdicts
from meshnb.sources.base import HttpQuestion, ListQuestion, LogQuestion, ProbeQuestion, Question
from meshnb.tables import TABLES
from tests.accuracy import names
from tests.cases import case_of, part_of
from tests.conftest import facts_of, recording_names, truth_of

FAULTY = [name for name in recording_names() if not truth_of(name)["healthy"]]
HEALTHY = [name for name in recording_names() if truth_of(name)["healthy"]]


def _end(guide: str, recording: str) -> Walk:
    return Walk.start(GUIDES[guide], case_of(recording)).finish()


def test_each_failure_class_and_each_sight_has_its_guide_and_triage_comes_first() -> None:
    assert list(GUIDES) == ["triage", *GUIDE_OF.values(), *SIGHTS]
    assert set(GUIDE_OF) == set(Cause)


@pytest.mark.parametrize("guide", list(GUIDES))
def test_a_guide_has_three_to_seven_steps_that_are_questions(guide: str) -> None:
    assert 3 <= len(GUIDES[guide].steps) <= (6 if guide in SIGHTS else 7)
    for step in GUIDES[guide].steps:
        assert step.question.endswith("?")
        assert step.why.endswith(".")
        assert step.asked


def test_every_guide_of_a_class_asks_the_reader_once_before_it_tells() -> None:
    recording = {
        "control_plane_config": "subset-missing",
        "data_plane_config": "envoyfilter-rejected",
        "data_plane": "app-wrong-port",
    }
    for guide, name in recording.items():
        walk, asking = Walk.start(GUIDES[guide], case_of(name)), 0
        while True:
            pick = walk.page.pick
            asking += pick is not None and pick.asks_first
            if walk.ended:
                break
            walk = walk.next()
        assert asking == 1, guide


@pytest.mark.parametrize("name", FAULTY)
def test_triage_ends_at_the_labelled_cause_with_class_proof_and_remedy(name: str) -> None:
    truth = truth_of(name)
    end = _end("triage", name)
    (cause,) = end.page.causes
    assert names(truth, cause.subject) or any(
        names(truth, related) for related in cause.finding.related
    )
    assert cause.failure_class.value in truth.get("classes", [truth["class"]])
    assert end.page.verdict.startswith(f"Class {cause.failure_class.value}, ")
    assert end.page.tables, "no proof"
    assert cause.finding.remedy in verdicts(end)


@pytest.mark.parametrize("name", FAULTY)
def test_the_guide_of_the_class_ends_at_the_labelled_cause(name: str) -> None:
    truth = truth_of(name)
    classes = [Cause(letter) for letter in truth.get("classes", [truth["class"]])]
    found = [
        cause
        for failure_class in classes
        for cause in _end(GUIDE_OF[failure_class], name).page.causes
    ]
    assert any(
        names(truth, subject)
        for cause in found
        for subject in (cause.subject, *cause.finding.related)
    )


@pytest.mark.parametrize("name", HEALTHY)
@pytest.mark.parametrize("guide", list(GUIDES))
def test_every_guide_ends_well_on_a_healthy_mesh(guide: str, name: str) -> None:
    end = _end(guide, name)
    assert end.page.causes == ()
    assert end.page.state is State.FINE
    assert State.BROKEN not in {stop.state for stop in end.trail}


@pytest.mark.parametrize("name", FAULTY)
def test_a_guide_of_another_class_points_to_the_right_one(name: str) -> None:
    case = case_of(name)
    classes = {cause.failure_class for cause in case.diagnosis.problems}
    for other in set(Cause) - classes:
        end = _end(GUIDE_OF[other], name)
        assert end.page.causes == ()
        first = case.diagnosis.problems[0].failure_class
        assert [fork.guide for fork in end.forks] == [GUIDE_OF[first]]


def test_what_one_sees_leads_to_the_cause_of_that_and_not_of_something_else() -> None:
    """Two things fail in this mesh, and the heavier one is not asked for."""
    walk = Walk.start(GUIDES["triage"], case_of("app-crash-loop")).choose("not_ready")
    assert "not ready" in walk.page.verdict
    (cause,) = walk.finish().page.causes
    assert cause.subject.name == "details-v1"


def test_what_the_evidence_does_not_show_is_said() -> None:
    walk = Walk.start(GUIDES["triage"], case_of("subset-missing")).choose("slow")
    told = "No symptom in the evidence shows that: Requests are slow, or get 504."
    assert walk.page.verdict == told
    assert "503 NC" in walk.page.reading


@pytest.mark.parametrize("sight", list(SIGHTS))
def test_every_answer_to_what_do_you_see_leads_to_an_end(sight: str) -> None:
    walk = Walk.start(GUIDES["triage"], case_of("mtls-client-disable")).choose(sight)
    assert walk.finish().page.causes


#: What can be missing from a recording, and which steps must not call themselves fine then.
_HELD_BACK: dict[str, tuple[Callable[[Question], bool], set[str]]] = {
    "no access logs": (
        lambda q: isinstance(q, LogQuestion),
        {"fails", "hop", "answer", "connection", "begins", "seen"},
    ),
    "nothing of istiod": (
        lambda q: isinstance(q, HttpQuestion | ProbeQuestion) and "istiod" in q.pod,
        {"in_step", "refused", "control_plane", "versions"},
    ),
    "no config dumps": (
        lambda q: isinstance(q, HttpQuestion) and q.port == 15000,
        {"certificates", "refused"},
    ),
    "no pods": (
        lambda q: isinstance(q, ListQuestion) and q.resource == "pods",
        {"control_plane", "pods", "seen"},
    ),
    "nothing of Kubernetes": (
        lambda q: isinstance(q, ListQuestion),
        {"control_plane", "pods"},
    ),
}


@pytest.mark.parametrize("missing", list(_HELD_BACK))
@pytest.mark.parametrize("name", ["healthy", "istiod-down", "garden-healthy", "subset-missing"])
def test_a_part_that_is_missing_stops_no_guide_and_is_never_called_fine(
    name: str, missing: str
) -> None:
    held, blind = _HELD_BACK[missing]
    case = part_of(name, lambda question: not held(question))
    for guide in GUIDES.values():
        end = Walk.start(guide, case).finish()
        assert end.ended or end.blocked
        states = {stop.step.name: stop.state for stop in end.trail[:-1]}
        if name == "healthy":
            assert all(states.get(step) is not State.FINE for step in blind), guide.name


def test_the_columns_that_say_most_exist() -> None:
    for table, columns in TELLING.items():
        assert set(columns) <= TABLES[table].columns.keys(), table


def test_a_step_says_whom_it_asked_what_and_when() -> None:
    facts = facts_of("subset-missing")
    istiod, kubernetes, proxies = [str(one) for one in asked(facts, ("proxy_status", "proxies"))]
    assert istiod == (
        "GET 15014/debug/syncz, 15014/debug/connections of istiod-849979b494-z8nb9: "
        "answered at 02:50:29 UTC, within 182 ms"
    )
    assert kubernetes == "LIST pods of the API server: answered at 02:50:23 UTC, within 23 ms"
    assert proxies == (
        "GET 15000/config_dump?include_eds, 15000/server_info of 7 pods: "
        "answered at 02:50:28 UTC, within 364 ms"
    )


def test_who_did_not_answer_is_counted() -> None:
    def silence(question: Question) -> bool:
        return not (isinstance(question, HttpQuestion) and question.path == "/debug/syncz")

    case = part_of("healthy", silence)
    walk = Walk.start(GUIDES["data_plane_config"], case).next().next()
    assert walk.here.step.name == "in_step"
    assert walk.page.state is State.UNKNOWN
    assert "GET 15014/debug/syncz: was never asked" in walk.page.reading


@pytest.mark.parametrize("guide", list(GUIDES))
def test_the_whole_walk_can_be_told_as_text(guide: str) -> None:
    end = _end(guide, "envoyfilter-rejected")
    text = story(end)
    for stop in end.trail[:-1]:
        assert " ".join(stop.verdict.split())[:60] in " ".join(text.split())
    for label in ("question", "asked", "reading", "verdict"):
        assert text.count(f"   {label:<9} ") >= len(end.trail)
    # A name is never broken, so a line with a long one may be longer.
    assert all(len(line) <= WIDTH or " " not in line[13:] for line in text.splitlines())
    assert text == story(_end(guide, "envoyfilter-rejected"))
