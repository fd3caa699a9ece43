"""What goes wrong is said once, at the place where it shows, and the newest weighs the most."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from meshnb.symptoms import READERS, Symptom, Symptoms, find_symptoms
from meshnb.symptoms.base import HALF_LIFE_S, weight_of
from meshnb.symptoms.requests import destination, split_address
from meshnb.tables import TABLES, Facts
from meshnb.traces.failures import FAILURES, Failure, Failures, failed
from meshnb.traces.mesh import MESH, Mesh
from tests.alteration import Altered, Line

Recorded = Callable[[str], Facts]

#: Of each symptom: kind, side, status, flags, where, and how often; the heaviest first.
GOLDEN: dict[str, list[tuple[str, str, int, str, str, int]]] = {
    "ambient-app-down": [("connection", "server", 0, "", "garden/seeds", 48)],
    "app-5xx": [("request", "server", 500, "", "bookinfo/details-v1", 48)],
    "app-crash-loop": [
        ("request", "client", 503, "UH", "details.bookinfo", 90),
        ("request", "server", 503, "UF,URX", "bookinfo/details-v1", 6),
        ("pod", "", 0, "", "bookinfo/details-v1", 1),
        ("request", "client", 503, "UC", "details.bookinfo", 1),
        ("request", "client", 503, "", "details.bookinfo", 1),
    ],
    "app-slow": [
        ("request", "client", 504, "UT", "ratings.bookinfo", 29),
        ("request", "server", 0, "DC", "bookinfo/ratings-v1", 1),
    ],
    "authz-deny-named": [
        ("request", "server", 403, "", "bookinfo/reviews-v1", 33),
        ("request", "server", 403, "", "bookinfo/reviews-v2", 9),
    ],
    "bootstrap-wrong-discovery": [
        ("request", "client", 503, "UH", "ratings.bookinfo", 54),
        ("pod", "", 0, "", "bookinfo/ratings-v1", 1),
        ("sync", "", 0, "DISCONNECTED", "", 1),
        ("request", "client", 503, "", "ratings.bookinfo", 1),
    ],
    "envoyfilter-rejected": [("sync", "", 0, "ERROR", "", 6)],
    "fault-left-behind": [("request", "client", 503, "FI", "ratings.bookinfo", 11)],
    "gateway-hosts-disjoint": [("request", "gateway", 404, "NR", "bookinfo.example.com", 15)],
    "https-to-http-port": [
        ("connection", "server", 0, "NR", "bookinfo/productpage-v1", 31),
        ("connection", "client", 0, "UR", "productpage.bookinfo", 30),
    ],
    "istiod-down": [
        ("control plane", "", 0, "", "", 6),
        ("request", "client", 0, "DC", "details.bookinfo", 6),
        ("pod", "", 0, "", "bookinfo/details-v1-9449b4bf", 28),
    ],
    "istiod-unreachable-stale": [("sync", "", 0, "DISCONNECTED", "", 1)],
    "mtls-client-disable": [
        ("request", "client", 503, "UC", "ratings.bookinfo", 26),
        ("connection", "server", 0, "NR", "bookinfo/ratings-v1", 25),
    ],
    "mtls-strict-legacy-client": [("connection", "server", 0, "NR", "bookinfo/ratings-v1", 9)],
    "rate-limited": [("request", "server", 429, "RL", "bookinfo/details-v1", 38)],
    "route-host-unknown": [("request", "client", 503, "NC", "ratings.bookinfo", 23)],
    "sidecar-hides-host": [("request", "client", 502, "", "ratings.bookinfo", 23)],
    "subset-missing": [("request", "client", 503, "NC", "reviews.bookinfo", 42)],
    "tls-to-plaintext": [
        ("connection", "server", 400, "DPE", "bookinfo/details-v1", 120),
        ("request", "client", 503, "UF,URX", "details.bookinfo", 40),
    ],
    "ztunnel-deny": [
        ("connection", "server", 0, "", "garden/seeds", 14),
        ("connection", "server", 0, "", "garden/seeds", 1),
    ],
}
#: Recordings in which nobody would complain about anything, and those whose fault hurts nobody yet.
QUIET = (
    "healthy",
    "healthy-loaded",
    "market-healthy",
    "garden-healthy",
    "duplicate-virtualservice",
    "not-injected-annotation",
    "revision-unknown",
    "route-shadowed",
)


def mesh_of(facts: Facts) -> Mesh:
    """Return the mesh of a source."""
    mesh = MESH.make(facts)
    assert isinstance(mesh, Mesh)
    return mesh


def failures_of(facts: Facts) -> Failures:
    """Return the failures of a source."""
    failures = FAILURES.make(facts)
    assert isinstance(failures, Failures)
    return failures


def symptoms_of(facts: Facts) -> Symptoms:
    """Return the symptoms of a source."""
    return find_symptoms(facts, mesh_of(facts), failures_of(facts))


def where(symptom: Symptom) -> str:
    """Return the workload at which a symptom shows, else the host that was asked."""
    if symptom.workload != ("", ""):
        return "/".join(symptom.workload)
    return symptom.host.removesuffix(".svc.cluster.local")


def brief(symptoms: Iterable[Symptom]) -> list[tuple[str, str, int, str, str, int]]:
    """Return symptoms as they stand in ``GOLDEN``."""
    return [
        (s.kind, s.side, s.code, ",".join(sorted(s.flags)), where(s), s.count) for s in symptoms
    ]


def one(facts: Facts) -> Symptom:
    """Return the only symptom of a source."""
    (symptom,) = symptoms_of(facts)
    return symptom


# --- On recordings ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GOLDEN)
def test_each_recording_has_its_symptoms(name: str, recorded: Recorded) -> None:
    assert brief(symptoms_of(recorded(name))) == GOLDEN[name]


@pytest.mark.parametrize("name", QUIET)
def test_where_nobody_suffers_there_is_no_symptom(name: str, recorded: Recorded) -> None:
    assert [symptom.message for symptom in symptoms_of(recorded(name))] == []


def test_every_reader_of_symptoms_finds_some_in_these_recordings(recorded: Recorded) -> None:
    found = set()
    for name in GOLDEN:
        facts = recorded(name)
        mesh, failures = mesh_of(facts), failures_of(facts)
        found |= {title for title, read in READERS.items() if list(read(facts, mesh, failures))}
    # Their proxies log, so nothing is taken from counters: see test_counters.py.
    assert found == READERS.keys() - {"counters"}


@pytest.mark.parametrize("name", GOLDEN)
def test_symptoms_are_numbered_from_the_heaviest_on(name: str, recorded: Recorded) -> None:
    symptoms = symptoms_of(recorded(name))
    assert [symptom.id for symptom in symptoms] == [f"s{n + 1}" for n in range(len(symptoms))]
    weights = [symptom.weight for symptom in symptoms]
    assert weights == sorted(weights, reverse=True)
    assert all(0 < symptom.weight <= symptom.count for symptom in symptoms)


@pytest.mark.parametrize("name", GOLDEN)
def test_a_symptom_points_at_the_rows_that_show_it(name: str, recorded: Recorded) -> None:
    facts = recorded(name)
    rows: list[tuple[str, int]] = []
    for symptom in symptoms_of(facts):
        assert symptom.table in TABLES
        shown = facts[symptom.table].loc[list(symptom.rows)]
        counts = shown["count"] if symptom.table == "events" else [1] * len(shown)
        assert sum(counts) == symptom.count
        rows += [(symptom.table, row) for row in symptom.rows]
        if symptom.table == "access_log":
            assert failed(shown).all()
            assert symptom.rows == tuple(failure.index for failure in symptom.failures)
            assert set(symptom.reporters) == set(shown["proxy"])
            assert symptom.first_seen == shown["start_time"].min()
            assert symptom.last_seen == shown["start_time"].max()
    assert len(set(rows)) == len(rows)


@pytest.mark.parametrize("name", GOLDEN)
def test_every_failure_belongs_to_one_symptom(name: str, recorded: Recorded) -> None:
    facts = recorded(name)
    explained = [row for s in symptoms_of(facts) for row in s.rows if s.table == "access_log"]
    assert sorted(explained) == sorted(failure.index for failure in failures_of(facts))


@pytest.mark.parametrize("name", GOLDEN)
def test_a_message_is_one_line_that_names_the_place(name: str, recorded: Recorded) -> None:
    facts = recorded(name)
    services = {service.host: service for service in mesh_of(facts).services}
    for symptom in symptoms_of(facts):
        assert symptom.message.isprintable()
        if symptom.workload[1]:
            assert "/".join(symptom.workload) in symptom.message
        elif symptom.host in services:
            service = services[symptom.host]
            assert f"{service.service}.{service.namespace}" in symptom.message


def test_who_saw_the_consequence_is_counted_with_who_reports_it(recorded: Recorded) -> None:
    symptom = one(recorded("app-5xx"))
    assert symptom.reporters == ("details-v1-77ffd76df7-7mth5.bookinfo",)
    assert set(symptom.callers) == {
        "client.bookinfo",
        "productpage-v1-5556f46c94-ctk54.bookinfo",
    }
    assert symptom.message.endswith("seen by 3 proxies")


# --- Age ----------------------------------------------------------------------------------------


def test_a_failure_weighs_half_as_much_for_each_half_life() -> None:
    now = datetime(2026, 11, 23, 3, tzinfo=UTC)
    ages = [0, HALF_LIFE_S, 2 * HALF_LIFE_S]
    assert weight_of([now - timedelta(seconds=age) for age in ages], now) == pytest.approx(1.75)
    assert weight_of([], now) == 0
    # Two clocks may differ: a failure of the future is one of now.
    assert weight_of([now + timedelta(hours=1)], now) == 1


def refusing(recording: Altered, *, until: str = "~", since: str = "") -> Altered:
    """Let the client's calls to ratings be refused by its own proxy between two times."""

    def refuse(line: Line) -> Iterable[Line]:
        chosen = line.path == "/ratings/0" and not line.inbound and since <= line.time < until
        refused = {"code": "503", "flags": "UO", "details": "overflow"}
        return [line._replace(**refused) if chosen else line]

    return recording.lines("client", refuse)


