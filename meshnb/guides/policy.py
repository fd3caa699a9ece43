"""The guide for policies that have no effect."""

from __future__ import annotations

from meshnb.guides.base import Guide
from meshnb.guides.ladders import rung, which
from meshnb.guides.seen import apart, mended, seen

_NAME = "policy"
_KINDS = frozenset(
    ("AuthorizationPolicy", "RequestAuthentication", "PeerAuthentication", "WasmPlugin")
)


def _is_policy(kind: str) -> bool:
    return kind in _KINDS


POLICY = Guide(
    name=_NAME,
    title="A policy has no effect",
    about="A policy is there, and nobody is turned away: is it attached, held, and in the path?",
    steps=(
        seen(_NAME, "istio_config", "rbac_rules", "ztunnel_policies"),
        which(_NAME, _is_policy, "policy"),
        rung(_NAME, _is_policy),
        apart(
            _NAME,
            "istioctl experimental authz check {proxy}",
            *("istio_config", "rbac_rules", "ztunnel_policies", "pods", "services"),
        ),
        mended(_NAME),
    ),
)
