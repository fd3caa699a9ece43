"""What a mesh does for its security: mutual TLS everywhere, and only named callers admitted."""

from __future__ import annotations

import copy
from collections import defaultdict

from tests.alteration import Line
from tests.enriching.base import Enriched, Json, name_of, wants_injection
from tests.enriching.envoy import Proxy, gateways, inbound, proxies, sidecars
from tests.policy_filters import envoy_policy, rbac, rule_name


def strict(mesh: Enriched) -> None:
    """Require mutual TLS in the whole mesh, but for the pods that are called in plain text."""
    if not sidecars(mesh):
        return
    mesh.add(
        "security.istio.io/v1",
        "PeerAuthentication",
        "default",
        _root(mesh),
        spec={"mtls": {"mode": "STRICT"}},
    )
    exempt = _plain(mesh)
    ruled = {name_of(item)[0] for item in mesh.objects("peerauthentications")}
    for proxy in sidecars(mesh):
        labels = labels_of(mesh, proxy)
        if proxy.namespace in ruled:
            continue
        if (proxy.namespace, proxy.pod) in exempt or "app" not in labels:
            if "app" in labels:
                _permit(mesh, proxy.namespace, labels["app"])
            continue
        if any((other.namespace, other.pod) in exempt for other in twins_of(mesh, proxy)):
            continue
        _require_mutual(proxy)


def _root(mesh: Enriched) -> str:
    for pod in mesh.objects("pods"):
        if (pod["metadata"].get("labels") or {}).get("app") == "istiod":
            return name_of(pod)[0]
    return "istio-system"


def labels_of(mesh: Enriched, proxy: Proxy) -> dict[str, str]:
    """Return the labels of a proxy's pod."""
    for pod in mesh.objects("pods"):
        if name_of(pod) == (proxy.namespace, proxy.pod):
            return pod["metadata"].get("labels") or {}
    return {}


def twins_of(mesh: Enriched, proxy: Proxy) -> list[Proxy]:
    """Return the sidecars of the pods with the same name of an application, itself included."""
    app = labels_of(mesh, proxy).get("app")
    return [
        other
        for other in sidecars(mesh)
        if other.namespace == proxy.namespace and labels_of(mesh, other).get("app") == app
    ]


def _plain(mesh: Enriched) -> set[tuple[str, str]]:
    """Return the pods to which somebody speaks otherwise than istiod's clients do."""
    found = set()
    by_app: dict[str, list[Proxy]] = defaultdict(list)
    for proxy in sidecars(mesh):
        by_app[labels_of(mesh, proxy).get("app", "")].append(proxy)
        for line in proxy.access():
            mine = line.inbound or line.local.startswith(f"{proxy.address}:")
            if mine and not line.sni.startswith("outbound_"):
                found.add((proxy.namespace, proxy.pod))
    for rule in mesh.objects("destinationrules"):
        if "tls" in (rule["spec"].get("trafficPolicy") or {}):
            for proxy in by_app[rule["spec"]["host"].split(".")[0]]:
                found.add((proxy.namespace, proxy.pod))
    for text in mesh.truth:
        kind, _, name = text.split("/", 2)
        if kind == "Service":
            found |= {(proxy.namespace, proxy.pod) for proxy in by_app[name]}
    return found


def _permit(mesh: Enriched, namespace: str, app: str) -> None:
    if any(name_of(one) == (namespace, app) for one in mesh.objects("peerauthentications")):
        return
    mesh.add(
        "security.istio.io/v1",
        "PeerAuthentication",
        f"{app}-plain",
        namespace,
        spec={"selector": {"matchLabels": {"app": app}}, "mtls": {"mode": "PERMISSIVE"}},
    )


