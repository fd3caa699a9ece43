"""DataFrames as tables: escaped, with a caption, and never more rows than a browser can bear."""

from __future__ import annotations

from typing import Any

import ipywidgets
import pandas as pd

from meshnb.guides.base import Excerpt
from meshnb.guides.pictures import State
from meshnb.guides.shared import plural
from meshnb.guides.text import cell
from meshnb.tables import TABLES, Facts
from meshnb.views.base import View, escape, mark, styled

#: A browser is shown no more rows than this; the rest is counted, and can be searched for.
MOST = 500
#: No cell shows more characters; a config object can be a megabyte.
_LONGEST = 400
#: From so many characters on, a column gets more room.
_NAME, _LONG = 20, 48
#: From so many rows on, what they have in common is said once.
_COMMON = 3
#: So many rows are shown of those that differ in a single column.
_ALIKE = 4


def table(
    frame: pd.DataFrame,
    caption: str = "",
    *,
    of: int | None = None,
    most: int = MOST,
    once: bool = False,
) -> str:
    """Return a DataFrame as an HTML table; its caption says how many rows of how many it shows.

    With ``once``, what all of the rows have in common is said in the caption instead of in each.
    """
    shown = frame.head(min(most, MOST))
    common, shown = _said_once(shown) if once else ("", shown)
    total = len(frame) if of is None else of
    counted = f"{len(shown)} of {total} rows" if len(shown) < total else plural(total, "row")
    heading = f"{caption} · {counted}" if caption else counted
    classes = {name: _class(shown[name]) for name in shown.columns}
    head = "".join(
        f'<th scope="col"{_attribute(classes[name])}>{escape(name)}</th>' for name in shown.columns
    )
    rows = "".join(
        "<tr>"
        + "".join(
            f"<td{_attribute(classes[name])}>{_cell(value)}</td>"
            for name, value in zip(shown.columns, values, strict=True)
        )
        + "</tr>"
        for values in shown.itertuples(index=False, name=None)
    )
    return (
        f'<div class="mnb-scroll" tabindex="0" role="group" aria-label="{escape(heading)}"><table>'
        f"<caption>{escape(heading)}{common}</caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{rows}</tbody></table></div>"
    )


def excerpt(part: Excerpt, *, most: int = MOST) -> str:
    """Return an excerpt as HTML; a folded one opens when it is asked for."""
    drawn = table(part.rows, part.caption, of=part.of, most=most, once=True)
    if not part.folded:
        return drawn
    return f"<details><summary>{escape(part.caption)}</summary>{drawn}</details>"


def _said_once(rows: pd.DataFrame) -> tuple[str, pd.DataFrame]:
    """Return what all rows have in common as HTML, and the rows with the columns that differ."""
    common = {}
    if len(rows) >= _COMMON:
        for name in rows.columns:
            values = {cell(value) for value in rows[name]}
            if len(values) == 1 and len(text := values.pop()) <= _LONG * 2:
                common[name] = text
    if not common or len(common) == len(rows.columns):
        return "", rows
    told = " · ".join(
        f"{escape(name)} <strong>{escape(text)}</strong>" for name, text in common.items() if text
    )
    said = f'<div class="mnb-common">the same in each: {told}</div>' if told else ""
    differing = rows.drop(columns=list(common))
    # Rows that are alike but for their time, say, are not worth a screen.
    return said, differing if len(differing.columns) > 1 else differing.head(_ALIKE)


def _cell(value: Any) -> str:
    text = cell(value)
    if not text:
        return '<span class="mnb-none" aria-label="nothing">·</span>'
    return escape(
        text if len(text) <= _LONGEST else f"{text[:_LONGEST]} … ({len(text)} characters)"
    )


def _class(column: pd.Series) -> str:
    if pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column):
        return "mnb-number"
    if isinstance(column.dtype, pd.DatetimeTZDtype):
        return "mnb-whole"
    texts = [cell(value) for value in column]
    longest = max(map(len, texts), default=0)
    if longest > _LONG:
        return "mnb-long"
    # The name of a pod is read, and found again, in one line.
    named = longest > _NAME
    return "mnb-name" if named and any(" " in text for text in texts) else "mnb-whole" * named


def _attribute(name: str) -> str:
    return f' class="{name}"' if name else ""


