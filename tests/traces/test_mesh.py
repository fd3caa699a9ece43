"""What a name, an address or a policy means: Istio's rules, on recordings and altered ones."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from meshnb.tables import TABLES, Facts
from meshnb.traces import TRACES, Trace
from meshnb.traces.mesh import (
    MESH,
    ConfigObject,
    Look,
    Mesh,
    Pod,
    host_matches,
    hosts_overlap,
    oldest,
    plain,
)
from tests.alteration import Altered

Recorded = Callable[[str], Facts]

#: Moments before the one at which ``healthy`` was recorded, the older one first.
OLDER, NEWER = "2026-11-23T02:40:00Z", "2026-11-23T02:41:00Z"
RATINGS = {"matchLabels": {"app": "ratings"}}


@pytest.fixture(scope="session")
def mesh(recorded: Recorded) -> Mesh:
    """Return the mesh of the recording ``healthy``."""
    return made(recorded("healthy"))


def made(facts: Facts) -> Mesh:
    """Return the mesh of a source."""
    mesh = MESH.make(facts)
    assert isinstance(mesh, Mesh)
    return mesh


def pod_of(mesh: Mesh, workload: str) -> Pod:
    """Return the one pod of a workload."""
    (pod,) = (pod for pod in mesh.pods if pod.workload == workload)
    return pod


def with_policies(folder: Path, *policies: tuple[str, str, str, Mapping[str, Any]]) -> Mesh:
    """Return ``healthy`` with policies: namespace, name, when it was made, and specification."""
    altered = Altered("healthy", folder)
    for namespace, name, created, spec in policies:
        altered.add(
            "peerauthentications",
            name,
            namespace,
            created,
            apiVersion="security.istio.io/v1",
            kind="PeerAuthentication",
            spec=spec,
        )
    return made(altered.facts())


# --- Names --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "full"),
    [
        ("ratings", "ratings.bookinfo.svc.cluster.local"),
        ("ratings.bookinfo", "ratings.bookinfo"),
        ("ratings.bookinfo.svc", "ratings.bookinfo.svc"),
        ("ratings.bookinfo.svc.cluster.local", "ratings.bookinfo.svc.cluster.local"),
        ("example.com", "example.com"),
        ("*.example.com", "*.example.com"),
        ("*", "*"),
        ("", ""),
        ("10.0.0.1", "10.0.0.1"),
        ("fd00::1", "fd00::1"),
    ],
)
def test_only_a_name_without_a_dot_is_completed(mesh: Mesh, host: str, full: str) -> None:
    assert mesh.fqdn(host, "bookinfo") == full


def test_a_name_is_completed_with_the_namespace_of_the_object_that_has_it(mesh: Mesh) -> None:
    assert mesh.known_host(mesh.fqdn("ratings", "bookinfo"))
    assert not mesh.known_host(mesh.fqdn("ratings", "legacy"))
    assert not mesh.known_host("ratings")


@pytest.mark.parametrize(
    ("pattern", "host", "covered"),
    [
        ("a.com", "a.com", True),
        ("a.com", "b.a.com", False),
        ("*", "a.com", True),
        ("*", "*.a.com", True),
        ("*.a.com", "b.a.com", True),
        ("*.a.com", "c.b.a.com", True),
        ("*.a.com", "a.com", False),
        ("*.a.com", ".a.com", False),
        ("*.a.com", "ba.com", False),
        ("*.com", "*.a.com", True),
        ("*.a.com", "*.com", False),
        ("*.a.com", "*.a.com", True),
        ("b.a.com", "*.a.com", False),
    ],
)
def test_a_wildcard_covers_what_ends_so(pattern: str, host: str, covered: bool) -> None:
    assert host_matches(pattern, host) is covered


@pytest.mark.parametrize(
    ("one", "other", "common"),
    [
        ("a.com", "a.com", True),
        ("a.com", "b.com", False),
        ("*", "*", True),
        ("*", "a.com", True),
        ("*", "*.a.com", True),
        ("*.a.com", "b.a.com", True),
        ("*.a.com", "a.com", False),
        ("*.com", "*.a.com", True),
        ("*.a.com", "*.b.com", False),
        ("*.a.com", "*.ba.com", False),
    ],
)
def test_hosts_overlap_when_some_name_fits_both(one: str, other: str, common: bool) -> None:
    assert hosts_overlap(one, other) is common
    assert hosts_overlap(other, one) is common


def test_a_service_entry_makes_its_hosts_known_wildcards_included(tmp_path: Path) -> None:
    altered = Altered("healthy", tmp_path).add(
        "serviceentries",
        "elsewhere",
        "bookinfo",
        NEWER,
        apiVersion="networking.istio.io/v1",
        kind="ServiceEntry",
        spec={"hosts": ["api.example.org", "*.example.net"]},
    )
    mesh = made(altered.facts())
    assert mesh.known_host("api.example.org")
    assert mesh.known_host("a.b.example.net")
    assert not mesh.known_host("example.net")
    assert not mesh.known_host("b.example.org")
    assert {"*.example.net", "ratings.bookinfo.svc.cluster.local"} <= mesh.hosts


# --- Objects ------------------------------------------------------------------------------------


def test_gateways_of_the_two_apis_are_told_apart(mesh: Mesh, recorded: Recorded) -> None:
    api = "gateway.networking.k8s.io"
    assert [str(item) for item in mesh.of("Gateway")] == ["Gateway bookinfo/bookinfo-gateway"]
    assert list(mesh.of("Gateway", api)) == []
    market = made(recorded("market-healthy"))
    assert [item.name for item in market.of("Gateway", api)] == ["market-gw"]
    assert list(market.of("Gateway")) == []


def test_an_object_points_at_its_row(mesh: Mesh, recorded: Recorded) -> None:
    config = recorded("healthy")["istio_config"]
    for item in mesh.objects:
        row = config.loc[item.index]
        assert (row["kind"], row["namespace"], row["name"]) == (
            item.kind,
            item.namespace,
            item.name,
        )
        assert row["spec"] == item.spec


def test_the_oldest_object_comes_first_then_the_name_decides(mesh: Mesh) -> None:
    def item(name: str, namespace: str, created: str) -> ConfigObject:
        moment = pd.Timestamp(created)
        return ConfigObject("K", "g", namespace, name, moment, moment, {}, {}, {}, 0)

    objects = [item("a", "x", NEWER), item("b", "y", OLDER), item("a", "y", OLDER)]
    objects.append(item("z", "x", OLDER))
    assert [str(one) for one in oldest(objects)] == ["K x/z", "K y/a", "K y/b", "K x/a"]


def test_a_value_is_plain_when_it_is_not_pandas_absence() -> None:
    assert plain(pd.NA) is None
    assert plain(pd.NaT) is None
    assert plain(float("nan")) is None
    assert plain(None) is None
    assert plain({}) == {}
    assert plain(()) == ()
    assert plain(0) == 0
    assert plain("") == ""


# --- Root namespace -----------------------------------------------------------------------------


def test_the_root_namespace_is_a_setting_of_the_mesh(mesh: Mesh, tmp_path: Path) -> None:
    def elsewhere(page: dict[str, Any]) -> None:
        page["rootNamespace"] = "legacy"

    altered = Altered("healthy", tmp_path).pages(elsewhere, path="/debug/mesh").facts()
    other = made(altered)
    assert mesh.root_namespace == mesh.settings["rootNamespace"] == "istio-system"
    assert other.root_namespace == "legacy"
    assert other.control_plane_namespaces == mesh.control_plane_namespaces == {"istio-system"}


def test_without_the_setting_the_root_namespace_is_where_istiod_runs(tmp_path: Path) -> None:
    altered = Altered("healthy", tmp_path).forget(path="/debug/mesh").forget(resource="configmaps")
    mesh = made(altered.facts())
    assert mesh.settings == {}
    assert mesh.root_namespace == "istio-system"


def test_without_an_istiod_the_webhook_says_where_it_should_run(recorded: Recorded) -> None:
    mesh = made(recorded("istiod-down"))
    assert not any(pod.mesh == "istiod" for pod in mesh.pods)
    assert mesh.control_plane_namespaces == {"istio-system"}


# --- Addresses ----------------------------------------------------------------------------------


def test_a_service_is_found_by_its_address_and_port(mesh: Mesh) -> None:
    found = mesh.service_at("10.96.66.128", 9080)
    assert found is not None
    assert (found.namespace, found.service) == ("bookinfo", "productpage")
    assert mesh.service_at("10.96.66.128", 9081) is None
    assert mesh.service_at("10.244.0.5", 9080) is None


def test_no_address_is_no_service(tmp_path: Path) -> None:
    """A Service that stands for a DNS name has neither an address nor, perhaps, a port."""
    alias = {"type": "ExternalName", "externalName": "example.org"}
    altered = Altered("healthy", tmp_path).add("services", "alias", "legacy", NEWER, spec=alias)
    mesh = made(altered.facts())
    assert [port.external_name for port in mesh.ports("alias.legacy.svc.cluster.local")] == [
        "example.org"
    ]
    assert mesh.service_at("", None) is None


def test_every_port_of_a_service_has_the_same_host(mesh: Mesh) -> None:
    ports = mesh.ports("istiod.istio-system.svc.cluster.local")
    assert [service.port for service in ports] == [15010, 15012, 443, 15014]
    assert mesh.ports("nobody.istio-system.svc.cluster.local") == ()


def test_every_ready_endpoint_of_a_service_is_the_address_of_a_pod_it_selects(
    mesh: Mesh, recorded: Recorded
) -> None:
    endpoints = recorded("healthy")["service_endpoints"]
    for service in mesh.services:
        own = endpoints[
            (endpoints["namespace"] == service.namespace)
            & (endpoints["service"] == service.service)
        ]
        selected = mesh.selected(service)
        assert bool(selected) == bool(service.selector)
        if selected:
            assert {pod.address for pod in selected} == set(own["address"])
            assert all(mesh.pod_at(pod.address) is pod for pod in selected)


def test_a_finished_pod_has_given_its_address_back(recorded: Recorded, tmp_path: Path) -> None:
    mesh = made(recorded("healthy-loaded"))
    (finished,) = (pod for pod in mesh.pods if pod.phase == "Succeeded")
    assert finished.address
    assert mesh.pod_at(finished.address) is None
    assert finished not in mesh.matching({}, finished.namespace)

    def reused(pod: dict[str, Any]) -> None:
        pod["status"]["podIP"] = "10.244.0.10"
        pod["status"]["podIPs"] = [{"ip": "10.244.0.10"}]

    altered = Altered("healthy-loaded", tmp_path).each("pods", "import-", reused)
    client = made(altered.facts()).pod_at("10.244.0.10")
    assert client is not None
    assert client.pod == "client"


def test_the_address_of_a_node_is_no_pods(mesh: Mesh, tmp_path: Path) -> None:
    address = pod_of(mesh, "ratings-v1").address

    def on_the_node(pod: dict[str, Any]) -> None:
        pod["spec"]["hostNetwork"] = True

    altered = made(Altered("healthy", tmp_path).each("pods", "ratings-", on_the_node).facts())
    assert mesh.pod_at(address) is not None
    assert altered.pod_at(address) is None
    assert pod_of(altered, "ratings-v1").running


def test_a_pod_that_is_being_deleted_is_not_counted_on(mesh: Mesh, tmp_path: Path) -> None:
    def leave(pod: dict[str, Any]) -> None:
        pod["metadata"]["deletionTimestamp"] = NEWER

    altered = made(Altered("healthy", tmp_path).each("pods", "ratings-", leave).facts())
    (service,) = altered.ports("ratings.bookinfo.svc.cluster.local")
    assert altered.selected(service) == []
    assert altered.pod_at(pod_of(mesh, "ratings-v1").address) is None


def test_an_identity_is_the_service_account_that_the_proxy_was_given(
    mesh: Mesh, recorded: Recorded
) -> None:
    """Its certificate says so."""
    certificates = recorded("healthy")["certificates"]
    own = certificates[certificates["resource_name"] == "default"]
    identities = dict(zip(own["proxy"], own["sans"], strict=True))
    proxied = [pod for pod in mesh.pods if pod.proxy]
    assert {pod.proxy for pod in proxied} == identities.keys()
    for pod in proxied:
        assert identities[pod.proxy] == (f"spiffe://cluster.local/{pod.identity}",)
        assert pod.in_mesh
    assert not any(pod.in_mesh for pod in mesh.pods if pod.namespace in ("legacy", "outside"))


def test_ambient_pods_are_in_the_mesh_without_a_proxy_of_their_own(recorded: Recorded) -> None:
    mesh = made(recorded("garden-healthy"))
    ambient = [pod for pod in mesh.pods if pod.namespace == "garden"]
    assert len(ambient) == 4
    assert all(pod.in_mesh and not pod.proxy for pod in ambient)


# --- Selection ----------------------------------------------------------------------------------


def chosen(mesh: Mesh, spec: Mapping[str, Any], namespace: str) -> set[str]:
    """Return the workloads of the pods that an object with this specification selects."""
    moment = pd.Timestamp(NEWER)
    item = ConfigObject("Any", "istio.io", namespace, "x", moment, moment, {}, {}, spec, 0)
    return {pod.workload for pod in mesh.workload_selected(item)}


def test_a_policy_selects_by_labels_in_its_own_namespace(recorded: Recorded) -> None:
    mesh = made(recorded("authz-allow-nobody"))
    (policy,) = mesh.of("AuthorizationPolicy")
    assert [pod.workload for pod in mesh.workload_selected(policy)] == ["details-v1"]
    assert chosen(mesh, policy.spec, "legacy") == set()


def test_a_policy_without_a_selector_is_for_its_whole_namespace(recorded: Recorded) -> None:
    mesh = made(recorded("mtls-strict-legacy-client"))
    (policy,) = mesh.of("PeerAuthentication")
    selected = mesh.workload_selected(policy)
    assert selected == [pod for pod in mesh.pods if pod.namespace == "bookinfo"]
    assert len(selected) == 6
    assert chosen(mesh, {"selector": {}}, "legacy") == {"legacy-client"}


def test_in_the_root_namespace_it_is_for_the_whole_mesh(mesh: Mesh) -> None:
    assert chosen(mesh, {}, "istio-system") == {pod.workload for pod in mesh.pods}
    assert chosen(mesh, {"selector": RATINGS}, "istio-system") == {"ratings-v1"}


def test_filters_and_sidecars_name_their_selector_otherwise(mesh: Mesh) -> None:
    by_version = {"workloadSelector": {"labels": {"app": "reviews", "version": "v2"}}}
    assert chosen(mesh, by_version, "bookinfo") == {"reviews-v2"}


def test_a_target_is_a_gateway_or_the_pods_of_a_service(mesh: Mesh, recorded: Recorded) -> None:
    market = made(recorded("market-healthy"))
    gateway = {"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "market-gw"}
    service = {"group": "", "kind": "Service", "name": "reviews"}
    assert chosen(market, {"targetRef": gateway}, "market") == {"market-gw-istio"}
    assert chosen(market, {"targetRefs": [gateway]}, "depot") == set()
    assert chosen(mesh, {"targetRef": service}, "bookinfo") == {"reviews-v1", "reviews-v2"}
    assert chosen(mesh, {"targetRefs": [service, {**service, "name": "ratings"}]}, "bookinfo") == {
        "reviews-v1",
        "reviews-v2",
        "ratings-v1",
    }


@pytest.mark.parametrize("target", [{"kind": "Service", "name": "nobody"}, {"name": 3}, "text", {}])
def test_a_target_that_is_not_there_selects_nothing(mesh: Mesh, target: Any) -> None:
    """It does not fall back on the whole namespace."""
    assert chosen(mesh, {"targetRefs": [target]}, "bookinfo") == set()


@pytest.mark.parametrize(
    "spec",
    [
        {"selector": "text"},
        {"selector": {"matchLabels": ["app"]}},
        {"targetRef": "text"},
        {"targetRefs": {"kind": "Service"}},
    ],
)
def test_a_selector_of_another_shape_is_none(mesh: Mesh, spec: Mapping[str, Any]) -> None:
    assert chosen(mesh, spec, "legacy") == {"legacy-client"}


# --- Mutual TLS ---------------------------------------------------------------------------------

STRICT = {"mtls": {"mode": "STRICT"}}
PERMISSIVE = {"mtls": {"mode": "PERMISSIVE"}}
DISABLE = {"mtls": {"mode": "DISABLE"}}
UNSET = {"mtls": {"mode": "UNSET"}}
LEVEL = {"portLevelMtls": {"9080": {"mode": "DISABLE"}}}


@pytest.mark.parametrize(
    ("policies", "mode", "author"),
    [
        pytest.param([], "PERMISSIVE", "", id="nobody says anything"),
        pytest.param([("istio-system", "m", NEWER, STRICT)], "STRICT", "m", id="the mesh"),
        pytest.param([("legacy", "n", NEWER, STRICT)], "PERMISSIVE", "", id="elsewhere"),
        pytest.param(
            [("istio-system", "m", OLDER, STRICT), ("bookinfo", "n", NEWER, PERMISSIVE)],
            "PERMISSIVE",
            "n",
            id="the namespace before the mesh",
        ),
        pytest.param(
            [
                ("bookinfo", "n", OLDER, STRICT),
                ("bookinfo", "w", NEWER, DISABLE | {"selector": RATINGS}),
            ],
            "DISABLE",
            "w",
            id="the workload before the namespace",
        ),
        pytest.param(
            [
                ("bookinfo", "n", OLDER, STRICT),
                (
                    "bookinfo",
                    "w",
                    NEWER,
                    DISABLE | {"selector": {"matchLabels": {"app": "details"}}},
                ),
            ],
            "STRICT",
            "n",
            id="another workload",
        ),
        pytest.param(
            [("bookinfo", "n", NEWER, STRICT | {"selector": {"matchLabels": {}}})],
            "STRICT",
            "n",
            id="a selector without labels is none",
        ),
        pytest.param(
            [
                ("istio-system", "m", NEWER, STRICT),
                ("bookinfo", "n", NEWER, UNSET),
                ("bookinfo", "w", NEWER, {"selector": RATINGS}),
            ],
            "STRICT",
            "m",
            id="unset and absent inherit",
        ),
        pytest.param(
            [("bookinfo", "b", OLDER, STRICT), ("bookinfo", "a", NEWER, DISABLE)],
            "STRICT",
            "b",
            id="the oldest of a namespace",
        ),
        pytest.param(
            [("bookinfo", "b", OLDER, UNSET), ("bookinfo", "a", NEWER, STRICT)],
            "PERMISSIVE",
            "",
            id="the oldest even when it is unset",
        ),
        pytest.param(
            [("bookinfo", "w", NEWER, STRICT | LEVEL | {"selector": RATINGS})],
            "DISABLE",
            "w",
            id="a port of the workload",
        ),
        pytest.param(
            [
                (
                    "bookinfo",
                    "w",
                    NEWER,
                    STRICT | {"selector": RATINGS, "portLevelMtls": {"9081": {"mode": "DISABLE"}}},
                )
            ],
            "STRICT",
            "w",
            id="another port of the workload",
        ),
        pytest.param(
            [
                ("bookinfo", "n", OLDER, STRICT),
                (
                    "bookinfo",
                    "w",
                    NEWER,
                    {"selector": RATINGS, "portLevelMtls": {"9080": {"mode": "UNSET"}}},
                ),
            ],
            "STRICT",
            "n",
            id="an unset port inherits",
        ),
        pytest.param(
            [("bookinfo", "n", NEWER, STRICT | LEVEL)],
            "STRICT",
            "n",
            id="ports need a selector",
        ),
        pytest.param(
            [("istio-system", "m", NEWER, STRICT | {"selector": RATINGS})],
            "PERMISSIVE",
            "",
            id="a selector has no effect in the root namespace",
        ),
        pytest.param(
            [("bookinfo", "n", NEWER, {"mtls": {"mode": "WHATEVER"}})],
            "PERMISSIVE",
            "",
            id="a mode that does not exist",
        ),
        pytest.param(
            [("bookinfo", "n", NEWER, {"mtls": "STRICT", "portLevelMtls": ["9080"]})],
            "PERMISSIVE",
            "",
            id="another shape",
        ),
    ],
)
def test_the_most_specific_policy_sets_the_mode(
    tmp_path: Path,
    policies: list[tuple[str, str, str, Mapping[str, Any]]],
    mode: str,
    author: str,
) -> None:
    mesh = with_policies(tmp_path, *policies)
    found, policy = mesh.mtls_mode(pod_of(mesh, "ratings-v1"), 9080)
    assert found == mode
    assert (policy.name if policy is not None else "") == author


def test_not_even_a_pod_of_the_root_namespace_is_selected_there(tmp_path: Path) -> None:
    gateway = {"matchLabels": {"istio": "ingressgateway"}}
    mesh = with_policies(tmp_path, ("istio-system", "m", NEWER, STRICT | {"selector": gateway}))
    assert mesh.mtls_mode(pod_of(mesh, "istio-ingressgateway"), 8080) == ("PERMISSIVE", None)


@pytest.mark.parametrize(
    ("recording", "mode"), [("healthy", "PERMISSIVE"), ("mtls-strict-legacy-client", "STRICT")]
)
def test_the_mode_is_the_one_that_the_proxies_enforce(
    recorded: Recorded, recording: str, mode: str
) -> None:
    """With STRICT a proxy has no filter chain for plain text on the port of its application."""
    facts = recorded(recording)
    mesh = made(facts)
    listeners = facts["listeners"]
    inbound = listeners[(listeners["destination_port"] == 9080) & (listeners["state"] == "active")]
    servers = inbound["proxy"].unique()
    assert len(servers) == 5
    for pod in (pod for pod in mesh.pods if pod.proxy in servers):
        takes_plain_text = (inbound.loc[inbound["proxy"] == pod.proxy, "tls"] == "none").any()
        assert mesh.mtls_mode(pod, 9080)[0] == mode
        assert takes_plain_text == (mode != "STRICT")


def test_istioctl_describes_the_same_mode(mesh: Mesh, shared: Path) -> None:
    with zipfile.ZipFile(shared / "golden" / "healthy.zip") as golden:
        described = [name for name in golden.namelist() if name.startswith("describe/bookinfo.")]
        assert len(described) == 6
        for name in described:
            title = name.removeprefix("describe/bookinfo.").removesuffix(".txt")
            (pod,) = (pod for pod in mesh.pods if pod.pod == title)
            said = golden.read(name).decode().partition("Workload mTLS mode: ")[2].split()[0]
            assert mesh.mtls_mode(pod, 9080) == (said, None)


# --- The trace itself ---------------------------------------------------------------------------


class _Watched(Facts):
    """Facts that note which tables they are asked for from outside."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.asked: set[str] = set()
        self.depth = 0

    def __getitem__(self, name: str) -> pd.DataFrame:
        if not self.depth:
            self.asked.add(name)
        self.depth += 1
        try:
            return super().__getitem__(name)
        finally:
            self.depth -= 1