def _require_mutual(proxy: Proxy) -> None:
    listener = proxy.active("virtualInbound")
    if listener is None:
        return
    kept = []
    for chain in listener["filter_chains"]:
        match = chain.get("filter_chain_match") or {}
        if chain.get("name") != "virtualInbound-blackhole":
            if "transport_socket" not in chain:
                continue
            # A port's chain and the last one take any TLS; the other of those for no port is HTTP.
            if "istio-http/1.0" not in match.get("application_protocols", []) or (
                "destination_port" in match
            ):
                match.pop("application_protocols", None)
        kept.append(chain)
    listener["filter_chains"] = kept
    listener["listener_filters"] = [
        one for one in listener.get("listener_filters", []) if "http_inspector" not in one["name"]
    ]


def default_deny(mesh: Enriched) -> None:
    """Admit nobody in the mesh's namespaces but those who are served."""
    meshed = {n["metadata"]["name"] for n in mesh.objects("namespaces") if wants_injection(n)}
    accounts = _accounts(mesh)
    denied = {
        name_of(item)[0] for item in mesh.objects("authorizationpolicies") if not item["spec"]
    }
    ruled = mesh.objects("authorizationpolicies")[:]
    for namespace in sorted(meshed - denied):
        mesh.add("security.istio.io/v1", "AuthorizationPolicy", "allow-nothing", namespace, spec={})
    done: set[tuple[str, str]] = set()
    for proxy in sidecars(mesh):
        labels = labels_of(mesh, proxy)
        if proxy.namespace not in meshed:
            continue
        rules: dict[str, Json] = {}
        app = labels.get("app")
        callers = _callers(mesh, proxy, accounts)
        forbidden = any("rbac_access_denied" in line.details for line in proxy.access())
        own = any(
            (item["spec"].get("selector") or {}).get("matchLabels", {}).items() <= labels.items()
            for item in ruled
            if name_of(item)[0] == proxy.namespace
        )
        if app and callers is not None and not (forbidden or own):
            name = f"{app}-callers"
            spec = _admit(app, callers)
            if (proxy.namespace, app) not in done:
                mesh.add(
                    "security.istio.io/v1",
                    "AuthorizationPolicy",
                    name,
                    proxy.namespace,
                    spec=spec,
                )
                done.add((proxy.namespace, app))
            rules[rule_name(proxy.namespace, name)] = envoy_policy(spec["rules"][0])
        _admit_in(proxy, rules)


def _accounts(mesh: Enriched) -> dict[str, str]:
    """Return the identity of each address that has a proxy."""
    found = {}
    names = {(proxy.namespace, proxy.pod) for proxy in proxies(mesh)}
    for pod in mesh.objects("pods"):
        if name_of(pod) in names and pod["status"].get("podIP"):
            account = pod["spec"].get("serviceAccountName", "default")
            found[pod["status"]["podIP"]] = f"cluster.local/ns/{name_of(pod)[0]}/sa/{account}"
    return found


def _callers(mesh: Enriched, proxy: Proxy, accounts: dict[str, str]) -> list[str] | None:
    """Return the identities of all who call a workload; none of them when anybody may."""
    found = set()
    anybody = False
    for other in twins_of(mesh, proxy):
        for line in other.access():
            if not (line.inbound or line.local.startswith(f"{other.address}:")):
                continue
            identity = accounts.get(line.remote.rpartition(":")[0])
            if line.sni.startswith("outbound_") and identity is not None:
                found.add(identity)
            elif line.sni.startswith("outbound_"):
                found |= {
                    accounts[one.address] for one in gateways(mesh) if one.address in accounts
                }
            else:
                anybody = True
    # Who calls is also told by the callers: the server may have been without a log.
    return [] if anybody else sorted(found) or [*dict.fromkeys(accounts.values())]


def _admit(app: str, callers: list[str]) -> Json:
    rule: Json = {"to": [{"operation": {"notPaths": ["/never"]}}]}
    if callers:
        rule = {"from": [{"source": {"principals": callers}}]}
    return {"selector": {"matchLabels": {"app": app}}, "action": "ALLOW", "rules": [rule]}


def _admit_in(proxy: Proxy, rules: dict[str, Json]) -> None:
    def add(chain: Json) -> None:
        for part in chain["filters"]:
            if "http_filters" in part["typed_config"]:
                _add_http(part["typed_config"]["http_filters"], rules)
                return
        held = [f for f in chain["filters"] if f["name"] == "envoy.filters.network.rbac"]
        if held:
            held[0]["typed_config"].setdefault("rules", {}).setdefault("policies", {}).update(rules)
            return
        chain["filters"].insert(0, rbac(rules, bytes_only=True))

    inbound(proxy, add)


