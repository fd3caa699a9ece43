"""Checks of installation, injection, start-up and synchronisation, on altered recordings.

Each test says in which one respect its recording was altered; see ``tests/alteration.py``.
"""

from __future__ import annotations

import base64
import copy
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from meshnb.checks import CHECKS, Inputs, Severity, Verdict, run
from meshnb.diagnosis import UNEXPLAINED, Diagnosis, diagnose
from tests.alteration import Altered
from tests.checks.test_altered import (
    CHANGED,
    EARLIER,
    NOWHERE,
    SILENT,
    SINCE,
    STRAY_CONNECTION,
    assert_blamed,
    assert_explains,
    assert_harmless,
    problems,
)

Object = dict[str, Any]

ISTIOD = "istiod-849979b494-z8nb9"
DETAILS = "details-v1-9449b4bf-6g92b"
RATINGS = "ratings-v1-589dc858f-xrq2g"
CLIENT = "client"


@pytest.fixture
def healthy(tmp_path: Path) -> Altered:
    """Return the recording of a healthy mesh, to be altered."""
    return Altered("healthy", tmp_path)


def blamed_first(altered: Altered, code: str, failure_class: str, subject: str) -> Diagnosis:
    """Assert that one object is blamed first, and that nothing but accidents is unexplained."""
    diagnosis = diagnose(altered.facts())
    assert problems(diagnosis)[:1] == [(code, failure_class, subject)], problems(diagnosis)
    unexplained = [one.message for one in diagnosis.unexplained if one.count >= UNEXPLAINED]
    assert unexplained == []
    return diagnosis


# --- Pods that could not be made ------------------------------------------------------------------


def _disconnect(altered: Altered, pod: str) -> None:
    def gone(page: Any) -> None:
        clients = page if isinstance(page, list) else page["clients"]
        clients[:] = [
            one
            for one in clients
            if not str(one.get("proxy") or one["connectionId"]).startswith(pod)
        ]

    for path in ("/debug/syncz", "/debug/connections"):
        altered.pages(gone, path=path)


def refused(altered: Altered, message: str, kind: str = "ReplicaSet") -> Altered:
    """Let the pod of details be gone, and a new one be refused with a message."""
    altered.add(
        "events",
        "details-v1-9449b4bf.17",
        "bookinfo",
        CHANGED,
        type="Warning",
        reason="FailedCreate",
        message=f"Error creating: {message}",
        involvedObject={"kind": kind, "namespace": "bookinfo", "name": "details-v1-9449b4bf"},
        firstTimestamp=CHANGED,
        lastTimestamp=CHANGED,
        count=7,
    )
    altered.remove("pods", "details-v1")
    altered.forget(pod=DETAILS)
    _disconnect(altered, "details-v1")
    return altered


POST = (
    'Internal error occurred: failed calling webhook "namespace.sidecar-injector.istio.io": failed '
    'to call webhook: Post "https://istiod.istio-system.svc:443/inject?timeout=10s": '
)
FORBIDDEN = 'pods "details-v1-9449b4bf-zzzzz" is forbidden: '


@pytest.mark.parametrize(
    ("reason", "code", "failure_class", "subject"),
    [
        (
            "tls: failed to verify certificate: x509: certificate signed by unknown authority",
            "MNB170",
            "A",
            "MutatingWebhookConfiguration istio-revision-tag-default",
        ),
        ("context deadline exceeded", "MNB171", "C", "Service istio-system/istiod"),
        ("dial tcp 10.244.0.9:15017: i/o timeout", "MNB171", "C", "Service istio-system/istiod"),
    ],
)
def test_a_webhook_that_cannot_be_called_is_told_by_the_event(
    healthy: Altered, reason: str, code: str, failure_class: str, subject: str
) -> None:
    """Altered: the API server could not call the injection webhook, for a reason."""
    assert_explains(blamed_first(refused(healthy, POST + reason), code, failure_class, subject), 7)


def test_a_webhook_behind_a_network_policy_is_the_policys_fault(healthy: Altered) -> None:
    """Altered: calls to the injection webhook time out, and a NetworkPolicy selects istiod."""
    refused(healthy, f"{POST}context deadline exceeded")
    spec = {"podSelector": {"matchLabels": {"app": "istiod"}}, "policyTypes": ["Ingress"]}
    healthy.add("networkpolicies", "istiod", "istio-system", CHANGED, spec=spec)

    blamed_first(healthy, "MNB171", "C", "NetworkPolicy istio-system/istiod")


def test_a_webhook_service_that_leads_to_another_port_is_the_services_fault(
    healthy: Altered,
) -> None:
    """Altered: the Service of istiod sends its port 443 to 15018, where nobody listens."""
    refused(healthy, f"{POST}dial tcp 10.96.7.7:443: connect: connection refused")

    def elsewhere(service: Object) -> None:
        for port in service["spec"]["ports"]:
            if port["port"] == 443:
                port["targetPort"] = 15018

    healthy.each("services", "istiod", elsewhere)
    blamed_first(healthy, "MNB171", "A", "Service istio-system/istiod")


def test_a_ca_bundle_of_another_authority_is_found_before_a_pod_is_refused(
    healthy: Altered,
) -> None:
    """Altered: the validating webhook's caBundle is the cluster's own authority, not istiod's."""
    maps = json.loads((healthy.folder / "kubernetes/configmaps.json").read_text())["items"]
    other = next(one for one in maps if one["metadata"]["name"] == "kube-root-ca.crt")
    bundle = base64.b64encode(other["data"]["ca.crt"].encode()).decode()

    def another(configuration: Object) -> None:
        for webhook in configuration["webhooks"]:
            webhook["clientConfig"]["caBundle"] = bundle

    healthy.each("validatingwebhookconfigurations", "istio-validator-istio-system", another)
    subject = "ValidatingWebhookConfiguration istio-validator-istio-system"
    diagnosis = assert_blamed(healthy, "MNB170", "A", subject)
    assert "testbed-ca" in diagnosis.problems[0].finding.message


def test_a_ca_bundle_with_the_old_and_the_new_authority_is_well(healthy: Altered) -> None:
    """Altered: each webhook trusts another authority besides istiod's, as in a rotation."""
    maps = json.loads((healthy.folder / "kubernetes/configmaps.json").read_text())["items"]
    other = next(one for one in maps if one["metadata"]["name"] == "kube-root-ca.crt")

    def both(configuration: Object) -> None:
        for webhook in configuration["webhooks"]:
            own = base64.b64decode(webhook["clientConfig"]["caBundle"])
            pem = other["data"]["ca.crt"].encode() + b"\n" + own
            webhook["clientConfig"]["caBundle"] = base64.b64encode(pem).decode()

    healthy.each("mutatingwebhookconfigurations", "istio-", both)
    assert_harmless(healthy)


DENIED = 'admission webhook "{}" denied the request: {}'


