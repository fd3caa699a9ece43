"""Each failed request is one failure, at the hop where it began; the other lines are explained."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from meshnb.tables import Facts
from meshnb.traces.failures import FAILURES, Failure, Failures, failed
from meshnb.traces.mesh import MESH, Mesh
from tests.alteration import Altered, Line

Recorded = Callable[[str], Facts]

#: How many lines of the access logs report a failure, and at how many hops one began.
COUNTS = {
    "app-5xx": (95, 48),
    "app-crash-loop": (104, 98),
    "app-resets": (62, 32),
    "app-slow": (59, 30),
    "app-wrong-port": (47, 24),
    "authz-allow-nobody": (77, 39),
    "authz-deny-named": (79, 42),
    "authz-principal-typo": (73, 37),
    "backend-not-permitted": (13, 13),
    "bootstrap-wrong-discovery": (55, 55),
    "fault-left-behind": (11, 11),
    "gateway-hosts-disjoint": (15, 15),
    "gateway-secret-missing": (15, 15),
    "healthy-loaded": (91, 46),
    "https-to-http-port": (61, 61),
    "istiod-down": (15, 6),
    "mtls-client-disable": (51, 51),
    "mtls-strict-legacy-client": (9, 9),
    "not-ready-endpoint": (28, 28),
    "port-name-grpc": (59, 30),
    "rate-limited": (75, 38),
    "sidecar-hides-host": (23, 23),
    "subset-missing": (42, 42),
    "tls-to-plaintext": (160, 160),
}
#: Those where both ends of a failed request wrote it down.
BOTH_ENDS = [name for name, (lines, origins) in COUNTS.items() if lines > origins]


def made(facts: Facts) -> Failures:
    """Return the failures of a source."""
    failures = FAILURES.make(facts)
    assert isinstance(failures, Failures)
    return failures


def failing(facts: Facts) -> list[dict[str, Any]]:
    """Return the lines that report a failure, each a dict with its position as ``index``."""
    log = facts["access_log"]
    chosen = log[failed(log)].astype(object)
    records = chosen.where(chosen.notna(), None).to_dict("records")
    return [
        {str(name): value for name, value in record.items()} | {"index": index}
        for index, record in zip(chosen.index, records, strict=True)
    ]


def neighbours(line: dict[str, Any], lines: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the failing lines of the same request one hop from a line."""
    for other in lines:
        if other is line or not line["request_id"] or other["request_id"] != line["request_id"]:
            continue
        pair = (line, other) if line["direction"] == "outbound" else (other, line)
        if line["direction"] == other["direction"]:
            continue
        called = pair[0]["upstream_host"] == pair[1]["downstream_local_address"]
        if called or line["proxy"] == other["proxy"]:
            yield other


# --- On recordings ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COUNTS)
def test_each_failure_is_counted_once(name: str, recorded: Recorded) -> None:
    failures = made(recorded(name))
    indices = [failure.index for failure in failures]
    assert (len(failing(recorded(name))), len(failures)) == COUNTS[name]
    assert len(set(indices)) == len(indices)


@pytest.mark.parametrize("name", COUNTS)
def test_every_failing_line_is_an_origin_or_stands_beside_one_that_explains_it(
    name: str, recorded: Recorded
) -> None:
    """From each line that is no origin, lines of the same request lead to an origin."""
    lines = failing(recorded(name))
    origins = {failure.index for failure in made(recorded(name))}
    assert origins <= {line["index"] for line in lines}
    for line in lines:
        reached, known = [line], {line["index"]}
        while reached and not known & origins:
            reached = [
                other
                for one in reached
                for other in neighbours(one, lines)
                if other["index"] not in known
            ]
            known |= {other["index"] for other in reached}
        assert known & origins, line


@pytest.mark.parametrize("name", BOTH_ENDS)
def test_what_came_from_upstream_did_not_begin_where_upstream_wrote_it_down(
    name: str, recorded: Recorded
) -> None:
    """It is only an origin where the server's line is missing: its pod or its log had ended."""
    facts = recorded(name)
    mesh = MESH.make(facts)
    assert isinstance(mesh, Mesh)
    newest = facts["access_log"].groupby("proxy")["start_time"].max()
    for failure in made(facts):
        if failure.direction == "outbound" and failure.details == "via_upstream":
            server = mesh.pod_at(failure.upstream_host.rpartition(":")[0])
            assert server is None or newest[server.proxy] < failure.time


