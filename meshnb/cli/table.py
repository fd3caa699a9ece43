"""`meshnb tables` and `meshnb table`: which tables there are, and the rows of one."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from meshnb.cli.base import (
    NARROWEST,
    Page,
    counted,
    facts_of,
    harmless,
    note,
    of_source,
    one_line,
    say,
    shortened,
)
from meshnb.errors import UsageError, nearest

if TYPE_CHECKING:
    import pandas as pd

    from meshnb.tables import Table

#: So many rows of a table a terminal gets when nobody says how many.
_TERMINAL_ROWS = 50


@click.command("tables")
@click.argument("name", required=False)
@click.option("--columns", is_flag=True, help="Print each table's columns and what they mean.")
def list_tables(name: str | None, *, columns: bool) -> None:
    """List the tables, or describe one.

    What is described: what a row is, what the mesh is asked for it, and each column.
    """
    page = Page()
    if name is not None or columns:
        chosen = _tables().values() if name is None else [known_table(name)]
        page.lines += "\n\n".join(table.document() for table in chosen).split("\n")
    else:
        width = max(map(len, _tables()))
        for table in _tables().values():
            page.add(table.grain, label=f"{table.name:<{width}}", hang=width + 1)
    page.show()


def _tables() -> Mapping[str, Table]:
    from meshnb.tables import TABLES  # noqa: PLC0415  brings pandas

    return TABLES


def known_table(name: str) -> Table:
    """Return a table by its name. Raises UsageError: there is none of this name."""
    if name not in _tables():
        raise UsageError(f"There is no table {name!r}.", next_step=nearest(name, _tables()))
    return _tables()[name]


@click.command("table")
@click.argument("name")
@of_source
@click.option(
    "--where",
    "conditions",
    metavar="COLUMN=VALUE",
    multiple=True,
    help="Only rows in which the column has this value, written as csv has it; nothing after the = "
    "for an absent one. Repeat it for rows that fulfil all.",
)
@click.option("--columns", "chosen", metavar="A,B,...", help="Only these columns, in this order.")
@click.option(
    "--limit",
    type=click.IntRange(min=0),
    help=f"At most so many rows.  [default: {_TERMINAL_ROWS} for text on a terminal, else all]",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "csv", "json"]),
    default="text",
    show_default=True,
    help="text for people; csv, with control characters spelled out; json, a list of records with "
    "null for what is absent and times in RFC 3339.",
)
def print_table(
    name: str,
    source: str,
    *,
    conditions: tuple[str, ...],
    chosen: str | None,
    limit: int | None,
    form: str,
) -> None:
    """Print the rows of a table.

    What could not be had of it is noted on stderr.
    """
    table = known_table(name)
    wanted = [_condition(table, condition) for condition in conditions]
    columns = list(table.columns) if chosen is None else chosen.split(",")
    columns = [_column(table, column) for column in columns]
    facts = facts_of(source, everything=False)
    frame = matching = facts[name]
    for column, value in wanted:
        matching = matching[
            [cell_text(_value(cell)) == value for cell in matching[column].tolist()]
        ]
    page = Page()
    if limit is None and form == "text" and page.width is not None:
        limit = _TERMINAL_ROWS
    shown = matching[columns] if limit is None else matching[columns].head(limit)
    if form == "csv":
        say(_csv(shown))
    elif form == "json":
        say(_json(shown))
    else:
        left_out = _aligned(page, shown)
        cut = f" ({len(matching)} match)" if len(shown) < len(matching) < len(frame) else ""
        page.add(f"{len(shown)} of {counted(len(frame), 'row')}{cut}")
        if left_out:
            page.add(f"no room for {', '.join(left_out)}; choose with --columns")
        page.show()
    gaps = [*facts.source.damage, *map(str, facts.gaps(name))]
    note(gaps, f"`meshnb coverage {source}` lists them.")


def _column(table: Table, name: str) -> str:
    name = name.strip()
    if name not in table.columns:
        raise UsageError(
            f"Table {table.name} has no column {name!r}.", next_step=nearest(name, table.columns)
        )
    return name


def _condition(table: Table, condition: str) -> tuple[str, str]:
    name, equals, value = condition.partition("=")
    if not equals:
        raise UsageError(
            f"--where {condition!r} is no condition.", next_step="Write --where COLUMN=VALUE."
        )
    return _column(table, name), value


def _value(cell: Any) -> Any:
    """Return a cell as JSON has it: None when it is absent, a time as text in RFC 3339."""
    if cell is None or type(cell) in (str, int, bool):
        return cell  # most are; a large table has a million
    if isinstance(cell, Mapping):
        return {str(name): _value(member) for name, member in cell.items()}
    if isinstance(cell, set | frozenset):
        return [_value(member) for member in sorted(cell, key=str)]
    if isinstance(cell, list | tuple):
        return [_value(member) for member in cell]
    from meshnb.traces.mesh import plain  # noqa: PLC0415  brings pandas

    match plain(cell):
        case None | bool() | str() | int() as value:
            return value
        case float(value):
            return value if math.isfinite(value) else str(value)
        case datetime() as moment:
            return moment.isoformat().replace("+00:00", "Z")
        case other:
            return str(other)


def cell_text(value: Any) -> str:
    """Return what :func:`_value` made as one text; a list of texts has commas between them."""
    match value:
        case None:
            return ""
        case str():
            return value
        case list() if all(isinstance(member, str) for member in value):
            return ",".join(value)
        case _:
            return json.dumps(value)


def records(frame: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """Yield each row, its cells as JSON has them."""
    columns = [
        [None if gone else cell for cell, gone in zip(column.tolist(), absent, strict=True)]
        for column, absent in ((frame[name], frame[name].isna().tolist()) for name in frame.columns)
    ]
    for cells in zip(*columns, strict=True):
        yield dict(zip(frame.columns, map(_value, cells), strict=True))


def _json(frame: pd.DataFrame) -> str:
    written = [json.dumps(record) for record in records(frame)]
    return "[\n " + ",\n ".join(written) + "\n]\n" if written else "[]\n"


def _csv(frame: pd.DataFrame) -> str:
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    writer.writerow(frame.columns)
    for record in records(frame):
        writer.writerow(harmless(cell_text(value)) for value in record.values())
    return written.getvalue()


def _aligned(page: Page, frame: pd.DataFrame) -> list[str]:
    """Add a title and the rows in aligned columns; return the columns that had no room."""
    cells = {str(name): [str(name)] for name in frame.columns}
    for record in records(frame):
        for name, value in record.items():
            cells[name].append(one_line(cell_text(value)))
    widths = _fitted({name: max(map(len, column)) for name, column in cells.items()}, page.width)
    for number, row in enumerate(zip(*(cells[name] for name in widths), strict=True)):
        parts = [
            shortened(text, width).ljust(width)
            for text, width in zip(row, widths.values(), strict=True)
        ]
        page.lines.append(page.styled("  ".join(parts).rstrip(), bold=number == 0))
    return [name for name in cells if name not in widths]


def _fitted(widths: Mapping[str, int], room: int | None) -> dict[str, int]:
    """Return the widths of the first columns that fit; what is left over goes to all alike."""
    if room is None:
        return dict(widths)
    fitted: dict[str, int] = {}
    for name, width in widths.items():
        least = min(width, max(len(name), NARROWEST))
        room -= least + (2 if fitted else 0)
        if room < 0 and fitted:
            room += least + 2
            break
        fitted[name] = least + min(room, 0)
    wider = sorted(fitted, key=lambda name: widths[name] - fitted[name])
    for number, name in enumerate(wider):
        more = min(widths[name] - fitted[name], max(room, 0) // (len(wider) - number))
        fitted[name] += more
        room -= more
    return fitted
