"""A body as it arrives: in memory while it is small, then in a file that has no name.

The file is gone when the body is, even if the process is killed: nothing is left to clean up.
"""

from __future__ import annotations

import mmap
import tempfile
from typing import IO

from meshnb.sources.archive import MEMBER_LIMIT
from meshnb.sources.base import Body

#: Larger bodies go to a file, in bytes.
SMALL = 256 << 10


class TooLarge(Exception):
    """A body is larger than what a bundle may hold."""


class Spool:
    """Takes a body piece by piece. With ``secret`` it stays in memory, because disks remember."""

    def __init__(self, *, secret: bool = False) -> None:
        self._secret = secret
        self._memory = bytearray()
        self._file: IO[bytes] | None = None
        self.size = 0

    def write(self, piece: bytes | bytearray) -> None:
        """Append a piece. Raises TooLarge."""
        self.size += len(piece)
        if self.size > MEMBER_LIMIT:
            self.discard()
            raise TooLarge(f"it is larger than {MEMBER_LIMIT >> 20} MiB")
        if self._file is None and not self._secret and self.size > SMALL:
            self._file = tempfile.TemporaryFile(prefix="meshnb-", buffering=0)  # noqa: SIM115
            self._file.write(self._memory)
            self._memory.clear()
        if self._file is None:
            self._memory += piece
        else:
            self._file.write(piece)

    def body(self) -> Body:
        """Return all of it, once; a file is mapped, not read."""
        if self._file is None:
            return bytes(self._memory)
        with self._file as file:
            return mmap.mmap(file.fileno(), self.size, access=mmap.ACCESS_READ)

    def discard(self) -> None:
        """Forget what came so far."""
        self._memory.clear()
        self.size = 0
        if self._file is not None:
            self._file.close()
            self._file = None
