"""Whom an object concerns: on the recording of a healthy mesh, to which one was added."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from meshnb.traces.change import follow_change
from tests.alteration import Altered
from tests.conftest import facts_of
from tests.traces.following import (
    HELD,
    follow,
    listed,
    made,
    page_of,
    route_to,
    stopped,
    twin,
    without_held,
)


@pytest.fixture
def healthy(tmp_path: Path) -> Altered:
    """Return the recording of a healthy mesh, to be altered."""
    return Altered("healthy", tmp_path)


def _rule(host: str, **spec: Any) -> dict[str, Any]:
    return {"spec": {"host": host, "trafficPolicy": {"tls": {"mode": "SIMPLE"}}, **spec}}


def _policy(**spec: Any) -> dict[str, Any]:
    return {"spec": {"rules": [{}], **spec}}


SCOPED: dict[str, tuple[str, str, str, dict[str, Any], str]] = {
    "RT-01: a short host means a Service of the object's own namespace": (
        "virtualservices", "VirtualService", "legacy", route_to("reviews"),
        "Did you mean reviews.bookinfo.svc.cluster.local",
    ),
    "EX-01: exportTo shows it to another namespace only": (
        "virtualservices", "VirtualService", "bookinfo",
        route_to("ratings", gateways=["bookinfo-gateway"], exportTo=["elsewhere"],
               hosts=["bookinfo.example.com"]),
        "exportTo hides it from the pods of Gateway bookinfo/bookinfo-gateway",
    ),
    "a VirtualService without hosts needs one that delegates to it": (
        "virtualservices", "VirtualService", "bookinfo",
        {"spec": {"http": [{"route": [{"destination": {"host": "ratings"}}]}]}},
        "no VirtualService delegates to it",
    ),
    "SUB-03: a DestinationRule elsewhere is nobody's": (
        "destinationrules", "DestinationRule", "orders",
        _rule("ratings.bookinfo.svc.cluster.local"),
        "neither the client's namespace nor the Service's (bookinfo) nor the root namespace",
    ),
    "SUB-03: a DestinationRule for a host that is not there": (
        "destinationrules", "DestinationRule", "bookinfo", _rule("rating"),
        "No Service and no ServiceEntry has the host rating.bookinfo.svc.cluster.local",
    ),
    "CP-06: an object of another revision is nobody's": (
        "destinationrules", "DestinationRule", "bookinfo",
        {"metadata": {"labels": {"istio.io/rev": "canary"}}, **_rule("ratings")},
        "istio.io/rev=canary is for another revision",
    ),
    "AZ-06: a selector that chooses no pod": (
        "authorizationpolicies", "AuthorizationPolicy", "bookinfo",
        _policy(selector={"matchLabels": {"app": "rating"}}), "app=rating chooses no pod",
    ),
    "a policy in a namespace without pods": (
        "authorizationpolicies", "AuthorizationPolicy", "empty", _policy(),
        "There is no pod in its namespace empty",
    ),
    "K8G-07: a policy on a Gateway that is not there": (
        "authorizationpolicies", "AuthorizationPolicy", "bookinfo",
        _policy(targetRefs=[{"kind": "Gateway", "name": "edge"}]), "does not exist",
    ),
    "AMB-06: a policy on a Service that has no waypoint": (
        "authorizationpolicies", "AuthorizationPolicy", "bookinfo",
        _policy(targetRefs=[{"kind": "Service", "name": "ratings"}]), "needs a waypoint to obey it",
    ),
    "EXT-01: an EnvoyFilter whose patches are for another kind of proxy": (
        "envoyfilters", "EnvoyFilter", "bookinfo",
        {"spec": {"configPatches": [{"applyTo": "HTTP_FILTER", "match": {"context": "GATEWAY"},
                                     "patch": {"operation": "ADD", "value": {"name": "a"}}}]}},
        "its patches are for GATEWAY only",
    ),
    "a PeerAuthentication that an older one overrules": (
        "peerauthentications", "PeerAuthentication", "istio-system",
        {"spec": {"selector": {"matchLabels": {"app": "ratings"}}, "mtls": {"mode": "STRICT"}}},
        "in the root namespace a policy with a selector has no effect",
    ),
    "a WorkloadEntry that nothing selects": (
        "workloadentries", "WorkloadEntry", "bookinfo",
        {"spec": {"address": "10.1.2.3", "labels": {"app": "machine"}}}, "selects its labels",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", SCOPED)
def test_an_object_that_concerns_nobody_stops_at_selected(case: str, healthy: Altered) -> None:
    """Altered: such an object was added, long before the recording; no istiod has it."""
    resource, kind, namespace, document, words = SCOPED[case]
    listed(healthy, resource)
    healthy.objects(resource, lambda items: items.append(made(kind, namespace, document)))
    healthy.pages(without_held("added"), **HELD)
    trace = follow_change(healthy.facts(), f"{kind}/{namespace}/added")
    assert stopped(trace) == "selected", trace.answer
    assert words in trace.answer


def test_discovery_selectors_leave_out_a_namespace(healthy: Altered) -> None:
    """Altered: istiod watches only namespaces labelled so, and has forgotten the others'."""

    def select(settings: Any) -> None:
        settings["discoverySelectors"] = [{"matchLabels": {"mesh": "on"}}]

    healthy.pages(select, port=15014, path="/debug/mesh")
    healthy.pages(without_held("reviews"), **HELD)
    trace = follow(healthy, "VirtualService/bookinfo/reviews")
    assert stopped(trace) == "selected"
    assert "discoverySelectors leave out the namespace bookinfo" in trace.answer


