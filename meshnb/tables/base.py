"""What a table is, and the facts: the tables of one source, each made once, on first use.

A table is its columns, in data, and one function that turns one document of evidence into rows::

    EVENTS = Table(
        name="events",
        grain="one row per Kubernetes event",
        asks=Listed("v1", "events"),
        columns={"reason": Column("string", "why it was written, one word")},
    )


    @EVENTS.reads
    def _rows(event: Json, question: Question, facts: Facts) -> Iterator[Row]:
        yield {"reason": dig(event, "reason")}

Every table ends with the column ``question``: which question to the mesh the row was read from.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from itertools import chain, groupby, islice, repeat
from operator import itemgetter
from typing import Any, TypeVar

import msgspec
import numpy as np
import pandas as pd

from meshnb.errors import CatalogueError, NotRecorded, UsageError, nearest
from meshnb.sources.base import (
    Answer,
    Body,
    HttpQuestion,
    ListQuestion,
    LogQuestion,
    ProbeQuestion,
    Question,
    Source,
    only,
    parse_time,
)
from meshnb.sources.kept import Kept
from meshnb.sources.permissions import refused as lacking_permissions

Json = Any
Row = dict[str, Any]
Decode = Callable[[Body], Any]
Reader = Callable[[Json, Question, "Facts"], Iterator["Row | Block"]]
Derivation = Callable[["Facts"], Iterator[tuple[Question, "Row | Block"]]]
_R = TypeVar("_R", bound="Row | Block")
_M = TypeVar("_M")

#: The state of what lies outside of the chosen part of the mesh.
OUTSIDE = "outside"
#: The state of what could not be had from a pod that ended while the mesh was asked.
ENDED = "ended"
#: What matters to the pods of its own namespace only.
_OF_PODS = frozenset(
    {"events", "deployments", "replicasets", "statefulsets", "daemonsets", "jobs", "cronjobs"}
)
#: So many rows are turned into columns at a time.
_BATCH = 1000

#: pandas dtypes that a column may have. Times are UTC; "object" holds tuples, lists or dicts.
DTYPES = ("string", "boolean", "Int64", "Float64", "datetime64[us, UTC]", "object")


#: What reading JSON raises when it is none, or nested too deeply.
NOT_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def decode_json(body: Body) -> Json:
    """Return JSON as dicts, lists and plain values. Raises one of ``NOT_JSON``."""
    return msgspec.json.decode(body)


@dataclass(frozen=True, slots=True)
class Column:
    """One column: its pandas dtype, and what it says. The unit stands in the column's name."""

    dtype: str
    description: str
    key: bool = False
    #: whether it changes while nobody changes anything: a time, an age, a count or a version
    passing: bool = False


@dataclass(frozen=True, slots=True)
class Listed:
    """Asks for all objects of one Kubernetes resource; the reader gets one object at a time.

    ``api`` is a group, or ``v1`` for the core group; any version of the group is taken. With
    ``optional`` it is no gap when the cluster does not know the resource.
    """

    api: str
    resource: str
    optional: bool = False

    def __str__(self) -> str:
        """Return the question in words."""
        return f"list {self.resource}" + ("" if self.api == "v1" else f".{self.api}")

    def matches(self, question: Question) -> bool:
        """Whether a question of a source is this one."""
        return (
            isinstance(question, ListQuestion)
            and question.resource == self.resource
            and question.api_version.rpartition("/")[0] == ("" if self.api == "v1" else self.api)
        )


@dataclass(frozen=True, slots=True)
class Got:
    """Asks for a page on a port of each pod that has it; the reader gets the decoded JSON, or text.

    ``path`` is the beginning of the path. ``proxies`` says that each sidecar and gateway should
    have been asked: one that was not is a gap. ``decode`` is for pages too large to be decoded as
    a whole; it raises what :func:`decode_json` raises.
    """

    port: int
    path: str
    proxies: bool = False
    text: bool = False
    decode: Decode = decode_json

    def __str__(self) -> str:
        """Return the question in words."""
        return f"GET {self.port}{self.path}"

    def matches(self, question: Question) -> bool:
        """Whether a question of a source is this one."""
        return (
            isinstance(question, HttpQuestion)
            and question.port == self.port
            and question.path.startswith(self.path)
        )


