"""The catalogue of failures: which check names which, and what shows that it does.

``catalogue.csv`` has one row per entry of the reference material, in its order: ``codes`` of checks
and ``tested``, both separated by spaces; a test is pytest's id without parameters, or the name of a
labelled recording. ``left_out`` says why there is no check. ``python -m tests.catalogue`` writes
the table for readers, ``meshnb/checks/FAILURES.md``.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from meshnb.checks import CHECKS

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "meshnb" / "checks" / "FAILURES.md"
COLUMNS = ["entry", "codes", "tested", "left_out"]
_ABOVE = """\
# Failures that are named

One row per kind of failure: the checks that name it, and the recordings and tests that show it.
Written by `python -m tests.catalogue` from `tests/catalogue.csv`.

| Entry | Named by | Shown by |
| --- | --- | --- |
"""


@dataclass(frozen=True)
class Entry:
    """One kind of failure."""

    name: str
    codes: tuple[str, ...]
    #: ids of tests, or names of recordings
    tested: tuple[str, ...]
    #: why no check names it; empty when one does
    left_out: str


def entries() -> list[Entry]:
    """Return all entries, in their order."""
    with (ROOT / "tests" / "catalogue.csv").open(newline="") as file:
        rows = csv.reader(file)
        assert next(rows) == COLUMNS
        return [
            Entry(name, tuple(codes.split()), tuple(tested.split()), left_out)
            for name, codes, tested, left_out in rows
        ]


def table() -> str:
    """Return the table for readers."""
    return _ABOVE + "".join(map(_row, entries()))


def _row(entry: Entry) -> str:
    named = "<br>".join(f"{code} {CHECKS[code].title}" for code in entry.codes)
    return (
        f"| {entry.name} | {named or entry.left_out} | {'<br>'.join(map(_shown, entry.tested))} |\n"
    )


def _shown(name: str) -> str:
    """Return a test as the sentence that its name is, and a recording as such."""
    _, is_test, function = name.partition("::test_")
    return function.replace("_", " ") if is_test else f"recording `{name}`"


if __name__ == "__main__":
    TABLE.write_text(table())
