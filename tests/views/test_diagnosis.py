"""The diagnosis as a card, as text, and as a report for the ticket."""

from __future__ import annotations

from pathlib import Path

import pytest

from meshnb.sources.base import HttpQuestion
from meshnb.views import DiagnosisView
from meshnb.views.base import escape
from meshnb.views.report import report
from tests.cases import case_of, part_of
from tests.conftest import recording_names
from tests.widgets import control, shown


def test_the_card_begins_with_the_cause_and_what_mends_it() -> None:
    html = DiagnosisView(case_of("subset-missing")).html()
    order = [
        html.index(text)
        for text in (
            '<div class="mnb-first">VirtualService bookinfo/reviews sends all its',
            "42 failures since 02:49:57 UTC: 503 NC from reviews.bookinfo:9080",
            "<code>kubectl -n bookinfo edit virtualservice reviews</code>",
            "A subset is a cluster of its own.",
            "access_log, from LOG bookinfo/client istio-proxy and 1 more (42 rows)",
            "A, invalid control plane configuration",
            "checks passed",
        )
    ]
    assert order == sorted(order)


def test_each_proof_opens_and_says_where_it_came_from() -> None:
    html = DiagnosisView(case_of("subset-missing")).html()
    assert "routes, from GET bookinfo/client:15000/config_dump?include_eds and 5 more" in html
    assert "istio_config, from LIST networking.istio.io/v1/virtualservices and 1 more" in html


@pytest.mark.parametrize("name", recording_names())
def test_card_and_text_hold_the_first_cause_or_say_that_there_is_none(name: str) -> None:
    case = case_of(name)
    view = DiagnosisView(case)
    if case.diagnosis.problems:
        message = case.diagnosis.problems[0].finding.message
        assert " ".join(escape(message).split()) in " ".join(view.html().split()).replace(
            "<code>", "`"
        ).replace("</code>", "`")
        assert message in view.text()
        assert message in view.verdict()
    else:
        assert "Nothing is wrong that the checks know of" in view.html()
        assert "Nothing is wrong that the checks know of" in view.text()


def test_what_could_not_be_decided_is_said_with_the_reason() -> None:
    case = part_of(
        "healthy", lambda q: not (isinstance(q, HttpQuestion) and q.path == "/debug/syncz")
    )
    html = DiagnosisView(case).html()
    assert "could not be decided, because GET 15014/debug/syncz: was never asked" in html
    assert "The cause is not known" in html


def test_a_symptom_that_nothing_explains_is_not_hidden() -> None:
    html = DiagnosisView(case_of("app-slow")).html()
    assert "not explained" in html


def test_the_report_is_one_page_with_everything_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    view = DiagnosisView(case_of("subset-missing"))
    control(view, "Write the report").click()
    written = tmp_path / "meshnb-report-subset-missing.html"
    assert str(written.name) in shown(view)
    page = written.read_text()
    assert page == report(case_of("subset-missing").diagnosis)
    assert page.startswith("<!DOCTYPE html>")
    assert "<details>" not in page
    assert "http" not in page.partition("</style>")[0]


def test_a_report_that_cannot_be_written_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "meshnb-report-subset-missing.html").mkdir()
    view = DiagnosisView(case_of("subset-missing"))
    control(view, "Write the report").click()
    assert "The report could not be written" in shown(view)
