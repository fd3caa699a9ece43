"""What istiod's validation refuses, field by field, and what it takes although it looks odd.

Each was given to `istioctl analyze --use-kube=false` of Istio 1.31, which said IST0106 or nothing.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from meshnb.sources import Manifests
from meshnb.tables import Facts
from tests.analysis.conftest import findings

_ROUTE = [{"destination": {"host": "a.example"}}]
_PORT = {"number": 80, "name": "http", "protocol": "HTTP"}
_CUSTOM = {"action": "CUSTOM", "provider": {"name": "asked"}}


def _route(**fields: Any) -> dict[str, Any]:
    return {"hosts": ["a.example"], "http": [{"route": _ROUTE, **fields}]}


def _regex(value: str) -> dict[str, Any]:
    return _route(match=[{"uri": {"regex": value}}])


def _policy(**fields: Any) -> dict[str, Any]:
    return {"host": "a.example", "trafficPolicy": fields}


def _entry(**fields: Any) -> dict[str, Any]:
    return {"hosts": ["a.example"], "resolution": "STATIC", "ports": [_PORT], **fields}


def _gateway(host: str) -> dict[str, Any]:
    return {"selector": {"a": "b"}, "servers": [{"port": _PORT, "hosts": [host]}]}


def _from(**source: Any) -> dict[str, Any]:
    return {"rules": [{"from": [{"source": source}]}]}


def _to(**operation: Any) -> dict[str, Any]:
    return {"rules": [{"to": [{"operation": operation}]}]}


def _when(key: str, *values: str) -> dict[str, Any]:
    return {"rules": [{"when": [{"key": key, "values": list(values)}]}]}


def _ingress(address: str) -> dict[str, Any]:
    return {"ingress": [{"port": _PORT, "defaultEndpoint": address}]}


def _tls(host: str, name: str) -> dict[str, Any]:
    return {"hosts": [host], "tls": [{"match": [{"sniHosts": [name]}], "route": _ROUTE}]}


def _jwt(**rule: Any) -> dict[str, Any]:
    return {"jwtRules": [rule]}


def _weights(*weights: int) -> dict[str, Any]:
    return _route(route=[{**_ROUTE[0], "weight": weight} for weight in weights])


def _tag(**change: str) -> dict[str, Any]:
    return {"metrics": [{"overrides": [{"tagOverrides": {"a": change}}]}]}


REFUSED: tuple[tuple[str, dict[str, Any]], ...] = (
    ("VirtualService", _route(timeout="0.0005s")),
    ("VirtualService", _route(timeout="0s")),
    ("VirtualService", _route(retries={"attempts": -1})),
    ("VirtualService", _route(retries={"retryOn": "5xx"})),
    ("VirtualService", _route(retries={"attempts": 2, "perTryTimeout": "0s"})),
    ("VirtualService", _route(fault={"delay": {"fixedDelay": "0s"}})),
    ("VirtualService", _route(fault={"abort": {"httpStatus": 100}})),
    ("VirtualService", _route(fault={"abort": {"percentage": {"value": 101}, "httpStatus": 500}})),
    ("VirtualService", _route(mirror={"host": ""})),
    ("VirtualService", _route(mirrors=[{**_ROUTE[0], "percentage": {"value": 101}}])),
    ("VirtualService", _route(rewrite={"uriRegexRewrite": {"match": "(", "rewrite": "a"}})),
    ("VirtualService", _route(corsPolicy={"allowOrigins": [{"regex": ")"}]})),
    ("VirtualService", _route(match=[{"headers": {"x": {"regex": "["}}}])),
    ("VirtualService", {"hosts": ["a.example"], "http": [{"redirect": {"redirectCode": 301}}]}),
    ("VirtualService", {"hosts": ["a.example"], "http": [{"directResponse": {"status": 99}}]}),
    ("VirtualService", _weights(0, 0)),
    ("VirtualService", _weights(-1)),
    *(("VirtualService", _regex(value)) for value in ("(?!a)", r"(a)\1", "(?P<n>a)(?P=n)", "a|*")),
    ("VirtualService", _regex("x\\")),
    *(("VirtualService", {**_route(), "hosts": [host]}) for host in ("a_b.example", "x.*")),
    ("VirtualService", _tls("a.example", "b.example")),
    ("VirtualService", _tls("a.example", "*.example")),
    ("DestinationRule", _policy()),
    ("DestinationRule", _policy(connectionPool={})),
    ("DestinationRule", _policy(connectionPool={"tcp": {"maxConnections": -1}})),
    ("DestinationRule", _policy(connectionPool={"http": {"idleTimeout": "0s"}})),
    ("DestinationRule", _policy(outlierDetection={"interval": "0s"})),
    ("DestinationRule", _policy(outlierDetection={"minHealthPercent": 101})),
    ("DestinationRule", _policy(tls={"mode": "MUTUAL", "privateKey": "/key"})),
    ("DestinationRule", _policy(portLevelSettings=[{"port": {"number": 80}}])),
    ("DestinationRule", _policy(portLevelSettings=[{"tls": {"mode": "SIMPLE"}}])),
    ("DestinationRule", {"host": "x_y"}),
    ("DestinationRule", {"host": "a.example", "subsets": [{"name": "v_1"}]}),
    *(("Gateway", _gateway(host)) for host in ("short", "a/short", "a_b.example", "a.*.b")),
    *(("Sidecar", {"egress": [{"hosts": [host]}]}) for host in ("b.example", "a/short", "*/a*")),
    ("Sidecar", {"egress": [{"hosts": []}]}),
    ("Sidecar", {"egress": [{"hosts": ["*/*"]}, {"port": _PORT, "hosts": ["*/*"]}]}),
    ("Sidecar", {"ingress": [{"port": _PORT}, {"port": _PORT, "bind": "192.0.2.1"}]}),
    *(("Sidecar", _ingress(address)) for address in ("localhost:80", "192.0.2.1:80")),
    *(("ServiceEntry", _entry(hosts=hosts)) for hosts in ([], ["*"], ["a_b.example"])),
    ("ServiceEntry", _entry(hosts=["*.a.example"], resolution="DNS")),
    ("ServiceEntry", _entry(addresses=["198.51.100.0/24"], resolution="DNS")),
    ("ServiceEntry", _entry(addresses=["300.1.1.1"])),
    ("ServiceEntry", _entry(endpoints=[{"address": "192.0.2.1"}], resolution="NONE")),
    ("ServiceEntry", _entry(endpoints=[{"address": "a.example"}])),
    ("ServiceEntry", _entry(endpoints=[{"address": "192.0.2.1", "ports": {"other": 1}}])),
    ("ServiceEntry", _entry(endpoints=[{"address": "unix:///a", "ports": {"http": 1}}])),
    ("ServiceEntry", _entry(ports=[_PORT, {**_PORT, "name": "other"}])),
    ("ServiceEntry", _entry(ports=[_PORT, {**_PORT, "number": 81}])),
    ("ServiceEntry", _entry(ports=[{**_PORT, "protocol": "FOO"}])),
    ("ServiceEntry", _entry(ports=[{**_PORT, "name": ""}])),
    ("WorkloadEntry", {"address": ""}),
    ("WorkloadEntry", {"address": "b c"}),
    ("WorkloadEntry", {"address": "192.0.2.1", "ports": {"a": 0}}),
    ("AuthorizationPolicy", {"action": "DENY"}),
    ("AuthorizationPolicy", {**_CUSTOM, "rules": []}),
    ("AuthorizationPolicy", {**_CUSTOM, "action": "ALLOW", "rules": [{}]}),
    ("AuthorizationPolicy", {**_CUSTOM, **_from(principals=["*"])}),
    ("AuthorizationPolicy", {**_CUSTOM, **_when("request.auth.claims[a]", "b")}),
    ("AuthorizationPolicy", _from(ipBlocks=["192.0.2.0/33"])),
    ("AuthorizationPolicy", _from(serviceAccounts=["a/b"], notNamespaces=["c"])),
    ("AuthorizationPolicy", _from(principals=["", "a"])),
    ("AuthorizationPolicy", _to(ports=["65536"])),
    ("AuthorizationPolicy", _when("source.user", "a")),
    ("AuthorizationPolicy", _when("request.headers[]", "a")),
    ("AuthorizationPolicy", _when("source.ip", "a")),
    ("AuthorizationPolicy", _when("destination.port", "http")),
    (
        "PeerAuthentication",
        {"selector": {"matchLabels": {"a": "b"}}, "portLevelMtls": {"0": {"mode": "STRICT"}}},
    ),
    ("RequestAuthentication", _jwt(issuer="")),
    ("RequestAuthentication", _jwt(issuer="a", jwksUri="ftp://a.example")),
    ("RequestAuthentication", _jwt(issuer="a", fromHeaders=[{"name": ""}])),
    ("Telemetry", {"tracing": [{"randomSamplingPercentage": 100.1}]}),
    ("Telemetry", _tag(operation="UPSERT")),
    ("Telemetry", _tag(operation="REMOVE", value="x")),
    ("WasmPlugin", {"url": "oci://a", "sha256": "a"}),
    ("ProxyConfig", {"concurrency": -1}),
)

TAKEN: tuple[tuple[str, dict[str, Any]], ...] = (
    ("VirtualService", _route(timeout="1h")),
    ("VirtualService", _route(retries={"attempts": 0})),
    ("VirtualService", _route(fault={"delay": {"fixedDelay": "5s", "percentage": {"value": 0}}})),
    ("VirtualService", {"hosts": ["a.example"], "http": [{"directResponse": {"status": 600}}]}),
    ("VirtualService", _weights(60, 60)),
    ("VirtualService", _weights(0)),
    *(
        ("VirtualService", _regex(value))
        for value in (r"(?i)/x", r"/x(?i)y", r"[[:alpha:]]+\pL\z", "[(?=]", "^*", r"\(?=a", "[]a]")
    ),
    *(
        ("VirtualService", {**_route(), "hosts": [host]})
        for host in ("short", "*.a.example", "*-x.example", "192.0.2.1", "A.Example", "a.example.")
    ),
    ("VirtualService", _tls("*.example", "x.example")),
    ("DestinationRule", _policy(portLevelSettings=[{"port": {}, "tls": {"mode": "SIMPLE"}}])),
    ("DestinationRule", _policy(outlierDetection={})),
    ("DestinationRule", _policy(tls={"mode": "MUTUAL", "credentialName": "a"})),
    *(
        ("Gateway", _gateway(host))
        for host in ("*", "a/*", "*/x.example", "./y.example", "192.0.2.1", "A.example")
    ),
    *(("Sidecar", {"egress": [{"hosts": [host]}]}) for host in ("./*", "~/*", "a/*.b.example")),
    *(("Sidecar", _ingress(address)) for address in ("127.0.0.1:1", "[::1]:80", "unix:///x")),
    ("ServiceEntry", _entry(hosts=["*.a.example"], resolution="NONE")),
    ("ServiceEntry", _entry(endpoints=[{"address": "2001:db8::1"}, {"network": "net"}])),
    ("ServiceEntry", _entry(addresses=["198.51.100.1/24"])),
    ("WorkloadEntry", {"address": "unix:///x"}),
    ("AuthorizationPolicy", {"action": "AUDIT"}),
    ("AuthorizationPolicy", {}),
    ("AuthorizationPolicy", {**_CUSTOM, **_from(ipBlocks=["2001:db8::/32"])}),
    ("AuthorizationPolicy", _to(ports=["0", "65535"])),
    ("AuthorizationPolicy", _when("request.auth.claims[a][b]", "c")),
    ("AuthorizationPolicy", _when("experimental.envoy.filters.a[b]", "c")),
    ("RequestAuthentication", _jwt(jwksUri="https://a.example/keys")),
    ("Telemetry", _tag(value="x")),
)


def _codes(kind: str, spec: dict[str, Any], folder: Path) -> list[str]:
    groups = {
        "AuthorizationPolicy": "security.istio.io/v1",
        "PeerAuthentication": "security.istio.io/v1",
        "RequestAuthentication": "security.istio.io/v1",
        "ProxyConfig": "networking.istio.io/v1beta1",
        "Telemetry": "telemetry.istio.io/v1",
        "WasmPlugin": "extensions.istio.io/v1alpha1",
    }
    written = {
        "apiVersion": groups.get(kind, "networking.istio.io/v1"),
        "kind": kind,
        "metadata": {"name": "written", "namespace": "shop"},
        "spec": spec,
    }
    file = folder / "written.json"
    file.write_text(json.dumps(written))
    return [finding.same_as for _, finding in findings(Facts(Manifests(file)), ["MNB1601"])]


@pytest.mark.parametrize(("kind", "spec"), REFUSED, ids=str)
def test_what_istiod_refuses_is_said(kind: str, spec: dict[str, Any], tmp_path: Path) -> None:
    assert set(_codes(kind, spec, tmp_path)) == {"IST0106"}


@pytest.mark.parametrize(("kind", "spec"), TAKEN, ids=str)
def test_what_istiod_takes_is_not_found_fault_with(
    kind: str, spec: dict[str, Any], tmp_path: Path
) -> None:
    assert _codes(kind, spec, tmp_path) == []
