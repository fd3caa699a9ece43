"""Checks of protocols, on altered recordings.

What is altered is named in each test. Beside each fault stands what looks like it and is none.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from meshnb.checks import Severity
from meshnb.diagnosis import diagnose
from tests.alteration import Altered, metadata
from tests.checks.test_altered import (
    GARBLED,
    NO_REQUEST,
    NOWHERE,
    SILENT,
    SINCE,
    problems,
)
from tests.checks.test_altered_mtls import (
    BROKEN_OFF,
    CUT_OFF,
    EARLIER,
    RATINGS_POD,
    RESET,
    Object,
    assert_blamed,
    assert_first,
    assert_harmless,
    codes_of,
    strict,
)

PROTOCOL_ERROR = {
    "code": "502",
    "flags": "UPE",
    "details": BROKEN_OFF.format("protocol_error"),
    **SILENT,
}
NO_HTTP = {**GARBLED, "local": f"{RATINGS_POD}:9080"}


def only_port(altered: Altered, service: str, **port: Any) -> Altered:
    return altered.each("services", service, lambda one: one["spec"]["ports"][0].update(port))


@pytest.mark.parametrize(
    ("name", "number", "severity"),
    [
        ("mail", 2525, Severity.WARNING),
        ("postgres", 5432, Severity.INFO),
        ("admin", 7777, Severity.INFO),
        ("backend", 8099, Severity.INFO),
        ("tcp-mail", 2525, None),
    ],
)
def test_a_port_without_a_protocol_matters_where_the_server_may_speak_first(
    healthy: Altered, name: str, number: int, severity: Severity | None
) -> None:
    """Altered: ratings offers one more port, which nobody called."""
    port = {"name": name, "port": number, "targetPort": number, "protocol": "TCP"}
    healthy.each("services", "ratings", lambda one: one["spec"]["ports"].append(port))
    found = [cause for cause in diagnose(healthy.facts()).causes if cause.check.code == "MNB802"]
    assert [cause.severity for cause in found] == ([severity] if severity else [])


def test_a_mesh_that_waits_for_a_while_only_does_not_hang(tmp_path: Path) -> None:
    """Altered: the mesh's protocolDetectionTimeout is not 0."""
    altered = Altered("server-first-undeclared", tmp_path)
    altered.pages(lambda page: page.update(protocolDetectionTimeout="0.100s"), path="/debug/mesh")
    assert_harmless(altered, "MNB802")


def test_a_port_that_is_declared_as_http_and_never_served_a_request_is_declared_wrongly(
    healthy: Altered,
) -> None:
    """Altered: whatever clients send to ratings is no HTTP, and nothing else was ever served."""
    healthy.lines("ratings", lambda line: [line._replace(**NO_HTTP)])
    healthy.lines("", lambda line: [] if line.authority == "ratings:9080" else [line])
    assert_blamed(healthy, "MNB803", "A", "Service bookinfo/ratings")


@pytest.mark.parametrize(
    ("port", "asked", "blamed"),
    [
        ({"name": "http-redis"}, False, True),
        ({"name": "web", "appProtocol": "http", "port": 5432}, False, True),
        ({"name": "http-redis"}, True, False),
        ({"name": "http-redis-metrics", "port": 6379}, False, False),
        ({"name": "tcp-redis", "port": 6379}, False, False),
    ],
)
def test_a_port_of_another_protocol_that_is_declared_as_http_lets_nobody_through(
    healthy: Altered, port: Object, asked: bool, blamed: bool
) -> None:
    """Altered: the port of ratings belongs to another protocol, and requests to it or none."""
    only_port(healthy, "ratings", **port)
    if not asked:
        healthy.lines("", lambda line: [] if line.authority == "ratings:9080" else [line])
    if blamed:
        assert_first(healthy, "MNB820", "A", "Service bookinfo/ratings")
    else:
        assert "MNB820" not in codes_of(healthy)


@pytest.mark.parametrize("where", ["trafficPolicy", "portLevelSettings", "subset"])
def test_an_upgrade_to_http2_is_the_destination_rules_matter(healthy: Altered, where: str) -> None:
    """Altered: callers of ratings are told to speak HTTP/2, which it does not understand."""
    policy: Object = {"connectionPool": {"http": {"h2UpgradePolicy": "UPGRADE"}}}
    spec: Object = {"host": "ratings", "trafficPolicy": policy}
    if where == "portLevelSettings":
        levels = [{"port": {"number": 9080}, **policy}]
        spec["trafficPolicy"] = {"portLevelSettings": levels}
    elif where == "subset":
        subset = {"name": "v1", "labels": {"app": "ratings"}, "trafficPolicy": policy}
        spec = {"host": "ratings", "subsets": [subset]}
    healthy.add("destinationrules", "ratings", "bookinfo", EARLIER, spec=spec)
    healthy.at_client("ratings:9080", SINCE, **PROTOCOL_ERROR)
    assert_first(healthy, "MNB801", "A", "DestinationRule bookinfo/ratings")


