"""What a ztunnel decides about one connection, by the authorization policies that it holds.

DENY policies come first; where any ALLOW policy applies, one of them must match. A policy of
``scope`` Global applies to all workloads, of Namespace to those of its namespace, and the others to
the workloads that name them. Within a rule all clauses must hold, of a clause one match, of a match
all conditions; an empty match holds for nothing (``src/rbac.rs`` and ``src/state/policy.rs`` of
ztunnel 1.30). A policy with dryRun only writes to the log.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from meshnb.tables.base import Json, dig, items
from meshnb.traces.conditions import http_only
from meshnb.traces.mesh import Mesh, Pod, plain
from meshnb.traces.rules import target_references

#: What istiod makes of a PeerAuthentication with STRICT, one for the mesh and one per policy.
STRICT = "istio_converted_static_strict"
_CONVERTED = "converted_peer_authentication_"


@dataclass(frozen=True, slots=True)
class Connection:
    """What ztunnel knows of a connection. ``identity`` is empty for plain text."""

    #: SPIFFE name without its scheme, such as ``cluster.local/ns/shop/sa/cart``
    identity: str
    source_address: str
    destination_address: str
    destination_port: int

    @property
    def namespace(self) -> str:
        """The namespace of the client's identity; empty without one."""
        parts = self.identity.split("/")
        return parts[2] if len(parts) >= 5 and parts[1] == "ns" else ""

    @property
    def service_account(self) -> str:
        """Namespace and service account of the client's identity; empty without one."""
        parts = self.identity.split("/")
        return f"{parts[2]}/{parts[4]}" if len(parts) >= 5 and parts[1] == "ns" else ""


@dataclass(frozen=True, slots=True)
class Decision:
    """What the policies say: ``allowed`` is None where one cannot be evaluated."""

    allowed: bool | None
    says: str
    #: the row of the table ``ztunnel_policies`` that decides, None when there is none
    row: int | None
    #: the policy that decides, namespace/name; of ALLOW policies that do not match, the first
    policy: str
    #: how ztunnel's log puts it; empty when it is allowed
    error: str
    passed_over: tuple[tuple[str, str], ...]


def decide(
    policies: pd.DataFrame, ztunnel: str, workload: Mapping[str, Any], connection: Connection
) -> Decision:
    """Return what a ztunnel decides; ``workload`` is the server's row of its workloads."""
    own = policies[(policies["proxy"] == ztunnel) & (policies["dry_run"] != True)]  # noqa: E712  may be NA
    attached = set(workload.get("authorization_policies") or ())
    applying = [
        (int(index), row)
        for index, row in zip(own.index, own.to_dict("records"), strict=True)
        if row["scope"] == "Global"
        or (row["scope"] == "Namespace" and row["namespace"] == workload.get("namespace"))
        or (row["scope"] == "WorkloadSelector" and _title(row) in attached)
    ]
    passed: list[tuple[str, str]] = []
    unsure: tuple[int, str, str] | None = None
    for index, row in applying:
        if row["action"] == "Deny":
            matched, why = _matches(row["rules"], connection)
            if matched:
                title = _title(row)
                return Decision(
                    allowed=False,
                    says=f"{_named(row)} denies it: {why}",
                    row=index,
                    policy=title,
                    error=f"explicitly denied by: {title}",
                    passed_over=tuple(passed),
                )
            if matched is None:
                unsure = unsure or (index, _title(row), why)
            passed.append((f"DENY {_title(row)}", why))
    allows = [(index, row) for index, row in applying if row["action"] != "Deny"]
    for index, row in allows:
        matched, why = _matches(row["rules"], connection)
        if matched and unsure is None:
            return Decision(
                allowed=True,
                says=f"{_named(row)} allows it: {why}",
                row=index,
                policy=_title(row),
                error="",
                passed_over=tuple(passed),
            )
        if matched is None:
            unsure = unsure or (index, _title(row), why)
        passed.append((f"ALLOW {_title(row)}", why))
    if unsure is not None:
        index, title, why = unsure
        return Decision(None, f"it depends on {title}: {why}", index, title, "", tuple(passed))
    if not allows:
        none = "no policy applies to the server" if not applying else "no policy denies it"
        return Decision(True, f"{none}, and none has to allow it", None, "", "", tuple(passed))
    index, row = allows[0]
    whys = [f"{name.removeprefix('ALLOW ')}: {why}" for name, why in passed[-len(allows) :]]
    return Decision(
        allowed=False,
        says="policies allow some connections to the server, and none of them allows this one: "
        + "; ".join(whys),
        row=index,
        policy=_title(row),
        error="allow policies exist, but none allowed",
        passed_over=tuple(passed),
    )


def _title(row: Mapping[Any, Any]) -> str:
    return f"{row['namespace']}/{row['policy_name']}"


def origin(title: str) -> str:
    """Return the object that a policy of ztunnel was made from, as kind, namespace and name."""
    namespace, _, name = title.partition("/")
    if name == STRICT:
        return f"PeerAuthentication {namespace}/*"
    if name.startswith(_CONVERTED):
        return f"PeerAuthentication {namespace}/{name.removeprefix(_CONVERTED)}"
    return f"AuthorizationPolicy {title}"


