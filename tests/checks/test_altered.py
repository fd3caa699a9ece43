"""Checks on recordings that were altered in one respect.

First the faults that no recording has; then faults that are there in another shape; then harmless
things that look like faults. The access logs' flags and details are those that Envoy prints.
"""

from __future__ import annotations

import base64
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from meshnb.checks import CHECKS, Severity
from meshnb.diagnosis import Diagnosis, diagnose
from tests.alteration import Altered

#: In the recording ``healthy``: long before the logs begin, right before the faults, the faults.
EARLIER, CHANGED, SINCE = "2026-11-23T02:40:00Z", "2026-11-23T02:48:46Z", "2026-11-23T02:48:50"
#: What a line has when no endpoint was chosen, and when nobody answered there.
NOWHERE = {"endpoint": "-", "own": "-", "service_time": "-"}
SILENT = {"own": "-", "service_time": "-"}
REFUSED = {
    "code": "503",
    "flags": "URX,UF",
    "details": "upstream_reset_before_response_started"
    "{remote_connection_failure|delayed_connect_error:_Connection_refused}",
    "failure": "delayed_connect_error:_Connection_refused",
    **SILENT,
}
TIMED_OUT = {
    "code": "503",
    "flags": "URX,UF",
    "details": "upstream_reset_before_response_started{connection_timeout}",
    **SILENT,
}
#: A connection that sends no request has none of these.
NO_REQUEST = {"method": "-", "path": "-", "authority": "-", "agent": "-", "id": "-", "route": "-"}
STRAY_CONNECTION = {
    **NO_REQUEST,
    **NOWHERE,
    "protocol": "-",
    "code": "0",
    "flags": "NR",
    "details": "filter_chain_not_found",
    "cluster": "-",
    "remote": "10.244.0.1:50000",
    "sni": "-",
}
DENIED = "rbac_access_denied_matched_policy[{}]"
RATINGS = {"selector": {"matchLabels": {"app": "ratings"}}}
TO_RATINGS = {"route": [{"destination": {"host": "ratings"}}]}

Object = dict[str, Any]


def problems(diagnosis: Diagnosis) -> list[tuple[str, str, str]]:
    """Return code, class and subject of each cause above info."""
    return [
        (cause.check.code, cause.failure_class.value, str(cause.subject))
        for cause in diagnosis.problems
    ]


def assert_harmless(altered: Altered, *codes: str, verdict: str = "healthy") -> Diagnosis:
    """Assert that nothing is blamed; ``codes`` are the checks that find something worth knowing.

    What is said of objects as they are written, whether requests fail or not, is left out.
    """
    diagnosis = diagnose(altered.facts())
    assert [cause.finding.message for cause in diagnosis.problems] == []
    found = [cause.check.code for cause in diagnosis.causes if not cause.check.lint]
    assert found == list(codes)
    assert diagnosis.verdict == verdict
    return diagnosis


def assert_blamed(altered: Altered, code: str, failure_class: str, subject: str) -> Diagnosis:
    """Assert that one object alone is blamed, for all that goes wrong."""
    diagnosis = diagnose(altered.facts())
    assert problems(diagnosis) == [(code, failure_class, subject)]
    assert [symptom.message for symptom in diagnosis.unexplained] == []
    return diagnosis


def assert_explains(diagnosis: Diagnosis, count: int) -> None:
    """Assert that the first cause explains at least so many failures."""
    assert diagnosis.problems[0].count >= count, [symptom.message for symptom in diagnosis.symptoms]


