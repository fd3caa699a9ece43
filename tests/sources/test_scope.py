"""Which pods a scope chooses, and how many of each workload."""

from __future__ import annotations

from typing import Any

import pytest

from meshnb.errors import UsageError
from meshnb.sources import Progress, Scope
from meshnb.sources.scope import MANY_PODS


def _pod(
    name: str, labels: dict[str, str] | None = None, *, owner: str = "", ready: bool = True
) -> dict[str, Any]:
    owners = [{"kind": "ReplicaSet", "name": owner, "controller": True}] if owner else []
    return {
        "metadata": {
            "namespace": "shop",
            "name": name,
            "labels": labels or {},
            "ownerReferences": owners,
        },
        "status": {"conditions": [{"type": "Ready", "status": "True" if ready else "False"}]},
    }


@pytest.mark.parametrize(
    ("selector", "held"),
    [
        ("", {"a", "b", "c"}),
        ("app=web", {"a"}),
        ("app==web", {"a"}),
        ("app!=web", {"b", "c"}),
        ("app", {"a", "b"}),
        ("!app", {"c"}),
        ("app in (web, api)", {"a", "b"}),
        ("app notin (web)", {"b", "c"}),
        ("app in (web,api),example.com/tier=", {"b"}),
    ],
)
def test_a_selector_means_what_it_means_to_kubectl(selector: str, held: set[str]) -> None:
    pods = [
        _pod("a", {"app": "web"}),
        _pod("b", {"app": "api", "example.com/tier": ""}),
        _pod("c"),
    ]
    scope = Scope(labels=selector)
    assert {pod["metadata"]["name"] for pod in pods if scope.holds(pod)} == held


@pytest.mark.parametrize("selector", ["app=a b", "=web", "app in web", "a,,b", "app>1"])
def test_a_selector_that_is_none_is_refused_when_it_is_written(selector: str) -> None:
    with pytest.raises(UsageError, match="is no label selector"):
        Scope(labels=selector)


def test_a_sample_of_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="asks nobody"):
        Scope(sample=0)


def test_a_sample_takes_some_of_each_version_of_a_workload_and_the_unready_first() -> None:
    pods = [_pod(f"web-1-{number}", owner="web-1", ready=number != 7) for number in range(9)]
    pods += [_pod("web-2-0", owner="web-2"), _pod("alone")]
    kept, said = Scope(sample=2).sampled(pods)
    assert [pod["metadata"]["name"] for pod in kept] == ["web-1-7", "web-1-0", "web-2-0", "alone"]
    assert said.startswith("Only 4 of 11 pods were asked, 2 of each workload at most;")
    assert "--sample 9" in said


def test_very_many_pods_are_sampled_unless_one_says_how_many() -> None:
    pods = [_pod(f"web-{number:04}", owner="web") for number in range(MANY_PODS + 1)]
    assert Scope().sampled(pods[:-1]) == (pods[:-1], "")
    kept, said = Scope().sampled(pods)
    assert len(kept) == 3
    assert said
    assert Scope(sample=MANY_PODS + 1).sampled(pods) == (pods, "")


def test_progress_is_one_line_that_names_who_is_slow() -> None:
    assert str(Progress(9, 9, 0, (), 1.0)) == "9 of 9 answers"
    slow = (("shop/a", 12.4), ("shop/b", 3.0), ("shop/c", 0.2))
    assert str(Progress(90, 40, 2, slow, 13.0)) == (
        "40 of 90 answers, 2 of them refused or silent; "
        "waiting for shop/a (12 s), shop/b (3 s) and 1 more"
    )
