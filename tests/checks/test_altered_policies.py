"""Checks of policies and tokens, on altered recordings.

What is altered is named in each test. Beside each fault stands what looks like it and is none.
"""

from __future__ import annotations

from typing import Any

import pytest

from meshnb.diagnosis import diagnose
from tests.alteration import Altered
from tests.checks.test_altered import (
    CHANGED,
    DENIED,
    NO_REQUEST,
    NOWHERE,
    RATINGS,
    SINCE,
    problems,
)
from tests.checks.test_altered_mtls import (
    CLIENT_POD,
    DISABLE,
    EARLIER,
    Object,
    assert_blamed,
    assert_first,
    assert_harmless,
    codes_of,
    strict,
)

# --- AuthorizationPolicies ----------------------------------------------------------------------


def source(**fields: Any) -> Object:
    """Return a rule's ``from`` with one source."""
    return {"from": [{"source": fields}]}


def operation(**fields: Any) -> Object:
    """Return a rule's ``to`` with one operation."""
    return {"to": [{"operation": fields}]}


def policy(altered: Altered, name: str, *rules: Object, at: str = CHANGED, **spec: Any) -> Altered:
    """Add an AuthorizationPolicy for ratings."""
    whole = {**RATINGS, **({"rules": list(rules)} if rules else {}), **spec}
    return altered.add("authorizationpolicies", name, "bookinfo", at, spec=whole)


OWN = "cluster.local/ns/bookinfo/sa/{}"
CALLERS = source(principals=[OWN.format("default"), OWN.format("reviews")])


def refuse(altered: Altered, which: str = "none", caller: str = "", since: str = SINCE) -> Altered:
    """Let ratings refuse requests from a time on."""
    return altered.at_server(
        "ratings:9080",
        since,
        caller=caller,
        code="403",
        details=DENIED.format(which),
        **NOWHERE,
    )


@pytest.mark.parametrize(
    "rule",
    [
        {**CALLERS, **operation(methods=["POST"])},
        {**CALLERS, **operation(paths=["/rating"])},
        {**CALLERS, **operation(ports=["80"])},
        {**CALLERS, **operation(notPaths=["/ratings/*"])},
        source(principals=["spiffe://" + OWN.format("default")]),
        source(principals=["prod.example.org/ns/bookinfo/sa/default"]),
        source(namespaces=["bookinf"]),
        source(notNamespaces=["book*"]),
        source(ipBlocks=["192.0.2.0/24"]),
        {"when": [{"key": "source.namespace", "values": ["books"]}]},
        {"when": [{"key": "request.auth.claims[role]", "values": ["reader"]}]},
    ],
)
def test_the_policy_for_the_workload_is_blamed_whatever_of_it_is_not_met(
    healthy: Altered, rule: Object
) -> None:
    """Altered: ratings admits nobody any more, by one field; beside it stand harmless policies.

    They deny by default, and admit scrapers to another port.
    """
    healthy.add("authorizationpolicies", "allow-nothing", "bookinfo", EARLIER, spec={})
    scraper = {**source(namespaces=["monitoring"]), **operation(ports=["15020"], methods=["GET"])}
    policy(healthy, "scrapers", scraper, at=EARLIER)
    policy(healthy, "callers", rule)
    refuse(healthy)
    assert_blamed(healthy, "MNB502", "A", "AuthorizationPolicy bookinfo/callers")


@pytest.mark.parametrize(
    ("namespace", "labels"),
    [
        ("bookinfo", {"app": "ratngs"}),
        ("legacy", {"app": "ratings"}),
        ("bookinfo", {"ap": "ratings"}),
    ],
)
def test_a_policy_that_misses_its_workload_is_blamed_before_the_one_that_denies_by_default(
    healthy: Altered, namespace: str, labels: dict[str, str]
) -> None:
    """Altered: a policy would admit the callers of ratings, but its selector matches nothing."""
    healthy.add("authorizationpolicies", "allow-nothing", "bookinfo", EARLIER, spec={})
    spec = {"selector": {"matchLabels": labels}, "rules": [CALLERS]}
    healthy.add("authorizationpolicies", "callers", namespace, CHANGED, spec=spec)
    refuse(healthy)
    assert_first(healthy, "MNB502", "A", f"AuthorizationPolicy {namespace}/callers")


