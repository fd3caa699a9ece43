"""What a check is: one function that looks at tables and traces and yields findings.

::

    @check("MNB210", Severity.ERROR, cause=Cause.CONTROL_PLANE_CONFIG)
    def route_to_missing_subset(mesh: Mesh, symptoms: Symptoms) -> Iterator[Finding]:
        '''Every subset that a route sends to exists.

        Envoy answers 503 with flag NC while the cluster is missing; the request never leaves the
        proxy. '''

The first line of the docstring says what is true when all is well; the rest says why it matters.
The parameters are the inputs: names of tables, of traces, or ``symptoms``. A code is never used
twice.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from enum import Enum
from typing import Any

import pandas as pd

from meshnb.checks.messages import ERROR, INFO, MESSAGES, WARNING
from meshnb.errors import CatalogueError
from meshnb.sources import ListQuestion, Manifests
from meshnb.symptoms import READS, Symptom, Symptoms, find_symptoms
from meshnb.symptoms.base import one_line
from meshnb.tables import TABLES, Facts, Gap
from meshnb.tables.base import ENDED, OUTSIDE
from meshnb.tables.istio_config import gaps_of
from meshnb.traces import TRACES
from meshnb.traces.mesh import ConfigObject, Mesh, Pod

#: A pod needs so long to start, at least.
STARTUP = timedelta(seconds=30)


class Severity(Enum):
    """How bad it is when a check fails, the worst first."""

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"

    @property
    def rank(self) -> int:
        """0 for the worst."""
        return list(Severity).index(self)


class Cause(Enum):
    """The three reasons for which a mesh misbehaves, by what has to be mended."""

    CONTROL_PLANE_CONFIG = "A"
    DATA_PLANE_CONFIG = "B"
    DATA_PLANE = "C"

    @property
    def title(self) -> str:
        """The name of the failure class."""
        return {
            Cause.CONTROL_PLANE_CONFIG: "invalid control plane configuration",
            Cause.DATA_PLANE_CONFIG: "invalid data plane configuration",
            Cause.DATA_PLANE: "unexpected data plane",
        }[self]


class Verdict(Enum):
    """What came of a check."""

    PASS = "pass"  # noqa: S105  a verdict, not a password
    FAIL = "fail"
    #: something that the check needs was not asked, refused, silent or unreadable
    UNKNOWN = "unknown"
    #: the check itself raised
    BROKEN = "broken"


@dataclass(frozen=True, slots=True)
class Subject:
    """The object that has to be mended."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        """Return kind, namespace and name as a person writes them."""
        return (
            f"{self.kind} {self.namespace}/{self.name}"
            if self.namespace
            else f"{self.kind} {self.name}"
        )

    def to_json(self) -> dict[str, str]:
        """Return the subject as an object with kind, namespace and name."""
        return {"kind": self.kind, "namespace": self.namespace, "name": self.name}


@dataclass(frozen=True, slots=True)
class Evidence:
    """Rows of one table that prove a finding, each with the question it came from."""

    table: str
    rows: pd.DataFrame

    @classmethod
    def of(cls, frame: pd.DataFrame, index: Iterable[Any] | None = None) -> Evidence:
        """Take rows of a table, all of them or those with these labels."""
        table = str(frame.attrs.get("table", ""))
        return cls(table, frame if index is None else frame.loc[list(index)])

    @property
    def questions(self) -> tuple[str, ...]:
        """The questions that the rows came from, each once."""
        return tuple(dict.fromkeys(self.rows["question"].dropna())) if len(self.rows) else ()


#: A command in a remedy, and the characters with which a name could make a shell run another one.
_COMMAND = re.compile(r"`[^`]*`")
_SHELL = re.compile(r"[;&|$<>()\\\"'!*?\[\]{}#~]")


def _harmless(command: re.Match[str]) -> str:
    # Kubernetes allows no such name, so this is no command of ours but an attack on the reader.
    return "(a command with an unsafe name in it)" if _SHELL.search(command[0]) else command[0]


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is wrong, on one object, with its proof and its remedy."""

    subject: Subject
    #: what is wrong, with the names and values
    message: str
    #: one imperative sentence, with the command
    remedy: str
    evidence: tuple[Evidence, ...] = ()
    #: other objects that take part
    related: tuple[Subject, ...] = ()
    #: ids of the symptoms that it explains
    explains: tuple[str, ...] = ()
    #: how the fault makes the symptom; the check's own reason when empty
    mechanism: str = ""
    #: when not that of the check
    severity: Severity | None = None
    cause: Cause | None = None
    #: how surely it is at fault for what it explains, from 0 to 1
    certainty: float = 1.0
    #: what goes wrong by it and leaves no line in any log, in words: a symptom in itself
    shows: str = ""
    #: where in the subject it is, such as ``spec.http[0].route[0].destination.host``
    path: str = ""
    #: which of the messages of `istioctl analyze` that the check is the same as; see run
    same_as: str = ""
    #: Error, Warning or Info; that of the message, or as bad as the severity says; see run
    level: str = ""

    def __post_init__(self) -> None:
        """Keep what is read by people in one line, and commands that they copy harmless."""
        for name in ("message", "remedy", "mechanism", "shows"):
            object.__setattr__(self, name, one_line(getattr(self, name)))
        object.__setattr__(self, "remedy", _COMMAND.sub(_harmless, self.remedy))


