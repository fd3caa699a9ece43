"""What policies decide: rules, tokens, what is decided elsewhere, and the nearest miss."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from meshnb.traces.envoy.arrival import Arrival, trusted_client
from meshnb.traces.envoy.http_filters import Filter
from meshnb.traces.envoy.matchers import Headers, Undecided
from meshnb.traces.envoy.policies import Decision, Decisions, Refusal, decide, gone_through
from meshnb.traces.envoy.rbac import rule_on
from meshnb.traces.following.identities import Identities
from meshnb.traces.mesh import MESH
from tests.alteration import Altered
from tests.conftest import facts_of, recording_names
from tests.traces.policy_agreement import Agreement, agreement

_ANY = [{"any": True}]
_PRINCIPAL = "spiffe://cluster.local/ns/shop/sa/cart"


def _arrival(path: str = "/pay", method: str = "GET", **fields: Any) -> Arrival:
    headers = Headers({":path": path, ":method": method, ":authority": "pay:80"})
    known: dict[str, Any] = {
        "headers": headers,
        "encrypted": True,
        "names": (_PRINCIPAL,),
        "source": "10.0.0.7",
        "remote": "10.0.0.7",
        "destination": "10.0.0.9",
        "destination_port": 8080,
        "time": datetime(2026, 1, 1, tzinfo=UTC),
    }
    return Arrival(**{**known, **fields})


def _policy(permissions: list[Any] | None = None, principals: list[Any] | None = None) -> Any:
    return {"permissions": permissions or _ANY, "principals": principals or _ANY}


def _named(name: str, rule: int = 0) -> str:
    return f"ns[shop]-policy[{name}]-rule[{rule}]"


def _caller(kind: str, value: str) -> Any:
    return {"authenticated": {"principal_name": {kind: value}}}


def _rbac(name: str = "envoy.filters.http.rbac", **config: Any) -> Filter:
    room = "network" if ".network." in name else "http"
    kind = f"type.googleapis.com/envoy.extensions.filters.{room}.rbac.v3.RBAC"
    return Filter(name, "rbac", {"@type": kind, **config}, {})


def _decision(one: Filter, arrival: Arrival) -> Decision:
    decision, _ = decide(one, arrival)
    assert decision is not None
    return decision


@pytest.mark.parametrize(
    ("condition", "truth"),
    [
        ({"authenticated": {}}, True),
        (_caller("exact", _PRINCIPAL), True),
        (_caller("prefix", "spiffe://cluster.local/ns/shop/"), True),
        (
            {"filter_state": {"key": "io.istio.peer_principal", "string_match": {"exact": "x"}}},
            False,
        ),
        ({"source_ip": {"address_prefix": "10.0.0.0", "prefix_len": 8}}, True),
        ({"direct_remote_ip": {"address_prefix": "10.0.0.7", "prefix_len": 32}}, True),
        ({"remote_ip": {"address_prefix": "192.168.0.0", "prefix_len": 16}}, False),
        ({"header": {"name": ":method", "string_match": {"exact": "GET"}}}, True),
        ({"header": {"name": "end-user", "string_match": {"exact": "jason"}}}, None),
        ({"url_path": {"path": {"prefix": "/pa"}}}, True),
        ({"and_ids": {"ids": [{"any": True}, {"not_id": {"any": True}}]}}, False),
        ({"or_ids": {"ids": [{"header": {"name": "x"}}, {"any": True}]}}, True),
        (
            {"metadata": {"filter": "f", "path": [{"key": "a"}], "value": {"present_match": True}}},
            False,
        ),
        (
            {
                "metadata": {
                    "filter": "f",
                    "path": [{"key": "a"}],
                    "value": {"string_match": {"exact": "b"}},
                    "invert": True,
                }
            },
            True,
        ),
        ({"custom": {"name": "mine"}}, None),
    ],
)
def test_principals_of_each_kind(condition: Any, truth: bool | None) -> None:
    policy = {"policies": {"p": _policy(principals=[condition])}}
    allowed = rule_on(policy, _arrival()).allowed
    assert (None if isinstance(allowed, Undecided) else allowed) is truth


@pytest.mark.parametrize(
    ("condition", "truth"),
    [
        ({"destination_port": 8080}, True),
        ({"destination_port": 80}, False),
        ({"destination_port_range": {"start": 8000, "end": 8080}}, False),
        ({"destination_ip": {"address_prefix": "10.0.0.9", "prefix_len": 32}}, True),
        ({"requested_server_name": {"exact": ""}}, True),
        ({"not_rule": {"url_path": {"path": {"exact": "/pay"}}}}, False),
        ({"and_rules": {"rules": [{"or_rules": {"rules": [{"any": True}]}}]}}, True),
        ({"matcher": {"name": "envoy.rbac.matchers.upstream_ip_port"}}, None),
    ],
)
def test_permissions_of_each_kind(condition: Any, truth: bool | None) -> None:
    policy = {"policies": {"p": _policy(permissions=[condition])}}
    allowed = rule_on(policy, _arrival()).allowed
    assert (None if isinstance(allowed, Undecided) else allowed) is truth


def test_a_denial_names_policy_and_rule_as_envoy_prints_them() -> None:
    rules = {"action": "DENY", "policies": {_named("no", 1): _policy()}}
    decision = _decision(_rbac(rules=rules), _arrival())
    assert decision.outcome == "stopped"
    assert decision.refusal == Refusal(403, f"rbac_access_denied_matched_policy[{_named('no', 1)}]")
    assert decision.object == "AuthorizationPolicy shop/no"
    assert decision.says == "Rule 1 of AuthorizationPolicy shop/no denies it."


def test_no_rule_at_all_refuses_everybody() -> None:
    decision = _decision(_rbac(rules={}), _arrival())
    assert decision.refusal == Refusal(403, "rbac_access_denied_matched_policy[none]")
    assert decision.says == "No ALLOW rule matches: there is none."


def test_the_first_policy_in_the_order_of_names_is_printed() -> None:
    rules = {"action": "DENY", "policies": {_named("a", 2): _policy(), _named("a", 10): _policy()}}
    assert _decision(_rbac(rules=rules), _arrival()).policy == _named("a", 10)


def test_the_nearest_miss_says_what_one_condition_wanted_and_what_it_got() -> None:
    rules = {
        "policies": {
            _named("admins"): _policy(
                [{"and_rules": {"rules": [{"destination_port": 99}]}}],
                [{"and_ids": {"ids": [_caller("exact", "spiffe://cluster.local/ns/a/sa/b")]}}],
            ),
            _named("carts"): _policy(
                [{"url_path": {"path": {"prefix": "/pay"}}}],
                [{"or_ids": {"ids": [_caller("exact", _PRINCIPAL.replace("cart", "carts"))]}}],
            ),
        }
    }
    decision = _decision(_rbac(rules=rules), _arrival())
    assert decision.nearest is not None
    assert decision.nearest.policy == _named("carts")
    assert decision.object == "AuthorizationPolicy shop/carts"
    assert str(decision.nearest) == (
        "rule 0 of AuthorizationPolicy shop/carts wants principal is cluster.local/ns/shop/sa/carts"
        ", but it is cluster.local/ns/shop/sa/cart"
    )


def test_of_rules_that_lack_one_condition_the_one_for_this_caller_is_nearest() -> None:
    """A rule without `from` is more alike in letters, and was not written for this caller."""
    wanted = [{"url_path": {"path": {"exact": "/charges"}}}]
    rules = {
        "policies": {
            _named("pay", 0): _policy(
                wanted, [{"and_ids": {"ids": [_caller("exact", _PRINCIPAL)]}}]
            ),
            _named("pay", 1): _policy([{"destination_port": 8081}]),
        }
    }
    nearest = rule_on(rules, _arrival("/x")).nearest
    assert nearest is not None
    assert nearest.policy == _named("pay", 0)


def test_of_two_rules_that_cannot_be_decided_the_first_is_the_reason() -> None:
    principals = [_caller("exact", _PRINCIPAL)]
    rules = {"policies": {_named("pay", at): _policy(principals=principals) for at in range(2)}}
    ruling = rule_on(rules, _arrival(names=Undecided("nobody knows")))
    assert isinstance(ruling.allowed, Undecided)
    assert ruling.allowed.reason == "of rule 0 of AuthorizationPolicy shop/pay: nobody knows"


def test_a_caller_in_plain_text_has_no_identity() -> None:
    namespaces = {"safe_regex": {"regex": ".*/ns/shop/.*"}}
    rules = {
        "policies": {
            _named("own"): _policy(principals=[{"authenticated": {"principal_name": namespaces}}])
        }
    }
    assert _decision(_rbac(rules=rules), _arrival()).outcome == "passed"
    bare = _decision(_rbac(rules=rules), _arrival(encrypted=False, names=()))
    assert bare.nearest is not None
    assert str(bare.nearest).endswith(
        "wants namespace is shop, but it is none: the connection is in plain text"
    )


def test_a_header_that_the_log_does_not_show_leaves_it_open() -> None:
    rules = {"policies": {_named("x"): _policy([{"header": {"name": "end-user"}}])}}
    decision = _decision(_rbac(rules=rules), _arrival())
    assert decision.outcome == "undecided"
    assert decision.says == (
        "Cannot decide, because of rule 0 of AuthorizationPolicy shop/x: the header end-user is"
        " not known."
    )
    either = Decisions((decision,), _arrival())
    assert either.may_be(None)
    assert either.may_be("rbac_access_denied_matched_policy[none]")
    assert not either.may_be(f"rbac_access_denied_matched_policy[{_named('x')}]")


def test_a_condition_in_cel_is_not_evaluated_unless_the_rest_fails() -> None:
    here = {**_policy(), "condition": {"call_expr": {}}}
    elsewhere = {**_policy([{"destination_port": 1}]), "condition": {"call_expr": {}}}
    assert isinstance(rule_on({"policies": {"a": here}}, _arrival()).allowed, Undecided)
    assert rule_on({"policies": {"a": elsewhere}}, _arrival()).allowed is False


def test_rules_in_dry_run_refuse_nobody() -> None:
    rules = {"action": "DENY", "policies": {_named("trial"): _policy()}}
    decision = _decision(_rbac(shadow_rules=rules), _arrival())
    assert decision.outcome == "passed"
    assert decision.says == (
        "Rules in dry run only: they would refuse it, by rule 0 of AuthorizationPolicy shop/trial."
    )


def test_a_route_has_rules_of_its_own_or_none() -> None:
    own = "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBACPerRoute"
    refusing = _rbac(rules={})
    assert decide(replace(refusing, own={"@type": own}), _arrival())[0] is None
    admitting = {"@type": own, "rbac": {"rules": {"policies": {"a": _policy()}}}}
    assert _decision(replace(refusing, own=admitting), _arrival()).outcome == "passed"


def test_a_waypoint_keeps_the_callers_identity_apart_from_the_connection() -> None:
    principal = {"key": "io.istio.peer_principal", "string_match": {"exact": _PRINCIPAL}}
    rules = {"policies": {_named("own"): _policy(principals=[{"filter_state": principal}])}}
    inner = _arrival(encrypted=False)
    assert _decision(_rbac(rules=rules), inner).outcome == "passed"
    assert _decision(_rbac(rules=rules), replace(inner, names=())).outcome == "stopped"


def test_a_call_of_grpc_is_refused_with_a_status_of_its_own() -> None:
    called = _arrival(headers=Headers({":path": "/a.B/C", "content-type": "application/grpc"}))
    refusal = _decision(_rbac(rules={}), called).refusal
    assert refusal == Refusal(200, "rbac_access_denied_matched_policy[none]")


@pytest.mark.parametrize("broken", [5, "x", [], {"policies": []}, {"policies": {"a": 1}}, None])
def test_rules_of_an_odd_shape_are_no_reason_to_fail(broken: Any) -> None:
    assert _decision(_rbac(rules=broken), _arrival()).outcome == "stopped"


def test_a_connection_is_closed_with_the_same_details() -> None:
    rules = {"action": "DENY", "policies": {_named("no"): _policy([{"destination_port": 8080}])}}
    decision = _decision(_rbac("envoy.filters.network.rbac", rules=rules), _arrival())
    assert decision.refusal == Refusal(None, f"rbac_access_denied_matched_policy[{_named('no')}]")


_AUTHZ = "type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthz"


def _custom(path: str) -> list[Filter]:
    """Return the two filters that istiod makes of a policy with the action CUSTOM."""
    name = f"istio-ext-authz-{_named('ask')}"
    on_path = [{"url_path": {"path": {"prefix": path}}}]
    asked = {"action": "DENY", "policies": {name: _policy(on_path)}}
    enabled = {
        "filter": "envoy.filters.http.rbac",
        "path": [{"key": "istio_ext_authz_shadow_effective_policy_id"}],
        "value": {"string_match": {"prefix": "istio-ext-authz"}},
    }
    server = {"envoy_grpc": {"cluster_name": "outbound|9000||authz.shop.svc.cluster.local"}}
    return [
        _rbac(shadow_rules=asked, shadow_rules_stat_prefix="istio_ext_authz_"),
        Filter(
            "envoy.filters.http.ext_authz",
            "ext_authz",
            {"@type": _AUTHZ, "filter_enabled_metadata": enabled, "grpc_service": server},
            {},
        ),
    ]


def test_an_authorization_server_is_asked_only_where_a_custom_rule_matches() -> None:
    asked = gone_through(_custom("/pay"), _arrival())
    assert asked.outcome == "undecided"
    server = "outbound|9000||authz.shop.svc.cluster.local"
    assert asked.reasons == (f"Cannot decide, because the authorization server {server} decides.",)
    first = asked.decisions[0].says
    assert first == "Rule 0 of AuthorizationPolicy shop/ask asks the authorization server."
    assert asked.may_be(None)
    assert gone_through(_custom("/other"), _arrival()).outcome == "passed"


def test_what_is_refused_behind_an_unknown_decision_is_refused_in_any_case() -> None:
    decided = gone_through([*_custom("/pay"), _rbac(rules={})], _arrival())
    assert decided.outcome == "stopped"
    assert decided.refusal is None  # the server may have been first


@pytest.mark.parametrize(
    ("kind", "outcome"),
    [
        ("envoy.extensions.filters.http.wasm.v3.Wasm", "undecided"),
        ("envoy.extensions.filters.http.lua.v3.Lua", "undecided"),
        ("com.example.Unheard", "undecided"),
        ("envoy.extensions.filters.http.grpc_stats.v3.FilterConfig", "passed"),
        ("stats.PluginConfig", "passed"),
        ("io.istio.http.peer_metadata.Config", "passed"),
    ],
)
def test_code_is_not_evaluated_and_bookkeeping_decides_nothing(kind: str, outcome: str) -> None:
    one = Filter("mine", "mine", {"@type": f"type.googleapis.com/{kind}"}, {})
    assert gone_through([one], _arrival()).outcome == outcome


def test_a_configuration_in_an_envelope_is_read() -> None:
    envelope = {
        "@type": "type.googleapis.com/udpa.type.v1.TypedStruct",
        "type_url": "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC",
        "value": {"rules": {}},
    }
    assert _decision(Filter("mine", "rbac", envelope, {}), _arrival()).outcome == "stopped"


_JWT = "type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication"
_PROVIDER = {
    "issuer": "https://issuer",
    "local_jwks": {"inline_string": json.dumps({"keys": [{"kty": "RSA", "kid": "1"}]})},
    "payload_in_metadata": "payload",
}


def _jwt(**requirement: Any) -> Filter:
    rules = [{"match": {"prefix": "/"}, "requires": requirement}]
    config = {"@type": _JWT, "providers": {"origins-0": _PROVIDER}, "rules": rules}
    return Filter("envoy.filters.http.jwt_authn", "jwt_authn", config, {})


def _sent(**headers: str) -> Arrival:
    known = {":path": "/pay", ":method": "GET", **headers}
    return _arrival(headers=Headers(known, complete=True))


def test_a_token_that_is_missing_or_broken_is_refused_in_envoys_words() -> None:
    demanding = _jwt(provider_name="origins-0")
    assert _decision(demanding, _sent()).refusal == Refusal(
        401, "jwt_authn_access_denied{Jwt_is_missing}"
    )
    broken = _decision(demanding, _sent(authorization="Bearer abc"))
    assert broken.refusal is not None
    assert broken.refusal.details == (
        "jwt_authn_access_denied{Jwt_is_not_in_the_form_of_Header.Payload.Signature_with_two_dots"
        "_and_3_sections}"
    )


def test_istiods_requirement_lets_requests_without_a_token_through() -> None:
    lenient = _jwt(
        requires_any={"requirements": [{"provider_name": "origins-0"}, {"allow_missing": {}}]}
    )
    assert _decision(lenient, _sent()).outcome == "passed"
    assert _decision(lenient, _sent(authorization="Bearer abc")).outcome == "stopped"


def test_whether_a_token_came_is_not_in_the_log() -> None:
    decision, after = decide(_jwt(provider_name="origins-0"), _arrival())
    assert decision is not None
    assert decision.outcome == "undecided"
    assert "the header authorization is not known" in decision.says
    assert Decisions((decision,), after).may_be("jwt_authn_access_denied{Jwt_is_expired}")
    claim = {
        "metadata": {
            "filter": "envoy.filters.http.jwt_authn",
            "path": [{"key": "payload"}, {"key": "iss"}],
            "value": {"string_match": {"exact": "https://issuer"}},
        }
    }
    rules = {"policies": {_named("token"): _policy(principals=[claim])}}
    assert _decision(_rbac(rules=rules), after).outcome == "undecided"
    without = _decision(_rbac(rules=rules), _sent())
    assert str(without.nearest).endswith(
        "wants claim payload.iss is https://issuer, but it is absent: no token says it"
    )


@pytest.mark.parametrize(
    ("manager", "forwarded", "client"),
    [
        ({"use_remote_address": True}, "1.1.1.1, 2.2.2.2", "10.0.0.1"),
        ({"use_remote_address": True, "xff_num_trusted_hops": 1}, "1.1.1.1, 2.2.2.2", "2.2.2.2"),
        ({"use_remote_address": True, "xff_num_trusted_hops": 3}, "1.1.1.1", "10.0.0.1"),
        ({}, "1.1.1.1, 2.2.2.2", "2.2.2.2"),
        ({}, None, "10.0.0.1"),
    ],
)
def test_the_clients_address_is_where_trusted_proxies_say(
    manager: dict[str, Any], forwarded: str | None, client: str
) -> None:
    assert trusted_client(manager, forwarded, "10.0.0.1") == client


def test_a_pods_identity_is_read_from_its_certificate() -> None:
    facts = facts_of("healthy")
    mesh = MESH.make(facts)
    pods = [pod for pod in mesh.pods if pod.mesh == "sidecar"]
    found = Identities(facts, mesh)
    assert pods
    for pod in pods:
        assert found.names(pod) == (f"spiffe://cluster.local/{pod.identity}",)
    assert isinstance(found.names(None), Undecided)


def test_a_trust_domain_that_istiod_no_longer_has_is_still_in_the_certificate(
    tmp_path: Any,
) -> None:
    """Altered: the mesh's configuration names another trust domain than the proxies' own."""

    def renamed(items: list[Any]) -> None:
        for item in items:
            if "mesh" in (item.get("data") or {}):
                item["data"]["mesh"] += "\ntrustDomain: later.example\n"

    facts = Altered("healthy", tmp_path).objects("configmaps", renamed).facts()
    mesh = MESH.make(facts)
    pod = next(pod for pod in mesh.pods if pod.mesh == "sidecar")
    assert Identities(facts, mesh).names(pod) == (f"spiffe://cluster.local/{pod.identity}",)


def test_every_decision_agrees_with_what_the_proxies_logged() -> None:
    total = Agreement()
    for name in recording_names():
        found = agreement(facts_of(name))
        assert not found.wrong, found.wrong[0]
        total.admitted += found.admitted
        total.refused += found.refused
        total.undecided += found.undecided
    lines = total.admitted + total.refused + sum(total.undecided.values())
    assert total.refused >= 100
    assert total.undecided.total() < lines * 0.05
