"""The tables ``ingresses`` and ``remote_clusters``, on recordings to which such were added."""

from __future__ import annotations

from pathlib import Path

from tests.alteration import Altered
from tests.conftest import facts_of

CHANGED = "2026-11-23T02:48:46Z"
BACKEND = {"service": {"name": "details", "port": {"number": 9080}}}


def test_a_mesh_without_ingresses_has_none_and_no_gap() -> None:
    facts = facts_of("healthy")
    assert len(facts["ingresses"]) == 0
    assert facts.gaps("ingresses", "remote_clusters") == ()


def test_an_ingress_says_who_is_to_serve_it(tmp_path: Path) -> None:
    """Altered: Ingresses with a class, with the older annotation, with none, and of no class."""
    altered = Altered("healthy", tmp_path)
    paths = {"http": {"paths": [{"path": "/", "backend": BACKEND}]}}
    tls = [{"hosts": ["a.example.com"], "secretName": "a-cert"}]
    rules = [{"host": "a.example.com", **paths}, paths]
    altered.add(
        "ingresses",
        "field",
        "bookinfo",
        CHANGED,
        spec={"ingressClassName": "nginx", "rules": rules, "tls": tls},
        status={"loadBalancer": {"ingress": [{"ip": "192.0.2.7"}]}},
    )
    altered.add("ingresses", "annotation", "bookinfo", CHANGED, spec={"rules": rules})
    altered.each(
        "ingresses",
        "annotation",
        lambda one: one["metadata"].update(annotations={"kubernetes.io/ingress.class": "gone"}),
    )
    altered.add("ingresses", "none", "bookinfo", CHANGED, spec={"rules": rules})
    altered.add("ingressclasses", "nginx", "", CHANGED, spec={"controller": "example.com/nginx"})
    altered.each(
        "ingressclasses",
        "nginx",
        lambda one: one["metadata"].update(
            annotations={"ingressclass.kubernetes.io/is-default-class": "true"}
        ),
    )
    found = altered.facts()["ingresses"].set_index("ingress")

    assert found["class"].dropna().to_dict() == {"field": "nginx", "annotation": "gone"}
    assert found["controller"].dropna().unique().tolist() == ["example.com/nginx"]
    assert found.loc["field", "hosts"] == ("a.example.com", "*")
    assert found.loc["field", "secrets"] == ("a-cert",)
    assert found.loc["field", "addresses"] == ("192.0.2.7",)
    unserved = found.index[found["controller"].isna()].tolist()
    assert unserved == ["annotation"]


def test_each_istiod_names_the_clusters_that_it_reads(tmp_path: Path) -> None:
    """Altered: istiod has a second cluster."""
    remote = {"id": "far", "secretName": "istio-system/istio-remote-secret-far"}
    altered = Altered("healthy", tmp_path)
    altered.pages(
        lambda page: page.append({**remote, "syncStatus": "syncing"}), path="/debug/clusterz"
    )
    found = altered.facts()["remote_clusters"]

    assert found["cluster"].tolist() == ["Kubernetes", "far"]
    assert found["secret"].isna().tolist() == [True, False]
    assert found["sync"].tolist() == ["synced", "syncing"]


def test_a_source_that_never_asked_for_other_clusters_has_no_gap(tmp_path: Path) -> None:
    """Altered: nobody asked istiod which clusters it reads."""
    facts = Altered("healthy", tmp_path).forget(kind="http", path="/debug/clusterz").facts()
    assert len(facts["remote_clusters"]) == 0
    assert facts.gaps("remote_clusters") == ()


def test_a_secret_has_its_labels(tmp_path: Path) -> None:
    """Altered: a Secret is labelled as one for another cluster."""
    altered = Altered("healthy", tmp_path)
    altered.add("secrets", "istio-remote-secret-far", "istio-system", CHANGED)
    label = {"istio/multiCluster": "true"}
    altered.each(
        "secrets", "istio-remote-secret-far", lambda one: one["metadata"].update(labels=label)
    )
    secrets = altered.facts()["secrets"]
    labels = secrets.set_index("secret").loc[["istio-remote-secret-far"], "labels"].tolist()
    assert labels == [label]
