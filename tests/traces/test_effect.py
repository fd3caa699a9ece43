"""What an object made of itself in proxies, when it says something else than they hold."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from meshnb.traces.change import follow_change
from tests.alteration import Altered
from tests.conftest import facts_of
from tests.traces.following import (
    DUMP,
    EARLIER,
    HELD,
    Change,
    listed,
    made,
    pod_of,
    sections,
    stopped,
    weights,
)


@pytest.fixture
def healthy(tmp_path: Path) -> Altered:
    """Return the recording of a healthy mesh, to be altered."""
    return Altered("healthy", tmp_path)


DIFFERING: dict[str, tuple[str, str, Change, str]] = {
    "another weight": (
        "virtualservices", "VirtualService/bookinfo/reviews",
        weights(70, 30, EARLIER), "v1: 70, v2: 30",
    ),
    "another header": (
        "virtualservices", "VirtualService/bookinfo/reviews",
        lambda one: one["spec"]["http"][0]["match"][0]["headers"]["end-user"].update(exact="mary"),
        "does not match on the header end-user=mary",
    ),
    "another path": (
        "virtualservices", "VirtualService/bookinfo/bookinfo",
        lambda one: one["spec"]["http"][0]["match"][0]["uri"].update(exact="/shelf"), "/shelf",
    ),
    "a timeout": (
        "virtualservices", "VirtualService/bookinfo/reviews",
        lambda one: one["spec"]["http"][1].update(timeout="1m30s"), "not 90000 ms",
    ),
    "a fault": (
        "virtualservices", "VirtualService/bookinfo/reviews",
        lambda one: one["spec"]["http"][1].update(fault={"abort": {"httpStatus": 500}}),
        "injects no fault",
    ),
    "another destination": (
        "virtualservices", "VirtualService/bookinfo/bookinfo",
        lambda one: one["spec"]["http"][0]["route"][0]["destination"].update(host="reviews"),
        "leads to productpage.bookinfo.svc.cluster.local and not to reviews",
    ),
    "one route more": (
        "virtualservices", "VirtualService/bookinfo/reviews",
        lambda one: one["spec"]["http"].insert(0, copy.deepcopy(one["spec"]["http"][0])),
        "there are 2 of them and should be 3",
    ),
    "one subset more": (
        "destinationrules", "DestinationRule/bookinfo/reviews",
        lambda one: one["spec"]["subsets"].append({"name": "v3", "labels": {"version": "v1"}}),
        "not for subset v3",
    ),
    "one subset fewer": (
        "destinationrules", "DestinationRule/bookinfo/reviews",
        lambda one: one["spec"]["subsets"].pop(), "also for subset v2",
    ),
    "a TLS mode": (
        "destinationrules", "DestinationRule/bookinfo/reviews",
        lambda one: one["spec"].update(trafficPolicy={"tls": {"mode": "SIMPLE"}}),
        "and not SIMPLE",
    ),
    "a limit": (
        "destinationrules", "DestinationRule/bookinfo/reviews",
        lambda one: one["spec"].update(
            trafficPolicy={"connectionPool": {"tcp": {"maxConnections": 7}}}
        ),
        "and not 7",
    ),
    "outlier detection": (
        "destinationrules", "DestinationRule/bookinfo/reviews",
        lambda one: one["spec"].update(trafficPolicy={"outlierDetection": {"interval": "1s"}}),
        "no outlier detection",
    ),
    "another port": (
        "gateways", "Gateway/bookinfo/bookinfo-gateway",
        lambda one: one["spec"]["servers"][0]["port"].update(number=9999),
        "does not listen on port 9999",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", DIFFERING)
def test_a_proxy_that_has_something_else_is_told_in_what(case: str, healthy: Altered) -> None:
    """Altered: the object says so, since long before the last push, and no proxy has it."""
    resource, subject, change, words = DIFFERING[case]

    def change_early(one: Any) -> None:
        change(one)
        for entry in one["metadata"]["managedFields"]:
            entry["time"] = EARLIER

    healthy.each(resource, subject.rpartition("/")[2], change_early)
    trace = follow_change(healthy.facts(), subject)
    assert stopped(trace) == "active", trace.answer
    assert words in trace.answer


@pytest.mark.parametrize(
    ("recording", "resource", "subject", "change", "words"),
    [
        (
            "authz-deny-named", "authorizationpolicies",
            "AuthorizationPolicy/bookinfo/no-strangers",
            lambda one: one["spec"].update(action="ALLOW"), "it is DENY there and not ALLOW",
        ),
        (
            "authz-deny-named", "authorizationpolicies",
            "AuthorizationPolicy/bookinfo/no-strangers",
            lambda one: one["spec"]["rules"].append({}), "rule 1 is not there",
        ),
        (
            "authz-deny-named", "authorizationpolicies",
            "AuthorizationPolicy/bookinfo/no-strangers",
            lambda one: one["spec"].update(rules=[]), "DENY without rules matches nothing",
        ),
        (
            "mtls-strict-legacy-client", "peerauthentications",
            "PeerAuthentication/bookinfo/default",
            lambda one: one["spec"]["mtls"].update(mode="PERMISSIVE"), "STRICT and not PERMISSIVE",
        ),
        (
            "ztunnel-deny", "authorizationpolicies", "AuthorizationPolicy/garden/seeds-callers",
            lambda one: one["spec"].update(action="DENY"), "it is Allow there and not Deny",
        ),
        (
            "market-healthy", "httproutes", "HTTPRoute/market/stall",
            lambda one: one["spec"]["rules"].append({"backendRefs": [{"name": "stall"}]}),
            "rule 1 is not among them",
        ),
        (
            "market-healthy", "httproutes", "HTTPRoute/market/stall",
            lambda one: one["spec"]["rules"][0]["backendRefs"][0].update(name="shop"),
            "leads to stall.market.svc.cluster.local",
        ),
        (
            "sidecar-hides-host", "sidecars", "Sidecar/bookinfo/default",
            lambda one: one["spec"].update(egress=[{"hosts": ["a/*"]}]), "it still has clusters",
        ),
        (
            "app-slow", "virtualservices", "VirtualService/bookinfo/ratings",
            lambda one: one["spec"]["http"][0].update(timeout="2s"), "not 2000 ms",
        ),
    ],
)  # fmt: skip
def test_what_is_in_force_is_compared_with_what_is_written(
    recording: str, resource: str, subject: str, change: Change, words: str, tmp_path: Path
) -> None:
    """Altered: the object says something else than when it was sent."""
    altered = Altered(recording, tmp_path, delivered=False)
    altered.each(resource, subject.rpartition("/")[2], change)
    trace = follow_change(altered.facts(), subject)
    assert stopped(trace) == "active", trace.answer
    assert words in trace.answer


def test_a_certificate_that_has_not_come_keeps_a_gateway_from_serving() -> None:
    """Read without what checks say of the object as it is written."""
    trace = follow_change(facts_of("gateway-secret-missing"), "Gateway/bookinfo/bookinfo-tls")
    assert stopped(trace) == "active"
    assert "it has not got the certificate bookinfo-cert" in trace.answer


def test_a_patch_that_is_not_there_is_told(tmp_path: Path) -> None:
    """Altered: the EnvoyFilter's limit is another one than when it was sent."""
    altered = Altered("rate-limited", tmp_path)

    def change(page: Any) -> None:
        for one in page:
            if one["kind"] == "EnvoyFilter":
                value = one["spec"]["configPatches"][0]["patch"]["value"]
                value["typed_config"]["stat_prefix"] = "another_one"

    altered.pages(change, **HELD)
    trace = follow_change(altered.facts(), "EnvoyFilter/bookinfo/details-ratelimit")
    assert stopped(trace) == "active"
    assert "nothing of what configPatches[0] adds is there" in trace.answer


