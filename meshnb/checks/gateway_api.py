"""Checks of the Gateway API: what its controller says of routes and gateways.

Codes MNB350 to MNB399.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Any

import pandas as pd

from meshnb.checks.base import (
    Cause,
    Finding,
    Severity,
    and_list,
    check,
    config_rows,
    edit,
    ids,
    subject_of,
    symptom_rows,
    unseen,
)
from meshnb.symptoms import Symptom, Symptoms
from meshnb.symptoms.requests import split_address
from meshnb.tables import Facts
from meshnb.tables.base import dig, items
from meshnb.traces.mesh import ConfigObject, Mesh, hosts_overlap

GROUP = "gateway.networking.k8s.io"
ROUTES = ("HTTPRoute", "GRPCRoute", "TLSRoute", "TCPRoute")
#: Conditions that say that an object works, and that are a fault when they are False.
WORKING = ("Accepted", "ResolvedRefs", "Programmed")


def _for_route(symptom: Symptom, route: ConfigObject) -> bool:
    hosts = [str(host) for host in items(route.spec, "hostnames")] or ["*"]
    authorities = {split_address(failure.authority)[0] for failure in symptom.failures}
    return (
        symptom.side == "gateway"
        and bool({"NR", "NC"} & symptom.flags or "direct_response" in symptom.details)
        and any(hosts_overlap(host, name) for host in hosts for name in authorities if name)
    )


@check("MNB351", Severity.ERROR, cause=Cause.CONTROL_PLANE_CONFIG)
def route_without_parent(
    mesh: Mesh, symptoms: Symptoms, istio_config: pd.DataFrame, facts: Facts
) -> Iterator[Finding]:
    """Every parent that a route of the Gateway API names exists.

    A route is attached by its parentRefs. One that names a Gateway which does not exist is stored,
    gets no status from anybody, and the real gateway answers 404 with flag NR (route_not_found).
    """
    if unseen(facts, "istio_config", "gateways"):
        return
    gateways = {(g.namespace, g.name): g for g in mesh.of("Gateway", GROUP)}
    for kind in ROUTES:
        for route in mesh.of(kind, GROUP):
            for number, parent in enumerate(items(route.spec, "parentRefs")):
                if dig(parent, "kind", default="Gateway") != "Gateway":
                    continue
                namespace = str(dig(parent, "namespace", default=route.namespace))
                name = str(dig(parent, "name"))
                if (namespace, name) in gateways:
                    continue
                seen = [s for s in symptoms if _for_route(s, route)]
                near = [key[1] for key in gateways if key[0] == namespace]
                close = get_close_matches(name, near, n=1, cutoff=0.5)
                hint = f" The nearest that exists is {close[0]}." if close else ""
                yield Finding(
                    subject_of(route),
                    f"{route} names Gateway {namespace}/{name} as its parent "
                    f"(spec.parentRefs[{number}]), which does not exist.{hint}",
                    f"Correct the name with {edit(subject_of(route))}.",
                    evidence=(*symptom_rows(facts, seen), config_rows(istio_config, route)),
                    related=tuple(subject_of(gateways[namespace, one]) for one in close),
                    explains=ids(seen),
                )


@check("MNB352", Severity.ERROR, cause=Cause.CONTROL_PLANE_CONFIG)
def refused_by_controller(
    mesh: Mesh, symptoms: Symptoms, istio_config: pd.DataFrame, facts: Facts
) -> Iterator[Finding]:
    """Every gateway and route of the Gateway API is accepted, and all that it names is found.

    istiod writes into the status what it makes of each object. Accepted, ResolvedRefs or
    Programmed with status False means that traffic is not handled as the object says.
    """
    conditions = dict(zip(istio_config.index, istio_config["conditions"], strict=True))
    for kind in (*ROUTES, "Gateway"):
        for item in mesh.of(kind, GROUP):
            bad = [
                condition
                for condition in conditions[istio_config.index[item.index]] or ()
                if _refused(condition)
            ]
            if not bad:
                continue
            seen = [s for s in symptoms if _for_route(s, item)] if kind != "Gateway" else []
            words = and_list(
                f"{condition.get('type')} is False, {condition.get('reason')}: "
                f"{condition.get('message')}"
                for condition in bad
            )
            yield Finding(
                subject_of(item),
                f"{item} is not in force as written: {words}.",
                _remedy(item, bad),
                evidence=(*symptom_rows(facts, seen), config_rows(istio_config, item)),
                explains=ids(seen),
            )


def _refused(condition: Mapping[str, Any]) -> bool:
    return condition.get("type") in WORKING and condition.get("status") == "False"


def _remedy(item: ConfigObject, conditions: list[Mapping[str, Any]]) -> str:
    if any(condition.get("reason") == "RefNotPermitted" for condition in conditions):
        return (
            "Permit it with a ReferenceGrant in the namespace of the backend, or name a backend "
            f"nearby with {edit(subject_of(item))}."
        )
    return f"Mend what the message names with {edit(subject_of(item))}."
