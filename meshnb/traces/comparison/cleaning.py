"""Resources of Envoy without what may differ: what is left is equal where istiod meant the same.

Versions, nonces and times are left out, and so is the order of lists that have none. A proxy's own
address stands for itself, so that two pods of one workload agree.
"""

from __future__ import annotations

import re
from functools import cache

import msgspec

from meshnb.tables.base import Json

#: Envoy itself takes no message that is nested deeper.
_DEEPEST = 100
#: What changes from push to push although nothing is different.
_VOLATILE = frozenset({"version_info", "last_updated", "nonce", "resource_version"})
#: Lists whose order means nothing.
_UNORDERED = frozenset({"domains", "endpoints", "lb_endpoints", "virtual_hosts"})


def cleaned(value: Json, address: str = "", depth: int = 0) -> Json:
    """Return a resource without what may differ, its unordered lists in one order.

    ``address`` is the proxy's own, which then stands for itself.
    """
    if depth > _DEEPEST:
        return None
    if isinstance(value, dict):
        clean = {
            field: cleaned(inner, address, depth + 1)
            for field, inner in value.items()
            if field not in _VOLATILE
        }
        for field in _UNORDERED & clean.keys():
            if isinstance(clean[field], list):
                clean[field].sort(key=encoded_json)
        return clean
    if isinstance(value, list):
        return [cleaned(inner, address, depth + 1) for inner in value]
    if isinstance(value, str) and address and address in value:
        return re.sub(alone(address), "{own address}", value)
    return value


def encoded_json(value: Json) -> bytes:
    """Return JSON that is equal when the documents are."""
    return msgspec.json.encode(value, order="deterministic")


def is_about(text: str, address: str) -> bool:
    """Whether a text names an address."""
    return bool(address) and re.search(alone(address), text) is not None


@cache
def alone(address: str) -> str:
    """Return a pattern for an address that is no part of a longer one."""
    after = r"(?![A-Za-z0-9:])" if ":" in address else r"(?!\.?[A-Za-z0-9])"
    return rf"(?<![A-Za-z0-9.:]){re.escape(address)}{after}"
