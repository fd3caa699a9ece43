"""A request is followed as a real Envoy handles it: random routes and chains, random requests."""

from __future__ import annotations

import json
import socket
import ssl
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from meshnb.sources import Bundle
from meshnb.tables import Facts
from meshnb.traces.envoy.balancing import choose
from meshnb.traces.envoy.configs import ProxyConfigs
from meshnb.traces.envoy.filter_chains import HTTP1, TLS, Connection, match_chain
from meshnb.traces.following.follow import Follower
from meshnb.traces.request import ARRIVING, Outcome, Request
from tests.traces.random_envoy import (
    answering_listener,
    balancing_listener,
    choosing_listener,
    cluster,
    request,
    routing_listener,
)
from tests.traces.real_envoy import RealEnvoy, free_port

_PROXY = "gateway.test"


_MANIFEST = json.dumps({"format": 1, "kind": "mesh-evidence", "recorder": "test"})
_PAGES = ("/config_dump?include_eds", "/clusters?format=json")


@contextmanager
def _running(
    folder: Path, listeners: list[dict[str, Any]], clusters: Sequence[dict[str, Any]] = ()
) -> Iterator[tuple[RealEnvoy, Facts]]:
    """Run an Envoy with these listeners, clusters, and one that is empty; record its pages."""
    envoy = RealEnvoy(folder, listeners)
    bootstrap = json.loads(envoy.config.read_text())
    empty = {"cluster_name": "empty"}
    nothing = {"name": "empty", "connect_timeout": "1s", "load_assignment": empty}
    bootstrap["static_resources"]["clusters"] = [nothing, *clusters]
    bootstrap["node"] = {"id": f"router~127.0.0.1~{_PROXY}~test", "cluster": "test"}
    envoy.config.write_text(json.dumps(bootstrap))
    with envoy:
        pod, _, namespace = _PROXY.partition(".")
        entries = []
        for number, path in enumerate(_PAGES):
            page = f"http://127.0.0.1:{envoy.admin}{path}"
            with urllib.request.urlopen(page, timeout=10) as answer:
                (folder / f"page-{number}").write_bytes(answer.read())
            request = {"kind": "http", "namespace": namespace, "pod": pod, "port": 15000}
            entry = {"request": {**request, "path": path}, "taken_at": "2026-01-01T00:00:00Z"}
            entries.append({**entry, "elapsed_ms": 1, "status": 200, "file": f"page-{number}"})
        (folder / "index.jsonl").write_text("\n".join(map(json.dumps, entries)))
        (folder / "manifest.json").write_text(_MANIFEST)
        yield envoy, Facts(Bundle(folder))


def _printed(outcome: Outcome) -> list[str]:
    """Return an outcome as the access log of the test has it."""
    flags = ",".join(sorted(outcome.flags or ())) or "-"
    fields = (outcome.route, outcome.code, flags, outcome.details, outcome.cluster)
    return [str(field or "-") for field in fields]


def _end(envoy: RealEnvoy) -> None:
    """Let Envoy end by itself, so that it writes the rest of its log."""
    page = f"http://127.0.0.1:{envoy.admin}/quitquitquit"
    with urllib.request.urlopen(page, data=b"", timeout=10):
        pass


def _wait_for(log: Path, lines: int) -> None:
    for _ in range(100):
        if log.read_text().count("\n") >= lines:
            return
        time.sleep(0.05)


@pytest.mark.parametrize("seed", range(3))
def test_routes_are_taken_as_envoy_takes_them(seed: int, tmp_path: Path) -> None:
    random, log = Random(seed), tmp_path / "access.log"  # noqa: S311  a test is to repeat itself
    ports = [free_port() for _ in range(6)]
    listeners = [routing_listener(random, port, str(log)) for port in ports]
    with _running(tmp_path, listeners) as (envoy, facts):
        asked = [(random.choice(ports), *request(random, number)) for number in range(200)]
        for port, method, host, path, headers in asked:
            envoy.get(port, host, path, headers, method=method)
        _end(envoy)
        _wait_for(log, len(asked))
    lines = dict(line.split("|", 1) for line in log.read_text().splitlines())
    follower = Follower(facts)
    wrong, certain = [], 0
    for port, method, host, path, headers in asked:
        trace = follower.follow(
            Request(
                proxy=_PROXY,
                way=ARRIVING,
                method=method,
                path=path,
                authority=host,
                headers=tuple(headers.items()),
                complete=True,
                address="127.0.0.1",
                port=port,
                source="127.0.0.1",
                protocol="HTTP/1.1",
                tls=False,
            )
        )
        actual = lines[headers["x-number"]].split("|")
        certain += len(trace.outcomes) == 1
        if actual not in [_printed(outcome) for outcome in trace.outcomes]:
            wrong.append((method, host, path, headers, actual, trace.says))
    assert not wrong
    assert certain > 150