def test_a_slip_in_a_principal_is_a_fault_even_if_the_caller_was_never_served(
    healthy: Altered,
) -> None:
    """Altered: ratings refuses reviews from the first line on; others are served."""
    rules = source(principals=[OWN.format("default")]), source(principals=[OWN.format("review")])
    policy(healthy, "callers", *rules, at=EARLIER)
    refuse(healthy, caller="10.244.0.6", since="")
    assert_blamed(healthy, "MNB502", "A", "AuthorizationPolicy bookinfo/callers")


def test_a_policy_that_looks_at_something_the_log_does_not_show_may_refuse_some(
    healthy: Altered,
) -> None:
    """Altered: a few requests of the client are refused, the same are served all the time."""
    policy(healthy, "callers", {"when": [{"key": "request.auth.claims[role]", "values": ["x"]}]})
    extra = {"code": "403", "details": DENIED.format("none"), **NOWHERE}
    healthy.request("ratings", "/ratings/0", 5, since=SINCE, **extra)
    assert_harmless(healthy, "MNB502")


SCANNED = {
    "authority": "bookinfo.example.com",
    "path": "/admin",
    "code": "403",
    "details": DENIED.format("none"),
    "cluster": "-",
    **NOWHERE,
}


def _gateway_policy(altered: Altered, *rules: Object, changed: str = EARLIER) -> Altered:
    labels = {"selector": {"matchLabels": {"istio": "ingressgateway"}}}
    return altered.add(
        "authorizationpolicies", "edge", "istio-system", changed, spec={**labels, "rules": rules}
    )


def test_scanners_that_a_gateway_refuses_are_no_problem(healthy: Altered) -> None:
    """Altered: the gateway's policy admits the paths of the shop, and somebody tries others."""
    _gateway_policy(healthy, operation(paths=["/productpage", "/static/*"]))
    healthy.request("istio-ingressgateway", "/productpage", 9, **SCANNED)
    assert_harmless(healthy, "MNB502")


def test_a_gateway_that_expects_another_address_than_it_sees_refuses_everybody(
    healthy: Altered,
) -> None:
    """Altered: the gateway's policy admits the clients' network, and sees the node's address."""
    _gateway_policy(healthy, source(ipBlocks=["203.0.113.0/24"]), changed=CHANGED)
    healthy.lines(
        "istio-ingressgateway",
        lambda line: [
            line
            if line.time < SINCE or line.path != "/productpage"
            else line._replace(
                code="403", flags="-", details=DENIED.format("none"), cluster="-", **NOWHERE
            )
        ],
    )
    diagnosis = diagnose(healthy.facts())
    assert str(diagnosis.problems[0].subject) == "AuthorizationPolicy istio-system/edge"
    assert "ipBlocks 203.0.113.0/24" in diagnosis.problems[0].finding.message


BYTES_DENIED = {
    **NO_REQUEST,
    **NOWHERE,
    "protocol": "-",
    "code": "0",
    "flags": "-",
    "details": "-",
    "cluster": "inbound|9080||",
    "remote": f"{CLIENT_POD}:40000",
}


@pytest.mark.parametrize(
    ("spec", "which", "code"),
    [
        ({"action": "DENY"}, "ns[bookinfo]-policy[admin]-rule[0]", "MNB501"),
        ({}, "none", "MNB502"),
    ],
)
def test_fields_of_http_on_a_port_for_tcp_are_a_fault(
    healthy: Altered, spec: Object, which: str, code: str
) -> None:
    """Altered: a policy with paths refuses connections that carry no request, as from the first."""
    policy(healthy, "admin", operation(paths=["/admin"]), at=EARLIER, **spec)
    healthy.request("ratings", "/ratings/0", 9, **{**BYTES_DENIED, "ended": DENIED.format(which)})
    diagnosis = assert_blamed(healthy, code, "A", "AuthorizationPolicy bookinfo/admin")
    assert "paths" in diagnosis.problems[0].finding.message


