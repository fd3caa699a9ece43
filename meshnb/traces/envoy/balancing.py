"""Which hosts of a cluster a proxy may send a request to, and which not, and why.

Envoy's rules (https://www.envoyproxy.io/docs/envoy/latest/intro/arch_overview/upstream/load_balancing/):
priorities by how many of their hosts are healthy, with a factor of 1.4; below the panic threshold
(half of the hosts unless configured) health is ignored; localities without weight get nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from meshnb.tables.base import Json, dig, items, mapping
from meshnb.traces.envoy.configs import ProxyConfig
from meshnb.traces.envoy.filter_chains import joined

#: An envoy counts so many of its hosts for one (``overprovisioning_factor``), in percent.
_OVERPROVISIONED = 140
_PANIC = 50.0
#: How clusters find their hosts that have a list of them.
_LISTED = ("EDS", "STATIC", "STRICT_DNS", "LOGICAL_DNS")
_USABLE = ("HEALTHY", "UNKNOWN", "DEGRADED")
_DEGRADED = frozenset({"degraded_eds_health", "failed_degraded_active_hc"})
#: Hosts with these flags are left out of the count of hosts.
_LEFT_OUT = frozenset({"pending_active_hc", "excluded_via_immediate_hc_fail"})


@dataclass(frozen=True, slots=True)
class Host:
    """One host of a cluster: where it is, how it is told from others, what counts against it.

    ``outlier`` says that outlier detection has it ejected, ``told`` what istiod said of its health.
    """

    address: str
    port: int
    flags: tuple[str, ...]
    told: str
    priority: int
    weight: int
    locality: tuple[str, str, str]
    #: metadata by which the transport socket is chosen, such as tlsMode
    socket: Mapping[str, Any]
    #: address of an internal listener, or path of a pipe, in place of address and port
    other: str = ""

    @property
    def name(self) -> str:
        """The host as the table of endpoints names it."""
        return self.other or joined(self.address, self.port)

    @property
    def ejected(self) -> bool:
        """Whether only outlier detection counts against it."""
        return self.flags == ("failed_outlier_check",)

    @property
    def healthy(self) -> bool:
        """Whether nothing counts against it."""
        return not self.flags and self.told in ("HEALTHY", "UNKNOWN")

    @property
    def degraded(self) -> bool:
        """Whether it is a last resort, for what healthy hosts cannot take."""
        return not self.healthy and self.told in _USABLE and set(self.flags) <= _DEGRADED

    @property
    def counted(self) -> bool:
        """Whether it counts at all when the share of healthy hosts is worked out."""
        return self.told != "DRAINING" and not set(self.flags) & _LEFT_OUT


@dataclass(frozen=True, slots=True)
class Balanced:
    """The hosts that may be chosen, and the others with why not.

    ``panic`` says that health was ignored. ``sometimes_none`` says when there may be no host all
    the same: outlier detection takes hosts out and lets them in again.
    """

    chosen: tuple[Host, ...]
    passed_over: tuple[tuple[str, str], ...]
    panic: bool = False
    sometimes_none: str = ""
    undecided: str = ""


def hosts_of(config: ProxyConfig, cluster: str) -> tuple[Host, ...]:
    """Return the hosts of a cluster: as the proxy fares with them, or else as istiod assigned them.

    The page of clusters has their health, the config dump their metadata.
    """
    name = _assigned_name(config, cluster)
    assigned = {host.name: host for host in _assigned(config, name)}
    if not config.knows(cluster):
        return tuple(assigned.values())
    found = []
    for status in config.hosts(cluster):
        host = _used(status)
        known = assigned.get(host.name)
        found.append(host if known is None else _with_socket(host, known.socket))
    return tuple(found)


def _assigned_name(config: ProxyConfig, cluster: str) -> str:
    taken = config.clusters.get(cluster)
    service = "" if taken is None else dig(taken.resource, "eds_cluster_config", "service_name")
    return str(service or cluster)


def _with_socket(host: Host, socket: Mapping[str, Any]) -> Host:
    return Host(
        host.address,
        host.port,
        host.flags,
        host.told,
        host.priority,
        host.weight,
        host.locality,
        socket,
        host.other,
    )


def _assigned(config: ProxyConfig, name: str) -> list[Host]:
    taken = config.assignments.get(name)
    document: Json = {} if taken is None else taken.resource
    found = []
    for group in items(document, "endpoints"):
        locality = mapping(group, "locality")
        for one in items(group, "lb_endpoints"):
            address, port, other = _address(dig(one, "endpoint", "address"))
            told = str(dig(one, "health_status", default="UNKNOWN"))
            found.append(
                Host(
                    address,
                    port,
                    () if told in ("HEALTHY", "UNKNOWN", "DEGRADED") else ("failed_eds_health",),
                    told,
                    _whole(mapping(group).get("priority")),
                    _whole(mapping(one).get("load_balancing_weight"), 1),
                    _place(locality),
                    mapping(one, "metadata", "filter_metadata", "envoy.transport_socket_match"),
                    other,
                )
            )
    return found


def _used(status: Mapping[str, Any]) -> Host:
    address, port, other = _address(status.get("address"))
    health = mapping(status, "health_status")
    return Host(
        address,
        port,
        tuple(name for name, value in health.items() if value is True),
        str(health.get("eds_health_status", "UNKNOWN")),
        _whole(status.get("priority")),
        _whole(status.get("weight"), 1),
        _place(mapping(status, "locality")),
        {},
        other,
    )


def _address(address: Json) -> tuple[str, int, str]:
    socket = mapping(address, "socket_address")
    if socket:
        return str(socket.get("address", "")), _whole(socket.get("port_value")), ""
    if path := dig(address, "pipe", "path"):
        return "", 0, f"unix://{path}"
    internal = mapping(address, "envoy_internal_address")
    name, endpoint = internal.get("server_listener_name", ""), internal.get("endpoint_id", "")
    return "", 0, f"envoy://{name}/{endpoint}"


def _place(locality: Mapping[str, Any]) -> tuple[str, str, str]:
    region, zone, sub = (str(locality.get(part, "")) for part in ("region", "zone", "sub_zone"))
    return region, zone, sub


def _whole(value: Any, default: int = 0) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else default


# --- Choosing ------------------------------------------------------------------------------------


def choose(config: ProxyConfig, cluster: str) -> Balanced:
    """Return which hosts of a cluster a request may go to."""
    taken = config.clusters.get(cluster)
    resource = mapping(None if taken is None else taken.resource)
    if mapping(resource, "lb_subset_config", "subset_selectors") or items(
        resource, "lb_subset_config", "subset_selectors"
    ):
        return Balanced((), (), undecided="hosts are chosen by Envoy's own subsets")
    kind = str(resource.get("type") or mapping(resource, "cluster_type").get("name") or "STATIC")
    if kind not in _LISTED:
        return Balanced((), (), undecided=f"hosts of a cluster {kind} are found as requests come")
    if not config.knows(cluster) and _assigned_name(config, cluster) not in config.assignments:
        return Balanced((), (), undecided="nobody recorded which hosts the cluster has")
    hosts = hosts_of(config, cluster)
    now = _chosen(resource, config, cluster, hosts)
    lasting = [host for host in hosts if not host.ejected]
    if len(lasting) == len(hosts):
        return _with_ejection(now, resource, hosts)
    why = "outlier detection ejects hosts for a while only"
    ejectable = _chosen(resource, config, cluster, [_restored(host) for host in hosts])
    sometimes = why if not now.chosen else ""
    return Balanced(
        now.chosen or ejectable.chosen, now.passed_over, now.panic, sometimes_none=sometimes
    )


def _restored(host: Host) -> Host:
    if not host.ejected:
        return host
    return Host(
        host.address,
        host.port,
        (),
        host.told,
        host.priority,
        host.weight,
        host.locality,
        host.socket,
        host.other,
    )


def _with_ejection(now: Balanced, resource: Json, hosts: Sequence[Host]) -> Balanced:
    """Return the same, with a word on outlier detection where it may take all hosts out."""
    detection = mapping(resource).get("outlier_detection")
    if not now.chosen or not isinstance(detection, dict) or _threshold(resource) > 0:
        return now
    share = _whole(detection.get("max_ejection_percent"), 10)
    # At least one host may be ejected, whatever the share.
    if share >= 100 or len(hosts) == 1:
        why = "outlier detection may eject all hosts for a while"
        return Balanced(now.chosen, now.passed_over, now.panic, sometimes_none=why)
    return now


def _threshold(resource: Json) -> float:
    panic = mapping(resource, "common_lb_config").get("healthy_panic_threshold")
    if panic is None:
        return _PANIC
    value = mapping(panic).get("value", 0)
    return float(value) if isinstance(value, int | float) else 0.0


def _chosen(resource: Json, config: ProxyConfig, cluster: str, hosts: Sequence[Host]) -> Balanced:
    passed: list[tuple[str, str]] = []
    weights = _locality_weights(resource, config, cluster)
    by_priority: dict[int, list[Host]] = {}
    for host in hosts:
        if weights is not None and not weights.get((host.priority, host.locality), 0):
            passed.append((host.name, f"its locality {'/'.join(host.locality)} has no weight"))
        else:
            by_priority.setdefault(host.priority, []).append(host)
    loads = _loads(by_priority, resource)
    first = min((level for level, load in loads.items() if load.used), default=0)
    chosen: list[Host] = []
    for priority, members in sorted(by_priority.items()):
        load = loads[priority]
        for host in members:
            if load.takes(host):
                chosen.append(host)
            elif host.healthy or (host.degraded and not load.used):
                why = f"its priority is {priority}; hosts of priority {first} suffice"
                passed.append((host.name, why))
            else:
                passed.append((host.name, _against(host)))
    panic = any(load.panic for load in loads.values())
    return Balanced(tuple(chosen), tuple(passed), panic=panic and bool(chosen))


@dataclass(frozen=True, slots=True)
class _Load:
    """What the hosts of one priority get: those that are healthy, degraded, or all in panic."""

    healthy: int = 0
    degraded: int = 0
    panic: bool = False

    @property
    def used(self) -> bool:
        return bool(self.healthy or self.degraded or self.panic)

    def takes(self, host: Host) -> bool:
        if self.panic:
            return True
        return bool(host.healthy and self.healthy) or bool(host.degraded and self.degraded)


def _against(host: Host) -> str:
    if host.flags:
        told = f", and istiod says {host.told}" if host.told not in ("HEALTHY", "UNKNOWN") else ""
        return f"it has {', '.join(host.flags)}{told}"
    return f"istiod says that it is {host.told}"


def _loads(by_priority: Mapping[int, Sequence[Host]], resource: Json) -> dict[int, _Load]:
    """Return what each priority gets: healthy hosts first, then degraded ones, by priority."""
    levels = sorted(by_priority)
    # Envoy reckons in whole percent, so a small rest is lost.
    available = {
        (level, kind): min(100, _OVERPROVISIONED * count // of)
        for level in levels
        for kind, (count, of) in enumerate(_counts(by_priority[level]))
    }
    total = min(100, sum(available.values()))
    panic = {level for level in levels if total < 100 and _in_panic(by_priority[level], resource)}
    if panic and mapping(resource, "common_lb_config", "zone_aware_lb_config").get(
        "fail_traffic_on_panic"
    ):
        return {level: _Load() for level in levels}
    if levels and panic == set(levels):
        return {level: _Load(panic=True) for level in levels}
    rest = 100 if total else 0
    given: dict[tuple[int, int], int] = {}
    for kind in (0, 1):
        for level in levels:
            load = min(rest, available[level, kind] * 100 // total) if total else 0
            given[level, kind] = load
            rest -= load
    return {
        level: _Load(
            given[level, 0],
            given[level, 1],
            panic=level in panic and bool(given[level, 0] or given[level, 1]),
        )
        for level in levels
    }


def _counts(hosts: Sequence[Host]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return how many hosts are healthy, and how many degraded, each of how many that count."""
    counted = sum(host.counted for host in hosts) or 1
    healthy, degraded = sum(h.healthy for h in hosts), sum(h.degraded for h in hosts)
    return (healthy, counted), (degraded, counted)


def _in_panic(hosts: Sequence[Host], resource: Json) -> bool:
    (healthy, counted), (degraded, _) = _counts(hosts)
    return 100 * (healthy + degraded) / counted < _threshold(resource)


def _locality_weights(
    resource: Json, config: ProxyConfig, cluster: str
) -> Mapping[tuple[int, tuple[str, str, str]], int] | None:
    """Return the weight of each priority's localities; None where they do not count."""
    if "locality_weighted_lb_config" not in mapping(resource, "common_lb_config"):
        return None
    taken = config.assignments.get(_assigned_name(config, cluster))
    if taken is None:
        return None
    return {
        (_whole(mapping(group).get("priority")), _place(mapping(group, "locality"))): _whole(
            mapping(group).get("load_balancing_weight")
        )
        for group in items(taken.resource, "endpoints")
    }
