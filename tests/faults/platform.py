"""Faults of what stands below a mesh: webhooks, NetworkPolicies, TCP Services, rollouts."""

from __future__ import annotations

import base64
import copy
from itertools import count

from tests.alteration import Line
from tests.checks.test_altered import certificate
from tests.enriching.base import Enriched, Json, name_of
from tests.enriching.envoy import sidecars
from tests.faults.base import (
    TIMED_OUT,
    Fields,
    at_client,
    change,
    event,
    fault,
    no_endpoints,
    put,
    since,
)
from tests.faults.outside import BLOCKED

LEDGER = "ledger.bookinfo.svc.cluster.local"


def _tcp(mesh: Enriched, pod: str, host: str, into: Fields | None, out: Fields) -> None:
    """Let connections to a TCP port fail at both ends, or at the callers' alone, as of now."""
    at = mesh.ago(seconds=14).removesuffix("Z")
    for proxy in sidecars(mesh):
        if proxy.log is None:
            continue
        server, number = proxy.pod.startswith(pod), count()

        def fail(line: Line, server: bool = server, number: count[int] = number) -> list[Line]:
            moment = {"time": f"{at}.{next(number):03}Z", "received": "0", "sent": "0"}
            if server and line.inbound and line.protocol == "-" and into is not None:
                return [line, line._replace(**{**moment, **into})]
            if not line.inbound and line.cluster.endswith(f"|{host}") and line.protocol == "-":
                return [line, line._replace(**{**moment, **out})]
            return [line]

        mesh.rewrite(proxy.log, fail)


@fault("C", "Deployment/bookinfo/ledger-v1")
def a_tcp_service_was_scaled_to_nothing(mesh: Enriched) -> None:
    """The Deployment behind a Service with a TCP port wants no pods."""
    _tcp(
        mesh,
        "ledger",
        LEDGER,
        None,
        {"flags": "UH", "endpoint": "-", "own": "-", "duration": "0"},
    )
    for resource in ("deployments", "replicasets"):
        for one in mesh.objects(resource):
            if one["metadata"]["name"].startswith("ledger"):
                one["spec"]["replicas"] = 0
                one["status"] = {"observedGeneration": 4}
    pods = mesh.objects("pods")
    gone = [name_of(one)[1] for one in pods if name_of(one)[1].startswith("ledger")]
    pods[:] = [one for one in pods if name_of(one)[1] not in gone]
    for path in ("/debug/syncz", "/debug/connections"):
        for page in mesh.pages(path):
            clients = page if isinstance(page, list) else page["clients"]
            clients[:] = [c for c in clients if not any(name in str(c) for name in gone)]
    mesh.forget(lambda question: getattr(question, "pod", "") not in gone)
    for resource, part in (("endpointslices", "endpoints"), ("endpoints", "subsets")):
        for one in mesh.objects(resource):
            if one["metadata"]["name"].startswith("ledger"):
                one[part] = []
    no_endpoints(mesh, LEDGER)


@fault("C", "Deployment/bookinfo/ledger-v1", "Pod/bookinfo/ledger-v1")
def a_tcp_application_listens_on_loopback_only(mesh: Enriched) -> None:
    """The application serves its TCP port on 127.0.0.1 only, so that its sidecar is refused."""
    for pod in mesh.objects("pods"):
        if name_of(pod)[1].startswith("ledger"):
            for container in pod["spec"]["containers"]:
                if container["name"] != "istio-proxy":
                    container["ports"] = [{"containerPort": 7000, "protocol": "TCP"}]
    refused = "delayed_connect_error:_Connection_refused"
    _tcp(
        mesh,
        "ledger",
        LEDGER,
        {"flags": "UF,URX", "failure": refused, "own": "-", "duration": "0"},
        {"duration": "1"},
    )


