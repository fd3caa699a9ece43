"""What an object made of itself in a proxy: whether it is there, and as the object says now.

Envoy's resources name the VirtualService, DestinationRule or WasmPlugin they were made from
(``filter_metadata.istio.config``); policies are named in RBAC rules; of other kinds the fields that
they set are looked for. What cannot be told from a config dump is UNKNOWN, with the reason.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import pandas as pd

from meshnb.tables import Facts
from meshnb.tables.base import dig, items, mapping
from meshnb.traces.comparison import origin_at
from meshnb.traces.mesh import ConfigObject, Mesh, Pod, ServicePort, host_matches, plain
from meshnb.traces.rules import GATEWAY_GROUP, delegating, rule_host
from meshnb.traces.rungs.enforcement import Enforcement
from meshnb.traces.rungs.holdings import ABSENT, AGREES, DIFFERS, UNKNOWN, Effect, Holdings, newest
from meshnb.traces.rungs.ladder import Cited, where
from meshnb.traces.rungs.reach import Reach
from meshnb.traces.rungs.routed import Routed, routed, shadows
from meshnb.traces.rungs.scope import API_ROUTES
from meshnb.traces.rungs.visibility import homes, labels_text, listed, same_host


class Effects:
    """What the proxies of one source have of one object."""

    def __init__(self, facts: Facts, mesh: Mesh, item: ConfigObject) -> None:
        """Choose how an object of this kind is looked for."""
        self.facts = facts
        self.mesh = mesh
        self.item = item
        self._held = Holdings(facts)
        self._enforced = Enforcement(self._held, mesh, item)
        kinds: Mapping[str, Callable[[Pod], Effect]] = {
            "VirtualService": self._virtual_service,
            "DestinationRule": self._destination_rule,
            "ServiceEntry": self._service_entry,
            "WorkloadEntry": self._workload_entry,
            "Gateway": self._gateway,
            **dict.fromkeys(API_ROUTES, self._api_route),
        }
        self._look = kinds.get(item.kind, self._enforced.at)

    def at(self, reach: Reach) -> Effect:
        """Return what one proxy has of the object."""
        if reach.proxy in self._held.silent:
            why = self._held.silent[reach.proxy]
            return Effect(UNKNOWN, f"it did not say what it holds: {why}")
        if reach.pod.mesh in ("ambient", "ztunnel"):
            return self._at_ztunnel(reach)
        return self._look(reach.pod)

    # --- VirtualServices and routes of the Gateway API ---

    def _virtual_service(self, pod: Pod) -> Effect:
        item, mesh = self.item, self.mesh
        bearers = [item] if items(item.spec, "hosts") else delegating(item, mesh)
        found = [self._bearer(one, pod) for one in bearers]
        # Any root that bears a delegate's routes as they are is enough.
        found.sort(key=lambda effect: (AGREES, DIFFERS, UNKNOWN, ABSENT).index(effect.state))
        return found[0] if found else Effect(ABSENT, "no VirtualService delegates to it")

    def _bearer(self, bearer: ConfigObject, pod: Pod) -> Effect:
        mine = self._held.made_from("routes", pod.proxy, str(bearer))
        expected = routed(bearer, self.mesh, pod)
        idle = shadows(bearer)
        if expected.connections and not expected.routes:
            return self._connections(expected, pod)
        if not len(mine):
            return Effect(ABSENT, "no route there was made from it", idle=idle)
        odd = expected.differences(mine)
        # What a route leads to is as the delegate says, too: it is judged with its root.
        return _of_routes(mine, odd, idle)

    def _connections(self, expected: Routed, pod: Pod) -> Effect:
        """Judge routes of connections, whose clusters stand in filter chains."""
        rows = self._held.rows("listeners", pod.proxy)
        rows = rows[rows["cluster"].notna() & (rows["state"] == "active")]
        mine = where(rows, (expected.leads(str(text).split(",")) for text in rows["cluster"]))
        missing = expected.unreached(
            cluster.strip() for text in mine["cluster"] for cluster in str(text).split(",")
        )
        if not len(mine):
            return Effect(ABSENT, "no filter chain there leads where it says")
        return Effect(
            DIFFERS if missing else AGREES,
            f"its filter chains do not lead to {missing}"
            if missing
            else f"filter chains lead where it says ({len(mine)})",
            Cited.of("listeners", mine),
            newest(mine),
            frozenset(
                cluster.strip() for text in mine["cluster"] for cluster in str(text).split(",")
            ),
        )

    def _api_route(self, pod: Pod) -> Effect:
        expected = routed(self.item, self.mesh, pod)
        if expected.connections and not expected.routes:
            return self._connections(expected, pod)
        rows = self._held.rows("routes", pod.proxy)
        stem = f"{self.item.namespace}.{self.item.name}"
        # istiod names a route after its object and the place of its rule in it.
        mine = where(
            rows, (str(plain(name) or "").rpartition(".")[0] == stem for name in rows["route"])
        )
        if not len(mine):
            if not any(_NAMED.fullmatch(str(plain(name) or "")) for name in rows["route"]):
                return Effect(UNKNOWN, "its routes do not bear the names of their objects")
            return Effect(ABSENT, "no route there bears its name")
        odd = expected.rule_differences(mine)
        return _of_routes(mine, odd)

    # --- clusters ---

    def _destination_rule(self, pod: Pod) -> Effect:
        item, mesh = self.item, self.mesh
        merged = same_host(item, mesh) or item
        hosts = homes(rule_host(item, mesh), mesh)
        outbound = _leaving(self._held.rows("clusters", pod.proxy), hosts)
        mine = where(
            outbound,
            (
                origin_at(plain(path)) in (str(item), str(merged))
                for path in outbound["istio_config"]
            ),
        )
        if not len(mine):
            if not len(outbound):
                return self._no_cluster(list(hosts), pod)
            others = {origin_at(plain(path)) for path in outbound["istio_config"]} - {""}
            by = f", but by {listed(sorted(others))}" if others else ""
            return Effect(
                ABSENT,
                f"its clusters for {listed(hosts)} are not shaped by it{by}",
                Cited.of("clusters", outbound),
            )
        odd = "; ".join(self._shape_differences(mine, merged))
        idle = self._without_endpoints(mine, pod)
        return Effect(
            DIFFERS if odd else AGREES,
            f"its clusters are there, but {odd}"
            if odd
            else f"its clusters are there as it says ({len(mine)})",
            Cited.of("clusters", mine),
            newest(mine),
            frozenset(mine["cluster"]),
            idle=idle,
        )

    def _shape_differences(self, mine: pd.DataFrame, merged: ConfigObject) -> Iterator[str]:
        spec = self.item.spec
        wanted = {str(dig(subset, "name")) for subset in items(spec, "subsets")}
        held = set(mine["subset"]) - {"-"}
        if missing := sorted(wanted - held):
            yield f"not for subset {listed(missing)}"
        own_policy, first_policy = (
            mapping(one.spec, "trafficPolicy") for one in (self.item, merged)
        )
        if merged is not self.item and own_policy and first_policy:
            yield f"they have the trafficPolicy of {merged}"
            return
        sharing = [
            other
            for other in self.mesh.of("DestinationRule")
            if other is not self.item and same_host(other, self.mesh) is self.item
        ]
        alone = merged is self.item and not sharing
        if alone and (extra := sorted(held - wanted)):
            yield f"also for subset {listed(extra)}, which it does not define"
        top = mine[mine["subset"] == "-"]
        mode = dig(spec, "trafficPolicy", "tls", "mode")
        if mode in _TLS and len(top) and not items(spec, "trafficPolicy", "portLevelSettings"):
            spoken = sorted({str(plain(tls) or "none") for tls in top["tls"]} - _TLS[str(mode)])
            if spoken:
                yield f"they speak TLS as {listed(spoken)} and not {mode}"
        pool = mapping(spec, "trafficPolicy", "connectionPool")
        for column, path in _LIMITS:
            limit = dig(pool, *path)
            limits = [plain(value) for value in top[column]]
            if isinstance(limit, int) and limits and limit not in limits:
                yield f"{'.'.join(path)} is {listed(map(str, limits))} and not {limit}"
        wanted_outlier = mapping(spec, "trafficPolicy", "outlierDetection") and len(top)
        if wanted_outlier and all(plain(value) is None for value in top["outlier"]):
            yield "they have no outlier detection"

    def _without_endpoints(self, mine: pd.DataFrame, pod: Pod) -> str:
        """Say which subsets that routes of a proxy lead to choose no pod."""
        led = {
            cluster
            for clusters in self._held.rows("routes", pod.proxy)["clusters"]
            for cluster in clusters
        }
        used = set(mine.loc[mine["cluster"].isin(led), "subset"])
        empty = []
        for subset in items(self.item.spec, "subsets"):
            name, labels = str(dig(subset, "name")), mapping(subset, "labels")
            for port in self.mesh.ports(rule_host(self.item, self.mesh))[:1]:
                pods = self.mesh.selected(port)
                chosen = any(labels.items() <= one.labels.items() for one in pods)
                if name in used and port.selector and not chosen:
                    empty.append(f"{name} ({labels_text(labels)})")
        return (
            f"no pod has the labels of subset {listed(empty)}, to which routes lead"
            if empty
            else ""
        )

    def _service_entry(self, pod: Pod) -> Effect:
        hosts = [str(host) for host in items(self.item.spec, "hosts")]
        ports = {
            number
            for port in items(self.item.spec, "ports")
            if isinstance(number := dig(port, "number"), int)
            and str(dig(port, "protocol", default="")).upper() != "UDP"
        }
        return self.host_effect(hosts, ports, pod)

    def host_effect(self, hosts: list[str], ports: set[int], pod: Pod) -> Effect:
        """Return whether a proxy has the clusters for hosts, one for each port."""
        rows = _leaving(self._held.rows("clusters", pod.proxy), hosts)
        mine = rows[rows["subset"] == "-"]
        if not len(mine):
            return self._no_cluster(hosts, pod)
        missing = [
            f"{host}:{port}"
            for host in hosts
            for port in sorted(ports)
            if not ((mine["service_fqdn"] == host) & (mine["port"] == str(port))).any()
        ]
        return Effect(
            DIFFERS if missing else AGREES,
            f"it has no cluster for {listed(missing)}"
            if missing
            else f"it has a cluster for {listed(dict.fromkeys(mine['port']))}",
            Cited.of("clusters", mine),
            newest(mine),
            frozenset(rows["cluster"]),
        )

    def _no_cluster(self, hosts: list[str], pod: Pod) -> Effect:
        led = {
            cluster.rpartition("|")[2]
            for clusters in self._held.rows("routes", pod.proxy)["clusters"]
            for cluster in clusters
        }
        if pod.mesh == "gateway" and not led & set(hosts):
            # As PILOT_FILTER_GATEWAY_CLUSTER_CONFIG has it.
            says = f"a gateway need not have clusters for {listed(hosts)}: none of its routes leads"
            return Effect(UNKNOWN, f"{says} there")
        return Effect(ABSENT, f"it has no cluster for {listed(hosts)}")

    def _workload_entry(self, pod: Pod) -> Effect:
        address = str(dig(self.item.spec, "address", default=""))
        rows = self._held.rows("endpoints", pod.proxy)
        mine = rows[(rows["address"] == address).fillna(value=False).astype(bool)]
        if not len(mine):
            return Effect(ABSENT, f"no cluster there has the endpoint {address}")
        return Effect(
            AGREES,
            f"{address} is an endpoint of {listed(dict.fromkeys(mine['cluster']))}",
            Cited.of("endpoints", mine),
            clusters=frozenset(mine["cluster"]),
        )

    # --- listeners ---

    def _gateway(self, pod: Pod) -> Effect:
        rows = self._held.rows("listeners", pod.proxy)
        mine = rows.iloc[:0]
        missing: list[str] = []
        waiting: list[str] = []
        for wanted in self._servers():
            ports = {wanted.port, *self._target_ports(pod, wanted.port)}
            opened = rows[rows["port"].isin(ports) & (rows["state"] == "active")]
            if wanted.hosts and wanted.tls:
                chosen = [
                    not names or any(host_matches(host, n) or host_matches(n, host)
                                     for host in wanted.hosts for n in names)
                    for names in opened["server_names"]
                ]  # fmt: skip
                opened = where(opened, chosen)
            if not len(opened):
                missing.append(f"port {wanted.port}" + (f" for {listed(wanted.hosts)}"
                                                        if wanted.tls else ""))  # fmt: skip
            mine = pd.concat([mine, opened])
            if wanted.secret:
                waiting += self._waiting(pod, wanted.secret)
        mine = mine[~mine.index.duplicated()]
        if not len(mine) and not missing:
            return Effect(UNKNOWN, "it has no listener of its own: what it serves comes by HBONE")
        if not len(mine):
            return Effect(ABSENT, f"it does not listen on {listed(missing)}")
        return Effect(
            DIFFERS if missing else AGREES,
            f"it does not listen on {listed(missing)}"
            if missing
            else f"it listens on {listed(str(port) for port in dict.fromkeys(mine['port']))}",
            Cited.of("listeners", mine),
            newest(mine),
            domains=frozenset(f":{port}" for port in mine["port"]),
            idle="; ".join(waiting),
        )

    def _servers(self) -> Iterator[_Server]:
        if self.item.group == GATEWAY_GROUP:
            for server in items(self.item.spec, "servers"):
                tls = mapping(server, "tls")
                yield _Server(
                    dig(server, "port", "number", default=0),
                    [str(host).rpartition("/")[2] for host in items(server, "hosts")],
                    bool(tls) and not dig(tls, "httpsRedirect", default=False),
                    str(dig(tls, "credentialName", default="")),
                )
            return
        for listener in items(self.item.spec, "listeners"):
            host = dig(listener, "hostname")
            by_name = dig(listener, "protocol") in ("HTTPS", "TLS")
            hosts = [str(host)] if host else []
            secret = dig(listener, "tls", "certificateRefs", 0, "name", default="")
            port = dig(listener, "port", default=0)
            # A waypoint's listener stands for HBONE, which all of its routes come in by.
            if dig(listener, "protocol") != "HBONE":
                yield _Server(port, hosts, by_name, str(secret))

    def _target_ports(self, pod: Pod, port: int) -> Iterator[int]:
        """Yield the ports of a gateway's pod behind a port of its Services."""
        for service in self.mesh.services:
            numbered = service.port == port and service.target_port.isdecimal()
            if numbered and pod in self.mesh.selected(service):
                yield int(service.target_port)

    def _waiting(self, pod: Pod, secret: str) -> Iterator[str]:
        rows = self._held.rows("certificates", pod.proxy)
        named = where(
            rows, (str(name).rpartition("/")[2] == secret for name in rows["resource_name"])
        )
        if len(named) and (named["status"] == "WARMING").fillna(value=False).all():
            yield f"it has not got the certificate {secret}, so that its handshakes fail"

    # --- ambient ---

    def _at_ztunnel(self, reach: Reach) -> Effect:
        if self.item.kind == "ServiceEntry":
            return self.ztunnel_effect([str(h) for h in items(self.item.spec, "hosts")], reach)
        return self._enforced.at_ztunnel(reach)

    def ztunnel_effect(self, hosts: list[str], reach: Reach) -> Effect:
        """Return whether a ztunnel knows hosts."""
        rows = self._held.rows("ztunnel_services", reach.proxy)
        if any(host.startswith("*") for host in hosts):
            return Effect(UNKNOWN, "ztunnel knows no host with a wildcard")
        if not len(rows):
            return Effect(UNKNOWN, "ztunnel did not say which services it knows")
        mine = rows[rows["hostname"].isin(hosts)]
        if not len(mine):
            return Effect(ABSENT, f"ztunnel does not know {listed(hosts)}")
        return Effect(AGREES, "ztunnel knows it", Cited.of("ztunnel_services", mine))


