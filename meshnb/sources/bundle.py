"""A recorded bundle: reads one as a source, and writes one from any source.

A bundle is a folder, or the same tree in one zip. ``index.jsonl`` has a line per answer and is the
only place that says what was asked; file names are for people with ``jq`` and ``less``.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meshnb.errors import BundleError, NewerFormat, NotRecorded, UsageError
from meshnb.sources.archive import RECORD_AGAIN, Archive, MemberError, leads_out, open_archive
from meshnb.sources.base import (
    Answer,
    HttpQuestion,
    ListQuestion,
    LogQuestion,
    ProbeQuestion,
    Question,
    Source,
    parse_time,
    question_from_json,
)

if TYPE_CHECKING:
    from meshnb.sources.masking import Masking
    from meshnb.sources.redaction import Redaction

#: The newest bundle format that this version reads, and the one that it writes.
FORMAT = 1

_SERVER_VERSION = "kubernetes/version.json"
#: What the manifest of a recording says as its source says it.
_INHERITED = ("cluster", "istio_namespace", "scope")

Progress = Callable[[Iterable[Answer], int], Iterable[Answer]]


@dataclass(frozen=True, slots=True)
class _Line:
    taken_at: datetime
    elapsed_ms: float
    status: int | None
    error: str | None
    file: str | None
    detail: Mapping[str, Any]


class Bundle:
    """A recorded bundle as a source. Opening it reads the manifest and the index only.

    A bundle that is damaged in one place still serves the rest: ``damage`` says what is lost, and
    an answer whose body is lost has an ``error`` instead. Raises
    :class:`~meshnb.errors.BundleError` when there is nothing to serve, and
    :class:`~meshnb.errors.NewerFormat` for a format this version does not know.
    """

    def __init__(self, path: str | os.PathLike[str], *, label: str | None = None) -> None:
        """Open the bundle at ``path``, a folder, a zip or a ``.tar.xz``."""
        self.path = Path(path)
        self._label = label or str(self.path)
        self._archive: Archive = open_archive(self.path)
        self._damage: list[str] = []
        self.manifest: Mapping[str, Any] = self._read_manifest()
        self._lines = self._read_index()

    def __repr__(self) -> str:
        """Show the label and the number of answers."""
        return f"<Bundle {self._label}: {len(self._lines)} answers>"

    @property
    def label(self) -> str:
        """Name the source: the path, or the recording's name."""
        return self._label

    @property
    def damage(self) -> tuple[str, ...]:
        """Say what of the bundle is lost, a sentence each."""
        return tuple(self._damage)

    @property
    def now(self) -> datetime:
        """When the newest answer was taken."""
        return max(line.taken_at for line in self._lines.values())

    @property
    def server_version(self) -> Mapping[str, Any] | None:
        """What the API server said of its own version (``/version``), or None if not recorded."""
        if not self._archive.has(_SERVER_VERSION):
            return None
        try:
            version = _decoded(self._archive.read(_SERVER_VERSION))
        except (MemberError, ValueError):
            return None
        return version if isinstance(version, dict) else None

    def questions(self) -> tuple[Question, ...]:
        """Return every question that was recorded, in the order of the index."""
        return tuple(self._lines)

    def ask(self, questions: Iterable[Question]) -> Iterator[Answer]:
        """Yield the recorded answer to each question, in their order."""
        for question in questions:
            line = self._lines.get(question)
            if line is None:
                raise NotRecorded(
                    f"{self._label} was never asked {question}.",
                    next_step="Record it again with a version that asks, or look at another table.",
                )
            body, error = None, line.error
            if error is None:
                body, error = self._read_body(line)
            yield Answer(
                question, line.taken_at, line.elapsed_ms, line.status, body, error, line.detail
            )

    def _read_body(self, line: _Line) -> tuple[bytes | None, str | None]:
        if line.file is None:
            return b"", None
        try:
            return self._archive.read(line.file), None
        except MemberError as error:
            return None, f"the bundle is damaged: {error}"

    @property
    def bounds(self) -> tuple[str, ...]:
        """Say what of the damage is only that some was left out, by choice or by permission."""
        bounds = self.manifest.get("bounds")
        return tuple(map(str, bounds)) if isinstance(bounds, list) else ()

    def _read_manifest(self) -> Mapping[str, Any]:
        try:
            manifest = _decoded(self._archive.read("manifest.json"))
            if not isinstance(manifest, dict):
                raise ValueError("it holds no object")
        except (MemberError, ValueError) as error:
            if not self._archive.has("index.jsonl"):
                raise BundleError(
                    f"{self._label!r} is not a bundle: it has no manifest.json and no index.jsonl.",
                    next_step="A bundle is what `meshnb record` writes.",
                ) from None
            self._damage.append(f"manifest.json cannot be read: {error}.")
            return {}
        written = manifest.get("format", FORMAT)
        if not isinstance(written, int) or written > FORMAT:
            raise NewerFormat(
                f"{self._label!r} has bundle format {written!r}; this version reads {FORMAT}.",
                next_step="Install a newer meshnb: pip install --upgrade meshnb.",
            )
        notes = manifest.get("notes")
        self._damage += [str(note) for note in notes] if isinstance(notes, list) else []
        if manifest.get("complete") is False:
            self._damage.append("The recording was interrupted: what it had not asked is missing.")
        return manifest

    def _read_index(self) -> dict[Question, _Line]:
        try:
            text = self._archive.read("index.jsonl").decode("utf-8", "replace")
        except MemberError as error:
            raise BundleError(
                f"{self._label!r} has no usable index: {error}.",
                next_step=f"Without index.jsonl nothing says what was asked. {RECORD_AGAIN}",
            ) from None
        lines: dict[Question, _Line] = {}
        for number, raw in enumerate(text.split("\n"), start=1):
            if not raw.strip():
                continue
            try:
                question, line = _read_line(raw)
            except ValueError as error:
                self._damage.append(f"index.jsonl line {number} cannot be read: {error}.")
                continue
            if line.file is not None and leads_out(line.file):
                self._damage.append(
                    f"index.jsonl line {number} names {line.file!r}, which leads out of the bundle."
                )
                line = _Line(
                    line.taken_at,
                    line.elapsed_ms,
                    line.status,
                    f"the bundle is damaged: {line.file!r} leads out of it",
                    None,
                    line.detail,
                )
            elif line.file is not None and not self._archive.has(line.file):
                self._damage.append(
                    f"index.jsonl line {number} names {line.file!r}, which is missing."
                )
            lines[question] = line
        if not lines:
            raise BundleError(
                f"{self._label!r} has an index without a single readable line.",
                next_step=RECORD_AGAIN,
            )
        return lines


