"""Checks of routes, subsets and hosts that callers do not see, on altered recordings.

What is altered is named in each test. Beside each fault stands what looks like it and is none.
"""

from __future__ import annotations

from typing import Any

import pytest

from meshnb.diagnosis import diagnose
from tests.alteration import Altered
from tests.checks.test_altered import (
    BLOCKED,
    EARLIER,
    NO_REQUEST,
    NOWHERE,
    SINCE,
    assert_blamed,
    assert_explains,
    assert_harmless,
    problems,
)
from tests.checks.test_altered_gateways import (
    CUT_OFF,
    FULL,
    GATEWAY,
    NO_CLUSTER,
    NO_ENDPOINT,
    RATINGS_HOST,
    SHOP,
    TO,
    UNROUTED,
    Object,
    add,
    assert_first,
    change,
    routes,
    served_no_more,
    unrouted,
)

# --- Routes: hosts, ports, order ----------------------------------------------------------------


def _route_to(altered: Altered, name: str, *targets: Object, **more: Any) -> Altered:
    return add(
        altered,
        "virtualservices",
        name,
        {"hosts": [name], "http": [{"route": list(targets)}], **more},
    )


def test_a_port_that_the_destination_does_not_have_leads_nowhere(healthy: Altered) -> None:
    """Altered: a route of ratings names port 9090."""
    _route_to(healthy, "ratings", {"destination": {"host": "ratings", "port": {"number": 9090}}})
    served_no_more(healthy, "ratings", **NO_CLUSTER)
    diagnosis = assert_blamed(healthy, "MNB202", "A", "VirtualService bookinfo/ratings")
    assert_explains(diagnosis, 20)


def test_a_destination_without_a_port_is_the_port_of_the_gateway(healthy: Altered) -> None:
    """Altered: productpage has a second port, and the gateway's route names none."""
    port = {"name": "http-admin", "port": 9999, "targetPort": 9999, "protocol": "TCP"}
    healthy.each("services", "productpage", lambda one: one["spec"]["ports"].append(port))
    routes(healthy, http=[{"route": [{"destination": {"host": "productpage"}}]}])
    unrouted(healthy, **NO_CLUSTER)
    assert_blamed(healthy, "MNB202", "A", "VirtualService bookinfo/bookinfo")


def test_a_port_of_an_external_host_is_looked_up_in_its_service_entry(healthy: Altered) -> None:
    """Altered: a route leads to a port that the ServiceEntry has."""
    ports = [{"number": 8443, "name": "https", "protocol": "HTTPS"}]
    entry = {"hosts": ["api.example.org"], "ports": ports, "resolution": "DNS"}
    add(healthy, "serviceentries", "partner", entry, at=EARLIER)
    target = {"destination": {"host": "api.example.org", "port": {"number": 8443}}}
    _route_to(healthy, "details", TO["details"] | {"weight": 100}, target | {"weight": 0})
    assert_harmless(healthy)


@pytest.mark.parametrize(
    ("destination", "code"),
    [({"host": "ratings", "subset": "v7"}, "MNB210"), ({"host": "ratngs"}, "MNB201")],
)
def test_a_route_of_tcp_that_leads_nowhere_is_found(
    healthy: Altered, destination: Object, code: str
) -> None:
    """Altered: a route of TCP, below another one, leads to a subset or host that is not there."""
    first = {"match": [{"port": 81}], "route": [TO["ratings"]]}
    spec = {"hosts": ["ratings"], "tcp": [first, {"route": [{"destination": destination}]}]}
    add(healthy, "virtualservices", "ratings", spec)
    fields = {
        **NO_REQUEST,
        **NOWHERE,
        "protocol": "-",
        "code": "0",
        "flags": "NC",
        "details": "-",
        "cluster": "-",
    }
    healthy.request("client", "/ratings/0", 9, since=SINCE, **fields)
    diagnosis = assert_blamed(healthy, code, "A", "VirtualService bookinfo/ratings")
    assert_explains(diagnosis, 9)


