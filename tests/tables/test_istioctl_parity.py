"""The tables say, row by row, what istioctl 1.30.3 printed about the same mesh.

Every archive of its output that has a file is compared with the tables of the same recording.
Where they differ on purpose, the test says so and why. The reference material that the archives
belong to is not part of this repository; without it, nothing is compared.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from meshnb.errors import NotRecorded
from meshnb.sources import open_source
from meshnb.sources.ages import age_text
from meshnb.sources.base import Answer, HttpQuestion, ListQuestion, Question, parse_time
from meshnb.tables import TABLES, Facts
from tests.conftest import SHARED, facts_of

Recorded = Callable[[str], Facts]

MINE = (
    "bootstrap",
    "check_inject",
    "extension_configs",
    "injector_namespaces",
    "injector_webhooks",
    "proxy_status_summary",
    "rbac",
    "rbac_rules",
    "versions",
    "ztunnel_certificates",
    "ztunnel_connections",
    "ztunnel_policies",
    "ztunnel_services",
    "ztunnel_workloads",
)


# --- istioctl's output --------------------------------------------------------------------------


@cache
def printed() -> Mapping[str, Mapping[str, str]]:
    """Return the files of each archive of istioctl's output, by the recording's name."""
    found: dict[str, dict[str, str]] = {}
    for path in sorted((SHARED / "golden").glob("*.zip")):
        with zipfile.ZipFile(path) as archive:
            found[path.stem] = {
                name: archive.read(name).decode()
                for name in archive.namelist()
                if not name.endswith("/") and not name.startswith("describe/")
            }
    return found


def having(pattern: str) -> list[str]:
    """Return the recordings for which istioctl printed a file of this name."""
    return [name for name, files in printed().items() if any(fnmatch(f, pattern) for f in files)]


def files(name: str, pattern: str) -> Iterator[tuple[str, str]]:
    """Yield each file of one archive, with its text."""
    for file, text in printed()[name].items():
        if fnmatch(file, pattern):
            yield file, text


def proxy_in(file: str) -> str:
    """Return the proxy that a file such as ``pc/shop.cart-1/cluster.txt`` is about."""
    namespace, _, pod = file.split("/")[1].removesuffix(".txt").partition(".")
    return f"{pod}.{namespace}"


def cells(text: str, headings: list[str]) -> list[list[str]]:
    """Return the cells of a page, which begin where their heading begins."""
    head, *lines = text.splitlines()
    starts: list[int] = []
    for heading in headings:
        starts.append(head.index(heading, starts[-1] + 1 if starts else 0))
    ends: list[int | None] = [*starts[1:], None]
    return [
        [line[start:end].strip() for start, end in zip(starts, ends, strict=True)] for line in lines
    ]


def as_printed(frame: pd.DataFrame, columns: list[str]) -> list[list[str]]:
    """Return columns of a table as istioctl writes values."""
    return [[_cell(value) for value in row] for row in frame[columns].astype(object).to_numpy()]


def _cell(value: Any) -> str:
    if value is None or value is pd.NA or value is pd.NaT:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return value.strftime("%Y-%m-%dT%H:%M:%SZ") if isinstance(value, pd.Timestamp) else str(value)


# --- proxy-config -------------------------------------------------------------------------------

#: For each kind of page: the table, and istioctl's headings with the table's columns.
PAGES = {
    "cluster": (
        "clusters",
        {
            "SERVICE FQDN": "service_fqdn",
            "PORT": "port",
            "SUBSET": "subset",
            "DIRECTION": "direction",
            "TYPE": "type",
            "DESTINATION RULE": "destination_rule",
        },
    ),
    "listener": (
        "listeners",
        {
            "ADDRESSES": "addresses",
            "PORT": "port",
            "MATCH": "match",
            "DESTINATION": "destination",
        },
    ),
    "route": (
        "routes",
        {
            "NAME": "name",
            "VHOST NAME": "vhost_name",
            "DOMAINS": "domains",
            "MATCH": "match",
            "VIRTUAL SERVICE": "virtual_service",
        },
    ),
    "endpoint": (
        "endpoints",
        {
            "ENDPOINT": "endpoint",
            "STATUS": "status",
            "OUTLIER CHECK": "outlier_check",
            "CLUSTER": "cluster",
        },
    ),
    "secret": (
        "certificates",
        {
            "RESOURCE NAME": "resource_name",
            "TYPE": "type",
            "STATUS": "status",
            "VALID CERT": "valid_cert",
            "SERIAL NUMBER": "serial_number",
            "NOT AFTER": "not_after",
            "NOT BEFORE": "not_before",
            "TRUST DOMAIN": "trust_domain",
        },
    ),
}


def _as_istioctl(table: str, frame: pd.DataFrame) -> pd.DataFrame:
    """Leave out what istioctl leaves out: see the columns ``state`` and ``hidden``."""
    if table == "listeners":
        return frame[frame["state"].isin(["active", "static"])]
    if table == "clusters":
        return frame[frame["state"] != "warming"]
    return frame[~frame["hidden"]] if table == "routes" else frame


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("name", having("pc/*"))
def test_proxy_config_prints_the_same_rows_in_the_same_order(
    name: str, page: str, recorded: Recorded
) -> None:
    table, headings = PAGES[page]
    frame = _as_istioctl(table, recorded(name)[table])
    compared = 0
    for file, text in files(name, f"pc/*/{page}.txt"):
        # The trust domain is printed only where every certificate has one.
        columns = {h: c for h, c in headings.items() if h in text.splitlines()[0]}
        own = frame[frame["proxy"] == proxy_in(file)]
        ours, theirs = as_printed(own, list(columns.values())), cells(text, list(columns))
        assert ours == theirs, file
        compared += len(ours)
    assert compared > 0


@pytest.mark.parametrize("name", having("pc/*"))
def test_one_saved_page_alone_gives_the_rows_that_istioctl_prints(
    name: str, recordings_folder: Path
) -> None:
    """As ``istioctl proxy-config … -f FILE``; the name of the proxy is in a config dump only."""
    compared = 0
    index = (recordings_folder / name / "index.jsonl").read_text()
    for entry in map(json.loads, index.splitlines()):
        request, path = entry["request"], str(entry["request"].get("path"))
        wanted = ("endpoint",) if path.startswith("/clusters") else ("cluster", "listener", "route")
        folder = f"pc/{request.get('namespace')}.{request.get('pod')}"
        if "file" not in entry or f"{folder}/cluster.txt" not in printed()[name]:
            continue
        if not path.startswith(("/clusters?format=json", "/config_dump")):
            continue
        facts = Facts(open_source(recordings_folder / name / entry["file"]))
        for page in wanted:
            table, headings = PAGES[page]
            frame = _as_istioctl(table, facts[table])
            if page != "endpoint":
                assert set(frame["proxy"]) == {proxy_in(f"{folder}/")}
            ours = as_printed(frame, list(headings.values()))
            theirs = cells(printed()[name][f"{folder}/{page}.txt"], list(headings))
            assert ours == theirs, (folder, page)
            compared += len(ours)
    assert compared > 0


@pytest.mark.parametrize("name", having("pc/*"))
def test_assigned_endpoints_are_those_that_proxies_use(
    name: str, recorded: Recorded, recordings_folder: Path
) -> None:
    """Of a config dump alone, endpoints are those of EDS: the same addresses, without counters.

    What Envoy has found itself, by DNS or because a client asked for it, istiod has not assigned.
    """
    used = recorded(name)["endpoints"]
    shown = ["endpoint", "status", "cluster"]
    compared = 0
    for question in recorded(name).source.questions():
        if not isinstance(question, HttpQuestion) or not question.path.startswith("/config_dump"):
            continue
        answer = recorded(name).answer(question)
        if b"EndpointsConfigDump" not in answer.content:
            continue
        alone = Facts(_Pages(answer))["endpoints"]
        assert set(alone["origin"]) <= {"config dump"}
        assert alone["requests"].isna().all()
        own = used[used["proxy"] == f"{question.pod}.{question.namespace}"]
        eds = own[own["cluster"].isin(alone["cluster"]) & (own["status"] != "UNKNOWN")]
        assert set(map(tuple, as_printed(eds, shown))) <= set(map(tuple, as_printed(alone, shown)))
        compared += len(eds)
    assert compared > 0


class _Pages:
    """A source that has these answers only."""

    label = "some pages"
    damage = ()

    def __init__(self, *answers: Answer) -> None:
        self.answers = {answer.question: answer for answer in answers}
        self.now = max(answer.taken_at for answer in answers)

    def questions(self) -> tuple[Question, ...]:
        return tuple(self.answers)

    def ask(self, questions: Iterable[Question]) -> Iterator[Answer]:
        for question in questions:
            if question not in self.answers:
                raise NotRecorded(f"never asked {question}")
            yield self.answers[question]


@pytest.mark.parametrize("name", having("pc/*/bootstrap.txt"))
def test_bootstrap_says_what_istioctl_read_of_it(name: str, recorded: Recorded) -> None:
    """The archives have the long form, JSON; the short one is derived from it in the same way."""
    bootstrap = recorded(name)["bootstrap"].set_index("proxy")
    assert len(bootstrap) > 0
    for file, text in files(name, "pc/*/bootstrap.txt"):
        page = json.loads(text)
        node, own = page["bootstrap"]["node"], bootstrap.loc[proxy_in(file)]
        metadata, build = node["metadata"], node["userAgentBuildVersion"]
        number = build["version"]
        assert own["istio_version"] == metadata["ISTIO_VERSION"]
        assert pd.isna(own["istio_proxy_version"])
        assert "ISTIO_PROXY_SHA" not in metadata
        assert own["envoy_version"] == (
            f"{number['majorNumber']}.{number['minorNumber']}.{number.get('patch', 0)}"
            f"/{build['metadata']['revision.status']}/{build['metadata']['build.type']}"
            f"/{build['metadata']['ssl.version']}"
        )
        assert own["node_id"] == node["id"]
        assert own["node_type"] == node["id"].split("~")[0]
        assert own["service_cluster"] == node["cluster"]
        assert own["metadata"] == metadata
        assert own["discovery_address"] == metadata["PROXY_CONFIG"]["discoveryAddress"]
        assert list(own["sans"]) == metadata["PILOT_SAN"]
        assert own["xds_api"] == page["bootstrap"]["dynamicResources"]["adsConfig"]["apiType"]
        assert own["xds_address"] in text
        assert own["last_updated"] == pd.Timestamp(page["lastUpdated"])


@pytest.mark.parametrize("name", having("pc/*/ecds.txt"))
def test_extension_configs_are_those_that_istioctl_prints(name: str, recorded: Recorded) -> None:
    """Of a proxy without any, istioctl prints an error and no page; here it has no rows."""
    frame = recorded(name)["extension_configs"]
    for file, text in files(name, "pc/*/ecds.txt"):
        own = as_printed(frame[frame["proxy"] == proxy_in(file)], ["ecds_name", "type"])
        assert own == (cells(text, ["ECDS NAME", "TYPE"]) if text else [])
    assert recorded(name).gaps("extension_configs") == ()


# --- proxy-status and version -------------------------------------------------------------------

KINDS = {
    "Cluster": "CDS",
    "ClusterLoadAssignment": "EDS",
    "Listener": "LDS",
    "RouteConfiguration": "RDS",
    "Secret": "SDS",
    "Address": "WDS",
    "Authorization": "WADS",
}


@pytest.mark.parametrize("name", having("proxy-status.json"))
def test_proxy_status_agrees_with_istioctl(name: str, recorded: Recorded) -> None:
    """Without an istiod istioctl prints an error and no page; here there are no rows."""
    status = recorded(name)["proxy_status"]
    ours = {
        (proxy, xds): sync.replace(" ", "_")
        for proxy, xds, sync in zip(status["proxy"], status["xds"], status["sync"], strict=True)
        if sync != "IGNORED"
    }
    page = json.loads(printed()[name]["proxy-status.json"] or '{"resources": []}')
    theirs = {
        (proxy["node"]["id"], KINDS[config["typeUrl"].rpartition(".")[2]]): config.get(
            "configStatus", "UNKNOWN"
        )
        for proxy in page["resources"]
        for config in proxy["genericXdsConfigs"]
    }
    assert ours == theirs
    assert (len(ours) == 0) == (name == "istiod-down")


@pytest.mark.parametrize("name", having("proxy-status.txt"))
def test_the_summary_is_the_new_form_of_proxy_status(name: str, recorded: Recorded) -> None:
    text = printed()[name]["proxy-status.txt"]
    headings = {
        "NAME": "name",
        "CLUSTER": "cluster",
        "ISTIOD": "istiod",
        "VERSION": "version",
        "SUBSCRIBED TYPES": "subscribed_types",
    }
    summary = recorded(name)["proxy_status_summary"]
    assert as_printed(summary, list(headings.values())) == cells(text, list(headings))
    assert (summary["proxy"] == summary["name"]).all()


@pytest.mark.parametrize("name", having("proxy-status-v1.txt"))
def test_the_summary_is_the_old_form_of_proxy_status(name: str, recorded: Recorded) -> None:
    """The states are the same; ages are nearly so.

    istioctl takes an age from its clock when it prints, which was some seconds after the answer
    was recorded that the table takes it from.
    """
    text = printed()[name]["proxy-status-v1.txt"]
    headings = text.splitlines()[0].split()
    columns = [heading.lower() for heading in headings]
    ours = as_printed(recorded(name)["proxy_status_summary"], columns)
    theirs = cells(text, headings)
    assert [[_without_age(c) for c in row] for row in ours] == [
        [_without_age(c) for c in row] for row in theirs
    ]
    later = [
        _seconds(their) - _seconds(our)
        for our_row, their_row in zip(ours, theirs, strict=True)
        for our, their in zip(our_row, their_row, strict=True)
        if "(" in our
    ]
    assert later
    assert all(0 <= seconds <= 30 for seconds in later)
    # All of one page were taken at one moment.
    assert max(later) - min(later) <= 1


def _without_age(cell: str) -> str:
    return re.sub(r" \(.*\)", " (age)", cell)


def _seconds(cell: str) -> int:
    units = {"s": 1, "m": 60, "h": 3600}
    return sum(int(n) * units[unit] for n, unit in re.findall(r"(\d+)([smh])", cell))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-2.5, "<invalid>"),
        (-0.5, "0s"),
        (119.9, "119s"),
        (120, "2m"),
        (146, "2m26s"),
        (600, "10m"),
        (10_799, "179m"),
        (10_800, "3h"),
        (11_100, "3h5m"),
        (28_800, "8h"),
        (172_800, "2d"),
        (187_200, "2d4h"),
        (8 * 86_400, "8d"),
        (800 * 86_400, "2y70d"),
        (3000 * 86_400, "8y"),
    ],
)
def test_ages_are_written_as_kubernetes_does(seconds: float, text: str) -> None:
    assert age_text(seconds) == text


@pytest.mark.parametrize("name", having("version.json"))
def test_versions_of_both_planes_agree_with_istioctl(name: str, recorded: Recorded) -> None:
    """The proxies come in the order of istiod's answer, which is another each time.

    istioctl's own version is left out, as it is no part of the mesh.
    """
    page = json.loads(printed()[name]["version.json"])
    versions = recorded(name)["versions"]
    control, data = (versions[versions["plane"] == plane] for plane in ("control", "data"))
    columns = ["component", "revision", "istio_version", "git_revision"]
    assert as_printed(control, [*columns, "golang_version", "status", "tag"]) == [
        [
            istiod["Component"],
            istiod["Revision"],
            *(
                istiod["Info"][key]
                for key in ("version", "revision", "golang_version", "status", "tag")
            ),
        ]
        for istiod in page["meshVersion"]
    ]
    assert sorted(as_printed(data, ["id", "istio_version", "type"])) == sorted(
        [proxy["ID"], proxy["IstioVersion"], proxy["Type"]] for proxy in page["dataPlaneVersion"]
    )


# --- injection ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", having("injector.txt"))
def test_the_injector_is_listed_as_by_istioctl(name: str, recorded: Recorded) -> None:
    namespaces, webhooks = printed()[name]["injector.txt"].split("\n\n")
    first = {
        "NAMESPACE": "namespace",
        "ISTIO-REVISION": "istio_revision",
        "POD-REVISIONS": "pod_revisions",
    }
    second = {
        "NAMESPACES": "namespaces",
        "INJECTOR-HOOK": "injector_hook",
        "ISTIO-REVISION": "istio_revision",
        "SIDECAR-IMAGE": "sidecar_image",
    }
    facts = recorded(name)
    ours = as_printed(facts["injector_namespaces"], list(first.values()))
    assert ours == cells(namespaces, list(first))
    ours = as_printed(facts["injector_webhooks"], list(second.values()))
    assert ours == cells(webhooks, list(second))


@pytest.mark.parametrize("name", having("check-inject/*"))
def test_injection_of_each_pod_is_explained_as_by_istioctl(name: str, recorded: Recorded) -> None:
    """The marks ✔ and ✘, which istioctl prints in colours, are a boolean here."""
    frame = recorded(name)["check_inject"]
    compared = 0
    for file, text in files(name, "check-inject/*.txt"):
        plain = re.sub(r"\x1b\[\d+m", "", text).replace("✔", "true").replace("✘", "false")
        head, *lines = plain.splitlines()
        assert head.split() == ["WEBHOOK", "REVISION", "INJECTED", "REASON"]
        own = frame[frame["pod"] + "." + frame["namespace"] == proxy_in(file)]
        columns = ["webhook", "revision", "injected", "reason"]
        assert as_printed(own, columns) == [re.split(r" {2,}", line) for line in lines]
        compared += len(lines)
    assert compared > 0


# --- authorization ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", having("authz/*"))
def test_policies_in_each_proxy_agree_with_istioctl(name: str, recorded: Recorded) -> None:
    """Where a proxy has no listeners, or is a ztunnel, istioctl prints nothing at all."""
    headings = {"ACTION": "action", "AuthorizationPolicy": "authorization_policy", "RULES": "rules"}
    frame = recorded(name)["rbac"]
    pages = list(files(name, "authz/*.txt"))
    assert pages
    for file, text in pages:
        own = frame[frame["proxy"] == proxy_in(file)]
        assert as_printed(own, list(headings.values())) == (
            cells(text, list(headings)) if text else []
        )


# --- ztunnel ------------------------------------------------------------------------------------

ZTUNNEL = {
    "workload": (
        "ztunnel_workloads",
        {
            "NAMESPACE": "namespace",
            "POD NAME": "pod_name",
            "ADDRESS": "address",
            "NODE": "node",
            "WAYPOINT": "waypoint",
            "PROTOCOL": "protocol",
        },
    ),
    "service": (
        "ztunnel_services",
        {
            "NAMESPACE": "namespace",
            "SERVICE NAME": "service_name",
            "SERVICE VIP": "service_vip",
            "WAYPOINT": "waypoint",
            "ENDPOINTS": "endpoints",
        },
    ),
    "policy": (
        "ztunnel_policies",
        {
            "NAMESPACE": "namespace",
            "POLICY NAME": "policy_name",
            "ACTION": "action",
            "SCOPE": "scope",
        },
    ),
    "certificate": (
        "ztunnel_certificates",
        {
            "CERTIFICATE NAME": "certificate_name",
            "TYPE": "type",
            "STATUS": "status",
            "VALID CERT": "valid_cert",
            "SERIAL NUMBER": "serial_number",
            "NOT AFTER": "not_after",
            "NOT BEFORE": "not_before",
        },
    ),
    "connections": (
        "ztunnel_connections",
        {
            "WORKLOAD": "workload",
            "DIRECTION": "direction",
            "LOCAL": "local",
            "REMOTE": "remote",
            "REMOTE TARGET": "remote_target",
            "PROTOCOL": "protocol",
        },
    ),
}


@pytest.mark.parametrize("page", ZTUNNEL)
@pytest.mark.parametrize("name", having("ztunnel/*"))
def test_ztunnel_config_prints_the_same_rows_in_the_same_order(
    name: str, page: str, recorded: Recorded
) -> None:
    table, headings = ZTUNNEL[page]
    theirs = cells(printed()[name][f"ztunnel/{page}.txt"], list(headings))
    assert theirs
    assert as_printed(recorded(name)[table], list(headings.values())) == theirs


#: For each JSON page: what identifies an entry, and the table's columns with the fields.
ZTUNNEL_JSON: dict[str, tuple[tuple[str, ...], dict[str, str]]] = {
    "workload": (
        ("uid",),
        {
            "uid": "uid",
            "status": "status",
            "workload_name": "workloadName",
            "workload_type": "workloadType",
            "service_account": "serviceAccount",
            "trust_domain": "trustDomain",
            "canonical_name": "canonicalName",
            "canonical_revision": "canonicalRevision",
            "cluster_id": "clusterId",
            "authorization_policies": "authorizationPolicies",
            "capacity": "capacity",
        },
    ),
    "service": (
        ("hostname",),
        {"hostname": "hostname", "ports": "ports", "ip_families": "ipFamilies"},
    ),
    "policy": (("namespace", "name"), {"rules": "rules", "action": "action", "scope": "scope"}),
}


@pytest.mark.parametrize("page", ZTUNNEL_JSON)
@pytest.mark.parametrize("name", having("ztunnel/*.json"))
def test_the_other_columns_are_those_of_the_json_form(
    name: str, page: str, recorded: Recorded
) -> None:
    """Go writes an empty text where ztunnel says nothing; here it is NA."""
    _, columns = ZTUNNEL_JSON[page]
    entries = json.loads(printed()[name][f"ztunnel/{page}.json"])
    theirs = [[_value(entry.get(field)) for field in columns.values()] for entry in entries]
    frame = recorded(name)[ZTUNNEL[page][0]][list(columns)].astype(object)
    ours = [[_value(value) for value in row] for row in frame.to_numpy()]
    assert theirs
    assert sorted(ours, key=str) == sorted(theirs, key=str)


def _value(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return list(value) or ""
    return "" if value is None or value is pd.NA else value


@pytest.mark.parametrize("name", having("ztunnel/connections.json"))
def test_connections_are_those_of_the_json_form(name: str, recorded: Recorded) -> None:
    frame = recorded(name)["ztunnel_connections"]
    ours = as_printed(
        frame, ["workload", "direction", "source_address", "destination_address", "state"]
    )
    theirs = [
        [
            f"{state['info']['name']}.{state['info']['namespace']}",
            direction.capitalize(),
            connection["src"],
            connection["actualDst"],
            state["state"],
        ]
        for state in json.loads(printed()[name]["ztunnel/connections.json"])
        for direction in ("inbound", "outbound")
        for connection in state["connections"][direction]
    ]
    assert sorted(ours) == sorted(theirs)


# --- what istioctl was not asked of any recording -----------------------------------------------


def test_each_policy_that_istiod_sent_has_as_many_rules_as_its_object(recorded: Recorded) -> None:
    for name in ("authz-allow-nobody", "authz-deny-named", "authz-principal-typo"):
        facts = recorded(name)
        config = facts["istio_config"]
        objects = config[config["kind"] == "AuthorizationPolicy"]
        wanted = {
            (spec.get("action", "ALLOW"), f"{policy}.{namespace}", len(spec["rules"]))
            for policy, namespace, spec in zip(
                objects["name"], objects["namespace"], objects["spec"], strict=True
            )
        }
        rbac = facts["rbac"]
        named = rbac[rbac["authorization_policy"] != "_anonymous_match_nothing_"]
        assert wanted
        sent = zip(named["action"], named["authorization_policy"], named["rules"], strict=True)
        assert set(sent) == wanted
        assert rbac["enforced"].all()


def test_a_policy_on_requests_denies_every_plain_connection(recorded: Recorded) -> None:
    """An ALLOW policy about HTTP methods has no rule for a connection, so none is let through."""
    facts = recorded("authz-allow-nobody")
    rules = facts["rbac_rules"]
    empty = rules[rules["authorization_policy"] == "_anonymous_match_nothing_"]
    assert set(empty["protocol"]) == {"network"}
    assert set(empty["action"]) == {"ALLOW"}
    assert empty["rule"].isna().all()
    own = rules.drop(empty.index)
    assert set(own["protocol"]) == {"http"}
    assert set(own["effect"]) == {"enforced"}
    assert (own["permissions"].map(len) > 0).all()
    assert set(rules["state"]) == {"active"}
    counted = facts["rbac"].set_index("authorization_policy")
    assert set(counted.loc[empty["authorization_policy"].iloc[0], "filter_chains"]) == set(
        empty["filter_chain"]
    )


class _Answers:
    """A source with the answers that a test gives it, all taken at one moment."""

    label = "answers of a test"
    damage = ()
    now = parse_time("2026-11-23T03:00:00Z")

    def __init__(self, documents: Mapping[Question, Any]) -> None:
        self.bodies = {q: json.dumps(document).encode() for q, document in documents.items()}

    def questions(self) -> tuple[Question, ...]:
        return tuple(self.bodies)

    def ask(self, questions: Any) -> Iterator[Answer]:
        for question in questions:
            if question not in self.bodies:
                raise NotRecorded(f"never asked {question}")
            yield Answer(question, self.now, 1.0, 200, self.bodies[question])


DUMP = HttpQuestion("shop", "cart-1", 15000, "/config_dump")
ZTUNNEL_DUMP = HttpQuestion("mesh", "ztunnel-1", 15000, "/config_dump")
ENVOY = "type.googleapis.com/envoy"


def _dumped(part: str, **content: Any) -> dict[str, Any]:
    return {"@type": f"{ENVOY}.admin.v3.{part}", **content}


def test_filters_by_ecds_of_all_kinds_are_sorted_by_type_and_name() -> None:
    """Envoy has one part for each kind of filter; one that waits has no type yet."""

    def entry(name: str, kind: str = "", **more: Any) -> dict[str, Any]:
        config = {"typed_config": {"@type": f"{ENVOY}.extensions.filters.{kind}"}} if kind else {}
        return {"ecds_filter": {"name": name, **config}, "version_info": "v/1", **more}

    refused = {"error_state": {"details": "no code", "failed_configuration": {"name": "r"}}}
    dump = {
        "configs": [
            _dumped(
                "EcdsConfigDump",
                ecds_filters=[
                    entry("extenstions.istio.io/wasmplugin/shop.limits", "http.wasm.v3.Wasm"),
                    entry("shop.headers", "http.wasm.v3.Wasm"),
                    refused,
                ],
            ),
            _dumped(
                "EcdsConfigDump",
                ecds_filters=[entry("stats/b"), entry("stats/a", "network.rbac.v3.RBAC")],
            ),
        ]
    }
    frame = Facts(_Answers({DUMP: dump}))["extension_configs"]
    wasm, rbac = (
        f"envoy.extensions.filters.{kind}" for kind in ("http.wasm.v3.Wasm", "network.rbac.v3.RBAC")
    )
    assert as_printed(frame, ["ecds_name", "type", "state", "protocol"]) == [
        ["r", "", "refused", ""],
        ["stats/b", "", "waiting", ""],
        ["extenstions.istio.io/wasmplugin/shop.limits", wasm, "active", "http"],
        ["shop.headers", wasm, "active", "http"],
        ["stats/a", rbac, "active", "network"],
    ]
    made_of = "/apis/extensions.istio.io/v1alpha1/namespaces/shop/wasm-plugin"
    assert frame["istio_config"].dropna().tolist() == [f"{made_of}/limits", f"{made_of}/headers"]
    assert frame["error"].dropna().tolist() == ["no code"]


def _rbac(**config: Any) -> dict[str, Any]:
    return {"name": "envoy.filters.http.rbac", "typed_config": config}


def _rules(action: str, *names: str) -> dict[str, Any]:
    return {"action": action, "policies": {name: {"principals": [{"any": True}]} for name in names}}


def test_custom_and_dry_run_policies_are_told_from_enforced_ones() -> None:
    """A filter without rules of its own is taken by istioctl for one that lets nothing through.

    The table has that row, too, to agree with it, and says in ``enforced`` that it is not so.
    """
    http = [
        _rbac(shadow_rules=_rules("DENY", "istio-ext-authz-ns[shop]-policy[ask]-rule[0]")),
        _rbac(
            rules=_rules("DENY", "ns[shop]-policy[no]-rule[1]", "ns[shop]-policy[no]-rule[0]"),
            shadow_rules=_rules("DENY", "ns[shop]-policy[trial]-rule[0]"),
        ),
        _rbac(rules=_rules("LOG", "ns[mesh]-policy[audit]-rule[0]")),
        _rbac(rules=_rules("DENY", "default-deny-all-due-to-bad-CUSTOM-action")),
    ]
    manager = {
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": {"http_filters": http},
    }
    chain = {"name": "chain", "filters": [manager]}
    other = {"name": "envoy.filters.network.rbac", "typed_config": {"rules": {}}}
    listener = {
        "name": "virtualInbound",
        "filter_chains": [chain, chain],
        "default_filter_chain": {"filters": [other]},
    }
    dump = {
        "configs": [
            _dumped(
                "ListenersConfigDump",
                dynamic_listeners=[
                    {"active_state": {"listener": listener}},
                    {"warming_state": {"listener": {"filter_chains": [{"filters": [other]}]}}},
                ],
            )
        ]
    }
    facts = Facts(_Answers({DUMP: dump}))
    assert as_printed(facts["rbac"], ["action", "authorization_policy", "rules", "enforced"]) == [
        ["DENY", "", "1", "true"],
        ["DENY", "no.shop", "2", "true"],
        ["ALLOW", "_anonymous_match_nothing_", "1", "false"],
        ["LOG", "audit.mesh", "1", "true"],
        ["CUSTOM", "ask.shop", "1", "true"],
    ]
    rules = facts["rbac_rules"]
    assert len(rules) == 2 * 6 + 2
    effects = dict(zip(rules["policy"].fillna("-"), rules["effect"], strict=True))
    assert (effects["ask"], effects["trial"], effects["no"]) == ("asks", "dry run", "enforced")
    # What istioctl does not look at is there, too: the default chain, and listeners in waiting.
    empty = rules[rules["authorization_policy"] == "_anonymous_match_nothing_"]
    assert as_printed(empty, ["state", "position"]) == [["active", "2"], ["warming", "0"]]


NAMESPACES = ListQuestion("v1", "namespaces")
PODS = ListQuestion("v1", "pods")
WEBHOOKS = ListQuestion("admissionregistration.k8s.io/v1", "mutatingwebhookconfigurations")


def _hook(name: str, revision: str, webhooks: list[Any]) -> dict[str, Any]:
    labels = {"app": "sidecar-injector", "istio.io/rev": revision}
    return {"metadata": {"name": name, "labels": labels}, "webhooks": webhooks}


def _injected(
    recorded: Recorded, namespace: Mapping[str, str], pod: Mapping[str, str], *, canary: bool = True
) -> Facts:
    """Return the facts of one pod with the recorded webhooks and those of a second revision."""
    default = recorded("healthy")["webhooks"]
    own = default[default["configuration"] == "istio-revision-tag-default"]
    webhooks = [
        {
            "name": row["webhook"],
            "namespaceSelector": row["namespace_selector"],
            "objectSelector": row["object_selector"],
            "clientConfig": {"service": {"path": "/inject"}},
        }
        for row in own.to_dict("records")
    ]
    second = json.loads(json.dumps(webhooks[:2]).replace('["default"]', '["canary"]'))
    hooks = [_hook("b-default", "default", webhooks)]
    hooks += [_hook("a-canary", "canary", second)] if canary else []
    return Facts(
        _Answers(
            {
                NAMESPACES: {"items": [{"metadata": {"name": "shop", "labels": dict(namespace)}}]},
                PODS: {
                    "items": [
                        {"metadata": {"namespace": "shop", "name": "cart", "labels": dict(pod)}}
                    ]
                },
                WEBHOOKS: {"items": hooks},
            }
        )
    )


_NONE_CANARY = (
    "No matching namespace labels (istio.io/rev=canary) or pod labels (istio.io/rev=canary)"
)
_NONE_DEFAULT = (
    "No matching namespace labels (istio.io/rev=default, istio-injection=enabled) or pod labels"
    " (istio.io/rev=default, sidecar.istio.io/inject=true)"
)
_BOTH_DEFAULT = (
    "+Namespace label istio-injection=enabled matches, and pod label sidecar.istio.io/inject=true"
    " matches"
)


@pytest.mark.parametrize(
    ("namespace", "pod", "canary", "default"),
    [
        ({}, {}, _NONE_CANARY, _NONE_DEFAULT),
        (
            {"istio.io/rev": "canary"},
            {},
            "+Namespace label istio.io/rev=canary matches",
            _NONE_DEFAULT,
        ),
        (
            {"istio.io/rev": "canary"},
            {"sidecar.istio.io/inject": "false"},
            "Pod has sidecar.istio.io/inject=false label, preventing injection",
            _NONE_DEFAULT,
        ),
        (
            {},
            {"istio.io/rev": "canary"},
            "+Pod label istio.io/rev=canary matches",
            "Pod has istio.io/rev=canary label, preventing injection",
        ),
        (
            {"istio-injection": "disabled"},
            {"istio.io/rev": "canary"},
            "Namespace has istio-injection=disabled label, preventing injection",
            "Namespace has istio-injection=disabled label, preventing injection",
        ),
        (
            {"istio-injection": "enabled"},
            {"sidecar.istio.io/inject": "true"},
            _NONE_CANARY,
            _BOTH_DEFAULT,
        ),
    ],
)
def test_labels_decide_in_istioctls_order(
    namespace: dict[str, str],
    pod: dict[str, str],
    canary: str,
    default: str,
    recorded: Recorded,
) -> None:
    """The cases are those of Istio's own test of check-inject; a plus stands for injected."""
    frame = _injected(recorded, namespace, pod)["check_inject"]
    assert as_printed(frame, ["webhook", "injected", "reason"]) == [
        ["a-canary", str(canary.startswith("+")).lower(), canary.removeprefix("+")],
        ["b-default", str(default.startswith("+")).lower(), default.removeprefix("+")],
    ]
    assert not frame["conflict"].any()


