"""Ports of pods, through port-forwards: HTTP/1.1, what probes met, and certificate chains."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from meshnb.sources import Bundle, HttpQuestion, ListQuestion, ProbeQuestion
from meshnb.sources.base import only
from meshnb.sources.serve import Grown, Served, serve
from tests.alteration import Altered
from tests.conftest import unpacked
from tests.serving import Forwarded, kubectl, session_of

ISTIOD = "istiod-849979b494-z8nb9"
GATEWAY = "istio-ingressgateway-548b98684d-rzdjv"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"
#: The pieces that a kubelet copies in, with the number of the channel before them.
LARGEST_FRAME = 32 * 1024 + 1


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return Bundle(unpacked() / "healthy")


@pytest.fixture(scope="module")
def served(bundle: Bundle) -> Iterator[Served]:
    with serve(bundle) as running:
        yield running


def exchange(
    served: Served,
    port: int,
    *sent: bytes,
    pod: str = "client",
    namespace: str = "bookinfo",
    until: bytes | None = None,
    seconds: float = 5.0,
) -> Forwarded:
    """Return what a port answered to the bytes that were sent to it."""

    async def talk() -> Forwarded:
        async with (
            session_of(served) as session,
            session.forward(namespace, pod, port) as forwarded,
        ):
            for content in sent:
                await forwarded.send(content)
            await forwarded.read(until, seconds)
            return forwarded

    return asyncio.run(talk())


def request(path: str, *headers: str) -> bytes:
    return "\r\n".join([f"GET {path} HTTP/1.1", "host: localhost", *headers, "", ""]).encode()


def unchunked(body: bytes) -> bytes:
    whole = b""
    while body:
        size, _, rest = body.partition(b"\r\n")
        whole, body = whole + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
    return whole


# HTTP.


def test_envoys_admin_port_answers_in_chunks_and_keeps_the_connection(
    served: Served, bundle: Bundle
) -> None:
    found = exchange(served, 15000, request("/certs"), until=b"\r\n0\r\n\r\n")
    head, _, body = found.received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"transfer-encoding: chunked" in head
    assert b"content-length" not in head
    recorded = only(bundle, HttpQuestion("bookinfo", "client", 15000, "/certs"))
    assert unchunked(body) == recorded.content
    assert not found.closed
    assert max(found.frames) <= LARGEST_FRAME


def test_one_connection_answers_many_requests_and_closes_when_it_is_told_to(
    served: Served,
) -> None:
    found = exchange(
        served,
        15014,
        request("/version"),
        request("/debug/syncz"),
        request("/version", "Connection: close"),
        pod=ISTIOD,
        namespace="istio-system",
    )
    assert found.received.count(b"HTTP/1.1 200 OK\r\n") == 3
    assert found.received.count(b"connection: close\r\n") == 1
    assert found.closed


def test_a_request_may_arrive_byte_by_byte(served: Served) -> None:
    pieces = [bytes([byte]) for byte in request("/ready", "Connection: close")]
    assert exchange(served, 15000, *pieces).received.startswith(b"HTTP/1.1 200 OK")


def test_the_status_is_the_recorded_one() -> None:
    name = "bootstrap-wrong-discovery"
    bundle = Bundle(unpacked() / name)
    asked = [one for one in bundle.questions() if isinstance(one, HttpQuestion)]
    failing = next(one for one in asked if only(bundle, one).status == 503)
    silent = next(one for one in asked if only(bundle, one).error)
    with serve(bundle) as running:
        found = exchange(
            running, failing.port, request(failing.path, "Connection: close"), pod=failing.pod
        )
        nothing = exchange(running, silent.port, request(silent.path), pod=silent.pod)
    assert found.received.startswith(b"HTTP/1.1 503 Service Unavailable")
    assert nothing.closed
    assert nothing.received == b""


def test_a_question_that_timed_out_in_the_recording_is_never_answered(tmp_path: Path) -> None:
    altered = Altered("healthy", tmp_path)
    altered.silence("TimeoutError: timed out", kind="http", pod="client", path="/certs")
    with serve(Bundle(altered.folder)) as running:
        found = exchange(running, 15000, request("/certs"), seconds=0.5)
    assert not found.closed
    assert found.received == b""


def test_what_nobody_asked_is_not_found_and_says_so(served: Served) -> None:
    found = exchange(served, 15000, request("/memory", "Connection: close"))
    assert found.received.startswith(b"HTTP/1.1 404 Not Found")
    assert b"not recorded: nobody asked /memory" in found.received
    found = exchange(served, 15000, b"POST /quitquitquit HTTP/1.0\r\nContent-Length: 0\r\n\r\n")
    assert found.received.startswith(b"HTTP/1.1 405 ")


# Probes.


def test_an_open_port_stays_open_and_a_closed_one_says_why(served: Served) -> None:
    found = exchange(served, 15006, seconds=0.5)
    assert (found.closed, found.reason) == (False, "")
    found = exchange(served, 15006, pod=GATEWAY, namespace="istio-system")
    assert found.closed
    assert f"error forwarding port 15006 to pod {GATEWAY}" in found.reason
    assert found.reason.endswith("connection refused")


def test_a_port_that_nobody_asked_is_no_closed_port(served: Served) -> None:
    found = exchange(served, 4000)
    assert found.closed
    assert found.reason == "not recorded: nobody asked port 4000 of pod client"


def test_http_2_without_tls_begins_with_settings(served: Served) -> None:
    found = exchange(served, 15010, PREFACE, pod=ISTIOD, namespace="istio-system", seconds=0.5)
    assert found.received[3] == 4
    assert not found.closed


def shown(served: Served, port: int, alpn: list[str]) -> tuple[str, Any, Any, str]:
    """Return the chain that a port shows, the cipher, the protocol, and how the handshake ends."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(alpn)
    arrived, leaving = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(arrived, leaving, server_hostname="istiod.istio-system.svc")

    async def talk() -> str:
        async with (
            session_of(served) as session,
            session.forward("istio-system", ISTIOD, port) as forwarded,
        ):
            while not forwarded.closed:
                try:
                    tls.do_handshake()
                except ssl.SSLWantReadError:
                    await forwarded.send(leaving.read())
                    await forwarded.read(seconds=0.3)
                    arrived.write(forwarded.received)
                    forwarded.received = b""
                except ssl.SSLError as error:
                    return error.reason
            tls.do_handshake()
            return "finished"

    try:
        end = asyncio.run(talk())
    except ssl.SSLError as error:
        end = error.reason
    chain = tls._sslobj.get_unverified_chain() or []  # type: ignore[attr-defined]  # noqa: SLF001
    pem = "".join(certificate.public_bytes() for certificate in chain)
    return pem, tls.cipher(), tls.selected_alpn_protocol(), end


