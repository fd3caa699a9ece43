"""The environments for conda and for Binder install what pyproject.toml says."""

from __future__ import annotations

import ast
import os
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def _environment(path: str) -> tuple[list[str], list[str]]:
    """Return what an environment file takes from conda, and what from pip."""
    wanted = yaml.safe_load((ROOT / path).read_text())["dependencies"]
    conda = [entry for entry in wanted if isinstance(entry, str)]
    (pip,) = [entry["pip"] for entry in wanted if isinstance(entry, dict)]
    return conda, pip


def _name(requirement: str) -> str:
    return re.split(r"[\s<>=!~\[;]", requirement, maxsplit=1)[0].lower()


def test_binder_installs_exactly_the_dependencies_of_the_package() -> None:
    _, pip = _environment("binder/environment.yml")
    assert pip == PROJECT["dependencies"]


def test_binder_installs_the_package_itself_without_dependencies_once_its_files_are_there() -> None:
    script = ROOT / "binder" / "postBuild"
    assert os.access(script, os.X_OK)
    assert "pip install --no-deps ." in script.read_text()


def test_conda_installs_the_package_from_this_folder() -> None:
    _, pip = _environment("environment.yml")
    assert [_name(entry.removeprefix("-e ")) for entry in pip] == ["."]


def test_both_environments_name_one_exact_python_that_the_package_allows() -> None:
    lowest = tuple(int(part) for part in PROJECT["requires-python"].removeprefix(">=").split("."))
    for path in ("environment.yml", "binder/environment.yml"):
        conda, _ = _environment(path)
        (python,) = [entry for entry in conda if entry.startswith("python")]
        version = re.fullmatch(r"python=(\d+)\.(\d+)", python)
        assert version is not None
        assert tuple(int(part) for part in version.groups()) >= lowest


def test_everything_that_the_package_imports_is_a_declared_dependency() -> None:
    declared = {_name(requirement) for requirement in PROJECT["dependencies"]}
    distributions = packages_distributions()
    undeclared = set()
    for file in sorted((ROOT / "meshnb").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            for top in {name.partition(".")[0] for name in names}:
                if top == "meshnb" or top in sys.stdlib_module_names:
                    continue
                if not declared & {name.lower() for name in distributions.get(top, [])}:
                    undeclared.add((file.relative_to(ROOT).as_posix(), top))
    assert not undeclared
