"""Checks of how Istio was installed: versions, definitions, settings, leaders.

Codes MNB130 to MNB149.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any

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
    counted,
    edit,
    ids,
    restart,
    rows_of,
    subject_of,
    symptom_rows,
    workload_of,
)
from meshnb.symptoms import Symptom, Symptoms
from meshnb.symptoms.base import one_line
from meshnb.tables import Facts
from meshnb.tables.base import dig, mapping
from meshnb.tables.selectors import selects
from meshnb.traces.istiod_objects import istiods_objects
from meshnb.traces.mesh import ConfigObject, Mesh, Pod, plain
from meshnb.traces.rules import route_hosts

#: A data plane may be so many minor versions older than its control plane
#: (https://istio.io/latest/docs/releases/supported-releases/).
_OLDER_AT_MOST = 2
#: istiod reads an object within seconds.
_READ_WITHIN = timedelta(seconds=15)
#: How istiod's leases are called, before the revision that some end with (Istio 1.30).
_LEASES = (
    "istio-gateway-deployment",
    "istio-gateway-status-leader",
    "istio-status-leader",
    "istio-ip-autoallocate",
    "istio-namespace-controller-election",
    "istio-serviceexport-election",
    "istio-analyze-leader",
    "istio-leader",
)
#: A leader that has not renewed its lease for so many of the lease's durations is gone.
_LOST_LEADER = 4
#: The kinds of which istiod shows all that it holds.
_HELD_KINDS = frozenset(
    {
        "AuthorizationPolicy",
        "DestinationRule",
        "Gateway",
        "PeerAuthentication",
        "RequestAuthentication",
        "ServiceEntry",
        "Sidecar",
        "Telemetry",
        "VirtualService",
        "WasmPlugin",
        "WorkloadEntry",
    }
)


def minor_version(version: Any) -> int | None:
    """Return the second part of a version such as 1.30.3; None when it is no such version."""
    found = re.match(r"1\.(\d+)", str(plain(version) or ""))
    return int(found[1]) if found else None


@check("MNB130", Severity.WARNING, cause=Cause.DATA_PLANE_CONFIG)
def proxy_too_old(mesh: Mesh, versions: pd.DataFrame, pods: pd.DataFrame) -> Iterator[Finding]:
    """Every proxy is of a version that its istiod supports.

    Proxies keep the version with which their pod was made. After an upgrade of istiod they are to
    be restarted; those that are more than two minor versions older miss features or refuse
    configuration.
    """
    control = versions[versions["plane"] == "control"]
    of_istiod = dict(zip(control["istiod"], control["istio_version"], strict=True))
    old: dict[Subject, list[tuple[Pod, str, str, bool]]] = {}
    for row in versions[versions["plane"] == "data"].to_dict("records"):
        pod = mesh.pod_of(str(row["proxy"]))
        theirs = of_istiod.get(row["istiod"])
        own, wanted = minor_version(row["istio_version"]), minor_version(theirs)
        if pod is None or own is None or wanted is None or own == wanted or not pod.running:
            continue
        unsupported = wanted - own > _OLDER_AT_MOST or own > wanted
        entry = (pod, str(row["istio_version"]), str(theirs), unsupported)
        old.setdefault(workload_of(pod), []).append(entry)
    for subject, found in old.items():
        _, own_version, theirs_version, _ = found[0]
        unsupported = any(entry[3] for entry in found)
        names = [pod.proxy for pod, *_ in found]
        verdict = "not supported together" if unsupported else "to be replaced"
        yield Finding(
            subject,
            f"{counted(len(found), 'proxy')} of {subject} of version {own_version}, and istiod is "
            f"of {theirs_version}: {verdict}.",
            f"Let the pods be injected again: {restart(subject)}.",
            evidence=(
                Evidence.of(
                    versions,
                    versions.index[
                        versions["proxy"].isin(names) | (versions["plane"] == "control")
                    ],
                ),
                Evidence.of(pods, pods.index[pods["proxy"].isin(names)]),
            ),
            severity=None if unsupported else Severity.INFO,
        )


@check("MNB131", Severity.ERROR, cause=Cause.CONTROL_PLANE_CONFIG)
def definition_too_old(
    mesh: Mesh, symptoms: Symptoms, istiod_log: pd.DataFrame, facts: Facts
) -> Iterator[Finding]:
    """Every definition of a kind is of a version that istiod reads.

    istiod leaves a kind out whose definition (CRD) is older than it needs, is missing, or does not
    serve its version. Objects of it can be stored all the same, and have no effect.
    """
    lines = istiod_log[
        istiod_log["message"]
        .str.contains(
            r"CRD \S+ version .* is below minimum|no matches for kind|could not find the requested "
            r"resource|the server could not find",
            regex=True,
        )
        .fillna(False)
        .astype(bool)
        & istiod_log["level"].isin(["info", "warn", "error"]).astype(bool)
    ]
    found: dict[str, list[int]] = {}
    for index, message in zip(lines.index.tolist(), lines["message"], strict=True):
        named = re.search(r"CRD (\S+) version|\(get ([a-z0-9.-]+)\)|\*?v\w+\.(\w+): ", message)
        name = next((part for part in named.groups() if part), "") if named else ""
        if name:
            found.setdefault(name.strip('"'), []).append(index)
    for name, rows in found.items():
        subject = Subject("CustomResourceDefinition", "", name)
        kind = name.partition(".")[0].rstrip("s")
        objects = [item for item in mesh.objects if item.kind.lower() == kind]
        hosts = {host for item in objects for host in route_hosts(item, mesh)}
        seen = [s for s in symptoms if s.host in hosts and bool({"NR", "NC"} & s.flags)]
        says = one_line(str(lines.loc[rows[-1], "message"])).rstrip(".")
        yield Finding(
            subject,
            f"istiod does not read {name}: {says}.",
            "Apply the definitions of the version that runs: `istioctl install` or the chart base, "
            "for the Gateway API `kubectl apply -f` its release.",
            evidence=(*symptom_rows(facts, seen), Evidence.of(istiod_log, rows[-3:])),
            related=tuple(subject_of(item) for item in objects[:4]),
            explains=ids(seen),
            severity=None if objects else Severity.WARNING,
        )


def _about(item: ConfigObject, mesh: Mesh, symptom: Symptom) -> bool:
    """Whether a symptom is at what an object is about."""
    if item.kind == "DestinationRule":
        hosts = [mesh.fqdn(str(dig(item.spec, "host", default="")), item.namespace)]
    elif item.kind in ("VirtualService", "ServiceEntry"):
        hosts = route_hosts(item, mesh)
    elif item.kind == "Gateway":
        return symptom.side == "gateway" and bool(
            set(symptom.reporters)
            & {pod.proxy for pod in mesh.matching(mapping(item.spec, "selector"), None)}
        )
    else:
        pods = {pod.proxy for pod in mesh.workload_selected(item)}
        return bool(pods & set(symptom.reporters))
    names = {symptom.host, *(failure.authority.partition(":")[0] for failure in symptom.failures)}
    return bool(names & set(hosts))


@check("MNB132", Severity.ERROR, cause=Cause.CONTROL_PLANE_CONFIG)
def object_not_read(
    mesh: Mesh,
    symptoms: Symptoms,
    istio_config: pd.DataFrame,
    istiod_metrics: pd.DataFrame,
    namespaces: pd.DataFrame,
    facts: Facts,
) -> Iterator[Finding]:
    """Every object that is stored is read by an istiod.

    An object with the label istio.io/rev is for the control plane of that revision alone. istiod
    leaves out what it cannot convert, and namespaces that its discovery selectors do not choose.
    """
    told = istiods_objects(facts)
    serving = {(p.namespace, p.pod) for p in mesh.pods if p.mesh == "istiod" and p.ready}
    if not told or not serving <= {(one.namespace, one.pod) for one in told}:
        return  # one that did not answer may hold the rest
    held = {name for one in told for name in one.names}
    at = min(one.at for one in told)
    kinds_held = {kind for kind, _, _ in held}
    revisions = {
        str(pod.labels["istio.io/rev"])
        for pod in mesh.pods
        if pod.mesh == "istiod" and "istio.io/rev" in pod.labels
    }
    for item in mesh.objects:
        if item.kind not in _HELD_KINDS or not item.group.endswith("istio.io"):
            continue
        if (item.kind, item.namespace, item.name) in held or at - item.changed < _READ_WITHIN:
            continue
        left_out = False
        revision = item.labels.get("istio.io/rev")
        rejected = istiod_metrics[
            (istiod_metrics["metric"] == "pilot_total_rejected_configs")
            & istiod_metrics["labels"].str.contains(f'"{item.name}', regex=False).fillna(False)
        ]
        if revision and revisions and revision not in revisions:
            why = f"it is for revision {revision}, and there is {and_list(sorted(revisions))}"
            how = f"Correct or take out its label istio.io/rev: {edit(subject_of(item))}."
        elif left_out := not _discovered(item.namespace, mesh):
            why = f"discoverySelectors of MeshConfig leave out namespace {item.namespace}"
            how = (
                "Compare the labels of its namespace with discoverySelectors: `kubectl get ns -L`."
            )
        elif len(rejected) or item.kind in kinds_held:
            why = "istiod could not use it"
            how = f"See what istiod says of it in its log, then mend it: {edit(subject_of(item))}."
        else:
            why = f"istiod holds no {item.kind} at all"
            how = f"See whether istiod may read the kind: {edit(subject_of(item))}."
        seen = [
            s for s in symptoms if s.kind in ("request", "connection") and _about(item, mesh, s)
        ]
        yield Finding(
            subject_of(item),
            f"{item} is stored, and no istiod reads it: {why}.",
            how,
            evidence=(
                *symptom_rows(facts, seen),
                config_rows(istio_config, item),
                Evidence.of(istiod_metrics, rejected.index),
                Evidence.of(rows_of(namespaces, namespace=item.namespace)),
            ),
            explains=ids(seen),
            severity=None if seen else Severity.INFO if left_out else Severity.WARNING,
            certainty=0.9,
        )


def _discovered(namespace: str, mesh: Mesh) -> bool:
    """Whether istiod looks at a namespace at all; without discoverySelectors it does at each."""
    try:
        selectors = json.loads(mesh.settings.get("discoverySelectors", "null"))
    except ValueError:
        return True
    if not isinstance(selectors, list) or not selectors:
        return True
    labels = dict(mesh.namespaces.get(namespace, {}))
    return any(selects(one, labels) for one in selectors)


@check("MNB137", Severity.ERROR, cause=Cause.CONTROL_PLANE_CONFIG)
def namespace_not_discovered(
    mesh: Mesh, symptoms: Symptoms, namespaces: pd.DataFrame, services: pd.DataFrame, facts: Facts
) -> Iterator[Finding]:
    """Every namespace with pods of the mesh is one that istiod looks at.

    With discoverySelectors in MeshConfig, istiod knows the Services of the namespaces that they
    choose by label, and of no other: proxies have no cluster and no route for the rest.
    """
    members: dict[str, list[Pod]] = {}
    for pod in mesh.pods:
        if pod.running and pod.in_mesh and not _discovered(pod.namespace, mesh):
            members.setdefault(pod.namespace, []).append(pod)
    for namespace, pods in members.items():
        hosts = {port.host for port in mesh.services if port.namespace == namespace}
        seen = [
            s
            for s in symptoms
            if s.host in hosts
            and s.side in ("client", "gateway")
            and (bool({"NC", "NR", "UH"} & s.flags) or s.cluster in _UNKNOWN_CLUSTERS)
        ]
        subject = Subject("Namespace", "", namespace)
        labels = dict(mesh.namespaces.get(namespace, {}))
        have = and_list(f"{key}={value}" for key, value in labels.items() if "/" not in key)
        chosen = mesh.settings.get("discoverySelectors", "")
        yield Finding(
            subject,
            f"istiod does not look at namespace {namespace}, where {counted(len(pods), 'pod')} of "
            f"the mesh run: discoverySelectors are {chosen}, its labels {have or 'are others'}.",
            f"Give it the label that the selectors want: `kubectl label namespace {namespace} …`.",
            evidence=(
                *symptom_rows(facts, seen),
                Evidence.of(rows_of(namespaces, namespace=namespace)),
                Evidence.of(rows_of(services, namespace=namespace)),
            ),
            explains=ids(seen),
            severity=None if seen else Severity.WARNING,
        )


#: The clusters of what a proxy does not know, and of nothing.
_UNKNOWN_CLUSTERS = ("", "-", "PassthroughCluster", "BlackHoleCluster")


@check("MNB133", Severity.WARNING, cause=Cause.CONTROL_PLANE_CONFIG)
def mesh_settings_not_applied(
    mesh: Mesh, mesh_settings: pd.DataFrame, facts: Facts
) -> Iterator[Finding]:
    """Every istiod works with the settings that its ConfigMap holds.

    A ConfigMap that is no YAML is left out as a whole: istiod goes on with what it had, or starts
    with its defaults. One of another revision's name is not read at all.
    """
    answered = set(mesh_settings["istiod"])
    if not answered or any(str(name).startswith("configmap/") for name in answered):
        return
    in_use: dict[str, Mapping[str, str]] = {
        str(istiod): dict(zip(rows["setting"], rows["value"], strict=True))
        for istiod, rows in mesh_settings.groupby("istiod")
    }
    for config_map in facts["mesh_config_maps"].to_dict("records"):
        revision = config_map["revision"]
        readers = [
            pod
            for pod in mesh.pods
            if pod.mesh == "istiod"
            and pod.namespace == config_map["namespace"]
            and pod.labels.get("istio.io/rev", "default") == revision
            and pod.pod in in_use
        ]
        if not readers:
            continue
        subject = Subject("ConfigMap", str(config_map["namespace"]), str(config_map["config_map"]))
        rows = rows_of(facts["mesh_config_maps"], config_map=subject.name)
        problem = plain(config_map["problem"])
        differing = sorted(
            {
                name
                for pod in readers
                for name, value in (config_map["settings"] or {}).items()
                if _differs(name, value, in_use[pod.pod])
            }
        )
        log = facts["istiod_log"]
        words = log[
            log["message"]
            .str.contains("failed to read mesh config|invalid mesh config|mesh config.*error")
            .fillna(False)
            .astype(bool)
        ]
        if problem is None and not differing:
            continue
        changed = plain(config_map["changed"])
        if changed is not None and facts.now - changed < _READ_WITHIN:
            continue
        why = (
            f"cannot be read ({problem})"
            if problem is not None
            else f"says other things than istiod works with: {and_list(differing)}"
        )
        yield Finding(
            subject,
            f"{subject} {why}.",
            f"Correct its text, then restart istiod: {edit(subject)}.",
            evidence=(
                Evidence.of(rows),
                Evidence.of(
                    mesh_settings, mesh_settings.index[mesh_settings["setting"].isin(differing)]
                ),
                Evidence.of(log, words.tail(3).index),
            ),
            severity=Severity.ERROR if problem is not None else None,
        )


def _differs(name: str, value: str, in_use: Mapping[str, str]) -> bool:
    """Whether a plain setting is another one in use; lists and defaults are not compared."""
    if name not in in_use or value[:1] in "[{" or in_use[name][:1] in "[{":
        return False
    return _plainly(value) != _plainly(in_use[name])


def _plainly(value: str) -> str:
    """Return a setting's value so that equal ones compare as equal, such as 10s and 10.000s."""
    text = value.strip().lower()
    parts = re.findall(r"([0-9.]+)(h|ms|m|s)", text)
    if parts and "".join(map("".join, parts)) == text:
        return f"{sum(float(number) * _SECONDS[unit] for number, unit in parts):g} s"
    return re.sub(r"\.0+$", "", text)


