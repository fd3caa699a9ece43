"""Checks of gateways, routes, external hosts and load balancing, on altered recordings.

What is altered is named in each test. Beside each fault stands what looks like it and is none.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from meshnb.diagnosis import Diagnosis, diagnose
from tests.alteration import Altered, metadata
from tests.checks.test_altered import (
    BLOCKED,
    CHANGED,
    EARLIER,
    NO_REQUEST,
    NOWHERE,
    OVERFLOW,
    REFUSED,
    SINCE,
    TIMED_OUT,
    assert_blamed,
    assert_explains,
    assert_harmless,
    certificate,
    problems,
)

Object = dict[str, Any]

GATEWAY = "istio-ingressgateway"
SHOP = "bookinfo.example.com"
FULL = "{}.bookinfo.svc.cluster.local"
UNROUTED = {
    **NOWHERE,
    "code": "404",
    "flags": "NR",
    "details": "route_not_found",
    "cluster": "-",
    "route": "-",
}
NO_CLUSTER = {**UNROUTED, "code": "503", "flags": "NC", "details": "cluster_not_found"}
NO_ENDPOINT = {"code": "503", "flags": "UH", "details": "no_healthy_upstream", **NOWHERE}
CUT_OFF = {
    **NO_REQUEST,
    **NOWHERE,
    "protocol": "-",
    "code": "0",
    "flags": "NR",
    "details": "filter_chain_not_found",
    "cluster": "-",
    "local": "10.244.0.3:8443",
}
GARBLED_AT_GATEWAY = {
    **NO_REQUEST,
    **NOWHERE,
    "code": "400",
    "flags": "DPE",
    "details": "http1.codec_error",
    "cluster": "-",
}
RATINGS_HOST = FULL.format("ratings")
TO = {name: {"destination": {"host": name}} for name in ("ratings", "reviews", "details")}


@pytest.fixture
def healthy(tmp_path: Path) -> Altered:
    """Return the recording of a healthy mesh, to be altered."""
    return Altered("healthy", tmp_path)


@pytest.fixture
def market(tmp_path: Path) -> Altered:
    """Return the recording of a healthy mesh with a gateway of the Gateway API, to be altered."""
    return Altered("market-healthy", tmp_path)


def change(
    altered: Altered, resource: str, name: str, edit: Callable[[Object], None], at: str = CHANGED
) -> Altered:
    """Change an object, and note when it was changed."""

    def edit_and_note(item: Object) -> None:
        edit(item)
        item["metadata"]["managedFields"] = metadata("", "", at)["managedFields"]

    return altered.each(resource, name, edit_and_note)


def gateway(altered: Altered, **spec: Any) -> Altered:
    """Change the spec of the Gateway."""
    return change(altered, "gateways", "bookinfo-gateway", lambda one: one["spec"].update(spec))


def routes(altered: Altered, **spec: Any) -> Altered:
    """Change the spec of the VirtualService at the gateway."""
    return change(altered, "virtualservices", "bookinfo", lambda one: one["spec"].update(spec))


def unrouted(altered: Altered, authority: str = SHOP, **fields: str) -> Altered:
    """Let the gateway have no route for a host, from the change on."""
    return altered.at_client(authority, SINCE, pod=GATEWAY, **{**UNROUTED, **fields})


def served_no_more(altered: Altered, name: str, **fields: str) -> Altered:
    """Let callers' requests to a Service of the mesh fail in their own proxies."""
    return altered.at_client(f"{name}:9080", SINCE, **fields)


def add(altered: Altered, resource: str, name: str, spec: Object, **more: str) -> Altered:
    """Add an object, right before the faults unless it says otherwise."""
    namespace, at = more.get("namespace", "bookinfo"), more.get("at", CHANGED)
    return altered.add(resource, name, namespace, at, spec=spec)


def assert_first(altered: Altered, code: str, failure_class: str, subject: str) -> Diagnosis:
    """Assert that one object is named first, whatever stands below."""
    diagnosis = diagnose(altered.facts())
    found = problems(diagnosis)
    assert found[:1] == [(code, failure_class, subject)], (
        found,
        [symptom.message for symptom in diagnosis.symptoms],
    )
    return diagnosis


def codes_of(altered: Altered) -> list[str]:
    """Return the code of each cause, those that are merely worth knowing included."""
    return [cause.check.code for cause in diagnose(altered.facts()).causes]


# --- Gateways: who listens ----------------------------------------------------------------------


def test_a_selector_that_chooses_pods_that_are_no_gateways_opens_no_port(healthy: Altered) -> None:
    """Altered: the Gateway selects the pods of productpage, which have sidecars."""
    gateway(healthy, selector={"app": "productpage"})
    unrouted(healthy)
    diagnosis = assert_first(healthy, "MNB301", "A", "Gateway bookinfo/bookinfo-gateway")
    assert "only pods that are no gateways" in diagnosis.problems[0].finding.message


def test_refused_connections_to_gateway_pods_are_the_selectors_fault(tmp_path: Path) -> None:
    """Altered: a pod with a sidecar calls the gateway that has no port open."""
    altered = Altered("gateway-selector-wrong", tmp_path)
    host = "istio-ingressgateway.istio-system.svc.cluster.local"
    fields = {
        **REFUSED,
        "authority": host,
        "endpoint": "10.244.0.3:8080",
        "cluster": f"outbound|80||{host}",
        "local": "10.96.208.235:80",
    }
    altered.request("client", "/ratings/0", since="2026-11-23T02:53:30", **fields)
    diagnosis = assert_blamed(altered, "MNB301", "A", "Gateway bookinfo/bookinfo-gateway")
    assert_explains(diagnosis, 6)


def test_a_gateway_whose_deployment_is_stopped_is_the_deployments_matter(healthy: Altered) -> None:
    """Altered: the Deployment of the gateway wants no pods, and there are none."""
    healthy.remove("pods", GATEWAY)
    healthy.each("deployments", GATEWAY, lambda one: one["spec"].update(replicas=0))
    for kind in ("http", "probe", "log"):
        healthy.forget(kind=kind, pod="istio-ingressgateway-548b98684d-rzdjv")
    diagnosis = assert_first(healthy, "MNB301", "C", f"Deployment istio-system/{GATEWAY}")
    assert "--replicas=1" in diagnosis.problems[0].finding.remedy


def test_a_service_without_the_gateways_port_is_the_services_matter(healthy: Altered) -> None:
    """Altered: port 80 was taken out of the Service in front of the gateway."""

    def without(service: Object) -> None:
        service["spec"]["ports"] = [one for one in service["spec"]["ports"] if one["port"] != 80]

    gateway(healthy, servers=[{"port": HTTP_80, "hosts": [SHOP]}])
    change(healthy, "services", GATEWAY, without, at="2026-11-23T02:48:47Z")
    assert_blamed(healthy, "MNB305", "C", f"Service istio-system/{GATEWAY}")


HTTP_80 = {"number": 80, "name": "http", "protocol": "HTTP"}
TLS_443 = {"number": 443, "name": "https", "protocol": "HTTPS"}


def test_a_load_balancer_that_the_cloud_refuses_is_found_in_events(healthy: Altered) -> None:
    """Altered: the service controller says that it could not make the load balancer."""
    assert "MNB306" not in codes_of(healthy)
    healthy.add(
        "events",
        "istio-ingressgateway.17",
        "istio-system",
        CHANGED,
        type="Warning",
        reason="SyncLoadBalancerFailed",
        message="Error syncing load balancer: quota exceeded",
        involvedObject={"kind": "Service", "namespace": "istio-system", "name": GATEWAY},
        firstTimestamp=CHANGED,
        lastTimestamp=CHANGED,
        count=3,
    )
    diagnosis = assert_blamed(healthy, "MNB306", "C", f"Service istio-system/{GATEWAY}")
    assert "quota exceeded" in diagnosis.problems[0].finding.message


def _stopped_listening(altered: Altered, port: int) -> None:
    """Let the gateway have no listener on a port."""

    def without(dump: Any) -> None:
        for section in dump["configs"]:
            if "dynamic_listeners" in section:
                section["dynamic_listeners"] = [
                    one for one in section["dynamic_listeners"] if str(port) not in one["name"]
                ]

    altered.pages(
        without, port=15000, path="/config_dump?include_eds", pod=f"{GATEWAY}-548b98684d-rzdjv"
    )


@pytest.mark.parametrize(
    ("target", "code"), [(587, "MNB327"), (8587, None)], ids=["privileged", "translated"]
)
def test_a_port_below_1024_is_not_opened_by_pods_without_privileges(
    healthy: Altered, target: int, code: str | None
) -> None:
    """Altered: the Gateway has port 587 for TCP, and the Service leads to 587 or to 8587."""
    port = {"name": "tcp-mail", "port": 587, "targetPort": target, "protocol": "TCP"}
    healthy.each("services", GATEWAY, lambda one: one["spec"]["ports"].append(port))
    server = {"port": {"number": 587, "name": "tcp", "protocol": "TCP"}, "hosts": ["*"]}
    change(
        healthy,
        "gateways",
        "bookinfo-gateway",
        lambda one: one["spec"]["servers"].append(server),
    )
    spec = {
        "hosts": ["*"],
        "gateways": ["bookinfo-gateway"],
        "tcp": [{"match": [{"port": 587}], "route": [TO["ratings"]]}],
    }
    add(healthy, "virtualservices", "mail", spec)
    if code is None:
        assert_harmless(healthy)
    else:
        assert_blamed(healthy, code, "A", "Gateway bookinfo/bookinfo-gateway")


# --- Gateways: certificates ---------------------------------------------------------------------