@dataclass(frozen=True, slots=True)
class Logged:
    """Asks for the log of each container with one of these names; the reader gets one text."""

    containers: tuple[str, ...]

    def __str__(self) -> str:
        """Return the question in words."""
        return f"log {' or '.join(self.containers)}"

    def matches(self, question: Question) -> bool:
        """Whether a question of a source is this one."""
        return isinstance(question, LogQuestion) and question.container in self.containers


Selector = Listed | Got | Logged


@dataclass(frozen=True, slots=True)
class Gap:
    """Something that a table wanted and did not get: of whom, and why.

    ``state`` is ``not asked``, ``refused``, ``silent`` or ``unreadable``. No lack is what is
    ``outside`` of the part of the mesh that somebody chose to look at, which is said once, and what
    a pod could not say because it ``ended`` meanwhile.
    """

    question: str
    state: str
    reason: str

    def __str__(self) -> str:
        """Return one readable sentence without its full stop."""
        return f"{self.question}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Block:
    """Many rows at once: a tuple of values per row, and what all rows have in common.

    For documents of ten thousands of rows, where a dict for each would take most of the time.
    """

    names: tuple[str, ...]
    rows: Sequence[tuple[Any, ...]]
    shared: Row


@dataclass(slots=True)
class _Built:
    frame: pd.DataFrame
    gaps: dict[Gap, None]
    questions: dict[Question, None]


#: For what is no table itself.
_NO_FRAME = pd.DataFrame()


class Table:
    """One table: name, grain, columns, which questions it asks, and how rows are read from them."""

    def __init__(
        self,
        *,
        name: str,
        grain: str,
        columns: Mapping[str, Column],
        asks: Selector | tuple[Selector, ...] = (),
        istioctl: str = "",
    ) -> None:
        """Declare a table. ``istioctl`` is the command that shows the same, where there is one."""
        for title, column in columns.items():
            if column.dtype not in DTYPES:
                raise CatalogueError(
                    f"Column {name}.{title} has dtype {column.dtype!r}.",
                    next_step=f"Use one of {', '.join(DTYPES)}.",
                )
        self.name = name
        self.grain = grain
        self.asks: tuple[Selector, ...] = asks if isinstance(asks, tuple) else (asks,)
        self.istioctl = istioctl
        self.columns: Mapping[str, Column] = {
            **columns,
            "question": Column("string", "the question to the mesh that this row was read from"),
        }
        self._reader: Reader | None = None
        self._derivation: Derivation | None = None
        self.__doc__ = self.document()

    def __repr__(self) -> str:
        """Show the name and the grain."""
        return f"<Table {self.name}: {self.grain}>"

    def document(self) -> str:
        """Return the table's documentation: grain, what it asks, columns with their meaning."""
        width = max(len(name) for name in self.columns)
        lines = [f"{self.name}: {self.grain}.", ""]
        if self.asks:
            lines += [f"Asks: {'; '.join(str(ask) for ask in self.asks)}."]
        if self.istioctl:
            lines += [f"The same with istioctl: {self.istioctl}"]
        lines += ["", "Columns:"]
        for name, column in self.columns.items():
            mark = " (key)" * column.key + " (passing)" * column.passing
            lines.append(f"  {name:<{width}}  {column.description}{mark}  [{column.dtype}]")
        return "\n".join(lines)

    def reads(self, reader: Reader) -> Reader:
        """Declare the function that reads the rows of one document: an object, a page or a log."""
        self._reader = reader
        return reader

    def derives(self, derivation: Derivation) -> Derivation:
        """Declare the function that makes the rows from other tables or from several questions."""
        self._derivation = derivation
        return derivation

    def rows(self, facts: Facts) -> Iterator[tuple[Question, Row | Block]]:
        """Yield each row, or many at once, with the question it was read from."""
        if self._derivation is not None:
            yield from self._derivation(facts)
        elif self._reader is not None:
            for selector in self.asks:
                yield from facts.read(selector, self._reader)
        else:
            raise CatalogueError(f"Table {self.name} has no reader.")

    def frame(self, rows: Iterable[tuple[Question, Row | Block]]) -> pd.DataFrame:
        """Return rows as a DataFrame with exactly this table's columns and dtypes."""
        values: dict[str, list[Sequence[Any]]] = {name: [] for name in self.columns}
        asked, title = None, ""
        for question, count, found in _columns(rows):
            if not found.keys() < self.columns.keys():
                raise CatalogueError(
                    f"Table {self.name} yields undeclared columns "
                    f"{sorted(found.keys() - self.columns.keys())}."
                )
            if question is not asked:
                asked, title = question, str(question)
            for name, parts in values.items():
                alike = _Alike(title if name == "question" else None, count)
                parts.append(found.get(name, alike))
        return pd.DataFrame(
            {name: _joined(values[name], column.dtype) for name, column in self.columns.items()},
            copy=False,  # the arrays are its own
        )