@pytest.mark.parametrize("name", BOTH_ENDS)
def test_the_callers_are_the_proxies_that_passed_it_on(name: str, recorded: Recorded) -> None:
    lines = failing(recorded(name))
    named = 0
    for failure in made(recorded(name)):
        (own,) = (line for line in lines if line["index"] == failure.index)
        in_front = {
            line["proxy"]
            for line in neighbours(own, lines)
            if line["direction"] == "outbound"
            and line["upstream_host"] == own["downstream_local_address"]
        }
        assert set(failure.callers) == (in_front if failure.direction == "inbound" else set())
        named += len(failure.callers)
    # Where every caller went away nobody passed anything on.
    assert (named > 0) == (name not in ("app-slow", "istiod-down"))


def test_an_application_that_fails_is_blamed_at_its_own_proxy(recorded: Recorded) -> None:
    for failure in made(recorded("app-5xx")):
        assert (failure.workload, failure.direction, failure.code) == ("details-v1", "inbound", 500)
        assert failure.answered_by_application
        assert not failure.is_connection
        assert failure.asked == (("details:9080", "/details/0"),)
        assert failure.server_name.startswith("outbound_.9080_._.details")


def test_a_server_that_drops_the_connection_has_not_answered(recorded: Recorded) -> None:
    failures = [failure for failure in made(recorded("app-resets")) if "UC" in failure.flags]
    assert len(failures) == 31
    assert not any(failure.answered_by_application for failure in failures)


def test_a_caller_that_timed_out_is_where_it_began(recorded: Recorded) -> None:
    """The server's proxy only saw that the caller went away."""
    facts = recorded("app-slow")
    went = [line for line in failing(facts) if line["response_flags"] == "DC"]
    timeouts = [failure for failure in made(facts) if "UT" in failure.flags]
    assert len(went) == 30
    assert len(timeouts) == 29
    assert {failure.workload for failure in timeouts} == {"client", "reviews-v2"}
    # One caller had not written its line when its log was taken.
    (lonely,) = (failure for failure in made(facts) if "UT" not in failure.flags)
    asked = facts["access_log"].loc[lonely.index, "request_id"]
    assert (facts["access_log"]["request_id"] == asked).sum() == 1


def test_when_everybody_went_away_the_deepest_call_was_the_one_they_waited_for(
    recorded: Recorded,
) -> None:
    failures = made(recorded("istiod-down"))
    assert {failure.authority for failure in failures} == {"details:9080"}
    assert sorted(failure.workload for failure in failures) == ["client", *["productpage-v1"] * 5]
    assert {failure.flags for failure in failures} == {frozenset({"DC"})}


def test_a_connection_that_nobody_could_read_has_no_method(recorded: Recorded) -> None:
    refused = made(recorded("mtls-strict-legacy-client"))
    assert len(refused) == 9
    for failure in refused:
        assert failure.is_connection
        assert failure.details == "filter_chain_not_found"
        assert (failure.code, failure.callers, failure.asked) == (0, (), (("", ""),))


def test_what_was_logged_is_counted_and_dated(recorded: Recorded) -> None:
    facts = recorded("app-5xx")
    failures, log = made(facts), facts["access_log"]
    assert failures.logged == len(log) == 357
    assert failures.first == log["start_time"].min()
    assert failures.last == log["start_time"].max()
    assert failures.last is not None
    assert failures.last < facts.now


@pytest.mark.parametrize("name", ["healthy", "market-healthy", "server-first-undeclared"])
def test_requests_and_connections_that_went_well_are_no_failures(
    name: str, recorded: Recorded
) -> None:
    failures = made(recorded(name))
    assert failures.logged > 0
    assert len(failures) == 0


# --- On altered recordings ----------------------------------------------------------------------


def requests_of(facts: Facts, workload: str, code: int) -> set[str]:
    """Return the ids of the requests that a workload saw fail with a status."""
    log = facts["access_log"]
    chosen = log[(log["workload"] == workload) & (log["response_code"] == code)]
    return set(chosen["request_id"])