def certificate(ends: datetime) -> bytes:
    """Return a certificate that ends at a time, as PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, "cluster.local")])
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(datetime(2026, 1, 1, tzinfo=UTC))
        .not_valid_after(ends)
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )


# --- Faults that no recording has ---------------------------------------------------------------


def test_a_closed_port_of_a_ready_istiod_is_found(healthy: Altered) -> None:
    """Altered: 15012 refuses connections."""
    healthy.silence("ConnectionRefusedError: connection refused", kind="probe", port=15012)

    diagnosis = assert_blamed(healthy, "MNB102", "C", "Pod istio-system/istiod-849979b494-z8nb9")
    assert "15012" in diagnosis.problems[0].finding.message


@pytest.mark.parametrize(
    ("ends", "severity"),
    [
        (datetime(2026, 11, 23, 2, 0, tzinfo=UTC), Severity.ERROR),
        (datetime(2026, 11, 27, 2, 0, tzinfo=UTC), Severity.WARNING),
    ],
)
def test_a_certificate_of_istiod_is_judged_at_the_time_of_the_recording(
    healthy: Altered, ends: datetime, severity: Severity
) -> None:
    """Altered: 15012 shows a certificate that has ended, or ends in four days."""
    healthy.bodies(lambda _: certificate(ends), kind="probe", port=15012)

    diagnosis = assert_blamed(healthy, "MNB103", "B", "Pod istio-system/istiod-849979b494-z8nb9")
    assert diagnosis.problems[0].severity is severity
    assert "rollout restart deployment/istiod`" in diagnosis.problems[0].finding.remedy


def test_a_pod_without_a_sidecar_that_did_not_opt_out_is_older_than_the_injection(
    healthy: Altered,
) -> None:
    """Altered: the pod of details has no proxy: it is older than its namespace's label."""

    def bare(pod: Object) -> None:
        for part in ("initContainers", "containers"):
            pod["spec"][part] = [
                one for one in pod["spec"][part] if not one["name"].startswith("istio-")
            ]
        del pod["metadata"]["annotations"]["sidecar.istio.io/status"]

    healthy.each("pods", "details", bare)
    pod = "details-v1-9449b4bf-6g92b"
    for kind in ("http", "probe"):
        healthy.forget(kind=kind, pod=pod)
    healthy.forget(kind="log", pod=pod, container="istio-proxy")
    healthy.disconnect(pod)

    diagnosis = assert_blamed(healthy, "MNB152", "C", "Deployment bookinfo/details-v1")
    assert "rollout restart deployment/details-v1" in diagnosis.problems[0].finding.remedy


def test_a_webhook_that_calls_a_service_that_does_not_exist_is_found(healthy: Altered) -> None:
    """Altered: the webhooks of the default revision name another Service."""

    def elsewhere(configuration: Object) -> None:
        for webhook in configuration["webhooks"]:
            webhook["clientConfig"]["service"]["name"] = "istiod-gone"

    healthy.each("mutatingwebhookconfigurations", "istio-revision-tag-default", elsewhere)
    subject = "MutatingWebhookConfiguration istio-revision-tag-default"
    diagnosis = assert_blamed(healthy, "MNB153", "A", subject)
    assert diagnosis.problems[0].severity is Severity.WARNING

    healthy.add(
        "events",
        "reviews-v1-68bccdd8bb.17",
        "bookinfo",
        CHANGED,
        type="Warning",
        reason="FailedCreate",
        message="Error creating: Internal error occurred: failed calling webhook "
        '"namespace.sidecar-injector.istio.io": service "istiod-gone" not found',
        involvedObject={
            "kind": "ReplicaSet",
            "namespace": "bookinfo",
            "name": "reviews-v1-68bccdd8bb",
        },
        firstTimestamp=CHANGED,
        lastTimestamp=CHANGED,
        count=7,
    )
    healthy.remove("pods", "reviews-v1")
    healthy.forget(pod="reviews-v1-68bccdd8bb-lh2mn")
    healthy.disconnect("reviews-v1")
    first = diagnose(healthy.facts()).problems[0]
    assert (str(first.subject), first.severity, first.count) == (subject, Severity.ERROR, 7)


