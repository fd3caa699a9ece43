"""What is never wholly quiet: applications' own errors, limits that are meant, pods that go."""

from __future__ import annotations

import copy
from typing import Any

from tests.alteration import Line
from tests.enriching.base import Enriched, Json, name_of
from tests.enriching.envoy import Proxy, inbound, sidecars
from tests.enriching.security import labels_of, twins_of
from tests.enriching.workloads import blamed, template


def _exchange(mesh: Enriched) -> tuple[Proxy, Proxy, Line, Line] | None:
    """Return a caller, a server in which nothing is wrong, and both ends' lines of a request."""
    by_address = {proxy.address: proxy for proxy in sidecars(mesh)}
    for caller in sidecars(mesh):
        for out in caller.access():
            server = by_address.get(out.endpoint.rpartition(":")[0])
            if (
                out.inbound
                or (out.code, out.flags) != ("200", "-")
                or server is None
                or server.pod == caller.pod
            ):
                continue
            app = labels_of(mesh, server).get("app", server.pod)
            if blamed(mesh, server.namespace, app) or blamed(mesh, server.namespace, server.pod):
                continue
            for into in server.access():
                if into.inbound and into.id == out.id and (into.code, into.flags) == ("200", "-"):
                    return caller, server, out, into
    return None


def application_errors(mesh: Enriched) -> None:
    """Let an application answer 404 and 500 now and then, to what it always did."""
    found = _exchange(mesh)
    if found is None:
        return
    caller, server, out, into = found
    fronts, backs = [], []
    asked = [
        ("404", "/items/unknown-17", 8),
        ("404", "/favicon.ico", 4),
        ("500", "/items/broken-3", 2),
    ]
    for code, path, times in asked:
        for number in range(times):
            request_id = f"a9904400-{code}-4{len(path):03}-8000-0{number}"
            new: Any = {"code": code, "path": path, "id": request_id}
            fronts.append(out._replace(**new))
            backs.append(into._replace(**new))
    _both(mesh, caller, server, fronts, backs)


