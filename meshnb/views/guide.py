"""A guide as cards to walk through: question, asked, answer, reading, next."""

from __future__ import annotations

from typing import Any

import ipywidgets

from meshnb.guides import GUIDES, Case, Page, Walk
from meshnb.guides.asked import asked
from meshnb.guides.pictures import State
from meshnb.guides.text import story, titles, verdicts, visited
from meshnb.views import tables
from meshnb.views.base import View, css, escape, mark, prose, styled
from meshnb.views.chooser import SourceChooser
from meshnb.views.diagnosis import reasons, sentence
from meshnb.views.pictures import picture

#: No page has more ways on than this, and so many steps of the trail can be gone back to.
_WAYS, _TRAIL = 3, 16
#: From so many options on, a list to open is easier to read than one that stands there whole.
_MANY = 9
#: The static form of a step shows fewer rows, as all steps stand below one another.
_STATIC_ROWS = 6


class GuideView(View):
    """Draws one walk. It holds no rule and fetches nothing; ``walk`` is its only state."""

    def __init__(self, guide: str, of: Case | SourceChooser | None) -> None:
        """Stand at the first step of a guide, for a case or for what is chosen in a chooser."""
        self._guide = GUIDES[guide]
        self.walk: Walk | None = None
        self._first = 0
        self._trail = [_button("", self._to(place)) for place in range(_TRAIL)]
        self._head = ipywidgets.HTML()
        self._radio = ipywidgets.RadioButtons(options=[], layout=_wide(), style=_WHOLE)
        self._list = ipywidgets.Dropdown(options=[], layout=_wide(), style=_WHOLE)
        self._tell = _button("Show the answer", self._on_tell)
        self._body = ipywidgets.HTML()
        self._ways = [_button("", self._way(number)) for number in range(_WAYS)]
        self._back = _button("Back", self._on_back)
        self._said = ipywidgets.HTML()
        trail, ways = (
            ipywidgets.HBox(children, layout=ipywidgets.Layout(flex_flow="row wrap"))
            # The obvious way comes first in the order of focus, too.
            for children in (self._trail, [*self._ways, self._back])
        )
        trail.add_class("mnb-trail-box")
        ways.add_class("mnb-ways")
        self._box = ipywidgets.VBox(
            [self._head, self._radio, self._list, self._tell, self._body, ways, self._said]
        )
        self._box.add_class("mnb-box")
        super().__init__([trail, self._box])
        self.add_class("mnb-view")
        for choice in (self._radio, self._list):
            choice.observe(self._on_pick, names="value")
        if isinstance(of, SourceChooser):
            of.lead(self.begin)
        else:
            self.begin(of)

    def begin(self, case: Case | None) -> None:
        """Stand at the first step, for another case; nowhere, when there is none."""
        self.stand(Walk.start(self._guide, case) if case is not None else None)

    def take_up(self, guide: str, case: Case | None) -> None:
        """Stand at the first step of another guide."""
        self._guide = GUIDES[guide]
        self.begin(case)

    def stand(self, walk: Walk | None) -> None:
        """Show another walk."""
        self.walk = walk
        self._draw()

    @property
    def obvious(self) -> Walk | None:
        """The walk from the beginning along the obvious way to the end."""
        return Walk.start(self._guide, self.walk.case).finish() if self.walk is not None else None

    def verdicts(self) -> str:
        """Return what each step finds out along the obvious way, a line each."""
        return verdicts(self.obvious) if self.obvious is not None else _NOWHERE

    def html(self) -> str:
        """Return every step along the obvious way, the last one open."""
        walk = self.obvious
        return path(walk) if walk is not None else f"<p>{_NOWHERE}</p>"

    def text(self) -> str:
        """Return every step along the obvious way as text."""
        return story(self.obvious) if self.obvious is not None else _NOWHERE

    def _draw(self) -> None:
        walk = self.walk
        state = walk.page.state if walk is not None else State.UNKNOWN
        for other in State:
            (self._box.add_class if other is state else self._box.remove_class)(css(other))
        shown: list[ipywidgets.DOMWidget] = []
        if walk is None:
            self._head.value = styled(_NOWHERE)
            self._body.value = self._said.value = ""
        else:
            self._head.value = styled(head(walk))
            self._body.value = styled(body(walk))
            self._said.value = styled(_said(walk))
            shown = [*self._draw_trail(walk), *self._draw_pick(walk), *self._draw_ways(walk)]
        # What stays is not touched: a button that vanishes for a moment has lost the focus.
        for part in (
            *self._trail,
            *(self._radio, self._list, self._tell),
            *(self._back, *self._ways),
        ):
            part.layout.display = None if part in shown else "none"

    def _draw_trail(self, walk: Walk) -> list[ipywidgets.DOMWidget]:
        # A walk that is longer than the row of buttons shows where it was last.
        every = visited(walk)
        names = titles(every)
        stops = list(enumerate(every))[-_TRAIL:]
        self._first = stops[0][0]
        for button, (place, stop) in zip(self._trail, stops, strict=False):
            here = place == len(walk.trail) - 1
            sign = "" if here else f"{stop.state.sign} "
            button.description = f"{sign}{place + 1} {names[place]}"
            button.tooltip = "You are here" if here else f"Back to here: {stop.verdict}"
            (button.add_class if here else button.remove_class)("mnb-here")
        return self._trail[: len(stops)]

    def _draw_ways(self, walk: Walk) -> list[ipywidgets.DOMWidget]:
        forks = [] if walk.blocked else list(walk.forks)[:_WAYS]
        for place, (button, fork) in enumerate(zip(self._ways, forks, strict=False)):
            # Behind the cause there is more to see, and nothing that one has to see.
            obvious = place == 0 and not walk.page.causes
            button.description = f"Next: {fork.label}" if obvious else fork.label
            button.tooltip = "The obvious way" if obvious else "Another way on"
            button.button_style = "primary" if obvious else ""
        self._back.disabled = len(walk.trail) == 1
        return [*self._ways[: len(forks)], self._back]

    def _draw_pick(self, walk: Walk) -> list[ipywidgets.DOMWidget]:
        pick = walk.page.pick
        if pick is None:
            return []
        choice = self._radio if len(pick.options) < _MANY else self._list
        choice.unobserve(self._on_pick, names="value")
        options = [(option.label, option.value) for option in pick.options]
        if list(choice.options) != options:
            choice.value = None
            choice.options = options
        choice.value = walk.picked or None
        choice.description = pick.title
        choice.observe(self._on_pick, names="value")
        return [choice, self._tell] if pick.asks_first and not walk.picked else [choice]

    def _on_pick(self, change: dict[str, Any]) -> None:
        if self.walk is not None and change["new"] is not None:
            self.stand(self.walk.choose(change["new"]))

    def _on_tell(self, _: Any) -> None:
        if self.walk is not None and self.walk.page.pick is not None:
            self.stand(self.walk.choose(self.walk.page.pick.obvious))

    def _move(self, walk: Walk) -> None:
        self.stand(walk)
        # A step begins at its top: that is where one reads on, with or without a mouse.
        self._trail[len(walk.trail) - 1 - self._first].focus()

    def _on_back(self, _: Any) -> None:
        if self.walk is not None:
            self._move(self.walk.back())

    def _to(self, place: int) -> Any:
        def go(_: Any) -> None:
            if self.walk is not None:
                self._move(self.walk.back(to=self._first + place))

        return go

    def _way(self, place: int) -> Any:
        def go(_: Any) -> None:
            if self.walk is not None and place < len(self.walk.forks):
                self._move(self.walk.choose(self.walk.forks[place].value).next())

        return go