BLOCKED = {
    "authority": "api.example.org",
    "path": "/v1",
    "code": "502",
    "details": "direct_response",
    "cluster": "-",
    "local": "203.0.113.9:80",
    "route": "block_all",
    **NOWHERE,
}


def test_registry_only_blocks_a_host_that_nobody_registered(healthy: Altered) -> None:
    """Altered: the mesh allows registered hosts only, and the client calls another one."""
    healthy.pages(
        lambda page: page["outboundTrafficPolicy"].update(mode="REGISTRY_ONLY"), path="/debug/mesh"
    )
    healthy.request("client", "/ratings/0", since=SINCE, **BLOCKED)

    diagnosis = assert_blamed(healthy, "MNB232", "A", "ConfigMap istio-system/istio")
    assert "api.example.org" in diagnosis.problems[0].finding.message


@pytest.mark.parametrize(
    ("sni", "named"), [("api.example.org", "api.example.org"), ("-", "203.0.113.9:443")]
)
def test_a_blocked_connection_is_named_by_its_handshake_or_its_address(
    healthy: Altered, sni: str, named: str
) -> None:
    """Altered: as above, with TLS connections, which say whom they are for or do not."""
    healthy.pages(
        lambda page: page["outboundTrafficPolicy"].update(mode="REGISTRY_ONLY"), path="/debug/mesh"
    )
    healthy.request(
        "client",
        "/ratings/0",
        since=SINCE,
        **{
            **NO_REQUEST,
            **NOWHERE,
            "protocol": "-",
            "code": "0",
            "flags": "UH",
            "details": "-",
            "cluster": "BlackHoleCluster",
            "local": "203.0.113.9:443",
            "sni": sni,
        },
    )
    diagnosis = assert_blamed(healthy, "MNB232", "A", "ConfigMap istio-system/istio")
    assert f"may not call {named}:" in diagnosis.problems[0].finding.message


def test_a_sidecar_object_with_a_policy_of_its_own_is_blamed_instead_of_the_mesh(
    healthy: Altered,
) -> None:
    """Altered: a Sidecar of the namespace says REGISTRY_ONLY, the mesh does not."""
    spec = {"outboundTrafficPolicy": {"mode": "REGISTRY_ONLY"}, "egress": [{"hosts": ["*/*"]}]}
    healthy.add("sidecars", "default", "bookinfo", EARLIER, spec=spec)
    healthy.request("client", "/ratings/0", since=SINCE, **BLOCKED)

    assert_blamed(healthy, "MNB232", "A", "Sidecar bookinfo/default")


def test_a_request_that_meets_no_route_is_the_virtual_services_fault(healthy: Altered) -> None:
    """Altered: a VirtualService for ratings has one route, for another path."""
    spec = {"hosts": ["ratings"], "http": [{"match": [{"uri": {"prefix": "/v2"}}], **TO_RATINGS}]}
    healthy.add("virtualservices", "ratings", "bookinfo", CHANGED, spec=spec)
    healthy.at_client(
        "ratings:9080",
        SINCE,
        code="404",
        flags="NR",
        details="route_not_found",
        cluster="-",
        route="-",
        **NOWHERE,
    )
    diagnosis = assert_blamed(healthy, "MNB233", "A", "VirtualService bookinfo/ratings")
    assert_explains(diagnosis, 20)


@pytest.mark.parametrize(
    ("resolution", "failure"),
    [
        ("STATIC", {"code": "503", "flags": "UH", "details": "no_healthy_upstream", **NOWHERE}),
        ("DNS", {**REFUSED, "endpoint": "203.0.113.9:80"}),
        ("DNS", {**TIMED_OUT, "endpoint": "203.0.113.9:80"}),
    ],
)
def test_a_service_entry_that_leads_to_nobody_is_found(
    healthy: Altered, resolution: str, failure: dict[str, str]
) -> None:
    """Altered: a ServiceEntry without endpoints that answer, and the client calls its host."""
    spec = {
        "hosts": ["api.example.org"],
        "ports": [{"number": 80, "name": "http", "protocol": "HTTP"}],
        "resolution": resolution,
    }
    healthy.add("serviceentries", "partner", "bookinfo", EARLIER, spec=spec)
    line = {"authority": "api.example.org", "cluster": "outbound|80||api.example.org", **failure}
    healthy.request("client", "/ratings/0", since=SINCE, local="203.0.113.9:80", **line)

    diagnosis = assert_blamed(healthy, "MNB234", "A", "ServiceEntry bookinfo/partner")
    assert resolution in diagnosis.problems[0].finding.message


