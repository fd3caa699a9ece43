"""What failed and works again is over: it stands apart, and the verdict is not about it."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from meshnb.diagnosis import diagnose
from meshnb.symptoms.past import mended
from tests.alteration import Altered, Line

#: When the recording healthy ends, and when something failed before it.
BEFORE = timedelta(minutes=10)
NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)


def earlier(line: Line) -> str:
    """Return the time of ten minutes before a line's, as it is printed."""
    return (datetime.fromisoformat(line.time) - BEFORE).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def with_old_failures(tmp_path: Path, **other: str) -> Altered:
    """Return the recording healthy, whose client failed each call of details ten minutes before."""

    def failed(line: Line) -> Iterable[Line]:
        if not line.authority.startswith("details") or line.inbound:
            return [line]
        old = line._replace(
            time=earlier(line),
            code="503",
            flags="NC",
            details="cluster_not_found",
            id=f"old-{line.id}",
            endpoint="-",
            cluster="-",
        )
        return [old._replace(**other), line]

    return Altered("healthy", tmp_path).lines("client", failed)


def test_what_failed_ten_minutes_ago_and_works_since_is_over(tmp_path: Path) -> None:
    diagnosis = diagnose(with_old_failures(tmp_path).facts())

    assert diagnosis.verdict == "healthy"
    assert [one.symptom.flags for one in diagnosis.past] == [{"NC"}]
    assert "over since 02:" in diagnosis.past[0].message
    assert diagnosis.to_json()["past"][0]["id"] == "p1"


def test_what_nobody_has_asked_for_again_is_not_known_to_be_over(tmp_path: Path) -> None:
    diagnosis = diagnose(with_old_failures(tmp_path, path="/never/again").facts())

    assert not diagnosis.past
    assert diagnosis.verdict != "healthy"


def test_what_works_again_for_another_caller_only_is_not_over(tmp_path: Path) -> None:
    def unheard(line: Line) -> Iterable[Line]:
        now = line.authority.startswith("details") and line.id[:4] != "old-"
        return [] if now and not line.inbound else [line]

    facts = with_old_failures(tmp_path).lines("client", unheard).facts()

    assert not diagnose(facts).past


def test_a_change_at_the_end_is_told_with_what_it_ended(tmp_path: Path) -> None:
    """A VirtualService for the host was changed when the requests began to work again."""
    old = with_old_failures(tmp_path)
    first = min(old.facts()["access_log"]["start_time"].dropna())
    last = max(
        line
        for line in old.facts()["access_log"]["start_time"].dropna()
        if line < first + BEFORE - timedelta(minutes=1)
    )
    spec: dict[str, Any] = {
        "hosts": ["details"],
        "http": [{"route": [{"destination": {"host": "details"}}]}],
    }
    at = f"{last + timedelta(seconds=5):%Y-%m-%dT%H:%M:%SZ}"
    old.add("virtualservices", "details", "bookinfo", at, spec=spec)

    past = diagnose(old.facts()).past

    assert [str(subject) for _, subject in past[0].changes] == ["VirtualService bookinfo/details"]


def _at(*seconds: float) -> list[datetime]:
    return [NOON + timedelta(seconds=one) for one in seconds]


@pytest.mark.parametrize(
    ("failures", "worked", "since"),
    [
        ((0, 1, 2), (10, 40, 70), 10),
        ((0, 1, 2), (10, 40, 50), None),  # for less than a minute
        ((0, 1, 2), (10, 70), None),  # twice may be luck
        ((0, 2), (*range(1, 2), *range(10, 90)), 10),  # two of three failed
        ((0, 40), (*range(1, 40), *range(41, 110)), None),  # one of twenty may fail again
        ((0, 100, 200, 300), (50, 310, 340, 370), None),  # it has come back each time
    ],
)
def test_it_has_to_work_often_and_long_enough(
    failures: tuple[int, ...], worked: tuple[int, ...], since: int | None
) -> None:
    found = mended(_at(*failures), _at(*worked))

    assert found == (NOON + timedelta(seconds=since) if since is not None else None)
