"""Where a notebook gets its mesh: a recording, a path, a file dropped in, or a live cluster."""

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
from meshnb.sources import is_cluster, recordings
from meshnb.sources.bundle import Bundle
from meshnb.sources.progress import Progress
from meshnb.tables import Facts
from meshnb.views.base import View, css, escape, mark, styled
from meshnb.views.live import LiveChooser
from meshnb.views.recording import RecordButton
from meshnb.views.work import Opens, Outcome, Work, failure, opens, progress_card

_PREFIX = "recorded:"
#: So many reasons for answers that are missing are named, the commonest first.
_REASONS = 3


class SourceChooser(View):
    """Lets a reader choose a mesh, opens and diagnoses it, and says what was got.

    ``case`` is what is open, None when nothing could be opened. Other views can follow it.
    """

    def __init__(self, name: str) -> None:
        """Open a source by its name: ``recorded:NAME``, the path of a recording, or ``cluster``."""
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
        self._live = LiveChooser(self._begin)
        self._stop = ipywidgets.Button(
            description="Stop asking",
            tooltip="What was answered until then stays",
            layout=ipywidgets.Layout(width="auto", display="none"),
        )
        self._stop.on_click(self._on_stop)
        self._record = RecordButton()
        self._said = ipywidgets.HTML()
        self._work: Work = Work(self._on_progress, self._take)
        self._name = name
        self.case: Case | None = None
        self._error: MeshnbError | None = None
        self._followers: list[Callable[[Case | None], None]] = []
        self._uploads = tempfile.TemporaryDirectory(prefix="meshnb-")
        super().__init__(
            [
                self._recorded,
                ipywidgets.HBox(
                    [self._path, self._upload, self._live.button],
                    layout=ipywidgets.Layout(flex_flow="row wrap", align_items="center"),
                ),
                self._live,
                self._said,
                self._stop,
                self._record,
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
        self._reading(name)
        self._work.do(opens(name))

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
        lacking = coverage[coverage["state"].isin(("silent", "refused", "unreadable"))]
        silent = len(lacking)
        answered = int(counts.get("answered", 0)) + int(counts.get("empty", 0))
        state = State.ODD if silent or facts.source.damage else State.FINE
        missing = f", {silent} did not answer or refused" if silent else ", none is missing"
        reasons = "".join(
            f"<li>{mark(State.ODD, plural(count, 'time'))} {escape(reason)}</li>"
            for reason, count in lacking["reason"].value_counts().head(_REASONS).items()
        )
        damage = "".join(
            f"<li>{mark(State.ODD, 'damaged')} {escape(one)}</li>" for one in facts.source.damage
        )
        return (
            f'<section class="mnb-card {css(state)}" aria-label="What is open">'
            f"{mark(state, 'open')} <strong>{escape(facts.source.label)}</strong> · "
            f"{taken(facts)} · {plural(answered, 'answer')}{missing} · "
            f"{plural(len(facts['pods']), 'pod')}, "
            f"{plural(len(facts['proxies']), 'proxy', 'proxies')}"
            f'<ul class="mnb-plain">{reasons}{damage}</ul></section>'
        )

    def text(self) -> str:
        """Return what is open, or why nothing is, as one line."""
        if self.case is None:
            return f"✗ {self._error}"
        facts = self.case.facts
        return f"✓ {facts.source.label}, {taken(facts)}"

    def _begin(self, name: str, opened: Opens) -> None:
        """Open what a reader has chosen, without keeping the notebook from answering."""
        self._reading(name)
        self._stop.layout.display = None if is_cluster(name) else "none"
        self._work.begin(opened)

    def _on_stop(self, _: Any) -> None:
        self._work.stop()
        self._stop.layout.display = "none"
        self._said.value = styled(
            f'<div class="mnb-card mnb-unknown" role="status">Stopping: what '
            f"{escape(self._name)} has answered stays.</div>"
        )

    def _reading(self, name: str) -> None:
        self._name = name
        verb = "Asking" if is_cluster(name) else "Reading"
        self._said.value = styled(
            f'<div class="mnb-card mnb-unknown" role="status">{verb} {escape(name)} …</div>'
        )

    def _on_progress(self, progress: Progress) -> None:
        self._said.value = styled(progress_card(self._name, progress))

    def _take(self, outcome: Outcome) -> None:
        self._stop.layout.display = "none"
        self._error = outcome if isinstance(outcome, MeshnbError) else None
        self.case = outcome if isinstance(outcome, Case) else None
        # What ships with meshnb is a recording already, and nobody's own.
        shipped = self._name.startswith(_PREFIX)
        self._record.show(None if shipped else self.case)
        self._said.value = styled(f'<div role="status">{self.html()}</div>')
        for follower in self._followers:
            follower(self.case)

    def _on_recorded(self, change: dict[str, Any]) -> None:
        if change["new"] is not None:
            self._begin(change["new"], opens(change["new"]))

    def _on_path(self, change: dict[str, Any]) -> None:
        if change["new"].strip():
            self._recorded.value = None
            name = change["new"].strip()
            self._begin(name, opens(name))

    def _on_upload(self, change: dict[str, Any]) -> None:
        if not change["new"]:
            return
        dropped = change["new"][0]
        # The name that a browser sends is shown, and is never a path.
        path = Path(self._uploads.name) / f"{len(list(Path(self._uploads.name).iterdir()))}.zip"
        path.write_bytes(bytes(dropped["content"]))
        self._recorded.value = None
        label = str(dropped["name"])
        self._begin(label, lambda _: Bundle(path, label=label))


def taken(facts: Facts) -> str:
    """Return when a live cluster was asked, or when a recording was made."""
    verb = "asked" if is_cluster(facts.source.label) else "recorded"
    return f"{verb} {facts.now:%Y-%m-%d %H:%M:%S} UTC"
