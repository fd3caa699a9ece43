"""The guide for 503 and other 5xx."""

from __future__ import annotations

from meshnb.guides.asking import ask_hop
from meshnb.guides.base import Case, Chosen, Guide, Page, step
from meshnb.guides.seen import apart, mended, seen, symptom_of
from meshnb.guides.tracing import request_page

_NAME = "unavailable"


@step("Where it ended", asked=("access_log", "pods"))
def ended(case: Case, chosen: Chosen) -> Page:
    """At which hop did the request end?

    A proxy that answers 503 says why in two letters. They leave one hop, and with it a few reasons.
    """
    return ask_hop(case, symptom_of(case, _NAME, chosen), chosen.get("ended"))


@step("Followed", asked=("listeners", "routes", "clusters", "endpoints", "rbac_rules"))
def way(case: Case, chosen: Chosen) -> Page:
    """What do the proxies, as they were recorded, do with such a request?

    The log says how it ended. Their configuration says by which row, and from which object it is.
    """
    return request_page(case, symptom_of(case, _NAME, chosen))


UNAVAILABLE = Guide(
    name=_NAME,
    title="503",
    about="Requests fail with 503 or another 5xx: which hop gives up, and why.",
    steps=(
        seen(_NAME),
        ended,
        way,
        apart(
            _NAME,
            "istioctl proxy-config clusters {proxy}",
            *("clusters", "endpoints", "service_endpoints", "istio_config", "containers"),
        ),
        mended(_NAME),
    ),
)
