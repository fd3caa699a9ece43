"""Faults that no log tells by nature: what is seen of them is a symptom in itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from meshnb.diagnosis import RankedCause, diagnose
from tests.alteration import Altered


def _with_wrong_selector(altered: Altered) -> Altered:
    def misspell(item: dict[str, Any]) -> None:
        item["spec"]["selector"]["istio"] = "ingressgatewai"
        item["spec"]["type"] = "LoadBalancer"

    return altered.each("services", "istio-ingressgateway", misspell)


def _cause(altered: Altered, code: str) -> RankedCause:
    (found,) = [one for one in diagnose(altered.facts()).problems if one.check.code == code]
    return found


def test_a_gateway_without_a_service_is_a_symptom_in_itself(tmp_path: Path) -> None:
    """Altered: the Service of the gateway selects nothing; its callers are outside."""
    cause = _cause(_with_wrong_selector(Altered("healthy", tmp_path)), "MNB701")

    assert str(cause.subject) == "Service istio-system/istio-ingressgateway"
    assert cause.standing == "cause"
    assert [one.kind for one in cause.explains] == ["state"]
    assert "nobody outside reaches" in cause.explains[0].message


def test_amid_other_failures_it_is_no_mere_blemish(tmp_path: Path) -> None:
    """The same, in a mesh where an application fails, too: two faults are two causes."""
    diagnosis = diagnose(_with_wrong_selector(Altered("app-5xx", tmp_path)).facts())

    assert [(one.check.code, one.standing) for one in diagnosis.problems] == [
        ("MNB712", "cause"),
        ("MNB701", "cause"),
    ]
    assert len({one.id for one in diagnosis.symptoms}) == len(diagnosis.symptoms)


def test_a_port_that_a_gateway_does_not_open_is_found(tmp_path: Path) -> None:
    """Altered: the gateway's proxy has no listener on the port of its Gateway and Service."""

    def close(page: Any) -> None:
        for part in page["configs"]:
            kept = [
                one
                for one in part.get("dynamic_listeners", ())
                if not str(one["name"]).endswith("_8080")
            ]
            if "dynamic_listeners" in part:
                part["dynamic_listeners"] = kept

    altered = Altered("healthy", tmp_path)
    pod = next(
        one["request"]["pod"]
        for one in altered._matching(kind="http", port=15000)  # noqa: SLF001  its name is random
        if "ingressgateway" in one["request"]["pod"]
    )
    altered.pages(close, pod=pod, path="/config_dump?include_eds")

    cause = _cause(altered, "MNB307")

    assert str(cause.subject) == "Deployment istio-system/istio-ingressgateway"
    assert cause.standing == "cause"
    assert "nobody listens on port 8080" in cause.explains[0].message