def test_an_upgrade_to_http2_of_the_whole_mesh_is_a_matter_of_its_settings(
    healthy: Altered,
) -> None:
    """Altered: the mesh tells all callers to speak HTTP/2, and ratings does not understand it."""
    healthy.pages(lambda page: page.update(h2UpgradePolicy="UPGRADE"), path="/debug/mesh")
    healthy.at_client("ratings:9080", SINCE, **PROTOCOL_ERROR)
    assert_blamed(healthy, "MNB801", "A", "ConfigMap istio-system/istio")


CALL = {"method": "POST", "path": "/stars.v1.Ratings/List", "protocol": "HTTP/2"}


@pytest.mark.parametrize(
    "failure",
    [PROTOCOL_ERROR, {**RESET, "code": "503"}],
)
def test_grpc_on_a_port_that_is_declared_as_http_is_the_services_matter(
    healthy: Altered, failure: dict[str, str]
) -> None:
    """Altered: clients call gRPC at ratings, whose port is declared as http, and always fail."""
    line = {**CALL, **failure}
    healthy.lines("ratings", lambda one: [one._replace(**line)])
    healthy.lines(
        "", lambda one: [] if one.authority == "ratings:9080" and not one.inbound else [one]
    )
    assert_first(
        healthy,
        "MNB801" if failure is PROTOCOL_ERROR else "MNB806",
        "A",
        "Service bookinfo/ratings",
    )


def test_grpc_on_its_own_port_that_breaks_off_is_the_applications_matter(healthy: Altered) -> None:
    """Altered: the same calls fail, but the port is declared as grpc."""
    only_port(healthy, "ratings", name="grpc")
    healthy.lines("ratings", lambda one: [one._replace(**CALL, **RESET)])
    healthy.lines(
        "", lambda one: [] if one.authority == "ratings:9080" and not one.inbound else [one]
    )
    assert_first(healthy, "MNB711", "C", "Deployment bookinfo/ratings-v1")


@pytest.mark.parametrize(
    ("details", "served"),
    [
        ("before_response_started{protocol_error}", True),
        ("after_response_started{protocol_error}", False),
    ],
)
def test_some_answers_that_are_no_valid_http_are_the_applications_matter(
    healthy: Altered, details: str, served: bool
) -> None:
    """Altered: ratings answers one path wrongly, or breaks its answers off; others are served."""
    line = {**PROTOCOL_ERROR, "details": f"upstream_reset_{details}", "path": "/ratings/list"}
    if not served:
        line["code"] = "200"
    healthy.request("ratings", "/ratings/0", 9, since=SINCE, **line)
    assert_blamed(healthy, "MNB804", "C", "Deployment bookinfo/ratings-v1")


def test_http_routes_to_a_port_that_is_declared_as_tcp_have_no_effect(healthy: Altered) -> None:
    """Altered: the port of reviews, which has HTTP routes, is named tcp; or one of two is."""
    only_port(healthy, "reviews", name="tcp-reviews")
    assert_first(healthy, "MNB807", "C", "Service bookinfo/reviews")

    port = {"name": "http", "port": 9081, "targetPort": 9080, "protocol": "TCP"}
    healthy.each("services", "reviews", lambda one: one["spec"]["ports"].append(port))
    assert "MNB807" not in codes_of(healthy)


@pytest.mark.parametrize(("kind", "codes"), [("httpGet", ["MNB807"]), ("tcpSocket", [])])
def test_a_probe_shows_that_http_is_spoken_on_a_port_that_is_declared_as_tcp(
    healthy: Altered, kind: str, codes: list[str]
) -> None:
    """Altered: the port of ratings is named tcp, and its readiness is asked by HTTP or TCP."""
    only_port(healthy, "ratings", name="tcp")

    def probed(pod: Object) -> None:
        for container in pod["spec"]["containers"]:
            if container["name"] == "ratings":
                container["readinessProbe"] = {kind: {"port": 9080}}

    healthy.each("pods", "ratings", probed)
    assert [code for code, _, _ in problems(diagnose(healthy.facts()))] == codes


OLD = {"code": "426", "flags": "DPE", "details": "low_version", "cluster": "-", **NOWHERE}
LARGE = {**OLD, "code": "431", "details": "http1.headers_too_large"}


