"""The picture of a change: the rungs an object climbs until proxies use it, and the broken one."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pandas as pd

from meshnb.checks import Outcome, Severity, Subject
from meshnb.guides.pictures.base import Chain, Link, State, age
from meshnb.symptoms.sync import STALE_AFTER_S
from meshnb.tables import Facts
from meshnb.traces.mesh import ConfigObject

#: Kinds that a proxy's configuration names as its origin (``istio.config`` in the metadata).
_NAMED = ("VirtualService", "DestinationRule")


def change(facts: Facts, item: ConfigObject, outcomes: Sequence[Outcome]) -> Chain:
    """Return the ladder of one object: stored, sound, sent, accepted, in use."""
    return Chain(
        f"How far {item} got",
        (
            Link(
                "stored",
                f"changed {item.changed:%H:%M:%S} UTC, "
                f"{age((facts.now - item.changed).total_seconds())} before the recording",
                State.FINE,
            ),
            _sound(item, outcomes),
            _sent(facts, item),
            _accepted(facts),
            _used(facts, item),
        ),
        ladder=True,
    )


def carried(facts: Facts, item: ConfigObject) -> dict[str, pd.DataFrame]:
    """Return the routes and the clusters of all proxies that name an object as their origin."""
    kind = re.sub(r"(?<=[a-z])(?=[A-Z])", "-", item.kind).lower()
    end = f"/namespaces/{item.namespace}/{kind}/{item.name}"
    found = {}
    for table in ("routes", "clusters"):
        frame = facts[table]
        found[table] = frame[frame["istio_config"].fillna("").str.endswith(end)]
        found[table].attrs["table"] = table
    return found


def _sound(item: ConfigObject, outcomes: Sequence[Outcome]) -> Link:
    subject = Subject(item.kind, item.namespace, item.name)
    broken = [
        (outcome.check, finding)
        for outcome in outcomes
        for finding in outcome.findings
        if subject == finding.subject
        and (finding.severity or outcome.check.severity) is not Severity.INFO
    ]
    if broken:
        check, finding = broken[0]
        return Link("sound", f"{check.code}: {finding.message}", State.BROKEN)
    return Link("sound", "no check finds fault with it", State.FINE)


def _sent(facts: Facts, item: ConfigObject) -> Link:
    status = facts["proxy_status"]
    if not len(status):
        return Link("sent", "no istiod said what it sent", State.UNKNOWN)
    last = status.groupby("proxy")["sent_at"].max()
    since = int((last >= item.changed).sum())
    if not since:
        return Link("sent", "nothing was sent to any proxy since the change", State.UNKNOWN)
    return Link(
        "sent", f"istiod sent to {since} of {len(last)} proxies since the change", State.FINE
    )


def _accepted(facts: Facts) -> Link:
    status = facts["proxy_status"]
    if not len(status):
        return Link("accepted", "no istiod said what was accepted", State.UNKNOWN)
    refused = status[status["sync"] == "ERROR"]
    if len(refused):
        kinds = ", ".join(sorted(set(refused["xds"])))
        return Link(
            "accepted",
            f"{refused['proxy'].nunique()} proxies refuse {kinds}: {refused['error'].iloc[0]}",
            State.BROKEN,
        )
    late = status[(status["sync"] == "STALE") & (status["age_s"] > STALE_AFTER_S)]
    if len(late):
        return Link(
            "accepted", f"{late['proxy'].nunique()} proxies have not answered yet", State.BROKEN
        )
    away = sorted(set(facts["proxies"]["proxy"]) - set(status["proxy"]))
    if away:
        return Link(
            "accepted", f"not by {', '.join(away[:3])}: connected to no istiod", State.BROKEN
        )
    return Link("accepted", f"by all {status['proxy'].nunique()} proxies", State.FINE)


def _used(facts: Facts, item: ConfigObject) -> Link:
    if item.kind not in _NAMED:
        return Link("in use", f"a proxy does not say what it has from a {item.kind}", State.UNKNOWN)
    found = [
        f"{table} of {rows['proxy'].nunique()} proxies"
        for table, rows in carried(facts, item).items()
        if len(rows)
    ]
    if not found:
        return Link("in use", "no route and no cluster of any proxy names it", State.ODD)
    return Link("in use", f"{' and '.join(found)} name it", State.FINE)
