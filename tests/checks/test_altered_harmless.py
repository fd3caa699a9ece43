"""Harmless things that look like faults, on altered recordings.

What is altered is named in each test.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from tests.alteration import Altered
from tests.checks.test_altered import (
    CHANGED,
    DENIED,
    EARLIER,
    GARBLED,
    NOWHERE,
    RATINGS,
    SINCE,
    STRAY_CONNECTION,
    TIMED_OUT,
    Object,
    assert_blamed,
    assert_harmless,
)


def test_a_service_scaled_to_zero_that_nobody_calls_is_no_problem(healthy: Altered) -> None:
    """Altered: there is a Service, and a Deployment without pods behind it."""
    ports = [{"name": "http", "port": 80, "targetPort": 8080, "protocol": "TCP"}]
    spec = {"selector": {"app": "archive"}, "clusterIP": "10.96.1.1", "ports": ports}
    healthy.add("services", "archive", "bookinfo", EARLIER, spec=spec)
    labels = {"app": "archive"}
    template = {"metadata": {"labels": labels}, "spec": {"containers": []}}
    scaled = {"replicas": 0, "selector": {"matchLabels": labels}, "template": template}
    healthy.add("deployments", "archive", "bookinfo", EARLIER, spec=scaled)

    assert_harmless(healthy, "MNB701")


def test_a_subset_without_pods_that_no_route_uses_is_no_problem(healthy: Altered) -> None:
    """Altered: the DestinationRule of reviews defines a subset for a version to come."""
    subset = {"name": "v9", "labels": {"version": "v9"}}
    healthy.each("destinationrules", "reviews", lambda one: one["spec"]["subsets"].append(subset))

    assert_harmless(healthy, "MNB211")


def test_a_fault_for_testers_only_is_no_problem(healthy: Altered) -> None:
    """Altered: the route for one header value aborts requests; nobody has sent that header."""
    fault = {"abort": {"httpStatus": 500, "percentage": {"value": 100}}}
    healthy.each(
        "virtualservices", "reviews", lambda one: one["spec"]["http"][0].update(fault=fault)
    )
    assert_harmless(healthy, "MNB230")


def test_a_workload_that_was_never_injected_is_no_problem(tmp_path: Path) -> None:
    """Altered: the version with a sidecar never existed; the opt-out was there from the first."""
    altered = Altered("not-injected-annotation", tmp_path)

    def first(items: list[Any]) -> None:
        items[:] = [
            one
            for one in items
            if not one["metadata"]["name"].startswith("details") or one["spec"].get("replicas")
        ]

    altered.objects("replicasets", first)

    assert_harmless(altered, "MNB151")


@pytest.mark.parametrize("times", [1, 2])
def test_a_connection_or_two_that_find_no_filter_chain_are_a_port_scan(
    healthy: Altered, times: int
) -> None:
    """Altered: the sidecar of ratings cut off connections from an unknown address."""
    healthy.request("ratings", "/ratings/0", times, since=SINCE, **STRAY_CONNECTION)

    assert_harmless(healthy)


@pytest.mark.parametrize("times", [1, 12])
def test_requests_for_hosts_that_a_gateway_never_served_are_no_problem(
    healthy: Altered, times: int
) -> None:
    """Altered: somebody outside asks the gateway for its bare address."""
    healthy.request(
        "istio-ingressgateway",
        "/productpage",
        times,
        **NOWHERE,
        authority="203.0.113.7",
        path="/wp-login.php",
        code="404",
        flags="NR",
        details="route_not_found",
        cluster="-",
        route="-",
    )
    assert_harmless(healthy)


@pytest.mark.parametrize(
    ("spec", "details", "code"),
    [
        (
            {
                "action": "DENY",
                "rules": [
                    {"from": [{"source": {"principals": ["cluster.local/ns/bookinfo/sa/default"]}}]}
                ],
            },
            DENIED.format("ns[bookinfo]-policy[readers]-rule[0]"),
            "MNB501",
        ),
        (
            {
                "rules": [
                    {"from": [{"source": {"principals": ["cluster.local/ns/bookinfo/sa/reviews"]}}]}
                ]
            },
            DENIED.format("none"),
            "MNB502",
        ),
    ],
)
def test_a_policy_that_turns_away_whom_it_never_admitted_does_its_work(
    healthy: Altered, spec: Object, details: str, code: str
) -> None:
    """Altered: ratings refuses the client from the first line of its log, and serves reviews."""
    spec = {**RATINGS, **spec}
    healthy.add("authorizationpolicies", "readers", "bookinfo", EARLIER, spec=spec)
    healthy.at_server(
        "ratings:9080", "", caller="10.244.0.10", code="403", details=details, **NOWHERE
    )
    assert_harmless(healthy, code)


def test_a_policy_that_turns_away_whom_it_admitted_before_is_a_problem(healthy: Altered) -> None:
    """Altered: as above, but the client was served until a moment ago."""
    rules = [{"from": [{"source": {"principals": ["cluster.local/ns/bookinfo/sa/reviews"]}}]}]
    spec = {**RATINGS, "rules": rules}
    healthy.add("authorizationpolicies", "readers", "bookinfo", CHANGED, spec=spec)
    details = DENIED.format("none")
    healthy.at_server(
        "ratings:9080", SINCE, caller="10.244.0.10", code="403", details=details, **NOWHERE
    )
    assert_blamed(healthy, "MNB502", "A", "AuthorizationPolicy bookinfo/readers")


def test_an_application_that_has_always_answered_503_on_a_path_means_it(healthy: Altered) -> None:
    """Altered: client and ratings exchange requests for one more path, always answered with 503."""
    healthy.request("client", "/ratings/0", 99, path="/flaky", code="503")
    healthy.request("ratings", "/ratings/0", 99, path="/flaky", code="503")

    assert_harmless(healthy, "MNB712")


def _second_istiod(altered: Altered) -> str:
    name = "istiod-849979b494-zzzzz"

    def twice(items: list[Any]) -> None:
        twin = copy.deepcopy(
            next(one for one in items if one["metadata"]["name"].startswith("istiod-"))
        )
        twin["metadata"]["name"], twin["status"]["podIP"] = name, "10.244.0.77"
        items.append(twin)

    altered.objects("pods", twice)
    altered.disconnect("client.")
    for path in ("/debug/syncz", "/debug/connections"):
        altered.ask({"kind": "http", "path": path}, error="timed out", pod=name)
    return name


def test_a_proxy_may_be_connected_to_the_istiod_that_did_not_answer(healthy: Altered) -> None:
    """Altered: there is a second istiod, which keeps silent; the first does not know the client."""
    name = _second_istiod(healthy)

    unknown = assert_harmless(healthy, verdict="unknown").unknown
    reasons = {outcome.check.code: outcome.because for outcome in unknown}
    assert f"GET istio-system/{name}:15014/debug/syncz: timed out" in reasons["MNB602"]


def test_a_proxy_that_no_istiod_knows_is_disconnected_when_all_have_answered(
    healthy: Altered,
) -> None:
    """Altered: the one istiod does not know the client."""
    healthy.disconnect("client.")

    assert_blamed(healthy, "MNB602", "B", "Pod bookinfo/client")


@pytest.mark.parametrize("number", [80, 8080])
def test_a_gateway_may_name_the_port_of_its_service_or_of_its_pods(
    healthy: Altered, number: int
) -> None:
    """Altered: the Gateway's port is the Service's 80, or the 8080 that this leads to."""
    healthy.each(
        "gateways",
        "bookinfo-gateway",
        lambda one: one["spec"]["servers"][0]["port"].update(number=number),
    )
    assert_harmless(healthy)


def _twice(altered: Altered, *scopes: list[str] | None) -> Altered:
    host = "ratings.bookinfo.svc.cluster.local"
    route = {"route": [{"destination": {"host": host}}]}
    for number, (namespace, scope) in enumerate(zip(("bookinfo", "legacy"), scopes, strict=True)):
        spec: Object = {"hosts": [host], "http": [route]}
        if scope is not None:
            spec["exportTo"] = scope
        at = f"2026-11-23T02:40:0{number}Z"
        altered.add("virtualservices", "ratings", namespace, at, spec=spec)
    return altered


@pytest.mark.parametrize(
    "scopes", [(["."], ["."]), (None, ["."]), (["."], ["*"]), (["bookinfo"], ["legacy"])]
)
def test_two_virtual_services_for_a_host_may_share_the_mesh_by_their_scope(
    healthy: Altered, scopes: tuple[list[str] | None, list[str] | None]
) -> None:
    """Altered: each of two namespaces has a VirtualService for ratings, seen by different ones."""
    assert_harmless(_twice(healthy, *scopes))


def test_the_mesh_may_keep_virtual_services_to_their_namespaces(healthy: Altered) -> None:
    """Altered: the same without exportTo, in a mesh where its default is the own namespace."""
    healthy.pages(lambda page: page.update(defaultVirtualServiceExportTo=["."]), path="/debug/mesh")
    assert_harmless(_twice(healthy, None, None))


@pytest.mark.parametrize(
    "scopes", [(None, None), (["*"], None), (["bookinfo", "legacy"], ["legacy"])]
)
def test_two_virtual_services_for_a_host_where_both_are_seen_are_one_too_many(
    healthy: Altered, scopes: tuple[list[str] | None, list[str] | None]
) -> None:
    """Altered: the same, but the newer one is seen only where the older one is seen, too."""
    assert_blamed(_twice(healthy, *scopes), "MNB221", "A", "VirtualService legacy/ratings")


def test_bytes_that_are_no_http_once_are_an_accident(healthy: Altered) -> None:
    """Altered: one connection to the HTTP port of ratings was garbled."""
    healthy.request("ratings", "/ratings/0", 1, since=SINCE, **GARBLED)

    assert_harmless(healthy, "MNB803")


@pytest.mark.parametrize(
    ("code", "failure"),
    [
        ("MNB713", {"code": "504", "flags": "UT", "details": "response_timeout"}),
        ("MNB714", TIMED_OUT),
    ],
)
def test_a_failure_that_came_once_and_has_passed_is_an_accident(
    healthy: Altered, code: str, failure: dict[str, str]
) -> None:
    """Altered: one request to ratings timed out; the same has succeeded many times since."""
    healthy.request("client", "/ratings/0", 1, since=SINCE, **failure)

    assert_harmless(healthy, code)


def test_an_application_that_ended_one_connection_and_goes_on_is_an_accident(
    healthy: Altered,
) -> None:
    """Altered: the sidecar of ratings lost one request to the application."""
    details = "upstream_reset_before_response_started{connection_termination}"
    healthy.request(
        "ratings", "/ratings/0", 1, since=SINCE, code="503", flags="UC", details=details
    )
    assert_harmless(healthy, "MNB711")


def test_a_pod_that_was_made_a_moment_ago_may_still_start(healthy: Altered) -> None:
    """Altered: the only pod of details was made eight seconds ago and is not ready yet."""

    def young(pod: Object) -> None:
        pod["metadata"]["creationTimestamp"] = "2026-11-23T02:49:10Z"
        for condition in pod["status"]["conditions"]:
            if condition["type"] in ("Ready", "ContainersReady"):
                condition["status"] = "False"
        for status in pod["status"]["containerStatuses"]:
            status["ready"] = False

    healthy.each("pods", "details", young)

    assert_harmless(healthy, "MNB702")
