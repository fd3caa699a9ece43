"""A recording grown to a mesh with many proxies: each of its workloads gets more pods.

Every proxy answers under its own name and address, all know of each other, and istiod of all.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from meshnb.sources import HttpQuestion, LogQuestion, ProbeQuestion, Question
from tests.enriching.base import Enriched, Json, name_of
from tests.enriching.envoy import proxies

#: Pages and lists in which endpoints stand; a pod of theirs is an element of some list.
_WITH_ENDPOINTS = ("endpoints", "endpointslices")
#: istiod's pages with an element for each proxy.
_OF_ISTIOD = ("/debug/syncz", "/debug/adsz", "/debug/connections")
_DUMP = "/config_dump"


@dataclass(frozen=True)
class _Replica:
    """What a pod is called in place of the recorded one, and where it is."""

    names: Mapping[str, str]
    pattern: re.Pattern[str]

    def __call__(self, text: str) -> str:
        """Return a text about the recorded pod as one about this one."""
        return self.pattern.sub(lambda match: self.names[match[0]], text)


def crowd(mesh: Enriched, pods: int, *, rolled: Collection[str] = ()) -> Enriched:
    """Give each workload of the mesh that has a proxy so many pods; return the mesh.

    The workloads ``rolled`` have other ones, as after a rollout: other names, uids and addresses.
    """
    crowds = dict(_replicas(mesh, pods, rolled))
    owned = {key: [q for q in mesh.questions() if _pod_of(q) == key] for key in crowds}
    _grow_lists(mesh, crowds)
    for proxy in list(proxies(mesh)):
        page = proxy.question
        known = _multiplied(proxy.part("Endpoints"), crowds)[0]
        proxy.part("Endpoints").clear()
        apart = json.dumps(proxy.dump)
        clusters = [q for q in mesh.asked("/clusters") if _pod_of(q) == _pod_of(page)]
        for one in clusters:
            mesh.give(one, json.dumps(_multiplied(mesh.document(one), crowds)[0]).encode())
        for own in crowds.get((page.namespace, page.pod), [None]):
            dump = json.loads(apart if own is None else own(apart))
            dump["configs"] = [part or known for part in dump["configs"]]
            new = page if own is None else replace(page, pod=own(page.pod))
            mesh.give(new, json.dumps(dump).encode(), like=page)
    for key, questions in owned.items():
        for own in crowds[key]:
            for question in questions:
                _copy(mesh, question, own)
    mesh.forget(lambda question: _pod_of(question) not in crowds)
    return mesh


def _replicas(
    mesh: Enriched, pods: int, rolled: Collection[str]
) -> Iterator[tuple[tuple[str, str], list[_Replica]]]:
    proxied = {(proxy.namespace, proxy.pod) for proxy in proxies(mesh)}
    for number, pod in enumerate(mesh.objects("pods")):
        owners = pod["metadata"].get("ownerReferences") or []
        if name_of(pod) not in proxied or not owners:
            continue
        name, address, uid = pod["metadata"]["name"], pod["status"]["podIP"], pod["metadata"]["uid"]
        workload = owners[0]["name"].rpartition("-")[0]
        again = workload in rolled
        found = []
        for count in range(pods):
            new = f"{owners[0]['name']}-{'z' if again else 'c'}{count:04d}"
            names = {
                name: new,
                address: f"10.{100 + number}.{count // 200 + (100 if again else 0)}.{count % 200}",
                uid: f"uid-{new}",
            }
            pattern = re.compile("|".join(rf"{re.escape(old)}(?![\w]|\.\d)" for old in names))
            found.append(_Replica(names, pattern))
        yield name_of(pod), found


def _grow_lists(mesh: Enriched, crowds: Mapping[tuple[str, str], list[_Replica]]) -> None:
    pods = mesh.objects("pods")
    pods[:] = [one for pod in pods for one in _repeated(pod, crowds.get(name_of(pod)))]
    for resource in _WITH_ENDPOINTS:
        listed = mesh.objects(resource)
        listed[:] = _multiplied(listed, crowds)[0]
    for path in _OF_ISTIOD:
        for page in mesh.pages(path):
            told = page["clients"] if isinstance(page, dict) else page
            told[:] = [one for entry in told for one in _repeated(entry, _named(entry, crowds))]


def _repeated(element: Json, own: list[_Replica] | None) -> list[Json]:
    if own is None:
        return [element]
    text = json.dumps(element)
    return [json.loads(one(text)) for one in own]


def _named(entry: Json, crowds: Mapping[tuple[str, str], list[_Replica]]) -> list[_Replica] | None:
    name = str(entry.get("proxy") or entry.get("connectionId")).rpartition("-")
    full = entry.get("proxy") or name[0]
    return next((own for (space, pod), own in crowds.items() if full == f"{pod}.{space}"), None)


def _multiplied(
    value: Json, crowds: Mapping[tuple[str, str], list[_Replica]]
) -> tuple[Json, list[_Replica] | None]:
    """Return a document in which each endpoint of a pod stands once for each of its replicas.

    With it, of what is no list of endpoints, whose replicas it names.
    """
    if isinstance(value, str):
        return value, next((own for own in crowds.values() if own[0](value) != value), None)
    if isinstance(value, dict):
        parts = {name: _multiplied(one, crowds) for name, one in value.items()}
        named = next((own for _, own in parts.values() if own is not None), None)
        return {name: one for name, (one, _) in parts.items()}, named
    if not isinstance(value, list):
        return value, None
    found = [_multiplied(one, crowds) for one in value]
    if all(isinstance(one, str) for one in value):
        return value, next((own for _, own in found if own is not None), None)
    return [new for one, own in found for new in _repeated(one, own)], None


def _pod_of(question: Question) -> tuple[str, str] | None:
    if isinstance(question, HttpQuestion | ProbeQuestion | LogQuestion):
        return question.namespace, question.pod
    return None


def _copy(mesh: Enriched, question: Any, own: _Replica) -> None:
    new = replace(question, pod=own(question.pod))
    if isinstance(question, HttpQuestion) and question.path.startswith(_DUMP):
        return
    if isinstance(question, HttpQuestion) and mesh.usable(question):
        shared = question.path.startswith("/clusters")
        text = mesh.text(question)
        mesh.give(new, (text if shared else own(text)).encode(), like=question)
    else:
        mesh.copy_answer(new, question)


def lead_elsewhere(mesh: Enriched, rule: str, subset: str, new: str) -> Enriched:
    """Add a subset to a DestinationRule, and let all that leads to another one lead there.

    The VirtualService of the same name and the routes and clusters of all proxies follow.
    """
    for item in mesh.objects("virtualservices"):
        if item["metadata"]["name"] == rule:
            text = json.dumps(item["spec"])
            item["spec"] = json.loads(text.replace(f'"subset": "{subset}"', f'"subset": "{new}"'))
    for item in mesh.objects("destinationrules"):
        if item["metadata"]["name"] == rule:
            item["spec"]["subsets"].append({"name": new, "labels": {"version": new}})
    for page in mesh.asked(_DUMP):
        dump = json.loads(mesh.text(page))
        for part in dump["configs"]:
            if part["@type"].endswith("RoutesConfigDump"):
                text = json.dumps(part)
                part.update(json.loads(text.replace(f"|{subset}|{rule}.", f"|{new}|{rule}.")))
            for entry in list(part.get("dynamic_active_clusters", ())):
                if f"|{subset}|{rule}." in entry["cluster"]["name"]:
                    text = json.dumps(entry)
                    added = text.replace(f"|{subset}|{rule}.", f"|{new}|{rule}.")
                    part["dynamic_active_clusters"].append(json.loads(added))
        mesh.give(page, json.dumps(dump).encode())
    return mesh