def test_what_failed_a_while_ago_weighs_less_than_what_fails_now(tmp_path: Path) -> None:
    middle = "2026-11-23T02:48:50Z"
    old = one(refusing(Altered("healthy", tmp_path / "old"), until=middle).facts())
    new = one(refusing(Altered("healthy", tmp_path / "new"), since=middle).facts())
    assert (old.kind, old.flags, where(old)) == (new.kind, new.flags, where(new))
    assert old.last_seen is not None
    assert new.first_seen is not None
    assert old.last_seen < new.first_seen
    assert old.weight / old.count < 0.9 * new.weight / new.count


def test_weights_are_by_the_newest_line_of_any_log(recorded: Recorded) -> None:
    facts = recorded("app-5xx")
    log, symptom = facts["access_log"], one(facts)
    ages = (log["start_time"].max() - log.loc[list(symptom.rows), "start_time"]).dt.total_seconds()
    assert symptom.weight == pytest.approx((0.5 ** (ages / HALF_LIFE_S)).sum())


def test_a_failure_without_a_time_counts_in_full(tmp_path: Path) -> None:
    """A mesh may log no time; that makes its failures no lighter than those of a dated log."""

    def little(page: dict[str, Any]) -> None:
        page["accessLogFormat"] = "%RESPONSE_CODE% %REQ(:AUTHORITY)%\n"

    altered = Altered("healthy", tmp_path).pages(little, path="/debug/mesh")
    altered.texts(lambda _: "200 a\n503 a\n503 a\n503 b\n", pod="client", container="istio-proxy")
    assert sorted((s.count, s.weight) for s in symptoms_of(altered.facts())) == [(1, 1), (2, 2)]


