"""Somebody follows a request, a change and a connection in JupyterLab, and opens the report."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect

from meshnb.views.report import write_report
from tests.browser.lab import Lab, browser, run_all, running
from tests.cases import case_of

CHROMIUM = shutil.which("chromium")
#: Where pictures of each step are put, when somebody wants to look at them.
SHOTS = os.environ.get("MESHNB_SHOTS")
#: The other browser tests run in the light theme.
THEMES = ["JupyterLab Light", "JupyterLab Dark"] if SHOTS else ["JupyterLab Dark"]
JASON = "GET /reviews/0 with header end-user: jason from client to reviews:9080"

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine")


@pytest.fixture(scope="module", params=THEMES)
def lab(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Lab, str]]:
    with running(tmp_path_factory.mktemp("lab"), theme=request.param) as server:
        yield server, request.param.split()[-1].lower()


@pytest.fixture
def page() -> Iterator[Page]:
    assert CHROMIUM is not None
    with browser(CHROMIUM) as opened:
        yield opened


def _view(page: Page, label: str) -> Locator:
    """Return the first view that has a control of this label."""
    control = page.locator(".widget-label", has_text=label)
    return page.locator(".mnb-view").filter(has=control).first


def _shoot(page: Page, name: str) -> None:
    if SHOTS:
        page.wait_for_timeout(400)
        page.screenshot(path=Path(SHOTS) / f"{name}.png")


def _cut_off(view: Locator) -> list[str]:
    """Return the words of pictures that reach out of the box that they stand in."""
    found: list[str] = view.evaluate(
        """view => [...view.querySelectorAll("svg.mnb-journey > g")].flatMap(box => {
            const rect = box.querySelector(":scope > rect");
            const right = rect ? rect.getBoundingClientRect().right : Infinity;
            return [...box.querySelectorAll("text")]
                .filter(text => text.getBoundingClientRect().right > right)
                .map(text => text.textContent);
        })"""
    )
    return found


def test_a_request_is_followed_by_choice_and_in_words(page: Page, lab: tuple[Lab, str]) -> None:
    server, theme = lab
    page.goto(server.url("50_one_request.ipynb"))
    run_all(page)
    view = _view(page, "A request of the logs")
    expect(view.locator(".mnb-first")).to_contain_text("503 NC cluster_not_found by productpage")
    expect(view.locator("svg.mnb-journey")).to_be_visible()
    view.scroll_into_view_if_needed()
    _shoot(page, f"request-{theme}")
    assert _cut_off(view) == []
    route = view.locator("ol.mnb-hops summary", has_text="route 0")
    route.focus()
    page.keyboard.press("Enter")
    expect(view.locator("pre.mnb-yaml", has_text="kind: VirtualService")).to_be_visible()
    route.scroll_into_view_if_needed()
    _shoot(page, f"request-opened-{theme}")
    view.get_by_label("or in words").fill(JASON)
    page.keyboard.press("Enter")
    expect(view.locator(".mnb-first")).to_contain_text("503 NC cluster_not_found by client")
    view.get_by_label("or in words").fill("GET / from clint to reviews:9080")
    page.keyboard.press("Enter")
    expect(view.locator("[role=alert]")).to_contain_text("Did you mean client")


def test_a_change_is_followed_rung_by_rung(page: Page, lab: tuple[Lab, str]) -> None:
    server, theme = lab
    page.goto(server.url("51_one_change.ipynb"))
    run_all(page)
    view = _view(page, "Object")
    expect(view.locator("ol.mnb-ladder > li.mnb-broken")).to_contain_text("accepted")
    view.scroll_into_view_if_needed()
    _shoot(page, f"change-{theme}")
    view.get_by_label("Object", exact=True).select_option("MeshConfig, the mesh's settings")
    expect(view.locator(".mnb-first")).to_contain_text("MeshConfig")


def test_a_connection_is_followed_from_both_ends(page: Page, lab: tuple[Lab, str]) -> None:
    server, theme = lab
    page.goto(server.url("52_one_connection.ipynb"))
    run_all(page)
    view = _view(page, "Client")
    expect(view.locator(".mnb-end.mnb-broken")).to_contain_text("at fault")
    view.scroll_into_view_if_needed()
    _shoot(page, f"connection-{theme}")
    assert _cut_off(view) == []
    view.get_by_label("Server", exact=True).select_option(label="details.bookinfo:9080 (http)")
    expect(view.locator(".mnb-first")).to_contain_text("works")
    expect(view.locator("table.mnb-line").first).to_be_visible()
    _shoot(page, f"connection-works-{theme}")


def test_the_report_fits_a_screen_and_a_sheet_and_asks_nobody(page: Page, tmp_path: Path) -> None:
    path = write_report(case_of("mtls-client-disable").diagnosis, tmp_path / "report.html")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(path.as_uri())
    page.get_by_role("link", name="Where this comes from").click()
    expect(page.get_by_role("heading", name="Where this comes from")).to_be_in_viewport()
    # A link within a page is no request of its own.
    assert {url.partition("#")[0] for url in asked} == {path.as_uri()}
    for width, media in ((1400, "screen"), (400, "screen"), (718, "print")):
        page.set_viewport_size({"width": width, "height": 1000})
        page.emulate_media(media="print" if media == "print" else "screen")
        assert page.evaluate("document.documentElement.scrollWidth") <= width, (width, media)
        _shoot(page, f"report-{width}-{media}")
