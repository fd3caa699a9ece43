"""Checks of EnvoyFilters, Telemetries and the providers that they name. Codes MNB620 to MNB639."""

from __future__ import annotations

import json
from collections.abc import Iterator
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
    rows_of,
    subject_of,
    symptom_rows,
)
from meshnb.symptoms import Symptom, Symptoms
from meshnb.tables import Facts
from meshnb.tables.base import dig, items, mapping
from meshnb.traces.mesh import ConfigObject, Mesh, Pod, oldest, plain

#: Operations that add something of a name of its own.
_ADDING = ("ADD", "INSERT_BEFORE", "INSERT_AFTER", "INSERT_FIRST")
#: What of a proxy a patch adds to, by ``applyTo``: the table and the column with the names.
_WHERE = {
    "HTTP_FILTER": ("listeners", "http_filters"),
    "NETWORK_FILTER": ("listeners", "filters"),
    "LISTENER": ("listeners", "listener"),
    "CLUSTER": ("clusters", "cluster"),
    "EXTENSION_CONFIG": ("extension_configs", "ecds_name"),
}
#: Providers that are there without being declared (Istio: reference/config/istio.mesh.v1alpha1).
_BUILT_IN = frozenset({"prometheus", "stackdriver", "envoy", "zipkin", "lightstep", "datadog"})


def _concerned(item: ConfigObject, patch: Any, mesh: Mesh) -> list[Pod]:
    """Return the pods whose proxies a patch is for: selected, and of its context."""
    context = str(dig(patch, "match", "context", default="ANY"))
    kinds = {"GATEWAY": ("gateway",), "ANY": ("sidecar", "gateway")}.get(context, ("sidecar",))
    return [pod for pod in mesh.workload_selected(item) if pod.mesh in kinds]


def _names(facts: Facts, table: str, column: str, proxies: set[str]) -> dict[str, set[str]]:
    """Return the names that each of some proxies holds in a column; none of a proxy not asked."""
    frame = facts[table]
    if "state" in frame.columns and table == "listeners":
        frame = frame[frame["state"] != "refused"]
    found: dict[str, set[str]] = {}
    for proxy, value in zip(frame["proxy"], frame[column], strict=True):
        if proxy in proxies:
            held = found.setdefault(str(proxy), set())
            held.update(map(str, value) if isinstance(value, tuple) else {str(value)})
    return found


@check("MNB620", Severity.WARNING, cause=Cause.CONTROL_PLANE_CONFIG)
def envoy_filter_without_effect(
    mesh: Mesh,
    listeners: pd.DataFrame,
    proxy_status: pd.DataFrame,
    workloads: pd.DataFrame,
    istio_config: pd.DataFrame,
    facts: Facts,
) -> Iterator[Finding]:
    """Every EnvoyFilter adds what it says to the proxies that it selects.

    A patch whose match names a listener, filter or context that is not there is left out without a
    word. That is common after an upgrade, when a filter has got another name.
    """
    refusing = set(rows_of(proxy_status, sync="ERROR")["proxy"])
    answered = set(listeners["proxy"])
    for item in mesh.of("EnvoyFilter"):
        for number, patch in enumerate(items(item.spec, "configPatches")):
            name = dig(patch, "patch", "value", "name")
            place = _WHERE.get(str(dig(patch, "applyTo")))
            operation = str(dig(patch, "patch", "operation"))
            if place is None or operation not in _ADDING or not isinstance(name, str):
                continue
            pods = _concerned(item, patch, mesh)
            proxies = {pod.proxy for pod in pods if pod.ready} & answered - refusing
            path = f"spec.configPatches[{number}]"
            if pods and not proxies:
                continue
            if pods:
                table, column = place
                held = _names(facts, table, column, proxies)
                if any(name in names for names in held.values()):
                    continue
                why = (
                    f"none of {counted(len(proxies), 'proxy')} that it selects holds {name}: what "
                    f"{path}.match names is not there"
                )
                rows = Evidence.of(listeners, listeners.index[listeners["proxy"].isin(proxies)][:5])
            else:
                why = f"{path} ({dig(patch, 'match', 'context', default='ANY')}) selects no proxy"
                rows = config_rows(istio_config, item)
            yield Finding(
                subject_of(item),
                f"{item} has no effect: {why}.",
                f"Correct its selector or match with {edit(subject_of(item))}.",
                evidence=(config_rows(istio_config, item), rows),
                path=path,
                severity=Severity.INFO if _for_others(item, patch, workloads) else None,
            )


