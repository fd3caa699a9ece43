"""The filters that istiod makes of AuthorizationPolicies and RequestAuthentications.

Written anew for tests, from what istiod sent to proxies in recordings and from Istio's reference
of the two kinds; it is no code under test. A field that it does not know is an error.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import Any

Json = Any

_STOCK = "type.googleapis.com/envoy.extensions.filters"
_ROOT = "istio-system"
_HTTP, _NETWORK = "envoy.filters.http.rbac", "envoy.filters.network.rbac"
_JWT, _ASK = "envoy.filters.http.jwt_authn", "envoy.filters.http.ext_authz"
_MADE = (_HTTP, _NETWORK, _JWT, _ASK)


class _OnlyHttp(Exception):
    """A field that connections without requests do not have."""


# --- Which policies are for which proxy --------------------------------------------------------


def selects(policy: Json, pod: Json) -> bool:
    """Whether a policy is for the sidecar or gateway of a pod."""
    spec, meta, labels = policy["spec"], pod["metadata"], pod["metadata"].get("labels") or {}
    if (policy["metadata"].get("labels") or {}).get("istio.io/rev"):
        return False
    targets = spec.get("targetRefs") or ([spec["targetRef"]] if "targetRef" in spec else [])
    if targets:
        gateway = labels.get("gateway.networking.k8s.io/gateway-name")
        near = policy["metadata"]["namespace"] == meta["namespace"]
        named = any(one["kind"] == "Gateway" and one["name"] == gateway for one in targets)
        return near and named
    if labels.get("gateway.istio.io/managed") == "istio.io-mesh-controller":
        return False  # a waypoint takes no policies by labels
    wanted = (spec.get("selector") or {}).get("matchLabels") or {}
    return (
        policy["metadata"]["namespace"] in (_ROOT, meta["namespace"])
        and wanted.items() <= labels.items()
    )


def changed_at(policy: Json) -> str:
    """Return when a policy was written last."""
    fields = policy["metadata"].get("managedFields") or []
    created = str(policy["metadata"]["creationTimestamp"])
    return max((str(one["time"]) for one in fields), default=created)


# --- What istiod makes of rules ------------------------------------------------------------------


def rule_name(namespace: str, name: str, index: int = 0) -> str:
    """Return the name that Envoy's policy has of a rule."""
    return f"ns[{namespace}]-policy[{name}]-rule[{index}]"


def text(value: str, begin: str = "") -> Json:
    """Return the matcher of a value that may begin or end with a star."""
    if value == "*":
        return {"safe_regex": {"regex": ".+"}}
    if value.startswith("*"):
        end = value[1:]
        return {"safe_regex": {"regex": f"{begin}.*{end}"}} if begin else {"suffix": end}
    if value.endswith("*"):
        return {"prefix": begin + value[:-1]}
    return {"exact": begin + value}


def _header(name: str, value: str) -> Json:
    return {"header": {"name": name, "string_match": text(value)}}


def _range(value: str) -> Json:
    address, _, bits = value.partition("/")
    return {"address_prefix": address, "prefix_len": int(bits or 32)}


def _principal(value: str) -> Json:
    return {"authenticated": {"principal_name": text(value, "spiffe://")}}


def _namespace(value: str) -> Json:
    regex = f".*/ns/{value.replace('*', '.*')}/.*"
    return {"authenticated": {"principal_name": {"safe_regex": {"regex": regex}}}}


def _claim(path: list[str], value: Json) -> Json:
    keys = [{"key": key} for key in ("payload", *path)]
    return {"metadata": {"filter": _JWT, "path": keys, "value": value}}


def _request_principal(value: str) -> Json:
    issuer, _, subject = value.rpartition("/") if "/" in value else (value, "", "*")
    pairs = (("iss", issuer), ("sub", subject))
    return {"and_ids": {"ids": [_claim([key], {"string_match": text(one)}) for key, one in pairs]}}


def _in_claim(path: list[str], value: str) -> Json:
    one, listed = (
        {"string_match": text(value)},
        {"list_match": {"one_of": {"string_match": text(value)}}},
    )
    return {"or_ids": {"ids": [_claim(path, one), _claim(path, listed)]}}


