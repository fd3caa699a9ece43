"""A cluster is asked through Kubernetes' own API server and kubelet, and answers as was recorded.

``make kubernetes`` builds etcd, kube-apiserver and a node from Go modules (Go 1.26 or newer, the
module proxy, about 15 minutes and 3 GB the first time) and runs these tests. They are skipped
unless ``MESHNB_KUBERNETES`` names the folder of these programs. Linux only, because each pod is a
loopback address.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from meshnb.diagnosis import diagnose
from meshnb.errors import SourceError
from meshnb.sources import (
    Answer,
    Bundle,
    HttpQuestion,
    Limits,
    ListQuestion,
    LogQuestion,
    ProbeQuestion,
    Question,
    Scope,
    open_source,
    record,
)
from meshnb.sources.permissions import Permission, manifest, missing, needed
from meshnb.tables import Facts
from tests.conftest import unpacked
from tests.kubernetes.authority import User
from tests.kubernetes.cluster import Kubernetes, running

_BINARIES = Path(os.environ.get("MESHNB_KUBERNETES", os.devnull))
_PROGRAMS = ("etcd", "kube-apiserver", "node")
_RECORDING = "subset-missing"
_READER, _NO_CREATE, _ONE_NAMESPACE = User("reader"), User("no-create"), User("one-namespace")
_PODS = ("", "pods")
#: What the API server or the node of these tests makes different from what was recorded.
_OTHERWISE = frozenset(
    {"leases", "servicecidrs", "ipaddresses", "customresourcedefinitions", "nodes", "secrets"}
)
#: Fields that are filled in where the recorded cluster had none, or counted anew.
_FILLED = ("resourceVersion", "managedFields", "generation")

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="pods are loopback addresses of Linux"),
    pytest.mark.skipif(
        not all((_BINARIES / program).exists() for program in _PROGRAMS),
        reason="MESHNB_KUBERNETES names no folder with its programs; `make kubernetes` builds them",
    ),
]


@pytest.fixture(scope="module")
def kubernetes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kubernetes]:
    folder = tmp_path_factory.mktemp("kubernetes")
    users = (_READER, _NO_CREATE, _ONE_NAMESPACE)
    with running(Bundle(unpacked() / _RECORDING), _BINARIES, folder, users) as cluster:
        yield cluster


@pytest.fixture
def opened(kubernetes: Kubernetes, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Return a function that opens the cluster as a user, or with a user entry of a kubeconfig."""

    def opening(user: User | str | Mapping[str, Any] | None = None, **options: Any) -> Any:
        path = kubernetes.kubeconfig() if user is None else kubernetes.kubeconfig(user)
        monkeypatch.setenv("KUBECONFIG", str(path))
        return open_source("cluster", **options)

    return opening


def _answers(source: Any) -> dict[Question, Answer]:
    return {answer.question: answer for answer in source.ask(source.questions())}


def _items(answer: Answer) -> dict[tuple[str, str], Any]:
    found = {}
    for item in json.loads(answer.content)["items"]:
        metadata = item["metadata"]
        named = {name: value for name, value in metadata.items() if name not in _FILLED}
        found[metadata.get("namespace", ""), metadata["name"]] = named
    return found


def test_every_answer_is_the_one_that_was_recorded(opened: Callable[..., Any]) -> None:
    before, now = _answers(Bundle(unpacked() / _RECORDING)), _answers(opened())
    compared = 0
    for question, answer in before.items():
        again = now[question]
        if isinstance(question, ListQuestion):
            if question.resource in _OTHERWISE or answer.status != 200:
                continue
            for place, metadata in _items(answer).items():
                found = _items(again)[place]
                assert {name: found[name] for name in metadata} == metadata, question
        elif answer.error is not None:
            assert again.error is not None, question
        else:
            assert again.content == answer.content, question
            assert (again.status, dict(again.detail)) == (answer.status, dict(answer.detail))
        compared += 1
    assert compared > 150


