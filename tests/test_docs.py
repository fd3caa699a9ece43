"""What the README and the changelog promise is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from meshnb import cli
from meshnb.sources import open_source

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def _blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def _commands(program: str) -> list[list[str]]:
    """Return the words after each use of a program, in consoles and between backticks."""
    inline = re.findall(rf"`{program} ([^`\n]+)`", README)
    shown = re.findall(rf"^\$ {program} ([^#\n]+)", "".join(_blocks("console")), re.MULTILINE)
    return [text.split() for text in [*inline, *shown]]


def test_each_make_target_in_the_readme_is_in_the_makefile_with_its_help() -> None:
    used = {words[0] for words in _commands("make")}
    targets = re.findall(r"^([a-z]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {"run", "test"} <= used <= set(targets)


def test_each_command_in_the_readme_exists() -> None:
    used = {words[0] for words in _commands("meshnb")}
    assert used
    assert used <= set(cli.commands.commands)


def test_each_recording_in_the_readme_ships() -> None:
    names = set(re.findall(r"recorded:[a-z][a-z-]*", README))
    assert names
    for name in names:
        open_source(name)


@pytest.mark.parametrize("program", _blocks("python"), ids=lambda program: program.split("\n")[0])
def test_each_python_example_in_the_readme_runs_and_shows_something(program: str) -> None:
    shown = 0
    names: dict[str, object] = {}
    for statement in ast.parse(program).body:
        source = ast.unparse(statement)
        if isinstance(statement, ast.Expr):
            shown += len(eval(source, names))  # noqa: S307  the README's own lines
        else:
            exec(source, names)  # noqa: S102  the README's own lines
    assert shown > 0


@pytest.mark.parametrize("name", ["README.md", "CHANGELOG.md"])
def test_each_file_that_is_linked_exists(name: str) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / name).read_text())
    missing = [link for link in links if not (ROOT / link).exists()]
    assert not missing


def test_the_changelog_has_a_place_for_what_is_not_released_yet() -> None:
    headings = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == "[Unreleased]"


def test_the_readme_has_a_place_for_the_accuracy_table() -> None:
    assert README.index("<!-- accuracy -->") < README.index("<!-- /accuracy -->")