#: Fields of a source and keys of conditions that are about the caller, and whether they need HTTP.
_CALLER: dict[str, tuple[bool, Callable[[str], Json]]] = {
    "principals": (False, _principal),
    "namespaces": (False, _namespace),
    "ipBlocks": (False, lambda value: {"direct_remote_ip": _range(value)}),
    "remoteIpBlocks": (False, lambda value: {"remote_ip": _range(value)}),
    "requestPrincipals": (True, _request_principal),
}
_KEYS = {
    "source.principal": "principals",
    "source.namespace": "namespaces",
    "source.ip": "ipBlocks",
    "remote.ip": "remoteIpBlocks",
    "request.auth.principal": "requestPrincipals",
}
#: Fields of an operation, and whether they need HTTP.
_ASKED: dict[str, tuple[bool, Callable[[str], Json]]] = {
    "methods": (True, lambda value: _header(":method", value)),
    "paths": (True, lambda value: {"url_path": {"path": text(value)}}),
    "hosts": (True, lambda value: _header(":authority", value)),
    "ports": (False, lambda value: {"destination_port": int(value)}),
}


def _by_key(key: str) -> tuple[bool, Callable[[str], Json]]:
    if key in _KEYS:
        return _CALLER[_KEYS[key]]
    name = key[key.index("[") + 1 : -1]
    if key.startswith("request.headers["):
        return True, lambda value: _header(name, value)
    assert key.startswith("request.auth.claims["), f"no filter is known for {key}"
    return True, lambda value: _in_claim(name.split("]["), value)


class _Words:
    """The words of principals or of permissions."""

    def __init__(self, one: str, several: str) -> None:
        self.any_of, self.all_of, self.not_, self.several = (
            f"or_{several}",
            f"and_{several}",
            f"not_{one}",
            several,
        )

    def whole(self, parts: list[Json]) -> Json:
        return {self.all_of: {self.several: parts or [{"any": True}]}}

    def values(self, values: Iterable[Json], *, unless: bool) -> Json:
        found = {self.any_of: {self.several: list(values)}}
        return {self.not_: found} if unless else found


_IDS, _RULES = _Words("id", "ids"), _Words("rule", "rules")


def _fields(
    words: _Words,
    known: dict[str, tuple[bool, Callable[[str], Json]]],
    fields: Json,
    *,
    bytes_only: bool,
    drop: bool,
) -> list[Json]:
    parts: list[Json] = []
    for field, values in fields.items():
        unless = field.startswith("not")
        name = field[3].lower() + field[4:] if unless else field
        parts += _part(words, known[name], values, unless=unless, bytes_only=bytes_only, drop=drop)
    return parts


def _part(
    words: _Words,
    known: tuple[bool, Callable[[str], Json]],
    values: list[str],
    *,
    unless: bool,
    bytes_only: bool,
    drop: bool,
) -> Iterator[Json]:
    needs_http, write = known
    if not values:
        return
    if needs_http and bytes_only:
        if not drop:
            raise _OnlyHttp
        return
    yield words.values(map(write, values), unless=unless)


def envoy_policy(rule: Json, *, action: str = "ALLOW", bytes_only: bool = False) -> Json | None:
    """Return Envoy's policy of a rule; None where only requests could meet it.

    Of what only requests have, rules that deny lose the field, for connections that carry none;
    rules that allow are left out.
    """
    how = {"bytes_only": bytes_only, "drop": action != "ALLOW"}
    try:
        when: list[Json] = []
        for condition in rule.get("when") or []:
            known = _by_key(condition["key"])
            for field in ("values", "notValues"):
                values, unless = condition.get(field) or [], field == "notValues"
                when += _part(_IDS, known, values, unless=unless, **how)
        sources = [
            _IDS.whole(_fields(_IDS, _CALLER, one["source"], **how) + when)
            for one in rule.get("from") or [{"source": {}}]
        ]
        operations = [
            _RULES.whole(_fields(_RULES, _ASKED, one["operation"], **how))
            for one in rule.get("to") or [{"operation": {}}]
        ]
    except _OnlyHttp:
        return None
    return {"permissions": operations, "principals": sources}


# --- The filters ---------------------------------------------------------------------------------


def rbac(policies: Json, action: str = "ALLOW", *, bytes_only: bool = False, **config: Any) -> Json:
    """Return an RBAC filter with these policies of Envoy's."""
    rules = {"action": action} if action != "ALLOW" else {}
    if policies:
        rules["policies"] = copy.deepcopy(policies)
    kind = "network" if bytes_only else "http"
    return {
        "name": _NETWORK if bytes_only else _HTTP,
        "typed_config": {
            "@type": f"{_STOCK}.{kind}.rbac.v3.RBAC",
            "rules": rules,
            **({"stat_prefix": "tcp."} if bytes_only else {}),
            "shadow_rules_stat_prefix": "istio_dry_run_allow_",
            **config,
        },
    }


