"""Pictures of guides as HTML and SVG: they need no script and no network, and follow the theme.

Every picture says what it shows in words, too: in its caption, its cells, or a list beside it.
"""

from __future__ import annotations

import re
from datetime import datetime

from meshnb.guides.pictures import (
    Chain,
    Journey,
    MeshGraph,
    Picture,
    PortsMap,
    Span,
    State,
    SyncMap,
    TimeLine,
)
from meshnb.views.base import css, dot, escape, mark
from meshnb.views.graph import graph
from meshnb.views.journey import journey

_JOINT = re.compile(r"([/|.])(?=\w)")


def picture(shown: Picture) -> str:
    """Return a picture as HTML."""
    match shown:
        case MeshGraph():
            return _figure(_counted(shown.title, len(shown.nodes), shown.of), graph(shown))
        case PortsMap():
            return _ports(shown)
        case SyncMap():
            return _sync(shown)
        case Chain():
            return _chain(shown)
        case TimeLine():
            return _line(shown)
        case Journey():
            return _figure(_ways(shown), journey(shown))


def _counted(title: str, shown: int, of: int) -> str:
    return f"{title} · {shown} of {of}" if shown < of else title


def _ways(shown: Journey) -> str:
    return f"{shown.title} · {shown.left_out} more ways" if shown.left_out else shown.title


def _figure(title: str, drawn: str) -> str:
    return f"<figure><figcaption>{escape(title)}</figcaption>{drawn}</figure>"


def _ports(shown: PortsMap) -> str:
    parts = []
    for istiod in dict.fromkeys(port.istiod for port in shown.ports):
        rows = "".join(
            f'<tr class="{css(port.state)}"><td>{escape(port.used_by)}</td>'
            f'<td><span class="mnb-wire"><span class="mnb-pill"><span role="img" '
            f'aria-label="{escape(port.state.word)}">{escape(port.state.sign)}</span>{port.port}</span>'
            f"</span></td><td>{escape(port.serves)}</td><td>{escape(port.protocol)}</td>"
            f"<td>{escape(port.how)}</td></tr>"
            for port in shown.ports
            if port.istiod == istiod
        )
        parts.append(
            '<div class="mnb-scroll" tabindex="0" role="group" '
            f'aria-label="ports of {escape(istiod)}">'
            f'<table class="mnb-ports"><caption>{escape(istiod)}</caption><thead><tr>'
            '<th scope="col" class="mnb-number">used by</th><th scope="col">port</th>'
            '<th scope="col">for</th><th scope="col">protocol</th>'
            f'<th scope="col">how it answered</th></tr></thead><tbody>{rows}</tbody></table></div>'
        )
    return _figure(shown.title, "".join(parts))


def _sync(shown: SyncMap) -> str:
    head = "".join(f'<th scope="col">{escape(kind)}</th>' for kind in shown.kinds)
    rows = ""
    for proxy, cells in shown.rows:
        drawn = "".join(
            f'<td class="{css(cell.state)}"><span aria-hidden="true">{escape(cell.state.sign)}'
            f"</span> {escape(cell.word)}"
            + (f' <span class="mnb-age">{escape(cell.age)}</span>' if cell.age else "")
            + "</td>"
            for cell in cells
        )
        rows += f'<tr><th scope="row">{escape(proxy)}</th>{drawn}</tr>'
    title = _counted(shown.title, len(shown.rows), shown.of)
    return _figure(
        f"{title}; the time is how long ago it was sent",
        f'<div class="mnb-scroll" tabindex="0" role="group" aria-label="{escape(title)}">'
        f'<table class="mnb-sync"><thead><tr><th scope="col">proxy</th>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>",
    )


def _chain(shown: Chain) -> str:
    kind = "mnb-ladder" if shown.ladder else "mnb-path"
    links = "".join(
        f'<li class="{css(link.state)}">{dot(link.state)}'
        f'<span class="mnb-name">{escape(link.title)}</span> {_breakable(link.detail)}</li>'
        for link in shown.links
    )
    return _figure(shown.title, f'<ol class="{kind}">{links}</ol>')


def _breakable(text: str) -> str:
    """Return text as HTML that may be broken within long names, where a person would break them."""
    return _JOINT.sub(r"\1<wbr>", escape(" ".join(text.split())))


def _line(shown: TimeLine) -> str:
    first = min([shown.now, *(span.start for span in shown.spans)])
    last = max([shown.now, *(span.end for span in shown.spans)])
    rows = "".join(
        f'<tr><th scope="row">{escape(span.name)}</th>'
        f'<td class="mnb-bar">{_bar(span, shown.now, first, last)}</td>'
        f"<td>{mark(span.state, span.note)}</td></tr>"
        for span in shown.spans
    )
    title = _counted(shown.title, len(shown.spans), shown.of)
    return _figure(
        f"{title}; from {first:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M} UTC, the upright line is "
        f"{shown.now:%Y-%m-%d %H:%M}, when this was recorded",
        f'<div class="mnb-scroll" tabindex="0" role="group" aria-label="{escape(title)}">'
        f'<table class="mnb-line"><tbody>{rows}</tbody></table></div>',
    )


def _bar(span: Span, now: datetime, first: datetime, last: datetime) -> str:
    whole = (last - first).total_seconds() or 1.0

    def place(moment: datetime) -> float:
        return 400 * (moment - first).total_seconds() / whole

    fill = f"var(--mnb-{span.state.name.lower()})"
    start, end, here = place(span.start), place(span.end), place(now)
    dashes = "" if span.state is State.FINE else ' stroke-dasharray="5 3"'
    return (
        '<svg viewBox="0 0 400 18" width="400" height="18" aria-hidden="true" '
        'preserveAspectRatio="none">'
        f'<rect x="{start:.1f}" y="5" width="{max(end - start, 2):.1f}" height="8" rx="3" '
        f'fill="{fill}" fill-opacity="0.35" stroke="{fill}"{dashes}/>'
        f'<line x1="{here:.1f}" y1="0" x2="{here:.1f}" y2="18" stroke="currentColor" '
        'stroke-width="2"/>'
        "</svg>"
    )
