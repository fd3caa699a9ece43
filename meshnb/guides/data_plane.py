"""The guide for failure class C: pods, applications or clients are not what the mesh assumes."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace

import pandas as pd

from meshnb.checks import Cause
from meshnb.guides.asking import ask_answerer
from meshnb.guides.base import Case, Chosen, Guide, Option, Page, Pick, step
from meshnb.guides.excerpts import excerpt
from meshnb.guides.focus import hosts, of_class, short
from meshnb.guides.meanings import meaning
from meshnb.guides.pictures import State
from meshnb.guides.shared import (
    fails,
    followed,
    gap_note,
    mend,
    plural,
    quiet,
    symptom_command,
    symptom_rows,
)
from meshnb.symptoms import Symptom
from meshnb.traces.mesh import Mesh, Pod

_CLASS = Cause.DATA_PLANE


@step("Who answered", asked=("access_log", "pods"))
def answer(case: Case, chosen: Chosen) -> Page:
    """Who made the answer that the caller got: the application, or a proxy in its place?

    A proxy that answers by itself tells why in flags and details. Only via_upstream says that the
    application did.
    """
    return ask_answerer(case, followed(case, _CLASS, chosen), chosen.get("answer"))


@step("The pods", asked=("pods", "containers", "workloads", "events"))
def pods(case: Case, chosen: Chosen) -> Page:
    """Are the pods behind it running and ready?

    Only a ready pod is sent requests. Kubernetes says why one is not, before any look at the mesh.
    """
    table = case.facts["pods"]
    looked = _behind(case, chosen)
    names = {f"{pod.pod}.{pod.namespace}" for pod in looked}
    mine = (table["pod"] + "." + table["namespace"]).isin(list(names))
    running = ~table["phase"].isin(["Succeeded", "Failed"]) & table["deleted"].isna()
    waiting = running & ~table["ready"].fillna(False)
    order = (~(mine & waiting)).astype(int) * 2 + (~mine).astype(int) - waiting.astype(int) * 0.5
    rows = table.loc[order.sort_values(kind="stable").index]
    rows.attrs["table"] = "pods"
    if not len(table):
        return Page(
            "There is no pod in this evidence.",
            State.UNKNOWN,
            gap_note(case, ("pods",)) or "Nothing runs here, so nothing can be said of it.",
        )
    tables = [excerpt("pods: those behind it, and those that wait, first", rows, most=8)]
    bad = table[waiting]
    containers = case.facts["containers"]
    troubled = containers[
        containers["pod"].isin(list(bad["pod"]))
        | (containers["restarts"].fillna(0) > 0)
        | (containers["state"] == "waiting")
    ]
    troubled.attrs["table"] = "containers"
    if len(troubled):
        tables.append(excerpt("containers that wait or were started again", troubled, most=8))
    events = case.facts["events"]
    warnings = events[(events["type"] == "Warning") & events["name"].isin(list(bad["pod"]))]
    warnings = warnings.sort_values("last_seen", ascending=False)
    warnings.attrs["table"] = "events"
    if len(warnings):
        tables.append(excerpt("events about those pods, the latest first", warnings, most=6))
    if len(bad):
        first = bad.iloc[0]
        return Page(
            f"{plural(len(bad), 'pod is', 'pods are')} not ready: {', '.join(bad['pod'][:3])}.",
            State.BROKEN,
            f"Kubernetes says of {first['pod']}: {first['not_ready_reason']}.",
            tuple(tables),
            command=f"kubectl -n {first['namespace']} describe pod {first['pod']}",
        )
    where = next(iter(sorted({pod.namespace for pod in looked})), "")
    return Page(
        f"All {plural(int(running.sum()), 'pod')} that should run are ready.",
        State.FINE,
        f"{_named(looked)} behind it are ready, as Kubernetes sees them. "
        f"{gap_note(case, ('pods',))}".strip(),
        tuple(tables),
        command=f"kubectl -n {where} get pods -o wide" if where else "kubectl get pods -A -o wide",
    )


def _behind(case: Case, chosen: Chosen) -> list[Pod]:
    """Return the pods behind what fails: of the workload, else of the hosts, else all."""
    symptom = followed(case, _CLASS, chosen)
    cause = of_class(case, _CLASS).cause
    found = []
    if symptom is not None and symptom.workload[1]:
        found = [
            pod
            for pod in case.mesh.pods
            if (pod.namespace, pod.workload) == symptom.workload and pod.running
        ]
    if not found:
        for host in _hosts(case.mesh, symptom):
            found += [pod for port in case.mesh.ports(host)[:1] for pod in case.mesh.selected(port)]
    if not found and cause is not None:
        found = [
            pod
            for pod in case.mesh.pods
            if pod.namespace == cause.subject.namespace
            and cause.subject.name in (pod.workload, pod.pod)
        ]
    return found or [pod for pod in case.mesh.pods if pod.in_mesh and pod.running]


def _hosts(mesh: Mesh, symptom: Symptom | None) -> list[str]:
    """Return the hosts of a symptom; for a workload, those of the Services that select it."""
    if symptom is None:
        return []
    found = list(hosts([symptom]))
    if not found and symptom.workload[1]:
        found = [
            service.host
            for service in mesh.services
            if any(
                (pod.namespace, pod.workload) == symptom.workload for pod in mesh.selected(service)
            )
        ]
    return list(dict.fromkeys(found))


def _named(looked: Iterable[Pod]) -> str:
    names = [pod.pod for pod in looked]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} others" if len(names) > 3 else "")


@step("Endpoints", asked=("services", "service_endpoints", "endpoints"))
def endpoints(case: Case, chosen: Chosen) -> Page:
    """Does the Service have endpoints, and do the proxies know the same ones?

    Kubernetes lists a pod once it is selected and ready; the proxies hold a copy of that list.
    """
    symptom = followed(case, _CLASS, chosen)
    every = list(dict.fromkeys(service.host for service in case.mesh.services if service.selector))
    wanted = [host for host in _hosts(case.mesh, symptom) if host in every]
    cause = of_class(case, _CLASS).cause
    guess = (
        wanted[0]
        if wanted
        else next(
            (
                service.host
                for service in case.mesh.services
                if cause is not None and service.service == cause.subject.name
            ),
            every[0] if every else "",
        )
    )
    pick = Pick("Which Service?", tuple(Option(host, short(host)) for host in every), guess)
    host = pick.taken(chosen.get("endpoints"))
    if not host:
        return Page(
            "There is no Service with pods behind it.",
            State.UNKNOWN,
            gap_note(case, ("services",)) or "No Service of this mesh selects pods.",
        )
    service = case.mesh.ports(host)[0]
    selected = case.mesh.selected(service)
    listed = case.facts["service_endpoints"]
    listed = listed[
        (listed["namespace"] == service.namespace) & (listed["service"] == service.service)
    ]
    listed.attrs["table"] = "service_endpoints"
    ready = listed[listed["ready"].fillna(False)]
    held = case.facts["endpoints"]
    held = held[held["cluster"].fillna("").str.match(rf"outbound\|.*\|{re.escape(host)}$")]
    held.attrs["table"] = "endpoints"
    healthy = held[(held["status"] == "HEALTHY") & (held["outlier_check"] != "FAILED")]
    tables = []
    if len(listed):
        tables.append(excerpt("service_endpoints: what Kubernetes lists", listed))
    if len(held):
        worst_first = held.sort_values(["requests_failed", "connections_failed"], ascending=False)
        worst_first.attrs["table"] = "endpoints"
        tables.append(excerpt("endpoints: what the proxies hold", worst_first, most=8))
    name = short(host)
    labels = ", ".join(f"{key}={value}" for key, value in service.selector.items())
    counts = (
        f"Its selector {labels} matches {plural(len(selected), 'pod')}; Kubernetes lists "
        f"{plural(ready['address'].nunique(), 'ready address', 'ready addresses')}; "
        f"{held['proxy'].nunique()} proxies hold {held['endpoint'].nunique()}, "
        f"{healthy['endpoint'].nunique()} of them healthy."
    )
    command = _endpoints_command(case, symptom, host)
    if not selected:
        verdict, state = f"{name} selects no pod.", State.BROKEN
    elif not len(ready):
        verdict, state = f"{name} has no ready endpoint.", State.BROKEN
    elif not len(healthy) and held["proxy"].nunique():
        verdict, state = f"No proxy holds a healthy endpoint of {name}.", State.BROKEN
    else:
        verdict, state = f"{name} has endpoints, and the proxies know them.", State.FINE
    return Page(verdict, state, counts, tuple(tables), command=command, pick=pick)


def _endpoints_command(case: Case, symptom: Symptom | None, host: str) -> str:
    proxies = list(case.facts["proxies"]["proxy"])
    reporters = [
        name for name in (symptom.reporters if symptom is not None else ()) if name in proxies
    ]
    proxy = next(iter(reporters or proxies), "POD.NAMESPACE")
    return f"istioctl proxy-config endpoint {proxy} --cluster 'outbound|PORT||{host}'".replace(
        "PORT", str(case.mesh.ports(host)[0].port)
    )


@step("The last metres", asked=("access_log", "containers", "services", "pods", "injection"))
def connection(case: Case, chosen: Chosen) -> Page:
    """What happened between the last proxy and the application, and who was the caller?

    A refused port, a connection closed too early, a caller without a proxy: none of it stands in
    any object.
    """
    symptom = followed(case, _CLASS, chosen)
    looked = _behind(case, chosen)
    containers = case.facts["containers"]
    mine = containers[
        containers["pod"].isin([pod.pod for pod in looked]) & ~containers["init"].fillna(False)
    ]
    mine.attrs["table"] = "containers"
    tables = [excerpt("containers: the ports they declare", mine, most=8)] if len(mine) else []
    callers = _callers(case, symptom)
    if len(callers):
        tables.append(excerpt("injection: have the callers a proxy?", callers))
    aims = sorted(
        {
            str(port.target_port or port.port)
            for host in _hosts(case.mesh, symptom)
            for port in case.mesh.ports(host)
        }
    )
    if symptom is not None and symptom.kind == "connection" and not symptom.failures:
        return Page(
            f"On the last metres: {symptom.message}.",
            State.BROKEN,
            f"The Service sends to port {', '.join(aims)}." if aims else "",
            (symptom_rows(case, symptom), *tables),
            command=symptom_command(symptom),
        )
    if symptom is None or not symptom.failures:
        page = quiet(
            case,
            "access_log",
            "No request fails on its last metres.",
            "The access logs hold no failure here.",
        )
        return replace(page, tables=tuple(tables))
    words, hop = meaning(symptom.failures[-1])
    reason = symptom.upstream_failure.replace("_", " ") or symptom.details.replace("_", " ")
    outside = [
        name
        for name, injected in zip(callers["pod"], callers["injected"], strict=True)
        if not injected
    ]
    aim = f" The Service sends to port {', '.join(aims)}." if aims else ""
    stranger = f" {', '.join(outside)} has no proxy of its own." if outside else ""
    here = hop in ("the application", "the connection", "the endpoint", "the listener") or bool(
        outside
    )
    return Page(
        f"On the last metres: {words}." if here else "It ended before the last metres.",
        State.BROKEN if here else State.FINE,
        f"The log gives as reason: {reason}.{aim}{stranger}",
        tuple(tables),
        command=symptom_command(symptom),
    )


def _callers(case: Case, symptom: Symptom | None) -> pd.DataFrame:
    """Return the rows of the table injection for the pods that called."""
    table = case.facts["injection"]
    names: set[str] = set()
    for failure in symptom.failures if symptom is not None else ():
        pod = case.mesh.pod_at(failure.peer_address)
        if pod is not None:
            names.add(f"{pod.pod}.{pod.namespace}")
    rows = table[(table["pod"] + "." + table["namespace"]).isin(list(names))]
    rows.attrs["table"] = "injection"
    return rows


DATA_PLANE = Guide(
    name="data_plane",
    title="Data plane",
    about="Configuration is right, but a pod, an application or a client is not as assumed.",
    steps=(fails(_CLASS), answer, pods, endpoints, connection, mend(_CLASS)),
)
