"""The command line: what it prints, for whom, and the exit code with which it ends."""

from __future__ import annotations

import csv
import fcntl
import io
import json
import os
import pty
import re
import shutil
import signal
import struct
import subprocess
import sys
import termios
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest

import meshnb
from meshnb.checks import CHECKS
from meshnb.cli import commands, run
from meshnb.cli.base import harmless
from meshnb.diagnosis import diagnose
from meshnb.sources import Bundle, open_source, recordings
from meshnb.tables import TABLES, Facts
from meshnb.tables.events import EVENTS

ROOT = Path(__file__).resolve().parents[1]
#: Imported by some room, and too slow for help.
HEAVY = ("pandas", "numpy", "msgspec", "cryptography", "networkx", "kubernetes", "IPython", "tqdm")
WIDGETS = ("ipywidgets", "anywidget", "itables", "plotly")


@dataclass(frozen=True, slots=True)
class Printed:
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str


Run = Callable[..., Printed]


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs one command in this process."""

    def call(*arguments: str | Path) -> Printed:
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        return Printed(code, *capsys.readouterr())

    return call


#: Of the environment in which the tests run, what would change what is printed.
OURS = {"NO_COLOR", "COLUMNS", "PYTHONUNBUFFERED", "PYTHONIOENCODING", "PYTHONUTF8"}


def _environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in OURS}
    return {**kept, "PYTHONPATH": str(ROOT), "TERM": "xterm", **more}


def _start(arguments: Iterable[str | Path], environment: Mapping[str, str], out: int) -> Any:
    return subprocess.Popen(
        [sys.executable, "-m", "meshnb", *map(str, arguments)],
        env=_environment(**environment),
        stdout=out,
        stderr=subprocess.PIPE,
    )


def _process(*arguments: str | Path, **environment: str) -> Printed:
    process = _start(arguments, environment, subprocess.PIPE)
    out, err = process.communicate()
    return Printed(process.returncode, out.decode(), err.decode())


def _python(program: str) -> str:
    """Run a program that ends with a message, and return the message."""
    answer = subprocess.run(
        [sys.executable, "-c", program],
        env=_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    return answer.stderr


def _on_terminal(*arguments: str | Path, columns: int, **environment: str) -> str:
    """Return what a terminal of this width gets to show."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    process = _start(arguments, environment, theirs)
    os.close(theirs)
    shown = b""
    with open(ours, "rb", buffering=0) as terminal:  # noqa: PTH123  a number, not a path
        try:
            while some := terminal.read(1 << 16):
                shown += some
        except OSError:
            pass  # so Linux says that the other end is closed
    assert process.communicate()[1] == b""
    return shown.decode().replace("\r\n", "\n")


def _changed(source: Path, target: Path, change: Callable[[str], str], file: str) -> Path:
    """Copy a recording, and change the text of one of its files."""
    shutil.copytree(source, target)
    (target / file).write_text(change((target / file).read_text()))
    return target


def _without(pattern: str) -> Callable[[str], str]:
    """Return a change that takes lines out of an index."""
    return lambda text: "".join(
        line for line in text.splitlines(keepends=True) if not re.search(pattern, line)
    )