def answering(
    name: str, folder: Path, failing_code: int, *, server: str, answer: str
) -> tuple[Facts, set[str]]:
    """Return a recording in which an application answers otherwise when details fails.

    ``server`` is the status that details gives instead of ``failing_code``, and ``answer`` the one
    that productpage then gives to its own callers. Also returns the ids of these requests.
    """
    altered = Altered(name, folder)
    ids = requests_of(altered.facts(), "productpage-v1", failing_code)

    def otherwise(line: Line) -> Iterable[Line]:
        if line.id not in ids:
            return [line]
        if line.authority == "details:9080":
            return [line._replace(code=server)]
        if line.path == "/productpage":
            return [line._replace(code=answer)]
        return [line]

    return altered.lines("", otherwise).facts(), ids


@pytest.mark.parametrize(
    ("name", "code", "server", "answer"),
    [
        pytest.param("app-5xx", 500, "500", "500", id="repeats an error"),
        pytest.param("app-5xx", 500, "500", "503", id="makes another of it"),
        pytest.param("app-5xx", 500, "500", "404", id="says that there is nothing"),
        pytest.param("app-5xx", 500, "0", "500", id="got no answer itself"),
        pytest.param("app-5xx", 500, "404", "404", id="passes on that there is nothing"),
        pytest.param("rate-limited", 429, "429", "429", id="repeats a limit"),
        pytest.param("authz-allow-nobody", 403, "403", "500", id="fails at a refusal of the mesh"),
    ],
)
def test_an_application_that_passes_a_failure_on_is_not_blamed(
    tmp_path: Path, recorded: Recorded, name: str, code: int, server: str, answer: str
) -> None:
    """A failure of the same request one call deeper explains its answer."""
    facts, ids = answering(name, tmp_path, code, server=server, answer=answer)
    before, after = made(recorded(name)), made(facts)
    assert len(failing(facts)) >= len(failing(recorded(name))) + len(ids)
    assert {failure.workload for failure in after} == {"details-v1"}
    assert [failure.index for failure in after] == [failure.index for failure in before]


def test_an_application_that_fails_at_an_everyday_answer_is_blamed(tmp_path: Path) -> None:
    """That another application found nothing is no reason to answer 500."""
    facts, ids = answering("app-5xx", tmp_path, 500, server="404", answer="500")
    failures = [failure for failure in made(facts) if failure.workload == "productpage-v1"]
    assert len(failures) > 10
    assert {failure.code for failure in failures} == {500}
    log = facts["access_log"]
    assert {log.loc[failure.index, "request_id"] for failure in failures} <= ids
    callers = {caller.partition("-")[0] for failure in failures for caller in failure.callers}
    assert callers == {"client.bookinfo", "istio"}


def test_a_failure_of_another_request_explains_nothing(tmp_path: Path) -> None:
    """The page fails although, in that very request, the call to details did not."""
    altered = Altered("app-5xx", tmp_path)
    ids = requests_of(altered.facts(), "productpage-v1", 500)

    def fail(line: Line) -> Iterable[Line]:
        return [line._replace(code="500") if line.path == "/productpage" else line]

    facts = altered.lines("productpage", fail).facts()
    own = [failure for failure in made(facts) if failure.workload == "productpage-v1"]
    log = facts["access_log"]
    assert own
    assert not {log.loc[failure.index, "request_id"] for failure in own} & ids


def test_a_caller_that_gave_up_by_itself_is_folded_into_what_it_waited_for(tmp_path: Path) -> None:
    """Both proxies say that their caller left: the application in front had enough."""

    def leave(line: Line) -> Iterable[Line]:
        timed_out = line.flags == "UT"
        left = {"code": "0", "flags": "DC", "details": "downstream_remote_disconnect"}
        return [line._replace(**left) if timed_out else line]

    failures = made(Altered("app-slow", tmp_path).lines("", leave).facts())
    assert {(failure.workload, failure.direction) for failure in failures} == {
        ("ratings-v1", "inbound")
    }
    assert len(failures) == 30
    assert sum(bool(failure.callers) for failure in failures) == 29


def test_each_attempt_of_a_retried_request_is_a_failure_with_the_same_callers(
    tmp_path: Path, recorded: Recorded
) -> None:
    def twice(line: Line) -> Iterable[Line]:
        return [line, line] if line.code == "500" else [line]

    before = made(recorded("app-5xx"))
    after = made(Altered("app-5xx", tmp_path).lines("details", twice).facts())
    assert len(after) == 2 * len(before)
    assert [failure.callers for failure in after][::2] == [failure.callers for failure in before]
    assert [failure.callers for failure in after][1::2] == [failure.callers for failure in before]


