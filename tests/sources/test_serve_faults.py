"""A served recording misbehaves as it is told to, and in no other respect."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from typing import Any

import aiohttp
import pytest
from kubernetes import watch
from kubernetes.client.exceptions import ApiException

from meshnb.errors import UsageError
from meshnb.sources import Bundle
from meshnb.sources.serve import (
    FAULTS,
    Drop,
    Expire,
    Fail,
    Garbage,
    Gone,
    Hang,
    Refuse,
    Restart,
    Served,
    Slow,
    parse_fault,
    serve,
)
from tests.conftest import unpacked
from tests.serving import Forwarded, core_client, session_of

READY = b"GET /ready HTTP/1.1\r\nhost: localhost\r\n\r\n"
LAST = READY.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
DUMP = b"GET /config_dump?include_eds HTTP/1.1\r\nhost: localhost\r\n\r\n"
ANSWERED = b"\r\n0\r\n\r\n"


def served(*faults: Any, credential: Any = "token") -> Any:
    return serve(Bundle(unpacked() / "healthy"), faults=faults, credential=credential)


def statuses(running: Served, *paths: str) -> list[int | str]:
    """Return the status of each path, one after the other, or how the connection ended."""

    async def ask() -> list[int | str]:
        found: list[int | str] = []
        async with session_of(running) as session:
            for path in paths:
                try:
                    async with session.http.get(path) as response:
                        await response.read()
                        found.append(response.status)
                except (aiohttp.ClientError, ConnectionError):
                    found.append("dropped")
        return found

    return asyncio.run(ask())


def forwards(
    running: Served, *sent: bytes, pod: str = "client", seconds: float = 1.0, times: int = 1
) -> list[Forwarded]:
    """Return what came of so many forwards to Envoy's admin port, one after the other."""

    async def talk() -> list[Forwarded]:
        found = []
        async with session_of(running) as session:
            for _ in range(times):
                async with session.forward("bookinfo", pod, 15000) as forwarded:
                    for content in sent:
                        await forwarded.send(content)
                        await forwarded.read(seconds=seconds)
                    found.append(forwarded)
        return found

    return asyncio.run(talk())


def test_slow_answers_come_late_and_the_others_do_not() -> None:
    with served(Slow(seconds=0.5, resource="services")) as running:
        start = time.monotonic()
        assert statuses(running, "/api/v1/services") == [200]
        assert time.monotonic() - start >= 0.5
    with served(Slow(seconds=3600, resource="services")) as running:
        assert statuses(running, "/api/v1/namespaces") == [200]


def test_slow_bodies_come_no_faster_than_they_may() -> None:
    with served(Slow(bytes_per_s=20_000, resource="http")) as running:
        start = time.monotonic()
        (found,) = forwards(running, DUMP, seconds=0.7)
        assert 0 < len(found.received) < 20_000 * (time.monotonic() - start + 0.3)
    with served(Slow(bytes_per_s=20_000, resource="pods/log")) as running:
        start = time.monotonic()
        path = "/api/v1/namespaces/bookinfo/pods/client/log?container=client&limitBytes=10000"
        assert statuses(running, path) == [200]
        assert time.monotonic() - start > 0.4


def test_what_hangs_is_never_answered_and_does_not_hold_up_the_end() -> None:
    """A server of aiohttp waits a minute for what it has not answered, when it is not told."""

    async def wait(running: Served) -> None:
        async with session_of(running) as session:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.4):
                    await session.get("/api/v1/services")

    with served(Hang(resource="services"), Hang(resource="http")) as running:
        asyncio.run(wait(running))
        (found,) = forwards(running, READY, seconds=0.4)
        assert (found.received, found.closed) == (b"", False)
        start = time.monotonic()
    assert time.monotonic() - start < 30


