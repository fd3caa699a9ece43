"""A real mesh has much beside its fault: none of it may be blamed, nor hide the cause."""

from __future__ import annotations

from itertools import cycle
from pathlib import Path

import pytest

from meshnb.diagnosis import Diagnosis, diagnose
from meshnb.sources import ListQuestion
from meshnb.tables import Facts
from tests.accuracy import names
from tests.alteration import Altered
from tests.conftest import truth_of
from tests.enriched_accuracy import RENAMED, TOGETHER, measure
from tests.enriching import INGREDIENTS, LESS, enriched

#: Faults of many kinds, one of which is tried with each ingredient.
FAULTY = (
    "authz-allow-nobody",
    "mtls-client-disable",
    "gateway-hosts-disjoint",
    "app-resets",
    "subset-no-pods",
    "sidecar-hides-host",
    "envoyfilter-rejected",
    "tls-to-plaintext",
    "mtls-strict-legacy-client",
    "not-ready-endpoint",
    "httproute-parent-wrong",
    "istiod-unreachable-stale",
)


@pytest.mark.parametrize("ingredient", INGREDIENTS)
def test_a_healthy_mesh_stays_healthy_with(ingredient: str) -> None:
    measured = measure(ingredient, ["healthy-loaded"])

    assert measured.blamed["healthy-loaded"] == ()


@pytest.mark.parametrize(
    ("ingredient", "name"),
    list(zip([one for one in INGREDIENTS if one not in LESS], cycle(FAULTY), strict=False)),
)
def test_a_cause_stays_first_and_alone_with(ingredient: str, name: str) -> None:
    measured = measure(ingredient, [name])

    assert [one.right for one in measured.scores] == [True]
    assert measured.blamed[name] == ()


@pytest.mark.parametrize(
    ("ingredient", "name"),
    [
        ("default_deny", "authz-principal-typo"),
        ("internet", "mtls-client-disable"),
        ("revision", "revision-unknown"),
        ("short_logs", "app-5xx"),
        ("strict", "mtls-strict-legacy-client"),
        ("subsets", "service-selector-wrong"),
    ],
)
def test_a_cause_stays_first_beside_what_looks_like_it(ingredient: str, name: str) -> None:
    measured = measure(ingredient, [name])

    assert [one.right for one in measured.scores] == [True]
    assert measured.blamed[name] == ()


@pytest.mark.parametrize("name", ["app-5xx", "authz-principal-typo", "market-healthy"])
def test_all_of_it_together_changes_nothing(name: str) -> None:
    measured = measure(TOGETHER, [name])

    assert [one.right for one in measured.scores] == [True]
    assert measured.blamed[name] == ()


def test_all_of_it_under_other_names_changes_nothing() -> None:
    measured = measure(RENAMED, ["fault-left-behind"])

    assert [one.right for one in measured.scores] == [True]
    assert measured.blamed["fault-left-behind"] == ()


@pytest.mark.parametrize("name", ["authz-deny-named", "app-slow", "rate-limited"])
def test_without_access_logs_nobody_is_blamed_wrongly(name: str) -> None:
    diagnosis = diagnose(Facts(enriched(name, ("no_logs",))))

    assert all(names(truth_of(name), cause.subject) for cause in diagnosis.problems)
    assert diagnosis.verdict != "healthy"
    assert any("no proxy has logged a request" in str(gap) for gap in diagnosis.missing)


@pytest.mark.parametrize("ingredient", INGREDIENTS)
def test_each_ingredient_shows_in_some_answer(ingredient: str) -> None:
    plain, rich = enriched("healthy", ()), enriched("healthy", (ingredient,))
    changed = [
        question
        for question in rich.questions()
        if question not in plain.questions()
        or next(rich.ask([question])).content.split() != next(plain.ask([question])).content.split()
    ]

    assert changed


# --- Two faults ---------------------------------------------------------------------------------


def _blamed(diagnosis: Diagnosis) -> list[str]:
    return [str(cause.subject) for cause in diagnosis.problems]


