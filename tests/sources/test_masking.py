"""A masked recording has other names everywhere, and is diagnosed as the original is."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import ipaddress
import json
import re
import stat
import zipfile
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from cryptography import x509

from meshnb.cli import commands
from meshnb.diagnosis import Diagnosis, diagnose
from meshnb.errors import BundleError, UsageError
from meshnb.sources import Bundle, HttpQuestion, ListQuestion, LogQuestion, record
from meshnb.sources.masking import Masking
from meshnb.sources.masking.addresses import Addresses
from meshnb.sources.masking.vocabulary import is_common, stays
from meshnb.tables import Facts
from meshnb.tables.x509 import Certificate, read_certificates, signed_by
from tests.conftest import facts_of, recording_names, unpacked
from tests.test_accuracy import diagnosis_of
from tests.traces.request_agreement import agreement

_WORD = re.compile(r"[A-Za-z0-9]+")
_BASE64 = re.compile(rb"[A-Za-z0-9+/]{40,}={0,2}")
_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
#: Recordings of each mesh, with and without a fault.
_ALL_MESHES = (
    *("healthy-loaded", "garden-healthy", "market-healthy", "app-crash-loop", "gateway-name-wrong"),
    *("authz-principal-typo", "sidecar-hides-host", "server-first-undeclared"),
)
_ADDRESS = re.compile(rb"\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}")
#: Of these the names are a product's or a random one's.
_NO_NAMES = ("customresourcedefinitions", "events", "leases")


@dataclasses.dataclass(frozen=True)
class Masked:
    """A recording with other names, and which name stands for which."""

    path: Path
    mapping: Mapping[str, Any]

    @property
    def facts(self) -> Facts:
        """Its facts, under the label of every masked recording."""
        return Facts(Bundle(self.path))

    def of(self, text: str) -> str:
        """Return a text of the original as the masked recording has it."""
        words = self.mapping["words"]
        addresses = self.mapping["addresses"]
        text = re.sub(r"\d+(?:\.\d+){3}", lambda one: addresses.get(one[0], one[0]), text)
        any_word = "|".join(sorted(map(re.escape, words), key=len, reverse=True))
        return re.sub(
            rf"(?<![A-Za-z0-9])({any_word})(?=\d*(?![A-Za-z0-9]))",
            lambda one: str(words[one[0].lower()]),
            text,
            flags=re.IGNORECASE,
        )


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Masked]:
    """Return a function that masks a recording by its name, once."""
    folder = tmp_path_factory.mktemp("masked")

    @cache
    def made(name: str) -> Masked:
        return _masked(Bundle(unpacked() / name), folder / name)

    return made


def _masked(bundle: Bundle, target: Path) -> Masked:
    path, map_file = target.with_suffix(".zip"), target.with_suffix(".json")
    record(bundle, path, progress=lambda answers, _: answers, mask_names=True, mask_map=map_file)
    return Masked(path, json.loads(map_file.read_text()))


# --- The same diagnosis -------------------------------------------------------------------------


#: Every third is enough for each run of the tests: one takes seconds.
@pytest.mark.parametrize("name", recording_names()[::3])
def test_a_masked_recording_is_diagnosed_as_the_original_is(
    name: str, masked: Callable[[str], Masked]
) -> None:
    """All causes, classes, severities, subjects and verdicts are the same, in the same order."""
    other = masked(name)

    def causes(diagnosis: Diagnosis) -> list[tuple[str, ...]]:
        return [
            (c.check.code, c.failure_class.value, str(c.severity), str(c.subject))
            for c in diagnosis.causes
        ]

    def verdicts(diagnosis: Diagnosis) -> dict[str, str]:
        return {one.check.code: one.verdict.value for one in diagnosis.outcomes}

    found, same = diagnose(other.facts), diagnosis_of(name)

    assert causes(found) == [(*rest, other.of(subject)) for *rest, subject in causes(same)]
    assert verdicts(found) == verdicts(same)


@pytest.mark.parametrize("name", ["fault-left-behind", "gateway-hosts-disjoint", "healthy"])
def test_requests_are_followed_as_in_the_original(
    name: str, masked: Callable[[str], Masked]
) -> None:
    one, other = agreement(name, facts_of(name)), agreement(name, masked(name).facts)

    assert one.lines > 0
    assert (other.lines, other.certain, other.among, other.routed) == (
        *(one.lines, one.certain, one.among, one.routed),
    )
    assert other.wrong == []


# --- No name is left ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", _ALL_MESHES)
def test_no_name_and_no_address_of_an_object_is_left(
    name: str, masked: Callable[[str], Masked]
) -> None:
    """Not in a file's name, not in its bytes, not in base64 in it, not in a certificate."""
    names, addresses = _any_of(_chosen_words(name)), _addresses(name)
    left: set[str] = set()
    seen: set[str] = set()
    for content in _contents(masked(name).path):
        left |= {match[0].decode() for match in names.finditer(content.lower())}
        seen |= {match.decode() for match in _ADDRESS.findall(content)}

    assert addresses
    assert left == set()
    assert (seen & addresses) <= set(masked(name).mapping["addresses"].values())


