"""`meshnb checks`: which checks there are."""

from __future__ import annotations

import click

from meshnb.cli.base import Page
from meshnb.errors import UsageError, nearest


@click.command("checks")
@click.argument("code", required=False)
def list_checks(code: str | None) -> None:
    """List the checks, or describe one.

    In the list: code, severity, class of failure (A invalid control plane configuration, B invalid
    data plane configuration, C unexpected data plane), and what is true when all is well.
    """
    from meshnb.checks import CHECKS  # noqa: PLC0415  brings pandas

    page = Page()
    if code is None:
        for check in sorted(CHECKS.values(), key=lambda check: check.code):
            page.add(
                f"{check.severity.value:<7}  {check.cause.value}  {check.title}",
                label=check.code,
                hang=len(check.code) + 13,
            )
    elif code.upper() not in CHECKS:
        raise UsageError(f"There is no check {code!r}.", next_step=nearest(code.upper(), CHECKS))
    else:
        check = CHECKS[code.upper()]
        page.add(check.title, label=check.code, strong=True)
        page.add(
            f"{check.severity.value}; class {check.cause.value}, {check.cause.title}", indent=1
        )
        page.add(check.why, label="Why:", indent=1)
        page.add(", ".join(check.inputs), label="Takes:", indent=1)
        page.add(", ".join(check.tables), label="Reads the tables:", indent=1)
    page.show()
