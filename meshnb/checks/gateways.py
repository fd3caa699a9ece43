"""Checks of gateways: who opens a port, for which hosts, with which certificate.

Codes MNB300 to MNB319.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from difflib import get_close_matches

import pandas as pd

from meshnb.checks.base import (
    STARTUP,
    Cause,
    Evidence,
    Finding,
    Severity,
    Subject,
    and_list,
    check,
    config_rows,
    edit,
    ids,
    restart,
    rows_of,
    start,
    subject_of,
    symptom_rows,
    unseen,
    workload_in,
    workload_of,
)
from meshnb.checks.routing import GATEWAY_GROUP, for_hosts, latest, serves
from meshnb.symptoms import Symptom, Symptoms
from meshnb.symptoms.requests import split_address
from meshnb.tables import Facts
from meshnb.tables.base import dig, items, mapping
from meshnb.traces.mesh import Mesh, Pod, hosts_overlap, plain
from meshnb.traces.rules import admitted_hosts, bound_gateways, route_hosts
from meshnb.traces.servers import (
    TERMINATING,
    Server,
    in_front,
    selected_gateways,
    servers,
)


def refused_at(symptom: Symptom, pods: Iterable[Pod], port: int | None = None) -> bool:
    """Whether connections to a port of any of these pods were refused, as their callers saw it."""
    addresses = {pod.address for pod in pods}
    return (
        "UF" in symptom.flags
        and "onnection_refused" in symptom.details + symptom.upstream_failure
        and any(
            address in addresses and port in (None, number)
            for failure in symptom.failures
            for address, number in [split_address(failure.upstream_host)]
        )
    )


def _unrouted(symptom: Symptom) -> bool:
    return symptom.side == "gateway" and "NR" in symptom.flags and symptom.kind == "request"


@check("MNB301", Severity.ERROR, cause=Cause.CONTROL_PLANE_CONFIG)
def gateway_without_pods(
    mesh: Mesh,
    symptoms: Symptoms,
    istio_config: pd.DataFrame,
    pods: pd.DataFrame,
    workloads: pd.DataFrame,
    facts: Facts,
) -> Iterator[Finding]:
    """Every Gateway's selector chooses a gateway pod.

    A Gateway opens its ports on the gateway pods that its selector chooses. When it chooses none,
    no listener is made anywhere: connections are refused, or answered by what another Gateway left
    open.
    """
    if unseen(facts, "pods", "pods"):
        return
    real = [pod for pod in mesh.pods if pod.mesh == "gateway" and pod.running]
    for gateway in mesh.of("Gateway", GATEWAY_GROUP):
        selector = mapping(gateway.spec, "selector")
        if not selector or selected_gateways(gateway, mesh):
            continue
        hosts = [
            str(host).rpartition("/")[2]
            for server in items(gateway.spec, "servers")
            for host in items(server, "hosts")
        ]
        ports = [dig(server, "port", "number") for server in items(gateway.spec, "servers")]
        front = [port for port in in_front(real, mesh) if port.port in ports]
        numbers = {*ports, *(mesh.target_port(port) for port in front)}
        seen = [
            s
            for s in symptoms
            if (
                _unrouted(s)
                and s.worked_before
                and any(
                    hosts_overlap(host, split_address(f.authority)[0])
                    for f in s.failures
                    for host in hosts
                )
            )
            or any(refused_at(s, real, number) for number in numbers)
        ]
        values = sorted(
            {f"{key}={pod.labels[key]}" for pod in real for key in selector if key in pod.labels}
        )
        have = f" The gateway pods have {and_list(values)}." if values else ""
        wanted = ", ".join(f"{key}={value}" for key, value in selector.items())
        stopped = workloads[
            [
                selector.items() <= (labels or {}).items() and not wants
                for labels, wants in zip(
                    workloads["labels"], workloads["replicas_wanted"].fillna(1), strict=True
                )
            ]
        ]
        others = [pod for pod in mesh.matching(selector, None) if pod.mesh != "gateway"]
        who = (
            f"only pods that are no gateways have that, such as {others[0].namespace}/"
            f"{others[0].pod}"
            if others
            else "no pod has that"
        )
        subject, remedy = (
            subject_of(gateway),
            f"Correct spec.selector with {edit(subject_of(gateway))}.",
        )
        if len(stopped):
            subject = workload_in(stopped.iloc[0])
            who = f"{subject}, whose pods have that, wants none"
            remedy = start(subject)
        yield Finding(
            subject,
            f"{gateway} selects {wanted}, and {who}, so nobody listens on port "
            f"{and_list(ports)} for {and_list(hosts)}.{have}",
            remedy,
            evidence=(
                *symptom_rows(facts, seen),
                config_rows(istio_config, gateway),
                Evidence.of(workloads, stopped.index),
                Evidence.of(rows_of(pods, mesh="gateway")),
            ),
            related=(subject_of(gateway),) if len(stopped) else (),
            explains=ids(seen),
            shows=f"no gateway pod listens on port {and_list(ports)} for {and_list(hosts)}",
            cause=Cause.DATA_PLANE if len(stopped) else None,
        )


@check("MNB302", Severity.ERROR, cause=Cause.CONTROL_PLANE_CONFIG)
def route_to_missing_gateway(
    mesh: Mesh, symptoms: Symptoms, istio_config: pd.DataFrame, routes: pd.DataFrame, facts: Facts
) -> Iterator[Finding]:
    """Every gateway that a VirtualService binds to exists.

    A VirtualService that names a gateway which does not exist is stored and then ignored: the real
    gateway has no route for its hosts and answers 404 with flag NR (route_not_found).
    """
    if unseen(facts, "istio_config", "gateways"):
        return
    existing = {
        f"{gateway.namespace}/{gateway.name}": gateway
        for gateway in mesh.of("Gateway", GATEWAY_GROUP)
    }
    for service in mesh.of("VirtualService"):
        for name in bound_gateways(service):
            if name == "mesh" or name in existing or "istio-autogenerated-k8s-gateway" in name:
                continue
            hosts = route_hosts(service, mesh)
            seen = [s for s in symptoms if _unrouted(s) and for_hosts(s, hosts)]
            offered = [
                key
                for key, gateway in existing.items()
                if serves(gateway, service.namespace, hosts)
            ]
            close = get_close_matches(name, existing, n=1, cutoff=0.6) or offered[:1]
            hint = f" The nearest that exists is {close[0]}." if close else ""
            where = and_list(existing[key].name for key in close)
            remedy = f"Bind it to {where}" if where else "Name a gateway that exists"
            yield Finding(
                subject_of(service),
                f"{service} binds {and_list(items(service.spec, 'hosts'))} to gateway {name}, "
                f"which does not exist, so no gateway has its routes.{hint}",
                f"{remedy} with {edit(subject_of(service))}.",
                evidence=(
                    *symptom_rows(facts, seen),
                    config_rows(istio_config, service, *(existing[key] for key in close)),
                    Evidence.of(
                        rows_of(routes, virtual_service=f"{service.name}.{service.namespace}")
                    ),
                ),
                related=tuple(subject_of(existing[key]) for key in close),
                explains=ids(seen),
            )


@check("MNB303", Severity.ERROR, cause=Cause.CONTROL_PLANE_CONFIG)
def hosts_not_admitted(
    mesh: Mesh, symptoms: Symptoms, istio_config: pd.DataFrame, routes: pd.DataFrame, facts: Facts
) -> Iterator[Finding]:
    """Every host of a VirtualService at a gateway is one that the gateway admits.

    A gateway gets routes only for hosts that both its Gateway and a VirtualService name. Where the
    two do not meet it has no virtual host, and answers 404 with flag NR (route_not_found).
    """
    existing = {
        f"{gateway.namespace}/{gateway.name}": gateway
        for gateway in mesh.of("Gateway", GATEWAY_GROUP)
    }
    for service in mesh.of("VirtualService"):
        bound = [existing[name] for name in bound_gateways(service) if name in existing]
        left = [
            host
            for host in route_hosts(service, mesh)
            if not any(serves(gateway, service.namespace, [host]) for gateway in bound)
        ]
        if not bound or not left:
            continue
        seen = [s for s in symptoms if _unrouted(s) and for_hosts(s, left)]
        everything = len(left) == len(route_hosts(service, mesh))
        if not everything and not seen:
            continue  # its other hosts may be for callers inside the mesh
        # Which of the two is wrong cannot be told from them; the one that was changed last, likely.
        gateway = latest(*bound)
        subject = subject_of(latest(service, gateway))
        there = and_list(host for one in bound for host in admitted_hosts(one, service.namespace))
        there = there or "nothing from its namespace"
        what = "they have no host in common" if everything else f"{and_list(left)} is left out"
        yield Finding(
            subject,
            f"{service} serves {and_list(items(service.spec, 'hosts'))} at "
            f"{and_list(map(str, bound))}, which admits {there}: {what}.",
            f"Make the hosts meet with {edit(subject_of(service))} or {edit(subject_of(gateway))}.",
            evidence=(
                *symptom_rows(facts, seen),
                config_rows(istio_config, service, *bound),
                Evidence.of(rows_of(routes, virtual_service=f"{service.name}.{service.namespace}")),
            ),
            related=tuple(one for one in map(subject_of, (service, *bound)) if one != subject),
            explains=ids(seen),
        )


@check("MNB304", Severity.ERROR, cause=Cause.CONTROL_PLANE_CONFIG)
def gateway_certificate_missing(
    mesh: Mesh,
    symptoms: Symptoms,
    istio_config: pd.DataFrame,
    secrets: pd.DataFrame,
    certificates: pd.DataFrame,
    facts: Facts,
) -> Iterator[Finding]:
    """Every certificate that a Gateway names is a usable Secret beside the gateway's pods.

    The Secret is looked up in the namespace of the gateway's pods, not of the Gateway. Without it
    the listener waits for its certificate and ends each handshake; the access log need not show a
    line.
    """
    every = servers(mesh)
    for gateway in mesh.of("Gateway", GATEWAY_GROUP):
        behind = selected_gateways(gateway, mesh)
        wanted = [
            (server, name)
            for server in every
            if server.gateway is gateway and server.mode in TERMINATING
            for name in server.secrets()
            if "://" not in name
        ]
        for server, name in wanted:
            for namespace in sorted({pod.namespace for pod in behind}):
                there = rows_of(secrets, namespace=namespace, secret=name)
                authority = rows_of(secrets, namespace=namespace, secret=f"{name}-cacert")
                problem = _certificate_problem(there, facts)
                if problem is None and len(there) and server.mode in ("MUTUAL", "OPTIONAL_MUTUAL"):
                    problem = _authority_problem(there, authority)
                if problem is None:
                    continue
                proxies = [pod.proxy for pod in behind if pod.namespace == namespace]
                waiting = certificates[
                    certificates["proxy"].isin(proxies)
                    & certificates["resource_name"]
                    .str.contains(name, regex=False)
                    .fillna(False)
                    .astype(bool)
                ]
                elsewhere = sorted(
                    rows_of(secrets, secret=name)["namespace"].dropna().unique().tolist()
                )
                hint = (
                    f" A Secret of that name is in {and_list(elsewhere)}."
                    if elsewhere and len(there) == 0
                    else ""
                )
                seen = [
                    s
                    for s in symptoms
                    if s.side == "gateway"
                    and s.kind == "connection"
                    and bool(set(proxies) & set(s.reporters))
                    and server.port in {split_address(f.local_address)[1] for f in s.failures}
                ]
                # What is wrong in a Secret is mended there; a missing one may be a wrong name.
                secret = Subject("Secret", namespace, name)
                subject, other = subject_of(gateway), secret
                if len(there):
                    subject, other = secret, subject
                yield Finding(
                    subject,
                    f"{gateway} takes the certificate for {and_list(server.hosts())} from "
                    f"Secret {namespace}/{name}, {problem} "
                    f"({server.path}.tls.credentialName).{hint}",
                    f"Create it with `kubectl -n {namespace} create secret {_kind(server)}`, or "
                    f"correct the name with {edit(subject_of(gateway))}.",
                    evidence=(
                        *symptom_rows(facts, seen),
                        Evidence.of(certificates, waiting.index),
                        Evidence.of(there),
                        config_rows(istio_config, gateway),
                    ),
                    related=(other,),
                    explains=ids(seen),
                    shows=f"TLS handshakes for {and_list(server.hosts())} at port {server.port} of "
                    f"{and_list(proxies)} fail without a certificate",
                )


def _certificate_problem(secret: pd.DataFrame, facts: Facts) -> str | None:
    if len(secret) == 0:
        return None if unseen(facts, "secrets", "secrets") else "which does not exist"
    row = secret.iloc[0]
    keys = set(row["keys"] or ())
    bare = not keys and plain(row["type"]) == "kubernetes.io/tls"  # its values were left out
    if not bare and not any(pair <= keys for pair in _KEY_PAIRS):
        return f"which has the keys {and_list(sorted(keys)) or 'none'}, not tls.crt and tls.key"
    if plain(row["problem"]):
        return f"whose certificate cannot be read: {row['problem']}"
    begins, until = plain(row["not_before"]), plain(row["not_after"])
    if until is not None and until < pd.Timestamp(facts.now):
        return f"whose certificate expired at {until:%Y-%m-%d %H:%M}"
    if begins is not None and begins > pd.Timestamp(facts.now):
        return f"whose certificate is not valid before {begins:%Y-%m-%d %H:%M}"
    return None


#: What istiod reads from a Secret, one pair or the other (Istio: secure-ingress, key formats).
_KEY_PAIRS = ({"tls.crt", "tls.key"}, {"cert", "key"})


def _authority_problem(secret: pd.DataFrame, authority: pd.DataFrame) -> str | None:
    """Return why clients' certificates cannot be verified, which mutual TLS is for."""
    keys = {key for rows in (secret, authority) for keys in rows["keys"] for key in keys or ()}
    if keys & {"ca.crt", "cacert"}:
        return None
    return "which has no ca.crt to verify clients by, and no Secret of that name with -cacert has"


