"""A part of a mesh is diagnosed: what was left out by choice is no lack; what was refused is."""

from __future__ import annotations

from pathlib import Path

import pytest

from meshnb.diagnosis import Diagnosis, diagnose
from meshnb.sources import Bundle, Scope, open_source, record
from meshnb.sources.serve import Refuse, serve
from meshnb.tables import Facts
from meshnb.tables.base import OUTSIDE
from tests.conftest import unpacked

BOOKINFO = Scope(namespaces=("bookinfo",))


def live(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *faults: Refuse, scope: Scope
) -> tuple[Diagnosis, Diagnosis]:
    """Diagnose the recording healthy as a cluster, and then the recording of that."""
    with serve(Bundle(unpacked() / "healthy"), faults=faults) as served:
        monkeypatch.setenv("KUBECONFIG", str(served.kubeconfig))
        facts = Facts(open_source("cluster", scope=scope))
        facts.gather()
        found = diagnose(facts)
        again = record(facts.kept, tmp_path / "again.zip")
    return found, diagnose(Facts(Bundle(again)))


def test_what_lies_outside_of_the_chosen_part_is_said_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for diagnosis in live(monkeypatch, tmp_path, scope=BOOKINFO):
        assert diagnosis.verdict == "healthy"
        assert diagnosis.unknown == ()
        outside = [gap for gap in diagnosis.missing if gap.state == OUTSIDE]
        assert [gap.reason for gap in outside] == ["chosen was only: namespaces bookinfo"]


def test_events_that_may_be_listed_in_the_chosen_namespaces_only_suffice(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    refused = Refuse(verb="list", resource="events", namespace="")
    for diagnosis in live(monkeypatch, tmp_path, refused, scope=BOOKINFO):
        assert diagnosis.verdict == "healthy"
        assert diagnosis.unknown == ()


def test_a_check_of_events_names_the_permission_that_it_lacks(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Nobody may list events anywhere: checks without them decide all the same."""
    refused = Refuse(verb="list", resource="events")
    diagnosis, _ = live(monkeypatch, tmp_path, refused, scope=Scope())

    because = {one.check.code: one.because for one in diagnosis.unknown}

    assert "MNB172" in because
    assert "MNB210" not in because
    assert all("lacks permission to list events" in one for one in because.values())


def test_services_that_were_listed_in_part_are_a_lack_all_the_same(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Routes lead across namespaces: a Service that is not listed may exist."""
    refused = Refuse(verb="list", resource="services", namespace="")
    diagnosis, _ = live(monkeypatch, tmp_path, refused, scope=BOOKINFO)

    said = next(one.because for one in diagnosis.unknown if one.check.code == "MNB201")

    assert "only of bookinfo; for the others it lacks permission to list services" in said
