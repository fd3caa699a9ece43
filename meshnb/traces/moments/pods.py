"""Pods at two moments: rollouts, restarts, and who is ready no longer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from operator import attrgetter

from meshnb.tables import Facts
from meshnb.traces.mesh import plain
from meshnb.traces.moments.base import Change, Edit, plural, some
from meshnb.traces.moments.succession import Known, Succession, Workload

#: Kinds whose pods come and go by themselves.
_FLEETING = frozenset({"Job", "CronJob"})


def pod_changes(after: Facts, matched: Succession) -> Iterator[Change]:
    """Yield what happened to pods, those of one workload in one sentence."""
    ended = _last_ends(after)
    for old, new in matched.kept:
        yield from _kept(old, new, ended)
    for workload, (gone, come) in matched.turned_over.items():
        if workload[1] not in _FLEETING:
            now = [pod for pod in matched.after if pod.workload == workload]
            yield _turned_over(workload, gone, come, now)


def _last_ends(facts: Facts) -> dict[tuple[str, str], str]:
    """Return why a container of each pod ended last, the one that was restarted most."""
    found: dict[tuple[str, str], tuple[int, str]] = {}
    frame = facts["containers"]
    for row in frame[frame["restarts"].fillna(0) > 0].to_dict("records"):
        key = str(row["namespace"]), str(row["pod"])
        reason, code = plain(row["last_reason"]), plain(row["last_exit_code"])
        said = f"its container {row['container']} ended"
        said += f" with {reason}" if reason else ""
        said += f" (exit code {int(code)})" if code is not None else ""
        found[key] = max(found.get(key, (0, "")), (int(row["restarts"]), said))
    return {key: said for key, (_, said) in found.items()}


def _kept(old: Known, new: Known, ended: dict[tuple[str, str], str]) -> Iterator[Change]:
    subject = f"Pod {new.namespace}/{new.name}"
    if new.restarts > old.restarts:
        times = plural(new.restarts - old.restarts, "time")
        why = ended.get((new.namespace, new.name), "")
        words = f"{subject} was restarted {times}" + (f": {why}" if why else "")
        edit = Edit("restarts", str(old.restarts), str(new.restarts))
        yield Change("pod", subject, "restarted", words, (edit,), question=new.question)
    if old.ready != new.ready:
        why = f": {new.reason}" if new.reason and not new.ready else ""
        words = f"{subject} is {'ready again' if new.ready else 'ready no longer'}{why}"
        edit = Edit("ready", _said(old.ready), _said(new.ready))
        yield Change("pod", subject, "changed", words, (edit,), question=new.question)
    elif old.phase != new.phase:
        words = f"{subject} is {new.phase}, no longer {old.phase}"
        edit = Edit("phase", old.phase, new.phase)
        yield Change("pod", subject, "changed", words, (edit,), question=new.question)


def _turned_over(
    workload: Workload, gone: Sequence[Known], come: Sequence[Known], now: Sequence[Known]
) -> Change:
    namespace, kind, name = workload
    subject = f"{kind} {namespace}/{name}"
    question = (come or gone)[0].question
    if kind == "Pod":
        state, words = _alone(subject, gone, come)
    elif gone and come:
        replaced = f"{plural(len(gone), 'pod')} replaced by {plural(len(come), 'new one')}"
        state, words = "replaced", f"{subject} was rolled out: {replaced}"
    elif come:
        state, words = "added", f"{subject} has {plural(len(come), 'more pod')}"
    else:
        left = "none is left" if not now else f"{plural(len(now), 'pod')} left"
        state, words = "removed", f"{subject} has {plural(len(gone), 'pod')} less, {left}"
    found = tuple(_edits(gone, come))
    said = [_words(edit) for edit in found if edit.path != "pods"]
    unready = [pod for pod in come if not pod.ready]
    if unready:
        why = unready[0].reason
        count = "it is not ready" if len(come) == 1 else f"{len(unready)} of them are not ready"
        said.append(count + (f" ({why})" if why else ""))
    return Change("pod", subject, state, "; ".join([words, *said]), found, question=question)


def _alone(subject: str, gone: Sequence[Known], come: Sequence[Known]) -> tuple[str, str]:
    if gone and come:
        return "replaced", f"{subject} was deleted and created again"
    return ("added", f"{subject} was created") if come else ("removed", f"{subject} is gone")


def _edits(gone: Sequence[Known], come: Sequence[Known]) -> Iterator[Edit]:
    yield Edit("pods", some(pod.name for pod in gone), some(pod.name for pod in come))
    if not gone or not come:
        return
    for path, of in (("mesh", attrgetter("mesh")), ("proxy_image", attrgetter("image"))):
        old, new = (some(sorted(set(map(of, pods)))) for pods in (gone, come))
        if old != new:
            yield Edit(path, old, new)


def _words(edit: Edit) -> str:
    if edit.path == "mesh":
        return f"its part in the mesh is {edit.after} instead of {edit.before}"
    return f"its proxy is {edit.after or 'absent'} instead of {edit.before or 'absent'}"


def _said(ready: bool) -> str:
    return "true" if ready else "false"
