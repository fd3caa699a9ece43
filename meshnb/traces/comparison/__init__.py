"""What a proxy holds, compared with its siblings and with what istiod holds for it.

Resources are compared one by one: clusters, listeners, route configurations, the endpoints of
clusters that istiod fills, extension configurations, and the roots that are trusted. Versions,
nonces and times are left out, and so is the order of resources, of virtual hosts, of their domains
and of endpoints; the order of routes and filters counts, because Envoy takes the first that
matches. A proxy's own name and addresses stand for themselves, so that two pods of one workload
agree. Priorities and weights of localities are left out, too: they follow from where a proxy runs.
"""

from __future__ import annotations

from meshnb.traces.comparison.base import COMPARED, Compared, Comparison, Difference
from meshnb.traces.comparison.groups import Group, groups
from meshnb.traces.comparison.istiods import compare_with_istiod
from meshnb.traces.comparison.odd_ones import OddOne, odd_ones_out
from meshnb.traces.comparison.origins import origin_at
from meshnb.traces.comparison.siblings import compare_proxies, compare_with_siblings

__all__ = [
    "COMPARED",
    "Compared",
    "Comparison",
    "Difference",
    "Group",
    "OddOne",
    "compare_proxies",
    "compare_with_istiod",
    "compare_with_siblings",
    "groups",
    "odd_ones_out",
    "origin_at",
]
