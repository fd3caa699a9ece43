"""Which objects act on which pod of a whole mesh."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from meshnb.sources.base import Question
from meshnb.tables import Facts
from meshnb.tables.base import Column, Row, Table
from meshnb.traces.describe.base import Acting
from meshnb.traces.describe.known import Known
from meshnb.traces.describe.pod import objects_on, policies_on
from meshnb.traces.mesh import ConfigObject, Mesh, Pod

ACTING_OBJECTS = Table(
    name="acting_objects",
    grain="one row per running pod and Istio object that acts on it, or could be thought to",
    columns={
        "namespace": Column("string", "namespace of the pod", key=True),
        "pod": Column("string", "name of the pod", key=True),
        "kind": Column("string", "kind of the object", key=True),
        "object_namespace": Column("string", "namespace of the object", key=True),
        "object": Column("string", "name of the object", key=True),
        "acts": Column("boolean", "whether it acts on the pod or on requests to it"),
        "why": Column("string", "why it does or does not"),
    },
    istioctl="istioctl x describe pod POD -n NAMESPACE",
)


def acting_objects(facts: Facts, mesh: Mesh) -> pd.DataFrame:
    """Return which objects act on which pod; the columns are those of :data:`ACTING_OBJECTS`."""
    known = Known(facts, mesh)
    titles = facts["istio_config"]["question"].tolist()

    def rows() -> Iterator[tuple[Question, Row]]:
        for pod in mesh.pods:
            for one in objects_on(known, pod) if pod.running else ():
                yield (
                    facts.question(str(titles[one.item.index])),
                    {
                        "namespace": pod.namespace,
                        "pod": pod.pod,
                        "kind": one.item.kind,
                        "object_namespace": one.item.namespace,
                        "object": one.item.name,
                        "acts": one.acts,
                        "why": one.why,
                    },
                )

    return ACTING_OBJECTS.frame(rows())


def acting_on(facts: Facts, mesh: Mesh, item: ConfigObject) -> Iterator[tuple[Pod, Acting]]:
    """Yield each running pod of the mesh that a policy acts on, or could be thought to act on.

    A policy is what has a selector or targetRefs: authentication, authorization, telemetry,
    extensions, Sidecars. Of other kinds nothing is yielded.
    """
    known = Known(facts, mesh)
    for pod in mesh.pods:
        if pod.running and pod.in_mesh:
            for one in policies_on(known, pod):
                if one.item is item:
                    yield pod, one
