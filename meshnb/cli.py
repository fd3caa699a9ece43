"""The command line: what the notebooks show, on a terminal and for programs.

What stands at the top of this file is all that ``meshnb --help`` imports. Each command imports the
rooms that it needs itself, because pandas alone takes longer to start than help may take.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import os
import re
import shlex
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import click

from meshnb.errors import MeshnbError, SourceError, UsageError, nearest

if TYPE_CHECKING:
    import pandas as pd

    from meshnb.diagnosis import Diagnosis, RankedCause
    from meshnb.guides.accounts import Account, Part
    from meshnb.guides.since import Since
    from meshnb.sources import Source
    from meshnb.sources.progress import Progress
    from meshnb.tables import Facts, Table
    from meshnb.traces.comparison import Comparison
    from meshnb.traces.moments import RowChange

#: The exit codes, as `meshnb --help` explains them.
PROBLEM, USAGE, UNUSABLE, BROKEN, INTERRUPTED, CLOSED_PIPE = 1, 2, 3, 4, 130, 141

#: So many rows of a table a terminal gets when nobody says how many.
_TERMINAL_ROWS = 50
#: So many rows show what a piece of evidence looks like.
_SAMPLE_ROWS = 3
#: They end here where no terminal's width says where, in characters.
_ROW_WIDTH = 160
#: No value in them may push out the others, in characters.
_SAMPLE_WIDTH = 60
#: So many less likely causes, notes and codes are shown before the rest is counted.
_FEW = 5
#: A column of a table is not made narrower than its title, or than this, in characters.
_NARROWEST = 20

_INDENT = "  "
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


def _one_line(text: str) -> str:
    if text.isascii() and text.isprintable():
        return text
    return harmless(re.sub(r"[\t\n\v\f\r]+", " ", text))


def _cut(text: str, width: int | None) -> str:
    return text if width is None or len(text) <= width else f"{text[: max(width - 1, 0)]}…"


class _Page:
    """Lines of text for people. Only a terminal gets them wrapped, and coloured if it likes."""

    def __init__(self) -> None:
        terminal = sys.stdout.isatty()
        self.width = max(shutil.get_terminal_size().columns, _NARROWEST) if terminal else None
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
        text = _one_line(text).strip()
        head = _one_line(label) + (" " if label and text else "")
        margin = _INDENT * indent
        room = None if self.width is None else self.width - len(margin)
        for line in _wrapped(head + text, room, hang):
            rest = line.removeprefix(head)
            said = self.styled(head, bold=True, fg=colour) if rest != line else ""
            self.lines.append(margin + said + self.styled(rest, bold=strong))

    def row(self, text: str, *, indent: int = 0) -> None:
        """Add one line that is cut rather than wrapped."""
        margin = _INDENT * indent
        self.lines.append(margin + _cut(_one_line(text), (self.width or _ROW_WIDTH) - len(margin)))

    def gap(self) -> None:
        """Add an empty line."""
        self.lines.append("")

    def show(self) -> None:
        """Print it."""
        _say("\n".join(self.lines) + "\n")

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


def _say(text: str) -> None:
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


def _complain(text: str) -> None:
    click.echo(f"meshnb: {_one_line(text)}", err=True)


def _note(lines: Sequence[str], more: str) -> None:
    """Write notes to stderr, the first few of them."""
    for line in lines[:_FEW]:
        _complain(f"note: {line}")
    if len(lines) > _FEW:
        _complain(f"note: and {len(lines) - _FEW} more; {more}")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _time(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"


def _open(name: str, mesh_config: str | None = None, mesh_networks: str | None = None) -> Source:
    from meshnb.sources import is_cluster, open_source, recordings  # noqa: PLC0415  not for --help

    chosen: dict[str, Any] = click.get_current_context().meta.get(_CHOSEN, {})
    if is_cluster(name):
        return _open_cluster(name, chosen)
    if chosen:
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


def _open_cluster(name: str, chosen: Mapping[str, Any]) -> Source:
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

    def show(self, progress: Progress) -> None:
        """Draw one moment."""
        line = _one_line(str(progress))
        if self._terminal:
            width = max(shutil.get_terminal_size().columns - 1, _NARROWEST)
            end = "\n" if progress.done else ""
            click.echo(f"\r\x1b[K{_cut(line, width)}{end}", nl=False, err=True, color=True)
        elif progress.done and progress.elapsed_s >= 1:
            _complain(f"{line} in {progress.elapsed_s:.1f} s")


def _facts(
    name: str,
    mesh_config: str | None = None,
    mesh_networks: str | None = None,
    *,
    everything: bool = True,
) -> Facts:
    """Open a source; a cluster is asked everything at once, unless few of its tables are wanted."""
    from meshnb.sources import is_cluster  # noqa: PLC0415  not for --help
    from meshnb.tables import Facts  # noqa: PLC0415  brings pandas

    facts = Facts(_open(name, mesh_config, mesh_networks))
    if everything and is_cluster(name) and not facts.gather():
        _complain("interrupted: what follows rests on what was answered until then")
    return facts


_EXIT_CODES = """\
\b
Exit codes:
  0    done; for `diagnose`: nothing is wrong; for `trace`: it gets through
  1    `diagnose` found a problem, or could not see enough to say that there is none; `trace` found
       where it ends, or could not see enough to say that it gets through
  2    the command is wrong: an unknown option, table, column, check or recording
  3    the source cannot be used, or a bundle cannot be written
  4    meshnb itself failed
  130  interrupted

