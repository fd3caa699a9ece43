"""Faults of policies: mutual TLS, who may call whom, and tokens."""

from __future__ import annotations

from itertools import count

from tests.alteration import Line
from tests.enriching.base import Enriched, Json, name_of
from tests.enriching.envoy import sidecars
from tests.faults.base import (
    CUT_OFF,
    NO_CHAIN,
    Fields,
    at_client,
    at_server,
    change,
    deliver,
    drop,
    fault,
    put,
    spec,
    tls_error,
)

RATINGS = "ratings.bookinfo.svc.cluster.local"
DENIED = {
    "code": "403",
    "flags": "-",
    "details": "rbac_access_denied_matched_policy[none]",
    "endpoint": "-",
    "own": "-",
    "service_time": "-",
}


def denied(name: str, namespace: str = "bookinfo") -> Fields:
    """Return what a line has that a DENY policy refused."""
    policy = f"ns[{namespace}]-policy[{name}]-rule[0]"
    return {**DENIED, "details": f"rbac_access_denied_matched_policy[{policy}]"}


@fault(
    "A",
    "AuthorizationPolicy/bookinfo/allow-nothing",
    "AuthorizationPolicy/bookinfo/ratings-callers",
)
def nobody_was_admitted_after_a_default_deny(mesh: Enriched) -> None:
    """The policy that admitted the callers of one Service was deleted; all else is denied."""
    drop(mesh, "authorizationpolicies", "ratings-callers")
    deliver(mesh, "ratings")
    at_server(mesh, "ratings", DENIED)


@fault("A", "AuthorizationPolicy/bookinfo/details-callers")
def a_policy_selects_other_pods(mesh: Enriched) -> None:
    """The policy that admits the callers of details is for pods labelled app=detail."""
    selector = {"matchLabels": {"app": "detail"}}
    spec(mesh, "authorizationpolicies", "details-callers", selector=selector)
    deliver(mesh, "details")
    at_server(mesh, "details", DENIED)


@fault("A", "AuthorizationPolicy/bookinfo/reviews-callers")
def only_another_method_is_admitted(mesh: Enriched) -> None:
    """The policy admits POST, and callers ask with GET."""
    rules = [{"to": [{"operation": {"methods": ["POST"]}}]}]
    spec(mesh, "authorizationpolicies", "reviews-callers", rules=rules)
    deliver(mesh, "reviews")
    at_server(mesh, "reviews", DENIED)


@fault("A", "AuthorizationPolicy/bookinfo/reviews-callers")
def a_namespace_that_is_not_the_callers(mesh: Enriched) -> None:
    """The policy admits callers of another namespace only."""
    rules = [{"from": [{"source": {"namespaces": ["books"]}}]}]
    spec(mesh, "authorizationpolicies", "reviews-callers", rules=rules)
    deliver(mesh, "reviews")
    at_server(mesh, "reviews", DENIED)


@fault("A", "AuthorizationPolicy/bookinfo/productpage-callers")
def the_gateway_is_not_admitted(mesh: Enriched) -> None:
    """The policy names a service account that the gateway does not have."""
    admitted = [
        "cluster.local/ns/bookinfo/sa/default",
        "cluster.local/ns/istio-system/sa/istio-ingressgateway",
    ]
    rules = [{"from": [{"source": {"principals": admitted}}]}]
    spec(mesh, "authorizationpolicies", "productpage-callers", rules=rules)
    deliver(mesh, "productpage")
    at_server(
        mesh, "productpage", DENIED, chosen=lambda line: line.authority == "bookinfo.example.com"
    )


@fault("A", "AuthorizationPolicy/bookinfo/freeze")
def a_denial_of_a_port(mesh: Enriched) -> None:
    """A DENY policy for the whole namespace names a port that is in use."""
    rules = [{"to": [{"operation": {"ports": ["9080"], "methods": ["GET"]}}]}]
    selector = {"matchLabels": {"app": "ratings"}}
    put(
        mesh,
        "AuthorizationPolicy",
        "freeze",
        "bookinfo",
        {"selector": selector, "action": "DENY", "rules": rules},
    )
    deliver(mesh, "ratings")
    at_server(mesh, "ratings", denied("freeze"))


def _connections(mesh: Enriched, pod: str, host: str, into: Fields, out: Fields) -> None:
    """Let the connections to a TCP port fail at both ends, as of now."""
    now = mesh.ago(seconds=12).removesuffix("Z")
    for proxy in sidecars(mesh):
        if proxy.log is None:
            continue
        server, number = proxy.pod.startswith(pod), count()

        def fail(line: Line, server: bool = server, number: count[int] = number) -> list[Line]:
            at = f"{now}.{next(number):03}Z"
            if server and line.inbound and line.protocol == "-":
                return [line, line._replace(time=at, received="0", sent="0", **into)]
            if not line.inbound and line.cluster.endswith(f"|{host}") and line.protocol == "-":
                return [line, line._replace(time=at, received="0", sent="0", **out)]
            return [line]

        mesh.rewrite(proxy.log, fail)


