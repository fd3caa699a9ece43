"""Which listener takes a connection, and which of its filter chains.

Envoy's order, where each step keeps the most specific of what the step before has left and never
goes back (``FilterChainMatch`` in Envoy's reference): destination port, destination address, server
name, transport protocol, application protocols, direct source, kind of source, source address,
source port. When nothing is left, the default filter chain takes the connection.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Any

from meshnb.tables.base import Json, dig, items, mapping
from meshnb.traces.envoy.configs import ProxyConfig, Taken

#: What a client may begin to speak: plain text that Envoy knows, TLS, or bytes that it does not.
HTTP1, HTTP2, TLS, OTHER = "http/1.1", "h2c", "tls", "other"


@dataclass(frozen=True, slots=True)
class Connection:
    """A connection as a listener sees it: where to, from where, and what its first bytes are.

    ``address`` is empty where the destination is known by its port only, ``source`` where the
    client's address is not known. ``server_name`` and ``alpn`` are what a client's TLS offers.
    """

    address: str
    port: int
    source: str = ""
    source_port: int = 0
    speaks: str = HTTP1
    server_name: str = ""
    alpn: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Say what the client speaks, and where to."""
        words = {HTTP1: "plain HTTP/1.1", HTTP2: "plain HTTP/2", OTHER: "bytes that are no HTTP"}
        if self.speaks == TLS:
            said = f"TLS for {self.server_name}" if self.server_name else "TLS without server name"
            said += f" with ALPN {','.join(self.alpn)}" if self.alpn else ""
        else:
            said = words.get(self.speaks, self.speaks)
        return f"{said} to {joined(self.address or 'an unknown address', self.port)}"


@dataclass(frozen=True, slots=True)
class ChainMatch:
    """The filter chain that takes a connection, and why others do not.

    ``position`` is the chain's place in the listener, the default chain's behind all others.
    ``chain`` is None when no chain takes it: Envoy closes the connection with flag NR.
    """

    chain: Mapping[str, Any] | None
    position: int
    passed_over: tuple[tuple[str, str], ...]
    #: why it cannot be said which chain it is; empty when it can
    undecided: str = ""

    @property
    def name(self) -> str:
        """The chain's name, or its place where it has none."""
        return str(mapping(self.chain).get("name") or f"filter chain {self.position}")


def joined(address: str, port: int) -> str:
    """Return address and port as one text, an IPv6 address in brackets."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def listener_at(config: ProxyConfig, address: str, port: int) -> Taken | None:
    """Return the listener that takes connections to an address: its own one, or a wildcard's."""
    wild = ("0.0.0.0", "::") if ":" not in address else ("::",)  # noqa: S104  Envoy's name of it
    for host in (address, *wild):
        if listener := config.by_address.get((host, port)):
            return listener
    return None


# --- What a listener sees ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Seen:
    """What a listener's inspectors tell of a connection."""

    connection: Connection
    transport: str
    server_name: str
    protocols: tuple[str, ...]


def _inspected(listener: Json, connection: Connection) -> _Seen:
    """Return what is seen; without an inspector TLS is bytes like any others."""
    used = set()
    for one in items(listener, "listener_filters"):
        if not _holds(mapping(one, "filter_disabled"), connection):
            kind = f"{dig(one, 'name', default='')} {dig(one, 'typed_config', '@type', default='')}"
            used |= {name for name in ("tls", "http") if f"{name}_inspector" in kind}
    transport, server_name = "raw_buffer", ""
    protocols: tuple[str, ...] = ()
    if "tls" in used and connection.speaks == TLS:
        transport, server_name = "tls", connection.server_name.lower()
        protocols = connection.alpn
    elif "http" in used and connection.speaks in (HTTP1, HTTP2):
        protocols = (connection.speaks,)
    return _Seen(connection, transport, server_name, protocols)


def _holds(predicate: Mapping[str, Any], connection: Connection) -> bool:
    """Whether a ``ListenerFilterChainMatchPredicate`` holds; an empty one never does."""
    if predicate.get("any_match") is True:
        return True
    if ports := mapping(predicate, "destination_port_range"):
        return int(ports.get("start", 0)) <= connection.port < int(ports.get("end", 0))
    if rule := mapping(predicate, "not_match"):
        return not _holds(rule, connection)
    for kind, combine in (("or_match", any), ("and_match", all)):
        if rules := items(predicate, kind, "rules"):
            return combine(_holds(mapping(one), connection) for one in rules)
    return False


