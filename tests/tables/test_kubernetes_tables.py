"""What the tables from Kubernetes objects say of real recordings, and of recordings gone wrong."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from meshnb.sources import Bundle
from meshnb.tables import TABLES, Facts
from meshnb.tables.selectors import selects
from meshnb.tables.services import declared_protocol

Recorded = Callable[[str], Facts]
Altered = Callable[..., Facts]

MINE = (
    "containers",
    "injection",
    "istio_config",
    "mesh_settings",
    "namespaces",
    "network_policies",
    "nodes",
    "pods",
    "secrets",
    "service_accounts",
    "service_endpoints",
    "services",
    "webhooks",
    "workloads",
)


@pytest.fixture
def altered(recordings_folder: Path, tmp_path: Path) -> Altered:
    """Return a function that gives the facts of a recording that was altered before it was read.

    ``changes`` has a resource or a path, and either a function that changes the listed items in
    place or the document that stands there instead. What is in ``forget`` was never asked.
    """

    def alter(
        name: str, changes: Mapping[str, Any] | None = None, forget: tuple[str, ...] = ()
    ) -> Facts:
        folder = tmp_path / name
        ignored = shutil.ignore_patterns("proxies", "logs", "probes")
        shutil.copytree(recordings_folder / name, folder, ignore=ignored)
        kept = []
        for line in (folder / "index.jsonl").read_text().splitlines():
            entry = json.loads(line)
            asked = entry["request"].get("resource", entry["request"].get("path"))
            if asked not in forget:
                kept.append(line)
            if asked in (changes or {}):
                change = (changes or {})[asked]
                document = json.loads((folder / entry["file"]).read_text())
                if callable(change):
                    change(document["items"])
                else:
                    document = change
                (folder / entry["file"]).write_text(json.dumps(document))
        (folder / "index.jsonl").write_text("\n".join(kept))
        return Facts(Bundle(folder, label=name))

    return alter


def row(frame: pd.DataFrame, **wanted: Any) -> Mapping[str, Any]:
    """Return the one row that has these values."""
    chosen = frame
    for column, value in wanted.items():
        chosen = chosen[(chosen[column] == value).fillna(value=False)]
    assert len(chosen) == 1, f"{len(chosen)} rows have {wanted}"
    return {str(column): value for column, value in chosen.iloc[0].to_dict().items()}


def named(listed: list[Any], start: str) -> dict[str, Any]:
    """Return the one object whose name begins so."""
    (found,) = (item for item in listed if item["metadata"]["name"].startswith(start))
    assert isinstance(found, dict)
    return found


def moment(text: str) -> datetime:
    """Return a time of the day of the recordings."""
    return datetime.fromisoformat(f"2026-11-23T{text}").replace(tzinfo=UTC)


# --- all tables ---------------------------------------------------------------------------------


def test_every_row_can_be_found_by_its_key(recorded: Recorded) -> None:
    for recording in ("healthy", "market-healthy", "garden-healthy", "envoyfilter-rejected"):
        for name in MINE:
            keys = [title for title, column in TABLES[name].columns.items() if column.key]
            assert not recorded(recording)[name].duplicated(keys).any(), (recording, name)


def test_a_healthy_recording_leaves_no_gap(recorded: Recorded) -> None:
    for recording in ("healthy", "healthy-loaded", "market-healthy", "garden-healthy"):
        assert recorded(recording).gaps(*MINE) == ()


ODD: tuple[Any, ...] = (None, 7, "text", [], {}, [None, 7, {"name": None}], {"name": [1]}, True)


@pytest.mark.parametrize("odd", ODD, ids=repr)
@pytest.mark.parametrize(
    ("resource", "part"),
    [
        ("pods", "metadata"),
        ("pods", "spec"),
        ("pods", "status"),
        ("replicasets", "metadata"),
        ("deployments", "spec"),
        ("services", "spec"),
        ("services", "metadata"),
        ("endpointslices", "endpoints"),
        ("endpointslices", "ports"),
        ("namespaces", "metadata"),
        ("mutatingwebhookconfigurations", "webhooks"),
        ("virtualservices", "metadata"),
        ("virtualservices", "status"),
        ("secrets", "data"),
        ("nodes", "status"),
    ],
)
def test_an_object_of_any_shape_costs_at_most_its_own_rows(
    altered: Altered, recorded: Recorded, resource: str, part: str, odd: Any
) -> None:
    def change(listed: list[Any]) -> None:
        listed[0][part] = odd

    facts = altered("healthy", {resource: change})
    for name in MINE:
        frame = facts[name]
        assert list(frame.columns) == list(TABLES[name].columns)
        lost = len(recorded("healthy")[name]) - len(frame)
        assert lost <= 4, f"{name} lost {lost} rows"  # one object has up to four webhooks or ports


@pytest.mark.parametrize("document", [None, 7, "text", [], {}, {"items": 7}, {"items": [1, None]}])
def test_a_list_that_is_none_leaves_an_empty_table(altered: Altered, document: Any) -> None:
    facts = altered("healthy", {"pods": document})
    for name in ("pods", "containers", "injection"):
        assert facts[name].empty
        assert list(facts[name].columns) == list(TABLES[name].columns)


# --- pods ---------------------------------------------------------------------------------------


def test_a_pod_belongs_to_the_deployment_behind_its_replica_set(recorded: Recorded) -> None:
    pod = row(recorded("healthy")["pods"], pod="reviews-v1-68bccdd8bb-lh2mn")
    assert (pod["workload_kind"], pod["workload"]) == ("Deployment", "reviews-v1")
    assert (pod["mesh"], pod["revision"]) == ("sidecar", "default")
    assert pod["proxy"] == "reviews-v1-68bccdd8bb-lh2mn.bookinfo"
    assert pod["proxy_image"] == "docker.io/testbed/proxyv2:1.30.3"
    assert (pod["address"], pod["node"], pod["phase"]) == ("10.244.0.7", "node1", "Running")
    assert pod["created"] == moment("02:33:58")
    assert pod["ready_since"] == moment("02:34:04")
    assert pod["question"] == "LIST v1/pods"


def test_without_replica_sets_the_deployment_is_told_from_the_pods_hash(altered: Altered) -> None:
    facts = altered("healthy", forget=("replicasets",))
    pod = row(facts["pods"], pod="reviews-v1-68bccdd8bb-lh2mn")
    assert (pod["workload_kind"], pod["workload"]) == ("Deployment", "reviews-v1")
    assert facts.gaps("pods") == ()


def test_a_pod_of_a_job_belongs_to_the_cron_job_behind_it(altered: Altered) -> None:
    metadata = {
        "namespace": "bookinfo",
        "name": "nightly-29384720",
        "ownerReferences": [{"kind": "CronJob", "name": "nightly", "controller": True}],
    }

    def change(listed: list[Any]) -> None:
        owner = {"kind": "Job", "name": "nightly-29384720", "controller": True}
        named(listed, "details")["metadata"]["ownerReferences"] = [owner]

    facts = altered("healthy", {"pods": change, "jobs": {"items": [{"metadata": metadata}]}})
    assert "nightly-29384720" not in facts["workloads"]["workload"].tolist()
    pod = row(facts["pods"], pod="details-v1-9449b4bf-6g92b")
    assert (pod["workload_kind"], pod["workload"]) == ("CronJob", "nightly")


def test_a_bare_pod_is_its_own_workload(recorded: Recorded) -> None:
    pod = row(recorded("healthy")["pods"], pod="client")
    assert (pod["workload_kind"], pod["workload"]) == ("Pod", "client")


def test_each_part_of_the_mesh_is_told_apart(recorded: Recorded) -> None:
    for recording, pod, mesh in (
        ("healthy", "istiod-849979b494-z8nb9", "istiod"),
        ("healthy", "istio-ingressgateway-548b98684d-rzdjv", "gateway"),
        ("healthy", "legacy-client", "none"),
        ("market-healthy", "market-gw-istio-7dff9b757f-9d2x8", "gateway"),
        ("garden-healthy", "ztunnel-4p242", "ztunnel"),
        ("garden-healthy", "web-68bfc8f55c-vfrfm", "ambient"),
        ("garden-healthy", "istio-cni-node-cfpnv", "none"),
        ("not-injected-annotation", "details-v1-5cf694b48f-jd5mv", "none"),
    ):
        found = row(recorded(recording)["pods"], pod=pod)
        assert found["mesh"] == mesh, pod
        assert pd.notna(found["proxy"]) == (mesh in ("gateway", "sidecar", "waypoint"))


def test_a_gateway_pod_that_runs_as_a_waypoint_is_one(altered: Altered) -> None:
    def change(listed: list[Any]) -> None:
        container = named(listed, "market-gw-istio")["spec"]["containers"][0]
        container["args"][container["args"].index("router")] = "waypoint"

    pods = altered("market-healthy", {"pods": change})["pods"]
    assert row(pods, workload="market-gw-istio")["mesh"] == "waypoint"


def test_the_revision_is_also_read_from_the_injectors_own_note(altered: Altered) -> None:
    def change(listed: list[Any]) -> None:
        del named(listed, "client")["metadata"]["annotations"]["istio.io/rev"]

    assert row(altered("healthy", {"pods": change})["pods"], pod="client")["revision"] == "default"


def test_an_istiod_has_the_revision_of_its_label(recorded: Recorded) -> None:
    assert row(recorded("healthy")["pods"], workload="istiod")["revision"] == "default"


def test_a_crashing_pod_is_not_ready_and_says_which_container(recorded: Recorded) -> None:
    pod = row(recorded("app-crash-loop")["pods"], workload="details-v1")
    assert pod["ready"] is False
    assert pod["not_ready_reason"] == (
        "ContainersNotReady: containers with unready status: [details]"
    )
    assert pod["restarts"] == 3
    assert pd.isna(row(recorded("app-crash-loop")["pods"], pod="client")["not_ready_reason"])


# --- containers ---------------------------------------------------------------------------------


def test_a_crashing_container_shows_this_end_and_the_one_before(recorded: Recorded) -> None:
    container = row(recorded("app-crash-loop")["containers"], container="details")
    assert (container["state"], container["reason"], container["exit_code"]) == (
        "terminated",
        "Error",
        1,
    )
    assert container["since"] == moment("03:17:54")
    assert (container["last_reason"], container["last_exit_code"]) == ("Error", 1)
    assert container["last_finished"] == moment("03:17:27")
    assert (container["ready"], container["restarts"]) == (False, 3)
    assert container["ports"] == (9080,)


def test_a_probe_through_the_agent_is_shown_with_the_port_it_ends_at(recorded: Recorded) -> None:
    container = row(recorded("not-ready-endpoint")["containers"], container="ratings")
    assert (container["readiness_kind"], container["readiness_port"]) == ("tcp", 9999)
    assert pd.isna(container["readiness_path"])


def test_a_rewritten_probe_without_its_original_has_no_port(altered: Altered) -> None:
    def change(listed: list[Any]) -> None:
        for container in named(listed, "ratings")["spec"]["initContainers"]:
            for variable in container.get("env", []):
                if variable["name"] == "ISTIO_KUBE_APP_PROBERS":
                    variable["value"] = "{not json"

    facts = altered("not-ready-endpoint", {"pods": change})
    container = row(facts["containers"], container="ratings")
    assert pd.isna(container["readiness_port"])
    assert pd.isna(container["readiness_kind"])


def test_a_named_probe_port_is_looked_up_among_the_containers_ports(altered: Altered) -> None:
    def change(listed: list[Any]) -> None:
        container = named(listed, "istiod")["spec"]["containers"][0]
        container["ports"][0]["name"] = "probed"
        container["readinessProbe"]["httpGet"]["port"] = "probed"

    container = row(altered("healthy", {"pods": change})["containers"], container="discovery")
    assert (container["readiness_port"], container["readiness_path"]) == (8080, "/ready")


def test_native_sidecars_are_init_containers(recorded: Recorded) -> None:
    containers = recorded("healthy")["containers"]
    proxy = row(containers, pod="client", container="istio-proxy")
    assert (proxy["init"], proxy["state"], proxy["run_as_user"]) == (True, "running", 1337)
    done = row(containers, pod="client", container="istio-init")
    assert (done["state"], done["reason"], done["exit_code"]) == ("terminated", "Completed", 0)


# --- workloads ----------------------------------------------------------------------------------


def test_a_deployment_counts_its_pods_and_its_proxies(recorded: Recorded) -> None:
    facts = recorded("not-injected-annotation")
    workload = row(facts["workloads"], workload="details-v1")
    assert (workload["kind"], workload["pods"], workload["proxied"]) == ("Deployment", 1, 0)
    assert (workload["replicas_wanted"], workload["replicas_ready"]) == (1, 1)
    assert (workload["app"], workload["version"]) == ("details", "v1")
    assert workload["labels"]["sidecar.istio.io/inject"] == "false"
    assert workload["service_account"] == "details"
    assert row(facts["workloads"], workload="reviews-v2")["proxied"] == 1


def test_the_template_of_a_deployment_shows_a_wrong_proxy_setting(recorded: Recorded) -> None:
    workload = row(recorded("bootstrap-wrong-discovery")["workloads"], workload="ratings-v1")
    assert workload["annotations"]["proxy.istio.io/config"] == (
        "discoveryAddress: istiod.istio-sytem.svc:15012"
    )


def test_a_deployment_scaled_to_zero_wants_none(recorded: Recorded) -> None:
    workload = row(recorded("istiod-down")["workloads"], workload="istiod")
    assert (workload["replicas_wanted"], workload["replicas_ready"], workload["pods"]) == (0, 0, 0)


def test_a_deployment_says_why_its_pods_are_refused(recorded: Recorded) -> None:
    facts = recorded("istiod-down")
    workload = row(facts["workloads"], workload="details-v1")
    assert (workload["replicas_wanted"], workload["pods"]) == (1, 0)
    assert 'no endpoints available for service "istiod"' in workload["problem"]
    assert pd.isna(row(facts["workloads"], workload="reviews-v1")["problem"])


def test_replica_sets_of_deployments_are_no_workloads(recorded: Recorded) -> None:
    kinds = recorded("garden-healthy")["workloads"]["kind"].value_counts().to_dict()
    assert kinds == {"Deployment": 5, "DaemonSet": 2, "Pod": 1}


def test_a_daemon_set_wants_what_is_scheduled(recorded: Recorded) -> None:
    workload = row(recorded("garden-healthy")["workloads"], workload="ztunnel")
    assert (workload["replicas_wanted"], workload["replicas_ready"], workload["pods"]) == (1, 1, 1)


def test_a_status_update_is_no_change(recorded: Recorded) -> None:
    workload = row(recorded("healthy")["workloads"], workload="details-v1")
    # Its status was written at 02:34:03.
    assert workload["changed"] == moment("02:33:58")


# --- services and what is behind them -----------------------------------------------------------


def test_a_service_port_has_its_declared_protocol(recorded: Recorded) -> None:
    services = recorded("market-healthy")["services"]
    assert row(services, service="market-gw-istio", port=15021)["protocol"] == "tcp"
    assert row(services, service="stall")["protocol"] == "http"
    assert row(services, service="istiod", port=15012)["protocol"] == "https"
    gateway = row(services, service="istio-ingressgateway", port=80)
    assert (gateway["protocol"], gateway["target_port"]) == ("http2", "8080")
    assert gateway["host"] == "istio-ingressgateway.istio-system.svc.cluster.local"


def test_a_port_named_for_its_purpose_is_sniffed(recorded: Recorded) -> None:
    mail = row(recorded("server-first-undeclared")["services"], service="mail")
    assert (mail["port"], mail["port_name"], mail["protocol"]) == (2525, "mail", "auto")


def test_a_port_named_grpc_is_taken_for_grpc(recorded: Recorded) -> None:
    assert row(recorded("port-name-grpc")["services"], service="ratings")["protocol"] == "grpc"


@pytest.mark.parametrize(
    ("port", "name", "transport", "app_protocol", "expected"),
    [
        (80, "http-web", "TCP", None, "http"),
        (80, "HTTP2-web", "TCP", None, "http2"),
        (80, "grpc-web-admin", "TCP", None, "grpc-web"),
        (80, "grpc-admin", "TCP", None, "grpc"),
        (80, "http", "TCP", "tcp", "tcp"),
        (80, "http", "TCP", "kubernetes.io/h2c", "http2"),
        (80, "http", "TCP", "kubernetes.io/wss", "https"),
        (80, "http", "TCP", "example.com/own", "auto"),
        (53, "http", "UDP", None, "udp"),
        (3306, "database", "TCP", None, "tcp"),
        (3306, "http", "TCP", None, "http"),
        (80, None, "TCP", None, "auto"),
        (80, "httpx", "TCP", None, "auto"),
    ],
)
def test_the_protocol_is_what_istio_takes_the_port_for(
    port: int, name: str | None, transport: str, app_protocol: str | None, expected: str
) -> None:
    assert declared_protocol(port, name, transport, app_protocol) == expected


def test_a_headless_service_has_no_address(recorded: Recorded) -> None:
    facts = recorded("healthy-loaded")
    services = facts["services"]
    assert services.loc[services["headless"], "service"].tolist() == ["search-peers"]
    assert row(services, service="search-peers")["cluster_ip"] == "None"


def test_a_service_without_ports_still_has_a_row(altered: Altered) -> None:
    def change(listed: list[Any]) -> None:
        spec = named(listed, "ratings")["spec"]
        del spec["ports"]
        spec |= {"type": "ExternalName", "externalName": "ratings.example.com"}

    service = row(altered("healthy", {"services": change})["services"], service="ratings")
    assert pd.isna(service["port"])
    assert service["external_name"] == "ratings.example.com"


def test_export_to_is_read_from_the_annotation(altered: Altered) -> None:
    def change(listed: list[Any]) -> None:
        annotations = named(listed, "ratings")["metadata"]["annotations"]
        annotations["networking.istio.io/exportTo"] = "., legacy"

    services = altered("healthy", {"services": change})["services"]
    assert row(services, service="ratings")["export_to"] == (".", "legacy")
    assert row(services, service="details")["export_to"] == ()


def test_an_endpoint_that_is_not_ready_is_listed_as_such(recorded: Recorded) -> None:
    endpoints = recorded("not-ready-endpoint")["service_endpoints"]
    ratings = row(endpoints, service="ratings")
    assert (ratings["ready"], ratings["serving"], ratings["terminating"]) == (False, False, False)
    assert (ratings["port"], ratings["target_port"]) == (9080, 9080)
    assert ratings["pod"] == "ratings-v1-f4c64d64b-l852w"
    others = endpoints[endpoints["service"] != "ratings"]
    assert others["ready"].all()


def test_the_port_of_an_endpoint_is_the_services_own(recorded: Recorded) -> None:
    endpoints = recorded("healthy")["service_endpoints"]
    webhook = row(endpoints, service="istiod", port_name="https-webhook")
    assert (webhook["port"], webhook["target_port"]) == (443, 15017)


def test_a_service_whose_selector_fits_nothing_has_no_endpoints(recorded: Recorded) -> None:
    facts = recorded("service-selector-wrong")
    behind = set(facts["service_endpoints"]["service"])
    bookinfo = facts["services"].query("namespace == 'bookinfo'")["service"]
    assert set(bookinfo) - behind == {"details"}


def test_without_services_the_port_of_an_endpoint_is_unknown(altered: Altered) -> None:
    facts = altered("healthy", forget=("services",))
    ratings = row(facts["service_endpoints"], service="ratings")
    assert pd.isna(ratings["port"])
    assert ratings["target_port"] == 9080
    assert [str(gap) for gap in facts.gaps("service_endpoints")] == [
        "list services: was never asked"
    ]


def test_conditions_that_are_not_stated_mean_ready(altered: Altered) -> None:
    def change(listed: list[Any]) -> None:
        named(listed, "ratings")["endpoints"][0]["conditions"] = {}

    endpoints = altered("healthy", {"endpointslices": change})["service_endpoints"]
    ratings = row(endpoints, service="ratings")
    assert (ratings["ready"], ratings["serving"], ratings["terminating"]) == (True, True, False)


# --- injection ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("selector", "labels", "expected"),
    [
        (None, {}, True),
        ({}, {"a": "b"}, True),
        ({"matchLabels": {"a": "b"}}, {"a": "b", "c": "d"}, True),
        ({"matchLabels": {"a": "b"}}, {}, False),
        ({"matchExpressions": [{"key": "a", "operator": "In", "values": ["b"]}]}, {"a": "b"}, True),
        ({"matchExpressions": [{"key": "a", "operator": "In", "values": ["b"]}]}, {}, False),
        ({"matchExpressions": [{"key": "a", "operator": "NotIn", "values": ["b"]}]}, {}, True),
        (
            {"matchExpressions": [{"key": "a", "operator": "NotIn", "values": ["b"]}]},
            {"a": "b"},
            False,
        ),
        ({"matchExpressions": [{"key": "a", "operator": "Exists"}]}, {"a": ""}, True),
        ({"matchExpressions": [{"key": "a", "operator": "Exists"}]}, {}, False),
        ({"matchExpressions": [{"key": "a", "operator": "DoesNotExist"}]}, {}, True),
        ({"matchExpressions": [{"key": "a", "operator": "DoesNotExist"}]}, {"a": ""}, False),
        (
            {"matchExpressions": [{"key": "a", "operator": "Gt", "values": ["1"]}]},
            {"a": "2"},
            False,
        ),
        (
            {
                "matchLabels": {"a": "b"},
                "matchExpressions": [{"key": "c", "operator": "DoesNotExist"}],
            },
            {"a": "b", "c": "d"},
            False,
        ),
    ],
)
def test_a_selector_selects_as_kubernetes_does(
    selector: Any, labels: dict[str, str], expected: bool
) -> None:
    assert selects(selector, labels) is expected


def test_a_namespace_names_the_webhook_that_injects_there(recorded: Recorded) -> None:
    namespaces = recorded("healthy")["namespaces"]
    shop = row(namespaces, namespace="bookinfo")
    assert shop["injector"] == "istio-revision-tag-default/namespace.sidecar-injector.istio.io"
    assert (shop["injection"], shop["injector_revision"]) == ("enabled", "default")
    assert namespaces["injector"].notna().sum() == 1


def test_a_revision_that_nobody_serves_injects_nowhere(recorded: Recorded) -> None:
    facts = recorded("revision-unknown")
    namespace = row(facts["namespaces"], namespace="orders")
    assert namespace["revision"] == "canary"
    assert pd.isna(namespace["injector"])
    pod = row(facts["injection"], namespace="orders")
    assert (pod["injected"], pod["wanted"]) == (False, False)
    assert pd.isna(pod["opted_out_by"])
    assert pod["reason"] == (
        "It has no proxy: istio.io/rev=canary is asked for, and no webhook serves that. "
        "The webhooks belong to revision default."
    )


def test_system_namespaces_are_never_injected_whatever_their_labels(altered: Altered) -> None:
    def change(listed: list[Any]) -> None:
        named(listed, "kube-system")["metadata"]["labels"]["istio-injection"] = "enabled"

    namespaces = altered("healthy", {"namespaces": change})["namespaces"]
    namespace = row(namespaces, namespace="kube-system")
    assert namespace["injection"] == "enabled"
    assert pd.isna(namespace["injector"])


def test_an_ambient_namespace_says_so(recorded: Recorded) -> None:
    facts = recorded("garden-healthy")
    namespace = row(facts["namespaces"], namespace="garden")
    assert (namespace["ambient"], pd.isna(namespace["injector"])) == ("ambient", True)
    pods = facts["injection"].query("namespace == 'garden'")
    assert set(pods["reason"]) == {
        "It has no proxy and needs none: ztunnel takes its traffic, in ambient mode."
    }


def test_every_webhook_of_istio_is_listed_with_whom_it_calls(recorded: Recorded) -> None:
    webhooks = recorded("healthy")["webhooks"]
    assert webhooks.groupby(["kind", "purpose"]).size().to_dict() == {
        ("mutating", "injection"): 8,
        ("validating", "validation"): 2,
    }
    assert set(webhooks["service"] + "." + webhooks["service_namespace"]) == {"istiod.istio-system"}
    assert webhooks["service_exists"].all()
    assert set(webhooks["service_port"]) == {443}
    assert set(webhooks["ca_subject"]) == {"O=cluster.local"}
    assert set(webhooks["failure_policy"]) == {"Fail"}
    deactivated = webhooks[webhooks["deactivated"]]["configuration"]
    assert deactivated.tolist() == ["istio-sidecar-injector"] * 4
    tags = webhooks.drop_duplicates("configuration").set_index("configuration")["tag"]
    assert tags["istio-revision-tag-default"] == "default"
    assert pd.isna(tags["istio-sidecar-injector"])


def test_the_authority_of_a_webhook_ends_with_the_certificate(recorded: Recorded) -> None:
    ends = recorded("healthy")["webhooks"]["ca_not_after"]
    assert set(ends) == {pd.Timestamp("2036-11-20T02:33:37Z")}


def test_webhooks_of_others_are_left_out(altered: Altered) -> None:
    def change(listed: list[Any]) -> None:
        named(listed, "istio-sidecar-injector")["webhooks"][0]["name"] = "inject.example.com"

    facts = altered("healthy", {"mutatingwebhookconfigurations": change})
    assert len(facts["webhooks"]) == 9


def test_a_webhook_that_calls_a_missing_service_is_found_out(altered: Altered) -> None:
    def change(listed: list[Any]) -> None:
        client = named(listed, "istio-revision")["webhooks"][0]["clientConfig"]
        client["service"]["name"] = "istiod-old"
        client["caBundle"] = "bm8gY2VydGlmaWNhdGU="

    webhook = altered("healthy", {"mutatingwebhookconfigurations": change})["webhooks"].iloc[0]
    assert not webhook["service_exists"]
    assert pd.isna(webhook["ca_subject"])


def test_a_webhook_at_a_url_calls_no_service(altered: Altered) -> None:
    def change(listed: list[Any]) -> None:
        for webhook in named(listed, "istio-revision")["webhooks"]:
            webhook["clientConfig"] = {"url": "https://istiod.example.com:15017/inject"}

    webhook = altered("healthy", {"mutatingwebhookconfigurations": change})["webhooks"].iloc[0]
    assert webhook["url"] == "https://istiod.example.com:15017/inject"
    assert webhook["purpose"] == "injection"
    assert pd.isna(webhook["service_exists"])
    assert pd.isna(webhook["service_port"])


def test_without_services_nobody_says_that_one_is_missing(altered: Altered) -> None:
    assert altered("healthy", forget=("services",))["webhooks"]["service_exists"].isna().all()


def test_a_label_on_the_pod_keeps_the_proxy_out(recorded: Recorded) -> None:
    pod = row(recorded("not-injected-annotation")["injection"], workload="details-v1")
    assert (pod["injected"], pod["wanted"]) == (False, False)
    assert pod["opted_out_by"] == "label sidecar.istio.io/inject=false on the pod"


def _leave(pod: dict[str, Any]) -> None:
    """Change nothing more."""


def _annotate(pod: dict[str, Any]) -> None:
    pod["metadata"]["annotations"] = {"sidecar.istio.io/inject": "false"}


def _annotate_and_label(pod: dict[str, Any]) -> None:
    _annotate(pod)
    pod["metadata"]["labels"]["sidecar.istio.io/inject"] = "true"


def _on_the_host(pod: dict[str, Any]) -> None:
    pod["spec"]["hostNetwork"] = True


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (_annotate, "annotation sidecar.istio.io/inject=false on the pod"),
        (_annotate_and_label, None),
        (_on_the_host, "hostNetwork"),
        (_leave, None),
    ],
)
def test_a_pod_that_a_webhook_selects_can_still_opt_out(
    altered: Altered, change: Callable[[dict[str, Any]], None], expected: str | None
) -> None:
    def without_proxy(listed: list[Any]) -> None:
        pod = named(listed, "ratings")
        del pod["spec"]["initContainers"]
        change(pod)

    pod = row(altered("healthy", {"pods": without_proxy})["injection"], workload="ratings-v1")
    assert (pod["injected"], pod["wanted"]) == (False, True)
    if expected is None:
        assert pd.isna(pod["opted_out_by"])
        assert "although istio-revision-tag-default" in pod["reason"]
    else:
        assert pod["opted_out_by"] == expected
        assert expected in pod["reason"]


def test_a_namespace_can_opt_out(altered: Altered) -> None:
    def change(listed: list[Any]) -> None:
        named(listed, "legacy")["metadata"]["labels"]["istio-injection"] = "disabled"

    pod = row(altered("healthy", {"namespaces": change})["injection"], namespace="legacy")
    assert pod["opted_out_by"] == "namespace label istio-injection=disabled"


@pytest.mark.parametrize("unasked", ["mutatingwebhookconfigurations", "namespaces"])
def test_whether_a_sidecar_is_wanted_is_unknown_without_webhooks_or_namespaces(
    altered: Altered, unasked: str
) -> None:
    facts = altered("healthy", forget=(unasked,))
    pod = row(facts["injection"], pod="legacy-client")
    assert pd.isna(pod["wanted"])
    assert pod["reason"].endswith("could not be read.")
    assert facts.gaps("injection")


def test_without_any_webhook_the_reason_is_just_that(altered: Altered) -> None:
    facts = altered("healthy", {"mutatingwebhookconfigurations": {"items": []}})
    pod = row(facts["injection"], pod="legacy-client")
    assert pod["wanted"] is False
    assert pod["reason"] == "It has no proxy: the cluster has no webhook of Istio that injects."


@pytest.mark.parametrize("recording", ["healthy", "healthy-loaded", "market-healthy"])
def test_istioctl_says_the_same_about_who_would_be_injected(
    recorded: Recorded, shared: Path, recording: str
) -> None:
    injection = recorded(recording)["injection"]
    with zipfile.ZipFile(shared / "golden" / f"{recording}.zip") as golden:
        files = [name for name in golden.namelist() if name.startswith("check-inject/")]
        for name in files:
            pod = row(injection, pod=name.removesuffix(".txt").partition(".")[2])
            assert pod["wanted"] == ("✔" in golden.read(name).decode()), name
    assert files


# --- configuration ------------------------------------------------------------------------------


def test_an_object_that_was_not_listed_is_taken_from_what_istiod_holds(recorded: Recorded) -> None:
    config = recorded("envoyfilter-rejected")["istio_config"]
    found = row(config, kind="EnvoyFilter")
    assert (found["namespace"], found["name"]) == ("bookinfo", "broken-lua")
    assert found["api_version"] == "networking.istio.io/v1alpha3"
    assert found["question"].endswith(":15014/debug/configz")
    assert list(found["spec"]) == ["configPatches"]
    assert config["kind"].value_counts().to_dict() == {
        "VirtualService": 2,
        "DestinationRule": 1,
        "Gateway": 1,
        "EnvoyFilter": 1,
    }


def test_what_istiod_derives_itself_is_no_configuration(altered: Altered) -> None:
    facts = altered("market-healthy", forget=("gateways", "virtualservices"))
    config = facts["istio_config"]
    assert not config["name"].str.contains("~").any()
    assert config.query("kind == 'Gateway'")["name"].tolist() == ["market-gw"]
    assert facts.gaps("istio_config") == ()


def test_without_istiod_a_kind_that_was_never_listed_is_a_gap(altered: Altered) -> None:
    facts = altered("healthy", forget=("virtualservices", "/debug/configz"))
    assert "VirtualService" not in facts["istio_config"]["kind"].tolist()
    assert [str(gap) for gap in facts.gaps("istio_config")] == [
        "list virtualservices.networking.istio.io: was never asked"
    ]


def test_what_istiod_holds_can_be_no_list(altered: Altered) -> None:
    facts = altered("healthy", {"/debug/configz": {"error": "no such page"}})
    assert len(facts["istio_config"]) == 4
    assert [gap.state for gap in facts.gaps("istio_config")] == ["unreadable"]


def test_a_changed_object_has_its_newest_time(recorded: Recorded) -> None:
    found = row(recorded("healthy")["istio_config"], kind="VirtualService", name="reviews")
    assert found["created"] == moment("02:33:58")
    assert found["changed"] == moment("02:48:11")
    assert found["generation"] == 7
    assert pd.isna(found["messages"])


def test_gateways_of_both_apis_are_told_apart_by_group(recorded: Recorded) -> None:
    config = recorded("market-healthy")["istio_config"]
    gateway = row(config, kind="Gateway")
    assert gateway["group"] == "gateway.networking.k8s.io"
    assert gateway["observed_generation"] == 1
    assert pd.isna(gateway["messages"]), "Conflicted is False, which is as it should be"
    assert {one.get("about") for one in gateway["conditions"]} == {None, "listener http"}
    classes = config.query("kind == 'GatewayClass'")
    assert classes["namespace"].isna().all()
    assert sorted(classes["name"]) == ["istio", "istio-remote", "istio-waypoint"]
    assert (
        row(recorded("healthy")["istio_config"], kind="Gateway")["group"] == "networking.istio.io"
    )


def test_a_route_that_may_not_use_its_backend_says_so(recorded: Recorded) -> None:
    route = row(recorded("backend-not-permitted")["istio_config"], kind="HTTPRoute")
    assert route["messages"] == (
        "ResolvedRefs is False of parent market-gw: backendRef stock/depot not accessible to a "
        'HTTPRoute in namespace "market" (missing a ReferenceGrant?)'
    )


def test_a_route_that_no_gateway_took_has_no_conditions(recorded: Recorded) -> None:
    route = row(recorded("httproute-parent-wrong")["istio_config"], kind="HTTPRoute")
    assert route["conditions"] == ()
    assert pd.isna(route["observed_generation"])


def test_messages_of_the_analysis_in_a_status_are_shown(altered: Altered) -> None:
    message = {
        "type": {"code": "IST0101", "name": "ReferencedResourceNotFound"},
        "level": "ERROR",
        "documentationUrl": "https://istio.io/latest/docs/reference/config/analysis/ist0101/",
    }

    def change(listed: list[Any]) -> None:
        listed[0]["status"] = {"observedGeneration": "3", "validationMessages": [message]}

    found = row(
        altered("healthy", {"virtualservices": change})["istio_config"],
        kind="VirtualService",
        name="bookinfo",
    )
    assert found["messages"].startswith("IST0101 ReferencedResourceNotFound ERROR (https://")
    assert found["observed_generation"] == 3


# --- mesh settings ------------------------------------------------------------------------------


def settings(facts: Facts) -> dict[str, str]:
    """Return the settings of the only istiod there is."""
    frame = facts["mesh_settings"]
    assert len(set(frame["istiod"])) == 1
    return dict(zip(frame["setting"], frame["value"], strict=True))


def test_settings_are_paths_with_texts(recorded: Recorded) -> None:
    found = settings(recorded("healthy"))
    assert found["outboundTrafficPolicy.mode"] == "ALLOW_ANY"
    assert found["defaultConfig.discoveryAddress"] == "istiod.istio-system.svc:15012"
    assert found["enableAutoMtls"] == "true"
    assert found["proxyListenPort"] == "15001"
    assert found["defaultServiceExportTo"] == '["*"]'
    assert found["inboundTrafficPolicy"] == "{}"
    assert set(recorded("healthy")["mesh_settings"]["istiod"]) == {"istiod-849979b494-z8nb9"}


def test_without_an_istiod_the_config_map_speaks(recorded: Recorded) -> None:
    facts = recorded("istiod-down")
    found = settings(facts)
    assert set(facts["mesh_settings"]["istiod"]) == {"configmap/istio-system/istio"}
    assert found["defaultConfig.holdApplicationUntilProxyStarts"] == "true"
    assert found["rootNamespace"] == "istio-system"
    assert "outboundTrafficPolicy.mode" not in found
    assert facts.gaps("mesh_settings") == ()


BOMB = "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n"


@pytest.mark.parametrize("text", [BOMB, "a: [", "- a", "7", "[" * 3000, "a: 2026-13-45", "!!x y"])
def test_a_config_map_that_is_no_mesh_config_is_a_gap(altered: Altered, text: str) -> None:
    def change(listed: list[Any]) -> None:
        (config,) = (item for item in listed if item["metadata"]["name"] == "istio")
        config["data"]["mesh"] = text

    facts = altered("istiod-down", {"configmaps": change})
    assert facts["mesh_settings"].empty
    states = {gap.state for gap in facts.gaps("mesh_settings")}
    assert states == {"not asked", "unreadable"}


# --- secrets, service accounts, nodes, network policies -----------------------------------------


def test_a_secret_shows_its_certificate_and_never_a_value(recorded: Recorded) -> None:
    secrets = recorded("market-healthy")["secrets"]
    shop = row(secrets, secret="shop-cert")  # noqa: S106  the name of a Secret
    assert (shop["type"], shop["keys"]) == ("kubernetes.io/tls", ("tls.crt", "tls.key"))
    assert shop["certificate_subject"] == "CN=shop.example.com"
    assert shop["certificate_sans"] == ("shop.example.com",)
    assert shop["not_before"] == moment("03:34:56")
    assert shop["not_after"] == pd.Timestamp("2027-09-19T03:34:56Z")
    assert pd.isna(shop["problem"])
    text = secrets.to_csv()
    assert "BEGIN CERTIFICATE" not in text
    assert "LS0t" not in text
    assert "REDACTED" not in text


def test_a_missing_secret_has_no_row(recorded: Recorded) -> None:
    names = recorded("gateway-secret-missing")["secrets"]["secret"].tolist()
    assert names == ["istio-ca-secret"]


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("", "tls.crt: it is empty"),
        ("bm8gY2VydGlmaWNhdGU=", "tls.crt: it holds no PEM certificate"),
        ("%%%", "tls.crt: "),
        (7, "tls.crt: "),
    ],
)
def test_a_secret_says_why_its_certificate_cannot_be_read(
    altered: Altered, value: Any, problem: str
) -> None:
    def change(listed: list[Any]) -> None:
        named(listed, "shop-cert")["data"]["tls.crt"] = value

    secrets = altered("market-healthy", {"secrets": change})["secrets"]
    shop = row(secrets, secret="shop-cert")  # noqa: S106  the name of a Secret
    assert shop["problem"].startswith(problem)
    assert pd.isna(shop["not_after"])


def test_every_namespace_has_its_service_accounts(recorded: Recorded) -> None:
    accounts = recorded("healthy")["service_accounts"]
    assert len(accounts) == 51
    mine = accounts.query("namespace == 'bookinfo'")["service_account"]
    assert {"default", "details", "productpage", "ratings", "reviews"} <= set(mine)


def test_a_node_has_its_address_and_version(recorded: Recorded) -> None:
    node = row(recorded("healthy")["nodes"], node="node1")
    assert (node["address"], node["ready"], node["kubelet_version"]) == (
        "10.244.0.1",
        True,
        "v1.36.2",
    )
    assert pd.isna(node["zone"])


def test_a_network_policy_keeps_its_selector(altered: Altered) -> None:
    spec = {"podSelector": {"matchLabels": {"app": "ratings"}}, "policyTypes": ["Ingress"]}
    policy = {"metadata": {"namespace": "bookinfo", "name": "closed"}, "spec": spec}
    facts = altered("healthy", {"networkpolicies": {"items": [policy]}})
    found = row(facts["network_policies"], policy="closed")
    assert (found["selector"], found["types"]) == (spec["podSelector"], ("Ingress",))
