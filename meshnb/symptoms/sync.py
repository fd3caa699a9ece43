"""Symptoms between istiod and the proxies: refused, late or missing configuration."""

from __future__ import annotations

from collections.abc import Iterator

from meshnb.symptoms.base import Symptom
from meshnb.tables import Facts
from meshnb.traces.mesh import Mesh, plain
from meshnb.traces.request import Failures

#: A push is acknowledged within seconds; only what is open for longer is a symptom, in seconds.
STALE_AFTER_S = 30.0


def sync(facts: Facts, mesh: Mesh, failures: Failures) -> Iterator[Symptom]:
    """Yield one symptom per way in which proxies are out of step, and one for a silent istiod."""
    status = facts["proxy_status"]
    refused = status[status["sync"] == "ERROR"]
    for xds, rows in refused.groupby("xds"):
        yield Symptom(
            kind="sync",
            message=f"{rows['proxy'].nunique()} proxies refuse their {xds} configuration: "
            f"{rows['error'].iloc[0]}",
            count=len(rows),
            table="proxy_status",
            rows=tuple(rows.index),
            first_seen=plain(rows["sent_at"].min()),
            last_seen=facts.now,
            weight=float(len(rows)),
            flags=frozenset({"ERROR"}),
            details=str(rows["error"].iloc[0]),
            reporters=tuple(dict.fromkeys(rows["proxy"])),
        )
    late = status[(status["sync"] == "STALE") & (status["age_s"] > STALE_AFTER_S)]
    if len(late):
        yield Symptom(
            kind="sync",
            message=f"{late['proxy'].nunique()} proxies have not acknowledged their configuration "
            f"for up to {late['age_s'].max():.0f} s",
            count=len(late),
            table="proxy_status",
            rows=tuple(late.index),
            last_seen=facts.now,
            weight=float(len(late)),
            flags=frozenset({"STALE"}),
            reporters=tuple(dict.fromkeys(late["proxy"])),
        )
    yield from _disconnected(facts, connected=set(status["proxy"]))


def _disconnected(facts: Facts, connected: set[str]) -> Iterator[Symptom]:
    proxies = facts["proxies"]
    if not connected:
        if len(proxies):
            yield Symptom(
                kind="control plane",
                message=f"no istiod says that any of the {len(proxies)} proxies is connected to it",
                count=len(proxies),
                table="proxies",
                rows=tuple(proxies.index),
                last_seen=facts.now,
                weight=float(len(proxies)),
                reporters=tuple(proxies["proxy"]),
            )
        return
    away = proxies[~proxies["proxy"].isin(list(connected))]
    if len(away):
        yield Symptom(
            kind="sync",
            message=f"{', '.join(away['proxy'])} not connected to any istiod that was asked",
            count=len(away),
            table="proxies",
            rows=tuple(away.index),
            last_seen=facts.now,
            weight=float(len(away)),
            flags=frozenset({"DISCONNECTED"}),
            reporters=tuple(away["proxy"]),
        )
