"""What goes wrong, before anybody asks why: as requests, Kubernetes and istiod show it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from meshnb.symptoms.ambient import ambient
from meshnb.symptoms.base import Reader, Symptom, Symptoms
from meshnb.symptoms.counters import counters
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
    """Return all symptoms, the heaviest first, numbered from s1 on."""
    found = [symptom for reader in READERS.values() for symptom in reader(facts, mesh, failures)]
    found.sort(key=lambda symptom: (-symptom.weight, symptom.message))
    return Symptoms(
        tuple(replace(symptom, id=f"s{number}") for number, symptom in enumerate(found, start=1))
    )
