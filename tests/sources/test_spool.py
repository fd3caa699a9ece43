"""A body goes to a file without a name when it grows, unless it is secret."""

from __future__ import annotations

from mmap import mmap
from pathlib import Path

import pytest

from meshnb.sources.spool import SMALL, Spool, TooLarge


@pytest.mark.parametrize(
    ("size", "secret", "kind"),
    [(0, False, bytes), (SMALL, False, bytes), (SMALL + 1, False, mmap), (SMALL + 1, True, bytes)],
)
def test_a_large_body_is_a_file_that_has_no_name(
    size: int,
    secret: bool,
    kind: type,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    content = bytes(number % 251 for number in range(size))
    spool = Spool(secret=secret)
    for start in range(0, size, 7919):
        spool.write(content[start : start + 7919])
    body = spool.body()
    assert isinstance(body, kind)
    assert bytes(body) == content
    assert list(tmp_path.iterdir()) == []


def test_a_body_larger_than_a_bundle_may_hold_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meshnb.sources.spool.MEMBER_LIMIT", 2 * SMALL)
    spool = Spool()
    spool.write(bytes(2 * SMALL))
    with pytest.raises(TooLarge, match="larger than"):
        spool.write(b"x")