@pytest.mark.parametrize(
    ("labels", "revision", "namespaces"),
    [
        ({"istio.io/rev": "canary"}, "canary", ["shop", "DOES NOT AUTOINJECT"]),
        ({"istio.io/rev": "gone"}, "MISSING/gone", ["DOES NOT AUTOINJECT"] * 2),
        ({"istio-injection": "enabled"}, "default", ["DOES NOT AUTOINJECT", "shop"]),
        ({"istio-injection": "perhaps"}, "MISSING/istio-injection", ["DOES NOT AUTOINJECT"] * 2),
        ({"istio-injection": "disabled"}, "", ["DOES NOT AUTOINJECT"] * 2),
    ],
)
def test_a_namespace_has_the_revision_of_the_webhook_that_selects_it(
    labels: dict[str, str], revision: str, namespaces: list[str], recorded: Recorded
) -> None:
    facts = _injected(recorded, labels, {})
    restart = "" if revision == "" else " NEEDS RESTART: 1"
    assert as_printed(
        facts["injector_namespaces"], ["namespace", "istio_revision", "pod_revisions"]
    ) == [["shop", revision, f"<non-Istio>: 1{restart}"]]
    assert facts["injector_webhooks"]["namespaces"].tolist() == namespaces


def test_without_the_namespaces_nobody_knows_what_is_injected(recorded: Recorded) -> None:
    facts = _injected(recorded, {}, {})
    assert isinstance(facts.source, _Answers)
    del facts.source.bodies[NAMESPACES]
    blind = Facts(facts.source)
    assert blind["check_inject"]["injected"].isna().all()
    assert {gap.state for gap in blind.gaps("check_inject")} == {"not asked"}