def test_the_diagnosis_is_that_of_the_recording(opened: Callable[..., Any], tmp_path: Path) -> None:
    def causes(source: Any) -> list[tuple[str, str]]:
        return [(c.check.code, str(c.finding.subject)) for c in diagnose(Facts(source)).causes]

    expected = causes(Bundle(unpacked() / _RECORDING))
    assert expected
    assert causes(opened()) == expected
    assert causes(Bundle(record(opened(), tmp_path / "live.zip"))) == expected


# --- Who asks ------------------------------------------------------------------------------------


def _roles(scope: Scope, *, without: str = "") -> list[dict[str, Any]]:
    printed = manifest(
        one
        for one in needed(scope)
        if not (one.resource == "pods/portforward" and one.verb == without)
    )
    return list(yaml.safe_load_all(printed))


def test_the_role_that_is_printed_is_enough(
    kubernetes: Kubernetes, opened: Callable[..., Any]
) -> None:
    kubernetes.allow(_READER, _roles(Scope()))
    cluster = opened(_READER)
    assert missing(cluster) == {}
    refused = [answer.question for answer in _answers(cluster).values() if answer.refused]
    assert refused == [ListQuestion("v1", "secrets")]


def test_who_may_not_create_a_port_forward_reads_so(
    kubernetes: Kubernetes, opened: Callable[..., Any]
) -> None:
    kubernetes.allow(_NO_CREATE, _roles(Scope(), without="create"))
    lacking = missing(opened(_NO_CREATE))
    assert set(lacking) == {
        Permission("", "pods/portforward", "create", namespace)
        for namespace in ("bookinfo", "istio-system")
    }
    assert all("Kubernetes wants from 1.35 on" in said for said in lacking.values())


def test_who_may_see_one_namespace_hears_of_that_one(
    kubernetes: Kubernetes, opened: Callable[..., Any]
) -> None:
    scope = Scope(namespaces=("bookinfo",))
    kubernetes.allow(_ONE_NAMESPACE, _roles(scope))
    cluster = opened(_ONE_NAMESPACE, scope=scope)
    answers = _answers(cluster)
    assert answers[ListQuestion("v1", "pods")].detail == {
        "namespaces": ["bookinfo", "istio-system"]
    }
    assert answers[ListQuestion("v1", "services")].detail == {"namespaces": ["bookinfo"]}
    # What the cluster does not know is unknown in a namespace, too.
    unknown = ListQuestion("gateway.networking.k8s.io/v1", "tlsroutes")
    assert (answers[unknown].status, answers[unknown].error) == (404, None)
    causes = diagnose(Facts(opened(_ONE_NAMESPACE, scope=scope))).causes
    assert [cause.check.code for cause in causes][:1] == ["MNB210"]
    assert "MNB604" not in {cause.check.code for cause in causes}


def test_a_wrong_token_is_refused_in_a_sentence(opened: Callable[..., Any]) -> None:
    with pytest.raises(SourceError, match="does not accept the credentials"):
        opened("expired").questions()


def test_service_accounts_certificates_and_plugins_are_accepted(
    kubernetes: Kubernetes, opened: Callable[..., Any], tmp_path: Path
) -> None:
    account = "/api/v1/namespaces/bookinfo/serviceaccounts/default"
    body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
    token = kubernetes.ask("POST", f"{account}/token", body)["status"]["token"]
    refused = next(iter(opened(token).ask([ListQuestion("v1", "pods")])))
    assert "system:serviceaccount:bookinfo:default" in str(refused.error)
    pair = str(kubernetes.authority.sign("person", User("person", ("system:masters",))))
    program = tmp_path / "plugin"
    credential = {
        "apiVersion": "client.authentication.k8s.io/v1",
        "kind": "ExecCredential",
        "status": {"token": "token-of-admin"},
    }
    program.write_text(f"#!/bin/sh\necho '{json.dumps(credential)}'\n")
    program.chmod(0o755)
    plugin = {
        "apiVersion": credential["apiVersion"],
        "command": str(program),
        "interactiveMode": "Never",
    }
    for entry in ({"client-certificate": pair, "client-key": pair}, {"exec": plugin}):
        (answer,) = opened(entry).ask([ListQuestion("v1", "secrets")])
        assert answer.status == 200