# --- Whether it worked --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "before", "for_caller"),
    [
        ("subset-missing", True, True),
        ("route-host-unknown", True, True),
        ("gateway-hosts-disjoint", True, True),
        # Nothing was ever asked of the gateway before it got its wrong VirtualService.
        ("gateway-name-wrong", False, False),
        # Bare connections have no path by which a success could be recognized.
        ("mtls-strict-legacy-client", False, False),
    ],
)
def test_a_symptom_knows_whether_the_same_had_worked(
    name: str, before: bool, for_caller: bool, recorded: Recorded
) -> None:
    symptom = one(recorded(name))
    assert (symptom.worked_before, symptom.worked_for_caller) == (before, for_caller)


def test_what_never_worked_for_a_caller_may_have_worked_for_another(tmp_path: Path) -> None:
    """The client is denied from the beginning; the page is served all the time."""
    denied = Altered("healthy", tmp_path).at_server(
        "details:9080",
        "",
        caller="10.244.0.10:",
        code="403",
        details="rbac_access_denied_matched_policy[none]",
    )
    symptom = one(denied.facts())
    assert symptom.callers == ("client.bookinfo",)
    assert symptom.worked_before
    assert not symptom.worked_for_caller


@pytest.mark.parametrize(("since", "worked"), [("2026-11-23T02:48:50Z", True), ("", False)])
def test_what_worked_for_a_caller_is_known_by_its_address_when_it_has_no_log(
    tmp_path: Path, since: str, worked: bool
) -> None:
    """Of a client outside the mesh only the server's log shows that it was served."""
    altered = Altered("healthy", tmp_path).forget(kind="log", pod="client", container="istio-proxy")
    denied = altered.at_server(
        "details:9080",
        since,
        caller="10.244.0.10:",
        code="403",
        details="rbac_access_denied_matched_policy[none]",
    )
    symptom = one(denied.facts())
    assert symptom.callers == ()
    assert symptom.worked_before
    assert symptom.worked_for_caller is worked


