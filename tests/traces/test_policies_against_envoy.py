"""What we say of rules and tokens, compared with a real Envoy: the same configuration and requests.

Configurations and requests are drawn at random, with a fixed seed. Skipped where no Envoy is.
"""

from __future__ import annotations

import base64
import json
import random
import socket
import ssl
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.x509.oid import NameOID

from meshnb.traces.envoy.arrival import Arrival, trusted_client
from meshnb.traces.envoy.http_filters import Filter
from meshnb.traces.envoy.matchers import Headers, NormalPath, normal_path
from meshnb.traces.envoy.policies import decide, gone_through
from tests.conftest import facts_of
from tests.traces.real_envoy import Answered, RealEnvoy, free_port, http_listener

_TYPE = "type.googleapis.com/envoy.extensions"
_RBAC = f"{_TYPE}.filters.http.rbac.v3"
_JWT = f"{_TYPE}.filters.http.jwt_authn.v3"


def _answer(filters: list[Filter], arrival: Arrival) -> Answered | None:
    """Return the answer that we expect; None where it is undecided."""
    decided = gone_through(filters, arrival)
    if decided.outcome == "undecided":
        return None
    refusal = decided.refusal
    return Answered(200, "") if refusal is None else Answered(refusal.status or 0, refusal.details)


def _plain(answer: Answered) -> Answered:
    return Answered(200, "") if answer.status == 200 else answer


# --- Rules ---------------------------------------------------------------------------------------

_NAMES = ["x-a", "x-b", "x-n"]
_VALUES = ["", "a", "ab", "abc", "ABC", "1", "12", "-5", "5.0", "a,b", "b a"]
_EXPRESSIONS = [
    *("a.*", "a+", "[a-c]{1,3}", "(?i)abc", "\\d+", "a|b", "^a.*$", "[^a]*", "a\\b.*", "a*?b?"),
    *("(a|ab)(c|bc)?", "\\Qab\\E.?", "[[:alpha:]]+", ".{0,2}", "(?:a(b)?)+c?", "\\w+", "\\S*"),
]
_PATHS = [
    *("/", "/a", "/a/b", "/A/b", "/a//b", "/a/../b", "/a/./b", "/a%2Fb", "/a%41", "/a?x=1", "/a;b"),
    *("/a/b?q=/c", "/a%2e%2e/b", "/%61", "/a\\b", "/a/..", "/..", "/a/%2e%2E/b", "/a/b/", "/a/b/."),
    *("/a%5Cb", "/ab~c", "/a%7Eb", "/a+b", "/a'b", "/a|b", "/a[b]", "/a%20b", "/a^b", "//a"),
    *(
        "/a`b",
        "/a{b}",
        '/a"b',
        "/a<b>",
        "/a%zzb",
        "/a%",
        "/a%00",
        "/a#b",
        "/a%2f/../b",
        "/a;x/../b",
    ),
]
_RANGES = [
    {"address_prefix": "127.0.0.0", "prefix_len": 8},
    {"address_prefix": "10.0.0.0", "prefix_len": 8},
    {"address_prefix": "10.0.0.0"},
    {"address_prefix": "127.0.0.2", "prefix_len": 32},
    {"address_prefix": "::", "prefix_len": 0},
]
_ADDRESSES = ("remote_ip", "direct_remote_ip", "source_ip", "destination_ip")


