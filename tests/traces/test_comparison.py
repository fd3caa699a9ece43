"""Proxies that should hold the same: who is the odd one, where, and because of which object."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from meshnb.errors import UsageError
from meshnb.tables import Facts
from meshnb.traces.comparison import (
    Comparison,
    compare_proxies,
    compare_with_istiod,
    compare_with_siblings,
    groups,
    odd_ones_out,
)
from meshnb.traces.mesh import MESH, Mesh
from tests.alteration import Altered
from tests.conftest import facts_of, recording_names, unpacked

Recorded = Callable[[str], Facts]
STALE = "reviews-v2-79bdb4f448-sdvj9"
DUMP = "/config_dump?include_eds"


def both(source: Facts | Altered) -> tuple[Facts, Mesh]:
    """Return the facts of a source and its mesh."""
    facts = source if isinstance(source, Facts) else source.facts()
    mesh = MESH.make(facts)
    assert isinstance(mesh, Mesh)
    return facts, mesh


def leaving(facts: Facts, mesh: Mesh, proxy: str) -> Comparison:
    """Return the comparison of what leaves a sidecar with what leaves the others."""
    (found,) = (c for c in compare_with_siblings(facts, mesh, proxy) if "leaves" in c.scope)
    return found


def held(recording: str, pod: str) -> Path:
    """Return the file with a pod's config dump."""
    for line in (unpacked() / recording / "index.jsonl").read_text().splitlines():
        entry = json.loads(line)
        request = entry["request"]
        if request.get("pod", "").startswith(pod) and request.get("path") == DUMP:
            return unpacked() / recording / str(entry["file"])
    raise AssertionError(pod)


def section(dump: Any, name: str) -> Any:
    """Return a section of a config dump."""
    return next(one for one in dump["configs"] if one["@type"].endswith(f".{name}"))


# --- Siblings -----------------------------------------------------------------------------------


@pytest.mark.parametrize("recording", recording_names())
def test_in_what_should_be_equal_only_a_proxy_without_configuration_differs(recording: str) -> None:
    """All other recorded faults reach every proxy alike, or none."""
    odd = {proxy for one in odd_ones_out(*both(facts_of(recording))) for proxy in one.proxies}
    cut_off = {"ratings-v1-75cf8d9c59-njqg8.bookinfo"}
    assert odd == (cut_off if recording == "bootstrap-wrong-discovery" else set())


def test_a_proxy_without_configuration_lacks_all_that_its_siblings_have(
    recorded: Recorded,
) -> None:
    facts, mesh = both(recorded("bootstrap-wrong-discovery"))
    found = leaving(facts, mesh, "ratings-v1-75cf8d9c59-njqg8.bookinfo")
    assert found.same == 0
    assert {resource.state for resource in found.differing} == {"only there"}
    assert {"cluster", "listener", "route", "endpoints", "root"} == {
        resource.kind for resource in found.differing
    }


def test_a_proxy_that_lost_istiod_after_the_last_push_still_holds_what_the_others_hold(
    recorded: Recorded,
) -> None:
    """The recorded one got the new route before its connection timed out: nothing differs yet."""
    facts, mesh = both(recorded("istiod-unreachable-stale"))
    found = leaving(facts, mesh, f"{STALE}.bookinfo")
    assert len(found.against) == 5
    assert found.differing == ()
    assert found.same > 50


@pytest.fixture
def stale(tmp_path: Path) -> Altered:
    """Return the same recording, the cut off proxy with what it held before, in ``healthy``."""
    before = held("healthy", STALE).read_bytes()
    return Altered("istiod-unreachable-stale", tmp_path).bodies(
        lambda _: before, kind="http", pod=STALE, path=DUMP
    )


def test_a_stale_proxy_differs_in_the_route_that_it_did_not_get_and_in_moved_endpoints(
    stale: Altered,
) -> None:
    facts, mesh = both(stale)
    found = leaving(facts, mesh, f"{STALE}.bookinfo")
    routes = {one.name: one for one in found.differing if one.kind == "route"}
    # For a host that a VirtualService names, there is a virtual host on port 80 as well.
    assert set(routes) == {"80", "9080"}
    assert {one.made_from for one in routes.values()} == {("VirtualService bookinfo/ratings",)}
    host = "virtual_hosts[ratings.bookinfo.svc.cluster.local:9080]"
    differences = {one.path: (one.here, one.there) for one in routes["9080"].differences}
    assert differences[f"{host}.routes[0].route.timeout"] == ('"0s"', '"3s"')
    # istiod, details and ratings have other pods since then.
    moved = {one.made_from for one in found.differing if one.kind == "endpoints"}
    assert {("Service bookinfo/details",), ("Service bookinfo/ratings",)} <= moved
    assert {one.kind for one in found.differing} == {"endpoints", "route"}