# --- Which chain takes it ------------------------------------------------------------------------

_Chain = tuple[int, Mapping[str, Any]]
#: Of some chains, those that are left, and why the others are not.
_Step = Callable[[_Seen, Sequence[_Chain]], Iterator[_Chain]]


def match_chain(listener: Json, connection: Connection) -> ChainMatch:
    """Return the filter chain of a listener that takes a connection."""
    chains = list(enumerate(mapping(chain) for chain in items(listener, "filter_chains")))
    if mapping(listener, "filter_chain_matcher"):
        why = "the listener chooses by a matcher tree, which is not evaluated offline"
        return ChainMatch(None, 0, (), why)
    seen = _inspected(listener, connection)
    left: list[_Chain] = chains
    over: list[tuple[str, str]] = []
    for step, words in _STEPS:
        if _needs_source(step, left) and not connection.source:
            return ChainMatch(None, 0, tuple(over), "the client's address is not known")
        kept = list(step(seen, left))
        over += [
            (_title(one), words(seen, mapping(one[1], "filter_chain_match")))
            for one in left
            if one not in kept
        ]
        left = kept
    if left:
        return ChainMatch(left[0][1], left[0][0], tuple(over))
    default = mapping(listener, "default_filter_chain")
    if not items(default, "filters"):
        return ChainMatch(None, len(chains), tuple(over))
    return ChainMatch(default, len(chains), tuple(over))


def _title(chain: _Chain) -> str:
    return str(chain[1].get("name") or f"filter chain {chain[0]}")


def _of(chain: _Chain) -> Mapping[str, Any]:
    return mapping(chain[1], "filter_chain_match")


def _by_port(seen: _Seen, chains: Sequence[_Chain]) -> Iterator[_Chain]:
    port = seen.connection.port
    exact = [chain for chain in chains if _of(chain).get("destination_port") == port]
    yield from exact or [chain for chain in chains if not _of(chain).get("destination_port")]


def _by_address(seen: _Seen, chains: Sequence[_Chain]) -> Iterator[_Chain]:
    yield from _longest(chains, "prefix_ranges", seen.connection.address)


def _by_direct_source(seen: _Seen, chains: Sequence[_Chain]) -> Iterator[_Chain]:
    yield from _longest(chains, "direct_source_prefix_ranges", seen.connection.source)


def _by_source(seen: _Seen, chains: Sequence[_Chain]) -> Iterator[_Chain]:
    yield from _longest(chains, "source_prefix_ranges", seen.connection.source)


def _longest(chains: Sequence[_Chain], field: str, address: str) -> Iterator[_Chain]:
    """Yield the chains with the longest range that holds an address; no range holds all."""
    lengths = [(_length(_of(chain), field, address), chain) for chain in chains]
    best = max((length for length, _ in lengths), default=-2)
    yield from (chain for length, chain in lengths if length == best and length > -2)


def _length(match: Mapping[str, Any], field: str, address: str) -> int:
    """Return the length of the longest range; -1 without any, -2 when none holds the address."""
    ranges = items(match, field)
    if not ranges:
        return -1
    found = -2
    for one in ranges:
        length = mapping(one).get("prefix_len", 0)
        try:
            network = ip_network(f"{mapping(one).get('address_prefix', '')}/{length}", strict=False)
            if address and ip_address(address) in network:
                found = max(found, int(length))
        except ValueError:
            continue
    return found


def _by_server_name(seen: _Seen, chains: Sequence[_Chain]) -> Iterator[_Chain]:
    for wanted in _server_names(seen.server_name):
        found = [chain for chain in chains if wanted in _names(chain)]
        if found:
            yield from found
            return
    yield from (chain for chain in chains if not _names(chain))


def _names(chain: _Chain) -> list[str]:
    names = [str(name).lower() for name in items(_of(chain), "server_names")]
    return [name for name in names if name != "*"]


