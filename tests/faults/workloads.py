"""Faults of applications, Services, and of what makes pods."""

from __future__ import annotations

from itertools import count

from tests.alteration import Line
from tests.enriching.base import Enriched, Json, name_of
from tests.enriching.envoy import proxies, sidecars
from tests.faults.base import (
    CUT_OFF,
    NO_HOST,
    REFUSED,
    TIMED_OUT,
    at_client,
    at_server,
    begun,
    change,
    drop,
    event,
    fault,
    in_turns,
    no_endpoints,
    put,
    reset,
)

RATINGS = "ratings.bookinfo.svc.cluster.local"
REVIEWS = "reviews.bookinfo.svc.cluster.local"
DETAILS = "details.bookinfo.svc.cluster.local"


def _slices(mesh: Enriched, service: str) -> None:
    for resource, part in (("endpointslices", "endpoints"), ("endpoints", "subsets")):
        for one in mesh.objects(resource):
            if one["metadata"]["name"].startswith(service):
                one[part] = []


def _gone(mesh: Enriched, prefix: str) -> None:
    """Take pods and all that was asked of them away."""
    pods = mesh.objects("pods")
    names = [name_of(one)[1] for one in pods if name_of(one)[1].startswith(prefix)]
    pods[:] = [one for one in pods if name_of(one)[1] not in names]
    for path in ("/debug/syncz", "/debug/connections"):
        for page in mesh.pages(path):
            clients = page if isinstance(page, list) else page["clients"]
            clients[:] = [c for c in clients if not any(name in str(c) for name in names)]
    mesh.forget(lambda question: getattr(question, "pod", "") not in names)


@fault("C", "Deployment/bookinfo/ratings-v1")
def a_deployment_was_scaled_to_nothing(mesh: Enriched) -> None:
    """Somebody scaled the only Deployment of a Service to zero."""
    at_client(mesh, RATINGS, NO_HOST)
    for resource in ("deployments", "replicasets"):
        for one in mesh.objects(resource):
            if one["metadata"]["name"].startswith("ratings"):
                one["spec"]["replicas"] = 0
                one["status"] = {"observedGeneration": 4}
                one["metadata"]["managedFields"] = [
                    {"manager": "kubectl", "operation": "Update", "time": begun(mesh)}
                ]
    _gone(mesh, "ratings")
    _slices(mesh, "ratings")
    no_endpoints(mesh, RATINGS)


@fault("AC", "Service/bookinfo/ratings", "Deployment/bookinfo/ratings-v1")
def a_target_port_that_nobody_listens_on(mesh: Enriched) -> None:
    """The Service sends to 9090, and the application listens on 9080."""

    def other(one: Json) -> None:
        for port in one["spec"]["ports"]:
            port["targetPort"] = 9090

    change(mesh, "services", "ratings", other)
    for resource in ("endpointslices", "endpoints"):
        for one in mesh.objects(resource):
            if one["metadata"]["name"].startswith("ratings"):
                for part in [one, *(one.get("subsets") or [])]:
                    for port in part.get("ports") or []:
                        port["port"] = 9090
    address = next(
        one["status"]["podIP"]
        for one in mesh.objects("pods")
        if name_of(one)[1].startswith("ratings")
    )
    for proxy in proxies(mesh):
        for entry in proxy.endpoints:
            config = entry["endpoint_config"]
            if config.get("cluster_name", "").endswith(f"|{RATINGS}"):
                for locality in config.get("endpoints") or []:
                    for host in locality["lb_endpoints"]:
                        host["endpoint"]["address"]["socket_address"]["port_value"] = 9090
        for status in proxy.statuses:
            if status["name"].endswith(f"|{RATINGS}"):
                for host in status.get("host_statuses", []):
                    host["address"]["socket_address"]["port_value"] = 9090
        if proxy.pod.startswith("ratings"):
            for entry in proxy.clusters:
                if entry["cluster"]["name"] == "inbound|9080||":
                    entry["cluster"]["name"] = "inbound|9090||"
            for chain in proxy.chains("virtualInbound"):
                match = chain.get("filter_chain_match") or {}
                if match.get("destination_port") == 9080:
                    match["destination_port"] = 9090
    refused = {
        **REFUSED,
        "flags": "UF",
        "cluster": "inbound|9090||",
        "endpoint": f"{address}:9090",
        "local": f"{address}:9090",
    }
    at_server(mesh, "ratings", refused, seen={"code": "503", "endpoint": f"{address}:9090"})


@fault("AC", "Service/bookinfo/ratings", "Deployment/bookinfo/ratings-v1")
def a_target_port_by_a_name_that_no_container_has(mesh: Enriched) -> None:
    """The Service sends to the port named web, and the pods name it http."""

    def other(one: Json) -> None:
        for port in one["spec"]["ports"]:
            port["targetPort"] = "web"

    change(mesh, "services", "ratings", other)
    _slices(mesh, "ratings")
    no_endpoints(mesh, RATINGS)
    at_client(mesh, RATINGS, NO_HOST)


