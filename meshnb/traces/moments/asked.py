"""Who was asked at one moment only: what just one of them was told cannot be compared."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from meshnb.tables import Facts
from meshnb.traces.moments.base import plural, some
from meshnb.traces.moments.objects import Unseen
from meshnb.traces.moments.succession import Known, Succession, pod_of


@dataclass(frozen=True, slots=True)
class AskedOnce:
    """What was asked of pods that were there at both moments, but asked at one of them only.

    A live cluster is often asked for a part of its pods, and a large one for a sample.
    """

    #: the questions as the tables name them
    questions: frozenset[str]
    #: a sentence for the proxies among those pods
    unseen: tuple[Unseen, ...]


def asked_once(before: Facts, after: Facts, matched: Succession) -> AskedOnce:
    """Compare whom the moments asked; a pod that took the place of another one is the same."""
    pairs = (*matched.kept, *matched.replaced)
    earlier = [(old, new) for old, new in pairs if old.asked and not new.asked]
    later = [(old, new) for old, new in pairs if new.asked and not old.asked]
    questions = {
        *_questions(before, {old.title for old, _ in earlier}),
        *_questions(after, {new.title for _, new in later}),
    }
    sides = ((earlier, "later"), (later, "earlier"))
    return AskedOnce(
        frozenset(questions),
        tuple(one for found, which in sides for one in _unseen([new for _, new in found], which)),
    )


def never_asked(pods: Iterable[Known]) -> frozenset[str]:
    """Return how the questions for pods begin that were not asked anything at all."""
    return frozenset(f"GET {pod.namespace}/{pod.name}" for pod in pods if not pod.asked)


def _questions(facts: Facts, pods: set[str]) -> Iterator[str]:
    return (str(one) for one in facts.source.questions() if pods and pod_of(one) in pods)


def _unseen(pods: list[Known], which: str) -> Iterator[Unseen]:
    silent = [pod.proxy for pod in pods if pod.proxy]
    if silent:
        what = f"what {plural(len(silent), 'proxy says and holds', 'proxies say and hold')}"
        yield Unseen(what, f"at the {which} moment nobody asked {some(silent)}")