@pytest.mark.parametrize("off", ["DestinationRule", "PeerAuthentication"])
def test_what_turns_mutual_tls_off_is_blamed_when_identities_are_lost(
    healthy: Altered, off: str
) -> None:
    """Altered: ratings admits its callers by identity, and they come in plain text.

    A DestinationRule or a PeerAuthentication has turned mutual TLS off since.
    """
    policy(healthy, "callers", CALLERS, at=EARLIER)
    if off == "DestinationRule":
        rule = {"host": "ratings", "trafficPolicy": DISABLE}
        healthy.add("destinationrules", "ratings", "bookinfo", CHANGED, spec=rule)
    else:
        strict(healthy, **RATINGS, mtls={"mode": "DISABLE"})
    refuse(healthy)
    healthy.lines("ratings", lambda line: [line if line.code != "403" else line._replace(sni="-")])
    found = problems(diagnose(healthy.facts()))
    assert found[0] == ("MNB503", "A", f"{off} bookinfo/ratings")


def test_a_caller_without_a_sidecar_shows_no_identity(healthy: Altered) -> None:
    """Altered: ratings began to ask for identities, and a pod outside the mesh calls it."""
    policy(healthy, "callers", CALLERS)
    stranger = {"remote": "10.244.0.11:50000", "sni": "-"}
    extra = {**stranger, "code": "403", "details": DENIED.format("none"), **NOWHERE}
    healthy.request("ratings", "/ratings/0", 99, **stranger)
    healthy.lines(
        "ratings",
        lambda line: [
            line._replace(**extra)
            if line.remote == stranger["remote"] and line.time >= SINCE
            else line
        ],
    )
    diagnosis = assert_blamed(healthy, "MNB502", "A", "AuthorizationPolicy bookinfo/callers")
    assert "legacy/legacy-client" in diagnosis.problems[0].finding.message
    assert "without an identity" in diagnosis.problems[0].finding.message


@pytest.mark.parametrize("kind", ["authorizationpolicies", "requestauthentications"])
@pytest.mark.parametrize(
    ("namespace", "app", "found"),
    [
        ("bookinfo", "revews", True),
        ("legacy", "reviews", True),
        ("istio-system", "revews", True),
        ("bookinfo", "archive", False),
    ],
)
def test_a_policy_for_pods_that_do_not_exist_was_meant_for_others(
    healthy: Altered, kind: str, namespace: str, app: str, found: bool
) -> None:
    """Altered: a policy has a slip in its selector, is in another namespace, or for later."""
    spec = {"selector": {"matchLabels": {"app": app}}, "rules": [{}], "action": "DENY"}
    healthy.add(kind, "own", namespace, EARLIER, spec=spec)
    if found:
        name = "AuthorizationPolicy" if kind[0] == "a" else "RequestAuthentication"
        assert_blamed(healthy, "MNB505", "A", f"{name} {namespace}/own")
    else:
        assert_harmless(healthy, "MNB505")


@pytest.mark.parametrize(
    ("path", "callers", "found"),
    [
        ("/ratings/*", OWN.format("reviews"), True),
        ("/health/*", OWN.format("reviews"), False),
        ("/ratings/*", OWN.format("*"), False),
    ],
)
def test_two_rules_that_are_halves_of_one_let_strangers_in(
    healthy: Altered, path: str, callers: str, found: bool
) -> None:
    """Altered: ratings admits its callers, or a path; the client is no caller of the first rule."""
    policy(healthy, "callers", source(principals=[callers]), operation(paths=[path]), at=EARLIER)
    if found:
        assert_blamed(healthy, "MNB506", "A", "AuthorizationPolicy bookinfo/callers")
    else:
        assert_harmless(healthy, "MNB506")


