"""Checks of how Istio was installed, and of weak spots, on altered recordings.

What is altered is named in each test. Beside each fault stands what looks like it and is none.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from meshnb.checks import CHECKS, Inputs, Severity, Verdict, run
from meshnb.diagnosis import diagnose
from tests.alteration import Altered
from tests.checks.test_altered import (
    CHANGED,
    EARLIER,
    NOWHERE,
    SINCE,
    assert_blamed,
    assert_explains,
    assert_harmless,
    problems,
)
from tests.checks.test_altered_injection import STRICT, Object, blamed_first
from tests.checks.test_altered_startup import not_ready, state

# --- How Istio was installed --------------------------------------------------------------------


def _proxies_of_version(altered: Altered, version: str) -> Altered:
    def older(page: Any) -> None:
        for one in page:
            if one["proxy"].startswith("ratings"):
                one["istio_version"] = version

    altered.pages(older, path="/debug/syncz")
    return altered


@pytest.mark.parametrize("version", ["1.20.0", "1.31.0"])
def test_a_proxy_of_a_version_that_is_not_supported_is_found(
    healthy: Altered, version: str
) -> None:
    """Altered: the proxy of ratings is ten minor versions older than istiod, or newer."""
    diagnosis = diagnose(_proxies_of_version(healthy, version).facts())
    assert problems(diagnosis) == [("MNB130", "B", "Deployment bookinfo/ratings-v1")]


@pytest.mark.parametrize("version", ["1.30.1", "1.29.4"])
def test_a_proxy_of_a_supported_version_is_no_problem(healthy: Altered, version: str) -> None:
    """Altered: the proxy of ratings is of another patch version, or one minor version older."""
    diagnosis = diagnose(_proxies_of_version(healthy, version).facts())
    assert problems(diagnosis) == []


def _istiod_says(altered: Altered, message: str, level: str = "error") -> Altered:
    line = f"2026-11-23T02:48:00.000000Z\t{level}\tklog\t{message}\n"
    return altered.texts(lambda text: line + text, kind="log", container="discovery")


def test_a_definition_that_istiod_does_not_read_is_found(healthy: Altered) -> None:
    """Altered: istiod says that the definition of HTTPRoutes is older than it needs."""
    name = "httproutes.gateway.networking.k8s.io"
    _istiod_says(
        healthy, f"CRD {name} version v0.8.0 is below minimum version v1.0.0 required", "info"
    )
    assert_blamed(healthy, "MNB131", "A", f"CustomResourceDefinition {name}")


def test_an_object_for_another_revision_is_not_read(healthy: Altered) -> None:
    """Altered: the DestinationRule of reviews is for a revision that nobody has.

    istiod does not hold it, and requests to its subsets fail.
    """
    healthy.each(
        "destinationrules",
        "reviews",
        lambda one: one["metadata"].update(labels={"istio.io/rev": "other"}),
    )
    healthy.pages(
        lambda page: page.__setitem__(
            slice(None), [one for one in page if one["kind"] != "DestinationRule"]
        ),
        path="/debug/configz",
    )
    none = {"code": "503", "flags": "NC", "details": "cluster_not_found", **NOWHERE}
    healthy.at_client("reviews:9080", SINCE, **none)

    assert_explains(blamed_first(healthy, "MNB132", "A", "DestinationRule bookinfo/reviews"), 20)


def test_an_object_that_was_stored_a_moment_ago_may_not_be_read_yet(healthy: Altered) -> None:
    """Altered: a VirtualService was made five seconds before istiod was asked what it holds."""
    spec = {"hosts": ["details"], "http": [{"route": [{"destination": {"host": "details"}}]}]}
    healthy.add("virtualservices", "details", "bookinfo", "2026-11-23T02:49:10Z", spec=spec)
    healthy.pages(
        lambda page: page.__setitem__(
            slice(None), [one for one in page if one["metadata"]["name"] != "details"]
        ),
        path="/debug/configz",
    )
    assert_harmless(healthy)


@pytest.mark.parametrize(
    ("old", "new", "severity"),
    [
        ("trustDomain: cluster.local", "trustDomain: [x", Severity.ERROR),
        ("enableTracing: false", "protocolDetectionTimeout: 5s", Severity.WARNING),
    ],
)
def test_settings_that_istiod_does_not_work_with_are_found(
    healthy: Altered, old: str, new: str, severity: Severity
) -> None:
    """Altered: the ConfigMap of the mesh is no YAML, or says other things than istiod does."""

    def rewrite(config_map: Object) -> None:
        text = config_map.get("data", {}).get("mesh")
        if text:
            assert old in text
            config_map["data"]["mesh"] = text.replace(old, new)

    healthy.each("configmaps", "istio", rewrite)
    diagnosis = assert_blamed(healthy, "MNB133", "A", "ConfigMap istio-system/istio")
    assert diagnosis.problems[0].severity is severity


def test_a_lease_of_an_istiod_that_is_gone_is_found(healthy: Altered) -> None:
    """Altered: the lease for gateway statuses is held for long by an istiod that does not run."""

    def dead(lease: Object) -> None:
        lease["spec"].update(
            holderIdentity="istiod-849979b494-dead0",
            leaseDurationSeconds=86400,
            renewTime="2026-11-23T02:30:00.000000Z",
        )

    healthy.each("leases", "istio-gateway-status-leader", dead)
    assert_blamed(healthy, "MNB134", "A", "Lease istio-system/istio-gateway-status-leader-default")


def test_a_lease_that_changes_hands_is_well(healthy: Altered) -> None:
    """Altered: the istiod that held a lease was replaced twenty seconds ago."""

    def handed(lease: Object) -> None:
        lease["spec"].update(
            holderIdentity="istiod-849979b494-dead0", renewTime="2026-11-23T02:49:00.000000Z"
        )

    assert_harmless(healthy.each("leases", "istio-gateway-status-leader", handed))


def test_refused_debug_pages_are_told_by_istiods_log(healthy: Altered) -> None:
    """Altered: istiod says that it refused a request of another namespace for its pages."""
    _istiod_says(healthy, "Unauthorized debug request from [10.244.0.99] to /debug/syncz", "warn")
    assert_blamed(healthy, "MNB135", "A", "Deployment istio-system/istiod")


def test_a_cluster_that_istio_does_not_support_is_found(healthy: Altered) -> None:
    """Altered: the node runs Kubernetes 1.26."""
    healthy.each(
        "nodes", "node1", lambda one: one["status"]["nodeInfo"].update(kubeletVersion="v1.26.4")
    )
    assert_blamed(healthy, "MNB136", "A", "Node node1")


def test_an_istiod_that_may_not_list_a_kind_is_not_ready(healthy: Altered) -> None:
    """Altered: istiod is not ready, and says which kind it may not list."""
    not_ready(healthy, "istiod", "Running")
    state(healthy, "istiod", "discovery", ready=False)
    _istiod_says(
        healthy,
        "Failed to watch: virtualservices.networking.istio.io is forbidden: User "
        '"system:serviceaccount:istio-system:istiod" cannot list resource "virtualservices" in API '
        'group "networking.istio.io" at the cluster scope',
    )
    blamed_first(healthy, "MNB104", "A", "ClusterRole istiod-clusterrole-istio-system")


def test_an_istiod_that_is_killed_for_its_memory_is_found(healthy: Altered) -> None:
    """Altered: istiod was killed for its memory, and a proxy waits for its answer."""
    killed = {"terminated": {"exitCode": 137, "reason": "OOMKilled", "finishedAt": CHANGED}}
    state(healthy, "istiod", "discovery", lastState=killed, restartCount=3)
    blamed_first(healthy, "MNB105", "C", "Deployment istio-system/istiod")


def test_pushes_that_take_long_are_told_by_istiods_metrics(healthy: Altered) -> None:
    """Altered: half of istiod's pushes took more than ten seconds."""
    lines = "".join(
        f'pilot_proxy_convergence_time_bucket{{le="{le}"}} {count}\n'
        for le, count in (("0.5", 20), ("1", 30), ("10", 45), ("20", 80), ("30", 94), ("+Inf", 94))
    )

    def slow(text: str) -> str:
        kept = [
            line
            for line in text.split("\n")
            if not line.startswith("pilot_proxy_convergence_time_bucket")
        ]
        return "\n".join(kept) + "\n" + lines

    healthy.texts(slow, kind="http", port=15014, path="/metrics")
    diagnosis = blamed_first(healthy, "MNB105", "C", "Deployment istio-system/istiod")
    assert diagnosis.problems[0].severity is Severity.WARNING


