"""What the rules of an AuthorizationPolicy ask for, and whether a logged request meets them.

The fields and their patterns are those of Istio's reference/config/security/authorization-policy
and …/conditions. What the log does not show, such as most headers and all tokens, is left open.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from meshnb.tables.base import dig, items, mapping

#: Istio takes this trust domain in a policy for the mesh's own, whatever that is called.
_ANY_TRUST_DOMAIN = "cluster.local"
_SPIFFE = "spiffe://"
#: Fields that mean something for HTTP only, and the keys of conditions that do.
_HTTP_FIELDS = frozenset(
    {
        *("requestPrincipals", "notRequestPrincipals", "remoteIpBlocks", "notRemoteIpBlocks"),
        *("hosts", "notHosts", "methods", "notMethods", "paths", "notPaths"),
    }
)
_HTTP_KEYS = ("request.", "remote.ip")
_TEMPLATE = re.compile(r"\{\*\*?\}")


@dataclass(frozen=True, slots=True)
class Asked:
    """What is known of a request, or of a connection, where a policy decides on it.

    ``identities`` are the ways to write the caller's identity, without ``spiffe://``: empty for a
    caller in plain text, None where it is not known. ``namespace`` is the caller's, alike.
    """

    http: bool
    identities: tuple[str, ...] | None
    namespace: str | None
    method: str = ""
    path: str = ""
    host: str = ""
    port: int | None = None
    direct_address: str = ""
    remote_address: str = ""
    server_name: str = ""


@dataclass(frozen=True, slots=True)
class Judgement:
    """Whether a rule matches: what of it is not met, and what cannot be told from a log."""

    misses: tuple[str, ...] = ()
    unsure: tuple[str, ...] = ()
    #: a name in it is a slip, or a field has no effect: it can never have been meant so
    slip: bool = False

    @property
    def met(self) -> bool:
        """Whether everything that it asks for is known to hold."""
        return not self.misses and not self.unsure

    @property
    def words(self) -> str:
        """What keeps it from matching, in words."""
        if self.misses:
            return " and ".join(self.misses)
        return f"depends on {', '.join(self.unsure)}" if self.unsure else "matches"


def http_only(rule: Any) -> tuple[str, ...]:
    """Return the fields and conditions of a rule that mean something for HTTP only."""
    found = [
        name
        for part, inner in (("from", "source"), ("to", "operation"))
        for entry in items(rule, part)
        for name, value in mapping(entry, inner).items()
        if name in _HTTP_FIELDS and value
    ]
    found += [
        key
        for condition in items(rule, "when")
        if (key := str(dig(condition, "key", default=""))).startswith(_HTTP_KEYS)
    ]
    return tuple(dict.fromkeys(found))


def judge(rule: Any, asked: Asked, accounts: Collection[str]) -> Judgement:
    """Judge one rule of an ALLOW policy by one request.

    ``accounts`` are the service accounts of the mesh as ``ns/NAMESPACE/sa/NAME``; with them a name
    that nobody has is told from one that is somebody else's.
    """
    ignored = () if asked.http else http_only(rule)
    if ignored:
        return Judgement(
            misses=(f"asks for {', '.join(ignored)}, which a TCP connection does not have",),
            slip=True,
        )
    parts = [
        _least(
            [
                _joined(_field(name, values, asked, accounts) for name, values in fields.items())
                for entry in items(rule, part)
                for fields in [mapping(entry, inner)]
            ]
        )
        for part, inner in (("from", "source"), ("to", "operation"))
    ]
    parts += [_condition(condition, asked) for condition in items(rule, "when")]
    return _joined(parts)


def _least(judgements: list[Judgement]) -> Judgement:
    """Return the best of alternatives; without any, everything matches."""
    return min(
        judgements,
        key=lambda one: (not one.slip and bool(one.misses), len(one.misses), len(one.unsure)),
        default=Judgement(),
    )


def _joined(judgements: Any) -> Judgement:
    every = list(judgements)
    return Judgement(
        tuple(text for one in every for text in one.misses),
        tuple(text for one in every for text in one.unsure),
        any(one.slip for one in every),
    )


def _field(name: str, values: Any, asked: Asked, accounts: Collection[str]) -> Judgement:
    wanted = [str(value) for value in values] if isinstance(values, list) else []
    if not wanted:
        return Judgement()
    negative = name.startswith("not")
    plain = name[3:4].lower() + name[4:] if negative else name
    told = _told(plain, wanted, asked)
    if told is None:
        return Judgement(unsure=(f"{name} {_listed(wanted)}",))
    if told is not negative:
        return Judgement()
    if negative:
        return Judgement(misses=(f"excludes {plain} {_listed(wanted)}",))
    if plain == "principals" and asked.identities:
        return _principals(wanted, asked.identities, accounts)
    have = _value_of(plain, asked)
    shown = f" (not {have})" if have else ""
    return Judgement(misses=(f"wants {plain} {_listed(wanted)}{shown}",))


def _told(name: str, wanted: list[str], asked: Asked) -> bool | None:
    """Return whether one of the values matches; None where the log does not tell."""
    if name in ("principals", "serviceAccounts"):
        if asked.identities is None:
            return None
        matches: Callable[[str, str], bool] = matches_value if name == "principals" else _is_account
        return any(matches(pattern, one) for pattern in wanted for one in asked.identities)
    if name == "namespaces":
        if asked.namespace is None:
            return None
        return any(matches_value(pattern, asked.namespace) for pattern in wanted)
    if name in ("ipBlocks", "remoteIpBlocks"):
        address = asked.direct_address if name == "ipBlocks" else asked.remote_address
        return _within(address, wanted)
    if name == "requestPrincipals":
        return None
    if name == "ports":
        return str(asked.port) in wanted
    if name == "methods":
        return any(matches_value(pattern, asked.method) for pattern in wanted)
    if name == "paths":
        return any(matches_path(pattern, asked.path) for pattern in wanted)
    if name == "hosts":
        return any(matches_value(one.lower(), asked.host.lower()) for one in wanted)
    return None


def _value_of(name: str, asked: Asked) -> str:
    known: Mapping[str, str] = {
        "ports": str(asked.port or ""),
        "methods": asked.method,
        "paths": asked.path,
        "hosts": asked.host,
        "namespaces": asked.namespace or "",
        "ipBlocks": asked.direct_address,
        "remoteIpBlocks": asked.remote_address,
    }
    if name in ("principals", "serviceAccounts", "namespaces") and not known.get(name):
        return "a caller without an identity: it did not speak mutual TLS"
    return known.get(name, "")


def _principals(
    wanted: list[str], identities: tuple[str, ...], accounts: Collection[str]
) -> Judgement:
    text = f"wants principal {_listed(wanted)}"
    own = identities[0]
    short = own[own.index("ns/") :] if "ns/" in own else own
    for name in wanted:
        if name.startswith(_SPIFFE):
            slip = any(matches_value(name.removeprefix(_SPIFFE), one) for one in identities)
            return Judgement((f"{text} ({name} is written with {_SPIFFE})",), slip=slip)
        domain, found, rest = name.partition("/ns/")
        if not found or "*" in name:
            continue
        account = f"ns/{rest}"
        if account == short:
            return Judgement((f"{text} ({domain} is not the caller's trust domain)",), slip=True)
        if accounts and account not in accounts:
            close = get_close_matches(account, accounts, n=1, cutoff=0.7)
            hint = f"; the nearest is {close[0]}" if close else ""
            return Judgement(
                (f"{text} ({name} is no service account{hint})",), slip=close[:1] == [short]
            )
    return Judgement((f"{text} (not {own})",))


def _condition(condition: Any, asked: Asked) -> Judgement:
    key = str(dig(condition, "key", default=""))
    name = _CONDITIONS.get(key)
    found = []
    for part, prefix in (("values", ""), ("notValues", "not")):
        values = items(condition, part)
        if not values:
            continue
        if name is None:
            found.append(Judgement(unsure=(key,)))
            continue
        field = f"not{name[0].upper()}{name[1:]}" if prefix else name
        found.append(_field(field, values, asked, ()))
    return _joined(found)


_CONDITIONS: Mapping[str, str] = {
    "source.ip": "ipBlocks",
    "remote.ip": "remoteIpBlocks",
    "source.namespace": "namespaces",
    "source.principal": "principals",
    "destination.port": "ports",
}


def matches_value(pattern: str, value: str) -> bool:
    """Whether a value matches a policy's pattern: exact, ``prefix*``, ``*suffix`` or ``*``."""
    if pattern == "*":
        return bool(value)
    if pattern.startswith("*"):
        return value.endswith(pattern[1:])
    if pattern.endswith("*"):
        return value.startswith(pattern[:-1])
    return pattern == value


