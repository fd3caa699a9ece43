"""Weak spots of a mesh in which nothing fails. Codes MNB1700 to MNB1749.

They explain no symptom, so that a diagnosis leaves them out.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
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
    rows_of,
    subject_of,
    workload_of,
)
from meshnb.checks.installation import minor_version
from meshnb.sources import Manifests
from meshnb.tables import Facts
from meshnb.tables.base import dig, items
from meshnb.traces.mesh import Mesh, Pod, plain

#: When support of a minor version of Istio ended (https://istio.io/latest/docs/releases/
#: supported-releases/, as of November 2026).
_SUPPORTED_UNTIL = {
    20: datetime(2024, 6, 25, tzinfo=UTC),
    21: datetime(2024, 9, 27, tzinfo=UTC),
    22: datetime(2025, 1, 16, tzinfo=UTC),
    23: datetime(2025, 4, 16, tzinfo=UTC),
    24: datetime(2025, 6, 19, tzinfo=UTC),
    25: datetime(2025, 9, 30, tzinfo=UTC),
    26: datetime(2025, 12, 22, tzinfo=UTC),
    27: datetime(2026, 4, 7, tzinfo=UTC),
    28: datetime(2026, 7, 1, tzinfo=UTC),
}
#: Until when the same page expects support at least, of versions whose end it does not tell yet.
_SUPPORTED_AT_LEAST = {
    29: datetime(2026, 8, 1, tzinfo=UTC),
    30: datetime(2026, 11, 1, tzinfo=UTC),
}
_TAMPERING = frozenset({"NET_ADMIN", "NET_RAW", "SYS_ADMIN", "ALL"})
#: The Secret in which istiod keeps the root that it makes itself.
_OWN_ROOT = "istio-ca-secret"


@check("MNB1700", Severity.WARNING, cause=Cause.CONTROL_PLANE_CONFIG)
def control_plane_in_plain_text(
    mesh: Mesh, istiod_ports: pd.DataFrame, network_policies: pd.DataFrame
) -> Iterator[Finding]:
    """No port of istiod gives configuration away in plain text.

    15010 answers xDS without TLS to whoever reaches it, with the whole mesh's configuration. It is
    open unless istiod is told otherwise (--grpcAddr="") or a NetworkPolicy keeps callers off.
    """
    opened = istiod_ports[
        (istiod_ports["port"] == 15010)
        & (istiod_ports["answers"] == True).fillna(False).astype(bool)  # noqa: E712  NA is not True
    ]
    for (namespace, name), rows in opened.groupby(["namespace", "istiod"]):
        pod = next((p for p in mesh.pods if (p.namespace, p.pod) == (namespace, name)), None)
        walls = network_policies[network_policies["namespace"] == namespace]
        if len(walls):
            continue
        subject = workload_of(pod) if pod else Subject("Pod", str(namespace), str(name))
        yield Finding(
            subject,
            f"istiod {name} answers xDS in plain text on 15010, and no NetworkPolicy of "
            f"{namespace} keeps callers off.",
            f'Set --grpcAddr="" in its arguments, or add a NetworkPolicy: {edit(subject)}.',
            evidence=(Evidence.of(istiod_ports, rows.index),),
        )


@check("MNB1701", Severity.WARNING, cause=Cause.CONTROL_PLANE_CONFIG)
def plain_text_accepted(mesh: Mesh, pods: pd.DataFrame, facts: Facts) -> Iterator[Finding]:
    """Every workload demands mutual TLS.

    With PERMISSIVE, the default, a server takes plain text from anybody in the cluster, and
    policies by identity do not hold for such callers.
    """
    if isinstance(facts.source, Manifests):
        return  # nothing runs yet
    open_to_all: dict[str, list[Pod]] = {}
    for pod in mesh.pods:
        if pod.mesh == "sidecar" and pod.running and mesh.mtls_mode(pod, None)[0] != "STRICT":
            open_to_all.setdefault(pod.namespace, []).append(pod)
    for namespace, members in open_to_all.items():
        workloads = sorted({pod.workload for pod in members})
        yield Finding(
            Subject("Namespace", "", namespace),
            f"{and_list(workloads)} of namespace {namespace} accept plain text.",
            "Add a PeerAuthentication with mode STRICT once all callers are in the mesh: `kubectl "
            f"-n {namespace} get peerauthentications`.",
            evidence=(
                Evidence.of(pods, pods.index[pods["proxy"].isin([p.proxy for p in members])]),
            ),
        )


@check("MNB1702", Severity.INFO, cause=Cause.CONTROL_PLANE_CONFIG)
def nothing_denied_by_default(mesh: Mesh, pods: pd.DataFrame, facts: Facts) -> Iterator[Finding]:
    """Every workload has a policy that says who may call it.

    Without any ALLOW policy everybody may. A policy without rules in the root namespace turns
    everybody away who is not admitted by another one.
    """
    if isinstance(facts.source, Manifests):
        return  # nothing runs yet
    guarded = {
        pod
        for policy in mesh.of("AuthorizationPolicy")
        if dig(policy.spec, "action") in (None, "ALLOW", "CUSTOM")
        for pod in mesh.workload_selected(policy)
    }
    bare: dict[str, list[Pod]] = {}
    for pod in mesh.pods:
        if pod.mesh == "sidecar" and pod.running and pod not in guarded:
            bare.setdefault(pod.namespace, []).append(pod)
    for namespace, members in bare.items():
        workloads = sorted({pod.workload for pod in members})
        yield Finding(
            Subject("Namespace", "", namespace),
            f"Everybody may call {and_list(workloads)} of namespace {namespace}: no policy admits "
            "some and turns others away.",
            f"Add an AuthorizationPolicy: `kubectl -n {namespace} get authorizationpolicies`.",
            evidence=(
                Evidence.of(pods, pods.index[pods["proxy"].isin([p.proxy for p in members])]),
            ),
        )


@check("MNB1703", Severity.WARNING, cause=Cause.CONTROL_PLANE_CONFIG)
def gateway_open_to_all_namespaces(
    mesh: Mesh, istio_config: pd.DataFrame, facts: Facts
) -> Iterator[Finding]:
    """Every Gateway says which namespaces may bind which hosts.

    With hosts ``*``, or ``*/…`` by leaving the namespace out, a VirtualService of any namespace can
    take a host over that another team serves.
    """
    if isinstance(facts.source, Manifests):
        return  # nothing runs yet
    for gateway in mesh.of("Gateway", group="networking.istio.io"):
        wide = sorted(
            {
                str(host)
                for server in items(gateway.spec, "servers")
                for host in items(server, "hosts")
                if str(host).rpartition("/")[2] == "*" and str(host).partition("/")[0] in ("*", "")
            }
        )
        strangers = [
            service
            for service in mesh.of("VirtualService")
            if service.namespace != gateway.namespace
            and f"{gateway.namespace}/{gateway.name}" in map(str, items(service.spec, "gateways"))
        ]
        if not wide:
            continue
        bound = f" {and_list(strangers)} is bound to it from elsewhere." if strangers else ""
        yield Finding(
            subject_of(gateway),
            f"{gateway} takes {and_list(wide)} from VirtualServices of all namespaces.{bound}",
            f"Set hosts with their namespaces, such as shop/shop.example.com: "
            f"{edit(subject_of(gateway))}.",
            evidence=(config_rows(istio_config, gateway, *strangers),),
            related=tuple(map(subject_of, strangers)),
            severity=None if strangers else Severity.INFO,
        )


@check("MNB1704", Severity.WARNING, cause=Cause.DATA_PLANE)
def sidecar_can_be_bypassed(
    mesh: Mesh, containers: pd.DataFrame, pods: pd.DataFrame
) -> Iterator[Finding]:
    """No application can take its sidecar out of the way.

    One with NET_ADMIN can change the rules that redirect its traffic. A sidecar is no boundary
    against its own pod.
    """
    able: dict[Subject, list[tuple[int, Any]]] = {}
    in_mesh = {(pod.namespace, pod.pod): pod for pod in mesh.pods if pod.mesh == "sidecar"}
    for index, row in zip(containers.index.tolist(), containers.to_dict("records"), strict=True):
        pod = in_mesh.get((str(row["namespace"]), str(row["pod"])))
        if pod is None or str(row["container"]).startswith("istio-") or not pod.running:
            continue
        if _TAMPERING & set(row["capabilities"] or ()):
            able.setdefault(workload_of(pod), []).append((index, row))
    for subject, rows in able.items():
        added = sorted({name for _, row in rows for name in row["capabilities"]})
        yield Finding(
            subject,
            f"{and_list(row['container'] for _, row in rows)} of {subject} has "
            f"{and_list(added)}: it can change the rules that send its traffic to the sidecar.",
            f"Take the capabilities out of the pod template: {edit(subject)}.",
            evidence=(Evidence.of(containers, [index for index, _ in rows]),),
        )


@check("MNB1705", Severity.INFO, cause=Cause.CONTROL_PLANE_CONFIG)
def authority_key_in_cluster(mesh: Mesh, secrets: pd.DataFrame, facts: Facts) -> Iterator[Finding]:
    """No key of a root lies in the cluster.

    istiod makes a root of its own when none is plugged in, and keeps its key in a Secret. Whoever
    may read Secrets of that namespace can make any identity of the mesh.
    """
    for row in secrets.to_dict("records"):
        if row["secret"] != _OWN_ROOT or row["namespace"] not in mesh.control_plane_namespaces:
            continue
        keys = set(row["keys"] or ())
        if "ca-key.pem" not in keys:
            continue
        subject = Subject("Secret", str(row["namespace"]), str(row["secret"]))
        yield Finding(
            subject,
            f"{subject} holds the key of the mesh's root, which istiod made itself.",
            "Let an intermediate authority be plugged in (Secret cacerts), with its root's key "
            f"elsewhere: `kubectl -n {subject.namespace} get secrets`.",
            evidence=(
                Evidence.of(rows_of(secrets, namespace=subject.namespace, secret=subject.name)),
            ),
        )


@check("MNB1706", Severity.WARNING, cause=Cause.CONTROL_PLANE_CONFIG)
def release_out_of_support(mesh: Mesh, versions: pd.DataFrame, facts: Facts) -> Iterator[Finding]:
    """Every istiod is of a release that still gets security fixes.

    Minor versions are supported for about eight months. Later flaws stay open in them, in istiod
    and in the proxies.
    """
    for row in versions[versions["plane"] == "control"].to_dict("records"):
        number = minor_version(row["istio_version"])
        if number is None:
            continue
        oldest = min(_SUPPORTED_UNTIL)
        until = _SUPPORTED_UNTIL.get(max(number, oldest))
        if until is None:
            expected = _SUPPORTED_AT_LEAST.get(number)
            if expected is None or expected <= facts.now:
                facts.gap(
                    f"support of Istio 1.{number}",
                    "not asked",
                    "when it ends is not known here; see "
                    "https://istio.io/latest/docs/releases/supported-releases/",
                )
            continue
        if until > facts.now:
            continue
        pod = next((p for p in mesh.pods if p.pod == row["istiod"]), None)
        subject = workload_of(pod) if pod else Subject("Pod", "", str(row["istiod"]))
        yield Finding(
            subject,
            f"istiod {row['istiod']} is of version {plain(row['istio_version'])}, whose support "
            f"ended by {until:%Y-%m-%d}.",
            "Make a plan to upgrade, one or two minor versions at a time; see "
            "`istioctl x precheck`.",
            evidence=(Evidence.of(rows_of(versions, plane="control", istiod=row["istiod"])),),
        )


@check("MNB1707", Severity.INFO, cause=Cause.DATA_PLANE)
def traces_broken(mesh: Mesh, access_log: pd.DataFrame) -> Iterator[Finding]:
    """Every application passes the headers of a trace on.

    The proxy gives each request an id, in x-request-id. When the calls that an application makes
    meanwhile have other ids, it drops the headers, and its traces end there.
    """
    ids_in: dict[str, set[str]] = {}
    ids_out: dict[str, set[str]] = {}
    known = access_log[access_log["request_id"].notna()]
    for proxy, direction, request in zip(
        known["proxy"], known["direction"], known["request_id"], strict=True
    ):
        (ids_in if direction == "inbound" else ids_out).setdefault(proxy, set()).add(request)
    for proxy, calls in ids_out.items():
        asked = ids_in.get(proxy, set())
        pod = mesh.pod_of(proxy)
        if pod is None or pod.mesh != "sidecar" or len(asked) < _ENOUGH or len(calls) < _ENOUGH:
            continue
        if asked & calls:
            continue
        subject = workload_of(pod)
        rows = known[known["proxy"] == proxy]
        yield Finding(
            subject,
            f"None of {len(calls)} calls that {pod.pod} makes has the id of one of the "
            f"{len(asked)} requests that it gets: it does not pass the headers on.",
            "Let the application copy x-request-id, traceparent and the b3 headers to its calls; "
            f"see `kubectl -n {pod.namespace} logs {pod.pod} -c istio-proxy`.",
            evidence=(Evidence.of(access_log, rows.index[:6]),),
        )


#: From so many requests on, none with a common id is no accident.
_ENOUGH = 10
