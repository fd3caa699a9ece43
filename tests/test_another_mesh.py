"""The diagnosis on recordings of a mesh that the rules were not written for.

They were made with ``meshnb record`` on a real Kubernetes 1.36 with a development version of Istio
1.31 and Envoy 1.40: a shop with strict mutual TLS and default deny, a canary, TCP and a server that
speaks first, external hosts under REGISTRY_ONLY, a TLS gateway with two hosts, and two istiods. Of
53 recordings every second one by name is here. Labels were written before the diagnosis was made.
"""

from __future__ import annotations

from typing import Any

import pytest

from meshnb.diagnosis import diagnose
from meshnb.sources import Bundle
from meshnb.tables import Facts
from tests.accuracy import Score, score
from tests.conftest import ANOTHER_MESH, recording_names, truth_of, unpacked

#: What is not found, and why.
_MISSED = {
    "mutual-gateway": "no proxy logs or counts a TLS handshake that its gateway refuses",
}


def _scored(name: str) -> Score:
    source = Bundle(unpacked(ANOTHER_MESH) / name, label=name)
    return score(name, truth_of(name, ANOTHER_MESH), diagnose(Facts(source)))


def _cases() -> list[Any]:
    return [
        pytest.param(
            name,
            marks=[pytest.mark.xfail(reason=_MISSED[name], strict=True)] if name in _MISSED else [],
        )
        for name in recording_names(ANOTHER_MESH)
    ]


@pytest.mark.parametrize("name", _cases())
def test_a_fault_is_named_first_and_nothing_else_is_blamed(name: str) -> None:
    result = _scored(name)
    assert result.right, result.first
    assert result.false_causes == 0, result.first
