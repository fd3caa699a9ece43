"""Opinions: one function per check, one module per family. Codes are never used twice.

========  ====================================
MNB100    istiod itself
MNB150    sidecar injection
MNB200    routing
MNB250    changes right before failures
MNB300    gateways
MNB350    the Gateway API
MNB400    mutual TLS
MNB500    authorization and authentication
MNB600    synchronisation of proxies
MNB700    pods and applications
MNB800    protocols
MNB850    limits
MNB900    ambient meshes
========  ====================================
"""

from __future__ import annotations

from collections.abc import Mapping

from meshnb.checks import (
    ambient,
    authorization,
    changes,
    control_plane,
    gateway_api,
    gateways,
    injection,
    limits,
    mtls,
    protocols,
    routing,
    sync,
    workloads,
)
from meshnb.checks.base import (
    CATALOGUE,
    Cause,
    Check,
    Evidence,
    Finding,
    Inputs,
    Outcome,
    Severity,
    Subject,
    Verdict,
    run,
)

__all__ = [
    "CHECKS",
    "FAMILIES",
    "Cause",
    "Check",
    "Evidence",
    "Finding",
    "Inputs",
    "Outcome",
    "Severity",
    "Subject",
    "Verdict",
    "run",
]

#: The modules that hold checks, in the order of their codes.
FAMILIES = (
    control_plane,
    injection,
    routing,
    changes,
    gateways,
    gateway_api,
    mtls,
    authorization,
    sync,
    workloads,
    protocols,
    limits,
    ambient,
)

#: Every check by its code, in the order of the codes.
CHECKS: Mapping[str, Check] = dict(sorted(CATALOGUE.items()))
