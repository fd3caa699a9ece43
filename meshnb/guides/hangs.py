"""The guide for connections that hang."""

from __future__ import annotations

from meshnb.guides.asking import first_ask
from meshnb.guides.base import Case, Chosen, Guide, Page, step
from meshnb.guides.excerpts import excerpt
from meshnb.guides.pictures import State
from meshnb.guides.seen import apart, followed, mended, seen
from meshnb.guides.shared import gap_note, plural

_NAME = "hangs"
_FIRST = {
    "client": "the client's: by them it tells HTTP from anything else",
    "server": "the server's: it greets first",
    "none": "nobody's: the port's number says it all",
}


@step("Who speaks first", asked=("services", "listeners", "access_log"))
def protocol(case: Case, chosen: Chosen) -> Page:
    """For whose first bytes does a proxy wait where the protocol of a port is not declared?

    Two that wait for each other hang, and nobody logs an error.
    """
    table = case.facts["services"]
    focus = followed(case, _NAME, chosen)
    named = focus.cause.subject.name if focus is not None and focus.cause is not None else ""
    undeclared = table[table["protocol"] == "auto"]
    order = (undeclared["service"] != named).sort_values(kind="stable").index
    rows = undeclared.loc[order]
    rows.attrs["table"] = "services"
    missing = gap_note(case, ("services",))
    about = f"{named} is one of them. " if named in set(rows["service"]) else ""
    answer = Page(
        f"{plural(len(rows), 'port')} of {len(table)} declare no protocol; there a proxy waits for "
        "the client.",
        State.UNKNOWN if missing else State.ODD if about else State.FINE,
        f"Protocol detection reads the first bytes of the client. {about}A server that speaks "
        f"first, as those of mail and some databases do, needs a port named tcp-…. {missing}",
        (excerpt("services: ports without a declared protocol", rows),) if len(rows) else (),
        command="kubectl get services -A -o wide",
    )
    return first_ask(
        chosen.get("protocol"),
        "It waits for the first bytes, and they are:",
        _FIRST,
        "client",
        answer,
        "Think first: somebody has to begin, so that the proxy can tell what is spoken.",
    )


HANGS = Guide(
    name=_NAME,
    title="Hangs",
    about="A connection is made, and then nothing comes: who waits for whom.",
    steps=(
        seen(_NAME, "services", "listeners"),
        protocol,
        apart(
            _NAME,
            "istioctl proxy-config listeners {proxy}",
            *("services", "listeners", "access_log", "network_policies", "containers"),
        ),
        mended(_NAME),
    ),
)
