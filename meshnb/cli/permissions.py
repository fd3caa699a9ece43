"""`meshnb permissions`: the roles that asking a mesh needs, and which of them lack."""

from __future__ import annotations

import click

from meshnb.cli.base import PROBLEM, Page, cluster_of, say, source_of


@click.command(
    epilog="Exit codes: 0 nothing lacks; 1 some permission lacks; 3 the cluster cannot be used.",
)
@click.argument("source", metavar="[SOURCE]", required=False)
@click.option(
    *("-n", "--namespace"),
    metavar="NAME",
    multiple=True,
    help="Of these namespaces only. Repeat it for several.  [default: all]",
)
@click.option(*("-i", "--istio-namespace"), metavar="NAME", default="", help="Where istiod runs.")
@click.option("--secrets", is_flag=True, help="Lists of Secrets as well.")
@click.pass_context
def permissions(
    context: click.Context,
    source: str | None,
    *,
    namespace: tuple[str, ...],
    istio_namespace: str,
    secrets: bool,
) -> None:
    """Print the roles that asking a mesh needs.

    They are YAML for kubectl apply. With SOURCE, which permissions lack there is printed instead.
    SOURCE is cluster, cluster:CONTEXT, or a recording, which was refused what is missing there.
    Nothing is created to find out: the questions themselves are asked. Secrets hold certificates of
    gateways; checks of those have no verdict without --secrets.
    """
    from meshnb.sources import Scope, is_cluster  # noqa: PLC0415  not for --help
    from meshnb.sources.permissions import (  # noqa: PLC0415
        in_lines,
        manifest,
        missing,
        needed,
        other_reasons,
        refused_users,
    )

    scope = Scope(namespaces=namespace, istio_namespace=istio_namespace)
    if source is None:
        say(manifest(needed(scope, secrets=secrets)))
        return
    chosen = {"--namespace": namespace, "--istio-namespace": istio_namespace}
    opened = cluster_of(source, chosen) if is_cluster(source) else source_of(source)
    page = Page()
    lacking = missing(opened, scope, secrets=secrets)
    if lacking:
        users = ", ".join(refused_users(lacking))
        page.add(f"{opened.label} refused{f' {users}' if users else ''}:")
        for line in in_lines(lacking):
            page.add(line, indent=1)
        for said in other_reasons(lacking):
            page.add(said, label="Said:")
        chosen_here = "".join(f" -n {one}" for one in namespace)
        page.add(f"`meshnb permissions{chosen_here}` prints roles that allow all that is asked.")
    else:
        page.add(f"{opened.label} refused nothing.")
    page.show()
    context.exit(PROBLEM if lacking else 0)
