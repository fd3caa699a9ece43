"""The guide for 401."""

from __future__ import annotations

from meshnb.guides.base import Case, Chosen, Guide, Page, step
from meshnb.guides.refusals import ask_refuser
from meshnb.guides.seen import apart, mended, seen, symptom_of
from meshnb.guides.tracing import request_page

_NAME = "unauthorized"
_BY = {
    "token": "the check of its token",
    "missing": "the demand for a token",
    "asked": "a server that the proxy asks",
    "application": "the application itself",
}


@step("By what", asked=("access_log",))
def refuser(case: Case, chosen: Chosen) -> Page:
    """What refused the request: is there no token, or one that is not accepted?

    The details in the log tell one from the other, and give the reason in a word.
    """
    return ask_refuser(case, symptom_of(case, _NAME, chosen), chosen.get("refuser"), _BY)


@step("What the server decides", asked=("listeners", "istio_config", "istiod_log"))
def way(case: Case, chosen: Chosen) -> Page:
    """Which issuer does the server demand, and from where has it the keys?

    The rules as its proxy holds them are asked. What the token says is in no log.
    """
    return request_page(case, symptom_of(case, _NAME, chosen))


UNAUTHORIZED = Guide(
    name=_NAME,
    title="401",
    about="Requests get 401: whose token is missing or not accepted, and why.",
    steps=(
        seen(_NAME),
        refuser,
        way,
        apart(
            _NAME,
            "kubectl get requestauthentications,authorizationpolicies -A",
            *("access_log", "istio_config", "istiod_log"),
        ),
        mended(_NAME),
    ),
)