class _Alike(Sequence[Any]):
    """One value for many rows, which is looked at once, not row by row."""

    def __init__(self, value: Any, count: int) -> None:
        self.value = value
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        return ([self.value] * self._count)[index]

    def __iter__(self) -> Iterator[Any]:
        return repeat(self.value, self._count)


def _columns(
    rows: Iterable[tuple[Question, Row | Block]],
) -> Iterator[tuple[Question, int, Mapping[str, Sequence[Any]]]]:
    """Yield the columns of some rows of one question at a time, with the number of rows.

    Not of all rows at once, so that they need not be held beside the columns.
    """
    for question, of_one in groupby(rows, key=itemgetter(0)):
        together = (row for _, row in of_one)
        for block, some in groupby(together, key=lambda row: isinstance(row, Block)):
            if block:
                for many in some:
                    assert isinstance(many, Block)
                    if count := len(many.rows):
                        columns = zip(*many.rows, strict=True)
                        found = dict(zip(many.names, columns, strict=True))
                        alike = {name: _Alike(value, count) for name, value in many.shared.items()}
                        yield question, count, {**found, **alike}
            else:
                while batch := [row for row in islice(some, _BATCH) if not isinstance(row, Block)]:
                    names: set[str] = set().union(*batch)
                    yield (
                        question,
                        len(batch),
                        {name: [row.get(name) for row in batch] for name in names},
                    )


