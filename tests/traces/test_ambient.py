"""A connection through ztunnels agrees with their logs, and breaks where it broke."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from meshnb.errors import UsageError
from meshnb.tables import Facts
from meshnb.traces.ambient import AmbientTrace, follow_ambient
from meshnb.traces.mesh import MESH, Mesh
from tests.alteration import Altered
from tests.conftest import facts_of, recording_names

WEB, SEEDS = "garden/web-68bfc8f55c-vfrfm", "seeds-bbd85f747-bfbsz"
STRANGER = "street/passer-by"
AMBIENT = ("garden-healthy", "ztunnel-deny", "waypoint-missing", "ambient-app-down")
CREATED = "2026-11-23T04:20:00Z"


@pytest.fixture
def garden(tmp_path: Path) -> Altered:
    """Return the recording of a healthy ambient mesh, to be altered."""
    return Altered("garden-healthy", tmp_path)


def dump(change: Callable[[dict[str, Any]], None]) -> Callable[[Any], None]:
    """Return a change of ztunnel's config dump only; Envoys answer the same question."""

    def only_ztunnel(document: Any) -> None:
        if "workloads" in document:
            change(document)

    return only_ztunnel


def changed(garden: Altered, change: Callable[[dict[str, Any]], None]) -> Altered:
    """Change what ztunnel holds."""
    return garden.pages(dump(change), port=15000, path="/config_dump")


def policy(action: str, rules: list[Any], scope: str = "Namespace", **more: Any) -> dict[str, Any]:
    """Return a policy as ztunnel holds it."""
    return {
        "name": "made",
        "namespace": "garden",
        "action": action,
        "scope": scope,
        "rules": rules,
        "dryRun": False,
        **more,
    }


def with_policy(garden: Altered, held: dict[str, Any]) -> Facts:
    """Let ztunnel hold one policy only."""
    return changed(garden, lambda document: document.update(policies=[held])).facts()


def stages(trace: AmbientTrace) -> list[tuple[str, str]]:
    """Return stage and outcome of each hop."""
    return [(hop.stage, hop.outcome) for hop in trace.hops]


def broken_at(trace: AmbientTrace) -> str:
    """Return the stage at which a connection broke, empty where it did not."""
    return trace.broken.stage if trace.broken else ""


# --- What really happened -----------------------------------------------------------------------


def line_verdict(facts: Facts, mesh: Mesh, row: Mapping[Any, Any]) -> str:
    """Return ``right``, ``wrong: …`` or ``undecided: …`` for one line of ztunnel's access log."""
    pods = {(pod.namespace, pod.pod): pod for pod in mesh.pods}
    server = pods.get((row["destination_namespace"], row["destination_pod"]))
    client = pods.get((row["source_namespace"], row["source_pod"]))
    if server is None or client is None:
        return "undecided: the pod is gone"
    policies = facts["istio_config"].query("kind == 'AuthorizationPolicy'")
    if (policies["changed"] > row["time"]).any():
        return "undecided: a policy was changed since"
    address = str(row["destination_hbone_address"] or row["destination_address"])
    port = address.rpartition(":")[2]
    trace = follow_ambient(facts, client, f"{row['destination_service']}:{port}", mesh)
    reached = [
        one for one in trace.reached if (one.namespace, one.pod) == (server.namespace, server.pod)
    ]
    if not reached:
        return f"wrong: {server.pod} is not among those that may get it"
    if reached[0].identity != row["source_identity"]:
        return f"wrong: identity {reached[0].identity}, logged {row['source_identity']}"
    error = "" if pd.isna(row["error"]) else str(row["error"])
    denied = "policy" in error or "401" in error or "broken pipe" in error
    predicted = any(hop.stage == "policies" and hop.outcome == "stopped" for hop in trace.hops)
    if denied != predicted:
        return f"wrong: predicted denied={predicted}, logged {error!r}"
    expected = reached[0].server_error if row["direction"] == "inbound" else reached[0].client_error
    if error and expected not in error and "policy change" not in error and "pipe" not in error:
        return f"wrong: predicted {expected!r}, logged {error!r}"
    return "right"