def test_a_route_of_tls_that_leads_nowhere_from_a_gateway_is_found(healthy: Altered) -> None:
    """Altered: a gateway passes TLS through to a host that is not there."""
    server = {
        "port": {"number": 443, "name": "tls", "protocol": "TLS"},
        "hosts": ["*.example.org"],
        "tls": {"mode": "PASSTHROUGH"},
    }
    change(
        healthy, "gateways", "bookinfo-gateway", lambda one: one["spec"]["servers"].append(server)
    )
    match = [{"port": 443, "sniHosts": ["vault.example.org"]}]
    spec = {
        "hosts": ["vault.example.org"],
        "gateways": ["bookinfo-gateway"],
        "tls": [{"match": match, "route": [{"destination": {"host": "vualt"}}]}],
    }
    add(healthy, "virtualservices", "vault", spec)
    fields = {**CUT_OFF, "flags": "NC", "details": "-", "sni": "vault.example.org"}
    healthy.request(GATEWAY, "/productpage", 9, since=SINCE, **fields)
    diagnosis = assert_blamed(healthy, "MNB201", "A", "VirtualService bookinfo/vault")
    assert_explains(diagnosis, 9)


@pytest.mark.parametrize(
    ("hosts", "namespace"),
    [(["ratings"], "legacy"), (["ratings.bookinfo"], "bookinfo"), (["raitngs"], "bookinfo")],
)
def test_routes_for_a_name_that_no_service_has_are_found(
    healthy: Altered, hosts: list[str], namespace: str
) -> None:
    """Altered: a VirtualService has a short host in another namespace, half a name, or a slip."""
    full = RATINGS_HOST
    spec = {"hosts": hosts, "http": [{"route": [{"destination": {"host": full}}]}]}
    add(healthy, "virtualservices", "ratings", spec, namespace=namespace)
    diagnosis = assert_blamed(healthy, "MNB203", "A", f"VirtualService {namespace}/ratings")
    assert full in diagnosis.problems[0].finding.message


def test_a_made_up_host_inside_the_mesh_is_no_problem(healthy: Altered) -> None:
    """Altered: a VirtualService gives a host that no Service has a meaning inside the mesh."""
    _route_to(healthy, "details", TO["details"], hosts=["books.internal"])
    assert_harmless(healthy)


@pytest.mark.parametrize(
    ("protocol", "routes_"),
    [
        ("http", [{"match": [{"uri": {"regex": ".*"}}]}, {"match": [{"uri": {"exact": "/a"}}]}]),
        (
            "http",
            [{"match": [{"uri": {"prefix": "/"}}]}, {"match": [{"method": {"exact": "GET"}}]}],
        ),
        (
            "tls",
            [
                {"match": [{"sniHosts": ["*.example.com"]}]},
                {"match": [{"sniHosts": ["a.example.com"]}]},
            ],
        ),
        ("tcp", [{}, {"match": [{"port": 9080}]}]),
    ],
)
def test_a_route_below_one_that_takes_everything_is_never_taken(
    healthy: Altered, protocol: str, routes_: list[Object]
) -> None:
    """Altered: a VirtualService with two routes, of which the first matches all of the second."""
    hosts = ["*.example.com"] if protocol == "tls" else ["details"]
    written = [{**one, "route": [TO["details"]]} for one in routes_]
    add(healthy, "virtualservices", "details", {"hosts": hosts, protocol: written})
    assert_blamed(healthy, "MNB220", "A", "VirtualService bookinfo/details")


@pytest.mark.parametrize(
    "routes_",
    [
        [
            {"match": [{"uri": {"prefix": "/a"}, "method": {"exact": "GET"}}]},
            {"match": [{"uri": {"prefix": "/a"}}]},
        ],
        [{"match": [{"headers": {"x": {"exact": "1"}}}]}, {}],
        [{"match": [{"uri": {"exact": "/"}}]}, {"match": [{"uri": {"prefix": "/"}}]}],
    ],
)
def test_a_specific_route_above_a_general_one_is_no_problem(
    healthy: Altered, routes_: list[Object]
) -> None:
    """Altered: a VirtualService with two routes in the right order."""
    written = [{**one, "route": [TO["details"]]} for one in routes_]
    add(healthy, "virtualservices", "details", {"hosts": ["details"], "http": written})
    assert_harmless(healthy)


