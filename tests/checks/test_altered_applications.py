"""Checks of applications and of the way to them, on altered recordings.

What is altered is named in each test. Beside each fault stands what looks like it and is none.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from meshnb.diagnosis import diagnose
from tests.alteration import Altered
from tests.checks.test_altered import (
    CHANGED,
    NO_REQUEST,
    NOWHERE,
    REFUSED,
    SILENT,
    SINCE,
    TIMED_OUT,
    problems,
)
from tests.checks.test_altered_mtls import (
    EARLIER,
    OUTSIDE,
    RATINGS_HOST,
    RATINGS_POD,
    RESET,
    Object,
    assert_blamed,
    assert_first,
    assert_harmless,
)
from tests.checks.test_altered_protocols import only_port


def _ratings_container(altered: Altered, **status: Any) -> Altered:
    def change(pod: Object) -> None:
        for one in pod["status"]["containerStatuses"]:
            if one["name"] == "ratings":
                one.update(status)

    return altered.each("pods", "ratings", change)


def test_connections_that_break_now_and_then_are_idle_ones(healthy: Altered) -> None:
    """Altered: some requests to ratings, seconds apart, meet a connection that is being closed."""
    seen: list[str] = []

    def now_and_then(line: Any) -> list[Any]:
        chosen = line.inbound and line.path == "/ratings/0" and line.time >= SINCE
        seen.append(line.time) if chosen else None
        return [line._replace(**RESET) if chosen and len(seen) % 5 == 1 else line]

    healthy.lines("ratings", now_and_then)
    diagnosis = assert_blamed(healthy, "MNB711", "C", "Deployment bookinfo/ratings-v1")
    assert "idle time-out" in diagnosis.problems[0].finding.message


def test_connections_that_break_very_rarely_are_everyday(healthy: Altered) -> None:
    """Altered: ratings serves a thousand requests, and three are lost."""
    for _ in range(5):
        healthy.request("ratings", "/ratings/0", 9999)
    healthy.request("ratings", "/ratings/0", 3, since=SINCE, **RESET)
    assert_harmless(healthy, "MNB711")


def test_an_application_that_was_killed_meanwhile_is_named_with_the_reason(
    healthy: Altered,
) -> None:
    """Altered: the container of ratings was killed for its memory while requests were open."""
    ended = {"terminated": {"reason": "OOMKilled", "exitCode": 137, "finishedAt": CHANGED}}
    _ratings_container(healthy, restartCount=1, lastState=ended)
    healthy.request("ratings", "/ratings/0", 4, since="2026-11-23T02:48:46", **RESET)
    diagnosis = assert_blamed(healthy, "MNB711", "C", "Deployment bookinfo/ratings-v1")
    assert "OOMKilled, exit code 137" in diagnosis.problems[0].finding.message


def test_an_application_outside_the_mesh_that_ends_connections_is_named(tmp_path: Path) -> None:
    """Altered: details has no sidecar, and ends its callers' connections."""
    altered = Altered("not-injected-annotation", tmp_path)
    altered.at_client("details:9080", "2026-11-23T03:14:08", **RESET)
    assert_first(altered, "MNB830", "C", "Deployment bookinfo/details-v1")


def test_an_external_host_that_ends_connections_is_named(healthy: Altered) -> None:
    """Altered: a host of a ServiceEntry ends connections before it answers."""
    spec = {**OUTSIDE, "ports": [{"number": 80, "name": "http", "protocol": "HTTP"}]}
    healthy.add("serviceentries", "partner", "bookinfo", EARLIER, spec=spec)
    line = {
        **RESET,
        "authority": "api.example.org",
        "cluster": "outbound|80||api.example.org",
        "endpoint": "203.0.113.9:80",
        "local": "203.0.113.9:80",
    }
    healthy.request("client", "/ratings/0", since=SINCE, **line)
    assert_blamed(healthy, "MNB830", "C", "ServiceEntry bookinfo/partner")


