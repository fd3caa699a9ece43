"""`meshnb diff`: what it prints, for whom, and with which exit code."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from meshnb.cli import run
from tests.alteration import Altered
from tests.conftest import unpacked

Ran = tuple[int, str, str]
Run = Callable[..., Ran]


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs `meshnb diff`: exit code, output and complaints."""

    def call(*arguments: str | Path) -> Ran:
        capsys.readouterr()
        code = run(["diff", *map(str, arguments)])
        return (code, *capsys.readouterr())

    return call


def _recording(name: str) -> Path:
    return unpacked() / name


def test_two_alike_end_with_0_as_diff_does(printed: Run) -> None:
    code, out, err = printed(_recording("healthy"), _recording("healthy"))
    assert (code, err) == (0, "")
    assert out.endswith("Nothing changed: all is well, as before.\n")


def test_a_new_problem_comes_first_and_then_what_changed(printed: Run) -> None:
    code, out, err = printed(_recording("healthy"), _recording("subset-missing"))
    assert (code, err) == (1, "")
    first, problem, written, sent = out.splitlines()
    assert first.endswith("2 changes: all was well, and now there is a problem.")
    assert problem.startswith("  New problem: VirtualService bookinfo/reviews sends all")
    assert written.startswith("  ~ VirtualService bookinfo/reviews: spec.http[0]")
    assert written.endswith("(by kubectl-client-side-apply at 02:49:56 UTC)")
    assert sent.startswith("  ~ routes 80 and 9080 of 6 proxies now point to subset v3 instead of")


def test_what_is_new_and_what_is_gone_have_signs(printed: Run) -> None:
    _, there, _ = printed(_recording("healthy"), _recording("authz-principal-typo"))
    assert "  + AuthorizationPolicy bookinfo/details-readers was created" in there
    _, back, err = printed(_recording("authz-principal-typo"), _recording("healthy"))
    assert "  - AuthorizationPolicy bookinfo/details-readers was deleted" in back
    assert err == "meshnb: note: BEFORE is the newer of the two\n"


def test_json_has_both_moments_and_each_place(printed: Run) -> None:
    code, out, _ = printed("--json", _recording("healthy"), _recording("subset-missing"))
    document: Any = json.loads(out)
    assert code == 1
    assert document["before"]["verdict"] == "healthy"
    assert document["after"]["recorded_at"].startswith("2026-11-23T02:50:29")
    assert [cause["code"] for cause in document["new_causes"]] == ["MNB210"]
    edits = {edit["path"]: edit for edit in document["changes"][0]["edits"]}
    place = edits["spec.http[0].route[0].destination.subset"]
    assert (place["before"], place["after"]) == ("v2", "v3")


def test_one_table_is_compared_by_its_key(printed: Run) -> None:
    places = (_recording("healthy"), _recording("service-selector-wrong"))
    code, out, _ = printed("--table", "services", *places)
    assert code == 1
    assert "bookinfo details 9080:\n  selector.app details -> detail\n" in out
    code, out, _ = printed("--table", "services", "--json", *places)
    assert code == 1
    (row,) = (row for row in json.loads(out) if row["key"]["service"] == "details")
    assert row["state"] == "changed"
    assert printed("--table", "namespaces", *places) == (0, "Nothing changed.\n", "")


def test_a_table_of_what_happened_is_refused_before_anything_is_read(printed: Run) -> None:
    code, out, err = printed("--table", "access_log", "no/such.zip", "no/such.zip")
    assert (code, out) == (2, "")
    assert err.startswith("meshnb: Rows of access_log cannot be found again")


def test_a_source_that_cannot_be_used_ends_with_3(printed: Run) -> None:
    code, out, err = printed(_recording("healthy"), "no/such.zip")
    assert (code, out) == (3, "")
    assert "no/such.zip" in err


def test_what_could_not_be_compared_is_a_note(printed: Run, tmp_path: Path) -> None:
    altered = Altered("healthy", tmp_path)
    altered.silence("forbidden", 403, kind="list", resource="virtualservices")
    code, _, err = printed(_recording("healthy"), altered.folder)
    assert code in (0, 1)
    assert "not compared: virtualservices.networking.istio.io: at the later moment" in err


def test_a_value_from_a_mesh_cannot_write_to_the_terminal(printed: Run, tmp_path: Path) -> None:
    def hostile(service: dict[str, Any]) -> None:
        service["metadata"]["labels"] = {"note": "\x1b[2Jgone\n  New problem: none"}

    altered = Altered("healthy", tmp_path).each("services", "details", hostile)
    _, out, _ = printed(_recording("healthy"), altered.folder)
    assert "\x1b" not in out
    assert "\n  New problem" not in out
