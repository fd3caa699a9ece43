"""Paths of requests in logs: their segments are other ones, also where nobody defined them."""

from __future__ import annotations

import re
from collections.abc import Callable
from hashlib import blake2b

from meshnb.sources.masking.vocabulary import is_common, stays

_REQUEST = re.compile(
    r"(?P<before>\b(?:GET|HEAD|POST|PUT|PATCH|DELETE|OPTIONS|TRACE|CONNECT) |://[^/\s\"'\\<>]+|"
    r"\\*\"(?:[a-z_]*path|ur[il]|request|target)\\*\"\s*:\s*\\*\"(?=/))(?P<path>/[^\s\"'\\<>\])]*)",
    re.IGNORECASE,
)
_WORD = re.compile(r"%[0-9A-Fa-f]{2}|[A-Za-z0-9]+", re.ASCII)
_HEXADECIMAL = re.compile(r"(?=[a-f]*\d)[0-9a-f]{4,}")


class Paths:
    """Replaces each word of a path by one that follows from it and the key of the recording."""

    def __init__(self, key: bytes, is_name: Callable[[str], bool]) -> None:
        """``is_name`` says which words have a mask already."""
        self._key, self._is_name = key, is_name
        #: which word stands for which other one
        self.replaced: dict[str, str] = {}

    def masked(self, text: str) -> str:
        """Return a log with other paths."""
        return _REQUEST.sub(lambda match: match["before"] + self.path(match["path"]), text)

    def path(self, path: str) -> str:
        """Return a path, with its query, of as many segments."""
        return _WORD.sub(self._word, path)

    def _word(self, match: re.Match[str]) -> str:
        word = match[0]
        lower = word.lower()
        if word[0] == "%" or stays(lower) or is_common(lower) or self._is_name(lower):
            return word
        if lower not in self.replaced:
            digest = blake2b(lower.encode(), key=self._key, digest_size=32).hexdigest()
            hexadecimal = _HEXADECIMAL.fullmatch(lower) and len(lower) <= len(digest)
            self.replaced[lower] = digest[: len(lower)] if hexadecimal else f"p{digest[:6]}"
        return self.replaced[lower]