@pytest.mark.parametrize(
    ("fault", "refused", "allowed"),
    [
        (Refuse(resource="secrets"), "/api/v1/secrets", "/api/v1/pods"),
        (
            Refuse(verb="list", resource="pods", namespace=""),
            "/api/v1/pods",
            "/api/v1/namespaces/bookinfo/pods",
        ),
        (
            Refuse(namespace="legacy"),
            "/api/v1/namespaces/legacy/pods",
            "/api/v1/namespaces/bookinfo/pods",
        ),
        (
            Refuse(verb="watch"),
            "/api/v1/pods?watch=true&timeoutSeconds=1",
            "/api/v1/pods",
        ),
        (
            Refuse(resource="pods/log"),
            "/api/v1/namespaces/bookinfo/pods/client/log?container=client",
            "/api/v1/namespaces/bookinfo/pods/client",
        ),
    ],
)
def test_what_is_refused_is_forbidden_in_the_words_of_rbac(
    fault: Refuse, refused: str, allowed: str
) -> None:
    with served(fault) as running:
        assert statuses(running, refused, allowed, "/version") == [403, 200, 200]


def test_a_port_forward_needs_to_be_allowed_to_create() -> None:
    with served(Refuse(verb="create", resource="pods/portforward")) as running:
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            forwards(running, READY)
        assert refused.value.status == 403
        core = core_client(running)
        with pytest.raises(ApiException, match="Forbidden") as said:
            core.connect_get_namespaced_pod_portforward("client", "bookinfo", ports="15000")
        # Kubernetes 1.36 says no more than this.
        assert json.loads(str(said.value.body))["message"] == 'pods "client" is forbidden: '


@pytest.mark.parametrize("status", [429, 500, 503])
def test_the_server_fails_so_many_times(status: int) -> None:
    with served(Fail(status=status, times=2, resource="pods")) as running:
        found = statuses(running, *["/api/v1/pods"] * 3, "/api/v1/nodes")
    assert found == [status, status, 200, 200]


def test_who_asks_too_much_is_told_when_to_come_again() -> None:
    async def ask(running: Served) -> Any:
        async with session_of(running) as session, session.http.get("/api/v1/pods") as response:
            return response.headers["Retry-After"], await response.json()

    with served(Fail(status=429, retry_after_s=7)) as running:
        after, document = asyncio.run(ask(running))
    assert after == "7"
    assert document["details"] == {"retryAfterSeconds": 7}


def test_every_so_many_connections_are_dropped() -> None:
    with served(Drop(every=3, resource="nodes")) as running:
        found = statuses(running, *["/api/v1/nodes"] * 3)
        # The client tries once again by itself where a connection was used before.
        assert found in ([200, 200, "dropped"], [200, 200, 200])
        dropped = [one for one in running.requests if one.resource == "nodes"]
        assert len(dropped) == 3 + (found[2] == 200)


def test_a_body_ends_in_the_middle() -> None:
    with served(Drop(after_bytes=5_000, resource="http", times=1)) as running:
        cut, whole = forwards(running, DUMP, times=2)
    assert len(cut.received) == 5_000
    assert cut.closed
    assert whole.received.endswith(ANSWERED)
    with served(Drop(after_bytes=100, resource="pods")) as running:
        assert statuses(running, "/api/v1/pods") == ["dropped"]


def test_garbage_is_no_http() -> None:
    with served(Garbage(port=15000)) as running:
        (found,) = forwards(running, READY)
    assert found.closed
    assert found.received
    assert not found.received.startswith(b"HTTP/")


def test_a_page_that_is_gone_is_gone_once() -> None:
    with served(Gone()) as running:
        core = core_client(running)
        token = core.list_pod_for_all_namespaces(limit=2).metadata._continue  # noqa: SLF001
        with pytest.raises(ApiException, match="too old") as gone:
            core.list_pod_for_all_namespaces(limit=2, _continue=token)
        assert gone.value.status == 410
        assert len(core.list_pod_for_all_namespaces(limit=2, _continue=token).items) == 2


