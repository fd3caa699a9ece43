"""Nothing secret reaches a bundle; what is evidence stays."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from meshnb.sources import Bundle, HttpQuestion, ListQuestion, LogQuestion, Question, record
from meshnb.sources.redaction import DROPPED, UNREADABLE, redact

SECRETS = ListQuestion("v1", "secrets")
CONFIG_MAPS = ListQuestion("v1", "configmaps")
LOG = LogQuestion("shop", "web", "app")
#: Stands for everything that must not leave the cluster; searched for in whatever is written.
PLANTED = "hunter2"


def _key(kind: str = "") -> str:
    return f"-----BEGIN {kind}PRIVATE KEY-----\n{PLANTED}\n-----END {kind}PRIVATE KEY-----"


def _encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _redacted(item: dict[str, Any]) -> tuple[dict[str, Any], dict[str, int]]:
    body, counts = redact(SECRETS, json.dumps({"kind": "SecretList", "items": [item]}).encode())
    (secret,) = json.loads(body)["items"]
    return secret, counts


@pytest.fixture(scope="module")
def certificate(recordings_folder: Path) -> str:
    """Return a certificate as it stands in a Secret of a recording."""
    bundle = Bundle(recordings_folder / "healthy")
    (answer,) = bundle.ask([SECRETS])
    for secret in json.loads(answer.content)["items"]:
        if secret["metadata"]["name"] == "istio-ca-secret":
            return str(secret["data"]["ca-cert.pem"])
    pytest.fail("the recording has no istio-ca-secret")


def test_the_values_of_a_secret_are_replaced_and_counted() -> None:
    item = {
        "metadata": {"name": "db"},
        "data": {"password": _encoded(PLANTED), "key.pem": _encoded(_key()), "empty": ""},
        "stringData": {"plain": PLANTED},
    }
    secret, counts = _redacted(item)
    assert secret["data"] == {"password": "REDACTED", "key.pem": "REDACTED", "empty": ""}
    assert secret["stringData"] == {"plain": "REDACTED"}
    assert counts == {"secret values": 3}


def test_what_kubectl_applied_is_taken_out_of_a_secret_as_well() -> None:
    name = "kubectl.kubernetes.io/last-applied-configuration"
    secret, _ = _redacted({"metadata": {"annotations": {name: PLANTED, "owner": "me"}}})
    assert secret["metadata"]["annotations"] == {name: "REDACTED", "owner": "me"}


def test_certificates_stay_without_what_stands_around_them(certificate: str) -> None:
    pem = base64.b64decode(certificate).decode()
    item = {
        "metadata": {},
        "data": {
            "alone": certificate,
            "chain": _encoded(pem + "\n" + pem),
            "with key": _encoded(pem + _key("RSA ")),
            "with note": _encoded(f"password={PLANTED}\n{pem}"),
        },
    }
    secret, counts = _redacted(item)
    assert secret["data"]["alone"] == certificate
    assert base64.b64decode(secret["data"]["chain"]).decode() == pem + "\n" + pem
    for mixed in ("with key", "with note"):
        assert base64.b64decode(secret["data"][mixed]).decode() == pem.strip()
    assert counts == {"secret values": 2}


def test_a_value_that_only_begins_like_a_redacted_one_is_redacted() -> None:
    marked = "REDACTED:sha256:2a3bfcc4b839753b:1679B"
    item = {"metadata": {}, "data": {"a": marked, "b": "REDACTED", "c": f"REDACTED{PLANTED}"}}
    secret, counts = _redacted(item)
    assert secret["data"] == {"a": marked, "b": "REDACTED", "c": "REDACTED"}
    assert counts == {"secret values": 1}


@pytest.mark.parametrize(
    "body",
    [
        PLANTED.encode(),
        json.dumps([PLANTED]).encode(),
        json.dumps({"items": [PLANTED]}).encode(),
        json.dumps({"items": [{"metadata": [PLANTED], "data": {}}]}).encode(),
        json.dumps({"items": [{"data": [PLANTED]}]}).encode(),
        json.dumps({"kind": "Secret", "data": {"a": PLANTED}}).encode(),
        b"[" * 100_000 + PLANTED.encode(),
    ],
)
def test_a_list_of_secrets_of_an_unexpected_shape_is_dropped_whole(body: bytes) -> None:
    kept, counts = redact(SECRETS, body)
    assert kept == DROPPED
    assert counts == {UNREADABLE: 1}


def test_a_refusal_to_list_secrets_stays_as_it_is() -> None:
    refusal = b'{"kind": "Status", "message": "secrets is forbidden", "code": 403}'
    assert redact(SECRETS, refusal) == (refusal, {})


@pytest.mark.parametrize("kind", ["", "RSA ", "EC ", "ENCRYPTED ", "OPENSSH "])
def test_private_keys_are_cut_out_of_everything(kind: str) -> None:
    document = {"items": [{"data": {"tls": f"a {_key(kind)} b"}}, {"data": {"tls": _key(kind)}}]}
    body, counts = redact(CONFIG_MAPS, json.dumps(document).encode())
    assert [item["data"]["tls"] for item in json.loads(body)["items"]] == [
        "a REDACTED PRIVATE KEY b",
        "REDACTED PRIVATE KEY",
    ]
    assert counts == {"private keys": 2}
    body, counts = redact(LOG, f"before\n{_key(kind)}\nafter".encode())
    assert (body, counts) == (b"before\nREDACTED PRIVATE KEY\nafter", {"private keys": 1})


def test_a_key_without_an_end_costs_its_own_text_and_not_the_whole_list() -> None:
    open_ended = _key().partition("-----END")[0]
    document = {"items": [{"data": {"tls": open_ended}}, {"data": {"note": "kept"}}]}
    body, _ = redact(CONFIG_MAPS, json.dumps(document).encode())
    assert json.loads(body)["items"] == [
        {"data": {"tls": "REDACTED PRIVATE KEY"}},
        {"data": {"note": "kept"}},
    ]
    assert redact(LOG, f"x {open_ended}".encode())[0] == b"x REDACTED PRIVATE KEY"


@pytest.mark.parametrize("name", ["healthy", "garden-healthy", "gateway-secret-missing"])
def test_what_has_no_secret_stays_byte_for_byte(recordings_folder: Path, name: str) -> None:
    """The recordings have no secret but what their applications' environment says."""
    bundle = Bundle(recordings_folder / name)
    for answer in bundle.ask(bundle.questions()):
        kept, counts = redact(answer.question, answer.content, ("environment",))
        assert (kept == answer.content, counts) == (True, {}), answer.question


