"""The chooser: what can be chosen, what was got, and what is said when nothing was."""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

import ipywidgets
import pytest

from meshnb.errors import UsageError
from meshnb.sources import Bundle, HttpQuestion, record, recordings
from meshnb.sources.serve import Fault, Refuse, Served, Slow, serve
from meshnb.sources.serve.server import CONTEXT
from meshnb.views import DiagnosisView, SourceChooser
from tests.conftest import unpacked
from tests.widgets import control, labels, parts, shown


def _zip(name: str, folder: Path) -> Path:
    path = folder / f"{name}.zip"
    record(Bundle(unpacked() / name), path)
    return path


def test_every_recording_is_offered_by_its_title() -> None:
    choice = control(SourceChooser("recorded:healthy"), "Recorded mesh")
    offered = {value: label for label, value in choice.options}
    assert offered == {f"recorded:{one.name}": f"{one.title} ({one.name})" for one in recordings()}


def test_what_is_open_is_said_with_its_time_and_its_size() -> None:
    chooser = SourceChooser("recorded:healthy")
    assert chooser.text() == "✓ recorded:healthy, recorded 2026-11-23 02:49:17 UTC"
    html = chooser.html()
    assert "none is missing" in html
    assert "10 pods, 7 proxies" in html


def test_choosing_another_recording_opens_it() -> None:
    chooser = SourceChooser("recorded:healthy")
    control(chooser, "Recorded mesh").value = "recorded:subset-missing"
    assert chooser.case is not None
    assert chooser.facts.source.label == "recorded:subset-missing"
    assert "recorded:subset-missing" in shown(chooser)


def test_a_path_opens_a_recording_of_ones_own(tmp_path: Path) -> None:
    chooser = SourceChooser("recorded:healthy")
    control(chooser, "or a file").value = f"  {_zip('route-host-unknown', tmp_path)} "
    assert chooser.case is not None
    assert chooser.case.diagnosis.problems[0].subject.name == "ratings"
    assert control(chooser, "Recorded mesh").value is None


def _drop(chooser: SourceChooser, name: str, content: bytes) -> None:
    control(chooser, "Drop in").value = (
        {
            "name": name,
            "type": "application/zip",
            "size": len(content),
            "content": memoryview(content),
            "last_modified": datetime.now(tz=UTC),
        },
    )


def test_a_file_that_is_dropped_in_is_opened_under_its_name(tmp_path: Path) -> None:
    chooser = SourceChooser("recorded:healthy")
    _drop(chooser, "../../tonight.zip", _zip("route-host-unknown", tmp_path).read_bytes())
    assert chooser.case is not None
    assert chooser.facts.source.label == "../../tonight.zip"
    assert chooser.case.diagnosis.problems[0].subject.name == "ratings"


def test_a_file_that_is_no_recording_is_a_card_and_no_traceback() -> None:
    chooser = SourceChooser("recorded:healthy")
    _drop(chooser, "holiday.zip", b"not a zip at all")
    assert chooser.case is None
    assert 'role="alert"' in shown(chooser)
    assert "<strong>Next:</strong>" in shown(chooser)
    assert chooser.text().startswith("✗ ")


def test_an_unknown_recording_is_a_card_that_offers_the_nearest() -> None:
    chooser = SourceChooser("recorded:subset-mising")
    assert chooser.case is None
    assert "Did you mean subset-missing?" in chooser.html()
    with pytest.raises(UsageError, match="subset-mising"):
        _ = chooser.facts


def test_a_path_that_leads_nowhere_is_a_card_that_names_it() -> None:
    chooser = SourceChooser("recorded:healthy")
    control(chooser, "or a file").value = "no/such/recording.zip"
    assert chooser.case is None
    assert "no/such/recording.zip" in chooser.html()
    control(chooser, "Recorded mesh").value = "recorded:healthy"
    assert chooser.case is not None


