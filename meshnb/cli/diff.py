"""`meshnb diff`: what changed between two moments of a mesh."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from meshnb.cli.base import PROBLEM, Page, complain, facts_of, note, of_cluster, say, utc

if TYPE_CHECKING:
    from meshnb.guides.since import Since
    from meshnb.traces.moments import RowChange


@click.command(
    "diff",
    epilog="Exit codes, as of diff: 0 nothing changed; 1 something did; 2 the command is wrong; "
    "3 a source cannot be used.",
)
@click.argument("before", metavar="BEFORE")
@click.argument("after", metavar="AFTER")
@of_cluster
@click.option("--table", metavar="NAME", help="Compare the rows of one table only, by its key.")
@click.option("--json", "as_json", is_flag=True, help="Print the changes as JSON.")
@click.pass_context
def compare_moments(
    context: click.Context, before: str, after: str, *, table: str | None, as_json: bool
) -> None:
    """Say what changed between two moments of a mesh.

    BEFORE and AFTER are sources. Versions, ages, counters and times are left out; pods that a
    workload replaced are one rollout. Of a cluster a part can be chosen; what only one of the two
    was asked is not compared.
    """
    from meshnb.guides.base import Case  # noqa: PLC0415  brings pandas
    from meshnb.guides.since import Since  # noqa: PLC0415
    from meshnb.traces.moments import Moments, comparable  # noqa: PLC0415

    if table is not None:
        comparable(table)
    old, new = facts_of(before, beside=after), facts_of(after, beside=before)
    if old.now > new.now:
        complain("note: BEFORE is the newer of the two")
    if table is not None:
        moments = Moments(old, new)
        rows = moments.rows(table)
        _changed_rows(rows, as_json=as_json)
        note([f"not compared: {one}" for one in moments.asked_once.unseen], "--json lists them.")
        context.exit(PROBLEM if rows else 0)
    since = Since(Case.of(old), Case.of(new))
    if as_json:
        say(json.dumps(since.to_json(), indent=1) + "\n")
    else:
        page = Page()
        _since(page, since)
        page.show()
    note([f"not compared: {one}" for one in since.moments.unseen], "--json lists them.")
    context.exit(0 if since.same else PROBLEM)


def _since(page: Page, since: Since) -> None:
    sides = " -> ".join(
        f"{case.facts.source.label}, {utc(case.facts.now)}" for case in (since.before, since.after)
    )
    page.add(since.headline(), label=f"{sides}:", strong=True)
    for causes, label, colour in (
        (since.new_causes, "New problem:", "red"),
        (since.gone_causes, "No problem any more:", "green"),
    ):
        for cause in causes:
            page.add(cause.finding.message, label=label, colour=colour, indent=1)
    signs = {"added": "+", "removed": "-"}
    for change in since.changes:
        page.add(change.words, label=signs.get(change.state, "~"), indent=1)


def _changed_rows(rows: Sequence[RowChange], *, as_json: bool) -> None:
    if as_json:
        say(json.dumps([row.to_json() for row in rows], indent=1) + "\n")
        return
    page = Page()
    if not rows:
        page.add("Nothing changed.")
    for row in rows:
        page.add("" if row.state == "changed" else row.state, label=f"{row.name}:")
        for edit in row.edits:
            page.add(str(edit), indent=1)
    page.show()
