"""A live cluster is asked as a recording is read; the cluster is a recording that is served."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from meshnb.checks import Verdict
from meshnb.diagnosis import diagnose
from meshnb.errors import SourceError, UsageError
from meshnb.sources import (
    Answer,
    Bundle,
    HttpQuestion,
    Limits,
    ListQuestion,
    LogQuestion,
    ProbeQuestion,
    Progress,
    Question,
    Scope,
    open_source,
    record,
)
from meshnb.sources.base import only
from meshnb.sources.cluster import Cluster
from meshnb.sources.serve import (
    Drop,
    Expire,
    Fail,
    Fault,
    Garbage,
    Gone,
    Hang,
    Refuse,
    Restart,
    Served,
    Slow,
    serve,
)
from meshnb.tables import TABLES, Facts
from meshnb.tables.base import Got, Selector
from tests.conftest import facts_of, unpacked

_NEEDS_PROC = pytest.mark.skipif(
    not Path("/proc/self/fd").exists(), reason="open files are counted in /proc"
)
Live = Callable[..., AbstractContextManager[tuple[Cluster, Served]]]


@pytest.fixture
def live(monkeypatch: pytest.MonkeyPatch) -> Live:
    """Return a function that serves a recording and opens it as a live cluster."""

    @contextmanager
    def serving(
        recording: str | Path = "healthy",
        *faults: Fault,
        credential: Any = "token",
        **options: Any,
    ) -> Iterator[tuple[Cluster, Served]]:
        source = Bundle(unpacked() / recording)
        with serve(source, faults=faults, credential=credential) as served:
            monkeypatch.setenv("KUBECONFIG", str(served.kubeconfig))
            cluster = open_source("cluster", **options)
            assert isinstance(cluster, Cluster)
            yield cluster, served

    return serving


def _same(one: Answer, other: Answer) -> bool:
    """Whether two answers say the same. How a port is closed may be said in other words."""
    if one.error is not None or other.error is not None:
        probe = isinstance(one.question, ProbeQuestion)
        return one.status == other.status and (
            one.error == other.error or (probe and bool(one.error) and bool(other.error))
        )
    if isinstance(one.question, ListQuestion):
        said, again = json.loads(one.content), json.loads(other.content)
        same = [_plain(item) for item in said["items"]] == [_plain(it) for it in again["items"]]
    else:
        same = one.content == other.content
    return same and (one.status, dict(one.detail)) == (other.status, dict(other.detail))


def _plain(item: dict[str, Any]) -> dict[str, Any]:
    """Return an object without kind and version, which a list may leave out."""
    return {name: value for name, value in item.items() if name not in ("kind", "apiVersion")}


def _of(answers: Sequence[Answer], question: Question) -> Answer:
    (found,) = (answer for answer in answers if answer.question == question)
    return found


def _pages(cluster: Cluster, path: str) -> list[HttpQuestion]:
    return [
        question
        for question in cluster.questions()
        if isinstance(question, HttpQuestion) and question.path == path
    ]


# --- What is asked, and what comes back ----------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["healthy-loaded", "garden-healthy", "market-healthy", "not-ready-endpoint"]
)
def test_recording_a_served_bundle_gives_the_same_answers_back(
    live: Live, name: str, tmp_path: Path
) -> None:
    """Sidecars, ambient mode, the Gateway API, and a pod that does not answer.

    Both are recorded, because a recording takes out what is secret.
    """
    before = Bundle(record(Bundle(unpacked() / name), tmp_path / "before.zip"))
    with live(name) as (cluster, _):
        after = Bundle(record(cluster, tmp_path / "again.zip"))
    assert set(before.questions()) <= set(after.questions())
    assert after.damage == ()
    different = [
        str(question)
        for question in before.questions()
        if not _same(only(before, question), only(after, question))
    ]
    # A connection that broke is served as one that breaks, and told in our own words.
    broken = {"GET bookinfo/ratings-v1-75cf8d9c59-njqg8:15021/healthz/ready"}
    assert set(different) <= broken
    assert after.manifest["istio_namespace"] == "istio-system"


@pytest.mark.parametrize("name", ["subset-missing", "istiod-down", "ztunnel-deny"])
def test_a_diagnosis_of_the_cluster_is_that_of_its_recording(live: Live, name: str) -> None:
    with live(name) as (cluster, _):
        facts = Facts(cluster)
        assert facts.gather()
        found = diagnose(facts)
    expected = diagnose(facts_of(name))
    assert [cause.check.code for cause in found.problems] == [
        cause.check.code for cause in expected.problems
    ]
    assert found.verdict == expected.verdict


def test_every_selector_of_every_table_is_asked(live: Live) -> None:
    with live("garden-healthy") as (ambient, _):
        asked = set(ambient.questions())
    with live("healthy") as (sidecars, _):
        asked |= set(sidecars.questions())
    wanted: list[Selector] = []
    for table in TABLES.values():
        # Metrics stand on several pages, one of which is enough.
        pages = [one for one in table.asks if isinstance(one, Got) and one.path in _METRICS]
        assert not pages or any(page.matches(question) for page in pages for question in asked)
        wanted += [one for one in table.asks if one not in pages]
    assert len(wanted) > 50
    assert [
        str(one) for one in wanted if not any(one.matches(question) for question in asked)
    ] == []


_METRICS = ("/metrics", "/stats/prometheus")


def test_nothing_but_reading_is_ever_sent(live: Live, tmp_path: Path) -> None:
    """GET is all that leaves, and all that leaves through a port-forward is GET as well."""
    with live("healthy") as (cluster, served):
        record(cluster, tmp_path / "all.zip")
        seen = served.requests
    assert len(seen) > 200
    assert {request.resource for request in seen} >= {"pods/log", "pods/portforward", "http"}
    assert {request.method for request in seen} == {"GET"}
    # To read is to list and to get; a port-forward is a GET that wants to be allowed to create.
    assert {
        (verb, request.resource)
        for request in seen
        for verb in request.verbs
        if verb not in ("get", "list")
    } <= {("create", "pods/portforward")}


def test_one_connection_carries_all_pages_of_a_port(live: Live) -> None:
    with live("healthy") as (cluster, served):
        pages = [
            question
            for question in cluster.questions()
            if isinstance(question, HttpQuestion)
            and (question.pod, question.port) == ("client", 15000)
        ]
        assert all(answer.status == 200 for answer in cluster.ask(pages))
        forwards = [r for r in served.requests if r.resource == "pods/portforward"]
    assert len(pages) == 8
    assert len(forwards) == 1


def test_an_api_that_the_cluster_does_not_know_is_answered_with_404(live: Live) -> None:
    with live("healthy") as (cluster, _):
        answer = only(cluster, ListQuestion("gateway.networking.k8s.io/v1", "httproutes"))
    assert (answer.status, answer.error) == (404, None)


def test_a_list_in_pages_is_one_list_again(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meshnb.sources.api_server.PAGE", 3)
    question = ListQuestion("v1", "services")
    with live("healthy") as (cluster, served):
        answer = only(cluster, question)
        pages = [r for r in served.requests if r.resource == "services"]
    assert len(pages) > 2
    assert _same(answer, only(Bundle(unpacked() / "healthy"), question))


@pytest.mark.parametrize("times", [1, 0])
def test_a_list_whose_pages_expire_is_begun_again(
    live: Live, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    """When they always expire (0), it is asked for whole."""
    monkeypatch.setattr("meshnb.sources.api_server.PAGE", 3)
    question = ListQuestion("v1", "services")
    with live("healthy", Gone(resource="services", times=times)) as (cluster, _):
        answer = only(cluster, question)
    assert _same(answer, only(Bundle(unpacked() / "healthy"), question))


# --- What is allowed -----------------------------------------------------------------------------


def test_a_refused_list_is_an_answer_that_says_what_is_forbidden(live: Live) -> None:
    with live("healthy", Refuse(verb="list", resource="secrets")) as (cluster, _):
        answer = only(cluster, ListQuestion("v1", "secrets"))
    assert (answer.status, answer.body) == (403, None)
    assert answer.refused
    assert "secrets" in str(answer.error)


@pytest.mark.parametrize("verb", ["get", "create"])
def test_a_refused_port_forward_says_which_permission_lacks(live: Live, verb: str) -> None:
    """Kubernetes wants ``create`` from 1.35 on, although a port-forward is a GET."""
    refuse = Refuse(verb=verb, resource="pods/portforward", namespace="bookinfo")
    with live("healthy", refuse) as (cluster, _):
        pages = _pages(cluster, "/server_info")
        answers = list(cluster.ask(pages))
    for answer in answers:
        assert isinstance(answer.question, HttpQuestion)
        if answer.question.namespace == "bookinfo":
            assert answer.refused
            assert all(word in str(answer.error) for word in (verb, "portforward", "bookinfo"))
            assert 'pods "' not in str(answer.error)  # it is about every pod of the namespace
        else:
            assert answer.status == 200


def test_who_may_list_one_namespace_only_gets_the_lists_of_that_one(live: Live) -> None:
    everywhere = [
        Refuse(verb="list", namespace=""),
        Refuse(namespace="istio-system"),
        Refuse(namespace="legacy"),
        Refuse(namespace="outside"),
    ]
    with live("healthy", *everywhere, scope=Scope(namespaces=("bookinfo",))) as (cluster, _):
        answers = list(cluster.ask(cluster.questions()))
        notes = cluster.damage
    pods = _of(answers, ListQuestion("v1", "pods"))
    assert {item["metadata"]["namespace"] for item in json.loads(pods.content)["items"]} == {
        "bookinfo"
    }
    assert pods.detail == {"namespaces": ["bookinfo"]}
    assert _of(answers, ListQuestion("v1", "nodes")).refused
    # A kind that the cluster does not know is unknown in a namespace, too.
    unknown = _of(answers, ListQuestion("gateway.networking.k8s.io/v1", "tlsroutes"))
    assert (unknown.status, unknown.error) == (404, None)
    assert any("No istiod was asked" in note for note in notes)
    assert any("more is forbidden" in note for note in notes)
    asked = {q.namespace for q in cluster.questions() if isinstance(q, HttpQuestion)}
    assert asked == {"bookinfo"}


def test_the_namespace_of_the_context_is_asked_when_all_of_them_are_refused(live: Live) -> None:
    with live("healthy", Refuse(verb="list", resource="pods", namespace="")) as (_, served):
        document = json.loads(served.kubeconfig.read_text())
        document["contexts"][0]["context"]["namespace"] = "bookinfo"
        served.kubeconfig.write_text(json.dumps(document))
        cluster = open_source("cluster")
        asked = {q.namespace for q in cluster.questions() if isinstance(q, HttpQuestion)}
    # istiod's namespace may be listed here, and is found by what the proxies say of it.
    assert asked == {"bookinfo", "istio-system"}
    assert any("'bookinfo' of the context" in note for note in cluster.damage)


def test_who_may_not_list_all_pods_is_told_early_which_namespaces_to_choose(live: Live) -> None:
    everywhere = Refuse(verb="list", resource="pods", namespace="")
    outside = Refuse(verb="list", resource="pods", namespace="outside")
    seen: list[Progress] = []
    with live("healthy", everywhere, outside, watch=seen.append) as (cluster, _):
        list(cluster.ask(cluster.questions()))
    assert not seen[0].done
    assert {one.advice for one in seen} == {seen[0].advice}
    assert "say with -n NAMESPACE which to ask" in seen[0].advice
    assert "bookinfo" in seen[0].advice
    assert "outside" not in seen[0].advice


def test_who_chose_a_namespace_or_may_list_all_gets_no_advice(live: Live) -> None:
    seen: list[Progress] = []
    everywhere = Refuse(verb="list", resource="pods", namespace="")
    chosen = Scope(namespaces=("bookinfo",))
    with live("healthy", everywhere, scope=chosen, watch=seen.append) as (cluster, _):
        list(cluster.ask(cluster.questions()))
    with live("healthy", watch=seen.append) as (cluster, _):
        list(cluster.ask(cluster.questions()))
    assert {one.advice for one in seen} == {""}


def test_without_a_list_of_pods_the_other_lists_are_still_asked(live: Live) -> None:
    with live("healthy", Refuse(verb="list", resource="pods")) as (cluster, _):
        answers = list(cluster.ask(cluster.questions()))
        (note,) = cluster.damage
    assert note.startswith("No pod was asked, istiod's neither, because pods could not be listed")
    assert "Choose namespaces" in note
    assert _of(answers, ListQuestion("v1", "services")).status == 200


# --- Which part is asked -------------------------------------------------------------------------


def _asked_pods(cluster: Cluster) -> set[tuple[str, str]]:
    return {
        (question.namespace, question.pod.rsplit("-", 2)[0])
        for question in cluster.questions()
        if isinstance(question, HttpQuestion)
    }


@pytest.mark.parametrize(
    ("scope", "pods"),
    [
        (Scope(namespaces=("istio-system",)), {("istio-system", "istio-ingressgateway")}),
        (Scope(pods=("client",)), {("bookinfo", "client")}),
        (Scope(pods=("bookinfo/client",)), {("bookinfo", "client")}),
        (
            Scope(labels="app in (reviews, ratings), version!=v2"),
            {("bookinfo", "reviews-v1"), ("bookinfo", "ratings-v1")},
        ),
    ],
)
def test_a_scope_chooses_pods_and_istiod_is_always_asked(
    live: Live, scope: Scope, pods: set[tuple[str, str]]
) -> None:
    with live("healthy", scope=scope) as (cluster, _):
        assert _asked_pods(cluster) == {*pods, ("istio-system", "istiod")}


@pytest.mark.parametrize(
    ("scope", "said"),
    [
        (Scope(namespaces=("bokinfo",)), "Did you mean bookinfo?"),
        (Scope(pods=("clent",)), "Did you mean client"),
    ],
)
def test_a_name_that_is_not_there_is_told_with_the_nearest(
    live: Live, scope: Scope, said: str
) -> None:
    with live("healthy", scope=scope) as (cluster, _), pytest.raises(UsageError, match=said):
        cluster.questions()


@pytest.mark.parametrize("scope", [Scope(istio_namespace="istio"), Scope(revision="canary")])
def test_an_istiod_elsewhere_than_asked_is_named(live: Live, scope: Scope) -> None:
    with (
        live("healthy", scope=scope) as (cluster, _),
        pytest.raises(SourceError, match=r"there is one in istio-system \(revision default\)"),
    ):
        cluster.questions()


def test_an_istiod_that_was_scaled_to_zero_is_said_and_the_rest_is_asked(live: Live) -> None:
    with live("istiod-down") as (cluster, _):
        assert _asked_pods(cluster)
        (note,) = cluster.damage
    assert note == "No istiod was asked: Deployment istio-system/istiod wants 0 pods and has 0."


def _altered(
    folder: Path, resource: str, change: Callable[[dict[str, Any]], None], name: str = "healthy"
) -> Path:
    """Return a copy of a recording, one list of which is changed."""
    copy = shutil.copytree(unpacked() / name, folder / "altered")
    for file in (copy / "kubernetes").glob(f"{resource}*.json"):
        document = json.loads(file.read_text())
        change(document)
        file.write_text(json.dumps(document))
    return copy


def _without_istiod(document: dict[str, Any]) -> None:
    document["items"] = [
        item
        for item in document["items"]
        if item["metadata"].get("labels", {}).get("app") != "istiod"
    ]


def test_a_control_plane_outside_the_cluster_is_named(live: Live, tmp_path: Path) -> None:
    def leads_out(document: dict[str, Any]) -> None:
        for item in document["items"]:
            for webhook in item["webhooks"]:
                webhook["clientConfig"] = {"url": "https://user:word@istiod.example.com/inject"}

    first = _altered(tmp_path, "mutatingwebhookconfigurations", leads_out)
    for resource in ("pods", "deployments"):
        file = next((first / "kubernetes").glob(f"{resource}*.json"))
        document = json.loads(file.read_text())
        _without_istiod(document)
        file.write_text(json.dumps(document))
    with live(first) as (cluster, _):
        cluster.questions()
        (note,) = cluster.damage
    assert "calls istiod.example.com" in note
    assert "word" not in note
    with (
        live(first, scope=Scope(istio_namespace="istio-system")) as (cluster, _),
        pytest.raises(SourceError, match="istiod runs outside this cluster"),
    ):
        cluster.questions()


def test_a_cluster_without_istio_says_so(live: Live, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    (bare / "kubernetes").mkdir(parents=True)
    lines = []
    for resource in ("pods", "namespaces"):
        file = f"kubernetes/{resource}.json"
        (bare / file).write_text(json.dumps({"kind": "List", "apiVersion": "v1", "items": []}))
        request = {"kind": "list", "apiVersion": "v1", "resource": resource}
        lines.append({"request": request, "taken_at": "2026-11-23T02:00:00Z", "status": 200})
        lines[-1]["file"] = file
    (bare / "index.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (bare / "manifest.json").write_text('{"format": 1}')
    with (
        live(bare) as (cluster, _),
        pytest.raises(SourceError, match="There is no Istio in cluster:"),
    ):
        cluster.questions()


def test_an_istiod_of_another_name_is_found_by_the_service_that_leads_to_it(
    live: Live, tmp_path: Path
) -> None:
    """Its label is another, its container too; webhooks and proxies name the Service."""

    def renamed(document: dict[str, Any]) -> None:
        for item in document["items"]:
            if item["metadata"].get("labels", {}).get("app") == "istiod":
                item["metadata"]["labels"] |= {"app": "pilot", "istio.io/rev": "1-30"}
                item["spec"]["containers"][0]["name"] = "pilot"

    def leads_there(document: dict[str, Any]) -> None:
        for item in document["items"]:
            if item["metadata"]["name"] == "istiod":
                item["spec"]["selector"] = {"istio": "pilot"}
            elif item["metadata"]["name"] == "istiod-revision-tag-default":
                item["metadata"]["labels"] |= {"istio.io/tag": "prod", "istio.io/rev": "1-30"}

    changed = _altered(tmp_path, "pods", renamed)
    file = next((changed / "kubernetes").glob("services.json"))
    document = json.loads(file.read_text())
    leads_there(document)
    file.write_text(json.dumps(document))
    for scope in (Scope(), Scope(revision="1-30"), Scope(revision="prod")):
        with live(changed, scope=scope) as (cluster, _):
            assert ("istio-system", "istiod") in _asked_pods(cluster)
            assert not cluster.damage


@pytest.mark.parametrize(
    ("variable", "usual", "real"),
    [
        ({"name": "PROXY_CONFIG", "value": '{"proxyAdminPort": 15099}'}, 15000, 15099),
        ({"name": "PROXY_CONFIG", "value": '{"statusPort": 15099}'}, 15020, 15099),
        ({"name": "ENVOY_STATUS_PORT", "value": "15099"}, 15021, 15099),
    ],
)
def test_a_proxy_is_asked_where_it_says_that_it_listens(
    live: Live, tmp_path: Path, variable: dict[str, str], usual: int, real: int
) -> None:
    def moved(document: dict[str, Any]) -> None:
        for item in document["items"]:
            if item["metadata"]["name"] == "client":
                proxy = item["spec"]["initContainers"][1]
                proxy["env"] = [
                    *(one for one in proxy["env"] if one["name"] != variable["name"]),
                    variable,
                ]

    with live(_altered(tmp_path, "pods", moved)) as (cluster, served):
        asked = [
            question
            for question in cluster.questions()
            if isinstance(question, HttpQuestion | ProbeQuestion)
            and (question.pod, question.port) == ("client", usual)
        ]
        answers = list(cluster.ask(asked))
        ports = {seen.port for seen in served.requests if seen.name == "client" and seen.port}
    assert ports == {real}
    assert len(answers) > 1
    for answer in answers:
        assert answer.error is None
        assert answer.detail == {"port": real}


# --- What goes wrong costs only its own answers --------------------------------------------------


def _bad(answers: Sequence[Answer]) -> set[str]:
    return {
        answer.question.pod
        for answer in answers
        if isinstance(answer.question, HttpQuestion) and answer.error is not None
    }


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (Hang(resource="http", name="client"), "no answer within 1 s"),
        (Hang(resource="pods/portforward", name="client"), "not opened within 1 s: the kubelet"),
        (Drop(resource="http", name="client"), "closed"),
        (Drop(resource="http", name="client", after_bytes=2000), "closed|no HTTP"),
        (Garbage(name="client"), "no HTTP"),
        (
            Fail(resource="pods/portforward", name="client", status=500),
            "the API server cannot reach the kubelet of the pod's node: dial tcp",
        ),
        (Fail(resource="pods/portforward", name="client", status=502), "status 502: the server is"),
        (
            Restart(name="client", after=1, gone_s=60),
            "there is no pod bookinfo/client any more|closed",
        ),
    ],
)
def test_a_pod_that_fails_costs_only_its_own_answers(live: Live, fault: Fault, said: str) -> None:
    limits = Limits(question_s=1.0)
    with live("healthy", fault, limits=limits) as (cluster, _):
        answers = list(cluster.ask(_pages(cluster, "/config_dump?include_eds")))
        if isinstance(fault, Restart):
            answers = list(cluster.ask(_pages(cluster, "/config_dump?include_eds")))
    assert len(answers) == 7
    assert _bad(answers) == {"client"}
    (bad,) = (answer for answer in answers if answer.error is not None)
    assert re.search(said, str(bad.error))
    assert bad.body is None


def test_a_pod_that_ends_while_it_is_asked_leaves_nothing_unknown(live: Live) -> None:
    with live("healthy", Restart(name="client", after=1, gone_s=60)) as (cluster, _):
        facts = Facts(cluster)
        facts.gather()
        diagnosis = diagnose(facts)
        states = facts.coverage()
    assert facts.ended() == {("bookinfo", "client")}
    assert set(states.loc[states["state"] == "ended", "pod"]) == {"client"}
    assert diagnosis.verdict == "healthy"
    assert not [one for one in diagnosis.outcomes if one.verdict is Verdict.UNKNOWN]


def test_where_a_kubelet_is_down_no_pod_is_blamed(live: Live) -> None:
    fault = Fail(resource="pods/portforward", status=500)
    with live("healthy", fault) as (cluster, _):
        facts = Facts(cluster)
        facts.gather()
        causes = diagnose(facts).causes
        reached = facts["istiod_ports"]["answers"].notna().any()
        states = facts.coverage()
    assert [cause.check.code for cause in causes] == []
    assert not reached
    pages = states[states["kind"] == "http"]
    assert set(pages["status"]) == {500}
    assert pages["reason"].str.startswith("the API server cannot reach the kubelet").all()


def test_of_a_pod_that_hangs_no_more_is_asked(live: Live) -> None:
    limits = Limits(question_s=1.0)
    with live("healthy", Hang(resource="http", name="client"), limits=limits) as (cluster, _):
        pages = [
            question
            for question in cluster.questions()
            if isinstance(question, HttpQuestion) and question.pod == "client"
        ]
        answers = list(cluster.ask(pages))
    assert len(answers) == 11
    assert all(answer.error for answer in answers)
    assert sum("not asked" in str(answer.error) for answer in answers) == 11 - 3  # ports


def test_a_kept_connection_that_was_closed_is_opened_again(live: Live) -> None:
    """Every third request over a port-forward finds it closed; the page is asked for once more."""
    fault = Drop(resource="http", name="client", every=3)
    with live("healthy", fault) as (cluster, _):
        pages = [
            question
            for question in cluster.questions()
            if isinstance(question, HttpQuestion)
            and (question.pod, question.port) == ("client", 15000)
        ]
        answers = list(cluster.ask(pages))
    assert {answer.status for answer in answers} == {200}


def test_a_server_that_is_too_busy_is_asked_again(live: Live) -> None:
    busy = Fail(status=429, every=5, times=3, retry_after_s=0)
    with live("healthy", busy) as (cluster, _):
        answers = list(cluster.ask(cluster.questions()))
    assert not [answer for answer in answers if answer.status == 429]


def test_the_limit_for_everything_ends_the_asking_with_answers_that_say_so(live: Live) -> None:
    slow = Hang(resource="http")
    with live("healthy", slow, limits=Limits(total_s=1.0)) as (cluster, _):
        questions = cluster.questions()
        answers = list(cluster.ask(questions))
    assert {answer.question for answer in answers} == set(questions)
    assert _of(answers, ListQuestion("v1", "pods")).status == 200
    assert "no answer within 1 s, the limit for everything" in {a.error for a in answers}


@pytest.mark.parametrize(
    "question",
    [
        HttpQuestion("..", "..", 15000, "/ready"),
        HttpQuestion("bookinfo", "../../..", 15000, "/ready"),
        HttpQuestion("bookinfo", "client", 15000, "/a b\r\nX: y"),
        LogQuestion("bookinfo", "client/../../../secrets", "client"),
        ListQuestion("v1/..", "pods"),
    ],
)
def test_a_name_cannot_lead_elsewhere_in_the_api(live: Live, question: Question) -> None:
    with live("healthy") as (cluster, served):
        cluster.questions()
        before = len(served.requests)
        answer = only(cluster, question)
        asked = served.requests[before:]
    assert answer.error is not None or answer.status == 404
    assert not {request.resource for request in asked} & {"secrets", "pods", "namespaces", "http"}


# --- Credentials ---------------------------------------------------------------------------------


@pytest.mark.skipif(os.name != "posix", reason="the plugin is a shell script")
def test_nobody_waits_for_a_plugin_that_hangs_while_it_renews(live: Live, tmp_path: Path) -> None:
    """Its first token has expired; the second run never ends, and goes on when we are done."""
    with live("healthy") as (_, served):
        credential = {
            "apiVersion": "client.authentication.k8s.io/v1",
            "kind": "ExecCredential",
            "status": {"token": served.token, "expirationTimestamp": "2020-01-01T00:00:00Z"},
        }
        plugin, ran = tmp_path / "plugin", tmp_path / "pid"
        plugin.write_text(
            f"#!/bin/sh\n[ -e {tmp_path}/first ] && echo $$ > {ran} && exec sleep 60\n"
            f"touch {tmp_path}/first\necho '{json.dumps(credential)}'\n"
        )
        plugin.chmod(0o755)
        document = json.loads(served.kubeconfig.read_text())
        program = {"command": str(plugin), "interactiveMode": "Never"}
        document["users"][0]["user"] = {"exec": {"apiVersion": credential["apiVersion"], **program}}
        served.kubeconfig.write_text(json.dumps(document))
        cluster = open_source("cluster", limits=Limits(question_s=1.0))
        with pytest.raises(SourceError, match="did not answer in time"):
            cluster.questions()
        os.kill(int(ran.read_text()), signal.SIGTERM)  # there still
    assert not [one for one in threading.enumerate() if one.name == "meshnb-cluster"]


@pytest.mark.parametrize("credential", ["token", "certificate", "exec"])
def test_every_kind_of_credential_is_used(live: Live, credential: str) -> None:
    with live("healthy", credential=credential) as (cluster, _):
        answers = list(cluster.ask(_pages(cluster, "/ready")))
    assert {answer.status for answer in answers} == {200}


def test_a_token_that_expires_in_between_is_renewed(live: Live) -> None:
    with live("healthy", Expire(after=100), credential="exec") as (cluster, served):
        first = served.token
        answers = list(cluster.ask(cluster.questions()))
        assert served.token != first
    assert not [answer for answer in answers if answer.refused]


def test_a_token_that_expired_for_good_is_told_with_what_to_do(live: Live) -> None:
    with (
        live("healthy", Expire(after=1)) as (cluster, _),
        pytest.raises(SourceError, match=r"does not accept the credentials .* Log in again"),
    ):
        cluster.questions()


# --- Ending early, and what is left then ---------------------------------------------------------


def _connections(served: Served) -> int:
    """Return how many sockets of this process are clients of the server, which is in it as well."""
    port, found = int(served.url.rpartition(":")[2]), 0
    for file in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(int(file.name))) as one:
            found += one.family != socket.AF_UNIX and one.getpeername()[1] == port
    return found


@_NEEDS_PROC
def test_who_stops_listening_ends_the_asking_and_leaves_nothing(
    live: Live, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with live("healthy", Slow(resource="http", seconds=0.3)) as (cluster, served):
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        questions = cluster.questions()
        answers = cluster.ask(questions)
        for _ in range(70):
            next(answers)
        answers.close()  # type: ignore[attr-defined]
        assert not [one for one in threading.enumerate() if one.name == "meshnb-cluster"]
        assert _connections(served) == 0
        assert list(tmp_path.iterdir()) == []


def test_an_interrupted_recording_keeps_what_is_there(live: Live, tmp_path: Path) -> None:
    def interrupting(answers: Any, _: int) -> Iterator[Answer]:
        for number, answer in enumerate(answers):
            if number == 50:
                raise KeyboardInterrupt
            yield answer

    with live("healthy") as (cluster, _):
        written = Bundle(record(cluster, tmp_path / "part.zip", progress=interrupting))
        assert not [one for one in threading.enumerate() if one.name == "meshnb-cluster"]
    assert len(written.questions()) == 50
    assert written.damage == ("The recording was interrupted: what it had not asked is missing.",)


def test_interrupted_facts_keep_what_is_there_and_ask_no_more(live: Live) -> None:
    moments = 0

    def watch(_: Progress) -> None:
        nonlocal moments
        moments += 1
        if moments == 2:
            raise KeyboardInterrupt

    fault = Slow(resource="http", seconds=0.3)
    with live("healthy", fault, watch=watch) as (cluster, served):
        facts = Facts(cluster)
        assert not facts.gather()
        before = len(served.requests)
        states = facts.coverage()
        assert len(served.requests) == before
    reasons = set(states.loc[states["state"] == "silent", "reason"])
    assert "not asked: the asking was interrupted" in reasons
    assert "answered" in set(states["state"])


def test_stop_from_another_thread_answers_the_rest_with_why(live: Live) -> None:
    with live("healthy", Hang(resource="http")) as (cluster, _):
        questions = cluster.questions()
        timer = threading.Timer(0.5, cluster.stop)
        timer.start()
        answers = list(cluster.ask(questions))
        timer.join()
    assert len(answers) == len(questions)
    assert "not asked: the asking was stopped" in {answer.error for answer in answers}


def test_progress_counts_and_names_the_slowest_pods(live: Live) -> None:
    seen: list[Progress] = []
    slow = Slow(resource="http", name="client", seconds=2.0)
    with live("healthy", slow, watch=seen.append) as (cluster, _):
        asked = len(list(cluster.ask(cluster.questions())))
    assert seen[-1].done
    assert seen[-1].asked == seen[-1].answered == asked
    assert [moment.answered for moment in seen] == sorted(moment.answered for moment in seen)
    late = [moment for moment in seen if moment.waiting]
    assert late[-1].waiting[0][0] == "bookinfo/client"
    assert "waiting for bookinfo/client (" in str(late[-1])


def test_the_tables_of_a_cluster_ask_only_what_they_show(live: Live) -> None:
    with live("healthy") as (cluster, served):
        facts = Facts(cluster)
        before = len(served.requests)
        assert len(facts["events"]) > 3
        asked = served.requests[before:]
    assert {request.resource for request in asked} == {"events"}


@_NEEDS_PROC
def test_a_thousand_connections_leave_none_open(live: Live) -> None:
    with live("healthy") as (cluster, served):
        pages = _pages(cluster, "/ready")[:7]
        answered = 0
        while sum(one.resource == "pods/portforward" for one in served.requests) < 1000:
            # Each go has connections of its own.
            answered += len([a for a in cluster.ask(pages) if a.status is not None])
        assert answered >= 1000
        assert _connections(served) == 0


@_NEEDS_PROC
def test_a_low_limit_of_open_files_is_told_before_anything_is_asked(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(
        resource, "getrlimit", lambda _: (len(list(Path("/proc/self/fd").iterdir())) + 33, 99)
    )
    monkeypatch.setattr(resource, "setrlimit", lambda *_: None)
    with live("healthy") as (cluster, _), pytest.raises(SourceError, match="ulimit -n 4096"):
        list(cluster.ask(cluster.questions()))


def test_logs_of_a_container_that_restarted_are_asked_for_twice(live: Live) -> None:
    """The runtime had thrown the old one away; the kubelet says so in the place of the log."""
    with live("app-crash-loop") as (cluster, _):
        logs = [
            question
            for question in cluster.questions()
            if isinstance(question, LogQuestion) and question.container == "details"
        ]
        now, before = sorted(
            cluster.ask(logs), key=lambda answer: answer.question.to_json()["previous"]
        )
    assert now.body
    assert before.body is None
    assert str(before.error).startswith("unable to retrieve container logs for containerd://")
