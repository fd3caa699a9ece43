"""Envoy's RBAC filter: what its rules say to one arrival, and which of them came nearest.

The shape of the rules is that of ``envoy.config.rbac.v3.RBAC``; istiod makes one Envoy policy of
each rule of an AuthorizationPolicy, named ``ns[NAMESPACE]-policy[NAME]-rule[INDEX]``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import islice
from typing import Any

from meshnb.tables.base import Json, dig, items, mapping
from meshnb.tables.rbac_rules import named
from meshnb.traces.envoy.arrival import PEER_PRINCIPAL, Arrival
from meshnb.traces.envoy.matchers import (
    Truth,
    Undecided,
    both,
    either,
    header_words,
    matches_address,
    matches_header,
    matches_path,
    matches_text,
    matches_value,
    opposite,
    range_words,
    text_words,
    value_words,
)

#: What Envoy prints in place of a policy where none matched.
NONE = "none"
#: Conditions within conditions, at most: Envoy itself takes no message that is nested deeper.
_DEEPEST = 100
#: So many rules are looked at for the one that came nearest.
_MOST = 5000
_AND = {"and_rules": "rules", "and_ids": "ids"}
_OR = {"or_rules": "rules", "or_ids": "ids"}
_NOT = ("not_rule", "not_id")
#: The regular expression that istiod makes of ``source.namespaces``.
_NAMESPACE = re.compile(r"\.\*/ns/([^/]+)/\.\*")

#: The regular expressions that istiod makes of ``*``.
_ANYTHING = (".+", ".*")


@dataclass(frozen=True, slots=True)
class Condition:
    """One condition of a rule in words, what the arrival had instead, and whether it holds."""

    words: str
    had: str
    truth: Truth

    def __str__(self) -> str:
        """Return both in one phrase."""
        return f"{self.words}, but it is {self.had}"


@dataclass(frozen=True, slots=True)
class Miss:
    """The rule that came nearest to a match, and the conditions that kept it from one."""

    policy: str
    conditions: tuple[Condition, ...]

    @property
    def object(self) -> str:
        """The AuthorizationPolicy, such as ``AuthorizationPolicy shop/callers``."""
        return policy_object(self.policy)

    def __str__(self) -> str:
        """Return one sentence without its full stop."""
        return f"{rule_words(self.policy)} wants {' and '.join(map(str, self.conditions))}"


@dataclass(frozen=True, slots=True)
class Ruling:
    """What one set of rules says.

    ``policies`` are those that may have decided, as Envoy names them: one when that is known, and
    :data:`NONE` where no rule matches; more where a rule before it cannot be decided.
    """

    action: str
    allowed: Truth
    policies: tuple[str, ...]
    nearest: Miss | None = None

    @property
    def policy(self) -> str:
        """The Envoy policy that decided; empty where that is not known."""
        return self.policies[0] if len(self.policies) == 1 else ""


def rule_on(rules: Json, arrival: Arrival) -> Ruling:
    """Return what the rules of an RBAC filter (``rules`` or ``shadow_rules``) say to an arrival.

    The first policy that matches counts, in the order of their names. ALLOW lets through what one
    matches, DENY what none matches, LOG everything.
    """
    action = str(mapping(rules).get("action", "ALLOW"))
    policies = mapping(rules, "policies")
    unknown: list[str] = []
    reason: Undecided | None = None
    for name in sorted(policies, key=lambda one: str(one).encode()):
        truth = policy_matches(policies[name], arrival)
        if isinstance(truth, Undecided):
            unknown.append(name)
            if reason is None:
                reason = Undecided(f"of {rule_words(name)}: {truth.reason}")
        elif truth:
            return Ruling(action, action != "DENY", (*unknown, name))
    if action == "LOG":
        return Ruling(action, True, (*unknown, NONE))
    if reason is not None:
        return Ruling(action, reason, tuple(unknown) if action == "DENY" else (NONE,))
    nearest = nearest_miss(policies, arrival) if action == "ALLOW" else None
    return Ruling(action, action == "DENY", (NONE,), nearest)


def policy_matches(policy: Json, arrival: Arrival) -> Truth:
    """Whether an Envoy policy matches: any permission and any principal, and its CEL condition."""
    permitted = either(holds(one, arrival) for one in items(policy, "permissions"))
    meant = either(holds(one, arrival) for one in items(policy, "principals"))
    found = both((permitted, meant))
    if found is not False and any(
        kind in mapping(policy) for kind in ("condition", "checked_condition")
    ):
        return Undecided("its condition is in CEL, which is not evaluated offline")
    return found


def policy_object(name: str) -> str:
    """Return the AuthorizationPolicy that an Envoy policy was made from; empty for another name."""
    found = named(name)
    return f"AuthorizationPolicy {found[0]}/{found[1]}" if found else ""


def policy_rule(name: str) -> str:
    """Return the index of the rule that an Envoy policy was made from, as text."""
    found = named(name)
    return found[2] if found else ""


def rule_words(name: str) -> str:
    """Return which rule an Envoy policy was made from, in words."""
    return f"rule {policy_rule(name)} of {policy_object(name)}" if named(name) else f"rule {name}"


# --- Conditions ----------------------------------------------------------------------------------


def holds(condition: Json, arrival: Arrival, depth: int = 0) -> Truth:
    """Whether a principal or a permission holds."""
    if depth > _DEEPEST:
        return Undecided("its conditions are nested too deeply")
    for kind, value in mapping(condition).items():
        if kind in _AND:
            return both(holds(one, arrival, depth + 1) for one in items(value, _AND[kind]))
        if kind in _OR:
            return either(holds(one, arrival, depth + 1) for one in items(value, _OR[kind]))
        if kind in _NOT:
            return opposite(holds(value, arrival, depth + 1))
        if kind in _LEAVES:
            return _LEAVES[kind](value, arrival)
        return Undecided(f"{_extension(kind, value)} is not evaluated offline")
    return Undecided("a condition says nothing")


def _extension(kind: str, value: Json) -> str:
    name = dig(value, "name")
    return f"the condition {name if isinstance(name, str) else kind}"


def _authenticated(value: Json, arrival: Arrival) -> Truth:
    matcher = mapping(value).get("principal_name")
    if arrival.encrypted is False or matcher is None:
        return arrival.encrypted
    if isinstance(arrival.names, Undecided):
        return arrival.names
    found = either(matches_text(matcher, name) for name in (*arrival.names, arrival.subject))
    return both((arrival.encrypted, found))


def _url_path(value: Json, arrival: Arrival) -> Truth:
    path = arrival.headers.get(":path")
    if isinstance(path, Undecided):
        return path
    return path is not None and matches_path(value, path)


def _metadata(value: Json, arrival: Arrival) -> Truth:
    fields = mapping(value)
    path = tuple(str(dig(step, "key", default="")) for step in items(fields, "path"))
    found = arrival.metadata_value(str(fields.get("filter", "")), path)
    if isinstance(found, Undecided):
        return found
    truth = matches_value(fields.get("value"), found)
    return opposite(truth) if fields.get("invert") is True else truth


def _sourced_metadata(value: Json, arrival: Arrival) -> Truth:
    if mapping(value).get("metadata_source", "DYNAMIC") != "DYNAMIC":
        return Undecided("the metadata of the route is not evaluated offline")
    return _metadata(mapping(value).get("metadata_matcher"), arrival)


def _filter_state(value: Json, arrival: Arrival) -> Truth:
    fields = mapping(value)
    key = str(fields.get("key", ""))
    if "string_match" not in fields:
        return Undecided("a condition on the state of filters is not evaluated offline")
    if key == PEER_PRINCIPAL:
        names = arrival.names
        if isinstance(names, Undecided):
            return names
        return either(matches_text(fields["string_match"], name) for name in names)
    return Undecided(f"what filters before keep as {key} is not known")


def _server_name(value: Json, arrival: Arrival) -> Truth:
    name = arrival.server_name
    return name if isinstance(name, Undecided) else matches_text(value, name)


def _port(value: Json, arrival: Arrival) -> Truth:
    if arrival.destination_port is None:
        return Undecided("the port is not known")
    return bool(arrival.destination_port == value)


def _ports(value: Json, arrival: Arrival) -> Truth:
    if arrival.destination_port is None:
        return Undecided("the port is not known")
    start, end = (mapping(value).get(name, 0) for name in ("start", "end"))
    if not isinstance(start, int) or not isinstance(end, int):
        return Undecided("a range of ports cannot be read")
    return start <= arrival.destination_port < end


_Leaf = Callable[[Json, Arrival], Truth]
_LEAVES: Mapping[str, _Leaf] = {
    "any": lambda value, _: value is True,
    "authenticated": _authenticated,
    "header": lambda value, arrival: matches_header(value, arrival.headers),
    "url_path": _url_path,
    "source_ip": lambda value, arrival: matches_address([value], arrival.source),
    "direct_remote_ip": lambda value, arrival: matches_address([value], arrival.source),
    "remote_ip": lambda value, arrival: matches_address([value], arrival.remote),
    "destination_ip": lambda value, arrival: matches_address([value], arrival.destination),
    "destination_port": _port,
    "destination_port_range": _ports,
    "requested_server_name": _server_name,
    "metadata": _metadata,
    "sourced_metadata": _sourced_metadata,
    "filter_state": _filter_state,
}


# --- In words ------------------------------------------------------------------------------------


def condition_words(condition: Json, depth: int = 0) -> str:
    """Return a principal or a permission in words, as an AuthorizationPolicy would say it."""
    for kind, value in mapping(condition).items():
        if depth > _DEEPEST:
            return "a condition nested too deeply"
        inner = items(value, {**_AND, **_OR}.get(kind, ""))
        if kind in _AND or kind in _OR:
            words = [condition_words(one, depth + 1) for one in inner]
            return (" and " if kind in _AND else " or ").join(dict.fromkeys(words))
        if kind in _NOT:
            return f"not ({condition_words(value, depth + 1)})"
        return _leaf_words(kind, value)
    return "nothing"


def _leaf_words(kind: str, value: Json) -> str:
    if kind == "any":
        return "anything"
    if kind in ("authenticated", "filter_state"):
        name = "principal_name" if kind == "authenticated" else "string_match"
        return _principal_words(mapping(value).get(name))
    if kind == "header":
        name = dig(value, "name")
        named_so = {":method": "method", ":authority": "host", ":path": "path"}.get(str(name))
        text = header_words(value)
        return text.replace(f"header {name}", named_so, 1) if named_so else text
    if kind == "url_path":
        return f"path {text_words(mapping(value).get('path'))}"
    if kind in _ADDRESSES:
        return f"{_ADDRESSES[kind][0]} in {range_words(value)}"
    if kind == "destination_port":
        return f"port {value}"
    if kind == "destination_port_range":
        return f"port from {dig(value, 'start', default=0)} to before {dig(value, 'end')}"
    if kind == "requested_server_name":
        return f"SNI {text_words(value)}"
    if kind in ("metadata", "sourced_metadata"):
        matcher = mapping(value, "metadata_matcher") or mapping(value)
        path = ".".join(str(dig(step, "key")) for step in items(matcher, "path"))
        return f"{_metadata_name(matcher)} {path} {value_words(matcher.get('value'))}"
    return _extension(kind, value)


def _metadata_name(matcher: Mapping[str, Any]) -> str:
    source = str(matcher.get("filter", ""))
    return "claim" if source in ("envoy.filters.http.jwt_authn", "istio_authn") else source


def _principal_words(matcher: Json) -> str:
    if matcher is None:
        return "a caller with TLS"
    fields = dict(mapping(matcher))
    found = _NAMESPACE.fullmatch(str(dig(fields, "safe_regex", "regex", default="")))
    if found:
        return f"namespace is {found[1]}"
    for kind in ("exact", "prefix"):
        if isinstance(fields.get(kind), str):
            fields[kind] = fields[kind].removeprefix("spiffe://")
    return f"principal {text_words(fields)}"


_ADDRESSES: Mapping[str, tuple[str, Callable[[Arrival], str | None]]] = {
    "source_ip": ("source address", lambda arrival: arrival.source),
    "direct_remote_ip": ("source address", lambda arrival: arrival.source),
    "remote_ip": ("client address", lambda arrival: arrival.remote),
    "destination_ip": ("destination address", lambda arrival: arrival.destination),
}


def _had(condition: Json, arrival: Arrival, depth: int = 0) -> str:
    """Return what an arrival has where a condition looks."""
    for kind, value in mapping(condition).items():
        if depth > _DEEPEST:
            return "not known"
        if kind in _AND or kind in _OR:
            inner = items(value, {**_AND, **_OR}[kind])
            found = dict.fromkeys(_had(one, arrival, depth + 1) for one in inner)
            return " and ".join(found) or "nothing"
        if kind in _NOT:
            return _had(value, arrival, depth + 1)
        if kind in ("authenticated", "filter_state"):
            return arrival.identity
        if kind in ("header", "url_path"):
            name = ":path" if kind == "url_path" else str(dig(value, "name", default=""))
            sent = arrival.headers.get(name)
            return "absent" if sent is None else str(sent)
        if kind in _ADDRESSES:
            return _ADDRESSES[kind][1](arrival) or "not known"
        if kind.startswith("destination_port"):
            return str(arrival.destination_port or "not known")
        if kind == "requested_server_name":
            return str(arrival.server_name or "absent")
        if kind in ("metadata", "sourced_metadata"):
            return _had_metadata(mapping(value, "metadata_matcher") or mapping(value), arrival)
    return "as it is"


def _had_metadata(matcher: Mapping[str, Any], arrival: Arrival) -> str:
    path = tuple(str(dig(step, "key", default="")) for step in items(matcher, "path"))
    found = arrival.metadata_value(str(matcher.get("filter", "")), path)
    if found is None:
        return "absent" if _metadata_name(matcher) != "claim" else "absent: no token says it"
    return str(found)


# --- The nearest miss ----------------------------------------------------------------------------


def nearest_miss(policies: Mapping[str, Any], arrival: Arrival) -> Miss | None:
    """Return the rule that lacks the fewest conditions.

    Among equals it is one that names this very caller, and then the most alike one.
    """
    found = (one for name, policy in policies.items() for one in _misses(name, policy, arrival))
    candidates = [
        (len(miss.conditions), not meant, -_likeness(miss.conditions), miss.policy, miss)
        for miss, meant in islice(found, _MOST)
    ]
    if not candidates:
        return None
    return min(candidates, key=lambda one: one[:4])[4]


def _misses(name: str, policy: Json, arrival: Arrival) -> Iterator[tuple[Miss, bool]]:
    """Yield what each permission with each principal lacks, and whether it names the caller."""
    for permission in items(policy, "permissions"):
        for principal in items(policy, "principals"):
            callers = tuple(_parts(principal))
            failed = tuple(
                Condition(condition_words(part), _had(part, arrival), False)
                for part in (*_parts(permission), *callers)
                if holds(part, arrival) is False
            )
            meant = any(_specific(part) and holds(part, arrival) is True for part in callers)
            yield Miss(name, failed), meant


def _specific(principal: Json) -> bool:
    """Whether a principal is about certain callers: not about all, nor about all but some."""
    for kind, value in mapping(principal).items():
        if kind in _AND or kind in _OR:
            return all(map(_specific, items(value, {**_AND, **_OR}[kind])))
        if kind in ("authenticated", "filter_state"):
            matcher = mapping(
                value, "principal_name" if kind == "authenticated" else "string_match"
            )
            return bool(matcher) and dig(matcher, "safe_regex", "regex") not in _ANYTHING
        return kind not in ("any", *_NOT)
    return False


def _parts(condition: Json, depth: int = 0) -> Iterator[Json]:
    """Yield the conditions that must all hold."""
    for kind, value in mapping(condition).items():
        inner = items(value, {**_AND, **_OR}.get(kind, ""))
        if depth < _DEEPEST and (kind in _AND or (kind in _OR and len(inner) == 1)):
            for one in inner:
                yield from _parts(one, depth + 1)
        else:
            yield condition


def _likeness(conditions: tuple[Condition, ...]) -> float:
    return sum(
        SequenceMatcher(None, condition.words[:200], condition.had[:200]).ratio()
        for condition in conditions
    )
