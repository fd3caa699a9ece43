"""Checks of written objects and `istioctl analyze` on the recordings: the same messages."""

from __future__ import annotations

import json
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from meshnb.tables import Facts
from tests.analysis.conftest import findings
from tests.conftest import recording_names


@pytest.mark.parametrize("name", recording_names())
def test_istioctl_analyze_says_the_same_of_a_recording(
    name: str, recorded: Callable[[str], Facts], shared: Path
) -> None:
    """Every message that istioctl printed about the mesh, about the same object, and no other."""
    archive = shared / "golden" / f"{name}.zip"
    if not archive.exists():
        pytest.skip("istioctl was not asked about this recording")
    with zipfile.ZipFile(archive) as opened:
        printed = json.loads(opened.read("analyze.json"))

    found = findings(recorded(name))

    expected = Counter((one["code"], one["origin"]) for one in printed)
    assert Counter((one.same_as, str(one.subject)) for _, one in found) == expected
