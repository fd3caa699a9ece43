"""Discovery: which groups, versions and resources the server has.

Both forms that clients ask for: a document per group and version, and since Kubernetes 1.26 all of
them in two (``apidiscovery.k8s.io/v2``). Only what was recorded is offered, and only for reading.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from meshnb.sources.serve.recorded import Collection

AGGREGATED = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"

_VERBS = ["get", "list", "watch"]
#: What can be read of a pod besides the pod.
_OF_PODS = {"log": ("Pod", ["get"]), "portforward": ("PodPortForwardOptions", ["create", "get"])}
#: Questions to RBAC, which are not recorded but answered all the same.
REVIEWS = {
    "selfsubjectaccessreviews": "SelfSubjectAccessReview",
    "selfsubjectrulesreviews": "SelfSubjectRulesReview",
}
REVIEW_VERSION = "authorization.k8s.io/v1"


class Discovery:
    """The documents that say what the server has."""

    def __init__(self, collections: Iterable[Collection]) -> None:
        """Group the recorded lists by their API version."""
        self._versions: dict[str, list[Collection]] = {}
        for one in collections:
            self._versions.setdefault(one.api_version, []).append(one)

    def core_versions(self) -> dict[str, Any]:
        """Return what ``/api`` answers."""
        return {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []}

    def groups(self) -> dict[str, Any]:
        """Return what ``/apis`` answers."""
        groups = [self.group(name) for name in self._groups()]
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}

    def group(self, name: str) -> dict[str, Any] | None:
        """Return what ``/apis/GROUP`` answers, or None for a group that is unknown."""
        versions = self._groups().get(name)
        if versions is None:
            return None
        stated = [{"groupVersion": f"{name}/{version}", "version": version} for version in versions]
        return {"name": name, "versions": stated, "preferredVersion": stated[0]}

    def resources(self, api_version: str) -> dict[str, Any] | None:
        """Return what ``/apis/GROUP/VERSION`` or ``/api/v1`` answers, or None if unknown."""
        if api_version != REVIEW_VERSION and api_version not in self._versions:
            return None
        return {
            "kind": "APIResourceList",
            "apiVersion": "v1",
            "groupVersion": api_version,
            "resources": list(self._resources(api_version)),
        }

    def knows(self, api_version: str, resource: str) -> bool:
        """Whether a resource can be asked for."""
        return any(one.resource == resource for one in self._versions.get(api_version, ()))

    def aggregated(self, *, core: bool) -> dict[str, Any]:
        """Return all documents in one: of the core group, or of all other groups."""
        groups = {"": ["v1"]} if core else self._groups()
        return {
            "kind": "APIGroupDiscoveryList",
            "apiVersion": "apidiscovery.k8s.io/v2",
            "metadata": {},
            "items": [
                {
                    "metadata": {"name": name, "creationTimestamp": None},
                    "versions": [_aggregated_version(self, name, each) for each in versions],
                }
                for name, versions in groups.items()
            ],
        }

    def _groups(self) -> dict[str, list[str]]:
        groups: dict[str, list[str]] = {}
        for api_version in [*self._versions, REVIEW_VERSION]:
            group, slash, version = api_version.partition("/")
            if slash and version not in groups.setdefault(group, []):
                groups[group].append(version)
        return {name: sorted(versions, key=_maturity) for name, versions in groups.items()}

    def _resources(self, api_version: str) -> Iterator[dict[str, Any]]:
        for one in sorted(self._versions.get(api_version, ()), key=lambda each: each.resource):
            kind = one.kind
            yield {
                "name": one.resource,
                "singularName": kind.singular,
                "namespaced": kind.namespaced,
                "kind": kind.name,
                "verbs": _VERBS,
                **({"shortNames": list(kind.short_names)} if kind.short_names else {}),
                **({"categories": list(kind.categories)} if kind.categories else {}),
            }
            if (api_version, one.resource) == ("v1", "pods"):
                for name, (stated, verbs) in _OF_PODS.items():
                    yield {
                        "name": f"pods/{name}",
                        "singularName": "",
                        "namespaced": True,
                        "kind": stated,
                        "verbs": verbs,
                    }
        if api_version == REVIEW_VERSION:
            for name, stated in REVIEWS.items():
                yield {
                    "name": name,
                    "singularName": stated.lower(),
                    "namespaced": False,
                    "kind": stated,
                    "verbs": ["create"],
                }


def _maturity(version: str) -> tuple[int, int, int]:
    """Sort v2 before v1 before v1beta1 before v1alpha1, as API servers prefer them."""
    number, _, rest = version.removeprefix("v").partition("beta")
    rank = 1 if rest else 0
    if not rest:
        number, _, rest = number.partition("alpha")
        rank = 2 if rest else 0
    return rank, -_number(number), -_number(rest)


def _number(text: str) -> int:
    return int(text) if text.isdigit() else 0


def _aggregated_version(discovery: Discovery, group: str, version: str) -> dict[str, Any]:
    document = discovery.resources(f"{group}/{version}" if group else version) or {}
    stated: Sequence[dict[str, Any]] = document.get("resources", ())
    wholes = [
        {
            "resource": one["name"],
            "responseKind": {"group": group, "version": version, "kind": one["kind"]},
            "scope": "Namespaced" if one["namespaced"] else "Cluster",
            "singularResource": one["singularName"],
            "verbs": one["verbs"],
            **{key: one[key] for key in ("shortNames", "categories") if key in one},
        }
        for one in stated
        if "/" not in one["name"]
    ]
    for whole in wholes:
        parts = [
            {
                "subresource": one["name"].partition("/")[2],
                "responseKind": {"group": group, "version": version, "kind": one["kind"]},
                "verbs": one["verbs"],
            }
            for one in stated
            if one["name"].startswith(f"{whole['resource']}/")
        ]
        if parts:
            whole["subresources"] = parts
    return {"version": version, "freshness": "Current", "resources": wholes}