@dataclass(frozen=True, slots=True)
class Check:
    """A check in the catalogue."""

    code: str
    severity: Severity
    cause: Cause
    name: str
    #: what is true when all is well
    title: str
    #: why it matters
    why: str
    family: str
    inputs: tuple[str, ...]
    function: Callable[..., Iterable[Finding]]
    #: codes of the messages of `istioctl analyze` that say the same, such as IST0101
    same_as: tuple[str, ...] = ()

    @property
    def lint(self) -> bool:
        """Whether it judges objects as they are written, not what goes wrong in a mesh."""
        return len(self.code) == len("MNB1000")

    @property
    def tables(self) -> tuple[str, ...]:
        """The tables that it reads, through traces and symptoms too."""
        found: dict[str, None] = {}
        for name in self.inputs:
            found.update(dict.fromkeys(_tables_of(name)))
        return tuple(found)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one check found on one source."""

    check: Check
    verdict: Verdict
    findings: tuple[Finding, ...] = ()
    #: why it is unknown or broken
    because: str = ""
    #: what is missing of what it looked at
    gaps: tuple[Gap, ...] = ()

    @property
    def broken(self) -> bool:
        """Whether the check itself raised."""
        return self.verdict is Verdict.BROKEN


CATALOGUE: dict[str, Check] = {}


def _tables_of(name: str) -> tuple[str, ...]:
    if name in TABLES:
        return (name,)
    if name in TRACES:
        return TRACES[name].reads
    return (*READS, *TRACES["mesh"].reads) if name == "symptoms" else ()


def check(
    code: str, severity: Severity, *, cause: Cause, same_as: tuple[str, ...] = ()
) -> Callable[[Callable[..., Iterable[Finding]]], Callable[..., Iterable[Finding]]]:
    """Put a function into the catalogue of checks.

    Raises CatalogueError at import for a code that is taken, a missing docstring or reason, and a
    parameter that is neither a table nor a trace nor ``symptoms``; and for a code in ``same_as``
    that `istioctl analyze` does not have.
    """

    def register(function: Callable[..., Iterable[Finding]]) -> Callable[..., Iterable[Finding]]:
        name = function.__name__
        title, _, why = (inspect.getdoc(function) or "").partition("\n")
        if not title.strip() or not why.strip():
            raise CatalogueError(
                f"Check {code} ({name}) lacks a title or a reason in its docstring.",
                next_step="Say in one line what is true when all is well, then why it matters.",
            )
        if code in CATALOGUE:
            raise CatalogueError(
                f"Check code {code} is taken by {CATALOGUE[code].name}.",
                next_step="Take a new one.",
            )
        if not MESSAGES.keys() >= set(same_as):
            raise CatalogueError(
                f"Check {code} ({name}) is the same as {sorted(set(same_as) - MESSAGES.keys())}, "
                "which istioctl does not have.",
            )
        inputs = tuple(inspect.signature(function).parameters)
        for parameter in inputs:
            if parameter != "facts" and not _tables_of(parameter):
                raise CatalogueError(
                    f"Check {code} ({name}) asks for {parameter!r}, which is no table and no trace."
                )
        CATALOGUE[code] = Check(
            code=code,
            severity=severity,
            cause=cause,
            name=name,
            title=title.strip(),
            why=" ".join(why.split()),
            family=function.__module__.rpartition(".")[2],
            inputs=inputs,
            function=function,
            same_as=same_as,
        )
        return function

    return register


@dataclass(slots=True)
class Inputs:
    """The inputs of checks, made once per run."""

    facts: Facts
    _made: dict[str, Any] = field(default_factory=dict)
    #: what is missing of what the symptoms were read from
    _symptom_gaps: tuple[Gap, ...] = ()

    def get(self, name: str) -> Any:
        """Return a table, a trace's value, the symptoms, or the facts themselves."""
        if name == "facts":
            return self.facts
        if name in TABLES:
            return self.facts[name]
        if name not in self._made:
            if name == "symptoms":
                mesh, failures = self.get("mesh"), self.get("failures")
                with self.watched() as missing:
                    self._made[name] = find_symptoms(self.facts, mesh, failures)
                self._symptom_gaps = tuple(missing)
            else:
                self._made[name] = TRACES[name].make(self.facts)
        return self._made[name]

    @contextmanager
    def watched(self) -> Iterator[dict[Gap, None]]:
        """Collect what is missing of all that is looked at in a ``with`` block."""
        mesh: Mesh = self.get("mesh")
        found: dict[Gap, None] = {}
        mesh.looks.clear()
        with self.facts.watched() as read:
            yield found
        found.update(read)
        for table, kind, group in sorted(mesh.looks):
            gaps = gaps_of(self.facts, kind, group) if kind else self.facts.gaps(table)
            found.update(dict.fromkeys(gaps))

    def gaps(self, check: Check) -> Iterator[Gap]:
        """Yield what is missing of a check's inputs, whatever it makes of them.

        The mesh notes what is looked at. The table ``istio_config`` beside it is for evidence.
        """
        for name in check.inputs:
            if name == "symptoms":
                gaps = (*self._symptom_gaps, *self.facts.gaps(*READS))
                told = "events" in check.inputs
                yield from (gap for gap in gaps if told or not _of_events(gap))
            elif name != "mesh" and (name != "istio_config" or "mesh" not in check.inputs):
                yield from self.facts.gaps(*_tables_of(name))

    @property
    def symptoms(self) -> Symptoms:
        """The symptoms of the source."""
        found: Symptoms = self.get("symptoms")
        return found