def _named(row: Mapping[Any, Any]) -> str:
    made = origin(_title(row))
    if made.startswith("PeerAuthentication"):
        return f"{_title(row)}, which stands for mode STRICT of a PeerAuthentication,"
    return made


def _matches(rules: Json, connection: Connection) -> tuple[bool | None, str]:
    """Return whether any rule holds, and why or why not."""
    if not rules:
        return False, "it has no rule, which matches nothing"
    unsure = None
    reasons = []
    for number, clauses in enumerate(rules):
        held: bool | None = True
        whys = []
        for clause in clauses if isinstance(clauses, list) else [None]:
            found, why = _clause(clause, connection)
            if not found:
                whys.append(why)
                held = False if found is False or held is False else None
        if held:
            return True, f"rule {number} matches"
        if held is None:
            unsure = "; ".join(whys)
        reasons.append(f"rule {number}: {'; '.join(whys)}")
    return (None, unsure) if unsure else (False, ", ".join(reasons))


def _clause(matches: Json, connection: Connection) -> tuple[bool | None, str]:
    if not isinstance(matches, list) or not all(isinstance(one, dict) for one in matches):
        return None, "its rule has a shape that is not understood"
    whys = []
    unsure = False
    for match in matches:
        if not any(match.values()):
            whys.append("a match without conditions, as is left of HTTP attributes, never holds")
            continue
        found = [_condition(name, values, connection) for name, values in match.items() if values]
        if all(result for result, _ in found):
            return True, ""
        wrong = [why for result, why in found if result is False]
        unsure = unsure or not wrong
        whys.append(" and ".join(wrong or [why for result, why in found if result is None]))
    return (None if unsure else False), " or ".join(whys) or "it has no match"


def _condition(name: str, values: Json, connection: Connection) -> tuple[bool | None, str]:
    negated = name.startswith("not")
    field = name[3:4].lower() + name[4:] if negated else name
    test = _FIELDS.get(field)
    if test is None or not isinstance(values, list):
        return None, f"{name} is not known here"
    actual, holds = test(connection)
    found = [holds(value) for value in values]
    wanted = ", ".join(_shown(value) for value in values)
    matched: bool | None = True if True in found else None if None in found else False
    if matched is None:
        return None, f"{name} has a value that is not understood ({wanted})"
    said = actual or "nothing"
    if negated:
        return not matched, f"{said} is among {name} {wanted}"
    return matched, f"{said} is not among {name} {wanted}"


_Test = Callable[[Any], bool | None]


def _text_test(actual: str) -> _Test:
    def holds(matcher: Any) -> bool | None:
        if matcher == "Presence":
            return bool(actual)
        if not isinstance(matcher, Mapping) or len(matcher) != 1:
            return None
        kind, value = next(iter(matcher.items()))
        match kind:
            case "Presence":
                return bool(actual)
            case "Exact":
                return bool(actual) and actual == value
            case "Prefix":
                return bool(actual) and actual.startswith(str(value))
            case "Suffix":
                return bool(actual) and actual.endswith(str(value))
            case _:
                return None

    return holds


def _account_test(actual: str) -> _Test:
    def holds(account: Any) -> bool | None:
        if isinstance(account, str):
            return account.removeprefix("/") == actual
        if isinstance(account, Mapping):
            name = account.get("serviceAccount") or account.get("service_account")
            return f"{account.get('namespace')}/{name}" == actual
        return None

    return holds


def _address_test(actual: str) -> _Test:
    def holds(block: Any) -> bool | None:
        if not actual:
            return None
        try:
            return ipaddress.ip_address(actual) in ipaddress.ip_network(str(block), strict=False)
        except ValueError:
            return None

    return holds


_FIELDS: Mapping[str, Callable[[Connection], tuple[str, _Test]]] = {
    "principals": lambda c: (c.identity, _text_test(c.identity)),
    "namespaces": lambda c: (c.namespace, _text_test(c.namespace)),
    "serviceAccounts": lambda c: (c.service_account, _account_test(c.service_account)),
    "sourceIps": lambda c: (c.source_address, _address_test(c.source_address)),
    "destinationIps": lambda c: (c.destination_address, _address_test(c.destination_address)),
    "destinationPorts": lambda c: (
        str(c.destination_port),
        lambda port: port == c.destination_port,
    ),
}


def _shown(value: Any) -> str:
    if isinstance(value, Mapping) and len(value) == 1:
        kind, text = next(iter(value.items()))
        shown = {"Prefix": f"{text}*", "Suffix": f"*{text}", "Presence": "*"}
        return str(shown.get(kind, text))
    return "*" if value == "Presence" else str(plain(value))


def unenforceable(pod: Pod, mesh: Mesh) -> tuple[tuple[str, str], ...]:
    """Return the policies for a pod that ztunnel cannot enforce as they are written."""
    found = []
    for item in mesh.of("AuthorizationPolicy"):
        if target_references(item) or pod not in mesh.workload_selected(item):
            continue
        names = [name for rule in items(item.spec, "rules") for name in http_only(rule)]
        if names:
            why = f"ztunnel sees no HTTP, so {', '.join(dict.fromkeys(names))} cannot match"
            found.append((str(item), why))
        elif dig(item.spec, "action") in ("CUSTOM", "AUDIT"):
            found.append((str(item), f"ztunnel knows no action {dig(item.spec, 'action')}"))
    return tuple(found)
