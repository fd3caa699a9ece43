"""The files under a bundle: a folder, a zip, or a tar compressed with xz or gzip.

Nothing is ever unpacked to disk. Sizes are bounded before and while a member is read, so that an
archive that unpacks to more than a machine has is refused with a sentence.
"""

from __future__ import annotations

import lzma
import os
import tarfile
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Literal, Protocol

from meshnb.errors import BundleError

#: The largest answer that is read, in bytes. The largest configuration dumps seen have 200 MB.
MEMBER_LIMIT = 1 << 30
#: The largest sum of all members, in bytes.
TOTAL_LIMIT = 16 << 30
#: Deflate reaches a ratio of about 1000 on zeros and about 50 on configuration dumps.
RATIO_LIMIT = 300
#: Below this size a high ratio is harmless, in bytes.
RATIO_FLOOR = 64 << 20

RECORD_AGAIN = "Copy or record the bundle again."

_CUT_OFF = f"It was probably cut off while it was written or copied. {RECORD_AGAIN}"
_WRITTEN = "A bundle is what `meshnb record` writes."


class MemberError(Exception):
    """One member cannot be read; the others can. The message says why."""


class Archive(Protocol):
    """Named members with bytes. Names have forward slashes and begin at the bundle's top."""

    def has(self, name: str) -> bool:
        """Whether there is a member of this name."""
        ...

    def read(self, name: str) -> bytes:
        """Return a member's bytes. Raises MemberError when it is missing, damaged or too large."""
        ...

    def names(self) -> tuple[str, ...]:
        """Return the name of each member."""
        ...


def leads_out(name: str) -> bool:
    """Whether a member's name is absolute or climbs above the bundle's top."""
    path = PurePosixPath(name.replace("\\", "/"))
    return path.is_absolute() or ".." in path.parts or (len(name) > 1 and name[1] == ":")


