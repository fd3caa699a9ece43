"""What proxies count tells of failures where they log nothing: less surely, and only once."""

from __future__ import annotations

import math

import pytest

from meshnb.checks import Inputs
from meshnb.symptoms import Symptom
from meshnb.symptoms.counters import WEIGHT
from meshnb.tables import Facts
from tests.conftest import facts_of, recording_names, truth_of
from tests.enriching import Enriched, enriched

HEALTHY = [name for name in recording_names() if truth_of(name)["healthy"]]
DETAILS = "details.bookinfo.svc.cluster.local"

#: Of each symptom: kind, side, status, flags, where, how often, and how often it went well.
Told = tuple[str, str, int, str, str, int, int]
GOLDEN: dict[str, list[Told]] = {
    "app-5xx": [("request", "server", 500, "", "bookinfo/details-v1", 48, 0)],
    "app-resets": [("request", "server", 500, "", "bookinfo/ratings-v1", 31, 0)],
    "app-slow": [
        ("request", "client", 504, "UT", "ratings.bookinfo.svc.cluster.local:9080", 30, 0)
    ],
    "app-wrong-port": [("request", "server", 503, "UF", "bookinfo/ratings-v1", 72, 0)],
    "app-crash-loop": [("request", "server", 503, "UF", "bookinfo/details-v1", 18, 18)],
    "authz-allow-nobody": [("request", "server", 403, "", "bookinfo/details-v1", 39, 0)],
    "mtls-client-disable": [
        ("request", "client", 500, "", "ratings.bookinfo.svc.cluster.local:9080", 26, 0)
    ],
    "tls-to-plaintext": [("request", "client", 503, "UF", f"{DETAILS}:9080", 126, 0)],
    "istiod-down": [],
}


def counted(source: Enriched) -> list[Symptom]:
    """Return the symptoms of a recording that stand in counters."""
    return [one for one in Inputs(Facts(source)).symptoms if one.is_counted]


def told(symptom: Symptom) -> Told:
    """Return what a symptom says, for comparison."""
    where = "/".join(symptom.workload).strip("/") or f"{symptom.host}:{symptom.port}"
    flags = ",".join(sorted(symptom.flags))
    return (
        *(symptom.kind, symptom.side, symptom.code, flags, where),
        *(symptom.count, symptom.succeeded),
    )


def series(**labels: str) -> str:
    """Return one series of Istio's metric of requests, counted 20 times."""
    every = {
        "reporter": "source",
        "destination_workload": "details-v1",
        "destination_workload_namespace": "bookinfo",
        "destination_service": DETAILS,
        "response_code": "503",
        "response_flags": "-",
    } | labels
    text = ",".join(f'{name}="{value}"' for name, value in every.items())
    return f"istio_requests_total{{{text}}} 20\n"


def counting(pages: dict[str, str]) -> Enriched:
    """Return a healthy mesh without logs in which proxies, by the start of their name, count."""
    mesh = enriched("healthy", ["no_logs"])
    for question in mesh.asked("/metrics"):
        for start, text in pages.items():
            if question.pod.startswith(start) and question.port == 15020:
                mesh.give(question, (mesh.text(question) + text).encode())
    return mesh


@pytest.mark.parametrize("name", GOLDEN)
def test_what_failed_is_told_at_the_end_that_knows(name: str) -> None:
    assert [told(one) for one in counted(enriched(name, ["no_logs"]))] == GOLDEN[name]


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_mesh_without_logs_has_no_symptom(name: str) -> None:
    assert list(Inputs(Facts(enriched(name, ["no_logs"]))).symptoms) == []


@pytest.mark.parametrize("name", ["app-5xx", "tls-to-plaintext", "authz-deny-named"])
def test_what_stands_in_a_log_is_not_counted_again(name: str) -> None:
    assert not [one for one in Inputs(facts_of(name)).symptoms if one.is_counted]


def test_a_counter_has_no_time_and_weighs_less_than_a_line_of_a_log() -> None:
    (symptom,) = counted(enriched("app-5xx", ["no_logs"]))

    assert symptom.first_seen is symptom.last_seen is None
    assert symptom.weight == WEIGHT < 1
    assert "counted since the start, without a log of when" in symptom.message
    (failure,) = symptom.failures
    assert failure.time is None
    assert math.isnan(failure.duration_ms)
    assert failure.upstream_host.endswith(":9080")
    assert symptom.callers == ("client.bookinfo", "productpage-v1-5556f46c94-ctk54.bookinfo")


def test_istios_own_metrics_tell_status_and_flags() -> None:
    """Altered: the client's proxy counts 503 UH, callers who left, and an application's 404."""
    page = (
        series(response_flags="UH", destination_workload="unknown")
        + series(response_flags="DC", response_code="0")
        + series(response_code="404")
        + series(response_code="200")
    )
    (symptom,) = counted(counting({"client": page}))

    assert told(symptom) == ("request", "client", 503, "UH", f"{DETAILS}:9080", 20, 60)
    assert symptom.table == "request_metrics"


def test_a_server_that_counts_a_failure_speaks_for_its_callers() -> None:
    """Altered: both ends count the same 500, and the server also one that no caller got."""
    page = series(reporter="destination", response_code="500")
    found = counted(counting({"client": series(response_code="500"), "details": page}))

    assert [told(one)[:6] for one in found] == [
        ("request", "server", 500, "", "bookinfo/details-v1", 20)
    ]


def test_few_failures_among_many_requests_are_left_out() -> None:
    """Altered: of 220 requests 20 failed, at some time since the proxy started."""
    page = series(response_flags="UF") + "".join(
        series(response_code="200", source_app=str(number)) for number in range(10)
    )
    assert counted(counting({"client": page})) == []
