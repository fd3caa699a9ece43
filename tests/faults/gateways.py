"""Faults of gateways, Istio's own and those of the Gateway API."""

from __future__ import annotations

import base64
from collections.abc import Callable
from datetime import UTC
from itertools import count

from tests.alteration import Line
from tests.checks.test_altered import certificate
from tests.enriching.base import Enriched, Json
from tests.enriching.envoy import gateways, replaced
from tests.faults.base import (
    NO_CLUSTER,
    NO_REQUEST,
    NO_ROUTE,
    NOWHERE,
    TIMED_OUT,
    at_client,
    at_server,
    begun,
    change,
    deliver,
    fault,
    routes,
    since,
    spec,
)
from tests.faults.security import DENIED

PRODUCTPAGE = "productpage.bookinfo.svc.cluster.local"
STALL = "stall.market.svc.cluster.local"


def _http(mesh: Enriched, how: Callable[[Json], None]) -> None:
    def each(one: Json) -> None:
        for http in one["spec"]["http"]:
            how(http)

    change(mesh, "virtualservices", "bookinfo", each)


@fault("A", "VirtualService/bookinfo/bookinfo")
def a_path_at_the_gateway_is_misspelt(mesh: Enriched) -> None:
    """The VirtualService of the gateway has /productpge, and users ask for /productpage."""

    def misspell(http: Json) -> None:
        http["match"] = [{"uri": {"exact": "/productpge"}}]

    _http(mesh, misspell)
    for virtual in routes(mesh, "bookinfo.example.com", gateway=True):
        virtual["routes"] = virtual["routes"][:1]
        virtual["routes"][0]["match"] = {"path": "/productpge", "case_sensitive": True}
    at_client(
        mesh,
        PRODUCTPAGE,
        NO_ROUTE,
        pod="istio-ingressgateway",
        chosen=lambda line: line.authority == "bookinfo.example.com",
    )


@fault("A", "VirtualService/bookinfo/bookinfo")
def a_port_behind_the_gateway_does_not_exist(mesh: Enriched) -> None:
    """The VirtualService of the gateway sends to port 80 of a Service that has 9080."""

    def elsewhere(http: Json) -> None:
        http["route"] = [{"destination": {"host": "productpage", "port": {"number": 80}}}]

    _http(mesh, elsewhere)
    cluster = f"outbound|80||{PRODUCTPAGE}"
    for virtual in routes(mesh, "bookinfo.example.com", gateway=True):
        for route in virtual["routes"]:
            route["route"]["cluster"] = cluster
    at_client(
        mesh,
        PRODUCTPAGE,
        {**NO_CLUSTER, "cluster": cluster},
        pod="istio-ingressgateway",
        chosen=lambda line: line.authority == "bookinfo.example.com",
    )


@fault("A", "VirtualService/bookinfo/bookinfo")
def a_short_host_from_another_namespace(mesh: Enriched) -> None:
    """The VirtualService sends to the Service of another namespace that has none of that name."""

    def elsewhere(http: Json) -> None:
        host = "productpage.legacy.svc.cluster.local"
        http["route"] = [{"destination": {"host": host, "port": {"number": 9080}}}]

    _http(mesh, elsewhere)
    cluster = "outbound|9080||productpage.legacy.svc.cluster.local"
    for virtual in routes(mesh, "bookinfo.example.com", gateway=True):
        for route in virtual["routes"]:
            route["route"]["cluster"] = cluster
    at_client(
        mesh,
        PRODUCTPAGE,
        {**NO_CLUSTER, "cluster": cluster},
        pod="istio-ingressgateway",
        chosen=lambda line: line.authority == "bookinfo.example.com",
    )


@fault("A", "Gateway/bookinfo/shop")
def a_tls_host_is_misspelt(mesh: Enriched) -> None:
    """The TLS server of the Gateway is for shop.exmaple, and clients ask for shop.example."""

    def misspell(one: Json) -> None:
        one["spec"]["servers"][1]["hosts"] = ["shop.exmaple"]

    change(mesh, "gateways", "shop", misspell)
    for gateway in gateways(mesh):
        for chain in gateway.chains("0.0.0.0_8443"):
            chain["filter_chain_match"]["server_names"] = ["shop.exmaple"]
        for entry in gateway.listeners:
            if entry["name"] == "0.0.0.0_8443":
                entry["active_state"]["last_updated"] = begun(mesh)
        for entry in list(gateway.routes):
            if entry["route_config"]["name"].startswith("https.443"):
                entry["route_config"]["virtual_hosts"] = [
                    {"name": "blackhole:443", "domains": ["*"], "routes": []}
                ]
        if gateway.log is not None:
            moment = count()

            def cut(line: Line, moment: count[int] = moment) -> list[Line]:
                if line.authority != "shop.example" or line.code != "200":
                    return [line]
                new = {**NO_REQUEST, **NOWHERE, "flags": "NR"}
                at = f"{mesh.ago(seconds=20 - 2 * next(moment))[:-1]}.100Z"
                details = "filter_chain_not_found"
                return [line._replace(**new, details=details, cluster="-", time=at)]

            mesh.rewrite(gateway.log, cut)


