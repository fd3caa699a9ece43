"""Checks of ambient meshes: ztunnels, enrolment and waypoints, on altered recordings.

Each test says in which one respect its recording was altered; see ``tests/alteration.py``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from meshnb.checks import Severity
from meshnb.diagnosis import diagnose
from tests.alteration import Altered
from tests.checks.test_altered import assert_blamed, problems
from tests.traces.test_ambient import CREATED, changed, network_policy, waypoint

Object = dict[str, Any]

ADDRESSES = {
    "api": ("10.244.0.127", "api-6767d87b65-8dnw5", "garden"),
    "seeds": ("10.244.0.128", "seeds-bbd85f747-bfbsz", "garden"),
    "web": ("10.244.0.126", "web-68bfc8f55c-vfrfm", "garden"),
    "passer-by": ("10.244.0.125", "passer-by", "street"),
}
REFUSED = "connection closed due to policy rejection: "
NONE_ALLOWED = f"{REFUSED}allow policies exist, but none allowed"
STRICT = f"{REFUSED}explicitly denied by: istio-system/istio_converted_static_strict"
TIMED_OUT = (
    "connection timed out, maybe a NetworkPolicy is blocking HBONE port 15008: deadline has elapsed"
)
SECURITY = {"apiVersion": "security.istio.io/v1"}
FOR_API: Object = {"selector": {"matchLabels": {"app": "api"}}}


@pytest.fixture
def garden(tmp_path: Path) -> Altered:
    """Return the recording of a healthy ambient mesh, to be altered."""
    return Altered("garden-healthy", tmp_path)


def connect(
    altered: Altered,
    client: str,
    server: str,
    error: str = "",
    *,
    times: int = 8,
    direction: str = "inbound",
    plain: bool = False,
    start: int = 0,
) -> Altered:
    """Let ztunnel have logged connections: refused ones with an error, else good ones."""
    source, source_pod, source_space = ADDRESSES[client]
    target, target_pod, target_space = ADDRESSES[server]
    identity = f'src.identity="spiffe://cluster.local/ns/{source_space}/sa/{client}" '
    lines = "".join(
        f"2026-11-23T04:23:{start + number:02d}.100000Z\t{'error' if error else 'info'}\taccess\t"
        f"connection complete\tsrc.addr={source}:{40000 + number} "
        f'src.workload="{source_pod}" src.namespace="{source_space}" '
        f"{'' if plain else identity}"
        f"dst.addr={target}:{8000 if plain else 15008} dst.hbone_addr={target}:8000 "
        f'dst.service="{server}.garden.svc.cluster.local" dst.workload="{target_pod}" '
        f'dst.namespace="{target_space}" direction="{direction}" '
        f"bytes_sent={0 if error else 120} bytes_recv=0 "
        f'duration="1ms"{f" error={chr(34)}{error}{chr(34)}" if error else ""}\n'
        for number in range(times)
    )
    return altered.texts(
        lambda text: text + lines, kind="log", pod="ztunnel-4p242", container="istio-proxy"
    )


def with_policy(altered: Altered, name: str, spec: Object, **more: Any) -> Altered:
    """Add an AuthorizationPolicy of garden."""
    return altered.add(
        "authorizationpolicies", name, "garden", CREATED, **SECURITY, kind="AuthorizationPolicy",
        spec=spec, **more,
    )  # fmt: skip


def strict(altered: Altered) -> Altered:
    """Add a PeerAuthentication that demands mutual TLS everywhere."""
    return altered.add(
        "peerauthentications", "default", "istio-system", CREATED, **SECURITY,
        kind="PeerAuthentication", spec={"mtls": {"mode": "STRICT"}},
    )  # fmt: skip


def assert_harmless(altered: Altered, *codes: str) -> None:
    """Assert that nothing is blamed; ``codes`` are the checks that find something worth knowing.

    Whether the mesh is called healthy is another matter: in some of these nobody logs a request.
    """
    diagnosis = diagnose(altered.facts())
    assert [cause.finding.message for cause in diagnosis.problems] == []
    assert [cause.check.code for cause in diagnosis.causes if not cause.check.lint] == list(codes)


# --- What ztunnels decide -------------------------------------------------------------------------


def test_a_stranger_to_a_strict_ambient_server_is_found(garden: Altered) -> None:
    """Altered: STRICT mutual TLS, and passer-by, which has no ztunnel, calls api."""
    connect(strict(garden), "passer-by", "api", STRICT, plain=True)
    diagnosis = assert_blamed(garden, "MNB904", "A", "PeerAuthentication istio-system/default")
    assert "street/passer-by, which is not in the mesh" in diagnosis.problems[0].finding.message


def test_strict_alone_is_no_fault(garden: Altered) -> None:
    """Altered: STRICT mutual TLS; everybody who calls is in the mesh."""
    connect(strict(garden), "web", "api")
    assert_harmless(garden)


def test_a_denied_caller_that_was_served_before_is_found(garden: Altered) -> None:
    """Altered: a policy for api names seeds, and web, which was served, is refused."""
    spec = {**FOR_API, "rules": [_from("cluster.local/ns/garden/sa/seeds")]}
    connect(with_policy(garden, "api-callers", spec), "web", "api", times=4)
    connect(garden, "web", "api", NONE_ALLOWED, start=10)
    assert_blamed(garden, "MNB901", "A", "AuthorizationPolicy garden/api-callers")


def test_a_stranger_that_a_policy_never_admitted_is_meant(garden: Altered) -> None:
    """Altered: passer-by tries seeds, whose policy names web and api, which are served."""
    connect(garden, "web", "seeds", times=20)
    connect(garden, "passer-by", "seeds", NONE_ALLOWED, plain=True, start=10)
    assert_harmless(garden, "MNB901")


def _from(*principals: str) -> Object:
    return {"from": [{"source": {"principals": list(principals)}}]}


def test_a_rule_for_http_that_ztunnel_drops_is_found(garden: Altered) -> None:
    """Altered: a policy allows GET to api; ztunnel holds it without rules, and refuses web."""
    spec = {**FOR_API, "rules": [{"to": [{"operation": {"methods": ["GET"]}}]}]}
    connect(with_policy(garden, "viewer", spec), "web", "api", NONE_ALLOWED)
    diagnosis = assert_blamed(garden, "MNB905", "A", "AuthorizationPolicy garden/viewer")
    assert "names methods, which ztunnel cannot see" in diagnosis.problems[0].finding.message


def test_a_rule_for_http_at_a_waypoint_is_no_fault(garden: Altered) -> None:
    """Altered: seeds has a waypoint, and a policy for GET is attached to it."""
    spec = {
        "targetRefs": [{"kind": "Service", "group": "", "name": "seeds"}],
        "rules": [{"to": [{"operation": {"methods": ["GET"]}}]}],
    }
    with_policy(waypoint(garden), "viewer", spec)
    assert problems(diagnose(garden.facts())) == []


def test_a_denial_by_http_that_denies_nothing_is_found(garden: Altered) -> None:
    """Altered: a policy denies /admin of api, which ztunnel cannot see."""
    spec = {**FOR_API, "action": "DENY", "rules": [{"to": [{"operation": {"paths": ["/admin"]}}]}]}
    with_policy(garden, "no-admin", spec)
    assert_blamed(garden, "MNB906", "A", "AuthorizationPolicy garden/no-admin")


def test_a_denial_that_also_names_a_caller_is_no_empty_one(garden: Altered) -> None:
    """Altered: a policy denies a port of api to a caller, which ztunnel can see."""
    rule = {**_from("cluster.local/ns/garden/sa/x"), "to": [{"operation": {"ports": ["9000"]}}]}
    with_policy(garden, "no-x", {**FOR_API, "action": "DENY", "rules": [rule]})
    assert_harmless(garden)


def test_a_network_policy_without_the_tunnels_port_is_found(garden: Altered) -> None:
    """Altered: a NetworkPolicy admits port 8000 of seeds only; web's connections time out."""
    garden.add("networkpolicies", "fence", "garden", CREATED, spec=network_policy([8000]))
    connect(garden, "web", "seeds", TIMED_OUT, direction="outbound")
    assert_blamed(garden, "MNB907", "C", "NetworkPolicy garden/fence")