def matches_path(pattern: str, path: str) -> bool:
    """Whether a path matches a policy's: as a value, or as a template with {*} and {**}."""
    if not _TEMPLATE.search(pattern):
        return matches_value(pattern, path)
    parts = re.split(r"(\{\*\*?\})", pattern)
    text = "".join(
        "[^/]+" if part == "{*}" else ".*" if part == "{**}" else re.escape(part) for part in parts
    )
    return re.fullmatch(text, path) is not None


def _is_account(pattern: str, identity: str) -> bool:
    namespace, _, account = pattern.rpartition("/")
    wanted = f"ns/{namespace}/sa/{account}" if namespace else f"/sa/{account}"
    return identity.endswith(wanted)


def _within(address: str, blocks: list[str]) -> bool | None:
    try:
        own = ipaddress.ip_address(address)
        return any(own in ipaddress.ip_network(block, strict=False) for block in blocks)
    except ValueError:
        return None


def identities_of(account: str, domains: Iterator[str] | Collection[str]) -> tuple[str, ...]:
    """Return the ways in which a policy may write an identity ``ns/NAMESPACE/sa/NAME``."""
    every = dict.fromkeys((*domains, _ANY_TRUST_DOMAIN))
    return tuple(f"{domain}/{account}" for domain in every)


def _listed(values: list[str]) -> str:
    shown = ", ".join(values[:3])
    return f"{shown}, …" if len(values) > 3 else shown
