"""Findings that are one thing to mend, told as one: of one check at one object, or at its pods."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import pandas as pd

from meshnb.checks.base import (
    Check,
    Evidence,
    Finding,
    Severity,
    Subject,
    and_list,
)
from meshnb.traces.mesh import Mesh

#: So many findings at one object are told in full; the others are counted.
TOLD = 3

Found = tuple[Check, Finding]


def merge(
    found: Iterable[Found],
    mesh: Mesh,
    *,
    severity: Callable[[Check, Finding], Severity],
    weight: Callable[[Finding], float],
) -> list[Found]:
    """Return findings with those of one check merged that are mended at one place.

    That place is the subject, such as a VirtualService of which three routes are wrong; or the
    workload, where several of its pods have the same. What is merely worth knowing is not mixed
    with what is wrong. The heaviest finding speaks first; evidence, symptoms and related objects
    are those of all.
    """
    workloads = {
        Subject("Pod", pod.namespace, pod.pod): Subject(
            pod.workload_kind, pod.namespace, pod.workload
        )
        for pod in mesh.pods
        if pod.workload
    }

    def ordering(check: Check) -> Callable[[Finding], tuple[float, int]]:
        return lambda finding: (-weight(finding), severity(check, finding).rank)

    groups: dict[tuple[object, ...], list[Found]] = {}
    for check, finding in found:
        place = workloads.get(finding.subject, finding.subject)
        # A finding at the workload itself is another one than at a pod of it.
        of_pod = finding.subject.kind == "Pod"
        known = severity(check, finding) is Severity.INFO
        key = (check.code, place, of_pod, known, finding.cause)
        groups.setdefault(key, []).append((check, finding))
    return [
        (check, _merged([one for _, one in members], workloads, ordering(check)))
        for members in groups.values()
        for check in [members[0][0]]
    ]


def _merged(
    findings: list[Finding],
    workloads: Mapping[Subject, Subject],
    order: Callable[[Finding], tuple[float, int]],
) -> Finding:
    if len(findings) == 1:
        return findings[0]
    ordered = sorted(findings, key=order)
    first = ordered[0]
    subjects = list(dict.fromkeys(one.subject for one in ordered))
    subject = first.subject if len(subjects) == 1 else workloads[first.subject]
    if len(subjects) == 1:
        message, remedy = (
            _told([one.message for one in ordered]),
            _told([one.remedy for one in ordered]),
        )
    else:
        others = and_list(one.name for one in subjects[1:])
        message = f"{first.message} The same holds for {others}."
        remedy = f"{first.remedy} Do the same for {others}."
    related = (other for one in ordered for other in (one.subject, *one.related))
    worst = min(ordered, key=lambda one: order(one)[1])
    return replace(
        first,
        subject=subject,
        message=message,
        remedy=remedy,
        evidence=_evidence(ordered),
        related=tuple(one for one in dict.fromkeys(related) if one != subject),
        explains=tuple(dict.fromkeys(name for one in ordered for name in one.explains)),
        severity=worst.severity,
        level=worst.level,
        certainty=max(one.certainty for one in ordered),
    )


def _told(sentences: list[str]) -> str:
    each = list(dict.fromkeys(sentences))
    if len(each) <= TOLD:
        return " ".join(each)
    return f"{' '.join(each[: TOLD - 1])} There are {len(each) - TOLD + 1} more like this."


def _evidence(findings: list[Finding]) -> tuple[Evidence, ...]:
    """Return all evidence of some findings, each row of a table once."""
    by_table: dict[str, list[pd.DataFrame]] = {}
    for finding in findings:
        for one in finding.evidence:
            by_table.setdefault(one.table, []).append(one.rows)
    return tuple(Evidence(table, _once(frames)) for table, frames in by_table.items())


def _once(frames: list[pd.DataFrame]) -> pd.DataFrame:
    filled = [frame for frame in frames if len(frame)]
    if len(filled) < 2:
        return filled[0] if filled else frames[0]
    rows = pd.concat(filled)
    once = rows[~rows.index.duplicated()]
    once.attrs = filled[0].attrs
    return once
