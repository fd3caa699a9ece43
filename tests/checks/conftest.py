"""The recordings that most tests of checks alter."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.alteration import Altered


@pytest.fixture
def healthy(tmp_path: Path) -> Altered:
    """Return the recording of a healthy mesh, to be altered."""
    return Altered("healthy", tmp_path)


@pytest.fixture
def market(tmp_path: Path) -> Altered:
    """Return the recording of a healthy mesh with a gateway of the Gateway API, to be altered."""
    return Altered("market-healthy", tmp_path)
