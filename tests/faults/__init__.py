"""Faults of other meshes, each with its label: see :mod:`tests.faults.base`."""

from __future__ import annotations

from tests.faults import ambient, gateways, outside, platform, routing, security, workloads
from tests.faults.base import FAULTS, Fault

__all__ = [
    "FAULTS",
    "Fault",
    "ambient",
    "gateways",
    "outside",
    "platform",
    "routing",
    "security",
    "workloads",
]
