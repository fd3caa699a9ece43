"""Symptoms between istiod and the proxies: refused, late or missing configuration."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from meshnb.sources import HttpQuestion, Question
from meshnb.symptoms.base import Symptom
from meshnb.tables import Facts
from meshnb.tables.base import Got
from meshnb.traces.failures import Failures
from meshnb.traces.mesh import Mesh, plain

#: The page on which an istiod lists the proxies that are connected to it.
_SYNC = Got(15014, "/debug/syncz")
#: A push is acknowledged within seconds; only what is open for longer is a symptom, in seconds.
STALE_AFTER_S = 30.0


def sync(facts: Facts, mesh: Mesh, failures: Failures) -> Iterator[Symptom]:
    """Yield one symptom per way in which proxies are out of step, and one for a silent istiod."""
    status = facts["proxy_status"]
    refused = status[status["sync"] == "ERROR"]
    for xds, rows in refused.groupby("xds"):
        yield Symptom(
            kind="sync",
            message=f"{_counted(rows)} refused {xds} configuration: {rows['error'].iloc[0]}",
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
            message=f"no acknowledgement from {_counted(late)} for up to "
            f"{late['age_s'].max():.0f} s",
            count=len(late),
            table="proxy_status",
            rows=tuple(late.index),
            last_seen=facts.now,
            weight=float(len(late)),
            flags=frozenset({"STALE"}),
            reporters=tuple(dict.fromkeys(late["proxy"])),
        )
    yield from _disconnected(facts, mesh, connected=set(status["proxy"]))


def _disconnected(facts: Facts, mesh: Mesh, connected: set[str]) -> Iterator[Symptom]:
    proxies = facts["proxies"]
    # A proxy may be connected to an istiod that was not asked, or refused to tell. When none tells,
    # those that were asked and keep silent serve nobody.
    serving = {(pod.namespace, pod.pod) for pod in mesh.pods if pod.mesh == "istiod" and pod.ready}
    heard = {_pod(question) for question, page in facts.documents(_SYNC) if isinstance(page, list)}
    if not connected:
        silent = {
            _pod(question) for question in facts.select(_SYNC) if facts.answer(question).silent
        }
        hidden = not serving and facts.gaps("pods")  # nobody was asked, then
        if len(proxies) and serving <= heard | silent and not hidden:
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
    unreached = facts.unreached()
    wanted = {
        pod.proxy for pod in mesh.pods if pod.running and (pod.namespace, pod.pod) not in unreached
    }
    away = proxies[proxies["proxy"].isin(list(wanted - connected))]
    if len(away) and serving <= heard:
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


def _counted(rows: pd.DataFrame) -> str:
    proxies = rows["proxy"].nunique()
    return "1 proxy" if proxies == 1 else f"{proxies} proxies"


def _pod(question: Question) -> tuple[str, str]:
    assert isinstance(question, HttpQuestion)
    return question.namespace, question.pod