def test_an_everyday_answer_of_an_application_is_a_symptom_once_it_was_another_one(
    tmp_path: Path, recorded: Recorded
) -> None:
    """The search says 404 to its searcher, always; had it said 200, somebody would miss that."""
    log = recorded("healthy-loaded")["access_log"]
    asked = log[(log["workload"] == "search") & (log["response_code"] == 404)]
    found = asked.sort_values("start_time")["request_id"].iloc[0]

    def answer(line: Line) -> Iterable[Line]:
        return [line._replace(code="200") if line.id == found else line]

    symptoms = symptoms_of(Altered("healthy-loaded", tmp_path).lines("search", answer).facts())
    assert {(s.code, s.worked_before) for s in symptoms} == {(404, True)}
    assert sum(symptom.count for symptom in symptoms) == len(asked)


# --- Where a failed request was to go -----------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "parts"),
    [
        ("10.0.0.1:80", ("10.0.0.1", 80)),
        ("10.0.0.1", ("10.0.0.1", None)),
        ("[fd00::1]:80", ("fd00::1", 80)),
        ("[fd00::1]", ("fd00::1", None)),
        ("ratings:9080", ("ratings", 9080)),
        ("ratings:http", ("ratings:http", None)),
        ("", ("", None)),
        (":80", ("", 80)),
    ],
)
def test_an_address_is_split_at_its_port(address: str, parts: tuple[str, int | None]) -> None:
    assert split_address(address) == parts


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        pytest.param(
            {"cluster": "outbound|9080|v2|reviews.bookinfo.svc.cluster.local"},
            ("reviews.bookinfo.svc.cluster.local", 9080),
            id="by the cluster, subset or not",
        ),
        pytest.param(
            {"cluster": "outbound|443||api.example.org", "local_address": "10.96.66.128:9080"},
            ("api.example.org", 443),
            id="by the cluster before the address",
        ),
        pytest.param(
            {"local_address": "10.96.66.128:9080", "authority": "other"},
            ("productpage.bookinfo.svc.cluster.local", 9080),
            id="by the address of a Service before the authority",
        ),
        pytest.param(
            {
                "cluster": "PassthroughCluster",
                "local_address": "192.0.2.7:80",
                "authority": "a.org",
            },
            ("a.org", 80),
            id="by the authority",
        ),
        pytest.param(
            {"authority": "ratings:9080"},
            ("ratings.bookinfo.svc.cluster.local", 9080),
            id="by a short authority",
        ),
        pytest.param(
            {"authority": "ratings.bookinfo:9080"},
            ("ratings.bookinfo.svc.cluster.local", 9080),
            id="by a name with its namespace",
        ),
        pytest.param(
            {"authority": "nobody.bookinfo:9080"},
            ("nobody.bookinfo", 9080),
            id="by an unknown name",
        ),
        pytest.param(
            {"authority": "[fd00::1]:80"}, ("[fd00::1]", 80), id="by an address of version 6"
        ),
        pytest.param({}, ("", None), id="not at all"),
        pytest.param(
            {
                "direction": "inbound",
                "cluster": "inbound|9080||",
                "server_name": "outbound_.9080_.v1_.reviews.bookinfo.svc.cluster.local",
            },
            ("reviews.bookinfo.svc.cluster.local", 9080),
            id="at the server by the name that the client's proxy called",
        ),
        pytest.param(
            {
                "direction": "inbound",
                "cluster": "inbound|9080||",
                "local_address": "10.244.0.9:9080",
                "authority": "ratings.bookinfo",
            },
            ("ratings.bookinfo.svc.cluster.local", 9080),
            id="at the server in plain text by the authority",
        ),
    ],
)
def test_the_destination_is_told_by_the_surest_field(
    fields: dict[str, Any], expected: tuple[str, int | None], recorded: Recorded
) -> None:
    blank: dict[str, Any] = dict.fromkeys(
        ("cluster", "local_address", "authority", "server_name"), ""
    )
    real: Failure = next(iter(failures_of(recorded("subset-missing"))))
    failure = replace(real, **(blank | fields))
    assert destination(failure, mesh_of(recorded("healthy"))) == expected


