"""Checks of the way from a proxy to istiod, on altered recordings.

What is altered is named in each test. Beside each fault stands what looks like it and is none.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from meshnb.checks import Severity
from meshnb.diagnosis import diagnose
from tests.alteration import Altered
from tests.checks.test_altered import (
    EARLIER,
    assert_blamed,
    assert_explains,
    assert_harmless,
    problems,
)
from tests.checks.test_altered_injection import CLIENT, Object, blamed_first, unlabelled

# --- The way from a proxy to istiod -------------------------------------------------------------


LOST = "ratings-v1-75cf8d9c59-njqg8"
DIAL = "transport: Error while dialing: dial tcp: lookup istiod.istio-sytem.svc on 10.96.0.10:53: "
UNKNOWN_NAME = f"{DIAL}no such host"


@pytest.fixture
def lost(tmp_path: Path) -> Altered:
    """Return a recording in which one new pod gets no configuration, with the right address."""
    altered = Altered("bootstrap-wrong-discovery", tmp_path)

    def right(pod: Object) -> None:
        pod["metadata"]["annotations"].pop("proxy.istio.io/config", None)

    altered.each("pods", "ratings", right)
    for page in ("/config_dump?include_eds", "/server_info"):
        altered.bodies(
            lambda body: body.replace(b"istio-sytem", b"istio-system"),
            kind="http",
            pod=LOST,
            port=15000,
            path=page,
        )
    return altered


def says(altered: Altered, words: str, **log: str) -> Altered:
    """Let the proxy say other words than that it cannot resolve a name."""
    where = {"kind": "log", "pod": LOST, "container": "istio-proxy", **log}
    return altered.texts(lambda text: text.replace(UNKNOWN_NAME, words), **where)


X509 = "authentication handshake failed: tls: failed to verify certificate: x509: "


@pytest.mark.parametrize(
    ("words", "code", "failure_class", "subject"),
    [
        (UNKNOWN_NAME, "MNB610", "C", "Deployment bookinfo/ratings-v1"),
        (
            f"{X509}certificate signed by unknown authority",
            "MNB611",
            "B",
            "Deployment bookinfo/ratings-v1",
        ),
        (
            "rpc error: code = Unauthenticated desc = authentication failure",
            "MNB612",
            "B",
            "Deployment bookinfo/ratings-v1",
        ),
        (
            (
                "rpc error: code = PermissionDenied desc = authorization failed: no identities "
                "([spiffe://cluster.local/ns/bookinfo/sa/default]) matched bookinfo/other"
            ),
            "MNB613",
            "B",
            "Deployment bookinfo/ratings-v1",
        ),
        (
            "8, grpc: received message larger than max (6610145 vs. 4194304)",
            "MNB614",
            "B",
            "Deployment bookinfo/ratings-v1",
        ),
        (
            "code = Unavailable desc = server warmup not complete; try again",
            "MNB615",
            "B",
            "Deployment istio-system/istiod",
        ),
        (
            (
                "transport: Error while dialing: dial tcp 10.96.55.189:15012: connect: connection "
                "refused"
            ),
            "MNB602",
            "B",
            f"Pod bookinfo/{LOST}",
        ),
    ],
)
def test_a_proxy_that_gets_no_configuration_says_why(
    lost: Altered, words: str, code: str, failure_class: str, subject: str
) -> None:
    """Altered: the pod of ratings, never ready, looks for the right istiod; it says another why."""
    diagnosis = blamed_first(says(lost, words), code, failure_class, subject)
    assert len(diagnosis.problems) == 1, problems(diagnosis)
    assert_explains(diagnosis, 2)


def test_no_ready_dns_is_the_dns_servers_fault(lost: Altered) -> None:
    """Altered: the name of the right istiod cannot be resolved; the one DNS pod is not ready."""

    def resolver(items: list[Any]) -> None:
        pod = copy.deepcopy(
            next(one for one in items if "istio-ingress" in one["metadata"]["name"])
        )
        pod["metadata"].update(
            name="coredns-5d78c-x2x4z", namespace="kube-system", labels={"k8s-app": "kube-dns"}
        )
        pod["metadata"]["labels"]["pod-template-hash"] = "5d78c"
        pod["metadata"]["ownerReferences"] = [
            {"kind": "ReplicaSet", "name": "coredns-5d78c", "controller": True}
        ]
        pod["spec"]["containers"][0].update(name="coredns", args=[])
        pod["status"]["podIP"] = "10.244.0.250"
        for condition in pod["status"]["conditions"]:
            if condition["type"] == "Ready":
                condition["status"] = "False"
        items.append(pod)

    lost.objects("pods", resolver)
    blamed_first(lost, "MNB610", "C", "Deployment kube-system/coredns")


def test_another_root_in_the_namespace_is_the_config_maps_fault(lost: Altered) -> None:
    """Altered: the ConfigMap istio-ca-root-cert of bookinfo holds the cluster's own authority."""
    maps = json.loads((lost.folder / "kubernetes/configmaps.json").read_text())["items"]
    other = next(one for one in maps if one["metadata"]["name"] == "kube-root-ca.crt")

    def another(items: list[Any]) -> None:
        for one in items:
            if (one["metadata"]["namespace"], one["metadata"]["name"]) == (
                "bookinfo",
                "istio-ca-root-cert",
            ):
                one["data"]["root-cert.pem"] = other["data"]["ca.crt"]

    lost.objects("configmaps", another)
    says(lost, f"{X509}certificate signed by unknown authority")
    blamed_first(lost, "MNB611", "B", "ConfigMap bookinfo/istio-ca-root-cert")


