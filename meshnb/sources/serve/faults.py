"""Faults: how a served recording misbehaves when it is told to.

A fault is a value. ``parse_fault`` reads it as the command line writes it: its name, a colon, and
its fields, such as ``slow:seconds=0.2,resource=pods/log``. The patterns of a fault (``*`` for any)
say which requests it concerns; requests through a port-forward have the resource ``http``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from typing import Any, TypeVar

from meshnb.errors import UsageError, nearest
from meshnb.sources.serve.request import ApiRequest

#: What stands for a request within a port-forward, where an API request has its resource.
HTTP = "http"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Something that goes wrong with the requests that fit its patterns."""

    verb: str = "*"
    resource: str = "*"
    namespace: str = "*"
    name: str = "*"

    def concerns(self, request: ApiRequest) -> bool:
        """Whether the request fits the patterns; one without a name fits only ``*``."""
        return (
            any(fnmatchcase(verb, self.verb) for verb in request.verbs)
            and fnmatchcase(request.resource, self.resource)
            and fnmatchcase(request.namespace or "", self.namespace)
            and fnmatchcase(request.name or "", self.name)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Slow(Fault):
    """Answers come late, by so many seconds; bodies and logs no faster than ``bytes_per_s``."""

    seconds: float = 0.0
    bytes_per_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Hang(Fault):
    """Nothing is ever answered, and the connection stays open."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refuse(Fault):
    """RBAC does not allow it: 403."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fail(Fault):
    """The API server fails with a status, every so many requests, so many times (0: always)."""

    status: int = 500
    every: int = 1
    times: int = 0
    retry_after_s: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Drop(Fault):
    """Every so many requests, the connection is cut: at once, or after so many bytes."""

    every: int = 1
    times: int = 0
    after_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Restart(Fault):
    """The pod is replaced once it was asked so often: another name, nothing there for a while."""

    after: int = 1
    gone_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Garbage(Fault):
    """Something that is no HTTP listens on the port (0: on every port)."""

    port: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Gone(Fault):
    """The next page of a list is not to be had any more: 410, so many times (0: always)."""

    times: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Expire(Fault):
    """The token expires after so many requests: 401 to all that come with it."""

    after: int = 1


FAULTS: Mapping[str, type[Fault]] = {
    kind.__name__.lower(): kind
    for kind in (Slow, Hang, Refuse, Fail, Drop, Restart, Garbage, Gone, Expire)
}

_Kind = TypeVar("_Kind", bound=Fault)


class Misbehaviour:
    """The faults of one server, and how often each has been met."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        """Begin to count at nought."""
        self.faults = tuple(faults)
        self._met = [0] * len(self.faults)

    def met(self, kind: type[_Kind], request: ApiRequest) -> list[tuple[_Kind, int]]:
        """Return the faults of a kind that concern a request, with how often they have by now."""
        found = []
        for place, fault in enumerate(self.faults):
            if isinstance(fault, kind) and fault.concerns(request):
                self._met[place] += 1
                found.append((fault, self._met[place]))
        return found

    def striking(self, kind: type[_Kind], request: ApiRequest) -> _Kind | None:
        """Return a Fail, a Drop or a Gone whose turn it is."""
        for fault, count in self.met(kind, request):
            every, times = getattr(fault, "every", 1), getattr(fault, "times", 0)
            if count % max(every, 1) == 0 and (not times or count // max(every, 1) <= times):
                return fault
        return None

    def standing(self, kind: type[_Kind], request: ApiRequest) -> _Kind | None:
        """Return a fault of a kind that concerns every such request, without counting it."""
        found = (each for each in self.faults if isinstance(each, kind) and each.concerns(request))
        return next(found, None)


def parse_fault(text: str) -> Fault:
    """Read a fault as the command line writes it. Raises UsageError with what is possible."""
    name, _, rest = text.partition(":")
    kind = FAULTS.get(name.strip())
    if kind is None:
        raise UsageError(f"There is no fault {name!r}.", next_step=nearest(name, FAULTS))
    defaults: dict[str, Any] = {field.name: field.default for field in fields(kind)}
    values: dict[str, Any] = {}
    for part in filter(None, (each.strip() for each in rest.split(","))):
        key, sign, value = part.partition("=")
        if not sign or key not in defaults:
            raise UsageError(
                f"The fault {name!r} has no field {key!r}.",
                next_step=f"Its fields are {', '.join(defaults)}, each as FIELD=VALUE.",
            )
        try:
            values[key] = type(defaults[key])(value)
        except ValueError:
            raise UsageError(
                f"The field {key!r} of the fault {name!r} cannot be {value!r}.",
                next_step=f"It is a number, such as {defaults[key]}.",
            ) from None
    return kind(**values)
