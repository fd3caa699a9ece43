"""The table ``rbac_rules``: the authorization rules within each filter chain of a proxy.

Also reads the RBAC filters for the table ``rbac``. Their shape is that of
``envoy.extensions.filters.http.rbac.v3.RBAC``; the names of the policies are istiod's
(``pilot/pkg/security/authz/builder``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from meshnb.sources.base import Question
from meshnb.tables.base import Column, Facts, Json, Row, Table, dig, items, mapping
from meshnb.tables.envoy import CONFIG_DUMP, listed, proxy_of, section

RBAC_RULES = Table(
    name="rbac_rules",
    grain="one row per proxy, filter chain, RBAC filter and rule",
    asks=CONFIG_DUMP,
    columns={
        "proxy": Column("string", "the proxy as pod.namespace", key=True),
        "listener": Column("string", "name of the listener", key=True),
        "state": Column(
            "string",
            "of the listener: active, warming (not yet used), draining (being closed) or static",
            key=True,
        ),
        "position": Column(
            "Int64", "place of the filter chain in the listener; the default one is last", key=True
        ),
        "filter_chain": Column("string", "name of the filter chain"),
        "protocol": Column(
            "string", "http (asked for each request) or network (for each connection)"
        ),
        "filter": Column(
            "Int64", "place of the filter among the chain's network or HTTP filters", key=True
        ),
        "action": Column("string", "DENY, ALLOW, LOG or CUSTOM (an external server decides)"),
        "effect": Column(
            "string",
            "enforced; dry run (counted only); or asks, for CUSTOM: a match asks the server",
            key=True,
        ),
        "authorization_policy": Column(
            "string",
            "the AuthorizationPolicy, name.namespace; _anonymous_match_nothing_ when the filter has"
            " no rules, so that an ALLOW there lets nothing through",
        ),
        "namespace": Column("string", "namespace of the AuthorizationPolicy"),
        "policy": Column("string", "name of the AuthorizationPolicy"),
        "rule": Column("Int64", "place of the rule in the AuthorizationPolicy, from 0"),
        "name": Column("string", "the rule's name in Envoy's configuration", key=True),
        "permissions": Column(
            "object", "tuple of dicts: what may be done, one of which must match (operation)"
        ),
        "principals": Column("object", "tuple of dicts: by whom, one of which must match (source)"),
        "condition": Column("object", "dict: a further condition in CEL; NA without"),
    },
)

#: What istioctl prints for a filter without rules.
ANONYMOUS = "_anonymous_match_nothing_"
_CUSTOM = "istio-ext-authz-"
_NAME = re.compile(rf"(?:{_CUSTOM})?ns\[(.+)\]-policy\[(.+)\]-rule\[(.+)\]")
_MANAGERS = ("envoy.filters.network.http_connection_manager", "envoy.http_connection_manager")
_HTTP = "envoy.filters.http.rbac"
_NETWORK = "envoy.filters.network.rbac"


@dataclass(frozen=True, slots=True)
class RbacFilter:
    """One RBAC filter and where it stands; ``config`` is its configuration."""

    listener: str
    state: str
    position: int
    filter_chain: str | None
    default: bool
    protocol: str
    place: int
    config: Mapping[str, Any]

    @property
    def action(self) -> str:
        """The action of its rules: ALLOW where nothing is said."""
        return str(dig(self.config, "rules", "action", default="ALLOW"))

    @property
    def rules(self) -> Mapping[str, Any]:
        """The enforced rules by name."""
        return mapping(self.config, "rules", "policies")

    @property
    def shadow_rules(self) -> Mapping[str, Any]:
        """The rules that are only evaluated, by name: of a dry run, or for CUSTOM."""
        return mapping(self.config, "shadow_rules", "policies")


def filters_of(found: Mapping[str, Any]) -> Iterator[RbacFilter]:
    """Yield each RBAC filter of a ``ListenersConfigDump``, in its order."""
    for state, listener in _listeners(found):
        chains = items(listener, "filter_chains")
        default = dig(listener, "default_filter_chain")
        for position, chain in enumerate([*chains, *([] if default is None else [default])]):
            for protocol, place, config in _filters(chain):
                yield RbacFilter(
                    listener=str(dig(listener, "name", default="")),
                    state=state,
                    position=position,
                    filter_chain=dig(chain, "name"),
                    default=position == len(chains),
                    protocol=protocol,
                    place=place,
                    config=config,
                )


def _listeners(found: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for entry in items(found, "dynamic_listeners"):
        for state in ("active", "warming", "draining"):
            listener = mapping(entry, f"{state}_state", "listener")
            if listener:
                yield state, listener
    for entry in items(found, "static_listeners"):
        yield "static", mapping(entry, "listener")


def _filters(chain: Json) -> Iterator[tuple[str, int, Mapping[str, Any]]]:
    for place, used in enumerate(items(chain, "filters")):
        config = mapping(used, "typed_config")
        if dig(used, "name") == _NETWORK:
            yield "network", place, config
        elif dig(used, "name") in _MANAGERS:
            for inner, http in enumerate(items(config, "http_filters")):
                if dig(http, "name") == _HTTP:
                    yield "http", inner, mapping(http, "typed_config")


def named(rule: str) -> tuple[str, str, str] | None:
    """Return namespace, policy and index that a rule's name has; None for another kind of name."""
    found = _NAME.search(rule)
    return (found[1], found[2], found[3]) if found else None


def is_custom(rule: str) -> bool:
    """Whether a shadow rule is one of a policy with the action CUSTOM."""
    return rule.startswith(_CUSTOM)


@RBAC_RULES.reads
def _rows(dump: Json, question: Question, facts: Facts) -> Iterator[Row]:
    for used in filters_of(section(dump, "ListenersConfigDump", question, facts)):
        shared = {
            "proxy": proxy_of(question),
            "listener": used.listener,
            "state": used.state,
            "position": used.position,
            "filter_chain": used.filter_chain,
            "protocol": used.protocol,
            "filter": used.place,
        }
        if "rules" in used.config and not used.rules:
            yield {
                **shared,
                "action": used.action,
                "effect": "enforced",
                "authorization_policy": ANONYMOUS,
                "name": "",
                "permissions": (),
                "principals": (),
            }
        for name, rule in used.rules.items():
            yield {**shared, "action": used.action, "effect": "enforced", **_rule(name, rule)}
        tried = str(dig(used.config, "shadow_rules", "action", default="ALLOW"))
        for name, rule in used.shadow_rules.items():
            custom = is_custom(name)
            yield {
                **shared,
                "action": "CUSTOM" if custom else tried,
                "effect": "asks" if custom else "dry run",
                **_rule(name, rule),
            }


def _rule(name: str, rule: Json) -> Row:
    parts = named(name)
    return {
        "authorization_policy": f"{parts[1]}.{parts[0]}" if parts else None,
        "namespace": parts[0] if parts else None,
        "policy": parts[1] if parts else None,
        "rule": parts[2] if parts else None,
        "name": name,
        "permissions": listed(rule, "permissions"),
        "principals": listed(rule, "principals"),
        "condition": dig(rule, "condition"),
    }