# --- Weak spots ---------------------------------------------------------------------------------


def weak(altered: Altered, code: str) -> list[str]:
    """Return what a check of weak spots says of an altered recording: the subjects."""
    (outcome,) = run(Inputs(altered.facts()), [CHECKS[code]])
    assert outcome.verdict in (Verdict.PASS, Verdict.FAIL), outcome.because
    return [str(finding.subject) for finding in outcome.findings]


def test_weak_spots_are_left_out_of_a_diagnosis(healthy: Altered) -> None:
    """Altered: nothing."""
    assert [code for code in CHECKS if code.startswith("MNB17")] != []
    assert_harmless(healthy)


def test_xds_in_plain_text_is_a_weak_spot_until_a_policy_guards_it(healthy: Altered) -> None:
    """Altered: nothing, then there is a NetworkPolicy beside istiod."""
    assert weak(healthy, "MNB1700") == ["Deployment istio-system/istiod"]
    healthy.add("networkpolicies", "guard", "istio-system", EARLIER, spec={"podSelector": {}})
    assert weak(healthy, "MNB1700") == []


def test_plain_text_and_no_policy_are_weak_spots_until_there_are_some(healthy: Altered) -> None:
    """Altered: nothing, then mutual TLS is demanded and nobody is admitted by default."""
    assert weak(healthy, "MNB1701") == ["Namespace bookinfo"]
    assert weak(healthy, "MNB1702") == ["Namespace bookinfo"]
    healthy.add("peerauthentications", "default", "istio-system", EARLIER, spec=STRICT)
    healthy.add("authorizationpolicies", "nobody", "istio-system", EARLIER, spec={})
    assert weak(healthy, "MNB1701") == []
    assert weak(healthy, "MNB1702") == []


