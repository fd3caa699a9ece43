"""Reads what every Kubernetes object says of itself: labels, annotations, its owner, its times."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from meshnb.tables.base import Json, dig, items, mapping, moment


def labels_of(document: Json) -> dict[str, Any]:
    """Return an object's labels; empty when it has none."""
    return dict(mapping(document, "metadata", "labels"))


def annotations_of(document: Json) -> dict[str, Any]:
    """Return an object's annotations; empty when it has none."""
    return dict(mapping(document, "metadata", "annotations"))


def owner_of(document: Json) -> tuple[str, str] | None:
    """Return kind and name of the object that controls this one; None when nothing does."""
    owners = [
        owner
        for owner in items(document, "metadata", "ownerReferences")
        if isinstance(dig(owner, "kind"), str) and isinstance(dig(owner, "name"), str)
    ]
    owners.sort(key=lambda owner: dig(owner, "controller") is not True)
    return (owners[0]["kind"], owners[0]["name"]) if owners else None


def changed(document: Json) -> datetime | None:
    """Return when somebody last changed an object, other than its status.

    That is the newest time among its managed fields that are not of the subresource ``status``;
    without such fields it is the time of creation, the only one known.
    """
    times = [
        moment(dig(entry, "time"))
        for entry in items(document, "metadata", "managedFields")
        if dig(entry, "subresource") != "status"
    ]
    known = [time for time in times if time is not None]
    return max(known) if known else moment(dig(document, "metadata", "creationTimestamp"))


def condition(document: Json, kind: str) -> Mapping[str, Any]:
    """Return the condition of one type from an object's status; empty when there is none."""
    for entry in items(document, "status", "conditions"):
        if dig(entry, "type") == kind:
            return mapping(entry)
    return {}


def condition_holds(document: Json, kind: str) -> bool | None:
    """Whether a condition is True; None when it is Unknown or absent."""
    return {"True": True, "False": False}.get(str(condition(document, kind).get("status")))
