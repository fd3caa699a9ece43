"""What a command is: the options it shares with others, its source, and the page it prints on.

What stands at the top of the files of this room is all that ``meshnb --help`` imports. Each command
imports the rooms that it needs itself, because pandas alone takes longer to start than help may
take.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from meshnb.errors import MeshnbError, SourceError, UsageError

if TYPE_CHECKING:
    from meshnb.sources import Source
    from meshnb.sources.progress import Progress
    from meshnb.tables import Facts

#: The exit codes, as `meshnb --help` explains them.
PROBLEM, USAGE, UNUSABLE, BROKEN, INTERRUPTED, CLOSED_PIPE = 1, 2, 3, 4, 130, 141

#: So many rows show what a piece of evidence looks like.
SAMPLE_ROWS = 3
#: They end here where no terminal's width says where, in characters.
_ROW_WIDTH = 160
#: So many less likely causes, notes and codes are shown before the rest is counted.
FEW = 5
#: A column of a table is not made narrower than its title, or than this, in characters.
NARROWEST = 20

INDENT = "  "
#: Stands for a space at which a line must not be broken; no harmless text has it.
_KEPT_SPACE = "\x00"

#: Everything that a terminal obeys or hides instead of showing it: control characters but tab and
#: line feed, marks that turn the direction of writing, invisible marks, halves of characters.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f"
    "\ufe00-\ufe0f\ufeff\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e0fff]"
)


def harmless(text: str) -> str:
    r"""Return a text from a cluster with what a terminal would obey spelled out, such as ``\x1b``.

    A name, a log line or a header may hold escape sequences that recolour, erase or retype what
    stands on the screen. Tabs and line feeds stay.
    """
    if text.isascii() and text.isprintable():
        return text
    return _UNSEEN.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


def one_line(text: str) -> str:
    """Return a text made harmless, and without tabs and line feeds."""
    if text.isascii() and text.isprintable():
        return text
    return harmless(re.sub(r"[\t\n\v\f\r]+", " ", text))


def shortened(text: str, width: int | None) -> str:
    """Return a text that is no longer than this, in characters; its end then says so."""
    return text if width is None or len(text) <= width else f"{text[: max(width - 1, 0)]}…"


class Page:
    """Lines of text for people. Only a terminal gets them wrapped, and coloured if it likes."""

    def __init__(self) -> None:
        terminal = sys.stdout.isatty()
        self.width = max(shutil.get_terminal_size().columns, NARROWEST) if terminal else None
        self.colour = (
            terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        )
        self.lines: list[str] = []

    def add(
        self,
        text: str = "",
        *,
        label: str = "",
        colour: str | None = None,
        strong: bool = False,
        indent: int = 0,
        hang: int = 2,
    ) -> None:
        """Add a paragraph, its lines after the first shifted by ``hang``.

        The label before it is bold and may have a colour; the paragraph itself is bold if strong.
        """
        text = one_line(text).strip()
        head = one_line(label) + (" " if label and text else "")
        margin = INDENT * indent
        room = None if self.width is None else self.width - len(margin)
        for line in _wrapped(head + text, room, hang):
            rest = line.removeprefix(head)
            said = self.styled(head, bold=True, fg=colour) if rest != line else ""
            self.lines.append(margin + said + self.styled(rest, bold=strong))

    def row(self, text: str, *, indent: int = 0) -> None:
        """Add one line that is cut rather than wrapped."""
        margin = INDENT * indent
        self.lines.append(
            margin + shortened(one_line(text), (self.width or _ROW_WIDTH) - len(margin))
        )

    def gap(self) -> None:
        """Add an empty line."""
        self.lines.append("")

    def show(self) -> None:
        """Print it."""
        say("\n".join(self.lines) + "\n")

    def styled(self, text: str, *, bold: bool, fg: str | None = None) -> str:
        """Return a text that was made harmless, in this style where styles are wanted."""
        wanted = text and self.colour and (bold or fg)
        return click.style(text, bold=bold, fg=fg) if wanted else text


def _wrapped(text: str, width: int | None, hang: int) -> list[str]:
    if width is None:
        return [text]
    # A command between backticks stays whole, so that it can be copied.
    kept = re.sub(r"`[^`]*`", lambda match: match[0].replace(" ", _KEPT_SPACE), text)
    lines = textwrap.wrap(
        kept, width, subsequent_indent=" " * hang, break_long_words=False, break_on_hyphens=False
    )
    return [line.replace(_KEPT_SPACE, " ") for line in lines] or [""]


def say(text: str) -> None:
    """Write to stdout; when nobody reads it any more, end as if by the signal that says so."""
    try:
        click.echo(text, nl=False, color=True)
    except BrokenPipeError:
        raise click.exceptions.Exit(CLOSED_PIPE) from None
    except OSError as error:
        raise MeshnbError(
            f"The output cannot be written: {error.strerror or error}.",
            next_step="Write it to where there is room.",
        ) from error


def complain(text: str) -> None:
    """Write one line to stderr."""
    click.echo(f"meshnb: {one_line(text)}", err=True)


def note(lines: Sequence[str], more: str) -> None:
    """Write notes to stderr, the first few of them."""
    for line in lines[:FEW]:
        complain(f"note: {line}")
    if len(lines) > FEW:
        complain(f"note: and {len(lines) - FEW} more; {more}")


def note_damage(source: Source, name: str) -> None:
    """Write to stderr what is damaged in a source, which was opened by this name."""
    note(source.damage, f"`meshnb coverage {name}` lists them.")


def counted(number: int, noun: str) -> str:
    """Return how many there are, such as ``1 check`` or ``3 checks``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def utc(moment: datetime) -> str:
    """Return a moment in words, to the second."""
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"


