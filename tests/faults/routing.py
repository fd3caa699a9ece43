"""Faults of VirtualServices and DestinationRules."""

from __future__ import annotations

import copy

from tests.enriching.base import Enriched, Json
from tests.enriching.envoy import route_to
from tests.faults.base import (
    NO_CLUSTER,
    NO_HOST,
    NO_ROUTE,
    at_client,
    at_server,
    change,
    clusters,
    drop,
    fault,
    in_turns,
    no_clusters,
    no_endpoints,
    reset,
    routes,
    since,
    spec,
    tls_error,
)

RATINGS = "ratings.bookinfo.svc.cluster.local"
REVIEWS = "reviews.bookinfo.svc.cluster.local"
DETAILS = "details.bookinfo.svc.cluster.local"
_ORIGIN = "/apis/networking.istio.io/v1/namespaces/bookinfo/virtual-service/"


def _route(mesh: Enriched, host: str, *made: Json) -> None:
    for virtual in routes(mesh, host):
        virtual["routes"] = copy.deepcopy(list(made))


@fault("A", "VirtualService/bookinfo/ratings")
def route_to_a_port_that_the_service_lacks(mesh: Enriched) -> None:
    """The VirtualService sends to port 9090 of a Service that has 9080."""
    to = {"host": "ratings", "subset": "all", "port": {"number": 9090}}
    spec(mesh, "virtualservices", "ratings", http=[{"route": [{"destination": to}]}])
    cluster = f"outbound|9090|all|{RATINGS}"
    _route(mesh, RATINGS, route_to(cluster, f"{_ORIGIN}ratings"))
    at_client(mesh, RATINGS, {**NO_CLUSTER, "cluster": cluster, "route": "-"})


@fault("A", "VirtualService/bookinfo/reviews")
def no_route_for_the_path(mesh: Enriched) -> None:
    """The VirtualService has only a route for /api, and callers ask for something else."""
    http = [
        {
            "match": [{"uri": {"prefix": "/api/"}}],
            "route": [{"destination": {"host": "reviews", "subset": "v1"}}],
        }
    ]
    spec(mesh, "virtualservices", "reviews", http=http)
    made = route_to(f"outbound|9080|v1|{REVIEWS}", f"{_ORIGIN}reviews", prefix="/api/")
    _route(mesh, REVIEWS, made)
    at_client(mesh, REVIEWS, NO_ROUTE)


@fault("A", "VirtualService/bookinfo/reviews", "DestinationRule/bookinfo/reviews")
def a_share_goes_to_a_missing_subset(mesh: Enriched) -> None:
    """A fifth of the requests is sent to a subset that nobody defines."""
    shares = [("v1", 80), ("canary", 20)]
    http = [
        {
            "route": [
                {"destination": {"host": "reviews", "subset": name}, "weight": weight}
                for name, weight in shares
            ]
        }
    ]
    spec(mesh, "virtualservices", "reviews", http=http)
    ways = [(f"outbound|9080|{name}|{REVIEWS}", weight) for name, weight in shares]
    _route(mesh, REVIEWS, route_to(ways, f"{_ORIGIN}reviews"))
    at_client(
        mesh,
        REVIEWS,
        {**NO_CLUSTER, "cluster": f"outbound|9080|canary|{REVIEWS}"},
        chosen=lambda line: "|v2|" in line.cluster,
    )


@fault("A", "DestinationRule/bookinfo/reviews", "VirtualService/bookinfo/reviews")
def a_destination_rule_was_deleted(mesh: Enriched) -> None:
    """The DestinationRule that defines the subsets is gone."""
    drop(mesh, "destinationrules", "reviews")
    for subset in ("v1", "v2"):
        no_clusters(mesh, REVIEWS, subset)
    at_client(mesh, REVIEWS, NO_CLUSTER)


@fault("A", "DestinationRule/bookinfo/reviews")
def a_share_goes_to_a_subset_without_pods(mesh: Enriched) -> None:
    """The canary's labels are those of no pod."""
    subsets = [
        {"name": "v1", "labels": {"version": "v1"}},
        {"name": "v2", "labels": {"version": "2"}},
    ]
    spec(mesh, "destinationrules", "reviews", subsets=subsets)
    no_endpoints(mesh, REVIEWS, "v2")
    at_client(mesh, REVIEWS, NO_HOST, chosen=lambda line: "|v2|" in line.cluster)


