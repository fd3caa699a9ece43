"""What a guide is: steps in an order, and the walk of one reader through them.

::

    @step("The pods", asked=("pods", "events"))
    def pods(case: Case, chosen: Chosen) -> Page:
        '''Are the pods behind it running and ready?

        Only a ready pod is sent requests, so this comes before any look at what it answers.
        '''

    DATA_PLANE = Guide(name="data_plane", title="…", about="…", steps=(pods, …))

The first line of the docstring is the question, the rest says why it is put now. Nothing is drawn
here: a page is a value, and so is the walk. Every move returns a new walk.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import cached_property

import pandas as pd

from meshnb.checks import Finding
from meshnb.diagnosis import Diagnosis, RankedCause, diagnose
from meshnb.errors import CatalogueError, UsageError, nearest
from meshnb.guides.accounts import written
from meshnb.guides.pictures.base import Picture, State
from meshnb.symptoms import Symptoms
from meshnb.tables import TABLES, Facts
from meshnb.traces.connection import Connections
from meshnb.traces.following.follow import Follower
from meshnb.traces.mesh import MESH, Mesh

#: What the reader picked, by the name of the step on which it was picked.
Chosen = Mapping[str, str]


@dataclass(frozen=True)
class Case:
    """One source as guides look at it: facts, diagnosis, and what names mean in its mesh."""

    diagnosis: Diagnosis

    @classmethod
    def of(cls, facts: Facts) -> Case:
        """Diagnose a source and return its case."""
        return cls(diagnose(facts))

    @property
    def facts(self) -> Facts:
        """The tables of the source."""
        return self.diagnosis.facts

    @property
    def symptoms(self) -> Symptoms:
        """What goes wrong, the heaviest first."""
        return self.diagnosis.symptoms

    @cached_property
    def mesh(self) -> Mesh:
        """What names and addresses mean in this mesh."""
        mesh: Mesh = MESH.make(self.facts)
        return mesh

    @cached_property
    def complaints(self) -> tuple[Finding, ...]:
        """What is wrong with the objects as they are written."""
        return written(self.facts)

    @cached_property
    def follower(self) -> Follower:
        """Follows requests; it keeps what it has decoded."""
        return Follower(self.facts)

    @cached_property
    def connections(self) -> Connections:
        """Follows connections, with what the follower of requests has decoded."""
        return Connections(self.facts, self.mesh, self.follower.configs)


@dataclass(frozen=True, slots=True)
class Excerpt:
    """Some rows of a table under a caption, those that matter first.

    ``of`` says how many rows there are altogether; ``rows`` may hold fewer. A folded one is there
    for those who ask for it.
    """

    caption: str
    rows: pd.DataFrame
    of: int
    folded: bool = False


@dataclass(frozen=True, slots=True)
class Option:
    """One thing that can be picked."""

    value: str
    label: str


@dataclass(frozen=True, slots=True)
class Pick:
    """Something to pick on a page; the page is then made again.

    ``obvious`` is taken until the reader picks. With ``asks_first`` it is not: the page waits with
    its answer, so that the reader can think first. Without an obvious option the walk waits.
    """

    title: str
    options: tuple[Option, ...]
    obvious: str = ""
    asks_first: bool = False

    def taken(self, value: str | None) -> str:
        """Return the value that holds: the reader's, else the obvious one; empty while it waits."""
        if any(option.value == value for option in self.options):
            return str(value)
        return "" if self.asks_first else self.obvious

    def label(self, value: str) -> str:
        """Return the label of an option; the value itself when there is no such option."""
        return next((option.label for option in self.options if option.value == value), value)


@dataclass(frozen=True, slots=True)
class Fork:
    """One way on from a page: to a step of the same guide, or to the beginning of another guide."""

    label: str
    #: name of the step; empty for the first one of a guide
    to: str = ""
    #: name of the guide; empty for the same one
    guide: str = ""

    @property
    def value(self) -> str:
        """What :meth:`Walk.choose` takes for this way."""
        return f"{self.guide}/{self.to}" if self.guide else self.to


