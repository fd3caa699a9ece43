"""What changed since, in a notebook: in words, side by side, and with a cluster asked again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import ipywidgets
import pytest

from meshnb.guides.base import Case
from meshnb.sources import Bundle
from meshnb.sources.serve import Served, serve
from meshnb.tables import Facts
from meshnb.views import SourceChooser, WatchingView
from tests.alteration import Altered
from tests.conftest import facts_of, unpacked
from tests.widgets import control, labels, parts, shown


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    with serve(Bundle(unpacked() / "healthy")) as running:
        monkeypatch.setenv("KUBECONFIG", str(running.kubeconfig))
        yield running


@cache
def _case(name: str) -> Case:
    return Case.of(facts_of(name))


def _between(one: str, other: str) -> WatchingView:
    return WatchingView(_case(one), str(unpacked() / other))


def test_new_problems_come_first_then_what_changed() -> None:
    view = _between("healthy", "subset-missing")
    lines = view.verdict().splitlines()
    assert lines[0] == "2 changes: all was well, and now there is a problem."
    assert lines[1].startswith("New problem: VirtualService bookinfo/reviews sends all")
    assert lines[2].startswith("VirtualService bookinfo/reviews: spec.http[0]")
    assert lines[3].startswith("routes 80 and 9080 of 6 proxies now point to subset v3")
    assert "new problem" in shown(view)
    assert 'aria-label="What changed"' in shown(view)


def test_a_problem_that_is_gone_says_so() -> None:
    view = _between("subset-missing", "healthy")
    assert "there was a problem, and now all is well" in view.verdict()
    assert "No problem any more: VirtualService bookinfo/reviews" in view.verdict()
    assert "no problem any more" in view.html()


def test_one_moment_twice_is_no_change() -> None:
    view = _between("healthy", "healthy")
    assert view.verdict() == "Nothing changed: all is well, as before."
    assert view.since is not None
    assert view.since.same


def test_a_problem_that_stays_is_said_though_nothing_changed() -> None:
    view = _between("subset-missing", "subset-missing")
    first, second = view.verdict().splitlines()
    assert first == "Nothing changed: there is a problem, as before."
    assert second.startswith("As before: VirtualService bookinfo/reviews sends all")
    assert 'class="mnb-card mnb-broken" aria-label="What changed"' in view.html()


def test_both_sides_of_one_change_stand_beside_each_other() -> None:
    view = _between("healthy", "service-selector-wrong")
    choice = control(view, "Side by side")
    (place,) = (value for label, value in choice.options if "Service bookinfo/details" in label)
    choice.value = place
    drawn = shown(view)
    assert "before (02:49:17)" in drawn
    assert "<td>details</td><td>detail</td>" in drawn


def test_the_static_form_has_the_sides_of_each_change() -> None:
    html = _between("healthy", "service-selector-wrong").html()
    assert "<details><summary>Service bookinfo/details: spec.selector.app details" in html
    assert "<td>details</td><td>detail</td>" in html


def test_another_recording_is_chosen_or_named() -> None:
    view = WatchingView(SourceChooser("recorded:healthy"))
    assert view.text() == "There is nothing to compare with yet."
    control(view, "Compare with").value = "recorded:gateway-hosts-disjoint"
    assert "Gateway bookinfo/bookinfo-gateway: spec.servers[0].hosts[0]" in view.verdict()
    control(view, "or with a file").value = str(unpacked() / "subset-missing")
    assert "subset v3" in view.verdict()


def test_it_follows_the_chooser_and_keeps_what_it_is_compared_with() -> None:
    chooser = SourceChooser("recorded:healthy")
    view = WatchingView(chooser, "recorded:subset-missing")
    assert view.since is not None
    chooser.choose("recorded:subset-missing")
    assert view.since.same
    chooser.choose("recorded:nothing")
    assert view.since is None
    assert "nothing to compare with" in shown(view)


def test_what_cannot_be_opened_is_a_card_and_no_traceback() -> None:
    view = WatchingView(_case("healthy"), "no/such/recording.zip")
    assert view.since is None
    assert 'role="alert"' in shown(view)
    assert "<strong>Next:</strong>" in view.html()
    assert view.text().startswith("✗ ")


def test_a_recording_cannot_be_asked_again() -> None:
    assert labels(_between("healthy", "subset-missing")) == []


def test_names_from_a_mesh_are_no_markup(tmp_path: Path) -> None:
    def hostile(service: dict[str, dict[str, object]]) -> None:
        service["metadata"]["labels"] = {"note": "<script>alert(1)</script>"}

    altered = Altered("healthy", tmp_path).each("services", "details", hostile)
    view = WatchingView(_case("healthy"), str(altered.folder))
    assert "<script>" not in view.html() + shown(view)
    assert "&lt;script&gt;" in view.html()


def test_every_control_has_a_label() -> None:
    told = [
        part.description
        for part in parts(_between("healthy", "subset-missing"))
        if isinstance(part, ipywidgets.Dropdown | ipywidgets.Text | ipywidgets.Button)
    ]
    assert told == ["Compare with", "or with a file", "Side by side"]


def test_a_live_cluster_is_asked_again_and_nothing_changed(served: Served) -> None:
    chooser = SourceChooser("cluster")
    assert chooser.case is not None
    view = WatchingView(chooser)
    assert labels(view) == ["Ask again"]
    control(view, "Ask again").click()
    assert view.since is not None
    assert view.since.after.facts is not chooser.facts
    assert view.verdict() == "Nothing changed: all is well, as before."


def test_a_live_cluster_is_not_compared_with_what_a_notebook_had_named(served: Served) -> None:
    """A recording of long ago, perhaps of another mesh, says nothing about what changed in it."""
    view = WatchingView(SourceChooser("cluster"), "recorded:subset-missing")
    assert view.since is None
    assert control(view, "Compare with").value is None
    assert "Ask again when something may have changed." in shown(view)


def test_a_live_cluster_says_what_its_recording_says(served: Served) -> None:
    """But for what a served recording cannot say: which certificate a port shows."""
    view = WatchingView(_case("healthy"), "cluster")
    assert view.since is not None
    assert view.since.changes == ()
    assert json.dumps(view.since.to_json())


def test_a_live_cluster_that_changed_says_what(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    view = WatchingView(SourceChooser("cluster"))
    with serve(Bundle(unpacked() / "subset-missing")) as later:
        monkeypatch.setenv("KUBECONFIG", str(later.kubeconfig))
        control(view, "Ask again").click()
    assert view.since is not None
    assert [change.subject for change in view.since.changes] == [
        "VirtualService bookinfo/reviews",
        "routes 80 and 9080 of 6 proxies",
    ]
    assert len(view.since.new_causes) == 1


def test_the_next_time_it_is_compared_with_what_was_asked_last(served: Served) -> None:
    view = WatchingView(SourceChooser("cluster"))
    control(view, "Ask again").click()
    assert view.since is not None
    first = view.since.after
    control(view, "Ask again").click()
    assert view.since.before is first


def test_facts_keep_what_was_answered() -> None:
    facts = Facts(Bundle(unpacked() / "healthy"))
    assert facts.kept.questions() == ()
    assert len(facts["services"]) > 0
    kept = facts.kept
    assert {str(question) for question in kept.questions()} == {"LIST v1/services"}
    assert Facts(kept)["services"].equals(facts["services"])
