"""Reads log lines of istiod, pilot-agent and Envoy: their own, and those about requests."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from meshnb.tables.base import Json, Row

#: Istio's default text format of access logs (https://istio.io/latest/docs/tasks/observability/logs/access-log/).
DEFAULT_FORMAT = (
    '[%START_TIME%] "%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%"'
    " %RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS%"
    ' "%UPSTREAM_TRANSPORT_FAILURE_REASON%" %BYTES_RECEIVED% %BYTES_SENT% %DURATION%'
    ' %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% "%REQ(X-FORWARDED-FOR)%" "%REQ(USER-AGENT)%"'
    ' "%REQ(X-REQUEST-ID)%" "%REQ(:AUTHORITY)%" "%UPSTREAM_HOST%" %UPSTREAM_CLUSTER_RAW%'
    " %UPSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS%"
    " %REQUESTED_SERVER_NAME% %ROUTE_NAME%"
)

#: The column of the table ``access_log`` that each operator of a format string fills.
_OPERATORS: Mapping[str, str] = {
    "START_TIME": "start_time",
    "REQ(:METHOD)": "method",
    "REQ(X-ENVOY-ORIGINAL-PATH?:PATH)": "path",
    "REQ(:PATH)": "path",
    "PROTOCOL": "protocol",
    "RESPONSE_CODE": "response_code",
    "RESPONSE_FLAGS": "response_flags",
    "RESPONSE_CODE_DETAILS": "details",
    "CONNECTION_TERMINATION_DETAILS": "connection_details",
    "UPSTREAM_TRANSPORT_FAILURE_REASON": "upstream_failure",
    "BYTES_RECEIVED": "bytes_received",
    "BYTES_SENT": "bytes_sent",
    "DURATION": "duration_ms",
    "RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)": "upstream_service_time_ms",
    "REQ(X-FORWARDED-FOR)": "x_forwarded_for",
    "REQ(USER-AGENT)": "user_agent",
    "REQ(X-REQUEST-ID)": "request_id",
    "REQ(:AUTHORITY)": "authority",
    "UPSTREAM_HOST": "upstream_host",
    "UPSTREAM_CLUSTER": "cluster",
    "UPSTREAM_CLUSTER_RAW": "cluster",
    "UPSTREAM_LOCAL_ADDRESS": "upstream_local_address",
    "DOWNSTREAM_LOCAL_ADDRESS": "downstream_local_address",
    "DOWNSTREAM_REMOTE_ADDRESS": "downstream_remote_address",
    "REQUESTED_SERVER_NAME": "requested_server_name",
    "ROUTE_NAME": "route_name",
}
#: Columns whose names in Istio's JSON format are others.
_JSON_OTHER = {
    "response_code_details": "details",
    "connection_termination_details": "connection_details",
    "upstream_transport_failure_reason": "upstream_failure",
    "duration": "duration_ms",
    "upstream_service_time": "upstream_service_time_ms",
    "upstream_cluster": "cluster",
}

_OPERATOR = re.compile(r"%([A-Z][A-Z0-9_]*)(\([^()]*\))?(?::\d+)?%")

#: The default format up to the quoted fields whose text is a client's; the path may hold quotes.
_HEAD = re.compile(
    r'\[(?P<start_time>\d[^\]]*)\] "(?P<method>\S+) (?P<path>.*?) (?P<protocol>\S+)"'
    r" (?P<response_code>\d+|-) (?P<response_flags>\S+) (?P<details>\S+)"
    r' (?P<connection_details>[^"]*?) "(?P<upstream_failure>[^"]*)"'
    r" (?P<bytes_received>\S+) (?P<bytes_sent>\S+) (?P<duration_ms>\S+)"
    r' (?P<upstream_service_time_ms>\S+) "'
)
_TAIL = re.compile(
    r'(?P<upstream_host>[^"]*)" (?P<cluster>\S+) (?P<upstream_local_address>\S+)'
    r" (?P<downstream_local_address>\S+) (?P<downstream_remote_address>\S+)"
    r" (?P<requested_server_name>\S+) (?P<route_name>.*)"
)

Fields = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class AccessLogReader:
    """Reads lines of an access log in Istio's default text or JSON format, or a mesh's own format.

    Calling it with a line returns the fields by their columns in ``access_log``, or None for a
    line that is no access log. Values are as printed, ``-`` for absent.
    """

    own: Callable[[str], Fields | None] | None = None

    def __call__(self, line: str) -> Fields | None:
        """Return the fields of a line, None when it is no line of an access log."""
        if self.own is not None and (found := self.own(line)) is not None:
            return found
        if line.startswith("["):
            matched = _DEFAULT.fullmatch(line)
            return _with_quotes(line) if matched is None else matched.groupdict()
        if line.startswith("{"):
            return _json_fields(line, _JSON_NAMES)
        return None


def access_log_reader(custom_format: str | None = None) -> AccessLogReader:
    """Return a reader for the formats of Istio and, besides, for a mesh's own ``accessLogFormat``.

    A text format is understood when a fixed text stands between any two of its operators; a JSON
    format when its values are operators. Of any other, only Istio's formats are read.
    """
    text = (custom_format or "").rstrip("\n")
    if not text or text == DEFAULT_FORMAT:
        return AccessLogReader()
    if text.lstrip().startswith("{"):
        return AccessLogReader(_compiled_json(text))
    pattern = _compiled(text)
    return AccessLogReader(None if pattern is None else _Text(pattern))


@dataclass(frozen=True, slots=True)
class _Text:
    pattern: re.Pattern[str]

    def __call__(self, line: str) -> Fields | None:
        matched = self.pattern.fullmatch(line)
        return None if matched is None else matched.groupdict()


@dataclass(frozen=True, slots=True)
class _JsonObject:
    names: Mapping[str, str]

    def __call__(self, line: str) -> Fields | None:
        return _json_fields(line, self.names) if line.startswith("{") else None


def _compiled(text: str, *, never: str = "") -> re.Pattern[str] | None:
    """Return the pattern of a format string; None when it cannot be read back without guessing.

    An operator's text ends where the character begins that follows it in the format, so the pattern
    does not backtrack, whatever stands in a line. No operator's text holds the character ``never``.
    """
    pattern, at = "", 0
    known: set[str] = set()
    for operator in _OPERATOR.finditer(text):
        literal = text[at : operator.start()]
        if at and not literal:
            return None
        at = operator.end()
        field = _OPERATORS.get(operator[1] + (operator[2] or "")) or _OPERATORS.get(operator[1])
        group = f"(?P<{field}>" if field is not None and field not in known else "(?:"
        known.update(() if field is None else (field,))
        stop = text[at : at + 1]
        other = re.escape(stop + never)
        shape = r"\d+|-" if field in _NUMBERS else f"[^{other}]*" if other else ".*"
        pattern += f"{re.escape(literal)}{group}{shape})"
    if not known & {"response_code", "response_flags"}:
        return None
    return re.compile(pattern + re.escape(text[at:]))


_NUMBERS = frozenset({"response_code", "bytes_received", "bytes_sent", "duration_ms"})
# A quote within a field means that a client's text holds some, which may shift all that follow.
_DEFAULT = _compiled(DEFAULT_FORMAT, never='"') or re.compile("")


def _with_quotes(line: str) -> Fields | None:
    """Read a line of the default format in which the text of a client has quotes or spaces.

    The fields before such texts are read from the left, the fields behind them from the right.
    """
    head = _HEAD.match(line)
    parts = line[head.end() :].rsplit('" "', 3) if head else []
    tail = _TAIL.fullmatch(parts[3]) if len(parts) == 4 else None
    if head is None or tail is None:
        return None
    forwarded, _, agent = parts[0].partition('" "')
    return {
        **head.groupdict(),
        "x_forwarded_for": forwarded,
        "user_agent": agent,
        "request_id": parts[1],
        "authority": parts[2],
        **tail.groupdict(),
    }


def _json(text: str) -> Json:
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return None


_JSON_NAMES = {
    **{field: field for field in _OPERATORS.values() if field not in _JSON_OTHER.values()},
    **_JSON_OTHER,
}


def _json_fields(line: str, field_names: Mapping[str, str]) -> Fields | None:
    document = _json(line)
    if not isinstance(document, Mapping):
        return None
    found = {
        field: "-" if document[name] is None else document[name]
        for name, field in field_names.items()
        if name in document
    }
    return found if found.keys() & {"response_code", "response_flags"} else None


def _compiled_json(text: str) -> Callable[[str], Fields | None] | None:
    template = _json(text)
    field_names: dict[str, str] = {}
    for name, value in template.items() if isinstance(template, Mapping) else ():
        operator = _OPERATOR.fullmatch(value) if isinstance(value, str) else None
        if operator is not None:
            field = _OPERATORS.get(operator[1] + (operator[2] or "")) or _OPERATORS.get(operator[1])
            field_names.update({name: field} if field else {})
    return _JsonObject(field_names) if field_names else None


_LEVELS = {
    "trace": "trace",
    "debug": "debug",
    "info": "info",
    "warn": "warn",
    "warning": "warn",
    "error": "error",
    "critical": "critical",
    "fatal": "fatal",
}
_SCOPE = re.compile(r"[A-Za-z0-9_.:/-]+")
#: Envoy's scope ends with the place in its source, which says nothing to a user of a mesh.
_ENVOY_SCOPE = re.compile(r"(envoy [a-z0-9_.]+)(?: \S+)?")
_THREAD = re.compile(r"\tthread=\d+$")
_ENVOY_LINE = re.compile(
    r"\[(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+)\]\[\d+\]\[(\w+)\]\[([^\]]+)\] (?:\[[^\]]*\] )?(.*)"
)
_GO_LINE = re.compile(r"(\d{4})/(\d\d)/(\d\d) (\d\d:\d\d:\d\d) ([A-Z]+) (.*)")


def own_lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield each line that says something, with its number from 1.

    Envoy appends its thread to a message; of a message that ends with a line break, only the thread
    stands in the next line.
    """
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip() and not _THREAD.fullmatch(line):
            yield number, line


