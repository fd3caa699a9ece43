"""One object followed up the ladder: on every recording, and on recordings altered in one respect.

The access logs of the recordings begin shortly before each fault, so that most objects are older.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from meshnb.errors import UsageError
from meshnb.sources import Bundle, Manifests
from meshnb.tables import Facts
from meshnb.traces.change import follow_change
from meshnb.traces.rungs.ladder import RUNGS
from tests.alteration import Altered
from tests.conftest import facts_of, recording_names, truth_of, unpacked
from tests.renaming import renamed, renamed_bundle
from tests.traces.following import (
    DUMP,
    HELD,
    LATER,
    SYNC,
    complaints_of,
    follow,
    listed,
    made,
    mesh_of,
    page_of,
    pod_of,
    replaced_by,
    route_to,
    set_mesh,
    stopped,
    sync,
    to_v1,
    twin,
    weights,
    without,
    without_held,
    without_routes,
)

HEALTHY = [name for name in recording_names() if truth_of(name)["healthy"]]


@pytest.fixture
def healthy(tmp_path: Path) -> Altered:
    """Return the recording of a healthy mesh, to be altered."""
    return Altered("healthy", tmp_path)


# --- Every recording ----------------------------------------------------------------------------

#: Where the ladder breaks for each Istio object that a label blames, and why there. An object that
#: is in force, and does harm by that, breaks nowhere.
LABELLED = {
    ("authz-allow-nobody", "AuthorizationPolicy/bookinfo/details-readers"): ("", "refused by it"),
    ("authz-deny-named", "AuthorizationPolicy/bookinfo/no-strangers"): ("", "refused by it"),
    ("authz-principal-typo", "AuthorizationPolicy/bookinfo/details-readers"): ("", "refused by it"),
    ("ztunnel-deny", "AuthorizationPolicy/garden/seeds-callers"): ("", "refused by it"),
    ("mtls-client-disable", "DestinationRule/bookinfo/ratings"): ("", "26 failed"),
    ("tls-to-plaintext", "DestinationRule/bookinfo/details"): ("", "40 failed"),
    ("mtls-strict-legacy-client", "PeerAuthentication/bookinfo/default"): ("", "in force"),
    ("fault-left-behind", "VirtualService/bookinfo/ratings-test"): ("", "of which 11 failed"),
    ("app-slow", "VirtualService/bookinfo/ratings"): ("", "of which 29 failed"),
    ("rate-limited", "EnvoyFilter/bookinfo/details-ratelimit"): ("", "in force in 1 proxy"),
    ("sidecar-hides-host", "Sidecar/bookinfo/default"): ("", "in force in 6 proxies"),
    # Istio takes an object that names what is not there; it is found by reading it.
    ("route-host-unknown", "VirtualService/bookinfo/ratings"): ("valid", "no Service"),
    ("subset-missing", "VirtualService/bookinfo/reviews"): ("valid", "no DestinationRule defines"),
    # It defines what it defines: that another subset is asked for is not its own doing.
    ("subset-missing", "DestinationRule/bookinfo/reviews"): ("", "in force"),
    ("subset-no-pods", "DestinationRule/bookinfo/reviews"): ("valid", "version=v2-typo"),
    ("gateway-secret-missing", "Gateway/bookinfo/bookinfo-tls"): ("valid", "does not exist"),
    ("backend-not-permitted", "HTTPRoute/market/stall"): ("valid", "ReferenceGrant"),
    ("duplicate-virtualservice", "VirtualService/bookinfo/details"): ("", "in force"),
    ("duplicate-virtualservice", "VirtualService/bookinfo/details-canary"): ("selected", "older"),
    ("gateway-hosts-disjoint", "VirtualService/bookinfo/bookinfo"): ("selected", "no server for"),
    ("gateway-hosts-disjoint", "Gateway/bookinfo/bookinfo-gateway"): ("selected", "to serve"),
    ("gateway-name-wrong", "VirtualService/bookinfo/bookinfo"): ("selected", "does not exist"),
    ("gateway-selector-wrong", "Gateway/bookinfo/bookinfo-gateway"): ("selected", "chooses no pod"),
    ("httproute-parent-wrong", "HTTPRoute/market/stall"): ("selected", "market/market-gw?"),
    ("waypoint-missing", "Service/garden/api"): ("selected", "there is no Gateway"),
    ("envoyfilter-rejected", "EnvoyFilter/bookinfo/broken-lua"): ("accepted", "script load error"),
    ("route-shadowed", "VirtualService/bookinfo/reviews"): ("active", "never taken"),
    # Services that were changed: the clusters are there, and what is behind them is not.
    ("app-wrong-port", "Service/bookinfo/ratings"): ("", "in force"),
    ("port-name-grpc", "Service/bookinfo/ratings"): ("", "in force"),
    ("server-first-undeclared", "Service/bookinfo/mail"): ("", "in force"),
    ("service-selector-wrong", "Service/bookinfo/details"): ("", "in force"),
    ("https-to-http-port", "Service/bookinfo/productpage"): ("", "in force"),
}
_FOLLOWED = ("Deployment", "Pod", "Secret", "Namespace")


@pytest.mark.parametrize(("recording", "subject"), LABELLED)
def test_the_ladder_breaks_where_the_label_says(recording: str, subject: str) -> None:
    facts = facts_of(recording)
    trace = follow_change(facts, subject, complaints=complaints_of(recording))
    rung, words = LABELLED[recording, subject]
    assert (stopped(trace), words in trace.answer) == (rung, True), trace.answer


def test_every_object_that_a_label_blames_and_that_can_be_followed_is_in_the_table() -> None:
    blamed = {
        (name, subject)
        for name in recording_names()
        for subject in truth_of(name)["truth"]
        if not subject.startswith(_FOLLOWED)
    }
    assert blamed == set(LABELLED)


@pytest.mark.parametrize("recording", HEALTHY)
def test_in_a_healthy_mesh_every_object_is_in_force(recording: str) -> None:
    facts = facts_of(recording)
    mesh = mesh_of(facts)
    subjects = [f"{i.kind}.{i.group}/{i.namespace}/{i.name}" for i in mesh.objects]
    subjects += {f"Service/{port.namespace}/{port.service}": None for port in mesh.services}
    assert follow_change(facts, "MeshConfig", mesh=mesh).broken is None
    for subject in subjects:
        trace = follow_change(facts, subject, mesh=mesh, complaints=complaints_of(recording))
        assert trace.broken is None, trace.answer
        if trace["active"].outcome == "not_needed":
            assert subject.startswith("GatewayClass")  # proxies know no classes
        else:
            assert trace["active"].outcome == "passed", f"{subject}: {trace['active'].says}"


@pytest.mark.parametrize("recording", recording_names())
def test_every_object_can_be_followed_and_told(recording: str) -> None:
    facts = facts_of(recording)
    mesh = mesh_of(facts)
    for item in mesh.objects:
        trace = follow_change(facts, f"{item.kind}/{item.namespace}/{item.name}", mesh=mesh)
        assert [rung.name for rung in trace.rungs] == list(RUNGS)
        assert trace.answer.endswith((".", "?"))
        assert json.loads(json.dumps(trace.to_json()))["subject"] == str(item)
        frame = trace.frame()
        assert frame["rung"].drop_duplicates().tolist() == list(RUNGS)
        for rung in trace.rungs:
            cites = [*rung.cites, *(cited for one in rung.standings for cited in one.cites)]
            for cited in cites:
                assert set(cited.rows) <= set(facts[cited.table].index)


@pytest.mark.parametrize(
    "recording",
    ["duplicate-virtualservice", "envoyfilter-rejected", "rate-limited", "ztunnel-deny"],
)
def test_no_rule_knows_a_name(recording: str, tmp_path: Path) -> None:
    facts = Facts(Bundle(renamed_bundle(unpacked() / recording, tmp_path / recording)))
    for item in mesh_of(facts_of(recording)).objects:
        subject = f"{item.kind}/{item.namespace}/{item.name}"
        before = follow_change(facts_of(recording), subject)
        after = follow_change(facts, renamed(subject.encode()).decode())
        assert [r.outcome for r in after.rungs] == [r.outcome for r in before.rungs]


def test_what_changed_last_is_told_with_who_did_it() -> None:
    trace = follow_change(facts_of("healthy"), "VirtualService/bookinfo/reviews")
    assert "generation 7" in trace["stored"].says
    assert "by kubectl-client-side-apply" in trace["stored"].says


def test_requests_are_counted_from_when_the_object_is_in_force() -> None:
    trace = follow_change(facts_of("fault-left-behind"), "VirtualService/bookinfo/ratings-test")
    assert trace["used"].says == "21 requests went through it since, of which 11 failed."


# --- Names --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("subject", "words"),
    [
        ("VirtualService/bookinfo/review", "Did you mean VirtualService/bookinfo/reviews"),
        ("VirtualSrvice/bookinfo/reviews", "Did you mean VirtualService"),
        ("Service/bookinfo/review", "Did you mean bookinfo/reviews"),
        ("reviews", "Write it as Kind/namespace/name"),
    ],
)
def test_a_name_that_nobody_knows_is_answered_with_the_nearest(subject: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        follow_change(facts_of("healthy"), subject)


def test_kind_namespace_and_name_may_be_given_one_by_one_and_the_kind_in_small_letters() -> None:
    one = follow_change(facts_of("healthy"), "virtualservice", "bookinfo", "reviews")
    assert one.subject == "VirtualService bookinfo/reviews"


def test_the_two_kinds_called_gateway_are_told_apart(tmp_path: Path) -> None:
    altered = Altered("market-healthy", tmp_path)
    servers = [{"port": {"number": 80, "protocol": "HTTP", "name": "http"}, "hosts": ["*"]}]
    spec = {"selector": {"istio": "ingressgateway"}, "servers": servers}
    meta = {"name": "market-gw", "namespace": "market"}
    gateway = json.dumps({"items": [{"kind": "Gateway", "metadata": meta, "spec": spec}]})
    like = {"kind": "list", "resource": "gateways", "apiVersion": "networking.istio.io/v1"}
    altered.bodies(lambda _: gateway.encode(), **like)
    facts = altered.facts()
    with pytest.raises(UsageError, match=r"Gateway\.networking\.istio\.io/market/market-gw"):
        follow_change(facts, "Gateway/market/market-gw")
    title = "Gateway.gateway.networking.k8s.io/market/market-gw"
    assert stopped(follow_change(facts, title)) == ""


# --- stored -------------------------------------------------------------------------------------


def test_an_object_that_is_gone_is_found_in_the_proxies_that_still_hold_it(
    healthy: Altered,
) -> None:
    """Altered: the VirtualService is deleted, in the API and in istiod, and nothing was pushed."""
    gone = "VirtualService/bookinfo/reviews"
    healthy.objects("virtualservices", without("reviews")).pages(without_held("reviews"), **HELD)
    trace = follow_change(healthy.facts(), gone)
    assert stopped(trace) == "stored"
    assert "gone from the API, still in 6 of 7 proxies" in trace.answer
    assert {one.who for one in trace["stored"].standings} >= {"client.bookinfo"}


def test_an_istiod_that_keeps_a_deleted_object_is_named(healthy: Altered) -> None:
    """Altered: the DestinationRule is deleted in the API only."""
    held = page_of(healthy, HELD)
    healthy.objects("destinationrules", without("reviews")).pages(replaced_by(held), **HELD)
    trace = follow_change(healthy.facts(), "DestinationRule/bookinfo/reviews")
    assert "still in 7 of 7 proxies and in istiod-" in trace.answer


def test_an_object_is_not_called_deleted_where_its_kind_could_not_be_listed(
    healthy: Altered,
) -> None:
    """Altered: the list of VirtualServices was refused."""
    healthy.silence("forbidden", 403, kind="list", resource="virtualservices")
    trace = follow_change(healthy.facts(), "VirtualService/bookinfo/reviews")
    assert (stopped(trace), trace["stored"].outcome) == ("", "undecided")


def test_an_unknown_object_of_a_kind_that_could_not_be_listed_was_not_refused(
    healthy: Altered,
) -> None:
    """Altered: the list of Sidecars was refused."""
    listed(healthy, "sidecars")
    healthy.silence("forbidden", 403, kind="list", resource="sidecars")
    with pytest.raises(UsageError, match="its kind could not be listed"):
        follow_change(healthy.facts(), "Sidecar/bookinfo/default")
    with pytest.raises(UsageError, match="a webhook refused it"):
        follow_change(facts_of("healthy"), "VirtualService/bookinfo/ratings")


# --- valid --------------------------------------------------------------------------------------


def test_what_istiod_rejected_when_it_read_it_is_told(healthy: Altered) -> None:
    """Altered: istiod counts the Gateway among rejected configurations."""
    line = 'pilot_total_rejected_configs{name="bookinfo/bookinfo-gateway",type="gateway"} 1\n'
    healthy.texts(lambda text: text + line, kind="http", port=15014, path="/metrics")
    trace = follow(healthy, "Gateway/bookinfo/bookinfo-gateway")
    assert stopped(trace) == "valid"
    assert "pilot_total_rejected_configs" in trace.answer


def test_a_message_of_several_lines_is_told_in_one(tmp_path: Path) -> None:
    """Altered: the controller's message has line breaks."""
    altered = Altered("backend-not-permitted", tmp_path)

    def change(one: Any) -> None:
        for condition in one["status"]["parents"][0]["conditions"]:
            condition["message"] = "not\nat\r\nall"

    altered.each("httproutes", "stall", change)
    trace = follow_change(altered.facts(), "HTTPRoute/market/stall")
    assert "not at all." in trace.answer


