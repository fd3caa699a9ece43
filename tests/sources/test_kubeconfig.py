"""What goes wrong on the way to a cluster is one sentence with a next step."""

from __future__ import annotations

import base64
import json
import socket
import ssl
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from ipaddress import ip_address
from pathlib import Path
from threading import Thread
from typing import Any

import aiohttp
import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from meshnb.errors import MeshnbError, SourceError, UsageError
from meshnb.sources import Bundle, Limits, open_source
from meshnb.sources.api_server import unreachable
from meshnb.sources.kubeconfig import IN_CLUSTER, Access, Context, contexts, load_access
from meshnb.sources.serve import serve
from tests.conftest import unpacked

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Return a function that writes a kubeconfig of one context, and makes it the one in use."""

    def writing(
        server: str = "https://127.0.0.1:1",
        *,
        user: dict[str, Any] | None = None,
        cluster: dict[str, Any] | None = None,
        context: dict[str, Any] | None = None,
    ) -> Path:
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "prod",
            "contexts": [
                {"name": "staging", "context": {"cluster": "one", "user": "me"}},
                {"name": "prod", "context": {"cluster": "one", "user": "me", **(context or {})}},
            ],
            "clusters": [{"name": "one", "cluster": {"server": server, **(cluster or {})}}],
            "users": [{"name": "me", "user": user or {"token": "abc"}}],
        }
        path = tmp_path / "config"
        path.write_text(json.dumps(document))
        monkeypatch.setenv("KUBECONFIG", str(path))
        return path

    for name in ("HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)
    return writing


def _said(limits: Limits | None = None) -> str:
    """Return what opening the cluster and asking it for its questions says."""
    with pytest.raises(MeshnbError) as caught:
        list(open_source("cluster", limits=limits).questions())
    assert caught.value.next_step
    return str(caught.value)


# --- The file ------------------------------------------------------------------------------------


def test_contexts_are_listed_with_the_current_one_first(write: Write) -> None:
    write(context={"namespace": "shop"})
    assert [(one.name, one.current, one.namespace) for one in contexts()] == [
        ("prod", True, "shop"),
        ("staging", False, ""),
    ]


def test_several_files_are_one_kubeconfig(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = write()
    document = json.loads(first.read_text())
    document["contexts"] = [{"name": "lab", "context": {"cluster": "one", "user": "me"}}]
    (tmp_path / "second").write_text(json.dumps(document))
    monkeypatch.setenv("KUBECONFIG", f"{first}:{tmp_path / 'absent'}:{tmp_path / 'second'}")
    assert [one.name for one in contexts()] == ["prod", "staging", "lab"]
    assert load_access("lab").context.name == "lab"


def test_without_a_kubeconfig_there_is_no_context_and_a_sentence(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "absent"))
    assert contexts() == ()
    assert "There is no kubeconfig" in _said()
    assert "Set KUBECONFIG" in _said()


@pytest.mark.parametrize("content", ["{", "- a\n- b\n", "\x00\x01", "a: [1", "!!python/name:os.x"])
def test_a_kubeconfig_that_is_none_is_named(
    write: Write, content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "broken"
    path.write_text(content)
    monkeypatch.setenv("KUBECONFIG", str(path))
    with pytest.raises(SourceError, match="broken cannot be read"):
        contexts()


def test_an_unknown_context_is_told_with_the_nearest(write: Write) -> None:
    write()
    with pytest.raises(UsageError, match=r"no context 'prdo'\. Did you mean prod\?"):
        open_source("cluster:prdo")


def test_a_kubeconfig_without_a_current_context_names_those_that_there_are(write: Write) -> None:
    path = write()
    document = json.loads(path.read_text())
    del document["current-context"]
    path.write_text(json.dumps(document))
    with pytest.raises(SourceError, match=r"no current context.*prod, staging"):
        open_source("cluster")
    assert open_source("cluster:staging").label == "cluster:staging"


def test_a_context_that_lacks_its_cluster_is_no_traceback(write: Write) -> None:
    write(context={"cluster": "two"})
    assert "Context 'prod' of the kubeconfig cannot be used" in _said()


def test_a_pod_uses_its_service_account(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", "/absent")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    assert [one.name for one in contexts()] == [IN_CLUSTER]
    # There is no token here: this is no pod.
    assert "no service account to use" in _said()


# --- Credentials ---------------------------------------------------------------------------------


def _plugin(*command: str, **more: Any) -> dict[str, Any]:
    version = "client.authentication.k8s.io/v1"
    plugin = {"apiVersion": version, "command": command[0], "args": list(command[1:])}
    return {"exec": {**plugin, "interactiveMode": "Never", **more}}


def test_a_plugin_that_is_not_installed_is_named(write: Write) -> None:
    write(user=_plugin("no-such-plugin", installHint="Get it from the wiki"))
    said = _said()
    assert "from the program 'no-such-plugin', which is not installed" in said
    assert said.endswith("Get it from the wiki.")


def test_a_plugin_that_fails_is_told_and_what_it_printed_is_not(
    write: Write, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    program = "import sys; print('secret-one'); sys.exit('secret-two')"
    write(user=_plugin(sys.executable, "-c", program))
    said = _said()
    assert "The program that gets the credentials of context 'prod' failed." in said
    assert "kubectl --context prod get namespaces" in said
    printed = capfd.readouterr()
    assert "secret" not in said + printed.out + printed.err + caplog.text


@pytest.mark.parametrize("printed", ["", "no JSON", "{}", '{"kind": "ExecCredential"}'])
def test_a_plugin_that_prints_no_credential_has_failed(write: Write, printed: str) -> None:
    write(user=_plugin(sys.executable, "-c", f"print({printed!r})"))
    assert "The program that gets the credentials of context 'prod' failed." in _said()


def test_a_client_certificate_that_is_none_is_told(write: Write) -> None:
    nonsense = base64.b64encode(b"nonsense").decode()
    write(user={"client-certificate-data": nonsense, "client-key-data": nonsense})
    assert "The certificates of context 'prod' cannot be used" in _said()


def test_keys_of_the_kubeconfig_leave_no_file(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    ca = trustme.CA()
    mine = ca.issue_cert("me@example.com")
    pem = b"".join(one.bytes() for one in mine.cert_chain_pems)
    write(
        user={
            "client-certificate-data": base64.b64encode(pem).decode(),
            "client-key-data": base64.b64encode(mine.private_key_pem.bytes()).decode(),
        },
        cluster={"certificate-authority-data": base64.b64encode(ca.cert_pem.bytes()).decode()},
    )
    assert load_access().tls is not None
    assert list(folder.iterdir()) == []


# --- The network ---------------------------------------------------------------------------------


def test_an_api_server_that_does_not_run_is_told(write: Write) -> None:
    write()
    assert "https://127.0.0.1:1 cannot be reached: connection refused." in _said()


def test_a_host_without_an_address_is_told(write: Write) -> None:
    write("https://cluster.invalid")
    assert "The host of the API server https://cluster.invalid has no address." in _said()


def test_an_api_server_that_says_nothing_is_told_in_time(write: Write) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        write(f"https://127.0.0.1:{silent.getsockname()[1]}")
        assert "did not answer in time" in _said(Limits(question_s=0.5))


@contextmanager
def _https(certificate: trustme.LeafCert) -> Iterator[str]:
    """Serve 404 to everything, with a certificate."""

    class Nothing(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(404)

        def log_message(self, *_: Any) -> None:
            pass

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    with HTTPServer(("127.0.0.1", 0), Nothing) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"https://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def _trusted(ca: trustme.CA) -> dict[str, str]:
    return {"certificate-authority-data": base64.b64encode(ca.cert_pem.bytes()).decode()}


def test_a_server_that_is_no_api_server_is_told(write: Write) -> None:
    ca = trustme.CA()
    with _https(ca.issue_cert("127.0.0.1")) as url:
        write(url, cluster=_trusted(ca))
        assert "answered with status 404" in _said()


def test_a_certificate_of_an_unknown_ca_is_told(write: Write) -> None:
    with _https(trustme.CA().issue_cert("127.0.0.1")) as url:
        write(url, cluster=_trusted(trustme.CA()))
        assert "is signed by a CA that the kubeconfig does not name as trusted" in _said()


def test_a_certificate_for_another_host_is_told(write: Write) -> None:
    ca = trustme.CA()
    with _https(ca.issue_cert("other.example.com")) as url:
        write(url, cluster=_trusted(ca))
        said = _said()
        assert "is for another" in said
        assert "tls-server-name" in said
        write(url, cluster={**_trusted(ca), "tls-server-name": "other.example.com"})
        assert "answered with status 404" in _said()
        write(url, cluster={"insecure-skip-tls-verify": True})
        assert "answered with status 404" in _said()


def test_a_ca_without_key_usage_is_told_to_those_whose_python_refuses_it() -> None:
    """The sentence is made from OpenSSL's own; only Python from 3.13 on verifies so strictly."""
    refused = ssl.SSLCertVerificationError(1, "certificate verify failed")
    refused.verify_code = 92
    refused.verify_message = "CA cert does not include key usage extension"
    error = aiohttp.ClientConnectorCertificateError(None, refused)  # type: ignore[arg-type]
    context = Context("prod", "one", "", current=True)
    said = unreachable(
        error, Access(context, "https://api:6443", None, None, None, None, lambda: None)
    )
    assert "Python from 3.13 on refuses the CA of https://api:6443" in said.what
    assert "keyUsage" in said.next_step
    assert "Python 3.12" in said.next_step


