"""Tables keep their shape whatever the evidence is, and say what they did not get, and why."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from meshnb.errors import CatalogueError, NotRecorded, SourceError, UsageError
from meshnb.sources import (
    Answer,
    Bundle,
    HttpQuestion,
    ListQuestion,
    LogQuestion,
    ProbeQuestion,
    Question,
)
from meshnb.tables import TABLES, Facts
from meshnb.tables.base import (
    DTYPES,
    Block,
    Column,
    Gap,
    Got,
    Json,
    Listed,
    Logged,
    Row,
    Table,
    dig,
    items,
    mapping,
    moment,
    records,
)
from tests.alteration import Altered
from tests.conftest import unpacked

Recorded = Callable[[str], Facts]

PODS = ListQuestion("v1", "pods")
#: Every dtype once.
COLUMNS = {
    "name": Column("string", "a name", key=True),
    "flag": Column("boolean", "a flag"),
    "count": Column("Int64", "a count"),
    "size_ms": Column("Float64", "a size"),
    "time": Column("datetime64[us, UTC]", "a time"),
    "labels": Column("object", "anything"),
}


def table(**declared: Any) -> Table:
    """Return a table of its own, with every dtype."""
    return Table(**{"name": "things", "grain": "one row per thing", "columns": COLUMNS} | declared)


def reading(
    reader: Callable[[Json, Question, Facts], Iterator[Row]],
    recording: str = "healthy",
    asks: Listed | Got | Logged = Listed("v1", "pods"),  # noqa: B008  it is frozen
) -> Facts:
    """Return the facts of a recording with only one table, ``things``, that a reader fills."""
    things = table(asks=asks)
    things.reads(reader)
    return Facts(Bundle(unpacked() / recording, label=recording), {"things": things})


def cell(column: str, value: Any) -> Any:
    """Return what becomes of a value in a column."""
    frame = table().frame([(PODS, {column: value})])
    return frame[column].iloc[0]


def with_status(altered: Altered, status: int, **request: Any) -> Altered:
    """Let the answers to these requests have another status, and the body that they had."""
    path = altered.folder / "index.jsonl"
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    chosen = [entry for entry in entries if request.items() <= entry["request"].items()]
    assert chosen
    for entry in chosen:
        entry["status"] = status
    path.write_text("\n".join(map(json.dumps, entries)))
    return altered


def states(facts: Facts) -> dict[str, str]:
    """Return the state of each question, by the question."""
    coverage = facts.coverage()
    return dict(zip(coverage["question"], coverage["state"], strict=True))


# --- Declarations -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["int64", "str", "datetime64[ns]", "category", ""])
def test_a_dtype_that_no_column_may_have_fails_when_the_table_is_declared(dtype: str) -> None:
    with pytest.raises(CatalogueError) as error:
        table(columns={"size": Column(dtype, "a size")})
    assert error.value.what == f"Column things.size has dtype {dtype!r}."
    assert all(name in error.value.next_step for name in DTYPES)


def test_a_column_that_was_not_declared_fails() -> None:
    def read(pod: Json, question: Question, facts: Facts) -> Iterator[Row]:
        yield {"name": "a", "colour": "red"}

    with pytest.raises(
        CatalogueError, match=r"Table things yields undeclared columns \['colour'\]"
    ):
        reading(read)["things"]


def test_a_table_without_a_reader_fails() -> None:
    facts = Facts(Bundle(unpacked() / "healthy"), {"things": table()})
    with pytest.raises(CatalogueError, match="Table things has no reader"):
        facts["things"]


def test_a_table_that_failed_fails_again_and_takes_no_gaps_of_others() -> None:
    bad, good = table(name="bad"), table(name="good", asks=Listed("nothing.io", "things"))
    good.reads(lambda _pod, _question, _facts: iter(()))
    facts = Facts(Bundle(unpacked() / "healthy"), {"bad": bad, "good": good})
    for _ in range(2):
        with pytest.raises(CatalogueError):
            facts["bad"]
    assert [str(gap) for gap in facts.gaps("good")] == ["list things.nothing.io: was never asked"]


@pytest.mark.parametrize("name", TABLES)
def test_a_table_says_what_it_is(name: str) -> None:
    described = TABLES[name]
    text = described.document()
    assert described.__doc__ == text
    assert text.startswith(f"{name}: {described.grain}.\n")
    assert repr(described) == f"<Table {name}: {described.grain}>"
    for ask in described.asks:
        assert str(ask) in text.partition("Asks: ")[2].splitlines()[0]
    assert ("The same with istioctl: " in text) == bool(described.istioctl)
    assert described.istioctl in text
    lines = text.partition("Columns:\n")[2].splitlines()
    assert len(lines) == len(described.columns)
    for line, (title, column) in zip(lines, described.columns.items(), strict=True):
        assert line.split()[0] == title
        assert column.description in line
        assert line.endswith(f"[{column.dtype}]")
        assert (" (key)" in line) == column.key
    assert list(described.columns)[-1] == "question"
    assert any(column.key for column in described.columns.values())


@pytest.mark.parametrize("name", TABLES)
def test_a_unit_stands_in_the_name_of_the_column(name: str) -> None:
    """Where a description says in what something is measured, the name ends so."""
    units = {"in seconds": "_s", "in milliseconds": "_ms", "in days": "_days"}
    for title, column in TABLES[name].columns.items():
        for words, suffix in units.items():
            if column.description.rstrip(".").endswith(words):
                assert title.endswith(suffix)


# --- Shape --------------------------------------------------------------------------------------


def shape(frame: pd.DataFrame) -> dict[str, str]:
    """Return the dtype of each column."""
    return {str(name): str(dtype) for name, dtype in frame.dtypes.items()}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_has_its_columns_and_dtypes_with_and_without_rows(
    name: str, recorded: Recorded, tmp_path: Path
) -> None:
    declared = {title: column.dtype for title, column in TABLES[name].columns.items()}
    empty = TABLES[name].frame([])
    assert shape(empty) == declared
    assert len(empty) == 0
    assert shape(recorded("healthy")[name]) == declared


def test_a_column_that_a_row_does_not_have_is_absent() -> None:
    frame = table().frame([(PODS, {}), (PODS, {"name": "a"})])
    assert frame["name"].tolist() == [pd.NA, "a"]
    assert frame.drop(columns=["name", "question"]).isna().all(axis=None)
    assert frame["question"].tolist() == ["LIST v1/pods"] * 2


@pytest.mark.parametrize(
    ("column", "value", "expected"),
    [
        ("name", "a", "a"),
        ("name", "", ""),
        ("name", {"a": [1]}, '{"a": [1]}'),
        ("name", 3, "3"),
        ("name", True, "true"),
        ("flag", False, False),
        ("count", "7", 7),
        ("count", 7.0, 7),
        ("count", (1 << 63) - 1, (1 << 63) - 1),
        ("count", -(1 << 63), -(1 << 63)),
        ("size_ms", "1.5", 1.5),
        ("size_ms", 2, 2.0),
        ("time", "2026-11-23T02:00:00.123456789Z", pd.Timestamp("2026-11-23T02:00:00.123456Z")),
        ("time", "0001-01-01T00:00:00Z", pd.Timestamp("0001-01-01T00:00:00Z")),
        ("time", "9999-12-31T23:59:59Z", pd.Timestamp("9999-12-31T23:59:59Z")),
        ("time", "2026-11-23T04:00:00+02:00", pd.Timestamp("2026-11-23T02:00:00Z")),
        ("labels", {"a": 1}, {"a": 1}),
        ("labels", (1, 2), (1, 2)),
        ("labels", [], []),
    ],
)
def test_a_value_that_fits_is_kept(column: str, value: Any, expected: Any) -> None:
    found = cell(column, value)
    assert found == expected
    assert not isinstance(expected, bool | str) or str(found) == str(expected)


#: Values that are none of what a column holds.
ODD: dict[str, tuple[Any, ...]] = {
    "flag": (1, 0, "true", "", [], {}),
    "count": (
        *(True, "x", "", "1.5", [], {}),
        *(1 << 63, -(1 << 63) - 1, 10**400, "9" * 5000, float("nan"), float("inf")),
    ),
    "size_ms": (False, "x", "", "nan", [], {}, 10**400),
    "time": (
        *("soon", "", 3, True, [], {}, "2026-13-01T00:00:00Z"),
        *("0001-01-01T00:00:00+05:00", "10000-01-01T00:00:00Z"),
    ),
}


@pytest.mark.parametrize(
    ("column", "value"),
    [(column, value) for column, values in ODD.items() for value in values],
)
def test_a_value_that_does_not_fit_is_absent(column: str, value: Any) -> None:
    assert pd.isna(cell(column, value))


def test_one_odd_value_costs_its_own_cell_only() -> None:
    rows: list[Row] = [{"count": "x", "time": 3}, {"count": 1, "time": "2026-11-23T02:00:00Z"}]
    frame = table().frame((PODS, row) for row in rows)
    assert shape(frame) == shape(table().frame([]))
    assert frame["count"].tolist() == [pd.NA, 1]
    assert frame["time"].isna().tolist() == [True, False]


def test_many_rows_at_once_are_the_same_as_rows_one_by_one() -> None:
    block = Block(("name", "count"), [("a", 1), ("b", None)], {"flag": True})
    rows: list[Row] = [
        {"name": "a", "count": 1, "flag": True},
        {"name": "b", "count": None, "flag": True},
    ]
    one_by_one = table().frame((PODS, row) for row in [*rows, {"count": 3}, *rows])
    mixed: list[Row | Block] = [block, {"count": 3}, block]
    together = table().frame((PODS, row) for row in mixed)
    assert together.equals(one_by_one)
    nothing = table().frame([(PODS, Block(("name",), [], {"flag": True}))])
    assert shape(nothing) == shape(table().frame([]))
    with pytest.raises(CatalogueError, match="undeclared columns"):
        table().frame([(PODS, Block(("nome",), [("a",)], {}))])


def test_an_uptime_that_no_proxy_can_have_costs_two_cells(tmp_path: Path) -> None:
    def ages(page: dict[str, Any]) -> None:
        page["uptime_current_epoch"] = "9" * 30 + "s"

    facts = Altered("healthy", tmp_path).pages(ages, path="/server_info", pod="client").facts()
    proxies = facts["proxies"].set_index("proxy")
    assert len(proxies) == 7
    assert proxies[["started", "uptime_s"]].isna().all(axis=1).sum() == 1
    assert proxies.loc["client.bookinfo", "state"] == "LIVE"
    assert facts.gaps("proxies") == ()


# --- Reaching into evidence ---------------------------------------------------------------------

DOCUMENT = {"a": {"b": [{"c": 1}, 2]}, "none": None, "zero": 0, "text": "abc"}


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (("a", "b", 0, "c"), 1),
        (("a", "b", -1), 2),
        (("zero",), 0),
        ((), DOCUMENT),
        (("a", "b", 2), None),
        (("a", "b", -3), None),
        (("a", "b", "c"), None),
        (("none",), None),
        (("none", "a"), None),
        (("text", 0), None),
        (("zero", "a"), None),
        (("a", 0), None),
    ],
)
def test_a_path_ends_where_the_document_does(path: tuple[str | int, ...], expected: Any) -> None:
    assert dig(DOCUMENT, *path) == expected
    assert dig(DOCUMENT, *path, default="else") == ("else" if expected is None else expected)


@pytest.mark.parametrize("document", [None, 3, "text", [], {}, [1], {"a": None}, {"a": 3}])
def test_what_is_no_list_or_object_is_an_empty_one(document: Any) -> None:
    assert items(document, "a") == []
    assert mapping(document, "a") == {}


def test_lists_and_objects_are_returned_as_they_are() -> None:
    assert items(DOCUMENT, "a", "b") is DOCUMENT["a"]["b"]  # type: ignore[index]
    assert mapping(DOCUMENT, "a") is DOCUMENT["a"]
    assert items(DOCUMENT, "a") == []
    assert mapping(DOCUMENT, "a", "b") == {}


def test_a_moment_is_in_utc() -> None:
    assert moment("2026-11-23T04:00:00+02:00") == datetime(2026, 11, 23, 2, tzinfo=UTC)
    assert moment("2026-11-23T02:00:00") == datetime(2026, 11, 23, 2, tzinfo=UTC)
    east = datetime(2026, 11, 23, 4, tzinfo=timezone(timedelta(hours=2)))
    assert moment(east) is east
    assert moment("soon") is None
    assert moment(None) is None
    assert moment(1700000000) is None


# --- Questions ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("selector", "question", "asks"),
    [
        (Listed("v1", "pods"), PODS, True),
        (Listed("v1", "pods"), ListQuestion("v1", "services"), False),
        (Listed("v1", "events"), ListQuestion("events.k8s.io/v1", "events"), False),
        (Listed("apps", "deployments"), ListQuestion("apps/v1", "deployments"), True),
        (Listed("apps", "deployments"), ListQuestion("apps/v1beta1", "deployments"), True),
        (Listed("apps", "deployments"), ListQuestion("v1", "deployments"), False),
        (Listed("v1", "pods"), HttpQuestion("a", "b", 1, "/pods"), False),
        (Got(15000, "/certs"), HttpQuestion("a", "b", 15000, "/certs"), True),
        (Got(15000, "/config_dump"), HttpQuestion("a", "b", 15000, "/config_dump?x"), True),
        (Got(15000, "/certs"), HttpQuestion("a", "b", 15014, "/certs"), False),
        (Got(15000, "/certs"), HttpQuestion("a", "b", 15000, "/stats"), False),
        (Got(15000, "/certs"), ProbeQuestion("a", "b", 15000, "tcp"), False),
        (Logged(("x", "y")), LogQuestion("a", "b", "y"), True),
        (Logged(("x", "y")), LogQuestion("a", "b", "y", previous=True), True),
        (Logged(("x", "y")), LogQuestion("a", "b", "z"), False),
        (Logged(("x", "y")), PODS, False),
    ],
)
def test_a_selector_asks_for_some_questions(
    selector: Listed | Got | Logged, question: Question, asks: bool
) -> None:
    assert selector.matches(question) is asks


def test_a_selector_is_a_question_in_words() -> None:
    assert str(Listed("v1", "pods")) == "list pods"
    assert str(Listed("apps", "deployments")) == "list deployments.apps"
    assert str(Got(15014, "/debug/syncz")) == "GET 15014/debug/syncz"
    assert str(Logged(("x", "y"))) == "log x or y"


class _Counted:
    """A source that counts how often it was asked each question."""

    def __init__(self, source: Bundle) -> None:
        self.source = source
        self.label, self.damage, self.now = source.label, source.damage, source.now
        self.asked: Counter[Question] = Counter()

    def questions(self) -> Iterable[Question]:
        return self.source.questions()

    def ask(self, questions: Iterable[Question]) -> Iterator[Answer]:
        for question in questions:
            self.asked[question] += 1
            yield from self.source.ask([question])


def test_each_question_is_asked_once_and_only_when_a_table_wants_it() -> None:
    source = _Counted(Bundle(unpacked() / "healthy"))
    facts = Facts(source)
    assert source.asked == Counter()
    assert len(facts["nodes"]) > 0
    assert source.asked == {ListQuestion("v1", "nodes"): 1}
    for name in TABLES:
        assert facts[name] is facts[name]
    facts.coverage()
    facts.tables()
    assert source.asked == dict.fromkeys(source.questions(), 1)


def test_a_page_is_decoded_once(recorded: Recorded) -> None:
    facts = recorded("healthy")
    answer = facts.answer(PODS)
    assert facts.document(answer) is facts.document(answer)
    assert facts.document(answer, text=True) == answer.content.decode()


def test_what_was_never_asked_has_no_answer(recorded: Recorded) -> None:
    facts = recorded("healthy")
    question = HttpQuestion("bookinfo", "client", 15000, "/quitquitquit")
    with pytest.raises(NotRecorded, match="healthy was never asked GET bookinfo/client:15000/quit"):
        facts.answer(question)
    with pytest.raises(UsageError) as error:
        facts.question(str(question))
    assert error.value.next_step.startswith("Did you mean GET bookinfo/client:15000/")


def test_each_row_names_its_question(recorded: Recorded) -> None:
    facts = recorded("healthy")
    for name in TABLES:
        for title in facts[name]["question"].unique():
            assert str(facts.question(title)) == title


class _Forgetful(_Counted):
    """A source that has lost its answers to some questions that it names."""

    lost: tuple[Question, ...] = ()
    silent: tuple[Question, ...] = ()

    def ask(self, questions: Iterable[Question]) -> Iterator[Answer]:
        for question in questions:
            if question in self.lost:
                raise NotRecorded(f"{question} was lost.")
            if question not in self.silent:
                yield from self.source.ask([question])


def test_a_source_that_promised_an_answer_and_has_none_leaves_a_gap() -> None:
    source = _Forgetful(Bundle(unpacked() / "healthy"))
    source.lost = (ListQuestion("v1", "nodes"),)
    facts = Facts(source)
    assert len(facts["nodes"]) == 0
    assert facts.gaps("nodes") == (Gap("LIST v1/nodes", "not asked", "LIST v1/nodes was lost."),)


def test_a_source_that_says_nothing_at_all_cannot_be_used() -> None:
    source = _Forgetful(Bundle(unpacked() / "healthy", label="odd"))
    source.silent = (PODS,)
    with pytest.raises(SourceError, match="odd gave no answer to LIST v1/pods"):
        Facts(source).answer(PODS)


# --- Facts --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "offered"),
    [("rutes", "routes"), ("pod", "pods"), ("cluster", "clusters"), ("acess_log", "access_log")],
)
def test_an_unknown_table_offers_the_nearest(name: str, offered: str, recorded: Recorded) -> None:
    with pytest.raises(UsageError) as error:
        recorded("healthy")[name]
    assert error.value.what == f"There is no table {name!r}."
    assert error.value.next_step.startswith("Did you mean ")
    assert offered in error.value.next_step
    with pytest.raises(UsageError):
        recorded("healthy").gaps(name)


def test_an_unknown_table_like_no_other_lists_them_all(recorded: Recorded) -> None:
    with pytest.raises(UsageError) as error:
        recorded("healthy")["zzz"]
    assert all(name in error.value.next_step for name in TABLES)


def test_a_table_knows_its_name_and_facts_know_their_tables(recorded: Recorded) -> None:
    facts = recorded("healthy")
    assert {facts[name].attrs["table"] for name in TABLES} == set(TABLES)
    assert facts._ipython_key_completions_() == list(TABLES)
    asked = len(list(facts.source.questions()))
    assert repr(facts) == f"<Facts of healthy: {asked} questions>"


def test_all_tables_are_listed_with_what_is_missing(tmp_path: Path) -> None:
    facts = Altered("healthy", tmp_path).forget(resource="nodes").facts()
    overview = facts.tables().set_index("table")
    assert list(overview.index) == list(TABLES)
    for name in TABLES:
        assert overview.loc[name, "rows"] == len(facts[name])
        assert overview.loc[name, "grain"] == TABLES[name].grain
        assert overview.loc[name, "columns"] == ", ".join(TABLES[name].columns)
    assert overview.loc["nodes", "missing"] == "list nodes: was never asked"
    assert overview.loc["services", "missing"] == ""


def test_the_moment_is_that_of_the_newest_answer(tmp_path: Path) -> None:
    """The clock changes nothing, and a later answer does."""
    altered = Altered("healthy", tmp_path)
    entries = [
        json.loads(line) for line in (altered.folder / "index.jsonl").read_text().splitlines()
    ]
    newest = max(entry["taken_at"] for entry in entries)
    before = altered.facts()
    assert before.now == datetime.fromisoformat(newest)
    entries[0]["taken_at"] = "2027-01-01T00:00:00Z"
    (altered.folder / "index.jsonl").write_text("\n".join(map(json.dumps, entries)))
    after = altered.facts()
    assert after.now == datetime(2027, 1, 1, tzinfo=UTC)


def test_ages_are_counted_to_the_answer_they_come_from(recorded: Recorded) -> None:
    """So a table says the same about an old recording as it did on the day itself."""
    facts = recorded("healthy")
    status = facts["proxy_status"].dropna(subset="age_s")
    taken = {title: facts.answer(facts.question(title)).taken_at for title in status["question"]}
    ages = status["question"].map(taken) - status["sent_at"]
    assert ages.dt.total_seconds().tolist() == pytest.approx(status["age_s"].tolist())
    proxies = facts["proxies"]
    assert (proxies["started"] < facts.now).all()
    assert (facts.now - proxies["started"]).dt.total_seconds().max() < 3600


# --- Gaps ---------------------------------------------------------------------------------------


def test_a_gap_is_a_sentence() -> None:
    assert str(Gap("LIST v1/pods", "refused", "may not")) == "LIST v1/pods: may not"


@pytest.mark.parametrize("first", ["webhooks", "injection", "services"])
def test_a_table_made_from_others_has_their_gaps(first: str, tmp_path: Path) -> None:
    """Whichever of them is made first."""
    facts = Altered("healthy", tmp_path).forget(resource="services").facts()
    facts[first]
    wanted = Gap("list services", "not asked", "was never asked")
    for name in ("services", "webhooks", "injection"):
        assert wanted in facts.gaps(name)
    assert facts.gaps("events") == ()
    assert facts.gaps("services", "injection", "services").count(wanted) == 1


def test_what_is_made_once_is_a_gap_of_each_table_that_wants_it() -> None:
    """Also of those that come when it is there already."""
    made = []

    def make(facts: Facts) -> int:
        made.append(list(facts.objects(Listed("nothing.io", "things"))))
        return len(made)

    def rows(facts: Facts) -> Iterator[tuple[Question, Row]]:
        yield PODS, {"name": str(facts.once(make))}

    first, second = table(name="first"), table(name="second")
    first.derives(rows)
    second.derives(rows)
    facts = Facts(Bundle(unpacked() / "healthy"), {"first": first, "second": second})
    assert facts["first"]["name"].tolist() == facts["second"]["name"].tolist() == ["1"]
    assert [gap.question for gap in facts.gaps("first")] == ["list things.nothing.io"]
    assert facts.gaps("first") == facts.gaps("second")


def test_a_table_is_split_by_the_texts_in_a_column(recorded: Recorded) -> None:
    facts = recorded("healthy")
    log = facts["access_log"]
    split = facts.by("access_log", "proxy")
    assert set(split) == set(log["proxy"].dropna())
    for proxy, rows in split.items():
        assert rows.equals(log[log["proxy"] == proxy])


def test_a_row_as_a_dict_has_none_for_what_is_absent() -> None:
    frame = pd.DataFrame(
        {
            "text": pd.array(["a", None], dtype="string"),
            "number": pd.array([None, 2], dtype="Int64"),
            "labels": pd.Series([{"app": "x"}, None], dtype=object),
        }
    )
    assert list(records(frame)) == [
        {"text": "a", "number": None, "labels": {"app": "x"}},
        {"text": None, "number": 2, "labels": None},
    ]


@pytest.mark.parametrize("first", ["inner", "middle", "outer"])
def test_a_gap_is_inherited_through_tables_that_ask_nothing_themselves(first: str) -> None:
    """The others are made from rows alone, long after the question was found to be missing."""
    inner = table(name="inner", asks=Listed("nothing.io", "things"))
    inner.reads(lambda _pod, _question, _facts: iter(()))
    middle, outer = table(name="middle"), table(name="outer")

    @middle.derives
    def _of_inner(facts: Facts) -> Iterator[tuple[Question, Row]]:
        yield from ((PODS, {"name": name}) for name in facts["inner"]["name"])

    @outer.derives
    def _of_middle(facts: Facts) -> Iterator[tuple[Question, Row]]:
        yield from ((PODS, {"name": name}) for name in facts["middle"]["name"])

    catalogue = {one.name: one for one in (inner, middle, outer)}
    facts = Facts(Bundle(unpacked() / "healthy"), catalogue)
    facts[first]
    for name in catalogue:
        assert [gap.question for gap in facts.gaps(name)] == ["list things.nothing.io"]


@pytest.mark.parametrize(
    ("alter", "state", "reason"),
    [
        pytest.param(
            lambda a: a.forget(resource="nodes"), "not asked", "was never asked", id="not asked"
        ),
        pytest.param(
            lambda a: a.silence("timed out", resource="nodes"), "silent", "timed out", id="silent"
        ),
        pytest.param(
            lambda a: a.silence("may not", 403, resource="nodes"),
            "refused",
            "lacks permission to list nodes (may not)",
            id="403",
        ),
        pytest.param(
            lambda a: with_status(a, 401, resource="nodes"), "refused", "refused with 401", id="401"
        ),
        pytest.param(
            lambda a: with_status(a, 500, resource="nodes"),
            "refused",
            "answered with status 500",
            id="500",
        ),
        pytest.param(
            lambda a: a.texts(lambda _: "{", resource="nodes"),
            "unreadable",
            "is not JSON: Input data was truncated",
            id="no JSON",
        ),
        pytest.param(
            lambda a: a.texts(lambda _: "[" * 5000, resource="nodes"),
            "unreadable",
            "is not JSON: maximum recursion depth exceeded",
            id="nested too deeply",
        ),
        pytest.param(
            lambda a: a.texts(lambda _: '{"items": {}}', resource="nodes"),
            "unreadable",
            "is not a list of Kubernetes objects",
            id="no list",
        ),
        pytest.param(
            lambda a: a.texts(lambda _: '{"items": [3]}', resource="nodes"),
            "unreadable",
            "item 0 is no object",
            id="no object",
        ),
        pytest.param(
            lambda a: a.lose(resource="nodes"), "silent", "the bundle is damaged", id="damaged"
        ),
    ],
)
def test_what_is_missing_leaves_an_empty_table_and_one_gap(
    tmp_path: Path, alter: Callable[[Altered], Altered], state: str, reason: str
) -> None:
    facts = alter(Altered("healthy", tmp_path)).facts()
    assert len(facts["nodes"]) == 0
    assert shape(facts["nodes"]) == shape(TABLES["nodes"].frame([]))
    (gap,) = facts.gaps("nodes")
    assert gap.state == state
    assert gap.reason.startswith(reason)
    assert gap.question == ("list nodes" if state == "not asked" else "LIST v1/nodes")
    assert states(facts)[gap.question] == state


def test_a_resource_that_the_cluster_does_not_know_is_no_gap(tmp_path: Path) -> None:
    """Without the Gateway API there are no routes of it, and that is an answer."""
    facts = with_status(Altered("market-healthy", tmp_path), 404, resource="httproutes").facts()
    assert "HTTPRoute" not in set(facts["istio_config"]["kind"])
    assert facts.gaps("istio_config") == ()
    (title,) = (title for title in states(facts) if title.endswith("/httproutes"))
    assert states(facts)[title] == "empty"


def test_a_page_that_is_not_found_is_a_gap(tmp_path: Path) -> None:
    """A port that answers 404 is there, but this istiod does not tell."""
    facts = with_status(Altered("healthy", tmp_path), 404, path="/debug/syncz").facts()
    assert [gap.reason for gap in facts.gaps("proxy_status")] == ["answered with status 404"]
    assert len(facts["proxy_status"]) == 0


def test_an_optional_list_may_never_have_been_asked() -> None:
    def nothing(pod: Json, question: Question, facts: Facts) -> Iterator[Row]:
        yield from ()

    wanted, optional = Listed("x.io", "things"), Listed("x.io", "things", optional=True)
    assert len(reading(nothing, asks=wanted).gaps("things")) == 1
    assert reading(nothing, asks=optional).gaps("things") == ()


def test_a_proxy_that_was_not_asked_is_a_gap_and_what_has_no_envoy_is_none(
    tmp_path: Path, recorded: Recorded
) -> None:
    altered = Altered("garden-healthy", tmp_path)
    altered.add("pods", "import", "garden", "2026-11-23T04:00:00Z", spec={}, status={})
    envoy = {"containers": [{"name": "istio-proxy", "args": ["proxy", "sidecar"]}]}
    for phase in ("Running", "Succeeded", "Failed"):
        altered.add(
            "pods",
            f"pod-{phase.lower()}",
            "garden",
            "2026-11-23T04:00:00Z",
            spec=envoy,
            status={"phase": phase},
        )
    assert recorded("garden-healthy").gaps("clusters") == ()
    assert {
        (gap.state, gap.question.partition("?")[0]) for gap in altered.facts().gaps("clusters")
    } == {("not asked", "GET garden/pod-running:15000/config_dump")}


@pytest.mark.parametrize(
    "error",
    [
        KeyError("k"),
        IndexError("i"),
        TypeError("t"),
        AttributeError("a"),
        ValueError("v"),
        OverflowError("o"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_document_that_its_reader_cannot_read_costs_its_own_rows(error: Exception) -> None:
    def read(pod: Mapping[str, Any], question: Question, facts: Facts) -> Iterator[Row]:
        yield {"name": "before"}
        if dig(pod, "metadata", "name") == "client":
            raise error
        yield {"name": "after"}

    facts = reading(read)
    counts = Counter(facts["things"]["name"])
    assert counts["before"] == counts["after"] + 1 > 2
    (gap,) = facts.gaps("things")
    assert (gap.question, gap.state) == ("LIST v1/pods", "unreadable")
    assert gap.reason == f"has an unexpected shape ({type(error).__name__}: {error})"


def test_a_mistake_of_a_reader_that_no_evidence_explains_is_not_swallowed() -> None:
    def read(pod: Json, question: Question, facts: Facts) -> Iterator[Row]:
        yield {"count": 1 // 0}

    with pytest.raises(ZeroDivisionError):
        reading(read)["things"]


# --- Coverage -----------------------------------------------------------------------------------


def test_a_whole_recording_is_answered_and_nothing_is_missing(recorded: Recorded) -> None:
    facts = recorded("healthy")
    coverage = facts.coverage()
    assert coverage["question"].tolist() == [str(q) for q in facts.source.questions()]
    assert set(coverage["state"]) <= {"answered", "empty", "silent"}
    # What is silent are ports of probes that are closed, as they should be.
    silent = coverage[coverage["state"] == "silent"]
    assert set(silent["kind"]) == {"probe"}
    assert coverage["taken_at"].max() == facts.now
    assert coverage["reason"].notna().tolist() == (coverage["state"] == "silent").tolist()


def test_each_question_has_one_row_with_its_state(tmp_path: Path) -> None:
    altered = Altered("healthy", tmp_path)
    altered.forget(resource="nodes")
    altered.silence("forbidden", 403, resource="secrets")
    altered.silence("no answer within 10 s", pod="client", path="/server_info")
    altered.texts(lambda _: "<html>", path="/debug/syncz")
    altered.texts(lambda _: "", kind="log", pod="client", container="istio-proxy")
    altered.lose(resource="events")
    altered.garble(resource="services")
    facts = altered.facts()
    found = states(facts)
    assert found["LIST v1/pods"] == "answered"
    assert found["list nodes"] == "not asked"
    assert found["LIST v1/secrets"] == "refused"
    assert found["GET bookinfo/client:15000/server_info"] == "silent"
    assert found["LOG bookinfo/client istio-proxy"] == "empty"
    assert found["LIST v1/events"] == "silent"
    (syncz,) = (title for title in found if title.endswith("/debug/syncz"))
    assert found[syncz] == "unreadable"
    # Its line of the index was lost, so nobody knows that it had been asked.
    assert found["list services"] == "not asked"
    coverage = facts.coverage()
    damaged = coverage[coverage["state"] == "damaged"]
    assert damaged["reason"].tolist() == list(facts.source.damage)
    assert set(damaged["question"]) == {"the bundle itself"}
    assert len(damaged) == 2
    asked = coverage[~coverage["state"].isin(["not asked", "damaged"])]
    assert asked["question"].tolist() == [str(q) for q in facts.source.questions()]
    fine = coverage["state"].isin(["answered", "empty"])
    assert coverage["reason"].isna().tolist() == fine.tolist()
    assert shape(coverage) == {
        "question": "string",
        "kind": "string",
        "namespace": "string",
        "pod": "string",
        "state": "string",
        "reason": "string",
        "status": "Int64",
        "taken_at": "datetime64[us, UTC]",
        "elapsed_ms": "Float64",
    }


def test_a_page_that_a_table_could_not_use_is_refused(tmp_path: Path) -> None:
    facts = with_status(Altered("healthy", tmp_path), 500, path="/debug/syncz").facts()
    coverage = facts.coverage()
    row = coverage[coverage["question"].str.endswith("/debug/syncz")].iloc[0]
    assert (row["state"], row["status"]) == ("refused", 500)
    assert row["reason"] == "answered with status 500"


def test_not_being_ready_is_an_answer(recorded: Recorded) -> None:
    """A proxy says so with status 503, and its table shows it."""
    coverage = recorded("bootstrap-wrong-discovery").coverage()
    unready = coverage[coverage["status"] == 503]
    assert len(unready) > 0
    assert set(unready["state"]) <= {"answered", "empty"}
    assert unready["reason"].isna().all()


def test_a_probe_answers_without_a_body(recorded: Recorded) -> None:
    coverage = recorded("healthy").coverage()
    probes = coverage[coverage["kind"] == "probe"]
    assert set(probes["state"]) == {"answered", "silent"}
