"""Status: how an API server says what went wrong, in an object of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: The reason that belongs to a status code where no better one is known.
_REASONS = {
    400: "BadRequest",
    401: "Unauthorized",
    403: "Forbidden",
    404: "NotFound",
    405: "MethodNotAllowed",
    406: "NotAcceptable",
    410: "Expired",
    415: "UnsupportedMediaType",
    422: "Invalid",
    429: "TooManyRequests",
    500: "InternalError",
    503: "ServiceUnavailable",
    504: "Timeout",
}
_CODES = {reason: code for code, reason in _REASONS.items()}


class Status(Exception):
    """A failure as an API server answers it: a code, its reason, and a message."""

    def __init__(
        self,
        code: int,
        message: str,
        *,
        details: Mapping[str, Any] | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        """Say what failed; the reason follows from the code."""
        super().__init__(message)
        self.code = code
        self.message = message
        self.details = dict(details or {})
        self.retry_after_s = retry_after_s
        if retry_after_s is not None:
            self.details["retryAfterSeconds"] = retry_after_s

    def to_json(self) -> dict[str, Any]:
        """Return the Status object."""
        return {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": _REASONS.get(self.code, "Unknown"),
            **({"details": self.details} if self.details else {}),
            "code": self.code,
        }


def code_of(reason: str | None) -> int | None:
    """Return the code that belongs to a reason such as ``BadRequest``, or None."""
    return _CODES.get(reason or "")


def not_found(group: str, resource: str, name: str) -> Status:
    """Return the answer to a question for an object that is not there."""
    qualified = f"{resource}.{group}" if group else resource
    details = {"name": name, **({"group": group} if group else {}), "kind": resource}
    return Status(404, f'{qualified} "{name}" not found', details=details)


class UnknownPage(Exception):
    """A path that no part of the server knows is answered with a text, not with a Status."""

    TEXT = "404 page not found\n"


def no_such_page(group: str) -> Exception:
    """Return the answer to a resource that the server does not know.

    Of its own groups Kubernetes 1.36 says so in a Status; of groups that are defined in the
    cluster, or that nobody has defined, with a text.
    """
    if ("." in group and not group.endswith(".k8s.io")) or group.startswith("gateway."):
        return UnknownPage()
    return Status(404, "the server could not find the requested resource")


def not_forwarded(pod: str) -> Status:
    """Return the answer to a port-forward by GET where only ``create`` lacks.

    `get` is looked at first, and refused in words; this answer of Kubernetes 1.36 has no reason.
    """
    return Status(403, f'pods "{pod}" is forbidden: ', details={"name": pod, "kind": "pods"})


def forbidden(
    user: str, verb: str, group: str, resource: str, namespace: str | None, name: str | None
) -> Status:
    """Return the answer of RBAC to somebody who may not ask this."""
    plain, _, _ = resource.partition("/")
    qualified = f"{plain}.{group}" if group else plain
    subject = f'{qualified} "{name}"' if name else qualified
    where = f'in the namespace "{namespace}"' if namespace else "at the cluster scope"
    return Status(
        403,
        f'{subject} is forbidden: User "{user}" cannot {verb} resource "{resource}" '
        f'in API group "{group}" {where}',
        details={
            **({"name": name} if name else {}),
            **({"group": group} if group else {}),
            "kind": plain,
        },
    )
