"""What istiod's validation refuses of objects that are about access, and of those beside a proxy.

These are AuthorizationPolicy, PeerAuthentication, RequestAuthentication, Telemetry, WasmPlugin and
ProxyConfig. After Istio's rules (pkg/config/validation, 1.30).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from meshnb.checks.base import and_list
from meshnb.checks.refused_values import Problem, address_problem
from meshnb.tables.base import Json, dig, items, mapping
from meshnb.traces.objects import Object, texts

_SHA256 = 64


def _one_target(item: Object) -> Iterator[Problem]:
    given = [name for name in ("selector", "targetRef", "targetRefs") if dig(item.spec, name)]
    if len(given) > 1:
        yield "spec", f"only one of {and_list(given)} may be there"


# --- AuthorizationPolicy ------------------------------------------------------------------------

_ADDRESSES = ("ipBlocks", "notIpBlocks", "remoteIpBlocks", "notRemoteIpBlocks")
#: What is known of a caller only after the filter that asks an authorization server.
_NOT_FOR_CUSTOM = (
    *("principals", "namespaces", "requestPrincipals", "serviceAccounts"),
    *("notPrincipals", "notNamespaces", "notRequestPrincipals", "notServiceAccounts"),
)
_KEYS_NOT_FOR_CUSTOM = ("source.principal", "source.namespace", "source.serviceAccount")
_KEYS = (
    *("source.ip", "remote.ip", "source.namespace", "source.principal", "source.serviceAccount"),
    *("destination.ip", "destination.port", "connection.sni"),
    *("request.auth.principal", "request.auth.audiences", "request.auth.presenter"),
)
_KEYS_WITH_NAME = re.compile(
    r"(?:request\.headers|request\.auth\.claims|experimental\.envoy\.filters\..+)\[.+\]"
)


def _authorization(item: Object) -> Iterator[Problem]:
    yield from _one_target(item)
    spec = item.spec
    custom = spec.get("action") == "CUSTOM"
    if custom and not mapping(spec, "provider").get("name"):
        yield "spec.provider", "CUSTOM needs a provider"
    if not custom and spec.get("provider") is not None:
        yield "spec.provider", "only CUSTOM has a provider"
    if spec.get("action") in ("DENY", "CUSTOM") and not items(spec, "rules"):
        yield "spec.rules", f"{spec.get('action')} without a rule is for no request"
    for number, rule in enumerate(items(spec, "rules")):
        path = f"spec.rules[{number}]"
        for position, one in enumerate(items(rule, "from")):
            place = f"{path}.from[{position}].source"
            yield from _source(mapping(one, "source"), place, custom=custom)
        for position, one in enumerate(items(rule, "to")):
            operation, place = mapping(one, "operation"), f"{path}.to[{position}].operation"
            yield from _listed(operation, place)
            for name in ("ports", "notPorts"):
                yield from _ports(texts(operation, name), f"{place}.{name}")
        for position, condition in enumerate(items(rule, "when")):
            yield from _condition(condition, f"{path}.when[{position}]", custom=custom)


def _listed(part: Mapping[str, Any], path: str) -> Iterator[Problem]:
    """Yield what is wrong with the lists that a source or an operation is made of."""
    if not any(part.values()):
        yield path, "it says nothing"
    for name in part:
        if "" in items(part, name):
            yield f"{path}.{name}", f"one of {name} is empty"


def _source(source: Mapping[str, Any], path: str, *, custom: bool) -> Iterator[Problem]:
    yield from _listed(source, path)
    for name in _ADDRESSES:
        for block in texts(source, name):
            yield from address_problem(block, f"{path}.{name}")
    if custom:
        for name in _NOT_FOR_CUSTOM:
            if items(source, name):
                yield f"{path}.{name}", f"CUSTOM cannot ask for {name}"
    for prefix in ("serviceAccounts", "notServiceAccounts"):
        if items(source, prefix) and any(
            items(source, name)
            for name in ("principals", "notPrincipals", "namespaces", "notNamespaces")
        ):
            yield f"{path}.{prefix}", "it does not go with principals or namespaces"


def _ports(ports: list[str] | tuple[str, ...], path: str) -> Iterator[Problem]:
    for port in ports:
        if port and not (port.isascii() and port.isdecimal() and int(port) < 65536):
            yield path, f"{port!r} is no port number"


def _condition(condition: Json, path: str, *, custom: bool) -> Iterator[Problem]:
    key = str(dig(condition, "key", default="") or "")
    values = [*texts(condition, "values"), *texts(condition, "notValues")]
    if not key:
        yield path, "it has no key"
        return
    if not values:
        yield path, "it has neither values nor notValues"
    if "" in values:
        yield path, "one of its values is empty"
    if key not in _KEYS and not _KEYS_WITH_NAME.fullmatch(key):
        yield f"{path}.key", f"{key!r} is nothing that a rule can ask for"
    if custom and (key in _KEYS_NOT_FOR_CUSTOM or key.startswith("request.auth.")):
        yield f"{path}.key", f"CUSTOM cannot ask for {key}"
    if key in ("source.ip", "remote.ip", "destination.ip"):
        for value in filter(None, values):
            yield from address_problem(value, path)
    if key == "destination.port":
        yield from _ports(values, path)


# --- Others -------------------------------------------------------------------------------------


def _peer_authentication(item: Object) -> Iterator[Problem]:
    chosen = mapping(item.spec, "selector", "matchLabels")
    ports = mapping(item.spec, "portLevelMtls")
    if not chosen and ports:
        yield "spec.portLevelMtls", "only a PeerAuthentication with a selector may set ports"
    for port in map(str, ports):
        if port.isdecimal() and not 0 < int(port) < 65536:
            yield "spec.portLevelMtls", f"{port} is no port number"


def _request_authentication(item: Object) -> Iterator[Problem]:
    yield from _one_target(item)
    for number, rule in enumerate(items(item.spec, "jwtRules")):
        path = f"spec.jwtRules[{number}]"
        address = str(dig(rule, "jwksUri", default="") or "")
        if not address and not dig(rule, "issuer"):
            yield path, "it has neither issuer nor jwksUri"
        if address and _scheme(address) not in ("http", "https"):
            yield f"{path}.jwksUri", f"{address!r} is no address of HTTP"
        for position, header in enumerate(items(rule, "fromHeaders")):
            if not dig(header, "name"):
                yield f"{path}.fromHeaders[{position}]", "it has no name"
        for name in ("fromParams", "audiences"):
            if "" in items(rule, name):
                yield f"{path}.{name}", f"one of {name} is empty"


def _scheme(address: str) -> str:
    """Return the scheme of an address, empty where it is none."""
    try:
        return urlsplit(address).scheme
    except ValueError:
        return ""


def _telemetry(item: Object) -> Iterator[Problem]:
    yield from _one_target(item)
    for number, tracing in enumerate(items(item.spec, "tracing")):
        share = dig(tracing, "randomSamplingPercentage")
        if isinstance(share, int | float) and not 0 <= share <= 100:
            path = f"spec.tracing[{number}].randomSamplingPercentage"
            yield path, f"{share} is not between 0 and 100 percent"
    for number, metrics in enumerate(items(item.spec, "metrics")):
        for position, override in enumerate(items(metrics, "overrides")):
            for tag, change in mapping(override, "tagOverrides").items():
                upsert = dig(change, "operation", default="UPSERT") == "UPSERT"
                path = f"spec.metrics[{number}].overrides[{position}].tagOverrides.{tag}"
                if upsert and not dig(change, "value"):
                    yield path, "UPSERT needs a value"
                if not upsert and dig(change, "value"):
                    yield path, "only UPSERT has a value"


def _wasm_plugin(item: Object) -> Iterator[Problem]:
    yield from _one_target(item)
    if not item.spec.get("url"):
        yield "spec.url", "there is no address"
    digest = item.spec.get("sha256")
    if isinstance(digest, str) and digest and len(digest) != _SHA256:
        yield "spec.sha256", f"it has {len(digest)} characters instead of {_SHA256}"


def _proxy_config(item: Object) -> Iterator[Problem]:
    threads = item.spec.get("concurrency")
    if isinstance(threads, int) and threads < 0:
        yield "spec.concurrency", f"{threads} is negative"


POLICIES: Mapping[str, Callable[[Object], Iterator[Problem]]] = {
    "AuthorizationPolicy": _authorization,
    "PeerAuthentication": _peer_authentication,
    "ProxyConfig": _proxy_config,
    "RequestAuthentication": _request_authentication,
    "Telemetry": _telemetry,
    "WasmPlugin": _wasm_plugin,
}
