"""The checks of what proxies have counted fire where nobody logs, and only with a reason."""

from __future__ import annotations

import pytest

from meshnb.diagnosis import Diagnosis, diagnose
from meshnb.tables import Facts
from tests.conftest import recording_names, truth_of
from tests.enriching import Enriched, enriched

HEALTHY = [name for name in recording_names() if truth_of(name)["healthy"]]


def without_logs(name: str) -> Enriched:
    """Return a recording whose proxies log no request."""
    return enriched(name, ["no_logs"])


def blamed(diagnosis: Diagnosis) -> list[tuple[str, str, str]]:
    """Return code, class and subject of each cause above info."""
    return [
        (cause.check.code, cause.failure_class.value, str(cause.subject))
        for cause in diagnosis.problems
    ]


def test_an_application_that_fails_is_told_by_its_proxys_counters() -> None:
    """Altered: nobody logs."""
    for name, workload in (("app-5xx", "details-v1"), ("app-resets", "ratings-v1")):
        diagnosis = diagnose(Facts(without_logs(name)))
        assert blamed(diagnosis) == [("MNB720", "C", f"Deployment bookinfo/{workload}")]
        assert diagnosis.unexplained == ()


def test_a_port_declared_as_grpc_that_keeps_no_connection_is_told_by_counters() -> None:
    """Altered: nobody logs."""
    diagnosis = diagnose(Facts(without_logs("port-name-grpc")))
    assert blamed(diagnosis) == [("MNB721", "A", "Service bookinfo/ratings")]


@pytest.mark.parametrize(
    ("name", "policy"),
    [("authz-allow-nobody", "details-readers"), ("authz-deny-named", "no-strangers")],
)
def test_a_policy_that_refuses_more_than_it_admits_is_a_guess(name: str, policy: str) -> None:
    """Altered: nobody logs."""
    diagnosis = diagnose(Facts(without_logs(name)))
    assert blamed(diagnosis) == [("MNB722", "A", f"AuthorizationPolicy bookinfo/{policy}")]
    assert diagnosis.causes[0].certainty < 0.5


def test_a_policy_that_refuses_a_few_of_many_does_its_work() -> None:
    """Altered: nobody logs, and the policy has been there for two hours."""
    mesh = without_logs("authz-deny-named")
    for policy in mesh.objects("authorizationpolicies"):
        policy["metadata"]["creationTimestamp"] = mesh.ago(hours=2)
        for entry in policy["metadata"].get("managedFields", []):
            entry["time"] = mesh.ago(hours=2)
    assert "MNB722" not in {cause.check.code for cause in diagnose(Facts(mesh)).causes}


def test_bytes_that_a_proxy_passed_on_to_an_http_port_are_told_by_counters() -> None:
    """Altered: nobody logs."""
    diagnosis = diagnose(Facts(without_logs("https-to-http-port")))
    assert blamed(diagnosis) == [("MNB723", "C", "Pod bookinfo/client-tls")]
    assert "No request was seen to fail" in diagnosis.causes[0].finding.message


def test_a_service_that_a_sidecar_hides_from_all_is_told_by_what_it_served() -> None:
    """Altered: nobody logs."""
    diagnosis = diagnose(Facts(without_logs("sidecar-hides-host")))
    assert blamed(diagnosis) == [("MNB724", "A", "Sidecar bookinfo/default")]


def test_a_service_that_was_never_called_may_be_hidden() -> None:
    """Altered: nobody logs, and the Sidecar is older than all proxies."""
    mesh = without_logs("sidecar-hides-host")
    for sidecar in mesh.objects("sidecars"):
        sidecar["metadata"]["creationTimestamp"] = mesh.ago(hours=9)
        for entry in sidecar["metadata"].get("managedFields", []):
            entry["time"] = mesh.ago(hours=9)
    assert "MNB724" not in {cause.check.code for cause in diagnose(Facts(mesh)).causes}


def test_a_slip_in_a_selector_is_a_problem_where_nobody_would_log_it() -> None:
    """Altered: nobody logs."""
    diagnosis = diagnose(Facts(without_logs("service-selector-wrong")))
    assert blamed(diagnosis) == [("MNB701", "C", "Service bookinfo/details")]


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("app-wrong-port", "MNB710"),
        ("app-slow", "MNB713"),
        ("mtls-client-disable", "MNB401"),
        ("tls-to-plaintext", "MNB402"),
        ("authz-principal-typo", "MNB509"),
    ],
)
def test_what_is_counted_is_explained_by_what_is_configured(name: str, code: str) -> None:
    """Altered: nobody logs."""
    first = diagnose(Facts(without_logs(name))).causes[0]
    assert (first.check.code, bool(first.explains)) == (code, True)


@pytest.mark.parametrize("name", HEALTHY)
def test_nothing_is_blamed_in_a_healthy_mesh_without_logs(name: str) -> None:
    """Altered: nobody logs."""
    assert blamed(diagnose(Facts(without_logs(name)))) == []


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("app-5xx", "MNB720"),
        ("app-resets", "MNB711"),
        ("app-wrong-port", "MNB710"),
        ("fault-left-behind", "MNB230"),
        ("port-name-grpc", "MNB721"),
        ("rate-limited", "MNB850"),
        ("service-selector-wrong", "MNB701"),
    ],
)
def test_istios_own_metrics_are_explained_as_a_log_would_be(name: str, code: str) -> None:
    """Altered: the proxies are Istio's own; they count requests, and nobody logs."""
    diagnosis = diagnose(Facts(enriched(name, ["istio_filters", "no_logs"])))
    assert [cause.check.code for cause in diagnosis.problems] == [code]
    assert diagnosis.unexplained == ()
