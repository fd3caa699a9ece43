"""Measure the diagnosis on every altered recording: ``python -m tests.altered_accuracy [TEST …]``.

The tests are run that alter a recording in one respect, by default those of the checks, and each
mesh that they made is diagnosed as it is at their end: alone, with all ingredients of
:mod:`tests.enriching`, and then under other names, too. Printed is one row per code that a test
names, with its rank among the causes; below it what the richer meshes did to the causes. What the
alteration shows to be no problem must stay none, and the first cause must stay first.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from meshnb.diagnosis import diagnose
from meshnb.sources import Bundle, Source
from meshnb.tables import Facts
from tests.enriching import ALL, INGREDIENTS
from tests.enriching.base import Enriched, under_other_names
from tests.renaming import renamed

TESTS = "tests/checks"
#: A check of what goes wrong; those of objects as they are written have four digits.
_CODE = re.compile(r"\bMNB\d{3}\b")


class Keeper:
    """A plugin of pytest that keeps each altered recording when its test ends."""

    def __init__(self, folder: Path) -> None:
        """Keep them in ``folder``, numbered."""
        self.folder = folder

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> None:
        """Copy the recordings that a test made, and note what it says of them."""
        made = getattr(item, "funcargs", {}).get("tmp_path")
        for number, index in enumerate(sorted(made.rglob("index.jsonl")) if made else []):
            kept = self.folder / f"{len(list(self.folder.iterdir())):04}"
            shutil.copytree(index.parent, kept / index.parent.name)
            test = item.nodeid + (f" #{number}" if number else "")
            codes = _codes(item)
            (kept / "test.json").write_text(json.dumps({"test": test, "codes": codes}))


def _codes(item: pytest.Item) -> list[str]:
    """Return the codes that a test names: by its parameters, else in its own lines."""
    assert isinstance(item, pytest.Function)
    spec = getattr(item, "callspec", None)
    parameters = " ".join(map(str, spec.params.values())) if spec is not None else ""
    source = Path(item.path).read_text().splitlines()
    first = item.function.__code__.co_firstlineno - 1
    lines = source[first : max(line for *_, line in item.function.__code__.co_lines() if line)]
    body = "\n".join(lines[next(n for n, line in enumerate(lines) if "def " in line) :])
    return list(dict.fromkeys(_CODE.findall(parameters) or _CODE.findall(body)))


Blamed = list[tuple[str, str, str]]


@dataclass(frozen=True)
class Mesh:
    """One altered recording: what its test names, and who is blamed for it in each mesh."""

    test: str
    codes: tuple[str, ...]
    #: code, class and subject of each cause above info, by the mesh that it was found in
    blamed: dict[str, Blamed]
    #: the codes of those that are merely worth knowing
    noted: tuple[str, ...]

    def rank(self, code: str) -> int:
        """Return the rank of a code among those that are blamed in the altered recording; 0: no."""
        codes = [one for one, _, _ in self.blamed["plain"]]
        return codes.index(code) + 1 if code in codes else 0

    def spoiled(self, mesh: str) -> str:
        """Say what is different in a richer mesh; nothing when it is the same cause alone."""
        expected, found = self.blamed["plain"], self.blamed[mesh]
        if mesh == "renamed":
            expected = [(*one[:2], renamed(one[2].encode()).decode()) for one in expected]
        first = [one[0::2] for one in expected[:1]] == [one[0::2] for one in found[:1]]
        missing = [one for one in expected if one not in found]
        beside = [one for one in found if one not in expected]
        if first and not missing and not beside:
            return ""
        words = "" if first else "NOT FIRST "
        return f"{words}missing: {missing}; beside: {beside}"


def _meshes(folder: Path, truth: tuple[str, ...]) -> Iterator[tuple[str, Source]]:
    rich = Enriched(Bundle(folder, label=folder.name), truth)
    for name in ALL:
        INGREDIENTS[name](rich)
    yield "enriched", rich
    # A name may be a word of the JSON format, such as details.
    other = Enriched(Bundle(folder, label=folder.name), truth)
    for name in ALL:
        if name != "json_logs":
            INGREDIENTS[name](other)
    yield "renamed", under_other_names(other)


def measure(kept: Path) -> Mesh:
    """Diagnose one altered recording, and the richer meshes made of it."""
    said = json.loads((kept / "test.json").read_text())
    (folder,) = [one for one in kept.iterdir() if one.is_dir()]
    plain = diagnose(Facts(Bundle(folder, label=folder.name)))
    truth = tuple(
        f"{cause.subject.kind}/{cause.subject.namespace}/{cause.subject.name}"
        for cause in plain.problems
    )
    blamed = {
        "plain": [
            (one.check.code, one.failure_class.value, str(one.subject)) for one in plain.problems
        ]
    }
    try:
        for name, source in _meshes(folder, truth):
            blamed[name] = [
                (one.check.code, one.failure_class.value, str(one.subject))
                for one in diagnose(Facts(source)).problems
            ]
    except Exception as error:  # noqa: BLE001  an ingredient may not fit what was altered
        blamed.setdefault("enriched", [("-", "-", repr(error)[:200])])
        blamed.setdefault("renamed", [("-", "-", repr(error)[:200])])
    notes = tuple(one.check.code for one in plain.causes if one.severity.value == "info")
    return Mesh(said["test"], tuple(said["codes"]), blamed, notes)


def report(meshes: Iterable[Mesh]) -> str:
    """Return the table of codes as Markdown, and below what was spoiled."""
    ranks: dict[str, Counter[str]] = defaultdict(Counter)
    above: dict[str, Counter[str]] = defaultdict(Counter)
    lines, details = [], []
    for mesh in meshes:
        for code in mesh.codes:
            rank = mesh.rank(code)
            words = {0: "note" if code in mesh.noted else "no", 1: "first", 2: "three", 3: "three"}
            ranks[code][words.get(rank, "lower")] += 1
            if rank > 1:
                above[code].update(one for one, _, _ in mesh.blamed["plain"][: rank - 1])
        if not mesh.codes and mesh.blamed["plain"]:
            details.append(f"plain: {mesh.test}: {mesh.blamed['plain']}")
        details += [
            f"{name}: {mesh.test}: {mesh.blamed['plain'][:2]} {spoiled}"
            for name in ("enriched", "renamed")
            if (spoiled := mesh.spoiled(name))
        ]
    columns = ("first", "three", "lower", "note", "no")
    lines = [
        f"| code | {' | '.join(columns)} | above it |",
        "|---" * (len(columns) + 2) + "|",
    ]
    lines += [
        f"| {code} | {' | '.join(str(found[one]) for one in columns)} | {', '.join(above[code])} |"
        for code, found in sorted(ranks.items())
    ]
    return "\n".join([*lines, "", *details])


def main(tests: list[str]) -> str:
    """Run tests, diagnose what they altered, and report."""
    with tempfile.TemporaryDirectory() as folder:
        pytest.main(
            ["-q", "-p", "no:cacheprovider", *(tests or [TESTS])], plugins=[Keeper(Path(folder))]
        )
        kept = sorted(Path(folder).iterdir())
        with ProcessPoolExecutor(2) as pool:
            meshes = list(pool.map(measure, kept, chunksize=4))
    return report(meshes)


if __name__ == "__main__":
    print(main(sys.argv[1:]))
