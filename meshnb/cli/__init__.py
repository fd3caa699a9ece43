"""The command line: what the notebooks show, on a terminal and for programs."""

from __future__ import annotations

import gc
import io
import os
import sys
from collections.abc import Sequence

import click

from meshnb.cli import (
    checks,
    compare,
    coverage,
    describe,
    diagnose,
    diff,
    findings,
    permissions,
    record,
    recordings,
    report,
    serve,
    table,
    trace,
)
from meshnb.cli.base import BROKEN, INTERRUPTED, UNUSABLE, USAGE, complain, say
from meshnb.errors import MeshnbError, SourceError, UsageError

__all__ = ["UNUSABLE", "USAGE", "commands", "main", "run"]

_HELP = """\
Find out what is wrong with an Istio mesh, and show the evidence.

\b
To begin with:
  meshnb diagnose cluster                    asks the cluster of kubectl's current context
  meshnb diagnose recorded:subset-missing    without a cluster: a mesh that was recorded"""
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

#: Every command; help lists them by name.
COMMANDS = (
    *(diagnose.diagnose, findings.findings, trace.trace, describe.describe, compare.compare),
    *(diff.compare_moments, report.write_report, coverage.coverage),
    *(table.list_tables, table.print_table, checks.list_checks, recordings.list_recordings),
    *(record.record, permissions.permissions, serve.serve_recording),
)


@click.group(
    commands=COMMANDS,
    help=_HELP,
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
    """Show the help, unless there is a command to run."""
    if context.invoked_subcommand is None:
        say(context.get_help() + "\n")


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
        complain(f"{error.format_message()} Try `{command} --help`.")
        return USAGE
    except UsageError as error:
        complain(str(error))
        return USAGE
    except SourceError as error:
        complain(str(error))
        return UNUSABLE
    except MeshnbError as error:
        complain(str(error))
        return BROKEN
    except Exception as error:  # noqa: BLE001  a traceback is no answer, and its exit code is taken
        complain(_fault(error))
        return BROKEN


def _fault(error: Exception) -> str:
    import traceback  # noqa: PLC0415  hardly ever needed

    frames = traceback.extract_tb(error.__traceback__)
    here = os.path.dirname(os.path.dirname(__file__))  # noqa: PTH120  pathlib is slow to import
    frame = [frame for frame in frames if frame.filename.startswith(here)][-1]
    return (
        f"{type(error).__name__} at {os.path.relpath(frame.filename, here)}:{frame.lineno}: "
        f"{error}. This is a fault of meshnb itself, not of the mesh; please report it."
    )


def main() -> None:
    """Run the command line of this process, and end it."""
    # Most of what a command makes is needed to its end. To look for garbage in it every 700 objects
    # takes a tenth of the time, and so does a last look, when the process ends anyway.
    gc.set_threshold(50_000, 20)
    code = run(sys.argv[1:])
    gc.freeze()
    try:
        sys.stdout.flush()
    except OSError:
        # Nobody reads what is left. Python would try again at its end, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)
