"""What acts on a pod or a Service: what istioctl names, and what it does not see.

Differences from istioctl 1.30.3 that are deliberate:

- It calls pods in ambient mode "not part of mesh; no Istio sidecar" and then fails; they are.
- It warns that a gateway's pod runs as user 1337, although the proxy is all that runs there.
- It says a mutual TLS mode for gateways and ztunnel, whose servers no PeerAuthentication touches.
- It names neither Gateways nor routes of the Gateway API, nor policies but PeerAuthentication.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from meshnb.errors import UsageError
from meshnb.tables import Facts
from meshnb.traces.describe import ACTING_OBJECTS, acting_objects, describe_pod, describe_service
from meshnb.traces.describe.base import PodDescription, RoutesOf, RuleFor, ServiceDescription
from meshnb.traces.mesh import MESH, Mesh
from tests.alteration import Altered
from tests.conftest import SHARED, facts_of, recording_names

Recorded = Callable[[str], Facts]
TIME = "2026-11-23T02:41:00Z"


@cache
def mesh_of(name: str) -> Mesh:
    """Return the mesh of a recording, made once."""
    mesh = MESH.make(facts_of(name))
    assert isinstance(mesh, Mesh)
    return mesh


def described(name: str, workload: str) -> PodDescription:
    """Return the description of the first pod of a recording whose name begins so."""
    pod = next(pod for pod in mesh_of(name).pods if pod.pod.startswith(workload))
    return describe_pod(facts_of(name), mesh_of(name), pod.namespace, pod.pod)


def altered(recording: Altered, workload: str) -> PodDescription:
    """Return the description of the first pod of an altered recording whose name begins so."""
    facts = recording.facts()
    mesh = MESH.make(facts)
    pod = next(pod for pod in mesh.pods if pod.pod.startswith(workload))
    return describe_pod(facts, mesh, pod.namespace, pod.pod)


def serviced(name: str, namespace: str, service: str) -> ServiceDescription:
    """Return the description of a Service of a recording."""
    return describe_service(facts_of(name), mesh_of(name), namespace, service)


def said(description: PodDescription | ServiceDescription) -> dict[str, tuple[bool, str]]:
    """Return whether each object acts, and why."""
    return {str(one.item): (one.acts, one.why) for one in description.objects}


# --- What istioctl printed ----------------------------------------------------------------------


def printed() -> Iterator[Any]:
    """Yield each description that istioctl printed: recording, namespace, pod and text."""
    for path in sorted((SHARED / "golden").glob("*.zip")):
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                found = re.fullmatch(r"describe/([^.]+)\.(.+)\.txt", name)
                if found:
                    text = archive.read(name).decode()
                    title = f"{path.stem}-{found[2]}"
                    yield pytest.param(path.stem, found[1], found[2], text, id=title)


PRINTED = list(printed()) or [pytest.param("", "", "", "", marks=pytest.mark.skip)]
every_page = pytest.mark.parametrize(("recording", "namespace", "pod", "text"), PRINTED)


def pod_description(recording: str, namespace: str, pod: str) -> PodDescription:
    """Return the description of a pod of a recording."""
    return describe_pod(facts_of(recording), mesh_of(recording), namespace, pod)


@every_page
def test_every_object_that_istioctl_names_acts(
    recording: str, namespace: str, pod: str, text: str
) -> None:
    ours = pod_description(recording, namespace, pod)
    acting = {(one.item.kind, f"{one.item.name}.{one.item.namespace}") for one in ours.acting}
    named = {
        (kind, name)
        for kind in ("DestinationRule", "VirtualService")
        for name in re.findall(rf"^{kind}: (\S+)", text, re.MULTILINE)
    }
    applied = text.partition("Applied PeerAuthentication:\n")[2]
    named |= {("PeerAuthentication", n) for n in re.findall(r"^   (\S+)$", applied, re.MULTILINE)}
    assert named <= acting


@every_page
def test_routes_and_subsets_lead_where_istioctl_says(
    recording: str, namespace: str, pod: str, text: str
) -> None:
    ours = pod_description(recording, namespace, pod)
    rules = [one for one in ours.acting if isinstance(one, RuleFor)]
    matching = re.findall(r"Matching subsets: (.*)", text)
    assert [",".join(rule.matching_subsets) for rule in rules if rule.matching_subsets] == matching
    others = re.findall(r"Non-matching subsets (.*)\)", text)
    assert [",".join(rule.other_subsets) for rule in rules if rule.other_subsets] == others
    modes = re.findall(r"Traffic Policy TLS Mode: (\S+)", text)
    assert [m for rule in rules for m in rule.traffic_policy] == [f"TLS mode {m}" for m in modes]
    shares = {
        (host, subset, int(weight))
        for host, subset, weight in re.findall(
            r'Route to host "(\S+)" subset "(\S+)" with weight (\d+)%', text
        )
    }
    found = {
        (route.host.partition(".")[0], route.subset, route.weight)
        for one in ours.acting
        if isinstance(one, RoutesOf) and one.item.kind == "VirtualService"
        for route in one.routes
        if route.reaches and route.weight is not None
    }
    assert found == shares


@every_page
def test_services_and_their_ports_are_those_that_istioctl_lists(
    recording: str, namespace: str, pod: str, text: str
) -> None:
    """A port whose protocol Istio has to find out is UnsupportedProtocol to istioctl."""
    ours = pod_description(recording, namespace, pod)
    services = re.findall(r"^Service: (\S+)", text, re.MULTILINE)
    # In a pod that it thinks outside of the mesh istioctl looks no further.
    if services:
        assert [f"{s.service}.{s.namespace}" for s in ours.services] == services
    if "No Kubernetes Services select pod" in text:
        assert ours.services == () or not ours.pod.running
    lines = re.findall(r"^   Port: (\S+) (\d+)/(\S+) targets pod port (\d+)", text, re.MULTILINE)
    if lines:
        assert [
            (
                port.name,
                str(port.port),
                "UnsupportedProtocol" if port.protocol == "auto" else port.protocol.upper(),
                str(port.pod_port),
            )
            for service in ours.services
            for port in service.ports
        ] == lines


@every_page
def test_the_pod_itself_is_as_istioctl_says(
    recording: str, namespace: str, pod: str, text: str
) -> None:
    ours = pod_description(recording, namespace, pod)
    assert f"Pod Revision: {ours.injection.revision}\n" in text
    listed = ", ".join(f"{port} ({container})" for port, container in ours.ports)
    assert (f"Pod Ports: {listed}\n" if listed else "Pod does not expose ports\n") in text
    outside = "is not part of mesh" in text
    assert ours.injection.injected == (ours.pod.mesh in ("sidecar", "gateway", "waypoint"))
    assert outside == (ours.pod.running and ours.pod.mesh in ("none", "ambient"))
    assert ("Pod is not Running" in text) == (ours.pod.phase != "Running")
    assert ours.as_proxy_user == ()
    assert ("(UID) 1337" not in text) or ours.pod.mesh == "gateway"


@every_page
def test_the_mode_of_mutual_tls_is_the_one_that_istioctl_found(
    recording: str, namespace: str, pod: str, text: str
) -> None:
    ours = pod_description(recording, namespace, pod)
    modes = {secured.mode for secured in ours.secured}
    mode = re.findall(r"Workload mTLS mode: (\S+)", text)
    if ours.pod.mesh == "sidecar":
        assert sorted(modes) == mode
    elif ours.pod.mesh != "ambient":
        assert modes == set()


# --- What istioctl does not say -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("recording", "workload", "title", "acts", "why"),
    [
        (
            "duplicate-virtualservice",
            "details",
            "VirtualService bookinfo/details-canary",
            False,
            "the older VirtualService bookinfo/details decides for details.bookinfo",
        ),
        (
            "gateway-name-wrong",
            "productpage",
            "VirtualService bookinfo/bookinfo",
            False,
            "Gateway bookinfo/bookinfo-gw does not exist",
        ),
        (
            "gateway-selector-wrong",
            "productpage",
            "Gateway bookinfo/bookinfo-gateway",
            False,
            "Gateway bookinfo/bookinfo-gateway selects no pod",
        ),
        (
            "gateway-selector-wrong",
            "istio-ingressgateway",
            "Gateway bookinfo/bookinfo-gateway",
            False,
            "selects istio=ingress, which the pod is not labelled",
        ),
        (
            "gateway-hosts-disjoint",
            "productpage",
            "VirtualService bookinfo/bookinfo",
            False,
            "Gateway bookinfo/bookinfo-gateway has no server for its hosts",
        ),
        (
            "route-shadowed",
            "reviews-v2",
            "VirtualService bookinfo/reviews",
            True,
            "leads nobody here: subset v1 has other pods; it is never taken: spec.http[0] above",
        ),
        (
            "subset-missing",
            "reviews-v1",
            "VirtualService bookinfo/reviews",
            True,
            "leads nobody here: subset v3 is not defined by any DestinationRule",
        ),
        (
            "sidecar-hides-host",
            "client",
            "Sidecar bookinfo/default",
            True,
            "it narrows what the pod's proxy is sent",
        ),
        (
            "rate-limited",
            "ratings",
            "EnvoyFilter bookinfo/details-ratelimit",
            False,
            "selects app=details, which the pod is not labelled",
        ),
        ("rate-limited", "details", "EnvoyFilter bookinfo/details-ratelimit", True, "app=details"),
        (
            "ztunnel-deny",
            "seeds",
            "AuthorizationPolicy garden/seeds-callers",
            True,
            "selects app=seeds; ALLOW with 1 rule",
        ),
        (
            "httproute-parent-wrong",
            "stall",
            "HTTPRoute market/stall",
            False,
            "Gateway market/market-gateway does not exist",
        ),
        (
            "backend-not-permitted",
            "stock",
            "HTTPRoute market/stall",
            False,
            "ResolvedRefs is False, RefNotPermitted",
        ),
        (
            "backend-not-permitted",
            "market-gw",
            "HTTPRoute market/stall",
            True,
            "the pod carries its routes, but RefNotPermitted",
        ),
        (
            "market-healthy",
            "stall",
            "Gateway market/market-gw",
            True,
            "exposes it through HTTPRoute market/stall",
        ),
    ],
)
def test_a_fault_is_the_reason_why_an_object_does_not_act(
    recording: str, workload: str, title: str, acts: bool, why: str
) -> None:
    found = said(described(recording, workload))[title]
    assert found[0] is acts
    assert why in found[1]


@pytest.mark.parametrize(
    ("scope", "acts", "why"),
    [
        (["*"], True, "in force at Gateway bookinfo/bookinfo-gateway"),
        (["."], False, "exportTo hides it from the pods of Gateway bookinfo/bookinfo-gateway"),
        (["istio-system"], True, "in force at Gateway bookinfo/bookinfo-gateway"),
    ],
)
def test_a_gateway_takes_only_routes_that_its_namespace_sees(
    scope: list[str], acts: bool, why: str, tmp_path: Path
) -> None:
    def hide(service: dict[str, Any]) -> None:
        service["spec"]["exportTo"] = scope

    recording = Altered("healthy", tmp_path).each("virtualservices", "bookinfo", hide)
    found = said(altered(recording, "productpage"))["VirtualService bookinfo/bookinfo"]
    assert found[0] is acts
    assert why in found[1]


def test_of_the_telemetry_of_one_level_only_the_oldest_acts(tmp_path: Path) -> None:
    recording = Altered("healthy", tmp_path)
    group = {"apiVersion": "telemetry.istio.io/v1", "kind": "Telemetry"}
    for name, created in (("newer", "2026-11-23T02:42:00Z"), ("older", TIME)):
        recording.add("telemetries", name, "bookinfo", created, **group, spec={})
    selector = {"selector": {"matchLabels": {"app": "ratings"}}}
    recording.add("telemetries", "own", "bookinfo", TIME, **group, spec=selector)
    recording.add("telemetries", "mesh", "istio-system", TIME, **group, spec={})
    found = said(altered(recording, "ratings"))
    assert {
        title.partition("/")[2]: acts for title, (acts, _) in found.items() if "Tele" in title
    } == {
        "newer": False,
        "older": True,
        "own": True,
        "mesh": True,
    }
    assert (
        found["Telemetry bookinfo/newer"][1] == "only the oldest counts: Telemetry bookinfo/older"
    )


def test_a_port_of_its_own_mode_is_told_apart(tmp_path: Path) -> None:
    spec = {
        "selector": {"matchLabels": {"app": "ratings"}},
        "mtls": {"mode": "STRICT"},
        "portLevelMtls": {"9080": {"mode": "DISABLE"}},
    }
    api = {"apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication"}
    recording = Altered("healthy", tmp_path).add(
        "peerauthentications", "ratings", "bookinfo", TIME, **api, spec=spec
    )
    ours = altered(recording, "ratings")
    assert {secured.port: secured.mode for secured in ours.secured} == {
        None: "STRICT",
        9080: "DISABLE",
    }
    why = "sets mutual TLS: STRICT on all other ports, DISABLE on 9080"
    assert said(ours)["PeerAuthentication bookinfo/ratings"] == (True, why)
    other = said(altered(recording, "details"))["PeerAuthentication bookinfo/ratings"]
    assert other == (False, "selects app=ratings, which the pod is not labelled")


def test_nothing_acts_on_a_pod_that_has_ended() -> None:
    ours = described("healthy-loaded", "import-")
    assert ours.pod.phase == "Succeeded"
    assert ours.acting == ()


def test_an_application_with_the_user_of_the_proxy_is_around_the_mesh(tmp_path: Path) -> None:
    def escape(pod: dict[str, Any]) -> None:
        pod["spec"]["containers"][0]["securityContext"] = {"runAsUser": 1337}

    ours = altered(Altered("healthy", tmp_path).each("pods", "ratings", escape), "ratings")
    assert ours.as_proxy_user == ("ratings",)


def test_containers_that_are_not_ready_are_named() -> None:
    assert described("app-crash-loop", "details").not_ready == ("details",)
    assert described("healthy", "details").not_ready == ()


def test_a_pod_without_labels_for_telemetry_is_told(tmp_path: Path) -> None:
    def strip(pod: dict[str, Any]) -> None:
        pod["metadata"]["labels"] = {"app": "ratings"}

    ours = altered(Altered("healthy", tmp_path).each("pods", "ratings", strip), "ratings")
    assert ours.missing_labels == ("version",)


def test_ambient_mode_and_the_waypoint_are_named_with_the_label_that_asks() -> None:
    ours = described("garden-healthy", "seeds").injection
    assert ours.ambient_by == "namespace label istio.io/dataplane-mode=ambient"
    assert ours.ztunnel_protocol == "HBONE"
    missing = [
        serviced("waypoint-missing", service.namespace, service.service).waypoint
        for service in mesh_of("waypoint-missing").services
    ]
    wanted = [waypoint for waypoint in missing if waypoint is not None]
    assert wanted
    assert not any(waypoint.exists or waypoint.pods for waypoint in wanted)


# --- Services -----------------------------------------------------------------------------------


def test_of_a_service_all_subsets_and_pods_are_told() -> None:
    ours = serviced("healthy", "bookinfo", "reviews")
    assert [pod.workload for pod in ours.pods] == ["reviews-v1", "reviews-v2"]
    (rule,) = (one for one in ours.acting if isinstance(one, RuleFor))
    assert rule.matching_subsets == ("v1", "v2")
    (routes,) = (one for one in ours.acting if isinstance(one, RoutesOf))
    assert [route.reaches for route in routes.routes] == [True, True, True]


def test_a_service_without_pods_is_described_all_the_same() -> None:
    ours = serviced("service-selector-wrong", "bookinfo", "details")
    assert ours.pods == ()
    assert ours.secured == ()


def test_what_acts_on_some_of_its_pods_only_is_said_so(tmp_path: Path) -> None:
    api = {"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy"}
    spec = {"selector": {"matchLabels": {"version": "v2"}}}
    recording = Altered("healthy", tmp_path).add(
        "authorizationpolicies", "canary", "bookinfo", TIME, **api, spec=spec
    )
    facts = recording.facts()
    found = said(describe_service(facts, MESH.make(facts), "bookinfo", "reviews"))
    acts, why = found["AuthorizationPolicy bookinfo/canary"]
    assert acts
    assert re.search(r"ALLOW with 0 rules \(of its pods only reviews-v2-\S+\)$", why)


# --- The table, and odd evidence ----------------------------------------------------------------


@pytest.mark.parametrize("recording", recording_names())
def test_each_object_stands_once_for_a_pod_with_a_reason(recording: str) -> None:
    frame = acting_objects(facts_of(recording), mesh_of(recording))
    keys = [name for name, column in ACTING_OBJECTS.columns.items() if column.key]
    assert not frame.duplicated(keys).any()
    assert frame["why"].str.len().gt(0).all()
    assert frame["question"].notna().all()


def test_a_pod_or_service_that_is_not_there_is_an_error_that_offers_the_nearest(
    recorded: Recorded,
) -> None:
    facts, mesh = recorded("healthy"), mesh_of("healthy")
    with pytest.raises(UsageError, match=r"no Service review\.bookinfo.*reviews\.bookinfo"):
        describe_service(facts, mesh, "bookinfo", "review")
    with pytest.raises(UsageError, match=r"no pod clint\.bookinfo.*client\.bookinfo"):
        describe_pod(facts, mesh, "bookinfo", "clint")


def test_objects_of_any_shape_are_described(tmp_path: Path) -> None:
    recording = Altered("healthy", tmp_path, delivered=False)
    odd: list[Any] = [{}, {"hosts": 3, "http": [None, {"route": ["x"], "match": "y"}]}]
    odd += [{"selector": [], "targetRefs": [None], "configPatches": {}, "host": {}, "subsets": 1}]
    for number, spec in enumerate(odd):
        for resource, kind in (
            ("virtualservices", "VirtualService"),
            ("destinationrules", "DestinationRule"),
            ("sidecars", "Sidecar"),
            ("telemetries", "Telemetry"),
            ("authorizationpolicies", "AuthorizationPolicy"),
            ("peerauthentications", "PeerAuthentication"),
            ("serviceentries", "ServiceEntry"),
        ):
            recording.add(resource, f"odd-{number}", "bookinfo", TIME, kind=kind, spec=spec)
    facts = recording.facts()
    frame = acting_objects(facts, MESH.make(facts))
    assert frame["object"].str.startswith("odd-").any()
