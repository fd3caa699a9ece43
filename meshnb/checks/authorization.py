"""Checks of authorization and authentication policies. Codes MNB500 to MNB549."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import pandas as pd

from meshnb.checks.base import (
    Cause,
    Finding,
    Severity,
    Subject,
    and_list,
    check,
    config_rows,
    edit,
    ids,
    subject_of,
    symptom_rows,
    workload_of,
)
from meshnb.checks.changes import changed_before
from meshnb.symptoms import Symptom, Symptoms
from meshnb.symptoms.requests import split_address
from meshnb.tables import Facts
from meshnb.tables.base import dig, items, mapping
from meshnb.traces.failures import Failure, failed
from meshnb.traces.mesh import ConfigObject, Mesh, Pod

_POLICY = re.compile(r"(istio-ext-authz-)?ns\[([^\]]+)\]-policy\[([^\]]+)\]-rule\[(\d+)\]")
_DENIED = "rbac_access_denied_matched_policy"


@dataclass(frozen=True, slots=True)
class _Caller:
    """Who made a denied request, as far as it can be told."""

    pod: Pod | None

    @property
    def name(self) -> str:
        if self.pod is None:
            return "a caller without an identity"
        account = self.pod.service_account or "default"
        return f"{self.pod.namespace}/{self.pod.workload} (service account {account})"


def _caller(failure: Failure, mesh: Mesh) -> _Caller:
    for proxy in failure.callers:
        if (pod := mesh.pod_of(proxy)) is not None:
            return _Caller(pod)
    return _Caller(mesh.pod_at(split_address(failure.remote_address)[0]))


def action(policy: ConfigObject) -> str:
    """Return the action of an AuthorizationPolicy; ALLOW is the default."""
    return str(dig(policy.spec, "action", default="ALLOW"))


@check("MNB501", Severity.ERROR, cause=Cause.CONTROL_PLANE_CONFIG)
def denied_by_policy(
    mesh: Mesh, symptoms: Symptoms, istio_config: pd.DataFrame, facts: Facts
) -> Iterator[Finding]:
    """No DENY policy matches requests of the mesh's own workloads.

    A DENY policy decides before any ALLOW policy. The server's proxy answers 403 itself, and names
    the policy and the rule in the details of its log line.
    """
    named: dict[tuple[str, str], list[tuple[Symptom, int]]] = {}
    for symptom in symptoms:
        match = _POLICY.search(symptom.details) if _DENIED in symptom.details else None
        if match:
            named.setdefault((match[2], match[3]), []).append((symptom, int(match[4])))
    for (namespace, name), found in named.items():
        seen = [symptom for symptom, _ in found]
        subject = Subject("AuthorizationPolicy", namespace, name)
        policy = next(
            (
                item
                for item in mesh.of("AuthorizationPolicy")
                if (item.namespace, item.name) == (namespace, name)
            ),
            None,
        )
        rule = found[0][1]
        text = (
            f" ({_words(items(policy.spec, 'rules')[rule])})"
            if policy is not None and rule < len(items(policy.spec, "rules"))
            else ""
        )
        callers = and_list(_caller(failure, mesh).name for s in seen for failure in s.failures)
        where = and_list(f"{s.workload[0]}/{s.workload[1]}" for s in seen)
        gone = "" if policy is not None else " The object is gone; the proxies still hold it."
        yield Finding(
            subject,
            f"Rule {rule} of {subject}{text} denies requests of {callers} to {where}.{gone}",
            f"Narrow the rule with {edit(subject)}.",
            evidence=(
                *symptom_rows(facts, seen),
                *((config_rows(istio_config, policy),) if policy is not None else ()),
            ),
            explains=ids(seen),
            severity=_meant(seen, mesh, facts),
            cause=None if policy is not None else Cause.DATA_PLANE_CONFIG,
        )


def _meant(symptoms: list[Symptom], mesh: Mesh, facts: Facts) -> Severity | None:
    """Return INFO when a denial looks meant: others are served, and these callers never were.

    To turn somebody away is what policies are for. A caller who was served before, or a server that
    serves nobody at all, is another matter.
    """
    if any(symptom.worked_for_caller for symptom in symptoms):
        return None
    log = facts["access_log"]
    served = log[~failed(log) & (log["direction"] == "inbound")]
    serving = set(zip(served["namespace"], served["workload"], strict=True))
    return Severity.INFO if all(symptom.workload in serving for symptom in symptoms) else None


def _words(rule: Any) -> str:
    parts = []
    for source in items(rule, "from"):
        parts += [
            f"{key} {and_list(map(str, value))}" for key, value in mapping(source, "source").items()
        ]
    for target in items(rule, "to"):
        parts += [
            f"{key} {and_list(map(str, value))}"
            for key, value in mapping(target, "operation").items()
        ]
    parts += [f"when {dig(condition, 'key')}" for condition in items(rule, "when")]
    return "; ".join(parts) or "no conditions, so every request"


@check("MNB502", Severity.ERROR, cause=Cause.CONTROL_PLANE_CONFIG)
def allowed_by_no_policy(
    mesh: Mesh,
    symptoms: Symptoms,
    istio_config: pd.DataFrame,
    service_accounts: pd.DataFrame,
    facts: Facts,
) -> Iterator[Finding]:
    """Where ALLOW policies exist, one of their rules matches every caller.

    As soon as one ALLOW policy selects a workload, whatever no rule admits is denied: 403 with the
    details rbac_access_denied_matched_policy[none].
    """
    accounts = {
        f"ns/{namespace}/sa/{name}"
        for namespace, name in zip(
            service_accounts["namespace"], service_accounts["service_account"], strict=True
        )
    }
    blamed: dict[ConfigObject, list[tuple[Symptom, Failure, str]]] = {}
    for symptom in symptoms:
        if f"{_DENIED}[none]" not in symptom.details:
            continue
        for failure in symptom.failures:
            server = mesh.pod_of(failure.proxy)
            if server is None:
                continue
            policies = [
                policy
                for policy in mesh.of("AuthorizationPolicy")
                if action(policy) == "ALLOW" and server in mesh.workload_selected(policy)
            ]
            best = _nearest(policies, failure, _caller(failure, mesh), accounts, mesh)
            if best is not None:
                blamed.setdefault(best[0], []).append((symptom, failure, best[1]))
    for policy, found in blamed.items():
        seen = list({symptom.id: symptom for symptom, _, _ in found}.values())
        requests = and_list(f"{f.method} {f.path}".strip() or "connections" for _, f, _ in found)
        callers = and_list(_caller(failure, mesh).name for _, failure, _ in found)
        servers = and_list(f"{failure.namespace}/{failure.workload}" for _, failure, _ in found)
        reasons = and_list(dict.fromkeys(reason for _, _, reason in found), limit=2)
        yield Finding(
            subject_of(policy),
            f"{policy} allows some callers of {servers}, and nothing admits {requests} from "
            f"{callers}: {reasons}.",
            f"Admit the caller with {edit(subject_of(policy))}.",
            evidence=(*symptom_rows(facts, seen), config_rows(istio_config, policy)),
            explains=ids(seen),
            severity=_meant(seen, mesh, facts),
        )


def _nearest(
    policies: list[ConfigObject],
    failure: Failure,
    caller: _Caller,
    accounts: set[str],
    mesh: Mesh,
) -> tuple[ConfigObject, str] | None:
    """Return the policy that comes nearest to admitting a request, and what it lacks.

    A principal that names no service account is the surest sign of a mistake; then the rule that
    fails in the fewest parts; then the policy that selects the fewest workloads.
    """
    candidates: list[tuple[tuple[float, ...], ConfigObject, str]] = []
    for policy in policies:
        narrow = 0 if mapping(policy.spec, "selector") or policy.spec.get("targetRefs") else 1
        rules = items(policy.spec, "rules")
        if not rules:
            candidates.append(((9, narrow), policy, "it has no rule, so it admits nobody"))
        for number, rule in enumerate(rules):
            misses, typo = _misses(rule, failure, caller, accounts, mesh)
            text = f"rule {number} {' and '.join(misses) or 'cannot be decided here'}"
            candidates.append(((0 if typo else 1, narrow, len(misses)), policy, text))
    best = min(candidates, key=lambda entry: entry[0], default=None)
    return (best[1], best[2]) if best else None


def _misses(
    rule: Any, failure: Failure, caller: _Caller, accounts: set[str], mesh: Mesh
) -> tuple[list[str], bool]:
    misses: list[str] = []
    typo = False
    sources = [mapping(entry, "source") for entry in items(rule, "from")]
    if sources:
        principals = [str(p) for source in sources for p in items(source, "principals")]
        identity = caller.pod.identity if caller.pod is not None and caller.pod.in_mesh else ""
        unknown = [
            p
            for p in principals
            if accounts
            and "*" not in p
            and "/ns/" in p
            and f"ns/{p.partition('/ns/')[2]}" not in accounts
        ]
        if principals and not any(_principal(pattern, identity) for pattern in principals):
            misses.append(f"wants principal {and_list(principals)}")
            for name in unknown:
                short = f"ns/{name.partition('/ns/')[2]}"
                close = get_close_matches(short, accounts, n=1, cutoff=0.7)
                typo = typo or bool(close and close[0] == identity)
                hint = f"; the nearest is {close[0]}" if close else ""
                misses[-1] += f" ({name} is no service account{hint})"
        tokens = [str(t) for source in sources for t in items(source, "requestPrincipals")]
        if tokens and not principals:
            misses.append(f"wants a token of {and_list(tokens)}")
        namespaces = [str(n) for source in sources for n in items(source, "namespaces")]
        own = caller.pod.namespace if caller.pod is not None and caller.pod.in_mesh else ""
        if namespaces and not any(_value(pattern, own) for pattern in namespaces):
            misses.append(f"wants a caller of namespace {and_list(namespaces)}")
    operations = [mapping(entry, "operation") for entry in items(rule, "to")]
    if operations:
        port = str(split_address(failure.local_address)[1] or "")
        for key, value in (
            ("methods", failure.method),
            ("paths", failure.path.partition("?")[0]),
            ("ports", port),
        ):
            wanted = [str(entry) for operation in operations for entry in items(operation, key)]
            if wanted and not any(_value(pattern, value) for pattern in wanted):
                misses.append(f"wants {key} {and_list(wanted)}")
    return misses, typo


def _principal(pattern: str, identity: str) -> bool:
    if not identity:
        return False
    return pattern == "*" or _value(pattern, pattern.partition("/ns/")[0] + "/" + identity)


def _value(pattern: str, value: str) -> bool:
    """Whether a value matches a policy's pattern, which is exact, prefix*, *suffix or *."""
    if pattern == "*":
        return bool(value)
    if pattern.startswith("*"):
        return value.endswith(pattern[1:])
    if pattern.endswith("*"):
        return value.startswith(pattern[:-1])
    return pattern == value


