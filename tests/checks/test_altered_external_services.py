"""Checks of external hosts, on altered recordings.

What is altered is named in each test. Beside each fault stands what looks like it and is none.
"""

from __future__ import annotations

from typing import Any

import pytest

from meshnb.diagnosis import diagnose
from tests.alteration import Altered
from tests.checks.test_altered import (
    CHANGED,
    EARLIER,
    NO_REQUEST,
    REFUSED,
    SINCE,
    TIMED_OUT,
    assert_blamed,
    assert_harmless,
)
from tests.checks.test_altered_gateways import FULL, Object, add, assert_first


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


@pytest.mark.parametrize("begun", [False, True])
def test_plain_text_to_a_port_for_https_is_the_service_entrys_fault(
    healthy: Altered, begun: bool
) -> None:
    """Altered: HTTP for a host goes to its port 443, and a DestinationRule begins TLS or none."""
    port = {"number": 80, "name": "http", "protocol": "HTTP", "targetPort": 443}
    entry(healthy, "weather", "weather.example.org", "HTTP", 80, ports=[port])
    if begun:
        tls = {"trafficPolicy": {"tls": {"mode": "SIMPLE"}}}
        add(healthy, "destinationrules", "weather", {"host": "weather.example.org", **tls})
    fields = {
        "code": "400",
        "authority": "weather.example.org",
        "cluster": "outbound|80||weather.example.org",
        "endpoint": "203.0.113.9:443",
        "local": "203.0.113.9:80",
    }
    healthy.request("client", "/ratings/0", since=SINCE, **fields)
    codes = [cause.check.code for cause in diagnose(healthy.facts()).problems]
    assert codes == ([] if begun else ["MNB240"])


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