def test_nothing_planted_is_found_in_a_recorded_bundle(tmp_path: Path) -> None:
    """Whatever question it was the answer to, and the manifest counts what was taken out."""
    bodies: dict[Question, str] = {
        SECRETS: json.dumps({"items": [{"metadata": {}, "data": {"a": _encoded(PLANTED)}}]}),
        CONFIG_MAPS: json.dumps({"items": [{"data": {"tls.key": _key("EC ")}}]}),
        LOG: f"loaded {_key()}",
        HttpQuestion("shop", "web", 15000, "/config_dump"): json.dumps({"inline": _key("RSA ")}),
    }
    folder = tmp_path / "source"
    folder.mkdir()
    lines = []
    for number, (question, body) in enumerate(bodies.items()):
        (folder / str(number)).write_text(body)
        line = {"request": question.to_json(), "file": str(number), "status": 200}
        lines.append(json.dumps({**line, "taken_at": datetime(2026, 1, 1, tzinfo=UTC).isoformat()}))
    (folder / "index.jsonl").write_text("\n".join(lines))

    target = record(Bundle(folder), tmp_path / "a.zip")

    written = Bundle(target)
    assert written.manifest["redacted"] == ["private keys: 3", "secret values: 1"]
    for answer in written.ask(written.questions()):
        assert PLANTED.encode() not in answer.content
        assert _encoded(PLANTED).encode() not in answer.content