def tls_gateway(altered: Altered, *, keys: Object | None, **tls: str) -> Altered:
    """Let the Gateway have a server with TLS too, with a Secret beside its pods, or without."""
    server = {
        "port": TLS_443,
        "hosts": [SHOP],
        "tls": {"mode": "SIMPLE", "credentialName": "shop-cert", **tls},
    }
    change(
        altered, "gateways", "bookinfo-gateway", lambda one: one["spec"]["servers"].append(server)
    )
    if keys is not None:
        altered.add("secrets", "shop-cert", "istio-system", EARLIER, type="Opaque", data=keys)
    return altered


def _encoded(ends: datetime) -> str:
    return base64.b64encode(certificate(ends)).decode()


VALID, ENDED = datetime(2027, 1, 1, tzinfo=UTC), datetime(2026, 11, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("keys", "mode", "says"),
    [
        (None, "SIMPLE", "which does not exist"),
        ({"certificate": "", "private": ""}, "SIMPLE", "has the keys certificate and private"),
        ({"tls.crt": _encoded(ENDED), "tls.key": "eA=="}, "SIMPLE", "expired"),
        ({"tls.crt": "eA==", "tls.key": "eA=="}, "SIMPLE", "cannot be read"),
        ({"tls.crt": _encoded(VALID), "tls.key": "eA=="}, "MUTUAL", "no ca.crt"),
    ],
)
def test_a_certificate_that_the_gateway_cannot_use_is_found(
    healthy: Altered, keys: Object | None, mode: str, says: str
) -> None:
    """Altered: a TLS server's Secret is missing, has other keys, is over, broken or has no CA."""
    tls_gateway(healthy, keys=keys, mode=mode)
    subject = "Secret istio-system/shop-cert" if keys else "Gateway bookinfo/bookinfo-gateway"
    diagnosis = assert_blamed(healthy, "MNB304", "A", subject)
    assert says in diagnosis.problems[0].finding.message


@pytest.mark.parametrize("mode", ["SIMPLE", "MUTUAL"])
def test_a_certificate_with_all_that_it_needs_is_no_problem(healthy: Altered, mode: str) -> None:
    """Altered: a TLS server with its Secret; the CA of clients is in a second Secret, as may be."""
    tls_gateway(healthy, keys={"cert": _encoded(VALID), "key": "eA=="}, mode=mode)
    authority = {"cacert": _encoded(VALID)}
    healthy.add(
        "secrets", "shop-cert-cacert", "istio-system", EARLIER, type="Opaque", data=authority
    )
    assert_harmless(healthy)


# --- Gateways: hosts and routes -----------------------------------------------------------------


def test_a_virtual_service_without_gateways_is_for_sidecars_only(healthy: Altered) -> None:
    """Altered: the field gateways was taken out of the VirtualService."""
    change(healthy, "virtualservices", "bookinfo", lambda one: one["spec"].pop("gateways"), CHANGED)
    unrouted(healthy)
    diagnosis = assert_blamed(healthy, "MNB320", "A", "VirtualService bookinfo/bookinfo")
    assert_explains(diagnosis, 10)


def test_a_gateway_of_another_namespace_must_be_named_with_it(healthy: Altered) -> None:
    """Altered: the Gateway stands in another namespace than the VirtualService takes it for."""
    change(
        healthy,
        "gateways",
        "bookinfo-gateway",
        lambda one: one["metadata"].update(namespace="istio-system"),
    )
    unrouted(healthy)
    diagnosis = assert_blamed(healthy, "MNB302", "A", "VirtualService bookinfo/bookinfo")
    assert "istio-system/bookinfo-gateway" in diagnosis.problems[0].finding.message


@pytest.mark.parametrize(
    ("hosts", "subject"),
    [
        (["other/*"], "Gateway bookinfo/bookinfo-gateway"),
        (["books.example.org"], "Gateway bookinfo/bookinfo-gateway"),
    ],
)
def test_a_gateway_that_was_changed_to_admit_other_hosts_is_at_fault(
    healthy: Altered, hosts: list[str], subject: str
) -> None:
    """Altered: the Gateway admits hosts of another namespace only, or another host."""
    gateway(healthy, servers=[{"port": HTTP_80, "hosts": hosts}])
    unrouted(healthy)
    assert_blamed(healthy, "MNB303", "A", subject)


def test_one_of_several_hosts_that_the_gateway_does_not_admit_is_found(healthy: Altered) -> None:
    """Altered: the VirtualService serves two hosts, and requests for the second get 404."""
    routes(healthy, hosts=[SHOP, "books.example.com"])
    healthy.request(
        GATEWAY, "/productpage", 9, since=SINCE, **UNROUTED, authority="books.example.com"
    )
    diagnosis = assert_blamed(healthy, "MNB303", "A", "VirtualService bookinfo/bookinfo")
    assert "books.example.com is left out" in diagnosis.problems[0].finding.message


def test_a_host_that_is_written_with_a_slip_is_found(healthy: Altered) -> None:
    """Altered: the Gateway admits every host, and the VirtualService misspells its own."""
    gateway(healthy, servers=[{"port": HTTP_80, "hosts": ["*"]}])
    routes(healthy, hosts=["bokinfo.example.com"])
    unrouted(healthy)
    diagnosis = assert_blamed(healthy, "MNB321", "A", "VirtualService bookinfo/bookinfo")
    assert_explains(diagnosis, 10)


def test_a_host_whose_virtual_service_is_gone_is_blamed_on_who_admits_it(healthy: Altered) -> None:
    """Altered: the VirtualService at the gateway was deleted."""
    healthy.objects(
        "virtualservices",
        lambda items: items.__setitem__(
            slice(None), [one for one in items if one["metadata"]["name"] != "bookinfo"]
        ),
    )
    unrouted(healthy)
    assert_first(healthy, "MNB321", "A", "Gateway bookinfo/bookinfo-gateway")


@pytest.mark.parametrize(
    ("path", "times"), [("/wp-login.php", 12)], ids=["a path that nobody serves"]
)
def test_a_path_that_was_never_served_is_no_problem(
    healthy: Altered, path: str, times: int
) -> None:
    """Altered: somebody outside asks for a path of the right host that has no route."""
    healthy.request(GATEWAY, "/productpage", times, **{**UNROUTED, "path": path})
    assert_harmless(healthy)


@pytest.mark.parametrize("since", [SINCE, ""], ids=["of late", "from the first line"])
def test_a_path_that_no_route_at_the_gateway_matches_is_found(healthy: Altered, since: str) -> None:
    """Altered: the VirtualService has another path, since a moment or before the log begins."""
    routes(healthy, http=[{"match": [{"uri": {"exact": "/shop"}}], "route": [TO["details"]]}])
    healthy.at_client(SHOP, since, pod=GATEWAY, **UNROUTED)
    assert_blamed(healthy, "MNB233", "A", "VirtualService bookinfo/bookinfo")


@pytest.mark.parametrize(
    ("sni", "code"), [(SHOP, "MNB322"), ("203.0.113.9.nip.io", None)], ids=["known", "stranger"]
)
def test_a_server_name_that_no_server_has_is_cut_off(
    healthy: Altered, sni: str, code: str | None
) -> None:
    """Altered: the TLS server is for another host than clients ask for, whom others served."""
    tls_gateway(healthy, keys={"tls.crt": _encoded(VALID), "tls.key": "eA=="})
    server = {
        "port": TLS_443,
        "hosts": ["books.example.com"],
        "tls": {"mode": "SIMPLE", "credentialName": "shop-cert"},
    }
    change(
        healthy,
        "gateways",
        "bookinfo-gateway",
        lambda one: one["spec"]["servers"].__setitem__(1, server),
    )
    healthy.request(GATEWAY, "/productpage", 9, since=SINCE, **{**CUT_OFF, "sni": sni})
    if code is None:
        assert_harmless(healthy, "MNB322")
    else:
        assert_blamed(healthy, code, "A", "Gateway bookinfo/bookinfo-gateway")


def test_a_misspelt_host_of_a_tls_server_is_found(healthy: Altered) -> None:
    """Altered: the TLS server's host has a slip; its VirtualService is for another host."""
    tls_gateway(healthy, keys={"tls.crt": _encoded(VALID), "tls.key": "eA=="})
    change(
        healthy,
        "gateways",
        "bookinfo-gateway",
        lambda one: one["spec"]["servers"][1].update(hosts=["bookinof.example.com"]),
    )
    healthy.request(GATEWAY, "/productpage", 9, since=SINCE, **{**CUT_OFF, "sni": SHOP})
    assert_blamed(healthy, "MNB322", "A", "Gateway bookinfo/bookinfo-gateway")


@pytest.mark.parametrize("kind", ["plain HTTP to the TLS port", "TLS to the HTTP port"])
def test_the_wrong_scheme_at_a_gateway_is_the_clients_matter(healthy: Altered, kind: str) -> None:
    """Altered: a pod without a sidecar speaks plain HTTP to 443, or TLS to 80."""
    tls_gateway(healthy, keys={"tls.crt": _encoded(VALID), "tls.key": "eA=="})
    fields = CUT_OFF if kind.startswith("plain") else GARBLED_AT_GATEWAY
    healthy.request(
        GATEWAY, "/productpage", 9, since=SINCE, **{**fields, "remote": "10.244.0.11:50000"}
    )
    assert_first(healthy, "MNB323", "C", "Pod legacy/legacy-client")


def test_stray_connections_without_a_name_at_a_port_in_use_are_a_scan(healthy: Altered) -> None:
    """Altered: strangers open connections to the TLS port, while others get answers there."""
    tls_gateway(healthy, keys={"tls.crt": _encoded(VALID), "tls.key": "eA=="})
    healthy.request(GATEWAY, "/productpage", 9, since=SINCE, local="10.244.0.3:8443")
    healthy.request(GATEWAY, "/productpage", 9, since=SINCE, **CUT_OFF)
    assert_harmless(healthy, "MNB323")