@dataclass(frozen=True, slots=True)
class Page:
    """What one step shows for one mesh."""

    #: one line: what this step found out
    verdict: str
    state: State = State.FINE
    #: what it means, in one or two sentences with this mesh's names
    reading: str = ""
    tables: tuple[Excerpt, ...] = ()
    picture: Picture | None = None
    #: the command that would show the same on a terminal
    command: str = ""
    pick: Pick | None = None
    #: ways on, the obvious one first; none means: to the next step of the guide
    forks: tuple[Fork, ...] = ()
    #: causes with proof and remedy, where the page comes to a conclusion
    causes: tuple[RankedCause, ...] = ()
    #: why one cannot go on from here, each reason a sentence
    blocked: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a guide: a question, what is asked of the mesh, and how the page is made."""

    name: str
    #: a few words, for the trail
    title: str
    #: what we want to know
    question: str
    #: why we want to know it now
    why: str
    #: the tables that answer it
    asked: tuple[str, ...]
    page: Callable[[Case, Chosen], Page]


def step(title: str, *, asked: tuple[str, ...]) -> Callable[[Callable[[Case, Chosen], Page]], Step]:
    """Make a step of a function; its docstring holds the question and the reason for it.

    Raises CatalogueError at import for a missing question or reason, and for an unknown table.
    """

    def make(function: Callable[[Case, Chosen], Page]) -> Step:
        name = function.__name__
        question, _, why = (inspect.getdoc(function) or "").partition("\n")
        if not question.strip() or not why.strip():
            raise CatalogueError(
                f"Step {name} lacks its question, or the reason for it, in its docstring.",
                next_step="Write the question in one line, then why it is put now.",
            )
        for table in asked:
            if table not in TABLES:
                raise CatalogueError(
                    f"Step {name} asks for the table {table!r}, which does not exist.",
                    next_step=nearest(table, TABLES),
                )
        return Step(name, title, question.strip(), " ".join(why.split()), asked, function)

    return make


@dataclass(frozen=True, slots=True)
class Guide:
    """An order in which to look at a mesh."""

    name: str
    title: str
    #: for whom and what for, in one sentence
    about: str
    steps: tuple[Step, ...]

    def __post_init__(self) -> None:
        """Refuse a guide in which two steps have one name."""
        names = [one.name for one in self.steps]
        if len(set(names)) < len(names) or not names:
            raise CatalogueError(f"Guide {self.name} has no step, or two of one name: {names}.")

    def step(self, name: str) -> Step:
        """Return the step of a name, the first one for an empty name. Raises UsageError."""
        for one in self.steps:
            if name in ("", one.name):
                return one
        raise UsageError(
            f"Guide {self.name} has no step {name!r}.",
            next_step=nearest(name, (one.name for one in self.steps)),
        )

    def after(self, current: Step) -> Step | None:
        """Return the step that follows in the guide's own order; None after the last."""
        position = [one.name for one in self.steps].index(current.name)
        return self.steps[position + 1] if position + 1 < len(self.steps) else None


@dataclass(frozen=True, slots=True)
class Stop:
    """A step that was visited. Once it is left, it keeps what was found and which way was taken."""

    guide: Guide
    step: Step
    verdict: str = ""
    state: State = State.FINE
    decided: str = ""


class Reason(Enum):
    """Why a walk can stay put although nothing is wrong with it."""

    END = "This was the last step; nothing follows."
    BEGINNING = "This is the first step; nothing comes before it."


