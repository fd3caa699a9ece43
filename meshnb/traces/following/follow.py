"""Follows requests through the recorded proxies: from the first to the application.

One :class:`Follower` for a source keeps what it has decoded and found: requests that differ only
in time come by the same hops. When something on the way was changed after a request, it is said so
instead of what is there now.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from typing import Any

from meshnb.tables import Facts
from meshnb.tables.base import mapping
from meshnb.traces.capture import bypass, captures_inbound
from meshnb.traces.connection import Connections
from meshnb.traces.ends.base import FAILS, ConnectionTrace
from meshnb.traces.ends.places import find_pod
from meshnb.traces.envoy.balancing import Balanced, Host, choose
from meshnb.traces.envoy.configs import ProxyConfig, ProxyConfigs, Taken, latest
from meshnb.traces.envoy.filter_chains import (
    HTTP1,
    HTTP2,
    TLS,
    ChainMatch,
    Connection,
    joined,
    listener_at,
    match_chain,
)
from meshnb.traces.envoy.http_filters import Answer
from meshnb.traces.envoy.matchers import Undecided
from meshnb.traces.envoy.route_actions import objects_of
from meshnb.traces.following.clients import INBOUND, OUTBOUND, Clients, is_sidecar
from meshnb.traces.following.delivery import Spoken, returned, spoken, unshaken
from meshnb.traces.following.hindsight import Hindsight
from meshnb.traces.following.identities import Identities
from meshnb.traces.following.passage import NO_CHAIN, NO_CODEC, Passage
from meshnb.traces.following.settling import Settling
from meshnb.traces.following.unproxied import place, pods_behind, through_ztunnel
from meshnb.traces.following.ways import Passed, Sent, Way
from meshnb.traces.hop import Hop
from meshnb.traces.mesh import MESH, Mesh, Pod
from meshnb.traces.request import ARRIVING, LEAVING, Outcome, Request, RequestTrace
from meshnb.traces.row_index import RowIndex

#: Ports of the proxy itself, which no rule of Istio's iptables redirects.
_OWN_PORTS = frozenset({15000, 15004, 15020, 15021, 15053, 15090})


#: Hosts behind Envoy's own tunnel to the ambient mesh.
_TUNNEL = "envoy://connect_originate/"


@dataclass(frozen=True, slots=True)
class _Caller:
    """What is known of who sends a request to a proxy: its certificate's names."""

    names: tuple[str, ...] | Undecided = ()