@pytest.fixture(scope="session")
def half_blind(recordings_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a recording of a healthy mesh in which no proxy was asked for its configuration."""
    return _changed(
        recordings_folder / "healthy",
        tmp_path_factory.mktemp("half-blind") / "bundle",
        _without(r"/config_dump"),
        "index.jsonl",
    )


# --- Starting -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["diagnose", "--help"], ["table", "--help"], []]
)
def test_help_and_version_import_nothing_that_is_slow(arguments: list[str]) -> None:
    program = (
        "import sys\n"
        "from meshnb.cli import run\n"
        f"assert run({arguments!r}) == 0\n"
        f"slow = {{*{HEAVY + WIDGETS!r}}} & set(sys.modules)\n"
        "rooms = {name.split('.')[1] for name in sys.modules if name.startswith('meshnb.')}\n"
        "sys.exit(str(slow | rooms - {'cli', 'errors'}))\n"
    )
    assert _python(program) == "set()\n"


def test_a_diagnosis_on_a_terminal_imports_no_widgets_and_no_cluster_library() -> None:
    program = (
        "import sys\n"
        "from meshnb.cli import run\n"
        "assert run(['diagnose', 'recorded:healthy']) == 0\n"
        f"sys.exit(str({{*{(*WIDGETS, 'kubernetes', 'IPython')!r}}} & set(sys.modules)))\n"
    )
    assert _python(program) == "set()\n"


def test_without_a_command_it_prints_the_same_as_with_help(printed: Run) -> None:
    assert printed() == printed("--help") == printed("-h")


def test_help_names_every_command_and_every_exit_code(printed: Run) -> None:
    text = printed("--help").out
    assert set(re.findall(r"^  ([a-z]+)  ", text, re.MULTILINE)) == set(commands.commands)
    assert re.findall(r"^    (\d+) ", text, re.MULTILINE) == ["0", "1", "2", "3", "4", "130"]


@pytest.mark.parametrize("name", sorted(commands.commands))
def test_each_command_says_in_one_uncut_line_what_it_does(name: str, printed: Run) -> None:
    (line,) = re.findall(rf"^  {name}  +(.*)$", printed("--help").out, re.MULTILINE)
    assert line.endswith(".")
    assert not line.endswith("...")
    assert line in printed(name, "--help").out


def test_every_option_is_explained() -> None:
    options = [
        parameter
        for command in commands.commands.values()
        for parameter in command.params
        if isinstance(parameter, click.Option)
    ]
    assert options
    assert all(option.help for option in options)


def test_the_version_stands_once_at_the_front_door(printed: Run) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["dynamic"] == ["version"]
    assert project["tool"]["hatch"]["version"]["path"] == "meshnb/__init__.py"
    assert re.fullmatch(r"\d+\.\d+\.\d+", meshnb.__version__)
    assert printed("--version").out == f"meshnb {meshnb.__version__}\n"


# --- The front door -----------------------------------------------------------------------------


def test_every_public_name_is_there_and_offered_before_it_is_imported() -> None:
    assert all(getattr(meshnb, name) is not None for name in meshnb.__all__)
    assert set(meshnb.__all__) <= set(dir(meshnb))
    assert meshnb.Facts is Facts
    assert meshnb.diagnose is diagnose
    assert meshnb.recordings is recordings


def test_a_name_that_is_not_public_is_no_attribute() -> None:
    with pytest.raises(AttributeError, match="'diagnos'"):
        getattr(meshnb, "diagnos")  # noqa: B009  spelled out, mypy would refuse it


def test_importing_the_package_imports_none_of_its_rooms() -> None:
    program = "import sys, meshnb; sys.exit(str([n for n in sys.modules if n[:7] == 'meshnb.']))"
    assert _python(program) == "[]\n"


#: Prints more than a pipe holds.
_LONG = ("table", "listeners", "recorded:healthy", "--format", "json")


# --- How it ends --------------------------------------------------------------------------------


def test_a_healthy_mesh_ends_with_0_and_one_line() -> None:
    answer = _process("diagnose", "recorded:healthy")
    assert (answer.code, answer.err) == (0, "")
    assert re.fullmatch(
        r"healthy: nothing is wrong in recorded:healthy at 2026-\d\d-\d\d \d\d:\d\d:\d\d UTC "
        r"\(\d+ checks passed, \d+ lines of access logs read[^\n]*\)\.\n",
        answer.out,
    )


def test_a_problem_ends_with_1() -> None:
    answer = _process("diagnose", "recorded:subset-missing")
    assert (answer.code, answer.err) == (1, "")
    assert answer.out.startswith("problem: ")


def test_an_unknown_verdict_ends_with_1_because_silence_is_not_health(half_blind: Path) -> None:
    answer = _process("diagnose", half_blind)
    assert answer.code == 1
    assert answer.out.startswith("unknown: ")
    assert ":15000/config_dump: was never asked" in answer.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["diagnose"], "Missing argument 'SOURCE'. Try `meshnb diagnose --help`."),
        (["diagnos"], "No such command 'diagnos'."),
        (["diagnose", "--jsn", "x"], "No such option"),
        (["diagnose", "recorded:healty"], "There is no recording 'healty'. Did you mean healthy"),
        (["table", "event", "recorded:healthy"], "There is no table 'event'. Did you mean events"),
        (["tables", "podss"], "There is no table 'podss'. Did you mean pods"),
        (["checks", "MNB21"], "There is no check 'MNB21'. Did you mean MNB2"),
        (
            ["table", "events", "recorded:healthy", "--where", "raeson=x"],
            "Table events has no column 'raeson'. Did you mean reason",
        ),
        (
            ["table", "events", "recorded:healthy", "--columns", "kind,nmae"],
            "Table events has no column 'nmae'. Did you mean name",
        ),
        (
            ["table", "events", "recorded:healthy", "--where", "reason"],
            "--where 'reason' is no condition. Write --where COLUMN=VALUE.",
        ),
        (["table", "events", "recorded:healthy", "--limit", "-1"], "Invalid value for '--limit'"),
        (
            ["table", "events", "recorded:healthy", "--format", "xml"],
            "Invalid value for '--format'",
        ),
    ],
)
def test_a_wrong_command_ends_with_2_and_says_what_is_right(
    arguments: list[str], message: str, printed: Run
) -> None:
    answer = printed(*arguments)
    assert (answer.code, answer.out) == (2, "")
    assert answer.err.startswith("meshnb: ")
    assert message in answer.err
    assert answer.err.count("\n") == 1


@pytest.mark.parametrize("command", ["diagnose", "coverage", "table", "record"])
def test_a_source_that_cannot_be_used_ends_with_3(
    command: str, printed: Run, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.zip"
    broken.write_bytes(b"PK\x03\x04 cut off")
    first, last = (
        (["events"] if command == "table" else []),
        ([tmp_path / "new.zip"] if command == "record" else []),
    )
    for source, message in (
        (tmp_path / "absent.zip", "There is no file or folder"),
        (broken, "begins like a zip, but cannot be read as one"),
        (ROOT / "pyproject.toml", "is not a bundle"),
    ):
        answer = printed(command, *first, source, *last)
        assert (answer.code, answer.out) == (3, "")
        assert re.fullmatch(r"meshnb: [^\n]*\n", answer.err)
        assert message in answer.err


def test_the_bare_name_of_a_recording_is_no_source_but_gets_the_right_one_offered(
    printed: Run,
) -> None:
    answer = printed("diagnose", "subset-missing")
    assert answer.code == 3
    assert answer.err == (
        "meshnb: There is no file or folder 'subset-missing'. "
        "The recording of that name is recorded:subset-missing.\n"
    )


def test_a_fault_of_meshnb_ends_with_4_and_a_place_and_not_with_1(
    printed: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> Any:
        raise ZeroDivisionError("seven by nought")

    monkeypatch.setattr(EVENTS, "_reader", broken)
    answer = printed("table", "events", "recorded:healthy")
    assert (answer.code, answer.out) == (4, "")
    assert re.fullmatch(
        r"meshnb: ZeroDivisionError at [a-z/]+\.py:\d+: seven by nought\. "
        r"This is a fault of meshnb itself, not of the mesh; please report it\.\n",
        answer.err,
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no device without room")
def test_output_that_finds_no_room_ends_with_4_and_a_sentence() -> None:
    with Path("/dev/full").open("wb") as full:
        process = _start(["tables"], {}, full.fileno())
        err = process.communicate()[1].decode()
    assert process.returncode == 4
    assert err == (
        "meshnb: The output cannot be written: No space left on device. "
        "Write it to where there is room.\n"
    )


def test_a_reader_that_goes_away_ends_it_silently() -> None:
    process = _start(_LONG, {}, subprocess.PIPE)
    assert process.stdout.read(1) == b"["
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 141


def test_control_c_ends_with_130_and_without_a_traceback() -> None:
    """It is pressed while the output waits for its reader, so it always comes in time."""
    process = _start(_LONG, {}, subprocess.PIPE)
    assert process.stdout.read(1) == b"["
    process.send_signal(signal.SIGINT)
    err = process.communicate()[1]
    assert err.strip() == b""
    assert process.returncode == 130


# --- A diagnosis for people ---------------------------------------------------------------------


def test_the_first_line_is_the_cause_and_the_next_say_since_when_who_and_how_to_mend_it(
    printed: Run,
) -> None:
    lines = printed("diagnose", "recorded:subset-missing").out.splitlines()
    assert lines[0].startswith("problem: VirtualService bookinfo/reviews ")
    assert "v3" in lines[0]
    assert re.fullmatch(
        r"  Since 2026-11-23 02:49:57 UTC: 42 failed requests; last seen at 02:50:25\.", lines[1]
    )
    assert lines[2].startswith("  Affected: client.bookinfo and productpage-v1-")
    assert lines[3].startswith("  To mend: ")
    assert "`kubectl -n bookinfo edit virtualservice reviews`" in lines[3]


def test_evidence_names_table_rows_and_question_and_shows_a_few_rows(printed: Run) -> None:
    lines = printed("diagnose", "recorded:subset-missing").out.splitlines()
    at = lines.index("  access_log: 42 rows from LOG bookinfo/client istio-proxy and 1 more")
    samples = lines[at + 1 : at + 4]
    assert all("response_code=503" in line and "=NC" in line for line in samples)
    assert all(line.startswith("    ") and len(line) <= 160 for line in samples)
    assert not lines[at + 4].startswith("    ")


def test_symptoms_stand_with_id_and_count_and_those_without_a_cause_are_marked(
    printed: Run, recorded: Callable[[str], Facts]
) -> None:
    out = printed("diagnose", "recorded:not-ready-endpoint").out
    diagnosis = diagnose(recorded("not-ready-endpoint"))
    unexplained = set(diagnosis.unexplained)
    assert unexplained
    for symptom in diagnosis.symptoms:
        mark = " (unexplained)" if symptom in unexplained else ""
        assert f"\n  {symptom.id} {symptom.count}x {symptom.message}{mark}\n" in out


@pytest.fixture(scope="session")
def many_faults(recordings_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a recording with one fault that is felt and seven that are not."""

    def add(text: str) -> str:
        document = json.loads(text)
        for number in range(7):
            document["items"].append(
                {
                    "apiVersion": "networking.istio.io/v1",
                    "kind": "VirtualService",
                    "metadata": {"name": f"spare-{number}", "namespace": "bookinfo"},
                    "spec": {
                        "hosts": [f"spare-{number}.example.com"],
                        "http": [{"route": [{"destination": {"host": "nowhere.bookinfo"}}]}],
                    },
                }
            )
        return json.dumps(document)

    return _changed(
        recordings_folder / "subset-missing",
        tmp_path_factory.mktemp("many-faults") / "bundle",
        add,
        "kubernetes/virtualservices.networking.istio.io.json",
    )


def test_less_likely_causes_have_a_line_each_that_says_what_they_explain(
    printed: Run, many_faults: Path
) -> None:
    first, *others = diagnose(Facts(open_source(many_faults))).problems
    assert first.explains
    assert len(others) >= 7
    out = printed("diagnose", many_faults, "--all").out
    for cause in others:
        assert not cause.explains
        assert (
            f"\n  {cause.rank}. {cause.severity.value}: {cause.finding.message} "
            f"({cause.check.code}, explains nothing that was seen)\n"
        ) in out


def test_only_a_few_less_likely_causes_are_printed_unless_all_are_wanted(
    printed: Run, many_faults: Path
) -> None:
    others = len(diagnose(Facts(open_source(many_faults))).problems) - 1
    out = printed("diagnose", many_faults).out
    assert len(re.findall(r"^  \d+\. ", out, re.MULTILINE)) == 5
    assert f"\n  {others - 5} more (--all lists them)\n" in out
    assert "more (--all" not in printed("diagnose", many_faults, "--all").out


def test_checks_that_passed_are_counted_and_listed_only_when_asked_for(
    printed: Run, recorded: Callable[[str], Facts]
) -> None:
    ruled_out = diagnose(recorded("subset-missing")).ruled_out
    short = printed("diagnose", "recorded:subset-missing").out
    assert f"\nRuled out: {len(ruled_out)} checks (--all lists them)\n" in short
    long = printed("diagnose", "recorded:subset-missing", "--all").out
    assert all(f"\n  {one.check.code} {one.check.title}\n" in long for one in ruled_out)
    assert not any(one.check.title in short for one in ruled_out)


def test_checks_that_could_not_be_decided_stand_with_their_reason(
    printed: Run, half_blind: Path
) -> None:
    unknown = diagnose(Facts(open_source(half_blind))).unknown
    assert unknown
    out = printed("diagnose", half_blind, "--all").out
    assert f"\nUnknown: {len(unknown)} checks\n" in out
    for outcome in unknown:
        assert re.search(
            rf"\n  [^\n]*{outcome.check.code}[^\n]*: {re.escape(outcome.because)}\n", out
        )


def test_damage_of_the_source_is_noted_beside_the_diagnosis(
    printed: Run, recordings_folder: Path, tmp_path: Path
) -> None:
    source = _changed(
        recordings_folder / "healthy", tmp_path / "cut", lambda text: f"{text}{{", "index.jsonl"
    )
    answer = printed("diagnose", source)
    assert answer.code == 1
    assert re.match(r"meshnb: note: index\.jsonl line \d+ cannot be read", answer.err)


# --- A diagnosis for programs -------------------------------------------------------------------

_NAME = r"(?s).+"
_TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z"
_CODE = r"MNB\d{3}"
_SUBJECT = {"kind": _NAME, "namespace": r".*", "name": _NAME}
_SYMPTOMS = {"request", "connection", "pod", "sync", "control plane", "state"}
_SHAPE: Mapping[str, Any] = {
    "format": {1},
    "source": _NAME,
    "recorded_at": _TIME,
    "verdict": {"problem", "healthy", "unknown"},
    "symptoms": [
        {
            "id": r"s\d+",
            "kind": _SYMPTOMS,
            "message": _NAME,
            "count": int,
            "first_seen": (_TIME, {None}),
            "last_seen": (_TIME, {None}),
        }
    ],
    "past": [
        {
            "id": _NAME,
            "kind": _SYMPTOMS,
            "message": _NAME,
            "count": int,
            "first_seen": (_TIME, {None}),
            "last_seen": (_TIME, {None}),
            "over_since": (_TIME, {None}),
            "changed_then": [{"at": _TIME, "kind": _NAME, "namespace": str, "name": _NAME}],
        }
    ],
    "causes": [
        {
            "rank": int,
            "code": _CODE,
            "class": {"A", "B", "C"},
            "severity": {"error", "warning", "info"},
            "subject": _SUBJECT,
            "related": [_SUBJECT],
            "message": _NAME,
            "mechanism": _NAME,
            "remedy": _NAME,
            "explains": [r"s\d+"],
            "evidence": [
                {
                    "table": set(TABLES),
                    "rows": int,
                    "question": (
                        {"kind": {"list"}, "apiVersion": _NAME, "resource": _NAME},
                        {
                            "kind": {"http"},
                            "namespace": _NAME,
                            "pod": _NAME,
                            "port": int,
                            "path": r"/.*",
                        },
                        {
                            "kind": {"probe"},
                            "namespace": _NAME,
                            "pod": _NAME,
                            "port": int,
                            "protocol": {"tcp", "tls", "h2c"},
                        },
                        {
                            "kind": {"log"},
                            "namespace": _NAME,
                            "pod": _NAME,
                            "container": _NAME,
                            "previous": {True, False},
                        },
                    ),
                }
            ],
        }
    ],
    "ruled_out": [{"code": _CODE, "title": _NAME}],
    "unknown": [{"code": _CODE, "title": _NAME, "because": _NAME}],
}


def _has_shape(value: Any, shape: Any, path: str = "$") -> str:
    """Return where a value has another shape, or nothing; objects have exactly the keys named."""
    match shape:
        case str():
            fits = isinstance(value, str) and re.fullmatch(shape, value) is not None
            return "" if fits else f"{path} is {value!r}"
        case set():
            return "" if value in shape else f"{path} is {value!r}"
        case tuple():
            wrong = [_has_shape(value, one, path) for one in shape]
            return "" if "" in wrong else " and ".join(wrong)
        case list():
            if not isinstance(value, list):
                return f"{path} is no list"
            each = (_has_shape(one, shape[0], f"{path}[{i}]") for i, one in enumerate(value))
            return next(filter(None, each), "")
        case dict():
            if not isinstance(value, dict) or list(value) != list(shape):
                return f"{path} has other keys: {value!r}"
            each = (_has_shape(value[key], one, f"{path}.{key}") for key, one in shape.items())
            return next(filter(None, each), "")
        case _:
            return "" if type(value) is shape else f"{path} is {value!r}"


@pytest.mark.parametrize("name", [recording.name for recording in recordings()])
def test_json_has_exactly_the_documented_shape_and_is_the_diagnosis(
    name: str, printed: Run, recorded: Callable[[str], Facts]
) -> None:
    answer = printed("diagnose", f"recorded:{name}", "--json")
    document = json.loads(answer.out)
    assert _has_shape(document, _SHAPE) == ""
    assert document == {**diagnose(recorded(name)).to_json(), "source": f"recorded:{name}"}
    assert answer.code == (0 if name.startswith("healthy") else 1)
    assert document["verdict"] == ("healthy" if name.startswith("healthy") else "problem")
    assert [cause["rank"] for cause in document["causes"]] == [
        rank for rank, _ in enumerate(document["causes"], start=1)
    ]
    seen = {symptom["id"] for symptom in document["symptoms"]}
    assert all(set(cause["explains"]) <= seen for cause in document["causes"])
    assert all(entry["rows"] > 0 for cause in document["causes"] for entry in cause["evidence"])


def test_json_of_an_unknown_verdict_has_the_same_shape(printed: Run, half_blind: Path) -> None:
    answer = printed("diagnose", half_blind, "--json")
    document = json.loads(answer.out)
    assert answer.code == 1
    assert _has_shape(document, _SHAPE) == ""
    assert document["verdict"] == "unknown"
    assert document["unknown"]


def test_json_is_the_same_to_the_byte_in_every_process() -> None:
    """Sets of texts come in another order in each process; nothing of that may be seen."""
    first, second = (
        _process("diagnose", "recorded:not-ready-endpoint", "--json", PYTHONHASHSEED=seed)
        for seed in ("1", "2")
    )
    assert first == second
    assert json.loads(first.out)["format"] == 1


# --- Terminals ----------------------------------------------------------------------------------

_STYLE = re.compile(r"\x1b\[[0-9;]*m")


def test_a_terminal_gets_colour_and_lines_that_fit_it() -> None:
    shown = _on_terminal("diagnose", "recorded:subset-missing", columns=72)
    assert shown.startswith("\x1b[31m\x1b[1mproblem: \x1b[0m\x1b[1mVirtualService")
    lines = _STYLE.sub("", shown).splitlines()
    assert all(len(line) <= 72 for line in lines)
    assert any("`kubectl -n bookinfo edit virtualservice reviews`" in line for line in lines)


@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_a_terminal_that_wants_no_colour_gets_the_same_words_without(
    environment: dict[str, str],
) -> None:
    plain = _on_terminal("diagnose", "recorded:subset-missing", columns=72, **environment)
    assert "\x1b" not in plain
    coloured = _on_terminal("diagnose", "recorded:subset-missing", columns=72)
    assert _STYLE.sub("", coloured) == plain


def test_a_pipe_gets_neither_colour_nor_broken_lines() -> None:
    piped = _process("diagnose", "recorded:subset-missing").out
    assert "\x1b" not in piped
    terminal = _on_terminal("diagnose", "recorded:subset-missing", columns=400, NO_COLOR="1")
    assert piped.splitlines()[:4] == terminal.splitlines()[:4]
    assert max(map(len, piped.splitlines())) > 200


def test_a_table_fits_the_terminal_and_says_which_columns_had_no_room() -> None:
    shown = _on_terminal("table", "routes", "recorded:healthy", columns=80, NO_COLOR="1")
    lines = shown.splitlines()
    assert all(len(line) <= 80 for line in lines)
    titles = lines[0].split()
    said = " ".join(line.strip() for line in lines if not line.startswith("client")).partition(
        "no room for "
    )[2]
    left_out = said.partition("; choose with --columns")[0].split(", ")
    assert titles + left_out == list(TABLES["routes"].columns)
    assert any(re.fullmatch(r"50 of \d+ rows", line) for line in lines)


def test_one_column_that_is_wider_than_the_terminal_is_cut() -> None:
    shown = _on_terminal(
        "table", "pods", "recorded:healthy", "--columns", "annotations", columns=40, NO_COLOR="1"
    )
    lines = shown.splitlines()
    assert lines[0] == "annotations"
    assert lines[1].endswith("…")
    assert len(lines[1]) == 40


def test_a_terminal_that_cannot_show_a_character_gets_its_number() -> None:
    shown = _on_terminal(
        *("table", "pods", "recorded:healthy", "--columns", "annotations"),
        columns=40,
        PYTHONIOENCODING="latin-1",
    )
    assert "\\u2026\n" in shown


# --- Hostile strings ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2J\x1b]0;title\x07", r"\x1b[2J\x1b]0;title\x07"),
        ("over\rwritten\x08", r"over\rwritten\x08"),
        ("\x9b31m", r"\x9b31m"),
        ("evil\u202etxt.exe\u2066", r"evil\u202etxt.exe\u2066"),
        ("zero\u200bwidth\ufeff\U000e0041", r"zero\u200bwidth\ufeff\U000e0041"),
        ("half \ud83d of a character", r"half \ud83d of a character"),
        ("plain\ttext\nZürich 東京 😀", "plain\ttext\nZürich 東京 😀"),
    ],
)
def test_what_a_terminal_would_obey_or_hide_is_spelled_out(text: str, shown: str) -> None:
    assert harmless(text) == shown