# --- Pods ---------------------------------------------------------------------------------------


def test_a_pod_that_is_not_ready_says_why(recorded: Recorded) -> None:
    (symptom,) = (s for s in symptoms_of(recorded("not-ready-endpoint")) if s.kind == "pod")
    assert symptom.message == (
        "1 pod of bookinfo/ratings-v1 not ready: ContainersNotReady: "
        "containers with unready status: [ratings]"
    )
    assert symptom.last_seen == recorded("not-ready-endpoint").now


def unready(pod: dict[str, Any]) -> None:
    """Let a pod not be ready."""
    for condition in pod["status"]["conditions"]:
        if condition["type"] == "Ready":
            condition["status"] = "False"


def test_the_pods_of_a_workload_are_one_symptom(tmp_path: Path) -> None:
    symptom = one(Altered("garden-healthy", tmp_path).each("pods", "api-", unready).facts())
    assert (symptom.kind, symptom.count, symptom.workload) == ("pod", 2, ("garden", "api"))
    assert len(set(symptom.reporters)) == 2


@pytest.mark.parametrize(
    "leave",
    [
        pytest.param(lambda pod: pod["status"].update(phase="Succeeded"), id="finished"),
        pytest.param(
            lambda pod: pod["metadata"].update(deletionTimestamp="2026-11-23T02:49:00Z"),
            id="being deleted",
        ),
    ],
)
def test_a_pod_that_is_not_meant_to_run_need_not_be_ready(
    tmp_path: Path, leave: Callable[[dict[str, Any]], None]
) -> None:
    def change(pod: dict[str, Any]) -> None:
        unready(pod)
        leave(pod)

    altered = Altered("healthy", tmp_path).each("pods", "legacy-client", change)
    assert list(symptoms_of(altered.facts())) == []


# --- Pods that could not be made ----------------------------------------------------------------