def few(names: Iterable[str]) -> str:
    """Return names as a list in words, the first few of them."""
    from meshnb.checks.base import and_list  # noqa: PLC0415  brings pandas

    return and_list(names)


def source_of(
    name: str,
    mesh_config: str | None = None,
    mesh_networks: str | None = None,
    *,
    beside: str = "",
) -> Source:
    """Open a source, or the part of a cluster that was chosen.

    ``beside`` is the command's other source, which may be the cluster that was meant.
    """
    from meshnb.sources import is_cluster, open_source, recordings  # noqa: PLC0415  not for --help

    chosen: dict[str, Any] = click.get_current_context().meta.get(_CHOSEN, {})
    if is_cluster(name):
        return cluster_of(name, chosen)
    if chosen and not is_cluster(beside):
        raise UsageError(
            f"{' and '.join(chosen)} chooses what a live cluster is asked, and {name!r} is none.",
            next_step="Leave it out, or name a cluster: cluster, or cluster:CONTEXT.",
        )
    try:
        return open_source(name, mesh_config=mesh_config, mesh_networks=mesh_networks)
    except SourceError as error:
        shipped = any(recording.name == name for recording in recordings())
        if shipped and not os.path.lexists(name):
            raise SourceError(
                f"There is no file or folder {name!r}.",
                next_step=f"The recording of that name is recorded:{name}.",
            ) from error
        raise


def cluster_of(name: str, chosen: Mapping[str, Any]) -> Source:
    """Open a cluster; of what is chosen there by option, such as ``--pod``, only that is asked."""
    from meshnb.sources import Limits, Scope, open_source  # noqa: PLC0415  not for --help

    context = chosen.get("--context")
    if context is not None and name != "cluster":
        raise UsageError(f"{name!r} names a context, and so does --context.")
    if chosen.get("--all-namespaces") and chosen.get("--namespace"):
        raise UsageError("--all-namespaces and --namespace exclude each other.")
    scope = Scope(
        namespaces=chosen.get("--namespace", ()),
        pods=chosen.get("--pod", ()),
        labels=chosen.get("--selector", ""),
        sample=chosen.get("--sample"),
        istio_namespace=chosen.get("--istio-namespace", ""),
        revision=chosen.get("--revision", ""),
    )
    limits = Limits(log_since_s=chosen.get("--since"))
    total = chosen.get("--timeout")
    if total is not None:
        limits = replace(limits, total_s=total, question_s=min(total, limits.question_s))
    return open_source(
        f"cluster:{context}" if context is not None else name,
        scope=scope,
        limits=limits,
        watch=_Watch().show,
    )


