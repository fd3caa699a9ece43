"""Rooms stand in one row, and a room knows only those to its left; guests stay in their room."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "meshnb"
#: From left to right.
ROOMS = (
    *("errors", "sources", "tables", "traces", "symptoms", "checks", "diagnosis", "guides"),
    *("views", "cli"),
)
#: Where alone a guest may be imported.
GUESTS = {
    "aiohttp": (
        *("sources/cluster.py", "sources/asking.py", "sources/api_server.py"),
        *("sources/port_forward.py", "sources/serve/*.py"),
    ),
    "h11": ("sources/pod_pages.py",),
    "kubernetes": ("sources/kubeconfig.py",),
    "pandas": tuple(f"{room}*" for room in ROOMS if room not in ("errors", "sources")),
    **dict.fromkeys(("IPython", "anywidget", "ipywidgets", "itables", "plotly"), ("views/*",)),
}


def _imports() -> Iterator[tuple[str, str]]:
    """Yield each file with each module it imports anywhere, within functions and for types too."""
    for file in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield file.relative_to(PACKAGE).as_posix(), alias.name
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{file} has a relative import"
                for alias in node.names if node.module == "meshnb" else [ast.alias("")]:
                    yield (
                        file.relative_to(PACKAGE).as_posix(),
                        f"{node.module}.{alias.name}".rstrip("."),
                    )


def _room(file: str) -> str:
    return file.removesuffix(".py").partition("/")[0]


def test_every_file_of_the_package_stands_in_a_room_of_the_row() -> None:
    files = {_room(file.relative_to(PACKAGE).as_posix()) for file in PACKAGE.rglob("*.py")}
    assert files <= {*ROOMS, "__init__", "__main__"}


def test_a_room_imports_itself_and_rooms_to_its_left_only() -> None:
    wrong = []
    for file, module in _imports():
        here, top, there = _room(file), *(module + ".").split(".")[:2]
        if top != "meshnb" or here in ("__init__", "__main__", there):
            continue
        if there not in ROOMS[: ROOMS.index(here)]:
            wrong.append(f"{file} imports {module}")
    assert not wrong


def test_guests_stay_in_their_room() -> None:
    wrong = [
        f"{file} imports {module}"
        for file, module in _imports()
        if not any(fnmatch(file, allowed) for allowed in GUESTS.get(module.split(".")[0], ("*",)))
    ]
    assert not wrong


def test_tables_are_made_where_no_cluster_library_and_no_widget_is_installed() -> None:
    """In a browser's Python, or on a jump host with nothing but pandas."""
    program = """
import sys
guests = "aiohttp h11 kubernetes IPython anywidget ipywidgets itables plotly"
sys.modules.update(dict.fromkeys(guests.split()))
import meshnb
facts = meshnb.Facts(meshnb.open_source("recorded:healthy"))
print(facts.tables()["rows"].sum())
"""
    answer = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.stderr == ""
    assert int(answer.stdout) > 0
