"""What a bundle says when it is whole, damaged, hostile, or written by somebody else."""

from __future__ import annotations

import io
import json
import lzma
import os
import shutil
import tarfile
import threading
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from meshnb.errors import BundleError, NewerFormat, NotRecorded
from meshnb.sources import (
    Answer,
    Bundle,
    HttpQuestion,
    ListQuestion,
    ProbeQuestion,
    Question,
    open_source,
    record,
)
from meshnb.tables import Facts

PODS = ListQuestion("v1", "pods")
EVENTS = ListQuestion("v1", "events")
CERTS = HttpQuestion("shop", "web", 15000, "/certs")
AT = datetime(2026, 11, 23, 2, 0, tzinfo=UTC)


def _line(question: Question, file: str | None = None, **more: Any) -> dict[str, Any]:
    line = {"request": question.to_json(), "taken_at": "2026-11-23T02:00:00Z", "elapsed_ms": 1.5}
    return {**line, "status": 200, **({"file": file} if file else {}), **more}


def _members(**changed: bytes | None) -> dict[str, bytes]:
    """Return a small whole bundle, with members changed or (None) left out."""
    index = [
        _line(PODS, "kubernetes/pods.json"),
        _line(EVENTS, "kubernetes/events.json"),
        _line(CERTS, error="timed out after 5 s"),
    ]
    members: dict[str, bytes | None] = {
        "manifest.json": b'{"format": 1}',
        "index.jsonl": "\n".join(map(json.dumps, index)).encode(),
        "kubernetes/pods.json": b'{"kind": "PodList", "items": []}',
        "kubernetes/events.json": b'{"kind": "EventList", "items": [{"reason": "Unhealthy"}]}',
        **changed,
    }
    return {name: body for name, body in members.items() if body is not None}


def _folder(path: Path, members: Mapping[str, bytes]) -> Path:
    for name, body in members.items():
        file = path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(body)
    return path


def _zip(path: Path, members: Mapping[str, bytes], *, below: str = "") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, body in members.items():
            archive.writestr(below + name, body)
    return path


def _tar(path: Path, members: Mapping[str, bytes]) -> Path:
    with tarfile.open(path, "w:xz") as archive:
        for name, body in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(body)
            archive.addfile(entry, io.BytesIO(body))
    return path


def _indexed(*lines: dict[str, Any] | str) -> dict[str, bytes]:
    """Return the small bundle with another index."""
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    return _members(**{"index.jsonl": "\n".join(texts).encode()})


def _answers(bundle: Bundle) -> list[Answer]:
    return list(bundle.ask(bundle.questions()))


# ---------------------------------------------------------------- whole


def test_an_answer_has_body_status_times_and_a_silent_one_has_its_error(tmp_path: Path) -> None:
    pods, _, certs = _answers(Bundle(_folder(tmp_path, _members())))
    assert pods == Answer(PODS, AT, 1.5, 200, b'{"kind": "PodList", "items": []}')
    assert (certs.error, certs.body, certs.silent) == ("timed out after 5 s", None, True)


def test_a_folder_a_zip_and_a_tar_answer_alike(recordings_folder: Path, tmp_path: Path) -> None:
    folder = recordings_folder / "healthy"
    members = {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file()
    }
    answers = _answers(Bundle(folder))
    assert len(answers) > 200
    assert _answers(Bundle(_zip(tmp_path / "a.zip", members))) == answers
    assert _answers(Bundle(_tar(tmp_path / "a.tar.xz", members))) == answers


def test_a_zip_of_the_whole_folder_is_read_below_its_top_folder(tmp_path: Path) -> None:
    archive = _zip(tmp_path / "a.zip", _members(), below="tonight/")
    with zipfile.ZipFile(archive, "a") as more:
        more.writestr("__MACOSX/tonight/._index.jsonl", b"what a file manager adds")
        more.writestr("tonight/yesterday/index.jsonl", b"another bundle within")
    bundle = Bundle(archive)
    assert bundle.damage == ()
    assert bundle.questions() == (PODS, EVENTS, CERTS)


