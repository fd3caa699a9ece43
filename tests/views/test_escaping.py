"""Names in a cluster are written by strangers: a browser shows them and does no more."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

from meshnb.guides import GUIDES, Case
from meshnb.guides.pictures import (
    Cell,
    Chain,
    Edge,
    Journey,
    Link,
    MeshGraph,
    Node,
    Picture,
    Port,
    PortsMap,
    State,
    Stay,
    SyncMap,
    certificates,
)
from meshnb.sources import Bundle
from meshnb.tables import Facts
from meshnb.views import (
    ChangeView,
    ConnectionView,
    DiagnosisView,
    GuideView,
    RequestView,
    SourceChooser,
    TablesView,
    TableView,
)
from meshnb.views.pictures import picture
from meshnb.views.report import report
from tests.conftest import unpacked
from tests.widgets import control, shown

#: It is in the place of a name in a whole recording, so it holds nothing that JSON would mind.
NAME = "<script>alert(1)</script>"
#: It would break out of an attribute.
WORSE = f"\"' onmouseover='alert(1)' {NAME}<img src=x onerror=alert(1)>`{NAME}`"
_HARMLESS = re.findall(
    r"\w+",
    "a article body br caption code dd details div dl dt em figcaption figure g h1 h2 h3 h4 head"
    " header html li line main meta nav ol p path pre rect section span strong style summary svg"
    " table tbody td text th thead title tr ul wbr",
)


class _Reader(HTMLParser):
    """Collects what a browser would obey: elements, and attributes that run something."""

    def __init__(self) -> None:
        super().__init__()
        self.obeyed: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in _HARMLESS:
            self.obeyed.append(f"<{tag}>")
        for name, value in attrs:
            leads_out = name in ("href", "src") and not (value or "").startswith("#")
            if name.startswith("on") or leads_out or "javascript:" in (value or ""):
                self.obeyed.append(f"{name}={value}")

    handle_startendtag = handle_starttag


def _obeyed(html: str) -> list[str]:
    reader = _Reader()
    reader.feed(html)
    reader.close()
    return reader.obeyed


@pytest.fixture(scope="module", params=["subset-missing", "envoyfilter-rejected", "app-crash-loop"])
def hostile(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Return the case of a recording in which strangers have chosen the names."""
    source = unpacked() / request.param
    target = tmp_path_factory.mktemp("hostile")
    for file in source.rglob("*"):
        if not file.is_file():
            continue
        path = target / file.relative_to(source)
        path.parent.mkdir(parents=True, exist_ok=True)
        content = file.read_text(errors="surrogateescape")
        if file.name == "index.jsonl":
            lines = [json.loads(line) for line in content.splitlines()]
            for line in lines:
                line["request"] = json.loads(_renamed(json.dumps(line["request"])))
            content = "\n".join(map(json.dumps, lines))
        else:
            content = _renamed(content)
        path.write_text(content, errors="surrogateescape")
    return Case.of(Facts(Bundle(target, label=f"recording {WORSE}")))


def _renamed(text: str) -> str:
    for name in ("reviews", "ratings", "details", "broken-lua", "bookinfo"):
        text = text.replace(name, f"{NAME}{name}")
    return text


def test_the_hostile_names_are_really_there(hostile: Case) -> None:
    assert hostile.facts["pods"]["pod"].str.contains(NAME, regex=False).any()
    assert hostile.diagnosis.problems
    assert NAME in str(hostile.diagnosis.problems[0].subject)


@pytest.mark.parametrize("guide", list(GUIDES))
def test_no_guide_lets_a_name_become_markup(hostile: Case, guide: str) -> None:
    view = GuideView(guide, hostile)
    html = view._repr_mimebundle_()["text/html"]
    assert "&lt;script&gt;" in html
    assert _obeyed(html) == []
    assert "&lt;script&gt;" in shown(view)
    assert _obeyed(shown(view)) == []


def test_no_diagnosis_and_no_report_lets_a_name_become_markup(hostile: Case) -> None:
    html = DiagnosisView(hostile).html()
    assert "&lt;script&gt;" in html
    assert _obeyed(html) == []
    assert _obeyed(report(hostile.diagnosis)) == []


