"""Both ends of a connection: what the client speaks, what the server takes, and who trusts whom.

What a proxy speaks and takes is read from what it holds; which objects led there is found by
Istio's rules. What was not recorded is said, and leaves the verdict open.

>>> from meshnb import Facts, open_source
>>> facts = Facts(open_source("recorded:mtls-client-disable"))
>>> trace = follow_connection(facts, "client.bookinfo", "ratings.bookinfo:9080")
>>> trace.verdict, trace.fault
('fails', 'client')
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pandas as pd

from meshnb.tables import Facts
from meshnb.traces.ambient import AmbientTrace, follow_ambient
from meshnb.traces.capture import bypass
from meshnb.traces.ends.base import FAILS, UNDECIDED, WORKS, ConnectionTrace, Draft, End, pod_title
from meshnb.traces.ends.places import OUTSIDE, Destination, find_client, find_destination
from meshnb.traces.ends.server_end import ServerEnd, is_http, tcp_cluster
from meshnb.traces.ends.tls_settings import TlsSetting, tls_setting
from meshnb.traces.ends.transport import PLAIN, SIMPLE, Secrets, Side, side_of, upstream_socket
from meshnb.traces.envoy.balancing import Host, hosts_of
from meshnb.traces.envoy.configs import ProxyConfig, ProxyConfigs, Taken, made_from
from meshnb.traces.envoy.filter_chains import TLS, Connection, joined, listener_at, match_chain
from meshnb.traces.mesh import MESH, Mesh, Pod

__all__ = ["ConnectionTrace", "Connections", "End", "follow_connection"]


def follow_connection(
    facts: Facts,
    client: str,
    server: str,
    port: int | None = None,
    *,
    subset: str = "",
    tls: bool = False,
    server_name: str = "",
) -> ConnectionTrace:
    """Follow a connection from a client to a server's port.

    ``client`` is a pod (``shop/cart-1``, ``cart-1.shop``), a workload, or ``outside``; ``server``
    a Service, a pod, an address or an external host, with ``port`` or as ``host:port``. With
    ``tls`` the client's application speaks TLS by itself, for ``server_name``. Raises UsageError
    for what is not there, offering the nearest.

    For many connections of one source make one :class:`Connections`, which keeps what it decodes.
    """
    return Connections(facts).follow(
        client, server, port, subset=subset, tls=tls, server_name=server_name
    )


#: Hosts behind Envoy's own tunnel to the ambient mesh.
_TUNNEL = "envoy://connect_originate/"
_CLIENTS = ("client", "client's ztunnel")


class Connections:
    """The connections of one source. What proxies hold is decoded once."""

    def __init__(
        self, facts: Facts, mesh: Mesh | None = None, configs: ProxyConfigs | None = None
    ) -> None:
        """Take the facts; the mesh and the proxies' configurations may be shared with others."""
        self.facts = facts
        self.mesh: Mesh = mesh if mesh is not None else MESH.make(facts)
        self.configs = configs if configs is not None else ProxyConfigs(facts)
        self.secrets = Secrets(facts)
        self.server = ServerEnd(facts, self.mesh, self.configs, self.secrets)
        self.rows = self.server.rows

    def follow(
        self,
        client: str,
        server: str,
        port: int | None = None,
        *,
        subset: str = "",
        tls: bool = False,
        server_name: str = "",
    ) -> ConnectionTrace:
        """Follow one connection; see :func:`follow_connection`."""
        text = server if port is None else f"{server}:{port}"
        pod, destination = find_client(self.mesh, client), find_destination(self.mesh, text)
        traces = list(self._each(pod, destination, subset, tls, server_name))
        if not traces:
            draft = Draft(End(client, "", ""), End(destination.title, "", "external"), [])
            traces = [draft.done(UNDECIDED, "unknown", "no pod is there to be reached")]
        chosen = next((one for one in traces if one.verdict == FAILS), traces[0])
        endpoints = tuple((one.server.name, one.verdict) for one in traces)
        return replace(chosen, endpoints=endpoints)

    def _each(
        self,
        client: Pod | None,
        destination: Destination,
        subset: str,
        tls: bool,
        server_name: str,
    ) -> Iterator[ConnectionTrace]:
        """Yield a trace for each endpoint that the client may choose."""
        servers = [pod for pod, _ in self._pods(destination)]
        if client is not None and client.mesh == "ambient":
            yield self._through_ztunnel(client, destination)
            return
        proxied = client is not None and client.mesh in ("sidecar", "gateway", "waypoint")
        address = self._address(destination)
        if proxied and client is not None and bypass(client, address, destination.port):
            proxied = False
        if proxied and client is not None:
            yield from self._from_proxy(client, destination, subset, tls, server_name)
            return
        if any(pod.mesh == "ambient" for pod in servers):
            yield self._through_ztunnel(client, destination)
            return
        yield from self._from_application(client, destination, tls, server_name)

    def _address(self, destination: Destination) -> str:
        if destination.service is not None:
            return destination.service.cluster_ip
        return destination.pod.address if destination.pod is not None else destination.address

    def _pods(self, destination: Destination) -> list[tuple[Pod, int]]:
        """Return the pods behind a destination, each with the port that it is reached on."""
        if destination.pod is not None:
            return [(destination.pod, destination.port)]
        service = destination.service
        if service is None:
            return []
        frame = self.facts["service_endpoints"]
        own = frame[
            (frame["namespace"] == service.namespace)
            & (frame["service"] == service.service)
            & (frame["port"] == service.port)
        ]
        found = [
            (pod, int(target))
            for address, target in zip(own["address"], own["target_port"], strict=True)
            if (pod := self.mesh.pod_at(str(address))) is not None and pd.notna(target)
        ]
        if found:
            return found
        number = int(service.target_port) if service.target_port.isdigit() else destination.port
        return [(pod, number) for pod in self.mesh.selected(service)]

    # --- clients without a proxy ---

    def _from_application(
        self, client: Pod | None, destination: Destination, tls: bool, server_name: str
    ) -> Iterator[ConnectionTrace]:
        pods = self._pods(destination)
        side = Side(SIMPLE if tls else PLAIN, server_name=server_name)
        speaks = side.words
        part, name = (OUTSIDE, OUTSIDE) if client is None else ("none", pod_title(client))
        if client is not None and client.mesh == "sidecar":
            name = f"{name} (past its sidecar)"
        end = End(name, "", part, speaks)
        if not pods:
            draft = Draft(end, End(destination.title, "", "external"), [])
            why = "nobody recorded what is there"
            draft.add("server", destination.title, "undecided", f"cannot decide, because {why}")
            yield draft.done(UNDECIDED, "unknown", why)
        for pod, port in pods:
            draft = Draft(end, End(joined(pod_title(pod), port), pod.proxy, pod.mesh), [])
            who = "it is no pod of the cluster" if client is None else "no proxy carries it"
            says = f"{who}: it speaks {speaks}"
            cited = self.rows.pod(client) if client is not None else {}
            draft.add("client", name, "passed", says, **cited)
            yield self.server.meets(draft, side, pod, port, destination.service)

    # --- clients with a proxy ---

    def _from_proxy(
        self, client: Pod, destination: Destination, subset: str, tls: bool, server_name: str
    ) -> Iterator[ConnectionTrace]:
        end = End(pod_title(client), client.proxy, client.mesh)
        target = End(destination.title, "", "external")
        config = self.configs.of(client.proxy)
        if config is None or client.mesh == "waypoint":
            draft = Draft(end, target, [])
            why = (
                self.configs.silence(client.proxy)
                if config is None
                else f"what the waypoint {client.proxy} opens by itself is not followed"
            )
            draft.add("client", client.proxy, "undecided", f"cannot decide, because {why}")
            yield draft.done(UNDECIDED, "unknown", why)
            return
        if tls and client.mesh == "sidecar":
            yield from self._from_tls_application(client, config, destination, server_name)
            return
        cluster, hosts = self._cluster(config, destination, subset)
        if cluster is None:
            yield from self._unknown_to(client, config, destination)
            return
        if not hosts:
            draft = Draft(end, target, [])
            why = f"cluster {cluster.name} has no endpoint"
            cited = self.rows.cluster(client.proxy, cluster.name)
            draft.add("client", client.proxy, "stopped", why, **cited)
            draft.client = replace(end, log="503 UH no_healthy_upstream", flags="UH")
            yield draft.done(FAILS, "unknown", why)
        for host in hosts:
            yield self.between(client, cluster, host, destination, subset)

    def _cluster(
        self, config: ProxyConfig, destination: Destination, subset: str
    ) -> tuple[Taken | None, list[Host]]:
        """Return the client's cluster for a destination, and the hosts that may be meant."""
        port = destination.port
        if destination.service is not None:
            host = destination.service.host
        elif destination.pod is None:
            host = destination.name
        else:
            return self._cluster_with(config, destination.pod.address, port)
        cluster = config.clusters.get(f"outbound|{port}|{subset}|{host}") or config.clusters.get(
            f"outbound_.{port}_.{subset or '_'}_.{host}"
        )
        return cluster, list(hosts_of(config, cluster.name)) if cluster is not None else []

    def _cluster_with(
        self, config: ProxyConfig, address: str, port: int
    ) -> tuple[Taken | None, list[Host]]:
        """Return a cluster that has a pod among its hosts; of several the first without subset."""
        found = []
        endpoints = self.facts["endpoints"]
        own = endpoints[endpoints["proxy"] == config.proxy]
        named = {joined(address, port), f"{_TUNNEL}{joined(address, port)}"}
        for name in own.loc[own["endpoint"].isin(named), "cluster"]:
            cluster = config.clusters.get(str(name))
            if cluster is not None and str(name).startswith("outbound"):
                hosts = [host for host in hosts_of(config, cluster.name) if host.name in named]
                found.append(("||" not in cluster.name, cluster, hosts))
        found.sort(key=lambda one: one[0])
        return (found[0][1], found[0][2]) if found else (None, [])

    def _unknown_to(
        self, client: Pod, config: ProxyConfig, destination: Destination
    ) -> Iterator[ConnectionTrace]:
        """Yield what becomes of a connection that a client's proxy has no cluster for."""
        past = self._catch_all(config, destination)
        name = destination.title
        if client.mesh != "sidecar" or past is None or past.name == "BlackHoleCluster":
            draft = Draft(
                End(pod_title(client), client.proxy, client.mesh), End(name, "", "external"), []
            )
            why = f"{client.proxy} has no cluster for {name}, and lets nothing else pass"
            draft.add("client", client.proxy, "stopped", why)
            yield draft.done(FAILS, "client", why)
            return
        for pod, port in self._pods(destination):
            yield self._passed_on(client, past, pod, port, destination, Side(PLAIN))
        if not self._pods(destination):
            draft = Draft(
                End(pod_title(client), client.proxy, client.mesh, PLAIN),
                End(name, "", "external"),
                [],
            )
            says = "the proxy has no cluster for it, and passes it on as it is (PassthroughCluster)"
            cited = self.rows.cluster(client.proxy, past.name)
            draft.add("client", client.proxy, "passed", says, **cited)
            why = "nobody recorded what is there"
            draft.add("server", name, "undecided", f"cannot decide, because {why}")
            yield draft.done(UNDECIDED, "unknown", why)

    def _catch_all(self, config: ProxyConfig, destination: Destination) -> Taken | None:
        """Return the cluster for what a sidecar knows no Service for."""
        listener = config.listeners.get("virtualOutbound")
        if listener is None:
            return config.clusters.get("PassthroughCluster")
        connection = Connection(self._address(destination), destination.port)
        return config.clusters.get(tcp_cluster(match_chain(listener.resource, connection)))

    def _passed_on(
        self,
        client: Pod,
        cluster: Taken,
        pod: Pod,
        port: int,
        destination: Destination,
        side: Side,
    ) -> ConnectionTrace:
        end = End(pod_title(client), client.proxy, client.mesh, side.words)
        draft = Draft(end, End(joined(pod_title(pod), port), pod.proxy, pod.mesh), [])
        says = f"the proxy passes on what it gets ({cluster.name}): {side.words}"
        draft.add(
            "client", client.proxy, "passed", says, **self.rows.cluster(client.proxy, cluster.name)
        )
        draft.passed_on = True
        if pod.mesh == "ambient":
            return self._through_ztunnel(client, _by_address(pod, port))
        return self.server.meets(draft, side, pod, port, destination.service)

    def _from_tls_application(
        self, client: Pod, config: ProxyConfig, destination: Destination, server_name: str
    ) -> Iterator[ConnectionTrace]:
        """Yield what becomes of TLS that the application itself speaks to its sidecar."""
        address, name = self._address(destination), destination.title
        end = End(pod_title(client), client.proxy, client.mesh, SIMPLE)
        draft = Draft(end, End(name, "", "external"), [])
        listener = listener_at(config, address, destination.port) or config.listeners.get(
            "virtualOutbound"
        )
        if listener is None:
            why = f"no listener of {client.proxy} takes it"
            draft.add("client", client.proxy, "stopped", why)
            yield draft.done(FAILS, "client", why)
            return
        alpn = ("h2", "http/1.1")
        connection = Connection(
            address, destination.port, client.address, 0, TLS, server_name, alpn
        )
        match = match_chain(listener.resource, connection)
        cited = self.rows.listener(client.proxy, listener.name, match.position)
        if match.chain is None:
            why = match.undecided or f"no filter chain of listener {listener.name} takes TLS"
            outcome = "undecided" if match.undecided else "stopped"
            draft.add("client", client.proxy, outcome, why, **cited)
            yield draft.done(UNDECIDED if match.undecided else FAILS, "client", why)
            return
        if is_http(match):
            why = f"the application speaks TLS, and {listener.name} takes it for plain HTTP"
            draft.add("client", client.proxy, "stopped", why, **cited)
            draft.client = replace(end, log="400 DPE http1.codec_error", flags="DPE")
            yield draft.done(FAILS, "client", why)
            return
        draft.add("client", client.proxy, "passed", f"filter chain {match.name} takes TLS", **cited)
        taken = config.clusters.get(tcp_cluster(match))
        if taken is None:
            why = f"the chain {match.name} sends to no cluster that the proxy has"
            draft.add("client", client.proxy, "undecided", f"cannot decide, because {why}")
            yield draft.done(UNDECIDED, "unknown", why)
            return
        side = Side(SIMPLE, server_name=server_name, alpn=alpn)
        for pod, port in self._pods(destination):
            if taken.name == "PassthroughCluster" or not taken.name.startswith("outbound"):
                yield self._passed_on(client, taken, pod, port, destination, side)
            else:
                hosts = [one for one in hosts_of(config, taken.name) if one.address == pod.address]
                for host in hosts:
                    socket, _ = upstream_socket(taken.resource, host)
                    wrapped = side_of(socket, client.proxy, self.secrets, server=False)
                    if wrapped.speaks == PLAIN:
                        yield self._passed_on(client, taken, pod, port, destination, side)
                    else:
                        yield self.between(client, taken, host, destination, "")

    def between(
        self,
        client: Pod,
        cluster: Taken,
        host: Host,
        destination: Destination | None = None,
        subset: str = "",
    ) -> ConnectionTrace:
        """Follow a connection of a client's proxy to one host of one of its clusters."""
        if host.other.startswith(_TUNNEL):
            return self._through_ztunnel(
                client, destination or find_destination(self.mesh, host.other.removeprefix(_TUNNEL))
            )
        socket, match = upstream_socket(cluster.resource, host)
        side = side_of(socket, client.proxy, self.secrets, server=False, match=match)
        pod = self.mesh.pod_at(host.address)
        server_name = joined(pod_title(pod), host.port) if pod is not None else host.name
        setting = self._setting(client, cluster, subset)
        end = End(
            pod_title(client),
            client.proxy,
            client.mesh,
            side.words,
            side.own,
            side.roots,
            _objects(setting, cluster),
        )
        target = End(
            server_name, pod.proxy if pod is not None else "", pod.mesh if pod else "external"
        )
        draft = Draft(end, target, [])
        self._client_steps(draft, client, cluster, host, side, setting)
        service = destination.service if destination is not None else None
        if pod is None:
            return self._beyond(draft, side, host)
        if pod.mesh == "ambient":
            return self._through_ztunnel(client, _by_address(pod, host.port))
        return self.server.meets(draft, side, pod, host.port, service, setting)

    def _setting(self, client: Pod, cluster: Taken, subset: str) -> TlsSetting | None:
        parts = cluster.name.split("|")
        if len(parts) != 4 or not parts[1].isdecimal():
            return None
        ports = self.mesh.ports(parts[3])
        home = ports[0].namespace if ports else ""
        return tls_setting(
            self.mesh, client.namespace, parts[3], home, int(parts[1]), subset or parts[2]
        )

    def _client_steps(
        self,
        draft: Draft,
        client: Pod,
        cluster: Taken,
        host: Host,
        side: Side,
        setting: TlsSetting | None,
    ) -> None:
        if setting is not None:
            rule = setting.rule
            cited = self.rows.config(rule.index) if rule is not None else {}
            draft.add(
                "client's settings",
                client.proxy,
                "passed",
                setting.words,
                object=str(rule or ""),
                passed_over=setting.passed_over,
                **cited,
            )
        chosen = f" by {side.socket}" if side.socket else ""
        mode = host.socket.get("tlsMode")
        marked = f"; the endpoint is marked tlsMode {mode}" if mode else ""
        if cluster.resource.get("transport_socket_matches") and not mode:
            marked = "; the endpoint is not marked with a tlsMode"
        draft.add(
            "client",
            client.proxy,
            "passed",
            f"{cluster.name} speaks {side.words}{chosen}{marked}",
            object=made_from(cluster.resource),
            **self.rows.cluster(client.proxy, cluster.name),
        )

    def _beyond(self, draft: Draft, side: Side, host: Host) -> ConnectionTrace:
        """Return the verdict about a host outside the mesh, of which nothing was recorded."""
        own = side.own
        if own is not None and own.missing:
            return self.server.no_certificate(draft, own)
        demands = ""
        if side.speaks != PLAIN and side.roots is None:
            demands = "; it accepts any certificate"
        elif side.roots is not None:
            demands = f"; it trusts {side.roots.name}"
        why = f"nobody recorded what {host.name} takes or shows"
        draft.add("server", host.name, "undecided", f"cannot decide, because {why}{demands}")
        return draft.done(UNDECIDED, "unknown", why)

    def _through_ztunnel(self, client: Pod | None, destination: Destination) -> ConnectionTrace:
        """Return the trace of a connection of which an end is in ambient mode."""
        trace = follow_ambient(self.facts, client, destination, self.mesh)
        return _of_ambient(trace, client)


