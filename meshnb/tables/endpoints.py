"""The table ``endpoints``: the addresses behind each cluster, and how a proxy fares with them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from meshnb.sources.base import Question
from meshnb.tables.base import Column, Facts, Got, Json, Row, Table, dig, items, mapping
from meshnb.tables.envoy import address_port, proxy_of

ENDPOINTS = Table(
    name="endpoints",
    grain="one row per proxy, cluster and endpoint",
    asks=Got(15000, "/clusters?format=json", proxies=True),
    istioctl="istioctl proxy-config endpoint POD.NAMESPACE",
    columns={
        "proxy": Column("string", "the proxy as pod.namespace", key=True),
        "endpoint": Column("string", "address:port, unix://PATH or envoy://LISTENER/ID", key=True),
        "status": Column("string", "health as istiod told it: HEALTHY, UNHEALTHY, DRAINING, …"),
        "outlier_check": Column("string", "FAILED while outlier detection has it ejected, else OK"),
        "cluster": Column("string", "full name of the cluster", key=True),
        "address": Column("string", "address, or path of a pipe"),
        "port": Column("Int64", "port; NA for a pipe or an internal listener"),
        "pod_namespace": Column("string", "namespace of the pod that has the address"),
        "pod": Column("string", "the pod that has the address"),
        "weight": Column("Int64", "weight in load balancing"),
        "priority": Column("Int64", "0 is used first"),
        "region": Column("string", "region of the endpoint"),
        "zone": Column("string", "zone of the endpoint"),
        "health_flags": Column(
            "object", "tuple: what counts against it, such as failed_outlier_check"
        ),
        "requests": Column("Int64", "requests sent to it since the proxy knows it"),
        "requests_ok": Column("Int64", "requests it answered without a 5xx"),
        "requests_failed": Column("Int64", "requests that failed or were answered with a 5xx"),
        "connections": Column("Int64", "connections made to it"),
        "connections_active": Column("Int64", "connections open now"),
        "connections_failed": Column("Int64", "connections that could not be made"),
        "hostname": Column("string", "host name, where it was found by DNS"),
    },
)

_COUNTERS = {
    "rq_total": "requests",
    "rq_success": "requests_ok",
    "rq_error": "requests_failed",
    "cx_total": "connections",
    "cx_active": "connections_active",
    "cx_connect_fail": "connections_failed",
}


@ENDPOINTS.reads
def _rows(page: Json, question: Question, facts: Facts) -> Iterator[Row]:
    if not isinstance(dig(page, "cluster_statuses", default=[]), list):
        raise ValueError("cluster_statuses is no list")
    pods = pods_by_address(facts)
    found = [
        (_address(dig(host, "address")), str(dig(status, "name", default="")), host)
        for status in items(page, "cluster_statuses")
        for host in items(status, "host_statuses")
    ]
    found.sort(key=lambda entry: (entry[0][0], entry[0][1] or 0, entry[1]))
    for (address, port), cluster, host in found:
        namespace, pod = pods.get(address, (None, None))
        health = mapping(host, "health_status")
        yield {
            "proxy": proxy_of(question),
            "endpoint": address if port is None else f"{address}:{port}",
            "status": health.get("eds_health_status", "UNKNOWN"),
            "outlier_check": "FAILED" if health.get("failed_outlier_check") is True else "OK",
            "cluster": cluster,
            "address": address,
            "port": port,
            "pod_namespace": namespace,
            "pod": pod,
            "weight": dig(host, "weight"),
            "priority": dig(host, "priority", default=0),
            "region": dig(host, "locality", "region"),
            "zone": dig(host, "locality", "zone"),
            "health_flags": tuple(name for name, value in health.items() if value is True),
            **_counters(host),
            "hostname": dig(host, "hostname"),
        }


def pods_by_address(facts: Facts) -> Mapping[str, tuple[str, str]]:
    """Return namespace and name of the pod behind each pod address.

    Pods on the host's network share the node's address and pods that have ended have given theirs
    back, so both are left out. Of two pods with one address, the younger has it.
    """
    pods = facts["pods"]
    shown = pods[
        pods["address"].notna()
        & ~pods["host_network"].fillna(value=False)
        & ~pods["phase"].isin(["Succeeded", "Failed"]).fillna(value=False)
    ].sort_values("created", kind="stable")
    return {
        str(address): (str(namespace), str(pod))
        for address, namespace, pod in zip(
            shown["address"], shown["namespace"], shown["pod"], strict=True
        )
    }


def _address(address: Json) -> tuple[str, int | None]:
    if path := dig(address, "pipe", "path"):
        return f"unix://{path}", None
    internal = mapping(address, "envoy_internal_address")
    if internal:
        name = dig(internal, "server_listener_name", default="")
        return f"envoy://{name}/{dig(internal, 'endpoint_id', default='')}", None
    return str(dig(address, "socket_address", "address", default="")), address_port(address) or None


def _counters(host: Json) -> dict[str, Any]:
    counted: dict[str, Any] = {}
    for stat in items(host, "stats"):
        column = _COUNTERS.get(str(dig(stat, "name")))
        if column is not None:
            counted[column] = dig(stat, "value", default=0)  # JSON leaves a zero out
    return counted
