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

ARCHIVE = Path(__file__).parent / "recordings" / "evidence.tar.xz"
SHARED = Path(__file__).resolve().parents[2] / "shared"


def unpacked() -> Path:
    """Return the folder with all recordings; unpacks them beside pytest's other temporary files."""
    stamp = f"{ARCHIVE.stat().st_size:x}-{ARCHIVE.stat().st_mtime_ns:x}"
    folder = Path(tempfile.gettempdir()) / f"meshnb-recordings-{os.getuid()}-{stamp}"
    if not folder.exists():
        partial = folder.with_name(f"{folder.name}.{os.getpid()}")
        with tarfile.open(ARCHIVE, "r:xz") as archive:
            archive.extractall(partial, filter="data")
        try:
            partial.rename(folder)
        except OSError:  # another test process was faster
            if not folder.exists():
                raise
    return folder


def recording_names() -> list[str]:
    """Return the names of all recordings, healthy and faulty."""
    return sorted(path.name.removesuffix(".truth.json") for path in unpacked().glob("*.truth.json"))


@cache
def truth_of(name: str) -> Mapping[str, Any]:
    """Return the label of a recording: class, symptom, mechanism, and the objects to blame."""
    label: Mapping[str, Any] = json.loads((unpacked() / f"{name}.truth.json").read_text())
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
