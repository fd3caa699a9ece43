"""Checks of what clients ask of gateways: hosts, server names, schemes.

Codes MNB320 to MNB324.
"""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from meshnb.checks.base import (
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
    rows_of,
    subject_of,
    symptom_rows,
    unseen,
    workload_of,
)
from meshnb.checks.routing import for_hosts, latest, nearly
from meshnb.symptoms import Symptom, Symptoms
from meshnb.symptoms.base import REPEATED
from meshnb.symptoms.requests import split_address
from meshnb.tables import Facts
from meshnb.tables.base import items
from meshnb.traces.mesh import Mesh, Pod, host_matches
from meshnb.traces.rules import bound_gateways, route_hosts
from meshnb.traces.servers import Server, bound_to, in_front, routed, servers


def unrouted(symptom: Symptom) -> bool:
    """Whether a gateway had no route for a request."""
    return symptom.side == "gateway" and "NR" in symptom.flags and symptom.kind == "request"


def cut_off(symptom: Symptom) -> bool:
    """Whether a gateway found no filter chain for a connection."""
    return (
        symptom.side == "gateway"
        and symptom.kind == "connection"
        and "filter_chain_not_found" in symptom.details
    )


def authorities(symptom: Symptom) -> list[str]:
    """Return the hosts that failed requests were for, without their ports."""
    names = (split_address(failure.authority)[0] for failure in symptom.failures)
    return list(dict.fromkeys(name for name in names if name))


def server_names(symptom: Symptom) -> list[str]:
    """Return the names that TLS clients asked for in their handshakes."""
    names = (failure.server_name for failure in symptom.failures)
    return list(dict.fromkeys(name for name in names if name and name != "-"))


def local_ports(symptom: Symptom) -> set[int | None]:
    """Return the ports of the gateway's pods that failures came to."""
    return {split_address(failure.local_address)[1] for failure in symptom.failures}


def _at(symptom: Symptom, every: list[Server]) -> list[Server]:
    """Return the servers of the gateway pods that report a symptom."""
    return [
        server for server in every if any(pod.proxy in symptom.reporters for pod in server.pods)
    ]


@check("MNB320", Severity.ERROR, cause=Cause.CONTROL_PLANE_CONFIG)
def route_without_gateway(
    mesh: Mesh, symptoms: Symptoms, istio_config: pd.DataFrame, facts: Facts
) -> Iterator[Finding]:
    """Every VirtualService for a host that only a gateway serves is bound to that gateway.

    Without the field gateways a VirtualService is for sidecars only. A gateway that admits its host
    has no route for it then, and answers 404 with flag NR (route_not_found).
    """
    if unseen(facts, "services", "services") or unseen(facts, "istio_config", "serviceentries"):
        return
    every = servers(mesh)
    for service in mesh.of("VirtualService"):
        hosts = [host for host in route_hosts(service, mesh) if not mesh.known_host(host)]
        if not hosts or set(bound_gateways(service)) != {"mesh"}:
            continue
        for server in every:
            mine = [host for host in routed(server, service, mesh) if host in hosts]
            if not mine:
                continue
            others = [
                other
                for other in bound_to(server.gateway, mesh)
                if any(
                    host_matches(theirs, host)
                    for theirs in route_hosts(other, mesh)
                    for host in mine
                )
            ]
            seen = [s for s in symptoms if unrouted(s) and for_hosts(s, mine)]
            # What is meant for a wildcard, of one or the other, failures alone can tell.
            plainly = "*" not in "".join((*server.hosts(), *mine)) and items(service.spec, "http")
            if others or not (seen or plainly):
                continue
            gateway = server.gateway
            yield Finding(
                subject_of(service),
                f"{service} serves {and_list(mine)} inside the mesh only, where no Service has "
                f"that name; {gateway}, which admits it, has no route for it.",
                f"Add `{gateway.namespace}/{gateway.name}` to spec.gateways with "
                f"{edit(subject_of(service))}.",
                evidence=(*symptom_rows(facts, seen), config_rows(istio_config, service, gateway)),
                related=(subject_of(gateway),),
                explains=ids(seen),
                severity=None if seen else Severity.WARNING,
            )
            break


