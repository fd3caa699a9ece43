"""A request is followed from client to application, and agrees with what happened."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from meshnb.errors import UsageError
from meshnb.tables import Facts
from meshnb.traces.following.follow import Follower
from meshnb.traces.request import Request, RequestTrace, follow_request, requests_of
from tests.alteration import Altered, Line
from tests.conftest import facts_of, recording_names
from tests.traces.request_agreement import Agreement, agreement


def _followed(name: str, words: str) -> RequestTrace:
    facts = facts_of(name)
    return follow_request(facts, Request.parse(facts, words))


# --- What happened -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def agreements() -> list[Agreement]:
    return [agreement(name, facts_of(name)) for name in recording_names()]


def test_no_line_of_any_access_log_contradicts_its_trace(agreements: list[Agreement]) -> None:
    wrong = [
        (one.name, line["proxy"], line["line"], trace.says)
        for one in agreements
        for line, trace in one.wrong
    ]
    assert not wrong


def test_most_lines_are_decided(agreements: list[Agreement]) -> None:
    lines = sum(one.lines for one in agreements)
    assert lines > 12_000
    assert sum(one.decided for one in agreements) / lines > 0.93
    # Of most there is one way only that they can end.
    assert sum(one.certain for one in agreements) / lines > 0.78


def test_what_is_not_decided_is_so_because_of_time_or_of_what_nobody_recorded(
    agreements: list[Agreement],
) -> None:
    reasons = {reason for one in agreements for reason in one.undecided}
    known = r"changed since|may be older|no pod of the mesh|the log has a connection"
    assert [reason for reason in reasons if not re.search(known, reason)] == []


def test_a_trace_takes_nothing_from_the_result_of_a_line(tmp_path: Path) -> None:
    def other_result(line: Line) -> list[Line]:
        changed = line._replace(
            code="418", flags="UH", details="nonsense", duration="1", service_time="2", route="x"
        )
        changed = changed._replace(cluster="outbound|1||x")
        # Where a gateway sent it says who the peer of the next proxy is.
        sent = {"endpoint": "9.9.9.9:9", "own": "9.9.9.9:8"} if line.forwarded == "-" else {}
        return [changed._replace(**sent)]

    altered = Altered("healthy", tmp_path).lines("", other_result).facts()
    assert requests_of(altered) == requests_of(facts_of("healthy"))


# --- Which way it goes ---------------------------------------------------------------------------


def test_a_header_decides_the_route() -> None:
    trace = _followed(
        "healthy", "GET /reviews/0 with header end-user: jason from client to reviews:9080"
    )
    assert trace.predicted.clusters == ("outbound|9080|v2|reviews.bookinfo.svc.cluster.local",)
    route = next(hop for hop in trace.hops if hop.stage == "route")
    assert route.object == "VirtualService bookinfo/reviews"
    assert route.table == "routes"
    assert route.row is not None
    row = facts_of("healthy")["routes"].iloc[route.row]
    assert (row["proxy"], row["name"], row["position"]) == ("client.bookinfo", "9080", 0)


def test_without_the_header_the_next_route_is_taken_which_divides_by_weight() -> None:
    trace = _followed("healthy", "GET /reviews/0 from client to reviews:9080")
    assert {str(one)[13:17] for one in trace.predicted.clusters} == {"|v1|", "|v2|"}
    route = next(hop for hop in trace.hops if hop.stage == "route")
    assert route.passed_over == (("route 0 (/*)", "wanted: header end-user is jason"),)
    assert any("80%" in hop.when for hop in trace.hops)
    assert not trace.undecided  # chance is no doubt


def test_a_line_does_not_show_all_headers_so_both_routes_may_be_taken() -> None:
    facts = facts_of("healthy")
    log = facts["access_log"]
    row = log.index[(log["path"] == "/reviews/0") & (log["direction"] == "outbound")][0]
    trace = follow_request(facts, Request.of_line(facts, int(row)))
    assert next(hop.outcome for hop in trace.hops if hop.stage == "route") == "undecided"
    assert any("end-user is not known" in reason for reason in trace.undecided)


def test_a_request_of_before_a_change_is_not_judged_by_what_is_there_now() -> None:
    facts = facts_of("fault-left-behind")
    request = Request.parse(facts, "GET /ratings/0 from client to ratings:9080")
    follower = Follower(facts)
    since = follower.follow(request).outcomes[0].routed_since
    assert since is not None
    trace = follower.follow(replace(request, time=since - timedelta(seconds=1)))
    assert [one.known for one in trace.outcomes] == [False]
    assert trace.undecided[-1] == "the configuration was changed since"


# --- Where it ends -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "words", "stage", "code", "flags", "object_"),
    [
        (
            *("authz-principal-typo", "GET /details/0 from client to details:9080"),
            *("policy", 403, (), "AuthorizationPolicy bookinfo/details-readers"),
        ),
        (
            *("mtls-client-disable", "GET /ratings/0 from client to ratings:9080"),
            *("filter chain", 503, ("UC",), "PeerAuthentication bookinfo/default"),
        ),
        (
            *("route-host-unknown", "GET /ratings/0 from client to ratings:9080"),
            *("cluster", 503, ("NC",), ""),
        ),
        (
            *(
                "gateway-hosts-disjoint",
                "/productpage from istio-ingressgateway to bookinfo.example.com",
            ),
            *("route", 404, ("NR",), ""),
        ),
        (
            *("service-selector-wrong", "GET /details/0 from client to details:9080"),
            *("endpoints", 503, ("UH",), ""),
        ),
        (
            *("sidecar-hides-host", "GET /ratings/0 from client to ratings:9080"),
            *("route action", 502, (), ""),
        ),
        (
            *("backend-not-permitted", "/fruit from market-gw-istio to market.example.com"),
            *("cluster", 500, ("NC",), ""),
        ),
    ],
)
def test_a_broken_request_ends_at_the_hop_that_breaks_it(
    name: str, words: str, stage: str, code: int, flags: tuple[str, ...], object_: str
) -> None:
    trace = _followed(name, words)
    assert trace.stopped is not None, trace.says
    assert (trace.stopped.stage, trace.stopped.object) == (stage, object_)
    assert trace.predicted.codes == (code,)
    assert trace.predicted.flags == (flags,)


def test_the_nearest_rule_is_told_with_what_it_wants() -> None:
    trace = _followed("authz-principal-typo", "GET /details/0 from client to details:9080")
    assert trace.stopped is not None
    assert "sa/product-page, but it is cluster.local/ns/bookinfo/sa/default" in trace.stopped.says
    assert trace.stopped.table == "rbac_rules"
    assert trace.stopped.row is not None


def test_a_healthy_request_gets_to_the_application_which_answers_as_it_likes() -> None:
    trace = _followed("healthy", "GET /details/0 from client to details:9080")
    assert trace.stopped is None
    assert trace.predicted.by == ("application",)
    assert trace.hops[-1].stage == "application"
    assert trace.predicted.endpoints == ("10.244.0.4:9080",)


def test_a_fault_for_half_of_the_requests_leaves_two_ends() -> None:
    trace = _followed("fault-left-behind", "GET /ratings/0 from client to ratings:9080")
    assert trace.predicted.by == ("client.bookinfo", "application")
    assert trace.predicted.flags[0] == ("FI",)


def test_a_client_without_a_proxy_speaks_plain_text() -> None:
    trace = _followed(
        "mtls-strict-legacy-client",
        "GET /ratings/0 from legacy/legacy-client to ratings.bookinfo:9080",
    )
    assert trace.stopped is not None
    assert trace.predicted.details == ("filter_chain_not_found",)


def test_a_request_in_the_ambient_mesh_goes_through_ztunnel() -> None:
    trace = _followed("ztunnel-deny", "GET / from garden/web to seeds:8000")
    assert trace.stopped is not None
    assert trace.stopped.object.startswith("AuthorizationPolicy")


def test_every_hop_cites_a_row_that_is_there() -> None:
    facts = facts_of("healthy")
    trace = _followed("healthy", "GET /details/0 from client to details:9080")
    cited = [hop for hop in trace.hops if hop.table]
    assert len(cited) > 8
    for hop in cited:
        assert hop.row is not None, hop
        assert 0 <= hop.row < len(facts[hop.table])


def test_a_trace_is_an_object_and_a_frame() -> None:
    trace = _followed("healthy", "GET /details/0 from client to details:9080")
    assert json.loads(json.dumps(trace.to_json()))["predicted"]["by"] == ["application"]
    frame = trace.frame()
    assert frame["stage"].tolist() == [hop.stage for hop in trace.hops]


# --- Words ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ("GET /x from clint to details:9080", "Did you mean client"),
        ("GET /x from client to detials:9080", "Did you mean details?"),
        ("GET /x to details:9080", "not said from where"),
        ("GET /x from client", "not said where the request goes to"),
        ("GET /x with header nonsense from client to details:9080", "is no header"),
        ("GET /x from client to details:http", "'http' is no port"),
    ],
)
def test_words_that_mean_nothing_are_told_with_the_nearest(words: str, error: str) -> None:
    with pytest.raises(UsageError, match=re.escape(error)):
        Request.parse(facts_of("healthy"), words)


def test_words_name_method_headers_and_destination() -> None:
    request = Request.parse(
        facts_of("healthy"),
        "POST http://reviews:9080/reviews/1?q=2 with header A: b and header c: d"
        " from bookinfo/client",
    )
    assert (request.method, request.path, request.authority) == (
        "POST",
        "/reviews/1?q=2",
        "reviews:9080",
    )
    assert request.headers == (("a", "b"), ("c", "d"))
    assert (request.proxy, request.address, request.port) == (
        "client.bookinfo",
        "10.96.195.7",
        9080,
    )


def test_a_row_that_is_not_there_is_an_error() -> None:
    facts: Facts = facts_of("healthy")
    with pytest.raises(UsageError, match="has no row"):
        Request.of_line(facts, 100_000)
