"""Checks of injection and of pods that could not be made, on altered recordings.

What is altered is named in each test. Beside each fault stands what looks like it and is none.
"""

from __future__ import annotations

import base64
import copy
import json
from datetime import datetime, timedelta
from typing import Any

import pytest

from meshnb.checks import Severity
from meshnb.diagnosis import UNEXPLAINED, Diagnosis, diagnose
from tests.alteration import Altered
from tests.checks.test_altered import (
    CHANGED,
    EARLIER,
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


def blamed_first(altered: Altered, code: str, failure_class: str, subject: str) -> Diagnosis:
    """Assert that one object is blamed first, and that nothing but accidents is unexplained."""
    diagnosis = diagnose(altered.facts())
    assert problems(diagnosis)[:1] == [(code, failure_class, subject)], problems(diagnosis)
    unexplained = [one.message for one in diagnosis.unexplained if one.count >= UNEXPLAINED]
    assert unexplained == []
    return diagnosis


# --- Pods that could not be made ----------------------------------------------------------------


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
    altered.disconnect("details-v1")
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


def happened(altered: Altered, reason: str, at: str) -> None:
    """Let there be an event, of a kind that tells well, of what makes the pods of details."""
    altered.add(
        "events",
        "details-v1-9449b4bf.18",
        "bookinfo",
        at,
        type="Normal",
        reason=reason,
        message="Created pod: details-v1-9449b4bf-zzzzz",
        involvedObject={
            "kind": "ReplicaSet",
            "namespace": "bookinfo",
            "name": "details-v1-9449b4bf",
        },
        firstTimestamp=at,
        lastTimestamp=at,
        count=1,
    )


LATER = f"{datetime.fromisoformat(CHANGED) + timedelta(seconds=20):%Y-%m-%dT%H:%M:%SZ}"


@pytest.mark.parametrize(("at", "over"), [(LATER, True), (EARLIER, False)])
def test_a_refusal_is_over_when_the_same_owner_made_a_pod_since(
    healthy: Altered, at: str, over: bool
) -> None:
    """Altered: a pod of details was refused; the same ReplicaSet made one afterwards, or before."""
    happened(refused(healthy, f"{POST}context deadline exceeded"), "SuccessfulCreate", at)

    found = {code for code, *_ in problems(diagnose(healthy.facts()))}

    assert ("MNB171" not in found) is over


@pytest.mark.parametrize(("at", "over"), [(LATER, True), (EARLIER, False)])
def test_a_refusal_is_over_when_the_same_webhook_injected_a_pod_since(
    healthy: Altered, at: str, over: bool
) -> None:
    """Altered: a pod of details was refused; one of ratings was injected afterwards, or before."""
    refused(healthy, f"{POST}context deadline exceeded")
    healthy.each("pods", "ratings-v1", lambda pod: pod["metadata"].update(creationTimestamp=at))

    found = {code for code, *_ in problems(diagnose(healthy.facts()))}

    assert ("MNB171" not in found) is over


def test_a_webhook_of_a_service_that_is_gone_is_one_fault(healthy: Altered) -> None:
    """Altered: the injection webhooks call a Service that does not exist; a pod is refused."""

    def astray(configuration: Object) -> None:
        for webhook in configuration["webhooks"]:
            webhook["clientConfig"]["service"]["name"] = "elsewhere"

    refused(healthy, f"{POST}dial tcp 10.96.7.7:443: connect: connection refused")
    healthy.each("mutatingwebhookconfigurations", "istio-", astray)

    found = {code for code, *_ in problems(diagnose(healthy.facts()))}

    assert "MNB171" not in found
    assert "MNB153" in found


# --- Injection ----------------------------------------------------------------------------------


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
        altered.disconnect(pod)
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


@pytest.mark.parametrize("reached", [True, False])
def test_a_proxy_to_which_nothing_got_is_not_known_to_be_disconnected(
    healthy: Altered, reached: bool
) -> None:
    """Altered: no istiod knows details; probes of it were answered, or not forwarded."""
    healthy.disconnect("details-v1")
    if not reached:
        error = "the API server answered with status 500: 406: Not Acceptable"
        healthy.silence(error, 500, kind="probe", pod=DETAILS)

    found = {code for code, *_ in problems(diagnose(healthy.facts()))}

    assert ("MNB602" in found) is reached
