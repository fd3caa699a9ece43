"""Checks of AuthorizationPolicies that do less than they seem to. Codes MNB505 to MNB509."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import replace
from urllib.parse import unquote

import pandas as pd

from meshnb.checks.authorization import (
    Caller,
    action,
    asked_by,
    client_of,
    shows_mutual_tls,
    words,
)
from meshnb.checks.base import (
    Cause,
    Evidence,
    Finding,
    Severity,
    and_list,
    check,
    config_rows,
    counted,
    edit,
    ids,
    subject_of,
    symptom_rows,
    unseen,
)
from meshnb.checks.counted import refused_unseen
from meshnb.checks.misses import alike, near_labels
from meshnb.checks.served import served
from meshnb.symptoms import Symptoms
from meshnb.tables import Facts
from meshnb.tables.base import dig, items
from meshnb.traces.conditions import Asked, judge
from meshnb.traces.mesh import ConfigObject, Mesh, Pod
from meshnb.traces.peers import COLUMNS, Peers
from meshnb.traces.rules import target_references, workload_labels

_KINDS = ("AuthorizationPolicy", "RequestAuthentication")
#: Paths that are open to everybody on purpose, more often than not.
_PUBLIC = re.compile(
    r"health|ready|live|metrics|ping|status|favicon|robots|well-known|public|static|login|asset"
    r"|docs|openapi|swagger|callback|webhook",
    re.IGNORECASE,
)


@check("MNB505", Severity.WARNING, cause=Cause.CONTROL_PLANE_CONFIG)
def policy_for_nobody(mesh: Mesh, istio_config: pd.DataFrame, facts: Facts) -> Iterator[Finding]:
    """Every policy is for workloads that exist.

    A policy counts where the server is, and its selector must match all labels that it names. One
    that matches nothing protects nothing, and nobody is told.
    """
    if unseen(facts, "pods", "pods"):
        return
    for kind in _KINDS:
        for policy in mesh.of(kind):
            labels = workload_labels(policy)
            scope = None if policy.namespace == mesh.root_namespace else policy.namespace
            if target_references(policy) or not labels or mesh.matching(labels, scope):
                continue
            near = near_labels(mesh, labels, scope)
            where = "the mesh" if scope is None else f"namespace {scope}"
            yield Finding(
                subject_of(policy),
                f"{policy} is for pods with "
                f"{and_list(f'{key}={value}' for key, value in labels.items())}, and {where} has "
                f"none{near}: it has no effect.",
                f"Correct spec.selector.matchLabels, or its namespace, with "
                f"{edit(subject_of(policy))}.",
                evidence=(config_rows(istio_config, policy),),
                severity=None if near else Severity.INFO,
                path="spec.selector.matchLabels",
            )


def _requests(policy: ConfigObject, mesh: Mesh, facts: Facts) -> list[tuple[int, Asked]]:
    """Return the requests that were served where a policy holds: row of the log, what is known.

    Of requests that differ in nothing that a policy looks at, one.
    """
    pods = {pod.proxy: pod for pod in mesh.workload_selected(policy) if pod.proxy}
    log = facts["access_log"]
    rows = served(facts)
    rows = rows[rows["proxy"].isin(list(pods)) & rows["method"].notna()]
    rows = rows[(rows["response_code"] < 400).fillna(False).astype(bool)]
    shows_tls = shows_mutual_tls(log)
    found: dict[Asked, int] = {}
    peers = Peers(facts, mesh)
    columns = [rows[name].astype(object).where(rows[name].notna(), "") for name in _COLUMNS]
    for index, *told in zip(rows.index, *columns, strict=True):
        line = dict(zip(_COLUMNS, map(str, told), strict=True))
        if line["direction"] != "inbound" and pods[line["proxy"]].mesh != "gateway":
            continue
        mutual = line["requested_server_name"].startswith("outbound") if shows_tls else None
        peer = peers.address(line)
        client = client_of(line["downstream_remote_address"], line["x_forwarded_for"])
        caller = Caller(mesh.pod_at(peer), mutual, hidden=not peer)
        addresses = (line["downstream_local_address"], peer, client)
        asked = asked_by(caller, mesh, addresses, (line["method"], line["path"], line["authority"]))
        found.setdefault(asked, int(index))
    return [(index, asked) for asked, index in found.items()]


_COLUMNS = (
    *COLUMNS,
    *("requested_server_name", "method", "path", "authority"),
)


def _others_admit(policy: ConfigObject, asked: Asked, server: list[Pod], mesh: Mesh) -> bool:
    """Whether another ALLOW policy may admit a request."""
    return any(
        other is not policy
        and action(other) == "ALLOW"
        and bool(set(server) & set(mesh.workload_selected(other)))
        and any(not judge(rule, asked, ()).misses for rule in items(other.spec, "rules"))
        for other in mesh.of("AuthorizationPolicy")
    )


@check("MNB506", Severity.WARNING, cause=Cause.CONTROL_PLANE_CONFIG)
def rules_joined_by_or(
    mesh: Mesh, istio_config: pd.DataFrame, access_log: pd.DataFrame, facts: Facts
) -> Iterator[Finding]:
    """No policy has its callers and its operations in two rules where one was meant.

    A dash before `to` begins another rule. Then everybody may do what the one rule says, and the
    callers of the other one may do everything.
    """
    for policy in mesh.of("AuthorizationPolicy"):
        rules = items(policy.spec, "rules")
        if action(policy) != "ALLOW" or len(rules) != 2:
            continue
        keys = [{key for key in ("from", "to", "when") if items(rule, key)} for rule in rules]
        if {"from"} not in keys or {"to"} not in keys:
            continue
        callers, operations = rules[keys.index({"from"})], rules[keys.index({"to"})]
        pods = mesh.workload_selected(policy)
        strangers = [
            index
            for index, asked in _requests(policy, mesh, facts)
            if judge(callers, asked, ()).misses
            and judge(operations, asked, ()).met
            and not _others_admit(policy, asked, pods, mesh)
        ]
        public = _PUBLIC.search(words(operations)) is not None
        proof = (
            f" {counted(len(strangers), 'request')} of other callers came in by that."
            if strangers
            else ""
        )
        yield Finding(
            subject_of(policy),
            f"{policy} has two rules that are each half of one: whoever it is may do "
            f"{words(operations)}, and {words(callers)} may do anything.{proof}",
            f"Join them, without the dash between from and to, with {edit(subject_of(policy))}.",
            evidence=(
                config_rows(istio_config, policy),
                *((Evidence.of(access_log, strangers),) if strangers else ()),
            ),
            severity=None if strangers and not public else Severity.INFO,
            path="spec.rules",
        )


@check("MNB507", Severity.WARNING, cause=Cause.CONTROL_PLANE_CONFIG)
def dry_run(
    mesh: Mesh, istio_config: pd.DataFrame, access_log: pd.DataFrame, facts: Facts
) -> Iterator[Finding]:
    """No policy that is tried only lets pass what it would refuse.

    With the annotation istio.io/dry-run the proxies count what a policy would do and do nothing.
    Left on, it protects nothing.
    """
    for policy in mesh.of("AuthorizationPolicy"):
        if str(policy.annotations.get("istio.io/dry-run", "")).lower() != "true":
            continue
        rules = items(policy.spec, "rules")
        kind = action(policy)
        passed = []
        for index, asked in _requests(policy, mesh, facts) if kind in ("ALLOW", "DENY") else ():
            judged = [judge(rule, asked, ()) for rule in rules]
            refused = (
                any(one.met for one in judged)
                if kind == "DENY"
                else all(one.misses for one in judged)
            )
            if refused:
                passed.append(index)
        proof = (
            f" It would have refused {len(passed)} kinds of request that passed." if passed else ""
        )
        yield Finding(
            subject_of(policy),
            f"{policy} ({kind}) is only tried (annotation istio.io/dry-run): it refuses nothing."
            f"{proof}",
            "Take the annotation out with `kubectl -n "
            f"{policy.namespace} annotate authorizationpolicy {policy.name} istio.io/dry-run-`.",
            evidence=(
                config_rows(istio_config, policy),
                *((Evidence.of(access_log, passed),) if passed else ()),
            ),
            severity=None if passed else Severity.INFO,
            path="metadata.annotations",
        )


def _other_spelling(path: str) -> set[str]:
    """Return the paths that an application may take a path for."""
    decoded = unquote(path)
    merged = re.sub(r"//+", "/", decoded)
    return {decoded, merged, merged.lower(), path.lower()} - {path}


@check("MNB508", Severity.WARNING, cause=Cause.CONTROL_PLANE_CONFIG)
def path_spelled_otherwise(
    mesh: Mesh, istio_config: pd.DataFrame, access_log: pd.DataFrame, facts: Facts
) -> Iterator[Finding]:
    """No path that a policy refuses is served in another spelling.

    A policy compares paths letter by letter. An application may take //admin, /Admin or /%61dmin
    for /admin; the mesh's pathNormalization says how much of that the proxies undo first.
    """
    setting = mesh.settings.get("pathNormalization.normalization", "BASE")
    for policy in mesh.of("AuthorizationPolicy"):
        rules = [
            (number, rule)
            for number, rule in enumerate(items(policy.spec, "rules"))
            if any(
                items(dig(entry, "operation"), "paths" if action(policy) == "DENY" else "notPaths")
                for entry in items(rule, "to")
            )
        ]
        if action(policy) not in ("DENY", "ALLOW") or not rules:
            continue
        pods = mesh.workload_selected(policy)
        slipped: list[tuple[int, int, str]] = []
        for index, asked in _requests(policy, mesh, facts):
            for number, rule in rules:
                spellings = _other_spelling(asked.path)
                if action(policy) == "DENY":
                    past = judge(rule, asked, ()).misses and any(
                        judge(rule, replace(asked, path=one), ()).met for one in spellings
                    )
                else:
                    past = judge(rule, asked, ()).met and any(
                        judge(rule, replace(asked, path=one), ()).misses
                        and not _others_admit(policy, replace(asked, path=one), pods, mesh)
                        for one in spellings
                    )
                if past:
                    slipped.append((index, number, asked.path))
        if not slipped:
            continue
        paths = and_list(dict.fromkeys(path for _, _, path in slipped))
        yield Finding(
            subject_of(policy),
            f"{policy} refuses {words(items(policy.spec, 'rules')[slipped[0][1]])}, and {paths} "
            f"was served (pathNormalization is {setting}).",
            "Set meshConfig.pathNormalization.normalization to DECODE_AND_MERGE_SLASHES, and name "
            f"what is allowed instead of what is not: {edit(subject_of(policy))}.",
            evidence=(
                config_rows(istio_config, policy),
                Evidence.of(access_log, [index for index, _, _ in slipped]),
            ),
        )


@check("MNB509", Severity.WARNING, cause=Cause.CONTROL_PLANE_CONFIG)
def principal_of_nobody(
    mesh: Mesh,
    symptoms: Symptoms,
    istio_config: pd.DataFrame,
    service_accounts: pd.DataFrame,
    facts: Facts,
) -> Iterator[Finding]:
    """Every caller that a policy names is somebody's identity.

    A principal is compared letter by letter with the caller's. One that no service account has
    admits nobody, or refuses nobody.
    """
    if unseen(facts, "service_accounts", "serviceaccounts"):
        return
    accounts = set(
        zip(service_accounts["namespace"], service_accounts["service_account"], strict=True)
    )
    refusing = {
        proxy
        for symptom in symptoms
        if "rbac_access_denied" in symptom.details
        for proxy in symptom.reporters
    }
    for policy in mesh.of("AuthorizationPolicy"):
        servers = {pod.proxy for pod in mesh.workload_selected(policy)}
        if refusing & servers:
            continue  # who is refused by it says the check for that
        seen = [s for s in symptoms if refused_unseen(s) and servers & set(s.reporters)]
        wrong = [
            f"{name} (the nearest is {near})"
            for rule in items(policy.spec, "rules")
            for entry in items(rule, "from")
            for field in ("principals", "notPrincipals")
            for name in map(str, items(entry, "source", field))
            if (near := _nearest_account(name, accounts))
        ]
        if wrong:
            yield Finding(
                subject_of(policy),
                f"{policy} names {and_list(wrong)}, which is no service account.",
                f"Correct the principal with {edit(subject_of(policy))}.",
                evidence=(*symptom_rows(facts, seen), config_rows(istio_config, policy)),
                explains=ids(seen),
                path="spec.rules",
            )


def _nearest_account(principal: str, accounts: Collection[tuple[str, str]]) -> str:
    """Return the service account that a principal nearly names; empty if it names one, or none.

    Namespace and account are compared each by itself: what all principals have makes none alike.
    """
    namespace, _, name = principal.partition("/ns/")[2].partition("/sa/")
    if not name or "*" in principal or (namespace, name) in accounts:
        return ""
    for where, who in sorted(accounts):
        same = (namespace == where or alike(namespace, where), name == who or alike(name, who))
        if all(same):
            return f"ns/{where}/sa/{who}"
    return ""