def test_a_condition_of_an_earlier_generation_says_nothing_of_this_one(tmp_path: Path) -> None:
    """Altered: the route was changed again after the controller refused it."""
    altered = Altered("backend-not-permitted", tmp_path)
    altered.each("httproutes", "stall", lambda one: one["metadata"].update(generation=9))
    assert follow_change(altered.facts(), "HTTPRoute/market/stall")["valid"].outcome == "passed"


# --- seen ---------------------------------------------------------------------------------------


def test_of_two_istiods_the_one_behind_is_named_with_its_proxies(healthy: Altered) -> None:
    """Altered: a second istiod, which has an older generation, and to which one proxy belongs.

    The proxy's routes still lead as that generation said: all to v1.
    """
    istiod = str(facts_of("healthy")["istiod_ports"]["istiod"].iloc[0])
    held = page_of(healthy, HELD)
    for one in held:
        if (one["kind"], one["metadata"]["name"]) == ("VirtualService", "reviews"):
            one["metadata"]["generation"] -= 1
    status = page_of(healthy, SYNC)
    mine = [one for one in status if one["proxy"] == "client.bookinfo"]
    healthy.objects("pods", lambda items: items.append(twin(items, istiod)))
    healthy.reply({"kind": "http", **HELD}, held, pod="istiod-twin")
    healthy.reply({"kind": "http", **SYNC}, mine, pod="istiod-twin")

    def without_mine(page: Any) -> None:
        page[:] = [one for one in page if one not in mine]

    healthy.pages(without_mine, pod=istiod, **SYNC)
    healthy.pages(to_v1, pod="client", **DUMP)
    trace = follow(healthy, "VirtualService/bookinfo/reviews")
    assert stopped(trace) == "seen"
    assert "istiod-twin: it has generation 6, and 7 is stored" in trace.answer
    assert {one.who: one.outcome for one in trace["seen"].standings} == {
        istiod: "passed",
        "istiod-twin": "broken",
    }
    behind = [one for one in trace["pushed"].standings if one.outcome == "broken"]
    assert [one.who for one in behind] == ["client.bookinfo"]
    assert "its istiod istiod-twin" in behind[0].says