def _decoded(text: str | bytes) -> Any:
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _read_line(raw: str) -> tuple[Question, _Line]:
    document = _decoded(raw)
    if not isinstance(document, dict) or not isinstance(document.get("request"), dict):
        raise ValueError("it has no request")
    question = question_from_json(document["request"])
    taken_at = document.get("taken_at")
    if not isinstance(taken_at, str):
        raise ValueError("it has no taken_at")
    elapsed, status = document.get("elapsed_ms"), document.get("status")
    error, file, detail = document.get("error"), document.get("file"), document.get("detail")
    return question, _Line(
        taken_at=parse_time(taken_at),
        elapsed_ms=_float(elapsed),
        status=status if isinstance(status, int) else None,
        error=str(error) if error is not None else None,
        file=str(file) if file is not None else None,
        detail=detail if isinstance(detail, dict) else {},
    )


def _float(value: Any) -> float:
    try:
        return float(value) if isinstance(value, int | float) else 0.0
    except OverflowError:
        return 0.0


def record(
    source: Source,
    path: str | os.PathLike[str],
    questions: Iterable[Question] | None = None,
    *,
    progress: Progress | None = None,
    keep: Iterable[str] = (),
    mask_names: bool = False,
    mask_map: str | os.PathLike[str] | None = None,
) -> Path:
    """Ask a source and write its answers as a bundle, a zip; return the zip's path.

    ``questions`` are by default all that the source can be asked. ``progress`` wraps the answers as
    they arrive; by default a tqdm bar where there is a terminal or a notebook. Secrets are redacted
    before anything is written; ``keep`` names what is not
    (:data:`meshnb.sources.redaction.KEEPABLE`), and the manifest counts what was taken out. With
    ``mask_names`` names and addresses are other ones, each always the same; which ones is written
    to the file ``mask_map`` only. The bundle appears under its name only when it is whole; when the
    recording is interrupted, what was answered until then is kept and the manifest says
    ``"complete": false``. Raises :class:`~meshnb.errors.BundleError` when ``path`` exists already,
    cannot be written, or would hold no answer at all, and :class:`~meshnb.errors.UsageError` for a
    ``mask_map`` without ``mask_names``.
    """
    from meshnb.sources.redaction import Redaction  # noqa: PLC0415  slow, and for writing only

    target, redaction = Path(path), Redaction(keep)
    if mask_map is not None and not mask_names:
        raise UsageError(
            "Without masked names there is no map of them.", next_step="Ask for masked names, too."
        )
    for wanted in (target, *([Path(mask_map)] if mask_map is not None else [])):
        if os.path.lexists(wanted):
            raise BundleError(f"{str(wanted)!r} exists already.", next_step="Choose another name.")
    masking = _masking() if mask_names else None
    partial = target.parent / f"{target.name}.partial"
    asked = list(source.questions() if questions is None else questions)
    if progress is None and getattr(source, "watch", None) is not None:
        progress = _unchanged  # such a source tells of its progress itself
    answers = (progress or _bar)(source.ask(asked), len(asked))
    try:
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive:
            _write(archive, source, answers, redaction, masking)
        if masking is not None and mask_map is not None:
            _write_map(masking, Path(mask_map))
        partial.replace(target)
    except OSError as error:
        raise BundleError(
            f"{str(target)!r} cannot be written: {error.strerror or error}.",
            next_step="Choose a folder that exists and has room.",
        ) from error
    finally:
        if masking is not None:
            masking.held.close()
        with contextlib.suppress(OSError):
            partial.unlink()
    return target