def test_a_path_is_opened_as_a_bundle_and_is_its_label(tmp_path: Path) -> None:
    path = _zip(tmp_path / "a.zip", _members())
    assert open_source(path).label == str(path)
    assert open_source(str(path)).questions() == (PODS, EVENTS, CERTS)


def test_the_moment_of_a_bundle_is_that_of_its_newest_answer(tmp_path: Path) -> None:
    later = _line(EVENTS, "kubernetes/events.json", taken_at="2026-11-23T05:30:00.25+02:00")
    bundle = Bundle(_folder(tmp_path, _indexed(_line(PODS, "kubernetes/pods.json"), later)))
    assert bundle.now == datetime(2026, 11, 23, 3, 30, 0, 250_000, tzinfo=UTC)


def test_a_question_that_was_not_asked_is_not_answered(tmp_path: Path) -> None:
    bundle = Bundle(_folder(tmp_path, _members()), label="tonight")
    with pytest.raises(NotRecorded, match=r"^tonight was never asked LIST v1/nodes\."):
        next(bundle.ask([ListQuestion("v1", "nodes")]))


# ---------------------------------------------------------------- no bundle at all


def test_a_path_without_anything_is_named(tmp_path: Path) -> None:
    for name in ("nothing.zip", "nothing/there.zip", "x" * 5000, "nul\0"):
        with pytest.raises(BundleError) as caught:
            Bundle(tmp_path / name)
        assert name.encode("unicode_escape").decode()[:3] in str(caught.value)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is empty. It was probably cut off"),
        (b"%PDF-1.7", r"is not a bundle: neither a folder nor a zip (it begins with b'%PDF-1')."),
        (b"PK\x03\x04" + b"x" * 100, "begins like a zip, but cannot be read as one"),
        (b"\xfd7zXZ\x00" + b"x" * 100, "begins like an xz archive, but cannot be read as a tar"),
        (lzma.compress(b"no tar"), "begins like an xz archive, but cannot be read as a tar"),
    ],
)
def test_a_file_that_is_no_bundle_says_what_it_is(
    tmp_path: Path, content: bytes, sentence: str
) -> None:
    file = tmp_path / "tonight.zip"
    file.write_bytes(content)
    with pytest.raises(BundleError) as caught:
        Bundle(file)
    assert str(caught.value).startswith(repr(str(file)))
    assert sentence in str(caught.value)


def test_a_zip_that_was_cut_off_says_so(tmp_path: Path) -> None:
    file = _zip(tmp_path / "a.zip", _members())
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(BundleError, match="probably cut off while it was written or copied"):
        Bundle(file)


def test_what_is_neither_a_folder_nor_a_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BundleError, match="is neither a folder nor a file"):
        Bundle(tmp_path / "pipe")


def test_a_folder_or_zip_of_other_things_is_not_a_bundle(tmp_path: Path) -> None:
    other = {"holiday.jpg": b"", "letters/index.html": b""}
    for path in (_folder(tmp_path / "folder", other), _zip(tmp_path / "a.zip", other)):
        with pytest.raises(BundleError, match=r"has no manifest\.json and no index\.jsonl"):
            Bundle(path)


def test_without_an_index_or_with_an_unreadable_one_there_is_nothing_to_serve(
    tmp_path: Path,
) -> None:
    with pytest.raises(BundleError, match=r"no usable index: 'index\.jsonl' is missing\. Without"):
        Bundle(_folder(tmp_path / "a", _members(**{"index.jsonl": None})))
    with pytest.raises(BundleError, match="without a single readable line"):
        Bundle(_folder(tmp_path / "b", _indexed("{", "")))


def test_a_newer_format_asks_for_a_newer_version(tmp_path: Path) -> None:
    for number, written in enumerate(("2", '"2026"', "null")):
        members = _members(**{"manifest.json": f'{{"format": {written}}}'.encode()})
        with pytest.raises(NewerFormat, match=r"this version reads 1\. .*pip install --upgrade"):
            Bundle(_folder(tmp_path / str(number), members))


# ---------------------------------------------------------------- damaged in one place


