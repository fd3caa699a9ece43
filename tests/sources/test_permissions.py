"""The roles that asking a mesh needs follow from what it is asked."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from meshnb.cli import commands
from meshnb.diagnosis import diagnose
from meshnb.sources import (
    Answer,
    Bundle,
    HttpQuestion,
    ListQuestion,
    LogQuestion,
    Scope,
    open_source,
)
from meshnb.sources.cluster import Cluster
from meshnb.sources.permissions import (
    CLUSTER_WIDE,
    Permission,
    in_lines,
    manifest,
    missing,
    needed,
    permissions_of,
    refused,
)
from meshnb.sources.questions import group_of, list_questions
from meshnb.sources.serve import Fault, Refuse, Served, serve
from meshnb.sources.serve.kinds import known_kind
from tests.alteration import Altered
from tests.conftest import unpacked

SECRETS = Permission("", "secrets", "list")


@contextmanager
def _served(
    monkeypatch: pytest.MonkeyPatch, *faults: Fault, recording: str = "healthy", **options: Any
) -> Iterator[tuple[Cluster, Served]]:
    with serve(Bundle(unpacked() / recording), faults=faults) as served:
        monkeypatch.setenv("KUBECONFIG", str(served.kubeconfig))
        cluster = open_source("cluster", **options)
        assert isinstance(cluster, Cluster)
        yield cluster, served


@pytest.mark.parametrize("name", ["healthy", "garden-healthy", "market-healthy"])
def test_what_a_cluster_is_asked_is_what_the_role_allows(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Of a mesh with sidecars, of an ambient one, and of one with the Gateway API."""
    allowed = needed(Scope(), secrets=True)
    with _served(monkeypatch, recording=name) as (cluster, _):
        for question in cluster.questions():
            for one in permissions_of(question):
                extra = one.group.endswith((".istio.io", "gateway.networking.k8s.io"))
                anywhere = Permission(one.group, one.resource, one.verb)
                assert anywhere in allowed or extra, question


def test_a_new_question_brings_its_permission() -> None:
    question = ListQuestion("example.com/v1", "things")
    assert needed(Scope(), [question]) == {Permission("example.com", "things", "list")}
    log = LogQuestion("shop", "web", "app")
    assert needed(Scope(namespaces=("shop",)), [log]) == {Permission("", "pods/log", "get", "shop")}


def test_nothing_but_reading_and_forwarding_is_allowed() -> None:
    for one in needed(Scope(), secrets=True):
        assert one.verb in ("list", "get") or (one.verb, one.resource) == (
            "create",
            "pods/portforward",
        )


def test_lists_of_secrets_are_allowed_only_when_asked_for() -> None:
    assert SECRETS not in needed(Scope())
    assert SECRETS in needed(Scope(), secrets=True)


def test_a_scope_of_namespaces_gets_roles_and_no_list_beyond_them() -> None:
    scope = Scope(namespaces=("shop", "road"), istio_namespace="mesh")
    documents = list(yaml.safe_load_all(manifest(needed(scope))))
    places = [(one["kind"], one["metadata"].get("namespace")) for one in documents]
    assert places == [("ClusterRole", None), ("Role", "mesh"), ("Role", "road"), ("Role", "shop")]
    everywhere = {name for rule in documents[0]["rules"] for name in rule["resources"]}
    assert everywhere <= CLUSTER_WIDE
    for role in documents[1:]:
        held = {name for rule in role["rules"] for name in rule["resources"]}
        assert not held & CLUSTER_WIDE
        assert {"pods", "pods/log", "pods/portforward"} <= held
    assert {name for rule in documents[1]["rules"] for name in rule["resources"]} == {
        *("pods", "pods/log", "pods/portforward")
    }


def test_roles_of_different_scopes_do_not_take_each_others_place() -> None:
    """Applying one after the other leaves both users their rights, whatever they were for."""
    rules: dict[tuple[str, ...], Any] = {}
    scopes = [Scope(), *(Scope(namespaces=one) for one in (("shop",), ("shop", "road")))]
    scopes += [Scope(namespaces=("istio-system",)), Scope(istio_namespace="mesh")]
    for scope in scopes:
        for secrets in (False, True):
            for role in yaml.safe_load_all(manifest(needed(scope, secrets=secrets))):
                metadata = role["metadata"]
                place = role["kind"], metadata.get("namespace", ""), metadata["name"]
                assert rules.setdefault(place, role["rules"]) == role["rules"], (place, scope)
    assert {name for kind, _, name in rules if kind == "ClusterRole"} == {
        *("meshnb-all-namespaces", "meshnb-all-namespaces-secrets", "meshnb-cluster-wide")
    }
    assert ("Role", "istio-system", "meshnb-istiod") in rules
    assert ("Role", "istio-system", "meshnb-namespace") in rules
    assert "# meshnb-namespace: the namespace shop\n" in manifest(needed(scopes[1]))


