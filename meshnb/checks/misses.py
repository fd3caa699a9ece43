"""What somebody meant who wrote a selector or a path that matches nothing."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

import pandas as pd

from meshnb.checks.base import and_list
from meshnb.symptoms import Symptom
from meshnb.symptoms.base import REPEATED
from meshnb.traces.mesh import Mesh, Pod

_NUMBER = re.compile(r"\d+")
#: How alike two texts are that may be meant for one another, from 0 to 1.
ALIKE = 0.8


def alike(one: str, other: str) -> bool:
    """Whether a text looks like a slip of the pen for another, not like the next number."""
    return _NUMBER.sub("", one) != _NUMBER.sub("", other) and bool(
        get_close_matches(one, [other], n=1, cutoff=ALIKE)
    )


def misspelt_path(symptom: Symptom, written: Iterable[str], access_log: pd.DataFrame) -> bool:
    """Whether the paths of failed requests are nearly those of routes that nobody ever asked for.

    A gateway is asked for much that nobody meant to serve. What looks like a route's path again and
    again, while nobody asks for that path itself, is what the route was meant for.
    """
    paths = {failure.path.partition("?")[0] for failure in symptom.failures}
    if symptom.count < REPEATED:
        return False
    log = access_log[access_log["proxy"].isin(symptom.reporters)]
    asked = tuple(str(path) for path in log["path"].dropna().unique())
    routes = [one for one in written if len(one) > 1 and not any(a.startswith(one) for a in asked)]
    return all(any(alike(_begin(path, one), one) for one in routes) for path in paths)


def _begin(path: str, written: str) -> str:
    """Return as many segments of a path as a written one has."""
    return "/".join(path.split("/")[: written.count("/") + 1])


def near_pods(mesh: Mesh, labels: Mapping[str, Any], namespace: str | None) -> list[Pod]:
    """Return the pods that a selector without pods was likely meant for.

    They stand in the namespace and carry nearly these labels, or just these in another namespace.
    """
    if elsewhere := mesh.matching(labels, None):
        return elsewhere
    return [
        pod
        for pod in mesh.pods
        if pod.running
        and (namespace is None or pod.namespace == namespace)
        and all(_near(str(key), str(value), pod.labels) for key, value in labels.items())
    ]


def near_labels(mesh: Mesh, labels: Mapping[str, Any], namespace: str | None) -> str:
    """Return, as the end of a sentence, what a selector without pods was likely meant for.

    Empty when nothing comes near: then it may be for pods that are yet to come.
    """
    pods = near_pods(mesh, labels, namespace)
    if not pods:
        return ""
    places = sorted({pod.namespace for pod in pods} - {namespace})
    if places and namespace is not None:
        return f"; namespace {and_list(places)} has"
    have = sorted(
        {
            f"{key}={pod.labels[key]}"
            for pod in pods
            for key in pod.labels
            if get_close_matches(key, [str(name) for name in labels], n=1, cutoff=ALIKE)
        }
    )
    return f"; {and_list(have)} comes near"


def _near(key: str, value: str, labels: Mapping[str, str]) -> bool:
    if labels.get(key) == value:
        return True
    if key in labels:
        return alike(value, labels[key])
    return any(labels[name] == value for name in get_close_matches(key, labels, n=2, cutoff=ALIKE))
