"""What do you see? A chooser that opens the guide for it."""

from __future__ import annotations

from typing import Any

import ipywidgets

from meshnb.guides.base import Case
from meshnb.guides.focus import SIGHTS, obvious_sight
from meshnb.views.base import View
from meshnb.views.chooser import SourceChooser
from meshnb.views.guide import GuideView


class SightsView(View):
    """Lets a reader say what is seen, and opens the guide for that on the chosen mesh."""

    def __init__(self, of: Case | SourceChooser, sight: str = "") -> None:
        """Open the guide for a sight, such as ``not_found``; else for what the evidence shows."""
        self._wanted = sight
        self._choice = ipywidgets.Dropdown(
            description="What do you see?",
            options=[(label, name) for name, label in SIGHTS.items()],
            value=sight or "check_mesh",
            style={"description_width": "initial"},
            layout=ipywidgets.Layout(width="auto", max_width="760px"),
        )
        self.guide = GuideView(self._choice.value, None)
        super().__init__([self._choice, self.guide])
        self.add_class("mnb-view")
        self._choice.observe(self._on_choice, names="value")
        self.case: Case | None = None
        if isinstance(of, SourceChooser):
            of.lead(self.begin)
        else:
            self.begin(of)

    def begin(self, case: Case | None) -> None:
        """Look at another case, beginning with what its evidence shows."""
        self.case = case
        if case is not None and not self._wanted:
            self._choice.unobserve(self._on_choice, names="value")
            self._choice.value = obvious_sight(case)
            self._choice.observe(self._on_choice, names="value")
        self._take_up()

    def see(self, sight: str) -> SightsView:
        """Open the guide for another sight, a key of SIGHTS."""
        self._choice.value = sight
        return self

    def verdicts(self) -> str:
        """Return what each step of the guide finds out along the obvious way, a line each."""
        return self.guide.verdicts()

    def html(self) -> str:
        """Return every step of the guide along the obvious way."""
        return self.guide.html()

    def text(self) -> str:
        """Return every step of the guide along the obvious way as text."""
        return self.guide.text()

    def _take_up(self) -> None:
        self.guide.take_up(self._choice.value, self.case)

    def _on_choice(self, _: dict[str, Any]) -> None:
        self._take_up()