@dataclass(frozen=True)
class Walk:
    """Where one reader stands in a guide. Immutable: every move returns a new walk.

    A move that cannot be made returns a walk that stays put, and says in ``refused`` why.
    """

    case: Case
    #: the steps that were visited; the last one is where the reader stands
    trail: tuple[Stop, ...]
    chosen: Chosen = field(default_factory=dict)
    #: which way was taken from a step, by the step's name
    ways: Chosen = field(default_factory=dict)
    refused: tuple[str, ...] = ()

    @classmethod
    def start(cls, guide: Guide, case: Case) -> Walk:
        """Stand at the first step of a guide."""
        return cls(case, (Stop(guide, guide.step("")),))

    @property
    def here(self) -> Stop:
        """The step where the reader stands."""
        return self.trail[-1]

    @cached_property
    def page(self) -> Page:
        """The page of the step where the reader stands."""
        return self.here.step.page(self.case, self.chosen)

    @property
    def picked(self) -> str:
        """What holds on this page: picked by the reader or obvious; empty while the page waits."""
        pick = self.page.pick
        return pick.taken(self.chosen.get(self.here.step.name)) if pick is not None else ""

    @property
    def forks(self) -> tuple[Fork, ...]:
        """The ways on, the obvious one first; empty on the last page."""
        following = self.here.guide.after(self.here.step)
        if self.page.forks or following is None:
            return self.page.forks
        return (Fork(following.title, following.name),)

    @property
    def way(self) -> Fork | None:
        """The way that :meth:`next` takes: the one chosen here, else the obvious one."""
        chosen = self.ways.get(self.here.step.name)
        forks = self.forks
        return next((fork for fork in forks if fork.value == chosen), forks[0] if forks else None)

    @property
    def ended(self) -> bool:
        """Whether nothing obvious follows."""
        return self.here.guide.after(self.here.step) is None

    @property
    def blocked(self) -> tuple[str, ...]:
        """Why one cannot go on from here, each reason a sentence; empty when one can."""
        reasons = list(self.page.blocked)
        pick = self.page.pick
        if pick is not None and not pick.asks_first and not self.picked:
            reasons.append(
                f"Choose first: {pick.title}"
                if pick.options
                else f"Nothing to choose: {pick.title}"
            )
        return tuple(reasons)

    def choose(self, value: str) -> Walk:
        """Pick an option of this page, or a way on for :meth:`next`; else stay put."""
        name = self.here.step.name
        pick = self.page.pick
        options = {option.value for option in pick.options} if pick is not None else set()
        if value in options:
            return replace(self, chosen={**self.chosen, name: value}, refused=())
        ways = {fork.value for fork in self.forks}
        if value in ways:
            return replace(self, ways={**self.ways, name: value}, refused=())
        return replace(
            self,
            refused=(f"Nothing here is called {value!r}. {nearest(value, options | ways)}",),
        )

    def next(self) -> Walk:
        """Go the chosen way, else the obvious one; stays put when blocked, and says by what."""
        if self.blocked:
            return replace(self, refused=self.blocked)
        if self.way is None:
            return replace(self, refused=(Reason.END.value,))
        guide = _guide(self.way.guide) if self.way.guide else self.here.guide
        left = replace(
            self.here,
            verdict=self.page.verdict,
            state=self.page.state,
            decided=self._decided(self.way),
        )
        arrived = Stop(guide, guide.step(self.way.to))
        return replace(self, trail=(*self.trail[:-1], left, arrived), refused=())

    def back(self, to: int = -1) -> Walk:
        """Go back one step, or to a place of the trail from 0. What was picked stays picked."""
        place = len(self.trail) + to - 1 if to < 0 else to
        if not 0 <= place < len(self.trail):
            return replace(self, refused=(Reason.BEGINNING.value,))
        stop = self.trail[place]
        return replace(self, trail=(*self.trail[:place], Stop(stop.guide, stop.step)), refused=())

    def finish(self) -> Walk:
        """Go on along the obvious way, and what was chosen, to the guide's last step or a block.

        Where a page asks before it tells, the answer is taken as given, so that it is told.
        """
        walk = self
        while True:
            pick = walk.page.pick
            if pick is not None and pick.asks_first and not walk.picked:
                walk = walk.choose(pick.obvious)
            if walk.ended or walk.blocked or len(walk.trail) > _LONGEST:
                return walk
            walk = walk.next()

    def _decided(self, way: Fork) -> str:
        """Say what was picked here, and which way was taken when it was not the obvious one."""
        parts = []
        label = self.page.pick.label(self.picked) if self.page.pick is not None else ""
        if label and label not in self.page.verdict:
            parts.append(label)
        if way != self.forks[0]:
            parts.append(f"overruled: {way.label}")
        return "; ".join(parts)


def _guide(name: str) -> Guide:
    from meshnb.guides import GUIDES  # noqa: PLC0415  the list of guides imports this module

    return GUIDES[name]


#: No guide is longer; a ring of obvious ways would otherwise never end.
_LONGEST = 40
