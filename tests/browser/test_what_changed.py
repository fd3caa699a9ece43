"""Somebody compares two moments in JupyterLab; what takes its time goes on beside the page."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect

from tests.browser.lab import PATIENCE_MS, Lab, browser, run_all, running

CHROMIUM = shutil.which("chromium")

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with running(tmp_path_factory.mktemp("lab")) as server:
        yield server


@pytest.fixture
def page(lab: Lab) -> Iterator[Page]:
    assert CHROMIUM is not None
    with browser(CHROMIUM) as opened:
        opened.goto(lab.url("60_what_changed.ipynb"))
        run_all(opened)
        yield opened


def test_another_moment_is_compared_and_one_change_shows_both_sides(page: Page) -> None:
    card = page.get_by_role("region", name="What changed")
    expect(card).to_contain_text("2 changes", timeout=PATIENCE_MS)
    view = page.locator(".mnb-view").filter(has=page.get_by_label("Compare with"))
    view.get_by_label("Compare with").select_option(
        label="The ingress gateway answers 404 to everybody. (gateway-hosts-disjoint)"
    )
    expect(card).to_contain_text("Gateway bookinfo/bookinfo-gateway", timeout=PATIENCE_MS)
    expect(card).to_contain_text("new problem")
    expect(view).to_contain_text("spec.servers[0].hosts[0]")
    expect(view.get_by_role("button", name="Stop asking")).to_be_hidden()
    view.get_by_label("or with a file").fill("no/such/recording.zip")
    view.get_by_label("or with a file").press("Enter")
    expect(view.get_by_role("alert")).to_contain_text("no/such/recording.zip", timeout=PATIENCE_MS)
