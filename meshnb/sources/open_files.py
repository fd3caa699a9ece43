"""How many files and sockets this process may have open, and whether that is enough."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from meshnb.errors import SourceError

#: Left for everything else that the process does.
_SPARE = 64
#: With fewer connections at once it is not worth to begin.
_FEWEST = 4


def connections_allowed(wanted: int, kept: int) -> int:
    """Return how many connections may be open at once, of those wanted.

    A connection takes two files: its socket, and what arrives. ``kept`` more stay open for large
    bodies. The soft limit is raised where the system allows it, as Go's programs do; otherwise
    there are fewer connections. Raises SourceError when there is no room for any.
    """
    try:
        import resource  # noqa: PLC0415  Windows has no such limit, and no such module
    except ImportError:
        return wanted
    used = _used()
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = used + 2 * wanted + kept + _SPARE
    if limit != resource.RLIM_INFINITY and limit < needed:
        raised = needed if most == resource.RLIM_INFINITY else min(needed, most)
        with suppress(ValueError, OSError):  # macOS has a second limit, which nobody can ask for
            resource.setrlimit(resource.RLIMIT_NOFILE, (raised, most))
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return wanted
    allowed = min(wanted, (limit - used - _SPARE // 2) // 2)
    if allowed < _FEWEST:
        raise SourceError(
            f"This process may open {limit} files and has {used} of them open, which is too few to "
            "ask a cluster.",
            next_step="Raise the limit and start again: ulimit -n 4096.",
        )
    return allowed


def _used() -> int:
    for folder in ("/proc/self/fd", "/dev/fd"):
        with suppress(OSError):
            return sum(1 for _ in Path(folder).iterdir())
    return _SPARE
