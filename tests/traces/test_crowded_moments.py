"""Two moments of a mesh with many proxies: few sentences, whoever was replaced or not asked."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from meshnb.sources import ListQuestion, Question, open_source
from meshnb.tables import Facts
from meshnb.traces.moments import Moments
from tests.conftest import unpacked
from tests.crowding import crowd, lead_elsewhere
from tests.enriching.base import Enriched

_PODS = 4
_ROLLED = ("productpage-v1", "istio-ingressgateway")
_WORKLOADS = 6
_OBJECTS = [
    (
        'DestinationRule bookinfo/reviews: spec.subsets[v3] absent -> {"labels":{"version":"v3"},'
        '"name":"v3"}'
    ),
    (
        "VirtualService bookinfo/reviews: spec.http[0].route[0].destination.subset v2 -> v3, "
        "spec.http[1].route[1].destination.subset v2 -> v3"
    ),
]


def _healthy() -> Enriched:
    return Enriched(open_source(unpacked() / "healthy"))


@pytest.fixture(scope="module")
def earlier() -> Facts:
    """Return a mesh in which six workloads have several pods each."""
    return Facts(crowd(_healthy(), _PODS))


def _later(keep: Callable[[str], bool] = bool) -> Facts:
    """Return the same after a rollout, with another subset; only some pods were asked."""
    mesh = lead_elsewhere(crowd(_healthy(), _PODS, rolled=_ROLLED), "reviews", "v2", "v3")

    def asked(question: Question) -> bool:
        if isinstance(question, ListQuestion) or question.pod.startswith("istiod"):
            return True
        return keep(question.pod)

    mesh.forget(asked)
    return Facts(mesh)


@pytest.fixture(scope="module")
def later() -> Facts:
    """Return the later mesh, of which everybody was asked."""
    return _later()


def test_a_route_of_a_crowd_and_a_rollout_are_a_sentence_each(earlier: Facts, later: Facts) -> None:
    moments = Moments(earlier, later)
    assert [change.words for change in moments.changes] == [
        *_OBJECTS,
        "Deployment bookinfo/productpage-v1 was rolled out: 4 pods replaced by 4 new ones",
        (
            "Deployment istio-system/istio-ingressgateway was rolled out: 4 pods replaced by 4 new "
            "ones"
        ),
        (
            "cluster outbound|9080|v3|reviews.bookinfo.svc.cluster.local of 25 proxies is new "
            "(from DestinationRule bookinfo/reviews)"
        ),
        (
            "routes 80 and 9080 of 21 proxies now point to subset v3 instead of subset v2, and 2 "
            "more places"
        ),
    ]
    assert moments.unseen == ()


def test_pods_of_a_rollout_are_the_same_proxies_in_tables(earlier: Facts, later: Facts) -> None:
    moments = Moments(earlier, later)
    assert moments.rows("proxies") == ()
    added = moments.rows("clusters")
    assert {row.state for row in added} == {"added"}
    assert len(added) == _PODS * _WORKLOADS + 1  # and the client, which stands alone


def test_of_a_part_of_the_pods_only_that_part_is_compared(earlier: Facts) -> None:
    moments = Moments(earlier, _later(lambda pod: pod.startswith(("productpage", "details"))))
    told = [change.words for change in moments.changes]
    assert told[:2] == _OBJECTS
    assert told[-1].startswith("routes 80 and 9080 of 8 proxies now point to subset v3 instead of")
    assert not [change for change in moments.changes if change.about == "proxy"]
    (unseen,) = moments.unseen
    assert unseen.what == "what 17 proxies say and hold"
    assert unseen.why.startswith("at the later moment nobody asked client.bookinfo, ")
    assert {str(dict(row.key)["proxy"])[:7] for row in moments.rows("clusters")} == {
        "details",
        "product",
    }


def test_of_a_sample_those_are_compared_that_both_moments_asked(later: Facts) -> None:
    sample = _later(lambda pod: pod.endswith("0001"))
    moments = Moments(sample, later)
    assert moments.changes == ()
    (unseen,) = moments.unseen
    assert unseen.why.startswith("at the earlier moment nobody asked ")


def test_a_sample_that_was_rolled_out_is_compared_with_its_successors(earlier: Facts) -> None:
    last = f"{_PODS - 1:04d}"
    moments = Moments(earlier, _later(lambda pod: pod.endswith(last)))
    (route,) = [one for one in moments.changes if one.subject.startswith("routes 80 and 9080")]
    assert any(proxy.startswith("productpage-") for proxy in route.proxies)
