"""The chooser "What do you see?": it opens the guide for that, on the mesh that is chosen."""

from __future__ import annotations

import pytest

from meshnb.guides.focus import SIGHTS
from meshnb.views import SightsView, SourceChooser
from tests.cases import case_of
from tests.widgets import control


def test_what_the_evidence_shows_is_chosen_already() -> None:
    view = SightsView(case_of("authz-principal-typo"))
    assert control(view, "What do you see?").value == "forbidden"
    assert view.guide.walk is not None
    assert view.guide.walk.here.guide.name == "forbidden"


def test_in_a_healthy_mesh_it_is_the_check_of_the_mesh() -> None:
    view = SightsView(case_of("healthy"))
    assert control(view, "What do you see?").value == "check_mesh"
    assert "weak spots" in view.verdicts()


@pytest.mark.parametrize("sight", list(SIGHTS))
def test_each_thing_that_can_be_seen_opens_its_guide(sight: str) -> None:
    view = SightsView(case_of("subset-missing")).see(sight)
    assert view.guide.walk is not None
    assert view.guide.walk.here.guide.name == sight
    assert view.html() == view.guide.html()
    assert view.text() == view.guide.text()


def test_the_guide_of_another_sight_says_in_its_trail_where_the_right_one_begins() -> None:
    view = SightsView(case_of("subset-missing"), "not_found")
    lines = view.verdicts().splitlines()
    assert lines[0] == "1. Is it seen: ✓ That is not seen here: Requests get 404."
    assert lines[1].startswith("2. 503: Is it seen: ✗ 503 NC from reviews")
    assert "2. 503: Is it seen" in view.html()


def test_it_follows_the_chooser_of_the_mesh() -> None:
    mesh = SourceChooser("recorded:subset-missing")
    view = SightsView(mesh)
    assert control(view, "What do you see?").value == "unavailable"
    mesh.choose("recorded:not-ready-endpoint")
    assert control(view, "What do you see?").value == "unavailable"
    mesh.choose("recorded:envoyfilter-rejected")
    assert control(view, "What do you see?").value == "change"
    mesh.choose("no/such/file.zip")
    assert view.guide.walk is None
    assert "choose a mesh" in view.text()


def test_what_was_asked_for_stays_when_another_mesh_is_chosen() -> None:
    mesh = SourceChooser("recorded:subset-missing")
    view = SightsView(mesh, "not_found")
    mesh.choose("recorded:healthy")
    assert control(view, "What do you see?").value == "not_found"