def test_an_application_whose_failures_are_tried_again_is_named(healthy: Altered) -> None:
    """Altered: ratings answers 503 to each try, and the callers' retries are used up."""
    healthy.at_server("ratings:9080", SINCE, code="503")
    healthy.lines(
        "",
        lambda line: [
            line._replace(flags="URX")
            if line.authority == "ratings:9080" and line.code == "503" and not line.inbound
            else line
        ],
    )
    assert_blamed(healthy, "MNB712", "C", "Deployment bookinfo/ratings-v1")


def test_a_limit_of_the_route_on_the_whole_stream_is_a_time_out_too(healthy: Altered) -> None:
    """Altered: callers of ratings end requests with max_duration_timeout."""
    line = {"code": "504", "details": "max_duration_timeout", "duration": "1000", **SILENT}
    healthy.at_client("ratings:9080", SINCE, **line)
    assert_blamed(healthy, "MNB713", "C", "Deployment bookinfo/ratings-v1")


def test_a_server_that_logs_nothing_is_named_as_a_guess(healthy: Altered) -> None:
    """Altered: ratings answers 503, and its proxy wrote no access log."""
    healthy.at_server("ratings:9080", SINCE, code="503")
    healthy.lines("ratings", lambda _: [])
    diagnosis = diagnose(healthy.facts())
    assert problems(diagnosis)[0] == ("MNB835", "C", "Deployment bookinfo/ratings-v1")
    assert diagnosis.problems[0].finding.certainty < 0.5


def test_clients_that_leave_a_stream_are_no_problem(healthy: Altered) -> None:
    """Altered: streams from ratings, whose answer has begun, are left after three seconds."""
    line = {**LEFT, "code": "200", "duration": "3001"}
    healthy.request("ratings", "/ratings/0", 9, since=SINCE, **line)
    assert problems(diagnose(healthy.facts())) == []


LEFT = {"code": "0", "flags": "DC", "details": "downstream_remote_disconnect"}


def test_clients_that_all_leave_after_the_same_time_have_a_time_out(healthy: Altered) -> None:
    """Altered: requests to ratings are given up after three seconds."""
    healthy.at_server("ratings:9080", SINCE, **LEFT, duration="3001")
    assert_first(healthy, "MNB834", "C", "Deployment bookinfo/ratings-v1")


def test_clients_that_leave_now_and_then_are_no_problem(healthy: Altered) -> None:
    """Altered: three clients of ratings leave, each after another time."""
    for duration in ("20", "1500", "9000"):
        healthy.request("ratings", "/ratings/0", 1, since=SINCE, **LEFT, duration=duration)
    assert problems(diagnose(healthy.facts())) == []


def _container_port(altered: Altered, number: int, name: str = "ratings") -> Altered:
    def change(pod: Object) -> None:
        for container in pod["spec"]["containers"]:
            if container["name"] == "ratings":
                container["ports"] = [{"containerPort": number, "name": name}]

    return altered.each("pods", "ratings", change)


def test_a_port_of_istio_that_an_application_uses_is_found(healthy: Altered) -> None:
    """Altered: the container of ratings declares port 15090; then it cannot start."""
    _container_port(healthy, 15090)
    assert_blamed(healthy, "MNB831", "C", "Deployment bookinfo/ratings-v1")


def test_a_service_that_sends_to_a_port_that_no_container_declares_is_wrong(
    healthy: Altered,
) -> None:
    """Altered: ratings' Service sends to 9999; its container declares 9080."""
    only_port(healthy, "ratings", targetPort=9999)
    refused = {
        **REFUSED,
        "flags": "UF",
        "cluster": "inbound|9999||",
        "local": f"{RATINGS_POD}:9999",
    }
    healthy.at_server("ratings:9080", SINCE, **refused)
    assert_blamed(healthy, "MNB710", "C", "Service bookinfo/ratings")


