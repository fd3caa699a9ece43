"""The guide for pods without a sidecar."""

from __future__ import annotations

import pandas as pd

from meshnb.guides.asking import first_ask
from meshnb.guides.base import Case, Chosen, Guide, Page, step
from meshnb.guides.excerpts import excerpt
from meshnb.guides.pictures import State
from meshnb.guides.seen import apart, followed, mended, seen
from meshnb.guides.shared import gap_note, plural
from meshnb.traces.mesh import plain

_NAME = "not_injected"
_BY = {
    "pod": "labels or annotations of the pod: it does not want one",
    "namespace": "the namespace: nobody asks for one",
    "webhook": "the webhooks: one is asked for, and none serves that",
    "time": "the time: it was made before somebody asked",
    "proxy": "nothing: it has a proxy, or ztunnel in its place",
}


@step("What decides", asked=("injection", "namespaces", "webhooks", "pods"))
def decision(case: Case, chosen: Chosen) -> Page:
    """What decides whether this pod gets a sidecar?

    The webhook is called when a pod is made: the pod's own labels count first, then those of its
    namespace, and then there must be a webhook for what they ask.
    """
    table = case.facts["injection"]
    if not len(table):
        return Page(
            "No pod can be looked at.", State.UNKNOWN, gap_note(case, ("injection", "pods"))
        )
    row = _subject(case, chosen, table)
    rows = pd.concat([table[table["pod"] == row["pod"]], table[table["pod"] != row["pod"]]])
    rows = rows[~rows["injected"].fillna(False).astype(bool) | (rows["pod"] == row["pod"])]
    rows.attrs["table"] = "injection"
    namespaces = case.facts["namespaces"]
    own = namespaces[namespaces["namespace"] == row["namespace"]]
    own.attrs["table"] = "namespaces"
    webhooks = case.facts["webhooks"]
    injecting = webhooks[webhooks["purpose"] == "injection"]
    injecting.attrs["table"] = "webhooks"
    right = _right(row)
    missing = gap_note(case, ("pods", "namespaces", "webhooks"))
    answer = Page(
        f"{row['pod']} of {row['namespace']}: {plain(row['reason'])}",
        State.UNKNOWN if missing else State.FINE if right == "proxy" else State.ODD,
        f"Decided by {_BY[right]}. {plural(len(rows), 'pod')} of {len(table)} have no sidecar. "
        f"{missing}".strip(),
        (
            excerpt("injection: the pod, then all others without a sidecar", rows, most=6),
            excerpt("namespaces: what its namespace asks for", own, columns=_ASKED),
            excerpt("webhooks: who would have injected", injecting, most=4, folded=True),
        ),
        command=f"istioctl experimental check-inject -n {row['namespace']} {row['pod']}",
    )
    # The reason is the answer, so that it is not shown before.
    labels = case.facts["pods"]
    mine = labels[(labels["pod"] == row["pod"]) & (labels["namespace"] == row["namespace"])]
    before = excerpt(
        "pods: its own labels", mine, columns=("namespace", "pod", "labels", "created")
    )
    return first_ask(
        chosen.get("decision"),
        f"What decides for {row['pod']}?",
        _BY,
        right,
        answer,
        "Think first: labels of the pod, labels of its namespace, and who serves them.",
        (before, *answer.tables[1:]),
    )


_ASKED = ("namespace", "injection", "revision", "ambient", "labels", "created", "changed")


def _subject(case: Case, chosen: Chosen, table: pd.DataFrame) -> pd.Series:
    """Return the row of the pod at fault, else of one without a sidecar, else of the first."""
    focus = followed(case, _NAME, chosen)
    subject = focus.cause.subject if focus is not None and focus.cause is not None else None
    injected = table["injected"].fillna(False).astype(bool)
    if subject is not None:
        mine = (table["namespace"] == (subject.namespace or subject.name)) & (
            (table["workload"] == subject.name)
            | (table["pod"] == subject.name)
            | (subject.kind == "Namespace")
        )
        for rows in (table[mine & ~injected], table[mine]):
            if len(rows):
                return rows.iloc[0]
    own = table["reason"].fillna("").str.contains("part of Istio")
    bare = table[~injected & ~own]
    return (bare if len(bare) else table).iloc[0]


def _right(row: pd.Series) -> str:
    if plain(row["injected"]) or "needs none" in str(plain(row["reason"])):
        return "proxy"
    if plain(row["opted_out_by"]):
        return "pod" if "pod" in str(row["opted_out_by"]) else "namespace"
    if plain(row["wanted"]):
        return "time"
    return "webhook" if "asked for" in str(plain(row["reason"])) else "namespace"


NOT_INJECTED = Guide(
    name=_NAME,
    title="No sidecar",
    about="A pod has no sidecar: what its labels, its namespace and the webhooks make of it.",
    steps=(
        seen(_NAME, "injection", "namespaces", "webhooks"),
        decision,
        apart(
            _NAME,
            "istioctl analyze -n {namespace}",
            *("injection", "namespaces", "webhooks", "workloads", "events"),
        ),
        mended(_NAME),
    ),
)
