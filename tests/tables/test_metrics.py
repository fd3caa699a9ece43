"""The tables of what proxies count: Istio's standard metrics, and Envoy's own counters."""

from __future__ import annotations

from pathlib import Path

import pytest

from meshnb.tables.prometheus import samples
from tests.alteration import Altered
from tests.conftest import facts_of

SERIES = (
    'istio_requests_total{reporter="source",source_workload="client",'
    'source_workload_namespace="bookinfo",source_principal="spiffe://cluster.local/ns/bookinfo/sa/'
    'client",destination_workload="unknown",destination_workload_namespace="unknown",'
    'destination_service="details.bookinfo.svc.cluster.local",destination_service_name="details",'
    'destination_service_namespace="bookinfo",request_protocol="http",response_code="503",'
    'response_flags="UH",grpc_response_status="",connection_security_policy="unknown"} 17\n'
)
OPENED = 'istio_tcp_connections_opened_total{reporter="destination",response_flags="-"} 4\n'


def test_labels_may_hold_braces_quotes_and_line_feeds() -> None:
    page = '# HELP a text\na{x="}",y="say \\"yes\\"",z="1\\n2",} 3 1700000000\nb 1e3\n{no sample}\n'
    one, two = samples(page)

    assert (one.metric, one.value) == ("a", "3")
    assert one.labels == {"x": "}", "y": 'say "yes"', "z": "1\n2"}
    assert (two.metric, two.labels, two.value) == ("b", {}, "1e3")


def test_only_metrics_with_a_wanted_name_are_read() -> None:
    assert [one.metric for one in samples("a_total 1\nb_total 2\n", "b_")] == ["b_total"]


def test_recordings_of_plain_envoys_have_no_request_metrics_and_no_gap() -> None:
    facts = facts_of("healthy")
    assert len(facts["request_metrics"]) == 0
    assert facts.gaps("request_metrics") == ()


def test_each_series_of_a_proxy_is_a_row(tmp_path: Path) -> None:
    """Altered: the client's proxy is Istio's own and counts requests and connections."""
    altered = Altered("healthy", tmp_path)
    altered.texts(lambda text: text + SERIES + OPENED, pod="client", path="/metrics")
    found = altered.facts()["request_metrics"]

    assert found["proxy"].tolist() == ["client.bookinfo"] * 2
    row = found.iloc[0]
    assert (row["reporter"], row["service"]) == ("source", "details.bookinfo.svc.cluster.local")
    assert (row["response_code"], row["response_flags"], row["value"]) == (503, "UH", 17)
    assert row["source_principal"] == "spiffe://cluster.local/ns/bookinfo/sa/client"
    assert found["metric"].tolist()[1] == "istio_tcp_connections_opened_total"
    assert found["response_code"].isna().tolist() == [False, True]


def test_two_pages_of_one_proxy_are_counted_once(tmp_path: Path) -> None:
    """Altered: beside the agent's page, Envoy's own was asked for; both have the same series."""
    altered = Altered("healthy", tmp_path)
    altered.texts(lambda text: text + SERIES, pod="client", path="/metrics")
    like = {"kind": "http", "pod": "client", "path": "/metrics"}
    altered.reply(like, {}, port=15090, path="/stats/prometheus")
    altered.texts(lambda _: SERIES, pod="client", port=15090)

    assert len(altered.facts()["request_metrics"]) == 1


@pytest.mark.parametrize("name", ["healthy", "authz-deny-named"])
def test_counters_are_whole_numbers_by_proxy(name: str) -> None:
    facts = facts_of(name)
    found = facts["proxy_counters"]

    assert set(found["proxy"]) == set(facts["proxies"]["proxy"])
    assert not found.duplicated(["proxy", "counter"]).any()
    assert (found.loc[found["counter"] == "server.live", "value"] == 1).all()
    assert not found["counter"].str.contains("version_text|connect_ms").any()


def test_refusals_by_policies_are_among_the_counters() -> None:
    found = facts_of("authz-deny-named")["proxy_counters"]
    denied = found[found["counter"].str.endswith("rbac.denied")]

    assert dict(zip(denied["proxy"].str[:10], denied["value"], strict=True)) == {
        "details-v1": 48,
        "reviews-v1": 34,
        "reviews-v2": 9,
    }
