"""The table ``proxies``: every Envoy of the mesh, whether it answers or not."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any

import yaml

from meshnb.errors import NotRecorded
from meshnb.sources.base import Answer, HttpQuestion, Question
from meshnb.tables.base import Column, Facts, Got, Listed, Row, Table, dig, items, mapping, records
from meshnb.tables.envoy import CONFIG_DUMP, ConfigDump, node_of, proxy_of

_SERVER_INFO = Got(15000, "/server_info", proxies=True)
_INIT_DUMP = Got(15000, "/init_dump")
_CONNECTIONS = Got(15014, "/debug/connections")
_PODS = Listed("v1", "pods")

PROXIES = Table(
    name="proxies",
    grain="one row per sidecar, gateway or waypoint",
    asks=(_PODS, CONFIG_DUMP, _SERVER_INFO, _CONNECTIONS),
    columns={
        "proxy": Column("string", "the proxy as pod.namespace", key=True),
        "namespace": Column("string", "namespace of its pod"),
        "pod": Column("string", "its pod"),
        "workload_kind": Column("string", "kind of the workload that the pod belongs to"),
        "workload": Column("string", "the workload that the pod belongs to"),
        "kind": Column("string", "sidecar, gateway or waypoint"),
        "istio_version": Column("string", "version of Istio that the proxy started with"),
        "envoy_version": Column("string", "version of Envoy"),
        "state": Column(
            "string", "Envoy's state: LIVE, DRAINING, PRE_INITIALIZING or INITIALIZING"
        ),
        "ready": Column("boolean", "whether it says that it is ready; NA when it was never asked"),
        "ready_error": Column("string", "what it says instead"),
        "waits_for": Column(
            "object", "tuple: what Envoy still waits for before it serves, by its /init_dump"
        ),
        "istiod": Column("string", "the istiod pod that it is connected to"),
        "connected_at": Column("datetime64[us, UTC]", "since when it is connected", passing=True),
        "discovery_address": Column("string", "where it looks for istiod"),
        "trust_domain": Column("string", "trust domain of its identity"),
        "service_account": Column("string", "service account of its identity"),
        "cluster_id": Column("string", "Kubernetes cluster that it says it is in"),
        "network": Column("string", "network that it says it is in"),
        "interception_mode": Column("string", "how traffic gets to it: REDIRECT, TPROXY or NONE"),
        "uptime_s": Column("Float64", "how long Envoy has been running, in seconds", passing=True),
        "started": Column("datetime64[us, UTC]", "when Envoy was started", passing=True),
        "answered": Column("boolean", "whether it gave its config dump"),
        "silent_because": Column("string", "why it did not"),
    },
)


@PROXIES.derives
def _rows(facts: Facts) -> Iterator[tuple[Question, Row]]:
    dumps = {proxy_of(q): (q, dump) for q, dump in facts.documents(CONFIG_DUMP)}
    infos = {proxy_of(q): (q, info) for q, info in facts.documents(_SERVER_INFO)}
    waits = {proxy_of(question): _unready(page) for question, page in facts.documents(_INIT_DUMP)}
    asked = _asked(facts)
    connections = _connections(facts)
    certificates = facts["certificates"]
    own = certificates[certificates["resource_name"] == "default"]
    trust_domains = dict(zip(own["proxy"], own["trust_domain"], strict=True))
    documents = {
        (str(dig(pod, "metadata", "namespace")), str(dig(pod, "metadata", "name"))): pod
        for _, pod in facts.objects(_PODS)
    }
    pods = facts["pods"]
    shown = pods[
        pods["proxy"].notna() & ~pods["phase"].isin(["Succeeded", "Failed"]).fillna(value=False)
    ]
    wanted = ["proxy", "namespace", "pod", "workload_kind", "workload", "mesh", "service_account"]
    for row, title in zip(
        records(shown[wanted]),
        shown["question"],
        strict=True,
    ):
        proxy = str(row["proxy"])
        document = documents.get((str(row["namespace"]), str(row["pod"])), {})
        question, dump = dumps.get(proxy, (facts.question(str(title)), None))
        answered = isinstance(dump, ConfigDump) and not dump.empty
        node = node_of(dump)
        proxied = trust_domains.get(proxy)
        yield (
            question,
            {
                **{name: row[name] for name in wanted if name != "mesh"},
                "kind": row["mesh"],
                "trust_domain": proxied
                if isinstance(proxied, str)
                else _env(document, "TRUST_DOMAIN"),
                **_node(node, document),
                **_process(facts, infos.get(proxy), node),
                **_readiness(facts, asked, proxy),
                **connections.get(proxy, {}),
                "waits_for": waits.get(proxy, ()),
                "answered": answered,
                "silent_because": None if answered else _why_silent(facts, asked, proxy),
            },
        )


def _unready(page: Any) -> tuple[str, ...]:
    """Return the targets that Envoy's page names as unready."""
    return tuple(
        str(target).removeprefix("target ")
        for manager in items(page, "unready_targets_dumps")
        for target in items(manager, "target_names")
    )


def _asked(facts: Facts) -> Mapping[tuple[str, int], list[HttpQuestion]]:
    """Return the pages of each pod that the source was asked for, by proxy and port."""
    found: dict[tuple[str, int], list[HttpQuestion]] = {}
    for question in facts.source.questions():
        if isinstance(question, HttpQuestion):
            found.setdefault((proxy_of(question), question.port), []).append(question)
    return found


