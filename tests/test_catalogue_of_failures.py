"""The catalogue of failures is complete, and what it names exists."""

from __future__ import annotations

import ast
import csv
from pathlib import Path

import pytest

from meshnb.checks import CHECKS
from tests.catalogue import ROOT, TABLE, Entry, entries, table
from tests.conftest import recording_names, truth_of


def test_each_failure_of_the_reference_material_has_a_row(shared: Path) -> None:
    with (shared / "design" / "failures.csv").open(newline="") as file:
        names = [row["id"] for row in csv.DictReader(file)]
    assert [entry.name for entry in entries()] == names


@pytest.mark.parametrize("entry", entries(), ids=lambda entry: entry.name)
def test_an_entry_names_checks_that_exist_and_are_tested_or_says_why_not(entry: Entry) -> None:
    assert set(entry.codes) <= set(CHECKS)
    assert bool(entry.codes) == bool(entry.tested) != bool(entry.left_out)
    assert not entry.left_out or entry.left_out.endswith(".")


def test_each_test_and_recording_that_is_named_exists() -> None:
    named = {name for entry in entries() for name in entry.tested}
    faults = {name for name in recording_names() if not truth_of(name)["healthy"]}
    assert {name for name in named if "::" not in name} <= faults
    ids = {name for name in named if "::" in name}
    known = {
        f"{file}::{node.name}"
        for file in {name.partition("::")[0] for name in ids}
        for node in ast.parse((ROOT / file).read_text()).body
        if isinstance(node, ast.FunctionDef)
    }
    assert ids <= known


def test_the_table_for_readers_is_up_to_date() -> None:
    assert TABLE.read_text() == table(), "run `python -m tests.catalogue`"