@pytest.mark.parametrize(
    ("message", "code", "failure_class", "subject"),
    [
        (
            DENIED.format(
                "namespace.sidecar-injector.istio.io", 'requested template "sidecr" not found'
            ),
            "MNB172",
            "A",
            "Deployment bookinfo/details-v1",
        ),
        (
            DENIED.format(
                "validation.gatekeeper.sh", "[no-net-admin] container istio-init adds NET_ADMIN"
            ),
            "MNB173",
            "A",
            "Deployment bookinfo/details-v1",
        ),
        (
            (
                f"{FORBIDDEN}ValidatingAdmissionPolicy 'no-init' with binding 'all' denied "
                "request: failed expression: !has(object.spec.initContainers)"
            ),
            "MNB173",
            "A",
            "Deployment bookinfo/details-v1",
        ),
        (
            (
                f'{FORBIDDEN}violates PodSecurity "restricted:latest": unrestricted capabilities '
                '(container "istio-init" must not include "NET_ADMIN", "NET_RAW" in '
                "securityContext.capabilities.add)"
            ),
            "MNB174",
            "A",
            "Namespace bookinfo",
        ),
        (
            (
                f'{FORBIDDEN}violates PodSecurity "baseline:latest": privileged (container '
                '"details" must not set securityContext.privileged=true)'
            ),
            "MNB174",
            "A",
            "Deployment bookinfo/details-v1",
        ),
        (
            (
                f"{FORBIDDEN}exceeded quota: tight, requested: limits.cpu=2, used: limits.cpu=4, "
                "limited: limits.cpu=4"
            ),
            "MNB174",
            "A",
            "ResourceQuota bookinfo/tight",
        ),
        (
            f"{FORBIDDEN}failed quota: tight: must specify limits.cpu for: details",
            "MNB174",
            "A",
            "ResourceQuota bookinfo/tight",
        ),
        (
            f"{FORBIDDEN}maximum cpu usage per Container is 500m, but limit is 2",
            "MNB174",
            "A",
            "LimitRange bookinfo/small",
        ),
        (
            (
                f"{FORBIDDEN}error looking up service account bookinfo/reader: serviceaccount "
                '"reader" not found'
            ),
            "MNB175",
            "C",
            "Deployment bookinfo/details-v1",
        ),
    ],
)
def test_a_refused_pod_is_told_by_who_refused_it(
    healthy: Altered, message: str, code: str, failure_class: str, subject: str
) -> None:
    """Altered: a new pod of details is refused; there is a LimitRange in its namespace."""
    healthy.add("limitranges", "small", "bookinfo", EARLIER, spec={"limits": []})
    assert_explains(blamed_first(refused(healthy, message), code, failure_class, subject), 7)


def test_a_pod_that_was_made_after_all_was_refused_for_a_moment(healthy: Altered) -> None:
    """Altered: a pod of details was refused before the one that runs was made."""
    healthy.add(
        "events",
        "details-v1-9449b4bf.17",
        "bookinfo",
        EARLIER,
        type="Warning",
        reason="FailedCreate",
        message=f"Error creating: {POST}context deadline exceeded",
        involvedObject={
            "kind": "ReplicaSet",
            "namespace": "bookinfo",
            "name": "details-v1-9449b4bf",
        },
        firstTimestamp=EARLIER,
        lastTimestamp=EARLIER,
        count=1,
    )
    assert_harmless(healthy)


# --- Injection ------------------------------------------------------------------------------------

LEGACY = "legacy-client"
STRICT = {"mtls": {"mode": "STRICT"}}


def bare(altered: Altered, begins: str) -> Altered:
    """Let pods have no proxy, as if nothing had been injected; their events stay."""

    def strip(pod: Object) -> None:
        for part in ("initContainers", "containers"):
            pod["spec"][part] = [
                one for one in pod["spec"][part] if not one["name"].startswith("istio-")
            ]
        pod["metadata"]["annotations"].pop("sidecar.istio.io/status", None)
        pod["metadata"]["annotations"].pop("istio.io/rev", None)
        names.append(pod["metadata"]["name"])

    names: list[str] = []
    altered.each("pods", begins, strip)
    for pod in names:
        for kind in ("http", "probe"):
            altered.forget(kind=kind, pod=pod)
        altered.forget(kind="log", pod=pod, container="istio-proxy")
        _disconnect(altered, pod)
    return altered


def replaced(altered: Altered, begins: str, name: str) -> Altered:
    """Let the pod whose name begins so be a new one, made right before the faults."""
    old: list[str] = []

    def rename(pod: Object) -> None:
        old.append(pod["metadata"]["name"])
        pod["metadata"].update(name=name, creationTimestamp=CHANGED)

    altered.each("pods", begins, rename)
    return altered


def unlabelled(altered: Altered, **labels: str) -> Altered:
    """Let the namespace bookinfo have other labels for injection, or none."""

    def relabel(namespace: Object) -> None:
        own = namespace["metadata"]["labels"]
        own.pop("istio-injection", None)
        own.pop("istio.io/rev", None)
        own.update(labels)

    return altered.each("namespaces", "bookinfo", relabel)


def address(altered: Altered, begins: str) -> str:
    """Return the address of the pod whose name begins so."""
    pods = json.loads((altered.folder / "kubernetes/pods.json").read_text())["items"]
    return next(
        str(one["status"]["podIP"]) for one in pods if one["metadata"]["name"].startswith(begins)
    )


CUT_OFF = {**STRAY_CONNECTION, "remote": "10.244.0.1:50000"}


def test_a_namespace_that_lost_its_label_is_blamed_for_the_pod_that_lost_its_sidecar(
    healthy: Altered,
) -> None:
    """Altered: bookinfo has no label for injection any more; the pod of details is new and bare.

    Servers that demand mutual TLS cut it off; source NAT hides its address. The legacy client was
    outside the mesh all the time.
    """
    unlabelled(replaced(bare(healthy, "details"), "details", "details-v1-9449b4bf-new01"))
    healthy.add("peerauthentications", "default", "bookinfo", EARLIER, spec=STRICT)
    healthy.request("ratings", "/ratings/0", 6, since=SINCE, **CUT_OFF)

    diagnosis = assert_blamed(healthy, "MNB154", "A", "Namespace bookinfo")
    assert_explains(diagnosis, 6)
    assert diagnosis.problems[0].severity is Severity.ERROR


def test_a_namespace_that_lost_its_label_is_a_warning_while_nobody_suffers(
    healthy: Altered,
) -> None:
    """Altered: bookinfo has no label for injection any more, and the pod of details is bare."""
    unlabelled(replaced(bare(healthy, "details"), "details", "details-v1-9449b4bf-new01"))

    diagnosis = assert_blamed(healthy, "MNB154", "A", "Namespace bookinfo")
    assert diagnosis.problems[0].severity is Severity.WARNING


def test_a_namespace_without_a_label_whose_pods_ask_themselves_is_well(healthy: Altered) -> None:
    """Altered: no label on bookinfo, but on each of its pods; one pod beside them is bare."""
    unlabelled(healthy)

    def own_label(pod: Object) -> None:
        if pod["metadata"]["namespace"] == "bookinfo":
            pod["metadata"]["labels"]["sidecar.istio.io/inject"] = "true"

    healthy.each("pods", "", own_label)

    def move(pod: Object) -> None:
        pod["metadata"]["namespace"] = "bookinfo"

    healthy.each("pods", LEGACY, move)
    healthy.forget(pod=LEGACY)
    assert_harmless(healthy)


def test_a_pod_without_a_sidecar_because_of_an_unknown_revision_is_cut_off(
    healthy: Altered,
) -> None:
    """Altered: bookinfo asks for revision 1-99-0, details is new and bare, ratings is strict."""
    unlabelled(
        replaced(bare(healthy, "details"), "details", "details-v1-9449b4bf-new01"),
        **{"istio.io/rev": "1-99-0"},
    )
    healthy.add("peerauthentications", "default", "bookinfo", EARLIER, spec=STRICT)
    healthy.request("ratings", "/ratings/0", 6, since=SINCE, **CUT_OFF)

    assert_explains(assert_blamed(healthy, "MNB150", "A", "Namespace bookinfo"), 6)


