"""The tables of istiod and of Envoy, beyond what istioctl prints: see test_istioctl_parity."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from meshnb.errors import NotRecorded
from meshnb.sources import open_source
from meshnb.sources.base import (
    Answer,
    HttpQuestion,
    ProbeQuestion,
    Question,
    parse_time,
)
from meshnb.tables import TABLES, Facts
from meshnb.tables.x509 import read_certificates, read_first_certificate

Recorded = Callable[[str], Facts]

TABLES_HERE = (
    "istiod_ports",
    "istiod_metrics",
    "istiod_log",
    "proxy_status",
    "proxies",
    "listeners",
    "routes",
    "clusters",
    "endpoints",
    "certificates",
    "access_log",
    "proxy_log",
)


def test_a_refused_update_is_an_error_with_its_reason_and_age(recorded: Recorded) -> None:
    status = recorded("envoyfilter-rejected")["proxy_status"]
    refused = status[status["sync"] == "ERROR"]
    assert set(refused["xds"]) == {"LDS"}
    assert refused["error"].str.contains("script load error").all()
    assert (refused["stale_s"] > 0).all()
    assert status.loc[status["sync"] != "ERROR", ["error", "stale_s"]].isna().all(axis=None)


def test_a_refused_listener_keeps_its_old_chains_and_says_why(recorded: Recorded) -> None:
    listeners = recorded("envoyfilter-rejected")["listeners"]
    inbound = listeners[listeners["error"].notna()]
    assert set(inbound["listener"]) == {"virtualInbound"}
    assert set(inbound["state"]) == {"active", "refused"}
    refused = inbound[inbound["state"] == "refused"]
    assert not refused["proxy"].duplicated().any()
    assert (refused["port"] == 15006).all()
    assert inbound.loc[inbound["state"] == "active", "refused_at"].notna().all()


def test_a_listener_that_istiod_took_away_is_draining(recorded: Recorded) -> None:
    listeners = recorded("gateway-selector-wrong")["listeners"]
    gateway = listeners[listeners["proxy"].str.startswith("istio-ingressgateway")]
    assert set(gateway.loc[gateway["port"] == 8080, "state"]) == {"draining"}


def test_a_missing_gateway_secret_is_warming_and_no_certificate(recorded: Recorded) -> None:
    certificates = recorded("gateway-secret-missing")["certificates"]
    missing = certificates[certificates["status"] == "WARMING"].iloc[0]
    assert missing["resource_name"].startswith("kubernetes://")
    assert not missing["valid_cert"]
    assert missing["problem"] == "the proxy has not received a certificate"
    assert pd.isna(missing["type"])


def test_a_route_to_a_missing_subset_names_a_cluster_that_is_not_there(recorded: Recorded) -> None:
    facts = recorded("subset-missing")
    clusters = set(zip(facts["clusters"]["proxy"], facts["clusters"]["cluster"], strict=True))
    routes = facts["routes"]
    outbound = routes[routes["state"] == "dynamic"].explode("clusters").dropna(subset="clusters")
    missing = {
        cluster
        for proxy, cluster in zip(outbound["proxy"], outbound["clusters"], strict=True)
        if (proxy, cluster) not in clusters
    }
    assert len({cluster.split("|")[2] for cluster in missing}) == 1
    assert all(cluster.startswith("outbound|") for cluster in missing)


def test_clusters_say_who_speaks_mtls(recorded: Recorded) -> None:
    """A DestinationRule with tls mode DISABLE takes the automatic mTLS away from its host alone."""
    healthy = recorded("healthy")["clusters"]
    disabled = recorded("mtls-client-disable")["clusters"]
    ports = [frame[frame["port"] == "9080"] for frame in (healthy, disabled)]
    plain = [set(frame.loc[frame["tls"] == "none", "service_fqdn"]) for frame in ports]
    automatic = [frame[frame["tls"] == "auto"] for frame in ports]
    assert len(plain[1] - plain[0]) == 1
    assert automatic[0]["sni"].str.startswith("outbound_.9080_").all()
    assert automatic[0]["sans"].map(lambda names: names[0].startswith("spiffe://")).all()
    assert not set(automatic[1]["service_fqdn"]) & (plain[1] - plain[0])


def test_inbound_chains_say_whether_clients_need_a_certificate(recorded: Recorded) -> None:
    strict = recorded("mtls-strict-legacy-client")["listeners"]
    healthy = recorded("healthy")["listeners"]
    for frame, plain in ((strict, False), (healthy, True)):
        inbound = frame[(frame["destination_port"] == 9080) & (frame["state"] == "active")]
        assert len(inbound) > 0
        assert (inbound["tls"] == "mutual").any()
        assert (inbound["requires_client_certificate"] == (inbound["tls"] == "mutual")).all()
        assert (inbound["tls"] == "none").any() == plain


def test_injected_faults_stand_in_the_route(recorded: Recorded) -> None:
    routes = recorded("fault-left-behind")["routes"]
    faulty = routes[routes["fault"].notna()]
    assert set(faulty["fault"].map(lambda fault: fault["abort"]["http_status"])) == {503}
    assert recorded("healthy")["routes"]["fault"].isna().all()


def test_routes_split_by_weight_and_retry(recorded: Recorded) -> None:
    routes = recorded("healthy")["routes"]
    weighted = routes[routes["clusters"].map(len) > 1]
    assert set(weighted["weights"]) == {(80, 20)}
    assert (weighted["retries"] == 2).all()
    assert (weighted["timeout_ms"] == 0).all()
    # The first route of that host takes one user by a header, the second everybody else.
    assert (weighted["position"] == 1).all()
    first = routes[(routes["headers"].map(len) > 0) & (routes["position"] == 0)]
    assert len(first) == len(weighted)


def test_endpoints_know_the_pod_behind_an_address(recorded: Recorded) -> None:
    facts = recorded("healthy")
    pods = facts["pods"].set_index("pod")
    found = facts["endpoints"].dropna(subset="pod")
    assert len(found) > 0
    assert (found["pod"].map(pods["address"]) == found["address"]).all()
    assert not found["pod"].map(pods["host_network"]).any()
    assert facts["endpoints"]["requests"].max() > 0


@pytest.mark.parametrize(
    ("parts", "printed"),
    [
        ({"region": "r", "zone": "z", "sub_zone": "s"}, "r/z/s"),
        ({"region": "r", "zone": "z"}, "r/z"),
        ({"region": "r", "sub_zone": "s"}, "r"),
        ({"zone": "z", "sub_zone": "s"}, "/z/s"),
        ({"sub_zone": "s"}, None),
        ({}, None),
    ],
)
def test_a_locality_is_written_as_istioctl_does(
    parts: dict[str, str], printed: str | None, tmp_path: Path
) -> None:
    """A part counts only beside the one above it; a zone does without its region."""
    endpoint = {"address": {"socket_address": {"address": "192.0.2.1", "port_value": 80}}}
    assigned = {
        "cluster_name": "outbound|80||a.b",
        "endpoints": [{"locality": parts, "lb_endpoints": [{"endpoint": endpoint}]}],
    }
    dumped = {
        "@type": "type.googleapis.com/envoy.admin.v3.EndpointsConfigDump",
        "dynamic_endpoint_configs": [{"endpoint_config": assigned}],
    }
    file = tmp_path / "dump.json"
    file.write_text(json.dumps({"configs": [dumped]}))
    (found,) = Facts(open_source(file))["endpoints"]["locality"]
    assert (None if pd.isna(found) else found) == printed


def test_every_proxy_has_one_row_whether_it_answers_or_not(recorded: Recorded) -> None:
    facts = recorded("healthy")
    proxies = facts["proxies"]
    assert sorted(proxies["proxy"]) == sorted(facts["pods"]["proxy"].dropna())
    assert proxies[["answered", "ready"]].all(axis=None)
    assert set(proxies["kind"]) == {"sidecar", "gateway"}
    assert set(proxies["istio_version"]) == {"1.30.3"}
    assert set(proxies["envoy_version"]) == {"1.40.0"}
    assert set(proxies["trust_domain"]) == {"cluster.local"}
    assert len(set(proxies["istiod"])) == 1
    # Envoy tells its uptime in whole seconds.
    assert (proxies["connected_at"] > proxies["started"] - pd.Timedelta(seconds=1)).all()


def test_a_proxy_that_looks_for_istiod_elsewhere_is_not_connected(recorded: Recorded) -> None:
    proxies = recorded("bootstrap-wrong-discovery")["proxies"]
    lost = proxies[proxies["istiod"].isna()]
    assert len(lost) == 1
    assert set(lost["state"]) == {"PRE_INITIALIZING"}
    assert not lost["ready"].any()
    assert not set(lost["discovery_address"]) & set(
        proxies.loc[proxies["istiod"].notna(), "discovery_address"]
    )


def test_without_istiod_the_proxies_still_answer(recorded: Recorded) -> None:
    facts = recorded("istiod-down")
    assert facts["proxies"]["answered"].all()
    assert facts["proxies"]["istiod"].isna().all()
    assert len(facts["proxy_status"]) == len(facts["istiod_metrics"]) == 0
    assert {gap.state for gap in facts.gaps("proxy_status")} == {"not asked"}


def test_istiod_answers_on_each_port_and_shows_its_certificate(recorded: Recorded) -> None:
    ports = recorded("healthy")["istiod_ports"].set_index("port")
    assert list(ports.index) == [8080, 15010, 15012, 15014, 15017, 9876]
    assert ports["answers"].all()
    assert ports["error"].isna().all()
    assert ports.loc[15012, "how"] == "TLSv1.3, h2"
    assert list(ports.loc[[8080, 15014], "how"]) == ["HTTP 200"] * 2
    secure = ports[ports["tls_version"].notna()]
    assert list(secure.index) == [15012, 15017]
    assert secure["sans"].map(lambda names: any(name.startswith("istiod.") for name in names)).all()
    assert secure["expires_in_days"].between(3640, 3650).all()


def test_metrics_of_istiod_are_not_those_of_the_cni_agent(recorded: Recorded) -> None:
    facts = recorded("garden-healthy")
    metrics = facts["istiod_metrics"]
    assert set(metrics["istiod"]) == set(facts["pods"].query("mesh == 'istiod'")["pod"])
    certificates = metrics[metrics["metric"] == "citadel_server_root_cert_expiry_seconds"]
    assert (certificates["value"] > 0).all()
    labelled = metrics[metrics["metric"] == "pilot_xds_pushes"]
    assert labelled["labels"].str.fullmatch(r'type="\w+"').all()


def test_a_ztunnel_is_no_envoy_and_no_gap(recorded: Recorded) -> None:
    facts = recorded("garden-healthy")
    for table in ("clusters", "listeners", "routes", "certificates"):
        assert not facts[table]["proxy"].str.startswith("ztunnel").any()
        assert facts.gaps(table) == ()


def test_no_table_is_unreadable_in_any_recording(recordings_folder: Path) -> None:
    from meshnb.sources import Bundle  # noqa: PLC0415  not facts_of: it would keep all recordings

    for name in ("healthy", "garden-healthy", "market-healthy", "istiod-down", "app-crash-loop"):
        facts = Facts(Bundle(recordings_folder / name, label=name))
        for table in TABLES_HERE:
            assert list(facts[table].columns) == list(TABLES[table].columns)
            assert [gap for gap in facts.gaps(table) if gap.state == "unreadable"] == []


def test_rows_name_a_question_that_the_source_has(recorded: Recorded) -> None:
    facts = recorded("healthy")
    for table in TABLES_HERE:
        for title in facts[table]["question"].unique():
            assert str(facts.question(title)) == title


class _OneAnswer:
    """A source with the answers that a test gives it, all taken at one moment."""

    label = "one answer"
    damage = ()
    now = parse_time("2026-11-23T03:00:00Z")

    def __init__(self, **bodies: tuple[Question, bytes]) -> None:
        self.bodies = dict(bodies.values())

    def questions(self) -> tuple[Question, ...]:
        return tuple(self.bodies)

    def ask(self, questions: Any) -> Iterator[Answer]:
        for question in questions:
            if question not in self.bodies:
                raise NotRecorded(f"never asked {question}")
            yield Answer(question, self.now, 1.0, 200, self.bodies[question])


DUMP = HttpQuestion("shop", "cart-1", 15000, "/config_dump")


@pytest.mark.parametrize("table", ["clusters", "listeners", "routes", "certificates"])
@pytest.mark.parametrize(
    "body",
    [
        b"[]",
        b"{}",
        b'"text"',
        b'{"configs": {"a": 1}}',
        b'{"configs": [null, 3, {"@type": 5}]}',
        b'{"configs": []}',
    ],
)
def test_a_dump_of_another_shape_is_a_gap_and_no_crash(table: str, body: bytes) -> None:
    facts = Facts(_OneAnswer(dump=(DUMP, body)))
    assert len(facts[table]) == 0
    assert "unreadable" in {gap.state for gap in facts.gaps(table)}


@pytest.mark.parametrize(
    ("table", "section", "part"),
    [
        ("clusters", "ClustersConfigDump", "dynamic_active_clusters"),
        ("listeners", "ListenersConfigDump", "dynamic_listeners"),
        ("routes", "RoutesConfigDump", "dynamic_route_configs"),
        ("certificates", "SecretsConfigDump", "dynamic_active_secrets"),
    ],
)
@pytest.mark.parametrize("entry", [None, 7, "text", [], {}, {"name": []}, {"active_state": 3}])
def test_an_odd_entry_costs_no_more_than_itself(
    table: str, section: str, part: str, entry: Any
) -> None:
    dump = {"configs": [{"@type": f"type.googleapis.com/envoy.admin.v3.{section}", part: [entry]}]}
    facts = Facts(_OneAnswer(dump=(DUMP, json.dumps(dump).encode())))
    assert len(facts[table]) <= 1


def test_more_than_twelve_route_configurations_are_in_the_order_that_go_sorts_them_in() -> None:
    """The order is what istioctl printed of this very dump: its comparison is no true order."""
    names = ["b", "900", "a", *map(str, range(20, 0, -1)), "80"]
    configs = [
        {
            "route_config": {
                "name": name,
                "virtual_hosts": [{"name": "v", "domains": ["x", "x:80"], "routes": []}],
            }
        }
        for name in names
    ]
    dump = {
        "configs": [
            {
                "@type": "type.googleapis.com/envoy.admin.v3.RoutesConfigDump",
                "dynamic_route_configs": configs,
            }
        ]
    }
    routes = Facts(_OneAnswer(dump=(DUMP, json.dumps(dump).encode())))["routes"]
    ordered = [*map(str, range(1, 18)), "b", "18", "19", "20", "a", "80", "900"]
    assert list(routes["name"]) == ordered
    assert set(routes["virtual_service"]) == {"404"}
    assert set(routes["domains"]) == {"x"}


def test_a_port_that_was_never_asked_is_unknown_and_a_gap() -> None:
    probe = ProbeQuestion("mesh", "istiod-1", 15010, "h2c")
    facts = Facts(_OneAnswer(probe=(probe, b"")))
    ports = facts["istiod_ports"].set_index("port")
    assert len(ports) == 6
    assert ports.loc[15010, "answers"]
    assert ports["answers"].isna().sum() == 5
    assert sum(gap.state == "not asked" for gap in facts.gaps("istiod_ports")) >= 5


def test_metrics_with_braces_and_escapes_in_labels_are_read() -> None:
    page = HttpQuestion("mesh", "istiod-1", 15014, "/metrics")
    probe = ProbeQuestion("mesh", "istiod-1", 15010, "h2c")
    text = rb"""# HELP x no sample
