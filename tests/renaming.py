"""The same mesh under other names: proof that no rule knows the names in the recordings."""

from __future__ import annotations

import re
from pathlib import Path

#: Every name that somebody chose in the recorded meshes. Names that Istio itself gives stay.
NAMES = {
    "bookinfo": "warehouse",
    "productpage": "storefront",
    "reviews": "opinions",
    "ratings": "stars",
    "details": "catalogue",
    "legacy-client": "old-robot",
    "legacy": "museum",
    "browser": "visitor",
    "outside": "street",
    "orders": "purchases",
    "searcher": "seeker",
    "search": "finder",
    "mail": "post",
    "jason": "arthur",
    "istio-ingressgateway": "front-door",
    "ingressgateway": "frontdoor",
    "istio-system": "mesh-control",
    "market": "bazaar",
    "garden": "meadow",
    "testbed": "kitchen",
}
_ANY = re.compile("|".join(sorted(map(re.escape, NAMES), key=len, reverse=True)).encode())


def renamed(text: bytes) -> bytes:
    """Return evidence with every chosen name replaced by another one."""
    return _ANY.sub(lambda match: NAMES[match[0].decode()].encode(), text)


def renamed_bundle(source: Path, target: Path) -> Path:
    """Copy a bundle, a folder, with other names in its files and in their paths."""
    for file in source.rglob("*"):
        if file.is_file():
            path = target / renamed(file.relative_to(source).as_posix().encode()).decode()
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(renamed(file.read_bytes()))
    return target