def test_a_token_expires_and_a_plugin_brings_another() -> None:
    with served(Expire(after=2), credential="exec") as running:
        old = running.token
        assert statuses(running, *["/api/v1/nodes"] * 4) == [200, 200, 401, 401]
        assert running.token != old
        assert statuses(running, "/api/v1/nodes") == [200]
        assert core_client(running).list_node().items


def names(running: Served) -> set[str]:
    pods: Sequence[Any] = core_client(running).list_namespaced_pod("bookinfo").items
    return {pod.metadata.name for pod in pods}


def test_a_pod_that_restarts_has_another_name_and_cuts_its_connections() -> None:
    with served(Restart(name="reviews-v1-*", resource="http", after=2)) as running:
        before = names(running)
        (old,) = [name for name in before if name.startswith("reviews-v1-")]
        (found,) = forwards(running, READY * 2, pod=old)
        assert found.received.count(b"HTTP/1.1 200") == 1
        assert found.closed
        after = names(running)
        (new,) = after - before
        assert before - after == {old}
        assert new.rpartition("-")[0] == old.rpartition("-")[0]
        path = "/api/v1/namespaces/bookinfo/pods"
        log = "log?container=istio-proxy"
        assert statuses(running, f"{path}/{old}", f"{path}/{old}/{log}") == [404, 404]
        assert statuses(running, f"{path}/{new}", f"{path}/{new}/{log}") == [200, 200]
        (again,) = forwards(running, READY * 2 + LAST, pod=new)
        assert again.received.count(b"HTTP/1.1 200") == 3


def test_a_pod_of_its_own_restarts_under_its_name_as_another_pod() -> None:
    with served(Restart(name="client", resource="http", after=2)) as running:
        core = core_client(running)
        before = core.read_namespaced_pod("client", "bookinfo").metadata.uid
        (found,) = forwards(running, READY * 2)
        assert found.closed
        assert core.read_namespaced_pod("client", "bookinfo").metadata.uid != before
        (again,) = forwards(running, READY * 2 + LAST)
        assert again.received.count(b"HTTP/1.1 200") == 3


def test_a_pod_that_restarts_is_not_there_for_a_while_and_watches_see_it() -> None:
    with served(Restart(name="reviews-v1-*", resource="pods", gone_s=0.5)) as running:
        before = names(running)
        (old,) = [name for name in before if name.startswith("reviews-v1-")]
        core = core_client(running)
        version = core.list_namespaced_pod("bookinfo").metadata.resource_version
        assert statuses(running, f"/api/v1/namespaces/bookinfo/pods/{old}") == [404]
        assert names(running) == before - {old}
        events = watch.Watch().stream(
            core.list_namespaced_pod, "bookinfo", resource_version=version, timeout_seconds=2
        )
        (added,) = [event for event in events if event["type"] == "ADDED"]
        assert added["object"].metadata.name.startswith("reviews-v1-")
        assert names(running) == before - {old} | {added["object"].metadata.name}


# As the command line writes them.


def test_faults_are_read_from_text() -> None:
    assert parse_fault("slow:seconds=0.5,resource=pods/log") == Slow(
        seconds=0.5, resource="pods/log"
    )
    assert parse_fault("refuse:verb=create, resource=pods/portforward") == Refuse(
        verb="create", resource="pods/portforward"
    )
    assert [type(parse_fault(name)) for name in FAULTS] == list(FAULTS.values())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("slo", "There is no fault 'slo'. Did you mean slow?"),
        ("slow:second=1", "has no field 'second'. Its fields are verb, resource"),
        ("slow:1", "has no field '1'"),
        ("slow:seconds=long", "cannot be 'long'. It is a number, such as 0.0."),
    ],
)
def test_a_fault_that_cannot_be_read_says_what_can(text: str, said: str) -> None:
    with pytest.raises(UsageError, match="fault") as refused:
        parse_fault(text)
    assert said in str(refused.value)