def test_no_trace_lets_a_name_become_markup(hostile: Case) -> None:
    for view in (RequestView(hostile), ChangeView(hostile), ConnectionView(hostile)):
        html = view._repr_mimebundle_()["text/html"]
        assert view.account is not None
        assert "&lt;script&gt;" in html
        assert _obeyed(html) == []
        assert _obeyed(shown(view)) == []


def test_no_trace_that_cannot_be_followed_lets_words_become_markup(hostile: Case) -> None:
    for view in (
        RequestView(hostile, WORSE),
        ChangeView(hostile, f"VirtualService/{WORSE}/x"),
        ConnectionView(hostile, WORSE, WORSE),
    ):
        assert view.account is None
        assert "&lt;script&gt;" in view.html()
        assert _obeyed(view.html()) == []


def test_a_report_needs_no_network_and_no_script(hostile: Case) -> None:
    page = report(hostile.diagnosis)
    assert "&lt;script&gt;" in page
    assert not re.search(r"url\(|@import|<link|<script|<img|<iframe", page)


def test_no_table_lets_a_name_become_markup(hostile: Case) -> None:
    for name in ("pods", "access_log", "istio_config", "routes", "events"):
        html = TablesView(hostile.facts, name).html()
        assert _obeyed(html) == []
    frame = pd.DataFrame({WORSE: [WORSE, {"a": WORSE}, (WORSE,)]})
    html = TableView(frame, WORSE).html()
    assert html.count("&lt;script&gt;") >= 6
    assert _obeyed(html) == []


@pytest.mark.parametrize(
    "drawn",
    [
        MeshGraph(
            WORSE,
            (Node(WORSE, WORSE, "service", WORSE, State.BROKEN, WORSE), Node("b", "", "outside")),
            (Edge(0, 1, 2, 1, State.BROKEN, WORSE),),
            2,
        ),
        PortsMap(WORSE, (Port(WORSE, 1, WORSE, WORSE, WORSE, State.ODD, WORSE),)),
        SyncMap(WORSE, (WORSE,), ((WORSE, (Cell(State.FINE, WORSE, WORSE),)),), 1),
        Chain(WORSE, (Link(WORSE, WORSE, State.BROKEN),)),
        Chain(WORSE, (Link(WORSE, WORSE, State.BROKEN),), ladder=True),
        Journey(
            WORSE,
            (
                Stay(WORSE, (Link(WORSE, WORSE, State.BROKEN),), when=WORSE),
                Stay(WORSE, (), after=0),
            ),
        ),
    ],
    ids=lambda drawn: type(drawn).__name__,
)
def test_no_picture_lets_a_name_become_markup(drawn: Picture) -> None:
    html = picture(drawn)
    assert "&lt;script&gt;" in html
    assert _obeyed(html) == []


def test_the_line_of_certificates_lets_no_name_become_markup(hostile: Case) -> None:
    line = certificates(hostile.facts)
    assert line is not None
    assert any(NAME in span.name for span in line.spans)
    assert _obeyed(picture(line)) == []


def test_no_error_lets_a_name_become_markup() -> None:
    chooser = SourceChooser(f"no/such/{WORSE}")
    assert chooser.case is None
    html = chooser.html()
    assert "&lt;script&gt;" in html
    assert _obeyed(html) == []


def test_what_the_test_looks_for_would_be_found() -> None:
    assert _obeyed(f"<p>{NAME}</p>") == ["<script>"]
    assert _obeyed("<p onclick='x'>") == ["onclick=x"]
    assert _obeyed("<a href='//elsewhere'>") == ["href=//elsewhere"]


def test_the_name_of_a_file_that_is_written_is_made_of_harmless_characters(
    hostile: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    view = DiagnosisView(hostile)
    control(view, "Write the report").click()
    (written,) = tmp_path.iterdir()
    assert written.name.startswith("meshnb-report-recording-")
    assert not set(written.name) & set("<>\"'`/ ()=")
