"""The guide for changes that have no effect."""

from __future__ import annotations

from meshnb.guides.base import Guide
from meshnb.guides.ladders import rung, which
from meshnb.guides.seen import apart, mended, seen

_NAME = "change"


def _any(kind: str) -> bool:
    return True


CHANGE = Guide(
    name=_NAME,
    title="A change has no effect",
    about="Something was changed, and nothing happens: at which rung the change is stuck.",
    steps=(
        seen(_NAME, "proxy_status", "istio_config", "proxies"),
        which(_NAME, _any, "object"),
        rung(_NAME, _any),
        apart(
            _NAME,
            "istioctl proxy-status",
            *("proxy_status", "istio_config", "routes", "clusters", "istiod_log"),
        ),
        mended(_NAME),
    ),
)
