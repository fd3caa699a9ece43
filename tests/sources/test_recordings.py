"""The recordings that ship with the package."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import pytest

from meshnb.errors import UsageError
from meshnb.sources import Bundle, Recording, open_recording, open_source, recordings


@pytest.mark.parametrize("recording", recordings(), ids=lambda recording: recording.name)
def test_each_recording_is_whole_and_equals_the_one_the_tests_use(
    recording: Recording, recordings_folder: Path
) -> None:
    shipped, tested = open_recording(recording.name), Bundle(recordings_folder / recording.name)
    assert shipped.damage == ()
    assert shipped.label == f"recorded:{recording.name}"
    assert list(shipped.ask(shipped.questions())) == list(tested.ask(tested.questions()))


def test_each_shipped_file_is_listed_with_a_sentence_and_each_listed_one_is_there() -> None:
    folder = Path(str(resources.files("meshnb"))) / "recordings"
    files = {path.name.removesuffix(".tar.xz") for path in folder.glob("*.tar.xz")}
    assert {recording.name for recording in recordings()} == files
    assert all(recording.title.endswith(".") for recording in recordings())


def test_an_unknown_recording_offers_the_nearest() -> None:
    with pytest.raises(UsageError) as caught:
        open_source("recorded:subset-mising")
    assert str(caught.value) == (
        "There is no recording 'subset-mising'. Did you mean subset-missing? "
        "`meshnb recordings` lists them."
    )


@pytest.mark.parametrize("name", ["", "../recordings/healthy", "/etc/passwd", "Zürich"])
def test_only_listed_names_are_opened(name: str) -> None:
    with pytest.raises(UsageError, match="There is no recording"):
        open_source(f"recorded:{name}")
