"""Two moments of a mesh: what changed is told, once, by resource; what passes by itself is not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from meshnb.errors import UsageError
from meshnb.sources import open_source
from meshnb.tables import TABLES, Facts
from meshnb.traces.moments import Change, Moments
from tests.alteration import Altered
from tests.conftest import facts_of, recording_names, truth_of

#: Which healthy recording is of the same mesh as a faulty one, by the beginning of its name.
_MESHES = {
    **dict.fromkeys(("ambient", "waypoint", "ztunnel"), "garden-healthy"),
    **dict.fromkeys(("backend", "httproute"), "market-healthy"),
}
#: Faults that no object shows, with what the comparison shows of them instead.
_NO_OBJECT = {
    "https-to-http-port": ("Pod bookinfo/client-tls", "added"),  # the client is at fault
    "istiod-unreachable-stale": ("reviews-v2-79bdb4f448-sdvj9.bookinfo", "changed"),  # a network
}
_FAULTS = [name for name in recording_names() if truth_of(name)["truth"]]


def _healthy(name: str) -> str:
    return _MESHES.get(name.partition("-")[0], "healthy")


def _moments(name: str) -> Moments:
    return Moments(facts_of(_healthy(name)), facts_of(name))


def _altered(tmp_path: Path, name: str = "healthy") -> Altered:
    return Altered(name, tmp_path / "altered")


def _since(altered: Altered, name: str = "healthy") -> Moments:
    return Moments(facts_of(name), altered.facts())


def _only(moments: Moments) -> Change:
    (change,) = moments.changes
    return change


@pytest.mark.parametrize("name", recording_names())
def test_a_recording_and_itself_are_the_same(name: str) -> None:
    moments = Moments(facts_of(name), facts_of(name))
    assert moments.changes == ()
    assert moments.unseen == ()
    assert moments.frame().empty


@pytest.mark.parametrize("name", [name for name in _FAULTS if name not in _NO_OBJECT])
def test_the_object_at_fault_is_among_those_that_changed(name: str) -> None:
    told = {
        change.subject
        for change in _moments(name).changes
        if change.about == "object" and (change.edits or change.state != "changed")
    }
    blamed = {
        f"{kind} {namespace}/{title}".replace(" /", " ")
        for kind, namespace, title in (truth.split("/") for truth in truth_of(name)["truth"])
    }
    assert told & blamed, told


@pytest.mark.parametrize("name", _NO_OBJECT)
def test_a_fault_that_no_object_shows_is_seen_in_what_runs(name: str) -> None:
    subject, state = _NO_OBJECT[name]
    assert (subject, state) in {(one.subject, one.state) for one in _moments(name).changes}


def test_all_faults_but_two_change_an_object() -> None:
    assert len(_FAULTS) == 39
    assert len(_NO_OBJECT) == 2


def test_a_route_that_changed_in_several_proxies_is_one_sentence() -> None:
    moments = _moments("subset-missing")
    written, sent = moments.changes
    assert "spec.http[0].route[0].destination.subset v2 -> v3" in written.words
    assert written.words.endswith("(by kubectl-client-side-apply at 02:49:56 UTC)")
    assert sent.words.startswith(
        "routes 80 and 9080 of 6 proxies now point to subset v3 instead of subset v2"
    )
    assert len(sent.proxies) == 6
    assert sent.made_from == ("VirtualService bookinfo/reviews",)


def test_pods_that_replaced_others_are_one_rollout_and_their_addresses_nothing() -> None:
    moments = _moments("https-to-http-port")
    told = {change.subject: change for change in moments.changes}
    rollout = told["Deployment istio-system/istiod"]
    assert rollout.state == "replaced"
    assert rollout.words == (
        "Deployment istio-system/istiod was rolled out: 1 pod replaced by 1 new one"
    )
    assert told["Pod legacy/legacy-client"].state == "replaced"
    # Services and pods have other addresses, and every proxy was told of them.
    assert not [change for change in moments.changes if change.about == "resource"]


def test_a_pod_that_is_out_of_service_says_why() -> None:
    told = [change.words for change in _moments("not-ready-endpoint").changes]
    assert (
        "Deployment bookinfo/ratings-v1 was rolled out: 1 pod replaced by 1 new one; it is not "
        "ready (ContainersNotReady: containers with unready status: [ratings])"
    ) in told
    assert (
        "endpoints of outbound|9080||ratings.bookinfo.svc.cluster.local in 7 proxies are now none, "
        "not a pod of bookinfo/ratings-v1:9080"
    ) in told


def test_a_restart_says_how_often_and_why(tmp_path: Path) -> None:
    def restarted(pod: dict[str, Any]) -> None:
        for status in pod["status"]["containerStatuses"]:
            if status["name"] == "details":
                status["restartCount"] = 2
                status["lastState"] = {"terminated": {"reason": "OOMKilled", "exitCode": 137}}

    altered = _altered(tmp_path).each("pods", "details-v1-9449b4bf-6g92b", restarted)
    change = _only(_since(altered))
    assert change.state == "restarted"
    assert change.words == (
        "Pod bookinfo/details-v1-9449b4bf-6g92b was restarted 2 times: its container details ended "
        "with OOMKilled (exit code 137)"
    )


def test_a_proxy_that_moved_to_another_istiod_or_refused_a_change_says_so() -> None:
    told = {change.subject: change.words for change in _moments("envoyfilter-rejected").changes}
    assert told["LDS of 6 proxies"].startswith("LDS of 6 proxies: sync SYNCED -> ERROR")
    assert "EnvoyFilter bookinfo/broken-lua" in told


def test_an_object_that_only_istiod_was_asked_for_is_compared() -> None:
    told = {one.subject: one for one in _moments("rate-limited").changes}
    change = told["EnvoyFilter bookinfo/details-ratelimit"]
    assert change.state == "added"
    assert change.question.endswith("/debug/configz")


def test_a_namespace_brings_its_objects_and_not_what_every_namespace_has() -> None:
    told = {one.subject for one in _moments("revision-unknown").changes if one.state == "added"}
    assert {"Namespace orders", "Deployment orders/orders", "Service orders/orders"} <= told
    assert not {"ServiceAccount orders/default", "ConfigMap orders/istio-ca-root-cert"} & told


def test_a_secret_that_was_renewed_shows_no_value(tmp_path: Path) -> None:
    def other_key(secret: dict[str, Any]) -> None:
        secret["data"]["ca-key.pem"] = "c2VjcmV0LW1hcmtlcg=="

    altered = _altered(tmp_path).each("secrets", "istio-ca-secret", other_key)
    change = _only(_since(altered))
    assert change.subject == "Secret istio-system/istio-ca-secret"
    assert [edit.path for edit in change.edits] == ["data.ca-key.pem"]
    assert "c2VjcmV0" not in json.dumps(change.to_json())


def test_a_list_that_was_refused_is_not_compared_and_deletes_nothing(tmp_path: Path) -> None:
    altered = _altered(tmp_path).silence("forbidden", 403, kind="list", resource="virtualservices")
    moments = _since(altered)
    assert "VirtualService" not in {one.subject.partition(" ")[0] for one in moments.changes}
    told = {one.what: one.why for one in moments.unseen}
    assert told["virtualservices.networking.istio.io"].startswith("at the later moment")


def test_a_silent_proxy_is_not_compared(tmp_path: Path) -> None:
    pod = "reviews-v2-79bdb4f448-sdvj9"
    path = "/config_dump?include_eds"
    altered = _altered(tmp_path).silence("timed out", kind="http", pod=pod, path=path)
    moments = _since(altered)
    assert f"what {pod}.bookinfo holds" in {one.what for one in moments.unseen}
    assert not [change for change in moments.changes if change.about == "resource"]


def test_without_the_list_of_pods_nobody_is_gone(tmp_path: Path) -> None:
    altered = _altered(tmp_path).silence("timed out", kind="list", resource="pods")
    moments = _since(altered)
    assert not [change for change in moments.changes if change.about == "pod"]
    assert any("pods" in one.what for one in moments.unseen)


def test_rows_of_one_table_are_found_again_by_their_key() -> None:
    moments = _moments("subset-missing")
    rows = moments.rows("routes")
    assert {row.state for row in rows} <= {"changed", "added", "removed"}
    changed = [row for row in rows if "subset" not in row.name and row.state == "changed"]
    assert {edit.path.partition("[")[0] for row in changed for edit in row.edits} >= {"clusters"}
    assert {json.dumps(row.to_json()) for row in rows}


@pytest.mark.parametrize("table", TABLES)
def test_every_table_is_compared_or_says_why_not(table: str) -> None:
    moments = Moments(facts_of("healthy"), facts_of("healthy"))
    counted = [name for name, one in TABLES[table].columns.items() if one.key and one.passing]
    if counted:
        with pytest.raises(UsageError, match=rf"Rows of {table} cannot be found again"):
            moments.rows(table)
    else:
        assert moments.rows(table) == ()


def test_an_unknown_table_offers_the_nearest() -> None:
    with pytest.raises(UsageError, match="Did you mean routes"):
        _moments("subset-missing").rows("route")


def test_times_ages_and_counts_pass_by_themselves() -> None:
    """Of a column with one of these units or meanings, all tables say the same."""
    for table in TABLES.values():
        for title, column in table.columns.items():
            if title in ("created", "changed", "last_updated", "requests", "stale_s", "uptime_s"):
                assert column.passing, f"{table.name}.{title}"
            if title in ("not_after", "restarts", "ready", "cluster", "timeout_ms", "sync"):
                assert not column.passing, f"{table.name}.{title}"


def test_the_frame_has_a_row_per_change_with_its_question() -> None:
    moments = _moments("gateway-hosts-disjoint")
    frame = moments.frame()
    assert len(frame) == len(moments.changes) > 0
    assert frame["question"].notna().all()
    assert frame.loc[frame["subject"] == "Gateway bookinfo/bookinfo-gateway", "paths"].item() == (
        "spec.servers[0].hosts[0]",
    )
    assert isinstance(frame["when"].dtype, pd.DatetimeTZDtype)


def test_the_sides_of_a_change_stand_beside_each_other() -> None:
    moments = _moments("service-selector-wrong")
    (change,) = (one for one in moments.changes if one.subject == "Service bookinfo/details")
    assert moments.sides(change)[["path", "before", "after"]].to_numpy().tolist()[0] == [
        "spec.selector.app",
        "details",
        "detail",
    ]


_MANIFEST = """\
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: cart, namespace: shop}}
spec: {{hosts: [cart], http: [{{route: [{{destination: {{host: {host}}}}}]}}]}}
"""


def _folder(folder: Path, host: str) -> Facts:
    folder.mkdir()
    (folder / "cart.yaml").write_text(_MANIFEST.format(host=host))
    return Facts(open_source(folder))


def test_two_folders_of_manifests_are_compared_object_by_object(tmp_path: Path) -> None:
    old, new = _folder(tmp_path / "old", "cart"), _folder(tmp_path / "new", "basket")
    moments = Moments(old, new)
    change = _only(moments)
    assert change.words == (
        "VirtualService shop/cart: spec.http[0].route[0].destination.host cart -> basket"
    )
    assert moments.unseen == ()


def test_a_folder_and_a_running_mesh_are_compared_as_far_as_it_goes(tmp_path: Path) -> None:
    moments = Moments(_folder(tmp_path / "old", "cart"), facts_of("healthy"))
    told = {change.subject: change.state for change in moments.changes}
    assert told["VirtualService shop/cart"] == "removed"
    assert told["VirtualService bookinfo/reviews"] == "added"
    assert {change.about for change in moments.changes} == {"object"}
    assert "what runs" in {one.what for one in moments.unseen}


def test_two_config_dumps_are_compared_resource_by_resource(
    tmp_path: Path, recordings_folder: Path
) -> None:
    facts = []
    for name in ("healthy", "subset-missing"):
        (dump,) = (recordings_folder / name).glob("proxies/*/reviews-v1*/*/config_dump*")
        copied = tmp_path / f"{name}.json"
        copied.write_bytes(dump.read_bytes())
        facts.append(Facts(open_source(copied)))
    change = _only(Moments(*facts))
    assert change.about == "resource"
    assert "now point to subset v3 instead of subset v2" in change.words
