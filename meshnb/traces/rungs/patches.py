"""Whether what an EnvoyFilter asks for is in a proxy's configuration.

A patch leaves no name of its object behind, so its value is looked for: an object somewhere in the
resources it applies to that has all of its fields. Fields at their default are not dumped by Envoy.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from meshnb.tables.base import Json, dig, mapping
from meshnb.tables.envoy import milliseconds

#: Where each ``applyTo`` applies: the section of a config dump, and its lists.
PLACES = {
    **dict.fromkeys(
        ("LISTENER", "FILTER_CHAIN", "NETWORK_FILTER", "HTTP_FILTER", "LISTENER_FILTER"),
        ("ListenersConfigDump", ("dynamic_listeners",)),
    ),
    **dict.fromkeys(
        ("ROUTE_CONFIGURATION", "VIRTUAL_HOST", "HTTP_ROUTE"),
        ("RoutesConfigDump", ("dynamic_route_configs", "static_route_configs")),
    ),
    "CLUSTER": ("ClustersConfigDump", ("dynamic_active_clusters", "static_clusters")),
    "EXTENSION_CONFIG": ("EcdsConfigDump", ("ecds_filters",)),
}
_CAPITAL = re.compile(r"(?<=[a-z0-9])([A-Z])")
#: protobuf's defaults, which Envoy leaves out of its dump.
_DEFAULTS: tuple[Json, ...] = (None, False, 0, "", [], {})
#: Envoy takes no message that is nested deeper.
_DEEPEST = 100


def removes(patch: Json) -> bool:
    """Whether a patch takes something away, which leaves nothing to be found."""
    return dig(patch, "patch", "operation") == "REMOVE" or not mapping(patch, "patch", "value")


def place_of(patch: Json) -> tuple[str, tuple[str, ...]] | None:
    """Return the section of a config dump that a patch applies to; None for a bootstrap."""
    return PLACES.get(str(dig(patch, "applyTo", default="")))


def found_in(document: Json, value: Json, depth: int = 0) -> bool:
    """Whether an object anywhere in a document has all that a value has."""
    if depth > _DEEPEST:
        return False
    if isinstance(document, dict):
        return _has(document, value) or any(
            found_in(inner, value, depth + 1) for inner in document.values()
        )
    return isinstance(document, list) and any(
        found_in(inner, value, depth + 1) for inner in document
    )


def _has(document: Json, value: Json) -> bool:
    if isinstance(value, dict):
        return isinstance(document, dict) and all(
            any(_has(document[name], inner) for name in names if name in document)
            or (inner in _DEFAULTS and not any(name in document for name in names))
            for names, inner in _fields(value)
        )
    if isinstance(value, list):
        return isinstance(document, list) and all(
            any(_has(one, inner) for one in document) for inner in value
        )
    if isinstance(document, dict | list):
        return False
    return bool(_plain(document) == _plain(value))


def _fields(value: Json) -> Iterator[tuple[tuple[str, str], Json]]:
    """Yield the fields with their names as written and as Envoy writes them, without capitals."""
    for name, inner in value.items():
        yield (str(name), _CAPITAL.sub(r"_\1", str(name)).lower()), inner


def _plain(value: Json) -> Json:
    """Return a value so that numbers, durations and their texts can be compared."""
    duration = milliseconds(value)
    if duration is not None:
        return duration
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    try:
        return float(value)
    except (TypeError, ValueError):
        return value