@check("MNB510", Severity.ERROR, cause=Cause.DATA_PLANE)
def token_refused(
    mesh: Mesh, symptoms: Symptoms, istio_config: pd.DataFrame, facts: Facts
) -> Iterator[Finding]:
    """Every token that callers present is accepted.

    A RequestAuthentication makes the proxy verify tokens. One that is expired, from another issuer,
    or signed with a key that is not in the key set is answered with 401; the details say which.
    """
    for symptom in symptoms:
        if "jwt_authn_access_denied" not in symptom.details:
            continue
        servers = mesh.pods_of(symptom.reporters)
        policies = [
            policy
            for policy in mesh.of("RequestAuthentication")
            if any(pod in mesh.workload_selected(policy) for pod in servers)
        ]
        if not policies:
            continue
        reason = symptom.details.partition("{")[2].rstrip("}").replace("_", " ")
        keys = "Jwks" in reason
        changed = set(changed_before(symptom, servers, mesh)) & set(policies)
        policy = next((one for one in policies if one in changed), policies[0])
        senders = list(
            dict.fromkeys(
                workload_of(pod)
                for failure in symptom.failures
                if (pod := _caller(failure, mesh).pod) is not None and pod.mesh != "gateway"
            )
        )
        at_policy = keys or bool(changed) or len(senders) != 1
        subject = subject_of(policy) if at_policy else senders[0]
        issuers = and_list(
            str(dig(rule, "issuer"))
            for policy in policies
            for rule in items(policy.spec, "jwtRules")
        )
        where = and_list(f"{pod.namespace}/{pod.workload}" for pod in servers)
        yield Finding(
            subject,
            f"{policy} refuses the tokens that {and_list(map(str, senders)) or 'callers'} "
            f"present to {where}: {reason}. It trusts {issuers}.",
            f"Correct the issuer's keys with {edit(subject_of(policy))}."
            if keys
            else "Let the caller get a fresh token of a trusted issuer, or correct the rule with "
            f"{edit(subject_of(policy))}.",
            evidence=(*symptom_rows(facts, [symptom]), config_rows(istio_config, *policies)),
            related=tuple(one for one in (*map(subject_of, policies), *senders) if one != subject),
            explains=ids([symptom]),
            severity=None if keys or changed else _meant([symptom], mesh, facts),
            cause=Cause.CONTROL_PLANE_CONFIG if keys or changed else None,
        )
