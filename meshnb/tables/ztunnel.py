"""Reads the config dumps of ztunnels. Shared by the tables that begin with ``ztunnel``.

The shape is that of ztunnel's ``src/admin.rs`` and ``src/state``; a field with its default value is
left out. Lists were objects before Istio 1.23.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from meshnb.sources.base import HttpQuestion, Question
from meshnb.tables.base import Facts, Json, Row, dig, items
from meshnb.tables.envoy import CONFIG_DUMP, chosen_dumps, is_ztunnel


def read_dumps(
    facts: Facts, reader: Callable[[Json, Question, Facts], Iterator[Row]]
) -> Iterator[tuple[Question, Row]]:
    """Yield the rows of each ztunnel's config dump; notes a gap for each ztunnel without one.

    The dumps of Envoys are not asked for, unless Kubernetes does not say what a pod is.
    """
    pods = facts["pods"]
    listed = set(zip(pods["namespace"], pods["pod"], strict=True))
    running = pods[
        (pods["mesh"] == "ztunnel")
        & ~pods["phase"].isin(["Succeeded", "Failed"]).fillna(value=False)
    ]
    ztunnels = set(zip(running["namespace"], running["pod"], strict=True))
    asked = {
        (question.namespace, question.pod): question
        for question in facts.source.questions()
        if isinstance(question, HttpQuestion) and CONFIG_DUMP.matches(question)
    }
    for namespace, pod in sorted(ztunnels - asked.keys()):
        facts.gap(f"GET {namespace}/{pod}:15000/config_dump", "not asked", "was never asked")
    wanted = {q for place, q in asked.items() if place in ztunnels or place not in listed}

    def read(dump: Json, question: Question, facts: Facts) -> Iterator[Row]:
        if is_ztunnel(dump):
            yield from reader(dump, question, facts)
        elif isinstance(question, HttpQuestion) and (question.namespace, question.pod) in ztunnels:
            facts.gap(question, "unreadable", "is no config dump of a ztunnel")

    if wanted:
        yield from facts.read(chosen_dumps(wanted), read)


def entries(dump: Json, key: str) -> list[Any]:
    """Return what a config dump lists under a key, in a list or in an object of any keys."""
    value = dig(dump, key)
    return list(value.values()) if isinstance(value, dict) else items(dump, key)


def waypoint_name(resource: Json, services: list[Any]) -> str:
    """Return the Service of the waypoint of a workload or Service, as istioctl prints it.

    ``None`` without a waypoint, ``NA`` for a waypoint that ztunnel knows no Service of.
    """
    if dig(resource, "waypoint") is None:
        return "None"
    destination = waypoint_of(resource)
    for service in services:
        host = f"{dig(service, 'namespace', default='')}/{dig(service, 'hostname', default='')}"
        if destination == host or destination in items(service, "vips"):
            return str(dig(service, "name", default=""))
    return "NA"


def waypoint_of(resource: Json) -> str | None:
    """Return where a workload or Service says that its waypoint is; None without one."""
    destination = dig(resource, "waypoint", "destination")
    return destination if isinstance(destination, str) else None