def test_a_gateway_that_names_no_subset_reaches_every_version(healthy: Altered) -> None:
    """Altered: the gateway leads to reviews, whose second version is for nobody in the mesh."""
    pinned = [{"route": [{"destination": {"host": "reviews", "subset": "v1"}}]}]
    change(
        healthy, "virtualservices", "reviews", lambda one: one["spec"].update(http=pinned), EARLIER
    )
    routes(healthy, http=[{"route": [TO["reviews"]]}])
    to_v2 = {"cluster": f"outbound|9080||{FULL.format('reviews')}", "endpoint": "10.244.0.8:9080"}
    address = _address(healthy, "reviews-v2")
    healthy.request(
        GATEWAY, "/productpage", 9, since=SINCE, **{**to_v2, "endpoint": f"{address}:9080"}
    )
    assert_first(healthy, "MNB222", "A", "VirtualService bookinfo/bookinfo")


def test_a_gateway_that_names_no_subset_where_all_are_in_use_is_no_problem(
    healthy: Altered,
) -> None:
    """Altered: the gateway leads to reviews, both versions of which are in use inside the mesh."""
    routes(healthy, http=[{"route": [TO["reviews"]]}])
    assert_harmless(healthy)


def _address(altered: Altered, pod: str) -> str:
    found: list[str] = []
    altered.each("pods", pod, lambda one: found.append(one["status"]["podIP"]))
    return found[0]


DELEGATE = {"route": [TO["details"]]}


@pytest.mark.parametrize(
    ("delegate", "subject"),
    [
        (None, "VirtualService bookinfo/details"),
        ({"hosts": ["details"], "http": [DELEGATE]}, "VirtualService bookinfo/shelf"),
        (
            {"http": [{"delegate": {"name": "details"}}]},
            "VirtualService bookinfo/shelf",
        ),
        (
            {"http": [{"match": [{"uri": {"prefix": "/other"}}], **DELEGATE}]},
            "VirtualService bookinfo/shelf",
        ),
    ],
    ids=["missing", "hosts of its own", "nested", "other paths"],
)
def test_a_delegate_that_istiod_leaves_out_has_no_routes(
    healthy: Altered, delegate: Object | None, subject: str
) -> None:
    """Altered: details hands requests on to a VirtualService that is missing or in wrong form."""
    root = {"match": [{"uri": {"prefix": "/details"}}], "delegate": {"name": "shelf"}}
    add(healthy, "virtualservices", "details", {"hosts": ["details"], "http": [root]})
    if delegate is not None:
        add(healthy, "virtualservices", "shelf", delegate)
    served_no_more(healthy, "details", **UNROUTED)
    assert_first(healthy, "MNB223", "A", subject)


def test_a_delegate_in_the_right_form_is_no_problem(healthy: Altered) -> None:
    """Altered: details hands requests on to another VirtualService, as it should."""
    root = {"match": [{"uri": {"prefix": "/details"}}], "delegate": {"name": "shelf"}}
    add(healthy, "virtualservices", "details", {"hosts": ["details"], "http": [root]})
    inner = {"match": [{"uri": {"prefix": "/details/0"}}], **DELEGATE}
    add(healthy, "virtualservices", "shelf", {"http": [inner, DELEGATE]})
    assert_harmless(healthy)


def test_what_is_wrong_in_a_delegate_fails_for_the_hosts_of_its_root(healthy: Altered) -> None:
    """Altered: details hands requests on, and the delegate injects faults."""
    add(
        healthy,
        "virtualservices",
        "details",
        {"hosts": ["details"], "http": [{"delegate": {"name": "shelf"}}]},
    )
    fault = {"abort": {"httpStatus": 500, "percentage": {"value": 100}}}
    add(healthy, "virtualservices", "shelf", {"http": [{"fault": fault, **DELEGATE}]})
    aborted = {"code": "500", "flags": "FI", "details": "fault_filter_abort", **NOWHERE}
    served_no_more(healthy, "details", **aborted)
    diagnosis = assert_blamed(healthy, "MNB230", "A", "VirtualService bookinfo/shelf")
    assert_explains(diagnosis, 10)


