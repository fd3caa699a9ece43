"""Checks of policies by which a server outside of the proxy decides. Codes MNB530 to MNB539."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from typing import Any

import pandas as pd

from meshnb.checks.authorization import BAD_CUSTOM, action, meant, where_of
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
    unseen,
    workload_of,
)
from meshnb.symptoms import Symptom, Symptoms
from meshnb.tables import Facts
from meshnb.tables.base import dig
from meshnb.traces.mesh import ConfigObject, Mesh

#: What the details of a refusal name: the provider, where istiod put it there, and the policy.
_NAMED = re.compile(r"istio-ext-authz-(?:(.+?)-)?ns\[([^\]]+)\]-policy\[([^\]]+)\]")
#: How sure a log line alone is: the policy may have been corrected since.
_BY_LOG_ALONE = 0.7
_KINDS = ("envoyExtAuthzGrpc", "envoyExtAuthzHttp")


def _providers(mesh: Mesh) -> dict[str, Any] | None:
    """Return the mesh's extension providers by name; None where its settings are not known."""
    if not mesh.settings:
        return None
    try:
        listed = json.loads(mesh.settings.get("extensionProviders", "[]"))
    except ValueError:
        return None
    return {str(dig(one, "name")): one for one in (listed if isinstance(listed, list) else [])}


def _custom(mesh: Mesh) -> list[ConfigObject]:
    return [item for item in mesh.of("AuthorizationPolicy") if action(item) == "CUSTOM"]


def _provider_of(policy: ConfigObject) -> str:
    return str(dig(policy.spec, "provider", "name", default=""))


def _at(symptom: Symptom, policies: list[ConfigObject], mesh: Mesh) -> list[ConfigObject]:
    pods = mesh.pods_of(symptom.reporters)
    return [one for one in policies if any(pod in mesh.workload_selected(one) for pod in pods)]


def _filters(symptom: Symptom, mesh: Mesh) -> list[ConfigObject]:
    """Return the EnvoyFilters by which the reporters of a symptom may ask a server themselves."""
    found = [item for item in mesh.of("EnvoyFilter") if "ext_authz" in str(item.spec)]
    return _at(symptom, found, mesh)


def _settings(mesh: Mesh) -> Subject:
    return Subject("ConfigMap", next(iter(sorted(mesh.control_plane_namespaces)), ""), "istio")


@check("MNB530", Severity.WARNING, cause=Cause.CONTROL_PLANE_CONFIG)
def provider_unknown(
    mesh: Mesh, symptoms: Symptoms, istio_config: pd.DataFrame, facts: Facts
) -> Iterator[Finding]:
    """Every provider that a CUSTOM policy names is one of the mesh's extensionProviders.

    Of a policy with an unknown provider istiod makes one that denies whatever its rules match: 403,
    with bad-CUSTOM-action in the details. Where the mesh's settings or the policies may not be
    read, the details alone name the policy.
    """
    providers = _providers(mesh)
    policies = _custom(mesh)
    if providers is None or unseen(facts, "istio_config", "authorizationpolicies"):
        known = () if providers is None else policies
        yield from _named_by_log(known, mesh, symptoms, istio_config, facts)
    if providers is None:
        return
    for policy in policies:
        name = _provider_of(policy)
        if name in providers:
            continue
        seen = [s for s in symptoms if BAD_CUSTOM in s.details and policy in _at(s, policies, mesh)]
        yield Finding(
            subject_of(policy),
            f"{policy} asks provider {name or '(none)'}, which the mesh does not define; it has "
            f"{and_list(providers) or 'none'}. Whatever its rules match is denied.",
            f"Correct spec.provider.name with {edit(subject_of(policy))}, or define the provider in"
            f" extensionProviders with {edit(_settings(mesh))}.",
            evidence=(*symptom_rows(facts, seen), config_rows(istio_config, policy)),
            related=(_settings(mesh),),
            explains=ids(seen),
            severity=Severity.ERROR if seen else None,
            path="spec.provider.name",
        )