def test_dumps_of_older_ztunnels_are_read() -> None:
    """They have objects for lists, waypoints by address, and the root at the end of the chain."""
    certificate = {"validFrom": "2026-11-23T02:00:00Z", "pem": ""}
    chain = [
        {**certificate, "serialNumber": "255", "expirationTime": "2026-11-24T02:00:00Z"},
        {**certificate, "serialNumber": "10", "expirationTime": "2026-11-23T02:30:00Z"},
    ]
    dump = {
        "workloads": {
            "/10.0.0.1": {
                "uid": "u1",
                "name": "cart-1",
                "namespace": "shop",
                "workloadIps": ["10.0.0.1", "fd00::1"],
                "protocol": "HBONE",
                "waypoint": {"destination": "/10.96.0.9"},
                "status": "Healthy",
            },
            "host": {
                "uid": "u2",
                "name": "far",
                "namespace": "shop",
                "hostname": "far.example",
                "waypoint": {"destination": "shop/gone.shop"},
                "status": "Unhealthy",
            },
        },
        "services": {
            "a": {
                "name": "way",
                "namespace": "shop",
                "hostname": "way.shop",
                "vips": ["/10.96.0.9", "/fd01::9"],
                "endpoints": {"u1": {"workloadUid": "u1"}, "u2": {"workloadUid": "u2"}},
            }
        },
        "policies": {},
        "certificates": [
            {"identity": "spiffe://td/ns/shop/sa/cart", "state": "Available", "certChain": chain},
            {"identity": "spiffe://td/ns/shop/sa/x", "state": "Unavailable: no CA"},
        ],
    }
    facts = Facts(_Answers({PODS: {"items": []}, ZTUNNEL_DUMP: dump}))
    assert as_printed(facts["ztunnel_workloads"], ["pod_name", "address", "waypoint"]) == [
        ["cart-1", "10.0.0.1,fd00::1", "way"],
        ["far", "far.example", "NA"],
    ]
    services = facts["ztunnel_services"]
    assert as_printed(services, ["service_vip", "waypoint", "endpoints"]) == [
        ["10.96.0.9,fd01::9", "None", "1/2"]
    ]
    assert services["unhealthy"].tolist() == [("u2",)]
    assert as_printed(
        facts["ztunnel_certificates"], ["type", "status", "valid_cert", "serial_number"]
    ) == [
        ["Leaf", "Available", "true", "ff"],
        ["Root", "Available", "false", "a"],
        ["", "Unavailable", "false", ""],
    ]
    assert facts["ztunnel_policies"].empty
    assert facts["ztunnel_connections"].empty
    for table in MINE:
        assert not table.startswith("ztunnel") or facts.gaps(table) == ()