@pytest.mark.parametrize(("ports", "notes"), [([8000], ["MNB907"]), ([8000, 15008], [])])
def test_a_network_policy_alone_is_at_most_worth_knowing(
    garden: Altered, ports: list[int], notes: list[str]
) -> None:
    """Altered: a NetworkPolicy for seeds, and nothing fails."""
    garden.add("networkpolicies", "fence", "garden", CREATED, spec=network_policy(ports))
    assert_harmless(garden, *notes)


# --- Who is in the mesh ---------------------------------------------------------------------------


def _forgotten(pod: Object) -> None:
    pod["metadata"]["annotations"] = {}


def _opted_out(item: Object) -> None:
    item["metadata"].setdefault("labels", {})["istio.io/dataplane-mode"] = "none"
    item["metadata"]["annotations"] = {}


def test_a_pod_that_the_node_agent_forgot_is_found(garden: Altered) -> None:
    """Altered: web was not redirected, although its namespace is ambient."""
    garden.each("pods", "web-", _forgotten)
    assert_blamed(garden, "MNB920", "C", "Deployment garden/web")


def test_a_pod_that_opted_out_lately_is_found(garden: Altered) -> None:
    """Altered: web's new version has the label none, which its old one had not."""
    garden.each("pods", "web-", _opted_out)
    diagnosis = assert_blamed(garden, "MNB920", "C", "Deployment garden/web")
    assert "istio.io/dataplane-mode=none keeps it out" in diagnosis.problems[0].finding.message