def test_the_stale_proxy_is_the_odd_one_and_the_others_agree(stale: Altered) -> None:
    odd = odd_ones_out(*both(stale))
    assert ("route", "9080") in {(one.kind, one.name) for one in odd}
    assert {one.proxies for one in odd} == {(f"{STALE}.bookinfo",)}
    assert all(one.decided for one in odd)


def test_another_sidecar_is_compared_with_what_most_of_them_hold(stale: Altered) -> None:
    """The stale one is outvoted: nobody else differs because of it."""
    assert leaving(*both(stale), "client.bookinfo").differing == ()


def test_order_counts_where_envoy_takes_the_first_that_matches(tmp_path: Path) -> None:
    def turn(dump: Any) -> None:
        for entry in section(dump, "RoutesConfigDump")["dynamic_route_configs"]:
            config = entry["route_config"]
            entry["last_updated"], entry["version_info"] = "2026-11-23T00:00:00Z", "later"
            config["virtual_hosts"].reverse()
            for host in config["virtual_hosts"]:
                host["domains"].reverse()
        section(dump, "ClustersConfigDump")["dynamic_active_clusters"].reverse()

    def swap(dump: Any) -> None:
        for entry in section(dump, "RoutesConfigDump")["dynamic_route_configs"]:
            for host in entry["route_config"]["virtual_hosts"]:
                host["routes"].reverse()

    same = Altered("healthy", tmp_path / "same").pages(turn, pod="client", path=DUMP)
    assert leaving(*both(same), "client.bookinfo").differing == ()
    other = Altered("healthy", tmp_path / "other").pages(swap, pod="client", path=DUMP)
    for route in leaving(*both(other), "client.bookinfo").differing:
        assert (route.kind, route.state) == ("route", "different")
        assert route.made_from == ("VirtualService bookinfo/reviews",)
    assert leaving(*both(other), "client.bookinfo").differing


def test_another_root_is_a_difference(tmp_path: Path) -> None:
    other = json.loads(held("garden-healthy", "istio-ingressgateway").read_text())
    (root,) = (
        secret["secret"]
        for secret in section(other, "SecretsConfigDump")["dynamic_active_secrets"]
        if secret["name"] == "ROOTCA"
    )

    def distrust(dump: Any) -> None:
        for secret in section(dump, "SecretsConfigDump")["dynamic_active_secrets"]:
            if secret["name"] == "ROOTCA":
                secret["secret"] = root

    recording = Altered("healthy", tmp_path).pages(distrust, pod="client", path=DUMP)
    (found,) = leaving(*both(recording), "client.bookinfo").differing
    assert (found.kind, found.name, found.state) == ("root", "ROOTCA", "different")


def test_pods_of_one_workload_share_what_comes_in_as_well(tmp_path: Path) -> None:
    """Two pods are made siblings by their owner. Their own addresses are no difference."""

    def adopt(pod: dict[str, Any]) -> None:
        pod["metadata"]["ownerReferences"] = [
            {"kind": "StatefulSet", "name": "reviews", "controller": True, "apiVersion": "apps/v1"}
        ]

    facts, mesh = both(Altered("healthy", tmp_path).each("pods", "reviews", adopt))
    (inbound,) = (group for group in groups(facts, mesh) if group.inbound)
    assert inbound.scope == "what enters the pod, as a pod of StatefulSet bookinfo/reviews"
    found = compare_with_siblings(facts, mesh, inbound.proxies[0])
    assert [comparison.differing for comparison in found] == [(), ()]
    compared = {resource.name for resource in found[0].resources}
    assert {"virtualInbound", "inbound|9080||"} <= compared


def test_a_sidecar_object_for_some_makes_a_group_of_its_own(tmp_path: Path) -> None:
    spec = {"workloadSelector": {"labels": {"app": "reviews"}}, "egress": [{"hosts": ["./*"]}]}
    api = {"apiVersion": "networking.istio.io/v1", "kind": "Sidecar"}
    recording = Altered("healthy", tmp_path).add(
        "sidecars", "own", "bookinfo", "2026-11-23T02:41:00Z", **api, spec=spec
    )
    sizes = sorted(len(group.proxies) for group in groups(*both(recording)))
    assert sizes == [2, 4]


def test_two_proxies_are_compared_as_far_as_they_have_something_in_common(
    recorded: Recorded,
) -> None:
    facts, mesh = both(recorded("healthy"))
    (gateway,) = (pod.proxy for pod in mesh.pods if pod.mesh == "gateway")
    sidecars = [pod.proxy for pod in mesh.pods if pod.mesh == "sidecar"]
    assert compare_proxies(facts, mesh, sidecars[0], sidecars[1]).differing == ()
    found = compare_proxies(facts, mesh, sidecars[0], gateway)
    assert {resource.kind for resource in found.resources} == {"cluster", "endpoints", "root"}
    assert compare_proxies(facts, mesh, gateway, gateway).differing == ()