def own_line(line: str) -> Row:
    """Return ``time``, ``level``, ``scope`` and ``message`` of a line that istiod or a proxy wrote.

    A line of an unknown shape is a message without the other three. The scope ``default`` is
    Istio's name for lines that name none.
    """
    parts = line.split("\t")
    if len(parts) >= 3 and (level := _LEVELS.get(parts[1])):
        scope, message = "default", "\t".join(parts[2:])
        if len(parts) > 3:
            envoy = _ENVOY_SCOPE.fullmatch(parts[2])
            if envoy is not None or _SCOPE.fullmatch(parts[2]):
                scope = envoy[1] if envoy is not None else parts[2]
                message = "\t".join(parts[3:])
        return {
            "time": parts[0],
            "level": level,
            "scope": scope,
            "message": _THREAD.sub("", message),
        }
    if line.startswith("{"):
        document = _json(line)
        if isinstance(document, Mapping) and "level" in document:
            return {
                "time": document.get("time"),
                "level": _LEVELS.get(str(document["level"]).lower()),
                "scope": document.get("scope") or "default",
                "message": document.get("msg") or document.get("message") or line,
            }
    if (envoy := _ENVOY_LINE.fullmatch(line)) and (level := _LEVELS.get(envoy[2])):
        return {
            "time": envoy[1].replace(" ", "T") + "Z",
            "level": level,
            "scope": f"envoy {envoy[3]}",
            "message": envoy[4],
        }
    if (go := _GO_LINE.fullmatch(line)) and (level := _LEVELS.get(go[5].lower())):
        return {
            "time": f"{go[1]}-{go[2]}-{go[3]}T{go[4]}Z",
            "level": level,
            "scope": "default",
            "message": go[6],
        }
    return {"message": line}
