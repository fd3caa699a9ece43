"""More traffic: a canary, Services with several ports, a database, hosts outside the mesh."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

from tests.alteration import Line
from tests.enriching.base import Enriched, Json, name_of
from tests.enriching.envoy import (
    Proxy,
    add_cluster,
    add_route_host,
    proxies,
    replaced,
    route_to,
    served_host,
    sidecars,
    tcp_listener,
    tcp_proxy,
)
from tests.enriching.workloads import (
    Made,
    clone,
    join,
    serve,
    service_for,
    template,
    workload_of,
)


def canary(mesh: Enriched) -> None:
    """Send a tenth of one Service's requests to a second version, by weight and subset."""
    pod = template(mesh, served=True)
    service = service_for(mesh, pod) if pod is not None else None
    if pod is None or service is None:
        return
    namespace, name = name_of(service)
    labels = pod["metadata"]["labels"]
    app = next(iter(service["spec"]["selector"].items()))
    old = labels.get("version", "v1")
    labels["version"] = old
    first = workload_of(pod).removesuffix(f"-{old}")
    made = clone(mesh, pod, f"{first}-{old}-next", {app[0]: app[1], "version": f"{old}-next"})
    join(mesh, service, made, pod["status"]["podIP"])
    host = f"{name}.{namespace}.svc.cluster.local"
    mesh.add(
        "networking.istio.io/v1",
        "DestinationRule",
        name,
        namespace,
        spec={
            "host": name,
            "subsets": [
                {"name": "stable", "labels": {"version": old}},
                {"name": "next", "labels": {"version": f"{old}-next"}},
            ],
        },
    )
    routes = [
        {"destination": {"host": name, "subset": "stable"}, "weight": 90},
        {"destination": {"host": name, "subset": "next"}, "weight": 10},
    ]
    mesh.add(
        "networking.istio.io/v1",
        "VirtualService",
        name,
        namespace,
        spec={"hosts": [name], "http": [{"route": routes}]},
    )
    shares = [("stable", 90), ("next", 10)]
    for proxy in proxies(mesh):
        _split(proxy, host, shares, made.address)
    _share(mesh, host, pod, made)


def _split(proxy: Proxy, host: str, shares: list[tuple[str, int]], new: str) -> None:
    """Give a host's clusters subsets, and let its routes go to them, by weight when they are two.

    The endpoint with the address ``new`` belongs to the last of two subsets.
    """
    name, namespace, *_ = host.split(".")
    rule = f"/apis/networking.istio.io/v1/namespaces/{namespace}/destination-rule/{name}"
    _subsets(proxy.clusters, lambda e: e["cluster"]["name"], host, shares, new, rule)
    _subsets(proxy.endpoints, lambda e: e["endpoint_config"].get("cluster_name"), host, shares, new)
    _subsets(proxy.statuses, lambda e: e["name"], host, shares, new)
    origin = f"/apis/networking.istio.io/v1/namespaces/{namespace}/virtual-service/{name}"
    for _, virtual in proxy.virtual_hosts():
        if proxy.is_gateway or not virtual["name"].startswith(f"{host}:"):
            continue
        for route in virtual.get("routes", []):
            full = route.get("route", {}).get("cluster", "")
            if full.endswith(f"||{host}"):
                port = full.split("|")[1]
                ways = [(f"outbound|{port}|{part}|{host}", weight) for part, weight in shares]
                route.clear()
                route.update(route_to(ways if len(ways) > 1 else ways[0][0], origin))


def _subsets(
    entries: list[Json],
    named: Callable[[Json], str | None],
    host: str,
    shares: list[tuple[str, int]],
    new: str,
    rule: str = "",
) -> None:
    for entry in list(entries):
        full = named(entry) or ""
        if not full.startswith("outbound|") or not full.endswith(f"||{host}"):
            continue
        port = full.split("|")[1]
        for subset, _ in shares:
            added = replaced(entry, full, f"outbound|{port}|{subset}|{host}")
            added = replaced(
                added, f"outbound_.{port}_._.{host}", f"outbound_.{port}_.{subset}_.{host}"
            )
            if len(shares) > 1:
                _keep(added, new, subset == shares[-1][0])
            if rule:
                istio = added["cluster"]["metadata"]["filter_metadata"]["istio"]
                istio.update(subset=subset, config=rule)
            entries.append(added)