@fault("A", "Secret/istio-system/shop-tls", "Gateway/bookinfo/shop")
def the_certificate_of_a_gateway_has_ended(mesh: Enriched) -> None:
    """The Secret of the TLS server holds a certificate that ended an hour ago."""
    ended = certificate(mesh.now.astimezone(UTC).replace(hour=1))
    crt = base64.b64encode(ended).decode()
    for one in mesh.objects("secrets"):
        if one["metadata"]["name"] == "shop-tls":
            one["data"]["tls.crt"] = crt
    for gateway in gateways(mesh):
        for entry in gateway.secrets:
            if entry["name"] == "kubernetes://shop-tls":
                entry["secret"]["tls_certificate"]["certificate_chain"] = {"inline_bytes": crt}
        if gateway.log is not None:
            mesh.rewrite(gateway.log, lambda x: [] if x.local.endswith(":8443") else [x])


@fault("CA", "Gateway/bookinfo/bookinfo-gateway", "Service/istio-system/istio-ingressgateway")
def a_gateway_port_that_no_service_has(mesh: Enriched) -> None:
    """The Gateway opens 8081, which no Service of the gateway offers; nobody gets through."""

    def other(one: Json) -> None:
        one["spec"]["servers"][0]["port"]["number"] = 8081

    change(mesh, "gateways", "bookinfo-gateway", other)
    begin = since(mesh)
    for gateway in gateways(mesh):
        for entry in list(gateway.routes):
            config = entry["route_config"]
            hosts = config.get("virtual_hosts", [])
            if config["name"] == "http.8080":
                moved = replaced(entry, "8080", "8081")
                moved["route_config"]["virtual_hosts"] = [
                    h for h in moved["route_config"]["virtual_hosts"] if "bookinfo" in h["name"]
                ]
                gateway.routes.append(moved)
                config["virtual_hosts"] = [h for h in hosts if "bookinfo" not in h["name"]]
        for entry in list(gateway.listeners):
            if entry["name"] == "0.0.0.0_8080":
                moved = replaced(entry, "8080", "8081")
                address = moved["active_state"]["listener"]["address"]["socket_address"]
                address["port_value"] = 8081
                moved["active_state"]["last_updated"] = begun(mesh)
                gateway.listeners.append(moved)
        if gateway.log is not None:
            mesh.rewrite(
                gateway.log,
                lambda x: (
                    [x._replace(**NO_ROUTE)]
                    if x.authority == "bookinfo.example.com" and x.time >= begin and x.code == "200"
                    else [x]
                ),
            )


@fault("C", "Deployment/istio-system/istio-ingressgateway")
def the_gateway_was_scaled_to_nothing(mesh: Enriched) -> None:
    """The Deployment of the gateway wants no pods."""
    for resource in ("deployments", "replicasets"):
        for one in mesh.objects(resource):
            if one["metadata"]["name"].startswith("istio-ingressgateway"):
                one["spec"]["replicas"] = 0
                one["status"] = {"observedGeneration": 9}
    pods = mesh.objects("pods")
    (pod,) = [one for one in pods if one["metadata"]["name"].startswith("istio-ingressgateway")]
    name = pod["metadata"]["name"]
    pods.remove(pod)
    mesh.forget(lambda question: getattr(question, "pod", "") != name)
    for path in ("/debug/syncz", "/debug/connections"):
        for page in mesh.pages(path):
            clients = page if isinstance(page, list) else page["clients"]
            clients[:] = [c for c in clients if name not in str(c)]
    for resource, parts in (("endpointslices", "endpoints"), ("endpoints", "subsets")):
        for one in mesh.objects(resource):
            if one["metadata"]["name"].startswith("istio-ingressgateway"):
                one[parts] = []


# --- The Gateway API ------------------------------------------------------------------------------

