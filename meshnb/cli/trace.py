"""`meshnb trace`: one request, one change or one connection, hop by hop."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from meshnb.cli.base import FEW, PROBLEM, SAMPLE_ROWS, Page, facts_of, note_damage, of_source, say
from meshnb.errors import UsageError

if TYPE_CHECKING:
    from meshnb.guides.accounts import Account, Part
    from meshnb.tables import Facts


@click.group(invoke_without_command=True)
@click.pass_context
def trace(context: click.Context) -> None:
    """Follow one request, one change or one connection, hop by hop."""
    if context.invoked_subcommand is None:
        say(context.get_help() + "\n")


_TRACE_CODES = (
    "Exit codes: 0 it gets through, or is in force; 1 it does not, not always, or that cannot be "
    "decided; 2 there is no such request, object or end; 3 the source cannot be used."
)
_as_json = click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print the trace as JSON, format 1; its outcome is passes, broken, varies or undecided.",
)
_all_hops = click.option(
    "--all", "everything", is_flag=True, help="Leave nothing out: all that was passed over."
)


@trace.command("request", epilog=_TRACE_CODES)
@of_source
@click.argument("words", metavar="REQUEST", required=False)
@click.option("--line", type=click.IntRange(min=0), help="A row of the table access_log instead.")
@_as_json
@_all_hops
@click.pass_context
def trace_request(
    context: click.Context,
    source: str,
    words: str | None,
    *,
    line: int | None,
    as_json: bool,
    everything: bool,
) -> None:
    """Follow a request through the proxies.

    REQUEST is one text, such as "GET /reviews/0 with header end-user: jason from client.bookinfo to
    reviews:9080". What is not named was not sent.
    """
    from meshnb.guides.accounts import logged, of_request  # noqa: PLC0415  brings pandas
    from meshnb.traces.request import Request, follow_request  # noqa: PLC0415

    facts = facts_of(source)
    if words is not None and line is None:
        request, seen = Request.parse(facts, words), ""
    elif line is not None and words is None:
        request, seen = Request.of_line(facts, line), logged(facts, line)
    else:
        raise UsageError("Name one request.", next_step="Write REQUEST, or --line ROW.")
    found = follow_request(facts, request)
    _traced(context, facts, of_request(found), found.to_json(), seen, (as_json, everything))


@trace.command("change", epilog=_TRACE_CODES)
@of_source
@click.argument("subject", metavar="KIND/NAMESPACE/NAME")
@_as_json
@_all_hops
@click.pass_context
def trace_change(
    context: click.Context, source: str, subject: str, *, as_json: bool, everything: bool
) -> None:
    """Follow an object from being stored to being used.

    One that is gone, and is still held by a proxy, can be followed as well.
    """
    from meshnb.guides.accounts import follow_written, of_change  # noqa: PLC0415  brings pandas

    facts = facts_of(source)
    found = follow_written(facts, subject)
    _traced(context, facts, of_change(found), found.to_json(), "", (as_json, everything))


@trace.command("connection", epilog=_TRACE_CODES)
@of_source
@click.argument("client", metavar="CLIENT")
@click.argument("server", metavar="SERVER:PORT")
@_as_json
@_all_hops
@click.pass_context
def trace_connection(
    context: click.Context,
    source: str,
    client: str,
    server: str,
    *,
    as_json: bool,
    everything: bool,
) -> None:
    """Look at both ends of a connection: TLS, certificates and trust.

    CLIENT is a pod as POD.NAMESPACE, a workload, or `outside`; SERVER is a Service, a pod, an
    address or an external host.
    """
    from meshnb.guides.accounts import of_connection  # noqa: PLC0415  brings pandas
    from meshnb.traces.connection import follow_connection  # noqa: PLC0415

    facts = facts_of(source)
    found = follow_connection(facts, client, server)
    _traced(context, facts, of_connection(found), found.to_json(), "", (as_json, everything))


def _traced(
    context: click.Context,
    facts: Facts,
    account: Account,
    document: Mapping[str, Any],
    seen: str,
    asked: tuple[bool, bool],
) -> None:
    """Print what a trace found, and end with the exit code of it."""
    as_json, everything = asked
    if as_json:
        head = {"format": 1, "kind": account.kind, "outcome": account.verdict}
        log = {"logged": seen} if seen else {}
        say(json.dumps({**head, **log, **document}, indent=1) + "\n")
    else:
        page = Page()
        _account(page, facts, account, seen, everything=everything)
        page.show()
    note_damage(facts.source, facts.source.label)
    context.exit(0 if account.verdict == "passes" else PROBLEM)


_COLOURS = {"passes": "green", "broken": "red"}


def _account(page: Page, facts: Facts, account: Account, seen: str, *, everything: bool) -> None:
    from meshnb.guides.accounts import place  # noqa: PLC0415  brings pandas

    colour = _COLOURS.get(account.verdict, "yellow")
    page.add(account.says, label=f"{account.word}:", colour=colour, strong=True)
    page.add(account.title, indent=1)
    if seen:
        page.add(seen, indent=1)
    page.gap()
    where = ""
    for part in account.parts:
        if place(part) != where:
            where = place(part)
            page.add(label=where)
        _part(page, facts, part, everything=everything, ends=part is account.broken)
    if account.undecided:
        page.gap()
        page.add(label="Cannot be decided:")
        for reason in account.undecided:
            page.add(reason, indent=1)


def _part(page: Page, facts: Facts, part: Part, *, everything: bool, ends: bool) -> None:
    from meshnb.guides.accounts import cited_words, headed  # noqa: PLC0415  brings pandas

    label = f"{part.state.sign} {headed(part)}"
    colour = "red" if ends else None
    page.add(f"{part.says}{'  <- here' if ends else ''}", label=label, colour=colour, indent=1)
    # What all is well with needs no proof unless it is asked for.
    if everything or part.state.name in ("BROKEN", "ODD", "UNKNOWN"):
        for cited in cited_words(facts, part):
            page.row(cited, indent=3)
    if part.object:
        page.row(f"made from {part.object}", indent=3)
    shown = part.passed_over if everything else part.passed_over[:SAMPLE_ROWS]
    for name, why in shown:
        page.row(f"not {name}: {why}", indent=3)
    if len(shown) < len(part.passed_over):
        page.row(f"and {len(part.passed_over) - len(shown)} more (--all lists them)", indent=3)
    grave = [one for one in part.standings if one.state.name == part.state.name]
    standings = part.standings if everything else grave if part.state.name != "FINE" else ()
    for one in standings if everything else standings[:FEW]:
        page.add(one.says, label=f"{one.state.sign} {one.title}:", indent=3)
    if not everything and len(standings) > FEW:
        page.row(f"and {len(standings) - FEW} more (--all lists them)", indent=3)