@pytest.mark.parametrize(
    "name",
    [
        "app-crash-loop",
        "authz-allow-nobody",
        "authz-principal-typo",
        "envoyfilter-rejected",
        "gateway-hosts-disjoint",
        "gateway-name-wrong",
        "gateway-secret-missing",
        "https-to-http-port",
        "istiod-unreachable-stale",
        "rate-limited",
        "service-selector-wrong",
        "tls-to-plaintext",
    ],
)
def test_two_faults_are_two_causes(name: str, tmp_path: Path) -> None:
    """Altered: besides what is wrong already, the application ratings answers 500."""
    altered = Altered(name, tmp_path).at_server("ratings:9080", "", code="500")
    diagnosis = diagnose(altered.facts())
    first = diagnosis.problems[:2]

    assert len(first) == 2, _blamed(diagnosis)
    assert "Deployment bookinfo/ratings-v1" in _blamed(diagnosis)[:2]
    assert any(names(truth_of(name), cause.subject) for cause in first), _blamed(diagnosis)


def test_a_blemish_explains_nothing_and_stands_below_the_cause() -> None:
    """Beside a real fault, a VirtualService for a gateway that does not exist harms nobody."""
    mesh = enriched("app-5xx", ())
    mesh.add(
        "networking.istio.io/v1",
        "VirtualService",
        "left-over",
        "bookinfo",
        spec={
            "hosts": ["old.example.com"],
            "gateways": ["gone"],
            "http": [{"route": [{"destination": {"host": "productpage"}}]}],
        },
    )
    cause, *blemishes = diagnose(Facts(mesh)).problems

    assert (str(cause.subject), cause.standing) == ("Deployment bookinfo/details-v1", "cause")
    assert [(str(one.subject), one.standing) for one in blemishes] == [
        ("VirtualService bookinfo/left-over", "blemish")
    ]


def test_a_fault_that_shows_nowhere_is_no_blemish() -> None:
    (fault,) = diagnose(Facts(enriched("route-shadowed", ()))).problems

    assert (str(fault.subject), fault.standing) == ("VirtualService bookinfo/reviews", "fault")


# --- What may not be seen -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("resource", "unsure", "sure"),
    [
        ("networking.istio.io/v1/gateways", {"MNB302", "MNB304"}, {"MNB101", "MNB501", "MNB711"}),
        ("networking.istio.io/v1/destinationrules", {"MNB210", "MNB211"}, {"MNB302", "MNB711"}),
        ("security.istio.io/v1/requestauthentications", set(), {"MNB210", "MNB302", "MNB711"}),
        ("v1/namespaces", {"MNB150"}, {"MNB210", "MNB302", "MNB711"}),
    ],
)
def test_a_kind_that_may_not_be_listed_unsettles_only_the_checks_that_need_it(
    resource: str, unsure: set[str], sure: set[str]
) -> None:
    mesh = enriched("healthy", ())
    version, _, name = resource.rpartition("/")
    mesh.refuse(ListQuestion(version, name), "forbidden")
    diagnosis = diagnose(Facts(mesh))
    unknown = {outcome.check.code for outcome in diagnosis.unknown}
    ruled_out = {outcome.check.code for outcome in diagnosis.ruled_out}

    assert unknown >= unsure
    assert ruled_out >= sure
    (missing,) = diagnosis.missing
    assert str(missing).startswith(f"LIST {resource}: lacks permission to list ")


def test_what_could_not_be_asked_lowers_the_certainty_of_a_cause() -> None:
    whole = diagnose(Facts(enriched("subset-missing", ()))).problems[0]
    mesh = enriched("subset-missing", ())
    mesh.refuse(ListQuestion("networking.istio.io/v1", "destinationrules"), "forbidden")
    partly = diagnose(Facts(mesh)).problems[0]

    assert (whole.check.code, partly.check.code) == ("MNB210", "MNB210")
    assert not whole.missing
    assert partly.missing
    assert partly.certainty < whole.certainty
