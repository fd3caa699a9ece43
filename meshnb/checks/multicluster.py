"""Checks of meshes that span several clusters or networks. Codes MNB260 to MNB269."""

from __future__ import annotations

import json
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
)
from meshnb.checks.routing import latest
from meshnb.symptoms import Symptom, Symptoms
from meshnb.symptoms.requests import split_address
from meshnb.tables import Facts
from meshnb.tables.base import dig, items
from meshnb.traces.mesh import ConfigObject, Mesh, plain
from meshnb.traces.servers import servers

#: Marks the Secrets with which istiod reads other clusters.
_REMOTE = "istio/multiCluster"
#: Names the network of a pod, a namespace, a Service or an entry.
_NETWORK = "topology.istio.io/network"
#: The port of gateways between networks, by convention of Istio's own.
_CROSS_NETWORK = 15443


@check("MNB260", Severity.WARNING, cause=Cause.CONTROL_PLANE_CONFIG)
def remote_cluster_not_read(
    mesh: Mesh, remote_clusters: pd.DataFrame, secrets: pd.DataFrame
) -> Iterator[Finding]:
    """Every istiod reads the Services of each cluster that it has a Secret for.

    istiod takes the Secrets in its namespace that are labelled istio/multiCluster=true. While it
    cannot read a cluster, callers have the endpoints of their own cluster only.
    """
    names: set[str] = set()
    for index, row in zip(remote_clusters.index, remote_clusters.to_dict("records"), strict=True):
        secret, sync = plain(row["secret"]), str(plain(row["sync"]) or "")
        names.add(str(secret or "").rpartition("/")[2])
        if not secret or sync in ("synced", ""):
            continue
        namespace, _, name = str(secret).rpartition("/")
        subject = Subject("Secret", namespace or str(row["namespace"]), name)
        yield Finding(
            subject,
            f"istiod {row['istiod']} cannot read cluster {row['cluster']} with {subject}: {sync}.",
            "Make it anew with `istioctl create-remote-secret --name "
            f"{row['cluster']}`, against an API server that istiod reaches.",
            evidence=(
                Evidence.of(remote_clusters, [index]),
                Evidence.of(rows_of(secrets, namespace=subject.namespace, secret=name)),
            ),
        )
    for row in secrets[secrets["secret"].fillna("").str.startswith("istio-remote-secret-")].to_dict(
        "records"
    ):
        if (row["labels"] or {}).get(_REMOTE) == "true" and (
            row["namespace"] in mesh.control_plane_namespaces
        ):
            continue
        subject = Subject("Secret", str(row["namespace"]), str(row["secret"]))
        why = (
            f"it lacks the label {_REMOTE}=true"
            if (row["labels"] or {}).get(_REMOTE) != "true"
            else f"it is not in {and_list(sorted(mesh.control_plane_namespaces))}"
        )
        yield Finding(
            subject,
            f"{subject} is for another cluster, and istiod does not take it: {why}.",
            f"Label it with `kubectl -n {subject.namespace} label secret {subject.name} "
            f"{_REMOTE}=true`, in istiod's namespace.",
            evidence=(
                Evidence.of(rows_of(secrets, namespace=row["namespace"], secret=row["secret"])),
            ),
        )


def _networks(mesh: Mesh, services: pd.DataFrame) -> set[str]:
    """Return the networks to which a gateway leads: by a Service's label, or by MeshNetworks."""
    labelled = {str((labels or {}).get(_NETWORK, "")) for labels in services["labels"]}
    gateways = {item.labels[_NETWORK] for item in mesh.of("Gateway") if _NETWORK in item.labels}
    return (labelled | gateways) - {""}


def _elsewhere(mesh: Mesh) -> Iterator[tuple[ConfigObject, str, str]]:
    """Yield each endpoint that says it is in a network: its object, the network, the address."""
    for item in mesh.of("WorkloadEntry"):
        network = dig(item.spec, "network") or item.labels.get(_NETWORK)
        if network:
            yield item, str(network), str(dig(item.spec, "address", default=""))
    for item in mesh.of("ServiceEntry"):
        for endpoint in items(item.spec, "endpoints"):
            if network := dig(endpoint, "network"):
                yield item, str(network), str(dig(endpoint, "address", default=""))


@check("MNB261", Severity.WARNING, cause=Cause.CONTROL_PLANE_CONFIG)
def network_without_gateway(
    mesh: Mesh,
    symptoms: Symptoms,
    istio_config: pd.DataFrame,
    services: pd.DataFrame,
    proxies: pd.DataFrame,
    endpoints: pd.DataFrame,
    facts: Facts,
) -> Iterator[Finding]:
    """Every network that endpoints are in has a gateway through which others reach it.

    Addresses of another network lead nowhere. istiod puts the address of that network's gateway in
    their place, when a Service there is labelled topology.istio.io/network. Without one, callers
    time out (UF) for that share of the endpoints, or have none (UH).
    """
    own = set(proxies["network"].dropna()) - {""}
    known = _networks(mesh, services)
    for item in dict.fromkeys(item for item, _, _ in _elsewhere(mesh)):
        places = [
            (network, address)
            for one, network, address in _elsewhere(mesh)
            if one is item and network not in known and network not in own
        ]
        addresses = {address for _, address in places if address}
        if not places:
            continue
        hosts = _hosts_of(item, mesh)
        seen = [
            s
            for s in symptoms
            if s.side != "server"
            and bool({"UF", "UH"} & s.flags)
            and (
                addresses & {split_address(failure.upstream_host)[0] for failure in s.failures}
                or (s.host in hosts and "UH" in s.flags)
            )
        ]
        given = endpoints[endpoints["address"].isin(list(addresses))]
        networks = and_list(dict.fromkeys(network for network, _ in places))
        yield Finding(
            subject_of(item),
            f"{item} is in network {networks}, and no gateway leads there, so proxies of other "
            f"networks cannot reach {and_list(sorted(addresses)) or 'it'}.",
            f"Label the Service of that network's gateway {_NETWORK}={places[0][0]}, or correct "
            f"the network with {edit(subject_of(item))}.",
            evidence=(
                *symptom_rows(facts, seen),
                config_rows(istio_config, item),
                Evidence.of(endpoints, given.index),
            ),
            explains=ids(seen),
            # Where no network has a gateway, istiod takes all of them for one.
            severity=Severity.ERROR if seen else None if known else Severity.INFO,
        )


