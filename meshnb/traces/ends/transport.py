"""What the two ends of a connection speak: transport sockets and TLS contexts of Envoy.

The shapes are ``UpstreamTlsContext`` and ``DownstreamTlsContext`` of
https://www.envoyproxy.io/docs/envoy/latest/api-v3/extensions/transport_sockets/tls/v3/tls.proto.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from meshnb.tables import Facts
from meshnb.tables.base import NOT_JSON, Json, dig, items, mapping
from meshnb.tables.envoy import CONFIG_DUMP, ConfigDump, names, tls_context
from meshnb.tables.x509 import Certificate, read_certificates
from meshnb.traces.envoy.balancing import Host

PLAIN, SIMPLE, MUTUAL = "plain text", "TLS", "mutual TLS"


@dataclass(frozen=True, slots=True)
class Held:
    """A certificate chain, or trusted roots, that one end has; or why it has none.

    ``chain`` is empty where nothing is held, and where what is held cannot be seen: then
    ``unseen`` says why.
    """

    name: str
    chain: tuple[Certificate, ...] = ()
    #: why the proxy has none; empty when it has
    missing: str = ""
    #: why it is not known; empty when it is
    unseen: str = ""
    #: row of the table ``certificates``; None where no row shows it
    row: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Return it as an object; the certificates by what they say of themselves."""
        return {
            "name": self.name,
            "missing": self.missing,
            "unseen": self.unseen,
            "certificates": [
                {
                    "subject": one.subject,
                    "issuer": one.issuer,
                    "sans": list(one.sans),
                    "not_before": one.not_before.isoformat(),
                    "not_after": one.not_after.isoformat(),
                    "fingerprint": one.fingerprint,
                }
                for one in self.chain
            ],
        }


@dataclass(frozen=True, slots=True)
class Side:
    """What one end speaks or takes, and what it demands of the other."""

    #: plain text, TLS or mutual TLS
    speaks: str
    #: what it shows, None when it shows nothing
    own: Held | None = None
    #: whom it trusts; None when it accepts any certificate, or asks for none
    roots: Held | None = None
    #: matchers of which one must fit the other's certificate
    matchers: tuple[Json, ...] = ()
    #: roots of certain trust domains only (the SPIFFE validator): domain to roots
    by_domain: Mapping[str, Held] = field(default_factory=dict)
    server_name: str = ""
    alpn: tuple[str, ...] = ()
    #: name of the transport socket match, such as tlsMode-istio
    socket: str = ""

    @property
    def words(self) -> str:
        """What it speaks, with what it offers."""
        if self.speaks == PLAIN:
            return PLAIN
        offered = [f"SNI {self.server_name}"] if self.server_name else []
        offered += [f"ALPN {','.join(self.alpn)}"] if self.alpn else []
        return f"{self.speaks} ({', '.join(offered)})" if offered else self.speaks


class Secrets:
    """The certificates that each proxy holds, read on first use."""

    def __init__(self, facts: Facts) -> None:
        """Note where the rows of each proxy begin."""
        self._facts = facts
        self._rows: dict[tuple[str, str], int] = {}
        self._dumps: dict[str, str] = {}
        frame = facts["certificates"]
        for index, (proxy, name, question) in enumerate(
            zip(frame["proxy"], frame["resource_name"], frame["question"], strict=True)
        ):
            self._rows.setdefault((str(proxy), str(name)), index)
            self._dumps[str(proxy)] = str(question)
        self._read: dict[str, Mapping[str, Mapping[str, Any]]] = {}

    def of(self, proxy: str, name: str) -> tuple[Mapping[str, Any], int | None, str]:
        """Return a secret of a proxy, its row, and its state: active, warming or empty."""
        row = self._rows.get((proxy, name))
        entry = self._secrets(proxy).get(name, {})
        return mapping(entry, "secret"), row, str(entry.get("state", ""))

    def roots(self, proxy: str) -> Held:
        """Return the roots that a proxy checks Istio's own certificates with."""
        secret, row, _ = self.of(proxy, "ROOTCA")
        return _read("ROOTCA", dig(secret, "validation_context", "trusted_ca"), row)

    def _secrets(self, proxy: str) -> Mapping[str, Mapping[str, Any]]:
        if proxy not in self._read:
            found: dict[str, Mapping[str, Any]] = {}
            for part in self._parts(proxy):
                for state in ("warming", "active"):
                    for entry in items(part, f"dynamic_{state}_secrets"):
                        name = str(dig(entry, "name", default=""))
                        found[name] = {"secret": dig(entry, "secret"), "state": state}
                for entry in items(part, "static_secrets"):
                    name = str(dig(entry, "name", default=""))
                    found[name] = {"secret": dig(entry, "secret"), "state": "active"}
            self._read[proxy] = found
        return self._read[proxy]

    def _parts(self, proxy: str) -> list[Mapping[str, Any]]:
        if proxy not in self._dumps:
            return []
        answer = self._facts.answer(self._facts.question(self._dumps[proxy]))
        dump = self._facts.document(answer, decode=CONFIG_DUMP.decode)
        try:
            return dump.sections("SecretsConfigDump") if isinstance(dump, ConfigDump) else []
        except NOT_JSON:
            return []


