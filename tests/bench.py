"""Measure how long the commands take: ``python -m tests.bench [RUNS]``.

Each command runs as a whole process, in turn with the others, so that a machine that gets slower
slows all of them. Times are wall seconds; the ratio is to a Python that only imports pandas, taken
in the same run. Memory is the largest of the runs, in MiB.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

COMMANDS: dict[str, Sequence[str]] = {
    "python -c 'import pandas'": ("-c", "import pandas"),
    "meshnb --help": ("-m", "meshnb", "--help"),
    "meshnb recordings": ("-m", "meshnb", "recordings"),
    "meshnb table routes recorded:healthy": ("-m", "meshnb", "table", "routes", "recorded:healthy"),
    "meshnb diagnose recorded:subset-missing": (
        "-m",
        "meshnb",
        "diagnose",
        "recorded:subset-missing",
    ),
    "meshnb diagnose recorded:healthy-loaded": (
        "-m",
        "meshnb",
        "diagnose",
        "recorded:healthy-loaded",
    ),
}


def once(arguments: Sequence[str]) -> tuple[float, float]:
    """Run Python once with these arguments; return its wall seconds and its peak memory in MiB."""
    with tempfile.TemporaryFile() as output:
        begun = time.perf_counter()
        process = os.posix_spawn(
            sys.executable,
            [sys.executable, *arguments],
            os.environ,
            file_actions=[
                (os.POSIX_SPAWN_DUP2, output.fileno(), 1),
                (os.POSIX_SPAWN_DUP2, output.fileno(), 2),
            ],
        )
        _, _, usage = os.wait4(process, 0)
        seconds = time.perf_counter() - begun
    per_mebibyte = 1 << 20 if sys.platform == "darwin" else 1 << 10
    return seconds, usage.ru_maxrss / per_mebibyte


def main(runs: int) -> None:
    """Print one row per command, and one per table for how long it takes to make in process."""
    for arguments in COMMANDS.values():
        once(arguments)  # compiled files and disk caches are warm for all
    measured: dict[str, list[tuple[float, float]]] = {name: [] for name in COMMANDS}
    for _ in range(runs):
        for name, arguments in COMMANDS.items():
            measured[name].append(once(arguments))
    base = statistics.median(seconds for seconds, _ in measured["python -c 'import pandas'"])
    print(f"| command (median of {runs}) | s | ratio to import pandas | MiB |\n|---|---|---|---|")
    for name, results in measured.items():
        median = statistics.median(seconds for seconds, _ in results)
        peak = max(memory for _, memory in results)
        print(f"| `{name}` | {median:.2f} | {median / base:.2f} | {peak:.0f} |")
    _tables()


def _tables() -> None:
    from meshnb.sources import Bundle
    from meshnb.tables import TABLES, Facts
    from tests.conftest import unpacked

    facts = Facts(Bundle(Path(unpacked()) / "healthy-loaded"))
    print("\n| table of healthy-loaded, in process | rows | ms |\n|---|---|---|")
    for name in TABLES:
        begun = time.perf_counter()
        rows = len(facts[name])
        print(f"| {name} | {rows} | {(time.perf_counter() - begun) * 1000:.1f} |")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