def test_a_ztunnel_that_was_not_asked_is_a_gap_and_an_envoy_none(recorded: Recorded) -> None:
    pod = {
        "metadata": {"namespace": "mesh", "name": "ztunnel-2", "labels": {"app": "ztunnel"}},
        "status": {"phase": "Running"},
    }
    facts = Facts(_Answers({PODS: {"items": [pod]}, DUMP: {"configs": []}}))
    for table in ("ztunnel_workloads", "ztunnel_certificates"):
        assert facts[table].empty
        assert {(gap.question, gap.state) for gap in facts.gaps(table)} == {
            ("GET mesh/ztunnel-2:15000/config_dump", "not asked")
        }
    assert recorded("healthy").gaps("ztunnel_workloads") == ()


def test_proxies_of_all_istiods_are_summed_up_in_the_order_of_their_names() -> None:
    """An istiod of before Istio 1.24 lists its types in fields, and no times."""
    types = {
        "type.googleapis.com/istio.networking.nds.v1.NameTable": {"sent": "n1"},
        f"{ENVOY}.config.listener.v3.Listener": {
            "sent": "l1",
            "acked": "l0",
            "lastError": "no",
            "sentTime": "2026-11-23T02:57:00Z",
        },
        f"{ENVOY}.config.cluster.v3.Cluster": {
            "sent": "c1",
            "acked": "c1",
            "sentTime": "2026-11-22T02:00:00Z",
        },
    }
    older = {"proxy": "a.shop", "cluster_sent": "c2", "cluster_acked": "c2", "route_sent": "r2"}
    pages: dict[Question, Any] = {
        HttpQuestion("mesh", istiod, 15014, "/debug/syncz"): [status]
        for istiod, status in (
            ("istiod-1", {"proxy": "b.shop", "resources": types}),
            ("istiod-2", older),
        )
    }
    summary = Facts(_Answers(pages))["proxy_status_summary"]
    columns = ["name", "istiod", "subscribed_types", "cds", "lds", "rds", "nds", "worst", "error"]
    assert as_printed(summary, columns) == [
        ["a.shop", "istiod-2", "2 (CDS,RDS)", "SYNCED", "IGNORED", "STALE", "IGNORED", "STALE", ""],
        [
            *("b.shop", "istiod-1", "3 (CDS,LDS,NDS)", "SYNCED (25h)", "ERROR (3m)"),
            *("IGNORED", "STALE", "ERROR", "no"),
        ],
    ]


