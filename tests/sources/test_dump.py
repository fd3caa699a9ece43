"""One saved page of a proxy is a source: what it is, whose it is, how old, and what it lacks."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from meshnb.diagnosis import diagnose
from meshnb.errors import NotRecorded, SourceError, UsageError
from meshnb.sources import Bundle, Dump, HttpQuestion, ListQuestion, open_source, record
from meshnb.sources.base import only, parse_time
from meshnb.tables import TABLES, Facts


def _saved(folder: Path, recording: str, pod: str, page: str) -> Path:
    (found,) = (folder / recording / "proxies").glob(f"*/{pod}*/15000/{page}*")
    return found


@pytest.fixture
def saved(recordings_folder: Path) -> Path:
    """Return the config dump of a sidecar."""
    return _saved(recordings_folder, "healthy", "client", "config_dump")


def _changed(saved: Path, target: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    dump = json.loads(saved.read_bytes())
    change({part["@type"].rpartition(".")[2]: part for part in dump["configs"]})
    target.write_text(json.dumps(dump))
    return target


def test_a_dump_says_whose_it_is_and_when_it_was_at_the_earliest(saved: Path) -> None:
    source = open_source(saved)
    assert isinstance(source, Dump)
    question = HttpQuestion("bookinfo", "client", 15000, "/config_dump?include_eds")
    assert tuple(source.questions()) == (question,)
    answer = only(source, question)
    assert (answer.status, answer.error, answer.content) == (200, None, saved.read_bytes())
    texts = saved.read_text().split('"last_updated": "')[1:]
    newest = max(parse_time(text.partition('"')[0]) for text in texts)
    assert source.now == newest
    assert answer.taken_at.timestamp() == pytest.approx(saved.stat().st_mtime)


def test_a_dump_without_metadata_is_named_by_its_node(saved: Path, tmp_path: Path) -> None:
    def forget(parts: dict[str, Any]) -> None:
        del parts["BootstrapConfigDump"]["bootstrap"]["node"]["metadata"]

    source = Dump(_changed(saved, tmp_path / "dump.json", forget))
    assert [str(question)[:26] for question in source.questions()] == ["GET bookinfo/client:15000/"]


@pytest.mark.parametrize(
    ("name", "pod"),
    [
        ("client.json", "client"),
        ("client.json.gz", "client"),
        ("a b/../\u202e$(x).json".replace("/", "_"), "a-b-..-x"),
        ("...json", "proxy"),
    ],
)
def test_a_dump_that_does_not_say_whose_it_is_is_named_by_its_file(
    name: str, pod: str, saved: Path, tmp_path: Path
) -> None:
    def forget(parts: dict[str, Any]) -> None:
        parts["BootstrapConfigDump"]["bootstrap"] = {}

    file = _changed(saved, tmp_path / name, forget)
    if name.endswith(".gz"):
        file.write_bytes(gzip.compress(file.read_bytes()))
    source = open_source(file)
    (question,) = source.questions()
    assert isinstance(question, HttpQuestion)
    assert (question.namespace, question.pod) == ("", pod)
    assert set(Facts(source)["clusters"]["proxy"]) == {pod}


def test_a_page_without_times_is_as_old_as_its_file(
    recordings_folder: Path, tmp_path: Path
) -> None:
    page = _saved(recordings_folder, "healthy", "client", "clusters")
    file = tmp_path / "clusters.json"
    file.write_bytes(page.read_bytes())
    os.utime(file, (1_700_000_000, 1_700_000_000))
    source = open_source(file)
    assert source.now == datetime.fromtimestamp(1_700_000_000, UTC)
    endpoints = Facts(source)["endpoints"]
    assert len(endpoints) > 10
    assert set(endpoints["origin"]) == {"clusters"}
    assert set(endpoints["proxy"]) == {"clusters"}


def test_a_ztunnel_dump_is_one_too(recordings_folder: Path) -> None:
    file = _saved(recordings_folder, "garden-healthy", "ztunnel", "config_dump")
    facts = Facts(open_source(file))
    whole = Facts(Bundle(recordings_folder / "garden-healthy"))
    for table in ("ztunnel_workloads", "ztunnel_services", "ztunnel_policies"):
        assert len(facts[table]) == len(whole[table]) > 0
    assert len(facts["clusters"]) == 0
    assert "unreadable" not in {gap.state for gap in facts.gaps("clusters")}


@pytest.mark.parametrize(
    ("recording", "pod", "page"),
    [
        ("healthy", "client", "config_dump"),
        ("healthy", "istio-ingressgateway", "config_dump"),
        ("waypoint-missing", "istio-ingressgateway", "config_dump"),
        ("healthy", "client", "clusters"),
        ("garden-healthy", "ztunnel", "config_dump"),
    ],
)
def test_every_table_and_check_works_on_one_page(
    recording: str, pod: str, page: str, recordings_folder: Path
) -> None:
    facts = Facts(open_source(_saved(recordings_folder, recording, pod, page)))
    assert sum(len(facts[name]) for name in TABLES) > 10
    assert not [gap for gap in facts.gaps(*TABLES) if gap.state == "unreadable"]
    diagnosis = diagnose(facts)
    assert diagnosis.verdict != "healthy"  # most could not be seen
    assert len(diagnosis.unknown) > 10


def test_what_another_page_would_say_was_not_recorded(saved: Path) -> None:
    with pytest.raises(NotRecorded, match="is one page of one proxy and has no answer to LIST"):
        only(open_source(saved), ListQuestion("v1", "pods"))


def test_a_page_takes_no_settings_of_a_mesh(saved: Path) -> None:
    with pytest.raises(UsageError, match="takes no settings"):
        open_source(saved, mesh_config=saved)


def test_a_page_can_be_recorded_as_a_bundle(saved: Path, tmp_path: Path) -> None:
    again = Facts(Bundle(record(open_source(saved), tmp_path / "again.zip")))
    assert again["clusters"].equals(Facts(open_source(saved))["clusters"])


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is empty. Save one with `kubectl exec"),
        (b"error: container not found", "is not JSON (JSON is malformed: invalid character"),
        (b'{"configs": [{"@type": "x"', "is not JSON (Input data was truncated). It was cut off"),
        (b"[1, 2]", "is JSON, but no object"),
        (b"{}", "neither a config dump nor a page of clusters. Its keys: none."),
        (b'{"version": "1", "state": "LIVE"}', "Its keys: version, state."),
        (b"\x1f\x8bnothing", "begins like a gzip file, but cannot be unpacked"),
    ],
)
def test_a_file_that_is_no_page_says_what_it_is(
    content: bytes, sentence: str, tmp_path: Path
) -> None:
    file = tmp_path / "dump.json"
    file.write_bytes(content)
    with pytest.raises(SourceError) as caught:
        open_source(file)
    assert str(caught.value).startswith(repr(str(file)))
    assert sentence in str(caught.value)


def test_a_file_larger_than_any_dump_is_not_opened(tmp_path: Path) -> None:
    file = tmp_path / "dump.json"
    with file.open("wb") as opened:
        opened.truncate(2 << 30)  # takes no room on a disk
    with pytest.raises(SourceError, match="has 2048 MiB, more than 1024 MiB"):
        open_source(file)


def test_a_manifest_is_no_dump(tmp_path: Path) -> None:
    file = tmp_path / "service.json"
    file.write_text('{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a"}}')
    assert len(Facts(open_source(file))["services"]) == 1


def test_a_file_that_becomes_shorter_while_it_is_used_is_a_gap(saved: Path, tmp_path: Path) -> None:
    file = tmp_path / "dump.json"
    file.write_bytes(saved.read_bytes())
    facts = Facts(open_source(file))
    assert len(facts["clusters"]) > 0
    os.truncate(file, 100)
    assert len(facts["routes"]) == 0
    (gap,) = (gap for gap in facts.gaps("routes") if gap.state == "unreadable")
    assert "became shorter since it was opened" in gap.reason


def test_an_odd_section_costs_the_name_but_no_table(saved: Path, tmp_path: Path) -> None:
    def spoil(parts: dict[str, Any]) -> None:
        parts["ScopedRoutesConfigDump"]["dynamic_scoped_route_configs"] = 3

    facts = Facts(open_source(_changed(saved, tmp_path / "dump.json", spoil)))
    whole = Facts(open_source(saved))
    for table in ("clusters", "listeners", "routes"):
        assert len(facts[table]) == len(whole[table]) > 0