def _items(name: str) -> Iterator[dict[str, Any]]:
    for file in (unpacked() / name / "kubernetes").glob("*.json"):
        if not file.name.startswith(_NO_NAMES):
            yield from json.loads(file.read_text()).get("items") or ()


def _chosen_words(name: str) -> set[str]:
    """Return the words that somebody chose for an object: no random ones, and nobody's words."""
    words = set()
    for item in _items(name):
        metadata = item["metadata"]
        chosen = metadata.get("generateName") or metadata["name"]
        words |= set(_WORD.findall(f"{chosen} {metadata.get('namespace', '')}".lower()))
        words |= set(_WORD.findall(str((metadata.get("labels") or {}).get("app", ""))))
    return {w for w in words if w.isalpha() and not stays(w) and not is_common(w)} | {"details"}


def _addresses(name: str) -> set[str]:
    return {
        address["ip"]
        for item in _items(name)
        for address in (item.get("status") or {}).get("podIPs", ())
    }


def _any_of(words: set[str]) -> re.Pattern[bytes]:
    """Return a pattern for words; of ``details`` only where it is a name, for it is a field."""
    others = sorted(words - {"details"})
    pattern = "|".join([*others, r"details(?=-v\d|\.\w+\.svc)|(?<=/sa/)details"])
    return re.compile(rf"(?:\b|_)(?:{pattern})(?![a-z0-9])".encode())


def _contents(path: Path) -> Iterator[bytes]:
    """Yield all names and bytes of a zip, and what stands encoded in them."""
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            yield name.encode()
            yield from _decoded(archive.read(name))


def _decoded(content: bytes, deep: int = 0) -> Iterator[bytes]:
    yield content
    for block in _PEM.findall(content.replace(b"\\n", b"\n")):
        yield _certificate(x509.load_pem_x509_certificate(block))
    for run in set(_BASE64.findall(content)) if deep < 3 else ():
        try:
            inner = base64.b64decode(run, validate=True)
        except binascii.Error:
            continue
        yield from _decoded(inner, deep + 1)


def _certificate(one: x509.Certificate) -> bytes:
    return f"{one.subject} {one.issuer} {[str(e.value) for e in one.extensions]}".encode()


# --- Certificates -------------------------------------------------------------------------------


def test_certificates_verify_as_before_and_keep_their_dates(
    masked: Callable[[str], Masked],
) -> None:
    """The chain that istiod shows, and a root that did not sign it."""
    before, after = (
        _shown("healthy", facts_of("healthy")),
        _shown("healthy", masked("healthy").facts),
    )

    assert [(c.not_before, c.not_after, c.is_ca, len(c.sans)) for c in before] == [
        (c.not_before, c.not_after, c.is_ca, len(c.sans)) for c in after
    ]
    assert [signed_by(c, i) for c in before for i in before] == [
        signed_by(c, i) for c in after for i in after
    ]
    assert any(signed_by(c, i) for c in after for i in after if c is not i)
    assert {c.fingerprint for c in before}.isdisjoint(c.fingerprint for c in after)
    assert {c.subject_key for c in before} & {c.subject_key for c in after} <= {None}
    assert {c.serial for c in before}.isdisjoint(c.serial for c in after)