class ServiceEffects(Effects):
    """What the proxies of one source have of one Service."""

    def __init__(
        self, facts: Facts, mesh: Mesh, item: ConfigObject, ports: list[ServicePort]
    ) -> None:
        """Take the Service's ports beside its object."""
        super().__init__(facts, mesh, item)
        self._ports = ports
        self._look = self._service

    def _service(self, pod: Pod) -> Effect:
        numbers = {p.port for p in self._ports if p.port is not None and p.protocol != "udp"}
        if not numbers or self._ports[0].external_name:
            return Effect(
                UNKNOWN, "a Service without TCP ports, or for another name, has no cluster"
            )
        return self.host_effect([self._ports[0].host], numbers, pod)

    def _at_ztunnel(self, reach: Reach) -> Effect:
        if self._ports[0].external_name:
            return Effect(UNKNOWN, "a Service for another name is not told to ztunnel")
        return self.ztunnel_effect([self._ports[0].host], reach)


#: Name of a route that istiod made of the Gateway API: namespace, name and number of the rule.
_NAMED = re.compile(r"[a-z0-9-]+\.[a-z0-9.-]+\.\d+")


def _leaving(rows: pd.DataFrame, hosts: Iterable[str]) -> pd.DataFrame:
    """Return the clusters to hosts; of a waypoint's the subset stands behind the protocol."""
    to_services = rows["direction"].isin(["outbound", "inbound-vip"])
    found = rows[to_services & rows["service_fqdn"].isin(list(hosts))]
    vip = found["direction"] == "inbound-vip"
    if vip.any():
        found = found.copy()
        inner = found.loc[vip, "subset"].str.partition("/")[2]
        found.loc[vip, "subset"] = inner.where(inner != "", "-")
    return found


