"""One request to the API server, as RBAC and the request log see it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

_WRITES = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
_NAMESPACE_PARTS = ("status", "finalize")


@dataclass(frozen=True, slots=True)
class ApiRequest:
    """What is asked of which resource.

    ``resource`` has its subresource after a slash (``pods/log``) and is empty for a path that is
    about no resource. A port-forward is a GET that needs the permission to ``create`` as well
    (Kubernetes 1.35 and newer), so it has two verbs.
    """

    method: str
    path: str
    verbs: tuple[str, ...]
    api_version: str = ""
    resource: str = ""
    namespace: str | None = None
    name: str | None = None
    #: the port and the path behind a port-forward, for a request that is sent through one
    port: int | None = None

    @property
    def group(self) -> str:
        """The API group; empty for the core group."""
        return self.api_version.rpartition("/")[0]

    @property
    def plain_resource(self) -> str:
        """The resource without its subresource."""
        return self.resource.partition("/")[0]

    @property
    def subresource(self) -> str:
        """What of the object is asked for: ``log``, ``portforward``, or nothing."""
        return self.resource.partition("/")[2]


def read_request(method: str, path: str, query: Mapping[str, str]) -> ApiRequest:
    """Read what a method, a path and a query ask for."""
    parts = [part for part in path.split("/") if part]
    if len(parts) >= 3 and parts[0] == "api":
        api_version, rest = parts[1], parts[2:]
    elif len(parts) >= 4 and parts[0] == "apis":
        api_version, rest = f"{parts[1]}/{parts[2]}", parts[3:]
    else:
        return ApiRequest(method, path, ("get" if method in ("GET", "HEAD") else method.lower(),))
    watch = query.get("watch") in ("1", "true")
    if rest[0] == "watch" and len(rest) > 1:
        watch, rest = True, rest[1:]
    namespace = None
    if rest[0] == "namespaces" and len(rest) > 2 and rest[2] not in _NAMESPACE_PARTS:
        namespace, rest = rest[1], rest[2:]
    resource = "/".join([rest[0], *rest[2:]])
    name = rest[1] if len(rest) > 1 else None
    verb = "get" if name else "list"
    if method in _WRITES:
        verbs: tuple[str, ...] = (_WRITES[method],)
    elif resource == "pods/portforward":
        verbs = ("get", "create")
    else:
        verbs = ("watch",) if watch and verb == "list" else (verb,)
    return ApiRequest(method, path, verbs, api_version, resource, namespace, name)
