"""The report: one page that holds all that is known, with checksums, and is written whole."""

from __future__ import annotations

import hashlib
import re
import shutil
import zipfile
from html.parser import HTMLParser
from pathlib import Path

import pytest

import meshnb
from meshnb.diagnosis import diagnose
from meshnb.errors import UsageError
from meshnb.guides.chronicle import chronicle
from meshnb.sources import Bundle, record
from meshnb.sources.base import HttpQuestion
from meshnb.tables import Facts
from meshnb.views.base import escape
from meshnb.views.report import report, write_report
from tests.cases import case_of, part_of
from tests.conftest import recording_names, unpacked


class _Outline(HTMLParser):
    """Collects headings, ids, where links lead to, and tables without a caption."""

    def __init__(self) -> None:
        super().__init__()
        self.levels: list[int] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tables = self.captions = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = {name: value or "" for name, value in attrs}
        if re.fullmatch(r"h[1-6]", tag):
            self.levels.append(int(tag[1]))
        if "id" in named:
            self.ids.append(named["id"])
        if tag == "a":
            self.links.append(named["href"])
        self.tables += tag == "table"
        self.captions += tag == "caption"


def _section(page: str, name: str) -> str:
    return page.partition(f'<h2 id="{name}">')[2].partition("</section>")[0]


def _outline(page: str) -> _Outline:
    outline = _Outline()
    outline.feed(page)
    return outline


@pytest.mark.parametrize("name", recording_names())
def test_headings_links_and_captions_are_in_order(name: str) -> None:
    outline = _outline(report(case_of(name).diagnosis))
    assert outline.levels[0] == 1
    assert outline.levels.count(1) == 1
    steps = zip(outline.levels, outline.levels[1:], strict=False)
    assert all(after - before <= 1 for before, after in steps)
    assert len(set(outline.ids)) == len(outline.ids)
    assert {link.removeprefix("#") for link in outline.links} == set(outline.ids)
    assert outline.tables == outline.captions


@pytest.mark.parametrize("name", recording_names())
def test_every_symptom_and_every_cause_is_in_it(name: str) -> None:
    diagnosis = case_of(name).diagnosis
    page = report(diagnosis)
    symptoms, causes = _section(page, "symptoms"), _section(page, "causes")
    for symptom in diagnosis.symptoms:
        assert f"<td>{symptom.id}</td>" in symptoms
    assert causes.count("<article") == len(diagnosis.causes)
    for cause in diagnosis.causes:
        assert f"<h3>{cause.rank}. " in causes
        assert escape(cause.check.code) in causes
    assert _section(page, "ruled-out").count("<li>") == len(diagnosis.ruled_out)


def test_rows_of_evidence_name_the_answer_that_they_are_from_with_its_checksum() -> None:
    case = case_of("subset-missing")
    page = report(case.diagnosis)
    rows = re.findall(r"<tr>(.*?)</tr>", _section(page, "origin"))
    listed = {}
    for row in rows[1:]:
        number, title, _, _, size, digest = re.findall(r"<td[^>]*>(.*?)</td>", row)
        listed[int(number)] = title
        body = case.facts.answer(case.facts.question(title)).content
        assert (int(size), digest) == (len(body), hashlib.sha256(body).hexdigest())
    assert list(listed) == list(range(1, len(listed) + 1))
    causes = _section(page, "causes")
    lines = causes.partition("Evidence: rows of the table access_log")[2].partition("</table>")[0]
    for row in re.findall(r"<tr>(.*?)</tr>", lines)[1:]:
        cells = re.findall(r"<td[^>]*>(.*?)</td>", row)
        pod, _, namespace = cells[0].rpartition(".")
        assert listed[int(cells[-1])] == f"LOG {namespace}/{pod} istio-proxy"


def test_it_has_the_checksum_of_the_file_it_rests_on(tmp_path: Path) -> None:
    path = record(Bundle(unpacked() / "subset-missing"), tmp_path / "tonight.zip")
    page = report(diagnose(Facts(Bundle(path))))
    assert hashlib.sha256(path.read_bytes()).hexdigest() in page
    assert "of the file tonight.zip" in page