def test_a_gateway_port_that_no_service_leads_to_is_found(healthy: Altered) -> None:
    """Altered: the Gateway opens port 9999 besides, which its Service does not have."""
    server = {"port": {"number": 9999, "name": "more", "protocol": "HTTP"}, "hosts": ["*"]}
    healthy.each("gateways", "bookinfo-gateway", lambda one: one["spec"]["servers"].append(server))

    diagnosis = assert_blamed(healthy, "MNB305", "C", "Gateway bookinfo/bookinfo-gateway")
    assert "9999" in diagnosis.problems[0].finding.message


def _tokens(altered: Altered, changed: str, reason: str, caller: str = "") -> Altered:
    spec = {**RATINGS, "jwtRules": [{"issuer": "https://issuer.example.org"}]}
    altered.add("requestauthentications", "tokens", "bookinfo", changed, spec=spec)
    details = f"jwt_authn_access_denied{{{reason}}}"
    return altered.at_server(
        "ratings:9080", SINCE, caller=caller, code="401", details=details, **NOWHERE
    )


def test_an_expired_token_is_the_callers_matter(healthy: Altered) -> None:
    """Altered: ratings verifies tokens, and those of the client have expired."""
    _tokens(healthy, EARLIER, "Jwt_is_expired", caller="10.244.0.10")

    diagnosis = assert_blamed(healthy, "MNB510", "C", "Pod bookinfo/client")
    assert "https://issuer.example.org" in diagnosis.problems[0].finding.message
    assert_explains(diagnosis, 10)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        (EARLIER, "Jwks_doesn't_have_key_to_match_kid_or_alg_from_Jwt"),
        (CHANGED, "Jwt_issuer_is_not_configured"),
    ],
)
def test_missing_keys_and_a_new_rule_are_the_policys_matter(
    healthy: Altered, changed: str, reason: str
) -> None:
    """Altered: ratings has not the keys of the tokens, or verifies tokens since a moment ago."""
    _tokens(healthy, changed, reason)

    assert_blamed(healthy, "MNB510", "A", "RequestAuthentication bookinfo/tokens")


def test_configuration_that_is_not_acknowledged_is_late(healthy: Altered) -> None:
    """Altered: the client has acknowledged older routes than it was sent, for over a minute."""

    def unacknowledged(page: Any) -> None:
        for status in page:
            if status["proxy"] == "client.bookinfo":
                kind = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"
                status["resources"][kind]["acked"] = "before"

    healthy.pages(unacknowledged, path="/debug/syncz")

    diagnosis = assert_blamed(healthy, "MNB603", "B", "Pod bookinfo/client")
    assert_explains(diagnosis, 1)


