"""Secrets planted in every place of a mesh are in no file of a recording of it."""

from __future__ import annotations

import base64
import gzip
import io
import json
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from click.testing import CliRunner

from meshnb.cli import commands
from meshnb.errors import UsageError
from meshnb.sources import Bundle, HttpQuestion, ListQuestion, LogQuestion, record
from meshnb.sources.redaction import DROPPED, UNREADABLE, redact
from meshnb.tables import TABLES, Facts
from tests.alteration import Altered
from tests.conftest import facts_of, unpacked

#: In every planted secret; short enough to be found in what is left of one.
CORE = "pL4nt3d"
ENVOY = HttpQuestion("bookinfo", "client", 15000, "/config_dump?include_eds")
APPLIED = "kubectl.kubernetes.io/last-applied-configuration"


def mark(place: str) -> str:
    """Return a secret that says where it was planted."""
    return f"{CORE}0{place}9X"


def b64(text: str) -> str:
    """Return base64 of a text."""
    return base64.b64encode(text.encode()).decode()


def key(place: str, kind: str = "RSA ") -> str:
    """Return a private key in PEM."""
    body = "\n".join([mark(place) * 2, "M" * 64])
    return f"-----BEGIN {kind}PRIVATE KEY-----\n{body}\n-----END {kind}PRIVATE KEY-----\n"


def jwt(place: str) -> str:
    """Return a token in three parts."""
    parts = (b64(json.dumps(one)).rstrip("=") for one in ({"alg": "RS256"}, {"sub": mark(place)}))
    return ".".join([*parts, mark(place)])