def test_what_leaves_no_trace_in_envoy_is_not_decided(healthy: Altered) -> None:
    """Altered: a Telemetry was added long ago."""
    listed(healthy, "telemetries")
    added = made("Telemetry", "bookinfo", {"spec": {"accessLogging": [{}]}})
    healthy.objects("telemetries", lambda items: items.append(added))
    trace = follow_change(healthy.facts(), "Telemetry/bookinfo/added")
    assert trace["active"].outcome == "undecided"
    assert "leaves no name in Envoy's configuration" in trace["active"].says


def test_a_proxy_config_needs_a_new_pod(healthy: Altered) -> None:
    """Altered: a ProxyConfig was added after the pods were made."""
    listed(healthy, "proxyconfigs")
    added = made("ProxyConfig", "bookinfo", {"spec": {"concurrency": 1}}, "2026-11-23T02:48:00Z")
    added["apiVersion"] = "networking.istio.io/v1beta1"
    healthy.objects("proxyconfigs", lambda items: items.append(added))
    healthy.pages(lambda page: page.append(added), **HELD)
    trace = follow_change(healthy.facts(), "ProxyConfig/bookinfo/added")
    assert "takes it when it is made anew" in trace.answer


def test_a_proxy_that_did_not_answer_is_not_judged(healthy: Altered) -> None:
    """Altered: one proxy gave no config dump."""
    healthy.silence("timeout", kind="http", pod="client", **DUMP)
    trace = follow_change(healthy.facts(), "VirtualService/bookinfo/reviews")
    client = next(one for one in trace["active"].standings if one.who == "client.bookinfo")
    assert (stopped(trace), client.outcome) == ("", "undecided")
    assert "it did not say what it holds" in client.says


# --- What is well, and looks odd ----------------------------------------------------------------


