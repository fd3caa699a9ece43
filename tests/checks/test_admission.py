"""Checks of what proxies hold to refuse callers by, on recordings altered in one respect each."""

from __future__ import annotations

import base64
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from meshnb.diagnosis import diagnose
from tests.alteration import Altered, metadata
from tests.checks.test_altered import (
    CHANGED,
    DENIED,
    EARLIER,
    NOWHERE,
    RATINGS,
    SINCE,
    assert_blamed,
    assert_explains,
    problems,
)

_TYPE = "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC"
_PLUGIN = "extenstions.istio.io/wasmplugin/bookinfo.guard"
_NOBODY = {"@type": _TYPE, "rules": {}}
_REFUSED = {"code": "403", "details": DENIED.format("none"), **NOWHERE}


@pytest.fixture
def healthy(tmp_path: Path) -> Altered:
    """Return the recording of a healthy mesh, to be altered; each test says what proxies hold."""
    return Altered("healthy", tmp_path, delivered=False)


def _store(altered: Altered, kind: str, name: str, changed: str, spec: dict[str, Any]) -> None:
    """Let Kubernetes and istiod have an object."""
    group = "extensions.istio.io/v1alpha1" if kind == "WasmPlugin" else "security.istio.io/v1"
    resource = {"WasmPlugin": "wasmplugins"}.get(kind, "authorizationpolicies")
    item = {
        "apiVersion": group,
        "kind": kind,
        "metadata": metadata(name, "bookinfo", changed),
        "spec": spec,
    }
    altered.add(resource, name, "bookinfo", changed, spec=spec)
    altered.pages(lambda page: page.append(item), path="/debug/configz")


def _section(dump: Any, name: str) -> dict[str, Any] | None:
    return next((part for part in dump["configs"] if part["@type"].endswith(f".{name}")), None)


def _at(altered: Altered, app: str, change: Callable[[Any], None]) -> Altered:
    """Change the config dump of the proxies of an app."""

    def chosen(dump: Any) -> None:
        bootstrap = _section(dump, "BootstrapConfigDump")
        assert bootstrap is not None
        if f"~{app}-" in bootstrap["bootstrap"]["node"]["id"]:
            change(dump)

    return altered.pages(chosen, port=15000, path="/config_dump?include_eds")


def _managers(dump: Any) -> list[dict[str, Any]]:
    """Return the inbound HTTP connection managers of a dump."""
    listeners = _section(dump, "ListenersConfigDump")
    assert listeners is not None
    inbound = [
        entry["active_state"]["listener"]
        for entry in listeners["dynamic_listeners"]
        if entry["name"] == "virtualInbound"
    ]
    return [
        used["typed_config"]
        for listener in inbound
        for chain in listener["filter_chains"]
        for used in chain["filters"]
        if used["name"] == "envoy.filters.network.http_connection_manager"
    ]


def _insert(*filters: dict[str, Any]) -> Callable[[Any], None]:
    def change(dump: Any) -> None:
        managers = _managers(dump)
        assert managers
        for manager in managers:
            manager["http_filters"][:0] = filters

    return change


def _with_plugin(altered: Altered, config: dict[str, Any]) -> Altered:
    """Let ratings have a WasmPlugin, and what its agent made of it."""
    discovered = {
        "name": _PLUGIN,
        "config_discovery": {"config_source": {"ads": {}}, "type_urls": [_TYPE]},
    }

    def deliver(dump: Any) -> None:
        _insert(discovered)(dump)
        extension = {
            "@type": "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig",
            "name": _PLUGIN,
            "typed_config": config,
        }
        dump["configs"].append(
            {
                "@type": "type.googleapis.com/envoy.admin.v3.EcdsConfigDump",
                "ecds_filters": [{"version_info": "1", "ecds_filter": extension}],
            }
        )

    spec = {**RATINGS, "url": "oci://registry.example/guard:1", "failStrategy": "FAIL_CLOSE"}
    _store(altered, "WasmPlugin", "guard", CHANGED, spec)
    return _at(altered, "ratings", deliver)


def _refuse_ratings(altered: Altered) -> Altered:
    return altered.at_server("ratings:9080", SINCE, **_REFUSED)


def test_a_wasm_module_that_is_missing_refuses_everybody(healthy: Altered) -> None:
    """Altered: ratings has a WasmPlugin whose module was not loaded, and answers 403."""
    diagnosis = assert_blamed(
        _refuse_ratings(_with_plugin(healthy, _NOBODY)), "MNB550", "A", "WasmPlugin bookinfo/guard"
    )
    assert_explains(diagnosis, 20)
    message = diagnosis.problems[0].finding.message
    assert "oci://registry.example/guard:1" in message
    assert message.endswith("and they refuse every request.")