def test_versions_are_read_in_each_form_that_istiod_tells_them() -> None:
    page = HttpQuestion("mesh", "istiod-1", 15014, "/version")
    pod = {"metadata": {"namespace": "mesh", "name": "istiod-1", "labels": {"app": "istiod"}}}
    asked: dict[Question, Any] = {PODS: {"items": [pod]}}
    columns = ["istio_version", "git_revision", "golang_version", "status", "tag"]
    build = {"version": "1.31.0", "revision": "016bc46", "golang_version": "go1.26.8"}
    build |= {"status": "Clean", "tag": "1.31.0"}
    for text, expected in (
        ("1.12.0-016bc46-Clean", ["1.12.0", "016bc46", "", "Clean", "1.12.0"]),
        (
            "1.12.0-own-016bc46-dirty-Modified",
            ["1.12.0-own", "016bc46-dirty", "", "Modified", "1.12.0-own"],
        ),
        ("1.31.0", ["1.31.0", "", "", "", ""]),
        (json.dumps({"clientVersion": build}), list(build.values())),
        ("", ["", "", "", "", ""]),
    ):
        source = _Answers(asked)
        source.bodies[page] = text.encode()
        versions = Facts(source)["versions"]
        assert as_printed(versions[versions["plane"] == "control"], columns) == [expected]


