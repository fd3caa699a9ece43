"""Checks of AuthorizationPolicies: whom they turn away. Codes MNB500 to MNB504."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from meshnb.checks.admission import Refusals
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
)
from meshnb.checks.misses import alike, near_pods
from meshnb.checks.mtls import tls_settings
from meshnb.checks.served import goes_on, served_before, served_by
from meshnb.symptoms import Symptom, Symptoms
from meshnb.symptoms.requests import split_address
from meshnb.tables import Facts
from meshnb.tables.base import dig, items, mapping
from meshnb.traces.conditions import (
    Asked,
    Judgement,
    http_only,
    identities_of,
    judge,
    matches_path,
)
from meshnb.traces.failures import Failure
from meshnb.traces.mesh import ConfigObject, Mesh, Pod, plain
from meshnb.traces.rules import rules_for_pod, target_references, workload_labels

_POLICY = re.compile(r"ns\[([^\]]+)\]-policy\[([^\]]+)\]-rule\[(\d+)\]")
_DENIED = "rbac_access_denied_matched_policy"
#: A change is late when it came so long after most others.
_LATE = pd.Timedelta("1min")
#: In the name of a rule that istiod makes of a policy whose external server it does not know.
BAD_CUSTOM = "bad-CUSTOM-action"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who made a request that was refused, as far as it can be told."""

    pod: Pod | None
    #: whether the connection was mutual TLS; None where the log does not show it
    mutual: bool | None
    #: whether the log shows the client that X-Forwarded-For names in its place
    hidden: bool = False

    @property
    def name(self) -> str:
        """The workload and its service account, in words."""
        if self.pod is None and self.hidden and self.mutual is not False:
            return "a caller that the log does not show"
        if self.pod is None:
            return "a caller without an identity" if not self.mutual else "a caller of the mesh"
        account = self.pod.service_account or "default"
        return f"{self.pod.namespace}/{self.pod.workload} (service account {account})"

    @property
    def plain(self) -> bool:
        """Whether a pod that could have shown an identity came without one."""
        return self.pod is not None and self.pod.in_mesh and self.mutual is False


def caller_of(failure: Failure, mesh: Mesh, *, shows_tls: bool) -> Caller:
    """Return who made a request; ``shows_tls`` says whether the log tells mutual TLS at all."""
    mutual = failure.server_name.startswith("outbound") if shows_tls else None
    for proxy in failure.callers:
        if (pod := mesh.pod_of(proxy)) is not None:
            return Caller(pod, mutual)
    return Caller(mesh.pod_at(failure.peer_address), mutual, hidden=failure.forwarded)


def shows_mutual_tls(log: pd.DataFrame) -> bool:
    """Whether access logs show by the server name which connections to servers were mutual TLS."""
    names = log.loc[log["direction"] == "inbound", "requested_server_name"].dropna()
    return bool(names.astype(str).str.startswith("outbound").any())


def asked_of(failure: Failure, caller: Caller, mesh: Mesh, log: pd.DataFrame) -> Asked:
    """Return what is known of a request where its server decides on it."""
    forwarded = str(plain(log["x_forwarded_for"].get(failure.index)) or "")
    peer = failure.peer_address or (caller.pod.address if caller.pod is not None else "")
    asked = asked_by(
        caller,
        mesh,
        (failure.local_address, peer, client_of(failure.remote_address, forwarded)),
        (failure.method, failure.path, failure.authority),
    )
    return replace(asked, http=not failure.is_connection)


def asked_by(
    caller: Caller, mesh: Mesh, addresses: tuple[str, str, str], request: tuple[str, str, str]
) -> Asked:
    """Return what is known of a request of a caller.

    ``addresses`` are the local one with its port, the peer's and the client's; ``request`` is
    method, path and authority.
    """
    local, peer, client = addresses
    method, path, authority = request
    return Asked(
        http=True,
        identities=_identities(caller, mesh),
        namespace=_namespace(caller),
        method=method,
        path=path.partition("?")[0],
        host=split_address(authority)[0],
        port=split_address(local)[1],
        direct_address=peer,
        remote_address=client,
    )


def client_of(remote: str, forwarded: str) -> str:
    """Return the client's address as the proxy took it, by its log; empty where it is not shown.

    The proxy shows what it took from X-Forwarded-For, so ``forwarded`` counts only without that.
    """
    return split_address(remote)[0] or forwarded.rpartition(",")[2].strip()


