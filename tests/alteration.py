"""A recording, altered in one respect: for faults that no recording has.

What is altered is named in the test. Everything else is as it was recorded.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from meshnb.sources import Bundle
from meshnb.tables import Facts
from tests.conftest import unpacked


class Altered:
    """A copy of a recording, whose answers can be changed one by one before it is opened."""

    def __init__(self, name: str, folder: Path) -> None:
        """Copy the recording ``name`` into ``folder``."""
        self.name = name
        self.folder = folder / name
        shutil.copytree(unpacked() / name, self.folder)

    @property
    def _index(self) -> list[dict[str, Any]]:
        lines = (self.folder / "index.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def _write_index(self, entries: list[dict[str, Any]]) -> None:
        (self.folder / "index.jsonl").write_text("\n".join(map(json.dumps, entries)))

    def _matching(self, **request: Any) -> list[dict[str, Any]]:
        found = [entry for entry in self._index if request.items() <= entry["request"].items()]
        assert found, f"{self.name} has no answer to {request}"
        return found

    def objects(self, resource: str, change: Callable[[list[Any]], None]) -> Altered:
        """Change the list of objects of one resource in place."""
        for entry in self._matching(kind="list", resource=resource):
            path = self.folder / entry["file"]
            document = json.loads(path.read_text())
            change(document["items"])
            path.write_text(json.dumps(document))
        return self

    def each(self, resource: str, name: str, change: Callable[[dict[str, Any]], None]) -> Altered:
        """Change each object of one resource whose name begins so."""

        def change_all(items: list[Any]) -> None:
            chosen = [item for item in items if item["metadata"]["name"].startswith(name)]
            assert chosen, f"{self.name} has no {resource} {name}"
            for item in chosen:
                change(item)

        return self.objects(resource, change_all)

    def pages(self, change: Callable[[Any], None], **request: Any) -> Altered:
        """Change the JSON of each page whose request has these values, in place."""
        for entry in self._matching(kind="http", **request):
            path = self.folder / entry["file"]
            document = json.loads(path.read_text())
            change(document)
            path.write_text(json.dumps(document))
        return self

    def texts(self, change: Callable[[str], str], **request: Any) -> Altered:
        """Replace the text of each answer, such as a log, whose request has these values."""
        for entry in self._matching(**request):
            path = self.folder / entry["file"]
            path.write_text(change(path.read_text()))
        return self

    def silence(self, error: str, **request: Any) -> Altered:
        """Let the answers to these requests be an error instead."""
        entries = self._index
        chosen = [entry for entry in entries if request.items() <= entry["request"].items()]
        assert chosen, f"{self.name} has no answer to {request}"
        for entry in chosen:
            entry.pop("file", None)
            entry.pop("status", None)
            entry["error"] = error
        self._write_index(entries)
        return self

    def forget(self, **request: Any) -> Altered:
        """Let these requests never have been made."""
        kept = [entry for entry in self._index if not request.items() <= entry["request"].items()]
        self._write_index(kept)
        return self

    def facts(self) -> Facts:
        """Open the altered recording."""
        return Facts(Bundle(self.folder, label=f"{self.name}, altered"))