def test_a_wasm_module_is_blamed_and_no_policy_that_admits_the_caller(healthy: Altered) -> None:
    """Altered: as above; beside it stands an AuthorizationPolicy that admits everybody."""
    name = "ns[bookinfo]-policy[everybody]-rule[0]"
    anybody = {"permissions": [{"any": True}], "principals": [{"any": True}]}
    rules = {"@type": _TYPE, "rules": {"policies": {name: anybody}}}
    _with_plugin(healthy, _NOBODY)
    _at(healthy, "ratings", _insert({"name": "envoy.filters.http.rbac", "typed_config": rules}))
    spec = {**RATINGS, "rules": [{}]}
    _store(healthy, "AuthorizationPolicy", "everybody", EARLIER, spec)

    assert_blamed(_refuse_ratings(healthy), "MNB550", "A", "WasmPlugin bookinfo/guard")


def test_an_allow_policy_is_blamed_where_no_module_is_missing(healthy: Altered) -> None:
    """Altered: an AuthorizationPolicy admits POST only; a WasmPlugin stands there and is loaded."""
    wasm = {
        "@type": "type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm",
        "config": {"name": "guard"},
    }
    name = "ns[bookinfo]-policy[writers]-rule[0]"
    post = {"header": {"name": ":method", "string_match": {"exact": "POST"}}}
    policy = {"permissions": [post], "principals": [{"any": True}]}
    rules = {"@type": _TYPE, "rules": {"policies": {name: policy}}}
    _with_plugin(healthy, wasm)
    _at(healthy, "ratings", _insert({"name": "envoy.filters.http.rbac", "typed_config": rules}))
    spec = {**RATINGS, "rules": [{"to": [{"operation": {"methods": ["POST"]}}]}]}
    _store(healthy, "AuthorizationPolicy", "writers", CHANGED, spec)

    found = problems(diagnose(_refuse_ratings(healthy).facts()))
    assert found[:1] == [("MNB502", "A", "AuthorizationPolicy bookinfo/writers")]
    assert "MNB550" not in [code for code, _, _ in found]


def test_a_module_that_is_left_out_is_told_of(healthy: Altered) -> None:
    """Altered: the plugin fails open; requests pass, and the agent put a filter without rules."""
    found = problems(diagnose(_with_plugin(healthy, {"@type": _TYPE}).facts()))
    assert found == [("MNB550", "A", "WasmPlugin bookinfo/guard")]


def test_rules_of_an_envoy_filter_are_found_behind_a_refusal(healthy: Altered) -> None:
    """Altered: an EnvoyFilter puts an RBAC filter without rules into ratings, which answers 403."""
    value = {"name": "own-rules", "typed_config": _NOBODY}
    patch = {
        "applyTo": "HTTP_FILTER",
        "match": {"context": "SIDECAR_INBOUND"},
        "patch": {"operation": "INSERT_FIRST", "value": value},
    }
    spec = {"workloadSelector": {"labels": {"app": "ratings"}}, "configPatches": [patch]}
    item = {
        "apiVersion": "networking.istio.io/v1alpha3",
        "kind": "EnvoyFilter",
        "metadata": metadata("own-rules", "bookinfo", CHANGED),
        "spec": spec,
    }
    healthy.pages(lambda page: page.append(item), path="/debug/configz")
    _at(healthy, "ratings", _insert(value))

    found = problems(diagnose(_refuse_ratings(healthy).facts()))
    assert found[:1] == [("MNB553", "A", "EnvoyFilter bookinfo/own-rules")]


def _certificate(name: str) -> str:
    """Return a certificate with a SPIFFE name, as a dump has it."""
    key = ec.generate_private_key(ec.SECP256R1())
    nobody = x509.Name([])
    ends = datetime(2026, 11, 24, tzinfo=UTC)
    found = (
        x509.CertificateBuilder()
        .subject_name(nobody)
        .issuer_name(nobody)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(ends - timedelta(days=2))
        .not_valid_after(ends)
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(name)]), critical=True
        )
        .sign(key, hashes.SHA256())
    )
    return base64.b64encode(found.public_bytes(serialization.Encoding.PEM)).decode()


def _admitting(altered: Altered, *domains: str) -> Altered:
    """Let ratings admit the service account of its callers, of some trust domains."""
    accounts = ("reviews", "default")
    names = [f"{domain}/ns/bookinfo/sa/{account}" for domain in domains for account in accounts]
    ids = [{"authenticated": {"principal_name": {"exact": f"spiffe://{name}"}}} for name in names]
    policy = {"permissions": [{"any": True}], "principals": [{"or_ids": {"ids": ids}}]}
    rules = {"policies": {"ns[bookinfo]-policy[callers]-rule[0]": policy}}
    filter_ = {"name": "envoy.filters.http.rbac", "typed_config": {"@type": _TYPE, "rules": rules}}
    _at(altered, "ratings", _insert(filter_))
    spec = {**RATINGS, "rules": [{"from": [{"source": {"principals": names[:2]}}]}]}
    _store(altered, "AuthorizationPolicy", "callers", EARLIER, spec)
    return altered


