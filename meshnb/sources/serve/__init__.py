"""A recording served as a Kubernetes API: kubectl, and our own cluster source, without a cluster.

``serve`` runs the server; ``faults`` are what it can be told to do wrong; ``grown`` multiplies the
pods of a recording. aiohttp is imported here, so this package is imported only where it is used.

What is served is what was recorded: discovery, lists, gets, watches, logs, and the ports of pods
through port-forwards over WebSocket. What nobody asked when the recording was made is answered with
404 and says so. Nothing can be written.
"""

from __future__ import annotations

from meshnb.sources.serve.faults import (
    FAULTS,
    Drop,
    Expire,
    Fail,
    Fault,
    Garbage,
    Gone,
    Hang,
    Refuse,
    Restart,
    Slow,
    parse_fault,
)
from meshnb.sources.serve.grown import Grown
from meshnb.sources.serve.server import Served, serve

__all__ = [
    "FAULTS",
    "Drop",
    "Expire",
    "Fail",
    "Fault",
    "Garbage",
    "Gone",
    "Grown",
    "Hang",
    "Refuse",
    "Restart",
    "Served",
    "Slow",
    "parse_fault",
    "serve",
]
