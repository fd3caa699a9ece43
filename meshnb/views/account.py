"""An account as a card: its picture, then every hop or rung, each to be opened to its proofs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from meshnb.guides.accounts import Account, Part, rows_of
from meshnb.guides.excerpts import excerpt
from meshnb.guides.journeys import journey
from meshnb.guides.originals import Originals
from meshnb.guides.pictures import State, TimeLine
from meshnb.guides.shared import plural
from meshnb.tables import TABLES
from meshnb.traces.ends.base import ConnectionTrace, End
from meshnb.traces.ends.transport import Held
from meshnb.traces.rungs.ladder import RUNGS
from meshnb.views import tables
from meshnb.views.base import css, dot, escape, mark, prose
from meshnb.views.pictures import picture

_KINDS = {"request": "One request", "change": "One change", "connection": "One connection"}
#: So many of the things that were passed over are shown at once; the rest is to be opened.
_FEW = 4
#: A headline has no more characters, if it can be told in two sentences.
_HEADLINE = 240


def card(account: Account, originals: Originals, *, beside: str = "") -> str:
    """Return an account as a card; ``beside`` is HTML that stands before its picture."""
    label = originals.facts.source.label
    first, then = _headline(account.says)
    drawn = "" if account.kind == "change" else picture(journey(account))
    parts = _ladder(account, originals) if account.kind == "change" else _hops(account, originals)
    return (
        f'<section class="mnb-card {css(account.state)}" '
        f'aria-label="{_KINDS[account.kind]}: {escape(account.title)}">'
        f'<div class="mnb-kicker">{_KINDS[account.kind]} · {escape(label)}</div>'
        f'<div class="mnb-first">{mark(account.state, account.word)} {prose(first)}</div>'
        f"{f'<p>{prose(then)}</p>' if then else ''}"
        f"{beside}{drawn}{parts}{_undecided(account)}</section>"
    )


def _headline(says: str) -> tuple[str, str]:
    """Return what stands large above everything else, and the rest of a sentence too long for it.

    A proxy's error message in full is no headline.
    """
    first, colon, then = says.partition(": ")
    if len(says) <= _HEADLINE or not colon:
        return says, ""
    return f"{first}:", then


def _undecided(account: Account) -> str:
    if not account.undecided:
        return ""
    reasons = "".join(f"<li>{mark(State.UNKNOWN)} {escape(one)}</li>" for one in account.undecided)
    return f'<p>What cannot be decided, and why:</p><ul class="mnb-plain">{reasons}</ul>'


# --- Hops ----------------------------------------------------------------------------------------


def _hops(account: Account, originals: Originals) -> str:
    lines = []
    where = ("", "")
    for part in account.parts:
        if (part.where, part.when) != where:
            where = (part.where, part.when)
            lines.append(f'<li class="mnb-where">at {escape(part.where)}{_when(part)}</li>')
        first = part is account.broken
        lines.append(f'<li class="{css(part.state)}">{_hop(part, originals, first=first)}</li>')
    return f'<ol class="mnb-hops">{"".join(lines)}</ol>'


def _hop(part: Part, originals: Originals, *, first: bool) -> str:
    ends = " <strong>← it ends here</strong>" if first else ""
    title = f"{_state(part)} <strong>{escape(part.title)}</strong>"
    head = f"{title}: {escape(part.says)}{ends}"
    inside = "".join(_inside(part, originals))
    if not inside:
        return f"<div>{head}</div>"
    opened = " open" if first else ""
    return (
        f"<details{opened}><summary>{head}</summary>"
        f'<div class="mnb-hop-inside">{inside}</div></details>'
    )


def _when(part: Part) -> str:
    return f", <em>if {escape(part.when)}</em>" if part.when else ""


def _state(part: Part) -> str:
    if part.state is State.FINE:
        sign = escape(part.state.sign)
        return f'<span role="img" aria-label="{escape(part.word)}">{sign}</span>'
    return mark(part.state, part.word)


def _inside(part: Part, originals: Originals) -> Iterator[str]:
    """Yield what a part opens to: what was passed over, rows, Envoy's resource, the object."""
    if part.passed_over:
        yield _passed_over(part)
    for cited, rows in rows_of(originals.facts, part):
        questions = ", ".join(dict.fromkeys(rows["question"].dropna()))
        numbers = ", ".join(map(str, cited.rows))
        noun = "row" if len(cited.rows) == 1 else "rows"
        whence = f", from {questions}" if questions else ""
        shown = rows.drop(columns="question")
        yield tables.excerpt(excerpt(f"{cited.table} {noun} {numbers}{whence}", shown))
        if TABLES[cited.table].istioctl:
            command = TABLES[cited.table].istioctl.replace("POD.NAMESPACE", part.where)
            yield f"<p>The same with <code>{escape(command)}</code>.</p>"
    if part.resource:
        since = f", so since {part.since:%Y-%m-%d %H:%M:%S} UTC" if part.since is not None else ""
        yield (
            f"<p>In the proxy: <code>{escape(part.resource)}</code>{since}.</p>"
            f"{_yaml(originals.resource(part.where, part.resource), part.resource)}"
        )
    for title in filter(None, part.object.split(", ")):
        yield (
            f"<p>Made from <code>{escape(title)}</code>.</p>{_yaml(originals.object(title), title)}"
        )


