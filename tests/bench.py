"""Measure how long the commands take: ``python -m tests.bench [RUNS]``.

Each command runs as a whole process, in turn with the others, so that a machine that gets slower
slows all of them. Times are wall seconds; the ratio is to a Python that only imports pandas, taken
in the same run. Memory is the largest of the runs, in MiB. Modules are compiled before, as they are
where meshnb was installed, also where PYTHONDONTWRITEBYTECODE is set: compiling takes longer than
all else.

The config dump of a large mesh is made by growing a recorded one. Its tables are made in a fresh
process each, from the file to the DataFrame; the least of the runs counts, and its ratio to
``json.loads`` of the same file. Memory is the peak above that of importing pandas, file included.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from meshnb.checks import CHECKS, Inputs
from meshnb.checks import run as run_checks
from meshnb.sources import Bundle
from meshnb.tables import TABLES, Facts
from tests import bench_cluster
from tests.conftest import unpacked
from tests.growing import grow

COMMANDS: dict[str, Sequence[str]] = {
    "python -c 'import pandas'": ("-c", "import pandas"),
    "meshnb --help": ("-m", "meshnb", "--help"),
    "meshnb recordings": ("-m", "meshnb", "recordings"),
    "meshnb tables": ("-m", "meshnb", "tables"),
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


#: So many of the slowest checks are shown.
_SHOWN = 10
#: The tables of a dump, and what istioctl calls them.
DUMPED = {
    "clusters": "cluster",
    "routes": "route",
    "listeners": "listener",
    "endpoints": "eds",
}

#: Prints the seconds that making some tables of a file takes, the peak memory, and the rows.
_MAKE = """
import json, re, resource, sys, time
import pandas
from meshnb.sources import open_source
from meshnb.tables import Facts

def peak():
    try:  # what resource says on Linux begins at the peak of the process that started this one
        with open("/proc/self/status") as status:
            return int(re.search("VmHWM:\\s+([0-9]+)", status.read())[1]) / 1024
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)

_, path, *names = sys.argv
before = peak()
begun = time.perf_counter()
if names:
    facts = Facts(open_source(path))
    rows = sum(len(facts[name]) for name in names)
else:
    with open(path, "rb") as file:
        rows = len(json.loads(file.read()))
seconds = time.perf_counter() - begun
print(json.dumps([seconds, peak() - before, rows]))
"""


def once(arguments: Sequence[str], environment: Mapping[str, str]) -> tuple[float, float]:
    """Run Python once with these arguments; return its wall seconds and its peak memory in MiB."""
    with tempfile.TemporaryFile() as output:
        begun = time.perf_counter()
        process = os.posix_spawn(
            sys.executable,
            [sys.executable, *arguments],
            environment,
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
    measured: dict[str, list[tuple[float, float]]] = {name: [] for name in COMMANDS}
    with tempfile.TemporaryDirectory() as compiled:
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": compiled}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        for arguments in COMMANDS.values():
            once(arguments, environment)  # compiled files and disk caches are warm for all
        for _ in range(runs):
            for name, arguments in COMMANDS.items():
                measured[name].append(once(arguments, environment))
    base = statistics.median(seconds for seconds, _ in measured["python -c 'import pandas'"])
    print(f"| command (median of {runs}) | s | ratio to import pandas | MiB |\n|---|---|---|---|")
    for name, results in measured.items():
        median = statistics.median(seconds for seconds, _ in results)
        peak = max(memory for _, memory in results)
        print(f"| `{name}` | {median:.2f} | {median / base:.2f} | {peak:.0f} |")
    _tables()
    _checks()
    with tempfile.TemporaryDirectory() as folder:
        _large(Path(folder), runs)
    bench_cluster.main()


def _tables() -> None:
    facts = Facts(Bundle(unpacked() / "healthy-loaded"))
    print("\n| table of healthy-loaded, in process | rows | ms |\n|---|---|---|")
    for name in TABLES:
        begun = time.perf_counter()
        rows = len(facts[name])
        print(f"| {name} | {rows} | {(time.perf_counter() - begun) * 1000:.1f} |")


def _checks() -> None:
    """Print the checks that take longest when tables, traces and symptoms are there."""
    inputs = Inputs(Facts(Bundle(unpacked() / "healthy-loaded")))
    for check in CHECKS.values():
        for name in (*check.tables, *check.inputs):
            inputs.get(name)
    took: dict[str, float] = {}
    for check in CHECKS.values():
        begun = time.perf_counter()
        list(run_checks(inputs, [check]))
        took[f"{check.code} {check.name}"] = (time.perf_counter() - begun) * 1000
    print("\n| check of healthy-loaded, in process | ms |\n|---|---|")
    for name in sorted(took, key=took.__getitem__, reverse=True)[:_SHOWN]:
        print(f"| {name} | {took[name]:.1f} |")
    print(f"| all {len(took)} | {sum(took.values()):.0f} |")


def _large(folder: Path, runs: int) -> None:
    recorded = next((unpacked() / "healthy-loaded").rglob("details-*/15000/config_dump*"))
    path = grow(recorded, folder / "dump.json")
    wanted: dict[str, tuple[str, ...]] = {
        "json.loads": (),
        **{name: (name,) for name in DUMPED},
        "all four": tuple(DUMPED),
    }
    made: dict[str, list[list[float]]] = {name: [] for name in wanted}
    commands: dict[str, Sequence[str]] = {
        f"meshnb table {name} FILE": (sys.executable, "-m", "meshnb", "table", name, str(path))
        for name in DUMPED
    }
    if istioctl := shutil.which("istioctl"):
        commands |= {
            f"istioctl proxy-config {name} -f FILE": (istioctl, "pc", name, "-f", str(path))
            for name in DUMPED.values()
        }
    whole: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(runs):
        for name, tables in wanted.items():
            program = [sys.executable, "-c", _MAKE, str(path), *tables]
            made[name].append(json.loads(subprocess.check_output(program)))
        for name, command in commands.items():
            begun = time.perf_counter()
            subprocess.run(command, capture_output=True, check=True)
            whole[name].append(time.perf_counter() - begun)
    base = min(seconds for seconds, _, _ in made["json.loads"])
    print(
        f"\n| dump of {path.stat().st_size / 1e6:.0f} MB, in process (best of {runs})"
        " | rows | s | ratio to json.loads | MiB above pandas |\n|---|---|---|---|---|"
    )
    for name, results in made.items():
        seconds, memory = min(r[0] for r in results), max(r[1] for r in results)
        print(f"| {name} | {results[0][2]} | {seconds:.2f} | {seconds / base:.2f} | {memory:.0f} |")
    print(f"\n| the same, whole process (best of {runs}) | s | ratio |\n|---|---|---|")
    for name, times in whole.items():
        print(f"| `{name}` | {min(times):.2f} | {min(times) / base:.2f} |")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
