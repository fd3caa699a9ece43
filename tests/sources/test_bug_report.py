"""What ``istioctl bug-report`` wrote is a source, as far as it goes."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from meshnb.diagnosis import diagnose
from meshnb.errors import BundleError, NotRecorded, SourceError
from meshnb.sources import (
    BugReport,
    Bundle,
    HttpQuestion,
    ListQuestion,
    LogQuestion,
    open_source,
    record,
)
from meshnb.sources.base import only
from meshnb.sources.clusters_text import clusters_page
from meshnb.tables import Facts

POD = "web-1"
POD_OBJECT = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": POD, "namespace": "shop", "creationTimestamp": "2026-01-01T00:00:00Z"},
}
CRD = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "sidecars.networking.istio.io"},
    "spec": {"group": "networking.istio.io", "names": {"kind": "Sidecar", "plural": "sidecars"}},
}
CLUSTERS = """\
outbound|80||web.shop.svc.cluster.local::observability_name::outbound|80||web;
outbound|80||web.shop.svc.cluster.local::default_priority::max_connections::1024
outbound|80||web.shop.svc.cluster.local::10.0.0.7:8080::cx_active::2
outbound|80||web.shop.svc.cluster.local::10.0.0.7:8080::rq_total::41
outbound|80||web.shop.svc.cluster.local::10.0.0.7:8080::rq_error::3
outbound|80||web.shop.svc.cluster.local::10.0.0.7:8080::health_flags::/failed_outlier_check
outbound|80||web.shop.svc.cluster.local::10.0.0.7:8080::weight::5
outbound|80||web.shop.svc.cluster.local::10.0.0.7:8080::region::north
outbound|80||web.shop.svc.cluster.local::10.0.0.7:8080::priority::1
six::[fd00::7]:443::health_flags::/failed_eds_health
six::[fd00::7]:443::hostname::six.example.com
agent::/etc/istio/proxy/SDS::health_flags::healthy
inner::envoy://connect_originate/10.0.0.9:80::health_flags::healthy
BlackHoleCluster::observability_name::BlackHoleCluster
"""


def _yaml(*objects: Any) -> str:
    """Return a list as YAML, of which JSON is a part."""
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)})


def _files(**more: str) -> dict[str, str]:
    return {
        "cluster/cluster-context": "prod\nhttps://10.0.0.1\n",
        "cluster/kubectl-version": "Client Version: v1.32.4\nServer Version: v1.36.2\n",
        "cluster/k8s-resources": _yaml(POD_OBJECT),
        "cluster/k8s-cluster-resources": _yaml(CRD),
        "cluster/crs": _yaml(),
        f"proxies/shop/{POD}/clusters": CLUSTERS,
        f"proxies/shop/{POD}/config_dump?include_eds": '{"configs":[]}',
        f"proxies/shop/{POD}/istio-proxy.log": "2026-01-02T03:04:05.678Z\tinfo\tready\n",
        "istio/mesh/istiod-1/debug/syncz": "[]",
        "istio/mesh/istiod-1/metrics": "x 1\n",
        "istio/mesh/istiod-1/discovery.log": "2026-01-02T03:04:04Z\tinfo\tx\n",
        **more,
    }


def _packed(path: Path, files: Mapping[str, str | bytes], top: str = "./") -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, text in files.items():
            member = tarfile.TarInfo(top + name)
            body = text.encode() if isinstance(text, str) else text
            member.size = len(body)
            archive.addfile(member, io.BytesIO(body))
    return path


def _unpacked(path: Path, files: Mapping[str, str], top: str = "") -> Path:
    for name, text in files.items():
        file = path / top / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return path


@pytest.mark.parametrize(
    "make",
    [
        lambda path: _packed(path / "bug-report.tar.gz", _files()),
        lambda path: _packed(path / "bug-report.tar.gz", _files(), top="bug-report/"),
        lambda path: _unpacked(path / "report", _files()),
        lambda path: _unpacked(path / "report", _files(), top="bug-report"),
    ],
    ids=["tar.gz", "tar.gz of a folder", "folder", "folder in a folder"],
)
def test_it_is_known_by_what_it_is(make: Callable[[Path], Path], tmp_path: Path) -> None:
    source = open_source(make(tmp_path))
    assert isinstance(source, BugReport)
    assert source.damage == ()
    assert source.now.isoformat() == "2026-01-02T03:04:05.678000+00:00"
    assert source.manifest == {"cluster": "prod", "istio_namespace": "mesh"}
    assert source.server_version == {"gitVersion": "v1.36.2", "major": "1", "minor": "36"}
    assert {
        ListQuestion("v1", "pods"),
        HttpQuestion("shop", POD, 15000, "/clusters?format=json"),
        HttpQuestion("shop", POD, 15000, "/config_dump?include_eds"),
        LogQuestion("shop", POD, "istio-proxy"),
        HttpQuestion("mesh", "istiod-1", 15014, "/debug/syncz"),
        HttpQuestion("mesh", "istiod-1", 15014, "/metrics"),
        LogQuestion("mesh", "istiod-1", "discovery"),
    } <= set(source.questions())


@pytest.fixture
def report(tmp_path: Path) -> BugReport:
    """Return a small bug report."""
    return BugReport(_packed(tmp_path / "bug-report.tar.gz", _files()))


def test_lists_hold_the_objects_of_their_kind(report: BugReport) -> None:
    answer = only(report, ListQuestion("v1", "pods"))
    assert json.loads(answer.content)["items"] == [POD_OBJECT]
    assert json.loads(only(report, ListQuestion("apps/v1", "deployments")).content)["items"] == []


def test_a_kind_without_objects_is_empty_and_one_that_is_not_defined_is_unknown(
    report: BugReport,
) -> None:
    defined = only(report, ListQuestion("networking.istio.io/v1", "sidecars"))
    assert (defined.status, json.loads(defined.content)["items"]) == (200, [])
    assert only(report, ListQuestion("networking.istio.io/v1", "virtualservices")).status == 404


@pytest.mark.parametrize(
    "question",
    [ListQuestion("v1", "secrets"), HttpQuestion("shop", POD, 15021, "/healthz/ready")],
)
def test_what_a_report_does_not_hold_was_not_recorded(
    report: BugReport, question: ListQuestion | HttpQuestion
) -> None:
    assert question not in report.questions()
    with pytest.raises(NotRecorded, match="is a bug report"):
        only(report, question)


def test_clusters_in_lines_are_the_rows_that_their_json_would_be(report: BugReport) -> None:
    rows = Facts(report)["endpoints"].set_index("endpoint")
    first = rows.loc["10.0.0.7:8080"]
    assert first["cluster"] == "outbound|80||web.shop.svc.cluster.local"
    assert (first["requests"], first["requests_failed"], first["connections_active"]) == (41, 3, 2)
    assert (first["weight"], first["priority"], first["region"]) == (5, 1, "north")
    assert (first["status"], first["outlier_check"]) == ("HEALTHY", "FAILED")
    assert rows.loc["fd00::7:443"]["status"] == "UNHEALTHY"
    assert rows.loc["fd00::7:443"]["hostname"] == "six.example.com"
    assert set(rows.index) == {
        *("10.0.0.7:8080", "fd00::7:443", "unix:///etc/istio/proxy/SDS"),
        "envoy://connect_originate/10.0.0.9:80",
    }
    page = clusters_page(CLUSTERS)["cluster_statuses"]
    assert page[-1] == {"name": "BlackHoleCluster", "host_statuses": []}


def test_a_page_that_is_something_else_is_unreadable_not_empty(tmp_path: Path) -> None:
    files = _files(**{f"proxies/shop/{POD}/clusters": "command terminated with exit code 1\n"})
    facts = Facts(BugReport(_packed(tmp_path / "a.tar.gz", files)))
    assert facts["endpoints"].empty
    gaps = facts.gaps("endpoints")
    assert any(gap.state == "unreadable" and "clusters" in gap.question for gap in gaps)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: &a [x]\nb: *a\n", "aliases"),
        ("items: [}", "cannot be read"),
        ("[" * 5000, "cannot be read"),
    ],
)
def test_objects_that_cannot_be_read_cost_only_their_own_file(
    tmp_path: Path, text: str, said: str
) -> None:
    files = _files(**{"cluster/crs": text})
    source = BugReport(_packed(tmp_path / "a.tar.gz", files))
    assert any("cluster/crs" in one and said in one for one in source.damage)
    assert ListQuestion("v1", "pods") in source.questions()
    assert ListQuestion("networking.istio.io/v1", "sidecars") not in source.questions()


def test_members_that_lead_out_and_links_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, text in {**_files(), "../../cluster/pods": _yaml()}.items():
            member = tarfile.TarInfo(name)
            member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))
        link = tarfile.TarInfo("proxies/shop/web-1/certs")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    source = BugReport(path)
    assert any("leads out" in one for one in source.damage)
    assert HttpQuestion("shop", POD, 15000, "/certs") not in source.questions()


def test_an_archive_of_something_else_is_refused_with_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no archive of istioctl bug-report"):
        open_source(_packed(tmp_path / "a.tar.gz", {"readme": "x"}))
    whole = _packed(tmp_path / "b.tar.gz", _files()).read_bytes()
    (tmp_path / "cut.tar.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BundleError, match="cannot be read as a tar"):
        open_source(tmp_path / "cut.tar.gz")


def test_a_report_of_a_real_mesh_is_diagnosed(shared: Path, tmp_path: Path) -> None:
    """As far as it goes: what could not be asked leaves checks without a verdict."""
    path = shared / "bug-report" / "healthy.tar.gz"
    if not path.is_file():
        pytest.skip("the archive of a bug report is not beside this checkout")
    facts = Facts(open_source(path))
    assert not facts.source.damage
    assert set(facts["proxies"]["pod"].dropna()) >= {"client"}
    assert (facts["endpoints"]["origin"] == "clusters").all()
    assert facts["proxy_status"]["sync"].eq("SYNCED").any()
    for table in ("clusters", "listeners", "routes", "certificates", "services", "access_log"):
        assert not facts[table].empty, table
    states = {gap.state for gap in facts.gaps("secrets")}
    assert states == {"not asked"}
    diagnosis = diagnose(facts).to_json()
    assert diagnosis["unknown"]
    again = Bundle(record(facts.source, tmp_path / "again.zip"))
    assert set(again.questions()) == set(facts.source.questions())
