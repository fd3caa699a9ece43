"""Istio's analyzer test grid: its cases as sources of manifests."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from meshnb.checks import CHECKS, Finding, Inputs, Verdict, run
from meshnb.sources import Manifests
from meshnb.tables import Facts

#: The grid's engine adds this gateway to every case, so that not each has to bring its own.
_STAND_IN: list[dict[str, Any]] = [
    {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "istio-ingressgateway", "namespace": "istio-system"},
        "spec": {
            "selector": {"istio": "ingressgateway"},
            "ports": [
                {"name": f"tcp-{port}", "port": port, "protocol": "TCP"}
                for port in (80, 443, 31400, 15443)
            ],
        },
    },
    {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": "istio-ingressgateway-dummypod",
            "namespace": "istio-system",
            "labels": {"istio": "ingressgateway"},
        },
        "spec": {},
    },
]


@pytest.fixture(scope="session")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file with the ingress gateway that the grid's engine adds to each case."""
    file = tmp_path_factory.mktemp("grid") / "ingressgateway.json"
    file.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": _STAND_IN}))
    return file


Written = Callable[[Mapping[str, Any]], Manifests]


@pytest.fixture(scope="session")
def written(shared: Path, stand_in: Path) -> Written:
    """Return a function that gives the manifests of a case of the grid."""
    folder = shared / "analysis" / "testdata"

    def call(case: Mapping[str, Any]) -> Manifests:
        return Manifests(
            *(folder / name for name in case["inputs"]),
            stand_in,
            mesh_config=folder / case["mesh_config"] if case["mesh_config"] else None,
            mesh_networks=folder / case["mesh_networks"] if case["mesh_networks"] else None,
        )

    return call


def findings(facts: Facts, codes: Iterable[str] | None = None) -> list[tuple[str, Finding]]:
    """Return what checks of written objects, all or those with these codes, find.

    All but those of weak spots, for which istioctl does not look.
    """
    written = [one for one in CHECKS.values() if one.lint and one.family != "posture"]
    chosen = [one for one in written if codes is None or one.code in codes]
    outcomes = list(run(Inputs(facts), chosen))
    broken = [outcome.because for outcome in outcomes if outcome.verdict is Verdict.BROKEN]
    assert broken == []
    return [(outcome.check.code, finding) for outcome in outcomes for finding in outcome.findings]