def traces(text: bytes) -> list[bytes]:
    """Return what is left of planted secrets in some bytes, also in base64."""
    encoded = (b64("x" * offset + CORE)[(offset * 4 + 2) // 3 : -4] for offset in range(3))
    return [
        text[max(found - 60, 0) : found + 40]
        for one in (CORE.encode(), *(part.encode() for part in encoded))
        if (found := text.find(one)) >= 0
    ]


def _container(container: dict[str, Any]) -> None:
    container["env"] = [
        *container.get("env", ()),
        {"name": "GREETING", "value": mark("env")},
        {"name": "DB_PASSWORD", "value": mark("env-password")},
        {"name": "LATER", "valueFrom": {"secretKeyRef": {"name": "db", "key": "password"}}},
    ]
    container["args"] = [
        *("serve", f"--password={mark('arg')}", "--api-token", mark("arg-next")),
        f"--dsn=postgres://root:{mark('arg-url')}@db/x",
        f"--header=Authorization: Bearer {mark('arg-header')}",
    ]
    container["command"] = ["sh", "-c", f"export DB_PASSWORD={mark('script')}; exec app"]
    container["livenessProbe"] = {
        "httpGet": {"httpHeaders": [{"name": "Authorization", "value": f"Basic {mark('probe')}"}]}
    }


def _pod(pod: dict[str, Any]) -> None:
    for container in pod["spec"]["containers"]:
        if container["name"] != "istio-proxy":
            _container(container)
        else:
            container["env"] += [
                {"name": "MY_OWN", "value": mark("proxy-env")},
                {"name": "ISTIO_META_VAULT_TOKEN", "value": mark("proxy-env-token")},
                {
                    "name": "PROXY_CONFIG",
                    "value": json.dumps({"proxyMetadata": {"KEY_X": mark("proxy-config")}}),
                },
            ]
    pod["metadata"].setdefault("annotations", {}).update(
        {
            APPLIED: json.dumps({"spec": {"containers": [{"env": [{"value": mark("applied")}]}]}}),
            "example.com/auth": f"Bearer {mark('annotation')}",
            "example.com/api-key": mark("annotation-key"),
            "example.com/jwt": jwt("annotation-jwt"),
            "proxy.istio.io/config": f"proxyMetadata:\n  CUSTOM: {mark('annotation-proxy')}\n",
        }
    )
    pod["status"]["message"] = f"pull failed: https://bot:{mark('status')}@registry.local/v2"


def _virtual_service(one: dict[str, Any]) -> None:
    one["spec"]["http"][0]["headers"] = {
        "request": {"set": {"authorization": f"Bearer {mark('vs')}", "x-api-key": mark("vs-key")}}
    }
    one["spec"]["http"][0]["match"] = [{"headers": {"cookie": {"exact": mark("vs-match")}}}]


def _dump(dump: dict[str, Any]) -> None:
    lua = (
        f'function envoy_on_request(h) h:headers():add("authorization", "Bearer {mark("lua")}") end'
    )
    jwks = {"keys": [{"kty": "RSA", "n": "public", "d": mark("jwk-d"), "p": mark("jwk-p")}]}
    dump["configs"].append(
        {
            "@type": "type.googleapis.com/envoy.admin.v3.RoutesConfigDump",
            "planted": {
                "request_headers_to_add": [
                    {"header": {"key": "authorization", "value": f"Basic {b64(mark('route'))}"}},
                    {"header": {"key": "x-auth-token", "raw_value": mark("route-raw")}},
                ],
                "headers": [{"name": "authorization", "string_match": {"exact": mark("match")}}],
                "inline_code": lua,
                "default_source_code": {"inline_string": lua},
                "local_jwks": {"inline_string": json.dumps(jwks)},
                "tls_certificate": {"private_key": {"inline_string": mark("sds")}},
                "generic_secret": {"secret": {"inline_bytes": b64(mark("generic"))}},
                "session_ticket_keys": {"keys": [{"inline_bytes": b64(mark("tickets"))}]},
                "password": {"inline_string": mark("password")},
                "vm_config": {
                    "environment_variables": {"key_values": {"PULL": b64(mark("wasm-pull"))}}
                },
                "clientSecret": mark("client-secret"),
                "auths": {"registry.local": {"auth": b64("u:" + mark("auths"))}},
            },
        }
    )
    node = next(one["bootstrap"]["node"] for one in dump["configs"] if "bootstrap" in one)
    node["metadata"].setdefault("PROXY_CONFIG", {})["proxyMetadata"] = {"MINE": mark("bootstrap")}
    node["metadata"]["UPSTREAM_PASSWORD"] = mark("bootstrap-password")


def _log(text: str) -> str:
    lines = [
        f'[2026-11-23T02:49:10.000Z] "GET /?access_token={mark("query")}&page=1 HTTP/1.1" 200 -',
        json.dumps({"authorization": f"Bearer {mark('json-log')}", "path": "/"}),
        json.dumps({"headers": json.dumps({"cookie": f"session={mark('escaped-cookie')}"})}),
        f"authorization: Basic {b64('me:' + mark('basic'))}",
        f"Cookie: theme=dark; sid={mark('cookie')}",
        f"the token was {jwt('log-jwt')}",
        f"connecting to amqp://guest:{mark('amqp')}@queue:5672",
        f"login with password={mark('log-password')} failed",
        f"config: client_secret: '{mark('log-yaml')}'",
        key("log-key", "EC "),
        b64(key("log-base64")),
    ]
    return text + "\n".join(lines) + "\n"


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Altered:
    """Return a healthy mesh with a marked secret in every place."""
    mesh = Altered("healthy", tmp_path_factory.mktemp("planted"))
    packed = b64(gzip.compress(mark("helm").encode()).hex()) * 4
    secrets = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "db", "namespace": "bookinfo", "annotations": {}},
        "data": {"password": b64(mark("secret")), ".dockerconfigjson": b64(mark("docker"))},
        "stringData": {"plain": mark("string-data"), "key": key("secret-key")},
    }
    secrets["metadata"]["annotations"] = {APPLIED: json.dumps(secrets)}  # type: ignore[index]
    helm = {
        "metadata": {"name": "sh.helm.v1", "namespace": "bookinfo"},
        "data": {"release": packed},
    }
    mesh.objects("secrets", lambda items: items.extend([secrets, helm]))

    def pods(items: list[Any]) -> None:
        for item in items:
            _pod(item)

    def templates(items: list[Any]) -> None:
        for item in items:
            _container(item["spec"]["template"]["spec"]["containers"][0])

    mesh.objects("pods", pods)
    mesh.objects("deployments", templates)
    mesh.objects("replicasets", templates)
    config = {
        "metadata": {"name": "app", "namespace": "bookinfo"},
        "data": {
            "tls.key": key("config-key"),
            "application.yaml": f"db:\n  password: {mark('config-yaml')}\n  user: me\n",
            "application.json": json.dumps({"apiKey": mark("config-json"), "port": 80}),
            "application.properties": f"db.password={mark('config-properties')}\n",
            "ssh": key("config-ssh", "OPENSSH "),
            "wrapped": b64(key("config-wrapped")),
            "helm": "H4sI" + b64(mark("config-helm")) * 3,
        },
        "binaryData": {"store": b64(key("binary", ""))},
    }
    mesh.objects("configmaps", lambda items: items.append(config))
    mesh.objects("virtualservices", lambda items: _virtual_service(items[0]))
    event = {
        "metadata": {"name": "e.1", "namespace": "bookinfo"},
        "reason": "Failed",
        "message": f"hook got Authorization: Bearer {mark('event')} and {jwt('event-jwt')}",
    }
    mesh.objects("events", lambda items: items.append(event))
    mesh.pages(_dump, port=15000, path=ENVOY.path)
    for container in ("istio-proxy", "client", "discovery"):
        mesh.texts(_log, kind="log", container=container)
    mesh.texts(lambda text: text + f"# x Bearer {mark('metrics')}\n", kind="http", path="/metrics")
    mesh.silence(
        f"exec plugin said: token={mark('error')} Authorization: Bearer {mark('error-header')}",
        kind="http",
        path="/init_dump",
    )
    return mesh