def _of_reviews(dump: Any) -> Any:
    for entry in sections(dump, "RoutesConfigDump")["dynamic_route_configs"]:
        for host in entry["route_config"]["virtual_hosts"]:
            if host["name"].startswith(("reviews.", "bookinfo.example.com")):
                yield host


def _twice(dump: Any) -> None:
    for host in _of_reviews(dump):
        host["routes"] *= 2


def _without_clusters(dump: Any) -> None:
    section = sections(dump, "ClustersConfigDump")
    section["dynamic_active_clusters"] = [
        one for one in section["dynamic_active_clusters"] if "reviews" not in str(one["cluster"])
    ]


def test_a_gateway_may_have_the_routes_once_for_each_of_its_servers(healthy: Altered) -> None:
    """Altered: the gateway's virtual host has each route twice."""
    healthy.pages(_twice, pod=pod_of(healthy, "istio-ingressgateway"), **DUMP)
    trace = follow_change(healthy.facts(), "VirtualService/bookinfo/bookinfo")
    assert (stopped(trace), trace["active"].outcome) == ("", "passed")


@pytest.mark.parametrize(
    "subject", ["DestinationRule/bookinfo/reviews", "Service/bookinfo/reviews"]
)
def test_a_gateway_need_not_have_clusters_that_no_route_leads_to(
    subject: str, healthy: Altered
) -> None:
    """Altered: the gateway has no cluster for reviews, to which it has no route either."""
    healthy.pages(_without_clusters, pod=pod_of(healthy, "istio-ingressgateway"), **DUMP)
    assert stopped(follow_change(healthy.facts(), subject)) == ""


def test_a_sidecar_without_the_cluster_is_told(healthy: Altered) -> None:
    """Altered: a sidecar has no cluster for reviews."""
    healthy.pages(_without_clusters, pod="client", **DUMP)
    trace = follow_change(healthy.facts(), "Service/bookinfo/reviews")
    assert stopped(trace) == "active"
    assert "client.bookinfo" in trace.answer


def test_a_regular_expression_is_compared_as_it_is_written(healthy: Altered) -> None:
    """Altered: the header is matched by an expression with a backslash, here and there."""
    expression = r"ja\w+"

    def change(dump: Any) -> None:
        for host in _of_reviews(dump):
            for header in host["routes"][0]["match"].get("headers", []):
                header["string_match"] = {"safe_regex": {"regex": expression}}

    healthy.each(
        "virtualservices", "reviews",
        lambda one: one["spec"]["http"][0]["match"][0].update(
            headers={"end-user": {"regex": expression}}
        ),
    )  # fmt: skip
    for pod in ("client", "productpage", "details", "ratings", "reviews-v1", "reviews-v2"):
        healthy.pages(change, pod=pod_of(healthy, pod), **DUMP)
    assert stopped(follow_change(healthy.facts(), "VirtualService/bookinfo/reviews")) == ""


def test_routes_for_callers_with_labels_concern_only_these(healthy: Altered) -> None:
    """Altered: a first route is for callers with a label that no pod has."""
    first = {"match": [{"sourceLabels": {"app": "nobody"}}],
             "route": [{"destination": {"host": "ratings"}}]}  # fmt: skip
    healthy.each("virtualservices", "reviews", lambda one: one["spec"]["http"].insert(0, first))
    assert stopped(follow_change(healthy.facts(), "VirtualService/bookinfo/reviews")) == ""


def test_a_service_for_another_name_is_not_judged(healthy: Altered) -> None:
    """Altered: a Service of type ExternalName was added."""
    spec = {"type": "ExternalName", "externalName": "example.com", "ports": [{"port": 80}]}
    healthy.add("services", "elsewhere", "bookinfo", EARLIER, spec=spec)
    trace = follow_change(healthy.facts(), "Service/bookinfo/elsewhere")
    assert (stopped(trace), trace["active"].outcome) == ("", "undecided")


@pytest.mark.parametrize("capitals", [False, True])
def test_a_patch_may_be_written_with_capitals(capitals: bool, tmp_path: Path) -> None:
    """Altered: the fields of the EnvoyFilter are written as protobuf's JSON has them."""
    altered = Altered("rate-limited", tmp_path)

    def change(page: Any) -> None:
        for one in page:
            if capitals and one["kind"] == "EnvoyFilter":
                value = one["spec"]["configPatches"][0]["patch"]["value"]["typed_config"]
                value["tokenBucket"] = {"maxTokens": 1, "tokensPerFill": 1, "fillInterval": "60.0s"}
                del value["token_bucket"]

    altered.pages(change, **HELD)
    trace = follow_change(altered.facts(), "EnvoyFilter/bookinfo/details-ratelimit")
    assert (stopped(trace), trace["active"].outcome) == ("", "passed"), trace.answer
