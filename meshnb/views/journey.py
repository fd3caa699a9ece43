"""The way of a request as SVG: a box for each place from left to right, further ways below."""

from __future__ import annotations

from functools import cached_property

from meshnb.guides.pictures import Journey, Link, State, Stay
from meshnb.views.base import css, escape

#: Sizes in pixels of the drawing, before it is scaled to the room there is.
WIDTH, _GAP_X, _GAP_Y, _MARGIN = 226, 32, 18, 4
_HEAD, _LINE, _FOOT = 30, 18, 8
#: Room for the arrow with which it all begins.
_START = 26
#: So many characters fit in a box; the whole text is in its title.
_NAME, _WORDS = 25, 32


def journey(shown: Journey) -> str:
    """Return the way as SVG."""
    layout = _Layout(shown)
    arrows = "".join(_arrow(layout, place, stay) for place, stay in enumerate(shown.stays))
    boxes = "".join(_box(stay, *layout.corners[place]) for place, stay in enumerate(shown.stays))
    right, bottom = layout.size
    told = "; ".join(shown.lines())
    return (
        '<div class="mnb-scroll mnb-drawn" tabindex="0" role="group" '
        f'aria-label="The way of {escape(shown.title)}">'
        f'<svg class="mnb-journey" viewBox="0 0 {right} {bottom}" width="{right}" '
        f'height="{bottom}" role="img" aria-label="{escape(told)}">{arrows}{boxes}</svg></div>'
    )


class _Layout:
    """Where each box lies: a step to the right of the one before it, further ways below."""

    def __init__(self, shown: Journey) -> None:
        self._stays = shown.stays
        self.corners: dict[int, tuple[int, int]] = {}
        top = _MARGIN
        for place, stay in enumerate(shown.stays):
            if stay.after is None:
                top = self._put(place, _MARGIN + _START, top) + _GAP_Y

    def _put(self, place: int, left: int, top: int) -> int:
        """Put a box and those after it; return how far down they reach."""
        self.corners[place] = (left, top)
        bottom = top + height(self._stays[place])
        below = top
        for number, stay in enumerate(self._stays):
            if stay.after == place:
                below = self._put(number, left + WIDTH + _GAP_X, below) + _GAP_Y
        return max(bottom, below - _GAP_Y)

    @cached_property
    def size(self) -> tuple[int, int]:
        right = max((x for x, _ in self.corners.values()), default=0) + WIDTH + _MARGIN
        bottoms = [y + height(self._stays[place]) for place, (_, y) in self.corners.items()]
        return right, max(bottoms, default=0) + _MARGIN


def height(stay: Stay) -> int:
    """Return how high the box of a stay is."""
    lines = len(stay.links) or 1
    return _HEAD + (_LINE if stay.when else 0) + _LINE * lines + _FOOT


def _arrow(layout: _Layout, place: int, stay: Stay) -> str:
    x, y = layout.corners[place]
    y += _HEAD // 2
    kind = "" if stay.links else ' class="mnb-unreached"'
    if stay.after is None:
        start = f"M{_MARGIN} {y}"
    else:
        from_x, from_y = layout.corners[stay.after]
        from_x, from_y = from_x + WIDTH, from_y + _HEAD // 2
        middle = from_x + _GAP_X // 2
        start = f"M{from_x} {from_y}H{middle}V{y}"
    return (
        f'<g{kind}><path class="mnb-wire-line" d="{start}H{x - 8}"/>'
        f'<path class="mnb-head" d="M{x - 9} {y - 5}L{x} {y}L{x - 9} {y + 5}Z"/></g>'
    )


def _box(stay: Stay, x: int, y: int) -> str:
    lines = []
    line = y + _HEAD + 12
    if stay.when:
        lines.append(_text(x + 12, line, f"if {stay.when}", "mnb-small"))
        line += _LINE
    if not stay.links:
        lines.append(_text(x + 12, line, "· not reached", "mnb-small"))
    for link in stay.links:
        lines.append(_link(link, x, line))
        line += _LINE
    state = stay.state
    ends = f"{state.sign} " if state is not State.FINE else ""
    return (
        f'<g class="{css(state)}"><title>{escape(stay.who)}</title>'
        f'<rect x="{x}" y="{y}" width="{WIDTH}" height="{height(stay)}" rx="6"/>'
        f'<text class="mnb-title" x="{x + 12}" y="{y + 20}">'
        f"{escape(_cut(ends + stay.who, _NAME))}</text>{''.join(lines)}</g>"
    )


def _link(link: Link, x: int, y: int) -> str:
    told = "" if link.state in (State.FINE, State.UNREACHED) else link.word or link.state.word
    word = f" ({told})" if told else ""
    return (
        f'<g class="mnb-hop {css(link.state)}"><title>{escape(link.detail)}</title>'
        f'<text class="mnb-hop-sign" x="{x + 12}" y="{y}">{escape(link.state.sign)}</text>'
        f'<text class="mnb-hop-name" x="{x + 30}" y="{y}">{escape(link.title + word)}</text></g>'
    )


def _text(x: int, y: int, text: str, kind: str) -> str:
    return (
        f'<text class="{kind}" x="{x}" y="{y}"><title>{escape(text)}</title>'
        f"{escape(_cut(text, _WORDS))}</text>"
    )


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