def open_archive(path: Path) -> Archive:
    """Open a folder, a zip, a ``.tar.xz`` or ``.tar.gz``. Raises BundleError for anything else."""
    try:
        if path.is_dir():
            return _Folder(path)
        if path.exists() and not path.is_file():
            raise BundleError(f"{str(path)!r} is neither a folder nor a file.", next_step=_WRITTEN)
        with path.open("rb") as file:
            magic = file.read(6)
        if magic[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
            return _Zip(path)
        if magic == b"\xfd7zXZ\x00":
            return _Tar(path, "r:xz")
        if magic[:2] == b"\x1f\x8b":
            return _Tar(path, "r:gz")
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:
        raise BundleError(
            f"There is no file or folder {str(path)!r}.",
            next_step="Check the name, or see the recordings that ship with `meshnb recordings`.",
        ) from error
    except OSError as error:
        raise BundleError(
            f"{str(path)!r} cannot be read: {error.strerror or error}.",
            next_step="Check its name and permissions.",
        ) from error
    if not magic:
        raise BundleError(f"{str(path)!r} is empty.", next_step=_CUT_OFF)
    raise BundleError(
        f"{str(path)!r} is not a bundle: neither a folder nor a zip (it begins with {magic!r}).",
        next_step=_WRITTEN,
    )


def _top(names: Iterable[str]) -> str:
    """Return the folder in which the bundle lies when a whole folder was packed, or nothing."""
    found = {
        folder
        for folder, slash, name in (name.rpartition("/") for name in names)
        if name in ("index.jsonl", "manifest.json") and "/" not in folder
    }
    return f"{found.pop()}/" if len(found) == 1 and "" not in found else ""


class _Folder:
    def __init__(self, path: Path) -> None:
        self._root = path.resolve()

    def has(self, name: str) -> bool:
        try:
            return (self._root / name).is_file()
        except (OSError, ValueError):
            return False  # longer than the file system allows, or with a character that it forbids

    def read(self, name: str) -> bytes:
        if not self.has(name):
            raise MemberError(f"{name!r} is missing")
        try:
            file = (self._root / name).resolve()
            if not file.is_relative_to(self._root):
                raise MemberError(f"{name!r} leads out of the bundle")
            if file.stat().st_size > MEMBER_LIMIT:
                raise MemberError(f"{name!r} is larger than {MEMBER_LIMIT >> 20} MiB")
            return file.read_bytes()
        except OSError as error:
            raise MemberError(f"{name!r} cannot be read: {error.strerror or error}") from error

    def names(self) -> tuple[str, ...]:
        return tuple(
            (Path(folder) / name).relative_to(self._root).as_posix()
            for folder, _, names in os.walk(self._root)
            for name in sorted(names)
        )


class _Zip:
    def __init__(self, path: Path) -> None:
        try:
            self._zip = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError) as error:
            raise BundleError(
                f"{str(path)!r} begins like a zip, but cannot be read as one ({error}).",
                next_step=_CUT_OFF,
            ) from error
        members = [info for info in self._zip.infolist() if not info.is_dir()]
        total = sum(info.file_size for info in members)
        sizes = [(repr(info.filename), info.file_size, info.compress_size) for info in members]
        for what, size, packed in [*sizes, ("all of it", total, path.stat().st_size)]:
            if size > RATIO_FLOOR and size / max(packed, 1) > RATIO_LIMIT:
                self._zip.close()
                raise BundleError(
                    f"{str(path)!r} looks like a zip bomb: {what} unpacks from {packed} to "
                    f"{size} bytes.",
                    next_step="It was not opened.",
                )
        if total > TOTAL_LIMIT:
            self._zip.close()
            raise BundleError(
                f"{str(path)!r} unpacks to {total >> 30} GiB, more than {TOTAL_LIMIT >> 30} GiB.",
                next_step="Record fewer namespaces.",
            )
        top = _top(info.filename for info in members)
        self._members = {info.filename.removeprefix(top): info for info in members}

    def has(self, name: str) -> bool:
        return name in self._members

    def names(self) -> tuple[str, ...]:
        return tuple(self._members)

    def read(self, name: str) -> bytes:
        info = self._members.get(name)
        if info is None:
            raise MemberError(f"{name!r} is missing")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise MemberError(f"{name!r} is compressed in another way than deflate")
        try:
            with self._zip.open(info) as file:
                body = file.read(MEMBER_LIMIT + 1)
        except (
            zipfile.BadZipFile,
            zlib.error,
            EOFError,
            OSError,
            RuntimeError,
            ValueError,
        ) as error:
            raise MemberError(f"{name!r} is damaged: {error}") from error
        if len(body) > MEMBER_LIMIT:
            raise MemberError(f"{name!r} is larger than {MEMBER_LIMIT >> 20} MiB")
        return body


class _Tar:
    """Read whole into memory: the recordings that ship, some 5 MB each, and bug reports."""

    def __init__(self, path: Path, mode: Literal["r:xz", "r:gz"]) -> None:
        members: dict[str, bytes] = {}
        total = 0
        try:
            with tarfile.open(path, mode=mode) as archive:
                for member in archive:
                    content = archive.extractfile(member) if member.isfile() else None
                    if content is None:
                        continue
                    total += member.size
                    if total > MEMBER_LIMIT:
                        raise BundleError(
                            f"{str(path)!r} unpacks to more than {MEMBER_LIMIT >> 20} MiB.",
                            next_step="Large bundles are folders or zips, not tars.",
                        )
                    members[member.name.removeprefix("./")] = content.read()
        except (
            *(tarfile.TarError, lzma.LZMAError, zlib.error, EOFError, OSError, ValueError),
        ) as error:
            raise BundleError(
                f"{str(path)!r} begins like an {mode[2:]} archive, but cannot be read as a tar "
                f"({error}).",
                next_step=_CUT_OFF,
            ) from error
        top = _top(members)
        self._members = {name.removeprefix(top): body for name, body in members.items()}

    def has(self, name: str) -> bool:
        return name in self._members

    def names(self) -> tuple[str, ...]:
        return tuple(self._members)

    def read(self, name: str) -> bytes:
        try:
            return self._members[name]
        except KeyError:
            raise MemberError(f"{name!r} is missing") from None