def test_what_did_not_answer_is_counted(tmp_path: Path) -> None:
    folder = tmp_path / "partly"
    shutil.copytree(unpacked() / "healthy", folder)
    index = folder / "index.jsonl"
    lines = index.read_text().splitlines()
    place = next(number for number, line in enumerate(lines) if "/config_dump" in line)
    head = lines[place].partition('"status"')[0]
    lines[place] = f'{head}"error": "ConnectionError: nobody there"}}'
    index.write_text("\n".join(lines))
    chooser = SourceChooser(str(folder))
    assert chooser.case is not None
    assert "1 did not answer or refused" in chooser.html()


def test_every_control_has_a_label() -> None:
    told = [
        part.description
        for part in parts(SourceChooser("recorded:healthy"))
        if isinstance(part, ipywidgets.Dropdown | ipywidgets.Text | ipywidgets.FileUpload)
    ]
    assert told == ["Recorded mesh", "or a file", "Drop in a .zip"]


def test_a_diagnosis_follows_what_is_chosen() -> None:
    chooser = SourceChooser("recorded:subset-missing")
    view = DiagnosisView(chooser)
    assert "subset v3" in shown(view)
    chooser.choose("recorded:healthy")
    assert "subset v3" not in shown(view)
    assert "Nothing is wrong that the checks know of" in shown(view)
    chooser.choose("recorded:nothing")
    assert "Nothing is open yet" in shown(view)
    assert labels(view) == []


# --- A live cluster -------------------------------------------------------------------------------


@pytest.fixture
def kubeconfig(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Served]]:
    """Return a function that serves a recording, with faults, for as long as the test lasts."""
    with ExitStack() as stack:

        def serving(*faults: Fault) -> Served:
            served = stack.enter_context(serve(Bundle(unpacked() / "healthy"), faults=faults))
            monkeypatch.setenv("KUBECONFIG", str(served.kubeconfig))
            return served

        yield serving


def test_contexts_are_read_when_they_are_wanted_and_nobody_is_contacted(
    kubeconfig: Callable[..., Served],
) -> None:
    chooser = SourceChooser("recorded:healthy")
    served = kubeconfig()
    control(chooser, "A live cluster").click()
    choice = control(chooser, "Context")
    assert [value for _, value in choice.options] == [f"cluster:{CONTEXT}"]
    assert served.requests == ()


def test_a_cluster_is_asked_in_the_scope_that_was_chosen(kubeconfig: Callable[..., Served]) -> None:
    chooser = SourceChooser("recorded:healthy")
    kubeconfig()
    control(chooser, "A live cluster").click()
    control(chooser, "Namespaces").value = "bookinfo, legacy"
    control(chooser, "Labels of pods").value = "app=reviews"
    control(chooser, "Ask it").click()
    assert chooser.case is not None
    assert chooser.text().startswith(f"✓ cluster:{CONTEXT}, asked ")
    asked = {q.pod for q in chooser.facts.source.questions() if isinstance(q, HttpQuestion)}
    assert {pod.split("-")[0] for pod in asked} == {"reviews", "istiod"}


def test_a_selector_that_cannot_be_read_is_a_card_and_asks_nobody(
    kubeconfig: Callable[..., Served],
) -> None:
    chooser = SourceChooser("recorded:healthy")
    served = kubeconfig()
    control(chooser, "A live cluster").click()
    control(chooser, "Labels of pods").value = "app=?"
    control(chooser, "Ask it").click()
    assert "is no label selector" in shown(chooser)
    assert served.requests == ()


def test_without_a_kubeconfig_there_is_a_card_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "absent"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    chooser = SourceChooser("recorded:healthy")
    control(chooser, "A live cluster").click()
    assert "There is no kubeconfig" in shown(chooser)
    assert "<strong>Next:</strong>" in shown(chooser)
    assert chooser.case is not None, "what was open stays open"