def _identities(caller: Caller, mesh: Mesh) -> tuple[str, ...] | None:
    if caller.mutual is False or (caller.pod is not None and not caller.pod.in_mesh):
        return ()
    if caller.pod is None:
        return None if caller.mutual or caller.hidden else ()
    aliases = re.findall(r'"([^"]*)"', mesh.settings.get("trustDomainAliases", ""))
    own = mesh.settings.get("trustDomain") or "cluster.local"
    return identities_of(caller.pod.identity, (own, *aliases))


def _namespace(caller: Caller) -> str | None:
    if caller.mutual is False or (caller.pod is not None and not caller.pod.in_mesh):
        return ""
    if caller.pod is None:
        return None if caller.mutual or caller.hidden else ""
    return caller.pod.namespace


def action(policy: ConfigObject) -> str:
    """Return the action of an AuthorizationPolicy; ALLOW is the default."""
    return str(dig(policy.spec, "action", default="ALLOW"))


def where_of(symptoms: list[Symptom], mesh: Mesh) -> str:
    """Return the workloads at which requests were refused, in words."""
    pods = [pod for symptom in symptoms for pod in mesh.pods_of(symptom.reporters)]
    return and_list(f"{pod.namespace}/{pod.workload}" for pod in pods)


def meant(
    symptoms: list[Symptom], facts: Facts, policy: ConfigObject | None = None
) -> Severity | None:
    """Return INFO when a denial looks meant: others are served, and these callers never were.

    To turn somebody away is what policies are for. A caller who was served before and no longer is,
    or a server that serves nobody at all, is another matter. So is a policy that was changed just
    before the log begins, so that it cannot show whom it admitted then. Where the same request is
    served and refused in turns, something tells the callers apart that the log does not show.
    """
    if policy is not None and _changed_late(policy, symptoms, facts):
        return None
    for symptom in symptoms:
        began = (
            symptom.worked_before
            if symptom.side == "gateway"
            else symptom.worked_for_caller or served_before(facts, symptom)
        )
        same_caller = symptom.side != "gateway"
        if began and not goes_on(facts, symptom, same_caller=same_caller):
            return None
        if not len(served_by(facts, symptom.reporters)):
            return None
    return Severity.INFO


def _changed_late(policy: ConfigObject, symptoms: list[Symptom], facts: Facts) -> bool:
    """Whether a policy was changed when the log begins, long after most of the configuration."""
    changed = facts["istio_config"]["changed"]
    begun = facts["access_log"]["start_time"].min()
    if pd.isna(policy.changed) or pd.isna(begun):
        return False
    return bool(
        policy.changed - changed.median() > _LATE
        and policy.changed > begun - _LATE
        and all(one.first_seen is None or one.first_seen >= policy.changed for one in symptoms)
        and not any(
            2 * goes_on(facts, one, same_caller=one.side != "gateway") > one.count
            for one in symptoms
        )
    )


def words(rule: Any) -> str:
    """Return what a rule asks for, in words."""
    parts = []
    for source in items(rule, "from"):
        parts += [
            f"{key} {and_list(map(str, value))}"
            for key, value in mapping(source, "source").items()
            if isinstance(value, list)
        ]
    for target in items(rule, "to"):
        parts += [
            f"{key} {and_list(map(str, value))}"
            for key, value in mapping(target, "operation").items()
            if isinstance(value, list)
        ]
    parts += [f"when {dig(condition, 'key')}" for condition in items(rule, "when")]
    return "; ".join(parts) or "no conditions, so every request"


