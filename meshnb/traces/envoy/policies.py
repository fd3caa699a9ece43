"""What the policies of a filter chain decide about one arrival: admitted, refused, or not known.

The filters are gone through in their order, as Envoy does: tokens first, then CUSTOM, DENY and
ALLOW rules. A filter whose decision is made elsewhere (by an external server, or by code) leaves
it open what becomes of the arrival, and the filters behind it are still evaluated, because what
they refuse is refused in any case. Filters that are no policies are passed over here: faults,
rate limits and CORS are in ``http_filters``, whose filters :func:`decide` takes one by one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from meshnb.tables.base import Json, dig, items, mapping
from meshnb.tables.rbac_rules import is_custom
from meshnb.traces.envoy.arrival import Arrival
from meshnb.traces.envoy.configs import ProxyConfig, unwrapped
from meshnb.traces.envoy.http_filters import Filter, filters_for
from meshnb.traces.envoy.matchers import (
    Headers,
    Truth,
    Undecided,
    matches_value,
)
from meshnb.traces.envoy.rbac import NONE, Miss, Ruling, policy_object, rule_on, rule_words
from meshnb.traces.envoy.route_match import matches_plainly
from meshnb.traces.envoy.tokens import FILTER as JWT_FILTER
from meshnb.traces.envoy.tokens import WRONG_AUDIENCE, authenticate, without

#: What Envoy prints before the policy that refused, for requests and for connections.
RBAC_DENIED = "rbac_access_denied_matched_policy"
JWT_DENIED = "jwt_authn_access_denied"


@dataclass(frozen=True, slots=True)
class Refusal:
    """How a proxy refuses: with a status and details for a request, with details only for others.

    Details that end in an ellipsis are known so far only.
    """

    status: int | None
    details: str
    flags: frozenset[str] = frozenset()

    def is_of(self, details: str) -> bool:
        """Whether the details of a line of an access log may be of this refusal."""
        if self.details.endswith("…"):
            return details.startswith(self.details[:-1])
        return details == self.details


@dataclass(frozen=True, slots=True)
class Decision:
    """What one filter decides. ``outcome`` is that of a hop: passed, stopped or undecided.

    ``possible`` is how it refuses, or may refuse when that is undecided; it is empty when nothing
    is known of that.
    """

    filter: str
    kind: str
    outcome: str
    says: str
    #: Envoy's name of the policy that decided, ``ns[…]-policy[…]-rule[…]``
    policy: str = ""
    #: the Istio object that it was made from, such as ``AuthorizationPolicy shop/callers``
    object: str = ""
    possible: tuple[Refusal, ...] = ()
    #: of a refusal because no rule admits: the rule that came nearest
    nearest: Miss | None = None
    #: what rules in dry run would have decided
    dry_run: Ruling | None = None

    @property
    def refusal(self) -> Refusal | None:
        """How it refuses, when that is known."""
        stopped = self.outcome == "stopped" and len(self.possible) == 1
        return self.possible[0] if stopped else None


@dataclass(frozen=True, slots=True)
class Decisions:
    """What all filters decide, up to the first that refuses."""

    decisions: tuple[Decision, ...]
    #: the arrival as it goes on: with what the filters wrote down
    arrival: Arrival

    @property
    def deciding(self) -> Decision | None:
        """The filter that refuses, or else the first that is undecided."""
        for outcome in ("stopped", "undecided"):
            for one in self.decisions:
                if one.outcome == outcome:
                    return one
        return None

    @property
    def outcome(self) -> str:
        """``passed``, ``stopped`` (whoever refuses) or ``undecided``."""
        return "passed" if self.deciding is None else self.deciding.outcome

    @property
    def refusal(self) -> Refusal | None:
        """How it is refused, when that is known for sure."""
        first = next((one for one in self.decisions if one.outcome != "passed"), None)
        return None if first is None else first.refusal

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why it cannot be decided: one reason for each filter that is undecided."""
        return tuple(one.says for one in self.decisions if one.outcome == "undecided")

    def may_be(self, details: str | None) -> bool:
        """Whether a line with these details, None for one that was not refused, may come of it."""
        if any(one.outcome == "undecided" and not one.possible for one in self.decisions):
            return True
        if details is None:
            return self.outcome != "stopped"
        return any(how.is_of(details) for one in self.decisions for how in one.possible)


def deciding(
    chain: Json, arrival: Arrival, config: ProxyConfig, own: tuple[Mapping[str, Any], ...] = ()
) -> Decisions:
    """Return what the policies of a filter chain of a proxy decide.

    ``own`` are the ``typed_per_filter_config`` of weighted cluster, route, virtual host and route
    configuration, the most specific first.
    """
    connected, manager = connecting(chain, arrival, config)
    if connected.outcome == "stopped":
        return connected
    requested = gone_through(filters_for(manager, config, own), arrival)
    return Decisions((*connected.decisions, *requested.decisions), requested.arrival)


