"""`meshnb trace` and `meshnb report`: what they print, for whom, and with which exit code."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import meshnb
from meshnb.cli import run
from meshnb.tables import Facts
from meshnb.traces.connection import follow_connection
from meshnb.traces.request import Request, follow_request
from tests.conftest import unpacked

JASON = "GET /reviews/0 with header end-user: jason from pod client to reviews:9080"

Ran = tuple[int, str, str]
Run = Callable[..., Ran]


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs one command: exit code, output and complaints."""

    def call(*arguments: str | Path) -> Ran:
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        return (code, *capsys.readouterr())

    return call


def _recording(name: str) -> Path:
    return unpacked() / name


def _document(ran: Ran) -> Any:
    return json.loads(ran[1])


def test_a_request_that_ends_on_the_way_is_told_hop_by_hop(printed: Run) -> None:
    code, out, err = printed("trace", "request", _recording("subset-missing"), JASON)
    assert (code, err) == (1, "")
    lines = out.splitlines()
    assert lines[0] == "broken: It is answered 503 NC cluster_not_found by client.bookinfo."
    assert [line.split(":")[0] for line in lines if line.startswith(("  ✓", "  ✗"))] == [
        "  ✓ listener",
        "  ✓ filter chain",
        "  ✓ virtual host",
        "  ✓ route",
        "  ✗ cluster (stopped)",
    ]
    assert [line for line in lines if line.endswith("<- here")] == [lines[-1]]
    assert "      made from VirtualService bookinfo/reviews" in lines
    assert "and 1 more (--all lists them)" in out


def test_all_leaves_nothing_out_that_was_passed_over(printed: Run) -> None:
    _, short, _ = printed("trace", "request", _recording("subset-missing"), JASON)
    _, whole, _ = printed("trace", "request", _recording("subset-missing"), JASON, "--all")
    assert "not allow_any: reviews is closer to reviews than *" not in short
    assert "not allow_any: reviews is closer to reviews than *" in whole
    assert "routes row 6, from GET bookinfo/client:15000/config_dump?include_eds" in whole
    assert "--all" not in whole


def test_a_request_that_gets_through_ends_with_0(printed: Run) -> None:
    words = "GET /details/0 from client to details:9080"
    code, out, _ = printed("trace", "request", _recording("healthy"), words)
    assert code == 0
    assert out.startswith("passes: It reaches 10.244.0.4:9080")
    assert "<- here" not in out


def test_a_line_of_a_log_is_followed_and_what_it_says_is_told(printed: Run) -> None:
    recording = _recording("subset-missing")
    log = meshnb.Facts(meshnb.open_source(recording))["access_log"]
    row = int(log.index[log["response_flags"] == "NC"][-1])
    code, out, _ = printed("trace", "request", recording, "--line", str(row))
    assert code == 1
    assert out.startswith("broken: It is answered 503 NC cluster_not_found by ")
    assert f"The log of {log['proxy'].iloc[row]} has 503 NC cluster_not_found." in out


def test_what_cannot_be_decided_is_told_with_the_reason_and_is_no_success(printed: Run) -> None:
    """A request that was sent before the configuration was changed."""
    code, out, _ = printed("trace", "request", _recording("subset-missing"), "--line", "3")
    assert code == 1
    assert out.startswith("undecided: ")
    assert "? route (undecided): Cannot decide: this was changed at 02:49:57" in out
    assert "Cannot be decided:\n" in out


def test_a_change_is_told_rung_by_rung(printed: Run) -> None:
    recording = _recording("envoyfilter-rejected")
    code, out, _ = printed("trace", "change", recording, "EnvoyFilter/bookinfo/broken-lua")
    assert code == 1
    assert out.startswith("broken: EnvoyFilter bookinfo/broken-lua stops at the rung 'accepted'")
    lines = [line for line in out.splitlines() if line.startswith("  ") and line[2] in "✓✗?·"]
    assert [line.split()[1].rstrip(":") for line in lines] == [
        *("stored", "valid", "selected", "seen", "pushed", "accepted", "active", "used")
    ]
    assert "✗ client.bookinfo: Envoy refused LDS" in out
    code, out, _ = printed("trace", "change", recording, "destinationrule/bookinfo/reviews")
    assert code == 0
    assert out.startswith("in force: ")


