"""Which objects act on a pod or a Service and which do not, as ``istioctl x describe`` and more.

An object acts when, without it, something would be different for requests that the pod gets, or in
what its own proxy does. Of those that do not, the ones are named that somebody could take for it:
objects of the pod's namespace and the root namespace, and routes and gateways that lead to it but
for one thing.
"""

from __future__ import annotations

from meshnb.traces.describe.acting import ACTING_OBJECTS, acting_objects, acting_on
from meshnb.traces.describe.base import (
    Acting,
    PodDescription,
    RoutesOf,
    RuleFor,
    ServiceDescription,
)
from meshnb.traces.describe.pod import describe_pod
from meshnb.traces.describe.service import describe_service

__all__ = [
    "ACTING_OBJECTS",
    "Acting",
    "PodDescription",
    "RoutesOf",
    "RuleFor",
    "ServiceDescription",
    "acting_objects",
    "acting_on",
    "describe_pod",
    "describe_service",
]
