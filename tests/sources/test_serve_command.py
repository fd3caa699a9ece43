"""``meshnb serve``: it says how to use it, and leaves nothing behind when it ends."""

from __future__ import annotations

import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from kubernetes import client, config

from meshnb.cli import UNUSABLE, USAGE
from tests.conftest import unpacked


@contextmanager
def serving(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """Run the command on a recording until it serves; give the process and its kubeconfig."""
    process = subprocess.Popen(
        [sys.executable, "-m", "meshnb", "serve", str(unpacked() / "healthy"), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("Serving: ")
        export = process.stdout.readline().strip()
        assert process.stdout.readline().strip() == "kubectl get pods -A"
        try:
            yield process, Path(export.removeprefix("export KUBECONFIG="))
        finally:
            process.kill()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_until_it_is_told_to_end_and_leaves_nothing(how: signal.Signals) -> None:
    with serving("--pods", "12", "--fault", "refuse:resource=secrets") as (process, kubeconfig):
        assert stat.S_IMODE(kubeconfig.stat().st_mode) == 0o600
        core = client.CoreV1Api(config.new_client_from_config(config_file=str(kubeconfig)))
        pods = core.list_pod_for_all_namespaces().items
        assert sum("istio-proxy" in str(pod.spec) for pod in pods) >= 12
        with pytest.raises(client.ApiException, match="403"):
            core.list_secret_for_all_namespaces()
        process.send_signal(how)
        _, err = process.communicate(timeout=10)
        assert (process.returncode, err) == (0, "")
        assert not kubeconfig.parent.exists()


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["healthy"], UNUSABLE, "There is no file or folder 'healthy'"),
        (["recorded:healthy", "--fault", "slo"], USAGE, "Did you mean slow?"),
        (["recorded:healthy", "--kubeconfig", "/"], UNUSABLE, "exists already"),
        (["recorded:healthy", "--credential", "none"], USAGE, "'none' is not one of"),
    ],
)
def test_what_cannot_be_served_is_a_sentence(arguments: list[str], code: int, said: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "meshnb", "serve", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert ended.returncode == code
    assert said in ended.stderr