_SECONDS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}


@check("MNB134", Severity.WARNING, cause=Cause.CONTROL_PLANE_CONFIG)
def leader_gone(mesh: Mesh, pods: pd.DataFrame, facts: Facts) -> Iterator[Finding]:
    """Every lease of istiod's is held by an istiod that runs.

    Some of its work only one istiod does: statuses, Deployments for gateways, addresses for
    ServiceEntries. While a lease is held by one that is gone, none of it is done.
    """
    serving = [pod for pod in mesh.pods if pod.mesh == "istiod" and pod.running]
    running = {pod.pod for pod in serving}
    revisions = {pod.labels.get("istio.io/rev", "default") for pod in serving}
    if not running:
        return
    leases = facts["leases"]
    for row in leases.to_dict("records"):
        if row["namespace"] not in mesh.control_plane_namespaces:
            continue
        base = next((one for one in _LEASES if str(row["lease"]).startswith(one)), None)
        if base is None:
            continue
        revision = str(row["lease"]).removeprefix(base).removeprefix("-")
        if revision and revision not in revisions:
            continue  # that of a revision that was taken out
        holder, renewed = plain(row["holder"]), plain(row["renewed"])
        if not holder or holder in running or renewed is None:
            continue
        late = (facts.now - renewed).total_seconds()
        duration = float(plain(row["duration_s"]) or 30.0)
        if late < _LOST_LEADER * duration and not duration > 600:
            continue  # the next one may take it over any moment
        subject = Subject("Lease", str(row["namespace"]), str(row["lease"]))
        yield Finding(
            subject,
            f"{subject} is held by {holder}, which does not run; it was renewed {late:.0f} s ago. "
            "What needs a leader is not done.",
            f"Delete it, so that another istiod takes it over: `kubectl -n {subject.namespace} "
            f"delete lease {subject.name}`.",
            evidence=(
                Evidence.of(rows_of(leases, namespace=subject.namespace, lease=subject.name)),
                Evidence.of(rows_of(pods, mesh="istiod")),
            ),
        )


