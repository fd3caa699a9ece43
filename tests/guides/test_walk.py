"""A walk: where one reader stands in a guide, as a value."""

from __future__ import annotations

import pytest

from meshnb.errors import CatalogueError, UsageError
from meshnb.guides import GUIDES, Case, Chosen, Guide, Page, Walk
from meshnb.guides.base import step
from meshnb.guides.pictures import State
from tests.cases import case_of, part_of


@pytest.fixture
def triage() -> Walk:
    """Return a reader at the first step of the triage of a mesh with a broken route."""
    return Walk.start(GUIDES["triage"], case_of("subset-missing"))


def _titles(walk: Walk) -> list[str]:
    return [stop.step.title for stop in walk.trail]


def test_every_move_returns_a_new_walk_and_leaves_the_old_one(triage: Walk) -> None:
    moved = triage.next()
    assert len(moved.trail) == 2
    assert len(triage.trail) == 1


def test_the_obvious_symptom_is_chosen_already(triage: Walk) -> None:
    assert triage.picked == "unavailable"


def test_next_goes_the_obvious_way_and_keeps_what_was_found(triage: Walk) -> None:
    moved = triage.next()
    assert moved.here.step.name == "begins"
    assert moved.trail[0].verdict == triage.page.verdict
    assert moved.trail[0].state is State.BROKEN


def test_choosing_what_does_not_exist_stays_put_and_offers_the_nearest(triage: Walk) -> None:
    stayed = triage.choose("conection")
    assert stayed.trail == triage.trail
    assert stayed.refused == ("Nothing here is called 'conection'. Did you mean connection?",)


def test_a_refusal_is_forgotten_with_the_next_move(triage: Walk) -> None:
    assert triage.choose("conection").next().refused == ()


def test_back_from_the_first_step_stays_put_and_says_so(triage: Walk) -> None:
    stayed = triage.back()
    assert stayed.trail == triage.trail
    assert "first step" in stayed.refused[0]


def test_next_at_the_end_stays_put_and_says_so() -> None:
    end = Walk.start(GUIDES["control_plane_config"], case_of("subset-missing")).finish()
    stayed = end.next()
    assert stayed.trail == end.trail
    assert "last step" in stayed.refused[0]


def test_back_is_free_and_what_was_picked_stays_picked(triage: Walk) -> None:
    back = triage.choose("slow").next().back()
    assert back.here.step.name == "see"
    assert back.picked == "slow"


def test_back_leads_to_any_place_of_the_trail(triage: Walk) -> None:
    end = triage.finish()
    assert _titles(end.back(to=1)) == _titles(end)[:2]
    assert end.back(to=99).trail == end.trail


def test_a_fork_that_is_overruled_is_remembered_in_words(triage: Walk) -> None:
    at_istiod = triage.next().next()
    overruled = at_istiod.choose("cause").next()
    assert _titles(overruled) == [
        "What you see",
        "Where it begins",
        "The control plane",
        "Cause and remedy",
    ]
    assert overruled.trail[2].decided == "overruled: That is enough: to the cause"


def test_a_fork_can_lead_into_another_guide(triage: Walk) -> None:
    inside = triage.finish().next()
    assert inside.here.guide is GUIDES["control_plane_config"]
    assert inside.here.step.name == "fails"
    assert len(inside.trail) == len(triage.finish().trail) + 1


def test_running_all_is_the_same_as_clicking_the_obvious_way(triage: Walk) -> None:
    clicked = triage
    while not clicked.ended:
        clicked = clicked.next()
    assert clicked.trail == triage.finish().trail
    assert clicked.page.verdict == triage.finish().page.verdict


def test_a_walk_without_any_evidence_is_blocked_and_says_by_what() -> None:
    blind = Walk.start(GUIDES["triage"], part_of("subset-missing", lambda _: False))
    assert blind.blocked == (
        "Neither pods nor logs nor objects are in this recording: record the mesh again.",
    )
    stayed = blind.next()
    assert stayed.trail == blind.trail
    assert stayed.refused == blind.blocked
    assert blind.finish().trail == blind.trail


def test_a_question_to_the_reader_waits_with_its_answer() -> None:
    asked = Walk.start(GUIDES["data_plane_config"], case_of("healthy"))
    assert asked.picked == ""
    assert "15012" not in asked.page.verdict + asked.page.reading
    assert asked.blocked == ()


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ("15012", "That is it: 15012 is for xDS and certificate signing for proxies."),
        ("15014", "Not 15014: 15014 is for metrics, version and debug pages. 15012 is for xDS"),
    ],
)
def test_an_answer_of_the_reader_is_judged_with_proof(answer: str, told: str) -> None:
    asked = Walk.start(GUIDES["data_plane_config"], case_of("healthy")).choose(answer)
    assert asked.page.reading.startswith(told)
    assert asked.page.verdict == "Proxies use port 15012 for configuration."
    proof = asked.page.tables[0].rows
    assert proof.to_dict("list") == {
        "discovery_address": ["istiod.istio-system.svc:15012"],
        "proxies": [7],
    }


def test_running_all_tells_the_answers_of_questions_to_the_reader() -> None:
    end = Walk.start(GUIDES["data_plane_config"], case_of("healthy")).finish()
    assert end.trail[0].verdict == "Proxies use port 15012 for configuration."


def test_a_step_without_question_or_reason_cannot_be_declared() -> None:
    def silent(case: Case, chosen: Chosen) -> Page:
        """Say whether it is well."""
        return Page("It is.")

    with pytest.raises(CatalogueError, match="silent lacks its question, or the reason"):
        step("Silent", asked=("pods",))(silent)


def test_a_step_that_asks_an_unknown_table_cannot_be_declared() -> None:
    def curious(case: Case, chosen: Chosen) -> Page:
        """Say whether it is well.

        One wants to know.
        """
        return Page("It is.")

    with pytest.raises(CatalogueError, match="Did you mean pods"):
        step("Curious", asked=("podz",))(curious)


def test_a_guide_has_no_two_steps_of_one_name() -> None:
    first = GUIDES["triage"].steps[0]
    with pytest.raises(CatalogueError, match="two of one name"):
        Guide("twice", "Twice", "The same twice.", (first, first))


def test_a_step_that_does_not_exist_is_answered_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="Did you mean begins"):
        GUIDES["triage"].step("begin")