@pytest.mark.parametrize(
    ("manifest", "reason"),
    [
        (None, "'manifest.json' is missing"),
        (b"{", "Expecting property name"),
        (b"\xff\xfe\xfd", "can't decode"),
        (b"[1]", "it holds no object"),
        (b"[" * 100_000, "it is nested too deeply"),
    ],
)
def test_a_broken_manifest_costs_nothing_but_a_sentence(
    tmp_path: Path, manifest: bytes | None, reason: str
) -> None:
    bundle = Bundle(_folder(tmp_path, _members(**{"manifest.json": manifest})))
    (sentence,) = bundle.damage
    assert sentence.startswith("manifest.json cannot be read: ")
    assert reason in sentence
    assert len(bundle.questions()) == 3


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ("{", "Expecting property name"),
        ("[]", "it has no request"),
        ('{"request": "pods"}', "it has no request"),
        ("[" * 100_000, "it is nested too deeply"),
        (_line(PODS, taken_at=None), "it has no taken_at"),
        (_line(PODS, taken_at="soon"), "Invalid isoformat string: 'soon'"),
        (_line(PODS, taken_at="0001-01-01T00:00:00+05:00"), "is before the year 1"),
        (_line(PODS, request={"kind": "exec"}), "the request's kind is 'exec', not list, http"),
        (_line(PODS, request={"kind": "list"}), "field 'apiVersion' of the request is None"),
        (_line(CERTS, request={**CERTS.to_json(), "port": 0}), "is 0, not a port number"),
        (_line(CERTS, request={**CERTS.to_json(), "port": True}), "is True, not a port number"),
    ],
)
def test_a_broken_line_of_the_index_is_named_and_the_others_are_served(
    tmp_path: Path, broken: dict[str, Any] | str, reason: str
) -> None:
    members = _indexed(broken, _line(EVENTS, "kubernetes/events.json"))
    bundle = Bundle(_folder(tmp_path, members))
    (sentence,) = bundle.damage
    assert sentence.startswith("index.jsonl line 1 cannot be read: ")
    assert reason in sentence
    assert bundle.questions() == (EVENTS,)


def test_odd_but_harmless_fields_of_a_line_are_taken_for_absent(tmp_path: Path) -> None:
    odd = _line(PODS, "kubernetes/pods.json", elapsed_ms=10**400, status="fine", detail=3, new=1)
    (answer,) = _answers(Bundle(_folder(tmp_path, _indexed(odd))))
    assert (answer.elapsed_ms, answer.status, answer.detail) == (0.0, None, {})
    assert answer.body is not None


def test_a_missing_member_is_named_and_its_answer_has_an_error(tmp_path: Path) -> None:
    bundle = Bundle(_folder(tmp_path, _members(**{"kubernetes/pods.json": None})))
    assert bundle.damage == ("index.jsonl line 1 names 'kubernetes/pods.json', which is missing.",)
    pods, events, _ = _answers(bundle)
    assert pods.error == "the bundle is damaged: 'kubernetes/pods.json' is missing"
    assert events.error is None


def test_a_member_whose_bytes_are_damaged_costs_its_answer_only(tmp_path: Path) -> None:
    archive = _zip(tmp_path / "a.zip", _members())
    with zipfile.ZipFile(archive) as whole:
        start = whole.getinfo("kubernetes/pods.json").header_offset
    content = bytearray(archive.read_bytes())
    content[start + 55] ^= 0xFF
    archive.write_bytes(content)
    pods, events, _ = _answers(Bundle(archive))
    assert pods.error is not None
    assert pods.error.startswith("the bundle is damaged: 'kubernetes/pods.json' is damaged")
    assert events.error is None


def test_a_zip_compressed_in_an_uncommon_way_says_so(tmp_path: Path) -> None:
    members = _indexed(_line(CERTS, "certs"))
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("index.jsonl", members["index.jsonl"])
        archive.writestr("certs", b"[]", zipfile.ZIP_LZMA)
    (answer,) = _answers(Bundle(tmp_path / "a.zip"))
    assert answer.error == (
        "the bundle is damaged: 'certs' is compressed in another way than deflate"
    )