def _two_tls_gateways(altered: Altered, second_host: str) -> Altered:
    """Let there be a second Gateway with TLS and the same certificate, newer than the first."""
    tls_gateway(altered, keys={"tls.crt": _encoded(VALID), "tls.key": "eA=="})
    server = {
        "port": TLS_443,
        "hosts": [second_host],
        "tls": {"mode": "SIMPLE", "credentialName": "shop-cert"},
    }
    spec = {"selector": {"istio": "ingressgateway"}, "servers": [server]}
    add(altered, "gateways", "second", spec)
    route = {"hosts": [second_host], "gateways": ["second"], "http": [{"route": [TO["details"]]}]}
    return add(altered, "virtualservices", "second", route)


def test_a_connection_that_is_reused_for_another_gateways_host_gets_404(healthy: Altered) -> None:
    """Altered: two Gateways with one certificate; requests for the second come over the first."""
    _two_tls_gateways(healthy, "books.example.com")
    fields = {"authority": "books.example.com", "sni": SHOP, "local": "10.244.0.3:8443"}
    healthy.request(GATEWAY, "/productpage", 9, since=SINCE, **{**UNROUTED, **fields})
    assert_blamed(healthy, "MNB324", "A", "Gateway bookinfo/second")


def test_two_gateways_with_different_hosts_are_no_problem(healthy: Altered) -> None:
    """Altered: two Gateways on one port with one certificate, each for a host of its own."""
    assert_harmless(_two_tls_gateways(healthy, "books.example.com"))


def test_of_two_gateways_for_one_tls_host_the_newer_is_left_out(healthy: Altered) -> None:
    """Altered: a second Gateway claims the same host on the same TLS port."""
    _two_tls_gateways(healthy, SHOP)
    fields = {"sni": SHOP, "local": "10.244.0.3:8443"}
    healthy.request(GATEWAY, "/productpage", 9, since=SINCE, **{**UNROUTED, **fields})
    first = diagnose(healthy.facts()).problems
    assert [(one.check.code, str(one.subject)) for one in first if one.check.code == "MNB325"] == [
        ("MNB325", "Gateway bookinfo/second")
    ]
    assert first[0].check.code == "MNB325"


def test_http_and_tls_on_one_port_conflict(healthy: Altered) -> None:
    """Altered: a newer Gateway wants TLS on the port that the other has for HTTP."""
    server = {
        "port": {"number": 8080, "name": "https", "protocol": "HTTPS"},
        "hosts": ["books.example.com"],
        "tls": {"mode": "SIMPLE", "credentialName": "shop-cert"},
    }
    keys = {"tls.crt": _encoded(VALID), "tls.key": "eA=="}
    healthy.add("secrets", "shop-cert", "istio-system", EARLIER, type="Opaque", data=keys)
    spec = {"selector": {"istio": "ingressgateway"}, "servers": [server]}
    add(healthy, "gateways", "second", spec)
    assert_blamed(healthy, "MNB325", "A", "Gateway bookinfo/second")


def test_two_gateways_for_http_on_one_port_are_merged(healthy: Altered) -> None:
    """Altered: a second Gateway has the same host and port for HTTP, and no routes of its own."""
    spec = {
        "selector": {"istio": "ingressgateway"},
        "servers": [{"port": {"number": 8080, "name": "web", "protocol": "HTTP"}, "hosts": [SHOP]}],
    }
    add(healthy, "gateways", "second", spec)
    assert_harmless(healthy)


@pytest.mark.parametrize(
    ("port", "tls", "wanted"),
    [
        ({"number": 8443, "name": "tls", "protocol": "TLS"}, {"mode": "PASSTHROUGH"}, "tls"),
        ({"number": 8443, "name": "https", "protocol": "HTTPS"}, {"mode": "PASSTHROUGH"}, "tls"),
        ({"number": 8080, "name": "tcp", "protocol": "TCP"}, None, "tcp"),
    ],
)
def test_a_server_that_cannot_use_http_routes_is_not_opened(
    healthy: Altered, port: Object, tls: Object | None, wanted: str
) -> None:
    """Altered: the Gateway passes TLS or TCP through, and its VirtualService has http routes."""
    server = {"port": port, "hosts": [SHOP], **({"tls": tls} if tls else {})}
    gateway(healthy, servers=[server])
    diagnosis = assert_blamed(healthy, "MNB326", "A", "Gateway bookinfo/bookinfo-gateway")
    assert f"takes {wanted} routes" in diagnosis.problems[0].finding.message


def test_tls_routes_at_a_server_for_http_are_not_used(healthy: Altered) -> None:
    """Altered: the VirtualService at a plain server has tls routes in place of http routes."""

    def rewritten(service: Object) -> None:
        del service["spec"]["http"]
        match = [{"port": 8080, "sniHosts": [SHOP]}]
        service["spec"]["tls"] = [{"match": match, "route": [TO["details"]]}]

    change(healthy, "virtualservices", "bookinfo", rewritten)
    unrouted(healthy)
    assert_blamed(healthy, "MNB326", "A", "VirtualService bookinfo/bookinfo")


def test_a_gateway_that_passes_tls_through_with_tls_routes_is_no_problem(healthy: Altered) -> None:
    """Altered: a second server passes TLS through, and a VirtualService has tls routes for it."""
    server = {
        "port": {"number": 8443, "name": "tls", "protocol": "TLS"},
        "hosts": ["vault.example.com"],
        "tls": {"mode": "PASSTHROUGH"},
    }
    change(
        healthy, "gateways", "bookinfo-gateway", lambda one: one["spec"]["servers"].append(server)
    )
    match = [{"port": 8443, "sniHosts": ["vault.example.com"]}]
    spec = {
        "hosts": ["vault.example.com"],
        "gateways": ["bookinfo-gateway"],
        "tls": [{"match": match, "route": [TO["details"]]}],
    }
    add(healthy, "virtualservices", "vault", spec)
    assert_harmless(healthy)


def _ingress(altered: Altered, **spec: Any) -> Altered:
    backend = {"service": {"name": "details", "port": {"number": 9080}}}
    rule = {"host": "books.example.com", "http": {"paths": [{"path": "/", "backend": backend}]}}
    return add(altered, "ingresses", "books", {"rules": [rule], **spec})


@pytest.mark.parametrize("spec", [{}, {"ingressClassName": "itsio"}])
def test_an_ingress_of_no_class_of_istio_is_not_served(healthy: Altered, spec: Object) -> None:
    """Altered: an Ingress names no class, or another, and its host is asked for at the gateway."""
    _ingress(healthy, **spec)
    fields = {**UNROUTED, "authority": "books.example.com"}
    healthy.request(GATEWAY, "/productpage", 9, since=SINCE, **fields)
    assert_blamed(healthy, "MNB328", "A", "Ingress bookinfo/books")


def test_an_ingress_of_another_controller_is_no_problem(healthy: Altered) -> None:
    """Altered: an Ingress is of a class that another controller serves."""
    _ingress(healthy, ingressClassName="nginx")
    healthy.add("ingressclasses", "nginx", "", EARLIER, spec={"controller": "k8s.io/ingress-nginx"})
    assert_harmless(healthy)


def test_a_virtual_service_that_the_gateways_pods_do_not_see_is_not_used(healthy: Altered) -> None:
    """Altered: the VirtualService is exported to its own namespace only."""
    routes(healthy, exportTo=["."])
    unrouted(healthy)
    assert_blamed(healthy, "MNB329", "A", "VirtualService bookinfo/bookinfo")


# --- Routes: hosts, ports, order ----------------------------------------------------------------


def _route_to(altered: Altered, name: str, *targets: Object, **more: Any) -> Altered:
    return add(
        altered,
        "virtualservices",
        name,
        {"hosts": [name], "http": [{"route": list(targets)}], **more},
    )


def test_a_port_that_the_destination_does_not_have_leads_nowhere(healthy: Altered) -> None:
    """Altered: a route of ratings names port 9090."""
    _route_to(healthy, "ratings", {"destination": {"host": "ratings", "port": {"number": 9090}}})
    served_no_more(healthy, "ratings", **NO_CLUSTER)
    diagnosis = assert_blamed(healthy, "MNB202", "A", "VirtualService bookinfo/ratings")
    assert_explains(diagnosis, 20)


def test_a_destination_without_a_port_is_the_port_of_the_gateway(healthy: Altered) -> None:
    """Altered: productpage has a second port, and the gateway's route names none."""
    port = {"name": "http-admin", "port": 9999, "targetPort": 9999, "protocol": "TCP"}
    healthy.each("services", "productpage", lambda one: one["spec"]["ports"].append(port))
    routes(healthy, http=[{"route": [{"destination": {"host": "productpage"}}]}])
    unrouted(healthy, **NO_CLUSTER)
    assert_blamed(healthy, "MNB202", "A", "VirtualService bookinfo/bookinfo")


def test_a_port_of_an_external_host_is_looked_up_in_its_service_entry(healthy: Altered) -> None:
    """Altered: a route leads to a port that the ServiceEntry has."""
    ports = [{"number": 8443, "name": "https", "protocol": "HTTPS"}]
    entry = {"hosts": ["api.example.org"], "ports": ports, "resolution": "DNS"}
    add(healthy, "serviceentries", "partner", entry, at=EARLIER)
    target = {"destination": {"host": "api.example.org", "port": {"number": 8443}}}
    _route_to(healthy, "details", TO["details"] | {"weight": 100}, target | {"weight": 0})
    assert_harmless(healthy)


@pytest.mark.parametrize(
    ("destination", "code"),
    [({"host": "ratings", "subset": "v7"}, "MNB210"), ({"host": "ratngs"}, "MNB201")],
)
def test_a_route_of_tcp_that_leads_nowhere_is_found(
    healthy: Altered, destination: Object, code: str
) -> None:
    """Altered: a route of TCP, below another one, leads to a subset or host that is not there."""
    first = {"match": [{"port": 81}], "route": [TO["ratings"]]}
    spec = {"hosts": ["ratings"], "tcp": [first, {"route": [{"destination": destination}]}]}
    add(healthy, "virtualservices", "ratings", spec)
    fields = {
        **NO_REQUEST,
        **NOWHERE,
        "protocol": "-",
        "code": "0",
        "flags": "NC",
        "details": "-",
        "cluster": "-",
    }
    healthy.request("client", "/ratings/0", 9, since=SINCE, **fields)
    diagnosis = assert_blamed(healthy, code, "A", "VirtualService bookinfo/ratings")
    assert_explains(diagnosis, 9)