\b
SOURCE is the path of a bundle, a folder or a zip, or recorded:NAME for a recording that ships with
meshnb (`meshnb recordings` lists them), or a folder of manifests or one YAML file, not yet applied.
cluster is the live cluster of kubectl's current context, cluster:CONTEXT that of another one; it is
only read.
Colour is for terminals only, and never when NO_COLOR is set."""


@click.group(
    invoke_without_command=True,
    epilog=_EXIT_CODES,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(
    # Nobody in the house imports the front door, but it is there before any of its rooms.
    sys.modules["meshnb"].__version__,
    message="meshnb %(version)s",
)
@click.pass_context
def commands(context: click.Context) -> None:
    """Find out what is wrong with an Istio mesh, and show the evidence."""
    if context.invoked_subcommand is None:
        _say(context.get_help() + "\n")


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


def _source(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command its source, and the options that choose a part of a live one."""
    for option in reversed(_SCOPE):
        command = option(command)
    return click.argument("source", metavar="SOURCE")(command)


_mesh_config = click.option(
    "--mesh-config", metavar="FILE", help="The MeshConfig that manifests are judged by, as YAML."
)


@commands.command(
    epilog="Exit codes: 0 nothing is wrong; 1 a problem, or an unknown verdict, because silence is "
    "not health; 3 the source cannot be used.",
)
@_source
@_mesh_config
@click.option("--json", "as_json", is_flag=True, help="Print the diagnosis as JSON, format 1.")
@click.option(
    "--all", "everything", is_flag=True, help="Leave nothing out: passed checks, all causes."
)
@click.pass_context
def diagnose(
    context: click.Context,
    source: str,
    *,
    mesh_config: str | None,
    as_json: bool,
    everything: bool,
) -> None:
    """Say what is wrong, why, and how to mend it."""
    from meshnb.diagnosis import diagnose as diagnosis_of  # noqa: PLC0415  brings pandas

    facts = _facts(source, mesh_config)
    diagnosis = diagnosis_of(facts)
    if as_json:
        _say(json.dumps(diagnosis.to_json(), indent=1) + "\n")
    else:
        page = _Page()
        _diagnosis(page, diagnosis, everything=everything)
        page.show()
    _note(facts.source.damage, f"`meshnb coverage {source}` lists them.")
    context.exit(0 if diagnosis.verdict == "healthy" else PROBLEM)


def _diagnosis(page: _Page, diagnosis: Diagnosis, *, everything: bool) -> None:
    if diagnosis.verdict == "healthy":
        page.add(_counts(diagnosis), label="healthy:", colour="green")
        if not everything:
            return
    elif diagnosis.verdict == "unknown":
        page.add(_why_unknown(diagnosis), label="unknown:", colour="yellow", strong=True)
    else:
        _first_cause(page, diagnosis.problems[0])
    page.gap()
    _other_causes(page, diagnosis, everything=everything)
    _symptoms(page, diagnosis)
    _checks_without_findings(page, diagnosis, everything=everything)


def _counts(diagnosis: Diagnosis) -> str:
    parts = [
        f"{_count(len(diagnosis.ruled_out), 'check')} passed",
        f"{_count(len(diagnosis.unknown), 'check')} unknown" if diagnosis.unknown else "",
        f"{_count(len(diagnosis.facts['access_log']), 'line')} of access logs read",
        f"{_count(len(diagnosis.symptoms), 'symptom')}, see --all"
        if len(diagnosis.symptoms)
        else "",
        f"{len(diagnosis.causes)} worth knowing, see --all" if diagnosis.causes else "",
    ]
    return (
        f"nothing is wrong in {diagnosis.facts.source.label} at {_time(diagnosis.facts.now)} "
        f"({', '.join(part for part in parts if part)})."
    )


def _why_unknown(diagnosis: Diagnosis) -> str:
    if diagnosis.unexplained and not diagnosis.unknown:
        return "Something goes wrong that no check explains."
    return "No check found a fault, but not enough could be seen to say that there is none."


def _first_cause(page: _Page, cause: RankedCause) -> None:
    colour = "red" if cause.severity.value == "error" else "yellow"
    page.add(cause.finding.message, label="problem:", colour=colour, strong=True)
    page.add(_extent(cause), indent=1)
    affected = _affected(cause)
    if affected:
        page.add(affected, label="Affected:", indent=1)
    page.add(cause.finding.remedy, label="To mend:", indent=1)
    page.gap()
    page.add(
        f"({cause.check.code}, {cause.severity.value}; class {cause.failure_class.value}, "
        f"{cause.failure_class.title})",
        label="Why we think so:",
    )
    page.add(cause.mechanism, indent=1)
    if cause.finding.related:
        page.add(_few(map(str, cause.finding.related)), label="Takes part:", indent=1)
    spoken = " ".join(
        [cause.finding.message, cause.mechanism, *(s.message for s in cause.explains)]
    )
    for table, rows in _evidence(cause).items():
        page.add(f"{_count(len(rows), 'row')} from {_origin(rows)}", label=f"{table}:", indent=1)
        for sample in _samples(table, rows, spoken):
            page.row(sample, indent=2)


def _extent(cause: RankedCause) -> str:
    """Return since when it is seen, until when, and how often."""
    if cause.standing == "blemish":
        return "It explains nothing of what goes wrong, so it is not the cause."
    if not cause.explains:
        return "It explains nothing that was seen."
    failed: dict[str, int] = {}
    others: list[str] = []
    for symptom in cause.explains:
        if symptom.kind in ("request", "connection"):
            failed[symptom.kind] = failed.get(symptom.kind, 0) + symptom.count
        else:
            others.append(symptom.message)
    seen = "; ".join(
        [*(_count(count, f"failed {kind}") for kind, count in failed.items()), *others]
    )
    first = cause.first_seen
    last = max((s.last_seen for s in cause.explains if s.last_seen is not None), default=None)
    if first is not None and last is not None and first < last:
        return f"Since {_time(first)}: {seen}; last seen at {last:%H:%M:%S}."
    moment = first or last
    return f"Seen at {_time(moment)}: {seen}." if moment is not None else f"Seen: {seen}."


def _affected(cause: RankedCause) -> str:
    names: dict[str, None] = {}
    for symptom in cause.explains:
        names.update(dict.fromkeys((*symptom.reporters, *symptom.callers)))
        if not symptom.reporters and any(symptom.workload):
            names["/".join(symptom.workload)] = None
    return _few(names)


