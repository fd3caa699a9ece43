"""Kubernetes and Istio objects at two moments: what was written, changed and deleted, and by whom.

What the cluster writes down by itself is left out: status, events, leases, endpoints, and objects
that another one controls, such as the pods of a Deployment.
"""

from __future__ import annotations

import base64
import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from meshnb.errors import NotRecorded
from meshnb.sources.base import Answer, ListQuestion
from meshnb.tables import Facts
from meshnb.tables.base import Got, Json, dig, items, mapping, moment
from meshnb.tables.metadata import owner_of
from meshnb.tables.x509 import read_first_certificate
from meshnb.traces.moments.base import Change, Edit, clock, edits, first_edits
from meshnb.traces.moments.rows import PASSING_ANNOTATIONS

#: What nobody writes: the cluster's own notes, and what other objects are made into.
_NOT_WRITTEN = frozenset(
    {
        *("events", "leases", "endpoints", "endpointslices", "pods", "componentstatuses"),
        *("ipaddresses", "csinodes", "volumeattachments", "csistoragecapacities"),
        *("resourceslices", "certificatesigningrequests", "flowschemas"),
        *("prioritylevelconfigurations", "apiservices"),
    }
)
#: What istiod itself holds, of kinds that were perhaps not listed.
_ISTIOD_HOLDS = Got(15014, "/debug/configz")
#: What of an object's metadata somebody writes.
_WRITTEN = ("labels", "annotations", "finalizers", "deletionTimestamp")
#: Field managers that write ConfigMaps with root certificates into every namespace.
_CONTROL_PLANE = frozenset({"pilot-discovery", "kube-controller-manager"})
#: How a value that was taken out of a recording begins.
_TAKEN_OUT = "REDACTED"
#: Texts with more lines are compared as a whole.
_LINES = 2000

#: API group and resource.
Resource = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Unseen:
    """Something that could not be compared, and why."""

    what: str
    why: str

    def __str__(self) -> str:
        """Return one sentence without its full stop."""
        return f"{self.what}: {self.why}"


def object_changes(before: Facts, after: Facts) -> Iterator[Change | Unseen]:
    """Yield what is not as it was among the objects that both moments list.

    What the control plane writes into a namespace that came or went is left out.
    """
    found = list(_all_changes(before, after))
    spaces = {
        one.subject.removeprefix("Namespace "): one.state
        for one in found
        if isinstance(one, Change) and one.subject.startswith("Namespace ")
    }
    for one in found:
        space = one.subject.partition(" ")[2].partition("/")[0] if isinstance(one, Change) else ""
        alike = isinstance(one, Change) and spaces.get(space) == one.state != "changed"
        if not (alike and isinstance(one, Change) and _made_for(one)):
            yield one


def _made_for(change: Change) -> bool:
    """Whether an object belongs to every namespace, so that nobody wrote it."""
    kind = change.subject.partition(" ")[0]
    if kind == "ServiceAccount":
        return change.subject.endswith("/default")
    return kind == "ConfigMap" and change.by in _CONTROL_PLANE


def _all_changes(before: Facts, after: Facts) -> Iterator[Change | Unseen]:
    old, new = _lists(before), _lists(after)
    for resource in dict.fromkeys([*new, *old]):
        were = _objects(before, old.get(resource))
        are = _objects(after, new.get(resource))
        if isinstance(were, str) or isinstance(are, str):
            yield from _unseen(resource, were, are)
            continue
        spaces = [listed.namespaces for listed in (were, are) if listed.namespaces is not None]
        seen = frozenset.intersection(*spaces) if spaces else None
        yield from _changes(were, are, seen, after.now)

    old_held, new_held = _held(before), _held(after)
    listed = {kind for facts in (before, after) for kind in _listed_kinds(facts)}
    for kind in dict.fromkeys([*new_held, *old_held]):
        if kind[1] not in listed and old_held and new_held:
            nothing = _Listed({}, kind[1], "", None)
            were, are = old_held.get(kind, nothing), new_held.get(kind, nothing)
            yield from _changes(were, are, None, after.now)


def _unseen(resource: Resource, were: _Listed | str, are: _Listed | str) -> Iterator[Unseen]:
    name = f"{resource[1]}.{resource[0]}".rstrip(".")
    for side, other, which in ((were, are, "earlier"), (are, were, "later")):
        # Nothing on the one side and silence on the other may be the same.
        if isinstance(side, str) and (isinstance(other, str) or other.objects):
            yield Unseen(name, f"at the {which} moment {side}")
            return