def test_what_lacks_is_one_line_for_each_verb_group_and_place() -> None:
    lacking = [Permission("", name, "list", ns) for name in ("pods", "events") for ns in "ab"]
    lacking += [Permission("", "nodes", "list"), Permission("batch", "jobs", "list")]
    lacking += [Permission("", "pods/log", "get", "a"), Permission("batch", "cronjobs", "list")]
    assert in_lines(lacking) == (
        "list events, pods in namespaces a, b",
        "list nodes",
        "get pods/log in namespace a",
        "list cronjobs, jobs (batch) in all namespaces",
    )


def test_what_lies_in_no_namespace_is_known() -> None:
    for question in list_questions({}):
        kind = known_kind(group_of(question.api_version), question.resource)
        if kind is None:  # nothing of it was ever recorded
            assert question.resource not in CLUSTER_WIDE, question
            continue
        assert kind.namespaced != (question.resource in CLUSTER_WIDE), question


def test_a_cluster_that_refuses_nothing_lacks_nothing_and_nothing_is_posted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with _served(monkeypatch) as (cluster, served):
        assert missing(cluster, secrets=True) == {}
        assert {seen.method for seen in served.requests} == {"GET"}


def test_what_a_cluster_refuses_is_said_with_verb_resource_and_namespace(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    faults = (
        Refuse(verb="list", resource="secrets"),
        Refuse(verb="get", resource="pods/log", namespace="legacy"),
        Refuse(verb="create", resource="pods/portforward", namespace="bookinfo"),
    )
    with _served(monkeypatch, *faults) as (cluster, _):
        lacking = missing(cluster, secrets=True)
    assert SECRETS in lacking
    assert Permission("", "pods/log", "get", "legacy") in lacking
    assert Permission("", "pods/portforward", "create", "bookinfo") in lacking
    assert Permission("", "pods/portforward", "get", "bookinfo") not in lacking
    assert all(
        one.resource == "secrets" or one.namespace in ("legacy", "bookinfo") for one in lacking
    )
    assert str(SECRETS) == "list secrets in all namespaces"
    assert str(Permission("", "pods/log", "get", "legacy")) == "get pods/log in namespace legacy"


def test_the_command_prints_roles_and_says_what_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    printed = CliRunner().invoke(commands, ["permissions"])
    assert printed.exit_code == 0
    (role,) = yaml.safe_load_all(printed.output)
    assert role["kind"] == "ClusterRole"
    with _served(monkeypatch, Refuse(verb="list", resource="nodes")):
        found = CliRunner().invoke(commands, ["permissions", "cluster"])
    assert found.exit_code == 1
    assert "list nodes" in found.output
    assert "list pods" not in found.output
    with _served(monkeypatch):
        found = CliRunner().invoke(commands, ["permissions", "cluster"])
    assert found.exit_code == 0
    assert "refused nothing" in found.output


def test_to_somebody_with_no_rights_each_fact_is_said_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with _served(monkeypatch, Refuse()):
        found = CliRunner().invoke(commands, ["permissions", "cluster", "-n", "bookinfo"])
    assert found.exit_code == 1
    head, *lines, last = found.stdout.splitlines()
    assert re.fullmatch(r"cluster:meshnb-replay refused \S+:", head)
    assert all(line.startswith("  list ") for line in lines)
    assert len(lines) < 30
    assert "forbidden" not in found.stdout
    assert found.stdout.count(" services,") <= 1
    assert last == "`meshnb permissions -n bookinfo` prints roles that allow all that is asked."


def test_what_was_refused_for_another_reason_is_said(tmp_path: Path) -> None:
    mesh = Altered("healthy", tmp_path)
    mesh.silence("the firewall wants a badge", status=403, kind="list", resource="nodes")
    found = CliRunner().invoke(commands, ["permissions", str(mesh.folder)])
    assert "  list nodes\n" in found.stdout
    assert "Said: the firewall wants a badge\n" in found.stdout


def test_checks_without_a_verdict_name_the_permission_that_lacks(tmp_path: Path) -> None:
    words = 'virtualservices.networking.istio.io is forbidden: User "me" cannot list resource'
    mesh = Altered("healthy", tmp_path)
    mesh.silence(words, status=403, kind="list", resource="virtualservices")
    mesh.silence("forbidden", status=403, kind="log", container="discovery")
    document = json.dumps(diagnose(mesh.facts()).to_json()["unknown"])
    assert (
        "lacks permission to list virtualservices.networking.istio.io in all namespaces" in document
    )
    assert "lacks permission to get pods/log in namespace istio-system" in document


def test_a_recording_says_what_its_recorder_was_refused(tmp_path: Path) -> None:
    mesh = Altered("healthy", tmp_path)
    mesh.silence("forbidden", status=403, kind="list", resource="nodes")
    assert set(missing(Bundle(mesh.folder))) == {Permission("", "nodes", "list")}


def test_a_pod_that_refuses_a_page_itself_shows_no_lack_of_a_permission() -> None:
    """It was asked with every permission that it takes."""
    page = HttpQuestion("mesh", "istiod-1", 15014, "/debug/syncz")
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    assert refused(Answer(page, moment, 1.0, 403, b"forbidden")) == ()
    said = 'User "me" cannot create resource "pods/portforward" in API group ""'
    assert refused(Answer(page, moment, 1.0, 403, error=said)) == (
        Permission("", "pods/portforward", "create", "mesh"),
    )