@fault("A", "VirtualService/bookinfo/ratings")
def some_requests_are_aborted(mesh: Enriched) -> None:
    """Half of the requests meet an abort that somebody tried."""
    abort = {"abort": {"httpStatus": 503, "percentage": {"value": 50}}}
    to = [{"destination": {"host": "ratings", "subset": "all"}}]
    spec(mesh, "virtualservices", "ratings", http=[{"fault": abort, "route": to}])
    share = {"numerator": 500000, "denominator": "MILLION"}
    filter_ = {
        "@type": "type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault",
        "abort": {"http_status": 503, "percentage": share},
    }
    made = route_to(f"outbound|9080|all|{RATINGS}", f"{_ORIGIN}ratings")
    made["typed_per_filter_config"] = {"envoy.filters.http.fault": filter_}
    _route(mesh, RATINGS, made)
    at_client(
        mesh,
        RATINGS,
        {
            "code": "503",
            "flags": "FI",
            "details": "fault_filter_abort",
            "endpoint": "-",
            "own": "-",
            "service_time": "-",
        },
        chosen=in_turns(2),
    )


@fault("A", "VirtualService/bookinfo/ratings")
def every_request_is_delayed(mesh: Enriched) -> None:
    """A delay of five seconds was left behind; its callers give up after two."""
    delay = {"delay": {"fixedDelay": "5s", "percentage": {"value": 100}}}
    to = [{"destination": {"host": "ratings", "subset": "all"}}]
    spec(mesh, "virtualservices", "ratings", http=[{"fault": delay, "route": to}])
    filter_ = {
        "@type": "type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault",
        "delay": {"fixed_delay": "5s", "percentage": {"numerator": 100}},
    }
    made = route_to(f"outbound|9080|all|{RATINGS}", f"{_ORIGIN}ratings")
    made["typed_per_filter_config"] = {"envoy.filters.http.fault": filter_}
    _route(mesh, RATINGS, made)
    at_client(
        mesh,
        RATINGS,
        {
            "code": "0",
            "flags": "DI,DC",
            "details": "downstream_remote_disconnect",
            "duration": "2001",
            "endpoint": "-",
            "own": "-",
            "service_time": "-",
        },
    )


@fault("A", "VirtualService/bookinfo/details")
def a_rewrite_to_a_path_that_nobody_serves(mesh: Enriched) -> None:
    """The VirtualService puts /v2 before each path, and the application knows no such path."""
    to = [{"destination": {"host": "details", "subset": "all"}}]
    http = [{"match": [{"uri": {"prefix": "/"}}], "rewrite": {"uri": "/v2/"}, "route": to}]
    spec(mesh, "virtualservices", "details", http=http)
    made = route_to(f"outbound|9080|all|{DETAILS}", f"{_ORIGIN}details")
    made["route"]["prefix_rewrite"] = "/v2/"
    _route(mesh, DETAILS, made)
    at_server(mesh, "details", {"code": "404", "path": "/v2/details/0"})


@fault("AC", "VirtualService/bookinfo/reviews", "Deployment/bookinfo/reviews")
def a_timeout_shorter_than_the_application_takes(mesh: Enriched) -> None:
    """The VirtualService allows 1 ms, and the application takes three."""
    to = [{"destination": {"host": "reviews", "subset": "v1"}}]
    spec(mesh, "virtualservices", "reviews", http=[{"timeout": "0.001s", "route": to}])
    made = route_to(f"outbound|9080|v1|{REVIEWS}", f"{_ORIGIN}reviews")
    made["route"]["timeout"] = "0.001s"
    _route(mesh, REVIEWS, made)
    begin = since(mesh)
    at_client(
        mesh,
        REVIEWS,
        {
            "code": "504",
            "flags": "UT",
            "details": "response_timeout",
            "duration": "1",
            "service_time": "-",
        },
        chosen=lambda line: line.time >= begin,
    )


@fault("A", "DestinationRule/bookinfo/ratings")
def a_connection_pool_of_one(mesh: Enriched) -> None:
    """The DestinationRule allows one connection and one request that waits."""
    pool = {
        "tcp": {"maxConnections": 1},
        "http": {"http1MaxPendingRequests": 1, "maxRequestsPerConnection": 1},
    }
    spec(mesh, "destinationrules", "ratings", trafficPolicy={"connectionPool": pool})
    limits = {"thresholds": [{"max_connections": 1, "max_pending_requests": 1}]}
    for _, cluster in clusters(mesh, RATINGS):
        cluster["circuit_breakers"] = limits
    overflow = {**reset("overflow", "UO"), "endpoint": "-"}
    at_client(mesh, RATINGS, overflow, chosen=in_turns(3))


