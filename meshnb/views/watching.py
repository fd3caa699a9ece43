"""What changed since: ask the mesh again, or choose a second recording, and see it in words."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import groupby
from typing import Any

import ipywidgets
import pandas as pd

from meshnb.errors import MeshnbError
from meshnb.guides.base import Case
from meshnb.guides.pictures import State
from meshnb.guides.shared import plural
from meshnb.guides.since import Since
from meshnb.sources import is_cluster, recordings
from meshnb.sources.progress import Progress
from meshnb.traces.moments import Change
from meshnb.views import tables
from meshnb.views.base import View, css, escape, mark, prose, styled
from meshnb.views.chooser import SourceChooser
from meshnb.views.diagnosis import STATES
from meshnb.views.work import Opens, Outcome, Work, failure, opens, progress_card

_WHOLE = {"description_width": "initial"}
#: So many changes of one kind are drawn; the others are counted, and can be chosen.
_MOST = 50
_TITLES = {
    "object": "Objects",
    "pod": "Pods",
    "control plane": "istiod",
    "proxy": "Proxies",
    "resource": "What proxies hold",
    "certificate": "Certificates",
}
_NOTHING = "There is nothing to compare with yet."


class WatchingView(View):
    """Two moments of a mesh, compared. A cluster is asked again; a recording needs a second one.

    ``since`` has both moments, None as long as there is only one.
    """

    def __init__(self, of: Case | SourceChooser, other: str = "") -> None:
        """Begin with a case or follow a chooser; compare with another source when one is named."""
        self.since: Since | None = None
        self._case: Case | None = None
        self._error: MeshnbError | None = None
        self._live = False
        self._other = other
        self._again = _button("Ask again", "Asks the same cluster the same; compares with before")
        self._again.on_click(self._on_again)
        self._stop = _button("Stop asking", "What was answered until then is compared")
        self._stop.on_click(self._on_stop)
        self._recorded = ipywidgets.Dropdown(
            description="Compare with",
            options=[(f"{one.title} ({one.name})", f"recorded:{one.name}") for one in recordings()],
            value=None,
            style=_WHOLE,
            layout=ipywidgets.Layout(width="auto", max_width="760px"),
        )
        self._path = ipywidgets.Text(
            description="or with a file",
            placeholder="path of a recording, a config dump or manifests",
            continuous_update=False,
            style=_WHOLE,
            layout=ipywidgets.Layout(width="460px"),
        )
        self._card = ipywidgets.HTML()
        self._change = ipywidgets.Dropdown(
            description="Side by side",
            options=[],
            style=_WHOLE,
            layout=ipywidgets.Layout(width="auto", max_width="760px"),
        )
        self._sides = ipywidgets.HTML()
        self._work: Work = Work(self._on_progress, self._take)
        super().__init__(
            [
                ipywidgets.HBox([self._again, self._stop]),
                self._recorded,
                self._path,
                self._card,
                self._change,
                self._sides,
            ]
        )
        self.add_class("mnb-view")
        known = {value for _, value in self._recorded.options}
        self._recorded.value = other if other in known else None
        self._recorded.observe(self._on_other, names="value")
        self._path.observe(self._on_other, names="value")
        self._change.observe(lambda _: self._draw_sides(), names="value")
        if isinstance(of, SourceChooser):
            of.lead(self.show)
        else:
            self.show(of)

    def show(self, case: Case | None) -> None:
        """Begin anew with another case; with none, when nothing could be opened."""
        self._work.stop()
        self._case, self.since, self._error = case, None, None
        self._live = case is not None and is_cluster(case.facts.source.label)
        self._again.layout.display = None if self._live else "none"
        if self._live:
            # It is compared with itself: what was named is another mesh, or long ago.
            self._recorded.value = None
        if case is not None and self._other and not self._live:
            self.compare(self._other)
        else:
            self._draw()

    def compare(self, name: str) -> None:
        """Compare with a source by its name, which is the later moment."""
        self._other = name
        self._work.do(opens(name))

    def verdict(self) -> str:
        """Return what changed as text: how much, then a line for each change."""
        if self.since is None:
            return self.text()
        return "\n".join([self.since.headline(), *self.since.lines()])

    def text(self) -> str:
        """Return what changed as text, or why nothing can be said."""
        if self.since is None:
            return f"✗ {self._error}" if self._error is not None else _NOTHING
        return self.verdict()

    def html(self) -> str:
        """Return what changed as HTML, each change with its two sides."""
        if self.since is None:
            return failure(self._error) if self._error is not None else self._empty()
        return card(self.since)

    def _empty(self) -> str:
        hint = " Ask again when something may have changed." * self._live
        return f'<div class="mnb-card mnb-unknown">{_NOTHING}{hint}</div>'

    def _on_again(self, _: Any) -> None:
        assert self._case is not None
        source = self._case.facts.source
        # The same part of the same cluster, by a source that remembers nothing.
        scope, limits = getattr(source, "scope", None), getattr(source, "limits", None)
        self._other = ""
        self._begin(source.label, partial(opens, scope=scope, limits=limits))

    def _on_stop(self, _: Any) -> None:
        self._work.stop()
        self._stop.layout.display = "none"

    def _on_other(self, change: dict[str, Any]) -> None:
        name = (change["new"] or "").strip()
        if name:
            self._other = name
            self._begin(name, opens)

    def _begin(self, name: str, opening: Callable[[str], Opens]) -> None:
        self._stop.layout.display = None
        self._card.value = styled(
            f'<div class="mnb-card mnb-unknown" role="status">Asking {escape(name)} …</div>'
        )
        self._work.begin(opening(name))

    def _on_progress(self, progress: Progress) -> None:
        label = self._case.facts.source.label if self._case is not None else ""
        self._card.value = styled(progress_card(self._other or label, progress))

    def _take(self, outcome: Outcome) -> None:
        self._error = outcome if isinstance(outcome, MeshnbError) else None
        if isinstance(outcome, Case) and self._case is not None:
            self.since = Since(self._case, outcome)
            if not self._other:
                # The next time it is compared with what is there now.
                self._case = outcome
        elif self._error is not None:
            self.since = None
        self._draw()

    def _draw(self) -> None:
        self._stop.layout.display = "none"
        drawn = self.html() if self.since is None else card(self.since, sides=False)
        self._card.value = styled(f'<div role="status">{drawn}</div>')
        told = [] if self.since is None else _with_sides(self.since)
        self._change.options = [(_short(one.words), place) for place, one in told]
        self._change.value = told[0][0] if told else None
        self._change.layout.display = None if told else "none"
        self._draw_sides()

    def _draw_sides(self) -> None:
        place = self._change.value
        if self.since is None or place is None:
            self._sides.value = ""
        else:
            self._sides.value = styled(sides(self.since, self.since.changes[place]))


def card(since: Since, *, sides: bool = True) -> str:
    """Return what changed as a card, each change with its two sides unless that is not wanted."""
    state = STATES[since.after.diagnosis.verdict]
    if state is State.FINE and not since.same:
        state = State.ODD
    moments = " → ".join(
        f"{case.facts.source.label}, {case.facts.now:%Y-%m-%d %H:%M:%S} UTC"
        for case in (since.before, since.after)
    )
    causes = "".join(
        f"<li>{mark(state, word)} {prose(cause.finding.message)}</li>"
        for found, state, word in (
            (since.new_causes, State.BROKEN, "new problem"),
            (since.gone_causes, State.FINE, "no problem any more"),
            (since.kept_causes, State.BROKEN, "as before"),
        )
        for cause in found
    )
    groups = "".join(
        f"<dt>{escape(_TITLES[about])}</dt><dd>{_listed(since, list(changes), sides=sides)}</dd>"
        for about, changes in groupby(since.changes, key=lambda change: change.about)
    )
    unseen = "".join(
        f"<li>{mark(State.UNKNOWN, 'not compared')} {escape(one)}</li>"
        for one in since.moments.unseen[:_MOST]
    )
    if unseen:
        groups += f'<dt>unknown</dt><dd><ul class="mnb-plain">{unseen}</ul></dd>'
    return (
        f'<section class="mnb-card {css(state)}" aria-label="What changed">'
        f'<div class="mnb-kicker">{escape(moments)}</div>'
        f'<div class="mnb-first">{prose(since.headline())}</div>'
        f'<ul class="mnb-plain">{causes}</ul><dl class="mnb-parts">{groups}</dl></section>'
    )


def _listed(since: Since, changes: list[Change], *, sides: bool) -> str:
    drawn = "".join(f"<li>{_told(since, one, sides=sides)}</li>" for one in changes[:_MOST])
    more = len(changes) - _MOST
    rest = f"<li>and {plural(more, 'more change')}</li>" if more > 0 else ""
    return f'<ul class="mnb-plain">{drawn}{rest}</ul>'


def _told(since: Since, change: Change, *, sides: bool) -> str:
    frame = since.moments.sides(change)
    if not sides or frame.empty:
        return escape(change.words)
    return f"<details><summary>{escape(change.words)}</summary>{_table(since, frame)}</details>"


def sides(since: Since, change: Change) -> str:
    """Return both sides of one change as HTML, and which question shows it."""
    asked = f'<p class="mnb-why">{escape(change.question)}</p>' if change.question else ""
    return f"<p>{escape(change.words)}.</p>{_table(since, since.moments.sides(change))}{asked}"


def _table(since: Since, frame: pd.DataFrame) -> str:
    times = [f"{case.facts.now:%H:%M:%S}" for case in (since.before, since.after)]
    titles = dict(zip(("before", "after"), times, strict=True))
    empty = [name for name in frame if name not in titles and not any(frame[name].fillna(""))]
    frame = frame.drop(columns=empty)
    shown = frame.rename(columns={side: f"{side} ({time})" for side, time in titles.items()})
    return tables.table(shown, "Side by side")


def _with_sides(since: Since) -> list[tuple[int, Change]]:
    return [
        (place, change)
        for place, change in enumerate(since.changes)
        if any(edit.path for edit in change.edits)
    ]


def _short(words: str) -> str:
    return words if len(words) <= 100 else f"{words[:99]}…"


def _button(title: str, tooltip: str) -> ipywidgets.Button:
    return ipywidgets.Button(
        description=title, tooltip=tooltip, layout=ipywidgets.Layout(width="auto", display="none")
    )
