"""Which objects act on a pod or a Service and which do not, as ``istioctl x describe`` and more.

An object acts when, without it, something would be different for requests that the pod gets, or in
what its own proxy does. Of those that do not, the ones are named that somebody could take for it:
objects of the pod's namespace and the root namespace, and routes and gateways that lead to it but
for one thing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pandas as pd

from meshnb.errors import UsageError, nearest
from meshnb.sources.base import Question
from meshnb.tables import Facts
from meshnb.tables.base import Column, Json, Listed, Row, Table, dig, items, mapping
from meshnb.traces.description import (
    Acting,
    Injection,
    PodDescription,
    PortOf,
    RoutesOf,
    RouteTo,
    RuleFor,
    SecuredPort,
    ServiceDescription,
    ServiceOf,
    Waypoint,
)
from meshnb.traces.mesh import ConfigObject, Mesh, Pod, ServicePort, host_matches, oldest, plain
from meshnb.traces.rules import (
    GATEWAY_API_GROUP,
    GATEWAY_GROUP,
    admits,
    bound_gateways,
    covered_by,
    delegating,
    exported_to,
    gateway_pods,
    more_specific_rule,
    overruled_by,
    route_hosts,
    route_targets,
    rule_host,
    sidecar_of,
    target_references,
    visible,
    workload_labels,
)

_PODS = Listed("v1", "pods")
_GATEWAY_NAME = "gateway.networking.k8s.io/gateway-name"
_USE_WAYPOINT = "istio.io/use-waypoint"
#: The user that traffic of the proxy itself is known by; what runs as it goes around the mesh.
_PROXY_USER = 1337
_API_ROUTES = ("HTTPRoute", "GRPCRoute", "TLSRoute", "TCPRoute")
#: Policies that are attached by selector or targetRefs, in the order in which they are told.
_ATTACHED = (
    "AuthorizationPolicy",
    "RequestAuthentication",
    "EnvoyFilter",
    "Telemetry",
    "WasmPlugin",
    "TrafficExtension",
    "ProxyConfig",
)
#: Of these only what names a waypoint reaches it (istiod's WorkloadPolicyMatcher, 1.30).
_BY_NAME_AT_WAYPOINTS = (
    "AuthorizationPolicy",
    "RequestAuthentication",
    "WasmPlugin",
    "TrafficExtension",
)
#: Labels that give a workload its name and its version in telemetry, any of each.
_NAME_LABELS = ("app", "app.kubernetes.io/name", "service.istio.io/canonical-name")
_VERSION_LABELS = ("version", "app.kubernetes.io/version", "service.istio.io/canonical-revision")
#: Where in a proxy an EnvoyFilter's patch applies, by what kind of proxy has such a place.
_CONTEXTS = {
    "sidecar": ("SIDECAR_INBOUND", "SIDECAR_OUTBOUND"),
    "gateway": ("GATEWAY",),
    "waypoint": ("WAYPOINT",),
}
_PROXIED = ("sidecar", "gateway", "waypoint")


def describe_pod(facts: Facts, mesh: Mesh, namespace: str, pod: str) -> PodDescription:
    """Say which objects act on a pod. Raises UsageError when there is no such pod."""
    found = next((p for p in mesh.pods if (p.namespace, p.pod) == (namespace, pod)), None)
    if found is None:
        known = [f"{p.pod}.{p.namespace}" for p in mesh.pods]
        raise UsageError(
            f"There is no pod {pod}.{namespace}.", next_step=nearest(f"{pod}.{namespace}", known)
        )
    return _Describer(facts, mesh).pod(found)


def describe_service(facts: Facts, mesh: Mesh, namespace: str, service: str) -> ServiceDescription:
    """Say which objects act on a Service and its pods. Raises UsageError when there is none."""
    ports = [s for s in mesh.services if (s.namespace, s.service) == (namespace, service)]
    if not ports:
        known = [f"{s.service}.{s.namespace}" for s in mesh.services]
        raise UsageError(
            f"There is no Service {service}.{namespace}.",
            next_step=nearest(f"{service}.{namespace}", known),
        )
    return _Describer(facts, mesh).service(ports)


ACTING_OBJECTS = Table(
    name="acting_objects",
    grain="one row per running pod and Istio object that acts on it, or could be thought to",
    columns={
        "namespace": Column("string", "namespace of the pod", key=True),
        "pod": Column("string", "name of the pod", key=True),
        "kind": Column("string", "kind of the object", key=True),
        "object_namespace": Column("string", "namespace of the object", key=True),
        "object": Column("string", "name of the object", key=True),
        "acts": Column("boolean", "whether it acts on the pod or on requests to it"),
        "why": Column("string", "why it does or does not"),
    },
    istioctl="istioctl x describe pod POD -n NAMESPACE",
)


def acting_objects(facts: Facts, mesh: Mesh) -> pd.DataFrame:
    """Return which objects act on which pod; the columns are those of :data:`ACTING_OBJECTS`."""
    describer = _Describer(facts, mesh)
    titles = facts["istio_config"]["question"].tolist()

    def rows() -> Iterator[tuple[Question, Row]]:
        for pod in mesh.pods:
            for one in describer.objects(pod) if pod.running else ():
                yield (
                    facts.question(str(titles[one.item.index])),
                    {
                        "namespace": pod.namespace,
                        "pod": pod.pod,
                        "kind": one.item.kind,
                        "object_namespace": one.item.namespace,
                        "object": one.item.name,
                        "acts": one.acts,
                        "why": one.why,
                    },
                )

    return ACTING_OBJECTS.frame(rows())


def acting_on(facts: Facts, mesh: Mesh, item: ConfigObject) -> Iterator[tuple[Pod, Acting]]:
    """Yield each running pod of the mesh that a policy acts on, or could be thought to act on.

    A policy is what has a selector or targetRefs: authentication, authorization, telemetry,
    extensions, Sidecars. Of other kinds nothing is yielded.
    """
    describer = _Describer(facts, mesh)
    for pod in mesh.pods:
        if pod.running and pod.in_mesh:
            for one in describer.policies(pod):
                if one.item is item:
                    yield pod, one


# --- How it is found ----------------------------------------------------------------------------


class _Describer:
    """Describes pods and Services of one source; what it looks up, it looks up once."""

    def __init__(self, facts: Facts, mesh: Mesh) -> None:
        self.facts = facts
        self.mesh = mesh
        self._documents: dict[tuple[str, str], Json] = {}
        for _, document in facts.objects(_PODS):
            key = (
                str(dig(document, "metadata", "namespace")),
                str(dig(document, "metadata", "name")),
            )
            self._documents[key] = document
        self._refused: dict[int, list[Mapping[str, Any]]] = {}
        for index, conditions in enumerate(facts["istio_config"]["conditions"].tolist()):
            self._refused[index] = [
                condition
                for condition in conditions or ()
                if condition.get("type") in ("Accepted", "ResolvedRefs")
                and condition.get("status") == "False"
            ]
        services = facts["services"]
        self._labels: dict[tuple[str, str], Mapping[str, Any]] = {
            (str(namespace), str(service)): labels or {}
            for namespace, service, labels in zip(
                services["namespace"], services["service"], services["labels"], strict=True
            )
        }

    # --- the two subjects ---

    def pod(self, pod: Pod) -> PodDescription:
        document = self._documents.get((pod.namespace, pod.pod))
        containers = self.facts["containers"]
        own = containers[
            (containers["namespace"] == pod.namespace) & (containers["pod"] == pod.pod)
        ]
        columns = (own[name].tolist() for name in ("container", "ready", "init", "state"))
        ready = zip(*columns, strict=True)
        return PodDescription(
            pod=pod,
            ports=tuple(_declared(document)),
            injection=self._injection(pod),
            as_proxy_user=tuple(
                str(name)
                for name, user in zip(own["container"], own["run_as_user"], strict=True)
                if plain(user) == _PROXY_USER and name not in ("istio-proxy", "istio-init")
            ),
            not_ready=tuple(
                str(name)
                for name, is_ready, init, state in ready
                # An init container that has done its work is not ready, and need not be.
                if pod.running
                and plain(is_ready) is not True
                and not (plain(init) is True and plain(state) == "terminated")
            ),
            missing_labels=tuple(
                name
                for name, labels in (("app", _NAME_LABELS), ("version", _VERSION_LABELS))
                if pod.in_mesh and not any(label in pod.labels for label in labels)
            ),
            services=tuple(self._service(ports, pod) for ports in self._behind(pod)),
            secured=tuple(self._secured(pod)),
            objects=tuple(self.objects(pod)),
        )

    def service(self, ports: list[ServicePort]) -> ServiceDescription:
        first = ports[0]
        pods = tuple(self.mesh.selected(first))
        label = self._labels.get((first.namespace, first.service), {})
        found: dict[int, list[tuple[Pod, Acting]]] = {}
        for pod in pods:
            for one in [*self._authentication(pod), *self._policies(pod)]:
                found.setdefault(one.item.index, []).append((pod, one))
        return ServiceDescription(
            service=self._service(ports, pods[0] if pods else None),
            pods=pods,
            waypoint=self._waypoint((label, "Service"), first.namespace),
            secured=tuple(secured for pod in pods for secured in self._secured(pod)),
            objects=(
                *self._traffic({first.host: first.namespace}, list(pods), first.namespace),
                *(_together(pairs, len(pods)) for pairs in found.values()),
            ),
        )

    def objects(self, pod: Pod) -> Iterator[Acting]:
        """Yield every object that acts on a pod, or could be thought to."""
        hosts = {ports[0].host: ports[0].namespace for ports in self._behind(pod)}
        entries = []
        for entry in self.mesh.of("ServiceEntry"):
            labels = workload_labels(entry)
            chosen = entry.namespace == pod.namespace and labels.items() <= pod.labels.items()
            if labels and chosen:
                names = [str(host) for host in items(entry.spec, "hosts")]
                hosts |= dict.fromkeys(names, entry.namespace)
                entries.append(Acting(entry, acts=True, why=f"selects it for {_list(names)}"))
            elif labels and entry.namespace == pod.namespace:
                entries.append(Acting(entry, acts=False, why=_mismatch(labels, pod)))
        found = [
            *self._served(pod),
            *entries,
            *self._traffic(hosts, [pod], pod.namespace),
            *self.policies(pod),
        ]
        # A gateway's own Gateways can lead to itself as well; what acts counts.
        kept: dict[int, Acting] = {}
        for one in found:
            if one.item.index not in kept or (one.acts and not kept[one.item.index].acts):
                kept[one.item.index] = one
        for one in kept.values():
            if pod.running:
                yield one
            else:
                yield Acting(one.item, acts=False, why="the pod has ended")

    def policies(self, pod: Pod) -> Iterator[Acting]:
        """Yield what has a selector or targetRefs and acts on a pod, or could be thought to."""
        yield from self._sidecars(pod)
        yield from self._authentication(pod)
        yield from self._policies(pod)

    # --- facts about the pod ---

    def _behind(self, pod: Pod) -> list[list[ServicePort]]:
        """Return the ports of each Service that selects a pod."""
        found: dict[str, list[ServicePort]] = {}
        for service in self.mesh.services:
            if service.namespace == pod.namespace and pod in self.mesh.selected(service):
                found.setdefault(service.host, []).append(service)
        return list(found.values())

    def _service(self, ports: list[ServicePort], pod: Pod | None) -> ServiceOf:
        document = self._documents.get((pod.namespace, pod.pod)) if pod is not None else None
        return ServiceOf(
            ports[0].namespace,
            ports[0].service,
            ports[0].host,
            tuple(
                PortOf(
                    one.port,
                    one.port_name,
                    one.protocol,
                    one.target_port,
                    _pod_port(one, document),
                )
                for one in ports
                if one.port is not None
            ),
        )

    def _injection(self, pod: Pod) -> Injection:
        table = self.facts["injection"]
        rows = table[(table["namespace"] == pod.namespace) & (table["pod"] == pod.pod)]
        row = {name: plain(rows[name].tolist()[0]) for name in rows.columns if len(rows)}
        pods = self.facts["pods"]
        revisions = pods.loc[
            (pods["namespace"] == pod.namespace) & (pods["pod"] == pod.pod), "revision"
        ]
        namespace_labels = self.mesh.namespaces.get(pod.namespace, {})
        mode = "istio.io/dataplane-mode"
        asked = [
            f"{whose} label {mode}={labels[mode]}"
            for whose, labels in (("pod", pod.labels), ("namespace", namespace_labels))
            if labels.get(mode)
        ]
        workloads = self.facts["ztunnel_workloads"]
        protocols = workloads.loc[
            (workloads["namespace"] == pod.namespace) & (workloads["pod_name"] == pod.pod),
            "protocol",
        ]
        return Injection(
            revision=str(next(iter(revisions.dropna()), "")),
            injected=row.get("injected") is True,
            wanted=row.get("wanted"),
            reason=str(row.get("reason") or ""),
            ambient_by=asked[0] if asked else "",
            ztunnel_protocol=str(next(iter(protocols.dropna()), "")),
            waypoint=self._waypoint((pod.labels, "pod"), pod.namespace),
        )

    def _waypoint(self, own: tuple[Mapping[str, Any], str], namespace: str) -> Waypoint | None:
        """Return the waypoint that an object asks for itself, or else its namespace for it."""
        spoken = (own, (self.mesh.namespaces.get(namespace, {}), "namespace"))
        for labels, whose in spoken:
            name = labels.get(_USE_WAYPOINT)
            if name is None:
                continue
            if name == "none":
                return None
            home = str(labels.get(f"{_USE_WAYPOINT}-namespace") or namespace)
            exists = any(
                (gateway.namespace, gateway.name) == (home, name)
                for gateway in self.mesh.of("Gateway", GATEWAY_API_GROUP)
            )
            pods = self.mesh.matching({_GATEWAY_NAME: name}, home)
            label = f"{whose} label {_USE_WAYPOINT}={name}"
            return Waypoint(home, str(name), label, exists, tuple(pod.pod for pod in pods))
        return None

    # --- traffic to it ---

    def _traffic(self, hosts: Mapping[str, str], pods: list[Pod], home: str) -> Iterator[Acting]:
        """Yield what acts on requests to hosts, given with the namespace of each."""
        yield from self._rules(hosts, pods, home)
        led = list(self._virtual_services(hosts, pods, home)) + list(self._api_routes(hosts, home))
        yield from led
        shown: set[int] = set()
        for route in led:
            for gateway in route.gateways:
                if route.acts and gateway.index not in shown:
                    shown.add(gateway.index)
                    names = [str(one.item) for one in led if one.acts and gateway in one.gateways]
                    yield Acting(gateway, acts=True, why=f"exposes it through {_list(names)}")
        for gateway in (
            *self.mesh.of("Gateway", GATEWAY_GROUP),
            *self.mesh.of("Gateway", GATEWAY_API_GROUP),
        ):
            if gateway.index not in shown and gateway.namespace == home:
                named = [one for one in led if _names(one.item, gateway)]
                why = named[0].why if named else "no route that leads here is bound to it"
                yield Acting(gateway, acts=False, why=why)

    def _rules(self, hosts: Mapping[str, str], pods: list[Pod], home: str) -> Iterator[Acting]:
        for rule in self.mesh.of("DestinationRule"):
            own = rule_host(rule, self.mesh)
            covered = [host for host in hosts if host_matches(own, host)]
            subsets = {
                str(dig(subset, "name", default="")): mapping(subset, "labels")
                for subset in items(rule.spec, "subsets")
            }
            matching = tuple(
                name
                for name, labels in subsets.items()
                if any(labels.items() <= pod.labels.items() for pod in pods)
            )
            if not covered:
                if rule.namespace == home:
                    why = f"is for another host, {own}"
                    yield RuleFor(rule, False, why, own, (), tuple(subsets), ())
                continue
            rivals = [more_specific_rule(rule, host, self.mesh) for host in covered]
            if all(rival is not None for rival in rivals):
                acts = False
                why = f"{rivals[0]} of the same namespace has a more specific host"
            else:
                acts, why = True, self._clients(rule, hosts[covered[0]])
            yield RuleFor(
                rule,
                acts,
                why,
                own,
                matching,
                tuple(name for name in subsets if name not in matching),
                tuple(_settings(mapping(rule.spec, "trafficPolicy"))),
            )

    def _clients(self, rule: ConfigObject, home: str) -> str:
        """Say for which clients a DestinationRule counts.

        A client's proxy takes the rule of its own namespace; without one, that of the Service's
        namespace that it sees; without one, that of the root namespace.
        """
        scope = exported_to(rule, self.mesh)
        if rule.namespace == home:
            who = "all clients" if "*" in scope else f"clients of namespace {_list(sorted(scope))}"
        elif rule.namespace == self.mesh.root_namespace:
            who = "clients whose namespace has no rule of its own, nor the Service's"
        else:
            who = f"clients of its own namespace {rule.namespace} only"
        labels = mapping(rule.spec, "workloadSelector", "matchLabels")
        return f"shapes what {who} send" + (f", if labelled {_labels(labels)}" if labels else "")

    def _virtual_services(
        self, hosts: Mapping[str, str], pods: list[Pod], home: str
    ) -> Iterator[RoutesOf]:
        for service in self.mesh.of("VirtualService"):
            roots = [service] if items(service.spec, "hosts") else delegating(service, self.mesh)
            decided = [
                host
                for host in hosts
                for root in roots
                if any(host_matches(name, host) for name in route_hosts(root, self.mesh))
            ]
            routes = tuple(self._routes(service, hosts, pods))
            related = any(route.host in hosts for route in routes)
            if not related and not decided:
                if service.namespace == home:
                    named = _list(route_hosts(service, self.mesh)) or "no host"
                    why = f"is for {named}, and none of its routes leads here"
                    yield RoutesOf(service, False, why, routes, ())
                continue
            ways, obstacles, gateways = self._in_force(roots, decided)
            reaching = [route for route in routes if route.reaches]
            if not roots:
                why, acts = "has no hosts, and no VirtualService delegates to it", False
            elif not ways:
                why, acts = "; ".join(obstacles) or "binds to nothing", False
            elif reaching:
                paths = _list(route.path for route in reaching)
                why, acts = f"{paths} leads here, in force at {_list(ways)}", True
            elif decided and "sidecars" in ways:
                blocked = "; ".join(dict.fromkeys(r.why for r in routes if r.why))
                why = f"decides for {_list(decided)}, and leads nobody here: {blocked}"
                acts = True
            else:
                blocked = "; ".join(
                    dict.fromkeys(r.why for r in routes if r.why and r.host in hosts)
                )
                why, acts = f"leads elsewhere: {blocked}", False
            if acts and obstacles:
                why += f" ({'; '.join(obstacles)})"
            yield RoutesOf(service, acts, why, routes, gateways)

    def _in_force(
        self, roots: list[ConfigObject], decided: list[str]
    ) -> tuple[list[str], list[str], tuple[ConfigObject, ...]]:
        """Return where VirtualServices are in force, why not elsewhere, and at which Gateways."""
        ways: dict[str, None] = {}
        obstacles: dict[str, None] = {}
        through: list[ConfigObject] = []
        existing = {
            f"{gateway.namespace}/{gateway.name}": gateway
            for gateway in self.mesh.of("Gateway", GATEWAY_GROUP)
        }
        for root in roots:
            for name in bound_gateways(root):
                if name == "mesh":
                    hosts = decided or route_hosts(root, self.mesh)
                    older = [overruled_by(root, host, self.mesh) for host in hosts]
                    if older and all(one is not None for one in older):
                        obstacles[f"the older {older[0]} decides for {_list(hosts)}"] = None
                    else:
                        ways["sidecars"] = None
                        scope = exported_to(root, self.mesh)
                        if "*" not in scope:
                            seen = _list(sorted(scope))
                            obstacles[f"exportTo shows it to namespace {seen} only"] = None
                    continue
                gateway = existing.get(name)
                if gateway is None:
                    obstacles[f"Gateway {name} does not exist"] = None
                    continue
                pods = gateway_pods(gateway, self.mesh)
                seeing = [pod for pod in pods if visible(root, pod.namespace, self.mesh)]
                if not pods:
                    obstacles[f"{gateway} selects no pod"] = None
                elif not admits(gateway, root, self.mesh):
                    obstacles[f"{gateway} has no server for its hosts"] = None
                elif not seeing:
                    obstacles[f"exportTo hides it from the pods of {gateway}"] = None
                else:
                    ways[str(gateway)] = None
                    through.append(gateway)
        return list(ways), list(obstacles), tuple(through)

    def _routes(
        self, service: ConfigObject, hosts: Mapping[str, str], pods: list[Pod]
    ) -> Iterator[RouteTo]:
        http = items(service.spec, "http")
        for path, route, target, weight in route_targets(service):
            host = self.mesh.fqdn(str(dig(target, "host", default="")), service.namespace)
            subset = str(dig(target, "subset", default=""))
            number = next((n for n, one in enumerate(http) if one is route), None)
            shadow = covered_by(service, number) if number is not None else None
            why = self._why_elsewhere(host, subset, hosts, pods)
            if not why and weight == 0:
                why = "its weight is 0"
            if not why and shadow is not None:
                why = f"it is never taken: spec.http[{shadow}] above it matches all of it"
            reaches = not why
            if reaches and "mirror" in path:
                why = "it gets a copy, whose answer nobody waits for"
            yield RouteTo(path, _match(route), host, subset, weight, reaches, why)

    def _why_elsewhere(
        self, host: str, subset: str, hosts: Mapping[str, str], pods: list[Pod]
    ) -> str:
        if host not in hosts:
            return f"it leads to {host}"
        if not subset:
            return ""
        defined = [
            mapping(one, "labels")
            for rule in self.mesh.of("DestinationRule")
            if host_matches(rule_host(rule, self.mesh), host)
            and more_specific_rule(rule, host, self.mesh) is None
            for one in items(rule.spec, "subsets")
            if dig(one, "name") == subset
        ]
        if not defined:
            return f"subset {subset} is not defined by any DestinationRule"
        if any(labels.items() <= pod.labels.items() for labels in defined for pod in pods):
            return ""
        return f"subset {subset} has other pods"

    def _api_routes(self, hosts: Mapping[str, str], home: str) -> Iterator[RoutesOf]:
        """Yield the routes of the Gateway API, which say in their status what became of them."""
        gateways = {(g.namespace, g.name): g for g in self.mesh.of("Gateway", GATEWAY_API_GROUP)}
        for route in (one for kind in _API_ROUTES for one in self.mesh.of(kind, GATEWAY_API_GROUP)):
            targets = tuple(self._backends(route, hosts))
            through: list[ConfigObject] = []
            ways: list[str] = []
            obstacles = [
                f"{bad.get('type')} is False, {bad.get('reason')}: {bad.get('message')}"
                for bad in self._refused.get(route.index, ())
            ]
            decided = False
            for parent in items(route.spec, "parentRefs"):
                place = str(dig(parent, "namespace", default=route.namespace))
                name = str(dig(parent, "name", default=""))
                if dig(parent, "kind", default="Gateway") == "Service":
                    decided = decided or self.mesh.fqdn(name, place) in hosts
                    ways.append(f"sidecars and waypoints, for Service {place}/{name}")
                elif (place, name) not in gateways:
                    obstacles.append(f"Gateway {place}/{name} does not exist")
                elif not gateway_pods(gateways[place, name], self.mesh):
                    obstacles.append(f"Gateway {place}/{name} has no pod")
                else:
                    ways.append(str(gateways[place, name]))
                    through.append(gateways[place, name])
            related = decided or any(target.host in hosts for target in targets)
            if not related:
                if route.namespace == home:
                    why = "none of its backends leads here"
                    yield RoutesOf(route, False, why, targets, tuple(through))
                continue
            reaching = [target.path for target in targets if target.reaches]
            acts = bool(ways) and not self._refused.get(route.index) and bool(reaching or decided)
            if acts and reaching:
                why = f"{_list(reaching)} leads here, in force at {_list(ways)}"
            elif acts:
                why = "decides for it, and leads nobody here"
            else:
                why = "; ".join(obstacles) or "leads elsewhere"
            yield RoutesOf(route, acts, why, targets, tuple(through))

    def _backends(self, route: ConfigObject, hosts: Mapping[str, str]) -> Iterator[RouteTo]:
        for number, rule in enumerate(items(route.spec, "rules")):
            for position, backend in enumerate(items(rule, "backendRefs")):
                place = str(dig(backend, "namespace", default=route.namespace))
                host = self.mesh.fqdn(str(dig(backend, "name", default="")), place)
                weight = dig(backend, "weight")
                why = "" if host in hosts else f"it leads to {host}"
                if not why and weight == 0:
                    why = "its weight is 0"
                yield RouteTo(
                    f"spec.rules[{number}].backendRefs[{position}]",
                    _api_match(rule),
                    host,
                    "",
                    weight if isinstance(weight, int) else None,
                    not why,
                    why,
                )

    # --- its own proxy ---

    def _served(self, pod: Pod) -> Iterator[Acting]:
        """Yield the Gateways that a gateway's pod serves, and the routes that it carries."""
        if pod.mesh not in ("gateway", "waypoint"):
            return
        served: dict[str, ConfigObject] = {}
        for gateway in (
            *self.mesh.of("Gateway", GATEWAY_GROUP),
            *self.mesh.of("Gateway", GATEWAY_API_GROUP),
        ):
            if pod in gateway_pods(gateway, self.mesh):
                if gateway.group == GATEWAY_GROUP:
                    served[f"{gateway.namespace}/{gateway.name}"] = gateway
                yield Acting(gateway, acts=True, why="the pod serves it")
            elif gateway.group == GATEWAY_GROUP:
                why = _mismatch(mapping(gateway.spec, "selector"), pod)
                yield Acting(gateway, acts=False, why=why)
        for service in self.mesh.of("VirtualService"):
            mine = [served[name] for name in bound_gateways(service) if name in served]
            if not mine:
                continue
            admitting = [gateway for gateway in mine if admits(gateway, service, self.mesh)]
            if not admitting:
                why = f"{mine[0]} has no server for its hosts"
            elif not visible(service, pod.namespace, self.mesh):
                why = f"exportTo hides it from namespace {pod.namespace}"
            else:
                why = f"the pod carries its routes, by {_list(map(str, admitting))}"
            acts = bool(admitting) and visible(service, pod.namespace, self.mesh)
            yield Acting(service, acts, why)
        for route in (one for kind in _API_ROUTES for one in self.mesh.of(kind, GATEWAY_API_GROUP)):
            for parent in items(route.spec, "parentRefs"):
                place = str(dig(parent, "namespace", default=route.namespace))
                mine_api = pod.labels.get(_GATEWAY_NAME) == dig(parent, "name")
                if mine_api and place == pod.namespace:
                    bad = self._refused.get(route.index, [])
                    # Of a backend that is not found its requests are answered with an error.
                    refused = any(condition.get("type") == "Accepted" for condition in bad)
                    said = "; ".join(f"{one.get('reason')}: {one.get('message')}" for one in bad)
                    carried = "the pod carries its routes" + (f", but {said}" if said else "")
                    yield Acting(route, not refused, said if refused else carried)

    def _sidecars(self, pod: Pod) -> Iterator[Acting]:
        chosen = sidecar_of(pod, self.mesh)
        for item in self.mesh.of("Sidecar"):
            if item.namespace not in (pod.namespace, self.mesh.root_namespace):
                continue
            labels = mapping(item.spec, "workloadSelector", "labels")
            if pod.mesh != "sidecar":
                yield Acting(item, acts=False, why="the pod has no sidecar")
            elif item is chosen:
                yield Acting(item, acts=True, why="it narrows what the pod's proxy is sent")
            elif labels and (
                item.namespace != pod.namespace or not labels.items() <= pod.labels.items()
            ):
                yield Acting(item, acts=False, why=_mismatch(labels, pod))
            else:
                yield Acting(item, acts=False, why=f"{chosen} comes before it")

    def _secured(self, pod: Pod) -> Iterator[SecuredPort]:
        if pod.mesh not in ("sidecar", "ambient"):
            return
        document = self._documents.get((pod.namespace, pod.pod))
        numbers = {port for port, container in _declared(document) if container != "istio-proxy"}
        for ports in self._behind(pod):
            numbers |= {n for one in ports if (n := _pod_port(one, document)) is not None}
        for item in self.mesh.of("PeerAuthentication"):
            if item.namespace == pod.namespace:
                levels = mapping(item.spec, "portLevelMtls")
                numbers |= {int(port) for port in levels if port.isdecimal() and len(port) < 6}
        for number in [None, *sorted(numbers)]:
            mode, policy = self.mesh.mtls_mode(pod, number)
            yield SecuredPort(f"{pod.pod}.{pod.namespace}", number, mode, policy)

    def _authentication(self, pod: Pod) -> Iterator[Acting]:
        ports = list(self._secured(pod))
        for item in self.mesh.of("PeerAuthentication"):
            root = item.namespace == self.mesh.root_namespace
            if not root and item.namespace != pod.namespace:
                continue
            labels = workload_labels(item)
            set_here = [one for one in ports if one.policy is item]
            if set_here:
                said = dict.fromkeys(
                    f"{one.mode} on {'all other ports' if one.port is None else one.port}"
                    for one in set_here
                )
                everywhere = len({one.mode for one in set_here}) == 1 and len(set_here) == len(
                    ports
                )
                words = f"{set_here[0].mode} on every port" if everywhere else _list(said)
                yield Acting(item, acts=True, why=f"sets mutual TLS: {words}")
            elif not ports:
                why = (
                    "a gateway's servers have the TLS settings of their Gateway"
                    if pod.mesh in ("gateway", "waypoint")
                    else "nothing in front of the pod could demand mutual TLS"
                )
                yield Acting(item, acts=False, why=why)
            elif labels and root:
                why = "in the root namespace a policy with a selector has no effect"
                yield Acting(item, acts=False, why=why)
            elif labels and not labels.items() <= pod.labels.items():
                yield Acting(item, acts=False, why=_mismatch(labels, pod))
            else:
                winner = next((str(one.policy) for one in ports if one.policy is not None), "")
                why = f"{winner} comes before it" if winner else "it sets no mode"
                yield Acting(item, acts=False, why=why)

    def _policies(self, pod: Pod) -> Iterator[Acting]:
        for kind in _ATTACHED:
            near = [
                item
                for item in self.mesh.of(kind)
                if item.namespace in (pod.namespace, self.mesh.root_namespace)
                or target_references(item)
            ]
            judged = [Acting(item, *self._attached(item, pod)) for item in near]
            chosen = [one.item for one in judged if one.acts]
            for one in judged:
                first = next(
                    iter(oldest(rival for rival in chosen if _level(rival) == _level(one.item))),
                    None,
                )
                if kind == "Telemetry" and one.acts and first is not one.item:
                    yield Acting(one.item, acts=False, why=f"only the oldest counts: {first}")
                elif one.acts or one.item.namespace in (pod.namespace, self.mesh.root_namespace):
                    yield one

    def _attached(self, item: ConfigObject, pod: Pod) -> tuple[bool, str]:
        """Say whether a policy is attached to a pod, by its selector or by targetRefs."""
        able = self._able(item, pod)
        references = target_references(item)
        if references:
            found = [self._referred(item, reference, pod) for reference in references]
            acting = next((why for acts, why in found if acts), None)
            if acting is not None:
                return (False, able) if able else (True, acting)
            return False, "; ".join(dict.fromkeys(why for _, why in found))
        if item.namespace not in (pod.namespace, self.mesh.root_namespace):
            return False, f"it is for namespace {item.namespace}"
        labels = workload_labels(item)
        if not labels.items() <= pod.labels.items():
            return False, _mismatch(labels, pod)
        if able:
            return False, able
        if pod.mesh == "waypoint" and item.kind in _BY_NAME_AT_WAYPOINTS:
            return False, "a waypoint takes only what names it in targetRefs"
        what = _effect(item)
        if labels:
            return True, f"selects {_labels(labels)}{what}"
        mesh_wide = item.namespace == self.mesh.root_namespace
        return True, f"is for {'the whole mesh' if mesh_wide else 'its whole namespace'}{what}"

    def _able(self, item: ConfigObject, pod: Pod) -> str:
        """Say why nothing in front of a pod could do what an object asks; empty when it can."""
        if pod.mesh == "ambient":
            if item.kind == "AuthorizationPolicy" or self._at_waypoint(item):
                return ""
            return f"ztunnel, which is in front of the pod, knows no {item.kind}"
        if pod.mesh not in _PROXIED:
            return "no proxy of the mesh is in front of the pod"
        if item.kind == "EnvoyFilter":
            contexts = {
                str(dig(patch, "match", "context", default="ANY"))
                for patch in items(item.spec, "configPatches")
            }
            if contexts and not contexts & {"ANY", *_CONTEXTS[pod.mesh]}:
                return f"its patches are for {_list(sorted(contexts))} only"
        return ""

    def _at_waypoint(self, item: ConfigObject) -> bool:
        kinds = {dig(reference, "kind") for reference in target_references(item)}
        return bool(kinds & {"Service", "ServiceEntry"})

    def _referred(self, item: ConfigObject, reference: Json, pod: Pod) -> tuple[bool, str]:
        kind, name = (
            str(dig(reference, "kind", default="")),
            str(dig(reference, "name", default="")),
        )
        title = f"{kind} {item.namespace}/{name}"
        own_gateway = str(pod.labels.get(_GATEWAY_NAME, ""))
        if kind == "Gateway":
            mine = own_gateway == name and pod.namespace == item.namespace
            return mine, f"is attached to {title}" + _effect(item)
        if kind == "GatewayClass":
            classes = {
                str(dig(gateway.spec, "gatewayClassName"))
                for gateway in self.mesh.of("Gateway", GATEWAY_API_GROUP)
                if (gateway.namespace, gateway.name) == (pod.namespace, own_gateway)
            }
            mine = name in classes and item.namespace == self.mesh.root_namespace
            return mine, f"is attached to GatewayClass {name}" + _effect(item)
        if kind != "Service":
            return False, f"is attached to {title}"
        labels = self._labels.get((item.namespace, name), {})
        waypoint = self._waypoint((labels, "Service"), item.namespace)
        if waypoint is None or not waypoint.pods:
            return False, f"is attached to {title}, which has no waypoint to obey it"
        if (waypoint.namespace, waypoint.name) == (pod.namespace, own_gateway):
            return True, f"is attached to {title}, for which the pod is the waypoint"
        behind = any(
            ports[0].namespace == item.namespace and ports[0].service == name
            for ports in self._behind(pod)
        )
        if behind:
            return True, f"is attached to {title}: its waypoint {waypoint.name} obeys it"
        return False, f"is attached to {title}"