def _shown(name: str, facts: Facts) -> tuple[Certificate, ...]:
    """Return what istiod shows, and the roots that its proxies are given to trust."""
    (question,) = [
        one for one in facts_of(name).source.questions() if str(one).endswith(":15012 tls")
    ]
    shown, maps = facts.source.ask([question, ListQuestion("v1", "configmaps")])
    roots = {
        text
        for item in json.loads(maps.content)["items"]
        if (text := (item.get("data") or {}).get("root-cert.pem"))
    }
    return read_certificates("\n".join([shown.content.decode(), *sorted(roots)]).encode())


def test_a_serial_number_on_a_page_is_that_of_the_new_certificate(
    masked: Callable[[str], Masked],
) -> None:
    facts = masked("healthy").facts
    chains = facts["certificates"]
    serials = set(chains["serial_number"].dropna().str.lstrip("0"))
    (page,) = facts.source.ask(
        [one for one in facts.source.questions() if str(one).endswith("client:15000/certs")]
    )
    shown = {
        part["serial_number"].lstrip("0")
        for entry in json.loads(page.content)["certificates"]
        for part in (*entry["ca_cert"], *entry["cert_chain"])
    }

    assert shown
    assert shown <= serials


# --- What a mask keeps --------------------------------------------------------------------------

_LIST = ListQuestion("v1", "services")
_LOG = LogQuestion("payments", "orders-7f66888-8p8fc", "orders")


def _object(kind: str, name: str, **fields: Any) -> dict[str, Any]:
    return {"kind": kind, "metadata": {"name": name, "namespace": "payments"}, **fields}


def _both(items: list[dict[str, Any]], log: str = "") -> tuple[Masking, Any, str]:
    """Return objects and a log as a recording with nothing else has them."""
    masking = Masking()
    objects = json.dumps({"items": items}).encode()
    masking.learn(_LIST, objects)
    masking.learn(_LOG, log.encode())
    masking.settle()
    masked = json.loads(masking.body(_LIST, objects))["items"]
    return masking, masked, masking.body(_LOG, log.encode()).decode()


def test_hosts_prefixes_and_replicas_keep_their_shape() -> None:
    hosts = ["orders.payments.svc.cluster.local", "*.intra.acme.co.uk", "shop.acme.com"]
    masking, (service, route, pod), _ = _both(
        [
            _object("Service", "orders"),
            _object("VirtualService", "orders", spec={"hosts": hosts}),
            _object("Pod", "orders-7f66888-8p8fc"),
        ]
    )
    orders, payments, acme = (masking.names.replaced[w] for w in ("orders", "payments", "acme"))
    intra, shop = (masking.names.replaced[w] for w in ("intra", "shop"))

    assert service["metadata"] == {"name": orders, "namespace": payments}
    assert pod["metadata"]["name"] == f"{orders}-7f66888-8p8fc"
    assert route["spec"]["hosts"] == [
        *(f"{orders}.{payments}.svc.cluster.local", f"*.{intra}.{acme}.co.uk"),
        f"{shop}.{acme}.example",
    ]


def test_a_path_in_a_log_matches_the_route_that_it_matched() -> None:
    match = [{"uri": {"prefix": "/api/v1/invoices"}, "headers": {"x-acme-user": {"exact": "karl"}}}]
    log = '"GET /api/v1/invoices/7?by=herbert&by=karl HTTP/1.1" "x-acme-user: karl"'
    _, (route,), line = _both(
        [_object("VirtualService", "r", spec={"http": [{"match": match}]})], log
    )
    (rule,) = route["spec"]["http"][0]["match"]
    ((header, value),) = rule["headers"].items()

    assert f'"GET {rule["uri"]["prefix"]}/7?by=' in line
    assert line.endswith(f'&by={value["exact"]} HTTP/1.1" "{header}: {value["exact"]}"')
    assert not re.search("invoices|herbert|karl|acme", line)


