"""What Istio's own proxies count of requests: the access logs, as Istio's standard metrics."""

from __future__ import annotations

import re
from collections import Counter

from tests.alteration import Line
from tests.enriching.base import Enriched, Json

_HOST = re.compile(r"outbound(?:\||_\.)\d+(?:\||_\._?)[^|]*?(?:\||\._)([^|_]+)$")


def _name(pod: Json) -> str:
    """Return the workload of a pod, which the pod's name begins with."""
    name = str(pod["metadata"]["name"])
    return name.rsplit("-", 2)[0] if pod["metadata"].get("ownerReferences") else name


def _labels(line: Line, own: Json, pods: dict[str, Json]) -> tuple[tuple[str, str], ...]:
    other = pods.get(line.endpoint.rpartition(":")[0])
    server = own if line.inbound else other
    host = _HOST.search(line.sni if line.inbound else line.cluster)
    called = host[1] if host else "unknown"
    return (
        ("reporter", "destination" if line.inbound else "source"),
        ("destination_workload", _name(server) if server else "unknown"),
        (
            "destination_workload_namespace",
            server["metadata"]["namespace"] if server else "unknown",
        ),
        ("destination_service", called),
        ("destination_service_name", called.partition(".")[0]),
        ("request_protocol", "tcp" if line.method == "-" else "http"),
        *(() if line.method == "-" else (("response_code", line.code),)),
        ("response_flags", line.flags),
        ("connection_security_policy", "unknown"),
    )


def count_requests(mesh: Enriched) -> None:
    """Let each proxy show, on its agent's page, what its log has, without times and paths."""
    pods: dict[str, Json] = {
        address: pod
        for pod in mesh.objects("pods")
        if (address := (pod.get("status") or {}).get("podIP"))
    }
    by_name = {(p["metadata"]["namespace"], p["metadata"]["name"]): p for p in pods.values()}
    pages = {(q.namespace, q.pod): q for q in mesh.asked("/metrics") if q.port == 15020}
    for question in mesh.logs():
        page = pages.get((question.namespace, question.pod))
        own = by_name.get((question.namespace, question.pod))
        if page is None or own is None:
            continue
        counted = Counter(_labels(line, own, pods) for line in mesh.access(question))
        text = ""
        for labels, number in counted.items():
            tcp = ("request_protocol", "tcp") in labels
            metric = "istio_tcp_connections_opened_total" if tcp else "istio_requests_total"
            printed = ",".join(f'{name}="{value}"' for name, value in labels)
            text += f"{metric}{{{printed}}} {number}\n"
        mesh.give(page, (mesh.text(page) + text).encode())
