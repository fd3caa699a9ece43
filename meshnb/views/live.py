"""A live cluster to choose: contexts of the kubeconfig, and which part of the mesh is asked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ipywidgets

from meshnb.errors import MeshnbError, SourceError
from meshnb.sources import Scope
from meshnb.views.base import styled
from meshnb.views.work import Opens, failure, opens

_WHOLE = {"description_width": "initial"}


class LiveChooser(ipywidgets.VBox):
    """The contexts, read when they are wanted. Nothing is contacted before one is asked."""

    def __init__(self, begin: Callable[[str, Opens], None]) -> None:
        """Take what asks a cluster by its name."""
        self._begin = begin
        #: shows the contexts; it stands wherever a chooser puts it
        self.button = ipywidgets.Button(
            description="A live cluster …",
            tooltip="Reads the kubeconfig; contacts nobody",
            layout=ipywidgets.Layout(width="auto"),
        )
        self._contexts = ipywidgets.Dropdown(
            description="Context", options=[], style=_WHOLE, layout=ipywidgets.Layout(width="auto")
        )
        self._namespaces = _text("Namespaces", "all of them; or names, separated by commas")
        self._labels = _text("Labels of pods", "any; or such as app=reviews,version!=v1")
        self._ask = ipywidgets.Button(
            description="Ask it",
            tooltip="Only reads: lists, logs, and pages of istiod and the proxies",
            button_style="primary",
            layout=ipywidgets.Layout(width="auto"),
        )
        self._said = ipywidgets.HTML()
        self._box = ipywidgets.VBox(
            [
                self._contexts,
                ipywidgets.HBox(
                    [self._namespaces, self._labels],
                    layout=ipywidgets.Layout(flex_flow="row wrap"),
                ),
                self._ask,
            ],
            layout=ipywidgets.Layout(display="none"),
        )
        self.button.on_click(self._on_open)
        self._ask.on_click(self._on_ask)
        super().__init__([self._box, self._said])

    def _on_open(self, _: Any) -> None:
        try:
            named = _contexts()
        except MeshnbError as error:
            self._box.layout.display = "none"
            self._said.value = styled(failure(error))
            return
        chosen = self._contexts.value
        self._contexts.options = named
        self._contexts.value = chosen if chosen in dict(named).values() else named[0][1]
        self._said.value = ""
        self._box.layout.display = None

    def _on_ask(self, _: Any) -> None:
        wanted = self._namespaces.value.replace(",", " ").split()
        try:
            scope = Scope(namespaces=tuple(wanted), labels=self._labels.value.strip())
        except MeshnbError as error:
            self._said.value = styled(failure(error, "not asked"))
            return
        self._said.value = ""
        name = str(self._contexts.value)
        self._begin(name, opens(name, scope=scope))


def _contexts() -> list[tuple[str, str]]:
    """Return the contexts with the names of their sources. Raises SourceError without any."""
    try:
        from meshnb.sources.kubeconfig import contexts  # noqa: PLC0415  brings kubernetes

        found = contexts()
    except ImportError as error:
        raise SourceError(
            f"A live cluster cannot be asked, because the package {error.name} is not installed.",
            next_step="Install it: `pip install meshnb`, in a Python that has a network.",
        ) from error
    if not found:
        raise SourceError(
            "There is no kubeconfig, so there is no live cluster to ask.",
            next_step="Set KUBECONFIG to the file that your cluster's administrator gave you.",
        )
    return [
        (f"{one.name} (current)" if one.current else one.name, f"cluster:{one.name}")
        for one in found
    ]


def _text(title: str, placeholder: str) -> ipywidgets.Text:
    return ipywidgets.Text(
        description=title,
        placeholder=placeholder,
        continuous_update=False,
        style=_WHOLE,
        layout=ipywidgets.Layout(width="380px"),
    )