def test_a_route_of_tls_that_leads_nowhere_from_a_gateway_is_found(healthy: Altered) -> None:
    """Altered: a gateway passes TLS through to a host that is not there."""
    server = {
        "port": {"number": 443, "name": "tls", "protocol": "TLS"},
        "hosts": ["*.example.org"],
        "tls": {"mode": "PASSTHROUGH"},
    }
    change(
        healthy, "gateways", "bookinfo-gateway", lambda one: one["spec"]["servers"].append(server)
    )
    match = [{"port": 443, "sniHosts": ["vault.example.org"]}]
    spec = {
        "hosts": ["vault.example.org"],
        "gateways": ["bookinfo-gateway"],
        "tls": [{"match": match, "route": [{"destination": {"host": "vualt"}}]}],
    }
    add(healthy, "virtualservices", "vault", spec)
    fields = {**CUT_OFF, "flags": "NC", "details": "-", "sni": "vault.example.org"}
    healthy.request(GATEWAY, "/productpage", 9, since=SINCE, **fields)
    diagnosis = assert_blamed(healthy, "MNB201", "A", "VirtualService bookinfo/vault")
    assert_explains(diagnosis, 9)


@pytest.mark.parametrize(
    ("hosts", "namespace"),
    [(["ratings"], "legacy"), (["ratings.bookinfo"], "bookinfo"), (["raitngs"], "bookinfo")],
)
def test_routes_for_a_name_that_no_service_has_are_found(
    healthy: Altered, hosts: list[str], namespace: str
) -> None:
    """Altered: a VirtualService has a short host in another namespace, half a name, or a slip."""
    full = RATINGS_HOST
    spec = {"hosts": hosts, "http": [{"route": [{"destination": {"host": full}}]}]}
    add(healthy, "virtualservices", "ratings", spec, namespace=namespace)
    diagnosis = assert_blamed(healthy, "MNB203", "A", f"VirtualService {namespace}/ratings")
    assert full in diagnosis.problems[0].finding.message


def test_a_made_up_host_inside_the_mesh_is_no_problem(healthy: Altered) -> None:
    """Altered: a VirtualService gives a host that no Service has a meaning inside the mesh."""
    _route_to(healthy, "details", TO["details"], hosts=["books.internal"])
    assert_harmless(healthy)


@pytest.mark.parametrize(
    ("protocol", "routes_"),
    [
        ("http", [{"match": [{"uri": {"regex": ".*"}}]}, {"match": [{"uri": {"exact": "/a"}}]}]),
        (
            "http",
            [{"match": [{"uri": {"prefix": "/"}}]}, {"match": [{"method": {"exact": "GET"}}]}],
        ),
        (
            "tls",
            [
                {"match": [{"sniHosts": ["*.example.com"]}]},
                {"match": [{"sniHosts": ["a.example.com"]}]},
            ],
        ),
        ("tcp", [{}, {"match": [{"port": 9080}]}]),
    ],
)
def test_a_route_below_one_that_takes_everything_is_never_taken(
    healthy: Altered, protocol: str, routes_: list[Object]
) -> None:
    """Altered: a VirtualService with two routes, of which the first matches all of the second."""
    hosts = ["*.example.com"] if protocol == "tls" else ["details"]
    written = [{**one, "route": [TO["details"]]} for one in routes_]
    add(healthy, "virtualservices", "details", {"hosts": hosts, protocol: written})
    assert_blamed(healthy, "MNB220", "A", "VirtualService bookinfo/details")


@pytest.mark.parametrize(
    "routes_",
    [
        [
            {"match": [{"uri": {"prefix": "/a"}, "method": {"exact": "GET"}}]},
            {"match": [{"uri": {"prefix": "/a"}}]},
        ],
        [{"match": [{"headers": {"x": {"exact": "1"}}}]}, {}],
        [{"match": [{"uri": {"exact": "/"}}]}, {"match": [{"uri": {"prefix": "/"}}]}],
    ],
)
def test_a_specific_route_above_a_general_one_is_no_problem(
    healthy: Altered, routes_: list[Object]
) -> None:
    """Altered: a VirtualService with two routes in the right order."""
    written = [{**one, "route": [TO["details"]]} for one in routes_]
    add(healthy, "virtualservices", "details", {"hosts": ["details"], "http": written})
    assert_harmless(healthy)


def test_a_gateway_that_names_no_subset_reaches_every_version(healthy: Altered) -> None:
    """Altered: the gateway leads to reviews, whose second version is for nobody in the mesh."""
    pinned = [{"route": [{"destination": {"host": "reviews", "subset": "v1"}}]}]
    change(
        healthy, "virtualservices", "reviews", lambda one: one["spec"].update(http=pinned), EARLIER
    )
    routes(healthy, http=[{"route": [TO["reviews"]]}])
    to_v2 = {"cluster": f"outbound|9080||{FULL.format('reviews')}", "endpoint": "10.244.0.8:9080"}
    address = _address(healthy, "reviews-v2")
    healthy.request(
        GATEWAY, "/productpage", 9, since=SINCE, **{**to_v2, "endpoint": f"{address}:9080"}
    )
    assert_first(healthy, "MNB222", "A", "VirtualService bookinfo/bookinfo")


def test_a_gateway_that_names_no_subset_where_all_are_in_use_is_no_problem(
    healthy: Altered,
) -> None:
    """Altered: the gateway leads to reviews, both versions of which are in use inside the mesh."""
    routes(healthy, http=[{"route": [TO["reviews"]]}])
    assert_harmless(healthy)


def _address(altered: Altered, pod: str) -> str:
    found: list[str] = []
    altered.each("pods", pod, lambda one: found.append(one["status"]["podIP"]))
    return found[0]


DELEGATE = {"route": [TO["details"]]}


@pytest.mark.parametrize(
    ("delegate", "subject"),
    [
        (None, "VirtualService bookinfo/details"),
        ({"hosts": ["details"], "http": [DELEGATE]}, "VirtualService bookinfo/shelf"),
        (
            {"http": [{"delegate": {"name": "details"}}]},
            "VirtualService bookinfo/shelf",
        ),
        (
            {"http": [{"match": [{"uri": {"prefix": "/other"}}], **DELEGATE}]},
            "VirtualService bookinfo/shelf",
        ),
    ],
    ids=["missing", "hosts of its own", "nested", "other paths"],
)
def test_a_delegate_that_istiod_leaves_out_has_no_routes(
    healthy: Altered, delegate: Object | None, subject: str
) -> None:
    """Altered: details hands requests on to a VirtualService that is missing or in wrong form."""
    root = {"match": [{"uri": {"prefix": "/details"}}], "delegate": {"name": "shelf"}}
    add(healthy, "virtualservices", "details", {"hosts": ["details"], "http": [root]})
    if delegate is not None:
        add(healthy, "virtualservices", "shelf", delegate)
    served_no_more(healthy, "details", **UNROUTED)
    assert_first(healthy, "MNB223", "A", subject)


def test_a_delegate_in_the_right_form_is_no_problem(healthy: Altered) -> None:
    """Altered: details hands requests on to another VirtualService, as it should."""
    root = {"match": [{"uri": {"prefix": "/details"}}], "delegate": {"name": "shelf"}}
    add(healthy, "virtualservices", "details", {"hosts": ["details"], "http": [root]})
    inner = {"match": [{"uri": {"prefix": "/details/0"}}], **DELEGATE}
    add(healthy, "virtualservices", "shelf", {"http": [inner, DELEGATE]})
    assert_harmless(healthy)


def test_what_is_wrong_in_a_delegate_fails_for_the_hosts_of_its_root(healthy: Altered) -> None:
    """Altered: details hands requests on, and the delegate injects faults."""
    add(
        healthy,
        "virtualservices",
        "details",
        {"hosts": ["details"], "http": [{"delegate": {"name": "shelf"}}]},
    )
    fault = {"abort": {"httpStatus": 500, "percentage": {"value": 100}}}
    add(healthy, "virtualservices", "shelf", {"http": [{"fault": fault, **DELEGATE}]})
    aborted = {"code": "500", "flags": "FI", "details": "fault_filter_abort", **NOWHERE}
    served_no_more(healthy, "details", **aborted)
    diagnosis = assert_blamed(healthy, "MNB230", "A", "VirtualService bookinfo/shelf")
    assert_explains(diagnosis, 10)


@pytest.mark.parametrize(("prefix", "code"), [("/api", "MNB224"), ("/shop", None)])
def test_two_virtual_services_for_a_host_at_a_gateway_may_share_it_by_path(
    healthy: Altered, prefix: str, code: str | None
) -> None:
    """Altered: a second VirtualService at the gateway repeats the older one's path, or does not."""
    http = [{"match": [{"uri": {"prefix": f"{prefix}/v1/products/x"}}], "route": [TO["details"]]}]
    spec = {"hosts": [SHOP], "gateways": ["bookinfo-gateway"], "http": http}
    add(healthy, "virtualservices", "second", spec)
    if code is None:
        assert_harmless(healthy)
    else:
        assert_blamed(healthy, code, "A", "VirtualService bookinfo/second")


