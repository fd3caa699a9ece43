"""Opinions: one function per check, one module per family. Codes are never used twice.

========  ====================================
MNB100    istiod itself
MNB130    how Istio was installed
MNB150    sidecar injection
MNB170    pods that could not be made
MNB200    routing
MNB210    DestinationRules
MNB220    which route counts
MNB230    what a caller's own proxy does
MNB234    hosts outside the mesh
MNB250    changes right before failures
MNB260    several clusters or networks
MNB270    Services that do not fit together
MNB280    load balancing
MNB300    gateways
MNB320    what clients ask of gateways
MNB325    what gateways take from objects
MNB350    the Gateway API
MNB400    mutual TLS
MNB430    PeerAuthentications
MNB440    connections that nobody encrypts, or that two do
MNB450    certificates and identities
MNB500    whom policies turn away
MNB505    policies that do less than they seem to
MNB510    tokens
MNB530    policies by which another server decides
MNB550    what proxies hold to refuse callers by
MNB600    synchronisation of proxies
MNB610    the way from a proxy to istiod
MNB620    EnvoyFilters and Telemetries
MNB640    what exportTo hides
MNB680    changes that do not arrive
MNB700    pods behind Services
MNB710    applications, and the way to them
MNB720    what proxies have counted, where no log tells
MNB750    start and end of pods with a sidecar
MNB770    traffic that goes past a sidecar
MNB800    protocols
MNB820    ports declared as HTTP that are for something else
MNB830    servers as their callers see them
MNB850    limits
MNB900    what ztunnels decide
MNB920    who is in the ambient mesh, and ztunnels
MNB930    waypoints
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

Weak spots of a mesh in which nothing fails:

========  ====================================
MNB1700   who may see, call and change what
========  ====================================
"""

from __future__ import annotations

from collections.abc import Mapping

from meshnb.checks import (
    admission,
    ambient,
    applications,
    authorization,
    capture,
    certificates,
    changes,
    control_plane,
    counted,
    creation,
    destination_rules,
    encryption,
    extensions,
    external_authorization,
    external_services,
    gateway_api,
    gateway_hosts,
    gateway_servers,
    gateways,
    injection,
    installation,
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
    load_balancing,
    mtls,
    multicluster,
    opaque_ports,
    outbound,
    peer_authentication,
    policy_effects,
    posture,
    protocols,
    route_order,
    routing,
    service_definitions,
    startup,
    sync,
    tokens,
    undelivered,
    upstreams,
    visibility,
    waypoints,
    workloads,
    xds,
    ztunnels,
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
    installation,
    injection,
    creation,
    routing,
    destination_rules,
    route_order,
    outbound,
    external_services,
    changes,
    multicluster,
    service_definitions,
    load_balancing,
    gateways,
    gateway_hosts,
    gateway_servers,
    gateway_api,
    mtls,
    peer_authentication,
    encryption,
    certificates,
    authorization,
    policy_effects,
    tokens,
    external_authorization,
    admission,
    sync,
    xds,
    extensions,
    visibility,
    undelivered,
    workloads,
    applications,
    counted,
    startup,
    capture,
    protocols,
    opaque_ports,
    upstreams,
    limits,
    ambient,
    ztunnels,
    waypoints,
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
    posture,
)

#: Every check by its code, in the order of the codes.
CHECKS: Mapping[str, Check] = dict(
    sorted(CATALOGUE.items(), key=lambda entry: (len(entry[0]), entry[0]))
)
