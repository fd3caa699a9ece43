"""The table ``ztunnel_workloads``: the workloads that each ztunnel knows."""

from __future__ import annotations

from collections.abc import Iterator

from meshnb.sources.base import Question
from meshnb.tables.base import Column, Facts, Json, Row, Table, dig, items
from meshnb.tables.envoy import listed, proxy_of
from meshnb.tables.ztunnel import entries, read_dumps, waypoint_name, waypoint_of

ZTUNNEL_WORKLOADS = Table(
    name="ztunnel_workloads",
    grain="one row per ztunnel and workload that it knows",
    istioctl="istioctl ztunnel-config workload POD.NAMESPACE",
    columns={
        "proxy": Column("string", "the ztunnel as pod.namespace", key=True),
        "namespace": Column("string", "namespace of the workload"),
        "pod_name": Column("string", "name of the workload, most often a pod"),
        "address": Column("string", "IP addresses, separated by commas, or the host name"),
        "node": Column("string", "Kubernetes node that it runs on"),
        "waypoint": Column(
            "string", "Service of its waypoint; None without one, NA for an unknown one"
        ),
        "protocol": Column("string", "HBONE, or TCP for what is not in the mesh"),
        "uid": Column("string", "identifier of the workload", key=True),
        "status": Column("string", "Healthy or Unhealthy"),
        "workload_name": Column("string", "name of what the pod belongs to"),
        "workload_type": Column("string", "kind of what the pod belongs to: deployment, pod, …"),
        "service_account": Column("string", "service account it runs as"),
        "trust_domain": Column("string", "trust domain of its identity"),
        "canonical_name": Column("string", "name of its application"),
        "canonical_revision": Column("string", "version of its application"),
        "services": Column("object", "tuple: Services that it is behind, namespace/host"),
        "authorization_policies": Column(
            "object", "tuple: policies that select it, namespace/name"
        ),
        "waypoint_destination": Column(
            "string", "where the waypoint is: namespace/host or address"
        ),
        "cluster_id": Column("string", "Kubernetes cluster that it is in"),
        "network": Column("string", "network that it is in"),
        "network_mode": Column("string", "Standard or HostNetwork"),
        "region": Column("string", "region that it is in"),
        "zone": Column("string", "zone that it is in"),
        "capacity": Column("Int64", "its share among endpoints of a Service"),
        "native_tunnel": Column("boolean", "whether it speaks HBONE itself"),
    },
)


@ZTUNNEL_WORKLOADS.derives
def _rows(facts: Facts) -> Iterator[tuple[Question, Row]]:
    yield from read_dumps(facts, _read)


def _read(dump: Json, question: Question, facts: Facts) -> Iterator[Row]:
    services = entries(dump, "services")
    for workload in sorted(entries(dump, "workloads"), key=_order):
        yield {
            "proxy": proxy_of(question),
            "namespace": dig(workload, "namespace", default=""),
            "pod_name": dig(workload, "name", default=""),
            "address": ",".join(map(str, items(workload, "workloadIps")))
            or dig(workload, "hostname", default=""),
            "node": dig(workload, "node", default=""),
            "waypoint": waypoint_name(workload, services),
            "protocol": dig(workload, "protocol", default="TCP"),
            "uid": dig(workload, "uid", default=""),
            "status": dig(workload, "status", default="Healthy"),
            "workload_name": dig(workload, "workloadName"),
            "workload_type": dig(workload, "workloadType"),
            "service_account": dig(workload, "serviceAccount"),
            "trust_domain": dig(workload, "trustDomain"),
            "canonical_name": dig(workload, "canonicalName"),
            "canonical_revision": dig(workload, "canonicalRevision"),
            "services": listed(workload, "services"),
            "authorization_policies": listed(workload, "authorizationPolicies"),
            "waypoint_destination": waypoint_of(workload),
            "cluster_id": dig(workload, "clusterId"),
            "network": dig(workload, "network") or None,
            "network_mode": dig(workload, "networkMode"),
            "region": dig(workload, "locality", "region"),
            "zone": dig(workload, "locality", "zone"),
            "capacity": dig(workload, "capacity"),
            "native_tunnel": dig(workload, "nativeTunnel", default=False),
        }


def _order(workload: Json) -> tuple[str, str]:
    name = f"{dig(workload, 'namespace', default='')}.{dig(workload, 'name', default='')}"
    return name, str(dig(workload, "node", default=""))