@pytest.mark.parametrize(
    ("rules", "action", "found"),
    [
        ([{}], "DENY", True),
        ([operation(paths=["/admin"])], "DENY", False),
        ([source(principals=[OWN.format("nobody")])], "ALLOW", True),
        ([CALLERS], "ALLOW", False),
    ],
)
def test_a_policy_that_is_only_tried_lets_pass_what_it_would_refuse(
    healthy: Altered, rules: list[Object], action: str, found: bool
) -> None:
    """Altered: a policy for ratings has the annotation for a dry run."""
    policy(healthy, "trial", *rules, at=EARLIER, action=action)
    note = {"istio.io/dry-run": "true"}
    healthy.each(
        "authorizationpolicies", "trial", lambda one: one["metadata"].update(annotations=note)
    )
    if found:
        assert_blamed(healthy, "MNB507", "A", "AuthorizationPolicy bookinfo/trial")
    else:
        assert_harmless(healthy, "MNB507")


@pytest.mark.parametrize(
    ("path", "found"),
    [("//admin", True), ("/Admin", True), ("/%61dmin", True), ("/administration", False)],
)
def test_a_path_that_a_policy_refuses_is_served_in_another_spelling(
    healthy: Altered, path: str, found: bool
) -> None:
    """Altered: ratings denies /admin, and serves another path."""
    policy(healthy, "admin", operation(paths=["/admin"]), at=EARLIER, action="DENY")
    healthy.request("ratings", "/ratings/0", 1, since=SINCE, path=path)
    if found:
        assert_blamed(healthy, "MNB508", "A", "AuthorizationPolicy bookinfo/admin")
    else:
        assert_harmless(healthy)


DETAILS_HOST = "details.bookinfo.svc.cluster.local"


def _custom(altered: Altered, service: str, port: int, name: str = "oidc") -> Altered:
    provider = {"name": "oidc", "envoyExtAuthzHttp": {"service": service, "port": port}}
    altered.pages(lambda page: page.update(extensionProviders=[provider]), path="/debug/mesh")
    return policy(altered, "ask", {}, action="CUSTOM", provider={"name": name})


def _refuse_all(altered: Altered, **fields: str) -> Altered:
    return altered.at_server("ratings:9080", SINCE, code="403", **fields, **NOWHERE)


@pytest.mark.parametrize(
    "details",
    [
        "istio-ext-authz-ns[bookinfo]-policy[ask]-rule[0]-deny-due-to-bad-CUSTOM-action",
        "default-deny-all-due-to-bad-CUSTOM-action",
    ],
)
def test_a_policy_that_asks_a_provider_that_the_mesh_does_not_define_denies_all(
    healthy: Altered, details: str
) -> None:
    """Altered: a policy with action CUSTOM names a provider that is not there."""
    _custom(healthy, "details.bookinfo.svc.cluster.local", 9080, name="oidcc")
    _refuse_all(healthy, details=DENIED.format(details))
    assert_blamed(healthy, "MNB530", "A", "AuthorizationPolicy bookinfo/ask")


@pytest.mark.parametrize("listed", [True, False])
def test_without_the_settings_of_the_mesh_the_log_alone_names_the_policy(
    healthy: Altered, listed: bool
) -> None:
    """Altered: ratings refuses by a CUSTOM policy; neither MeshConfig nor all policies are read."""
    if listed:
        policy(healthy, "ask", {}, action="CUSTOM", provider={"name": "opa-grpc"})
    else:
        healthy.silence("forbidden", status=403, kind="list", resource="authorizationpolicies")
    healthy.silence("forbidden", status=403, kind="list", resource="configmaps")
    healthy.silence("forbidden", status=403, kind="http", path="/debug/mesh")
    bad = "istio-ext-authz-opa-grpc-ns[bookinfo]-policy[ask]-rule[0]-deny-due-to-bad-CUSTOM-action"
    _refuse_all(healthy, details=DENIED.format(bad))
    assert_blamed(healthy, "MNB530", "A", "AuthorizationPolicy bookinfo/ask")
    (cause,) = (one for one in diagnose(healthy.facts()).causes if one.check.code == "MNB530")
    assert cause.finding.certainty < 1
    assert "asks provider opa-grpc" in cause.finding.message