def test_a_pod_that_has_always_been_out_is_worth_knowing(garden: Altered) -> None:
    """Altered: web has the label none, in every version that there was."""
    garden.each("pods", "web-", _opted_out)

    def template(item: Object) -> None:
        item["spec"]["template"]["metadata"]["labels"]["istio.io/dataplane-mode"] = "none"

    garden.each("replicasets", "web-", template).each("deployments", "web", template)
    assert_harmless(garden, "MNB920")


def test_a_caller_that_is_out_is_blamed_and_not_the_policy(garden: Altered) -> None:
    """Altered: web was not redirected, so it shows no identity, and the policy of seeds refuses."""
    garden.each("pods", "web-", _forgotten)
    connect(garden, "web", "seeds", NONE_ALLOWED, plain=True)
    diagnosis = assert_blamed(garden, "MNB920", "C", "Deployment garden/web")
    assert "ztunnel refused 8 of its connections" in diagnosis.problems[0].finding.message


def test_a_caller_that_is_out_is_blamed_and_not_strict_mode(garden: Altered) -> None:
    """Altered: STRICT mutual TLS, and web opted out."""
    strict(garden).each("pods", "web-", _opted_out)
    connect(garden, "web", "api", STRICT, plain=True)
    assert_blamed(garden, "MNB920", "C", "Deployment garden/web")


def test_a_pod_on_the_nodes_network_is_worth_knowing(garden: Altered) -> None:
    """Altered: web uses the node's network, which no mesh can take."""

    def on_node(pod: Object) -> None:
        pod["spec"]["hostNetwork"] = True
        pod["metadata"]["annotations"] = {}

    assert_harmless(garden.each("pods", "web-", on_node), "MNB920")


def test_a_pod_that_has_just_started_is_waited_for(garden: Altered) -> None:
    """Altered: web is ten seconds old, and not redirected yet."""

    def young(pod: Object) -> None:
        pod["metadata"].update(annotations={}, creationTimestamp="2026-11-23T04:23:46Z")

    assert_harmless(garden.each("pods", "web-", young))


# --- ztunnels -------------------------------------------------------------------------------------


def _unready(pod: Object) -> None:
    for condition in pod["status"]["conditions"]:
        if condition["type"] in ("Ready", "ContainersReady"):
            condition.update(status="False", reason="ContainersNotReady", message="crashed")
    for status in pod["status"]["containerStatuses"]:
        status["ready"] = False


def test_a_ztunnel_that_is_not_ready_is_found(garden: Altered) -> None:
    """Altered: ztunnel is not ready."""
    garden.each("pods", "ztunnel-", _unready)
    diagnosis = diagnose(garden.facts())
    assert problems(diagnosis)[0][1:] == ("C", "DaemonSet istio-system/ztunnel")
    assert "MNB925" in [cause.check.code for cause in diagnosis.problems]


