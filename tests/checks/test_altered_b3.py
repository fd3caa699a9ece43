"""Checks of mutual TLS, policies, protocols and applications, on recordings altered in one respect.

What is altered is named in each test. Beside each fault stands what looks like it and is none.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from meshnb.checks import CHECKS, Check, Severity
from meshnb.diagnosis import Diagnosis
from meshnb.diagnosis import diagnose as diagnose_with
from meshnb.tables import Facts
from tests.alteration import Altered, metadata
from tests.checks.test_altered import (
    CHANGED,
    DENIED,
    GARBLED,
    NO_REQUEST,
    NOWHERE,
    RATINGS,
    REFUSED,
    SILENT,
    SINCE,
    STRAY_CONNECTION,
    TIMED_OUT,
    assert_explains,
    problems,
)

Object = dict[str, Any]

#: After the proxies' last change, long before the faults.
EARLIER = "2026-11-23T02:47:30Z"
#: After the last line of the logs of the recording ``healthy``.
LATER = "2026-11-23T02:49:17Z"
NO_TLS_THERE = (
    "TLS_error:|268435703:SSL_routines:OPENSSL_internal:WRONG_VERSION_NUMBER:TLS_error_end"
)
BROKEN_OFF = "upstream_reset_before_response_started{{{}}}"
RESET = {
    "code": "503",
    "flags": "UC",
    "details": BROKEN_OFF.format("connection_termination"),
    **SILENT,
}
PLAIN_ANSWER = {
    **REFUSED,
    "details": BROKEN_OFF.format(f"remote_connection_failure|{NO_TLS_THERE}"),
    "failure": NO_TLS_THERE,
}
STRICT = {"mtls": {"mode": "STRICT"}}
DISABLE = {"tls": {"mode": "DISABLE"}}
RATINGS_HOST = "ratings.bookinfo.svc.cluster.local"
RATINGS_POD = "10.244.0.9"
CLIENT_POD = "10.244.0.10"


@pytest.fixture
def healthy(tmp_path: Path) -> Altered:
    """Return the recording of a healthy mesh, to be altered."""
    return Altered("healthy", tmp_path)


def diagnose(facts: Facts) -> Diagnosis:
    """Diagnose with all checks but those that see what is not altered here.

    Objects are added to what Kubernetes and istiod have, not to the proxies' own configuration.
    """
    return diagnose_with(facts, [one for one in CHECKS.values() if _is_about_the_mesh(one)])


def _is_about_the_mesh(one: Check) -> bool:
    return not one.lint and one.code not in ("MNB552", "MNB680")


def assert_harmless(altered: Altered, *codes: str) -> None:
    """Assert that nothing is blamed; ``codes`` are the checks that find something worth knowing."""
    diagnosis = diagnose(altered.facts())
    assert [cause.finding.message for cause in diagnosis.problems] == []
    assert [cause.check.code for cause in diagnosis.causes] == list(codes)
    assert diagnosis.verdict == "healthy", [
        *(one.message for one in diagnosis.unexplained),
        *(one.because for one in diagnosis.unknown),
    ]


def assert_blamed(altered: Altered, code: str, failure_class: str, subject: str) -> Diagnosis:
    """Assert that one object alone is blamed, for all that goes wrong."""
    diagnosis = diagnose(altered.facts())
    assert problems(diagnosis) == [(code, failure_class, subject)]
    assert [symptom.message for symptom in diagnosis.unexplained] == []
    return diagnosis


def codes_of(altered: Altered) -> list[str]:
    """Return the code of each cause, those that are merely worth knowing included."""
    return [cause.check.code for cause in diagnose(altered.facts()).causes]


def assert_first(altered: Altered, code: str, failure_class: str, subject: str) -> None:
    """Assert that one object is named first, whatever stands below."""
    found = problems(diagnose(altered.facts()))
    assert found[:1] == [(code, failure_class, subject)], found


def strict(altered: Altered, **spec: Any) -> Altered:
    """Let ratings demand mutual TLS, or what the spec says."""
    spec = spec or {**RATINGS, **STRICT}
    return altered.add("peerauthentications", "ratings", "bookinfo", EARLIER, spec=spec)


# --- Mutual TLS ---------------------------------------------------------------------------------


def _tls_off(altered: Altered, **policy: Any) -> Altered:
    return altered.each(
        "destinationrules", "ratings", lambda one: one["spec"].update(trafficPolicy=policy)
    )


def test_tls_turned_off_for_the_very_port_is_blamed(tmp_path: Path) -> None:
    """Altered: the DestinationRule turns TLS off by port-level settings."""
    altered = Altered("mtls-client-disable", tmp_path)
    _tls_off(altered, portLevelSettings=[{"port": {"number": 9080}, **DISABLE}])
    assert_blamed(altered, "MNB401", "A", "DestinationRule bookinfo/ratings")


def test_tls_turned_off_for_other_ports_is_not_blamed(tmp_path: Path) -> None:
    """Altered: the port that is called has settings of its own, which replace those of the host."""
    altered = Altered("mtls-client-disable", tmp_path)
    own = {"port": {"number": 9080}, "tls": {"mode": "ISTIO_MUTUAL"}}
    _tls_off(altered, portLevelSettings=[own], **DISABLE)
    assert "MNB401" not in codes_of(altered)


def test_tls_turned_off_in_a_subset_is_blamed(tmp_path: Path) -> None:
    """Altered: TLS is off in a subset, and callers are sent there."""
    altered = Altered("mtls-client-disable", tmp_path)
    subset = {"name": "v1", "labels": {"app": "ratings"}, "trafficPolicy": DISABLE}
    altered.each(
        "destinationrules",
        "ratings",
        lambda one: one.update(spec={"host": "ratings", "subsets": [subset]}),
    )
    whole, part = f"outbound|9080||{RATINGS_HOST}", f"outbound|9080|v1|{RATINGS_HOST}"
    altered.lines("", lambda line: [line._replace(cluster=line.cluster.replace(whole, part))])
    assert_first(altered, "MNB401", "A", "DestinationRule bookinfo/ratings")


@pytest.mark.parametrize(
    "spec", [{"exportTo": ["legacy"]}, {"workloadSelector": {"matchLabels": {"app": "no"}}}]
)
def test_a_rule_that_the_callers_do_not_see_is_not_blamed_for_their_failures(
    tmp_path: Path, spec: Object
) -> None:
    """Altered: the DestinationRule is exported elsewhere, or for other workloads."""
    altered = Altered("mtls-client-disable", tmp_path)
    altered.each("destinationrules", "ratings", lambda one: one["spec"].update(spec))
    diagnosis = diagnose(altered.facts())
    assert not any(cause.explains for cause in diagnosis.causes if cause.check.code == "MNB401")


def test_a_port_that_the_sidecar_does_not_stand_before_demands_nothing(healthy: Altered) -> None:
    """Altered: ratings serves TLS itself on a port that is taken from the sidecar."""
    strict(healthy)
    rule = {"host": "ratings", "trafficPolicy": {"tls": {"mode": "SIMPLE"}}}
    healthy.add("destinationrules", "ratings", "bookinfo", LATER, spec=rule)
    assert "MNB401" in codes_of(healthy)

    annotation = {"traffic.sidecar.istio.io/excludeInboundPorts": "9080, 9999"}
    healthy.each("pods", "ratings", lambda pod: pod["metadata"]["annotations"].update(annotation))
    assert "MNB401" not in codes_of(healthy)


def test_a_rule_against_a_strict_server_that_nobody_used_is_a_warning(healthy: Altered) -> None:
    """Altered: TLS is turned off towards a server that demands it, after the last request."""
    strict(healthy)
    rule = {"host": "ratings", "trafficPolicy": DISABLE}
    healthy.add("destinationrules", "ratings", "bookinfo", LATER, spec=rule)
    diagnosis = assert_blamed(healthy, "MNB401", "A", "DestinationRule bookinfo/ratings")
    assert diagnosis.problems[0].severity is Severity.WARNING


def _named_target(altered: Altered, number: int) -> Altered:
    def ports(service: Object) -> None:
        service["spec"]["ports"][0].update(port=number, targetPort="web")

    def name(pod: Object) -> None:
        for container in pod["spec"]["containers"]:
            for port in container.get("ports", ()):
                if port["containerPort"] == 9080:
                    port["name"] = "web"

    return altered.each("services", "ratings", ports).each("pods", "ratings", name)


def _plain_text_on(altered: Altered, number: str) -> Altered:
    levels = {"portLevelMtls": {number: {"mode": "PERMISSIVE"}}}
    return _named_target(strict(altered, **RATINGS, **STRICT, **levels), 80)


def test_a_port_level_mode_for_the_port_of_the_pods_is_right(healthy: Altered) -> None:
    """Altered: plain text is allowed on the port to which the Service leads by its name."""
    assert "MNB430" not in codes_of(_plain_text_on(healthy, "9080"))


def test_a_port_level_mode_for_the_port_of_the_service_has_no_effect(tmp_path: Path) -> None:
    """Altered: plain text is allowed on port 80, from which the Service leads to 9080."""
    altered = Altered("mtls-strict-legacy-client", tmp_path)
    altered.remove("peerauthentications", "default")
    diagnosis = diagnose(_plain_text_on(altered, "80").facts())

    assert sorted(cause.check.code for cause in diagnosis.problems) == ["MNB403", "MNB430"]
    for cause in diagnosis.problems:
        assert str(cause.subject) == "PeerAuthentication bookinfo/ratings"
        assert cause.explains


def test_the_newer_of_two_peer_authentications_for_a_namespace_has_no_effect(
    healthy: Altered,
) -> None:
    """Altered: a namespace has two PeerAuthentications without selector, which differ."""
    for name, changed, mode in (("first", EARLIER, "PERMISSIVE"), ("second", CHANGED, "STRICT")):
        spec = {"mtls": {"mode": mode}}
        healthy.add("peerauthentications", name, "bookinfo", changed, spec=spec)
    assert_blamed(healthy, "MNB431", "A", "PeerAuthentication bookinfo/second")


@pytest.mark.parametrize(
    ("namespace", "app", "found"),
    [
        ("bookinfo", "ratnigs", True),
        ("legacy", "ratings", True),
        ("istio-system", "ratings", True),
        ("bookinfo", "archive", False),
        ("bookinfo", "ratings", False),
    ],
)
def test_a_peer_authentication_for_pods_that_do_not_exist_was_meant_for_others(
    healthy: Altered, namespace: str, app: str, found: bool
) -> None:
    """Altered: a selector with a slip, in the wrong namespace, in the root, or for later."""
    spec = {"selector": {"matchLabels": {"app": app}}, **STRICT}
    healthy.add("peerauthentications", "own", namespace, EARLIER, spec=spec)
    if found:
        assert_blamed(healthy, "MNB431", "A", f"PeerAuthentication {namespace}/own")
    else:
        assert problems(diagnose(healthy.facts())) == []


def test_tls_to_a_port_where_a_policy_turned_it_off_is_the_policys_matter(
    healthy: Altered,
) -> None:
    """Altered: ratings takes plain text only, and callers go on to speak mutual TLS to it."""
    strict(healthy, **RATINGS, mtls={"mode": "DISABLE"})
    healthy.at_client("ratings:9080", SINCE, **PLAIN_ANSWER)
    assert_explains(
        assert_blamed(healthy, "MNB432", "A", "PeerAuthentication bookinfo/ratings"), 20
    )


PAST_ROUTES = {
    **RESET,
    "authority": f"{RATINGS_POD}:9080",
    "endpoint": f"{RATINGS_POD}:9080",
    "cluster": "PassthroughCluster",
    "local": f"{RATINGS_POD}:9080",
    "sni": "-",
    "route": "allow_any",
}
CUT_OFF = {**STRAY_CONNECTION, "local": f"{RATINGS_POD}:9080"}


@pytest.mark.parametrize(
    ("headless", "subject"),
    [(True, "Service bookinfo/ratings"), (False, "Pod bookinfo/client")],
)
def test_pods_that_are_called_by_address_in_plain_text_are_found(
    healthy: Altered, headless: bool, subject: str
) -> None:
    """Altered: the client dials the pod of ratings, which demands mutual TLS, by its address."""
    strict(healthy)
    if headless:
        healthy.each("services", "ratings", lambda one: one["spec"].update(clusterIP="None"))
    healthy.request("client", "/ratings/0", since=SINCE, **PAST_ROUTES)
    healthy.request("ratings", "/ratings/0", since=SINCE, **CUT_OFF)
    assert_explains(assert_blamed(healthy, "MNB440", "C", subject), 16)


def test_a_headless_service_with_another_port_than_its_pods_is_found(healthy: Altered) -> None:
    """Altered: ratings is headless, its port is 80, and the client dials pods there."""

    def headless(service: Object) -> None:
        service["spec"].update(clusterIP="None")
        service["spec"]["ports"][0].update(port=80)

    healthy.each("services", "ratings", headless)
    healthy.request(
        "client",
        "/ratings/0",
        since=SINCE,
        **{
            **REFUSED,
            "endpoint": f"{RATINGS_POD}:80",
            "local": f"{RATINGS_POD}:80",
            "cluster": f"outbound|80||{RATINGS_HOST}",
        },
    )
    assert_first(healthy, "MNB441", "C", "Service bookinfo/ratings")


@pytest.mark.parametrize("remote", [f"{CLIENT_POD}:40000", "10.244.0.1:40000"])
@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        ("excludeOutboundPorts", "9080"),
        ("excludeOutboundIPRanges", "10.96.0.0/12"),
        ("includeOutboundIPRanges", "192.0.2.0/24"),
    ],
)
def test_a_client_that_is_told_to_go_past_its_sidecar_is_found(
    healthy: Altered, remote: str, annotation: str, value: str
) -> None:
    """Altered: the client's annotation takes ratings out of its sidecar's hands.

    The server's log shows the client's address or the node's.
    """
    strict(healthy)
    note = {f"traffic.sidecar.istio.io/{annotation}": value}
    healthy.each("pods", "client", lambda pod: pod["metadata"]["annotations"].update(note))
    healthy.request("ratings", "/ratings/0", since=SINCE, **{**CUT_OFF, "remote": remote})
    assert_blamed(healthy, "MNB442", "A", "Pod bookinfo/client")


def test_automatic_mutual_tls_that_is_switched_off_meets_a_strict_server(healthy: Altered) -> None:
    """Altered: the mesh has enableAutoMtls: false, and ratings demands mutual TLS."""
    strict(healthy)
    healthy.pages(lambda page: page.update(enableAutoMtls=False), path="/debug/mesh")
    healthy.at_client("ratings:9080", SINCE, **RESET)
    healthy.request("ratings", "/ratings/0", 9, **CUT_OFF)
    assert_first(healthy, "MNB443", "A", "ConfigMap istio-system/istio")


def test_a_service_entry_that_hides_that_its_endpoint_is_in_the_mesh_is_found(
    healthy: Altered,
) -> None:
    """Altered: a ServiceEntry lists the address of ratings, which demands mutual TLS."""
    strict(healthy)
    spec = {
        "hosts": ["stars.example.org"],
        "ports": [{"number": 9080, "name": "http", "protocol": "HTTP"}],
        "resolution": "STATIC",
        "endpoints": [{"address": RATINGS_POD}],
    }
    healthy.add("serviceentries", "stars", "bookinfo", EARLIER, spec=spec)
    healthy.request(
        "client",
        "/ratings/0",
        since=SINCE,
        **{
            **RESET,
            "authority": "stars.example.org",
            "cluster": "outbound|9080||stars.example.org",
            "endpoint": f"{RATINGS_POD}:9080",
        },
    )
    healthy.request("ratings", "/ratings/0", since=SINCE, **CUT_OFF)
    assert_first(healthy, "MNB443", "A", "ServiceEntry bookinfo/stars")


OUTSIDE = {
    "hosts": ["api.example.org"],
    "addresses": ["203.0.113.9"],
    "resolution": "DNS",
}


def _port(protocol: str) -> list[Object]:
    return [{"number": 443, "name": "tls", "protocol": protocol}]


@pytest.mark.parametrize(("protocol", "code"), [("HTTP", "MNB444"), ("HTTPS", "MNB803")])
def test_tls_to_a_port_that_is_declared_as_http_is_the_service_entrys_matter(
    healthy: Altered, protocol: str, code: str
) -> None:
    """Altered: the client speaks TLS to port 443 of a ServiceEntry, declared as HTTP or not."""
    spec = {**OUTSIDE, "ports": _port(protocol)}
    healthy.add("serviceentries", "partner", "bookinfo", EARLIER, spec=spec)
    line = {**GARBLED, "local": "203.0.113.9:443", "remote": f"{CLIENT_POD}:40000"}
    healthy.request("client", "/ratings/0", 6, since=SINCE, **line)
    found = problems(diagnose(healthy.facts()))
    if protocol == "HTTP":
        assert found == [(code, "A", "ServiceEntry bookinfo/partner")]
    else:
        assert [one[0] for one in found] == [code]


@pytest.mark.parametrize(("mode", "codes"), [("SIMPLE", ["MNB445"]), ("DISABLE", [])])
def test_tls_around_tls_is_the_destination_rules_matter(
    healthy: Altered, mode: str, codes: list[str]
) -> None:
    """Altered: the client speaks TLS to an external host, to which its proxy begins TLS or not."""
    spec = {**OUTSIDE, "ports": _port("TLS")}
    healthy.add("serviceentries", "partner", "bookinfo", EARLIER, spec=spec)
    rule = {"host": "api.example.org", "trafficPolicy": {"tls": {"mode": mode}}}
    healthy.add("destinationrules", "partner", "bookinfo", EARLIER, spec=rule)
    healthy.request(
        "client",
        "/ratings/0",
        since=SINCE,
        **{
            **NO_REQUEST,
            "protocol": "-",
            "code": "0",
            "flags": "-",
            "details": "-",
            "sni": "api.example.org",
            "cluster": "outbound|443||api.example.org",
            "local": "203.0.113.9:443",
            "endpoint": "203.0.113.9:443",
        },
    )
    assert codes_of(healthy) == codes


@pytest.mark.parametrize(
    ("host", "mode", "codes"),
    [
        ("ratings", "SIMPLE", ["MNB402"]),
        ("ratings", "ISTIO_MUTUAL", []),
        ("*.bookinfo.svc.cluster.local", "SIMPLE", []),
    ],
)
def test_a_rule_that_its_servers_contradict_is_a_warning_before_anybody_calls(
    healthy: Altered, host: str, mode: str, codes: list[str]
) -> None:
    """Altered: callers are to speak TLS of their own to a port for HTTP, after the last request."""
    rule = {"host": host, "trafficPolicy": {"tls": {"mode": mode}}}
    healthy.add("destinationrules", "ratings", "bookinfo", LATER, spec=rule)
    diagnosis = diagnose(healthy.facts())
    assert [code for code, _, _ in problems(diagnosis)] == codes


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


# --- Protocols ----------------------------------------------------------------------------------

PROTOCOL_ERROR = {
    "code": "502",
    "flags": "UPE",
    "details": BROKEN_OFF.format("protocol_error"),
    **SILENT,
}
NO_HTTP = {**GARBLED, "local": f"{RATINGS_POD}:9080"}


def _only_port(altered: Altered, service: str, **port: Any) -> Altered:
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
    _only_port(healthy, "ratings", name="grpc")
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
    _only_port(healthy, "reviews", name="tcp-reviews")
    assert_first(healthy, "MNB807", "C", "Service bookinfo/reviews")

    port = {"name": "http", "port": 9081, "targetPort": 9080, "protocol": "TCP"}
    healthy.each("services", "reviews", lambda one: one["spec"]["ports"].append(port))
    assert "MNB807" not in codes_of(healthy)


@pytest.mark.parametrize(("kind", "codes"), [("httpGet", ["MNB807"]), ("tcpSocket", [])])
def test_a_probe_shows_that_http_is_spoken_on_a_port_that_is_declared_as_tcp(
    healthy: Altered, kind: str, codes: list[str]
) -> None:
    """Altered: the port of ratings is named tcp, and its readiness is asked by HTTP or TCP."""
    _only_port(healthy, "ratings", name="tcp")

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


# --- Applications and the way to them -----------------------------------------------------------


def _ratings_container(altered: Altered, **status: Any) -> Altered:
    def change(pod: Object) -> None:
        for one in pod["status"]["containerStatuses"]:
            if one["name"] == "ratings":
                one.update(status)

    return altered.each("pods", "ratings", change)


def test_connections_that_break_now_and_then_are_idle_ones(healthy: Altered) -> None:
    """Altered: some requests to ratings, seconds apart, meet a connection that is being closed."""
    seen: list[str] = []

    def now_and_then(line: Any) -> list[Any]:
        chosen = line.inbound and line.path == "/ratings/0" and line.time >= SINCE
        seen.append(line.time) if chosen else None
        return [line._replace(**RESET) if chosen and len(seen) % 5 == 1 else line]

    healthy.lines("ratings", now_and_then)
    diagnosis = assert_blamed(healthy, "MNB711", "C", "Deployment bookinfo/ratings-v1")
    assert "idle time-out" in diagnosis.problems[0].finding.message


def test_connections_that_break_very_rarely_are_everyday(healthy: Altered) -> None:
    """Altered: ratings serves a thousand requests, and three are lost."""
    for _ in range(5):
        healthy.request("ratings", "/ratings/0", 9999)
    healthy.request("ratings", "/ratings/0", 3, since=SINCE, **RESET)
    assert_harmless(healthy, "MNB711")


def test_an_application_that_was_killed_meanwhile_is_named_with_the_reason(
    healthy: Altered,
) -> None:
    """Altered: the container of ratings was killed for its memory while requests were open."""
    ended = {"terminated": {"reason": "OOMKilled", "exitCode": 137, "finishedAt": CHANGED}}
    _ratings_container(healthy, restartCount=1, lastState=ended)
    healthy.request("ratings", "/ratings/0", 4, since="2026-11-23T02:48:46", **RESET)
    diagnosis = assert_blamed(healthy, "MNB711", "C", "Deployment bookinfo/ratings-v1")
    assert "OOMKilled, exit code 137" in diagnosis.problems[0].finding.message


def test_an_application_outside_the_mesh_that_ends_connections_is_named(tmp_path: Path) -> None:
    """Altered: details has no sidecar, and ends its callers' connections."""
    altered = Altered("not-injected-annotation", tmp_path)
    altered.at_client("details:9080", "2026-11-23T03:14:08", **RESET)
    assert_first(altered, "MNB830", "C", "Deployment bookinfo/details-v1")


