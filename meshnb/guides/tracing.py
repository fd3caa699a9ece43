"""Pages that follow something through the mesh: a request, a connection, or a change."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

import pandas as pd

from meshnb.errors import MeshnbError
from meshnb.guides.accounts import (
    Account,
    Part,
    logged,
    of_change,
    of_connection,
    of_request,
    rows_of,
)
from meshnb.guides.base import Case, Excerpt, Page
from meshnb.guides.excerpts import excerpt
from meshnb.guides.journeys import journey
from meshnb.guides.pictures import Chain, Link, State
from meshnb.guides.shared import gap_note
from meshnb.symptoms import Symptom
from meshnb.traces.change import follow_change
from meshnb.traces.connection import ConnectionTrace
from meshnb.traces.ends.base import FAILS
from meshnb.traces.ends.places import OUTSIDE
from meshnb.traces.request import Request

#: Which page of a proxy shows what is decided at a hop.
_PAGES: Mapping[str, str] = {
    "listener": "listeners",
    "filter chain": "listeners",
    "virtual host": "routes",
    "route": "routes",
    "route action": "routes",
    "cluster": "clusters",
    "endpoints": "endpoints",
    "transport": "clusters",
    "client": "clusters",
    "server": "listeners",
}
#: So many hops are listed.
_HOPS = 20


def request_page(case: Case, symptom: Symptom | None) -> Page:
    """Follow the last failed request of a symptom through the proxies as they were recorded."""
    if symptom is None or not symptom.failures:
        return _nothing_to_follow(case, "request")
    row = symptom.failures[-1].index
    account = of_request(case.follower.follow(Request.of_line(case.facts, row)))
    page = _page(case, account, logged(case.facts, row))
    if account.state is not State.FINE:
        return page
    # What the proxies hold lets it through, and yet it failed.
    return replace(
        page,
        verdict=f"No proxy stops it: {page.verdict}",
        state=State.ODD,
        reading=f"{page.reading} So what fails is behind the last proxy, or has changed since.",
    )


def _nothing_to_follow(case: Case, what: str) -> Page:
    missing = gap_note(case, ("access_log",))
    return Page(
        f"There is no failed {what} to follow.",
        State.UNKNOWN,
        f"No log tells of one; the notebook on one {what} follows any. {missing}".strip(),
        command=f"meshnb trace {what} --help",
    )


def connection_page(case: Case, symptom: Symptom | None) -> Page:
    """Follow the connection of a symptom, with what each end speaks and takes."""
    ends = _ends(case, symptom) if symptom is not None else None
    if ends is None or symptom is None:
        return _nothing_to_follow(case, "connection")
    try:
        trace, assumed = _connection(case, *ends, _server_name(symptom))
    except MeshnbError as error:
        return Page("The connection cannot be followed.", State.UNKNOWN, str(error))
    page = _page(case, of_connection(trace), assumed)
    told = pd.DataFrame(
        [
            (role, end.name, end.speaks, end.log, ", ".join(end.objects))
            for role, end in (("client", trace.client), ("server", trace.server))
        ],
        columns=["end", "who", "speaks or takes", "its log has", "because of"],
    )
    return replace(page, tables=(excerpt("Both ends", told), *page.tables))


def _ends(case: Case, symptom: Symptom) -> tuple[str, str] | None:
    """Return client and server of a symptom's connection, as the trace takes them."""
    host = f"{symptom.host}:{symptom.port}" if symptom.port else symptom.host
    if not symptom.failures:
        callers = [pod for pod in case.mesh.pods if pod.pod in symptom.callers]
        client = f"{callers[0].namespace}/{callers[0].pod}" if callers else OUTSIDE
        return (client, host) if host else None
    failure = symptom.failures[-1]
    if failure.direction == "inbound" or symptom.side == "gateway":
        caller = case.mesh.pod_at(failure.peer_address)
        client = f"{caller.namespace}/{caller.pod}" if caller else OUTSIDE
        return client, failure.local_address
    return (failure.proxy, host) if host else None


def _server_name(symptom: Symptom) -> str:
    """Return the name for which a client's own application speaks TLS; empty when it is not seen.

    The name that a sidecar gives of its own begins with ``outbound``.
    """
    name = symptom.failures[-1].server_name if symptom.failures else ""
    return "" if name.startswith("outbound_") else name