@pytest.mark.parametrize(
    ("service", "port", "failure_class", "subject"),
    [
        ("authz.bookinfo.svc.cluster.local", 80, "A", "ConfigMap istio-system/istio"),
        ("details.bookinfo.svc.cluster.local", 9000, "A", "ConfigMap istio-system/istio"),
        (
            "bookinfo/details.bookinfo.svc.cluster.local",
            9080,
            "C",
            "Deployment bookinfo/details-v1",
        ),
    ],
)
def test_a_provider_that_cannot_be_asked_is_named_by_what_is_wrong_with_it(
    healthy: Altered, service: str, port: int, failure_class: str, subject: str
) -> None:
    """Altered: the provider's host or port does not exist, or it does not answer."""
    _custom(healthy, service, port)
    _refuse_all(healthy, flags="UAEX", details="ext_authz_error")
    assert_blamed(healthy, "MNB531", failure_class, subject)


def test_a_provider_that_refuses_everybody_since_a_moment_ago_is_a_problem(
    healthy: Altered,
) -> None:
    """Altered: the provider of a CUSTOM policy began to refuse all requests to ratings."""
    _custom(healthy, "details.bookinfo.svc.cluster.local", 9080)
    _refuse_all(healthy, flags="UAEX", details="ext_authz_denied")
    assert_blamed(healthy, "MNB532", "A", "AuthorizationPolicy bookinfo/ask")


def test_a_provider_that_refuses_some_does_its_work(healthy: Altered) -> None:
    """Altered: the provider refuses a path that was never served."""
    _custom(healthy, "details.bookinfo.svc.cluster.local", 9080)
    refused = {"code": "403", "flags": "UAEX", "details": "ext_authz_denied", **NOWHERE}
    healthy.request("ratings", "/ratings/0", 9, **refused, path="/admin")
    assert_harmless(healthy, "MNB532")


@pytest.mark.parametrize(
    ("account", "codes"), [("reveiws", ["MNB509"]), ("reviews", []), ("warehouse", [])]
)
def test_a_principal_that_nobody_has_but_somebody_nearly_is_a_warning(
    healthy: Altered, account: str, codes: list[str]
) -> None:
    """Altered: a policy that is so far not felt names a service account, or nearly one."""
    policy(healthy, "callers", source(principals=[OWN.format(account)]), action="DENY")
    assert [code for code, _, _ in problems(diagnose(healthy.facts()))] == codes


# --- Tokens -------------------------------------------------------------------------------------


KEYS_AT = "https://issuer.example.org/keys"
NOT_FETCHED = (
    f'2026-11-23T02:48:00.000000Z\terror\tmodel\tFailed to fetch public key from "{KEYS_AT}": '
    'Get "https://issuer.example.org/keys": dial tcp: i/o timeout\n'
)


def _tokens(altered: Altered, changed: str = EARLIER, **spec: Any) -> Altered:
    rules = [{"issuer": "https://issuer.example.org", "jwksUri": KEYS_AT}]
    whole = {**RATINGS, "jwtRules": rules, **spec}
    altered.add("requestauthentications", "tokens", "bookinfo", changed, spec=whole)
    return altered


def _demanded(altered: Altered) -> Altered:
    return policy(altered, "tokens", source(notRequestPrincipals=["*"]), at=EARLIER, action="DENY")


def _unfetched(altered: Altered) -> Altered:
    return altered.texts(lambda text: text + NOT_FETCHED, kind="log", container="discovery")