def test_an_external_host_that_ends_connections_is_named(healthy: Altered) -> None:
    """Altered: a host of a ServiceEntry ends connections before it answers."""
    spec = {**OUTSIDE, "ports": [{"number": 80, "name": "http", "protocol": "HTTP"}]}
    healthy.add("serviceentries", "partner", "bookinfo", EARLIER, spec=spec)
    line = {
        **RESET,
        "authority": "api.example.org",
        "cluster": "outbound|80||api.example.org",
        "endpoint": "203.0.113.9:80",
        "local": "203.0.113.9:80",
    }
    healthy.request("client", "/ratings/0", since=SINCE, **line)
    assert_blamed(healthy, "MNB830", "C", "ServiceEntry bookinfo/partner")


def test_an_application_whose_failures_are_tried_again_is_named(healthy: Altered) -> None:
    """Altered: ratings answers 503 to each try, and the callers' retries are used up."""
    healthy.at_server("ratings:9080", SINCE, code="503")
    healthy.lines(
        "",
        lambda line: [
            line._replace(flags="URX")
            if line.authority == "ratings:9080" and line.code == "503" and not line.inbound
            else line
        ],
    )
    assert_blamed(healthy, "MNB712", "C", "Deployment bookinfo/ratings-v1")


def test_a_limit_of_the_route_on_the_whole_stream_is_a_time_out_too(healthy: Altered) -> None:
    """Altered: callers of ratings end requests with max_duration_timeout."""
    line = {"code": "504", "details": "max_duration_timeout", "duration": "1000", **SILENT}
    healthy.at_client("ratings:9080", SINCE, **line)
    assert_blamed(healthy, "MNB713", "C", "Deployment bookinfo/ratings-v1")