@pytest.mark.parametrize(("prefix", "code"), [("/api", "MNB224"), ("/shop", None)])
def test_two_virtual_services_for_a_host_at_a_gateway_may_share_it_by_path(
    healthy: Altered, prefix: str, code: str | None
) -> None:
    """Altered: a second VirtualService at the gateway repeats the older one's path, or does not."""
    http = [{"match": [{"uri": {"prefix": f"{prefix}/v1/products/x"}}], "route": [TO["details"]]}]
    spec = {"hosts": [SHOP], "gateways": ["bookinfo-gateway"], "http": http}
    add(healthy, "virtualservices", "second", spec)
    if code is None:
        assert_harmless(healthy)
    else:
        assert_blamed(healthy, code, "A", "VirtualService bookinfo/second")


@pytest.mark.parametrize("selector", [None, {"labels": {"app": "ratings"}}])
def test_two_sidecars_for_the_same_pods_conflict(healthy: Altered, selector: Object | None) -> None:
    """Altered: two Sidecars for the namespace, or for the same pods."""
    spec: Object = {"egress": [{"hosts": ["*/*"]}]}
    if selector:
        spec["workloadSelector"] = selector
    add(healthy, "sidecars", "first", spec, at=EARLIER)
    add(healthy, "sidecars", "second", spec)
    assert_blamed(healthy, "MNB225", "A", "Sidecar bookinfo/second")


def test_a_sidecar_for_the_namespace_and_one_for_a_workload_go_together(healthy: Altered) -> None:
    """Altered: a Sidecar for the namespace, one for the mesh, and one for the pods of ratings."""
    spec: Object = {"egress": [{"hosts": ["*/*"]}]}
    add(healthy, "sidecars", "default", spec, at=EARLIER)
    add(healthy, "sidecars", "default", spec, at=EARLIER, namespace="istio-system")
    chosen = {**spec, "workloadSelector": {"labels": {"app": "ratings"}}}
    add(healthy, "sidecars", "ratings", chosen)
    assert_harmless(healthy)


# --- Subsets and DestinationRules ---------------------------------------------------------------


def test_a_subset_that_is_defined_out_of_sight_is_missing(healthy: Altered) -> None:
    """Altered: the DestinationRule of reviews stands in a namespace where no caller looks."""

    def moved(rule: Object) -> None:
        rule["metadata"]["namespace"] = "outside"
        rule["spec"]["host"] = FULL.format("reviews")

    change(healthy, "destinationrules", "reviews", moved)
    served_no_more(healthy, "reviews", **NO_CLUSTER)
    diagnosis = assert_first(healthy, "MNB210", "A", "DestinationRule outside/reviews")
    assert_explains(diagnosis, 20)


@pytest.mark.parametrize("namespace", ["istio-system"])
def test_a_subset_may_be_defined_in_the_root_namespace(healthy: Altered, namespace: str) -> None:
    """Altered: the DestinationRule of reviews stands in the root namespace."""

    def moved(rule: Object) -> None:
        rule["metadata"]["namespace"] = namespace
        rule["spec"]["host"] = FULL.format("reviews")

    change(healthy, "destinationrules", "reviews", moved)
    assert_harmless(healthy)


def test_a_subset_that_was_taken_out_of_its_rule_is_the_rules_fault(healthy: Altered) -> None:
    """Altered: the DestinationRule of reviews has lost its second subset."""
    change(healthy, "destinationrules", "reviews", lambda one: one["spec"]["subsets"].pop())
    served_no_more(healthy, "reviews", **NO_CLUSTER)
    assert_blamed(healthy, "MNB210", "A", "DestinationRule bookinfo/reviews")