@check("MNB135", Severity.WARNING, cause=Cause.CONTROL_PLANE_CONFIG)
def debug_pages_refused(mesh: Mesh, istiod_log: pd.DataFrame) -> Iterator[Finding]:
    """Every tool that asks istiod for its debug pages may read them.

    Callers outside istiod's namespace see only their own. Tools such as Kiali then show no state of
    the proxies.
    """
    lines = istiod_log[
        istiod_log["message"].str.contains("Unauthorized debug request", regex=False).fillna(False)
    ]
    serving = [pod for pod in mesh.pods if pod.mesh == "istiod" and pod.running]
    if not len(lines) or not serving:
        return
    subject = workload_of(serving[0])
    says = one_line(str(lines["message"].iloc[-1])).rstrip(".")
    yield Finding(
        subject,
        f"istiod refuses {counted(len(lines), 'request')} for debug pages: {says}.",
        f"Add the caller's namespace to DEBUG_ENDPOINT_AUTH_ALLOWED_NAMESPACES: {edit(subject)}.",
        evidence=(Evidence.of(istiod_log, lines.index[-3:]),),
    )


#: The oldest minor version of Kubernetes that a minor version of Istio supports, by its
#: page (https://istio.io/latest/docs/releases/supported-releases/, as of November 2026); later
#: versions of Istio have dropped at least those.
_KUBERNETES = {
    20: 25,
    21: 26,
    22: 27,
    23: 27,
    24: 28,
    25: 29,
    26: 29,
    27: 29,
    28: 30,
    29: 31,
    30: 32,
}


