"""The notebooks: short cells, small files, only text that can be compared, and nothing left out.

`make test` runs them cell by cell with nbval; see the Makefile. When a guide has learned something
new, `python -m tests.notebooks` runs them again and keeps what they print.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest
from nbconvert import HTMLExporter

from meshnb.checks import CHECKS
from meshnb.diagnosis import diagnose
from meshnb.guides import GUIDES, Case
from meshnb.sources import recordings
from meshnb.tables import TABLES
from meshnb.views import (
    ChangeView,
    ConnectionView,
    DiagnosisView,
    GuideView,
    RequestView,
    SightsView,
    SourceChooser,
    TablesView,
    WatchingView,
    checks_of,
)
from tests.conftest import facts_of
from tests.notebooks import CHECKED, UNCHECKED, executed, read, written
from tests.widgets import control

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
_LINK = re.compile(r"\]\(([^)#]+)")


def _cells(path: Path, kind: str = "code") -> list[Any]:
    return [cell for cell in read(path).cells if cell.cell_type == kind]


def _calls(name: str) -> list[tuple[Path, list[Any]]]:
    """Return each call of a name in the cells of all notebooks, with its constant arguments."""
    found = []
    for path in NOTEBOOKS:
        for cell in _cells(path):
            for node in ast.walk(ast.parse(cell.source)):
                if isinstance(node, ast.Call) and ast.unparse(node.func) == name:
                    values = [one.value for one in node.args if isinstance(one, ast.Constant)]
                    found.append((path, values))
    return found


def test_there_is_a_notebook_to_begin_with_per_class_trace_change_and_to_explore() -> None:
    assert [path.name for path in NOTEBOOKS] == [
        "00_start_here.ipynb",
        "10_control_plane_config.ipynb",
        "20_data_plane_config.ipynb",
        "30_data_plane.ipynb",
        "40_symptoms.ipynb",
        "50_one_request.ipynb",
        "51_one_change.ipynb",
        "52_one_connection.ipynb",
        "60_what_changed.ipynb",
        "90_explore.ipynb",
    ]


def test_make_test_runs_every_notebook() -> None:
    makefile = (ROOT / "Makefile").read_text()
    (command,) = [line for line in makefile.splitlines() if "--nbval" in line]
    assert command.split()[-1] == "notebooks"
    assert "--nbval-current-env" in command


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_cell_has_one_to_three_lines_and_no_logic(path: Path) -> None:
    for cell in _cells(path):
        lines = [line for line in cell.source.splitlines() if line]
        assert 1 <= len(lines) <= 3, cell.source
        for node in ast.walk(ast.parse(cell.source)):
            assert not isinstance(
                node, ast.If | ast.For | ast.While | ast.Try | ast.FunctionDef | ast.Lambda
            ), cell.source


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_small_and_of_no_machine_in_particular(path: Path) -> None:
    assert path.stat().st_size <= 30_000
    assert path.read_text() == written(read(path))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_only_plain_text_is_kept_of_what_cells_print(path: Path) -> None:
    for number, cell in enumerate(_cells(path), start=1):
        (tag,) = cell.metadata.tags
        assert cell.execution_count == number
        assert tag in (CHECKED, UNCHECKED)
        if tag == UNCHECKED:
            assert cell.outputs == []
        for output in cell.outputs:
            assert output.output_type in ("stream", "execute_result")
            if output.output_type == "stream":
                assert output.name == "stdout"
            else:
                assert set(output.data) == {"text/plain"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_notebook_prints_a_verdict_that_is_compared(path: Path) -> None:
    compared = [
        cell for cell in _cells(path) if CHECKED in cell.metadata.tags and "print(" in cell.source
    ]
    assert any(cell.outputs for cell in compared)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_printed_verdicts_are_what_the_guides_say_today(path: Path) -> None:
    """When this fails although the guides are right: `python -m tests.notebooks`."""
    (source, *_) = [
        values[0]
        for name in ("SourceChooser", "open_source")
        for where, values in _calls(name)
        if where == path
    ]
    mesh = SourceChooser(source)
    printed = {
        cell.source: cell.outputs[0].text
        for cell in _cells(path)
        if cell.source.startswith("print(")
    }
    for where, (guide, *_) in _calls("GuideView"):
        if where == path:
            verdicts = next(text for code, text in printed.items() if ".verdicts()" in code)
            assert verdicts == GuideView(guide, mesh).verdicts() + "\n"
    for code, text in printed.items():
        if code == "print(diagnosis.verdict())":
            assert text == DiagnosisView(mesh).verdict() + "\n"
        if code == "print(since.verdict())":
            (other,) = [values[0] for where, values in _calls("WatchingView") if where == path]
            assert text == WatchingView(mesh, other).verdict() + "\n"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_links_are_relative_and_lead_somewhere(path: Path) -> None:
    links = [link for cell in _cells(path, "markdown") for link in _LINK.findall(cell.source)]
    assert links
    for link in links:
        assert not link.startswith(("/", "http")), link
        assert (path.parent / link).is_file(), link


def test_every_notebook_is_linked_from_the_first_one() -> None:
    first = NOTEBOOKS[0]
    links = {link for cell in _cells(first, "markdown") for link in _LINK.findall(cell.source)}
    assert links == {path.name for path in NOTEBOOKS[1:]}


def test_running_all_needs_no_click_and_no_cluster() -> None:
    shipped = {f"recorded:{one.name}" for one in recordings()}
    for name in ("SourceChooser", "open_source", "WatchingView"):
        for path, values in _calls(name):
            assert set(values) <= shipped, path


def test_every_guide_is_reached_from_a_notebook() -> None:
    """Some by their names, and those for what one sees by choosing it."""
    named = {guide for _, (guide, *_) in _calls("GuideView")}
    assert "40_symptoms" in {path.stem for path, _ in _calls("SightsView")}
    choice = control(SightsView(Case.of(facts_of("healthy"))), "What do you see?")
    assert named | {value for _, value in choice.options} == set(GUIDES)


def test_the_printed_verdicts_of_what_is_seen_are_what_the_guides_say_today() -> None:
    """When this fails although the guides are right: `python -m tests.notebooks`."""
    for path, values in _calls("SightsView"):
        (source, *_) = [values[0] for where, values in _calls("SourceChooser") if where == path]
        if not values:
            (text,) = [
                cell.outputs[0].text
                for cell in _cells(path)
                if cell.source == "print(seen.verdicts())"
            ]
            assert text == SightsView(SourceChooser(source)).verdicts() + "\n"


def test_what_is_printed_of_a_trace_is_what_the_trace_says_today() -> None:
    """When this fails although the traces are right: `python -m tests.notebooks`."""
    kinds = {"RequestView": RequestView, "ChangeView": ChangeView, "ConnectionView": ConnectionView}
    for name, view in kinds.items():
        ((path, _), *_) = _calls(name)
        (source,) = next(values for where, values in _calls("SourceChooser") if where == path)
        (printed, *_) = [
            cell.outputs[0].text for cell in _cells(path) if cell.source.startswith("print(")
        ]
        assert printed == view(SourceChooser(source)).text() + "\n"


def test_every_table_is_reached_from_a_notebook() -> None:
    """One by one in the tables to choose from, and many by the guides."""
    assert _calls("TablesView")
    choice = control(TablesView(facts_of("healthy")), "Table")
    offered = {value for _, value in choice.options}
    assert offered == set(TABLES)


def test_every_check_is_reached_from_a_notebook() -> None:
    """The notebook to explore lists the outcome of each one by its family."""
    (explore,) = [path for path in NOTEBOOKS if path.stem == "90_explore"]
    (cell,) = [cell for cell in _cells(explore) if "checks_of(" in cell.source]
    assert cell.source.startswith("every = diagnose(facts, CHECKS.values())")
    listed = checks_of(diagnose(facts_of("subset-missing"), CHECKS.values()))
    assert list(listed["code"]) == list(CHECKS)
    assert set(listed["family"]) == {check.family for check in CHECKS.values()}


def test_a_notebook_that_was_run_can_be_exported_with_its_verdicts_and_without_any_script(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As JupyterLab saves it: with outputs, without the state of widgets."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    book = executed(read(NOTEBOOKS[0]), tmp_path)
    html, _ = HTMLExporter(template_name="basic").from_notebook_node(book)  # type: ignore[no-untyped-call]
    assert "VirtualService bookinfo/reviews sends all its matching requests" in html
    assert "Class A, invalid control plane configuration" in html
    assert "✗ 503 NC 29 of 30" in html
    assert "application/vnd.jupyter.widget-view+json" not in html
