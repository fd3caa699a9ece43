"""Checks of EnvoyFilters, Telemetries and what exportTo hides, on altered recordings.

What is altered is named in each test. Beside each fault stands what looks like it and is none.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from meshnb.checks import Severity
from meshnb.diagnosis import diagnose
from tests.alteration import Altered
from tests.checks.test_altered import (
    EARLIER,
    NOWHERE,
    SILENT,
    SINCE,
    assert_blamed,
    assert_explains,
    assert_harmless,
    problems,
)
from tests.checks.test_altered_injection import RATINGS, Object, blamed_first

# --- EnvoyFilters, Telemetries, exportTo --------------------------------------------------------


def envoy_filter(altered: Altered, name: str, spec: Object, changed: str = EARLIER) -> Altered:
    """Add an EnvoyFilter to what istiod holds, as EnvoyFilters are not listed in the recording."""

    def add(page: Any) -> None:
        page.append(
            {
                "kind": "EnvoyFilter",
                "apiVersion": "networking.istio.io/v1alpha3",
                "metadata": {
                    "name": name,
                    "namespace": "bookinfo",
                    "creationTimestamp": changed,
                },
                "spec": spec,
            }
        )

    return altered.pages(add, path="/debug/configz")


def _inserted(context: str, name: str) -> Object:
    return {
        "configPatches": [
            {
                "applyTo": "HTTP_FILTER",
                "match": {"context": context},
                "patch": {"operation": "INSERT_BEFORE", "value": {"name": name}},
            }
        ]
    }


def test_a_filter_that_no_proxy_holds_has_no_effect(healthy: Altered) -> None:
    """Altered: an EnvoyFilter is to insert an HTTP filter into the sidecars of bookinfo."""
    envoy_filter(healthy, "headers", _inserted("SIDECAR_INBOUND", "shop.headers"))
    assert_blamed(healthy, "MNB620", "A", "EnvoyFilter bookinfo/headers")


def test_a_filter_for_gateways_in_a_namespace_without_one_has_no_effect(healthy: Altered) -> None:
    """Altered: an EnvoyFilter of bookinfo is for gateways, and the gateway is elsewhere."""
    envoy_filter(healthy, "headers", _inserted("GATEWAY", "envoy.filters.http.cors"))
    diagnosis = assert_blamed(healthy, "MNB620", "A", "EnvoyFilter bookinfo/headers")
    assert "selects no proxy" in diagnosis.problems[0].finding.message


def test_a_filter_that_the_proxies_hold_is_well(healthy: Altered) -> None:
    """Altered: an EnvoyFilter inserts a filter that the sidecars have."""
    envoy_filter(healthy, "cors", _inserted("SIDECAR_INBOUND", "envoy.filters.http.cors"))
    assert_harmless(healthy)


def test_a_filter_chain_without_filters_is_the_envoy_filters_fault(healthy: Altered) -> None:
    """Altered: an EnvoyFilter took the connection manager out of the inbound chains of ratings."""
    envoy_filter(
        healthy,
        "cleanup",
        {
            "workloadSelector": {"labels": {"app": "ratings"}},
            "configPatches": [
                {
                    "applyTo": "NETWORK_FILTER",
                    "match": {"context": "SIDECAR_INBOUND"},
                    "patch": {"operation": "REMOVE"},
                }
            ],
        },
    )

    def empty(dump: Any) -> None:
        for section in dump["configs"]:
            for listener in section.get("dynamic_listeners", ()):
                if listener["name"] == "virtualInbound":
                    for chain in listener["active_state"]["listener"]["filter_chains"]:
                        if "9080" in chain.get("name", ""):
                            chain["filters"] = []

    healthy.pages(empty, port=15000, pod=RATINGS, path="/config_dump?include_eds")
    details = "upstream_reset_before_response_started{connection_termination}"
    healthy.at_client("ratings:9080", SINCE, code="503", flags="URX,UC", details=details, **SILENT)
    assert_explains(assert_blamed(healthy, "MNB621", "A", "EnvoyFilter bookinfo/cleanup"), 20)


def _providers(altered: Altered, *added: Object) -> Altered:
    return altered.pages(lambda page: page["extensionProviders"].extend(added), path="/debug/mesh")


ZIPKIN = {"name": "spans", "zipkin": {"service": "zipkin.nowhere.svc.cluster.local", "port": 9411}}
TRACED = {"tracing": [{"providers": [{"name": "spans"}]}]}


def test_a_provider_that_is_no_service_is_the_mesh_settings_fault(healthy: Altered) -> None:
    """Altered: a Telemetry sends traces to a provider whose Service does not exist."""
    _providers(healthy, ZIPKIN)
    healthy.add("telemetries", "traces", "bookinfo", EARLIER, spec=TRACED)
    blamed_first(healthy, "MNB622", "A", "ConfigMap istio-system/istio")


def test_a_provider_that_nobody_declared_is_the_telemetrys_fault(healthy: Altered) -> None:
    """Altered: a Telemetry sends traces to a provider that MeshConfig does not have."""
    healthy.add("telemetries", "traces", "bookinfo", EARLIER, spec=TRACED)
    blamed_first(healthy, "MNB622", "A", "Telemetry bookinfo/traces")


def test_a_declared_provider_that_nobody_uses_is_well(healthy: Altered) -> None:
    """Altered: MeshConfig declares a provider whose Service does not exist; nothing names it."""
    assert_harmless(_providers(healthy, ZIPKIN))


def test_the_younger_of_two_telemetries_has_no_effect(healthy: Altered) -> None:
    """Altered: bookinfo has two Telemetries without selector; another namespace has one."""
    spec = {"accessLogging": [{"providers": [{"name": "envoy"}]}]}
    healthy.add("telemetries", "first", "bookinfo", "2026-11-23T02:39:00Z", spec=spec)
    healthy.add("telemetries", "second", "bookinfo", EARLIER, spec=spec)
    healthy.add("telemetries", "other", "legacy", EARLIER, spec=spec)
    blamed_first(healthy, "MNB623", "A", "Telemetry bookinfo/second")


def test_a_mesh_without_an_access_log_says_so(healthy: Altered) -> None:
    """Altered: MeshConfig asks for no access log, and none is there."""
    healthy.pages(lambda page: page.pop("accessLogFile"), path="/debug/mesh")
    healthy.texts(
        lambda text: "\n".join(line for line in text.split("\n") if not line.startswith("[20")),
        kind="log",
        container="istio-proxy",
    )
    codes = [cause.check.code for cause in diagnose(healthy.facts()).causes]
    assert codes == ["MNB624"]


BLOCKED = {
    "code": "502",
    "details": "direct_response",
    "cluster": "-",
    "route": "block_all",
    **NOWHERE,
}


def _exported(altered: Altered, scope: str) -> Altered:
    return altered.each(
        "services",
        "ratings",
        lambda one: (
            one["metadata"]
            .setdefault("annotations", {})
            .update({"networking.istio.io/exportTo": scope})
        ),
    )


@pytest.mark.parametrize("scope", [".", "~", "legacy,shop"])
def test_a_service_that_is_exported_to_others_is_not_known_to_its_callers(
    healthy: Altered, scope: str
) -> None:
    """Altered: ratings is kept from the namespace of its callers, who are blocked."""
    if scope == ".":
        healthy.each("services", "ratings", lambda one: one["metadata"].update(namespace="shop"))
        healthy.each("pods", "ratings", lambda one: one["metadata"].update(namespace="shop"))
        local = json.loads((healthy.folder / "kubernetes/services.json").read_text())["items"]
        address = next(
            one["spec"]["clusterIP"] for one in local if one["metadata"]["name"] == "ratings"
        )
        there = {**BLOCKED, "local": f"{address}:9080"}
        _exported(healthy, scope).at_client("ratings:9080", SINCE, **there)
        subject = "Service shop/ratings"
    else:
        _exported(healthy, scope).at_client("ratings:9080", SINCE, **BLOCKED)
        subject = "Service bookinfo/ratings"
    diagnosis = diagnose(healthy.facts())
    assert ("MNB640", "A", subject) == problems(diagnosis)[0], problems(diagnosis)
    assert_explains(diagnosis, 20)


def test_a_service_that_is_kept_from_the_gateway_is_blamed(healthy: Altered) -> None:
    """Altered: productpage is exported to its own namespace; the gateway routes to no cluster."""
    healthy.each(
        "services",
        "productpage",
        lambda one: one["metadata"].update(annotations={"networking.istio.io/exportTo": "."}),
    )
    healthy.at_client(
        "bookinfo.example.com",
        SINCE,
        pod="istio-ingressgateway",
        code="503",
        flags="NC",
        details="cluster_not_found",
        cluster="-",
        endpoint="-",
    )
    diagnosis = blamed_first(healthy, "MNB640", "A", "Service bookinfo/productpage")
    assert "istio-system" in diagnosis.problems[0].finding.message


@pytest.mark.parametrize("scope", ["*", "bookinfo"])
def test_a_service_that_is_exported_to_its_callers_is_well(healthy: Altered, scope: str) -> None:
    """Altered: ratings is exported, in so many words, to those who call it."""
    assert_harmless(_exported(healthy, scope))


def test_a_service_entry_that_is_kept_to_itself_is_blamed(healthy: Altered) -> None:
    """Altered: a ServiceEntry of another namespace is exported to that only."""
    spec = {
        "hosts": ["api.example.org"],
        "ports": [{"number": 80, "name": "http", "protocol": "HTTP"}],
        "resolution": "DNS",
        "exportTo": ["."],
    }
    healthy.add("serviceentries", "partner", "legacy", EARLIER, spec=spec)
    healthy.pages(
        lambda page: page["outboundTrafficPolicy"].update(mode="REGISTRY_ONLY"), path="/debug/mesh"
    )
    line = {**BLOCKED, "authority": "api.example.org", "path": "/v1", "local": "203.0.113.9:80"}
    healthy.request("client", "/ratings/0", since=SINCE, **line)
    blamed_first(healthy, "MNB640", "A", "ServiceEntry legacy/partner")


def test_a_hidden_service_that_is_reached_past_the_mesh_is_a_warning(healthy: Altered) -> None:
    """Altered: ratings is kept from its callers, whose proxies pass the bytes on, with success."""
    _exported(healthy, "legacy")
    address = next(
        one["spec"]["clusterIP"]
        for one in json.loads((healthy.folder / "kubernetes/services.json").read_text())["items"]
        if one["metadata"]["name"] == "ratings"
    )
    healthy.request(
        "client",
        "/ratings/0",
        since=SINCE,
        cluster="PassthroughCluster",
        route="allow_any",
        local=f"{address}:9080",
    )
    diagnosis = blamed_first(healthy, "MNB640", "A", "Service bookinfo/ratings")
    assert diagnosis.problems[0].severity is Severity.WARNING


def test_a_filter_for_proxies_of_another_version_is_left_alone(healthy: Altered) -> None:
    """Altered: an EnvoyFilter is for proxies of Istio 1.29 only."""
    spec = _inserted("SIDECAR_INBOUND", "shop.headers")
    spec["configPatches"][0]["match"]["proxy"] = {"proxyVersion": r"^1\.29.*"}
    assert_harmless(envoy_filter(healthy, "headers", spec), "MNB620")