def _kind(server: Server) -> str:
    name = next(iter(server.secrets()))
    if server.mode == "SIMPLE":
        return f"tls {name} --cert=… --key=…"
    files = "--from-file=tls.crt=… --from-file=tls.key=… --from-file=ca.crt=…"
    return f"generic {name} {files}"


@check("MNB305", Severity.WARNING, cause=Cause.DATA_PLANE)
def gateway_port_not_exposed(
    mesh: Mesh,
    symptoms: Symptoms,
    istio_config: pd.DataFrame,
    services: pd.DataFrame,
    facts: Facts,
) -> Iterator[Finding]:
    """Every port of a Gateway is offered by a Service in front of its pods.

    A listener that no Service leads to is open, but nobody reaches it from outside. Who asks for
    its hosts at a port that is offered gets 404 (NR, route_not_found) there, or no connection.
    """
    every = servers(mesh)
    for server in every:
        offered = in_front(server.pods, mesh)
        open_ports = {port.port for port in offered} | {mesh.target_port(port) for port in offered}
        declared = server.declared_port
        if not offered or declared is None or declared in open_ports:
            continue
        gateway = server.gateway
        front = Subject("Service", offered[0].namespace, offered[0].service)
        changed = offered[0].changed
        newer = changed is not None and changed > gateway.changed
        ports = and_list(sorted({str(port.port) for port in offered}))
        seen = [symptom for symptom in symptoms if _asked_elsewhere(symptom, server, every)]
        yield Finding(
            front if newer else subject_of(gateway),
            f"{gateway} opens port {declared} ({server.path}.port), and no Service "
            f"in front of its pods leads to it: {front.namespace}/{front.name} has {ports}.",
            f"Add the port with {edit(front)}, or correct it with {edit(subject_of(gateway))}.",
            evidence=(
                *symptom_rows(facts, seen),
                config_rows(istio_config, gateway),
                Evidence.of(rows_of(services, namespace=front.namespace, service=front.name)),
            ),
            related=(subject_of(gateway) if newer else front,),
            explains=ids(seen),
            shows=f"port {declared} of {gateway} cannot be reached from outside",
        )