def _passed_over(part: Part) -> str:
    lines = [
        f"<li><strong>{escape(name)}</strong>: {escape(why)}</li>" for name, why in part.passed_over
    ]
    first, rest = lines[:_FEW], lines[_FEW:]
    more = (
        f"<details><summary>and {len(rest)} more</summary>"
        f'<ul class="mnb-plain">{"".join(rest)}</ul></details>'
        if rest
        else ""
    )
    return f'<p>Passed over:</p><ul class="mnb-plain">{"".join(first)}</ul>{more}'


def _yaml(text: str, title: str) -> str:
    if not text:
        return ""
    return f'<pre class="mnb-yaml" tabindex="0" aria-label="{escape(title)}">{escape(text)}</pre>'


# --- Rungs ---------------------------------------------------------------------------------------


def _ladder(account: Account, originals: Originals) -> str:
    rungs = "".join(
        f'<li class="{css(part.state)}">{dot(part.state)}{_rung(part, account, originals)}</li>'
        for part in account.parts
    )
    wanted = _yaml(originals.object(account.title), account.title)
    stored = f"<details><summary>The object as it is stored</summary>{wanted}</details>"
    return f'<ol class="mnb-ladder">{rungs}</ol>{stored if wanted else ""}'


def _rung(part: Part, account: Account, originals: Originals) -> str:
    ends = " <strong>← it stops here</strong>" if part is account.broken else ""
    asked = f'<span class="mnb-decided">{escape(RUNGS[part.title])}</span>'
    head = f'<span class="mnb-name">{escape(part.title)}</span> {asked}<br>'
    said = f"{_word(part)}{escape(part.says)}{ends}"
    inside = "".join(_inside(part, originals))
    proof = f"<details><summary>The rows</summary>{inside}</details>" if inside else ""
    return f"{head}{said}{proof}{_standings(part, account, originals)}"


def _word(part: Part) -> str:
    return "" if part.state is State.FINE else f"{mark(part.state, part.word)} "


def _standings(part: Part, account: Account, originals: Originals) -> str:
    if not part.standings:
        return ""
    order = (State.BROKEN, State.UNKNOWN, State.FINE, State.UNREACHED)
    lines = "".join(
        f'<li class="{css(one.state)}">{_hop(one, originals, first=False)}</li>'
        for one in sorted(part.standings, key=lambda one: order.index(one.state))
    )
    opened = " open" if part is account.broken else ""
    who = plural(
        len(part.standings),
        "istiod" if part.title == "seen" else "proxy",
        "" if part.title == "seen" else "proxies",
    )
    return f'<details{opened}><summary>{who}</summary><ol class="mnb-hops">{lines}</ol></details>'


# --- Ends ----------------------------------------------------------------------------------------


def ends(trace: ConnectionTrace, lines: Iterable[TimeLine]) -> str:
    """Return both ends of a connection side by side, then their certificates on lines of time."""
    drawn = "".join(
        _end(role, end, at_fault=trace.fault == role)
        for role, end in (("client", trace.client), ("server", trace.server))
    )
    others = ""
    if len(trace.endpoints) > 1:
        every = "".join(
            f"<li>{escape(name)}: {escape(said)}</li>" for name, said in trace.endpoints
        )
        others = (
            f"<details><summary>{len(trace.endpoints)} endpoints may be chosen</summary>"
            f'<ul class="mnb-plain">{every}</ul></details>'
        )
    return f'<div class="mnb-ends">{drawn}</div>{others}{"".join(map(picture, lines))}'


def _end(role: str, end: End, *, at_fault: bool) -> str:
    state = State.BROKEN if at_fault else State.FINE
    fault = f" {mark(State.BROKEN, 'at fault')}" if at_fault else ""
    speaks = "speaks" if role == "client" else "takes"
    lines = [
        (speaks, end.speaks or "not known"),
        ("shows", _held(end.own)),
        ("trusts", _held(end.roots)),
        ("by", ", ".join(end.objects)),
        ("its log", end.log),
    ]
    drawn = "".join(f"<dt>{name}</dt><dd>{escape(said)}</dd>" for name, said in lines if said)
    return (
        f'<div class="mnb-end {css(state)}"><h3>{role}: {escape(end.name)}{fault}</h3>'
        f'<dl class="mnb-parts">{drawn}</dl></div>'
    )


def _held(held: Held | None) -> str:
    if held is None:
        return ""
    if held.missing or held.unseen:
        return f"{held.name}: {held.missing or held.unseen}"
    return f"{held.name}: {'; '.join(', '.join(one.sans) or one.subject for one in held.chain)}"
