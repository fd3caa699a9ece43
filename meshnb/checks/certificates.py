"""Checks of certificates, roots and identities, of proxies and of istiod's authority.

Codes MNB450 to MNB499.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import pandas as pd

from meshnb.checks.base import (
    Cause,
    Evidence,
    Finding,
    Severity,
    Subject,
    and_list,
    check,
    config_rows,
    counted,
    edit,
    ids,
    restart,
    rows_of,
    subject_of,
    symptom_rows,
    workload_of,
)
from meshnb.checks.control_plane import of_control_plane
from meshnb.checks.routing import destination_rules
from meshnb.checks.stuck import waiting_for
from meshnb.symptoms import Symptom, Symptoms
from meshnb.symptoms.base import one_line
from meshnb.tables import Facts
from meshnb.tables.base import dig, items, mapping
from meshnb.traces.mesh import ConfigObject, Mesh, Pod, host_matches, plain

#: What a client's proxy logs when it does not know the server's root, or the server not its own.
_UNKNOWN_ROOT = re.compile(
    r"unable[_ ]to[_ ]get[_ ]local[_ ]issuer|ALERT_UNKNOWN_CA|self[_ -]signed[_ ]certificate"
)
#: What it logs when the server is not who it should be, with the names that the server has.
_WRONG_NAME = re.compile(r"SAN[_ ]matcher(?:.*?SANs[_ ]are[_ ]\[([^\]]*)\])?")
_NO_CERTIFICATE = "Secret_is_not_supplied_by_SDS"
#: A root that ends so soon has to be followed by another one now, in days.
_ROOT_SOON_DAYS = 30.0
#: Names of a plugged-in authority's files, and of the same in a secret of type kubernetes.io/tls.
_CA_FILES = {"ca-cert.pem", "ca-key.pem", "root-cert.pem", "cert-chain.pem"}
_TLS_FILES = {"tls.crt", "tls.key", "ca.crt"}
#: The Secret with an authority that is plugged in, and the one of istiod's own.
_PLUGGED_IN, _OWN = "cacerts", "istio-ca-secret"


def failure_text(symptom: Symptom) -> str:
    """Return all that a proxy said about a failed connection to an endpoint."""
    return f"{symptom.upstream_failure} {symptom.details}"


@dataclass(frozen=True, slots=True)
class _Held:
    """What one proxy holds: the keys by which its chain is trusted, and those that it trusts."""

    anchors: frozenset[str]
    trusted: frozenset[str]


def _held(certificates: pd.DataFrame) -> Mapping[str, _Held]:
    active = certificates[certificates["status"] == "ACTIVE"]
    own = active[active["resource_name"] == "default"]
    anchors = dict(zip(own["proxy"], own["chain_keys"], strict=True))
    roots: dict[str, set[str]] = {}
    trust = active[active["resource_name"] == "ROOTCA"]
    for proxy, keys in zip(trust["proxy"], trust["trusted_keys"], strict=True):
        roots.setdefault(str(proxy), set()).update(keys or ())
    return {
        proxy: _Held(frozenset(anchors.get(proxy) or ()), frozenset(roots.get(proxy, ())))
        for proxy in sorted({*map(str, anchors), *roots})
    }


def _distrusts(client: _Held, server: _Held) -> bool:
    """Whether one of two proxies does not know the root of the other, as far as it is told."""
    return any(
        bool(one.trusted) and bool(other.anchors) and not other.anchors & one.trusted
        for one, other in ((client, server), (server, client))
    )


def _odd_ones(held: Mapping[str, _Held]) -> list[str]:
    """Return the proxies that are not among the most that trust each other."""
    groups = Counter((one.anchors, one.trusted) for one in held.values() if one.anchors)
    if not groups:
        return []
    usual = _Held(*groups.most_common(1)[0][0])
    return sorted(proxy for proxy, one in held.items() if _distrusts(one, usual))


def _servers(symptom: Symptom, mesh: Mesh) -> list[Pod]:
    return [pod for port in mesh.ports(symptom.host) for pod in mesh.selected(port)]


@check("MNB450", Severity.ERROR, cause=Cause.DATA_PLANE_CONFIG)
def roots_differ(
    mesh: Mesh,
    symptoms: Symptoms,
    certificates: pd.DataFrame,
    istiod_ports: pd.DataFrame,
    facts: Facts,
) -> Iterator[Finding]:
    """Every proxy trusts the root that the other proxies' certificates hang on.

    When the root is replaced at once, proxies get it one by one as they renew or restart. Until
    then those of before and after refuse each other, depending on the age of the pods.
    """
    held = _held(certificates)
    odd = _odd_ones(held)
    shown = istiod_ports[(istiod_ports["port"] == 15012) & istiod_ports["chain_keys"].map(bool)]
    current = {key for every in shown["chain_keys"] for key in every}
    by_workload: dict[Subject, list[Pod]] = {}
    for pod in mesh.pods_of(odd):
        by_workload.setdefault(workload_of(pod), []).append(pod)
    told = [s for s in symptoms if _UNKNOWN_ROOT.search(failure_text(s)) and s.side != "server"]
    for subject, pods in by_workload.items():
        proxies = {pod.proxy for pod in pods}
        seen = [
            s
            for s in told
            if proxies & set(s.reporters) or any(pod in pods for pod in _servers(s, mesh))
        ]
        fresh = all(held[proxy].anchors & current for proxy in proxies)
        rest = "the others still have the one of before" if fresh else "the others have another one"
        rows = certificates[
            certificates["proxy"].isin(list(proxies))
            & certificates["resource_name"].isin(["default", "ROOTCA"])
        ]
        yield Finding(
            subject,
            f"The proxies of {subject} hold a root that the others do not know, or the reverse "
            f"({rest}): mutual TLS between them fails.",
            "Let old and new root be trusted together (both in root-cert.pem), then replace "
            f"the pods that lag behind: {'`kubectl get pods -A`' if fresh else restart(subject)}.",
            evidence=(
                *symptom_rows(facts, seen),
                Evidence.of(certificates, rows.index),
                Evidence.of(istiod_ports, shown.index),
            ),
            related=tuple(Subject("Pod", pod.namespace, pod.pod) for pod in pods),
            explains=ids(seen),
        )
    if not odd:
        yield from _unproven(told, mesh, certificates, facts)


def _unproven(
    told: list[Symptom], mesh: Mesh, certificates: pd.DataFrame, facts: Facts
) -> Iterator[Finding]:
    """Yield what the logs say of unknown roots where the proxies' certificates do not show it."""
    by_workload: dict[Subject, list[Symptom]] = {}
    for symptom in told:
        servers = [pod for pod in _servers(symptom, mesh) if pod.proxy]
        if servers:
            by_workload.setdefault(workload_of(servers[0]), []).append(symptom)
    for subject, seen in by_workload.items():
        proxies = {pod.proxy for pod in mesh.workload_pods((subject.namespace, subject.name))}
        yield Finding(
            subject,
            f"Callers of {subject} and its proxies do not know each other's root: "
            f"{seen[0].upstream_failure or seen[0].details}.",
            f"Compare the roots with `istioctl proxy-config secret`, then replace it: "
            f"{restart(subject)}.",
            evidence=(
                *symptom_rows(facts, seen),
                Evidence.of(certificates, certificates.index[certificates["proxy"].isin(proxies)]),
            ),
            explains=ids(seen),
            certainty=0.6,
        )