def _hosts_of(item: ConfigObject, mesh: Mesh) -> set[str]:
    if item.kind == "ServiceEntry":
        return {str(host) for host in items(item.spec, "hosts")}
    labels = {**(dig(item.spec, "labels") or {}), **item.labels}.items()
    found = {
        port.host
        for port in mesh.services
        if port.selector and port.namespace == item.namespace and port.selector.items() <= labels
    }
    for entry in mesh.of("ServiceEntry"):
        selector = dig(entry.spec, "workloadSelector", "labels") or {}
        if selector and entry.namespace == item.namespace and selector.items() <= labels:
            found |= {str(host) for host in items(entry.spec, "hosts")}
    return found


@check("MNB262", Severity.ERROR, cause=Cause.DATA_PLANE_CONFIG)
def other_cluster_not_trusted(
    mesh: Mesh,
    symptoms: Symptoms,
    endpoints: pd.DataFrame,
    certificates: pd.DataFrame,
    facts: Facts,
) -> Iterator[Finding]:
    """All clusters of a mesh have certificates of one root.

    Where each cluster has a CA of its own, calls within a cluster succeed, and those through the
    gateway of another one end in a failed handshake: CERTIFICATE_VERIFY_FAILED or UNKNOWN_CA.
    """
    for symptom in symptoms:
        text = symptom.upstream_failure + symptom.details
        far = {
            address
            for failure in symptom.failures
            for address, port in [split_address(failure.upstream_host)]
            if address and port == _CROSS_NETWORK and mesh.pod_at(address) is None
        }
        if not far or not any(
            word in text for word in ("CERTIFICATE_VERIFY_FAILED", "UNKNOWN_CA", "UNKNOWN_ISSUER")
        ):
            continue
        namespace = next(iter(sorted(mesh.control_plane_namespaces)), "")
        subject = Subject("Secret", namespace, "cacerts")
        roots = certificates[
            certificates["proxy"].isin(symptom.reporters) & (certificates["type"] == "CA")
        ]
        yield Finding(
            subject,
            f"Proxies of this cluster do not trust those behind {and_list(sorted(far))}, the "
            f"gateway of another cluster: {symptom.count} calls to {symptom.host} failed "
            f"({symptom.upstream_failure or symptom.details}).",
            "Give the CAs of all clusters intermediate certificates of one root, as "
            f"`kubectl -n {namespace} get secret cacerts`, and restart istiod and the workloads.",
            evidence=(
                *symptom_rows(facts, [symptom]),
                Evidence.of(certificates, roots.index),
                Evidence.of(endpoints, endpoints.index[endpoints["address"].isin(list(far))]),
            ),
            explains=ids([symptom]),
        )


@check("MNB263", Severity.ERROR, cause=Cause.CONTROL_PLANE_CONFIG)
def services_not_exposed(
    mesh: Mesh, symptoms: Symptoms, istio_config: pd.DataFrame, facts: Facts
) -> Iterator[Finding]:
    """Every gateway between networks passes on what is meant for the Services of its cluster.

    Proxies of other networks name the Service in the handshake, as outbound_.PORT_.SUBSET_.HOST. A
    server with TLS mode AUTO_PASSTHROUGH for that host passes it on; without one the gateway ends
    the connection (NR filter_chain_not_found).
    """
    every = servers(mesh)
    for symptom in [s for s in symptoms if s.side == "gateway" and _between_networks(s)]:
        ports = {split_address(failure.local_address)[1] for failure in symptom.failures}
        hosts = {failure.server_name.rpartition("_.")[2] for failure in symptom.failures}
        here = [one for one in every if any(pod.proxy in symptom.reporters for pod in one.pods)]
        there = [one for one in here if one.port in ports]
        if any(
            one.mode == "AUTO_PASSTHROUGH" and all(one.covers(host) for host in hosts)
            for one in there
        ):
            continue
        pods = mesh.pods_of(symptom.reporters)
        gateways = [one.gateway for one in there or here]
        if gateways:
            subject = subject_of(latest(*gateways))
        elif pods:
            subject = Subject(pods[0].workload_kind, pods[0].namespace, pods[0].workload)
        else:
            continue
        modes = and_list(
            f"{one.path} of {one.gateway} has TLS mode {one.mode or 'none'} for "
            f"{and_list(one.hosts())}"
            for one in there
        )
        yield Finding(
            subject,
            f"{and_list(symptom.reporters)} gets calls for {and_list(sorted(hosts))} from other "
            f"networks on port {and_list(sorted(filter(None, ports)))}, and passes none on: "
            f"{modes or 'no Gateway has a server on that port'}.",
            "Apply a Gateway with a server for TLS on that port, mode AUTO_PASSTHROUGH, hosts "
            f"{json.dumps(['*.local'])}: {edit(subject)}.",
            evidence=(*symptom_rows(facts, [symptom]), config_rows(istio_config, *gateways)),
            explains=ids([symptom]),
        )


def _between_networks(symptom: Symptom) -> bool:
    return "NR" in symptom.flags and any(
        failure.server_name.startswith("outbound_") for failure in symptom.failures
    )