def _together(pairs: list[tuple[Pod, Acting]], count: int) -> Acting:
    """Return what an object does to a Service's pods as a whole."""
    acting = [(pod, one) for pod, one in pairs if one.acts]
    _, chosen = (acting or pairs)[0]
    if not acting or len(acting) == count:
        return Acting(chosen.item, bool(acting), chosen.why)
    pods = _list(pod.pod for pod, _ in acting)
    return Acting(chosen.item, acts=True, why=f"{chosen.why} (of its pods only {pods})")


def _names(route: ConfigObject, gateway: ConfigObject) -> bool:
    if gateway.group == GATEWAY_GROUP:
        return f"{gateway.namespace}/{gateway.name}" in bound_gateways(route)
    return any(
        dig(parent, "name") == gateway.name
        and dig(parent, "namespace", default=route.namespace) == gateway.namespace
        for parent in items(route.spec, "parentRefs")
    )


def _level(item: ConfigObject) -> tuple[bool, str]:
    return bool(workload_labels(item) or target_references(item)), item.namespace


def _effect(item: ConfigObject) -> str:
    if item.kind != "AuthorizationPolicy":
        return ""
    action = str(dig(item.spec, "action", default="ALLOW"))
    rules = len(items(item.spec, "rules"))
    return f"; {action} with {rules} rule{'' if rules == 1 else 's'}"