def test_a_server_that_logs_nothing_is_named_as_a_guess(healthy: Altered) -> None:
    """Altered: ratings answers 503, and its proxy wrote no access log."""
    healthy.at_server("ratings:9080", SINCE, code="503")
    healthy.lines("ratings", lambda _: [])
    diagnosis = diagnose(healthy.facts())
    assert problems(diagnosis)[0] == ("MNB835", "C", "Deployment bookinfo/ratings-v1")
    assert diagnosis.problems[0].finding.certainty < 0.5


def test_clients_that_leave_a_stream_are_no_problem(healthy: Altered) -> None:
    """Altered: streams from ratings, whose answer has begun, are left after three seconds."""
    line = {**LEFT, "code": "200", "duration": "3001"}
    healthy.request("ratings", "/ratings/0", 9, since=SINCE, **line)
    assert problems(diagnose(healthy.facts())) == []


LEFT = {"code": "0", "flags": "DC", "details": "downstream_remote_disconnect"}


def test_clients_that_all_leave_after_the_same_time_have_a_time_out(healthy: Altered) -> None:
    """Altered: requests to ratings are given up after three seconds."""
    healthy.at_server("ratings:9080", SINCE, **LEFT, duration="3001")
    assert_first(healthy, "MNB834", "C", "Deployment bookinfo/ratings-v1")