def test_a_pod_may_ask_for_a_revision_that_nobody_serves(healthy: Altered) -> None:
    """Altered: the legacy client has the label istio.io/rev with an unknown revision."""
    healthy.each(
        "pods", LEGACY, lambda pod: pod["metadata"]["labels"].update({"istio.io/rev": "x"})
    )

    assert_blamed(healthy, "MNB150", "A", "Pod legacy/legacy-client")


def test_a_workload_that_moved_to_the_nodes_network_has_lost_its_sidecar(healthy: Altered) -> None:
    """Altered: the pod of details uses hostNetwork, unlike its version before, and is bare."""
    bare(healthy, "details")
    healthy.each("pods", "details", lambda pod: pod["spec"].update(hostNetwork=True))

    def was_not(items: list[Any]) -> None:
        now = next(one for one in items if one["metadata"]["name"].startswith("details"))
        before = copy.deepcopy(now)
        before["metadata"].update(name="details-v1-before", creationTimestamp=EARLIER)
        before["spec"]["replicas"] = 0
        now["spec"]["template"]["spec"]["hostNetwork"] = True
        items.append(before)

    healthy.objects("replicasets", was_not)
    assert_blamed(healthy, "MNB151", "A", "Deployment bookinfo/details-v1")


def test_a_workload_that_was_always_on_the_nodes_network_is_left_alone(healthy: Altered) -> None:
    """Altered: the pod of details uses hostNetwork, as did each version of it; nothing else did."""
    bare(healthy, "details")
    healthy.each("pods", "details", lambda pod: pod["spec"].update(hostNetwork=True))
    healthy.each(
        "replicasets",
        "details",
        lambda one: one["spec"]["template"]["spec"].update(hostNetwork=True),
    )
    healthy.objects(
        "events",
        lambda events: events.__setitem__(
            slice(None),
            [one for one in events if not one["involvedObject"]["name"].startswith("details")],
        ),
    )
    assert_harmless(healthy, "MNB151")


def test_pods_that_keep_another_revision_beside_two_labels_are_found(healthy: Altered) -> None:
    """Altered: bookinfo has istio-injection=enabled and istio.io/rev=canary besides."""
    unlabelled(healthy, **{"istio-injection": "enabled", "istio.io/rev": "canary"})

    assert_blamed(healthy, "MNB155", "A", "Namespace bookinfo")


def test_two_labels_that_mean_the_same_are_worth_knowing(healthy: Altered) -> None:
    """Altered: bookinfo has istio-injection=enabled and istio.io/rev=default besides."""
    unlabelled(healthy, **{"istio-injection": "enabled", "istio.io/rev": "default"})

    assert_harmless(healthy, "MNB155")


def test_two_webhooks_for_the_same_pods_are_one_too_many(healthy: Altered) -> None:
    """Altered: the webhooks of another revision select the same pods as the default ones."""

    def left_over(items: list[Any]) -> None:
        twin = copy.deepcopy(
            next(one for one in items if one["metadata"]["name"].startswith("istio-revision-tag"))
        )
        twin["metadata"]["name"] = "istio-sidecar-injector-old"
        twin["metadata"]["labels"].pop("istio.io/tag", None)
        twin["metadata"]["labels"]["istio.io/rev"] = "old"
        items.append(twin)

    healthy.objects("mutatingwebhookconfigurations", left_over)
    subject = "MutatingWebhookConfiguration istio-sidecar-injector-old"
    assert_blamed(healthy, "MNB156", "A", subject)


def _injector(altered: Altered, text: str) -> Altered:
    return altered.each(
        "configmaps", "istio-sidecar-injector", lambda one: one["data"].update(config=text)
    )


NEVER = "policy: enabled\nneverInjectSelector:\n- matchLabels:\n    app: details\n"


@pytest.mark.parametrize("text", ["policy: disabled\n", NEVER])
def test_an_injector_that_skips_what_it_injected_before_is_found(
    healthy: Altered, text: str
) -> None:
    """Altered: the injector's settings keep details out, whose new pod is bare and is cut off."""
    _injector(replaced(bare(healthy, "details"), "details", "details-v1-9449b4bf-new01"), text)
    healthy.add("peerauthentications", "default", "bookinfo", EARLIER, spec=STRICT)
    healthy.request("ratings", "/ratings/0", 6, since=SINCE, **CUT_OFF)

    subject = "ConfigMap istio-system/istio-sidecar-injector"
    assert_explains(assert_blamed(healthy, "MNB157", "A", subject), 6)


def test_a_selector_that_always_kept_pods_out_is_worth_knowing(healthy: Altered) -> None:
    """Altered: the injector never injects the app legacy-client; its namespace is injected now."""
    text = "policy: enabled\nneverInjectSelector:\n- matchLabels:\n    app: legacy-client\n"
    _injector(healthy, text)
    healthy.each(
        "namespaces",
        "legacy",
        lambda one: one["metadata"]["labels"].update({"istio-injection": "enabled"}),
    )
    assert_harmless(healthy, "MNB157")


# --- The way from a proxy to istiod ---------------------------------------------------------------

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


# --- Pods that do not start -----------------------------------------------------------------------


def not_ready(altered: Altered, begins: str, phase: str = "Pending") -> Altered:
    """Let a pod not be ready."""

    def change(pod: Object) -> None:
        pod["status"]["phase"] = phase
        for condition in pod["status"]["conditions"]:
            if condition["type"] in ("Ready", "ContainersReady"):
                condition.update(status="False", reason="ContainersNotReady", message="not ready")

    return altered.each("pods", begins, change)


def state(altered: Altered, begins: str, container: str, **changes: Any) -> Altered:
    """Let a container of a pod have another status."""

    def change(pod: Object) -> None:
        for part in ("initContainerStatuses", "containerStatuses"):
            for status in pod["status"].get(part) or ():
                if status["name"] == container:
                    status.update(changes)

    return altered.each("pods", begins, change)


def classic(altered: Altered, begins: str) -> Altered:
    """Let a pod's sidecar stand among its ordinary containers, as before native sidecars."""

    def change(pod: Object) -> None:
        for part, status in (("initContainers", "initContainerStatuses"),):
            moved = [one for one in pod["spec"][part] if one["name"] == "istio-proxy"]
            told = [one for one in pod["status"][status] if one["name"] == "istio-proxy"]
            pod["spec"][part].remove(moved[0])
            pod["status"][status].remove(told[0])
            moved[0].pop("restartPolicy", None)
            pod["spec"]["containers"] += moved
            pod["status"]["containerStatuses"] += told

    return altered.each("pods", begins, change)


ENDED = {"terminated": {"exitCode": 0, "reason": "Completed", "finishedAt": CHANGED}}
FAILED = {
    "state": {"waiting": {"reason": "CrashLoopBackOff"}},
    "lastState": {"terminated": {"exitCode": 1, "reason": "Error", "finishedAt": CHANGED}},
    "restartCount": 4,
    "ready": False,
}


def _job(altered: Altered) -> Altered:
    def owned(pod: Object) -> None:
        pod["metadata"]["ownerReferences"] = [
            {"kind": "Job", "name": "import", "controller": True, "apiVersion": "batch/v1"}
        ]
        pod["metadata"]["labels"].pop("pod-template-hash", None)

    altered.each("pods", "details", owned)
    state(altered, "details", "details", state=ENDED, ready=False)
    return not_ready(altered, "details", "Running")