@pytest.mark.parametrize("selector", [None, {"labels": {"app": "ratings"}}])
def test_two_sidecars_for_the_same_pods_conflict(healthy: Altered, selector: Object | None) -> None:
    """Altered: two Sidecars for the namespace, or for the same pods."""
    spec: Object = {"egress": [{"hosts": ["*/*"]}]}
    if selector:
        spec["workloadSelector"] = selector
    add(healthy, "sidecars", "first", spec, at=EARLIER)
    add(healthy, "sidecars", "second", spec)
    assert_blamed(healthy, "MNB225", "A", "Sidecar bookinfo/second")


def test_a_sidecar_for_the_namespace_and_one_for_a_workload_go_together(healthy: Altered) -> None:
    """Altered: a Sidecar for the namespace, one for the mesh, and one for the pods of ratings."""
    spec: Object = {"egress": [{"hosts": ["*/*"]}]}
    add(healthy, "sidecars", "default", spec, at=EARLIER)
    add(healthy, "sidecars", "default", spec, at=EARLIER, namespace="istio-system")
    chosen = {**spec, "workloadSelector": {"labels": {"app": "ratings"}}}
    add(healthy, "sidecars", "ratings", chosen)
    assert_harmless(healthy)


# --- Subsets and DestinationRules ---------------------------------------------------------------


def test_a_subset_that_is_defined_out_of_sight_is_missing(healthy: Altered) -> None:
    """Altered: the DestinationRule of reviews stands in a namespace where no caller looks."""

    def moved(rule: Object) -> None:
        rule["metadata"]["namespace"] = "outside"
        rule["spec"]["host"] = FULL.format("reviews")

    change(healthy, "destinationrules", "reviews", moved)
    served_no_more(healthy, "reviews", **NO_CLUSTER)
    diagnosis = assert_first(healthy, "MNB210", "A", "DestinationRule outside/reviews")
    assert_explains(diagnosis, 20)


@pytest.mark.parametrize("namespace", ["istio-system"])
def test_a_subset_may_be_defined_in_the_root_namespace(healthy: Altered, namespace: str) -> None:
    """Altered: the DestinationRule of reviews stands in the root namespace."""

    def moved(rule: Object) -> None:
        rule["metadata"]["namespace"] = namespace
        rule["spec"]["host"] = FULL.format("reviews")

    change(healthy, "destinationrules", "reviews", moved)
    assert_harmless(healthy)


def test_a_subset_that_was_taken_out_of_its_rule_is_the_rules_fault(healthy: Altered) -> None:
    """Altered: the DestinationRule of reviews has lost its second subset."""
    change(healthy, "destinationrules", "reviews", lambda one: one["spec"]["subsets"].pop())
    served_no_more(healthy, "reviews", **NO_CLUSTER)
    assert_blamed(healthy, "MNB210", "A", "DestinationRule bookinfo/reviews")


def test_a_subset_that_hands_on_to_a_missing_one_is_found_in_a_delegate(healthy: Altered) -> None:
    """Altered: a delegate of details leads to a subset that nobody defines."""
    add(
        healthy,
        "virtualservices",
        "details",
        {"hosts": ["details"], "http": [{"delegate": {"name": "shelf"}}]},
    )
    target = {"destination": {"host": "details", "subset": "v7"}}
    add(healthy, "virtualservices", "shelf", {"http": [{"route": [target]}]})
    served_no_more(healthy, "details", **NO_CLUSTER)
    diagnosis = assert_blamed(healthy, "MNB210", "A", "VirtualService bookinfo/shelf")
    assert_explains(diagnosis, 10)


def test_a_subset_whose_deployment_is_stopped_is_the_deployments_matter(healthy: Altered) -> None:
    """Altered: the Deployment of reviews v2 wants no pods, and requests to v2 find nobody."""
    healthy.remove("pods", "reviews-v2")
    healthy.each("deployments", "reviews-v2", lambda one: one["spec"].update(replicas=0))
    for kind in ("http", "probe", "log"):
        healthy.forget(kind=kind, pod="reviews-v2-79bdb4f448-sdvj9")
    cluster = f"outbound|9080|v2|{FULL.format('reviews')}"
    served_no_more(healthy, "reviews", cluster=cluster, **NO_ENDPOINT)
    assert_first(healthy, "MNB211", "C", "Deployment bookinfo/reviews-v2")


POOL = {"connectionPool": {"tcp": {"maxConnections": 10}}}


@pytest.mark.parametrize(
    ("namespace", "spec"),
    [
        ("outside", {"host": RATINGS_HOST, "trafficPolicy": POOL}),
        ("legacy", {"host": "ratings", "trafficPolicy": POOL}),
        (
            "bookinfo",
            {
                "host": "ratings",
                "subsets": [{"name": "v1", "labels": {"app": "ratings"}, "trafficPolicy": POOL}],
            },
        ),
    ],
    ids=["out of sight", "another namespace's short name", "a subset that no route names"],
)
def test_a_rule_that_shapes_no_cluster_is_found(
    healthy: Altered, namespace: str, spec: Object
) -> None:
    """Altered: a DestinationRule for ratings that no proxy takes."""
    add(healthy, "destinationrules", "calm", spec, namespace=namespace)
    assert_blamed(healthy, "MNB212", "A", f"DestinationRule {namespace}/calm")


def test_of_two_rules_for_a_host_the_older_ones_policy_counts(healthy: Altered) -> None:
    """Altered: two DestinationRules of one namespace for ratings with different policies."""
    add(healthy, "destinationrules", "calm", {"host": "ratings", "trafficPolicy": POOL}, at=EARLIER)
    policy = {"outlierDetection": {"consecutive5xxErrors": 5}}
    add(healthy, "destinationrules", "strict", {"host": RATINGS_HOST, "trafficPolicy": policy})
    assert_blamed(healthy, "MNB212", "A", "DestinationRule bookinfo/strict")


@pytest.mark.parametrize(
    ("namespace", "spec"),
    [
        ("bookinfo", {"host": "reviews", "trafficPolicy": POOL}),
        ("istio-system", {"host": "*.local", "trafficPolicy": POOL}),
        ("bookinfo", {"host": "legacy-api.example.org", "trafficPolicy": POOL}),
    ],
    ids=["adds to the other rule", "the mesh's default", "for a host to come"],
)
def test_rules_that_go_together_are_no_problem(
    healthy: Altered, namespace: str, spec: Object
) -> None:
    """Altered: a DestinationRule that adds a policy, is a default, or waits for its host."""
    add(healthy, "destinationrules", "calm", spec, namespace=namespace)
    assert problems(diagnose(healthy.facts())) == []


# --- Hidden and blocked hosts -------------------------------------------------------------------


def test_a_sidecar_that_hides_a_host_from_callers_who_reach_it_all_the_same_is_found(
    healthy: Altered,
) -> None:
    """Altered: a Sidecar hides ratings, and the client's proxy passes its connections on."""
    add(healthy, "sidecars", "default", {"egress": [{"hosts": ["istio-system/*"]}]})
    passed = {"cluster": "PassthroughCluster", "local": "10.96.220.46:9080", "route": "allow_any"}
    healthy.request("client", "/ratings/0", 9, since=SINCE, **passed)
    assert_blamed(healthy, "MNB231", "A", "Sidecar bookinfo/default")


def test_a_sidecar_that_hides_an_external_host_is_at_fault_for_it(healthy: Altered) -> None:
    """Altered: a ServiceEntry registers the host, and a Sidecar leaves its namespace out."""
    spec = {"outboundTrafficPolicy": {"mode": "REGISTRY_ONLY"}, "egress": [{"hosts": ["./*"]}]}
    add(healthy, "sidecars", "default", spec)
    entry = {
        "hosts": ["api.example.org"],
        "ports": [{"number": 80, "name": "http", "protocol": "HTTP"}],
        "resolution": "DNS",
    }
    add(healthy, "serviceentries", "partner", entry, namespace="outside", at=EARLIER)
    healthy.request("client", "/ratings/0", since=SINCE, **BLOCKED)
    assert_blamed(healthy, "MNB231", "A", "Sidecar bookinfo/default")


def registry_only(altered: Altered) -> Altered:
    """Let the mesh allow registered hosts only."""
    return altered.pages(
        lambda page: page["outboundTrafficPolicy"].update(mode="REGISTRY_ONLY"), path="/debug/mesh"
    )


def test_a_slip_in_a_service_entry_is_the_entrys_fault(healthy: Altered) -> None:
    """Altered: the registered host differs from the called one by a slip."""
    registry_only(healthy)
    entry = {
        "hosts": ["api.exmaple.org"],
        "ports": [{"number": 80, "name": "http", "protocol": "HTTP"}],
        "resolution": "DNS",
    }
    add(healthy, "serviceentries", "partner", entry)
    healthy.request("client", "/ratings/0", since=SINCE, **BLOCKED)
    assert_blamed(healthy, "MNB232", "A", "ServiceEntry bookinfo/partner")


def test_the_settings_of_a_mesh_with_a_revision_stand_in_a_config_map_of_its_own(
    healthy: Altered,
) -> None:
    """Altered: istiod has a revision."""
    registry_only(healthy)
    healthy.each(
        "pods", "istiod", lambda one: one["metadata"]["labels"].update({"istio.io/rev": "blue"})
    )
    healthy.request("client", "/ratings/0", since=SINCE, **BLOCKED)
    assert_first(healthy, "MNB232", "A", "ConfigMap istio-system/istio-blue")


def test_a_port_that_a_service_entry_does_not_have_is_blocked(healthy: Altered) -> None:
    """Altered: the host is registered with port 443, and is called on port 80."""
    registry_only(healthy)
    entry = {
        "hosts": ["api.example.org"],
        "ports": [{"number": 443, "name": "https", "protocol": "TLS"}],
        "resolution": "DNS",
    }
    add(healthy, "serviceentries", "partner", entry)
    healthy.request("client", "/ratings/0", since=SINCE, **BLOCKED)
    assert_blamed(healthy, "MNB236", "A", "ServiceEntry bookinfo/partner")


# --- External hosts -----------------------------------------------------------------------------


