"""`meshnb serve`: a recording as a Kubernetes API."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Sequence
from typing import Literal

import click

from meshnb.cli.base import INDENT, Page, note_damage, of_source, one_line, source_of


@click.command(
    "serve",
    epilog="""\b
A fault is its name, a colon, and fields with commas between them, such as
  slow:seconds=0.5,resource=pods/log       answers come late
  refuse:verb=create,resource=pods/portforward,namespace=shop
  drop:every=3                             every third connection is cut
  restart:name=reviews-*,after=2           a pod is replaced while it is asked
Others are hang, fail, garbage, gone and expire. Requests through a port-forward
have the resource http; a star stands for any text.""",
)
@of_source
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="By default a free one.")
@click.option(
    "--kubeconfig",
    metavar="PATH",
    help="Where to write the kubeconfig, by default a temporary file. It is removed at the end.",
)
@click.option(
    "--credential",
    type=click.Choice(["token", "certificate", "exec"]),
    default="token",
    help="What the kubeconfig proves its user with; exec is a plugin that prints a token.",
)
@click.option("--fault", "faults", metavar="FAULT", multiple=True, help="What to do wrong.")
@click.option("--pods", type=click.IntRange(0), help="Copy proxies until there are so many.")
@click.option("--body-mb", type=click.FloatRange(0), help="Make each configuration dump so large.")
def serve_recording(
    source: str,
    *,
    port: int,
    kubeconfig: str | None,
    credential: Literal["token", "certificate", "exec"],
    faults: Sequence[str],
    pods: int | None,
    body_mb: float | None,
) -> None:
    """Serve a recording as a Kubernetes API.

    For kubectl and for `diagnose cluster`, on this machine only. Nothing can be written to it, and
    what was not recorded is answered with 404. Ctrl-C ends it.
    """
    import signal  # noqa: PLC0415  not for --help
    import threading  # noqa: PLC0415
    from pathlib import Path  # noqa: PLC0415

    from meshnb.sources.serve import Grown, parse_fault, serve  # noqa: PLC0415  brings aiohttp

    wanted = [parse_fault(fault) for fault in faults]
    opened = source_of(source)
    if pods or body_mb:
        opened = Grown(opened, pods=pods or 0, body_mb=body_mb or 0.0)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    path = None if kubeconfig is None else Path(kubeconfig).absolute()
    with (
        contextlib.suppress(KeyboardInterrupt),
        serve(opened, port=port, kubeconfig=path, credential=credential, faults=wanted) as served,
    ):
        page = Page()
        page.add(f"{opened.label} at {served.url}. Ctrl-C ends it.", label="Serving:")
        # Not wrapped, so that it can be copied.
        written = shlex.quote(str(served.kubeconfig))
        page.lines.append(f"{INDENT}export KUBECONFIG={one_line(written)}")
        page.add("kubectl get pods -A", indent=1)
        page.add("meshnb diagnose cluster", indent=1)
        page.show()
        note_damage(opened, source)
        threading.Event().wait()