# --- What goes wrong -----------------------------------------------------------------------------


@contextmanager
def _without_pod(kubernetes: Kubernetes, pod: Mapping[str, Any]) -> Iterator[None]:
    kubernetes.remove(_PODS, pod)
    try:
        yield
    finally:
        kubernetes.put(_PODS, {**pod, "kind": "Pod", "apiVersion": "v1"})


def _pod(kubernetes: Kubernetes, name: str) -> Any:
    return kubernetes.ask("GET", f"/api/v1/namespaces/bookinfo/pods/{name}")


def _of(answers: Mapping[Question, Answer], pod: str) -> list[Answer]:
    return [
        answer
        for question, answer in answers.items()
        if not isinstance(question, ListQuestion) and question.pod == pod
    ]


def test_a_pod_that_is_deleted_in_between_costs_its_own_answers(
    kubernetes: Kubernetes, opened: Callable[..., Any]
) -> None:
    cluster = opened()
    cluster.questions()
    with _without_pod(kubernetes, _pod(kubernetes, "client")):
        answers = _answers(cluster)
    assert {answer.error for answer in _of(answers, "client")} == {
        "there is no pod bookinfo/client any more",
        'Error from server (NotFound): pods "client" not found',
    }
    others = [a for a in answers.values() if a not in _of(answers, "client")]
    closed = [answer for answer in others if answer.error is not None]
    assert {type(answer.question) for answer in closed} <= {ProbeQuestion}


def test_a_closed_port_is_refused(kubernetes: Kubernetes, opened: Callable[..., Any]) -> None:
    question = ProbeQuestion("bookinfo", "client", 15090, "tcp")
    kubernetes.sockets.close("bookinfo", "client", 15090)
    try:
        (answer,) = opened().ask([question])
    finally:
        kubernetes.sockets.open("bookinfo", "client", 15090)
    assert answer.error == "connection refused: nothing listens on port 15090"
    assert not answer.undelivered


def test_a_log_that_the_kubelet_cannot_find_is_no_log(
    kubernetes: Kubernetes, opened: Callable[..., Any]
) -> None:
    log = kubernetes.folder / "logs" / "bookinfo" / "client" / "client.log"
    kept = log.read_bytes()
    log.unlink()
    try:
        (answer,) = opened().ask([LogQuestion("bookinfo", "client", "client")])
    finally:
        log.write_bytes(kept)
    assert str(answer.error).startswith("unable to retrieve container logs for containerd://")


def test_a_kubelet_that_is_down_is_named_and_no_pod_is_blamed(
    kubernetes: Kubernetes, opened: Callable[..., Any]
) -> None:
    node = kubernetes.processes["node"]
    node.kill()
    node.wait()
    try:
        facts = Facts(opened(limits=Limits(question_s=5.0)))
        causes = diagnose(facts).causes
        pages = [
            a
            for q in facts.source.questions()
            if isinstance(q, HttpQuestion)
            for a in [facts.answer(q)]
        ]
    finally:
        kubernetes.restart_node()
    assert all(page.undelivered and page.status == 500 for page in pages)
    assert {str(page.error).partition(": ")[0] for page in pages} == {
        "the API server cannot reach the kubelet of the pod's node"
    }
    assert {cause.check.code for cause in causes} <= {"MNB210"}


def test_long_lists_come_in_pages(kubernetes: Kubernetes, opened: Callable[..., Any]) -> None:
    names = [f"page-{number:04}" for number in range(1100)]
    for name in names:
        metadata = {"name": name, "namespace": "default", "uid": name}
        item = {"kind": "ConfigMap", "apiVersion": "v1", "metadata": metadata}
        kubernetes.put(("", "configmaps"), item)
    (answer,) = opened().ask([ListQuestion("v1", "configmaps")])
    found = [name for _, name in _items(answer) if name.startswith("page-")]
    assert found == names