@check("MNB451", Severity.ERROR, cause=Cause.DATA_PLANE_CONFIG)
def server_is_somebody_else(
    mesh: Mesh,
    symptoms: Symptoms,
    clusters: pd.DataFrame,
    istio_config: pd.DataFrame,
    facts: Facts,
) -> Iterator[Finding]:
    """Every server has the identity that its callers expect.

    istiod tells callers the service accounts of a Service's endpoints; a DestinationRule may name
    others with subjectAltNames. A server with another identity is refused (SAN matcher).
    """
    for symptom in symptoms:
        found = _WRONG_NAME.search(failure_text(symptom))
        if not found or symptom.side == "server":
            continue
        has = [name.strip() for name in (found[1] or "").split(",") if name.strip()]
        rules = [
            rule
            for rule in destination_rules(mesh, symptom.host)
            if _names_expected(rule)
            and not (has and any(name in _names_expected(rule) for name in has))
        ]
        domains = {_trust_domain(name) for name in has if name.startswith("spiffe://")}
        known = _domains(mesh)
        shaped = clusters[
            clusters["proxy"].isin(list(symptom.reporters))
            & (clusters["service_fqdn"] == symptom.host)
        ]
        is_called = and_list(has) or "another identity"
        if rules:
            subject, cause = subject_of(rules[0]), Cause.CONTROL_PLANE_CONFIG
            why = f"{subject} expects {and_list(_names_expected(rules[0]))} of {symptom.host}"
            how = f"Correct subjectAltNames: {edit(subject)}."
            proof: tuple[Evidence, ...] = (config_rows(istio_config, rules[0]),)
        elif domains and known and not domains & known:
            subject = Subject("ConfigMap", mesh.root_namespace or "istio-system", "istio")
            cause = Cause.CONTROL_PLANE_CONFIG
            why = (
                f"callers expect the trust domain {and_list(sorted(known))} of {symptom.host}, and "
                f"it has {and_list(sorted(domains))}"
            )
            how = f"Add the other one to trustDomainAliases: {edit(subject)}."
            proof = (Evidence.of(rows_of(facts["mesh_settings"], setting="trustDomain")),)
        else:
            ports = mesh.ports(symptom.host)
            if not ports:
                continue
            subject = Subject("Service", ports[0].namespace, ports[0].service)
            cause = Cause.DATA_PLANE_CONFIG
            why = f"callers of {symptom.host} were told of other service accounts"
            how = f"See which pods it selects, and with which service accounts: {edit(subject)}."
            proof = ()
        yield Finding(
            subject,
            f"{why[0].upper()}{why[1:]}; the server that answers is {is_called}.",
            how,
            evidence=(*symptom_rows(facts, [symptom]), Evidence.of(clusters, shaped.index), *proof),
            explains=ids([symptom]),
            cause=cause,
        )