def test_a_subset_that_hands_on_to_a_missing_one_is_found_in_a_delegate(healthy: Altered) -> None:
    """Altered: a delegate of details leads to a subset that nobody defines."""
    add(
        healthy,
        "virtualservices",
        "details",
        {"hosts": ["details"], "http": [{"delegate": {"name": "shelf"}}]},
    )
    target = {"destination": {"host": "details", "subset": "v7"}}
    add(healthy, "virtualservices", "shelf", {"http": [{"route": [target]}]})
    served_no_more(healthy, "details", **NO_CLUSTER)
    diagnosis = assert_blamed(healthy, "MNB210", "A", "VirtualService bookinfo/shelf")
    assert_explains(diagnosis, 10)


def test_a_subset_whose_deployment_is_stopped_is_the_deployments_matter(healthy: Altered) -> None:
    """Altered: the Deployment of reviews v2 wants no pods, and requests to v2 find nobody."""
    healthy.remove("pods", "reviews-v2")
    healthy.each("deployments", "reviews-v2", lambda one: one["spec"].update(replicas=0))
    for kind in ("http", "probe", "log"):
        healthy.forget(kind=kind, pod="reviews-v2-79bdb4f448-sdvj9")
    cluster = f"outbound|9080|v2|{FULL.format('reviews')}"
    served_no_more(healthy, "reviews", cluster=cluster, **NO_ENDPOINT)
    assert_first(healthy, "MNB211", "C", "Deployment bookinfo/reviews-v2")


POOL = {"connectionPool": {"tcp": {"maxConnections": 10}}}


def test_a_rule_of_the_root_comes_behind_that_of_the_services_namespace(healthy: Altered) -> None:
    """Altered: the root namespace and that of ratings have a DestinationRule for it each."""
    add(healthy, "destinationrules", "calm", {"host": "ratings", "trafficPolicy": POOL}, at=EARLIER)
    spec = {"host": RATINGS_HOST, "trafficPolicy": {"outlierDetection": {}}}
    add(healthy, "destinationrules", "everywhere", spec, namespace="istio-system")
    assert_blamed(healthy, "MNB212", "A", "DestinationRule istio-system/everywhere")


@pytest.mark.parametrize(
    ("namespace", "spec"),
    [
        ("outside", {"host": RATINGS_HOST, "trafficPolicy": POOL}),
        ("legacy", {"host": "ratings", "trafficPolicy": POOL}),
        (
            "bookinfo",
            {
                "host": "ratings",
                "subsets": [{"name": "v1", "labels": {"app": "ratings"}, "trafficPolicy": POOL}],
            },
        ),
    ],
    ids=["out of sight", "another namespace's short name", "a subset that no route names"],
)
def test_a_rule_that_shapes_no_cluster_is_found(
    healthy: Altered, namespace: str, spec: Object
) -> None:
    """Altered: a DestinationRule for ratings that no proxy takes."""
    add(healthy, "destinationrules", "calm", spec, namespace=namespace)
    assert_blamed(healthy, "MNB212", "A", f"DestinationRule {namespace}/calm")


def test_of_two_rules_for_a_host_the_older_ones_policy_counts(healthy: Altered) -> None:
    """Altered: two DestinationRules of one namespace for ratings with different policies."""
    add(healthy, "destinationrules", "calm", {"host": "ratings", "trafficPolicy": POOL}, at=EARLIER)
    policy = {"outlierDetection": {"consecutive5xxErrors": 5}}
    add(healthy, "destinationrules", "strict", {"host": RATINGS_HOST, "trafficPolicy": policy})
    assert_blamed(healthy, "MNB212", "A", "DestinationRule bookinfo/strict")


