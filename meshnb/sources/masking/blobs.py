"""What stands encoded within a text: certificates in PEM, and anything in base64."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Iterator

from meshnb.sources.masking.certificates import Certificates

#: Stands in the place of what cannot be written with other names.
MARK = "REDACTED"
_PEM = r"-----BEGIN ([A-Z0-9 ]{1,40})-----((?:[A-Za-z0-9+/=\s]|\\+[nr])+)-----END \2-----"
_RUN = r"(?<![A-Za-z0-9+/])[A-Za-z0-9+/]{40,}={0,2}"
_ENCODED = re.compile(f"({_PEM}|{_RUN})")
_BREAK = re.compile(r"\\+[nr]|\s")
_BREAKS = re.compile(r"(?:\\+[nr]|\s)+")
_CERTIFICATE = ("CERTIFICATE", "X509 CERTIFICATE", "TRUSTED CERTIFICATE")
#: Blocks with names in them that are not issued again.
_NAMED_BLOCKS = ("CERTIFICATE REQUEST", "NEW CERTIFICATE REQUEST", "X509 CRL", "PKCS7", "CMS")
#: Base64 in base64 is followed so deep.
_DEEP = 3
#: Bytes that no text has.
_BINARY = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")


def find_certificates(text: str, certificates: Certificates, deep: int = 0) -> Iterator[str]:
    """Add all certificates in a text, and yield the texts that stand in it in base64."""
    for match in _ENCODED.finditer(text):
        if match[2] is not None:
            if match[2] in _CERTIFICATE:
                encoded = _decoded(_BREAK.sub("", match[3]))
                if encoded is not None:
                    certificates.add(encoded)
            continue
        content = _decoded(match[0]) if _is_base64(match[0]) else None
        if content is None:
            continue
        if content[:1] == b"\x30":
            certificates.add(content)
        elif deep < _DEEP and (inner := _text(content)) is not None:
            yield inner
            yield from find_certificates(inner, certificates, deep + 1)


class Encoded:
    """Masks what is encoded in a text, and hands the rest to ``plain``."""

    def __init__(
        self,
        certificates: Certificates,
        plain: Callable[[str], str],
        occurs: Callable[[str], bool],
    ) -> None:
        """``occurs`` says whether there is a name in a text."""
        self._certificates, self._plain, self._occurs = certificates, plain, occurs
        #: how many encoded values could not be read, and were taken out
        self.dropped = 0

    def masked(self, text: str, deep: int = 0) -> str:
        """Return a text with other names."""
        parts: list[str] = []
        done = 0
        for match in _ENCODED.finditer(text):
            new = self._block(match) if match[2] is not None else self._base64(match[0], deep)
            if new is None:
                continue
            parts += [self._plain(text[done : match.start()]), new]
            done = match.end()
        if not parts:
            return self._plain(text)
        return "".join([*parts, self._plain(text[done:])])

    def _block(self, match: re.Match[str]) -> str:
        kind, body = match[2], match[3]
        if kind in _NAMED_BLOCKS:
            return self._drop()
        if kind not in _CERTIFICATE:
            return match[0]
        encoded = _decoded(_BREAK.sub("", body))
        again = None if encoded is None else self._certificates.again(encoded)
        if again is None:
            return self._drop()
        line = _BREAKS.match(body)
        newline = line[0] if line is not None else "\n"
        written = base64.b64encode(again).decode()
        lines = [written[at : at + 64] for at in range(0, len(written), 64)]
        return f"-----BEGIN {kind}-----{newline}{newline.join(lines)}{newline}-----END {kind}-----"

    def _base64(self, text: str, deep: int) -> str | None:
        """Return base64 of something with other names; None when it is no base64 at all."""
        content = _decoded(text) if _is_base64(text) else None
        if content is None:
            return None
        again = self._certificates.again(content) if content[:1] == b"\x30" else None
        if again is not None:
            return base64.b64encode(again).decode()
        inner = _text(content)
        if inner is not None and deep < _DEEP:
            masked = self.masked(inner, deep + 1)
            return text if masked == inner else base64.b64encode(masked.encode()).decode()
        return self._drop() if self._occurs(content.decode("latin-1")) else text

    def _drop(self) -> str:
        self.dropped += 1
        return MARK


def _is_base64(text: str) -> bool:
    """Whether letters, digits and strokes are base64, and no path or number."""
    return not text.islower() and not text.isupper() and any(c.isdigit() for c in text)


def _decoded(text: str) -> bytes | None:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None


def _text(content: bytes) -> str | None:
    if _BINARY.search(content):
        return None
    try:
        return content.decode()
    except UnicodeDecodeError:
        return None
