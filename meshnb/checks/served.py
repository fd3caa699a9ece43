"""What access logs say was served: the other side of a symptom, for checks to weigh it by."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import pandas as pd

from meshnb.symptoms import Symptom
from meshnb.symptoms.requests import split_address
from meshnb.tables import Facts
from meshnb.traces.failures import failed


class _Log:
    """An access log as a key: the same one is looked through once, not for each symptom."""

    def __init__(self, frame: pd.DataFrame) -> None:
        self.frame = frame

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Log) and other.frame is self.frame

    def __hash__(self) -> int:
        return id(self.frame)


@lru_cache(maxsize=1)
def _without_failures(log: _Log) -> pd.DataFrame:
    return log.frame[~failed(log.frame)]


def served(facts: Facts) -> pd.DataFrame:
    """Return the rows of the table ``access_log`` that report no failure."""
    return _without_failures(_Log(facts["access_log"]))


def served_by(facts: Facts, proxies: Iterable[str], since: Any = None) -> pd.DataFrame:
    """Return what these proxies have served, from a time on where one is given."""
    rows = served(facts)
    rows = rows[rows["proxy"].isin(list(proxies))]
    return rows if since is None else rows[(rows["start_time"] >= since).fillna(False).astype(bool)]


def called(facts: Facts, hosts: Iterable[str], since: Any = None) -> pd.DataFrame:
    """Return what callers' proxies got through to these hosts, from a time on."""
    rows = served(facts)
    if since is not None:
        rows = rows[(rows["start_time"] >= since).fillna(False).astype(bool)]
    wanted = tuple(f"|{host}" for host in hosts)
    clusters = rows["cluster"].fillna("").astype(str)
    return rows[clusters.str.startswith("outbound|") & clusters.str.endswith(wanted)]


def settled(symptom: Symptom) -> Any:
    """Return the time from which a cause is in force everywhere: the middle of its symptom.

    Proxies take over a change one by one, and connections from before it live on for a while.
    """
    first, last = symptom.first_seen, symptom.last_seen
    return first if first is None or last is None else first + (last - first) / 2


def goes_on(facts: Facts, symptom: Symptom, *, same_caller: bool) -> int:
    """Return how often a symptom's reporters served the same while it went on.

    The same is a request with the same method and path, from the same address where ``same_caller``
    is asked for, or a connection to the same port.
    """
    rows = served_by(facts, symptom.reporters, settled(symptom))
    return len(_alike(rows, symptom, same_caller))


def served_before(facts: Facts, symptom: Symptom) -> bool:
    """Whether a symptom's reporters had served the same callers the same before it began."""
    rows = served_by(facts, symptom.reporters)
    if symptom.first_seen is None:
        return False
    earlier = (rows["start_time"] < symptom.first_seen).fillna(False).astype(bool)
    return len(_alike(rows[earlier], symptom, same_caller=True)) > 0


def _alike(rows: pd.DataFrame, symptom: Symptom, same_caller: bool) -> pd.DataFrame:
    if symptom.kind == "request":
        asked = {(one.method, one.path.partition("?")[0]) for one in symptom.failures}
        paths = (str(path).partition("?")[0] for path in rows["path"].fillna(""))
        chosen = [pair in asked for pair in zip(rows["method"], paths, strict=True)]
    else:
        ports = {split_address(one.local_address)[1] for one in symptom.failures}
        chosen = [
            split_address(str(address))[1] in ports for address in rows["downstream_local_address"]
        ]
    rows = rows[pd.Series(chosen, index=rows.index, dtype=bool)]
    if not same_caller:
        return rows
    callers = {split_address(one.remote_address)[0] for one in symptom.failures}
    remote = [split_address(str(one))[0] in callers for one in rows["downstream_remote_address"]]
    return rows[pd.Series(remote, index=rows.index, dtype=bool)]