def _of_events(gap: Gap) -> bool:
    """Whether a gap is about pods that could not be made, which only checks of events judge.

    The others could at most explain one more symptom.
    """
    words = re.split(r"[ ./]", gap.question.lower())
    return words[0] == "list" and bool({"events", "replicasets"} & set(words))


def run(inputs: Inputs, checks: Iterable[Check]) -> Iterator[Outcome]:
    """Run checks one after the other. A check that raises is BROKEN; the others go on.

    A check that found no more than things worth knowing has no answer yet while evidence is
    missing: it is UNKNOWN, with its findings. Of manifests nothing runs yet, so that a check of the
    data plane is UNKNOWN there.
    """
    written = isinstance(inputs.facts.source, Manifests)
    for one in checks:
        if written and one.cause is Cause.DATA_PLANE:
            yield Outcome(one, Verdict.UNKNOWN, because="manifests do not run")
            continue
        try:
            arguments = {name: inputs.get(name) for name in one.inputs}
            with inputs.watched() as missing:
                found = tuple(one.function(**arguments))
            findings = tuple(_with_level(_with_echoes(item, inputs), one) for item in found)
        except Exception as error:  # noqa: BLE001  one broken check must not hide what the others know
            reason = one_line(f"{type(error).__name__}: {error}")
            yield Outcome(one, Verdict.BROKEN, because=reason)
            continue
        gaps = tuple(
            gap
            for gap in dict.fromkeys((*inputs.gaps(one), *missing))
            if gap.state not in (OUTSIDE, ENDED)
        )
        source = inputs.facts.source
        bounds = getattr(source, "bounds", ())
        # What was left out by choice or permission is told gap by gap, where it matters.
        damage = tuple(one for one in source.damage if one not in bounds)
        if any((item.severity or one.severity) is not Severity.INFO for item in findings):
            yield Outcome(one, Verdict.FAIL, findings, gaps=gaps)
        elif gaps or damage:
            because = _because(gaps, damage)
            yield Outcome(one, Verdict.UNKNOWN, findings, because=because, gaps=gaps)
        else:
            yield Outcome(one, Verdict.FAIL if findings else Verdict.PASS, findings)