def _few(server: Proxy, number: int) -> int:
    """Return so many, or fewer for a server that has not much to do: at most one in thirty."""
    return min(number, sum(line.inbound for line in server.access()) // 30)


def _both(
    mesh: Enriched, caller: Proxy, server: Proxy, fronts: list[Line], backs: list[Line]
) -> None:
    assert caller.log is not None
    assert server.log is not None
    mesh.insert(caller.log, fronts)
    mesh.insert(server.log, backs)


def retries(mesh: Enriched) -> None:
    """Close a connection that was kept too long under a request; the retry succeeds."""
    found = _exchange(mesh)
    if found is None:
        return
    caller, server, out, into = found
    fronts, backs = [], []
    for number in range(_few(server, 2)):
        asked: Any = {"id": f"4e747200-0000-4000-8000-00000000000{number}"}
        fronts.append(out._replace(**asked))
        backs.append(
            into._replace(
                **asked,
                code="503",
                flags="UC",
                details="upstream_reset_before_response_started{connection_termination}",
                service_time="-",
            )
        )
        backs.append(into._replace(**asked))
    # Once the caller asked in a way that is not retried.
    last: Any = {"id": "4e747200-0000-4000-8000-0000000000ff", "method": "POST"}
    fronts.append(out._replace(**last, code="503"))
    backs.append(
        into._replace(
            **last,
            code="503",
            flags="UC",
            details="upstream_reset_before_response_started{connection_termination}",
            service_time="-",
        )
    )
    _both(mesh, caller, server, fronts, backs)


def meant_limit(mesh: Enriched) -> None:
    """Limit one workload on purpose; a few requests among many get a 429."""
    found = _exchange(mesh)
    if found is None:
        return
    caller, server, out, into = found
    app = labels_of(mesh, server).get("app")
    if app is None:
        return
    limit: Json = {
        "name": "envoy.filters.http.local_ratelimit",
        "typed_config": {
            "@type": "type.googleapis.com/udpa.type.v1.TypedStruct",
            "type_url": "type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3."
            "LocalRateLimit",
            "value": {
                "stat_prefix": "http_local_rate_limiter",
                "token_bucket": {
                    "max_tokens": 100,
                    "tokens_per_fill": 100,
                    "fill_interval": "1s",
                },
                "filter_enabled": {"default_value": {"numerator": 100}},
                "filter_enforced": {"default_value": {"numerator": 100}},
            },
        },
    }
    match = {
        "context": "SIDECAR_INBOUND",
        "listener": {
            "filterChain": {"filter": {"name": "envoy.filters.network.http_connection_manager"}}
        },
    }
    mesh.add(
        "networking.istio.io/v1alpha3",
        "EnvoyFilter",
        f"{app}-protect",
        server.namespace,
        spec={
            "workloadSelector": {"labels": {"app": app}},
            "configPatches": [
                {
                    "applyTo": "HTTP_FILTER",
                    "match": match,
                    "patch": {"operation": "INSERT_BEFORE", "value": limit},
                }
            ],
        },
    )

    def limited(chain: Json) -> None:
        for part in chain["filters"]:
            filters = part["typed_config"].get("http_filters")
            if filters is not None:
                filters.insert(len(filters) - 1, copy.deepcopy(limit))

    for twin in twins_of(mesh, server):
        inbound(twin, limited)
    fronts, backs = [], []
    for number in range(_few(server, 4)):
        asked: Any = {"code": "429", "id": f"11a17ed0-0000-4000-8000-00000000000{number}"}
        fronts.append(out._replace(**asked))
        backs.append(
            into._replace(
                **asked, flags="RL", details="local_rate_limited", endpoint="-", service_time="-"
            )
        )
    _both(mesh, caller, server, fronts, backs)


def rolling_update(mesh: Enriched) -> None:
    """Roll a Deployment out, an hour ago: probes failed for a while, old pods were ended."""
    pod = template(mesh)
    if pod is None:
        return
    namespace, name = name_of(pod)
    sets = [s for s in mesh.objects("replicasets") if name.startswith(s["metadata"]["name"] + "-")]
    for old in sets[:1]:
        past = copy.deepcopy(old)
        past["metadata"]["name"] = f"{old['metadata']['name'].rpartition('-')[0]}-5b6c7d8e9"
        past["metadata"]["uid"] = "uid-past"
        past["metadata"]["creationTimestamp"] = mesh.ago(hours=30)
        past["spec"]["replicas"] = 0
        past["status"] = {"replicas": 0}
        mesh.objects("replicasets").append(past)
    gone = f"{name.rpartition('-')[0]}-0ld0n"
    for kind, reason, message, where in (
        ("Warning", "Unhealthy", "Readiness probe failed: statuscode: 500", name),
        ("Warning", "Unhealthy", "Startup probe failed: connection refused", name),
        ("Warning", "FailedScheduling", "0/1 nodes are available: 1 Insufficient cpu.", name),
        ("Warning", "BackOff", "Back-off restarting failed container", gone),
        ("Normal", "Killing", "Stopping container istio-proxy", gone),
        ("Warning", "Unhealthy", "Readiness probe failed: connection refused", gone),
    ):
        number = len(mesh.objects("events"))
        mesh.add(
            "v1",
            "Event",
            f"{where}.{number}",
            namespace,
            type=kind,
            reason=reason,
            message=message,
            count=4,
            firstTimestamp=mesh.ago(minutes=65),
            lastTimestamp=mesh.ago(minutes=61),
            involvedObject={"kind": "Pod", "namespace": namespace, "name": where},
        )


def jobs(mesh: Enriched) -> None:
    """Let a CronJob's runs come and go: one has failed, the next ones have completed."""
    pod = template(mesh)
    if pod is None:
        return
    namespace, _ = name_of(pod)
    mesh.add("batch/v1", "CronJob", "report", namespace, spec={"schedule": "*/20 * * * *"})
    for number, (phase, reason, code) in enumerate(
        [("Failed", "Error", 1), ("Succeeded", "Completed", 0), ("Succeeded", "Completed", 0)]
    ):
        name = f"report-2935{number}"
        done = phase == "Succeeded"
        condition = {"type": "Complete" if done else "Failed", "status": "True"}
        mesh.add(
            "batch/v1",
            "Job",
            name,
            namespace,
            spec={"completions": 1},
            status={"conditions": [condition], "succeeded" if done else "failed": 1},
            metadata={
                "ownerReferences": [{"kind": "CronJob", "name": "report", "controller": True}]
            },
        )
        new = copy.deepcopy(pod)
        new["metadata"]["name"] = f"{name}-w9x8y"
        new["metadata"]["uid"] = f"uid-{name}"
        new["metadata"]["labels"] = {
            **{k: v for k, v in pod["metadata"]["labels"].items() if "istio" in k},
            "job-name": name,
        }
        new["metadata"]["ownerReferences"] = [{"kind": "Job", "name": name, "controller": True}]
        new["metadata"]["creationTimestamp"] = mesh.ago(minutes=50 - 20 * number)
        new["status"]["phase"] = phase
        new["status"]["podIP"] = mesh.address()
        for condition in new["status"].get("conditions") or []:
            if condition["type"] in ("Ready", "ContainersReady"):
                condition.update(status="False", reason="PodCompleted" if done else "PodFailed")
        for statuses in ("containerStatuses", "initContainerStatuses"):
            for status in new["status"].get(statuses) or []:
                status["ready"] = False
                status["state"] = {
                    "terminated": {
                        "exitCode": code,
                        "reason": reason,
                        "finishedAt": mesh.ago(minutes=49 - 20 * number),
                    }
                }
        mesh.objects("pods").append(new)