def test_a_gateway_for_all_hosts_that_a_stranger_uses_is_a_weak_spot(healthy: Altered) -> None:
    """Altered: the Gateway takes all hosts; a VirtualService of elsewhere is bound to it."""
    healthy.each(
        "gateways", "bookinfo-gateway", lambda one: one["spec"]["servers"][0].update(hosts=["*"])
    )
    spec = {
        "hosts": ["bank.example.com"],
        "gateways": ["bookinfo/bookinfo-gateway"],
        "http": [{"route": [{"destination": {"host": "x.legacy.svc.cluster.local"}}]}],
    }
    healthy.add("virtualservices", "bank", "legacy", EARLIER, spec=spec)
    assert weak(healthy, "MNB1703") == ["Gateway bookinfo/bookinfo-gateway"]
    healthy.each(
        "gateways",
        "bookinfo-gateway",
        lambda one: one["spec"]["servers"][0].update(hosts=["bookinfo/*"]),
    )
    assert weak(healthy, "MNB1703") == []


def test_an_application_that_can_change_its_traffic_rules_is_a_weak_spot(healthy: Altered) -> None:
    """Altered: nothing, then the container of ratings has NET_ADMIN."""
    assert weak(healthy, "MNB1704") == []

    def able(pod: Object) -> None:
        pod["spec"]["containers"][0]["securityContext"] = {"capabilities": {"add": ["NET_ADMIN"]}}

    healthy.each("pods", "ratings", able)
    assert weak(healthy, "MNB1704") == ["Deployment bookinfo/ratings-v1"]


def test_a_root_key_in_the_cluster_is_a_weak_spot(healthy: Altered) -> None:
    """Altered: nothing, then istiod has no root of its own."""
    assert weak(healthy, "MNB1705") == ["Secret istio-system/istio-ca-secret"]
    healthy.remove("secrets", "istio-ca-secret")
    assert weak(healthy, "MNB1705") == []


def test_a_release_without_support_is_a_weak_spot(healthy: Altered) -> None:
    """Altered: istiod is of Istio 1.28."""
    _of_version(healthy, "1.28.9")
    assert weak(healthy, "MNB1706") == ["Deployment istio-system/istiod"]


@pytest.mark.parametrize("version", ["1.30.3", "1.29.4", "1.40.0"])
def test_until_when_a_release_has_support_is_said_to_be_unknown(
    healthy: Altered, version: str
) -> None:
    """Altered: istiod is of a version whose end of support was not announced yet, or is unheard."""
    _of_version(healthy, version)
    (outcome,) = run(Inputs(healthy.facts()), [CHECKS["MNB1706"]])
    assert outcome.verdict is Verdict.UNKNOWN
    assert f"support of Istio {version[:4]}: when it ends is not known here" in outcome.because


def test_which_kubernetes_a_newer_istio_supports_is_said_to_be_unknown(healthy: Altered) -> None:
    """Altered: istiod is of Istio 1.40; then the node runs Kubernetes 1.31, which is too old."""
    _of_version(healthy, "1.40.0")
    (outcome,) = run(Inputs(healthy.facts()), [CHECKS["MNB136"]])
    assert outcome.verdict is Verdict.UNKNOWN
    assert "versions of Kubernetes for Istio 1.40" in outcome.because
    healthy.each(
        "nodes", "node1", lambda one: one["status"]["nodeInfo"].update(kubeletVersion="v1.31.4")
    )
    (outcome,) = run(Inputs(healthy.facts()), [CHECKS["MNB136"]])
    assert [str(finding.subject) for finding in outcome.findings] == ["Node node1"]