def test_a_workload_certificate_that_was_not_renewed_breaks_mutual_tls(healthy: Altered) -> None:
    """Altered: ratings holds a certificate that has ended, and callers refuse it."""
    chain = base64.b64encode(certificate(datetime(2026, 11, 23, 2, 30, tzinfo=UTC))).decode()

    def ended(dump: Any) -> None:
        for section in dump["configs"]:
            for entry in section.get("dynamic_active_secrets", ()):
                if entry["name"] == "default":
                    secret = entry["secret"]["tls_certificate"]
                    secret["certificate_chain"] = {"inline_bytes": chain}

    healthy.pages(
        ended, port=15000, pod="ratings-v1-589dc858f-xrq2g", path="/config_dump?include_eds"
    )
    reason = (
        "TLS_error:|268435581:SSL_routines:OPENSSL_internal:CERTIFICATE_VERIFY_FAILED:"
        "verify_cert_failed:_certificate_has_expired:TLS_error_end"
    )
    details = f"upstream_reset_before_response_started{{remote_connection_failure|{reason}}}"
    healthy.at_client(
        "ratings:9080", SINCE, code="503", flags="URX,UF", details=details, failure=reason, **SILENT
    )
    diagnosis = assert_blamed(healthy, "MNB605", "B", "Pod bookinfo/ratings-v1-589dc858f-xrq2g")
    assert_explains(diagnosis, 20)


def _policy(altered: Altered, direction: str, app: str) -> Altered:
    spec = {"podSelector": {"matchLabels": {"app": app}}, "policyTypes": [direction]}
    return altered.add("networkpolicies", "walls", "bookinfo", CHANGED, spec=spec)


@pytest.mark.parametrize(("direction", "app"), [("Ingress", "ratings"), ("Egress", "client")])
def test_connections_that_time_out_are_dropped_by_a_network_policy_at_either_end(
    healthy: Altered, direction: str, app: str
) -> None:
    """Altered: a NetworkPolicy lets nothing in to ratings, or nothing out of the client."""
    _policy(healthy, direction, app).at_client("ratings:9080", SINCE, **TIMED_OUT)

    assert_explains(assert_blamed(healthy, "MNB714", "C", "NetworkPolicy bookinfo/walls"), 20)


def test_a_network_policy_about_the_other_direction_is_not_blamed(healthy: Altered) -> None:
    """Altered: the NetworkPolicy of ratings is about what it sends; connections to it time out."""
    _policy(healthy, "Egress", "ratings").at_client("ratings:9080", SINCE, **TIMED_OUT)

    assert_blamed(healthy, "MNB714", "C", "Deployment bookinfo/ratings-v1")


def test_connections_to_an_address_without_a_pod_time_out(healthy: Altered) -> None:
    """Altered: the callers' endpoint is an address that no pod has any more."""
    healthy.at_client("ratings:9080", SINCE, **{**TIMED_OUT, "endpoint": "10.244.0.99:9080"})

    diagnosis = assert_blamed(healthy, "MNB714", "C", "Service bookinfo/ratings")
    assert "No running pod has that address" in diagnosis.problems[0].finding.message


GARBLED = {
    **NO_REQUEST,
    **NOWHERE,
    "code": "400",
    "flags": "DPE",
    "details": "http1.codec_error",
    "cluster": "-",
    "remote": "10.244.0.11:50000",
    "sni": "-",
}


def test_a_client_that_speaks_no_http_is_found(healthy: Altered) -> None:
    """Altered: a pod without a sidecar sends other bytes to the HTTP port of ratings."""
    healthy.request("ratings", "/ratings/0", 6, since=SINCE, **GARBLED)

    diagnosis = assert_blamed(healthy, "MNB803", "C", "Service bookinfo/ratings")
    assert "legacy/legacy-client" in diagnosis.problems[0].finding.message
    assert_explains(diagnosis, 6)


OVERFLOW = {
    "code": "503",
    "flags": "UO",
    "details": "upstream_reset_before_response_started{overflow}",
    **NOWHERE,
}


@pytest.mark.parametrize("below", [(), ("portLevelSettings",)])
def test_a_connection_pool_that_is_full_turns_requests_away(
    healthy: Altered, below: tuple[str, ...]
) -> None:
    """Altered: a DestinationRule allows one connection to ratings, in general or to its port."""
    policy: Object = {"connectionPool": {"tcp": {"maxConnections": 1}}}
    for name in below:
        policy = {name: [{"port": {"number": 9080}, **policy}]}
    spec = {"host": "ratings", "trafficPolicy": policy}
    healthy.add("destinationrules", "ratings", "bookinfo", CHANGED, spec=spec)
    healthy.at_client("ratings:9080", SINCE, **OVERFLOW)

    diagnosis = assert_blamed(healthy, "MNB851", "A", "DestinationRule bookinfo/ratings")
    assert '"maxConnections": 1' in diagnosis.problems[0].finding.message
    assert_explains(diagnosis, 20)


