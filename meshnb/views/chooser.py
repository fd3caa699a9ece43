"""Where a notebook gets its mesh: a recording of meshnb's own, a path, or a file dropped in."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ipywidgets

from meshnb.errors import MeshnbError
from meshnb.guides.base import Case
from meshnb.guides.pictures import State
from meshnb.guides.shared import plural
from meshnb.sources import Source, open_source, recordings
from meshnb.sources.bundle import Bundle
from meshnb.tables import Facts
from meshnb.views.base import View, css, escape, mark, prose, styled

_PREFIX = "recorded:"


class SourceChooser(View):
    """Lets a reader choose a mesh, opens and diagnoses it, and says what was got.

    ``case`` is what is open, None when nothing could be opened. Other views can follow it.
    """

    def __init__(self, name: str) -> None:
        """Open a source by its name: ``recorded:NAME``, or the path of a recording."""
        self._recorded = ipywidgets.Dropdown(
            description="Recorded mesh",
            options=[(f"{one.title} ({one.name})", f"{_PREFIX}{one.name}") for one in recordings()],
            value=None,
            style={"description_width": "initial"},
            layout=ipywidgets.Layout(width="auto", max_width="760px"),
        )
        self._path = ipywidgets.Text(
            description="or a file",
            placeholder="path of a recording, a config dump or manifests",
            continuous_update=False,
            style={"description_width": "initial"},
            layout=ipywidgets.Layout(width="460px"),
        )
        self._upload = ipywidgets.FileUpload(
            description="Drop in a .zip",
            accept=".zip",
            multiple=False,
            tooltip="A recording of up to some 10 MB; give the path of a larger one",
            layout=ipywidgets.Layout(width="auto"),
        )
        self._said = ipywidgets.HTML()
        self.case: Case | None = None
        self._error: MeshnbError | None = None
        self._followers: list[Callable[[Case | None], None]] = []
        self._uploads = tempfile.TemporaryDirectory(prefix="meshnb-")
        super().__init__(
            [
                self._recorded,
                ipywidgets.HBox(
                    [self._path, self._upload], layout=ipywidgets.Layout(flex_flow="row wrap")
                ),
                self._said,
            ]
        )
        self.add_class("mnb-view")
        known = {value for _, value in self._recorded.options}
        self._recorded.value = name if name in known else None
        self.choose(name)
        self._recorded.observe(self._on_recorded, names="value")
        self._path.observe(self._on_path, names="value")
        self._upload.observe(self._on_upload, names="value")

    def choose(self, name: str) -> None:
        """Open a source by its name. What goes wrong is said on the card; ``case`` is then None."""
        self._take(name, lambda: open_source(name))

    def lead(self, follower: Callable[[Case | None], None]) -> None:
        """Give a follower what is open now, and whatever is opened later."""
        self._followers.append(follower)
        follower(self.case)

    @property
    def facts(self) -> Facts:
        """The tables of what is open. Raises the error that kept it from being opened."""
        if self.case is None:
            assert self._error is not None
            raise self._error
        return self.case.facts

    def html(self) -> str:
        """Return what is open, or why nothing is, as HTML."""
        if self.case is None:
            return failure(self._error) if self._error is not None else ""
        facts = self.case.facts
        coverage = facts.coverage()
        # A port that is closed is an answer, not a gap: that is what a probe is for.
        coverage = coverage[coverage["kind"] != "probe"]
        counts = coverage["state"].value_counts()
        silent = sum(int(counts.get(name, 0)) for name in ("silent", "refused", "unreadable"))
        answered = int(counts.get("answered", 0)) + int(counts.get("empty", 0))
        state = State.ODD if silent or facts.source.damage else State.FINE
        missing = f", {silent} did not answer or refused" if silent else ", none is missing"
        damage = "".join(
            f"<li>{mark(State.ODD, 'damaged')} {escape(one)}</li>" for one in facts.source.damage
        )
        return (
            f'<section class="mnb-card {css(state)}" aria-label="What is open">'
            f"{mark(state, 'open')} <strong>{escape(facts.source.label)}</strong> · recorded "
            f"{facts.now:%Y-%m-%d %H:%M:%S} UTC · {plural(answered, 'answer')}{missing} · "
            f"{plural(len(facts['pods']), 'pod')}, "
            f"{plural(len(facts['proxies']), 'proxy', 'proxies')}"
            f'<ul class="mnb-plain">{damage}</ul></section>'
        )

    def text(self) -> str:
        """Return what is open, or why nothing is, as one line."""
        if self.case is None:
            return f"✗ {self._error}"
        facts = self.case.facts
        return f"✓ {facts.source.label}, recorded {facts.now:%Y-%m-%d %H:%M:%S} UTC"

    def _take(self, name: str, opened: Callable[[], Source]) -> None:
        self._said.value = styled(
            f'<div class="mnb-card mnb-unknown" role="status">Reading {escape(name)} …</div>'
        )
        try:
            case = Case.of(Facts(opened()))
        except MeshnbError as error:
            self._error = error
            self.case = None
        else:
            self._error = None
            self.case = case
        self._said.value = styled(f'<div role="status">{self.html()}</div>')
        for follower in self._followers:
            follower(self.case)

    def _on_recorded(self, change: dict[str, Any]) -> None:
        if change["new"] is not None:
            self.choose(change["new"])

    def _on_path(self, change: dict[str, Any]) -> None:
        if change["new"].strip():
            self._recorded.value = None
            self.choose(change["new"].strip())

    def _on_upload(self, change: dict[str, Any]) -> None:
        if not change["new"]:
            return
        dropped = change["new"][0]
        # The name that a browser sends is shown, and is never a path.
        path = Path(self._uploads.name) / f"{len(list(Path(self._uploads.name).iterdir()))}.zip"
        path.write_bytes(bytes(dropped["content"]))
        self._recorded.value = None
        label = str(dropped["name"])
        self._take(label, lambda: Bundle(path, label=label))


def failure(error: MeshnbError) -> str:
    """Return an error as a card: what is wrong with which thing, and what to do next."""
    step = f"<p><strong>Next:</strong> {prose(error.next_step)}</p>" if error.next_step else ""
    return (
        f'<section class="mnb-card mnb-broken" role="alert">{mark(State.BROKEN, "not opened")} '
        f"<strong>{prose(error.what)}</strong>{step}</section>"
    )