def connecting(
    chain: Json, arrival: Arrival, config: ProxyConfig
) -> tuple[Decisions, Mapping[str, Any]]:
    """Return what the network filters of a chain decide, and its HTTP connection manager.

    That is empty for a chain of bare connections.
    """
    found: list[Filter] = []
    manager: Mapping[str, Any] = {}
    # Network filters have the same fields as HTTP filters, and the same discovery.
    for one in filters_for({"http_filters": items(chain, "filters")}, config, ()):
        if _type(one.config).endswith("HttpConnectionManager"):
            manager = one.config
            break
        found.append(one)
    bare = replace(arrival, headers=Headers(complete=True))
    return gone_through(found, bare), manager


def filter_configs(chain: Json, config: ProxyConfig) -> Iterator[Mapping[str, Any]]:
    """Yield the configuration of each network and HTTP filter of a chain, as it is in force."""
    for one in filters_for({"http_filters": items(chain, "filters")}, config, ()):
        yield unwrapped(one.config)
        if _type(one.config).endswith("HttpConnectionManager"):
            yield from (unwrapped(http.config) for http in filters_for(one.config, config, ()))


def gone_through(filters: Iterable[Filter], arrival: Arrival) -> Decisions:
    """Return what some filters decide, one after the other, up to the first that refuses."""
    decisions: list[Decision] = []
    for one in filters:
        decision, arrival = decide(one, arrival)
        if decision is not None:
            decisions.append(decision)
            if decision.outcome == "stopped":
                break
    return Decisions(tuple(decisions), arrival)


# --- One filter ----------------------------------------------------------------------------------


def decide(one: Filter, arrival: Arrival) -> tuple[Decision | None, Arrival]:
    """Return what one filter decides, None for one that is no policy, and the arrival behind it.

    The arrival behind it has what the filter wrote down, which later filters read.
    """
    if one.unknown:
        refusal = Refusal(500, "filter_config_not_found", frozenset({"NFCF"}))
        says = f"Cannot decide, because {one.unknown}."
        return Decision(one.name, one.kind, "undecided", says, possible=(refusal,)), arrival
    config, own = unwrapped(one.config), unwrapped(one.own)
    kind = _type(config)
    if kind.endswith((".http.rbac.v3.RBAC", ".network.rbac.v3.RBAC")):
        return _rbac(one.name, config, own, arrival)
    if kind.endswith(".JwtAuthentication"):
        return _jwt(one.name, config, own, arrival)
    if kind == "istio.envoy.config.filter.http.authn.v2alpha1.FilterConfig":
        return None, arrival.noted("istio_authn", _istio_authn(arrival))
    if dig(own, "disabled") is True:
        return None, arrival
    if kind.endswith(".ExtAuthz"):
        return _ext_authz(one.name, config, arrival), arrival
    if kind in _NO_POLICIES or _statistics(config):
        return None, arrival
    short = kind.rpartition(".")[2]
    reason = _OPAQUE.get(short, f"what the filter {one.name} does is not evaluated offline")
    return Decision(one.name, short, "undecided", f"Cannot decide, because {reason}."), arrival


def _type(config: Json) -> str:
    return str(mapping(config).get("@type", "")).rpartition("/")[2]


#: Filters that refuse nobody, or for another reason than who asks for what.
_NO_POLICIES = frozenset(
    f"envoy.extensions.filters.{name}"
    for name in (
        "http.buffer.v3.Buffer",
        "http.compressor.v3.Compressor",
        "http.connect_grpc_bridge.v3.FilterConfig",
        "http.cors.v3.Cors",
        "http.decompressor.v3.Decompressor",
        "http.fault.v3.HTTPFault",
        "http.grpc_stats.v3.FilterConfig",
        "http.grpc_web.v3.GrpcWeb",
        "http.header_mutation.v3.HeaderMutation",
        "http.local_ratelimit.v3.LocalRateLimit",
        "http.router.v3.Router",
        "http.set_filter_state.v3.Config",
        "http.stateful_session.v3.StatefulSession",
        "network.connection_limit.v3.ConnectionLimit",
        "network.local_ratelimit.v3.LocalRateLimit",
        "network.mongo_proxy.v3.MongoProxy",
        "network.mysql_proxy.v3.MySQLProxy",
        "network.redis_proxy.v3.RedisProxy",
        "network.set_filter_state.v3.Config",
        "network.sni_cluster.v3.SniCluster",
        "network.tcp_proxy.v3.TcpProxy",
    )
) | {
    # Istio's own: statistics, the workloads' metadata, ALPN towards the server, HBONE.
    "envoy.tcp.metadataexchange.config.MetadataExchange",
    "io.istio.http.peer_metadata.Config",
    "istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig",
    "io.istio.http.connect_authority.Config",
    "stats.PluginConfig",
}