_NOWHERE = "Nothing is open yet: choose a mesh above."
#: Descriptions are sentences, and are shown whole.
_WHOLE = {"description_width": "initial"}


def _wide() -> ipywidgets.Layout:
    return ipywidgets.Layout(width="auto", max_width="900px")


def _button(label: str, action: Any) -> ipywidgets.Button:
    button = ipywidgets.Button(description=label, layout=ipywidgets.Layout(width="auto"))
    button.on_click(action)
    return button


def _said(walk: Walk) -> str:
    """Say what changed, for those who do not see the card, and why one cannot go on."""
    reasons = "".join(
        f"<li>{mark(State.ODD, 'not yet')} {escape(reason)}</li>"
        for reason in dict.fromkeys((*walk.blocked, *walk.refused))
    )
    title = f"Step {len(walk.trail)}: {walk.here.step.title}. {walk.page.verdict}"
    return (
        f'<div role="status" aria-live="polite"><span style="position:absolute;left:-9999px">'
        f'{escape(title)}</span><ul class="mnb-plain">{reasons}</ul></div>'
    )


def step(walk: Walk, *, rows: int = tables.MOST) -> str:
    """Return the card of the step where a walk stands."""
    return (
        f'<section class="mnb-card {css(walk.page.state)}" '
        f'aria-label="{escape(walk.here.step.title)}">'
        f"{head(walk)}{body(walk, rows=rows)}</section>"
    )


