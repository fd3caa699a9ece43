"""Checks of tokens: who verifies them, with which keys, and who has to have one.

Codes MNB510 to MNB519.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import pandas as pd

from meshnb.checks.authorization import action, caller_of, meant
from meshnb.checks.base import (
    Cause,
    Evidence,
    Finding,
    Severity,
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
from meshnb.checks.routing import for_hosts
from meshnb.symptoms import Symptoms
from meshnb.tables import Facts
from meshnb.tables.base import dig, items, mapping
from meshnb.traces.mesh import ConfigObject, Mesh
from meshnb.traces.rules import bound_gateways, gateway_pods, route_hosts

#: What istiod writes when it cannot fetch the keys of an issuer.
_NOT_FETCHED = re.compile(r"fetch.*(?:jwks|public key)|jwks fetch failed", re.IGNORECASE)
#: What a proxy says of a token when it is the keys that are at fault.
_KEYS = re.compile(r"Jwks|verification_fails")
#: What a proxy says of a token that no rule is for, whatever its keys.
_UNTRUSTED = re.compile(r"issuer_is_not_configured|Audiences_in_Jwt_are_not_allowed")
_CLAIMS = "@request.auth.claims"


def _not_fetched(policy: ConfigObject, log: pd.DataFrame) -> pd.DataFrame:
    """Return what istiod says of keys of a RequestAuthentication that it could not fetch."""
    names = [
        str(value)
        for rule in items(policy.spec, "jwtRules")
        for field in ("jwksUri", "jwks_uri", "issuer")
        if (value := dig(rule, field))
    ]
    about = [
        level != "debug" and _NOT_FETCHED.search(text) is not None and any(n in text for n in names)
        for level, text in zip(log["level"].fillna(""), log["message"].fillna(""), strict=True)
    ]
    rows = log[pd.Series(about, index=log.index, dtype=bool)]
    rows.attrs["table"] = log.attrs.get("table", "")
    return rows


@check("MNB510", Severity.ERROR, cause=Cause.DATA_PLANE)
def token_refused(
    mesh: Mesh,
    symptoms: Symptoms,
    istio_config: pd.DataFrame,
    istiod_log: pd.DataFrame,
    facts: Facts,
) -> Iterator[Finding]:
    """Every token that callers present is accepted.

    A RequestAuthentication makes the proxy verify tokens. One that is expired, from another issuer,
    or signed with a key that is not in the key set is answered with 401; the details say which.
    Where istiod could not fetch the keys, none is accepted.
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
        silent = {policy: _not_fetched(policy, istiod_log) for policy in policies}
        keyless = [policy for policy in policies if len(silent[policy])]
        keys = "Jwks" in symptom.details or (
            bool(keyless) and _KEYS.search(symptom.details) is not None
        )
        changed = set(changed_before(symptom, servers, mesh)) & set(policies)
        likely = (keyless if keys else []) + policies
        policy = next((one for one in policies if one in changed), likely[0])
        senders = list(
            dict.fromkeys(
                workload_of(pod)
                for failure in symptom.failures
                if (pod := caller_of(failure, mesh, shows_tls=False).pod) is not None
                and pod.mesh != "gateway"
            )
        )
        at_policy = keys or bool(changed) or len(senders) != 1
        subject = subject_of(policy) if at_policy else senders[0]
        issuers = and_list(
            str(dig(rule, "issuer")) for one in policies for rule in items(one.spec, "jwtRules")
        )
        where = and_list(f"{pod.namespace}/{pod.workload}" for pod in servers)
        unfetched = f" istiod could not fetch the keys of {policy}." if policy in keyless else ""
        yield Finding(
            subject,
            f"{policy} refuses the tokens that {and_list(map(str, senders)) or 'callers'} "
            f"present to {where}: {reason}. It trusts {issuers}.{unfetched}",
            f"Correct the issuer's keys with {edit(subject_of(policy))}."
            if keys
            else "Let the caller get a fresh token of a trusted issuer, or correct the rule with "
            f"{edit(subject_of(policy))}.",
            evidence=(
                *symptom_rows(facts, [symptom]),
                config_rows(istio_config, policy),
                *((Evidence.of(silent[policy]),) if unfetched else ()),
            ),
            related=tuple(
                dict.fromkeys(
                    one for one in (*map(subject_of, policies), *senders) if one != subject
                )
            ),
            explains=ids([symptom]),
            # Strangers may be turned away; a workload of the mesh that always is asks in vain.
            severity=None if keys or changed or not at_policy else meant([symptom], facts),
            cause=Cause.CONTROL_PLANE_CONFIG
            if keys or changed or (at_policy and _UNTRUSTED.search(symptom.details))
            else None,
        )


@check("MNB511", Severity.WARNING, cause=Cause.CONTROL_PLANE_CONFIG)
def keys_not_fetched(
    mesh: Mesh, istio_config: pd.DataFrame, istiod_log: pd.DataFrame, facts: Facts
) -> Iterator[Finding]:
    """Istiod can fetch the keys of every issuer.

    Keys named by jwksUri are fetched by istiod, not by the proxies. When it cannot reach the issuer
    it sends keys that verify no token, and every token is answered with 401.
    """
    for policy in mesh.of("RequestAuthentication"):
        said = _not_fetched(policy, istiod_log)
        if not len(said):
            continue
        last = said.iloc[-1]
        yield Finding(
            subject_of(policy),
            f"istiod {last['istiod']} cannot fetch the keys of {policy}: {last['message']}",
            "Let istiod reach the issuer, or put the keys into jwtRules.jwks, with "
            f"{edit(subject_of(policy))}.",
            evidence=(config_rows(istio_config, policy), Evidence.of(said.tail(20))),
        )