pilot_total_rejected_configs{err="a \"quoted\" } brace",type="lds"} 3
pilot_services 12 1700000000000
go_info{version="go1.26",} 1
weird{unclosed="x 5
pilot_wait_bucket{le="+Inf"} +Inf
"""
    facts = Facts(_OneAnswer(page=(page, text), probe=(probe, b"")))
    metrics = facts["istiod_metrics"]
    assert list(zip(metrics["metric"], metrics["labels"], metrics["value"], strict=True)) == [
        ("pilot_total_rejected_configs", r'err="a \"quoted\" } brace",type="lds"', 3),
        ("pilot_services", "", 12),
        ("go_info", 'version="go1.26"', 1),
        ("pilot_wait_bucket", 'le="+Inf"', float("inf")),
    ]


def test_certificates_are_read_from_pem(recordings_folder: Path) -> None:
    chain = next((recordings_folder / "healthy" / "probes").rglob("15012.pem")).read_bytes()
    leaf = read_first_certificate(chain)
    assert read_certificates(chain)[0] == leaf
    assert not leaf.is_ca
    assert leaf.trust_domain is None
    assert leaf.valid_at(parse_time("2026-11-23T03:00:00Z"))
    assert not leaf.valid_at(parse_time("2046-11-23T03:00:00Z"))


@pytest.mark.parametrize(
    ("pem", "reason"),
    [
        (b"", "it is empty"),
        (b"[redacted]", "it holds no PEM certificate"),
        (
            b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
            "certificate 1 cannot be read",
        ),
    ],
)
def test_what_is_no_certificate_is_said_in_words(pem: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        read_certificates(pem)