def test_outlier_detection_that_ejects_every_endpoint_leaves_none(healthy: Altered) -> None:
    """Altered: a DestinationRule ejects at the first 5xx, and the one pod of ratings is ejected."""
    policy = {"outlierDetection": {"consecutive5xxErrors": 1, "maxEjectionPercent": 100}}
    spec = {"host": "ratings", "trafficPolicy": policy}
    healthy.add("destinationrules", "ratings", "bookinfo", EARLIER, spec=spec)

    def eject(page: Any) -> None:
        for cluster in page["cluster_statuses"]:
            if "||ratings." in cluster["name"]:
                for host in cluster["host_statuses"]:
                    host["health_status"]["failed_outlier_check"] = True

    healthy.pages(eject, port=15000, path="/clusters?format=json")
    none = {"code": "503", "flags": "UH", "details": "no_healthy_upstream", **NOWHERE}
    healthy.at_client("ratings:9080", SINCE, **none)

    diagnosis = assert_blamed(healthy, "MNB852", "A", "DestinationRule bookinfo/ratings")
    assert_explains(diagnosis, 20)


@pytest.mark.parametrize(
    ("name", "without", "code", "failure_class", "subject"),
    [
        ("subset-missing", "MNB210", "MNB250", "A", "VirtualService bookinfo/reviews"),
        ("app-resets", "MNB711", "MNB251", "C", "Deployment bookinfo/ratings-v1"),
    ],
)
def test_a_fault_of_an_unknown_kind_is_blamed_on_what_changed_right_before(
    name: str, without: str, code: str, failure_class: str, subject: str, tmp_path: Path
) -> None:
    """Altered: the check that knows this kind of fault is left out."""
    checks = [one for one in CHECKS.values() if one.code != without and not one.lint]
    diagnosis = diagnose(Altered(name, tmp_path).facts(), checks)

    assert problems(diagnosis) == [(code, failure_class, subject)]
    assert diagnosis.unexplained == ()
    assert diagnosis.problems[0].finding.certainty < 0.5


# --- Faults in another shape --------------------------------------------------------------------


def test_a_server_without_a_sidecar_that_refuses_connections_is_not_listening(
    tmp_path: Path,
) -> None:
    """Altered: the callers of a pod that was never injected are refused."""
    altered = Altered("not-injected-annotation", tmp_path)
    altered.at_client("details:9080", "2026-11-23T03:14:08", **REFUSED)
    diagnosis = diagnose(altered.facts())

    assert problems(diagnosis) == [
        ("MNB710", "C", "Deployment bookinfo/details-v1"),
        ("MNB151", "A", "Deployment bookinfo/details-v1"),
    ]
    assert [len(cause.explains) for cause in diagnosis.problems] == [1, 0]


def test_callers_that_speak_tls_to_a_pod_that_lost_its_sidecar_are_its_fault(
    tmp_path: Path,
) -> None:
    """Altered: the callers of a pod without a sidecar still speak TLS to it."""
    altered = Altered("not-injected-annotation", tmp_path)
    reason = "TLS_error:|268435703:SSL_routines:OPENSSL_internal:WRONG_VERSION_NUMBER:TLS_error_end"
    details = f"upstream_reset_before_response_started{{remote_connection_failure|{reason}}}"
    altered.at_client(
        "details:9080",
        "2026-11-23T03:14:08",
        **{**REFUSED, "details": details, "failure": reason},
    )
    assert_blamed(altered, "MNB151", "A", "Deployment bookinfo/details-v1")