def _asked_elsewhere(symptom: Symptom, server: Server, every: list[Server]) -> bool:
    """Whether requests for the hosts of a server were made at a port that has none for them."""
    if symptom.side != "gateway" or "NR" not in symptom.flags or symptom.kind != "request":
        return False
    if not any(pod.proxy in symptom.reporters for pod in server.pods):
        return False
    for failure in symptom.failures:
        host, port = split_address(failure.authority)[0], split_address(failure.local_address)[1]
        there = [one for one in every if one.port == port and one.covers(host)]
        if port in (None, server.port) or not server.covers(host) or there:
            return False
    return True


@check("MNB306", Severity.WARNING, cause=Cause.DATA_PLANE)
def load_balancer_pending(
    mesh: Mesh, istio_config: pd.DataFrame, events: pd.DataFrame, services: pd.DataFrame
) -> Iterator[Finding]:
    """Every gateway that is to have a load balancer gets one.

    Kubernetes asks the cloud for the load balancer of a Service. While that fails, the Service has
    no address outside the cluster, and no packet arrives at the gateway.
    """
    failed = events[
        (events["kind"] == "Service")
        & events["reason"].isin(_LOAD_BALANCER_FAILED)
        & (events["type"] == "Warning")
    ]
    told: set[Subject] = set()
    for server in servers(mesh):
        for port in in_front(server.pods, mesh):
            subject = Subject("Service", port.namespace, port.service)
            rows = failed[
                (failed["namespace"] == port.namespace) & (failed["name"] == port.service)
            ]
            if subject in told or not len(rows):
                continue
            told.add(subject)
            last = rows.sort_values("last_seen").iloc[-1]
            yield Finding(
                subject,
                f"{subject}, in front of {server.gateway}, gets no load balancer: "
                f"{last['reason']}, {last['message']}.",
                f"See what is wrong with `kubectl -n {port.namespace} describe service "
                f"{port.service}`.",
                evidence=(
                    Evidence.of(events, rows.index),
                    Evidence.of(rows_of(services, namespace=port.namespace, service=port.service)),
                    config_rows(istio_config, server.gateway),
                ),
                related=(subject_of(server.gateway),),
                shows=f"{subject} has no address outside the cluster",
            )