def of_events(facts: Facts) -> list[Symptom]:
    """Return the symptoms that stand in the events."""
    return [symptom for symptom in symptoms_of(facts) if symptom.table == "events"]


def refusals(facts: Facts) -> int:
    """Return how many recent events say that a pod of details could not be made."""
    events = facts["events"]
    recent = events["last_seen"] > facts.now - timedelta(minutes=15)
    return int(((events["reason"] == "FailedCreate") & recent).sum())


def test_a_pod_that_could_not_be_made_quotes_the_newest_refusal(recorded: Recorded) -> None:
    facts = recorded("istiod-down")
    (symptom,) = of_events(facts)
    events = facts["events"].loc[list(symptom.rows)]
    assert symptom.last_seen == events["last_seen"].max()
    assert 'no endpoints available for service "istiod"' in symptom.message


@pytest.mark.parametrize(
    "name", ["app-crash-loop", "app-5xx", "app-slow", "bootstrap-wrong-discovery"]
)
def test_a_refusal_counts_no_more_once_there_are_pods_or_none_is_wanted(
    name: str, recorded: Recorded
) -> None:
    """In the first two another ReplicaSet has replaced the one that was refused its pod."""
    facts = recorded(name)
    assert refusals(facts) > 0
    assert of_events(facts) == []


def wanting(replicas: int) -> Callable[[dict[str, Any]], None]:
    """Let a ReplicaSet want so many pods."""

    def want(replica_set: dict[str, Any]) -> None:
        replica_set["spec"]["replicas"] = replicas

    return want


def test_a_replica_set_that_wants_no_pod_misses_none(tmp_path: Path) -> None:
    altered = Altered("istiod-down", tmp_path)
    altered.each("replicasets", "details-v1-9449b4bf", wanting(0))
    assert refusals(altered.facts()) > 0
    assert of_events(altered.facts()) == []


def test_a_replica_set_that_is_gone_misses_no_pod(tmp_path: Path) -> None:
    altered = Altered("istiod-down", tmp_path).remove("replicasets", "details-v1-9449b4bf")
    assert refusals(altered.facts()) > 0
    assert of_events(altered.facts()) == []


def test_a_refusal_is_forgotten_after_a_while(tmp_path: Path) -> None:
    """By the moment of the recording, whatever the clock says now."""

    def earlier(event: dict[str, Any]) -> None:
        for name in ("firstTimestamp", "lastTimestamp"):
            event[name] = event[name].replace("T03:", "T02:") if event[name] else event[name]

    altered = Altered("istiod-down", tmp_path).each("events", "details-v1-9449b4bf", earlier)
    assert of_events(altered.facts()) == []


@pytest.mark.parametrize(
    ("replicas", "refused_at", "symptoms"),
    [
        pytest.param(2, "2026-11-23T03:09:00Z", 1, id="one was made, another one refused"),
        pytest.param(1, "2026-11-23T03:09:00Z", 0, id="no other one is wanted"),
        pytest.param(2, "2026-11-23T03:08:00Z", 0, id="one was made since"),
    ],
)
def test_a_pod_that_was_there_before_does_not_stand_for_one_that_was_refused(
    tmp_path: Path, replicas: int, refused_at: str, symptoms: int
) -> None:
    """A quota may allow one pod and refuse the next."""

    def refuse(event: dict[str, Any]) -> None:
        if event["reason"] == "FailedCreate":
            event["lastTimestamp"] = refused_at

    altered = Altered("fault-left-behind", tmp_path)
    altered.each("replicasets", "details-v1-9449b4bf", wanting(replicas))
    altered.each("events", "details-v1-9449b4bf", refuse)
    facts = altered.facts()
    (pod,) = (pod for pod in mesh_of(facts).pods if pod.workload == "details-v1")
    assert pod.created == datetime(2026, 11, 23, 3, 8, 14, tzinfo=UTC)
    assert len(of_events(facts)) == symptoms