@pytest.mark.parametrize("line", [OLD, LARGE])
def test_a_client_whose_http_its_own_proxy_refuses_is_named(
    healthy: Altered, line: dict[str, str]
) -> None:
    """Altered: the client speaks HTTP/1.0, or sends too large headers, to ratings."""
    healthy.request("client", "/ratings/0", since=SINCE, **line)
    assert_blamed(healthy, "MNB803", "C", "Pod bookinfo/client")


@pytest.mark.parametrize("line", [OLD, LARGE])
def test_a_client_outside_the_mesh_whose_http_is_refused_is_named(
    healthy: Altered, line: dict[str, str]
) -> None:
    """Altered: a pod without a sidecar speaks so to ratings."""
    outside = {"remote": "10.244.0.11:50000", "sni": "-"}
    healthy.request("ratings", "/ratings/0", since=SINCE, **line, **outside)
    assert_blamed(healthy, "MNB803", "C", "Pod legacy/legacy-client")


@pytest.mark.parametrize("line", [{**GARBLED, "remote": "203.0.113.7:40000"}, OLD])
def test_what_scanners_send_to_a_gateway_is_no_problem(
    healthy: Altered, line: dict[str, str]
) -> None:
    """Altered: somebody outside sends bytes that are no HTTP, or HTTP/1.0, to the gateway."""
    healthy.request("istio-ingressgateway", "/productpage", 5, **line)
    assert problems(diagnose(healthy.facts())) == []


def test_a_balancer_that_asks_a_gateway_in_http_1_0_all_the_time_is_a_problem(
    healthy: Altered,
) -> None:
    """Altered: each second request to the gateway is for one path, in HTTP/1.0."""
    healthy.request("istio-ingressgateway", "/productpage", 99, **OLD)
    assert_blamed(healthy, "MNB803", "C", "Deployment istio-system/istio-ingressgateway")


@pytest.mark.parametrize(
    ("code", "details"),
    [
        ("403", "upgrade_failed"),
        ("400", "missing_host_header"),
        ("408", "request_header_timeout"),
        ("413", "request_payload_too_large"),
    ],
)
def test_a_request_that_a_proxy_refuses_by_itself_is_its_clients_matter(
    healthy: Altered, code: str, details: str
) -> None:
    """Altered: the client's proxy refuses some of its requests."""
    line = {"code": code, "details": details, "cluster": "-", **NOWHERE}
    healthy.request("client", "/ratings/0", since=SINCE, **line)
    assert_blamed(healthy, "MNB805", "C", "Pod bookinfo/client")


def test_a_body_that_is_larger_than_a_filter_allows_is_the_filters_matter(
    healthy: Altered,
) -> None:
    """Altered: an EnvoyFilter limits the bodies of requests to ratings."""
    patch = {"operation": "INSERT_BEFORE", "value": {"name": "envoy.filters.http.buffer"}}
    spec = {
        "workloadSelector": {"labels": {"app": "ratings"}},
        "configPatches": [{"applyTo": "HTTP_FILTER", "patch": patch}],
    }
    item = {
        "apiVersion": "networking.istio.io/v1alpha3",
        "kind": "EnvoyFilter",
        "metadata": metadata("small", "bookinfo", EARLIER),
        "spec": spec,
    }
    healthy.pages(lambda page: page.append(item), path="/debug/configz")
    healthy.at_server(
        "ratings:9080", SINCE, code="413", details="request_payload_too_large", **NOWHERE
    )
    assert_first(healthy, "MNB805", "A", "EnvoyFilter bookinfo/small")


UNREAD = {
    **RESET,
    **NO_REQUEST,
    "protocol": "-",
    "code": "0",
    "details": "-",
    "cluster": "PassthroughCluster",
    "endpoint": "10.96.220.46:9080",
    "local": "10.96.220.46:9080",
    "sni": "-",
}


@pytest.mark.parametrize(
    ("ever", "failure_class", "subject"),
    [(True, "C", "Pod bookinfo/client"), (False, "A", "Service bookinfo/ratings")],
)
def test_bytes_that_a_proxy_passes_on_unread_are_no_http(
    healthy: Altered, ever: bool, failure_class: str, subject: str
) -> None:
    """Altered: the client sends no HTTP to ratings, which demands mutual TLS and ends that.

    Others are served there, or nobody ever was.
    """
    strict(healthy)
    healthy.request("client", "/ratings/0", since=SINCE, **UNREAD)
    healthy.request("ratings", "/ratings/0", since=SINCE, **CUT_OFF)
    if not ever:
        healthy.lines("", lambda one: [] if one.authority == "ratings:9080" else [one])
    assert_blamed(healthy, "MNB808", failure_class, subject)
