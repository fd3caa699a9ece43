"""What all tests share: the recordings, unpacked once, and the facts of each."""

from __future__ import annotations

import json
import os
import tarfile
import tempfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from meshnb.sources import Bundle
from meshnb.tables import Facts

ARCHIVES = Path(__file__).parent / "recordings"
#: The recordings in view of which the rules were written, and those of another mesh.
EVIDENCE, ANOTHER_MESH = "evidence", "another_mesh"
SHARED = Path(__file__).resolve().parents[2] / "shared"


@cache
def unpacked(name: str = EVIDENCE) -> Path:
    """Return the folder with all recordings of an archive; unpacks it among temporary files."""
    packed = ARCHIVES / f"{name}.tar.xz"
    stamp = f"{packed.stat().st_size:x}-{packed.stat().st_mtime_ns:x}"
    folder = Path(tempfile.gettempdir()) / f"meshnb-recordings-{os.getuid()}-{stamp}"
    if not folder.exists():
        partial = folder.with_name(f"{folder.name}.{os.getpid()}")
        with tarfile.open(packed, "r:xz") as archive:
            archive.extractall(partial, filter="data")
        try:
            partial.rename(folder)
        except OSError:  # another test process was faster
            if not folder.exists():
                raise
    return folder


def recording_names(archive: str = EVIDENCE) -> list[str]:
    """Return the names of all recordings of an archive, healthy and faulty."""
    labels = unpacked(archive).glob("*.truth.json")
    return sorted(path.name.removesuffix(".truth.json") for path in labels)


@cache
def truth_of(name: str, archive: str = EVIDENCE) -> Mapping[str, Any]:
    """Return the label of a recording: class, symptom, mechanism, and the objects to blame."""
    label: Mapping[str, Any] = json.loads((unpacked(archive) / f"{name}.truth.json").read_text())
    return label


@cache
def facts_of(name: str) -> Facts:
    """Return the facts of a recording, made once per test process."""
    return Facts(Bundle(unpacked() / name, label=name))


@pytest.fixture(scope="session")
def recorded() -> Callable[[str], Facts]:
    """Return a function that gives the facts of a recording by its name."""
    return facts_of


@pytest.fixture(scope="session")
def recordings_folder() -> Path:
    """Return the folder with all recordings, one folder each."""
    return unpacked()


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the folder with reference material; skips the test where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("the reference material is not beside this checkout")
    return SHARED
