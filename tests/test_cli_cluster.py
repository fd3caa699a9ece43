"""The command line against a live cluster, which is a recording that is served."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from meshnb.cli import run
from meshnb.sources import Bundle
from meshnb.sources.serve import Fault, Hang, Refuse, Served, serve
from tests.conftest import unpacked

Printed = tuple[int, str, str]
Meshnb = Callable[..., Printed]
Mesh = Callable[..., AbstractContextManager[Served]]


@pytest.fixture
def mesh(monkeypatch: pytest.MonkeyPatch) -> Mesh:
    """Return a function that serves a recording, and makes it the current context."""

    @contextmanager
    def serving(recording: str, *faults: Fault) -> Iterator[Served]:
        with serve(Bundle(unpacked() / recording), faults=faults) as served:
            monkeypatch.setenv("KUBECONFIG", str(served.kubeconfig))
            yield served

    return serving


@pytest.fixture
def meshnb(capsys: pytest.CaptureFixture[str]) -> Meshnb:
    """Return a function that runs a command and returns its exit code and what it printed."""

    def running(*arguments: str) -> Printed:
        code = run(arguments)
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return running


def test_a_cluster_is_diagnosed_as_its_recording_is(mesh: Mesh, meshnb: Meshnb) -> None:
    with mesh("subset-missing"):
        code, live, _ = meshnb("diagnose", "cluster")
    recorded = meshnb("diagnose", str(unpacked() / "subset-missing"))
    assert (code, live.splitlines()[0]) == (recorded[0], recorded[1].splitlines()[0])


def test_the_context_is_named_either_way(mesh: Mesh, meshnb: Meshnb) -> None:
    with mesh("healthy"):
        one = meshnb("table", "services", "cluster", "--context", "meshnb-replay")
        other = meshnb("table", "services", "cluster:meshnb-replay")
        assert one == other
        assert "reviews" in one[1]
        code, _, said = meshnb("table", "services", "cluster", "--context", "replay")
    assert (code, said) == (
        2,
        "meshnb: The kubeconfig has no context 'replay'. Did you mean meshnb-replay?\n",
    )


@pytest.mark.parametrize(
    ("options", "asked"),
    [
        (["-n", "istio-system"], {"istio-ingressgateway", "istiod"}),
        (["-n", "bookinfo", "-l", "app=reviews"], {"reviews-v1", "reviews-v2", "istiod"}),
        (["--pod", "client"], {"client", "istiod"}),
        (["-A", "--pod", "bookinfo/client"], {"client", "istiod"}),
    ],
)
def test_a_recording_of_a_part_has_the_pages_of_that_part(
    mesh: Mesh, meshnb: Meshnb, tmp_path: Path, options: list[str], asked: set[str]
) -> None:
    path = tmp_path / "part.zip"
    with mesh("healthy"):
        code, _, _ = meshnb("record", "cluster", str(path), *options)
    assert code == 0
    requests = [question.to_json() for question in Bundle(path).questions()]
    pods = {one["pod"].rsplit("-", 2)[0] for one in requests if one["kind"] == "http"}
    assert pods == asked


def test_what_was_left_out_stays_with_the_recording(
    mesh: Mesh, meshnb: Meshnb, tmp_path: Path
) -> None:
    path = tmp_path / "down.zip"
    with mesh("istiod-down"):
        assert meshnb("record", "cluster", str(path))[0] == 0
    said = "No istiod was asked: Deployment istio-system/istiod wants 0 pods and has 0."
    assert said in Bundle(path).damage
    assert said in meshnb("diagnose", str(path))[2]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["diagnose", "recorded:healthy", "-n", "bookinfo"], "--namespace chooses what a live"),
        (["diagnose", "cluster:a", "--context", "b"], "names a context, and so does --context"),
        (["diagnose", "cluster", "-A", "-n", "x"], "exclude each other"),
        (["diagnose", "cluster", "-l", "a b"], "is no label selector"),
        (["diagnose", "cluster", "--sample", "0"], "Invalid value for '--sample'"),
        (["diagnose", "cluster", "--timeout", "0"], "Invalid value for '--timeout'"),
    ],
)
def test_a_choice_that_makes_no_sense_is_refused(
    mesh: Mesh, meshnb: Meshnb, arguments: list[str], said: str
) -> None:
    with mesh("healthy"):
        code, _, error = meshnb(*arguments)
    assert code == 2
    assert said in error


def test_who_may_not_list_all_pods_is_told_to_choose_a_namespace(
    mesh: Mesh, meshnb: Meshnb, tmp_path: Path
) -> None:
    with mesh("healthy", Refuse(verb="list", resource="pods", namespace="")):
        for command in (
            ("diagnose", "cluster"),
            ("record", "cluster", str(tmp_path / "one.zip")),
            ("permissions", "cluster"),
        ):
            _, _, said = meshnb(*command)
            assert said.count("say with -n NAMESPACE which to ask") == 1, command
            assert said.splitlines()[0].startswith("meshnb: pods may not be listed in all"), command


def test_a_limit_of_time_ends_with_what_is_there(mesh: Mesh, meshnb: Meshnb) -> None:
    with mesh("healthy", Hang(resource="http")):
        code, out, error = meshnb("findings", "cluster", "--timeout", "1.5", "--json")
    assert code == 0
    assert isinstance(json.loads(out), list)
    assert "refused or silent" in error


def test_without_a_kubeconfig_the_source_cannot_be_used(
    meshnb: Meshnb, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", "/absent")
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    code, _, error = meshnb("diagnose", "cluster")
    assert code == 3
    assert "There is no kubeconfig" in error


def test_a_part_of_a_cluster_is_compared_with_a_recording(mesh: Mesh, meshnb: Meshnb) -> None:
    healthy = str(unpacked() / "healthy")
    with mesh("subset-missing"):
        code, out, said = meshnb("diff", healthy, "cluster", "-n", "bookinfo", "-l", "app=reviews")
    assert code == 1
    assert "routes 80 and 9080 of 2 proxies now point to subset v3 instead of subset v2" in out
    assert "not compared: what 5 proxies say and hold: at the later moment nobody asked" in said
    code, _, said = meshnb("diff", "-n", "bookinfo", healthy, healthy)
    assert code == 2
    assert "--namespace chooses what a live cluster is asked" in said
