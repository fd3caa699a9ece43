"""The table ``endpoints``: the addresses behind each cluster, and how a proxy fares with them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

import msgspec

from meshnb.sources.base import Question
from meshnb.tables.base import Block, Column, Facts, Got, Json, Row, Table, dig, mapping
from meshnb.tables.envoy import (
    CONFIG_DUMP,
    NO_LIST,
    ODD,
    Shape,
    chosen_dumps,
    each,
    entries,
    proxy_of,
    shaped,
)


class _SocketAddress(Shape):
    address: Any = ""
    port_value: Any = None


class _Address(Shape):
    socket_address: _SocketAddress | ODD = None
    pipe: Any = None
    envoy_internal_address: Any = None


class _Locality(Shape):
    region: Any = None
    zone: Any = None
    sub_zone: Any = None


class _Counter(Shape):
    name: Any = None
    value: Any = 0  # JSON leaves a zero out


class _Host(Shape):
    address: _Address | ODD = None
    health_status: dict[str, Any] | ODD = None
    locality: _Locality | ODD = None
    weight: Any = None
    hostname: Any = None
    priority: Any = 0
    stats: list[_Counter | ODD] | NO_LIST = None


class _Status(Shape):
    name: Any = ""
    host_statuses: list[_Host | ODD] | NO_LIST = None


class _Page(Shape):
    cluster_statuses: list[_Status | ODD] | NO_LIST = None


class _Endpoint(Shape):
    address: _Address | ODD = None
    hostname: Any = None


class _Held(Shape):
    endpoint: _Endpoint | ODD = None
    health_status: Any = "UNKNOWN"
    load_balancing_weight: Any = None


class _Group(Shape):
    locality: _Locality | ODD = None
    priority: Any = 0
    lb_endpoints: list[_Held | ODD] | NO_LIST = None


class _Assignment(Shape):
    cluster_name: Any = ""
    endpoints: list[_Group | ODD] | NO_LIST = None


class _Entry(Shape):
    endpoint_config: _Assignment | ODD = None


_ENTRIES = msgspec.json.Decoder(list[_Entry | ODD])
_CLUSTERS = Got(
    15000,
    "/clusters?format=json",
    proxies=True,
    decode=msgspec.json.Decoder(_Page | ODD).decode,
)

ENDPOINTS = Table(
    name="endpoints",
    grain="one row per proxy, cluster and endpoint",
    asks=(_CLUSTERS, CONFIG_DUMP),
    istioctl="istioctl proxy-config endpoint POD.NAMESPACE",
    columns={
        "proxy": Column("string", "the proxy as pod.namespace", key=True),
        "endpoint": Column("string", "address:port, unix://PATH or envoy://LISTENER/ID", key=True),
        "status": Column("string", "health as istiod told it: HEALTHY, UNHEALTHY, DRAINING, …"),
        "outlier_check": Column(
            "string", "FAILED while outlier detection has it ejected, else OK; NA in a config dump"
        ),
        "cluster": Column("string", "full name of the cluster", key=True),
        "address": Column("string", "address, or path of a pipe"),
        "port": Column("Int64", "port; NA for a pipe or an internal listener"),
        "pod_namespace": Column("string", "namespace of the pod that has the address"),
        "pod": Column("string", "the pod that has the address"),
        "weight": Column("Int64", "weight in load balancing"),
        "priority": Column("Int64", "0 is used first"),
        "region": Column("string", "region of the endpoint"),
        "zone": Column("string", "zone of the endpoint"),
        "locality": Column(
            "string",
            "region/zone/sub-zone, as istioctl proxy-config eds prints it; NA without any",
        ),
        "health_flags": Column(
            "object", "tuple: what counts against it, such as failed_outlier_check"
        ),
        "requests": Column("Int64", "requests sent to it since the proxy knows it", passing=True),
        "requests_ok": Column("Int64", "requests it answered without a 5xx", passing=True),
        "requests_failed": Column(
            "Int64", "requests that failed or were answered with a 5xx", passing=True
        ),
        "connections": Column("Int64", "connections made to it", passing=True),
        "connections_active": Column("Int64", "connections open now", passing=True),
        "connections_failed": Column("Int64", "connections that could not be made", passing=True),
        "hostname": Column("string", "host name, where it was found by DNS"),
        "origin": Column(
            "string",
            "clusters (what the proxy uses, with counters) or config dump (what istiod assigned to"
            " it, for a proxy that was not asked for its clusters)",
        ),
    },
)

_ASSIGNMENTS = ("dynamic_endpoint_configs", "static_endpoint_configs")
#: What both pages say of an endpoint.
_NAMES = (
    *("address", "port", "endpoint", "cluster", "status", "weight", "hostname"),
    *("region", "zone", "locality", "priority"),
)
_COUNTERS = {
    "rq_total": "requests",
    "rq_success": "requests_ok",
    "rq_error": "requests_failed",
    "cx_total": "connections",
    "cx_active": "connections_active",
    "cx_connect_fail": "connections_failed",
}


@ENDPOINTS.derives
def _rows(facts: Facts) -> Iterator[tuple[Question, Block]]:
    yield from facts.read(_CLUSTERS, _used)
    asked = [question for question in facts.source.questions() if _CLUSTERS.matches(question)]
    known = {proxy_of(question) for question in asked}
    dumps = [
        question
        for question in facts.source.questions()
        if CONFIG_DUMP.matches(question) and proxy_of(question) not in known
    ]
    if dumps:
        yield from facts.read(chosen_dumps(dumps), _assigned)


def _used(page: Json, question: Question, facts: Facts) -> Iterator[Block]:
    statuses = shaped(page, _Page).cluster_statuses
    if not isinstance(statuses, list | None):
        raise ValueError("cluster_statuses is no list")
    values = []
    for status in each(statuses, _Status):
        cluster = str(status.name)
        for host in each(status.host_statuses, _Host):
            health = mapping(host.health_status)
            locality = shaped(host.locality, _Locality)
            counted = {
                counter.name: counter.value
                for counter in each(host.stats, _Counter)
                if isinstance(counter.name, str)
            }
            values.append(
                (
                    *_address(shaped(host.address, _Address)),
                    cluster,
                    health.get("eds_health_status", "UNKNOWN"),
                    *(host.weight, host.hostname),
                    *_named(locality),
                    host.priority,
                    "FAILED" if health.get("failed_outlier_check") is True else "OK",
                    tuple(name for name, value in health.items() if value is True),
                    *map(counted.get, _COUNTERS),
                )
            )
    names = (*_NAMES, "outlier_check", "health_flags", *_COUNTERS.values())
    yield _block(names, values, {"proxy": proxy_of(question), "origin": "clusters"}, facts)


def _assigned(dump: Json, question: Question, facts: Facts) -> Iterator[Block]:
    values = []
    found = entries(dump, "EndpointsConfigDump", _ASSIGNMENTS, question, facts, _ENTRIES)
    for entry in chain.from_iterable(some for _, some in found):
        assignment = shaped(shaped(entry, _Entry).endpoint_config, _Assignment)
        cluster = str(assignment.cluster_name)
        for group in each(assignment.endpoints, _Group):
            named = _named(shaped(group.locality, _Locality))
            for held in each(group.lb_endpoints, _Held):
                endpoint = shaped(held.endpoint, _Endpoint)
                values.append(
                    (
                        *_address(shaped(endpoint.address, _Address)),
                        cluster,
                        held.health_status,
                        held.load_balancing_weight,
                        endpoint.hostname,
                        *named,
                        group.priority,
                    )
                )
    shared = {"proxy": proxy_of(question), "origin": "config dump", "health_flags": ()}
    yield _block(_NAMES, values, shared, facts)


def _named(locality: _Locality) -> tuple[Any, Any, str | None]:
    """Return region, zone, and all parts together: one counts with the one above it only."""
    region, zone, sub_zone = locality.region, locality.zone, locality.sub_zone
    if not zone:
        return region, zone, str(region) if region else None
    text = f"{region or ''}/{zone}"
    return region, zone, f"{text}/{sub_zone}" if sub_zone else text


def _block(
    names: tuple[str, ...], values: list[tuple[Any, ...]], shared: Row, facts: Facts
) -> Block:
    """Return the rows in istioctl's order, with the pod behind each address."""
    values.sort(key=lambda row: (row[0], row[1] or 0, row[3]))
    if pods := facts.once(pods_by_address):
        names = (*names, "pod_namespace", "pod")
        values = [row + pods.get(row[0], (None, None)) for row in values]
    return Block(names, values, shared)


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


def _address(address: _Address) -> tuple[str, int | None, str]:
    """Return address, port, and both together."""
    if isinstance(socket := address.socket_address, _SocketAddress):
        host, port = str(socket.address), socket.port_value
        return (
            (host, port, f"{host}:{port}") if isinstance(port, int) and port else (host, None, host)
        )
    host = ""
    if path := dig(address.pipe, "path"):
        host = f"unix://{path}"
    elif internal := mapping(address.envoy_internal_address):
        name = dig(internal, "server_listener_name", default="")
        host = f"envoy://{name}/{dig(internal, 'endpoint_id', default='')}"
    return host, None, host