API = "gateway.networking.k8s.io"
ROUTE = "HTTPRoute/market/stall"


def _status(kind: str, reason: str, message: str) -> Callable[[Json], None]:
    def write(one: Json) -> None:
        for parent in one["status"]["parents"]:
            for condition in parent["conditions"]:
                if condition["type"] == kind:
                    condition.update(status="False", reason=reason, message=message)

    return write


def _unrouted(mesh: Enriched) -> None:
    for gateway in gateways(mesh):
        for entry in gateway.routes:
            if entry["route_config"]["name"] == "http.80":
                entry["last_updated"] = begun(mesh)
                entry["route_config"]["virtual_hosts"] = [
                    {"name": "blackhole:80", "domains": ["*"]}
                ]
    at_client(mesh, STALL, NO_ROUTE, pod="market-gw")


@fault("A", ROUTE, "Gateway/market/market-gw", base="market-healthy")
def a_route_for_a_host_that_the_listener_lacks(mesh: Enriched) -> None:
    """The HTTPRoute is for shop.example.com, and the listener for market.example.com."""
    spec(mesh, "httproutes", "stall", hostnames=["shop.example.com"])
    message = "no hostnames matched parent hostname"
    change(mesh, "httproutes", "stall", _status("Accepted", "NoMatchingListenerHostname", message))
    _unrouted(mesh)


@fault("A", ROUTE, base="market-healthy")
def a_backend_port_that_the_service_lacks(mesh: Enriched) -> None:
    """The HTTPRoute sends to port 8080 of a Service that has 8000."""

    def other(one: Json) -> None:
        one["spec"]["rules"][0]["backendRefs"][0]["port"] = 8080

    change(mesh, "httproutes", "stall", other)
    message = "port 8080 not found in backend stall.market.svc.cluster.local"
    change(mesh, "httproutes", "stall", _status("ResolvedRefs", "BackendNotFound", message))
    for virtual in routes(mesh, "market.example.com", gateway=True):
        for route in virtual["routes"]:
            route.pop("route")
            route["direct_response"] = {"status": 500}
    fields = {**NOWHERE, "code": "500", "details": "direct_response", "cluster": "-"}
    at_client(mesh, STALL, fields, pod="market-gw")


@fault("A", ROUTE, base="market-healthy")
def a_path_that_no_rule_of_the_route_has(mesh: Enriched) -> None:
    """The HTTPRoute matches /fruits, and buyers ask for /fruit."""

    def misspell(one: Json) -> None:
        one["spec"]["rules"][0]["matches"][0]["path"]["value"] = "/fruits"

    change(mesh, "httproutes", "stall", misspell)
    for virtual in routes(mesh, "market.example.com", gateway=True):
        for route in virtual["routes"]:
            route["match"]["path_separated_prefix"] = "/fruits"
    at_client(mesh, STALL, NO_ROUTE, pod="market-gw")


@fault("A", ROUTE, "Gateway/market/market-gw", base="market-healthy")
def a_route_moved_to_a_namespace_that_is_not_let_in(mesh: Enriched) -> None:
    """The Gateway takes routes with a label on their namespace, which the route's lacks."""
    chosen = {"from": "Selector", "selector": {"matchLabels": {"exposed": "true"}}}

    def other(one: Json) -> None:
        one["spec"]["listeners"][0]["allowedRoutes"] = {"namespaces": chosen}

    change(mesh, "gateways", "market-gw", other, API)
    message = "hostnames matched parent hostname, but namespace market is not allowed by the parent"
    change(mesh, "httproutes", "stall", _status("Accepted", "NotAllowedByListeners", message))
    _unrouted(mesh)


@fault("A", "AuthorizationPolicy/market/stall-callers", base="market-healthy")
def the_gateway_of_the_market_is_not_admitted(mesh: Enriched) -> None:
    """The policy names a service account that the Gateway's pods do not have."""
    admitted = ["cluster.local/ns/market/sa/market-gw"]
    rules = [{"from": [{"source": {"principals": admitted}}]}]
    spec(mesh, "authorizationpolicies", "stall-callers", rules=rules)
    deliver(mesh, "stall")
    at_server(mesh, "stall", DENIED)


@fault("C", "Deployment/market/stall", "Pod/market/stall", base="market-healthy")
def the_application_behind_the_gateway_hangs(mesh: Enriched) -> None:
    """The kernel of the node drops what comes to the application's pod."""
    at_client(mesh, STALL, TIMED_OUT, pod="market-gw")