def test_a_connection_is_told_from_both_ends(printed: Run) -> None:
    recording = _recording("mtls-client-disable")
    ends = ("client.bookinfo", "ratings.bookinfo:9080")
    code, out, _ = printed("trace", "connection", recording, *ends)
    assert code == 1
    assert out.startswith("broken: The connection from client.bookinfo to ratings-v1-")
    assert "\nclient.bookinfo\n" in out
    assert "✗ server (stopped)" in out
    code, out, _ = printed("trace", "connection", _recording("healthy"), *ends)
    assert code == 0
    assert out.startswith("works: ")


def test_json_is_the_trace_with_its_outcome(printed: Run) -> None:
    recording = _recording("subset-missing")
    facts = Facts(meshnb.open_source(recording))
    found = _document(printed("trace", "request", recording, JASON, "--json"))
    head = {name: found.pop(name) for name in ("format", "kind", "outcome")}
    assert head == {"format": 1, "kind": "request", "outcome": "broken"}
    trace = follow_request(facts, Request.parse(facts, JASON))
    assert found == json.loads(json.dumps(trace.to_json()))
    ends = ("client.bookinfo", "ratings.bookinfo:9080")
    found = _document(printed("trace", "connection", recording, *ends, "--json"))
    head = {name: found.pop(name) for name in ("format", "kind", "outcome")}
    assert head == {"format": 1, "kind": "connection", "outcome": "passes"}
    assert found == json.loads(json.dumps(follow_connection(facts, *ends).to_json()))
    subject = "DestinationRule/bookinfo/reviews"
    found = _document(printed("trace", "change", recording, subject, "--json"))
    assert (found["kind"], found["outcome"]) == ("change", "passes")
    assert found["rungs"][0]["name"] == "stored"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("request",), "Name one request."),
        (("request", JASON, "--line", "1"), "Name one request."),
        (("request", "--line", "99999"), "The table access_log has no row 99999."),
        (("request", "GET / from clint to reviews:9080"), "Did you mean client"),
        (("change", "VirtualService/bookinfo/review"), "Did you mean VirtualService/bookinfo/rev"),
        (("change", "Nonsense/a/b"), "There is no kind 'Nonsense' to follow."),
        (("connection", "client.bookinfo", "nobody:1"), "There is no Service, pod or address"),
    ],
)
def test_what_is_not_there_ends_with_2_and_says_what_is(
    printed: Run, arguments: tuple[str, ...], said: str
) -> None:
    kind, *rest = arguments
    code, out, err = printed("trace", kind, _recording("subset-missing"), *rest)
    assert (code, out) == (2, "")
    assert said in err


def test_trace_alone_explains_itself(printed: Run) -> None:
    code, out, _ = printed("trace")
    assert code == 0
    assert all(f"  {name} " in out for name in ("request", "change", "connection"))


def test_the_front_door_has_the_traces() -> None:
    facts = meshnb.Facts(meshnb.open_source(_recording("healthy")))
    request = meshnb.Request.parse(facts, "GET /details/0 from client to details:9080")
    assert meshnb.follow_request(facts, request).stopped is None
    assert meshnb.follow_change(facts, "VirtualService/bookinfo/reviews").broken is None
    ends = ("client.bookinfo", "ratings.bookinfo:9080")
    assert meshnb.follow_connection(facts, *ends).verdict == "works"


def test_a_report_is_written_once(printed: Run, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    code, out, err = printed("report", _recording("subset-missing"), path)
    assert (code, out, err) == (0, f"written: {path}\n", "")
    page = path.read_text()
    assert page.startswith("<!DOCTYPE html>")
    assert "VirtualService bookinfo/reviews sends all its matching requests" in page
    path.write_text("mine")
    code, out, err = printed("report", _recording("healthy"), path)
    assert (code, out) == (2, "")
    assert "exists already" in err
    assert path.read_text() == "mine"
    assert printed("report", _recording("healthy"), path, "--force")[0] == 0
    assert "Nothing is wrong that the checks know of" in path.read_text()
    assert list(tmp_path.iterdir()) == [path]


def test_a_source_that_cannot_be_used_writes_no_report(printed: Run, tmp_path: Path) -> None:
    code, _, err = printed("report", tmp_path / "nothing.zip", tmp_path / "report.html")
    assert code == 3
    assert "nothing.zip" in err
    assert list(tmp_path.iterdir()) == []
