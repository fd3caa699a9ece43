"""The guide for 404."""

from __future__ import annotations

from meshnb.guides.asking import ask_answerer
from meshnb.guides.base import Case, Chosen, Guide, Page, step
from meshnb.guides.seen import apart, mended, seen, symptom_of
from meshnb.guides.tracing import request_page

_NAME = "not_found"


@step("Who says so", asked=("access_log", "pods"))
def answerer(case: Case, chosen: Chosen) -> Page:
    """Who said 404: the application, or a proxy in its place?

    An application that does not know a path is no matter of the mesh. A proxy without a route is.
    """
    return ask_answerer(case, symptom_of(case, _NAME, chosen), chosen.get("answerer"))


@step("Hosts and routes", asked=("listeners", "routes", "istio_config"))
def way(case: Case, chosen: Chosen) -> Page:
    """Does the proxy know the host, and does one of its routes match?

    Host first, path second: a host that it does not know ends in no route at all.
    """
    return request_page(case, symptom_of(case, _NAME, chosen))


NOT_FOUND = Guide(
    name=_NAME,
    title="404",
    about="Requests get 404: from the application, or from a proxy without a route for them.",
    steps=(
        seen(_NAME),
        answerer,
        way,
        apart(
            _NAME,
            "istioctl proxy-config routes {proxy}",
            *("routes", "listeners", "istio_config", "services"),
        ),
        mended(_NAME),
    ),
)
