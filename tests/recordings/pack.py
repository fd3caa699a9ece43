"""Pack recorded bundles into the archives that the tests and the package carry.

Usage: ``python tests/recordings/pack.py FOLDER [ARCHIVE]`` where FOLDER holds ``<id>.zip`` and
``<id>.truth.json`` for each recording. All of them go into one solid archive for the tests, since
they differ little: ``evidence``, or the one that is named. Of ``evidence``, those of the package's
catalogue go into one archive each as well.
"""

from __future__ import annotations

import io
import json
import lzma
import sys
import tarfile
import zipfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
PACKAGE = HERE.parents[1] / "meshnb" / "recordings"
#: A dictionary larger than one recording, so that the next one is written as differences.
FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": 128 << 20}]


def pack(target: Path, members: list[tuple[str, bytes]]) -> None:
    """Write members as a tar compressed with xz, files of the same name beside each other."""
    members = sorted(members, key=lambda member: (member[0].rsplit("/", 1)[-1], member[0]))
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as archive:
        for name, body in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(body)
            archive.addfile(entry, io.BytesIO(body))
    target.write_bytes(lzma.compress(plain.getvalue(), format=lzma.FORMAT_XZ, filters=FILTERS))
    print(f"{target.name}: {target.stat().st_size / 1e6:.2f} MB")


def main(folder: Path, name: str = "evidence") -> None:
    """Pack every recording of a folder."""
    everything: list[tuple[str, bytes]] = []
    shipped = {entry["name"] for entry in json.loads((PACKAGE / "catalogue.json").read_text())}
    for path in sorted(folder.glob("*.zip")):
        with zipfile.ZipFile(path) as archive:
            members = [
                (one, archive.read(one)) for one in archive.namelist() if not one.endswith("/")
            ]
        if path.stem in shipped and name == "evidence":
            pack(PACKAGE / f"{path.stem}.tar.xz", members)
        everything += [(f"{path.stem}/{member}", body) for member, body in members]
        everything.append((f"{path.stem}.truth.json", path.with_suffix(".truth.json").read_bytes()))
    pack(HERE / f"{name}.tar.xz", everything)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:3])