class _Drawn:
    """Draws rules at random, of all kinds of conditions."""

    def __init__(self, seed: int, port: int) -> None:
        self.random = random.Random(seed)  # noqa: S311  the same each time, not secret
        self.port = port

    def text(self) -> dict[str, Any]:
        kind = self.random.choice(["exact", "prefix", "suffix", "contains", "safe_regex"])
        if kind == "safe_regex":
            return {kind: {"regex": self.random.choice(_EXPRESSIONS)}}
        matcher: dict[str, Any] = {
            kind: self.random.choice(["a", "ab", "A", "b", "abc", "1", "/a"])
        }
        return matcher | ({"ignore_case": True} if self.random.random() < 0.4 else {})

    def header(self) -> dict[str, Any]:
        kinds: dict[str, Callable[[], Any]] = {
            "string_match": self.text,
            "present_match": lambda: self.random.random() < 0.5,
            "range_match": lambda: {"start": "-10", "end": str(self.random.choice([1, 6, 13]))},
            "safe_regex_match": lambda: {"regex": self.random.choice(_EXPRESSIONS)},
            **dict.fromkeys(
                ("exact_match", "prefix_match", "suffix_match", "contains_match"),
                lambda: self.random.choice(["a", "b", "ab"]),
            ),
        }
        kind = self.random.choice([*kinds, ""])
        matcher = {"name": self.random.choice(_NAMES)} | ({kind: kinds[kind]()} if kind else {})
        for flag in ("invert_match", "treat_missing_header_as_empty"):
            if self.random.random() < 0.35:
                matcher[flag] = True
        return matcher

    def condition(self, kinds: tuple[str, ...], depth: int = 0) -> dict[str, Any]:
        kind = self.random.choice(kinds if depth < 3 else kinds[:-3])
        if kind == "header":
            return {kind: self.header()}
        if kind == "url_path":
            return {kind: {"path": self.text()}}
        if kind == "destination_port":
            return {kind: self.random.choice([self.port, 80])}
        if kind == "destination_port_range":
            return {kind: {"start": 1, "end": self.port + self.random.randint(0, 1)}}
        if kind in _ADDRESSES:
            return {kind: self.random.choice(_RANGES)}
        if kind == "authenticated":
            return {kind: self.random.choice([{}, {"principal_name": self.text()}])}
        if kind == "any":
            return {kind: True}
        if kind.startswith("not"):
            return {kind: self.condition(kinds, depth + 1)}
        several = [self.condition(kinds, depth + 1) for _ in range(self.random.randint(1, 3))]
        return {kind: {kind.partition("_")[2]: several}}

    def rules(self) -> dict[str, Any]:
        who = ("header", "url_path", *_ADDRESSES[:3], "any", "authenticated")
        ports = ("destination_port", "destination_port_range")
        what = ("header", "url_path", "destination_ip", *ports, "any")
        policies = {
            f"ns[x]-policy[p{number}]-rule[{self.random.randint(0, 12)}]": {
                "permissions": [self.condition((*what, "and_rules", "or_rules", "not_rule"))],
                "principals": [self.condition((*who, "and_ids", "or_ids", "not_id"))],
            }
            for number in range(self.random.randint(0, 3))
        }
        return {"action": self.random.choice(["ALLOW", "DENY"]), "policies": policies}


def test_rules_decide_as_a_real_envoy_does(tmp_path: Path) -> None:
    port = free_port()
    drawn = _Drawn(11, port)
    rules = {f"case{number}": drawn.rules() for number in range(150)}
    name = "envoy.filters.http.rbac"
    own = {
        host: {name: {"@type": f"{_RBAC}.RBACPerRoute", "rbac": {"rules": one}}}
        for host, one in rules.items()
    }
    manager: dict[str, Any] = {"normalize_path": True}
    refusing = [{"name": name, "typed_config": {"@type": f"{_RBAC}.RBAC"}}]
    compared = 0
    with RealEnvoy(tmp_path, [http_listener(port, own, refusing, **manager)]) as envoy:
        for host, one in rules.items():
            for _ in range(5):
                sent = {
                    n: drawn.random.choice(_VALUES) for n in _NAMES if drawn.random.random() < 0.5
                }
                forwarded = drawn.random.choice([None, "10.1.2.3", "127.0.0.2, 10.9.9.9"])
                if forwarded is not None:
                    sent["x-forwarded-for"] = forwarded
                path = normal_path(raw := drawn.random.choice(_PATHS), manager)
                assert isinstance(path, NormalPath)
                if path.status is not None:
                    continue
                known = {**sent, ":path": path.path, ":method": "GET", ":authority": host}
                arrival = Arrival(
                    headers=Headers(known, complete=True),
                    source="127.0.0.1",
                    remote=trusted_client(manager, forwarded, "127.0.0.1"),
                    destination="127.0.0.1",
                    destination_port=port,
                )
                config = {"@type": f"{_RBAC}.RBAC", "rules": one}
                expected = _answer([Filter(name, "rbac", config, {})], arrival)
                if expected is not None:
                    compared += 1
                    real = _plain(envoy.get(port, host, raw, sent))
                    assert real == expected, (raw, sent, one)
    assert compared > 600


