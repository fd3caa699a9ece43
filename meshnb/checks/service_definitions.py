"""Checks of Services that do not fit together. Codes MNB270 to MNB279."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from meshnb.checks.base import (
    Cause,
    Evidence,
    Finding,
    Severity,
    Subject,
    check,
    edit,
    ids,
    rows_of,
    symptom_rows,
)
from meshnb.checks.protocols import HTTP
from meshnb.symptoms import Symptoms
from meshnb.symptoms.requests import split_address
from meshnb.tables import Facts
from meshnb.traces.mesh import Mesh, Pod, ServicePort

#: What a pod's proxy says when it took bytes for another protocol than they were.
_MISREAD = frozenset({"DPE", "UPE", "NR", "UC", "UR"})


@check("MNB270", Severity.WARNING, cause=Cause.CONTROL_PLANE_CONFIG)
def protocols_conflict(
    mesh: Mesh, symptoms: Symptoms, services: pd.DataFrame, facts: Facts
) -> Iterator[Finding]:
    """Every port of a pod has one protocol, whichever Service leads to it.

    A pod's proxy has one listener for each of its ports. Where two Services give the port different
    protocols, istiod takes the older one's and counts the other in pilot_conflict_inbound_listener:
    requests through that one are read as something that they are not.
    """
    first: dict[tuple[Pod, int], ServicePort] = {}
    told: set[tuple[str, str, int]] = set()
    age = dict(zip(services["host"], services["created"], strict=True))
    for port in sorted(mesh.services, key=lambda one: (str(age.get(one.host)), one.host)):
        target = mesh.target_port(port)
        for pod in mesh.selected(port) if target is not None and port.selector else ():
            older = first.setdefault((pod, int(target or 0)), port)
            if (
                pod.mesh != "sidecar"
                or older.host == port.host
                or (older.protocol in HTTP) == (port.protocol in HTTP)
                or "auto" in (older.protocol, port.protocol)
                or "udp" in (older.protocol, port.protocol)
                or (older.host, port.host, int(target or 0)) in told
            ):
                continue
            told.add((older.host, port.host, int(target or 0)))
            subject = Subject("Service", port.namespace, port.service)
            rival = Subject("Service", older.namespace, older.service)
            seen = [
                s
                for s in symptoms
                if bool(_MISREAD & s.flags)
                and (
                    (
                        s.side == "server"
                        and s.workload == (pod.namespace, pod.workload)
                        and target in {split_address(f.local_address)[1] for f in s.failures}
                    )
                    or (s.side != "server" and s.host in (port.host, older.host))
                )
            ]
            yield Finding(
                subject,
                f"{subject} gives port {target} of its pods the protocol {port.protocol} (port "
                f"{port.port_name or port.port}), and the older {rival} {older.protocol} (port "
                f"{older.port_name or older.port}): only one of them counts there.",
                f"Give both ports the same protocol with {edit(subject)}.",
                evidence=(
                    *symptom_rows(facts, seen),
                    Evidence.of(rows_of(services, host=port.host)),
                    Evidence.of(rows_of(services, host=older.host)),
                ),
                related=(rival,),
                explains=ids(seen),
                severity=Severity.ERROR if seen else None,
                certainty=0.8,
            )