def entry(altered: Altered, name: str, host: str, protocol: str, port: int, **more: Any) -> Altered:
    """Add a ServiceEntry."""
    ports = [{"number": port, "name": protocol.lower(), "protocol": protocol}]
    spec = {"hosts": [host], "ports": ports, "resolution": "DNS", **more}
    return add(altered, "serviceentries", name, spec, at=EARLIER)


@pytest.mark.parametrize(
    "more",
    [
        {"resolution": "STATIC"},
        {"resolution": "STATIC", "workloadSelector": {"labels": {"a": "b"}}},
    ],
)
def test_a_service_entry_that_lists_nobody_is_found_before_it_is_called(
    healthy: Altered, more: Object
) -> None:
    """Altered: a ServiceEntry without endpoints, or whose selector matches nothing."""
    entry(healthy, "partner", "api.example.org", "HTTP", 80, **more)
    assert_blamed(healthy, "MNB234", "A", "ServiceEntry bookinfo/partner")


def test_a_service_entry_that_selects_pods_is_no_problem(healthy: Altered) -> None:
    """Altered: a ServiceEntry selects the pods of ratings."""
    selector = {"labels": {"app": "ratings"}}
    entry(
        healthy,
        "stars",
        "stars.example.org",
        "HTTP",
        80,
        resolution="STATIC",
        workloadSelector=selector,
    )
    assert_harmless(healthy)


@pytest.mark.parametrize(
    ("reason", "suspect"),
    [
        (
            "268435581:SSL_routines:OPENSSL_internal:CERTIFICATE_VERIFY_FAILED:verify_cert_failed:_unable_to_get_local_issuer_certificate",
            "caCertificates",
        ),
        (
            "268435581:SSL_routines:OPENSSL_internal:CERTIFICATE_VERIFY_FAILED:verify_cert_failed:_SAN_matcher",
            "subjectAltNames",
        ),
        ("268436496:SSL_routines:OPENSSL_internal:SSLV3_ALERT_HANDSHAKE_FAILURE", "sni"),
    ],
)
def test_tls_that_an_external_host_refuses_is_the_destination_rules_fault(
    healthy: Altered, reason: str, suspect: str
) -> None:
    """Altered: a DestinationRule begins TLS to a registered host, and the handshake fails."""
    entry(healthy, "partner", "api.example.org", "HTTP", 80)
    tls = {"mode": "SIMPLE", "sni": "wrong.example.org"}
    add(
        healthy,
        "destinationrules",
        "partner",
        {"host": "api.example.org", "trafficPolicy": {"tls": tls}},
    )
    text = f"TLS_error:|{reason}:TLS_error_end"
    fields = {
        **REFUSED,
        "details": f"upstream_reset_before_response_started{{remote_connection_failure|{text}}}",
        "failure": text,
        "authority": "api.example.org",
        "cluster": "outbound|80||api.example.org",
        "endpoint": "203.0.113.9:443",
        "local": "203.0.113.9:80",
    }
    healthy.request("client", "/ratings/0", since=SINCE, **fields)
    diagnosis = assert_first(healthy, "MNB235", "A", "DestinationRule bookinfo/partner")
    assert suspect in diagnosis.problems[0].finding.remedy


def _wildcard_listener(altered: Altered, port: int, host: str) -> Altered:
    """Let the client's proxy have a listener for all addresses of a port that leads to one host."""
    cluster = f"outbound|{port}||{host}"
    proxy = {
        "name": "envoy.filters.network.tcp_proxy",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
            "stat_prefix": cluster,
            "cluster": cluster,
        },
    }
    address = {"socket_address": {"address": "0.0.0.0", "port_value": port}}  # noqa: S104
    listener = {
        "@type": "type.googleapis.com/envoy.config.listener.v3.Listener",
        "name": f"0.0.0.0_{port}",
        "address": address,
        "filter_chains": [{"filters": [proxy]}],
        "traffic_direction": "OUTBOUND",
    }

    def more(dump: Any) -> None:
        for section in dump["configs"]:
            if "dynamic_listeners" in section:
                state = {"version_info": "1", "listener": listener, "last_updated": EARLIER}
                section["dynamic_listeners"].append(
                    {"name": listener["name"], "active_state": state}
                )

    return altered.pages(more, port=15000, path="/config_dump?include_eds", pod="client")


CONNECTED = {**NO_REQUEST, "protocol": "-", "code": "0", "flags": "-", "details": "-"}


def test_a_tcp_service_entry_without_addresses_takes_what_is_for_others(healthy: Altered) -> None:
    """Altered: two databases without addresses on one port; the proxy leads both to the first."""
    entry(healthy, "db1", "db1.example.org", "TCP", 5432)
    _wildcard_listener(healthy, 5432, "db1.example.org")
    assert_harmless(healthy)
    spec = {
        "hosts": ["db2.example.org"],
        "ports": [{"number": 5432, "name": "tcp", "protocol": "TCP"}],
        "resolution": "DNS",
    }
    add(healthy, "serviceentries", "db2", spec)
    diagnosis = assert_blamed(healthy, "MNB237", "A", "ServiceEntry bookinfo/db1")
    assert "ServiceEntry bookinfo/db2" in diagnosis.problems[0].finding.message


def test_an_external_name_with_a_tcp_port_takes_the_whole_port(healthy: Altered) -> None:
    """Altered: a Service of type ExternalName has a port for TCP, and a listener was made of it."""
    ports = [{"name": "tcp", "port": 8443, "targetPort": 8443, "protocol": "TCP"}]
    spec = {"type": "ExternalName", "externalName": "db.example.org", "ports": ports}
    healthy.add("services", "ext", "bookinfo", CHANGED, spec=spec)
    assert_harmless(healthy)
    _wildcard_listener(healthy, 8443, FULL.format("ext"))
    assert_blamed(healthy, "MNB237", "A", "Service bookinfo/ext")


@pytest.mark.parametrize(
    ("second", "code"),
    [({"protocol": "TCP"}, "MNB238"), ({"protocol": "HTTP"}, None), ({"port": 81}, None)],
)
def test_two_service_entries_for_a_host_must_agree(
    healthy: Altered, second: Object, code: str | None
) -> None:
    """Altered: a second team registers the host with another protocol, the same, or a port."""
    entry(healthy, "ours", "api.example.org", "HTTP", 80)
    port = second.get("port", 80)
    ports = [{"number": port, "name": "x", "protocol": second.get("protocol", "TCP")}]
    spec = {"hosts": ["api.example.org"], "ports": ports, "resolution": "DNS"}
    add(healthy, "serviceentries", "theirs", spec, namespace="outside")
    if code is None:
        assert_harmless(healthy)
    else:
        assert_blamed(healthy, code, "A", "ServiceEntry outside/theirs")


def test_an_address_of_istios_dns_that_the_proxy_does_not_know_leads_nowhere(
    healthy: Altered,
) -> None:
    """Altered: the client calls 240.240.0.7, and its proxy passes that on to nowhere."""
    fields = {
        **CONNECTED,
        **TIMED_OUT,
        "code": "0",
        "flags": "UF",
        "details": "-",
        "failure": "connection_timeout",
        "cluster": "PassthroughCluster",
        "endpoint": "240.240.0.7:443",
        "local": "240.240.0.7:443",
    }
    healthy.request("client", "/ratings/0", since=SINCE, **fields)
    assert_first(healthy, "MNB239", "C", "Pod bookinfo/client")


# --- Services -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "code"), [("tcp-stars", "MNB270"), ("http-stars", None)])
def test_two_services_must_agree_on_the_protocol_of_a_pods_port(
    healthy: Altered, name: str, code: str | None
) -> None:
    """Altered: a second Service leads to the port of ratings, with another protocol or the same."""
    ports = [{"name": name, "port": 80, "targetPort": 9080, "protocol": "TCP"}]
    spec = {"selector": {"app": "ratings"}, "clusterIP": "10.96.1.1", "ports": ports}
    healthy.add("services", "stars", "bookinfo", CHANGED, spec=spec)
    if code is None:
        assert_harmless(healthy)
    else:
        assert_blamed(healthy, code, "A", "Service bookinfo/stars")


# --- Load balancing and limits ------------------------------------------------------------------


LOCALITY = {"localityLbSetting": {"failover": [{"from": "here", "to": "there"}]}}


def test_failover_without_outlier_detection_does_nothing(healthy: Altered) -> None:
    """Altered: a DestinationRule of ratings has failover only; then outlier detection, too."""
    healthy.each(
        "nodes",
        "",
        lambda one: one["metadata"]["labels"].update({"topology.kubernetes.io/region": "here"}),
    )
    spec = {"host": "ratings", "trafficPolicy": {"loadBalancer": LOCALITY}}
    add(healthy, "destinationrules", "ratings", spec)
    assert_blamed(healthy, "MNB280", "A", "DestinationRule bookinfo/ratings")
    healthy.each(
        "destinationrules",
        "ratings",
        lambda one: one["spec"]["trafficPolicy"].update(outlierDetection={"interval": "5s"}),
    )
    assert_harmless(healthy)


def test_failover_between_regions_that_no_node_names_does_nothing(healthy: Altered) -> None:
    """Altered: a DestinationRule fails over between regions; the nodes have no labels of theirs."""

    def without(node: Object) -> None:
        labels = node["metadata"]["labels"]
        for key in [key for key in labels if "topology" in key or "failure-domain" in key]:
            del labels[key]

    healthy.each("nodes", "", without)
    policy = {"loadBalancer": LOCALITY, "outlierDetection": {"interval": "5s"}}
    spec = {"host": "ratings", "trafficPolicy": policy}
    add(healthy, "destinationrules", "ratings", spec)
    assert_blamed(healthy, "MNB281", "A", "DestinationRule bookinfo/ratings")