def test_silence_is_unknown_and_not_the_same(tmp_path: Path) -> None:
    recording = Altered("healthy", tmp_path).silence(
        "connection refused", kind="http", pod="client", path=DUMP
    )
    facts, mesh = both(recording)
    found = leaving(facts, mesh, "client.bookinfo")
    assert found.resources == ()
    assert found.unknown == "client.bookinfo did not say what it holds: connection refused"
    (other,) = (pod.proxy for pod in mesh.pods if pod.pod.startswith("details"))
    seen = leaving(facts, mesh, other)
    assert "client.bookinfo" not in seen.against
    assert "client.bookinfo did not say" in seen.unknown
    assert compare_with_istiod(facts, mesh, "client.bookinfo").unknown == found.unknown


def test_a_proxy_that_is_not_there_is_an_error_that_offers_the_nearest(recorded: Recorded) -> None:
    facts, mesh = both(recorded("healthy"))
    for compare in (compare_with_siblings, compare_with_istiod):
        with pytest.raises(UsageError, match=r"no proxy 'clint.bookinfo'.*client\.bookinfo"):
            compare(facts, mesh, "clint.bookinfo")


def test_one_that_has_no_like_is_said_to_have_none(recorded: Recorded) -> None:
    facts, mesh = both(recorded("healthy"))
    (gateway,) = (pod.proxy for pod in mesh.pods if pod.mesh == "gateway")
    (found,) = compare_with_siblings(facts, mesh, gateway)
    assert found.unknown == f"no other proxy should hold what {gateway} holds"


# --- istiod -------------------------------------------------------------------------------------


def asked(folder: Path, dump: bytes, proxy: str) -> Altered:
    """Return ``istiod-unreachable-stale``, in which istiod was asked what it holds for a proxy."""
    recording = Altered("istiod-unreachable-stale", folder)
    index = recording.folder / "index.jsonl"
    lines = index.read_text().splitlines()
    page = next(entry for entry in map(json.loads, lines) if "/debug/syncz" in str(entry))
    request = page["request"] | {"path": f"/debug/config_dump?proxyID={proxy}"}
    added = page | {"request": request, "file": "istiod/config_dump"}
    (recording.folder / "istiod" / "config_dump").write_bytes(dump)
    index.write_text("\n".join([*lines, json.dumps(added)]))
    return recording


def test_what_istiod_holds_is_compared_where_it_was_asked(tmp_path: Path) -> None:
    proxy = f"{STALE}.bookinfo"
    new = held("istiod-unreachable-stale", STALE).read_bytes()
    old = held("healthy", STALE).read_bytes()
    same = compare_with_istiod(*both(asked(tmp_path / "same", new, proxy)), proxy)
    assert same.scope == "what istiod holds for it"
    assert (same.differing, same.unknown) == ((), "")
    assert same.same > 50
    found = compare_with_istiod(*both(asked(tmp_path / "other", old, proxy)), proxy)
    routes = [resource for resource in found.differing if resource.kind == "route"]
    assert {route.made_from for route in routes} == {("VirtualService bookinfo/ratings",)}


def test_where_istiod_was_not_asked_that_is_said_and_objects_are_compared(
    recorded: Recorded,
) -> None:
    facts, mesh = both(recorded("istiod-unreachable-stale"))
    found = compare_with_istiod(facts, mesh, f"{STALE}.bookinfo")
    assert "istiod was never asked what it holds" in found.unknown
    assert [(one.kind, one.name, one.state) for one in found.resources] == [
        ("object", "DestinationRule bookinfo/reviews", "same"),
        ("object", "VirtualService bookinfo/ratings", "same"),
        ("object", "VirtualService bookinfo/reviews", "same"),
    ]


def test_an_object_that_istiod_has_no_more_is_only_at_the_proxy(tmp_path: Path) -> None:
    def forget(objects: Any) -> None:
        objects[:] = [one for one in objects if one["metadata"]["name"] != "ratings"]

    recording = Altered("istiod-unreachable-stale", tmp_path).pages(forget, path="/debug/configz")
    found = compare_with_istiod(*both(recording), f"{STALE}.bookinfo")
    assert [one.name for one in found.differing] == ["VirtualService bookinfo/ratings"]
    assert found.differing[0].state == "only here"


@pytest.mark.parametrize("recording", recording_names())
def test_no_recorded_proxy_holds_what_was_made_from_an_object_that_is_gone(recording: str) -> None:
    facts, mesh = both(facts_of(recording))
    for pod in mesh.pods:
        if pod.proxy:
            assert compare_with_istiod(facts, mesh, pod.proxy).differing == ()


# --- As a table and as JSON ---------------------------------------------------------------------


def test_a_comparison_is_a_table_and_json(stale: Altered) -> None:
    found = leaving(*both(stale), f"{STALE}.bookinfo")
    frame = found.frame()
    assert len(frame) == len(found.resources)
    assert frame["state"].value_counts()["same"] == found.same
    document = json.loads(json.dumps(found.to_json()))
    assert len(document["resources"]) == len(found.differing)
    assert document["same"] == found.same
