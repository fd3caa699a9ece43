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


#: An address that no pod of the recording has, as a pod had that was replaced since.
GONE = "192.0.2.77:40000"
LONG_AGO = timedelta(minutes=15)


def refused_to(tmp_path: Path, remote: str, ago: timedelta) -> Altered:
    """Return the recording healthy, where details refused whoever asked from an address."""

    def also_refused(line: Line) -> Iterable[Line]:
        if not line.inbound or not line.authority.startswith("details"):
            return [line]
        when = datetime.fromisoformat(line.time) - ago
        old = line._replace(
            time=when.strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z",
            code="403",
            flags="-",
            details="rbac_access_denied_matched_policy[none]",
            id=f"old-{line.id}",
            remote=remote,
        )
        return [old, line]

    return Altered("healthy", tmp_path).lines("details-v1", also_refused)


@pytest.mark.parametrize(("ago", "over"), [(LONG_AGO, True), (timedelta(minutes=5), False)])
def test_what_was_refused_to_a_pod_that_is_gone_is_over_when_all_others_are_answered(
    tmp_path: Path, ago: timedelta, over: bool
) -> None:
    past = diagnose(refused_to(tmp_path, GONE, ago).facts()).past

    assert [one.symptom.code for one in past] == ([403] if over else [])


def test_what_failed_once_long_ago_and_works_since_is_over(tmp_path: Path) -> None:
    """Altered: one call of details failed a quarter of an hour before the recording ends."""
    once = list[str]()

    def failed(line: Line) -> Iterable[Line]:
        if line.inbound or not line.authority.startswith("details") or once:
            return [line]
        once.append(line.id)
        when = datetime.fromisoformat(line.time) - LONG_AGO
        at = when.strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
        old = line._replace(
            time=at, code="404", flags="NR", details="route_not_found", id="old", cluster="-"
        )
        return [old, line]

    past = diagnose(Altered("healthy", tmp_path).lines("client", failed).facts()).past

    assert [one.symptom.count for one in past] == [1]
