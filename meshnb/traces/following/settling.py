"""Since when a cluster's hosts have been as they are, by the objects that they follow from.

Envoy notes when it took over listeners, routes and clusters, but not endpoints. These follow from
Services, EndpointSlices, pods and DestinationRules, which say when they were last changed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any

from meshnb.tables import Facts
from meshnb.tables.base import Listed, dig, items, mapping, moment
from meshnb.tables.metadata import labels_of
from meshnb.traces.envoy.configs import latest
from meshnb.traces.mesh import Mesh, host_matches, plain
from meshnb.traces.rules import rule_host

#: Kubernetes notes whole seconds, and istiod waits for more changes before it tells its proxies.
ON_THE_WAY = timedelta(seconds=5)
_SLICES = Listed("discovery.k8s.io", "endpointslices", optional=True)
_GROUPS = ("istio.io", "gateway.networking.k8s.io")
_TRIGGER = "endpoints.kubernetes.io/last-change-trigger-time"


class Settling:
    """When what endpoints follow from was last changed, for one source."""

    def __init__(self, facts: Facts, mesh: Mesh) -> None:
        """Take the tables of one source."""
        self._facts = facts
        self._mesh = mesh
        self._known: dict[str, datetime | None] = {}

    def since(self, cluster: str) -> datetime | None:
        """Return when anything was last changed that a cluster's hosts follow from."""
        if cluster not in self._known:
            host = cluster.rpartition("|")[2]
            changed = latest(self._times(host)) if host else None
            self._known[cluster] = None if changed is None else changed + ON_THE_WAY
        return self._known[cluster]

    def without_listener(self, version: datetime | None) -> datetime | None:
        """Return since when a listener that is absent has been so, as far as that is told.

        ``version`` is of the last update of listeners. What was taken away leaves no other trace
        than changes of the objects that listeners are made of.
        """
        kinds = ("Gateway", "Sidecar", "ServiceEntry")
        made_of = (
            item for kind in kinds for group in _GROUPS for item in self._mesh.of(kind, group)
        )
        times = [_plain(item.changed) for item in made_of]
        times += [_plain(service.changed) for service in self._mesh.services]
        changed = latest((version, *times))
        return None if changed is None else changed + ON_THE_WAY

    def _times(self, host: str) -> Iterator[datetime | None]:
        for service in self._mesh.ports(host):
            yield _plain(service.changed)
            yield self._slices.get((service.namespace, service.service))
            for pod in self._mesh.matching(service.selector, service.namespace):
                yield from self._pods.get((pod.namespace, pod.pod), ())
        for rule in self._mesh.of("DestinationRule"):
            if host_matches(rule_host(rule, self._mesh), host):
                yield _plain(rule.changed)
        for kind in ("ServiceEntry", "WorkloadEntry"):
            for entry in self._mesh.of(kind):
                if kind == "WorkloadEntry" or host in items(entry.spec, "hosts"):
                    yield _plain(entry.changed)

    @cached_property
    def _slices(self) -> Mapping[tuple[str, str], datetime]:
        found: dict[tuple[str, str], datetime] = {}
        for _, one in self._facts.objects(_SLICES):
            service = labels_of(one).get("kubernetes.io/service-name")
            fields = items(one, "metadata", "managedFields")
            times = [dig(field, "time") for field in fields]
            times.append(mapping(one, "metadata", "annotations").get(_TRIGGER))
            times.append(dig(one, "metadata", "creationTimestamp"))
            key = (str(dig(one, "metadata", "namespace")), str(service))
            last = latest((found.get(key), *map(moment, times)))
            if last is not None:
                found[key] = last
        return found

    @cached_property
    def _pods(self) -> Mapping[tuple[str, str], tuple[datetime | None, ...]]:
        pods = self._facts["pods"]
        columns = zip(
            *(pods[name] for name in ("namespace", "pod", "created", "ready_since")), strict=True
        )
        return {
            (str(namespace), str(pod)): (_plain(created), _plain(ready))
            for namespace, pod, created, ready in columns
        }


def _plain(value: Any) -> datetime | None:
    value = plain(value)
    return None if value is None else moment(value)
