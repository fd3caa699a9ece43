"""One connection of an ambient mesh, followed from the client to the pod, through ztunnels.

The order is ztunnel's own (``src/proxy/outbound.rs``, ``inbound.rs`` and ``inbound_passthrough.rs``
of ztunnel 1.30): is the client captured, does its ztunnel know the destination, does a waypoint
stand before it, how is the server reached (HBONE on port 15008, or as it is), what do the policies
of the server's ztunnel say about the identity that arrives, and then the pod.

The trace ``request`` calls :func:`follow_ambient` when client or server is in ambient mode.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from meshnb.tables import Facts
from meshnb.tables.base import dig, items
from meshnb.traces.ends.places import OUTSIDE, Destination, find_client, find_destination
from meshnb.traces.hop import Hop
from meshnb.traces.mesh import CLUSTER_DOMAIN, MESH, Mesh, Pod, ServicePort, plain
from meshnb.traces.rules import target_references
from meshnb.traces.tunnels.ambient_trace import AmbientTrace, Reached, Way
from meshnb.traces.tunnels.enrolment import Enrolment, enrolment_of, excluded_namespaces
from meshnb.traces.tunnels.network_policies import HBONE, admitted, disobeyed, let_out
from meshnb.traces.tunnels.waypoints import Waypoints, WaypointUse
from meshnb.traces.tunnels.ztunnel_policies import Connection, decide, origin, unenforceable
from meshnb.traces.tunnels.ztunnels import Target, Ztunnels, target_port

__all__ = ["AmbientTrace", "Reached", "follow_ambient"]

_TUNNELLED = "envoy://connect_originate/"


def follow_ambient(
    facts: Facts,
    client: str | Pod | None,
    destination: str | Destination,
    mesh: Mesh | None = None,
) -> AmbientTrace:
    """Follow a connection of which one end at least is in ambient mode.

    ``client`` is a pod (``shop/cart-1`` or ``cart-1.shop``), its address, or ``outside`` (None);
    ``destination`` is a Service, a pod or an address with a port, such as ``seeds.garden:8000``.
    The port may be left out where there is one only. Raises UsageError for a name that is not
    there, offering the nearest.
    """
    known = mesh if mesh is not None else MESH.make(facts)
    follower = _Follower(facts, known)
    return follower.follow(
        find_client(known, client) if isinstance(client, str) else client,
        find_destination(known, destination) if isinstance(destination, str) else destination,
    )


# --- The way -------------------------------------------------------------------------------------


class _Follower:
    def __init__(self, facts: Facts, mesh: Mesh) -> None:
        self.facts = facts
        self.mesh = mesh
        self.waypoints = Waypoints(facts, mesh)
        self.excluded = excluded_namespaces(facts)
        pods = facts["pods"]
        self.rows = {
            (str(namespace), str(pod)): index
            for index, (namespace, pod) in enumerate(
                zip(pods["namespace"], pods["pod"], strict=True)
            )
        }
        self.ztunnels = Ztunnels(facts, mesh)

    def follow(self, client: Pod | None, destination: Destination) -> AmbientTrace:
        way = Way(client, destination)
        targets: list[Target] = []
        if self._leaves(way) and self._known(way, targets):
            waypoint = self._waypoint(way)
            reached = tuple(self._arrives(way, target, waypoint) for target in targets)
            return AmbientTrace(_title(client), destination.title, tuple(way.hops), reached)
        return AmbientTrace(_title(client), destination.title, tuple(way.hops))

    # --- at the client ---

    def _enrolment(self, pod: Pod) -> Enrolment:
        return enrolment_of(pod, self.mesh.namespaces, self.excluded)

    def _pod_cited(self, pod: Pod) -> dict[str, Any]:
        row = self.rows.get((pod.namespace, pod.pod))
        return {"table": "pods", "row": row, "object": f"Pod {pod.namespace}/{pod.pod}"}

    def _leaves(self, way: Way) -> bool:
        client = way.client
        if client is None:
            way.add("client", OUTSIDE, "passed", "it is no pod of the mesh: it sends plain text")
            return True
        name = f"{client.pod}.{client.namespace}"
        cited = self._pod_cited(client)
        if client.mesh in ("sidecar", "gateway", "waypoint"):
            way.tunnels = self._sidecar_tunnels(way)
            way.identity = f"{self._trust_domain()}/{client.identity}"
            said = {True: "opens a tunnel (HBONE)", False: "sends plain text", None: "is not known"}
            outcome = "undecided" if way.tunnels is None else "passed"
            tail = "" if way.tunnels is not None else ": its endpoints were not recorded"
            says = f"its own proxy ({client.mesh}) carries it, and {said[way.tunnels]}{tail}"
            way.add("client", name, outcome, says, **cited)
            return True
        enrolment = self._enrolment(client)
        outcome = "altered" if enrolment.missing else "passed"
        tail = "" if enrolment.captured else "; it sends plain text, without an identity"
        way.add("client", name, outcome, enrolment.says + tail, **cited)
        return self._client_ztunnel(way) if enrolment.captured else True

    def _trust_domain(self) -> str:
        return self.mesh.settings.get("trustDomain") or CLUSTER_DOMAIN

    def _sidecar_tunnels(self, way: Way) -> bool | None:
        """Whether a client's Envoy knows the server's endpoints behind a tunnel."""
        assert way.client is not None
        endpoints = self.facts["endpoints"]
        own = endpoints[endpoints["proxy"] == way.client.proxy]
        service = way.destination.service
        if service is not None:
            host = f"outbound|{service.port}|"
            clusters = own["cluster"].fillna("")
            own = own[clusters.str.startswith(host) & clusters.str.endswith(f"|{service.host}")]
        elif way.destination.pod is not None:
            own = own[
                own["endpoint"].fillna("").str.contains(way.destination.pod.address, regex=False)
            ]
        if own.empty:
            return None
        return bool(own["endpoint"].fillna("").str.startswith(_TUNNELLED).any())

    def _ztunnel_hop(self, hops: list[Hop], pod: Pod, stage: str) -> str | None:
        """Return the ztunnel on a pod's node with its dump; None, with a hop, where that fails."""
        ztunnel = self.ztunnels.of(pod)
        node = self.ztunnels.node_of(pod) or "its node"
        if ztunnel is None:
            hops.append(
                Hop(stage, "", "stopped", f"no ztunnel runs on {node}", **self._pod_cited(pod))
            )
            return None
        name = f"{ztunnel.pod}.{ztunnel.namespace}"
        if not ztunnel.ready:
            says = f"{name} on {node} is not ready: {ztunnel.not_ready_reason or 'no reason given'}"
            hops.append(Hop(stage, name, "stopped", says, **self._pod_cited(ztunnel)))
            return None
        if not self.ztunnels.recorded(name):
            says = f"cannot decide, because the config dump of {name} was not recorded"
            hops.append(Hop(stage, name, "undecided", says, **self._pod_cited(ztunnel)))
            return None
        return name

    def _client_ztunnel(self, way: Way) -> bool:
        client = way.client
        assert client is not None
        stage = "client's ztunnel"
        name = self._ztunnel_hop(way.hops, client, stage)
        if name is None:
            return False
        way.ztunnel, way.tunnels = name, True
        workload, row = self.ztunnels.workload(name, client.address)
        if row is None:
            says = f"{name} does not know the workload {client.namespace}/{client.pod}"
            way.add(stage, name, "stopped", says, **self._pod_cited(client))
            return False
        way.network = str(plain(workload["network"]) or "")
        domain = plain(workload["trust_domain"]) or self._trust_domain()
        way.identity = f"{domain}/{client.identity}"
        problem, held = self.ztunnels.certificate_problem(name, way.identity)
        if problem:
            says = f"it has no certificate for {way.identity} ({problem})"
            way.add(stage, name, "stopped", says, table="ztunnel_certificates", row=held)
            return False
        says = f"it sends as {way.identity}"
        uid = str(workload["uid"])
        way.add(stage, name, "passed", says, table="ztunnel_workloads", row=row, resource=uid)
        return True

    # --- what the client asks for ---

    def _known(self, way: Way, targets: list[Target]) -> bool:
        """Find the pods that may get it; a hop says which, or why there are none."""
        destination = way.destination
        if destination.service is not None:
            return self._service(way, destination.service, targets)
        pod = destination.pod
        if pod is None and self._registered(way):
            return False
        if pod is None:
            where = way.ztunnel or "the network"
            says = "it is no Service and no pod of the mesh, and is sent there as it is"
            way.add("destination", where, "passed", says)
            says = "cannot decide, because nobody recorded what is there"
            way.add("server", destination.title, "undecided", says)
            return False
        workload, row = (
            self.ztunnels.workload(way.ztunnel, pod.address) if way.ztunnel else ({}, None)
        )
        cited: dict[str, Any] = (
            {"table": "ztunnel_workloads", "row": row, "resource": str(workload["uid"])}
            if row is not None
            else self._pod_cited(pod)
        )
        says = f"{pod.namespace}/{pod.pod} is asked for by its address"
        way.add("destination", way.ztunnel, "passed", says, **cited)
        targets.append(Target(pod, workload, row, pod.address, destination.port))
        return True

    def _registered(self, way: Way) -> bool:
        """Say that a host outside the cluster is known to ztunnel, and how it is reached."""
        services = self.facts["ztunnel_services"]
        own = services[
            (services["proxy"] == way.ztunnel) & (services["hostname"] == way.destination.name)
        ]
        for index, waypoint in zip(own.index, own["waypoint_destination"], strict=True):
            to = plain(waypoint)
            through = f"goes through its waypoint {to}" if to else "is sent there as it is"
            cited = {"table": "ztunnel_services", "row": int(index)}
            way.add(
                "destination", way.ztunnel, "passed", f"ztunnel knows it: it {through}", **cited
            )
            says = "cannot decide, because nobody recorded what is there"
            way.add("server", way.destination.title, "undecided", says)
            return True
        return False

    def _service(self, way: Way, service: ServicePort, targets: list[Target]) -> bool:
        services = self.facts["ztunnel_services"]
        view = way.ztunnel or next(iter(services["proxy"].dropna().unique()), "")
        known = services[(services["proxy"] == view) & (services["hostname"] == service.host)]
        name = f"Service {service.namespace}/{service.service}"
        if known.empty and way.ztunnel:
            says = f"{view} does not know {service.host}, and would send it there as it is"
            way.add("destination", view, "altered", says, object=name)
        if known.empty:
            targets += [
                Target(pod, {}, None, pod.address, target_port(service))
                for pod in self.mesh.selected(service)
            ]
            if not targets:
                says = f"{service.host} has no pod"
                way.add("destination", view, "stopped", says, object=name)
            return bool(targets)
        index = int(known.index[0])
        row = known.loc[index]
        cited: dict[str, Any] = {
            "table": "ztunnel_services", "row": index, "resource": service.host, "object": name,
        }  # fmt: skip
        ports: Any = row["ports"]
        targets += self.ztunnels.endpoints(view, service, ports)
        if not targets:
            why = (
                f"{row['known']} endpoints, none of them healthy" if row["known"] else "no endpoint"
            )
            says = f"{service.host} has {why}"
            way.add("destination", view, "stopped", says, **cited)
            return False
        says = f"{service.host}:{service.port} has {len(targets)} endpoints that may get it"
        unhealthy = tuple((str(uid), "not healthy") for uid in row["unhealthy"])
        way.add("destination", view, "passed", says, **cited, passed_over=unhealthy)
        return True

    # --- the waypoint ---

    def _waypoint(self, way: Way) -> WaypointUse | None:
        """Return the waypoint that it goes through; a hop says which, or what became of it."""
        service, pod = way.destination.service, way.destination.pod
        stage = "waypoint"
        if service is not None:
            use = self.waypoints.of_service(service.namespace, service.service)
        else:
            assert pod is not None
            use = self.waypoints.of_pod(pod)
        if use is None:
            way.add(stage, "", "passed", "no label asks for a waypoint")
            return None
        cited = self._labelled(use)
        told = self._told(way)
        if use.state == "other traffic":
            says = f"the {use.label} does not concern this: {use.problem}"
            way.add(stage, "", "passed", says, **cited)
            return None
        if use.state != "ready" or told == "unknown":
            why = use.problem or f"{way.ztunnel} was not told of it"
            says = (
                f"the {use.label} asks for {use}, but {why}; so it goes on without a waypoint, and "
                "routes and HTTP policies have no effect"
            )
            way.add(stage, "", "altered", says, **cited)
            return None
        if not self._passes_by(way, use):
            return None
        proxies = ", ".join(one.proxy for one in use.pods)
        identity = {one.identity for one in use.pods}
        decided = self._decided_there(way, use)
        if decided:
            says = f"cannot decide, because {proxies} decides by {decided}"
            way.add(stage, proxies, "undecided", says, **cited)
        else:
            says = (
                f"it goes through {proxies} ({use.label}), where no policy and no route concerns it"
            )
            way.add(stage, proxies, "passed", says, **cited)
        way.identity = f"{self._trust_domain()}/{identity.pop()}" if len(identity) == 1 else ""
        way.tunnels = True
        return use

    def _labelled(self, use: WaypointUse) -> dict[str, Any]:
        kind, namespace, name = use.subject
        if kind == "Pod":
            row = self.rows.get((namespace, name))
            return {"table": "pods", "row": row, "object": f"Pod {namespace}/{name}"}
        table = "services" if kind == "Service" else "namespaces"
        frame = self.facts[table]
        chosen = frame["namespace"] == (namespace or name)
        if kind == "Service":
            chosen &= frame["service"] == name
        rows = frame.index[chosen.fillna(value=False)]
        title = f"{kind} {namespace}/{name}" if namespace else f"{kind} {name}"
        return {"table": table, "row": int(rows[0]) if len(rows) else None, "object": title}

    def _told(self, way: Way) -> str:
        """Whether the client's ztunnel has the waypoint too: known, unknown, or empty."""
        if not way.ztunnel:
            return ""
        service, pod = way.destination.service, way.destination.pod
        if service is not None:
            frame = self.facts["ztunnel_services"]
            rows = frame[(frame["proxy"] == way.ztunnel) & (frame["hostname"] == service.host)]
        else:
            assert pod is not None
            frame = self.facts["ztunnel_workloads"]
            rows = frame[(frame["proxy"] == way.ztunnel) & (frame["pod_name"] == pod.pod)]
        if rows.empty:
            return ""
        return "unknown" if rows["waypoint_destination"].isna().all() else "known"

    def _passes_by(self, way: Way, use: WaypointUse) -> bool:
        """Whether this client goes through the waypoint; a hop says so where it does not."""
        client, service = way.client, way.destination.service
        cited = self._labelled(use)
        if client is not None and client in use.pods:
            way.add("waypoint", client.proxy, "passed", "the client is the waypoint", **cited)
            return False
        if client is not None and client.mesh == "gateway":
            if service is None or not self.waypoints.enforced_for_ingress(
                service.namespace, service.service
            ):
                says = f"a gateway passes by {use} without the label istio.io/ingress-use-waypoint"
                way.add("waypoint", client.proxy, "passed", says, **cited)
                return False
            return True
        if not way.tunnels:
            says = f"a client in plain text passes by {use}"
            way.add("waypoint", "", "altered", says, **cited)
            return False
        return True

    def _decided_there(self, way: Way, use: WaypointUse) -> str:
        """Return the objects by which a waypoint may decide about this destination."""
        names = [("Gateway", use.namespace, use.name), ("GatewayClass", "", "")]
        service = way.destination.service
        if service is not None:
            names.append(("Service", service.namespace, service.service))
        found = []
        for item in self.mesh.objects:
            if item.kind in ("AuthorizationPolicy", "RequestAuthentication"):
                for reference in target_references(item):
                    kind, name = dig(reference, "kind"), dig(reference, "name")
                    if (kind, item.namespace, name) in names or kind == "GatewayClass":
                        found.append(str(item))
            elif service is not None and item.kind in ("HTTPRoute", "GRPCRoute", "TCPRoute"):
                for parent in items(item.spec, "parentRefs"):
                    home = dig(parent, "namespace", default=item.namespace)
                    if (dig(parent, "kind"), home, dig(parent, "name")) in names:
                        found.append(str(item))
            elif service is not None and item.kind == "VirtualService":
                hosts = [
                    self.mesh.fqdn(str(one), item.namespace) for one in items(item.spec, "hosts")
                ]
                if service.host in hosts:
                    found.append(str(item))
        return ", ".join(dict.fromkeys(found))

    # --- at the server ---

    def _arrives(self, way: Way, target: Target, waypoint: WaypointUse | None) -> Reached:
        hops: list[Hop] = []
        pod = target.pod
        reached = Reached(
            namespace=pod.namespace if pod else str(target.workload.get("namespace", "")),
            pod=pod.pod if pod else str(target.workload.get("pod_name", "")),
            address=target.address,
            outcome="undecided",
            identity="",
            protocol="TCP",
            policy="",
            server_error="",
            client_error="",
            hops=(),
        )
        network = str(plain(target.workload.get("network")) or "")
        if way.ztunnel and network != way.network:
            says = f"cannot decide, because it is in another network ({network or 'unnamed'})"
            hops.append(Hop("server", target.address, "undecided", says))
            return replace(reached, hops=tuple(hops))
        if pod is None:
            says = "cannot decide, because it is no pod that was recorded"
            hops.append(Hop("server", target.address, "undecided", says))
            return replace(reached, hops=tuple(hops))
        reached = self._tunnel(way, target, pod, waypoint, hops, reached)
        if any(hop.outcome == "stopped" for hop in hops):
            return replace(reached, outcome="refused", hops=tuple(hops))
        if pod.mesh == "ambient":
            reached = self._policies(way, target, pod, hops, reached)
        elif pod.mesh in ("sidecar", "gateway", "waypoint"):
            self._sidecar(pod, target, reached, hops)
        else:
            says = "no proxy of the mesh stands before the pod"
            hops.append(Hop("server", pod.pod, "passed", says, **self._pod_cited(pod)))
        if any(hop.outcome == "stopped" for hop in hops):
            return replace(reached, outcome="refused", hops=tuple(hops))
        outcome = "undecided" if any(hop.outcome == "undecided" for hop in hops) else "admitted"
        hops.append(self._application(pod, target.port))
        if hops[-1].outcome == "stopped":
            return replace(
                reached,
                outcome="refused",
                server_error="connection failed: Connection refused (os error 111)",
                client_error="http status: 503 Service Unavailable" if reached.identity else "",
                hops=tuple(hops),
            )
        return replace(reached, outcome=outcome, hops=tuple(hops))

    def _application(self, pod: Pod, port: int) -> Hop:
        """Return the last hop: only the log tells whether anybody listens there."""
        name = f"{pod.pod}.{pod.namespace}"
        log = self.facts["ztunnel_access_log"]
        own = log[
            (log["destination_pod"] == pod.pod)
            & (log["destination_namespace"] == pod.namespace)
            & (log["direction"] == "inbound")
            & log["destination_hbone_address"].fillna("").str.endswith(f":{port}")
        ]
        last = own.sort_values("time").tail(1)
        errors = [str(error) for error in last["error"].dropna()]
        if any("onnection refused" in error for error in errors):
            says = f"nobody listens on port {port}: the last connection was refused"
            row = int(last.index[0])
            return Hop("application", name, "stopped", says, "ztunnel_access_log", row)
        says = f"it gets to port {port}; whether anybody listens there stands in no configuration"
        return Hop("application", name, "passed", says)

    def _tunnel(
        self,
        way: Way,
        target: Target,
        pod: Pod,
        waypoint: WaypointUse | None,
        hops: list[Hop],
        reached: Reached,
    ) -> Reached:
        """Add the hop between the two ends: how the pod is reached, if the network lets."""
        stage = "tunnel"
        said = target.workload.get("protocol")
        hbone = said == "HBONE" if target.row is not None else pod.mesh == "ambient"
        cited: dict[str, Any] = (
            {"table": "ztunnel_workloads", "row": target.row, "resource": target.workload["uid"]}
            if target.row is not None
            else self._pod_cited(pod)
        )
        enrolment = self._enrolment(pod)
        if way.tunnels is None:
            # The client's hop has said why that is not known.
            return reached
        if way.tunnels and not hbone and enrolment.asked and pod.mesh in ("ambient", "none"):
            says = f"ztunnel knows the server as {said or 'plain text'} only: {enrolment.says}"
            hops.append(Hop(stage, way.ztunnel, "altered", says, **cited))
        tunnelled = bool(way.tunnels and hbone)
        port = HBONE if tunnelled else target.port
        source = way.client if waypoint is None else next(iter(waypoint.pods), None)
        admission = admitted(self.facts, self.mesh, pod, port, source)
        if source is not None and admission.admitted:
            admission = let_out(self.facts, self.mesh, source, pod, port)
        refused = admission.admitted is False
        if refused and not (tunnelled and disobeyed(self.facts, admission, pod)):
            named = ", ".join(admission.policies)
            says = f"NetworkPolicy {named} does not admit port {port}; where the network obeys it, "
            says += "the connection times out"
            row = admission.rows[0]
            title = f"NetworkPolicy {admission.policies[0]}"
            hops.append(
                Hop(stage, "the network", "stopped", says, "network_policies", row, "", title)
            )
            error = "connection timed out, maybe a NetworkPolicy is blocking HBONE port 15008"
            return replace(reached, client_error=error if tunnelled else "")
        if admission.admitted is None:
            says = f"cannot decide, because NetworkPolicy {', '.join(admission.policies)} admits "
            says += "some clients only, and who this one is, is not known"
            row = admission.rows[0]
            hops.append(Hop(stage, "the network", "undecided", says, "network_policies", row))
        if tunnelled:
            says = (
                f"HBONE to {target.address}:{HBONE}, as {way.identity or 'an identity not known'}"
            )
            hops.append(Hop(stage, way.ztunnel, "passed", says, **cited))
            return replace(reached, protocol="HBONE", identity=_spiffe(way.identity))
        if not any(hop.stage == stage and hop.outcome == "altered" for hop in hops):
            says = f"plain text to {target.address}:{target.port}, without an identity"
            hops.append(Hop(stage, way.ztunnel, "passed", says, **cited))
        return reached

    def _policies(
        self, way: Way, target: Target, pod: Pod, hops: list[Hop], reached: Reached
    ) -> Reached:
        stage = "server's ztunnel"
        name = self._ztunnel_hop(hops, pod, stage)
        if name is None:
            return reached
        workload, row = self.ztunnels.workload(name, pod.address)
        if row is None:
            says = f"{name} does not know the workload {pod.namespace}/{pod.pod}"
            hops.append(Hop(stage, name, "stopped", says, **self._pod_cited(pod)))
            return reached
        if reached.identity:
            domain = plain(workload["trust_domain"]) or self._trust_domain()
            problem, held = self.ztunnels.certificate_problem(name, f"{domain}/{pod.identity}")
            if problem:
                says = f"it has no certificate for {domain}/{pod.identity} ({problem})"
                hops.append(Hop(stage, name, "stopped", says, "ztunnel_certificates", held))
                return reached
        if way.tunnels is None:
            says = "cannot decide, because whether the client shows an identity is not known"
            hops.append(Hop("policies", name, "undecided", says))
            return reached
        connection = Connection(
            identity=reached.identity.removeprefix("spiffe://"),
            source_address=way.client.address if way.client is not None else "",
            destination_address=target.address,
            destination_port=target.port,
        )
        decision = decide(self.facts["ztunnel_policies"], name, workload, connection)
        outcome = {True: "passed", False: "stopped", None: "undecided"}[decision.allowed]
        unsure = "cannot decide, because " if decision.allowed is None else ""
        hops.append(
            Hop(
                stage="policies",
                proxy=name,
                outcome=outcome,
                says=unsure + decision.says,
                table="ztunnel_policies" if decision.row is not None else "ztunnel_workloads",
                row=decision.row if decision.row is not None else row,
                resource=decision.policy,
                object=origin(decision.policy) if decision.policy else "",
                passed_over=(*decision.passed_over, *unenforceable(pod, self.mesh)),
            )
        )
        if decision.allowed is not False:
            return replace(reached, policy=decision.policy)
        return replace(
            reached,
            policy=decision.policy,
            server_error=f"connection closed due to policy rejection: {decision.error}",
            client_error="http status: 401 Unauthorized" if reached.identity else "",
        )

    def _sidecar(self, pod: Pod, target: Target, reached: Reached, hops: list[Hop]) -> None:
        name = f"{pod.pod}.{pod.namespace}"
        cited = self._pod_cited(pod)
        if reached.identity:
            says = "cannot decide, because its own proxy takes the tunnel and decides for itself"
            hops.append(Hop("server's proxy", name, "undecided", says, **cited))
            return
        mode, policy = self.mesh.mtls_mode(pod, target.port)
        if pod.mesh == "sidecar" and mode == "STRICT":
            says = f"its sidecar demands mutual TLS, and gets plain text ({policy or 'STRICT'})"
            row = policy.index if policy is not None else None
            hops.append(
                Hop("server's proxy", name, "stopped", says, "istio_config", row, "", str(policy))
            )
            return
        says = "cannot decide, because its own proxy decides for itself"
        hops.append(Hop("server's proxy", name, "undecided", says, **cited))


def _spiffe(identity: str) -> str:
    return f"spiffe://{identity}" if identity else ""


def _title(client: Pod | None) -> str:
    return f"{client.namespace}/{client.pod}" if client is not None else OUTSIDE