@fault("C", "NetworkPolicy/bookinfo/no-way-out")
def a_network_policy_keeps_a_client_in(mesh: Enriched) -> None:
    """A NetworkPolicy lets nothing out of one client but DNS."""
    egress = [{"ports": [{"port": 53, "protocol": "UDP"}]}]
    put(
        mesh,
        "NetworkPolicy",
        "no-way-out",
        "bookinfo",
        {
            "podSelector": {"matchLabels": {"app": "client"}},
            "policyTypes": ["Egress"],
            "egress": egress,
        },
    )
    policies = mesh.objects("networkpolicies")
    policies[:] = [one for one in policies if name_of(one)[1] != "allow-from-cluster"]
    for name in ("ratings", "details", "reviews", "productpage"):
        at_client(mesh, f"{name}.bookinfo.svc.cluster.local", TIMED_OUT, pod="client")


@fault("AC", "Service/bookinfo/details")
def a_service_changed_its_port(mesh: Enriched) -> None:
    """The Service now has port 9090, and its callers go on to ask for 9080."""
    change(mesh, "services", "details", lambda one: one["spec"]["ports"][0].update(port=9090))
    host = "details.bookinfo.svc.cluster.local"
    begin, lost = since(mesh), set[tuple[str, str]]()
    for proxy in sidecars(mesh):
        for part, named in (
            (proxy.clusters, lambda e: e["cluster"]["name"]),
            (proxy.statuses, lambda e: e["name"]),
            (proxy.endpoints, lambda e: str(e["endpoint_config"].get("cluster_name"))),
        ):
            for entry in part:
                if named(entry).endswith(f"|{host}"):
                    moved = copy.deepcopy(entry)
                    part[part.index(entry)] = _moved(moved)
        for config, virtual in list(proxy.virtual_hosts()):
            if virtual["name"] == f"{host}:9080":
                config["virtual_hosts"].remove(virtual)
        if proxy.log is None:
            continue

        def block(line: Line) -> list[Line]:
            if line.cluster.endswith(f"|{host}") and line.time >= begin and line.code == "200":
                lost.add((line.id, line.endpoint))
                return [line._replace(**BLOCKED)]
            return [line]

        mesh.rewrite(proxy.log, block)
    for proxy in sidecars(mesh):
        if proxy.log is not None:
            mesh.rewrite(proxy.log, lambda x: [] if x.inbound and (x.id, x.local) in lost else [x])


def _moved(entry: Json) -> Json:
    for holder, key in (
        (entry.get("cluster", {}), "name"),
        (entry, "name"),
        (entry.get("endpoint_config", {}), "cluster_name"),
    ):
        if isinstance(holder.get(key), str):
            holder[key] = holder[key].replace("outbound|9080|", "outbound|9090|")
    return entry


@fault("A", "MutatingWebhookConfiguration//istio-revision-tag-default")
def a_webhook_trusts_another_authority(mesh: Enriched) -> None:
    """The caBundle of the injector's webhooks is that of an old authority; pods are refused."""
    bundle = base64.b64encode(certificate(mesh.now.replace(year=2030))).decode()
    for one in mesh.objects("mutatingwebhookconfigurations"):
        if one["metadata"]["name"].startswith("istio"):
            for webhook in one["webhooks"]:
                webhook["clientConfig"]["caBundle"] = bundle
    (owner,) = [
        one["metadata"]["name"]
        for one in mesh.objects("replicasets")
        if one["metadata"]["name"].startswith("ratings") and one["spec"].get("replicas")
    ]
    for resource in ("deployments", "replicasets"):
        for one in mesh.objects(resource):
            if one["metadata"]["name"].startswith("ratings") and one["spec"].get("replicas"):
                one["spec"]["replicas"] = 2
    event(
        mesh,
        "ReplicaSet",
        owner,
        "bookinfo",
        "FailedCreate",
        "Error creating: Internal error occurred: failed calling webhook "
        '"namespace.sidecar-injector.istio.io": failed to call webhook: Post '
        '"https://istiod.istio-system.svc:443/inject?timeout=10s": tls: failed to verify '
        "certificate: x509: certificate signed by unknown authority",
    )