def _keep(entry: Json, address: str, new: bool) -> None:
    """Keep in a subset's endpoints those of the new version, or the others."""

    def there(holder: Json) -> bool:
        return (holder["address"]["socket_address"]["address"] == address) is new

    for locality in entry.get("endpoint_config", {}).get("endpoints") or []:
        locality["lb_endpoints"] = [
            m for m in locality.get("lb_endpoints") or [] if there(m["endpoint"])
        ]
    if "host_statuses" in entry:
        entry["host_statuses"] = [one for one in entry["host_statuses"] if there(one)]


def _share(mesh: Enriched, host: str, pod: Json, made: Made) -> None:
    """Let the logs say by which subset each request went; the new version has a few of them."""
    old = pod["status"]["podIP"]
    taken: set[str] = set()
    server: list[Line] = []
    chosen = 0
    for proxy in sidecars(mesh):
        if proxy.log is None:
            continue
        lines = []
        for line in proxy.access():
            if not line.inbound and line.cluster.endswith(f"||{host}") and line.code == "200":
                chosen += 1
                if chosen % 10 == 0:
                    taken.add(line.id)
            lines.append(line)

    def subset(line: Line) -> Line:
        part = "next" if line.id in taken else "stable"
        port = line.cluster.split("|")[1] if "|" in line.cluster else ""
        if not line.inbound and line.cluster.endswith(f"||{host}"):
            endpoint = (
                line.endpoint.replace(f"{old}:", f"{made.address}:")
                if part == "next"
                else line.endpoint
            )
            return line._replace(
                cluster=f"outbound|{port}|{part}|{host}", endpoint=endpoint, route="-"
            )
        if line.inbound and line.sni.endswith(f"_._.{host}"):
            return line._replace(sni=line.sni.replace("_._.", f"_.{part}_."))
        return line

    for proxy in proxies(mesh):
        if proxy.log is None or proxy.is_gateway:
            continue

        def there(line: Line, mine: bool = proxy.pod == name_of(pod)[1]) -> list[Line]:
            if mine and line.inbound and line.id in taken:
                server.append(
                    subset(line)._replace(
                        endpoint=line.endpoint.replace(f"{old}:", f"{made.address}:"),
                        local=line.local.replace(f"{old}:", f"{made.address}:"),
                    )
                )
                return []
            return [subset(line)]

        mesh.rewrite(proxy.log, there)
    for proxy in sidecars(mesh):
        if proxy.pod == made.pod and proxy.log is not None:
            mesh.lines(proxy.log).extend(map(str, server))


def subsets(mesh: Enriched) -> None:
    """Let all requests between sidecars go by a subset of the Service, even those that fail."""
    ruled = {
        str(host).split(".")[0]
        for resource in ("virtualservices", "destinationrules")
        for item in mesh.objects(resource)
        for host in [item["spec"].get("host"), *(item["spec"].get("hosts") or [])]
        if host
    }
    every = set()
    for service in mesh.objects("services"):
        namespace, name = name_of(service)
        selector = service["spec"].get("selector") or {}
        proxied = any(proxy.namespace == namespace for proxy in sidecars(mesh))
        plain = service["spec"].get("clusterIP") in (None, "None", "")
        web = all(port.get("name", "").startswith("http") for port in service["spec"]["ports"])
        if name in ruled or not selector or not proxied or plain or not web:
            continue
        subset = {"name": "all", "labels": selector}
        spec: Json = {"host": name, "subsets": [subset]}
        mesh.add("networking.istio.io/v1", "DestinationRule", name, namespace, spec=spec)
        route = {"route": [{"destination": {"host": name, "subset": "all"}}]}
        spec = {"hosts": [name], "http": [route]}
        mesh.add("networking.istio.io/v1", "VirtualService", name, namespace, spec=spec)
        every.add(f"{name}.{namespace}.svc.cluster.local")
    for proxy in proxies(mesh):
        for host in sorted(every):
            _split(proxy, host, [("all", 100)], "")
        if proxy.log is not None:
            mesh.rewrite(proxy.log, partial(_by_subset, every, proxy.is_gateway))


def _by_subset(hosts: set[str], gateway: bool, line: Line) -> list[Line]:
    kind, _, rest = line.cluster.partition("|")
    port, _, host = rest.partition("||")
    if kind == "outbound" and host in hosts and not gateway:
        return [line._replace(cluster=f"outbound|{port}|all|{host}", route="-")]
    host = line.sni.partition("_._.")[2]
    if line.inbound and host in hosts and "gateway" not in line.remote:
        return [line._replace(sni=line.sni.replace("_._.", "_.all_."))]
    return [line]


