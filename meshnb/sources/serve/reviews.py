"""Access reviews: may I? What reads may be done, but for what is or was refused.

``kubectl auth can-i`` asks in Kubernetes' binary form (``k8s`` and a zero byte, then protocol
buffers: the generated.proto files of k8s.io/apimachinery and k8s.io/api), other clients in JSON.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from meshnb.sources.serve.discovery import REVIEW_VERSION, REVIEWS
from meshnb.sources.serve.faults import Refuse
from meshnb.sources.serve.replay import Replay
from meshnb.sources.serve.request import ApiRequest
from meshnb.sources.serve.status import Status

_READING = ("get", "list", "watch")
#: What there is of a pod besides the pod.
_PARTS = ("", "log", "portforward")

_BINARY = b"k8s\x00"
#: The fields of the messages, by their numbers: the envelope, a review, what it is about.
_RAW, _SPEC, _ATTRIBUTES = 2, 2, 1
_NAMES = ("namespace", "verb", "group", "version", "resource", "subresource", "name")
_LENGTH_DELIMITED, _VARIABLE = 2, 0


def review_answer(replay: Replay, resource: str, body: bytes) -> dict[str, Any]:
    """Return the review with its status. Raises Status (400) when it cannot be read."""
    try:
        spec = _binary_spec(body, resource) if body.startswith(_BINARY) else _json_spec(body)
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise Status(400, f"the review cannot be read: {error}") from None
    attributes = spec.get("resourceAttributes") or {}
    status = (
        _access(replay, attributes) if resource == "selfsubjectaccessreviews" else _rules(replay)
    )
    return {
        "apiVersion": REVIEW_VERSION,
        "kind": REVIEWS[resource],
        "metadata": {},
        "spec": spec,
        "status": status,
    }


def _json_spec(body: bytes) -> dict[str, Any]:
    return dict(json.loads(body)["spec"])


def _binary_spec(body: bytes, resource: str) -> dict[str, Any]:
    spec = _fields(_fields(_fields(body[len(_BINARY) :])[_RAW])[_SPEC])
    about = spec.get(_ATTRIBUTES, b"")
    if resource == "selfsubjectrulesreviews":
        return {"namespace": about.decode()}
    found = _fields(about)
    named = {name: found.get(place, b"").decode() for place, name in enumerate(_NAMES, start=1)}
    return {"resourceAttributes": named}


def _fields(content: bytes) -> dict[int, bytes]:
    """Return the fields of a message that have a length; numbers are skipped."""
    found: dict[int, bytes] = {}
    place = 0
    while place < len(content):
        key, place = _number(content, place)
        if key & 7 not in (_LENGTH_DELIMITED, _VARIABLE):
            raise ValueError(f"field {key >> 3} is of an unknown type")
        size, place = _number(content, place)
        if key & 7 == _LENGTH_DELIMITED:
            found[key >> 3] = content[place : place + size]
            place += size
    return found


def _number(content: bytes, place: int) -> tuple[int, int]:
    """Return the number that begins at a place, seven bits a byte, and the place after it."""
    value = shift = 0
    while True:
        byte = content[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
        shift += 7


def _rules(replay: Replay) -> dict[str, Any]:
    return {
        "resourceRules": [
            {"verbs": list(_READING), "apiGroups": ["*"], "resources": ["*"]},
            {"verbs": ["create"], "apiGroups": [""], "resources": ["pods/portforward"]},
        ],
        "nonResourceRules": [{"verbs": ["get"], "nonResourceURLs": ["*"]}],
        "incomplete": any(isinstance(fault, Refuse) for fault in replay.misbehaviour.faults)
        or any(not one.allows(None) for one in replay.recorded.collections()),
    }


def _access(replay: Replay, asked: Mapping[str, Any]) -> dict[str, Any]:
    group, version = str(asked.get("group") or ""), str(asked.get("version") or "*")
    resource, part = str(asked.get("resource") or ""), str(asked.get("subresource") or "")
    verb, namespace = str(asked.get("verb") or ""), asked.get("namespace") or None
    request = ApiRequest(
        "POST",
        "",
        (verb,),
        f"{group}/{version}" if group else "v1",
        f"{resource}/{part}" if part else resource,
        namespace,
        asked.get("name") or None,
    )
    forwards = (verb, request.resource) == ("create", "pods/portforward")
    reads = verb in _READING and part in _PARTS
    allowed = all(
        one.allows(namespace)
        for one in replay.recorded.collections()
        if (one.group, one.resource, "") == (group, resource, part)
    )
    refused = replay.misbehaviour.standing(Refuse, request) is not None
    return {"allowed": (reads or forwards) and allowed and not refused}