def _declared(document: Json) -> Iterator[tuple[int, str]]:
    """Yield the ports that a pod's containers declare, as istioctl lists them."""
    for container in items(document, "spec", "containers"):
        for port in items(container, "ports"):
            number = dig(port, "containerPort")
            if isinstance(number, int):
                yield number, str(dig(container, "name", default=""))


def _pod_port(service: ServicePort, document: Json) -> int | None:
    if service.target_port.isdecimal():
        return int(service.target_port)
    for part in ("containers", "initContainers"):
        for container in items(document, "spec", part):
            for port in items(container, "ports"):
                if dig(port, "name") == service.target_port:
                    number = dig(port, "containerPort")
                    return number if isinstance(number, int) else None
    return None


def _settings(policy: Mapping[str, Any]) -> Iterator[str]:
    """Yield what a traffic policy sets, a setting each."""
    if mode := dig(policy, "tls", "mode"):
        yield f"TLS mode {mode}"
    if "loadBalancer" in policy:
        simple = dig(policy, "loadBalancer", "simple")
        hashed = mapping(policy, "loadBalancer", "consistentHash")
        yield f"load balancer {simple or ('consistent hash' if hashed else 'set')}"
    for field, words in (
        ("connectionPool", "connection pool"),
        ("outlierDetection", "outlier detection"),
        ("tunnel", "tunnel"),
        ("proxyProtocol", "PROXY protocol"),
        ("retryBudget", "retry budget"),
    ):
        if field in policy:
            yield words
    for level in items(policy, "portLevelSettings"):
        port = dig(level, "port", "number")
        inner = _list(_settings(mapping(level))) or "nothing"
        yield f"port {port}: {inner}"