def test_no_character_below_the_space_survives_but_tab_and_line_feed() -> None:
    controls = [*map(chr, range(32)), *map(chr, range(127, 160))]
    kept = [character for character in controls if harmless(character) == character]
    assert kept == ["\t", "\n"]


@pytest.fixture(scope="session")
def hostile(recordings_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a recording in which the name of a subset clears the screen and reverses the text."""
    return _changed(
        recordings_folder / "subset-missing",
        tmp_path_factory.mktemp("hostile") / "bundle",
        lambda text: text.replace('"v3"', r'"v3\u001b[2J\u001b[31m\u202e\r\n"'),
        "kubernetes/virtualservices.networking.istio.io.json",
    )


def test_escape_sequences_from_a_cluster_reach_no_terminal_and_no_pipe(hostile: Path) -> None:
    expected = r"v3\x1b[2J\x1b[31m\u202e"
    piped = _process("diagnose", hostile)
    assert expected in piped.out.splitlines()[0]
    assert "\x1b" not in piped.out
    assert "\u202e" not in piped.out
    shown = _STYLE.sub("", _on_terminal("diagnose", hostile, columns=300))
    assert expected in shown.splitlines()[0]
    assert "\x1b" not in shown


@pytest.mark.parametrize("form", ["text", "csv", "json"])
def test_escape_sequences_in_a_table_are_spelled_out_in_every_form(
    form: str, hostile: Path, printed: Run
) -> None:
    answer = printed("table", "istio_config", hostile, "--format", form)
    assert answer.code == 0
    assert "v3" in answer.out
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", answer.out)


def test_escape_sequences_in_an_error_are_spelled_out(printed: Run) -> None:
    for arguments in (["\x1b[2J"], ["diagnose", "x\x1b[2J"], ["table", "\x1b[2J", "x"]):
        answer = printed(*arguments)
        assert answer.code in (2, 3)
        assert "\x1b" not in answer.err
        assert r"\x1b[2J" in answer.err


# --- Tables -------------------------------------------------------------------------------------


def test_all_tables_are_listed_with_what_a_row_is(printed: Run) -> None:
    lines = printed("tables").out.splitlines()
    assert [tuple(line.split(maxsplit=1)) for line in lines] == [
        (table.name, table.grain) for table in TABLES.values()
    ]


def test_columns_are_described_for_all_tables_or_for_one(printed: Run) -> None:
    every = printed("tables", "--columns").out
    assert every == "\n\n".join(table.document() for table in TABLES.values()) + "\n"
    assert printed("tables", "events").out == EVENTS.document() + "\n"


def test_a_table_as_json_is_a_list_of_records_with_nulls_and_times_as_texts(
    printed: Run, recorded: Callable[[str], Facts]
) -> None:
    records = json.loads(printed("table", "pods", "recorded:healthy", "--format", "json").out)
    frame = recorded("healthy")["pods"]
    assert len(records) == len(frame)
    assert all(list(record) == list(frame.columns) for record in records)
    assert [record["pod"] for record in records] == frame["pod"].tolist()
    assert [record["labels"] for record in records] == frame["labels"].tolist()
    assert all(record["deleted"] is None for record in records)
    assert all(record["host_network"] is False for record in records if record["proxy"])
    assert all(re.fullmatch(_TIME, record["created"]) for record in records)


@pytest.mark.parametrize("name", sorted(TABLES))
def test_every_table_can_be_printed_in_every_form_with_the_same_rows(
    name: str, printed: Run, recordings_folder: Path, recorded: Callable[[str], Facts]
) -> None:
    source = recordings_folder / "subset-missing"
    rows = len(recorded("subset-missing")[name])
    records = json.loads(printed("table", name, source, "--format", "json").out)
    read = list(csv.DictReader(io.StringIO(printed("table", name, source, "--format", "csv").out)))
    text = printed("table", name, source).out.splitlines()
    assert len(records) == len(read) == len(text) - 2 == rows
    assert text[-1] == f"{rows} of {rows} row{'' if rows == 1 else 's'}"
    assert all(list(row) == list(TABLES[name].columns) for row in read)
    for record, row in zip(records, read, strict=True):
        for column, value in record.items():
            if value is None:
                assert row[column] == ""
            elif isinstance(value, str):
                assert row[column] == harmless(value)
            elif isinstance(value, bool | int | float):
                assert json.loads(row[column]) == value


def test_conditions_choose_the_rows_that_fulfil_all_of_them(
    printed: Run, recorded: Callable[[str], Facts]
) -> None:
    services = recorded("healthy")["services"]
    answer = printed(
        *("table", "services", "recorded:healthy", "--columns", "service,port"),
        *("--where", "namespace=bookinfo", "--where", "port=9080"),
    )
    expected = services[(services["namespace"] == "bookinfo") & (services["port"] == 9080)]
    lines = [line.split() for line in answer.out.splitlines()]
    assert lines[0] == ["service", "port"]
    assert [line[0] for line in lines[1:-1]] == expected["service"].tolist()
    assert len(expected) > 1
    assert lines[-1] == ["4", "of", str(len(services)), "rows"]


def test_a_condition_compares_the_text_that_csv_has_whatever_the_type(printed: Run) -> None:
    """True and false, times, absent values, lists and objects included."""
    for name, column in (
        ("pods", "ready"),
        ("pods", "created"),
        ("pods", "not_ready_reason"),
        ("pods", "labels"),
        ("access_log", "flags"),
        ("access_log", "response_code"),
    ):
        base = ("table", name, "recorded:subset-missing", "--format", "csv", "--columns", column)
        every = list(csv.reader(io.StringIO(printed(*base).out)))[1:]
        value = every[-1][0] if every[-1] else ""
        chosen = list(csv.reader(io.StringIO(printed(*base, "--where", f"{column}={value}").out)))
        assert chosen[1:] == [row for row in every if (row[0] if row else "") == value]
        assert len(chosen) > 1


def test_a_limit_cuts_the_rows_and_the_last_line_says_of_how_many(
    printed: Run, recorded: Callable[[str], Facts]
) -> None:
    total = len(recorded("healthy")["services"])
    table = ("table", "services", "recorded:healthy")
    assert printed(*table, "--limit", "2").out.splitlines()[-1] == f"2 of {total} rows"
    assert len(printed(*table, "--limit", "2").out.splitlines()) == 4
    both = printed(*table, "--limit", "2", "--where", "namespace=bookinfo")
    assert both.out.splitlines()[-1] == f"2 of {total} rows (4 match)"
    assert json.loads(printed(*table, "--limit", "0", "--format", "json").out) == []


def test_what_a_table_lacks_is_noted_on_stderr_and_the_rows_stay_clean(
    printed: Run, half_blind: Path
) -> None:
    answer = printed("table", "routes", half_blind, "--format", "json")
    assert (answer.code, json.loads(answer.out)) == (0, [])
    notes = answer.err.splitlines()
    assert notes[0].startswith("meshnb: note: GET ")
    assert notes[0].endswith(": was never asked")
    gaps = Facts(open_source(half_blind)).gaps("routes")
    assert len(gaps) > 5
    assert notes[5:] == [
        f"meshnb: note: and {len(gaps) - 5} more; `meshnb coverage {half_blind}` lists them."
    ]


def test_a_whole_table_has_no_notes(printed: Run) -> None:
    assert printed("table", "routes", "recorded:healthy").err == ""


# --- The other lists ----------------------------------------------------------------------------


def test_all_checks_are_listed_in_order_with_severity_class_and_title(printed: Run) -> None:
    lines = printed("checks").out.splitlines()
    assert [tuple(line.split(maxsplit=3)) for line in lines] == [
        (code, CHECKS[code].severity.value, CHECKS[code].cause.value, CHECKS[code].title)
        for code in sorted(CHECKS)
    ]


@pytest.mark.parametrize("code", ["MNB210", "mnb210"])
def test_one_check_says_why_it_matters_and_what_it_reads(code: str, printed: Run) -> None:
    out = printed("checks", code).out
    check = CHECKS["MNB210"]
    assert out.startswith(f"MNB210 {check.title}\n")
    assert f"Why: {check.why}\n" in out
    assert f"Takes: {', '.join(check.inputs)}\n" in out
    assert f"Reads the tables: {', '.join(check.tables)}\n" in out


def test_recordings_are_listed_with_the_name_that_opens_them(printed: Run) -> None:
    lines = printed("recordings").out.splitlines()
    assert [tuple(line.split(maxsplit=1)) for line in lines] == [
        (f"recorded:{recording.name}", recording.title) for recording in recordings()
    ]


def test_coverage_counts_each_state_and_lists_what_was_not_answered(
    printed: Run, half_blind: Path
) -> None:
    answer = printed("coverage", half_blind)
    found = Facts(open_source(half_blind)).coverage()
    assert answer.code == 0
    first, *lines = answer.out.splitlines()
    asked = int((found["state"] != "not asked").sum())
    assert first.startswith(f"{half_blind}: {asked} questions, the last answered 2026-")
    summary = lines[: lines.index("")]
    assert {
        state: int(count) for state, count in (line.rsplit(maxsplit=1) for line in summary)
    } == {f"  {state}": count for state, count in found["state"].value_counts().items()}
    listed = lines[lines.index("Not answered:") + 1 :]
    assert len(listed) == int((~found["state"].isin(["answered", "empty"])).sum())
    assert any(re.fullmatch(r"  not asked +GET .*: was never asked", line) for line in listed)


# --- Recording ----------------------------------------------------------------------------------


def test_a_recorded_bundle_has_the_same_diagnosis(printed: Run, tmp_path: Path) -> None:
    path = tmp_path / "tonight.zip"
    answer = printed("record", "recorded:subset-missing", path)
    assert answer.code == 0
    first, second = answer.out.splitlines()
    assert first == f"{path}: {len(Bundle(path).questions())} answers"
    assert re.fullmatch(r"Redacted: environment values: \d+", second)
    before = json.loads(printed("diagnose", "recorded:subset-missing", "--json").out)
    after = json.loads(printed("diagnose", path, "--json").out)
    assert {**after, "source": ""} == {**before, "source": ""}


def test_a_bundle_is_never_written_over_another_file(printed: Run, tmp_path: Path) -> None:
    path = tmp_path / "tonight.zip"
    path.write_text("precious")
    answer = printed("record", "recorded:healthy", path)
    assert answer.code == 3
    assert "exists already" in answer.err
    assert path.read_text() == "precious"
