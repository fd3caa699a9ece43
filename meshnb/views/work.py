"""Long work in a notebook: done beside it, drawn as it goes on, and stopped by a button.

A click is answered by the kernel's event loop, so what takes its time is done in a thread, and
whatever it has to show goes back to the loop. Where no loop waits for it, as when a cell runs or a
notebook is exported, it is done at once and what it shows stays.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress

from meshnb.errors import MeshnbError
from meshnb.guides.base import Case
from meshnb.guides.pictures import State
from meshnb.sources import Limits, Scope, Source, is_cluster, open_source
from meshnb.sources.progress import Progress
from meshnb.tables import Facts
from meshnb.views.base import escape, mark, prose

#: Takes the progress of what is being asked; raises KeyboardInterrupt when nobody wants the rest.
Watch = Callable[[Progress], None]
#: Opens a source that tells of its progress.
Opens = Callable[[Watch], Source]
#: What came of it: a case, or why there is none.
Outcome = Case | MeshnbError


class Work:
    """One source that is opened, asked and diagnosed. What began last is what counts."""

    def __init__(self, draw: Watch, done: Callable[[Outcome], None]) -> None:
        """Take what draws the progress, and what takes the outcome."""
        self._draw = draw
        self._done = done
        self._going: _Going | None = None

    @property
    def running(self) -> bool:
        """Whether something is being done."""
        return self._going is not None

    def do(self, opens: Opens) -> None:
        """Do it now, and come back when it is done."""
        self.stop()
        self._finish(_outcome(opens, self._draw))

    def begin(self, opens: Opens) -> None:
        """Do it beside the event loop that answers clicks; without one, do it now."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self.do(opens)
            return
        self.stop()
        self._going = _Going(loop, self)
        threading.Thread(target=self._going.run, args=(opens,), daemon=True).start()

    def stop(self) -> None:
        """Ask for no more; what was answered until then is what there is."""
        if self._going is not None:
            self._going.stopped.set()

    def _show(self, going: _Going, progress: Progress) -> None:
        if going is self._going and not going.stopped.is_set():
            self._draw(progress)

    def _end(self, going: _Going, outcome: Outcome) -> None:
        if going is self._going:
            self._finish(outcome)

    def _finish(self, outcome: Outcome) -> None:
        self._going = None
        self._done(outcome)


class _Going:
    """One go at it, in a thread of its own."""

    def __init__(self, loop: asyncio.AbstractEventLoop, work: Work) -> None:
        self._loop = loop
        self._work = work
        self.stopped = threading.Event()

    def run(self, opens: Opens) -> None:
        outcome = _outcome(opens, self._watch)
        with suppress(RuntimeError):  # the loop is gone: nobody looks any more
            self._loop.call_soon_threadsafe(self._work._end, self, outcome)  # noqa: SLF001

    def _watch(self, progress: Progress) -> None:
        if self.stopped.is_set():
            raise KeyboardInterrupt
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._work._show, self, progress)  # noqa: SLF001


def _outcome(opens: Opens, watch: Watch) -> Outcome:
    try:
        facts = Facts(opens(watch))
        if is_cluster(facts.source.label):
            facts.gather()
        return Case.of(facts)
    except MeshnbError as error:
        return error
    except KeyboardInterrupt:
        return MeshnbError(
            "It was stopped before anything was answered.", next_step="Ask again when you like."
        )
    except Exception as error:  # noqa: BLE001  a card is the last word in a notebook, always
        return MeshnbError(
            f"meshnb itself failed: {type(error).__name__}: {error}.",
            next_step="Record the mesh with `meshnb record`, and report this with the recording.",
        )


def opens(name: str, *, scope: Scope | None = None, limits: Limits | None = None) -> Opens:
    """Return what opens a source by its name; of a cluster, the part in scope."""
    if is_cluster(name):
        return lambda watch: open_source(name, scope=scope, limits=limits, watch=watch)
    return lambda _: open_source(name)


def progress_card(name: str, progress: Progress) -> str:
    """Return the progress of asking as a card."""
    return (
        f'<section class="mnb-card mnb-unknown" role="status" aria-label="Progress">'
        f"{mark(State.UNKNOWN, 'asking')} <strong>{escape(name)}</strong> "
        f'<progress aria-label="answers" max="{progress.asked}" value="{progress.answered}">'
        f"</progress> {escape(progress)} · {progress.elapsed_s:.0f} s</section>"
    )


def failure(error: MeshnbError, word: str = "not opened") -> str:
    """Return an error as a card: what is wrong with which thing, and what to do next."""
    step = f"<p><strong>Next:</strong> {prose(error.next_step)}</p>" if error.next_step else ""
    return (
        f'<section class="mnb-card mnb-broken" role="alert">{mark(State.BROKEN, word)} '
        f"<strong>{prose(error.what)}</strong>{step}</section>"
    )
