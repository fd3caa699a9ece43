"""What each istiod holds of the objects that are stored: its page ``/debug/configz``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from meshnb.sources.base import HttpQuestion
from meshnb.tables import Facts
from meshnb.tables.base import Got, Json, dig, mapping
from meshnb.traces.mesh import ConfigObject

_HELD = Got(15014, "/debug/configz")

#: Kind, group, namespace and name.
Key = tuple[str, str, str, str]


@dataclass(frozen=True, slots=True)
class IstiodObjects:
    """All objects that one istiod holds."""

    namespace: str
    pod: str
    #: when it said so
    at: datetime
    objects: Mapping[Key, Mapping[str, Any]]

    @property
    def names(self) -> set[tuple[str, str, str]]:
        """Kind, namespace and name of each."""
        return {(kind, namespace, name) for kind, _, namespace, name in self.objects}


def istiods_objects(facts: Facts) -> list[IstiodObjects]:
    """Return what each istiod holds that gave a readable page."""
    return [
        IstiodObjects(
            question.namespace,
            question.pod,
            facts.answer(question).taken_at,
            {_key(one): mapping(one) for one in page},
        )
        for question, page in facts.documents(_HELD)
        if isinstance(question, HttpQuestion) and isinstance(page, list)
    ]


def held_objects(facts: Facts, item: ConfigObject) -> dict[str, Mapping[str, Any] | None]:
    """Return what each istiod that was asked holds of an object.

    By the istiod's pod; None where it does not have it. An istiod that gave no page is not there.
    """
    key = (item.kind, item.group, item.namespace, item.name)
    return {one.pod: one.objects.get(key) for one in istiods_objects(facts)}


def _key(document: Json) -> Key:
    return (
        str(dig(document, "kind", default="")),
        str(dig(document, "apiVersion", default="")).rpartition("/")[0],
        str(dig(document, "metadata", "namespace", default="")),
        str(dig(document, "metadata", "name", default="")),
    )