def test_what_was_asked_is_said_at_each_hop_without_its_query(tmp_path: Path) -> None:
    """A gateway may be asked under another name than the server that it calls."""

    def otherwise(line: Line) -> Iterable[Line]:
        outside = line._replace(authority="shop.example.com", path="/d?who=7")
        return [outside if line.code == "500" else line]

    facts = Altered("app-5xx", tmp_path).lines("client", otherwise).facts()
    asked = {failure.asked for failure in made(facts) if "client.bookinfo" in failure.callers}
    assert asked == {(("shop.example.com", "/d"), ("details:9080", "/details/0"))}


def test_a_request_that_was_only_delayed_is_one_too(tmp_path: Path) -> None:
    def delay(line: Line) -> Iterable[Line]:
        late = line.path == "/ratings/0" and line.code == "200" and not line.inbound
        return [line._replace(flags="DI") if late else line]

    (*_, failure) = made(Altered("healthy", tmp_path).lines("client", delay).facts())
    assert (failure.code, failure.flags) == (200, frozenset({"DI"}))


@pytest.mark.parametrize(
    ("ended", "flags", "failure"),
    [("-", "-", False), ("-", "UF", True), ("transport_socket_timeout", "-", True)],
)
def test_a_connection_without_a_status_fails_only_when_its_proxy_says_why(
    tmp_path: Path, ended: str, flags: str, failure: bool
) -> None:
    fields = ("method", "path", "protocol", "details", "id", "authority", "agent", "service_time")
    bare = dict.fromkeys(fields, "-") | {"code": "0", "flags": flags, "ended": ended}

    def connect(line: Line) -> Iterable[Line]:
        return [line._replace(**bare) if line.path == "/ratings/0" else line]

    facts = Altered("healthy", tmp_path).lines("client", connect).facts()
    connections = facts["access_log"][facts["access_log"]["method"].isna()]
    assert len(connections) > 0
    assert set(connections["response_code"]) == {0}
    found = list(made(facts))
    assert len(found) == (len(connections) if failure else 0)
    assert all(one.is_connection for one in found)


def test_a_request_without_an_id_stands_for_itself(tmp_path: Path) -> None:
    """What a client and a server say of it cannot be put together."""

    def nameless(line: Line) -> Iterable[Line]:
        return [line._replace(id="-")]

    facts = Altered("app-5xx", tmp_path).lines("", nameless).facts()
    failures = made(facts)
    assert len(failures) == len(failing(facts)) == 95
    assert not any(failure.callers for failure in failures)


def test_without_a_log_there_is_no_failure_and_no_date(tmp_path: Path) -> None:
    failures = made(Altered("app-5xx", tmp_path).forget(kind="log").facts())
    assert list(failures) == []
    assert (failures.logged, failures.first, failures.last) == (0, None, None)


def test_a_line_with_nothing_but_its_status_is_a_failure_all_the_same(tmp_path: Path) -> None:
    """A mesh may log as little as it likes."""

    def little(page: dict[str, Any]) -> None:
        page["accessLogFormat"] = "%RESPONSE_CODE%\n"

    altered = Altered("app-5xx", tmp_path).pages(little, path="/debug/mesh")
    altered.texts(lambda _: "200\n503\nabc\n", pod="client", container="istio-proxy")
    failures = [f for f in made(altered.facts()) if f.pod == "client"]
    assert [failure.code for failure in failures] == [503]
    assert failures == [
        Failure(
            index=failures[0].index,
            proxy="client.bookinfo",
            namespace="bookinfo",
            pod="client",
            workload="client",
            direction="outbound",
            time=None,
            method="",
            path="",
            code=503,
            flags=frozenset(),
            details="",
            connection_details="",
            upstream_failure="",
            authority="",
            cluster="",
            upstream_host="",
            local_address="",
            remote_address="",
            server_name="",
            route_name="",
            duration_ms=0.0,
            callers=(),
            asked=(("", ""),),
        )
    ]


def test_which_lines_are_failures_is_a_plain_series_also_of_an_empty_log(tmp_path: Path) -> None:
    log = Altered("app-5xx", tmp_path).forget(kind="log").facts()["access_log"]
    assert failed(log).dtype == bool
    assert isinstance(failed(log), pd.Series)
    assert len(failed(log)) == 0