@check("MNB501", Severity.ERROR, cause=Cause.CONTROL_PLANE_CONFIG)
def denied_by_policy(
    mesh: Mesh,
    symptoms: Symptoms,
    istio_config: pd.DataFrame,
    access_log: pd.DataFrame,
    facts: Facts,
) -> Iterator[Finding]:
    """No DENY policy matches requests of the mesh's own workloads.

    A DENY policy decides before any ALLOW policy. The server's proxy answers 403 itself, and names
    the policy and the rule in the details of its log line. On a port for TCP the fields of a rule
    that are for HTTP are left out, so that it denies more than it says.
    """
    named: dict[tuple[str, str], list[tuple[Symptom, int]]] = {}
    for symptom in symptoms:
        if _DENIED not in symptom.details or BAD_CUSTOM in symptom.details:
            continue
        if match := _POLICY.search(symptom.details):
            named.setdefault((match[1], match[2]), []).append((symptom, int(match[3])))
    shows_tls = shows_mutual_tls(access_log)
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
        number = found[0][1]
        rules = items(policy.spec, "rules") if policy is not None else []
        rule = rules[number] if number < len(rules) else None
        text = f" ({words(rule)})" if rule is not None else ""
        callers = and_list(
            caller_of(failure, mesh, shows_tls=shows_tls).name
            for s in seen
            for failure in s.failures
        )
        held = (facts["rbac"]["authorization_policy"] == f"{name}.{namespace}").any()
        left = "; the proxies still hold it" if held else " by now"
        gone = "" if policy is not None else f" The object is gone{left}."
        ignored = http_only(rule) if any(s.kind == "connection" for s in seen) else ()
        if ignored:
            gone += f" The port is for TCP, where {and_list(ignored)} counts for nothing."
        yield Finding(
            subject,
            f"Rule {number} of {subject}{text} denies requests of {callers} to "
            f"{where_of(seen, mesh)}.{gone}",
            f"Narrow the rule with {edit(subject)}."
            if not ignored
            else f"Name the ports of HTTP in the rule with {edit(subject)}, or declare the port as "
            "HTTP.",
            evidence=(
                *symptom_rows(facts, seen),
                *((config_rows(istio_config, policy),) if policy is not None else ()),
            ),
            related=_services(seen, mesh) if ignored else (),
            explains=ids(seen),
            severity=None if ignored else meant(seen, facts, policy),
            cause=None if policy is not None else Cause.DATA_PLANE_CONFIG,
        )


def _services(symptoms: list[Symptom], mesh: Mesh) -> tuple[Subject, ...]:
    found = []
    for symptom in symptoms:
        pods = mesh.pods_of(symptom.reporters)
        ports = {split_address(failure.local_address)[1] for failure in symptom.failures}
        found += [
            Subject("Service", port.namespace, port.service)
            for port in mesh.services
            if mesh.target_port(port) in ports and any(pod in pods for pod in mesh.selected(port))
        ]
    return tuple(dict.fromkeys(found))


@dataclass(frozen=True, slots=True)
class _Nearest:
    """The policy that comes nearest to admitting a request, and what it lacks."""

    policy: ConfigObject
    says: str
    #: whether what it lacks can never have been meant so
    slip: bool
    #: whether it lacks nothing: by what is known, it admits the request
    admits: bool = False