class _Watch:
    """Draws the progress of asking a cluster: on a terminal one line, elsewhere the end only."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._advised = False

    def show(self, progress: Progress) -> None:
        """Draw one moment; before the first one, what the user should rather choose."""
        if progress.advice and not self._advised:
            self._advised = True
            complain(progress.advice)
        line = one_line(str(progress))
        if self._terminal:
            width = max(shutil.get_terminal_size().columns - 1, NARROWEST)
            end = "\n" if progress.done else ""
            click.echo(f"\r\x1b[K{shortened(line, width)}{end}", nl=False, err=True, color=True)
        elif progress.done and progress.elapsed_s >= 1:
            complain(f"{line} in {progress.elapsed_s:.1f} s")


def facts_of(
    name: str,
    mesh_config: str | None = None,
    mesh_networks: str | None = None,
    *,
    everything: bool = True,
    beside: str = "",
) -> Facts:
    """Open a source; a cluster is asked everything at once, unless few of its tables are wanted."""
    from meshnb.sources import is_cluster  # noqa: PLC0415  not for --help
    from meshnb.tables import Facts  # noqa: PLC0415  brings pandas

    facts = Facts(source_of(name, mesh_config, mesh_networks, beside=beside))
    if everything and is_cluster(name) and not facts.gather():
        complain("interrupted: what follows rests on what was answered until then")
    return facts


#: Where a command keeps which part of a cluster was chosen, by the options' names.
_CHOSEN = "meshnb.cli.chosen"


def _choose(context: click.Context, option: click.Parameter, value: Any) -> None:
    if value not in (None, (), False):
        context.meta.setdefault(_CHOSEN, {})[max(option.opts, key=len)] = value


#: An option that no command takes itself: what is chosen is kept for when a source is opened.
_of_cluster = partial(click.option, expose_value=False, callback=_choose)
_SCOPE = (
    _of_cluster("--context", metavar="NAME", help="Of a cluster: the context of the kubeconfig."),
    _of_cluster(
        *("-n", "--namespace"),
        metavar="NAME",
        multiple=True,
        help="Of a cluster: ask only the pods of this namespace. Repeat it for several.",
    ),
    _of_cluster(
        *("-A", "--all-namespaces"), is_flag=True, help="Of a cluster: ask all. The default."
    ),
    _of_cluster(
        "--pod", metavar="NAME", multiple=True, help="Of a cluster: ask only this pod. Repeatable."
    ),
    _of_cluster(
        *("-l", "--selector"), metavar="LABELS", help="Of a cluster: ask only pods with these."
    ),
    _of_cluster(
        "--sample",
        type=click.IntRange(min=1),
        help="Of a cluster: ask so many pods of each workload.  [default: all; 3 above 1000 pods]",
    ),
    _of_cluster(
        "--since",
        metavar="SECONDS",
        type=click.IntRange(min=1),
        help="Of a cluster: read logs no further back than this.",
    ),
    _of_cluster(
        "--timeout",
        metavar="SECONDS",
        type=click.FloatRange(min=0, min_open=True),
        help="Of a cluster: end the asking after this.  [default: 900]",
    ),
    _of_cluster(
        *("-i", "--istio-namespace"),
        metavar="NAME",
        help="Of a cluster: ask only the istiods of this namespace.",
    ),
    _of_cluster(
        "--revision", metavar="NAME", help="Of a cluster: ask only the istiods of this revision."
    ),
)


def of_cluster(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options that choose a part of a live source."""
    for option in reversed(_SCOPE):
        command = option(command)
    return command


def of_source(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command its source, and the options that choose a part of a live one."""
    return click.argument("source", metavar="SOURCE")(of_cluster(command))


#: Gives a command the MeshConfig for a source that has none of its own.
with_mesh_config = click.option(
    "--mesh-config", metavar="FILE", help="The MeshConfig that manifests are judged by, as YAML."
)