@fault("A", "AuthorizationPolicy/bookinfo/archive-db-callers")
def a_rule_of_requests_for_a_database(mesh: Enriched) -> None:
    """The policy for a TCP port allows a method, which no connection has."""
    rules = [{"to": [{"operation": {"methods": ["GET", "POST"], "ports": ["5432"]}}]}]
    spec(mesh, "authorizationpolicies", "archive-db-callers", rules=rules)
    deliver(mesh, "archive-db")
    _connections(
        mesh,
        "archive-db",
        "archive-db.bookinfo.svc.cluster.local",
        {
            "code": "0",
            "flags": "-",
            "details": "-",
            "ended": "rbac_access_denied_matched_policy[none]",
            "endpoint": "-",
            "own": "-",
        },
        {"code": "0", "flags": "-", "duration": "2"},
    )


@fault("A", "RequestAuthentication/bookinfo/tokens")
def an_issuer_that_nobody_has(mesh: Enriched) -> None:
    """The RequestAuthentication names another issuer than the tokens of all callers."""
    rules = [{"issuer": "https://auth.example.org/", "jwks": '{"keys":[]}'}]
    selector = {"matchLabels": {"app": "ratings"}}
    put(
        mesh,
        "RequestAuthentication",
        "tokens",
        "bookinfo",
        {"selector": selector, "jwtRules": rules},
    )
    deliver(mesh, "ratings")
    details = "jwt_authn_access_denied{Jwt_issuer_is_not_configured}"
    at_server(mesh, "ratings", {**DENIED, "code": "401", "details": details})


@fault("A", "RequestAuthentication/bookinfo/tokens", "AuthorizationPolicy/bookinfo/need-token")
def a_token_is_demanded_that_nobody_sends(mesh: Enriched) -> None:
    """A policy demands a token of callers that have none."""
    selector = {"matchLabels": {"app": "ratings"}}
    rules = [{"issuer": "https://auth.example.org/", "jwks": '{"keys":[]}'}]
    put(
        mesh,
        "RequestAuthentication",
        "tokens",
        "bookinfo",
        {"selector": selector, "jwtRules": rules},
    )
    drop(mesh, "authorizationpolicies", "ratings-callers")
    need = [{"from": [{"source": {"requestPrincipals": ["https://auth.example.org/*"]}}]}]
    put(
        mesh,
        "AuthorizationPolicy",
        "need-token",
        "bookinfo",
        {"selector": selector, "action": "ALLOW", "rules": need},
    )
    deliver(mesh, "ratings")
    at_server(mesh, "ratings", DENIED)


@fault("A", "RequestAuthentication/bookinfo/tokens")
def keys_that_istiod_cannot_fetch(mesh: Enriched) -> None:
    """The keys' address cannot be resolved, so that no token can be verified."""
    uri = "https://auth.exampel.org/.well-known/jwks.json"
    rules = [{"issuer": "https://auth.example.org/", "jwksUri": uri}]
    selector = {"matchLabels": {"app": "ratings"}}
    put(
        mesh,
        "RequestAuthentication",
        "tokens",
        "bookinfo",
        {"selector": selector, "jwtRules": rules},
    )
    deliver(mesh, "ratings")
    details = "jwt_authn_access_denied{Jwks_doesn't_have_key_to_match_kid_or_alg_from_Jwt}"
    at_server(mesh, "ratings", {**DENIED, "code": "401", "details": details})
    for question in mesh.logs("discovery"):
        lines = mesh.lines(question)
        lines.append(
            f"{mesh.ago(seconds=20)}\terror\tmodel\tFailed to fetch public key from "
            f'"{uri}": Get "{uri}": dial tcp: lookup auth.exampel.org on 10.96.0.10:53: '
            "no such host"
        )


@fault("A", "AuthorizationPolicy/bookinfo/ask-somebody")
def a_provider_that_nobody_defined(mesh: Enriched) -> None:
    """A CUSTOM policy names a provider that the mesh's settings lack."""
    selector = {"matchLabels": {"app": "ratings"}}
    put(
        mesh,
        "AuthorizationPolicy",
        "ask-somebody",
        "bookinfo",
        {
            "selector": selector,
            "action": "CUSTOM",
            "provider": {"name": "opa-ext"},
            "rules": [{}],
        },
    )
    rule = "ns[bookinfo]-policy[ask-somebody]-rule[0]-deny-due-to-bad-CUSTOM-action"
    details = f"rbac_access_denied_matched_policy[{rule}]"
    at_server(mesh, "ratings", {**DENIED, "details": details})


@fault("A", "PeerAuthentication/bookinfo/ratings", "DestinationRule/bookinfo/ratings")
def mutual_tls_is_off_at_one_server(mesh: Enriched) -> None:
    """A PeerAuthentication turns mutual TLS off where a DestinationRule demands it."""
    selector = {"matchLabels": {"app": "ratings"}}
    put(
        mesh,
        "PeerAuthentication",
        "ratings",
        "bookinfo",
        {"selector": selector, "mtls": {"mode": "DISABLE"}},
    )
    tls = {"tls": {"mode": "ISTIO_MUTUAL"}}
    spec(mesh, "destinationrules", "ratings", trafficPolicy=tls)
    _plain_only(mesh, "ratings")
    reason = "268435703:SSL_routines:OPENSSL_internal:WRONG_VERSION_NUMBER"
    at_client(mesh, RATINGS, tls_error(reason))