def _connection(
    case: Case, client: str, server: str, server_name: str
) -> tuple[ConnectionTrace, str]:
    """Follow a connection; where plain text gets through, one with TLS of the client's own too."""
    if server_name:
        own = case.connections.follow(client, server, tls=True, server_name=server_name)
        return own, f"The log has the name for which the client speaks TLS: {server_name}."
    plain = case.connections.follow(client, server)
    if plain.verdict == FAILS:
        return plain, ""
    own = case.connections.follow(client, server, tls=True)
    if own.verdict == FAILS:
        return own, "This holds when the client's application speaks TLS by itself."
    return plain, "The settings of both ends, as they were recorded, do not forbid it."


def change_page(case: Case, subject: str) -> Page:
    """Follow an object, ``Kind/namespace/name``, up the ladder from stored to used."""
    try:
        trace = follow_change(case.facts, subject, mesh=case.mesh, complaints=case.complaints)
    except MeshnbError as error:
        return Page("The object cannot be followed.", State.UNKNOWN, str(error))
    account = of_change(trace)
    broken = account.broken
    standings = broken.standings if broken is not None else ()
    tables = [_standings(broken.title, standings)] if broken is not None and standings else []
    return Page(
        f"{account.title} gets no further than the rung “{broken.title}”."
        if broken is not None
        else f"{account.title} has no broken rung.",
        account.state,
        account.says,
        (*tables, *_cited(case, [broken] if broken is not None else account.parts)),
        Chain(
            f"How far {account.title} got",
            tuple(Link(part.title, part.says, part.state) for part in account.parts),
            ladder=True,
        ),
        _describe(subject),
    )


def _describe(subject: str) -> str:
    kind, *rest = subject.split("/")
    if len(rest) < 2:
        return "kubectl -n istio-system get configmap istio -o yaml"
    return f"kubectl -n {rest[0]} get {kind.lower()} {rest[1]} -o yaml"


def _standings(rung: str, standings: tuple[Part, ...]) -> Excerpt:
    ordered = sorted(standings, key=lambda one: one.state is not State.BROKEN)
    frame = pd.DataFrame(
        [(one.where, one.word, one.says) for one in ordered], columns=["who", "is", "why"]
    )
    return excerpt(f"The rung “{rung}”, one by one", frame)


def _page(case: Case, account: Account, beside: str) -> Page:
    broken = account.broken
    shown = [broken] if broken is not None else list(account.parts[-1:])
    undecided = f" Cannot decide: {'; '.join(account.undecided)}." if account.undecided else ""
    return Page(
        f"{broken.where}, {broken.title}: {broken.says}" if broken is not None else account.says,
        account.state,
        f"{account.says if broken is not None else ''} {beside}{undecided}".replace(
            "..", "."
        ).strip(),
        (*_cited(case, shown), *_passed_over(shown), _hops(account)),
        journey(account) if account.parts else None,
        _command(shown),
    )


def _cited(case: Case, parts: Iterable[Part]) -> Iterator[Excerpt]:
    """Yield the rows by which parts were decided, one excerpt per table."""
    done: set[str] = set()
    for part in parts:
        for cited, rows in rows_of(case.facts, part):
            if len(rows) and cited.table not in done:
                done.add(cited.table)
                rows.attrs["table"] = cited.table
                yield excerpt(f"{cited.table}: what decides at “{part.title}”", rows, most=4)


def _passed_over(parts: list[Part]) -> Iterator[Excerpt]:
    for part in parts:
        if part.passed_over:
            frame = pd.DataFrame(part.passed_over, columns=["looked at", "and passed over, as"])
            yield excerpt(f"Candidates at “{part.title}” that did not decide", frame, most=6)


def _hops(account: Account) -> Excerpt:
    frame = pd.DataFrame(
        [
            (f"{one.state.sign} {one.title}", one.where, one.says, one.object)
            for one in account.parts
        ],
        columns=["hop", "at", "what happens", "made from"],
    )
    return excerpt("Hop by hop", frame, most=_HOPS, folded=True)


def _command(parts: list[Part]) -> str:
    for part in parts:
        if "." in part.where and part.title in _PAGES:
            return f"istioctl proxy-config {_PAGES[part.title]} {part.where}"
        if "." in part.where and part.title == "policy":
            return f"istioctl experimental authz check {part.where}"
    proxy = next((part.where for part in parts if "." in part.where), "POD.NAMESPACE")
    return f"istioctl proxy-config all {proxy}"
