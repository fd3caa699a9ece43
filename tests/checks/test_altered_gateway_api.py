"""Checks of the Gateway API, on altered recordings.

What is altered is named in each test. Beside each fault stands what looks like it and is none.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from meshnb.diagnosis import diagnose
from tests.alteration import Altered, metadata
from tests.checks.test_altered import (
    assert_blamed,
    assert_harmless,
    problems,
)
from tests.checks.test_altered_gateways import UNROUTED, Object, add, change, codes_of

MARKET_SINCE = "2026-11-23T04:37:36"
MARKET_CHANGED = "2026-11-23T04:37:33Z"
MARKET = "market.example.com"
ROUTE = "HTTPRoute market/stall"


def unrouted_in_market(market: Altered, since: str = MARKET_SINCE, **fields: str) -> Altered:
    """Let the gateway of the market have no route, from the change on."""
    return market.at_client(MARKET, since, pod="market-gw-istio", **{**UNROUTED, **fields})


def market_gateways(market: Altered, edit: Callable[[list[Object]], None]) -> Altered:
    """Change the list of Gateways of the Gateway API; Istio's own have the same resource name."""

    def rewrite(text: str) -> str:
        document = json.loads(text)
        edit(document["items"])
        return json.dumps(document)

    api = "gateway.networking.k8s.io/v1"
    return market.texts(rewrite, kind="list", resource="gateways", apiVersion=api)


def market_gateway(
    market: Altered, edit: Callable[[Object], None], at: str = "2026-11-23T04:37:33Z"
) -> Altered:
    """Change the Gateway of the market, and note when."""

    def edit_and_note(items: list[Object]) -> None:
        for item in items:
            edit(item)
            item["metadata"]["managedFields"] = metadata("", "", at)["managedFields"]

    return market_gateways(market, edit_and_note)


def http_route(market: Altered, **spec: Any) -> Altered:
    """Change the HTTPRoute."""
    return change(
        market, "httproutes", "stall", lambda one: one["spec"].update(spec), MARKET_CHANGED
    )


@pytest.mark.parametrize(
    "where", [{"sectionName": "https"}, {"port": 8080}, {"namespace": "depot"}]
)
def test_a_parent_without_such_a_listener_takes_no_route(market: Altered, where: Object) -> None:
    """Altered: the HTTPRoute names a listener, port or namespace that its Gateway does not have."""
    http_route(market, parentRefs=[{"kind": "Gateway", "name": "market-gw", **where}])
    unrouted_in_market(market)
    assert_blamed(market, "MNB351", "A", ROUTE)


def conditions(kind: str, reason: str, status: str = "False") -> list[Object]:
    """Return conditions as istiod writes them."""
    return [{"type": kind, "status": status, "reason": reason, "message": "as istiod says"}]


@pytest.mark.parametrize("reason", ["NotAllowedByListeners", "NoMatchingListenerHostname"])
@pytest.mark.parametrize("which", ["route", "gateway"])
def test_a_route_that_its_gateway_does_not_let_in_is_the_matter_of_who_was_changed(
    market: Altered, reason: str, which: str
) -> None:
    """Altered: istiod says that the route is not let in; the route or the Gateway was changed."""

    def refuse(route: Object) -> None:
        route["status"]["parents"][0]["conditions"] = conditions("Accepted", reason)

    market.each("httproutes", "stall", refuse)
    if which == "route":
        http_route(market)
    else:
        market_gateway(market, lambda _: None)
    unrouted_in_market(market)
    subject = ROUTE if which == "route" else "Gateway market/market-gw"
    assert_blamed(market, "MNB352", "A", subject)


def test_a_backend_that_does_not_exist_is_the_routes_fault(market: Altered) -> None:
    """Altered: the HTTPRoute's backend is not found, and the gateway answers 500."""
    backend = {"name": "stal", "port": 8000}
    rule = {"matches": [{"path": {"value": "/fruit"}}], "backendRefs": [backend]}
    http_route(market, rules=[rule])

    def refuse(route: Object) -> None:
        route["status"]["parents"][0]["conditions"] = conditions("ResolvedRefs", "BackendNotFound")

    market.each("httproutes", "stall", refuse)
    unrouted_in_market(market, code="500", flags="-", details="direct_response")
    assert_blamed(market, "MNB352", "A", ROUTE)


@pytest.mark.parametrize(
    ("kind", "reason", "status"),
    [
        ("ResolvedRefs", "InvalidCertificateRef", "False"),
        ("Programmed", "Invalid", "False"),
        ("Conflicted", "ProtocolConflict", "True"),
    ],
)
def test_a_listener_that_is_not_in_force_is_the_gateways_fault(
    market: Altered, kind: str, reason: str, status: str
) -> None:
    """Altered: istiod says that one listener has no certificate, is not made, or conflicts."""

    def refuse(item: Object) -> None:
        item["spec"]["listeners"].append({"name": "tls", "port": 443, "protocol": "HTTPS"})
        item["status"]["listeners"].append(
            {"name": "tls", "conditions": conditions(kind, reason, status)}
        )

    market_gateway(market, refuse)
    assert_blamed(market, "MNB352", "A", "Gateway market/market-gw")