def _plain_only(mesh: Enriched, pod: str) -> None:
    for proxy in sidecars(mesh):
        if proxy.pod.startswith(pod):
            for chain in proxy.chains("virtualInbound"):
                chain.pop("transport_socket", None)


@fault("A", "DestinationRule/bookinfo/everything")
def a_wildcard_turns_mutual_tls_off(mesh: Enriched) -> None:
    """A DestinationRule for a whole namespace turns TLS off, and the mesh is STRICT."""
    put(
        mesh,
        "DestinationRule",
        "everything",
        "bookinfo",
        {
            "host": "*.bookinfo.svc.cluster.local",
            "trafficPolicy": {"tls": {"mode": "DISABLE"}},
        },
    )
    for name in ("ratings", "details"):
        drop(mesh, "destinationrules", name)
        drop(mesh, "virtualservices", name)
        host = f"{name}.bookinfo.svc.cluster.local"
        for proxy in sidecars(mesh):
            for entry in proxy.clusters:
                if entry["cluster"]["name"].endswith(f"|{host}"):
                    entry["cluster"].pop("transport_socket_matches", None)
            for _, virtual in proxy.virtual_hosts():
                if virtual["name"].startswith(f"{host}:"):
                    for route in virtual["routes"]:
                        if "cluster" in route.get("route", {}):
                            route["route"]["cluster"] = f"outbound|9080||{host}"
        at_client(mesh, host, {**CUT_OFF, "cluster": f"outbound|9080||{host}"})
        for server in sidecars(mesh):
            if server.pod.startswith(name) and server.log is not None:
                like = next(line for line in server.access() if line.inbound)
                mesh.lines(server.log).extend(
                    str(
                        like._replace(
                            **{
                                **NO_CHAIN,
                                "time": f"{mesh.ago(seconds=10 + n)[:-1]}.100Z",
                                "remote": f"10.244.0.10:{50000 + n}",
                            }
                        )
                    )
                    for n in range(9)
                )


@fault("A", "PeerAuthentication/istio-system/default", "Pod/legacy/legacy-client")
def a_client_without_a_sidecar_meets_strict(mesh: Enriched) -> None:
    """The mesh was made STRICT just now, and a client outside of it still calls."""
    change(
        mesh,
        "peerauthentications",
        "default",
        lambda one: one["metadata"].update(creationTimestamp=mesh.ago(seconds=31)),
    )
    stranger = next(
        one["status"]["podIP"] for one in mesh.objects("pods") if name_of(one)[1] == "legacy-client"
    )
    for server in sidecars(mesh):
        if server.pod.startswith("details") and server.log is not None:
            like = next(line for line in server.access() if line.inbound)
            fields: Json = {**NO_CHAIN}
            mesh.lines(server.log).extend(
                str(
                    like._replace(
                        **fields,
                        time=f"{mesh.ago(seconds=5 + n)[:-1]}.100Z",
                        remote=f"{stranger}:{50000 + n}",
                    )
                )
                for n in range(12)
            )


@fault("A", "Pod/bookinfo/client")
def a_client_goes_past_its_sidecar(mesh: Enriched) -> None:
    """An annotation takes port 9080 out of the hands of the client's proxy; servers are STRICT."""
    annotation = {"traffic.sidecar.istio.io/excludeOutboundPorts": "9080"}

    def exclude(pod: Json) -> None:
        pod["metadata"].setdefault("annotations", {}).update(annotation)
        for part in pod["spec"].get("initContainers", []):
            if part["name"] == "istio-init" and "args" in part:
                part["args"] = [*part["args"], "-o", "9080"]

    change(mesh, "pods", "client", exclude)
    address = next(
        one["status"]["podIP"] for one in mesh.objects("pods") if name_of(one)[1] == "client"
    )
    begin = mesh.ago(seconds=27).removesuffix("Z")
    lost: set[tuple[str, str]] = set()
    for proxy in sidecars(mesh):
        if proxy.pod != "client" or proxy.log is None:
            continue
        for line in proxy.access():
            if ":9080" in line.endpoint and line.time >= begin:
                lost.add((line.id, line.endpoint))
        mesh.rewrite(proxy.log, lambda x: [] if (x.id, x.endpoint) in lost else [x])
    for server in sidecars(mesh):
        if server.log is None or server.pod == "client":
            continue
        number = count()

        def fail(line: Line, number: count[int] = number) -> list[Line]:
            if line.inbound and (line.id, line.local) in lost:
                return [line._replace(**NO_CHAIN, remote=f"{address}:{50000 + next(number)}")]
            return [line]

        mesh.rewrite(server.log, fail)