def _match(route: Json) -> str:
    """Return the conditions of a VirtualService's route in words; empty when it takes all."""
    return " or ".join(filter(None, map(_conditions, items(route, "match"))))


def _conditions(match: Json) -> str:
    parts = []
    for field, condition in mapping(match).items():
        if field == "name":
            continue
        if field in ("uri", "method", "scheme", "authority"):
            parts.append(f"{field} {_text_match(condition)}")
        elif field in ("headers", "queryParams", "withoutHeaders"):
            words = {"headers": "header", "queryParams": "query", "withoutHeaders": "no header"}
            parts += [
                f"{words[field]} {key}={_text_match(value)}"
                for key, value in mapping(condition).items()
            ]
        elif field == "sourceLabels":
            parts.append(f"callers labelled {_labels(mapping(condition))}")
        elif isinstance(condition, list):
            parts.append(f"{field} {_list(map(str, condition))}")
        else:
            parts.append(f"{field} {condition}")
    return ", ".join(parts)


def _text_match(condition: Json) -> str:
    for field, form in (("exact", "{}"), ("prefix", "{}*"), ("regex", "regex {}")):
        if (text := dig(condition, field)) is not None:
            return form.format(text)
    return "*"


def _api_match(rule: Json) -> str:
    said = []
    for match in items(rule, "matches"):
        parts = []
        path = dig(match, "path", "value")
        if path:
            star = "" if dig(match, "path", "type") == "Exact" else "*"
            parts.append(f"uri {path}{star}")
        if method := dig(match, "method"):
            parts.append(f"method {method}")
        parts += [
            f"header {dig(header, 'name')}={dig(header, 'value')}"
            for header in items(match, "headers")
        ]
        said.append(", ".join(parts))
    return " or ".join(filter(None, said))


def _labels(labels: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in labels.items())


def _mismatch(labels: Mapping[str, Any], pod: Pod) -> str:
    """Say which labels a selector wants that a pod does not have."""
    missing = {key: value for key, value in labels.items() if pod.labels.get(key) != value}
    return f"selects {_labels(missing or labels)}, which the pod is not labelled"


def _list(names: Iterable[str], limit: int = 5) -> str:
    every = list(dict.fromkeys(names))
    more = f" and {len(every) - limit} others" if len(every) > limit else ""
    return ", ".join(every[:limit]) + more
