"""Which Istio objects a resource of Envoy was made from, as its metadata says."""

from __future__ import annotations

from collections.abc import Iterator

from meshnb.tables.base import Json
from meshnb.tables.envoy import istio_config


def origin_at(path: str | None) -> str:
    """Return the object at an API path as Envoy's metadata has it: ``Kind namespace/name``."""
    parts = path.split("/") if path else []
    if len(parts) != 8:
        return ""
    kind = "".join(part.capitalize() for part in parts[6].split("-"))
    return f"{kind} {parts[5]}/{parts[7]}"


def origin_of(resource: Json) -> str:
    """Return the Istio object that a resource says it was made from: ``Kind namespace/name``."""
    return origin_at(istio_config(resource))


def origins(document: Json) -> Iterator[str]:
    """Yield the Istio objects that a resource and all that lies within it were made from."""
    if isinstance(document, dict):
        if own := origin_of(document):
            yield own
        for inner in document.values():
            yield from origins(inner)
    elif isinstance(document, list):
        for inner in document:
            yield from origins(inner)