def _for_others(item: ConfigObject, patch: Any, workloads: pd.DataFrame) -> bool:
    """Whether a patch is for proxies that are there at other times: of a version, or asleep."""
    labels = mapping(item.spec, "workloadSelector", "labels")
    asleep = workloads[workloads["replicas_wanted"].eq(0).fillna(False)]["labels"]
    return bool(dig(patch, "match", "proxy", "proxyVersion")) or (
        bool(labels) and any(labels.items() <= (own or {}).items() for own in asleep)
    )


@check("MNB621", Severity.ERROR, cause=Cause.CONTROL_PLANE_CONFIG)
def envoy_filter_breaks_listener(
    mesh: Mesh,
    symptoms: Symptoms,
    listeners: pd.DataFrame,
    istio_config: pd.DataFrame,
    facts: Facts,
) -> Iterator[Finding]:
    """Every filter chain of a proxy leads somewhere.

    Envoy takes a chain without filters, and closes each connection to it at once, without a line in
    the log. An EnvoyFilter that removes the connection manager leaves such a chain behind.
    """
    broken = listeners[
        (listeners["state"] == "active") & (listeners["filters"].map(lambda all_: not all_))
    ]
    by_author: dict[ConfigObject, list[int]] = {}
    for proxy, rows in broken.groupby("proxy"):
        pod = mesh.pod_of(str(proxy))
        author = next((one for one in _removing(mesh) if pod in mesh.workload_selected(one)), None)
        if author is not None:
            by_author.setdefault(author, []).extend(rows.index)
    for item, members in by_author.items():
        rows = listeners.loc[members]
        pods = mesh.pods_of(rows["proxy"])
        hosts = {
            port.host for port in mesh.services if any(pod in pods for pod in mesh.selected(port))
        }
        seen = [s for s in symptoms if s.host in hosts and _reset(s)]
        ports = sorted({int(port) for port in rows["destination_port"].dropna()})
        at = f" for port {and_list(map(str, ports))}" if ports else ""
        yield Finding(
            subject_of(item),
            f"{item} leaves {and_list(rows['listener'])} of {and_list(rows['proxy'])} with filter "
            f"chains without filters{at}: connections to them are closed at once.",
            f"Mend or delete it: {edit(subject_of(item))}.",
            evidence=(
                *symptom_rows(facts, seen),
                Evidence.of(listeners, members),
                config_rows(istio_config, item),
            ),
            explains=ids(seen),
        )


def _removing(mesh: Mesh) -> list[ConfigObject]:
    """Return the EnvoyFilters that take away or replace filters of connections."""
    return [
        item
        for item in mesh.of("EnvoyFilter")
        if any(
            dig(patch, "patch", "operation") in ("REMOVE", "REPLACE", "MERGE")
            and dig(patch, "applyTo") in ("NETWORK_FILTER", "FILTER_CHAIN", "LISTENER")
            for patch in items(item.spec, "configPatches")
        )
    ]


def _reset(symptom: Symptom) -> bool:
    return symptom.side != "server" and bool({"UC", "UF", "UR"} & symptom.flags)


def _setting(mesh: Mesh, name: str) -> Any:
    try:
        return json.loads(mesh.settings.get(name, "null"))
    except ValueError:
        return None


def _service_of(provider: Any) -> tuple[str, int | None]:
    """Return host and port of the Service that a provider sends to; empty when it has none."""
    for value in mapping(provider).values():
        service = dig(value, "service")
        if isinstance(service, str):
            port = dig(value, "port")
            return service.rpartition("/")[2], port if isinstance(port, int) else None
    return "", None


def _used_providers(mesh: Mesh) -> dict[str, list[ConfigObject]]:
    """Return the providers that Telemetries or the mesh's defaults name, with the Telemetries."""
    used: dict[str, list[ConfigObject]] = {}
    for item in mesh.of("Telemetry"):
        for kind in ("tracing", "metrics", "accessLogging"):
            for rule in items(item.spec, kind):
                for provider in items(rule, "providers"):
                    used.setdefault(str(dig(provider, "name", default="")), []).append(item)
    for kind in ("tracing", "metrics", "accessLogging"):
        for name in _setting(mesh, f"defaultProviders.{kind}") or ():
            used.setdefault(str(name), [])
    return used