#: What another mesh calls its ports: name, port, target.
_PORTS = [
    ("http-api", 8000, 8000),
    ("grpc-api", 9000, 9000),
    ("tcp-sync", 7000, 7000),
    ("http-metrics", 9102, 9102),
]


def ports(mesh: Enriched) -> None:
    """Add a Service with several ports: HTTP, gRPC, TCP, and one for metrics."""
    pod = template(mesh)
    if pod is None:
        return
    made = clone(mesh, pod, "ledger-v1", {"app": "ledger", "version": "v1"})
    service = serve(mesh, made.namespace, "ledger", _PORTS, {"app": "ledger"}, [made])
    host = f"ledger.{made.namespace}.svc.cluster.local"
    address = service["spec"]["clusterIP"]
    updated = mesh.ago(hours=1)
    for proxy in sidecars(mesh):
        for name, port, target in _PORTS:
            cluster = f"outbound|{port}||{host}"
            add_cluster(proxy, cluster, updated, [made.identity], [(made.address, target)])
            if name.startswith("tcp"):
                proxy.listeners.append(tcp_listener(proxy, address, port, cluster, updated))
            else:
                virtual = served_host(host, port, address, [route_to(cluster)])
                add_route_host(proxy, port, virtual, updated)
    _open(mesh, made, [(name, target) for name, _, target in _PORTS])
    _talk(mesh, made, host, address)


def _open(mesh: Enriched, made: Made, opened: list[tuple[str, int]]) -> None:
    """Let the new pod's proxy take these ports instead of those of the pod it was made like."""
    for proxy in sidecars(mesh):
        if proxy.pod != made.pod:
            continue
        listener = proxy.active("virtualInbound")
        if listener is None:
            return
        chains = listener["filter_chains"]
        mine = [c for c in chains if _port(c) not in (None, 15006)]
        others = [c for c in chains if c not in mine]
        web = [c for c in mine if "http_filters" in c["filters"][-1]["typed_config"]]
        first = web[0]["filter_chain_match"]["destination_port"] if web else None
        for name, port in opened:
            for chain in [c for c in web if _port(c) == first]:
                new = replaced(chain, str(first), str(port))
                new["filter_chain_match"]["destination_port"] = port
                if name.startswith("tcp"):
                    new["filters"] = [tcp_proxy(proxy, f"inbound|{port}||")]
                others.append(new)
        listener["filter_chains"] = others
        kept = [e for e in proxy.clusters if not e["cluster"]["name"].startswith("inbound|")]
        like = next(e for e in proxy.clusters if e["cluster"]["name"].startswith("inbound|"))
        number = like["cluster"]["name"].split("|")[1]
        for _, port in opened:
            kept.append(replaced(like, f"inbound|{number}||", f"inbound|{port}||"))
        proxy.clusters[:] = kept


def _port(chain: Json) -> int | None:
    port: int | None = (chain.get("filter_chain_match") or {}).get("destination_port")
    return port


def _caller(mesh: Enriched, made: Made) -> Proxy | None:
    """Return a proxy that calls others and logs it."""
    for proxy in sidecars(mesh):
        if proxy.pod != made.pod and any(not line.inbound for line in proxy.access()):
            return proxy
    return None


def _connection(
    caller: Proxy, made: Made, host: str, local: str, port: int, number: int
) -> tuple[Line, Line]:
    """Return the two ends' lines of a TCP connection that came to a good end."""
    plain = {
        "method": "-",
        "path": "-",
        "protocol": "-",
        "code": "0",
        "flags": "-",
        "details": "-",
        "ended": "-",
        "failure": "-",
        "received": "412",
        "sent": "2048",
        "duration": "1530",
        "service_time": "-",
        "forwarded": "-",
        "agent": "-",
        "id": "-",
        "authority": "-",
        "route": "-",
        "time": "",
    }
    out = Line(
        **plain,
        endpoint=f"{made.address}:{port}",
        cluster=f"outbound|{port}||{host}",
        own=f"{caller.address}:{41000 + number}",
        local=f"{local}:{port}",
        remote=f"{caller.address}:{51000 + number}",
        sni="-",
    )
    into = Line(
        **plain,
        endpoint=f"{made.address}:{port}",
        cluster=f"inbound|{port}||",
        own=f"127.0.0.6:{43000 + number}",
        local=f"{made.address}:{port}",
        remote=f"{caller.address}:{41000 + number}",
        sni=f"outbound_.{port}_._.{host}",
    )
    return out, into