@pytest.mark.parametrize(
    ("namespace", "spec"),
    [
        ("bookinfo", {"host": "reviews", "trafficPolicy": POOL}),
        ("istio-system", {"host": "*.local", "trafficPolicy": POOL}),
        ("bookinfo", {"host": "legacy-api.example.org", "trafficPolicy": POOL}),
    ],
    ids=["adds to the other rule", "the mesh's default", "for a host to come"],
)
def test_rules_that_go_together_are_no_problem(
    healthy: Altered, namespace: str, spec: Object
) -> None:
    """Altered: a DestinationRule that adds a policy, is a default, or waits for its host."""
    add(healthy, "destinationrules", "calm", spec, namespace=namespace)
    assert problems(diagnose(healthy.facts())) == []


# --- Hidden and blocked hosts -------------------------------------------------------------------


def test_a_sidecar_that_hides_a_host_from_callers_who_reach_it_all_the_same_is_found(
    healthy: Altered,
) -> None:
    """Altered: a Sidecar hides ratings, and the client's proxy passes its connections on."""
    add(healthy, "sidecars", "default", {"egress": [{"hosts": ["istio-system/*"]}]})
    passed = {"cluster": "PassthroughCluster", "local": "10.96.220.46:9080", "route": "allow_any"}
    healthy.request("client", "/ratings/0", 9, since=SINCE, **passed)
    assert_blamed(healthy, "MNB231", "A", "Sidecar bookinfo/default")


def test_a_sidecar_that_hides_an_external_host_is_at_fault_for_it(healthy: Altered) -> None:
    """Altered: a ServiceEntry registers the host, and a Sidecar leaves its namespace out."""
    spec = {"outboundTrafficPolicy": {"mode": "REGISTRY_ONLY"}, "egress": [{"hosts": ["./*"]}]}
    add(healthy, "sidecars", "default", spec)
    entry = {
        "hosts": ["api.example.org"],
        "ports": [{"number": 80, "name": "http", "protocol": "HTTP"}],
        "resolution": "DNS",
    }
    add(healthy, "serviceentries", "partner", entry, namespace="outside", at=EARLIER)
    healthy.request("client", "/ratings/0", since=SINCE, **BLOCKED)
    assert_blamed(healthy, "MNB231", "A", "Sidecar bookinfo/default")


def registry_only(altered: Altered) -> Altered:
    """Let the mesh allow registered hosts only."""
    return altered.pages(
        lambda page: page["outboundTrafficPolicy"].update(mode="REGISTRY_ONLY"), path="/debug/mesh"
    )


def test_a_slip_in_a_service_entry_is_the_entrys_fault(healthy: Altered) -> None:
    """Altered: the registered host differs from the called one by a slip."""
    registry_only(healthy)
    entry = {
        "hosts": ["api.exmaple.org"],
        "ports": [{"number": 80, "name": "http", "protocol": "HTTP"}],
        "resolution": "DNS",
    }
    add(healthy, "serviceentries", "partner", entry)
    healthy.request("client", "/ratings/0", since=SINCE, **BLOCKED)
    assert_blamed(healthy, "MNB232", "A", "ServiceEntry bookinfo/partner")


def test_the_settings_of_a_mesh_with_a_revision_stand_in_a_config_map_of_its_own(
    healthy: Altered,
) -> None:
    """Altered: istiod has a revision."""
    registry_only(healthy)
    healthy.each(
        "pods", "istiod", lambda one: one["metadata"]["labels"].update({"istio.io/rev": "blue"})
    )
    healthy.request("client", "/ratings/0", since=SINCE, **BLOCKED)
    assert_first(healthy, "MNB232", "A", "ConfigMap istio-system/istio-blue")


def test_a_port_that_a_service_entry_does_not_have_is_blocked(healthy: Altered) -> None:
    """Altered: the host is registered with port 443, and is called on port 80."""
    registry_only(healthy)
    entry = {
        "hosts": ["api.example.org"],
        "ports": [{"number": 443, "name": "https", "protocol": "TLS"}],
        "resolution": "DNS",
    }
    add(healthy, "serviceentries", "partner", entry)
    healthy.request("client", "/ratings/0", since=SINCE, **BLOCKED)
    assert_blamed(healthy, "MNB236", "A", "ServiceEntry bookinfo/partner")
