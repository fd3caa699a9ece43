"""A real JupyterLab in a real browser, on copies of the notebooks."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

ROOT = Path(__file__).resolve().parents[2]
#: How long anything may take, in milliseconds; the machines of continuous integration are slow.
PATIENCE_MS = 90_000


@dataclass(frozen=True)
class Lab:
    """A running server: where it is, and the word that opens it."""

    port: int
    token: str

    def url(self, notebook: str) -> str:
        """Return where a notebook is shown alone, without the file browser."""
        return f"http://127.0.0.1:{self.port}/doc/tree/{notebook}?token={self.token}"


@contextmanager
def running(folder: Path, *, theme: str = "JupyterLab Light") -> Iterator[Lab]:
    """Run JupyterLab on copies of the notebooks in a folder, with settings of its own."""
    shutil.copytree(ROOT / "notebooks", folder / "notebooks")
    settings = folder / "settings" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    for name, values in {
        "notification": {"fetchNews": "false", "checkForUpdates": False},
        "themes": {"theme": theme},
    }.items():
        (settings / f"{name}.jupyterlab-settings").write_text(json.dumps(values))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    lab = Lab(port, secrets.token_hex(16))
    command = [
        sys.executable,
        *("-m", "jupyterlab", "--no-browser", "--ServerApp.ip=127.0.0.1"),
        *(f"--ServerApp.port={port}", "--ServerApp.port_retries=0"),
        f"--IdentityProvider.token={lab.token}",
        f"--ServerApp.root_dir={folder / 'notebooks'}",
        "--LabApp.extension_manager=readonly",
        *(["--allow-root"] if os.getuid() == 0 else []),
    ]
    places = {
        name: str(folder / name.lower())
        for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")
    }
    environment = {
        **os.environ,
        **places,
        "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces"),
        "PYTHONPATH": str(ROOT),
    }
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(
            command, env=environment, stdout=log, stderr=subprocess.STDOUT, cwd=folder
        )
        try:
            _wait_for(lab, server, folder / "server.log")
            yield lab
        finally:
            server.terminate()
            try:
                server.wait(timeout=20)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def _wait_for(lab: Lab, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + PATIENCE_MS / 1000
    while time.monotonic() < deadline:
        assert server.poll() is None, f"JupyterLab ended: {log.read_text()[-2000:]}"
        try:
            address = f"http://127.0.0.1:{lab.port}/api?token={lab.token}"
            with urllib.request.urlopen(address, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise AssertionError(f"JupyterLab did not answer: {log.read_text()[-2000:]}")


@contextmanager
def browser(chromium: str, *, width: int = 1400, height: int = 1000) -> Iterator[Page]:
    """Open one page of Chromium that talks to nobody but the server it is sent to."""
    quiet = ("background-networking", "component-update", "sync", "quic")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(
            executable_path=chromium,
            args=["--no-sandbox", "--disable-gpu", *(f"--disable-{name}" for name in quiet)],
        )
        try:
            page = opened.new_page(viewport={"width": width, "height": height})
            page.set_default_timeout(PATIENCE_MS)
            yield page
        finally:
            opened.close()


def run_all(page: Page) -> None:
    """Run all cells of the notebook that is shown, and wait until each of them has run."""
    page.locator(".jp-Notebook").wait_for()
    # Before there is a kernel, JupyterLab calls it idle.
    page.locator(".jp-KernelName", has_text="Python").first.wait_for()
    wait_for_kernel(page)
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    prompts = page.locator(".jp-CodeCell .jp-InputPrompt")
    for _ in range(PATIENCE_MS // 250):
        page.wait_for_timeout(250)
        if all(text.strip("[]:").isdigit() for text in prompts.all_text_contents()):
            wait_for_kernel(page)
            return
    raise AssertionError(f"The cells did not run: {prompts.all_text_contents()}")


def wait_for_kernel(page: Page) -> None:
    """Wait until the kernel of the notebook that is shown has nothing more to say."""
    idle = page.locator(".jp-Notebook-ExecutionIndicator[data-status=idle]")
    idle.wait_for(state="attached")