#: Why what a filter decides is not in its configuration.
_OPAQUE: Mapping[str, str] = {
    "Wasm": "a Wasm module decides, whose code is not evaluated offline",
    "Lua": "a Lua script decides, which is not evaluated offline",
    "ExternalProcessor": "an external processor decides",
    "RateLimit": "a rate limit service decides",
    "DynamicModuleFilter": "a dynamic module decides, whose code is not evaluated offline",
    "OAuth2": "an OAuth server decides",
}


def _statistics(config: Json) -> bool:
    """Whether a Wasm filter is one of Istio's own, of before they had types of their own."""
    code = dig(config, "config", "vm_config", "code", "local", "inline_string")
    return code in ("envoy.wasm.stats", "envoy.wasm.metadata_exchange")


# --- Tokens --------------------------------------------------------------------------------------


def _jwt(name: str, config: Json, own: Json, arrival: Arrival) -> tuple[Decision | None, Arrival]:
    if dig(own, "disabled") is True:
        return None, arrival

    def matches(match: Json) -> Truth:
        return matches_plainly(match, arrival.headers)

    asked = dig(own, "requirement_name")
    requirement = asked if isinstance(asked, str) else None
    found = authenticate(config, arrival.headers, arrival.time, matches, requirement)
    error = found.error
    if isinstance(error, Undecided):
        says = f"Cannot decide whether its token is accepted, because {error.reason}."
        refusal = Refusal(_status(401, arrival.headers), f"{JWT_DENIED}{{…")
        noted = {**arrival.metadata, JWT_FILTER: Undecided(error.reason)}
        decision = Decision(name, "JWT", "undecided", says, possible=(refusal,))
        return decision, replace(arrival, metadata=noted)
    if error:
        status = _status(403 if error == WRONG_AUDIENCE else 401, arrival.headers)
        refusal = Refusal(status, f"{JWT_DENIED}{{{_printed(error)}}}")
        return Decision(name, "JWT", "stopped", f"{error}.", possible=(refusal,)), arrival
    says = "Its token is accepted." if found.payloads else "No token is demanded, none is refused."
    after = arrival.noted(JWT_FILTER, found.payloads)
    after = replace(after, headers=without(arrival.headers, found.dropped))
    return Decision(name, "JWT", "passed", says), after


def _status(status: int, headers: Headers) -> int:
    """Return the status of a refusal: a call of gRPC is answered 200, with a status of its own."""
    kind = headers.get("content-type")
    grpc = isinstance(kind, str) and re.match(r"application/grpc(?:\+|$)", kind)
    return 200 if grpc else status


def _printed(text: str) -> str:
    """Return a text as Envoy prints it into details: without spaces."""
    return re.sub(r"\s", "_", text)


def _istio_authn(arrival: Arrival) -> Mapping[str, Any]:
    """Return what Istio's filter, which older proxies have, writes down of certificate and token.

    Claims are lists of texts there (``istio.authn`` of Istio 1.21 and before).
    """
    tokens = arrival.metadata.get(JWT_FILTER)
    if isinstance(tokens, Undecided) or isinstance(arrival.names, Undecided):
        unknown = tokens if isinstance(tokens, Undecided) else arrival.names
        return dict.fromkeys(_AUTHN_KEYS, unknown)
    noted: dict[str, Any] = {}
    if arrival.names:
        noted["source.principal"] = arrival.names[0].removeprefix("spiffe://")
    for payload in mapping(tokens).values():
        claims = mapping(payload)
        noted["request.auth.principal"] = f"{claims.get('iss', '')}/{claims.get('sub', '')}"
        noted["request.auth.claims"] = {
            name: [str(one) for one in (value if isinstance(value, list) else [value])]
            for name, value in claims.items()
            if isinstance(value, str | list)
        }
        if "aud" in claims:
            aud = claims["aud"]
            several = aud if isinstance(aud, list) else [aud]
            noted["request.auth.audiences"] = ",".join(map(str, several))
        if "azp" in claims:
            noted["request.auth.presenter"] = claims["azp"]
    return noted


_AUTHN_KEYS = (
    "source.principal",
    "request.auth.principal",
    "request.auth.claims",
    "request.auth.audiences",
    "request.auth.presenter",
)


# --- Rules ---------------------------------------------------------------------------------------