def _names_expected(rule: ConfigObject) -> list[str]:
    """Return the names that a DestinationRule demands of servers, for any of its scopes."""
    policies = [dig(rule.spec, "trafficPolicy")]
    policies += [dig(subset, "trafficPolicy") for subset in items(rule.spec, "subsets")]
    policies += [level for policy in policies for level in items(policy, "portLevelSettings")]
    return [str(name) for policy in policies for name in items(policy, "tls", "subjectAltNames")]


def _trust_domain(name: str) -> str:
    return name.removeprefix("spiffe://").partition("/")[0]


def _domains(mesh: Mesh) -> set[str]:
    aliases = re.findall(r'"([^"]*)"', mesh.settings.get("trustDomainAliases", ""))
    own = mesh.settings.get("trustDomain")
    return {*([own] if own else []), *aliases}


@check("MNB452", Severity.ERROR, cause=Cause.DATA_PLANE_CONFIG)
def certificate_missing(
    mesh: Mesh,
    symptoms: Symptoms,
    certificates: pd.DataFrame,
    proxies: pd.DataFrame,
    facts: Facts,
) -> Iterator[Finding]:
    """Every proxy that is connected has got a certificate of its own.

    The agent lets istiod, or another authority, sign it. Where that is refused or does not answer,
    the proxy has none (Secret is not supplied by SDS), and mutual TLS fails in both directions.
    """
    active = certificates[
        (certificates["status"] == "ACTIVE") & (certificates["resource_name"] == "default")
    ]
    has = set(active[active["not_after"].notna() | active["problem"].notna()]["proxy"])
    asked = set(certificates["proxy"])
    lacking: dict[Subject, list[Pod]] = {}
    for pod in mesh.pods:
        if pod.proxy in asked and pod.proxy not in has and pod.running:
            lacking.setdefault(workload_of(pod), []).append(pod)
    said = [s for s in symptoms if _NO_CERTIFICATE in failure_text(s)]
    for symptom in said:
        for pod in mesh.pods_of(symptom.reporters):
            if pod.proxy in asked - has:
                continue
            own = symptom.side != "gateway" and pod.proxy not in has
            if own and pod not in lacking.setdefault(workload_of(pod), []):
                lacking[workload_of(pod)].append(pod)
    log = facts["proxy_log"] if lacking else pd.DataFrame()
    for subject, pods in lacking.items():
        if not pods:
            continue
        names = [pod.proxy for pod in pods]
        words = log[
            log["proxy"].isin(names)
            & log["message"]
            .str.contains("failed to sign|create certificate|failed to generate|CSR", regex=True)
            .fillna(False)
            .astype(bool)
            & log["level"].isin(["warn", "error"]).astype(bool)
        ]
        hosts = {p.host for p in mesh.services if any(one in pods for one in mesh.selected(p))}
        seen = [s for s in said if set(names) & set(s.reporters)]
        seen += [
            s
            for s in symptoms
            if s not in seen and s.host in hosts and s.side != "server" and "UF" in s.flags
        ]
        seen += [s for s in waiting_for(pods, mesh, symptoms) if s not in seen]
        if not seen and not len(words):
            continue
        last = one_line(words["message"].iloc[-1]).rstrip(".") if len(words) else ""
        yield Finding(
            subject,
            f"{counted(len(pods), 'proxy')} of {subject} got no certificate."
            f"{f' The agent says: {last}.' if last else ''}",
            "Let its agent reach the authority (CA_ADDR, by default istiod's 15012) and be "
            f"accepted there: {edit(subject)}.",
            evidence=(
                *symptom_rows(facts, seen),
                Evidence.of(certificates, certificates.index[certificates["proxy"].isin(names)]),
                Evidence.of(proxies, proxies.index[proxies["proxy"].isin(names)]),
                *((Evidence.of(log, words.tail(3).index),) if len(words) else ()),
            ),
            related=tuple(Subject("Pod", pod.namespace, pod.pod) for pod in pods),
            explains=ids(seen),
        )


