"""DataFrames on a screen: counted, searched, and never more than a browser can bear."""

from __future__ import annotations

from datetime import UTC, datetime

import pandas as pd
import pytest

from meshnb.guides.base import Excerpt
from meshnb.tables import TABLES
from meshnb.views import TablesView, TableView, requests_over_time
from meshnb.views.tables import MOST, excerpt, table
from tests.conftest import facts_of
from tests.widgets import control, shown


def _big(rows: int = 50_000) -> pd.DataFrame:
    return pd.DataFrame({"name": [f"row-{number}" for number in range(rows)], "n": range(rows)})


def test_a_table_of_50000_rows_shows_500_and_says_so() -> None:
    html = table(_big(), "big")
    assert "big · 500 of 50000 rows" in html
    assert html.count("<tr>") == MOST + 1
    assert len(html) < 100_000


def test_all_rows_are_searched_and_not_only_those_that_are_shown() -> None:
    view = TableView(_big(), "big")
    control(view, "Search").value = "ROW-49999"
    assert view.found["n"].tolist() == [49_999]
    assert "row-49999" in shown(view)
    assert "1 row<" in shown(view)


def test_every_word_of_a_search_has_to_be_in_the_row() -> None:
    view = TableView(facts_of("subset-missing")["routes"])
    control(view, "Search").value = "reviews.bookinfo v3 client"
    found = view.found
    assert set(found["proxy"]) == {"client.bookinfo"}
    assert set(found["virtual_service"]) == {"reviews.bookinfo"}
    control(view, "Search").value = ""
    assert len(view.found) == len(facts_of("subset-missing")["routes"])


def test_a_search_for_what_is_not_there_finds_nothing() -> None:
    view = TableView(facts_of("healthy")["pods"])
    control(view, "Search").value = "no-such-pod"
    assert "0 rows" in shown(view)
    assert view.text().startswith("pods: 0 rows")


def test_absence_is_marked_and_truth_is_a_word() -> None:
    frame = pd.DataFrame(
        {
            "truth": pd.array([True, False, None], dtype="boolean"),
            "text": pd.array(["a", None, ""], dtype="string"),
            "time": [datetime(2026, 1, 1, tzinfo=UTC), None, None],
        }
    )
    html = table(frame)
    assert "<td>yes</td>" in html
    assert "<td>no</td>" in html
    assert html.count('aria-label="nothing"') == 1 + 2 + 2
    assert "2026-01-01 00:00:00" in html


def test_a_cell_of_a_megabyte_is_cut_and_counted() -> None:
    html = table(pd.DataFrame({"spec": ["x" * 1_000_000]}))
    assert "(1000000 characters)" in html
    assert len(html) < 2_000


def test_what_all_rows_have_in_common_is_said_once_above_them() -> None:
    """So that the columns that differ are in sight."""
    rows = pd.DataFrame(
        {"proxy": ["a", "b", "c"], "code": [503, 503, 503], "host": ["<x>", "<x>", "<x>"]}
    )
    drawn = excerpt(Excerpt("log", rows, 3))
    assert "the same in each: code <strong>503</strong> · host <strong>&lt;x&gt;</strong>" in drawn
    assert "<td>503" not in drawn
    assert drawn.count('scope="col"') == 1
    few = excerpt(Excerpt("log", rows.head(2), 2))
    assert few.count('scope="col"') == 3


def test_rows_that_differ_in_a_single_column_do_not_fill_the_screen() -> None:
    rows = pd.DataFrame({"code": [503] * 12, "second": range(12)})
    drawn = excerpt(Excerpt("log", rows, 40))
    assert "log · 4 of 40 rows" in drawn
    assert drawn.count("<tr>") == 1 + 4


def test_the_name_of_a_pod_stands_in_one_line() -> None:
    html = table(pd.DataFrame({"proxy": ["productpage-v1-5556f46c94-ctk54.bookinfo"]}))
    assert '<td class="mnb-whole">' in html


def test_numbers_stand_to_the_right() -> None:
    html = table(pd.DataFrame({"n": pd.array([1, None], dtype="Int64")}))
    assert '<td class="mnb-number">1</td>' in html


@pytest.mark.parametrize("name", list(TABLES))
def test_every_table_can_be_looked_at_with_what_its_columns_say(name: str) -> None:
    view = TablesView(facts_of("healthy-loaded"), name)
    html = view.html()
    for column in TABLES[name].columns:
        assert f">{column}<" in html
    assert TABLES[name].grain in view.text()


def test_every_table_is_offered() -> None:
    view = TablesView(facts_of("healthy"))
    assert [value for _, value in control(view, "Table").options] == list(TABLES)
    control(view, "Table").value = "pods"
    assert "10 rows" in shown(view)


def test_what_a_table_did_not_get_is_said_beside_it() -> None:
    view = TablesView(facts_of("istiod-down"), "proxy_status")
    assert "was never asked" in shown(view)


def test_the_chart_counts_each_line_of_the_logs_once() -> None:
    facts = facts_of("subset-missing")
    figure = requests_over_time(facts)
    assert [bar.name for bar in figure.data] == ["fine", "503 NC"]
    counts = {bar.name: int(sum(bar.y)) for bar in figure.data}
    assert counts == {"fine": len(facts["access_log"]) - 42, "503 NC": 42}


def test_the_chart_tells_outcomes_apart_by_pattern_too() -> None:
    figure = requests_over_time(facts_of("app-crash-loop"))
    patterns = [bar.marker.pattern.shape for bar in figure.data]
    assert len(set(patterns)) == len(patterns)


def test_a_chart_without_any_line_is_empty() -> None:
    assert not requests_over_time(facts_of("garden-healthy")).data