@dataclass(frozen=True, slots=True)
class _Listed:
    """The objects of one resource by namespace and name."""

    objects: Mapping[tuple[str, str], Json]
    kind: str
    question: str
    #: the only namespaces that were listed; None for all
    namespaces: frozenset[str] | None


def _lists(facts: Facts) -> dict[Resource, list[ListQuestion]]:
    found: dict[Resource, list[ListQuestion]] = {}
    for question in facts.source.questions():
        if isinstance(question, ListQuestion) and question.resource not in _NOT_WRITTEN:
            group = question.api_version.rpartition("/")[0]
            found.setdefault((group, question.resource), []).append(question)
    return found


def _listed_kinds(facts: Facts) -> Iterator[str]:
    """Yield the kinds of Istio's objects of which a moment has lists."""
    frame = facts["istio_config"]
    named = {resource for _, resource in _lists(facts)}
    for kind in frame["kind"].dropna().unique():
        name = str(kind).lower()
        if named & {f"{name}s", f"{name}es", f"{name[:-1]}ies"}:
            yield str(kind)


def _held(facts: Facts) -> dict[Resource, _Listed]:
    """Return the objects that istiods say they hold, by group and kind; of all kinds they read."""
    found: dict[Resource, dict[tuple[str, str], Json]] = {}
    asked: dict[Resource, str] = {}
    for question, document in facts.documents(_ISTIOD_HOLDS):
        for item in document if isinstance(document, list) else ():
            group = str(dig(item, "apiVersion", default="")).rpartition("/")[0]
            key = group, str(dig(item, "kind", default=""))
            named = (
                str(dig(item, "metadata", "namespace", default="")),
                str(dig(item, "metadata", "name", default="")),
            )
            found.setdefault(key, {}).setdefault(named, item)
            asked.setdefault(key, str(question))
    return {key: _Listed(one, key[1], asked[key], None) for key, one in found.items()}


def _objects(facts: Facts, questions: list[ListQuestion] | None) -> _Listed | str:
    """Return what was listed, or why nothing was."""
    why = "they were never asked for"
    unknown: ListQuestion | None = None
    for question in questions or ():
        try:
            answer = facts.answer(question)
        except NotRecorded as error:
            why = error.what
            continue
        if answer.status == 404:  # the cluster does not know the resource, so it has none
            unknown = question
        elif answer.error is not None:
            why = f"there was no answer ({answer.error})"
        elif (answer.status or 0) >= 400:
            why = f"the answer was refused with status {answer.status}"
        elif not isinstance(document := facts.document(answer), Mapping):
            why = "the answer could not be read"
        else:
            return _listed(document, question, answer)
    if unknown is not None:
        return _Listed({}, "", str(unknown), None)
    return why


def _listed(document: Json, question: ListQuestion, answer: Answer) -> _Listed:
    kind = str(dig(document, "kind", default="")).removesuffix("List")
    found = {}
    for item in items(document, "items"):
        if isinstance(item, dict) and not (owner_of(item) or _ended(item)):
            name = str(dig(item, "metadata", "name", default=""))
            found[str(dig(item, "metadata", "namespace", default="")), name] = item
    spaces = answer.detail.get("namespaces")
    only = frozenset(map(str, spaces)) if isinstance(spaces, list | tuple) else None
    return _Listed(found, kind, str(question), only)


def _ended(item: Json) -> bool:
    """Whether it is a Job that has run to its end: those come and go."""
    return bool(dig(item, "status", "completionTime"))


def _changes(
    were: _Listed, are: _Listed, seen: frozenset[str] | None, now: datetime
) -> Iterator[Change]:
    for key in dict.fromkeys([*are.objects, *were.objects]):
        if seen is not None and key[0] not in seen:
            continue
        old, new = were.objects.get(key), are.objects.get(key)
        one = new if new is not None else old
        kind = str(dig(one, "kind") or are.kind or were.kind or "Object")
        subject = f"{kind} {'/'.join(part for part in key if part)}"
        if new is None:
            by, _ = _last_written(old)
            words = f"{subject} was deleted"
            # Who deleted it is not told; who had written it says whose it was.
            yield Change("object", subject, "removed", words, by=by, question=were.question)
        elif old is None:
            when = moment(dig(new, "metadata", "creationTimestamp"))
            by, _ = _last_written(new)
            words = f"{subject} was created{_by(by, when, now)}"
            yield Change("object", subject, "added", words, when=when, by=by, question=are.question)
        else:
            change = _changed(kind, subject, old, new, now, are.question)
            if change is not None:
                yield change