@pytest.mark.parametrize("namespace", ["bookinfo", "istio-system"])
def test_an_empty_policy_that_denies_by_default_is_not_blamed_for_a_typo_in_another(
    namespace: str, tmp_path: Path
) -> None:
    """Altered: besides the policy with the typo there is one that admits nobody, as is advised."""
    altered = Altered("authz-principal-typo", tmp_path)
    altered.add("authorizationpolicies", "allow-nothing", namespace, EARLIER, spec={})

    assert_blamed(altered, "MNB502", "A", "AuthorizationPolicy bookinfo/details-readers")


@pytest.mark.parametrize(
    ("name", "code", "subject"),
    [
        ("mtls-strict-legacy-client", "MNB403", "PeerAuthentication istio-system/default"),
        ("mtls-client-disable", "MNB401", "DestinationRule bookinfo/ratings"),
    ],
)
def test_a_policy_of_the_root_namespace_holds_for_the_whole_mesh(
    name: str, code: str, subject: str, tmp_path: Path
) -> None:
    """Altered: the PeerAuthentication that demands mutual TLS stands in the root namespace."""
    altered = Altered(name, tmp_path)
    altered.each(
        "peerauthentications", "", lambda one: one["metadata"].update(namespace="istio-system")
    )
    diagnosis = assert_blamed(altered, code, "A", subject)
    assert "PeerAuthentication istio-system/" in diagnosis.problems[0].finding.message


HOSTS = ["{}", "{}.bookinfo.svc.cluster.local", "*.bookinfo.svc.cluster.local", "*.local", "*"]


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize(
    ("name", "service", "code"),
    [("mtls-client-disable", "ratings", "MNB401"), ("tls-to-plaintext", "details", "MNB402")],
)
def test_the_host_of_a_destination_rule_may_be_short_full_or_a_wildcard(
    name: str, service: str, code: str, host: str, tmp_path: Path
) -> None:
    """Altered: the DestinationRule with the wrong TLS mode writes its host in another way."""
    altered = Altered(name, tmp_path)
    altered.each(
        "destinationrules", service, lambda one: one["spec"].update(host=host.format(service))
    )
    assert_blamed(altered, code, "A", f"DestinationRule bookinfo/{service}")


def test_a_wildcard_is_not_blamed_where_a_rule_for_the_very_host_is_in_force(
    tmp_path: Path,
) -> None:
    """Altered: TLS is off for a wildcard, and on again for the one host that is called so."""
    altered = Altered("mtls-client-disable", tmp_path)
    altered.each(
        "destinationrules",
        "ratings",
        lambda one: one["spec"].update(host="*.bookinfo.svc.cluster.local"),
    )
    mutual = {"trafficPolicy": {"tls": {"mode": "ISTIO_MUTUAL"}}}
    for service in ("ratings", "details", "productpage"):
        spec = {"host": service, **mutual}
        altered.add("destinationrules", f"{service}-mutual", "bookinfo", EARLIER, spec=spec)

    codes = [cause.check.code for cause in diagnose(altered.facts()).causes]
    assert "MNB401" not in codes


@pytest.mark.parametrize("host", HOSTS[:2])
def test_a_subset_is_looked_up_by_short_and_full_host(host: str, tmp_path: Path) -> None:
    """Altered: the DestinationRule with the empty subset writes its host in another way."""
    altered = Altered("subset-no-pods", tmp_path)
    altered.each(
        "destinationrules", "reviews", lambda one: one["spec"].update(host=host.format("reviews"))
    )
    assert_blamed(altered, "MNB211", "A", "DestinationRule bookinfo/reviews")