def _server_names(name: str) -> Iterator[str]:
    """Yield the name, then the wildcards that hold it, from the longest on."""
    if name:
        yield name
    labels = name.split(".")
    for at in range(1, len(labels)):
        yield "*." + ".".join(labels[at:])


def _by_transport(seen: _Seen, chains: Sequence[_Chain]) -> Iterator[_Chain]:
    exact = [c for c in chains if _of(c).get("transport_protocol") == seen.transport]
    yield from exact or [c for c in chains if not _of(c).get("transport_protocol")]


def _by_protocols(seen: _Seen, chains: Sequence[_Chain]) -> Iterator[_Chain]:
    for protocol in seen.protocols:
        found = [c for c in chains if protocol in items(_of(c), "application_protocols")]
        if found:
            yield from found
            return
    yield from (c for c in chains if not items(_of(c), "application_protocols"))


def _by_kind_of_source(seen: _Seen, chains: Sequence[_Chain]) -> Iterator[_Chain]:
    wanted = "SAME_IP_OR_LOOPBACK" if _local(seen.connection) else "EXTERNAL"
    exact = [c for c in chains if _of(c).get("source_type") == wanted]
    yield from exact or [c for c in chains if _of(c).get("source_type", "ANY") == "ANY"]


def _local(connection: Connection) -> bool:
    # Of the loopback network Envoy knows one address only.
    return connection.source in (connection.address, "127.0.0.1", "::1", "::ffff:127.0.0.1")


def _by_source_port(seen: _Seen, chains: Sequence[_Chain]) -> Iterator[_Chain]:
    port = seen.connection.source_port
    exact = [c for c in chains if port and port in items(_of(c), "source_ports")]
    yield from exact or [c for c in chains if not items(_of(c), "source_ports")]


def _needs_source(step: _Step, chains: Sequence[_Chain]) -> bool:
    field = _SOURCES.get(step)
    return field is not None and any(
        _of(chain).get(field) not in (None, [], "ANY") for chain in chains
    )


def _ranges(match: Mapping[str, Any], field: str) -> str:
    return ", ".join(
        f"{mapping(one).get('address_prefix', '')}/{mapping(one).get('prefix_len', 0)}"
        for one in items(match, field)
    )


def _port_words(seen: _Seen, match: Mapping[str, Any]) -> str:
    port = match.get("destination_port")
    if port:
        return f"it takes port {port}, not {seen.connection.port}"
    return f"another chain takes port {seen.connection.port} in particular"


def _words(field: str, what: str, value: Callable[[_Seen], str]) -> Callable[..., str]:
    def say(seen: _Seen, match: Mapping[str, Any]) -> str:
        wanted = match.get(field)
        if isinstance(wanted, list):
            texts = [one if isinstance(one, str) else "" for one in wanted]
            shown = ", ".join(texts) if all(texts) else _ranges(match, field)
        else:
            shown = str(wanted or "")
        if not shown:
            return f"another chain takes this {what} in particular"
        return f"it takes {what} {shown}, not {value(seen) or 'none'}"

    return say


_STEPS: tuple[tuple[_Step, Callable[[_Seen, Mapping[str, Any]], str]], ...] = (
    (_by_port, _port_words),
    (_by_address, _words("prefix_ranges", "destination", lambda s: s.connection.address)),
    (_by_server_name, _words("server_names", "server name", lambda s: s.server_name)),
    (_by_transport, _words("transport_protocol", "transport", lambda s: s.transport)),
    (_by_protocols, _words("application_protocols", "ALPN", lambda s: ", ".join(s.protocols))),
    (
        _by_direct_source,
        _words("direct_source_prefix_ranges", "direct source", lambda s: s.connection.source),
    ),
    (_by_kind_of_source, _words("source_type", "kind of source", lambda s: s.connection.source)),
    (_by_source, _words("source_prefix_ranges", "source", lambda s: s.connection.source)),
    (
        _by_source_port,
        _words("source_ports", "source port", lambda s: str(s.connection.source_port)),
    ),
)
_SOURCES: Mapping[_Step, str] = {
    _by_direct_source: "direct_source_prefix_ranges",
    _by_kind_of_source: "source_type",
    _by_source: "source_prefix_ranges",
    _by_source_port: "source_ports",
}
