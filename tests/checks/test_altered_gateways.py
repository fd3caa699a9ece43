"""Checks of gateways, on altered recordings.

What is altered is named in each test. Beside each fault stands what looks like it and is none.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from meshnb.diagnosis import Diagnosis, diagnose
from tests.alteration import Altered, metadata
from tests.checks.test_altered import (
    CHANGED,
    EARLIER,
    NO_REQUEST,
    NOWHERE,
    REFUSED,
    SINCE,
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
