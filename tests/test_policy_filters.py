"""What tests let proxies hold of policies is what istiod sent where recordings have some."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests import policy_filters
from tests.alteration import Altered

NAMES = ("authz-allow-nobody", "authz-deny-named", "authz-principal-typo", "healthy")


def _listeners(altered: Altered) -> list[Any]:
    found: list[Any] = []
    for entry in altered.answers(kind="http", port=15000, path="/config_dump?include_eds"):
        for part in entry["configs"]:
            found += part.get("dynamic_listeners", [])
    return [one["active_state"]["listener"] for one in found if one["name"] == "virtualInbound"]


@pytest.mark.parametrize("name", NAMES)
def test_the_filters_of_a_recorded_policy_are_those_that_istiod_sent(
    name: str, tmp_path: Path
) -> None:
    """Altered: each policy was written again, so that the proxies' filters are made anew."""
    altered = Altered(name, tmp_path)
    sent = _listeners(altered)
    assert sent

    def write(items: list[Any]) -> None:
        for one in items:
            one["metadata"]["resourceVersion"] = "1"

    altered.objects("authorizationpolicies", write)
    assert _listeners(altered) == sent


def test_each_action_has_a_filter_of_its_own_and_tokens_come_first() -> None:
    meta = {"namespace": "shop", "name": "all"}
    actions = ("ALLOW", "DENY", "AUDIT", "CUSTOM")
    policies = [{"metadata": meta, "spec": {"action": one, "rules": [{}]}} for one in actions]
    tokens = [{"metadata": meta, "spec": {"jwtRules": [{"issuer": "me"}]}}]
    made = policy_filters.filters(policies, tokens)
    names = [one["name"].rpartition(".")[2] for one in made]
    assert names == ["jwt_authn", "rbac", "ext_authz", "rbac", "rbac", "rbac"]
    rules = [one["typed_config"].get("rules", {}) for one in made if one["name"].endswith("rbac")]
    assert [one.get("action", "ALLOW") for one in rules] == ["ALLOW", "LOG", "DENY", "ALLOW"]
    assert rules[0] == {}


@pytest.mark.parametrize(("action", "rules"), [("ALLOW", 0), ("DENY", 1)])
def test_a_rule_for_requests_means_something_else_where_there_are_none(
    action: str, rules: int
) -> None:
    spec = {"action": action, "rules": [{"to": [{"operation": {"paths": ["/admin"]}}]}]}
    policy = {"metadata": {"namespace": "shop", "name": "all"}, "spec": spec}
    (made,) = policy_filters.filters([policy], [], bytes_only=True)
    assert len(made["typed_config"]["rules"].get("policies", {})) == rules