def test_a_folder_has_the_checksum_of_its_answers_which_any_change_changes(tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(unpacked() / "subset-missing", folder)

    def checksum() -> str:
        page = report(diagnose(Facts(Bundle(folder))))
        (found,) = re.findall(r'mnb-sum">([0-9a-f]{64})</span> of the list of its', page)
        return str(found)

    before = checksum()
    assert checksum() == before
    log = next(folder.glob("logs/bookinfo/client/istio-proxy*"))
    log.write_text(log.read_text() + "\n")
    assert checksum() != before


def test_versions_and_times_are_told() -> None:
    origin = _section(report(case_of("subset-missing").diagnosis), "origin")
    assert f"<dt>meshnb</dt><dd>{meshnb.__version__}</dd>" in origin
    assert "control plane 1.30.3 (1); data plane 1.30.3 (7)" in origin
    assert "kubelets v1." in origin
    assert "from 2026-11-23 02:50:23 to 2026-11-23 02:50:29 UTC" in origin


def test_the_change_stands_right_before_the_first_symptom() -> None:
    told = chronicle(case_of("subset-missing").diagnosis)
    times = [moment.time for moment in told.moments]
    assert times == sorted(times)
    kinds = [moment.kind for moment in told.moments]
    first = kinds.index("symptom")
    assert told.moments[first].time == told.zero
    assert told.moments[first - 1].kind == "change"
    assert told.moments[first - 1].what == "VirtualService bookinfo/reviews was changed."
    assert kinds[-1] == "recording"
    times_told = _section(report(case_of("subset-missing").diagnosis), "time")
    assert '<td class="mnb-number">-0:01</td><td>change</td>' in times_told


def test_what_could_not_be_seen_is_told_with_the_reason() -> None:
    case = part_of(
        "healthy", lambda q: not (isinstance(q, HttpQuestion) and q.path == "/debug/syncz")
    )
    unseen = _section(report(case.diagnosis), "unseen")
    assert "Unknown because GET 15014/debug/syncz: was never asked" in unseen
    assert "Questions without an answer" in unseen
    whole = _section(report(case_of("healthy").diagnosis), "unseen")
    assert "was never asked" not in whole


def test_a_symptom_that_nothing_explains_is_in_the_list_of_what_is_not_known() -> None:
    diagnosis = case_of("app-slow").diagnosis
    unseen = _section(report(diagnosis), "unseen")
    assert diagnosis.unexplained
    for symptom in diagnosis.unexplained:
        assert f"{symptom.id}: {escape(symptom.message)}" in unseen


def test_it_is_the_same_each_time() -> None:
    case = case_of("subset-missing")
    assert report(case.diagnosis) == report(diagnose(case.facts))


def test_a_file_that_exists_is_left_alone_unless_it_may_be_replaced(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("mine")
    diagnosis = case_of("healthy").diagnosis
    with pytest.raises(UsageError, match="exists already"):
        write_report(diagnosis, path)
    assert path.read_text() == "mine"
    assert write_report(diagnosis, path, force=True) == path
    assert path.read_text() == report(diagnosis)
    assert list(tmp_path.iterdir()) == [path]


def test_a_report_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "report.html").mkdir()
    with pytest.raises(UsageError, match="cannot be written"):
        write_report(case_of("healthy").diagnosis, tmp_path / "report.html", force=True)
    with pytest.raises(UsageError, match="cannot be written"):
        write_report(case_of("healthy").diagnosis, tmp_path / "no" / "report.html")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_a_damaged_recording_is_told_of(tmp_path: Path) -> None:
    whole = record(Bundle(unpacked() / "healthy"), tmp_path / "whole.zip")
    torn = tmp_path / "torn.zip"
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(torn, "w") as target:
        for name in source.namelist():
            if "events" not in name:
                target.writestr(name, source.read(name))
    unseen = _section(report(diagnose(Facts(Bundle(torn)))), "unseen")
    assert "Damage of the recording" in unseen
    assert "which is missing" in unseen