def test_a_job_whose_sidecar_goes_on_never_completes(healthy: Altered) -> None:
    """Altered: the pod of details is a job's, has ended well, and has a sidecar of the old kind."""
    _job(classic(healthy, "details"))
    diagnosis = blamed_first(healthy, "MNB750", "C", "Job bookinfo/import")
    assert len(diagnosis.problems) == 1


def test_a_job_that_failed_is_not_the_sidecars_fault(healthy: Altered) -> None:
    """Altered: the same, but the job's container has ended with an error."""
    _job(classic(healthy, "details"))
    failed = {"terminated": {"exitCode": 3, "reason": "Error", "finishedAt": CHANGED}}
    state(healthy, "details", "details", state=failed)
    blamed_first(healthy, "MNB702", "C", "Job bookinfo/import")


def test_an_init_container_that_cannot_set_the_traffic_rules_is_found(healthy: Altered) -> None:
    """Altered: istio-init of details has no capabilities, and keeps ending with an error."""

    def without(pod: Object) -> None:
        for one in pod["spec"]["initContainers"]:
            if one["name"] == "istio-init":
                one["securityContext"]["capabilities"] = {"drop": ["ALL"]}

    healthy.each("pods", "details", without)
    state(not_ready(healthy, "details"), "details", "istio-init", **FAILED)
    line = (
        "2026-11-23T02:49:00.0Z\terror\tCommand error output: iptables-restore: Permission denied\n"
    )
    healthy.texts(lambda text: line + text, kind="log", pod=DETAILS, container="istio-init")

    diagnosis = blamed_first(healthy, "MNB751", "C", "Deployment bookinfo/details-v1")
    message = diagnosis.problems[0].finding.message
    assert "NET_ADMIN and NET_RAW" in message
    assert "Permission denied" in message


def _agent(altered: Altered, *, ready: bool) -> None:
    def agent(items: list[Any]) -> None:
        pod = copy.deepcopy(
            next(one for one in items if "istio-ingress" in one["metadata"]["name"])
        )
        pod["metadata"].update(name="istio-cni-node-abcde", labels={"k8s-app": "istio-cni-node"})
        pod["metadata"]["ownerReferences"] = [
            {"kind": "DaemonSet", "name": "istio-cni-node", "controller": True}
        ]
        pod["spec"]["containers"][0].update(name="install-cni", args=[])
        pod["status"]["podIP"] = "10.244.0.251"
        for condition in pod["status"]["conditions"]:
            if condition["type"] == "Ready" and not ready:
                condition["status"] = "False"
        items.append(pod)

    altered.objects("pods", agent)


@pytest.mark.parametrize(
    ("ready", "subject"),
    [(False, "DaemonSet istio-system/istio-cni-node"), (True, "Deployment bookinfo/details-v1")],
)
def test_a_pod_that_came_before_the_cni_plugin_is_told_by_its_validation(
    healthy: Altered, ready: bool, subject: str
) -> None:
    """Altered: details has istio-validation instead of istio-init, which ends with 126."""

    def renamed(pod: Object) -> None:
        for one in pod["spec"]["initContainers"] + pod["status"]["initContainerStatuses"]:
            if one["name"] == "istio-init":
                one["name"] = "istio-validation"

    healthy.each("pods", "details", renamed)
    failed = {"terminated": {"exitCode": 126, "reason": "Error", "finishedAt": CHANGED}}
    state(not_ready(healthy, "details"), "details", "istio-validation", state=failed, ready=False)
    _agent(healthy, ready=ready)
    blamed_first(healthy, "MNB752", "C", subject)


def test_a_sandbox_that_the_cni_plugin_blocks_is_its_agents_fault(healthy: Altered) -> None:
    """Altered: the kubelet cannot make the network of details, because of the CNI plugin."""
    not_ready(healthy, "details")
    for container in ("istio-init", "istio-proxy", "details"):
        waiting = {"waiting": {"reason": "ContainerCreating"}}
        state(healthy, "details", container, state=waiting, ready=False)
    healthy.add(
        "events",
        "details.sandbox",
        "bookinfo",
        CHANGED,
        type="Warning",
        reason="FailedCreatePodSandBox",
        message='Failed to create pod sandbox: plugin type="istio-cni" name="istio-cni" failed '
        "(add): unable to push CNI event (status code 500)",
        involvedObject={"kind": "Pod", "namespace": "bookinfo", "name": DETAILS},
        lastTimestamp=CHANGED,
        count=9,
    )
    _agent(healthy, ready=True)
    blamed_first(healthy, "MNB753", "C", "DaemonSet istio-system/istio-cni-node")


def test_an_init_container_before_the_proxy_has_no_network(healthy: Altered) -> None:
    """Altered: details has an init container between istio-init and its sidecar, which fails."""

    def early(pod: Object) -> None:
        pod["spec"]["initContainers"].insert(1, {"name": "warm-up", "image": "curl"})
        pod["status"]["initContainerStatuses"].insert(1, {"name": "warm-up", **FAILED})

    healthy.each("pods", "details", early)
    diagnosis = blamed_first(
        not_ready(healthy, "details"), "MNB754", "C", "Deployment bookinfo/details-v1"
    )
    assert len(diagnosis.problems) == 1


def test_an_init_container_behind_a_native_sidecar_fails_by_itself(healthy: Altered) -> None:
    """Altered: details has an init container behind its native sidecar, which fails."""

    def late(pod: Object) -> None:
        pod["spec"]["initContainers"].append({"name": "migrate", "image": "curl"})
        pod["status"]["initContainerStatuses"].append({"name": "migrate", **FAILED})

    healthy.each("pods", "details", late)
    blamed_first(not_ready(healthy, "details"), "MNB702", "C", "Deployment bookinfo/details-v1")


def _probed(altered: Altered) -> Altered:
    def direct(pod: Object) -> None:
        for one in pod["spec"]["containers"]:
            one["readinessProbe"] = {"httpGet": {"path": "/health", "port": 9080}}
        pod["metadata"]["annotations"]["sidecar.istio.io/rewriteAppHTTPProbers"] = "false"

    return altered.each("pods", "details", direct)


def test_probes_in_plain_text_meet_mutual_tls(healthy: Altered) -> None:
    """Altered: details demands mutual TLS, and the kubelet probes its port itself.

    Its sidecar cuts the node's connections off; the legacy client has nothing to do with it.
    """
    healthy.add("peerauthentications", "default", "bookinfo", EARLIER, spec=STRICT)
    not_ready(_probed(healthy), "details", "Running")
    state(healthy, "details", "details", ready=False)
    local = f"{address(healthy, 'details')}:9080"
    healthy.request("details", "/details/0", 6, since=SINCE, **{**CUT_OFF, "local": local})

    blamed_first(healthy, "MNB755", "C", "Deployment bookinfo/details-v1")


def test_a_probe_that_the_application_answers_is_well_without_mutual_tls(healthy: Altered) -> None:
    """Altered: the kubelet probes the port of details itself; nothing demands mutual TLS."""
    assert_harmless(_probed(healthy))