@pytest.mark.parametrize("name", [one for one in recording_names() if one in AMBIENT])
def test_every_line_of_the_ztunnels_agrees_with_the_trace(name: str) -> None:
    """Identity, the pods that may get it, the policies' decision and the words of the error."""
    facts = facts_of(name)
    mesh: Mesh = MESH.make(facts)
    log = facts["ztunnel_access_log"]
    verdicts = [line_verdict(facts, mesh, row) for row in log.to_dict("records")]
    counts = pd.Series(verdicts, dtype="string").value_counts().to_dict()
    print(f"{name}: {len(log)} lines, {counts}")
    assert [verdict for verdict in verdicts if verdict.startswith("wrong")] == []
    if len(log):
        assert counts.get("right", 0) >= 0.9 * len(log)


def test_the_recordings_have_lines_of_both_kinds() -> None:
    """Else the agreement above would say nothing."""
    errors = [error for name in AMBIENT for error in facts_of(name)["ztunnel_access_log"]["error"]]
    assert any("policy rejection" in str(error) for error in errors)
    assert any(pd.isna(error) for error in errors)


@pytest.mark.parametrize(
    ("name", "client", "destination", "stage", "item"),
    [
        (
            "ztunnel-deny",
            WEB,
            "seeds.garden:8000",
            "policies",
            "AuthorizationPolicy garden/seeds-callers",
        ),
        ("waypoint-missing", WEB, "api.garden:8000", "waypoint", "Service garden/api"),
        ("ambient-app-down", "garden/web-68bfc8f55c-jsbsj", "seeds.garden:8000", "application", ""),
        ("garden-healthy", WEB, "seeds.garden:8000", "", ""),
        ("garden-healthy", WEB, "api.garden:8000", "", ""),
        ("garden-healthy", STRANGER, "web.garden:8000", "", ""),
    ],
)
def test_a_labelled_fault_breaks_at_its_hop(
    name: str, client: str, destination: str, stage: str, item: str
) -> None:
    trace = follow_ambient(facts_of(name), client, destination)
    assert broken_at(trace) == stage
    assert (trace.broken.object if trace.broken else "") == item


def test_each_hop_cites_a_row_that_is_there() -> None:
    for name in AMBIENT:
        facts = facts_of(name)
        for client in (WEB, STRANGER, "outside"):
            if name == "ambient-app-down" and client == WEB:
                continue
            for hop in follow_ambient(facts, client, "seeds.garden:8000").hops:
                assert not hop.table or hop.row is not None, hop
                assert not hop.table or 0 <= int(hop.row or 0) < len(facts[hop.table]), hop


def test_a_trace_is_told_as_a_table_and_as_json() -> None:
    trace = follow_ambient(facts_of("ztunnel-deny"), WEB, "seeds.garden")
    assert trace.frame()["stage"].tolist() == [hop.stage for hop in trace.hops]
    told = json.loads(json.dumps(trace.to_json()))
    assert told["outcome"] == "refused"
    assert told["reached"][0]["policy"] == "garden/seeds-callers"
    assert "cluster.local/ns/garden/sa/web" in told["says"]