def test_without_any_istiod_a_new_object_is_seen_by_nobody(tmp_path: Path) -> None:
    """Altered: in the recording without an istiod, a VirtualService was added minutes ago."""
    altered = Altered("istiod-down", tmp_path)
    added = made("VirtualService", "bookinfo", route_to("ratings"), "2026-11-23T03:12:50Z")
    altered.objects("virtualservices", lambda items: items.append(added))
    trace = follow(altered, "VirtualService/bookinfo/added")
    assert stopped(trace) == "seen"
    assert "No istiod runs" in trace.answer


def test_what_is_only_just_stored_may_be_on_its_way(healthy: Altered) -> None:
    """Altered: a VirtualService was added right before the recording was made."""
    now = facts_of("healthy").now
    added = made("VirtualService", "bookinfo", route_to("ratings"), f"{now:%Y-%m-%dT%H:%M:%SZ}")
    healthy.objects("virtualservices", lambda items: items.append(added))
    trace = follow(healthy, "VirtualService/bookinfo/added")
    assert (stopped(trace), trace["pushed"].outcome) == ("", "undecided")
    assert "may be on its way" in trace["pushed"].says


# --- pushed, accepted ---------------------------------------------------------------------------


def test_a_proxy_without_istiod_does_not_get_the_change(tmp_path: Path) -> None:
    """Altered: the proxy that lost istiod does so before the change, and has no route of it."""
    altered = Altered("istiod-unreachable-stale", tmp_path)
    altered.pages(without_routes("ratings"), pod=pod_of(altered, "reviews-v2"), **DUMP)
    trace = follow(altered, "VirtualService/bookinfo/ratings")
    assert stopped(trace) == "pushed"
    assert "it is connected to no istiod and keeps what it had" in trace.answer
    assert trace.answer.endswith("It is in force in 5 of 6 proxies.")


