"""Container logs: the recorded text, cut as a client asks for it.

The kubelet's own time stamps are not recorded. Where a client wants lines since a moment, or each
line's time, the time that the line itself begins with stands in for it; a line without one has that
of the line before, and those before the first time are as good as new. Seconds count back from when
the log was recorded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta

from meshnb.sources.base import Answer, parse_time
from meshnb.sources.kubelet import no_log
from meshnb.sources.serve.recorded import Recorded
from meshnb.sources.serve.request import ApiRequest
from meshnb.sources.serve.status import Status, code_of, not_found

#: The time that Envoy, ztunnel and istiod begin a line with, bare, in brackets, or in JSON.
_TIME = re.compile(
    rb'^(?:\[|\{"(?:time|timestamp|start_time|ts)":\s*")?'
    rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?Z)"
)
_LINE = re.compile(rb"[^\n]*\n|[^\n]+")
#: How `kubectl` says what an API server answered; some recorders keep its words.
_KUBECTL = re.compile(r"^Error from server(?: \((?P<reason>\w+)\))?: (?P<message>.*)$", re.DOTALL)


def log_of(recorded: Recorded, request: ApiRequest, query: Mapping[str, str]) -> bytes:
    """Return the part of a log that is asked for. Raises Status where there is none."""
    namespace, pod = request.namespace or "", request.name or ""
    if not recorded.knows_pod(namespace, pod):
        raise not_found("", "pods", pod)
    previous = query.get("previous") in ("1", "true")
    container = _container(recorded, namespace, pod, query.get("container", ""))
    answer = recorded.log(namespace, pod, container, previous=previous)
    if answer is None:
        run = "previous run of container" if previous else "container"
        raise Status(404, f'not recorded: the log of {run} "{container}" in pod "{pod}"')
    if answer.error is not None:
        if no_log(answer.error.encode()):
            return answer.error.encode()  # as the kubelet says it, in the place of the log
        raise _refusal(answer)
    return _cut(answer, query)


def _container(recorded: Recorded, namespace: str, pod: str, name: str) -> str:
    document = recorded.pod(namespace, pod)
    if document is None:
        return name
    spec = document.get("spec") or {}
    known: Sequence[str] = [
        str(each.get("name"))
        for key in ("containers", "initContainers", "ephemeralContainers")
        for each in spec.get(key) or ()
    ]
    if name and name not in known:
        raise Status(400, f"container {name} is not valid for pod {pod}")
    if name:
        return name
    first = [str(each.get("name")) for each in spec.get("containers") or ()]
    if len(first) == 1:
        return first[0]
    choices = "] or one of the init containers: [".join(
        " ".join(part) for part in (first, known[len(first) :]) if part
    )
    raise Status(
        400, f"a container name must be specified for pod {pod}, choose one of: [{choices}]"
    )


def _refusal(answer: Answer) -> Status:
    """Return what the API server had answered instead of a log, as far as it is recorded."""
    error = answer.error or ""
    said = _KUBECTL.match(error)
    if said:
        return Status(code_of(said["reason"]) or answer.status or 500, said["message"])
    if answer.status and answer.status >= 400:
        return Status(answer.status, error)
    return Status(500, f"in the recording: {error}")


def _cut(answer: Answer, query: Mapping[str, str]) -> bytes:
    lines = _LINE.findall(answer.content)
    since = _since(answer, query)
    if since is not None or query.get("timestamps") in ("1", "true"):
        timed = list(_timed(lines, answer.taken_at))
        if since is not None:
            timed = [(moment, line) for moment, line in timed if moment is None or moment >= since]
        lines = [line for _, line in timed]
        if query.get("timestamps") in ("1", "true"):
            lines = [_stamp(moment or answer.taken_at) + line for moment, line in timed]
    tail = _number(query, "tailLines")
    if tail is not None:
        lines = lines[-tail:] if tail else []
    body = b"".join(lines)
    limit = _number(query, "limitBytes")
    return body if limit is None else body[:limit]


def _stamp(moment: datetime) -> bytes:
    return moment.isoformat().replace("+00:00", "Z").encode() + b" "


def _number(query: Mapping[str, str], name: str) -> int | None:
    text = query.get(name)
    if text is None:
        return None
    if not text.isdigit():
        # A number that is too small is understood, and refused as invalid.
        code = 422 if text.removeprefix("-").isdigit() else 400
        raise Status(code, f"{name}: Invalid value: {text}: must be greater than or equal to 0")
    return int(text)


def _since(answer: Answer, query: Mapping[str, str]) -> datetime | None:
    seconds = _number(query, "sinceSeconds")
    if seconds is not None:
        try:
            return answer.taken_at - timedelta(seconds=seconds)
        except OverflowError:
            return None
    if "sinceTime" not in query:
        return None
    try:
        return parse_time(query["sinceTime"])
    except ValueError as error:
        raise Status(400, f"sinceTime: {error}") from None


def _timed(lines: Sequence[bytes], taken_at: datetime) -> Iterator[tuple[datetime | None, bytes]]:
    """Yield each line with its time, or that of the line before it; None before the first time."""
    moment: datetime | None = None
    for line in lines:
        found = _TIME.match(line)
        if found:
            try:
                moment = parse_time(found[1].decode())
            except ValueError:
                moment = moment or taken_at
        yield moment, line
