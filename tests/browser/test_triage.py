"""Somebody opens the first notebook in JupyterLab and walks through the triage."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.browser.lab import PATIENCE_MS, Lab, browser, run_all, running

CHROMIUM = shutil.which("chromium")
#: Where pictures of each step are put, when somebody wants to look at them.
SHOTS = os.environ.get("MESHNB_SHOTS")
CAUSE = "VirtualService bookinfo/reviews sends all its matching requests to subset v3"
REMEDY = "kubectl -n bookinfo edit virtualservice reviews"

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with running(tmp_path_factory.mktemp("lab")) as server:
        yield server


@pytest.fixture
def page(lab: Lab) -> Iterator[Page]:
    assert CHROMIUM is not None
    with browser(CHROMIUM) as opened:
        opened.goto(lab.url("00_start_here.ipynb"))
        run_all(opened)
        yield opened


def _guide(page: Page) -> Locator:
    """Return the part of the page that shows the triage."""
    return page.locator(".mnb-view").filter(has=page.locator(".mnb-ways")).first


def _shoot(page: Page, name: str) -> None:
    if SHOTS:
        page.wait_for_timeout(400)
        page.screenshot(path=Path(SHOTS) / f"{name}.png")


def test_a_reader_who_clicks_the_obvious_way_ends_at_the_cause(page: Page) -> None:
    guide = _guide(page)
    onward = guide.locator(".mnb-ways button.mod-primary")
    for step, question in enumerate(
        (
            "What do you see?",
            "At which hop does the failure begin?",
            "Is every istiod there",
            "Does every proxy hold what istiod sent",
            "Do the objects say what was meant?",
        ),
        start=1,
    ):
        expect(guide.locator(".mnb-question")).to_contain_text(question, timeout=PATIENCE_MS)
        _shoot(page, f"triage-{step}")
        onward.click()
    expect(guide.locator(".mnb-question")).to_contain_text("What is the cause")
    expect(guide.locator(".mnb-first")).to_contain_text(CAUSE)
    expect(guide.locator(".mnb-mend")).to_contain_text(REMEDY)
    expect(guide.locator(".mnb-verdict")).to_contain_text(
        "Class A, invalid control plane configuration"
    )
    _shoot(page, "triage-6")


def test_what_was_clicked_is_what_run_all_had_printed(page: Page) -> None:
    printed = page.locator(".jp-OutputArea-output pre").filter(has_text="1. What you see")
    guide = _guide(page)
    verdicts = []
    for _ in range(5):
        verdicts.append(guide.locator(".mnb-verdict").text_content() or "")
        before = guide.locator(".mnb-question").inner_text()
        guide.locator(".mnb-ways button.mod-primary").click()
        expect(guide.locator(".mnb-question")).not_to_have_text(before)
    verdicts.append(guide.locator(".mnb-verdict").text_content() or "")
    text = printed.text_content() or ""
    for verdict in verdicts:
        # The card has the state as a sign and a word, the line has the sign.
        assert verdict.split(maxsplit=2)[2] in text


def test_a_fork_can_be_overruled_and_back_is_free(page: Page) -> None:
    guide = _guide(page)
    question = guide.locator(".mnb-question")
    guide.locator(".mnb-ways button.mod-primary").click()
    expect(question).to_contain_text("At which hop")
    guide.locator(".mnb-ways button.mod-primary").click()
    expect(question).to_contain_text("Is every istiod there")
    guide.get_by_role("button", name="That is enough: to the cause").click()
    expect(guide.locator(".mnb-first")).to_contain_text(CAUSE)
    guide.get_by_role("button", name="Back", exact=True).click()
    expect(question).to_contain_text("Is every istiod there")
    guide.get_by_role("button", name="✗ 1 What you see").click()
    expect(question).to_contain_text("What do you see?")


def test_choosing_another_recording_changes_the_diagnosis_and_the_triage(page: Page) -> None:
    chooser = page.locator(".mnb-view").filter(has=page.get_by_label("or a file"))
    chooser.get_by_label("Recorded mesh").select_option(
        label="A mesh in which nothing is wrong, under light load. (healthy)"
    )
    card = page.get_by_role("region", name="Diagnosis of recorded:healthy")
    expect(card).to_contain_text("Nothing is wrong that the checks know of")
    expect(_guide(page).locator(".mnb-verdict")).to_contain_text("Nothing is seen to fail")
    chooser.get_by_label("or a file").fill("no/such/recording.zip")
    chooser.get_by_label("or a file").press("Enter")
    expect(chooser.get_by_role("alert")).to_contain_text("no/such/recording.zip")
    expect(_guide(page).locator(".mnb-ways button.mod-primary")).to_be_hidden()


def test_the_keyboard_alone_leads_to_the_cause(page: Page) -> None:
    """Tab reaches every control in the order of reading, and Enter does what a click does."""
    guide = _guide(page)
    onward = guide.locator(".mnb-ways button.mod-primary")
    question = guide.locator(".mnb-question")
    guide.get_by_label("This comes closest:").focus()
    for _ in range(5):
        _tab_to(page, onward)
        before = question.inner_text()
        page.keyboard.press("Enter")
        expect(question).not_to_have_text(before)
        # A step begins at its place in the trail: that is where one reads on.
        expect(page.locator(".mnb-here:focus")).to_have_count(1)
    _shoot(page, "keyboard")
    expect(guide.locator(".mnb-first")).to_contain_text(CAUSE)


def _tab_to(page: Page, wanted: Locator) -> None:
    for _ in range(40):
        if wanted.evaluate("element => element === document.activeElement"):
            return
        page.keyboard.press("Tab")
    raise AssertionError(
        f"Tab does not reach it; it stands at {page.locator(':focus').inner_text()}"
    )
