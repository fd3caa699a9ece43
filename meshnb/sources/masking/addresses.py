"""Addresses under other addresses, so that each network still holds what it held.

Each bit is flipped or not by a keyed function of the bits before it, as Crypto-PAn does (J. Xu,
J. Fan, M. Ammar, S. Moon, 2002): two addresses that share their first n bits share them afterwards.
Networks with a meaning (private, link-local, Istio's own) map to themselves; what is only of the
machine itself, or everybody's, is not touched.
"""

from __future__ import annotations

import ipaddress
import re
from hashlib import blake2b

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address

#: Nothing within these is changed.
_KEPT = tuple(
    ipaddress.ip_network(network)
    for network in (
        *("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3", "::/96", "fe80::/10"),
        *("ff00::/8", "2001:2::/48", "fd16:9254:7127:1337::/64"),
    )
)
#: Of these the first bits stay. 240.240.0.0/16 and 2001:2::/48 are what Istio gives hosts.
_CLASSES = (
    *_KEPT,
    *(
        ipaddress.ip_network(network)
        for network in (
            *("10.0.0.0/8", "100.64.0.0/10", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"),
            *("fd00::/8", "2000::/3", "64:ff9b::/96"),
        )
    ),
)
#: Patterns that are quick to look for; what stands around a match, the code looks at.
_V4 = re.compile(r"\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}")
_DASHED = re.compile(r"\d{1,3}-\d{1,3}-\d{1,3}-\d{1,3}")
_COLONS = re.compile(r":[0-9A-Fa-f]{0,4}:[0-9A-Fa-f:.]*")
_LENGTH = re.compile(r"/(\d{1,3})(?![\d.])")
#: As Envoy writes a network (config.core.v3.CidrRange).
_FIELD = re.compile(r"[pP]refix\\*\"\s*:\s*\\*\"\Z")
_FIELD_LENGTH = re.compile(r"\\*\"\s*,\s*\\*\"prefix_?[lL]en\\*\"\s*:\s*(\d+)")
_ESCAPED = re.compile(r"\\[nrt]\Z")
_HEXADECIMAL = frozenset("0123456789abcdefABCDEF")
_MAPPED = ipaddress.ip_network("::ffff:0:0/96")


class Addresses:
    """Replaces addresses, always the same one by the same one."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._known: dict[_Address, _Address] = {}

    @property
    def replaced(self) -> dict[str, str]:
        """Which address stands for which other one, where it is another one."""
        return {str(old): str(new) for old, new in self._known.items() if old != new}

    def address(self, address: _Address) -> _Address:
        """Return the mask of an address."""
        if address not in self._known:
            self._known[address] = self._masked(address)
        return self._known[address]

    def written(self, text: str) -> str:
        """Return the mask of an address, or of a network such as ``10.1.0.0/16``.

        Raises ValueError when it is neither.
        """
        name, slash, length = text.partition("/")
        address = ipaddress.ip_address(name)
        masked = self.address(address)
        if not slash:
            return str(masked)
        host_bits = address.max_prefixlen - int(length)
        if host_bits < 0:
            raise ValueError(f"{text!r} is no network")
        if int(address) & ((1 << host_bits) - 1) == 0:  # a network, and no address within one
            masked = type(address)(int(masked) >> host_bits << host_bits)
        return f"{masked}/{length}"

    def masked(self, text: str) -> str:
        """Return a text with other addresses."""
        text = self._version_6(text) if ":" in text else text
        text = _V4.sub(self._version_4, text)
        return _DASHED.sub(self._dashed, text) if "-" in text else text

    def _version_4(self, match: re.Match[str]) -> str:
        text, start, end = match.string, match.start(), match.end()
        return self._in(text, start, end) if _stands_alone(text, start, end, ".") else match[0]

    def _version_6(self, text: str) -> str:
        parts: list[str] = []
        done = 0
        for match in _COLONS.finditer(text):
            start = match.start()
            while start > done and start > match.start() - 4 and text[start - 1] in _HEXADECIMAL:
                start -= 1
            found = text[start : match.end()].rstrip(".")
            if "::" not in found and found.count(":") != 7:
                continue
            end = start + len(found)
            if start >= done and _stands_alone(text, start, end, ":."):
                parts += [text[done:start], self._in(text, start, end)]
                done = end
        return "".join([*parts, text[done:]]) if parts else text

    def _in(self, text: str, start: int, end: int) -> str:
        """Return the mask of the address at a place, or of the network if a length follows."""
        address = text[start:end]
        length = _LENGTH.match(text, end)
        if length is None and _FIELD.search(text, max(0, start - 40), start):
            length = _FIELD_LENGTH.match(text, end)
        try:
            if length is None:
                return self.written(address)
            return self.written(f"{address}/{length[1]}").partition("/")[0]
        except ValueError:
            return address

    def _dashed(self, match: re.Match[str]) -> str:
        """Mask what clouds call nodes: ``ip-10-1-2-3``."""
        text, start, end = match.string, match.start(), match.end()
        if not _stands_alone(text, start, end, "-.") and text[max(0, start - 3) : start] != "ip-":
            return match[0]
        try:
            return self.written(match[0].replace("-", ".")).replace(".", "-")
        except ValueError:
            return match[0]

    def _masked(self, address: _Address) -> _Address:
        if isinstance(address, ipaddress.IPv6Address):
            mapped = address.ipv4_mapped
            if mapped is not None:
                low = int(self.address(mapped))
                return ipaddress.IPv6Address(int(_MAPPED.network_address) | low)
        if any(address.version == kept.version and address in kept for kept in _KEPT):
            return address
        size, old, new = address.max_prefixlen, int(address), 0
        fixed = self._fixed(address)
        for bit in range(size):
            value = old >> (size - 1 - bit) & 1
            if bit >= fixed:
                value ^= self._flip(size, bit, old >> (size - bit))
            new = new << 1 | value
        return type(address)(new)

    def _fixed(self, address: _Address) -> int:
        """Return how many bits of an address must stay, so that no class of networks is left.

        That is its class's, or as far as its way and that of some class are one.
        """
        size, bits = address.max_prefixlen, int(address)
        fixed = 0
        for network in _CLASSES:
            if network.version == address.version:
                differing = (bits ^ int(network.network_address)).bit_length()
                fixed = max(fixed, min(size - differing + 1, network.prefixlen))
        return fixed

    def _flip(self, size: int, bit: int, before: int) -> int:
        place = size.to_bytes(2, "big") + bit.to_bytes(2, "big") + before.to_bytes(16, "big")
        return blake2b(place, key=self._key, digest_size=1).digest()[0] & 1


def _stands_alone(text: str, start: int, end: int, joined: str) -> bool:
    """Whether an address begins and ends at these places, and is not a part of something else."""
    before = text[start - 1 : start] if start else ""
    joins = before != "" and (before.isalnum() or before in joined)
    if joins and not _ESCAPED.search(text, max(0, start - 2), start):
        return False
    after, beyond = text[end : end + 1], text[end + 1 : end + 2]
    return not (after.isalnum() or (after != "" and after in joined and beyond.isdigit()))
