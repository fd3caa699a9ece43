"""`meshnb report`: the diagnosis as a page for the post-mortem."""

from __future__ import annotations

import click

from meshnb.cli.base import Page, facts_of, note_damage, of_source, with_mesh_config


@click.command(
    "report", epilog="Exit codes: 0 it is written; 2 it is not; 3 the source cannot be used."
)
@of_source
@with_mesh_config
@click.argument("path", metavar="OUT.html")
@click.option("--force", is_flag=True, help="Replace the file when it exists.")
def write_report(source: str, path: str, *, mesh_config: str | None, force: bool) -> None:
    """Write the diagnosis as one HTML page for the post-mortem.

    With symptoms, causes, evidence, what was ruled out, what could not be seen, what happened when,
    and the SHA-256 of what it rests on. The page needs no network.
    """
    from pathlib import Path  # noqa: PLC0415  not for --help

    from meshnb.diagnosis import diagnose as diagnosis_of  # noqa: PLC0415  brings pandas
    from meshnb.views.report import write_report as write  # noqa: PLC0415  brings widgets

    facts = facts_of(source, mesh_config)
    written = write(diagnosis_of(facts), Path(path), force=force)
    page = Page()
    page.add(f"{written}", label="written:")
    page.show()
    note_damage(facts.source, source)