def test_a_member_that_is_not_json_is_a_gap_of_its_tables_and_no_exception(tmp_path: Path) -> None:
    members = _members(**{"kubernetes/events.json": b"<html>Bad gateway</html>"})
    facts = Facts(Bundle(_folder(tmp_path, members)))
    assert len(facts["events"]) == 0
    (gap,) = facts.gaps("events")
    assert (gap.question, gap.state) == ("LIST v1/events", "unreadable")
    assert "is not JSON" in gap.reason


# ---------------------------------------------------------------- hostile


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/hostname", "a/../../secret", "..\\secret", "C:\\secret"]
)
def test_a_member_that_leads_out_of_the_bundle_is_not_read(tmp_path: Path, name: str) -> None:
    (tmp_path / "secret").write_text("secret")
    bundle = Bundle(_folder(tmp_path / "bundle", _indexed(_line(PODS, name))))
    assert bundle.damage == (f"index.jsonl line 1 names {name!r}, which leads out of the bundle.",)
    (answer,) = _answers(bundle)
    assert (answer.body, answer.error) == (None, f"the bundle is damaged: {name!r} leads out of it")


def test_a_link_in_a_folder_that_leads_out_of_it_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    folder = _folder(tmp_path / "bundle", _members())
    (folder / "kubernetes" / "pods.json").unlink()
    (folder / "kubernetes" / "pods.json").symlink_to(tmp_path / "secret")
    answer = _answers(Bundle(folder))[0]
    assert answer.body is None
    assert answer.error == "the bundle is damaged: 'kubernetes/pods.json' leads out of the bundle"


@pytest.mark.parametrize("name", ["nul\0", "x" * 5000, "\udcff", "kubernetes"])
def test_a_member_name_that_no_file_can_have_is_missing(tmp_path: Path, name: str) -> None:
    bundle = Bundle(_folder(tmp_path, _indexed(_line(PODS, name))))
    assert "which is missing" in bundle.damage[0]
    assert _answers(bundle)[0].error == f"the bundle is damaged: {name!r} is missing"


def _declare(archive: Path, name: str, size: int) -> None:
    """Make the directory of a zip declare a size for a member that it does not have."""
    content = bytearray(archive.read_bytes())
    entry = content.rindex(name.encode()) - 46
    assert content[entry : entry + 4] == b"PK\x01\x02"
    content[entry + 24 : entry + 28] = size.to_bytes(4, "little")
    archive.write_bytes(content)


def test_a_zip_bomb_is_not_opened(tmp_path: Path) -> None:
    archive = _zip(tmp_path / "bomb.zip", _members())
    _declare(archive, "kubernetes/pods.json", 3 << 30)
    with pytest.raises(BundleError) as caught:
        Bundle(archive)
    assert "looks like a zip bomb: 'kubernetes/pods.json' unpacks from" in str(caught.value)
    assert f"to {3 << 30} bytes. It was not opened." in str(caught.value)


def test_a_zip_bomb_of_many_small_members_is_not_opened(tmp_path: Path) -> None:
    zeros = bytes(4 << 20)
    small = {f"part-{number}": zeros for number in range(20)}
    archive = _zip(tmp_path / "bomb.zip", {**_members(), **small})
    with pytest.raises(BundleError, match="looks like a zip bomb: all of it unpacks from"):
        Bundle(archive)


# ---------------------------------------------------------------- recording


def _silent(answers: Iterable[Answer], total: int) -> Iterable[Answer]:
    del total
    return answers


def test_a_recording_opened_again_gives_the_same_answers(
    recordings_folder: Path, tmp_path: Path
) -> None:
    source = Bundle(recordings_folder / "istiod-unreachable-stale")
    target = record(source, tmp_path / "again.zip", keep=["environment"])
    again = Bundle(target)
    assert again.damage == ()
    assert again.questions() == source.questions()
    for before, after in zip(_answers(source), _answers(again), strict=True):
        if before.question != ListQuestion("v1", "secrets"):
            assert after == before
    assert again.now == source.now
    assert again.manifest["cluster"] == source.manifest["cluster"]
    assert again.manifest["complete"] is True