@pytest.mark.parametrize(
    ("changed", "failure_class", "subject"),
    [
        (CHANGED, "A", "VirtualService bookinfo/ratings"),
        (EARLIER, "C", "Deployment bookinfo/ratings-v1"),
    ],
)
def test_a_time_out_is_the_routes_fault_only_when_the_route_was_changed_right_before(
    healthy: Altered, changed: str, failure_class: str, subject: str
) -> None:
    """Altered: a route allows half a second, since right before or since long before the 504s."""
    spec = {"hosts": ["ratings"], "http": [{"timeout": "0.5s", **TO_RATINGS}]}
    healthy.add("virtualservices", "ratings", "bookinfo", changed, spec=spec)
    late = {"code": "504", "flags": "UT", "details": "response_timeout", "duration": "499"}
    healthy.at_client("ratings:9080", SINCE, service_time="-", route="-", **late)

    assert_explains(assert_blamed(healthy, "MNB713", failure_class, subject), 20)


@pytest.mark.parametrize(("code", "path"), [("404", "/ratings/0"), ("404", "/v2"), ("500", "/v2")])
def test_a_rewrite_that_the_application_does_not_know_is_blamed(
    healthy: Altered, code: str, path: str
) -> None:
    """Altered: a VirtualService rewrites the path, and the application answers 404 or 500.

    The server's proxy may log the path as it was asked for or as it was rewritten.
    """
    spec = {"hosts": ["ratings"], "http": [{"rewrite": {"uri": "/v2"}, **TO_RATINGS}]}
    healthy.add("virtualservices", "ratings", "bookinfo", CHANGED, spec=spec)
    healthy.at_server("ratings:9080", SINCE, code=code, path=path)

    assert_explains(assert_blamed(healthy, "MNB250", "A", "VirtualService bookinfo/ratings"), 20)


def test_a_refused_configuration_is_traced_to_a_request_authentication_too(tmp_path: Path) -> None:
    """Altered: what the proxies refuse is a key set, and there is no EnvoyFilter.

    A Telemetry that was there long before shares no word with the refusal.
    """
    altered = Altered("envoyfilter-rejected", tmp_path)
    error = (
        "Error adding/updating listener(s) virtualInbound: Provider 'origins-0' in jwt_authn "
        "config has invalid local jwks: [crv] field specified is not compatible with [alg]\n"
    )

    def refused(page: Any) -> None:
        for status in page:
            for resource in status["resources"].values():
                if "lastError" in resource:
                    resource["lastError"] = error

    def without_filter(page: Any) -> None:
        page[:] = [one for one in page if one["kind"] != "EnvoyFilter"]

    altered.pages(refused, path="/debug/syncz").pages(without_filter, path="/debug/configz")
    keys = '{"keys":[{"kty":"EC","crv":"P-256","alg":"ES384"}]}'
    rules = {"jwtRules": [{"issuer": "https://issuer.example.org", "jwks": keys}]}
    at = "2026-11-23T03:11:04Z"
    altered.add("requestauthentications", "tokens", "bookinfo", at, spec=rules)
    altered.add("telemetries", "mesh-default", "istio-system", EARLIER, spec={"tracing": [{}]})

    diagnosis = assert_blamed(altered, "MNB601", "B", "RequestAuthentication bookinfo/tokens")
    assert_explains(diagnosis, 6)


def test_a_refused_configuration_that_fits_no_object_is_blamed_on_nobody_else(
    tmp_path: Path,
) -> None:
    """Altered: the EnvoyFilter is not shown, and an old Telemetry is the only other candidate."""
    altered = Altered("envoyfilter-rejected", tmp_path)
    altered.pages(
        lambda page: page.__setitem__(slice(None), [o for o in page if o["kind"] != "EnvoyFilter"]),
        path="/debug/configz",
    )
    altered.add("telemetries", "mesh-default", "istio-system", EARLIER, spec={"tracing": [{}]})
    first = diagnose(altered.facts()).problems[0]

    assert first.check.code == "MNB601"
    assert first.subject.kind != "Telemetry"
    assert "No object could be found" in first.finding.message