def test_a_proxy_that_was_killed_for_its_memory_is_found(healthy: Altered) -> None:
    """Altered: the sidecar of ratings was killed for its memory, and callers lost requests."""
    killed = {"terminated": {"exitCode": 137, "reason": "OOMKilled", "finishedAt": CHANGED}}
    state(healthy, "ratings", "istio-proxy", lastState=killed, restartCount=5)
    details = "upstream_reset_before_response_started{connection_termination}"
    healthy.at_client("ratings:9080", SINCE, code="503", flags="UC", details=details, **SILENT)
    diagnosis = blamed_first(healthy, "MNB756", "C", "Deployment bookinfo/ratings-v1")
    assert diagnosis.problems[0].severity is Severity.ERROR


def test_requests_that_the_overload_manager_turns_away_are_explained(healthy: Altered) -> None:
    """Altered: the sidecar of ratings answers 503 with the details overload."""
    healthy.at_server("ratings:9080", SINCE, code="503", details="overload", **NOWHERE)

    assert_explains(blamed_first(healthy, "MNB756", "C", "Deployment bookinfo/ratings-v1"), 20)


def test_a_liveness_probe_that_fails_again_and_again_is_found(healthy: Altered) -> None:
    """Altered: the agent passes the liveness probe of details on, and gets no answer in time."""
    healthy.add(
        "events",
        "details.liveness",
        "bookinfo",
        CHANGED,
        type="Warning",
        reason="Unhealthy",
        message="Liveness probe failed: HTTP probe failed with statuscode: 500",
        involvedObject={
            "kind": "Pod",
            "namespace": "bookinfo",
            "name": DETAILS,
            "fieldPath": "spec.containers{details}",
        },
        lastTimestamp=CHANGED,
        count=9,
    )
    diagnosis = assert_blamed(healthy, "MNB757", "C", "Deployment bookinfo/details-v1")
    assert diagnosis.problems[0].severity is Severity.WARNING


# --- Certificates and identities ------------------------------------------------------------------

SPIFFE = "spiffe://cluster.local/ns/bookinfo/sa/default"


class Authority:
    """An authority of its own, whose certificates name their keys as istiod's do."""

    def __init__(self, ends: datetime = datetime(2036, 1, 1, tzinfo=UTC)) -> None:
        """Make the root."""
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, "cluster.local")])
        self.root = self._sign(self.key, self.name, ends, ca=True)

    def _sign(
        self,
        key: ec.EllipticCurvePrivateKey,
        subject: x509.Name,
        ends: datetime,
        *,
        begins: datetime = datetime(2026, 1, 1, tzinfo=UTC),
        ca: bool,
    ) -> bytes:
        public = key.public_key()
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(begins)
            .not_valid_after(ends)
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        )
        if ca:
            identifier: x509.ExtensionType = x509.SubjectKeyIdentifier.from_public_key(public)
        else:
            identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
            names = [x509.UniformResourceIdentifier(SPIFFE)]
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=True)
        builder = builder.add_extension(identifier, critical=False)
        return builder.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    def chain(
        self,
        ends: datetime = datetime(2026, 11, 24, 2, tzinfo=UTC),
        begins: datetime = datetime(2026, 1, 1, tzinfo=UTC),
    ) -> bytes:
        """Return a workload's certificate with the root behind it."""
        key = ec.generate_private_key(ec.SECP256R1())
        return self._sign(key, x509.Name([]), ends, begins=begins, ca=False) + self.root


def holds(
    altered: Altered, pod: str, *, chain: bytes | None = None, roots: bytes | None = None
) -> Altered:
    """Let the proxy of a pod hold another certificate of its own, or other roots."""

    def change(dump: Any) -> None:
        for section in dump["configs"]:
            for entry in section.get("dynamic_active_secrets", ()):
                secret = entry["secret"]
                if entry["name"] == "default" and chain is not None:
                    text = base64.b64encode(chain).decode()
                    secret["tls_certificate"]["certificate_chain"] = {"inline_bytes": text}
                if entry["name"] == "ROOTCA" and roots is not None:
                    text = base64.b64encode(roots).decode()
                    secret["validation_context"]["trusted_ca"] = {"inline_bytes": text}

    return altered.pages(change, port=15000, pod=pod, path="/config_dump?include_eds")


def tls_failure(reason: str) -> dict[str, str]:
    """Return the fields of a line about a TLS handshake that failed for a reason."""
    failure = f"TLS_error:|{reason}:TLS_error_end"
    return {
        "code": "503",
        "flags": "URX,UF",
        "details": f"upstream_reset_before_response_started{{remote_connection_failure|{failure}}}",
        "failure": failure,
        **SILENT,
    }


VERIFY = "268435581:SSL_routines:OPENSSL_internal:CERTIFICATE_VERIFY_FAILED:verify_cert_failed:"
DISTRUSTED = f"{VERIFY}_X509_verify_cert:_certificate_verification_error_at_depth_0:"
CLIENT_UNKNOWN = "268436504:SSL_routines:OPENSSL_internal:TLSV1_ALERT_UNKNOWN_CA"


@pytest.mark.parametrize(
    "reason", [f"{DISTRUSTED}_unable_to_get_local_issuer_certificate", CLIENT_UNKNOWN]
)
def test_one_proxy_with_another_root_is_refused_and_refuses(healthy: Altered, reason: str) -> None:
    """Altered: the proxy of ratings holds certificate and root of another authority."""
    other = Authority()
    holds(healthy, RATINGS, chain=other.chain(), roots=other.root)
    healthy.at_client("ratings:9080", SINCE, **tls_failure(reason))

    assert_explains(assert_blamed(healthy, "MNB450", "B", "Deployment bookinfo/ratings-v1"), 20)


def test_two_roots_that_all_trust_are_well(healthy: Altered) -> None:
    """Altered: ratings has a certificate of a new authority, which all proxies trust besides."""
    dump = json.loads(
        (healthy.folder / f"proxies/bookinfo/{RATINGS}/15000/config_dump_include_eds").read_text()
    )
    own = next(
        base64.b64decode(entry["secret"]["validation_context"]["trusted_ca"]["inline_bytes"])
        for section in dump["configs"]
        for entry in section.get("dynamic_active_secrets", ())
        if entry["name"] == "ROOTCA"
    )
    other = Authority()
    for pod in healthy.folder.glob("proxies/*/*"):
        holds(healthy, pod.name, roots=own + other.root)
    holds(healthy, RATINGS, chain=other.chain())
    assert_harmless(healthy)


def test_unknown_roots_in_the_log_are_believed_without_the_certificates(healthy: Altered) -> None:
    """Altered: callers do not know the root of ratings, whose proxy shows no certificates."""
    healthy.forget(kind="http", pod=RATINGS, port=15000, path="/config_dump?include_eds")
    healthy.at_client("ratings:9080", SINCE, **tls_failure(CLIENT_UNKNOWN))

    blamed_first(healthy, "MNB450", "B", "Deployment bookinfo/ratings-v1")


def test_a_certificate_that_is_not_valid_yet_is_a_wrong_clock(healthy: Altered) -> None:
    """Altered: the certificate of ratings begins an hour after the recording."""
    begins = datetime(2026, 11, 23, 3, 49, tzinfo=UTC)
    holds(healthy, RATINGS, chain=Authority().chain(begins=begins))
    healthy.at_client(
        "ratings:9080", SINCE, **tls_failure(f"{VERIFY}_certificate_is_not_yet_valid")
    )
    diagnosis = blamed_first(healthy, "MNB605", "B", f"Pod bookinfo/{RATINGS}")
    assert "a clock is wrong" in diagnosis.problems[0].finding.message