@check("MNB622", Severity.WARNING, cause=Cause.CONTROL_PLANE_CONFIG)
def provider_unknown(
    mesh: Mesh, mesh_settings: pd.DataFrame, istio_config: pd.DataFrame, facts: Facts
) -> Iterator[Finding]:
    """Every provider that telemetry goes to is declared, and is a Service of the mesh.

    istiod leaves out what names a provider that it does not know, or whose Service it does not
    find. Traffic is not disturbed; traces or logs never arrive.
    """
    providers = _setting(mesh, "extensionProviders")
    if not isinstance(providers, list) or not mesh.services:
        return
    declared = {str(dig(one, "name")): one for one in providers}
    rows = rows_of(mesh_settings, setting="extensionProviders")
    for name, users in _used_providers(mesh).items():
        if name not in declared:
            if name in _BUILT_IN:
                continue
            for item in dict.fromkeys(users):
                yield Finding(
                    subject_of(item),
                    f"{item} names provider {name}, which MeshConfig does not declare (it has "
                    f"{and_list(declared)}): nothing is sent to it.",
                    f"Declare it under extensionProviders, or correct the name: "
                    f"{edit(subject_of(item))}.",
                    evidence=(config_rows(istio_config, item), Evidence.of(rows)),
                )
            continue
        host, port = _service_of(declared[name])
        known = mesh.ports(host) or mesh.known_host(host)
        ports = {one.port for one in mesh.ports(host)}
        if not host or (known and (port is None or not ports or port in ports)):
            continue
        subject = Subject("ConfigMap", mesh.root_namespace or "istio-system", "istio")
        missing = f"port {port} of {host}" if known else host
        yield Finding(
            subject,
            f"Provider {name} of MeshConfig sends to {missing}, which does not exist: nothing "
            "arrives there.",
            f"Correct its service and port under extensionProviders: {edit(subject)}.",
            evidence=(
                Evidence.of(rows),
                *((config_rows(istio_config, *dict.fromkeys(users)),) if users else ()),
            ),
            related=tuple(subject_of(item) for item in dict.fromkeys(users)),
        )


@check("MNB623", Severity.WARNING, cause=Cause.CONTROL_PLANE_CONFIG)
def telemetry_overruled(mesh: Mesh, istio_config: pd.DataFrame, facts: Facts) -> Iterator[Finding]:
    """One Telemetry at most speaks for a namespace, and for each workload.

    Of several without a selector, or with one that chooses the same pods, istiod takes the oldest
    and leaves the others out.
    """
    whole: dict[str, list[ConfigObject]] = {}
    chosen: dict[Pod, list[ConfigObject]] = {}
    for item in oldest(mesh.of("Telemetry")):
        labels = mapping(item.spec, "selector", "matchLabels")
        if items(item.spec, "targetRefs") or mapping(item.spec, "targetRef"):
            continue
        if not labels:
            whole.setdefault(item.namespace, []).append(item)
            continue
        for pod in mesh.workload_selected(item):
            if pod.namespace == item.namespace:
                chosen.setdefault(pod, []).append(item)
    said: set[ConfigObject] = set()
    for group in (*whole.values(), *chosen.values()):
        for item in group[1:]:
            if item in said:
                continue
            said.add(item)
            scope = "the same pods" if mapping(item.spec, "selector") else "the whole namespace"
            yield Finding(
                subject_of(item),
                f"{item} has no effect: {group[0]} is older and speaks for {scope}, too.",
                f"Move what it says into the older one, and delete it: {edit(subject_of(item))}.",
                evidence=(config_rows(istio_config, item, group[0]),),
                related=(subject_of(group[0]),),
            )


@check("MNB624", Severity.INFO, cause=Cause.CONTROL_PLANE_CONFIG)
def access_log_switched_off(
    mesh: Mesh, mesh_settings: pd.DataFrame, access_log: pd.DataFrame, proxies: pd.DataFrame
) -> Iterator[Finding]:
    """Every mesh writes its requests to an access log somewhere.

    Without accessLogFile, a default provider or a Telemetry with accessLogging no proxy writes one,
    and failures of requests cannot be seen here.
    """
    if not len(mesh_settings) or len(access_log) or not len(proxies):
        return
    asked = any(items(item.spec, "accessLogging") for item in mesh.of("Telemetry"))
    if plain(mesh.settings.get("accessLogFile")) or asked:
        return
    if _setting(mesh, "defaultProviders.accessLogging"):
        return
    subject = Subject("ConfigMap", mesh.root_namespace or "istio-system", "istio")
    yield Finding(
        subject,
        "No proxy writes an access log: MeshConfig has no accessLogFile and no default provider, "
        "and no Telemetry asks for one.",
        f"Set accessLogFile to /dev/stdout: {edit(subject)}.",
        evidence=(Evidence.of(mesh_settings),),
    )
