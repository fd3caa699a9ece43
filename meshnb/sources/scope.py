"""Which part of a mesh is asked: chosen namespaces, pods and labels, or a sample."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from meshnb.errors import UsageError

#: More pods than these are not all asked for their pages unless one says how many.
MANY_PODS = 1000
#: So many of each workload are asked then.
_SAMPLE = 3
#: Where Kubernetes itself runs; what is in the mesh there is asked nevertheless.
KUBERNETES_NAMESPACES = frozenset({"kube-system", "kube-public", "kube-node-lease"})

Pod = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Scope:
    """Whose pages, ports and logs are asked for. Nothing chosen means the whole mesh.

    istiod, ztunnel and the CNI's pods are always in scope, because they explain the others. Lists
    are of all namespaces whenever that is allowed, because routes lead across namespaces; where it
    is not, they are of ``namespaces``.
    """

    namespaces: tuple[str, ...] = ()
    #: names of pods, or ``NAMESPACE/NAME``
    pods: tuple[str, ...] = ()
    #: a selector such as ``app=reviews,version!=v1,track``; empty for any
    labels: str = ""
    #: so many pods of each workload; None for all, unless there are very many
    sample: int | None = None
    #: ask only the istiods of this namespace
    istio_namespace: str = ""
    #: ask only the istiods of this revision
    revision: str = ""

    def __post_init__(self) -> None:
        """Refuse a selector that cannot be read, and a sample of nothing. Raises UsageError."""
        _requirements(self.labels)
        if self.sample is not None and self.sample < 1:
            raise UsageError(
                f"A sample of {self.sample} pods asks nobody.", next_step="Take 1 or more."
            )

    @property
    def said(self) -> str:
        """What was chosen, in words; empty for the whole mesh."""
        parts = [
            f"namespaces {', '.join(self.namespaces)}" if self.namespaces else "",
            f"pods {', '.join(self.pods)}" if self.pods else "",
            f"labels {self.labels}" if self.labels else "",
            f"{self.sample} pods of each workload" if self.sample else "",
        ]
        return "; ".join(part for part in parts if part)

    def holds(self, pod: Pod) -> bool:
        """Whether a pod was chosen, before a sample is taken."""
        metadata = pod.get("metadata") or {}
        namespace, name = str(metadata.get("namespace")), str(metadata.get("name"))
        if self.namespaces and namespace not in self.namespaces:
            return False
        if self.pods and name not in self.pods and f"{namespace}/{name}" not in self.pods:
            return False
        labels = metadata.get("labels") or {}
        return all(_met(labels, *one) for one in _requirements(self.labels))

    def sampled(self, pods: Sequence[Pod]) -> tuple[list[Pod], str]:
        """Return the pods that are asked, and a sentence when some are left out.

        Of a workload those that are not ready come first, because they have something to say.
        """
        size = self.sample
        if size is None and len(pods) > MANY_PODS and not self.pods:
            size = _SAMPLE
        if size is None:
            return list(pods), ""
        groups: dict[tuple[str, str], list[Pod]] = {}
        for pod in pods:
            groups.setdefault(_workload(pod), []).append(pod)
        kept = [
            pod
            for group in groups.values()
            for pod in sorted(group, key=lambda pod: (_ready(pod), str(_name(pod))))[:size]
        ]
        if len(kept) == len(pods):
            return list(pods), ""
        return kept, (
            f"Only {len(kept)} of {len(pods)} pods were asked, {size} of each workload at most; "
            f"--sample {max(map(len, groups.values()))} asks them all."
        )


def _name(pod: Pod) -> tuple[str, str]:
    metadata = pod.get("metadata") or {}
    return str(metadata.get("namespace")), str(metadata.get("name"))


def _workload(pod: Pod) -> tuple[str, str]:
    """Return what made a pod: pods of one ReplicaSet are alike, those of two versions are not."""
    metadata = pod.get("metadata") or {}
    owners: Iterable[Any] = metadata.get("ownerReferences") or ()
    owner = next((one for one in owners if isinstance(one, dict) and one.get("controller")), None)
    namespace, name = _name(pod)
    return namespace, f"{owner.get('kind')}/{owner.get('name')}" if owner else name


def _ready(pod: Pod) -> bool:
    status = pod.get("status") or {}
    return any(
        one.get("type") == "Ready" and one.get("status") == "True"
        for one in status.get("conditions") or ()
        if isinstance(one, dict)
    )


#: One requirement: key, operator, values.
_Requirement = tuple[str, str, frozenset[str]]
_KEY = r"(?:[a-z0-9.-]+/)?[A-Za-z0-9][A-Za-z0-9_.-]*"
_EQUAL = re.compile(rf"(?P<key>{_KEY})\s*(?P<operator>!=|==?)\s*(?P<value>[A-Za-z0-9_.-]*)")
_SET = re.compile(rf"(?P<key>{_KEY})\s+(?P<operator>in|notin)\s*\((?P<values>[^()]*)\)")
_THERE = re.compile(rf"(?P<not>!?)\s*(?P<key>{_KEY})")


def _requirements(selector: str) -> tuple[_Requirement, ...]:
    """Read a label selector as kubectl does. Raises UsageError."""
    found: list[_Requirement] = []
    for part in re.split(r",(?![^()]*\))", selector) if selector.strip() else ():
        text = part.strip()
        if match := _EQUAL.fullmatch(text):
            operator = "notin" if match["operator"] == "!=" else "in"
            found.append((match["key"], operator, frozenset({match["value"]})))
        elif match := _SET.fullmatch(text):
            values = frozenset(value.strip() for value in match["values"].split(","))
            found.append((match["key"], match["operator"], values))
        elif match := _THERE.fullmatch(text):
            found.append((match["key"], "absent" if match["not"] else "present", frozenset()))
        else:
            raise UsageError(
                f"{text!r} is no label selector.",
                next_step="Write it as for kubectl, such as app=reviews,version!=v1.",
            )
    return tuple(found)


def _met(labels: Mapping[str, Any], key: str, operator: str, values: frozenset[str]) -> bool:
    match operator:
        case "in":
            return labels.get(key) in values
        case "notin":
            return labels.get(key) not in values
        case "present":
            return key in labels
        case _:
            return key not in labels
