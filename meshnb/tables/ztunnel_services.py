"""The table ``ztunnel_services``: the Services that each ztunnel knows, and their endpoints."""

from __future__ import annotations

from collections.abc import Iterator

from meshnb.sources.base import Question
from meshnb.tables.base import Column, Facts, Json, Row, Table, dig, items, mapping
from meshnb.tables.envoy import listed, proxy_of
from meshnb.tables.ztunnel import entries, read_dumps, waypoint_name, waypoint_of

ZTUNNEL_SERVICES = Table(
    name="ztunnel_services",
    grain="one row per ztunnel and Service that it knows",
    istioctl="istioctl ztunnel-config service POD.NAMESPACE",
    columns={
        "proxy": Column("string", "the ztunnel as pod.namespace", key=True),
        "namespace": Column("string", "namespace of the Service", key=True),
        "service_name": Column("string", "name of the Service", key=True),
        "service_vip": Column("string", "its virtual IP addresses, separated by commas"),
        "waypoint": Column(
            "string", "Service of its waypoint; None without one, NA for an unknown one"
        ),
        "endpoints": Column("string", "healthy endpoints / all endpoints"),
        "hostname": Column("string", "its full host name", key=True),
        "ports": Column("object", "dict: port of the Service to port of the pods; 0 is by name"),
        "healthy": Column("Int64", "endpoints whose workload is known and healthy"),
        "known": Column("Int64", "all endpoints"),
        "unhealthy": Column("object", "tuple: identifiers of the workloads of the other endpoints"),
        "waypoint_destination": Column(
            "string", "where the waypoint is: namespace/host or address"
        ),
        "sans": Column("object", "tuple: names that its endpoints' certificates may have"),
        "ip_families": Column("string", "IPv4, IPv6 or Dual"),
        "load_balancer": Column("object", "dict: how endpoints are chosen; NA for any"),
    },
)


@ZTUNNEL_SERVICES.derives
def _rows(facts: Facts) -> Iterator[tuple[Question, Row]]:
    yield from read_dumps(facts, _read)


def _read(dump: Json, question: Question, facts: Facts) -> Iterator[Row]:
    healthy = {
        dig(workload, "uid")
        for workload in entries(dump, "workloads")
        if dig(workload, "status", default="Healthy") == "Healthy"
    }
    services = entries(dump, "services")
    for service in sorted(services, key=_order):
        uids = [dig(endpoint, "workloadUid") for endpoint in entries(service, "endpoints")]
        unhealthy = tuple(str(uid) for uid in uids if uid not in healthy)
        namespace, name, host = _order(service)
        yield {
            "proxy": proxy_of(question),
            "namespace": namespace,
            "service_name": name,
            "service_vip": ",".join(
                str(address).partition("/")[2] for address in items(service, "vips")
            ),
            "waypoint": waypoint_name(service, services),
            "endpoints": f"{len(uids) - len(unhealthy)}/{len(uids)}",
            "hostname": host,
            "ports": dict(mapping(service, "ports")),
            "healthy": len(uids) - len(unhealthy),
            "known": len(uids),
            "unhealthy": unhealthy,
            "waypoint_destination": waypoint_of(service),
            "sans": listed(service, "subjectAltNames"),
            "ip_families": dig(service, "ipFamilies"),
            "load_balancer": dig(service, "loadBalancer"),
        }


def _order(service: Json) -> tuple[str, str, str]:
    return (
        str(dig(service, "namespace", default="")),
        str(dig(service, "name", default="")),
        str(dig(service, "hostname", default="")),
    )
