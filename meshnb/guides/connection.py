"""The guide for connections that are reset or refused, and for TLS errors."""

from __future__ import annotations

from meshnb.guides.asking import ask_hop
from meshnb.guides.base import Case, Chosen, Guide, Page, step
from meshnb.guides.seen import apart, mended, seen, symptom_of
from meshnb.guides.tracing import connection_page

_NAME = "connection"


@step("Where it ended", asked=("access_log", "ztunnel_access_log", "pods"))
def ended(case: Case, chosen: Chosen) -> Page:
    """At which hop did the connection end?

    The end that closed it knows why; the other one only sees that it is gone.
    """
    return ask_hop(case, symptom_of(case, _NAME, chosen), chosen.get("ended"))


@step("Both ends", asked=("clusters", "listeners", "certificates", "istio_config"))
def ends(case: Case, chosen: Chosen) -> Page:
    """What does the client speak, and what does the server take?

    TLS needs two. Each end has settings and certificates of its own, and no object shows both.
    """
    return connection_page(case, symptom_of(case, _NAME, chosen))


CONNECTION = Guide(
    name=_NAME,
    title="Reset, refused, TLS error",
    about="Connections are reset or refused, or TLS fails: which end does not fit the other one.",
    steps=(
        seen(_NAME, "listeners", "services"),
        ended,
        ends,
        apart(
            _NAME,
            "istioctl proxy-config listeners {proxy}",
            *("listeners", "clusters", "certificates", "istio_config", "network_policies"),
        ),
        mended(_NAME),
    ),
)