def test_a_proxy_that_lost_its_istiod_after_the_change_is_named() -> None:
    facts = facts_of("istiod-unreachable-stale")
    trace = follow_change(facts, "VirtualService/bookinfo/ratings")
    assert trace.broken is None
    assert "No later change will reach reviews-v2" in trace.answer


def test_a_proxy_that_was_sent_nothing_since_is_late(healthy: Altered) -> None:
    """Altered: the weights were changed after the last push, and istiod has them."""
    healthy.each("virtualservices", "reviews", weights(50, 50, LATER))
    trace = follow(healthy, "VirtualService/bookinfo/reviews")
    assert stopped(trace) == "pushed"
    assert "has the weights v1: 80, v2: 20 and not v1: 50, v2: 50" in trace.answer


def test_what_is_not_acknowledged_is_not_accepted(healthy: Altered) -> None:
    """Altered: as before, and the routes were sent a minute ago without an answer."""
    healthy.each("virtualservices", "reviews", weights(50, 50, "2026-11-23T02:48:10Z"))
    healthy.pages(sync("RouteConfiguration", acked="older"), **SYNC)
    trace = follow(healthy, "VirtualService/bookinfo/reviews")
    assert stopped(trace) == "accepted"
    assert "is not acknowledged" in trace.answer


def test_a_refusal_is_told_in_envoys_words(healthy: Altered) -> None:
    """Altered: as before, but Envoy refused the routes."""
    healthy.each("virtualservices", "reviews", weights(50, 50, "2026-11-23T02:48:00Z"))
    healthy.pages(sync("RouteConfiguration", lastError="Only unique values for domains"), **SYNC)
    trace = follow(healthy, "VirtualService/bookinfo/reviews")
    assert stopped(trace) == "accepted"
    assert "Envoy refused RDS: Only unique values for domains" in trace.answer