@check("MNB321", Severity.ERROR, cause=Cause.CONTROL_PLANE_CONFIG)
def host_without_route(
    mesh: Mesh, symptoms: Symptoms, istio_config: pd.DataFrame, routes: pd.DataFrame, facts: Facts
) -> Iterator[Finding]:
    """Every host that is asked for at a gateway is one that a VirtualService there names.

    The gateway knows hosts from VirtualServices alone. A host that was served before and is named
    by none any more, or one that differs from theirs by a slip, gets 404 with flag NR
    (route_not_found).
    """
    if unseen(facts, "istio_config", "virtualservices"):
        return
    every = servers(mesh)
    for symptom in symptoms:
        if not unrouted(symptom):
            continue
        here = [server for server in _at(symptom, every) if server.section == "http"]
        gateways = list(dict.fromkeys(server.gateway for server in here))
        bound = [service for gateway in gateways for service in bound_to(gateway, mesh)]
        asked = authorities(symptom)
        named = {host: service for service in bound for host in route_hosts(service, mesh)}
        elsewhere = [
            one
            for one in mesh.of("VirtualService")
            if any(host in asked for host in route_hosts(one, mesh))
        ]
        if (
            not gateways
            or elsewhere  # why it does not get there, other checks say
            or any(host_matches(host, name) for host in named for name in asked)
        ):
            continue
        host = asked[0] if asked else ""
        close = nearly(host, named)
        admitting = [
            gateway
            for gateway in gateways
            if any(server.covers(host) for server in here if server.gateway is gateway)
        ]
        if close and (symptom.worked_before or symptom.count >= REPEATED):
            guilty = named[close]
        elif symptom.worked_before and admitting:
            guilty = latest(*admitting)
        else:
            continue
        instead = f", but {close}, which is nearly the same" if close else ""
        yield Finding(
            subject_of(guilty),
            f"No VirtualService at {and_list(map(str, gateways))} names {host}{instead}.",
            f"Correct the host with {edit(subject_of(guilty))}."
            if close
            else f"Create a VirtualService for {host} that is bound to "
            f"{guilty.namespace}/{guilty.name}: `kubectl get virtualservices -A`.",
            evidence=(
                *symptom_rows(facts, [symptom]),
                config_rows(istio_config, guilty),
                Evidence.of(rows_of(routes, virtual_service=f"{guilty.name}.{guilty.namespace}")),
            ),
            explains=ids([symptom]),
            certainty=0.9 if close else 0.6,
        )


@check("MNB322", Severity.ERROR, cause=Cause.CONTROL_PLANE_CONFIG)
def server_name_without_server(
    mesh: Mesh,
    symptoms: Symptoms,
    istio_config: pd.DataFrame,
    listeners: pd.DataFrame,
    access_log: pd.DataFrame,
    facts: Facts,
) -> Iterator[Finding]:
    """Every name that TLS clients ask a gateway for is a host of one of its servers.

    The gateway chooses the server by the name in the handshake (SNI). For a name that none has it
    ends the connection at once, before any certificate: NR filter_chain_not_found.
    """
    every = servers(mesh)
    for symptom in symptoms:
        if not cut_off(symptom):
            continue
        here = [
            one for one in _at(symptom, every) if one.is_tls and one.port in local_ports(symptom)
        ]
        names = [
            name
            for name in server_names(symptom)
            if not name.startswith("outbound_") and not any(one.covers(name) for one in here)
        ]
        if not here or not names:
            continue
        gateways = list(dict.fromkeys(one.gateway for one in here))
        hosts = list(dict.fromkeys(host for one in here for host in one.hosts()))
        services = [
            service
            for gateway in gateways
            for service in bound_to(gateway, mesh)
            if any(
                host_matches(host, name) for host in route_hosts(service, mesh) for name in names
            )
        ]
        fine = rows_of(access_log, details="via_upstream")
        asked = fine["authority"].fillna("").map(lambda text: split_address(text)[0])
        served = fine["proxy"].isin(symptom.reporters) & asked.isin(names)
        close = [one for name in names if (one := nearly(name, hosts))]
        known = bool(services or served.any() or close)
        near = [one.gateway for one in here if any(host in close for host in one.hosts())]
        guilty = latest(*(near or gateways), *services)
        slip = f" ({and_list(close)} is nearly the same)" if close else ""
        yield Finding(
            subject_of(guilty),
            f"TLS clients ask for {and_list(names)} on port {and_list(local_ports(symptom))}, and "
            f"no server of {and_list(map(str, gateways))} has that host: they have "
            f"{and_list(hosts)}{slip}.",
            f"Add the host with {edit(subject_of(guilty))}, or call the gateway by a name that it "
            "has.",
            evidence=(
                *symptom_rows(facts, [symptom]),
                config_rows(istio_config, *gateways),
                Evidence.of(
                    listeners,
                    listeners.index[
                        listeners["proxy"].isin(symptom.reporters)
                        & listeners["port"].isin([port for port in local_ports(symptom) if port])
                    ],
                ),
            ),
            related=tuple(subject_of(one) for one in (*gateways, *services) if one is not guilty),
            explains=ids([symptom]),
            severity=None if known and symptom.count >= REPEATED else Severity.INFO,
            certainty=0.9 if services or served.any() else 0.7,
        )


