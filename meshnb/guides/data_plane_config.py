"""The guide for failure class B: the objects are right, but a proxy holds something else."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pandas as pd

from meshnb.checks import Cause
from meshnb.guides import pictures
from meshnb.guides.asking import first_ask
from meshnb.guides.base import Case, Chosen, Guide, Page, step
from meshnb.guides.excerpts import excerpt
from meshnb.guides.pictures import State
from meshnb.guides.shared import gap_note, mend, plural
from meshnb.symptoms.requests import split_address
from meshnb.symptoms.sync import STALE_AFTER_S

_CLASS = Cause.DATA_PLANE_CONFIG
#: Ports of istiod by what they are for, when no istiod is there to be asked
#: (Istio: ops/deployment/application-requirements, ports used by Istio).
_PORTS = {
    8080: "readiness and debug pages",
    9876: "ControlZ, on the pod's loopback only",
    15010: "xDS for proxies that use no TLS",
    15012: "xDS and certificate signing for proxies",
    15014: "metrics, version and debug pages",
    15017: "webhooks: injection and validation",
}
#: Where proxies look for their configuration unless they are told otherwise.
_DISCOVERY = 15012


@step("The port", asked=("istiod_ports", "proxies"))
def port(case: Case, chosen: Chosen) -> Page:
    """Which istiod port do proxies use for configuration?

    Everything that a proxy knows comes through one port. Who knows which one can tell a control
    plane that is down from one that merely cannot be looked into.
    """
    table = case.facts["istiod_ports"]
    serves = dict(zip(table["port"], table["serves"], strict=True)) or _PORTS
    addresses = Counter(case.facts["proxies"]["discovery_address"].dropna())
    ports = Counter[int]()
    for address, count in addresses.items():
        found = split_address(str(address))[1]
        if found is not None:
            ports[found] += count
    right = ports.most_common(1)[0][0] if ports else _DISCOVERY
    looked = pd.DataFrame(
        [(str(address), count) for address, count in addresses.most_common()],
        columns=["discovery_address", "proxies"],
    )
    tables = []
    if len(looked):
        tables.append(excerpt("proxies: where they look for their configuration", looked))
    if len(table):
        tables.append(excerpt("istiod_ports: what each is for", table, folded=True))
    every = plural(len(case.facts["proxies"]), "proxy", "proxies")
    using = (
        f"The bootstrap of {ports[right]} of {every} names it."
        if ports
        else "It is the one unless a proxy is told otherwise; no proxy said so here."
    )
    picked = chosen.get("port", "")
    wrong = picked.isdigit() and int(picked) != right and serves.get(int(picked))
    other = f"{picked} is for {wrong}. " if wrong else ""
    answer = Page(
        f"Proxies use port {right} for configuration.",
        State.FINE,
        f"{other}{right} is for {serves.get(right, 'xDS')}. {using}",
        tuple(tables),
        pictures.istiod_ports(case.facts),
        f"kubectl -n {case.mesh.root_namespace or 'istio-system'} get service istiod -o wide",
    )
    bare = table[["istiod", "port", "protocol", "answers"]]
    open_ones = (excerpt("istiod_ports: what is open", bare, columns=bare.columns),)
    return first_ask(
        picked,
        "Your answer:",
        {str(number): str(number) for number in sorted({*map(int, serves), right})},
        str(right),
        answer,
        "Think first: each of these ports answers, and one of them is the one.",
        open_ones if len(bare) else (),
    )


@step("The control plane", asked=("pods", "workloads", "istiod_ports", "istiod_log"))
def control_plane(case: Case, chosen: Chosen) -> Page:
    """Is every istiod there, and does it answer on the ports that proxies and Kubernetes need?

    When it is silent, nothing that proxies hold can be new, and every later step would look at old
    news.
    """
    pods = case.facts["pods"]
    istiods = pods[pods["mesh"] == "istiod"]
    istiods.attrs["table"] = "pods"
    table = case.facts["istiod_ports"]
    tables = []
    if len(istiods):
        tables.append(excerpt("pods: each istiod", istiods))
    silent = table[table["answers"].eq(False).fillna(False)]
    if len(table):
        ordered = table.sort_values(["answers", "port"], na_position="first")
        ordered.attrs["table"] = "istiod_ports"
        tables.append(excerpt("istiod_ports: the silent ones first", ordered, folded=True))
    log = case.facts["istiod_log"]
    bad = log[log["level"].isin(["error", "fatal", "critical"])].iloc[::-1]
    bad.attrs["table"] = "istiod_log"
    if len(bad):
        tables.append(excerpt("istiod_log: its latest errors", bad, most=5, folded=True))
    command = f"kubectl -n {case.mesh.root_namespace or 'istio-system'} get pods -l app=istiod"
    picture = pictures.istiod_ports(case.facts)
    if not len(pods):
        return Page(
            "There is no pod in this evidence, and so no istiod.",
            State.UNKNOWN,
            gap_note(case, ("pods",)) or "Nothing runs here, so nothing can be said of it.",
            tuple(tables),
            picture,
            command,
        )
    ready = istiods[istiods["ready"].fillna(False)]
    if not len(istiods):
        wanted = _control_planes(case)
        return Page(
            "No istiod is running.",
            State.BROKEN,
            f"{wanted} Proxies go on with what they have; changes and new pods wait. "
            f"{gap_note(case, ('pods',))}".strip(),
            tuple(tables),
            picture,
            command,
        )
    names = ", ".join(istiods["pod"])
    if len(ready) < len(istiods):
        return Page(
            f"{len(ready)} of {plural(len(istiods), 'istiod')} are ready.",
            State.BROKEN,
            f"Of {names}, only {', '.join(ready['pod']) or 'none'} can serve proxies.",
            tuple(tables),
            picture,
            command,
        )
    note = gap_note(case, ("istiod_ports",))
    if len(silent):
        return Page(
            f"{plural(len(silent), 'port')} of istiod did not answer.",
            State.BROKEN,
            ", ".join(f"{row.istiod}:{row.port}" for row in silent.itertuples()) + " is silent.",
            tuple(tables),
            picture,
            command,
        )
    if not len(table) or table["answers"].isna().any():
        return Page(
            f"{plural(len(istiods), 'istiod')} ready, but not every port was asked.",
            State.UNKNOWN,
            note or f"{names} is ready, as Kubernetes says.",
            tuple(tables),
            picture,
            command,
        )
    return Page(
        f"{plural(len(istiods), 'istiod')} ready, and every port answers.",
        State.FINE,
        f"{names} answers on {plural(table['port'].nunique(), 'port')}, {_DISCOVERY} among them. "
        f"{note}".strip(),
        tuple(tables),
        picture,
        command,
    )


def _control_planes(case: Case) -> str:
    """Say what of a control plane is left when no istiod runs."""
    workloads = case.facts["workloads"]
    found = [
        f"{row['kind']} {row['namespace']}/{row['workload']} asks for {row['replicas_wanted']}"
        for row in workloads.to_dict("records")
        if (row["labels"] or {}).get("app") == "istiod"
    ]
    return f"{' and '.join(found)}." if found else "Nothing in this cluster would start one."


@step("In step", asked=("proxy_status", "proxies"))
def in_step(case: Case, chosen: Chosen) -> Page:
    """Is every proxy connected, and has it accepted what was sent to it?

    A proxy keeps its last good configuration in silence. STALE or ERROR with its age, or a proxy
    that no istiod knows, is often the only sign.
    """
    status = case.facts["proxy_status"]
    proxies = case.facts["proxies"]
    picture = pictures.sync(case.facts)
    if not len(status):
        return Page(
            "No istiod says which proxy is in step."
            if len(proxies)
            else "There is no proxy in this mesh.",
            State.UNKNOWN,
            gap_note(case, ("proxy_status",)) or "No istiod was there to be asked.",
            (excerpt("proxies", proxies),) if len(proxies) else (),
            picture,
            "istioctl proxy-status",
        )
    away = sorted(set(proxies["proxy"]) - set(status["proxy"]))
    refused = status[status["sync"] == "ERROR"]
    late = status[(status["sync"] == "STALE") & (status["age_s"] > STALE_AFTER_S)]
    known = status["proxy"].nunique()
    ordered = pd.concat([refused, late, status.drop([*refused.index, *late.index])])
    ordered.attrs["table"] = "proxy_status"
    tables = [excerpt("proxy_status: out of step first", ordered, most=8, folded=True)]
    if away:
        alone = proxies[proxies["proxy"].isin(away)]
        alone.attrs["table"] = "proxies"
        tables.insert(0, excerpt("proxies that no istiod knows", alone))
    found = []
    if away:
        found.append(
            f"{', '.join(away[:3])} {'is' if len(away) == 1 else 'are'} connected to no istiod"
        )
    if len(refused):
        kinds = ", ".join(sorted(set(refused["xds"])))
        found.append(
            f"{plural(refused['proxy'].nunique(), 'proxy refuses', 'proxies refuse')} {kinds}"
        )
    if len(late):
        found.append(
            f"{plural(late['proxy'].nunique(), 'proxy is', 'proxies are')} late by up to "
            f"{pictures.age(late['age_s'].max())}"
        )
    if found:
        verdict = "; ".join(found) + "."
        others = known - len(set(refused["proxy"]) | set(late["proxy"]))
        reading = f"{plural(others, 'other proxy is', 'other proxies are')} in step."
        return Page(verdict, State.BROKEN, reading, tuple(tables), picture, "istioctl proxy-status")
    oldest = pictures.age(status.loc[status["sync"] == "SYNCED", "age_s"].max())
    return Page(
        f"All {plural(known, 'proxy', 'proxies')} are in step.",
        State.FINE,
        f"What istiod sent last, at most {oldest} ago, every proxy has accepted. "
        f"{gap_note(case, ('proxy_status',))}".strip(),
        tuple(tables),
        picture,
        "istioctl proxy-status",
    )


@step("Refused", asked=("proxy_status", "listeners", "clusters", "proxy_log"))
def refused(case: Case, chosen: Chosen) -> Page:
    """Which configuration did a proxy refuse, and in which words?

    Envoy refuses an update as a whole and keeps the old one. Its reason names the part that it
    cannot take.
    """
    status = case.facts["proxy_status"]
    refusals = {"proxy_status": status[status["error"].notna()]}
    names = []
    for table in ("listeners", "clusters"):
        frame = case.facts[table]
        rows = frame[frame["error"].notna()].drop_duplicates(["proxy", "error"])
        refusals[table] = rows
        names += [f"{table.rstrip('s')} {name}" for name in rows[table.rstrip("s")].unique()]
    refusals = {table: rows for table, rows in refusals.items() if len(rows)}
    if not refusals:
        missing = gap_note(case, ("proxy_status", "listeners"))
        return Page(
            "No proxy is seen to refuse anything.",
            State.UNKNOWN if missing else State.FINE,
            f"No error stands in proxy-status or in any config dump. {missing}".strip(),
            command="istioctl proxy-status -v 1",
        )
    tables = []
    for table, rows in refusals.items():
        rows.attrs["table"] = table
        who = "what istiod was told" if table == "proxy_status" else "what the proxies say"
        tables.append(excerpt(f"{table}: {who}", rows, most=6))
    proxies = {proxy for rows in refusals.values() for proxy in rows["proxy"]}
    error = next(iter(refusals.values()))["error"].iloc[0]
    what = ", ".join(dict.fromkeys(names)) or ", ".join(
        sorted(set(refusals["proxy_status"]["xds"]))
    )
    return Page(
        f"{plural(len(proxies), 'proxy refuses', 'proxies refuse')} {what}.",
        State.BROKEN,
        f"The reason that Envoy gives: {error}",
        tuple(tables),
        command="istioctl proxy-status -v 1",
    )


@step("How they started", asked=("proxies", "pods", "proxy_log"))
def beginning(case: Case, chosen: Chosen) -> Page:
    """With which istiod, version and identity was each proxy started?

    The bootstrap is written once, when the pod starts. A wrong address or an old version stays
    until a restart.
    """
    proxies = case.facts["proxies"]
    if not len(proxies):
        return Page(
            "There is no proxy in this mesh.",
            State.UNKNOWN,
            gap_note(case, ("proxies",)) or "No pod has a sidecar, and there is no gateway.",
        )
    columns = ("discovery_address", "istio_version", "trust_domain")
    usual = {name: proxies[name].mode(dropna=True) for name in columns}
    odd: dict[str, list[str]] = {}
    for row in proxies.to_dict("records"):
        reasons = [
            f"{name} {row[name]}"
            for name in columns
            if len(usual[name]) and not pd.isna(row[name]) and row[name] != usual[name].iloc[0]
        ]
        if row["ready"] is not None and not pd.isna(row["ready"]) and not row["ready"]:
            reasons.append("not ready")
        if not pd.isna(row["answered"]) and not row["answered"]:
            reasons.append("did not answer")
        if reasons:
            odd[str(row["proxy"])] = reasons
    ordered = proxies.iloc[
        sorted(range(len(proxies)), key=lambda place: proxies["proxy"].iloc[place] not in odd)
    ]
    ordered.attrs["table"] = "proxies"
    log = case.facts["proxy_log"]
    complaints = log[log["proxy"].isin(list(odd))].iloc[::-1]
    complaints.attrs["table"] = "proxy_log"
    tables = [excerpt("proxies: those that differ first", ordered)]
    if len(complaints):
        tables.append(
            excerpt("proxy_log: what those say themselves, the latest first", complaints, most=6)
        )
    if odd:
        told = "; ".join(
            f"{proxy}: {', '.join(reasons)}" for proxy, reasons in list(odd.items())[:3]
        )
        return Page(
            f"{plural(len(odd), 'proxy differs', 'proxies differ')} from the rest.",
            State.BROKEN,
            told + ".",
            tuple(tables),
            command=f"istioctl proxy-config bootstrap {next(iter(odd))}",
        )
    address = usual["discovery_address"]
    told = address.iloc[0] if len(address) else "an address that nobody told"
    versions = ", ".join(sorted(set(proxies["istio_version"].dropna()))) or "of unknown version"
    return Page(
        f"All {plural(len(proxies), 'proxy', 'proxies')} were started alike.",
        State.FINE,
        f"They look for istiod at {told}, and run Istio {versions}.",
        tuple(tables),
        command="istioctl version",
    )


@step("Certificates", asked=("certificates", "istiod_ports"))
def certificates(case: Case, chosen: Chosen) -> Page:
    """Has every proxy a certificate of its own that is valid now, and a root that others share?

    Without one a proxy can neither be reached nor call. Now is the moment of the recording.
    """
    table = case.facts["certificates"]
    picture = pictures.certificates(case.facts)
    if picture is None:
        return Page(
            "No proxy showed a certificate.",
            State.UNKNOWN,
            gap_note(case, ("certificates",)) or "No config dump holds one.",
        )
    ordered = table.sort_values("expires_in_s")
    ordered.attrs["table"] = "certificates"
    state = pictures.worst(span.state for span in picture.spans)
    without = sorted(
        set(case.facts["proxies"]["proxy"])
        - set(table.loc[table["resource_name"] == "default", "proxy"])
    )
    roots = table.loc[table["type"] == "CA", "root_fingerprint"].nunique()
    page = Page(
        "Every proxy has a certificate that is valid."
        if state is State.FINE
        else f"{picture.spans[0].name}: its certificate is {picture.spans[0].note}.",
        state,
        f"The first to end is that of {picture.spans[0].name}: it {picture.spans[0].note}. "
        f"All trust {plural(roots, 'root')}.",
        (excerpt("certificates: the first to end on top", ordered, most=8, folded=True),),
        picture,
        f"istioctl proxy-config secret {picture.spans[0].name.partition(' ')[0]}",
    )
    if without and state is State.FINE:
        return replace(
            page,
            verdict=f"{', '.join(without[:3])} has no certificate of its own.",
            state=State.BROKEN,
        )
    return page


DATA_PLANE_CONFIG = Guide(
    name="data_plane_config",
    title="Data plane configuration",
    about="The objects are right, but a proxy holds or was started with something else: find it.",
    steps=(port, control_plane, in_step, refused, beginning, certificates, mend(_CLASS)),
)