@pytest.mark.parametrize("reason", ["AddressNotAssigned"])
def test_a_gateway_that_serves_without_an_address_from_outside_is_no_problem(
    market: Altered, reason: str
) -> None:
    """Altered: istiod says that the Gateway has no address yet, as where there is no cloud."""

    def wait(item: Object) -> None:
        item["status"]["conditions"] = conditions("Programmed", reason)

    market_gateway(market, wait)
    assert_harmless(market, "MNB352")


def test_a_gateway_of_a_class_that_does_not_exist_is_made_by_nobody(market: Altered) -> None:
    """Altered: a second Gateway has a slip in the name of its class, and no status."""
    listener = {"name": "http", "port": 80, "protocol": "HTTP"}
    spec = {"gatewayClassName": "itsio", "listeners": [listener]}
    annex = {"metadata": metadata("annex", "market", MARKET_CHANGED), "spec": spec}
    market_gateways(market, lambda items: items.append(annex))
    diagnosis = assert_blamed(market, "MNB353", "A", "Gateway market/annex")
    assert "istio" in diagnosis.problems[0].finding.message


@pytest.mark.parametrize(
    ("made", "subject", "cause"),
    [
        (False, "Gateway market/market-gw", "A"),
        (True, "Deployment market/market-gw-istio", "C"),
    ],
)
def test_a_gateway_without_pods_is_found(
    market: Altered, made: bool, subject: str, cause: str
) -> None:
    """Altered: the Gateway's Deployment was never made, or wants no pods."""
    market.remove("pods", "market-gw-istio")
    for kind in ("http", "probe", "log"):
        market.forget(kind=kind, pod="market-gw-istio-7dff9b757f-9d2x8")
    if made:
        market.each("deployments", "market-gw-istio", lambda one: one["spec"].update(replicas=0))
    else:
        market.remove("deployments", "market-gw-istio")
        market.remove("replicasets", "market-gw-istio")
    found = problems(diagnose(market.facts()))
    assert ("MNB354", cause, subject) in found


@pytest.mark.parametrize("since", [MARKET_SINCE, ""], ids=["of late", "from the first line"])
def test_a_path_that_no_rule_of_a_route_matches_is_the_routes_fault(
    market: Altered, since: str
) -> None:
    """Altered: the HTTPRoute has another path than is asked for."""
    path = {"type": "PathPrefix", "value": "/vegetables"}
    http_route(market, rules=[{"matches": [{"path": path}], "backendRefs": [STALL]}])
    unrouted_in_market(market, since)
    assert_blamed(market, "MNB355", "A", ROUTE)


STALL = {"name": "stall", "port": 8000}


def test_a_host_that_a_route_misspells_is_the_routes_fault(market: Altered) -> None:
    """Altered: the Gateway takes every host, and the HTTPRoute has a slip in its own."""
    market_gateway(
        market, lambda one: one["spec"]["listeners"][0].pop("hostname"), "2026-11-23T04:36:00Z"
    )
    http_route(market, hostnames=["markte.example.com"])
    unrouted_in_market(market)
    assert_blamed(market, "MNB355", "A", ROUTE)


def test_paths_that_nobody_serves_at_a_gateway_of_the_gateway_api_are_no_problem(
    market: Altered,
) -> None:
    """Altered: somebody outside asks for a path that has no rule."""
    market.request("market-gw-istio", "/fruit", 9, **{**UNROUTED, "path": "/wp-login.php"})
    assert_harmless(market)


@pytest.mark.parametrize(("value", "code"), [("/fruit", "MNB356"), ("/fruit/exotic", None)])
def test_of_two_routes_that_match_the_same_the_older_wins(
    market: Altered, value: str, code: str | None
) -> None:
    """Altered: a second HTTPRoute for the host has the same path, or a longer one."""
    parent = {"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "market-gw"}
    rule = {"matches": [{"path": {"type": "PathPrefix", "value": value}}], "backendRefs": [STALL]}
    spec = {"hostnames": [MARKET], "parentRefs": [parent], "rules": [rule]}
    add(market, "httproutes", "second", spec, namespace="market", at=MARKET_CHANGED)
    if code is None:
        assert_harmless(market)
    else:
        assert_blamed(market, code, "A", "HTTPRoute market/second")


@pytest.mark.parametrize(
    ("arguments", "code"), [(["proxy", "waypoint"], "MNB357"), (["proxy", "router"], None)]
)
def test_a_policy_that_selects_a_waypoint_by_labels_is_not_enforced(
    market: Altered, arguments: list[str], code: str | None
) -> None:
    """Altered: a policy selects the gateway's pod by its labels; the pod is a waypoint or not."""

    def as_waypoint(pod: Object) -> None:
        for container in pod["spec"]["containers"]:
            if container["name"] == "istio-proxy":
                container["args"] = [*arguments, *container["args"][2:]]

    market.each("pods", "market-gw-istio", as_waypoint)
    labels = {"gateway.networking.k8s.io/gateway-name": "market-gw"}
    spec = {
        "selector": {"matchLabels": labels},
        "action": "DENY",
        "rules": [{"to": [{"operation": {"paths": ["/x"]}}]}],
    }
    add(market, "authorizationpolicies", "walls", spec, namespace="market", at=MARKET_CHANGED)
    found = [code for code in codes_of(market) if code == "MNB357"]
    assert found == ([code] if code else [])
