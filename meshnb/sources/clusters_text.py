"""Envoy's page of clusters in its text form, turned into the JSON form of the same page.

``/clusters`` says in lines what ``/clusters?format=json`` says in JSON
(https://www.envoyproxy.io/docs/envoy/latest/operations/admin#get--clusters): name of the cluster,
address of the host, name of a value, and the value, with ``::`` between them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_COUNTERS = ("cx_connect_fail", "cx_total", "rq_error", "rq_success", "rq_timeout", "rq_total")
_LOCALITY = ("region", "zone", "sub_zone")
_GAUGES = ("cx_active", "rq_active")
_FIELDS = (
    *("hostname", "health_flags", "weight", "region", "zone", "sub_zone", "canary", "priority"),
    *("success_rate", "local_origin_success_rate", "rq_pending_active"),
)
#: The value's name may also stand in the cluster's or the host's, so it is the last that counts.
_LINE = re.compile(
    rf"(?P<place>.*)::(?P<field>{'|'.join((*_COUNTERS, *_GAUGES, *_FIELDS))})::(?P<value>.*)"
)
_PLACE = re.compile(
    r"(?P<cluster>.*?)::(?P<host>(?:\[[^\]]*\]|[^:\[\]]+):\d+|envoy://.*|/.*|@.*|[^:]+)"
)
#: What counts against a host, in the text and in the JSON form (HostHealthStatus).
_FLAGS: Mapping[str, str] = {
    "failed_active_hc": "failed_active_health_check",
    "failed_outlier_check": "failed_outlier_check",
    "degraded_active_hc": "failed_active_degraded_check",
    "pending_dynamic_removal": "pending_dynamic_removal",
    "pending_active_hc": "pending_active_hc",
    "excluded_via_immediate_hc_fail": "excluded_via_immediate_hc_fail",
    "active_hc_timeout": "active_hc_timeout",
}
_EDS_FLAGS: Mapping[str, str] = {
    "failed_eds_health": "UNHEALTHY",
    "degraded_eds_health": "DEGRADED",
    "eds_status_draining": "DRAINING",
}


def clusters_page(text: str) -> dict[str, Any]:
    """Return the page as its JSON form has it. Raises ValueError when no line is one of it.

    A cluster without a host is there as well; lines that nothing is known of are left out.
    """
    clusters: dict[str, dict[str, dict[str, str]]] = {}
    understood = not text.strip()
    for line in text.splitlines():
        if matched := _LINE.fullmatch(line):
            place = _PLACE.fullmatch(matched["place"])
            if place is not None:
                hosts = clusters.setdefault(place["cluster"], {})
                hosts.setdefault(place["host"], {})[matched["field"]] = matched["value"]
                understood = True
        elif "::observability_name::" in line:
            clusters.setdefault(line.partition("::observability_name::")[0], {})
            understood = True
    if not understood:
        raise ValueError("no line of it is one of Envoy's page of clusters")
    return {
        "cluster_statuses": [
            {"name": name, "host_statuses": [_host(host, values) for host, values in hosts.items()]}
            for name, hosts in clusters.items()
        ]
    }


def _host(host: str, values: Mapping[str, str]) -> dict[str, Any]:
    stats: list[dict[str, Any]] = [
        {"name": name, "value": values[name], "type": kind}
        for names, kind in ((_COUNTERS, "COUNTER"), (_GAUGES, "GAUGE"))
        for name in names
        if name in values
    ]
    flags = [flag for flag in values.get("health_flags", "").split("/") if flag]
    health: dict[str, Any] = {_FLAGS[flag]: True for flag in flags if flag in _FLAGS}
    told = [_EDS_FLAGS[flag] for flag in flags if flag in _EDS_FLAGS]
    health["eds_health_status"] = told[0] if told else "HEALTHY"
    found: dict[str, Any] = {
        "address": _address(host),
        "stats": stats,
        "health_status": health,
        "locality": {name: values[name] for name in _LOCALITY if values.get(name)},
    }
    for name in ("weight", "priority"):
        if values.get(name, "").isdecimal():
            found[name] = int(values[name])
    if values.get("hostname"):
        found["hostname"] = values["hostname"]
    return found


def _address(host: str) -> dict[str, Any]:
    if host.startswith("envoy://"):
        listener, _, endpoint = host.removeprefix("envoy://").partition("/")
        internal = {"server_listener_name": listener, "endpoint_id": endpoint}
        return {"envoy_internal_address": internal}
    if host.startswith(("/", "@")):
        return {"pipe": {"path": host}}
    address, colon, port = host.rpartition(":")
    if not colon:
        return {"socket_address": {"address": host}}
    return {"socket_address": {"address": address.strip("[]"), "port_value": int(port)}}