def test_a_callers_certificate_that_has_ended_is_the_callers_fault(healthy: Altered) -> None:
    """Altered: the certificate of the client has ended, and servers refuse it."""
    dump = f"proxies/bookinfo/{CLIENT}/15000/config_dump_include_eds"
    assert (healthy.folder / dump).exists()
    holds(healthy, CLIENT, chain=Authority().chain(datetime(2026, 11, 23, 2, tzinfo=UTC)))
    reason = "268436501:SSL_routines:OPENSSL_internal:SSLV3_ALERT_CERTIFICATE_EXPIRED"
    healthy.at_client("ratings:9080", SINCE, pod=CLIENT, **tls_failure(reason))

    diagnosis = diagnose(healthy.facts())
    assert ("MNB605", "B", "Pod bookinfo/client") in problems(diagnosis)[:2]


def _san(name: str) -> dict[str, str]:
    return tls_failure(f"{VERIFY}_SAN_matcher,_certificate_SANs_are_[{name}]")


def test_a_rule_that_expects_another_name_is_blamed(healthy: Altered) -> None:
    """Altered: a DestinationRule expects another service account of ratings than it has."""
    tls = {
        "mode": "ISTIO_MUTUAL",
        "subjectAltNames": ["spiffe://cluster.local/ns/bookinfo/sa/other"],
    }
    spec = {"host": "ratings", "trafficPolicy": {"tls": tls}}
    healthy.add("destinationrules", "ratings", "bookinfo", CHANGED, spec=spec)
    healthy.at_client("ratings:9080", SINCE, **_san(SPIFFE))

    assert_explains(assert_blamed(healthy, "MNB451", "A", "DestinationRule bookinfo/ratings"), 20)


@pytest.mark.parametrize(
    ("name", "failure_class", "subject"),
    [
        ("spiffe://td2/ns/bookinfo/sa/default", "A", "ConfigMap istio-system/istio"),
        ("spiffe://cluster.local/ns/legacy/sa/old", "B", "Service bookinfo/ratings"),
    ],
)
def test_a_server_of_another_trust_domain_or_account_is_told_apart(
    healthy: Altered, name: str, failure_class: str, subject: str
) -> None:
    """Altered: the server that answers for ratings has a name of elsewhere."""
    healthy.at_client("ratings:9080", SINCE, **_san(name))

    assert_explains(assert_blamed(healthy, "MNB451", failure_class, subject), 20)


def test_a_proxy_without_a_certificate_is_found_by_what_its_agent_says(healthy: Altered) -> None:
    """Altered: the client's proxy has no certificate of its own, and its calls fail for that."""

    def without(dump: Any) -> None:
        for section in dump["configs"]:
            active = section.get("dynamic_active_secrets")
            if active:
                section["dynamic_warming_secrets"] = [
                    {"name": "default", "secret": {"name": "default"}}
                ]
                section["dynamic_active_secrets"] = [
                    entry for entry in active if entry["name"] != "default"
                ]

    healthy.pages(without, port=15000, pod=CLIENT, path="/config_dump?include_eds")
    line = (
        "2026-11-23T02:48:00.000000Z\twarn\tsds\tfailed to warm certificate: failed to generate "
        "workload certificate: create certificate: rpc error: code = Unavailable\n"
    )
    healthy.texts(lambda text: line + text, kind="log", pod=CLIENT, container="istio-proxy")
    healthy.at_client(
        "ratings:9080", SINCE, pod=CLIENT, **tls_failure("Secret_is_not_supplied_by_SDS")
    )
    diagnosis = blamed_first(healthy, "MNB452", "B", "Pod bookinfo/client")
    assert "code = Unavailable" in diagnosis.problems[0].finding.message


def _secret(altered: Altered, name: str, **values: str) -> Altered:
    return altered.add("secrets", name, "istio-system", EARLIER, type="Opaque", data=values)


def test_an_incomplete_authority_keeps_istiod_from_starting(healthy: Altered) -> None:
    """Altered: the Secret cacerts lacks the root, and istiod is not ready."""
    pem = base64.b64encode(Authority().root).decode()
    values = {"ca-cert.pem": pem, "ca-key.pem": "REDACTED", "cert-chain.pem": pem}
    _secret(not_ready(healthy, "istiod", "Running"), "cacerts", **values)
    state(healthy, "istiod", "discovery", **FAILED)
    blamed_first(healthy, "MNB453", "A", "Secret istio-system/cacerts")


@pytest.mark.parametrize(
    "keys",
    [
        ("ca-cert.pem", "ca-key.pem", "cert-chain.pem", "root-cert.pem"),
        ("tls.crt", "tls.key", "ca.crt"),
    ],
)
def test_a_complete_authority_is_well(healthy: Altered, keys: tuple[str, ...]) -> None:
    """Altered: there is a Secret cacerts with all files, in one of the two forms."""
    pem = base64.b64encode(Authority().root).decode()
    assert_harmless(_secret(healthy, "cacerts", **dict.fromkeys(keys, pem)))


@pytest.mark.parametrize(
    ("ends", "severity"),
    [
        (datetime(2026, 12, 10, tzinfo=UTC), Severity.WARNING),
        (datetime(2026, 11, 22, tzinfo=UTC), Severity.ERROR),
    ],
)
def test_a_root_that_ends_soon_is_said_in_time(
    healthy: Altered, ends: datetime, severity: Severity
) -> None:
    """Altered: all proxies trust, and are certified by, a root that ends soon or has ended."""
    authority = Authority(ends)
    for pod in healthy.folder.glob("proxies/*/*"):
        holds(healthy, pod.name, chain=authority.chain(), roots=authority.root)
    diagnosis = diagnose(healthy.facts())
    found = [cause for cause in diagnosis.problems if cause.check.code == "MNB454"]
    assert [(str(cause.subject), cause.severity) for cause in found] == [
        ("Secret istio-system/istio-ca-secret", severity)
    ]


# --- EnvoyFilters, Telemetries, exportTo ----------------------------------------------------------


def envoy_filter(altered: Altered, name: str, spec: Object, changed: str = EARLIER) -> Altered:
    """Add an EnvoyFilter to what istiod holds, as EnvoyFilters are not listed in the recording."""

    def add(page: Any) -> None:
        page.append(
            {
                "kind": "EnvoyFilter",
                "apiVersion": "networking.istio.io/v1alpha3",
                "metadata": {
                    "name": name,
                    "namespace": "bookinfo",
                    "creationTimestamp": changed,
                },
                "spec": spec,
            }
        )

    return altered.pages(add, path="/debug/configz")


def _inserted(context: str, name: str) -> Object:
    return {
        "configPatches": [
            {
                "applyTo": "HTTP_FILTER",
                "match": {"context": context},
                "patch": {"operation": "INSERT_BEFORE", "value": {"name": name}},
            }
        ]
    }


def test_a_filter_that_no_proxy_holds_has_no_effect(healthy: Altered) -> None:
    """Altered: an EnvoyFilter is to insert an HTTP filter into the sidecars of bookinfo."""
    envoy_filter(healthy, "headers", _inserted("SIDECAR_INBOUND", "shop.headers"))
    assert_blamed(healthy, "MNB620", "A", "EnvoyFilter bookinfo/headers")