@fault("AC", "Service/bookinfo/ratings", "Deployment/bookinfo/ratings-v1")
def a_selector_with_one_label_too_many(mesh: Enriched) -> None:
    """The Service selects version v2 of an application that has only v1."""
    change(
        mesh,
        "services",
        "ratings",
        lambda one: one["spec"].update(selector={"app": "ratings", "version": "v2"}),
    )
    _slices(mesh, "ratings")
    no_endpoints(mesh, RATINGS)
    at_client(mesh, RATINGS, NO_HOST)


@fault("C", "Deployment/bookinfo/details-v1", "Pod/bookinfo/details-v1")
def an_application_is_killed_for_its_memory(mesh: Enriched) -> None:
    """The application is killed in the middle of requests, and started again."""
    seen = {**CUT_OFF, "code": "503", "flags": "-", "details": "via_upstream"}
    at_server(mesh, "details", CUT_OFF, seen=seen, chosen=in_turns(2))

    def killed(pod: Json) -> None:
        for status in pod["status"]["containerStatuses"]:
            if status["name"] == "details":
                status["restartCount"] = 3
                status["lastState"] = {
                    "terminated": {
                        "exitCode": 137,
                        "reason": "OOMKilled",
                        "startedAt": mesh.ago(seconds=30),
                        "finishedAt": mesh.ago(seconds=12),
                    }
                }
                status["state"] = {"running": {"startedAt": mesh.ago(seconds=10)}}

    for pod in mesh.objects("pods"):
        if name_of(pod)[1].startswith("details"):
            killed(pod)


@fault("C", "Deployment/bookinfo/ratings-v1", "Pod/bookinfo/ratings-v1")
def an_image_that_does_not_exist(mesh: Enriched) -> None:
    """The only pod was replaced by one whose image cannot be pulled."""
    at_client(mesh, RATINGS, NO_HOST)
    no_endpoints(mesh, RATINGS)
    for pod in mesh.objects("pods"):
        if not name_of(pod)[1].startswith("ratings"):
            continue
        pod["metadata"]["creationTimestamp"] = begun(mesh)
        pod["status"]["conditions"] = [
            {
                "type": kind,
                "status": "False",
                "reason": "ContainersNotReady",
                "message": "containers with unready status: [ratings]",
                "lastTransitionTime": begun(mesh),
            }
            for kind in ("Ready", "ContainersReady")
        ]
        for status in pod["status"]["containerStatuses"]:
            if status["name"] == "ratings":
                status.update(ready=False, started=False, lastState={})
                message = 'Back-off pulling image "registry.local/ratings:1.18"'
                status["state"] = {"waiting": {"reason": "ImagePullBackOff", "message": message}}
        event(
            mesh,
            "Pod",
            name_of(pod)[1],
            "bookinfo",
            "Failed",
            'Failed to pull image "registry.local/ratings:1.18": not found',
        )
    _slices(mesh, "ratings")


@fault("AC", "Deployment/bookinfo/ratings-v1", "Service/bookinfo/ratings")
def an_application_that_speaks_tls_on_a_port_for_http(mesh: Enriched) -> None:
    """The application now wants TLS on the port that the Service declares as http."""
    broken = {
        **reset("protocol_error", "UPE", "502"),
        "details": "upstream_reset_before_response_started{protocol_error}",
    }
    at_server(mesh, "ratings", broken)


@fault("C", "Deployment/bookinfo/reviews-v1", "Pod/bookinfo/reviews-v1")
def one_version_of_two_answers_errors(mesh: Enriched) -> None:
    """Only v1 of an application with two versions answers 500."""
    at_server(mesh, "reviews-v1", {"code": "500"})


@fault("C", "Deployment/bookinfo/details-v1", "Pod/bookinfo/details-v1")
def callers_do_not_wait_for_a_slow_application(mesh: Enriched) -> None:
    """The application takes ten seconds, and its callers give up after two."""
    fields = {
        "code": "0",
        "flags": "DC",
        "details": "downstream_remote_disconnect",
        "duration": "2000",
        "service_time": "-",
    }
    at_server(mesh, "details", fields, seen=fields)


@fault("CA", "NetworkPolicy/bookinfo/only-web")
def a_network_policy_shuts_callers_out(mesh: Enriched) -> None:
    """A NetworkPolicy lets only one application call another, which more call."""
    put(
        mesh,
        "NetworkPolicy",
        "only-web",
        "bookinfo",
        {
            "podSelector": {"matchLabels": {"app": "details"}},
            "policyTypes": ["Ingress"],
            "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "web"}}}]}],
        },
    )
    drop(mesh, "networkpolicies", "allow-from-cluster")
    at_client(mesh, DETAILS, TIMED_OUT)


