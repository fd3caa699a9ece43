"""The guide for 403, and for 429."""

from __future__ import annotations

from meshnb.guides.base import Case, Chosen, Guide, Page, step
from meshnb.guides.refusals import ask_refuser
from meshnb.guides.seen import apart, mended, seen, symptom_of
from meshnb.guides.tracing import connection_page, request_page

_NAME = "forbidden"
_BY = {
    "deny": "a policy that forbids it",
    "none": "the lack of a policy that admits it",
    "asked": "a server that the proxy asks",
    "limit": "a rate limit",
    "ztunnel": "ztunnel, because of a policy",
    "application": "the application itself",
}


@step("By what", asked=("access_log", "ztunnel_access_log"))
def refuser(case: Case, chosen: Chosen) -> Page:
    """What refused the request: a policy that forbids, or the lack of one that admits?

    Both are a 403. One is mended in the policy that the log names, the other in none that it names.
    """
    return ask_refuser(case, symptom_of(case, _NAME, chosen), chosen.get("refuser"), _BY)


@step(
    "What the server decides", asked=("rbac_rules", "listeners", "ztunnel_policies", "istio_config")
)
def way(case: Case, chosen: Chosen) -> Page:
    """Which rule decides at the server, and which came closest?

    The rules as the proxy holds them are asked, with the identity that the caller's certificate
    gives it.
    """
    symptom = symptom_of(case, _NAME, chosen)
    if symptom is not None and not symptom.failures:
        return connection_page(case, symptom)
    return request_page(case, symptom)


FORBIDDEN = Guide(
    name=_NAME,
    title="403",
    about="Requests are refused with 403 or 429: by which rule, and what it takes to be admitted.",
    steps=(
        seen(_NAME),
        refuser,
        way,
        apart(
            _NAME,
            "istioctl experimental authz check {proxy}",
            *("rbac_rules", "istio_config", "certificates", "ztunnel_policies"),
        ),
        mended(_NAME),
    ),
)