def test_a_regular_expression_keeps_its_classes() -> None:
    match = [{"uri": {"regex": r"^/\w+/invoices/\d{2,}[a-z]*\binvoices$"}}]
    masking, (route,), _ = _both([_object("VirtualService", "r", spec={"http": match})])
    invoices = masking.names.replaced["invoices"]

    assert route["spec"]["http"][0]["uri"]["regex"] == (
        rf"^/\w+/{invoices}/\d{{2,}}[a-z]*\b{invoices}$"
    )


def test_a_common_word_is_masked_as_a_name_and_stays_in_sentences() -> None:
    """``details`` is a field of Kubernetes and a Service of bookinfo."""
    log = '2026 more details: "details": 3 details:9080 details.payments response_code_details'
    masking, (service,), line = _both([_object("Service", "details", details={"x": "y"})], log)
    mask = masking.names.replaced["details"]

    assert service["metadata"]["name"] == mask
    assert service["details"] == {"x": "y"}
    assert line.startswith(f'2026 more details: "details": 3 {mask}:9080 {mask}.')
    assert line.endswith(" response_code_details")


def test_a_near_miss_stays_one() -> None:
    reference = {"hosts": ["productpages.payments.svc.cluster.local"]}
    masking, _, _ = _both(
        [_object("Service", "productpage"), _object("VirtualService", "r", spec=reference)]
    )
    names = masking.names.replaced

    assert names["productpages"] == f"{names['productpage']}x"


def test_names_sort_as_before() -> None:
    names = ["acme-web", "barrel", "crate", "drum"]
    _, items, _ = _both([_object("Service", name) for name in names])
    masked = [item["metadata"]["name"] for item in items]

    assert masked == sorted(masked)
    assert len(set(masked)) == len(names)


def test_two_recordings_have_different_masks() -> None:
    names = [{_both([_object("Service", "barrel")])[1][0]["metadata"]["name"]} for _ in range(9)]

    assert len(set.union(*names)) > 1


def test_an_email_address_a_node_and_an_account_are_masked() -> None:
    items = [
        _object("Node", "ip-10-0-1-23.eu-west-1.compute.internal", spec={"podCIDR": "10.0.0.0/16"}),
        _object("Pod", "orders", spec={"image": "123456789012.dkr.ecr.amazonaws.com/acme/orders"}),
    ]
    masking, (node, pod), line = _both(items, "from jane.doe@acme.org 10.0.1.23 at 02:49:57Z")
    address = str(masking.addresses.written("10.0.1.23"))

    assert node["metadata"]["name"].startswith(f"ip-{address.replace('.', '-')}.")
    assert ipaddress.ip_address(address) in ipaddress.ip_network(node["spec"]["podCIDR"])
    assert not re.search("123456789012|acme|orders", json.dumps(pod))
    assert re.fullmatch(rf"from \w+\.\w+@\w+\.example {address} at 02:49:57Z", line)


# --- Addresses ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kept",
    [
        *("127.0.0.6", "127.0.0.1", "0.0.0.9", "169.254.169.254", "169.254.7.127", "::1", "::"),
        *("240.240.0.7", "2001:2::5", "224.0.0.1", "255.255.255.255", "::6"),
    ],
)
def test_an_address_with_a_meaning_stays(kept: str) -> None:
    assert Addresses(b"key").masked(f"at {kept}:80, {kept}") == f"at {kept}:80, {kept}"


def test_networks_hold_what_they_held() -> None:
    texts = [
        *(
            "10.1.2.3",
            "10.1.2.200",
            "10.1.9.1",
            "10.200.0.1",
            "192.168.3.4",
            "172.20.1.1",
            "8.8.8.8",
        ),
        *("203.0.113.9", "fd00:10:96::a", "fd00:10:96::b", "2001:db8::7", "100.64.3.3"),
    ]
    networks = [
        *("10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/24", "192.168.0.0/16", "172.16.0.0/12"),
        *("8.0.0.0/7", "203.0.113.0/25", "fd00:10:96::/112", "2001:db8::/32", "100.64.0.0/10"),
        *("10.1.2.192/27", "0.0.0.0/0", "::/0"),
    ]
    masks = Addresses(b"another key")

    def within(text: str, network: str) -> bool:
        return ipaddress.ip_address(text) in ipaddress.ip_network(network)

    assert {(t, n): within(t, n) for t in texts for n in networks} == {
        (t, n): within(masks.masked(t), masks.masked(n)) for t in texts for n in networks
    }
    assert len({masks.masked(t) for t in texts}) == len(texts)
    assert masks.masked("10.0.0.0/8") == "10.0.0.0/8"
    assert all(masks.masked(t) != t for t in texts)


