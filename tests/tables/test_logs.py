"""Log lines of proxies and of istiod are read, whatever stands in them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pandas as pd
import pytest

from meshnb.sources.base import Answer, LogQuestion, Question, parse_time
from meshnb.tables import Facts
from meshnb.tables.log_lines import DEFAULT_FORMAT, access_log_reader, own_line, own_lines

Recorded = Callable[[str], Facts]

LINE = (
    '[2026-11-23T02:57:18.333Z] "GET /ratings/0 HTTP/1.1" 503 UC,URX'
    ' upstream_reset_before_response_started{connection_termination} - "-" 0 95 7 - "10.0.0.1"'
    ' "Go-http-client/1.1" "3cac457d-9742-423f-93e1-0f484644c5bf" "ratings:9080" "10.244.0.9:9080"'
    " outbound|9080||ratings.shop.svc.cluster.local 10.244.0.6:51086 10.96.220.46:9080"
    " 10.244.0.6:52024 outbound_.9080_._.ratings default"
)
AGENT = '"Go-http-client/1.1"'
LOG = LogQuestion("shop", "cart-1", "istio-proxy")


class _OneLog:
    """A source with one log of one proxy."""

    label = "one log"
    damage = ()
    now = parse_time("2026-11-23T03:00:00Z")

    def __init__(self, text: str) -> None:
        self.text = text

    def questions(self) -> tuple[Question, ...]:
        return (LOG,)

    def ask(self, questions: Any) -> Iterator[Answer]:
        for question in questions:
            yield Answer(question, self.now, 1.0, 0, self.text.encode())


def _row(line: str) -> dict[str, Any]:
    frame = Facts(_OneLog(line))["access_log"]
    assert len(frame) == 1
    return {str(column): value for column, value in frame.iloc[0].items()}


def test_a_line_in_the_default_format_fills_every_column() -> None:
    row = _row(LINE)
    assert row["proxy"] == "cart-1.shop"
    assert row["start_time"] == pd.Timestamp("2026-11-23T02:57:18.333Z")
    assert (row["method"], row["path"], row["protocol"]) == ("GET", "/ratings/0", "HTTP/1.1")
    assert (row["response_code"], row["response_flags"]) == (503, "UC,URX")
    assert row["flags"] == ("UC", "URX")
    assert row["details"] == "upstream_reset_before_response_started{connection_termination}"
    assert (row["bytes_received"], row["bytes_sent"], row["duration_ms"]) == (0, 95, 7.0)
    assert pd.isna(row["upstream_service_time_ms"])
    assert pd.isna(row["upstream_failure"])
    assert row["x_forwarded_for"] == "10.0.0.1"
    assert row["user_agent"] == "Go-http-client/1.1"
    assert row["request_id"] == "3cac457d-9742-423f-93e1-0f484644c5bf"
    assert row["authority"] == "ratings:9080"
    assert row["upstream_host"] == "10.244.0.9:9080"
    assert row["cluster"] == "outbound|9080||ratings.shop.svc.cluster.local"
    assert row["upstream_local_address"] == "10.244.0.6:51086"
    assert row["downstream_local_address"] == "10.96.220.46:9080"
    assert row["downstream_remote_address"] == "10.244.0.6:52024"
    assert row["requested_server_name"] == "outbound_.9080_._.ratings"
    assert (row["route_name"], row["direction"]) == ("default", "outbound")


@pytest.mark.parametrize(
    "agent",
    [
        r"a \"quoted\" word",
        'a "quoted" word',
        'x" "y" "z',
        'a" "b" "c" "d" - - - - - -',
        "ends with a backslash \\",
        "[2026-11-23T02:57:18.333Z] spaces   and\ttabs",
        "ünïcode ✓",
    ],
)
def test_what_a_client_calls_itself_shifts_no_other_field(agent: str) -> None:
    row = _row(LINE.replace(AGENT, f'"{agent}"'))
    plain = _row(LINE)
    assert row["user_agent"] == agent
    for column in ("request_id", "authority", "upstream_host", "cluster", "route_name"):
        assert row[column] == plain[column]


def test_a_path_may_hold_quotes_and_spaces() -> None:
    row = _row(LINE.replace("/ratings/0", '/a "b" c?d=[e]'))
    assert (row["path"], row["protocol"], row["response_code"]) == (
        '/a "b" c?d=[e]',
        "HTTP/1.1",
        503,
    )


def test_connection_details_may_hold_spaces() -> None:
    row = _row(LINE.replace(' - "-" 0 95', ' transport socket timeout "TLS error: x y" 0 95'))
    assert row["connection_details"] == "transport socket timeout"
    assert row["upstream_failure"] == "TLS error: x y"


def test_the_time_for_a_hostile_line_grows_with_its_length_only() -> None:
    read = access_log_reader()

    def seconds(times: int) -> float:
        began = time.process_time()
        for filler in ('" "', '"', " ", '" - "', "\\", '\\"'):
            read(LINE.replace(AGENT, '"' + filler * times))
            read('[2026-11-23T02:57:18.333Z] "' + filler * times)
        return time.process_time() - began

    short = sum(seconds(500) for _ in range(40))
    assert seconds(20_000) < 10 * short  # were it the square, 40 times


def test_the_default_json_format_says_the_same_as_the_text_format() -> None:
    document = {
        "start_time": "2026-11-23T02:57:18.333Z",
        "method": "GET",
        "path": "/ratings/0",
        "protocol": "HTTP/1.1",
        "response_code": "503",
        "response_flags": "UC,URX",
        "response_code_details": "upstream_reset_before_response_started{connection_termination}",
        "connection_termination_details": None,
        "upstream_transport_failure_reason": None,
        "bytes_received": 0,
        "bytes_sent": 95,
        "duration": 7,
        "upstream_service_time": None,
        "x_forwarded_for": "10.0.0.1",
        "user_agent": "Go-http-client/1.1",
        "request_id": "3cac457d-9742-423f-93e1-0f484644c5bf",
        "authority": "ratings:9080",
        "upstream_host": "10.244.0.9:9080",
        "upstream_cluster": "outbound|9080||ratings.shop.svc.cluster.local",
        "upstream_local_address": "10.244.0.6:51086",
        "downstream_local_address": "10.96.220.46:9080",
        "downstream_remote_address": "10.244.0.6:52024",
        "requested_server_name": "outbound_.9080_._.ratings",
        "route_name": "default",
    }
    ours, theirs = (pd.Series(_row(line)).fillna("-") for line in (json.dumps(document), LINE))
    assert ours.to_dict() == theirs.to_dict()


def test_a_format_of_the_mesh_is_read_when_it_can_be() -> None:
    read = access_log_reader("%START_TIME(%s)% | %RESPONSE_CODE% | %REQ(:PATH)% | %REQ(X-OWN)%\n")
    assert read("1700000000 | 404 | /a | x y") == {
        "start_time": "1700000000",
        "response_code": "404",
        "path": "/a",
    }
    assert read(LINE) is not None  # Istio's own format is still read
    assert read("2026-11-23T02:57:18.333Z\twarn\tno request at all") is None


def test_a_json_format_of_the_mesh_is_read_by_its_operators() -> None:
    read = access_log_reader('{"code": "%RESPONSE_CODE%", "to": "%UPSTREAM_CLUSTER%", "x": "y"}')
    assert read('{"code": 200, "to": "inbound|80||", "x": "y"}') == {
        "response_code": 200,
        "cluster": "inbound|80||",
    }


@pytest.mark.parametrize("custom", ["%RESPONSE_CODE%%DURATION%", "no operator", "{", "{}", "%%"])
def test_a_format_that_cannot_be_read_back_leaves_istios_own(custom: str) -> None:
    read = access_log_reader(custom)
    assert read(LINE) is not None
    assert read("503 7") is None


def test_the_default_format_is_no_custom_format() -> None:
    assert access_log_reader(DEFAULT_FORMAT + "\n") == access_log_reader()


@pytest.mark.parametrize(
    ("line", "level", "scope", "message"),
    [
        ("2026-11-23T02:50:24.141805Z\twarn\tno scope here", "warn", "default", "no scope here"),
        (
            "2026-11-23T02:50:24.141805Z\tinfo\tads\tADS: new connection for node:1",
            "info",
            "ads",
            "ADS: new connection for node:1",
        ),
        (
            "2026-11-23T02:50:24Z\tinfo\tstarted it all\tin=3ms",
            "info",
            "default",
            "started it all\tin=3ms",
        ),
        (
            "2026-11-23T02:50:24Z\twarning\tenvoy config source/a/b.cc:153\trejected: x\tthread=15",
            "warn",
            "envoy config",
            "rejected: x",
        ),
        (
            '{"level":"error","time":"2026-11-23T02:50:24Z","scope":"ca","msg":"cannot sign"}',
            "error",
            "ca",
            "cannot sign",
        ),
        (
            "[2026-11-23 02:50:24.141][15][critical][main] [source/server.cc:9] cannot start",
            "critical",
            "envoy main",
            "cannot start",
        ),
        (
            "2026/11/23 02:50:24 INFO memory is not limited",
            "info",
            "default",
            "memory is not limited",
        ),
    ],
)
def test_own_lines_of_every_shape_are_read(line: str, level: str, scope: str, message: str) -> None:
    row = own_line(line)
    moment = parse_time(row.pop("time"))
    assert moment.replace(microsecond=0) == parse_time("2026-11-23T02:50:24Z")
    assert row == {"level": level, "scope": scope, "message": message}


@pytest.mark.parametrize("line", ["panic: runtime error", "{", '{"a": 1}', "a\tb\tc", "[1]"])
def test_a_line_of_unknown_shape_is_all_message(line: str) -> None:
    assert own_line(line) == {"message": line}


def test_lines_keep_their_numbers_and_empty_ones_are_left_out() -> None:
    assert list(own_lines("a\n\n \nb\n\tthread=15\n")) == [(1, "a"), (4, "b")]


def test_each_line_of_a_proxy_is_in_exactly_one_table(recorded: Recorded) -> None:
    for name in ("healthy", "app-resets", "envoyfilter-rejected", "ztunnel-deny"):
        facts = recorded(name)
        requests, own = facts["access_log"], facts["proxy_log"]
        for question in facts.source.questions():
            if isinstance(question, LogQuestion) and question.container == "istio-proxy":
                title = str(question)
                text = facts.answer(question).content
                numbers = [number for number, _ in own_lines(text.decode())]
                lines = [*requests.loc[requests["question"] == title, "line"]]
                lines += [*own.loc[own["question"] == title, "line"]]
                assert sorted(lines) == numbers


def test_requests_of_a_recording_have_a_direction_and_a_workload(recorded: Recorded) -> None:
    requests = recorded("healthy")["access_log"]
    assert set(requests["direction"]) == {"inbound", "outbound"}
    gateways = requests["workload"].str.contains("gateway")
    assert gateways.any()
    assert set(requests.loc[gateways, "direction"]) == {"outbound"}
    inbound = requests[requests["direction"] == "inbound"]
    assert inbound["cluster"].str.startswith("inbound|").all()
    assert (requests["response_code"] == 200).all()
    assert (requests["flags"] == ()).all() or requests["flags"].map(len).eq(0).all()
    assert requests["start_time"].notna().all()


def test_a_connection_that_no_chain_takes_comes_in(recorded: Recorded) -> None:
    """Nothing was chosen, so only the address that was asked for tells the direction."""
    requests = recorded("mtls-client-disable")["access_log"]
    dropped = requests[requests["details"] == "filter_chain_not_found"]
    assert len(dropped) > 0
    assert set(dropped["direction"]) == {"inbound"}
    assert dropped["method"].isna().all()
    assert set(dropped["response_flags"]) == {"NR"}


def test_rejected_configuration_stands_in_the_log_of_the_proxy(recorded: Recorded) -> None:
    log = recorded("envoyfilter-rejected")["proxy_log"]
    rejected = log[log["message"].str.contains("rejected:")]
    assert set(rejected["level"]) == {"warn"}
    assert set(rejected["scope"]) == {"envoy config", "envoy upstream"}
    assert rejected["time"].notna().all()


def test_istiod_says_who_connects(recorded: Recorded) -> None:
    facts = recorded("healthy")
    log = facts["istiod_log"]
    connected = log[(log["scope"] == "ads") & log["message"].str.contains("new connection")]
    assert len(connected) >= len(facts["proxies"])
    assert (log["level"].notna() | log["scope"].isna()).all()