@pytest.mark.parametrize(
    ("namespace", "spec"),
    [
        ("bookinfo", {"podSelector": {}, "policyTypes": ["Egress"], "egress": []}),
        (
            "istio-system",
            {
                "podSelector": {"matchLabels": {"app": "istiod"}},
                "policyTypes": ["Ingress"],
                "ingress": [{"ports": [{"port": 15017}]}],
            },
        ),
    ],
)
def test_a_network_policy_between_proxy_and_istiod_is_blamed(
    lost: Altered, namespace: str, spec: Object
) -> None:
    """Altered: the pod of ratings cannot connect; a NetworkPolicy lets nothing out, or in."""
    says(lost, "transport: Error while dialing: dial tcp 10.96.55.189:15012: i/o timeout")
    lost.add("networkpolicies", "walls", namespace, EARLIER, spec=spec)

    blamed_first(lost, "MNB602", "B", f"NetworkPolicy {namespace}/walls")


def test_a_network_policy_that_leaves_15012_open_is_not_blamed(lost: Altered) -> None:
    """Altered: the pod of ratings cannot connect; a policy lets DNS and 15012 out."""
    says(lost, "transport: Error while dialing: dial tcp 10.96.55.189:15012: i/o timeout")
    spec = {
        "podSelector": {},
        "policyTypes": ["Egress"],
        "egress": [{"ports": [{"port": 53, "protocol": "UDP"}, {"port": 15012}]}],
    }
    lost.add("networkpolicies", "walls", "bookinfo", EARLIER, spec=spec)

    blamed_first(lost, "MNB602", "B", f"Pod bookinfo/{LOST}")


def test_a_complaint_of_before_it_was_connected_is_over(healthy: Altered) -> None:
    """Altered: a proxy that is connected and ready had said that it could not resolve a name."""
    line = (
        "2026-11-23T02:34:02.000000Z\twarning\tenvoy config ./x.h:227\tDeltaAggregatedResources "
        f"gRPC config stream to xds-grpc closed since 3s ago: 14, {UNKNOWN_NAME}\n"
    )
    healthy.texts(lambda text: line + text, kind="log", pod=CLIENT, container="istio-proxy")
    assert_harmless(healthy)


def test_a_proxy_that_waits_for_a_secret_says_so(lost: Altered) -> None:
    """Altered: the pod of ratings is connected, and waits for a resource that never comes."""
    says(lost, "all is well")
    _connect(lost, f"{LOST}.bookinfo")

    def waits(page: Any) -> None:
        page["unready_targets_dumps"] = [
            {"name": "init manager Server", "target_names": ["target SdsApi kubernetes://keys"]}
        ]

    lost.pages(waits, pod=LOST, path="/init_dump")
    diagnosis = blamed_first(lost, "MNB616", "B", "Deployment bookinfo/ratings-v1")
    assert "SdsApi kubernetes://keys" in diagnosis.problems[0].finding.message


def _connect(altered: Altered, proxy: str) -> None:
    """Let istiod know a proxy, like it knows another one."""

    def sync(page: Any) -> None:
        page.append({**copy.deepcopy(page[0]), "proxy": proxy})

    def connections(page: Any) -> None:
        first = copy.deepcopy(page["clients"][0])
        page["clients"].append({**first, "connectionId": f"{proxy}-99"})

    altered.pages(sync, path="/debug/syncz")
    altered.pages(connections, path="/debug/connections")


