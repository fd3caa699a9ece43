"""The view of a guide: one walk, drawn; operated as its buttons are."""

from __future__ import annotations

from typing import Any

import ipywidgets
import pytest

from meshnb.guides import GUIDES, Walk
from meshnb.guides.pictures import State
from meshnb.guides.text import verdicts
from meshnb.views import GuideView, SourceChooser
from meshnb.views.base import View, escape
from tests.cases import case_of, part_of
from tests.widgets import control, labels, parts, shown

RECORDING = {
    "triage": "subset-missing",
    "control_plane_config": "mtls-client-disable",
    "data_plane_config": "envoyfilter-rejected",
    "data_plane": "app-wrong-port",
}


def _view(guide: str, recording: str = "") -> GuideView:
    return GuideView(guide, case_of(recording or RECORDING[guide]))


def _next(view: View) -> Any:
    return control(view, "Next: ")


@pytest.mark.parametrize("guide", list(RECORDING))
def test_clicking_the_obvious_way_shows_what_run_all_prints(guide: str) -> None:
    view = _view(guide)
    assert view.walk is not None
    while not view.walk.ended:
        _next(view).click()
    clicked = [stop.verdict for stop in view.walk.trail[:-1]]
    obvious = view.obvious
    assert obvious is not None
    if guide == "triage":
        assert clicked == [stop.verdict for stop in obvious.trail[:-1]]
    assert view.walk.page.verdict == obvious.page.verdict
    assert view.walk.page.verdict in view.verdicts()


def test_behind_the_cause_nothing_is_the_obvious_way_on() -> None:
    view = _view("triage")
    assert view.walk is not None
    view.stand(view.walk.finish())
    assert view.walk.page.causes
    assert labels(view)[-2:] == ["Look closer: invalid control plane configuration", "Back"]
    assert not control(view, "Look closer").button_style


@pytest.mark.parametrize("guide", list(RECORDING))
def test_the_static_form_holds_the_verdict_as_html_and_as_text(guide: str) -> None:
    view = _view(guide)
    bundle = view._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    end = Walk.start(GUIDES[guide], case_of(RECORDING[guide])).finish()
    (cause,) = end.page.causes
    for form in ("text/html", "text/plain"):
        told = " ".join(bundle[form].split())
        assert (escape(end.page.verdict) if form == "text/html" else end.page.verdict) in told
        assert "kubectl" in told
    assert " ".join(escape(cause.finding.message).split()) in bundle["text/html"]
    for stop in end.trail:
        assert stop.step.question in bundle["text/plain"].replace("\n             ", " ")


def test_the_printed_verdicts_are_those_of_the_guide() -> None:
    end = Walk.start(GUIDES["triage"], case_of("subset-missing")).finish()
    assert _view("triage").verdicts() == verdicts(end)


def test_an_overruled_fork_and_the_way_back_are_buttons() -> None:
    view = _view("triage")
    _next(view).click()
    _next(view).click()
    control(view, "That is enough: to the cause").click()
    assert view.walk is not None
    assert view.walk.here.step.name == "cause"
    control(view, "Back").click()
    assert view.walk.here.step.name == "control_plane"
    control(view, "✗ 1 What you see").click()
    assert view.walk.here.step.name == "see"


def test_the_way_back_is_closed_at_the_first_step_only() -> None:
    view = _view("triage")
    assert control(view, "Back").disabled
    _next(view).click()
    assert not control(view, "Back").disabled


def test_picking_an_option_makes_the_page_again() -> None:
    view = _view("triage")
    (choice,) = [part for part in parts(view) if isinstance(part, ipywidgets.Dropdown)]
    assert choice.value == "unavailable"
    choice.value = "slow"
    assert "No symptom in the evidence shows that: Requests are slow, or get 504." in shown(view)


def test_the_reader_is_asked_before_the_answer_is_told() -> None:
    view = _view("data_plane_config")
    (radio,) = [part for part in parts(view) if isinstance(part, ipywidgets.RadioButtons)]
    assert radio.value is None
    assert "Proxies use port" not in shown(view)
    radio.value = "15014"
    assert "Not 15014: 15014 is for metrics, version and debug pages. 15012 is for" in shown(view)
    assert "Show the answer" not in labels(view)


def test_the_answer_can_be_shown_without_guessing() -> None:
    view = _view("data_plane_config")
    control(view, "Show the answer").click()
    assert "Proxies use port 15012 for configuration." in shown(view)
    assert view.walk is not None
    assert view.walk.picked == "15012"


def test_a_question_to_the_reader_can_be_passed_over() -> None:
    view = _view("data_plane_config")
    _next(view).click()
    assert view.walk is not None
    assert view.walk.here.step.name == "control_plane"


def test_a_blocked_walk_shows_its_reason_and_no_way_on() -> None:
    view = GuideView("triage", part_of("subset-missing", lambda _: False))
    assert labels(view) == ["1 What you see", "Back"]
    assert "Neither pods nor logs nor objects are in this recording" in shown(view)
    assert "Neither pods nor logs" in view.text()


@pytest.mark.parametrize("guide", list(RECORDING))
def test_every_control_has_a_label_and_can_be_reached_by_keyboard(guide: str) -> None:
    view = _view(guide)
    assert view.walk is not None
    while True:
        for part in parts(view):
            if isinstance(part, ipywidgets.Button | ipywidgets.RadioButtons | ipywidgets.Dropdown):
                assert part.description.strip(), part
                assert part.tabbable is not False
        if view.walk.ended:
            break
        _next(view).click()


@pytest.mark.parametrize("guide", list(RECORDING))
def test_no_state_is_told_by_colour_alone(guide: str) -> None:
    view = _view(guide)
    html = view.html()
    for state in State:
        pill = f'<span class="mnb-state mnb-{state.name.lower()}">'
        for after in html.split(pill)[1:]:
            assert after.startswith('<span class="mnb-sign" aria-hidden="true">')
            assert after.partition("</span>")[2].strip()[:1].isalnum()


@pytest.mark.parametrize("guide", list(RECORDING))
def test_every_region_that_scrolls_is_named_and_in_the_order_of_focus(guide: str) -> None:
    for after in _view(guide).html().split('class="mnb-scroll"')[1:]:
        attributes = after.partition(">")[0]
        assert 'tabindex="0"' in attributes
        assert 'role="group"' in attributes
        assert 'aria-label=""' not in attributes
        assert "aria-label=" in attributes


def test_a_guide_follows_what_is_chosen() -> None:
    chooser = SourceChooser("recorded:subset-missing")
    view = GuideView("triage", chooser)
    _next(view).click()
    chooser.choose("recorded:healthy")
    assert view.walk is not None
    assert len(view.walk.trail) == 1
    assert "Nothing is seen to fail." in shown(view)


def test_a_guide_without_a_mesh_says_so_and_offers_nothing() -> None:
    chooser = SourceChooser("recorded:no-such-mesh")
    view = GuideView("triage", chooser)
    assert view.walk is None
    assert labels(view) == []
    assert "Nothing is open yet" in shown(view)
    assert "Nothing is open yet" in view.text()
    assert "Nothing is open yet" in view.html()
    assert "Nothing is open yet" in view.verdicts()