def head(walk: Walk) -> str:
    """Return the question of a step, and why it is put now."""
    here = walk.here
    guide = here.guide
    place = [one.name for one in guide.steps].index(here.step.name) + 1
    return (
        f'<div class="mnb-kicker">{escape(guide.title)} · step {place} of {len(guide.steps)} · '
        f"{escape(walk.case.facts.source.label)}</div>"
        f'<div class="mnb-question" role="heading" aria-level="3">'
        f"{escape(here.step.question)}</div>"
        f'<div class="mnb-why">{prose(here.step.why)}</div>'
    )


def body(walk: Walk, *, rows: int = tables.MOST) -> str:
    """Return what was asked for a step, what came back, what it means, and the verdict."""
    page = walk.page
    verdict = f'<div class="mnb-verdict">{mark(page.state)} {prose(page.verdict)}</div>'
    parts = [
        ("asked", _asked(walk)),
        ("answer", _answer(page, rows)),
        ("reading", _reading(page)),
        ("verdict", verdict),
    ]
    if page.causes:
        # Here the answer stands above already: first why it is thought to be that, then by whom.
        asked, *_ = parts
        whys = [part for found in page.causes for part in reasons(found)]
        parts = [*whys, ("reading", _reading(page)), asked, ("verdict", verdict)]
    drawn = "".join(f"<dt>{name}</dt><dd>{part}</dd>" for name, part in parts if part)
    return f'{"".join(map(sentence, page.causes))}<dl class="mnb-parts">{drawn}</dl>'


def _asked(walk: Walk) -> str:
    facts = walk.case.facts
    lines = [f"<li>{escape(one)}</li>" for one in asked(facts, walk.here.step.asked)]
    lines += [
        f"<li>{mark(State.UNKNOWN, gap.state)} {escape(gap)}</li>"
        for gap in facts.gaps(*walk.here.step.asked)[:5]
    ]
    return f'<ul class="mnb-asked">{"".join(lines)}</ul>'


def _answer(page: Page, rows: int) -> str:
    drawn = picture(page.picture) if page.picture is not None else ""
    # Where there is a cause, its proofs stand under the reason for it.
    return drawn + "".join(
        tables.excerpt(part, most=rows) for part in page.tables if not page.causes
    )


def _reading(page: Page) -> str:
    told = f"<p>{prose(page.reading)}</p>" if page.reading else ""
    if not page.command:
        return told
    command = f'<code class="mnb-command">{escape(page.command)}</code>'
    return f"{told}<div>The same on a terminal:{command}</div>"


def path(walk: Walk) -> str:
    """Return every step of a walk as HTML: a list of verdicts, then cards, the last one open."""
    stops = visited(walk)
    named = list(zip(titles(stops), stops, strict=True))
    trail = "".join(
        f'<li class="{css(stop.state)}">{mark(stop.state)} '
        f"<strong>{number}. {escape(title)}</strong> {prose(stop.verdict)}"
        + (f' <span class="mnb-decided">[{escape(stop.decided)}]</span>' if stop.decided else "")
        + "</li>"
        for number, (title, stop) in enumerate(named, start=1)
    )
    cards = "".join(
        f"<details><summary>{number}. {escape(title)}</summary>"
        f"{step(walk.back(to=number - 1), rows=_STATIC_ROWS)}</details>"
        for number, (title, _) in enumerate(named[:-1], start=1)
    )
    reasons = "".join(f"<p>{mark(State.ODD, 'not yet')} {escape(one)}</p>" for one in walk.blocked)
    return f'<ol class="mnb-trail">{trail}</ol>{cards}{step(walk, rows=_STATIC_ROWS)}{reasons}'