class Follower:
    """Follows requests of one source."""

    def __init__(self, facts: Facts, *, cite: bool = True) -> None:
        """Take a source's facts. Without ``cite`` hops name no rows: no table is made for that."""
        self.facts = facts
        self.mesh: Mesh = MESH.make(facts)
        self.configs = ProxyConfigs(facts)
        self._hindsight = Hindsight(facts, self.configs)
        self._clients = Clients(self.mesh, self.configs)
        self._identities = Identities(facts, self.mesh)
        self._settling = Settling(facts, self.mesh)
        self._handshakes: dict[tuple[str, str, str], ConnectionTrace] = {}
        self._rows = RowIndex(facts) if cite else None
        self._traces: dict[Request, RequestTrace] = {}
        self._arrivals: dict[tuple[Any, ...], Passed] = {}

    def follow(self, request: Request) -> RequestTrace:
        """Follow a request. Where something was changed since its time, its end is not known."""
        key = request.timeless
        if key not in self._traces:
            self._traces[key] = self._traced(key)
        return self._hindsight.at(self._traces[key], request)

    # --- The first proxy -------------------------------------------------------------------------

    def _traced(self, request: Request) -> RequestTrace:
        passed = Passed()
        pod = self.mesh.pod_of(request.proxy)
        config = self.configs.of(request.proxy)
        if not request.proxy:
            self._unproxied(passed, request)
        elif config is None:
            reason = self.configs.silence(request.proxy)
            passed.hops.append(
                Hop("listener", request.proxy, "undecided", f"Cannot decide: {reason}.")
            )
            passed.lose(Way(), reason)
        elif request.way == LEAVING and pod and (past := _past(pod, request)):
            says = f"It goes past the proxy, because of {past}."
            passed.hops.append(Hop("capture", request.proxy, "passed", says))
            passed.lose(Way(), says)
        else:
            caller = self._caller(request)
            choices = list(self._clients.connections(request))
            self._enter(passed, config, pod, request, choices, caller)
        if not passed.outcomes:
            passed.lose(Way(), "the log has a connection, and not what came by it")
        reasons = [reason for outcome in passed.outcomes for reason in (outcome.because,) if reason]
        return RequestTrace(
            request,
            tuple(passed.hops),
            tuple(dict.fromkeys(passed.outcomes)),
            tuple(dict.fromkeys(reasons)),
        )

    def _caller(self, request: Request) -> _Caller:
        """Return whose certificate comes with a request that arrives at a proxy."""
        if request.way == LEAVING or request.tls is False:
            return _Caller()
        if not request.source:
            return _Caller(Undecided("who sent it to the proxy is not known"))
        return _Caller(self._identities.names(self.mesh.pod_at(request.source)))

    def _unproxied(self, passed: Passed, request: Request) -> None:
        """Follow a request of a client that has no Envoy: a pod in ambient mode, or in none."""
        client = find_pod(self.mesh, request.client)
        ahead = Outcome(by="")
        where = joined(request.address, request.port)
        targets = list(pods_behind(self.facts, self.mesh, request.address, request.port))
        ambient = client is not None and client.mesh == "ambient"
        if ambient or any(pod.mesh == "ambient" for pod, _ in targets):
            host = request.authority.partition(":")[0]
            service = self.mesh.service_at(request.address, request.port)
            named = joined(service.host, request.port) if service is not None else where
            there = through_ztunnel(
                self.facts, self.mesh, client, named if request.address else host, ahead, ""
            )
            passed.hops += there.hops
            passed.outcomes += there.outcomes
            return
        if not targets:
            passed.lose(Way(), f"nobody recorded what is behind {where}")
        for pod, port in targets:
            way = Way().on(f"{pod.namespace}/{pod.pod} is chosen") if len(targets) > 1 else Way()
            said = Spoken(TLS if request.tls else HTTP1, request.server_name)
            self._plainly(passed, request, pod, port, way, said)

    def _plainly(
        self, passed: Passed, request: Request, pod: Pod, port: int, way: Way, said: Spoken
    ) -> None:
        """Bring a request to a pod as the client sent it."""
        name = f"{pod.namespace}/{pod.pod}"
        server = self.configs.of(pod.proxy) if pod.proxy else None
        captured = pod.mesh != "sidecar" or captures_inbound(pod, port)
        if pod.proxy and server is None:
            passed.lose(way, self.configs.silence(pod.proxy))
        elif server is None or not captured:
            says = f"The application of {name} gets it on port {port}, and no proxy is before it."
            row = self._cite("pods", namespace=pod.namespace, pod=pod.pod)
            passed.hops.append(
                Hop("application", name, "undecided", says, "pods", row, when=way.when)
            )
            passed.outcomes.append(_reaching(way, "application", joined(pod.address, port)))
        else:
            arriving = replace(
                request, proxy=pod.proxy, way=ARRIVING, address=pod.address, port=port, client=""
            )
            connection = Connection(
                pod.address, port, request.source, 0, said.speaks, said.server_name, said.alpn
            )
            there = self._arrive(server, pod, arriving, connection, _Caller())
            passed.hops += [replace(hop, when=_also(way.when, hop.when)) for hop in there.hops]
            passed.outcomes += there.outcomes

    # --- Into a proxy ----------------------------------------------------------------------------

    def _enter(
        self,
        passed: Passed,
        config: ProxyConfig,
        pod: Pod | None,
        request: Request,
        connections: list[tuple[Connection, str]],
        caller: _Caller,
    ) -> None:
        """Bring a request to a proxy's listener, and into each filter chain that may take it."""
        if pod is not None and pod.mesh == "waypoint":
            why = "what a waypoint's inner listeners do with a tunnelled request is not followed"
            passed.hops.append(Hop("listener", config.proxy, "undecided", f"Cannot decide: {why}."))
            passed.lose(Way(), why)
            return
        listener = self._listener(config, request)
        place = joined(request.address or "an unknown address", request.port)
        if listener is None:
            since = self._settling.without_listener(config.listeners_since)
            way = _by_listener(Way(), config.proxy, since)
            says = f"No listener takes connections to {place}."
            passed.hops.append(Hop("listener", config.proxy, "stopped", says, since=since))
            # Nobody listens, so there is no line in any log.
            passed.end(way, config.proxy, Answer(0, frozenset(), None))
            return
        if not request.address and listener.name == OUTBOUND:
            why = f"the address that the client finds for {request.authority} is not known"
            passed.hops.append(Hop("listener", config.proxy, "undecided", f"Cannot decide: {why}."))
            passed.lose(Way(), why)
            return
        says = f"{listener.name} takes connections to {place}."
        passed.hops.append(
            Hop(
                "listener",
                config.proxy,
                "passed",
                says,
                table="listeners",
                row=self._cite("listeners", proxy=config.proxy, listener=listener.name),
                resource=listener.name,
                since=listener.since,
            )
        )
        matches: dict[int, tuple[ChainMatch, Connection, str]] = {}
        for connection, when in connections:
            match = match_chain(listener.resource, connection)
            known = matches.get(match.position)
            if known is None or known[1].speaks != connection.speaks:
                key = match.position if known is None else -1 - len(matches)
                matches[key] = (match, connection, when)
        for match, connection, when in matches.values():
            way = Way(when=when if len(matches) > 1 else "")
            way = _by_listener(way, config.proxy, listener.since)
            if len(matches) > 1:
                way = way.doubted("it is not known what the client speaks")
            passage = Passage(
                config,
                request,
                caller.names,
                self._cite,
                self._deliver,
                self._chain_object(pod, request),
                passed,
            )
            passage.chain(listener, match, connection, way)

    def _listener(self, config: ProxyConfig, request: Request) -> Taken | None:
        if request.way == ARRIVING:
            if is_sidecar(config):
                if request.port in _OWN_PORTS:
                    return listener_at(config, request.address, request.port)
                return config.listeners.get(INBOUND)
            return listener_at(config, request.address, request.port)
        found = listener_at(config, request.address, request.port)
        return found if found is not None else config.listeners.get(OUTBOUND)

    def _chain_object(self, pod: Pod | None, request: Request) -> str:
        if request.way == LEAVING or pod is None or pod.mesh != "sidecar":
            return ""
        _, policy = self.mesh.mtls_mode(pod, request.port)
        return "" if policy is None else str(policy)

    def _cite(self, table: str, **key: Any) -> int | None:
        return None if self._rows is None else self._rows.row(table, key)

    # --- To a cluster ----------------------------------------------------------------------------

    def _deliver(self, passage: Passage, sent: Sent, way: Way) -> None:
        """Send a request to a cluster, and follow it to the hosts that may be chosen."""
        config = passage.config
        taken = config.clusters.get(sent.cluster)
        bare = not sent.manager
        if taken is None:
            gone = replace(way.since_also(config.clusters_since), cluster=None)
            says = f"The proxy has no cluster {sent.cluster}."
            passage.hop(gone, "cluster", "stopped", says, table="clusters", resource=sent.cluster)
            passage.passed.end(gone, passage.proxy, Answer(0, frozenset({"NC"}), None))
            return
        way = way.since_also(taken.since)
        kind = str(
            taken.resource.get("type")
            or mapping(taken.resource, "cluster_type").get("name")
            or "STATIC"
        )
        passage.hop(
            way,
            "cluster",
            "passed",
            f"{sent.cluster} finds its hosts by {kind}.",
            table="clusters",
            row=self._cite("clusters", proxy=passage.proxy, cluster=sent.cluster),
            resource=sent.cluster,
            object=objects_of(taken.resource),
            since=taken.since,
        )
        if passage.request.way == ARRIVING and is_sidecar(passage.config):
            self._to_application(passage, sent, way)
        elif kind == "ORIGINAL_DST":
            self._past_known(passage, sent, way)
        else:
            self._to_hosts(passage, sent, taken, way, bare=bare)

    def _to_application(self, passage: Passage, sent: Sent, way: Way) -> None:
        pod = self.mesh.pod_of(passage.proxy)
        name = f"{pod.namespace}/{pod.pod}" if pod is not None else passage.proxy
        port = sent.connection.port
        says = (
            f"The application of {name} gets it on port {port}. "
            "Cannot decide what it answers: that is not written in any configuration."
        )
        self._reach_application(passage, pod, name, says, way)
        endpoint = joined(sent.connection.address, port)
        passage.passed.outcomes.append(_reaching(way, "application", endpoint))

    def _past_known(self, passage: Passage, sent: Sent, way: Way) -> None:
        """Send a request where the client wanted it to go: the mesh knows no such host."""
        address, port = sent.connection.address, sent.connection.port
        endpoint = joined(address or "an unknown address", port)
        says = f"It goes to {endpoint}, which the client chose, as it is."
        passage.hop(way, "endpoint", "passed", says, resource=endpoint)
        targets = list(pods_behind(self.facts, self.mesh, address, port))
        if not targets:
            why = f"what {endpoint} does is not known"
            passage.passed.outcomes.append(replace(_reaching(way, "", endpoint), because=why))
        said = Spoken(sent.connection.speaks, sent.connection.server_name, sent.connection.alpn)
        for pod, number in targets:
            gone = way.on(f"{pod.namespace}/{pod.pod} is chosen") if len(targets) > 1 else way
            there = Passed()
            arriving = replace(sent.request, source=sent.connection.source)
            self._plainly(there, arriving, pod, number, gone, said)
            passage.passed.hops += there.hops
            ahead = _reaching(gone, "", endpoint)
            self._returned(passage, sent, there, said, ahead)

    def _returned(
        self, passage: Passage, sent: Sent, there: Passed, said: Spoken, ahead: Outcome
    ) -> None:
        """Note what a client's proxy logs, for each way that it may end at the server."""
        retries = _retries(sent)
        for outcome in there.outcomes:
            mine = replace(
                ahead,
                since=latest((ahead.since, outcome.since)),
                listeners=(*ahead.listeners, *outcome.listeners),
            )
            passage.passed.outcomes.append(
                returned(outcome, said, mine, retries, bare=not sent.manager)
            )

    def _to_hosts(
        self, passage: Passage, sent: Sent, taken: Taken, way: Way, *, bare: bool
    ) -> None:
        balanced = choose(passage.config, sent.cluster)
        way = way.since_also(self._settling.since(sent.cluster))
        self._balanced(passage, sent, balanced, way)
        if balanced.undecided:
            passage.passed.lose(way, balanced.undecided)
            return
        if not balanced.chosen or balanced.sometimes_none:
            gone = way.doubted(balanced.sometimes_none) if balanced.chosen else way
            code = 0 if bare else 503
            details = None if bare else "no_healthy_upstream"
            passage.passed.end(gone, passage.proxy, Answer(code, frozenset({"UH"}), details))
            if balanced.sometimes_none:
                way = way.doubted(balanced.sometimes_none)
        for host in balanced.chosen:
            said = spoken(taken.resource, host, sent.connection, sent.manager)
            gone = way.on(f"{host.name} is chosen") if len(balanced.chosen) > 1 else way
            self._to_host(passage, sent, host, said, gone)

    def _balanced(self, passage: Passage, sent: Sent, balanced: Balanced, way: Way) -> None:
        names = ", ".join(host.name for host in balanced.chosen[:5])
        more = f" and {len(balanced.chosen) - 5} more" if len(balanced.chosen) > 5 else ""
        if balanced.undecided:
            says, outcome = f"Cannot decide: {balanced.undecided}.", "undecided"
        elif balanced.chosen:
            panic = " whatever their health, because too few are healthy" if balanced.panic else ""
            says, outcome = f"It may go to {names}{more}{panic}.", "passed"
        else:
            says, outcome = f"{sent.cluster} has no host that may be chosen.", "stopped"
        if balanced.sometimes_none:
            says, outcome = f"{says} But {balanced.sometimes_none}.", "undecided"
        first = balanced.chosen[0].name if balanced.chosen else None
        passage.hop(
            way,
            "endpoints",
            outcome,
            says,
            table="endpoints",
            row=self._cite("endpoints", proxy=passage.proxy, cluster=sent.cluster, endpoint=first),
            resource=sent.cluster,
            passed_over=balanced.passed_over,
            since=way.since,
        )

    def _to_host(self, passage: Passage, sent: Sent, host: Host, said: Spoken, way: Way) -> None:
        """Bring a request to one host, through the proxy in front of it if there is one."""
        ahead = _reaching(way, "", host.name)
        client = self.mesh.pod_of(passage.proxy)
        pod = self.mesh.pod_at(host.address) if host.address else None
        tls = f"{said.socket or 'TLS'} with SNI {said.server_name or 'none'}"
        how = tls if said.speaks == TLS else "plain text"
        passage.hop(
            way,
            "transport",
            "passed",
            f"To {host.name} it speaks {how}.",
            resource=host.name,
            table="endpoints",
            row=self._cite(
                "endpoints", proxy=passage.proxy, cluster=sent.cluster, endpoint=host.name
            ),
        )
        tunnel = host.other.removeprefix(_TUNNEL)
        if tunnel != host.other or (pod is not None and pod.mesh == "ambient"):
            where = tunnel if pod is None else place(pod, host.port)
            there = through_ztunnel(self.facts, self.mesh, client, where, ahead, way.when)
            passage.passed.hops += there.hops
            passage.passed.outcomes += there.outcomes
            return
        if host.other or not host.address:
            why = f"{host.name} is no address: what is behind it is not followed here"
            passage.passed.outcomes.append(replace(ahead, because=why))
            return
        if pod is None:
            why = f"{host.name} is no pod of the mesh, and what it does is not known"
            by = "application" if said.speaks != TLS else ""
            passage.passed.outcomes.append(replace(ahead, by=by, because="" if by else why))
            return
        server = self.configs.of(pod.proxy) if pod.proxy else None
        if not pod.proxy or (pod.mesh == "sidecar" and not captures_inbound(pod, host.port)):
            self._bare_pod(passage, pod, host, said, ahead, way)
            return
        if server is None:
            why = self.configs.silence(pod.proxy)
            passage.passed.outcomes.append(replace(ahead, because=why))
            return
        connection = said.to(host, client.address if client is not None else "")
        arriving = replace(
            sent.request,
            proxy=pod.proxy,
            way=ARRIVING,
            address=host.address,
            port=host.port,
            source=connection.source,
            protocol="HTTP/2" if said.speaks == HTTP2 else "HTTP/1.1",
            tls=said.speaks == TLS,
            server_name=said.server_name,
        )
        names = self._identities.names(client) if said.speaks == TLS else ()
        there = self._arrive(server, pod, arriving, connection, _Caller(names))
        passage.passed.hops += [replace(hop, when=_also(way.when, hop.when)) for hop in there.hops]
        taken = passage.config.clusters[sent.cluster]
        if said.speaks == TLS and client is not None and _taken_in(there):
            shaken = self._handshake(client, taken, host)
            if shaken.verdict == FAILS:
                passage.hop(way, "TLS", "stopped", shaken.says, resource=host.name)
                failed = replace(ahead, by=passage.proxy, since=self.facts.now)
                passage.passed.outcomes.append(unshaken(failed, _retries(sent)))
                return
        self._returned(passage, sent, there, said, ahead)

    @cached_property
    def _both_ends(self) -> Connections:
        return Connections(self.facts, self.mesh, self.configs)

    def _handshake(self, client: Pod, cluster: Taken, host: Host) -> ConnectionTrace:
        """Return what becomes of a TLS handshake, by the certificates of both ends."""
        key = (client.proxy, cluster.name, host.name)
        if key not in self._handshakes:
            self._handshakes[key] = self._both_ends.between(client, cluster, host)
        return self._handshakes[key]

    def _arrive(
        self,
        config: ProxyConfig,
        pod: Pod,
        request: Request,
        connection: Connection,
        caller: _Caller,
    ) -> Passed:
        key = (config.proxy, request, connection, caller)
        if key not in self._arrivals:
            passed = Passed()
            self._enter(passed, config, pod, request, [(connection, "")], caller)
            self._arrivals[key] = passed
        return self._arrivals[key]

    def _reach_application(
        self, passage: Passage, pod: Pod | None, name: str, says: str, way: Way
    ) -> None:
        """Add the last hop, at which no configuration tells what becomes of the request."""
        row = None if pod is None else self._cite("pods", namespace=pod.namespace, pod=pod.pod)
        passage.passed.hops.append(
            Hop("application", name, "undecided", says, when=way.when, table="pods", row=row)
        )

    def _bare_pod(
        self, passage: Passage, pod: Pod, host: Host, said: Spoken, ahead: Outcome, way: Way
    ) -> None:
        """Bring a request to a pod without a proxy in front of the port."""
        name = f"{pod.namespace}/{pod.pod}"
        says = f"The application of {name} gets it on port {host.port}."
        if said.speaks == TLS:
            says += " Cannot decide whether it speaks TLS."
        self._reach_application(passage, pod, name, says, way)
        known = said.speaks != TLS
        why = "" if known else f"what {name} does with the connection is not known"
        by = "application" if known else ""
        passage.passed.outcomes.append(replace(ahead, by=by, because=why or ahead.because))


def _reaching(way: Way, by: str, endpoint: str) -> Outcome:
    return Outcome(
        by=by,
        route=way.route,
        cluster=way.cluster,
        flags=way.flags,
        endpoint=endpoint,
        because="; ".join(way.because),
        routed_since=way.routed_since,
        since=way.since,
        listeners=way.listeners,
    )


def _by_listener(way: Way, proxy: str, since: datetime | None) -> Way:
    way = way.since_also(since, routing=True)
    return way if since is None else replace(way, listeners=((proxy, since),))


def _retries(sent: Sent) -> Mapping[str, Any]:
    return mapping(sent.route, "route", "retry_policy") or mapping(sent.host, "retry_policy")


def _taken_in(there: Passed) -> bool:
    """Whether a server's filter chain takes what the client speaks."""
    return all(one.details not in (NO_CHAIN, NO_CODEC) for one in there.outcomes)


def _past(pod: Pod, request: Request) -> str:
    return bypass(pod, request.address, request.port) if pod.mesh == "sidecar" else ""


def _also(one: str, other: str) -> str:
    return " and ".join(condition for condition in (one, other) if condition)