def test_a_destination_whose_weight_was_left_out_gets_nothing(healthy: Altered) -> None:
    """Altered: the second of two destinations of reviews has no weight."""
    change(
        healthy,
        "virtualservices",
        "reviews",
        lambda one: one["spec"]["http"][1]["route"][1].pop("weight"),
    )
    assert_blamed(healthy, "MNB282", "A", "VirtualService bookinfo/reviews")


def test_a_hash_that_sends_all_to_one_endpoint_is_worth_knowing(healthy: Altered) -> None:
    """Altered: reviews hashes a header, and one of its two endpoints got nearly all requests."""
    cluster = f"outbound|9080||{FULL.format('reviews')}"

    def hashed(dump: Any) -> None:
        for section in dump["configs"]:
            for one in section.get("dynamic_active_clusters", ()):
                if one["cluster"]["name"] == cluster:
                    one["cluster"]["lb_policy"] = "RING_HASH"
                    path = (
                        "/apis/networking.istio.io/v1/namespaces/bookinfo/destination-rule/reviews"
                    )
                    one["cluster"]["metadata"] = {"filter_metadata": {"istio": {"config": path}}}

    def uneven(page: Any) -> None:
        for one in page["cluster_statuses"]:
            if one["name"] == cluster:
                for number, host in enumerate(one["host_statuses"]):
                    host["stats"] = [{"name": "rq_total", "value": str(0 if number else 500)}]

    healthy.pages(hashed, port=15000, path="/config_dump?include_eds", pod="client")
    healthy.pages(uneven, port=15000, path="/clusters?format=json", pod="client")
    balancer = {"consistentHash": {"httpHeaderName": "x-user"}}
    healthy.each(
        "destinationrules",
        "reviews",
        lambda one: one["spec"].update(trafficPolicy={"loadBalancer": balancer}),
    )
    assert_harmless(healthy, "MNB283")


def test_a_rate_limit_service_that_does_not_answer_is_the_filters_matter(tmp_path: Path) -> None:
    """Altered: requests end with 500 and flag RLSE, as when the service for limits is down."""
    altered = Altered("rate-limited", tmp_path)
    altered.lines(
        "",
        lambda line: [
            line._replace(code="500", flags="RLSE", details="rate_limiter_error")
            if line.flags == "RL"
            else line._replace(code="500" if line.code == "429" else line.code)
        ],
    )
    assert_first(altered, "MNB850", "A", "EnvoyFilter bookinfo/details-ratelimit")


def test_a_pool_of_a_wildcard_rule_turns_requests_away(healthy: Altered) -> None:
    """Altered: a DestinationRule of the root namespace limits connections to all hosts."""
    policy = {"connectionPool": {"http": {"http1MaxPendingRequests": 1}}}
    spec = {"host": "*.local", "trafficPolicy": policy}
    add(healthy, "destinationrules", "mesh", spec, namespace="istio-system")
    served_no_more(healthy, "ratings", **OVERFLOW)
    assert_blamed(healthy, "MNB851", "A", "DestinationRule istio-system/mesh")


def test_a_rule_of_the_service_comes_before_the_meshs_default(healthy: Altered) -> None:
    """Altered: as above, and a newer rule for the very host has a pool, too."""
    pool = {"connectionPool": {"http": {"http1MaxPendingRequests": 1}}}
    default = {"host": "*.local", "trafficPolicy": {"connectionPool": {"tcp": {}}}}
    add(healthy, "destinationrules", "mesh", default, namespace="istio-system", at=EARLIER)
    add(healthy, "destinationrules", "ratings", {"host": "ratings", "trafficPolicy": pool})
    served_no_more(healthy, "ratings", **OVERFLOW)
    assert_blamed(healthy, "MNB851", "A", "DestinationRule bookinfo/ratings")


def test_a_workload_scaled_to_nothing_is_the_workloads_matter(healthy: Altered) -> None:
    """Altered: ratings wants no pods, and callers find no endpoint."""
    healthy.remove("pods", "ratings-v1")
    healthy.each("deployments", "ratings-v1", lambda one: one["spec"].update(replicas=0))
    for kind in ("http", "probe", "log"):
        healthy.forget(kind=kind, pod="ratings-v1-589dc858f-xrq2g")
    served_no_more(healthy, "ratings", cluster=f"outbound|9080||{RATINGS_HOST}", **NO_ENDPOINT)
    first = diagnose(healthy.facts()).problems[0]
    assert (first.failure_class.value, first.subject.kind, first.subject.name) == (
        "C",
        "Deployment",
        "ratings-v1",
    )


# --- The Gateway API ----------------------------------------------------------------------------

MARKET_SINCE = "2026-11-23T04:37:36"
MARKET_CHANGED = "2026-11-23T04:37:33Z"
MARKET = "market.example.com"
ROUTE = "HTTPRoute market/stall"


def unrouted_in_market(market: Altered, since: str = MARKET_SINCE, **fields: str) -> Altered:
    """Let the gateway of the market have no route, from the change on."""
    return market.at_client(MARKET, since, pod="market-gw-istio", **{**UNROUTED, **fields})


def market_gateways(market: Altered, edit: Callable[[list[Object]], None]) -> Altered:
    """Change the list of Gateways of the Gateway API; Istio's own have the same resource name."""

    def rewrite(text: str) -> str:
        document = json.loads(text)
        edit(document["items"])
        return json.dumps(document)

    api = "gateway.networking.k8s.io/v1"
    return market.texts(rewrite, kind="list", resource="gateways", apiVersion=api)


def market_gateway(
    market: Altered, edit: Callable[[Object], None], at: str = "2026-11-23T04:37:33Z"
) -> Altered:
    """Change the Gateway of the market, and note when."""

    def edit_and_note(items: list[Object]) -> None:
        for item in items:
            edit(item)
            item["metadata"]["managedFields"] = metadata("", "", at)["managedFields"]

    return market_gateways(market, edit_and_note)


def http_route(market: Altered, **spec: Any) -> Altered:
    """Change the HTTPRoute."""
    return change(
        market, "httproutes", "stall", lambda one: one["spec"].update(spec), MARKET_CHANGED
    )


@pytest.mark.parametrize(
    "where", [{"sectionName": "https"}, {"port": 8080}, {"namespace": "depot"}]
)
def test_a_parent_without_such_a_listener_takes_no_route(market: Altered, where: Object) -> None:
    """Altered: the HTTPRoute names a listener, port or namespace that its Gateway does not have."""
    http_route(market, parentRefs=[{"kind": "Gateway", "name": "market-gw", **where}])
    unrouted_in_market(market)
    assert_blamed(market, "MNB351", "A", ROUTE)


def conditions(kind: str, reason: str, status: str = "False") -> list[Object]:
    """Return conditions as istiod writes them."""
    return [{"type": kind, "status": status, "reason": reason, "message": "as istiod says"}]


@pytest.mark.parametrize("reason", ["NotAllowedByListeners", "NoMatchingListenerHostname"])
@pytest.mark.parametrize("which", ["route", "gateway"])
def test_a_route_that_its_gateway_does_not_let_in_is_the_matter_of_who_was_changed(
    market: Altered, reason: str, which: str
) -> None:
    """Altered: istiod says that the route is not let in; the route or the Gateway was changed."""

    def refuse(route: Object) -> None:
        route["status"]["parents"][0]["conditions"] = conditions("Accepted", reason)

    market.each("httproutes", "stall", refuse)
    if which == "route":
        http_route(market)
    else:
        market_gateway(market, lambda _: None)
    unrouted_in_market(market)
    subject = ROUTE if which == "route" else "Gateway market/market-gw"
    assert_blamed(market, "MNB352", "A", subject)


def test_a_backend_that_does_not_exist_is_the_routes_fault(market: Altered) -> None:
    """Altered: the HTTPRoute's backend is not found, and the gateway answers 500."""
    backend = {"name": "stal", "port": 8000}
    rule = {"matches": [{"path": {"value": "/fruit"}}], "backendRefs": [backend]}
    http_route(market, rules=[rule])

    def refuse(route: Object) -> None:
        route["status"]["parents"][0]["conditions"] = conditions("ResolvedRefs", "BackendNotFound")

    market.each("httproutes", "stall", refuse)
    unrouted_in_market(market, code="500", flags="-", details="direct_response")
    assert_blamed(market, "MNB352", "A", ROUTE)


@pytest.mark.parametrize(
    ("kind", "reason", "status"),
    [
        ("ResolvedRefs", "InvalidCertificateRef", "False"),
        ("Programmed", "Invalid", "False"),
        ("Conflicted", "ProtocolConflict", "True"),
    ],
)
def test_a_listener_that_is_not_in_force_is_the_gateways_fault(
    market: Altered, kind: str, reason: str, status: str
) -> None:
    """Altered: istiod says that one listener has no certificate, is not made, or conflicts."""

    def refuse(item: Object) -> None:
        item["spec"]["listeners"].append({"name": "tls", "port": 443, "protocol": "HTTPS"})
        item["status"]["listeners"].append(
            {"name": "tls", "conditions": conditions(kind, reason, status)}
        )

    market_gateway(market, refuse)
    assert_blamed(market, "MNB352", "A", "Gateway market/market-gw")


@pytest.mark.parametrize("reason", ["AddressNotAssigned"])
def test_a_gateway_that_serves_without_an_address_from_outside_is_no_problem(
    market: Altered, reason: str
) -> None:
    """Altered: istiod says that the Gateway has no address yet, as where there is no cloud."""

    def wait(item: Object) -> None:
        item["status"]["conditions"] = conditions("Programmed", reason)

    market_gateway(market, wait)
    assert_harmless(market, "MNB352")