def _few(names: Iterable[str]) -> str:
    from meshnb.checks.base import and_list  # noqa: PLC0415  brings pandas

    return and_list(names)


def _evidence(cause: RankedCause) -> dict[str, pd.DataFrame]:
    """Return the rows that prove a cause by table, each row once."""
    import pandas as pd  # noqa: PLC0415  slow to import

    found: dict[str, pd.DataFrame] = {}
    for evidence in cause.finding.evidence:
        if len(evidence.rows):
            parts = [found[evidence.table]] if evidence.table in found else []
            rows = pd.concat([*parts, evidence.rows])
            found[evidence.table] = rows[~rows.index.duplicated()]
    return found


def _origin(rows: pd.DataFrame) -> str:
    questions = list(dict.fromkeys(rows["question"].dropna()))
    more = f" and {len(questions) - 1} more" if len(questions) > 1 else ""
    return f"{questions[0]}{more}" if questions else "no question"


def _samples(table: str, rows: pd.DataFrame, spoken: str) -> Iterator[str]:
    """Yield a few rows as ``column=value``: first what was spoken of, then the keys."""
    columns = _table(table).columns
    words = set(re.findall(r"[\w.:/|-]*\w", spoken))

    def place(name: str, text: str) -> int:
        if text in words and len(text) > 1:
            return 0
        if columns[name].key:
            return 1
        return 2 if text not in ("0", "false") else 3

    for record in _records(rows.head(_SAMPLE_ROWS)):
        cells = {name: _text(value) for name, value in record.items() if name != "question"}
        places = {name: place(name, text) for name, text in cells.items() if text}
        shown = sorted(places, key=places.__getitem__)
        yield "  ".join(f"{name}={_cut(cells[name], _SAMPLE_WIDTH)}" for name in shown)


def _other_causes(page: _Page, diagnosis: Diagnosis, *, everything: bool) -> None:
    problems = len(diagnosis.problems)
    others, worth_knowing = diagnosis.causes[1:problems], diagnosis.causes[problems:]
    if others:
        shown = others if everything else others[:_FEW]
        page.add(label="Less likely:")
        _causes(page, shown)
        if len(shown) < len(others):
            page.add(f"{len(others) - len(shown)} more (--all lists them)", indent=1)
        page.gap()
    if worth_knowing:
        hint = "" if everything else f"{len(worth_knowing)} (--all lists them)"
        page.add(hint, label="Worth knowing:")
        _causes(page, worth_knowing if everything else ())
        page.gap()


def _causes(page: _Page, causes: Iterable[RankedCause]) -> None:
    for cause in causes:
        explains = ", ".join(symptom.id for symptom in cause.explains) or "nothing that was seen"
        page.add(
            f"{cause.severity.value}: {cause.finding.message} "
            f"({cause.check.code}, explains {explains})",
            label=f"{cause.rank}.",
            indent=1,
        )


def _symptoms(page: _Page, diagnosis: Diagnosis) -> None:
    if not len(diagnosis.symptoms):
        page.add("none", label="Symptoms:")
        return
    page.add(label="Symptoms:")
    unexplained = {symptom.id for symptom in diagnosis.unexplained}
    for symptom in diagnosis.symptoms:
        mark = " (unexplained)" if symptom.id in unexplained else ""
        page.add(f"{symptom.count}x {symptom.message}{mark}", label=symptom.id, indent=1)


def _checks_without_findings(page: _Page, diagnosis: Diagnosis, *, everything: bool) -> None:
    ruled_out = diagnosis.ruled_out
    hint = " (--all lists them)" if ruled_out and not everything else ""
    page.add(f"{_count(len(ruled_out), 'check')}{hint}", label="Ruled out:")
    if everything:
        for outcome in ruled_out:
            page.add(outcome.check.title, label=outcome.check.code, indent=1)
    page.add(_count(len(diagnosis.unknown), "check"), label="Unknown:")
    reasons: dict[str, list[str]] = {}
    for outcome in diagnosis.unknown:
        reasons.setdefault(outcome.because, []).append(outcome.check.code)
    for because, codes in reasons.items():
        page.add(f"{', '.join(codes) if everything else _few(codes)}: {because}", indent=1)


@commands.command("tables")
@click.argument("name", required=False)
@click.option("--columns", is_flag=True, help="Print each table's columns and what they mean.")
def list_tables(name: str | None, *, columns: bool) -> None:
    """List the tables, or describe one.

    What is described: what a row is, what the mesh is asked for it, and each column.
    """
    page = _Page()
    if name is not None or columns:
        chosen = _tables().values() if name is None else [_table(name)]
        page.lines += "\n\n".join(table.document() for table in chosen).split("\n")
    else:
        width = max(map(len, _tables()))
        for table in _tables().values():
            page.add(table.grain, label=f"{table.name:<{width}}", hang=width + 1)
    page.show()


def _tables() -> Mapping[str, Table]:
    from meshnb.tables import TABLES  # noqa: PLC0415  brings pandas

    return TABLES


def _table(name: str) -> Table:
    if name not in _tables():
        raise UsageError(f"There is no table {name!r}.", next_step=nearest(name, _tables()))
    return _tables()[name]