@pytest.mark.parametrize(("port", "protocol"), [(15012, "h2"), (15017, None)])
def test_a_tls_port_shows_the_recorded_chain_but_proves_no_key(
    served: Served, bundle: Bundle, port: int, protocol: str | None
) -> None:
    pem, cipher, alpn, end = shown(served, port, ["h2", "http/1.1"])
    recorded = only(bundle, ProbeQuestion("istio-system", ISTIOD, port, "tls"))
    assert pem.encode() == recorded.content
    assert cipher[1] == recorded.detail["tls_version"] == "TLSv1.3"
    assert alpn == protocol
    assert "INTERNAL_ERROR" in end


def test_a_tls_port_agrees_on_no_protocol_that_the_client_does_not_offer(served: Served) -> None:
    assert shown(served, 15012, ["http/1.1"])[2] is None


def test_tls_1_2_shows_its_chain_as_well(tmp_path: Path, bundle: Bundle) -> None:
    altered = Altered("healthy", tmp_path)
    index = altered.folder / "index.jsonl"
    index.write_text(index.read_text().replace('"TLSv1.3"', '"TLSv1.2"'))
    with serve(Bundle(altered.folder)) as running:
        pem, _, alpn, end = shown(running, 15012, ["h2"])
    question = ProbeQuestion("istio-system", ISTIOD, 15012, "tls")
    assert pem.encode() == only(bundle, question).content
    assert alpn == "h2"
    assert "INTERNAL_ERROR" in end


@pytest.mark.parametrize(
    "hello", [b"\x16\x03\x01\x00\x02\x01\x00", b"\x16\x03\x01\x00\x04\x02\x00\x00\x00"]
)
def test_a_broken_client_hello_gets_an_alert_or_is_waited_for(served: Served, hello: bytes) -> None:
    found = exchange(served, 15012, hello, pod=ISTIOD, namespace="istio-system", seconds=0.5)
    assert found.received in (b"", b"\x15\x03\x03\x00\x02\x02\x32")


# The protocol.


@pytest.mark.parametrize(
    ("query", "protocols", "said"),
    [
        ("", ["v4.channel.k8s.io"], "'ports' is required"),
        ("?ports=0", ["v4.channel.k8s.io"], "invalid port"),
        ("?ports=http", ["v4.channel.k8s.io"], "invalid port"),
        ("?ports=15000", ["SPDY/3.1+portforward.k8s.io"], "not served"),
        ("?ports=15000", [], "not served"),
    ],
)
def test_a_port_forward_that_cannot_be_is_refused_in_words(
    served: Served, query: str, protocols: list[str], said: str
) -> None:
    async def ask() -> tuple[int, Any]:
        headers = {
            "Upgrade": "websocket",
            "Connection": "Upgrade",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
            "Sec-WebSocket-Protocol": ",".join(protocols),
        }
        path = f"/api/v1/namespaces/bookinfo/pods/client/portforward{query}"
        async with (
            session_of(served) as session,
            session.http.get(path, headers=headers) as response,
        ):
            return response.status, await response.json()

    status, document = asyncio.run(ask())
    assert status == 400
    assert said in document["message"]


