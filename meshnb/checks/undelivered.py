"""Checks of changes that are stored and do not arrive. Codes MNB680 to MNB699."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

from meshnb.checks.base import (
    Cause,
    Evidence,
    Finding,
    Severity,
    and_list,
    check,
    counted,
    ids,
    restart,
    subject_of,
    workload_of,
)
from meshnb.symptoms import Symptom, Symptoms
from meshnb.tables import Facts
from meshnb.traces.change import follow_change
from meshnb.traces.mesh import ConfigObject, Mesh, Pod
from meshnb.traces.rungs.ladder import BROKEN, PASSED, Standing

#: What arrived nowhere for longer than this is no news.
_RECENT = timedelta(hours=1)
#: So many objects are followed at most, times the proxies: each takes some milliseconds.
_MOST, _BUDGET = 12, 200
#: Somebody who is behind is likely, not surely, why requests fail: what fails may be new as well.
_LIKELY = 0.6

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
        elif pod.proxy in proxies:
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
