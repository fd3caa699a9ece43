"""The parts of a view, found as a person finds them: what is shown, and by their labels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ipywidgets

from meshnb.views.base import View


def parts(view: View) -> Iterator[Any]:
    """Yield every widget of a view that is shown, in the order of focus."""
    waiting = [view]
    while waiting:
        part = waiting.pop(0)
        if part.layout.display != "none":
            yield part
            waiting = [*getattr(part, "children", ()), *waiting]


def control(view: View, label: str) -> Any:
    """Return the control with a label that begins so."""
    (found,) = [
        part
        for part in parts(view)
        if getattr(part, "description", "").startswith(label)
        and not isinstance(part, ipywidgets.HTML)
    ]
    return found


def labels(view: View) -> list[str]:
    """Return the labels of all buttons that are shown."""
    return [part.description for part in parts(view) if isinstance(part, ipywidgets.Button)]


def shown(view: View) -> str:
    """Return the HTML that is shown, all of it."""
    return " ".join(part.value for part in parts(view) if isinstance(part, ipywidgets.HTML))
