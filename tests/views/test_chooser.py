"""The chooser: what can be chosen, what was got, and what is said when nothing was."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime
from pathlib import Path

import ipywidgets
import pytest

from meshnb.errors import UsageError
from meshnb.sources import Bundle, record, recordings
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