def _filters_of(policies: list[Json], action: str, *, bytes_only: bool) -> Iterator[Json]:
    """Yield the filter of the policies with an action; none where there are none."""
    in_force: Json = {}
    tried: Json = {}
    enforced = False
    for policy in policies:
        spec, meta = policy["spec"] or {}, policy["metadata"]
        if spec.get("action", "ALLOW") != action:
            continue
        trial = (meta.get("annotations") or {}).get("istio.io/dry-run") == "true"
        enforced = enforced or not trial
        for index, rule in enumerate(spec.get("rules") or []):
            made = envoy_policy(rule, action=action, bytes_only=bytes_only)
            if made is not None:
                name = rule_name(meta["namespace"], meta["name"], index)
                (tried if trial else in_force)[name] = made
    if not enforced and not tried:
        return
    envoys = {"AUDIT": "LOG", "CUSTOM": "DENY"}.get(action, action)
    if action == "CUSTOM":
        tried = {f"istio-ext-authz-{name}": made for name, made in in_force.items()}
        enforced = False
    found = rbac(in_force, envoys, bytes_only=bytes_only)
    config = found["typed_config"]
    if tried:
        prefix = "istio_ext_authz_" if action == "CUSTOM" else f"istio_dry_run_{envoys.lower()}_"
        config |= {"shadow_rules": {**config["rules"], "policies": tried}}
        config["shadow_rules_stat_prefix"] = prefix
    if not enforced:
        del config["rules"]
    yield found
    if action == "CUSTOM" and not bytes_only:
        key = {"filter": _HTTP, "path": [{"key": "istio_ext_authz_shadow_effective_policy_id"}]}
        value = {"string_match": {"prefix": "istio-ext-authz"}}
        yield {
            "name": _ASK,
            "typed_config": {
                "@type": f"{_STOCK}.http.ext_authz.v3.ExtAuthz",
                "filter_enabled_metadata": {**key, "value": value},
                "transport_api_version": "V3",
            },
        }


def _token_filter(policies: list[Json]) -> Iterator[Json]:
    """Yield the filter that verifies tokens; none where nobody asks for that."""
    rules = [rule for policy in policies for rule in policy["spec"].get("jwtRules") or []]
    providers = {}
    for number, rule in enumerate(rules):
        providers[f"origins-{number}"] = {
            "issuer": rule["issuer"],
            **({"audiences": rule["audiences"]} if "audiences" in rule else {}),
            "local_jwks": {"inline_string": rule.get("jwks", '{"keys":[]}')},
            "payload_in_metadata": "payload",
        }
    if not providers:
        return
    wanted = [{"provider_name": name} for name in providers]
    any_of = {"requires_any": {"requirements": [*wanted, {"allow_missing": {}}]}}
    yield {
        "name": _JWT,
        "typed_config": {
            "@type": f"{_STOCK}.http.jwt_authn.v3.JwtAuthentication",
            "providers": providers,
            "rules": [{"match": {"prefix": "/"}, "requires": any_of}],
        },
    }


def filters(policies: list[Json], tokens: list[Json], *, bytes_only: bool = False) -> list[Json]:
    """Return the filters of all policies that select a pod, in istiod's order."""
    found = [] if bytes_only else [*_token_filter(tokens)]
    for action in ("CUSTOM", "AUDIT", "DENY", "ALLOW"):
        found += _filters_of(policies, action, bytes_only=bytes_only)
    return found


def hold(listener: Json, policies: list[Json], tokens: list[Json]) -> None:
    """Let a listener for what comes in have the filters of these policies instead of its own."""
    for chain in listener.get("filter_chains", []):
        if chain.get("name") == "virtualInbound-blackhole":
            continue
        managers = [one["typed_config"] for one in chain["filters"] if _reads_http(one)]
        for manager in managers:
            kept = [one for one in manager["http_filters"] if one["name"] not in _MADE]
            manager["http_filters"] = filters(policies, tokens) + kept
        if not managers:
            kept = [one for one in chain["filters"] if one["name"] not in _MADE]
            chain["filters"] = filters(policies, tokens, bytes_only=True) + kept


def _reads_http(used: Json) -> bool:
    return "http_filters" in used.get("typed_config", {})


def later(one: str, other: str) -> str:
    """Return the later of two times, as they are written."""
    return max(one, other, key=datetime.fromisoformat)
