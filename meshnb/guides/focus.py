"""What a reader looks at: the symptoms of one kind, and the cause that explains most of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from meshnb.checks import Cause
from meshnb.diagnosis import RankedCause
from meshnb.guides.base import Case
from meshnb.symptoms import Symptom

#: What a reader can see, in the words of somebody who is asked in the middle of the night.
SIGHTS: Mapping[str, str] = {
    "errors": "Requests fail with 5xx",
    "not_found": "Requests get 404",
    "refused": "Requests are refused: 401, 403 or 429",
    "connection": "Connections are reset, or TLS fails",
    "slow": "Requests are slow or hang",
    "pods": "A pod does not start or is not ready",
    "no_effect": "A change has no effect",
    "nothing": "Nothing obvious",
}

#: Flags of requests that waited too long.
_SLOW = frozenset({"UT", "SI", "DI", "DC", "DR", "UMSDR", "DT"})


@dataclass(frozen=True, slots=True)
class Focus:
    """What is looked at: symptoms, and the cause that is thought to make them."""

    symptoms: tuple[Symptom, ...]
    cause: RankedCause | None


def sight(symptom: Symptom) -> str:
    """Return what somebody who has this symptom would say, a key of SIGHTS."""
    if symptom.kind == "pod":
        return "pods"
    if symptom.kind in ("sync", "control plane"):
        return "no_effect"
    if _SLOW & symptom.flags:
        return "slow"
    if symptom.kind == "connection":
        return "connection"
    if symptom.code == 404:
        return "not_found"
    if symptom.code in (401, 403, 429):
        return "refused"
    return "errors" if symptom.code >= 500 else "connection"


def obvious_sight(case: Case) -> str:
    """Return what a reader most likely sees: the heaviest symptom, else nothing obvious."""
    return sight(case.symptoms.found[0]) if len(case.symptoms) else "nothing"


def on_sight(case: Case, seen: str) -> Focus:
    """Return the symptoms of one kind, with the first cause that explains any of them.

    When none does, the first cause that explains nothing else; without one, the first of all.
    """
    symptoms = tuple(symptom for symptom in case.symptoms if sight(symptom) == seen)
    ids = {symptom.id for symptom in symptoms}
    problems = case.diagnosis.problems
    explaining = [
        cause for cause in problems if any(symptom.id in ids for symptom in cause.explains)
    ]
    unrelated = [cause for cause in problems if not cause.explains]
    return Focus(symptoms, next(iter((*explaining, *unrelated, *problems)), None))


def of_class(case: Case, cause: Cause) -> Focus:
    """Return the first problem of a failure class with what it explains, else all symptoms."""
    for problem in case.diagnosis.problems:
        if problem.failure_class is cause:
            return Focus(problem.explains, problem)
    return Focus(case.symptoms.found, None)


def hosts(symptoms: Iterable[Symptom]) -> tuple[str, ...]:
    """Return the hosts that the symptoms are about, each once."""
    return tuple(dict.fromkeys(symptom.host for symptom in symptoms if symptom.host))


def short(host: str) -> str:
    """Return a host without the cluster's domain, as people write it."""
    return host.partition(".svc.")[0] if ".svc." in host else host