def _masking() -> Masking:
    from meshnb.sources.masking import Masking  # noqa: PLC0415  brings cryptography

    return Masking()


def _write(
    archive: zipfile.ZipFile,
    source: Source,
    answers: Iterable[Answer],
    redaction: Redaction,
    masking: Masking | None,
) -> None:
    taken: list[datetime] = []
    members = _Members(archive)
    held = None if masking is None else masking.held
    complete = True
    try:
        for answer in answers:
            line, body = _redacted(answer, redaction)
            if masking is None or held is None:
                members.add(answer.question, line, body)
            else:
                masking.learn(answer.question, body or b"")
                held.add(answer.question, line, body)
            taken.append(answer.taken_at)
    except KeyboardInterrupt:
        complete = False
        if not taken:
            raise
    if not taken:
        raise BundleError(f"{source.label} was asked nothing.", next_step="Ask some question.")
    manifest = {
        "format": FORMAT,
        "kind": "mesh-evidence",
        "started_at": _rfc3339(min(taken)),
        "finished_at": _rfc3339(max(taken)),
        "source": redaction.text(source.label),
        "complete": complete,
        "redacted": [f"{what}: {count}" for what, count in sorted(redaction.counts.items())],
        "kept": list(redaction.kept),
        "notes": [redaction.text(note) for note in source.damage],
        "bounds": [redaction.text(note) for note in getattr(source, "bounds", ())],
        "recorder": "meshnb",
    }
    inherited = getattr(source, "manifest", {})
    for name in _INHERITED:
        if name in inherited:
            manifest[name] = inherited[name]
    if masking is not None and held is not None:
        masking.learn_name(str(manifest.get("cluster", "")))
        masking.settle()
        for question, line, body in held.lines():
            members.add(*_masked(question, line, body, masking))
        manifest |= _masked_manifest(manifest, masking)
    version = getattr(source, "server_version", None)
    if version:
        archive.writestr(_SERVER_VERSION, json.dumps(version, indent=1))
    archive.writestr("index.jsonl", "\n".join(members.index) + "\n")
    archive.writestr("manifest.json", json.dumps(manifest, indent=1))