def _certificate() -> dict[str, Any]:
    """Return a transport socket for TLS with a certificate that signs itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name)
    builder = builder.public_key(key.public_key()).serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(now - timedelta(1)).not_valid_after(now + timedelta(1))
    pem = serialization.Encoding.PEM
    plain = serialization.NoEncryption()
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain).decode()
    public = builder.sign(key, hashes.SHA256()).public_bytes(pem).decode()
    own = {
        "certificate_chain": {"inline_string": public},
        "private_key": {"inline_string": private},
    }
    kind = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext"
    context = {"@type": kind, "common_tls_context": {"tls_certificates": [own]}}
    return {"name": "envoy.transport_sockets.tls", "typed_config": context}


_GET = b"GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n"


def _answered(connection: Connection) -> str:
    """Return the name of the chain that answers; empty when the connection is only closed."""
    said = b""
    # Made before the connection: Envoy waits for the first bytes for a second only.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if connection.alpn:
        context.set_alpn_protocols(list(connection.alpn))
    with (
        suppress(ConnectionError, ssl.SSLError),
        socket.create_connection(
            (connection.address, connection.port), 10, (connection.source, 0)
        ) as raw,
    ):
        stream: socket.socket = raw
        if connection.speaks == TLS:
            stream = context.wrap_socket(raw, server_hostname=connection.server_name or None)
        stream.sendall(_GET)
        while part := stream.recv(4096):
            said += part
        stream.close()
    return said.partition(b"\r\n\r\n")[2].decode()


@pytest.mark.parametrize("seed", range(2))
def test_filter_chains_are_chosen_as_envoy_chooses_them(seed: int, tmp_path: Path) -> None:
    random, tls = Random(seed), _certificate()  # noqa: S311  a test is to repeat itself
    pairs = [(free_port(), free_port()) for _ in range(6)]
    listeners = [choosing_listener(random, pair, tls) for pair in pairs]
    wrong = []
    with _running(tmp_path, listeners) as (_, facts):
        config = ProxyConfigs(facts).of(_PROXY)
        assert config is not None
        for _ in range(100):
            pair = random.choice(pairs)
            speaks = random.choice((HTTP1, TLS, TLS))
            names = ("a.example.com", "b.example.com", "x.com", "d.c.example.com", "A.Example.com")
            offers = ((), ("http/1.1",), ("istio",), ("foo", "http/1.1"), ("bar",))
            connection = Connection(
                random.choice(("127.0.0.1", "127.0.0.2", "127.0.0.3")),
                random.choice(pair),
                random.choice(("127.0.0.1", "127.0.0.4", "127.0.0.9")),
                0,
                speaks,
                random.choice((*names, "")) if speaks == TLS else "",
                random.choice(offers) if speaks == TLS else (),
            )
            listener = config.listeners[f"listener-{pair[0]}"].resource
            match = match_chain(listener, connection)
            # A chain answers only who speaks what it speaks.
            speaking = match.chain is not None and (
                ("transport_socket" in match.chain) == (speaks == TLS)
            )
            expected = match.name if speaking else ""
            actual = _answered(connection)
            if actual != expected:
                wrong.append((str(connection), actual, expected, match.passed_over))
    assert not wrong


@pytest.mark.parametrize("seed", range(2))
def test_hosts_are_chosen_as_envoy_chooses_them(seed: int, tmp_path: Path) -> None:
    random, log = Random(seed), tmp_path / "access.log"  # noqa: S311  a test is to repeat itself
    back, front = free_port(), free_port()
    names = [f"c{number}" for number in range(12)]
    clusters = [cluster(random, name, back) for name in names]
    listeners = [answering_listener(back), balancing_listener(front, names, str(log))]
    with _running(tmp_path, listeners, clusters) as (envoy, facts):
        for name in names:
            for _ in range(100):
                envoy.get(front, "test", f"/{name}/")
        _end(envoy)
        _wait_for(log, 100 * len(names))
    config = ProxyConfigs(facts).of(_PROXY)
    assert config is not None
    used: dict[str, set[str]] = {}
    for line in log.read_text().splitlines():
        path, host = line.split("|")
        used.setdefault(path.strip("/"), set()).add(host)
    chosen = {name: {host.name for host in choose(config, name).chosen} or {"-"} for name in names}
    assert [name for name in names if not used[name] <= chosen[name]] == []
    # A host with a share of a percent or two may be missed by chance.
    assert sum(used[name] == chosen[name] for name in names) > len(names) - 3