_LEVELS: Mapping[Severity, str] = {
    Severity.ERROR: ERROR,
    Severity.WARNING: WARNING,
    Severity.INFO: INFO,
}


def _with_level(finding: Finding, check: Check) -> Finding:
    """Fill in what a finding leaves to its check: the message it is the same as, and the level."""
    same_as = finding.same_as or (check.same_as[0] if len(check.same_as) == 1 else "")
    level = finding.level or (
        MESSAGES[same_as].level if same_as else _LEVELS[finding.severity or check.severity]
    )
    return replace(finding, same_as=same_as, level=level)


def _with_echoes(finding: Finding, inputs: Inputs) -> Finding:
    """Let a finding that explains a server's failures explain what its callers saw of them, too.

    Usually the two ends' lines of one failure are joined; where the server's log begins later or
    ends earlier, the callers' lines stand alone.
    """
    if not finding.explains:
        return finding
    answers = {
        (symptom.host, symptom.port, symptom.code)
        for symptom in inputs.symptoms
        if symptom.id in finding.explains and symptom.side == "server" and symptom.code
    }
    echoes = tuple(
        symptom.id
        for symptom in inputs.symptoms
        if symptom.id not in finding.explains
        and symptom.side in ("client", "gateway")
        and symptom.details == "via_upstream"
        and (symptom.host, symptom.port, symptom.code) in answers
    )
    return replace(finding, explains=(*finding.explains, *echoes)) if echoes else finding


def _because(gaps: tuple[Gap, ...], damage: tuple[str, ...]) -> str:
    reasons = [str(gap) for gap in gaps] or list(damage)
    more = f" (and {len(reasons) - 3} more)" if len(reasons) > 3 else ""
    return one_line("; ".join(reasons[:3]) + more)


def unseen(facts: Facts, table: str, *resources: str) -> bool:
    """Whether there may be Kubernetes objects of these resources that the source does not show.

    Nothing may be concluded from their absence, then: the list of them was not asked, refused,
    silent or unreadable, or may be among what a damaged source has lost.
    """
    missing = []
    for gap in facts.gaps(table):
        words = re.split(r"[ ./]", gap.question.lower())
        if gap.state != OUTSIDE and words[0] == "list" and not set(resources).isdisjoint(words):
            missing.append(gap)
            facts.gap(gap.question, gap.state, gap.reason)
    asked = {q.resource for q in facts.source.questions() if isinstance(q, ListQuestion)}
    lost = bool(facts.source.damage) and not asked.issuperset(resources)
    return lost or bool(missing)


def ids(symptoms: Iterable[Symptom]) -> tuple[str, ...]:
    """Return the ids of symptoms, for a finding's ``explains``."""
    return tuple(symptom.id for symptom in symptoms)