@check("MNB512", Severity.WARNING, cause=Cause.CONTROL_PLANE_CONFIG)
def token_not_demanded(
    mesh: Mesh, symptoms: Symptoms, istio_config: pd.DataFrame, facts: Facts
) -> Iterator[Finding]:
    """Where tokens are verified, a policy demands one.

    A RequestAuthentication refuses bad tokens only. A request without any passes, unless an
    AuthorizationPolicy asks for requestPrincipals or claims.
    """
    policies = list(mesh.of("AuthorizationPolicy"))
    for rules in mesh.of("RequestAuthentication"):
        pods = [pod for pod in mesh.workload_selected(rules) if pod.in_mesh]
        # Where tokens are refused, or the rules themselves, that is the thing to look at.
        refused = {
            proxy
            for symptom in symptoms
            if "jwt_authn_access_denied" in symptom.details or symptom.kind == "sync"
            for proxy in symptom.reporters
        }
        used = any(_forwards(rule) for rule in items(rules.spec, "jwtRules")) or any(
            _CLAIMS in str(item.spec) for item in mesh.of("VirtualService")
        )
        open_to_all = [
            pod
            for pod in pods
            if not any(
                _demands_token(policy) and pod in mesh.workload_selected(policy)
                for policy in policies
            )
        ]
        if not open_to_all or not items(rules.spec, "jwtRules"):
            continue
        names = and_list(f"{pod.namespace}/{pod.workload}" for pod in open_to_all)
        closed = all(
            any(
                action(policy) == "ALLOW" and pod in mesh.workload_selected(policy)
                for policy in policies
            )
            for pod in open_to_all
        )
        yield Finding(
            subject_of(rules),
            f"{rules} verifies tokens for {names}, and no AuthorizationPolicy demands one there: "
            "requests without a token pass.",
            "Add an AuthorizationPolicy that denies requests with notRequestPrincipals: "
            f'["*"] in namespace {rules.namespace}.',
            evidence=(config_rows(istio_config, rules),),
            severity=Severity.INFO
            if used
            or closed
            or len(open_to_all) < len(pods)
            or refused & {pod.proxy for pod in pods}
            else None,
        )


def _forwards(rule: object) -> bool:
    """Whether the application gets the token or its claims, and may decide by them itself."""
    return bool(
        dig(rule, "forwardOriginalToken")
        or items(rule, "outputClaimToHeaders")
        or dig(rule, "outputPayloadToHeader")
    )


def _demands_token(policy: ConfigObject) -> bool:
    text = str(policy.spec)
    return "equestPrincipals" in text or "request.auth." in text or action(policy) == "CUSTOM"


@check("MNB513", Severity.WARNING, cause=Cause.CONTROL_PLANE_CONFIG)
def claims_without_tokens(
    mesh: Mesh, symptoms: Symptoms, istio_config: pd.DataFrame, facts: Facts
) -> Iterator[Finding]:
    """Every gateway that routes by the claims of tokens verifies tokens.

    A match on @request.auth.claims looks at what the verification left behind. Without a
    RequestAuthentication for the gateway there is nothing, so the route is never taken. Inside the
    mesh such a match has no effect at all.
    """
    verified = {
        pod for item in mesh.of("RequestAuthentication") for pod in mesh.workload_selected(item)
    }
    gateways = {f"{item.namespace}/{item.name}": item for item in mesh.of("Gateway")}
    for service in mesh.of("VirtualService"):
        claims = sorted(
            {
                name
                for route in items(service.spec, "http")
                for match in items(route, "match")
                for field in ("headers", "withoutHeaders")
                for name in mapping(match, field)
                if name.startswith(_CLAIMS)
            }
        )
        bound = [gateways[name] for name in bound_gateways(service) if name in gateways]
        bare = [
            gateway
            for gateway in bound
            if not any(pod in verified for pod in gateway_pods(gateway, mesh))
        ]
        if not claims or (bound and not bare):
            continue
        pods = {pod.proxy for gateway in bare for pod in gateway_pods(gateway, mesh)}
        seen = [
            s
            for s in symptoms
            if s.side == "gateway"
            and "route_not_found" in s.details
            and pods & set(s.reporters)
            and for_hosts(s, route_hosts(service, mesh))
        ]
        where = and_list(map(str, bare)) or "the sidecars, which cannot do that"
        yield Finding(
            subject_of(service),
            f"{service} routes by {and_list(claims)} at {where}, where no RequestAuthentication "
            "verifies tokens: the route is never taken.",
            "Add a RequestAuthentication for the gateway's pods, or take the match out with "
            f"{edit(subject_of(service))}.",
            evidence=(*symptom_rows(facts, seen), config_rows(istio_config, service)),
            related=tuple(map(subject_of, bare)),
            explains=ids(seen),
            severity=Severity.ERROR if seen else None,
        )