@pytest.fixture(scope="module")
def written(planted: Altered, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a recording of that mesh."""
    return record(Bundle(planted.folder), tmp_path_factory.mktemp("written") / "mesh.zip")


def _files(path: Path) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            yield name, archive.read(name)


def test_secrets_are_planted_in_many_files(planted: Altered) -> None:
    """Otherwise the other tests would show nothing."""
    found = [file for file in planted.folder.rglob("*") if file.is_file()]
    assert sum(bool(traces(file.read_bytes())) for file in found) > 30


def test_no_file_of_a_recording_has_a_planted_secret(written: Path) -> None:
    left = {name: found for name, body in _files(written) if (found := traces(body))}
    assert not left
    assert not any(CORE in name for name, _ in _files(written))


def test_the_manifest_says_what_was_taken_out_and_how_many(written: Path) -> None:
    counts = dict(line.rsplit(": ", 1) for line in Bundle(written).manifest["redacted"])
    assert set(counts) == {
        "authorization headers and cookies",
        "command-line arguments",
        "compressed values",
        "environment values",
        "passwords and other credentials",
        "private keys",
        "secret values",
        "tokens",
    }
    assert all(int(count) > 0 for count in counts.values())
    assert Bundle(written).manifest["kept"] == []


def test_every_json_answer_is_still_json(written: Path, planted: Altered) -> None:
    before, after = Bundle(planted.folder), Bundle(written)
    count = 0
    for old, new in zip(before.ask(before.questions()), after.ask(before.questions()), strict=True):
        if old.content[:1] in (b"{", b"["):
            try:
                json.loads(old.content)
            except ValueError:
                continue
            json.loads(new.content)
            count += 1
    assert count > 100


def test_names_and_what_is_no_value_stay(written: Path) -> None:
    (answer,) = Bundle(written).ask([ListQuestion("v1", "pods")])
    pod = next(
        item for item in json.loads(answer.content)["items"] if item["metadata"]["name"] == "client"
    )
    app = next(one for one in pod["spec"]["containers"] if one["name"] == "client")
    variables = {one["name"]: one for one in app["env"]}
    assert variables["GREETING"]["value"] == "REDACTED"
    assert variables["LATER"]["valueFrom"]["secretKeyRef"]["name"] == "db"
    assert app["args"][:4] == ["serve", "--password=REDACTED", "--api-token", "REDACTED"]
    proxy = next(
        one
        for one in pod["spec"]["initContainers"] + pod["spec"]["containers"]
        if one["name"] == "istio-proxy"
    )
    known = {one["name"]: one.get("value") for one in proxy["env"]}
    assert known["PILOT_CERT_PROVIDER"] == "istiod"
    assert known["ISTIO_META_CLUSTER_ID"] == "Kubernetes"


@pytest.mark.parametrize(
    ("keep", "kept", "gone"),
    [
        ("environment", "env", "env-password9"),
        ("headers", "route-raw", "client-secret"),
        ("arguments", "arg-next", "client-secret"),
    ],
)
def test_what_one_asks_to_keep_is_kept_and_the_manifest_says_so(
    planted: Altered, tmp_path: Path, keep: str, kept: str, gone: str
) -> None:
    path = record(Bundle(planted.folder), tmp_path / "kept.zip", keep=[keep])
    bodies = b"".join(body for _, body in _files(path))
    assert mark(kept).encode() in bodies
    assert Bundle(path).manifest["kept"] == [keep]
    for never in ("secret-key", "config-key", "log-key", "sds", "jwk-d"):
        assert mark(never).encode() not in bodies


def test_the_command_keeps_what_its_options_say(planted: Altered, tmp_path: Path) -> None:
    path = tmp_path / "kept.zip"
    arguments = ["record", str(planted.folder), str(path), "--keep-environment", "--keep-headers"]
    answer = CliRunner().invoke(commands, arguments)
    assert answer.exit_code == 0
    assert "Redacted: " in answer.output
    assert Bundle(path).manifest["kept"] == ["environment", "headers"]
    assert mark("env").encode() in b"".join(body for _, body in _files(path))


@pytest.mark.parametrize(
    "text",
    [
        "curl -u me:{} http://web",
        "DB_PASS={}",
        "PGPASSWORD={} psql",
        "<password>{}</password>",
        "machine web login me password {}",
        "token: '{}'",
        "GET /cb?code={}&state=1",
        "X-Amz-Security-Token: {}",
        "Authorization=Bearer%20{}",
        '{{"set-cookie":["sid={}"]}}',
        "git clone https://{}@example.com/a.git",
        "app --api-token {} --port 80",
        "ghp_0123456789{}",
    ],
)
def test_credentials_are_seen_in_lines_of_all_kinds(text: str) -> None:
    kept, counts = redact(LogQuestion("a", "b", "c"), text.format(CORE + "0123456789").encode())
    assert not traces(kept), kept
    assert sum(counts.values()) == 1


@pytest.mark.parametrize(
    "text",
    [
        "the bearer token is missing, and basic authentication is off",
        "token expired; secret: default; password is wrong",
        "secret=kubernetes://web-credential not found",
        "authorization: no policy matched, allowed",
        'envoy_cluster_token_total{key="x"} 5',
        "http.inbound.api_key_auth.denied: 0",
        "--tokenAudience=istio-ca --token-path=/var/run/secrets/tokens/istio-token",
        "outbound|80||sessions.shop.svc.cluster.local::10.0.0.7:80::cx_active::1",
        "spiffe://cluster.local/ns/shop/sa/web",
    ],
)
def test_sentences_about_credentials_stay(text: str) -> None:
    assert redact(LogQuestion("a", "b", "c"), text.encode()) == (text.encode(), {})


def test_values_of_secrets_cannot_be_kept() -> None:
    with pytest.raises(UsageError, match="cannot be kept"):
        redact(ENVOY, b"{}", ["secrets"])


def _but_applied(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a table without what kubectl applied: the only place where values are repeated."""

    def without(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {name: without(one) for name, one in value.items() if name != APPLIED}

    repeating = [name for name in ("annotations", "metadata") if name in frame]
    return frame.assign(**{name: frame[name].map(without) for name in repeating})


@pytest.mark.parametrize(
    "name", ["healthy", "market-healthy", "garden-healthy", "authz-deny-named"]
)
def test_tables_of_a_redacted_recording_are_those_of_the_original(
    tmp_path: Path, name: str
) -> None:
    before = facts_of(name)
    after = Facts(Bundle(record(Bundle(unpacked() / name), tmp_path / "a.zip"), label=name))
    for table in TABLES:
        old, new = _but_applied(before[table]), _but_applied(after[table])
        pd.testing.assert_frame_equal(old, new, obj=table)


_HOSTILE: tuple[tuple[str, bytes], ...] = (
    ("cut off", b'{"items":[{"spec":{"containers":[{"env":[{"name":"A","value":"' + CORE.encode()),
    ("deep", b'{"env":' + b"[" * 50_000 + f'"{CORE}"'.encode() + b"]" * 50_000 + b"}"),
    ("not UTF-8", b'{"password":"' + CORE.encode() + b'\xff\xfe"}'),
    ("two values", b'{"password":"' + CORE.encode() + b'"} {}'),
    ("a field twice", f'{{"password":"{CORE}","password":"REDACTED"}}'.encode()),
    ("escaped", b'{"p\\u0061ssword":"%s"}' % CORE.encode()),
    ("twice, large", f'{{"a":{{"password":"{CORE}"}},"a":"{"x" * 600_000}"}}'.encode()),
    ("number", b'{"password":"' + CORE.encode() + b'","n":' + b"9" * 5000 + b"}"),
    (
        "odd shapes",
        f'{{"env":"{CORE}","password":["{CORE}"],"auths":{{"a":{{"b":"{CORE}"}}}}}}'.encode(),
    ),
)


@pytest.mark.parametrize("body", [body for _, body in _HOSTILE], ids=[name for name, _ in _HOSTILE])
@pytest.mark.parametrize(
    "question", [ENVOY, ListQuestion("v1", "pods"), ListQuestion("v1", "secrets")]
)
def test_hostile_json_neither_crashes_nor_leaks(question: Any, body: bytes) -> None:
    if b'"env":"' in body:  # a string where variables should be is one of many unknown fields
        body = body.replace(b'"env":"' + CORE.encode(), b'"env":"')
    kept, counts = redact(question, body)
    assert not traces(kept)
    assert counts
    assert kept != DROPPED or counts == {UNREADABLE: 1}


def test_a_log_that_is_no_text_stays_byte_for_byte_and_loses_its_secrets() -> None:
    log = b"\xff\xfe\x00 binary \x80\n"
    question = LogQuestion("a", "b", "c")
    assert redact(question, log) == (log, {})
    kept, _ = redact(question, log + f"password={mark('x')}\n".encode())
    assert kept == log + b"password=REDACTED\n"


def _large(add: Callable[[int], dict[str, Any]], size: int) -> bytes:
    body = io.BytesIO()
    body.write(b'{"configs":[{"dynamic_active_clusters":[')
    number = 0
    while body.tell() < size:
        body.write(b"," if number else b"")
        body.write(json.dumps(add(number)).encode())
        number += 1
    body.write(b"]}]}")
    return body.getvalue()


def test_a_large_dump_is_redacted_part_by_part() -> None:
    def cluster(number: int) -> dict[str, Any]:
        return {
            "name": f"outbound|80||host-{number}.example.com",
            "headers": [{"key": "authorization", "value": f"Bearer {mark(str(number))}"}],
            "filler": ["x" * 200] * 20,
        }

    body = _large(cluster, 3 << 20)
    kept, counts = redact(ENVOY, body)
    assert not traces(kept)
    clusters = json.loads(kept)["configs"][0]["dynamic_active_clusters"]
    assert counts == {"authorization headers and cookies": len(clusters)}
    assert clusters[5]["headers"] == [{"key": "authorization", "value": "Bearer REDACTED"}]
