"""Checks of hosts outside the mesh, and of the ServiceEntries that lead there.

Codes MNB234 to MNB249.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterator
from typing import Any

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
    edit,
    ids,
    restart,
    rows_of,
    subject_of,
    symptom_rows,
    unseen,
    workload_of,
)
from meshnb.checks.mtls import tls_settings
from meshnb.checks.outbound import blocked
from meshnb.checks.routing import host_ports, latest
from meshnb.symptoms import Symptom, Symptoms
from meshnb.symptoms.base import REPEATED
from meshnb.symptoms.requests import split_address
from meshnb.tables import Facts
from meshnb.tables.base import dig, items, mapping
from meshnb.traces.mesh import ConfigObject, Mesh, host_matches, oldest
from meshnb.traces.rules import exported_to, rules_for

#: Where istiod takes addresses from for ServiceEntries without any (Istio: dns-proxy).
_AUTOMATIC = (ipaddress.ip_network("240.240.0.0/16"), ipaddress.ip_network("2001:2::/48"))
_HTTP = ("HTTP", "HTTP2", "GRPC", "GRPC-WEB")


def defining(host: str, mesh: Mesh) -> list[ConfigObject]:
    """Return the ServiceEntries that define a host."""
    return [
        entry
        for entry in mesh.of("ServiceEntry")
        if any(host_matches(str(own), host) for own in items(entry.spec, "hosts"))
    ]


@check("MNB234", Severity.ERROR, cause=Cause.CONTROL_PLANE_CONFIG)
def external_host_without_endpoints(
    mesh: Mesh,
    symptoms: Symptoms,
    istio_config: pd.DataFrame,
    endpoints: pd.DataFrame,
    facts: Facts,
) -> Iterator[Finding]:
    """Every ServiceEntry has endpoints, and they answer.

    With resolution DNS the proxies resolve the host themselves, with STATIC they use what the entry
    lists. A name that does not resolve, or a list that is empty, leaves the cluster without
    endpoints (flag UH); an address where nobody answers gives UF.
    """
    for entry in mesh.of("ServiceEntry"):
        hosts = [str(host) for host in items(entry.spec, "hosts")]
        seen = [
            s
            for s in symptoms
            if bool({"UH", "UF", "DF"} & s.flags)
            and s.side in ("client", "gateway")
            and any(host_matches(host, s.host) for host in hosts)
            and not mesh.ports(s.host)
            and not _begins_tls(s, mesh)
        ]
        empty = _lists_nobody(entry, mesh, facts)
        if not seen and not empty:
            continue
        given = endpoints[endpoints["cluster"].isin([s.cluster for s in seen])]
        resolution = str(dig(entry.spec, "resolution", default="NONE"))
        reason = and_list(s.upstream_failure or s.details for s in seen)
        what = empty or f"the proxies have {given['endpoint'].nunique()} endpoints ({reason})"
        yield Finding(
            subject_of(entry),
            f"{entry} leads to nobody who answers for {and_list(hosts)}: with resolution "
            f"{resolution}, {what}.",
            f"Correct hosts, ports, resolution or endpoints with {edit(subject_of(entry))}.",
            evidence=(
                *symptom_rows(facts, seen),
                Evidence.of(endpoints, given.index),
                config_rows(istio_config, entry),
            ),
            explains=ids(seen),
            certainty=0.8,
            severity=None if seen else Severity.WARNING,
        )


def _lists_nobody(entry: ConfigObject, mesh: Mesh, facts: Facts) -> str:
    """Say why a ServiceEntry has no endpoints by its own words; empty when it may have some."""
    labels = mapping(entry.spec, "workloadSelector", "labels")
    if dig(entry.spec, "resolution") == "STATIC" and not labels:
        return "" if items(entry.spec, "endpoints") else "it lists no endpoints"
    if not labels or unseen(facts, "pods", "pods"):
        return ""
    entries = (one for one in mesh.of("WorkloadEntry") if one.namespace == entry.namespace)
    if mesh.matching(labels, entry.namespace) or any(
        labels.items() <= {**mapping(one.spec, "labels"), **one.labels}.items() for one in entries
    ):
        return ""
    return f"its workloadSelector {json.dumps(dict(labels))} matches no pod and no WorkloadEntry"


def _begins_tls(symptom: Symptom, mesh: Mesh) -> list[ConfigObject]:
    """Return the DestinationRules that make proxies speak TLS where a TLS handshake failed."""
    if "TLS_error" not in symptom.upstream_failure + symptom.details:
        return []
    namespaces = {pod.namespace for pod in mesh.pods_of(symptom.reporters)}
    return [
        rule
        for namespace in sorted(namespaces)
        for rule in rules_for(symptom.host, namespace, mesh)
        if any(one.mode in ("SIMPLE", "MUTUAL") for one in tls_settings(rule))
    ]


@check("MNB235", Severity.ERROR, cause=Cause.CONTROL_PLANE_CONFIG)
def tls_origination_fails(
    mesh: Mesh, symptoms: Symptoms, istio_config: pd.DataFrame, clusters: pd.DataFrame, facts: Facts
) -> Iterator[Finding]:
    """Every DestinationRule that begins TLS to an external host does so as that host expects.

    The server name (sni), the authorities it trusts (caCertificates, the system's when empty), the
    names it accepts (subjectAltNames) and its own certificate stand in the rule. When the handshake
    fails, callers get 503 with flag UF, and the reason in Envoy's words.
    """
    blamed: dict[ConfigObject, list[Symptom]] = {}
    for symptom in symptoms:
        if "UF" not in symptom.flags or mesh.ports(symptom.host) or symptom.side == "server":
            continue
        for rule in dict.fromkeys(_begins_tls(symptom, mesh)):
            blamed.setdefault(rule, []).append(symptom)
    for rule, seen in blamed.items():
        setting = next(one for one in tls_settings(rule) if one.mode in ("SIMPLE", "MUTUAL"))
        reason = seen[0].upstream_failure or seen[0].details
        settings = _tls_of(rule)
        yield Finding(
            subject_of(rule),
            f"{rule} begins TLS ({setting.mode}, {setting.path}) to "
            f"{and_list(s.host for s in seen)}, and the handshake fails: {reason}. "
            f"It says {json.dumps(settings, sort_keys=True)}.",
            f"Correct {_suspect(reason)} with {edit(subject_of(rule))}.",
            evidence=(
                *symptom_rows(facts, seen),
                Evidence.of(rows_of(clusters, destination_rule=f"{rule.name}.{rule.namespace}")),
                config_rows(istio_config, rule),
            ),
            explains=ids(seen),
        )


def _tls_of(rule: ConfigObject) -> Any:
    policy = mapping(rule.spec, "trafficPolicy")
    levels = [mapping(level, "tls") for level in items(policy, "portLevelSettings")]
    return next((one for one in (mapping(policy, "tls"), *levels) if one), {})


def _suspect(reason: str) -> str:
    if "CERTIFICATE_VERIFY_FAILED" in reason:
        return "subjectAltNames" if "SAN" in reason else "caCertificates"
    if "Secret_is_not_supplied" in reason:
        return "credentialName"
    if "WRONG_VERSION_NUMBER" in reason:
        return "the port, or the TLS mode,"
    return "sni, or the client certificate,"


@check("MNB236", Severity.ERROR, cause=Cause.CONTROL_PLANE_CONFIG)
def port_not_registered(
    mesh: Mesh, symptoms: Symptoms, istio_config: pd.DataFrame, services: pd.DataFrame, facts: Facts
) -> Iterator[Finding]:
    """Every port that is called is one that the host's Service or ServiceEntry has.

    What is registered is a host with its ports. Where only what is registered may be called
    (REGISTRY_ONLY), a proxy answers 502 on any other port, or ends the connection.
    """
    if unseen(facts, "services", "services") or unseen(facts, "istio_config", "serviceentries"):
        return
    for symptom in symptoms:
        ports = host_ports(symptom.host, mesh)
        if not blocked(symptom) or not ports or symptom.port is None or symptom.port in ports:
            continue
        entries = defining(symptom.host, mesh)
        front = mesh.ports(symptom.host)
        subject = (
            Subject("Service", front[0].namespace, front[0].service)
            if front
            else subject_of(latest(*entries))
        )
        yield Finding(
            subject,
            f"{and_list(symptom.reporters)} call port {symptom.port} of {symptom.host}, for which "
            f"{subject} has {and_list(sorted(ports))} only.",
            f"Add the port with {edit(subject)}, or call one that is there.",
            evidence=(
                *symptom_rows(facts, [symptom]),
                config_rows(istio_config, *entries),
                Evidence.of(rows_of(services, host=symptom.host)),
            ),
            explains=ids([symptom]),
            severity=Severity.INFO if symptom.count < REPEATED else None,
        )


@check("MNB237", Severity.WARNING, cause=Cause.CONTROL_PLANE_CONFIG)
def port_taken_by_one_host(
    mesh: Mesh,
    symptoms: Symptoms,
    istio_config: pd.DataFrame,
    listeners: pd.DataFrame,
    endpoints: pd.DataFrame,
    access_log: pd.DataFrame,
    services: pd.DataFrame,
    facts: Facts,
) -> Iterator[Finding]:
    """No host without addresses takes all connections to its port.

    Plain TCP says nothing of the host that it is for. For a ServiceEntry without addresses, or a
    Service of type ExternalName, proxies therefore open the port for every address, and what is
    meant for other hosts goes there, too.
    """
    wide = listeners[
        listeners["listener"].fillna("").str.match(r"^(0\.0\.0\.0|\[?::\]?)_\d+$")
        & listeners["cluster"].fillna("").str.startswith("outbound|")
        # A listener that was refused has no filter chains, and so neither of them.
        & listeners["address_prefixes"].map(lambda found: found == ())
        & listeners["server_names"].map(lambda found: found == ())
    ]
    for cluster, rows in wide.groupby("cluster"):
        _, number, _, host = str(cluster).split("|", 3)
        entries = [one for one in defining(host, mesh) if not items(one.spec, "addresses")]
        alias = [one for one in mesh.ports(host) if one.external_name]
        if not entries and not alias:
            continue
        rivals = [
            one
            for one in mesh.of("ServiceEntry")
            if one not in entries
            and not items(one.spec, "addresses")
            and any(
                str(dig(port, "number")) == number and _plain_tcp(port)
                for port in items(one.spec, "ports")
            )
        ]
        strayed = _strayed(str(cluster), entries, access_log, endpoints)
        seen = [s for s in symptoms if s.cluster == cluster and s.kind == "connection"]
        if not alias and not rivals and len(strayed) < REPEATED:
            continue
        subject = (
            subject_of(entries[0])
            if entries
            else Subject("Service", alias[0].namespace, alias[0].service)
        )
        others = f" {and_list(map(str, rivals))} needs the same port." if rivals else ""
        told = (
            f" {len(strayed)} connections that were for other addresses went there."
            if len(strayed)
            else ""
        )
        yield Finding(
            subject,
            f"All connections to port {number} go to {host}, whatever address they are for: "
            f"{subject} has no addresses, so proxies open 0.0.0.0:{number} for it.{others}{told}",
            f"Give it spec.addresses, or turn on DNS capture, with {edit(subject)}."
            if entries
            else f"Take the port out, or make it a ServiceEntry, with {edit(subject)}.",
            evidence=(
                *symptom_rows(facts, seen),
                Evidence.of(listeners, rows.index[:20]),
                Evidence.of(access_log, strayed.index),
                config_rows(istio_config, *entries, *rivals),
                Evidence.of(rows_of(services, host=host)),
            ),
            related=tuple(map(subject_of, rivals)),
            explains=ids(seen),
            severity=Severity.ERROR if seen else None,
            certainty=0.85,
        )


def _plain_tcp(port: Any) -> bool:
    return str(dig(port, "protocol", default="TCP")).upper() not in (*_HTTP, "HTTPS", "TLS")


def _strayed(
    cluster: str, entries: list[ConfigObject], access_log: pd.DataFrame, endpoints: pd.DataFrame
) -> pd.DataFrame:
    """Return the connections that came to a cluster though they were for none of its addresses."""
    lines = rows_of(access_log, cluster=cluster)
    if any(items(entry.spec, "endpoints") for entry in entries):
        return lines.iloc[:0]  # what the callers' DNS says of the host, nobody knows
    known = set(rows_of(endpoints, cluster=cluster)["address"].dropna())
    asked = lines["downstream_local_address"].fillna("").map(lambda text: split_address(text)[0])
    return lines[asked.map(lambda one: bool(known) and one != "" and one not in known).astype(bool)]


@check("MNB238", Severity.WARNING, cause=Cause.CONTROL_PLANE_CONFIG)
def entries_conflict(
    mesh: Mesh, symptoms: Symptoms, istio_config: pd.DataFrame, facts: Facts
) -> Iterator[Finding]:
    """Each external host and port is defined once, or everywhere in the same way.

    Two ServiceEntries for one host and port with different protocols or resolutions, or one for the
    host of a Service, cannot both be right. istiod takes one of them, and a proxy may refuse what
    it makes of both.
    """
    places: dict[tuple[str, int], list[tuple[ConfigObject, str]]] = {}
    for entry in oldest(mesh.of("ServiceEntry")):
        for port in items(entry.spec, "ports"):
            number, protocol = dig(port, "number"), str(dig(port, "protocol", default="TCP"))
            manner = (
                f"{protocol.upper()}, resolution {dig(entry.spec, 'resolution', default='NONE')}"
            )
            for host in items(entry.spec, "hosts"):
                places.setdefault((str(host), int(number or 0)), []).append((entry, manner))
    told: set[tuple[ConfigObject, ConfigObject]] = set()
    for (host, number), claims in places.items():
        for position, (later, manner) in enumerate(claims):
            rival = next(
                (
                    (earlier, other)
                    for earlier, other in claims[:position]
                    if other != manner and earlier is not later and _meet(earlier, later, mesh)
                ),
                None,
            )
            if rival is None or (rival[0], later) in told:
                continue
            told.add((rival[0], later))
            seen = [
                s
                for s in symptoms
                if s.host == host and s.port in (number, None) and s.side != "server"
            ]
            yield Finding(
                subject_of(later),
                f"{later} defines {host}:{number} as {manner}, and the older {rival[0]} as "
                f"{rival[1]}: only one of them counts.",
                f"Keep one of them, with {edit(subject_of(rival[0]))}.",
                evidence=(*symptom_rows(facts, seen), config_rows(istio_config, rival[0], later)),
                related=(subject_of(rival[0]),),
                explains=ids(seen),
                severity=Severity.ERROR if seen else None,
                certainty=0.85,
            )


def _meet(one: ConfigObject, other: ConfigObject, mesh: Mesh) -> bool:
    """Whether some proxy sees two objects."""
    first, second = exported_to(one, mesh), exported_to(other, mesh)
    return "*" in first or "*" in second or bool(first & second)


@check("MNB239", Severity.ERROR, cause=Cause.DATA_PLANE)
def address_without_listener(mesh: Mesh, symptoms: Symptoms, facts: Facts) -> Iterator[Finding]:
    """Every address that DNS gives an application for an external host is one its proxy serves.

    istiod gives ServiceEntries without addresses one of 240.240.0.0/16, which exists nowhere. The
    DNS proxy of a pod answers with it, and the proxy of the same pod must know it: one pod with DNS
    capture and one without do not fit together.
    """
    for symptom in symptoms:
        if symptom.side != "client" or symptom.cluster not in (
            "PassthroughCluster",
            "BlackHoleCluster",
        ):
            continue
        addresses = {split_address(failure.local_address)[0] for failure in symptom.failures}
        pods = mesh.pods_of(symptom.reporters)
        if not pods or not any(map(_automatic, addresses)):
            continue
        subject = workload_of(pods[0])
        yield Finding(
            subject,
            f"{subject} calls {and_list(sorted(addresses))}, an address that Istio's DNS gave for "
            f"a ServiceEntry, and its proxy has no listener for it: {symptom.count} connections "
            "failed.",
            "Turn DNS capture on for the pod with proxyMetadata ISTIO_META_DNS_CAPTURE, or off for "
            f"who resolves for it, then {restart(subject)}.",
            evidence=symptom_rows(facts, [symptom]),
            explains=ids([symptom]),
        )


def _automatic(text: str) -> bool:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    return any(address in network for network in _AUTOMATIC)


@check("MNB240", Severity.ERROR, cause=Cause.CONTROL_PLANE_CONFIG)
def plain_text_to_port_of_tls(
    mesh: Mesh,
    symptoms: Symptoms,
    istio_config: pd.DataFrame,
    access_log: pd.DataFrame,
    facts: Facts,
) -> Iterator[Finding]:
    """Every external host that is asked in plain HTTP at its port for HTTPS gets TLS on the way.

    A ServiceEntry may send HTTP to port 443 of a host. Then a DestinationRule has to make the
    proxies begin TLS (Istio: tasks/traffic-management/egress/egress-tls-origination). Without it
    the host gets plain text where it expects a handshake, and answers 400 or hangs up.
    """
    if unseen(facts, "istio_config", "destinationrules"):
        return
    for entry in mesh.of("ServiceEntry"):
        for number in _to_tls(entry):
            for host in map(str, items(entry.spec, "hosts")):
                asked = access_log[
                    (access_log["cluster"] == f"outbound|{number}||{host}").fillna(False)
                ]
                namespaces = sorted(asked["namespace"].dropna().unique())
                rules = [rule for one in namespaces for rule in rules_for(host, one, mesh)]
                last = asked.sort_values("start_time")["response_code"].tail(REPEATED)
                in_vain = len(last) == REPEATED and bool((last.fillna(0) >= 400).all())
                if not in_vain or any(_begins_tls_to(rule, number) for rule in rules):
                    continue
                seen = [s for s in symptoms if s.host == host and s.side in ("client", "gateway")]
                yield Finding(
                    subject_of(entry),
                    f"{entry} sends plain HTTP for {host}:{number} to a port for HTTPS, and no "
                    "DestinationRule makes the proxies begin TLS: its answers are "
                    f"{and_list(sorted({str(code) for code in last.dropna()}))}.",
                    f"Begin TLS (trafficPolicy.tls, mode SIMPLE) in a DestinationRule for {host}, "
                    f"or correct targetPort with {edit(subject_of(entry))}.",
                    evidence=(
                        *symptom_rows(facts, seen),
                        Evidence.of(access_log, asked.index),
                        config_rows(istio_config, entry),
                    ),
                    explains=ids(seen),
                    certainty=0.8,
                )


def _to_tls(entry: ConfigObject) -> Iterator[int]:
    """Yield the ports of a ServiceEntry for HTTP that lead to port 443."""
    for port in items(entry.spec, "ports"):
        number = dig(port, "number")
        there = {
            dig(one, "ports", str(dig(port, "name"))) for one in items(entry.spec, "endpoints")
        }
        targets = {dig(port, "targetPort", default=number)} if there <= {None} else there
        in_plain = str(dig(port, "protocol")).upper() in _HTTP
        if in_plain and 443 in targets and isinstance(number, int):
            yield number


def _begins_tls_to(rule: ConfigObject, port: int) -> bool:
    return any(
        setting.mode in ("SIMPLE", "MUTUAL") and setting.is_for(port)
        for setting in tls_settings(rule)
    )