def _answers(
    facts: Facts, asked: Mapping[tuple[str, int], list[HttpQuestion]], proxy: str, page: Got
) -> Iterator[Answer]:
    for question in asked.get((proxy, page.port), []):
        if page.matches(question):
            try:
                yield facts.answer(question)
            except NotRecorded:
                continue


def _node(node: Mapping[str, Any], document: Mapping[str, Any]) -> Row:
    metadata = mapping(node, "metadata")
    row = {
        "istio_version": metadata.get("ISTIO_VERSION"),
        "discovery_address": dig(metadata, "PROXY_CONFIG", "discoveryAddress")
        or _wanted_address(document),
        "cluster_id": metadata.get("CLUSTER_ID") or _env(document, "ISTIO_META_CLUSTER_ID"),
        "network": metadata.get("NETWORK") or None,
        "interception_mode": metadata.get("INTERCEPTION_MODE")
        or _env(document, "ISTIO_META_INTERCEPTION_MODE"),
    }
    if account := metadata.get("SERVICE_ACCOUNT"):
        row["service_account"] = account
    return row


def _wanted_address(document: Mapping[str, Any]) -> str | None:
    """Return the discovery address that a pod's specification gives to its proxy."""
    texts = (
        dig(document, "metadata", "annotations", "proxy.istio.io/config"),
        _env(document, "PROXY_CONFIG"),
    )
    for text in texts:
        try:
            address = (
                dig(yaml.safe_load(text), "discoveryAddress") if isinstance(text, str) else None
            )
        except (yaml.YAMLError, ValueError, RecursionError):
            continue
        if isinstance(address, str):
            return address
    return None


def _env(document: Mapping[str, Any], name: str) -> str | None:
    """Return an environment variable of a pod's container istio-proxy."""
    for part in ("containers", "initContainers"):
        for container in items(document, "spec", part):
            if dig(container, "name") == "istio-proxy":
                for variable in items(container, "env"):
                    value = dig(variable, "value")
                    if dig(variable, "name") == name and isinstance(value, str):
                        return value
    return None


def _process(facts: Facts, info: tuple[Question, Any] | None, node: Mapping[str, Any]) -> Row:
    build = mapping(node, "user_agent_build_version", "version")
    version = ".".join(
        str(build.get(part, 0)) for part in ("major_number", "minor_number", "patch")
    )
    row: Row = {"envoy_version": version if build else None}
    if info is None:
        return row
    question, page = info
    parts = str(dig(page, "version", default="")).split("/")
    if len(parts) > 1:
        row["envoy_version"] = parts[1]
    row["state"] = dig(page, "state")
    uptime = str(dig(page, "uptime_current_epoch", default=""))
    if uptime.removesuffix("s").isdecimal():
        with contextlib.suppress(ValueError, OverflowError):  # so many seconds were never counted
            seconds = int(uptime.removesuffix("s"))
            row["started"] = facts.answer(question).taken_at - timedelta(seconds=seconds)
            row["uptime_s"] = seconds
    return row


def _readiness(
    facts: Facts, asked: Mapping[tuple[str, int], list[HttpQuestion]], proxy: str
) -> Row:
    # 15021 is asked by the kubelet and passes the question on to 15020, the agent.
    row: Row = {}
    for port in (15020, 15021):
        for answer in _answers(facts, asked, proxy, Got(port, "/healthz/ready")):
            if answer.status == 200:
                return {"ready": True}
            if answer.undelivered:
                continue  # it says nothing of the proxy
            said = answer.content.decode("utf-8", "replace").strip()
            reason = answer.error or f"HTTP {answer.status}" + (f": {said}" if said else "")
            row = {"ready": False, "ready_error": f"{port}: {reason}"}
    return row


def _why_silent(
    facts: Facts, asked: Mapping[tuple[str, int], list[HttpQuestion]], proxy: str
) -> str:
    for answer in _answers(facts, asked, proxy, CONFIG_DUMP):
        if answer.error is not None:
            return answer.error
        if answer.status is not None and answer.status >= 400:
            return f"answered with status {answer.status}"
        return "answered with something that is no config dump"
    return "was never asked"


def _connections(facts: Facts) -> Mapping[str, Row]:
    """Return to which istiod each proxy is connected and since when, by proxy."""
    pages = [Got(15014, page) for page in ("/debug/connections", "/debug/adsz", "/debug/syncz")]
    asked = [q for q in facts.source.questions() if isinstance(q, HttpQuestion)]
    page = next((page for page in pages if any(page.matches(q) for q in asked)), _CONNECTIONS)
    found: dict[str, Row] = {}
    for question, document in facts.documents(page):
        assert isinstance(question, HttpQuestion)
        for client in items(document, "clients") or (
            document if isinstance(document, list) else []
        ):
            name = dig(client, "connectionId")
            # A connection is named after the proxy and counted: client.shop-4.
            proxy = str(name).rpartition("-")[0] if name else str(dig(client, "proxy", default=""))
            found[proxy] = {"istiod": question.pod, "connected_at": dig(client, "connectedAt")}
    return found