@pytest.mark.parametrize(("made", "symptoms"), [("03:12:00", 1), ("03:14:00", 0)])
def test_pods_of_other_owners_are_known_by_their_names(
    tmp_path: Path, made: str, symptoms: int
) -> None:
    """A StatefulSet makes its pods itself: no ReplicaSet says how many it wants."""
    refused = "2026-11-23T03:13:13Z"
    altered = Altered("istiod-down", tmp_path).add(
        "events",
        "db.1",
        "legacy",
        refused,
        type="Warning",
        reason="FailedCreate",
        message="refused",
        count=1,
        lastTimestamp=refused,
        involvedObject={"kind": "StatefulSet", "namespace": "legacy", "name": "db"},
    )
    altered.add("pods", "db-0", "legacy", f"2026-11-23T{made}Z", spec={}, status={})
    found = [symptom.workload for symptom in of_events(altered.facts())]
    assert found.count(("legacy", "db")) == symptoms


# --- istiod and the proxies ---------------------------------------------------------------------


def changed(text: str) -> Callable[[list[dict[str, Any]]], None]:
    """Let the client have been sent a cluster at a time and not have answered yet."""

    def change(page: list[dict[str, Any]]) -> None:
        (client,) = (entry for entry in page if entry["proxy"] == "client.bookinfo")
        sent = client["resources"]["type.googleapis.com/envoy.config.cluster.v3.Cluster"]
        sent |= {"sent": "new", "sentTime": text}

    return change


@pytest.mark.parametrize(
    ("sent", "flags"),
    [
        pytest.param("2026-11-23T02:49:10Z", [], id="seconds ago"),
        pytest.param("2026-11-23T02:48:10Z", ["STALE"], id="a minute ago"),
    ],
)
def test_a_push_may_be_open_for_seconds_and_no_longer(
    tmp_path: Path, sent: str, flags: list[str]
) -> None:
    """The page of istiod is of 02:49:17."""
    altered = Altered("healthy", tmp_path).pages(changed(sent), path="/debug/syncz")
    symptoms = list(symptoms_of(altered.facts()))
    assert [flag for symptom in symptoms for flag in symptom.flags] == flags
    assert [symptom.reporters for symptom in symptoms] == [("client.bookinfo",)] * len(flags)


def test_refused_configuration_names_the_proxies_and_the_reason(recorded: Recorded) -> None:
    symptom = one(recorded("envoyfilter-rejected"))
    assert symptom.table == "proxy_status"
    assert len(set(symptom.reporters)) == symptom.count == 6
    assert "script load error" in symptom.details


def without_client(page: list[dict[str, Any]]) -> None:
    """Let the client not be connected to the istiod whose page this is."""
    page[:] = [entry for entry in page if entry["proxy"] != "client.bookinfo"]


def second_istiod(altered: Altered, *, ready: bool = True) -> Altered:
    """Add another istiod to a recording, which was not asked anything."""

    def add(pods: list[Any]) -> None:
        (istiod,) = (pod for pod in pods if pod["metadata"]["name"].startswith("istiod-"))
        other = json.loads(json.dumps(istiod))
        other["metadata"]["name"] += "2"
        other["status"]["podIP"] = "10.244.0.222"
        if not ready:
            unready(other)
        pods.append(other)

    return altered.objects("pods", add)


def test_a_proxy_that_no_istiod_lists_is_not_connected(tmp_path: Path) -> None:
    altered = Altered("healthy", tmp_path).pages(without_client, path="/debug/syncz")
    symptom = one(altered.facts())
    assert symptom.flags == frozenset({"DISCONNECTED"})
    assert symptom.reporters == ("client.bookinfo",)


def test_a_proxy_that_is_being_deleted_need_not_be_connected(tmp_path: Path) -> None:
    def leave(pod: dict[str, Any]) -> None:
        pod["metadata"]["deletionTimestamp"] = "2026-11-23T02:49:00Z"

    altered = Altered("healthy", tmp_path).pages(without_client, path="/debug/syncz")
    assert list(symptoms_of(altered.each("pods", "client", leave).facts())) == []


