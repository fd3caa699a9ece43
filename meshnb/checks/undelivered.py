"""Checks of changes that are stored and do not arrive. Codes MNB680 to MNB699."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import timedelta

import pandas as pd

from meshnb.checks.base import (
    Cause,
    Evidence,
    Finding,
    Severity,
    Subject,
    and_list,
    check,
    counted,
    ids,
    restart,
    subject_of,
    unseen,
    workload_of,
)
from meshnb.sources import ListQuestion
from meshnb.symptoms import Symptom, Symptoms
from meshnb.tables import Facts
from meshnb.tables.base import Got
from meshnb.traces.change import follow_change
from meshnb.traces.mesh import ConfigObject, Mesh, Pod
from meshnb.traces.rungs.ladder import BROKEN, PASSED, Standing

#: What arrived nowhere for longer than this is no news.
_RECENT = timedelta(hours=1)
#: So many objects are followed at most, times the proxies: each takes some milliseconds.
_MOST, _BUDGET = 12, 200
#: Somebody who is behind is likely, not surely, why requests fail: what fails may be new as well.
_LIKELY = 0.6
#: What others explain as well, they explain better.
_GUESSED = 0.45

Late = dict[str, list[tuple[ConfigObject, Standing]]]


@check("MNB680", Severity.WARNING, cause=Cause.DATA_PLANE_CONFIG)
def change_not_delivered(mesh: Mesh, symptoms: Symptoms, facts: Facts) -> Iterator[Finding]:
    """Every recent change has reached each istiod, and each proxy that it concerns.

    An istiod that lost its watch, or a proxy that is sent nothing more, works on with what it has:
    all seems well, and the last change has no effect there. In a large mesh only the newest
    changes are followed.
    """
    # Proxies that are out of step, and say so, are what the checks of istiod's status are for.
    told = {who for symptom in symptoms if symptom.kind == "sync" for who in symptom.reporters}
    istiods: Late = {}
    proxies: Late = {}
    for item in _recent(mesh, facts):
        kind = f"{item.kind}.{item.group}"
        trace = follow_change(facts, kind, item.namespace, item.name, mesh=mesh)
        if trace.broken is None or trace.broken.name not in ("seen", "pushed", "active"):
            continue
        outcomes = [standing.outcome for standing in trace.broken.standings]
        if outcomes.count(BROKEN) > outcomes.count(PASSED):
            continue  # where most do not have it, it may be without effect by design
        late = istiods if trace.broken.name == "seen" else proxies
        for standing in trace.broken.standings:
            if standing.outcome == BROKEN and standing.who not in told:
                late.setdefault(standing.who, []).append((item, standing))
    for pod in mesh.pods:
        if pod.mesh == "istiod" and pod.pod in istiods:
            yield _istiod_behind(pod, istiods[pod.pod], symptoms, facts)
        elif pod.proxy in proxies and (pod.namespace, pod.pod) not in facts.unreached():
            yield _proxy_behind(pod, proxies[pod.proxy], symptoms, facts)


def _recent(mesh: Mesh, facts: Facts) -> list[ConfigObject]:
    changed = [
        (item.changed, number)
        for number, item in enumerate(mesh.objects)
        if item.changed is not None and timedelta(0) <= facts.now - item.changed < _RECENT
    ]
    proxies = sum(pod.in_mesh for pod in mesh.pods)
    most = min(_MOST, max(_BUDGET // max(proxies, 1), 1))
    return [mesh.objects[number] for _, number in sorted(changed, reverse=True)[:most]]


def _istiod_behind(
    pod: Pod, late: list[tuple[ConfigObject, Standing]], symptoms: Symptoms, facts: Facts
) -> Finding:
    status = facts["proxy_status"]
    served = sorted(set(status.loc[status["istiod"] == pod.pod, "proxy"].dropna()))
    return Finding(
        workload_of(pod),
        f"Pod {pod.namespace}/{pod.pod} does not have {_objects(late)} as it is stored "
        f"({late[0][1].says}), and {counted(len(served), 'proxy')} get their configuration from "
        f"it: {and_list(served) or 'none'}.",
        f"Look into its log for what it cannot read, and restart it with "
        f"`kubectl -n {pod.namespace} delete pod {pod.pod}`.",
        evidence=_cited(late, facts),
        related=tuple(subject_of(item) for item, _ in late),
        explains=ids(_seen_by(set(served), symptoms)),
        certainty=_LIKELY,
    )


def _proxy_behind(
    pod: Pod, late: list[tuple[ConfigObject, Standing]], symptoms: Symptoms, facts: Facts
) -> Finding:
    return Finding(
        workload_of(pod),
        f"The proxy of Pod {pod.namespace}/{pod.pod} does not work with {_objects(late)} as it is "
        f"stored: {late[0][1].says}.",
        f"See what istiod says of it, and restart it with {restart(workload_of(pod))}.",
        evidence=_cited(late, facts),
        related=tuple(subject_of(item) for item, _ in late),
        explains=ids(_seen_by({pod.proxy}, symptoms)),
        certainty=_LIKELY,
    )


#: The path by which the proxies' configuration names the object that it was made from.
_MADE_FROM = re.compile(r"/apis/([^/]+)/[^/]+/namespaces/([^/]+)/([a-z-]+)/([^/]+)")
#: The kinds of such paths, with the resource that lists them.
_KINDS = {
    "virtual-service": ("VirtualService", "virtualservices"),
    "destination-rule": ("DestinationRule", "destinationrules"),
}
#: What istiod makes of objects of other kinds has such a name.
_DERIVED = re.compile(r"~|istio-autogenerated")
#: The page of what istiod holds.
_HELD = Got(15014, "/debug/configz")


@check("MNB681", Severity.WARNING, cause=Cause.DATA_PLANE_CONFIG)
def deleted_object_held(
    mesh: Mesh,
    symptoms: Symptoms,
    routes: pd.DataFrame,
    clusters: pd.DataFrame,
    istio_config: pd.DataFrame,
    proxy_status: pd.DataFrame,
    facts: Facts,
) -> Iterator[Finding]:
    """No proxy works with what was made of an object that is gone.

    What istiod makes names the object it comes from. When a proxy goes on to hold it after the
    object was deleted, it was not told, whatever its state of synchronisation says.
    """
    behind = set(proxy_status.loc[proxy_status["sync"].isin(["ERROR", "STALE"]), "proxy"].dropna())
    connected = set(proxy_status["proxy"].dropna()) - behind
    # A mesh may keep its objects in another cluster: only an istiod of this one tells.
    if not any(isinstance(page, list) for _, page in facts.documents(_HELD)):
        return
    stored = {(item.kind, item.namespace, item.name) for item in mesh.objects}
    listed_at = {
        question.resource: facts.answer(question).taken_at
        for question in facts.source.questions()
        if isinstance(question, ListQuestion) and "istio.io" in question.api_version
    }
    gone: dict[tuple[Subject, str], dict[str, list[int]]] = {}
    for table in (routes, clusters):
        for index, proxy, path, question in zip(
            table.index, table["proxy"], table["istio_config"], table["question"], strict=True
        ):
            match = _MADE_FROM.fullmatch(path) if isinstance(path, str) else None
            if match is None or match[3] not in _KINDS or proxy not in connected:
                continue
            if _DERIVED.search(match[4]):
                continue
            kind, resource = _KINDS[match[3]]
            if (kind, match[2], match[4]) in stored or unseen(facts, "istio_config", resource):
                continue
            dumped_at = facts.answer(facts.question(str(question))).taken_at
            if resource not in listed_at or dumped_at <= listed_at[resource]:
                continue  # it may have been deleted in between
            place = (Subject(kind, match[2], match[4]), str(proxy))
            gone.setdefault(place, {}).setdefault(str(table.attrs["table"]), []).append(int(index))
    for subject in dict.fromkeys(subject for subject, _ in gone):
        held = {proxy: rows for (one, proxy), rows in gone.items() if one == subject}
        serving = _who_still_holds(subject, mesh, facts)
        if serving and subject.kind not in {kind for kind, _, _ in stored}:
            continue  # it may read this kind from elsewhere
        workloads = list(dict.fromkeys(map(workload_of, mesh.pods_of(held))))
        istiods = [pod for pod in mesh.pods if pod.mesh == "istiod" and pod.running]
        # What several proxies were not told, istiod has not said.
        guilty = serving or (istiods if len(workloads) > 1 else [])
        if not guilty and not workloads:
            continue
        workload = workload_of(guilty[0]) if guilty else workloads[0]
        cited: dict[str, list[int]] = {}
        for rows in held.values():
            for table_name, labels in rows.items():
                cited.setdefault(table_name, []).extend(labels)
        seen = [
            one
            for one in symptoms
            if one.kind in ("request", "connection")
            and _goes_there(one, held, {"routes": routes, "clusters": clusters})
        ]
        why = f", and {serving[0].pod} holds it, too" if serving else ", and istiod says SYNCED"
        yield Finding(
            workload,
            f"{subject} does not exist any more, but {counted(len(held), 'proxy')} work with what "
            f"was made of it: {and_list(held)}{why}.",
            f"Let what is behind begin anew: {restart(workload)}.",
            evidence=tuple(Evidence.of(facts[name], labels) for name, labels in cited.items()),
            related=(subject, *(one for one in workloads if one != workload)),
            explains=ids(seen),
            severity=None if seen else Severity.INFO,
            # What fails there may be a matter of the deletion itself: who knows more goes first.
            certainty=_GUESSED,
        )


def _who_still_holds(subject: Subject, mesh: Mesh, facts: Facts) -> list[Pod]:
    """Return the istiods that still have an object."""
    found = []
    for question, page in facts.documents(_HELD):
        for item in page if isinstance(page, list) else ():
            about = item.get("metadata", {}) if isinstance(item, dict) else {}
            if (item.get("kind"), about.get("namespace"), about.get("name")) == (
                subject.kind,
                subject.namespace,
                subject.name,
            ):
                found += [
                    pod
                    for pod in mesh.pods
                    if (pod.namespace, pod.pod)
                    == (getattr(question, "namespace", ""), getattr(question, "pod", ""))
                ]
    return found


def _goes_there(
    symptom: Symptom, held: dict[str, dict[str, list[int]]], tables: dict[str, pd.DataFrame]
) -> bool:
    """Whether requests failed by what a proxy that reports them holds of such an object."""
    for proxy in symptom.reporters:
        for name, labels in held.get(proxy, {}).items():
            rows = tables[name].loc[labels]
            if name == "clusters" and symptom.cluster in set(rows["cluster"]):
                return True
            if name == "routes" and any(
                symptom.host in (domains or ()) or symptom.cluster in (clusters or ())
                for domains, clusters in zip(rows["all_domains"], rows["clusters"], strict=True)
            ):
                return True
    return False


def _objects(late: list[tuple[ConfigObject, Standing]]) -> str:
    return and_list(f"{item.kind} {item.namespace}/{item.name}" for item, _ in late)


def _seen_by(proxies: set[str], symptoms: Symptoms) -> Iterator[Symptom]:
    """Yield the failures that these proxies alone report."""
    for symptom in symptoms:
        requests = symptom.kind in ("request", "connection") and symptom.reporters
        if requests and proxies.issuperset(symptom.reporters):
            yield symptom


def _cited(late: list[tuple[ConfigObject, Standing]], facts: Facts) -> tuple[Evidence, ...]:
    rows: dict[str, dict[int, None]] = {}
    for _, standing in late:
        for cited in standing.cites:
            rows.setdefault(cited.table, {}).update(dict.fromkeys(cited.rows))
    return tuple(Evidence.of(facts[table], labels) for table, labels in rows.items())