@check("MNB307", Severity.ERROR, cause=Cause.DATA_PLANE_CONFIG)
def gateway_port_closed(
    mesh: Mesh,
    istio_config: pd.DataFrame,
    services: pd.DataFrame,
    listeners: pd.DataFrame,
    proxy_status: pd.DataFrame,
    facts: Facts,
) -> Iterator[Finding]:
    """Every port that a Gateway opens and a Service leads to has a listener on its proxies.

    Connections to a port without a listener are refused before any proxy could log them: only
    clients outside see it.
    """
    refused = set(proxy_status.loc[proxy_status["sync"].isin(["ERROR", "STALE"]), "proxy"])
    listening: dict[str, set[int]] = {}
    for proxy, port in zip(listeners["proxy"], listeners["port"], strict=True):
        if plain(port) is not None:
            listening.setdefault(str(proxy), set()).add(int(port))
    every = servers(mesh)
    for server in every:
        offered = in_front(server.pods, mesh)
        front = next(
            (
                one
                for one in offered
                if one.port == server.declared_port or mesh.target_port(one) == server.port
            ),
            None,
        )
        # A proxy that refuses its listeners, or is late, is another check's matter, and so are
        # ports below 1024. Without a route, only a port for requests is opened: it answers 404.
        closed = [
            pod
            for pod in server.pods
            if pod.ready
            and pod.proxy in listening
            and pod.proxy not in refused
            and server.port not in listening[pod.proxy]
        ]
        known = server.section == "http" and server.port is not None and server.port >= 1024
        fresh = facts.now - server.gateway.changed < STARTUP
        if front is None or not closed or not known or fresh:
            continue
        # Where the proxy serves other ports of Gateways, somebody may just be setting this one up.
        wanted = {one.port for one in every if closed[0] in one.pods}
        if not wanted.isdisjoint(listening[closed[0].proxy]):
            continue
        leading = Subject("Service", front.namespace, front.service)
        workload = workload_of(closed[0])
        yield Finding(
            workload,
            f"{server.gateway} opens port {server.declared_port} ({server.path}.port), {leading} "
            f"leads there, and {and_list(pod.pod for pod in closed)} has no listener on port "
            f"{server.port}, though it is in step with istiod.",
            f"Read what istiod says of it with `istioctl proxy-config listeners {closed[0].pod} "
            f"-n {closed[0].namespace}`, and restart it: {restart(workload)}.",
            evidence=(
                config_rows(istio_config, server.gateway),
                Evidence.of(rows_of(services, namespace=front.namespace, service=front.service)),
                Evidence.of(listeners, listeners.index[listeners["proxy"] == closed[0].proxy][:20]),
            ),
            related=(subject_of(server.gateway), leading),
            shows=f"nobody listens on port {server.port} of {workload}",
        )


#: Reasons of Kubernetes' service controller, and its older ones.
_LOAD_BALANCER_FAILED = (
    "SyncLoadBalancerFailed",
    "CreatingLoadBalancerFailed",
    "UpdateLoadBalancerFailed",
    "UnAvailableLoadBalancer",
)