def test_clients_that_leave_now_and_then_are_no_problem(healthy: Altered) -> None:
    """Altered: three clients of ratings leave, each after another time."""
    for duration in ("20", "1500", "9000"):
        healthy.request("ratings", "/ratings/0", 1, since=SINCE, **LEFT, duration=duration)
    assert problems(diagnose(healthy.facts())) == []


def _container_port(altered: Altered, number: int, name: str = "ratings") -> Altered:
    def change(pod: Object) -> None:
        for container in pod["spec"]["containers"]:
            if container["name"] == "ratings":
                container["ports"] = [{"containerPort": number, "name": name}]

    return altered.each("pods", "ratings", change)


def test_a_port_of_istio_that_an_application_uses_is_found(healthy: Altered) -> None:
    """Altered: the container of ratings declares port 15090; then it cannot start."""
    _container_port(healthy, 15090)
    assert_blamed(healthy, "MNB831", "C", "Deployment bookinfo/ratings-v1")


def test_a_service_that_sends_to_a_port_that_no_container_declares_is_wrong(
    healthy: Altered,
) -> None:
    """Altered: ratings' Service sends to 9999; its container declares 9080."""
    _only_port(healthy, "ratings", targetPort=9999)
    refused = {
        **REFUSED,
        "flags": "UF",
        "cluster": "inbound|9999||",
        "local": f"{RATINGS_POD}:9999",
    }
    healthy.at_server("ratings:9080", SINCE, **refused)
    assert_blamed(healthy, "MNB710", "C", "Service bookinfo/ratings")


