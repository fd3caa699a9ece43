"""One story per thing to mend: findings of one check at one object are one cause."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from meshnb.checks import CHECKS, Evidence, Finding, Severity, Subject
from meshnb.checks.merging import merge
from meshnb.diagnosis import diagnose
from meshnb.traces.mesh import MESH, Mesh
from tests.alteration import Altered


def test_two_routes_of_one_virtual_service_are_one_cause(tmp_path: Path) -> None:
    """Recording route-host-unknown: a second route of its VirtualService names such a host, too."""

    def twice(item: dict[str, Any]) -> None:
        route = item["spec"]["http"][0]
        other = {**route, "name": "other", "route": [{"destination": {"host": "ratinks"}}]}
        item["spec"]["http"].insert(0, {**other, "match": [{"uri": {"prefix": "/other"}}]})

    facts = (
        Altered("route-host-unknown", tmp_path).each("virtualservices", "ratings", twice).facts()
    )

    causes = [one for one in diagnose(facts).problems if one.check.code == "MNB201"]

    assert len(causes) == 1
    assert "ratinks" in causes[0].finding.message
    assert "http[1]" in causes[0].finding.message


def test_pods_of_one_workload_are_one_cause(tmp_path: Path) -> None:
    """Recording healthy, with a second pod of Deployment ratings-v1."""

    def double(items: list[Any]) -> None:
        one = next(item for item in items if item["metadata"]["name"].startswith("ratings-v1"))
        items.append({**one, "metadata": {**one["metadata"], "name": "ratings-v1-second"}})

    facts = Altered("healthy", tmp_path).objects("pods", double).facts()
    mesh = MESH.make(facts)
    assert isinstance(mesh, Mesh)
    pods = [pod for pod in mesh.pods if pod.workload == "ratings-v1"]
    evidence = Evidence.of(facts["pods"], facts["pods"].index[:2])
    found = [
        Finding(
            Subject("Pod", pod.namespace, pod.pod),
            f"{pod.pod} is cut off.",
            "Mend it.",
            evidence=(evidence,),
            explains=(f"s{number}",),
        )
        for number, pod in enumerate(pods)
    ]

    merged = merge(
        [(CHECKS["MNB602"], one) for one in found],
        mesh,
        severity=lambda check, finding: finding.severity or check.severity,
        weight=lambda finding: float(finding.explains == ("s1",)),
    )

    assert len(pods) == 2
    assert len(merged) == 1
    _, one = merged[0]
    assert str(one.subject) == "Deployment bookinfo/ratings-v1"
    assert one.message == f"{pods[1].pod} is cut off. The same holds for {pods[0].pod}."
    assert {related.name for related in one.related} == {pod.pod for pod in pods}
    assert set(one.explains) == {"s0", "s1"}
    assert len(one.evidence) == 1
    assert len(one.evidence[0].rows) == 2


def test_what_is_worth_knowing_is_not_mixed_with_what_is_wrong(tmp_path: Path) -> None:
    """Two findings of one check at one Service, of which one is no problem, stay apart."""
    mesh = MESH.make(Altered("healthy", tmp_path).facts())
    assert isinstance(mesh, Mesh)
    subject = Subject("Service", "bookinfo", "ratings")
    found = [
        Finding(subject, "Port 1 is wrong.", "Mend it."),
        Finding(subject, "Port 2 is odd.", "Look at it.", severity=Severity.INFO),
    ]

    merged = merge(
        [(CHECKS["MNB701"], one) for one in found],
        mesh,
        severity=lambda check, finding: finding.severity or check.severity,
        weight=lambda _: 0.0,
    )

    assert [one.message for _, one in merged] == ["Port 1 is wrong.", "Port 2 is odd."]
