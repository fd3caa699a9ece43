"""Where the rows stand that steps of a trace cite."""

from __future__ import annotations

from typing import Any

from meshnb.tables import Facts
from meshnb.traces.ends.transport import Held
from meshnb.traces.mesh import Pod
from meshnb.traces.row_index import RowIndex


class Rows:
    """Finds rows of tables; each answer is the fields of a hop that cite it, empty without one."""

    def __init__(self, facts: Facts) -> None:
        """Take the facts."""
        self._index = RowIndex(facts)

    def pod(self, pod: Pod) -> dict[str, Any]:
        """Cite a pod."""
        row = self._index.row("pods", {"namespace": pod.namespace, "pod": pod.pod})
        return {"table": "pods", "row": row} if row is not None else {}

    def config(self, index: int) -> dict[str, Any]:
        """Cite an Istio object by its index."""
        return {"table": "istio_config", "row": index}

    def cluster(self, proxy: str, cluster: str) -> dict[str, Any]:
        """Cite a cluster of a proxy."""
        row = self._index.row("clusters", {"proxy": proxy, "cluster": cluster})
        return {"table": "clusters", "row": row, "resource": cluster} if row is not None else {}

    def listener(self, proxy: str, listener: str, position: int) -> dict[str, Any]:
        """Cite a filter chain of a listener by its place."""
        key = {"proxy": proxy, "listener": listener, "position": position}
        row = self._index.row("listeners", key)
        return {"table": "listeners", "row": row, "resource": listener} if row is not None else {}

    def first_listener(self, proxy: str, listener: str) -> dict[str, Any]:
        """Cite a listener whose filter chains all do not count."""
        found = self.listener(proxy, listener, 0)
        found.pop("resource", None)
        return found


def held_row(held: Held | None) -> dict[str, Any]:
    """Cite the row of a certificate."""
    if held is None or held.row is None:
        return {}
    return {"table": "certificates", "row": held.row, "resource": held.name}