def test_a_caller_of_a_former_trust_domain_is_told_from_a_wrong_name(healthy: Altered) -> None:
    """Altered: the mesh's trust domain is new, the callers' certificates are of the former one.

    The rules of ratings name the new one only, and it answers 403.
    """

    def renewed(dump: Any) -> None:
        secrets = _section(dump, "SecretsConfigDump")
        assert secrets is not None
        for entry in secrets["dynamic_active_secrets"]:
            if entry["name"] == "default":
                name = "spiffe://new.example/ns/bookinfo/sa/ratings"
                chain = entry["secret"]["tls_certificate"]["certificate_chain"]
                chain["inline_bytes"] = _certificate(name)

    _at(_admitting(healthy, "new.example"), "ratings", renewed)
    healthy.pages(lambda page: page.update(trustDomain="new.example"), path="/debug/mesh")

    found = problems(diagnose(_refuse_ratings(healthy).facts()))
    assert found[:1] == [("MNB551", "A", "ConfigMap istio-system/istio")], found


def test_trust_domains_that_are_known_as_the_same_are_no_fault(healthy: Altered) -> None:
    """Altered: as above, but the rules name both trust domains, and nothing is refused."""
    _admitting(healthy, "new.example", "cluster.local")
    healthy.pages(
        lambda page: page.update(trustDomain="new.example", trustDomainAliases=["cluster.local"]),
        path="/debug/mesh",
    )
    assert "MNB551" not in [code for code, _, _ in problems(diagnose(healthy.facts()))]


def test_a_policy_that_a_proxy_does_not_hold_has_no_effect(healthy: Altered) -> None:
    """Altered: istiod has had a policy for ratings since long, and the proxy does not have it."""
    spec = {**RATINGS, "action": "DENY", "rules": [{"to": [{"operation": {"paths": ["/no"]}}]}]}
    _store(healthy, "AuthorizationPolicy", "no", EARLIER, spec)
    found = problems(diagnose(healthy.facts()))
    assert found == [("MNB552", "B", "AuthorizationPolicy bookinfo/no")]


@pytest.mark.parametrize(
    "item",
    [
        # It came a moment ago.
        {"changed": "2026-11-23T02:49:16Z", "spec": {"action": "DENY", "rules": [{}]}},
        # istiod makes nothing of it that has a name.
        {"changed": EARLIER, "spec": {"action": "AUDIT", "rules": [{}]}},
        # It is for the waypoint of a Service, not for the sidecars of its pods.
        {
            "changed": EARLIER,
            "spec": {
                "selector": None,
                "targetRefs": [{"kind": "Service", "name": "ratings"}],
                "rules": [{}],
            },
        },
        # It is for other workloads.
        {"changed": EARLIER, "spec": {"selector": {"matchLabels": {"app": "x"}}, "rules": [{}]}},
    ],
)
def test_a_policy_that_no_proxy_needs_to_hold_is_no_fault(
    healthy: Altered, item: dict[str, Any]
) -> None:
    """Altered: a policy is added that has not come yet, has no rules in proxies, or no pods."""
    spec = {**RATINGS, **item["spec"]}
    _store(healthy, "AuthorizationPolicy", "no", item["changed"], spec)
    codes = [cause.check.code for cause in diagnose(healthy.facts()).causes]
    assert "MNB552" not in codes


def test_a_call_of_grpc_that_a_policy_denies_is_a_failure_in_spite_of_its_status(
    healthy: Altered,
) -> None:
    """Altered: ratings is called by gRPC, and a DENY policy refuses: 200, and the details."""
    name = "ns[bookinfo]-policy[no]-rule[0]"
    anybody = {"permissions": [{"any": True}], "principals": [{"any": True}]}
    rules = {"@type": _TYPE, "rules": {"action": "DENY", "policies": {name: anybody}}}
    _at(healthy, "ratings", _insert({"name": "envoy.filters.http.rbac", "typed_config": rules}))
    spec = {**RATINGS, "action": "DENY", "rules": [{}]}
    _store(healthy, "AuthorizationPolicy", "no", CHANGED, spec)
    healthy.at_server("ratings:9080", SINCE, code="200", details=DENIED.format(name), **NOWHERE)
    found = problems(diagnose(healthy.facts()))
    assert found[:1] == [("MNB501", "A", "AuthorizationPolicy bookinfo/no")], found