@contextmanager
def _uncollected() -> Iterator[None]:
    """Let the garbage collector rest: of large documents and tables it would take most time."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def records(frame: pd.DataFrame) -> Iterator[Row]:
    """Yield each row as a dict, with None for what is absent."""
    columns = []
    for name in frame.columns:
        column = frame[name]
        gone = column.isna()
        cells = column.tolist()
        if gone.any():
            cells = [None if na else cell for cell, na in zip(cells, gone.tolist(), strict=True)]
        columns.append(cells)
    names = frame.columns.tolist()
    for values in zip(*columns, strict=True):
        yield dict(zip(names, values, strict=True))


@cache
def _absent(dtype: Any) -> Any:
    """Return an array of a dtype with one absent value, to be repeated."""
    return pd.array([None], dtype=dtype)


def _joined(parts: list[Sequence[Any]], dtype: str) -> Any:
    """Return the parts of a column one after the other, as an array of a dtype."""
    alike = [part.value for part in parts if isinstance(part, _Alike)]
    if dtype != "object" and alike and alike.count(alike[0]) == len(parts):
        return pd.Series(_typed(alike[:1], dtype)).array.repeat(sum(map(len, parts)))
    return _typed(list(chain.from_iterable(parts)), dtype)


def _typed(values: list[Any], dtype: str) -> Any:
    kinds = set(map(type, values))
    if dtype == "object":
        return pd.Series(values, dtype=object)
    if dtype.startswith("datetime"):
        if not kinds <= {str, _NOTHING}:
            return pd.Series(pd.DatetimeIndex([moment(value) for value in values], dtype=dtype))
        # Many resources are taken over at once, so the same times come often.
        codes, texts = pd.factorize(np.array(values, dtype=object))
        moments = pd.DatetimeIndex([*map(moment, texts), None], dtype=dtype)
        return pd.Series(moments.take(codes))  # the code of no text is -1, the last
    name: Any = dtype  # the stubs know each name of a dtype, but not a variable that holds one
    if kinds <= {_NOTHING}:
        return _absent(name).repeat(len(values))
    if dtype == "Int64" and kinds <= {int, _NOTHING}:
        with suppress(OverflowError):
            if kinds == {int}:
                numbers = np.fromiter(values, "int64", len(values))
                return pd.arrays.IntegerArray(numbers, np.zeros(len(values), dtype=bool))
            numbers = np.array([0 if value is None else value for value in values], dtype="int64")
            return pd.arrays.IntegerArray(numbers, np.array([value is None for value in values]))
    if not kinds <= _CLEANED[dtype]:
        clean = _CLEAN[dtype]
        values = [None if value is None else clean(value) for value in values]
    return pd.array(values, dtype=name)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _whole(value: Any) -> int | None:
    if isinstance(value, bool):
        return None
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if -(1 << 63) <= number < 1 << 63 else None


def _real(value: Any) -> float | None:
    if isinstance(value, bool):
        return None
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None


def _truth(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None


_CLEAN: Mapping[str, Callable[[Any], Any]] = {
    "string": _text,
    "Int64": _whole,
    "Float64": _real,
    "boolean": _truth,
}
_NOTHING = type(None)
#: Types that need no cleaning. Whole numbers may, because not all of them fit into 64 bits.
_CLEANED: Mapping[str, frozenset[type]] = {
    "string": frozenset({str, _NOTHING}),
    "Int64": frozenset({_NOTHING}),
    "Float64": frozenset({float, _NOTHING}),
    "boolean": frozenset({bool, _NOTHING}),
}


def moment(value: Any) -> datetime | None:
    """Return a time from an RFC 3339 text or a datetime; None when it is neither."""
    if isinstance(value, datetime):
        return value
    if not isinstance(value, str):
        return None
    try:
        return parse_time(value)
    except (ValueError, OverflowError):
        return None


def dig(document: Json, *path: str | int, default: Any = None) -> Any:
    """Return the value at a path of keys and positions, or ``default`` where the path ends early.

    A value of null counts as absent. Evidence may have any shape: a path through something that is
    not an object or a list ends there.
    """
    value = document
    for step in path:
        if isinstance(value, dict):
            value = value.get(step)
        elif isinstance(value, list) and isinstance(step, int) and -len(value) <= step < len(value):
            value = value[step]
        else:
            return default
    return default if value is None else value


# These two are called more often than anything else, so they walk objects themselves.


def items(document: Json, *path: str | int) -> list[Any]:
    """Return the list at a path, or an empty list where there is none."""
    value = document
    for step in path:
        value = value.get(step) if type(value) is dict else dig(value, step)
    return value if isinstance(value, list) else []


def mapping(document: Json, *path: str | int) -> Mapping[str, Any]:
    """Return the object at a path, or an empty one where there is none."""
    value = document
    for step in path:
        value = value.get(step) if type(value) is dict else dig(value, step)
    return value if isinstance(value, dict) else {}


@dataclass(slots=True)
class Facts:
    """All tables of one source. ``facts["routes"]`` makes a table on first use and keeps it.

    >>> from meshnb import Facts, open_source
    >>> facts = Facts(open_source("recorded:healthy"))
    >>> facts["services"].query("namespace == 'bookinfo'")["service"].tolist()
    ['details', 'productpage', 'ratings', 'reviews']
    """

    source: Source
    _catalogue: Mapping[str, Table] = field(default_factory=dict)
    _built: dict[str, _Built] = field(default_factory=dict)
    _open: list[_Built] = field(default_factory=list)
    _answers: dict[Question, Answer] = field(default_factory=dict)
    _documents: dict[tuple[Question, Decode], Any] = field(default_factory=dict)
    _questions: tuple[Question, ...] = ()
    _titles: dict[str, Question] = field(default_factory=dict)
    _asked: set[tuple[str, str]] | None = None
    _split: dict[tuple[str, str], Mapping[str, pd.DataFrame]] = field(default_factory=dict)
    _once: dict[Callable[[Facts], Any], tuple[Any, _Built]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Take the questions that the source has."""
        self._questions = tuple(self.source.questions())
        self._titles = {str(question): question for question in self._questions}
        if not self._catalogue:
            from meshnb.tables import TABLES  # noqa: PLC0415  the list of tables imports this module

            self._catalogue = TABLES

    def __repr__(self) -> str:
        """Name the source and count its questions."""
        return f"<Facts of {self.source.label}: {len(self._questions)} questions>"

    def __getitem__(self, name: str) -> pd.DataFrame:
        """Return a table. Raises UsageError for an unknown name, offering the nearest."""
        return self._table(name).frame

    def _ipython_key_completions_(self) -> list[str]:
        return list(self._catalogue)

    def _table(self, name: str) -> _Built:
        built = self._built.get(name)
        if built is None:
            table = self._catalogue.get(name)
            if table is None:
                raise UsageError(
                    f"There is no table {name!r}.", next_step=nearest(name, self._catalogue)
                )
            built = _Built(_NO_FRAME, {}, {})
            self._open.append(built)
            try:
                with _uncollected():
                    built.frame = table.frame(table.rows(self))
            finally:
                self._open.pop()
            built.frame.attrs["table"] = name
            self._built[name] = built
        self._note(built)
        return built

    def _note(self, read: _Built) -> None:
        """Let what was read before count for all that is being made now."""
        for outer in self._open:
            outer.gaps.update(read.gaps)
            outer.questions.update(read.questions)

    def by(self, name: str, column: str) -> Mapping[str, pd.DataFrame]:
        """Return the rows of a table by their text in a column, in its order, split once.

        Rows without such a text are left out.
        """
        frame = self[name]
        if (name, column) not in self._split:
            self._split[name, column] = {str(text): rows for text, rows in frame.groupby(column)}
        return self._split[name, column]

    def once(self, make: Callable[[Facts], _M]) -> _M:
        """Return what a function makes of these facts, which is made once and never changed.

        What it misses is a gap of each table that wants it, as if it were made for each.
        """
        if make not in self._once:
            read = _Built(_NO_FRAME, {}, {})
            self._open.append(read)
            try:
                made = make(self)
            finally:
                self._open.pop()
            self._once[make] = made, read
        made, read = self._once[make]
        self._note(read)
        return made

    def gaps(self, *names: str) -> tuple[Gap, ...]:
        """Return what these tables wanted and did not get, each gap once."""
        found: dict[Gap, None] = {}
        with self.watched():
            for name in names:
                found.update(self._table(name).gaps)
        return tuple(found)

    @contextmanager
    def watched(self) -> Iterator[Mapping[Gap, None]]:
        """Collect the gaps of all that is read in a ``with`` block, and keep them to it."""
        outer, self._open = self._open, [_Built(_NO_FRAME, {}, {})]
        try:
            yield self._open[0].gaps
        finally:
            self._open = outer

    @property
    def now(self) -> datetime:
        """The moment of the evidence: when the source's newest answer was taken.

        Certificates and ages are judged by this, never by the clock: a recording is always old.
        """
        return self.source.now

    def question(self, title: str) -> Question:
        """Return the question that a table's column ``question`` names.

        Raises UsageError when the source has no such question, offering the nearest.
        """
        question = self._titles.get(title)
        if question is None:
            raise UsageError(
                f"{self.source.label} has no question {title!r}.",
                next_step=nearest(title, self._titles),
            )
        return question

    def answer(self, question: Question) -> Answer:
        """Return the answer to one question, asked once.

        Raises NotRecorded when the source was never asked it.
        """
        answer = self._answers.get(question)
        if answer is None:
            answer = self._answers[question] = only(self.source, question)
        return answer

    def gather(self) -> bool:
        """Ask everything that was not asked yet in one go, which a live cluster answers fastest.

        Returns whether it went to its end. When it is interrupted, what was answered until then
        stays, and the rest counts as unanswered.
        """
        missing = [question for question in self._questions if question not in self._answers]
        complete = True
        try:
            self._ask(missing)
        except KeyboardInterrupt:
            complete = False
        for question in missing:
            if question not in self._answers:
                self._answers[question] = Answer(
                    question, self.now, 0.0, error="not asked: the asking was interrupted"
                )
        return complete

    @property
    def kept(self) -> Kept:
        """What the source answered so far, as a source of its own: it asks nobody anything."""
        return Kept(self.source, self._answers)

    def _ask(self, questions: Iterable[Question]) -> None:
        """Ask several questions at once, and keep the answers."""
        missing = [question for question in questions if question not in self._answers]
        with suppress(NotRecorded):  # is told question by question
            for answer in self.source.ask(missing):
                self._answers[answer.question] = answer

    def gap(self, question: Question | str, state: str, reason: str) -> None:
        """Note that the tables that are being made wanted something and did not get it."""
        for built in self._open:
            built.gaps[Gap(str(question), state, reason)] = None

    def select(self, selector: Selector) -> list[Question]:
        """Return the questions that a selector asks for; notes a gap when there is none."""
        found = [question for question in self._questions if selector.matches(question)]
        if isinstance(selector, Got) and selector.proxies:
            asked = {(q.namespace, q.pod) for q in found if isinstance(q, HttpQuestion)}
            for namespace, pod in self._proxies():
                if (namespace, pod) not in asked and self._is_outside(namespace, pod):
                    self.gap(
                        "pods of the rest of the mesh", OUTSIDE, f"chosen was only: {self._scope}"
                    )
                elif (namespace, pod) not in asked:
                    self.gap(
                        f"GET {namespace}/{pod}:{selector.port}{selector.path}",
                        "not asked",
                        "was never asked",
                    )
        elif not found and not (isinstance(selector, Listed) and selector.optional):
            self.gap(str(selector), "not asked", "was never asked")
        return found

    @property
    def _scope(self) -> str:
        """Which part of the mesh was chosen, in words; empty for all of it."""
        return str(getattr(self.source, "manifest", {}).get("scope") or "")

    def _is_outside(self, namespace: str, pod: str) -> bool:
        """Whether a pod was not asked anything, because a part of the mesh was chosen."""
        if not self._scope:
            return False
        if self._asked is None:
            self._asked = {
                (question.namespace, question.pod)
                for question in self._questions
                if not isinstance(question, ListQuestion)
            }
        return (namespace, pod) not in self._asked

    def ended(self) -> frozenset[tuple[str, str]]:
        """Return namespace and name of the pods that ended between being listed and probed."""
        probes = [question for question in self._questions if isinstance(question, ProbeQuestion)]
        self._ask(probes)
        return frozenset((one.namespace, one.pod) for one in probes if self.answer(one).ended)

    def unreached(self) -> frozenset[tuple[str, str]]:
        """Return namespace and name of the pods to which no probe got: nothing is known of them."""
        probes = [question for question in self._questions if isinstance(question, ProbeQuestion)]
        self._ask(probes)
        reached = {(one.namespace, one.pod) for one in probes if not self.answer(one).undelivered}
        return frozenset({(one.namespace, one.pod) for one in probes} - reached)

    def _note_part(self, answer: Answer) -> None:
        """Note what is missing of a list that was only allowed in some namespaces."""
        question, only_of = answer.question, answer.detail.get("namespaces")
        if not isinstance(question, ListQuestion) or not isinstance(only_of, list):
            return
        names = ", ".join(map(str, only_of))
        if self._scope and question.resource in _OF_PODS:
            self.gap("the rest of the mesh", OUTSIDE, f"chosen was only: {self._scope}")
            return
        lacking = " and ".join(map(str, lacking_permissions(answer)))
        said = f"only of {names}; for the others it lacks permission to {lacking}"
        self.gap(question, "refused", said)

    def _proxies(self) -> Iterator[tuple[str, str]]:
        """Yield namespace and name of each pod that should have a running Envoy."""
        for _, pod in self.objects(Listed("v1", "pods")):
            if dig(pod, "status", "phase") in ("Succeeded", "Failed"):
                continue
            containers = items(pod, "spec", "containers") + items(pod, "spec", "initContainers")
            envoy = any(
                dig(container, "name") == "istio-proxy"
                and "ztunnel" not in str(dig(container, "args"))
                for container in containers
            )
            labels = mapping(pod, "metadata", "labels")
            if envoy and labels.get("app") != "ztunnel":
                yield str(dig(pod, "metadata", "namespace")), str(dig(pod, "metadata", "name"))

    def answers(self, selector: Selector) -> Iterator[Answer]:
        """Yield the usable answers to a selector; notes a gap for each refused or silent one."""
        questions = self.select(selector)
        self._ask(questions)
        for question in questions:
            try:
                answer = self.answer(question)
            except NotRecorded as error:
                self.gap(question, "not asked", error.what)
                continue
            for built in self._open:
                built.questions[question] = None
            state, reason = _state(answer)
            if reason is not None:
                self.gap(question, state, reason)
            elif state == "answered" and answer.status is not None and answer.status >= 400:
                self.gap(question, "refused", f"answered with status {answer.status}")
            elif state == "answered":
                yield answer

    def document(self, answer: Answer, *, text: bool = False, decode: Decode = decode_json) -> Any:
        """Return a body as text, or as JSON, decoded once; None when it is no JSON."""
        if text:
            return answer.content.decode("utf-8", "replace")
        key = answer.question, decode
        if key not in self._documents:
            try:
                with _uncollected():
                    self._documents[key] = decode(answer.body or b"")
            except NOT_JSON as error:
                self._documents[key] = error
        document = self._documents[key]
        if isinstance(document, Exception):
            self.gap(answer.question, "unreadable", f"is not JSON: {document}")
            return None
        return document

    def objects(self, selector: Listed) -> Iterator[tuple[Question, Json]]:
        """Yield each Kubernetes object of a list with the question it came from."""
        for answer in self.answers(selector):
            document = self.document(answer)
            self._note_part(answer)
            listed = dig(document, "items", default=[]) if isinstance(document, Mapping) else None
            if document is not None and not isinstance(listed, list):
                self.gap(answer.question, "unreadable", "is not a list of Kubernetes objects")
            for position, item in enumerate(listed if isinstance(listed, list) else []):
                if isinstance(item, Mapping):
                    yield answer.question, item
                else:
                    self.gap(answer.question, "unreadable", f"item {position} is no object")

    def documents(self, selector: Selector) -> Iterator[tuple[Question, Any]]:
        """Yield each document of a selector with its question: objects, decoded pages, or texts."""
        if isinstance(selector, Listed):
            yield from self.objects(selector)
            return
        text = isinstance(selector, Logged) or selector.text
        decode = selector.decode if isinstance(selector, Got) else decode_json
        for answer in self.answers(selector):
            document = self.document(answer, text=text, decode=decode)
            if document is not None:
                yield answer.question, document

    def read(
        self, selector: Selector, reader: Callable[[Json, Question, Facts], Iterator[_R]]
    ) -> Iterator[tuple[Question, _R]]:
        """Yield the rows of each document; one of an unexpected shape costs only its own rows."""
        for question, document in self.documents(selector):
            try:
                for row in reader(document, question, self):
                    yield question, row
            except (
                KeyError,
                IndexError,
                TypeError,
                AttributeError,
                ValueError,
                OverflowError,
                *NOT_JSON,
            ) as error:
                self.gap(
                    question,
                    "unreadable",
                    f"has an unexpected shape ({type(error).__name__}: {error})",
                )

    def coverage(self) -> pd.DataFrame:
        """Return what was asked, and whether it was answered, refused, silent or unreadable.

        One row per question of the source, then one per gap that no question belongs to, then one
        per damage of the source itself. Columns: ``question``, ``kind``, ``namespace``, ``pod``,
        ``state``, ``reason``, ``status``, ``taken_at``, ``elapsed_ms``. All tables are made first.
        """
        missed: dict[str, Gap] = {}
        unasked: dict[str, str] = {}
        for gap in self.gaps(*self._catalogue):
            if gap.state == "not asked" or gap.question not in self._titles:
                unasked[gap.question] = gap.reason
            else:
                missed[gap.question] = gap
        rows: list[Row] = []
        for question in self._questions:
            answer = self.answer(question)
            state, reason = _state(answer)
            if str(question) in missed:
                state, reason = missed[str(question)].state, missed[str(question)].reason
            elif (
                state == "answered" and not answer.body and not isinstance(question, ProbeQuestion)
            ):
                state = "empty"
            request = question.to_json()
            rows.append(
                {
                    "question": str(question),
                    "kind": request["kind"],
                    "namespace": request.get("namespace"),
                    "pod": request.get("pod"),
                    "state": state,
                    "reason": reason,
                    "status": answer.status,
                    "taken_at": answer.taken_at,
                    "elapsed_ms": answer.elapsed_ms,
                }
            )
        rows += [
            {"question": title, "state": "not asked", "reason": reason}
            for title, reason in unasked.items()
        ]
        rows += [
            {"question": "the bundle itself", "state": "damaged", "reason": reason}
            for reason in self.source.damage
        ]
        return pd.DataFrame(
            {
                name: _typed([row.get(name) for row in rows], dtype)
                for name, dtype in _COVERAGE.items()
            }
        )

    def tables(self) -> pd.DataFrame:
        """Return every table: name, grain, rows, columns, and what is missing of it and why."""
        return pd.DataFrame(
            [
                {
                    "table": name,
                    "grain": table.grain,
                    "rows": len(self[name]),
                    "columns": ", ".join(table.columns),
                    "missing": "; ".join(str(gap) for gap in self.gaps(name)),
                }
                for name, table in self._catalogue.items()
            ],
            columns=["table", "grain", "rows", "columns", "missing"],
        )


def _state(answer: Answer) -> tuple[str, str | None]:
    """Return ``answered``, ``refused``, ``silent`` or ``ended``, and the reason for all but one.

    A list that the cluster does not know is ``empty``: it has no such objects.
    """
    if answer.refused:
        said = answer.error or f"refused with {answer.status}"
        if lacking := lacking_permissions(answer):
            return "refused", f"lacks permission to {' and '.join(map(str, lacking))} ({said})"
        return "refused", said
    if answer.error is not None:
        return ENDED if answer.ended else "silent", answer.error
    if answer.status == 404 and isinstance(answer.question, ListQuestion):
        return "empty", None
    return "answered", None


_COVERAGE: Mapping[str, str] = {
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