def _talk(mesh: Enriched, made: Made, host: str, address: str) -> None:
    caller = _caller(mesh, made)
    server = next((proxy for proxy in sidecars(mesh) if proxy.pod == made.pod), None)
    if caller is None or caller.log is None or server is None or server.log is None:
        return
    ends = [_connection(caller, made, host, address, 7000, number) for number in range(6)]
    times = [line.time for line in caller.access()]
    ends = [
        (out._replace(time=time), into._replace(time=time))
        for (out, into), time in zip(ends, times, strict=False)
    ]
    mesh.lines(server.log).extend(str(into) for _, into in ends)
    mesh.lines(caller.log).extend(str(out) for out, _ in ends)


def database(mesh: Enriched) -> None:
    """Add a database in a StatefulSet behind a headless Service, over TCP."""
    pod = template(mesh)
    if pod is None:
        return
    made = clone(mesh, pod, "archive-db", {"app": "archive-db"}, kind="StatefulSet")
    serve(
        mesh,
        made.namespace,
        "archive-db",
        [("tcp-postgres", 5432, 5432)],
        {"app": "archive-db"},
        [made],
        headless=True,
    )
    host = f"archive-db.{made.namespace}.svc.cluster.local"
    updated = mesh.ago(hours=1)
    for proxy in sidecars(mesh):
        cluster = f"outbound|5432||{host}"
        add_cluster(proxy, cluster, updated, [made.identity], [(made.address, 5432)])
        entry = proxy.clusters[-1]["cluster"]
        entry.update(type="ORIGINAL_DST", lb_policy="CLUSTER_PROVIDED")
        entry.pop("eds_cluster_config")
        proxy.endpoints.pop()
        proxy.listeners.append(tcp_listener(proxy, made.address, 5432, cluster, updated))
    _open(mesh, made, [("tcp-postgres", 5432)])
    caller = _caller(mesh, made)
    server = next((proxy for proxy in sidecars(mesh) if proxy.pod == made.pod), None)
    if caller is None or caller.log is None or server is None or server.log is None:
        return
    times = [line.time for line in caller.access()]
    for number, time in enumerate(times[:8]):
        out, into = _connection(caller, made, host, made.address, 5432, number)
        mesh.lines(caller.log).append(str(out._replace(time=time)))
        mesh.lines(server.log).append(str(into._replace(time=time)))


def external(mesh: Enriched) -> None:
    """Call hosts outside the mesh: over TLS as it is, and with TLS that the proxy adds."""
    if not sidecars(mesh):
        return
    namespace = sidecars(mesh)[0].namespace
    updated = mesh.ago(hours=1)
    for name, host, listed in (
        ("partner-api", "api.partner.example", [{"number": 443, "name": "tls", "protocol": "TLS"}]),
        (
            "weather",
            "weather.example",
            [{"number": 80, "name": "http", "protocol": "HTTP", "targetPort": 443}],
        ),
    ):
        spec = {"hosts": [host], "location": "MESH_EXTERNAL", "resolution": "DNS", "ports": listed}
        mesh.add("networking.istio.io/v1", "ServiceEntry", name, namespace, spec=spec)
    tls = {"mode": "SIMPLE", "sni": "weather.example"}
    mesh.add(
        "networking.istio.io/v1",
        "DestinationRule",
        "weather",
        namespace,
        spec={
            "host": "weather.example",
            "trafficPolicy": {"portLevelSettings": [{"port": {"number": 80}, "tls": tls}]},
        },
    )
    for proxy in sidecars(mesh):
        _outside(proxy, "outbound|443||api.partner.example", updated, "203.0.113.10")
        _outside(proxy, "outbound|80||weather.example", updated, "203.0.113.20")
        socket = proxy.clusters[-1]["cluster"]
        socket["transport_socket"] = {
            "name": "envoy.transport_sockets.tls",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3."
                "UpstreamTlsContext",
                "common_tls_context": {
                    "validation_context": {
                        "trusted_ca": {"filename": "/etc/ssl/certs/ca-certificates.crt"},
                        "match_subject_alt_names": [{"exact": "weather.example"}],
                    }
                },
                "sni": "weather.example",
            },
        }
        proxy.listeners.append(
            tcp_listener(
                proxy,
                "0.0.0.0",  # noqa: S104  Envoy's name of the listener, nothing listens here
                443,
                "outbound|443||api.partner.example",
                updated,
                filter_chain_match={"server_names": ["api.partner.example"]},
            )
        )
        opened = proxy.listeners[-1]["active_state"]["listener"]
        opened["listener_filters"] = [{"name": "envoy.filters.listener.tls_inspector"}]
        through = copy.deepcopy(opened["filter_chains"][0])
        through.pop("filter_chain_match")
        through["filters"] = [tcp_proxy(proxy, "PassthroughCluster")]
        opened["default_filter_chain"] = {**through, "name": "PassthroughFilterChain"}
        virtual = {
            "name": "weather.example:80",
            "domains": ["weather.example"],
            "routes": [route_to("outbound|80||weather.example")],
        }
        add_route_host(proxy, 80, virtual, updated)
    caller = next((p for p in sidecars(mesh) if any(not x.inbound for x in p.access())), None)
    if caller is None or caller.log is None:
        return
    like = next(line for line in caller.access() if not line.inbound)
    asked = [
        like._replace(
            code="200",
            flags="-",
            details="via_upstream",
            failure="-",
            path="/v1/today",
            authority="weather.example",
            endpoint="203.0.113.20:443",
            cluster="outbound|80||weather.example",
            local="203.0.113.20:80",
            id=f"3ea7e51d-0000-4000-8000-00000000000{number}",
            route="default",
        )
        for number in range(6)
    ]
    mesh.insert(caller.log, asked)
    made = Made("", "", "203.0.113.10", "")
    for number, line in enumerate(caller.access()[:4]):
        out, _ = _connection(caller, made, "api.partner.example", "203.0.113.10", 443, number)
        mesh.lines(caller.log).append(str(out._replace(time=line.time, sni="api.partner.example")))