class TableView(View):
    """A table with a box to search it. All rows are searched; the first ones are shown."""

    def __init__(self, frame: pd.DataFrame, caption: str = "") -> None:
        """Show a frame. The caption is the table's name when it has one."""
        self._frame = frame
        self._caption = caption or str(frame.attrs.get("table", ""))
        self._words: pd.Series | None = None
        self._search = ipywidgets.Text(
            description="Search",
            placeholder="words that a row must hold, then Enter",
            continuous_update=False,
            layout=ipywidgets.Layout(width="420px"),
        )
        self._search.observe(lambda _: self._draw(), names="value")
        self._drawn = ipywidgets.HTML()
        super().__init__([self._search, self._drawn])
        self.add_class("mnb-view")
        self._draw()

    def show(self, frame: pd.DataFrame, caption: str = "") -> None:
        """Show another frame, all of it."""
        self._frame = frame
        self._caption = caption or str(frame.attrs.get("table", ""))
        self._words = None
        self._search.value = ""
        self._draw()

    @property
    def found(self) -> pd.DataFrame:
        """The rows that hold every word of the search, whatever their case."""
        words = self._search.value.casefold().split()
        if not words:
            return self._frame
        if self._words is None:
            self._words = _words(self._frame)
        fits = pd.Series(True, index=self._words.index)
        for word in words:
            fits &= self._words.str.contains(word, regex=False)
        return self._frame[fits.to_numpy()]

    def html(self) -> str:
        """Return the table that is shown."""
        return table(self.found, self._caption)

    def text(self) -> str:
        """Return the first rows as pandas prints them."""
        return f"{self._caption}: {len(self.found)} rows\n{self.found.head(10).to_string()}"

    def _draw(self) -> None:
        self._drawn.value = styled(self.html())


def _words(frame: pd.DataFrame) -> pd.Series:
    """Return all values of each row as one text to search in."""
    columns = [frame[name].map(cell).tolist() for name in frame.columns]
    return pd.Series(
        [" ".join(values).casefold() for values in zip(*columns, strict=True)], dtype="string"
    )


class TablesView(View):
    """Every table of a source to choose from: its columns, what is missing of it, its rows."""

    def __init__(self, facts: Facts, name: str = "") -> None:
        """Show one table, the first one unless another is named."""
        self._facts = facts
        self._choice = ipywidgets.Dropdown(
            description="Table",
            options=[(f"{one}: {table.grain}", one) for one, table in TABLES.items()],
            value=name or next(iter(TABLES)),
            style={"description_width": "initial"},
            layout=ipywidgets.Layout(width="auto", max_width="760px"),
        )
        self._about = ipywidgets.HTML()
        self._rows = TableView(facts[self._choice.value])
        self._choice.observe(lambda _: self._draw(), names="value")
        super().__init__([self._choice, self._about, self._rows])
        self.add_class("mnb-view")
        self._draw()

    def html(self) -> str:
        """Return the chosen table with what its columns say."""
        return about(self._facts, self._choice.value) + self._rows.html()

    def text(self) -> str:
        """Return the chosen table as text."""
        return f"{TABLES[self._choice.value].document()}\n\n{self._rows.text()}"

    def _draw(self) -> None:
        self._about.value = styled(about(self._facts, self._choice.value))
        self._rows.show(self._facts[self._choice.value])


def about(facts: Facts, name: str) -> str:
    """Return what a table is as HTML: its questions, its columns, and what is missing of it."""
    shown = TABLES[name]
    columns = pd.DataFrame(
        [
            (title, column.description + (" (key)" if column.key else ""), column.dtype)
            for title, column in shown.columns.items()
        ],
        columns=["column", "says", "dtype"],
    )
    asks = "; ".join(str(one) for one in shown.asks)
    grain = shown.grain[0].upper() + shown.grain[1:]
    same = f'<code class="mnb-command">{escape(shown.istioctl)}</code>' if shown.istioctl else ""
    gaps = "".join(
        f"<li>{mark(State.UNKNOWN, gap.state)} {escape(gap)}</li>" for gap in facts.gaps(name)
    )
    return (
        f"<p>{escape(f'{grain}. Asked: {asks}.' if asks else f'{grain}.')}</p>{same}"
        f'<ul class="mnb-plain">{gaps}</ul>'
        f"<details><summary>What its columns say</summary>{table(columns)}</details>"
    )
