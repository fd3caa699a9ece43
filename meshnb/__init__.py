"""Find out what is wrong with an Istio mesh, and show the evidence.

This is the front door. What stands here is imported on first use, so that ``import meshnb`` itself
costs nothing::

    facts = meshnb.Facts(meshnb.open_source("recorded:subset-missing"))
    facts["routes"]
    meshnb.diagnose(facts)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.1.0"

__all__ = [
    "CHECKS",
    "GUIDES",
    "TABLES",
    "TRACES",
    "Diagnosis",
    "Facts",
    "Limits",
    "MeshnbError",
    "Request",
    "Scope",
    "__version__",
    "diagnose",
    "follow_change",
    "follow_connection",
    "follow_request",
    "open_source",
    "record",
    "recordings",
]

if TYPE_CHECKING:
    from meshnb.checks import CHECKS
    from meshnb.diagnosis import Diagnosis, diagnose
    from meshnb.errors import MeshnbError
    from meshnb.guides import GUIDES
    from meshnb.sources import Limits, Scope, open_source, record, recordings
    from meshnb.tables import TABLES, Facts
    from meshnb.traces import TRACES
    from meshnb.traces.change import follow_change
    from meshnb.traces.connection import follow_connection
    from meshnb.traces.request import Request, follow_request
else:
    #: In which room each name lives.
    _ROOMS = {
        "CHECKS": "checks",
        "Diagnosis": "diagnosis",
        "Facts": "tables",
        "GUIDES": "guides",
        "Limits": "sources",
        "MeshnbError": "errors",
        "Scope": "sources",
        "Request": "traces.request",
        "TABLES": "tables",
        "TRACES": "traces",
        "diagnose": "diagnosis",
        "follow_change": "traces.change",
        "follow_connection": "traces.connection",
        "follow_request": "traces.request",
        "open_source": "sources",
        "record": "sources",
        "recordings": "sources",
    }

    def __getattr__(name: str) -> object:
        """Import a public name from its room, once. Raises AttributeError for any other name."""
        if name not in _ROOMS:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module  # noqa: PLC0415  keeps `import meshnb` free of imports

        value = getattr(import_module(f"{__name__}.{_ROOMS[name]}"), name)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        """Return the public names, so that tab completion offers them before they are imported."""
        return sorted({*globals(), *__all__})
