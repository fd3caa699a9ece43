"""What a reader looks at: what is seen, and the cause that explains most of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from meshnb.checks import Cause
from meshnb.diagnosis import RankedCause
from meshnb.guides.base import Case
from meshnb.guides.confusable import CONFUSABLE
from meshnb.symptoms import Symptom

#: What a reader can see, in the words of somebody who is asked in the middle of the night, by the
#: name of the guide for it.
SIGHTS: Mapping[str, str] = {
    "unavailable": "Requests fail with 503, or another 5xx",
    "not_found": "Requests get 404",
    "forbidden": "Requests are refused: 403, or 429",
    "unauthorized": "Requests get 401",
    "connection": "Connections are reset or refused, or TLS fails",
    "slow": "Requests are slow, or get 504",
    "hangs": "Connections hang",
    "not_injected": "A pod has no sidecar",
    "not_ready": "A pod does not start or is not ready",
    "change": "A change has no effect",
    "policy": "A policy has no effect",
    "external": "A host outside the mesh cannot be reached",
    "check_mesh": "Nothing is wrong: check the mesh",
}
#: Where to look first for a fault that shows in no log: what it is most often noticed by.
_NOTICED = ("change", "policy", "not_injected", "not_ready", "hangs", "external", *CONFUSABLE)

#: Flags of requests that waited too long.
_SLOW = frozenset({"UT", "SI", "DI", "DC", "DR", "UMSDR", "DT"})
#: Clusters that take what is for nobody whom the proxy knows.
_STRANGERS = frozenset({"BlackHoleCluster", "PassthroughCluster"})


@dataclass(frozen=True, slots=True)
class Focus:
    """What is looked at: symptoms, and the cause that is thought to make them."""

    symptoms: tuple[Symptom, ...]
    cause: RankedCause | None


def sights(case: Case, symptom: Symptom) -> tuple[str, ...]:
    """Return what somebody who has this symptom would say, the likeliest first: keys of SIGHTS."""
    if symptom.kind == "state":
        cause = _explaining(case, symptom)
        code = cause.check.code if cause is not None else ""
        return tuple(name for name in _NOTICED if code in codes(name)) or ("check_mesh",)
    if symptom.kind == "pod":
        return ("not_ready",)
    if symptom.kind in ("sync", "control plane"):
        return ("change", "policy")
    found = [_sight(symptom)]
    if _leaves_mesh(case, symptom):
        found.insert(0, "external")
    if found[-1] == "slow":
        found.append("hangs")
    if symptom.details.startswith("connection closed due to policy"):
        found.append("forbidden")
    return tuple(found)


def _sight(symptom: Symptom) -> str:
    if _SLOW & symptom.flags:
        return "slow"
    if symptom.kind == "connection":
        return "connection"
    if symptom.code in (404, 401):
        return "not_found" if symptom.code == 404 else "unauthorized"
    if symptom.code in (403, 429):
        return "forbidden"
    return "unavailable" if symptom.code >= 500 else "connection"


def _leaves_mesh(case: Case, symptom: Symptom) -> bool:
    """Whether what failed was for a host that is no Service of the mesh."""
    if symptom.side != "client" or symptom.kind not in ("request", "connection"):
        return False
    services = case.mesh.ports(symptom.host)
    if services:
        return all(service.external_name for service in services)
    return bool(symptom.host) or symptom.cluster in _STRANGERS


def sight(case: Case, symptom: Symptom) -> str:
    """Return what somebody who has this symptom would say first, a key of SIGHTS."""
    return sights(case, symptom)[0]


def obvious_sight(case: Case) -> str:
    """Return what a reader most likely sees: the first problem's, else the heaviest symptom."""
    if case.diagnosis.problems:
        return noticed_by(case, case.diagnosis.problems[0])
    return sight(case, case.symptoms.found[0]) if len(case.symptoms) else "check_mesh"


def noticed_by(case: Case, cause: RankedCause) -> str:
    """Return by what a cause is noticed: its heaviest symptom, else what such a fault does."""
    if cause.explains:
        return sight(case, max(cause.explains, key=lambda symptom: symptom.weight))
    return next((name for name in _NOTICED if cause.check.code in codes(name)), "check_mesh")


def codes(name: str, *, silent: bool = False) -> frozenset[str]:
    """Return the checks for what can be behind one sight; only the silent ones, when asked for."""
    branches = [one for one in CONFUSABLE.get(name, ()) if one.silent or not silent]
    return frozenset(code for branch in branches for code in branch.codes)


def at_hand(case: Case, name: str) -> tuple[Focus, ...]:
    """Return what there is of one sight: each symptom with its cause, then faults without any.

    A fault that explains no symptom at all is one when its check is among the sight's; so is one
    whose own kind of failure leaves no line behind.
    """
    seen = [symptom for symptom in case.symptoms if name in sights(case, symptom)]
    found = [Focus((symptom,), _explaining(case, symptom)) for symptom in seen]
    # The likeliest to be looked for is what has a cause; among the rest, the heaviest.
    found.sort(key=lambda focus: focus.cause.rank if focus.cause is not None else len(seen) + 999)
    named = {focus.cause.rank for focus in found if focus.cause is not None}
    silent = [
        cause
        for cause in case.diagnosis.problems
        if cause.check.code in codes(name, silent=bool(cause.explains)) and cause.rank not in named
    ]
    return (*found, *(Focus((), cause) for cause in silent))


def _explaining(case: Case, symptom: Symptom) -> RankedCause | None:
    return next(
        (
            cause
            for cause in case.diagnosis.problems
            if any(one.id == symptom.id for one in cause.explains)
        ),
        None,
    )


def on_sight(case: Case, seen: str) -> Focus:
    """Return the symptoms of one kind, with the first cause that explains any of them.

    When none does, the first cause that is noticed so; then the first that explains nothing else;
    without one, the first of all.
    """
    symptoms = tuple(symptom for symptom in case.symptoms if seen in sights(case, symptom))
    ids = {symptom.id for symptom in symptoms}
    problems = case.diagnosis.problems
    explaining = [
        cause for cause in problems if any(symptom.id in ids for symptom in cause.explains)
    ]
    noticed = [cause for cause in problems if cause.check.code in codes(seen)]
    unrelated = [cause for cause in problems if not cause.explains]
    return Focus(symptoms, next(iter((*explaining, *noticed, *unrelated, *problems)), None))


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