def test_a_filter_for_gateways_in_a_namespace_without_one_has_no_effect(healthy: Altered) -> None:
    """Altered: an EnvoyFilter of bookinfo is for gateways, and the gateway is elsewhere."""
    envoy_filter(healthy, "headers", _inserted("GATEWAY", "envoy.filters.http.cors"))
    diagnosis = assert_blamed(healthy, "MNB620", "A", "EnvoyFilter bookinfo/headers")
    assert "selects no proxy" in diagnosis.problems[0].finding.message


def test_a_filter_that_the_proxies_hold_is_well(healthy: Altered) -> None:
    """Altered: an EnvoyFilter inserts a filter that the sidecars have."""
    envoy_filter(healthy, "cors", _inserted("SIDECAR_INBOUND", "envoy.filters.http.cors"))
    assert_harmless(healthy)


def test_a_filter_chain_without_filters_is_the_envoy_filters_fault(healthy: Altered) -> None:
    """Altered: an EnvoyFilter took the connection manager out of the inbound chains of ratings."""
    envoy_filter(
        healthy,
        "cleanup",
        {
            "workloadSelector": {"labels": {"app": "ratings"}},
            "configPatches": [
                {
                    "applyTo": "NETWORK_FILTER",
                    "match": {"context": "SIDECAR_INBOUND"},
                    "patch": {"operation": "REMOVE"},
                }
            ],
        },
    )

    def empty(dump: Any) -> None:
        for section in dump["configs"]:
            for listener in section.get("dynamic_listeners", ()):
                if listener["name"] == "virtualInbound":
                    for chain in listener["active_state"]["listener"]["filter_chains"]:
                        if "9080" in chain.get("name", ""):
                            chain["filters"] = []

    healthy.pages(empty, port=15000, pod=RATINGS, path="/config_dump?include_eds")
    details = "upstream_reset_before_response_started{connection_termination}"
    healthy.at_client("ratings:9080", SINCE, code="503", flags="URX,UC", details=details, **SILENT)
    assert_explains(assert_blamed(healthy, "MNB621", "A", "EnvoyFilter bookinfo/cleanup"), 20)


def _providers(altered: Altered, *added: Object) -> Altered:
    return altered.pages(lambda page: page["extensionProviders"].extend(added), path="/debug/mesh")


ZIPKIN = {"name": "spans", "zipkin": {"service": "zipkin.nowhere.svc.cluster.local", "port": 9411}}
TRACED = {"tracing": [{"providers": [{"name": "spans"}]}]}


def test_a_provider_that_is_no_service_is_the_mesh_settings_fault(healthy: Altered) -> None:
    """Altered: a Telemetry sends traces to a provider whose Service does not exist."""
    _providers(healthy, ZIPKIN)
    healthy.add("telemetries", "traces", "bookinfo", EARLIER, spec=TRACED)
    blamed_first(healthy, "MNB622", "A", "ConfigMap istio-system/istio")


def test_a_provider_that_nobody_declared_is_the_telemetrys_fault(healthy: Altered) -> None:
    """Altered: a Telemetry sends traces to a provider that MeshConfig does not have."""
    healthy.add("telemetries", "traces", "bookinfo", EARLIER, spec=TRACED)
    blamed_first(healthy, "MNB622", "A", "Telemetry bookinfo/traces")


def test_a_declared_provider_that_nobody_uses_is_well(healthy: Altered) -> None:
    """Altered: MeshConfig declares a provider whose Service does not exist; nothing names it."""
    assert_harmless(_providers(healthy, ZIPKIN))


def test_the_younger_of_two_telemetries_has_no_effect(healthy: Altered) -> None:
    """Altered: bookinfo has two Telemetries without selector; another namespace has one."""
    spec = {"accessLogging": [{"providers": [{"name": "envoy"}]}]}
    healthy.add("telemetries", "first", "bookinfo", "2026-11-23T02:39:00Z", spec=spec)
    healthy.add("telemetries", "second", "bookinfo", EARLIER, spec=spec)
    healthy.add("telemetries", "other", "legacy", EARLIER, spec=spec)
    blamed_first(healthy, "MNB623", "A", "Telemetry bookinfo/second")


def test_a_mesh_without_an_access_log_says_so(healthy: Altered) -> None:
    """Altered: MeshConfig asks for no access log, and none is there."""
    healthy.pages(lambda page: page.pop("accessLogFile"), path="/debug/mesh")
    healthy.texts(
        lambda text: "\n".join(line for line in text.split("\n") if not line.startswith("[20")),
        kind="log",
        container="istio-proxy",
    )
    codes = [cause.check.code for cause in diagnose(healthy.facts()).causes]
    assert codes == ["MNB624"]


BLOCKED = {
    "code": "502",
    "details": "direct_response",
    "cluster": "-",
    "route": "block_all",
    **NOWHERE,
}


def _exported(altered: Altered, scope: str) -> Altered:
    return altered.each(
        "services",
        "ratings",
        lambda one: (
            one["metadata"]
            .setdefault("annotations", {})
            .update({"networking.istio.io/exportTo": scope})
        ),
    )


@pytest.mark.parametrize("scope", [".", "~", "legacy,shop"])
def test_a_service_that_is_exported_to_others_is_not_known_to_its_callers(
    healthy: Altered, scope: str
) -> None:
    """Altered: ratings is kept from the namespace of its callers, who are blocked."""
    if scope == ".":
        healthy.each("services", "ratings", lambda one: one["metadata"].update(namespace="shop"))
        healthy.each("pods", "ratings", lambda one: one["metadata"].update(namespace="shop"))
        local = json.loads((healthy.folder / "kubernetes/services.json").read_text())["items"]
        address = next(
            one["spec"]["clusterIP"] for one in local if one["metadata"]["name"] == "ratings"
        )
        there = {**BLOCKED, "local": f"{address}:9080"}
        _exported(healthy, scope).at_client("ratings:9080", SINCE, **there)
        subject = "Service shop/ratings"
    else:
        _exported(healthy, scope).at_client("ratings:9080", SINCE, **BLOCKED)
        subject = "Service bookinfo/ratings"
    diagnosis = diagnose(healthy.facts())
    assert ("MNB640", "A", subject) == problems(diagnosis)[0], problems(diagnosis)
    assert_explains(diagnosis, 20)


@pytest.mark.parametrize("scope", ["*", "bookinfo"])
def test_a_service_that_is_exported_to_its_callers_is_well(healthy: Altered, scope: str) -> None:
    """Altered: ratings is exported, in so many words, to those who call it."""
    assert_harmless(_exported(healthy, scope))


def test_a_service_entry_that_is_kept_to_itself_is_blamed(healthy: Altered) -> None:
    """Altered: a ServiceEntry of another namespace is exported to that only."""
    spec = {
        "hosts": ["api.example.org"],
        "ports": [{"number": 80, "name": "http", "protocol": "HTTP"}],
        "resolution": "DNS",
        "exportTo": ["."],
    }
    healthy.add("serviceentries", "partner", "legacy", EARLIER, spec=spec)
    healthy.pages(
        lambda page: page["outboundTrafficPolicy"].update(mode="REGISTRY_ONLY"), path="/debug/mesh"
    )
    line = {**BLOCKED, "authority": "api.example.org", "path": "/v1", "local": "203.0.113.9:80"}
    healthy.request("client", "/ratings/0", since=SINCE, **line)
    blamed_first(healthy, "MNB640", "A", "ServiceEntry legacy/partner")


