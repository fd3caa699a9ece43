"""What istiod's validation refuses of an object, beyond the definition of its kind.

After Istio's rules (pkg/config/validation, 1.30): those that can be told from the object alone, and
that decide whether it has any effect. Each yields the path of a field and what is wrong with it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from meshnb.checks.base import and_list
from meshnb.checks.refused_policies import POLICIES
from meshnb.checks.refused_values import (
    Problem,
    address_problem,
    domain_problem,
    duration_problem,
    full_host_problem,
    host_problem,
    is_address,
    percent_problem,
    port_problem,
    regex_problem,
    share_problem,
)
from meshnb.tables.base import Json, dig, items, mapping
from meshnb.tables.services import declared_protocol
from meshnb.traces.mesh import hosts_overlap
from meshnb.traces.objects import Object, texts

_ADMISSIBLE = ("http", "http2", "grpc", "grpc-web", "http_proxy")
_ENCRYPTED = ("https", "tls")
_WITH_CERTIFICATE = ("SIMPLE", "MUTUAL", "OPTIONAL_MUTUAL")
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
#: What the address of an application in the same pod begins with.
_OWN_ADDRESSES = ("127.0.0.1:", "0.0.0.0:", "[::1]:", "[::]:", ":", "unix://")
#: Istio takes 600, too, although it says that 599 is the last.
_LOWEST_STATUS, _HIGHEST_STATUS = 200, 600


def _gateway(item: Object) -> Iterator[Problem]:
    if not _LABEL.fullmatch(item.name):
        yield "metadata.name", "the name of a Gateway has no dots and no capitals"
    servers = items(item.spec, "servers")
    if not servers:
        yield "spec.servers", "there is no server"
    names: set[str] = set()
    for position, server in enumerate(servers):
        path = f"spec.servers[{position}]"
        if not texts(server, "hosts"):
            yield f"{path}.hosts", "there is no host"
        for place, host in enumerate(texts(server, "hosts")):
            if not is_address(host):
                yield from full_host_problem(host, f"{path}.hosts[{place}]")
        port = mapping(server, "port")
        if dig(server, "port") is None:
            yield f"{path}.port", "there is no port"
        else:
            yield from _server_port(port, str(dig(server, "bind", default="")), f"{path}.port")
            name = str(port.get("name") or "")
            if name in names:
                yield f"{path}.port.name", f"another server has the name {name!r}, too"
            names.add(name)
        yield from _server_tls(server, port, f"{path}.tls")


def _protocol(port: Mapping[str, Any]) -> str:
    return declared_protocol(0, str(port.get("protocol") or ""), "TCP", None)


def _server_port(port: Mapping[str, Any], bind: str, path: str) -> Iterator[Problem]:
    number = port.get("number")
    if _protocol(port) == "auto":
        yield f"{path}.protocol", f"{port.get('protocol')!r} is no protocol"
    if not bind.startswith("unix://") and not (isinstance(number, int) and 0 < number < 65536):
        yield f"{path}.number", f"{number!r} is no port number"
    if port.get("targetPort"):
        yield f"{path}.targetPort", "it has no effect on a Gateway"
    if not port.get("name"):
        yield f"{path}.name", "there is no name"


def _server_tls(server: Json, port: Mapping[str, Any], path: str) -> Iterator[Problem]:
    tls = mapping(server, "tls")
    protocol, mode = _protocol(port), tls.get("mode") or "PASSTHROUGH"
    given = dig(server, "tls") is not None
    if protocol in _ENCRYPTED and not given:
        yield path, f"a server for {port.get('protocol')} needs TLS settings"
    elif given and protocol not in (*_ENCRYPTED, "auto"):
        own = any(tls.get(name) for name in ("caCertificates", "privateKey", "serverCertificate"))
        plain = protocol in _ADMISSIBLE and not own
        if not plain or mode not in ("PASSTHROUGH", "AUTO_PASSTHROUGH"):
            yield path, f"a server for {port.get('protocol')} has no TLS"
    if mode in _WITH_CERTIFICATE and not (tls.get("credentialName") or tls.get("credentialNames")):
        if mode != "SIMPLE" and not tls.get("caCertificates"):
            yield path, f"{mode} needs caCertificates or credentialName"
        if not items(tls, "tlsCertificates"):
            for name in ("serverCertificate", "privateKey"):
                if not tls.get(name):
                    yield path, f"{mode} needs {name} or credentialName"


def _virtual_service(item: Object) -> Iterator[Problem]:
    spec, hosts, gateways = item.spec, texts(item.spec, "hosts"), texts(item.spec, "gateways")
    if not hosts:
        for name in ("gateways", "tls", "tcp"):
            if items(spec, name):
                yield f"spec.{name}", "a VirtualService without hosts, a delegate, has none"
    at_gateway = any(name != "mesh" for name in gateways)
    for position, name in enumerate(gateways):
        parts = name.split("/" if "/" in name else ".")
        if not all(_LABEL.fullmatch(part) for part in parts):
            yield f"spec.gateways[{position}]", f"{name!r} is no name of a gateway"
    for position, host in enumerate(hosts):
        if host == "*" and (not at_gateway or "mesh" in gateways):
            yield f"spec.hosts[{position}]", "the host * is for gateways only"
        if host != "*":
            for other in hosts[position + 1 :]:
                if hosts_overlap(host, other):
                    yield f"spec.hosts[{position}]", f"it is the same as {other}"
    if not any(items(spec, name) for name in ("http", "tls", "tcp")):
        yield "spec", "there is no route: neither http nor tls nor tcp"
    for position, host in enumerate(hosts):
        yield from host_problem(host, f"spec.hosts[{position}]")
    for number, route in enumerate(items(spec, "http")):
        yield from _http_route(route, f"spec.http[{number}]")
        ends = [name for name in ("redirect", "directResponse", "delegate") if dig(route, name)]
        if not items(route, "route") and not ends:
            yield f"spec.http[{number}]", "it has neither route nor redirect nor directResponse"
        if items(route, "route") and ("redirect" in ends or "directResponse" in ends):
            yield f"spec.http[{number}]", f"it has both route and {and_list(ends)}"
    for protocol in ("tls", "tcp"):
        for number, route in enumerate(items(spec, protocol)):
            if not items(route, "route"):
                yield f"spec.{protocol}[{number}]", "it has no route"
            if protocol == "tls" and not items(route, "match"):
                yield f"spec.tls[{number}]", "it has no match"
            yield from _weights(route, f"spec.{protocol}[{number}]")
            yield from _connection(route, hosts, f"spec.{protocol}[{number}]", protocol)


def _connection(route: Json, hosts: list[str], path: str, protocol: str) -> Iterator[Problem]:
    for position, match in enumerate(items(route, "match")):
        place = f"{path}.match[{position}]"
        for block in texts(match, "destinationSubnets"):
            yield from address_problem(block, f"{place}.destinationSubnets")
        if protocol == "tls" and not texts(match, "sniHosts"):
            yield f"{place}.sniHosts", "there is no name"
        for name in texts(match, "sniHosts") if protocol == "tls" else ():
            if not any(_within(name, host) for host in hosts):
                yield f"{place}.sniHosts", f"{name!r} is none of the hosts {and_list(hosts)}"


def _within(name: str, host: str) -> bool:
    return name == host or (host.startswith("*") and name.endswith(host[1:]))


def _weights(route: Json, path: str) -> Iterator[Problem]:
    """Yield what is wrong with the destinations of a route, and with their weights."""
    destinations = items(route, "route")
    weights = [dig(one, "weight", default=0) for one in destinations]
    if len(destinations) > 1 and not any(weights):
        yield f"{path}.route", "all weights together are 0"
    for position, (one, weight) in enumerate(zip(destinations, weights, strict=True)):
        place = f"{path}.route[{position}]"
        if isinstance(weight, int) and weight < 0:
            yield f"{place}.weight", f"{weight} is negative"
        if not dig(one, "destination", "host"):
            yield f"{place}.destination.host", "there is no host"
        if dig(one, "destination", "port") is not None:
            number = dig(one, "destination", "port", "number", default=0)
            yield from port_problem(number, f"{place}.destination.port.number")


def _http_route(route: Json, path: str) -> Iterator[Problem]:
    yield from _weights(route, path)
    yield from _expressions(route, path)
    yield from _faults(mapping(route, "fault"), f"{path}.fault")
    yield from duration_problem(dig(route, "timeout"), f"{path}.timeout")
    attempts = dig(route, "retries", "attempts", default=0)
    if isinstance(attempts, int) and attempts < 0:
        yield f"{path}.retries.attempts", f"{attempts} is negative"
    tried = f"{path}.retries.perTryTimeout"
    yield from duration_problem(dig(route, "retries", "perTryTimeout"), tried)
    if attempts == 0 and any(dig(route, "retries", name) for name in ("perTryTimeout", "retryOn")):
        yield f"{path}.retries", "it says how to try again, and attempts is 0"
    if dig(route, "mirror", "host") == "":
        yield f"{path}.mirror.host", "there is no host"
    shares = [(f"{path}.mirrorPercentage", dig(route, "mirrorPercentage"))]
    for position, mirror in enumerate(items(route, "mirrors")):
        shares.append((f"{path}.mirrors[{position}].percentage", dig(mirror, "percentage")))
    for place, share in shares:
        yield from share_problem(share, place, smallest=0)
    status = dig(route, "directResponse", "status")
    if isinstance(status, int) and not _LOWEST_STATUS <= status <= _HIGHEST_STATUS:
        yield f"{path}.directResponse.status", f"{status} is no status to answer with"
    if dig(route, "redirect") is not None and not any(
        dig(route, "redirect", name)
        for name in ("uri", "authority", "scheme", "port", "derivePort")
    ):
        yield f"{path}.redirect", "it has neither uri nor authority nor scheme nor port"


def _faults(fault: Mapping[str, Any], path: str) -> Iterator[Problem]:
    delay, abort = mapping(fault, "delay"), mapping(fault, "abort")
    yield from share_problem(delay.get("percentage"), f"{path}.delay.percentage")
    yield from duration_problem(delay.get("fixedDelay"), f"{path}.delay.fixedDelay")
    yield from share_problem(abort.get("percentage"), f"{path}.abort.percentage")
    status = abort.get("httpStatus")
    if isinstance(status, int) and not _LOWEST_STATUS <= status <= _HIGHEST_STATUS:
        yield f"{path}.abort.httpStatus", f"{status} is no status to answer with"


_MATCHED = ("uri", "scheme", "method", "authority")
_MATCHED_BY_NAME = ("headers", "withoutHeaders", "queryParams")


def _expressions(route: Json, path: str) -> Iterator[Problem]:
    for position, match in enumerate(items(route, "match")):
        place = f"{path}.match[{position}]"
        for part in _MATCHED:
            yield from regex_problem(dig(match, part, "regex"), f"{place}.{part}.regex")
        for part in _MATCHED_BY_NAME:
            for name, one in mapping(match, part).items():
                yield from regex_problem(dig(one, "regex"), f"{place}.{part}.{name}.regex")
    rewrite = f"{path}.rewrite.uriRegexRewrite.match"
    yield from regex_problem(dig(route, "rewrite", "uriRegexRewrite", "match"), rewrite)
    for position, origin in enumerate(items(route, "corsPolicy", "allowOrigins")):
        place = f"{path}.corsPolicy.allowOrigins[{position}].regex"
        yield from regex_problem(dig(origin, "regex"), place)


def _sidecar(item: Object) -> Iterator[Problem]:
    parts = ("egress", "ingress", "outboundTrafficPolicy", "inboundConnectionPool")
    if not any(dig(item.spec, name) not in (None, []) for name in parts):
        yield "spec", f"it says nothing: it has none of {and_list(parts)}"
        return
    bound: set[Any] = set()
    for position, listener in enumerate(items(item.spec, "ingress")):
        if dig(listener, "port") is None:
            yield f"spec.ingress[{position}]", "it has no port"
        number = dig(listener, "port", "number")
        if not str(dig(listener, "bind", default="")).startswith("unix://"):
            if number in bound:
                yield f"spec.ingress[{position}].port", f"another listener has port {number}, too"
            bound.add(number)
        own = str(dig(listener, "defaultEndpoint", default="") or "")
        if own and not own.startswith(_OWN_ADDRESSES):
            path = f"spec.ingress[{position}].defaultEndpoint"
            yield path, f"{own!r} is none of the pod's own addresses"
    for position, listener in enumerate(items(item.spec, "egress")):
        path = f"spec.egress[{position}].hosts"
        if not texts(listener, "hosts"):
            yield path, "there is no host"
        for host in texts(listener, "hosts"):
            if "/" not in host:
                yield path, f"{host!r} has no namespace before a slash"
            else:
                yield from full_host_problem(host, path)
        last = position == len(items(item.spec, "egress")) - 1
        if dig(listener, "port") is None and not last:
            yield path.removesuffix(".hosts"), "without a port it must be the last"


def _destination_rule(item: Object) -> Iterator[Problem]:
    if host := str(item.spec.get("host") or ""):
        yield from host_problem(host, "spec.host")
    else:
        yield "spec.host", "there is no host"
    seen: set[Any] = set()
    for position, subset in enumerate(items(item.spec, "subsets")):
        name = str(dig(subset, "name", default=""))
        path = f"spec.subsets[{position}]"
        if name in seen:
            yield f"{path}.name", f"there is another subset {name}"
        elif not _LABEL.fullmatch(name.lower()):
            yield f"{path}.name", f"{name!r} is no name of a subset"
        seen.add(name)
        yield from _traffic_policy(dig(subset, "trafficPolicy"), f"{path}.trafficPolicy")
    yield from _traffic_policy(dig(item.spec, "trafficPolicy"), "spec.trafficPolicy")


_POOL = {
    "tcp": ("maxConnections",),
    "http": (
        *("http1MaxPendingRequests", "http2MaxRequests", "maxRequestsPerConnection", "maxRetries"),
    ),
}


def _traffic_policy(policy: Json, path: str) -> Iterator[Problem]:
    if policy is None:
        return
    if all(value == [] for value in mapping(policy).values()):
        yield path, "it says nothing"
    ports = items(policy, "portLevelSettings")
    for position, one in enumerate(ports):
        place = f"{path}.portLevelSettings[{position}]"
        if dig(one, "port") is None:
            yield f"{place}.port", "there is no port"
        if set(mapping(one)) <= {"port"}:
            yield place, "it says nothing but the port"
    for one, place in (
        (policy, path),
        *((one, f"{path}.portLevelSettings[{position}]") for position, one in enumerate(ports)),
    ):
        yield from _pool(dig(one, "connectionPool"), f"{place}.connectionPool")
        outlier = mapping(one, "outlierDetection")
        for name in ("baseEjectionTime", "interval"):
            yield from duration_problem(outlier.get(name), f"{place}.outlierDetection.{name}")
        for name in ("maxEjectionPercent", "minHealthPercent"):
            yield from percent_problem(outlier.get(name), f"{place}.outlierDetection.{name}")
        tls = mapping(one, "tls")
        if tls.get("mode") == "MUTUAL" and not tls.get("credentialName"):
            for name in ("clientCertificate", "privateKey"):
                if not tls.get(name):
                    yield f"{place}.tls", f"MUTUAL needs {name} or credentialName"


def _pool(pool: Json, path: str) -> Iterator[Problem]:
    if pool is not None and not mapping(pool):
        yield path, "it says nothing"
    for part, names in _POOL.items():
        for name in names:
            value = dig(pool, part, name)
            if isinstance(value, int) and value < 0:
                yield f"{path}.{part}.{name}", f"{value} is negative"
    for part, name in (("tcp", "connectTimeout"), ("http", "idleTimeout")):
        yield from duration_problem(dig(pool, part, name), f"{path}.{part}.{name}")


# --- Hosts outside the mesh, and machines in it -------------------------------------------------


def _service_entry(item: Object) -> Iterator[Problem]:
    spec, hosts = item.spec, texts(item.spec, "hosts")
    resolution = str(spec.get("resolution") or "NONE")
    endpoints = items(spec, "endpoints")
    if not hosts:
        yield "spec.hosts", "there is no host"
    for position, host in enumerate(hosts):
        path = f"spec.hosts[{position}]"
        if host == "*":
            yield path, "the host * is too wide"
        elif resolution in ("DNS", "DNS_ROUND_ROBIN") and host.startswith("*") and not endpoints:
            yield path, f"no address can be looked up for {host}, and there are no endpoints"
        else:
            yield from host_problem(host, path)
    for position, address in enumerate(texts(spec, "addresses")):
        yield from address_problem(address, f"spec.addresses[{position}]")
        if "/" in address and resolution not in ("NONE", "STATIC"):
            yield f"spec.addresses[{position}]", f"{resolution} takes no range of addresses"
    if endpoints and mapping(spec, "workloadSelector"):
        yield "spec", "only one of endpoints and workloadSelector may be there"
    if endpoints and resolution == "NONE":
        yield "spec.endpoints", "resolution NONE has no endpoints"
    if len(endpoints) > 1 and resolution == "DNS_ROUND_ROBIN":
        yield "spec.endpoints", "resolution DNS_ROUND_ROBIN has at most one endpoint"
    yield from _entry_ports(item)
    known = {dig(port, "name") for port in items(spec, "ports")}
    for position, endpoint in enumerate(endpoints):
        path = f"spec.endpoints[{position}]"
        yield from _machine(endpoint, path, names=resolution != "STATIC")
        for name in mapping(endpoint, "ports"):
            if name not in known:
                yield f"{path}.ports.{name}", "the ServiceEntry has no such port"


def _entry_ports(item: Object) -> Iterator[Problem]:
    numbers: set[Any] = set()
    names: set[Any] = set()
    for position, port in enumerate(items(item.spec, "ports")):
        path, number, name = f"spec.ports[{position}]", dig(port, "number"), dig(port, "name")
        yield from port_problem(number, f"{path}.number")
        if number in numbers:
            yield f"{path}.number", f"another port has the number {number}, too"
        if not _LABEL.fullmatch(str(name or "").lower()):
            yield f"{path}.name", f"{name!r} is no name of a port"
        elif name in names:
            yield f"{path}.name", f"another port has the name {name}, too"
        numbers.add(number)
        names.add(name)
        if dig(port, "protocol") and _protocol(mapping(port)) == "auto":
            yield f"{path}.protocol", f"{dig(port, 'protocol')!r} is no protocol"


def _machine(place: Json, path: str, *, names: bool = True) -> Iterator[Problem]:
    """Yield what is wrong with a WorkloadEntry, or an endpoint, which is one of an entry."""
    address = str(dig(place, "address", default="") or "")
    for port, number in mapping(place, "ports").items():
        yield from port_problem(number, f"{path}.ports.{port}")
    if not address:
        if not dig(place, "network"):
            yield f"{path}.address", "there is no address"
    elif address.startswith("unix://"):
        if names:
            yield f"{path}.address", f"{address} is of a socket, which only STATIC can have"
        if mapping(place, "ports"):
            yield f"{path}.ports", "a socket has no ports"
    elif not names:
        yield from address_problem(address, f"{path}.address", ranges=False)
    elif not is_address(address):
        yield from domain_problem(address, f"{path}.address", wildcard=False)


def _workload_entry(item: Object) -> Iterator[Problem]:
    socket = str(item.spec.get("address") or "").startswith("unix://")
    yield from _machine(item.spec, "spec", names=not socket)


REFUSED: Mapping[str, Callable[[Object], Iterator[Problem]]] = {
    **POLICIES,
    "DestinationRule": _destination_rule,
    "Gateway": _gateway,
    "ServiceEntry": _service_entry,
    "Sidecar": _sidecar,
    "VirtualService": _virtual_service,
    "WorkloadEntry": _workload_entry,
}