def test_a_cluster_that_refuses_everything_is_open_and_unknown(
    kubeconfig: Callable[..., Served],
) -> None:
    kubeconfig(Refuse())
    chooser = SourceChooser("cluster")
    assert chooser.case is not None
    assert chooser.case.diagnosis.verdict == "unknown"
    assert "did not answer or refused" in shown(chooser)
    assert "lacks permission to list" in shown(chooser)


def test_a_cluster_that_nobody_answers_for_is_a_card(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with serve(Bundle(unpacked() / "healthy")) as served:
        kept = tmp_path / "kubeconfig"
        kept.write_bytes(served.kubeconfig.read_bytes())
    monkeypatch.setenv("KUBECONFIG", str(kept))
    chooser = SourceChooser("recorded:healthy")
    control(chooser, "A live cluster").click()
    control(chooser, "Ask it").click()
    assert chooser.case is None
    assert 'role="alert"' in shown(chooser)
    assert "<strong>Next:</strong>" in shown(chooser)


async def _until(true: Callable[[], bool]) -> None:
    for _ in range(600):
        if true():
            return
        await asyncio.sleep(0.05)
    raise AssertionError("it took more than 30 s")


def test_progress_is_drawn_while_the_notebook_answers_and_stopping_keeps_what_is_there(
    kubeconfig: Callable[..., Served],
) -> None:
    kubeconfig(Slow(seconds=0.3))
    chooser = SourceChooser("recorded:healthy")
    control(chooser, "A live cluster").click()

    async def reader() -> None:
        control(chooser, "Ask it").click()
        assert "Asking cluster:" in shown(chooser)
        await _until(
            lambda: re.search(r"[1-9][0-9]* of [0-9]+ answers", shown(chooser)) is not None
        )
        assert "<progress" in shown(chooser)
        control(chooser, "Stop asking").click()
        assert "has answered stays" in shown(chooser)
        await _until(
            lambda: "Stop asking" not in labels(chooser) and "What is open" in shown(chooser)
        )

    asyncio.run(reader())
    assert chooser.case is not None
    states = chooser.facts.coverage()["state"].value_counts()
    assert states["answered"] > 0
    assert states["silent"] > 0


def test_what_was_chosen_last_counts(kubeconfig: Callable[..., Served]) -> None:
    kubeconfig(Slow(seconds=0.3))
    chooser = SourceChooser("recorded:healthy")
    control(chooser, "A live cluster").click()

    async def reader() -> None:
        control(chooser, "Ask it").click()
        control(chooser, "Recorded mesh").value = "recorded:subset-missing"
        await _until(lambda: chooser.text().startswith("✓ recorded:subset-missing"))
        await asyncio.sleep(1)

    asyncio.run(reader())
    assert chooser.facts.source.label == "recorded:subset-missing"


# --- Recording ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a file", "cluster"])
def test_what_is_open_is_recorded_beside_the_notebook(
    name: str,
    kubeconfig: Callable[..., Served],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    served = kubeconfig()
    if name == "a file":
        name = str(unpacked() / "subset-missing")
    monkeypatch.chdir(tmp_path)
    chooser = SourceChooser(name)
    before = len(served.requests)
    control(chooser, "Write a recording").click()
    assert len(served.requests) == before, "what was answered is not asked again"
    (path,) = tmp_path.iterdir()
    assert re.fullmatch(r"meshnb-[\w.-]+-\d{8}-\d{6}\.zip", path.name)
    assert path.name in shown(chooser)
    assert " MB" in shown(chooser)
    assert "taken out: " in shown(chooser)
    recorded = Bundle(path)
    assert set(recorded.questions()) == set(chooser.facts.source.questions())
    control(chooser, "Write a recording").click()
    assert "exists already" in shown(chooser)


def test_what_ships_with_meshnb_is_not_offered_to_be_recorded() -> None:
    assert "Write a recording" not in labels(SourceChooser("recorded:healthy"))


def test_nothing_is_recorded_while_nothing_is_open() -> None:
    assert "Write a recording" not in labels(SourceChooser("recorded:nothing"))
