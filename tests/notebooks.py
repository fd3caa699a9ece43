"""Run the notebooks again and keep what is compared: ``python -m tests.notebooks``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
#: What nbval calls cells whose output is compared, and cells whose output is not.
CHECKED, UNCHECKED = "nbval-check-output", "nbval-ignore-output"
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def read(path: Path) -> Any:
    """Return a notebook."""
    return nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]


def executed(book: Any, folder: Path) -> Any:
    """Run all cells of a notebook in a folder, and return it with its outputs."""
    client = NotebookClient(
        book, timeout=300, store_widget_state=False, resources={"metadata": {"path": folder}}
    )
    client.execute()
    return book


def written(book: Any) -> str:
    """Return a notebook as it is kept: outputs that are compared, and nothing of this machine."""
    number = 0
    for cell in book.cells:
        if cell.cell_type != "code":
            continue
        number += 1
        cell.execution_count = number
        cell.metadata = {"tags": cell.metadata.tags}
        if UNCHECKED in cell.metadata.tags:
            cell.outputs = []
        for output in cell.outputs:
            if output.output_type == "execute_result":
                output.execution_count = number
    book.metadata = METADATA
    return json.dumps(book, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


if __name__ == "__main__":
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        path.write_text(written(executed(read(path), NOTEBOOKS)))
        print(path.name)