def test_a_sidecar_that_hides_the_host_is_named_for_each_proxy(healthy: Altered) -> None:
    """Altered: a Sidecar for the client's pod lists another namespace only."""
    spec = {"workloadSelector": {"labels": {"app": "client"}}, "egress": [{"hosts": ["a/*"]}]}
    listed(healthy, "sidecars")
    sidecar = made("Sidecar", "bookinfo", {"spec": spec})
    healthy.objects("sidecars", lambda items: items.append(sidecar))
    healthy.each("pods", "client", lambda pod: pod["metadata"]["labels"].update(app="client"))
    trace = follow(healthy, "VirtualService/bookinfo/reviews")
    hidden = [one for one in trace["selected"].standings if one.outcome == "not_needed"]
    assert [one.who for one in hidden] == ["client.bookinfo"]
    assert "Sidecar bookinfo/added hides" in hidden[0].says


def test_of_two_rules_for_one_host_the_older_ones_policy_counts(healthy: Altered) -> None:
    """Altered: a second DestinationRule for reviews, and the first has a policy, too."""
    healthy.each(
        "destinationrules", "reviews", lambda one: one["spec"].update(_rule("reviews")["spec"])
    )
    added = made("DestinationRule", "bookinfo", _rule("reviews"))
    healthy.objects("destinationrules", lambda items: items.append(added))
    trace = follow_change(healthy.facts(), "DestinationRule/bookinfo/added")
    assert stopped(trace) == "selected"
    assert "The older DestinationRule bookinfo/reviews is for the same host" in trace.answer


def test_in_ambient_mode_a_virtual_service_needs_a_waypoint(tmp_path: Path) -> None:
    """Altered: a VirtualService for an ambient Service was added."""
    altered = Altered("garden-healthy", tmp_path)
    listed(altered, "virtualservices")
    added = made("VirtualService", "garden", route_to("api"))
    altered.objects("virtualservices", lambda items: items.append(added))
    trace = follow_change(altered.facts(), "VirtualService/garden/added")
    assert stopped(trace) == "selected"
    assert "api.garden.svc.cluster.local needs a waypoint" in trace.answer


# --- What is well, and looks odd ----------------------------------------------------------------


def test_a_gateway_that_passes_through_by_itself_needs_no_virtual_service(
    healthy: Altered,
) -> None:
    """Altered: a Gateway for other networks was added, as multicluster meshes have it."""
    server = {
        "port": {"number": 15443, "name": "tls", "protocol": "TLS"},
        "tls": {"mode": "AUTO_PASSTHROUGH"},
        "hosts": ["*.local"],
    }
    spec = {"selector": {"istio": "ingressgateway"}, "servers": [server]}
    added = made("Gateway", "istio-system", {"spec": spec})
    healthy.objects("gateways", lambda items: items.append(added))
    trace = follow_change(healthy.facts(), "Gateway/istio-system/added")
    assert trace["selected"].outcome == "passed"


@pytest.mark.parametrize("resource", ["services", "gateways"])
def test_what_could_not_be_listed_is_not_missing(resource: str, healthy: Altered) -> None:
    """Altered: the list was refused."""
    healthy.silence("forbidden", 403, kind="list", resource=resource)
    facts = healthy.facts()
    for subject in ("VirtualService/bookinfo/reviews", "VirtualService/bookinfo/bookinfo"):
        assert follow_change(facts, subject)["selected"].outcome != "broken"


def test_a_delegate_is_in_force_through_its_root(healthy: Altered) -> None:
    """Altered: the VirtualService hands all on to another one, which has the routes."""
    delegate = made("VirtualService", "bookinfo", {})
    delegate["apiVersion"] = "networking.istio.io/v1"

    def hand_on(one: Any) -> None:
        delegate["spec"] = {"http": one["spec"]["http"]}
        one["spec"]["http"] = [{"delegate": {"name": "added"}}]

    healthy.each("virtualservices", "reviews", hand_on)
    healthy.objects("virtualservices", lambda items: items.append(delegate))
    healthy.pages(lambda page: page.append(delegate), **HELD)
    facts = healthy.facts()
    for name in ("added", "reviews"):
        trace = follow_change(facts, f"VirtualService/bookinfo/{name}")
        assert (stopped(trace), trace["active"].outcome) == ("", "passed"), trace.answer


def test_a_second_revision_leaves_an_object_out_on_purpose(healthy: Altered) -> None:
    """Altered: the object is for the revision of the one istiod; a second has another one."""
    istiod = str(facts_of("healthy")["istiod_ports"]["istiod"].iloc[0])

    def add(items: list[Any]) -> None:
        items.append(twin(items, istiod))
        items[-1]["metadata"]["labels"]["istio.io/rev"] = "next"

    healthy.objects("pods", add)
    labels = {"istio.io/rev": "default"}
    healthy.each("virtualservices", "reviews", lambda one: one["metadata"].update(labels=labels))
    held = [one for one in page_of(healthy, HELD) if one["metadata"]["name"] != "reviews"]
    healthy.reply({"kind": "http", **HELD}, held, pod="istiod-twin")
    trace = follow_change(healthy.facts(), "VirtualService/bookinfo/reviews")
    outcomes = {one.who: one.outcome for one in trace["seen"].standings}
    assert (stopped(trace), outcomes["istiod-twin"]) == ("", "not_needed")
