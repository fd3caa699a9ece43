"""The command that lists findings, and the diagnosis of manifests before they are applied."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from meshnb.checks import CHECKS
from meshnb.cli import run
from meshnb.diagnosis import diagnose
from meshnb.sources import open_source
from meshnb.tables import Facts

TELEMETRY = """\
apiVersion: telemetry.istio.io/v1
kind: Telemetry
metadata: {name: logs, namespace: shop}
spec:
  accessLogging:
    - match: {mode: CLIENT}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder of manifests in which one thing is odd."""
    (tmp_path / "manifests").mkdir()
    (tmp_path / "manifests" / "telemetry.yaml").write_text(TELEMETRY)
    return tmp_path / "manifests"


def test_findings_are_a_list_of_records(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["findings", str(folder), "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert "no provider" in found.pop("message")
    assert found == {
        "code": "MNB1264",
        "same_as": "IST0157",
        "level": "Warning",
        "subject": {"kind": "Telemetry", "namespace": "shop", "name": "logs"},
        "path": "spec.accessLogging[0]",
    }


def test_findings_say_where_to_correct_what(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["findings", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "Warning MNB1264 = IST0157: Telemetry shop/logs asks for access logs" in out
    assert f"in {folder / 'telemetry.yaml'}:6." in out
    assert out.endswith("1 finding\n")


@pytest.mark.parametrize(("level", "code"), [("error", 0), ("warning", 1), ("info", 1)])
def test_findings_fail_from_the_level_on_that_is_named(folder: Path, level: str, code: int) -> None:
    assert run(["findings", str(folder), "--fail-on", level]) == code


def test_findings_of_a_recording_have_those_of_all_checks(
    recordings_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["findings", str(recordings_folder / "subset-missing"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    blamed = {one["code"] for one in found if one["subject"]["name"] == "reviews"}
    assert {"MNB210", "MNB1004"} <= blamed
    assert {one["level"] for one in found} <= {"Error", "Warning", "Info"}
    assert {one["code"] for one in found} <= set(CHECKS)


def test_manifests_are_judged_by_a_mesh_config(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = folder.parent / "mesh.yaml"
    settings.write_text("defaultProviders: {accessLogging: [envoy]}")

    assert run(["diagnose", str(folder)]) == 1
    assert "no provider" in capsys.readouterr().out
    assert run(["diagnose", str(folder), "--mesh-config", str(settings)]) == 0
    assert run(["findings", str(folder), "--mesh-config", str(settings), "--json"]) == 0
    assert capsys.readouterr().out.endswith("[]\n")


def test_a_recorded_mesh_takes_no_other_mesh_config(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["diagnose", "recorded:healthy", "--mesh-config", str(folder / "telemetry.yaml")]
    assert run(arguments) == 2
    assert "takes no settings of a mesh" in capsys.readouterr().err


def test_what_does_not_run_is_not_called_unready(tmp_path: Path) -> None:
    """A pod in a file has no status, and no proxy of it was asked: that is no fault of the mesh."""
    (tmp_path / "pod.yaml").write_text(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec: {containers: [{name: web}]}\n"
    )
    diagnosis = diagnose(Facts(open_source(tmp_path)))

    assert diagnosis.verdict == "healthy"
    assert diagnosis.causes == ()