def _named_by_log(
    known: Collection[ConfigObject],
    mesh: Mesh,
    symptoms: Symptoms,
    istio_config: pd.DataFrame,
    facts: Facts,
) -> Iterator[Finding]:
    """Yield what refusals say themselves about policies other than the known ones."""
    judged = {(policy.namespace, policy.name) for policy in known}
    found: dict[tuple[str, str], list[Symptom]] = {}
    providers: dict[tuple[str, str], str] = {}
    for symptom in symptoms:
        match = _NAMED.search(symptom.details) if BAD_CUSTOM in symptom.details else None
        if match is not None and (match[2], match[3]) not in judged:
            found.setdefault((match[2], match[3]), []).append(symptom)
            providers.setdefault((match[2], match[3]), match[1] or "")
    for (namespace, name), seen in found.items():
        subject = Subject("AuthorizationPolicy", namespace, name)
        listed = [one for one in _custom(mesh) if (one.namespace, one.name) == (namespace, name)]
        named = providers[namespace, name]
        provider = f"provider {named}" if named else "a provider"
        yield Finding(
            subject,
            f"{subject} asks {provider}, of "
            f"which istiod can make nothing: {where_of(seen, mesh)} denies whatever the policy's "
            f"rules match, with {BAD_CUSTOM}. Which extensionProviders the mesh defines cannot be "
            "compared, because not all of its settings and policies may be read.",
            f"Compare spec.provider.name with the mesh's extensionProviders, and correct it with "
            f"{edit(subject)}.",
            evidence=(
                *symptom_rows(facts, seen),
                *([config_rows(istio_config, *listed)] if listed else []),
            ),
            explains=ids(seen),
            severity=Severity.INFO if all(one.is_over for one in seen) else Severity.ERROR,
            certainty=_BY_LOG_ALONE,
            path="spec.provider.name",
        )


@check("MNB531", Severity.ERROR, cause=Cause.CONTROL_PLANE_CONFIG)
def provider_fails(
    mesh: Mesh, symptoms: Symptoms, istio_config: pd.DataFrame, facts: Facts
) -> Iterator[Finding]:
    """Every server that a CUSTOM policy asks answers.

    When the proxy cannot ask it, the request is refused: 403 with flag UAEX and ext_authz_error.
    The mesh's settings may name a host or a port that does not exist, or the server may be down.
    """
    providers = _providers(mesh) or {}
    for symptom in symptoms:
        if "ext_authz_error" not in symptom.details:
            continue
        policies = _at(symptom, _custom(mesh), mesh) or _filters(symptom, mesh)
        if not policies:
            continue
        policy = policies[0]
        service, port = _server(providers.get(_provider_of(policy)))
        ports = mesh.ports(mesh.fqdn(service, policy.namespace))
        offered = [one for one in ports if one.port == port]
        pods = [pod for one in offered for pod in mesh.selected(one)]
        cause = None
        if not service:
            subject, why = subject_of(policy), f"its provider {_provider_of(policy)} is not known"
        elif not mesh.known_host(service):
            subject, why = _settings(mesh), f"there is no host {service}"
        elif ports and not offered:
            subject, why = _settings(mesh), f"{service} has no port {port}"
        elif ports and not any(pod.ready for pod in pods):
            subject = (
                workload_of(pods[0])
                if pods
                else Subject("Service", ports[0].namespace, ports[0].service)
            )
            why, cause = f"{service} has no ready endpoint", Cause.DATA_PLANE
        else:
            subject = workload_of(pods[0]) if pods else subject_of(policy)
            why = f"{service}:{port} does not answer in time, or not as it should"
            cause = Cause.DATA_PLANE if pods else None
        yield Finding(
            subject,
            f"{policy} asks provider {_provider_of(policy)} about requests to "
            f"{where_of([symptom], mesh)}, and gets no answer: {why}.",
            f"Correct it with {edit(subject)}.",
            evidence=(*symptom_rows(facts, [symptom]), config_rows(istio_config, *policies)),
            related=tuple(one for one in (subject_of(policy), _settings(mesh)) if one != subject),
            explains=ids([symptom]),
            severity=Severity.INFO if symptom.is_over else None,
            cause=cause,
        )


def _server(provider: Any) -> tuple[str, int | None]:
    for kind in _KINDS:
        service = str(dig(provider, kind, "service", default=""))
        port = dig(provider, kind, "port")
        if service:
            return service.rpartition("/")[2], port if isinstance(port, int) else None
    return "", None


@check("MNB532", Severity.ERROR, cause=Cause.CONTROL_PLANE_CONFIG)
def provider_refuses(
    mesh: Mesh, symptoms: Symptoms, istio_config: pd.DataFrame, facts: Facts
) -> Iterator[Finding]:
    """No server that a CUSTOM policy asks turns away whom it admitted before.

    The answer is the server's own, with flag UAEX and ext_authz_denied: why, only its log says.
    """
    for symptom in symptoms:
        if "ext_authz_denied" not in symptom.details:
            continue
        policies = _at(symptom, _custom(mesh), mesh) or _filters(symptom, mesh)
        if not policies:
            continue
        policy = policies[0]
        yield Finding(
            subject_of(policy),
            f"Provider {_provider_of(policy)}, which {policy} asks, refuses requests to "
            f"{where_of([symptom], mesh)}.",
            f"Read the provider's log, or narrow the policy with {edit(subject_of(policy))}.",
            evidence=(*symptom_rows(facts, [symptom]), config_rows(istio_config, *policies)),
            explains=ids([symptom]),
            severity=meant([symptom], facts),
        )