def _add_http(filters: list[Json], rules: dict[str, Json]) -> None:
    allow = [
        one["typed_config"]
        for one in filters
        if one["name"] == "envoy.filters.http.rbac"
        and one["typed_config"].get("rules", {}).get("action", "ALLOW") == "ALLOW"
    ]
    if allow:
        allow[0].setdefault("rules", {}).setdefault("policies", {}).update(copy.deepcopy(rules))
        return
    after = sum("rbac" in one["name"] or "jwt" in one["name"] for one in filters)
    filters.insert(after, rbac(rules))


def meant_deny(mesh: Enriched) -> None:
    """Deny a path on purpose; a scanner on the internet asks for it and always gets a 403."""
    for gateway in gateways(mesh):
        lines = [line for line in gateway.access() if line.code == "200"]
        servers = {line.endpoint: line for line in lines}
        for server in sidecars(mesh):
            found = [
                line
                for endpoint, line in servers.items()
                if endpoint.startswith(f"{server.address}:")
            ]
            if found:
                _deny_admin(mesh, gateway, server, found[0])
                return


def _deny_admin(mesh: Enriched, gateway: Proxy, server: Proxy, like: Line) -> None:
    app = labels_of(mesh, server).get("app")
    if app is None or gateway.log is None or server.log is None:
        return
    prefix = _prefix(gateway, like)
    if prefix is None:
        operation: Json = {"methods": ["PUT"]}
        asked = [{"method": "PUT"}] * 8
    else:
        admin = f"{prefix.rstrip('/')}/admin"
        operation = {"paths": [admin, f"{admin}/*"]}
        asked = [{"path": admin + end} for end in ("", "/login.php", "/config", "")] * 2
    rule: Json = {"to": [{"operation": operation}]}
    mesh.add(
        "security.istio.io/v1",
        "AuthorizationPolicy",
        "no-admin-from-outside",
        server.namespace,
        spec={
            "selector": {"matchLabels": {"app": app}},
            "action": "DENY",
            "rules": [rule],
        },
    )
    name = rule_name(server.namespace, "no-admin-from-outside")
    filter_ = rbac({name: envoy_policy(rule, action="DENY")}, "DENY")

    def deny(chain: Json) -> None:
        for part in chain["filters"]:
            if "http_filters" in part["typed_config"]:
                part["typed_config"]["http_filters"].insert(0, copy.deepcopy(filter_))

    for twin in twins_of(mesh, server):
        inbound(twin, deny)
    inside = next(
        (one for one in server.access() if one.inbound and (one.code, one.flags) == ("200", "-")),
        None,
    )
    if inside is None:
        return
    fronts, backs = [], []
    for number, one in enumerate(asked):
        new = {**one, "code": "403", "id": f"5ca77e12-0000-4000-8000-00000000000{number}"}
        fronts.append(like._replace(**new, agent="zgrab/0.x", forwarded="45.83.64.1"))
        backs.append(
            inside._replace(
                **new,
                agent="zgrab/0.x",
                details=f"rbac_access_denied_matched_policy[{name}]",
                authority=like.authority,
                endpoint="-",
                own="-",
                service_time="-",
                remote="45.83.64.1:0",
            )
        )
    mesh.insert(gateway.log, fronts)
    mesh.insert(server.log, backs)


def _prefix(gateway: Proxy, like: Line) -> str | None:
    """Return a prefix of paths that the gateway routes as it did this request."""
    for _, virtual in gateway.virtual_hosts():
        if like.authority in virtual["domains"] or "*" in virtual["domains"]:
            for route in virtual.get("routes", []):
                if (
                    "prefix" in route["match"]
                    and route.get("route", {}).get("cluster") == like.cluster
                ):
                    prefix: str = route["match"]["prefix"]
                    return prefix
    return None
