"""One recording under other names: all answers are looked at first, then each is written anew."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping
from typing import Any

from meshnb.sources.base import (
    HttpQuestion,
    ListQuestion,
    LogQuestion,
    ProbeQuestion,
    Question,
)
from meshnb.sources.masking.addresses import Addresses
from meshnb.sources.masking.blobs import Encoded, find_certificates
from meshnb.sources.masking.certificates import Certificates
from meshnb.sources.masking.finding import find, find_shapes
from meshnb.sources.masking.held import Held
from meshnb.sources.masking.names import Names
from meshnb.sources.masking.paths import Paths

_NUMBER = re.compile(r"(?<![0-9A-Za-z])[0-9A-Fa-f]{12,64}(?![0-9A-Za-z])")


class Masking:
    """Replaces names and addresses. ``learn`` every answer, ``settle``, then ask for the masks."""

    def __init__(self) -> None:
        key = secrets.token_bytes(32)
        self.names = Names()
        self.held = Held()
        self.addresses = Addresses(key)
        self._certificates = Certificates(key, self.names, self.addresses)
        self._paths = Paths(key, self.names.knows)
        self._encoded = Encoded(self._certificates, self._plain, self.names.occurs)

    def learn(self, question: Question, body: bytes) -> None:
        """Take in the names in a question and its answer."""
        find(self.names, question, body)
        text = body.decode("utf-8", "surrogateescape")
        for inner in find_certificates(text, self._certificates):
            find_shapes(self.names, inner)

    def learn_name(self, name: str) -> None:
        """Take in a name that stands in no answer, such as the cluster's."""
        self.names.add(name, defined=True)

    def settle(self) -> None:
        """Choose the masks. From now on nothing is learned any more."""
        self.names.settle()
        self._certificates.settle()

    def question(self, question: Question) -> Question:
        """Return a question as it would have been put to the masked mesh."""
        match question:
            case ListQuestion():
                return question
            case HttpQuestion(namespace, pod, port, path):
                return HttpQuestion(
                    self._plain(namespace), self._plain(pod), port, self._plain(path)
                )
            case ProbeQuestion(namespace, pod, port, protocol):
                return ProbeQuestion(self._plain(namespace), self._plain(pod), port, protocol)
            case LogQuestion(namespace, pod, container, previous):
                return LogQuestion(
                    self._plain(namespace), self._plain(pod), self._plain(container), previous
                )

    def body(self, question: Question, body: bytes) -> bytes:
        """Return an answer with other names."""
        text = body.decode("utf-8", "surrogateescape")
        if isinstance(question, LogQuestion):
            text = self._paths.masked(text)
        return self.text(text).encode("utf-8", "surrogateescape")

    def text(self, text: str) -> str:
        """Return any text with other names."""
        return self._encoded.masked(text)

    def detail(self, detail: Mapping[str, Any]) -> dict[str, Any]:
        """Return an answer's particulars with other names."""
        masked: dict[str, Any] = json.loads(self.text(json.dumps(detail)))
        return masked

    @property
    def said(self) -> list[str]:
        """What was replaced, and what was not, as the manifest says it."""
        again, failed = self._certificates.counts
        counted = {
            "words of names, each by another word": len(self.names.replaced),
            "places with such a word": self.names.count,
            "addresses": len(self.addresses.replaced),
            "words of paths in logs": len(self._paths.replaced),
            "certificates, issued again with keys that are nobody's": again,
            "encoded values dropped, because they cannot be read": self._encoded.dropped + failed,
            "names that stay, because they are everybody's words": len(self.names.common),
        }
        return [f"{what}: {count}" for what, count in counted.items() if count]

    @property
    def mapping(self) -> dict[str, Any]:
        """Which name and address stands for which other one, and which names stay."""
        return {
            "words": dict(self.names.replaced),
            "addresses": self.addresses.replaced,
            "paths": dict(self._paths.replaced),
            "staying": self.names.common,
        }

    def _plain(self, text: str) -> str:
        masked = self.addresses.masked(self.names.masked(text))
        if self._certificates.words:
            return _NUMBER.sub(self._number, masked)
        return masked

    def _number(self, match: re.Match[str]) -> str:
        return self._certificates.words.get(match[0].lower(), match[0])