def test_a_network_of_envoy_is_a_network_again() -> None:
    text = '{"address_prefix": "10.1.0.0", "prefix_len": 16}'
    found = json.loads(Addresses(b"key").masked(text))

    assert found["address_prefix"].endswith(".0.0")
    assert found["address_prefix"].startswith("10.")


@pytest.mark.parametrize(
    "text", ["1.2.3", "v1.2.3.4", "10.0.0.256", "1.2.3.4.5", "a::b::c", "12:30"]
)
def test_what_is_no_address_stays(text: str) -> None:
    assert Addresses(b"key").masked(text) == text


# --- Hostile answers ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"\xff\xfe\x00", b"[" * 5000, b'{"items": [1, null, {"metadata": 3}]}'),
        *(
            b'{"items": {"metadata": {"name": [], "labels": 3}}}',
            b'{"a": ' * 900 + b"1" + b"}" * 900,
        ),
        b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----",
        b"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----",
        *(b"-----BEGIN CERTIFICATE-----" * 2000, b"A9z" * 40, b"." * 9000, b":" * 9000),
        *(
            b"a-" * 60000,
            b"1.1.1." * 9000,
            b'{"data": {"mesh": "&a [*a"}}',
            "ü\u2028\ud7ff".encode(),
        ),
    ],
)
@pytest.mark.parametrize(
    "question", [_LIST, _LOG, HttpQuestion("ns", "pod", 15000, "/config_dump")]
)
def test_a_broken_answer_does_not_break_the_recording(question: Any, body: bytes) -> None:
    masking = Masking()
    masking.learn(question, body)
    masking.settle()

    assert b"AAAA" not in masking.body(question, body)


def test_what_cannot_be_written_anew_is_dropped_and_counted() -> None:
    """A request for a certificate, and something binary that holds a name."""
    binary = base64.b64encode(b"\x01\x02payments\x03" * 9 + b"Z9").decode()
    csr = "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----"
    masking, _, log = _both([_object("Service", "orders")], f"{binary} {csr} \n")

    assert log == "REDACTED REDACTED \n"
    assert "encoded values dropped, because they cannot be read: 2" in masking.said


# --- Recording ----------------------------------------------------------------------------------


def test_the_map_is_its_owners_only_and_not_in_the_bundle(tmp_path: Path) -> None:
    path, map_file = tmp_path / "m.zip", tmp_path / "m.json"
    options = ["--mask-names", "--mask-map", str(map_file)]
    result = CliRunner().invoke(commands, ["record", "recorded:healthy", str(path), *options])
    written = Bundle(path).manifest

    assert result.exit_code == 0
    assert "Masked: words of names" in result.output
    assert stat.S_IMODE(map_file.stat().st_mode) == 0o600
    assert json.loads(map_file.read_text())["words"]["bookinfo"]
    assert "bookinfo" not in json.dumps(dict(written))
    assert any(str(line).startswith("addresses: ") for line in written["masked"])


def test_a_map_without_masks_and_a_map_in_the_place_of_a_file_are_refused(tmp_path: Path) -> None:
    taken = tmp_path / "taken.json"
    taken.write_text("")
    source = Bundle(unpacked() / "healthy")

    with pytest.raises(UsageError, match="no map"):
        record(source, tmp_path / "a.zip", mask_map=tmp_path / "b.json")
    with pytest.raises(BundleError, match="exists already"):
        record(source, tmp_path / "a.zip", mask_names=True, mask_map=taken)
    assert sorted(tmp_path.iterdir()) == [taken]
