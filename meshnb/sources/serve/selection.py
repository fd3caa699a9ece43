"""Which objects of a list are wanted: label selectors, field selectors, and pages."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from meshnb.sources.serve.status import Status

Wanted = Callable[[dict[str, Any]], bool]

_SET = re.compile(r"^(?P<key>[^\s!=(),]+)\s+(?P<word>in|notin)\s*\((?P<values>[^()]*)\)$")
_EQUALITY = re.compile(r"^(?P<key>[^\s!=(),]+)\s*(?P<sign>==|=|!=)\s*(?P<value>[^\s!=(),]*)$")
_FIELD = re.compile(r"^(?P<key>[^\s!=,]+)\s*(?P<sign>==|=|!=)\s*(?P<value>.*)$")
_EXISTENCE = re.compile(r"^(?P<no>!?)\s*(?P<key>[^\s!=(),]+)$")

#: The fields that objects can be selected by; besides, the name and the namespace of all of them.
_FIELDS = {
    "pods": "spec.nodeName spec.restartPolicy spec.schedulerName spec.serviceAccountName "
    "spec.hostNetwork status.phase status.podIP status.nominatedNodeName",
    "events": "involvedObject.kind involvedObject.namespace involvedObject.name involvedObject.uid "
    "involvedObject.apiVersion involvedObject.resourceVersion involvedObject.fieldPath reason "
    "reportingComponent source type",
    "namespaces": "status.phase",
    "nodes": "spec.unschedulable",
    "secrets": "type",
    "replicasets": "status.replicas",
    "replicationcontrollers": "status.replicas",
    "jobs": "status.successful",
    "certificatesigningrequests": "spec.signerName",
}


def labels_wanted(selector: str) -> Wanted:
    """Return whether an object's labels fit a label selector. Raises Status (400) if unreadable."""
    tests = [_label_test(part.strip(), selector) for part in _parts(selector)]

    def fits(item: dict[str, Any]) -> bool:
        labels = item["metadata"].get("labels") or {}
        return all(test(labels) for test in tests)

    return fits


def _parts(selector: str) -> list[str]:
    return [part for part in re.split(r",(?![^()]*\))", selector) if part.strip()]


def _label_test(part: str, selector: str) -> Wanted:
    if found := _SET.match(part):
        key, values = found["key"], {value.strip() for value in found["values"].split(",")}
        if found["word"] == "in":
            return lambda labels: labels.get(key) in values
        return lambda labels: labels.get(key) not in values
    if found := _EQUALITY.match(part):
        key, value = found["key"], found["value"]
        if found["sign"] == "!=":
            return lambda labels: labels.get(key) != value
        return lambda labels: labels.get(key) == value
    if found := _EXISTENCE.match(part):
        key, absent = found["key"], bool(found["no"])
        return lambda labels: (key in labels) != absent
    raise Status(400, f"unable to parse requirement {part!r} of label selector {selector!r}")


def fields_wanted(selector: str, resource: str) -> Wanted:
    """Return whether an object fits a field selector. Raises Status (400) for unknown fields."""
    known = ("metadata.name", "metadata.namespace", *_FIELDS.get(resource, "").split())
    tests: list[Wanted] = []
    for part in _parts(selector):
        found = _FIELD.match(part.strip())
        if found is None:
            raise Status(400, f"invalid selector: {selector!r}; can't understand {part!r}")
        key, sign, value = found["key"], found["sign"], found["value"]
        if key not in known:
            raise Status(400, f"field label not supported: {key}")
        tests.append(_field_test(key, value, negated=sign == "!="))
    return lambda item: all(test(item) for test in tests)


def _field_test(key: str, value: str, *, negated: bool) -> Wanted:
    def fits(item: dict[str, Any]) -> bool:
        found: Any = item
        for step in key.split("."):
            found = found.get(step) if isinstance(found, dict) else None
        # A field that is absent is empty, and a flag that is absent is off.
        text = {None: "false" if value in ("true", "false") else "", True: "true", False: "false"}
        shown = text[found] if found is None or isinstance(found, bool) else str(found)
        return (shown == value) != negated

    return fits


def page_of(
    items: Sequence[dict[str, Any]], limit: int, token: str, version: str
) -> tuple[Sequence[dict[str, Any]], dict[str, Any]]:
    """Return the objects of one page, and what the list's metadata says of the next one."""
    start = _start(token)
    end = start + limit if limit else len(items)
    metadata: dict[str, Any] = {"resourceVersion": version}
    if end < len(items):
        content = json.dumps({"v": "meta.k8s.io/v1", "rv": version, "start": end})
        metadata["continue"] = base64.urlsafe_b64encode(content.encode()).decode().rstrip("=")
        metadata["remainingItemCount"] = len(items) - end
    return items[start:end], metadata


def _start(token: str) -> int:
    if not token:
        return 0
    try:
        start = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))["start"]
        return max(int(start), 0)
    except (ValueError, KeyError, TypeError) as error:
        raise Status(400, f"continue key is not valid: {error}") from None


def selected(items: Iterable[dict[str, Any]], wanted: Iterable[Wanted]) -> list[dict[str, Any]]:
    """Return the objects that fit every one of the selectors, in their order."""
    tests = list(wanted)
    return [item for item in items if all(test(item) for test in tests)]