@commands.command("table")
@click.argument("name")
@_source
@click.option(
    "--where",
    "conditions",
    metavar="COLUMN=VALUE",
    multiple=True,
    help="Only rows in which the column has this value, written as csv has it; nothing after the = "
    "for an absent one. Repeat it for rows that fulfil all.",
)
@click.option("--columns", "chosen", metavar="A,B,...", help="Only these columns, in this order.")
@click.option(
    "--limit",
    type=click.IntRange(min=0),
    help=f"At most so many rows.  [default: {_TERMINAL_ROWS} for text on a terminal, else all]",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "csv", "json"]),
    default="text",
    show_default=True,
    help="text for people; csv, with control characters spelled out; json, a list of records with "
    "null for what is absent and times in RFC 3339.",
)
def print_table(
    name: str,
    source: str,
    *,
    conditions: tuple[str, ...],
    chosen: str | None,
    limit: int | None,
    form: str,
) -> None:
    """Print the rows of a table.

    What could not be had of it is noted on stderr.
    """
    table = _table(name)
    wanted = [_condition(table, condition) for condition in conditions]
    columns = list(table.columns) if chosen is None else chosen.split(",")
    columns = [_column(table, column) for column in columns]
    facts = _facts(source, everything=False)
    frame = matching = facts[name]
    for column, value in wanted:
        matching = matching[[_text(_value(cell)) == value for cell in matching[column].tolist()]]
    page = _Page()
    if limit is None and form == "text" and page.width is not None:
        limit = _TERMINAL_ROWS
    shown = matching[columns] if limit is None else matching[columns].head(limit)
    if form == "csv":
        _say(_csv(shown))
    elif form == "json":
        _say(_json(shown))
    else:
        left_out = _aligned(page, shown)
        cut = f" ({len(matching)} match)" if len(shown) < len(matching) < len(frame) else ""
        page.add(f"{len(shown)} of {_count(len(frame), 'row')}{cut}")
        if left_out:
            page.add(f"no room for {', '.join(left_out)}; choose with --columns")
        page.show()
    gaps = [*facts.source.damage, *map(str, facts.gaps(name))]
    _note(gaps, f"`meshnb coverage {source}` lists them.")


def _column(table: Table, name: str) -> str:
    name = name.strip()
    if name not in table.columns:
        raise UsageError(
            f"Table {table.name} has no column {name!r}.", next_step=nearest(name, table.columns)
        )
    return name


def _condition(table: Table, condition: str) -> tuple[str, str]:
    name, equals, value = condition.partition("=")
    if not equals:
        raise UsageError(
            f"--where {condition!r} is no condition.", next_step="Write --where COLUMN=VALUE."
        )
    return _column(table, name), value


def _value(cell: Any) -> Any:
    """Return a cell as JSON has it: None when it is absent, a time as text in RFC 3339."""
    if cell is None or type(cell) in (str, int, bool):
        return cell  # most are; a large table has a million
    if isinstance(cell, Mapping):
        return {str(name): _value(member) for name, member in cell.items()}
    if isinstance(cell, set | frozenset):
        return [_value(member) for member in sorted(cell, key=str)]
    if isinstance(cell, list | tuple):
        return [_value(member) for member in cell]
    from meshnb.traces.mesh import plain  # noqa: PLC0415  brings pandas

    match plain(cell):
        case None | bool() | str() | int() as value:
            return value
        case float(value):
            return value if math.isfinite(value) else str(value)
        case datetime() as moment:
            return moment.isoformat().replace("+00:00", "Z")
        case other:
            return str(other)


def _text(value: Any) -> str:
    """Return what :func:`_value` made as one text; a list of texts has commas between them."""
    match value:
        case None:
            return ""
        case str():
            return value
        case list() if all(isinstance(member, str) for member in value):
            return ",".join(value)
        case _:
            return json.dumps(value)


def _records(frame: pd.DataFrame) -> Iterator[dict[str, Any]]:
    columns = [
        [None if gone else cell for cell, gone in zip(column.tolist(), absent, strict=True)]
        for column, absent in ((frame[name], frame[name].isna().tolist()) for name in frame.columns)
    ]
    for cells in zip(*columns, strict=True):
        yield dict(zip(frame.columns, map(_value, cells), strict=True))


def _json(frame: pd.DataFrame) -> str:
    records = [json.dumps(record) for record in _records(frame)]
    return "[\n " + ",\n ".join(records) + "\n]\n" if records else "[]\n"


def _csv(frame: pd.DataFrame) -> str:
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    writer.writerow(frame.columns)
    for record in _records(frame):
        writer.writerow(harmless(_text(value)) for value in record.values())
    return written.getvalue()


def _aligned(page: _Page, frame: pd.DataFrame) -> list[str]:
    """Add a title and the rows in aligned columns; return the columns that had no room."""
    cells = {str(name): [str(name)] for name in frame.columns}
    for record in _records(frame):
        for name, value in record.items():
            cells[name].append(_one_line(_text(value)))
    widths = _fitted({name: max(map(len, column)) for name, column in cells.items()}, page.width)
    for number, row in enumerate(zip(*(cells[name] for name in widths), strict=True)):
        parts = [
            _cut(text, width).ljust(width) for text, width in zip(row, widths.values(), strict=True)
        ]
        page.lines.append(page.styled("  ".join(parts).rstrip(), bold=number == 0))
    return [name for name in cells if name not in widths]


