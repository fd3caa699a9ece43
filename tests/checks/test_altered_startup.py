"""Checks of pods that do not start and of traffic past a sidecar, on altered recordings.

What is altered is named in each test. Beside each fault stands what looks like it and is none.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest

from meshnb.checks import Severity
from tests.alteration import Altered
from tests.checks.test_altered import (
    CHANGED,
    EARLIER,
    NOWHERE,
    SILENT,
    SINCE,
    assert_blamed,
    assert_explains,
    assert_harmless,
)
from tests.checks.test_altered_injection import (
    CUT_OFF,
    DETAILS,
    LEGACY,
    STRICT,
    Object,
    address,
    blamed_first,
)

# --- Pods that do not start ---------------------------------------------------------------------


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


# --- Traffic that goes past a sidecar -----------------------------------------------------------


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


def test_a_proxy_that_was_killed_long_ago_is_history(healthy: Altered) -> None:
    """Altered: the sidecar of ratings was killed for its memory four days ago."""
    at = "2026-11-19T02:40:00Z"
    killed = {"terminated": {"exitCode": 137, "reason": "OOMKilled", "finishedAt": at}}
    state(healthy, "ratings", "istio-proxy", lastState=killed, restartCount=1)
    assert_harmless(healthy, "MNB756")