def test_a_proxy_may_be_connected_to_an_istiod_that_was_not_asked(tmp_path: Path) -> None:
    altered = Altered("healthy", tmp_path).pages(without_client, path="/debug/syncz")
    assert list(symptoms_of(second_istiod(altered).facts())) == []


def test_an_istiod_that_is_not_ready_serves_nobody(tmp_path: Path) -> None:
    altered = Altered("healthy", tmp_path).pages(without_client, path="/debug/syncz")
    symptoms = symptoms_of(second_istiod(altered, ready=False).facts())
    assert [symptom.kind for symptom in symptoms] == ["pod", "sync"]


def test_an_istiod_that_keeps_silent_is_a_symptom(tmp_path: Path) -> None:
    altered = Altered("healthy", tmp_path).silence("no answer within 10 s", path="/debug/syncz")
    symptom = one(altered.facts())
    assert (symptom.kind, symptom.count) == ("control plane", 7)


def test_an_istiod_that_lists_nobody_is_a_symptom(tmp_path: Path) -> None:
    altered = Altered("healthy", tmp_path).pages(lambda page: page.clear(), path="/debug/syncz")
    assert one(altered.facts()).kind == "control plane"


@pytest.mark.parametrize(
    "alter",
    [
        pytest.param(lambda altered: altered.forget(path="/debug/syncz"), id="not asked"),
        pytest.param(
            lambda altered: altered.silence("forbidden", 403, path="/debug/syncz"), id="refused"
        ),
        pytest.param(
            lambda altered: altered.texts(lambda _: "<html>", path="/debug/syncz"), id="unreadable"
        ),
    ],
)
def test_what_istiod_was_not_asked_or_may_not_tell_is_a_gap_and_no_symptom(
    tmp_path: Path, alter: Callable[[Altered], Altered]
) -> None:
    facts = alter(Altered("healthy", tmp_path)).facts()
    assert list(symptoms_of(facts)) == []
    assert facts.gaps("proxy_status") != ()


# --- Ambient ------------------------------------------------------------------------------------


def test_a_connection_that_ztunnel_ended_is_told_by_the_server_alone(recorded: Recorded) -> None:
    """The client's ztunnel logs each of them as well, without the reason."""
    facts = recorded("ambient-app-down")
    symptom = one(facts)
    log = facts["ztunnel_access_log"]
    assert log["error"].notna().sum() == 2 * symptom.count
    assert symptom.details == "connection failed: Connection refused (os error 111)"
    assert set(symptom.callers) == {"api-6767d87b65-8dnw5", "web-68bfc8f55c-jsbsj"}
    assert symptom.host == "seeds.garden.svc.cluster.local"


def test_without_the_servers_line_the_clients_is_told(tmp_path: Path) -> None:
    def outbound_only(log: str) -> str:
        return "\n".join(line for line in log.split("\n") if 'direction="inbound"' not in line)

    altered = Altered("ambient-app-down", tmp_path)
    symptom = one(altered.texts(outbound_only, pod="ztunnel-4p242").facts())
    assert (symptom.side, symptom.count) == ("client", 48)
    assert symptom.details == "http status: 503 Service Unavailable"
    assert symptom.workload == ("garden", "seeds")


@pytest.mark.parametrize(
    ("server", "place"),
    [
        ('dst.service="api.example.org"', "api.example.org"),
        ("", "192.0.2.7:443"),
    ],
)
def test_a_server_outside_the_mesh_is_told_by_name_or_address(
    tmp_path: Path, server: str, place: str
) -> None:
    def outside(log: str) -> str:
        lines = [line for line in log.split("\n") if 'direction="outbound"' in line]
        known = re.compile(r"dst\.\S+")
        return "\n".join(
            known.sub("", line) + f" dst.addr=192.0.2.7:443 {server}" for line in lines
        )

    altered = Altered("ambient-app-down", tmp_path)
    symptom = one(altered.texts(outside, pod="ztunnel-4p242").facts())
    assert symptom.workload == ("", "")
    assert f" to {place} ended by ztunnel: " in symptom.message