@fault("CA", "Service/bookinfo/reviews")
def a_port_of_http_is_declared_as_tcp(mesh: Enriched) -> None:
    """The Service's port was renamed to tcp, so that its VirtualService has no effect."""
    change(
        mesh, "services", "reviews", lambda one: one["spec"]["ports"][0].update(name="tcp-reviews")
    )


@fault("C", "Pod/bookinfo/reviews-v2", "Deployment/bookinfo/reviews-v2")
def the_way_to_one_pod_is_broken(mesh: Enriched) -> None:
    """Connections to one of two pods of a Service time out."""
    at_client(mesh, REVIEWS, TIMED_OUT, chosen=lambda line: "|v2|" in line.cluster)


@fault("A", "ResourceQuota/bookinfo/compute", "Namespace//bookinfo")
def a_quota_that_leaves_no_room(mesh: Enriched) -> None:
    """A new pod is refused by the namespace's quota while it is rolled out."""
    mesh.objects("resourcequotas").append(
        {
            "metadata": {
                "name": "compute",
                "namespace": "bookinfo",
                "creationTimestamp": begun(mesh),
            },
            "spec": {"hard": {"limits.memory": "2Gi", "pods": "8"}},
            "status": {
                "hard": {"limits.memory": "2Gi", "pods": "8"},
                "used": {"limits.memory": "2Gi", "pods": "8"},
            },
        }
    )
    for one in mesh.objects("replicasets"):
        if one["metadata"]["name"].startswith("ratings"):
            one["spec"]["replicas"] = 2
            name = one["metadata"]["name"]
    for one in mesh.objects("deployments"):
        if one["metadata"]["name"].startswith("ratings"):
            one["spec"]["replicas"] = 2
    event(
        mesh,
        "ReplicaSet",
        name,
        "bookinfo",
        "FailedCreate",
        f'Error creating: pods "{name}-x7x7x" is forbidden: exceeded quota: compute, requested: '
        "limits.memory=1Gi,pods=1, used: limits.memory=2Gi,pods=8, "
        "limited: limits.memory=2Gi,pods=8",
    )


@fault("A", "Service/bookinfo/details")
def a_port_named_grpc_for_an_application_of_http(mesh: Enriched) -> None:
    """The Service's port was renamed to grpc, so that callers' proxies speak HTTP/2."""
    change(mesh, "services", "details", lambda one: one["spec"]["ports"][0].update(name="grpc"))
    at_server(
        mesh,
        "details",
        {**reset("protocol_error", "UPE", "502"), "protocol": "HTTP/2"},
    )
    for proxy in sidecars(mesh):
        for entry in proxy.clusters:
            name = entry["cluster"]["name"]
            inbound = proxy.pod.startswith("details") and name.startswith("inbound|9080")
            if name.endswith(f"|{DETAILS}") or inbound:
                key = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
                entry["cluster"]["typed_extension_protocol_options"] = {
                    key: {
                        "@type": f"type.googleapis.com/{key}",
                        "explicit_http_config": {"http2_protocol_options": {}},
                    }
                }
                entry["last_updated"] = begun(mesh)


@fault("C", "StatefulSet/bookinfo/archive-db", "Pod/bookinfo/archive-db")
def a_database_that_refuses_connections(mesh: Enriched) -> None:
    """The database's process is gone; its sidecar's connections are refused."""
    host = "archive-db.bookinfo.svc.cluster.local"
    for pod in mesh.objects("pods"):
        if name_of(pod)[1].startswith("archive-db"):
            for container in pod["spec"]["containers"]:
                if container["name"] != "istio-proxy":
                    container["ports"] = [{"containerPort": 5432, "protocol": "TCP"}]
    at = mesh.ago(seconds=14).removesuffix("Z")
    for proxy in sidecars(mesh):
        if proxy.log is None:
            continue
        server = proxy.pod.startswith("archive-db")
        number = count()

        def fail(line: Line, server: bool = server, number: count[int] = number) -> list[Line]:
            moment = {"time": f"{at}.{next(number):03}Z", "received": "0", "sent": "0"}
            if server and line.inbound:
                ended = {
                    "flags": "UF,URX",
                    "failure": "delayed_connect_error:_Connection_refused",
                    "own": "-",
                }
                return [line, line._replace(**moment, **ended, duration="0")]
            if not line.inbound and line.cluster.endswith(f"|{host}"):
                return [line, line._replace(**moment, duration="1")]
            return [line]

        mesh.rewrite(proxy.log, fail)


@fault("C", "Deployment/bookinfo/ratings-v1", "Pod/bookinfo/ratings-v1")
def an_overloaded_application_is_asked_again_and_again(mesh: Enriched) -> None:
    """The application answers 503, and each request is tried three times."""
    at_server(mesh, "ratings", {"code": "503"}, seen={"code": "503", "flags": "URX"})
