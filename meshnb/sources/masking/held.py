"""Answers that wait until all names are known: on disk, in a file without a name."""

from __future__ import annotations

import tempfile
import zlib
from collections.abc import Iterator
from typing import IO, Any

from meshnb.sources.base import Question

Line = tuple[Question, dict[str, Any], bytes | None]


class Held:
    """Takes answers, without their secrets, and gives them back in their order. To be closed."""

    def __init__(self) -> None:
        self._file: IO[bytes] | None = None
        self._lines: list[tuple[Question, dict[str, Any], int | None]] = []

    def add(self, question: Question, line: dict[str, Any], body: bytes | None) -> None:
        """Keep an answer: its line in the index, and its body."""
        size = None
        if body is not None:
            if self._file is None:
                self._file = tempfile.TemporaryFile(prefix="meshnb-")  # noqa: SIM115  see close
            size = self._file.write(zlib.compress(body, 1))
        self._lines.append((question, line, size))

    def lines(self) -> Iterator[Line]:
        """Yield the answers."""
        if self._file is not None:
            self._file.seek(0)
        for question, line, size in self._lines:
            if size is None or self._file is None:
                yield question, line, None
            else:
                yield question, line, zlib.decompress(self._file.read(size))

    def close(self) -> None:
        """Forget the answers; nothing is left on the disk."""
        self._lines.clear()
        if self._file is not None:
            self._file.close()
            self._file = None