@check("MNB136", Severity.WARNING, cause=Cause.CONTROL_PLANE_CONFIG)
def kubernetes_too_old(
    mesh: Mesh, versions: pd.DataFrame, nodes: pd.DataFrame, facts: Facts
) -> Iterator[Finding]:
    """Every cluster is of a version of Kubernetes that its Istio supports.

    Installing or upgrading Istio on an older one fails, or works until something is missing.
    """
    control = versions[versions["plane"] == "control"]
    newest = max(
        (m for v in control["istio_version"] if (m := minor_version(v)) is not None), default=None
    )
    if newest is None:
        return
    least = max((k for i, k in _KUBERNETES.items() if i <= newest), default=None)
    if newest > max(_KUBERNETES):
        facts.gap(
            f"versions of Kubernetes for Istio 1.{newest}",
            "not asked",
            "what it supports is not known here; see "
            "https://istio.io/latest/docs/releases/supported-releases/",
        )
    for row in nodes.to_dict("records"):
        own = re.match(r"v?1\.(\d+)", str(plain(row["kubelet_version"]) or ""))
        if own is None or least is None or int(own[1]) >= least:
            continue
        subject = Subject("Node", "", str(row["node"]))
        yield Finding(
            subject,
            f"{subject} runs Kubernetes {row['kubelet_version']}; Istio 1.{newest} needs 1.{least} "
            "at least.",
            f"Upgrade Kubernetes first; see `kubectl get node {subject.name}`.",
            evidence=(
                Evidence.of(rows_of(nodes, node=row["node"])),
                Evidence.of(versions, control.index),
            ),
        )