@fault("A", "DestinationRule/bookinfo/ratings")
def tls_of_its_own_to_a_strict_server(mesh: Enriched) -> None:
    """The DestinationRule begins plain TLS, and the server demands a client's certificate."""
    spec(mesh, "destinationrules", "ratings", trafficPolicy={"tls": {"mode": "SIMPLE"}})
    for _, cluster in clusters(mesh, RATINGS):
        cluster.pop("transport_socket_matches", None)
        tls = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext"
        cluster["transport_socket"] = {
            "name": "envoy.transport_sockets.tls",
            "typed_config": {"@type": tls, "common_tls_context": {}},
        }
    reason = "268436496:SSL_routines:OPENSSL_internal:SSLV3_ALERT_HANDSHAKE_FAILURE"
    at_client(mesh, RATINGS, tls_error(reason))


@fault("A", "DestinationRule/bookinfo/details")
def an_identity_that_the_server_does_not_have(mesh: Enriched) -> None:
    """The DestinationRule expects another service account."""
    name = "spiffe://cluster.local/ns/bookinfo/sa/detail"
    tls = {"mode": "ISTIO_MUTUAL", "subjectAltNames": [name]}
    spec(mesh, "destinationrules", "details", trafficPolicy={"tls": tls})
    for _, cluster in clusters(mesh, DETAILS):
        for match in cluster.get("transport_socket_matches", []):
            typed = match["transport_socket"].get("typed_config", {})
            context = typed.get("common_tls_context", {}).get("combined_validation_context", {})
            if context:
                context["default_validation_context"]["match_subject_alt_names"] = [{"exact": name}]
    reason = (
        "268435581:SSL_routines:OPENSSL_internal:CERTIFICATE_VERIFY_FAILED:verify_cert_failed:"
        "_SAN_matcher,_certificate_SANs_are_[spiffe://cluster.local/ns/bookinfo/sa/details]"
    )
    at_client(mesh, DETAILS, tls_error(reason))


@fault("A", "DestinationRule/bookinfo/ratings")
def outlier_detection_leaves_nobody(mesh: Enriched) -> None:
    """One 5xx is enough for the only endpoint to be ejected for five minutes."""
    detection = {"consecutive5xxErrors": 1, "baseEjectionTime": "300s", "maxEjectionPercent": 100}
    spec(mesh, "destinationrules", "ratings", trafficPolicy={"outlierDetection": detection})
    for proxy, cluster in clusters(mesh, RATINGS):
        cluster["outlier_detection"] = {"consecutive_5xx": 1, "max_ejection_percent": 100}
        for status in proxy.statuses:
            if status["name"].endswith(f"|{RATINGS}"):
                for host in status.get("host_statuses", []):
                    host["health_status"]["failed_outlier_check"] = True
    at_client(mesh, RATINGS, NO_HOST)


@fault("A", "VirtualService/bookinfo/productpage")
def a_route_to_a_host_of_another_namespace(mesh: Enriched) -> None:
    """The VirtualService of a Service sends to a host that is in another namespace."""
    to = [{"destination": {"host": "productpage.shop.svc.cluster.local"}}]
    spec(mesh, "virtualservices", "productpage", http=[{"route": to}])
    host = "productpage.bookinfo.svc.cluster.local"
    cluster = "outbound|9080||productpage.shop.svc.cluster.local"
    _route(mesh, host, route_to(cluster, f"{_ORIGIN}productpage"))
    at_client(mesh, host, {**NO_CLUSTER, "cluster": cluster, "route": "-"}, pod="client")


@fault("A", "DestinationRule/bookinfo/reviews", "VirtualService/bookinfo/reviews")
def a_destination_rule_is_for_another_namespace_only(mesh: Enriched) -> None:
    """The DestinationRule is exported to nobody but another namespace."""
    change(mesh, "destinationrules", "reviews", lambda one: one["spec"].update(exportTo=["legacy"]))
    for subset in ("v1", "v2"):
        no_clusters(mesh, REVIEWS, subset)
    at_client(mesh, REVIEWS, NO_CLUSTER)
