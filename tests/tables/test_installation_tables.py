"""Tables about how Istio was installed and how pods start, on recordings and altered ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from tests.alteration import Altered
from tests.conftest import facts_of


def test_every_namespace_was_given_the_root_that_signed_istiods_certificate() -> None:
    facts = facts_of("healthy")
    anchors = facts["trust_anchors"]
    ports = facts["istiod_ports"]
    ((signed_by,),) = ports[ports["port"] == 15012]["chain_keys"]

    assert set(anchors["namespace"]) == {"bookinfo", "default", "istio-system", "legacy", "outside"}
    assert set(anchors["keys"]) == {(signed_by,)}
    assert anchors["problem"].isna().all()
    assert set(facts["webhooks"]["ca_keys"]) == {(signed_by,)}


def test_a_root_that_is_no_certificate_is_said(tmp_path: Path) -> None:
    """Altered: the ConfigMap with the root of legacy holds other words."""

    def other(items: list[Any]) -> None:
        for one in items:
            place = (one["metadata"]["namespace"], one["metadata"]["name"])
            if place == ("legacy", "istio-ca-root-cert"):
                one["data"]["root-cert.pem"] = "soon"

    facts = Altered("healthy", tmp_path).objects("configmaps", other).facts()
    rows = facts["trust_anchors"].set_index("namespace")
    assert rows.loc["legacy", "problem"] == "it holds no PEM certificate"
    assert rows.loc["legacy", "keys"] == ()


def test_leases_say_who_leads() -> None:
    leases = facts_of("healthy")["leases"].set_index("lease")
    leader = leases.loc["istio-gateway-status-leader-default"]

    assert leader["holder"] == "istiod-849979b494-z8nb9"
    assert leader["duration_s"] == 30.0
    assert leader["renewed"] == pd.Timestamp("2026-11-23T02:49:09.090532Z")


def test_a_config_map_of_the_mesh_is_read_as_it_is_written() -> None:
    (row,) = facts_of("healthy")["mesh_config_maps"].to_dict("records")

    assert (row["config_map"], row["revision"]) == ("istio", "default")
    assert row["settings"]["defaultConfig.discoveryAddress"] == "istiod.istio-system.svc:15012"
    assert row["settings"]["enableTracing"] == "false"


def test_what_istio_init_said_is_a_table_of_its_own() -> None:
    log = facts_of("healthy")["init_log"]

    assert set(log["container"]) == {"istio-init"}
    assert log["message"].str.contains("Istio iptables environment", regex=False).any()


def test_limit_ranges_are_listed(tmp_path: Path) -> None:
    """Altered: bookinfo has a LimitRange."""
    limits = [{"type": "Container", "max": {"cpu": "500m"}}]
    altered = Altered("healthy", tmp_path)
    altered.add("limitranges", "small", "bookinfo", "2026-11-23T02:40:00Z", spec={"limits": limits})
    (row,) = altered.facts()["limit_ranges"].to_dict("records")

    assert (row["namespace"], row["limit_range"], row["limits"]) == (
        "bookinfo",
        "small",
        tuple(limits),
    )


def test_the_events_of_a_pod_name_its_container() -> None:
    events = facts_of("healthy")["events"]
    started = events[(events["name"] == "client") & (events["reason"] == "Started")]

    assert set(started["container"]) == {"istio-init", "istio-proxy", "client"}
    assert events[events["kind"] == "ReplicaSet"]["container"].isna().all()


def test_containers_tell_a_native_sidecar_and_what_the_kubelet_probes_itself() -> None:
    containers = facts_of("healthy")["containers"]
    rows = {
        row["container"]: row
        for row in containers[containers["pod"] == "client"].to_dict("records")
    }
    proxy = rows["istio-proxy"]

    assert (bool(proxy["init"]), proxy["position"], proxy["restart_policy"]) == (True, 1, "Always")
    assert proxy["direct_probe_ports"] == (15021,)
    assert rows["istio-init"]["capabilities"] == ("NET_ADMIN", "NET_RAW")
    assert rows["client"]["direct_probe_ports"] == ()


def test_a_proxy_that_has_started_waits_for_nothing() -> None:
    proxies = facts_of("healthy")["proxies"]
    assert set(proxies["waits_for"]) == {()}
