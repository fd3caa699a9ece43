"""A folder of manifests as a source: what it answers, what it refuses, and where things stand."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from meshnb.errors import BundleError, NotRecorded, SourceError
from meshnb.sources import (
    Bundle,
    HttpQuestion,
    ListQuestion,
    Manifests,
    Source,
    open_source,
    record,
)
from meshnb.sources.base import only
from meshnb.tables import Facts

SERVICE = "apiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\nspec:\n  ports: []\n"
SERVICES = ListQuestion("v1", "services")


@pytest.fixture
def write(tmp_path: Path) -> Path:
    """Return an empty folder."""
    return tmp_path


def listed(source: Source, question: ListQuestion = SERVICES) -> Any:
    """Return the answer to a question, decoded."""
    return json.loads(bytes(only(source, question).body or b""))


def names(source: Source, question: ListQuestion) -> list[str]:
    """Return namespace and name of each object that a source lists."""
    listing = listed(source, question)
    return [
        "/".join(filter(None, (one["metadata"].get("namespace"), one["metadata"]["name"])))
        for one in listing["items"]
    ]


def test_a_folder_is_read_with_all_that_lies_in_it(write: Path) -> None:
    """Folders, several documents, lists, JSON; not what is hidden, and no other files."""
    (write / "a" / "b").mkdir(parents=True)
    (write / ".git").mkdir()
    (write / "a" / "b" / "one.yml").write_text(
        f"# two\n{SERVICE.format(name='one')}---\n---\n{SERVICE.format(name='two')}"
    )
    (write / "three.json").write_text(
        json.dumps(
            {
                "apiVersion": "v1",
                "kind": "ServiceList",
                "items": [{"metadata": {"name": "three", "namespace": "shop"}}],
            }
        )
    )
    (write / "four.yaml").write_text(
        "apiVersion: v1\nkind: List\nitems:\n"
        "- {apiVersion: v1, kind: Service, metadata: {name: four}}\n"
    )
    (write / ".git" / "no.yaml").write_text(SERVICE.format(name="hidden"))
    (write / "README.md").write_text("no")

    source = open_source(write)

    assert isinstance(source, Manifests)
    assert sorted(names(source, SERVICES)) == [
        "default/four",
        "default/one",
        "default/two",
        "shop/three",
    ]
    assert source.damage == ()


def test_a_kind_without_objects_is_answered_with_an_empty_list(write: Path) -> None:
    """But not what others than the author make: that no pods are written says nothing of pods."""
    (write / "a.yaml").write_text(SERVICE.format(name="one"))
    source = open_source(write)

    assert names(source, ListQuestion("networking.istio.io/v1", "virtualservices")) == []
    assert names(source, ListQuestion("gateway.networking.k8s.io/v1", "httproutes")) == []
    asked = {q.resource for q in source.questions() if isinstance(q, ListQuestion)}
    assert {"deployments", "namespaces", "configmaps"} <= asked
    assert asked.isdisjoint({"pods", "nodes", "secrets", "endpointslices"})


def test_no_other_question_is_answered(write: Path) -> None:
    (write / "a.yaml").write_text(SERVICE.format(name="one"))
    with pytest.raises(NotRecorded, match="set of manifests"):
        only(open_source(write), HttpQuestion("shop", "web", 15000, "/certs"))


def test_objects_of_all_versions_of_a_kind_stand_in_one_list(write: Path) -> None:
    (write / "a.yaml").write_text(
        "---\n".join(
            f"apiVersion: networking.istio.io/{version}\nkind: Gateway\n"
            f"metadata: {{name: g-{version}}}\n"
            for version in ("v1", "v1beta1", "v1alpha3")
        )
    )
    config = Facts(open_source(write))["istio_config"]
    assert sorted(config["name"]) == ["g-v1", "g-v1alpha3", "g-v1beta1"]
    assert sorted(config["api_version"].str.rpartition("/")[2]) == ["v1", "v1alpha3", "v1beta1"]


def test_a_kind_that_nobody_knows_is_listed_under_its_likely_name(write: Path) -> None:
    (write / "a.yaml").write_text("apiVersion: a.io/v2\nkind: Policy\nmetadata: {name: x}\n")
    assert names(open_source(write), ListQuestion("a.io/v2", "policies")) == ["default/x"]


def test_only_what_has_a_namespace_gets_the_default_one(write: Path) -> None:
    (write / "a.yaml").write_text(
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, namespace: shop}\n"
    )
    assert names(open_source(write), ListQuestion("v1", "namespaces")) == ["shop"]


def test_values_are_read_as_kubernetes_reads_them(write: Path) -> None:
    """Texts that YAML 1.1 takes for times or for numbers to the base of 60 stay texts."""
    (write / "a.yaml").write_text(
        f"{SERVICE.format(name='a')}  day: 2020-01-01\n  time: 12:30\n  on: yes\n  mode: 0644\n"
        "  quoted: '5'\n  nothing: ~\n  8080: x\n  half: 1.5\n"
    )
    body = listed(open_source(write))
    assert body["items"][0]["spec"] == {
        "ports": [],
        "day": "2020-01-01",
        "time": "12:30",
        "true": True,
        "mode": 420,
        "quoted": "5",
        "nothing": None,
        "8080": "x",
        "half": 1.5,
    }


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("kind: [a\nb: 1\n", ":2 is no YAML"),
        ("a: 1\n\tb: 2\n", ":2 is no YAML"),
        ("a: *nowhere\n", ":1 is no YAML"),
        ("a: 1\na: 2\n", ":2 has the key 'a' a second time"),
        ("a: !!python/object:os.system x\n", ":1 has a value of type"),
        ("a: \x00\n", "is no YAML"),
        ("? [a]\n: 1\n", ":1 has a key that is no text"),
    ],
)
def test_what_is_no_yaml_is_refused_with_file_and_line(
    text: str, complaint: str, write: Path
) -> None:
    (write / "bad.yaml").write_text(text)
    with pytest.raises(SourceError) as caught:
        open_source(write)
    assert str(write / "bad.yaml") in str(caught.value)
    assert complaint in str(caught.value)


def test_what_is_no_json_is_refused_with_file_and_line(write: Path) -> None:
    (write / "a.yaml").write_text(SERVICE.format(name="one"))
    (write / "bad.json").write_text('{"a":\n 1,\n}')
    with pytest.raises(SourceError, match=r"bad\.json:3 is no JSON"):
        open_source(write)


def test_aliases_are_followed_a_few_times_but_not_into_a_bomb(write: Path) -> None:
    (write / "a.yaml").write_text(
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: a\n  labels: &l {app: a}\n"
        "spec:\n  selector: *l\n  more: {<<: *l, b: c}\n"
    )
    body = listed(open_source(write))
    assert body["items"][0]["spec"] == {"selector": {"app": "a"}, "more": {"app": "a", "b": "c"}}

    lines = ["a0: &a0 [x,x,x,x,x,x,x,x,x]"]
    lines += [f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9)]
    (write / "bomb.yaml").write_text("\n".join(lines))
    with pytest.raises(SourceError, match=r"bomb\.yaml:\d+ unfolds to a document"):
        open_source(write)


def test_an_alias_of_itself_is_refused(write: Path) -> None:
    (write / "a.yaml").write_text("a: &a [*a]\n")
    with pytest.raises(SourceError, match="unfolds"):
        open_source(write)


def test_a_document_that_is_nested_too_deeply_is_refused(write: Path) -> None:
    (write / "a.yaml").write_text("[" * 5000 + "]" * 5000)
    with pytest.raises(SourceError, match=r"a\.yaml"):
        open_source(write)


def test_what_is_no_object_is_damage_with_its_line(write: Path) -> None:
    (write / "values.yaml").write_text("# values\nreplicas: 3\n")
    (write / "a.yaml").write_text(SERVICE.format(name="one"))
    source = open_source(write)
    assert source.damage == (
        (
            f"{write / 'values.yaml'}:2 is no Kubernetes object: it lacks apiVersion, kind or "
            "metadata.name."
        ),
    )


def test_an_object_that_is_written_twice_is_damage_and_the_last_one_counts(write: Path) -> None:
    (write / "a.yaml").write_text(SERVICE.format(name="one"))
    (write / "b.yaml").write_text(SERVICE.format(name="one").replace("[]", "[{port: 1}]"))
    source = open_source(write)
    assert source.damage == (
        (
            f"{write / 'b.yaml'}:1 defines Service default/one again, after {write / 'a.yaml'}:1; "
            "the last one counts."
        ),
    )
    body = listed(source)
    assert [one["spec"] for one in body["items"]] == [{"ports": [{"port": 1}]}]


def test_each_object_and_field_has_its_line(write: Path) -> None:
    (write / "a.yaml").write_text(
        f"# first\n{SERVICE.format(name='one')}---\n"
        "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Service\n  metadata:\n"
        "    name: two\n    annotations:\n      a.b/c: d\n  spec:\n    ports:\n    - port: 1\n"
        "    - port: 2\n"
    )
    source = Manifests(write)
    file = write / "a.yaml"

    assert source.origin("Service", "default", "one") == f"{file}:2"
    assert source.origin("Service", "default", "two") == f"{file}:12"
    where = source.origin("Service", "default", "two", "spec.ports[1].port")
    assert where == f"{file}:21"
    annotation = source.origin("Service", "default", "two", 'metadata.annotations["a.b/c"]')
    assert annotation == f"{file}:17"
    assert source.origin("Service", "default", "two", "spec.nothing.here") == f"{file}:18"
    assert source.origin("Service", "default", "three") == ""


def test_kinds_of_one_name_have_lines_of_their_own(write: Path) -> None:
    (write / "a.yaml").write_text(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: g}\n---\n"
        "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: g}\n"
    )
    source = Manifests(write)
    group = "gateway.networking.k8s.io"
    assert source.damage == ()
    assert source.origin("Gateway", "default", "g") == f"{write / 'a.yaml'}:5"
    assert source.origin("Gateway", "default", "g", group=group) == f"{write / 'a.yaml'}:1"


def test_a_mesh_config_is_what_istiod_would_have_read(write: Path) -> None:
    """Its table shows it, in the namespace that it names as root."""
    (write / "all").mkdir()
    (write / "all" / "a.yaml").write_text(SERVICE.format(name="one"))
    (write / "mesh.yaml").write_text("rootNamespace: mesh\noutboundTrafficPolicy: {mode: X}\n")
    source = open_source(write / "all", mesh_config=write / "mesh.yaml")

    settings = Facts(source)["mesh_settings"]

    assert dict(zip(settings["setting"], settings["value"], strict=True)) == {
        "rootNamespace": "mesh",
        "outboundTrafficPolicy.mode": "X",
    }
    assert set(settings["istiod"]) == {"configmap/mesh/istio"}


def test_a_mesh_config_that_is_none_is_refused(write: Path) -> None:
    (write / "a.yaml").write_text(SERVICE.format(name="one"))
    (write / "mesh.txt").write_text("- a\n")
    with pytest.raises(SourceError, match="holds no settings"):
        Manifests(write / "a.yaml", mesh_config=write / "mesh.txt")


def test_a_single_file_is_a_source_too(write: Path) -> None:
    (write / "a.yaml").write_text(SERVICE.format(name="one"))
    source = open_source(write / "a.yaml")
    assert names(source, SERVICES) == ["default/one"]
    assert source.label == str(write / "a.yaml")


def test_a_bundle_is_not_taken_for_manifests(write: Path, recordings_folder: Path) -> None:
    assert isinstance(open_source(recordings_folder / "healthy"), Bundle)
    (write / "empty").mkdir()
    with pytest.raises(BundleError):
        open_source(write / "empty")


def test_files_without_an_object_are_no_source(write: Path) -> None:
    (write / "a.yaml").write_text("a: 1\n")
    with pytest.raises(SourceError, match="has no Kubernetes object"):
        open_source(write)
    with pytest.raises(SourceError, match="There is no file or folder"):
        Manifests(write / "nothing")


def test_manifests_can_be_recorded_as_a_bundle(write: Path) -> None:
    (write / "a.yaml").write_text(SERVICE.format(name="one"))
    bundle = Bundle(record(open_source(write / "a.yaml"), write / "bundle.zip"))
    assert names(bundle, SERVICES) == ["default/one"]


def test_now_is_when_the_files_were_read(write: Path) -> None:
    """Certificates in manifests are judged by the day on which somebody wants to apply them."""
    (write / "a.yaml").write_text(SERVICE.format(name="one"))
    before = datetime.now(UTC)
    assert before <= open_source(write).now <= datetime.now(UTC)
