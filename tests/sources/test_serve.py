"""A served recording is an API server: discovery, lists, gets, tables, watches, logs, accounts."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import ssl
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from kubernetes import client, config, dynamic, watch

from meshnb.errors import SourceError
from meshnb.sources import Bundle, ListQuestion, Manifests
from meshnb.sources.ages import age_text
from meshnb.sources.base import only
from meshnb.sources.serve import Served, serve
from tests.alteration import Altered
from tests.conftest import unpacked
from tests.serving import core_client, kubectl, session_of

TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json"
AGGREGATED = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json"


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serve(Bundle(unpacked() / "healthy")) as running:
        yield running


def get(served: Served, path: str, accept: str = "application/json") -> tuple[int, Any]:
    async def ask() -> tuple[int, Any]:
        async with session_of(served) as session:
            return await session.get(path, accept)

    return asyncio.run(ask())


def recorded_items(resource: str) -> list[Any]:
    document = json.loads((unpacked() / "healthy" / "kubernetes" / f"{resource}.json").read_text())
    return list(document["items"])


# What it leaves behind, and who may ask.


def test_nothing_is_left_when_it_ends() -> None:
    with serve(Bundle(unpacked() / "healthy")) as running:
        folder = running.kubeconfig.parent
        assert stat.S_IMODE(running.kubeconfig.stat().st_mode) == 0o600
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert any(thread.name == "meshnb-serve" for thread in threading.enumerate())
    assert not folder.exists()
    assert all(thread.name != "meshnb-serve" for thread in threading.enumerate())


def test_the_kubeconfig_is_written_where_it_is_wanted_and_never_over_another(
    tmp_path: Path,
) -> None:
    path = tmp_path / "config"
    with serve(Bundle(unpacked() / "healthy"), kubeconfig=path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with (
            pytest.raises(SourceError, match="exists already"),
            serve(Bundle(unpacked() / "healthy"), kubeconfig=path),
        ):
            pass
        assert path.exists()
    assert not path.exists()


def test_a_port_that_is_taken_is_named(served: Served) -> None:
    port = int(served.url.rpartition(":")[2])
    with (
        pytest.raises(SourceError, match=f"Port {port} of 127.0.0.1 cannot be served"),
        serve(Bundle(unpacked() / "healthy"), port=port),
    ):
        pass


def test_it_listens_on_the_loopback_interface_only(served: Served) -> None:
    assert served.url.startswith("https://127.0.0.1:")
    port = int(served.url.rpartition(":")[2])
    table = Path("/proc/net/tcp")
    if not table.exists():
        pytest.skip("only Linux lists its listening ports in a file")
    sockets = [row.split() for row in table.read_text().splitlines()[1:]]
    bound = [address for _, address, _, state, *_ in sockets if state == "0A"]
    assert [each for each in bound if each.endswith(f":{port:04X}")] == [f"0100007F:{port:04X}"]


def test_strict_verification_of_python_313_accepts_its_certificates(served: Served) -> None:
    context = ssl.create_default_context(cafile=served.ca_file)
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    connection = http.client.HTTPSConnection(served.url.removeprefix("https://"), context=context)
    with contextlib.closing(connection):
        connection.request("GET", "/version")
        assert json.load(connection.getresponse())["gitVersion"] == "v1.36.2"
    ca = x509.load_pem_x509_certificate(served.ca_file.read_bytes())
    usage = ca.extensions.get_extension_for_class(x509.KeyUsage)
    assert usage.critical
    assert usage.value.key_cert_sign


def test_without_the_token_there_is_only_the_version_and_health(served: Served) -> None:
    async def ask(authorization: str) -> list[int]:
        async with session_of(served) as session:
            paths = ("/version", "/healthz", "/api", "/api/v1/pods")
            found = []
            for path in paths:
                headers = {"Authorization": authorization}
                async with session.http.get(path, headers=headers) as response:
                    found.append(response.status)
            return found

    assert asyncio.run(ask("")) == [200, 200, 401, 401]
    # Kubernetes refuses a wrong token also where none is needed.
    assert asyncio.run(ask(f"Bearer {served.token[::-1]}")) == [401] * 4


@pytest.mark.parametrize("credential", ["token", "certificate", "exec"])
def test_each_kind_of_credential_is_let_in(credential: Any) -> None:
    with serve(Bundle(unpacked() / "healthy"), credential=credential) as running:
        assert len(core_client(running).list_namespace().items) == len(recorded_items("namespaces"))


# Discovery.


def test_discovery_is_right_in_the_names_of_a_real_server(served: Served, shared: Path) -> None:
    """Of what both have; the recording lacks what nobody asked for, and only reads."""
    real = json.loads((shared / "kubernetes-api" / "discovery.json").read_text())
    compared = 0
    for path, document in real.items():
        status, ours = get(served, path)
        if not path.startswith(("/api/", "/apis/")) or status == 404:
            continue
        theirs = {one["name"]: one for one in document["resources"]}
        for one in ours["resources"]:
            match = theirs[one["name"]]
            for key in ("kind", "singularName", "namespaced"):
                assert one[key] == match[key], (path, one["name"], key)
            for key in ("shortNames", "categories"):
                assert sorted(one.get(key, [])) == sorted(match.get(key, [])), (path, one["name"])
            assert set(one["verbs"]) <= set(match["verbs"])
            compared += 1
    assert compared > 50


def test_both_forms_of_discovery_say_the_same(served: Served) -> None:
    classic, aggregated = {}, {}
    for root in ("/api", "/apis"):
        _, document = get(served, root, AGGREGATED)
        assert document["kind"] == "APIGroupDiscoveryList"
        for group in document["items"]:
            for version in group["versions"]:
                name = "/".join(filter(None, [group["metadata"].get("name"), version["version"]]))
                aggregated[name] = {
                    (one["resource"], one["responseKind"]["kind"], tuple(one.get("shortNames", ())))
                    for one in version["resources"]
                }
    for name in aggregated:
        path = f"/apis/{name}" if "/" in name else f"/api/{name}"
        classic[name] = {
            (one["name"], one["kind"], tuple(one.get("shortNames", ())))
            for one in get(served, path)[1]["resources"]
            if "/" not in one["name"]
        }
    assert classic == aggregated
    groups = {f"{group['name']}" for group in get(served, "/apis")[1]["groups"]}
    assert groups == {name.partition("/")[0] for name in aggregated if "/" in name}


def test_a_kind_that_the_cluster_defines_is_called_as_it_defines(tmp_path: Path) -> None:
    definition = {
        "items": [
            {
                "metadata": {"name": "widgets.shop.example"},
                "spec": {
                    "group": "shop.example",
                    "scope": "Cluster",
                    "names": {"kind": "Widget", "plural": "widgets", "shortNames": ["wdg"]},
                },
            }
        ],
        "kind": "CustomResourceDefinitionList",
    }
    altered = Altered("healthy", tmp_path)
    like = {"kind": "list", "resource": "pods"}
    definitions = {
        "apiVersion": "apiextensions.k8s.io/v1",
        "resource": "customresourcedefinitions",
    }
    altered.reply(like, definition, **definitions)
    altered.reply(like, {"items": []}, apiVersion="shop.example/v1", resource="widgets")
    with serve(Bundle(altered.folder)) as running:
        (widget,) = get(running, "/apis/shop.example/v1")[1]["resources"]
    assert (widget["kind"], widget["namespaced"]) == ("Widget", False)
    assert widget["shortNames"] == ["wdg"]


# Lists and gets.


def test_every_list_is_served_as_it_was_recorded(served: Served) -> None:
    bundle = Bundle(unpacked() / "healthy")

    async def ask() -> None:
        async with session_of(served) as session:
            for question in bundle.questions():
                if isinstance(question, ListQuestion):
                    root = "apis" if "/" in question.api_version else "api"
                    path = f"/{root}/{question.api_version}/{question.resource}"
                    async with session.http.get(path) as response:
                        assert response.status == 200
                        assert await response.read() == only(bundle, question).content

    asyncio.run(ask())


def test_the_official_client_lists_gets_and_selects(served: Served) -> None:
    core = core_client(served)
    pods = core.list_pod_for_all_namespaces()
    assert len(pods.items) == len(recorded_items("pods"))
    inside = core.list_namespaced_pod("bookinfo", label_selector="app in (reviews, ratings)")
    assert {pod.metadata.labels["app"] for pod in inside.items} == {"reviews", "ratings"}
    istiod = core.list_pod_for_all_namespaces(label_selector="app=istiod,!nothing").items
    assert [pod.metadata.namespace for pod in istiod] == ["istio-system"]
    one = core.read_namespaced_pod("client", "bookinfo")
    assert (one.kind, one.metadata.name) == ("Pod", "client")
    named = core.list_pod_for_all_namespaces(field_selector="metadata.name=client")
    assert [pod.metadata.name for pod in named.items] == ["client"]


def test_the_dynamic_client_finds_resources_of_istio(served: Served) -> None:
    found = dynamic.DynamicClient(config.new_client_from_config(config_file=str(served.kubeconfig)))
    rules = found.resources.get(api_version="networking.istio.io/v1", kind="DestinationRule")
    listed = {item.metadata.name for item in rules.get().items}
    stored = recorded_items("destinationrules.networking.istio.io")
    assert listed == {item["metadata"]["name"] for item in stored}


@pytest.mark.parametrize(
    ("selector", "wanted"),
    [
        ("status.phase=Running", True),
        ("status.phase!=Running", False),
        ("spec.nodeName=node1", True),
        ("spec.nodeName=elsewhere", False),
        ("metadata.namespace=legacy", {"legacy-client"}),
        ("metadata.name=client,metadata.namespace==bookinfo", {"client"}),
        ("spec.hostNetwork=false", True),
    ],
)
def test_field_selectors_choose(served: Served, selector: str, wanted: set[str] | bool) -> None:
    names = {pod["metadata"]["name"] for pod in recorded_items("pods")}
    chosen = (names if wanted else set()) if isinstance(wanted, bool) else wanted
    _, found = get(served, f"/api/v1/pods?fieldSelector={selector.replace('!', '%21')}")
    assert {pod["metadata"]["name"] for pod in found["items"]} == chosen


@pytest.mark.parametrize(
    "path",
    ["/apis/unknown.example/v1", "/openapi/v3", "/apis/networking.istio.io/v1/unknown", "/unknown"],
)
def test_what_nothing_of_the_server_knows_is_a_text(served: Served, path: str) -> None:
    """As Kubernetes 1.36 has it: groups that are defined in the cluster are not its own."""
    assert get(served, path) == (404, "404 page not found\n")


@pytest.mark.parametrize(
    ("path", "code", "said"),
    [
        ("/api/v1/pods?fieldSelector=spec.image%3Dx", 400, "field label not supported: spec.image"),
        ("/api/v1/pods?labelSelector=a%3D%3D%3Db", 400, "unable to parse requirement"),
        ("/api/v1/pods?limit=many", 400, "limit"),
        ("/api/v1/pods?limit=1&continue=%21%21", 400, "continue key is not valid"),
        ("/api/v1/namespaces/bookinfo/pods/nobody", 404, 'pods "nobody" not found'),
        ("/apis/networking.istio.io/v1/gateways/x", 404, 'gateways.networking.istio.io "x"'),
        ("/api/v1/unknown", 404, "could not find the requested resource"),
        ("/apis/apps/v1/unknown", 404, "could not find the requested resource"),
    ],
)
def test_what_cannot_be_answered_is_a_status(
    served: Served, path: str, code: int, said: str
) -> None:
    status, document = get(served, path)
    assert (status, document["kind"], document["code"]) == (code, "Status", code)
    assert said in document["message"]


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
def test_nothing_can_be_written(served: Served, method: str) -> None:
    async def ask() -> int:
        async with session_of(served) as session:
            path = "/api/v1/namespaces/bookinfo/pods/client"
            async with session.http.request(method, path, json={}) as response:
                return response.status

    assert asyncio.run(ask()) == 405


def test_pages_together_are_the_whole_list(served: Served) -> None:
    core, names, token, pages = core_client(served), [], None, 0
    status, first = get(served, "/api/v1/pods?limit=2")
    assert (status, first["items"]) == (200, recorded_items("pods")[:2])
    while True:
        page = core.list_pod_for_all_namespaces(limit=3, _continue=token)
        names += [pod.metadata.name for pod in page.items]
        pages, token = pages + 1, page.metadata._continue  # noqa: SLF001
        if not token:
            break
        left = page.metadata.remaining_item_count
        assert len(names) + left == len(recorded_items("pods"))
    assert names == [pod["metadata"]["name"] for pod in recorded_items("pods")]
    assert pages == -(-len(names) // 3)


def test_what_was_refused_or_silent_in_the_recording_still_is(tmp_path: Path) -> None:
    altered = Altered("healthy", tmp_path)
    altered.silence("secrets is forbidden", 403, kind="list", resource="secrets")
    altered.silence("ReadTimeout: timed out", kind="list", resource="configmaps")
    altered.silence("ConnectionError: reset", kind="list", resource="services")
    altered.silence("the server could not find it", 404, kind="list", resource="events")
    with serve(Bundle(altered.folder)) as running:
        answers = {
            resource: get(running, f"/api/v1/{resource}")
            for resource in ("secrets", "configmaps", "services", "events")
        }
        offered = {one["name"] for one in get(running, "/api/v1")[1]["resources"]}
    assert {name: status for name, (status, _) in answers.items()} == {
        "secrets": 403,
        "configmaps": 504,
        "services": 503,
        "events": 404,
    }
    assert answers["secrets"][1]["message"] == "secrets is forbidden"
    assert answers["services"][1]["message"] == "in the recording: ConnectionError: reset"
    assert "secrets" in offered
    assert "events" not in offered


# Tables, as kubectl prints them.


def test_the_columns_of_pods_and_services_are_those_of_a_real_server(
    served: Served, shared: Path
) -> None:
    for resource in ("pods", "services"):
        real = json.loads((shared / "kubernetes-api" / f"table-{resource}.json").read_text())
        _, ours = get(served, f"/api/v1/{resource}", TABLE)
        assert (ours["kind"], ours["apiVersion"]) == (real["kind"], real["apiVersion"])
        keys = ("name", "type", "format", "priority")
        assert [[one[key] for key in keys] for one in ours["columnDefinitions"]] == [
            [one[key] for key in keys] for one in real["columnDefinitions"]
        ]
        assert {type(cell) for row in ours["rows"] for cell in row["cells"]} == {str}


def test_a_table_has_the_state_of_each_pod_and_its_age_at_the_recording() -> None:
    with serve(Bundle(unpacked() / "app-crash-loop")) as running:
        _, table = get(running, "/api/v1/namespaces/bookinfo/pods", TABLE)
        _, whole = get(running, "/api/v1/namespaces/bookinfo/pods?includeObject=Object", TABLE)
    rows = {row["cells"][0]: row["cells"] for row in table["rows"]}
    (crashing,) = [cells for cells in rows.values() if cells[2] != "Running"]
    assert crashing[0].startswith("details-")
    assert crashing[1] == "1/2"
    assert crashing[2:4] == ["Error", "3 (55s ago)"]
    assert rows["client"][1:4] == ["2/2", "Running", "0"]
    assert rows["client"][4].endswith(("s", "m", "h"))
    assert table["rows"][0]["object"]["kind"] == "PartialObjectMetadata"
    assert whole["rows"][0]["object"]["kind"] == "Pod"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (119, "119s"),
        (121, "2m1s"),
        (201, "3m21s"),
        (600, "10m"),
        (10_799, "179m"),
        (3 * 3600 + 60, "3h1m"),
        (9 * 3600, "9h"),
        (49 * 3600, "2d1h"),
        (10 * 86_400, "10d"),
        (800 * 86_400, "2y70d"),
        (3000 * 86_400, "8y"),
    ],
)
def test_ages_are_written_as_kubectl_writes_them(seconds: int, text: str) -> None:
    assert age_text(seconds) == text


def test_kubectl_shows_a_recording(served: Served) -> None:
    shown = kubectl(served, "get", "po", "-A", "-o", "wide")
    assert shown.returncode == 0, shown.stderr
    assert len(shown.stdout.splitlines()) == 1 + len(recorded_items("pods"))
    assert kubectl(served, "get", "vs", "-n", "bookinfo").stdout.startswith("NAME")
    assert "VirtualService" in kubectl(served, "api-resources").stdout
    described = kubectl(served, "describe", "pod", "client", "-n", "bookinfo")
    assert "istio-proxy" in described.stdout
    missing = kubectl(served, "get", "pod", "nobody")
    assert 'pods "nobody" not found' in missing.stderr
    log = kubectl(served, "logs", "-n", "bookinfo", "client", "-c", "istio-proxy", "--tail=1")
    assert len(log.stdout.splitlines()) == 1
    refused = kubectl(served, "delete", "pod", "client", "-n", "bookinfo", "--wait=false")
    assert "read-only" in refused.stderr


# Watches.


def test_a_watch_says_everything_once_and_then_stays_open(served: Served) -> None:
    core = core_client(served)
    events = watch.Watch().stream(core.list_pod_for_all_namespaces, timeout_seconds=1)
    seen = [(event["type"], event["object"].metadata.name) for event in events]
    assert seen == [("ADDED", pod["metadata"]["name"]) for pod in recorded_items("pods")]


def test_a_watch_that_goes_on_from_a_list_has_nothing_new(served: Served) -> None:
    core = core_client(served)
    version = core.list_namespaced_pod("bookinfo").metadata.resource_version
    stream = watch.Watch().stream(
        core.list_namespaced_pod, "bookinfo", resource_version=version, timeout_seconds=1
    )
    assert list(stream) == []


def test_a_watch_sends_bookmarks_to_those_who_want_them(served: Served) -> None:
    async def ask() -> list[Any]:
        async with session_of(served) as session:
            path = (
                "/api/v1/namespaces?watch=true&allowWatchBookmarks=true&sendInitialEvents=true"
                "&resourceVersionMatch=NotOlderThan&timeoutSeconds=1"
            )
            async with session.http.get(path) as response:
                text = await response.text()
                return [json.loads(line) for line in text.splitlines()]

    *added, last = asyncio.run(ask())
    assert {event["type"] for event in added} == {"ADDED"}
    assert last["type"] == "BOOKMARK"
    assert last["object"]["metadata"]["annotations"] == {"k8s.io/initial-events-end": "true"}


# Who may do what.


def may(
    served: Served, verb: str, resource: str, part: str = "", namespace: str | None = None
) -> bool:
    api = client.AuthorizationV1Api(
        config.new_client_from_config(config_file=str(served.kubeconfig))
    )
    asked = client.V1ResourceAttributes(
        verb=verb, resource=resource, subresource=part, namespace=namespace
    )
    spec = client.V1SelfSubjectAccessReviewSpec(resource_attributes=asked)
    review = client.V1SelfSubjectAccessReview(spec=spec)
    status: Any = api.create_self_subject_access_review(review).status
    return bool(status.allowed)


def test_access_reviews_know_what_can_be_read(served: Served) -> None:
    assert may(served, "list", "pods")
    assert may(served, "create", "pods", "portforward")
    assert not may(served, "delete", "pods")
    assert not may(served, "create", "pods", "exec")
    assert kubectl(served, "auth", "can-i", "list", "pods").stdout == "yes\n"
    assert kubectl(served, "auth", "can-i", "delete", "pods").stdout == "no\n"
    assert "portforward" in kubectl(served, "auth", "can-i", "--list").stdout


# Logs.


def log(served: Served, container: str = "istio-proxy", **wanted: Any) -> str:
    core = core_client(served)
    text: str = core.read_namespaced_pod_log("client", "bookinfo", container=container, **wanted)
    return text


def recorded_log(container: str = "istio-proxy") -> str:
    folder = unpacked() / "healthy" / "logs" / "bookinfo" / "client"
    return (folder / f"{container}.log").read_text()


def test_a_log_is_served_whole_and_in_parts(served: Served) -> None:
    whole = recorded_log()
    assert log(served) == whole
    assert log(served, tail_lines=3).splitlines() == whole.splitlines()[-3:]
    assert log(served, tail_lines=0) == ""
    assert log(served, limit_bytes=100) == whole[:100]


def test_a_log_since_a_moment_counts_back_from_the_recording(served: Served) -> None:
    late = log(served, since_seconds=10)
    assert 0 < len(late) < len(recorded_log())
    assert recorded_log().endswith(late)
    assert log(served, since_seconds=100_000) == recorded_log()


def test_a_log_with_times_has_each_lines_own(served: Served) -> None:
    line = log(served, timestamps=True, tail_lines=5).splitlines()[0]
    time, _, rest = line.partition(" ")
    assert time.startswith("2026-11-23T02:49:")
    assert rest in recorded_log()


def test_a_log_that_is_followed_stays_open(served: Served) -> None:
    async def ask() -> bytes:
        async with session_of(served) as session:
            path = "/api/v1/namespaces/bookinfo/pods/client/log?container=client&follow=true"
            async with session.http.get(path) as response:
                whole = recorded_log("client").encode()
                content = await response.content.readexactly(len(whole))
                assert content == whole
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.3):
                        await response.content.read(1)
                return content

    assert asyncio.run(ask())


@pytest.mark.parametrize(
    ("query", "code", "said"),
    [
        ("container=nobody", 400, "container nobody is not valid for pod client"),
        ("container=client&previous=true", 404, "not recorded"),
        ("container=client&tailLines=-1", 422, "tailLines"),
        ("container=client&tailLines=x", 400, "tailLines"),
        ("container=client&sinceTime=noon", 400, "sinceTime"),
    ],
)
def test_a_log_that_is_not_there_is_a_status(
    served: Served, query: str, code: int, said: str
) -> None:
    status, document = get(served, f"/api/v1/namespaces/bookinfo/pods/client/log?{query}")
    assert (status, document["code"]) == (code, code)
    assert said in document["message"]


def test_a_log_that_was_refused_in_the_recording_still_is() -> None:
    name = "bootstrap-wrong-discovery"
    bundle = Bundle(unpacked() / name)
    (pod,) = [
        pod["metadata"]["name"]
        for pod in json.loads((unpacked() / name / "kubernetes" / "pods.json").read_text())["items"]
        if pod["metadata"]["name"].startswith("ratings-")
    ]
    with serve(bundle) as running:
        path = f"/api/v1/namespaces/bookinfo/pods/{pod}/log?container=ratings"
        status, document = get(running, path)
    assert (status, document["reason"]) == (400, "BadRequest")
    assert document["message"].endswith("is waiting to start: PodInitializing")


def test_a_recorder_that_might_list_some_namespaces_only_leaves_a_server_that_does_so(
    tmp_path: Path,
) -> None:
    altered = Altered("healthy", tmp_path)
    index = altered.folder / "index.jsonl"
    lines = [json.loads(line) for line in index.read_text().splitlines()]
    for line in lines:
        if line["request"].get("resource") == "pods":
            line["detail"] = {"namespaces": ["bookinfo"]}
    index.write_text("\n".join(map(json.dumps, lines)))
    with serve(Bundle(altered.folder)) as running:
        asked = [
            get(running, path)[0]
            for path in (
                "/api/v1/pods",
                "/api/v1/namespaces/legacy/pods",
                "/api/v1/namespaces/bookinfo/pods",
            )
        ]
        assert not may(running, "list", "pods")
        assert may(running, "list", "pods", namespace="bookinfo")
    assert asked == [403, 403, 200]


def test_an_object_of_another_shape_costs_only_its_own_table(tmp_path: Path) -> None:
    altered = Altered("healthy", tmp_path)

    def spoil(pod: dict[str, Any]) -> None:
        pod["status"]["containerStatuses"] = [{"name": "x", "restartCount": "many"}]

    altered.each("pods", "client", spoil)
    with serve(Bundle(altered.folder)) as running:
        status, document = get(running, "/api/v1/pods", TABLE)
        assert (status, document["kind"]) == (500, "Status")
        assert "cannot be shown" in document["message"]
        assert get(running, "/api/v1/pods")[0] == 200
        assert get(running, "/api/v1/services", TABLE)[0] == 200


def test_manifests_are_served_before_they_are_applied(tmp_path: Path) -> None:
    (tmp_path / "shop.yaml").write_text(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\n"
        "metadata: {name: shop, namespace: shop}\nspec: {hosts: [shop]}\n"
    )
    with serve(Manifests(tmp_path)) as running:
        path = "/apis/networking.istio.io/v1/namespaces/shop/virtualservices"
        (found,) = get(running, path)[1]["items"]
        assert found["spec"] == {"hosts": ["shop"]}
        assert get(running, "/version")[1]["major"] == "1"