def _fitted(widths: Mapping[str, int], room: int | None) -> dict[str, int]:
    """Return the widths of the first columns that fit; what is left over goes to all alike."""
    if room is None:
        return dict(widths)
    fitted: dict[str, int] = {}
    for name, width in widths.items():
        least = min(width, max(len(name), _NARROWEST))
        room -= least + (2 if fitted else 0)
        if room < 0 and fitted:
            room += least + 2
            break
        fitted[name] = least + min(room, 0)
    wider = sorted(fitted, key=lambda name: widths[name] - fitted[name])
    for number, name in enumerate(wider):
        more = min(widths[name] - fitted[name], max(room, 0) // (len(wider) - number))
        fitted[name] += more
        room -= more
    return fitted


@commands.command("checks")
@click.argument("code", required=False)
def list_checks(code: str | None) -> None:
    """List the checks, or describe one.

    In the list: code, severity, class of failure (A invalid control plane configuration, B invalid
    data plane configuration, C unexpected data plane), and what is true when all is well.
    """
    from meshnb.checks import CHECKS  # noqa: PLC0415  brings pandas

    page = _Page()
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


@commands.command("recordings")
def list_recordings() -> None:
    """List the recordings that ship with meshnb."""
    from meshnb.sources import recordings  # noqa: PLC0415  not for --help

    page = _Page()
    width = max(len(recording.name) for recording in recordings()) + len("recorded:")
    for recording in recordings():
        page.add(recording.title, label=f"{f'recorded:{recording.name}':<{width}}", hang=width + 1)
    page.show()


@commands.command()
@_source
def coverage(source: str) -> None:
    """Say what was asked and what was not answered.

    An empty answer is an answer. Silent: nothing came back. Not asked: a table wants it, and the
    source does not have it. Damaged: the source itself is.
    """
    facts = _facts(source)
    found = facts.coverage()
    page = _Page()
    asked = _count(len(list(facts.source.questions())), "question")
    page.add(f"{asked}, the last answered {_time(facts.now)}", label=f"{facts.source.label}:")
    for state, count in found["state"].value_counts(sort=False).items():
        page.add(f"{count}", label=f"{state:<10}", indent=1)
    missing = found[~found["state"].isin(["answered", "empty"])]
    if len(missing):
        page.gap()
        page.add(label="Not answered:")
    for row in _records(missing):
        reason = f": {row['reason']}" if row["reason"] else ""
        page.add(f"{row['question']}{reason}", label=f"{row['state']:<10}", indent=1)
    page.show()


@commands.command()
@_source
@click.argument("path", metavar="PATH")
@click.option("--keep-environment", is_flag=True, help="Keep values of environment variables.")
@click.option("--keep-headers", is_flag=True, help="Keep authorization headers and cookies.")
@click.option("--keep-arguments", is_flag=True, help="Keep arguments that look like credentials.")
@click.pass_context
def record(context: click.Context, /, source: str, path: str, **keep: bool) -> None:
    """Write all that a source answers as a bundle.

    PATH is the zip to write; it must not exist yet. Before anything is written, these are taken
    out: values of Secrets, private keys, tokens, authorization headers and cookies, passwords,
    values of environment variables but those of Istio itself. Certificates and names stay. Values
    of Secrets, private keys and tokens are never written. When it is interrupted, what was answered
    until then is kept.
    """
    from meshnb.sources import Bundle  # noqa: PLC0415  not for --help
    from meshnb.sources import record as write  # noqa: PLC0415

    kept = [name.removeprefix("keep_") for name, wanted in keep.items() if wanted]
    written = Bundle(write(_open(source), path, keep=kept))
    page = _Page()
    page.add(f"{_count(len(written.questions()), 'answer')}", label=f"{written.label}:")
    redacted = "; ".join(map(str, written.manifest["redacted"]))
    page.add(redacted or "nothing", label="Redacted:")
    page.show()
    _note(written.damage, f"`meshnb coverage {path}` lists them.")
    context.exit(INTERRUPTED if written.manifest["complete"] is False else 0)


@commands.command(
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
    from meshnb.sources.permissions import manifest, missing, needed  # noqa: PLC0415

    scope = Scope(namespaces=namespace, istio_namespace=istio_namespace)
    if source is None:
        _say(manifest(needed(scope, secrets=secrets)))
        return
    chosen = {"--namespace": namespace, "--istio-namespace": istio_namespace}
    opened = _open_cluster(source, chosen) if is_cluster(source) else _open(source)
    page = _Page()
    lacking = missing(opened, scope, secrets=secrets)
    for permission, said in sorted(lacking.items()):
        page.add(said, label=f"{permission}:")
    if not lacking:
        page.add(f"{opened.label} refused nothing.")
    page.show()
    context.exit(PROBLEM if lacking else 0)


@commands.command()
@click.argument("kind", type=click.Choice(["pod", "service"]))
@click.argument("name", metavar="NAME.NAMESPACE")
@_source
@click.option("--json", "as_json", is_flag=True, help="Print the description as JSON.")
def describe(kind: str, name: str, source: str, *, as_json: bool) -> None:
    """Say which objects act on a pod or a Service.

    Those that do not, but could be thought to, are listed with the reason.
    """
    from meshnb.traces.describe import describe_pod, describe_service  # noqa: PLC0415  brings pandas
    from meshnb.traces.mesh import MESH  # noqa: PLC0415

    subject, dot, namespace = name.rpartition(".")
    if not dot:
        raise UsageError(f"{name!r} has no namespace.", next_step="Write NAME.NAMESPACE.")
    facts = _facts(source)
    said = (describe_pod if kind == "pod" else describe_service)(
        facts, MESH.make(facts), namespace, subject
    )
    document = said.to_json()
    if as_json:
        _say(json.dumps(document, indent=1) + "\n")
    else:
        page = _Page()
        _description(page, document)
        page.show()
    _note(facts.source.damage, f"`meshnb coverage {source}` lists them.")


def _description(page: _Page, said: Mapping[str, Any]) -> None:
    page.add(f"{said['namespace']}/{said['name']}", label=said["kind"], strong=True)
    if said["kind"] == "Pod":
        _described_pod(page, said)
    else:
        pods = [f"{pod['pod']} ({pod['mesh']})" for pod in said["pods"]]
        page.add(_few(pods) or "selects no running pod", label="Pods:", indent=1)
        _ports(page, said["ports"])
        _waypoint(page, said["waypoint"])
    modes: dict[str, list[str]] = {}
    for secured in said["mtls"]:
        source = secured["policy"] or "the default, as no PeerAuthentication says otherwise"
        port = "every other port" if secured["port"] is None else f"port {secured['port']}"
        modes.setdefault(f"{secured['mode']}, by {source}", []).append(port)
    for mode, ports in modes.items():
        page.add(f"{mode} ({_few(ports)})", label="Mutual TLS:", indent=1)
    for acts, title in ((True, "These act:"), (False, "These do not:")):
        page.gap()
        page.add(label=title)
        chosen = [one for one in said["objects"] if one["acts"] is acts]
        if not chosen:
            page.add("none", indent=1)
        for one in chosen:
            label = f"{one['kind']} {one['namespace']}/{one['name']}:"
            page.add(one["why"], label=label, indent=1)
            _details(page, one)


def _described_pod(page: _Page, said: Mapping[str, Any]) -> None:
    injection = said["injection"]
    part = f"{said['mesh']}, {said['phase']}"
    revision = f", revision {injection['revision']}" if injection["revision"] else ""
    page.add(f"{part}{revision}. {injection['reason']}", label="Part in the mesh:", indent=1)
    if injection["ambient_by"] or injection["ztunnel_protocol"]:
        reached = injection["ztunnel_protocol"] or "nothing, as no ztunnel knows it"
        page.add(
            f"{injection['ambient_by'] or 'not asked for'}; ztunnel reaches it by {reached}",
            label="Ambient mode:",
            indent=1,
        )
    _waypoint(page, injection["waypoint"])
    ports = [f"{port['port']} ({port['container']})" for port in said["ports"]]
    page.add(_few(ports) or "it declares none", label="Ports:", indent=1)
    for problem, names in (
        ("Not ready:", said["not_ready"]),
        ("Without a label for:", said["missing_labels"]),
        ("As the proxy's user 1337, so around the mesh:", said["as_proxy_user"]),
    ):
        if names:
            page.add(_few(names), label=problem, indent=1)
    for service in said["services"]:
        label = f"Service {service['namespace']}/{service['service']}:"
        page.add("selects it", label=label, indent=1)
        _ports(page, service["ports"], indent=2)
    if not said["services"]:
        page.add("no Service selects it", label="Services:", indent=1)


def _ports(page: _Page, ports: Iterable[Mapping[str, Any]], indent: int = 1) -> None:
    for port in ports:
        target = port["pod_port"] or f"{port['target_port']}, which the pod does not have"
        page.add(
            f"{port['port']} ({port['name'] or 'unnamed'}, {port['protocol']}) to {target}",
            label="Port:",
            indent=indent,
        )


def _waypoint(page: _Page, waypoint: Mapping[str, Any] | None) -> None:
    if waypoint is not None:
        there = _few(waypoint["pods"]) if waypoint["exists"] else "it does not exist"
        name = f"{waypoint['namespace']}/{waypoint['name']}"
        page.add(
            f"{name}, by {waypoint['label']}: {there or 'it has no running pod'}",
            label="Waypoint:",
            indent=1,
        )


def _details(page: _Page, one: Mapping[str, Any]) -> None:
    if "traffic_policy" in one:
        if one["matching_subsets"] or one["other_subsets"]:
            page.add(_few(one["matching_subsets"]) or "none", label="Its subsets:", indent=2)
            if one["other_subsets"]:
                page.add(_few(one["other_subsets"]), label="Other subsets:", indent=2)
        page.add(_few(one["traffic_policy"]) or "none", label="Traffic policy:", indent=2)
    for route in one.get("routes", ()) if one["acts"] else ():
        share = f", {route['weight']} %" if route["weight"] is not None else ""
        subset = f" subset {route['subset']}" if route["subset"] else ""
        why = f": {route['why']}" if route["why"] else ""
        page.add(
            f"{route['match'] or 'all requests'} to {route['host']}{subset}{share}{why}",
            label=f"{route['path']} {'leads here' if route['reaches'] else 'does not'}:",
            indent=2,
        )


@commands.command()
@click.argument("proxy", metavar="PROXY")
@_source
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

    facts = _facts(source)
    mesh = MESH.make(facts)
    found = (
        (*compare_with_siblings(facts, mesh, proxy), compare_with_istiod(facts, mesh, proxy))
        if other is None
        else (compare_proxies(facts, mesh, proxy, other),)
    )
    if as_json:
        _say(json.dumps([one.to_json() for one in found], indent=1) + "\n")
    else:
        page = _Page()
        for number, one in enumerate(found):
            if number:
                page.gap()
            _comparison(page, one)
        page.show()
    _note(facts.source.damage, f"`meshnb coverage {source}` lists them.")


def _comparison(page: _Page, found: Comparison) -> None:
    against = f", with {_few(found.against)}" if found.against else ""
    page.add(f"{found.scope}{against}", label=f"{found.proxy}:", strong=True)
    if found.unknown:
        page.add(found.unknown, label="Unknown:", colour="yellow", indent=1)
    if found.against:
        same = f"{_count(found.same, 'resource')} the same"
        page.add(f"{same}, {len(found.differing)} not", indent=1)
    for resource in found.differing:
        origin = f" (from {_few(resource.made_from)})" if resource.made_from else ""
        page.add(f"{resource.state}{origin}", label=f"{resource.kind} {resource.name}:", indent=1)
        for difference in resource.differences[:_FEW]:
            sides = f"{difference.here or 'absent'} here, {difference.there or 'absent'} there"
            page.add(sides, label=f"{difference.path}:", indent=2)
        if len(resource.differences) > _FEW:
            page.add(f"and {len(resource.differences) - _FEW} more places", indent=2)


@commands.command(
    "diff",
    epilog="Exit codes, as of diff: 0 nothing changed; 1 something did; 2 the command is wrong; "
    "3 a source cannot be used.",
)
@click.argument("before", metavar="BEFORE")
@click.argument("after", metavar="AFTER")
@click.option("--table", metavar="NAME", help="Compare the rows of one table only, by its key.")
@click.option("--json", "as_json", is_flag=True, help="Print the changes as JSON.")
@click.pass_context
def compare_moments(
    context: click.Context, before: str, after: str, *, table: str | None, as_json: bool
) -> None:
    """Say what changed between two moments of a mesh.

    BEFORE and AFTER are sources. Versions, ages, counters and times are left out; pods that a
    workload replaced are one rollout.
    """
    from meshnb.guides.base import Case  # noqa: PLC0415  brings pandas
    from meshnb.guides.since import Since  # noqa: PLC0415
    from meshnb.traces.moments import Moments, comparable  # noqa: PLC0415

    if table is not None:
        comparable(table)
    old, new = _facts(before), _facts(after)
    if old.now > new.now:
        _complain("note: BEFORE is the newer of the two")
    if table is not None:
        rows = Moments(old, new).rows(table)
        _changed_rows(rows, as_json=as_json)
        context.exit(PROBLEM if rows else 0)
    since = Since(Case.of(old), Case.of(new))
    if as_json:
        _say(json.dumps(since.to_json(), indent=1) + "\n")
    else:
        page = _Page()
        _since(page, since)
        page.show()
    _note([f"not compared: {one}" for one in since.moments.unseen], "--json lists them.")
    context.exit(0 if since.same else PROBLEM)


def _since(page: _Page, since: Since) -> None:
    sides = " -> ".join(
        f"{case.facts.source.label}, {_time(case.facts.now)}"
        for case in (since.before, since.after)
    )
    page.add(since.headline(), label=f"{sides}:", strong=True)
    for causes, label, colour in (
        (since.new_causes, "New problem:", "red"),
        (since.gone_causes, "No problem any more:", "green"),
    ):
        for cause in causes:
            page.add(cause.finding.message, label=label, colour=colour, indent=1)
    signs = {"added": "+", "removed": "-"}
    for change in since.changes:
        page.add(change.words, label=signs.get(change.state, "~"), indent=1)


def _changed_rows(rows: Sequence[RowChange], *, as_json: bool) -> None:
    if as_json:
        _say(json.dumps([row.to_json() for row in rows], indent=1) + "\n")
        return
    page = _Page()
    if not rows:
        page.add("Nothing changed.")
    for row in rows:
        page.add("" if row.state == "changed" else row.state, label=f"{row.name}:")
        for edit in row.edits:
            page.add(str(edit), indent=1)
    page.show()


@commands.command(
    "report", epilog="Exit codes: 0 it is written; 2 it is not; 3 the source cannot be used."
)
@_source
@_mesh_config
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

    facts = _facts(source, mesh_config)
    written = write(diagnosis_of(facts), Path(path), force=force)
    page = _Page()
    page.add(f"{written}", label="written:")
    page.show()
    _note(facts.source.damage, f"`meshnb coverage {source}` lists them.")


@commands.group(invoke_without_command=True)
@click.pass_context
def trace(context: click.Context) -> None:
    """Follow one request, one change or one connection, hop by hop."""
    if context.invoked_subcommand is None:
        _say(context.get_help() + "\n")


_TRACE_CODES = (
    "Exit codes: 0 it gets through, or is in force; 1 it does not, not always, or that cannot be "
    "decided; 2 there is no such request, object or end; 3 the source cannot be used."
)
_as_json = click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print the trace as JSON, format 1; its outcome is passes, broken, varies or undecided.",
)
_all_hops = click.option(
    "--all", "everything", is_flag=True, help="Leave nothing out: all that was passed over."
)


@trace.command("request", epilog=_TRACE_CODES)
@_source
@click.argument("words", metavar="REQUEST", required=False)
@click.option("--line", type=click.IntRange(min=0), help="A row of the table access_log instead.")
@_as_json
@_all_hops
@click.pass_context
def trace_request(
    context: click.Context,
    source: str,
    words: str | None,
    *,
    line: int | None,
    as_json: bool,
    everything: bool,
) -> None:
    """Follow a request through the proxies.

    REQUEST is one text, such as "GET /reviews/0 with header end-user: jason from client.bookinfo to
    reviews:9080". What is not named was not sent.
    """
    from meshnb.guides.accounts import logged, of_request  # noqa: PLC0415  brings pandas
    from meshnb.traces.request import Request, follow_request  # noqa: PLC0415

    facts = _facts(source)
    if words is not None and line is None:
        request, seen = Request.parse(facts, words), ""
    elif line is not None and words is None:
        request, seen = Request.of_line(facts, line), logged(facts, line)
    else:
        raise UsageError("Name one request.", next_step="Write REQUEST, or --line ROW.")
    found = follow_request(facts, request)
    _traced(context, facts, of_request(found), found.to_json(), seen, (as_json, everything))


@trace.command("change", epilog=_TRACE_CODES)
@_source
@click.argument("subject", metavar="KIND/NAMESPACE/NAME")
@_as_json
@_all_hops
@click.pass_context
def trace_change(
    context: click.Context, source: str, subject: str, *, as_json: bool, everything: bool
) -> None:
    """Follow an object from being stored to being used.

    One that is gone, and is still held by a proxy, can be followed as well.
    """
    from meshnb.guides.accounts import follow_written, of_change  # noqa: PLC0415  brings pandas

    facts = _facts(source)
    found = follow_written(facts, subject)
    _traced(context, facts, of_change(found), found.to_json(), "", (as_json, everything))


@trace.command("connection", epilog=_TRACE_CODES)
@_source
@click.argument("client", metavar="CLIENT")
@click.argument("server", metavar="SERVER:PORT")
@_as_json
@_all_hops
@click.pass_context
def trace_connection(
    context: click.Context,
    source: str,
    client: str,
    server: str,
    *,
    as_json: bool,
    everything: bool,
) -> None:
    """Look at both ends of a connection: TLS, certificates and trust.

    CLIENT is a pod as POD.NAMESPACE, a workload, or `outside`; SERVER is a Service, a pod, an
    address or an external host.
    """
    from meshnb.guides.accounts import of_connection  # noqa: PLC0415  brings pandas
    from meshnb.traces.connection import follow_connection  # noqa: PLC0415

    facts = _facts(source)
    found = follow_connection(facts, client, server)
    _traced(context, facts, of_connection(found), found.to_json(), "", (as_json, everything))


def _traced(
    context: click.Context,
    facts: Facts,
    account: Account,
    document: Mapping[str, Any],
    seen: str,
    asked: tuple[bool, bool],
) -> None:
    """Print what a trace found, and end with the exit code of it."""
    as_json, everything = asked
    if as_json:
        head = {"format": 1, "kind": account.kind, "outcome": account.verdict}
        log = {"logged": seen} if seen else {}
        _say(json.dumps({**head, **log, **document}, indent=1) + "\n")
    else:
        page = _Page()
        _account(page, facts, account, seen, everything=everything)
        page.show()
    _note(facts.source.damage, f"`meshnb coverage {facts.source.label}` lists them.")
    context.exit(0 if account.verdict == "passes" else PROBLEM)


_COLOURS = {"passes": "green", "broken": "red"}


def _account(page: _Page, facts: Facts, account: Account, seen: str, *, everything: bool) -> None:
    from meshnb.guides.accounts import place  # noqa: PLC0415  brings pandas

    colour = _COLOURS.get(account.verdict, "yellow")
    page.add(account.says, label=f"{account.word}:", colour=colour, strong=True)
    page.add(account.title, indent=1)
    if seen:
        page.add(seen, indent=1)
    page.gap()
    where = ""
    for part in account.parts:
        if place(part) != where:
            where = place(part)
            page.add(label=where)
        _part(page, facts, part, everything=everything, ends=part is account.broken)
    if account.undecided:
        page.gap()
        page.add(label="Cannot be decided:")
        for reason in account.undecided:
            page.add(reason, indent=1)


def _part(page: _Page, facts: Facts, part: Part, *, everything: bool, ends: bool) -> None:
    from meshnb.guides.accounts import cited_words, headed  # noqa: PLC0415  brings pandas

    label = f"{part.state.sign} {headed(part)}"
    colour = "red" if ends else None
    page.add(f"{part.says}{'  <- here' if ends else ''}", label=label, colour=colour, indent=1)
    # What all is well with needs no proof unless it is asked for.
    if everything or part.state.name in ("BROKEN", "ODD", "UNKNOWN"):
        for cited in cited_words(facts, part):
            page.row(cited, indent=3)
    if part.object:
        page.row(f"made from {part.object}", indent=3)
    shown = part.passed_over if everything else part.passed_over[:_SAMPLE_ROWS]
    for name, why in shown:
        page.row(f"not {name}: {why}", indent=3)
    if len(shown) < len(part.passed_over):
        page.row(f"and {len(part.passed_over) - len(shown)} more (--all lists them)", indent=3)
    grave = [one for one in part.standings if one.state.name == part.state.name]
    standings = part.standings if everything else grave if part.state.name != "FINE" else ()
    for one in standings if everything else standings[:_FEW]:
        page.add(one.says, label=f"{one.state.sign} {one.title}:", indent=3)
    if not everything and len(standings) > _FEW:
        page.row(f"and {len(standings) - _FEW} more (--all lists them)", indent=3)


@commands.command()
@_source
@_mesh_config
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

    facts = _facts(source, mesh_config, mesh_networks)
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
        _say(json.dumps(rows, indent=1) + "\n")
    else:
        page = _Page()
        for check, finding in found:
            same = f" = {finding.same_as}" if finding.same_as else ""
            page.add(finding.message, label=f"{finding.level} {check.code}{same}:")
            page.add(finding.remedy, indent=1)
        page.add(_count(len(found), "finding"))
        page.show()
    broken = [f"{one.check.code} is broken: {one.because}" for one in outcomes if one.broken]
    _note([*facts.source.damage, *broken], f"`meshnb coverage {source}` lists what is missing.")
    levels = ("error", "warning", "info")
    if fail_on and any(
        levels.index(finding.level.lower()) <= levels.index(fail_on) for _, finding in found
    ):
        context.exit(PROBLEM)


@commands.command(
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
@_source
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
    opened = _open(source)
    if pods or body_mb:
        opened = Grown(opened, pods=pods or 0, body_mb=body_mb or 0.0)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    path = None if kubeconfig is None else Path(kubeconfig).absolute()
    with (
        contextlib.suppress(KeyboardInterrupt),
        serve(opened, port=port, kubeconfig=path, credential=credential, faults=wanted) as served,
    ):
        page = _Page()
        page.add(f"{opened.label} at {served.url}. Ctrl-C ends it.", label="Serving:")
        # Not wrapped, so that it can be copied.
        written = shlex.quote(str(served.kubeconfig))
        page.lines.append(f"{_INDENT}export KUBECONFIG={_one_line(written)}")
        page.add("kubectl get pods -A", indent=1)
        page.add("meshnb diagnose cluster", indent=1)
        page.show()
        _note(opened.damage, f"`meshnb coverage {source}` lists them.")
        threading.Event().wait()


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code; whatever goes wrong is a sentence on stderr."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        return commands.main(list(arguments), prog_name="meshnb", standalone_mode=False) or 0
    except click.Abort:
        return INTERRUPTED
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        command = "meshnb" if context is None else context.command_path
        _complain(f"{error.format_message()} Try `{command} --help`.")
        return USAGE
    except UsageError as error:
        _complain(str(error))
        return USAGE
    except SourceError as error:
        _complain(str(error))
        return UNUSABLE
    except MeshnbError as error:
        _complain(str(error))
        return BROKEN
    except Exception as error:  # noqa: BLE001  a traceback is no answer, and its exit code is taken
        _complain(_fault(error))
        return BROKEN


def _fault(error: Exception) -> str:
    import traceback  # noqa: PLC0415  hardly ever needed

    frames = traceback.extract_tb(error.__traceback__)
    here = os.path.dirname(__file__)  # noqa: PTH120  pathlib would be imported for this alone
    frame = [frame for frame in frames if frame.filename.startswith(here)][-1]
    return (
        f"{type(error).__name__} at {os.path.relpath(frame.filename, here)}:{frame.lineno}: "
        f"{error}. This is a fault of meshnb itself, not of the mesh; please report it."
    )


def main() -> None:
    """Run the command line of this process, and end it."""
    code = run(sys.argv[1:])
    try:
        sys.stdout.flush()
    except OSError:
        # Nobody reads what is left. Python would try again at its end, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)