def test_paths_are_normalised_as_a_real_envoy_does(tmp_path: Path) -> None:
    """Each path is compared with each other one: a rule admits what is normalised to it."""
    action = "path_with_escaped_slashes_action"
    ports: dict[int, dict[str, Any]] = {
        free_port(): {"normalize_path": True, "merge_slashes": True},
        free_port(): {"merge_slashes": True},
        free_port(): {"normalize_path": True, action: "UNESCAPE_AND_FORWARD"},
        free_port(): {action: "REJECT_REQUEST"},
        free_port(): {action: "UNESCAPE_AND_REDIRECT", "merge_slashes": True},
    }
    name = "envoy.filters.http.rbac"
    listeners = []
    for port, manager in ports.items():
        own = {}
        for number, path in enumerate(_PATHS):
            found = normal_path(path, manager)
            assert isinstance(found, NormalPath)
            permission = {"url_path": {"path": {"exact": found.path.partition("?")[0]}}}
            policy = {"permissions": [permission], "principals": [{"any": True}]}
            rules = {"rules": {"policies": {"p": policy}}}
            own[f"case{number}"] = {name: {"@type": f"{_RBAC}.RBACPerRoute", "rbac": rules}}
        refusing = [{"name": name, "typed_config": {"@type": f"{_RBAC}.RBAC"}}]
        listeners.append(http_listener(port, own, refusing, **manager))
    with RealEnvoy(tmp_path, listeners) as envoy:
        for port, manager in ports.items():
            for number, path in enumerate(_PATHS):
                found = normal_path(path, manager)
                assert isinstance(found, NormalPath)
                status = envoy.get(port, f"case{number}", path).status
                assert status == (found.status or 200), (path, manager, found)


def test_recorded_rules_decide_as_a_real_envoy_does(tmp_path: Path) -> None:
    """The RBAC filters of all recordings, with the requests of their access logs, in plain text."""
    port = free_port()
    name = "envoy.filters.http.rbac"
    own: dict[str, Any] = {}
    requests: dict[str, set[tuple[str, str]]] = {}
    for recording in ("authz-allow-nobody", "authz-deny-named", "authz-principal-typo"):
        facts = facts_of(recording)
        rules = facts["rbac_rules"]
        http = rules[(rules["protocol"] == "http") & (rules["listener"] == "virtualInbound")]
        policies = {
            row["name"]: {
                "permissions": list(row["permissions"]),
                "principals": list(row["principals"]),
            }
            for row in http.to_dict("records")
        }
        assert policies
        config = {"rules": {"action": http["action"].iloc[0], "policies": policies}}
        own[recording] = {name: {"@type": f"{_RBAC}.RBACPerRoute", "rbac": config}}
        log = facts["access_log"].dropna(subset=["method", "path"])
        sent = set(zip(log["method"], log["path"], strict=True))
        requests[recording] = sent | {("POST", "/details/0"), ("GET", "/other")}
    refusing = [{"name": name, "typed_config": {"@type": f"{_RBAC}.RBAC"}}]
    with RealEnvoy(tmp_path, [http_listener(port, own, refusing)]) as envoy:
        for recording, sent in requests.items():
            held: dict[str, Any] = {"@type": f"{_RBAC}.RBAC", **own[recording][name]["rbac"]}
            for method, path in sent:
                headers = Headers({":method": method, ":path": path}, complete=True)
                arrival = Arrival(headers=headers, source="127.0.0.1", destination_port=port)
                real = _plain(envoy.get(port, recording, path, method=method))
                assert real == _answer([Filter(name, "rbac", held, {})], arrival)


