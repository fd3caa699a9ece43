"""Changes that are stored and do not arrive: recordings altered in that one respect."""

from __future__ import annotations

from typing import Any

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