def _outside(proxy: Proxy, name: str, updated: str, address: str) -> None:
    host = name.rsplit("|", maxsplit=1)[-1]
    add_cluster(proxy, name, updated, [], [(address, 443)], mutual=False)
    entry = proxy.clusters[-1]["cluster"]
    entry["type"] = "STRICT_DNS"
    entry.pop("eds_cluster_config")
    entry["load_assignment"] = {
        "cluster_name": name,
        "endpoints": [
            {
                "lb_endpoints": [
                    {
                        "endpoint": {
                            "address": {"socket_address": {"address": host, "port_value": 443}}
                        }
                    }
                ]
            }
        ],
    }
    entry["metadata"] = {
        "filter_metadata": {
            "istio": {"services": [{"host": host, "name": host, "namespace": proxy.namespace}]}
        }
    }
    proxy.endpoints.pop()


def registry_only(mesh: Enriched) -> None:
    """Let only registered hosts be called; twice something tried another one and was refused."""
    for proxy in sidecars(mesh):
        if any("PassthroughCluster" in line.cluster for line in proxy.access()):
            return
    for item in mesh.objects("configmaps"):
        if item["metadata"]["name"] == "istio" and "mesh" in (item.get("data") or {}):
            if "outboundTrafficPolicy" in item["data"]["mesh"]:
                return
            item["data"]["mesh"] += "\noutboundTrafficPolicy:\n  mode: REGISTRY_ONLY"
    for page in mesh.pages("/debug/mesh"):
        page["outboundTrafficPolicy"] = {"mode": "REGISTRY_ONLY"}
    for proxy in sidecars(mesh):
        for config, virtual in list(proxy.virtual_hosts()):
            if virtual["name"] == "allow_any":
                config["virtual_hosts"].remove(virtual)
                config["virtual_hosts"].append(
                    {
                        "name": "block_all",
                        "domains": ["*"],
                        "routes": [
                            {
                                "match": {"prefix": "/"},
                                "direct_response": {"status": 502},
                                "name": "block_all",
                            }
                        ],
                    }
                )
        for entry in proxy.listeners:
            listener = entry.get("active_state", {}).get("listener")
            if listener is not None and entry["name"] != "virtualInbound":
                entry["active_state"]["listener"] = replaced(
                    listener, "PassthroughCluster", "BlackHoleCluster"
                )
    caller = next((p for p in sidecars(mesh) if any(not x.inbound for x in p.access())), None)
    if caller is None or caller.log is None:
        return
    like = next(line for line in caller.access() if not line.inbound)
    refused = [
        like._replace(
            code="502",
            flags="-",
            details="direct_response",
            failure="-",
            path="/collect",
            authority="telemetry.vendor.example",
            endpoint="-",
            cluster="-",
            own="-",
            service_time="-",
            local="198.51.100.7:80",
            id=f"de41ed00-0000-4000-8000-00000000000{number}",
            route="block_all",
        )
        for number in range(2)
    ]
    mesh.insert(caller.log, refused)