@pytest.mark.parametrize(("name", "found"), [("web", False), ("wbe", True)])
def test_a_service_that_sends_to_a_port_by_its_name_finds_it(
    healthy: Altered, name: str, found: bool
) -> None:
    """Altered: ratings' Service sends to the port named web, which its container has or has not."""
    _only_port(healthy, "ratings", targetPort="web")
    _container_port(healthy, 9080, name)
    if not found:
        assert_harmless(healthy)
        return
    none = {"code": "503", "flags": "UH", "details": "no_healthy_upstream", **NOWHERE}
    healthy.at_client("ratings:9080", SINCE, **none)
    assert_first(healthy, "MNB832", "C", "Service bookinfo/ratings")


def _killed(altered: Altered, when: str) -> Altered:
    return altered.add(
        "events",
        "ratings-v1-589dc858f-old.1",
        "bookinfo",
        when,
        type="Normal",
        reason="Killing",
        message="Stopping container ratings",
        involvedObject={"kind": "Pod", "namespace": "bookinfo", "name": "ratings-v1-589dc858f-old"},
        firstTimestamp=when,
        lastTimestamp=when,
        count=1,
    )


GONE = {**REFUSED, "endpoint": "10.244.0.98:9080"}


def test_requests_that_fail_while_a_pod_ends_are_the_workloads_matter(healthy: Altered) -> None:
    """Altered: a pod of ratings was ended, and callers went on to use it."""
    _killed(healthy, CHANGED).request("client", "/ratings/0", 6, since=SINCE, **GONE)
    assert_first(healthy, "MNB833", "C", "Deployment bookinfo/ratings-v1")


