"""What proxies hold, by proxy, and what an object made of itself there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import pandas as pd

from meshnb.tables import Facts
from meshnb.tables.base import Json, mapping
from meshnb.tables.envoy import CONFIG_DUMP, ConfigDump, proxy_of
from meshnb.traces.comparison import origin_at
from meshnb.traces.mesh import plain
from meshnb.traces.rungs.ladder import Cited

#: It is there and agrees; it is there, but says something else; nothing of it is there; or nobody
#: can tell.
AGREES, DIFFERS, ABSENT, UNKNOWN = "agrees", "differs", "absent", "unknown"


@dataclass(frozen=True, slots=True)
class Effect:
    """What a proxy has of an object."""

    state: str
    says: str
    cites: tuple[Cited, ...] = ()
    #: when the proxy took it over; None where that is not known
    since: pd.Timestamp | None = None
    #: the clusters that it shapes or leads to, and the domains that it decides for
    clusters: frozenset[str] = frozenset()
    domains: frozenset[str] = frozenset()
    #: what of it can never act, although it was accepted; empty when all of it can
    idle: str = ""


class Holdings:
    """What the proxies of one source hold, split by proxy once."""

    def __init__(self, facts: Facts) -> None:
        """Take the facts, and who did not say what it holds."""
        self.facts = facts
        self._tables: dict[str, Mapping[str, pd.DataFrame]] = {}
        self._parts: dict[tuple[str, str, str], list[Json]] = {}
        proxies = facts["proxies"]
        self.silent = {
            str(proxy): str(plain(why) or "was never asked")
            for proxy, answered, why in zip(
                proxies["proxy"], proxies["answered"], proxies["silent_because"], strict=True
            )
            if not plain(answered)
        }

    def rows(self, table: str, proxy: str) -> pd.DataFrame:
        """Return the rows of a proxy."""
        found = self.facts.by(table, "proxy").get(proxy)
        return self.facts[table].iloc[:0] if found is None else found

    def made_from(self, table: str, proxy: str, *titles: str) -> pd.DataFrame:
        """Return the rows of a proxy that were made from objects: ``Kind namespace/name``."""
        key = f"{table} {' '.join(titles)}"
        if key not in self._tables:
            frame = self.facts[table]
            paths = {path for path in frame["istio_config"].unique() if isinstance(path, str)}
            wanted = [path for path in paths if origin_at(path) in titles]
            mine = frame[frame["istio_config"].isin(wanted)]
            self._tables[key] = {str(name): rows for name, rows in mine.groupby("proxy")}
        return self._tables[key].get(proxy, self.facts[table].iloc[:0])

    @cached_property
    def _dumps(self) -> Mapping[str, ConfigDump]:
        return {
            proxy_of(question): dump
            for question, dump in self.facts.documents(CONFIG_DUMP)
            if isinstance(dump, ConfigDump)
        }

    def listed(self, proxy: str, section: str, fields: Iterable[str]) -> Iterator[Json]:
        """Yield what a section of a proxy's config dump lists in some fields."""
        for field in fields:
            key = proxy, section, field
            if key not in self._parts:
                dump = self._dumps.get(proxy)
                found = dump.value(section, field) if dump is not None else None
                self._parts[key] = found if isinstance(found, list) else []
            yield from self._parts[key]

    def listeners(self, proxy: str) -> Iterator[Json]:
        """Yield the listeners that a proxy uses, as they are in its config dump."""
        for entry in self.listed(proxy, "ListenersConfigDump", ("dynamic_listeners",)):
            active = mapping(entry, "active_state", "listener")
            if active:
                yield active

    def listening_since(self, proxy: str) -> pd.Timestamp | None:
        """Return when a proxy took over its newest listener."""
        rows = self.rows("listeners", proxy)
        return newest(rows[rows["state"] == "active"])


def newest(rows: pd.DataFrame) -> pd.Timestamp | None:
    """Return when the newest of these rows was taken over; None where that is not known."""
    latest = plain(rows["last_updated"].max()) if len(rows) else None
    return latest if isinstance(latest, pd.Timestamp) else None