@pytest.mark.parametrize(
    ("client", "destination", "words"),
    [
        ("garden/web-68bfc8f55c", "seeds.garden", "Did you mean garden/web"),
        (WEB, "seed.garden:8000", "Did you mean seeds.garden"),
        (WEB, "seeds.garden:81", "It has 8000"),
        (WEB, "istiod.istio-system", "Write istiod.istio-system:PORT"),
    ],
)
def test_a_wrong_name_is_answered_with_the_right_one(
    client: str, destination: str, words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        follow_ambient(facts_of("garden-healthy"), client, destination)


# --- What ztunnel's policies say -----------------------------------------------------------------

WEB_ID = "cluster.local/ns/garden/sa/web"
IS_WEB = {"principals": [{"Exact": WEB_ID}]}
ACCOUNT = {"serviceAccounts": [{"namespace": "garden", "serviceAccount": "web"}]}
OF_GARDEN = {"principals": [{"Prefix": "cluster.local/ns/garden/"}]}
ON_9 = {"destinationPorts": [9]}


@pytest.mark.parametrize(
    ("held", "web", "stranger"),
    [
        (policy("Allow", []), "refused", "refused"),
        (policy("Allow", [[]]), "admitted", "admitted"),
        (policy("Allow", [[[OF_GARDEN]]]), "admitted", "refused"),
        (policy("Allow", [[[{"namespaces": [{"Exact": "garden"}]}]]]), "admitted", "refused"),
        (policy("Allow", [[[{"destinationPorts": [8000]}]]]), "admitted", "admitted"),
        (policy("Allow", [[[ON_9]], [[IS_WEB]]]), "admitted", "refused"),
        (policy("Allow", [[[ON_9], [IS_WEB]]]), "refused", "refused"),
        (policy("Allow", [[[{"sourceIps": ["10.244.0.126/32"]}]]]), "admitted", "refused"),
        (policy("Allow", [[[{"notNamespaces": [{"Exact": "garden"}]}]]]), "refused", "admitted"),
        (policy("Deny", [[[{"notPrincipals": ["Presence"]}]]]), "admitted", "refused"),
        (policy("Deny", [[[{"notPrincipals": [{"Presence": []}]}]]]), "admitted", "refused"),
        (policy("Deny", [[[{}]]]), "admitted", "admitted"),
        (policy("Deny", [[[{"principals": [{"Suffix": "/sa/web"}]}]]]), "refused", "admitted"),
        (policy("Deny", [[[ACCOUNT]]]), "refused", "admitted"),
        (policy("Deny", [[[IS_WEB]]], dryRun=True), "admitted", "admitted"),
        (policy("Deny", [[]], "WorkloadSelector"), "admitted", "admitted"),
        (policy("Deny", [[]], "Global"), "refused", "refused"),
        (policy("Deny", [[[{"unheardOf": ["x"]}]]]), "undecided", "undecided"),
        (policy("Deny", ["x", [1], [["y"]]]), "undecided", "undecided"),
    ],
)  # fmt: skip
def test_ztunnel_decides_by_the_policies_that_it_holds(
    garden: Altered, held: dict[str, Any], web: str, stranger: str
) -> None:
    """Altered: ztunnel holds another policy, for all of garden unless it says otherwise."""
    facts = with_policy(garden, held)
    assert follow_ambient(facts, WEB, "api.garden").outcome == web
    assert follow_ambient(facts, STRANGER, "api.garden").outcome == stranger


def test_the_nearest_miss_is_told_with_what_did_not_fit(garden: Altered) -> None:
    """Altered: a policy admits web on another port."""
    held = policy("Allow", [[[IS_WEB], [{"destinationPorts": [9000]}]]])
    trace = follow_ambient(with_policy(garden, held), WEB, "api.garden")
    assert trace.broken is not None
    assert "8000 is not among destinationPorts 9000" in trace.broken.says
    assert "principals" not in trace.broken.says


# --- Other places at which it breaks --------------------------------------------------------------


def test_a_pod_that_is_labelled_but_not_captured_sends_plain_text(garden: Altered) -> None:
    """Altered: the node agent has not redirected web, although its namespace is ambient."""
    garden.each("pods", "web-", lambda pod: pod["metadata"]["annotations"].clear())
    trace = follow_ambient(garden.facts(), WEB, "seeds.garden")
    assert stages(trace)[0] == ("client", "altered")
    assert broken_at(trace) == "policies"
    assert trace.reached[0].identity == ""


def test_no_ztunnel_on_the_clients_node(garden: Altered) -> None:
    """Altered: ztunnel runs on another node."""
    garden.each("pods", "ztunnel-", lambda pod: pod["spec"].update(nodeName="node2"))
    trace = follow_ambient(garden.facts(), WEB, "seeds.garden")
    assert (broken_at(trace), trace.outcome) == ("client's ztunnel", "refused")
    assert "no ztunnel runs on node1" in trace.says


def test_a_ztunnel_that_did_not_say_what_it_holds_leaves_it_open(garden: Altered) -> None:
    """Altered: ztunnel's config dump was not recorded."""
    pod = "ztunnel-4p242"
    garden.silence("timed out", kind="http", port=15000, pod=pod)
    trace = follow_ambient(garden.facts(), WEB, "seeds.garden")
    assert trace.outcome == "undecided"
    assert "config dump of ztunnel-4p242.istio-system was not recorded" in trace.says


def test_an_identity_without_a_certificate(garden: Altered) -> None:
    """Altered: istiod signs nothing for web."""

    def unsigned(document: dict[str, Any]) -> None:
        for held in document["certificates"]:
            if held["identity"].endswith("/sa/web"):
                held.update(state="Unavailable: Unauthenticated", certChain=[], rootCerts=[])

    trace = follow_ambient(changed(garden, unsigned).facts(), WEB, "seeds.garden")
    assert broken_at(trace) == "client's ztunnel"
    assert "Unauthenticated" in trace.says


def network_policy(ports: list[int], **more: Any) -> dict[str, Any]:
    """Return the spec of a NetworkPolicy for seeds that admits ports."""
    rule = {"ports": [{"port": port} for port in ports], **more}
    return {
        "podSelector": {"matchLabels": {"app": "seeds"}},
        "policyTypes": ["Ingress"],
        "ingress": [rule],
    }


OUT_TO_TUNNELS = {
    "podSelector": {},
    "policyTypes": ["Egress"],
    "egress": [{"ports": [{"port": 15008}]}],
}
FROM_ALL: dict[str, Any] = {"from": [{"podSelector": {}}]}
FROM_API = {"from": [{"podSelector": {"matchLabels": {"app": "api"}}}]}
FOR_API = {"podSelector": {"matchLabels": {"app": "api"}}, "policyTypes": ["Ingress"]}


@pytest.mark.parametrize(
    ("spec", "web", "stranger"),
    [
        (network_policy([8000]), "tunnel", "policies"),
        (network_policy([15008]), "", "tunnel"),
        (network_policy([8000, 15008]), "", "policies"),
        (network_policy([15008], **FROM_ALL), "", "tunnel"),
        (network_policy([15008], **FROM_API), "tunnel", "tunnel"),
        (FOR_API, "", "policies"),
        ({"podSelector": {}, "policyTypes": ["Egress"]}, "tunnel", "policies"),
        (OUT_TO_TUNNELS, "", "policies"),
    ],
)  # fmt: skip
def test_a_network_policy_must_admit_the_tunnel(
    garden: Altered, spec: dict[str, Any], web: str, stranger: str
) -> None:
    """Altered: a NetworkPolicy for some pods of garden."""
    garden.add("networkpolicies", "fence", "garden", CREATED, spec=spec)
    facts = garden.facts()
    assert broken_at(follow_ambient(facts, WEB, "seeds.garden")) == web
    assert broken_at(follow_ambient(facts, STRANGER, "seeds.garden")) == stranger


def test_a_network_policy_that_the_network_does_not_obey_breaks_nothing(tmp_path: Path) -> None:
    """Altered: a NetworkPolicy leaves 15008 out, and connections are opened nevertheless."""
    altered = Altered("ambient-app-down", tmp_path)
    altered.add("networkpolicies", "fence", "garden", CREATED, spec=network_policy([8000]))
    altered.texts(lambda text: text.replace(' error="', ' x="'), kind="log", pod="ztunnel-4p242")
    trace = follow_ambient(altered.facts(), "garden/web-68bfc8f55c-jsbsj", "seeds.garden")
    assert broken_at(trace) == ""


# --- Waypoints ------------------------------------------------------------------------------------


def waypoint(garden: Altered, **labels: str) -> Altered:
    """Add a waypoint for garden, whose pod is ready, and let ztunnel know of it."""
    kind = {"apiVersion": "gateway.networking.k8s.io/v1", "resource": "gateways"}
    entry = {
        "request": {"kind": "list", **kind},
        "taken_at": "2026-11-23T04:23:55Z",
        "elapsed_ms": 1.0,
        "status": 200,
        "file": "kubernetes/gateways.gateway.networking.k8s.io.json",
    }
    gateway = {
        "metadata": {
            "name": "wp",
            "namespace": "garden",
            "creationTimestamp": CREATED,
            "labels": labels,
        },
        "spec": {
            "gatewayClassName": "istio-waypoint",
            "listeners": [{"name": "mesh", "port": 15008, "protocol": "HBONE"}],
        },
        "status": {"conditions": [{"type": "Programmed", "status": "True"}]},
    }
    (garden.folder / str(entry["file"])).write_text(
        json.dumps({"kind": "GatewayList", **kind, "items": [gateway]})
    )
    index = garden.folder / "index.jsonl"
    index.write_text(index.read_text().rstrip("\n") + "\n" + json.dumps(entry) + "\n")

    def also_waypoint(pods: list[Any]) -> None:
        pod = json.loads(
            json.dumps(next(one for one in pods if "gateway" in one["metadata"]["name"]))
        )
        pod["metadata"].update(
            name="wp-1",
            namespace="garden",
            labels={
                "gateway.networking.k8s.io/gateway-name": "wp",
                "gateway.istio.io/managed": "istio.io-mesh-controller",
            },
        )
        pod["spec"]["serviceAccountName"] = "wp"
        pod["status"]["podIP"] = "10.244.0.200"
        pods.append(pod)

    garden.objects("pods", also_waypoint)

    def also_connected(page: Any) -> None:
        clients = page if isinstance(page, list) else page["clients"]
        key = "proxy" if isinstance(page, list) else "connectionId"
        (gateway,) = [one for one in clients if "ingressgateway" in one[key]]
        name = "wp-1.garden" if isinstance(page, list) else "wp-1.garden-4"
        clients.append({**gateway, key: name, "proxy_type": "waypoint"})

    for path in ("/debug/syncz", "/debug/connections"):
        garden.pages(also_connected, path=path)

    def label(service: dict[str, Any]) -> None:
        service["metadata"].setdefault("labels", {})["istio.io/use-waypoint"] = "wp"

    garden.each("services", "seeds", label)

    def tell(document: dict[str, Any]) -> None:
        for service in document["services"]:
            if service["name"] == "seeds":
                service["waypoint"] = {
                    "destination": "garden/wp.garden.svc.cluster.local",
                    "hboneMtlsPort": 15008,
                }

    return changed(garden, tell)


def test_behind_a_waypoint_the_server_sees_the_waypoint(garden: Altered) -> None:
    """Altered: seeds has a waypoint, whom the policy for seeds does not name."""
    trace = follow_ambient(waypoint(garden).facts(), WEB, "seeds.garden")
    assert broken_at(trace) == "policies"
    assert trace.reached[0].identity == "spiffe://cluster.local/ns/garden/sa/wp"


def test_what_a_waypoint_decides_is_left_open(garden: Altered) -> None:
    """Altered: a policy is attached to the waypoint, and none stands behind it."""
    waypoint(garden).add(
        "authorizationpolicies",
        "at-waypoint",
        "garden",
        CREATED,
        apiVersion="security.istio.io/v1",
        kind="AuthorizationPolicy",
        spec={"targetRefs": [{"kind": "Service", "name": "seeds"}], "rules": []},
    )
    facts = changed(garden, lambda document: document.update(policies=[])).facts()
    trace = follow_ambient(facts, WEB, "seeds.garden")
    assert trace.outcome == "undecided"
    assert "AuthorizationPolicy garden/at-waypoint" in trace.undecided[0]
    assert follow_ambient(facts, STRANGER, "seeds.garden").broken is not None


@pytest.mark.parametrize(
    ("traffic", "service", "pod"),
    [("service", "waypoint", ""), ("workload", "", ""), ("all", "waypoint", "")],
)
def test_a_waypoint_takes_the_traffic_that_it_is_for(
    garden: Altered, traffic: str, service: str, pod: str
) -> None:
    """Altered: the waypoint of seeds is for Services, for workloads, or for both."""
    facts = waypoint(garden, **{"istio.io/waypoint-for": traffic}).facts()
    seen = follow_ambient(facts, WEB, "seeds.garden").reached[0].identity
    assert seen.endswith("/sa/wp") == (service == "waypoint")
    direct = follow_ambient(facts, WEB, f"garden/{SEEDS}:8000").reached[0].identity
    assert direct.endswith("/sa/wp") == (pod == "waypoint")


def test_a_waypoint_that_is_not_ready_is_passed_by(garden: Altered) -> None:
    """Altered: the waypoint's pod is not ready, and ztunnel was not told of it."""
    waypoint(garden)

    def unready(pod: dict[str, Any]) -> None:
        for condition in pod["status"]["conditions"]:
            condition["status"] = "False"

    garden.each("pods", "wp-1", unready)
    trace = follow_ambient(garden.facts(), WEB, "seeds.garden")
    assert broken_at(trace) == "waypoint"
    assert "none of its 1 pods is ready" in trace.says
    assert trace.outcome == "admitted"