class _Members:
    """Writes bodies into a zip, each under a name of its own, and collects the index."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        self._names: set[str] = set()
        self.index: list[str] = []

    def add(self, question: Question, line: dict[str, Any], body: bytes | None) -> None:
        """Write one answer."""
        whole = {"request": question.to_json(), **line}
        if body is not None:
            whole["file"] = _unused(_file_name(question), self._names)
            self._archive.writestr(whole["file"], body)
        self.index.append(json.dumps(whole, separators=(",", ":")))


def _redacted(answer: Answer, redaction: Redaction) -> tuple[dict[str, Any], bytes | None]:
    """Return an answer's line in the index, and its body, without secrets."""
    line: dict[str, Any] = {
        "taken_at": _rfc3339(answer.taken_at),
        "elapsed_ms": round(answer.elapsed_ms, 1),
    }
    if answer.status is not None:
        line["status"] = answer.status
    if answer.detail:
        line["detail"] = redaction.detail(answer.detail)
    if answer.error is not None:
        line["error"] = redaction.text(answer.error)
    elif answer.body:
        return line, redaction.body(answer.question, answer.content)
    return line, None


def _masked(
    question: Question, line: dict[str, Any], body: bytes | None, masking: Masking
) -> tuple[Question, dict[str, Any], bytes | None]:
    if "detail" in line:
        line["detail"] = masking.detail(line["detail"])
    if "error" in line:
        line["error"] = masking.text(line["error"])
    masked = None if body is None else masking.body(question, body)
    return masking.question(question), line, masked


def _masked_manifest(manifest: Mapping[str, Any], masking: Masking) -> dict[str, Any]:
    said = {
        "source": "a mesh with masked names",
        "masked": masking.said,
        **{part: [masking.text(one) for one in manifest[part]] for part in ("notes", "bounds")},
    }
    return said | {
        name: masking.text(str(manifest[name])) for name in _INHERITED if name in manifest
    }


def _write_map(masking: Masking, path: Path) -> None:
    """Write which name stands for which other one, for the eyes of its owner only."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump(masking.mapping, file, indent=1, sort_keys=True)


def _rfc3339(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _unchanged(answers: Iterable[Answer], _: int) -> Iterable[Answer]:
    return answers


def _bar(answers: Iterable[Answer], total: int) -> Iterable[Answer]:
    from tqdm.auto import tqdm  # noqa: PLC0415  slow to import, and only a recording needs it

    class Quiet(tqdm):  # type: ignore[misc]
        """A bar without a thread of its own, which would outlive the recording."""

        monitor_interval = 0

    bar: Iterable[Answer] = Quiet(
        answers, total=total, unit="answer", desc="recording", disable=None
    )
    return bar


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.-]+", "_", text).strip("_.")[:120] or "root"


def _file_name(question: Question) -> str:
    match question:
        case ListQuestion(api_version, resource):
            group = api_version.partition("/")[0] if "/" in api_version else ""
            return f"kubernetes/{_slug(resource)}{'.' + _slug(group) if group else ''}.json"
        case HttpQuestion(namespace, pod, port, path):
            folder = "istiod" if port in (8080, 15014) else "proxies"
            return f"{folder}/{_slug(namespace)}/{_slug(pod)}/{port}/{_slug(path)}"
        case ProbeQuestion(namespace, pod, port, _):
            return f"probes/{_slug(namespace)}/{_slug(pod)}/{port}.pem"
        case LogQuestion(namespace, pod, container, previous):
            ending = ".previous.log" if previous else ".log"
            return f"logs/{_slug(namespace)}/{_slug(pod)}/{_slug(container)}{ending}"


def _unused(name: str, names: set[str]) -> str:
    candidate, number = name, 2
    while candidate in names:
        candidate, number = f"{name}~{number}", number + 1
    names.add(candidate)
    return candidate
