"""What goes wrong, before anybody asks why: as requests, Kubernetes and istiod show it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from meshnb.symptoms.ambient import ambient
from meshnb.symptoms.base import Reader, Symptom, Symptoms
from meshnb.symptoms.counters import counters
from meshnb.symptoms.past import Later
from meshnb.symptoms.pods import pods
from meshnb.symptoms.requests import requests
from meshnb.symptoms.sync import sync
from meshnb.tables import Facts
from meshnb.traces.failures import Failures
from meshnb.traces.mesh import Mesh

__all__ = ["READERS", "READS", "Symptom", "Symptoms", "find_symptoms"]

#: Where symptoms are read, by name.
READERS: Mapping[str, Reader] = {
    "requests": requests,
    "counters": counters,
    "pods": pods,
    "sync": sync,
    "ambient": ambient,
}

#: The tables in which users' symptoms stand; what is missing of them leaves symptoms unseen. The
#: checks that judge how proxies and istiod get on name the tables for that themselves.
READS = ("access_log", "ztunnel_access_log", "pods", "events", "rollouts")


def find_symptoms(facts: Facts, mesh: Mesh, failures: Failures) -> Symptoms:
    """Return all symptoms, the heaviest first, numbered from s1 on, and from p1 on what is over."""
    later = Later(facts)
    found = [
        replace(symptom, over_since=later.over_since(symptom, facts, mesh))
        if symptom.kind in ("request", "connection") and not symptom.is_counted
        else symptom
        for reader in READERS.values()
        for symptom in reader(facts, mesh, failures)
    ]
    found.sort(key=lambda symptom: (-symptom.weight, symptom.message))
    now = [symptom for symptom in found if symptom.over_since is None]
    past = [symptom for symptom in found if symptom.over_since is not None]
    past.sort(key=lambda symptom: symptom.over_since or facts.now, reverse=True)
    return Symptoms(_numbered("s", now), _numbered("p", past))


def _numbered(letter: str, symptoms: Sequence[Symptom]) -> tuple[Symptom, ...]:
    return tuple(
        replace(symptom, id=f"{letter}{number}") for number, symptom in enumerate(symptoms, start=1)
    )
