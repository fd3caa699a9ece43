"""What goes wrong with a cluster is said without the credentials that it went wrong with."""

from __future__ import annotations

import json
import traceback
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from meshnb.cli import commands
from meshnb.errors import MeshnbError
from meshnb.sources import open_source

SECRET = "pL4nt3d-credential"  # noqa: S105  it is what is searched for
#: Nothing listens there.
NOWHERE = "https://127.0.0.1:1"


def _plugin(script: str) -> dict[str, Any]:
    return {
        "exec": {
            "apiVersion": "client.authentication.k8s.io/v1",
            "command": "sh",
            "args": ["-c", script],
            "env": [{"name": "PASSWORD", "value": SECRET}],
            "interactiveMode": "Never",
        }
    }


_OTHER = {"kind": "ExecCredential", "apiVersion": "x", "status": {"token": SECRET}}
_USERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "a token": ({"token": SECRET}, {}),
    "a password": ({"username": "me", "password": SECRET}, {}),
    "a program that fails": (_plugin(f"echo {SECRET}; echo token={SECRET} >&2; exit 1"), {}),
    "a program that prints no JSON": (_plugin(f"echo '{SECRET}'"), {}),
    "a program that prints a token of another version": (
        _plugin(f"echo '{json.dumps(_OTHER)}'"),
        {},
    ),
    "a key that is none": ({"client-key-data": SECRET, "client-certificate-data": SECRET}, {}),
    "a proxy with a password": (
        {"token": SECRET},
        {"proxy-url": f"http://me:{SECRET}@127.0.0.1:1"},
    ),
}


def _kubeconfig(path: Path, user: dict[str, Any], cluster: dict[str, Any]) -> Path:
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": NOWHERE, **cluster}}],
        "users": [{"name": "u", "user": user}],
    }
    path.write_text(json.dumps(document))
    return path


@pytest.mark.parametrize("kind", _USERS)
def test_an_error_shows_no_credential(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    user, cluster = _USERS[kind]
    monkeypatch.setenv("KUBECONFIG", str(_kubeconfig(tmp_path / "config", user, cluster)))
    with pytest.raises(MeshnbError) as raised:
        list(open_source("cluster").questions())
    error = raised.value
    assert SECRET not in f"{error} {error.what} {error.next_step} {error!r}"
    answer = CliRunner().invoke(commands, ["diagnose", "cluster"])
    assert answer.exit_code != 0
    assert SECRET not in answer.output
    said = capfd.readouterr()
    assert SECRET not in said.out + said.err


def test_a_traceback_in_a_notebook_shows_no_output_of_the_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    user, cluster = _USERS["a program that prints no JSON"]
    monkeypatch.setenv("KUBECONFIG", str(_kubeconfig(tmp_path / "config", user, cluster)))
    with pytest.raises(MeshnbError) as raised:
        list(open_source("cluster").questions())
    shown = "".join(traceback.format_exception(raised.value))
    assert SECRET not in shown.replace(f"echo '{SECRET}'", "")
