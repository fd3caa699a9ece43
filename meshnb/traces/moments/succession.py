"""Which pod has taken the place of which: pods that one workload replaced are not two changes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from meshnb.sources.base import HttpQuestion, LogQuestion, ProbeQuestion, Question
from meshnb.tables import Facts
from meshnb.traces.mesh import plain

#: Namespace, kind and name.
Workload = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class Known:
    """A pod as it was at one moment."""

    namespace: str
    name: str
    workload: Workload
    created: object
    ready: bool
    phase: str
    reason: str
    restarts: int
    mesh: str
    image: str
    proxy: str
    address: str
    #: whether it was asked anything itself; a large live cluster is asked for a sample of its pods
    asked: bool
    question: str

    @property
    def identity(self) -> tuple[str, str, object]:
        """What no other pod has: a name alone can be taken again."""
        return self.namespace, self.name, self.created

    @property
    def title(self) -> str:
        """The name that its proxy has at istiod: pod.namespace."""
        return f"{self.name}.{self.namespace}"


@dataclass(frozen=True, slots=True)
class Succession:
    """The pods of both moments, and who took whose place."""

    before: tuple[Known, ...]
    after: tuple[Known, ...]
    #: pods that are still there
    kept: tuple[tuple[Known, Known], ...]
    #: pods that took the place of others: of those that are gone, and of those that are new
    replaced: tuple[tuple[Known, Known], ...]
    #: per workload: those that are gone, and those that are new
    turned_over: Mapping[Workload, tuple[tuple[Known, ...], tuple[Known, ...]]]
    #: names of pods and proxies that are gone, and what took their place is called
    names: Mapping[str, str]


def known_pods(facts: Facts) -> tuple[Known, ...]:
    """Return the pods of one moment, without those that have ended."""
    frame = facts["pods"]
    asked = set(map(pod_of, facts.source.questions()))
    columns = {name: list(map(plain, frame[name])) for name in frame.columns}
    found = []
    for at in range(len(frame)):
        row = {name: values[at] for name, values in columns.items()}
        if row["phase"] == "Succeeded":
            continue
        namespace = row["namespace"] or ""
        found.append(
            Known(
                namespace=namespace,
                name=row["pod"] or "",
                workload=(namespace, row["workload_kind"] or "Pod", row["workload"] or row["pod"]),
                created=row["created"],
                ready=bool(row["ready"]),
                phase=row["phase"] or "",
                reason=row["not_ready_reason"] or "",
                restarts=row["restarts"] or 0,
                mesh=row["mesh"] or "none",
                image=row["proxy_image"] or "",
                proxy=row["proxy"] or "",
                address="" if row["host_network"] else row["address"] or "",
                asked=f"{row['pod']}.{namespace}" in asked,
                question=row["question"],
            )
        )
    return tuple(found)


def succession(before: Facts, after: Facts) -> Succession:
    """Match the pods of two moments."""
    old, new = known_pods(before), known_pods(after)
    were, are = {pod.identity: pod for pod in old}, {pod.identity: pod for pod in new}
    kept = tuple((were[one], pod) for one, pod in are.items() if one in were)
    workloads = dict.fromkeys(
        pod.workload for pod in (*old, *new) if pod.identity not in are or pod.identity not in were
    )
    turned_over = {
        workload: (
            tuple(p for p in old if p.workload == workload and p.identity not in are),
            tuple(p for p in new if p.workload == workload and p.identity not in were),
        )
        for workload in workloads
    }
    replaced = tuple(
        pair
        for gone, come in turned_over.values()
        # Whom both moments asked can be compared.
        for pair in zip(*(sorted(pods, key=_unasked) for pods in (gone, come)), strict=False)
    )
    names: dict[str, str] = {}
    bare = Counter(pod.name for pod in old)
    for one, other in replaced:
        names[one.title] = other.title
        if bare[one.name] == 1:
            names[one.name] = other.name
    names = {one: other for one, other in names.items() if one != other}
    return Succession(old, new, kept, replaced, turned_over, names)


def _unasked(pod: Known) -> bool:
    return not pod.asked


def pod_of(question: Question) -> str:
    """Return the pod that a question went to, as pod.namespace; empty for a list."""
    if isinstance(question, HttpQuestion | ProbeQuestion | LogQuestion):
        return f"{question.pod}.{question.namespace}"
    return ""
