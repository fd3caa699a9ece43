"""`meshnb recordings`: which recordings ship."""

from __future__ import annotations

import click

from meshnb.cli.base import Page


@click.command("recordings")
def list_recordings() -> None:
    """List the recordings that ship with meshnb."""
    from meshnb.sources import recordings  # noqa: PLC0415  not for --help

    page = Page()
    width = max(len(recording.name) for recording in recordings()) + len("recorded:")
    for recording in recordings():
        page.add(recording.title, label=f"{f'recorded:{recording.name}':<{width}}", hang=width + 1)
    page.show()