@check("MNB453", Severity.ERROR, cause=Cause.CONTROL_PLANE_CONFIG)
def authority_unusable(
    mesh: Mesh,
    symptoms: Symptoms,
    secrets: pd.DataFrame,
    containers: pd.DataFrame,
    facts: Facts,
) -> Iterator[Finding]:
    """Every authority that is plugged in is complete, and istiod can sign with it.

    istiod looks for the Secret cacerts in its namespace, with four files by their names. It does
    not start with an incomplete one, or makes an authority of its own without a word.
    """
    for row in secrets[secrets["secret"] == _PLUGGED_IN].to_dict("records"):
        namespace = str(row["namespace"])
        if namespace not in (mesh.control_plane_namespaces or {namespace}):
            continue
        keys = set(row["keys"] or ())
        lacks = set() if keys >= _TLS_FILES else _CA_FILES - keys
        problem = plain(row["problem"])
        servers = [p for p in mesh.pods if p.mesh == "istiod" and p.namespace == namespace]
        down = bool(servers) and not any(pod.ready for pod in servers)
        log = facts["istiod_log"]
        words = log[
            log["message"]
            .str.contains(
                "signing CA bundle|failed to create an istiod CA|not authorized to sign|"
                "failed to create CA|cacerts",
                regex=True,
            )
            .fillna(False)
            .astype(bool)
            & log["level"].isin(["error", "fatal", "warn"]).astype(bool)
        ]
        if not lacks and problem is None and not (down and len(words)):
            continue
        if problem is not None:
            why = f"its certificate cannot be read ({problem})"
        else:
            why = f"it lacks {and_list(sorted(lacks))}" if lacks else "istiod cannot sign with it"
        seen = of_control_plane(servers, symptoms) if down else []
        last = one_line(words["message"].iloc[-1]).rstrip(".") if len(words) else ""
        subject = Subject("Secret", namespace, _PLUGGED_IN)
        rows = containers[containers["pod"].isin([pod.pod for pod in servers])]
        yield Finding(
            subject,
            f"{subject} is no complete authority: {why}.{f' istiod says: {last}.' if last else ''}",
            "Make it again from the four files ca-cert.pem, ca-key.pem, root-cert.pem and "
            f"cert-chain.pem: `kubectl -n {namespace} create secret generic cacerts`.",
            evidence=(
                *symptom_rows(facts, seen),
                Evidence.of(rows_of(secrets, namespace=namespace, secret=_PLUGGED_IN)),
                Evidence.of(containers, rows.index),
                Evidence.of(log, words.tail(3).index),
            ),
            explains=ids(seen),
            severity=None if down else Severity.WARNING,
        )


