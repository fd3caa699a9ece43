"""`meshnb record`: a source as a bundle."""

from __future__ import annotations

import click

from meshnb.cli.base import INTERRUPTED, Page, counted, note_damage, of_source, source_of


@click.command()
@of_source
@click.argument("path", metavar="PATH")
@click.option("--keep-environment", is_flag=True, help="Keep values of environment variables.")
@click.option("--keep-headers", is_flag=True, help="Keep authorization headers and cookies.")
@click.option("--keep-arguments", is_flag=True, help="Keep arguments that look like credentials.")
@click.option("--mask-names", is_flag=True, help="Put other names and addresses in their place.")
@click.option("--mask-map", metavar="FILE", help="Write to FILE which name stands for which.")
@click.pass_context
def record(
    context: click.Context,
    /,
    source: str,
    path: str,
    *,
    mask_names: bool,
    mask_map: str | None,
    **keep: bool,
) -> None:
    """Write all that a source answers as a bundle.

    PATH is the zip to write; it must not exist yet. Before anything is written, these are taken
    out: values of Secrets, private keys, tokens, authorization headers and cookies, passwords,
    values of environment variables but those of Istio itself. Certificates and names stay. Values
    of Secrets, private keys and tokens are never written. When it is interrupted, what was answered
    until then is kept.

    With --mask-names each name and address is another one everywhere, always the same, and
    certificates are issued again with such names, so that strangers may see the recording and its
    diagnosis stays. Names of Istio and of Kubernetes stay, and words that everybody uses. In logs
    and messages it is best effort: read them before you share them.
    """
    from meshnb.sources import Bundle  # noqa: PLC0415  not for --help
    from meshnb.sources import record as write  # noqa: PLC0415

    kept = [name.removeprefix("keep_") for name, wanted in keep.items() if wanted]
    written = Bundle(
        write(source_of(source), path, keep=kept, mask_names=mask_names, mask_map=mask_map)
    )
    page = Page()
    page.add(f"{counted(len(written.questions()), 'answer')}", label=f"{written.label}:")
    redacted = "; ".join(map(str, written.manifest["redacted"]))
    page.add(redacted or "nothing", label="Redacted:")
    if mask_names:
        page.add("; ".join(map(str, written.manifest["masked"])), label="Masked:")
        page.add("Names that only logs and messages know may have stayed: read them first.")
    page.show()
    note_damage(written, path)
    context.exit(INTERRUPTED if written.manifest["complete"] is False else 0)