def rows_of(facts_table: pd.DataFrame, **equal: Any) -> pd.DataFrame:
    """Return the rows of a table whose columns have these values, with the table's name kept."""
    chosen = pd.Series(True, index=facts_table.index)
    for column, value in equal.items():
        chosen &= (facts_table[column] == value).fillna(False).astype(bool)
    rows = facts_table[chosen]
    rows.attrs["table"] = facts_table.attrs.get("table", "")
    return rows


def subject_of(item: ConfigObject) -> Subject:
    """Return the subject for an Istio object."""
    return Subject(item.kind, item.namespace, item.name)


def workload_of(pod: Pod) -> Subject:
    """Return the subject for the workload that a pod belongs to; a bare pod is its own."""
    return Subject(pod.workload_kind, pod.namespace, pod.workload)


def edit(subject: Subject) -> str:
    """Return the command that opens an object for editing."""
    resource = _RESOURCES.get(subject.kind, subject.kind.lower())
    where = f" -n {subject.namespace}" if subject.namespace else ""
    return f"`kubectl{where} edit {resource} {subject.name}`"


def restart(subject: Subject) -> str:
    """Return the command that replaces the pods of a workload, or a pod that has no workload."""
    where = f"kubectl -n {subject.namespace}"
    if subject.kind == "Pod":
        return f"`{where} delete pod {subject.name}`"
    return f"`{where} rollout restart {subject.kind.lower()}/{subject.name}`"


def start(subject: Subject) -> str:
    """Return the sentence that says how to start a workload that wants no pods."""
    return (
        f"Start it with `kubectl -n {subject.namespace} scale "
        f"{subject.kind.lower()}/{subject.name} --replicas=1`."
    )


def workload_in(row: pd.Series) -> Subject:
    """Return the subject for a row of the table ``workloads``."""
    return Subject(str(row["kind"]), str(row["namespace"]), str(row["workload"]))


def pods_beside(subject: Subject, pods: Iterable[Pod]) -> tuple[Subject, ...]:
    """Return the pods of a workload that is to blame; nothing when it is a bare pod itself."""
    return tuple(Subject("Pod", pod.namespace, pod.pod) for pod in pods if subject.kind != "Pod")


#: Kinds whose plain name means another resource to kubectl where the Gateway API is installed.
_RESOURCES: Mapping[str, str] = {
    "Gateway": "gateways.networking.istio.io",
    "HTTPRoute": "httproutes.gateway.networking.k8s.io",
}


def config_rows(istio_config: pd.DataFrame, *objects: ConfigObject) -> Evidence:
    """Return the rows of the table ``istio_config`` that hold these objects."""
    return Evidence.of(istio_config, [item.index for item in objects])


def symptom_rows(facts: Facts, symptoms: Iterable[Symptom]) -> tuple[Evidence, ...]:
    """Return the rows that show symptoms, one piece of evidence per table."""
    by_table: dict[str, list[int]] = {}
    for symptom in symptoms:
        by_table.setdefault(symptom.table, []).extend(symptom.rows)
    return tuple(
        Evidence.of(facts[table], dict.fromkeys(rows)) for table, rows in by_table.items() if rows
    )


def starting(pod: Pod, facts: Facts) -> bool:
    """Whether a pod was made so recently that it may still be on its way."""
    return pod.created is not None and facts.now - pod.created < STARTUP


def counted(number: int, noun: str) -> str:
    """Return a number with its noun: ``1 pod``, ``3 pods``, ``2 proxies``."""
    plural = f"{noun[:-1]}ies" if noun.endswith("xy") else f"{noun}s"
    return f"{number} {noun if number == 1 else plural}"


def and_list(names: Iterable[Any], limit: int = 4) -> str:
    """Return names, which may come from anywhere, in a sentence: ``a, b and 3 others``."""
    every = list(dict.fromkeys(map(str, names)))
    if len(every) > limit:
        return f"{', '.join(every[:limit])} and {len(every) - limit} others"
    return f"{', '.join(every[:-1])} and {every[-1]}" if len(every) > 1 else "".join(every)