def upstream_socket(cluster: Json, host: Host) -> tuple[Json, str]:
    """Return the transport socket that a cluster uses for a host, and the match that chose it.

    The first match counts all of whose values the host's metadata has; without one the cluster's.
    """
    for choice in items(cluster, "transport_socket_matches"):
        if mapping(choice, "match").items() <= host.socket.items():
            return dig(choice, "transport_socket"), str(dig(choice, "name", default=""))
    return dig(cluster, "transport_socket"), ""


def side_of(socket: Json, proxy: str, secrets: Secrets, *, server: bool, match: str = "") -> Side:
    """Return what a transport socket of a proxy speaks and demands."""
    context = tls_context(socket)
    if context is None:
        return Side(PLAIN, socket=match)
    common = mapping(context, "common_tls_context")
    own = _own(common, proxy, secrets)
    roots, matchers, by_domain = _demanded(common, proxy, secrets)
    demands = context.get("require_client_certificate") is True
    mutual = demands if server else own is not None
    return Side(
        speaks=MUTUAL if mutual else SIMPLE,
        own=own,
        roots=roots,
        matchers=matchers,
        by_domain=by_domain,
        server_name=str(context.get("sni", "")),
        alpn=tuple(map(str, items(common, "alpn_protocols"))),
        socket=match,
    )


def _own(common: Json, proxy: str, secrets: Secrets) -> Held | None:
    for name in names(items(common, "tls_certificate_sds_secret_configs")):
        secret, row, state = secrets.of(proxy, name)
        if not secret or state == "warming":
            return Held(name, missing=f"{proxy} has not received {name}", row=row)
        return _read(name, dig(secret, "tls_certificate", "certificate_chain"), row)
    for given in items(common, "tls_certificates"):
        return _read("its own file", dig(given, "certificate_chain"), None)
    return None


def _demanded(
    common: Json, proxy: str, secrets: Secrets
) -> tuple[Held | None, tuple[Json, ...], Mapping[str, Held]]:
    combined = mapping(common, "combined_validation_context")
    inline = mapping(combined, "default_validation_context") or mapping(
        common, "validation_context"
    )
    matchers = [
        *items(inline, "match_subject_alt_names"),
        *items(inline, "match_typed_subject_alt_names"),
    ]
    named = dig(combined, "validation_context_sds_secret_config", "name") or dig(
        common, "validation_context_sds_secret_config", "name"
    )
    contexts: list[tuple[Json, int | None]] = [(inline, None)]
    if named:
        secret, row, state = secrets.of(proxy, str(named))
        if not secret or state == "warming":
            held = Held(str(named), missing=f"{proxy} has not received {named}", row=row)
            return held, tuple(matchers), {}
        contexts.insert(0, (dig(secret, "validation_context"), row))
        matchers += items(secret, "validation_context", "match_typed_subject_alt_names")
    name = str(named or "its own setting")
    for context, row in contexts:
        bundles = items(context, "custom_validator_config", "typed_config", "trust_domains")
        if bundles:
            by_domain = {
                str(dig(one, "name")): _read(name, dig(one, "trust_bundle"), row) for one in bundles
            }
            return next(iter(by_domain.values())), tuple(matchers), by_domain
        if source := dig(context, "trusted_ca"):
            return _read(name, source, row), tuple(matchers), {}
        if dig(context, "system_root_certs") is not None:
            unseen = Held("the system's roots", unseen="the roots of the system are not recorded")
            return unseen, tuple(matchers), {}
    return None, tuple(matchers), {}


def _read(name: str, source: Json, row: int | None) -> Held:
    if file := dig(source, "filename"):
        return Held(str(file), unseen=f"it stands in the file {file} of the proxy", row=row)
    try:
        inline = dig(source, "inline_bytes")
        pem = (
            str(dig(source, "inline_string", default="")).encode()
            if inline is None
            else base64.b64decode(inline, validate=True)
        )
        return Held(name, read_certificates(pem), row=row)
    except (binascii.Error, TypeError, ValueError) as error:
        return Held(name, unseen=f"it cannot be read: {error}", row=row)


def roots_for(side: Side, shown: Sequence[Certificate]) -> Held | None:
    """Return the roots that an end checks a chain with: its trust domain's, where it tells them."""
    if not side.by_domain or not shown:
        return side.roots
    domain = shown[0].trust_domain or ""
    return side.by_domain.get(domain, Held(domain, missing=f"it knows no root of {domain}"))