def test_keys_that_istiod_could_not_fetch_are_the_policys_matter(healthy: Altered) -> None:
    """Altered: istiod could not fetch the keys, and no token passes the verification."""
    _demanded(_tokens(healthy)).texts(
        lambda text: text + NOT_FETCHED, kind="log", container="discovery"
    )
    details = "jwt_authn_access_denied{Jwt_verification_fails}"
    healthy.at_server("ratings:9080", SINCE, code="401", details=details, **NOWHERE)
    assert_first(healthy, "MNB510", "A", "RequestAuthentication bookinfo/tokens")


def test_keys_that_istiod_could_not_fetch_are_a_warning_where_nobody_was_refused_yet(
    healthy: Altered,
) -> None:
    """Altered: istiod could not fetch the keys of an issuer; another issuer has no such line."""
    _demanded(_tokens(healthy)).texts(
        lambda text: text + NOT_FETCHED, kind="log", container="discovery"
    )
    other = {"selector": {"matchLabels": {"app": "details"}}}
    rules = [{"issuer": "https://other.example.org", "jwks": "{}"}]
    healthy.add(
        "requestauthentications", "other", "bookinfo", EARLIER, spec={**other, "jwtRules": rules}
    )
    found = [cause for cause in diagnose(healthy.facts()).problems if cause.check.code == "MNB511"]
    assert [str(cause.subject) for cause in found] == ["RequestAuthentication bookinfo/tokens"]


def test_tokens_that_are_refused_now_and_then_are_their_users_matter(healthy: Altered) -> None:
    """Altered: some tokens at ratings have expired, while the same callers are served."""
    _demanded(_tokens(healthy))
    expired = {"code": "401", "details": "jwt_authn_access_denied{Jwt_is_expired}", **NOWHERE}
    healthy.request("ratings", "/ratings/0", 5, since=SINCE, **expired)
    assert_harmless(healthy, "MNB510")


@pytest.mark.parametrize(
    ("policies", "rules", "codes"),
    [
        ([], {}, ["MNB512"]),
        ([source(notRequestPrincipals=["*"])], {}, []),
        ([{"when": [{"key": "request.auth.claims[role]", "notValues": ["a"]}]}], {}, []),
    ],
)
def test_tokens_that_are_verified_but_not_demanded_protect_nothing(
    healthy: Altered, policies: list[Object], rules: Object, codes: list[str]
) -> None:
    """Altered: ratings verifies tokens; a policy demands one, or there is none."""
    _tokens(healthy, **rules)
    if policies:
        policy(healthy, "tokens", *policies, at=EARLIER, action="DENY")
    found = problems(diagnose(healthy.facts()))
    assert [code for code, _, _ in found] == codes


@pytest.mark.parametrize("selector", ["ingressgateway", "egressgateway"])
def test_a_gateway_that_routes_by_claims_verifies_tokens(healthy: Altered, selector: str) -> None:
    """Altered: the gateway's route wants a claim; tokens are verified there or elsewhere."""
    match = {"headers": {"@request.auth.claims.groups": {"exact": "readers"}}}
    healthy.each(
        "virtualservices", "bookinfo", lambda one: one["spec"]["http"][0].update(match=[match])
    )
    labels = {"selector": {"matchLabels": {"istio": selector}}}
    rules = [{"issuer": "https://issuer.example.org", "outputPayloadToHeader": "x-token"}]
    healthy.add(
        "requestauthentications",
        "tokens",
        "istio-system",
        EARLIER,
        spec={**labels, "jwtRules": rules},
    )
    healthy.request(
        "istio-ingressgateway",
        "/productpage",
        **NOWHERE,
        code="404",
        flags="NR",
        details="route_not_found",
        cluster="-",
        route="-",
    )
    codes = codes_of(healthy)
    if selector == "egressgateway":
        assert_first(healthy, "MNB513", "A", "VirtualService bookinfo/bookinfo")
    else:
        assert "MNB513" not in codes
