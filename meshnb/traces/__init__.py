"""One thing followed across tables. Each trace is a value that checks take as a parameter."""

from __future__ import annotations

from collections.abc import Mapping

from meshnb.traces.base import Trace
from meshnb.traces.failures import FAILURES
from meshnb.traces.mesh import MESH
from meshnb.traces.objects import OBJECTS
from meshnb.traces.strays import STRAYS

__all__ = ["TRACES", "Trace"]

#: Every trace, by the name under which a check asks for it.
TRACES: Mapping[str, Trace] = {trace.name: trace for trace in (MESH, FAILURES, OBJECTS, STRAYS)}
