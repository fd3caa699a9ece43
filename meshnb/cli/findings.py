"""`meshnb findings`: every finding of every check."""

from __future__ import annotations

import json

import click

from meshnb.cli.base import PROBLEM, Page, counted, facts_of, note, of_source, say, with_mesh_config


@click.command()
@of_source
@with_mesh_config
@click.option(
    "--mesh-networks", metavar="FILE", help="The networks that manifests are judged by, as YAML."
)
@click.option("--json", "as_json", is_flag=True, help="Print the findings as a JSON list.")
@click.option(
    "--fail-on",
    type=click.Choice(["error", "warning", "info"], case_sensitive=False),
    help="Exit with 1 if a finding is at this level or above.",
)
@click.pass_context
def findings(
    context: click.Context,
    source: str,
    *,
    mesh_config: str | None,
    mesh_networks: str | None,
    as_json: bool,
    fail_on: str | None,
) -> None:
    """List every finding of every check, unranked.

    With the message of `istioctl analyze` that says the same, its level, and the path of the field.
    """
    from meshnb.checks import CHECKS, Inputs  # noqa: PLC0415  brings pandas
    from meshnb.checks import run as run_checks  # noqa: PLC0415

    facts = facts_of(source, mesh_config, mesh_networks)
    outcomes = tuple(run_checks(Inputs(facts), CHECKS.values()))
    found = [(outcome.check, finding) for outcome in outcomes for finding in outcome.findings]
    if as_json:
        rows = [
            {
                "code": check.code,
                "same_as": finding.same_as or None,
                "level": finding.level,
                "subject": finding.subject.to_json(),
                "message": finding.message,
                "path": finding.path or None,
            }
            for check, finding in found
        ]
        say(json.dumps(rows, indent=1) + "\n")
    else:
        page = Page()
        for check, finding in found:
            same = f" = {finding.same_as}" if finding.same_as else ""
            page.add(finding.message, label=f"{finding.level} {check.code}{same}:")
            page.add(finding.remedy, indent=1)
        page.add(counted(len(found), "finding"))
        page.show()
    broken = [f"{one.check.code} is broken: {one.because}" for one in outcomes if one.broken]
    note([*facts.source.damage, *broken], f"`meshnb coverage {source}` lists what is missing.")
    levels = ("error", "warning", "info")
    if fail_on and any(
        levels.index(finding.level.lower()) <= levels.index(fail_on) for _, finding in found
    ):
        context.exit(PROBLEM)