def test_a_hidden_service_that_is_reached_past_the_mesh_is_a_warning(healthy: Altered) -> None:
    """Altered: ratings is kept from its callers, whose proxies pass the bytes on, with success."""
    _exported(healthy, "legacy")
    address = next(
        one["spec"]["clusterIP"]
        for one in json.loads((healthy.folder / "kubernetes/services.json").read_text())["items"]
        if one["metadata"]["name"] == "ratings"
    )
    healthy.request(
        "client",
        "/ratings/0",
        since=SINCE,
        cluster="PassthroughCluster",
        route="allow_any",
        local=f"{address}:9080",
    )
    diagnosis = blamed_first(healthy, "MNB640", "A", "Service bookinfo/ratings")
    assert diagnosis.problems[0].severity is Severity.WARNING


# --- How Istio was installed ----------------------------------------------------------------------


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


# --- Traffic that goes past a sidecar -------------------------------------------------------------


def _as_proxy(altered: Altered) -> Altered:
    def user(pod: Object) -> None:
        for one in pod["spec"]["containers"]:
            one["securityContext"] = {"runAsUser": 1337}

    return altered.each("pods", "productpage", user)


@pytest.mark.parametrize("hidden", [True, False])
def test_an_application_that_runs_as_the_proxy_is_cut_off(healthy: Altered, hidden: bool) -> None:
    """Altered: productpage runs as user 1337; ratings, now strict, cuts plain text off.

    The address is the node's, or that of the pod itself.
    """
    healthy.add("peerauthentications", "default", "bookinfo", EARLIER, spec=STRICT)
    caller = "10.244.0.1" if hidden else address(healthy, "productpage")
    line = {**CUT_OFF, "remote": f"{caller}:50000"}
    healthy.request("ratings", "/ratings/0", 6, since=SINCE, **line)

    blamed_first(_as_proxy(healthy), "MNB770", "C", "Deployment bookinfo/productpage-v1")


def test_an_application_that_runs_as_the_proxy_is_a_warning_by_itself(healthy: Altered) -> None:
    """Altered: productpage runs as user 1337, and nothing fails."""
    diagnosis = assert_blamed(
        _as_proxy(healthy), "MNB770", "C", "Deployment bookinfo/productpage-v1"
    )
    assert diagnosis.problems[0].severity is Severity.WARNING


EXCLUDED = {"traffic.sidecar.istio.io/excludeOutboundPorts": "9080"}


def _excluded(altered: Altered, *, before: bool) -> Altered:
    altered.each("pods", "productpage", lambda pod: pod["metadata"]["annotations"].update(EXCLUDED))

    def version(items: list[Any]) -> None:
        now = next(one for one in items if one["metadata"]["name"].startswith("productpage"))
        old = copy.deepcopy(now)
        old["metadata"].update(name="productpage-v1-before", creationTimestamp=EARLIER)
        old["spec"]["replicas"] = 0
        for one in (now, old) if before else (now,):
            metadata = one["spec"]["template"]["metadata"]
            metadata["annotations"] = {**(metadata.get("annotations") or {}), **EXCLUDED}
        items.append(old)

    return altered.objects("replicasets", version)


def test_ports_that_a_new_version_takes_out_of_the_sidecars_hands_are_found(
    healthy: Altered,
) -> None:
    """Altered: productpage leaves port 9080 out of its sidecar, unlike its version before."""
    assert_blamed(
        _excluded(healthy, before=False), "MNB771", "A", "Deployment bookinfo/productpage-v1"
    )


def test_ports_that_were_always_left_out_are_worth_knowing(healthy: Altered) -> None:
    """Altered: productpage leaves port 9080 out of its sidecar, as before."""
    assert_harmless(_excluded(healthy, before=True), "MNB771")


def test_metrics_that_cannot_be_scraped_are_the_servers_own_matter(healthy: Altered) -> None:
    """Altered: ratings, now strict, offers metrics on a port of its own, in plain text."""

    def scraped(pod: Object) -> None:
        pod["metadata"]["annotations"].update(
            {"prometheus.io/scrape": "true", "prometheus.io/port": "9102"}
        )

    healthy.each("pods", "ratings", scraped)
    healthy.add("peerauthentications", "default", "bookinfo", EARLIER, spec=STRICT)
    local = f"{address(healthy, 'ratings')}:9102"
    line = {**CUT_OFF, "local": local, "remote": f"{address(healthy, LEGACY)}:50000"}
    healthy.request("ratings", "/ratings/0", 6, since=SINCE, **line)

    blamed_first(healthy, "MNB772", "C", "Deployment bookinfo/ratings-v1")


# --- Weak spots -----------------------------------------------------------------------------------


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
    """Altered: nothing, then istiod is of Istio 1.22."""
    assert weak(healthy, "MNB1706") == []
    healthy.texts(
        lambda text: text.replace("1.30.3", "1.22.8"), kind="http", port=15014, path="/version"
    )
    assert weak(healthy, "MNB1706") == ["Deployment istio-system/istiod"]


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


# --- What looks like a fault of another mesh and is none ------------------------------------------


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


def test_a_proxy_that_was_killed_long_ago_is_history(healthy: Altered) -> None:
    """Altered: the sidecar of ratings was killed for its memory four days ago."""
    at = "2026-11-19T02:40:00Z"
    killed = {"terminated": {"exitCode": 137, "reason": "OOMKilled", "finishedAt": at}}
    state(healthy, "ratings", "istio-proxy", lastState=killed, restartCount=1)
    assert_harmless(healthy, "MNB756")


def test_a_filter_for_proxies_of_another_version_is_left_alone(healthy: Altered) -> None:
    """Altered: an EnvoyFilter is for proxies of Istio 1.29 only."""
    spec = _inserted("SIDECAR_INBOUND", "shop.headers")
    spec["configPatches"][0]["match"]["proxy"] = {"proxyVersion": r"^1\.29.*"}
    assert_harmless(envoy_filter(healthy, "headers", spec), "MNB620")


def test_what_a_proxy_said_before_its_last_words_is_over(lost: Altered) -> None:
    """Altered: the pod of ratings could not resolve a name at first; now it is refused."""
    refused_now = (
        "\n2026-11-23T03:16:50.000000Z\twarning\tenvoy config ./x.h:227\tDeltaAggregatedResources "
        "gRPC config stream to xds-grpc closed since 70s ago: 14, connection error: dial tcp "
        "10.96.55.189:15012: connect: connection refused\tthread=13\n"
    )
    lost.texts(lambda text: text + refused_now, kind="log", pod=LOST, container="istio-proxy")
    blamed_first(lost, "MNB602", "B", f"Pod bookinfo/{LOST}")


def test_a_ca_bundle_with_an_intermediate_authority_only_is_well(healthy: Altered) -> None:
    """Altered: istiod's chain is a certificate and the authority that signed it, which is trusted.

    The root behind that authority is in neither.
    """
    root, middle = Authority(), Authority()
    leaf = middle.chain()
    healthy.bodies(lambda _: leaf + root.root, kind="probe", port=15017)

    def trusts(configuration: Object) -> None:
        for webhook in configuration["webhooks"]:
            webhook["clientConfig"]["caBundle"] = base64.b64encode(middle.root).decode()

    healthy.each("mutatingwebhookconfigurations", "istio-", trusts)
    healthy.each("validatingwebhookconfigurations", "istio", trusts)
    codes = [cause.check.code for cause in diagnose(healthy.facts()).problems]
    assert "MNB170" not in codes
