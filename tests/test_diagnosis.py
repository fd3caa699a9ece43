"""Ranked causes: their order, what is left out, the verdict, and the JSON form."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from meshnb.checks import CHECKS, Cause, Check, Finding, Severity, Subject
from meshnb.diagnosis import Diagnosis, diagnose
from meshnb.sources import Bundle
from meshnb.sources.base import question_from_json
from meshnb.symptoms import Symptoms
from meshnb.tables import TABLES, Facts
from tests.alteration import Altered
from tests.conftest import facts_of, unpacked

ROOT = Path(__file__).resolve().parents[1]


def invented(
    code: str,
    severity: Severity = Severity.ERROR,
    *,
    explains: tuple[str, ...] = (),
    subject: Subject | None = None,
    **fields: Any,
) -> Check:
    """Return a check that finds one thing, whatever it looks at."""
    blamed = subject or Subject("ConfigMap", "shop", code.lower())

    def function(symptoms: Symptoms) -> Iterator[Finding]:
        yield Finding(blamed, f"{code} is wrong.", "Mend it.", explains=explains, **fields)

    return replace(
        CHECKS["MNB210"],
        code=code,
        severity=severity,
        cause=Cause.DATA_PLANE,
        inputs=("symptoms",),
        function=function,
    )


def codes(diagnosis: Diagnosis) -> list[str]:
    """Return the codes of all causes, in their order, without checks of what is written."""
    return [cause.check.code for cause in diagnosis.causes if not cause.check.lint]


# --- The JSON form ------------------------------------------------------------------------------

SYMPTOM = {
    "id": str,
    "kind": str,
    "message": str,
    "count": int,
    "first_seen": (str, type(None)),
    "last_seen": (str, type(None)),
}
CAUSE = {
    "rank": int,
    "code": str,
    "class": str,
    "severity": str,
    "subject": dict,
    "related": list,
    "message": str,
    "mechanism": str,
    "remedy": str,
    "explains": list,
    "evidence": list,
}
WHOLE = {
    "format": int,
    "source": str,
    "recorded_at": str,
    "verdict": str,
    "symptoms": list,
    "past": list,
    "causes": list,
    "ruled_out": list,
    "unknown": list,
}


def assert_shape(document: Any, shape: dict[str, Any]) -> None:
    """Assert that an object has exactly these keys, in this order, with values of these types."""
    assert list(document) == list(shape)
    for key, kind in shape.items():
        assert isinstance(document[key], kind), key
        assert not isinstance(document[key], bool), key


@pytest.mark.parametrize(
    "name", ["healthy", "istiod-down", "subset-missing", "mtls-client-disable", "ztunnel-deny"]
)
def test_the_json_form_has_exactly_the_fields_of_format_1(name: str) -> None:
    diagnosis = diagnose(facts_of(name))
    document = json.loads(json.dumps(diagnosis.to_json()))

    assert_shape(document, WHOLE)
    assert document["format"] == 1
    assert document["source"] == name
    assert datetime.fromisoformat(document["recorded_at"]) == diagnosis.facts.now
    assert document["verdict"] in ("healthy", "problem", "unknown")
    for symptom in document["symptoms"]:
        assert_shape(symptom, SYMPTOM)
        for moment in (symptom["first_seen"], symptom["last_seen"]):
            assert moment is None or datetime.fromisoformat(moment) <= diagnosis.facts.now
    for over in document["past"]:
        assert_shape(over, {**SYMPTOM, "over_since": (str, type(None)), "changed_then": list})
    known = [symptom["id"] for symptom in document["symptoms"]]
    assert known == [f"s{number}" for number in range(1, len(known) + 1)]
    for rank, cause in enumerate(document["causes"], start=1):
        assert_shape(cause, CAUSE)
        assert cause["rank"] == rank
        assert cause["class"] in ("A", "B", "C")
        assert cause["severity"] in ("error", "warning", "info")
        for subject in (cause["subject"], *cause["related"]):
            assert_shape(subject, {"kind": str, "namespace": str, "name": str})
        assert set(cause["explains"]) <= set(known)
        assert cause["evidence"]
        for evidence in cause["evidence"]:
            assert_shape(evidence, {"table": str, "rows": int, "question": dict})
            assert evidence["table"] in TABLES
            assert evidence["rows"] > 0
            assert question_from_json(evidence["question"]).to_json() == evidence["question"]
    for outcome in document["ruled_out"]:
        assert_shape(outcome, {"code": str, "title": str})
    for outcome in document["unknown"]:
        assert_shape(outcome, {"code": str, "title": str, "because": str})
        assert outcome["because"]


def test_every_check_is_found_or_ruled_out_or_unknown() -> None:
    diagnosis = diagnose(facts_of("istiod-down"))
    document = diagnosis.to_json()
    found = {cause["code"] for cause in document["causes"]}
    ruled_out = {outcome["code"] for outcome in document["ruled_out"]}
    unknown = {outcome["code"] for outcome in document["unknown"]}

    assert found | ruled_out | unknown == {one.check.code for one in diagnosis.outcomes}
    assert found | ruled_out | unknown >= {one.code for one in CHECKS.values() if not one.lint}
    assert not ruled_out & unknown
    assert not ruled_out & found


def test_evidence_counts_its_rows_by_question() -> None:
    cause = diagnose(facts_of("subset-missing")).to_json()["causes"][0]
    lines = [one for one in cause["evidence"] if one["table"] == "access_log"]

    assert {(one["question"]["pod"].partition("-")[0], one["rows"]) for one in lines} == {
        ("client", 13),
        ("productpage", 29),
    }
    assert diagnose(facts_of("subset-missing")).symptoms.found[0].count == 13 + 29


# --- The order of causes ------------------------------------------------------------------------


def _second_fault(altered: Altered, authority: str, since: str, pod: str) -> Altered:
    """Let a second VirtualService send to a host that does not exist, and its callers fail."""
    host = authority.partition(":")[0]
    route = {"route": [{"destination": {"host": f"{host}-gone"}}]}
    spec = {"hosts": [host], "http": [route]}
    altered.add("virtualservices", host, "bookinfo", "2026-11-23T02:49:56Z", spec=spec)
    lost = {"code": "503", "flags": "NC", "details": "cluster_not_found", "cluster": "-"}
    return altered.at_client(
        authority, since, pod=pod, **lost, endpoint="-", own="-", service_time="-", route="-"
    )


@pytest.mark.parametrize(
    ("authority", "since", "pod", "order"),
    [
        ("ratings:9080", "2026-11-23T02:50:14", "client", ["reviews", "ratings"]),
        ("details:9080", "2026-11-23T02:49:56", "", ["details", "reviews"]),
    ],
)
def test_of_two_faults_the_one_that_explains_more_comes_first(
    authority: str, since: str, pod: str, order: list[str], tmp_path: Path
) -> None:
    """Altered: besides the missing subset of reviews, another VirtualService names no real host.

    Calls to ratings fail from one pod for a moment; calls to details fail everywhere.
    """
    altered = _second_fault(Altered("subset-missing", tmp_path), authority, since, pod)
    diagnosis = diagnose(altered.facts())

    assert [cause.subject.name for cause in diagnosis.problems] == order
    assert {cause.check.code for cause in diagnosis.problems} == {"MNB201", "MNB210"}
    first, second = diagnosis.problems
    assert first.count > second.count > 0
    assert not {one.id for one in first.explains} & {one.id for one in second.explains}
    assert diagnosis.unexplained == ()


def test_what_explains_failures_comes_before_a_blemish_that_explains_none(tmp_path: Path) -> None:
    """Altered: besides the missing subset there are VirtualServices that have no effect."""
    altered = Altered("subset-missing", tmp_path)
    for name, minute in (("older", 41), ("newer", 42), ("newest", 43)):
        route = {"route": [{"destination": {"host": "ratings"}}]}
        spec = {"hosts": ["ratings"], "http": [route]}
        altered.add("virtualservices", name, "bookinfo", f"2026-11-23T02:{minute}:00Z", spec=spec)
    diagnosis = diagnose(altered.facts())

    assert [(cause.check.code, cause.subject.name) for cause in diagnosis.problems] == [
        ("MNB210", "reviews"),
        ("MNB221", "newest"),  # of blemishes the most recently changed comes first
        ("MNB221", "newer"),
    ]
    assert [cause.rank for cause in diagnosis.problems] == [1, 2, 3]


def test_causes_are_ordered_by_what_they_explain_then_by_severity() -> None:
    """Of the two symptoms, s1 is the heavier one; what is worth knowing comes last."""
    checks = [
        invented("MNB991", Severity.INFO, explains=("s1", "s2")),
        invented("MNB992", Severity.WARNING),
        invented("MNB993", Severity.ERROR),
        invented("MNB994", Severity.WARNING, explains=("s2",)),
        invented("MNB995", Severity.ERROR, explains=("s1",), certainty=0.6),
        invented("MNB996", Severity.WARNING, explains=("s1", "s2")),
    ]
    diagnosis = diagnose(facts_of("mtls-client-disable"), checks)

    first, second = diagnosis.symptoms
    assert 0.6 * first.weight < second.weight < first.weight
    assert codes(diagnosis) == ["MNB996", "MNB994", "MNB995", "MNB993", "MNB992", "MNB991"]
    assert [cause.rank for cause in diagnosis.causes] == [1, 2, 3, 4, 5, 6]
    assert [cause.check.code for cause in diagnosis.problems][-1] == "MNB992"


def test_a_finding_may_differ_from_its_check_in_severity_class_and_mechanism() -> None:
    checks = [
        invented("MNB991"),
        invented("MNB992", explains=("s1",), cause=Cause.DATA_PLANE_CONFIG, mechanism="So."),
    ]
    own, plain = diagnose(facts_of("subset-missing"), checks).causes

    assert (own.failure_class, own.mechanism) == (Cause.DATA_PLANE_CONFIG, "So.")
    assert (plain.failure_class, plain.mechanism) == (Cause.DATA_PLANE, plain.check.why)
    assert own.first_seen == own.explains[0].first_seen
    assert (own.count, plain.count, plain.first_seen) == (own.explains[0].count, 0, None)


# --- Guesses ------------------------------------------------------------------------------------


def test_a_guess_is_dropped_when_a_surer_cause_explains_the_same() -> None:
    """That details was rolled out right before is no news once its application is known to fail."""
    diagnosis = diagnose(facts_of("app-5xx"))
    guesses = [
        finding
        for outcome in diagnosis.outcomes
        for finding in outcome.findings
        if outcome.check.code == "MNB251"
    ]

    assert [str(finding.subject) for finding in guesses] == ["Deployment bookinfo/details-v1"]
    assert codes(diagnosis) == ["MNB712"]


@pytest.mark.parametrize(
    ("guess", "surer", "kept"),
    [
        (("s1",), invented("MNB992", explains=("s1",)), False),
        (("s1",), invented("MNB992", explains=("s1", "s2")), False),
        (("s1", "s2"), invented("MNB992", explains=("s1",)), True),
        (("s1",), invented("MNB992", Severity.INFO, explains=("s1",)), False),
        (("s1",), invented("MNB992", explains=("s1",), certainty=0.4), True),
        (("s1",), invented("MNB992"), True),
    ],
)
def test_a_guess_stays_while_nothing_surer_explains_all_that_it_explains(
    guess: tuple[str, ...], surer: Check, kept: bool
) -> None:
    checks = [invented("MNB991", explains=guess, certainty=0.4), surer]

    found = codes(diagnose(facts_of("mtls-client-disable"), checks))
    assert ("MNB991" in found) is kept
    assert "MNB992" in found


# --- The verdict, and what nothing explains -----------------------------------------------------


def test_a_mesh_in_which_nothing_is_wrong_is_healthy() -> None:
    diagnosis = diagnose(facts_of("healthy"))

    assert diagnosis.verdict == "healthy"
    assert (diagnosis.problems, diagnosis.unknown, diagnosis.unexplained) == ((), (), ())
    assert codes(diagnosis) == []
    passed = {outcome.check.code for outcome in diagnosis.ruled_out}
    assert passed >= {one.code for one in CHECKS.values() if not one.lint}
    assert repr(diagnosis) == "<Diagnosis of healthy, healthy>"


def test_a_mesh_with_a_cause_above_info_has_a_problem() -> None:
    diagnosis = diagnose(facts_of("route-shadowed"))

    assert diagnosis.verdict == "problem"
    assert diagnosis.problems[0].severity is Severity.WARNING
    assert repr(diagnosis).startswith("<Diagnosis of route-shadowed, problem: Route 1 of ")


def test_what_is_worth_knowing_is_no_problem() -> None:
    diagnosis = diagnose(facts_of("healthy"), [invented("MNB991", Severity.INFO)])

    assert (diagnosis.verdict, codes(diagnosis), diagnosis.problems) == ("healthy", ["MNB991"], ())


def test_a_mesh_that_was_not_seen_whole_is_unknown_unless_a_problem_was_found(
    tmp_path: Path,
) -> None:
    """Altered: Secrets are forbidden."""
    for name, verdict in (("healthy", "unknown"), ("subset-missing", "problem")):
        altered = Altered(name, tmp_path)
        altered.silence("forbidden", status=403, kind="list", resource="secrets")
        diagnosis = diagnose(altered.facts())

        assert "MNB304" in [outcome.check.code for outcome in diagnosis.unknown]
        assert all("secrets" in outcome.because for outcome in diagnosis.unknown)
        assert diagnosis.verdict == verdict


def test_only_a_check_for_errors_makes_a_verdict_unknown(tmp_path: Path) -> None:
    """Altered: VirtualServices are forbidden; a shadowed route would be a warning."""
    altered = Altered("healthy", tmp_path)
    altered.silence("forbidden", status=403, kind="list", resource="virtualservices")

    warning = diagnose(altered.facts(), [CHECKS["MNB220"]])
    error = diagnose(altered.facts(), [CHECKS["MNB221"]])
    assert [len(warning.unknown), len(error.unknown)] == [1, 1]
    assert [warning.verdict, error.verdict] == ["healthy", "unknown"]


def test_failures_that_nothing_explains_forbid_to_call_a_mesh_healthy() -> None:
    """Without any check, all that is left are the symptoms."""
    diagnosis = diagnose(facts_of("subset-missing"), [])

    assert (diagnosis.verdict, diagnosis.causes) == ("unknown", ())
    assert diagnosis.unexplained == tuple(diagnosis.symptoms)
    assert diagnose(facts_of("healthy"), []).verdict == "healthy"


@pytest.mark.parametrize(("times", "verdict"), [(2, "healthy"), (3, "unknown")])
def test_a_failure_or_two_that_nothing_explains_is_an_accident(
    times: int, verdict: str, tmp_path: Path
) -> None:
    """Altered: some requests of the client ended with a flag that no check knows."""
    altered = Altered("healthy", tmp_path)
    odd = {"code": "503", "flags": "LR", "endpoint": "-", "own": "-", "service_time": "-"}
    details = "upstream_reset_before_response_started{local_reset}"
    altered.request("client", "/ratings/0", times, **odd, details=details)
    diagnosis = diagnose(altered.facts())

    assert [symptom.count for symptom in diagnosis.unexplained] == [times]
    assert diagnosis.verdict == verdict


def test_an_answer_of_404_that_was_never_another_is_nothing_to_wonder_about(
    tmp_path: Path,
) -> None:
    """Altered: the gateway answers 404 for a host that it never served, many times."""
    altered = Altered("healthy", tmp_path)
    nowhere = {"cluster": "-", "endpoint": "-", "own": "-", "service_time": "-", "route": "-"}
    missing = {"code": "404", "flags": "NR", "details": "route_not_found"}
    altered.request(
        "istio-ingressgateway", "/productpage", 20, **nowhere, **missing, authority="203.0.113.7"
    )
    diagnosis = diagnose(altered.facts())

    assert [symptom.count for symptom in diagnosis.unexplained] == [20]
    assert diagnosis.verdict == "healthy"


# --- The same again -----------------------------------------------------------------------------


def _document(path: Path) -> dict[str, Any]:
    return diagnose(Facts(Bundle(path, label="the same"))).to_json()


@pytest.mark.parametrize("name", ["istiod-down", "mtls-client-disable", "garden-healthy"])
def test_a_folder_and_a_zip_of_it_get_the_same_diagnosis(name: str, tmp_path: Path) -> None:
    folder = unpacked() / name
    archive = tmp_path / f"{name}.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as members:
        for file in sorted(folder.rglob("*"), reverse=True):
            if file.is_file():
                members.writestr(file.relative_to(folder).as_posix(), file.read_bytes())

    assert _document(archive) == _document(folder) == _document(folder)


_PRINT = """
import json, sys
from pathlib import Path
from meshnb.diagnosis import diagnose
from meshnb.sources import Bundle
from meshnb.tables import Facts
for path in sys.argv[1:]:
    print(json.dumps(diagnose(Facts(Bundle(path, label=Path(path).name))).to_json()))
"""


def test_the_order_of_sets_in_python_has_no_influence() -> None:
    names = ("authz-principal-typo", "istiod-down", "mtls-strict-legacy-client", "subset-no-pods")
    paths = [str(unpacked() / name) for name in names]
    documents = []
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, "-c", _PRINT, *paths],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        documents.append([json.loads(line) for line in done.stdout.splitlines()])

    assert documents[0] == documents[1]
    assert documents[0] == [diagnose(facts_of(name)).to_json() for name in names]