def test_a_ca_without_key_usage_is_refused_with_the_reason_or_accepted(write: Write) -> None:
    """Python 3.13 and newer verify strictly; older ones go on to what the server says."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name.from_rfc4514_string("CN=old")
    begin, end = datetime(2020, 1, 1, tzinfo=UTC), datetime(2120, 1, 1, tzinfo=UTC)
    builder = x509.CertificateBuilder(not_valid_before=begin, not_valid_after=end)
    ca = (
        builder.subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    mine = ec.generate_private_key(ec.SECP256R1())
    leaf = (
        builder.subject_name(x509.Name([]))
        .issuer_name(name)
        .public_key(mine.public_key())
        .serial_number(2)
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=True
        )
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = mine.private_bytes(
        pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    shown = trustme.LeafCert(private, leaf.public_bytes(pem), [])
    with _https(shown) as url:
        authority = base64.b64encode(ca.public_bytes(pem)).decode()
        write(url, cluster={"certificate-authority-data": authority})
        said = _said()
    if sys.version_info >= (3, 13):
        assert "Python from 3.13 on refuses the CA" in said
        assert "use Python 3.12" in said
    else:
        assert "answered with status 404" in said


def test_a_proxy_that_does_not_answer_is_told_without_its_password(write: Write) -> None:
    write("https://api.example.com", cluster={"proxy-url": "http://me:word@127.0.0.1:1"})
    said = _said()
    assert "The proxy http://127.0.0.1:1 does not lead to https://api.example.com." in said
    assert "word" not in said


def test_a_host_that_no_proxy_names_is_reached_directly(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:2")
    write()
    assert "The proxy http://127.0.0.1:2" in _said()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    assert "https://127.0.0.1:1 cannot be reached: connection refused" in _said()


def test_a_proxy_of_another_kind_is_refused(write: Write) -> None:
    write(cluster={"proxy-url": "socks5://127.0.0.1:1"})
    assert "a proxy of the kind socks5, which is not supported" in _said()


def test_a_proxy_is_gone_through(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """CONNECT for lists and for port-forwards alike."""
    seen: list[bytes] = []
    with (
        serve(Bundle(unpacked() / "healthy")) as served,
        _tunnel(seen) as proxy,
    ):
        document = json.loads(served.kubeconfig.read_text())
        document["clusters"][0]["cluster"]["proxy-url"] = proxy
        served.kubeconfig.write_text(json.dumps(document))
        monkeypatch.setenv("KUBECONFIG", str(served.kubeconfig))
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        cluster = open_source("cluster")
        page = next(q for q in cluster.questions() if str(q).endswith("client:15000/ready"))
        (answer,) = cluster.ask([page])
    assert answer.status == 200
    assert len(seen) > 1
    assert all(line.startswith(b"CONNECT 127.0.0.1:") for line in seen)


@contextmanager
def _tunnel(seen: list[bytes]) -> Iterator[str]:
    """Be an HTTP proxy that knows CONNECT only."""
    running: list[Thread] = []
    server = socket.create_server(("127.0.0.1", 0))

    def pump(source: socket.socket, sink: socket.socket) -> None:
        try:
            while content := source.recv(65536):
                sink.sendall(content)
        except OSError:
            pass
        for one in (source, sink):
            try:
                one.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue

    def tunnel(client: socket.socket) -> None:
        with client:
            request = b""
            while not request.endswith(b"\r\n\r\n"):
                more = client.recv(4096)
                if not more:
                    return
                request += more
            seen.append(request.splitlines()[0])
            host, _, port = request.split()[1].decode().rpartition(":")
            with socket.create_connection((host, int(port))) as upstream:
                client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                back = Thread(target=pump, args=(upstream, client))
                back.start()
                pump(client, upstream)
                back.join()

    def accept() -> None:
        while True:
            try:
                client, _ = server.accept()
            except OSError:
                return
            running.append(Thread(target=tunnel, args=(client,)))
            running[-1].start()

    accepting = Thread(target=accept)
    accepting.start()
    try:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
    finally:
        server.shutdown(socket.SHUT_RDWR)
        server.close()
        accepting.join()
        for one in running:
            one.join()
