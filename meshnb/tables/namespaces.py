"""The table ``namespaces``: every namespace, and how its new pods come into the mesh."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from meshnb.sources.base import Question
from meshnb.tables.base import Column, Facts, Json, Listed, Row, Table, dig, records
from meshnb.tables.metadata import changed, labels_of
from meshnb.tables.selectors import selects

_NAMESPACES = Listed("v1", "namespaces")

NAMESPACES = Table(
    name="namespaces",
    grain="one row per namespace",
    asks=_NAMESPACES,
    columns={
        "namespace": Column("string", "name of the namespace", key=True),
        "phase": Column("string", "Active or Terminating"),
        "created": Column("datetime64[us, UTC]", "when it was created", passing=True),
        "changed": Column(
            "datetime64[us, UTC]", "when anything but its status was changed last", passing=True
        ),
        "injection": Column("string", "its label istio-injection: enabled or disabled"),
        "revision": Column("string", "its label istio.io/rev: a revision or a tag"),
        "ambient": Column("string", "its label istio.io/dataplane-mode: ambient or none"),
        "injector": Column(
            "string",
            "configuration/webhook that injects new pods without labels here; absent if none does",
        ),
        "injector_revision": Column("string", "revision of Istio that this webhook belongs to"),
        "labels": Column("object", "its labels, a dict"),
    },
    istioctl="istioctl x injector list",
)

#: Namespaces that the injector refuses whatever their labels are (pkg/kube/inject of Istio 1.30).
NEVER_INJECTED = ("kube-system", "kube-public", "kube-node-lease", "local-path-storage")


@NAMESPACES.derives
def _rows(facts: Facts) -> Iterator[tuple[Question, Row]]:
    injectors = facts.once(injection_webhooks)

    def read(document: Json, question: Question, facts: Facts) -> Iterator[Row]:
        name, labels = dig(document, "metadata", "name"), labels_of(document)
        injector = None if name in NEVER_INJECTED else chosen(injectors, labels, {})
        yield {
            "namespace": name,
            "phase": dig(document, "status", "phase"),
            "created": dig(document, "metadata", "creationTimestamp"),
            "changed": changed(document),
            "injection": labels.get("istio-injection"),
            "revision": labels.get("istio.io/rev"),
            "ambient": labels.get("istio.io/dataplane-mode"),
            "injector": injector["title"] if injector else None,
            "injector_revision": injector["revision"] if injector else None,
            "labels": labels,
        }

    yield from facts.read(_NAMESPACES, read)


def injection_webhooks(facts: Facts) -> list[dict[str, Any]]:
    """Return the webhooks that inject: title, revision and both selectors."""
    return [
        {
            "title": f"{row['configuration']}/{row['webhook']}",
            "revision": row["revision"],
            "namespace_selector": row["namespace_selector"],
            "object_selector": row["object_selector"],
        }
        for row in records(facts["webhooks"])
        if row["kind"] == "mutating" and row["purpose"] == "injection"
    ]


def chosen(
    injectors: list[dict[str, Any]],
    namespace_labels: Mapping[str, Any],
    pod_labels: Mapping[str, Any],
) -> dict[str, Any] | None:
    """Return the first webhook that selects a pod with these labels in such a namespace."""
    for injector in injectors:
        if selects(injector["namespace_selector"], namespace_labels) and selects(
            injector["object_selector"], pod_labels
        ):
            return injector
    return None