def _rbac(
    name: str, config: Mapping[str, Any], own: Json, arrival: Arrival
) -> tuple[Decision | None, Arrival]:
    bare = ".network." in _type(config)
    if _type(own).endswith("RBACPerRoute"):
        config = mapping(own, "rbac")
    tried: Ruling | None = None
    if "shadow_rules" in config:
        tried = rule_on(config["shadow_rules"], arrival)
        filter_name = "envoy.filters.network.rbac" if bare else "envoy.filters.http.rbac"
        prefix = str(config.get("shadow_rules_stat_prefix", ""))
        arrival = arrival.noted(filter_name, _shadow(prefix, tried))
    if "matcher" in config or "shadow_matcher" in config:
        says = "Cannot decide, because its rules are a matcher tree."
        return Decision(name, "RBAC", "undecided", says), arrival
    if "rules" not in config:
        decision = Decision(name, "RBAC", "passed", _dry_words(tried), dry_run=tried)
        return (decision if tried is not None else None), arrival
    ruling = rule_on(config["rules"], arrival)
    status = None if bare else _status(403, arrival.headers)
    return replace(_ruled(name, ruling, status), dry_run=tried), arrival


def _shadow(prefix: str, tried: Ruling) -> Mapping[str, Any]:
    """Return what the filter writes down of rules in dry run; CUSTOM looks at it."""
    if isinstance(tried.allowed, Undecided):
        return {
            f"{prefix}shadow_effective_policy_id": tried.allowed,
            f"{prefix}shadow_engine_result": tried.allowed,
        }
    matched = [name for name in tried.policies if name != NONE][-1:]
    result = "allowed" if tried.allowed else "denied"
    return {
        f"{prefix}shadow_engine_result": result,
        f"{prefix}shadow_effective_policy_id": matched[0] if matched else None,
    }


def _dry_words(tried: Ruling | None) -> str:
    if tried is None:
        return "It has no rules."
    if isinstance(tried.allowed, Undecided):
        return f"Rules in dry run only; what they say cannot be decided: {tried.allowed.reason}."
    matched = rule_words(tried.policy) if tried.policy not in ("", NONE) else "no rule"
    if is_custom(tried.policy):
        return f"{_capital(matched)} asks the authorization server."
    verb = "admit" if tried.allowed else "refuse"
    return f"Rules in dry run only: they would {verb} it, by {matched}."


def _ruled(name: str, ruling: Ruling, status: int | None) -> Decision:
    policy = ruling.policy if ruling.policy != NONE else ""
    made_from = policy_object(policy)
    refusals = tuple(Refusal(status, f"{RBAC_DENIED}[{_printed(one)}]") for one in ruling.policies)
    if isinstance(ruling.allowed, Undecided):
        says = f"Cannot decide, because {ruling.allowed.reason}."
        return Decision(name, "RBAC", "undecided", says, policy, made_from, refusals)
    if ruling.allowed:
        if ruling.action == "LOG":
            says = "Its rules only write a log."
        elif ruling.action == "DENY":
            says = "No DENY rule matches."
        else:
            says = f"{_capital(rule_words(policy)) if policy else 'One of its rules'} admits it."
        return Decision(name, "RBAC", "passed", says, policy, made_from)
    if ruling.action == "DENY":
        words = rule_words(policy) if policy else "one of its rules"
        says = f"{_capital(words)} denies it."
    else:
        nearest = ruling.nearest
        near = f"; the nearest: {nearest}" if nearest is not None else ": there is none"
        says = f"No ALLOW rule matches{near}."
        made_from = nearest.object if nearest is not None else ""
    return Decision(name, "RBAC", "stopped", says, policy, made_from, refusals, ruling.nearest)


def _capital(words: str) -> str:
    return words[:1].upper() + words[1:]


def _ext_authz(name: str, config: Json, arrival: Arrival) -> Decision:
    """Return what is known of an external server's decision: whether it is asked at all.

    Istio lets it be asked only where the RBAC filter before it noted a CUSTOM policy.
    """
    matcher = mapping(config, "filter_enabled_metadata")
    asked: Truth = True
    if matcher:
        path = tuple(str(dig(step, "key", default="")) for step in items(matcher, "path"))
        found = arrival.metadata_value(str(matcher.get("filter", "")), path)
        asked = (
            found if isinstance(found, Undecided) else matches_value(matcher.get("value"), found)
        )
    if asked is False:
        return Decision(name, "ext_authz", "passed", "No CUSTOM rule matches.")
    server = dig(config, "grpc_service", "envoy_grpc", "cluster_name") or dig(
        config, "http_service", "server_uri", "cluster", default="outside"
    )
    says = f"Cannot decide, because the authorization server {server} decides."
    return Decision(name, "ext_authz", "undecided", says)
