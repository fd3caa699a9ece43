"""Somebody opens the notebook of symptoms in JupyterLab, in both themes, and walks a guide."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect

from meshnb.guides.focus import SIGHTS
from tests.browser.lab import PATIENCE_MS, browser, run_all, running, wait_for_kernel

CHROMIUM = shutil.which("chromium")
#: Where pictures of each step are put, when somebody wants to look at them.
SHOTS = os.environ.get("MESHNB_SHOTS")
#: The other browser tests run in the light theme.
THEMES = ["JupyterLab Light", "JupyterLab Dark"] if SHOTS else ["JupyterLab Dark"]

#: Without pictures some are enough: the one for what is seen here, one that is led elsewhere, and
#: the check of the mesh.
_WALKED = ("forbidden", "not_found", "check_mesh")

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine")


@pytest.fixture(scope="module", params=THEMES)
def page(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Page]:
    assert CHROMIUM is not None
    theme = str(request.param)
    with (
        running(tmp_path_factory.mktemp("lab"), theme=theme) as lab,
        browser(CHROMIUM, height=1600) as opened,
    ):
        opened.goto(lab.url("40_symptoms.ipynb"))
        run_all(opened)
        yield opened


def _guide(page: Page) -> Locator:
    chooser = page.get_by_label("What do you see?").first
    return page.locator(".mnb-view").filter(has=chooser).locator(".mnb-view").first


def _shoot(page: Page, part: Locator, name: str) -> None:
    if SHOTS:
        theme = page.evaluate("document.body.dataset.jpThemeName").split()[-1].lower()
        page.wait_for_timeout(400)
        part.screenshot(path=Path(SHOTS) / f"{name}-{theme}.png")


def _cut_off(guide: Locator) -> list[str]:
    """Return what is wider than the card that it stands in, without a bar to scroll it."""
    return list(
        guide.evaluate(
            """root => [...root.querySelectorAll('.mnb-card *, .mnb-box *')]
            .filter(one => one.scrollWidth > one.clientWidth + 2
              && getComputedStyle(one).overflowX === 'hidden' && one.clientWidth > 40)
            .map(one => one.className + ': ' + (one.innerText || '').slice(0, 60))"""
        )
    )


def _turn(page: Page, guide: Locator, act: Callable[[], object]) -> None:
    """Do what leads to another card, and wait until all of it is there."""
    kicker = guide.locator(".mnb-kicker").first
    before = kicker.inner_text()
    act()
    # Its head is the first that a card says, so that the kernel is busy now, or done.
    expect(kicker).not_to_have_text(before, timeout=PATIENCE_MS)
    wait_for_kernel(page)


def test_every_guide_can_be_walked_by_its_button_in_colour(page: Page) -> None:
    choice = page.get_by_label("What do you see?").first
    guide = _guide(page)
    onward = guide.locator(".mnb-ways button.mod-primary")
    tell = guide.get_by_role("button", name="Show the answer")
    for sight, label in SIGHTS.items():
        if not SHOTS and sight not in _WALKED:
            continue
        if choice.input_value() != label:
            _turn(page, guide, partial(choice.select_option, label=label))
        for step in range(1, 16):
            _shoot(page, guide, f"{sight}-{step}")
            assert _cut_off(guide) == []
            if tell.is_visible():
                tell.click()
                expect(tell).to_be_hidden(timeout=PATIENCE_MS)
                wait_for_kernel(page)
                _shoot(page, guide, f"{sight}-{step}b")
            if not onward.is_visible():
                break
            assert guide.locator(".mnb-question").inner_text()
            _turn(page, guide, onward.click)
            if guide.locator(".mnb-first").count():
                _shoot(page, guide, f"{sight}-end")
                break
        if sight != "check_mesh":
            expect(guide.locator(".mnb-mend").first).to_contain_text("authorizationpolicy")
