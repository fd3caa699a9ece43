"""Weak spots of a mesh in which nothing fails: each a fact, with the rows that show it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd

from meshnb.checks import CHECKS, Inputs, run
from meshnb.checks.base import and_list
from meshnb.guides.base import Case, Excerpt
from meshnb.guides.excerpts import excerpt, proof, varied
from meshnb.guides.pictures import State, age
from meshnb.guides.shared import gap_note, plural

#: A root that ends within so many days has to be replaced soon; all proxies must trust both.
_SOON_DAYS = 180
#: What `istio-init` needs to set the rules by which traffic is redirected.
_PRIVILEGES = frozenset({"NET_ADMIN", "NET_RAW"})


@dataclass(frozen=True, slots=True)
class WeakSpot:
    """One fact about how a mesh is guarded, with its state and what mends it."""

    topic: str
    state: State
    says: str
    remedy: str = ""
    rows: tuple[Excerpt, ...] = ()


def weak_spots(case: Case) -> tuple[WeakSpot, ...]:
    """Return what is known of how the mesh is guarded, the weak spots first."""
    found = [
        *_judged(case),
        *_debug_pages(case),
        *_privileged(case),
        *_roots(case),
    ]
    order = (State.BROKEN, State.ODD, State.UNKNOWN, State.FINE)
    return tuple(sorted(found, key=lambda spot: order.index(spot.state)))


def _judged(case: Case) -> Iterator[WeakSpot]:
    """Yield what the checks of weak spots find, pass and cannot decide."""
    checks = [check for check in CHECKS.values() if check.family == "posture"]
    for outcome in run(Inputs(case.facts), checks):
        topic = outcome.check.title.rstrip(".")
        for finding in outcome.findings:
            yield WeakSpot(
                topic,
                State.ODD,
                finding.message,
                finding.remedy,
                tuple(proof(one) for one in finding.evidence if len(one.rows)),
            )
        if not outcome.findings:
            unknown = bool(outcome.because)
            yield WeakSpot(
                topic,
                State.UNKNOWN if unknown else State.FINE,
                f"Not known, because {outcome.because}." if unknown else outcome.check.title,
            )


def _debug_pages(case: Case) -> Iterator[WeakSpot]:
    """Yield whether istiod shows its debug pages on a port without TLS."""
    table = case.facts["istiod_ports"]
    answers = table["answers"].eq(True).fillna(False).astype(bool)
    rows = table[answers & table["port"].isin([8080, 15014])]
    rows.attrs["table"] = "istiod_ports"
    topic = "Istiod shows its debug pages to nobody in plain text"
    if not len(table):
        missing = gap_note(case, ("istiod_ports",)) or "No istiod was asked."
        yield WeakSpot(topic, State.UNKNOWN, missing)
    elif len(rows):
        ports = and_list(f"{row.istiod}:{row.port}" for row in rows.itertuples())
        yield WeakSpot(
            topic,
            State.ODD,
            f"{ports} {'answer' if len(rows) > 1 else 'answers'} over plain HTTP; debug pages "
            "there show all of the configuration to "
            "whoever has access to the port.",
            "Keep callers off with a NetworkPolicy, or set ENABLE_DEBUG_ON_HTTP=false for istiod.",
            (excerpt("istiod_ports: debug pages over HTTP", rows),),
        )
    else:
        yield WeakSpot(topic, State.FINE, "No port with debug pages answers.")


def _privileged(case: Case) -> Iterator[WeakSpot]:
    """Yield whether pods of the mesh are set up by init containers with privileges."""
    table = case.facts["containers"]
    privileged = [
        bool(_PRIVILEGES & set(names or ())) and bool(init) and str(name).startswith("istio")
        for names, init, name in zip(
            table["capabilities"], table["init"].fillna(False), table["container"], strict=True
        )
    ]
    rows = table[pd.Series(privileged, index=table.index, dtype=bool)]
    rows.attrs["table"] = "containers"
    topic = "No pod of the mesh needs privileges to start"
    if not len(table):
        yield WeakSpot(topic, State.UNKNOWN, gap_note(case, ("containers",)) or "No pod was seen.")
    elif len(rows):
        yield WeakSpot(
            topic,
            State.ODD,
            f"{plural(rows['pod'].nunique(), 'pod')} of {and_list(rows['namespace'].unique())} "
            "start with an istio-init that has NET_ADMIN and NET_RAW; whoever may make pods there "
            "may ask for these.",
            "Install Istio's CNI plugin, which sets the rules in the pods' place.",
            (
                excerpt(
                    "containers: istio-init with privileges",
                    rows,
                    columns=("namespace", "pod", "container", "capabilities", "run_as_user"),
                    most=4,
                ),
            ),
        )
    else:
        yield WeakSpot(topic, State.FINE, "No istio-init has NET_ADMIN or NET_RAW.")


def _roots(case: Case) -> Iterator[WeakSpot]:
    """Yield when each root that proxies trust ends, at the moment of the recording."""
    table = case.facts["certificates"]
    rows = table[(table["type"] == "CA") & table["not_after"].notna()].sort_values("not_after")
    topic = "Every root lasts long enough to be replaced in peace"
    if not len(rows):
        missing = gap_note(case, ("certificates",)) or "No proxy shows one."
        yield WeakSpot(topic, State.UNKNOWN, missing)
        return
    rows.attrs["table"] = "certificates"
    first = rows.iloc[0]
    left = (first["not_after"] - pd.Timestamp(case.facts.now)).total_seconds()
    soon = left < _SOON_DAYS * 86400
    yield WeakSpot(
        topic,
        State.BROKEN if left < 0 else State.ODD if soon else State.FINE,
        f"The root {first['subject']} ends {first['not_after']:%Y-%m-%d}, "
        + (f"over for {age(-left)}." if left < 0 else f"in {age(left)}."),
        "Plug in a new root beside the old one, long before: Secret cacerts." if soon else "",
        (excerpt("certificates: roots, the first to end on top", varied(rows), most=3),),
    )
