"""What happened when: changes, roll-outs, warnings and symptoms in one order of time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from meshnb.diagnosis import Diagnosis
from meshnb.guides.shared import plural
from meshnb.tables import Facts
from meshnb.traces.mesh import plain

#: Changes are told from so long before the first symptom on, or before the recording without any.
_BEFORE = timedelta(hours=1)
#: Warnings are many, and tell from so long before on.
_WARNED = timedelta(minutes=10)
#: So many moments are told; those in the middle are left out first.
_MOST = 80


@dataclass(frozen=True, slots=True)
class Moment:
    """Something that happened."""

    time: datetime
    #: change, rollout, warning, symptom or recording
    kind: str
    what: str


@dataclass(frozen=True, slots=True)
class Chronicle:
    """What happened, in the order of time."""

    moments: tuple[Moment, ...]
    #: what the times are counted from: the first symptom, or the recording
    zero: datetime
    #: how many changes there were before all this
    earlier: int
    #: how many moments are left out
    left_out: int


def chronicle(diagnosis: Diagnosis) -> Chronicle:
    """Return what happened around the symptoms of a source."""
    facts = diagnosis.facts
    seen = [symptom.first_seen for symptom in diagnosis.symptoms if symptom.first_seen is not None]
    zero = min(seen, default=facts.now)
    every = sorted(
        (
            *_changes(facts),
            *_rollouts(facts),
            *_warnings(facts, zero - _WARNED),
            *_symptoms(diagnosis),
        ),
        key=lambda moment: moment.time,
    )
    told = [moment for moment in every if moment.time >= zero - _BEFORE]
    cut = told[: _MOST // 2] + told[-_MOST // 2 :] if len(told) > _MOST else told
    recorded = Moment(facts.now, "recording", "The last answer was recorded.")
    return Chronicle((*cut, recorded), zero, len(every) - len(told), len(told) - len(cut))


def _changes(facts: Facts) -> Iterator[Moment]:
    config = facts["istio_config"].dropna(subset=["changed"])
    for kind, namespace, name, changed, created in zip(
        *(config[column] for column in ("kind", "namespace", "name", "changed", "created")),
        strict=True,
    ):
        where = f"{namespace}/{name}" if plain(namespace) else str(name)
        verb = "was created" if plain(created) == plain(changed) else "was changed"
        yield Moment(changed.to_pydatetime(), "change", f"{kind} {where} {verb}.")


def _rollouts(facts: Facts) -> Iterator[Moment]:
    rollouts = facts["rollouts"].dropna(subset=["created"])
    for kind, namespace, name, number, created in zip(
        *(
            rollouts[column]
            for column in ("workload_kind", "namespace", "workload", "rollout", "created")
        ),
        strict=True,
    ):
        version = f" version {number}" if plain(number) is not None else ""
        what = f"{kind} {namespace}/{name} rolled out{version}."
        yield Moment(created.to_pydatetime(), "rollout", what)


def _warnings(facts: Facts, since: datetime) -> Iterator[Moment]:
    """Yield the warnings that were given since; one that was given before too says since when."""
    events = facts["events"]
    warned = events[(events["type"] == "Warning") & (events["last_seen"] >= since)]
    for event in warned.to_dict("records"):
        first, last = plain(event["first_seen"]), event["last_seen"]
        count = plain(event["count"]) or 1
        began = f" since {first:%H:%M:%S}" if first is not None and first != last else ""
        times = f" ({plural(count, 'time')}{began})" if count > 1 else ""
        where = f"{plain(event['namespace']) or ''}/{event['name']}".lstrip("/")
        what = f"{event['kind']} {where}: {event['reason']}: {event['message']}{times}"
        yield Moment(last.to_pydatetime(), "warning", what)


def _symptoms(diagnosis: Diagnosis) -> Iterator[Moment]:
    for symptom in diagnosis.symptoms:
        first, last = symptom.first_seen, symptom.last_seen
        if first is not None:
            yield Moment(first, "symptom", f"{symptom.id} first: {symptom.message}")
        if last is not None and last != first:
            count = plural(symptom.count, "time")
            yield Moment(last, "symptom", f"{symptom.id} last, after {count}: {symptom.message}")