def test_a_refusal_of_what_came_later_does_not_concern_what_is_in_force() -> None:
    """The EnvoyFilter was refused long after this object was taken."""
    trace = follow_change(facts_of("envoyfilter-rejected"), "VirtualService/bookinfo/reviews")
    assert trace.broken is None


# --- The mesh's settings, and manifests ---------------------------------------------------------


def test_settings_that_an_istiod_does_not_have_are_named(healthy: Altered) -> None:
    """Altered: the ConfigMap names another file for access logs than istiod has."""
    healthy.objects("configmaps", set_mesh("accessLogFile: /dev/null"))
    trace = follow_change(healthy.facts(), "MeshConfig")
    assert stopped(trace) == "seen"
    assert "accessLogFile /dev/stdout and not /dev/null" in trace.answer


def test_a_default_config_that_is_newer_than_the_pods_is_told(healthy: Altered) -> None:
    """Altered: the ConfigMap and istiod have another drain time than the pods started with."""

    def change(settings: Any) -> None:
        settings["defaultConfig"]["drainDuration"] = "10s"

    healthy.pages(change, port=15014, path="/debug/mesh")
    healthy.objects("configmaps", set_mesh("defaultConfig:\n  drainDuration: 10s"))
    trace = follow_change(healthy.facts(), "MeshConfig")
    assert stopped(trace) == "active"
    assert "drainDuration 45s and not 10s" in trace.answer


def test_settings_that_are_no_yaml_are_not_valid(healthy: Altered) -> None:
    """Altered: the ConfigMap's text is broken."""
    healthy.objects("configmaps", set_mesh("accessLogFile: [unclosed"))
    assert stopped(follow_change(healthy.facts(), "MeshConfig")) == "valid"


def test_of_manifests_the_first_three_rungs_are_known(tmp_path: Path) -> None:
    (tmp_path / "route.yaml").write_text(
        """
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: cart, namespace: shop}
spec:
  hosts: [cart]
  gateways: [front]
  http: [{route: [{destination: {host: cart}}]}]
---
apiVersion: v1
kind: Service
metadata: {name: cart, namespace: shop}
spec: {selector: {app: cart}, ports: [{port: 80, name: http}]}
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: edge, namespace: shop}
spec:
  selector: {app: edge}
  servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: ["*"]}]
"""
    )
    facts = Facts(Manifests(tmp_path))
    trace = follow_change(facts, "VirtualService/shop/cart")
    assert stopped(trace) == "selected"
    assert "Gateway shop/front does not exist" in trace.answer
    assert {rung.says for rung in trace.rungs[3:]} == {"Manifests do not run."}
    # Whether a pod has the labels is not known before anything runs.
    assert follow_change(facts, "Gateway/shop/edge")["selected"].outcome != "passed"
