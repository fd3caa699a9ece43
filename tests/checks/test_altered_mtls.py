"""Checks of mutual TLS, on altered recordings.

What is altered is named in each test. Beside each fault stands what looks like it and is none.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from meshnb.checks import Severity
from meshnb.diagnosis import Diagnosis, diagnose
from tests.alteration import Altered
from tests.checks.test_altered import (
    CHANGED,
    GARBLED,
    NO_REQUEST,
    RATINGS,
    REFUSED,
    SILENT,
    SINCE,
    STRAY_CONNECTION,
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


def test_a_rule_for_other_callers_is_not_blamed_for_the_failures_of_these(tmp_path: Path) -> None:
    """Altered: the DestinationRule is for other workloads."""
    spec = {"workloadSelector": {"matchLabels": {"app": "no"}}}
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