def test_a_request_or_two_that_fail_while_a_pod_ends_are_no_problem(healthy: Altered) -> None:
    """Altered: the same with two requests, and the others go on."""
    _killed(healthy, CHANGED).request("client", "/ratings/0", 2, since=SINCE, **GONE)
    assert problems(diagnose(healthy.facts())) == []


def _walls(altered: Altered, name: str, *rules: Object, direction: str = "Ingress") -> Altered:
    app = "ratings" if direction == "Ingress" else "client"
    spec = {
        "podSelector": {"matchLabels": {"app": app}},
        "policyTypes": [direction],
        direction.lower(): list(rules),
    }
    return altered.add("networkpolicies", name, "bookinfo", CHANGED, spec=spec)


@pytest.mark.parametrize(
    ("rule", "admits"),
    [
        ({}, True),
        ({"from": [{"podSelector": {}}], "ports": [{"port": 9080}]}, True),
        ({"from": [{"podSelector": {}}], "ports": [{"port": 9090}]}, False),
        ({"from": [{"namespaceSelector": {"matchLabels": {"team": "x"}}}]}, False),
        ({"from": [{"ipBlock": {"cidr": "10.244.0.0/16"}}]}, True),
    ],
)
def test_a_network_policy_is_blamed_only_when_none_admits_the_connection(
    healthy: Altered, rule: Object, admits: bool
) -> None:
    """Altered: ratings denies everything by one NetworkPolicy, and admits something by another."""
    _walls(healthy, "deny")
    _walls(healthy, "allow", rule)
    healthy.at_client("ratings:9080", SINCE, **TIMED_OUT)
    first = diagnose(healthy.facts()).problems[0]
    assert first.check.code == "MNB714"
    assert (first.subject.kind == "Deployment") is admits


def test_a_bare_connection_that_is_never_accepted_times_out_too(healthy: Altered) -> None:
    """Altered: connections to a port of ratings for TCP end after ten seconds without a word."""
    _walls(healthy, "deny")
    line = {
        **NO_REQUEST,
        **SILENT,
        "protocol": "-",
        "code": "0",
        "flags": "UF,URX",
        "details": "-",
        "duration": "10003",
        "cluster": f"outbound|9080||{RATINGS_HOST}",
    }
    healthy.request("client", "/ratings/0", since=SINCE, **line)
    assert_blamed(healthy, "MNB714", "C", "NetworkPolicy bookinfo/deny")