@check("MNB502", Severity.ERROR, cause=Cause.CONTROL_PLANE_CONFIG)
def allowed_by_no_policy(
    mesh: Mesh,
    symptoms: Symptoms,
    istio_config: pd.DataFrame,
    service_accounts: pd.DataFrame,
    access_log: pd.DataFrame,
    rollouts: pd.DataFrame,
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
    shows_tls = shows_mutual_tls(access_log)
    refusals = Refusals(facts, mesh)
    blamed: dict[ConfigObject, list[tuple[Symptom, Failure, Caller, _Nearest]]] = {}
    for symptom in symptoms:
        if f"{_DENIED}[none]" not in symptom.details:
            continue
        for failure in symptom.failures:
            server = mesh.pod_of(failure.proxy)
            if server is None or refusals.elsewhere(failure):
                continue
            caller = caller_of(failure, mesh, shows_tls=shows_tls)
            asked = asked_of(failure, caller, mesh, access_log)
            best = _nearest(server, asked, accounts, mesh)
            if best is not None and not best.slip:
                best = (
                    _admitted_before(server, asked, caller, rollouts, mesh)
                    or _misspelt(server, asked, access_log, mesh)
                    or best
                )
            if best is not None:
                blamed.setdefault(best.policy, []).append((symptom, failure, caller, best))
    for policy, found in blamed.items():
        seen = list({symptom.id: symptom for symptom, _, _, _ in found}.values())
        requests = and_list(f"{f.method} {f.path}".strip() or "connections" for _, f, _, _ in found)
        callers = and_list(caller.name for _, _, caller, _ in found)
        servers = and_list(f"{failure.namespace}/{failure.workload}" for _, failure, _, _ in found)
        reasons = and_list(dict.fromkeys(best.says for _, _, _, best in found), limit=2)
        yield Finding(
            subject_of(policy),
            f"{policy} allows some callers of {servers}, and nothing admits {requests} from "
            f"{callers}: {reasons}.",
            f"Admit the caller with {edit(subject_of(policy))}.",
            evidence=(*symptom_rows(facts, seen), config_rows(istio_config, policy)),
            explains=ids(seen),
            severity=None
            if any(best.slip for _, _, _, best in found)
            else meant(seen, facts, policy),
            # What turns mutual TLS off is surer, where there is such a thing.
            certainty=0.4
            if all(best.admits for _, _, _, best in found)
            else 0.9
            if all(caller.plain for _, _, caller, _ in found)
            else 1.0,
        )


def _nearest(server: Pod, asked: Asked, accounts: set[str], mesh: Mesh) -> _Nearest | None:
    """Return the policy that was most likely meant to admit a request.

    A slip is the surest sign of a mistake: a name that nobody has, or a selector without pods in a
    policy that would have admitted the request. Then comes the rule that fails in the fewest parts,
    of policies for these workloads before those for all.
    """
    candidates: list[tuple[tuple[float, ...], _Nearest]] = []
    for policy in mesh.of("AuthorizationPolicy"):
        if action(policy) != "ALLOW":
            continue
        rules = [judge(rule, asked, accounts) for rule in items(policy.spec, "rules")]
        if _holds(policy, server, asked, mesh):
            narrow = 0 if workload_labels(policy) or target_references(policy) else 1
            if not rules:
                says = "it has no rule, so it admits nobody"
                candidates.append(((9, narrow), _Nearest(policy, says, slip=False)))
            for number, one in enumerate(rules):
                says = f"rule {number} {_lacks(one)}"
                nearest = _Nearest(policy, says, slip=one.slip, admits=one.met)
                missing = len(one.misses) + len(one.unsure)
                candidates.append(((0 if one.slip else 1, narrow, missing), nearest))
        elif any(not one.misses for one in rules) and _meant_for(policy, server, mesh):
            labels = and_list(f"{key}={value}" for key, value in workload_labels(policy).items())
            says = f"it would, but selects {labels} in {policy.namespace}, which no pod has"
            candidates.append(((0, 0, 0), _Nearest(policy, says, slip=True)))
    best = min(candidates, key=lambda entry: entry[0], default=None)
    return best[1] if best else None


def _allowing(server: Pod, asked: Asked, mesh: Mesh) -> Iterator[tuple[ConfigObject, int, Any]]:
    """Yield each rule that may admit what a server is asked for, with its policy and number."""
    for policy in mesh.of("AuthorizationPolicy"):
        if action(policy) == "ALLOW" and _holds(policy, server, asked, mesh):
            for number, rule in enumerate(items(policy.spec, "rules")):
                yield policy, number, rule


def _admitted_before(
    server: Pod, asked: Asked, caller: Caller, rollouts: pd.DataFrame, mesh: Mesh
) -> _Nearest | None:
    """Return the policy that admitted the caller's workload when it ran as another account."""
    if caller.pod is None or not asked.identities:
        return None
    mine = rollouts[
        (rollouts["namespace"] == caller.pod.namespace)
        & (rollouts["workload"] == caller.pod.workload)
        & (rollouts["service_account"] != (caller.pod.service_account or "default"))
    ]
    for account in mine["service_account"].dropna().unique():
        before = Caller(replace(caller.pod, service_account=str(account)), caller.mutual)
        known = replace(asked, identities=_identities(before, mesh))
        for policy, number, rule in _allowing(server, known, mesh):
            if judge(rule, known, ()).met:
                says = (
                    f"rule {number} admits account {account}, which earlier pods of "
                    f"{caller.pod.namespace}/{caller.pod.workload} ran as"
                )
                return _Nearest(policy, says, slip=True)
    return None


def _misspelt(server: Pod, asked: Asked, log: pd.DataFrame, mesh: Mesh) -> _Nearest | None:
    """Return the policy that would admit a request but for a path that nobody ever asks for."""
    paths = set(log.loc[log["proxy"] == server.proxy, "path"].dropna().astype(str))
    for policy, number, rule in _allowing(server, asked, mesh):
        written = [
            str(path)
            for target in items(rule, "to")
            for path in items(mapping(target, "operation"), "paths")
        ]
        if (
            any(alike(asked.path, path) and path not in paths for path in written)
            and not any(matches_path(path, asked.path) for path in written)
            and len(judge(rule, asked, ()).misses) == 1
        ):
            says = f"rule {number} wants paths {and_list(written)}, and {asked.path} is nearly one"
            return _Nearest(policy, says, slip=True)
    return None


def _holds(policy: ConfigObject, server: Pod, asked: Asked, mesh: Mesh) -> bool:
    """Whether a policy counts at a proxy. A waypoint decides for the Services in front of it."""
    if server in mesh.workload_selected(policy):
        return True
    if server.mesh != "waypoint":
        return False
    for reference in target_references(policy):
        name = str(dig(reference, "name", default=""))
        full = mesh.fqdn(name, policy.namespace)
        if dig(reference, "kind") == "Service" and (
            asked.host == name
            or (asked.host.startswith(f"{name}.") and full.startswith(asked.host))
        ):
            return True
    return False


def _lacks(judgement: Judgement) -> str:
    return "cannot be decided here" if judgement.met else judgement.words


def _meant_for(policy: ConfigObject, server: Pod, mesh: Mesh) -> bool:
    """Whether a policy selects no pod at all, and was likely meant for one."""
    labels = workload_labels(policy)
    scope = None if policy.namespace == mesh.root_namespace else policy.namespace
    if not labels or mesh.matching(labels, scope):
        return False
    return server in near_pods(mesh, labels, scope)


@check("MNB503", Severity.ERROR, cause=Cause.CONTROL_PLANE_CONFIG)
def identity_lost(
    mesh: Mesh,
    symptoms: Symptoms,
    istio_config: pd.DataFrame,
    access_log: pd.DataFrame,
    facts: Facts,
) -> Iterator[Finding]:
    """Every caller that a policy admits by its identity shows one.

    An identity comes with mutual TLS only. Where a DestinationRule or a PeerAuthentication turns it
    off, requests still arrive, in plain text, and no rule with principals or namespaces matches
    them: 403 with the details rbac_access_denied_matched_policy[none].
    """
    if not shows_mutual_tls(access_log):
        return
    blamed: dict[ConfigObject, list[tuple[Symptom, ConfigObject]]] = {}
    for symptom in symptoms:
        if f"{_DENIED}[none]" not in symptom.details or symptom.side != "server":
            continue
        for failure in symptom.failures:
            server = mesh.pod_of(failure.proxy)
            caller = caller_of(failure, mesh, shows_tls=True)
            if server is None or not caller.plain or caller.pod is None:
                continue
            known = Caller(caller.pod, mutual=True)
            asked = asked_of(failure, known, mesh, access_log)
            admitting = [
                policy
                for policy in mesh.of("AuthorizationPolicy")
                if action(policy) == "ALLOW"
                and server in mesh.workload_selected(policy)
                and any(not judge(rule, asked, ()).misses for rule in items(policy.spec, "rules"))
            ]
            guilty = _turns_off(caller.pod, server, asked.port, mesh) if admitting else None
            if guilty is not None:
                blamed.setdefault(guilty, []).append((symptom, admitting[0]))
    for guilty, found in blamed.items():
        seen = list({symptom.id: symptom for symptom, _ in found}.values())
        policies = list(dict.fromkeys(policy for _, policy in found))
        yield Finding(
            subject_of(guilty),
            f"{guilty} turns mutual TLS off towards {where_of(seen, mesh)}, so that callers show no"
            f" identity, and {and_list(map(str, policies))} admits them by their identity.",
            f"Set ISTIO_MUTUAL, or take the block out, with {edit(subject_of(guilty))}.",
            evidence=(*symptom_rows(facts, seen), config_rows(istio_config, guilty, *policies)),
            related=tuple(map(subject_of, policies)),
            explains=ids(seen),
        )


def _turns_off(client: Pod, server: Pod, port: int | None, mesh: Mesh) -> ConfigObject | None:
    """Return the object that keeps a client from speaking mutual TLS to a port of a server."""
    mode, policy = mesh.mtls_mode(server, port)
    if mode == "DISABLE" and policy is not None:
        return policy
    for service in mesh.services:
        if mesh.target_port(service) != port or server not in mesh.selected(service):
            continue
        for rule in rules_for_pod(service.host, client, mesh):
            if any(
                one.mode != "ISTIO_MUTUAL" and one.is_for(service.port)
                for one in tls_settings(rule)
            ):
                return rule
    return None
