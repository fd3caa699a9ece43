"""Whether requests went through what an object made, since it is in force: the rung ``used``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from meshnb.tables import Facts
from meshnb.traces.mesh import ConfigObject
from meshnb.traces.rungs.holdings import AGREES, Effect
from meshnb.traces.rungs.ladder import NOT_REACHED, PASSED, UNDECIDED, Cited, Rung, Standing, where
from meshnb.traces.rungs.reach import Reach
from meshnb.traces.rungs.scope import API_ROUTES

#: Kinds that choose a cluster or shape one: a request names the one it took.
_BY_CLUSTER = (
    "VirtualService", "DestinationRule", "ServiceEntry", "WorkloadEntry", "Service", *API_ROUTES,
)  # fmt: skip
#: Kinds that are asked for each request or connection that comes in.
_INBOUND = ("AuthorizationPolicy", "PeerAuthentication", "RequestAuthentication")
#: Envoy's details of a request that RBAC refused, with the policy or ``none``.
_DENIED = "rbac_access_denied_matched_policy["
#: The columns of the access log that say whether a line is of an object.
_SEEN = (
    *("proxy", "start_time", "cluster", "authority", "direction", "details"),
    "downstream_local_address",
)


class Usage:
    """Counts requests of one source that went through what an object made."""

    def __init__(self, facts: Facts, item: ConfigObject) -> None:
        """Split the access logs by proxy."""
        self.facts = facts
        self.item = item
        self._lines = facts.once(_lines)

    def rung(self, held: Mapping[str, tuple[Reach, Effect]]) -> Rung:
        """Return the rung, from the proxies that the object is in force in."""
        name = "used"
        if not any(effect.state == AGREES for _, effect in held.values()):
            return Rung(name, NOT_REACHED, "It is in force in no proxy that shows it.")
        if self.item.kind not in (*_BY_CLUSTER, *_INBOUND, "Gateway"):
            says = f"Access logs do not say which requests a {self.item.kind} had to do with."
            return Rung(name, UNDECIDED, says)
        standings = []
        total = failed = denied = 0
        for proxy, (reach, effect) in held.items():
            if effect.state != AGREES:
                continue
            rows = self._of(reach, effect)
            if rows is None:
                standings.append(Standing(proxy, UNDECIDED, "its access log was not recorded"))
                continue
            bad, refused = self._failed(rows), self._denied(rows)
            total, failed, denied = total + len(rows), failed + bad, denied + refused
            table = str(rows.attrs["table"])
            outcome = PASSED if len(rows) else UNDECIDED
            says = f"{_count(len(rows))}, of which {bad} failed" if len(rows) else "no request"
            standings.append(Standing(proxy, outcome, says, Cited.of(table, rows)))
        if not total:
            says = "No request is recorded that went through it since."
            return Rung(name, UNDECIDED, says, tuple(standings))
        more = f", of which {failed} failed" if failed else ""
        if denied:
            more += f" ({denied} refused by it)"
        return Rung(name, PASSED, f"{_count(total)} went through it since{more}.", tuple(standings))

    def _of(self, reach: Reach, effect: Effect) -> pd.DataFrame | None:
        """Return the lines of a proxy that an object had to do with; None without a log."""
        if reach.pod.mesh in ("ambient", "ztunnel"):
            return self._of_ztunnel(reach)
        rows = self._lines.get(reach.proxy)
        if rows is None:
            return None
        since = self.item.changed
        if effect.since is not None and effect.since > since:
            since = effect.since
        # Rows are chosen once, at the end: each time costs as much as all that is looked at here.
        chosen = (rows["start_time"] >= since).fillna(value=False).astype(bool)
        if self.item.kind in _BY_CLUSTER:
            chosen &= rows["cluster"].isin(list(effect.clusters)).astype(bool)
            if self.item.kind == "VirtualService" and effect.domains:
                pairs = zip(chosen.tolist(), rows["authority"].tolist(), strict=True)
                named = [so_far and _named(host, effect.domains) for so_far, host in pairs]
                chosen &= pd.Series(named, index=rows.index, dtype=bool)
        elif self.item.kind == "Gateway":
            ports = tuple(effect.domains)
            local = rows["downstream_local_address"].fillna("")
            chosen &= local.str.endswith(ports).astype(bool)
        elif reach.pod.mesh == "sidecar":
            chosen &= (rows["direction"] == "inbound").fillna(value=False).astype(bool)
        found: pd.DataFrame = rows[chosen]
        found.attrs["table"] = "access_log"
        return found

    def _of_ztunnel(self, reach: Reach) -> pd.DataFrame | None:
        log = self.facts["ztunnel_access_log"]
        pods = {(pod.namespace, pod.pod) for pod in (reach.pod, *reach.others)}
        mine = log[
            (log["ztunnel"] == reach.proxy.rpartition(".")[0]) & (log["direction"] == "inbound")
        ]
        if not len(log):
            return None
        mine = mine[(mine["time"] >= self.item.changed).fillna(value=False).astype(bool)]
        pairs = zip(mine["destination_namespace"], mine["destination_pod"], strict=True)
        found = where(mine, (pair in pods for pair in pairs))
        found.attrs["table"] = "ztunnel_access_log"
        return found

    def _failed(self, rows: pd.DataFrame) -> int:
        if "error" in rows:
            return int(rows["error"].notna().sum())
        return int(rows["failed"].sum())

    def _denied(self, rows: pd.DataFrame) -> int:
        """Count what an AuthorizationPolicy itself refused, as far as logs name it."""
        if self.item.kind != "AuthorizationPolicy":
            return 0
        if "error" in rows:
            return int(rows["error"].fillna("").str.contains("policy", regex=False).sum())
        own = f"{_DENIED}ns[{self.item.namespace}]-policy[{self.item.name}]"
        nobody = f"{_DENIED}none]"
        allows = self.item.spec.get("action", "ALLOW") == "ALLOW"
        details = rows["details"].fillna("")
        named = details.str.startswith(own)
        return int((named | (details.str.startswith(nobody) if allows else named)).sum())


def _lines(facts: Facts) -> Mapping[str, pd.DataFrame]:
    """Return what is looked at of each proxy's access log, and whether the request failed."""
    log = facts["access_log"]
    bad = (log["response_code"] >= 500) | (log["response_code"] == 0)
    flagged = log["response_flags"].fillna("-") != "-"
    refused = log["details"].fillna("").str.startswith(_DENIED)
    seen = log[list(_SEEN)].assign(failed=bad.fillna(value=False) | flagged | refused)
    return {str(proxy): rows for proxy, rows in seen.groupby("proxy")}


def _named(authority: Any, domains: frozenset[str]) -> bool:
    """Whether a request's authority is one of a virtual host's domains."""
    if not isinstance(authority, str):
        return False
    bare = authority.rpartition(":")[0] if authority.rpartition(":")[2].isdecimal() else authority
    if authority in domains or bare in domains or "*" in domains:
        return True
    return any(one.startswith("*") and bare.endswith(one[1:]) for one in domains)


def _count(number: int) -> str:
    return "1 request" if number == 1 else f"{number} requests"
