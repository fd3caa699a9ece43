"""Faults on the way out of the mesh, and of what proxies may see."""

from __future__ import annotations

from itertools import count

from tests.alteration import Line
from tests.enriching.base import Enriched, Json
from tests.enriching.envoy import sidecars
from tests.faults.base import (
    NO_HOST,
    Fields,
    change,
    clusters,
    drop,
    fault,
    no_clusters,
    no_endpoints,
    put,
    since,
    spec,
    tls_error,
)

PARTNER, WEATHER = "api.partner.example", "weather.example"
BLOCKED = {
    "code": "502",
    "flags": "-",
    "details": "direct_response",
    "endpoint": "-",
    "own": "-",
    "service_time": "-",
    "cluster": "-",
    "route": "block_all",
}


def _calls(mesh: Enriched, host: str, fields: Fields) -> None:
    """Let calls to an external host fail as of now; those before stay as they were."""
    number, begin = count(), since(mesh)

    def fail(line: Line) -> list[Line]:
        if line.inbound or not line.cluster.endswith(f"|{host}"):
            return [line]
        at = f"{mesh.ago(seconds=24 - 2 * next(number))[:-1]}.200Z"
        failed = line._replace(**{**fields, "time": at, "id": f"{line.id[:-1]}f"})
        return [failed] if line.time >= begin else [line, failed]

    for proxy in sidecars(mesh):
        if proxy.log is not None:
            mesh.rewrite(proxy.log, fail)


def _rerouted(mesh: Enriched, host: str, port: str) -> None:
    for proxy in sidecars(mesh):
        for config, virtual in list(proxy.virtual_hosts()):
            if virtual["name"] == f"{host}:{port}":
                config["virtual_hosts"].remove(virtual)


@fault("A", "ServiceEntry/bookinfo/weather")
def an_external_host_is_misspelt(mesh: Enriched) -> None:
    """The ServiceEntry registers wether.example, and only registered hosts may be called."""
    spec(mesh, "serviceentries", "weather", hosts=["wether.example"])
    no_clusters(mesh, WEATHER, "")
    _rerouted(mesh, WEATHER, "80")
    _calls(mesh, WEATHER, BLOCKED)


@fault("A", "ServiceEntry/bookinfo/weather")
def an_external_host_that_does_not_resolve(mesh: Enriched) -> None:
    """The ServiceEntry's endpoint is a name that nobody can resolve."""
    spec(mesh, "serviceentries", "weather", endpoints=[{"address": "weather.invalid"}])
    for _, cluster in clusters(mesh, WEATHER):
        for locality in cluster.get("load_assignment", {}).get("endpoints", []):
            for host in locality["lb_endpoints"]:
                host["endpoint"]["address"]["socket_address"]["address"] = "weather.invalid"
    no_endpoints(mesh, WEATHER)
    _calls(mesh, WEATHER, NO_HOST)


@fault("A", "ServiceEntry/bookinfo/weather")
def an_external_host_without_addresses(mesh: Enriched) -> None:
    """The ServiceEntry was made STATIC, and lists no endpoints."""
    spec(mesh, "serviceentries", "weather", resolution="STATIC")
    for _, cluster in clusters(mesh, WEATHER):
        cluster["type"] = "EDS"
        cluster.pop("load_assignment", None)
    no_endpoints(mesh, WEATHER)
    _calls(mesh, WEATHER, NO_HOST)


@fault("A", "DestinationRule/bookinfo/weather")
def another_server_name_for_an_external_host(mesh: Enriched) -> None:
    """The DestinationRule asks for another name in its TLS handshake, which the host refuses."""

    def other(one: Json) -> None:
        one["spec"]["trafficPolicy"]["portLevelSettings"][0]["tls"]["sni"] = "weather.internal"

    change(mesh, "destinationrules", "weather", other)
    for _, cluster in clusters(mesh, WEATHER):
        typed = cluster.get("transport_socket", {}).get("typed_config", {})
        typed["sni"] = "weather.internal"
    reason = "268436496:SSL_routines:OPENSSL_internal:SSLV3_ALERT_HANDSHAKE_FAILURE"
    _calls(mesh, WEATHER, tls_error(reason))


@fault("A", "DestinationRule/bookinfo/weather", "ServiceEntry/bookinfo/weather")
def plain_text_to_a_port_of_tls(mesh: Enriched) -> None:
    """The DestinationRule that began TLS is gone; the external host is spoken to in plain text."""
    drop(mesh, "destinationrules", "weather")
    for _, cluster in clusters(mesh, WEATHER):
        cluster.pop("transport_socket", None)
    _calls(mesh, WEATHER, {"code": "400", "details": "via_upstream"})


@fault("A", "ServiceEntry/bookinfo/partner-api")
def an_external_tls_host_was_forgotten(mesh: Enriched) -> None:
    """The ServiceEntry registers another host than clients call over TLS."""
    spec(mesh, "serviceentries", "partner-api", hosts=["api.partner.exmaple"])
    no_clusters(mesh, PARTNER, "")
    for proxy in sidecars(mesh):
        proxy.listeners[:] = [
            one
            for one in proxy.listeners
            if PARTNER not in str(one.get("active_state", {}).get("listener", {}))
        ]
    _calls(
        mesh,
        PARTNER,
        {"code": "0", "flags": "UH", "cluster": "BlackHoleCluster", "endpoint": "-", "own": "-"},
    )


@fault("A", "Sidecar/bookinfo/client")
def a_sidecar_of_one_workload_hides_a_service(mesh: Enriched) -> None:
    """A Sidecar for one client lists three of the four Services that it calls."""
    listed = ["reviews", "details", "productpage", "archive-db", "ledger"]
    hosts = [f"./{name}.bookinfo.svc.cluster.local" for name in listed]
    put(
        mesh,
        "Sidecar",
        "client",
        "bookinfo",
        {
            "workloadSelector": {"labels": {"app": "client"}},
            "egress": [{"hosts": [*hosts, f"./{PARTNER}", f"./{WEATHER}", "istio-system/*"]}],
        },
    )
    host = "ratings.bookinfo.svc.cluster.local"
    begin, lost = since(mesh), set[tuple[str, str]]()
    for proxy in sidecars(mesh):
        if proxy.pod != "client" or proxy.log is None:
            continue
        proxy.clusters[:] = [e for e in proxy.clusters if not e["cluster"]["name"].endswith(host)]
        proxy.statuses[:] = [e for e in proxy.statuses if not e["name"].endswith(host)]
        proxy.endpoints[:] = [
            e
            for e in proxy.endpoints
            if not str(e["endpoint_config"].get("cluster_name")).endswith(host)
        ]
        _drop_host(proxy, host)

        def block(line: Line) -> list[Line]:
            if line.cluster.endswith(host) and line.time >= begin:
                lost.add((line.id, line.endpoint))
                return [line._replace(**BLOCKED)]
            return [line]

        mesh.rewrite(proxy.log, block)
    for proxy in sidecars(mesh):
        if proxy.log is not None:
            mesh.rewrite(proxy.log, lambda x: [] if x.inbound and (x.id, x.local) in lost else [x])


def _drop_host(proxy: Json, host: str) -> None:
    for config, virtual in list(proxy.virtual_hosts()):
        if virtual["name"].startswith(f"{host}:"):
            config["virtual_hosts"].remove(virtual)