# --- Certificates --------------------------------------------------------------------------------


def _certificate(
    folder: Path, name: str, sans: list[x509.GeneralName], issuer: tuple[Any, Any] | None = None
) -> tuple[Any, Any]:
    """Write a key and a certificate, signed by an issuer or by itself; return both."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, name)])
    signer, parent = issuer or (key, None)
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(parent.subject if parent is not None else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
    )
    if sans:
        builder = builder.add_extension(x509.SubjectAlternativeName(sans), critical=False)
    found = builder.sign(signer, hashes.SHA256())
    pem = serialization.Encoding.PEM
    private = serialization.PrivateFormat.PKCS8
    (folder / f"{name}.key").write_bytes(
        key.private_bytes(pem, private, serialization.NoEncryption())
    )
    (folder / f"{name}.pem").write_bytes(found.public_bytes(pem))
    return key, found


def test_callers_are_told_apart_as_a_real_envoy_does(tmp_path: Path) -> None:
    authority = _certificate(tmp_path, "root", [])
    _certificate(tmp_path, "server", [x509.DNSName("server")], authority)
    cart = "spiffe://cluster.local/ns/shop/sa/cart"
    callers: dict[str, tuple[str, ...]] = {
        "": (),
        "cart": (cart,),
        "both": (cart.replace("cart", "both"), "cart.shop"),
        "unnamed": (),
    }
    for name, sans in callers.items():
        if name:
            names: list[x509.GeneralName] = [
                x509.UniformResourceIdentifier(one) if "://" in one else x509.DNSName(one)
                for one in sans
            ]
            _certificate(tmp_path, name, names, authority)
    matchers: list[dict[str, Any]] = [
        {},
        {"principal_name": {"exact": cart}},
        {"principal_name": {"safe_regex": {"regex": ".*/ns/shop/.*"}}},
        {"principal_name": {"safe_regex": {"regex": ".+"}}},
        {"principal_name": {"safe_regex": {"regex": ".*"}}},
        {"principal_name": {"suffix": ".shop"}},
        {"principal_name": {"exact": "O=unnamed"}},
        {"principal_name": {"prefix": "spiffe://other"}},
    ]
    name = "envoy.filters.http.rbac"
    own: dict[str, Any] = {}
    for number, matcher in enumerate(matchers):
        for action in ("ALLOW", "DENY"):
            policy = {"permissions": [{"any": True}], "principals": [{"authenticated": matcher}]}
            rules = {"rules": {"action": action, "policies": {"p": policy}}}
            own[f"{action.lower()}{number}"] = {
                name: {"@type": f"{_RBAC}.RBACPerRoute", "rbac": rules}
            }
    context = {
        "@type": f"{_TYPE}.transport_sockets.tls.v3.DownstreamTlsContext",
        "common_tls_context": {
            "tls_certificates": [
                {
                    "certificate_chain": {"filename": str(tmp_path / "server.pem")},
                    "private_key": {"filename": str(tmp_path / "server.key")},
                }
            ],
            "validation_context": {"trusted_ca": {"filename": str(tmp_path / "root.pem")}},
        },
    }
    port = free_port()
    socket_ = {"name": "envoy.transport_sockets.tls", "typed_config": context}
    refusing = [{"name": name, "typed_config": {"@type": f"{_RBAC}.RBAC"}}]
    with RealEnvoy(tmp_path, [http_listener(port, own, refusing, socket_=socket_)]) as envoy:
        for caller, sans in callers.items():
            client = ssl.create_default_context(cafile=str(tmp_path / "root.pem"))
            client.check_hostname = False
            if caller:
                client.load_cert_chain(tmp_path / f"{caller}.pem", tmp_path / f"{caller}.key")
            for host, settings in own.items():
                config = {"@type": f"{_RBAC}.RBAC", **settings[name]["rbac"]}
                arrival = Arrival(
                    headers=Headers({":path": "/"}, complete=True),
                    encrypted=True,
                    names=sans,
                    subject=f"O={caller}" if caller else "",
                )
                real = _plain(envoy.get(port, host, "/", tls=client))
                expected = _answer([Filter(name, "rbac", config, {})], arrival)
                assert real == expected, (caller, host)


def test_connections_are_closed_as_a_real_envoy_does(tmp_path: Path) -> None:
    name = "envoy.filters.network.rbac"
    kind = f"{_TYPE}.filters.network.rbac.v3.RBAC"
    log = tmp_path / "access.log"
    anybody = {"permissions": [{"any": True}], "principals": [{"any": True}]}
    cases: list[tuple[str, dict[str, Any]]] = [
        ("DENY", anybody),
        ("ALLOW", anybody),
        ("DENY", {**anybody, "permissions": [{"url_path": {"path": {"prefix": "/"}}}]}),
        ("DENY", {**anybody, "principals": [{"authenticated": {}}]}),
        ("DENY", {**anybody, "principals": [{"not_id": {"authenticated": {}}}]}),
        ("ALLOW", {**anybody, "principals": [{"remote_ip": _RANGES[0]}]}),
    ]
    configs: dict[int, dict[str, Any]] = {}
    for action, policy in cases:
        rules = {"action": action, "policies": {"ns[a]-policy[b]-rule[0]": policy}}
        configs[free_port()] = {"@type": kind, "rules": rules, "stat_prefix": "tcp."}
    access_log = {
        "@type": f"{_TYPE}.access_loggers.file.v3.FileAccessLog",
        "path": str(log),
        "log_format": {
            "text_format_source": {
                "inline_string": "%DOWNSTREAM_LOCAL_PORT% %CONNECTION_TERMINATION_DETAILS%\n"
            }
        },
    }
    echo = {"@type": f"{_TYPE}.filters.network.echo.v3.Echo"}
    listeners = [
        {
            "name": f"listener-{port}",
            "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
            "access_log": [{"name": "envoy.access_loggers.file", "typed_config": access_log}],
            "filter_chains": [
                {
                    "filters": [
                        {"name": name, "typed_config": config},
                        {"name": "envoy.filters.network.echo", "typed_config": echo},
                    ]
                }
            ],
        }
        for port, config in configs.items()
    ]
    with RealEnvoy(tmp_path, listeners) as envoy:
        assert envoy.log.exists()
        for port in configs:
            with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
                connection.sendall(b"hello")
                connection.recv(5)
        expected = set()
        for port, config in configs.items():
            arrival = Arrival(
                source="127.0.0.1",
                remote="127.0.0.1",
                destination="127.0.0.1",
                destination_port=port,
            )
            decision, _ = decide(Filter(name, "rbac", config, {}), arrival)
            assert decision is not None
            refusal = decision.refusal
            expected.add(f"{port} {refusal.details if refusal is not None else '-'}")
        for _ in range(100):
            lines = set(log.read_text().splitlines()) if log.exists() else set()
            if len(lines) == len(configs):
                break
            time.sleep(0.1)
        assert lines == expected


# --- Tokens --------------------------------------------------------------------------------------


def _encoded(body: bytes) -> str:
    return base64.urlsafe_b64encode(body).rstrip(b"=").decode()


def _number(value: int) -> str:
    return _encoded(value.to_bytes((value.bit_length() + 7) // 8, "big"))


class _Issuer:
    """An issuer of tokens with one RSA key."""

    def __init__(self, kid: str) -> None:
        self.kid = kid
        self.key = rsa.generate_private_key(65537, 2048)

    @property
    def keys(self) -> str:
        """The key set that proxies verify its tokens with."""
        numbers = self.key.public_key().public_numbers()
        key = {"kty": "RSA", "kid": self.kid, "n": _number(numbers.n), "e": _number(numbers.e)}
        return json.dumps({"keys": [key]})

    def token(self, kid: str | None = None, **payload: Any) -> str:
        """Return a signed token; ``kid`` is that of another key."""
        header = {"alg": "RS256", "kid": kid or self.kid}
        parts = (_encoded(json.dumps(part).encode()) for part in (header, payload))
        signed = ".".join(parts)
        signature = self.key.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256())
        return f"{signed}.{_encoded(signature)}"


def test_tokens_are_accepted_and_refused_as_a_real_envoy_does(tmp_path: Path) -> None:
    one, two = _Issuer("k1"), _Issuer("k2")
    now = int(time.time())
    tokens = {
        "good": one.token(iss="i1", sub="s", exp=now + 1000),
        "good elsewhere": two.token(iss="i2", aud=["x", "a"]),
        "expired": one.token(iss="i1", exp=now - 1000),
        "just expired": one.token(iss="i1", exp=now - 30),
        "not yet": one.token(iss="i1", nbf=now + 1000),
        "forged": two.token(kid="k1", iss="i1"),
        "other key": one.token(kid="k9", iss="i1"),
        "other audience": two.token(iss="i2", aud="b"),
        "no audience": two.token(iss="i2"),
        "unknown issuer": one.token(iss="i9"),
        "no issuer": one.token(sub="s"),
        "odd issuer": one.token(iss=5),
        "odd expiry": one.token(iss="i1", exp="later"),
        "negative expiry": one.token(iss="i1", exp=-5),
        "odd audience": one.token(iss="i1", aud=5),
        "two parts": "a.b",
        "nonsense": "abc.def.ghi",
        "no algorithm": f"{_encoded(b'{}')}.{_encoded(b'{}')}.abc",
    }
    providers = {
        "origins-0": {"issuer": "i1", "local_jwks": {"inline_string": one.keys}},
        "origins-1": {
            "issuer": "i2",
            "audiences": ["a"],
            "local_jwks": {"inline_string": two.keys},
            "from_headers": [{"name": "x-token", "value_prefix": "tok "}],
            "from_params": ["t"],
            "forward": True,
        },
    }
    each = [{"provider_name": name} for name in providers]
    lenient = [{"requires_any": {"requirements": [name, {"allow_missing": {}}]}} for name in each]
    requirements: dict[str, Any] = {
        "first": each[0],
        "second": each[1],
        "istio one": lenient[0],
        "istio two": {
            "requires_any": {"requirements": [*each, {"requires_all": {"requirements": lenient}}]}
        },
        "both": {"requires_all": {"requirements": each}},
        "either": {"requires_any": {"requirements": each}},
        "missing": {"allow_missing": {}},
        "failed": {"allow_missing_or_failed": {}},
        "audience": {"provider_and_audiences": {"provider_name": "origins-0", "audiences": ["x"]}},
    }
    config = {
        "@type": f"{_JWT}.JwtAuthentication",
        "providers": providers,
        "requirement_map": requirements,
    }
    name = "envoy.filters.http.jwt_authn"
    own = {
        requirement.replace(" ", "-"): {
            name: {"@type": f"{_JWT}.PerRouteConfig", "requirement_name": requirement}
        }
        for requirement in requirements
    }
    places: list[Callable[[str], tuple[str, dict[str, str]]]] = [
        lambda token: ("/", {"authorization": f"Bearer {token}"}),
        lambda token: ("/", {"authorization": f"Basic {token}"}),
        lambda token: (f"/?access_token={token}", {}),
        lambda token: (f"/?t={token}", {}),
        lambda token: ("/", {"x-token": f"tok {token}"}),
        lambda token: (
            "/",
            {"authorization": f"Bearer {tokens['good']}", "x-token": f"tok {token}"},
        ),
    ]
    sent = [place(token) for place in places for token in tokens.values()] + [("/", {})]
    port = free_port()
    filters = [{"name": name, "typed_config": config}]
    with RealEnvoy(tmp_path, [http_listener(port, own, filters)]) as envoy:
        for host, settings in own.items():
            one_filter = Filter(name, "jwt_authn", config, settings[name])
            for path, headers in sent:
                known = {**headers, ":path": path, ":method": "GET"}
                arrival = Arrival(headers=Headers(known, complete=True), time=datetime.now(UTC))
                expected = _answer([one_filter], arrival)
                assert expected is not None
                real = _plain(envoy.get(port, host, path, headers))
                assert real == expected, (host, path, headers)
