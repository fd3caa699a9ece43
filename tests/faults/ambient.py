"""Faults of an ambient mesh, as ztunnel logs them."""

from __future__ import annotations

from tests.enriching.base import Enriched, Json, name_of
from tests.faults.base import change, fault, put, spec

_HOST = "seeds.garden.svc.cluster.local"
NONE_ALLOWED = "connection closed due to policy rejection: allow policies exist, but none allowed"


def _pod(mesh: Enriched, name: str) -> tuple[str, str]:
    for pod in mesh.objects("pods"):
        if name_of(pod)[1].startswith(name):
            return name_of(pod)[1], pod["status"]["podIP"]
    raise AssertionError(f"there is no pod {name}")


def _connections(
    mesh: Enriched, client: str, server: str, inbound: str, outbound: str, service: bool = True
) -> None:
    """Let the connections of a client to a server fail from now on, as both ends log it."""
    (source, address), (target, there) = _pod(mesh, client), _pod(mesh, server)
    lines = []
    for number in range(8):
        at = f"{mesh.ago(seconds=24 - 2 * number)[:-1]}"
        ends = (
            [("inbound", inbound), ("outbound", outbound)] if inbound else [("outbound", outbound)]
        )
        for direction, error in ends:
            end = (
                f'dst.addr={there}:15008 dst.hbone_addr={there}:8000 dst.service="{server}.garden'
                f'.svc.cluster.local" dst.workload="{target}" dst.namespace="garden" '
                f'dst.identity="spiffe://cluster.local/ns/garden/sa/{server}"'
                if service
                else f'dst.addr=10.96.124.9:8000 dst.service="{server}.garden.svc.cluster.local"'
            )
            lines.append(
                f"{at}.100000Z\terror\taccess\tconnection complete\t"
                f'src.addr={address}:{40000 + number} src.workload="{source}" '
                f'src.namespace="garden" '
                f'src.identity="spiffe://cluster.local/ns/garden/sa/{client}" {end} '
                f'direction="{direction}" bytes_sent=0 bytes_recv=0 duration="0ms" error="{error}"'
            )
    begin = mesh.ago(seconds=27).removesuffix("Z")
    for question in mesh.logs():
        if question.pod.startswith("ztunnel"):
            kept = [
                line
                for line in mesh.lines(question)
                if not (f'dst.workload="{target}"' in line and line[:19] > begin)
            ]
            mesh.lines(question)[:] = kept + lines


def _held(mesh: Enriched, name: str, rules: Json) -> None:
    for page in mesh.pages("/config_dump"):
        if "policies" in page:
            for policy in page["policies"]:
                if policy["name"] == name:
                    policy["rules"] = rules


@fault("A", "AuthorizationPolicy/garden/seeds-callers", base="garden-healthy")
def an_account_is_misspelt_at_ztunnel(mesh: Enriched) -> None:
    """The policy admits the service accounts api and wed; web calls."""
    admitted = [f"cluster.local/ns/garden/sa/{name}" for name in ("api", "wed")]
    rules = [{"from": [{"source": {"principals": admitted}}]}]
    spec(mesh, "authorizationpolicies", "seeds-callers", rules=rules)
    principals = [{"principals": [{"Exact": one} for one in admitted]}]
    _held(mesh, "seeds-callers", [[principals]])
    _connections(mesh, "web", "seeds", NONE_ALLOWED, "http status: 401 Unauthorized")


@fault("A", "AuthorizationPolicy/garden/allow-nothing", base="garden-healthy")
def a_default_deny_came_to_a_namespace_at_ztunnel(mesh: Enriched) -> None:
    """An empty policy denies all that nobody admits; the callers of api were never named."""
    put(mesh, "AuthorizationPolicy", "allow-nothing", "garden", {})
    for page in mesh.pages("/config_dump"):
        if "policies" in page:
            page["policies"].append(
                {
                    "name": "allow-nothing",
                    "namespace": "garden",
                    "scope": "Namespace",
                    "action": "Allow",
                    "rules": [],
                    "dryRun": False,
                }
            )
    _connections(mesh, "web", "api", NONE_ALLOWED, "http status: 401 Unauthorized")


@fault("A", "AuthorizationPolicy/garden/seeds-callers", base="garden-healthy")
def a_method_in_a_policy_that_ztunnel_enforces(mesh: Enriched) -> None:
    """The policy also asks for a method, which no ztunnel can see."""
    admitted = [f"cluster.local/ns/garden/sa/{name}" for name in ("api", "web")]
    rules = [
        {
            "from": [{"source": {"principals": admitted}}],
            "to": [{"operation": {"methods": ["GET"]}}],
        }
    ]
    spec(mesh, "authorizationpolicies", "seeds-callers", rules=rules)
    _held(mesh, "seeds-callers", [])
    _connections(mesh, "web", "seeds", NONE_ALLOWED, "http status: 401 Unauthorized")


@fault("AC", "Service/garden/seeds", base="garden-healthy")
def a_selector_of_an_ambient_service_matches_nobody(mesh: Enriched) -> None:
    """The Service selects app=seed, and the pods are labelled app=seeds."""
    change(mesh, "services", "seeds", lambda one: one["spec"].update(selector={"app": "seed"}))
    for resource, part in (("endpointslices", "endpoints"), ("endpoints", "subsets")):
        for one in mesh.objects(resource):
            if one["metadata"]["name"].startswith("seeds"):
                one[part] = []
    for page in mesh.pages("/config_dump"):
        for service in page.get("services", []) if isinstance(page, dict) else []:
            if service["name"] == "seeds":
                service["endpoints"] = {}
    _connections(mesh, "web", "seeds", "", "no healthy upstream", service=False)


@fault("C", "Deployment/garden/seeds", "Pod/garden/seeds", base="garden-healthy")
def an_ambient_application_refuses_connections(mesh: Enriched) -> None:
    """The process of the application is gone."""
    refused = "connection failed: Connection refused (os error 111)"
    _connections(mesh, "web", "seeds", refused, "http status: 503 Service Unavailable")