def test_a_recording_keeps_refusals_silence_details_and_empty_answers(tmp_path: Path) -> None:
    lines = [
        _line(PODS, "kubernetes/pods.json", status=403),
        _line(EVENTS, status=404),
        _line(CERTS, error="timed out"),
        _line(ProbeQuestion("mesh", "istiod", 15012, "tls"), status=0, detail={"alpn": "h2"}),
        _line(HttpQuestion("shop", "web", 15000, "/a/b"), "kubernetes/pods.json"),
        _line(HttpQuestion("shop", "web", 15000, "/a_b"), "kubernetes/events.json"),
    ]
    source = Bundle(_folder(tmp_path / "source", _indexed(*lines)))
    again = Bundle(record(source, tmp_path / "again.zip"))
    assert _answers(again) == _answers(source)


def test_only_the_questions_that_were_named_are_recorded(tmp_path: Path) -> None:
    source = Bundle(_folder(tmp_path / "source", _members()))
    assert Bundle(record(source, tmp_path / "a.zip", [EVENTS])).questions() == (EVENTS,)


def test_names_from_a_cluster_never_become_paths_outside(tmp_path: Path) -> None:
    hostile = HttpQuestion("../../etc", "..", 15000, "/../../passwd")
    source = Bundle(_folder(tmp_path / "source", _indexed(_line(hostile, "kubernetes/pods.json"))))
    with zipfile.ZipFile(record(source, tmp_path / "a.zip")) as archive:
        names = archive.namelist()
    assert not any(".." in name.split("/") or name.startswith("/") for name in names)


def test_a_recording_leaves_no_thread(tmp_path: Path) -> None:
    """The bar would have one of its own that watches it, and never ends."""
    before = set(threading.enumerate())
    record(Bundle(_folder(tmp_path / "source", _members())), tmp_path / "a.zip")
    assert set(threading.enumerate()) <= before


def test_an_interrupted_recording_keeps_what_was_answered_and_says_so(tmp_path: Path) -> None:
    def interrupted(answers: Iterable[Answer], total: int) -> Iterator[Answer]:
        assert total == 3
        for number, answer in enumerate(answers):
            if number == 2:
                raise KeyboardInterrupt
            yield answer

    source = Bundle(_folder(tmp_path / "source", _members()))
    again = Bundle(record(source, tmp_path / "a.zip", progress=interrupted))
    assert again.questions() == (PODS, EVENTS)
    assert again.manifest["complete"] is False
    assert again.damage == ("The recording was interrupted: what it had not asked is missing.",)


def test_a_recording_interrupted_before_the_first_answer_leaves_nothing(tmp_path: Path) -> None:
    def interrupted(answers: Iterable[Answer], total: int) -> Iterator[Answer]:
        raise KeyboardInterrupt
        yield from answers if total else ()

    source = Bundle(_folder(tmp_path / "source", _members()))
    with pytest.raises(KeyboardInterrupt):
        record(source, tmp_path / "a.zip", progress=interrupted)
    with pytest.raises(BundleError, match="was asked nothing"):
        record(source, tmp_path / "a.zip", [])
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_source_that_fails_leaves_nothing_half_written(tmp_path: Path) -> None:
    source = Bundle(_folder(tmp_path / "source", _members()))
    with pytest.raises(NotRecorded):
        record(source, tmp_path / "a.zip", [PODS, ListQuestion("v1", "nodes")], progress=_silent)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_what_exists_already_is_refused_and_left_alone(tmp_path: Path) -> None:
    source = Bundle(_folder(tmp_path / "source", _members()))
    target = tmp_path / "tonight.zip"
    target.write_bytes(b"precious")
    with pytest.raises(BundleError, match=r"exists already\. Choose another name."):
        record(source, target)
    assert target.read_bytes() == b"precious"
    assert {path.name for path in tmp_path.iterdir()} == {"source", "tonight.zip"}


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    source = Bundle(_folder(tmp_path / "source", _members()))
    (tmp_path / "file").write_bytes(b"")
    for name in ("nowhere/tonight.zip", "file/tonight.zip", "x" * 5000):
        with pytest.raises(BundleError, match=r"cannot be written: .* Choose a folder that exists"):
            record(source, tmp_path / name)


def test_a_bundle_in_a_folder_survives_being_moved(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "a", _members())
    shutil.move(folder, tmp_path / "b")
    assert Bundle(tmp_path / "b").questions() == (PODS, EVENTS, CERTS)
