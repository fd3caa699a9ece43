"""`meshnb coverage`: what was asked, and what was not answered."""

from __future__ import annotations

import click

from meshnb.cli.base import Page, counted, facts_of, of_source, utc
from meshnb.cli.table import records


@click.command()
@of_source
def coverage(source: str) -> None:
    """Say what was asked and what was not answered.

    An empty answer is an answer. Silent: nothing came back. Not asked: a table wants it, and the
    source does not have it. Damaged: the source itself is.
    """
    facts = facts_of(source)
    found = facts.coverage()
    page = Page()
    asked = counted(len(list(facts.source.questions())), "question")
    page.add(f"{asked}, the last answered {utc(facts.now)}", label=f"{facts.source.label}:")
    for state, count in found["state"].value_counts(sort=False).items():
        page.add(f"{count}", label=f"{state:<10}", indent=1)
    missing = found[~found["state"].isin(["answered", "empty"])]
    if len(missing):
        page.gap()
        page.add(label="Not answered:")
    for row in records(missing):
        reason = f": {row['reason']}" if row["reason"] else ""
        page.add(f"{row['question']}{reason}", label=f"{row['state']:<10}", indent=1)
    page.show()
