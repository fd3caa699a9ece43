"""The guide for pods that do not start, or are not ready."""

from __future__ import annotations

import pandas as pd

from meshnb.guides.asking import first_ask
from meshnb.guides.base import Case, Chosen, Excerpt, Guide, Page, step
from meshnb.guides.excerpts import excerpt
from meshnb.guides.pictures import State
from meshnb.guides.seen import apart, mended, seen, symptom_of
from meshnb.guides.shared import gap_note, quiet, symptom_command, symptom_rows, what_it_says
from meshnb.symptoms import Symptom
from meshnb.traces.mesh import plain

_NAME = "not_ready"
_LACKS = {
    "made": "the pod: it was never made",
    "init": "an init container that has ended well",
    "proxy": "a sidecar that is ready",
    "application": "an application that is ready",
    "both": "both: neither sidecar nor application is ready",
}


@step("What is lacking", asked=("events", "pods", "containers", "proxies"))
def lacking(case: Case, chosen: Chosen) -> Page:
    """What is it that Kubernetes lacks: a pod at all, its sidecar, or the application?

    A pod that was never made has no containers to look at; one that waits says which one it waits
    for.
    """
    symptom = symptom_of(case, _NAME, chosen)
    if symptom is None:
        return quiet(
            case,
            "pods",
            "No pod is seen to wait.",
            "Every pod that should run is ready, and no event says that one could not be made.",
        )
    waiting = _containers(case, symptom)
    right = _right(symptom, waiting)
    answer = Page(
        f"Kubernetes lacks {_LACKS[right]}.",
        State.BROKEN,
        f"{what_it_says(symptom)} {_words(waiting)} {gap_note(case, ('pods', 'events'))}".strip(),
        tuple(_tables(case, symptom, waiting)),
        command=symptom_command(symptom)
        if right != "made"
        else f"kubectl -n {symptom.workload[0]} get events --sort-by=.lastTimestamp",
    )
    return first_ask(
        chosen.get("lacking"),
        "Kubernetes lacks:",
        _LACKS,
        right,
        answer,
        "Think first: is there a pod, and which of its containers is not ready?",
    )


def _containers(case: Case, symptom: Symptom) -> pd.DataFrame:
    """Return the containers of the pods that wait, those that are not ready first."""
    table = case.facts["containers"]
    pods = {pod.pod for pod in case.mesh.workload_pods(symptom.workload)}
    mine = table[(table["namespace"] == symptom.workload[0]) & table["pod"].isin(list(pods))]
    order = mine["ready"].fillna(False).astype(bool).sort_values(kind="stable").index
    rows = mine.loc[order]
    rows.attrs["table"] = "containers"
    return rows


def _right(symptom: Symptom, containers: pd.DataFrame) -> str:
    if symptom.table == "events":
        return "made"
    bad = containers[~containers["ready"].fillna(False).astype(bool)]
    plainly = bad[~bad["init"].fillna(False).astype(bool)]
    failed = bad[bad["init"].fillna(False).astype(bool) & (bad["reason"] != "Completed")]
    sidecar = (bad["container"] == "istio-proxy").any()
    others = (plainly["container"] != "istio-proxy").any()
    if len(failed[failed["container"] != "istio-proxy"]) and not sidecar:
        return "init"
    if sidecar:
        return "both" if others else "proxy"
    return "application"


def _words(containers: pd.DataFrame) -> str:
    for row in containers.to_dict("records"):
        if not plain(row["ready"]) and (plain(row["reason"]) or plain(row["last_reason"])):
            last = plain(row["last_reason"])
            code = plain(row["last_exit_code"])
            before = f"; last time it ended with {last}, exit code {code}" if last else ""
            return (
                f"{row['container']} is {plain(row['state'])} {plain(row['reason']) or ''}{before}."
            )
    return ""


def _tables(case: Case, symptom: Symptom, containers: pd.DataFrame) -> list[Excerpt]:
    found = [symptom_rows(case, symptom)]
    if len(containers):
        found.append(excerpt("containers: those that are not ready first", containers, most=6))
    events = case.facts["events"]
    names = set(containers["pod"])
    about = events[(events["type"] == "Warning") & events["name"].isin(list(names))]
    about = about.sort_values("last_seen", ascending=False)
    about.attrs["table"] = "events"
    if len(about):
        found.append(excerpt("events about those pods, the latest first", about, most=6))
    proxies = case.facts["proxies"]
    own = proxies[proxies["pod"].isin(list(names))]
    own.attrs["table"] = "proxies"
    if len(own):
        found.append(excerpt("proxies: what they say of themselves", own, most=4))
    return found


NOT_READY = Guide(
    name=_NAME,
    title="Not starting, not ready",
    about="A pod is not made, does not start or is not ready: who keeps it from that.",
    steps=(
        seen(_NAME),
        lacking,
        apart(
            _NAME,
            "kubectl -n {namespace} describe pods",
            *("events", "containers", "proxies", "proxy_status", "webhooks"),
        ),
        mended(_NAME),
    ),
)
