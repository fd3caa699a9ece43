"""The table ``proxy_status``: what istiod has sent to each proxy, and what became of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from meshnb.sources.base import HttpQuestion, Question
from meshnb.tables.base import Column, Facts, Got, Json, Row, Table, dig, mapping, moment

PROXY_STATUS = Table(
    name="proxy_status",
    grain="one row per proxy, istiod and xDS type",
    asks=Got(15014, "/debug/syncz"),
    istioctl="istioctl proxy-status -v 1",
    columns={
        "proxy": Column("string", "the proxy as pod.namespace", key=True),
        "istiod": Column("string", "the istiod pod that it is connected to", key=True),
        "xds": Column(
            "string", "kind of configuration: CDS, LDS, EDS, RDS, ECDS, SDS, NDS, …", key=True
        ),
        "sync": Column(
            "string",
            "SYNCED, STALE (sent, no answer yet), ERROR (refused by the proxy), NOT SENT (asked"
            " for, never sent) or IGNORED (not asked for)",
        ),
        "sent": Column("string", "nonce of what was sent last", passing=True),
        "acked": Column("string", "nonce of what the proxy accepted last", passing=True),
        "sent_at": Column("datetime64[us, UTC]", "when it was sent last", passing=True),
        "age_s": Column("Float64", "how long that was before the answer, in seconds", passing=True),
        "stale_s": Column("Float64", "the same while STALE or ERROR, else NA", passing=True),
        "error": Column("string", "why the proxy refused it"),
        "proxy_type": Column("string", "sidecar, router, waypoint or ztunnel"),
        "istio_version": Column("string", "version of the proxy"),
        "cluster_id": Column("string", "Kubernetes cluster of the proxy"),
    },
)

#: The types in istioctl's order; it names those that a proxy does not ask for, too.
_ALWAYS = {
    "type.googleapis.com/envoy.config.cluster.v3.Cluster": "CDS",
    "type.googleapis.com/envoy.config.listener.v3.Listener": "LDS",
    "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment": "EDS",
    "type.googleapis.com/envoy.config.route.v3.RouteConfiguration": "RDS",
    "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig": "ECDS",
}
_SHORT = {
    **_ALWAYS,
    "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret": "SDS",
    "type.googleapis.com/istio.networking.nds.v1.NameTable": "NDS",
    "type.googleapis.com/istio.mesh.v1alpha1.ProxyConfig": "PCDS",
    "type.googleapis.com/istio.workload.Address": "WDS",
    "type.googleapis.com/istio.workload.Workload": "WDS",
    "type.googleapis.com/istio.security.Authorization": "WADS",
}
#: Fields of an istiod that does not list resources by type.
_FIELDS = {
    "type.googleapis.com/envoy.config.cluster.v3.Cluster": "cluster",
    "type.googleapis.com/envoy.config.listener.v3.Listener": "listener",
    "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment": "endpoint",
    "type.googleapis.com/envoy.config.route.v3.RouteConfiguration": "route",
    "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig": "extensionconfig",
}


@PROXY_STATUS.reads
def _rows(page: Json, question: Question, facts: Facts) -> Iterator[Row]:
    if not isinstance(page, list):
        raise ValueError("it is no list of proxies")
    assert isinstance(question, HttpQuestion)
    taken_at = facts.answer(question).taken_at
    for status in page:
        resources = _resources(mapping(status))
        for url in [*_ALWAYS, *sorted(resources.keys() - _ALWAYS.keys())]:
            resource = mapping(resources, url)
            sync = _sync(resource) if url in resources else "IGNORED"
            # Go writes a time that was never set as the year 1.
            sent_at = moment(resource.get("sentTime")) if resource.get("sent") else None
            age = None if sent_at is None else (taken_at - sent_at).total_seconds()
            yield {
                "proxy": dig(status, "proxy"),
                "istiod": question.pod,
                "xds": _SHORT.get(url) or url.rpartition(".")[2],
                "sync": sync,
                "sent": resource.get("sent") or None,
                "acked": resource.get("acked") or None,
                "sent_at": sent_at,
                "age_s": age,
                "stale_s": age if sync in ("STALE", "ERROR") else None,
                "error": resource.get("lastError") or None,
                "proxy_type": dig(status, "proxy_type"),
                "istio_version": dig(status, "istio_version"),
                "cluster_id": dig(status, "cluster_id"),
            }


def _resources(status: Mapping[str, Any]) -> Mapping[str, Any]:
    if "resources" in status:
        return mapping(status, "resources")
    return {
        url: {"sent": status[f"{field}_sent"], "acked": status.get(f"{field}_acked")}
        for url, field in _FIELDS.items()
        if status.get(f"{field}_sent")
    }


def _sync(resource: Mapping[str, Any]) -> str:
    if resource.get("lastError"):
        return "ERROR"
    if not resource.get("sent"):
        return "NOT SENT"
    return "SYNCED" if resource.get("acked") == resource.get("sent") else "STALE"