# --- all tables ---------------------------------------------------------------------------------


def test_every_row_can_be_found_by_its_key() -> None:
    for name in ("healthy", "market-healthy", "garden-healthy", "authz-deny-named", "ztunnel-deny"):
        for table in MINE:
            keys = [title for title, column in TABLES[table].columns.items() if column.key]
            assert not facts_of(name)[table].duplicated(keys).any(), (name, table)


def test_a_healthy_recording_leaves_no_gap(recorded: Recorded) -> None:
    for name in ("healthy", "healthy-loaded", "market-healthy", "garden-healthy"):
        assert recorded(name).gaps(*MINE) == ()


def test_rows_name_a_question_that_the_source_has(recorded: Recorded) -> None:
    for name in ("healthy", "garden-healthy"):
        facts = recorded(name)
        for table in MINE:
            for title in facts[table]["question"].unique():
                assert str(facts.question(title)) == title


@pytest.mark.parametrize("odd", [None, 7, "text", [], {}, [None, 7, "x", []], {"a": [1]}, True])
@pytest.mark.parametrize(
    "part",
    ["BootstrapConfigDump", "ListenersConfigDump", "EcdsConfigDump", "workloads", "certificates"],
)
def test_a_dump_of_any_shape_costs_at_most_its_own_rows(part: str, odd: Any) -> None:
    fields = {
        "BootstrapConfigDump": "bootstrap",
        "ListenersConfigDump": "dynamic_listeners",
        "EcdsConfigDump": "ecds_filters",
    }
    dump = {"configs": [_dumped(part, **{fields.get(part, ""): odd})]}
    keys = ("workloads", "services", "policies", "certificates", "workloadState")
    ztunnel = {**dict.fromkeys(keys, odd), part: odd}
    facts = Facts(_Answers({PODS: {"items": odd}, DUMP: dump, ZTUNNEL_DUMP: ztunnel}))
    for table in MINE:
        assert list(facts[table].columns) == list(TABLES[table].columns)
        assert len(facts[table]) <= 4