def test_a_node_without_a_ztunnel_is_found(garden: Altered) -> None:
    """Altered: ztunnel runs on another node than the pods."""
    garden.each("pods", "ztunnel-", lambda pod: pod["spec"].update(nodeName="node2"))
    assert_blamed(garden, "MNB925", "C", "DaemonSet istio-system/ztunnel")


def test_an_identity_that_nobody_signs_is_found(garden: Altered) -> None:
    """Altered: istiod signs no certificate for web."""

    def unsigned(document: Object) -> None:
        for held in document["certificates"]:
            if held["identity"].endswith("/sa/web"):
                held.update(state="Unavailable: Unauthenticated", certChain=[], rootCerts=[])

    assert_blamed(changed(garden, unsigned), "MNB926", "B", "DaemonSet istio-system/ztunnel")


# --- Waypoints ------------------------------------------------------------------------------------


def test_a_waypoint_that_works_is_no_fault(garden: Altered) -> None:
    """Altered: seeds has a waypoint."""
    assert problems(diagnose(waypoint(garden).facts())) == []


def test_a_waypoint_that_is_not_ready_is_found(garden: Altered) -> None:
    """Altered: the waypoint of seeds has no ready pod."""
    diagnosis = diagnose(waypoint(garden).each("pods", "wp-1", _unready).facts())
    assert ("MNB930", "A", "Gateway garden/wp") in problems(diagnosis)


@pytest.mark.parametrize(("traffic", "count"), [("workload", 1), ("none", 1), ("all", 0)])
def test_a_waypoint_for_other_traffic_is_found(garden: Altered, traffic: str, count: int) -> None:
    """Altered: the waypoint that Service seeds names is for another kind of traffic."""
    diagnosis = diagnose(waypoint(garden, **{"istio.io/waypoint-for": traffic}).facts())
    found = [cause.severity for cause in diagnosis.causes if cause.check.code == "MNB930"]
    assert found == [Severity.WARNING] * count


def test_a_policy_for_a_service_without_a_waypoint_is_found(garden: Altered) -> None:
    """Altered: a policy is attached to Service api, which asks for no waypoint."""
    spec = {"targetRefs": [{"kind": "Service", "group": "", "name": "api"}], "rules": []}
    with_policy(garden, "at-api", spec)
    assert_blamed(garden, "MNB931", "A", "AuthorizationPolicy garden/at-api")


def test_a_policy_that_selects_a_waypoint_by_labels_is_found(garden: Altered) -> None:
    """Altered: a policy selects the waypoint's pods by labels."""
    labels = {"gateway.networking.k8s.io/gateway-name": "wp"}
    spec = {"selector": {"matchLabels": labels}, "action": "DENY", "rules": [{}]}
    diagnosis = diagnose(with_policy(waypoint(garden), "deny", spec).facts())
    assert ("MNB932", "A", "AuthorizationPolicy garden/deny") in problems(diagnosis)


def _route(altered: Altered, namespace: str, host: str = "api.garden.svc.cluster.local") -> Altered:
    spec = {"hosts": [host], "http": [{"route": [{"destination": {"host": host}}]}]}
    kind = {"apiVersion": "networking.istio.io/v1", "kind": "VirtualService"}
    return altered.add("virtualservices", "turn", namespace, CREATED, **kind, spec=spec)


def test_a_route_for_an_ambient_service_without_a_waypoint_is_found(garden: Altered) -> None:
    """Altered: a VirtualService for api, which has no waypoint."""
    assert_blamed(_route(garden, "garden"), "MNB933", "A", "VirtualService garden/turn")


@pytest.mark.parametrize(("namespace", "count"), [("garden", 0), ("street", 1)])
def test_a_waypoint_reads_the_routes_of_its_services_namespace(
    garden: Altered, namespace: str, count: int
) -> None:
    """Altered: seeds has a waypoint, and a VirtualService in its namespace or in another."""
    _route(waypoint(garden), namespace, "seeds.garden.svc.cluster.local")
    codes = [cause.check.code for cause in diagnose(garden.facts()).problems]
    assert codes.count("MNB933") == count
