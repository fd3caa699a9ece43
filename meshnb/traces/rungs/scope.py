"""Which proxies an object concerns, and why others not: by its own words and by those of others.

Selectors, ``targetRefs``, ``exportTo``, Sidecars, gateways, hosts that exist or not, older and more
specific objects, revisions and ``discoverySelectors``, waypoints. What a policy's selector means
for a pod is told by ``describe``; which object comes before another one by ``rules``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from meshnb.errors import nearest
from meshnb.tables import Facts
from meshnb.tables.base import dig, items, mapping
from meshnb.traces.describe import acting_on
from meshnb.traces.istiod_objects import held_objects
from meshnb.traces.mesh import (
    ConfigObject,
    Mesh,
    Pod,
    ServicePort,
    plain,
)
from meshnb.traces.rules import (
    GATEWAY_API_GROUP,
    GATEWAY_GROUP,
    admits,
    bound_gateways,
    delegating,
    exported_to,
    gateway_pods,
    overruled_by,
    route_hosts,
    rule_host,
    sidecar_of,
    target_references,
    visible,
    workload_labels,
)
from meshnb.traces.rungs.reach import Reach, Scope
from meshnb.traces.rungs.visibility import (
    discovered,
    homes,
    ignored_by,
    imports,
    istiods,
    labels_text,
    listed,
    nearest_host,
    rule_for,
    same_host,
)
from meshnb.traces.tunnels.waypoints import CLASS, Waypoints, WaypointUse

#: Kinds that choose workloads by a selector or by ``targetRefs``.
POLICIES = (
    "AuthorizationPolicy",
    "PeerAuthentication",
    "RequestAuthentication",
    "EnvoyFilter",
    "Telemetry",
    "WasmPlugin",
    "TrafficExtension",
    "ProxyConfig",
    "Sidecar",
)
API_ROUTES = ("HTTPRoute", "GRPCRoute", "TLSRoute", "TCPRoute")
_ENVOYS = ("sidecar", "gateway", "waypoint")


def scope_of(facts: Facts, mesh: Mesh, item: ConfigObject) -> Scope:
    """Return whom an object concerns."""
    return _Scoper(facts, mesh).scope(item)


def service_scope(facts: Facts, mesh: Mesh, ports: list[ServicePort]) -> Scope:
    """Return whom a Service concerns; ``ports`` are its ports."""
    return _Scoper(facts, mesh).of_service(ports[0])


# --- The kinds ----------------------------------------------------------------------------------


class _Scoper:
    """Finds whom the objects of one source concern."""

    def __init__(self, facts: Facts, mesh: Mesh) -> None:
        self.facts = facts
        self.mesh = mesh
        self.waypoints = Waypoints(facts, mesh)
        self._envoys = [p for p in mesh.pods if p.proxy and p.running and p.mesh in _ENVOYS]
        # A waypoint has clusters only for what it stands in front of.
        self._clients = [pod for pod in self._envoys if pod.mesh != "waypoint"]
        self._kinds: Mapping[str, Callable[[ConfigObject, Scope], None]] = {
            "VirtualService": self._virtual_service,
            "DestinationRule": self._destination_rule,
            "ServiceEntry": self._service_entry,
            "WorkloadEntry": self._workload_entry,
            "Gateway": self._gateway,
            **dict.fromkeys(API_ROUTES, self._api_route),
            **dict.fromkeys(POLICIES, self._policy),
        }

    def _unlisted(self, resource: str) -> bool:
        """Whether there may be objects of a resource that the source does not show."""
        gaps = self.facts.gaps("istio_config", "services")
        return any(resource in gap.question.lower() for gap in gaps)

    @property
    def _hosts_known(self) -> bool:
        """Whether all hosts are known: Services and ServiceEntries were listed."""
        return not (self._unlisted("services") or self._unlisted("serviceentries"))

    def scope(self, item: ConfigObject) -> Scope:
        """Return whom an object concerns."""
        scope = Scope()
        follow = self._kinds.get(item.kind)
        if follow is None:
            scope.aside = f"No proxy has a {item.kind}: other objects refer to it."
            return scope
        running = istiods(self.mesh)
        ignored = [ignored_by(item, istiod, self.mesh) for istiod in running]
        if running and all(ignored) and not any(held_objects(self.facts, item).values()):
            scope.faults.append(f"no istiod takes it: {ignored[0]}")
            return scope
        follow(item, scope)
        return scope

    # --- VirtualServices ---

    def _virtual_service(self, item: ConfigObject, scope: Scope) -> None:
        if items(item.spec, "hosts"):
            self._root(item, scope)
            return
        roots = delegating(item, self.mesh)
        if not roots:
            scope.faults.append("it has no hosts, and no VirtualService delegates to it")
        for root in roots:
            if not visible(item, root.namespace, self.mesh):
                scope.faults.append(f"exportTo hides it from {root}, which delegates to it")
                continue
            scope.notes.append(f"{root} delegates to it")
            self._root(root, scope)

    def _root(self, item: ConfigObject, scope: Scope) -> None:
        named = bound_gateways(item)
        if "mesh" in named:
            self._in_mesh(item, scope)
        known = {f"{g.namespace}/{g.name}": g for g in self.mesh.of("Gateway", GATEWAY_GROUP)}
        for name in named:
            if name == "mesh":
                continue
            gateway = known.get(name)
            if gateway is None and self._unlisted("gateways"):
                scope.notes.append(f"whether Gateway {name} exists is not known")
                continue
            if gateway is None:
                scope.faults.append(f"Gateway {name} does not exist. {nearest(name, known)}")
                continue
            pods = gateway_pods(gateway, self.mesh)
            if not pods:
                scope.lacks.append(f"{gateway} selects no pod")
            elif not admits(gateway, item, self.mesh):
                hosts = listed(route_hosts(item, self.mesh))
                scope.faults.append(f"{gateway} has no server for {hosts}")
            for pod in pods if admits(gateway, item, self.mesh) else ():
                seen = visible(item, pod.namespace, self.mesh)
                why = f"serves {gateway}" if seen else f"exportTo hides it from {pod.namespace}"
                _add(scope, pod, why, taken=seen)
            if pods and not any(visible(item, pod.namespace, self.mesh) for pod in pods):
                scope.faults.append(f"exportTo hides it from the pods of {gateway}")

    def _in_mesh(self, item: ConfigObject, scope: Scope) -> None:
        live: list[str] = []
        for host in route_hosts(item, self.mesh):
            older = overruled_by(item, host, self.mesh)
            if older is not None:
                scope.faults.append(
                    f"the older {older} decides for {host}: of several VirtualServices for one "
                    "host, sidecars take the oldest"
                )
            elif not homes(host, self.mesh) and _like_service(host) and self._hosts_known:
                scope.faults.append(
                    f"no Service and no ServiceEntry has the host {host}. "
                    f"{nearest_host(host, self.mesh)}"
                )
            else:
                live.append(host)
                if not homes(host, self.mesh):
                    scope.notes.append(f"{host} is no host of a Service or ServiceEntry")
        labels = _source_labels(item)
        for pod in self._envoys if live else ():
            if pod.mesh == "sidecar":
                self._sidecar_takes(item, live, labels, pod, scope)
        for host in live:
            self._at_waypoints(item, host, scope)

    def _sidecar_takes(
        self,
        item: ConfigObject,
        hosts: list[str],
        labels: list[Mapping[str, Any]],
        pod: Pod,
        scope: Scope,
    ) -> None:
        sidecar = sidecar_of(pod, self.mesh)
        if not visible(item, pod.namespace, self.mesh):
            _add(scope, pod, f"exportTo hides it from namespace {pod.namespace}", taken=False)
        elif not any(imports(sidecar, item.namespace, host) for host in hosts):
            _add(scope, pod, f"{sidecar} hides {listed(hosts)} of {item.namespace}", taken=False)
        elif labels and not any(wanted.items() <= pod.labels.items() for wanted in labels):
            _add(
                scope,
                pod,
                "its routes are for callers with other labels (sourceLabels)",
                taken=False,
            )
        else:
            _add(scope, pod, f"calls {listed(hosts)} through its own sidecar")

    def _at_waypoints(self, item: ConfigObject, host: str, scope: Scope) -> None:
        """Add the waypoints of a host; say so where an ambient server lacks one."""
        for port in self.mesh.ports(host)[:1]:
            use = self.waypoints.of_service(port.namespace, port.service)
            ambient = any(pod.mesh == "ambient" for pod in self.mesh.selected(port))
            if use is None and ambient:
                scope.notes.append(
                    f"{host} has no waypoint: clients in ambient mode pass {item.kind}s by"
                )
                if not any(pod.mesh == "sidecar" for pod in self._envoys) and not scope.reached:
                    scope.faults.append(
                        f"{host} needs a waypoint: its pods are in ambient mode, and ztunnel knows "
                        f"no {item.kind}"
                    )
            elif use is not None:
                self._waypoint(item, use, port, scope)

    def _waypoint(
        self, item: ConfigObject, use: WaypointUse, port: ServicePort, scope: Scope
    ) -> None:
        if use.state != "ready":
            scope.faults.append(f"the waypoint {use} of {port.host} is not there: {use.problem}")
        for pod in use.pods:
            if item.namespace not in (port.namespace, self.mesh.root_namespace):
                why = (
                    f"a waypoint takes what lies in the namespace of the Service, {port.namespace}"
                )
                _add(scope, pod, why, taken=False)
            else:
                _add(scope, pod, f"is the waypoint of {port.host}")

    # --- DestinationRules ---

    def _destination_rule(self, item: ConfigObject, scope: Scope) -> None:
        own = rule_host(item, self.mesh)
        covered = homes(own, self.mesh)
        if not covered and not self._hosts_known:
            scope.notes.append("whether its host exists is not known")
            return
        if not covered:
            scope.faults.append(
                f"no Service and no ServiceEntry has the host {own}. {nearest_host(own, self.mesh)}"
            )
            return
        older = same_host(item, self.mesh)
        both = (item, older) if older is not None else ()
        if both and all(mapping(one.spec, "trafficPolicy") for one in both):
            scope.faults.append(
                f"the older {older} is for the same host: of the two, only its trafficPolicy counts"
            )
        for pod in self._clients:
            self._client_takes(item, older or item, covered, pod, scope)
        for host in covered:
            self._at_waypoints(item, host, scope)
        if not scope.reached and not scope.faults:
            why = scope.whys() or "there is no proxy that could take it"
            scope.lacks.append(f"no client takes it: {why}")

    def _client_takes(
        self,
        item: ConfigObject,
        merged: ConfigObject,
        covered: Mapping[str, str],
        pod: Pod,
        scope: Scope,
    ) -> None:
        sidecar = sidecar_of(pod, self.mesh) if pod.mesh == "sidecar" else None
        whys: dict[str, None] = {}
        for host, home in covered.items():
            if not imports(sidecar, home, host):
                whys[f"{sidecar} hides {host}"] = None
                continue
            chosen = rule_for(pod, host, self.mesh)
            if chosen in (item, merged):
                _add(scope, pod, f"calls {host}")
                return
            whys[self._passed_over(item, chosen, pod, home)] = None
        _add(scope, pod, listed(whys), taken=False)

    def _passed_over(
        self, item: ConfigObject, chosen: ConfigObject | None, pod: Pod, home: str
    ) -> str:
        if chosen is not None:
            return f"{chosen} comes before it"
        labels = mapping(item.spec, "workloadSelector", "matchLabels")
        if not labels.items() <= pod.labels.items():
            return f"its workloadSelector wants {labels_text(labels)}"
        if item.namespace in (home, self.mesh.root_namespace):
            return f"exportTo hides it from namespace {pod.namespace}"
        return (
            f"it lies in {item.namespace}, which is neither the client's namespace nor the "
            f"Service's ({home}) nor the root namespace"
        )

    # --- ServiceEntries, WorkloadEntries, Services ---

    def _service_entry(self, item: ConfigObject, scope: Scope) -> None:
        hosts = [str(host) for host in items(item.spec, "hosts")]
        seen = exported_to(item, self.mesh)
        self._known_to(hosts, item.namespace, seen, scope)

    def of_service(self, service: ServicePort) -> Scope:
        scope = Scope()
        if not discovered(service.namespace, self.mesh):
            scope.faults.append(
                f"no istiod takes it: discoverySelectors leave out the namespace "
                f"{service.namespace}"
            )
            return scope
        self._known_to([service.host], service.namespace, self._exported(service), scope)
        use = self.waypoints.of_service(service.namespace, service.service)
        if use is not None:
            if use.state != "ready":
                scope.faults.append(f"{use.label}, but {use.problem}")
            else:
                scope.notes.append(f"{use.label}: requests to it pass the waypoint {use}")
        return scope

    def _exported(self, service: ServicePort) -> frozenset[str]:
        table = self.facts["services"]
        rows = table[
            (table["namespace"] == service.namespace) & (table["service"] == service.service)
        ]
        given = [plain(value) for value in rows["export_to"].tolist()[:1]]
        entries = [str(one) for one in (given[0] if given and given[0] else ())]
        if not entries:
            try:
                default = json.loads(self.mesh.settings.get("defaultServiceExportTo") or "[]")
            except ValueError:
                default = []
            entries = [str(one) for one in default] or ["*"]
        return frozenset(service.namespace if one == "." else one for one in entries)

    def _known_to(self, hosts: list[str], home: str, seen: frozenset[str], scope: Scope) -> None:
        for pod in self._clients:
            sidecar = sidecar_of(pod, self.mesh) if pod.mesh == "sidecar" else None
            if "*" not in seen and pod.namespace not in seen:
                _add(scope, pod, f"exportTo hides it from namespace {pod.namespace}", taken=False)
            elif not any(imports(sidecar, home, host) for host in hosts):
                _add(scope, pod, f"{sidecar} hides {listed(hosts)}", taken=False)
            else:
                _add(scope, pod, f"can call {listed(hosts)}")
        for ztunnel in self._ztunnels().values():
            _add(scope, ztunnel, f"carries what ambient pods send to {listed(hosts)}")
        if not scope.reached:
            scope.lacks.append(f"no proxy knows it: {scope.whys() or 'there is none'}")

    def _workload_entry(self, item: ConfigObject, scope: Scope) -> None:
        labels = mapping(item.spec, "labels")
        own = [
            entry
            for entry in self.mesh.of("ServiceEntry")
            if entry.namespace == item.namespace
            and workload_labels(entry)
            and workload_labels(entry).items() <= labels.items()
        ]
        services = [
            port
            for port in self.mesh.services
            if port.namespace == item.namespace
            and port.selector
            and port.selector.items() <= labels.items()
        ]
        if not own and not services:
            scope.faults.append(
                f"no ServiceEntry and no Service of {item.namespace} selects its labels"
                f"{f' {labels_text(labels)}' if labels else ', as it has none'}"
            )
        for entry in own:
            self._service_entry(entry, scope)
        for port in {port.host: port for port in services}.values():
            self._known_to([port.host], port.namespace, self._exported(port), scope)

    # --- Gateways and their routes ---

    def _gateway(self, item: ConfigObject, scope: Scope) -> None:
        pods = self._serving(item)
        for pod in pods:
            _add(scope, pod, "serves it")
        if item.group == GATEWAY_GROUP:
            labels = mapping(item.spec, "selector")
            if not pods:
                scope.lacks.append(
                    f"its selector {labels_text(labels) or '(empty)'} chooses no pod"
                )
            elif _wants_routes(item) and not any(self._bound(item)):
                scope.faults.append(
                    "no VirtualService that it admits is bound to it, so it has nothing to serve"
                )
            return
        name = str(dig(item.spec, "gatewayClassName", default=""))
        controllers = [
            str(dig(one.spec, "controllerName", default=""))
            for one in self.mesh.of("GatewayClass", GATEWAY_API_GROUP)
            if one.name == name
        ]
        if controllers and not controllers[0].startswith("istio.io/"):
            scope.aside = f"Its class {name} is not Istio's: {controllers[0]} looks after it."
        elif not controllers and name not in ("istio", CLASS):
            scope.faults.append(f"there is no GatewayClass {name}")
        elif not pods:
            scope.lacks.append("no pod serves it")

    def _serving(self, gateway: ConfigObject) -> list[Pod]:
        """Return the pods of a Gateway, also where its address names a Service of one's own."""
        pods = gateway_pods(gateway, self.mesh)
        for address in () if pods else items(gateway.spec, "addresses"):
            host = self.mesh.fqdn(str(dig(address, "value", default="")), gateway.namespace)
            for port in self.mesh.ports(host)[:1]:
                pods = self.mesh.selected(port)
        return [pod for pod in pods if pod.proxy]

    def _bound(self, gateway: ConfigObject) -> Iterator[ConfigObject]:
        title = f"{gateway.namespace}/{gateway.name}"
        if self._unlisted("virtualservices"):
            yield gateway  # there may be one
        for service in self.mesh.of("VirtualService"):
            if title in bound_gateways(service) and admits(gateway, service, self.mesh):
                yield service

    def _api_route(self, item: ConfigObject, scope: Scope) -> None:
        gateways = self.waypoints.gateways
        for parent in items(item.spec, "parentRefs"):
            place = str(dig(parent, "namespace", default=item.namespace))
            name = str(dig(parent, "name", default=""))
            if dig(parent, "kind", default="Gateway") == "Service":
                self._on_service(item, place, name, scope)
                continue
            gateway = gateways.get((place, name))
            if gateway is None:
                known = [f"{namespace}/{other}" for namespace, other in gateways]
                scope.faults.append(
                    f"Gateway {place}/{name} does not exist. {nearest(f'{place}/{name}', known)}"
                )
                continue
            section = dig(parent, "sectionName")
            listeners = [dig(one, "name") for one in items(gateway.spec, "listeners")]
            if section is not None and section not in listeners:
                scope.faults.append(f"{gateway} has no listener {section}")
                continue
            pods = self._serving(gateway)
            if not pods:
                scope.lacks.append(f"{gateway} has no pod")
            for pod in pods:
                _add(scope, pod, f"serves {gateway}")
        if not items(item.spec, "parentRefs"):
            scope.faults.append("it has no parentRefs")

    def _on_service(self, item: ConfigObject, place: str, name: str, scope: Scope) -> None:
        host = self.mesh.fqdn(name, place)
        if not self.mesh.ports(host):
            scope.faults.append(
                f"Service {place}/{name} does not exist. {nearest_host(host, self.mesh)}"
            )
            return
        for pod in self._envoys:
            # A route beside the Service is for all clients, one elsewhere for its own namespace.
            own = item.namespace in (place, pod.namespace)
            if pod.mesh == "sidecar" and own:
                _add(scope, pod, f"calls {host}")
        self._at_waypoints(item, host, scope)

    # --- Policies ---

    def _policy(self, item: ConfigObject, scope: Scope) -> None:
        ztunnels = self._ztunnels()
        nodes = self._nodes()
        for pod, acting in acting_on(self.facts, self.mesh, item):
            if pod.mesh == "ambient":
                if target_references(item):
                    continue  # its waypoint obeys it
                ztunnel = ztunnels.get(nodes.get((pod.namespace, pod.pod), ""))
                if ztunnel is not None:
                    why = f"for {pod.namespace}/{pod.pod}: {acting.why}"
                    scope.add(Reach(_title(ztunnel), pod, why), taken=acting.acts)
            else:
                _add(scope, pod, acting.why, taken=acting.acts)
        scope.faults += self._missing_targets(item)
        if scope.reached or scope.faults:
            return
        labels = workload_labels(item)
        chosen = self.mesh.workload_selected(item)
        if labels and not chosen:
            where = "the mesh" if item.namespace == self.mesh.root_namespace else item.namespace
            scope.lacks.append(f"its selector {labels_text(labels)} chooses no pod of {where}")
        elif not chosen and not target_references(item):
            scope.lacks.append(f"there is no pod in its namespace {item.namespace}")
        else:
            whys = scope.whys() or "no pod that it chooses has a proxy of the mesh"
            scope.lacks.append(f"it acts on no proxy: {whys}")

    def _missing_targets(self, item: ConfigObject) -> Iterator[str]:
        """Say which targetRefs name nothing, and which Services lack the waypoint that obeys."""
        for reference in target_references(item):
            kind, name = str(dig(reference, "kind")), str(dig(reference, "name", default=""))
            title = f"{kind} {item.namespace}/{name}"
            if kind == "Gateway" and (item.namespace, name) not in self.waypoints.gateways:
                known = [
                    other for place, other in self.waypoints.gateways if place == item.namespace
                ]
                yield f"{title}, which it is attached to, does not exist. {nearest(name, known)}"
            elif kind == "Service":
                if not self.mesh.ports(self.mesh.fqdn(name, item.namespace)):
                    yield f"{title}, which it is attached to, does not exist"
                    continue
                use = self.waypoints.of_service(item.namespace, name)
                if use is None:
                    yield f"{title}, which it is attached to, needs a waypoint to obey it"
                elif use.state != "ready":
                    yield f"the waypoint {use} of {title} is not there: {use.problem}"

    # --- ambient ---

    def _nodes(self) -> Mapping[tuple[str, str], str]:
        pods = self.facts["pods"]
        return {
            (str(namespace), str(pod)): str(node)
            for namespace, pod, node in zip(
                pods["namespace"], pods["pod"], pods["node"], strict=True
            )
        }

    def _ztunnels(self) -> Mapping[str, Pod]:
        """Return the ztunnel of each node that has one."""
        nodes = self._nodes()
        return {
            nodes[pod.namespace, pod.pod]: pod
            for pod in self.mesh.pods
            if pod.mesh == "ztunnel" and pod.running
        }


def _title(pod: Pod) -> str:
    return f"{pod.pod}.{pod.namespace}"


def _add(scope: Scope, pod: Pod, why: str, *, taken: bool = True) -> None:
    scope.add(Reach(_title(pod), pod, why), taken=taken)


def _wants_routes(gateway: ConfigObject) -> bool:
    """Whether any server of a Gateway serves nothing without a VirtualService."""
    return any(
        dig(server, "tls", "mode") != "AUTO_PASSTHROUGH"
        and dig(server, "tls", "httpsRedirect") is not True
        for server in items(gateway.spec, "servers")
    )


def _like_service(host: str) -> bool:
    return host.endswith(".svc.cluster.local")


def _source_labels(item: ConfigObject) -> list[Mapping[str, Any]]:
    """Return the labels of the callers that routes are for; empty when any route is for all."""
    found = [
        mapping(match, "sourceLabels")
        for protocol in ("http", "tls", "tcp")
        for route in items(item.spec, protocol)
        for match in items(route, "match") or [{}]
    ]
    return found if all(found) else []