@dataclass(frozen=True, slots=True)
class _Server:
    """One server of a Gateway, or one listener of the Gateway API's kind."""

    port: int
    hosts: list[str]
    tls: bool
    secret: str


#: Ways of TLS in the table of clusters that each mode of a DestinationRule leads to.
_TLS: Mapping[str, frozenset[str]] = {
    "DISABLE": frozenset({"none"}),
    "SIMPLE": frozenset({"simple"}),
    "MUTUAL": frozenset({"client certificate", "mutual"}),
    "ISTIO_MUTUAL": frozenset({"mutual", "auto"}),
}
_LIMITS = (
    ("max_connections", ("tcp", "maxConnections")),
    ("max_pending_requests", ("http", "http1MaxPendingRequests")),
    ("max_requests", ("http", "http2MaxRequests")),
    ("max_retries", ("http", "maxRetries")),
)


def _of_routes(mine: pd.DataFrame, odd: str, idle: str = "") -> Effect:
    """Return the effect that routes have, which differ from what was written in ``odd``."""
    return Effect(
        DIFFERS if odd else AGREES,
        f"its routes are there, but {odd}"
        if odd
        else f"its routes are there and lead where it says ({len(mine)})",
        Cited.of("routes", mine),
        newest(mine),
        frozenset(cluster for clusters in mine["clusters"] for cluster in clusters),
        frozenset(domain for domains in mine["all_domains"] for domain in domains),
        idle,
    )