def _of_version(altered: Altered, version: str) -> None:
    altered.texts(
        lambda text: text.replace("1.30.3", version), kind="http", port=15014, path="/version"
    )


def test_calls_with_other_ids_break_traces(healthy: Altered) -> None:
    """Altered: nothing, then each call that reviews makes has an id of its own."""
    assert weak(healthy, "MNB1707") == []
    healthy.lines(
        "reviews-v2",
        lambda line: [line if line.inbound else line._replace(id=f"{line.id}-new")],
    )
    assert weak(healthy, "MNB1707") == ["Deployment bookinfo/reviews-v2"]


def test_a_host_of_mutual_tls_that_is_reached_through_another_one_is_found(
    tmp_path: Path,
) -> None:
    """Altered: a Gateway has a host with and one without client certificates, on one port.

    Requests for the first come through handshakes for the second, and are served.
    """
    altered = Altered("healthy", tmp_path)

    def two(gateway: Object) -> None:
        port = {"number": 443, "name": "https", "protocol": "HTTPS"}
        gateway["spec"]["servers"] += [
            {
                "port": {**port, "name": f"https-{mode.lower()}"},
                "hosts": [host],
                "tls": {"mode": mode, "credentialName": "keys"},
            }
            for host, mode in (("admin.example.com", "MUTUAL"), ("guest.example.com", "SIMPLE"))
        ]

    altered.each("gateways", "bookinfo-gateway", two)
    altered.request(
        "istio-ingressgateway",
        "/productpage",
        6,
        authority="admin.example.com",
        sni="guest.example.com",
    )
    codes = [cause.check.code for cause in diagnose(altered.facts()).problems]
    assert "MNB455" in codes


# --- What looks like a fault of another mesh and is none ----------------------------------------


def test_an_object_where_istiod_does_not_look_is_left_alone(healthy: Altered) -> None:
    """Altered: istiod looks at labelled namespaces only; another one has a VirtualService."""
    selectors = [{"matchLabels": {"istio-injection": "enabled"}}]
    healthy.pages(lambda page: page.update(discoverySelectors=selectors), path="/debug/mesh")
    spec = {"hosts": ["x"], "http": [{"route": [{"destination": {"host": "x"}}]}]}
    healthy.add("virtualservices", "x", "legacy", EARLIER, spec=spec)
    healthy.pages(
        lambda page: page.__setitem__(
            slice(None), [one for one in page if one["metadata"]["name"] != "x"]
        ),
        path="/debug/configz",
    )
    codes = [cause.check.code for cause in diagnose(healthy.facts()).problems]
    assert "MNB132" not in codes


def test_a_namespace_of_the_mesh_that_istiod_does_not_look_at_is_found(healthy: Altered) -> None:
    """Altered: istiod looks at namespaces with another label than that of bookinfo."""
    selectors = [{"matchLabels": {"mesh": "yes"}}, {"matchLabels": {"name": "istio-system"}}]
    healthy.pages(lambda page: page.update(discoverySelectors=selectors), path="/debug/mesh")
    found = {
        str(finding.subject): finding
        for finding in next(iter(run(Inputs(healthy.facts()), [CHECKS["MNB137"]]))).findings
    }
    assert "Namespace bookinfo" in found
    assert '"mesh"' in found["Namespace bookinfo"].message


def test_a_namespace_that_is_chosen_is_looked_at(healthy: Altered) -> None:
    """Altered: istiod looks at the namespaces whose pods are injected, and at its own."""
    selectors = [
        {"matchExpressions": [{"key": "kubernetes.io/metadata.name", "operator": "Exists"}]}
    ]
    healthy.pages(lambda page: page.update(discoverySelectors=selectors), path="/debug/mesh")
    assert_harmless(healthy)


def test_a_lease_of_a_revision_that_was_taken_out_is_left_alone(healthy: Altered) -> None:
    """Altered: a lease of revision 1-29 is held by an istiod of that revision, long gone."""
    lease = {
        "holderIdentity": "istiod-1-29-5d8f-x",
        "leaseDurationSeconds": 30,
        "renewTime": "2026-11-20T02:30:00.000000Z",
    }
    healthy.add("leases", "istio-gateway-deployment-1-29", "istio-system", EARLIER, spec=lease)
    assert_harmless(healthy)


def test_settings_that_are_written_in_another_way_are_the_same(healthy: Altered) -> None:
    """Altered: the ConfigMap of the mesh has a duration in other units and a switch in capitals."""

    def rewrite(config_map: Object) -> None:
        text = config_map.get("data", {}).get("mesh")
        if text:
            config_map["data"]["mesh"] = f"{text}\nconnectTimeout: 10000ms\nenableAutoMtls: True\n"

    assert_harmless(healthy.each("configmaps", "istio", rewrite))
