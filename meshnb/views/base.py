"""What a view is: a widget with a static form, so that a saved notebook shows the same."""

from __future__ import annotations

import html
import re
from functools import cache
from importlib import resources
from typing import Any

import ipywidgets

from meshnb.guides.pictures import State

_CODE = re.compile(r"`([^`]+)`")


class View(ipywidgets.VBox):
    """A widget that can also be written down as HTML and as text.

    A live notebook shows the widget; a saved, exported or headless one shows ``html`` or ``text``.
    """

    def html(self) -> str:
        """Return the static form as HTML, without its style."""
        raise NotImplementedError

    def text(self) -> str:
        """Return the static form as plain text."""
        raise NotImplementedError

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
        """Return the widget with its static form, as Jupyter asks for it."""
        bundle: dict[str, Any] = super()._repr_mimebundle_(**kwargs)
        bundle["text/html"] = styled(self.html())
        bundle["text/plain"] = self.text()
        return bundle


@cache
def style() -> str:
    """Return the style sheet that every card needs."""
    sheet = resources.files("meshnb.views").joinpath("style.css").read_text(encoding="utf-8")
    return f"<style>{sheet}</style>"


def styled(markup: str) -> str:
    """Return HTML with its style, so that it can stand alone."""
    return f'{style()}<div class="mnb">{markup}</div>'


def escape(text: object) -> str:
    """Return text from a cluster so that a browser shows it and does nothing else with it."""
    return html.escape(str(text), quote=True)


def prose(text: str) -> str:
    """Return a sentence as HTML, with what stands in backticks as code."""
    return _CODE.sub(r"<code>\1</code>", escape(" ".join(text.split())))


def mark(state: State, word: str = "") -> str:
    """Return the sign and the word of a state as HTML."""
    return (
        f'<span class="mnb-state {css(state)}"><span class="mnb-sign" aria-hidden="true">'
        f"{escape(state.sign)}</span> {escape(word or state.word)}</span>"
    )


def dot(state: State) -> str:
    """Return the sign of a state in a circle, with its word for those who see neither."""
    return (
        f'<span class="mnb-dot" role="img" aria-label="{escape(state.word)}">'
        f"{escape(state.sign)}</span>"
    )


def css(state: State) -> str:
    """Return the class that gives an element the colour of a state."""
    return f"mnb-{state.name.lower()}"
