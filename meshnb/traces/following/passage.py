"""A request through one proxy: filter chain, virtual host, route, filters, cluster and hosts.

What an Envoy does with a request follows from its configuration alone, up to what the request does
not say and what is left to chance. Each such place leaves several ways, and each is gone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from meshnb.tables.base import Json, dig, items, mapping
from meshnb.tables.envoy import tls_context
from meshnb.traces.envoy.arrival import Arrival, trusted_client
from meshnb.traces.envoy.configs import ProxyConfig, Taken, made_from
from meshnb.traces.envoy.filter_chains import HTTP1, HTTP2, TLS, ChainMatch, Connection
from meshnb.traces.envoy.http_filters import Answer, Filter, Step, filters_for, followed
from meshnb.traces.envoy.matchers import Headers, Truth, Undecided, normal_path
from meshnb.traces.envoy.policies import Decision, Refusal, connecting, decide
from meshnb.traces.envoy.rewriting import rewritten
from meshnb.traces.envoy.route_actions import action_words, clusters_of
from meshnb.traces.envoy.route_match import (
    Candidate,
    host_of,
    is_grpc,
    match_route,
    route_title,
    virtual_host,
    wants_tls,
)
from meshnb.traces.following.ways import Passed, Sent, Way
from meshnb.traces.hop import Hop
from meshnb.traces.request import Request

#: Row of a table that has these values in its key columns; None without one.
Cite = Callable[..., int | None]

_NO_ROUTE = Answer(404, frozenset({"NR"}), "route_not_found")
#: Envoy's words when no filter chain takes a connection, and when its bytes are no HTTP.
NO_CHAIN, NO_CODEC = "filter_chain_not_found", "http1.codec_error"
_CHAINLESS = Answer(0, frozenset({"NR"}), NO_CHAIN)
_GARBLED = Answer(400, frozenset({"DPE"}), NO_CODEC)
_NO_CLUSTER = {
    "NOT_FOUND": 404,
    "INTERNAL_SERVER_ERROR": 500,
}
_REDIRECTS = {
    "FOUND": 302,
    "SEE_OTHER": 303,
    "TEMPORARY_REDIRECT": 307,
    "PERMANENT_REDIRECT": 308,
}


#: Sends a request to a cluster and follows it there.
Deliver = Callable[["Passage", Sent, Way], None]


@dataclass(slots=True)
class Passage:
    """A request on its way through one proxy. What it finds is in ``passed``."""

    config: ProxyConfig
    request: Request
    #: the caller's certificate, as far as it is known
    names: tuple[str, ...] | Undecided
    cite: Cite
    deliver: Deliver
    #: the object that an inbound chain's TLS comes from, such as a PeerAuthentication
    chain_object: str = ""
    passed: Passed = field(default_factory=Passed)

    @property
    def proxy(self) -> str:
        """The proxy that the request passes."""
        return self.config.proxy

    def hop(self, way: Way, stage: str, outcome: str, says: str, **more: Any) -> None:
        """Note a hop at this proxy."""
        self.passed.hops.append(
            Hop(stage=stage, proxy=self.proxy, outcome=outcome, says=says, when=way.when, **more)
        )

    # --- Filter chain ----------------------------------------------------------------------------

    def chain(self, listener: Taken, match: ChainMatch, connection: Connection, way: Way) -> None:
        """Follow a connection into the filter chain that takes it, or not."""
        cited = {
            "table": "listeners",
            "row": self.cite(
                "listeners", proxy=self.proxy, listener=listener.name, position=match.position
            ),
            "resource": f"{listener.name} / {match.name}",
            "object": self.chain_object or made_from(match.chain),
            "passed_over": match.passed_over,
            "since": listener.since,
        }
        if match.undecided:
            self.hop(
                way, "filter chain", "undecided", f"Cannot decide: {match.undecided}.", **cited
            )
            self.passed.lose(way, match.undecided)
            return
        if match.chain is None:
            cited["resource"] = listener.name
            says = f"No filter chain takes {connection}: the connection is closed."
            self.hop(way, "filter chain", "stopped", says, **cited)
            self.passed.end(way, self.proxy, _CHAINLESS)
            return
        context = tls_context(match.chain.get("transport_socket"))
        if context is not None and connection.speaks != TLS:
            says = f"The chain wants TLS, but the client speaks {connection}."
            self.hop(way, "filter chain", "stopped", says, **cited)
            self.passed.end(way, self.proxy, Answer(0, frozenset(), None))
            return
        speech = "ends the client's TLS" if context is not None else "speaks no TLS itself"
        says = f"{match.name} takes {connection} and {speech}."
        self.hop(way, "filter chain", "passed", says, **cited)
        self._filters(match.chain, connection, context, way)

    def _filters(
        self,
        chain: Mapping[str, Any],
        connection: Connection,
        context: Mapping[str, Any] | None,
        way: Way,
    ) -> None:
        arrival = self._arrival(connection, context)
        decisions, manager = connecting(chain, arrival, self.config)
        tcp = {} if manager else _tcp_proxy(chain, connection)
        for decision in decisions.decisions:
            # Rules are asked with the first bytes: the TCP proxy has called its cluster by then.
            named = decision.kind == "RBAC" and isinstance(tcp.get("cluster"), str)
            gone = self.decided(replace(way, cluster=tcp["cluster"]) if named else way, decision)
            way = replace(gone, cluster=way.cluster)
            if decision.outcome == "stopped":
                return
        if manager:
            self._requested(manager, connection, context, decisions.arrival, way)
            return
        if tcp:
            self._bare(tcp, connection, way)
            return
        reason = "the filter chain neither reads requests nor hands bytes on"
        self.hop(way, "network filters", "undecided", f"Cannot decide: {reason}.")
        self.passed.lose(way, reason)

    def _arrival(self, connection: Connection, context: Mapping[str, Any] | None) -> Arrival:
        demands = context is not None and context.get("require_client_certificate") is True
        return Arrival(
            encrypted=context is not None,
            names=self.names if demands else (),
            source=connection.source or None,
            remote=connection.source or None,
            destination=connection.address or None,
            destination_port=connection.port or None,
            server_name=connection.server_name,
            time=self.request.time,
        )

    def _bare(self, tcp: Mapping[str, Any], connection: Connection, way: Way) -> None:
        """Hand bytes on to the cluster of a TCP proxy."""
        single = tcp.get("cluster")
        names = (
            [str(single)]
            if single
            else [
                str(dig(one, "name", default=""))
                for one in items(tcp, "weighted_clusters", "clusters")
            ]
        )
        for name in names:
            gone = replace(way, cluster=name, route=None)
            gone = gone.on(f"it is sent to {name}") if len(names) > 1 else gone
            sent = Sent(self.request, connection, name, {}, {}, {})
            self.deliver(self, sent, gone)
        if not names:
            self.passed.lose(way, "the TCP proxy names no cluster")

    def decided(self, way: Way, decision: Decision) -> Way:
        """Note what a policy decides; return the way on."""
        self.hop(
            way,
            "policy",
            decision.outcome,
            decision.says,
            resource=decision.policy or decision.filter,
            object=decision.object,
            **self._rule(decision),
        )
        for refusal in decision.possible:
            if decision.outcome != "passed":
                self._refused(way, decision, refusal)
        if decision.outcome != "undecided":
            return way
        if not decision.possible:
            self.passed.lose(way, decision.says)
        return way.doubted(decision.says)

    def _rule(self, decision: Decision) -> dict[str, Any]:
        """Cite the rule that decides, or else the first of the policy that comes nearest."""
        if decision.kind != "RBAC" or not (decision.policy or decision.object):
            return {}
        key = {"name": decision.policy} if decision.policy else {}
        _, _, place = decision.object.partition(" ")
        namespace, _, name = place.partition("/")
        key = key or {"namespace": namespace, "policy": name}
        return {"table": "rbac_rules", "row": self.cite("rbac_rules", proxy=self.proxy, **key)}

    def _refused(self, way: Way, decision: Decision, refusal: Refusal) -> None:
        code = 0 if refusal.status is None else refusal.status
        flags = refusal.flags
        answer = Answer(code, flags, refusal.details)
        because = decision.says if decision.outcome == "undecided" else ""
        self.passed.end(way, self.proxy, answer, policy=decision.policy, because=because)

    # --- Requests --------------------------------------------------------------------------------

    def _requested(
        self,
        manager: Mapping[str, Any],
        connection: Connection,
        context: Mapping[str, Any] | None,
        arrival: Arrival,
        way: Way,
    ) -> None:
        """Follow a request into an HTTP connection manager."""
        if connection.speaks not in (HTTP1, HTTP2) and context is None:
            says = f"What the client sends is no HTTP: {connection}."
            self.hop(way, "HTTP", "stopped", says)
            self.passed.end(way, self.proxy, _GARBLED)
            return
        if not self.request.method:
            # Had it been a request, the log would have it as one.
            says = "Requests that come this way are in the log by themselves."
            self.hop(way, "HTTP", "undecided", says)
            return
        if not self.request.path and self.request.method != "CONNECT":
            reason = "the path is not known, because an expression rewrote it"
            self.hop(way, "path", "undecided", f"Cannot decide: {reason}.")
            self.passed.lose(way, reason)
            return
        self.passed.grpc = self._grpc(self.request.known_headers, connection)
        path = normal_path(self.request.path, manager)
        if isinstance(path, Undecided):
            self.hop(way, "path", "undecided", f"Cannot decide, because {path.reason}.")
            self.passed.lose(way, path.reason)
            return
        if path.status is not None:
            says = f"The path {self.request.path} is not accepted."
            self.hop(way, "path", "stopped", says)
            self.passed.end(way, self.proxy, Answer(path.status, frozenset(), path.details or None))
            return
        headers = self._headers(manager, path.path, encrypted=context is not None)
        remote = trusted_client(manager, headers.get("x-forwarded-for"), arrival.source)
        arrival = replace(arrival, headers=headers, remote=remote)
        name = dig(manager, "rds", "route_config_name")
        if "scoped_routes" in manager:
            self.passed.lose(way, "routes are chosen by scopes, which are not evaluated offline")
            return
        routes: Json = manager.get("route_config")
        if isinstance(name, str):
            taken = self.config.routes.get(name)
            way = way.since_also(None if taken is None else taken.since, routing=True)
            routes = None if taken is None else taken.resource
        name = str(name or mapping(routes).get("name", ""))
        if routes is None:
            says = f"The proxy has no route configuration {name}."
            self.hop(way, "routes", "stopped", says, table="routes", resource=name)
            self.passed.end(replace(way, route=""), self.proxy, _NO_ROUTE)
            return
        self._hosted(mapping(routes), name, manager, connection, arrival, way)

    def _grpc(self, headers: Headers, connection: Connection) -> Truth:
        """Whether the request is gRPC, which is always a POST by HTTP/2."""
        two = connection.speaks == HTTP2 or self.request.protocol == "HTTP/2"
        if not headers.complete and (self.request.method != "POST" or not two):
            return False
        return is_grpc(headers)

    def _headers(self, manager: Mapping[str, Any], path: str, *, encrypted: bool) -> Headers:
        """Return the headers as filters see them, with what the connection manager sets itself."""
        known = self.request.known_headers
        set_here = {":path": path}
        scheme = "https" if encrypted else "http"
        if manager.get("use_remote_address") is True or known.complete:
            set_here |= {"x-forwarded-proto": scheme, ":scheme": scheme}
        return Headers({**known.known, **set_here}, complete=known.complete)

    def _hosted(
        self,
        routes: Mapping[str, Any],
        name: str,
        manager: Mapping[str, Any],
        connection: Connection,
        arrival: Arrival,
        way: Way,
    ) -> None:
        """Find the virtual host and the routes, and follow each that may be taken."""
        host = host_of(self.request.authority, manager, routes, connection.port)
        found = virtual_host(routes, host)
        if found.undecided:
            self.hop(way, "virtual host", "undecided", f"Cannot decide: {found.undecided}.")
            self.passed.lose(way, found.undecided)
            return
        router = _Router(self, routes, name, manager, connection, arrival)
        if found.host is None:
            says = f"No virtual host of {name} has the domain {host}."
            self.hop(
                way,
                "virtual host",
                "stopped",
                says,
                table="routes",
                resource=name,
                passed_over=found.passed_over,
                since=way.routed_since,
            )
            router.unrouted(way)
            return
        title = str(found.host.get("name", ""))
        self.hop(
            way,
            "virtual host",
            "passed",
            f"{title} takes {host}, by its domain {found.domain}.",
            table="routes",
            row=self.cite("routes", proxy=self.proxy, name=name, vhost_name=title),
            resource=f"{name} / {title}",
            passed_over=found.passed_over,
            since=way.routed_since,
        )
        secured = wants_tls(found.host, arrival.headers, encrypted=arrival.encrypted is True)
        if secured is not False:
            sure = secured is True
            router.redirected(
                found.host, title, replace(way if sure else way.doubted(str(secured)), route="")
            )
            if sure:
                return
        router.routed(found.host, way)


def _tcp_proxy(chain: Mapping[str, Any], connection: Connection) -> Mapping[str, Any]:
    """Return what the TCP proxy of a chain is told; empty without one."""
    by_name = False
    for one in items(chain, "filters"):
        kind = str(dig(one, "typed_config", "@type", default=""))
        by_name = by_name or kind.endswith(".SniCluster")
        if kind.endswith(".TcpProxy"):
            tcp = mapping(one, "typed_config")
            return {**tcp, "cluster": connection.server_name} if by_name else tcp
    return {}


@dataclass(slots=True)
class _Router:
    """The routes of one route configuration, for one request."""

    passage: Passage
    routes: Mapping[str, Any]
    name: str
    manager: Mapping[str, Any]
    connection: Connection
    arrival: Arrival

    def routed(self, host: Mapping[str, Any], way: Way) -> None:
        """Follow each route that may take the request."""
        passage = self.passage
        headers = self.arrival.headers
        path = headers.known.get(":path") or ""
        match = match_route(host, headers, path, tls=self.arrival.encrypted)
        title = str(host.get("name", ""))
        left = list(match.passed_over)
        for candidate in match.candidates:
            taken = way
            if candidate.unless or len(match.candidates) > 1:
                taken = _perhaps(way, candidate, match.candidates)
            passage.hop(
                taken,
                "route",
                "undecided" if candidate.unless else "passed",
                _route_words(candidate),
                table="routes",
                row=passage.cite(
                    "routes",
                    proxy=passage.proxy,
                    name=self.name,
                    vhost_name=title,
                    position=candidate.position,
                ),
                resource=f"{self.name} / {title} / {_place(candidate)}",
                object=made_from(candidate.route),
                passed_over=tuple(left),
                since=way.routed_since,
            )
            left.append((route_title(candidate.route, candidate.position), candidate.unless))
            self._acted(host, candidate.route, taken)
        if not match.certain:
            gone = way
            for candidate in match.candidates:
                gone = gone.doubted(candidate.unless)
            gone = gone.on("no route takes it") if match.candidates else gone
            passage.hop(
                gone,
                "route",
                "stopped",
                f"No route of {title} takes {passage.request.method} {path}.",
                table="routes",
                resource=f"{self.name} / {title}",
                passed_over=tuple(left),
                since=way.routed_since,
            )
            self.unrouted(gone)

    def unrouted(self, way: Way) -> None:
        """Go through the filters, which come before the answer that there is no route.

        Without a route, nothing that a virtual host says of filters counts.
        """
        gone = self._filtered((), "", replace(way, route="", cluster=None))
        if gone is not None:
            self.passage.passed.end(gone, self.passage.proxy, _NO_ROUTE)

    def _own(
        self, host: Mapping[str, Any], route: Mapping[str, Any], cluster: Mapping[str, Any]
    ) -> tuple[Mapping[str, Any], ...]:
        levels = (cluster, route, host, self.routes)
        return tuple(mapping(level, "typed_per_filter_config") for level in levels)

    def redirected(self, host: Mapping[str, Any], title: str, way: Way) -> None:
        """Redirect to HTTPS, as a virtual host says; filters may answer before that."""
        gone = self._filtered(self._own(host, {}, {}), "", way)
        if gone is not None:
            passage = self.passage
            passage.hop(gone, "route", "stopped", f"{title} redirects to HTTPS.", resource=title)
            passage.passed.end(gone, passage.proxy, Answer(301, frozenset(), "direct_response"))

    def _acted(self, host: Mapping[str, Any], route: Mapping[str, Any], way: Way) -> None:
        """Do what a route says."""
        way = replace(way, route=str(route.get("name") or ""))
        if "route" not in route:
            gone = self._filtered(self._own(host, route, {}), "", replace(way, cluster=None))
            if gone is not None:
                self._answered(route, gone)
            return
        action = mapping(route, "route")
        choices = list(clusters_of(action, self.arrival.headers))
        for choice in choices:
            # A filter that answers logs the cluster, if the proxy has it.
            held = choice.name in self.passage.config.clusters
            gone = replace(way, cluster=choice.name if held else None)
            if len(choices) > 1:
                gone = gone.on(f"it is among the {choice.share} for {choice.name}")
            if choice.unknown:
                gone = replace(gone, cluster=None).doubted(choice.unknown)
                self.passage.passed.lose(gone, choice.unknown)
                continue
            on = self._filtered(self._own(host, route, choice.weighted), choice.name, gone)
            if on is not None:
                self._sent(host, route, choice.name, on)

    def _filtered(self, own: tuple[Mapping[str, Any], ...], cluster: str, way: Way) -> Way | None:
        """Go through the HTTP filters; return the way on, None when a filter surely answers."""
        arrival = self.arrival
        for one in filters_for(self.manager, self.passage.config, own):
            step = followed(one, arrival.headers, cluster)
            if step is None:
                decision, arrival = decide(one, arrival)
                if decision is not None:
                    way = self.passage.decided(way, decision)
                    if decision.outcome == "stopped":
                        return None
            elif step.says:
                gone = self._stepped(one, step, way)
                if gone is None:
                    return None
                way = gone
        return way

    def _stepped(self, one: Filter, step: Step, way: Way) -> Way | None:
        passage = self.passage
        sure = step.truth is True
        unsure = isinstance(step.truth, Undecided)
        outcome = (
            "stopped"
            if sure
            else "undecided"
            if unsure
            else ("altered" if step.alters else "passed")
        )
        why = f"; {step.truth.reason}" if isinstance(step.truth, Undecided) else ""
        says = f"{step.says[:1].upper()}{step.says[1:]}{why}."
        passage.hop(way, one.kind, outcome, says, resource=one.name)
        gone = replace(way, flags=way.flags | step.flags)
        if step.answer is not None and (sure or unsure):
            ends = way.doubted(step.truth.reason) if isinstance(step.truth, Undecided) else way
            if step.flags:
                passage.passed.end(gone.doubted("it may be delayed"), passage.proxy, step.answer)
            passage.passed.end(ends, passage.proxy, step.answer)
        if sure:
            return None
        if isinstance(step.truth, Undecided):
            return gone.doubted(step.truth.reason)
        return gone

    def _answered(self, route: Mapping[str, Any], way: Way) -> None:
        """Answer as a route says that sends nothing on."""
        passage = self.passage
        redirect, direct = mapping(route, "redirect"), mapping(route, "direct_response")
        if redirect:
            code = _REDIRECTS.get(str(redirect.get("response_code", "")), 301)
            where = redirect.get("host_redirect") or redirect.get("path_redirect") or "elsewhere"
            says = f"The route redirects to {where} with {code}."
        elif "direct_response" in route:
            code = direct.get("status", 200)
            says = f"The route itself answers {code}."
        else:
            reason = "the route neither sends requests on nor answers them"
            passage.hop(way, "route action", "undecided", f"Cannot decide, because {reason}.")
            passage.passed.lose(way, reason)
            return
        passage.hop(way, "route action", "stopped", says, resource=way.route or "")
        passage.passed.end(way, passage.proxy, Answer(code, frozenset(), "direct_response"))

    def _sent(
        self, host: Mapping[str, Any], route: Mapping[str, Any], cluster: str, way: Way
    ) -> None:
        """Send the request on to a cluster, with what the route changes of it."""
        passage = self.passage
        action = mapping(route, "route")
        taken = passage.config.clusters.get(cluster)
        if taken is None:
            self._missing(action, cluster, way)
            return
        changed, words = rewritten(passage.request, self.arrival.headers, route, host)
        says = action_words(action, host, words)
        passage.hop(
            way,
            "route action",
            "altered" if words else "passed",
            f"It is sent to {cluster}{says}.",
            resource=cluster,
            object=made_from(route),
        )
        sent = Sent(changed, self.connection, cluster, route, host, self.manager)
        passage.deliver(passage, sent, way)

    def _missing(self, action: Mapping[str, Any], cluster: str, way: Way) -> None:
        passage = self.passage
        code = _NO_CLUSTER.get(str(action.get("cluster_not_found_response_code", "")), 503)
        warming = "; it is warming" if cluster in passage.config.warming else ""
        gone = way.since_also(passage.config.clusters_since)
        gone = replace(gone, cluster=None)
        passage.hop(
            way,
            "cluster",
            "stopped",
            f"The proxy has no cluster {cluster}{warming}.",
            table="clusters",
            resource=cluster,
            since=passage.config.clusters_since,
        )
        answer = Answer(code, frozenset({"NC"}), "cluster_not_found")
        passage.passed.end(gone, passage.proxy, answer)


def _perhaps(way: Way, candidate: Candidate, all_of_them: tuple[Candidate, ...]) -> Way:
    for before in all_of_them:
        if before is candidate:
            break
        way = way.doubted(before.unless)
    name = candidate.route.get("name") or f"route {candidate.position}"
    return (way.doubted(candidate.unless) if candidate.unless else way).on(f"{name} takes it")


def _place(candidate: Candidate) -> str:
    return str(candidate.route.get("name") or candidate.position)


def _route_words(candidate: Candidate) -> str:
    title = route_title(candidate.route, candidate.position)
    return (
        f"{title} may take it ({candidate.unless})." if candidate.unless else f"{title} takes it."
    )