def _objects(setting: TlsSetting | None, cluster: Taken) -> tuple[str, ...]:
    named = [str(setting.rule)] if setting is not None and setting.rule is not None else []
    return tuple(dict.fromkeys([*named, *filter(None, [made_from(cluster.resource)])]))


def _of_ambient(trace: AmbientTrace, client: Pod | None) -> ConnectionTrace:
    """Return a trace through ztunnels as one of both ends."""
    verdict = {"admitted": WORKS, "refused": FAILS}.get(trace.outcome, UNDECIDED)
    reached = next(iter(trace.reached), None)
    broken = trace.broken
    fault = "none" if verdict == WORKS else "unknown"
    if verdict == FAILS and broken is not None:
        fault = "client" if broken.stage in _CLIENTS else "server"
    spoken = "" if reached is None else "mutual TLS (HBONE)" if reached.identity else PLAIN
    objects = tuple(dict.fromkeys(hop.object for hop in trace.hops if hop.object))
    return ConnectionTrace(
        client=End(
            trace.client,
            "",
            client.mesh if client is not None else OUTSIDE,
            spoken,
            log=reached.client_error if reached is not None else "",
        ),
        server=End(
            trace.destination,
            "",
            "ambient",
            spoken,
            objects=objects,
            log=reached.server_error if reached is not None else "",
        ),
        steps=trace.hops,
        verdict=verdict,
        fault=fault,
        says=trace.says,
    )


def _by_address(pod: Pod, port: int) -> Destination:
    return Destination(joined(pod.address, port), port, pod=pod, address=pod.address)
