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

Checks of objects as they are written, which say the same as `istioctl analyze`:

========  ====================================
MNB1000   VirtualServices
MNB1050   DestinationRules
MNB1100   Gateways
MNB1150   what injection needs
MNB1200   Services and workloads
MNB1250   Sidecars and Telemetries
MNB1300   ServiceEntries and networks
MNB1350   EnvoyFilters
MNB1400   webhooks
MNB1450   policies
MNB1500   annotations, conditions, deprecated fields
MNB1600   definitions of kinds
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
    lint_destination_rules,
    lint_envoy_filters,
    lint_gateways,
    lint_injection,
    lint_metadata,
    lint_policies,
    lint_schemas,
    lint_selectors,
    lint_service_entries,
    lint_virtual_services,
    lint_webhooks,
    lint_workloads,
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
    lint_virtual_services,
    lint_destination_rules,
    lint_gateways,
    lint_injection,
    lint_workloads,
    lint_selectors,
    lint_service_entries,
    lint_envoy_filters,
    lint_webhooks,
    lint_policies,
    lint_metadata,
    lint_schemas,
)

#: Every check by its code, in the order of the codes.
CHECKS: Mapping[str, Check] = dict(
    sorted(CATALOGUE.items(), key=lambda entry: (len(entry[0]), entry[0]))
)
