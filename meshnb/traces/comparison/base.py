"""What a comparison is: resources of Envoy, each the same or with the places that differ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd

from meshnb.sources.base import HttpQuestion
from meshnb.tables.base import Column, Table
from meshnb.tables.envoy import CONFIG_DUMP


@dataclass(frozen=True, slots=True)
class Difference:
    """One place at which two versions of a resource differ; a value is empty where it is absent."""

    #: JSON path into the resource, elements of lists by name where they have one
    path: str
    here: str
    there: str
    #: the Istio object that this place was made from, such as ``VirtualService shop/cart``
    made_from: str = ""

    def to_json(self) -> dict[str, str]:
        """Return the difference as an object."""
        return {
            "path": self.path,
            "here": self.here,
            "there": self.there,
            "made_from": self.made_from,
        }


@dataclass(frozen=True, slots=True)
class Compared:
    """One resource, compared. ``state`` is same, different, only here or only there."""

    kind: str
    name: str
    state: str
    differences: tuple[Difference, ...] = ()
    #: the Istio objects, or else the Services, that what differs was made from
    made_from: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the resource as an object."""
        return {
            "kind": self.kind,
            "name": self.name,
            "state": self.state,
            "made_from": list(self.made_from),
            "differences": [difference.to_json() for difference in self.differences],
        }


@dataclass(frozen=True, slots=True)
class Comparison:
    """What a proxy holds (here) against what others hold (there), resource by resource."""

    proxy: str
    #: the proxies or the istiod that it was compared with
    against: tuple[str, ...]
    #: what was compared, and why that should be equal
    scope: str
    resources: tuple[Compared, ...] = ()
    #: what could not be compared, and why; empty when everything could
    unknown: str = ""

    @property
    def differing(self) -> tuple[Compared, ...]:
        """The resources that are not the same."""
        return tuple(resource for resource in self.resources if resource.state != "same")

    @property
    def same(self) -> int:
        """How many resources are the same."""
        return len(self.resources) - len(self.differing)

    def frame(self) -> pd.DataFrame:
        """Return one row per resource; the columns are those of :data:`COMPARED`."""
        pod, _, namespace = self.proxy.rpartition(".")
        question = HttpQuestion(namespace, pod, CONFIG_DUMP.port, CONFIG_DUMP.path)
        return COMPARED.frame(
            (
                question,
                {
                    "proxy": self.proxy,
                    "kind": resource.kind,
                    "name": resource.name,
                    "state": resource.state,
                    "paths": tuple(difference.path for difference in resource.differences),
                    "made_from": resource.made_from,
                    "against": self.against,
                },
            )
            for resource in self.resources
        )

    def to_json(self) -> dict[str, Any]:
        """Return the comparison as an object; resources that are the same are only counted."""
        return {
            "proxy": self.proxy,
            "against": list(self.against),
            "scope": self.scope,
            "same": self.same,
            "unknown": self.unknown,
            "resources": [resource.to_json() for resource in self.differing],
        }


COMPARED = Table(
    name="compared",
    grain="one row per resource of a proxy or of those that it is compared with",
    columns={
        "proxy": Column("string", "the proxy as pod.namespace", key=True),
        "kind": Column(
            "string", "cluster, listener, route, endpoints, extension, root or object", key=True
        ),
        "name": Column("string", "name of the resource", key=True),
        "state": Column("string", "same, different, only here (at the proxy) or only there"),
        "paths": Column("object", "tuple: JSON paths at which it differs"),
        "made_from": Column("object", "tuple: Istio objects or Services that it was made from"),
        "against": Column("object", "tuple: the proxies or the istiod it is compared with"),
    },
)