def test_a_gateway_of_a_class_that_does_not_exist_is_made_by_nobody(market: Altered) -> None:
    """Altered: a second Gateway has a slip in the name of its class, and no status."""
    listener = {"name": "http", "port": 80, "protocol": "HTTP"}
    spec = {"gatewayClassName": "itsio", "listeners": [listener]}
    annex = {"metadata": metadata("annex", "market", MARKET_CHANGED), "spec": spec}
    market_gateways(market, lambda items: items.append(annex))
    diagnosis = assert_blamed(market, "MNB353", "A", "Gateway market/annex")
    assert "istio" in diagnosis.problems[0].finding.message


@pytest.mark.parametrize(
    ("made", "subject", "cause"),
    [
        (False, "Gateway market/market-gw", "A"),
        (True, "Deployment market/market-gw-istio", "C"),
    ],
)
def test_a_gateway_without_pods_is_found(
    market: Altered, made: bool, subject: str, cause: str
) -> None:
    """Altered: the Gateway's Deployment was never made, or wants no pods."""
    market.remove("pods", "market-gw-istio")
    for kind in ("http", "probe", "log"):
        market.forget(kind=kind, pod="market-gw-istio-7dff9b757f-9d2x8")
    if made:
        market.each("deployments", "market-gw-istio", lambda one: one["spec"].update(replicas=0))
    else:
        market.remove("deployments", "market-gw-istio")
        market.remove("replicasets", "market-gw-istio")
    found = problems(diagnose(market.facts()))
    assert ("MNB354", cause, subject) in found


@pytest.mark.parametrize("since", [MARKET_SINCE, ""], ids=["of late", "from the first line"])
def test_a_path_that_no_rule_of_a_route_matches_is_the_routes_fault(
    market: Altered, since: str
) -> None:
    """Altered: the HTTPRoute has another path than is asked for."""
    path = {"type": "PathPrefix", "value": "/vegetables"}
    http_route(market, rules=[{"matches": [{"path": path}], "backendRefs": [STALL]}])
    unrouted_in_market(market, since)
    assert_blamed(market, "MNB355", "A", ROUTE)


STALL = {"name": "stall", "port": 8000}


def test_a_host_that_a_route_misspells_is_the_routes_fault(market: Altered) -> None:
    """Altered: the Gateway takes every host, and the HTTPRoute has a slip in its own."""
    market_gateway(
        market, lambda one: one["spec"]["listeners"][0].pop("hostname"), "2026-11-23T04:36:00Z"
    )
    http_route(market, hostnames=["markte.example.com"])
    unrouted_in_market(market)
    assert_blamed(market, "MNB355", "A", ROUTE)


def test_paths_that_nobody_serves_at_a_gateway_of_the_gateway_api_are_no_problem(
    market: Altered,
) -> None:
    """Altered: somebody outside asks for a path that has no rule."""
    market.request("market-gw-istio", "/fruit", 9, **{**UNROUTED, "path": "/wp-login.php"})
    assert_harmless(market)


@pytest.mark.parametrize(("value", "code"), [("/fruit", "MNB356"), ("/fruit/exotic", None)])
def test_of_two_routes_that_match_the_same_the_older_wins(
    market: Altered, value: str, code: str | None
) -> None:
    """Altered: a second HTTPRoute for the host has the same path, or a longer one."""
    parent = {"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "market-gw"}
    rule = {"matches": [{"path": {"type": "PathPrefix", "value": value}}], "backendRefs": [STALL]}
    spec = {"hostnames": [MARKET], "parentRefs": [parent], "rules": [rule]}
    add(market, "httproutes", "second", spec, namespace="market", at=MARKET_CHANGED)
    if code is None:
        assert_harmless(market)
    else:
        assert_blamed(market, code, "A", "HTTPRoute market/second")


@pytest.mark.parametrize(
    ("arguments", "code"), [(["proxy", "waypoint"], "MNB357"), (["proxy", "router"], None)]
)
def test_a_policy_that_selects_a_waypoint_by_labels_is_not_enforced(
    market: Altered, arguments: list[str], code: str | None
) -> None:
    """Altered: a policy selects the gateway's pod by its labels; the pod is a waypoint or not."""

    def as_waypoint(pod: Object) -> None:
        for container in pod["spec"]["containers"]:
            if container["name"] == "istio-proxy":
                container["args"] = [*arguments, *container["args"][2:]]

    market.each("pods", "market-gw-istio", as_waypoint)
    labels = {"gateway.networking.k8s.io/gateway-name": "market-gw"}
    spec = {
        "selector": {"matchLabels": labels},
        "action": "DENY",
        "rules": [{"to": [{"operation": {"paths": ["/x"]}}]}],
    }
    add(market, "authorizationpolicies", "walls", spec, namespace="market", at=MARKET_CHANGED)
    found = [code for code in codes_of(market) if code == "MNB357"]
    assert found == ([code] if code else [])


# --- Several clusters ---------------------------------------------------------------------------


def test_a_remote_cluster_that_istiod_cannot_read_is_the_secrets_matter(healthy: Altered) -> None:
    """Altered: istiod has a second cluster, which it never came to read."""
    remote = {
        "id": "far",
        "secretName": "istio-system/istio-remote-secret-far",
        "syncStatus": "timeout",
    }
    healthy.pages(lambda page: page.append(remote), path="/debug/clusterz")
    assert_blamed(healthy, "MNB260", "A", "Secret istio-system/istio-remote-secret-far")


@pytest.mark.parametrize(
    ("labels", "code"), [({}, "MNB260"), ({"istio/multiCluster": "true"}, None)]
)
def test_a_secret_for_another_cluster_needs_its_label(
    healthy: Altered, labels: Object, code: str | None
) -> None:
    """Altered: there is a Secret for another cluster, without its label or with it."""
    healthy.add("secrets", "istio-remote-secret-far", "istio-system", CHANGED, data={"far": ""})
    healthy.each(
        "secrets", "istio-remote-secret-far", lambda one: one["metadata"].update(labels=labels)
    )
    if code is None:
        assert_harmless(healthy)
    else:
        assert_blamed(healthy, code, "A", "Secret istio-system/istio-remote-secret-far")


def test_endpoints_of_a_network_without_a_gateway_time_out(healthy: Altered) -> None:
    """Altered: a WorkloadEntry of ratings is in another network, and callers time out there."""
    spec = {"address": "10.9.0.7", "network": "far", "labels": {"app": "ratings"}}
    add(healthy, "workloadentries", "ratings-far", spec)
    fields = {**TIMED_OUT, "endpoint": "10.9.0.7:9080"}
    healthy.request("client", "/ratings/0", 9, since=SINCE, **fields)
    assert_first(healthy, "MNB261", "A", "WorkloadEntry bookinfo/ratings-far")


def test_endpoints_of_a_network_with_a_gateway_are_no_problem(healthy: Altered) -> None:
    """Altered: the Service of a gateway says that it leads to the network of a WorkloadEntry."""
    spec = {"address": "10.9.0.7", "network": "far", "labels": {"app": "ratings"}}
    add(healthy, "workloadentries", "ratings-far", spec)
    healthy.each(
        "services",
        GATEWAY,
        lambda one: one["metadata"].update(labels={"topology.istio.io/network": "far"}),
    )
    assert_harmless(healthy)


def test_clusters_without_a_common_root_do_not_trust_each_other(healthy: Altered) -> None:
    """Altered: calls through the gateway of another cluster fail, for want of a common root."""
    reason = (
        "TLS_error:|268435581:SSL_routines:OPENSSL_internal:CERTIFICATE_VERIFY_FAILED:"
        "verify_cert_failed:_unable_to_get_local_issuer_certificate:TLS_error_end"
    )
    fields = {
        **REFUSED,
        "details": f"upstream_reset_before_response_started{{remote_connection_failure|{reason}}}",
        "failure": reason,
        "endpoint": "198.51.100.7:15443",
    }
    healthy.request("client", "/ratings/0", 9, since=SINCE, **fields)
    assert_first(healthy, "MNB262", "B", "Secret istio-system/cacerts")


@pytest.mark.parametrize(("mode", "code"), [("PASSTHROUGH", "MNB263"), ("AUTO_PASSTHROUGH", None)])
def test_a_gateway_between_networks_must_pass_on_by_server_name(
    healthy: Altered, mode: str, code: str | None
) -> None:
    """Altered: the gateway gets calls from other networks, with a server for them or another."""
    port = {"name": "tls", "port": 15443, "targetPort": 15443, "protocol": "TCP"}
    healthy.each("services", GATEWAY, lambda one: one["spec"]["ports"].append(port))
    server = {
        "port": {"number": 15443, "name": "tls", "protocol": "TLS"},
        "hosts": ["*.local"],
        "tls": {"mode": mode},
    }
    spec = {"selector": {"istio": "ingressgateway"}, "servers": [server]}
    add(healthy, "gateways", "cross-network", spec)
    sni = f"outbound_.9080_._.{RATINGS_HOST}"
    fields = {**CUT_OFF, "sni": sni, "local": "10.244.0.3:15443"}
    healthy.request(GATEWAY, "/productpage", 9 if code else 2, since=SINCE, **fields)
    if code is None:
        assert problems(diagnose(healthy.facts())) == []
    else:
        assert_first(healthy, code, "A", "Gateway bookinfo/cross-network")


# --- What changed before ------------------------------------------------------------------------


def test_a_fault_of_an_unknown_kind_at_a_gateway_is_blamed_on_its_newest_object(
    healthy: Altered,
) -> None:
    """Altered: the gateway fails for a host that no object names any more."""
    gateway(healthy, servers=[{"port": HTTP_80, "hosts": ["*"]}])
    routes(healthy, hosts=["books.example.org"])
    change(healthy, "virtualservices", "bookinfo", lambda _: None, "2026-11-23T02:48:48Z")
    unrouted(healthy, code="503", flags="UMSDR", details="upstream_max_stream_duration_reached")
    diagnosis = diagnose(healthy.facts())
    blamed = [str(one.subject) for one in diagnosis.problems if one.check.code == "MNB250"]
    assert blamed == ["VirtualService bookinfo/bookinfo"]