def test_a_first_configuration_that_is_refused_keeps_the_pod_from_becoming_ready(
    tmp_path: Path,
) -> None:
    """Altered: one of the pods that refused the configuration is new, and so never became ready."""
    altered = Altered("envoyfilter-rejected", tmp_path)

    def new(pod: Object) -> None:
        pod["status"]["phase"] = "Pending"
        for condition in pod["status"]["conditions"]:
            if condition["type"] in ("Ready", "ContainersReady"):
                condition["status"] = "False"
        for status in pod["status"]["initContainerStatuses"]:
            if status["name"] == "istio-proxy":
                status["ready"] = False

    altered.each("pods", "reviews-v2", new)
    diagnosis = assert_blamed(altered, "MNB601", "B", "EnvoyFilter bookinfo/broken-lua")
    assert {symptom.kind for symptom in diagnosis.problems[0].explains} == {"pod", "sync"}


def _revisions(altered: Altered, wanted: str) -> Altered:
    """Let there be a second revision, canary, with a ready istiod; bookinfo wants one of them."""

    def twin(items: list[Any], begins: str, **changes: Any) -> None:
        first = next(one for one in items if one["metadata"]["name"].startswith(begins))
        other = copy.deepcopy(first)
        other["metadata"].update(changes)
        other["metadata"]["labels"]["istio.io/rev"] = "canary"
        items.append(other)

    def services(items: list[Any]) -> None:
        twin(items, "istiod", name="istiod-canary")
        items[-1]["spec"]["selector"] = {"app": "istiod", "istio.io/rev": "canary"}
        items[-1]["spec"]["clusterIP"] = "10.96.99.99"

    def pods(items: list[Any]) -> None:
        twin(items, "istiod-", name="istiod-canary-849979b494-aaaaa")
        items[-1]["status"]["podIP"] = "10.244.0.88"
        del items[-1]["metadata"]["labels"]["istio"]

    def webhooks(items: list[Any]) -> None:
        text = json.dumps(
            next(one for one in items if one["metadata"]["name"].startswith("istio-revision-tag"))
        )
        other = json.loads(text)
        other["metadata"].update(
            name="istio-sidecar-injector-canary", labels={"istio.io/rev": "canary"}
        )
        selector = {"matchLabels": {"istio.io/rev": "canary"}}
        for webhook in other["webhooks"]:
            webhook.update(namespaceSelector=selector, objectSelector={})
            webhook["clientConfig"]["service"]["name"] = "istiod-canary"
        items.append(other)

    altered.objects("services", services).objects("pods", pods)
    altered.objects("mutatingwebhookconfigurations", webhooks)
    for path in ("/debug/syncz", "/debug/connections"):
        altered.ask(
            {"kind": "http", "path": path},
            error="refused",
            pod="istiod-canary-849979b494-aaaaa",
        )
    return unlabelled(altered, **{"istio.io/rev": wanted})


def test_proxies_that_follow_the_old_revision_are_found(healthy: Altered) -> None:
    """Altered: bookinfo asks for revision canary, and its proxies still follow the default one."""
    _revisions(healthy, "canary")
    found = [cause for cause in diagnose(healthy.facts()).problems if cause.check.code == "MNB617"]
    subjects = {str(cause.subject) for cause in found}
    assert "Deployment bookinfo/reviews-v1" in subjects
    assert {cause.severity for cause in found} == {Severity.WARNING}


def test_two_revisions_of_which_each_has_its_own_namespaces_are_well(healthy: Altered) -> None:
    """Altered: there is a second revision beside the one that bookinfo asks for and follows."""
    assert_harmless(_revisions(healthy, "default"), verdict="unknown")


def test_what_a_proxy_said_before_its_last_words_is_over(lost: Altered) -> None:
    """Altered: the pod of ratings could not resolve a name at first; now it is refused."""
    refused_now = (
        "\n2026-11-23T03:16:50.000000Z\twarning\tenvoy config ./x.h:227\tDeltaAggregatedResources "
        "gRPC config stream to xds-grpc closed since 70s ago: 14, connection error: dial tcp "
        "10.96.55.189:15012: connect: connection refused\tthread=13\n"
    )
    lost.texts(lambda text: text + refused_now, kind="log", pod=LOST, container="istio-proxy")
    blamed_first(lost, "MNB602", "B", f"Pod bookinfo/{LOST}")
