"""What all checks of written objects share: how they say something, each thing once.

These checks say the same as the messages of `istioctl analyze`, about the same objects, and are
named after them in ``same_as``. In a diagnosis they are worth knowing and no more, since an object
may be odd for years without a request that fails; ``level`` carries how bad Istio takes it to be.
Istio tells two messages of one text apart by the line that they point to, where there are lines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

import pandas as pd

from meshnb.checks.base import Cause, Evidence, Finding, Severity, Subject, check, edit
from meshnb.sources import Manifests
from meshnb.tables import Facts
from meshnb.traces.objects import Object, Objects

#: An object may say in this annotation, by their codes, which messages it does not want.
_SUPPRESSED = "galley.istio.io/analyze-suppress"

#: So many names are compared with one that does not exist.
_MANY = 5000

#: Which table shows an object of a kind, and the columns of its namespace and name there.
_TABLES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "Namespace": ("namespaces", ("namespace",)),
    "Pod": ("pods", ("namespace", "pod")),
    "Service": ("services", ("namespace", "service")),
    "Deployment": ("workloads", ("namespace", "workload")),
    "MutatingWebhookConfiguration": ("webhooks", ("configuration",)),
    "ValidatingWebhookConfiguration": ("webhooks", ("configuration",)),
}


def lint(
    code: str, *same_as: str
) -> Callable[[Callable[..., Iterable[Finding]]], Callable[..., Iterable[Finding]]]:
    """Put a check of written objects into the catalogue, the same as these messages of Istio."""
    return check(code, Severity.INFO, cause=Cause.CONTROL_PLANE_CONFIG, same_as=same_as)


@dataclass(slots=True)
class Say:
    """Says what is wrong with objects: each thing once, and not what they suppress."""

    objects: Objects
    facts: Facts
    _said: set[tuple[Any, ...]] = field(default_factory=set)
    _rows: dict[str, dict[tuple[str, ...], list[Any]]] = field(default_factory=dict)

    def __call__(
        self,
        item: Object,
        message: str,
        *,
        same_as: str = "",
        fix: str = "Correct it",
        path: str = "",
        key: tuple[Any, ...] | None = None,
        lines: bool = True,
        related: Iterable[Object] = (),
        level: str = "",
        whereabouts: str = "",
    ) -> Iterator[Finding]:
        """Yield the finding, unless it was said or is suppressed.

        Two are the same when they are about the same object with the same ``key``; in files, where
        each has a line, also with the same path. With ``lines`` false Istio points to no line.
        ``whereabouts`` says where to mend what is no object of its own.
        """
        wanted = str(item.annotations.get(_SUPPRESSED, ""))
        if same_as and (wanted == "*" or same_as in [one.strip() for one in wanted.split(",")]):
            return
        if key is not None:
            place = path if lines and self.objects.in_files else ""
            said = (item.kind, item.title, same_as, *key, place)
            if said in self._said:
                return
            self._said.add(said)
        subject = subject_of(item)
        where = f" ({path})" if path and path not in message else ""
        yield Finding(
            subject,
            f"{message.removesuffix('.')}{where}.",
            f"{fix} {whereabouts or self._where(item, path)}.",
            evidence=self._evidence(subject),
            related=tuple(subject_of(one) for one in related),
            path=path,
            same_as=same_as,
            level=level,
        )

    def _where(self, item: Object, path: str) -> str:
        if not self.objects.in_files:
            return f"with {edit(subject_of(item))}"
        place = self.origin(item, path)
        return f"in {place}" if place else "where it is written"

    def origin(self, item: Object, path: str) -> str:
        """Return ``file:line`` of what is at a path of an object; empty where it is in no file."""
        source = self.facts.source
        if not isinstance(source, Manifests):
            return ""
        return source.origin(item.kind, item.namespace, item.name, path, group=item.group)

    def _evidence(self, subject: Subject) -> tuple[Evidence, ...]:
        """Return the row that shows an object; nothing for kinds that no table shows."""
        usual = ("istio_config", ("kind", "namespace", "name"))
        table, columns = _TABLES.get(subject.kind, usual)
        frame = self.facts[table]
        if table not in self._rows:
            self._rows[table] = _index(frame, columns)
        parts = (subject.kind, subject.namespace, subject.name)
        labels = self._rows[table].get(parts[len(parts) - len(columns) :], [])
        return (Evidence.of(frame, labels),) if labels else ()


def _index(frame: pd.DataFrame, columns: tuple[str, ...]) -> dict[tuple[str, ...], list[Any]]:
    found: dict[tuple[str, ...], list[Any]] = {}
    values = [frame[name].fillna("").astype(str).tolist() for name in columns]
    for label, key in zip(frame.index, zip(*values, strict=True), strict=True):
        found.setdefault(key, []).append(label)
    return found


def subject_of(item: Object) -> Subject:
    """Return the subject for an object."""
    return Subject(item.kind, item.namespace, item.name)


def hint(name: str, known: Iterable[str]) -> str:
    """Return the sentence that names the nearest existing name; empty when none is near.

    Among very many it is not looked for: that would take longer than all checks together.
    """
    names = sorted(set(known))
    close = get_close_matches(name, names, n=1, cutoff=0.6) if len(names) <= _MANY else []
    return f" The nearest that exists is {close[0]}." if close else ""


def labelled(labels: Mapping[str, Any]) -> str:
    """Return labels as a selector is written: ``app=web,version=v1``."""
    return ",".join(f"{key}={value}" for key, value in sorted(labels.items()))
