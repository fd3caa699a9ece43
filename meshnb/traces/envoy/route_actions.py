"""What a route does with a request that it takes: the clusters it may choose, and on which terms.

(https://www.envoyproxy.io/docs/envoy/latest/api-v3/config/route/v3/route_components.proto)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from meshnb.tables.base import Json, dig, items, mapping
from meshnb.tables.envoy import milliseconds
from meshnb.traces.envoy.configs import made_from, services_of
from meshnb.traces.envoy.matchers import Headers, Undecided


@dataclass(frozen=True, slots=True)
class Choice:
    """A cluster that a route may choose, and for which share of requests.

    ``weighted`` is its entry among weighted clusters; ``unknown`` says why its name is not known.
    """

    name: str
    share: str = "whole"
    weighted: Mapping[str, Any] = field(default_factory=dict)
    unknown: str = ""


def clusters_of(action: Mapping[str, Any], headers: Headers) -> Iterator[Choice]:
    """Yield the clusters that a route may choose."""
    if isinstance(action.get("cluster"), str):
        yield Choice(action["cluster"])
        return
    if name := action.get("cluster_header"):
        value = headers.get(str(name))
        if isinstance(value, Undecided):
            yield Choice("", unknown=f"its cluster stands in a header: {value.reason}")
        else:
            yield Choice(value or "")
        return
    weighted = [mapping(one) for one in items(action, "weighted_clusters", "clusters")]
    total = sum(_weight(one) for one in weighted) or 1
    for one in weighted:
        if weight := _weight(one):
            share = f"{100 * weight / total:.4g}%"
            yield Choice(str(one.get("name", "")), share, one)
    if not weighted:
        yield Choice("", unknown="the route's cluster is chosen by an extension")


def _weight(cluster: Mapping[str, Any]) -> int:
    weight = cluster.get("weight", 0)
    return weight if isinstance(weight, int) else 0


def action_words(action: Mapping[str, Any], host: Mapping[str, Any], changes: str) -> str:
    """Return what else a route says: what it changes, how long it waits, how often it tries."""
    words = [changes] if changes else []
    timeout = milliseconds(action.get("timeout"))
    timeout = 15_000.0 if timeout is None else timeout
    words.append(f"within {timeout / 1000:g} s" if timeout else "without a limit of time")
    policy = mapping(action, "retry_policy") or mapping(host, "retry_policy")
    if policy:
        tries = policy.get("num_retries", 1)
        words.append(f"with {tries} retries after {policy.get('retry_on') or 'nothing'}")
    mirrors = [
        str(dig(one, "cluster", default="")) for one in items(action, "request_mirror_policies")
    ]
    if mirrors:
        words.append(f"with a copy to {' and '.join(mirrors)}")
    if items(action, "hash_policy"):
        words.append("to the host that its hash policy chooses")
    return ", " + ", ".join(words)


def objects_of(cluster: Json) -> str:
    """Return the object that shaped a cluster, or else the Services that it was made for."""
    return made_from(cluster) or ", ".join(services_of(cluster))