@pytest.mark.parametrize("trace", TRACES.values(), ids=list(TRACES))
def test_a_trace_names_the_tables_that_it_reads(trace: Trace, recorded: Recorded) -> None:
    """What is missing of a table it did not name would not be told to the checks."""
    facts = _Watched(recorded("istiod-down").source)
    trace.make(facts)
    assert facts.asked
    assert facts.asked <= set(trace.reads) <= TABLES.keys()


def test_without_any_evidence_the_mesh_is_empty_and_asks_nothing_of_its_shape(
    tmp_path: Path,
) -> None:
    altered = Altered("healthy", tmp_path)
    for resource in ("pods", "services", "namespaces", "virtualservices", "gateways"):
        altered.texts(
            lambda _: '{"items": [null, 3, {}, {"metadata": 5, "spec": []}]}', resource=resource
        )
    mesh = made(altered.forget(kind="http").facts())
    assert mesh.pod_at("10.244.0.10") is None
    assert mesh.ports("ratings.bookinfo.svc.cluster.local") == ()
    assert not mesh.known_host("ratings.bookinfo.svc.cluster.local")


def test_it_notes_what_was_looked_at_and_no_more(recorded: Recorded) -> None:
    """Of what is found in one place, nothing is missing elsewhere."""
    mesh = made(recorded("healthy"))
    mesh.looks.clear()
    assert list(mesh.of("Sidecar")) == []
    assert mesh.ports("ratings.bookinfo.svc.cluster.local")
    assert mesh.known_host("ratings.bookinfo.svc.cluster.local")
    assert mesh.looks == {Look("istio_config", "Sidecar", "istio.io")}

    assert not mesh.known_host("nowhere.example")
    assert mesh.looks >= {Look("services"), Look("istio_config", "ServiceEntry", "istio.io")}
    assert mesh.pod_of("nobody.bookinfo") is None
    assert Look("pods") in mesh.looks
    assert mesh.root_namespace == "istio-system"
    assert Look("mesh_settings") in mesh.looks
    assert Look("webhooks") not in mesh.looks
