"""Measure how a large live mesh is asked: ``python -m tests.bench_cluster``, in ``make bench``.

The mesh is a recording that is grown and served by another process, so that what is measured is
what asks: wall seconds, the peak of its memory in MiB, and what is left when it was cancelled. Each
row is a fresh process. The server shares the machine, so that a busy one slows both.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.conftest import unpacked

#: Serves a recording until it is interrupted: recording, kubeconfig, pods, megabytes of each dump.
_SERVE = """
import sys, threading
from pathlib import Path
from meshnb.sources import Bundle
from meshnb.sources.serve import Grown, serve

recording, kubeconfig, pods, megabytes = sys.argv[1:]
mesh = Grown(Bundle(recording), pods=int(pods), body_mb=float(megabytes))
try:
    with serve(mesh, kubeconfig=Path(kubeconfig)):
        print("ready", flush=True)
        threading.Event().wait()
except KeyboardInterrupt:
    pass
"""

#: What each row does with the cluster; prints seconds, peak memory, and what it has to say.
_COMMON = """
import json, os, re, sys, tempfile, threading, time
from meshnb.sources import HttpQuestion, open_source

def peak():
    with open("/proc/self/status") as status:
        return int(re.search("VmHWM:\\\\s+([0-9]+)", status.read())[1]) / 1024

def pages(*paths):
    return [
        question
        for question in cluster.questions()
        if isinstance(question, HttpQuestion) and question.port == 15000 and question.path in paths
    ]

def say(seconds, text):
    print(json.dumps([seconds, peak(), text]))

cluster = open_source("cluster")
"""
_MANY = """
asked = pages("/certs", "/ready", "/server_info")
before, begun, errors = peak(), time.perf_counter(), 0
for answer in cluster.ask(asked):
    errors += answer.error is not None or answer.status != 200
seconds = time.perf_counter() - begun
say(seconds, f"{len(asked)} answers, {errors} errors, memory grew by {peak() - before:.0f} MiB")
"""
_LARGE = """
asked = pages("/config_dump?include_eds")[:20]
begun = time.perf_counter()
answers = list(cluster.ask(asked))
seconds = time.perf_counter() - begun
size = sum(len(answer.body or b"") for answer in answers) / 1_000_000
errors = sum(answer.error is not None for answer in answers)
say(seconds, f"{len(answers)} dumps, {size:.0f} MB at once, all kept, {errors} errors")
"""
_CANCELLED = """
folder = tempfile.mkdtemp()
tempfile.tempdir = folder
asked = cluster.questions()
files, threads = set(os.listdir("/proc/self/fd")), threading.active_count()
answers, begun, count = cluster.ask(asked), time.perf_counter(), 0
for answer in answers:
    count += 1
    if time.perf_counter() - begun > 2:
        break
del answer  # a large one is a file
begun = time.perf_counter()
answers.close()
seconds = time.perf_counter() - begun
left = {
    "threads": threading.active_count() - threads,
    "files": len(set(os.listdir("/proc/self/fd")) - files),
    "temporary files": len(os.listdir(folder)),
}
os.rmdir(folder)
said = ", ".join(f"{number} {what}" for what, number in left.items())
say(seconds, f"after {count} of {len(asked)} answers; left: {said}")
"""
_INTERRUPTED = """
import signal
from meshnb.sources import Bundle, record
cluster.questions()
timer = threading.Timer(2, signal.raise_signal, [signal.SIGINT])
timer.start()
begun = time.perf_counter()
with tempfile.TemporaryDirectory() as folder:
    written = Bundle(record(cluster, os.path.join(folder, "part.zip")))
seconds = time.perf_counter() - begun - 2
timer.join()
left = ", ".join(one.name for one in threading.enumerate() if one.name != "MainThread") or "none"
say(seconds, f"{len(written.questions())} answers kept; threads left: {left}")
"""


@contextmanager
def _served(pods: int, megabytes: float) -> Iterator[str]:
    """Serve a mesh from another process; yield the kubeconfig's path."""
    with tempfile.TemporaryDirectory() as folder:
        kubeconfig = str(Path(folder) / "kubeconfig")
        recording = str(unpacked() / "healthy")
        command = [sys.executable, "-c", _SERVE, recording, kubeconfig, str(pods), str(megabytes)]
        # What it says of clients that leave in the middle is not what is measured.
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as server:
            assert server.stdout is not None
            assert server.stdout.readline() == "ready\n"
            try:
                yield kubeconfig
            finally:
                server.send_signal(signal.SIGINT)


def _row(title: str, program: str, kubeconfig: str) -> None:
    answer = subprocess.run(
        [sys.executable, "-c", _COMMON + program],
        env={**os.environ, "KUBECONFIG": kubeconfig},
        capture_output=True,
        text=True,
        check=True,
    )
    seconds, memory, said = json.loads(answer.stdout.splitlines()[-1])
    print(f"| {title} | {seconds:.2f} | {memory:.0f} | {said} |")


def main() -> None:
    """Print one row per load."""
    if not Path("/proc/self/fd").exists():
        print("\nLive meshes are measured where /proc says what a process has open.")
        return
    print("\n| live mesh | s | MiB | |\n|---|---|---|---|")
    with _served(500, 0) as kubeconfig:
        _row("500 pods, 3 questions each (limit: 10 s)", _MANY, kubeconfig)
    with _served(60, 20) as kubeconfig:
        time.sleep(1)
        _row("20 dumps of 20 MB at once (limit: 1 GB)", _LARGE, kubeconfig)
        _row("cancelled after 2 s (limit: 1 s)", _CANCELLED, kubeconfig)
    with _served(500, 0) as kubeconfig:
        _row("a recording, Control-C after 2 s (limit: 1 s)", _INTERRUPTED, kubeconfig)


if __name__ == "__main__":
    main()
