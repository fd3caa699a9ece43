"""Changes that are stored and do not arrive: recordings altered in that one respect."""

from __future__ import annotations

from typing import Any

from meshnb.checks import CHECKS, Inputs, Outcome, Verdict, run
from meshnb.diagnosis import diagnose
from tests.alteration import Altered
from tests.conftest import facts_of
from tests.traces.following import DUMP, HELD, LATER, SYNC, page_of, to_v1, twin, weights


def second_istiod(altered: Altered, *, generation: int) -> str:
    """Add an istiod to which one proxy belongs; return the name of the first one.

    ``generation`` is how far it is with the VirtualService, from what is stored.
    """
    istiod = str(facts_of("healthy")["istiod_ports"]["istiod"].iloc[0])
    held = page_of(altered, HELD)
    for one in held:
        if (one["kind"], one["metadata"]["name"]) == ("VirtualService", "reviews"):
            one["metadata"]["generation"] += generation
    mine = [one for one in page_of(altered, SYNC) if one["proxy"] == "client.bookinfo"]
    altered.objects("pods", lambda items: items.append(twin(items, istiod)))
    altered.reply({"kind": "http", **HELD}, held, pod="istiod-twin")
    altered.reply({"kind": "http", **SYNC}, mine, pod="istiod-twin")

    def without_mine(page: Any) -> None:
        page[:] = [one for one in page if one not in mine]

    altered.pages(without_mine, pod=istiod, **SYNC)
    return istiod


def test_an_istiod_that_is_behind_is_named_with_the_proxies_it_serves(healthy: Altered) -> None:
    """Altered: a second istiod has an older generation, and its proxy routes as that one said."""
    second_istiod(healthy, generation=-1)
    healthy.pages(to_v1, pod="client", **DUMP)
    (cause,) = diagnose(healthy.facts()).problems
    assert (cause.check.code, cause.failure_class.value) == ("MNB680", "B")
    assert str(cause.subject) == "Deployment istio-system/istiod"
    assert "istio-system/istiod-twin does not have VirtualService bookinfo/reviews" in (
        cause.finding.message
    )
    assert "client.bookinfo" in cause.finding.message


def test_two_istiods_that_are_even_are_no_cause(healthy: Altered) -> None:
    """Altered: a second istiod has what is stored, as the first one."""
    second_istiod(healthy, generation=0)
    assert diagnose(healthy.facts()).problems == ()


def test_a_proxy_that_alone_is_behind_is_named(healthy: Altered) -> None:
    """Altered: one proxy routes as before the last change, after which it was sent nothing."""
    healthy.pages(to_v1, pod="client", **DUMP)
    (cause,) = diagnose(healthy.facts()).problems
    assert (cause.check.code, str(cause.subject)) == ("MNB680", "Pod bookinfo/client")


def test_what_no_proxy_has_may_be_without_effect_by_design(healthy: Altered) -> None:
    """Altered: the weights were changed after the last push, and istiod has them."""
    healthy.each("virtualservices", "reviews", weights(50, 50, LATER))
    assert [one.check.code for one in diagnose(healthy.facts()).problems] == []


def _outcome(altered: Altered, code: str) -> Outcome:
    (outcome,) = run(Inputs(altered.facts()), [CHECKS[code]])
    return outcome


def test_what_was_made_of_a_deleted_object_is_found_in_the_proxies(healthy: Altered) -> None:
    """Altered: VirtualService reviews is gone, and istiod does not hold it; its proxies do."""
    healthy.remove("virtualservices", "reviews")
    (finding,) = _outcome(healthy, "MNB681").findings
    assert "VirtualService bookinfo/reviews does not exist any more" in finding.message
    assert "ratings-v1" in finding.message
    assert str(finding.subject) == "Deployment istio-system/istiod"
    assert str(finding.related[0]) == "VirtualService bookinfo/reviews"
    assert finding.evidence[0].table == "routes"


def test_what_istiod_derives_from_other_kinds_is_no_deleted_object() -> None:
    """Nothing altered: routes of the Gateway API are made of VirtualServices that nobody stored."""
    (outcome,) = run(Inputs(facts_of("market-healthy")), [CHECKS["MNB681"]])
    assert outcome.verdict is Verdict.PASS


def test_who_may_have_been_asked_before_the_deletion_is_left_alone(healthy: Altered) -> None:
    """Altered: the list of VirtualServices was not allowed, so that none is known to be gone."""
    healthy.remove("virtualservices", "reviews")
    healthy.silence("forbidden", 403, kind="list", resource="virtualservices")
    assert _outcome(healthy, "MNB681").findings == ()