@check("MNB323", Severity.ERROR, cause=Cause.DATA_PLANE)
def wrong_scheme_at_gateway(
    mesh: Mesh,
    symptoms: Symptoms,
    istio_config: pd.DataFrame,
    access_log: pd.DataFrame,
    facts: Facts,
) -> Iterator[Finding]:
    """Every client of a gateway speaks TLS to its TLS ports, and plain HTTP to its HTTP ports.

    Bytes that are no HTTP, such as a TLS handshake or the header of the PROXY protocol, get 400
    with flag DPE (codec_error). Plain HTTP on a TLS port, or TLS without a name where the servers
    are told apart by name, finds no filter chain (NR).
    """
    every = servers(mesh)
    for symptom in symptoms:
        garbled = (
            symptom.side == "gateway"
            and "DPE" in symptom.flags
            and "codec_error" in symptom.details
        )
        nameless = cut_off(symptom) and not server_names(symptom)
        if not garbled and not nameless:
            continue
        ports = local_ports(symptom)
        here = [one for one in _at(symptom, every) if one.port in ports and one.is_tls != garbled]
        if not here:
            continue
        # What another server of the same port wants, which istiod left out, is no wrong scheme.
        wanted = any(one.port in ports and one.is_tls == garbled for one in _at(symptom, every))
        clients = _clients(symptom, mesh)
        gateway = here[0].gateway
        front = in_front(here[0].pods, mesh)
        subject = workload_of(clients[0]) if clients else subject_of(gateway)
        who = and_list(f"{pod.namespace}/{pod.workload}" for pod in clients) or "A client"
        what = (
            "sends what is no HTTP, such as TLS or a PROXY header, to port"
            if garbled
            else "sends no TLS, or no server name, to TLS port"
        )
        url = "http" if garbled else "https"
        yield Finding(
            subject,
            f"{who} {what} {and_list(sorted(filter(None, ports)))} of {gateway}: {symptom.count} "
            "connections failed.",
            f"Let the client, or the load balancer in front, call that port with {url}:// by name; "
            f"a PROXY header must be declared: {edit(subject_of(gateway))}.",
            evidence=(
                *symptom_rows(facts, [symptom]),
                config_rows(istio_config, *dict.fromkeys(one.gateway for one in here)),
            ),
            related=(
                *((subject_of(gateway),) if clients else ()),
                *(Subject("Service", one.namespace, one.service) for one in front[:1]),
            ),
            explains=ids([symptom]),
            severity=None
            if symptom.count >= REPEATED and (clients or not _in_use(symptom, access_log))
            else Severity.INFO,
            certainty=0.3 if wanted else 0.8,
        )


def _clients(symptom: Symptom, mesh: Mesh) -> list[Pod]:
    """Return the pods that failed connections came from, where their addresses are their own."""
    found = (mesh.pod_at(split_address(f.remote_address)[0]) for f in symptom.failures)
    return list(dict.fromkeys(pod for pod in found if pod is not None and pod.mesh != "gateway"))


def _in_use(symptom: Symptom, access_log: pd.DataFrame) -> bool:
    """Whether others succeed on that port of the gateway since a symptom began: it is a scan."""
    fine = rows_of(access_log, details="via_upstream")
    ports = fine["downstream_local_address"].fillna("").map(lambda text: split_address(text)[1])
    after = fine["start_time"] > symptom.first_seen if symptom.first_seen is not None else True
    return bool(
        (
            fine["proxy"].isin(symptom.reporters) & ports.isin(list(local_ports(symptom))) & after
        ).any()
    )


@check("MNB324", Severity.ERROR, cause=Cause.CONTROL_PLANE_CONFIG)
def connection_reused_for_other_host(
    mesh: Mesh, symptoms: Symptoms, istio_config: pd.DataFrame, facts: Facts
) -> Iterator[Finding]:
    """Every request comes over a connection that was opened for its own host.

    A browser reuses a TLS connection for every host that its certificate is valid for. The gateway
    chose the server by the name in the handshake; that server has no routes for the other host,
    and answers 404 with flag NR.
    """
    every = servers(mesh)
    for symptom in symptoms:
        if not unrouted(symptom):
            continue
        here = [
            one for one in _at(symptom, every) if one.is_tls and one.port in local_ports(symptom)
        ]
        for asked, name in {
            (split_address(f.authority)[0], f.server_name)
            for f in symptom.failures
            if f.server_name not in ("", "-") and f.authority
        }:
            opened = [one for one in here if one.covers(name) and not one.covers(asked)]
            meant = [one for one in here if one.covers(asked) and not one.covers(name)]
            if asked == name or not opened or not meant:
                continue
            gateways = list(dict.fromkeys((opened[0].gateway, meant[0].gateway)))
            guilty = latest(*gateways)
            yield Finding(
                subject_of(guilty),
                f"Requests for {asked}, a host of {meant[0].gateway}, come over connections that "
                f"were opened for {name}, a host of {opened[0].gateway}: both servers show a "
                "certificate that is valid for both hosts.",
                "Put both hosts into one server, such as a wildcard, or give each its own "
                f"certificate with {edit(subject_of(guilty))}.",
                evidence=(
                    *symptom_rows(facts, [symptom]),
                    config_rows(istio_config, *gateways),
                ),
                related=tuple(subject_of(one) for one in gateways if one is not guilty),
                explains=ids([symptom]),
            )