@check("MNB454", Severity.ERROR, cause=Cause.DATA_PLANE_CONFIG)
def root_ends(
    mesh: Mesh, symptoms: Symptoms, certificates: pd.DataFrame, facts: Facts
) -> Iterator[Finding]:
    """Every root that proxies trust is valid for long enough to be replaced.

    With the root all certificates end at once. A new one has to be trusted everywhere before the
    first certificate is signed with it, which takes longer than a restart.
    """
    roots = certificates[
        (certificates["resource_name"] == "ROOTCA") & certificates["expires_in_s"].notna()
    ]
    soon = roots[roots["expires_in_s"] < _ROOT_SOON_DAYS * 86_400]
    if not len(soon):
        return
    left = float(soon["expires_in_s"].min()) / 86_400
    namespace = next(iter(sorted(mesh.control_plane_namespaces)), mesh.root_namespace)
    names = set(facts["secrets"].query("namespace == @namespace")["secret"])
    subject = Subject("Secret", namespace, _PLUGGED_IN if _PLUGGED_IN in names else _OWN)
    seen = [s for s in symptoms if left <= 0 and "CERTIFICATE_VERIFY_FAILED" in failure_text(s)]
    end = f"ended {-left:.1f} days ago" if left <= 0 else f"ends in {left:.1f} days"
    yield Finding(
        subject,
        f"The root that {counted(soon['proxy'].nunique(), 'proxy')} trust {end}.",
        f"Replace the authority, and let old and new root be trusted together: {edit(subject)}.",
        evidence=(*symptom_rows(facts, seen), Evidence.of(certificates, soon.index)),
        explains=ids(seen),
        severity=None if left <= 0 else Severity.WARNING,
    )


@check("MNB455", Severity.WARNING, cause=Cause.CONTROL_PLANE_CONFIG)
def mutual_host_reached_through_another(
    mesh: Mesh, access_log: pd.DataFrame, istio_config: pd.DataFrame
) -> Iterator[Finding]:
    """Every request to a host with client certificates came through a handshake for that host.

    Envoy chooses the filter chain by the name in the handshake, and the route by the request's. A
    client that names a host without client certificates first can ask for the other one then.
    """
    modes = _tls_modes(mesh)
    if not any(mode == "MUTUAL" for mode in modes.values()):
        return
    served = access_log[
        access_log["requested_server_name"].notna()
        & (access_log["response_code"] < 400).fillna(False).astype(bool)
    ]
    found: dict[ConfigObject, list[int]] = {}
    for index, proxy, sni, authority in zip(
        served.index.tolist(),
        served["proxy"],
        served["requested_server_name"],
        served["authority"].fillna(""),
        strict=True,
    ):
        host = str(authority).partition(":")[0]
        pod = mesh.pod_of(str(proxy))
        if sni == host or pod is None or pod.mesh != "gateway":
            continue
        for (gateway, name), mode in modes.items():
            stricter = mode == "MUTUAL" and host_matches(name, host)
            if (
                stricter
                and not host_matches(name, str(sni))
                and pod in mesh.matching(mapping(gateway.spec, "selector"), None)
            ):
                found.setdefault(gateway, []).append(index)
    for gateway, rows in found.items():
        names = and_list(dict.fromkeys(access_log.loc[rows, "authority"]))
        through = and_list(dict.fromkeys(access_log.loc[rows, "requested_server_name"]))
        yield Finding(
            subject_of(gateway),
            f"{gateway} served {names}, which demands client certificates, through handshakes for "
            f"{through}, which does not ({counted(len(rows), 'request')}).",
            f"Give the two hosts gateways, or ports, of their own: {edit(subject_of(gateway))}.",
            evidence=(Evidence.of(access_log, rows[-5:]), config_rows(istio_config, gateway)),
        )


def _tls_modes(mesh: Mesh) -> dict[tuple[ConfigObject, str], str]:
    """Return the TLS mode of each host of each of Istio's Gateways."""
    return {
        (gateway, str(host).rpartition("/")[2]): str(dig(server, "tls", "mode", default=""))
        for gateway in mesh.of("Gateway", group="networking.istio.io")
        for server in items(gateway.spec, "servers")
        for host in items(server, "hosts")
    }
