"""Checks of Services, load balancing, limits and several clusters, on altered recordings.

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
    EARLIER,
    OVERFLOW,
    REFUSED,
    SINCE,
    TIMED_OUT,
    assert_blamed,
    assert_harmless,
    problems,
)
from tests.checks.test_altered_gateways import (
    CUT_OFF,
    FULL,
    GATEWAY,
    NO_ENDPOINT,
    RATINGS_HOST,
    Object,
    add,
    assert_first,
    change,
    served_no_more,
)

# --- Services -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "code"), [("tcp-stars", "MNB270"), ("http-stars", None)])
def test_two_services_must_agree_on_the_protocol_of_a_pods_port(
    healthy: Altered, name: str, code: str | None
) -> None:
    """Altered: a second Service leads to the port of ratings, with another protocol or the same."""
    ports = [{"name": name, "port": 80, "targetPort": 9080, "protocol": "TCP"}]
    spec = {"selector": {"app": "ratings"}, "clusterIP": "10.96.1.1", "ports": ports}
    healthy.add("services", "stars", "bookinfo", CHANGED, spec=spec)
    if code is None:
        assert_harmless(healthy)
    else:
        assert_blamed(healthy, code, "A", "Service bookinfo/stars")


# --- Load balancing and limits ------------------------------------------------------------------


LOCALITY = {"localityLbSetting": {"failover": [{"from": "here", "to": "there"}]}}


def test_failover_without_outlier_detection_does_nothing(healthy: Altered) -> None:
    """Altered: a DestinationRule of ratings has failover only; then outlier detection, too."""
    healthy.each(
        "nodes",
        "",
        lambda one: one["metadata"]["labels"].update({"topology.kubernetes.io/region": "here"}),
    )
    spec = {"host": "ratings", "trafficPolicy": {"loadBalancer": LOCALITY}}
    add(healthy, "destinationrules", "ratings", spec)
    assert_blamed(healthy, "MNB280", "A", "DestinationRule bookinfo/ratings")
    healthy.each(
        "destinationrules",
        "ratings",
        lambda one: one["spec"]["trafficPolicy"].update(outlierDetection={"interval": "5s"}),
    )
    assert_harmless(healthy)


def test_failover_between_regions_that_no_node_names_does_nothing(healthy: Altered) -> None:
    """Altered: a DestinationRule fails over between regions; the nodes have no labels of theirs."""

    def without(node: Object) -> None:
        labels = node["metadata"]["labels"]
        for key in [key for key in labels if "topology" in key or "failure-domain" in key]:
            del labels[key]

    healthy.each("nodes", "", without)
    policy = {"loadBalancer": LOCALITY, "outlierDetection": {"interval": "5s"}}
    spec = {"host": "ratings", "trafficPolicy": policy}
    add(healthy, "destinationrules", "ratings", spec)
    assert_blamed(healthy, "MNB281", "A", "DestinationRule bookinfo/ratings")


def test_a_destination_whose_weight_was_left_out_gets_nothing(healthy: Altered) -> None:
    """Altered: the second of two destinations of reviews has no weight."""
    change(
        healthy,
        "virtualservices",
        "reviews",
        lambda one: one["spec"]["http"][1]["route"][1].pop("weight"),
    )
    assert_blamed(healthy, "MNB282", "A", "VirtualService bookinfo/reviews")


def test_a_hash_that_sends_all_to_one_endpoint_is_worth_knowing(healthy: Altered) -> None:
    """Altered: reviews hashes a header, and one of its two endpoints got nearly all requests."""
    cluster = f"outbound|9080||{FULL.format('reviews')}"

    def hashed(dump: Any) -> None:
        for section in dump["configs"]:
            for one in section.get("dynamic_active_clusters", ()):
                if one["cluster"]["name"] == cluster:
                    one["cluster"]["lb_policy"] = "RING_HASH"
                    path = (
                        "/apis/networking.istio.io/v1/namespaces/bookinfo/destination-rule/reviews"
                    )
                    one["cluster"]["metadata"] = {"filter_metadata": {"istio": {"config": path}}}

    def uneven(page: Any) -> None:
        for one in page["cluster_statuses"]:
            if one["name"] == cluster:
                for number, host in enumerate(one["host_statuses"]):
                    host["stats"] = [{"name": "rq_total", "value": str(0 if number else 500)}]

    healthy.pages(hashed, port=15000, path="/config_dump?include_eds", pod="client")
    healthy.pages(uneven, port=15000, path="/clusters?format=json", pod="client")
    balancer = {"consistentHash": {"httpHeaderName": "x-user"}}
    healthy.each(
        "destinationrules",
        "reviews",
        lambda one: one["spec"].update(trafficPolicy={"loadBalancer": balancer}),
    )
    assert_harmless(healthy, "MNB283")


def test_a_rate_limit_service_that_does_not_answer_is_the_filters_matter(tmp_path: Path) -> None:
    """Altered: requests end with 500 and flag RLSE, as when the service for limits is down."""
    altered = Altered("rate-limited", tmp_path)
    altered.lines(
        "",
        lambda line: [
            line._replace(code="500", flags="RLSE", details="rate_limiter_error")
            if line.flags == "RL"
            else line._replace(code="500" if line.code == "429" else line.code)
        ],
    )
    assert_first(altered, "MNB850", "A", "EnvoyFilter bookinfo/details-ratelimit")


def test_a_pool_of_a_wildcard_rule_turns_requests_away(healthy: Altered) -> None:
    """Altered: a DestinationRule of the root namespace limits connections to all hosts."""
    policy = {"connectionPool": {"http": {"http1MaxPendingRequests": 1}}}
    spec = {"host": "*.local", "trafficPolicy": policy}
    add(healthy, "destinationrules", "mesh", spec, namespace="istio-system")
    served_no_more(healthy, "ratings", **OVERFLOW)
    assert_blamed(healthy, "MNB851", "A", "DestinationRule istio-system/mesh")


def test_a_rule_of_the_service_comes_before_the_meshs_default(healthy: Altered) -> None:
    """Altered: as above, and a newer rule for the very host has a pool, too."""
    pool = {"connectionPool": {"http": {"http1MaxPendingRequests": 1}}}
    default = {"host": "*.local", "trafficPolicy": {"connectionPool": {"tcp": {}}}}
    add(healthy, "destinationrules", "mesh", default, namespace="istio-system", at=EARLIER)
    add(healthy, "destinationrules", "ratings", {"host": "ratings", "trafficPolicy": pool})
    served_no_more(healthy, "ratings", **OVERFLOW)
    assert_blamed(healthy, "MNB851", "A", "DestinationRule bookinfo/ratings")


def test_a_workload_scaled_to_nothing_is_the_workloads_matter(healthy: Altered) -> None:
    """Altered: ratings wants no pods, and callers find no endpoint."""
    healthy.remove("pods", "ratings-v1")
    healthy.each("deployments", "ratings-v1", lambda one: one["spec"].update(replicas=0))
    for kind in ("http", "probe", "log"):
        healthy.forget(kind=kind, pod="ratings-v1-589dc858f-xrq2g")
    served_no_more(healthy, "ratings", cluster=f"outbound|9080||{RATINGS_HOST}", **NO_ENDPOINT)
    first = diagnose(healthy.facts()).problems[0]
    assert (first.failure_class.value, first.subject.kind, first.subject.name) == (
        "C",
        "Deployment",
        "ratings-v1",
    )


# --- Several clusters ---------------------------------------------------------------------------


def test_a_remote_cluster_that_istiod_cannot_read_is_the_secrets_matter(healthy: Altered) -> None:
    """Altered: istiod has a second cluster, which it never came to read."""
    remote = {
        "id": "far",
        "secretName": "istio-system/istio-remote-secret-far",
        "syncStatus": "timeout",
    }
    healthy.pages(lambda page: page.append(remote), path="/debug/clusterz")
    assert_blamed(healthy, "MNB260", "A", "Secret istio-system/istio-remote-secret-far")


@pytest.mark.parametrize(
    ("labels", "code"), [({}, "MNB260"), ({"istio/multiCluster": "true"}, None)]
)
def test_a_secret_for_another_cluster_needs_its_label(
    healthy: Altered, labels: Object, code: str | None
) -> None:
    """Altered: there is a Secret for another cluster, without its label or with it."""
    healthy.add("secrets", "istio-remote-secret-far", "istio-system", CHANGED, data={"far": ""})
    healthy.each(
        "secrets", "istio-remote-secret-far", lambda one: one["metadata"].update(labels=labels)
    )
    if code is None:
        assert_harmless(healthy)
    else:
        assert_blamed(healthy, code, "A", "Secret istio-system/istio-remote-secret-far")


def test_endpoints_of_a_network_without_a_gateway_time_out(healthy: Altered) -> None:
    """Altered: a WorkloadEntry of ratings is in another network, and callers time out there."""
    spec = {"address": "10.9.0.7", "network": "far", "labels": {"app": "ratings"}}
    add(healthy, "workloadentries", "ratings-far", spec)
    fields = {**TIMED_OUT, "endpoint": "10.9.0.7:9080"}
    healthy.request("client", "/ratings/0", 9, since=SINCE, **fields)
    assert_first(healthy, "MNB261", "A", "WorkloadEntry bookinfo/ratings-far")


def test_endpoints_of_a_network_with_a_gateway_are_no_problem(healthy: Altered) -> None:
    """Altered: the Service of a gateway says that it leads to the network of a WorkloadEntry."""
    spec = {"address": "10.9.0.7", "network": "far", "labels": {"app": "ratings"}}
    add(healthy, "workloadentries", "ratings-far", spec)
    healthy.each(
        "services",
        GATEWAY,
        lambda one: one["metadata"].update(labels={"topology.istio.io/network": "far"}),
    )
    assert_harmless(healthy)


def test_clusters_without_a_common_root_do_not_trust_each_other(healthy: Altered) -> None:
    """Altered: calls through the gateway of another cluster fail, for want of a common root."""
    reason = (
        "TLS_error:|268435581:SSL_routines:OPENSSL_internal:CERTIFICATE_VERIFY_FAILED:"
        "verify_cert_failed:_unable_to_get_local_issuer_certificate:TLS_error_end"
    )
    fields = {
        **REFUSED,
        "details": f"upstream_reset_before_response_started{{remote_connection_failure|{reason}}}",
        "failure": reason,
        "endpoint": "198.51.100.7:15443",
    }
    healthy.request("client", "/ratings/0", 9, since=SINCE, **fields)
    assert_first(healthy, "MNB262", "B", "Secret istio-system/cacerts")


@pytest.mark.parametrize(("mode", "code"), [("PASSTHROUGH", "MNB263"), ("AUTO_PASSTHROUGH", None)])
def test_a_gateway_between_networks_must_pass_on_by_server_name(
    healthy: Altered, mode: str, code: str | None
) -> None:
    """Altered: the gateway gets calls from other networks, with a server for them or another."""
    port = {"name": "tls", "port": 15443, "targetPort": 15443, "protocol": "TCP"}
    healthy.each("services", GATEWAY, lambda one: one["spec"]["ports"].append(port))
    server = {
        "port": {"number": 15443, "name": "tls", "protocol": "TLS"},
        "hosts": ["*.local"],
        "tls": {"mode": mode},
    }
    spec = {"selector": {"istio": "ingressgateway"}, "servers": [server]}
    add(healthy, "gateways", "cross-network", spec)
    sni = f"outbound_.9080_._.{RATINGS_HOST}"
    fields = {**CUT_OFF, "sni": sni, "local": "10.244.0.3:15443"}
    healthy.request(GATEWAY, "/productpage", 9 if code else 2, since=SINCE, **fields)
    if code is None:
        assert problems(diagnose(healthy.facts())) == []
    else:
        assert_first(healthy, code, "A", "Gateway bookinfo/cross-network")
