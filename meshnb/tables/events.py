"""The table ``events``: what Kubernetes itself reports."""

from __future__ import annotations

import re
from collections.abc import Iterator

from meshnb.sources.base import Question
from meshnb.tables.base import Column, Facts, Json, Listed, Row, Table, dig

EVENTS = Table(
    name="events",
    grain="one row per Kubernetes event",
    asks=Listed("v1", "events"),
    columns={
        "namespace": Column("string", "namespace of the object the event is about", key=True),
        "kind": Column("string", "kind of the object the event is about", key=True),
        "name": Column("string", "name of the object the event is about", key=True),
        "container": Column("string", "the container of the pod that it is about, if it is one"),
        "type": Column("string", "Normal or Warning"),
        "reason": Column(
            "string", "why it was written, one word, such as FailedCreate or Unhealthy"
        ),
        "message": Column("string", "the text"),
        "count": Column("Int64", "how often it happened", passing=True),
        "first_seen": Column("datetime64[us, UTC]", "when it happened first", passing=True),
        "last_seen": Column("datetime64[us, UTC]", "when it happened last", passing=True),
        "reporter": Column("string", "the component that reported it"),
    },
)


@EVENTS.reads
def _rows(event: Json, question: Question, facts: Facts) -> Iterator[Row]:
    when = dig(event, "eventTime") or dig(event, "metadata", "creationTimestamp")
    yield {
        "namespace": dig(event, "involvedObject", "namespace", default=""),
        "kind": dig(event, "involvedObject", "kind"),
        "name": dig(event, "involvedObject", "name"),
        "container": _container(dig(event, "involvedObject", "fieldPath")),
        "type": dig(event, "type"),
        "reason": dig(event, "reason"),
        "message": dig(event, "message"),
        "count": dig(event, "count") or dig(event, "series", "count") or 1,
        "first_seen": dig(event, "firstTimestamp") or when,
        "last_seen": dig(event, "lastTimestamp")
        or dig(event, "series", "lastObservedTime")
        or when,
        "reporter": dig(event, "source", "component") or dig(event, "reportingComponent"),
    }


def _container(field: Json) -> str | None:
    """Read the container from a field such as ``spec.containers{istio-proxy}``."""
    found = re.fullmatch(r"spec\.\w+\{([^{}]+)\}", str(field))
    return found[1] if found else None