@pytest.mark.parametrize(("name", "found"), [("web", False), ("wbe", True)])
def test_a_service_that_sends_to_a_port_by_its_name_finds_it(
    healthy: Altered, name: str, found: bool
) -> None:
    """Altered: ratings' Service sends to the port named web, which its container has or has not."""
    only_port(healthy, "ratings", targetPort="web")
    _container_port(healthy, 9080, name)
    if not found:
        assert_harmless(healthy)
        return
    none = {"code": "503", "flags": "UH", "details": "no_healthy_upstream", **NOWHERE}
    healthy.at_client("ratings:9080", SINCE, **none)
    assert_first(healthy, "MNB832", "C", "Service bookinfo/ratings")


def _killed(altered: Altered, when: str) -> Altered:
    return altered.add(
        "events",
        "ratings-v1-589dc858f-old.1",
        "bookinfo",
        when,
        type="Normal",
        reason="Killing",
        message="Stopping container ratings",
        involvedObject={"kind": "Pod", "namespace": "bookinfo", "name": "ratings-v1-589dc858f-old"},
        firstTimestamp=when,
        lastTimestamp=when,
        count=1,
    )


GONE = {**REFUSED, "endpoint": "10.244.0.98:9080"}


def test_requests_that_fail_while_a_pod_ends_are_the_workloads_matter(healthy: Altered) -> None:
    """Altered: a pod of ratings was ended, and callers went on to use it."""
    _killed(healthy, CHANGED).request("client", "/ratings/0", 6, since=SINCE, **GONE)
    assert_first(healthy, "MNB833", "C", "Deployment bookinfo/ratings-v1")


def test_a_request_or_two_that_fail_while_a_pod_ends_are_no_problem(healthy: Altered) -> None:
    """Altered: the same with two requests, and the others go on."""
    _killed(healthy, CHANGED).request("client", "/ratings/0", 2, since=SINCE, **GONE)
    assert problems(diagnose(healthy.facts())) == []


def _walls(altered: Altered, name: str, *rules: Object, direction: str = "Ingress") -> Altered:
    app = "ratings" if direction == "Ingress" else "client"
    spec = {
        "podSelector": {"matchLabels": {"app": app}},
        "policyTypes": [direction],
        direction.lower(): list(rules),
    }
    return altered.add("networkpolicies", name, "bookinfo", CHANGED, spec=spec)


@pytest.mark.parametrize(
    ("rule", "admits"),
    [
        ({}, True),
        ({"from": [{"podSelector": {}}], "ports": [{"port": 9080}]}, True),
        ({"from": [{"podSelector": {}}], "ports": [{"port": 9090}]}, False),
        ({"from": [{"namespaceSelector": {"matchLabels": {"team": "x"}}}]}, False),
        ({"from": [{"ipBlock": {"cidr": "10.244.0.0/16"}}]}, True),
    ],
)
def test_a_network_policy_is_blamed_only_when_none_admits_the_connection(
    healthy: Altered, rule: Object, admits: bool
) -> None:
    """Altered: ratings denies everything by one NetworkPolicy, and admits something by another."""
    _walls(healthy, "deny")
    _walls(healthy, "allow", rule)
    healthy.at_client("ratings:9080", SINCE, **TIMED_OUT)
    first = diagnose(healthy.facts()).problems[0]
    assert first.check.code == "MNB714"
    assert (first.subject.kind == "Deployment") is admits


def test_a_bare_connection_that_is_never_accepted_times_out_too(healthy: Altered) -> None:
    """Altered: connections to a port of ratings for TCP end after ten seconds without a word."""
    _walls(healthy, "deny")
    line = {
        **NO_REQUEST,
        **SILENT,
        "protocol": "-",
        "code": "0",
        "flags": "UF,URX",
        "details": "-",
        "duration": "10003",
        "cluster": f"outbound|9080||{RATINGS_HOST}",
    }
    healthy.request("client", "/ratings/0", since=SINCE, **line)
    assert_blamed(healthy, "MNB714", "C", "NetworkPolicy bookinfo/deny")
