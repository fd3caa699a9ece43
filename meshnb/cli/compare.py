"""`meshnb compare`: what a proxy holds beside its siblings and istiod."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from meshnb.cli.base import FEW, Page, counted, facts_of, few, note_damage, of_source, say

if TYPE_CHECKING:
    from meshnb.traces.comparison import Comparison


@click.command()
@click.argument("proxy", metavar="PROXY")
@of_source
@click.option(
    "--with", "other", metavar="PROXY", help="Compare it with this proxy only, not with its like."
)
@click.option("--json", "as_json", is_flag=True, help="Print the comparisons as JSON.")
def compare(proxy: str, source: str, *, other: str | None, as_json: bool) -> None:
    """Compare what a proxy holds with its siblings and with istiod.

    PROXY is POD.NAMESPACE. Versions, nonces, times and order are left out.
    """
    from meshnb.traces.comparison import (  # noqa: PLC0415  brings pandas
        compare_proxies,
        compare_with_istiod,
        compare_with_siblings,
    )
    from meshnb.traces.mesh import MESH  # noqa: PLC0415

    facts = facts_of(source)
    mesh = MESH.make(facts)
    found = (
        (*compare_with_siblings(facts, mesh, proxy), compare_with_istiod(facts, mesh, proxy))
        if other is None
        else (compare_proxies(facts, mesh, proxy, other),)
    )
    if as_json:
        say(json.dumps([one.to_json() for one in found], indent=1) + "\n")
    else:
        page = Page()
        for number, one in enumerate(found):
            if number:
                page.gap()
            _comparison(page, one)
        page.show()
    note_damage(facts.source, source)


def _comparison(page: Page, found: Comparison) -> None:
    against = f", with {few(found.against)}" if found.against else ""
    page.add(f"{found.scope}{against}", label=f"{found.proxy}:", strong=True)
    if found.unknown:
        page.add(found.unknown, label="Unknown:", colour="yellow", indent=1)
    if found.against:
        same = f"{counted(found.same, 'resource')} the same"
        page.add(f"{same}, {len(found.differing)} not", indent=1)
    for resource in found.differing:
        origin = f" (from {few(resource.made_from)})" if resource.made_from else ""
        page.add(f"{resource.state}{origin}", label=f"{resource.kind} {resource.name}:", indent=1)
        for difference in resource.differences[:FEW]:
            sides = f"{difference.here or 'absent'} here, {difference.there or 'absent'} there"
            page.add(sides, label=f"{difference.path}:", indent=2)
        if len(resource.differences) > FEW:
            page.add(f"and {len(resource.differences) - FEW} more places", indent=2)