def test_kubectl_is_told_that_its_own_way_is_not_served(served: Served) -> None:
    refused = kubectl(served, "port-forward", "-n", "bookinfo", "pod/client", "0:15000")
    assert refused.returncode != 0
    assert "v4.channel.k8s.io" in refused.stderr


def test_two_ports_are_two_connections_of_one_websocket(served: Served) -> None:
    async def talk() -> dict[int, bytes]:
        got: dict[int, bytes] = {}
        path = "/api/v1/namespaces/bookinfo/pods/client/portforward?ports=15000&ports=15021"
        async with (
            session_of(served) as session,
            session.http.ws_connect(path, protocols=["v4.channel.k8s.io"]) as socket,
        ):
            await socket.send_bytes(b"\x00" + request("/ready", "Connection: close"))
            await socket.send_bytes(b"\x02" + request("/healthz/ready", "Connection: close"))
            async for message in socket:
                assert message.type is aiohttp.WSMsgType.BINARY
                got[message.data[0]] = got.get(message.data[0], b"") + message.data[1:]
        return got

    got = asyncio.run(talk())
    assert {channel: content[:2] for channel, content in got.items()} == {
        0: (15000).to_bytes(2, "little"),
        1: (15000).to_bytes(2, "little"),
        2: (15021).to_bytes(2, "little"),
        3: (15021).to_bytes(2, "little"),
    }
    assert got[0][2:].startswith(b"HTTP/1.1 200")
    assert got[2][2:].startswith(b"HTTP/1.1 200")


def test_a_pod_that_is_not_there_or_nowhere_yet_has_no_ports(tmp_path: Path) -> None:
    altered = Altered("healthy", tmp_path)
    altered.each("pods", "client", lambda pod: pod["spec"].pop("nodeName"))
    with serve(Bundle(altered.folder)) as running:
        for pod, status in (("client", 400), ("nobody", 404)):
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                exchange(running, 15000, pod=pod)
            assert refused.value.status == status


# A large mesh.


def test_copies_of_proxies_answer_as_the_recorded_ones(bundle: Bundle) -> None:
    grown = Grown(bundle, pods=20, body_mb=1.5)
    pods = json.loads(only(grown, ListQuestion("v1", "pods")).content)["items"]
    names = [pod["metadata"]["name"] for pod in pods]
    proxies = {
        (one.namespace, one.pod)
        for one in grown.questions()
        if isinstance(one, HttpQuestion) and one.port == 15000
    }
    assert len(proxies) == 20
    assert {pod for _, pod in proxies} <= set(names)
    assert len({pod["metadata"]["uid"] for pod in pods}) == len(names)
    copy = next(name for name in names if name.startswith("client-copy"))
    with serve(grown) as running:
        found = exchange(
            running,
            15000,
            request("/config_dump?include_eds", "Connection: close"),
            pod=copy,
        )
        requests = [one for one in running.requests if one.resource == "http"]
    body = unchunked(found.received.partition(b"\r\n\r\n")[2])
    assert len(body) == 1_500_000
    recorded = HttpQuestion("bookinfo", "client", 15000, "/config_dump?include_eds")
    assert json.loads(body) == json.loads(only(bundle, recorded).content)
    assert [(one.name, one.path) for one in requests] == [(copy, "/config_dump?include_eds")]


def test_a_forward_that_was_refused_in_the_recording_still_is(tmp_path: Path) -> None:
    altered = Altered("healthy", tmp_path)
    altered.silence("cannot create resource pods/portforward", 403, pod="client", port=15000)
    altered.silence("no answer within 30 s", pod="client", port=15021)
    with serve(Bundle(altered.folder)) as running:
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            exchange(running, 15000)
        found = exchange(running, 15021)
    assert refused.value.status == 403
    assert found.reason.endswith("i/o timeout")


def test_a_client_that_leaves_in_the_middle_makes_no_noise(
    bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    """The loop warns of each write to a connection that is gone, and nobody can do anything."""
    mesh = Grown(bundle, pods=1, body_mb=40)
    page = next(
        question
        for question in mesh.questions()
        if isinstance(question, HttpQuestion) and question.path == "/config_dump?include_eds"
    )

    async def leave(running: Served) -> None:
        async with (
            session_of(running) as session,
            session.forward(page.namespace, page.pod, page.port) as forwarded,
        ):
            await forwarded.send(f"GET {page.path} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
            await forwarded.channels.receive_bytes()
            connection = forwarded.channels._response.connection  # noqa: SLF001  to be rude
            assert connection is not None
            assert connection.transport is not None
            connection.transport.abort()

    with serve(mesh) as running:
        asyncio.run(leave(running))
    assert [one.getMessage() for one in caplog.records if one.name == "asyncio"] == []
