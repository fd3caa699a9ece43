"""The guide for a mesh in which nothing is wrong: ports, certificates, versions, weak spots."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd

from meshnb.checks import CHECKS, Inputs, run
from meshnb.guides import data_plane_config
from meshnb.guides.base import Case, Chosen, Fork, Guide, Page, step
from meshnb.guides.excerpts import excerpt
from meshnb.guides.focus import SIGHTS, noticed_by, sight
from meshnb.guides.pictures import State
from meshnb.guides.shared import gap_note, plural
from meshnb.guides.weak_spots import weak_spots
from meshnb.symptoms import READS

_NAME = "check_mesh"
#: The check that knows until when a release gets fixes.
_SUPPORT = "MNB1706"
_WEAK_TABLES = (
    *("istiod_ports", "pods", "containers", "istio_config", "secrets", "certificates"),
    *("network_policies",),
)


@step("Versions", asked=("versions", "proxies"))
def versions(case: Case, chosen: Chosen) -> Page:
    """Which versions run, do proxies and istiod fit together, and do they still get fixes?

    A proxy may be a minor version or two behind its istiod. It gets the new one when its pod is
    made again.
    """
    table = case.facts["versions"]
    missing = gap_note(case, ("versions",))
    if not len(table):
        return Page("No version is known.", State.UNKNOWN, missing or "Nothing was asked for it.")
    control = table[table["plane"] == "control"]
    serving = [
        str(tag if isinstance(tag, str) and tag else version)
        for version, tag in zip(control["istio_version"], control["tag"], strict=True)
        if isinstance(tag, str) or isinstance(version, str)
    ]
    proxies = table[table["plane"] == "data"]
    counts = proxies["istio_version"].value_counts()
    other = proxies[proxies["istio_version"].notna() & ~proxies["istio_version"].isin(serving)]
    over = [
        found
        for outcome in run(Inputs(case.facts), [CHECKS[_SUPPORT]])
        for found in outcome.findings
    ]
    odd = bool(over) or (bool(serving) and len(other) > 0)
    ordered = pd.concat([other, table.drop(other.index)])
    ordered.attrs["table"] = "versions"
    told = ", ".join(f"{count} with {version}" for version, count in counts.items())
    state = State.ODD if odd else State.UNKNOWN if missing or not serving else State.FINE
    fit = (
        f"{plural(len(other), 'proxy differs', 'proxies differ')} from it."
        if serving
        else "Whether that fits istiod is not known."
    )
    return Page(
        f"istiod {', '.join(dict.fromkeys(serving)) or 'of unknown version'}; "
        f"{plural(len(proxies), 'proxy', 'proxies')}: {told or 'of unknown version'}.",
        state,
        f"{fit} {' '.join(found.message for found in over)} {missing}".strip(),
        (
            excerpt(
                "versions: what differs from istiod first",
                ordered,
                columns=("plane", "id", "istiod", "type", "istio_version", "tag", "revision"),
            ),
        ),
        command="istioctl version",
    )


@step("Weak spots", asked=_WEAK_TABLES)
def weak(case: Case, chosen: Chosen) -> Page:
    """Who may see, call and change what, although nothing fails?

    Nothing here breaks a request. It is what an attacker, or the next mistake, would make use of.
    """
    spots = weak_spots(case)
    open_ones = [spot for spot in spots if spot.state in (State.ODD, State.BROKEN)]
    unknown = sum(spot.state is State.UNKNOWN for spot in spots)
    frame = pd.DataFrame(
        [
            (
                f"{spot.state.sign} {_WORDS.get(spot.state, spot.state.word)}",
                spot.says,
                spot.remedy.replace("`", ""),
            )
            for spot in spots
        ],
        columns=["is", "fact", "what would mend it"],
    )
    held = sum(spot.state is State.FINE for spot in spots)
    return Page(
        f"{plural(len(open_ones), 'weak spot')}; {held} of {len(spots)} things are as they should "
        "be.",
        State.ODD if open_ones else State.UNKNOWN if unknown else State.FINE,
        f"{open_ones[0].says if open_ones else 'None was found.'} "
        + (f"{plural(unknown, 'thing is', 'things are')} not known." if unknown else ""),
        (
            excerpt("Weak spots, and what is well", frame, most=len(frame), columns=frame.columns),
            *(
                replace(rows, caption=f"Against “{spot.topic}”: {rows.caption}", folded=True)
                for spot in open_ones
                for rows in spot.rows[:1]
            ),
        ),
        command="kubectl get peerauthentications,authorizationpolicies,networkpolicies -A",
    )


_WORDS = {State.ODD: "weak", State.FINE: "well", State.UNKNOWN: "unknown", State.BROKEN: "broken"}


@step("What is left to do", asked=READS)
def left(case: Case, chosen: Chosen) -> Page:
    """Is anything wrong after all, and what is worth doing first?

    What fails comes before what could fail, and that before what an attacker could do.
    """
    problems = case.diagnosis.problems
    if problems:
        name = noticed_by(case, problems[0])
        fork = Fork(f"the guide for: {SIGHTS[name]}", guide=name if name != _NAME else "triage")
        return Page(
            f"Something is wrong: {problems[0].finding.message}",
            State.BROKEN,
            "It comes before everything else here.",
            forks=(fork,),
        )
    if case.diagnosis.verdict != "healthy":
        return _unknown(case)
    first = next((spot for spot in weak_spots(case) if spot.state is not State.FINE), None)
    advice = first.remedy or first.says if first is not None else "There is nothing to mend."
    return Page(
        "Nothing is wrong that the checks know of.",
        State.FINE,
        f"{plural(len(case.diagnosis.ruled_out), 'check')} passed. What is worth doing first: "
        f"{advice}",
        command="meshnb check SOURCE",
    )


def _unknown(case: Case) -> Page:
    unexplained = case.diagnosis.unexplained
    unknown = case.diagnosis.unknown
    if unexplained:
        name = sight(case, unexplained[0])
        return Page(
            f"Something fails that no check explains: {unexplained[0].message}.",
            State.UNKNOWN,
            gap_note(case, READS),
            forks=(Fork(f"the guide for: {SIGHTS[name]}", guide=name),),
        )
    return Page(
        "Whether anything is wrong is not known.",
        State.UNKNOWN,
        f"{plural(len(unknown), 'check')} could not be decided, the first because "
        f"{unknown[0].because}."
        if unknown
        else gap_note(case, READS),
    )


CHECK_MESH = Guide(
    name=_NAME,
    title="Check the mesh",
    about="Nothing is wrong, or nothing is known to be: ports, certificates, versions, weak spots.",
    steps=(
        data_plane_config.port,
        data_plane_config.certificates,
        versions,
        data_plane_config.in_step,
        weak,
        left,
    ),
)
