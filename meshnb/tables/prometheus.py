"""Prometheus' text format, in which istiod and the proxies give their metrics.

From prometheus.io/docs/instrumenting/exposition_formats: one sample per line, a name, labels in
braces, a value, and perhaps a time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

#: Labels may hold braces and escaped quotes in their values.
_SAMPLE = re.compile(
    r"([A-Za-z_:][A-Za-z0-9_:]*)"
    r'(?:\{((?:[^"}]++|"(?:[^"\\]++|\\.)*+")*+)\})?'
    r"[ \t]+(\S+)(?:[ \t].*)?"
)
_LABEL = re.compile(r'([A-Za-z_][A-Za-z0-9_]*)="((?:[^"\\]++|\\.)*+)"')
_ESCAPED = re.compile(r"\\(.)")


class Sample(NamedTuple):
    """One line: a metric's name, its labels as printed, and its value as printed."""

    metric: str
    printed: str
    value: str

    @property
    def labels(self) -> Mapping[str, str]:
        """The labels by name, with what was escaped in their values."""
        return {
            name: _ESCAPED.sub(lambda found: {"n": "\n"}.get(found[1], found[1]), value)
            for name, value in _LABEL.findall(self.printed)
        }


def samples(text: str, *prefixes: str) -> Iterator[Sample]:
    """Yield the samples of a page; with prefixes, only of metrics whose names begin so."""
    for line in map(str.strip, text.splitlines()):
        if line.startswith("#") or (prefixes and not line.startswith(prefixes)):
            continue
        if (found := _SAMPLE.fullmatch(line)) is not None:
            yield Sample(found[1], (found[2] or "").rstrip(","), found[3])