def _changed(
    kind: str, subject: str, old: Json, new: Json, now: datetime, question: str
) -> Change | None:
    found = tuple(_edits(old, new, secret=kind == "Secret"))
    state, words = "changed", ""
    if kind == "Secret":
        renewed = _renewed(old, new)
        if renewed is not None and all(edit.path.startswith("data.") for edit in found):
            state, words = "renewed", f"{subject} was renewed, {renewed}"
    again = _identity(old) != _identity(new)
    if not found and not again:
        return None
    if not words:
        words = f"{subject}: {first_edits(found, 2)}" if found else f"{subject} is the same"
        words += ", deleted and created again" if again else ""
    by, when = _last_written(new)
    if (by, when) == _last_written(old):
        by, when = "", None
    words += _by(by, when, now)
    return Change("object", subject, state, words, found, when, by, question=question)


def _identity(item: Json) -> Any:
    return dig(item, "metadata", "uid")


def _by(program: str, when: datetime | None, now: datetime) -> str:
    said = [f"by {program}"] if program else []
    said += [f"at {clock(when, now)}"] if when is not None else []
    return f" ({' '.join(said)})" if said else ""


def _last_written(item: Json) -> tuple[str, datetime | None]:
    """Return which program wrote an object last, other than its status, and when."""
    entries = [
        (time, str(dig(entry, "manager", default="")))
        for entry in items(item, "metadata", "managedFields")
        if dig(entry, "subresource") != "status"
        and (time := moment(dig(entry, "time"))) is not None
    ]
    if not entries:
        return "", None
    when, by = max(entries)
    return by, when


def _edits(old: Json, new: Json, *, secret: bool) -> Iterator[Edit]:
    yield from edits(_written(old, new), _written(new, old))
    for part in ("data", "stringData"):
        were, are = mapping(old, part), mapping(new, part)
        for key in dict.fromkeys([*are, *were]):
            yield from _value_edits(f"{part}.{key}", were.get(key), are.get(key), secret=secret)


def _written(item: Json, other: Json) -> Json:
    """Return what somebody writes of an object; of its values, see :func:`_value_edits`."""
    told = {
        name: one
        for name, one in item.items()
        if name not in ("apiVersion", "kind", "metadata", "status", "data", "stringData")
    }
    if "spec" not in told and "spec" in other:
        told["spec"] = {}
    metadata = {name: dig(item, "metadata", name) for name in _WRITTEN}
    annotations = metadata["annotations"]
    if isinstance(annotations, dict):
        metadata["annotations"] = {
            name: one for name, one in annotations.items() if name not in PASSING_ANNOTATIONS
        }
    told["metadata"] = {name: one for name, one in metadata.items() if one}
    for name in ("labels", "annotations"):
        # Field by field, not as one: an object without labels has an empty set of them.
        if dig(other, "metadata", name):
            told["metadata"].setdefault(name, {})
    return told


def _value_edits(path: str, old: Any, new: Any, *, secret: bool) -> Iterator[Edit]:
    if old == new:
        return
    one, other = ("" if value is None else str(value) for value in (old, new))
    if secret:
        marks = [text.split(":") for text in (one, other) if text.startswith(_TAKEN_OUT)]
        # A mark without a digest says nothing, and a value with one is no certificate.
        if old is not None and new is not None and any(len(mark) < 2 for mark in marks):
            return
        yield Edit(path, "a value" * (old is not None), "another value" * (new is not None))
        return
    lines = one.splitlines(), other.splitlines()
    if old is None or new is None or max(map(len, lines)) < 2 or sum(map(len, lines)) > _LINES:
        yield from edits({path: old}, {path: new})
        return
    matcher = difflib.SequenceMatcher(None, *lines, autojunk=False)
    for what, first, last, begin, end in matcher.get_opcodes():
        if what != "equal":
            gone, come = lines[0][first:last], lines[1][begin:end]
            place = f"{path}, line {begin + 1}"
            yield Edit(place, *("\n".join(part)[:_LINES] for part in (gone, come)))


def _renewed(old: Json, new: Json) -> str | None:
    """Say until when a Secret's certificate is valid, when it is another one than before."""
    for key, value in mapping(new, "data").items():
        was = mapping(old, "data").get(key)
        if was is None or was == value or not isinstance(value, str):
            continue
        certificate = _certificate(value)
        earlier = _certificate(was) if isinstance(was, str) else None
        if certificate is not None and earlier is not None and certificate > earlier:
            return f"valid until {certificate:%Y-%m-%d %H:%M} UTC"
    return None


def _certificate(value: str) -> datetime | None:
    """Return when the first certificate in a Secret's value ends; None when there is none."""
    try:
        return read_first_certificate(base64.b64decode(value)).not_after
    except ValueError:  # binascii.Error is one, too
        return None
